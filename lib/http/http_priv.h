/*
 * What the files of this layer share, in the order in which a request meets them:
 *
 *	systemd.c   sockets that a service manager hands over
 *	server.c    owns the workers and the drain                   listen.c: addresses
 *	accept.c    from a listening socket to a protocol
 *	admit.c     who is let in
 *	conn.c      connections and their time limits                hangup.c: notices that a client has left
 *	pace.c      how slowly a client may take what it is sent     socket.c: what the kernel knows of that
 *	linger.c    how an answer arrives though its request was not read
 *	context.c   their contexts, and what these know
 *	bridge*.c   where TLS ends                                   tls.c: certificates
 *	h1*.c       HTTP/1.1: libmicrohttpd in a worker's loop        h1_priv.h: what they share
 *	h2*.c       HTTP/2: nghttp2 in a worker's loop               h2_priv.h: what they share
 *	request.c   a request from its head to its end, whatever protocol brought it; arena.c: its memory
 *	head.c      what its head says                               url.c: escapes, queries
 *	body.c      its body, whole or streamed
 *	validate.c  what is no request                              trace.c: what it is called in logs
 *	router.c    which handler
 *	response.c  what the handler answers                        get.c: asks another server, for health checks
 *
 * Everything of one connection happens on one worker's thread, so nothing here is locked or atomic unless
 * it says so.
 */
#ifndef TETHER_HTTP_PRIV_H
#define TETHER_HTTP_PRIV_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#include <sys/socket.h>
#include <uv.h>

#include <tether/ctx.h>
#include <tether/http.h>
#include <tether/loop.h>

#define container_of(pointer, type, member) ((type *)(void *)((char *)(pointer)-offsetof(type, member)))

typedef struct address_count address_count;
typedef struct arena arena;
typedef struct bridge bridge;
typedef struct conn conn;
typedef struct h1 h1;
typedef struct h2 h2;
typedef struct http_route http_route;
typedef struct worker worker;

/* A broken program, told in one line; the library goes no further with it. */
_Noreturn void http_misuse(const char *call, const char *why);

/* ---- listen.c ---------------------------------------------------------------------------------------- */

typedef struct listener {
	int fd;
	bool shared;     /* other processes may listen there too: bound only, until listener_open */
	char *unix_path; /* to be unlinked, or NULL */
	http_tls *tls;   /* retained; NULL: plain */
} listener;

/* As http_listen. */
int address_listen(const char *address, bool shared, listener *made, char *bound, size_t bound_size);
/* A non-blocking socket that connects there, to be closed; -1 with errno. Looks up names, which may block. */
int address_connect(const char *address);
/* Where the address is shared, has all new connections from now on. 0, or -1 with errno. */
int listener_open(const listener *l);
void listener_close(listener *l); /* idempotent */

/* "127.0.0.1:80", "[::1]:80", "unix" */
void address_text(const struct sockaddr *address, char *text, size_t size);

/* ---- systemd.c --------------------------------------------------------------------------------------- */

/* The first socket of that name ("": any) not taken yet, to be closed; -1 with errno EADDRNOTAVAIL, ENOTSOCK. */
int systemd_socket(const char *name);

/* Tells the service manager, if there is one. */
void systemd_notify(const char *state);

/* ---- arena.c: memory that a request gives back all at once ------------------------------------------- */

struct arena_block;

struct arena {
	char *next, *end;
	struct arena_block *blocks; /* the larger ones, malloc'd; the first piece is the owner's */
};

void arena_init(arena *a, void *first, size_t size);
void arena_free(arena *a);

/* NULL with errno ENOMEM. Aligned for anything. */
void *arena_alloc(arena *a, size_t size);
char *arena_copy(arena *a, const char *text, size_t size); /* NUL-terminated */

/* ---- url.c ------------------------------------------------------------------------------------------- */

/* A name and its value: a path value, a query value, a header field. */
typedef struct http_pair {
	struct http_pair *next;
	const char *name, *value;
} http_pair;

/* The value of the first pair of that name; NULL if there is none. */
const char *pair_value(const http_pair *pairs, const char *name);

/*
 * Decodes %XX (and + where plus is set) of text[0..size) into a new string of the arena. NULL with errno:
 * EINVAL for an escape that is malformed or stands for a NUL; ENOMEM.
 */
char *percent_decode(arena *a, const char *text, size_t size, bool plus);

/* The names and values of a query, "a=1&b", decoded, in their order. False with errno as percent_decode. */
bool query_parse(arena *a, const char *query, http_pair **pairs);

/* ---- router.c ---------------------------------------------------------------------------------------- */

typedef struct router {
	http_route *first; /* of two routes that match the same path the more specific comes first */
} router;

struct http_route {
	http_route *next;
	char *pattern; /* as given */
	char *method;  /* NULL: any */
	struct segment *segments;
	size_t segment_count;
	http_handler *handler;
	void *data;
	bool streams_body;
	size_t body_size; /* 0: the server's */
};

/* As http_handle_with. */
int router_add(router *r, const char *pattern, const http_route_options *options, http_handler *handler,
               void *data);
void router_free(router *r);

enum route_result {
	ROUTE_FOUND,
	ROUTE_REDIRECT, /* the path is unclean, or a subtree's root without its slash */
	ROUTE_BAD_PATH, /* a percent escape that is none, or %00 */
	ROUTE_NOT_FOUND,
	ROUTE_METHOD_UNKNOWN, /* the path is served, but not for this method: see allow */
	ROUTE_NO_MEMORY,
};

typedef struct route_match {
	const http_route *route;
	http_pair *values;    /* of the pattern's names, decoded */
	const char *location; /* for a redirect: the path to go to, still encoded */
	const char *allow;    /* for the value of an Allow field */
} route_match;

/* path is still encoded and begins with a slash. All that is returned is allocated in a. */
enum route_result router_match(const router *r, arena *a, const char *method, const char *path,
                               route_match *match);

/* Whether text[0..size) is a token as RFC 9110 has it: a method, a field's name. */
bool is_token(const char *text, size_t size);

/* ---- response.c -------------------------------------------------------------------------------------- */

struct http_response {
	http_request *request;
	int status;
	http_pair *fields, **fields_end; /* in the request's arena */
	size_t fields_size;              /* bytes they will take in a head */
	char *body;                      /* malloc'd */
	size_t body_size, body_capacity;
	bool broken; /* a 500 is all that can be answered: out of memory or misuse */
	bool closes; /* the connection does not outlive this answer */

	/*
	 * A stream: http_write fills `body`, the protocol pulls from it. `pulled` is how much of it has left.
	 * The handler waits for `room` when the buffer is full.
	 */
	bool streaming, ended, failed;
	size_t pulled;
	uint64_t sent_size; /* pulled in all */
	wait_event room;
};

enum { RESPONSE_FIELDS_MAX = 3 * 1024 }; /* bytes of header fields a handler may set; past it: 500 */

void response_init(http_response *response, http_request *request);
void response_free(http_response *response);

/* Sets a field of the layer's own, whatever the handler has set or used up of its room. Without memory it is left out. */
void response_own_field(http_response *response, const char *name, const char *value);

/* An answer by the layer itself, a problem; drops whatever was set so far. */
void response_error(http_response *response, int status, const char *detail);

/*
 * Takes up to size bytes off a stream, for the protocol: the number of bytes, PULL_LATER if there is nothing
 * to be had yet (wake will be called), PULL_END, or PULL_FAILED.
 */
enum { PULL_LATER = 0, PULL_END = -1, PULL_FAILED = -2 };
ssize_t response_pull(http_response *response, char *data, size_t size);

const char *status_title(int status); /* "Not Found" */

/* Says on a plain connection, past its protocol, why it is about to be closed. Does not block. */
void answer_bare(int fd, int status);
void answer_bare_why(int fd, int status, const char *detail); /* plain words: not escaped */
void answer_bare_with(int fd, const http_response *response); /* its status and body, which is a problem */

/* ---- request.c --------------------------------------------------------------------------------------- */

/*
 * How a request meets its protocol. The request calls these on its worker's thread, from the handler's
 * fiber or the loop's own stack, as long as it is attached (see request_detached).
 */
typedef struct transport {
	/*
	 * Sends the response: whole, or for a stream its head, with the body to be pulled. Called once, or
	 * not at all if the request was detached first.
	 */
	void (*answer)(http_request *request);
	/* A stream that had nothing to pull has something now: data, its end, or its failure. */
	void (*wake)(http_request *request);
	/* The handler has taken so many bytes of a streamed body, or with 0 waits for some: let more come. */
	void (*take_body)(http_request *request, size_t size);
} transport;

enum { REQUEST_MAGIC = 0x72657175 };

enum http_version { HTTP_1_0 = 10, HTTP_1_1 = 11, HTTP_2 = 20 };

struct http_request {
	uint32_t magic;
	unsigned references; /* the protocol's, the fiber's */
	const transport *transport;
	conn *conn;              /* retained */
	ctx *root;               /* what is cancelled */
	ctx *ctx;                /* the root, or what carries the values set on it */
	const http_route *route; /* NULL: none matched */
	const char *method, *target, *path;
	const char *id, *trace; /* trace.c; NULL: not asked for */
	http_pair *fields, **fields_end, *path_values, *query_values;
	int64_t began_ns;

	char *body; /* malloc'd */
	size_t body_size, body_capacity, body_taken;
	bool body_wanted;              /* h1.c: the handler has asked for a streamed one */
	bool streams_body, body_ended; /* the handler runs while it comes; all of it has come */
	int body_error;                /* the status of an answer that says why no more of it does; 0 */
	uint64_t body_total;           /* what has come of a streamed one */
	wait_event body_come;          /* some of it, its end, or its failure */

	bool begun;             /* its head is whole: on_done is owed */
	bool refused;           /* the layer answers, no handler runs */
	bool running;           /* the handler has not returned */
	bool attached;          /* the protocol still has it */
	bool sent;              /* the whole answer was handed to the kernel */
	bool told;              /* not that, but the client could see how it ended: response.status */
	const ctx_error *cause; /* why the context was cancelled before the answer was sent */
	http_response response;

	/* h1.c's own. */
	struct MHD_Connection *mhd;
	const char *raw_target;                   /* where MHD has it */
	const char *last_name;                    /* and the name of the head's last field */
	http_request *reading_next, **reading_at; /* on the list of those whose head is not whole */
	int h1_state;
	size_t answer_room; /* bytes that MHD has left for the answer's head */
	bool suspended;     /* MHD has the connection on its list of suspended ones */
	bool until_close;   /* HTTP/1.0: no chunks, a stream lasts until the connection is closed */

	struct h2_stream *stream; /* h2_stream.c's own */
	size_t body_counted;      /* of the body, in conn->bodies */

	http_request *next; /* on the worker's list of spare ones */
	arena arena;
	char memory[1536]; /* the arena's first piece */
};

/* A request whose first line has come. The protocol owns one reference. NULL: out of memory. */
http_request *request_new(conn *c, const transport *t, const char *target);
void request_unref(http_request *request);
void request_free_spare(worker *w);

/* A field of its head; copied. False: out of memory. */
bool request_add_field(http_request *request, const char *name, size_t name_size, const char *value,
                       size_t value_size);

/* The head is whole: finds the route, or a reason to refuse. False: out of memory, nothing has begun. */
bool request_begin(http_request *request, const char *method, enum http_version version);

/* Refuses it: answered by the layer with a problem of this status, without a handler. The first refusal counts. */
void request_refuse(http_request *request, int status, const char *detail);

/* The same for one after which the rest of the stream cannot be trusted. */
void request_refuse_and_close(http_request *request, int status, const char *detail);

/* The request is whole: answers it, by its handler or the refusal. */
void request_run(http_request *request);

/* Hands the response, or a stream's head, to the protocol, if that still has the request. */
void request_answer(http_request *request);

/* The client does not want the answer any more. Idempotent. */
void request_cancel(http_request *request, const ctx_error *cause);

/*
 * The protocol is through with the request, having handed the whole answer to the kernel (sent) or not. The
 * transport will not be called again. Gives the protocol's reference back.
 */
void request_detach(http_request *request, bool sent);

/* ---- body.c ------------------------------------------------------------------------------------------ */

/* Bytes of its body at most. */
size_t body_limit(const http_request *request);

/* Appends to a body that is to be whole. False: too much, or out of memory; it was refused and keeps nothing. */
bool request_body(http_request *request, const char *data, size_t size);

/* Some of a streamed body has come. Returns how much of it was taken: less only if it is full now. */
size_t body_push(http_request *request, const char *data, size_t size);
size_t body_waiting(const http_request *request); /* bytes for the handler to read */
bool body_is_full(const http_request *request);
void body_end(http_request *request);
/* It will not come: the handler's reads fail, and the answer will be of that status. */
void body_fail(http_request *request, int status);

/* ---- conn.c ------------------------------------------------------------------------------------------ */

enum {
	CONN_MAGIC = 0x636f6e6e,
	ADDRESS_TEXT = 80, /* room for any address's */
};

/* What a connection's protocol must react to. Each is called on the loop's own stack. */
typedef struct protocol {
	void (*bytes)(conn *c); /* some have come: see hangup_watch_bytes, hangup_watch_io */
	void (*room)(conn *c);  /* some can be written: see hangup_watch_io. May be NULL */
	/* Behind a bridge. Bytes come, past the socket. False: not now, they come by it. NULL: always by it. */
	bool (*take)(conn *c, const char *data, size_t size);
	/* They came by the socket, just now: epoll need not be asked. May be NULL. */
	void (*delivered)(conn *c);
	void (*hangup)(conn *c);     /* the client has left: c->gone is set. Called once */
	void (*half_close)(conn *c); /* it sends no more, but may wait: c->half_closed is set. Once at most */
	void (*late)(conn *c);       /* the phase has lasted too long */
	void (*tick)(conn *c, uint64_t now); /* every so often: see conn.c. May be NULL */
	void (*drain)(conn *c); /* no more requests after those that have begun: close if there are none */
} protocol;

/* A client's progress in taking what it is sent: see pace.c. */
typedef struct pace {
	uint64_t goal; /* what it is to have taken in all at the end of this stretch */
	uint64_t since_ms;
} pace;

enum conn_phase {
	CONN_GREETING, /* nothing has come yet that would tell the protocol */
	CONN_HEAD,     /* a request's head arrives */
	CONN_BODY,     /* its body */
	CONN_RUNNING,  /* the client waits for us; without a limit of its own */
	CONN_SENDING,  /* we wait for the client to take the answer */
	CONN_IDLE,     /* between two requests */
};

struct conn {
	uint32_t magic;
	unsigned references; /* the protocol's, the watch's handle's, each request's */
	worker *worker;
	const protocol *protocol;
	conn *next, *previous; /* on the worker's list, while it is open */
	int fd;
	bool open;        /* until conn_closing */
	bool tcp;         /* not a unix socket */
	bool gone;        /* the client has left; never unset */
	bool unread;      /* its request is answered, and not read to its end: see linger.c */
	bool half_closed; /* it sends no more: see half_close_is_waiting */
	bool kicked;      /* we have shut the socket down */
	bool marked;      /* accept.c: it reports bytes only when there are more than it has seen */
	bool admitted;    /* it is one of the server's count, to be given back */
	enum conn_phase phase;
	uint64_t
		since_ms; /* of uv_now: when it entered the phase; if it is idle, and the last answer was taken */
	pace pace;        /* of the client, in taking what it is sent */
	bool outstanding; /* it may have to take some still */
	uint64_t taken;   /* pace.c's: by the client of a unix socket, as far as that is known, */
	size_t waiting;   /* and what it had not taken at the last look */
	uv_poll_t watch;
	int watching;    /* the events asked for */
	int io;          /* of these, the ones asked for until further notice */
	size_t handlers; /* of its requests, that have not returned */
	size_t bodies;   /* h2: bytes of its requests' bodies, of those too whose streams are gone */
	h2 *h2;
	http_request *request; /* h1: the one that has begun and is not over */
	conn *next_ending;     /* h1: on its list of those to be closed */
	bool ending;
	address_count *counted; /* admit.c; NULL: its address is not */
	ctx *root;              /* what is cancelled when it ends */
	ctx *ctx;               /* the root, or what on_connection made of it: parent of its requests' */
	const http_info *info;  /* what ctx knows, and as long */

	/* Of a connection with TLS, see bridge.c. */
	bridge *bridge;                       /* of an outer one */
	conn *outer;                          /* of an inner one: retained, whose socket is the client's */
	enum http_version agreed;             /* in the handshake; 0: the first bytes tell */
	http_client_certificate *certificate; /* malloc'd; NULL: none */
};

/*
 * A connection in GREETING, watched, with one reference: the protocol's. The socket, accepted and
 * non-blocking, is to be closed by the protocol. NULL with errno.
 */
conn *conn_new(worker *w, int fd, const struct sockaddr *address, const protocol *p);

/* The same behind another, which is where the client is: of its context and age, and not counted itself. */
conn *conn_new_behind(conn *outer, int fd, const protocol *p);
conn *conn_ref(conn *c);
void conn_unref(conn *c);

void conn_enter(conn *c, enum conn_phase phase);
bool conn_is_young(const conn *c); /* it was accepted, or answered last, a moment ago */
void conns_drain(worker *w);       /* all of a worker's that is draining */

/* Shuts the socket down, once: the protocol will notice and close it. */
void conn_kick(conn *c);

/* Resets the connection: what is under way to the client is dropped. The protocol will notice and close. */
void conn_reset(conn *c);

/* Whether bytes have come that nobody has read. */
bool conn_has_unread(const conn *c);

/* The socket is about to be closed: stops watching, leaves the worker's list. Idempotent. */
void conn_closing(conn *c);

/* ---- pace.c ------------------------------------------------------------------------------------------ */

/* Begins a stretch at the next look. */
void pace_restart(pace *p);

/*
 * Looks at a client that has taken so much in all, and has so much yet to take. False: it is too slow. To be asked every
 * so often; now is of uv_now.
 */
bool pace_is_kept(pace *p, const http_server *server, uint64_t taken, uint64_t waiting, uint64_t now);

/* The same of a connection's own socket. */
bool conn_keeps_pace(conn *c, uint64_t now);

/* ---- admit.c ----------------------------------------------------------------------------------------- */

typedef struct address_bucket {
	address_count *first;
} address_bucket;

typedef struct addresses {
	pthread_mutex_t lock; /* guards the buckets and their counts */
	address_bucket *buckets;
	size_t bucket_count; /* a power of two */
	uint64_t seed;
} addresses;

bool admit_init(http_server *server); /* False: out of memory; admit_free is owed all the same */
void admit_free(http_server *server);

/* A connection from there, counted until it is over. False: answer 503. */
bool admit_connection(http_server *server, const struct sockaddr *address, address_count **counted);
void admit_connection_over(http_server *server, address_count *counted);

/* Refuses a request, whose head is all that has come, if there is no handler to be had for it now. */
void admit_request(http_request *request);
/* Its handler is about to run. False: it was refused. */
bool admit_handler(http_request *request);
void admit_handler_over(http_request *request);

/* ---- context.c --------------------------------------------------------------------------------------- */

/* Gives a connection its contexts. False with errno: ENOMEM, or ECONNREFUSED if the program does not want it. */
bool conn_context(conn *c, const struct sockaddr *peer);
void conn_context_end(conn *c, const ctx_error *cause); /* and with it its requests' */
void conn_context_release(conn *c);

/* Puts what is known of a request into its context. False: out of memory. */
bool request_context_info(http_request *request);

/* ---- validate.c -------------------------------------------------------------------------------------- */

enum { TARGET_MAX = 8000 }; /* bytes of a target: RFC 9110, 4.1 */

/* Refuses, and closes, where a head is not exactly one. */
void validate_head(http_request *request, enum http_version version);
void validate_fields(http_request *request,
                     enum http_version version); /* the part of it that is about them */

/* Whether a field may stand behind a body: it must say nothing of how the message is to be read. */
bool is_trailer(const char *name, size_t name_size, const char *value, size_t value_size);

/* Whether text may be a field's value: no control character but the tab. */
bool is_field_value(const char *text, size_t size);

/* ---- trace.c ----------------------------------------------------------------------------------------- */

void trace_seed(worker *w);
bool trace_begin(http_request *request);  /* gives it its names. False: out of memory */
void trace_answer(http_request *request); /* adds them to the response */

/* ---- hangup.c ---------------------------------------------------------------------------------------- */

int hangup_watch(conn *c);                 /* for the client's leaving. 0, or -1 with errno */
void hangup_watch_bytes(conn *c);          /* also for bytes, once */
void hangup_watch_no_bytes(conn *c);       /* any more */
void hangup_watch_io(conn *c, int events); /* UV_READABLE, UV_WRITABLE, each time */
void hangup_unwatch(conn *c);

/* Tells it that its client has left, by someone who knows before the socket does. Idempotent. */
void hangup_tell(conn *c);

/* ---- linger.c ---------------------------------------------------------------------------------------- */

typedef struct lingerer lingerer;

/* The connection's socket is about to be closed with its request not read: sees to it that the answer arrives. */
void linger(conn *c);
void linger_stop(worker *w); /* the loop ends */

/* ---- tls.c, bridge.c --------------------------------------------------------------------------------- */

http_tls *tls_ref(http_tls *tls);

/* As conn_new, for a connection that begins with a handshake. */
conn *bridge_accept(worker *w, int fd, const struct sockaddr *address, http_tls *tls);

/*
 * Sends to the client of an outer connection, past the bridge's socketpair, which must have nothing in that direction,
 * now or later. How many bytes were taken: if not all, inner's `room` will be called. -1 with errno EPIPE: client gone.
 */
ssize_t bridge_send(conn *outer, const char *data, size_t size);

/* Inner has written, or soon will have: has bridges_look read it, which the same turn ends with. */
void bridge_look(conn *outer);
void bridges_look(worker *w);

/* ---- h1.c -------------------------------------------------------------------------------------------- */

/* HTTP/1.1 on a worker's loop, before it runs. NULL with errno. */
h1 *h1_new(worker *w);
/* Takes over a connection in GREETING and its reference. */
void h1_adopt(h1 *h, conn *c);
/* When no connection is left: closes the handles, and frees what it has when libuv lets it. */
void h1_stop(h1 *h);

/* ---- h2.c -------------------------------------------------------------------------------------------- */

/* HTTP/2 on a worker's loop, before it runs; and when no connection is left. */
void h2_start(worker *w);
void h2_stop(worker *w);
/* Takes over a connection, of which nothing was read, and its reference. False: out of memory, it is the caller's. */
bool h2_adopt(conn *c);

/* ---- server.c ---------------------------------------------------------------------------------------- */

/* One worker's watch of one listener. */
typedef struct acceptor {
	uv_poll_t poll;
	worker *worker;
	const listener *listener;
} acceptor;

struct worker {
	http_server *server;
	pthread_t thread;
	loop *loop;
	h1 *h1;
	loop_turn h2_turn; /* h2.c */
	h2 *h2_busy;
	bridge *bridges_busy;
	ctx *base; /* parent of its requests' contexts */
	acceptor *acceptors;
	uv_timer_t accept_again; /* after the process ran out of file descriptors */
	conn *conns;
	uv_timer_t ticks; /* conn.c */
	int64_t tick_due; /* when the next should come, and how late the last was */
	atomic_int_least64_t lag_ns;
	lingerer *lingerers; /* linger.c */
	size_t lingerer_count;
	http_request *spare; /* requests to be used again */
	uint64_t random;     /* trace.c */
	size_t spare_count;
	loop_task drain, cut; /* posted by http_serve */
	loop_exit on_exit;
	bool accepting, draining, idle;
};

enum server_state { SERVER_NEW, SERVER_SERVING, SERVER_DRAINING, SERVER_STOPPED };

enum { HEAD_SIZE_MAX = 64 * 1024 }; /* what the options may ask for; of one field nghttp2 takes no more */

struct http_server {
	http_server_options options; /* defaults filled in */
	router router;
	listener *listeners;
	size_t listener_count;
	worker *workers;
	size_t worker_count;
	ctx *abort;           /* cancelled by http_server_abort */
	pthread_mutex_t lock; /* guards state, and the workers' loops against stats while they come and go */
	enum server_state state;
	atomic_bool leaving; /* it drains, or soon will: connections do not outlive their answers */
	atomic_size_t workers_accepting;
	wait_event workers_idle;
	atomic_size_t workers_busy; /* whose connections are not all closed, in a drain */

	addresses addresses;
	atomic_size_t connections, requests, handlers;
	atomic_uint_fast64_t connections_total, connections_refused, address_refused;
	atomic_uint_fast64_t requests_total, requests_refused, disconnects_total;
};

/* The connection count fell; in a drain the last one ends the worker. */
void worker_conn_closed(worker *w);

/* ---- accept.c ---------------------------------------------------------------------------------------- */

void acceptors_open(worker *w);  /* before its loop runs, or on it */
void acceptors_close(worker *w); /* on its loop, or when that does not run; idempotent */

/* On its loop, at a drain: takes what waits, then lets go of the listeners. */
void acceptors_finish(worker *w);

/* A connection made behind another: waits for its first bytes, which tell the protocol. NULL with errno. */
conn *greet_behind(conn *outer, int fd, enum http_version agreed, http_client_certificate *certificate);

#endif
