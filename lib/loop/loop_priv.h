/*
 * What the files of this layer share:
 *
 *	loop.c     a libuv loop and its turns: tasks, fibers, hooks, beginning and end
 *	fiber.c    stacks, and the switch between them
 *	wait.c     wait_event, and the waits that are one underneath: for a context, for time, for a blocking call
 *	wait_fd.c  for a file
 *	waitq.c    in a queue
 *
 * Each struct is owned by the file named with it; the others reach inside only where a comment says so.
 */
#ifndef TETHER_LOOP_PRIV_H
#define TETHER_LOOP_PRIV_H

#include <errno.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#include <uv.h>

#include <tether/loop.h>

#define container_of(pointer, type, member) ((type *)(void *)((char *)(pointer)-offsetof(type, member)))

#pragma GCC visibility push(hidden)

typedef struct fiber fiber;
typedef struct watch watch;

/* ---- fiber.c: stacks and the switch between them ---------------------------------------------------- */

/*
 * A fiber, which lies at the top of its own stack and lives as long as that: stack and fiber are taken from
 * the pool and go back to it as one.
 *
 *	           fiber_take                fiber_resume                 fiber_park
 *	 POOLED ──────────────► READY ───────────────────────► RUNNING ──────────────► PARKED
 *	   ▲                      ▲                               │                       │
 *	   │      fn returned     │                               │                       │ fiber_wake
 *	   └──────────────────────┼───────────────────────────────┘                       │
 *	                          └───────────────────────────────────────────────────────┘
 *
 * A READY fiber is on its loop's ready list, or on its way there through the loop's task queue. Exactly one
 * fiber_wake answers each fiber_park, and it may come before it (then the park returns at once): this is
 * what lets a waker on another thread touch a fiber without a count of references.
 */
struct fiber {
	uint64_t magic;
	loop_task task; /* carries a wake-up from another thread */
	fiber *next;    /* on the ready list, or in the pool */
	loop *loop;
	void (*fn)(void *arg); /* NULL once it has returned */
	void *arg;
	bool entered; /* the stack is in fiber_main: a switch gets there, makecontext is not needed */
	bool woken;   /* by its own loop's thread, before it parked */
	void *stack;  /* lowest usable address; the guard page is below */
	jmp_buf context;
	void *sanitizer_stack; /* ASan's fake stack of this fiber while it is parked */
	void *sanitizer_fiber; /* TSan's idea of this fiber */
	unsigned valgrind_id;  /* valgrind's idea of its stack */
};

/* The stacks of a loop. Taken from by any thread that spawns, hence the mutex. */
typedef struct stack_pool {
	pthread_mutex_t mutex;
	fiber *warm, *cold; /* free ones: with their pages as they were used, and with none but the top */
	size_t warm_count, cold_count;
	size_t kept_max;   /* of both; what ends beyond is unmapped */
	size_t stack_size; /* usable bytes */
	atomic_size_t mapped;
} stack_pool;

int stack_pool_init(stack_pool *pool, size_t stack_size, size_t kept_max);
void stack_pool_destroy(stack_pool *pool);

fiber *fiber_take(loop *l, void (*fn)(void *arg), void *arg); /* any thread; NULL with errno ENOMEM */
void fiber_give_back(fiber *f);                               /* one that has ended, or never began */
bool fiber_resume(fiber *f); /* on the loop's own stack; true: it has ended, f is gone */
void fiber_park(fiber *f);   /* by the fiber itself; keeps errno */

/* ---- loop.c: turns ---------------------------------------------------------------------------------- */

struct loop {
	/* Reached from other threads. */
	_Atomic(loop_task *) posted; /* newest first; CLOSED once loop_run is over */
	atomic_bool asleep;          /* nothing looks at `posted` before the loop is woken */
	atomic_bool stopping;
	atomic_uint posting; /* threads inside post() or loop_stop(), which loop_free waits for */
	atomic_size_t fibers;
	uv_async_t wakeup;
	stack_pool stacks;
	pthread_mutex_t exit_mutex;
	loop_exit *exits;

	/* The loop's thread only. */
	fiber *running; /* NULL on the loop's own stack */
	fiber *ready_first, **ready_end;
	loop_turn *turns, *turn_next; /* turn_next: the one the walk goes to next */
	unsigned immediate_waits;     /* of this turn: see wait_fd */
	bool has_run;
	watch **watches; /* by fd; wait_fd.c */
	size_t watch_slots;
	jmp_buf context; /* the loop's own stack while a fiber runs */
	void *sanitizer_stack, *sanitizer_fiber;
	const void *stack_bottom;
	size_t stack_size;
	uv_prepare_t prepare; /* the turn, just before libuv blocks */
	uv_idle_t no_block;   /* active while the next turn must follow without blocking */
	uv_loop_t uv;
};

void loop_make_ready(fiber *f); /* on its loop's thread */
void fiber_wake(fiber *f);      /* from any thread, once for each fiber_park */
void fiber_yield(fiber *f);     /* by the fiber itself: after all others that are ready now */

/* The fiber that calls, NULL on a plain thread. On a loop's own stack nobody may wait: aborts, naming the call. */
fiber *loop_waiting_fiber(const char *call);

/* A broken program, told in one line; the library goes no further with it. */
_Noreturn void loop_misuse(const char *call, const char *why);

/* ---- wait.c, wait_fd.c, waitq.c: the wait_*() calls ------------------------------------------------- */

/* For the calls that return -1 with errno. */
static inline int loop_fail(int error)
{
	errno = error;
	return -1;
}

void watches_close(loop *l); /* has libuv close them all */
void watches_free(loop *l);  /* when libuv has done with them */

#pragma GCC visibility pop

#endif
