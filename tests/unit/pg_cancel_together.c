/*
 * Cancelling several queries at once: by one statement on another connection of the pool's, and by a link only
 * where there is none.
 */
#include <criterion/criterion.h>
#include <criterion/new/assert.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>

#include "pools.h"
#include "support.h"
#include "together.h"

static test_pool *t;

static void open_pool(void)
{
	t = test_pool_open(4, NULL);
}

static void close_pool(void)
{
	test_pool_close(t);
}

TestSuite(pg_cancel_together, .init = open_pool, .fini = close_pool, .timeout = 120);

static void cancel_several(void *arg, int index)
{
	test_query **q = arg;
	ctx_cancel(q[index]->c);
}

Test(pg_cancel_together, a_storm_frees_every_backend_and_keeps_every_connection)
{
	test_pool_close(t);
	t = test_pool_open(32, NULL);
	test_query *q[32];
	for (int i = 0; i < 32; i++)
		q[i] = test_query_start(t, "SELECT pg_sleep(60)");
	cr_assert(backends_become(t, "active", "%pg_sleep%", 32));
	together(32, cancel_several, q);
	cr_assert(backends_become(t, "active", NULL, 0));
	for (int i = 0; i < 32; i++) {
		test_query_join(q[i]);
		cr_expect(eq(str, (char *)kind_of(&q[i]->error), "canceled"));
		free(q[i]);
	}
	cr_assert(settled_become(t, 32));
	cr_expect(eq(int, t->kept, 32));
	cr_expect(eq(sz, stats_of(t).idle, 32));
	cr_expect(eq(u64, stats_of(t).connects, 32));
}

/* A query sleeps, another connection is idle. */
static test_query *query_beside_idle(void)
{
	pg_conn *a = pg_conn_acquire(ctx_background(), t->pool),
		*b = pg_conn_acquire(ctx_background(), t->pool);
	pg_conn_release(a);
	pg_conn_release(b);
	test_query *q = test_query_start(t, "SELECT pg_sleep(60)");
	cr_assert(backends_become(t, "active", "%pg_sleep%", 1));
	return q;
}

/*
 * An idle connection sends the request, rather than a link for which PostgreSQL would have to fork. Where the
 * machine is busy the backend may take longer to stop than the pause until the next request, so there may be
 * more than one; but none of them goes on a link.
 */
Test(pg_cancel_together, an_idle_connection_sends_the_cancels_of_the_others)
{
	test_query *q = query_beside_idle();
	ctx_cancel(q->c);
	test_query_join(q);
	free(q);
	cr_assert(settled_become(t, 1));
	cr_expect(eq(int, t->kept, 1));
	cr_expect(ge(u64, stats_of(t).cancels_sent, 1));
	cr_expect(eq(u64, stats_of(t).cancel_batches, stats_of(t).cancels_sent));
	cr_expect(backends_become(t, NULL, "%pg_cancel_backend%", 1));
	cr_expect(eq(sz, stats_of(t).idle, 2));
}

static bool is_asked_again(void *arg)
{
	(void)arg;
	return stats_of(t).cancel_batches >= 3;
}

/* The backend does not run for a while, as on a machine that is busy: the request is repeated, the connection kept. */
Test(pg_cancel_together, a_backend_that_is_slow_to_stop_is_asked_again_and_kept)
{
	test_query *q = query_beside_idle();
	char sql[128], *pid;
	snprintf(sql, sizeof(sql),
	         "SELECT pid FROM pg_stat_activity WHERE application_name = '%s' AND state = 'active'",
	         t->application);
	pid = activity_sql(t->watcher, sql);
	cr_assert(eq(int, kill((pid_t)strtol(pid, NULL, 10), SIGSTOP), 0));
	ctx_cancel(q->c);
	test_query_join(q);
	free(q);
	cr_expect(eventually(is_asked_again, NULL, 20000));
	cr_assert(eq(int, kill((pid_t)strtol(pid, NULL, 10), SIGCONT), 0));
	free(pid);
	cr_assert(settled_become(t, 1));
	cr_expect(eq(int, t->kept, 1));
	cr_expect(ge(u64, stats_of(t).cancels_sent, 3));
	cr_expect(eq(u64, stats_of(t).cancel_batches, stats_of(t).cancels_sent));
	must_exec(t, "SELECT 1");
}

/*
 * None is idle: the first goes on a link, and when its connection is clean it helps those who come after. So two
 * requests would do for all twenty; more links only where that one is late.
 */
Test(pg_cancel_together, the_first_connection_that_has_settled_cancels_for_the_rest)
{
	test_pool_close(t);
	t = test_pool_open(20, NULL);
	test_query *q[20];
	for (int i = 0; i < 20; i++)
		q[i] = test_query_start(t, "SELECT pg_sleep(60)");
	cr_assert(backends_become(t, "active", "%pg_sleep%", 20));
	together(20, cancel_several, q);
	for (int i = 0; i < 20; i++) {
		test_query_join(q[i]);
		free(q[i]);
	}
	cr_assert(settled_become(t, 20));
	cr_expect(eq(int, t->kept, 20));
	cr_expect(ge(u64, stats_of(t).cancel_batches, 1));
}

/*
 * A superuser's query may not be cancelled by a session that has taken another role. That session is asked once and
 * not again; the others help on, and where there are none links must do.
 */
static void cancel_beside_restricted(int others)
{
	pg_conn *asleep = pg_conn_acquire(ctx_background(), t->pool),
		*restricted = pg_conn_acquire(ctx_background(), t->pool), *other[2];
	for (int i = 0; i < others; i++)
		other[i] = pg_conn_acquire(ctx_background(), t->pool);
	for (int i = 0; i < others; i++)
		pg_conn_release(other[i]);
	pg_rows_close(pg_exec(ctx_background(), restricted, "SET ROLE pg_monitor", PG_NO_PARAMS));
	ctx_auto *c = ctx_with_timeout(ctx_background(), 50 * CTX_MILLISECOND);
	pg_conn_release(restricted); /* used last, it is the first to be asked */
	pg_rows *r = pg_exec(c, asleep, "SELECT pg_sleep(60)", PG_NO_PARAMS);
	cr_expect(eq(str, (char *)kind_of(pg_rows_error(r)), "deadline"));
	pg_rows_close(r);
	cr_assert(settled_become(t, 1));
	cr_expect(eq(int, t->kept, 1));
	cr_expect(t->stop_ns < CTX_SECOND);
	pg_conn_release(asleep);
	cr_expect(eq(sz, stats_of(t).idle, (size_t)(2 + others)));
}

Test(pg_cancel_together, a_connection_that_may_not_cancel_is_no_obstacle)
{
	cancel_beside_restricted(0);
	cr_expect(eq(int, backends(t, NULL, "%pg_cancel_backend%"), 1));
}

Test(pg_cancel_together, a_connection_that_may_not_cancel_leaves_it_to_others)
{
	cancel_beside_restricted(2);
	cr_expect(ge(u64, stats_of(t).cancel_batches, 2));
	cr_expect(eq(int, backends(t, NULL, "%pg_cancel_backend%"), 2));
}

/*
 * A pinned session in a transaction that its cancel has failed can run nothing, and so not help. It was asked all the same,
 * and its refusal taken for one for good: rolled back and idle, it was not asked any more.
 */
Test(pg_cancel_together, a_session_in_a_failed_transaction_helps_later)
{
	test_pool_close(t);
	t = test_pool_open(2, NULL);
	pg_conn *session = pg_conn_acquire(ctx_background(), t->pool);
	int64_t pid = backend_of(session);
	pg_rows_close(pg_exec(ctx_background(), session, "BEGIN", PG_NO_PARAMS));
	test_query *q = test_query_start(t, "SELECT pg_sleep(60)");
	cr_assert(backends_become(t, "active", "%pg_sleep%", 1));
	ctx_auto *c = ctx_with_cancel(ctx_background());
	pg_rows *r = pg_query(c, session, "SELECT generate_series(1, 1000000000)", PG_NO_PARAMS);
	ctx_cancel(c);    /* is first in the queue for cancels, */
	ctx_cancel(q->c); /* and this one hopes for its help */
	test_query_join(q);
	free(q);
	pg_rows_close(r);
	cr_assert(settled_become(t, 2));
	cr_expect(eq(int, t->kept, 2));
	pg_conn_release(session);
	cr_assert(pool_at_rest(t));

	session = pg_conn_acquire(ctx_background(), t->pool);
	cr_assert(eq(i64, backend_of(session), pid), "the one used last is lent first");
	q = test_query_start(t, "SELECT pg_sleep(60)");
	cr_assert(backends_become(t, "active", "%pg_sleep%", 1));
	pg_conn_release(session);
	uint64_t batches = stats_of(t).cancel_batches;
	ctx_cancel(q->c);
	test_query_join(q);
	free(q);
	cr_assert(settled_become(t, 3));
	cr_expect(ge(u64, stats_of(t).cancel_batches, batches + 1), "the idle one sent it");
}
