/* wait_event, wait_done, wait_sleep and wait_blocking, on fibers and on threads, and their races. */
#include <criterion/criterion.h>
#include <criterion/new/assert.h>
#include <errno.h>
#include <sched.h>
#include <semaphore.h>
#include <stdatomic.h>
#include <stdlib.h>

#include "alloc_fault.h"
#include "loops.h"
#include "support.h"

#define BOTH_WORLDS(name)                                   \
	Test(loop_wait, name##_on_a_fiber, .timeout = 300)  \
	{                                                   \
		in_fiber(name, NULL);                       \
	}                                                   \
	Test(loop_wait, name##_on_a_thread, .timeout = 300) \
	{                                                   \
		name(NULL);                                 \
	}

static void cancel_from_thread(ctx *c, pthread_t *thread);

/* ---- wait_event ---------------------------------------------------------------------------------------------- */

static void event_stays_set_until_taken(void *arg)
{
	wait_event e = WAIT_EVENT_INIT;
	(void)arg;
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

BOTH_WORLDS(event_stays_set_until_taken)

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

Test(loop_wait, ping_pong_of_threads, .timeout = 300)
{
	pthread_t thread;
	pthread_create(&thread, NULL, pong_thread, NULL);
	play_ping(NULL);
	pthread_join(thread, NULL);
}

Test(loop_wait, ping_pong_of_a_fiber_and_a_thread, .timeout = 300)
{
	pthread_t thread;
	pthread_create(&thread, NULL, pong_thread, NULL);
	in_fiber(play_ping, NULL);
	pthread_join(thread, NULL);
}

Test(loop_wait, ping_pong_of_two_loops, .timeout = 300)
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

Test(loop_wait, ping_pong_on_one_loop, .timeout = 300)
{
	in_fiber(play_both, NULL);
}

/*
 * Races, staged: a helper thread stays for all rounds and acts as soon as one begins; the waiter comes a little later
 * in each than in the one before, so that every step of its is once the one that is raced. Event and context are new in each round and gone after it,
 * so what touches them too late is seen by the sanitizers.
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
static void no_set_is_lost(void *arg)
{
	race r = {0};
	pthread_t setter;
	(void)arg;
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

BOTH_WORLDS(no_set_is_lost)

/* The context may end before the wait begins, between any two of its steps, or when it is over. */
static void done_at_any_moment(void *arg)
{
	race r = {0};
	pthread_t canceller;
	(void)arg;
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

BOTH_WORLDS(done_at_any_moment)

/* Set and cancelled at the same time: the wait ends once, and if by the context then the event is still to be had. */
static void set_against_cancel(void *arg)
{
	race r = {0};
	pthread_t setter, canceller;
	(void)arg;
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

BOTH_WORLDS(set_against_cancel)

static void *set_once(void *arg)
{
	wait_event_set(arg);
	return NULL;
}

/* Of a wait that the event has ended nothing is left in the context; it says so, and aborts, when it is freed. */
static void leaves_nothing_in_the_context(void *arg)
{
	(void)arg;
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

BOTH_WORLDS(leaves_nothing_in_the_context)

/* The setter must not touch the event, nor the waiter, once the waiter can run: both are gone at once here. */
static void gone_after_the_wait(void *arg)
{
	(void)arg;
	for (int i = 0; i < 1000; i++) {
		wait_event *e = calloc(1, sizeof(*e));
		pthread_t thread;
		pthread_create(&thread, NULL, set_once, e);
		wait_event_wait(NULL, e);
		free(e);
		pthread_detach(thread);
	}
}

BOTH_WORLDS(gone_after_the_wait)

/* ---- wait_done ------------------------------------------------------------------------------------------------- */

static void *cancel_it(void *arg)
{
	ctx_cancel(arg);
	return NULL;
}

static void cancel_from_thread(ctx *c, pthread_t *thread)
{
	cr_assert(eq(int, pthread_create(thread, NULL, cancel_it, c), 0));
}

static void done(void *arg)
{
	(void)arg;
	for (int i = 0; i < 500; i++) {
		pthread_t thread;
		ctx *parent = ctx_with_cancel(ctx_background());
		ctx *c = ctx_with_timeout(parent, 3600 * CTX_SECOND);
		cancel_from_thread(parent, &thread);
		errno = 0;
		cr_assert(eq(int, wait_done(c), -1));
		cr_assert(eq(int, errno, ECANCELED));
		pthread_join(thread, NULL);
		cr_assert(eq(int, wait_done(c), -1), "and again");
		ctx_end(c);
		ctx_end(parent);
	}
}

BOTH_WORLDS(done)

static void cancel_fiber(void *arg)
{
	ctx_cancel(arg);
}

static int woken;

static void wait_for_done(void *arg)
{
	wait_done(arg);
	woken++;
}

/* One fiber cancels what a thousand others of its loop wait for: the hooks run on this very stack. */
static void a_thousand_wait(void *arg)
{
	(void)arg;
	ctx *c = ctx_with_cancel(ctx_background());
	for (int i = 0; i < 1000; i++)
		loop_spawn(loop_current(), wait_for_done, c);
	loop_spawn(loop_current(), cancel_fiber, c);
	wait_done(c);
	while (loop_fibers(loop_current()) > 1)
		wait_sleep(ctx_background(), CTX_MILLISECOND);
	cr_assert(eq(int, woken, 1000));
	ctx_end(c);
}

Test(loop_wait, a_thousand_fibers_wait_for_one_context, .timeout = 60)
{
	in_fiber(a_thousand_wait, NULL);
}

/* ---- wait_sleep ------------------------------------------------------------------------------------------------ */

static void sleeps_long_enough(void *arg)
{
	static const int64_t times[] = {0, -5, 1, 1000, 100000, 1000000, 5000000, 20000000};
	(void)arg;
	for (size_t i = 0; i < sizeof(times) / sizeof(*times); i++) {
		int64_t begin = ctx_now();
		cr_assert(eq(int, wait_sleep(ctx_background(), times[i]), 0));
		int64_t slept = ctx_now() - begin;
		cr_assert(ge(i64, slept, times[i]));
		cr_assert(lt(i64, slept, times[i] + 5 * CTX_SECOND * support_patience()));
	}
}

BOTH_WORLDS(sleeps_long_enough)

static void sleep_ends_with_its_context(void *arg)
{
	pthread_t thread;
	(void)arg;
	ctx *c = ctx_with_cancel(ctx_background());
	cancel_from_thread(c, &thread);
	errno = 0;
	cr_assert(eq(int, wait_sleep(c, INT64_MAX), -1));
	cr_assert(eq(int, errno, ECANCELED));
	pthread_join(thread, NULL);
	cr_assert(eq(int, wait_sleep(c, 0), -1), "done before");
	ctx_end(c);

	c = ctx_with_timeout(ctx_background(), CTX_MILLISECOND);
	cr_assert(eq(int, wait_sleep(c, 3600 * CTX_SECOND), -1));
	cr_assert(eq(int, errno, ETIMEDOUT));
	ctx_end(c);

	fault_set(FAULT_MEMORY, 1);
	cr_assert(eq(int, wait_sleep(ctx_background(), 1000), -1));
	cr_assert(eq(int, errno, ENOMEM));
	cr_assert(fault_clear(FAULT_MEMORY));
}

BOTH_WORLDS(sleep_ends_with_its_context)

/* ---- wait_blocking --------------------------------------------------------------------------------------------- */

struct call {
	pthread_t thread;
	sem_t *begun, *release;
	bool ran;
};

static void be_called(void *arg)
{
	struct call *call = arg;
	call->thread = pthread_self();
	if (call->begun)
		sem_post(call->begun);
	if (call->release)
		while (sem_wait(call->release) != 0)
			;
	call->ran = true;
}

static void blocking_runs(void *arg)
{
	struct call call = {0};
	(void)arg;
	cr_assert(eq(int, wait_blocking(ctx_background(), be_called, &call), 0));
	cr_assert(call.ran);
	cr_assert(eq(int, pthread_equal(call.thread, pthread_self()) == 0, loop_on_fiber()));

	call.ran = false;
	ctx *c = ctx_with_cancel(ctx_background());
	ctx_cancel(c);
	errno = 0;
	cr_assert(eq(int, wait_blocking(c, be_called, &call), -1));
	cr_assert(eq(int, errno, ECANCELED));
	cr_assert_not(call.ran);
	ctx_end(c);
}

BOTH_WORLDS(blocking_runs)

static sem_t begun, release;
static wait_event blocker_over = WAIT_EVENT_INIT;

static void occupy_helper(void *arg)
{
	cr_expect(eq(int, wait_blocking(ctx_background(), be_called, arg), 0));
	wait_event_set(&blocker_over);
}

static void blocking_cancelled_before_it_began(void *arg)
{
	struct call blocker = {.begun = &begun, .release = &release}, call = {0};
	pthread_t thread;
	(void)arg;
	loop_spawn(loop_current(), occupy_helper, &blocker);
	while (sem_trywait(&begun) != 0)
		wait_sleep(ctx_background(), CTX_MILLISECOND);

	ctx *c = ctx_with_cancel(ctx_background());
	cancel_from_thread(c, &thread);
	errno = 0;
	cr_expect(eq(int, wait_blocking(c, be_called, &call), -1));
	cr_expect(eq(int, errno, ECANCELED));
	pthread_join(thread, NULL);
	ctx_end(c);

	sem_post(&release);
	wait_event_wait(NULL, &blocker_over);
	cr_expect(eq(int, wait_blocking(ctx_background(), be_called, &(struct call){0}), 0));
	cr_assert_not(call.ran, "nor later");
}

Test(loop_wait, blocking_cancelled_before_it_began_never_begins, .timeout = 60)
{
	setenv("UV_THREADPOOL_SIZE", "1", 1);
	sem_init(&begun, 0, 0);
	sem_init(&release, 0, 0);
	in_fiber(blocking_cancelled_before_it_began, NULL);
}

/* From a third thread: waits until fn has begun, cancels, and only then lets fn end. */
static ctx *cancelled_midway;

static void *cancel_midway(void *arg)
{
	(void)arg;
	while (sem_wait(&begun) != 0)
		;
	ctx_cancel(cancelled_midway);
	sem_post(&release);
	return NULL;
}

static void blocking_cancelled_midway(void *arg)
{
	(void)arg;
	for (int i = 0; i < 200; i++) {
		struct call call = {.begun = &begun, .release = &release};
		pthread_t thread;
		cancelled_midway = ctx_with_cancel(ctx_background());
		pthread_create(&thread, NULL, cancel_midway, NULL);
		cr_assert(eq(int, wait_blocking(cancelled_midway, be_called, &call), 0));
		cr_assert(call.ran);
		pthread_join(thread, NULL);
		ctx_end(cancelled_midway);
	}
}

Test(loop_wait, blocking_that_has_begun_is_waited_for, .timeout = 60)
{
	sem_init(&begun, 0, 0);
	sem_init(&release, 0, 0);
	in_fiber(blocking_cancelled_midway, NULL);
}

/* Cancelled at any moment: begun and ended, or never begun; nothing in between, and the stack is free to go. */
static void blocking_cancelled_any_time(void *arg)
{
	int began = 0;
	(void)arg;
	for (int i = 0; i < 2000; i++) {
		struct call call = {0};
		pthread_t thread;
		ctx *c = ctx_with_cancel(ctx_background());
		cancel_from_thread(c, &thread);
		int got = wait_blocking(c, be_called, &call);
		cr_assert(eq(int, got, call.ran ? 0 : -1));
		began += call.ran;
		pthread_join(thread, NULL);
		ctx_end(c);
	}
	cr_log_info("%d of 2000 began", began);
}

Test(loop_wait, blocking_cancelled_at_any_time, .timeout = 120)
{
	in_fiber(blocking_cancelled_any_time, NULL);
}
