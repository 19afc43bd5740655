/*
 * wait_fd: waiting for a file. A thread polls it; a fiber has libuv watch it, and parks.
 */
#include <fcntl.h>
#include <poll.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "loop_priv.h"

/* ---- On a thread: poll(2) on the file and on an eventfd that the context's end writes to -------------- */

static pthread_key_t wakeup_key;
static pthread_once_t wakeup_once = PTHREAD_ONCE_INIT;

/* The key holds fd + 1, since NULL is "none yet". */
static void wakeup_close(void *value)
{
	close((int)(intptr_t)value - 1);
}

static void wakeup_key_make(void)
{
	if (pthread_key_create(&wakeup_key, wakeup_close) != 0)
		loop_misuse("wait_fd", "no thread-specific key left");
}

/* One eventfd for each thread that ever waits, rather than one for each context waited under. */
static int wakeup_of_thread(void)
{
	pthread_once(&wakeup_once, wakeup_key_make);
	int fd = (int)(intptr_t)pthread_getspecific(wakeup_key) - 1;
	if (fd >= 0)
		return fd;
	fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (fd < 0)
		return -1;
	if (pthread_setspecific(wakeup_key, (void *)(intptr_t)(fd + 1)) != 0) {
		close(fd);
		return loop_fail(ENOMEM);
	}
	return fd;
}

typedef struct poll_breaker {
	ctx_hook hook;
	int wakeup;
} poll_breaker;

static void break_poll(ctx_hook *hook)
{
	eventfd_write(container_of(hook, poll_breaker, hook)->wakeup, 1);
}

static short to_poll(int events)
{
	return (short)((events & WAIT_READ ? POLLIN : 0) | (events & WAIT_WRITE ? POLLOUT : 0));
}

/* What poll(2) reports, in terms of what was asked; -1 if there is no such file. */
static int from_poll(short revents, int asked)
{
	if (revents & POLLNVAL)
		return loop_fail(EBADF);
	if (revents & (POLLERR | POLLHUP))
		return asked;
	return (revents & POLLIN ? WAIT_READ : 0) | (revents & POLLOUT ? WAIT_WRITE : 0);
}

static int thread_wait_fd(ctx *c, int fd, int events)
{
	poll_breaker breaker = {.wakeup = wakeup_of_thread()};
	if (breaker.wakeup < 0)
		return -1;
	ctx_hook_add(c, &breaker.hook, break_poll);
	struct pollfd fds[] = {{.fd = fd, .events = to_poll(events)},
	                       {.fd = breaker.wakeup, .events = POLLIN}};
	int n;
	do
		n = poll(fds, 2, -1);
	while (n < 0 && errno == EINTR);
	int error = errno;
	if (!ctx_hook_remove(c, &breaker.hook)) {
		eventfd_t value;
		eventfd_read(breaker.wakeup, &value);
	}
	if (n < 0)
		return loop_fail(error);
	if (fds[1].revents)
		return loop_fail(ctx_err(c)->code);
	return from_poll(fds[0].revents, events);
}

/* ---- On a fiber -------------------------------------------------------------------------------------- */

/*
 * One watch for each number a file waited on ever had, made at its first wait and kept with its loop: a
 * uv_poll_t may not be freed before libuv has closed it, but one that is stopped serves any later file of
 * the same number. That is sound in libuv 1.44 to 1.50 (uv_poll_start adds the descriptor anew to epoll
 * after each uv_poll_stop) as long as nothing but a kept file has an active handle between waits:
 *
 *	               wait: not ready                 wait over, unless kept for reading
 *	   STOPPED ────────────────────► ARMED(events) ─────────────────────────────────► STOPPED
 *	      ▲                            │      ▲ │
 *	      │ wait_fd_drop, or an event  │      └─┘ the next wait for the same: no system call
 *	      └──── with nobody waiting ───┘
 *
 * A wait on a STOPPED watch asks poll(2) first. That answers for closed and for unpollable files, on which
 * libuv would abort; and a file that is ready already costs one system call rather than four.
 */
struct watch {
	uv_poll_t poll;
	wait_event event;
	int armed; /* the events the handle is active for; 0: stopped */
	int ready;
	bool waiting;
	bool kept;
};

/* Immediate answers in one turn, past which a fiber lets the others go first. */
enum { IMMEDIATE_WAITS_MAX = 64, WATCH_SLOTS_MIN = 64 };

static watch *watch_find(loop *l, int fd)
{
	return fd >= 0 && (size_t)fd < l->watch_slots ? l->watches[fd] : NULL;
}

static int watch_make_room(loop *l, int fd)
{
	size_t slots = l->watch_slots ? l->watch_slots : WATCH_SLOTS_MIN;
	while (slots <= (size_t)fd)
		slots *= 2;
	if (slots == l->watch_slots)
		return 0;
	watch **watches = realloc(l->watches, slots * sizeof(watch *));
	if (!watches)
		return -1;
	memset(watches + l->watch_slots, 0, (slots - l->watch_slots) * sizeof(watch *));
	l->watches = watches;
	l->watch_slots = slots;
	return 0;
}

static watch *watch_make(loop *l, int fd)
{
	/* A number that is no file's must not size the table. */
	if (fcntl(fd, F_GETFD) < 0 || watch_make_room(l, fd) != 0)
		return NULL;
	watch *w = calloc(1, sizeof(*w));
	if (!w)
		return NULL;
	int error = uv_poll_init(&l->uv, &w->poll, fd);
	if (error) {
		free(w);
		errno = error == UV_EEXIST ? EBUSY : -error;
		return NULL;
	}
	l->watches[fd] = w;
	return w;
}

static void watch_stop(watch *w)
{
	if (w->armed)
		uv_poll_stop(&w->poll);
	w->armed = 0;
}

static void watch_event(uv_poll_t *poll, int status, int events)
{
	watch *w = container_of(poll, watch, poll);
	int asked = w->armed;
	if (!w->waiting || status < 0) /* on an error libuv itself has stopped the handle */
		watch_stop(w);
	if (!w->waiting)
		return; /* level-triggered: whoever waits next is told again */
	w->ready = (events & UV_READABLE ? WAIT_READ : 0) | (events & UV_WRITABLE ? WAIT_WRITE : 0);
	if (w->ready == 0)
		w->ready = asked;
	wait_event_set(&w->event);
}

static int watch_arm(watch *w, int events)
{
	int error = uv_poll_start(
		&w->poll, (events & WAIT_READ ? UV_READABLE : 0) | (events & WAIT_WRITE ? UV_WRITABLE : 0),
		watch_event);
	if (error)
		return loop_fail(error == UV_EEXIST ? EBUSY : -error);
	w->armed = events;
	return 0;
}

/*
 * Asks without waiting: the events that are ready, 0 for none. A fiber that always finds its file ready must not keep
 * the others from running.
 */
static int ready_now(fiber *f, int fd, int events)
{
	struct pollfd pollfd = {.fd = fd, .events = to_poll(events)};
	if (poll(&pollfd, 1, 0) < 0)
		return 0;
	int ready = from_poll(pollfd.revents, events);
	if (ready > 0 && ++f->loop->immediate_waits > IMMEDIATE_WAITS_MAX)
		fiber_yield(f);
	return ready;
}

static int fiber_wait_fd(fiber *f, ctx *c, int fd, int events)
{
	loop *l = f->loop;
	watch *w = watch_find(l, fd);
	if (w && w->waiting)
		return loop_fail(EBUSY);
	if (!w || w->armed != events) {
		int ready = ready_now(f, fd, events);
		if (ready)
			return ready;
		if (!w && !(w = watch_make(l, fd)))
			return -1;
		if (watch_arm(w, events) != 0)
			return -1;
	}
	w->event.state = NULL; /* an event may have come after the last wait's context was done */
	w->waiting = true;
	int outcome = wait_event_wait(c, &w->event);
	w->waiting = false;
	if (!w->kept || w->armed != WAIT_READ)
		watch_stop(w);
	return outcome == 0 ? w->ready : loop_fail(ctx_err(c)->code); /* libuv has had errno in between */
}

/* ---- The calls --------------------------------------------------------------------------------------- */

int wait_fd(ctx *c, int fd, int events)
{
	fiber *f = loop_waiting_fiber("wait_fd");
	if (ctx_err(c))
		return loop_fail(ctx_err(c)->code);
	if (fd < 0)
		return loop_fail(EBADF);
	if ((events & (WAIT_READ | WAIT_WRITE)) == 0 || (events & ~(WAIT_READ | WAIT_WRITE)))
		return loop_fail(EINVAL);
	return f ? fiber_wait_fd(f, c, fd, events) : thread_wait_fd(c, fd, events);
}

void wait_fd_keep(int fd)
{
	loop *l = loop_current();
	if (!l || fd < 0)
		return;
	watch *w = watch_find(l, fd);
	if (!w)
		w = watch_make(l, fd);
	if (w)
		w->kept = true; /* or else every wait registers it anew, which is slower and no more */
}

void wait_fd_drop(int fd)
{
	loop *l = loop_current();
	watch *w = l ? watch_find(l, fd) : NULL;
	if (!w)
		return;
	w->kept = false;
	if (!w->waiting)
		watch_stop(w);
}

/*
 * As it closes a handle libuv takes its descriptor off epoll, stopped or not, by a number that may have been somebody else's
 * for long, or is being closed by them just now. So a stopped one is given a number that is ours and on no epoll: epoll's own.
 */
void watches_close(loop *l)
{
	for (size_t fd = 0; fd < l->watch_slots; fd++) {
		watch *w = l->watches[fd];
		if (!w)
			continue;
		if (!w->armed)
			w->poll.io_watcher.fd = uv_backend_fd(&l->uv);
		uv_close((uv_handle_t *)&w->poll, NULL);
	}
}

void watches_free(loop *l)
{
	for (size_t fd = 0; fd < l->watch_slots; fd++)
		free(l->watches[fd]);
	free(l->watches);
}
