/*
 * Upkeep: how many connections are kept idle, and when one is closed for its age or its idleness. Every limit is seen
 * to act by the pool's own counts.
 */
#include <criterion/criterion.h>
#include <criterion/new/assert.h>
#include <stdio.h>
#include <stdlib.h>

#include "activity.h"
#include "pg_stub.h"
#include "pools.h"
#include "private_db.h"
#include "support.h"
#include "together.h"

enum { BOUND_MS = 20000 };

TestSuite(pg_upkeep, .timeout = 300);

/* ---- Waiting for the pool's counts -------------------------------------------------------------------- */

typedef enum count {
	OPEN,
	IDLE,
	CONNECTS,
	FAILURES,
	BY_MAX_IDLE,
	BY_IDLE_TIME,
	BY_LIFETIME,
} count;

static uint64_t count_of(const test_pool *t, count what)
{
	pg_pool_stats s = stats_of(t);
	const uint64_t counts[] = {
		[OPEN] = s.open,
		[IDLE] = s.idle,
		[CONNECTS] = s.connects,
		[FAILURES] = s.connect_failures,
		[BY_MAX_IDLE] = s.closed_max_idle,
		[BY_IDLE_TIME] = s.closed_idle_time,
		[BY_LIFETIME] = s.closed_lifetime,
	};
	return counts[what];
}

typedef struct expected {
	test_pool *t;
	count what;
	uint64_t least, most;
} expected;

static bool is_as_expected(void *arg)
{
	const expected *e = arg;
	uint64_t n = count_of(e->t, e->what);
	return n >= e->least && n <= e->most;
}

static bool becomes(test_pool *t, count what, uint64_t n)
{
	return eventually(is_as_expected, &(expected){t, what, n, n}, BOUND_MS);
}

static bool reaches(test_pool *t, count what, uint64_t n)
{
	return eventually(is_as_expected, &(expected){t, what, n, UINT64_MAX}, BOUND_MS);
}

/* Has `n` connections lent at once, and gives them back. */
static void use_at_once(test_pool *t, int n)
{
	pg_conn *sessions[16];
	for (int i = 0; i < n; i++) {
		sessions[i] = pg_conn_acquire(ctx_background(), t->pool);
		cr_assert_null(pg_conn_error(sessions[i]));
	}
	for (int i = 0; i < n; i++)
		pg_conn_release(sessions[i]);
}

/*
 * "Never", said by the longest time there is: added to the time of day it had become one long past, and each connection was
 * closed as it came back; as statement_timeout it was refused by PostgreSQL, and there was no backstop.
 */
Test(pg_upkeep, the_longest_times_are_long)
{
	test_pool *t = test_pool_open(2, &(pg_pool_options){.max_lifetime = INT64_MAX,
	                                                    .max_lifetime_jitter = 1,
	                                                    .max_idle_time = INT64_MAX,
	                                                    .connect_timeout = INT64_MAX,
	                                                    .settle_timeout = INT64_MAX,
	                                                    .statement_timeout = INT64_MAX,
	                                                    .liveness_interval = INT64_MAX});
	int64_t pid = backend_of_pool(t);
	cr_expect(ne(i64, pid, -1));
	for (int i = 0; i < 3; i++)
		cr_expect(eq(i64, backend_of_pool(t), pid));
	cr_expect(eq(u64, count_of(t, CONNECTS), 1));
	pg_rows *r = pg_query_row(ctx_background(), t->pool,
	                          "SELECT setting FROM pg_settings WHERE name IN ('statement_timeout',"
	                          " 'client_connection_check_interval') GROUP BY setting",
	                          PG_NO_PARAMS);
	cr_assert_null(pg_rows_error(r));
	cr_expect(eq(str, (char *)pg_rows_text(r, 0), "2147483647"));
	pg_rows_close(r);
	test_pool_close(t);
}

/* ---- How many are idle -------------------------------------------------------------------------------- */

Test(pg_upkeep, refuses_limits_that_contradict_each_other)
{
	const pg_pool_options refused[] = {
		{.size = 2, .min_idle = 3},
		{.size = 4, .min_idle = 3, .max_idle = 2},
		{.max_lifetime = -1},
		{.max_idle_time = -1},
		{.max_lifetime = CTX_SECOND, .max_lifetime_jitter = 2 * CTX_SECOND},
	};
	for (size_t i = 0; i < sizeof(refused) / sizeof(refused[0]); i++) {
		pg_error error;
		cr_expect_null(pg_pool_open(&refused[i], &error));
		cr_expect(eq(int, error.kind, PG_ERROR_USAGE));
		cr_expect(ne(str, error.message, ""));
	}
}

Test(pg_upkeep, closes_what_comes_back_beyond_the_most_idle)
{
	test_pool *t = test_pool_open(6, &(pg_pool_options){.max_idle = 2});
	use_at_once(t, 6);
	cr_expect(becomes(t, OPEN, 2));
	cr_expect(eq(u64, count_of(t, BY_MAX_IDLE), 4));
	cr_expect(backends_become(t, NULL, NULL, 2));
	use_at_once(t, 2);
	cr_expect(eq(u64, count_of(t, BY_MAX_IDLE), 4));
	cr_expect(eq(u64, count_of(t, CONNECTS), 6));
	cr_expect(eq(u64, stats_of(t).lost, 0));
	test_pool_close(t);
}

Test(pg_upkeep, keeps_the_least_idle_ready_before_anybody_asks)
{
	test_pool *t = test_pool_open(4, &(pg_pool_options){.min_idle = 2});
	cr_assert(becomes(t, IDLE, 2));
	cr_expect(eq(u64, stats_of(t).acquires, 0));
	pg_conn *a = pg_conn_acquire(ctx_background(), t->pool);
	cr_expect(eq(u64, stats_of(t).waits, 0), "it was ready");
	cr_assert(becomes(t, IDLE, 2));
	pg_conn *b = pg_conn_acquire(ctx_background(), t->pool);
	cr_assert(becomes(t, IDLE, 2));
	/* The size is the end of it. */
	pg_conn *c = pg_conn_acquire(ctx_background(), t->pool),
		*d = pg_conn_acquire(ctx_background(), t->pool);
	cr_expect(eq(sz, stats_of(t).open, 4));
	cr_expect(eq(u64, count_of(t, CONNECTS), 4));
	pg_conn_release(a);
	pg_conn_release(b);
	pg_conn_release(c);
	pg_conn_release(d);
	test_pool_close(t);
}

Test(pg_upkeep, replaces_idle_connections_that_the_server_ended)
{
	test_pool *t = test_pool_open(4, &(pg_pool_options){.min_idle = 3});
	char sql[128];
	cr_assert(becomes(t, IDLE, 3));
	snprintf(
		sql, sizeof(sql),
		"SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE application_name = '%s'",
		t->application);
	cr_expect(eq(i64, ask_number(t, sql), 3));
	cr_expect(becomes(t, CONNECTS, 6));
	cr_expect(becomes(t, IDLE, 3));
	cr_expect(eq(u64, stats_of(t).lost, 3));
	test_pool_close(t);
}

/* Nobody asks for a connection all the while: it is the pool that finds the server back. */
Test(pg_upkeep, finds_by_itself_that_the_server_is_back)
{
	private_db *db = private_db_start(&(private_db_options){.empty = true});
	cr_assert_not_null(db);
	test_pool *t = test_pool_open(2, &(pg_pool_options){.conninfo = private_db_url(db), .min_idle = 2});
	cr_assert(becomes(t, IDLE, 2));
	cr_assert(private_db_halt(db, true));
	cr_assert(reaches(t, FAILURES, 2));
	cr_assert(private_db_resume(db, NULL));
	cr_expect(becomes(t, IDLE, 2));
	cr_expect(le(u64, count_of(t, FAILURES), 40), "attempts keep a distance");
	test_pool_close(t);
	private_db_stop(db);
}

/* ---- Time --------------------------------------------------------------------------------------------- */

Test(pg_upkeep, closes_what_is_idle_for_too_long_down_to_the_least)
{
	test_pool *t =
		test_pool_open(6, &(pg_pool_options){.min_idle = 1, .max_idle_time = 100 * CTX_MILLISECOND});
	use_at_once(t, 6);
	cr_expect(becomes(t, OPEN, 1));
	cr_expect(eq(u64, count_of(t, BY_IDLE_TIME) + 1, count_of(t, CONNECTS)));
	cr_expect(eq(u64, count_of(t, BY_LIFETIME), 0));
	cr_expect(backends_become(t, NULL, NULL, 1));
	test_pool_close(t);
}

static void use_and_stay(void *arg)
{
	use_at_once(arg, 3);
}

/* Idle connections that are registered with a loop are closed by way of that loop's thread. */
Test(pg_upkeep, closes_what_is_idle_on_a_loop)
{
	test_pool *t = test_pool_open(3, &(pg_pool_options){.max_idle_time = 50 * CTX_MILLISECOND});
	loop_thread *l = loop_thread_start(NULL);
	for (uint64_t turn = 1; turn <= 3; turn++) {
		loop_spawn(loop_thread_loop(l), use_and_stay, t);
		cr_expect(becomes(t, BY_IDLE_TIME, turn * 3));
		cr_expect(becomes(t, OPEN, 0));
	}
	loop_thread_stop(l);
	test_pool_close(t);
}

/* The lent one is past its lifetime, and is left alone until it comes back. */
Test(pg_upkeep, closes_what_is_too_old_but_never_what_is_lent)
{
	test_pool *t = test_pool_open(2, &(pg_pool_options){.max_lifetime = 100 * CTX_MILLISECOND});
	pg_conn *lent = pg_conn_acquire(ctx_background(), t->pool);
	int64_t pid = backend_of(lent);
	pg_conn_release(pg_conn_acquire(ctx_background(), t->pool));
	cr_expect(becomes(t, BY_LIFETIME, 1));
	cr_expect(becomes(t, OPEN, 1));
	cr_expect(eq(i64, backend_of(lent), pid));
	pg_conn_release(lent);
	cr_expect(becomes(t, BY_LIFETIME, 2));
	cr_expect(becomes(t, OPEN, 0));
	cr_expect(ne(i64, backend_of_pool(t), pid));
	test_pool_close(t);
}

/* The stand-in counts the sessions it has, so that it would see any overlap of the old and the new. */
Test(pg_upkeep, never_exceeds_its_size_while_it_renews_itself)
{
	pg_stub *stub = pg_stub_start(STUB_HEALTHY);
	test_pool *t = test_pool_open(4, &(pg_pool_options){.conninfo = pg_stub_conninfo(stub),
	                                                    .min_idle = 4,
	                                                    .max_lifetime = 30 * CTX_MILLISECOND,
	                                                    .max_lifetime_jitter = 15 * CTX_MILLISECOND});
	size_t most = 0, least = 4;
	cr_assert(becomes(t, IDLE, 4));
	int64_t end = now_ms() + (int64_t)BOUND_MS * support_patience();
	while (count_of(t, BY_LIFETIME) < 40 && now_ms() < end) {
		pg_pool_stats s = stats_of(t);
		size_t ready = s.open - s.connecting;
		most = s.open > most ? s.open : most;
		least = ready < least ? ready : least;
	}
	cr_expect(ge(u64, count_of(t, BY_LIFETIME), 40));
	cr_expect(le(sz, most, 4));
	cr_expect(ge(sz, least, 3), "one at a time: each after the successor of the one before");
	test_pool_close(t);
	pg_stub_stop(stub);
}

static void exec_some(void *arg, int index)
{
	test_pool *t = arg;
	(void)index;
	for (int i = 0; i < 100; i++)
		must_exec(t, "SELECT pg_sleep(0.001)");
}

/* There is always a waiter to lend it on to; its age ends it all the same, and nobody's statement with it. */
Test(pg_upkeep, renews_itself_under_load)
{
	test_pool *t = test_pool_open(2, &(pg_pool_options){.max_lifetime = 50 * CTX_MILLISECOND});
	together(6, exec_some, t);
	cr_expect(ge(u64, count_of(t, BY_LIFETIME), 3));
	cr_expect(eq(u64, stats_of(t).lost, 0));
	cr_expect(le(sz, stats_of(t).open, 2));
	test_pool_close(t);
}

static bool be_slow_and_refuse(ctx *c, pg_conn *session, pg_error *error, void *data)
{
	int64_t until = ctx_now() + 150 * CTX_MILLISECOND;
	(void)c, (void)session, (void)error, (void)data;
	while (ctx_now() < until)
		;
	return false;
}

/*
 * libuv counts a timer from the beginning of its turn, so that one set late in a long turn goes off too soon. The pool
 * found itself backing off still, and had nothing left that would have it try again.
 */
Test(pg_upkeep, tries_again_however_long_the_last_attempt_kept_the_loop)
{
	test_pool *t =
		test_pool_open(1, &(pg_pool_options){.min_idle = 1, .after_connect = be_slow_and_refuse});
	cr_expect(reaches(t, FAILURES, 3));
	test_pool_close(t);
}

/* When no new one can be had, an old one is better than none. (A role that is no superuser: those have no limit.) */
Test(pg_upkeep, keeps_old_connections_while_the_server_takes_no_new_ones)
{
	char conninfo[512];
	private_db *db = private_db_start(&(private_db_options){.empty = true});
	cr_assert_not_null(db);
	activity *superuser = activity_open(private_db_url(db));
	cr_assert_not_null(superuser);
	free(activity_sql(superuser, "CREATE ROLE visitor LOGIN"));
	snprintf(conninfo, sizeof(conninfo), "%s&user=visitor", private_db_url(db));
	test_pool *t = test_pool_open(2, &(pg_pool_options){.conninfo = conninfo,
	                                                    .min_idle = 2,
	                                                    .max_lifetime = 300 * CTX_MILLISECOND});
	cr_assert(becomes(t, IDLE, 2));
	free(activity_sql(superuser, "ALTER ROLE visitor CONNECTION LIMIT 0"));
	cr_assert(reaches(t, FAILURES, 2));
	uint64_t closed = count_of(t, BY_LIFETIME);
	cr_expect(reaches(t, FAILURES, count_of(t, FAILURES) + 2));
	cr_expect(eq(u64, count_of(t, BY_LIFETIME), closed));
	cr_expect(ge(sz, stats_of(t).idle, 1));
	test_pool_close(t);
	activity_close(superuser);
	private_db_stop(db);
}

Test(pg_upkeep, settled_connections_are_under_the_limits_too)
{
	test_pool *t = test_pool_open(2, &(pg_pool_options){.max_idle = 1});
	pg_conn *other = pg_conn_acquire(ctx_background(), t->pool);
	/* On a busy machine the time may be up before the query is on its way, and nothing has to settle. */
	bool settling = false;
	for (int64_t timeout = 20 * CTX_MILLISECOND; !settling; timeout *= 4) {
		ctx_auto *c = ctx_with_timeout(ctx_background(), timeout);
		pg_rows_auto *rows = pg_exec(c, t->pool, "SELECT pg_sleep(60)", PG_NO_PARAMS);
		settling = pg_rows_error(rows)->settling;
	}
	pg_conn_release(other);
	cr_assert(pool_at_rest(t));
	cr_expect(becomes(t, OPEN, 1));
	cr_expect(eq(u64, count_of(t, BY_MAX_IDLE), 1));
	cr_expect(eq(u64, stats_of(t).settled_kept, 1), "it was clean");
	test_pool_close(t);
}
