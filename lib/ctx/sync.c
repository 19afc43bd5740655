/*
 * The lock of a context, and the starting of the library's own threads.
 */
#include "ctx_priv.h"

#include <signal.h>
#include <unistd.h>

#include <sys/syscall.h>

/* As in linux/futex.h, which is not there wherever a libc is. */
enum { FUTEX_WAIT_PRIVATE = 0 | 128, FUTEX_WAKE_PRIVATE = 1 | 128 };

#define SPINS 100

static inline void spin_pause(void)
{
#if defined(__x86_64__) || defined(__i386__)
	__builtin_ia32_pause();
#elif defined(__aarch64__)
	__asm__ volatile("isb");
#endif
}

/* What is done under a context's lock takes nanoseconds, so it is worth a look before sleeping. */
void ctx_lock_wait(ctx_lock *l)
{
	for (int i = 0; i < SPINS; i++) {
		unsigned expected = CTX_LOCK_FREE;

		if (atomic_load_explicit(&l->state, memory_order_relaxed) == CTX_LOCK_FREE &&
		    atomic_compare_exchange_weak_explicit(&l->state, &expected, CTX_LOCK_HELD,
		                                          memory_order_acquire, memory_order_relaxed))
			return;
		spin_pause();
	}
	while (atomic_exchange_explicit(&l->state, CTX_LOCK_CONTENDED, memory_order_acquire) != CTX_LOCK_FREE)
		syscall(SYS_futex, &l->state, FUTEX_WAIT_PRIVATE, CTX_LOCK_CONTENDED, NULL, NULL, 0);
}

void ctx_lock_wake(ctx_lock *l)
{
	syscall(SYS_futex, &l->state, FUTEX_WAKE_PRIVATE, 1, NULL, NULL, 0);
}

/* No thread of the library takes a signal that is meant for the program. 0 or an errno value. */
int ctx_thread_start(void *(*fn)(void *arg), void *arg, pthread_t *thread)
{
	sigset_t all, before;
	pthread_attr_t attr;
	int error;

	error = pthread_attr_init(&attr);
	if (error)
		return error;
	pthread_attr_setstacksize(&attr, CTX_THREAD_STACK);
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &before);
	error = pthread_create(thread, &attr, fn, arg);
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	pthread_attr_destroy(&attr);
	return error;
}

/* When to stop waiting for something at exit. */
struct timespec ctx_shutdown_deadline(clockid_t clock)
{
	struct timespec ts;

	clock_gettime(clock, &ts);
	ts.tv_sec += 1;
	return ts;
}

/*
 * Joins a thread that was told to leave; but a program that exits while one of its hooks is stuck on this thread
 * must exit all the same.
 */
void ctx_thread_join(pthread_t thread)
{
	struct timespec until = ctx_shutdown_deadline(CLOCK_REALTIME);

	pthread_timedjoin_np(thread, NULL, &until);
}

/* At exit, or when the library is unloaded: none of its threads may still be in its code. */
__attribute__((destructor)) static void stop_threads(void)
{
	ctx_signals_shutdown();
	ctx_timers_shutdown();
	ctx_after_shutdown();
}
