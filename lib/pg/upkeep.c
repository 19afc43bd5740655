/*
 * Upkeep: how many connections there are, and for how long.
 *
 * As many are being made as callers wait, and one at a time for the least that is to be idle. What is past its time is
 * closed when it is idle or comes back, one at a time and only after the one before has its successor: a pool that was
 * filled in one burst is never emptied in one. The size bounds all of it, for a connection counts until it is closed.
 *
 * A limit of time falls due while nobody calls, so the keeper has a timer for the next. It is set whenever a connection
 * has been made or closed, and when it fires; it looks ahead far enough that a connection which comes back meanwhile,
 * on whatever thread, needs not set it.
 */

#include "pg_priv.h"

enum {
	CONNECTS_AT_ONCE = 8
}; /* each costs the server a process; more would only stand in the way of cancels */

static const int64_t BACKOFF_FIRST = 100 * CTX_MILLISECOND;
static const int64_t BACKOFF_MOST = 2 * CTX_SECOND;

/* ---- Making ----------------------------------------------------------------------------------------- */

static bool backing_off(const pg_pool *pool)
{
	return pool->failures > 0 && ctx_now() < pool->retry_at;
}

bool pool_is_down(const pg_pool *pool)
{
	return backing_off(pool) && pool_alive_count(pool) == 0 && pool->lists[CONN_CONNECTING].length == 0;
}

/* How many may be in the making. After a failure one attempt at a time feels the way. */
static size_t wanted(const pg_pool *pool, size_t more)
{
	size_t n = pool->waiters.length + more;
	if (n == 0 && pool_idle_count(pool) < pool->options.min_idle)
		n = 1;
	if (n > 1 && pool->failures > 0)
		n = 1;
	return n < CONNECTS_AT_ONCE ? n : CONNECTS_AT_ONCE;
}

void pool_feed(pg_pool *pool, size_t more)
{
	if (pool->closed)
		return;
	if (pool_is_down(pool)) {
		pool_tell_failure(pool);
		return;
	}
	size_t n = wanted(pool, more);
	while (pool->lists[CONN_CONNECTING].length < n && pool_all_count(pool) < pool->options.size &&
	       !backing_off(pool)) {
		conn *cn = conn_new(pool);
		if (!cn)
			return;
		cn->task.fn = conn_connect_task;
		loop_post_task(pool->keeper, &cn->task);
	}
}

/* Any number below the limit, which is positive: SplitMix64 of the time. Connections of one burst get far different ones. */
static int64_t random_below(int64_t limit)
{
	uint64_t x = (uint64_t)ctx_now() * 0x9e3779b97f4a7c15;
	x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9;
	x = (x ^ (x >> 27)) * 0x94d049bb133111eb;
	return (int64_t)((x ^ (x >> 31)) % (uint64_t)limit);
}

static int64_t expiry(const pg_pool_options *options)
{
	if (!options->max_lifetime)
		return 0;
	return ctx_now() + options->max_lifetime - random_below(options->max_lifetime_jitter + 1);
}

void pool_connected(conn *cn)
{
	pg_pool *pool = cn->pool;
	pool_lock(pool);
	pool->totals.connects++;
	pool->failures = 0;
	cn->expires_at = expiry(&pool->options);
	pool_give_locked(cn);
	pool_feed(pool, 0);
	pool_upkeep(pool);
	pool_unlock(pool);
}

static void retry_later(pg_pool *pool);

/* libuv counts from the beginning of a turn, so that a timer set late in a long one goes off before its time. */
static void retry_now(uv_timer_t *timer)
{
	pg_pool *pool = container_of(timer, pg_pool, retry);
	pool_lock(pool);
	if (backing_off(pool))
		retry_later(pool);
	else
		pool_feed(pool, 0);
	pool_unlock(pool);
}

static void retry_later(pg_pool *pool)
{
	int64_t wait = pool->retry_at - ctx_now();
	wait = wait > 0 ? wait : 0;
	uv_timer_start(&pool->retry, retry_now, (uint64_t)(wait / CTX_MILLISECOND) + 1, 0);
}

/* On the keeper. Attempts that ran side by side count as one. */
static void back_off(pg_pool *pool)
{
	if (backing_off(pool))
		return;
	int64_t wait = BACKOFF_FIRST << (pool->failures < 8 ? pool->failures : 8);
	wait = wait < BACKOFF_MOST ? wait : BACKOFF_MOST;
	/* Between half and all of it, so that several programs do not come back in step. */
	wait -= random_below(wait / 2);
	pool->failures++;
	pool->retry_at = ctx_now() + wait;
	retry_later(pool);
}

void pool_connect_failed(conn *cn, const pg_error *error)
{
	pg_pool *pool = cn->pool;
	pool_lock(pool);
	pool->totals.connect_failures++;
	pool->failure = *error;
	if (!pool->closed)
		back_off(pool);
	if (pool_alive_count(pool) == 0)
		pool_tell_failure(pool);
	conn_move(cn, CONN_CLOSED);
	conn_dispatch(cn);
	pool_unlock(pool);
}

/* ---- Limits of time --------------------------------------------------------------------------------- */

/* One is being closed, or its successor made; or none can be made now: then an old one is better than none. */
static bool must_keep(const pg_pool *pool)
{
	bool tries = pool->failures > 0 && wanted(pool, 0) > 0 && pool_all_count(pool) < pool->options.size;
	return tries || backing_off(pool) || pool->lists[CONN_CONNECTING].length > 0 ||
	       pool->lists[CONN_CLOSED].length > 0;
}

bool pool_is_worn(const conn *cn)
{
	return cn->expires_at && ctx_now() >= cn->expires_at && !must_keep(cn->pool);
}

static int64_t sooner(int64_t a, int64_t b)
{
	return a < b ? a : b;
}

/* The idle connection whose time is over first, and when that is: INT64_MAX if there is none. */
static conn *first_due(conn_list *list, bool spare, conn *first, int64_t *due)
{
	for (conn *cn = list->first; cn; cn = cn->next) {
		int64_t idle_time = spare ? cn->pool->options.max_idle_time : 0;
		int64_t end = sooner(cn->expires_at ? cn->expires_at : INT64_MAX,
		                     idle_time ? cn->idle_since + idle_time : INT64_MAX);
		if (end < *due) {
			*due = end;
			first = cn;
		}
	}
	return first;
}

/* When a connection in use could be due at the soonest, should it come back at once. */
static int64_t first_in_use(const pg_pool *pool)
{
	int64_t now = ctx_now(), due = INT64_MAX;
	for (conn_state state = CONN_BUSY; state <= CONN_SETTLING; state++) {
		for (const conn *cn = pool->lists[state].first; cn; cn = cn->next) {
			/* Past its lifetime already, it is closed as it comes back. */
			if (cn->expires_at > now)
				due = sooner(due, cn->expires_at);
		}
	}
	/* Also those idle ones count that only min_idle keeps. */
	if (pool->options.max_idle_time && pool_alive_count(pool) > 0)
		due = sooner(due, now + pool->options.max_idle_time);
	return due;
}

static void upkeep_now(uv_timer_t *timer)
{
	pg_pool *pool = container_of(timer, pg_pool, upkeep);
	pool_lock(pool);
	pool_upkeep(pool);
	pool_unlock(pool);
}

void pool_upkeep(pg_pool *pool)
{
	if (pool->closed || (!pool->options.max_lifetime && !pool->options.max_idle_time))
		return;
	bool spare = pool_idle_count(pool) > pool->options.min_idle;
	int64_t now = ctx_now(), due = INT64_MAX;
	conn *cn = first_due(&pool->lists[CONN_IDLE], spare, NULL, &due);
	for (home *h = pool->homes; h; h = h->next)
		cn = first_due(&h->idle, spare, cn, &due);
	if (cn && due <= now && !must_keep(pool)) {
		bool worn = cn->expires_at && cn->expires_at <= now;
		*(worn ? &pool->totals.closed_lifetime : &pool->totals.closed_idle_time) += 1;
		pool_retire_locked(cn); /* once it is closed, we are called again */
		return;
	}
	/* What must be kept now is looked at again when a connection has been made or closed; or else soon. */
	due = sooner(due > now ? due : now + BACKOFF_FIRST, first_in_use(pool));
	if (due < INT64_MAX)
		uv_timer_start(&pool->upkeep, upkeep_now, (uint64_t)((due - now) / CTX_MILLISECOND) + 1, 0);
}
