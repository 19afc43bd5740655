/*
 * Servers that misbehave: each fault ends within its bound, and no connection that is not provably clean is
 * lent again. Against a stand-in that does as it is told; and PostgreSQL itself, stopped and started under load.
 */
#include <criterion/criterion.h>
#include <criterion/new/assert.h>
#include <libpq-fe.h>

#include "pg_stub.h"
#include "pools.h"
#include "private_db.h"
#include "support.h"

TestSuite(pg_server, .timeout = 60);

enum { SETTLE_MS = 400 };

typedef struct stage {
	pg_stub *stub;
	test_pool *t;
	double error_ms; /* from the deadline to the caller's error */
} stage;

static stage begin(pg_stub_fault fault, size_t size)
{
	stage s = {.stub = pg_stub_start(fault)};
	s.t = test_pool_open(size, &(pg_pool_options){.conninfo = pg_stub_conninfo(s.stub),
	                                              .settle_timeout = SETTLE_MS * CTX_MILLISECOND});
	must_exec(s.t, "anything");
	return s;
}

/* Runs into a deadline. */
static void hang(stage *s)
{
	ctx_auto *c = ctx_with_timeout(ctx_background(), 50 * CTX_MILLISECOND);
	int64_t deadline;
	ctx_deadline(c, &deadline);
	pg_rows *r = pg_exec(c, s->t->pool, "hang", PG_NO_PARAMS);
	s->error_ms = (double)(ctx_now() - deadline) / 1e6;
	cr_expect(eq(str, (char *)kind_of(pg_rows_error(r)), "deadline"));
	cr_expect(pg_rows_error(r)->settling);
	pg_rows_close(r);
	cr_expect(s->error_ms < 100 * support_patience(), "the caller waited %.1f ms", s->error_ms);
}

static void expect_settled(stage *s, bool kept, double most_ms)
{
	cr_assert(settled_become(s->t, 1));
	cr_expect(eq(int, s->t->settled, 1));
	cr_expect(eq(int, s->t->kept, kept));
	double ms = (double)s->t->settle_ns / 1e6;
	cr_expect(ms < most_ms + 100 * support_patience(), "it settled after %.1f ms", ms);
}

static bool sees_what_is_open(void *arg)
{
	stage *s = arg;
	return pg_stub_sessions(s->stub) == (int)stats_of(s->t).open;
}

/* The pool serves on, with a connection that is fit for it; what it has closed is closed. */
static void end(stage *s)
{
	pg_stub_set(s->stub, STUB_HEALTHY);
	must_exec(s->t, "anything");
	cr_expect(eventually(sees_what_is_open, s, 10000));
	test_pool_close(s->t);
	pg_stub_stop(s->stub);
}

/* ---- The cancel, step by step --------------------------------------------------------------------------- */

Test(pg_server, healthy_the_connection_is_kept)
{
	stage s = begin(STUB_HEALTHY, 1);
	hang(&s);
	expect_settled(&s, true, 0);
	cr_expect(eq(int, pg_stub_cancels(s.stub), 1));
	cr_expect(eq(u64, stats_of(s.t).connects, 1));
	end(&s);
}

Test(pg_server, without_ready_for_query_the_connection_is_closed_in_time)
{
	stage s = begin(STUB_NO_READY, 1);
	hang(&s);
	expect_settled(&s, false, SETTLE_MS);
	cr_expect(eq(i64, s.t->stop_ns, -1));
	end(&s);
}

Test(pg_server, a_late_answer_is_waited_for)
{
	stage s = begin(STUB_ERROR_LATE, 1);
	hang(&s);
	expect_settled(&s, true, 250);
	cr_expect(s.t->stop_ns >= 200 * CTX_MILLISECOND);
	end(&s);
}

Test(pg_server, a_cancel_link_that_stays_open_closes_the_connection_in_time)
{
	stage s = begin(STUB_LINK_STAYS_OPEN, 1);
	hang(&s);
	expect_settled(&s, false, SETTLE_MS);
	end(&s);
}

Test(pg_server, several_cancel_links_that_stay_open_close_theirs_in_time)
{
	stage s = begin(STUB_LINK_STAYS_OPEN, 8);
	for (int i = 0; i < 8; i++)
		hang(&s);
	cr_assert(settled_become(s.t, 8));
	cr_expect(eq(int, s.t->kept, 0));
	end(&s);
}

/* libpq before 17 does not tell a link that was reset from one that was closed. */
Test(pg_server, a_cancel_link_that_is_reset_ends_in_time)
{
	stage s = begin(STUB_LINK_RESET, 1);
	hang(&s);
#ifdef LIBPQ_HAS_ASYNC_CANCEL
	expect_settled(&s, false, 0);
#else
	expect_settled(&s, true, 0);
#endif
	end(&s);
}

Test(pg_server, without_an_answer_to_the_fence_the_connection_is_closed_in_time)
{
	stage s = begin(STUB_NO_FENCE, 1);
	hang(&s);
	expect_settled(&s, false, SETTLE_MS);
	cr_expect(s.t->stop_ns > 0);
	end(&s);
}

Test(pg_server, a_fence_that_is_hit_is_put_up_again)
{
	stage s = begin(STUB_FENCE_CANCELED, 1);
	hang(&s);
	expect_settled(&s, true, 0);
	cr_expect(eq(u64, stats_of(s.t).connects, 1));
	end(&s);
}

Test(pg_server, a_server_that_dies_mid_message_is_found_dead_at_once)
{
	stage s = begin(STUB_DIES, 1);
	hang(&s);
	expect_settled(&s, false, 0);
	cr_expect(eq(u64, stats_of(s.t).lost, 1));
	end(&s);
}

Test(pg_server, a_deaf_server_loses_its_connection_in_time)
{
	stage s = begin(STUB_DEAF, 1);
	hang(&s);
	expect_settled(&s, false, SETTLE_MS);
	cr_expect(ge(int, pg_stub_cancels(s.stub), 5), "the cancel is repeated");
	end(&s);
}

Test(pg_server, a_cancel_is_repeated_until_it_is_heard)
{
	stage s = begin(STUB_DEAF_AT_FIRST, 1);
	hang(&s);
	expect_settled(&s, true, 200);
	cr_expect(eq(int, pg_stub_cancels(s.stub), 4));
	cr_expect(eq(uint, s.t->cancels_sent, 4));
	end(&s);
}

/* It ends between the context's end and the cancel, which is held up by the links of others. */
Test(pg_server, a_cancel_whose_query_has_ended_is_not_sent)
{
	stage s = begin(STUB_HEALTHY, 1);
	must_exec(s.t, "anything");
	pg_stub_set(s.stub, STUB_ENDS_ITSELF);
	ctx_auto *c = ctx_with_cancel(ctx_background());
	pg_rows *r = pg_exec(c, s.t->pool, "hang", PG_NO_PARAMS);
	cr_expect_null(pg_rows_error(r));
	pg_rows_close(r);
	ctx_cancel(c);
	cr_expect(eq(int, pg_stub_cancels(s.stub), 0));
	end(&s);
}

Test(pg_server, a_helper_that_hangs_is_given_up)
{
	stage s = begin(STUB_HEALTHY, 2);
	pg_conn *a = pg_conn_acquire(ctx_background(), s.t->pool),
		*b = pg_conn_acquire(ctx_background(), s.t->pool);
	pg_conn_release(a);
	pg_conn_release(b);
	pg_stub_set(s.stub, STUB_DEAF);
	hang(&s);
	expect_settled(&s, false, SETTLE_MS);
	end(&s);
}

/* Behind a pooler process numbers mean nothing, so cancels go on links, and statements have no names. */
Test(pg_server, a_pooler_is_recognised)
{
	stage s = begin(STUB_POOLER, 2);
	pg_conn *a = pg_conn_acquire(ctx_background(), s.t->pool),
		*b = pg_conn_acquire(ctx_background(), s.t->pool);
	pg_conn_release(a);
	pg_conn_release(b);
	hang(&s);
	expect_settled(&s, true, 0);
	cr_expect(eq(u64, stats_of(s.t).cancel_batches, 0));
	end(&s);
}

/* ---- COMMIT --------------------------------------------------------------------------------------------- */

Test(pg_server, a_commit_that_is_cut_off_is_unknown)
{
	stage s = begin(STUB_NO_COMMIT, 1);
	pg_tx *tx = pg_begin(ctx_background(), s.t->pool, NULL);
	cr_expect_not(pg_commit(tx));
	cr_expect(eq(str, (char *)kind_of(pg_tx_error(tx)), "unknown"));
	pg_rollback(tx);
	end(&s);
}

/* ---- Closing -------------------------------------------------------------------------------------------- */

/* PQcancel of libpq before 17 cannot be ended: it is left to its end, and the close does not wait for that. */
Test(pg_server, close_does_not_wait_for_a_link_that_hangs)
{
	stage s = begin(STUB_LINK_STAYS_OPEN, 4);
	for (int i = 0; i < 4; i++)
		hang(&s);
	int64_t start = now_ms();
	test_pool_close(s.t);
	cr_expect(now_ms() - start < SETTLE_MS + 500 * support_patience());
	pg_stub_stop(s.stub);
}

/* ---- PostgreSQL, stopped and started under load ----------------------------------------------------------- */

typedef struct load {
	test_pool *t;
	_Atomic(bool) stop;
	_Atomic(int) running, succeeded, failed_connection, failed_otherwise;
} load;

static void keep_asking(void *arg)
{
	load *l = arg;
	while (!l->stop) {
		ctx_auto *c = ctx_with_timeout(ctx_background(), 5 * CTX_SECOND);
		pg_rows *r = pg_query_row(c, l->t->pool, "SELECT $1::int", PG_PARAMS("1"));
		const pg_error *error = pg_rows_error(r);
		if (!error)
			l->succeeded++;
		else if (error->kind == PG_ERROR_CONNECTION)
			l->failed_connection++;
		else
			l->failed_otherwise++;
		pg_rows_close(r);
		wait_sleep(ctx_background(), CTX_MILLISECOND);
	}
}

static bool has_failed(void *arg)
{
	return ((load *)arg)->failed_connection >= 20;
}

static bool has_succeeded(void *arg)
{
	return ((load *)arg)->succeeded >= 100;
}

static void outage(bool immediate)
{
	private_db *db = private_db_start(NULL);
	cr_assert_not_null(db);
	load l = {.t = test_pool_open(4, &(pg_pool_options){.conninfo = private_db_url(db)})};
	loop_thread *worker = loop_thread_start(NULL);
	for (int i = 0; i < 8; i++)
		loop_spawn(loop_thread_loop(worker), keep_asking, &l);
	cr_assert(eventually(has_succeeded, &l, 20000));
	cr_assert(private_db_halt(db, immediate));
	cr_assert(eventually(has_failed, &l, 20000));
	cr_expect(eq(sz, stats_of(l.t).idle, 0));
	uint64_t attempts = stats_of(l.t).connect_failures;
	cr_expect(le(u64, attempts, 20), "attempts keep a distance");
	l.succeeded = 0;
	cr_assert(private_db_resume(db, NULL));
	int64_t up = now_ms();
	cr_assert(eventually(has_succeeded, &l, 20000));
	cr_expect(now_ms() - up < 3000 * support_patience(), "it recovers by itself, and soon");
	l.stop = true;
	loop_thread_stop(worker);
	cr_expect(eq(int, l.failed_otherwise, 0));
	test_pool_close(l.t);
	private_db_stop(db);
}

Test(pg_server, an_outage_is_told_at_once_and_survived)
{
	outage(false);
}

Test(pg_server, a_crash_is_told_at_once_and_survived)
{
	outage(true);
}
