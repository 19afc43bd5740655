/*
 * HTTP/1.1: a request on its way through libmicrohttpd's (MHD's) callbacks.
 *
 *	             on_target        head whole         body whole           answered
 *	  (no request) ─────► READING_HEAD ──► READING_BODY ──► RUNNING ────────────────► ANSWERED ──┐
 *	       ▲                   │  │            │              │  ▲  handler parked:       │       │
 *	       │                   │  │            │              │  │  MHD suspended         │       │
 *	       │                   │  │            │              │  │                        │       │
 *	       │                   │  │            │              └──┼─ client gone ─► DROPPED│       │
 *	       │                   ▼  │            ▼                 │                  ▼     ▼       │
 *	       └──────────────────────┼──────────────────── on_completed or on_connection ◄──┴───────┘
 *	                              │                              │
 *	   streamed, handler runs:    │  wanted       body whole     │  (SKIPPING_BODY: and answered)
 *	                     HOLDING_BODY ───► PASSING_BODY ─────────┤
 *	                                           │ answered        │
 *	                                           └─► SKIPPING_BODY ┘
 *
 * - The request is MHD's client context from on_target on, and conn->request. MHD tells of its end in
 *   on_completed, but not always (bad chunks, for one): the connection's end is the safety net.
 * - MHD never closes, times out or frees a suspended connection. So while a handler runs its connection
 *   stays, and the handler's end resumes it. Only where a body is streamed, in or out, may the connection be lost
 *   under the running handler.
 * - A handler that returns without having waited is answered within the same callback: no suspension, which
 *   costs MHD eight system calls.
 * - MHD takes an answer in its first call for a request or its last. What comes between waits for the last
 *   (SKIPPING_BODY).
 * - There is no way to abort a request from outside. DROPPED has the callback return MHD_NO when MHD next
 *   calls; shutting the socket down (conn_kick) makes MHD find it closed.
 * - MHD_resume_connection on a connection that is not suspended would turn the next suspension into nothing:
 *   request->suspended is exact.
 */
#include <errno.h>
#include <string.h>

#include "h1_priv.h"

enum {
	STREAM_BLOCK = 8 * 1024,
	BODY_LOW = 32 * 1024, /* bytes of a streamed body that wait for the handler: below, more may come */
	SKIPPED_MAX = 256 * 1024, /* bytes of one that nobody wants, read for the connection's sake */
};

/* ---- Suspending and resuming ------------------------------------------------------------------------- */

static void suspend(http_request *request)
{
	request->suspended = true;
	MHD_suspend_connection(request->mhd);
}

void h1_resume(http_request *request)
{
	if (!request->suspended)
		return;
	request->suspended = false;
	MHD_resume_connection(request->mhd);
	request->conn->worker->h1->want_run = true;
}

/* ---- Answering --------------------------------------------------------------------------------------- */

/* MHD asks for more of a stream. Without data it must be suspended, or it would ask again at once. */
static ssize_t pull(void *arg, uint64_t position, char *data, size_t size)
{
	http_request *request = arg;
	(void)position;
	request->conn->worker->h1->idle_runs = 0;
	ssize_t pulled = request->conn->gone ? PULL_FAILED : response_pull(&request->response, data, size);
	switch (pulled) {
	case PULL_LATER:
		suspend(request);
		return 0;
	case PULL_END:
		return MHD_CONTENT_READER_END_OF_STREAM;
	case PULL_FAILED:
		/* Where the end of the stream is the end of the body, as in HTTP/1.0, only a reset tells. */
		if (request->until_close)
			conn_reset(request->conn);
		return MHD_CONTENT_READER_END_WITH_ERROR;
	default:
		return pulled;
	}
}

/* Of a stream only the head, without a Content-Length: nobody knows it. */
static struct MHD_Response *make_stream_head(void)
{
	struct MHD_Response *head =
		MHD_create_response_from_callback(MHD_SIZE_UNKNOWN, STREAM_BLOCK, pull, NULL, NULL);
#if MHD_VERSION < 0x01000000
	/* It would have an empty chunk follow, for the next response to begin with. Unchunked it closes instead. */
	if (head)
		MHD_set_response_options(head, MHD_RF_HTTP_1_0_COMPATIBLE_STRICT, MHD_RO_END);
#endif
	return head;
}

/* The request outlives MHD's use of the body: on_completed and on_connection come after the last byte. */
static struct MHD_Response *make_response(http_request *request)
{
	http_response *response = &request->response;
	bool head = strcmp(request->method, "HEAD") == 0;
	if (response->streaming && head)
		return make_stream_head();
	if (response->streaming)
		return MHD_create_response_from_callback(MHD_SIZE_UNKNOWN, STREAM_BLOCK, pull, request, NULL);
#if MHD_VERSION >= 0x00097701
	return MHD_create_response_from_buffer_static(response->body_size, response->body);
#else
	return MHD_create_response_from_buffer(response->body_size, response->body, MHD_RESPMEM_PERSISTENT);
#endif
}

static bool queue(http_request *request)
{
	http_response *response = &request->response;
	struct MHD_Response *made = make_response(request);
	if (!made)
		return false;
	bool whole = true;
	for (const http_pair *field = response->fields; field && whole; field = field->next)
		whole = MHD_add_response_header(made, field->name, field->value);
	if (response->closes ||
	    atomic_load_explicit(&request->conn->worker->server->leaving, memory_order_relaxed))
		whole = whole && MHD_add_response_header(made, "Connection", "close");
	whole = whole && MHD_queue_response(request->mhd, (unsigned)response->status, made);
	MHD_destroy_response(made);
	return whole;
}

/* Says what it can, past MHD, which cannot say it: what it was to be, or if that is no error, an error of that status. */
static void answer_past_mhd(http_request *request, int status)
{
	request->told = true;
	if (request->response.status < 400)
		request->response.status = status;
	request->conn->unread = true;
	answer_bare(request->conn->fd, request->response.status);
	request->h1_state = DROPPED;
}

/*
 * A handler has answered while the body comes. MHD takes no answer until all of that is there: so it comes, and is
 * thrown away. A client that has stopped sending is not waited for once more.
 */
static void h1_answer_early(http_request *request)
{
	request->h1_state = SKIPPING_BODY;
	request->body_total = 0; /* of what is skipped */
	conn_enter(request->conn, CONN_BODY);
	if (request->body_error == 408)
		answer_past_mhd(request, 413);
	if (request->body_error == 408 || request->conn->gone)
		conn_kick(request->conn);
	h1_resume(request);
}

/* Without room for the answer's head MHD would close the connection without a word. */
static bool has_room(const http_request *request)
{
	return request->response.fields_size + ANSWER_LINES_MAX <= request->answer_room;
}

/* From the handler's fiber, or from within one of MHD's callbacks. */
static void h1_answer(http_request *request)
{
	if (request->h1_state == PASSING_BODY) {
		h1_answer_early(request);
		return;
	}
	if (request->h1_state == HOLDING_BODY)
		request->conn->unread = true;
	conn_enter(request->conn, CONN_SENDING);
	if (!has_room(request))
		answer_past_mhd(request, 500);
	else
		request->h1_state = !request->conn->gone && queue(request) ? ANSWERED : DROPPED;
	h1_resume(request);
}

/* MHD goes on when half of what the handler could read is read. The handler waits only when all is. */
static void h1_take_body(http_request *request, size_t size)
{
	(void)size;
	if ((request->h1_state != HOLDING_BODY && request->h1_state != PASSING_BODY) ||
	    body_waiting(request) > BODY_LOW)
		return;
	request->body_wanted = true;
	if (request->suspended)
		conn_enter(request->conn, CONN_BODY);
	h1_resume(request);
}

static const transport h1_transport = {.answer = h1_answer, .wake = h1_resume, .take_body = h1_take_body};

/* ---- MHD's callbacks for a request -------------------------------------------------------------------- */

static void head_begins(http_request *request)
{
	http_request **first = &request->conn->worker->h1->reading;
	request->reading_next = *first;
	if (*first)
		(*first)->reading_at = &request->reading_next;
	*first = request;
	request->reading_at = first;
}

void h1_head_over(http_request *request)
{
	if (!request->reading_at)
		return;
	*request->reading_at = request->reading_next;
	if (request->reading_next)
		request->reading_next->reading_at = request->reading_at;
	request->reading_at = NULL;
}

/* The first line has come. What is returned becomes the client context; NULL: out of memory. */
void *h1_on_target(void *arg, const char *target, struct MHD_Connection *mhd)
{
	(void)arg;
	conn *c = h1_conn_of(mhd);
	http_request *request = request_new(c, &h1_transport, target);
	if (request) {
		request->mhd = mhd;
		request->h1_state = READING_HEAD;
		request->raw_target = target;
		c->request = request;
		head_begins(request);
		h1_bytes(c);
	}
	return request;
}

/* Whether a body follows the head; and it is refused if it is going to be too long. */
static bool body_follows(http_request *request)
{
	const char *length = http_header(request, "Content-Length");
	if (length) {
		errno = 0;
		unsigned long long size = strtoull(length, NULL, 10);
		if (errno || size > body_limit(request))
			request_refuse(request, 413, NULL);
		return size > 0;
	}
	return http_header(request, "Transfer-Encoding");
}

/* What a version that MHD has let pass means. RFC 9110, 2.5: a later minor one is no other than 1.1. */
static enum http_version spoken_by(const char *version)
{
	return strcmp(version, "HTTP/1.0") == 0 ? HTTP_1_0 : HTTP_1_1;
}

/*
 * MHD refuses some heads by itself, and before its release 1.0 sends the head of its answer twice. Just before, it
 * writes so into its log. A head that is whole there, and that we have not been told of, is the one: MHD works at one
 * at a time. The client gets an answer of ours, and MHD a socket that takes none.
 *
 * Which connection it is about where it complains of less than a whole head, or of a chunk, nobody tells.
 */
static void refuse_head(http_request *request)
{
	conn *c = request->conn;
	h1_head_over(request);
	request->h1_state = DROPPED;
	if (!h1_copy_fields(request))
		return;
	const char *version = request->raw_target + strlen(request->target) + 1;
	validate_fields(request, spoken_by(version));
	body_follows(request);
	/* Else what is wrong with it we do not see: white space behind a length, or no memory to copy the cookies. */
	request_refuse(request, http_header(request, "Content-Length") ? 400 : 431, NULL);
	if (c->worker->server->options.traces && trace_begin(request))
		trace_answer(request);
	answer_bare_with(c->fd, &request->response);
	c->unread = true;
	shutdown(c->fd, SHUT_WR);
}

void h1_on_log(void *arg, const char *format, va_list values)
{
	static const char refusal[] = "Error processing request";
	const h1 *h = arg;
	(void)values;
	if (strncmp(format, refusal, sizeof(refusal) - 1) != 0)
		return; /* it has much to say of cookies, and goes on */
	for (http_request *request = h->reading; request; request = request->reading_next)
		if (MHD_get_connection_info(request->mhd, MHD_CONNECTION_INFO_REQUEST_HEADER_SIZE)) {
			refuse_head(request);
			return;
		}
}

/*
 * Runs the handler before the body. MHD is suspended within its first call, which it makes again when resumed, and has
 * by then neither read any of the body nor said "100 Continue".
 */
static void stream_body(http_request *request)
{
	request->h1_state = HOLDING_BODY;
	conn_enter(request->conn, CONN_RUNNING);
	request_run(request);
	if (request->h1_state != HOLDING_BODY)
		return;
	if (!request->body_wanted) {
		suspend(request);
		return;
	}
	request->h1_state = PASSING_BODY;
	conn_enter(request->conn, CONN_BODY);
}

static enum MHD_Result head_is_whole(http_request *request, const char *method, const char *version)
{
	enum http_version spoken = spoken_by(version);
	if (!h1_take_fields(request, method, version) || !request_begin(request, method, spoken))
		return MHD_NO;
	request->h1_state = READING_BODY;
	h1_head_over(request);
	conn_enter(request->conn, CONN_BODY);
	request->until_close = spoken == HTTP_1_0;
	if (request->conn->gone)
		request_cancel(request, &HTTP_CLIENT_DISCONNECTED);
	/*
	 * A refusal that can be said before the body saves the client from sending it, and us from reading what
	 * cannot be trusted; MHD then closes. But a body that is short and already on its way is read, and the
	 * connection kept.
	 */
	bool body = body_follows(request);
	if (h1_is_lenient() && http_header(request, "Transfer-Encoding"))
		request->response.closes = true;
	bool early = request->response.status == 413 || http_header(request, "Expect");
	if (request->refused && (request->response.closes || (body && early))) {
		request->conn->unread = true;
		request_answer(request);
	} else if (body && request->streams_body && !request->refused) {
		stream_body(request);
	}
	return request->h1_state == DROPPED ? MHD_NO : MHD_YES;
}

static enum MHD_Result request_is_whole(http_request *request)
{
	if (!h1_trailers_are_good(request))
		request_refuse_and_close(request, 400, "The trailer is malformed.");
	request->h1_state = RUNNING;
	conn_enter(request->conn, CONN_RUNNING);
	body_end(request);
	request_run(request);
	if (request->h1_state == RUNNING)
		suspend(request);
	return request->h1_state == DROPPED ? MHD_NO : MHD_YES;
}

/* A piece of a streamed body has come. */
static void pass_body(http_request *request, const char *data, size_t *size)
{
	if (request->suspended)
		return; /* MHD goes on with what it has read of chunks */
	*size -= body_push(request, data, *size);
	if (*size > 0 || body_is_full(request)) {
		conn_enter(request->conn, CONN_RUNNING);
		suspend(request);
	} else {
		conn_enter(request->conn, CONN_BODY);
	}
}

/* As far as Go's server does, past which it costs less to end the connection. */
static void skip_body(http_request *request, size_t *size)
{
	request->body_total += *size;
	*size = 0;
	if (request->body_total > SKIPPED_MAX)
		answer_past_mhd(request, 413);
}

/* All of a streamed body has come. Its handler may have answered before. */
static enum MHD_Result body_is_whole(http_request *request)
{
	bool answered = request->h1_state == SKIPPING_BODY;
	request->h1_state = RUNNING;
	conn_enter(request->conn, CONN_RUNNING);
	if (!h1_trailers_are_good(request)) {
		request->response.closes = true;
		body_fail(request, 400);
	}
	body_end(request);
	if (answered)
		h1_answer(request);
	else
		suspend(request);
	return request->h1_state == DROPPED ? MHD_NO : MHD_YES;
}

/* MHD calls for the head, for each piece of a body, for the end of the request, and after a resumption. */
enum MHD_Result h1_on_request(void *arg, struct MHD_Connection *mhd, const char *url, const char *method,
                              const char *version, const char *data, size_t *size, void **context)
{
	http_request *request = *context;
	(void)arg, (void)mhd, (void)url;
	if (!request)
		return MHD_NO;
	request->conn->worker->h1->idle_runs = 0;
	if (request->magic != REQUEST_MAGIC)
		http_misuse("http", "a request's memory was overwritten");
	switch (request->h1_state) {
	case READING_HEAD:
		return head_is_whole(request, method, version);
	case READING_BODY:
		if (*size == 0)
			return request_is_whole(request);
		/* What is too much is read all the same: MHD can only answer at the end. */
		request_body(request, data, *size);
		*size = 0;
		return MHD_YES;
	case HOLDING_BODY: /* the first call again */
		request->h1_state = PASSING_BODY;
		return MHD_YES;
	case PASSING_BODY:
		if (*size == 0)
			return body_is_whole(request);
		pass_body(request, data, size);
		return MHD_YES;
	case SKIPPING_BODY:
		if (*size == 0)
			return body_is_whole(request);
		skip_body(request, size);
		return request->h1_state == DROPPED ? MHD_NO : MHD_YES;
	default:
		return request->h1_state == ANSWERED ? MHD_YES : MHD_NO;
	}
}
