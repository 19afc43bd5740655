/*
 * The queue for a connection: who is served when, who is refused, and how one leaves it without being served.
 */
#include <criterion/criterion.h>
#include <criterion/new/assert.h>
#include <errno.h>
#include <pthread.h>

#include "pools.h"
#include "support.h"
#include "together.h"

enum { BOUND_MS = 20000 };

TestSuite(pg_queue, .timeout = 60);

/* Callers, and what became of them: who was served as which, and how many were not. */
typedef struct callers {
	test_pool *t;
	_Atomic(int) order, failed;
	int served[16];
} callers;

/* ---- In order ------------------------------------------------------------------------------------------ */

static void note_order(void *arg)
{
	callers *m = arg;
	pg_conn *session = pg_conn_acquire(ctx_background(), m->t->pool);
	m->failed += pg_conn_error(session) != NULL;
	pg_conn_release(session);
	m->order++;
}

static bool one_was_served(void *arg)
{
	return ((callers *)arg)->order == 1;
}

typedef struct numbered {
	callers *m;
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
Test(pg_queue, serves_waiters_of_all_loops_and_threads_in_the_order_they_came)
{
	callers m = {.t = test_pool_open(1, NULL)};
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

Test(pg_queue, tells_who_finds_the_queue_full)
{
	callers m = {.t = test_pool_open(1, &(pg_pool_options){.queue_size = 2})};
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

/* ---- Leaving it ---------------------------------------------------------------------------------------- */

static const ctx_error bored = {ECANCELED, "the caller was bored"};

typedef struct queued {
	test_pool *t;
	ctx *c;
	pg_error error;
	_Atomic(bool) over;
	pg_conn *lent; /* to somebody else, meanwhile */
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

Test(pg_queue, a_waiter_whose_context_ends_leaves_the_queue_and_sends_nothing)
{
	test_pool *t = test_pool_open(1, NULL);
	callers m = {.t = t};
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
		pg_conn_release(q->lent);
}

/* Nothing handed over is ever lost, whichever of the two is first. */
Test(pg_queue, a_connection_handed_over_as_the_context_ends_goes_to_the_next)
{
	test_pool *t = test_pool_open(1, NULL);
	loop_thread *l = loop_thread_start(NULL);
	for (int i = 0; i < 300; i++) {
		pg_conn *session = pg_conn_acquire(ctx_background(), t->pool);
		queued first = {.t = t, .c = ctx_with_cancel(ctx_background())};
		callers next = {.t = t};
		loop_spawn(loop_thread_loop(l), stand_in_queue, &first);
		cr_assert(waiting_become(t, 1));
		loop_spawn(loop_thread_loop(l), note_order, &next);
		cr_assert(waiting_become(t, 2));
		first.lent = session;
		together(2, cancel_or_release, &first);
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

static void *close_on_thread(void *arg)
{
	test_pool_close(arg);
	return NULL;
}

Test(pg_queue, close_wakes_the_waiters_and_waits_for_what_is_lent)
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
