/*
 * HTTP/2 streams: each is a request, from nghttp2's callbacks to the handler and back.
 *
 *	          the head is whole        END_STREAM             the handler          its END_STREAM is sent
 *	 HEADERS ────────────────► receiving ────────► running ────────────► answered ───────────────┐
 *	    │                          │  refused         │                     │  ▲                 ▼
 *	    │                          └──────────────────┼─────────────────────┼──┘              finish
 *	    │                          │                  │                     │
 *	    └──────────────────────────┴──── RST_STREAM, by either side ────────┴────► on_stream_close, cut: cancelled
 *
 * - A stream is nghttp2's user data until either end. What was finished is kept on a list of its own until its last
 *   bytes are the kernel's: only then was the answer sent.
 * - A handler may outlive its stream for a while. conn->handlers counts all of them, and past HANDLERS_MAX no
 *   new streams are taken.
 */
#include <string.h>
#include <strings.h>

#include "h2_priv.h"

enum {
	HANDLERS_MAX = 2 * STREAMS_MAX,
	FIELDS_MAX = 100,
	HEAD_ABUSE = 4,  /* times the limit of a head: no mistake beyond. HPACK makes much of few bytes */
	BODIES_MAX = 8,  /* times the limit of one body, for all streams of a connection */
	FIELD_COST = 32, /* RFC 9113, 6.5.2 */
};

h2_stream *h2_stream_of(nghttp2_session *session, int32_t id)
{
	h2_stream *s = nghttp2_session_get_stream_user_data(session, id);
	if (s && s->request->magic != REQUEST_MAGIC)
		http_misuse("http", "a request's memory was overwritten");
	return s;
}

void h2_stream_reset(h2_stream *s, uint32_t reason)
{
	s->ours = true;
	s->since_ms = h2_now(s->h2);
	s->h2->dead |= nghttp2_submit_rst_stream(s->h2->session, NGHTTP2_FLAG_NONE, s->id, reason) != 0;
	h2_touch(s->h2);
}

void h2_stream_refuse(h2_stream *s, int status)
{
	request_refuse(s->request, status, NULL);
	if (!s->answered)
		request_answer(s->request);
}

void h2_stream_late(h2_stream *s)
{
	if (s->request->running)
		body_fail(s->request, 408); /* its handler answers, presently */
	else
		h2_stream_refuse(s, 408);
}

/* ---- Streams ----------------------------------------------------------------------------------------- */

static h2_stream *stream_new(h2 *h, int32_t id)
{
	http_request *request = request_new(h->conn, &h2_transport, "");
	h2_stream *s = request ? arena_alloc(&request->arena, sizeof(*s)) : NULL;
	if (!s) {
		if (request)
			request_unref(request);
		return NULL;
	}
	*s = (h2_stream){.request = request, .h2 = h, .id = id, .receiving = true, .since_ms = h2_now(h)};
	request->stream = s;
	s->next = h->streams;
	if (s->next)
		s->next->previous = s;
	h->streams = s;
	return s;
}

static void unlink_stream(h2_stream *s)
{
	h2 *h = s->h2;
	if (s->next)
		s->next->previous = s->previous;
	if (s->previous)
		s->previous->next = s->next;
	else
		h->streams = s->next;
}

/* Gives a request up whose answer has not been sent. */
static void drop(h2_stream *s, const ctx_error *cause)
{
	request_cancel(s->request, cause);
	request_detach(s->request, false);
}

void h2_streams_finish(h2 *h, bool sent)
{
	h2_stream *next;
	for (h2_stream *s = h->finished; s; s = next) {
		next = s->next;
		if (sent)
			request_detach(s->request, true);
		else
			drop(s, &HTTP_CLIENT_DISCONNECTED);
	}
	h->finished = NULL;
}

void h2_streams_drop(h2 *h)
{
	while (h->streams) {
		h2_stream *s = h->streams;
		nghttp2_session_set_stream_user_data(h->session, s->id, NULL);
		unlink_stream(s);
		drop(s, &HTTP_CLIENT_DISCONNECTED);
	}
}

/*
 * The answer's end is on its way. If the body is not all here the rest of it need not be sent (RFC 9113, 8.1), which
 * a RST_STREAM says. Not at once, however: there are clients that upon it forget the answer they have.
 */
static void finish(h2_stream *s)
{
	h2 *h = s->h2;
	nghttp2_session_set_stream_user_data(h->session, s->id, NULL);
	unlink_stream(s);
	h2_limit_end(h, true);
	if (s->receiving)
		h2_limit_upload(h, s->id);
	s->next = h->finished;
	h->finished = s;
}

/* Cut short: what was answered to its end is not among the streams any more. */
static int on_stream_close(nghttp2_session *session, int32_t id, uint32_t reason, void *arg)
{
	h2 *h = arg;
	h2_stream *s = h2_stream_of(session, id);
	(void)reason;
	h2_touch(h);
	if (!s)
		return 0;
	nghttp2_session_set_stream_user_data(session, id, NULL);
	unlink_stream(s);
	if (!s->ours)
		h2_limit_end(h, false);
	drop(s, &HTTP_STREAM_RESET);
	return 0;
}

/* ---- The head ---------------------------------------------------------------------------------------- */

static int on_begin_headers(nghttp2_session *session, const nghttp2_frame *frame, void *arg)
{
	h2 *h = arg;
	int32_t id = frame->hd.stream_id;
	h->head_size = h->head_fields = 0;
	if (frame->hd.type != NGHTTP2_HEADERS || frame->headers.cat != NGHTTP2_HCAT_REQUEST)
		return 0;
	h2_stream *s = h->conn->handlers < HANDLERS_MAX ? stream_new(h, id) : NULL;
	if (!s) /* the client may send it again: nothing was done (RFC 9113, 8.7) */
		return nghttp2_submit_rst_stream(session, NGHTTP2_FLAG_NONE, id, NGHTTP2_REFUSED_STREAM);
	nghttp2_session_set_stream_user_data(session, id, s);
	return 0;
}

/* :authority is Host by another name: a client may send both, if they say the same. */
static bool is_repeated_host(const http_request *request, const char *name, const char *value)
{
	const char *host = http_header(request, "host");
	return host && strcmp(name, "host") == 0 && strcasecmp(value, host) == 0;
}

/* False: out of memory. nghttp2 sees to it that no pseudo-field is there twice, or late. */
static bool take_field(http_request *request, const char *name, size_t name_size, const char *value,
                       size_t size)
{
	arena *a = &request->arena;
	if (strcmp(name, ":method") == 0)
		return (request->method = arena_copy(a, value, size)) != NULL;
	if (strcmp(name, ":path") == 0) {
		if (size > TARGET_MAX)
			request_refuse(request, 414, NULL);
		return (request->target = arena_copy(a, value, size)) != NULL;
	}
	if (strcmp(name, ":scheme") == 0 && strcasecmp(value, "http") != 0 && strcasecmp(value, "https") != 0)
		request_refuse(request, 400, "The scheme is neither http nor https.");
	if (strcmp(name, ":authority") == 0)
		return request_add_field(request, "host", 4, value, size);
	if (name[0] == ':' || is_repeated_host(request, name, value))
		return true;
	return request_add_field(request, name, name_size, value, size);
}

/* Trailers, and the fields of a stream that was refused, are counted and dropped. */
static int on_header(nghttp2_session *session, const nghttp2_frame *frame, const uint8_t *name,
                     size_t name_size, const uint8_t *value, size_t value_size, uint8_t flags, void *arg)
{
	h2 *h = arg;
	h2_stream *s = h2_stream_of(session, frame->hd.stream_id);
	(void)flags;
	h->head_fields++;
	h->head_size += name_size + value_size + FIELD_COST;
	if (h->head_size > HEAD_ABUSE * h2_head_max(h)) {
		h2_terminate(h, NGHTTP2_ENHANCE_YOUR_CALM);
		return NGHTTP2_ERR_TEMPORAL_CALLBACK_FAILURE;
	}
	if (!s || s->request->begun)
		return 0;
	if (h->head_fields > FIELDS_MAX || h->head_size > h2_head_max(h)) {
		request_refuse(s->request, 431, NULL);
		return 0;
	}
	bool taken = take_field(s->request, (const char *)name, name_size, (const char *)value, value_size);
	return taken ? 0 : NGHTTP2_ERR_TEMPORAL_CALLBACK_FAILURE;
}

/* ---- The body ---------------------------------------------------------------------------------------- */

/* Once, and only to a client that waits for it. */
static void say_continue(h2_stream *s)
{
	nghttp2_nv go_on = h2_pair(":status", "100");
	if (s->continued || !s->receiving || !http_header(s->request, "expect"))
		return;
	s->continued = true;
	s->h2->dead |=
		nghttp2_submit_headers(s->h2->session, NGHTTP2_FLAG_NONE, s->id, NULL, &go_on, 1, NULL) < 0;
}

/* The client is told to go on when the handler first waits, and may send as much more as the handler has taken. */
static void take_body(http_request *request, size_t size)
{
	h2_stream *s = request->stream;
	nghttp2_session *session = s->h2->session;
	s->since_ms = h2_now(s->h2);
	if (size > 0)
		s->h2->dead |= nghttp2_session_consume_stream(session, s->id, size) != 0;
	else
		say_continue(s);
	h2_touch(s->h2);
}

const transport h2_transport = {.answer = h2_answer, .wake = h2_wake, .take_body = take_body};

/* The client has said all it will. */
static void request_ended(h2_stream *s)
{
	s->receiving = false;
	body_end(s->request);
	if (!s->streaming && !s->answered)
		request_run(s->request);
}

static void check_length(http_request *request)
{
	const char *length = http_header(request, "content-length");
	if (length && strtoull(length, NULL, 10) > body_limit(request))
		request_refuse(request, 413, NULL);
}

static int head_is_whole(h2_stream *s, bool ended)
{
	http_request *request = s->request;
	if (!request_begin(request, request->method, HTTP_2)) {
		h2_stream_reset(s, NGHTTP2_INTERNAL_ERROR);
		return 0;
	}
	s->since_ms = h2_now(s->h2);
	check_length(request);
	if (ended) {
		request_ended(s);
	} else if (request->refused) {
		request_answer(request); /* the body need not come: see finish */
	} else if (request->streams_body) {
		s->streaming = true;
		request_run(request);
	} else {
		say_continue(s);
	}
	return 0;
}

/*
 * The stream's window opens as the handler reads (see take_body), and is no larger than what the body has room for.
 * The connection's opens at once: a handler that does not read holds up no other stream.
 */
static int pass_body(h2_stream *s, const char *data, size_t size)
{
	s->since_ms = h2_now(s->h2);
	if (body_push(s->request, data, size) < size)
		h2_terminate(s->h2, NGHTTP2_FLOW_CONTROL_ERROR); /* not reached: nghttp2 keeps the window */
	return nghttp2_session_consume_connection(s->h2->session, size);
}

/* For all that the connection's requests have, until they are over; but one alone may have what its route allows. */
static bool is_too_much(const http_request *request, size_t size)
{
	const conn *c = request->conn;
	return size + c->bodies > BODIES_MAX * c->worker->server->options.body_size &&
	       c->bodies > request->body_counted;
}

static void count_body(http_request *request)
{
	request->conn->bodies += request->body_size - request->body_counted;
	request->body_counted = request->body_size;
}

static int on_data(nghttp2_session *session, uint8_t flags, int32_t id, const uint8_t *data, size_t size,
                   void *arg)
{
	h2_stream *s = h2_stream_of(session, id);
	(void)flags, (void)arg;
	if (!s || s->answered || s->request->refused)
		return nghttp2_session_consume_connection(session, size);
	http_request *request = s->request;
	if (s->streaming)
		return pass_body(s, (const char *)data, size);
	if (is_too_much(request, size))
		request_refuse(request, 503, NULL);
	request_body(request, (const char *)data, size);
	count_body(request);
	if (request->refused)
		request_answer(request);
	return nghttp2_session_consume(session, id, size);
}

/* ---- Frames ------------------------------------------------------------------------------------------ */

/*
 * What nghttp2 would let pass. It has been told that PRIORITY means nothing (SETTINGS_NO_RFC7540_PRIORITIES), and
 * does not remember streams that are closed (RFC 9113, 5.1). While we have reset none ourselves, and have not said
 * which is the last, HEADERS for one cannot have crossed ours. (DATA for one it throws away untold.)
 */
static void check_frame(h2 *h, const nghttp2_frame_hd *frame)
{
	enum { PRIORITY_SIZE = 5 };
	bool crossing = h->has_reset || h->end != H2_OPEN;
	if (frame->type == NGHTTP2_PRIORITY && frame->stream_id == 0)
		h2_terminate(h, NGHTTP2_PROTOCOL_ERROR);
	else if (frame->type == NGHTTP2_PRIORITY && frame->length != PRIORITY_SIZE)
		h2_terminate(h, NGHTTP2_FRAME_SIZE_ERROR);
	else if (frame->type == NGHTTP2_HEADERS && !crossing && frame->stream_id <= h->newest &&
	         frame->stream_id % 2 == 1 && !nghttp2_session_find_stream(h->session, frame->stream_id))
		h2_terminate(h, NGHTTP2_STREAM_CLOSED);
}

static int on_begin_frame(nghttp2_session *session, const nghttp2_frame_hd *frame, void *arg)
{
	(void)session;
	check_frame(arg, frame);
	h2_limit_frame(arg, frame);
	return 0;
}

static int on_frame(nghttp2_session *session, const nghttp2_frame *frame, void *arg)
{
	h2 *h = arg;
	h2_stream *s = h2_stream_of(session, frame->hd.stream_id);
	bool ended = frame->hd.flags & NGHTTP2_FLAG_END_STREAM;
	switch (frame->hd.type) {
	case NGHTTP2_SETTINGS:
		h->greeted = true;
		break;
	case NGHTTP2_PING:
		if (frame->hd.flags & NGHTTP2_FLAG_ACK)
			h2_pong(h);
		break;
	case NGHTTP2_HEADERS:
		if (s && !s->request->begun)
			return head_is_whole(s, ended);
		if (s && ended)
			request_ended(s); /* behind trailers */
		break;
	case NGHTTP2_DATA:
		h2_limit_data(h, frame);
		if (s && ended)
			request_ended(s);
		break;
	default:
		break;
	}
	return 0;
}

/* Streams that nghttp2 refuses by itself, past the number allowed, cost us as much as those that are reset. */
static int on_invalid_frame(nghttp2_session *session, const nghttp2_frame *frame, int error, void *arg)
{
	(void)error;
	if (!h2_stream_of(session, frame->hd.stream_id))
		h2_limit_end(arg, false);
	return 0;
}

static int on_frame_sent(nghttp2_session *session, const nghttp2_frame *frame, void *arg)
{
	h2_stream *s = h2_stream_of(session, frame->hd.stream_id);
	bool carries = frame->hd.type == NGHTTP2_DATA || frame->hd.type == NGHTTP2_HEADERS;
	h2 *h = arg;
	if (frame->hd.type == NGHTTP2_RST_STREAM)
		h->has_reset = true;
	else if (frame->hd.type == NGHTTP2_GOAWAY)
		h2_goaway_sent(h);
	if (s && carries && (frame->hd.flags & NGHTTP2_FLAG_END_STREAM))
		finish(s);
	return 0;
}

void h2_stream_callbacks(nghttp2_session_callbacks *callbacks)
{
	nghttp2_session_callbacks_set_on_begin_frame_callback(callbacks, on_begin_frame);
	nghttp2_session_callbacks_set_on_begin_headers_callback(callbacks, on_begin_headers);
	nghttp2_session_callbacks_set_on_header_callback(callbacks, on_header);
	nghttp2_session_callbacks_set_on_data_chunk_recv_callback(callbacks, on_data);
	nghttp2_session_callbacks_set_on_frame_recv_callback(callbacks, on_frame);
	nghttp2_session_callbacks_set_on_invalid_frame_recv_callback(callbacks, on_invalid_frame);
	nghttp2_session_callbacks_set_on_frame_send_callback(callbacks, on_frame_sent);
	nghttp2_session_callbacks_set_on_stream_close_callback(callbacks, on_stream_close);
}
