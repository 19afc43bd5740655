/*
 * Fibers and their stacks: many at once, reuse, the guard, what a fiber keeps across a wait, and running out of
 * memory or of memory maps.
 */
#include <criterion/criterion.h>
#include <criterion/new/assert.h>
#include <errno.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include "alloc_fault.h"
#include "loops.h"
#include "support.h"

#if defined(__SANITIZE_THREAD__)
#define UNDER_TSAN 1
#elif defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define UNDER_TSAN 1
#endif
#endif

#ifdef UNDER_TSAN
enum { MANY = 2000 }; /* ThreadSanitizer knows 8128 threads, and counts a fiber as one */
#else
enum { MANY = 10000 };
#endif

#if __has_include(<valgrind/valgrind.h>)
#include <valgrind/valgrind.h>
#else
#define RUNNING_ON_VALGRIND 0
#endif

static void set_event(void *arg)
{
	wait_event_set(arg);
}

/* Lets everything that is ready run. */
static void yield(void)
{
	wait_event others_ran = WAIT_EVENT_INIT;
	cr_assert(eq(int, loop_spawn(loop_current(), set_event, &others_ran), 0));
	wait_event_wait(NULL, &others_ran);
}

/* ---- Many ---------------------------------------------------------------------------------------------- */

static wait_event gates[MANY];
static int ended;

/* Each writes all over its own stack before and after; what it finds must be what it wrote. */
static void use_stack(void *arg)
{
	unsigned number = (unsigned)(uintptr_t)arg;
	volatile unsigned char bytes[4096];
	for (size_t i = 0; i < sizeof(bytes); i++)
		bytes[i] = (unsigned char)(number * 31 + i);
	wait_event_wait(NULL, &gates[number]);
	for (size_t i = 0; i < sizeof(bytes); i++)
		if (bytes[i] != (unsigned char)(number * 31 + i))
			abort();
	ended++;
}

static void many_at_once(void *arg)
{
	loop *l = loop_current();
	size_t kept = (size_t)(uintptr_t)arg;
	for (int round = 0; round < 2; round++) {
		ended = 0;
		for (size_t i = 0; i < MANY; i++)
			cr_assert(eq(int, loop_spawn(l, use_stack, (void *)i), 0));
		yield();
		cr_assert(eq(sz, loop_fibers(l), MANY + 1));
		cr_assert(eq(sz, loop_stacks(l), MANY + 1 + 1), "and that of yield's, which is kept");
		for (size_t i = 0; i < MANY; i++)
			wait_event_set(&gates[(i * 7) % MANY]);
		yield();
		cr_assert(eq(int, ended, MANY));
		cr_assert(eq(sz, loop_fibers(l), 1));
		cr_assert(eq(sz, loop_stacks(l), kept + 1), "the rest is given back");
	}
}

Test(loop_fibers, ten_thousand_at_once_and_back_to_the_baseline, .timeout = 300)
{
	in_fiber(many_at_once, (void *)256);
}

Test(loop_fibers, stacks_kept_is_an_option, .timeout = 300)
{
	in_fiber_with(&(loop_options){.stacks_kept = 3}, many_at_once, (void *)3);
}

static void nothing(void *arg)
{
	(void)arg;
}

static void one_after_the_other(void *arg)
{
	(void)arg;
	for (int i = 0; i < 100000; i++)
		yield();
	cr_assert(eq(sz, loop_stacks(loop_current()), 2), "a stack is used again and again");
}

Test(loop_fibers, a_stack_is_reused, .timeout = 120)
{
	in_fiber(one_after_the_other, NULL);
}

/* ---- Across a wait --------------------------------------------------------------------------------------- */

static void spoil_errno(void *arg)
{
	errno = EXDEV;
	wait_event_wait(NULL, arg);
	errno = ENOTDIR;
}

static void keeps_errno(void *arg)
{
	wait_event gate = WAIT_EVENT_INIT;
	(void)arg;
	loop_spawn(loop_current(), spoil_errno, &gate);
	errno = EDOM;
	yield();
	cr_assert(eq(int, errno, EDOM), "not another fiber's");
	wait_event_set(&gate);
	yield();
	cr_assert(eq(int, errno, EDOM));
}

Test(loop_fibers, errno_is_the_fibers_own, .timeout = 30)
{
	in_fiber(keeps_errno, NULL);
}

static void keeps_registers(void *arg)
{
	/* More live values than a processor has registers, of both kinds. */
	long n = (long)(intptr_t)arg;
	long a = n + 1, b = n + 2, c = n + 3, d = n + 4, e = n + 5, f = n + 6, g = n + 7, h = n + 8;
	double u = (double)n + 0.5, v = u + 1, w = v + 1, x = w + 1;
	for (int i = 0; i < 100; i++) {
		yield();
		a += b, c += d, e += f, g += h;
		u += v, w += x;
	}
	cr_assert(eq(long, a + c + e + g, 4 * n + 16 + 100 * (4 * n + 20)));
	cr_assert(eq(dbl, u + w, 2 * (double)n + 3 + 100 * (2 * (double)n + 5)));
}

static void several_keep_registers(void *arg)
{
	(void)arg;
	for (intptr_t i = 0; i < 20; i++)
		loop_spawn(loop_current(), keeps_registers, (void *)i);
}

Test(loop_fibers, locals_survive_a_wait, .timeout = 30)
{
	in_fiber(several_keep_registers, NULL);
}

/* ---- Spawning from other threads ------------------------------------------------------------------------- */

enum { SPAWNERS = 4, SPAWNS = 5000 };

static atomic_int ran;

static void count_run(void *arg)
{
	(void)arg;
	atomic_fetch_add(&ran, 1);
}

static void *spawn_many(void *arg)
{
	for (int i = 0; i < SPAWNS; i++)
		while (loop_spawn(arg, count_run, NULL) != 0)
			; /* only so many maps: the loop is behind */
	return NULL;
}

Test(loop_fibers, spawned_from_any_thread, .timeout = 120)
{
	pthread_t threads[SPAWNERS];
	loop_thread *t = loop_thread_start(&(loop_options){.stack_size = 16 * 1024});
	for (int i = 0; i < SPAWNERS; i++)
		pthread_create(&threads[i], NULL, spawn_many, loop_thread_loop(t));
	for (int i = 0; i < SPAWNERS; i++)
		pthread_join(threads[i], NULL);
	cr_assert(loop_fibers_become(loop_thread_loop(t), 0));
	cr_assert(le(sz, loop_stacks(loop_thread_loop(t)), 256));
	loop_thread_stop(t);
	cr_assert(eq(int, atomic_load(&ran), SPAWNERS *SPAWNS));
}

/* ---- Stacks ------------------------------------------------------------------------------------------------ */

static size_t resident_kib(void)
{
	long total, resident;
	FILE *file = fopen("/proc/self/statm", "r");
	cr_assert_not_null(file);
	cr_assert(eq(int, fscanf(file, "%ld %ld", &total, &resident), 2));
	fclose(file);
	return (size_t)resident * (size_t)sysconf(_SC_PAGESIZE) / 1024;
}

enum { DEEP = 200, DEEP_KIB = 200 };

static void go_deep(void *arg)
{
	volatile char bytes[DEEP_KIB * 1024];
	for (size_t i = 0; i < sizeof(bytes); i += 512)
		bytes[i] = 1;
	wait_event_wait(NULL, arg);
	bytes[0] = 2;
}

static void deep_then_shallow(void *arg)
{
	size_t before = resident_kib();
	(void)arg;
	for (int i = 0; i < DEEP; i++)
		loop_spawn(loop_current(), go_deep, &gates[i]);
	yield();
	size_t deep = resident_kib();
	for (int i = 0; i < DEEP; i++)
		wait_event_set(&gates[i]);
	yield();
	size_t after = resident_kib();
	cr_assert(eq(sz, loop_stacks(loop_current()), DEEP + 2), "all are kept,");
	if (support_patience() > 1)
		return; /* under a sanitizer its own shadow memory is counted too */
	cr_expect(gt(sz, deep - before, DEEP * (DEEP_KIB - 8)));
	cr_expect(lt(sz, after - before, 64 * DEEP_KIB + DEEP * 16),
	          "but no more than 64 with the pages they had used");
}

Test(loop_fibers, a_stack_that_went_deep_gives_its_pages_back, .timeout = 60)
{
	in_fiber_with(&(loop_options){.stack_size = 256 * 1024}, deep_then_shallow, NULL);
}

static int dig(volatile char *above)
{
	volatile char here[512];
	here[0] = above[0];
	if (here[0] == 0)
		return 0; /* never: overflow() begins with a 1 */
	return dig(here) + here[0];
}

static void overflow(void *arg)
{
	volatile char bottom[1] = {1};
	*(volatile int *)arg = dig(bottom);
}

static void dies_by_sigsegv(void (*fn)(void *arg), void *arg)
{
	if (RUNNING_ON_VALGRIND)
		cr_skip_test("valgrind reports the child's end as an error of the test");
	pid_t child = fork();
	if (child == 0) {
		setrlimit(RLIMIT_CORE, &(struct rlimit){0, 0});
		signal(SIGSEGV, SIG_DFL); /* not the sanitizer's report */
		in_fiber(fn, arg);
		_exit(0);
	}
	int status;
	cr_assert(eq(int, waitpid(child, &status, 0), child));
	int signal_number = WIFSIGNALED(status) ? WTERMSIG(status) : 0;
	cr_assert(eq(int, signal_number, SIGSEGV));
}

Test(loop_fibers, an_overflow_hits_the_guard, .timeout = 60)
{
	int result;
	dies_by_sigsegv(overflow, &result);
}

/*
 * A frame wider than a page, in code without stack probes, is first touched at its far end. That must still be
 * the guard, not a neighbour's stack.
 */
static void leap_from_the_end(void *arg)
{
	char *here = __builtin_frame_address(0);
	(void)arg;
	FILE *maps = fopen("/proc/self/maps", "r");
	char line[512];
	unsigned long low, high;
	char mode[5];
	while (fgets(line, sizeof(line), maps))
		if (sscanf(line, "%lx-%lx %4s", &low, &high, mode) == 3 && (unsigned long)here >= low &&
		    (unsigned long)here < high)
			*(volatile char *)(low - 48 * 1024) = 1;
	fclose(maps);
}

Test(loop_fibers, the_guard_is_wider_than_a_frame, .timeout = 60)
{
	dies_by_sigsegv(leap_from_the_end, NULL);
}

/* ---- Failures ----------------------------------------------------------------------------------------------- */

Test(loop_fibers, no_memory_for_a_loop, .timeout = 30)
{
	unsigned n;
	for (n = 1; n < 100; n++) {
		fault_set(FAULT_MEMORY, n);
		errno = 0;
		loop *l = loop_new(NULL);
		if (!fault_clear(FAULT_MEMORY)) {
			loop_free(l);
			break;
		}
		cr_assert_null(l);
		cr_assert(eq(int, errno, ENOMEM));
	}
	cr_assert(gt(uint, n, 1));
	cr_assert(lt(uint, n, 100));
}

Test(loop_fibers, absurd_stack_sizes_are_refused_or_rounded, .timeout = 30)
{
	loop *l = loop_new(&(loop_options){.stack_size = SIZE_MAX - 10});
	cr_assert_null(l);
	cr_assert(eq(int, errno, ENOMEM));
	l = loop_new(&(loop_options){.stack_size = SIZE_MAX / 1024});
	cr_assert(eq(int, loop_spawn(l, nothing, NULL), -1), "more than an address space has");
	cr_assert(eq(int, errno, ENOMEM));
	cr_assert(eq(sz, loop_fibers(l), 0));
	loop_free(l);
	in_fiber_with(&(loop_options){.stack_size = 1}, one_after_the_other, NULL);
}

Test(loop_fibers, no_memory_for_a_post, .timeout = 30)
{
	loop *l = loop_new(NULL);
	fault_set(FAULT_MEMORY, 1);
	cr_assert(eq(int, loop_post(l, nothing, NULL), -1));
	cr_assert(eq(int, errno, ENOMEM));
	cr_assert(fault_clear(FAULT_MEMORY));
	loop_free(l);
}

/* The kernel gives a process some 65 000 memory maps, and a stack is two. */
static void spawn_until_refused(void *arg)
{
	loop *l = loop_current();
	wait_event *gate = arg;
	size_t spawned = 0;
	while (loop_spawn(l, set_event, gate) == 0)
		if (++spawned > 200000)
			return; /* a kernel without that limit */
	int refused = errno;
	size_t fibers = loop_fibers(l), stacks = loop_stacks(l);
	wait_event_wait(NULL, gate); /* the ends of those that run now give maps back */
	cr_assert(eq(int, refused, ENOMEM));
	cr_assert(eq(sz, fibers, spawned + 1));
	cr_assert(eq(sz, stacks, spawned + 1));
	yield();
	cr_assert(eq(sz, loop_fibers(l), 1), "what was spawned before has run");
	cr_assert(eq(sz, loop_stacks(l), 257));
}

Test(loop_fibers, no_memory_maps_left, .timeout = 300)
{
#ifdef UNDER_TSAN
	cr_skip_test("ThreadSanitizer knows 8128 threads, and counts a fiber as one");
#endif
	if (RUNNING_ON_VALGRIND)
		cr_skip_test("valgrind itself runs out first");
	wait_event gate = WAIT_EVENT_INIT;
	in_fiber_with(&(loop_options){.stack_size = 16 * 1024}, spawn_until_refused, &gate);
}
