/* Cancelling, and the tree it travels down. The names say what Go's own tests of its context package say. */
#include <criterion/criterion.h>
#include <malloc.h>
#include <pthread.h>
#include <stdatomic.h>

#include <tether/ctx.h>

#include "support.h"
#include "together.h"

static const ctx_error OVERSLEPT = {1, "overslept"};
static const ctx_key KEY = {.name = "key"};

/* Facts about the roots. */
static void is_a_root(ctx *root)
{
	int64_t deadline = 7;

	cr_assert_not_null(root);
	cr_assert_null(ctx_err(root));
	cr_assert_null(ctx_cause(root));
	cr_assert_not(ctx_deadline(root, &deadline));
	cr_assert_eq(deadline, 7, "an out-parameter is left alone where there is no answer");
	cr_assert_null(ctx_value(root, &KEY));

	ctx_cancel(root);
	ctx_cancel_cause(root, &OVERSLEPT);
	ctx_end(root);
	ctx_release(root);
	cr_assert_eq(ctx_retain(root), root);
	cr_assert_null(ctx_err(root), "nothing can end a root");
}

Test(ctx_cancel, background_is_never_done_and_has_no_deadline_and_no_values, .timeout = 60)
{
	is_a_root(ctx_background());
	cr_assert_eq(ctx_background(), ctx_background());
}

Test(ctx_cancel, todo_is_never_done_and_has_no_deadline_and_no_values, .timeout = 60)
{
	is_a_root(ctx_todo());
	cr_assert_neq(ctx_todo(), ctx_background());
}

Test(ctx_cancel, before_cancel_nothing_is_done, .timeout = 60)
{
	ctx_auto *c = ctx_with_cancel(ctx_background());

	cr_assert_not_null(c);
	cr_assert_null(ctx_err(c));
	cr_assert_null(ctx_cause(c));
}

Test(ctx_cancel, when_cancel_returns_the_wrappers_and_all_descendants_are_done, .timeout = 60)
{
	ctx_auto *c = ctx_with_cancel(ctx_background());
	ctx_auto *wrapper = ctx_with_value(c, &KEY, "value");
	ctx_auto *child = ctx_with_cancel(wrapper);
	ctx_auto *timer = ctx_with_timeout(child, 3600 * CTX_SECOND);
	ctx_auto *sibling = ctx_with_cancel(c);
	ctx_auto *leaf = ctx_with_value(timer, &KEY, "another");
	ctx *all[] = {c, wrapper, child, timer, sibling, leaf};

	ctx_cancel(c);
	for (size_t i = 0; i < sizeof all / sizeof all[0]; i++) {
		cr_assert_eq(ctx_err(all[i]), &CTX_CANCELED, "number %zu", i);
		cr_assert_eq(ctx_cause(all[i]), &CTX_CANCELED, "number %zu", i);
	}
}

/* The second canceller comes while the first is still marking: it too returns to a tree that is done. */
struct wide {
	ctx *top;
	ctx *children[2000];
	atomic_int alive;
};

static void cancel_and_look(void *arg, int index)
{
	struct wide *w = arg;

	(void)index;
	ctx_cancel(w->top);
	for (int i = 0; i < 2000; i++) {
		if (!ctx_err(w->children[i]))
			atomic_fetch_add(&w->alive, 1);
	}
}

Test(ctx_cancel, when_a_second_cancel_returns_the_descendants_are_done_as_well, .timeout = 120)
{
	for (int round = 0; round < 50; round++) {
		static struct wide w;

		w.top = ctx_with_cancel(ctx_background());
		for (int i = 0; i < 2000; i++)
			w.children[i] = ctx_with_cancel(w.top);
		together(2, cancel_and_look, &w);
		cr_assert_eq(w.alive, 0);
		for (int i = 0; i < 2000; i++)
			ctx_end(w.children[i]);
		ctx_end(w.top);
	}
}

Test(ctx_cancel, cancel_is_idempotent_and_err_is_the_same_for_ever, .timeout = 60)
{
	ctx_auto *c = ctx_with_cancel(ctx_background());

	ctx_cancel(c);
	ctx_cancel(c);
	ctx_cancel_cause(c, &OVERSLEPT);
	for (int i = 0; i < 3; i++) {
		cr_assert_eq(ctx_err(c), &CTX_CANCELED);
		cr_assert_eq(ctx_cause(c), &CTX_CANCELED);
	}
}

/* 100 nodes, fan-out 4: node i hangs on node (i - 1) / 4. */
static void cancel_one(void *arg, int index)
{
	ctx **nodes = arg;

	ctx_cancel(nodes[index]);
}

Test(ctx_cancel, a_tree_of_100_nodes_cancelled_from_all_nodes_at_once_does_not_deadlock, .timeout = 120)
{
	for (int round = 0; round < 10; round++) {
		ctx *nodes[100];

		nodes[0] = ctx_with_cancel(ctx_background());
		for (int i = 1; i < 100; i++)
			nodes[i] = ctx_with_cancel(nodes[(i - 1) / 4]);
		together(100, cancel_one, nodes);
		for (int i = 0; i < 100; i++)
			cr_assert_eq(ctx_err(nodes[i]), &CTX_CANCELED);
		for (int i = 0; i < 100; i++)
			ctx_end(nodes[i]);
	}
}

static void wait_and_cancel_child(void *arg, int index)
{
	ctx **parent_and_child = arg;

	if (index == 0) {
		ctx_cancel(parent_and_child[0]);
	} else {
		ctx_wait(parent_and_child[0]);
		ctx_cancel(parent_and_child[1]);
	}
}

Test(ctx_cancel, cancelling_the_child_from_a_watcher_of_the_parent_does_not_deadlock, .timeout = 120)
{
	for (int round = 0; round < 200; round++) {
		ctx *nodes[2];

		nodes[0] = ctx_with_cancel(ctx_background());
		nodes[1] = ctx_with_cancel(nodes[0]);
		together(2, wait_and_cancel_child, nodes);
		cr_assert_eq(ctx_err(nodes[1]), &CTX_CANCELED);
		ctx_end(nodes[1]);
		ctx_end(nodes[0]);
	}
}

static void cancel_from_the_hook(ctx_hook *h);

static struct {
	ctx_hook hook;
	ctx *child;
} watcher;

static void cancel_from_the_hook(ctx_hook *h)
{
	(void)h;
	ctx_cancel(watcher.child);
}

Test(ctx_cancel, cancelling_the_child_from_a_hook_of_the_parent_does_not_deadlock, .timeout = 60)
{
	ctx_auto *parent = ctx_with_cancel(ctx_background());
	ctx_auto *child = ctx_with_cancel(parent);

	watcher.child = child;
	ctx_hook_add(parent, &watcher.hook, cancel_from_the_hook);
	ctx_cancel(parent);
	cr_assert_eq(ctx_err(child), &CTX_CANCELED);
}

static void count(void *arg)
{
	atomic_fetch_add((atomic_int *)arg, 1);
}

static bool is_one(void *arg)
{
	return atomic_load((atomic_int *)arg) == 1;
}

Test(ctx_cancel, the_parents_end_ends_cancel_value_timer_and_after_func_children, .timeout = 60)
{
	static atomic_int ran;
	ctx *parent = ctx_with_cancel(ctx_background());
	ctx *cancel = ctx_with_cancel(parent);
	ctx *value = ctx_with_value(parent, &KEY, "value");
	ctx *timer = ctx_with_timeout(parent, 3600 * CTX_SECOND);
	ctx *below = ctx_with_timeout(value, 3600 * CTX_SECOND);

	cr_assert_not_null(ctx_after_func(parent, count, &ran));
	ctx_cancel(parent);
	cr_assert_eq(ctx_err(cancel), &CTX_CANCELED);
	cr_assert_eq(ctx_err(value), &CTX_CANCELED);
	cr_assert_eq(ctx_err(timer), &CTX_CANCELED);
	cr_assert_eq(ctx_err(below), &CTX_CANCELED);
	cr_assert(eventually(is_one, &ran, 10000));

	/* Its set of children is empty: they outlive what it had to do with them. */
	ctx_end(parent);
	ctx_end(below);
	ctx_end(timer);
	ctx_end(cancel);
	ctx_end(value);
}

Test(ctx_cancel, a_childs_cancel_never_touches_its_parent, .timeout = 60)
{
	ctx_auto *parent = ctx_with_cancel(ctx_background());
	ctx_auto *child = ctx_with_cancel(parent);
	ctx_auto *sibling = ctx_with_timeout(parent, 3600 * CTX_SECOND);
	ctx_auto *wrapper = ctx_with_value(parent, &KEY, "value");

	ctx_cancel(child);
	ctx_cancel(wrapper);
	cr_assert_eq(ctx_err(child), &CTX_CANCELED);
	cr_assert_null(ctx_err(parent));
	cr_assert_null(ctx_err(sibling));
	cr_assert_null(ctx_err(wrapper),
	               "a value has no end of its own, and its parent's is not its to bring");
}

/* A thousand children finish, one way or another, and are freed; then the parent is cancelled. */
static void outlive_children(bool cancelled_first, void (*give_back)(ctx *c))
{
	enum { CHILDREN = 1000 };
	ctx_auto *parent = ctx_with_cancel(ctx_background());
	ctx *children[CHILDREN];

	for (int i = 0; i < CHILDREN; i++)
		children[i] = i % 2 ? ctx_with_cancel(parent) : ctx_with_timeout(parent, 3600 * CTX_SECOND);
	for (int i = 0; i < CHILDREN; i++) {
		if (cancelled_first)
			ctx_cancel(children[i]);
		give_back(children[i]);
	}
	ctx_cancel(parent);
	cr_assert_eq(ctx_err(parent), &CTX_CANCELED);
}

/*
 * One that did not take itself off would be touched by the parent's cancel. What is freed is filled with rubbish here,
 * so that this shows without a sanitizer.
 */
Test(ctx_cancel, a_finished_child_unlinks_itself, .timeout = 30)
{
#ifdef M_PERTURB
	mallopt(M_PERTURB, 0xa5);
#endif
	outlive_children(false, ctx_end);
	outlive_children(false, ctx_release);
	outlive_children(true, ctx_end);
	outlive_children(true, ctx_release);
}

/* A parent that had to go through 20 000 children would take ten times as long. */
Test(ctx_cancel, a_finished_child_unlinks_itself_also_while_it_is_held, .timeout = 60)
{
	enum { CHILDREN = 20000 };
	static ctx *children[CHILDREN];
	int64_t best = INT64_MAX;

	for (int round = 0; round < 20; round++) {
		ctx_auto *parent = ctx_with_cancel(ctx_background());

		for (int i = 0; i < CHILDREN; i++) {
			children[i] = ctx_with_cancel(parent);
			ctx_cancel(children[i]);
		}

		int64_t begin = ctx_now();

		ctx_cancel(parent);

		int64_t took = ctx_now() - begin;

		best = took < best ? took : best;
		for (int i = 0; i < CHILDREN; i++)
			ctx_end(children[i]);
	}
	cr_assert_lt(best, support_patience() * 10000, "%ld ns", (long)best);
}

Test(ctx_cancel, a_child_of_a_cancelled_parent_is_born_done_with_its_err_and_cause, .timeout = 60)
{
	ctx_auto *parent = ctx_with_cancel(ctx_background());

	ctx_cancel_cause(parent, &OVERSLEPT);
	ctx_auto *cancel = ctx_with_cancel(parent);
	ctx_auto *timer = ctx_with_timeout(parent, CTX_SECOND);
	ctx_auto *late = ctx_with_timeout(parent, -CTX_SECOND);
	ctx_auto *value = ctx_with_value(parent, &KEY, "value");
	ctx_auto *below = ctx_with_cancel(value);
	ctx *all[] = {cancel, timer, late, value, below};

	for (size_t i = 0; i < sizeof all / sizeof all[0]; i++) {
		cr_assert_eq(ctx_err(all[i]), &CTX_CANCELED, "number %zu", i);
		cr_assert_eq(ctx_cause(all[i]), &OVERSLEPT, "number %zu", i);
	}
}

struct birth {
	ctx *parent;
	ctx *children[3];
};

static void derive_or_cancel(void *arg, int index)
{
	struct birth *b = arg;

	switch (index) {
	case 0:
		ctx_cancel(b->parent);
		break;
	case 1:
		b->children[0] = ctx_with_cancel(b->parent);
		b->children[1] = ctx_with_timeout(b->parent, 3600 * CTX_SECOND);
		break;
	default:
		b->children[2] = ctx_with_cancel(b->parent);
		break;
	}
}

Test(ctx_cancel, a_parents_cancel_racing_a_childs_creation_never_leaves_a_live_child, .timeout = 120)
{
	for (int round = 0; round < 1000; round++) {
		struct birth b = {.parent = ctx_with_cancel(ctx_background())};

		together(3, derive_or_cancel, &b);
		for (int i = 0; i < 3; i++) {
			cr_assert_eq(ctx_err(b.children[i]), &CTX_CANCELED);
			ctx_end(b.children[i]);
		}
		ctx_end(b.parent);
	}
}

/*
 * Whoever holds a child's lock must not take its parent's. One thread goes down from the top, one comes up from
 * the children, one derives between them.
 */
struct order {
	ctx *top, *middle, *bottom;
};

static void go_down_or_up(void *arg, int index)
{
	struct order *o = arg;
	ctx *child;

	switch (index) {
	case 0:
		ctx_cancel(o->top);
		break;
	case 1:
		ctx_cancel(o->bottom);
		ctx_cancel(o->middle);
		break;
	default:
		child = ctx_with_cancel(o->middle);
		ctx_end(ctx_with_cancel(child));
		ctx_end(child);
		break;
	}
}

Test(ctx_cancel, a_childs_lock_is_taken_under_its_parents_and_never_the_other_way, .timeout = 120)
{
	for (int round = 0; round < 1000; round++) {
		struct order o;

		o.top = ctx_with_cancel(ctx_background());
		o.middle = ctx_with_cancel(o.top);
		o.bottom = ctx_with_cancel(o.middle);
		together(3, go_down_or_up, &o);
		cr_assert_eq(ctx_err(o.bottom), &CTX_CANCELED);
		ctx_end(o.top);
		ctx_end(o.middle);
		ctx_end(o.bottom);
	}
}

Test(ctx_cancel, without_cancel_keeps_values_and_loses_deadline_end_and_cause, .timeout = 60)
{
	ctx_auto *value = ctx_with_value(ctx_background(), &KEY, "value");
	ctx_auto *parent = ctx_with_timeout(value, 3600 * CTX_SECOND);
	ctx_auto *c = ctx_without_cancel(parent);
	ctx_auto *below = ctx_with_cancel(c);

	ctx_cancel_cause(parent, &OVERSLEPT);
	ctx_cancel(c);
	cr_assert_null(ctx_err(c));
	cr_assert_null(ctx_cause(c));
	cr_assert_not(ctx_deadline(c, NULL));
	cr_assert_str_eq(ctx_value(c, &KEY), "value");
	cr_assert_null(ctx_err(below), "what is derived from it is cut off as well");
	ctx_cancel(below);
	cr_assert_eq(ctx_err(below), &CTX_CANCELED, "but has an end of its own");
}

Test(ctx_cancel, release_cancels_nothing, .timeout = 60)
{
	ctx *parent = ctx_with_cancel(ctx_background());
	ctx *child = ctx_with_cancel(parent);

	cr_assert_eq(ctx_retain(child), child);
	ctx_release(parent);
	ctx_release(child);
	cr_assert_null(ctx_err(child));
	ctx_end(child);
	ctx_release(NULL);
	ctx_end(NULL);
}

Test(ctx_cancel, end_cancels_for_those_who_still_hold_the_context, .timeout = 60)
{
	ctx *c = ctx_with_cancel(ctx_background());
	ctx *child = ctx_with_cancel(c);

	ctx_retain(child);
	ctx_end(child);
	cr_assert_eq(ctx_err(child), &CTX_CANCELED);
	ctx_release(child);

	child = ctx_with_timeout(c, CTX_SECOND);
	ctx_end(c);
	cr_assert_eq(ctx_err(child), &CTX_CANCELED, "a child holds its parent, and is ended with it");
	ctx_release(child);
}

Test(ctx_cancel, auto_ends_the_context_when_it_leaves_its_scope, .timeout = 60)
{
	ctx *kept;

	{
		ctx_auto *c = ctx_with_cancel(ctx_background());

		kept = ctx_retain(c);
		cr_assert_null(ctx_err(kept));
	}
	cr_assert_eq(ctx_err(kept), &CTX_CANCELED);
	ctx_release(kept);
	{
		ctx_auto *none = NULL;

		cr_assert_null(none, "as after a failed allocation");
	}
}

/* ---- Sizes ----------------------------------------------------------------------------------------------- */

Test(ctx_cancel, a_parent_may_have_100000_children, .timeout = 120)
{
	enum { CHILDREN = 100000 };
	static ctx *children[CHILDREN];
	ctx *parent = ctx_with_cancel(ctx_background());

	for (int i = 0; i < CHILDREN; i++)
		children[i] = i % 3 ? ctx_with_cancel(parent) : ctx_with_timeout(parent, 3600 * CTX_SECOND);
	/* Some leave first, from all over the ring. */
	for (int i = 0; i < CHILDREN; i += 5) {
		ctx_end(children[i]);
		children[i] = NULL;
	}

	int64_t begin = ctx_now();

	ctx_cancel(parent);

	int64_t took = ctx_now() - begin;

	for (int i = 0; i < CHILDREN; i++)
		cr_assert(!children[i] || ctx_err(children[i]) == &CTX_CANCELED);
	cr_assert_lt(took, support_patience() * 5 * CTX_SECOND,
	             "in a time that grows with their number, no more");
	ctx_end(parent);
	for (int i = CHILDREN - 1; i >= 0; i--)
		ctx_end(children[i]);
}

/* On a stack as small as a fiber's, which a recursion along the tree would not survive. */
static void *live_and_die_deep(void *arg)
{
	enum { DEPTH = 100000 };
	ctx *top = ctx_with_cancel(ctx_background());
	ctx *leaf = ctx_retain(top);

	for (int i = 0; i < DEPTH; i++) {
		ctx *child = i % 2 ? ctx_with_cancel(leaf) : ctx_with_value(leaf, &KEY, "value");

		ctx_release(leaf);
		leaf = child;
	}

	int length = ctx_string(leaf, NULL, 0);

	ctx_cancel(top);
	*(bool *)arg = ctx_err(leaf) == &CTX_CANCELED && length > DEPTH * 10;
	ctx_release(top);
	ctx_release(leaf); /* the only one that held them all */
	return NULL;
}

Test(ctx_cancel, a_tree_may_be_100000_deep_on_a_small_stack, .timeout = 120)
{
	pthread_attr_t attr;
	pthread_t thread;
	bool good = false;

	pthread_attr_init(&attr);
	cr_assert_eq(pthread_attr_setstacksize(&attr, 64 * 1024), 0);
	cr_assert_eq(pthread_create(&thread, &attr, live_and_die_deep, &good), 0);
	pthread_join(thread, NULL);
	cr_assert(good);
}
