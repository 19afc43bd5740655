/*
 * lib/pg against libpq itself: what the pool, the context and the fiber add to a query and to a row.
 *
 *	query: 64 fibers on one loop, a pool of 16, pg_query_row of one row by its key; CPU of this process only.
 *	       Against one connection driven by blocking libpq calls, which is the floor for its CPU. And the
 *	       same with a tag on each, which has PostgreSQL parse and plan each: by the rates, with all CPUs busy.
 *	rows:  a million rows of two columns, streamed; against a bare PQsetSingleRowMode loop.
 *
 * All of it, or what the argument names; in rounds, one after the other in each, and the medians at the end.
 */
#include <libpq-fe.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>

#include <tether/loop.h>
#include <tether/pg.h>

#include "support.h"

enum { QUERIES = 100000, FIBERS = 64, POOL = 16, ROUNDS = 5, ROWS = 1000000 };

static const char by_key[] = "SELECT id, title, artist, price FROM album WHERE id = $1";
static const char many[] = "SELECT i, 'title ' || i FROM generate_series(1, $1::int) i";

static const char *url;
static pg_pool *pool, *tagging;

static int64_t cpu_ns(void)
{
	struct rusage usage;
	getrusage(RUSAGE_SELF, &usage);
	return (usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) * INT64_C(1000000000) +
	       (usage.ru_utime.tv_usec + usage.ru_stime.tv_usec) * INT64_C(1000);
}

static void must(bool ok, const char *why)
{
	if (ok)
		return;
	fprintf(stderr, "pg_bench: %s\n", why);
	exit(1);
}

/* ---- Figures ------------------------------------------------------------------------------------------ */

typedef enum figure {
	QUERY,
	TAGGED_QUERY,
	BARE_QUERY,
	ROW,
	BARE_ROW,
	FIGURES,
} figure;

static const char *const names[FIGURES] = {
	[QUERY] = "pg_query_row, 64 fibers",
	[TAGGED_QUERY] = "the same with tags",
	[BARE_QUERY] = "bare PQexecPrepared, one connection",
	[ROW] = "pg_rows_next, a million rows",
	[BARE_ROW] = "bare PQsetSingleRowMode",
};
static double figures[FIGURES][ROUNDS], rates[FIGURES][ROUNDS];
static int taken[FIGURES];

static void report(figure f, int64_t wall, int64_t cpu, double n)
{
	rates[f][taken[f]] = n * 1e9 / (double)wall;
	figures[f][taken[f]++] = (double)cpu / n / 1e3;
	printf("  %-36s %8.0f /s  %6.3f µs CPU each\n", names[f], n * 1e9 / (double)wall,
	       (double)cpu / n / 1e3);
}

static double median(figure f, double of[][ROUNDS])
{
	return support_median(of[f], taken[f]);
}

static void compare(figure ours, figure bare)
{
	if (taken[ours] > 0)
		printf("  %-36s %6.3f µs CPU each, %.2f × bare libpq\n", names[ours], median(ours, figures),
		       median(ours, figures) / median(bare, figures));
}

static void compare_rates(figure tagged, figure plain)
{
	if (taken[tagged] > 0)
		printf("  %-36s %6.2f × the time without\n", names[tagged],
		       median(plain, rates) / median(tagged, rates));
}

/* ---- Queries ------------------------------------------------------------------------------------------ */

static int left;

static void tag(ctx *c, pg_tags *tags, void *data)
{
	(void)c;
	(void)data;
	pg_tag(tags, "traceparent", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01");
	pg_tag(tags, "request_id", "00f067aa0ba902b7");
}

static void query_fiber(void *arg)
{
	ctx_auto *parent = ctx_with_cancel(ctx_background());
	pg_pool *from = arg;
	while (left-- > 0) {
		ctx_auto *c = ctx_with_timeout(parent, 5 * CTX_SECOND);
		pg_rows_auto *rows = pg_query_row(c, from, by_key, PG_PARAMS("1"));
		must(!pg_rows_error(rows), "a query failed");
	}
	loop_stop(loop_current());
}

static void bench_queries(figure f, pg_pool *from, int count)
{
	loop *l = loop_new(NULL);
	left = count;
	for (int i = 0; i < FIBERS; i++)
		loop_spawn(l, query_fiber, from);
	int64_t wall = ctx_now(), cpu = cpu_ns();
	loop_run(l);
	report(f, ctx_now() - wall, cpu_ns() - cpu, count);
	loop_free(l);
}

static PGconn *bare_connection(void)
{
	PGconn *pg = PQconnectdb(url);
	must(PQstatus(pg) == CONNECTION_OK, PQerrorMessage(pg));
	PQclear(PQprepare(pg, "key", by_key, 0, NULL));
	PQclear(PQprepare(pg, "many", many, 0, NULL));
	return pg;
}

static void bench_bare_queries(void)
{
	const char *one[] = {"1"};
	PGconn *pg = bare_connection();
	int64_t wall = ctx_now(), cpu = cpu_ns();
	for (int i = 0; i < QUERIES / 4; i++) {
		PGresult *result = PQexecPrepared(pg, "key", 1, one, NULL, NULL, 0);
		must(PQntuples(result) == 1, PQerrorMessage(pg));
		PQclear(result);
	}
	report(BARE_QUERY, ctx_now() - wall, cpu_ns() - cpu, QUERIES / 4.0);
	PQfinish(pg);
}

/* ---- Rows --------------------------------------------------------------------------------------------- */

static void bench_rows(void)
{
	char n[16];
	snprintf(n, sizeof(n), "%d", ROWS);
	long before = support_peak_kib();
	int64_t wall = ctx_now(), cpu = cpu_ns(), count = 0, sum = 0, id;
	pg_rows *rows = pg_query(ctx_background(), pool, many, PG_PARAMS(n));
	for (; pg_rows_next(rows); count++) {
		must(pg_rows_int64(rows, 0, &id), "a number was refused");
		sum += id;
	}
	must(count == ROWS && sum == INT64_C(500000500000), "rows were lost");
	pg_rows_close(rows);
	report(ROW, ctx_now() - wall, cpu_ns() - cpu, ROWS);
	printf("  %-34s %8ld KiB more at the peak\n", "", support_peak_kib() - before);
}

static void bench_bare_rows(void)
{
	char n[16];
	const char *params[] = {n};
	snprintf(n, sizeof(n), "%d", ROWS);
	PGconn *pg = bare_connection();
	PGresult *result;
	int64_t wall = ctx_now(), cpu = cpu_ns(), count = 0, sum = 0;
	PQsendQueryPrepared(pg, "many", 1, params, NULL, NULL, 0);
	PQsetSingleRowMode(pg);
	while ((result = PQgetResult(pg))) {
		if (PQntuples(result) > 0) {
			sum += strtoll(PQgetvalue(result, 0, 0), NULL, 10);
			count++;
		}
		PQclear(result);
	}
	must(count == ROWS && sum == INT64_C(500000500000), "rows were lost");
	report(BARE_ROW, ctx_now() - wall, cpu_ns() - cpu, ROWS);
	PQfinish(pg);
}

int main(int argc, char **argv)
{
	pg_error error;
	bool queries = argc < 2 || strcmp(argv[1], "queries") == 0;
	bool rows = argc < 2 || strcmp(argv[1], "rows") == 0;
	url = getenv("DATABASE_URL");
	must(url, "DATABASE_URL is not set");
	pool = pg_pool_open(&(pg_pool_options){.conninfo = url, .size = POOL}, &error);
	must(pool, error.message);
	tagging = pg_pool_open(&(pg_pool_options){.conninfo = url, .size = POOL, .tag = tag}, &error);
	must(tagging, error.message);
	for (int round = 0; round < ROUNDS; round++) {
		printf("round %d\n", round + 1);
		if (queries) {
			bench_queries(QUERY, pool, QUERIES);
			bench_queries(TAGGED_QUERY, tagging, QUERIES / 2);
			bench_bare_queries();
		}
		if (rows) {
			bench_rows();
			bench_bare_rows();
		}
	}
	printf("medians\n");
	compare(QUERY, BARE_QUERY);
	compare_rates(TAGGED_QUERY, QUERY);
	compare(ROW, BARE_ROW);
	pg_pool_close(pool);
	pg_pool_close(tagging);
	return 0;
}
