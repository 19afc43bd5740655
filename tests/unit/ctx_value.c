/* Values, alone and between thirty layers of contexts that end. */
#include <criterion/criterion.h>
#include <stdatomic.h>
#include <stdlib.h>

#include <tether/ctx.h>

#include "support.h"

static const ctx_key USER = {.name = "name"};
static const ctx_key NAMESAKE = {.name = "name"};
static const ctx_key OTHER = {.name = "other"};

Test(ctx_value, the_nearest_one_wins, .timeout = 60)
{
	ctx_auto *far = ctx_with_value(ctx_background(), &USER, "far");
	ctx_auto *between = ctx_with_cancel(far);
	ctx_auto *near = ctx_with_value(between, &USER, "near");
	ctx_auto *leaf = ctx_with_timeout(near, 3600 * CTX_SECOND);

	cr_assert_str_eq(ctx_value(far, &USER), "far");
	cr_assert_str_eq(ctx_value(between, &USER), "far");
	cr_assert_str_eq(ctx_value(near, &USER), "near");
	cr_assert_str_eq(ctx_value(leaf, &USER), "near");
}

Test(ctx_value, a_key_is_its_address_not_its_name, .timeout = 60)
{
	ctx_auto *c = ctx_with_value(ctx_background(), &USER, "user");
	ctx_auto *both = ctx_with_value(c, &NAMESAKE, "namesake");

	cr_assert_null(ctx_value(c, &NAMESAKE));
	cr_assert_str_eq(ctx_value(both, &NAMESAKE), "namesake");
	cr_assert_str_eq(ctx_value(both, &USER), "user");
	cr_assert_null(ctx_value(both, &OTHER));
	cr_assert_null(ctx_value(both, NULL));
}

Test(ctx_value, a_null_value_shadows, .timeout = 60)
{
	ctx_auto *c = ctx_with_value(ctx_background(), &USER, "user");
	ctx_auto *nobody = ctx_with_value(c, &USER, NULL);

	cr_assert_null(ctx_value(nobody, &USER));
	cr_assert_str_eq(ctx_value(c, &USER), "user");
}

Test(ctx_value, stays_readable_after_the_end, .timeout = 60)
{
	ctx_auto *c = ctx_with_cancel(ctx_background());
	ctx_auto *value = ctx_with_value(c, &USER, "user");
	ctx_auto *leaf = ctx_with_cancel(value);

	ctx_cancel(c);
	cr_assert_str_eq(ctx_value(leaf, &USER), "user");
}

static int destroyed;

static void destroy(void *value)
{
	(void)value;
	destroyed++;
}

Test(ctx_value, is_destroyed_with_the_last_reference_to_its_context, .timeout = 60)
{
	static const ctx_key owned = {"owned", destroy};
	ctx *c = ctx_with_value(ctx_background(), &owned, "one");
	ctx *null = ctx_with_value(c, &owned, NULL);
	ctx *leaf = ctx_with_timeout(null, 3600 * CTX_SECOND);

	ctx_end(c);
	ctx_end(null);
	cr_assert_eq(destroyed, 0, "the leaf holds them all");
	ctx_end(leaf);
	cr_assert_eq(destroyed, 2, "NULL is a value too");
}

static void count_atomically(void *value)
{
	atomic_fetch_add((atomic_int *)value, 1);
}

static void do_nothing(ctx_hook *h)
{
	(void)h;
}

/*
 * Were the thread that ends a context to hold a reference meanwhile, the last one given back by its owner would not
 * be the last, and the value would be destroyed later, on a thread that knows nothing of it.
 */
Test(ctx_value, is_destroyed_before_the_last_reference_is_given_back_also_in_the_moment_of_expiry,
     .timeout = 120)
{
	static const ctx_key owned = {"owned", count_atomically};

	/* This thread has run a hook before. */
	ctx *c = ctx_with_cancel(ctx_background());
	ctx_hook hook;

	ctx_hook_add(c, &hook, do_nothing);
	ctx_end(c);

	for (int i = 0; i < 5000; i++) {
		atomic_int freed = 0;
		ctx *value = ctx_with_value(ctx_background(), &owned, &freed);
		ctx *timer = ctx_with_timeout(value, 20000);

		ctx_release(value);
		while (i % 2 && !ctx_err(timer))
			;
		if (i % 4 < 2)
			ctx_end(timer);
		else
			ctx_release(timer);
		cr_assert_eq(freed, 1, "round %d", i);
	}
}

/* ---- Thirty layers ------------------------------------------------------------------------------------------- */

enum { LAYERS = 30 };

struct layers {
	ctx *c[3 * LAYERS + 2];
	int n;
	ctx *cancels[LAYERS];
	int n_cancels;
	ctx_key keys[LAYERS];
	int n_values;
	bool with_deadline;
};

static uint32_t next_random(uint32_t *state)
{
	*state = *state * 1664525 + 1013904223;
	return *state >> 16;
}

static ctx *push(struct layers *l, ctx *c)
{
	cr_assert_not_null(c);
	l->c[l->n++] = c;
	return c;
}

/* A random pile of values, cancels and deadlines far away; the last cancel is one that may time out. */
static struct layers *build(uint32_t seed, int64_t timeout)
{
	struct layers *l = calloc(1, sizeof *l);
	ctx *c = ctx_background();

	cr_assert_not_null(l);
	for (int i = 0; i < LAYERS; i++) {
		switch (next_random(&seed) % 3) {
		case 0:
			c = push(l, ctx_with_value(c, &l->keys[l->n_values], &l->keys[l->n_values]));
			l->n_values++;
			break;
		case 1:
			c = l->cancels[l->n_cancels++] = push(l, ctx_with_cancel(c));
			break;
		default:
			c = l->cancels[l->n_cancels++] = push(l, ctx_with_timeout(c, 3600 * CTX_SECOND));
			l->with_deadline = true;
			break;
		}
	}
	if (timeout)
		l->cancels[l->n_cancels++] = push(l, ctx_with_timeout(c, timeout));
	else
		l->cancels[l->n_cancels++] = push(l, ctx_with_cancel(c));
	return l;
}

static void all_values_are_there(const struct layers *l, uint32_t seed)
{
	ctx *leaf = l->c[l->n - 1];

	for (int i = 0; i < l->n_values; i++)
		cr_assert_eq(ctx_value(leaf, &l->keys[i]), &l->keys[i], "seed %u, key %d", seed, i);
}

static void tear_down(struct layers *l, uint32_t seed)
{
	if (seed % 2) {
		for (int i = 0; i < l->n; i++)
			ctx_end(l->c[i]);
	} else {
		while (l->n > 0)
			ctx_end(l->c[--l->n]);
	}
	free(l);
}

Test(ctx_value, is_found_through_30_random_layers_that_are_cancelled, .timeout = 60)
{
	for (uint32_t seed = 1; seed <= 200; seed++) {
		struct layers *l = build(seed, 0);
		ctx *leaf = l->c[l->n - 1];

		cr_assert_null(ctx_err(leaf));
		cr_assert_eq(ctx_deadline(leaf, NULL), l->with_deadline);
		all_values_are_there(l, seed);
		ctx_cancel(l->cancels[next_random(&seed) % (uint32_t)l->n_cancels]);
		cr_assert_eq(ctx_err(leaf), &CTX_CANCELED, "seed %u", seed);
		all_values_are_there(l, seed);
		tear_down(l, seed);
	}
}

Test(ctx_value, is_found_through_30_random_layers_that_time_out, .timeout = 60)
{
	for (uint32_t seed = 1; seed <= 50; seed++) {
		struct layers *l = build(seed, 2 * CTX_MILLISECOND);
		ctx *leaf = l->c[l->n - 1];

		cr_assert(ctx_deadline(leaf, NULL));
		cr_assert_eq(ctx_wait(leaf), &CTX_DEADLINE_EXCEEDED, "seed %u", seed);
		all_values_are_there(l, seed);
		tear_down(l, seed);
	}
}
