/* wait_fd: on fibers and on threads, under a context, with and without keeping the file registered. */
#include <criterion/criterion.h>
#include <criterion/new/assert.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <poll.h>
#include <signal.h>
#include <stdatomic.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>
#include <uv.h>

#include "alloc_fault.h"
#include "loops.h"

/* ---- Both worlds: each of these runs in a fiber and on a plain thread ------------------------------------- */

static void pair(int ends[2])
{
	cr_assert(eq(int, socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, ends), 0));
}

static void close_pair(const int ends[2])
{
	close(ends[0]);
	close(ends[1]);
}

static void fill(int fd)
{
	char bytes[4096] = {0};
	while (send(fd, bytes, sizeof(bytes), MSG_NOSIGNAL) > 0)
		;
}

static void drain(int fd)
{
	char bytes[4096];
	while (recv(fd, bytes, sizeof(bytes), 0) > 0)
		;
}

/* Does something to a file from another thread once the caller waits, or before, by chance. */
typedef struct helper {
	pthread_t thread;
	int fd;
	ctx *ctx;
} helper;

static void *help_write(void *arg)
{
	helper *h = arg;
	return (void *)(intptr_t)send(h->fd, "x", 1, MSG_NOSIGNAL);
}

static void *help_drain(void *arg)
{
	helper *h = arg;
	drain(h->fd);
	return NULL;
}

static void *help_shutdown(void *arg)
{
	helper *h = arg;
	shutdown(h->fd, SHUT_RDWR);
	return NULL;
}

static void *help_cancel(void *arg)
{
	helper *h = arg;
	ctx_cancel(h->ctx);
	return NULL;
}

static void help(helper *h, void *(*fn)(void *arg))
{
	cr_assert(eq(int, pthread_create(&h->thread, NULL, fn, h), 0));
}

static void helped(helper *h)
{
	pthread_join(h->thread, NULL);
}

static void read_and_write(void *arg)
{
	int ends[2];
	ctx *c = ctx_background();
	(void)arg;
	pair(ends);
	cr_assert(eq(int, wait_fd(c, ends[0], WAIT_WRITE), WAIT_WRITE));
	cr_assert(eq(int, wait_fd(c, ends[0], WAIT_READ | WAIT_WRITE), WAIT_WRITE));
	for (int i = 0; i < 100; i++) {
		helper h = {.fd = ends[1]};
		help(&h, help_write);
		cr_assert(eq(int, wait_fd(c, ends[0], WAIT_READ), WAIT_READ));
		cr_assert(eq(int, wait_fd(c, ends[0], WAIT_READ | WAIT_WRITE), WAIT_READ | WAIT_WRITE));
		drain(ends[0]);
		helped(&h);

		fill(ends[0]);
		h.fd = ends[1];
		help(&h, help_drain);
		cr_assert(eq(int, wait_fd(c, ends[0], WAIT_WRITE), WAIT_WRITE));
		helped(&h);
		drain(ends[1]);
	}
	close_pair(ends);
}

static void hang_up(void *arg)
{
	int ends[2], pipes[2];
	ctx *c = ctx_background();
	(void)arg;

	pair(ends);
	helper h = {.fd = ends[1]};
	help(&h, help_shutdown);
	cr_assert(eq(int, wait_fd(c, ends[0], WAIT_READ), WAIT_READ));
	helped(&h);
	cr_assert(eq(int, wait_fd(c, ends[0], WAIT_READ | WAIT_WRITE), WAIT_READ | WAIT_WRITE));
	cr_assert(eq(int, wait_fd(c, ends[0], WAIT_WRITE), WAIT_WRITE), "as what was asked for");
	close_pair(ends);

	cr_assert(eq(int, pipe2(pipes, O_NONBLOCK | O_CLOEXEC), 0));
	close(pipes[1]);
	cr_assert(eq(int, wait_fd(c, pipes[0], WAIT_READ), WAIT_READ), "a pipe that nobody writes to");
	close(pipes[0]);
	cr_assert(eq(int, pipe2(pipes, O_NONBLOCK | O_CLOEXEC), 0));
	close(pipes[0]);
	cr_assert(eq(int, wait_fd(c, pipes[1], WAIT_WRITE), WAIT_WRITE), "a pipe that nobody reads");
	close(pipes[1]);
}

static void *close_reader(void *arg)
{
	close(((helper *)arg)->fd);
	return NULL;
}

/* The kernel reports the lost reader of a full pipe as an error alone, at which libuv stops the handle itself. */
static void error_while_waiting(void *arg)
{
	(void)arg;
	for (int i = 0; i < 3; i++) {
		int pipes[2];
		char bytes[4096] = {0};
		cr_assert(eq(int, pipe2(pipes, O_NONBLOCK | O_CLOEXEC), 0));
		while (write(pipes[1], bytes, sizeof(bytes)) > 0)
			;
		helper h = {.fd = pipes[0]};
		help(&h, close_reader);
		cr_assert(eq(int, wait_fd(ctx_background(), pipes[1], WAIT_WRITE), WAIT_WRITE));
		helped(&h);
		close(pipes[1]);
	}
}

static void ctx_done_before(void *arg)
{
	int ends[2];
	(void)arg;
	pair(ends);
	ctx *c = ctx_with_cancel(ctx_background());
	ctx_cancel(c);
	errno = 0;
	cr_assert(eq(int, wait_fd(c, ends[0], WAIT_WRITE), -1), "though the file is ready");
	cr_assert(eq(int, errno, ECANCELED));
	ctx_end(c);
	c = ctx_with_timeout(ctx_background(), -1);
	cr_assert(eq(int, wait_fd(c, ends[0], WAIT_READ), -1));
	cr_assert(eq(int, errno, ETIMEDOUT));
	ctx_end(c);
	close_pair(ends);
}

static void ctx_done_during(void *arg)
{
	int ends[2];
	(void)arg;
	pair(ends);
	for (int i = 0; i < 200; i++) {
		ctx *c = ctx_with_cancel(ctx_background());
		helper h = {.ctx = c};
		help(&h, help_cancel);
		errno = 0;
		cr_assert(eq(int, wait_fd(c, ends[0], WAIT_READ), -1));
		cr_assert(eq(int, errno, ECANCELED));
		helped(&h);
		ctx_end(c);
	}
	for (int i = 0; i < 20; i++) {
		ctx *c = ctx_with_timeout(ctx_background(), CTX_MILLISECOND);
		errno = 0;
		cr_assert(eq(int, wait_fd(c, ends[0], WAIT_READ), -1));
		cr_assert(eq(int, errno, ETIMEDOUT));
		ctx_end(c);
	}
	/* Nothing of all that sticks to the file. */
	cr_assert(eq(long, write(ends[1], "x", 1), 1));
	cr_assert(eq(int, wait_fd(ctx_background(), ends[0], WAIT_READ), WAIT_READ));
	close_pair(ends);
}

/* Byte and cancel at once: whichever the wait reports, the byte is there to be read, and later waits are right. */
static void ctx_done_while_ready(void *arg)
{
	int ends[2];
	(void)arg;
	pair(ends);
	for (int i = 0; i < 500; i++) {
		ctx *c = ctx_with_cancel(ctx_background());
		helper w = {.fd = ends[1]}, h = {.ctx = c};
		help(&w, help_write);
		help(&h, help_cancel);
		int got = wait_fd(c, ends[0], WAIT_READ);
		cr_assert(got == WAIT_READ || (got == -1 && errno == ECANCELED));
		cr_assert(eq(int, wait_fd(ctx_background(), ends[0], WAIT_READ), WAIT_READ));
		helped(&w);
		helped(&h);
		drain(ends[0]);
		ctx_end(c);
	}
	close_pair(ends);
}

static void wrong_arguments(void *arg)
{
	int ends[2];
	ctx *c = ctx_background();
	(void)arg;
	pair(ends);
	cr_assert(eq(int, wait_fd(c, -1, WAIT_READ), -1));
	cr_assert(eq(int, errno, EBADF));
	cr_assert(eq(int, wait_fd(c, 1 << 30, WAIT_READ), -1));
	cr_assert(eq(int, errno, EBADF));
	int closed = dup(ends[0]);
	close(closed);
	errno = 0;
	cr_assert(eq(int, wait_fd(c, closed, WAIT_READ), -1));
	cr_assert(eq(int, errno, EBADF));
	for (int i = 0; i < 2; i++) {
		errno = 0;
		cr_assert(eq(int, wait_fd(c, ends[0], i ? 4 | WAIT_READ : 0), -1));
		cr_assert(eq(int, errno, EINVAL));
	}
	close_pair(ends);
}

static void always_ready_files(void *arg)
{
	(void)arg;
	for (int i = 0; i < 2; i++) {
		int fd = open(i ? "/dev/null" : "/proc/self/exe", O_RDONLY | O_CLOEXEC);
		cr_assert(ge(int, fd, 0));
		wait_fd_keep(fd);
		for (int n = 0; n < 500; n++)
			cr_assert(eq(int, wait_fd(ctx_background(), fd, WAIT_READ), WAIT_READ));
		wait_fd_drop(fd);
		close(fd);
	}
}

/* A number that comes back with another file behind it, of another kind, ready or not. */
static void reused_numbers(void *arg)
{
	(void)arg;
	for (int i = 0; i < 300; i++) {
		int ends[2];
		if (i % 2)
			pair(ends);
		else
			cr_assert(eq(int, pipe2(ends, O_NONBLOCK | O_CLOEXEC), 0));
		bool keep = i % 3 == 0;
		if (keep)
			wait_fd_keep(ends[0]);
		ctx *c = ctx_with_timeout(ctx_background(), CTX_MILLISECOND / 10);
		cr_assert(eq(int, wait_fd(c, ends[0], WAIT_READ), -1));
		ctx_end(c);
		cr_assert(eq(long, write(ends[1], "x", 1), 1));
		cr_assert(eq(int, wait_fd(ctx_background(), ends[0], WAIT_READ), WAIT_READ));
		if (keep)
			wait_fd_drop(ends[0]);
		close_pair(ends);
	}
}

#define BOTH_WORLDS(name)                                      \
	Test(loop_wait_fd, name##_on_a_fiber, .timeout = 120)  \
	{                                                      \
		in_fiber(name, NULL);                          \
	}                                                      \
	Test(loop_wait_fd, name##_on_a_thread, .timeout = 120) \
	{                                                      \
		name(NULL);                                    \
	}

BOTH_WORLDS(read_and_write)
BOTH_WORLDS(hang_up)
BOTH_WORLDS(error_while_waiting)
BOTH_WORLDS(ctx_done_before)
BOTH_WORLDS(ctx_done_during)
BOTH_WORLDS(ctx_done_while_ready)
BOTH_WORLDS(wrong_arguments)
BOTH_WORLDS(always_ready_files)
BOTH_WORLDS(reused_numbers)

/* ---- Fibers only --------------------------------------------------------------------------------------------- */

static void set_event(void *arg)
{
	wait_event_set(arg);
}

/* Lets everything that is ready run. */
static void yield(void)
{
	wait_event others_ran = WAIT_EVENT_INIT;
	cr_assert(eq(int, loop_spawn(loop_current(), set_event, &others_ran), 0));
	wait_event_wait(NULL, &others_ran);
}

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
	pair(ends);
	waiting w = {ctx_with_cancel(ctx_background()), ends[0], WAIT_EVENT_INIT};
	loop_spawn(loop_current(), wait_to_read, &w);
	yield();
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
	close_pair(ends);
}

Test(loop_wait_fd, a_second_waiter_is_refused, .timeout = 30)
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
	pair(ends);
	ctx *c = ctx_with_cancel(ctx_background());
	loop_spawn(loop_current(), cancel, c);
	cr_assert(eq(int, wait_fd(c, ends[0], WAIT_READ), -1));
	cr_assert(eq(int, errno, ECANCELED));
	ctx_end(c);
	close_pair(ends);
}

Test(loop_wait_fd, errno_is_the_contexts_not_libuvs, .timeout = 30)
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
	pair(ends);
	pair(trigger);
	cancelled_by_event = ctx_with_cancel(ctx_background());
	uv_poll_init(loop_uv(loop_current()), &poll, trigger[0]);
	uv_poll_start(&poll, UV_READABLE, cancel_by_event);
	loop_spawn(loop_current(), write_both, (int[]){trigger[1], ends[1]});
	cr_assert(eq(int, wait_fd(cancelled_by_event, ends[0], WAIT_READ), -1));
	drain(ends[0]);
	ctx *c = ctx_with_timeout(ctx_background(), 10 * CTX_MILLISECOND);
	cr_assert(eq(int, wait_fd(c, ends[0], WAIT_READ), -1));
	cr_assert(eq(int, errno, ETIMEDOUT));
	wait_event_wait(NULL, &poll_closed);
	ctx_end(c);
	ctx_end(cancelled_by_event);
	close_pair(ends);
	close_pair(trigger);
}

Test(loop_wait_fd, readiness_after_the_wait_is_not_the_next_ones, .timeout = 30)
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
	pair(ends);
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
	close_pair(ends);
}

Test(loop_wait_fd, a_file_that_a_libuv_handle_watches_is_refused, .timeout = 30)
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
	pair(ends);
	loop_spawn(loop_current(), note_second, NULL);
	for (int i = 0; !second_ran; i++) {
		cr_assert(eq(int, wait_fd(ctx_background(), ends[0], WAIT_WRITE), WAIT_WRITE));
		cr_assert(lt(int, i, 10000));
	}
	close_pair(ends);
}

Test(loop_wait_fd, a_file_that_is_always_ready_does_not_shut_out_others, .timeout = 30)
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
		pair(ends[i]);
		waits[i] = (waiting){ctx_background(), ends[i][0], WAIT_EVENT_INIT};
		loop_spawn(loop_current(), wait_to_read, &waits[i]);
	}
	yield();
	for (int i = FILES - 1; i >= 0; i--) {
		outcome = 0;
		cr_assert(eq(long, write(ends[i][1], "x", 1), 1));
		wait_event_wait(NULL, &waits[i].over);
		cr_assert(eq(int, outcome, WAIT_READ));
	}
	for (int i = 0; i < FILES; i++)
		close_pair(ends[i]);
}

Test(loop_wait_fd, many_fibers_each_on_its_own, .timeout = 60)
{
	in_fiber(many_files, NULL);
}

static void no_memory(void *arg)
{
	int ends[2];
	(void)arg;
	pair(ends);
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
			cr_assert(gt(uint, n, 1));
			break;
		}
	}
	fault_set(FAULT_MEMORY, 1);
	wait_fd_keep(ends[1]); /* not kept then, and no harm done */
	cr_assert(fault_clear(FAULT_MEMORY));
	cr_assert(eq(int, wait_fd(ctx_background(), ends[1], WAIT_WRITE), WAIT_WRITE));
	wait_fd_drop(ends[1]);
	close_pair(ends);
}

Test(loop_wait_fd, out_of_memory, .timeout = 30)
{
	in_fiber(no_memory, NULL);
}

/* ---- Kept files ------------------------------------------------------------------------------------------------ */

/* libuv's calls of epoll_ctl come through here. */
static atomic_int registrations;

int epoll_ctl(int epfd, int op, int fd, struct epoll_event *event)
{
	atomic_fetch_add(&registrations, 1);
	return (int)syscall(SYS_epoll_ctl, epfd, op, fd, event);
}

static void write_byte(void *arg)
{
	cr_expect(eq(long, write(*(int *)arg, "x", 1), 1));
}

static void read_a_byte_100_times(const int ends[2])
{
	for (int i = 0; i < 100; i++) {
		loop_spawn(loop_current(), write_byte, (void *)&ends[1]);
		cr_assert(eq(int, wait_fd(ctx_background(), ends[0], WAIT_READ), WAIT_READ));
		drain(ends[0]);
	}
}

static void kept(void *arg)
{
	int ends[2];
	(void)arg;
	pair(ends);
	read_a_byte_100_times(ends); /* libuv's own files are registered by now */
	wait_fd_keep(ends[0]);
	int before = atomic_load(&registrations);
	read_a_byte_100_times(ends);
	cr_assert(le(int, atomic_load(&registrations) - before, 2), "registered once");

	before = atomic_load(&registrations);
	for (int i = 0; i < 5; i++) {
		ctx *c = ctx_with_timeout(ctx_background(), CTX_MILLISECOND);
		cr_assert(eq(int, wait_fd(c, ends[0], WAIT_READ), -1));
		ctx_end(c);
	}
	read_a_byte_100_times(ends);
	cr_assert(eq(int, atomic_load(&registrations), before), "a context's end does not touch it");

	fill(ends[0]);
	helper h = {.fd = ends[1]};
	help(&h, help_drain);
	cr_assert(eq(int, wait_fd(ctx_background(), ends[0], WAIT_WRITE), WAIT_WRITE));
	helped(&h);
	drain(ends[1]);
	read_a_byte_100_times(ends);

	wait_fd_drop(ends[0]);
	before = atomic_load(&registrations);
	read_a_byte_100_times(ends);
	cr_assert(ge(int, atomic_load(&registrations) - before, 200), "after the drop as any other");
	close_pair(ends);
}

Test(loop_wait_fd, a_kept_file_is_registered_once, .timeout = 60)
{
	in_fiber(kept, NULL);
}

static void connect_to_self(int ends[2])
{
	struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
	socklen_t size = sizeof(address);
	int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	cr_assert(eq(int, bind(listener, (struct sockaddr *)&address, size), 0));
	cr_assert(eq(int, listen(listener, 1), 0));
	getsockname(listener, (struct sockaddr *)&address, &size);
	ends[0] = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	cr_assert(eq(int, connect(ends[0], (struct sockaddr *)&address, size), 0));
	ends[1] = accept(listener, NULL, NULL);
	fcntl(ends[0], F_SETFL, O_NONBLOCK);
	close(listener);
}

static void reset(void *arg)
{
	int fd = *(int *)arg;
	setsockopt(fd, SOL_SOCKET, SO_LINGER, &(struct linger){1, 0}, sizeof(struct linger));
	close(fd);
}

/* At an error libuv itself stops the handle: the next wait must not take it for registered still. */
static void kept_and_reset(void *arg)
{
	int ends[2];
	(void)arg;
	connect_to_self(ends);
	wait_fd_keep(ends[0]);
	loop_spawn(loop_current(), reset, &ends[1]);
	for (int i = 0; i < 3; i++)
		cr_assert(eq(int, wait_fd(ctx_background(), ends[0], WAIT_READ), WAIT_READ));
	cr_assert(eq(int, wait_fd(ctx_background(), ends[0], WAIT_WRITE), WAIT_WRITE));
	wait_fd_drop(ends[0]);
	close(ends[0]);
}

Test(loop_wait_fd, a_kept_connection_that_is_reset, .timeout = 30)
{
	in_fiber(kept_and_reset, NULL);
}

static int turns;

static bool count_turn(loop_turn *turn)
{
	(void)turn;
	turns++;
	return false;
}

/* A byte comes while the fiber waits for something else: the loop must neither forget it nor spin on it. */
static void readiness_while_nobody_waits(void *arg)
{
	int ends[2];
	loop_turn turn = {.fn = count_turn};
	(void)arg;
	pair(ends);
	wait_fd_keep(ends[0]);
	read_a_byte_100_times(ends);
	for (int i = 0; i < 5; i++) {
		cr_assert(eq(long, write(ends[1], "x", 1), 1));
		loop_turn_add(loop_current(), &turn);
		turns = 0;
		cr_assert(eq(int, wait_sleep(ctx_background(), 20 * CTX_MILLISECOND), 0));
		loop_turn_remove(loop_current(), &turn);
		cr_assert(lt(int, turns, 10));
		cr_assert(eq(int, wait_fd(ctx_background(), ends[0], WAIT_READ), WAIT_READ));
		drain(ends[0]);
		read_a_byte_100_times(ends);
	}
	wait_fd_drop(ends[0]);
	close_pair(ends);
}

Test(loop_wait_fd, readiness_of_a_kept_file_is_not_lost_while_nobody_waits, .timeout = 60)
{
	in_fiber(readiness_while_nobody_waits, NULL);
}

/* A number that is no file's must not size a table. */
static void keep_outside(void *arg)
{
	(void)arg;
	wait_fd_keep(-1);
	wait_fd_drop(-1);
	wait_fd_keep(1 << 30);
	wait_fd_drop(1 << 30);
	wait_fd_drop(12345);
}

Test(loop_wait_fd, keep_and_drop_of_nothing, .timeout = 30)
{
	keep_outside(NULL);
	in_fiber(keep_outside, NULL);
}

/* A kept file may outlive its fiber, and its loop's end. */
static void leave_kept(void *arg)
{
	int *ends = arg;
	wait_fd_keep(ends[0]);
	read_a_byte_100_times(ends);
}

Test(loop_wait_fd, kept_until_the_loop_is_freed, .timeout = 30)
{
	int ends[2];
	pair(ends);
	for (int i = 0; i < 3; i++)
		in_fiber(leave_kept, ends);
	close_pair(ends);
}

/* ---- Threads only ------------------------------------------------------------------------------------------------ */

static void nothing(int number)
{
	(void)number;
}

static atomic_bool interrupting;

static void *interrupt(void *arg)
{
	pthread_t waiter = *(pthread_t *)arg;
	while (atomic_load(&interrupting)) {
		pthread_kill(waiter, SIGUSR1);
		poll(NULL, 0, 1);
	}
	return NULL;
}

Test(loop_wait_fd, a_signal_does_not_end_a_threads_wait, .timeout = 60)
{
	int ends[2];
	pair(ends);
	pthread_t self = pthread_self(), interrupter;
	sigaction(SIGUSR1, &(struct sigaction){.sa_handler = nothing}, NULL);
	atomic_store(&interrupting, true);
	pthread_create(&interrupter, NULL, interrupt, &self);
	ctx *c = ctx_with_timeout(ctx_background(), 50 * CTX_MILLISECOND);
	cr_expect(eq(int, wait_fd(c, ends[0], WAIT_READ), -1));
	cr_expect(eq(int, errno, ETIMEDOUT));
	atomic_store(&interrupting, false);
	pthread_join(interrupter, NULL);
	ctx_end(c);
	close_pair(ends);
}

static void *wait_once(void *arg)
{
	ctx *c = ctx_with_timeout(ctx_background(), CTX_MILLISECOND);
	intptr_t got = wait_fd(c, *(int *)arg, WAIT_READ);
	ctx_end(c);
	return (void *)got;
}

static int open_descriptors(void)
{
	int count = 0;
	for (int fd = 0; fd < 256; fd++)
		count += fcntl(fd, F_GETFD) >= 0;
	return count;
}

Test(loop_wait_fd, a_threads_own_descriptor_ends_with_the_thread, .timeout = 60)
{
	int ends[2];
	pair(ends);
	int before = open_descriptors();
	for (int i = 0; i < 50; i++) {
		pthread_t thread;
		void *got;
		pthread_create(&thread, NULL, wait_once, ends);
		pthread_join(thread, &got);
		cr_assert(eq(int, (int)(intptr_t)got, -1));
	}
	cr_assert(eq(int, open_descriptors(), before));
	close_pair(ends);
}

Test(loop_wait_fd, a_thread_without_a_descriptor_left, .timeout = 60)
{
	int ends[2];
	pair(ends);
	fault_set(FAULT_FD, 1);
	errno = 0;
	cr_assert(eq(int, wait_fd(ctx_background(), ends[0], WAIT_WRITE), -1));
	cr_assert(eq(int, errno, EMFILE));
	cr_assert(fault_clear(FAULT_FD));
	cr_assert(eq(int, wait_fd(ctx_background(), ends[0], WAIT_WRITE), WAIT_WRITE));
	close_pair(ends);
}
