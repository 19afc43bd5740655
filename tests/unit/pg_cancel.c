/*
 * Cancelling: the caller is free at once, PostgreSQL stops, the connection is kept, and no other query is hit.
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
	t = test_pool_open(4, NULL);
}

static void close_pool(void)
{
	test_pool_close(t);
}

TestSuite(pg_cancel, .init = open_pool, .fini = close_pool, .timeout = 120);

static const ctx_error left = {ECONNRESET, "the client has left"};

/* ---- One query ---------------------------------------------------------------------------------------- */

/* PostgreSQL's side is frozen while its backend is stopped: the caller must be free without its help. */
Test(pg_cancel, frees_the_caller_at_once_with_the_cause)
{
	test_query *q = test_query_start(t, "SELECT pg_sleep(60)");
	cr_assert(backends_become(t, "active", "%pg_sleep%", 1));
	int64_t end = ctx_now();
	ctx_cancel_cause(q->c, &left);
	test_query_join(q);
	cr_expect(q->ended_at - end < 100 * CTX_MILLISECOND * support_patience());
	cr_expect(eq(str, (char *)kind_of(&q->error), "canceled"));
	cr_expect(eq(ptr, (void *)q->error.cause, (void *)&left));
	cr_expect(q->error.settling);
	cr_assert(settled_become(t, 1));
	cr_expect(eq(ptr, (void *)t->cause, (void *)&left));
	free(q);
}

TEST_BOTH_WAYS(pg_cancel, a_deadline_stops_the_query_and_keeps_the_connection)
{
	int64_t pid = backend_of_pool(t);
	ctx_auto *c = ctx_with_timeout(ctx_background(), 50 * CTX_MILLISECOND);
	int64_t deadline;
	ctx_deadline(c, &deadline);
	pg_rows *r = pg_query_row(c, t->pool, "SELECT pg_sleep(60)", PG_NO_PARAMS);
	cr_expect(ctx_now() >= deadline);
	cr_expect(ctx_now() - deadline < 100 * CTX_MILLISECOND * support_patience());
	cr_expect(eq(str, (char *)kind_of(pg_rows_error(r)), "deadline"));
	cr_expect(eq(ptr, (void *)pg_rows_error(r)->cause, (void *)&CTX_DEADLINE_EXCEEDED));
	cr_expect(pg_rows_error(r)->settling);
	pg_rows_close(r);
	cr_assert(settled_become(t, 1));
	cr_expect(eq(int, t->kept, 1));
	cr_expect(eq(ptr, (void *)t->query_ctx, (void *)c));
	cr_expect(ge(uint, t->cancels_sent, 1));
	cr_expect(t->stop_ns > 0 && t->stop_ns <= t->settle_ns);
	cr_expect(t->stop_ns < 50 * CTX_MILLISECOND * support_patience(), "it took %.1f ms",
	          (double)t->stop_ns / 1e6);
	cr_expect(eq(int, backends(t, "active", NULL), 0));
	cr_expect(eq(i64, backend_of_pool(t), pid));
	cr_expect(eq(u64, stats_of(t).settled_kept, 1));
	cr_expect(eq(u64, stats_of(t).connects, 1));
}

/* The reader is elsewhere; the query must not wait for it to come back. */
TEST_BOTH_WAYS(pg_cancel, a_stream_is_stopped_while_its_reader_is_elsewhere)
{
	int64_t pid = backend_of_pool(t);
	ctx_auto *c = ctx_with_cancel(ctx_background());
	pg_rows *r = pg_query(c, t->pool, "SELECT generate_series(1, 1000000000)", PG_NO_PARAMS);
	cr_assert(pg_rows_next(r));
	cr_assert(backends_become(t, "active", "%generate_series%", 1));
	ctx_cancel_cause(c, &left);
	cr_expect(backends_become(t, "active", NULL, 0));
	cr_assert(settled_become(t, 1));
	cr_expect_not(pg_rows_next(r));
	cr_expect(eq(str, (char *)kind_of(pg_rows_error(r)), "canceled"));
	cr_expect(eq(ptr, (void *)pg_rows_error(r)->cause, (void *)&left));
	cr_expect(pg_rows_error(r)->settling);
	pg_rows_close(r);
	cr_expect(eq(i64, backend_of_pool(t), pid));
	cr_expect(eq(int, t->settled, 1));
}

Test(pg_cancel, a_stream_that_was_stopped_may_just_be_closed)
{
	ctx_auto *c = ctx_with_cancel(ctx_background());
	pg_rows *r = pg_query(c, t->pool, "SELECT generate_series(1, 1000000000)", PG_NO_PARAMS);
	ctx_cancel(c);
	cr_assert(settled_become(t, 1));
	pg_rows_close(r);
	cr_expect(eq(sz, stats_of(t).idle, 1));
}

/* Parsing takes locks too: PREPARE of a query on a table that somebody else has locked waits. */
Test(pg_cancel, a_statement_is_stopped_while_it_is_prepared)
{
	int64_t pid = backend_of_pool(t);
	must_exec(t, "CREATE TABLE IF NOT EXISTS held (id int)");
	free(activity_sql(t->watcher, "BEGIN"));
	free(activity_sql(t->watcher, "LOCK TABLE held IN ACCESS EXCLUSIVE MODE"));
	ctx_auto *c = ctx_with_timeout(ctx_background(), 50 * CTX_MILLISECOND);
	pg_rows *r = pg_query(c, t->pool, "SELECT id FROM held", PG_NO_PARAMS);
	cr_expect(eq(str, (char *)kind_of(pg_rows_error(r)), "deadline"));
	pg_rows_close(r);
	cr_assert(settled_become(t, 1));
	free(activity_sql(t->watcher, "COMMIT"));
	must_exec(t, "SELECT id FROM held");
	cr_expect(eq(i64, backend_of_pool(t), pid));
	must_exec(t, "DROP TABLE held");
}

/* ---- What is not hidden, and what is not sent ---------------------------------------------------------- */

/* The server's error has arrived when the context ends; the caller comes to read it only after both. */
static char *sent_after;

static bool is_answered(void *nothing)
{
	char sql[320];
	(void)nothing;
	snprintf(sql, sizeof(sql),
	         "SELECT count(*) FROM pg_stat_activity WHERE application_name = '%s' AND state = 'idle'"
	         " AND query LIKE '%%division%%' AND query_start > '%s'",
	         t->application, sent_after);
	return ask_number(t, sql) == 1;
}

/* On the loop's own thread: the query's fiber cannot run until the answer and the end are both there. */
static void block_until_answered(void *arg)
{
	cr_expect(eventually(is_answered, NULL, 20000));
	free(sent_after);
	ctx_cancel(arg);
}

static void block_when_sent(ctx *c)
{
	sent_after = activity_sql(t->watcher, "SELECT clock_timestamp()");
	loop_post(loop_current(), block_until_answered, c);
}

static void race_on_one_loop(void *arg)
{
	ctx *c = arg;
	static const char sql[] = "SELECT 'division', 1 / (random() * 0)::int";
	pg_rows_close(pg_exec(ctx_background(), t->pool, sql, PG_NO_PARAMS)); /* connected, prepared */
	block_when_sent(c);
	pg_rows *r = pg_exec(c, t->pool, sql, PG_NO_PARAMS);
	cr_expect(eq(str, (char *)kind_of(pg_rows_error(r)), "server"));
	cr_expect(eq(str, (char *)pg_rows_error(r)->sqlstate, "22012"));
	cr_expect_not(pg_rows_error(r)->settling);
	pg_rows_close(r);
}

Test(pg_cancel, an_error_that_has_arrived_is_not_hidden)
{
	ctx_auto *c = ctx_with_cancel(ctx_background());
	in_fiber(race_on_one_loop, c);
	cr_expect(eq(u64, stats_of(t).cancels_sent, 0));
	cr_expect(eq(int, t->settled, 0));
}

static void answer_and_end(void *arg)
{
	ctx *c = arg;
	block_when_sent(c);
	pg_rows *r = pg_query_row(c, t->pool, "SELECT 'division of labour'", PG_NO_PARAMS);
	cr_expect_null(pg_rows_error(r), "a whole answer that has arrived is the answer");
	pg_rows_close(r);
}

Test(pg_cancel, a_whole_answer_that_has_arrived_counts)
{
	must_exec(t, "SELECT 'division of labour'");
	ctx_auto *c = ctx_with_cancel(ctx_background());
	in_fiber(answer_and_end, c);
	cr_expect(eq(sz, stats_of(t).idle, 1));
	cr_expect(eq(u64, stats_of(t).cancels_sent, 0));
}

/* Somebody else's pg_cancel_backend is an error of the server's, not a context's end. */
Test(pg_cancel, a_cancel_that_is_not_ours_is_a_server_error)
{
	test_query *q = test_query_start(t, "SELECT pg_sleep(60)");
	cr_assert(backends_become(t, "active", "%pg_sleep%", 1));
	char sql[160];
	snprintf(sql, sizeof(sql),
	         "SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE application_name = '%s' AND "
	         "state = 'active'",
	         t->application);
	free(activity_sql(t->watcher, sql));
	test_query_join(q);
	cr_expect(eq(str, (char *)kind_of(&q->error), "server"));
	cr_expect(eq(str, (char *)q->error.sqlstate, "57014"));
	cr_expect_null(q->error.cause);
	cr_expect(eq(sz, stats_of(t).idle, 1));
	free(q);
}

/*
 * The statement is larger than the socket's buffers, and the backend is busy not reading: a part of it is not
 * written yet when the context ends. Were the rest written, the statement would run after its end was reported.
 */
Test(pg_cancel, the_rest_of_a_message_is_never_written)
{
	must_exec(t, "CREATE TABLE IF NOT EXISTS unwritten (length int)");
	must_exec(t, "TRUNCATE unwritten");
	pg_conn *session = pg_conn_acquire(ctx_background(), t->pool);
	int64_t pid = backend_of(session);
	enum { SIZE = 64 << 20 };
	char *large = malloc(SIZE + 1);
	memset(large, 'x', SIZE);
	large[SIZE] = '\0';
	/* Prepared before, so that the large value is the first that is sent. */
	static const char insert[] = "INSERT INTO unwritten VALUES (length($1))";
	pg_rows_close(pg_exec(ctx_background(), session, insert, PG_PARAMS("")));
	char sql[64];
	snprintf(sql, sizeof(sql), "kill -STOP %d", (int)pid);
	cr_assert(eq(int, system(sql), 0));
	ctx_auto *c = ctx_with_timeout(ctx_background(), 50 * CTX_MILLISECOND);
	pg_rows *r = pg_exec(c, session, insert, PG_PARAMS(large));
	cr_expect(eq(str, (char *)kind_of(pg_rows_error(r)), "deadline"));
	pg_rows_close(r);
	snprintf(sql, sizeof(sql), "kill -CONT %d", (int)pid);
	cr_assert(eq(int, system(sql), 0));
	cr_assert(settled_become(t, 1));
	cr_expect(eq(int, t->kept, 0));
	pg_conn_release(session);
	cr_expect(backends_become(t, NULL, NULL, 0));
	cr_expect(eq(i64, ask_number(t, "SELECT count(*) FROM unwritten"), 1));
	must_exec(t, "DROP TABLE unwritten");
	free(large);
}

/* ---- Races -------------------------------------------------------------------------------------------- */

/* xorshift: the same numbers in every run. */
static uint32_t random_below(uint32_t *state, uint32_t n)
{
	*state ^= *state << 13;
	*state ^= *state >> 17;
	*state ^= *state << 5;
	return *state % n;
}

typedef struct leavers {
	_Atomic(int) running, wrong, ended_by_themselves;
	_Atomic(int64_t) last_left;
} leavers;

typedef struct leaver {
	leavers *all;
	uint32_t seed;
	int rounds;
} leaver;

static void leave_early(void *arg)
{
	leaver *me = arg;
	for (int i = 0; i < me->rounds; i++) {
		int64_t after = random_below(&me->seed, 3000) * INT64_C(1000);
		ctx_auto *c = ctx_with_timeout(ctx_background(), after);
		pg_rows *r = pg_exec(c, t->pool, "SELECT pg_sleep(60)", PG_NO_PARAMS);
		me->all->last_left = ctx_now();
		me->all->wrong += !pg_rows_error(r) || pg_rows_error(r)->kind != PG_ERROR_DEADLINE;
		pg_rows_close(r);
	}
	me->all->running--;
}

static bool nothing_runs(void *arg)
{
	(void)arg;
	return backends(t, "active", NULL) == 0;
}

/*
 * 500 clients that leave 0 to 3 ms after they came, four at a time: many a cancel overtakes its query, which
 * PostgreSQL then ignores. Sent once, such a query would sleep for a minute.
 */
Test(pg_cancel, a_cancel_that_overtakes_its_query_is_repeated)
{
	loop_thread *l = loop_thread_start(NULL);
	leavers all = {.running = 4};
	leaver each[4];
	for (uint32_t i = 0; i < 4; i++) {
		each[i] = (leaver){&all, i + 1, 125};
		loop_spawn(loop_thread_loop(l), leave_early, &each[i]);
	}
	loop_thread_stop(l);
	cr_expect(eventually(nothing_runs, NULL, 5000));
	double after_ms = (double)(ctx_now() - all.last_left) / 1e6;
	cr_expect(after_ms < 100 * support_patience(), "something ran %.1f ms after the last had left",
	          after_ms);
	cr_expect(eq(int, all.wrong, 0));
	cr_assert(pool_at_rest(t));
	cr_expect(le(sz, stats_of(t).open, 4));
	cr_expect(eq(u64, stats_of(t).settled_closed, 0), "the pool is whole");
	cr_expect(le(u64, stats_of(t).connects, 4));
	cr_expect(eq(u64, stats_of(t).settled_kept, stats_of(t).cancels));
	cr_expect(eq(u64, (uint64_t)t->settled, stats_of(t).cancels));
}

typedef struct racer {
	_Atomic(bool) stop;
	_Atomic(int) canceled, answered, wrong, innocent, settling;
} racer;

/* The other client, which cancels nothing: nothing may ever be cancelled for it. */
static void innocent(void *arg)
{
	racer *race = arg;
	while (!race->stop) {
		pg_rows *r = pg_query_row(ctx_background(), t->pool, "SELECT $1::int", PG_PARAMS("7"));
		int64_t value = 0;
		if (!pg_rows_int64(r, 0, &value) || value != 7) {
			race->wrong++;
			fprintf(stderr, "innocent: %s\n", pg_rows_error(r)->message);
		}
		race->innocent++;
		pg_rows_close(r);
	}
}

/* Deadlines all around the time that the query takes. */
static void race_the_end(void *arg)
{
	racer *race = arg;
	uint32_t seed = 2463534242;
	for (int i = 0; i < 2000; i++) {
		ctx_auto *c = ctx_with_timeout(ctx_background(),
		                               1000000 + random_below(&seed, 1500) * INT64_C(1000));
		pg_rows *r = pg_query_row(c, t->pool, "SELECT pg_sleep(0.001), 42", PG_NO_PARAMS);
		const pg_error *error = pg_rows_error(r);
		int64_t value = 0;
		if (!error && pg_rows_int64(r, 1, &value) && value == 42)
			race->answered++;
		else if (error && error->kind == PG_ERROR_DEADLINE)
			race->canceled++;
		else
			race->wrong++;
		race->settling += error && error->settling;
		pg_rows_close(r);
	}
	race->stop = true;
}

Test(pg_cancel, a_cancel_that_races_the_querys_end_hits_nobody_else)
{
	test_pool_close(t);
	t = test_pool_open(2, NULL);
	loop_thread *l = loop_thread_start(NULL);
	racer race = {0};
	loop_spawn(loop_thread_loop(l), innocent, &race);
	loop_spawn(loop_thread_loop(l), race_the_end, &race);
	loop_thread_stop(l);
	cr_assert(pool_at_rest(t));
	cr_expect(eq(int, race.wrong, 0));
	cr_expect(race.canceled > 100 && race.answered > 100, "%d cancelled, %d answered", race.canceled,
	          race.answered);
	cr_expect(ge(int, race.innocent, 101));
	cr_expect(eq(int, race.settling, t->settled), "on_settled answers each `settling`, once");
	cr_expect(eq(u64, stats_of(t).settled_closed, 0));
	cr_expect(le(u64, stats_of(t).connects, 2));
}

/* ---- Out of memory ------------------------------------------------------------------------------------ */

/* Whatever allocation fails, from the call to the end of the settling, the query stops and the pool is whole. */
Test(pg_cancel, without_memory_the_query_is_stopped_all_the_same)
{
	unsigned n = 1;
	for (; n < 200; n++) {
		ctx_auto *c = ctx_with_timeout(ctx_background(), 20 * CTX_MILLISECOND);
		must_exec(t, "SELECT 1");
		fault_set_process(FAULT_MEMORY, n);
		pg_rows *r = pg_exec(c, t->pool, "SELECT pg_sleep(60)", PG_NO_PARAMS);
		cr_expect_not_null(pg_rows_error(r));
		pg_rows_close(r);
		cr_assert(pool_at_rest(t));
		if (!fault_clear(FAULT_MEMORY))
			break;
		cr_assert(backends_become(t, "active", NULL, 0));
	}
	cr_expect(ge(uint, n, 4));
	must_exec(t, "SELECT 1");
}

Test(pg_cancel, without_threads_the_query_is_stopped_all_the_same)
{
	must_exec(t, "SELECT pg_sleep(0)");
	ctx_auto *c = ctx_with_timeout(ctx_background(), 20 * CTX_MILLISECOND);
	fault_set_process(FAULT_THREAD, 1);
	pg_rows *r = pg_exec(c, t->pool, "SELECT pg_sleep(60)", PG_NO_PARAMS);
	cr_expect(eq(str, (char *)kind_of(pg_rows_error(r)), "deadline"));
	pg_rows_close(r);
	cr_assert(settled_become(t, 1));
	fault_clear(FAULT_THREAD);
	cr_expect(backends_become(t, "active", NULL, 0));
	must_exec(t, "SELECT 1");
}
