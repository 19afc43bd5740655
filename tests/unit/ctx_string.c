/* The text of a context, as Go gives it. */
#include <criterion/criterion.h>
#include <regex.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>

#include <tether/ctx.h>

#include "support.h"

static const ctx_key USER = {.name = "user"};
static const ctx_key NAMELESS = {.name = NULL};

static const char *text(const ctx *c)
{
	static char buf[4096];
	int length = ctx_string(c, buf, sizeof buf);

	cr_assert_eq(length, (int)strlen(buf));
	return buf;
}

static bool matches(const ctx *c, const char *pattern)
{
	regex_t regex;
	bool good;

	cr_assert_eq(regcomp(&regex, pattern, REG_EXTENDED | REG_NOSUB), 0);
	good = regexec(&regex, text(c), 0, NULL, 0) == 0;
	regfree(&regex);
	return good;
}

Test(ctx_string, of_the_roots, .timeout = 60)
{
	cr_assert_str_eq(text(ctx_background()), "context.Background");
	cr_assert_str_eq(text(ctx_todo()), "context.TODO");
}

Test(ctx_string, of_a_cancel_context_is_its_parents_and_with_cancel, .timeout = 60)
{
	ctx_auto *c = ctx_with_cancel(ctx_background());
	ctx_auto *child = ctx_with_cancel(c);

	cr_assert_str_eq(text(c), "context.Background.WithCancel");
	cr_assert_str_eq(text(child), "context.Background.WithCancel.WithCancel");
	ctx_cancel(c);
	cr_assert_str_eq(text(child), "context.Background.WithCancel.WithCancel");
}

Test(ctx_string, of_a_deadline_says_when_and_how_long_from_now, .timeout = 60)
{
	static const struct {
		int64_t in;
		const char *remaining;
	} cases[] = {
		{INT64_C(3600000) * 1000 * CTX_SECOND, "(999|1000)h[0-9]+m[0-9.]+s"},
		{5 * CTX_SECOND, "[0-9.]+(s|ms)"},
		{100 * CTX_MILLISECOND, "-?[0-9.]+(s|ms|µs|ns)"},
		{-2 * CTX_SECOND, "-[0-9.]+s"},
		{-INT64_C(3661) * CTX_SECOND, "-1h1m[0-9.]+s"},
	};

	for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
		ctx_auto *c = ctx_with_deadline(ctx_todo(), ctx_now() + cases[i].in);
		char pattern[256];

		snprintf(pattern, sizeof pattern,
		         "^context\\.TODO\\.WithDeadline\\(20[0-9]{2}-[0-9]{2}-[0-9]{2} "
		         "[0-9]{2}:[0-9]{2}:[0-9]{2}(\\.[0-9]{1,9})? \\+0000 UTC \\[%s\\]\\)$",
		         cases[i].remaining);
		cr_assert(i == 0 || matches(c, pattern), "%s", text(c));
		cr_assert(i > 0 || strstr(text(c), "h"), "%s", text(c));
	}
}

Test(ctx_string, of_the_ends_of_time_is_still_a_text, .timeout = 60)
{
	ctx_auto *never = ctx_with_timeout(ctx_background(), INT64_MAX);
	ctx_auto *always = ctx_with_deadline(ctx_background(), INT64_MIN);

	cr_assert(matches(never, "WithDeadline\\(2262-04-11 .*\\[[0-9]+h[0-9]+m[0-9.]+s\\]\\)$"), "%s",
	          text(never));
	cr_assert(matches(always, "\\[-2562047h47m16\\.854775808s\\]\\)$"), "%s", text(always));
}

Test(ctx_string, of_a_value_names_its_key, .timeout = 60)
{
	ctx_auto *c = ctx_with_value(ctx_background(), &USER, (void *)0x1234);
	ctx_auto *null = ctx_with_value(c, &USER, NULL);
	ctx_auto *nameless = ctx_with_value(ctx_todo(), &NAMELESS, NULL);

	cr_assert_str_eq(text(c), "context.Background.WithValue(user, 0x1234)");
	cr_assert_str_eq(text(null), "context.Background.WithValue(user, 0x1234).WithValue(user, <nil>)");
	cr_assert_str_eq(text(nameless), "context.TODO.WithValue(<nil>, <nil>)");
}

Test(ctx_string, of_without_cancel_and_signals, .timeout = 60)
{
	static const int signals[] = {SIGINT, SIGTERM, 40};
	ctx_auto *c = ctx_with_cancel(ctx_background());
	ctx_auto *cut = ctx_without_cancel(c);
	ctx_auto *s = ctx_with_signals(cut, signals, 3);
	ctx_auto *below = ctx_with_cancel(s);
	ctx_auto *again = ctx_with_signals(below, signals, 1);
	ctx_auto *value = ctx_with_value(s, &USER, NULL);

	cr_assert_str_eq(text(cut), "context.Background.WithCancel.WithoutCancel");
	cr_assert_str_eq(text(s), "signal.NotifyContext(context.Background.WithCancel.WithoutCancel, "
	                          "[interrupt terminated signal 40])");
	cr_assert_str_eq(text(again),
	                 "signal.NotifyContext(signal.NotifyContext(context.Background.WithCancel"
	                 ".WithoutCancel, [interrupt terminated signal 40]).WithCancel, [interrupt])");
	cr_assert_str_eq(text(value), "signal.NotifyContext(context.Background.WithCancel.WithoutCancel, "
	                              "[interrupt terminated signal 40]).WithValue(user, <nil>)");
}

Test(ctx_string, follows_snprintfs_rules_at_every_size, .timeout = 60)
{
	static const int signo = SIGINT;
	ctx_auto *s = ctx_with_signals(ctx_background(), &signo, 1);
	ctx_auto *c = ctx_with_value(s, &USER, (void *)0x1234);
	char whole[256], part[256];
	int length = ctx_string(c, whole, sizeof whole);

	cr_assert_eq(ctx_string(c, NULL, 0), length);
	for (size_t size = 1; size < sizeof part; size++) {
		memset(part, '#', sizeof part);
		cr_assert_eq(ctx_string(c, part, size), length);
		cr_assert_lt(strlen(part), size);
		cr_assert_eq(strncmp(part, whole, strlen(part)), 0, "%s", part);
		cr_assert_eq(strlen(part), size <= (size_t)length ? size - 1 : (size_t)length);
		for (size_t i = size; i < sizeof part; i++)
			cr_assert_eq(part[i], '#', "written past the end, size %zu", size);
	}
}
