/* Code that ends its process, run in a child of the test's. */
#ifndef TESTS_CHILD_H
#define TESTS_CHILD_H

#include <stddef.h>

/*
 * Forks, and calls fn(arg) in the child, whose fatal signals are not caught (not even by a sanitizer) and leave no
 * core. What it says on stderr is stored at `said`, cut off at size bytes and NUL-terminated. Returns the child's
 * status as waitpid gives it, 0 if fn has returned; -1 on failure.
 */
int in_child(void (*fn)(void *arg), void *arg, char *said, size_t size);

#endif
