/*
 * wait_done, wait_sleep and wait_blocking, on fibers and on threads: each ends when it should, and when its context
 * does. wait_event is in loop_wait_event.c, wait_fd in loop_wait_fd.c.
 */
#include <criterion/criterion.h>
#include <criterion/new/assert.h>
#include <errno.h>
#include <pthread.h>
#include <semaphore.h>
#include <stdlib.h>

#include "alloc_fault.h"
#include "loops.h"
#include "support.h"

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

TEST_BOTH_WAYS(loop_wait, done)
{
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

TEST_BOTH_WAYS(loop_wait, sleeps_long_enough)
{
	static const int64_t times[] = {0, -5, 1, 1000, 100000, 1000000, 5000000, 20000000};
	for (size_t i = 0; i < sizeof(times) / sizeof(*times); i++) {
		int64_t begin = ctx_now();
		cr_assert(eq(int, wait_sleep(ctx_background(), times[i]), 0));
		int64_t slept = ctx_now() - begin;
		cr_assert(ge(i64, slept, times[i]));
		cr_assert(lt(i64, slept, times[i] + 5 * CTX_SECOND * support_patience()));
	}
}

TEST_BOTH_WAYS(loop_wait, sleep_ends_with_its_context)
{
	pthread_t thread;
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

TEST_BOTH_WAYS(loop_wait, blocking_runs)
{
	struct call call = {0};
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
