/* Errors and causes: why a context is done, and who said it first. */
#include <criterion/criterion.h>
#include <errno.h>
#include <stdatomic.h>

#include <tether/ctx.h>

#include "support.h"
#include "together.h"

static const ctx_error FIRST = {1, "first"};
static const ctx_error SECOND = {2, "second"};
static const ctx_error TOO_SLOW = {3, "too slow"};

Test(ctx_cause, the_errors_say_what_they_are_and_are_told_apart_by_address, .timeout = 60)
{
	static const ctx_error look_alike = {ETIMEDOUT, "context deadline exceeded"};

	cr_assert_str_eq(CTX_CANCELED.message, "context canceled");
	cr_assert_eq(CTX_CANCELED.code, ECANCELED);
	cr_assert_str_eq(CTX_DEADLINE_EXCEEDED.message, "context deadline exceeded");
	cr_assert_eq(CTX_DEADLINE_EXCEEDED.code, ETIMEDOUT, "it is a timeout");
	cr_assert_neq(&CTX_DEADLINE_EXCEEDED, &look_alike, "another error with its text is another error");
}

Test(ctx_cause, the_cause_is_null_until_done, .timeout = 60)
{
	ctx_auto *c = ctx_with_cancel(ctx_background());
	ctx_auto *timer = ctx_with_timeout_cause(c, 3600 * CTX_SECOND, &TOO_SLOW);

	cr_assert_null(ctx_cause(c));
	cr_assert_null(ctx_cause(timer));
}

Test(ctx_cause, the_first_canceller_wins, .timeout = 60)
{
	ctx_auto *c = ctx_with_cancel(ctx_background());

	ctx_cancel_cause(c, &FIRST);
	ctx_cancel_cause(c, &SECOND);
	ctx_cancel(c);
	cr_assert_eq(ctx_cause(c), &FIRST);
	cr_assert_eq(ctx_err(c), &CTX_CANCELED, "the error of a cancel is always the same");
}

static void cancel_by_index(void *arg, int index)
{
	ctx_cancel_cause(arg, index == 0 ? &FIRST : &SECOND);
}

Test(ctx_cause, of_two_cancellers_at_once_exactly_one_wins, .timeout = 120)
{
	for (int round = 0; round < 500; round++) {
		ctx_auto *c = ctx_with_cancel(ctx_background());
		ctx_auto *child = ctx_with_cancel(c);

		together(2, cancel_by_index, c);
		cr_assert(ctx_cause(c) == &FIRST || ctx_cause(c) == &SECOND);
		cr_assert_eq(ctx_cause(child), ctx_cause(c));
	}
}

Test(ctx_cause, a_null_cause_becomes_canceled, .timeout = 60)
{
	ctx_auto *c = ctx_with_cancel(ctx_background());

	ctx_cancel_cause(c, NULL);
	cr_assert_eq(ctx_cause(c), &CTX_CANCELED);
}

Test(ctx_cause, of_a_plain_cancel_is_its_err, .timeout = 60)
{
	ctx_auto *c = ctx_with_cancel(ctx_background());
	ctx_auto *child = ctx_with_cancel(c);

	ctx_cancel(c);
	cr_assert_eq(ctx_cause(c), ctx_err(c));
	cr_assert_eq(ctx_cause(child), &CTX_CANCELED);
}

Test(ctx_cause, of_a_deadline_counts_when_the_deadline_ends_it, .timeout = 60)
{
	ctx_auto *timeout = ctx_with_timeout_cause(ctx_background(), CTX_MILLISECOND, &TOO_SLOW);
	ctx_auto *deadline = ctx_with_deadline_cause(ctx_background(), ctx_now() + CTX_MILLISECOND, &FIRST);
	ctx_auto *passed = ctx_with_timeout_cause(ctx_background(), 0, &SECOND);
	ctx_auto *none = ctx_with_timeout_cause(ctx_background(), CTX_MILLISECOND, NULL);
	ctx_auto *child = ctx_with_cancel(timeout);

	cr_assert_eq(ctx_wait(timeout), &CTX_DEADLINE_EXCEEDED);
	cr_assert_eq(ctx_cause(timeout), &TOO_SLOW);
	cr_assert_eq(ctx_cause(child), &TOO_SLOW);
	cr_assert_eq(ctx_wait(deadline), &CTX_DEADLINE_EXCEEDED);
	cr_assert_eq(ctx_cause(deadline), &FIRST);
	cr_assert_eq(ctx_err(passed), &CTX_DEADLINE_EXCEEDED);
	cr_assert_eq(ctx_cause(passed), &SECOND);
	cr_assert_eq(ctx_wait(none), &CTX_DEADLINE_EXCEEDED);
	cr_assert_eq(ctx_cause(none), &CTX_DEADLINE_EXCEEDED);
}

Test(ctx_cause, of_a_deadline_does_not_count_when_a_cancel_is_first, .timeout = 60)
{
	ctx_auto *c = ctx_with_timeout_cause(ctx_background(), 3600 * CTX_SECOND, &TOO_SLOW);
	ctx_auto *given = ctx_with_timeout_cause(ctx_background(), 3600 * CTX_SECOND, &TOO_SLOW);

	ctx_cancel(c);
	cr_assert_eq(ctx_err(c), &CTX_CANCELED);
	cr_assert_eq(ctx_cause(c), &CTX_CANCELED);
	ctx_cancel_cause(given, &FIRST);
	cr_assert_eq(ctx_cause(given), &FIRST);
}

Test(ctx_cause, of_a_deadline_does_not_count_where_the_parents_is_earlier, .timeout = 60)
{
	ctx_auto *parent = ctx_with_timeout_cause(ctx_background(), CTX_MILLISECOND, &FIRST);
	ctx_auto *c = ctx_with_timeout_cause(parent, CTX_SECOND, &TOO_SLOW);

	cr_assert_eq(ctx_wait(c), &CTX_DEADLINE_EXCEEDED);
	cr_assert_eq(ctx_cause(c), &FIRST);
}

Test(ctx_cause, given_to_a_child_leaves_the_parent_alive_and_outlives_its_cancel, .timeout = 60)
{
	ctx_auto *parent = ctx_with_cancel(ctx_background());
	ctx_auto *child = ctx_with_cancel(parent);

	ctx_cancel_cause(child, &FIRST);
	cr_assert_null(ctx_err(parent));
	cr_assert_null(ctx_cause(parent));
	ctx_cancel_cause(parent, &SECOND);
	cr_assert_eq(ctx_cause(parent), &SECOND);
	cr_assert_eq(ctx_cause(child), &FIRST);
}

Test(ctx_cause, travels_through_values_and_stops_at_without_cancel, .timeout = 60)
{
	static const ctx_key key = {.name = "key"};
	ctx_auto *c = ctx_with_cancel(ctx_background());
	ctx_auto *value = ctx_with_value(c, &key, NULL);
	ctx_auto *below = ctx_with_cancel(value);
	ctx_auto *cut = ctx_without_cancel(below);

	ctx_cancel_cause(c, &FIRST);
	cr_assert_eq(ctx_cause(value), &FIRST);
	cr_assert_eq(ctx_cause(below), &FIRST);
	cr_assert_null(ctx_cause(cut));
}

/* For ThreadSanitizer: the cause is read while it is written. */
struct race {
	ctx *cancelled, *read;
	atomic_int torn; /* a cause without its error, or another */
};

static void cancel_or_read(void *arg, int index)
{
	struct race *r = arg;

	if (index == 0) {
		ctx_cancel_cause(r->cancelled, &FIRST);
		return;
	}
	while (!ctx_cause(r->read))
		;
	if (ctx_cause(r->read) != &FIRST || ctx_err(r->read) != &CTX_CANCELED)
		atomic_fetch_add(&r->torn, 1);
}

Test(ctx_cause, may_be_read_while_others_cancel, .timeout = 120)
{
	for (int round = 0; round < 200; round++) {
		ctx_auto *c = ctx_with_cancel(ctx_background());
		ctx_auto *child = ctx_with_cancel(c);
		struct race r = {.cancelled = c, .read = round % 2 ? c : child};

		together(3, cancel_or_read, &r);
		cr_assert_eq(r.torn, 0);
	}
}
