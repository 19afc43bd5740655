/*
 * Transactions and pinned connections: what lives under one context, and what is left when it ends.
 */
#include <criterion/criterion.h>
#include <criterion/new/assert.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "alloc_fault.h"
#include "pools.h"
#include "support.h"

static test_pool *t;

static void open_pool(void)
{
	t = test_pool_open(2, NULL);
}

static void close_pool(void)
{
	test_pool_close(t);
}

TestSuite(pg_tx, .init = open_pool, .fini = close_pool, .timeout = 60);

static const ctx_error left = {ECONNRESET, "the client has left"};

#define EXPECT_KIND(error, kind) cr_expect(eq(str, (char *)kind_of(error), kind))

/* A table of the test's own, in the one database that all tests share. */
static char table[32], insert[96], count[96];

static void make_table(void)
{
	char sql[128];
	snprintf(table, sizeof(table), "tx_%d", (int)(ctx_now() % 1000000000));
	snprintf(sql, sizeof(sql), "CREATE TABLE %s (id int UNIQUE DEFERRABLE INITIALLY DEFERRED)", table);
	must_exec(t, sql);
	snprintf(insert, sizeof(insert), "INSERT INTO %s VALUES ($1::int)", table);
	snprintf(count, sizeof(count), "SELECT count(*) FROM %s", table);
}

static void drop_table(void)
{
	char sql[128];
	snprintf(sql, sizeof(sql), "DROP TABLE %s", table);
	must_exec(t, sql);
}

static void insert_in_tx(pg_tx *tx, const char *id)
{
	pg_rows_auto *r = pg_exec(ctx_background(), tx, insert, PG_PARAMS(id));
	cr_assert_null(pg_rows_error(r), "%s", pg_rows_error(r) ? pg_rows_error(r)->message : "");
}

static int in_transactions(void)
{
	return backends(t, "idle in transaction%", NULL);
}

/* ---- Ends --------------------------------------------------------------------------------------------- */

TEST_BOTH_WAYS(pg_tx, commits)
{
	make_table();
	pg_tx *tx = pg_begin(ctx_background(), t->pool, NULL);
	cr_assert_null(pg_tx_error(tx));
	insert_in_tx(tx, "1");
	cr_expect(eq(i64, ask_number(t, count), 0));
	cr_expect(pg_commit(tx));
	cr_expect_null(pg_tx_error(tx));
	cr_expect(eq(i64, ask_number(t, count), 1));
	cr_expect(eq(sz, stats_of(t).idle, 1), "the connection is back before the close");
	pg_rows *r = pg_exec(ctx_background(), tx, "SELECT 1", PG_NO_PARAMS);
	EXPECT_KIND(pg_rows_error(r), "closed");
	pg_rows_close(r);
	cr_expect_not(pg_commit(tx));
	pg_rollback(tx);
	cr_expect(eq(i64, ask_number(t, count), 1));
	drop_table();
}

TEST_BOTH_WAYS(pg_tx, rolls_back_and_keeps_the_connection)
{
	make_table();
	int64_t pid = backend_of_pool(t);
	{
		pg_tx_auto *tx = pg_begin(ctx_background(), t->pool, NULL);
		insert_in_tx(tx, "1");
	}
	cr_assert(pool_at_rest(t));
	cr_expect(eq(int, in_transactions(), 0));
	cr_expect(eq(i64, ask_number(t, count), 0));
	cr_expect(eq(i64, backend_of_pool(t), pid));
	pg_rollback(NULL);
	drop_table();
}

/* PostgreSQL answers such a COMMIT with success, and the tag ROLLBACK. */
Test(pg_tx, a_commit_after_a_failed_statement_is_no_commit)
{
	pg_tx *tx = pg_begin(ctx_background(), t->pool, NULL);
	pg_rows_close(pg_exec(ctx_background(), tx, "SELECT 1 / 0", PG_NO_PARAMS));
	cr_expect_not(pg_commit(tx));
	EXPECT_KIND(pg_tx_error(tx), "server");
	cr_expect(eq(str, (char *)pg_tx_error(tx)->sqlstate, "25P02"));
	pg_rollback(tx);
	cr_expect(eq(sz, stats_of(t).idle, 1));
}

Test(pg_tx, a_commit_that_postgresql_refuses_says_why)
{
	make_table();
	pg_tx *tx = pg_begin(ctx_background(), t->pool, NULL);
	insert_in_tx(tx, "1");
	insert_in_tx(tx, "1");
	cr_expect_not(pg_commit(tx));
	EXPECT_KIND(pg_tx_error(tx), "server");
	cr_expect(eq(str, (char *)pg_tx_error(tx)->sqlstate, "23505"));
	pg_rollback(tx);
	cr_expect(eq(i64, ask_number(t, count), 0));
	drop_table();
}

/* A deferred trigger that sleeps makes COMMIT as slow as a test wants it. */
static void make_commit_slow(void)
{
	char sql[320];
	snprintf(sql, sizeof(sql),
	         "CREATE FUNCTION %s_wait() RETURNS trigger LANGUAGE plpgsql AS"
	         " $$ BEGIN PERFORM pg_sleep(60); RETURN NULL; END $$",
	         table);
	must_exec(t, sql);
	snprintf(sql, sizeof(sql),
	         "CREATE CONSTRAINT TRIGGER wait AFTER INSERT ON %s DEFERRABLE INITIALLY DEFERRED"
	         " FOR EACH ROW EXECUTE FUNCTION %s_wait()",
	         table, table);
	must_exec(t, sql);
}

static void drop_slow_table(void)
{
	char sql[128];
	drop_table();
	snprintf(sql, sizeof(sql), "DROP FUNCTION %s_wait", table);
	must_exec(t, sql);
}

Test(pg_tx, a_commit_cut_by_the_contexts_end_is_unknown)
{
	make_table();
	make_commit_slow();
	ctx_auto *c = ctx_with_timeout(ctx_background(), 200 * CTX_MILLISECOND);
	pg_tx *tx = pg_begin(c, t->pool, NULL);
	insert_in_tx(tx, "1");
	cr_expect_not(pg_commit(tx));
	EXPECT_KIND(pg_tx_error(tx), "unknown");
	cr_expect(eq(ptr, (void *)pg_tx_error(tx)->cause, (void *)&CTX_DEADLINE_EXCEEDED));
	cr_expect(pg_tx_error(tx)->settling);
	pg_rollback(tx);
	cr_assert(settled_become(t, 1));
	cr_expect(eq(int, t->kept, 1));
	cr_expect(eq(i64, ask_number(t, count), 0), "this one was stopped in time");
	drop_slow_table();
}

static void *terminate_commit(void *arg)
{
	char sql[160];
	(void)arg;
	cr_expect(backends_become(t, "active", "COMMIT", 1));
	snprintf(sql, sizeof(sql),
	         "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = '%s' AND "
	         "query = 'COMMIT'",
	         t->application);
	free(activity_sql(t->watcher, sql));
	return NULL;
}

Test(pg_tx, a_commit_cut_by_the_connections_end_is_unknown)
{
	make_table();
	make_commit_slow();
	pthread_t killer;
	pg_tx *tx = pg_begin(ctx_background(), t->pool, NULL);
	insert_in_tx(tx, "1");
	pthread_create(&killer, NULL, terminate_commit, NULL);
	cr_expect_not(pg_commit(tx));
	pthread_join(killer, NULL);
	EXPECT_KIND(pg_tx_error(tx), "unknown");
	cr_expect_null(pg_tx_error(tx)->cause);
	pg_rollback(tx);
	drop_slow_table();
}

Test(pg_tx, a_commit_that_was_not_sent_is_no_commit)
{
	make_table();
	ctx_auto *c = ctx_with_cancel(ctx_background());
	pg_tx *tx = pg_begin(c, t->pool, NULL);
	insert_in_tx(tx, "1");
	ctx_cancel_cause(c, &left);
	cr_expect_not(pg_commit(tx));
	EXPECT_KIND(pg_tx_error(tx), "canceled");
	cr_expect(eq(ptr, (void *)pg_tx_error(tx)->cause, (void *)&left));
	pg_rollback(tx);
	cr_assert(pool_at_rest(t));
	cr_expect(eq(i64, ask_number(t, count), 0));
	drop_table();
}

/* ---- Contexts ----------------------------------------------------------------------------------------- */

/* Its locks must go when its context does, whatever its owner is doing. */
TEST_BOTH_WAYS(pg_tx, the_contexts_end_rolls_back_at_once_and_keeps_the_connection)
{
	make_table();
	int64_t pid = backend_of_pool(t);
	ctx_auto *c = ctx_with_cancel(ctx_background());
	pg_tx *tx = pg_begin(c, t->pool, NULL);
	insert_in_tx(tx, "1");
	cr_expect(eq(int, in_transactions(), 1));
	ctx_cancel_cause(c, &left);
	cr_expect(backends_become(t, "idle in transaction%", NULL, 0));
	cr_assert(pool_at_rest(t));
	cr_expect(eq(i64, backend_of_pool(t), pid));
	for (int i = 0; i < 2; i++) {
		pg_rows *r = pg_exec(ctx_background(), tx, "SELECT 1", PG_NO_PARAMS);
		EXPECT_KIND(pg_rows_error(r), "canceled");
		cr_expect(eq(ptr, (void *)pg_rows_error(r)->cause, (void *)&left));
		cr_expect_not(pg_rows_error(r)->settling, "no query was in flight");
		pg_rows_close(r);
	}
	EXPECT_KIND(pg_tx_error(tx), "canceled");
	pg_rollback(tx);
	cr_expect(eq(i64, ask_number(t, count), 0));
	cr_expect(eq(int, t->settled, 0));
	drop_table();
}

TEST_BOTH_WAYS(pg_tx, the_contexts_end_stops_a_statement_that_has_a_context_of_its_own)
{
	ctx_auto *c = ctx_with_timeout_cause(ctx_background(), 100 * CTX_MILLISECOND, &left);
	pg_tx *tx = pg_begin(c, t->pool, NULL);
	ctx_auto *unrelated = ctx_with_cancel(ctx_background());
	pg_rows *r = pg_exec(unrelated, tx, "SELECT pg_sleep(60)", PG_NO_PARAMS);
	EXPECT_KIND(pg_rows_error(r), "deadline");
	cr_expect(eq(ptr, (void *)pg_rows_error(r)->cause, (void *)&left));
	cr_expect(pg_rows_error(r)->settling);
	pg_rows_close(r);
	cr_assert(settled_become(t, 1));
	cr_expect(eq(int, t->kept, 1));
	cr_expect_not(pg_commit(tx));
	EXPECT_KIND(pg_tx_error(tx), "deadline");
	pg_rollback(tx);
	cr_expect(eq(sz, stats_of(t).idle, 1));
}

TEST_BOTH_WAYS(pg_tx, the_end_of_a_statements_own_context_ends_the_transaction)
{
	make_table();
	pg_tx *tx = pg_begin(ctx_background(), t->pool, NULL);
	insert_in_tx(tx, "1");
	ctx_auto *c = ctx_with_timeout(ctx_background(), 50 * CTX_MILLISECOND);
	pg_rows *r = pg_exec(c, tx, "SELECT pg_sleep(60)", PG_NO_PARAMS);
	EXPECT_KIND(pg_rows_error(r), "deadline");
	pg_rows_close(r);
	EXPECT_KIND(pg_tx_error(tx), "deadline");
	cr_expect_not(pg_commit(tx));
	pg_rollback(tx);
	cr_assert(settled_become(t, 1));
	cr_expect(eq(int, t->kept, 1));
	cr_expect(eq(i64, ask_number(t, count), 0));
	cr_expect(eq(int, in_transactions(), 0));
	drop_table();
}

Test(pg_tx, a_stream_in_it_ends_with_it)
{
	ctx_auto *c = ctx_with_cancel(ctx_background());
	pg_tx *tx = pg_begin(c, t->pool, NULL);
	ctx_auto *unrelated = ctx_with_cancel(ctx_background());
	pg_rows *r = pg_query(unrelated, tx, "SELECT generate_series(1, 1000000000)", PG_NO_PARAMS);
	cr_assert(pg_rows_next(r));
	ctx_cancel_cause(c, &left);
	cr_expect(backends_become(t, "active", NULL, 0));
	while (pg_rows_next(r))
		;
	EXPECT_KIND(pg_rows_error(r), "canceled");
	cr_expect(eq(ptr, (void *)pg_rows_error(r)->cause, (void *)&left));
	pg_rows_close(r);
	EXPECT_KIND(pg_tx_error(tx), "canceled");
	pg_rollback(tx);
	cr_assert(settled_become(t, 1));
	cr_expect(eq(sz, stats_of(t).idle, 1));
}

Test(pg_tx, a_streams_own_end_ends_the_transaction_even_if_nobody_looks)
{
	pg_tx *tx = pg_begin(ctx_background(), t->pool, NULL);
	ctx_auto *c = ctx_with_cancel(ctx_background());
	pg_rows *r = pg_query(c, tx, "SELECT generate_series(1, 1000000000)", PG_NO_PARAMS);
	ctx_cancel_cause(c, &left);
	cr_assert(settled_become(t, 1));
	pg_rows_close(r);
	EXPECT_KIND(pg_tx_error(tx), "canceled");
	cr_expect(eq(ptr, (void *)pg_tx_error(tx)->cause, (void *)&left));
	pg_rollback(tx);
}

/* ---- Statements in it --------------------------------------------------------------------------------- */

TEST_BOTH_WAYS(pg_tx, rows_closed_early_are_skipped_by_the_next_statement)
{
	make_table();
	pg_tx *tx = pg_begin(ctx_background(), t->pool, NULL);
	insert_in_tx(tx, "1");
	pg_rows *r =
		pg_query(ctx_background(), tx, "SELECT i FROM generate_series(1, 100000) i", PG_NO_PARAMS);
	cr_assert(pg_rows_next(r));
	pg_rows *second = pg_exec(ctx_background(), tx, "SELECT 1", PG_NO_PARAMS);
	EXPECT_KIND(pg_rows_error(second), "usage");
	pg_rows_close(second);
	pg_rows_close(r);
	insert_in_tx(tx, "2");
	r = pg_query(ctx_background(), tx, "SELECT i FROM generate_series(1, 100000) i", PG_NO_PARAMS);
	pg_rows_close(r);
	cr_expect(pg_commit(tx));
	pg_rollback(tx);
	cr_expect(eq(i64, ask_number(t, count), 2));
	drop_table();
}

Test(pg_tx, a_statement_on_the_pool_cannot_leave_a_transaction_behind)
{
	int64_t pid = backend_of_pool(t);
	must_exec(t, "BEGIN");
	cr_assert(pool_at_rest(t));
	cr_expect(eq(int, in_transactions(), 0));
	cr_expect(eq(i64, backend_of_pool(t), pid));
}

Test(pg_tx, reports_a_connection_that_broke)
{
	pg_tx *tx = pg_begin(ctx_background(), t->pool, NULL);
	pg_rows_close(
		pg_exec(ctx_background(), tx, "SELECT pg_terminate_backend(pg_backend_pid())", PG_NO_PARAMS));
	EXPECT_KIND(pg_tx_error(tx), "connection");
	cr_expect_not(pg_commit(tx));
	EXPECT_KIND(pg_tx_error(tx), "connection");
	pg_rollback(tx);
	must_exec(t, "SELECT 1");
}

Test(pg_tx, out_of_memory_is_an_error_and_nothing_leaks)
{
	for (unsigned n = 1; n < 50; n++) {
		fault_set(FAULT_MEMORY, n);
		pg_tx *tx = pg_begin(ctx_background(), t->pool, NULL);
		pg_rows *r = pg_exec(ctx_background(), tx, "SELECT 1", PG_NO_PARAMS);
		pg_conn *session = pg_conn_acquire(ctx_background(), t->pool);
		bool failed = fault_clear(FAULT_MEMORY);
		bool told = pg_tx_error(tx) || pg_rows_error(r) || pg_conn_error(session);
		cr_expect(failed || !told);
		pg_conn_release(session);
		pg_rows_close(r);
		pg_rollback(tx);
		cr_assert(pool_at_rest(t));
		if (!failed)
			break;
	}
}

/* ---- Pinned connections ------------------------------------------------------------------------------- */

TEST_BOTH_WAYS(pg_tx, a_pinned_session_survives_a_cancelled_statement)
{
	pg_conn *session = pg_conn_acquire(ctx_background(), t->pool);
	int64_t pid = backend_of(session);
	pg_rows_close(pg_exec(ctx_background(), session, "CREATE TEMP TABLE mine AS SELECT 42 AS answer",
	                      PG_NO_PARAMS));
	for (int i = 1; i <= 3; i++) {
		ctx_auto *c = ctx_with_timeout(ctx_background(), 30 * CTX_MILLISECOND);
		pg_rows *r = pg_exec(c, session, "SELECT pg_sleep(60)", PG_NO_PARAMS);
		EXPECT_KIND(pg_rows_error(r), "deadline");
		cr_expect(pg_rows_error(r)->settling);
		pg_rows_close(r);
		/* At once, while it is settling still, or after. */
		if (i == 2)
			cr_assert(settled_become(t, i));
		r = pg_query_row(ctx_background(), session, "SELECT answer FROM mine", PG_NO_PARAMS);
		int64_t answer = 0;
		cr_expect(pg_rows_int64(r, 0, &answer));
		cr_expect(eq(i64, answer, 42));
		pg_rows_close(r);
	}
	cr_expect(eq(i64, backend_of(session), pid));
	cr_expect_null(pg_conn_error(session));
	pg_conn_release(session);
	cr_expect(eq(sz, stats_of(t).idle, 1));
}

TEST_BOTH_WAYS(pg_tx, a_pinned_stream_that_was_stopped_leaves_the_session)
{
	pg_conn *session = pg_conn_acquire(ctx_background(), t->pool);
	int64_t pid = backend_of(session);
	ctx_auto *c = ctx_with_cancel(ctx_background());
	pg_rows *r = pg_query(c, session, "SELECT generate_series(1, 1000000000)", PG_NO_PARAMS);
	ctx_cancel(c);
	cr_expect_not(pg_rows_next(r));
	EXPECT_KIND(pg_rows_error(r), "canceled");
	pg_rows_close(r);
	cr_expect(eq(i64, backend_of(session), pid));
	pg_conn_release(session);
}

/*
 * A stream's context ended while its reader was elsewhere; its connection settled and was back in the session before the
 * reader came. The reader's next call took it for still in flight, and gave it away a second time: to the pool, which lent
 * it on with the session's locks and temporary tables, while the session waited for ever for its return.
 */
TEST_BOTH_WAYS(pg_tx, a_pinned_stream_may_be_read_after_its_session_has_settled)
{
	pg_conn *session = pg_conn_acquire(ctx_background(), t->pool);
	int64_t pid = backend_of(session);
	for (int i = 1; i <= 3; i++) {
		ctx_auto *c = ctx_with_cancel(ctx_background());
		pg_rows *r = pg_query(c, session, "SELECT generate_series(1, 1000000000)", PG_NO_PARAMS);
		cr_expect(pg_rows_next(r));
		ctx_cancel(c);
		cr_assert(settled_become(t, i));
		cr_expect_not(pg_rows_next(r));
		EXPECT_KIND(pg_rows_error(r), "canceled");
		cr_expect(eq(sz, stats_of(t).idle, 0), "it is the session's");
		pg_rows_close(r);
		ctx_auto *soon = ctx_with_timeout(ctx_background(), 10 * CTX_SECOND);
		r = pg_query_row(soon, session, "SELECT pg_backend_pid()", PG_NO_PARAMS);
		int64_t served_by = 0;
		cr_expect(pg_rows_int64(r, 0, &served_by));
		cr_expect(eq(i64, served_by, pid));
		pg_rows_close(r);
	}
	pg_conn_release(session);
	cr_expect(eq(sz, stats_of(t).idle, 1));
}

TEST_BOTH_WAYS(pg_tx, a_pinned_session_may_be_given_back_while_it_settles)
{
	for (int i = 1; i <= 20; i++) {
		pg_conn *session = pg_conn_acquire(ctx_background(), t->pool);
		pg_rows_close(pg_exec(ctx_background(), session, "BEGIN", PG_NO_PARAMS));
		ctx_auto *c = ctx_with_timeout(ctx_background(), CTX_MILLISECOND);
		pg_rows_close(pg_exec(c, session, "SELECT pg_sleep(60)", PG_NO_PARAMS));
		pg_conn_release(session);
	}
	cr_assert(pool_at_rest(t));
	cr_expect(eq(int, in_transactions(), 0));
	cr_expect(eq(u64, stats_of(t).settled_closed, 0));
	cr_expect(le(u64, stats_of(t).connects, 2));
}

/* The rest that is skipped fails: the error was reported as the next statement's, which had run with success. */
Test(pg_tx, an_error_in_rows_that_nobody_reads_is_not_the_next_statements)
{
	pg_conn *session = pg_conn_acquire(ctx_background(), t->pool);
	pg_rows_close(pg_query(ctx_background(), session,
	                       "SELECT 100 / (5000 - i) FROM generate_series(1, 10000) i", PG_NO_PARAMS));
	pg_rows *r = pg_exec(ctx_background(), session, "SELECT 1", PG_NO_PARAMS);
	cr_expect_null(pg_rows_error(r));
	pg_rows_close(r);
	pg_conn_release(session);
}

Test(pg_tx, a_transaction_left_open_on_a_pinned_session_is_rolled_back)
{
	pg_conn *session = pg_conn_acquire(ctx_background(), t->pool);
	int64_t pid = backend_of(session);
	pg_rows_close(pg_exec(ctx_background(), session, "BEGIN", PG_NO_PARAMS));
	pg_conn_release(session);
	cr_assert(pool_at_rest(t));
	cr_expect(eq(int, in_transactions(), 0));
	cr_expect(eq(i64, backend_of_pool(t), pid));
}

Test(pg_tx, a_pinned_session_tells_that_it_was_lost)
{
	pg_conn *session = pg_conn_acquire(ctx_background(), t->pool);
	pg_rows *r = pg_exec(ctx_background(), session, "SELECT pg_terminate_backend(pg_backend_pid())",
	                     PG_NO_PARAMS);
	EXPECT_KIND(pg_rows_error(r), "connection");
	pg_rows_close(r);
	r = pg_exec(ctx_background(), session, "SELECT 1", PG_NO_PARAMS);
	EXPECT_KIND(pg_rows_error(r), "connection");
	pg_rows_close(r);
	EXPECT_KIND(pg_conn_error(session), "connection");
	pg_conn_release(session);
	must_exec(t, "SELECT 1");
}
