/*
 * Statements and their rows: modes, errors, and the memory of prepared statements.
 */
#include <criterion/criterion.h>
#include <criterion/new/assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "querying.h"
#include "scratch.h"
#include "support.h"

TestSuite(pg_query, .init = open_pool, .fini = close_pool, .timeout = 60);

/* ---- Modes -------------------------------------------------------------------------------------------- */

TEST_BOTH_WAYS(pg_query, streams_rows_and_gives_the_connection_back_at_their_end)
{
	pg_rows *r = pg_query(ctx_background(), t->pool,
	                      "SELECT i, i * i AS square FROM generate_series(1, 1000) i", PG_NO_PARAMS);
	cr_assert_null(pg_rows_error(r));
	cr_expect(eq(str, (char *)pg_rows_column_name(r, 1), "square"));
	cr_expect_null(pg_rows_column_name(r, 2));
	cr_expect(pg_rows_is_null(r, 0), "no row is current yet");
	cr_expect(eq(sz, stats_of(t).busy, 1));
	int64_t expected = 0, i, square;
	while (pg_rows_next(r)) {
		cr_assert(pg_rows_int64(r, 0, &i) && pg_rows_int64(r, 1, &square));
		cr_assert(eq(i64, i, ++expected));
		cr_assert(eq(i64, square, i * i));
	}
	cr_expect(eq(i64, expected, 1000));
	cr_expect_null(pg_rows_error(r));
	cr_expect(eq(u64, pg_rows_affected(r), 1000));
	cr_expect(eq(sz, stats_of(t).idle, 1));
	cr_expect_not(pg_rows_next(r));
	cr_expect_null(pg_rows_text(r, 0));
	pg_rows_close(r);
}

Test(pg_query, streams_no_rows)
{
	pg_rows_auto *r = pg_query(ctx_background(), t->pool, "SELECT 1 AS one WHERE false", PG_NO_PARAMS);
	cr_expect_null(pg_rows_error(r));
	cr_expect(eq(int, pg_rows_columns(r), 1));
	cr_expect(eq(str, (char *)pg_rows_column_name(r, 0), "one"));
	cr_expect(eq(sz, stats_of(t).idle, 1), "there is nothing more to come");
	cr_expect_not(pg_rows_next(r));
	cr_expect(eq(u64, pg_rows_affected(r), 0));
}

/* All that PostgreSQL's side buffers and all rows before an error are delivered; then the error is. */
Test(pg_query, an_error_in_the_midst_of_rows_comes_after_them)
{
	pg_rows *r = pg_query(ctx_background(), t->pool,
	                      "SELECT 100 / (5000 - i) FROM generate_series(1, 10000) i", PG_NO_PARAMS);
	int rows = 0;
	cr_assert_null(pg_rows_error(r));
	while (pg_rows_next(r))
		rows++;
	cr_expect(rows > 4000 && rows < 5000, "%d rows before the division by zero", rows);
	expect_error(r, PG_ERROR_SERVER, "22012");
	cr_expect(eq(sz, stats_of(t).idle, 1));
}

Test(pg_query, an_error_before_the_first_row_is_told_by_the_call_itself)
{
	expect_error(pg_query(ctx_background(), t->pool, "SELECT 1 / 0", PG_NO_PARAMS), PG_ERROR_SERVER,
	             "22012");
	expect_error(pg_query(ctx_background(), t->pool, "SELECT nonsense", PG_NO_PARAMS), PG_ERROR_SERVER,
	             "42703");
	expect_error(pg_query(ctx_background(), t->pool, "SELEC 1", PG_NO_PARAMS), PG_ERROR_SERVER, "42601");
	cr_expect(eq(sz, stats_of(t).idle, 1));
	cr_expect(eq(u64, stats_of(t).connects, 1));
}

TEST_BOTH_WAYS(pg_query, query_row_is_positioned_and_drops_further_rows)
{
	pg_rows *r = row("SELECT i FROM generate_series(1, 100000) i", PG_NO_PARAMS);
	int64_t i = 0;
	cr_assert_null(pg_rows_error(r));
	cr_expect(eq(sz, stats_of(t).idle, 1));
	cr_expect(pg_rows_int64(r, 0, &i));
	cr_expect(eq(i64, i, 1));
	cr_expect_not(pg_rows_next(r));
	pg_rows_close(r);
}

TEST_BOTH_WAYS(pg_query, query_row_tells_no_rows_apart)
{
	expect_error(row("SELECT 1 WHERE false", PG_NO_PARAMS), PG_ERROR_NO_ROWS, "");
	cr_expect(eq(sz, stats_of(t).idle, 1));
}

/* INSERT … RETURNING sends its row first; the deferred constraint refuses it at the end. The row must not count. */
Test(pg_query, query_row_believes_only_a_statement_that_has_ended)
{
	must_exec(t, "CREATE TABLE IF NOT EXISTS deferred (id int UNIQUE DEFERRABLE INITIALLY DEFERRED)");
	must_exec(t, "TRUNCATE deferred");
	must_exec(t, "INSERT INTO deferred VALUES (1)");
	pg_rows *r = row("INSERT INTO deferred VALUES (1) RETURNING id", PG_NO_PARAMS);
	cr_expect_null(pg_rows_text(r, 0));
	cr_expect(eq(str, (char *)pg_rows_error(r)->constraint, "deferred_id_key"));
	expect_error(r, PG_ERROR_SERVER, "23505");
	must_exec(t, "DROP TABLE deferred");
}

/* 200 MB pass through each mode. Under a sanitizer freed memory is kept back, so that the peak says nothing. */
Test(pg_query, memory_does_not_grow_with_the_result)
{
	static const char sql[] = "SELECT repeat('x', 2000) FROM generate_series(1, 100000)";
	must_exec(t, "SELECT repeat('x', 2000) FROM generate_series(1, 100)");
	long before = support_peak_kib();
	pg_rows_close(row(sql, PG_NO_PARAMS));
	must_exec(t, sql);
	pg_rows_auto *r = pg_query(ctx_background(), t->pool, sql, PG_NO_PARAMS);
	int rows = 0;
	while (pg_rows_next(r))
		rows++;
	cr_expect(eq(int, rows, 100000));
	if (support_patience() == 1)
		cr_expect(support_peak_kib() - before < 8 * 1024, "%ld KiB more",
		          support_peak_kib() - before);
}

TEST_BOTH_WAYS(pg_query, exec_counts_what_it_affected)
{
	scratch counted;
	scratch_make(&counted, t, "id int");
	pg_rows *r =
		pg_exec(ctx_background(), t->pool,
	                scratch_sql(&counted, "INSERT INTO @ SELECT generate_series(1, 5)"), PG_NO_PARAMS);
	cr_expect_null(pg_rows_error(r));
	cr_expect(eq(u64, pg_rows_affected(r), 5));
	pg_rows_close(r);
	r = pg_exec(ctx_background(), t->pool,
	            scratch_sql(&counted, "UPDATE @ SET id = id WHERE id > $1 RETURNING id"), PG_PARAMS("2"));
	cr_expect(eq(u64, pg_rows_affected(r), 3));
	cr_expect_not(pg_rows_next(r));
	pg_rows_close(r);
	scratch_drop(&counted);
}

Test(pg_query, closing_rows_early_costs_neither_the_connection_nor_the_rest_of_the_query)
{
	int64_t pid = backend_of_pool(t);
	pg_rows *r =
		pg_query(ctx_background(), t->pool, "SELECT generate_series(1, 1000000000)", PG_NO_PARAMS);
	cr_assert(pg_rows_next(r));
	pg_rows_close(r);
	cr_assert(pool_at_rest(t));
	cr_expect(backends_become(t, "active", NULL, 0));
	cr_expect(eq(i64, backend_of_pool(t), pid));
	cr_expect(eq(int, t->settled, 0), "no context has ended");
}

Test(pg_query, closing_rows_that_have_all_arrived_cancels_nothing)
{
	pg_rows *r = pg_query(ctx_background(), t->pool, "SELECT generate_series(1, 3)", PG_NO_PARAMS);
	cr_assert(pg_rows_next(r));
	cr_assert(backends_become(t, "idle", NULL, 1));
	pg_rows_close(r);
	cr_expect(eq(sz, stats_of(t).idle, 1), "it is back at once");
	cr_expect(eq(u64, stats_of(t).cancels_sent, 0));
}

/* ---- What is refused ---------------------------------------------------------------------------------- */

Test(pg_query, refuses_two_statements_in_one)
{
	expect_error(row("SELECT 1; SELECT 2", PG_NO_PARAMS), PG_ERROR_USAGE, "42601");
	expect_error(row("SELECT 1; DROP TABLE album", PG_NO_PARAMS), PG_ERROR_USAGE, "42601");
	cr_expect(eq(u64, stats_of(t).connects, 1));
}

/* PostgreSQL's messages may be in any language; what kind of error it is must not depend on that. */
Test(pg_query, refuses_two_statements_in_any_language)
{
	pg_conn *session = pg_conn_acquire(ctx_background(), t->pool);
	pg_rows_close(pg_exec(ctx_background(), session, "SET lc_messages = 'de_DE.UTF-8'", PG_NO_PARAMS));
	expect_error(pg_query_row(ctx_background(), session, "SELECT 1; SELECT 2", PG_NO_PARAMS),
	             PG_ERROR_USAGE, "42601");
	pg_conn_release(session);
}

Test(pg_query, runs_an_empty_statement)
{
	pg_rows_auto *r = pg_exec(ctx_background(), t->pool, "", PG_NO_PARAMS);
	cr_expect_null(pg_rows_error(r));
}

Test(pg_query, refuses_copy_and_keeps_the_connection)
{
	expect_error(pg_exec(ctx_background(), t->pool, "COPY album FROM STDIN", PG_NO_PARAMS),
	             PG_ERROR_USAGE, "");
	expect_error(pg_query(ctx_background(), t->pool, "COPY album TO STDOUT", PG_NO_PARAMS),
	             PG_ERROR_USAGE, "");
	expect_error(row("COPY album TO STDOUT", PG_NO_PARAMS), PG_ERROR_USAGE, "");
	cr_expect(backends_become(t, "active", NULL, 0));
	must_exec(t, "SELECT 1");
	cr_expect(eq(u64, stats_of(t).connects, 1));
}

Test(pg_query, an_error_names_the_constraint)
{
	pg_rows *r = row("INSERT INTO album (title, artist, price) VALUES ('x', 'y', -1)", PG_NO_PARAMS);
	cr_expect(ne(str, (char *)pg_rows_error(r)->constraint, ""));
	expect_error(r, PG_ERROR_SERVER, "23514");
}

/* ---- Prepared statements ------------------------------------------------------------------------------ */

static int64_t number(pg_conn *session, const char *sql)
{
	pg_rows_auto *r = pg_query_row(ctx_background(), session, sql, PG_NO_PARAMS);
	int64_t value = -1;
	pg_rows_int64(r, 0, &value);
	cr_expect_null(pg_rows_error(r), "%s", pg_rows_error(r) ? pg_rows_error(r)->message : "");
	return value;
}

static const char prepared[] =
	"SELECT count(*) FROM pg_prepared_statements WHERE statement LIKE 'SELECT ''one''%'";

Test(pg_query, prepares_a_text_once)
{
	pg_conn *session = pg_conn_acquire(ctx_background(), t->pool);
	char copy[] = "SELECT 'one', $1::int";
	for (int i = 0; i < 3; i++) {
		pg_rows_close(pg_query_row(ctx_background(), session, copy, PG_PARAMS("1")));
		pg_rows_close(
			pg_query_row(ctx_background(), session, "SELECT 'one', $1::int", PG_PARAMS("2")));
	}
	cr_expect(eq(i64, number(session, prepared), 1));
	pg_conn_release(session);
}

Test(pg_query, remembers_a_limited_number_of_texts)
{
	pg_conn *session = pg_conn_acquire(ctx_background(), t->pool);
	for (int i = 0; i < 600; i++) {
		char sql[32];
		snprintf(sql, sizeof(sql), "SELECT %d", i);
		cr_assert(eq(i64, number(session, sql), i));
		cr_assert(eq(i64, number(session, "SELECT 77777"), 77777), "in use, and so never the oldest");
	}
	cr_expect(eq(i64, number(session, "SELECT count(*) FROM pg_prepared_statements"), 256));
	cr_expect(eq(i64,
	             number(session,
	                    "SELECT count(*) FROM pg_prepared_statements WHERE statement = 'SELECT 77777'"
	                    " AND generic_plans + custom_plans >= 600"),
	             1));
	cr_expect(eq(i64, number(session, "SELECT 0"), 0), "one that was dropped is prepared again");
	pg_conn_release(session);
}

Test(pg_query, prepares_anew_after_a_change_of_schema)
{
	pg_conn *session = pg_conn_acquire(ctx_background(), t->pool);
	must_exec(t, "DROP TABLE IF EXISTS changing");
	must_exec(t, "CREATE TABLE changing AS SELECT 1 AS a");
	pg_rows_close(pg_query_row(ctx_background(), session, "SELECT * FROM changing", PG_NO_PARAMS));
	must_exec(t, "ALTER TABLE changing ADD b text DEFAULT 'b'");
	pg_rows *r = pg_query_row(ctx_background(), session, "SELECT * FROM changing", PG_NO_PARAMS);
	cr_assert_null(pg_rows_error(r));
	cr_expect(eq(str, (char *)pg_rows_text(r, 1), "b"));
	pg_rows_close(r);
	must_exec(t, "DROP TABLE changing");
	pg_conn_release(session);
}

Test(pg_query, prepares_anew_when_the_session_has_forgotten)
{
	pg_conn *session = pg_conn_acquire(ctx_background(), t->pool);
	cr_expect(eq(i64, number(session, "SELECT 5"), 5));
	pg_rows_close(pg_exec(ctx_background(), session, "DEALLOCATE ALL", PG_NO_PARAMS));
	cr_expect(eq(i64, number(session, "SELECT 5"), 5));
	pg_conn_release(session);
}

/* Prepared again and again, 0A000 would go on for ever. */
Test(pg_query, gives_up_on_a_statement_that_is_refused_again)
{
	pg_conn *session = pg_conn_acquire(ctx_background(), t->pool);
	static const char sql[] = "DO $$ BEGIN RAISE EXCEPTION USING ERRCODE = '0A000'; END $$";
	for (int i = 0; i < 3; i++)
		expect_error(pg_exec(ctx_background(), session, sql, PG_NO_PARAMS), PG_ERROR_SERVER, "0A000");
	pg_conn_release(session);
}

/* ---- Out of memory ------------------------------------------------------------------------------------ */

Test(pg_query, names_of_kinds_are_stable)
{
	cr_expect(eq(str, (char *)pg_error_kind_name(PG_ERROR_CANCELED), "canceled"));
	cr_expect(eq(str, (char *)pg_error_kind_name(PG_ERROR_MEMORY), "memory"));
	cr_expect(eq(str, (char *)pg_error_kind_name(0), "none"));
	cr_expect(eq(str, (char *)pg_error_kind_name((pg_error_kind)99), "none"));
}
