/*
 * What a request is to the files of this layer, from its head to its end, whatever protocol brought it.
 */
#ifndef TETHER_HTTP_REQUEST_PRIV_H
#define TETHER_HTTP_REQUEST_PRIV_H

#include "http_priv.h"

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
void answer_bare_with(int fd, const http_response *response); /* what it is, whole */

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

#endif
