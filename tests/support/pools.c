#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "pools.h"
#include "support.h"

enum { OUTER_BOUND_MS = 20000 };

static void on_settled(const pg_settled *settled, void *data)
{
	test_pool *t = data;
	ctx_release(t->query_ctx);
	t->query_ctx = ctx_retain(settled->query_ctx);
	t->cause = settled->cause;
	t->stop_ns = settled->stop_ns;
	t->settle_ns = settled->settle_ns;
	t->cancels_sent = settled->cancels_sent;
	t->kept += settled->kept;
	t->settled++;
}

test_pool *test_pool_open(size_t size, const pg_pool_options *options)
{
	static _Atomic(int) number;
	pg_pool_options o = options ? *options : (pg_pool_options){0};
	test_pool *t = calloc(1, sizeof(*t));
	pg_error error;
	if (!t)
		abort();
	snprintf(t->application, sizeof(t->application), "test %d.%d", (int)getpid(), ++number);
	o.size = size;
	o.application_name = t->application;
	o.on_settled = on_settled;
	o.data = t;
	if (!o.conninfo)
		o.conninfo = support_database_url();
	t->pool = pg_pool_open(&o, &error);
	if (!t->pool) {
		fprintf(stderr, "test_pool_open: %s\n", error.message);
		abort();
	}
	t->watcher = activity_open(support_database_url());
	if (!t->watcher)
		abort();
	return t;
}

void test_pool_close(test_pool *t)
{
	pg_pool_close(t->pool);
	activity_close(t->watcher);
	ctx_release(t->query_ctx);
	free(t);
}

pg_pool_stats stats_of(const test_pool *t)
{
	pg_pool_stats stats;
	pg_pool_stats_get(t->pool, &stats);
	return stats;
}

const char *kind_of(const pg_error *error)
{
	return error ? pg_error_kind_name(error->kind) : "none";
}

static activity_of which(test_pool *t, const char *state, const char *query)
{
	return (activity_of){.application = t->application, .state = state, .query = query};
}

int backends(test_pool *t, const char *state, const char *query)
{
	return activity_count(t->watcher, which(t, state, query));
}

bool backends_become(test_pool *t, const char *state, const char *query, int count)
{
	return activity_becomes(t->watcher, which(t, state, query), count, OUTER_BOUND_MS);
}

typedef struct expected_waiting {
	test_pool *pool;
	size_t waiting;
} expected_waiting;

static bool has_waiting(void *arg)
{
	const expected_waiting *e = arg;
	return stats_of(e->pool).waiting == e->waiting;
}

bool waiting_become(test_pool *t, size_t waiting)
{
	expected_waiting e = {t, waiting};
	return eventually(has_waiting, &e, OUTER_BOUND_MS);
}

typedef struct expected_settled {
	test_pool *pool;
	int count;
} expected_settled;

static bool has_settled(void *arg)
{
	const expected_settled *e = arg;
	return e->pool->settled >= e->count;
}

bool settled_become(test_pool *t, int count)
{
	expected_settled e = {t, count};
	return eventually(has_settled, &e, OUTER_BOUND_MS);
}

static bool rests(void *arg)
{
	pg_pool_stats stats = stats_of(arg);
	return stats.busy + stats.canceling + stats.settling + stats.connecting + stats.waiting == 0;
}

bool pool_at_rest(test_pool *t)
{
	return eventually(rests, t, OUTER_BOUND_MS);
}

static int64_t number_of(pg_rows *rows)
{
	int64_t number = -1;
	pg_rows_int64(rows, 0, &number);
	if (pg_rows_error(rows))
		fprintf(stderr, "number_of: %s\n", pg_rows_error(rows)->message);
	pg_rows_close(rows);
	return number;
}

int64_t backend_of(pg_conn *session)
{
	return number_of(pg_query_row(ctx_background(), session, "SELECT pg_backend_pid()", PG_NO_PARAMS));
}

int64_t backend_of_pool(test_pool *t)
{
	return number_of(pg_query_row(ctx_background(), t->pool, "SELECT pg_backend_pid()", PG_NO_PARAMS));
}

void must_exec(test_pool *t, const char *sql)
{
	pg_rows_auto *rows = pg_exec(ctx_background(), t->pool, sql, PG_NO_PARAMS);
	if (!pg_rows_error(rows))
		return;
	fprintf(stderr, "must_exec: %s: %s\n", sql, pg_rows_error(rows)->message);
	abort();
}

int64_t ask_number(test_pool *t, const char *sql)
{
	char *text = activity_sql(t->watcher, sql);
	int64_t number = text ? strtoll(text, NULL, 10) : INT64_MIN;
	free(text);
	return number;
}

static void *query_main(void *arg)
{
	test_query *q = arg;
	pg_rows_auto *rows = pg_exec(q->c, q->pool, q->sql, PG_NO_PARAMS);
	q->ended_at = ctx_now();
	if (pg_rows_error(rows))
		q->error = *pg_rows_error(rows);
	return NULL;
}

test_query *test_query_start(test_pool *t, const char *sql)
{
	test_query *q = calloc(1, sizeof(*q));
	if (!q || !(q->c = ctx_with_cancel(ctx_background())))
		abort();
	q->pool = t->pool;
	q->sql = sql;
	if (pthread_create(&q->thread, NULL, query_main, q) != 0)
		abort();
	return q;
}

void test_query_join(test_query *q)
{
	pthread_join(q->thread, NULL);
	ctx_end(q->c);
}
