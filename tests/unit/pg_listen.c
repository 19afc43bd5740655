/*
 * LISTEN and NOTIFY: nothing that was sent is missed in silence, and nothing of it is left on a connection that goes
 * back to the pool.
 */
#include <arpa/inet.h>
#include <criterion/criterion.h>
#include <criterion/new/assert.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "pg_stub.h"
#include "pools.h"
#include "process.h"
#include "support.h"

static test_pool *t;
static pg_conn *session;
static char channel[48]; /* of the test's own, in the one database that all tests share; to be quoted */

static void open_session(void)
{
	t = test_pool_open(1, NULL);
	session = pg_conn_acquire(ctx_background(), t->pool);
	snprintf(channel, sizeof(channel), "Job \"%d\"", (int)getpid());
}

static void close_session(void)
{
	pg_conn_release(session);
	test_pool_close(t);
}

TestSuite(pg_listen, .init = open_session, .fini = close_session, .timeout = 60);

static void listen_to(const char *name)
{
	pg_error error;
	cr_assert(pg_listen(ctx_background(), session, name, &error), "%s", error.message);
}

static void notify_on(const char *name, const char *payload)
{
	char sql[160];
	snprintf(sql, sizeof(sql), "SELECT pg_notify('%s', '%s')", name, payload);
	free(activity_sql(t->watcher, sql));
}

static void notify(const char *payload)
{
	notify_on(channel, payload);
}

static void expect_next(const char *payload)
{
	pg_notification n;
	pg_error error;
	cr_assert(pg_notification_next(ctx_background(), session, &n, &error), "%s", error.message);
	cr_expect(eq(str, (char *)n.channel, channel));
	cr_expect(eq(str, (char *)n.payload, (char *)payload));
	cr_expect(ge(int, n.backend, 1));
}

static void expect_failure(ctx *c, pg_error_kind kind)
{
	pg_notification n = {.channel = "untouched"};
	pg_error error;
	cr_expect_not(pg_notification_next(c, session, &n, &error));
	cr_expect(eq(int, error.kind, kind), "%s: %s", pg_error_kind_name(error.kind), error.message);
	cr_expect(eq(str, (char *)n.channel, "untouched"));
}

static int64_t ask(const char *sql)
{
	pg_rows_auto *r = pg_query_row(ctx_background(), session, sql, PG_NO_PARAMS);
	int64_t n = -1;
	pg_rows_int64(r, 0, &n);
	return n;
}

static const char channels[] = "SELECT count(*) FROM pg_listening_channels()";

/* ---- Hearing ------------------------------------------------------------------------------------------ */

TEST_BOTH_WAYS(pg_listen, hears_what_is_sent_while_nobody_waits_in_its_order)
{
	listen_to(channel);
	notify("one");
	notify("two");
	/* They may come in the midst of statements, too. */
	cr_expect(eq(i64, ask("SELECT 7"), 7));
	notify("");
	cr_expect(eq(i64, ask("SELECT 8"), 8));
	expect_next("one");
	expect_next("two");
	expect_next("");
}

static void *notify_late(void *arg)
{
	(void)arg;
	/* The session is seen idle only because its listener waits without a statement. */
	cr_expect(backends_become(t, "idle", "LISTEN%", 1));
	notify("late");
	return NULL;
}

TEST_BOTH_WAYS(pg_listen, waits_for_what_is_not_sent_yet)
{
	pthread_t notifier;
	listen_to(channel);
	pthread_create(&notifier, NULL, notify_late, NULL);
	expect_next("late");
	pthread_join(notifier, NULL);
}

Test(pg_listen, hears_itself)
{
	char sql[96];
	listen_to(channel);
	snprintf(sql, sizeof(sql), "SELECT pg_notify('%s', 'mine')", channel);
	pg_rows_close(pg_exec(ctx_background(), session, sql, PG_NO_PARAMS));
	pg_notification n;
	cr_assert(pg_notification_next(ctx_background(), session, &n, NULL));
	cr_expect(eq(i64, n.backend, backend_of(session)));
}

Test(pg_listen, hears_no_more_of_what_it_has_left)
{
	char other[] = "other";
	listen_to(channel);
	listen_to(other);
	cr_expect(eq(i64, ask(channels), 2));
	cr_expect(pg_unlisten(ctx_background(), session, other, NULL));
	cr_expect(eq(i64, ask(channels), 1));
	notify_on(other, "unheard");
	notify("heard");
	expect_next("heard");
}

/* ---- Contexts ----------------------------------------------------------------------------------------- */

TEST_BOTH_WAYS(pg_listen, the_contexts_end_stops_the_waiting_and_not_the_listening)
{
	listen_to(channel);
	for (int i = 0; i < 3; i++) {
		ctx_auto *c = ctx_with_timeout(ctx_background(), 10 * CTX_MILLISECOND);
		expect_failure(c, PG_ERROR_DEADLINE);
		expect_failure(c, PG_ERROR_DEADLINE);
	}
	cr_expect_null(pg_conn_error(session));
	notify("after all");
	expect_next("after all");
	cr_expect(eq(u64, stats_of(t).cancels, 0), "there was no query to cancel");
}

/* A statement is cancelled, and its connection settles: what is sent meanwhile is heard. */
Test(pg_listen, a_cancelled_statement_costs_no_notification)
{
	listen_to(channel);
	ctx_auto *c = ctx_with_timeout(ctx_background(), 30 * CTX_MILLISECOND);
	notify("before");
	pg_rows_close(pg_exec(c, session, "SELECT pg_sleep(60)", PG_NO_PARAMS));
	notify("after");
	expect_next("before");
	expect_next("after");
	cr_expect(eq(i64, ask(channels), 1));
}

/* ---- The connection's end ------------------------------------------------------------------------------- */

static void *terminate(void *arg)
{
	char sql[64];
	snprintf(sql, sizeof(sql), "SELECT pg_terminate_backend(%d)::int", *(int *)arg);
	cr_expect(backends_become(t, "idle", "LISTEN%", 1));
	free(activity_sql(t->watcher, sql));
	return NULL;
}

TEST_BOTH_WAYS(pg_listen, a_connection_that_breaks_is_told)
{
	pthread_t killer;
	int pid = (int)backend_of(session);
	listen_to(channel);
	pthread_create(&killer, NULL, terminate, &pid);
	expect_failure(ctx_background(), PG_ERROR_CONNECTION);
	pthread_join(killer, NULL);
	expect_failure(ctx_background(), PG_ERROR_CONNECTION);
	cr_assert_not_null(pg_conn_error(session));
	cr_expect(eq(int, pg_conn_error(session)->kind, PG_ERROR_CONNECTION));
	cr_expect(eq(u64, stats_of(t).lost, 1));
}

/* ---- Release ------------------------------------------------------------------------------------------ */

static void expect_clean_after_release(int64_t pid)
{
	pg_conn_release(session);
	session = pg_conn_acquire(ctx_background(), t->pool);
	cr_expect(eq(i64, backend_of(session), pid), "the connection is kept");
	cr_expect(eq(i64, ask(channels), 0));
	expect_failure(ctx_background(), PG_ERROR_USAGE);
}

TEST_BOTH_WAYS(pg_listen, a_release_ends_the_listening_and_keeps_the_connection)
{
	int64_t pid = backend_of(session);
	listen_to(channel);
	notify("never taken");
	expect_clean_after_release(pid);
}

/* LISTEN as a statement like any other, a prepared one even; on the pool it would be left behind on whatever connection. */
Test(pg_listen, a_listen_by_other_ways_is_ended_too)
{
	int64_t pid = backend_of(session);
	pg_rows_close(pg_exec(ctx_background(), session, "LISTEN by_hand", PG_NO_PARAMS));
	cr_expect(eq(i64, ask(channels), 1));
	expect_clean_after_release(pid);
	pg_conn_release(session);
	must_exec(t, "LISTEN on_the_pool");
	session = pg_conn_acquire(ctx_background(), t->pool);
	cr_expect(eq(i64, backend_of(session), pid));
	cr_expect(eq(i64, ask(channels), 0));
}

Test(pg_listen, a_release_in_the_midst_of_settling_or_of_a_transaction_ends_it_too)
{
	int64_t pid = backend_of(session);
	listen_to(channel);
	pg_rows_close(pg_exec(ctx_background(), session, "BEGIN", PG_NO_PARAMS));
	expect_clean_after_release(pid);
	listen_to(channel);
	ctx_auto *c = ctx_with_timeout(ctx_background(), 30 * CTX_MILLISECOND);
	pg_rows_close(pg_exec(c, session, "SELECT pg_sleep(60)", PG_NO_PARAMS));
	expect_clean_after_release(pid);
}

/* ---- What is refused ---------------------------------------------------------------------------------- */

Test(pg_listen, refuses_names_that_postgresql_would_cut)
{
	char name[65];
	pg_error error;
	memset(name, 'n', 64);
	name[64] = '\0';
	cr_expect_not(pg_listen(ctx_background(), session, name, &error));
	cr_expect(eq(int, error.kind, PG_ERROR_USAGE));
	cr_expect_not(pg_listen(ctx_background(), session, "", &error));
	cr_expect(eq(int, error.kind, PG_ERROR_USAGE));
	name[63] = '\0';
	cr_expect(pg_listen(ctx_background(), session, name, NULL));
	memset(name, '"', 63);
	cr_expect(pg_listen(ctx_background(), session, name, NULL));
	cr_expect(eq(i64, ask(channels), 2));
	cr_expect_null(pg_conn_error(session));
}

/* Who does not listen would wait for ever. */
Test(pg_listen, refuses_to_wait_where_nobody_listens)
{
	expect_failure(ctx_background(), PG_ERROR_USAGE);
	pg_rows *r = pg_query(ctx_background(), session, "SELECT generate_series(1, 100000)", PG_NO_PARAMS);
	pg_error error;
	cr_expect_not(pg_listen(ctx_background(), session, channel, &error));
	cr_expect(eq(int, error.kind, PG_ERROR_USAGE), "rows are open");
	pg_rows_close(r);
	listen_to(channel);
}

/* In transaction pooling the notifications would go to whoever has the server's connection then. */
Test(pg_listen, refuses_to_listen_through_a_pooler)
{
	pg_stub *stub = pg_stub_start(STUB_POOLER);
	test_pool *pooled = test_pool_open(1, &(pg_pool_options){.conninfo = pg_stub_conninfo(stub)});
	pg_conn *other = pg_conn_acquire(ctx_background(), pooled->pool);
	pg_error error;
	cr_expect_not(pg_listen(ctx_background(), other, channel, &error));
	cr_expect(eq(int, error.kind, PG_ERROR_USAGE));
	cr_expect_null(pg_conn_error(other));
	pg_conn_release(other);
	test_pool_close(pooled);
	pg_stub_stop(stub);
}

static void put_int(char *to, uint32_t value)
{
	value = htonl(value);
	memcpy(to, &value, sizeof(value));
}

/*
 * A notification, and behind it bytes that are no message: libpq gives the one and finds the connection broken by the other,
 * at once. The session knew nothing of that: it waited for the connection to come back, and wrote to its memory, which was
 * the pool's to free, when it was released.
 */
TEST_BOTH_WAYS(pg_listen, a_notification_that_comes_with_the_end_is_the_last)
{
	static const char tail[] = "x\0last"; /* channel, payload */
	char bytes[64] = {'A'}, *end = bytes + 1;
	pg_stub *stub = pg_stub_start(STUB_HEALTHY);
	test_pool *other = test_pool_open(1, &(pg_pool_options){.conninfo = pg_stub_conninfo(stub)});
	pg_conn *listener = pg_conn_acquire(ctx_background(), other->pool);
	ctx_auto *soon = ctx_with_timeout(ctx_background(), 10 * CTX_SECOND);
	pg_notification n = {.payload = "none"};
	pg_error error;
	cr_assert(pg_listen(soon, listener, "x", &error), "%s", error.message);
	put_int(end, 4 + 4 + sizeof(tail));
	put_int(end + 4, 1000);
	memcpy(end + 8, tail, sizeof(tail));
	end += 8 + sizeof(tail);
	memcpy(end, "A\0\0\0\0", 5);
	pg_stub_send(stub, bytes, (size_t)(end + 5 - bytes));
	cr_expect(pg_notification_next(soon, listener, &n, &error), "%s", error.message);
	cr_expect(eq(str, (char *)n.payload, "last"));
	cr_expect_not(pg_notification_next(soon, listener, &n, &error));
	cr_expect(eq(int, error.kind, PG_ERROR_CONNECTION), "%s", error.message);
	cr_expect(ne(ptr, (void *)pg_conn_error(listener), NULL));
	pg_conn_release(listener);
	test_pool_close(other);
	pg_stub_stop(stub);
}

/* ---- The example -------------------------------------------------------------------------------------- */

typedef struct expected_count {
	const char *sql;
	int64_t count;
} expected_count;

static bool is_count(void *arg)
{
	const expected_count *e = arg;
	return ask_number(t, e->sql) == e->count;
}

static bool backends_listen(const char *sql, int64_t n)
{
	return eventually(is_count, &(expected_count){sql, n}, 20000);
}

/* It is told of a lost connection, listens anew, and ends with Ctrl-C. */
Test(pg_listen, the_example_listens_on_after_a_lost_connection)
{
	char name[32], listening[64], sql[160];
	snprintf(name, sizeof(name), "example_%d", (int)getpid());
	snprintf(listening, sizeof(listening), "listening to %s", name);
	const char *argv[] = {support_built("examples/pg_listen"), name, NULL};
	char url[512];
	snprintf(url, sizeof(url), "DATABASE_URL=%s", support_database_url());
	process *p = process_start(argv, (const char *const[]){url, NULL});
	cr_assert_not_null(p);
	cr_assert(process_wait_for(p, listening, 20000));
	notify_on(name, "first");
	cr_expect(process_wait_for(p, ": first", 20000));
	snprintf(
		sql, sizeof(sql),
		"SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE query = 'LISTEN \"%s\"'",
		name);
	cr_expect(eq(i64, ask_number(t, sql), 1));
	cr_expect(process_wait_for(p, "connection: ", 20000));
	snprintf(sql, sizeof(sql), "SELECT count(*) FROM pg_stat_activity WHERE query = 'LISTEN \"%s\"'",
	         name);
	cr_expect(backends_listen(sql, 1));
	notify_on(name, "second");
	cr_expect(process_wait_for(p, ": second", 20000));
	process_signal(p, SIGINT);
	cr_expect(eq(int, process_wait(p, 20000), 0));
	process_stop(p);
}
