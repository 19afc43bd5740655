/*
 * Connections: sockets with a watch, a phase, and the time they may stay in it.
 *
 *	         first bytes           head whole           body whole          answer in the kernel
 *	GREETING ─────────► HEAD ──────────────► BODY ──────────────► RUNNING ───► SENDING ───┐
 *	                     ▲                    (if there is one)                           │
 *	                     │ a first byte                                                   │
 *	                     └───────────────────── IDLE ◄────────────────────────────────────┘
 *
 * What a phase may last is a matter of seconds, and late by a tick is early enough: one timer of the worker
 * walks its connections. It costs the requests nothing, and a server without connections no wake-ups.
 *
 * libmicrohttpd does not tell when the first byte of a next request has come. So a connection that has been
 * idle for a tick is watched for bytes as well, and only then does its time for the head begin. (A head
 * that began sooner and stalled is taken for idleness, until its next byte.)
 */

#include "http_priv.h"
#include "socket.h"

enum {
	TICK_MAX = 1000, /* milliseconds */
	TICK_MIN = 10,
	TICK_DRAINING = 50,
	LAST_CALL_MS = 500, /* in a drain: for a client just accepted, or answered, to say what it wants */
};

static const int64_t millisecond = CTX_MILLISECOND;

/* ---- Life -------------------------------------------------------------------------------------------- */

static void start_ticking(worker *w);

static conn *conn_make(worker *w, int fd, const protocol *p)
{
	conn *c = calloc(1, sizeof(*c));
	if (!c)
		return NULL;
	c->magic = CONN_MAGIC;
	c->references = 1;
	c->worker = w;
	c->protocol = p;
	c->fd = fd;
	return c;
}

static void conn_free(conn *c)
{
	c->magic = 0;
	conn_context_release(c);
	if (c->outer)
		conn_unref(c->outer);
	free(c->certificate);
	free(c);
}

/* One that has its context. On failure it is freed. */
static conn *conn_open(conn *c)
{
	worker *w = c->worker;
	if (hangup_watch(c) != 0) {
		if (!c->outer)
			conn_context_end(c, &HTTP_CONNECTION_CLOSED);
		conn_free(c);
		return NULL;
	}
	c->open = true;
	conn_enter(c, CONN_GREETING);
	c->next = w->conns;
	if (c->next)
		c->next->previous = c;
	w->conns = c;
	start_ticking(w);
	return c;
}

conn *conn_new(worker *w, int fd, const struct sockaddr *address, const protocol *p)
{
	conn *c = conn_make(w, fd, p);
	if (!c)
		return NULL;
	c->tcp = address->sa_family != AF_UNIX;
	if (!conn_context(c, address)) {
		free(c);
		return NULL;
	}
	return conn_open(c);
}

conn *conn_new_behind(conn *outer, int fd, const protocol *p)
{
	conn *c = conn_make(outer->worker, fd, p);
	if (!c)
		return NULL;
	c->outer = conn_ref(outer);
	c->root = ctx_retain(outer->root);
	c->ctx = ctx_retain(outer->ctx);
	c->info = outer->info;
	c = conn_open(c);
	if (c && !c->worker->draining) /* in a drain it is new, and has its last call */
		c->since_ms = outer->since_ms;
	return c;
}

conn *conn_ref(conn *c)
{
	c->references++;
	return c;
}

void conn_unref(conn *c)
{
	if (--c->references == 0)
		conn_free(c);
}

void conn_closing(conn *c)
{
	worker *w = c->worker;
	if (!c->open)
		return;
	c->open = false;
	c->kicked = true; /* the descriptor is no longer ours */
	hangup_unwatch(c);
	conn_context_end(c, c->gone ? &HTTP_CLIENT_DISCONNECTED : &HTTP_CONNECTION_CLOSED);
	if (c->tcp)
		socket_limit_closing(c->fd, (int)(w->server->options.write_timeout / millisecond));
	if (c->next)
		c->next->previous = c->previous;
	if (c->previous)
		c->previous->next = c->next;
	else
		w->conns = c->next;
	if (c->admitted)
		admit_connection_over(w->server, c->counted);
	worker_conn_closed(w);
}

void conn_kick(conn *c)
{
	if (c->kicked)
		return;
	c->kicked = true;
	shutdown(c->fd, SHUT_RDWR);
}

void conn_reset(conn *c)
{
	if (c->kicked)
		return;
	if (c->outer)
		conn_reset(c->outer);
	if (socket_reset(c->fd))
		c->kicked = true;
	else
		conn_kick(c);
}

/* The client's socket, not a bridge's end. */
static int client_socket(const conn *c)
{
	return c->outer && c->outer->open ? c->outer->fd : c->fd;
}

bool conn_has_unread(const conn *c)
{
	return socket_unread(c->fd) > 0 || socket_unread(client_socket(c)) > 0;
}

/* ---- Phases and their time --------------------------------------------------------------------------- */

void conn_enter(conn *c, enum conn_phase phase)
{
	c->phase = phase;
	c->since_ms = uv_now(loop_uv(c->worker->loop));
	c->outstanding = true; /* until it is seen not to be */
}

static uint64_t allowed_ms(const conn *c)
{
	const http_server_options *options = &c->worker->server->options;
	int64_t ns = INT64_MAX;
	switch (c->phase) {
	case CONN_GREETING:
	case CONN_HEAD:
		ns = options->header_timeout;
		break;
	case CONN_BODY:
		ns = options->body_timeout;
		break;
	case CONN_IDLE:
		ns = options->idle_timeout;
		break;
	case CONN_SENDING: /* see pace.c */
	case CONN_RUNNING:
		break;
	}
	uint64_t ms = (uint64_t)(ns / millisecond);
	bool waits = c->phase == CONN_GREETING || (c->phase == CONN_IDLE && !c->h2);
	return waits && c->worker->draining && ms > LAST_CALL_MS ? LAST_CALL_MS : ms;
}

bool conn_is_young(const conn *c)
{
	return uv_now(loop_uv(c->worker->loop)) - c->since_ms < LAST_CALL_MS;
}

/* Whether the client, of whichever end this is, has yet to take what it was sent. */
static bool is_outstanding(const conn *c)
{
	return c->outer && c->outer->open ? c->outer->outstanding : c->outstanding;
}

/* Behind a bridge it is the outer end that has the client. */
static void look_at(conn *c, uint64_t now)
{
	if (!c->outer && !conn_keeps_pace(c, now)) {
		pace_restart(&c->pace);      /* not again at the next tick */
		conn_enter(c, CONN_SENDING); /* whatever else it is at, that is what it is late with */
		c->protocol->late(c);
		return;
	}
	if (c->phase == CONN_IDLE || c->phase == CONN_GREETING)
		hangup_watch_bytes(c);
	if (c->phase == CONN_IDLE && is_outstanding(c))
		c->since_ms = now;
	if (now - c->since_ms < allowed_ms(c))
		return;
	c->since_ms = now; /* not again at the next tick */
	c->protocol->late(c);
}

/* A loop that is busy with one thing is late for the next: by how much, its own timer shows. */
static void measure_lag(worker *w)
{
	int64_t now = ctx_now(), late = now - w->tick_due;
	atomic_store_explicit(&w->lag_ns, late > 0 ? late : 0, memory_order_relaxed);
	w->tick_due = now + (int64_t)uv_timer_get_repeat(&w->ticks) * millisecond;
}

static void tick(uv_timer_t *timer)
{
	worker *w = container_of(timer, worker, ticks);
	uint64_t now = uv_now(timer->loop);
	measure_lag(w);
	conn *next;
	for (conn *c = w->conns; c; c = next) {
		next = c->next;
		if (c->protocol->tick)
			c->protocol->tick(c, now);
		look_at(c, now);
	}
	if (w->conns)
		return;
	uv_timer_stop(timer);
	atomic_store_explicit(&w->lag_ns, 0, memory_order_relaxed);
}

/* An eighth of the shortest time there is, within reason. */
static uint64_t tick_length(const http_server_options *options)
{
	const int64_t times[] = {options->header_timeout, options->body_timeout, options->write_timeout,
	                         options->idle_timeout};
	uint64_t length = TICK_MAX;
	for (size_t i = 0; i < sizeof(times) / sizeof(*times); i++)
		if ((uint64_t)(times[i] / millisecond / 8) < length)
			length = (uint64_t)(times[i] / millisecond / 8);
	return length < TICK_MIN ? TICK_MIN : length;
}

static void start_ticking(worker *w)
{
	uint64_t length = tick_length(&w->server->options);
	if (uv_is_active((uv_handle_t *)&w->ticks))
		return;
	if (w->draining && length > TICK_DRAINING)
		length = TICK_DRAINING;
	w->tick_due = ctx_now() + (int64_t)length * millisecond;
	uv_timer_start(&w->ticks, tick, length, length);
}

void conns_drain(worker *w)
{
	conn *next;
	uv_timer_stop(&w->ticks);
	for (conn *c = w->conns; c; c = next) {
		next = c->next;
		c->protocol->drain(c);
	}
	if (w->conns)
		start_ticking(w);
}
