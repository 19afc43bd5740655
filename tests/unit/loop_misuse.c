/* What is a bug in the program ends it, with a line that names the call and says what is wrong. */
#include <criterion/criterion.h>
#include <criterion/new/assert.h>
#include <signal.h>
#include <string.h>
#include <sys/wait.h>
#include <uv.h>

#include "child.h"
#include "loops.h"

static void nothing(void *arg)
{
	(void)arg;
}

static wait_event never = WAIT_EVENT_INIT;
static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static wait_queue queue = WAIT_QUEUE_INIT;

/* On a loop's own stack, in a posted call. */
/* clang-format off */
#define CALL(name, ...) static void bad_##name(void *arg) { (void)arg; __VA_ARGS__; }
CALL(wait_done, wait_done(ctx_background()))
CALL(wait_sleep, wait_sleep(ctx_background(), 1))
CALL(wait_fd, wait_fd(ctx_background(), 0, WAIT_READ))
CALL(wait_blocking, wait_blocking(ctx_background(), nothing, NULL))
CALL(wait_event, wait_event_wait(NULL, &never))
CALL(wait_queue, void *got; pthread_mutex_lock(&mutex); wait_queue_wait(ctx_background(), &queue, &mutex, &got))
CALL(free, loop_free(loop_current()))
CALL(run, loop_run(loop_current()))
CALL(start, loop_start(loop_current(), nothing, NULL))
/* clang-format on */

static void on_loop(void *arg)
{
	void (*call)(void *arg) = *(void (**)(void *arg))arg;
	loop *l = loop_new(NULL);
	loop_post(l, call, NULL);
	loop_stop(l);
	loop_run(l);
	loop_free(l);
}

static void on_fiber(void *arg)
{
	in_fiber(*(void (**)(void *arg))arg, NULL);
}

static void on_thread(void *arg)
{
	(*(void (**)(void *arg))arg)(NULL);
}

static void start_from_elsewhere(void *arg)
{
	(void)arg;
	loop_start(loop_new(NULL), nothing, NULL);
}

static void run_twice(void *arg)
{
	(void)arg;
	loop *l = loop_new(NULL);
	loop_stop(l);
	loop_run(l);
	loop_run(l);
}

static void leave_handle_open(void *arg)
{
	static uv_timer_t timer;
	(void)arg;
	loop *l = loop_new(NULL);
	uv_timer_init(loop_uv(l), &timer);
	loop_stop(l);
	loop_run(l);
	loop_free(l);
}

static void wait_too(void *arg)
{
	wait_event_wait(NULL, arg);
}

static void two_wait(void *arg)
{
	(void)arg;
	loop_spawn(loop_current(), wait_too, &never);
	wait_event_wait(NULL, &never);
}

static const struct misuse {
	const char *call, *says;
	void (*where)(void *arg);
	void (*make)(void *arg);
} misuses[] = {
	{"wait_done", "loop's own stack", on_loop, bad_wait_done},
	{"wait_sleep", "loop's own stack", on_loop, bad_wait_sleep},
	{"wait_fd", "loop's own stack", on_loop, bad_wait_fd},
	{"wait_blocking", "loop's own stack", on_loop, bad_wait_blocking},
	{"wait_event_wait", "loop's own stack", on_loop, bad_wait_event},
	{"wait_queue_wait", "loop's own stack", on_loop, bad_wait_queue},
	{"wait_event_wait", "someone waits", on_fiber, two_wait},
	{"loop_run", "runs a loop already", on_loop, bad_run},
	{"loop_run", "runs a loop already", on_fiber, bad_run},
	{"loop_run", "run once", on_thread, run_twice},
	{"loop_free", "while the loop runs", on_loop, bad_free},
	{"loop_free", "while the loop runs", on_fiber, bad_free},
	{"loop_free", "type timer", on_thread, leave_handle_open},
	{"loop_start", "use loop_spawn", on_fiber, bad_start},
	{"loop_start", "use loop_spawn", on_thread, start_from_elsewhere},
};

Test(loop_misuse, aborts_with_a_message_that_names_the_call, .timeout = 120)
{
	for (size_t i = 0; i < sizeof(misuses) / sizeof(*misuses); i++) {
		const struct misuse *misuse = &misuses[i];
		char said[1024], expected[64];
		int status = in_child(misuse->where, (void *)&misuse->make, said, sizeof(said));
		int signal_number = WIFSIGNALED(status) ? WTERMSIG(status) : 0;
		cr_assert(eq(int, signal_number, SIGABRT), "number %zu, %s", i, misuse->call);
		snprintf(expected, sizeof(expected), "tether: %s: ", misuse->call);
		cr_expect(eq(int, strncmp(said, expected, strlen(expected)), 0), "number %zu, %s: %s", i,
		          misuse->call, said);
		cr_expect_not_null(strstr(said, misuse->says), "number %zu, %s: %s", i, misuse->call, said);
	}
}
