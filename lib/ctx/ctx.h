/*
 * tether/ctx.h — contexts: cancellation, deadlines and request values that
 * travel down a call tree.
 *
 * This is Go's package context for C, complete. A context is a node in a tree.
 * Whoever may stop a piece of work derives a child (ctx_with_cancel,
 * ctx_with_timeout, ...) and hands it to the work; cancelling a context cancels
 * everything derived from it and nothing else. The work asks ctx_err() between
 * steps, or waits on one of ctx_wait(), ctx_done_fd(), ctx_after_func() and
 * ctx_hook_add().
 *
 *	ctx_auto *c = ctx_with_timeout(ctx_background(), 5 * CTX_SECOND);
 *	if (!c)
 *		return -1;
 *	while (more_work() && !ctx_err(c))
 *		step(c);
 *
 * Ownership. Every ctx_with_*() returns one reference, which the caller gives
 * back with ctx_end() (cancel, then release: Go's `defer cancel()`) or with
 * ctx_release() alone; ctx_auto does the former when the variable leaves its
 * scope. A child holds its parent, never the other way round. A function that
 * takes a `ctx *` borrows it: its caller keeps a reference until it returns.
 *
 * Threads. Every function may be called from any thread at any time, but not
 * from a signal handler. Nothing here blocks except ctx_wait() and, while a
 * hook runs on another thread, ctx_hook_remove() of that hook and giving back
 * the last reference to its context.
 *
 * Errors. Out of memory, or of another resource, returns NULL with errno set
 * and changes nothing. A NULL context, a NULL key given to ctx_with_value() or
 * a NULL array of signals is a bug in the program: a line on stderr that names
 * the call, then abort(). Functions that give something back (ctx_release,
 * ctx_end, ctx_after_stop) take NULL.
 *
 * Times are nanoseconds of CLOCK_MONOTONIC, as ctx_now() returns them.
 */
#ifndef TETHER_CTX_H
#define TETHER_CTX_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define CTX_MILLISECOND INT64_C(1000000)
#define CTX_SECOND      INT64_C(1000000000)

/* A context. Opaque and reference-counted; all that ever changes about it is that it ends. */
typedef struct ctx ctx;

/*
 * An error's identity is its address: compare pointers, as Go compares
 * sentinel errors with ==. Define your own as static constants to use as
 * causes; the library keeps the pointer and never frees it, so an error must
 * live as long as any context that was given it.
 */
typedef struct ctx_error {
	int code;            /* an errno value */
	const char *message; /* a static, NUL-terminated text */
} ctx_error;

/* Go's context.Canceled: { ECANCELED, "context canceled" }. */
extern const ctx_error CTX_CANCELED;

/* Go's context.DeadlineExceeded: { ETIMEDOUT, "context deadline exceeded" }. */
extern const ctx_error CTX_DEADLINE_EXCEEDED;

/*
 * A key's identity is its address, not its name; make it a static object of
 * the module that owns the value. `name` is for ctx_string() only. `destroy`
 * (may be NULL) receives the value, NULL included, when the last reference to
 * its context is given back: on that thread, before that call returns, see
 * ctx_release().
 */
typedef struct ctx_key {
	const char *name;
	void (*destroy)(void *value);
} ctx_key;

/* ---- Roots -------------------------------------------------------------- */

/*
 * The root of all contexts: never done, without deadline or values, never
 * freed (retain, release, end and cancel do nothing to it). Never NULL.
 * Go: context.Background.
 */
ctx *ctx_background(void);

/*
 * As ctx_background(), for code in which it is not yet clear which context to
 * use. Go: context.TODO.
 */
ctx *ctx_todo(void);

/* ---- Deriving ----------------------------------------------------------- */

/*
 * A child that is done when it is cancelled or `parent` is done, whichever is
 * first. If `parent` is done already the child is born done, with its error
 * and cause. Returns a reference the caller owns, or NULL (ENOMEM). Go: WithCancel.
 */
ctx *ctx_with_cancel(ctx *parent);

/*
 * A child that is also done, with CTX_DEADLINE_EXCEEDED, once the clock
 * ctx_now() has reached `deadline_ns`: never before, and as soon after as the
 * system wakes the library's timer thread. A deadline that is not in the
 * future gives a child that is born done. Where `parent` has a strictly
 * earlier deadline the call is ctx_with_cancel(parent).
 * Returns a reference the caller owns, or NULL: ENOMEM, or EAGAIN when the
 * timer thread, which the first deadline of the process starts, could not be
 * started. Go: WithDeadline.
 */
ctx *ctx_with_deadline(ctx *parent, int64_t deadline_ns);

/*
 * ctx_with_deadline() at ctx_now() + `timeout_ns`, saturated to what an
 * int64_t holds. A timeout that is zero or negative gives a child that is born
 * done. Go: WithTimeout.
 */
ctx *ctx_with_timeout(ctx *parent, int64_t timeout_ns);

/*
 * As ctx_with_deadline() and ctx_with_timeout(); when the child's own deadline
 * is what ends it, ctx_cause() is `cause` (borrowed for the child's life; NULL
 * means CTX_DEADLINE_EXCEEDED). ctx_err() is CTX_DEADLINE_EXCEEDED all the
 * same, and an explicit cancel ignores `cause`. Go: WithDeadlineCause, WithTimeoutCause.
 */
ctx *ctx_with_deadline_cause(ctx *parent, int64_t deadline_ns, const ctx_error *cause);
ctx *ctx_with_timeout_cause(ctx *parent, int64_t timeout_ns, const ctx_error *cause);

/*
 * A child in which ctx_value(child, key) is `value`, and which in everything
 * else is its parent: it is done when the parent is, and cancelling it does
 * nothing. `value` may be NULL, which hides a value further up. On success the
 * child owns `value` if the key has a destroy function; on failure the caller
 * still does. Returns a reference the caller owns, or NULL (ENOMEM). Go: WithValue.
 */
ctx *ctx_with_value(ctx *parent, const ctx_key *key, void *value);

/*
 * A child that has its parent's values but neither its deadline nor its end:
 * for work that must outlive the request that caused it. Returns a reference
 * the caller owns, or NULL (ENOMEM). Go: WithoutCancel.
 */
ctx *ctx_without_cancel(ctx *parent);

/*
 * A child that is cancelled when the process receives one of the `n` signals
 * in `signals` (copied). ctx_err() is then CTX_CANCELED and ctx_cause() is
 * ctx_signal_error() of that signal. From this call until the child is
 * cancelled by ctx_cancel(), ctx_cancel_cause() or ctx_end(), or is freed, the
 * library handles those signals (SA_RESTART); several contexts may share a
 * signal, and when the last of them stops, the disposition found before the
 * first is put back before the call returns. Neither a signal nor the parent's
 * end stops the handling: after the first Ctrl-C, call ctx_cancel() to have the
 * second one kill.
 * Returns a reference the caller owns, or NULL: ENOMEM; EAGAIN when the
 * library's signal thread could not be started; EINVAL for no signal at all, a
 * number that is no signal, SIGKILL and SIGSTOP, and the faults a handler
 * cannot return from (SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGTRAP, SIGSYS).
 * Go: signal.NotifyContext.
 */
ctx *ctx_with_signals(ctx *parent, const int *signals, size_t n);

/*
 * The cause ctx_with_signals() gives for signal `signo`, e.g. "interrupt
 * signal received", with EINTR as its code: the same address at every call.
 * NULL if `signo` is no signal.
 */
const ctx_error *ctx_signal_error(int signo);

/* ---- Ending ------------------------------------------------------------- */

/*
 * Cancels `c` and everything derived from it: when the call returns they are
 * all done, with CTX_CANCELED as their error and cause. The first end counts;
 * on a context that is done already, or that has no end of its own (the roots,
 * ctx_with_value, ctx_without_cancel), the call does nothing. Never waits for
 * the work to stop. Runs hooks on this thread. Go: CancelFunc.
 */
void ctx_cancel(ctx *c);

/* As ctx_cancel(), with `cause` for ctx_cause(); NULL means CTX_CANCELED. Go: CancelCauseFunc. */
void ctx_cancel_cause(ctx *c, const ctx_error *cause);

/* Adds a reference, which the caller owns. Returns `c`. */
ctx *ctx_retain(ctx *c);

/*
 * Gives one reference back and cancels nothing. The last one frees the context,
 * deadline and all, and destroys its value, before the call returns: should
 * another thread, the library's own included, be ending the context at that
 * moment, the call waits for it, and so for the hooks it runs. Do not give back
 * a last reference with a lock held that a hook takes. Called from within a
 * hook it never waits, and leaves the freeing to that other thread.
 */
void ctx_release(ctx *c);

/* Cancels, then gives one reference back: ctx_cancel() and ctx_release() in one. Go: `defer cancel()`. */
void ctx_end(ctx *c);

/* Implementation of ctx_auto. */
__attribute__((unused)) static inline void ctx_end_ptr_(ctx **c)
{
	ctx_end(*c);
}

/* `ctx_auto *c = ctx_with_...;` declares a ctx * that is given to ctx_end() when it leaves its scope. */
#define ctx_auto __attribute__((cleanup(ctx_end_ptr_))) ctx

/* ---- Asking ------------------------------------------------------------- */

/*
 * NULL until `c` is done; then CTX_CANCELED or CTX_DEADLINE_EXCEEDED, the same
 * for ever. One acquire load: what the canceller wrote before it cancelled is
 * visible. Go: Err.
 */
const ctx_error *ctx_err(const ctx *c);

/*
 * Its inline form: all that is public of a context's memory is that it begins with a pointer to where its error is.
 * Work that asks often pays for two loads instead of a call.
 */
const ctx_error *ctx_err_of_null(void); /* aborts: a NULL context is a programming error */
__attribute__((gnu_inline)) extern inline const ctx_error *ctx_err(const ctx *c)
{
	return c ? __atomic_load_n(*(const ctx_error *const *const *)(const void *)c, __ATOMIC_ACQUIRE)
	         : ctx_err_of_null();
}

/*
 * Why `c` is done, NULL until it is: the cause given to whoever ended it
 * first, here or further up, or else the same as ctx_err(). Go: Cause.
 */
const ctx_error *ctx_cause(const ctx *c);

/*
 * Whether `c` has a deadline, and if so, and `deadline_ns` is not NULL, stores
 * it there: the nearest one, its own or inherited. Go: Deadline.
 */
bool ctx_deadline(const ctx *c, int64_t *deadline_ns);

/*
 * The value `key` has nearest to `c`, upwards; NULL if none, as for a NULL key.
 * Readable after the end as before. The value is borrowed: it lives as long as `c` does. Go: Value.
 */
void *ctx_value(const ctx *c, const ctx_key *key);

/* Nanoseconds of CLOCK_MONOTONIC, the clock of all deadlines. */
int64_t ctx_now(void);

/*
 * Describes `c` from its root to itself in at most `size` bytes, NUL included,
 * at `buf` (which may be NULL if `size` is 0), and returns the length of the
 * whole text, as snprintf does: "context.Background.WithCancel.WithValue(user,
 * 0x5581...)", "...WithDeadline(2024-02-06 14:36:05.5 +0000 UTC [4.99s])",
 * "signal.NotifyContext(context.Background, [interrupt terminated])". Go: String.
 */
int ctx_string(const ctx *c, char *buf, size_t size);

/* ---- Waiting ------------------------------------------------------------ */

/* Blocks the calling thread until `c` is done; returns ctx_err(c). For ever on a root. Go: <-Done(). */
const ctx_error *ctx_wait(ctx *c);

/*
 * A file descriptor that polls readable once `c` is done, and stays so. Made
 * on first use, one for each context with an end of its own; it belongs to the
 * context, which closes it when freed: add it to any poll loop, do not read,
 * write or close it. On a context that can never be done it is one that never
 * becomes readable. -1 with errno when none can be made (EMFILE, ENFILE,
 * ENOMEM). Go: Done.
 */
int ctx_done_fd(ctx *c);

/* A registration of ctx_after_func(). A handle only: there is nothing to free. */
typedef struct ctx_after ctx_after;

/*
 * Has fn(arg) run once, after `c` is done (at once if it is), on a thread of
 * the library's own: never on the cancelling thread, which does not wait for
 * it, and beside other such functions, not behind them. fn may block. The
 * registration holds `c` until fn has returned or ctx_after_stop() has
 * prevented it.
 * Should the system have no thread left when its time comes, the run waits for
 * another's to finish; it is not lost. Returns a handle, or NULL (ENOMEM,
 * EAGAIN: no helper thread could be started) and fn will not run. Go: AfterFunc.
 */
ctx_after *ctx_after_func(ctx *c, void (*fn)(void *arg), void *arg);

/*
 * True if this call is what keeps fn from running; false if `c` was done first
 * and fn has been started, or if it had been stopped before. Does not wait for
 * fn. A handle may be stopped any number of times at any later time. Go: stop.
 */
bool ctx_after_stop(ctx_after *a);

/*
 * The layer below ctx_after_func(), for event loops and fibers. The caller
 * provides the memory (embed it, and find your own data with offsetof) and
 * keeps it, and a reference to the context, until the hook has run or been
 * removed. The fields are private and need no initialisation.
 */
typedef struct ctx_hook ctx_hook;
struct ctx_link_ {
	struct ctx_link_ *next, *prev;
};
struct ctx_hook {
	struct ctx_link_ link_;
	void (*fn_)(ctx_hook *h);
};

/*
 * Has fn(h) called once when `c` is done, on the thread that ends it, after
 * all its descendants are done; if it is done already, here and now, before
 * the call returns. Nothing is allocated. fn is called with no lock held: it
 * may call anything in this header, remove, re-add or free h itself, and give
 * back the last reference to the context; but it must not block, since whoever
 * cancels waits for it. Hooks of one context run in the order they were added.
 */
void ctx_hook_add(ctx *c, ctx_hook *h, void (*fn)(ctx_hook *h));

/*
 * Removes `h`, which was added to this same `c`. True if that kept fn from
 * running. False if fn has run: if it is running on another thread the call
 * waits until it has returned, so that `h` may be freed after it in any case.
 * Called from within fn itself (or from anything fn calls) it does not wait
 * and returns false.
 */
bool ctx_hook_remove(ctx *c, ctx_hook *h);

#ifdef __cplusplus
}
#endif

#endif
