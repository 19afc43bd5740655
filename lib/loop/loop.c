/*
 * Loops: a libuv loop that gives its fibers their turns.
 *
 * A turn is one pass of the libuv loop, and its heart is turn(), a prepare handle: the last thing libuv
 * does before it blocks. Whatever a timer, a poll callback, a closing handle or another thread has made
 * ready meanwhile is run there, so that nothing ready ever waits for unrelated input or output:
 *
 *	 timers → pending → idle → prepare ═► turn():  tasks → ready fibers → turn hooks ─┐
 *	    ▲                                    ▲            something became ready      │
 *	    │                                    └──────────────────(bounded)─────────────┤
 *	    │                                                                             ▼
 *	    └──── closing ◄──────── check ◄──────────── poll: asleep, unless work was left over
 *
 * Other threads reach a loop through `posted` alone, a lock-free stack that the turn takes whole and turns
 * round. They pay for a wake-up (a write to an eventfd) only if the loop is asleep and only the first of
 * them does: poster and loop each write their own flag (posted, asleep) before reading the other's, in
 * sequential consistency, so one of the two sees the other.
 */
#include <errno.h>
#include <sched.h>

#include "loop_priv.h"

/* Rounds of one turn. A bound, so that fibers which feed each other do not shut out the rest of the loop. */
enum { ROUNDS_MAX = 16 };

/* `posted` once loop_run is over: nothing that comes later would ever be run. */
static loop_task closed_marker;
#define CLOSED (&closed_marker)

static _Thread_local loop *current;

loop *loop_current(void)
{
	return current;
}

bool loop_on_fiber(void)
{
	return current && current->running;
}

struct uv_loop_s *loop_uv(loop *l)
{
	return &l->uv;
}

size_t loop_fibers(const loop *l)
{
	return atomic_load_explicit(&l->fibers, memory_order_relaxed);
}

size_t loop_stacks(const loop *l)
{
	return atomic_load_explicit(&l->stacks.mapped, memory_order_relaxed);
}

void loop_misuse(const char *call, const char *why)
{
	fprintf(stderr, "tether: %s: %s\n", call, why);
	abort();
}

fiber *loop_waiting_fiber(const char *call)
{
	if (!current)
		return NULL;
	if (!current->running)
		loop_misuse(call, "called on a loop's own stack, where waiting would stop the whole loop; "
		                  "wait in a fiber (loop_spawn, loop_start)");
	return current->running;
}

/* ---- Tasks ------------------------------------------------------------------------------------------ */

/* On the loop's own thread there is nothing to wake: a turn always comes before libuv blocks. */
static void wake_up(loop *l)
{
	if (l != current && atomic_load(&l->asleep) && atomic_exchange(&l->asleep, false))
		uv_async_send(&l->wakeup);
}

/* Hands the task over; false if loop_run is over. `posting` covers the last touch of the loop. */
static bool post(loop *l, loop_task *task)
{
	atomic_fetch_add(&l->posting, 1);
	loop_task *newest = atomic_load(&l->posted);
	do {
		if (newest == CLOSED)
			break;
		task->next = newest;
	} while (!atomic_compare_exchange_weak(&l->posted, &newest, task));
	if (newest != CLOSED)
		wake_up(l);
	atomic_fetch_sub(&l->posting, 1);
	return newest != CLOSED;
}

void loop_post_task(loop *l, loop_task *task)
{
	post(l, task);
}

typedef struct posted_call {
	loop_task task;
	void (*fn)(void *arg);
	void *arg;
} posted_call;

static void posted_call_run(loop_task *task)
{
	posted_call call = *container_of(task, posted_call, task);
	free(container_of(task, posted_call, task));
	call.fn(call.arg);
}

int loop_post(loop *l, void (*fn)(void *arg), void *arg)
{
	posted_call *call = malloc(sizeof(*call));
	if (!call)
		return -1;
	*call = (posted_call){.task.fn = posted_call_run, .fn = fn, .arg = arg};
	if (post(l, &call->task))
		return 0;
	free(call);
	errno = ECANCELED;
	return -1;
}

static loop_task *posted_take(loop *l)
{
	loop_task *newest = atomic_load_explicit(&l->posted, memory_order_relaxed);
	if (!newest || newest == CLOSED)
		return NULL;
	newest = atomic_exchange(&l->posted, NULL);
	loop_task *oldest = NULL;
	while (newest) {
		loop_task *next = newest->next;
		newest->next = oldest;
		oldest = newest;
		newest = next;
	}
	return oldest;
}

static void run_tasks(loop *l)
{
	loop_task *task = posted_take(l);
	while (task) {
		loop_task *next = task->next; /* the task is its owner's again once fn runs */
		task->fn(task);
		task = next;
	}
}

/* ---- Fibers ----------------------------------------------------------------------------------------- */

void loop_make_ready(fiber *f)
{
	loop *l = f->loop;
	f->next = NULL;
	*l->ready_end = f;
	l->ready_end = &f->next;
}

static void run_ready(loop *l)
{
	fiber *f = l->ready_first;
	l->ready_first = NULL;
	l->ready_end = &l->ready_first;
	while (f) {
		fiber *next = f->next;
		fiber_resume(f);
		f = next;
	}
}

static void make_ready_task(loop_task *task)
{
	loop_make_ready(container_of(task, fiber, task));
}

void fiber_wake(fiber *f)
{
	if (f->loop != current) {
		f->task.fn = make_ready_task;
		post(f->loop, &f->task); /* the loop is not over: it has this fiber */
	} else if (f->loop->running == f) {
		f->woken = true;
	} else {
		loop_make_ready(f);
	}
}

void fiber_yield(fiber *f)
{
	loop_make_ready(f);
	fiber_park(f);
}

int loop_spawn(loop *l, void (*fn)(void *arg), void *arg)
{
	fiber *f = fiber_take(l, fn, arg);
	if (!f)
		return -1;
	atomic_fetch_add_explicit(&l->fibers, 1, memory_order_relaxed);
	if (l == current) {
		loop_make_ready(f);
		return 0;
	}
	f->task.fn = make_ready_task;
	if (post(l, &f->task))
		return 0;
	atomic_fetch_sub_explicit(&l->fibers, 1, memory_order_relaxed);
	fiber_give_back(f);
	errno = ECANCELED;
	return -1;
}

int loop_start(loop *l, void (*fn)(void *arg), void *arg)
{
	if (l != current || l->running)
		loop_misuse("loop_start",
		            "only for the loop's own stack; from a fiber or another thread use loop_spawn");
	fiber *f = fiber_take(l, fn, arg);
	if (!f)
		return -1;
	atomic_fetch_add_explicit(&l->fibers, 1, memory_order_relaxed);
	return fiber_resume(f) ? 1 : 0;
}

/* ---- Turns ------------------------------------------------------------------------------------------ */

void loop_turn_add(loop *l, loop_turn *turn)
{
	turn->previous = NULL;
	turn->next = l->turns;
	if (turn->next)
		turn->next->previous = turn;
	l->turns = turn;
}

void loop_turn_remove(loop *l, loop_turn *turn)
{
	if (l->turn_next == turn)
		l->turn_next = turn->next;
	if (turn->next)
		turn->next->previous = turn->previous;
	if (turn->previous)
		turn->previous->next = turn->next;
	else
		l->turns = turn->next;
}

/* Any hook may remove itself or any other. */
static bool run_turn_hooks(loop *l)
{
	bool again = false;
	for (loop_turn *turn = l->turns; turn; turn = l->turn_next) {
		l->turn_next = turn->next;
		again |= turn->fn(turn);
	}
	return again;
}

static bool work_left(loop *l)
{
	return l->ready_first || atomic_load(&l->posted);
}

static bool nothing_left(loop *l)
{
	return atomic_load(&l->stopping) && loop_fibers(l) == 0 && !work_left(l);
}

static void never_called(uv_idle_t *idle)
{
	(void)idle;
}

static void turn(uv_prepare_t *prepare)
{
	loop *l = container_of(prepare, loop, prepare);
	bool again = true;
	atomic_store_explicit(&l->asleep, false, memory_order_relaxed);
	l->immediate_waits = 0;
	for (int round = 0; again && round < ROUNDS_MAX; round++) {
		run_tasks(l);
		run_ready(l);
		again = run_turn_hooks(l);
		again = again || work_left(l);
	}
	/* libuv's timers count from its own idea of now, which the fibers have made old. */
	uv_update_time(&l->uv);
	if (!again) {
		atomic_store(&l->asleep, true);
		again = work_left(l) || nothing_left(l);
	}
	if (nothing_left(l))
		uv_stop(&l->uv);
	if (again)
		uv_idle_start(&l->no_block, never_called);
	else
		uv_idle_stop(&l->no_block);
}

static void woken_up(uv_async_t *wakeup)
{
	(void)wakeup; /* the turn that follows does the work */
}

/* ---- Beginning and end ------------------------------------------------------------------------------ */

void loop_stop(loop *l)
{
	atomic_fetch_add(&l->posting, 1);
	atomic_store(&l->stopping, true);
	wake_up(l);
	atomic_fetch_sub(&l->posting, 1);
}

void loop_exit_add(loop *l, loop_exit *hook)
{
	pthread_mutex_lock(&l->exit_mutex);
	hook->previous = NULL;
	hook->next = l->exits;
	if (hook->next)
		hook->next->previous = hook;
	l->exits = hook;
	pthread_mutex_unlock(&l->exit_mutex);
}

static void exit_unlink(loop *l, loop_exit *hook)
{
	if (hook->next)
		hook->next->previous = hook->previous;
	if (hook->previous)
		hook->previous->next = hook->next;
	else
		l->exits = hook->next;
}

/* A hook that has begun is on no list any more; it may be gone, so only the list is looked at. */
bool loop_exit_remove(loop *l, loop_exit *hook)
{
	pthread_mutex_lock(&l->exit_mutex);
	loop_exit *found = l->exits;
	while (found && found != hook)
		found = found->next;
	if (found)
		exit_unlink(l, found);
	pthread_mutex_unlock(&l->exit_mutex);
	return found;
}

static bool run_one_exit_hook(loop *l)
{
	pthread_mutex_lock(&l->exit_mutex);
	loop_exit *hook = l->exits;
	if (hook)
		exit_unlink(l, hook);
	pthread_mutex_unlock(&l->exit_mutex);
	if (hook)
		hook->fn(hook, l);
	return hook;
}

static void count_closing(uv_handle_t *handle, void *count)
{
	if (uv_is_closing(handle))
		++*(size_t *)count;
}

static bool handles_closing(loop *l)
{
	size_t count = 0;
	uv_walk(&l->uv, count_closing, &count);
	return count > 0;
}

void loop_run(loop *l)
{
	if (current)
		loop_misuse("loop_run", "this thread runs a loop already");
	if (l->has_run)
		loop_misuse("loop_run", "a loop is run once");
	l->has_run = true;
	current = l;
	loop_task *none = NULL;
	do {
		/* What an exit hook began is run to its end before the next hook, close callbacks included. */
		do
			uv_run(&l->uv, UV_RUN_DEFAULT);
		while (!nothing_left(l) || handles_closing(l) || run_one_exit_hook(l));
		none = NULL;
	} while (!atomic_compare_exchange_strong(&l->posted, &none, CLOSED));
	current = NULL;
}

static int add_handles(loop *l)
{
	int error = uv_async_init(&l->uv, &l->wakeup, woken_up);
	if (error)
		return error;
	uv_prepare_init(&l->uv, &l->prepare);
	uv_prepare_start(&l->prepare, turn);
	uv_idle_init(&l->uv, &l->no_block);
	return 0;
}

loop *loop_new(const loop_options *options)
{
	static const loop_options defaults;
	if (!options)
		options = &defaults;
	loop *l = calloc(1, sizeof(*l));
	if (!l)
		return NULL;
	l->ready_end = &l->ready_first;
	if (stack_pool_init(&l->stacks, options->stack_size, options->stacks_kept) != 0)
		goto free_loop;
	int error = uv_loop_init(&l->uv);
	if (error)
		goto free_stacks;
	error = add_handles(l);
	if (error)
		goto close_uv;
	pthread_mutex_init(&l->exit_mutex, NULL);
	return l;

close_uv:
	uv_loop_close(&l->uv);
free_stacks:
	stack_pool_destroy(&l->stacks);
	errno = -error;
free_loop:
	free(l);
	return NULL;
}

/* What was posted to a loop that never ran. Of tasks in their owners' memory nothing is touched. */
static void drop_posted(loop *l)
{
	loop_task *next;
	for (loop_task *task = posted_take(l); task; task = next) {
		next = task->next;
		if (task->fn == make_ready_task)
			fiber_give_back(container_of(task, fiber, task));
		else if (task->fn == posted_call_run)
			free(container_of(task, posted_call, task));
	}
}

static void refuse_leaked_handle(uv_handle_t *handle, void *arg)
{
	(void)arg;
	if (uv_is_closing(handle))
		return;
	fprintf(stderr,
	        "tether: loop_free: a libuv handle of type %s at %p was not closed; see loop_exit_add\n",
	        uv_handle_type_name(handle->type), (void *)handle);
	abort();
}

void loop_free(loop *l)
{
	if (!l)
		return;
	if (l == current)
		loop_misuse("loop_free", "called while the loop runs");
	while (atomic_load(&l->posting) > 0)
		sched_yield();
	drop_posted(l);
	uv_close((uv_handle_t *)&l->wakeup, NULL);
	uv_close((uv_handle_t *)&l->prepare, NULL);
	uv_close((uv_handle_t *)&l->no_block, NULL);
	watches_close(l);
	uv_walk(&l->uv, refuse_leaked_handle, NULL);
	uv_run(&l->uv, UV_RUN_DEFAULT); /* until all are closed */
	if (uv_loop_close(&l->uv) != 0)
		loop_misuse("loop_free", "libuv requests are still in flight");
	watches_free(l);
	pthread_mutex_destroy(&l->exit_mutex);
	stack_pool_destroy(&l->stacks);
	free(l);
}
