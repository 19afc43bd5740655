/* What is a bug in the program ends it, with a line that says where: Go panics. */
#include <criterion/criterion.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/wait.h>

#include <tether/ctx.h>

#include "child.h"

static const ctx_key KEY = {.name = "key"};
static char buf[16];
static ctx_hook hook;

static void nothing(void *arg)
{
	(void)arg;
}

static void no_hook(ctx_hook *h)
{
	(void)h;
}

/* clang-format off */
#define CALL(name, ...) static void bad_##name(void) { __VA_ARGS__; }
CALL(with_cancel, ctx_with_cancel(NULL))
CALL(with_deadline, ctx_with_deadline(NULL, 0))
CALL(with_timeout, ctx_with_timeout(NULL, 0))
CALL(with_deadline_cause, ctx_with_deadline_cause(NULL, 0, NULL))
CALL(with_timeout_cause, ctx_with_timeout_cause(NULL, 0, NULL))
CALL(with_value, ctx_with_value(NULL, &KEY, NULL))
CALL(with_value_key, ctx_with_value(ctx_background(), NULL, NULL))
CALL(without_cancel, ctx_without_cancel(NULL))
CALL(with_signals, ctx_with_signals(NULL, (int[]){SIGINT}, 1))
CALL(with_signals_array, ctx_with_signals(ctx_background(), NULL, 1))
CALL(cancel, ctx_cancel(NULL))
CALL(cancel_cause, ctx_cancel_cause(NULL, NULL))
CALL(retain, ctx_retain(NULL))
CALL(err, ctx_err(NULL))
CALL(cause, ctx_cause(NULL))
CALL(deadline, ctx_deadline(NULL, NULL))
CALL(value, ctx_value(NULL, &KEY))
CALL(string, ctx_string(NULL, buf, sizeof buf))
CALL(string_buffer, ctx_string(ctx_background(), NULL, 1))
CALL(wait, ctx_wait(NULL))
CALL(done_fd, ctx_done_fd(NULL))
CALL(after_func, ctx_after_func(NULL, nothing, NULL))
CALL(after_func_fn, ctx_after_func(ctx_background(), NULL, NULL))
CALL(hook_add, ctx_hook_add(NULL, &hook, no_hook))
CALL(hook_add_hook, ctx_hook_add(ctx_background(), NULL, no_hook))
CALL(hook_add_fn, ctx_hook_add(ctx_background(), &hook, NULL))
CALL(hook_remove, ctx_hook_remove(NULL, &hook))
CALL(hook_remove_hook, ctx_hook_remove(ctx_background(), NULL))
CALL(hook_left, ctx *c = ctx_with_cancel(ctx_background()); ctx_hook_add(c, &hook, no_hook); ctx_release(c))
/* clang-format on */

static const struct {
	const char *call; /* which the message must name */
	void (*make)(void);
} misuses[] = {
	{"ctx_with_cancel", bad_with_cancel},
	{"ctx_with_deadline", bad_with_deadline},
	{"ctx_with_timeout", bad_with_timeout},
	{"ctx_with_deadline_cause", bad_with_deadline_cause},
	{"ctx_with_timeout_cause", bad_with_timeout_cause},
	{"ctx_with_value", bad_with_value},
	{"ctx_with_value", bad_with_value_key},
	{"ctx_without_cancel", bad_without_cancel},
	{"ctx_with_signals", bad_with_signals},
	{"ctx_with_signals", bad_with_signals_array},
	{"ctx_cancel", bad_cancel},
	{"ctx_cancel_cause", bad_cancel_cause},
	{"ctx_retain", bad_retain},
	{"ctx_err", bad_err},
	{"ctx_cause", bad_cause},
	{"ctx_deadline", bad_deadline},
	{"ctx_value", bad_value},
	{"ctx_string", bad_string},
	{"ctx_string", bad_string_buffer},
	{"ctx_wait", bad_wait},
	{"ctx_done_fd", bad_done_fd},
	{"ctx_after_func", bad_after_func},
	{"ctx_after_func", bad_after_func_fn},
	{"ctx_hook_add", bad_hook_add},
	{"ctx_hook_add", bad_hook_add_hook},
	{"ctx_hook_add", bad_hook_add_fn},
	{"ctx_hook_remove", bad_hook_remove},
	{"ctx_hook_remove", bad_hook_remove_hook},
	{"ctx_release", bad_hook_left},
};

static void make(void *misuse)
{
	misuses[*(size_t *)misuse].make();
}

Test(ctx_misuse, a_nil_context_key_or_array_aborts_with_a_message_that_names_the_call, .timeout = 120)
{
	for (size_t i = 0; i < sizeof misuses / sizeof misuses[0]; i++) {
		char output[1024], expected[128];
		int status = in_child(make, &i, output, sizeof output);

		snprintf(expected, sizeof expected, "tether: %s: ", misuses[i].call);
		cr_assert(WIFSIGNALED(status) && WTERMSIG(status) == SIGABRT, "number %zu, %s: status %#x", i,
		          misuses[i].call, (unsigned)status);
		cr_assert_eq(strncmp(output, expected, strlen(expected)), 0, "number %zu: %s", i, output);
		cr_assert_not_null(strchr(output, '\n'), "a whole line");
	}
}
