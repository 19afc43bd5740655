/*
 * More than one server: a primary and its streaming standby. Several hosts in one conninfo, directly and through
 * HAProxy; the primary killed and the standby promoted under load; a pool for writing and one for reading.
 */
#include <arpa/inet.h>
#include <criterion/criterion.h>
#include <criterion/new/assert.h>
#include <libpq-fe.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "haproxy.h"
#include "pools.h"
#include "private_db.h"
#include "support.h"

TestSuite(pg_failover, .timeout = 180);

typedef struct pair {
	private_db *primary, *standby;
} pair;

static pair pair_start(void)
{
	pair p = {.primary = private_db_start(&(private_db_options){.tcp = true})};
	cr_assert_not_null(p.primary);
	p.standby = private_db_start(&(private_db_options){.tcp = true, .standby_of = p.primary});
	cr_assert_not_null(p.standby);
	return p;
}

static void pair_stop(pair *p)
{
	private_db_stop(p->standby);
	private_db_stop(p->primary);
}

/* Both servers of a URL each, "postgresql://user:password@host:port/database", in one; `more` begins with "?". */
static void both_hosts(char *url, size_t size, const char *first, const char *second, const char *more)
{
	const char *second_host = strchr(second, '@') + 1;
	const char *first_database = strrchr(first, '/');
	snprintf(url, size, "%.*s,%.*s%s%s", (int)(first_database - first), first,
	         (int)strcspn(second_host, "/"), second_host, first_database, more);
}

static int number_from(const char *url, const char *sql)
{
	activity *a = activity_open(url);
	char *text = a ? activity_sql(a, sql) : NULL;
	int n = text ? (int)strtol(text, NULL, 10) : -1;
	free(text);
	activity_close(a);
	return n;
}

/* ---- Failover under load ------------------------------------------------------------------------------ */

enum { WRITERS = 8 };

typedef struct writing {
	test_pool *t;
	_Atomic(bool) stop;
	_Atomic(int) next, told_ok, told_broken, told_otherwise;
} writing;

/* Inserts numbers, each of them once, whatever comes of it. */
static void keep_writing(void *arg)
{
	writing *w = arg;
	while (!w->stop) {
		char number[16];
		ctx_auto *c = ctx_with_timeout(ctx_background(), 20 * CTX_SECOND);
		snprintf(number, sizeof(number), "%d", ++w->next);
		pg_rows *r =
			pg_exec(c, w->t->pool, "INSERT INTO written VALUES ($1::int)", PG_PARAMS(number));
		const pg_error *error = pg_rows_error(r);
		if (!error) {
			w->told_ok++;
		} else if (error->kind == PG_ERROR_CONNECTION) {
			w->told_broken++;
		} else {
			w->told_otherwise++;
			fprintf(stderr, "%s: %s\n", pg_error_kind_name(error->kind), error->message);
		}
		pg_rows_close(r);
		wait_sleep(ctx_background(), 2 * CTX_MILLISECOND);
	}
}

typedef struct growth {
	_Atomic(int) *count;
	int to;
} growth;

static bool has_grown(void *arg)
{
	return *((growth *)arg)->count >= ((growth *)arg)->to;
}

static bool grows(_Atomic(int) *count, int by, int timeout_ms)
{
	return eventually(has_grown, &(growth){count, *count + by}, timeout_ms);
}

static bool standby_is_in_step(void *arg)
{
	return number_from(private_db_url(arg), "SELECT count(*) FROM pg_stat_replication"
	                                        " WHERE sync_state = 'sync'") == 1;
}

/* From now on a confirmed commit is on the standby too, and is not lost with the primary. */
static void commit_on_both(private_db *primary)
{
	activity *a = activity_open(private_db_url(primary));
	free(activity_sql(a, "ALTER SYSTEM SET synchronous_standby_names = '*'"));
	free(activity_sql(a, "SELECT pg_reload_conf()"));
	activity_close(a);
	cr_assert(eventually(standby_is_in_step, primary, 20000));
}

/* Kills the primary in the midst of the load, promotes the standby. */
static void survive_failover(pair *p, const char *conninfo)
{
	number_from(private_db_url(p->primary), "CREATE TABLE written (number int)");
	commit_on_both(p->primary);
	writing w = {.t = test_pool_open(4, &(pg_pool_options){.conninfo = conninfo})};
	loop_thread *worker = loop_thread_start(NULL);
	for (int i = 0; i < WRITERS; i++)
		loop_spawn(loop_thread_loop(worker), keep_writing, &w);
	cr_assert(grows(&w.told_ok, 200, 20000));
	cr_expect(eq(int, w.told_broken, 0));
	cr_assert(private_db_halt(p->primary, true));
	cr_expect(grows(&w.told_broken, 50, 20000), "while there is no primary all are told so at once");
	cr_assert(private_db_promote(p->standby));
	int64_t promoted = now_ms();
	cr_assert(grows(&w.told_ok, 1, 20000), "the pool finds the new primary by itself");
	int64_t found = now_ms() - promoted;
	cr_expect(found < 4000 * support_patience(), "after %d ms", (int)found);
	int broken = w.told_broken;
	cr_assert(grows(&w.told_ok, 200, 20000));
	cr_expect(le(int, w.told_broken - broken, 2 * WRITERS), "and then all is well");
	w.stop = true;
	loop_thread_stop(worker);
	test_pool_close(w.t);
	fprintf(stderr,
	        "failover: %d written, %d told broken; %d ms from the promotion to the first success\n",
	        w.told_ok, w.told_broken, (int)found);
	cr_expect(eq(int, w.told_otherwise, 0));
	const char *now = private_db_url(p->standby);
	cr_expect(eq(int, number_from(now, "SELECT count(*) - count(DISTINCT number) FROM written"), 0),
	          "no statement ran twice");
	cr_expect(ge(int, number_from(now, "SELECT count(*) FROM written"), w.told_ok),
	          "what was confirmed is there");
}

Test(pg_failover, is_survived_with_both_hosts_named)
{
	char url[512];
	pair p = pair_start();
	both_hosts(url, sizeof(url), private_db_tcp_url(p.primary), private_db_tcp_url(p.standby),
	           "?target_session_attrs=read-write");
	survive_failover(&p, url);
	pair_stop(&p);
}

Test(pg_failover, is_survived_behind_haproxy)
{
	char url[512];
	if (!haproxy_is_there())
		return;
	pair p = pair_start();
	haproxy *h = haproxy_start(private_db_tcp_url(p.primary), private_db_tcp_url(p.standby), false);
	/* Until it is promoted the standby takes connections too, and they are of no use. */
	snprintf(url, sizeof(url), "%s?target_session_attrs=read-write", haproxy_url(h));
	survive_failover(&p, url);
	haproxy_stop(h);
	pair_stop(&p);
}

/* ---- Reading from standbys ---------------------------------------------------------------------------- */

static int64_t is_standby(test_pool *t)
{
	int64_t answer = -1;
	pg_rows_auto *r =
		pg_query_row(ctx_background(), t->pool, "SELECT pg_is_in_recovery()::int", PG_NO_PARAMS);
	pg_rows_int64(r, 0, &answer);
	return answer;
}

static bool reads_from_primary(void *arg)
{
	return is_standby(arg) == 0;
}

Test(pg_failover, a_pool_for_reading_prefers_the_standby)
{
	char url[512];
	pair p = pair_start();
	both_hosts(url, sizeof(url), private_db_tcp_url(p.primary), private_db_tcp_url(p.standby),
	           "?target_session_attrs=read-write");
	test_pool *writer = test_pool_open(2, &(pg_pool_options){.conninfo = url});
	both_hosts(url, sizeof(url), private_db_tcp_url(p.primary), private_db_tcp_url(p.standby),
	           "?target_session_attrs=prefer-standby");
	test_pool *reader = test_pool_open(2, &(pg_pool_options){.conninfo = url});
	cr_expect(eq(i64, is_standby(writer), 0));
	cr_expect(eq(i64, is_standby(reader), 1));
	cr_assert(private_db_halt(p.standby, true));
	cr_expect(eventually(reads_from_primary, reader, 10000), "without a standby the primary will do");
	cr_expect(eq(i64, is_standby(writer), 0));
	test_pool_close(reader);
	test_pool_close(writer);
	pair_stop(&p);
}

enum { READERS = 20 };

/* Twenty that toss a coin each do not all get the same side. */
Test(pg_failover, connections_spread_over_the_hosts)
{
	if (PQlibVersion() < 160000) {
		fprintf(stderr, "skipped: libpq before 16 has no load_balance_hosts\n");
		return;
	}
	char url[512];
	pair p = pair_start();
	both_hosts(url, sizeof(url), private_db_tcp_url(p.primary), private_db_tcp_url(p.standby),
	           "?load_balance_hosts=random");
	test_pool *t = test_pool_open(READERS, &(pg_pool_options){.conninfo = url});
	pg_conn *each[READERS];
	for (int i = 0; i < READERS; i++)
		each[i] = pg_conn_acquire(ctx_background(), t->pool);
	char sql[128];
	snprintf(sql, sizeof(sql), "SELECT count(*) FROM pg_stat_activity WHERE application_name = '%s'",
	         t->application);
	int on_primary = number_from(private_db_url(p.primary), sql);
	cr_expect(on_primary > 0 && on_primary < READERS, "%d of %d", on_primary, READERS);
	cr_expect(eq(int, number_from(private_db_url(p.standby), sql), READERS - on_primary));
	for (int i = 0; i < READERS; i++)
		pg_conn_release(each[i]);
	test_pool_close(t);
	pair_stop(&p);
}

enum { SLEEPERS = 8 };

/*
 * Connections go to both servers in turn, and so do cancel links: every other one reaches the server that knows
 * nothing of its process, and is ignored there. The request is repeated, so it arrives; and process numbers,
 * which may be the same on both, are never sent to the other server in a batch.
 */
Test(pg_failover, cancels_behind_haproxy_reach_the_right_server)
{
	if (!haproxy_is_there())
		return;
	pair p = pair_start();
	haproxy *h = haproxy_start(private_db_tcp_url(p.primary), private_db_tcp_url(p.standby), true);
	test_pool *t = test_pool_open(SLEEPERS, &(pg_pool_options){.conninfo = haproxy_url(h)});
	activity *servers[2] = {activity_open(private_db_url(p.primary)),
	                        activity_open(private_db_url(p.standby))};
	activity_of sleeping = {.application = t->application, .query = "%pg_sleep%", .state = "active"};
	for (int round = 0; round < 5; round++) {
		test_query *q[SLEEPERS];
		for (int i = 0; i < SLEEPERS; i++)
			q[i] = test_query_start(t, "SELECT pg_sleep(60)");
		cr_assert(activity_becomes(servers[0], sleeping, SLEEPERS / 2, 20000));
		cr_assert(activity_becomes(servers[1], sleeping, SLEEPERS / 2, 20000));
		/* One of each pair goes; the others, on the same servers, must sleep on. */
		for (int i = 0; i < SLEEPERS / 2; i++)
			ctx_cancel(q[i]->c);
		cr_assert(settled_become(t, round * SLEEPERS + SLEEPERS / 2));
		cr_expect(eq(int, activity_count(servers[0], sleeping) + activity_count(servers[1], sleeping),
		             SLEEPERS / 2));
		for (int i = SLEEPERS / 2; i < SLEEPERS; i++)
			ctx_cancel(q[i]->c);
		cr_assert(settled_become(t, (round + 1) * SLEEPERS));
		for (int i = 0; i < SLEEPERS; i++) {
			test_query_join(q[i]);
			cr_expect(eq(int, q[i]->error.kind, PG_ERROR_CANCELED));
			free(q[i]);
		}
	}
	cr_expect(eq(int, t->kept, 5 * SLEEPERS));
	cr_expect(eq(u64, stats_of(t).connects, SLEEPERS));
	activity_close(servers[0]);
	activity_close(servers[1]);
	test_pool_close(t);
	haproxy_stop(h);
	pair_stop(&p);
}

/* ---- Hosts that say nothing ----------------------------------------------------------------------------- */

/* Takes connections, in the kernel, and says nothing. */
static int silent_server(int *port)
{
	struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
	socklen_t size = sizeof(address);
	int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	cr_assert(bind(fd, (struct sockaddr *)&address, size) == 0 && listen(fd, 64) == 0);
	cr_assert(getsockname(fd, (struct sockaddr *)&address, &size) == 0);
	*port = ntohs(address.sin_port);
	return fd;
}

typedef struct patience {
	test_pool *t;
	bool over;
	int64_t longest_turn;
} patience;

static void count_turns(void *arg)
{
	patience *p = arg;
	int64_t before = ctx_now();
	while (!p->over) {
		wait_sleep(ctx_background(), CTX_MILLISECOND);
		int64_t now = ctx_now();
		p->longest_turn = now - before > p->longest_turn ? now - before : p->longest_turn;
		before = now;
	}
}

static void connect_past_the_silent(void *arg)
{
	patience *p = arg;
	loop_spawn(loop_current(), count_turns, p);
	pg_error error;
	cr_expect(pg_pool_ping(ctx_background(), p->t->pool, &error), "%s", error.message);
	p->over = true;
}

/*
 * The timeout is for each host: three that say nothing do not use up the time of the fourth. They get the least that
 * libpq gives, a second each, and two before libpq 17. The loop goes on all the while.
 */
Test(pg_failover, a_silent_host_costs_its_timeout_and_no_more)
{
	int port;
	char url[512], user[256];
	int silent = silent_server(&port);
	private_db *db = private_db_start(&(private_db_options){.tcp = true});
	const char *good = strchr(private_db_tcp_url(db), '@') + 1;
	snprintf(user, sizeof(user), "%.*s", (int)(good - private_db_tcp_url(db)), private_db_tcp_url(db));
	snprintf(url, sizeof(url), "%s127.0.0.1:%d,127.0.0.1:%d,127.0.0.1:%d,%s?sslmode=disable", user, port,
	         port, port, good);
	patience p = {.t = test_pool_open(2, &(pg_pool_options){.conninfo = url,
	                                                        .connect_timeout = 200 * CTX_MILLISECOND})};
	int64_t start = now_ms();
	in_fiber(connect_past_the_silent, &p);
	double took = (double)(now_ms() - start);
	cr_expect(took >= 2500 && took < 8000 * support_patience(), "it took %.0f ms", took);
	cr_expect(p.longest_turn < 500 * CTX_MILLISECOND * support_patience(), "the loop stood for %.0f ms",
	          (double)p.longest_turn / 1e6);
	test_pool_close(p.t);
	private_db_stop(db);
	close(silent);
}
