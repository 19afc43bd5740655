/*
 * wait_event: set once is taken once, by fibers and by threads; and the races of setting it, taking it and ending the
 * waiter's context.
 */
#include <criterion/criterion.h>
#include <criterion/new/assert.h>
#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdlib.h>

#include "loops.h"
#include "support.h"

TEST_BOTH_WAYS(loop_wait_event, event_stays_set_until_taken)
{
	wait_event e = WAIT_EVENT_INIT;
	wait_event_set(&e);
	wait_event_set(&e);
	ctx *c = ctx_with_cancel(ctx_background());
	ctx_cancel(c);
	cr_assert(eq(int, wait_event_wait(c, &e), 0), "set wins over done");
	errno = 0;
	cr_assert(eq(int, wait_event_wait(c, &e), -1), "set twice is set");
	cr_assert(eq(int, errno, ECANCELED));
	wait_event_set(&e);
	cr_assert(eq(int, wait_event_wait(NULL, &e), 0));
	ctx_end(c);

	c = ctx_with_timeout(ctx_background(), CTX_MILLISECOND);
	cr_assert(eq(int, wait_event_wait(c, &e), -1));
	cr_assert(eq(int, errno, ETIMEDOUT));
	cr_assert_null(e.state, "as it was");
	ctx_end(c);
}

/* Two sides set each other's event in turn, 100 000 times (fewer where it takes longer). Neither may miss one. */
static long pings(void)
{
	return 100000 / support_patience();
}

static wait_event ping = WAIT_EVENT_INIT, pong = WAIT_EVENT_INIT;
static long shared; /* written by turns; a race here is a missing happens-before */

static void play_ping(void *arg)
{
	long n = pings();
	(void)arg;
	for (long i = 0; i < n; i++) {
		shared = 2 * i;
		wait_event_set(&ping);
		cr_assert(eq(int, wait_event_wait(ctx_background(), &pong), 0));
		if (shared != 2 * i + 1)
			abort();
	}
}

static void play_pong(void *arg)
{
	long n = pings();
	(void)arg;
	for (long i = 0; i < n; i++) {
		cr_assert(eq(int, wait_event_wait(NULL, &ping), 0));
		if (shared != 2 * i)
			abort();
		shared = 2 * i + 1;
		wait_event_set(&pong);
	}
}

static void *pong_thread(void *arg)
{
	play_pong(arg);
	return NULL;
}

Test(loop_wait_event, ping_pong_of_threads, .timeout = 300)
{
	pthread_t thread;
	pthread_create(&thread, NULL, pong_thread, NULL);
	play_ping(NULL);
	pthread_join(thread, NULL);
}

Test(loop_wait_event, ping_pong_of_a_fiber_and_a_thread, .timeout = 300)
{
	pthread_t thread;
	pthread_create(&thread, NULL, pong_thread, NULL);
	in_fiber(play_ping, NULL);
	pthread_join(thread, NULL);
}

Test(loop_wait_event, ping_pong_of_two_loops, .timeout = 300)
{
	loop_thread *t = loop_thread_start(NULL);
	loop_spawn(loop_thread_loop(t), play_pong, NULL);
	in_fiber(play_ping, NULL);
	loop_thread_stop(t);
}

static void play_both(void *arg)
{
	loop_spawn(loop_current(), play_pong, arg);
	play_ping(arg);
}

Test(loop_wait_event, ping_pong_on_one_loop, .timeout = 300)
{
	in_fiber(play_both, NULL);
}

/* ---- Races --------------------------------------------------------------------------------------------------- */

/*
 * A helper thread stays for all rounds and acts as soon as one begins; the waiter comes a little later in each than
 * in the one before, so that in some round each of its steps is the one that is raced. Event and context are new in
 * each round and gone after it, so that the sanitizers see what touches them too late.
 */
enum { ROUNDS = 20000, SWEEP = 1000, LAST_ROUND = ROUNDS + 1 };

typedef struct race {
	atomic_long round;      /* which one the helpers may begin */
	atomic_int helpers_due; /* those that are not through with it yet */
	wait_event *event;
	ctx *ctx;
	atomic_long data; /* what the waiter has to see */
} race;

static void sweep(long round)
{
	for (volatile long i = round % SWEEP; i > 0; i--)
		;
}

/* False when there is none more. */
static bool next_round(race *r, long round)
{
	for (int i = 0; atomic_load(&r->round) < round; i++)
		if (i > 2000)
			sched_yield(); /* or else, with no processor to spare, no round would ever begin */
	return atomic_load(&r->round) != LAST_ROUND;
}

static void begin_round(race *r, long round, int helpers)
{
	atomic_store(&r->helpers_due, helpers);
	atomic_store(&r->round, round);
	sweep(round);
}

static void end_round(race *r)
{
	while (atomic_load(&r->helpers_due) > 0)
		sched_yield();
}

static void *set_in_each_round(void *arg)
{
	race *r = arg;
	for (long round = 1; next_round(r, round); round++) {
		wait_event_set(r->event);
		atomic_fetch_sub(&r->helpers_due, 1);
	}
	return NULL;
}

static void *set_twice_in_each_round(void *arg)
{
	race *r = arg;
	for (long round = 1; next_round(r, round); round++) {
		wait_event_set(r->event);
		sweep(round * 7);
		atomic_store_explicit(&r->data, round, memory_order_relaxed);
		wait_event_set(r->event);
		atomic_fetch_sub(&r->helpers_due, 1);
	}
	return NULL;
}

static void *cancel_in_each_round(void *arg)
{
	race *r = arg;
	for (long round = 1; next_round(r, round); round++) {
		ctx_cancel(r->ctx);
		atomic_fetch_sub(&r->helpers_due, 1);
	}
	return NULL;
}

/* The second set may come while the first is being taken: neither it nor what was written before may get lost. */
TEST_BOTH_WAYS(loop_wait_event, no_set_is_lost)
{
	race r = {0};
	pthread_t setter;
	pthread_create(&setter, NULL, set_twice_in_each_round, &r);
	for (long round = 1; round <= ROUNDS; round++) {
		wait_event e = WAIT_EVENT_INIT;
		r.event = &e;
		begin_round(&r, round, 1);
		while (atomic_load_explicit(&r.data, memory_order_relaxed) != round)
			wait_event_wait(NULL, &e); /* for ever if it was lost */
		end_round(&r);
	}
	atomic_store(&r.round, LAST_ROUND);
	pthread_join(setter, NULL);
}

/* The context may end before the wait begins, between any two of its steps, or when it is over. */
TEST_BOTH_WAYS(loop_wait_event, done_at_any_moment)
{
	race r = {0};
	pthread_t canceller;
	pthread_create(&canceller, NULL, cancel_in_each_round, &r);
	for (long round = 1; round <= ROUNDS; round++) {
		ctx *c = ctx_with_cancel(ctx_background());
		r.ctx = c;
		begin_round(&r, round, 1);
		if (wait_done(c) != -1 || errno != ECANCELED)
			abort();
		end_round(&r);
		ctx_end(c);
	}
	atomic_store(&r.round, LAST_ROUND);
	pthread_join(canceller, NULL);
}

/* Set and cancelled at the same time: the wait ends once, and if by the context then the event is still to be had. */
TEST_BOTH_WAYS(loop_wait_event, set_against_cancel)
{
	race r = {0};
	pthread_t setter, canceller;
	pthread_create(&setter, NULL, set_in_each_round, &r);
	pthread_create(&canceller, NULL, cancel_in_each_round, &r);
	for (long round = 1; round <= ROUNDS / 4; round++) {
		wait_event e = WAIT_EVENT_INIT;
		ctx *c = ctx_with_cancel(ctx_background());
		r.event = &e;
		r.ctx = c;
		begin_round(&r, round, 2);
		if (wait_event_wait(c, &e) != 0) {
			if (errno != ECANCELED || !ctx_err(c))
				abort();
			wait_event_wait(NULL, &e); /* for ever if the set was lost */
		}
		end_round(&r);
		if (e.state)
			abort();
		ctx_end(c);
	}
	atomic_store(&r.round, LAST_ROUND);
	pthread_join(setter, NULL);
	pthread_join(canceller, NULL);
}

static void *set_once(void *arg)
{
	wait_event_set(arg);
	return NULL;
}

/* Of a wait that the event has ended nothing is left in the context; it says so, and aborts, when it is freed. */
TEST_BOTH_WAYS(loop_wait_event, leaves_nothing_in_the_context)
{
	for (int i = 0; i < 100; i++) {
		wait_event e = WAIT_EVENT_INIT;
		pthread_t setter;
		ctx *c = ctx_with_cancel(ctx_background());
		pthread_create(&setter, NULL, set_once, &e);
		cr_assert(eq(int, wait_event_wait(c, &e), 0));
		pthread_join(setter, NULL);
		ctx_release(c);
	}
}

/* The setter must not touch the event, nor the waiter, once the waiter can run: both are gone at once here. */
TEST_BOTH_WAYS(loop_wait_event, gone_after_the_wait)
{
	for (int i = 0; i < 1000; i++) {
		wait_event *e = calloc(1, sizeof(*e));
		pthread_t thread;
		pthread_create(&thread, NULL, set_once, e);
		wait_event_wait(NULL, e);
		free(e);
		pthread_detach(thread);
	}
}
