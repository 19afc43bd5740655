/* What contexts cost, and what happens when it cannot be had: every allocation of every call is made to fail. */
#include <criterion/criterion.h>
#include <errno.h>
#include <signal.h>
#include <stdatomic.h>

#include <tether/ctx.h>

#include "alloc_fault.h"
#include "support.h"

static const ctx_key KEY = {.name = "key"};
static const ctx_error CAUSE = {1, "cause"};

/* ---- Every way to derive ------------------------------------------------------------------------------------ */

static ctx *with_cancel(ctx *parent)
{
	return ctx_with_cancel(parent);
}

static ctx *with_deadline(ctx *parent)
{
	return ctx_with_deadline(parent, ctx_now() + 3600 * CTX_SECOND);
}

static ctx *with_timeout(ctx *parent)
{
	return ctx_with_timeout(parent, 3600 * CTX_SECOND);
}

static ctx *with_deadline_cause(ctx *parent)
{
	return ctx_with_deadline_cause(parent, ctx_now() + 3600 * CTX_SECOND, &CAUSE);
}

static ctx *with_timeout_cause(ctx *parent)
{
	return ctx_with_timeout_cause(parent, 3600 * CTX_SECOND, &CAUSE);
}

static ctx *with_timeout_past(ctx *parent)
{
	return ctx_with_timeout(parent, -1);
}

static int destroyed;

static void destroy(void *value)
{
	(void)value;
	destroyed++;
}

static ctx *with_value(ctx *parent)
{
	static const ctx_key key = {"key", destroy};

	return ctx_with_value(parent, &key, NULL);
}

static ctx *without_cancel(ctx *parent)
{
	return ctx_without_cancel(parent);
}

static ctx *with_signals(ctx *parent)
{
	static const int signo = SIGUSR1;

	return ctx_with_signals(parent, &signo, 1);
}

static const struct {
	const char *name;
	ctx *(*derive)(ctx *parent);
} ways[] = {
	{"with_cancel", with_cancel},
	{"with_deadline", with_deadline},
	{"with_timeout", with_timeout},
	{"with_deadline_cause", with_deadline_cause},
	{"with_timeout_cause", with_timeout_cause},
	{"with_timeout, past", with_timeout_past},
	{"with_value", with_value},
	{"without_cancel", without_cancel},
	{"with_signals", with_signals},
};

enum { WAYS = sizeof ways / sizeof ways[0] };

Test(ctx_memory, a_context_of_any_kind_is_one_allocation, .timeout = 60)
{
	ctx_auto *parent = ctx_with_cancel(ctx_background());

	/* What the process starts once, with its first deadline and its first signal. */
	for (int i = 0; i < WAYS; i++)
		ctx_end(ways[i].derive(parent));
	for (int i = 0; i < WAYS; i++) {
		unsigned long before = fault_calls(FAULT_MEMORY);
		ctx *c = ways[i].derive(parent);

		cr_assert_eq(fault_calls(FAULT_MEMORY) - before, 1, "%s", ways[i].name);
		ctx_cancel(c);
		ctx_end(c);
		cr_assert_eq(fault_calls(FAULT_MEMORY) - before, 1, "%s, ended", ways[i].name);
	}
}

Test(ctx_memory, asking_cancelling_and_waiting_allocate_nothing, .timeout = 60)
{
	ctx_auto *c = ctx_with_timeout(ctx_background(), 3600 * CTX_SECOND);
	ctx_auto *value = ctx_with_value(c, &KEY, NULL);
	char text[256];
	unsigned long before = fault_calls(FAULT_MEMORY);

	ctx_err(value);
	ctx_cause(value);
	ctx_deadline(value, NULL);
	ctx_value(value, &KEY);
	ctx_string(value, text, sizeof text);
	ctx_done_fd(value);
	ctx_release(ctx_retain(value));
	ctx_cancel(c);
	ctx_wait(value);
	cr_assert_eq(fault_calls(FAULT_MEMORY), before);
}

/* The parent must be as if it had not been asked: nothing of the child left in it, no reference kept. */
static void fails_cleanly(const char *name, ctx *(*derive)(ctx *parent), fault_kind kind, int error)
{
	static const ctx_key own = {"own", destroy};
	int failures = 0;

	for (unsigned n = 1;; n++) {
		ctx *grandparent = ctx_with_cancel(ctx_background());
		ctx *parent = ctx_with_value(grandparent, &own, NULL);

		destroyed = 0;
		fault_set(kind, n);
		errno = 0;

		ctx *c = derive(parent);
		int seen = errno;
		bool struck = fault_clear(kind);

		cr_assert_eq(c == NULL, struck, "%s, number %u", name, n);
		if (struck) {
			failures++;
			cr_assert_eq(seen, error, "%s, number %u: %d", name, n, seen);
			cr_assert_eq(destroyed, 0, "a value that was not taken is not destroyed");
		} else {
			ctx_end(c);
			destroyed = 0;
		}
		cr_assert_null(ctx_err(parent));
		ctx_cancel(grandparent);
		ctx_end(parent);
		cr_assert_eq(destroyed, 1, "%s, number %u: somebody still holds the parent", name, n);
		ctx_end(grandparent);
		if (!struck)
			break;
	}
	if (kind == FAULT_MEMORY)
		cr_assert_eq(failures, 1, "%s", name);
}

Test(ctx_memory, each_allocation_of_each_way_to_derive_may_fail, .timeout = 60)
{
	for (int i = 0; i < WAYS; i++)
		fails_cleanly(ways[i].name, ways[i].derive, FAULT_MEMORY, ENOMEM);
}

Test(ctx_memory, each_thread_of_each_way_to_derive_may_fail_to_start, .timeout = 60)
{
	for (int i = 0; i < WAYS; i++)
		fails_cleanly(ways[i].name, ways[i].derive, FAULT_THREAD, EAGAIN);
}

/* The thread for deadlines could not be started: the next deadline tries again. */
Test(ctx_memory, a_timer_thread_that_did_not_start_is_started_later, .timeout = 60)
{
	fault_set(FAULT_THREAD, 1);
	cr_assert_null(ctx_with_timeout(ctx_background(), CTX_MILLISECOND));
	cr_assert(fault_clear(FAULT_THREAD));

	fault_set(FAULT_THREAD, 1);
	ctx_auto *past = ctx_with_timeout(ctx_background(), 0);

	cr_assert_not_null(past);
	cr_assert_not(fault_clear(FAULT_THREAD), "needs no timer");

	ctx_auto *c = ctx_with_timeout(ctx_background(), CTX_MILLISECOND);

	cr_assert_eq(ctx_wait(c), &CTX_DEADLINE_EXCEEDED);
}

/* ---- AfterFunc ------------------------------------------------------------------------------------------------ */

static void count(void *arg)
{
	atomic_fetch_add((atomic_int *)arg, 1);
}

enum { MANY = 300 };

static bool many_ran(void *arg)
{
	return atomic_load((atomic_int *)arg) == MANY;
}

/* More registrations at a time than one chunk of slots holds, with every chunk's allocation failing once. */
Test(ctx_memory, each_allocation_of_after_func_may_fail, .timeout = 60)
{
	static atomic_int ran;
	ctx_auto *c = ctx_with_cancel(ctx_background());
	int failures = 0;

	for (int i = 0; i < MANY; i++) {
		fault_set(FAULT_MEMORY, 1);
		errno = 0;

		ctx_after *a = ctx_after_func(c, count, &ran);

		if (fault_clear(FAULT_MEMORY)) {
			cr_assert_null(a);
			cr_assert_eq(errno, ENOMEM);
			failures++;
			a = ctx_after_func(c, count, &ran);
		}
		cr_assert_not_null(a);
	}
	cr_assert_geq(failures, 2);
	cr_assert_leq(failures, 10, "memory is taken in growing chunks");
	ctx_cancel(c);
	cr_assert(eventually(many_ran, &ran, 20000), "%d ran", ran);
}

/* ---- Out of memory, whatever one does ------------------------------------------------------------------------- */

/* What is there goes on working when nothing can be had any more. */
Test(ctx_memory, cancelling_and_expiring_need_none, .timeout = 60)
{
	static atomic_int ran;
	ctx *c = ctx_with_cancel(ctx_background());
	ctx *timer = ctx_with_timeout(ctx_background(), 50 * CTX_MILLISECOND);
	ctx *child = ctx_with_timeout(c, 3600 * CTX_SECOND);

	cr_assert_not_null(ctx_after_func(c, count, &ran));
	fault_set_always(FAULT_MEMORY, true);
	fault_set_always(FAULT_THREAD, true);
	fault_set_always(FAULT_FD, true);
	cr_assert_null(ctx_with_cancel(c));
	cr_assert_null(ctx_with_timeout(c, CTX_SECOND));
	ctx_cancel(c);

	const ctx_error *cancelled = ctx_err(child), *expired = ctx_wait(timer);

	while (!atomic_load(&ran))
		;
	fault_clear(FAULT_MEMORY);
	fault_clear(FAULT_THREAD);
	fault_clear(FAULT_FD);
	cr_assert_eq(cancelled, &CTX_CANCELED);
	cr_assert_eq(expired, &CTX_DEADLINE_EXCEEDED);
	ctx_end(child);
	ctx_end(timer);
	ctx_end(c);
}

/* ---- Costs ------------------------------------------------------------------------------------------------------ */

Test(ctx_memory, deriving_costs_no_thread_and_no_watcher, .timeout = 60)
{
	enum { CONTEXTS = 900 };
	ctx *c[CONTEXTS];
	int before = support_threads(), after;

	cr_assert_gt(before, 0);
	for (int i = 0; i < CONTEXTS; i++)
		c[i] = ways[i % (WAYS - 1)].derive(i % 3 ? c[i - 1] : ctx_background());
	after = support_threads();
	for (int i = CONTEXTS - 1; i >= 0; i--)
		ctx_end(c[i]);
	cr_assert_leq(after, before + 1, "one for all the deadlines: %d", after - before);
}
