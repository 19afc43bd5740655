/*
 * HTTP/1.1: libmicrohttpd (MHD) in a worker's loop. What becomes of a request is in h1_request.c.
 *
 * MHD runs in its external epoll mode: it has an epoll descriptor of its own, which the loop watches, and
 * works when MHD_run is called. That is done at the end of a turn, after the fibers, so that all answers of
 * one turn go out together; and again as long as MHD says it has more to do.
 */
#include <errno.h>
#include <string.h>

#include "h1_priv.h"
#include "socket.h"

enum {
	IDLE_RUNS_MAX = 32,  /* see on_turn */
	IDLE_RUN_PAUSE = 10, /* milliseconds */
	IDLE_SLACK = 5,      /* seconds by which MHD's own idle timeout comes later than ours */
};

/* ---- MHD's callbacks for a connection ----------------------------------------------------------------- */

conn *h1_conn_of(struct MHD_Connection *mhd)
{
	const union MHD_ConnectionInfo *info =
		MHD_get_connection_info(mhd, MHD_CONNECTION_INFO_SOCKET_CONTEXT);
	conn *c = info ? info->socket_context : NULL;
	if (!c || c->magic != CONN_MAGIC)
		http_misuse("http", "a connection's memory was overwritten");
	return c;
}

/* The first of a next request. */
void h1_bytes(conn *c)
{
	if (c->phase == CONN_IDLE)
		conn_enter(c, CONN_HEAD);
}

static void h1_delivered(conn *c)
{
	h1 *h = c->worker->h1;
	h->want_run = true;
	h->idle_runs = 0;
}

/*
 * A client has said all it will. MHD may have lost that, where it came together with the last bytes: so when it has
 * nothing left to read, a connection between two requests is ended, and of a request whose rest will never come MHD is
 * told once more.
 */
static void look_after_run(conn *c)
{
	h1 *h = c->worker->h1;
	if (c->ending)
		return;
	c->ending = true;
	c->next_ending = h->ending;
	h->ending = conn_ref(c);
}

static void end_if_idle(conn *c)
{
	look_after_run(c);
	c->worker->h1->want_run = true;
}

/* MHD waits for more of it. Suspended it does not look, and once there is an answer an end of the stream would cost it. */
static bool is_arriving(const http_request *request)
{
	int state = request->h1_state;
	return (state == READING_HEAD || state == READING_BODY || state == PASSING_BODY ||
	        state == SKIPPING_BODY) &&
	       !request->suspended;
}

/* After MHD has run. What it has not read yet keeps a connection on the list. */
static void end_idle_ones(h1 *h)
{
	conn *next = h->ending;
	h->ending = NULL;
	for (conn *c = next; c; c = next) {
		next = c->next_ending;
		c->ending = false;
		bool waits = c->open && (!c->request || is_arriving(c->request));
		if (waits && socket_unread(c->fd) > 0)
			look_after_run(c);
		else if (waits && c->request)
			shutdown(c->fd, SHUT_RD);
		else if (waits)
			conn_kick(c);
		conn_unref(c);
	}
}

static void let_go(http_request *request, bool sent)
{
	conn *c = request->conn;
	if (c->request == request)
		c->request = NULL;
	h1_head_over(request);
	request_detach(request, sent);
}

/* MHD has answered by itself, amid the body: chunks that are none. */
static void note_refusal(http_request *request)
{
	const union MHD_ConnectionInfo *info =
		request->h1_state == READING_BODY
			? MHD_get_connection_info(request->mhd, MHD_CONNECTION_INFO_HTTP_STATUS)
			: NULL;
	if (!info)
		return;
	request->response.status = (int)info->http_status;
	request->told = true;
}

static void on_completed(void *arg, struct MHD_Connection *mhd, void **context,
                         enum MHD_RequestTerminationCode code)
{
	http_request *request = *context;
	(void)arg;
	if (!request)
		return;
	*context = NULL;
	conn *c = h1_conn_of(mhd);
	c->worker->h1->idle_runs = 0;
	if (c->outer)
		bridge_look(c->outer);
	conn_enter(c, CONN_IDLE);
	note_refusal(request);
	let_go(request, code == MHD_REQUEST_TERMINATED_COMPLETED_OK && request->h1_state == ANSWERED);
	/* Nothing more will be answered here. MHD may have lost the end of the stream that came with the request. */
	if (c->gone)
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
	conn *c = h1_conn_of(mhd);
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
		h1_resume(request);
}

/*
 * What has begun, or arrived, is answered. And a client that was answered a moment ago may be about to ask again, not
 * knowing that it is too late: it is told by the next answer.
 */
static void h1_drain(conn *c)
{
	bool waits = c->phase == CONN_IDLE && conn_is_young(c);
	if (!c->request && !waits && !conn_has_unread(c))
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
	case CONN_IDLE:
		if (conn_has_unread(c)) { /* just in time */
			conn_enter(c, CONN_HEAD);
			return;
		}
		break;
	default:
		break;
	}
	conn_kick(c);
	c->worker->h1->want_run = true;
}

static const protocol h1_protocol = {
	.bytes = h1_bytes,
	.delivered = h1_delivered,
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
	bridges_look(h->worker);
	int64_t timeout = mhd_timeout(h);
	if (timeout == 0 && h->idle_runs < IDLE_RUNS_MAX)
		h->want_run = true;
	else if (timeout >= 0)
		run_after(h, timeout > IDLE_RUN_PAUSE ? (uint64_t)timeout : IDLE_RUN_PAUSE);
	return h->want_run;
}

size_t h1_head_max(const http_server *server)
{
	return server->options.head_size ? server->options.head_size : HEAD_DEFAULT;
}

/* With a size of the program's own for a head that is nothing but cookies. */
size_t h1_pool_size(const http_server *server)
{
	size_t head = server->options.head_size, fields = FIELDS_MAX;
	return head ? 2 * (head + fields * FIELD_COST) + ANSWER_HEAD_MAX : POOL_DEFAULT;
}

/*
 * Strict, MHD before 1.0 closes without a word, or sends the head of its answer twice, where there is a space too many
 * or no Host; that is all it does, and we do it better. From 1.0 on it can tell what we cannot see any more.
 */
static int strictness(void)
{
	return h1_is_lenient() ? 0 : 1;
}

static struct MHD_Daemon *start_mhd(h1 *h)
{
	const http_server_options *options = &h->worker->server->options;
	unsigned flags =
		MHD_USE_EPOLL | MHD_ALLOW_SUSPEND_RESUME | MHD_USE_NO_LISTEN_SOCKET | MHD_USE_ERROR_LOG;
#if MHD_VERSION >= 0x00097707
	flags |= MHD_USE_NO_THREAD_SAFETY; /* one thread: resuming needs no lock and no wake-up */
#endif
	return MHD_start_daemon(
		flags, 0, NULL, NULL, h1_on_request, NULL, MHD_OPTION_EXTERNAL_LOGGER, h1_on_log, h,
		MHD_OPTION_NOTIFY_CONNECTION, on_connection, h, MHD_OPTION_NOTIFY_COMPLETED, on_completed, h,
		MHD_OPTION_URI_LOG_CALLBACK, h1_on_target, h, MHD_OPTION_UNESCAPE_CALLBACK, leave_escaped, h,
		MHD_OPTION_CONNECTION_LIMIT, (unsigned)options->connections + 1,
		MHD_OPTION_CONNECTION_MEMORY_LIMIT, h1_pool_size(h->worker->server),
		MHD_OPTION_CONNECTION_TIMEOUT, (unsigned)(options->idle_timeout / CTX_SECOND) + IDLE_SLACK,
		MHD_OPTION_STRICT_FOR_CLIENT, strictness(), MHD_OPTION_END);
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
