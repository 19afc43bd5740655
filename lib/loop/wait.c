/*
 * The wait_*() calls, but for those of files (wait_fd.c) and of queues (waitq.c).
 *
 * wait_event_wait is the one place where a fiber and a plain thread part ways: the fiber parks, the thread
 * blocks. All the other calls are that one with something that sets the event.
 *
 * The state of an event, and who may change it. Each arrow is one atomic step, so exactly one of the three
 * ends a wait, and who ended it wakes the waiter, once:
 *
 *	              wait_event_wait
 *	   EMPTY ───────────────────────► waiter
 *	     ▲ │                            │ │
 *	     │ │ wait_event_set             │ │ wait_event_set: the waiter returns 0
 *	     │ ▼                            │ ▼
 *	     └─ SET ◄───────────────────────┼─┘
 *	     ▲  wait_event_wait: returns 0  │
 *	     └──────────────────────────────┘ its context is done: the waiter returns -1
 */
#include "loop_priv.h"

/* ---- wait_event ------------------------------------------------------------------------------------- */

/* On the stack of who waits. It may leave as soon as it has been woken, so waking is the last touch. */
typedef struct waiter {
	wait_event *event;
	ctx_hook hook;
	bool ctx_done; /* what ended the wait; written before the wake-up, read after it */
	fiber *fiber;  /* NULL: a thread, which uses what follows */
	pthread_mutex_t mutex;
	pthread_cond_t cond;
	bool woken;
} waiter;

static char set_marker;
#define SET ((void *)&set_marker)

static void waiter_init(waiter *w, fiber *f, wait_event *e)
{
	w->fiber = f;
	w->event = e;
	w->ctx_done = false;
	if (f)
		return;
	w->woken = false;
	pthread_mutex_init(&w->mutex, NULL);
	pthread_cond_init(&w->cond, NULL);
}

static void waiter_destroy(waiter *w)
{
	if (w->fiber)
		return;
	pthread_cond_destroy(&w->cond);
	pthread_mutex_destroy(&w->mutex);
}

static void waiter_wake(waiter *w)
{
	if (w->fiber) {
		fiber_wake(w->fiber);
		return;
	}
	pthread_mutex_lock(&w->mutex);
	w->woken = true;
	pthread_cond_signal(&w->cond);
	pthread_mutex_unlock(&w->mutex);
}

static void waiter_sleep(waiter *w)
{
	if (w->fiber) {
		fiber_park(w->fiber);
		return;
	}
	pthread_mutex_lock(&w->mutex);
	while (!w->woken)
		pthread_cond_wait(&w->cond, &w->mutex);
	pthread_mutex_unlock(&w->mutex);
}

void wait_event_set(wait_event *e)
{
	waiter *w = __atomic_exchange_n(&e->state, SET, __ATOMIC_ACQ_REL);
	if (w && (void *)w != SET)
		waiter_wake(w);
}

static void waiter_ctx_done(ctx_hook *hook)
{
	waiter *w = container_of(hook, waiter, hook);
	void *expected = w;
	if (!__atomic_compare_exchange_n(&w->event->state, &expected, NULL, false, __ATOMIC_ACQ_REL,
	                                 __ATOMIC_ACQUIRE))
		return; /* set first */
	w->ctx_done = true;
	waiter_wake(w);
}

/* The exchange, not a plain store: a set that comes just now must be seen with all that was written before it. */
static bool event_take(wait_event *e)
{
	if (__atomic_load_n(&e->state, __ATOMIC_RELAXED) != SET)
		return false;
	(void)__atomic_exchange_n(&e->state, NULL, __ATOMIC_ACQ_REL);
	return true;
}

/* Takes its place as the waiter of e. 0: it was set; -1: c was done first. */
static int wait_as(waiter *w, ctx *c, wait_event *e)
{
	void *found = NULL;
	if (!__atomic_compare_exchange_n(&e->state, &found, w, false, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE)) {
		if (found != SET)
			loop_misuse("wait_event_wait", "someone waits on this event already");
		return 0;
	}
	if (c)
		ctx_hook_add(c, &w->hook, waiter_ctx_done);
	waiter_sleep(w);
	if (c)
		ctx_hook_remove(c, &w->hook);
	return w->ctx_done ? -1 : 0;
}

int wait_event_wait(ctx *c, wait_event *e)
{
	fiber *f = loop_waiting_fiber("wait_event_wait");
	if (event_take(e))
		return 0;
	if (c && ctx_err(c))
		return loop_fail(ctx_err(c)->code);
	waiter w;
	waiter_init(&w, f, e);
	int outcome = wait_as(&w, c, e);
	waiter_destroy(&w);
	if (outcome != 0)
		return loop_fail(ctx_err(c)->code);
	event_take(e);
	return 0;
}

/* ---- wait_done, wait_sleep -------------------------------------------------------------------------- */

int wait_done(ctx *c)
{
	wait_event never = WAIT_EVENT_INIT;
	loop_waiting_fiber("wait_done");
	return wait_event_wait(c, &never);
}

int wait_sleep(ctx *c, int64_t ns)
{
	loop_waiting_fiber("wait_sleep");
	ctx *sleep = ctx_with_timeout(c, ns);
	if (!sleep)
		return -1;
	wait_done(sleep);
	ctx_release(sleep);
	return ctx_err(c) ? loop_fail(ctx_err(c)->code) : 0;
}

/* ---- wait_blocking ---------------------------------------------------------------------------------- */

/* On the stack of the fiber, which stays until libuv has given the request back, run or cancelled. */
typedef struct blocking_call {
	uv_work_t work;
	wait_event given_back;
	void (*fn)(void *arg);
	void *arg;
	int status;
} blocking_call;

static void blocking_call_run(uv_work_t *work)
{
	blocking_call *call = container_of(work, blocking_call, work);
	call->fn(call->arg);
}

static void blocking_call_over(uv_work_t *work, int status)
{
	blocking_call *call = container_of(work, blocking_call, work);
	call->status = status;
	wait_event_set(&call->given_back);
}

int wait_blocking(ctx *c, void (*fn)(void *arg), void *arg)
{
	fiber *f = loop_waiting_fiber("wait_blocking");
	if (ctx_err(c))
		return loop_fail(ctx_err(c)->code);
	if (!f) {
		fn(arg);
		return 0;
	}
	blocking_call call = {.given_back = WAIT_EVENT_INIT, .fn = fn, .arg = arg};
	int error = uv_queue_work(&f->loop->uv, &call.work, blocking_call_run, blocking_call_over);
	if (error)
		return loop_fail(-error);
	if (wait_event_wait(c, &call.given_back) != 0) {
		uv_cancel((uv_req_t *)&call.work); /* in vain if it has begun */
		wait_event_wait(NULL, &call.given_back);
	}
	return call.status == 0 ? 0 : loop_fail(ctx_err(c)->code);
}
