/* Deadlines: that they end what they are to end, never early, in any number. */
#include <criterion/criterion.h>
#include <dirent.h>
#include <errno.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include <tether/ctx.h>

#include "support.h"
#include "together.h"
#include "under.h"

Test(ctx_deadline, a_passed_deadline_gives_deadline_exceeded, .timeout = 60)
{
	int64_t at = ctx_now() + 20 * CTX_MILLISECOND;
	ctx_auto *c = ctx_with_deadline(ctx_background(), at);
	ctx_auto *child = ctx_with_cancel(c);
	int64_t deadline = 0;

	cr_assert_null(ctx_err(c));
	cr_assert(ctx_deadline(c, &deadline));
	cr_assert_eq(deadline, at);
	cr_assert(ctx_deadline(child, NULL), "inherited");
	cr_assert_eq(ctx_wait(child), &CTX_DEADLINE_EXCEEDED);
	cr_assert_geq(ctx_now(), at);
	cr_assert_eq(ctx_err(c), &CTX_DEADLINE_EXCEEDED);
	cr_assert_eq(ctx_cause(c), &CTX_DEADLINE_EXCEEDED);
}

Test(ctx_deadline, a_timeout_is_a_deadline_from_now, .timeout = 60)
{
	int64_t before = ctx_now();
	ctx_auto *c = ctx_with_timeout(ctx_background(), 20 * CTX_MILLISECOND);
	int64_t after = ctx_now();
	int64_t deadline = 0;

	cr_assert(ctx_deadline(c, &deadline));
	cr_assert_geq(deadline, before + 20 * CTX_MILLISECOND);
	cr_assert_leq(deadline, after + 20 * CTX_MILLISECOND);
	cr_assert_eq(ctx_wait(c), &CTX_DEADLINE_EXCEEDED);
	cr_assert_geq(ctx_now(), deadline);
}

Test(ctx_deadline, in_the_past_or_now_is_done_at_creation, .timeout = 60)
{
	ctx_auto *past = ctx_with_deadline(ctx_background(), ctx_now() - CTX_SECOND);
	ctx_auto *present = ctx_with_deadline(ctx_background(), ctx_now());
	ctx_auto *zero = ctx_with_timeout(ctx_background(), 0);
	ctx_auto *negative = ctx_with_timeout(ctx_background(), -1);
	ctx_auto *least = ctx_with_timeout(ctx_background(), INT64_MIN);
	ctx_auto *epoch = ctx_with_deadline(ctx_background(), INT64_MIN);
	ctx *all[] = {past, present, zero, negative, least, epoch};

	for (size_t i = 0; i < sizeof all / sizeof all[0]; i++) {
		cr_assert_eq(ctx_err(all[i]), &CTX_DEADLINE_EXCEEDED, "number %zu", i);
		cr_assert(ctx_deadline(all[i], NULL), "number %zu", i);
	}
}

Test(ctx_deadline, a_timeout_past_the_end_of_time_is_saturated, .timeout = 60)
{
	ctx_auto *c = ctx_with_timeout(ctx_background(), INT64_MAX);
	ctx_auto *almost = ctx_with_timeout(ctx_background(), INT64_MAX - ctx_now() - CTX_SECOND);
	int64_t deadline = 0;

	cr_assert(ctx_deadline(c, &deadline));
	cr_assert_eq(deadline, INT64_MAX);
	cr_assert_null(ctx_err(c));
	cr_assert_null(ctx_err(almost));

	/* The thread that sleeps that long still hears of a shorter one. */
	ctx_auto *soon = ctx_with_timeout(ctx_background(), CTX_MILLISECOND);

	cr_assert_eq(ctx_wait(soon), &CTX_DEADLINE_EXCEEDED);
	cr_assert_null(ctx_err(c));
	cr_assert_null(ctx_err(almost));
}

Test(ctx_deadline, a_strictly_earlier_deadline_of_the_parent_wins, .timeout = 60)
{
	ctx_auto *parent = ctx_with_timeout(ctx_background(), 20 * CTX_MILLISECOND);
	ctx_auto *child = ctx_with_timeout(parent, 3600 * CTX_SECOND);
	char text[256];
	int64_t of_parent = 0, of_child = 0;

	cr_assert(ctx_deadline(parent, &of_parent));
	cr_assert(ctx_deadline(child, &of_child));
	cr_assert_eq(of_child, of_parent);
	ctx_string(child, text, sizeof text);
	cr_assert_not_null(strstr(text, ").WithCancel"), "a plain cancel context: %s", text);
	cr_assert_eq(ctx_wait(child), &CTX_DEADLINE_EXCEEDED);

	ctx_auto *same = ctx_with_deadline(parent, of_parent);

	ctx_string(same, text, sizeof text);
	cr_assert_null(strstr(text, ").WithCancel"), "an equal one does not: %s", text);
}

Test(ctx_deadline, an_earlier_deadline_of_the_child_leaves_the_parent_alone, .timeout = 60)
{
	ctx_auto *parent = ctx_with_timeout(ctx_background(), 3600 * CTX_SECOND);
	ctx_auto *child = ctx_with_timeout(parent, CTX_MILLISECOND);

	cr_assert_eq(ctx_wait(child), &CTX_DEADLINE_EXCEEDED);
	cr_assert_null(ctx_err(parent));
}

Test(ctx_deadline, a_cancel_before_it_gives_canceled_and_the_expiry_changes_nothing, .timeout = 60)
{
	ctx_auto *c = ctx_with_timeout(ctx_background(), 10 * CTX_MILLISECOND);
	ctx_auto *later = ctx_with_timeout(ctx_background(), 30 * CTX_MILLISECOND);

	ctx_cancel(c);
	cr_assert_eq(ctx_err(c), &CTX_CANCELED);
	cr_assert_eq(ctx_wait(later), &CTX_DEADLINE_EXCEEDED);
	cr_assert_eq(ctx_err(c), &CTX_CANCELED);
	cr_assert_eq(ctx_cause(c), &CTX_CANCELED);
}

Test(ctx_deadline, a_cancel_after_it_changes_nothing, .timeout = 60)
{
	ctx_auto *c = ctx_with_timeout(ctx_background(), CTX_MILLISECOND);

	cr_assert_eq(ctx_wait(c), &CTX_DEADLINE_EXCEEDED);
	ctx_cancel(c);
	cr_assert_eq(ctx_err(c), &CTX_DEADLINE_EXCEEDED);
}

/* A timer left behind would be touched after its context is freed, by the thread that serves it. */
Test(ctx_deadline, cancel_and_release_free_the_timer, .timeout = 120)
{
	for (int i = 0; i < 20000; i++) {
		ctx *c = ctx_with_timeout(ctx_background(), (1 + i % 5) * CTX_MILLISECOND);

		if (i % 3 == 0)
			ctx_cancel(c);
		if (i % 3 == 1)
			ctx_release(c);
		else
			ctx_end(c);
	}
	ctx_auto *last = ctx_with_timeout(ctx_background(), 10 * CTX_MILLISECOND);

	cr_assert_eq(ctx_wait(last), &CTX_DEADLINE_EXCEEDED);
}

/* How often the other threads of this process, of which the timer thread is one, have gone to sleep. */
static long sleeps_of_others(void)
{
	DIR *tasks = opendir("/proc/self/task");
	struct dirent *entry;
	char path[300], line[128];
	long sum = 0, n;

	while (tasks && (entry = readdir(tasks))) {
		FILE *f;

		snprintf(path, sizeof path, "/proc/self/task/%s/status", entry->d_name);
		f = strtol(entry->d_name, NULL, 10) == gettid() ? NULL : fopen(path, "r");
		while (f && fgets(line, sizeof line, f)) {
			if (sscanf(line, "voluntary_ctxt_switches: %ld", &n) == 1)
				sum += n;
		}
		if (f)
			fclose(f);
	}
	if (tasks)
		closedir(tasks);
	return sum;
}

Test(ctx_deadline, a_cancel_takes_the_timer_back_while_the_context_is_still_held, .timeout = 60)
{
	ctx *held[300];

	for (int i = 0; i < 300; i++)
		held[i] = ctx_with_timeout(ctx_background(), 100 * CTX_MILLISECOND + i * CTX_MILLISECOND);
	ctx_auto *last = ctx_with_timeout(ctx_background(), 500 * CTX_MILLISECOND);

	for (int i = 0; i < 300; i++)
		ctx_cancel(held[i]);

	long before = sleeps_of_others();

	cr_assert_eq(ctx_wait(last), &CTX_DEADLINE_EXCEEDED);
	cr_assert_lt(sleeps_of_others() - before, 100, "the timer thread woke for what was cancelled");
	for (int i = 0; i < 300; i++)
		ctx_end(held[i]);
}

/*
 * The timer thread goes through a thousand timers in the order they were set. This thread, as soon as the first of
 * eight has gone off, gives back all eight, the same way or the other way, and somewhere in between they meet.
 */
Test(ctx_deadline, may_be_released_in_the_moment_it_expires, .timeout = 120)
{
	enum { GROUPS = 125, EACH = 8 };
	static ctx *timers[GROUPS][EACH];

	for (int round = 0; round < 200; round++) {
		int64_t deadline = ctx_now() + 2 * CTX_MILLISECOND;

		for (int i = 0; i < GROUPS * EACH; i++)
			timers[i / EACH][i % EACH] = ctx_with_deadline(ctx_background(), deadline);
		for (int i = 0; i < GROUPS; i++) {
			while (!ctx_err(timers[i][0]))
				;
			for (int k = 0; k < EACH; k++) {
				ctx *c = timers[i][round % 4 < 2 ? k : EACH - 1 - k];

				if (round % 2)
					ctx_end(c);
				else
					ctx_release(c);
			}
		}
	}
}

/*
 * The timer thread has looked at this thread's timers, is about to look at others', and will then sleep until the
 * earliest it has seen: a timer set in between must wake it.
 */
Test(ctx_deadline, set_in_the_moment_another_goes_off_is_not_forgotten, .timeout = 60)
{
	for (int i = 0; i < 5000; i++) {
		ctx_auto *c = ctx_with_timeout(ctx_background(), 20000);

		while (!ctx_err(c))
			;
	}
}

static void count_down(ctx_hook *h);

static struct {
	ctx_hook hook;
	atomic_int ran;
} handed_off;

static void count_down(ctx_hook *h)
{
	(void)h;
	atomic_fetch_add(&handed_off.ran, 1);
}

static bool has_ran(void *arg)
{
	(void)arg;
	return atomic_load(&handed_off.ran) == 1;
}

Test(ctx_deadline, expires_for_a_child_though_its_creator_has_released_it, .timeout = 60)
{
	ctx *c = ctx_with_timeout(ctx_background(), 10 * CTX_MILLISECOND);
	ctx *child = ctx_with_cancel(c);

	ctx_release(c); /* the child holds it */
	ctx_hook_add(child, &handed_off.hook, count_down);
	cr_assert(eventually(has_ran, NULL, 10000));
	cr_assert_eq(ctx_err(child), &CTX_DEADLINE_EXCEEDED);
	ctx_end(child);
}

/* ---- In numbers ------------------------------------------------------------------------------------------ */

/*
 * 100 000 timers, set by two threads while the first of them already go off, half of them ended early. Each that
 * is left must go off, none before its time, and not later and later.
 */
enum { STORM = 100000, SPREAD_MS = 1000 /* times support_patience() */ };

struct storm_timer {
	ctx_hook hook;
	ctx *c;
	int64_t deadline, fired;
	bool kept;
};

static struct storm {
	struct storm_timer *timers;
	atomic_int fired;
} storm;

static void note(ctx_hook *h)
{
	struct storm_timer *t = (struct storm_timer *)h;

	t->fired = ctx_now();
	atomic_fetch_add(&storm.fired, 1);
}

static uint32_t next_random(uint32_t *state)
{
	*state = *state * 1664525 + 1013904223;
	return *state >> 8;
}

static void set_half(void *arg, int index)
{
	uint32_t seed = 1 + (uint32_t)index;
	int64_t begin = ctx_now();

	(void)arg;
	for (int i = index; i < STORM; i += 2) {
		struct storm_timer *t = &storm.timers[i];
		int64_t in = 1 + next_random(&seed) % (uint32_t)(support_patience() * SPREAD_MS * 1000);

		t->kept = i % 4 < 2;
		t->deadline = begin + (t->kept ? 200 * CTX_MILLISECOND : 3600 * CTX_SECOND) + in * 1000;
		t->c = ctx_with_deadline(ctx_background(), t->deadline);
		ctx_hook_add(t->c, &t->hook, note);
	}
	for (int i = index; i < STORM; i += 2) {
		struct storm_timer *t = &storm.timers[i];

		if (!t->kept && ctx_hook_remove(t->c, &t->hook)) {
			ctx_end(t->c);
			t->c = NULL;
		}
	}
}

static bool all_fired(void *arg)
{
	(void)arg;
	return atomic_load(&storm.fired) >= STORM / 2;
}

static int by_deadline(const void *a, const void *b)
{
	const struct storm_timer *x = a, *y = b;

	return (x->deadline > y->deadline) - (x->deadline < y->deadline);
}

static int by_size(const void *a, const void *b)
{
	int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;

	return (x > y) - (x < y);
}

/* The median lateness of the timers from `first` on. */
static int64_t lateness(const struct storm_timer *first, int n)
{
	int64_t *late = malloc((size_t)n * sizeof *late);

	cr_assert_not_null(late);
	for (int i = 0; i < n; i++)
		late[i] = first[i].fired - first[i].deadline;
	qsort(late, (size_t)n, sizeof *late, by_size);

	int64_t median = late[n / 2];

	free(late);
	return median;
}

/* One storm: none lost, none early. Returns the median lateness of the last quarter, when nobody sets timers any more. */
static int64_t storm_once(void)
{
	atomic_store(&storm.fired, 0);
	storm.timers = calloc(STORM, sizeof *storm.timers);
	cr_assert_not_null(storm.timers);
	together(2, set_half, NULL);
	cr_assert(eventually(all_fired, NULL, 60000), "%d went off", storm.fired);

	int kept = 0;

	for (int i = 0; i < STORM; i++) {
		struct storm_timer *t = &storm.timers[i];

		if (t->kept) {
			cr_assert_eq(ctx_err(t->c), &CTX_DEADLINE_EXCEEDED);
			ctx_hook_remove(t->c, &t->hook);
			cr_assert_geq(t->fired, t->deadline, "early by %ld ns",
			              (long)(t->deadline - t->fired));
			ctx_end(t->c);
			storm.timers[kept++] = *t;
		} else {
			cr_assert_null(t->c);
			cr_assert_eq(t->fired, 0);
		}
	}
	cr_assert_eq(kept, STORM / 2);
	cr_assert_eq(storm.fired, STORM / 2);

	qsort(storm.timers, (size_t)kept, sizeof *storm.timers, by_deadline);

	int64_t late = lateness(storm.timers + kept - kept / 4, kept / 4);

	free(storm.timers);
	return late;
}

/*
 * A drift would make the last ones later than a timer alone would be, every time; a busy machine makes them
 * late only sometimes. So the best of a few storms counts.
 */
Test(ctx_deadline, a_storm_of_100000_loses_none_fires_none_early_and_does_not_drift, .timeout = 300)
{
	int64_t best = INT64_MAX, bound = support_patience() * 20 * CTX_MILLISECOND;

	for (int storms = 0; storms < 8 && best >= bound; storms++) {
		int64_t late = storm_once();

		best = late < best ? late : best;
	}
	cr_assert_lt(best, bound, "the last quarter was %ld us late at best", (long)(best / 1000));
}

/* More at the same moment than the timer thread looks at to find the earliest. */
Test(ctx_deadline, a_hundred_at_one_moment_go_off_at_that_moment, .timeout = 60)
{
	enum { MOMENTS = 11, EACH = 100 };
	static ctx *timers[MOMENTS][EACH];
	int64_t begin = ctx_now(), late[MOMENTS];

	for (int m = 0; m < MOMENTS; m++) {
		for (int i = 0; i < EACH; i++)
			timers[m][i] =
				ctx_with_deadline(ctx_background(), begin + (m + 1) * 37 * CTX_MILLISECOND);
	}
	for (int m = 0; m < MOMENTS; m++) {
		for (int i = 0; i < EACH; i++)
			cr_assert_eq(ctx_wait(timers[m][i]), &CTX_DEADLINE_EXCEEDED);
		late[m] = ctx_now() - (begin + (m + 1) * 37 * CTX_MILLISECOND);
		for (int i = 0; i < EACH; i++)
			ctx_end(timers[m][i]);
	}
	qsort(late, MOMENTS, sizeof late[0], by_size);
	cr_assert_geq(late[0], 0);
	cr_assert_lt(late[MOMENTS / 2], support_patience() * 10 * CTX_MILLISECOND);
}

/* Nothing waits for the slowest: each is set earlier than the one the timer thread sleeps for. */
Test(ctx_deadline, an_earlier_one_wakes_the_timer_thread, .timeout = 60)
{
	ctx *timers[200];

	for (int i = 0; i < 200; i++)
		timers[i] = ctx_with_timeout(ctx_background(), (1000 - i) * CTX_SECOND);
	for (int i = 0; i < 200; i++) {
		int64_t begin = ctx_now();
		ctx_auto *c = ctx_with_timeout(ctx_background(), CTX_MILLISECOND);

		cr_assert_eq(ctx_wait(c), &CTX_DEADLINE_EXCEEDED);
		cr_assert_lt(ctx_now() - begin, support_patience() * CTX_SECOND);
	}
	for (int i = 0; i < 200; i++) {
		cr_assert_null(ctx_err(timers[i]));
		ctx_end(timers[i]);
	}
}

/* ---- Processes and threads -------------------------------------------------------------------------------- */

static int exit_status(pid_t pid)
{
	int status;

	return waitpid(pid, &status, 0) == pid && WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

Test(ctx_deadline, goes_off_in_a_forked_child_those_inherited_as_well, .timeout = 60, .disabled = UNDER_TSAN)
{
	ctx_auto *warm_up = ctx_with_timeout(ctx_background(), CTX_MILLISECOND);
	ctx_auto *inherited = ctx_with_timeout(ctx_background(), 100 * CTX_MILLISECOND);

	ctx_wait(warm_up);

	pid_t pid = fork();

	cr_assert_geq(pid, 0);
	if (pid == 0) {
		alarm(30);
		bool good = ctx_wait(inherited) == &CTX_DEADLINE_EXCEEDED;
		ctx *own = ctx_with_timeout(ctx_background(), CTX_MILLISECOND);

		good = good && ctx_wait(own) == &CTX_DEADLINE_EXCEEDED;
		ctx_end(own);
		ctx_end(inherited);
		ctx_end(warm_up);
		_exit(good ? 0 : 1);
	}
	cr_assert_eq(exit_status(pid), 0);
	cr_assert_eq(ctx_wait(inherited), &CTX_DEADLINE_EXCEEDED);
}

static void leave(ctx_hook *h)
{
	(void)h;
	exit(7);
}

Test(ctx_deadline, a_hook_that_exits_on_the_timer_thread_does_not_hang, .timeout = 60,
     .disabled = UNDER_TSAN || UNDER_ASAN)
{
	pid_t pid = fork();

	cr_assert_geq(pid, 0);
	if (pid == 0) {
		alarm(30);
		static ctx_hook hook;
		ctx *c = ctx_with_timeout(ctx_background(), CTX_MILLISECOND);

		ctx_hook_add(c, &hook, leave);
		ctx_wait(ctx_background());
	}
	cr_assert_eq(exit_status(pid), 7);
}
