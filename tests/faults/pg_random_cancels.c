/*
 * Cancels at random moments: before a connection is there, in the queue, while one is being made, right after
 * the sending, in the midst of rows, just before the end, during COMMIT, by deadline and by hand, with some
 * connections broken in between. Eight workers, half of them fibers of two loops and half threads, over a pool
 * of four.
 *
 * What must hold: nobody's query is cancelled but by its own context; every answer is the right one; a commit
 * that was confirmed has happened and one that was refused has not; never more connections than four; each
 * query that was said to be settling has settled, its connection kept unless a broken link made it unsure; and
 * in the end files, backends and the pool are as they were.
 *
 * 2 000 cancels of queries in flight, and some more of others, for each way to the server; TETHER_CANCELS sets
 * another number (`make stress`: 100 000).
 */
#include <criterion/criterion.h>
#include <criterion/new/assert.h>
#ifdef __GLIBC__
#include <malloc.h>
#endif
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "pgbouncer.h"
#include "pools.h"
#include "private_db.h"
#include "support.h"

enum { WORKERS = 8, POOL = 4, CANCELS = 2000 };

typedef struct chaos {
	test_pool *t;
	int cancels_wanted;
	bool prepared; /* sessions are ours: temporary state works, backends can be told apart */
	_Atomic(int) canceled, wrong, settling, innocent, unknown, committed;
	_Atomic(bool) stop;
} chaos;

typedef struct worker {
	chaos *chaos;
	uint32_t seed;
	int number, transactions;
	_Atomic(bool) over;
} worker;

/* xorshift */
static uint32_t below(worker *w, uint32_t n)
{
	w->seed ^= w->seed << 13;
	w->seed ^= w->seed >> 17;
	w->seed ^= w->seed << 5;
	return w->seed % n;
}

/* Between nothing and `most` microseconds; every tenth is over before it begins. */
static ctx *random_ctx(worker *w, uint32_t most)
{
	return ctx_with_timeout(ctx_background(), below(w, 10) == 0 ? 0 : (int64_t)below(w, most) * 1000);
}

static void wrong(worker *w, const char *what, const pg_error *error)
{
	w->chaos->wrong++;
	fprintf(stderr, "%s: %s: %s\n", what, error ? pg_error_kind_name(error->kind) : "no error",
	        error ? error->message : "");
}

/* A connection that another worker has had terminated under us, or that we could not replace just now. */
static bool is_broken_link(const pg_error *error)
{
	return error->kind == PG_ERROR_CONNECTION;
}

/* Notes the outcome of something under c. An error must be c's own, and c must be done. */
static void judge(worker *w, const char *what, const ctx *c, const pg_error *error)
{
	if (!error)
		return;
	w->chaos->settling += error->settling;
	if ((error->kind == PG_ERROR_CANCELED || error->kind == PG_ERROR_DEADLINE) && ctx_err(c) &&
	    error->cause == ctx_cause(c))
		w->chaos->canceled++;
	else if (!is_broken_link(error))
		wrong(w, what, error);
}

static void innocent(worker *w)
{
	char token[16];
	int64_t answer = -1;
	snprintf(token, sizeof(token), "%u", below(w, 1000000));
	pg_rows *r = pg_query_row(ctx_background(), w->chaos->t->pool, "SELECT $1::int, pg_sleep(0.0003)",
	                          PG_PARAMS(token));
	if (pg_rows_error(r) && !is_broken_link(pg_rows_error(r)))
		wrong(w, "innocent", pg_rows_error(r));
	else if (!pg_rows_error(r) && (!pg_rows_int64(r, 0, &answer) || answer != strtoll(token, NULL, 10)))
		wrong(w, "an answer to somebody else", NULL);
	w->chaos->innocent++;
	pg_rows_close(r);
}

static void row_under_deadline(worker *w)
{
	char token[16];
	int64_t answer = -1;
	ctx_auto *c = random_ctx(w, 6000);
	snprintf(token, sizeof(token), "%u", below(w, 1000000));
	pg_rows *r = pg_query_row(c, w->chaos->t->pool, "SELECT $1::int, pg_sleep(0.001)", PG_PARAMS(token));
	judge(w, "row", c, pg_rows_error(r));
	if (!pg_rows_error(r) && (!pg_rows_int64(r, 0, &answer) || answer != strtoll(token, NULL, 10)))
		wrong(w, "a row of somebody else", NULL);
	pg_rows_close(r);
}

static void long_query(worker *w)
{
	ctx_auto *c = random_ctx(w, 6000);
	pg_rows *r = pg_exec(c, w->chaos->t->pool, "SELECT pg_sleep(30)", PG_NO_PARAMS);
	judge(w, "long", c, pg_rows_error(r));
	if (!pg_rows_error(r))
		wrong(w, "a query that cannot have ended", NULL);
	pg_rows_close(r);
}

static void stream(worker *w)
{
	ctx_auto *c = random_ctx(w, 12000);
	pg_rows *r =
		pg_query(c, w->chaos->t->pool, "SELECT i FROM generate_series(1, 20000) i", PG_NO_PARAMS);
	uint32_t leave_after = below(w, 3) ? UINT32_MAX : below(w, 20000);
	uint32_t cancel_after = below(w, 3) ? UINT32_MAX : below(w, 20000);
	uint32_t n = 0;
	int64_t i = 0;
	while (n < leave_after && pg_rows_next(r)) {
		if (!pg_rows_int64(r, 0, &i) || i != ++n)
			wrong(w, "a row out of order", NULL);
		if (n == cancel_after)
			ctx_cancel(c);
	}
	if (n != leave_after && !pg_rows_error(r) && n != 20000)
		wrong(w, "rows are missing", NULL);
	judge(w, "stream", c, pg_rows_error(r));
	pg_rows_close(r);
}

static void transaction(worker *w)
{
	char worker_id[16], number[16];
	ctx_auto *c = random_ctx(w, 6000);
	snprintf(worker_id, sizeof(worker_id), "%d", w->number);
	snprintf(number, sizeof(number), "%d", w->transactions);
	pg_tx *tx = pg_begin(c, w->chaos->t->pool, NULL);
	pg_rows *r = pg_exec(c, tx, "INSERT INTO chaos VALUES ($1::int, $2::int, 'open')",
	                     PG_PARAMS(worker_id, number));
	bool inserted = !pg_rows_error(r);
	judge(w, "insert", c, pg_rows_error(r));
	pg_rows_close(r);
	bool committed = inserted && pg_commit(tx);
	const pg_error *error = pg_tx_error(tx);
	bool unknown = error && error->kind == PG_ERROR_UNKNOWN;
	if (inserted && !unknown)
		judge(w, "commit", c, error);
	if (unknown) {
		w->chaos->settling += error->settling;
		w->chaos->canceled += error->cause != NULL;
	}
	pg_rollback(tx);
	w->chaos->unknown += unknown;
	w->chaos->committed += committed;
	/* What was told is written down, for the count at the end. */
	do
		r = pg_exec(ctx_background(), w->chaos->t->pool,
		            "INSERT INTO told VALUES ($1::int, $2::int, $3)",
		            PG_PARAMS(worker_id, number,
		                      committed ? "yes"
		                      : unknown ? "unknown"
		                                : "no"));
	while (pg_rows_error(r) && is_broken_link(pg_rows_error(r)) && (pg_rows_close(r), true));
	if (pg_rows_error(r))
		wrong(w, "told", pg_rows_error(r));
	pg_rows_close(r);
	w->transactions++;
}

static void pinned(worker *w)
{
	ctx_auto *c = random_ctx(w, 6000);
	int64_t answer = 0;
	pg_conn *session = pg_conn_acquire(ctx_background(), w->chaos->t->pool);
	pg_rows *r = pg_exec(c, session, "SELECT pg_sleep(0.001)", PG_NO_PARAMS);
	judge(w, "pinned", c, pg_rows_error(r));
	pg_rows_close(r);
	if (below(w, 2)) {
		r = pg_query_row(ctx_background(), session, "SELECT 42", PG_NO_PARAMS);
		if (pg_rows_error(r) && !is_broken_link(pg_rows_error(r)) && !pg_conn_error(session))
			wrong(w, "pinned, after it has settled", pg_rows_error(r));
		else if (!pg_rows_error(r) && (!pg_rows_int64(r, 0, &answer) || answer != 42))
			wrong(w, "pinned, another's answer", NULL);
		pg_rows_close(r);
	}
	pg_conn_release(session);
}

static void break_a_connection(worker *w)
{
	if (below(w, 40) == 0)
		pg_rows_close(pg_exec(ctx_background(), w->chaos->t->pool,
		                      "SELECT pg_terminate_backend(pg_backend_pid())", PG_NO_PARAMS));
}

static void work(void *arg)
{
	static void (*const deeds[])(worker *) = {
		innocent, row_under_deadline, row_under_deadline, long_query, stream, transaction,
		pinned,   break_a_connection,
	};
	worker *w = arg;
	while (w->chaos->t->settled < w->chaos->cancels_wanted)
		deeds[below(w, sizeof(deeds) / sizeof(deeds[0]))](w);
	w->over = true;
}

static void *work_on_thread(void *arg)
{
	work(arg);
	return NULL;
}

/* What is allocated, where that can be asked. TLS keeps some 300 KiB for itself. */
static long allocated(void)
{
#ifdef __GLIBC__
	return (long)mallinfo2().uordblks;
#else
	return 0;
#endif
}

static void *watch_size(void *arg)
{
	chaos *c = arg;
	while (!c->stop) {
		if (stats_of(c->t).open > POOL)
			c->wrong++;
		poll(NULL, 0, 1);
	}
	return NULL;
}

static void run_workers(chaos *c)
{
	worker workers[WORKERS];
	pthread_t threads[WORKERS], watcher;
	loop_thread *loops[2] = {loop_thread_start(NULL), loop_thread_start(NULL)};
	pthread_create(&watcher, NULL, watch_size, c);
	for (int i = 0; i < WORKERS; i++) {
		workers[i] = (worker){.chaos = c, .seed = (uint32_t)(i + 1) * 2654435761u, .number = i};
		if (i % 2)
			pthread_create(&threads[i], NULL, work_on_thread, &workers[i]);
		else
			loop_spawn(loop_thread_loop(loops[i / 2 % 2]), work, &workers[i]);
	}
	for (int i = 1; i < WORKERS; i += 2)
		pthread_join(threads[i], NULL);
	loop_thread_stop(loops[0]);
	loop_thread_stop(loops[1]);
	c->stop = true;
	pthread_join(watcher, NULL);
}

static int number_from(activity *a, const char *sql)
{
	char *text = activity_sql(a, sql);
	int n = text ? (int)strtol(text, NULL, 10) : -1;
	free(text);
	return n;
}

/* `server`: where PostgreSQL itself is; `conninfo`: how the pool gets there. */
static void run_chaos(const char *server, const char *conninfo, pg_statements statements)
{
	const char *wanted = getenv("TETHER_CANCELS");
	activity *direct = activity_open(server);
	free(activity_sql(direct, "CREATE TABLE chaos (worker int, number int, note text)"));
	free(activity_sql(direct, "CREATE TABLE told (worker int, number int, outcome text)"));
	int files = support_open_files();
	long bytes = allocated();
	chaos c = {.cancels_wanted = wanted ? atoi(wanted) : CANCELS};
	c.t = test_pool_open(POOL, &(pg_pool_options){.conninfo = conninfo, .statements = statements});
	run_workers(&c);
	cr_expect(pool_at_rest(c.t));
	pg_pool_stats stats = stats_of(c.t);
	fprintf(stderr, "%d files, %ld bytes allocated before; ", files, bytes);
	fprintf(stderr,
	        "%d cancelled, %d innocent, %d commits, %d unknown; %llu connects, %llu lost, %llu settled: "
	        "%llu kept, "
	        "%llu closed; %llu requests, %llu batches\n",
	        c.canceled, c.innocent, c.committed, c.unknown, (unsigned long long)stats.connects,
	        (unsigned long long)stats.lost, (unsigned long long)stats.cancels,
	        (unsigned long long)stats.settled_kept, (unsigned long long)stats.settled_closed,
	        (unsigned long long)stats.cancels_sent, (unsigned long long)stats.cancel_batches);

	cr_expect(eq(int, c.wrong, 0));
	/* Whose rows were closed without a look was not told; so at least as many. */
	cr_expect(ge(int, c.t->settled, c.settling));
	cr_expect(eq(u64, (uint64_t)c.t->settled, stats.cancels));
	cr_expect(eq(u64, stats.settled_kept + stats.settled_closed, stats.cancels));
	cr_expect(le(u64, stats.settled_closed, stats.lost + stats.cancels / 100),
	          "closed only where unsure");
	cr_expect(eq(int,
	             number_from(direct, "SELECT count(*) FROM told LEFT JOIN chaos USING (worker, number)"
	                                 " WHERE outcome = 'yes' AND note IS NULL"),
	             0),
	          "a commit that was confirmed is there");
	cr_expect(eq(int,
	             number_from(direct, "SELECT count(*) FROM told JOIN chaos USING (worker, number)"
	                                 " WHERE outcome = 'no'"),
	             0),
	          "one that was not is not");
	test_pool_close(c.t);
	fprintf(stderr, "after it: %d files, %ld bytes\n", support_open_files(), allocated());
	cr_expect(le(int, support_open_files(), files + WORKERS),
	          "threads keep an eventfd each until they end");
	cr_expect(allocated() - bytes < 1024 * 1024, "%ld bytes more are allocated than before",
	          allocated() - bytes);
	cr_expect(activity_becomes(direct, (activity_of){.state = "active", .query = "%pg_sleep%"}, 0, 5000));
	activity_close(direct);
}

Test(pg_random_cancels, direct, .timeout = 3600)
{
	private_db *db = private_db_start(NULL);
	run_chaos(private_db_url(db), private_db_url(db), PG_STATEMENTS_AUTO);
	private_db_stop(db);
}

Test(pg_random_cancels, over_tls, .timeout = 3600)
{
	char conninfo[256];
	private_db *db = private_db_start(&(private_db_options){.tcp = true, .tls = true});
	snprintf(conninfo, sizeof(conninfo), "%s?sslmode=require", private_db_tcp_url(db));
	run_chaos(private_db_url(db), conninfo, PG_STATEMENTS_AUTO);
	private_db_stop(db);
}

Test(pg_random_cancels, through_pgbouncer, .timeout = 3600)
{
	private_db *db = private_db_start(&(private_db_options){.tcp = true});
	pgbouncer *bouncer = pgbouncer_start(private_db_tcp_url(db));
	run_chaos(private_db_url(db), pgbouncer_url(bouncer), PG_STATEMENTS_AUTO);
	pgbouncer_stop(bouncer);
	private_db_stop(db);
}

Test(pg_random_cancels, through_pgbouncer_with_prepared_statements, .timeout = 3600)
{
	if (!pgbouncer_knows_statements()) {
		fprintf(stderr, "skipped: PgBouncer before 1.21 keeps no track of prepared statements\n");
		return;
	}
	private_db *db = private_db_start(&(private_db_options){.tcp = true});
	pgbouncer *bouncer = pgbouncer_start_with(private_db_tcp_url(db), "max_prepared_statements = 100\n");
	run_chaos(private_db_url(db), pgbouncer_url(bouncer), PG_STATEMENTS_PREPARED);
	pgbouncer_stop(bouncer);
	private_db_stop(db);
}
