/*
 * How long PostgreSQL runs on for clients that have left, from the moment their contexts end.
 *
 *	one      one query of four connections is cancelled, the others being idle; and one of one
 *	storm    50 (500) queries of a pool of 64 (512) are cancelled at once; against as many CancelRequests
 *	         (PQcancel) sent at once from as many threads
 *
 * stopped: until the last query has ended (ReadyForQuery). clean: until the last connection may be used again.
 * Medians. DATABASE_URL must allow 600 connections.
 */
#include <libpq-fe.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>

#include <tether/loop.h>
#include <tether/pg.h>

#include "support.h"

enum { ROUNDS = 11, ONES = 200, STORM_MAX = 500 };

static const char *url;

static void must(bool ok, const char *why)
{
	if (ok)
		return;
	fprintf(stderr, "cancel_bench: %s\n", why);
	exit(1);
}

static int by_size(const void *a, const void *b)
{
	const int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
	return (x > y) - (x < y);
}

static double quantile_ms(int64_t *ns, int n, double q)
{
	qsort(ns, (size_t)n, sizeof(*ns), by_size);
	return (double)ns[(int)(q * (n - 1))] / 1e6;
}

/* ---- Ours --------------------------------------------------------------------------------------------- */

static pg_pool *pool;
static ctx *storm;
static atomic_int settled, kept;
static _Atomic(int64_t) last_settled, stop_ns; /* stop_ns: the longest */

static void on_settled(const pg_settled *s, void *data)
{
	(void)data;
	if (s->stop_ns > stop_ns)
		stop_ns = s->stop_ns;
	last_settled = ctx_now();
	kept += s->kept;
	settled++;
}

static void sleeper(void *arg)
{
	(void)arg;
	pg_rows_close(pg_exec(storm, pool, "SELECT pg_sleep(600)", PG_NO_PARAMS));
}

static int wanted;

static bool all_settled(void *arg)
{
	(void)arg;
	return settled == wanted;
}

static PGconn *watcher;

static bool all_sleep(void *arg)
{
	(void)arg;
	PGresult *result =
		PQexec(watcher, "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep'");
	int n = atoi(PQgetvalue(result, 0, 0));
	PQclear(result);
	return n == wanted;
}

static int64_t one_round(loop *l, int n)
{
	wanted = n;
	settled = 0;
	stop_ns = 0;
	storm = ctx_with_cancel(ctx_background());
	for (int i = 0; i < n; i++)
		loop_spawn(l, sleeper, NULL);
	must(eventually(all_sleep, NULL, 60000), "not all queries run");
	int64_t start = ctx_now();
	ctx_cancel(storm);
	must(eventually(all_settled, NULL, 60000), "not all queries have settled");
	ctx_release(storm);
	return last_settled - start;
}

static void *run_loop(void *arg)
{
	loop_run(arg);
	return NULL;
}

/* open: connections before it begins */
static double measure(int size, int open, int n, int rounds)
{
	int64_t stopped[ONES], clean[ONES];
	pthread_t thread;
	pg_error error;
	loop *l = loop_new(NULL);
	pool = pg_pool_open(
		&(pg_pool_options){.conninfo = url, .size = (size_t)size, .on_settled = on_settled}, &error);
	must(pool, error.message);
	pthread_create(&thread, NULL, run_loop, l);
	one_round(l, open);
	kept = 0;
	for (int i = 0; i < rounds; i++) {
		clean[i] = one_round(l, n);
		stopped[i] = stop_ns;
	}
	pg_pool_stats stats;
	pg_pool_stats_get(pool, &stats);
	printf("  %3d of %3d connections: stopped: median %6.2f, p90 %6.2f ms; clean: median %6.2f, p90 "
	       "%6.2f ms"
	       "  (%d of %d kept, %.1f requests each, %llu batches)\n",
	       n, open, quantile_ms(stopped, rounds, 0.5), quantile_ms(stopped, rounds, 0.9),
	       quantile_ms(clean, rounds, 0.5), quantile_ms(clean, rounds, 0.9), kept, n * rounds,
	       (double)stats.cancels_sent / (double)stats.cancels, (unsigned long long)stats.cancel_batches);
	loop_stop(l);
	pthread_join(thread, NULL);
	loop_free(l);
	pg_pool_close(pool);
	return quantile_ms(stopped, rounds, 0.5);
}

/* ---- CancelRequests ------------------------------------------------------------------------------------- */

static PGconn *sleepers[STORM_MAX];
static pthread_barrier_t together;
static _Atomic(int64_t) last_ended;

static void *cancel_one(void *arg)
{
	PGconn *pg = arg;
	PGcancel *cancel = PQgetCancel(pg);
	PGresult *result;
	char why[256];
	pthread_barrier_wait(&together);
	must(PQcancel(cancel, why, sizeof(why)), why);
	while ((result = PQgetResult(pg)))
		PQclear(result);
	int64_t now = ctx_now();
	int64_t last = last_ended;
	while (now > last && !atomic_compare_exchange_weak(&last_ended, &last, now))
		;
	PQfreeCancel(cancel);
	return NULL;
}

static double measure_requests(int n, int rounds)
{
	int64_t took[ROUNDS];
	pthread_t threads[STORM_MAX];
	wanted = n;
	for (int i = 0; i < n; i++) {
		sleepers[i] = PQconnectdb(url);
		must(PQstatus(sleepers[i]) == CONNECTION_OK, PQerrorMessage(sleepers[i]));
	}
	pthread_barrier_init(&together, NULL, (unsigned)n + 1);
	for (int round = 0; round < rounds; round++) {
		for (int i = 0; i < n; i++)
			PQsendQuery(sleepers[i], "SELECT pg_sleep(600)");
		must(eventually(all_sleep, NULL, 60000), "not all queries run");
		for (int i = 0; i < n; i++)
			must(pthread_create(&threads[i], NULL, cancel_one, sleepers[i]) == 0, "no thread");
		last_ended = 0;
		pthread_barrier_wait(&together);
		int64_t start = ctx_now();
		for (int i = 0; i < n; i++)
			pthread_join(threads[i], NULL);
		took[round] = last_ended - start;
	}
	for (int i = 0; i < n; i++)
		PQfinish(sleepers[i]);
	pthread_barrier_destroy(&together);
	printf("  %3d CancelRequests:    median %7.2f ms  p90 %7.2f ms\n", n, quantile_ms(took, rounds, 0.5),
	       quantile_ms(took, rounds, 0.9));
	return quantile_ms(took, rounds, 0.5);
}

int main(void)
{
	url = getenv("DATABASE_URL");
	must(url, "DATABASE_URL is not set");
	watcher = PQconnectdb(url);
	must(PQstatus(watcher) == CONNECTION_OK, PQerrorMessage(watcher));
	printf("one: until PostgreSQL was ready again\n");
	measure(4, 4, 1, ONES);
	measure(4, 1, 1, ONES);
	printf("storm\n");
	double requests = measure_requests(50, ROUNDS);
	printf("  50: %.1f times faster\n", requests / measure(64, 64, 50, ROUNDS));
	printf("  50 with none idle: %.1f times faster\n", requests / measure(64, 50, 50, ROUNDS));
	requests = measure_requests(500, 5);
	printf("  500: %.1f times faster\n", requests / measure(512, 512, 500, 5));
	printf("  500 with none idle: %.1f times faster\n", requests / measure(512, 500, 500, 5));
	PQfinish(watcher);
	return 0;
}
