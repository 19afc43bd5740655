/* Loops for tests: fibers to run a test in, and loops on threads of their own. */
#ifndef TESTS_LOOPS_H
#define TESTS_LOOPS_H

#include <tether/loop.h>

/*
 * Runs fn(arg) in the first fiber of a loop of its own, on the calling thread, and stops the loop when fn has
 * returned; blocks until every fiber has ended and the loop is freed. options may be NULL. Aborts on failure.
 */
void in_fiber(void (*fn)(void *arg), void *arg);
void in_fiber_with(const loop_options *options, void (*fn)(void *arg), void *arg);

/*
 * One test body, run on a plain thread and on a fiber:
 *
 *	TEST_BOTH_WAYS(suite, name)
 *	{
 *		…
 *	}
 */
#define TEST_BOTH_WAYS(suite, name)                     \
	static void suite##_##name(void *nothing);      \
	Test(suite, name##_on_a_thread, .timeout = 300) \
	{                                               \
		suite##_##name(NULL);                   \
	}                                               \
	Test(suite, name##_on_a_fiber, .timeout = 300)  \
	{                                               \
		in_fiber(suite##_##name, NULL);         \
	}                                               \
	static void suite##_##name(void *nothing __attribute__((unused)))

/* On a fiber: returns when every other that was ready to run has run. Aborts on failure. */
void let_others_run(void);

/* A loop that a thread of its own runs. Aborts on failure. */
typedef struct loop_thread loop_thread;
loop_thread *loop_thread_start(const loop_options *options);
loop *loop_thread_loop(const loop_thread *t);

/* Stops the loop, waits for its last fiber and its thread, and frees it. NULL is allowed. */
void loop_thread_stop(loop_thread *t);

/* Waits (outer bound 20 s) until the loop has exactly n fibers alive. */
bool loop_fibers_become(loop *l, size_t n);

#endif
