/* AfterFunc: functions that run on threads of their own once a context is done, unless stopped. */
#include <criterion/criterion.h>
#include <errno.h>
#include <pthread.h>
#include <semaphore.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

#include <tether/ctx.h>

#include "alloc_fault.h"
#include "support.h"
#include "together.h"
#include "under.h"

typedef struct probe {
	atomic_int ran;
	pthread_t thread;
	ctx *c; /* to be done when the function runs */
	atomic_bool early;
} probe;

static void note(void *arg)
{
	probe *p = arg;

	p->thread = pthread_self();
	if (p->c && !ctx_err(p->c))
		atomic_store(&p->early, true);
	atomic_fetch_add(&p->ran, 1);
}

static bool has_run(void *arg)
{
	return atomic_load(&((probe *)arg)->ran) > 0;
}

static bool runs(probe *p)
{
	return eventually(has_run, p, 20000);
}

Test(ctx_after, runs_once_after_a_cancel_on_a_thread_of_its_own, .timeout = 60)
{
	ctx_auto *c = ctx_with_cancel(ctx_background());
	static probe p;

	p.c = c;
	cr_assert_not_null(ctx_after_func(c, note, &p));
	cr_assert_eq(p.ran, 0);
	ctx_cancel(c);
	ctx_cancel(c);
	cr_assert(runs(&p));
	cr_assert_not(p.early);
	cr_assert_not(pthread_equal(p.thread, pthread_self()));

	/* Another, begun after it, shows that there was no second run. */
	static probe other;

	cr_assert_not_null(ctx_after_func(c, note, &other));
	cr_assert(runs(&other));
	cr_assert_eq(p.ran, 1);
}

Test(ctx_after, runs_after_a_timeout, .timeout = 60)
{
	ctx_auto *c = ctx_with_timeout(ctx_background(), CTX_MILLISECOND);
	static probe p;

	p.c = c;
	cr_assert_not_null(ctx_after_func(c, note, &p));
	cr_assert(runs(&p));
	cr_assert_not(p.early);
}

Test(ctx_after, runs_at_once_if_the_context_is_done, .timeout = 60)
{
	ctx_auto *c = ctx_with_cancel(ctx_background());
	static probe p;

	ctx_cancel(c);
	cr_assert_not_null(ctx_after_func(c, note, &p));
	cr_assert(runs(&p));
	cr_assert_not(pthread_equal(p.thread, pthread_self()));
}

Test(ctx_after, registrations_are_independent, .timeout = 60)
{
	ctx_auto *c = ctx_with_cancel(ctx_background());
	static probe first, second, stopped;

	cr_assert_not_null(ctx_after_func(c, note, &first));
	ctx_after *s = ctx_after_func(c, note, &stopped);
	cr_assert_not_null(ctx_after_func(c, note, &second));
	cr_assert(ctx_after_stop(s));
	ctx_cancel(c);
	cr_assert(runs(&first));
	cr_assert(runs(&second));
	cr_assert_eq(stopped.ran, 0);
}

Test(ctx_after, does_not_run_after_stop_which_is_true_once_and_false_ever_after, .timeout = 60)
{
	ctx_auto *c = ctx_with_cancel(ctx_background());
	static probe p, other;
	ctx_after *a = ctx_after_func(c, note, &p);

	cr_assert(ctx_after_stop(a));
	cr_assert_not(ctx_after_stop(a));
	/* This one has the place of the stopped one, and the old handle must not reach it. */
	ctx_after *b = ctx_after_func(c, note, &other);

	cr_assert_neq(a, b);
	cr_assert_not(ctx_after_stop(a));
	ctx_cancel(c);
	cr_assert(runs(&other));
	cr_assert_eq(p.ran, 0);
	cr_assert_not(ctx_after_stop(a));
	cr_assert_not(ctx_after_stop(b));
	cr_assert_not(ctx_after_stop(NULL));
}

Test(ctx_after, stop_is_false_once_the_context_is_done, .timeout = 60)
{
	for (int i = 0; i < 1000; i++) {
		ctx_auto *c = ctx_with_cancel(ctx_background());
		probe *p = calloc(1, sizeof *p);
		ctx_after *a = ctx_after_func(c, note, p);

		ctx_cancel(c);
		cr_assert_not(ctx_after_stop(a));
		cr_assert(runs(p));
		free(p);
	}
}

Test(ctx_after, under_a_root_never_runs_and_can_be_stopped, .timeout = 60)
{
	static probe p;
	ctx_after *a = ctx_after_func(ctx_background(), note, &p);

	cr_assert_not_null(a);
	cr_assert(ctx_after_stop(a));
	cr_assert_not(ctx_after_stop(a));
	cr_assert_eq(p.ran, 0);
}

/* ---- Blocking -------------------------------------------------------------------------------------------- */

typedef struct gate {
	sem_t entered, open;
	atomic_int left;
} gate;

static void pass(void *arg)
{
	gate *g = arg;

	sem_post(&g->entered);
	while (sem_wait(&g->open) != 0)
		;
	atomic_fetch_add(&g->left, 1);
}

static bool all_left(void *arg)
{
	return atomic_load(&((gate *)arg)->left) == 50;
}

/* Were cancel or stop to wait for the function, or one function for another, this would hang. */
Test(ctx_after, cancel_and_stop_never_wait_for_the_function_nor_one_function_for_another, .timeout = 60)
{
	ctx_auto *c = ctx_with_cancel(ctx_background());
	static gate g;
	ctx_after *a[50];

	sem_init(&g.entered, 0, 0);
	sem_init(&g.open, 0, 0);
	for (int i = 0; i < 50; i++)
		a[i] = ctx_after_func(c, pass, &g);
	ctx_cancel(c);
	for (int i = 0; i < 50; i++)
		cr_assert_not(ctx_after_stop(a[i]));
	/* All fifty are inside at the same time. */
	for (int i = 0; i < 50; i++) {
		while (sem_wait(&g.entered) != 0)
			;
	}
	cr_assert_eq(g.left, 0);
	for (int i = 0; i < 50; i++)
		sem_post(&g.open);
	cr_assert(eventually(all_left, &g, 20000));
}

static struct {
	ctx *c;
	ctx_after *a;
	atomic_int stopped, done;
} self;

static void stop_self(void *arg)
{
	(void)arg;
	atomic_store(&self.stopped, ctx_after_stop(self.a));
	ctx_cancel(self.c);
	atomic_store(&self.done, 1);
}

static bool self_done(void *arg)
{
	(void)arg;
	return atomic_load(&self.done);
}

Test(ctx_after, may_stop_itself_and_cancel_its_context_from_within, .timeout = 60)
{
	self.c = ctx_with_cancel(ctx_background());
	self.a = ctx_after_func(self.c, stop_self, NULL);
	ctx_cancel(self.c);
	cr_assert(eventually(self_done, NULL, 20000));
	cr_assert_eq(self.stopped, 0);
	ctx_end(self.c);
}

/* ---- What is left behind ----------------------------------------------------------------------------------- */

static void destroyed(void *value)
{
	atomic_fetch_add((atomic_int *)value, 1);
}

static bool is_two(void *arg)
{
	return atomic_load((atomic_int *)arg) == 2;
}

Test(ctx_after, a_stopped_or_finished_registration_lets_go_of_the_context, .timeout = 60)
{
	static const ctx_key key = {"key", destroyed};
	static atomic_int freed;
	static probe p;
	ctx *parent = ctx_with_cancel(ctx_background());
	ctx *stopped = ctx_with_value(parent, &key, &freed);
	ctx *finished = ctx_with_value(parent, &key, &freed);
	ctx_after *a = ctx_after_func(stopped, note, &p);

	cr_assert_not_null(ctx_after_func(finished, note, &p));
	ctx_release(stopped);
	ctx_release(finished);
	cr_assert_eq(freed, 0, "registrations hold their context");
	cr_assert(ctx_after_stop(a));
	cr_assert_eq(freed, 1);
	ctx_cancel(parent);
	cr_assert(eventually(is_two, &freed, 20000));
	cr_assert_eq(p.ran, 1);
	ctx_end(parent);
}

Test(ctx_after, registering_costs_no_thread_of_its_own, .timeout = 60)
{
	ctx_auto *c = ctx_with_cancel(ctx_background());
	static probe p;
	ctx_after *a[500];
	int before;

	a[0] = ctx_after_func(c, note, &p);
	before = support_threads();
	cr_assert_gt(before, 0);
	for (int i = 1; i < 500; i++)
		a[i] = ctx_after_func(c, note, &p);
	cr_assert_eq(support_threads(), before);
	for (int i = 0; i < 500; i++)
		cr_assert(ctx_after_stop(a[i]));
}

/* The handle's place is taken by another registration, under another context; the two must have nothing in common. */
Test(ctx_after, a_stopped_registration_is_off_its_context_before_its_place_is_taken, .timeout = 60)
{
	static probe stopped, stays, moved;
	ctx_auto *one = ctx_with_cancel(ctx_background());
	ctx_auto *two = ctx_with_cancel(ctx_background());
	ctx_after *a = ctx_after_func(one, note, &stopped);

	cr_assert_not_null(ctx_after_func(one, note, &stays));
	cr_assert(ctx_after_stop(a));
	moved.c = two;
	cr_assert_not_null(ctx_after_func(two, note, &moved));
	ctx_cancel(one);
	cr_assert(runs(&stays));
	cr_assert_eq(moved.ran, 0);
	ctx_cancel(two);
	cr_assert(runs(&moved));
	cr_assert_not(moved.early);
	cr_assert_eq(stopped.ran, 0);
}

static bool at_most(void *arg)
{
	return support_threads() <= *(int *)arg;
}

Test(ctx_after, helpers_that_are_not_needed_leave, .timeout = 60)
{
	static gate g;
	ctx_auto *c = ctx_with_cancel(ctx_background());
	int none = support_threads(), few = none + 8;

	sem_init(&g.entered, 0, 0);
	sem_init(&g.open, 0, 0);
	for (int i = 0; i < 50; i++)
		cr_assert_not_null(ctx_after_func(c, pass, &g));
	ctx_cancel(c);
	for (int i = 0; i < 50; i++) {
		while (sem_wait(&g.entered) != 0)
			;
	}
	cr_assert_geq(support_threads(), none + 50);
	for (int i = 0; i < 50; i++)
		sem_post(&g.open);
	cr_assert(eventually(at_most, &few, 1500), "most at once: %d threads", support_threads());
	cr_assert(eventually(at_most, &none, 20000), "and the rest after a while: %d threads",
	          support_threads());
}

/* ---- Races and failures -------------------------------------------------------------------------------------- */

struct contest {
	ctx *c;
	ctx_after *a;
	probe p;
	atomic_int stops;
};

static void cancel_or_stop(void *arg, int index)
{
	struct contest *r = arg;

	if (index == 0)
		ctx_cancel(r->c);
	else if (ctx_after_stop(r->a))
		atomic_fetch_add(&r->stops, 1);
}

Test(ctx_after, of_a_cancel_and_two_stops_at_once_exactly_one_wins, .timeout = 120)
{
	int stopped = 0;

	for (int round = 0; round < 1000; round++) {
		struct contest *r = calloc(1, sizeof *r);

		r->c = ctx_with_cancel(ctx_background());
		r->a = ctx_after_func(r->c, note, &r->p);
		together(3, cancel_or_stop, r);
		cr_assert_leq(r->stops, 1);
		if (r->stops == 0)
			cr_assert(runs(&r->p));
		else
			stopped++;
		ctx_end(r->c);
		cr_assert_eq(r->stops + r->p.ran, 1);
		free(r);
	}
	cr_log_info("stopped %d of 1000", stopped);
}

Test(ctx_after, without_a_thread_to_be_had_registering_fails_and_nothing_runs, .timeout = 60)
{
	ctx_auto *c = ctx_with_cancel(ctx_background());
	static probe p, q;

	fault_set(FAULT_THREAD, 1);
	errno = 0;
	cr_assert_null(ctx_after_func(c, note, &p));
	cr_assert_eq(errno, EAGAIN);
	cr_assert(fault_clear(FAULT_THREAD));
	cr_assert_not_null(ctx_after_func(c, note, &q));
	ctx_cancel(c);
	cr_assert(runs(&q));
	cr_assert_eq(p.ran, 0);
}

static bool all_ran(void *arg)
{
	return atomic_load(&((probe *)arg)->ran) == 100;
}

Test(ctx_after, without_further_threads_the_runs_take_turns_and_none_is_lost, .timeout = 60)
{
	ctx_auto *c = ctx_with_cancel(ctx_background());
	static probe p;

	for (int i = 0; i < 100; i++)
		cr_assert_not_null(ctx_after_func(c, note, &p));
	fault_set_always(FAULT_THREAD, true);
	ctx_cancel(c);
	cr_assert(eventually(all_ran, &p, 20000), "%d ran", p.ran);
	fault_clear(FAULT_THREAD);
}

Test(ctx_after, runs_in_a_forked_child_for_its_own_copy_of_the_context, .timeout = 60, .disabled = UNDER_TSAN)
{
	ctx_auto *c = ctx_with_cancel(ctx_background());
	ctx_auto *warm_up = ctx_with_cancel(ctx_background());
	static probe first, p;
	int status;

	/*
	 * A thread that is just starting may hold a lock of the allocator's, or of a sanitizer's, which a child forked at
	 * that moment would find held for ever. Once it has run a function it holds none.
	 */
	cr_assert_not_null(ctx_after_func(warm_up, note, &first));
	ctx_cancel(warm_up);
	cr_assert(runs(&first));
	cr_assert_not_null(ctx_after_func(c, note, &p));

	pid_t pid = fork();

	cr_assert_geq(pid, 0);
	if (pid == 0) {
		alarm(30);
		ctx_cancel(c);
		_exit(runs(&p) ? 0 : 1);
	}
	cr_assert_eq(waitpid(pid, &status, 0), pid);
	cr_assert(WIFEXITED(status) && WEXITSTATUS(status) == 0);
	cr_assert_eq(p.ran, 0);
}
