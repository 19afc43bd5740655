/*
 * Connections, and how it is noticed that a client has left.
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

/* ---- Connections ------------------------------------------------------------------------------------- */

conn *conn_new(worker *w, int fd, const struct sockaddr *address)
{
	conn *c = calloc(1, sizeof(*c));
	if (!c)
		return NULL;
	c->magic = CONN_MAGIC;
	c->references = 1;
	c->worker = w;
	c->fd = fd;
	address_text(address, c->peer, sizeof(c->peer));
	return c;
}

conn *conn_ref(conn *c)
{
	c->references++;
	return c;
}

void conn_unref(conn *c)
{
	if (--c->references > 0)
		return;
	c->magic = 0;
	free(c);
}

void conn_kick(conn *c)
{
	if (c->kicked)
		return;
	c->kicked = true;
	shutdown(c->fd, SHUT_RDWR);
}

/* Disconnecting a TCP socket resets it there and then, whatever is done to it before it is closed. */
void conn_reset(conn *c)
{
	struct sockaddr nowhere = {.sa_family = AF_UNSPEC};
	if (connect(c->fd, &nowhere, sizeof(nowhere)) != 0)
		conn_kick(c);
	c->kicked = true;
}

/* ---- The watch --------------------------------------------------------------------------------------- */

static void on_hangup(uv_poll_t *watch, int status, int events)
{
	conn *c = container_of(watch, conn, watch);
	if (c->magic != CONN_MAGIC)
		http_misuse("http", "a connection's memory was overwritten");
	uv_poll_stop(watch);
	bool waits = c->worker->server->options.half_close_is_waiting && !c->half_closed;
	if (waits && status == 0 && (events & UV_DISCONNECT)) {
		/* UV_PRIORITIZED: urgent data, which nobody sends. The handle is told of EPOLLHUP and EPOLLERR. */
		uv_poll_start(watch, UV_PRIORITIZED, on_hangup);
		c->half_closed = true;
		c->protocol->half_close(c);
		return;
	}
	c->gone = true; /* a status other than 0 is libuv's way to say EPOLLERR */
	c->protocol->hangup(c);
}

int conn_watch(conn *c)
{
	worker *w = c->worker;
	int error = uv_poll_init(loop_uv(w->loop), &c->watch, c->fd);
	if (error) {
		errno = -error;
		return -1;
	}
	error = uv_poll_start(&c->watch, UV_DISCONNECT, on_hangup);
	conn_ref(c); /* the handle's, until it is closed */
	c->watched = true;
	c->next = w->conns;
	if (c->next)
		c->next->previous = c;
	w->conns = c;
	w->conn_count++;
	atomic_fetch_add_explicit(&w->server->connections, 1, memory_order_relaxed);
	if (error == 0)
		return 0;
	conn_closing(c);
	errno = -error;
	return -1;
}

static void watch_closed(uv_handle_t *handle)
{
	conn_unref(container_of(handle, conn, watch));
}

void conn_closing(conn *c)
{
	worker *w = c->worker;
	if (!c->watched)
		return;
	c->watched = false;
	c->kicked = true;        /* the descriptor is no longer ours */
	uv_poll_stop(&c->watch); /* leaves epoll at once, the close callback comes later */
	uv_close((uv_handle_t *)&c->watch, watch_closed);
	if (c->next)
		c->next->previous = c->previous;
	if (c->previous)
		c->previous->next = c->next;
	else
		w->conns = c->next;
	w->conn_count--;
	atomic_fetch_sub_explicit(&w->server->connections, 1, memory_order_relaxed);
	worker_conn_closed(w);
}
