/* What on_query tells: each statement's states, forwards, in its caller's own order, and whose it was. */
#include <criterion/criterion.h>
#include <criterion/new/assert.h>
#include <stdio.h>
#include <string.h>

#include "pools.h"
#include "support.h"

static const ctx_key whose = {.name = "whose"};

/* One line of what was told. Only the test's own thread runs statements, so nobody else writes it. */
static char told[1024];
static int settling, backend;

static void on_query(const pg_query_event *event, void *data)
{
	static const char *const states[] = {"queued", "running", "streaming", "ended"};
	const char *owner = ctx_value(event->query_ctx, &whose);
	size_t length = strlen(told);
	(void)data;
	snprintf(told + length, sizeof told - length, "%s%s%s%s%s", length ? " " : "", owner ? owner : "",
	         states[event->state], event->sql ? ":" : "", event->sql ? event->sql : "");
	settling += event->settling;
	if (event->state == PG_QUERY_RUNNING)
		backend = event->backend;
}

static test_pool *t;

static void open_pool(void)
{
	t = test_pool_open(1, &(pg_pool_options){.on_query = on_query});
	must_exec(t, "SELECT 1");
	told[0] = '\0';
}

static void close_pool(void)
{
	test_pool_close(t);
}

TestSuite(pg_events, .init = open_pool, .fini = close_pool, .timeout = 60);

Test(pg_events, a_statement_is_queued_runs_and_ends)
{
	ctx_auto *c = ctx_with_value(ctx_background(), &whose, "mine ");
	pg_rows *row = pg_query_row(c, t->pool, "SELECT pg_backend_pid()", PG_NO_PARAMS);
	int64_t pid = 0;

	cr_expect(pg_rows_int64(row, 0, &pid));
	cr_expect(eq(str, told,
	             "mine queued:SELECT pg_backend_pid() mine running:SELECT pg_backend_pid() mine ended"));
	cr_expect(eq(int, backend, (int)pid));
	cr_expect(eq(int, settling, 0));
	pg_rows_close(row);
	cr_expect_not_null(strstr(told, "ended"));
	cr_expect(eq(sz, strlen(strstr(told, "ended")), strlen("ended")), "told once");
}

Test(pg_events, rows_stream_until_they_end_or_are_closed)
{
	ctx_auto *c = ctx_with_cancel(ctx_background());
	pg_rows *rows = pg_query(c, t->pool, "SELECT generate_series(1, 300)", PG_NO_PARAMS);
	cr_expect(
		eq(str, told,
	           "queued:SELECT generate_series(1, 300) running:SELECT generate_series(1, 300) streaming"));
	while (pg_rows_next(rows))
		;
	cr_expect(eq(str, strstr(told, "streaming"), "streaming ended"));
	pg_rows_close(rows);
	cr_expect(eq(str, strstr(told, "streaming"), "streaming ended"), "told once");

	told[0] = '\0';
	rows = pg_query(c, t->pool, "SELECT generate_series(1, 1000000)", PG_NO_PARAMS);
	cr_expect(pg_rows_next(rows));
	pg_rows_close(rows);
	cr_expect(eq(str, strstr(told, "streaming"), "streaming ended"));
	cr_expect(eq(int, settling, 0), "nobody's context ended");
}

Test(pg_events, who_leaves_the_queue_has_not_run)
{
	ctx_auto *c = ctx_with_cancel(ctx_background());
	pg_conn *all = pg_conn_acquire(c, t->pool);
	ctx_auto *soon = ctx_with_timeout(c, 20 * CTX_MILLISECOND);

	cr_expect(eq(str, told, "queued ended"), "a session asks for its connection without a statement");
	told[0] = '\0';
	pg_rows_close(pg_exec(soon, t->pool, "SELECT 1", PG_NO_PARAMS));
	cr_expect(eq(str, told, "queued:SELECT 1 ended"));
	cr_expect(eq(int, settling, 0));
	told[0] = '\0';
	pg_rows_close(pg_exec(c, all, "SELECT 2", PG_NO_PARAMS));
	cr_expect(eq(str, told, "running:SELECT 2 ended"));
	pg_conn_release(all);
}

Test(pg_events, an_end_in_flight_is_told_to_settle)
{
	ctx_auto *c = ctx_with_timeout(ctx_background(), 50 * CTX_MILLISECOND);

	pg_rows_close(pg_exec(c, t->pool, "SELECT pg_sleep(60)", PG_NO_PARAMS));
	cr_expect(eq(str, strstr(told, "running"), "running:SELECT pg_sleep(60) ended"));
	cr_expect(eq(int, settling, 1));
	cr_expect(settled_become(t, 1));
}

/* The connection is taken at the context's end, with nobody in a call; its reader hears of it by closing the rows. */
Test(pg_events, an_end_between_two_rows_is_told_to_settle)
{
	ctx_auto *c = ctx_with_cancel(ctx_background());
	pg_rows *rows = pg_query(
		c, t->pool,
		"SELECT CASE WHEN i = 1000 THEN pg_sleep(60)::text END FROM generate_series(1, 2000) i",
		PG_NO_PARAMS);

	cr_assert(pg_rows_next(rows));
	ctx_cancel(c);
	cr_expect(settled_become(t, 1));
	cr_expect_null(strstr(told, "ended"));
	pg_rows_close(rows);
	cr_expect(eq(str, strstr(told, "streaming"), "streaming ended"));
	cr_expect(eq(int, settling, 1));
}

Test(pg_events, a_transactions_statements_share_its_connection)
{
	ctx_auto *c = ctx_with_cancel(ctx_background());
	pg_tx *tx = pg_begin(c, t->pool, NULL);

	pg_rows_close(pg_exec(c, tx, "SELECT 1", PG_NO_PARAMS));
	cr_expect(pg_commit(tx));
	cr_expect(eq(str, told,
	             "queued:BEGIN running:BEGIN ended running:SELECT 1 ended running:COMMIT ended"));
	pg_rollback(tx);
}
