/*
 * Deadlines: timers, and the one thread that lets them go off.
 *
 * Nearly every timer is set and taken back before it goes off (a request's five seconds), so that is what has
 * to be cheap: both are a lock that is rarely contended, and a few pointers.
 *
 * Timers lie in shards; a thread sets all of its own in the same one. A shard is a radix heap, a priority queue
 * for keys that only grow, as time does. `base` is the time up to which the shard has been served; a
 * timer lies in the bucket of the highest bit in which its deadline differs from base:
 *
 *	base       ...0 1 0 0 1 1 0		all of a bucket are later than all of the buckets below it;
 *	deadline   ...0 1 1 0 1 0 1		bucket 0 is due
 *	                  ^ bucket 5 (bit 4)
 *
 * To move base on to `now`, let b be the bucket `now` itself would lie in: what is in the buckets below b is
 * due, what is in b is distributed anew, and what is above stays. So a timer moves only downwards, no more
 * than 63 times and in practice a few, whatever the number of timers; nothing is rounded, nothing allocated.
 *
 * The thread sleeps until the earliest deadline. Whoever sets an earlier one wakes it: see `sleeping_until`.
 */
#include "ctx_priv.h"

#include <errno.h>
#include <time.h>

#define SHARDS       16
#define BUCKETS      64
/* How many timers the thread looks at to find the earliest; where there are more, it wakes before them all. */
#define EXACT_WAKEUP 64

struct timer_shard {
	ctx_lock lock;
	int64_t base;
	uint64_t occupied;                 /* bit k: bucket k is not empty */
	struct ctx_link_ *bucket[BUCKETS]; /* rings */
} __attribute__((aligned(64)));

static struct timer_shard shards[SHARDS];

/* The thread's side. Guarded by `mutex`, but for the atomics. */
static struct {
	pthread_mutex_t mutex;
	pthread_cond_t cond;
	pthread_t thread;
	bool stop;
	atomic_bool running;
	atomic_bool poked;
	/*
	 * When the thread will look again by itself; INT64_MAX from before it looks into the first shard until
	 * after the last. A timer set before its shard is looked into is seen there; one set after finds
	 * INT64_MAX or the time decided on, and pokes the thread if it is earlier.
	 */
	_Atomic int64_t sleeping_until;
} timers = {.mutex = PTHREAD_MUTEX_INITIALIZER, .sleeping_until = INT64_MAX};

static unsigned bucket_of(int64_t deadline, int64_t base)
{
	return deadline <= base ? 0 : BUCKETS - (unsigned)__builtin_clzll((uint64_t)(deadline ^ base));
}

static struct ctx_deadline *deadline_of(struct ctx_link_ *link)
{
	return ctx_container(link, struct ctx_deadline, timer.link);
}

static void put_locked(struct timer_shard *s, struct ctx_deadline *d)
{
	unsigned k = bucket_of(d->node.base.deadline, s->base);

	d->timer.bucket = (uint8_t)k;
	ctx_ring_append(&s->bucket[k], &d->timer.link);
	s->occupied |= UINT64_C(1) << k;
}

static void take_locked(struct timer_shard *s, struct ctx_deadline *d)
{
	unsigned k = d->timer.bucket;

	ctx_ring_remove(&s->bucket[k], &d->timer.link);
	if (!s->bucket[k])
		s->occupied &= ~(UINT64_C(1) << k);
}

/* Moves base on to `now`: what is due is then in bucket 0. */
static void advance_locked(struct timer_shard *s, int64_t now)
{
	if (now <= s->base)
		return;

	unsigned last = bucket_of(now, s->base);

	s->base = now;
	for (unsigned k = 1; k <= last; k++) {
		while (s->bucket[k]) {
			struct ctx_deadline *d = deadline_of(s->bucket[k]);

			take_locked(s, d);
			put_locked(s, d);
		}
	}
}

/* When the shard is to be looked into next; INT64_MAX if it has no timer. */
static int64_t next_locked(const struct timer_shard *s)
{
	if (!s->occupied)
		return INT64_MAX;

	unsigned k = (unsigned)__builtin_ctzll(s->occupied);
	struct ctx_link_ *link = s->bucket[k];
	int64_t earliest = INT64_MAX;

	if (k == 0)
		return s->base;
	for (int seen = 0; seen < EXACT_WAKEUP; seen++) {
		if (deadline_of(link)->node.base.deadline < earliest)
			earliest = deadline_of(link)->node.base.deadline;
		link = link->next;
		if (link == s->bucket[k])
			return earliest;
	}

	uint64_t bit = UINT64_C(1) << (k - 1);

	return (int64_t)(((uint64_t)s->base & ~(bit - 1)) | bit);
}

/*
 * Ends what is due, one at a time with the lock off: ending runs hooks, and takes locks that come before it.
 * Returns when to look again.
 */
static int64_t serve(struct timer_shard *s)
{
	ctx_lock_acquire(&s->lock);
	advance_locked(s, ctx_now());
	while (s->bucket[0]) {
		struct ctx_deadline *d = deadline_of(s->bucket[0]);

		ctx_node_pin(&d->node);
		take_locked(s, d);
		atomic_store_explicit(&d->timer.armed, false, memory_order_release);
		ctx_lock_release(&s->lock);
		ctx_node_finish(&d->node, &CTX_DEADLINE_EXCEEDED, d->cause);
		ctx_node_unpin(&d->node);
		ctx_lock_acquire(&s->lock);
	}
	int64_t next = next_locked(s);

	ctx_lock_release(&s->lock);
	return next;
}

static void sleep_until(int64_t wakeup)
{
	struct timespec ts = {.tv_sec = (time_t)(wakeup / CTX_SECOND),
	                      .tv_nsec = (long)(wakeup % CTX_SECOND)};
	int error = 0;

	pthread_mutex_lock(&timers.mutex);
	while (!timers.stop && !atomic_load(&timers.poked) && error != ETIMEDOUT) {
		if (wakeup == INT64_MAX)
			error = pthread_cond_wait(&timers.cond, &timers.mutex);
		else
			error = pthread_cond_timedwait(&timers.cond, &timers.mutex, &ts);
	}
	pthread_mutex_unlock(&timers.mutex);
}

static bool stopping(void)
{
	pthread_mutex_lock(&timers.mutex);
	bool stop = timers.stop;

	pthread_mutex_unlock(&timers.mutex);
	return stop;
}

static void *timer_thread(void *arg)
{
	while (!stopping()) {
		int64_t wakeup = INT64_MAX;

		atomic_exchange(&timers.poked, false);
		atomic_store(&timers.sleeping_until, INT64_MAX);
		for (int i = 0; i < SHARDS; i++) {
			int64_t next = serve(&shards[i]);

			if (next < wakeup)
				wakeup = next;
		}
		atomic_store(&timers.sleeping_until, wakeup);
		sleep_until(wakeup);
	}
	return arg;
}

/* ---- Starting and stopping the thread ------------------------------------- */

static void init_cond(void)
{
	pthread_condattr_t attr;

	pthread_condattr_init(&attr);
	pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
	pthread_cond_init(&timers.cond, &attr);
	pthread_condattr_destroy(&attr);
}

/* fork() copies no thread but the caller's: the child gets its timers in order, and a thread when it needs one. */
static void before_fork(void)
{
	pthread_mutex_lock(&timers.mutex);
	for (int i = 0; i < SHARDS; i++)
		ctx_lock_acquire(&shards[i].lock);
}

static void after_fork_in_parent(void)
{
	for (int i = 0; i < SHARDS; i++)
		ctx_lock_release(&shards[i].lock);
	pthread_mutex_unlock(&timers.mutex);
}

static void after_fork_in_child(void)
{
	for (int i = 0; i < SHARDS; i++)
		atomic_init(&shards[i].lock.state, CTX_LOCK_FREE);
	pthread_mutex_init(&timers.mutex, NULL);
	init_cond();
	atomic_init(&timers.running, false);
	atomic_init(&timers.poked, false);
	atomic_init(&timers.sleeping_until, INT64_MAX);
}

static void init_once(void)
{
	init_cond();
	pthread_atfork(before_fork, after_fork_in_parent, after_fork_in_child);
}

/* 0 or an errno value. */
static int start(void)
{
	static pthread_once_t once = PTHREAD_ONCE_INIT;
	int error = 0;

	pthread_once(&once, init_once);
	pthread_mutex_lock(&timers.mutex);
	if (!atomic_load(&timers.running) && !timers.stop) {
		error = ctx_thread_start(timer_thread, NULL, &timers.thread);
		atomic_store(&timers.running, error == 0);
	}
	pthread_mutex_unlock(&timers.mutex);
	return error;
}

/* In a forked child: the timers inherited go off again. */
void ctx_timers_revive(void)
{
	if (!atomic_load_explicit(&timers.running, memory_order_acquire))
		start();
}

/* At exit. Not waited for if the thread itself is the one to leave (a hook that calls exit()). */
void ctx_timers_shutdown(void)
{
	pthread_mutex_lock(&timers.mutex);
	bool join = atomic_load(&timers.running) && !pthread_equal(timers.thread, pthread_self());

	timers.stop = true;
	atomic_store(&timers.running, false);
	if (join)
		pthread_cond_signal(&timers.cond);
	pthread_mutex_unlock(&timers.mutex);
	if (join)
		ctx_thread_join(timers.thread);
}

/* ---- Setting and taking back ----------------------------------------------- */

static struct timer_shard *own_shard(void)
{
	static atomic_uint threads;
	static _Thread_local struct timer_shard *own __attribute__((tls_model("initial-exec")));

	if (!own)
		own = &shards[atomic_fetch_add_explicit(&threads, 1, memory_order_relaxed) % SHARDS];
	return own;
}

static void poke(void)
{
	if (atomic_exchange(&timers.poked, true))
		return;
	pthread_mutex_lock(&timers.mutex);
	pthread_cond_signal(&timers.cond);
	pthread_mutex_unlock(&timers.mutex);
}

/* Has the deadline of `d` end it. 0 or an errno value. */
int ctx_timer_arm(struct ctx_deadline *d)
{
	struct timer_shard *s = own_shard();

	if (!atomic_load_explicit(&timers.running, memory_order_acquire)) {
		int error = start();

		if (error)
			return error;
	}
	d->timer.shard = s;
	ctx_lock_acquire(&s->lock);
	put_locked(s, d);
	atomic_store_explicit(&d->timer.armed, true, memory_order_relaxed);
	ctx_lock_release(&s->lock);

	if (d->node.base.deadline < atomic_load_explicit(&timers.sleeping_until, memory_order_acquire))
		poke();
	return 0;
}

/* After the return the timer thread does not know `d` any more, unless it has pinned it to end it. */
void ctx_timer_disarm(struct ctx_deadline *d)
{
	struct timer_shard *s = d->timer.shard;

	ctx_lock_acquire(&s->lock);
	if (atomic_load_explicit(&d->timer.armed, memory_order_relaxed)) {
		take_locked(s, d);
		atomic_store_explicit(&d->timer.armed, false, memory_order_release);
	}
	ctx_lock_release(&s->lock);
}
