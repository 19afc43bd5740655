/*
 * Accepting: from a listening socket to the protocol that a connection's first bytes tell.
 *
 *	listening socket ─► took ─► GREETING ──── the HTTP/2 preface, or what TLS has agreed on ────► h2_adopt
 *	                     │         │
 *	     no room: a bare 503       └────────────────────── anything else ─────────────────────► h1_adopt
 *
 * All workers watch all listening sockets; a connection stays with the worker that got it.
 */
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <string.h>
#include <unistd.h>

#include "http_priv.h"
#include "socket.h"

enum {
	ACCEPTS_MAX = 64,       /* of one worker in one turn, so that its requests get theirs */
	ACCEPT_PAUSE = 100,     /* milliseconds, when there are no descriptors left */
	KEEPALIVE_IDLE = 15,    /* seconds of silence after which the kernel asks whether the peer is there */
	KEEPALIVE_INTERVAL = 5, /* seconds between its questions */
	KEEPALIVE_PROBES = 3,   /* unanswered ones that mean it is not */
};

/* ---- Accepting --------------------------------------------------------------------------------------- */

static void set_options(int fd, const struct sockaddr *address)
{
	/*
	 * Not TCP_USER_TIMEOUT: by it the kernel drops a connection without a word to the peer, who may only be slow to
	 * read, and it overrides the keep-alive's count of probes. What stays unacknowledged is watched by pace.c, and
	 * once the socket is closed by the kernel: see conn_closing.
	 */
	static const struct {
		int level, option, value;
	} options[] = {
		{IPPROTO_TCP, TCP_NODELAY, 1},
		{SOL_SOCKET, SO_KEEPALIVE, 1},
		{IPPROTO_TCP, TCP_KEEPIDLE, KEEPALIVE_IDLE},
		{IPPROTO_TCP, TCP_KEEPINTVL, KEEPALIVE_INTERVAL},
		{IPPROTO_TCP, TCP_KEEPCNT, KEEPALIVE_PROBES},
	};
	if (address->sa_family == AF_UNIX)
		return;
	for (size_t i = 0; i < sizeof(options) / sizeof(*options); i++)
		setsockopt(fd, options[i].level, options[i].option, &options[i].value, sizeof(int));
}

/* A connection that has not been given to a protocol yet is closed here. */
static void close_greeting(conn *c)
{
	int fd = c->fd;
	conn_closing(c);
	close(fd);
	conn_unref(c);
}

/* What an HTTP/2 connection begins with; HTTP/1.1 must not have a method of that name (RFC 9113, 3.4). */
static const char preface[] = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

enum { PREFACE_SIZE = sizeof(preface) - 1 };

/*
 * Looks again when there are more than so many bytes: without the mark epoll would report the same ones again and
 * again. A unix socket does not heed it, and is looked at again at the next tick (see conn.c).
 */
static void greet_past(conn *c, int bytes)
{
	int mark = bytes + 1;
	setsockopt(c->fd, SOL_SOCKET, SO_RCVLOWAT, &mark, sizeof(mark));
	c->marked = true;
	if (c->tcp)
		hangup_watch_bytes(c);
}

/* The first bytes tell the protocol. They are left in the kernel for it. */
static void greet(conn *c)
{
	char first[PREFACE_SIZE];
	ssize_t got = recv(c->fd, first, sizeof(first), MSG_PEEK | MSG_DONTWAIT);
	if (got < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) {
		hangup_watch_bytes(c);
		return;
	}
	bool is_preface = got > 0 && memcmp(first, preface, (size_t)got) == 0;
	if (c->agreed) { /* its protocol looks for itself whether that is kept */
		is_preface = c->agreed == HTTP_2;
	} else if (is_preface && got < PREFACE_SIZE && !c->half_closed) {
		greet_past(c, (int)got);
		return;
	}
	if (c->marked)
		setsockopt(c->fd, SOL_SOCKET, SO_RCVLOWAT, &(int){1}, sizeof(int));
	if (got <= 0 || (is_preface && !h2_adopt(c)))
		close_greeting(c);
	else if (!is_preface)
		h1_adopt(c->worker->h1, c);
}

/* What has arrived is served still. A client that has just connected does not know that it is about to be too late. */
static void drain_greeting(conn *c)
{
	if (conn_has_unread(c))
		greet(c);
	else if (!conn_is_young(c))
		close_greeting(c);
}

static const protocol greeting = {
	.bytes = greet,
	.delivered = greet,
	.hangup = close_greeting,
	.half_close = greet,
	.late = close_greeting,
	.drain = drain_greeting,
};

conn *greet_behind(conn *outer, int fd, enum http_version agreed, http_client_certificate *certificate)
{
	conn *c = conn_new_behind(outer, fd, &greeting);
	if (!c)
		return NULL;
	c->agreed = agreed;
	c->certificate = certificate;
	hangup_watch_bytes(c);
	return c;
}

static void took(worker *w, int fd, const struct sockaddr *address, http_tls *tls)
{
	http_server *server = w->server;
	address_count *counted;
	if (!admit_connection(server, address, &counted)) {
		if (!tls) /* with, it would take a handshake to say so */
			answer_bare(fd, 503);
		close(fd);
		return;
	}
	set_options(fd, address);
	conn *c = tls ? bridge_accept(w, fd, address, tls) : conn_new(w, fd, address, &greeting);
	if (c) {
		c->admitted = true;
		c->counted = counted;
		if (!tls)
			greet(c);
		return;
	}
	if (errno == ECONNREFUSED)
		atomic_fetch_add_explicit(&server->connections_refused, 1, memory_order_relaxed);
	admit_connection_over(server, counted);
	close(fd);
}

/* Accepts what waits: true if there may be more. */
static bool accept_some(worker *w, const listener *from)
{
	for (int i = 0; i < ACCEPTS_MAX; i++) {
		struct sockaddr_storage address = {0};
		socklen_t size = sizeof(address);
		int fd = accept4(from->fd, (struct sockaddr *)&address, &size, SOCK_NONBLOCK | SOCK_CLOEXEC);
		if (fd >= 0) {
			took(w, fd, (struct sockaddr *)&address, from->tls);
			continue;
		}
		if (errno == ECONNABORTED || errno == EINTR)
			continue;
		return false;
	}
	return true;
}

static void start_accepting(worker *w);

static void accept_again(uv_timer_t *timer)
{
	start_accepting(container_of(timer, worker, accept_again));
}

static void pause_accepting(worker *w)
{
	for (size_t i = 0; i < w->server->listener_count; i++)
		uv_poll_stop(&w->acceptors[i].poll);
}

static void on_connection_waiting(uv_poll_t *poll, int status, int events)
{
	acceptor *a = container_of(poll, acceptor, poll);
	(void)status, (void)events;
	if (accept_some(a->worker, a->listener) || errno == EAGAIN || errno == EWOULDBLOCK)
		return;
	/* No descriptors or memory left. The socket stays readable: without a pause this would be all we do. */
	pause_accepting(a->worker);
	uv_timer_start(&a->worker->accept_again, accept_again, ACCEPT_PAUSE, 0);
}

static void start_accepting(worker *w)
{
	for (size_t i = 0; i < w->server->listener_count; i++)
		uv_poll_start(&w->acceptors[i].poll, UV_READABLE, on_connection_waiting);
}

/* ---- Beginning and end -------------------------------------------------------------------------------- */

void acceptors_open(worker *w)
{
	uv_timer_init(loop_uv(w->loop), &w->accept_again);
	for (size_t i = 0; i < w->server->listener_count; i++) {
		w->acceptors[i].worker = w;
		w->acceptors[i].listener = &w->server->listeners[i];
		uv_poll_init(loop_uv(w->loop), &w->acceptors[i].poll, w->server->listeners[i].fd);
	}
	start_accepting(w);
	w->accepting = true;
}

/*
 * The listening sockets are the server's, each worker borrows them: from its start until it has counted itself off
 * workers_accepting. This comes before that. libuv takes the descriptors out of epoll here, not later.
 */
void acceptors_close(worker *w)
{
	if (!w->accepting)
		return;
	w->accepting = false;
	for (size_t i = 0; i < w->server->listener_count; i++)
		uv_close((uv_handle_t *)&w->acceptors[i].poll, NULL);
	uv_close((uv_handle_t *)&w->accept_again, NULL);
}

/* What waits in the kernel has been accepted on its client's behalf and is served. The last one shuts the door. */
void acceptors_finish(worker *w)
{
	http_server *server = w->server;
	acceptors_close(w);
	for (size_t i = 0; i < server->listener_count; i++)
		while (accept_some(w, &server->listeners[i]))
			;
	if (atomic_fetch_sub(&server->workers_accepting, 1) == 1)
		for (size_t i = 0; i < server->listener_count; i++)
			listener_close(&server->listeners[i]);
}
