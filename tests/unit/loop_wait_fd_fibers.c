/*
 * wait_fd on the fibers of one loop: one waiter a file, none held up by another, and nothing of a wait that its
 * context has ended is left for the next, whatever libuv has of it by then.
 */
#include <criterion/criterion.h>
#include <criterion/new/assert.h>
#include <errno.h>
#include <unistd.h>
#include <uv.h>

#include "alloc_fault.h"
#include "loops.h"
#include "socket_pair.h"

static int outcome;

typedef struct waiting {
	ctx *ctx;
	int fd;
	wait_event over;
} waiting;

static void wait_to_read(void *arg)
{
	waiting *w = arg;
	outcome = wait_fd(w->ctx, w->fd, WAIT_READ);
	wait_event_set(&w->over);
}

static void a_second_waiter(void *arg)
{
	int ends[2];
	(void)arg;
	socket_pair(ends);
	waiting w = {ctx_with_cancel(ctx_background()), ends[0], WAIT_EVENT_INIT};
	loop_spawn(loop_current(), wait_to_read, &w);
	let_others_run();
	errno = 0;
	cr_assert(eq(int, wait_fd(ctx_background(), ends[0], WAIT_READ), -1));
	cr_assert(eq(int, errno, EBUSY));
	cr_assert_null(ctx_err(ctx_background()));
	cr_assert(eq(int, wait_fd(ctx_background(), ends[0], WAIT_WRITE), -1), "not even for something else");
	cr_assert(eq(int, errno, EBUSY));
	wait_fd_drop(ends[0]); /* which must not take the file from under who waits */
	cr_assert(eq(long, write(ends[1], "x", 1), 1));
	wait_event_wait(NULL, &w.over);
	cr_assert(eq(int, outcome, WAIT_READ));
	cr_assert(eq(int, wait_fd(ctx_background(), ends[0], WAIT_READ), WAIT_READ), "and then it is free");
	ctx_end(w.ctx);
	socket_pair_close(ends);
}

Test(loop_wait_fd_fibers, a_second_waiter_is_refused, .timeout = 30)
{
	in_fiber(a_second_waiter, NULL);
}

static void cancel(void *arg)
{
	ctx_cancel(arg);
}

/*
 * Cancelled in the turn in which the wait began, libuv has not told epoll of the file yet: its attempt to take it
 * off fails with ENOENT, which was what the caller then found in errno.
 */
static void cancelled_in_the_same_turn(void *arg)
{
	int ends[2];
	(void)arg;
	socket_pair(ends);
	ctx *c = ctx_with_cancel(ctx_background());
	loop_spawn(loop_current(), cancel, c);
	cr_assert(eq(int, wait_fd(c, ends[0], WAIT_READ), -1));
	cr_assert(eq(int, errno, ECANCELED));
	ctx_end(c);
	socket_pair_close(ends);
}

Test(loop_wait_fd_fibers, errno_is_the_contexts_not_libuvs, .timeout = 30)
{
	in_fiber(cancelled_in_the_same_turn, NULL);
}

/*
 * In one batch of events the first ends the context and the second makes the file ready, so that the wait is over
 * when the readiness comes. The next wait must not take that for its own.
 */
static ctx *cancelled_by_event;
static wait_event poll_closed = WAIT_EVENT_INIT;

static void on_poll_closed(uv_handle_t *handle)
{
	(void)handle;
	wait_event_set(&poll_closed);
}

static void cancel_by_event(uv_poll_t *poll, int status, int events)
{
	(void)status, (void)events;
	ctx_cancel(cancelled_by_event);
	uv_close((uv_handle_t *)poll, on_poll_closed);
}

static void write_both(void *arg)
{
	int *fds = arg;
	cr_expect(eq(long, write(fds[0], "x", 1), 1));
	cr_expect(eq(long, write(fds[1], "x", 1), 1));
}

static void ready_when_the_wait_is_over(void *arg)
{
	int ends[2], trigger[2];
	uv_poll_t poll;
	(void)arg;
	socket_pair(ends);
	socket_pair(trigger);
	cancelled_by_event = ctx_with_cancel(ctx_background());
	uv_poll_init(loop_uv(loop_current()), &poll, trigger[0]);
	uv_poll_start(&poll, UV_READABLE, cancel_by_event);
	loop_spawn(loop_current(), write_both, (int[]){trigger[1], ends[1]});
	cr_assert(eq(int, wait_fd(cancelled_by_event, ends[0], WAIT_READ), -1));
	socket_drain(ends[0]);
	ctx *c = ctx_with_timeout(ctx_background(), 10 * CTX_MILLISECOND);
	cr_assert(eq(int, wait_fd(c, ends[0], WAIT_READ), -1));
	cr_assert(eq(int, errno, ETIMEDOUT));
	wait_event_wait(NULL, &poll_closed);
	ctx_end(c);
	ctx_end(cancelled_by_event);
	socket_pair_close(ends);
	socket_pair_close(trigger);
}

Test(loop_wait_fd_fibers, readiness_after_the_wait_is_not_the_next_ones, .timeout = 30)
{
	in_fiber(ready_when_the_wait_is_over, NULL);
}

static void on_hangup(uv_poll_t *poll, int status, int events)
{
	(void)poll, (void)status, (void)events;
}

static void closed(uv_handle_t *handle)
{
	wait_event_set(handle->data);
}

static void a_file_of_libuvs(void *arg)
{
	int ends[2];
	wait_event over = WAIT_EVENT_INIT;
	uv_poll_t poll = {.data = &over};
	(void)arg;
	socket_pair(ends);
	cr_assert(eq(int, uv_poll_init(loop_uv(loop_current()), &poll, ends[0]), 0));
	cr_assert(eq(int, uv_poll_start(&poll, UV_DISCONNECT, on_hangup), 0));
	for (int i = 0; i < 2; i++) {
		errno = 0;
		cr_assert(eq(int, wait_fd(ctx_background(), ends[0], WAIT_READ), -1));
		cr_assert(eq(int, errno, EBUSY));
	}
	uv_close((uv_handle_t *)&poll, closed);
	wait_event_wait(NULL, &over);
	cr_assert(eq(long, write(ends[1], "x", 1), 1));
	cr_assert(eq(int, wait_fd(ctx_background(), ends[0], WAIT_READ), WAIT_READ));
	socket_pair_close(ends);
}

Test(loop_wait_fd_fibers, a_file_that_a_libuv_handle_watches_is_refused, .timeout = 30)
{
	in_fiber(a_file_of_libuvs, NULL);
}

/* The first fiber reads from what never runs dry; the second must run all the same. */
static bool second_ran;

static void note_second(void *arg)
{
	(void)arg;
	second_ran = true;
}

static void always_ready(void *arg)
{
	int ends[2];
	(void)arg;
	socket_pair(ends);
	loop_spawn(loop_current(), note_second, NULL);
	for (int i = 0; !second_ran; i++) {
		cr_assert(eq(int, wait_fd(ctx_background(), ends[0], WAIT_WRITE), WAIT_WRITE));
		cr_assert(lt(int, i, 10000));
	}
	socket_pair_close(ends);
}

Test(loop_wait_fd_fibers, a_file_that_is_always_ready_does_not_shut_out_others, .timeout = 30)
{
	in_fiber(always_ready, NULL);
}

static void many_files(void *arg)
{
	enum { FILES = 300 };
	static waiting waits[FILES];
	static int ends[FILES][2];
	(void)arg;
	for (int i = 0; i < FILES; i++) {
		socket_pair(ends[i]);
		waits[i] = (waiting){ctx_background(), ends[i][0], WAIT_EVENT_INIT};
		loop_spawn(loop_current(), wait_to_read, &waits[i]);
	}
	let_others_run();
	for (int i = FILES - 1; i >= 0; i--) {
		outcome = 0;
		cr_assert(eq(long, write(ends[i][1], "x", 1), 1));
		wait_event_wait(NULL, &waits[i].over);
		cr_assert(eq(int, outcome, WAIT_READ));
	}
	for (int i = 0; i < FILES; i++)
		socket_pair_close(ends[i]);
}

Test(loop_wait_fd_fibers, many_fibers_each_on_its_own, .timeout = 60)
{
	in_fiber(many_files, NULL);
}

static void no_memory(void *arg)
{
	int ends[2];
	(void)arg;
	socket_pair(ends);
	for (unsigned n = 1;; n++) {
		ctx *c = ctx_with_timeout(ctx_background(), CTX_MILLISECOND);
		fault_set(FAULT_MEMORY, n);
		errno = 0;
		int got = wait_fd(c, ends[0], WAIT_READ);
		bool failed = fault_clear(FAULT_MEMORY);
		cr_assert(eq(int, got, -1));
		cr_assert(eq(int, errno, failed ? ENOMEM : ETIMEDOUT));
		ctx_end(c);
		if (!failed) {
			cr_assert(ge(uint, n, 2));
			break;
		}
	}
	fault_set(FAULT_MEMORY, 1);
	wait_fd_keep(ends[1]); /* not kept then, and no harm done */
	cr_assert(fault_clear(FAULT_MEMORY));
	cr_assert(eq(int, wait_fd(ctx_background(), ends[1], WAIT_WRITE), WAIT_WRITE));
	wait_fd_drop(ends[1]);
	socket_pair_close(ends);
}

Test(loop_wait_fd_fibers, out_of_memory, .timeout = 30)
{
	in_fiber(no_memory, NULL);
}
