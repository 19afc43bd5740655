#include "alloc_fault.h"

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stddef.h>

/* Weak, so that programs which are linked without --wrap still link. */
#define REAL __attribute__((weak)) extern

REAL void *__real_malloc(size_t size);
REAL void *__real_calloc(size_t n, size_t size);
REAL void *__real_realloc(void *p, size_t size);
REAL char *__real_strdup(const char *s);
REAL char *__real_strndup(const char *s, size_t n);
REAL int __real_pthread_create(pthread_t *thread, const pthread_attr_t *attr, void *(*fn)(void *), void *arg);
REAL int __real_eventfd(unsigned count, int flags);

void *__wrap_malloc(size_t size);
void *__wrap_calloc(size_t n, size_t size);
void *__wrap_realloc(void *p, size_t size);
char *__wrap_strdup(const char *s);
char *__wrap_strndup(const char *s, size_t n);
int __wrap_pthread_create(pthread_t *thread, const pthread_attr_t *attr, void *(*fn)(void *), void *arg);
int __wrap_eventfd(unsigned count, int flags);

static _Thread_local struct {
	unsigned long calls;
	unsigned left; /* until the one that fails; 0: none */
	bool struck;
} mine[FAULT_KINDS];

static struct {
	atomic_uint left;
	atomic_bool always, struck;
} all[FAULT_KINDS];

void fault_set(fault_kind kind, unsigned n)
{
	mine[kind].left = n;
	mine[kind].struck = false;
}

void fault_set_process(fault_kind kind, unsigned n)
{
	atomic_store(&all[kind].struck, false);
	atomic_store(&all[kind].left, n);
}

void fault_set_always(fault_kind kind, bool on)
{
	atomic_store(&all[kind].struck, false);
	atomic_store(&all[kind].always, on);
}

bool fault_clear(fault_kind kind)
{
	bool struck = mine[kind].struck || atomic_load(&all[kind].struck);

	fault_set(kind, 0);
	fault_set_process(kind, 0);
	fault_set_always(kind, false);
	return struck;
}

unsigned long fault_calls(fault_kind kind)
{
	return mine[kind].calls;
}

/* True once, when the count that was set has come down to nothing. */
static bool count_down(atomic_uint *left)
{
	unsigned n = atomic_load(left);

	while (n > 0) {
		if (atomic_compare_exchange_weak(left, &n, n - 1))
			return n == 1;
	}
	return false;
}

static bool strikes(fault_kind kind)
{
	mine[kind].calls++;
	if (mine[kind].left > 0 && --mine[kind].left == 0) {
		mine[kind].struck = true;
		return true;
	}
	if (atomic_load(&all[kind].always) || count_down(&all[kind].left)) {
		atomic_store(&all[kind].struck, true);
		return true;
	}
	return false;
}

static bool memory_strikes(void)
{
	if (!strikes(FAULT_MEMORY))
		return false;
	errno = ENOMEM;
	return true;
}

void *__wrap_malloc(size_t size)
{
	return memory_strikes() ? NULL : __real_malloc(size);
}

void *__wrap_calloc(size_t n, size_t size)
{
	return memory_strikes() ? NULL : __real_calloc(n, size);
}

void *__wrap_realloc(void *p, size_t size)
{
	return memory_strikes() ? NULL : __real_realloc(p, size);
}

char *__wrap_strdup(const char *s)
{
	return memory_strikes() ? NULL : __real_strdup(s);
}

char *__wrap_strndup(const char *s, size_t n)
{
	return memory_strikes() ? NULL : __real_strndup(s, n);
}

int __wrap_pthread_create(pthread_t *thread, const pthread_attr_t *attr, void *(*fn)(void *), void *arg)
{
	return strikes(FAULT_THREAD) ? EAGAIN : __real_pthread_create(thread, attr, fn, arg);
}

int __wrap_eventfd(unsigned count, int flags)
{
	if (strikes(FAULT_FD)) {
		errno = EMFILE;
		return -1;
	}
	return __real_eventfd(count, flags);
}
