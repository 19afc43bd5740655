/*
 * What the loop layer costs, in nanoseconds. Best of several rounds, which is what the code costs on a
 * machine that does other things too.
 *
 *	switch        one change of stack: a fiber parks or is resumed
 *	spawn         a fiber is spawned, parks, is woken and ends
 *	start         a fiber is started and ends without having parked
 *	fd            a byte there and back between two fibers over a socket pair, two waits and four system calls
 *	fd, kept      the same, both ends kept
 *	post          a task from another thread to a loop that sleeps, and its answer
 *	post, busy    a task from another thread to a loop that is awake
 */
#include <fcntl.h>
#include <semaphore.h>
#include <stdio.h>
#include <sys/socket.h>
#include <unistd.h>

#include <tether/loop.h>

enum { ROUNDS = 7 };

static void report(const char *what, const char *note, int64_t (*measure)(void), int64_t operations)
{
	int64_t best = INT64_MAX;
	for (int round = 0; round < ROUNDS; round++) {
		int64_t ns = measure();
		if (ns < best)
			best = ns;
	}
	printf("%-24s %8.1f ns   %s\n", what, (double)best / (double)operations, note);
}

/* ---- switch ------------------------------------------------------------------------------------------ */

enum { SWITCHES = 400000, CROWD = 64 };

static wait_event crowd[CROWD];
static wait_event crowd_over;
static int crowd_left;

/* Each wakes the next, round and round: one step is a set, a wait, and two changes of stack. */
static void crowd_member(void *arg)
{
	int self = (int)(intptr_t)arg;
	for (int i = 0; i < SWITCHES / 2 / CROWD; i++) {
		wait_event_wait(NULL, &crowd[self]);
		wait_event_set(&crowd[(self + 1) % CROWD]);
	}
	if (--crowd_left == 0)
		wait_event_set(&crowd_over);
}

static int64_t measure_crowd(void)
{
	crowd_left = CROWD;
	for (int i = 0; i < CROWD; i++) {
		crowd[i] = (wait_event)WAIT_EVENT_INIT;
		loop_spawn(loop_current(), crowd_member, (void *)(intptr_t)i);
	}
	int64_t begin = ctx_now();
	wait_event_set(&crowd[0]);
	wait_event_wait(NULL, &crowd_over);
	return ctx_now() - begin;
}

static wait_event ping, pong;

static void ponger(void *arg)
{
	(void)arg;
	for (int i = 0; i < SWITCHES / 4; i++) {
		wait_event_wait(NULL, &ping);
		wait_event_set(&pong);
	}
}

static int64_t measure_switch(void)
{
	loop_spawn(loop_current(), ponger, NULL);
	int64_t begin = ctx_now();
	for (int i = 0; i < SWITCHES / 4; i++) {
		wait_event_set(&ping);
		wait_event_wait(NULL, &pong);
	}
	return ctx_now() - begin;
}

/* ---- spawn, start ------------------------------------------------------------------------------------ */

enum { SPAWNS = 100000, BATCH = 50 };

static wait_event parked[BATCH];
static wait_event batch_over;
static int batch_left;

static void park_once(void *arg)
{
	wait_event_wait(NULL, arg);
	if (--batch_left == 0)
		wait_event_set(&batch_over);
}

static void wake_batch(void *arg)
{
	(void)arg;
	for (int i = 0; i < BATCH; i++)
		wait_event_set(&parked[i]);
}

static int64_t measure_spawn(void)
{
	int64_t begin = ctx_now();
	for (int done = 0; done < SPAWNS; done += BATCH) {
		batch_left = BATCH;
		for (int i = 0; i < BATCH; i++)
			loop_spawn(loop_current(), park_once, &parked[i]);
		loop_spawn(loop_current(), wake_batch, NULL);
		wait_event_wait(NULL, &batch_over);
	}
	return ctx_now() - begin;
}

static int64_t start_ns;
static wait_event started;

static void count_up(void *arg)
{
	++*(int *)arg;
}

static void start_many(void *arg)
{
	(void)arg;
	int ended = 0;
	int64_t begin = ctx_now();
	for (int i = 0; i < SPAWNS; i++)
		loop_start(loop_current(), count_up, &ended);
	start_ns = ctx_now() - begin;
	wait_event_set(&started);
}

static int64_t measure_start(void)
{
	loop_post(loop_current(), start_many, NULL);
	wait_event_wait(NULL, &started);
	return start_ns;
}

/* ---- wait_fd ----------------------------------------------------------------------------------------- */

enum { ROUND_TRIPS = 20000 };

static int ends[2];
static bool keep;

static bool pass_byte(int fd, bool first)
{
	char byte = 'x';
	if (first && write(fd, &byte, 1) != 1)
		return false;
	if (wait_fd(ctx_background(), fd, WAIT_READ) != WAIT_READ || read(fd, &byte, 1) != 1)
		return false;
	return first || write(fd, &byte, 1) == 1;
}

static void echo(void *arg)
{
	(void)arg;
	for (int i = 0; i < ROUND_TRIPS && pass_byte(ends[1], false); i++)
		;
}

static int64_t measure_fd(void)
{
	if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, ends) != 0)
		return INT64_MAX;
	if (keep) {
		wait_fd_keep(ends[0]);
		wait_fd_keep(ends[1]);
	}
	loop_spawn(loop_current(), echo, NULL);
	int64_t begin = ctx_now();
	for (int i = 0; i < ROUND_TRIPS && pass_byte(ends[0], true); i++)
		;
	int64_t ns = ctx_now() - begin;
	for (int i = 0; i < 2; i++) {
		wait_fd_drop(ends[i]);
		close(ends[i]);
	}
	return ns;
}

/* ---- post -------------------------------------------------------------------------------------------- */

enum { POSTS = 20000, BURST = 200000 };

static loop *posted_loop;
static int burst_seen;
static sem_t answered;

static void answer(loop_task *task)
{
	(void)task;
	sem_post(&answered);
}

static int64_t measure_post(void)
{
	loop_task task = {.fn = answer};
	int64_t begin = ctx_now();
	for (int i = 0; i < POSTS; i++) {
		loop_post_task(posted_loop, &task);
		sem_wait(&answered);
	}
	return ctx_now() - begin;
}

static void count_burst(loop_task *task)
{
	(void)task;
	if (++burst_seen == BURST)
		sem_post(&answered);
}

static int64_t measure_burst(void)
{
	static loop_task tasks[BURST];
	burst_seen = 0;
	int64_t begin = ctx_now();
	for (int i = 0; i < BURST; i++) {
		tasks[i].fn = count_burst;
		loop_post_task(posted_loop, &tasks[i]);
	}
	sem_wait(&answered);
	return ctx_now() - begin;
}

/* ------------------------------------------------------------------------------------------------------ */

static void inside(void *arg)
{
	loop *l = arg;
	report("switch", "two fibers, set and wait included", measure_switch, SWITCHES);
	report("switch, 64 fibers", "round robin, caches shared by all", measure_crowd, SWITCHES);
	report("spawn, park, end", "in batches of 50", measure_spawn, SPAWNS);
	report("start, end", "without parking", measure_start, SPAWNS);
	report("fd round trip", "two waits, two reads, two writes", measure_fd, ROUND_TRIPS);
	keep = true;
	report("fd round trip, kept", "", measure_fd, ROUND_TRIPS);
	loop_stop(l);
}

static void *run(void *arg)
{
	loop_run(arg);
	return NULL;
}

int main(void)
{
	loop *l = loop_new(NULL);
	if (!l || loop_spawn(l, inside, l) != 0)
		return 1;
	loop_run(l);
	loop_free(l);

	posted_loop = loop_new(NULL);
	pthread_t thread;
	if (!posted_loop || sem_init(&answered, 0, 0) != 0 ||
	    pthread_create(&thread, NULL, run, posted_loop) != 0)
		return 1;
	report("post and answer", "to a loop that sleeps, and back by a semaphore", measure_post, POSTS);
	report("post, busy loop", "coalesced", measure_burst, BURST);
	loop_stop(posted_loop);
	pthread_join(thread, NULL);
	loop_free(posted_loop);
	return 0;
}
