/*
 * How it is noticed that a client has left.
 *
 * libmicrohttpd does not look at a suspended connection's socket, and no protocol looks at one while a
 * handler runs. So each socket is also watched by the worker's own loop, from its first byte to its last,
 * for one event: the peer's end of stream (EPOLLRDHUP), or an error. The event comes even when there are bytes
 * before it that nobody has read: a body half arrived, a request pipelined behind the one that runs.
 * The watch is level-triggered, hence stopped at its first event; `gone` remembers it.
 *
 * A client that only shut down its sending side may be waiting for its answer all the same. Like Go and
 * nginx we take it for gone. Where the server's options say otherwise it is gone at the full end only
 * (EPOLLHUP, EPOLLERR), which epoll reports whatever it is asked for.
 */
#include <errno.h>

#include "http_priv.h"

static void on_event(uv_poll_t *watch, int status, int events);

static int watch_for(conn *c, int events)
{
	events |= c->io;
	int error = uv_poll_start(&c->watch, events, on_event);
	errno = -error;
	c->watching = events;
	return error ? -1 : 0;
}

/* It sends no more. UV_PRIORITIZED is urgent data, which nobody sends: what comes is EPOLLHUP or EPOLLERR. */
static void half_closed(conn *c)
{
	c->half_closed = true;
	watch_for(c, UV_PRIORITIZED);
	c->protocol->half_close(c);
}

static void gone(conn *c)
{
	uv_poll_stop(&c->watch);
	c->watching = 0;
	c->gone = true;
	c->protocol->hangup(c);
	conn_context_end(c, &HTTP_CLIENT_DISCONNECTED);
}

void hangup_tell(conn *c)
{
	if (c->open && !c->gone)
		gone(c);
}

static void on_event(uv_poll_t *watch, int status, int events)
{
	conn *c = container_of(watch, conn, watch);
	if (c->magic != CONN_MAGIC)
		http_misuse("http", "a connection's memory was overwritten");
	if (status == 0 && (events & UV_READABLE)) {
		if (!(c->io & UV_READABLE))
			watch_for(c, UV_DISCONNECT);
		c->protocol->bytes(c);
		if (!c->open)
			return;
	}
	if (status == 0 && (events & UV_WRITABLE) && c->protocol->room)
		c->protocol->room(c);
	bool error = status != 0 || (events & UV_PRIORITIZED); /* a status is libuv's way to say EPOLLERR */
	if (error || ((events & UV_DISCONNECT) && !c->worker->server->options.half_close_is_waiting))
		gone(c);
	else if (events & UV_DISCONNECT)
		half_closed(c);
}

int hangup_watch(conn *c)
{
	int error = uv_poll_init(loop_uv(c->worker->loop), &c->watch, c->fd);
	if (error) {
		errno = -error;
		return -1;
	}
	conn_ref(c);                        /* the handle's, until it is closed */
	return watch_for(c, UV_DISCONNECT); /* of a handle just made this cannot fail */
}

void hangup_watch_bytes(conn *c)
{
	if (c->watching == UV_DISCONNECT)
		watch_for(c, UV_DISCONNECT | UV_READABLE);
}

void hangup_watch_no_bytes(conn *c)
{
	if (c->watching & UV_READABLE)
		watch_for(c, UV_DISCONNECT);
}

void hangup_watch_io(conn *c, int events)
{
	if (c->gone || c->io == events)
		return;
	c->io = events;
	watch_for(c, c->half_closed ? UV_PRIORITIZED : UV_DISCONNECT);
}

static void watch_closed(uv_handle_t *handle)
{
	conn_unref(container_of(handle, conn, watch));
}

void hangup_unwatch(conn *c)
{
	uv_poll_stop(&c->watch); /* leaves epoll at once, the close callback comes later */
	uv_close((uv_handle_t *)&c->watch, watch_closed);
}
