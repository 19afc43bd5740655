/*
 * wait_fd: what it answers, and that it ends with its context. The same on fibers, where it parks, and on plain
 * threads, where it polls; loop_wait_fd_fibers.c and loop_wait_fd_kept.c have what there is on fibers only.
 */
#include <criterion/criterion.h>
#include <criterion/new/assert.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <sys/socket.h>
#include <unistd.h>

#include "alloc_fault.h"
#include "loops.h"
#include "socket_pair.h"
#include "support.h"

/* ---- On fibers and on threads -------------------------------------------------------------------------------- */

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
	socket_drain(h->fd);
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

TEST_BOTH_WAYS(loop_wait_fd, read_and_write)
{
	int ends[2];
	ctx *c = ctx_background();
	socket_pair(ends);
	cr_assert(eq(int, wait_fd(c, ends[0], WAIT_WRITE), WAIT_WRITE));
	cr_assert(eq(int, wait_fd(c, ends[0], WAIT_READ | WAIT_WRITE), WAIT_WRITE));
	for (int i = 0; i < 100; i++) {
		helper h = {.fd = ends[1]};
		help(&h, help_write);
		cr_assert(eq(int, wait_fd(c, ends[0], WAIT_READ), WAIT_READ));
		cr_assert(eq(int, wait_fd(c, ends[0], WAIT_READ | WAIT_WRITE), WAIT_READ | WAIT_WRITE));
		socket_drain(ends[0]);
		helped(&h);

		socket_fill(ends[0]);
		h.fd = ends[1];
		help(&h, help_drain);
		cr_assert(eq(int, wait_fd(c, ends[0], WAIT_WRITE), WAIT_WRITE));
		helped(&h);
		socket_drain(ends[1]);
	}
	socket_pair_close(ends);
}

TEST_BOTH_WAYS(loop_wait_fd, hang_up)
{
	int ends[2], pipes[2];
	ctx *c = ctx_background();

	socket_pair(ends);
	helper h = {.fd = ends[1]};
	help(&h, help_shutdown);
	cr_assert(eq(int, wait_fd(c, ends[0], WAIT_READ), WAIT_READ));
	helped(&h);
	cr_assert(eq(int, wait_fd(c, ends[0], WAIT_READ | WAIT_WRITE), WAIT_READ | WAIT_WRITE));
	cr_assert(eq(int, wait_fd(c, ends[0], WAIT_WRITE), WAIT_WRITE), "as what was asked for");
	socket_pair_close(ends);

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
TEST_BOTH_WAYS(loop_wait_fd, error_while_waiting)
{
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

TEST_BOTH_WAYS(loop_wait_fd, ctx_done_before)
{
	int ends[2];
	socket_pair(ends);
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
	socket_pair_close(ends);
}

TEST_BOTH_WAYS(loop_wait_fd, ctx_done_during)
{
	int ends[2];
	socket_pair(ends);
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
	socket_pair_close(ends);
}

/* Byte and cancel at once: whichever the wait reports, the byte is there to be read, and later waits are right. */
TEST_BOTH_WAYS(loop_wait_fd, ctx_done_while_ready)
{
	int ends[2];
	socket_pair(ends);
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
		socket_drain(ends[0]);
		ctx_end(c);
	}
	socket_pair_close(ends);
}

TEST_BOTH_WAYS(loop_wait_fd, wrong_arguments)
{
	int ends[2];
	ctx *c = ctx_background();
	socket_pair(ends);
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
	socket_pair_close(ends);
}

TEST_BOTH_WAYS(loop_wait_fd, always_ready_files)
{
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
TEST_BOTH_WAYS(loop_wait_fd, reused_numbers)
{
	for (int i = 0; i < 300; i++) {
		int ends[2];
		if (i % 2)
			socket_pair(ends);
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
		socket_pair_close(ends);
	}
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
	socket_pair(ends);
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
	socket_pair_close(ends);
}

static void *wait_once(void *arg)
{
	ctx *c = ctx_with_timeout(ctx_background(), CTX_MILLISECOND);
	intptr_t got = wait_fd(c, *(int *)arg, WAIT_READ);
	ctx_end(c);
	return (void *)got;
}

Test(loop_wait_fd, a_threads_own_descriptor_ends_with_the_thread, .timeout = 60)
{
	int ends[2];
	socket_pair(ends);
	int before = support_open_files();
	for (int i = 0; i < 50; i++) {
		pthread_t thread;
		void *got;
		pthread_create(&thread, NULL, wait_once, ends);
		pthread_join(thread, &got);
		cr_assert(eq(int, (int)(intptr_t)got, -1));
	}
	cr_assert(eq(int, support_open_files(), before));
	socket_pair_close(ends);
}

Test(loop_wait_fd, a_thread_without_a_descriptor_left, .timeout = 60)
{
	int ends[2];
	socket_pair(ends);
	fault_set(FAULT_FD, 1);
	errno = 0;
	cr_assert(eq(int, wait_fd(ctx_background(), ends[0], WAIT_WRITE), -1));
	cr_assert(eq(int, errno, EMFILE));
	cr_assert(fault_clear(FAULT_FD));
	cr_assert(eq(int, wait_fd(ctx_background(), ends[0], WAIT_WRITE), WAIT_WRITE));
	socket_pair_close(ends);
}
