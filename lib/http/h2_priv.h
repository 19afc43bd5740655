/*
 * What the files of HTTP/2 share:
 *
 *	h2.c         a connection: its socket, its turns, its end
 *	h2_stream.c  a stream: the request it carries, and the answer
 *	h2_answer.c  what its handler answers
 *	h2_limits.c  what a client may cost us, in time and for nothing
 *	h2_memory.c  what nghttp2 has of our memory
 */
#ifndef TETHER_HTTP_H2_PRIV_H
#define TETHER_HTTP_H2_PRIV_H

#include <nghttp2/nghttp2.h>

#include "http_priv.h"

typedef struct h2_block h2_block;
typedef struct h2_stream h2_stream;

enum {
	STREAMS_MAX = 100, /* at once, of a connection */
	UPLOADS_MAX = 16,  /* of these, answered while their bodies still come */
};

/* So many at once, and so many more each second. In thousandths, that is, a millisecond brings per_second of them. */
typedef struct budget {
	int64_t left, most;
	unsigned per_second;
	uint64_t at_ms;
} budget;

/* In memory of its request's. */
struct h2_stream {
	http_request *request;
	h2 *h2;
	int32_t id;
	h2_stream *next, *previous; /* of the connection's; later `next` of the finished */
	bool receiving;             /* the client has not ended its side */
	bool answered;              /* the answer's head is nghttp2's */
	bool streaming;             /* its handler reads the body as it comes */
	bool continued;             /* the client was told to send it */
	bool ours;                  /* we reset it, for no fault of the client's */
	uint64_t since_ms;          /* of uv_now: when it entered what it is in: head, body */
	uint64_t sent; /* bytes of the answer's body, as far as the client's windows let them go */
	pace pace;     /* in that */
};

enum h2_end {
	H2_OPEN,
	H2_ENDING, /* GOAWAY is said, but what is under way already counts still (RFC 9113, 6.8) */
	H2_ENDED,  /* and which stream is the last */
};

struct h2 {
	conn *conn;
	nghttp2_session *session;
	h2_block *memory; /* the session's */
	h2_stream *streams;
	h2_stream *finished; /* answered to their end, with their last bytes not yet in the kernel */
	/* Of the header block that comes, as SETTINGS_MAX_HEADER_LIST_SIZE counts. */
	size_t head_size, head_fields;
	budget resets, overheads; /* h2_limits.c */
	uint64_t sent;            /* bytes of all answers' bodies */
	pace pace;                /* in that */
	/* Streams answered before their request's end: the older come first, and upload_old are to be stopped. */
	int32_t uploads[UPLOADS_MAX];
	size_t upload_count, upload_old;
	enum h2_end end;
	uint64_t ending_ms; /* of uv_now: when its end was announced */
	bool has_reset;     /* a stream, in this connection's life */
	int32_t newest;     /* the highest number of a stream seen */
	bool greeted;       /* the client's SETTINGS have come */
	bool eof;           /* it sends no more */
	bool terminated;    /* GOAWAY with an error is the last to be said */
	bool dead;          /* to be closed, with nothing said */
	char *waiting;      /* malloc'd: what the socket did not take */
	size_t waiting_size, waiting_sent;
	h2 *next_busy; /* on the worker's list of those with something to say */
	bool busy;
};

/* ---- h2.c -------------------------------------------------------------------------------------------- */

/* It may have something to say, or is to be closed: looked at once more in this turn. */
void h2_touch(h2 *h);

/* Bytes of a request's fields at most, counted as in RFC 9113, 6.5.2. */
size_t h2_head_max(const h2 *h);

uint64_t h2_now(const h2 *h);

/* GOAWAY with that reason; all streams end with the connection. */
void h2_terminate(h2 *h, uint32_t reason);

/* The first GOAWAY is followed by a PING, and its answer by the second GOAWAY. */
void h2_goaway_sent(h2 *h);
void h2_pong(h2 *h);

/* ---- h2_memory.c ------------------------------------------------------------------------------------- */

/* For a session, which with all it has lasts until h2_memory_free. */
nghttp2_mem h2_memory(h2 *h);
void h2_memory_free(h2 *h);

/* ---- h2_answer.c ------------------------------------------------------------------------------------- */

void h2_answer(http_request *request); /* a transport's answer and wake */
void h2_wake(http_request *request);

nghttp2_nv h2_pair(const char *name, const char *value); /* borrows both */

/* ---- h2_stream.c ------------------------------------------------------------------------------------- */

/* NULL: it is over for us. */
h2_stream *h2_stream_of(nghttp2_session *session, int32_t id);
/* Answers with a problem, whatever of the request has come. */
void h2_stream_refuse(h2_stream *s, int status);
/* Its body does not come. */
void h2_stream_late(h2_stream *s);
/* RST_STREAM for no fault of the client's. */
void h2_stream_reset(h2_stream *s, uint32_t reason);

extern const transport h2_transport;

void h2_stream_callbacks(nghttp2_session_callbacks *callbacks);

/* The bytes of those finished are in the kernel, or never will be. */
void h2_streams_finish(h2 *h, bool sent);
/* The connection's end: all that are left are cancelled. */
void h2_streams_drop(h2 *h);

/* ---- h2_limits.c ------------------------------------------------------------------------------------- */

void h2_limits_init(h2 *h);

/* A frame's head has come, or with DATA its whole. */
void h2_limit_frame(h2 *h, const nghttp2_frame_hd *frame);
void h2_limit_data(h2 *h, const nghttp2_frame *frame);
/* A DATA frame went out as large as the answer would have it: it may be worth two WINDOW_UPDATEs. */
void h2_limit_progress(h2 *h);
/* A stream has ended: in good order, or cut short by the client. */
void h2_limit_end(h2 *h, bool finished);

/* The stream is answered, with its request's body still coming: it is given a moment to end. */
void h2_limit_upload(h2 *h, int32_t id);

/* Looks at each stream's time. */
void h2_limit_times(h2 *h, uint64_t now);

#endif
