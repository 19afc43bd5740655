/*
 * Lingering: the answer to a request that was not read to its end must reach its client.
 *
 * A socket that is closed with bytes in it that nobody has read is reset, and so is one to which more bytes
 * come. The reset overtakes the answer, or has the client throw it away: the client of a 413 would see a
 * broken connection instead. So such a connection is closed in two steps (RFC 9112, section 9.6): our side
 * first, by which the client sees the answer's end; then, on a duplicate of the socket, what still comes is
 * thrown away, until the client closes too, or its time or its bytes are used up.
 */
#include <errno.h>
#include <fcntl.h>
#include <sys/socket.h>
#include <unistd.h>

#include "http_priv.h"

enum {
	LINGER_MS = 2000,
	LINGER_BYTES = 64 << 20,
	LINGERERS_MAX = 64, /* of a worker: past it the answer is left to its luck */
};

struct lingerer {
	uv_poll_t poll;
	uv_timer_t limit;
	unsigned handles;
	int fd;
	size_t left; /* bytes that may still come */
	worker *worker;
	lingerer *next, *previous;
};

static void handle_closed(uv_handle_t *handle)
{
	lingerer *l = handle->data;
	if (--l->handles == 0)
		free(l);
}

static void lingerer_end(lingerer *l)
{
	worker *w = l->worker;
	if (l->next)
		l->next->previous = l->previous;
	if (l->previous)
		l->previous->next = l->next;
	else
		w->lingerers = l->next;
	w->lingerer_count--;
	uv_poll_stop(&l->poll);
	uv_close((uv_handle_t *)&l->poll, handle_closed);
	uv_close((uv_handle_t *)&l->limit, handle_closed);
	close(l->fd);
}

/* A piece for each event, so that one fast sender does not hold up the loop. */
static void on_bytes(uv_poll_t *poll, int status, int events)
{
	lingerer *l = poll->data;
	char scrap[16 * 1024];
	(void)events;
	ssize_t n = recv(l->fd, scrap, sizeof(scrap), MSG_DONTWAIT);
	if (n < 0 && status == 0 && (errno == EAGAIN || errno == EINTR))
		return;
	if (n <= 0 || (size_t)n >= l->left)
		lingerer_end(l);
	else
		l->left -= (size_t)n;
}

static void on_limit(uv_timer_t *limit)
{
	lingerer_end(limit->data);
}

void linger(conn *c)
{
	worker *w = c->worker;
	if (w->lingerer_count >= LINGERERS_MAX)
		return;
	lingerer *l = calloc(1, sizeof(*l));
	if (!l)
		return;
	l->fd = fcntl(c->fd, F_DUPFD_CLOEXEC, 0);
	if (l->fd < 0 || uv_poll_init(loop_uv(w->loop), &l->poll, l->fd) != 0) {
		if (l->fd >= 0)
			close(l->fd);
		free(l);
		return;
	}
	uv_timer_init(loop_uv(w->loop), &l->limit);
	l->handles = 2;
	l->poll.data = l->limit.data = l;
	l->left = LINGER_BYTES;
	l->worker = w;
	l->next = w->lingerers;
	if (l->next)
		l->next->previous = l;
	w->lingerers = l;
	w->lingerer_count++;
	shutdown(l->fd, SHUT_WR);
	uv_timer_start(&l->limit, on_limit, LINGER_MS, 0);
	if (uv_poll_start(&l->poll, UV_READABLE, on_bytes) != 0)
		lingerer_end(l);
}

void linger_stop(worker *w)
{
	while (w->lingerers)
		lingerer_end(w->lingerers);
}
