/*
 * Makes allocations fail, one by one, to see what the code under test does then.
 *
 * The test programs are linked with --wrap for the functions below (see the Makefile), so that calls from
 * libtether.a and from the tests themselves come through alloc_fault.c; calls from within other libraries do not.
 * Works under the sanitizers and valgrind.
 *
 *	FAULT_MEMORY	malloc, calloc, realloc, strdup, strndup		NULL, ENOMEM
 *	FAULT_THREAD	pthread_create						EAGAIN
 *	FAULT_FD	eventfd							-1, EMFILE
 *
 * The pattern, for a call that makes any number of allocations:
 *
 *	for (unsigned n = 1; n < 100; n++) {
 *		fault_set(FAULT_MEMORY, n);
 *		thing *t = thing_new();
 *		if (!fault_clear(FAULT_MEMORY))
 *			break;                  // it makes fewer than n; t is good
 *		cr_assert_null(t);
 *	}
 */
#ifndef TESTS_ALLOC_FAULT_H
#define TESTS_ALLOC_FAULT_H

#include <stdbool.h>

typedef enum fault_kind { FAULT_MEMORY, FAULT_THREAD, FAULT_FD, FAULT_KINDS } fault_kind;

/* The n-th such call from now on this thread fails, once; 0: none. */
void fault_set(fault_kind kind, unsigned n);

/* The n-th such call from now in the whole process fails, once; 0: none. */
void fault_set_process(fault_kind kind, unsigned n);

/* From now on every such call in the process fails, or none. */
void fault_set_always(fault_kind kind, bool on);

/* Takes back what was set. True if a call has failed since it was. */
bool fault_clear(fault_kind kind);

/* How many such calls this thread has made so far. */
unsigned long fault_calls(fault_kind kind);

#endif
