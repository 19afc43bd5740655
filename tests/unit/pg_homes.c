/*
 * Homes: a connection is used on any loop and thread in turn, and its registration with one is in nobody's way.
 */
#include <criterion/criterion.h>
#include <criterion/new/assert.h>

#include "pools.h"
#include "support.h"

TestSuite(pg_homes, .timeout = 60);

/* What uses the pool, again and again, and how many have come to their end. */
typedef struct users {
	test_pool *t;
	_Atomic(int) ended, failed;
} users;

static void run_many(void *arg)
{
	users *m = arg;
	for (int i = 0; i < 200; i++) {
		pg_rows_auto *r =
			pg_query_row(ctx_background(), m->t->pool, "SELECT $1::int", PG_PARAMS("1"));
		m->failed += pg_rows_error(r) != NULL;
	}
	m->ended++;
}

Test(pg_homes, connections_move_between_loops_and_threads)
{
	users m = {.t = test_pool_open(2, NULL)};
	loop_thread *loops[3] = {loop_thread_start(NULL), loop_thread_start(NULL), loop_thread_start(NULL)};
	for (int i = 0; i < 12; i++)
		loop_spawn(loop_thread_loop(loops[i % 3]), run_many, &m);
	run_many(&m);
	for (int i = 0; i < 3; i++)
		loop_thread_stop(loops[i]);
	cr_expect(eq(int, m.ended, 13));
	cr_expect(eq(int, m.failed, 0));
	cr_expect(le(u64, stats_of(m.t).connects, 2));
	test_pool_close(m.t);
}

Test(pg_homes, connections_outlive_the_loop_they_were_used_on)
{
	users m = {.t = test_pool_open(2, NULL)};
	for (int i = 0; i < 5; i++) {
		in_fiber(run_many, &m);
		run_many(&m);
	}
	cr_expect(eq(int, m.failed, 0));
	cr_expect(eq(u64, stats_of(m.t).connects, 1));
	test_pool_close(m.t);
}

typedef struct reading {
	test_pool *t;
	pg_rows *rows;
} reading;

static void open_rows(void *arg)
{
	reading *r = arg;
	r->rows = pg_query(ctx_background(), r->t->pool, "SELECT generate_series(1, 100000)", PG_NO_PARAMS);
	pg_rows_next(r->rows);
}

/* The loop that the connection is registered with ends while its rows are still being read elsewhere. */
Test(pg_homes, rows_begun_on_a_loop_are_read_on_a_thread)
{
	reading r = {.t = test_pool_open(1, NULL)};
	in_fiber(open_rows, &r);
	int rows = 1;
	while (pg_rows_next(r.rows))
		rows++;
	cr_expect(eq(int, rows, 100000));
	pg_rows_close(r.rows);
	users m = {.t = r.t};
	in_fiber(run_many, &m);
	cr_expect(eq(int, m.failed, 0));
	test_pool_close(r.t);
}

static void close_in_fiber(void *arg)
{
	users *m = arg;
	run_many(m);
	test_pool_close(m->t);
}

/* Idle connections are registered with loops that run on, one of them the closer's own. */
Test(pg_homes, close_on_a_fiber_takes_connections_off_every_loop)
{
	users m = {.t = test_pool_open(4, NULL)};
	loop_thread *other = loop_thread_start(NULL);
	loop_spawn(loop_thread_loop(other), run_many, &m);
	cr_assert(loop_fibers_become(loop_thread_loop(other), 0));
	in_fiber(close_in_fiber, &m);
	cr_expect(eq(int, m.ended, 2));
	loop_thread_stop(other);
}
