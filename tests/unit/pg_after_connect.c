/*
 * What a new session begins with: the program's SQL and its call, and that each way to fail there is a failed connect.
 */
#include <criterion/criterion.h>
#include <criterion/new/assert.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "alloc_fault.h"
#include "pools.h"
#include "support.h"

TestSuite(pg_after_connect, .timeout = 120);

static char *setting(test_pool *t, const char *name)
{
	pg_rows_auto *r =
		pg_query_row(ctx_background(), t->pool, "SELECT current_setting($1)", PG_PARAMS(name));
	const char *value = pg_rows_text(r, 0);
	return strdup(value ? value : "(none)");
}

TEST_BOTH_WAYS(pg_after_connect, runs_sql_on_every_new_session)
{
	test_pool *t = test_pool_open(
		2, &(pg_pool_options){.after_connect_sql =
	                                      "SET work_mem = '7MB'; SET tether.greeting = 'hello'"});
	char *memory = setting(t, "work_mem"), *greeting = setting(t, "tether.greeting");
	cr_expect(eq(str, memory, "7MB"));
	cr_expect(eq(str, greeting, "hello"));
	free(memory);
	free(greeting);
	test_pool_close(t);
}

static bool prepare_session(ctx *c, pg_conn *session, pg_error *error, void *data)
{
	(void)error;
	(void)data;
	pg_rows_close(pg_exec(c, session, "CREATE TEMP TABLE mine AS SELECT generate_series(1, 1000) AS i",
	                      PG_NO_PARAMS));
	pg_rows_auto *row = pg_query_row(c, session, "SELECT count(*) FROM mine", PG_NO_PARAMS);
	int64_t n = 0;
	/* Rows closed before their end are skipped for it. */
	pg_rows_close(pg_query(c, session, "SELECT i FROM mine", PG_NO_PARAMS));
	return pg_rows_int64(row, 0, &n) && n == 1000;
}

TEST_BOTH_WAYS(pg_after_connect, calls_the_program_with_every_new_session)
{
	test_pool *t = test_pool_open(2, &(pg_pool_options){.after_connect = prepare_session});
	pg_conn *a = pg_conn_acquire(ctx_background(), t->pool),
		*b = pg_conn_acquire(ctx_background(), t->pool);
	pg_conn_release(a);
	pg_conn_release(b);
	for (int i = 0; i < 2; i++)
		must_exec(t, "SELECT i FROM mine");
	cr_expect(eq(u64, stats_of(t).connects, 2));
	test_pool_close(t);
}

typedef enum refusal {
	REFUSES,
	FAILS_A_STATEMENT,
	LEAVES_A_TRANSACTION,
	RUNS_INTO_A_DEADLINE,
	STREAMS_INTO_A_DEADLINE,
	LOSES_THE_CONNECTION,
	TAKES_TOO_LONG,
} refusal;

static _Atomic(refusal) how;
static _Atomic(bool) healed;

static bool run(ctx *c, pg_conn *session, pg_error *error, const char *sql)
{
	pg_rows_auto *r = pg_exec(c, session, sql, PG_NO_PARAMS);
	if (pg_rows_error(r))
		*error = *pg_rows_error(r);
	return !pg_rows_error(r);
}

static bool refuse(ctx *c, pg_conn *session, pg_error *error, void *data)
{
	(void)data;
	if (healed)
		return true;
	ctx_auto *soon = ctx_with_timeout(c, 30 * CTX_MILLISECOND);
	switch (atomic_load(&how)) {
	case REFUSES:
		return false;
	case FAILS_A_STATEMENT:
		return run(c, session, error, "SELECT 1 / 0");
	case LEAVES_A_TRANSACTION:
		return run(c, session, error, "BEGIN");
	case RUNS_INTO_A_DEADLINE:
		run(soon, session, error, "SELECT pg_sleep(60)");
		*error = (pg_error){0};
		return true;
	case STREAMS_INTO_A_DEADLINE: {
		pg_rows_auto *r =
			pg_query(soon, session, "SELECT generate_series(1, 1000000000)", PG_NO_PARAMS);
		while (pg_rows_next(r))
			;
		return true;
	}
	case LOSES_THE_CONNECTION:
		return run(c, session, error, "SELECT pg_terminate_backend(pg_backend_pid())");
	case TAKES_TOO_LONG:
		return run(c, session, error, "SELECT pg_sleep(60)");
	}
	return true;
}

/* Each way to fail is told to who waits, costs no more than the attempt, and is over with the next that succeeds. */
static void expect_failed_connect(refusal r, const char *sqlstate, const char *message)
{
	how = r;
	healed = false;
	test_pool *t = test_pool_open(
		1, &(pg_pool_options){.after_connect = refuse, .connect_timeout = 300 * CTX_MILLISECOND});
	pg_rows *rows = pg_exec(ctx_background(), t->pool, "SELECT 1", PG_NO_PARAMS);
	cr_assert_not_null(pg_rows_error(rows));
	cr_expect(eq(str, (char *)kind_of(pg_rows_error(rows)), "connection"));
	cr_expect(eq(str, (char *)pg_rows_error(rows)->sqlstate, (char *)sqlstate));
	cr_expect_not_null(strstr(pg_rows_error(rows)->message, message), "%s", pg_rows_error(rows)->message);
	cr_expect_null(pg_rows_error(rows)->cause);
	pg_rows_close(rows);
	cr_expect(ge(u64, stats_of(t).connect_failures, 1));
	cr_expect(eq(u64, stats_of(t).connects, 0));
	cr_expect(backends_become(t, NULL, NULL, 0));
	healed = true;
	pg_conn *session;
	do {
		session = pg_conn_acquire(ctx_background(), t->pool);
		if (!pg_conn_error(session))
			break;
		pg_conn_release(session);
	} while (true);
	cr_expect(backend_of(session) > 0);
	pg_conn_release(session);
	cr_expect(eq(int, t->settled, 0));
	test_pool_close(t);
}

Test(pg_after_connect, a_session_that_the_program_refuses_is_a_failed_connect)
{
	expect_failed_connect(REFUSES, "", "refused");
}

Test(pg_after_connect, a_failing_statement_of_the_programs_is_a_failed_connect)
{
	expect_failed_connect(FAILS_A_STATEMENT, "22012", "division by zero");
}

Test(pg_after_connect, a_transaction_left_open_is_a_failed_connect)
{
	expect_failed_connect(LEAVES_A_TRANSACTION, "", "transaction");
}

Test(pg_after_connect, a_statement_cut_short_is_a_failed_connect)
{
	expect_failed_connect(RUNS_INTO_A_DEADLINE, "", "deadline");
}

Test(pg_after_connect, a_stream_cut_short_is_a_failed_connect)
{
	expect_failed_connect(STREAMS_INTO_A_DEADLINE, "", "deadline");
}

Test(pg_after_connect, a_connection_that_breaks_at_once_is_a_failed_connect)
{
	expect_failed_connect(LOSES_THE_CONNECTION, "57P01", "terminating connection");
}

Test(pg_after_connect, beginnings_that_take_too_long_are_a_failed_connect)
{
	expect_failed_connect(TAKES_TOO_LONG, "", "in time");
}

static void expect_failing_sql(const char *sql, const char *sqlstate)
{
	test_pool *t = test_pool_open(1, &(pg_pool_options){.after_connect_sql = sql});
	pg_rows *rows = pg_exec(ctx_background(), t->pool, "SELECT 1", PG_NO_PARAMS);
	cr_expect(eq(str, (char *)kind_of(pg_rows_error(rows)), "connection"));
	cr_expect(eq(str, (char *)pg_rows_error(rows)->sqlstate, (char *)sqlstate));
	pg_rows_close(rows);
	cr_expect(eq(u64, stats_of(t).connects, 0));
	test_pool_close(t);
}

Test(pg_after_connect, failing_sql_is_a_failed_connect)
{
	expect_failing_sql("SET work_mem = '7MB'; SET no_such_setting = 1", "42704");
	expect_failing_sql("BEGIN", "");
}

Test(pg_after_connect, out_of_memory_is_a_failed_connect)
{
	for (unsigned n = 1; n < 60; n++) {
		test_pool *t = test_pool_open(1, &(pg_pool_options){.after_connect = prepare_session,
		                                                    .after_connect_sql = "SELECT 1"});
		fault_set_process(FAULT_MEMORY, n);
		pg_conn *session = pg_conn_acquire(ctx_background(), t->pool);
		bool failed = fault_clear(FAULT_MEMORY);
		bool told = pg_conn_error(session) != NULL;
		cr_expect(failed || !told);
		pg_conn_release(session);
		test_pool_close(t);
		if (!failed)
			break;
	}
}
