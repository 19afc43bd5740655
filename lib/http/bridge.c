/*
 * The bridge: where TLS ends. It lies between a client's socket and the protocols, which know nothing of it.
 *
 *	 client ── TLS ──► outer ══ bridge ══ pair[0] ~~~~ pair[1] ──► inner ── h1.c or h2.c
 *
 * Outer is a connection (a conn) whose socket is the client's. When the handshake is over, the bridge makes a
 * socketpair, and of its other end a second conn, inner, which is greeted and served as any other. All three
 * live on one worker's loop. What happens on one side happens on the other:
 *
 *	client                                      inner
 *	  bytes                                       bytes
 *	  close_notify; or FIN, which tells that      end of stream, and told at once (hangup_tell), ahead of
 *	  one follows or is missing                   bytes that nobody has read yet
 *	  reset, or died; broken TLS; FIN without     the same, and the end of all: nothing can be written
 *	  close_notify
 *	server                                      client
 *	  bytes                                       bytes, a record for each piece
 *	  end of stream, or closed                    what is under way, close_notify, FIN
 *	  conn_reset                                  reset: the bridge has no say in it
 *
 * With half_close_is_waiting a close_notify is only the end of the stream, and the answer is waited for; a FIN
 * without one is always a client that left, lest a stream that somebody cut be taken for a whole one.
 *
 *	          first bytes                  over                    inner closed              flushed
 *	GREETING ────────────► (handshake) ──────────► OPEN (RUNNING) ─────────────► SENDING ───────────► closed
 *	    └── header_timeout, for both ──┘              inner's phases
 *
 * - Memory: GnuTLS holds one record either way; the bridge what inner had no room for of what one recv brought, and
 *   of the record that ended in it; the kernel PAIR_BUFFER each way. A side is not read while the other is full.
 *   Without traffic the bridge holds nothing.
 * - The short way: a protocol with `take` (HTTP/2) is given the bytes themselves, and gives its own to bridge_send.
 *   The pair is left with what happens, and with the bytes that inner did not want just then: as long as there are
 *   some, all that follow go the same way. So neither order nor any end depends on the way.
 * - The long way (HTTP/1.1) costs no wait: inner reads in the turn in which the bridge has written (`delivered`), and
 *   the bridge in that in which inner has (bridges_look). What both may miss epoll tells.
 * - `blocked`: the client's socket is full and GnuTLS holds a record, or the close_notify, to be tried again.
 * - Outer is what the server counts, until it is closed. If inner outlives it, it is counted in its stead.
 * - Inner is never closed from here: it is told, and its protocol closes it. Outer is closed only from here.
 */
#include <errno.h>
#include <string.h>
#include <unistd.h>

#include "bridge_priv.h"
#include "socket.h"

enum {
	BRIDGE_MAGIC = 0x62726964,
	PAIR_BUFFER = 32 * 1024, /* bytes the kernel may hold each way */
};

static void on_outer(uv_poll_t *poll, int status, int events);
static void on_pair(uv_poll_t *poll, int status, int events);

/* ---- The end ----------------------------------------------------------------------------------------- */

static void watch_closed(uv_handle_t *handle)
{
	free(container_of(handle, bridge, watch));
}

static void leave_busy(bridge *b)
{
	bridge **at = &b->outer->worker->bridges_busy;
	if (!b->busy)
		return;
	while (*at != b)
		at = &(*at)->next_busy;
	*at = b->next_busy;
	b->busy = false;
}

/* Inner, if there is one and it does not know yet, is told that its client has left. */
void bridge_close(bridge *b)
{
	conn *outer = b->outer, *inner = b->inner;
	int fd = outer->fd;
	b->magic = 0;
	outer->bridge = NULL;
	leave_busy(b);
	if (inner)
		hangup_tell(inner); /* first: its requests are to know why their contexts end */
	if (inner && inner->open) {
		inner->counted = outer->counted;
		inner->admitted = outer->admitted;
		outer->admitted = false;
	}
	conn_closing(outer);
	tls_session_free(b->session, b->keys);
	close(fd);
	conn_unref(outer);
	free(b->rest);
	if (b->watched)
		uv_poll_stop(&b->watch);
	if (b->pair >= 0)
		close(b->pair);
	if (b->watched)
		uv_close((uv_handle_t *)&b->watch, watch_closed);
	else
		free(b);
	if (inner)
		conn_unref(inner);
}

void bridge_fail(bridge *b, int error)
{
	gnutls_alert_send_appropriate(b->session, error);
	bridge_close(b);
}

/* ---- What it waits for ------------------------------------------------------------------------------- */

/* UV_PRIORITIZED is urgent data, which nobody sends: what comes is EPOLLHUP, which is reported with anything. */
static int outer_events(const bridge *b)
{
	int events = UV_PRIORITIZED;
	if (b->blocked)
		events |= UV_WRITABLE;
	if (!b->client_ended && !b->rest && !(b->shaking && b->blocked))
		events |= UV_READABLE;
	if (!b->client_ended && !b->fin_seen)
		events |= UV_DISCONNECT;
	return events;
}

static int pair_events(const bridge *b)
{
	int events = b->inner_closed ? 0 : UV_PRIORITIZED;
	if (b->rest)
		events |= UV_WRITABLE;
	if (!b->server_ended && !b->blocked)
		events |= UV_READABLE;
	return events;
}

static void watch_for(uv_poll_t *poll, int *watching, int events, uv_poll_cb callback)
{
	if (*watching == events)
		return;
	*watching = events;
	if (events)
		uv_poll_start(poll, events, callback);
	else
		uv_poll_stop(poll);
}

void bridge_watch(bridge *b)
{
	/* Instead of hangup.c, which leaves a watch alone that it does not know. */
	watch_for(&b->outer->watch, &b->outer->watching, outer_events(b), on_outer);
	if (b->inner)
		watch_for(&b->watch, &b->watching, pair_events(b), on_pair);
}

bool bridge_half_close_is_waiting(const bridge *b)
{
	return b->outer->worker->server->options.half_close_is_waiting;
}

/* ---- Events ------------------------------------------------------------------------------------------ */

static bridge *checked(bridge *b)
{
	if (b->magic != BRIDGE_MAGIC)
		http_misuse("http", "a connection's memory was overwritten");
	return b;
}

/* Inner is closed: nothing comes from there any more, and what has come is the client's to take. */
static void inner_closed(bridge *b)
{
	b->inner_closed = true;
	b->client_ended = true;
	bridge_drop_rest(b);
	conn_enter(b->outer, CONN_SENDING);
}

static void bridge_settle(bridge *b)
{
	if (b->inner_closed && b->server_ended && !b->blocked)
		bridge_close(b);
	else
		bridge_watch(b);
}

void bridge_look(conn *outer)
{
	bridge *b = outer->bridge;
	if (!b || b->busy)
		return;
	b->busy = true;
	b->next_busy = outer->worker->bridges_busy;
	outer->worker->bridges_busy = b;
}

void bridges_look(worker *w)
{
	while (w->bridges_busy) {
		bridge *b = checked(w->bridges_busy);
		leave_busy(b);
		if (bridge_pump_out(b))
			bridge_settle(b);
	}
}

static void on_pair(uv_poll_t *poll, int status, int events)
{
	bridge *b = checked(container_of(poll, bridge, watch));
	if (status != 0)
		b->watching = 0; /* libuv has stopped, at an error: inner closed with bytes it had not read */
	if (b->rest && (events & UV_WRITABLE))
		bridge_give_rest(b);
	if ((status != 0 || (events & UV_READABLE)) && !b->blocked && !bridge_pump_out(b))
		return;
	if (!b->inner_closed && (status != 0 || (events & UV_PRIORITIZED)))
		inner_closed(b);
	bridge_settle(b);
}

static void shake_hands(bridge *b);

static void on_outer(uv_poll_t *poll, int status, int events)
{
	bridge *b = checked(container_of(poll, conn, watch)->bridge);
	b->fin_seen = b->fin_seen || (events & UV_DISCONNECT);
	bool left = b->fin_seen && !b->client_ended && !bridge_half_close_is_waiting(b);
	if (status != 0 || (events & UV_PRIORITIZED) || (left && !b->inner)) {
		bridge_close(b);
	} else if (!b->inner) {
		shake_hands(b);
	} else {
		if ((events & UV_WRITABLE) && !bridge_go_on_sending(b))
			return;
		if (left)
			bridge_client_left(b);
		else if ((events & (UV_READABLE | UV_DISCONNECT)) && !bridge_pump_in(b))
			return;
		bridge_settle(b);
	}
}

/* ---- The beginning ----------------------------------------------------------------------------------- */

/* Both ends, small: what is in them is what no time limit and no client sees. */
static bool make_pair(int pair[2])
{
	const int size = PAIR_BUFFER / 2; /* the kernel doubles it */
	if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, pair) != 0)
		return false;
	for (int i = 0; i < 2; i++)
		setsockopt(pair[i], SOL_SOCKET, SO_SNDBUF, &size, sizeof(size));
	return true;
}

/* The handshake is over: makes inner. False: no memory or descriptors. */
static bool open_inner(bridge *b)
{
	conn *outer = b->outer;
	int pair[2];
	http_client_certificate *certificate;
	if (!tls_client_certificate(b->session, &certificate))
		return false;
	if (!make_pair(pair))
		goto free_certificate;
	b->pair = pair[0];
	b->watched = uv_poll_init(loop_uv(outer->worker->loop), &b->watch, b->pair) == 0;
	b->inner = b->watched ? greet_behind(outer, pair[1], tls_version(b->session), certificate) : NULL;
	if (!b->inner)
		goto close_other_end;
	conn_ref(b->inner);
	conn_enter(outer, CONN_RUNNING);
	return true;

close_other_end:
	close(pair[1]);
free_certificate:
	free(certificate);
	return false;
}

/* A client that speaks HTTP here is told in its own language. Its request is read, lest a reset overtake the answer. */
static bool speaks_plainly(bridge *b)
{
	char first = 0;
	if (recv(b->outer->fd, &first, 1, MSG_PEEK | MSG_DONTWAIT) != 1 || first < 'A' || first > 'Z')
		return false;
	answer_bare_why(b->outer->fd, 400, "This port speaks HTTPS.");
	linger(b->outer);
	return true;
}

static void shake_hands(bridge *b)
{
	if (!b->shaking && speaks_plainly(b)) {
		bridge_close(b);
		return;
	}
	b->shaking = true;
	b->outer->phase = CONN_HEAD; /* since it was accepted */
	int result = gnutls_handshake(b->session);
	b->blocked = bridge_must_wait(result) && gnutls_record_get_direction(b->session) == 1;
	if (result == 0) {
		b->shaking = false;
		if (!open_inner(b))
			bridge_close(b);
		else if (bridge_pump_in(b)) /* GnuTLS may have read more than the handshake */
			bridge_watch(b);
	} else if (gnutls_error_is_fatal(result)) {
		bridge_fail(b, result);
	} else {
		bridge_watch(b);
	}
}

static void outer_late(conn *c)
{
	if (c->phase == CONN_SENDING)
		conn_reset(c);
	bridge_close(c->bridge);
}

/*
 * A handshake that has begun may be over, and its request served, before the drain's timeout; and one that is about to
 * begin, by a client that does not know that it is too late.
 */
static void outer_drain(conn *c)
{
	if (c->phase == CONN_GREETING && !socket_unread(c->fd) && !conn_is_young(c))
		bridge_close(c->bridge);
}

static const protocol outer_protocol = {.late = outer_late, .drain = outer_drain};

conn *bridge_accept(worker *w, int fd, const struct sockaddr *address, http_tls *tls)
{
	bridge *b = calloc(1, sizeof(*b));
	int error;
	if (!b)
		return NULL;
	if (!tls_session_new(tls, fd, &b->session, &b->keys)) {
		errno = ENOMEM;
		goto free_bridge;
	}
	b->outer = conn_new(w, fd, address, &outer_protocol);
	if (!b->outer)
		goto free_session;
	b->magic = BRIDGE_MAGIC;
	b->pair = -1;
	b->outer->bridge = b;
	bridge_set_transport(b);
	bridge_watch(b);
	return b->outer;

free_session:
	error = errno;
	tls_session_free(b->session, b->keys);
	errno = error;
free_bridge:
	free(b);
	return NULL;
}
