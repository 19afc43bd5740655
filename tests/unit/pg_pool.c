/*
 * The pool: who gets a connection and in what order, what is refused, what happens when connections break or
 * cannot be made, homes on several loops, and closing.
 */
#include <criterion/criterion.h>
#include <criterion/new/assert.h>
#include <errno.h>
#include <netinet/in.h>
#include <semaphore.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "alloc_fault.h"
#include "pools.h"
#include "support.h"
#include "together.h"

enum { BOUND_MS = 20000 };

TestSuite(pg_pool, .timeout = 60);

static const char *kind_of(const pg_error *error)
{
	return error ? pg_error_kind_name(error->kind) : "none";
}

typedef struct waiting_for {
	test_pool *t;
	size_t waiting;
} waiting_for;

static bool has_waiting(void *arg)
{
	waiting_for *w = arg;
	return stats_of(w->t).waiting == w->waiting;
}

static bool waiting_become(test_pool *t, size_t waiting)
{
	return eventually(has_waiting, &(waiting_for){t, waiting}, BOUND_MS);
}

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

typedef struct many {
	test_pool *t;
	_Atomic(int) order, failed;
	int served[16];
	size_t most_open;
} many;

static void sleep_a_little(void *arg, int index)
{
	many *m = arg;
	(void)index;
	for (int i = 0; i < 20; i++) {
		pg_rows_auto *r =
			pg_exec(ctx_background(), m->t->pool, "SELECT pg_sleep(0.002)", PG_NO_PARAMS);
		m->failed += pg_rows_error(r) != NULL;
	}
}

Test(pg_pool, never_has_more_connections_than_its_size)
{
	many m = {.t = test_pool_open(3, NULL)};
	together(12, sleep_a_little, &m);
	cr_expect(eq(int, m.failed, 0));
	cr_expect(eq(sz, stats_of(m.t).idle, 3));
	cr_expect(eq(u64, stats_of(m.t).connects, 3));
	cr_expect(ge(u64, stats_of(m.t).waits, 9));
	test_pool_close(m.t);
}

static void note_order(void *arg)
{
	many *m = arg;
	pg_conn *session = pg_conn_acquire(ctx_background(), m->t->pool);
	m->failed += pg_conn_error(session) != NULL;
	pg_conn_release(session);
	m->order++;
}

static bool one_was_served(void *arg)
{
	return ((many *)arg)->order == 1;
}

typedef struct numbered {
	many *m;
	int number;
} numbered;

static void note_number(void *arg)
{
	numbered *n = arg;
	pg_conn *session = pg_conn_acquire(ctx_background(), n->m->t->pool);
	n->m->served[n->m->order++] = n->number;
	pg_conn_release(session);
}

static void *note_number_on_thread(void *arg)
{
	note_number(arg);
	return NULL;
}

/* Fibers of two loops and a thread, in turn; each is seen to stand in the queue before the next one comes. */
Test(pg_pool, serves_waiters_of_all_loops_and_threads_in_the_order_they_came)
{
	many m = {.t = test_pool_open(1, NULL)};
	numbered n[9];
	pthread_t threads[3];
	loop_thread *loops[2] = {loop_thread_start(NULL), loop_thread_start(NULL)};
	pg_conn *session = pg_conn_acquire(ctx_background(), m.t->pool);
	for (int i = 0; i < 9; i++) {
		n[i] = (numbered){&m, i};
		if (i % 3 == 2)
			pthread_create(&threads[i / 3], NULL, note_number_on_thread, &n[i]);
		else
			loop_spawn(loop_thread_loop(loops[i % 3]), note_number, &n[i]);
		cr_assert(waiting_become(m.t, (size_t)i + 1));
	}
	pg_conn_release(session);
	for (int i = 0; i < 3; i++)
		pthread_join(threads[i], NULL);
	loop_thread_stop(loops[0]);
	loop_thread_stop(loops[1]);
	cr_expect(eq(int, m.order, 9));
	for (int i = 0; i < 9; i++)
		cr_expect(eq(int, m.served[i], i));
	test_pool_close(m.t);
}

Test(pg_pool, tells_who_finds_the_queue_full)
{
	many m = {.t = test_pool_open(1, &(pg_pool_options){.queue_size = 2})};
	loop_thread *l = loop_thread_start(NULL);
	pg_conn *session = pg_conn_acquire(ctx_background(), m.t->pool);
	loop_spawn(loop_thread_loop(l), note_order, &m);
	loop_spawn(loop_thread_loop(l), note_order, &m);
	cr_assert(waiting_become(m.t, 2));
	pg_conn *refused = pg_conn_acquire(ctx_background(), m.t->pool);
	cr_expect(eq(str, (char *)kind_of(pg_conn_error(refused)), "saturated"));
	pg_rows *r = pg_exec(ctx_background(), refused, "SELECT 1", PG_NO_PARAMS);
	cr_expect(eq(str, (char *)kind_of(pg_rows_error(r)), "saturated"));
	pg_rows_close(r);
	pg_conn_release(refused);
	pg_conn_release(session);
	loop_thread_stop(l);
	cr_expect(eq(int, m.order, 2));
	cr_expect(eq(int, m.failed, 0));
	cr_expect(eq(u64, stats_of(m.t).saturated, 1));
	test_pool_close(m.t);
}

/* ---- Contexts ----------------------------------------------------------------------------------------- */

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

typedef struct queued {
	test_pool *t;
	ctx *c;
	pg_error error;
	_Atomic(bool) over;
} queued;

static bool is_over(void *arg)
{
	return ((queued *)arg)->over;
}

static void stand_in_queue(void *arg)
{
	queued *q = arg;
	pg_rows *r = pg_exec(q->c, q->t->pool, "SELECT 'never sent'", PG_NO_PARAMS);
	if (pg_rows_error(r))
		q->error = *pg_rows_error(r);
	pg_rows_close(r);
	q->over = true;
}

Test(pg_pool, a_waiter_whose_context_ends_leaves_the_queue_and_sends_nothing)
{
	test_pool *t = test_pool_open(1, NULL);
	many m = {.t = t};
	loop_thread *l = loop_thread_start(NULL);
	pg_conn *session = pg_conn_acquire(ctx_background(), t->pool);
	queued q[3];
	for (size_t i = 0; i < 3; i++) {
		q[i] = (queued){.t = t, .c = ctx_with_cancel(ctx_background())};
		loop_spawn(loop_thread_loop(l), stand_in_queue, &q[i]);
		cr_assert(waiting_become(t, i + 1));
	}
	loop_spawn(loop_thread_loop(l), note_order, &m);
	cr_assert(waiting_become(t, 4));
	for (size_t i = 0; i < 3; i++) {
		ctx_cancel_cause(q[i].c, &bored);
		cr_assert(waiting_become(t, 3 - i));
	}
	cr_expect(eq(sz, stats_of(t).busy, 1), "all the while the connection is lent to somebody else");
	pg_conn_release(session);
	loop_thread_stop(l);
	cr_expect(eq(int, m.order, 1));
	for (size_t i = 0; i < 3; i++) {
		cr_expect(eq(str, (char *)kind_of(&q[i].error), "canceled"));
		cr_expect(eq(ptr, (void *)q[i].error.cause, (void *)&bored));
		cr_expect_not(q[i].error.settling);
		ctx_end(q[i].c);
	}
	cr_expect(eq(int, backends(t, NULL, "%never sent%"), 0));
	cr_expect(eq(u64, stats_of(t).acquires_canceled, 3));
	test_pool_close(t);
}

static void cancel_or_release(void *arg, int index)
{
	queued *q = arg;
	if (index == 0)
		ctx_cancel(q->c);
	else
		pg_conn_release((pg_conn *)(uintptr_t)q->error.cause);
}

/* Nothing handed over is ever lost, whichever of the two is first. */
Test(pg_pool, a_connection_handed_over_as_the_context_ends_goes_to_the_next)
{
	test_pool *t = test_pool_open(1, NULL);
	loop_thread *l = loop_thread_start(NULL);
	for (int i = 0; i < 300; i++) {
		pg_conn *session = pg_conn_acquire(ctx_background(), t->pool);
		queued first = {.t = t, .c = ctx_with_cancel(ctx_background())};
		many next = {.t = t};
		loop_spawn(loop_thread_loop(l), stand_in_queue, &first);
		cr_assert(waiting_become(t, 1));
		loop_spawn(loop_thread_loop(l), note_order, &next);
		cr_assert(waiting_become(t, 2));
		queued race = {.c = first.c, .error.cause = (void *)session};
		together(2, cancel_or_release, &race);
		cr_assert(eventually(is_over, &first, BOUND_MS));
		cr_assert(eventually(one_was_served, &next, BOUND_MS));
		cr_assert(eq(int, next.failed, 0));
		cr_assert(pool_at_rest(t));
		ctx_end(first.c);
	}
	cr_expect(eq(u64, stats_of(t).connects, 1));
	loop_thread_stop(l);
	test_pool_close(t);
}

/* ---- Homes -------------------------------------------------------------------------------------------- */

static void run_many(void *arg)
{
	many *m = arg;
	for (int i = 0; i < 200; i++) {
		pg_rows_auto *r =
			pg_query_row(ctx_background(), m->t->pool, "SELECT $1::int", PG_PARAMS("1"));
		m->failed += pg_rows_error(r) != NULL;
	}
	m->order++;
}

Test(pg_pool, connections_move_between_loops_and_threads)
{
	many m = {.t = test_pool_open(2, NULL)};
	loop_thread *loops[3] = {loop_thread_start(NULL), loop_thread_start(NULL), loop_thread_start(NULL)};
	for (int i = 0; i < 12; i++)
		loop_spawn(loop_thread_loop(loops[i % 3]), run_many, &m);
	run_many(&m);
	for (int i = 0; i < 3; i++)
		loop_thread_stop(loops[i]);
	cr_expect(eq(int, m.order, 13));
	cr_expect(eq(int, m.failed, 0));
	cr_expect(le(u64, stats_of(m.t).connects, 2));
	test_pool_close(m.t);
}

Test(pg_pool, connections_outlive_the_loop_they_were_used_on)
{
	many m = {.t = test_pool_open(2, NULL)};
	for (int i = 0; i < 5; i++) {
		in_fiber(run_many, &m);
		run_many(&m);
	}
	cr_expect(eq(int, m.failed, 0));
	cr_expect(eq(u64, stats_of(m.t).connects, 1));
	test_pool_close(m.t);
}

static void open_rows(void *arg)
{
	queued *q = arg;
	pg_rows *r =
		pg_query(ctx_background(), q->t->pool, "SELECT generate_series(1, 100000)", PG_NO_PARAMS);
	pg_rows_next(r);
	q->error.cause = (void *)r;
}

/* The loop that the connection is registered with ends while its rows are still being read elsewhere. */
Test(pg_pool, rows_begun_on_a_loop_are_read_on_a_thread)
{
	queued q = {.t = test_pool_open(1, NULL)};
	in_fiber(open_rows, &q);
	pg_rows *r = (pg_rows *)(uintptr_t)q.error.cause;
	int rows = 1;
	while (pg_rows_next(r))
		rows++;
	cr_expect(eq(int, rows, 100000));
	pg_rows_close(r);
	many m = {.t = q.t};
	in_fiber(run_many, &m);
	cr_expect(eq(int, m.failed, 0));
	test_pool_close(q.t);
}

/* ---- Broken connections ------------------------------------------------------------------------------- */

static bool has_lost_one(void *arg)
{
	return stats_of(arg).lost == 1 && stats_of(arg).open == 0;
}

TEST_BOTH_WAYS(pg_pool, an_idle_connection_that_the_server_ends_is_noticed_at_once)
{
	test_pool *t = test_pool_open(1, NULL);
	char sql[64];
	snprintf(sql, sizeof(sql), "SELECT pg_terminate_backend(%d)::int", (int)backend_of_pool(t));
	free(activity_sql(t->watcher, sql));
	cr_expect(eventually(has_lost_one, t, BOUND_MS));
	must_exec(t, "SELECT 1");
	cr_expect(eq(u64, stats_of(t).connects, 2));
	test_pool_close(t);
}

/* A byte was sent: whether the statement has run nobody can tell, so the caller must be told, and nothing repeated. */
TEST_BOTH_WAYS(pg_pool, a_connection_that_breaks_during_a_query_is_told_and_replaced)
{
	test_pool *t = test_pool_open(1, NULL);
	pg_rows *r = pg_exec(ctx_background(), t->pool, "SELECT pg_terminate_backend(pg_backend_pid())",
	                     PG_NO_PARAMS);
	cr_assert_not_null(pg_rows_error(r));
	cr_expect(eq(str, (char *)kind_of(pg_rows_error(r)), "connection"));
	cr_expect(eq(str, (char *)pg_rows_error(r)->sqlstate, "57P01"));
	pg_rows_close(r);
	must_exec(t, "SELECT 1");
	cr_expect(eq(u64, stats_of(t).lost, 1));
	cr_expect(eq(u64, stats_of(t).connects, 2));
	test_pool_close(t);
}

/* ---- No server ---------------------------------------------------------------------------------------- */

TEST_BOTH_WAYS(pg_pool, tells_at_once_that_there_is_no_server_and_does_not_insist)
{
	test_pool *t = test_pool_open(4, &(pg_pool_options){.conninfo = "host=/nonexistent"});
	for (int i = 0; i < 50; i++) {
		pg_rows_auto *r = pg_exec(ctx_background(), t->pool, "SELECT 1", PG_NO_PARAMS);
		cr_assert(eq(str, (char *)kind_of(pg_rows_error(r)), "connection"));
		cr_expect_not_null(strstr(pg_rows_error(r)->message, "/nonexistent"));
	}
	cr_expect(le(u64, stats_of(t).connect_failures, 5), "attempts keep a distance");
	cr_expect(eq(sz, stats_of(t).open, 0));
	test_pool_close(t);
}

static void exec_on_thread(void *arg, int index)
{
	many *m = arg;
	(void)index;
	pg_rows_auto *r = pg_exec(ctx_background(), m->t->pool, "SELECT 1", PG_NO_PARAMS);
	m->failed += pg_rows_error(r) && pg_rows_error(r)->kind == PG_ERROR_CONNECTION;
}

Test(pg_pool, one_failed_attempt_tells_all_who_wait)
{
	many m = {.t = test_pool_open(1, &(pg_pool_options){.conninfo = "host=/nonexistent"})};
	together(20, exec_on_thread, &m);
	cr_expect(eq(int, m.failed, 20));
	cr_expect(le(u64, stats_of(m.t).connect_failures, 3));
	test_pool_close(m.t);
}

static void ask_for_one(void *arg)
{
	queued *q = arg;
	pg_conn *session = pg_conn_acquire(q->c, q->t->pool);
	if (pg_conn_error(session))
		q->error = *pg_conn_error(session);
	pg_conn_release(session);
}

/* A server that takes the connection and says nothing: the caller's context ends its wait, the close does not wait. */
Test(pg_pool, a_server_that_says_nothing_holds_up_neither_caller_nor_close)
{
	struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
	socklen_t size = sizeof(address);
	int silent = socket(AF_INET, SOCK_STREAM, 0);
	cr_assert(bind(silent, (struct sockaddr *)&address, size) == 0 && listen(silent, 8) == 0);
	getsockname(silent, (struct sockaddr *)&address, &size);
	char conninfo[64];
	snprintf(conninfo, sizeof(conninfo), "host=127.0.0.1 port=%d", ntohs(address.sin_port));
	int64_t start = now_ms();
	queued q = {.t = test_pool_open(1, &(pg_pool_options){.conninfo = conninfo})};
	q.c = ctx_with_timeout(ctx_background(), 100 * CTX_MILLISECOND);
	ask_for_one(&q);
	cr_expect(eq(str, (char *)kind_of(&q.error), "deadline"));
	cr_expect(eq(sz, stats_of(q.t).connecting, 1));
	ctx_end(q.c);
	test_pool_close(q.t);
	cr_expect(now_ms() - start < 2000 * support_patience());
	close(silent);
}

Test(pg_pool, an_attempt_to_connect_is_bounded)
{
	struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
	socklen_t size = sizeof(address);
	int silent = socket(AF_INET, SOCK_STREAM, 0);
	cr_assert(bind(silent, (struct sockaddr *)&address, size) == 0 && listen(silent, 8) == 0);
	getsockname(silent, (struct sockaddr *)&address, &size);
	char conninfo[64];
	snprintf(conninfo, sizeof(conninfo), "host=127.0.0.1 port=%d", ntohs(address.sin_port));
	queued q = {.t = test_pool_open(1, &(pg_pool_options){.conninfo = conninfo,
	                                                      .connect_timeout = 200 * CTX_MILLISECOND})};
	q.c = ctx_background();
	int64_t start = now_ms();
	ask_for_one(&q);
	cr_expect(eq(str, (char *)kind_of(&q.error), "connection"));
	cr_expect(now_ms() - start < 2000 * support_patience());
	test_pool_close(q.t);
	close(silent);
}

/* ---- Closing ------------------------------------------------------------------------------------------ */

static void *close_on_thread(void *arg)
{
	test_pool_close(arg);
	return NULL;
}

Test(pg_pool, close_wakes_the_waiters_and_waits_for_what_is_lent)
{
	test_pool *t = test_pool_open(1, NULL);
	loop_thread *l = loop_thread_start(NULL);
	pthread_t closer;
	pg_conn *session = pg_conn_acquire(ctx_background(), t->pool);
	queued q = {.t = t, .c = ctx_background()};
	loop_spawn(loop_thread_loop(l), stand_in_queue, &q);
	cr_assert(waiting_become(t, 1));
	pthread_create(&closer, NULL, close_on_thread, t);
	cr_assert(eventually(is_over, &q, BOUND_MS));
	cr_expect(eq(str, (char *)kind_of(&q.error), "closed"));
	pg_conn *late = pg_conn_acquire(ctx_background(), t->pool);
	cr_expect(eq(str, (char *)kind_of(pg_conn_error(late)), "closed"));
	pg_conn_release(late);
	cr_expect(eq(i64, backend_of(session) > 0, 1), "what is lent works on");
	pg_conn_release(session);
	pthread_join(closer, NULL);
	loop_thread_stop(l);
}

static void close_in_fiber(void *arg)
{
	many *m = arg;
	run_many(m);
	test_pool_close(m->t);
}

/* Idle connections are registered with loops that run on, one of them the closer's own. */
Test(pg_pool, close_on_a_fiber_takes_connections_off_every_loop)
{
	many m = {.t = test_pool_open(4, NULL)};
	loop_thread *other = loop_thread_start(NULL);
	loop_spawn(loop_thread_loop(other), run_many, &m);
	cr_assert(loop_fibers_become(loop_thread_loop(other), 0));
	in_fiber(close_in_fiber, &m);
	cr_expect(eq(int, m.order, 2));
	loop_thread_stop(other);
}
