/*
 * What the files of HTTP/1.1 share:
 *
 *	h1.c          libmicrohttpd (MHD) in a worker's loop, its connections
 *	h1_request.c  a request: MHD's callbacks for it, its body, its answer
 *	h1_fields.c   its fields, held to more than MHD holds them to
 */
#ifndef TETHER_HTTP_H1_PRIV_H
#define TETHER_HTTP_H1_PRIV_H

#include <microhttpd.h>
#include <stdarg.h>

#include "http_priv.h"

/*
 * MHD's memory of a connection holds the request's head, what it notes down of its fields, cookies and the query's
 * names, another copy of the cookies, and the answer's head, in this order, or there is no answer (see h1_request.c).
 * After the first request all of it stays resident. By default it is what an idle connection may cost: then a head that is
 * mostly cookies has to be shorter.
 */
enum {
	FIELDS_MAX = 64,
	FIELD_COST = 64,
	ANSWER_LINES_MAX = 200, /* of an answer's head: what MHD adds to the response's fields */
	ANSWER_HEAD_MAX = RESPONSE_FIELDS_MAX + 512, /* with the fields that the handler does not set */
	ANSWER_HEAD_LEAST = 1024,                    /* without which there is no point in beginning */
	POOL_DEFAULT = 14 * 1024,
	HEAD_DEFAULT = POOL_DEFAULT - FIELDS_MAX * FIELD_COST - ANSWER_HEAD_MAX,
};

/* http_request.h1_state: see h1_request.c. */
enum {
	READING_HEAD,
	READING_BODY,  /* whole, before the handler */
	HOLDING_BODY,  /* streamed, and not let come yet */
	PASSING_BODY,  /* streamed, to the handler */
	SKIPPING_BODY, /* which has answered without having read all */
	RUNNING,
	ANSWERED,
	DROPPED
};

struct h1 {
	worker *worker;
	struct MHD_Daemon *daemon;
	conn *accepting;       /* handed to MHD_add_connection right now */
	conn *ending;          /* those to be closed after this MHD_run, unless it has found a request */
	http_request *reading; /* those whose first line has come, and not all of the head */
	bool want_run;
	unsigned idle_runs; /* MHD_run calls since there was an event or a callback */
	uv_poll_t poll;     /* of MHD's epoll descriptor */
	uv_timer_t timer;   /* MHD's timeout */
	loop_turn turn;
	int handles; /* not yet closed */
};

/* ---- h1.c -------------------------------------------------------------------------------------------- */

size_t h1_head_max(const http_server *server);  /* bytes of a request's */
size_t h1_pool_size(const http_server *server); /* of MHD's memory */
conn *h1_conn_of(struct MHD_Connection *mhd);
void h1_bytes(conn *c); /* the first of a next request */

/* ---- h1_request.c ------------------------------------------------------------------------------------ */

/* MHD's callbacks: for the first line, whose result becomes the client context, and for all that follows. */
void *h1_on_target(void *arg, const char *target, struct MHD_Connection *mhd);
enum MHD_Result h1_on_request(void *arg, struct MHD_Connection *mhd, const char *url, const char *method,
                              const char *version, const char *data, size_t *size, void **context);

/* And for what it has to say, in words. */
void h1_on_log(void *arg, const char *format, va_list values);

/* The request leaves the list of those whose head is not whole. Idempotent. */
void h1_head_over(http_request *request);

/* Has MHD go on with a request whose connection is suspended, if it is. */
void h1_resume(http_request *request);

/* ---- h1_fields.c ------------------------------------------------------------------------------------- */

/* Whether this MHD takes for well-formed what is not. */
bool h1_is_lenient(void);

/* Takes the head's fields over as they are. False: out of memory. */
bool h1_copy_fields(http_request *request);

/* The same, and refuses what they must not be. */
bool h1_take_fields(http_request *request, const char *method, const char *version);

/* Whether the fields behind a chunked body may be there. They are dropped (RFC 9110, 6.5.1). */
bool h1_trailers_are_good(http_request *request);

#endif
