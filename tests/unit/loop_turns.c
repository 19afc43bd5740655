/*
 * Loops themselves: what runs when (spawned fibers, tasks, turn and exit hooks), how a loop ends, and what a loop that
 * is over, never ran or is used wrongly does.
 */
#include <criterion/criterion.h>
#include <criterion/new/assert.h>
#include <errno.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>
#include <uv.h>

#include "loops.h"
#include "support.h"

/* ---- What runs when ----------------------------------------------------------------------------------- */

static char seen[64];

static void see(void *arg)
{
	size_t length = strlen(seen);
	snprintf(seen + length, sizeof(seen) - length, "%s", (const char *)arg);
}

static void see_and_yield(void *arg)
{
	see(arg);
	let_others_run();
	see(arg);
}

static void spawn_in_order(void *arg)
{
	(void)arg;
	loop_spawn(loop_current(), see, "a");
	loop_spawn(loop_current(), see, "b");
	see("-");
	loop_spawn(loop_current(), see, "c");
}

Test(loop_turns, spawned_fibers_run_soon_and_in_order, .timeout = 30)
{
	in_fiber(spawn_in_order, NULL);
	cr_assert(eq(str, seen, "-abc"));
}

typedef struct lettered_task {
	loop_task task;
	char letter[2];
} lettered_task;

static void see_task(loop_task *task)
{
	see(((lettered_task *)task)->letter);
	cr_expect_not(loop_on_fiber());
	cr_expect_not_null(loop_current());
}

Test(loop_turns, tasks_and_calls_of_one_thread_run_in_order, .timeout = 30)
{
	lettered_task a = {{.fn = see_task}, "a"}, c = {{.fn = see_task}, "c"};
	loop *l = loop_new(NULL);
	loop_post_task(l, &a.task);
	cr_assert(eq(int, loop_post(l, see, "b"), 0));
	loop_post_task(l, &c.task);
	cr_assert(eq(int, loop_spawn(l, see, "d"), 0));
	cr_assert(eq(str, seen, ""), "nothing runs before the loop does");
	loop_stop(l);
	loop_run(l);
	cr_assert(eq(str, seen, "abcd"), "and everything that was posted before the stop does");
	loop_free(l);
}

static int started[2];

static void start_two(void *arg)
{
	(void)arg;
	started[0] = loop_start(loop_current(), see, "a");
	see("1");
	started[1] = loop_start(loop_current(), see_and_yield, "b");
	see("2");
	loop_stop(loop_current());
}

Test(loop_turns, start_runs_at_once_until_the_first_wait, .timeout = 30)
{
	loop *l = loop_new(NULL);
	loop_post(l, start_two, NULL);
	loop_run(l);
	cr_assert(eq(str, seen, "a1b2b"));
	cr_assert(eq(int, started[0], 1), "ended");
	cr_assert(eq(int, started[1], 0), "parked");
	loop_free(l);
}

static void repost(loop_task *task)
{
	static int left = 1000;
	if (--left > 0)
		loop_post_task(loop_current(), task);
	else
		loop_stop(loop_current());
}

Test(loop_turns, a_task_may_post_itself_anew, .timeout = 30)
{
	loop_task task = {.fn = repost};
	loop *l = loop_new(NULL);
	loop_post_task(l, &task);
	loop_run(l);
	loop_free(l);
}

/* Fibers that feed each other for ever: a timer of the same loop must get its turn all the same. */
static bool shut_out;

static void feed(void *arg)
{
	if (shut_out)
		loop_spawn(loop_current(), feed, arg);
}

static void let_go(uv_timer_t *timer)
{
	shut_out = false;
	uv_close((uv_handle_t *)timer, NULL);
	loop_stop(loop_current());
}

Test(loop_turns, busy_fibers_do_not_shut_out_libuv, .timeout = 30)
{
	uv_timer_t timer;
	loop *l = loop_new(NULL);
	uv_timer_init(loop_uv(l), &timer);
	uv_timer_start(&timer, let_go, 5, 0);
	shut_out = true;
	loop_spawn(l, feed, NULL);
	loop_run(l);
	cr_assert_not(shut_out);
	loop_free(l);
}

/*
 * A fiber made ready by libuv's timers (which run after the turn and before libuv blocks) must not wait for an
 * event of something else: nothing else ever happens here.
 */
static wait_event by_timer = WAIT_EVENT_INIT;

static void set_by_timer(uv_timer_t *timer)
{
	uv_close((uv_handle_t *)timer, NULL);
	wait_event_set(&by_timer);
}

static void wait_for_timer(void *arg)
{
	uv_timer_init(loop_uv(loop_current()), arg);
	uv_timer_start(arg, set_by_timer, 5, 0);
	cr_expect(eq(int, wait_event_wait(NULL, &by_timer), 0));
}

Test(loop_turns, what_a_libuv_callback_makes_ready_runs_without_another_event, .timeout = 30)
{
	uv_timer_t timer;
	in_fiber(wait_for_timer, &timer);
}

/* libuv's timers must not count from before a fiber's long work: it would come late by as much. */
static void work_long(void *arg)
{
	uv_timer_init(loop_uv(loop_current()), arg);
	uv_update_time(loop_uv(loop_current()));
	uv_timer_start(arg, set_by_timer, 1100, 0);
	int64_t begin = ctx_now();
	while (ctx_now() - begin < CTX_SECOND)
		;
	wait_event_wait(NULL, &by_timer);
	cr_expect(lt(i64, ctx_now() - begin, 1900 * CTX_MILLISECOND));
}

Test(loop_turns, timers_are_not_late_by_what_fibers_took, .timeout = 30)
{
	uv_timer_t timer;
	in_fiber(work_long, &timer);
}

/* ---- Turn hooks --------------------------------------------------------------------------------------- */

typedef struct counting_turn {
	loop_turn turn;
	int calls, again;
	loop_turn *removes;
} counting_turn;

static bool count_call(loop_turn *turn)
{
	counting_turn *counting = (counting_turn *)turn;
	counting->calls++;
	if (counting->removes)
		loop_turn_remove(loop_current(), counting->removes);
	if (counting->calls == counting->again)
		loop_stop(loop_current());
	return counting->calls < counting->again;
}

Test(loop_turns, a_turn_hook_that_returns_true_gets_another_turn, .timeout = 30)
{
	counting_turn hook = {.turn.fn = count_call, .again = 1000};
	loop *l = loop_new(NULL);
	loop_turn_add(l, &hook.turn);
	loop_run(l); /* blocks for ever if a turn is missing: no other event comes */
	cr_assert(eq(int, hook.calls, 1000));
	loop_free(l);
}

static bool after_ready(loop_turn *turn)
{
	(void)turn;
	see("|");
	return false;
}

static void see_thrice(void *arg)
{
	see(arg);
	loop_spawn(loop_current(), see, "b");
	loop_spawn(loop_current(), see, "c");
}

Test(loop_turns, a_turn_hook_runs_after_all_that_was_ready, .timeout = 30)
{
	loop_turn hook = {.fn = after_ready};
	loop *l = loop_new(NULL);
	loop_turn_add(l, &hook);
	loop_spawn(l, see_thrice, "a");
	loop_stop(l);
	loop_run(l);
	cr_assert(eq(int, strncmp(seen, "a|bc|", 5), 0), "%s", seen);
	loop_free(l);
}

Test(loop_turns, turn_hooks_may_remove_themselves_and_each_other, .timeout = 30)
{
	counting_turn hooks[3];
	loop *l = loop_new(NULL);
	for (int i = 0; i < 3; i++) {
		hooks[i] = (counting_turn){.turn.fn = count_call};
		loop_turn_add(l, &hooks[i].turn);
	}
	hooks[0].removes = &hooks[0].turn;
	hooks[1].removes = &hooks[1].turn;
	hooks[2].removes = &hooks[2].turn;
	counting_turn last = {.turn.fn = count_call, .again = 3};
	loop_turn_add(l, &last.turn);
	loop_run(l);
	cr_expect(eq(int, last.calls, 3));
	for (int i = 0; i < 3; i++)
		cr_expect(eq(int, hooks[i].calls, 1));
	loop_free(l);

	/* Removing the one that would have come next. */
	l = loop_new(NULL);
	for (int i = 0; i < 2; i++) {
		hooks[i] = (counting_turn){.turn.fn = count_call};
		loop_turn_add(l, &hooks[i].turn);
	}
	hooks[0].removes = &hooks[1].turn;
	hooks[0].again = 1;
	loop_turn_remove(l, &hooks[0].turn);
	loop_turn_add(l, &hooks[0].turn);
	loop_run(l);
	cr_expect(eq(int, hooks[0].calls, 1));
	cr_expect(eq(int, hooks[1].calls, 0));
	loop_free(l);
}

/* ---- The end ------------------------------------------------------------------------------------------ */

typedef struct lettered_exit {
	loop_exit hook;
	char letter[2];
	uv_timer_t timer, second;
} lettered_exit;

/* A close callback that closes something in turn, as libuv's users do. */
static void see_closed(uv_handle_t *handle)
{
	lettered_exit *lettered = handle->data;
	see(lettered->letter);
	if (handle == (uv_handle_t *)&lettered->timer)
		uv_close((uv_handle_t *)&lettered->second, see_closed);
}

static void see_exit(loop_exit *hook, loop *l)
{
	lettered_exit *lettered = (lettered_exit *)hook;
	cr_expect(eq(ptr, l, loop_current()));
	cr_expect(eq(sz, loop_fibers(l), 0));
	see(lettered->letter);
	lettered->timer.data = lettered->second.data = lettered;
	uv_timer_init(loop_uv(l), &lettered->timer);
	uv_timer_init(loop_uv(l), &lettered->second);
	uv_close((uv_handle_t *)&lettered->timer, see_closed);
	loop_spawn(l, see_and_yield, ".");
}

Test(loop_turns, exit_hooks_run_last_and_what_they_begin_is_ended, .timeout = 30)
{
	lettered_exit a = {.hook.fn = see_exit, .letter = "a"}, c = {.hook.fn = see_exit, .letter = "c"},
		      d = {.hook.fn = see_exit, .letter = "d"};
	loop *l = loop_new(NULL);
	loop_exit_add(l, &a.hook);
	loop_exit_add(l, &d.hook);
	loop_exit_add(l, &c.hook);
	cr_assert(loop_exit_remove(l, &d.hook));
	cr_assert_not(loop_exit_remove(l, &d.hook));
	loop_spawn(l, see_and_yield, "x");
	loop_stop(l);
	loop_run(l);
	cr_assert_not(loop_exit_remove(l, &a.hook), "it has run");
	cr_assert(eq(int, strncmp(seen, "xxc", 3), 0), "%s", seen);
	/* Each: its own letter, those of its two handles, and two dots of its fiber, all before the next. */
	cr_assert(eq(sz, strlen(seen), 12), "%s", seen);
	cr_assert(eq(sz, strcspn(seen, "a"), 7), "%s", seen);
	loop_free(l);
}

typedef struct late {
	wait_event go;
	atomic_bool parked, asked;
} late;

static void end_late(void *arg)
{
	late *fiber = arg;
	atomic_store(&fiber->parked, true);
	wait_event_wait(NULL, &fiber->go);
	see("b");
}

static void note(void *arg)
{
	atomic_store((atomic_bool *)arg, true);
}

static bool is_true(void *arg)
{
	return atomic_load((atomic_bool *)arg);
}

Test(loop_turns, stop_waits_for_the_last_fiber, .timeout = 60)
{
	late fiber = {.go = WAIT_EVENT_INIT};
	loop_thread *t = loop_thread_start(NULL);
	loop *l = loop_thread_loop(t);
	loop_spawn(l, end_late, &fiber);
	cr_assert(eventually(is_true, &fiber.parked, 20000));
	loop_stop(l);
	loop_stop(l);
	for (int i = 0; i < 3; i++) {
		atomic_store(&fiber.asked, false);
		cr_assert(eq(int, loop_post(l, note, &fiber.asked), 0));
		cr_assert(eventually(is_true, &fiber.asked, 20000), "posts are taken meanwhile");
	}
	cr_assert(eq(sz, loop_fibers(l), 1));
	wait_event_set(&fiber.go);
	loop_thread_stop(t);
	cr_assert(eq(str, seen, "b"));
}

/* The lines of this process's list of memory maps: a stack that is not given back is two more. */
static int memory_maps(void)
{
	int lines = 0;
	FILE *maps = fopen("/proc/self/maps", "r");
	cr_assert_not_null(maps);
	for (int c; (c = getc(maps)) != EOF;)
		lines += c == '\n';
	fclose(maps);
	return lines;
}

Test(loop_turns, a_loop_that_is_over_takes_nothing, .timeout = 30)
{
	lettered_task task = {{.fn = see_task}, "a"};
	int maps = 0;
	for (int i = 0; i < 100; i++) {
		loop *l = loop_new(NULL);
		loop_stop(l);
		loop_run(l);
		cr_assert(eq(int, loop_spawn(l, see, "b"), -1));
		cr_assert(eq(int, errno, ECANCELED));
		cr_assert(eq(int, loop_post(l, see, "c"), -1));
		cr_assert(eq(int, errno, ECANCELED));
		loop_post_task(l, &task.task);
		cr_assert(eq(sz, loop_fibers(l), 0));
		loop_free(l);
		if (i == 0)
			maps = memory_maps();
	}
	cr_assert(eq(str, seen, ""));
	cr_assert(lt(int, memory_maps(), maps + 150));
}

Test(loop_turns, a_loop_that_never_ran_is_freed_with_what_was_posted, .timeout = 30)
{
	lettered_task task = {{.fn = see_task}, "a"};
	int maps = 0;
	for (int i = 0; i < 100; i++) {
		loop *l = loop_new(NULL);
		loop_spawn(l, see, "b");
		loop_post(l, see, "c");
		loop_post_task(l, &task.task);
		loop_free(l);
		if (i == 0)
			maps = memory_maps();
	}
	loop_free(NULL);
	cr_assert(eq(str, seen, ""));
	cr_assert(lt(int, memory_maps(), maps + 150));
}

/*
 * loop_free right behind the wake-up that let the last fiber end: the waking thread may still be on its way out
 * of the loop when the loop is done with everything.
 */
static void *set_from_thread(void *arg)
{
	wait_event_set(arg);
	return NULL;
}

Test(loop_turns, freed_behind_the_last_wakeup, .timeout = 120)
{
	for (int i = 0; i < 2000; i++) {
		late fiber = {.go = WAIT_EVENT_INIT};
		pthread_t setter;
		loop *l = loop_new(NULL);
		loop_spawn(l, end_late, &fiber);
		loop_stop(l);
		pthread_create(&setter, NULL, set_from_thread, &fiber.go);
		loop_run(l);
		loop_free(l);
		pthread_join(setter, NULL);
		seen[0] = '\0';
	}
}

static void current_is(void *arg)
{
	cr_expect(eq(ptr, loop_current(), *(loop **)arg));
	cr_expect(loop_on_fiber());
	cr_expect(eq(sz, loop_fibers(loop_current()), 1));
	loop_stop(loop_current());
}

Test(loop_turns, current, .timeout = 30)
{
	cr_assert_null(loop_current());
	cr_assert_not(loop_on_fiber());
	loop *l = loop_new(NULL);
	loop_spawn(l, current_is, &l);
	loop_run(l);
	cr_assert_null(loop_current());
	loop_free(l);
}

/*
 * Of a loop that could not be made nothing is left but what libuv 1.44 forgets itself: uv_loop_init, when it
 * fails after epoll_create, does not close that.
 */
Test(loop_turns, no_descriptors_left_is_an_error, .timeout = 30)
{
	struct rlimit limit;
	getrlimit(RLIMIT_NOFILE, &limit);
	loop_free(loop_new(NULL)); /* libuv's first loop of a process opens a pipe, and aborts if it cannot */
	int next = dup(0);
	close(next);
	int before = support_open_files();
	int made = 0, failed = 0;
	for (int room = 0; room < 12; room++) {
		struct rlimit tight = {(rlim_t)(next + room), limit.rlim_max};
		setrlimit(RLIMIT_NOFILE, &tight);
		errno = 0;
		loop *l = loop_new(NULL);
		cr_expect(l || errno == EMFILE, "with %d descriptors: errno %d", room, errno);
		*(l ? &made : &failed) += 1;
		loop_free(l);
		setrlimit(RLIMIT_NOFILE, &limit);
		cr_expect(le(int, support_open_files(), before + (l ? 0 : 1)));
		close(next);
	}
	cr_expect(ge(int, made, 1));
	cr_expect(ge(int, failed, 1));
}
