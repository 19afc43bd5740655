/* Threads that start at the same moment: the way to stage a race. */
#ifndef TESTS_TOGETHER_H
#define TESTS_TOGETHER_H

/*
 * Calls fn(arg, 0) to fn(arg, n - 1) on `n` threads, which set out together once all are there. Returns when
 * all have returned. Aborts the test if a thread cannot be had.
 */
void together(int n, void (*fn)(void *arg, int index), void *arg);

#endif
