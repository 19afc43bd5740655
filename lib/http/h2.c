/*
 * HTTP/2: nghttp2 in a worker's loop (RFC 9113). Each stream is a request, with a context of its own.
 *
 * nghttp2 is a state machine without a socket. What comes is fed to it as it comes, and has it call h2_stream.c;
 * what it has to say is fetched from it at the end of a turn, for all connections that have something to say,
 * so that the answers of one turn share their system calls:
 *
 *	 readable ─► h2_read ─► nghttp2 ─► h2_stream.c ─► handlers ─┐
 *	                                                            ▼ h2_touch
 *	 writable ─────────────────────────────────────────► end of the turn: settle ─► nghttp2 ─► the socket
 *	                                                            │
 *	                                                            └─► h2_close, when it is over
 *
 * Behind a bridge both go past the socket, which is left with the ends: h2_take, bridge_send.
 *
 * - A connection is closed at one place, in settle: outside of nghttp2's callbacks and of every fiber.
 * - More is fetched only when the socket has taken what was fetched before. So at most WRITE_SIZE bytes wait
 *   here for a slow client, the flow-control windows notwithstanding; the rest waits in the responses, whose
 *   handlers wait with it.
 * - The end is said in two steps: a GOAWAY that names no stream, since requests may be under way; then, when
 *   a PING has been there and back, one with the last stream that will be served.
 */
#include <errno.h>
#include <string.h>
#include <unistd.h>

#include "h2_priv.h"

enum {
	READ_SIZE = 16 * 1024,
	READS_MAX = 8, /* of one connection in one turn, so that the others get theirs */
	WRITE_SIZE = 64 * 1024,
	FRAME_MAX = 9 + 1 + 16 * 1024, /* nghttp2 makes no larger ones, unless asked for */
	QUEUE_MAX = 1000,     /* frames that wait for a client that does not read: it is not read from, too */
	PONG_MS = 1000,       /* for the PING between the two GOAWAYs */
	WINDOW = 1024 * 1024, /* of a connection: what all request bodies may have under way */
	HEAD_DEFAULT = 16 * 1024,
};

/* ---- Turns ------------------------------------------------------------------------------------------- */

uint64_t h2_now(const h2 *h)
{
	return uv_now(loop_uv(h->conn->worker->loop));
}

void h2_touch(h2 *h)
{
	worker *w = h->conn->worker;
	if (h->busy)
		return;
	h->busy = true;
	h->next_busy = w->h2_busy;
	w->h2_busy = h;
}

static void set_phase(h2 *h)
{
	conn *c = h->conn;
	enum conn_phase phase = CONN_IDLE;
	if (h->waiting)
		phase = CONN_SENDING;
	else if (!h->greeted)
		phase = CONN_HEAD;
	else if (h->streams)
		phase = CONN_RUNNING;
	if (phase != c->phase)
		conn_enter(c, phase);
}

/* ---- Reading ----------------------------------------------------------------------------------------- */

static void h2_read(h2 *h)
{
	uint8_t in[READ_SIZE];
	for (int i = 0; i < READS_MAX && !h->dead && !h->eof && !h->terminated; i++) {
		ssize_t got = recv(h->conn->fd, in, sizeof(in), MSG_DONTWAIT);
		if (got < 0 && (errno == EAGAIN || errno == EINTR))
			break;
		if (got == 0)
			h->eof = true;
		else if (got < 0 || nghttp2_session_mem_recv(h->session, in, (size_t)got) < 0)
			h->dead = true;
		if (got < (ssize_t)sizeof(in))
			break;
	}
	h2_touch(h);
}

/* The same for what comes past the socket. */
static bool h2_take(conn *c, const char *data, size_t size)
{
	h2 *h = c->h2;
	if (h->dead || h->eof || h->terminated || !(c->io & UV_READABLE))
		return false;
	h->dead = nghttp2_session_mem_recv(h->session, (const uint8_t *)data, size) < 0;
	h2_touch(h);
	return true;
}

/* ---- Writing ----------------------------------------------------------------------------------------- */

/* False: the socket has failed. Else *sent is how much it took. */
static bool send_some(const h2 *h, const char *data, size_t size, size_t *sent)
{
	const conn *c = h->conn;
	ssize_t n = c->outer ? bridge_send(c->outer, data, size)
	                     : send(c->fd, data, size, MSG_NOSIGNAL | MSG_DONTWAIT);
	h->conn->outstanding = true;
	*sent = n > 0 ? (size_t)n : 0;
	return n >= 0 || errno == EAGAIN || errno == EINTR;
}

static void write_waiting(h2 *h)
{
	size_t sent;
	h->dead |= !send_some(h, h->waiting + h->waiting_sent, h->waiting_size - h->waiting_sent, &sent);
	h->waiting_sent += sent;
	if (h->dead || h->waiting_sent == h->waiting_size) {
		free(h->waiting);
		h->waiting = NULL;
	}
}

/* Sends, and keeps what the socket does not take. */
static void write_or_keep(h2 *h, const char *data, size_t size)
{
	size_t sent;
	h->dead |= !send_some(h, data, size, &sent);
	if (h->dead || sent == size)
		return;
	h->waiting_size = size - sent;
	h->waiting_sent = 0;
	h->waiting = malloc(h->waiting_size);
	if (h->waiting)
		memcpy(h->waiting, data + sent, h->waiting_size);
	else
		h->dead = true;
}

/* Fetches frames, as many as go into out: how many bytes they are. */
static size_t fetch(h2 *h, char *out)
{
	size_t size = 0;
	while (size + FRAME_MAX <= WRITE_SIZE) {
		const uint8_t *frame;
		ssize_t got = nghttp2_session_mem_send(h->session, &frame);
		if (got < 0 || got > FRAME_MAX)
			h->dead = true;
		if (got <= 0 || h->dead)
			break;
		memcpy(out + size, frame, (size_t)got);
		size += (size_t)got;
	}
	return size;
}

static void h2_write(h2 *h)
{
	char out[WRITE_SIZE];
	if (h->waiting)
		write_waiting(h);
	while (!h->waiting && !h->dead) {
		h2_streams_finish(h, true); /* what was fetched before has been taken */
		size_t size = fetch(h, out);
		if (size == 0)
			break;
		write_or_keep(h, out, size);
	}
}

/* ---- The end ----------------------------------------------------------------------------------------- */

static void h2_free(h2 *h)
{
	free(h->waiting);
	h2_memory_free(h);
	free(h);
}

static void h2_close(h2 *h)
{
	conn *c = h->conn;
	int fd = c->fd;
	h2_streams_finish(h, !h->waiting && !h->dead);
	h2_streams_drop(h);
	c->h2 = NULL;
	/* The GOAWAY is to arrive, whatever the client is sending. */
	if (!h->dead && !c->gone && !c->kicked)
		linger(c);
	h2_free(h);
	conn_closing(c);
	close(fd);
	conn_unref(c);
}

static bool is_over(const h2 *h)
{
	if (h->dead || h->conn->gone || h->terminated)
		return true;
	if (h->waiting || nghttp2_session_want_write(h->session))
		return false;
	return !nghttp2_session_want_read(h->session) || (h->eof && !h->streams);
}

/*
 * After anything has happened: says what there is to say, and closes what is over. What nghttp2 calls meanwhile needs
 * no further look.
 */
static void settle(h2 *h)
{
	conn *c = h->conn;
	if (!c->gone && !h->dead)
		h2_write(h);
	if (is_over(h)) {
		h2_close(h);
		return;
	}
	h->busy = false;
	set_phase(h);
	bool reads =
		!h->eof && (!h->waiting || nghttp2_session_get_outbound_queue_size(h->session) < QUEUE_MAX);
	bool writes = h->waiting && !c->outer; /* a bridge calls */
	hangup_watch_io(c, (reads ? UV_READABLE : 0) | (writes ? UV_WRITABLE : 0));
}

static bool on_turn(loop_turn *turn)
{
	worker *w = container_of(turn, worker, h2_turn);
	while (w->h2_busy) {
		h2 *h = w->h2_busy;
		w->h2_busy = h->next_busy;
		settle(h);
	}
	return false;
}

void h2_terminate(h2 *h, uint32_t reason)
{
	if (h->terminated)
		return;
	h->terminated = true;
	h->dead |= nghttp2_session_terminate_session(h->session, reason) != 0;
	h2_touch(h);
}

/* The first step: no new requests, please. */
static void say_goaway(h2 *h)
{
	if (h->end != H2_OPEN)
		return;
	h->end = H2_ENDING;
	h->ending_ms = h2_now(h);
	h->dead |= nghttp2_submit_shutdown_notice(h->session) != 0;
	h2_touch(h);
}

/* nghttp2 lets a PING overtake what was submitted before it; this one has to follow the GOAWAY. */
void h2_goaway_sent(h2 *h)
{
	if (h->end == H2_ENDING)
		h->dead |= nghttp2_submit_ping(h->session, NGHTTP2_FLAG_NONE, NULL) != 0;
}

/* The second: none will be served. */
static void say_last_goaway(h2 *h)
{
	if (h->end == H2_ENDED)
		return;
	h->end = H2_ENDED;
	h->dead |= nghttp2_submit_goaway(h->session, NGHTTP2_FLAG_NONE,
	                                 nghttp2_session_get_last_proc_stream_id(h->session),
	                                 NGHTTP2_NO_ERROR, NULL, 0) != 0;
	h2_touch(h);
}

void h2_pong(h2 *h)
{
	if (h->end == H2_ENDING)
		say_last_goaway(h);
}

/* ---- What a connection's protocol reacts to ---------------------------------------------------------- */

static void h2_bytes(conn *c)
{
	h2_read(c->h2);
}

static void h2_delivered(conn *c)
{
	if (c->io & UV_READABLE)
		h2_read(c->h2);
}

/* There is room in the socket, the client has left, or sends no more: settle sees to it. */
static void h2_look(conn *c)
{
	h2_touch(c->h2);
}

static void h2_late(conn *c)
{
	h2 *h = c->h2;
	switch (c->phase) {
	case CONN_HEAD:
		h2_terminate(h, NGHTTP2_SETTINGS_TIMEOUT);
		break;
	case CONN_IDLE:
		/* A request that meets it may be sent again: the client sees that by its number. */
		say_last_goaway(h);
		break;
	default:
		conn_reset(c);
		h->dead = true;
		h2_touch(h);
	}
}

static void h2_tick(conn *c, uint64_t now)
{
	h2 *h = c->h2;
	h2_limit_times(h, now);
	if (h->end == H2_ENDING && now - h->ending_ms > PONG_MS)
		say_last_goaway(h);
}

static void h2_drain(conn *c)
{
	h2_read(c->h2); /* what was sent before is served */
	say_goaway(c->h2);
}

static const protocol h2_protocol = {
	.bytes = h2_bytes,
	.room = h2_look,
	.take = h2_take,
	.delivered = h2_delivered,
	.hangup = h2_look,
	.half_close = h2_look,
	.late = h2_late,
	.tick = h2_tick,
	.drain = h2_drain,
};

/* ---- Beginning --------------------------------------------------------------------------------------- */

static nghttp2_session *new_session(h2 *h)
{
	nghttp2_session *session = NULL;
	nghttp2_session_callbacks *callbacks = NULL;
	nghttp2_option *option = NULL;
	nghttp2_mem memory = h2_memory(h);
	if (nghttp2_session_callbacks_new(&callbacks) != 0 || nghttp2_option_new(&option) != 0)
		goto out;
	h2_stream_callbacks(callbacks);
	/* A body's bytes are given room as they are taken. */
	nghttp2_option_set_no_auto_window_update(option, 1);
	if (nghttp2_session_server_new3(&session, callbacks, h, option, &memory) != 0)
		session = NULL;
out:
	nghttp2_option_del(option);
	nghttp2_session_callbacks_del(callbacks);
	return session;
}

size_t h2_head_max(const h2 *h)
{
	const http_server_options *options = &h->conn->worker->server->options;
	return options->head_size ? options->head_size : HEAD_DEFAULT;
}

static bool greet_client(h2 *h)
{
	const nghttp2_settings_entry settings[] = {
		{NGHTTP2_SETTINGS_MAX_CONCURRENT_STREAMS, STREAMS_MAX},
		{NGHTTP2_SETTINGS_MAX_HEADER_LIST_SIZE, (uint32_t)h2_head_max(h)},
		{NGHTTP2_SETTINGS_NO_RFC7540_PRIORITIES, 1},
	};
	return nghttp2_submit_settings(h->session, NGHTTP2_FLAG_NONE, settings,
	                               sizeof(settings) / sizeof(*settings)) == 0 &&
	       nghttp2_session_set_local_window_size(h->session, NGHTTP2_FLAG_NONE, 0, WINDOW) == 0;
}

bool h2_adopt(conn *c)
{
	h2 *h = calloc(1, sizeof(*h));
	if (!h)
		return false;
	h->conn = c;
	h2_limits_init(h);
	h->session = new_session(h);
	if (!h->session || !greet_client(h)) {
		h2_free(h);
		return false;
	}
	c->h2 = h;
	c->protocol = &h2_protocol;
	conn_enter(c, CONN_HEAD);
	h2_read(h);
	if (c->worker->draining)
		say_goaway(h);
	return true;
}

void h2_start(worker *w)
{
	w->h2_turn.fn = on_turn;
	loop_turn_add(w->loop, &w->h2_turn);
}

void h2_stop(worker *w)
{
	loop_turn_remove(w->loop, &w->h2_turn);
}
