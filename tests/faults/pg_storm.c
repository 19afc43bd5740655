/*
 * Storms: hundreds of clients gone at the same moment, while their queries run, and while they wait for a connection.
 */
#include <criterion/criterion.h>
#include <criterion/new/assert.h>
#include <libpq-fe.h>
#include <stdatomic.h>
#include <stdio.h>

#include "pools.h"
#include "private_db.h"
#include "support.h"
#include "together.h"

TestSuite(pg_storm, .timeout = 300);

/* A PostgreSQL of the storm's own, with nobody else's backends on it. */
static private_db *roomy_db(void)
{
	private_db *db = private_db_start(
		&(private_db_options){.settings = (const char *const[]){"max_connections=620", NULL}});
	cr_assert_not_null(db);
	return db;
}

typedef struct crowd {
	test_pool *t;
	const char *sql;
	ctx *c;
	int clients;
	_Atomic(int) left, told_canceled, told_settling;
} crowd;

static void one_of_the_crowd(void *arg)
{
	crowd *all = arg;
	pg_rows *r = pg_exec(all->c, all->t->pool, all->sql, PG_NO_PARAMS);
	const pg_error *error = pg_rows_error(r);
	all->told_canceled += error && error->kind == PG_ERROR_CANCELED;
	all->told_settling += error && error->settling;
	pg_rows_close(r);
	all->left++; /* the last of all: the crowd may be gone then */
}

static bool all_sleep(void *arg)
{
	return backends(((crowd *)arg)->t, "active", "%pg_sleep%") == (int)stats_of(((crowd *)arg)->t).size;
}

static bool all_have_left(void *arg)
{
	return ((crowd *)arg)->left == ((crowd *)arg)->clients;
}

/* Fills the pool with sleeping queries and ends them at once. The time until the last has settled, in ms. */
static double storm(loop *l, test_pool *t, int clients)
{
	crowd all = {.t = t,
	             .sql = "SELECT pg_sleep(600)",
	             .c = ctx_with_cancel(ctx_background()),
	             .clients = clients};
	int before = t->settled, kept = t->kept;
	for (int i = 0; i < clients; i++)
		cr_assert(loop_spawn(l, one_of_the_crowd, &all) == 0);
	activity_of sleeping = {.application = t->application, .state = "active", .query = "%pg_sleep%"};
	cr_assert(activity_becomes(t->watcher, sleeping, clients, 120000));
	int64_t start = ctx_now();
	ctx_cancel(all.c);
	cr_assert(settled_become(t, before + clients));
	double ms = (double)(ctx_now() - start) / 1e6;
	cr_assert(eventually(all_have_left, &all, 20000));
	cr_expect(eq(int, t->kept - kept, clients));
	cr_expect(eq(int, all.told_canceled, clients));
	cr_expect(eq(int, all.told_settling, clients));
	cr_expect(eq(int, backends(t, "active", NULL), 0));
	ctx_release(all.c);
	return ms;
}

static test_pool *pool_on(private_db *db, size_t size, size_t queue_size)
{
	test_pool *t = test_pool_open(
		size, &(pg_pool_options){.conninfo = private_db_url(db),
	                                 .queue_size = queue_size,
	                                 .settle_timeout = 2 * CTX_SECOND * support_patience()});
	activity_close(t->watcher);
	t->watcher = activity_open(private_db_url(db));
	return t;
}

Test(pg_storm, five_hundred_running_queries_are_cancelled_at_once)
{
	private_db *db = roomy_db();
	test_pool *t = pool_on(db, 512, 0);
	loop_thread *l = loop_thread_start(NULL);
	for (int round = 0; round < 3; round++) {
		double ms = storm(loop_thread_loop(l), t, 500);
		fprintf(stderr, "500 queries cancelled at once: all settled after %.0f ms\n", ms);
		cr_expect(ms < 2000 * support_patience(), "%.0f ms", ms);
	}
	pg_pool_stats stats = stats_of(t);
	cr_expect(eq(u64, stats.settled_closed, 0));
	cr_expect(eq(u64, stats.lost, 0));
	cr_expect(eq(u64, stats.connects, 500), "no storm of reconnects");
	loop_thread_stop(l);
	test_pool_close(t);
	private_db_stop(db);
}

static bool all_wait(void *arg)
{
	return (int)stats_of(((crowd *)arg)->t).waiting == ((crowd *)arg)->clients;
}

Test(pg_storm, two_thousand_that_leave_the_queue_send_nothing)
{
	test_pool *t = test_pool_open(4, &(pg_pool_options){.queue_size = 4096});
	loop_thread *l = loop_thread_start(NULL);
	must_exec(t, "DROP TABLE IF EXISTS never_sent");
	must_exec(t, "CREATE TABLE never_sent (a int)");
	crowd sleepers = {
		.t = t, .sql = "SELECT pg_sleep(600)", .c = ctx_with_cancel(ctx_background()), .clients = 4};
	crowd queue = {.t = t,
	               .sql = "INSERT INTO never_sent VALUES (1)",
	               .c = ctx_with_cancel(ctx_background()),
	               .clients = 2000};
	for (int i = 0; i < 4; i++)
		loop_spawn(loop_thread_loop(l), one_of_the_crowd, &sleepers);
	cr_assert(eventually(all_sleep, &sleepers, 20000));
	for (int i = 0; i < 2000; i++)
		cr_assert(loop_spawn(loop_thread_loop(l), one_of_the_crowd, &queue) == 0);
	cr_assert(eventually(all_wait, &queue, 20000));
	int64_t start = ctx_now();
	ctx_cancel(queue.c);
	cr_assert(eventually(all_have_left, &queue, 20000));
	double ms = (double)(ctx_now() - start) / 1e6;
	fprintf(stderr, "2000 contexts ended in the queue: all told after %.1f ms\n", ms);
	cr_expect(ms < 2000 * support_patience(), "%.0f ms", ms);
	cr_expect(eq(int, queue.told_canceled, 2000));
	cr_expect(eq(int, queue.told_settling, 0));
	cr_expect(eq(u64, stats_of(t).acquires_canceled, 2000));
	cr_expect(eq(u64, stats_of(t).cancels, 0));
	cr_expect(eq(int, t->settled, 0));
	ctx_cancel(sleepers.c);
	cr_assert(pool_at_rest(t));
	cr_expect(eq(i64, ask_number(t, "SELECT count(*) FROM never_sent"), 0));
	loop_thread_stop(l);
	must_exec(t, "DROP TABLE never_sent");
	ctx_release(sleepers.c);
	ctx_release(queue.c);
	test_pool_close(t);
}

/* ---- Against CancelRequests ------------------------------------------------------------------------------- */

enum { CLIENTS = 50, ROUNDS = 5 };

typedef struct singles {
	PGconn *pg[CLIENTS];
	int64_t began[CLIENTS], ended[CLIENTS];
} singles;

static void cancel_one(void *arg, int index)
{
	singles *s = arg;
	char why[256];
	PGcancel *cancel = PQgetCancel(s->pg[index]);
	s->began[index] = ctx_now();
	cr_expect(PQcancel(cancel, why, sizeof(why)));
	PQclear(PQgetResult(s->pg[index]));
	PQclear(PQgetResult(s->pg[index]));
	s->ended[index] = ctx_now();
	PQfreeCancel(cancel);
}

static double storm_of_singles(test_pool *t, singles *s)
{
	for (int i = 0; i < CLIENTS; i++)
		cr_assert(PQsendQuery(s->pg[i], "SELECT pg_sleep(600)"));
	cr_assert(activity_becomes(t->watcher, (activity_of){.application = "singles", .state = "active"},
	                           CLIENTS, 20000));
	together(CLIENTS, cancel_one, s);
	int64_t first = s->began[0], last = s->ended[0];
	for (int i = 1; i < CLIENTS; i++) {
		first = s->began[i] < first ? s->began[i] : first;
		last = s->ended[i] > last ? s->ended[i] : last;
	}
	return (double)(last - first) / 1e6;
}

/* All fifty are busy, so that there is no idle connection to send the cancels; in turns, on the same server. */
Test(pg_storm, fifty_take_a_fifth_of_the_time_of_single_requests)
{
	char conninfo[512];
	double ours[ROUNDS], theirs[ROUNDS];
	private_db *db = roomy_db();
	test_pool *t = pool_on(db, CLIENTS, 0);
	loop_thread *l = loop_thread_start(NULL);
	singles s;
	snprintf(conninfo, sizeof(conninfo), "%s%sapplication_name=singles", private_db_url(db), "&");
	for (int i = 0; i < CLIENTS; i++)
		cr_assert(PQstatus(s.pg[i] = PQconnectdb(conninfo)) == CONNECTION_OK);
	storm(loop_thread_loop(l), t, CLIENTS);
	for (int round = 0; round < ROUNDS; round++) {
		theirs[round] = storm_of_singles(t, &s);
		ours[round] = storm(loop_thread_loop(l), t, CLIENTS);
	}
	double ratio = support_median(theirs, ROUNDS) / support_median(ours, ROUNDS);
	fprintf(stderr, "50 at once, none idle: %.1f ms, as single requests %.1f ms: %.1f times\n",
	        support_median(ours, ROUNDS), support_median(theirs, ROUNDS), ratio);
	if (support_patience() == 1)
		cr_expect(ratio >= 5, "%.1f times", ratio);
	for (int i = 0; i < CLIENTS; i++)
		PQfinish(s.pg[i]);
	loop_thread_stop(l);
	test_pool_close(t);
	private_db_stop(db);
}
