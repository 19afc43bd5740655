/*
 * Pinned connections: a session stays its owner's, whatever becomes of the statements in it.
 */
#include <criterion/criterion.h>
#include <criterion/new/assert.h>

#include "querying.h"

TestSuite(pg_session, .init = open_pool, .fini = close_pool, .timeout = 60);

TEST_BOTH_WAYS(pg_session, a_session_survives_a_cancelled_statement)
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

TEST_BOTH_WAYS(pg_session, a_stream_that_was_stopped_leaves_the_session)
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
TEST_BOTH_WAYS(pg_session, a_stream_may_be_read_after_its_session_has_settled)
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

TEST_BOTH_WAYS(pg_session, a_session_may_be_given_back_while_it_settles)
{
	for (int i = 1; i <= 20; i++) {
		pg_conn *session = pg_conn_acquire(ctx_background(), t->pool);
		pg_rows_close(pg_exec(ctx_background(), session, "BEGIN", PG_NO_PARAMS));
		ctx_auto *c = ctx_with_timeout(ctx_background(), CTX_MILLISECOND);
		pg_rows_close(pg_exec(c, session, "SELECT pg_sleep(60)", PG_NO_PARAMS));
		pg_conn_release(session);
	}
	cr_assert(pool_at_rest(t));
	cr_expect(eq(int, backends(t, "idle in transaction%", NULL), 0));
	cr_expect(eq(u64, stats_of(t).settled_closed, 0));
	cr_expect(le(u64, stats_of(t).connects, 2));
}

/* The rest that is skipped fails: the error was reported as the next statement's, which had run with success. */
Test(pg_session, an_error_in_rows_that_nobody_reads_is_not_the_next_statements)
{
	pg_conn *session = pg_conn_acquire(ctx_background(), t->pool);
	pg_rows_close(pg_query(ctx_background(), session,
	                       "SELECT 100 / (5000 - i) FROM generate_series(1, 10000) i", PG_NO_PARAMS));
	pg_rows *r = pg_exec(ctx_background(), session, "SELECT 1", PG_NO_PARAMS);
	cr_expect_null(pg_rows_error(r));
	pg_rows_close(r);
	pg_conn_release(session);
}

Test(pg_session, a_transaction_left_open_on_a_session_is_rolled_back)
{
	pg_conn *session = pg_conn_acquire(ctx_background(), t->pool);
	int64_t pid = backend_of(session);
	pg_rows_close(pg_exec(ctx_background(), session, "BEGIN", PG_NO_PARAMS));
	pg_conn_release(session);
	cr_assert(pool_at_rest(t));
	cr_expect(eq(int, backends(t, "idle in transaction%", NULL), 0));
	cr_expect(eq(i64, backend_of_pool(t), pid));
}

Test(pg_session, a_session_tells_that_it_was_lost)
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
