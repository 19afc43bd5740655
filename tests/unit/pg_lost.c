/*
 * Connections that are lost, and those that cannot be made: who is told, what is tried again, and when.
 */
#include <criterion/criterion.h>
#include <criterion/new/assert.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "pools.h"
#include "support.h"
#include "together.h"

enum { BOUND_MS = 20000 };

TestSuite(pg_lost, .timeout = 60);

/* ---- Broken connections ------------------------------------------------------------------------------- */

static bool has_lost_one(void *arg)
{
	return stats_of(arg).lost == 1 && stats_of(arg).open == 0;
}

TEST_BOTH_WAYS(pg_lost, an_idle_connection_that_the_server_ends_is_noticed_at_once)
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
TEST_BOTH_WAYS(pg_lost, a_connection_that_breaks_during_a_query_is_told_and_replaced)
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

TEST_BOTH_WAYS(pg_lost, tells_at_once_that_there_is_no_server_and_does_not_insist)
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

typedef struct callers {
	test_pool *t;
	_Atomic(int) failed;
} callers;

static void exec_on_thread(void *arg, int index)
{
	callers *all = arg;
	(void)index;
	pg_rows_auto *r = pg_exec(ctx_background(), all->t->pool, "SELECT 1", PG_NO_PARAMS);
	all->failed += pg_rows_error(r) && pg_rows_error(r)->kind == PG_ERROR_CONNECTION;
}

Test(pg_lost, one_failed_attempt_tells_all_who_wait)
{
	callers all = {.t = test_pool_open(1, &(pg_pool_options){.conninfo = "host=/nonexistent"})};
	together(20, exec_on_thread, &all);
	cr_expect(eq(int, all.failed, 20));
	cr_expect(le(u64, stats_of(all.t).connect_failures, 3));
	test_pool_close(all.t);
}

/* A server that takes connections and says nothing. */
typedef struct silence {
	int socket;
	char conninfo[64];
} silence;

static silence silence_listen(void)
{
	struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
	socklen_t size = sizeof(address);
	silence s = {.socket = socket(AF_INET, SOCK_STREAM, 0)};
	cr_assert(bind(s.socket, (struct sockaddr *)&address, size) == 0 && listen(s.socket, 8) == 0);
	getsockname(s.socket, (struct sockaddr *)&address, &size);
	snprintf(s.conninfo, sizeof(s.conninfo), "host=127.0.0.1 port=%d", ntohs(address.sin_port));
	return s;
}

static void expect_no_session(ctx *c, test_pool *t, const char *kind)
{
	pg_conn *session = pg_conn_acquire(c, t->pool);
	cr_expect(eq(str, (char *)kind_of(pg_conn_error(session)), (char *)kind));
	pg_conn_release(session);
}

/* The caller's context ends its wait, and the close does not wait. */
Test(pg_lost, a_server_that_says_nothing_holds_up_neither_caller_nor_close)
{
	silence s = silence_listen();
	int64_t start = now_ms();
	test_pool *t = test_pool_open(1, &(pg_pool_options){.conninfo = s.conninfo});
	ctx_auto *c = ctx_with_timeout(ctx_background(), 100 * CTX_MILLISECOND);
	expect_no_session(c, t, "deadline");
	cr_expect(eq(sz, stats_of(t).connecting, 1));
	test_pool_close(t);
	cr_expect(now_ms() - start < 2000 * support_patience());
	close(s.socket);
}

Test(pg_lost, an_attempt_to_connect_is_bounded)
{
	silence s = silence_listen();
	test_pool *t = test_pool_open(
		1, &(pg_pool_options){.conninfo = s.conninfo, .connect_timeout = 200 * CTX_MILLISECOND});
	int64_t start = now_ms();
	expect_no_session(ctx_background(), t, "connection");
	cr_expect(now_ms() - start < 2000 * support_patience());
	test_pool_close(t);
	close(s.socket);
}
