/*
 * tether/loop.h — waiting under a context: event loops, fibers, and the wait_*() calls.
 *
 * A loop is one thread that runs many fibers. A fiber is a function with a stack of its own that gives up
 * the thread only inside a wait_*() call; between two waits nothing else runs on that loop, so state that
 * belongs to one loop needs no lock. A fiber never changes its loop.
 *
 * Every wait_*() call takes a context and ends when that context is done. The same calls work on a plain
 * thread, where they block it: code written once with wait_*() serves both worlds.
 *
 *	static void echo(void *arg)
 *	{
 *		struct client *client = arg;
 *		ctx_auto *session = ctx_with_timeout(client->ctx, 30 * CTX_SECOND);
 *		while (session && wait_fd(session, client->fd, WAIT_READ) == WAIT_READ && copy_back(client->fd))
 *			;
 *		client_close(client);
 *	}
 *
 * Unless a comment says otherwise a call may be made from any thread and does not block. Where a call needs a
 * certain thread, calling it on another is a bug in the program; so is waiting on a loop's own stack (in a
 * task, a hook or a libuv callback), which would stop all of the loop's fibers. Such bugs, as far as they can
 * be seen, end the program with a line on stderr.
 *
 * What a context does not end, because nothing can: a function that wait_blocking has begun, a wait on a
 * mutex (wait_queue_wait takes its caller's again before it returns), and code that does not wait at all.
 */
#ifndef TETHER_LOOP_H
#define TETHER_LOOP_H

#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <tether/ctx.h>

#ifdef __cplusplus
extern "C" {
#endif

/* ---- Loops ------------------------------------------------------------------------------------------ */

typedef struct loop loop;
struct uv_loop_s;

typedef struct loop_options {
	size_t stack_size;  /* bytes of stack of each fiber, without its guard page; 0: 64 KiB */
	size_t stacks_kept; /* stacks of ended fibers kept for reuse; 0: 256 */
} loop_options;

/*
 * Makes a loop that nothing runs yet. options may be NULL for the defaults; no reference to it is kept.
 * The caller owns the loop and frees it with loop_free. NULL with errno (ENOMEM, EMFILE, ENFILE) on failure.
 */
loop *loop_new(const loop_options *options);

/*
 * Frees a loop that has returned from loop_run, or was never run; then what was spawned and posted is dropped
 * unrun. Must not be called while another thread may still post to it; a thread that has just woken one of
 * its fibers, by wait_event_set or by ending a context, is waited for. Aborts with the handle's type if a
 * libuv handle of the caller's was left open. NULL is allowed.
 */
void loop_free(loop *l);

/*
 * Runs the loop on the calling thread: blocks until loop_stop was called and every fiber has ended. A fiber
 * that waits under a context that nobody ends keeps loop_run from returning, by design: a loop never
 * abandons a stack. Runs the exit hooks (loop_exit_add) last, and whatever they spawn, post and close. A loop
 * is run once.
 */
void loop_run(loop *l);

/* Asks loop_run to return when the last fiber has ended. Idempotent. */
void loop_stop(loop *l);

/* The loop that runs the calling code, fiber or callback; NULL on a thread without one. Borrowed. */
loop *loop_current(void);

/* Whether the caller is a fiber, that is, whether wait_*() would park it rather than block the thread. */
bool loop_on_fiber(void);

/*
 * The libuv loop underneath, for handles of one's own. Borrowed. Use it on the loop's thread only, close
 * your handles before loop_run returns (loop_exit_add), and never block or wait_*() in a libuv callback.
 */
struct uv_loop_s *loop_uv(loop *l);

/* The number of fibers now alive, and of stacks now mapped (in use or kept for reuse). A snapshot. */
size_t loop_fibers(const loop *l);
size_t loop_stacks(const loop *l);

/* ---- Fibers and tasks ------------------------------------------------------------------------------- */

/*
 * Runs fn(arg) in a new fiber, soon. arg is borrowed until fn has returned. 0; or -1 with errno ENOMEM (no
 * memory, or no more memory maps: a stack takes two), or ECANCELED when loop_run has returned: fn never runs.
 */
int loop_spawn(loop *l, void (*fn)(void *arg), void *arg);

/*
 * Runs fn(arg) in a new fiber of the current loop at once: returns when it has ended or parked for the first
 * time. Only on the loop's thread and not inside a fiber. 1: ended, 0: parked, -1 with errno ENOMEM: not run.
 */
int loop_start(loop *l, void (*fn)(void *arg), void *arg);

/* A piece of work for a loop, in memory of the caller's, so that handing it over cannot fail. */
typedef struct loop_task {
	void (*fn)(struct loop_task *task);
	struct loop_task *next; /* private to the loop while posted */
} loop_task;

/*
 * Runs task->fn(task) on the loop's own stack, soon; it must not block nor call wait_*(). The task is the
 * loop's until fn begins, when it is the caller's again (fn may free it or post it anew). The tasks of one
 * thread run in the order it posted them. Wake-ups are coalesced: one write for any number of tasks, none if
 * the loop is awake. Once loop_run has returned nothing takes the task: fn never runs.
 */
void loop_post_task(loop *l, loop_task *task);

/*
 * The same for a function and its argument; allocates. 0; or -1 with errno ENOMEM, or ECANCELED when loop_run
 * has returned: fn never runs.
 */
int loop_post(loop *l, void (*fn)(void *arg), void *arg);

/*
 * A call at the end of every turn of the loop: after all fibers that were ready have run, before the loop
 * blocks for events. It runs on the loop's own stack and must not block. Caller-owned memory; add and remove
 * on the loop's thread (add also before loop_run), also from within fn. Several are called in no particular
 * order. fn returns true to have the next turn follow without blocking.
 */
typedef struct loop_turn {
	bool (*fn)(struct loop_turn *turn);
	struct loop_turn *next, *previous; /* private to the loop while added */
} loop_turn;
void loop_turn_add(loop *l, loop_turn *turn);
void loop_turn_remove(loop *l, loop_turn *turn);

/*
 * A call on the loop's thread when loop_run is about to return, with no fiber left: the place to close
 * libuv handles and to give back what is bound to this loop. The latest added is called first, each after all
 * that the one before it has begun is over. Caller-owned memory, any thread. The hook is the caller's again
 * when fn begins. remove: true if fn had not begun and now never will.
 */
typedef struct loop_exit {
	void (*fn)(struct loop_exit *hook, loop *l);
	struct loop_exit *next, *previous; /* private to the loop while added */
} loop_exit;
void loop_exit_add(loop *l, loop_exit *hook);
bool loop_exit_remove(loop *l, loop_exit *hook);

/* ---- Waiting ---------------------------------------------------------------------------------------- */

#define WAIT_READ  1
#define WAIT_WRITE 2

/*
 * Where a wait_*() call returns -1 because its context is done, errno is the context's: ctx_err(c)->code,
 * ECANCELED or ETIMEDOUT. Tell such an end from a failure by ctx_err(c), which a failure leaves NULL. A context
 * done already ends the call at once, whatever else is true; wait_event_wait alone looks at its event first.
 */

/*
 * Waits until fd is ready for one of events (WAIT_READ | WAIT_WRITE; an error or hang-up counts as ready for
 * whatever was asked) or c is done. Returns the events that are ready; or -1: c is done, or the wait itself
 * failed with errno EBADF, EINVAL (events), ENOMEM; on a fiber EBUSY (another fiber of this loop waits on fd,
 * or a libuv handle of the caller's does); on a thread EMFILE or ENFILE (it keeps one eventfd for all its
 * waits). What poll(2) calls always ready (regular files) is ready at once.
 *
 * fd stays the caller's, and must stay open while it is waited on: end the context first. On a fiber it must
 * be non-blocking (libuv makes it so).
 */
int wait_fd(ctx *c, int fd, int events);

/*
 * Keeps fd registered with the current loop from one wait_fd(…, WAIT_READ) to the next, which then costs no
 * system call of its own: for a connection that is waited on again and again. wait_fd_drop ends that; it must
 * be called on the same loop's thread before fd is closed, or handed to another loop. Both do nothing on a
 * thread without a loop. Readiness while nobody waits is not lost: it ends the next wait.
 */
void wait_fd_keep(int fd);
void wait_fd_drop(int fd);

/*
 * Waits ns nanoseconds, never less, or until c is done. 0: the time has passed; -1: c is done, or errno ENOMEM
 * or EAGAIN (see ctx_with_timeout).
 */
int wait_sleep(ctx *c, int64_t ns);

/* Waits until c is done, on a root for ever. Always -1, so that it ends a function like its siblings. */
int wait_done(ctx *c);

/*
 * Runs fn(arg), which may block, on a helper thread (of libuv's, UV_THREADPOOL_SIZE in all, 4 by default), and
 * waits for it; on a plain thread it just calls fn. 0: fn has returned. -1: fn was not begun and never will
 * be, because c was done first. Once begun fn cannot be cancelled: the call then waits for its end, c done or
 * not, so arg may live on the caller's stack. Bound fn's time by its own means.
 */
int wait_blocking(ctx *c, void (*fn)(void *arg), void *arg);

/*
 * A flag on which one fiber or thread waits: set from anywhere, it stays set until a wait has taken it.
 * Caller-owned memory. What the setter wrote before wait_event_set, the waiter sees after its wait.
 */
typedef struct wait_event {
	void *state; /* private, atomic: empty, set, or the one who waits */
} wait_event;
#define WAIT_EVENT_INIT \
	{               \
		NULL    \
	}

/*
 * Sets the event and wakes who waits. Idempotent until taken. Touches e no more once the waiter can run, so
 * that e may lie on the waiter's stack.
 */
void wait_event_set(wait_event *e);

/*
 * Waits until e is set, and clears it: 0. Or until c is done: -1, and e as it was. An event that is set wins
 * over a context that is done. One waiter at a time. c may be NULL: then only the event ends the wait.
 */
int wait_event_wait(ctx *c, wait_event *e);

/*
 * A first-in first-out queue in which fibers of any loop, and threads, wait to be handed something. It has no
 * lock of its own: every call is made with the mutex that guards it held.
 */
typedef struct wait_queue {
	struct wait_place *first, *last; /* private */
	size_t length;                   /* how many wait; read it under the mutex */
} wait_queue;
#define WAIT_QUEUE_INIT       \
	{                     \
		NULL, NULL, 0 \
	}

/*
 * Stands in the queue until handed something or c is done. mutex is held at the call, released during the
 * wait, and held again at the return. 0: *handed is what wait_queue_hand gave, even if c is done by now (the
 * caller then passes it on: nothing handed is ever lost); -1: c was done first and nothing was handed.
 * A waiter whose context is done is handed nothing from that moment on and leaves the queue, wherever it
 * stands, as soon as it runs.
 */
int wait_queue_wait(ctx *c, wait_queue *q, pthread_mutex_t *mutex, void **handed);

/* Hands thing to the one who has waited longest: true; false when nobody waits. */
bool wait_queue_hand(wait_queue *q, void *thing);

#ifdef __cplusplus
}
#endif

#endif
