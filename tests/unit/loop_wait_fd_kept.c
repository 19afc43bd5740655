/*
 * wait_fd_keep: a file stays registered with epoll from one wait to the next, and its waits are as right as any
 * other's: over a reset, over bytes that come while nobody waits, and when its loop is gone before it.
 */
#include <criterion/criterion.h>
#include <criterion/new/assert.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <stdatomic.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "loops.h"
#include "socket_pair.h"
#include "support.h"

/* libuv's calls of epoll_ctl come through here. */
static atomic_int registrations;
static atomic_int foreign = -1,
		  named; /* a file that is none of the loop's any more, and how often it was named */

int epoll_ctl(int epfd, int op, int fd, struct epoll_event *event)
{
	atomic_fetch_add(&registrations, 1);
	if (fd == atomic_load(&foreign))
		atomic_fetch_add(&named, 1);
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
		socket_drain(ends[0]);
	}
}

static void drain_fiber(void *arg)
{
	socket_drain(*(int *)arg);
}

static void kept(void *arg)
{
	int ends[2];
	(void)arg;
	socket_pair(ends);
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

	socket_fill(ends[0]);
	loop_spawn(loop_current(), drain_fiber, &ends[1]);
	cr_assert(eq(int, wait_fd(ctx_background(), ends[0], WAIT_WRITE), WAIT_WRITE));
	socket_drain(ends[1]);
	read_a_byte_100_times(ends);

	wait_fd_drop(ends[0]);
	before = atomic_load(&registrations);
	read_a_byte_100_times(ends);
	cr_assert(ge(int, atomic_load(&registrations) - before, 200), "after the drop as any other");
	socket_pair_close(ends);
}

Test(loop_wait_fd_kept, a_kept_file_is_registered_once, .timeout = 60)
{
	in_fiber(kept, NULL);
}

static void connect_to_self(int ends[2])
{
	int port, listener = support_listen(&port);
	struct sockaddr_in address = {.sin_family = AF_INET,
	                              .sin_addr.s_addr = htonl(INADDR_LOOPBACK),
	                              .sin_port = htons((uint16_t)port)};
	cr_assert(ge(int, listener, 0));
	ends[0] = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	cr_assert(eq(int, connect(ends[0], (struct sockaddr *)&address, sizeof(address)), 0));
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

Test(loop_wait_fd_kept, a_kept_connection_that_is_reset, .timeout = 30)
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
	socket_pair(ends);
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
		socket_drain(ends[0]);
		read_a_byte_100_times(ends);
	}
	wait_fd_drop(ends[0]);
	socket_pair_close(ends);
}

Test(loop_wait_fd_kept, readiness_of_a_kept_file_is_not_lost_while_nobody_waits, .timeout = 60)
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

Test(loop_wait_fd_kept, keep_and_drop_of_nothing, .timeout = 30)
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

Test(loop_wait_fd_kept, kept_until_the_loop_is_freed, .timeout = 30)
{
	int ends[2];
	socket_pair(ends);
	for (int i = 0; i < 3; i++)
		in_fiber(leave_kept, ends);
	socket_pair_close(ends);
}

static void wait_and_leave(void *arg)
{
	int *ends = arg;
	read_a_byte_100_times(ends);
	if (ends[2])
		wait_fd_keep(ends[0]);
	read_a_byte_100_times(ends);
	wait_fd_drop(ends[0]);
	atomic_store(&foreign, ends[0]);
}

/*
 * With its loop the handle of a file was freed that had not been waited on for long, and libuv took the file's number off
 * epoll once more: while somebody on another thread was closing it, or had been given it for another file.
 */
Test(loop_wait_fd_kept, a_loop_that_is_freed_names_no_file_that_is_not_its_own, .timeout = 30)
{
	int ends[3];
	socket_pair(ends);
	for (ends[2] = 0; ends[2] < 2; ends[2]++) {
		in_fiber(wait_and_leave, ends);
		cr_expect(eq(int, atomic_load(&named), 0), "%s", ends[2] ? "dropped" : "never kept");
		atomic_store(&foreign, -1);
	}
	socket_pair_close(ends);
}
