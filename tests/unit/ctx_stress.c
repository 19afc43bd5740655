/*
 * Threads that derive, cancel, add and remove hooks, register and stop functions, retain, end and release in every
 * order on one tree, ten thousand trees in a row. There is little to assert: ThreadSanitizer, AddressSanitizer and
 * the time limit are who judges.
 */
#include <criterion/criterion.h>
#include <pthread.h>
#include <stdatomic.h>

#include <tether/ctx.h>

#include "support.h"
#include "together.h"

enum { THREADS = 3, ROUNDS = 10000, STEPS = 12, SLOTS = 6 };

static const ctx_key KEY = {.name = "key"};
static const ctx_error CAUSE = {1, "cause"};

typedef struct tree {
	pthread_barrier_t barrier;
	ctx *root;
	/* References in nobody's hands: whoever swaps one out has it. */
	_Atomic(ctx *) slots[SLOTS];
	atomic_int registered, ran;
	atomic_int hooked, unhooked, called;
	atomic_int lost; /* a child that lives though its root is cancelled */
} tree;

typedef struct counted_hook {
	ctx_hook hook;
	tree *tree;
} counted_hook;

static uint32_t next_random(uint32_t *state)
{
	*state = *state * 1664525 + 1013904223;
	return *state >> 16;
}

static ctx *take(tree *t, uint32_t random)
{
	ctx *c = atomic_exchange(&t->slots[random % SLOTS], NULL);

	return c ? c : ctx_retain(t->root);
}

static void put(tree *t, ctx *c, uint32_t random)
{
	ctx_release(atomic_exchange(&t->slots[random % SLOTS], c));
}

static ctx *derive(ctx *parent, uint32_t random)
{
	switch (random % 6) {
	case 0:
		return ctx_with_value(parent, &KEY, NULL);
	case 1:
		return ctx_with_timeout(parent, (int64_t)(random % 500) * 1000);
	case 2:
		return ctx_with_timeout_cause(parent, 3600 * CTX_SECOND, &CAUSE);
	case 3:
		return ctx_without_cancel(parent);
	default:
		return ctx_with_cancel(parent);
	}
}

static void called(ctx_hook *h)
{
	atomic_fetch_add(&((counted_hook *)h)->tree->called, 1);
}

static void ran(void *arg)
{
	atomic_fetch_add(&((tree *)arg)->ran, 1);
}

/* A reference to `c` is the caller's; the one returned as well. NULL if it was given up. */
static ctx *step(tree *t, ctx *c, uint32_t *random)
{
	uint32_t dice = next_random(random);
	counted_hook h = {.tree = t};
	ctx_after *a;
	ctx *child;

	switch (dice % 10) {
	case 0:
	case 1:
		child = derive(c, next_random(random));
		put(t, child, next_random(random));
		return c;
	case 2:
		ctx_cancel_cause(c, dice % 3 ? &CAUSE : NULL);
		return c;
	case 3:
		ctx_end(c);
		return NULL;
	case 4:
	case 5:
		atomic_fetch_add(&t->hooked, 1);
		ctx_hook_add(c, &h.hook, called);
		child = derive(c, next_random(random));
		if (dice % 4 == 0)
			ctx_cancel(child);
		ctx_end(child);
		if (ctx_hook_remove(c, &h.hook))
			atomic_fetch_add(&t->unhooked, 1);
		return c;
	case 6:
		a = ctx_after_func(c, ran, t);
		if (!ctx_after_stop(a))
			atomic_fetch_add(&t->registered, 1);
		return c;
	case 7:
		if (ctx_err(c) && !ctx_cause(c))
			atomic_fetch_add(&t->lost, 1);
		ctx_value(c, &KEY);
		return c;
	case 8:
		ctx_done_fd(c);
		return c;
	default:
		put(t, ctx_retain(c), next_random(random));
		return c;
	}
}

static void live(tree *t, uint32_t *random)
{
	for (int i = 0; i < STEPS; i++) {
		ctx *c = take(t, next_random(random));

		c = step(t, c, random);
		if (c)
			put(t, c, next_random(random));
	}
}

static void run(void *arg, int index)
{
	tree *t = arg;
	uint32_t random = 7 + (uint32_t)index;

	for (int round = 0; round < ROUNDS; round++) {
		if (index == 0)
			t->root = ctx_with_cancel(ctx_background());
		pthread_barrier_wait(&t->barrier);
		live(t, &random);
		/* Whoever is first here cancels under the feet of the others. */
		ctx *last = ctx_with_cancel(t->root);

		ctx_cancel(t->root);
		if (!ctx_err(last))
			atomic_fetch_add(&t->lost, 1);
		pthread_barrier_wait(&t->barrier);
		ctx_end(last);
		if (index == 0)
			ctx_end(t->root);
		for (int i = index; i < SLOTS; i += THREADS)
			ctx_end(atomic_exchange(&t->slots[i], NULL));
		pthread_barrier_wait(&t->barrier);
	}
}

static bool all_have_run(void *arg)
{
	tree *t = arg;

	return atomic_load(&t->ran) == atomic_load(&t->registered);
}

Test(ctx_stress, everything_at_once_on_one_tree_ten_thousand_times, .timeout = 600)
{
	static tree t;

	pthread_barrier_init(&t.barrier, NULL, THREADS);
	together(THREADS, run, &t);
	cr_assert_eq(t.lost, 0);
	cr_assert_gt(t.hooked, ROUNDS);
	cr_assert_eq(t.hooked, t.unhooked + t.called, "%d hooks: %d taken off, %d called", t.hooked,
	             t.unhooked, t.called);
	cr_assert(eventually(all_have_run, &t, 60000), "%d of %d functions ran", t.ran, t.registered);
}
