/*
 * What the server and its connections are to the files of this layer, from the listening socket to the protocol.
 */
#ifndef TETHER_HTTP_CONN_PRIV_H
#define TETHER_HTTP_CONN_PRIV_H

#include "http_priv.h"

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
