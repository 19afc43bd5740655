/* Hooks: called on the thread that ends the context, or taken off before, and never between the two. */
#include <criterion/criterion.h>
#include <pthread.h>
#include <semaphore.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include <tether/ctx.h>

#include "alloc_fault.h"
#include "support.h"
#include "together.h"

typedef struct probe {
	ctx_hook hook;
	atomic_int ran;
	pthread_t thread;
	ctx *c;
	bool done, removed;
	int turn;
} probe;

static int turns;

static void note(ctx_hook *h)
{
	probe *p = (probe *)h;

	p->thread = pthread_self();
	p->done = p->c && ctx_err(p->c);
	p->turn = ++turns;
	atomic_fetch_add(&p->ran, 1);
}

static void cancel(void *arg, int index)
{
	(void)index;
	ctx_cancel(arg);
}

Test(ctx_hook, runs_once_on_the_cancelling_thread_when_the_context_is_done, .timeout = 60)
{
	ctx_auto *c = ctx_with_cancel(ctx_background());
	ctx_auto *child = ctx_with_cancel(c);
	probe p = {.c = child};

	ctx_hook_add(c, &p.hook, note);
	cr_assert_eq(p.ran, 0);
	ctx_cancel(c);
	ctx_cancel(c);
	cr_assert_eq(p.ran, 1);
	cr_assert(pthread_equal(p.thread, pthread_self()));
	cr_assert(p.done, "descendants are done before hooks run");
	cr_assert_not(ctx_hook_remove(c, &p.hook));

	ctx_auto *other = ctx_with_cancel(ctx_background());
	probe q = {.c = other};

	ctx_hook_add(other, &q.hook, note);
	together(1, cancel, other);
	cr_assert_eq(q.ran, 1);
	cr_assert_not(pthread_equal(q.thread, pthread_self()));
}

Test(ctx_hook, runs_in_the_order_added, .timeout = 60)
{
	ctx_auto *c = ctx_with_cancel(ctx_background());
	probe p[10] = {0};

	for (int i = 0; i < 10; i++)
		ctx_hook_add(c, &p[i].hook, note);
	cr_assert(ctx_hook_remove(c, &p[0].hook));
	cr_assert(ctx_hook_remove(c, &p[4].hook));
	cr_assert(ctx_hook_remove(c, &p[9].hook));
	ctx_hook_add(c, &p[4].hook, note);
	ctx_cancel(c);
	static const int expected[10] = {0, 1, 2, 3, 8, 4, 5, 6, 7, 0};

	for (int i = 0; i < 10; i++)
		cr_assert_eq(p[i].turn, expected[i], "hook %d ran as number %d", i, p[i].turn);
}

Test(ctx_hook, runs_within_add_if_the_context_is_done, .timeout = 60)
{
	ctx_auto *c = ctx_with_cancel(ctx_background());
	probe p = {.c = c};

	ctx_cancel(c);
	ctx_hook_add(c, &p.hook, note);
	cr_assert_eq(p.ran, 1);
	cr_assert_not(ctx_hook_remove(c, &p.hook));
}

Test(ctx_hook, removed_does_not_run, .timeout = 60)
{
	ctx_auto *c = ctx_with_cancel(ctx_background());
	probe p = {.c = c};

	ctx_hook_add(c, &p.hook, note);
	cr_assert(ctx_hook_remove(c, &p.hook));
	cr_assert_not(ctx_hook_remove(c, &p.hook));
	ctx_cancel(c);
	cr_assert_eq(p.ran, 0);
}

Test(ctx_hook, of_a_descendant_runs_when_the_ancestor_ends, .timeout = 60)
{
	static const ctx_key key = {.name = "key"};
	ctx_auto *c = ctx_with_cancel(ctx_background());
	ctx_auto *value = ctx_with_value(c, &key, NULL);
	ctx_auto *child = ctx_with_timeout(value, 3600 * CTX_SECOND);
	probe on_value = {0}, on_child = {0};

	ctx_hook_add(value, &on_value.hook, note);
	ctx_hook_add(child, &on_child.hook, note);
	ctx_cancel(c);
	cr_assert_eq(on_value.ran, 1);
	cr_assert_eq(on_child.ran, 1);
}

Test(ctx_hook, of_a_root_never_runs_and_can_be_removed_once, .timeout = 60)
{
	ctx *roots[] = {ctx_background(), ctx_todo(), ctx_without_cancel(ctx_background())};

	for (int i = 0; i < 3; i++) {
		probe p = {0};

		ctx_hook_add(roots[i], &p.hook, note);
		cr_assert(ctx_hook_remove(roots[i], &p.hook));
		cr_assert_not(ctx_hook_remove(roots[i], &p.hook));
		ctx_end(roots[i]);
	}
}

/* One tree drives another: in Go's test it is a context type of its own that does. */
struct driver {
	ctx_hook hook;
	ctx *driven;
};

static void drive(ctx_hook *h)
{
	ctx_cancel(((struct driver *)h)->driven);
}

Test(ctx_hook, passes_the_end_of_a_foreign_context_on_to_native_children, .timeout = 60)
{
	ctx_auto *foreign = ctx_with_cancel(ctx_background());
	ctx_auto *driven = ctx_with_cancel(ctx_background());
	ctx_auto *native = ctx_with_timeout(driven, 3600 * CTX_SECOND);
	struct driver driver = {.driven = driven};

	ctx_hook_add(foreign, &driver.hook, drive);
	ctx_cancel(foreign);
	cr_assert_eq(ctx_err(native), &CTX_CANCELED);
}

Test(ctx_hook, costs_no_allocation, .timeout = 60)
{
	ctx_auto *c = ctx_with_cancel(ctx_background());
	probe p = {0};
	unsigned long before = fault_calls(FAULT_MEMORY);

	ctx_hook_add(c, &p.hook, note);
	ctx_hook_remove(c, &p.hook);
	ctx_hook_add(c, &p.hook, note);
	ctx_cancel(c);
	ctx_hook_add(c, &p.hook, note);
	cr_assert_eq(p.ran, 2);
	cr_assert_eq(fault_calls(FAULT_MEMORY), before);
}

/* ---- From within ------------------------------------------------------------------------------------------ */

static void remove_self(ctx_hook *h)
{
	probe *p = (probe *)h;

	p->removed = ctx_hook_remove(p->c, h);
	atomic_fetch_add(&p->ran, 1);
}

Test(ctx_hook, may_remove_itself_from_within, .timeout = 60)
{
	ctx_auto *c = ctx_with_cancel(ctx_background());
	probe p = {.c = c, .removed = true};

	ctx_hook_add(c, &p.hook, remove_self);
	ctx_cancel(c);
	cr_assert_eq(p.ran, 1);
	cr_assert_not(p.removed);
}

static probe *victim;

static void remove_other(ctx_hook *h)
{
	probe *p = (probe *)h;

	p->removed = ctx_hook_remove(p->c, &victim->hook);
}

Test(ctx_hook, may_remove_another_that_is_still_to_run, .timeout = 60)
{
	ctx_auto *c = ctx_with_cancel(ctx_background());
	probe first = {.c = c}, second = {.c = c};

	victim = &second;
	ctx_hook_add(c, &first.hook, remove_other);
	ctx_hook_add(c, &second.hook, note);
	ctx_cancel(c);
	cr_assert(first.removed);
	cr_assert_eq(second.ran, 0);
}

static void free_self(ctx_hook *h)
{
	probe *p = (probe *)h;
	ctx *c = p->c;

	free(p);
	ctx_release(c);
}

Test(ctx_hook, may_free_itself_and_give_back_its_reference_from_within, .timeout = 60)
{
	ctx *parent = ctx_with_cancel(ctx_background());
	probe *p = calloc(1, sizeof *p);

	p->c = ctx_with_cancel(parent); /* the hook has the only reference */
	ctx_hook_add(p->c, &p->hook, free_self);
	ctx_cancel(parent);
	ctx_end(parent);
}

static void derive_and_end(ctx_hook *h)
{
	probe *p = (probe *)h;
	ctx *born_done = ctx_with_timeout(p->c, CTX_SECOND);

	p->done = ctx_err(born_done) == &CTX_CANCELED;
	ctx_end(born_done);
	ctx_cancel(p->c);
}

Test(ctx_hook, holds_no_lock_while_it_runs, .timeout = 60)
{
	ctx_auto *parent = ctx_with_cancel(ctx_background());
	ctx_auto *c = ctx_with_cancel(parent);
	probe p = {.c = c}, q = {.c = parent};

	ctx_hook_add(c, &p.hook, derive_and_end);
	ctx_hook_add(parent, &q.hook, derive_and_end);
	ctx_cancel(parent);
	cr_assert(p.done);
	cr_assert(q.done);
}

/* ---- Races ------------------------------------------------------------------------------------------------ */

static struct slow {
	ctx_hook hook;
	ctx *c;
	sem_t entered, leave;
	atomic_int left;
	bool removed;
	int left_when_removed;
} slow;

static void wait_to_leave(ctx_hook *h)
{
	(void)h;
	sem_post(&slow.entered);
	while (sem_wait(&slow.leave) != 0)
		;
	atomic_store(&slow.left, 1);
}

static void *remove_slow(void *arg)
{
	slow.removed = ctx_hook_remove(slow.c, &slow.hook);
	slow.left_when_removed = atomic_load(&slow.left);
	return arg;
}

static void *cancel_slow(void *arg)
{
	ctx_cancel(slow.c);
	return arg;
}

/* Whether a thread of this process sleeps in a futex, as the remover does once it waits. */
static bool remover_sleeps(void *arg)
{
	char path[64], state = '?';
	FILE *f;

	snprintf(path, sizeof path, "/proc/self/task/%d/stat", *(int *)arg);
	f = fopen(path, "r");
	if (f) {
		if (fscanf(f, "%*d (%*[^)]) %c", &state) != 1)
			state = '?';
		fclose(f);
	}
	return state == 'S';
}

static atomic_int remover_tid;

static void *remove_slow_with_tid(void *arg)
{
	atomic_store(&remover_tid, gettid());
	return remove_slow(arg);
}

Test(ctx_hook, remove_waits_for_a_run_on_another_thread, .timeout = 60)
{
	pthread_t canceller, remover;

	sem_init(&slow.entered, 0, 0);
	sem_init(&slow.leave, 0, 0);
	slow.c = ctx_with_cancel(ctx_background());
	ctx_hook_add(slow.c, &slow.hook, wait_to_leave);
	pthread_create(&canceller, NULL, cancel_slow, NULL);
	while (sem_wait(&slow.entered) != 0)
		;
	pthread_create(&remover, NULL, remove_slow_with_tid, NULL);
	while (!atomic_load(&remover_tid))
		;
	int tid = remover_tid;

	cr_assert(eventually(remover_sleeps, &tid, 20000));
	sem_post(&slow.leave);
	pthread_join(remover, NULL);
	pthread_join(canceller, NULL);
	cr_assert_not(slow.removed);
	cr_assert_eq(slow.left_when_removed, 1);
	ctx_end(slow.c);
}

static void *release_slow_with_tid(void *arg)
{
	atomic_store(&remover_tid, gettid());
	ctx_release(slow.c);
	slow.left_when_removed = atomic_load(&slow.left);
	return arg;
}

static void *cancel_parent(void *arg)
{
	ctx_cancel(arg);
	return arg;
}

/* The context must not be gone while its hook runs, nor go after who gave back the last reference has gone on. */
Test(ctx_hook, giving_back_the_last_reference_waits_for_a_run_on_another_thread, .timeout = 60)
{
	ctx_auto *parent = ctx_with_cancel(ctx_background());
	pthread_t canceller, releaser;

	sem_init(&slow.entered, 0, 0);
	sem_init(&slow.leave, 0, 0);
	slow.c = ctx_with_cancel(parent);
	ctx_hook_add(slow.c, &slow.hook, wait_to_leave);
	pthread_create(&canceller, NULL, cancel_parent, parent);
	while (sem_wait(&slow.entered) != 0)
		;
	pthread_create(&releaser, NULL, release_slow_with_tid, NULL);
	while (!atomic_load(&remover_tid))
		;
	int tid = remover_tid;

	cr_assert(eventually(remover_sleeps, &tid, 20000));
	sem_post(&slow.leave);
	pthread_join(releaser, NULL);
	pthread_join(canceller, NULL);
	cr_assert_eq(slow.left_when_removed, 1);
}

/*
 * Two threads, each in a hook of one context, each giving back the last reference to the other's: were they to wait,
 * it would be for each other.
 */
static struct crossing {
	struct crossing_side {
		ctx_hook hook;
		ctx *parent, *c;
	} side[2];
	pthread_barrier_t both_inside;
	atomic_int destroyed;
} crossing;

static void release_the_others(ctx_hook *h)
{
	struct crossing_side *mine = (struct crossing_side *)h;
	struct crossing_side *other = mine == &crossing.side[0] ? &crossing.side[1] : &crossing.side[0];

	pthread_barrier_wait(&crossing.both_inside);
	ctx_release(other->c);
}

static void cancel_side(void *arg, int index)
{
	(void)arg;
	ctx_cancel(crossing.side[index].parent);
}

static void count_destroyed(void *value)
{
	(void)value;
	atomic_fetch_add(&crossing.destroyed, 1);
}

Test(ctx_hook, giving_back_a_last_reference_from_within_a_hook_does_not_wait, .timeout = 60)
{
	static const ctx_key key = {"key", count_destroyed};

	pthread_barrier_init(&crossing.both_inside, NULL, 2);
	for (int i = 0; i < 2; i++) {
		struct crossing_side *side = &crossing.side[i];

		side->parent = ctx_with_cancel(ctx_background());
		ctx *value = ctx_with_value(side->parent, &key, NULL);

		side->c = ctx_with_cancel(value);
		ctx_release(value);
		ctx_hook_add(side->c, &side->hook, release_the_others);
	}
	together(2, cancel_side, NULL);
	cr_assert_eq(crossing.destroyed, 2, "each was left to the other, and not forgotten");
	ctx_end(crossing.side[0].parent);
	ctx_end(crossing.side[1].parent);
}

static void end_of_own(ctx_hook *h)
{
	ctx_release(((probe *)h)->c);
}

Test(ctx_hook, added_to_a_context_that_is_done_may_give_back_its_last_reference, .timeout = 60)
{
	static const ctx_key key = {"key", count_destroyed};
	ctx *value = ctx_with_value(ctx_background(), &key, NULL);
	probe p = {.c = ctx_with_timeout(value, 0)};

	ctx_release(value);
	ctx_hook_add(p.c, &p.hook, end_of_own);
	cr_assert_eq(crossing.destroyed, 1);
}

/* The remover frees the hook as soon as it may: AddressSanitizer and ThreadSanitizer see whether that is too soon. */
struct duel {
	ctx *c;
	probe *p;
	atomic_int removed;
	int ran;
};

static void cancel_or_remove(void *arg, int index)
{
	struct duel *d = arg;

	if (index == 0) {
		ctx_cancel(d->c);
		return;
	}
	if (ctx_hook_remove(d->c, &d->p->hook))
		atomic_fetch_add(&d->removed, 1);
	d->ran = d->p->ran;
	free(d->p);
}

Test(ctx_hook, of_a_cancel_and_a_remove_at_once_exactly_one_wins, .timeout = 120)
{
	for (int round = 0; round < 2000; round++) {
		struct duel d = {.c = ctx_with_cancel(ctx_background()), .p = calloc(1, sizeof *d.p)};

		ctx_hook_add(d.c, &d.p->hook, note);
		together(2, cancel_or_remove, &d);
		cr_assert_eq(d.removed + d.ran, 1);
		ctx_end(d.c);
	}
}

static void add_or_cancel(void *arg, int index)
{
	struct duel *d = arg;

	if (index == 0)
		ctx_cancel(d->c);
	else
		ctx_hook_add(d->c, &d->p->hook, note);
}

Test(ctx_hook, added_while_the_context_ends_runs_exactly_once, .timeout = 120)
{
	for (int round = 0; round < 2000; round++) {
		probe p = {0};
		struct duel d = {.c = ctx_with_cancel(ctx_background()), .p = &p};

		together(2, add_or_cancel, &d);
		ctx_hook_remove(d.c, &p.hook);
		cr_assert_eq(p.ran, 1);
		ctx_end(d.c);
	}
}
