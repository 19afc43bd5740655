/*
 * The pool: what it is opened with, how many connections it makes, which of them it lends. The queue, homes, and
 * connections that are lost have programs of their own.
 */
#include <criterion/criterion.h>
#include <criterion/new/assert.h>
#include <errno.h>

#include "alloc_fault.h"
#include "pools.h"
#include "support.h"
#include "together.h"

TestSuite(pg_pool, .timeout = 60);

/* ---- Opening ------------------------------------------------------------------------------------------ */

Test(pg_pool, opens_without_connecting)
{
	pg_error error;
	pg_pool *pool = pg_pool_open(&(pg_pool_options){.conninfo = "host=/nonexistent"}, &error);
	pg_pool_stats stats;
	cr_assert_not_null(pool);
	pg_pool_stats_get(pool, &stats);
	cr_expect(eq(sz, stats.size, 16));
	cr_expect(eq(sz, stats.open, 0));
	cr_expect(eq(u64, stats.connects + stats.connect_failures, 0));
	pg_pool_close(pool);
	pg_pool_close(NULL);
}

Test(pg_pool, refuses_a_conninfo_that_libpq_cannot_read)
{
	pg_error error;
	cr_expect_null(pg_pool_open(&(pg_pool_options){.conninfo = "nonsense"}, &error));
	cr_expect(eq(int, error.kind, PG_ERROR_USAGE));
	cr_expect_null(pg_pool_open(&(pg_pool_options){.conninfo = "postgresql://[::1"}, &error));
	cr_expect(eq(int, error.kind, PG_ERROR_USAGE));
	cr_expect_null(pg_pool_open(&(pg_pool_options){.conninfo = "no_such_option=1"}, NULL));
}

Test(pg_pool, opening_fails_cleanly_without_memory_or_threads)
{
	pg_pool_options options = {.conninfo = support_database_url(), .application_name = "x"};
	pg_error error;
	unsigned n = 1;
	for (;; n++) {
		fault_set(FAULT_MEMORY, n);
		pg_pool *pool = pg_pool_open(&options, &error);
		bool failed = fault_clear(FAULT_MEMORY);
		cr_assert(n < 100);
		if (!failed) {
			pg_pool_close(pool);
			break;
		}
		cr_assert_null(pool);
		cr_expect(eq(int, error.kind, PG_ERROR_MEMORY));
	}
	cr_expect(n > 3);
	fault_set(FAULT_THREAD, 1);
	cr_expect_null(pg_pool_open(&options, &error));
	cr_expect(fault_clear(FAULT_THREAD));
	cr_expect(eq(int, error.kind, PG_ERROR_MEMORY));
}

TEST_BOTH_WAYS(pg_pool, ping_makes_a_round_trip)
{
	test_pool *t = test_pool_open(2, NULL);
	pg_error error;
	cr_expect(pg_pool_ping(ctx_background(), t->pool, &error), "%s", error.message);
	cr_expect(pg_pool_ping(ctx_background(), t->pool, NULL));
	cr_expect(eq(sz, stats_of(t).idle, 1));
	cr_expect(eq(u64, stats_of(t).connects, 1));
	test_pool_close(t);
}

Test(pg_pool, sets_the_backstops_and_its_name)
{
	test_pool *t = test_pool_open(1, &(pg_pool_options){.statement_timeout = 7 * CTX_SECOND});
	pg_conn *session = pg_conn_acquire(ctx_background(), t->pool);
	pg_rows *r =
		pg_query_row(ctx_background(), session,
	                     "SELECT current_setting('client_connection_check_interval'),"
	                     " current_setting('statement_timeout'), current_setting('application_name'),"
	                     " current_setting('client_encoding')",
	                     PG_NO_PARAMS);
	cr_assert_null(pg_rows_error(r));
	cr_expect(eq(str, (char *)pg_rows_text(r, 0), "1s"));
	cr_expect(eq(str, (char *)pg_rows_text(r, 1), "7s"));
	cr_expect(eq(str, (char *)pg_rows_text(r, 2), t->application));
	cr_expect(eq(str, (char *)pg_rows_text(r, 3), "UTF8"));
	pg_rows_close(r);
	pg_conn_release(session);
	test_pool_close(t);
}

/* ---- Lending ------------------------------------------------------------------------------------------ */

Test(pg_pool, lends_the_connection_used_last)
{
	test_pool *t = test_pool_open(3, NULL);
	pg_conn *a = pg_conn_acquire(ctx_background(), t->pool),
		*b = pg_conn_acquire(ctx_background(), t->pool);
	int64_t pid_a = backend_of(a), pid_b = backend_of(b);
	cr_assert(ne(i64, pid_a, pid_b));
	pg_conn_release(a);
	pg_conn_release(b);
	for (int i = 0; i < 5; i++)
		cr_expect(eq(i64, backend_of_pool(t), pid_b));
	cr_expect(eq(u64, stats_of(t).connects, 2));
	test_pool_close(t);
}

typedef struct crowd {
	test_pool *t;
	_Atomic(int) failed;
} crowd;

static void sleep_a_little(void *arg, int index)
{
	crowd *m = arg;
	(void)index;
	for (int i = 0; i < 20; i++) {
		pg_rows_auto *r =
			pg_exec(ctx_background(), m->t->pool, "SELECT pg_sleep(0.002)", PG_NO_PARAMS);
		m->failed += pg_rows_error(r) != NULL;
	}
}

Test(pg_pool, never_has_more_connections_than_its_size)
{
	crowd m = {.t = test_pool_open(3, NULL)};
	together(12, sleep_a_little, &m);
	cr_expect(eq(int, m.failed, 0));
	cr_expect(eq(sz, stats_of(m.t).idle, 3));
	cr_expect(eq(u64, stats_of(m.t).connects, 3));
	cr_expect(ge(u64, stats_of(m.t).waits, 9));
	test_pool_close(m.t);
}

static const ctx_error bored = {ECANCELED, "the caller was bored"};

TEST_BOTH_WAYS(pg_pool, a_context_that_is_done_comes_before_anything_else)
{
	test_pool *t = test_pool_open(1, NULL);
	ctx_auto *c = ctx_with_cancel(ctx_background());
	ctx_cancel_cause(c, &bored);
	pg_rows *r = pg_query(c, t->pool, "SELECT 1", PG_NO_PARAMS);
	cr_expect(eq(str, (char *)kind_of(pg_rows_error(r)), "canceled"));
	cr_expect(eq(ptr, (void *)pg_rows_error(r)->cause, (void *)&bored));
	cr_expect(eq(str, (char *)pg_rows_error(r)->message, (char *)bored.message));
	cr_expect_not(pg_rows_error(r)->settling);
	pg_rows_close(r);
	pg_error error;
	cr_expect_not(pg_pool_ping(c, t->pool, &error));
	pg_tx *tx = pg_begin(c, t->pool, NULL);
	cr_expect(eq(str, (char *)kind_of(pg_tx_error(tx)), "canceled"));
	r = pg_exec(ctx_background(), tx, "SELECT 1", PG_NO_PARAMS);
	cr_expect(eq(str, (char *)kind_of(pg_rows_error(r)), "canceled"));
	pg_rows_close(r);
	cr_expect_not(pg_commit(tx));
	pg_rollback(tx);
	cr_expect(eq(u64, stats_of(t).acquires, 0));
	test_pool_close(t);
}
