/*
 * The pool: who gets a connection, and where one goes that comes back.
 *
 * One mutex guards all of it, for short. A caller takes an idle connection, the one used last, best of his
 * own home; or stands in the queue, from which whatever becomes available goes to who has waited longest, on
 * whichever loop or thread. How many connections there are, and for how long, is the business of upkeep.c.
 */
#include <stdlib.h>
#include <string.h>

#include "pg_priv.h"

/* A connection idle for longer is looked at before it is lent: the keeper may not have seen its end yet. */
static const int64_t FRESH = 10 * CTX_MILLISECOND;

/* What a waiter is handed instead of a connection. */
static char told_failure, told_closed;

static void tell_waiters(pg_pool *pool, void *what)
{
	while (wait_queue_hand(&pool->waiters, what))
		;
}

void pool_tell_failure(pg_pool *pool)
{
	tell_waiters(pool, &told_failure);
}

/* ---- Counting --------------------------------------------------------------------------------------- */

size_t pool_idle_count(const pg_pool *pool)
{
	size_t n = pool->lists[CONN_IDLE].length;
	for (const home *h = pool->homes; h; h = h->next)
		n += h->idle.length;
	return n;
}

/* Connections that may serve someone yet. */
size_t pool_alive_count(const pg_pool *pool)
{
	return pool_idle_count(pool) + pool->lists[CONN_BUSY].length + pool->lists[CONN_CANCELING].length +
	       pool->lists[CONN_SETTLING].length;
}

/* Connections that count against the pool's size. */
size_t pool_all_count(const pg_pool *pool)
{
	return pool_alive_count(pool) + pool->lists[CONN_CONNECTING].length + pool->lists[CONN_CLOSED].length;
}

void pg_pool_stats_get(const pg_pool *pool, pg_pool_stats *stats)
{
	pthread_mutex_t *mutex = &((pg_pool *)(uintptr_t)pool)->mutex;
	pthread_mutex_lock(mutex);
	*stats = pool->totals;
	stats->size = pool->options.size;
	stats->connecting = pool->lists[CONN_CONNECTING].length;
	stats->idle = pool_idle_count(pool);
	stats->busy = pool->lists[CONN_BUSY].length;
	stats->canceling = pool->lists[CONN_CANCELING].length;
	stats->settling = pool->lists[CONN_SETTLING].length;
	stats->open = stats->connecting + stats->idle + stats->busy + stats->canceling + stats->settling;
	stats->waiting = pool->waiters.length;
	pthread_mutex_unlock(mutex);
}

/* ---- Giving ----------------------------------------------------------------------------------------- */

void pool_give_locked(conn *cn)
{
	pg_pool *pool = cn->pool;
	if (cn->lost || cn->doomed || pool->closed) {
		pool_retire_locked(cn);
		return;
	}
	if (pool_is_worn(cn)) {
		pool->totals.closed_lifetime++;
		pool_retire_locked(cn);
		return;
	}
	conn_move(cn, CONN_BUSY);
	cn->idle_since = ctx_now();
	if (wait_queue_hand(&pool->waiters, cn))
		return;
	if (pool_idle_count(pool) < pool->options.max_idle) {
		conn_move(cn, CONN_IDLE);
		return;
	}
	pool->totals.closed_max_idle++;
	pool_retire_locked(cn);
}

void pool_retire_locked(conn *cn)
{
	if (cn->lost || conn_is_broken(cn))
		cn->pool->totals.lost++;
	conn_move(cn, CONN_CLOSED);
	conn_dispatch(cn);
}

void pool_forget_locked(conn *cn)
{
	pg_pool *pool = cn->pool;
	conn_move(cn, CONN_STATES);
	pool_feed(pool, 0);
	pool_upkeep(pool);
	if (pool->closed && pool_all_count(pool) == 0)
		wait_event_set(&pool->all_closed);
}

bool conn_return_locked(conn *cn, ctx *c)
{
	PGTransactionStatusType status = PQtransactionStatus(cn->pg);
	bool in_flight = status == PQTRANS_ACTIVE;
	bool ended = false;
	if (cn->state == CONN_CONNECTING) {
		/* after_connect has spoilt it: its connecting fails. */
		cn->doomed = true;
		return false;
	}
	if (!in_flight)
		conn_drop_notifications(cn); /* what nobody waits for must not pile up */
	if (cn->doomed || cn->lost || status == PQTRANS_UNKNOWN) {
		if (cn->session)
			session_returned(cn->session, NULL);
		pool_retire_locked(cn);
	} else if (status == PQTRANS_IDLE && !cn->listening) {
		pool_give_locked(cn);
	} else {
		ended = in_flight && ctx_err(c);
		cn->ending = (ending){.ctx = ended ? ctx_retain(c) : NULL, .since = ctx_now()};
		cn->pool->totals.cancels += ended;
		conn_move(cn, in_flight ? CONN_CANCELING : CONN_SETTLING);
		conn_dispatch(cn);
	}
	return ended;
}

bool conn_return(conn *cn, ctx *c)
{
	pg_pool *pool = cn->pool; /* cn may belong to another before we are back */
	pool_lock(pool);
	bool settling = conn_return_locked(cn, c);
	pool_unlock(pool);
	return settling;
}

/* ---- Taking ----------------------------------------------------------------------------------------- */

static conn *take_idle(pg_pool *pool, loop *here)
{
	home *mine = here ? home_of(pool, here) : NULL;
	conn *cn = mine ? mine->idle.first : NULL;
	if (!cn)
		cn = pool->lists[CONN_IDLE].first;
	/* Of another's home, the one that other would use last. */
	for (home *h = pool->homes; h && !cn; h = h->next)
		cn = h->idle.last;
	if (!cn)
		return NULL;
	conn_move(cn, CONN_BUSY);
	if (pool->options.min_idle)
		pool_feed(pool, 0);
	return cn;
}

static conn *stand_in_queue(ctx *c, pg_pool *pool, pg_error *error)
{
	if (pool->waiters.length >= pool->options.queue_size) {
		pool->totals.saturated++;
		error_set(error, PG_ERROR_SATURATED, "too many callers wait for a connection already");
		return NULL;
	}
	if (pool_is_down(pool)) {
		*error = pool->failure;
		return NULL;
	}
	pool_feed(pool, 1);
	if (pool_all_count(pool) == 0) {
		error_set(error, PG_ERROR_MEMORY, "out of memory");
		return NULL;
	}
	void *handed = NULL;
	int64_t since = ctx_now();
	int outcome = wait_queue_wait(c, &pool->waiters, &pool->mutex, &handed);
	pool->totals.waits++;
	pool->totals.wait_ns += (uint64_t)(ctx_now() - since);
	if (outcome != 0) {
		if (!error_if_done(error, c))
			error_set(error, PG_ERROR_MEMORY, "out of memory");
		pool->totals.acquires_canceled++;
	} else if (handed == &told_failure) {
		*error = pool->failure;
	} else if (handed == &told_closed) {
		error_set(error, PG_ERROR_CLOSED, "the pool is closed");
	} else {
		return handed;
	}
	return NULL;
}

/* Under the mutex. */
static conn *take(ctx *c, pg_pool *pool, loop *here, pg_error *error)
{
	if (pool->closed) {
		error_set(error, PG_ERROR_CLOSED, "the pool is closed");
		return NULL;
	}
	/* Who waits already goes first. */
	conn *cn = pool->waiters.length == 0 ? take_idle(pool, here) : NULL;
	if (!cn)
		cn = stand_in_queue(c, pool, error);
	if (cn && error_if_done(error, c)) {
		/* Handed over just as its context ended. */
		pool->totals.acquires_canceled++;
		pool_give_locked(cn);
		cn = NULL;
	}
	if (cn)
		conn_adopt(cn, here);
	return cn;
}

conn *pool_acquire(ctx *c, pg_pool *pool, pg_error *error)
{
	if (pool->magic != POOL_MAGIC)
		pg_misuse("pg", "not a pool, or one that was closed");
	if (error_if_done(error, c))
		return NULL;
	loop *here = loop_on_fiber() ? loop_current() : NULL;
	pool_lock(pool);
	pool->totals.acquires++;
	conn *cn = take(c, pool, here, error);
	while (cn && ctx_now() - cn->idle_since > FRESH && conn_is_stale(cn)) {
		cn->lost = true;
		pool_retire_locked(cn);
		cn = take(c, pool, here, error);
	}
	pool_unlock(pool);
	return cn;
}

/* ---- Opening and closing ---------------------------------------------------------------------------- */

static void keeper_exit(loop_exit *hook, loop *l)
{
	(void)l;
	pg_pool *pool = container_of(hook, pg_pool, keeper_exit);
	uv_close((uv_handle_t *)&pool->retry, NULL);
	uv_close((uv_handle_t *)&pool->upkeep, NULL);
}

static void *keeper_main(void *arg)
{
	pg_pool *pool = arg;
	uv_timer_init(loop_uv(pool->keeper), &pool->retry);
	uv_timer_init(loop_uv(pool->keeper), &pool->upkeep);
	pool->keeper_exit.fn = keeper_exit;
	loop_exit_add(pool->keeper, &pool->keeper_exit);
	loop_run(pool->keeper);
	return NULL;
}

static bool keeper_start(pg_pool *pool)
{
	/* TLS handshakes need more stack than most of what runs in fibers. */
	pool->keeper = loop_new(&(loop_options){.stack_size = (size_t)256 * 1024, .stacks_kept = 16});
	return pool->keeper && thread_start(&pool->keeper_thread, NULL, keeper_main, pool) == 0;
}

/* Nobody means more; and times as long as the type allows would overflow where they are added and multiplied. */
static void cut_times(pg_pool_options *options)
{
	int64_t *const times[] = {&options->max_lifetime,     &options->max_lifetime_jitter,
	                          &options->max_idle_time,    &options->connect_timeout,
	                          &options->settle_timeout,   &options->statement_timeout,
	                          &options->liveness_interval};
	for (size_t i = 0; i < sizeof(times) / sizeof(*times); i++) {
		if (*times[i] > LONGEST_TIME)
			*times[i] = LONGEST_TIME;
	}
}

static void fill_in_options(pg_pool_options *options)
{
	cut_times(options);
	if (!options->size)
		options->size = 16;
	if (!options->max_idle)
		options->max_idle = options->size;
	if (options->max_lifetime_jitter <= 0)
		options->max_lifetime_jitter = options->max_lifetime / 10;
	if (!options->queue_size)
		options->queue_size = 1024;
	if (options->connect_timeout <= 0)
		options->connect_timeout = 5 * CTX_SECOND;
	if (options->settle_timeout <= 0)
		options->settle_timeout = 2 * CTX_SECOND;
	if (options->liveness_interval <= 0)
		options->liveness_interval = CTX_SECOND;
}

static void pool_free(pg_pool *pool)
{
	loop_free(pool->keeper);
	while (pool->homes) {
		home *h = pool->homes;
		pool->homes = h->next;
		free(h);
	}
	ctx_release(pool->ctx);
	pthread_mutex_destroy(&pool->mutex);
	free(pool->conninfo);
	free(pool->application_name);
	free(pool->after_connect_sql);
	pool->magic = 0;
	free(pool);
}

static bool readable(const char *conninfo, pg_error *error)
{
	char *why = NULL;
	PQconninfoOption *options = PQconninfoParse(conninfo, &why);
	if (!options)
		error_set(error, why ? PG_ERROR_USAGE : PG_ERROR_MEMORY, why ? why : "out of memory");
	PQconninfoFree(options);
	PQfreemem(why);
	return options;
}

/* What nothing could keep. */
static bool sensible(const pg_pool_options *o, pg_error *error)
{
	if (o->min_idle > o->max_idle || o->min_idle > o->size)
		error_set(error, PG_ERROR_USAGE, "min_idle is above max_idle or the pool's size");
	else if (o->max_lifetime < 0 || o->max_idle_time < 0)
		error_set(error, PG_ERROR_USAGE, "max_lifetime or max_idle_time is negative");
	else if (o->max_lifetime_jitter > o->max_lifetime)
		error_set(error, PG_ERROR_USAGE, "max_lifetime_jitter is above max_lifetime");
	return !error->kind;
}

static char *copy(const char *text)
{
	return text ? strdup(text) : NULL;
}

pg_pool *pg_pool_open(const pg_pool_options *options, pg_error *error)
{
	pg_error unwanted;
	if (!error)
		error = &unwanted;
	error_clear(error);
	const char *conninfo = options->conninfo ? options->conninfo : "";
	pg_pool_options filled = *options;
	fill_in_options(&filled);
	if (!readable(conninfo, error) || !sensible(&filled, error))
		return NULL;
	pg_pool *pool = calloc(1, sizeof(*pool));
	if (!pool) {
		error_set(error, PG_ERROR_MEMORY, "out of memory");
		return NULL;
	}
	pool->magic = POOL_MAGIC;
	pool->options = filled;
	pthread_mutex_init(&pool->mutex, NULL);
	pool->waiters = (wait_queue)WAIT_QUEUE_INIT;
	pool->all_closed = (wait_event)WAIT_EVENT_INIT;
	pool->conninfo = strdup(conninfo);
	pool->application_name = strdup(options->application_name ? options->application_name : "tether");
	pool->after_connect_sql = copy(options->after_connect_sql);
	pool->ctx = ctx_with_cancel(ctx_background());
	pool->options.conninfo = pool->options.application_name = pool->options.after_connect_sql = NULL;
	bool copied = pool->conninfo && pool->application_name &&
	              (pool->after_connect_sql || !options->after_connect_sql);
	if (copied && pool->ctx && keeper_start(pool)) {
		pool_lock(pool);
		pool_feed(pool, 0); /* the least that is to be idle */
		pool_unlock(pool);
		return pool;
	}
	error_set(error, PG_ERROR_MEMORY, "out of memory, files or threads");
	pool_free(pool);
	return NULL;
}

static void close_idle(pg_pool *pool)
{
	while (pool->lists[CONN_IDLE].first)
		pool_retire_locked(pool->lists[CONN_IDLE].first);
	for (home *h = pool->homes; h; h = h->next) {
		while (h->idle.first)
			pool_retire_locked(h->idle.first);
	}
}

void pg_pool_close(pg_pool *pool)
{
	if (!pool)
		return;
	if (pool->magic != POOL_MAGIC)
		pg_misuse("pg_pool_close", "not a pool, or one that was closed");
	pool_lock(pool);
	pool->closed = true;
	tell_waiters(pool, &told_closed);
	close_idle(pool);
	bool none = pool_all_count(pool) == 0;
	pool_unlock(pool);
	ctx_cancel(pool->ctx);
	if (!none)
		wait_event_wait(NULL, &pool->all_closed);
	homes_close(pool);
	loop_stop(pool->keeper);
	pthread_join(pool->keeper_thread, NULL);
	pool_free(pool);
}

bool pg_pool_ping(ctx *c, pg_pool *pool, pg_error *error)
{
	pg_error unwanted;
	if (!error)
		error = &unwanted;
	error_clear(error);
	conn *cn = pool_acquire(c, pool, error);
	if (!cn)
		return false;
	bool ok = conn_command(c, cn, "", error, NULL);
	error->settling = conn_return(cn, c);
	return ok;
}
