/*
 * HTTP/1.1: libmicrohttpd (MHD) in a worker's loop.
 *
 * MHD runs in its external epoll mode: it has an epoll descriptor of its own, which the loop watches, and
 * works when MHD_run is called. That is done at the end of a turn, after the fibers, so that all answers of
 * one turn go out together; and again as long as MHD says it has more to do.
 *
 * A request's way through MHD's callbacks:
 *
 *	             on_target        head whole         body whole           answered
 *	  (no request) ─────► READING_HEAD ──► READING_BODY ──► RUNNING ────────────────► ANSWERED ──┐
 *	       ▲                   │               │              │   handler parked:        │       │
 *	       │                   │               │              │   MHD suspended          │       │
 *	       │                   │               │              │                          │       │
 *	       │                   │               │              └─ client gone ─► DROPPED  │       │
 *	       │                   ▼               ▼                                  ▼      ▼       │
 *	       └───────────────────┴───────────────┴──────────── on_completed or on_closed ◄─┴───────┘
 *
 * - The request is MHD's client context from on_target on, and conn->request. MHD tells of its end in
 *   on_completed, but not always (bad chunks, for one): on_closed is the safety net.
 * - MHD never closes, times out or frees a suspended connection. So while a handler runs its connection
 *   stays, and the handler's end resumes it. Only a stream may lose its connection under the running handler.
 * - A handler that returns without having waited is answered within the same callback: no suspension, which
 *   costs MHD eight system calls.
 * - There is no way to abort a request from outside. DROPPED has the callback return MHD_NO when MHD next
 *   calls; shutting the socket down (conn_kick) makes MHD find it closed.
 * - MHD_resume_connection on a connection that is not suspended would turn the next suspension into nothing:
 *   request->suspended is exact.
 */
#include <errno.h>
#include <string.h>

#include <microhttpd.h>

#include "http_priv.h"
#include "socket.h"

enum {
	/*
	 * MHD's memory of a connection: the request's head, what it notes down of its fields, and the answer's head,
	 * in this order, or there is no answer. After the first request all of it stays resident.
	 */
	POOL_SIZE = 14 * 1024,
	FIELDS_MAX = 64,
	FIELD_COST = 64,
	ANSWER_HEAD_MAX = RESPONSE_FIELDS_MAX + 512, /* with the fields that the handler does not set */
	HEAD_MAX = POOL_SIZE - FIELDS_MAX * FIELD_COST - ANSWER_HEAD_MAX,
	STREAM_BLOCK = 8 * 1024,
	BODY_LOW = 32 * 1024, /* bytes of a streamed body that wait for the handler: below, more may come */
	SKIPPED_MAX = 256 * 1024, /* bytes of one that nobody wants, read for the connection's sake */
	IDLE_RUNS_MAX = 32,       /* see on_turn */
	IDLE_RUN_PAUSE = 10,      /* milliseconds */
	IDLE_SLACK = 5,           /* seconds by which MHD's own idle timeout comes later than ours */
};

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
	conn *accepting; /* handed to MHD_add_connection right now */
	conn *ending;    /* those to be closed after this MHD_run, unless it has found a request */
	bool want_run;
	unsigned idle_runs; /* MHD_run calls since there was an event or a callback */
	uv_poll_t poll;     /* of MHD's epoll descriptor */
	uv_timer_t timer;   /* MHD's timeout */
	loop_turn turn;
	int handles; /* not yet closed */
};

/* ---- Suspending and resuming ------------------------------------------------------------------------- */

static void suspend(http_request *request)
{
	request->suspended = true;
	MHD_suspend_connection(request->mhd);
}

static void resume(http_request *request)
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

/* The request outlives MHD's use of the body: on_completed and on_closed come after the last byte. */
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

/* Says what it can, past MHD, to a client of whose body no more will be read. It may have been answered kindly. */
static void answer_amid_body(http_request *request)
{
	request->told = true;
	if (request->response.status < 400)
		request->response.status = 413;
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
		answer_amid_body(request);
	if (request->body_error == 408 || request->conn->gone)
		conn_kick(request->conn);
	resume(request);
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
	request->h1_state = !request->conn->gone && queue(request) ? ANSWERED : DROPPED;
	resume(request);
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
	resume(request);
}

static const transport h1_transport = {.answer = h1_answer, .wake = resume, .take_body = h1_take_body};

/* ---- MHD's callbacks for a request -------------------------------------------------------------------- */

static conn *conn_of(struct MHD_Connection *mhd)
{
	const union MHD_ConnectionInfo *info =
		MHD_get_connection_info(mhd, MHD_CONNECTION_INFO_SOCKET_CONTEXT);
	conn *c = info ? info->socket_context : NULL;
	if (!c || c->magic != CONN_MAGIC)
		http_misuse("http", "a connection's memory was overwritten");
	return c;
}

/* The first of a next request. */
static void h1_bytes(conn *c)
{
	if (c->phase == CONN_IDLE)
		conn_enter(c, CONN_HEAD);
}

/* The first line has come. What is returned becomes the client context; NULL: out of memory. */
static void *on_target(void *arg, const char *target, struct MHD_Connection *mhd)
{
	(void)arg;
	conn *c = conn_of(mhd);
	http_request *request = request_new(c, &h1_transport, target);
	if (request) {
		request->mhd = mhd;
		request->h1_state = READING_HEAD;
		request->raw_target = target;
		c->request = request;
		h1_bytes(c);
	}
	return request;
}

/* MHD's list of fields, walked. */
struct fields {
	http_request *request;
	const char *at; /* where in memory the next one should begin */
	bool scattered; /* and one did not */
	unsigned count;
	bool out_of_memory;
	bool good;
};

/*
 * Before its release 1.0 MHD takes bare LFs, folded lines, stray spaces and NULs, and does not tell: a line
 * comes out as its name and value. But both are still where they were read, in one piece of memory, in which
 * MHD has put NULs for the colon and for the line's end. So a line that was more than name, colon, optional
 * white space, value, CR and LF is one whose successor is not where it should be. (What cannot be told is whether
 * a NUL was a NUL before: a line that begins with one passes for an empty line.)
 *
 * Of what stood between two chunks, or in a trailer, nothing is left to be seen. But it can do harm only where
 * another request follows, begun by us elsewhere than by a stricter reader in front: so behind a chunked body
 * none does, and the connection is closed.
 */
static bool mhd_is_lenient(void)
{
	return strncmp(MHD_get_version(), "0.", 2) == 0;
}

static void check_place(struct fields *fields, const char *name, size_t name_size, const char *value,
                        size_t value_size)
{
	const char *gap = name + name_size + 1;
	if (name != fields->at || !value || value < gap || value > gap + HEAD_MAX)
		fields->scattered = true;
	for (; !fields->scattered && gap < value; gap++)
		if (*gap != ' ' && *gap != '\t')
			fields->scattered = true;
	fields->at = value ? value + value_size + 2 : NULL;
}

static enum MHD_Result on_field(void *arg, enum MHD_ValueKind kind, const char *name, size_t name_size,
                                const char *value, size_t value_size)
{
	struct fields *fields = arg;
	(void)kind;
	fields->count++;
	check_place(fields, name, name_size, value, value_size);
	while (value && value_size > 0 && (value[value_size - 1] == ' ' || value[value_size - 1] == '\t'))
		value_size--;
	fields->out_of_memory =
		!request_add_field(fields->request, name, name_size, value ? value : "", value_size);
	return fields->out_of_memory ? MHD_NO : MHD_YES;
}

static enum MHD_Result on_trailer(void *arg, enum MHD_ValueKind kind, const char *name, size_t name_size,
                                  const char *value, size_t value_size)
{
	struct fields *fields = arg;
	(void)kind;
	if (fields->count++ == 0)
		fields->at = name; /* where the body ended nobody tells */
	check_place(fields, name, name_size, value, value_size);
	fields->good = fields->good && is_trailer(name, name_size, value ? value : "", value_size);
	return MHD_YES;
}

/* Takes the fields over. False: out of memory. */
static bool take_fields(http_request *request, const char *method, const char *version)
{
	const char *target = method + strlen(method) + 1;
	const char *after_target = target + strlen(request->target) + 1;
	struct fields fields = {.request = request, .at = version + strlen(version) + 2};
	fields.scattered = target != request->raw_target || version != after_target;
	MHD_get_connection_values_n(request->mhd, MHD_HEADER_KIND, on_field, &fields);
	const union MHD_ConnectionInfo *info =
		MHD_get_connection_info(request->mhd, MHD_CONNECTION_INFO_REQUEST_HEADER_SIZE);
	size_t size = info ? info->header_size : 0;
	if (fields.count > FIELDS_MAX || size > HEAD_MAX)
		request_refuse_and_close(request, 431, NULL);
	if (mhd_is_lenient() && (fields.scattered || fields.at + 2 != method + size))
		request_refuse_and_close(request, 400, "The head is malformed.");
	return !fields.out_of_memory;
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
	enum http_version spoken = strcmp(version, "HTTP/1.0") == 0 ? HTTP_1_0 : HTTP_1_1;
	if (!take_fields(request, method, version) || !request_begin(request, method, spoken))
		return MHD_NO;
	request->h1_state = READING_BODY;
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
	if (mhd_is_lenient() && http_header(request, "Transfer-Encoding"))
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

/* Fields behind a chunked body are held to what holds for a head's, and then dropped (RFC 9110, 6.5.1). */
static bool trailers_are_good(http_request *request)
{
	struct fields trailers = {.request = request, .good = true};
	MHD_get_connection_values_n(request->mhd, MHD_FOOTER_KIND, on_trailer, &trailers);
	return trailers.good && trailers.count <= FIELDS_MAX && !(mhd_is_lenient() && trailers.scattered);
}

static enum MHD_Result request_is_whole(http_request *request)
{
	if (!trailers_are_good(request))
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
		answer_amid_body(request);
}

/* All of a streamed body has come. Its handler may have answered before. */
static enum MHD_Result body_is_whole(http_request *request)
{
	bool answered = request->h1_state == SKIPPING_BODY;
	request->h1_state = RUNNING;
	conn_enter(request->conn, CONN_RUNNING);
	if (!trailers_are_good(request)) {
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
static enum MHD_Result on_request(void *arg, struct MHD_Connection *mhd, const char *url, const char *method,
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

/* A client that has said all it will is through when MHD has nothing left of it. */
static void end_if_idle(conn *c)
{
	h1 *h = c->worker->h1;
	if (c->ending)
		return;
	c->ending = true;
	c->next_ending = h->ending;
	h->ending = conn_ref(c);
	h->want_run = true;
}

static void end_idle_ones(h1 *h)
{
	conn *next;
	for (conn *c = h->ending; c; c = next) {
		next = c->next_ending;
		c->ending = false;
		if (c->open && !c->request && !conn_has_unread(c))
			conn_kick(c);
		conn_unref(c);
	}
	h->ending = NULL;
}

static void let_go(http_request *request, bool sent)
{
	conn *c = request->conn;
	if (c->request == request)
		c->request = NULL;
	request_detach(request, sent);
}

static void on_completed(void *arg, struct MHD_Connection *mhd, void **context,
                         enum MHD_RequestTerminationCode code)
{
	http_request *request = *context;
	(void)arg;
	if (!request)
		return;
	*context = NULL;
	conn *c = conn_of(mhd);
	c->worker->h1->idle_runs = 0;
	conn_enter(c, CONN_IDLE);
	let_go(request, code == MHD_REQUEST_TERMINATED_COMPLETED_OK && request->h1_state == ANSWERED);
	/* Nothing more will be answered here. MHD may have lost the end of the stream that came with the request. */
	if (c->gone || c->worker->draining)
		conn_kick(c);
	else if (c->half_closed)
		end_if_idle(c);
}

static void on_connection(void *arg, struct MHD_Connection *mhd, void **context,
                          enum MHD_ConnectionNotificationCode code)
{
	h1 *h = arg;
	if (code == MHD_CONNECTION_NOTIFY_STARTED) {
		*context = h->accepting;
		return;
	}
	conn *c = conn_of(mhd);
	if (c->request)
		let_go(c->request, false);
	if (c->unread && !c->gone && !c->kicked)
		linger(c);
	conn_closing(c);
	conn_unref(c);
	h->want_run = true;
}

/* Paths and queries are decoded by ourselves: MHD would cut them at a %00. */
static size_t leave_escaped(void *arg, struct MHD_Connection *mhd, char *text)
{
	(void)arg, (void)mhd;
	return strlen(text);
}

/* ---- The connection ---------------------------------------------------------------------------------- */

static void h1_hangup(conn *c)
{
	http_request *request = c->request;
	c->worker->h1->want_run = true;
	if (!request || request->h1_state == READING_HEAD) {
		conn_kick(c);
		return;
	}
	if (request->h1_state == ANSWERED && !request->response.streaming)
		return; /* MHD is sending; it will see for itself how far it gets */
	request_cancel(request, &HTTP_CLIENT_DISCONNECTED);
	if (request->h1_state != RUNNING && request->h1_state != HOLDING_BODY)
		conn_kick(c);
	if (request->h1_state == ANSWERED)
		resume(request);
}

/* What has begun, or arrived, is answered. */
static void h1_drain(conn *c)
{
	if (!c->request && !conn_has_unread(c))
		conn_kick(c);
}

static void h1_late(conn *c)
{
	http_request *request = c->request;
	switch (c->phase) {
	case CONN_SENDING:
		conn_reset(c);
		break;
	case CONN_BODY:
		if (request->running) {
			body_fail(request, 408); /* its handler answers, presently */
			return;
		}
		request_refuse(request, 408, NULL);
		request->told = true;
		answer_bare(c->fd, 408);
		break;
	case CONN_HEAD:
		if (socket_has_received(c->fd))
			answer_bare(c->fd, 408);
		break;
	default:
		break;
	}
	conn_kick(c);
	c->worker->h1->want_run = true;
}

static const protocol h1_protocol = {
	.bytes = h1_bytes,
	.hangup = h1_hangup,
	.half_close = end_if_idle,
	.late = h1_late,
	.drain = h1_drain,
};

void h1_adopt(h1 *h, conn *c)
{
	struct sockaddr family = {.sa_family = c->tcp ? AF_INET : AF_UNIX};
	c->protocol = &h1_protocol;
	c->phase = CONN_HEAD; /* since it was greeted */
	hangup_watch_no_bytes(c);
	h->accepting = conn_ref(c);
	/* On failure MHD closes the socket, and may or may not have told of its start and end. */
	if (MHD_add_connection(h->daemon, c->fd, &family, sizeof(family)) != MHD_YES && c->open) {
		conn_closing(c);
		conn_unref(c);
	}
	h->accepting = NULL;
	conn_unref(c);
	h->want_run = true;
}

/* ---- In the loop ------------------------------------------------------------------------------------- */

static void on_readable(uv_poll_t *poll, int status, int events)
{
	h1 *h = container_of(poll, h1, poll);
	(void)status, (void)events;
	h->want_run = true;
	h->idle_runs = 0;
}

static void on_timeout(uv_timer_t *timer)
{
	container_of(timer, h1, timer)->want_run = true;
}

/* Milliseconds until MHD must run again; -1: not before something happens. */
static int64_t mhd_timeout(h1 *h)
{
#if MHD_VERSION >= 0x00097701
	return MHD_get_timeout64s(h->daemon);
#else
	MHD_UNSIGNED_LONG_LONG timeout;
	return MHD_get_timeout(h->daemon, &timeout) == MHD_YES ? (int64_t)timeout : -1;
#endif
}

/* Never later than is set already: MHD then runs once for nothing, and says anew when. */
static void run_after(h1 *h, uint64_t timeout)
{
	if (!uv_is_active((uv_handle_t *)&h->timer) || uv_timer_get_due_in(&h->timer) > timeout)
		uv_timer_start(&h->timer, on_timeout, timeout, 0);
}

/*
 * The end of a turn. True: MHD has more to do.
 *
 * A client can bring MHD 0.9.75 to ask for another run for ever without getting anywhere: a chunk extension
 * longer than the read buffer does it. Runs without any event or callback are spaced out.
 */
static bool on_turn(loop_turn *turn)
{
	h1 *h = container_of(turn, h1, turn);
	if (!h->want_run)
		return false;
	h->want_run = false;
	h->idle_runs++;
	MHD_run(h->daemon);
	end_idle_ones(h);
	int64_t timeout = mhd_timeout(h);
	if (timeout == 0 && h->idle_runs < IDLE_RUNS_MAX)
		h->want_run = true;
	else if (timeout >= 0)
		run_after(h, timeout > IDLE_RUN_PAUSE ? (uint64_t)timeout : IDLE_RUN_PAUSE);
	return h->want_run;
}

static struct MHD_Daemon *start_mhd(h1 *h)
{
	const http_server_options *options = &h->worker->server->options;
	unsigned flags = MHD_USE_EPOLL | MHD_ALLOW_SUSPEND_RESUME | MHD_USE_NO_LISTEN_SOCKET;
#if MHD_VERSION >= 0x00097707
	flags |= MHD_USE_NO_THREAD_SAFETY; /* one thread: resuming needs no lock and no wake-up */
#endif
	return MHD_start_daemon(
		flags, 0, NULL, NULL, on_request, NULL, MHD_OPTION_NOTIFY_CONNECTION, on_connection, h,
		MHD_OPTION_NOTIFY_COMPLETED, on_completed, h, MHD_OPTION_URI_LOG_CALLBACK, on_target, h,
		MHD_OPTION_UNESCAPE_CALLBACK, leave_escaped, h, MHD_OPTION_CONNECTION_LIMIT,
		(unsigned)options->connections + 1, MHD_OPTION_CONNECTION_MEMORY_LIMIT, (size_t)POOL_SIZE,
		MHD_OPTION_CONNECTION_TIMEOUT, (unsigned)(options->idle_timeout / CTX_SECOND) + IDLE_SLACK,
		MHD_OPTION_STRICT_FOR_CLIENT, 1, MHD_OPTION_END);
}

h1 *h1_new(worker *w)
{
	h1 *h = calloc(1, sizeof(*h));
	if (!h)
		return NULL;
	h->worker = w;
	h->daemon = start_mhd(h);
	if (!h->daemon)
		goto free_h1;
	const union MHD_DaemonInfo *info = MHD_get_daemon_info(h->daemon, MHD_DAEMON_INFO_EPOLL_FD);
	int error = info ? uv_poll_init(loop_uv(w->loop), &h->poll, info->epoll_fd) : UV_ENOTSUP;
	if (error) {
		errno = -error;
		goto stop_mhd;
	}
	uv_timer_init(loop_uv(w->loop), &h->timer);
	h->handles = 2;
	h->turn.fn = on_turn;
	loop_turn_add(w->loop, &h->turn);
	uv_poll_start(&h->poll, UV_READABLE, on_readable);
	return h;

stop_mhd:
	MHD_stop_daemon(h->daemon);
free_h1:
	free(h);
	return NULL;
}

static void handle_closed(uv_handle_t *handle)
{
	h1 *h = handle->data;
	if (--h->handles == 0)
		free(h);
}

void h1_stop(h1 *h)
{
	loop_turn_remove(h->worker->loop, &h->turn);
	h->poll.data = h;
	h->timer.data = h;
	uv_poll_stop(&h->poll);
	uv_close((uv_handle_t *)&h->poll, handle_closed);
	uv_close((uv_handle_t *)&h->timer, handle_closed);
	MHD_stop_daemon(h->daemon);
}
