/*
 * A network that fails between the pool and a real PostgreSQL: cut off in the midst of a query (in a network
 * namespace, so that nothing is acknowledged), reset, slow, or swallowing cancel links. The caller is free at once or
 * within the bound, the pool recovers, and PostgreSQL is left with nothing to run.
 */
#include <criterion/criterion.h>
#include <criterion/new/assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "pools.h"
#include "private_db.h"
#include "relay.h"
#include "support.h"

TestSuite(pg_network, .timeout = 120);

enum { SETTLE_MS = 500, SILENCE_MS = 2000 };

typedef struct stage {
	private_db *db;
	relay *relay;
	test_pool *t;
} stage;

/* false: there is no such network to be had here. */
static bool begin(stage *s, size_t size, int latency_ms, bool cut_off)
{
	char url[512];
	s->db = private_db_start(&(private_db_options){.tcp = true});
	cr_assert_not_null(s->db);
	const char *direct = private_db_tcp_url(s->db), *host = strchr(direct, '@') + 1;
	s->relay = relay_start(atoi(strchr(host, ':') + 1), latency_ms, cut_off);
	if (!s->relay) {
		private_db_stop(s->db);
		return false;
	}
	/* Silence is told from work in two seconds here; the pool's own defaults are 15 s, and 45 s for an idle link. */
	snprintf(url, sizeof(url),
	         "%.*s%s:%d%s?sslmode=disable&tcp_user_timeout=%d&keepalives_idle=1&keepalives_interval=1"
	         "&connect_timeout=2",
	         (int)(host - direct), direct, relay_host(s->relay), relay_port(s->relay),
	         strrchr(direct, '/'), SILENCE_MS);
	s->t = test_pool_open(
		size, &(pg_pool_options){.conninfo = url, .settle_timeout = SETTLE_MS * CTX_MILLISECOND});
	activity_close(s->t->watcher);
	s->t->watcher = activity_open(private_db_url(s->db));
	must_exec(s->t, "SELECT 1");
	return true;
}

static bool answers(void *arg)
{
	return pg_pool_ping(ctx_background(), ((stage *)arg)->t->pool, NULL);
}

/* The fault is over. The pool serves, and nothing of before runs any more. */
static void end(stage *s)
{
	cr_expect(eventually(answers, s, 10000), "the pool has not recovered");
	cr_expect(backends_become(s->t, "active", NULL, 0));
	cr_expect(pool_at_rest(s->t));
	test_pool_close(s->t);
	relay_stop(s->relay);
	private_db_stop(s->db);
}

static test_query *sleeping(stage *s)
{
	test_query *q = test_query_start(s->t, "SELECT pg_sleep(60)");
	cr_assert(backends_become(s->t, "active", "%pg_sleep%", 1));
	return q;
}

/* Waits for its end, and expects it of that kind within the time. */
static void expect_end(test_query *q, pg_error_kind kind, int64_t since, double most_ms)
{
	test_query_join(q);
	double ms = (double)(q->ended_at - since) / 1e6;
	cr_expect(eq(str, (char *)pg_error_kind_name(q->error.kind), (char *)pg_error_kind_name(kind)), "%s",
	          q->error.message);
	cr_expect(ms < most_ms * support_patience(), "after %.0f ms", ms);
	free(q);
}

/* Else PostgreSQL would look for a client whose machine is gone for the first time after two hours. */
Test(pg_network, the_server_looks_after_us_too)
{
	stage s;
	cr_assert(begin(&s, 1, 0, false));
	pg_rows *r = pg_query_row(ctx_background(), s.t->pool,
	                          "SELECT current_setting('tcp_keepalives_idle') || ' ' ||"
	                          " current_setting('tcp_keepalives_interval') || ' ' ||"
	                          " current_setting('tcp_keepalives_count')",
	                          PG_NO_PARAMS);
	cr_expect(eq(str, (char *)pg_rows_text(r, 0), "30 5 3"));
	pg_rows_close(r);
	end(&s);
}

/* ---- Cut off ------------------------------------------------------------------------------------------ */

/* Nobody's context ends: it is keep-alive and user timeout that find it out. */
Test(pg_network, a_query_that_is_cut_off_ends_when_the_silence_is_noticed)
{
	stage s;
	if (!begin(&s, 2, 0, true))
		return;
	test_query *q = sleeping(&s);
	int64_t cut = ctx_now();
	relay_cut(s.relay, true);
	expect_end(q, PG_ERROR_CONNECTION, cut, 3 * SILENCE_MS);
	/* Meanwhile nobody can connect, and is told so within the timeout of an attempt. */
	pg_error error;
	int64_t start = ctx_now();
	cr_expect_not(pg_pool_ping(ctx_background(), s.t->pool, &error));
	cr_expect(eq(str, (char *)pg_error_kind_name(error.kind), "connection"));
	cr_expect(ctx_now() - start < 5 * CTX_SECOND * support_patience());
	relay_cut(s.relay, false);
	end(&s);
}

/* The cancel link goes into the hole too. */
Test(pg_network, a_cancelled_query_that_is_cut_off_costs_the_caller_nothing)
{
	stage s;
	if (!begin(&s, 2, 0, true))
		return;
	test_query *q = sleeping(&s);
	relay_cut(s.relay, true);
	int64_t left = ctx_now();
	ctx_cancel(q->c);
	expect_end(q, PG_ERROR_CANCELED, left, 100);
	cr_assert(settled_become(s.t, 1));
	cr_expect(eq(int, s.t->kept, 0));
	cr_expect(s.t->settle_ns < (SETTLE_MS + 200) * CTX_MILLISECOND * support_patience(), "%.0f ms",
	          (double)s.t->settle_ns / 1e6);
	relay_cut(s.relay, false);
	end(&s);
}

/* ---- Reset -------------------------------------------------------------------------------------------- */

Test(pg_network, a_reset_ends_the_query_at_once)
{
	stage s;
	cr_assert(begin(&s, 2, 0, false));
	test_query *q = sleeping(&s);
	int64_t reset = ctx_now();
	relay_set(s.relay, RELAY_RESET);
	expect_end(q, PG_ERROR_CONNECTION, reset, 200);
	cr_expect_not(pg_pool_ping(ctx_background(), s.t->pool, NULL));
	relay_set(s.relay, RELAY_HEALTHY);
	end(&s);
}

/* The context's end comes first; what becomes of the connection is not the caller's business any more. */
Test(pg_network, a_reset_while_it_settles_closes_the_connection)
{
	stage s;
	cr_assert(begin(&s, 1, 0, false));
	test_query *q = sleeping(&s);
	relay_set(s.relay, RELAY_HOLD);
	int64_t left = ctx_now();
	ctx_cancel(q->c);
	expect_end(q, PG_ERROR_CANCELED, left, 100);
	relay_set(s.relay, RELAY_RESET);
	cr_assert(settled_become(s.t, 1));
	cr_expect(eq(int, s.t->kept, 0));
	relay_set(s.relay, RELAY_HEALTHY);
	end(&s);
}

/* ---- Cancel links that hang --------------------------------------------------------------------------- */

/* Closing the connection tells PostgreSQL as well: it looks for its client every second while it runs a query. */
Test(pg_network, a_cancel_link_that_hangs_costs_the_connection_and_leaves_no_query)
{
	stage s;
	cr_assert(begin(&s, 1, 0, false));
	test_query *q = sleeping(&s);
	relay_set(s.relay, RELAY_HOLD_NEW);
	int64_t left = ctx_now();
	ctx_cancel(q->c);
	expect_end(q, PG_ERROR_CANCELED, left, 100);
	cr_assert(settled_become(s.t, 1));
	cr_expect(eq(int, s.t->kept, 0));
	cr_expect(s.t->settle_ns < (SETTLE_MS + 200) * CTX_MILLISECOND * support_patience());
	cr_expect(backends_become(s.t, "active", NULL, 0));
	cr_expect(ctx_now() - left < (SETTLE_MS + 2000) * CTX_MILLISECOND * support_patience());
	relay_set(s.relay, RELAY_HEALTHY);
	end(&s);
}

/* ---- Latency ------------------------------------------------------------------------------------------ */

enum { LATENCY_MS = 50, CANCELS = 20 };

/*
 * 50 ms each way: requests are repeated while the first answer is still on its way, and arrive when the query has
 * ended. None may hit the query after it, which is sent the moment the connection is lent again.
 */
Test(pg_network, far_away_every_connection_is_kept_and_nobody_else_is_hit)
{
	stage s;
	cr_assert(begin(&s, 1, LATENCY_MS, false));
	must_exec(s.t, "SELECT pg_sleep(0.2)");
	for (int i = 0; i < CANCELS; i++) {
		ctx_auto *c = ctx_with_timeout(ctx_background(), (20 + i * 17) * CTX_MILLISECOND);
		pg_rows *r = pg_exec(c, s.t->pool, "SELECT pg_sleep(60)", PG_NO_PARAMS);
		cr_expect(eq(int, pg_rows_error(r)->kind, PG_ERROR_DEADLINE));
		pg_rows_close(r);
		/* Long enough to be hit by what is late by two round trips. */
		must_exec(s.t, "SELECT pg_sleep(0.2)");
	}
	cr_assert(settled_become(s.t, CANCELS));
	cr_expect(eq(int, s.t->kept, CANCELS));
	cr_expect(eq(u64, stats_of(s.t).connects, 1));
	fprintf(stderr, "at 50 ms each way: settled after %.0f ms, %.1f requests each\n",
	        (double)s.t->settle_ns / 1e6, (double)stats_of(s.t).cancels_sent / CANCELS);
	end(&s);
}
