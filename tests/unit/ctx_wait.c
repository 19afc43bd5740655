/* Waiting: ctx_wait() on a thread, ctx_done_fd() in somebody else's poll loop. */
#include <criterion/criterion.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <sys/epoll.h>
#include <sys/select.h>
#include <unistd.h>

#include <tether/ctx.h>

#include "alloc_fault.h"
#include "support.h"
#include "together.h"

static const ctx_key KEY = {.name = "key"};

static bool readable(int fd)
{
	struct pollfd p = {.fd = fd, .events = POLLIN};

	return poll(&p, 1, 0) == 1 && p.revents == POLLIN;
}

struct waiting {
	ctx *c, *value;
	atomic_int woken;
};

static void wait_or_cancel(void *arg, int index)
{
	struct waiting *w = arg;

	if (index == 0)
		ctx_cancel(w->c);
	else if (ctx_wait(index == 1 ? w->c : w->value) == &CTX_CANCELED)
		atomic_fetch_add(&w->woken, 1);
}

Test(ctx_wait, wakes_every_thread_that_waits, .timeout = 120)
{
	for (int round = 0; round < 200; round++) {
		ctx_auto *c = ctx_with_cancel(ctx_background());
		ctx_auto *value = ctx_with_value(c, &KEY, NULL);
		struct waiting w = {.c = c, .value = value};

		together(4, wait_or_cancel, &w);
		cr_assert_eq(w.woken, 3);
		cr_assert_eq(ctx_wait(value), &CTX_CANCELED, "at once, being done");
	}
}

Test(ctx_wait, gives_the_error, .timeout = 60)
{
	ctx_auto *c = ctx_with_timeout(ctx_background(), CTX_MILLISECOND);
	ctx_auto *child = ctx_with_cancel(c);

	cr_assert_eq(ctx_wait(child), &CTX_DEADLINE_EXCEEDED);
}

/* ---- Descriptors ------------------------------------------------------------------------------------------ */

Test(ctx_wait, done_fd_is_readable_once_done_and_stays_so, .timeout = 60)
{
	ctx_auto *c = ctx_with_cancel(ctx_background());
	int fd = ctx_done_fd(c);
	uint64_t count;

	cr_assert_geq(fd, 0);
	cr_assert_eq(ctx_done_fd(c), fd, "made once");
	cr_assert(fcntl(fd, F_GETFD) & FD_CLOEXEC);
	cr_assert_not(readable(fd));
	ctx_cancel(c);
	cr_assert(readable(fd));
	for (int i = 0; i < 3; i++) {
		/* Nobody is to read it; who does, spoils nothing. */
		cr_assert_eq(read(fd, &count, sizeof count), (ssize_t)sizeof count);
		cr_assert(readable(fd));
	}
}

Test(ctx_wait, done_fd_of_a_context_that_is_done_is_readable_at_once, .timeout = 60)
{
	ctx_auto *c = ctx_with_timeout(ctx_background(), 0);

	cr_assert(readable(ctx_done_fd(c)));
}

Test(ctx_wait, done_fd_of_a_descendant_tells_of_the_ancestors_end, .timeout = 60)
{
	ctx_auto *c = ctx_with_cancel(ctx_background());
	ctx_auto *value = ctx_with_value(c, &KEY, NULL);
	ctx_auto *child = ctx_with_cancel(value);
	int fd = ctx_done_fd(child);

	cr_assert_eq(ctx_done_fd(value), ctx_done_fd(c), "a value has its parent's");
	cr_assert_neq(fd, ctx_done_fd(c));
	cr_assert_not(readable(fd));
	ctx_cancel(c);
	cr_assert(readable(fd));
	cr_assert(readable(ctx_done_fd(value)));
}

Test(ctx_wait, done_fd_of_a_root_never_becomes_readable, .timeout = 60)
{
	ctx_auto *cut = ctx_without_cancel(ctx_background());
	int fd = ctx_done_fd(ctx_background());

	cr_assert_geq(fd, 0);
	cr_assert_eq(ctx_done_fd(ctx_todo()), fd);
	cr_assert_eq(ctx_done_fd(cut), fd);
	cr_assert_not(readable(fd));
}

Test(ctx_wait, done_fd_is_closed_with_its_context, .timeout = 60)
{
	ctx *c = ctx_with_cancel(ctx_background());
	int fd = ctx_done_fd(c);

	ctx_end(c);
	cr_assert_eq(fcntl(fd, F_GETFD), -1);
	cr_assert_eq(errno, EBADF);
}

Test(ctx_wait, done_fd_fails_where_no_descriptor_is_to_be_had, .timeout = 60)
{
	ctx_auto *c = ctx_with_cancel(ctx_background());

	fault_set(FAULT_FD, 1);
	errno = 0;
	cr_assert_eq(ctx_done_fd(c), -1);
	cr_assert_eq(errno, EMFILE);
	fault_set(FAULT_FD, 1);
	cr_assert_eq(ctx_done_fd(ctx_background()), -1);
	fault_clear(FAULT_FD);
	cr_assert_geq(ctx_done_fd(c), 0, "and not for ever");
	cr_assert_geq(ctx_done_fd(ctx_background()), 0);
}

static struct {
	ctx *c;
	int ends[2];
	atomic_int served;
} foreign;

static bool has_served(void *arg)
{
	(void)arg;
	return atomic_load(&foreign.served) == 1;
}

static void *write_then_cancel(void *arg)
{
	if (write(foreign.ends[1], "x", 1) == 1 && eventually(has_served, NULL, 20000))
		ctx_cancel(foreign.c);
	return arg;
}

/* A loop that knows nothing of contexts, has a descriptor of its own to serve, and waits without a time limit. */
Test(ctx_wait, done_fd_ends_a_foreign_poll_loop, .timeout = 60)
{
	pthread_t other;
	bool running = true;

	foreign.c = ctx_with_timeout(ctx_background(), 3600 * CTX_SECOND);
	cr_assert_eq(pipe(foreign.ends), 0);
	pthread_create(&other, NULL, write_then_cancel, NULL);
	struct pollfd fds[] = {{.fd = foreign.ends[0], .events = POLLIN},
	                       {.fd = ctx_done_fd(foreign.c), .events = POLLIN}};

	while (running) {
		char byte;

		cr_assert_gt(poll(fds, 2, -1), 0);
		if (fds[0].revents && read(foreign.ends[0], &byte, 1) == 1)
			atomic_fetch_add(&foreign.served, 1);
		if (fds[1].revents)
			running = false;
	}
	pthread_join(other, NULL);
	cr_assert_eq(foreign.served, 1);
	cr_assert_eq(ctx_err(foreign.c), &CTX_CANCELED);
	ctx_end(foreign.c);
	close(foreign.ends[0]);
	close(foreign.ends[1]);
}

static void *cancel_it(void *arg)
{
	ctx_cancel(arg);
	return NULL;
}

Test(ctx_wait, done_fd_wakes_epoll_level_and_edge_triggered_and_select, .timeout = 60)
{
	for (int i = 0; i < 3; i++) {
		ctx_auto *c = ctx_with_cancel(ctx_background());
		int epoll = epoll_create1(EPOLL_CLOEXEC), fd = ctx_done_fd(c);
		struct epoll_event event = {.events = EPOLLIN | (i == 1 ? EPOLLET : 0)};
		pthread_t canceller;
		fd_set set;

		cr_assert_eq(epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event), 0);
		pthread_create(&canceller, NULL, cancel_it, c);
		if (i < 2) {
			cr_assert_eq(epoll_wait(epoll, &event, 1, -1), 1);
		} else {
			FD_ZERO(&set);
			FD_SET(fd, &set);
			cr_assert_eq(select(fd + 1, &set, NULL, NULL, NULL), 1);
		}
		cr_assert_eq(ctx_err(c), &CTX_CANCELED);
		pthread_join(canceller, NULL);
		close(epoll);
	}
}

/* One makes the descriptor while the other ends the context: whoever is second must ring. */
static void ask_or_cancel(void *arg, int index)
{
	if (index == 0)
		ctx_cancel(arg);
	else
		ctx_done_fd(arg);
}

Test(ctx_wait, done_fd_made_while_the_context_ends_is_readable, .timeout = 120)
{
	for (int round = 0; round < 1000; round++) {
		ctx_auto *c = ctx_with_cancel(ctx_background());

		together(3, ask_or_cancel, c);
		cr_assert(readable(ctx_done_fd(c)));
	}
}
