/*
 * Fibers and their stacks: many at once, reuse, the guard, what a fiber keeps across a wait, and running out of
 * memory or of memory maps.
 */
#include <criterion/criterion.h>
#include <criterion/new/assert.h>
#include <errno.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

#include "alloc_fault.h"
#include "child.h"
#include "loops.h"
#include "support.h"
#include "under.h"

/* ThreadSanitizer knows 8128 threads, and counts a fiber as one. */
enum { MANY = UNDER_TSAN ? 2000 : 10000 };

#if __has_include(<valgrind/valgrind.h>)
#include <valgrind/valgrind.h>
#else
#define RUNNING_ON_VALGRIND 0
#endif

static void set_event(void *arg)
{
	wait_event_set(arg);
}

/* ---- Many ---------------------------------------------------------------------------------------------- */

static wait_event gates[MANY];
static int ended;

/* Each writes all over its own stack before and after; what it finds must be what it wrote. */
static void use_stack(void *arg)
{
	size_t number = (size_t)(uintptr_t)arg;
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
		let_others_run();
		cr_assert(eq(sz, loop_fibers(l), MANY + 1));
		cr_assert(eq(sz, loop_stacks(l), MANY + 1 + 1),
		          "and that of let_others_run's, which is kept");
		for (size_t i = 0; i < MANY; i++)
			wait_event_set(&gates[(i * 7) % MANY]);
		let_others_run();
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
		let_others_run();
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
	let_others_run();
	cr_assert(eq(int, errno, EDOM), "not another fiber's");
	wait_event_set(&gate);
	let_others_run();
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
		let_others_run();
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

#if defined(__SANITIZE_ADDRESS__) || __has_feature(address_sanitizer)
#include <sanitizer/asan_interface.h>
#else
#define __asan_address_is_poisoned(address) ((void)(address), 1)
#endif

/*
 * AddressSanitizer's longjmp lifted the redzones of all frames of the stack it left, so that what overran a buffer
 * after its fiber's first wait was not seen.
 */
static void redzones(void *arg)
{
	volatile char *before = arg; /* keeps the buffer in memory */
	volatile char buffer[16] = {1};
	before = buffer;
	cr_assert(eq(int, __asan_address_is_poisoned(before + 16), 1));
	let_others_run();
	cr_assert(eq(int, __asan_address_is_poisoned(before + 16), 1));
}

Test(loop_fibers, overruns_are_seen_after_a_wait_too, .timeout = 30, .disabled = !UNDER_ASAN)
{
	in_fiber(redzones, NULL);
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
	for (int i = 0; i < SPAWNS; i++) {
		while (loop_fibers(arg) > 1000)
			sched_yield();
		if (loop_spawn(arg, count_run, NULL) != 0)
			abort();
	}
	return NULL;
}

Test(loop_fibers, spawned_from_any_thread, .timeout = 120)
{
	pthread_t threads[SPAWNERS];
	loop_thread *t = loop_thread_start(&(loop_options){.stack_size = 16 << 10});
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

static const size_t DEEP = 200, DEEP_KIB = 200;

static void go_deep(void *arg)
{
	volatile char bytes[200 << 10];
	for (size_t i = 0; i < sizeof(bytes); i += 512)
		bytes[i] = 1;
	wait_event_wait(NULL, arg);
	bytes[0] = 2;
}

static void deep_then_shallow(void *arg)
{
	size_t before = (size_t)support_resident_kib();
	(void)arg;
	for (size_t i = 0; i < DEEP; i++)
		loop_spawn(loop_current(), go_deep, &gates[i]);
	let_others_run();
	size_t deep = (size_t)support_resident_kib();
	for (size_t i = 0; i < DEEP; i++)
		wait_event_set(&gates[i]);
	let_others_run();
	size_t after = (size_t)support_resident_kib();
	cr_assert(eq(sz, loop_stacks(loop_current()), DEEP + 2), "all are kept,");
	if (UNDER_ASAN || UNDER_TSAN || RUNNING_ON_VALGRIND)
		return; /* whose own memory is counted too */
	cr_expect(ge(sz, deep - before, DEEP * (DEEP_KIB - 8) + 1));
	cr_expect(lt(sz, after - before, 64 * DEEP_KIB + DEEP * 16),
	          "but no more than 64 with the pages they had used");
}

Test(loop_fibers, a_stack_that_went_deep_gives_its_pages_back, .timeout = 60)
{
	in_fiber_with(&(loop_options){.stack_size = 256 << 10}, deep_then_shallow, NULL);
}

/*
 * The guard, tried in a child with other stacks all around: what goes over a stack's end must fault there, in the
 * 64 KiB below it, and not write to a neighbour.
 */
static uintptr_t stack_low;

static void on_fault(int number, siginfo_t *info, void *context)
{
	uintptr_t at = (uintptr_t)info->si_addr;
	(void)number, (void)context;
	_exit(at < stack_low && at >= stack_low - (64 << 10) ? 42 : 43);
}

static void find_stack_low(void)
{
	uintptr_t here = (uintptr_t)__builtin_frame_address(0);
	char line[512];
	FILE *maps = fopen("/proc/self/maps", "r"); /* "LOW-HIGH MODE …" */
	while (maps && fgets(line, sizeof(line), maps)) {
		char *end;
		uintptr_t low = strtoul(line, &end, 16), high = strtoul(end + 1, NULL, 16);
		if (low <= here && here < high)
			stack_low = low;
	}
	if (maps)
		fclose(maps);
	if (here - stack_low > (256 << 10))
		_exit(44); /* that is more than one stack, even under a sanitizer */
}

static int dig(const volatile char *above)
{
	volatile char here[512];
	here[0] = above[0];
	if (here[0] == 0)
		return 0; /* never: it begins with a 1 */
	return dig(here) + here[0];
}

static void overflow(void)
{
	volatile char bottom[1] = {1};
	_exit(dig(bottom));
}

/* A frame wider than a page, in code without stack probes, is first touched at its far end. */
static void leap(void)
{
	*(volatile char *)(stack_low - (48 << 10)) = 1;
}

static void go_over_the_end(void *arg)
{
	static char signal_stack[64 << 10];
	for (int i = 0; i < 8; i++)
		loop_spawn(loop_current(), use_stack, (void *)(uintptr_t)i);
	let_others_run();
	find_stack_low();
	sigaltstack(&(stack_t){.ss_sp = signal_stack, .ss_size = sizeof(signal_stack)}, NULL);
	sigaction(SIGSEGV, &(struct sigaction){.sa_sigaction = on_fault, .sa_flags = SA_SIGINFO | SA_ONSTACK},
	          NULL);
	(*(void (**)(void))arg)();
}

static void in_small_fiber(void *arg)
{
	in_fiber_with(&(loop_options){.stack_size = 64 << 10}, go_over_the_end, arg);
}

static void faults_in_the_guard(void (*fn)(void))
{
	if (RUNNING_ON_VALGRIND)
		cr_skip_test("valgrind reports the child's fault as an error of the test");
	char said[256];
	int status = in_child(in_small_fiber, (void *)&fn, said, sizeof(said));
	int code = WIFEXITED(status) ? WEXITSTATUS(status) : -1;
	cr_assert(eq(int, code, 42), "status %#x, %s", (unsigned)status, said);
}

Test(loop_fibers, an_overflow_faults_in_the_guard, .timeout = 60)
{
	faults_in_the_guard(overflow);
}

Test(loop_fibers, a_wide_frame_does_not_step_over_the_guard, .timeout = 60)
{
	faults_in_the_guard(leap);
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
	cr_assert(ge(uint, n, 2));
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

static size_t mapped_kib(void)
{
	char line[128] = "";
	FILE *file = fopen("/proc/self/statm", "r"); /* "TOTAL …", in pages */
	cr_assert_not_null(file);
	cr_assert_not_null(fgets(line, sizeof(line), file));
	fclose(file);
	return strtoul(line, NULL, 10) * (size_t)sysconf(_SC_PAGESIZE) / 1024;
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
	size_t before = mapped_kib();
	for (int i = 0; i < 1000; i++)
		if (loop_spawn(l, set_event, gate) == 0)
			spawned++, fibers++, stacks++;
	size_t after = mapped_kib();
	wait_event_wait(NULL, gate); /* the ends of those that run now give maps back */
	cr_assert(eq(int, refused, ENOMEM));
	cr_assert(eq(sz, fibers, spawned + 1));
	cr_assert(eq(sz, stacks, spawned + 1));
	cr_assert(lt(sz, after - before, 10 << 10), "a refusal leaves nothing behind");
	let_others_run();
	cr_assert(eq(sz, loop_fibers(l), 1), "what was spawned before has run");
	cr_assert(eq(sz, loop_stacks(l), 257));
}

Test(loop_fibers, no_memory_maps_left, .timeout = 300, .disabled = UNDER_TSAN)
{
	if (RUNNING_ON_VALGRIND)
		cr_skip_test("valgrind itself runs out first");
	wait_event gate = WAIT_EVENT_INIT;
	in_fiber_with(&(loop_options){.stack_size = 16 << 10}, spawn_until_refused, &gate);
}
