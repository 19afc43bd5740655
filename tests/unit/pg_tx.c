/*
 * Transactions: what lives under one context, and what is left when it ends.
 */
#include <criterion/criterion.h>
#include <criterion/new/assert.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

#include "alloc_fault.h"
#include "querying.h"
#include "scratch.h"
#include "support.h"

TestSuite(pg_tx, .init = open_pool, .fini = close_pool, .timeout = 60);

static const ctx_error left = {ECONNRESET, "the client has left"};

static scratch s;

static void make_table(void)
{
	scratch_make(&s, t, "id int UNIQUE DEFERRABLE INITIALLY DEFERRED");
}

static void insert_in_tx(pg_tx *tx, const char *id)
{
	pg_rows_auto *r = pg_exec(ctx_background(), tx, scratch_sql(&s, "INSERT INTO @ VALUES ($1::int)"),
	                          PG_PARAMS(id));
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
	cr_expect(eq(i64, scratch_rows(&s), 0));
	cr_expect(pg_commit(tx));
	cr_expect_null(pg_tx_error(tx));
	cr_expect(eq(i64, scratch_rows(&s), 1));
	cr_expect(eq(sz, stats_of(t).idle, 1), "the connection is back before the close");
	pg_rows *r = pg_exec(ctx_background(), tx, "SELECT 1", PG_NO_PARAMS);
	EXPECT_KIND(pg_rows_error(r), "closed");
	pg_rows_close(r);
	cr_expect_not(pg_commit(tx));
	pg_rollback(tx);
	cr_expect(eq(i64, scratch_rows(&s), 1));
	scratch_drop(&s);
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
	cr_expect(eq(i64, scratch_rows(&s), 0));
	cr_expect(eq(i64, backend_of_pool(t), pid));
	pg_rollback(NULL);
	scratch_drop(&s);
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
	cr_expect(eq(i64, scratch_rows(&s), 0));
	scratch_drop(&s);
}

/* A deferred trigger that sleeps makes COMMIT as slow as a test wants it. */
static void make_commit_slow(void)
{
	scratch_run(&s, "CREATE FUNCTION @_wait() RETURNS trigger LANGUAGE plpgsql AS"
	                " $$ BEGIN PERFORM pg_sleep(60); RETURN NULL; END $$");
	scratch_run(&s, "CREATE CONSTRAINT TRIGGER wait AFTER INSERT ON @ DEFERRABLE INITIALLY DEFERRED"
	                " FOR EACH ROW EXECUTE FUNCTION @_wait()");
}

static void drop_slow_table(void)
{
	scratch_drop(&s);
	scratch_run(&s, "DROP FUNCTION @_wait");
}

Test(pg_tx, a_commit_cut_by_the_contexts_end_is_unknown)
{
	make_table();
	make_commit_slow();
	ctx_auto *c = ctx_with_timeout(ctx_background(), 200 * CTX_MILLISECOND * support_patience());
	pg_tx *tx = pg_begin(c, t->pool, NULL);
	insert_in_tx(tx, "1");
	cr_expect_not(pg_commit(tx));
	EXPECT_KIND(pg_tx_error(tx), "unknown");
	cr_expect(eq(ptr, (void *)pg_tx_error(tx)->cause, (void *)&CTX_DEADLINE_EXCEEDED));
	cr_expect(pg_tx_error(tx)->settling);
	pg_rollback(tx);
	cr_assert(settled_become(t, 1));
	cr_expect(eq(int, t->kept, 1));
	cr_expect(eq(i64, scratch_rows(&s), 0), "this one was stopped in time");
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
	cr_expect(eq(i64, scratch_rows(&s), 0));
	scratch_drop(&s);
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
	cr_expect(eq(i64, scratch_rows(&s), 0));
	cr_expect(eq(int, t->settled, 0));
	scratch_drop(&s);
}

TEST_BOTH_WAYS(pg_tx, the_contexts_end_stops_a_statement_that_has_a_context_of_its_own)
{
	ctx_auto *c =
		ctx_with_timeout_cause(ctx_background(), 100 * CTX_MILLISECOND * support_patience(), &left);
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
	ctx_auto *c = ctx_with_timeout(ctx_background(), 50 * CTX_MILLISECOND * support_patience());
	pg_rows *r = pg_exec(c, tx, "SELECT pg_sleep(60)", PG_NO_PARAMS);
	EXPECT_KIND(pg_rows_error(r), "deadline");
	pg_rows_close(r);
	EXPECT_KIND(pg_tx_error(tx), "deadline");
	cr_expect_not(pg_commit(tx));
	pg_rollback(tx);
	cr_assert(settled_become(t, 1));
	cr_expect(eq(int, t->kept, 1));
	cr_expect(eq(i64, scratch_rows(&s), 0));
	cr_expect(eq(int, in_transactions(), 0));
	scratch_drop(&s);
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
	cr_expect(eq(i64, scratch_rows(&s), 2));
	scratch_drop(&s);
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
