/*
 * A client that leaves takes its query with it: by any way of leaving, at any stage of its request, and without
 * costing the connection. Against the real albumd, watching pg_stat_activity.
 */
#include <criterion/criterion.h>
#include <criterion/new/assert.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>

#include "client.h"
#include "leaving.h"
#include "process.h"
#include "service.h"
#include "support.h"

static const char *const pool_of_one[] = {"--pool-size", "1", "--query-timeout", "60s", NULL};

/* The query that is running has been running for a second. */
static bool ran_a_second(void *arg)
{
	const service *s = arg;
	char sql[256];
	char *since;
	bool long_enough;

	snprintf(sql, sizeof sql,
	         "SELECT count(*) FROM pg_stat_activity WHERE application_name = '%s' AND state = 'active'"
	         " AND clock_timestamp() - query_start > '1 s'",
	         s->application);
	since = activity_sql(s->activity, sql);
	long_enough = since && strcmp(since, "1") == 0;
	free(since);
	return long_enough;
}

/* A request for a slow list, seen running, and how its client leaves. */
typedef void way_of_leaving(client *c);

static client *start_slow(const service *s, const char *target)
{
	client *c = client_connect(s->port);

	cr_assert_not_null(c);
	cr_assert(client_send_get(c, target));
	cr_assert(service_runs(s, 1, 10000), "the query did not run");
	return c;
}

/* Its query has stopped, and the next one's runs on the same connection. The milliseconds until it had. */
static double expect_cancelled(const leaving *l, const char *target)
{
	double stopped = leaving_cancels(l, target);

	cr_expect(eq(int, client_get(l->s->port, "/albums/1", NULL, 5000), 200));
	leaving_keeps(l);
	return stopped;
}

static void expect_left(const char *name, way_of_leaving *leave)
{
	service *s = service_start(pool_of_one);
	double stopped[ATTEMPTS];

	for (int i = 0; i < ATTEMPTS; i++) {
		char target[64];
		client *c;
		leaving l;

		snprintf(target, sizeof target, "/albums?delay=50s&by=%s%d", name, i);
		c = start_slow(s, target);
		l = leaving_now(s);
		leave(c);
		stopped[i] = expect_cancelled(&l, target);
		if (leave == client_half_close)
			client_close(c);
	}
	expect_in_time(stopped);
	cr_expect(eq(int, service_stop(s), 0));
}

Test(disconnect, curl_killed, .timeout = 120)
{
	service *s = service_start(pool_of_one);
	double stopped[ATTEMPTS];

	for (int i = 0; i < ATTEMPTS; i++) {
		char target[64], url[128];
		process *curl;
		leaving l;

		snprintf(target, sizeof target, "/albums?delay=60s&curl=%d", i);
		snprintf(url, sizeof url, "http://127.0.0.1:%d%s", s->port, target);
		curl = process_start((const char *const[]){"curl", "-s", url, NULL}, NULL);
		cr_assert_not_null(curl);
		cr_assert(eventually(ran_a_second, s, 30000), "the query did not run");
		l = leaving_now(s);
		process_signal(curl, SIGKILL);
		stopped[i] = expect_cancelled(&l, target);
		cr_expect(eq(int, process_stop(curl), 128 + SIGKILL));
	}
	expect_in_time(stopped);
	cr_expect(eq(int, service_stop(s), 0));
}

Test(disconnect, by_fin, .timeout = 120)
{
	expect_left("fin", client_close);
}

Test(disconnect, by_rst, .timeout = 120)
{
	expect_left("rst", client_reset);
}

/* The other half stays open until the query has ended: it is not what ends it. */
Test(disconnect, by_half_close, .timeout = 120)
{
	expect_left("half", client_half_close);
}

static void send_another_and_close(client *c)
{
	cr_expect(client_send_get(c, "/albums?delay=40s"));
	client_close(c);
}

Test(disconnect, with_a_second_request_pipelined, .timeout = 120)
{
	expect_left("pipelined", send_another_and_close);
}

Test(disconnect, while_waiting_for_a_connection, .timeout = 120)
{
	service *s = service_start(pool_of_one);
	client *running = start_slow(s, "/albums?delay=50s");
	client *waiting = client_connect(s->port);
	json_t *line;
	leaving l;

	cr_assert(client_send_get(waiting, "/albums?artist=nobody&delay=50s"));
	cr_assert(service_metric_becomes(s, "db_pool_waiting", 1, 10000));
	client_close(waiting);
	cr_expect(service_metric_becomes(s, "db_pool_waiting", 0, 5000), "it still stands in the queue");
	line = service_log(s, "/albums?artist=nobody&delay=50s", 5000);
	cr_assert_not_null(line);
	cr_expect(service_line_is(line, 499, "client_disconnect", NULL), "the log says %s",
	          service_line(line));
	json_decref(line);
	cr_expect(eq(int, service_running(s), 1), "the other's query must go on");
	cr_expect(eq(int, (int)service_metric(s, "db_pool_acquires_canceled_total"), 1));

	/* The last statement of the only connection is still the first client's: no SQL was sent for the second. */
	cr_expect(eq(int,
	             activity_count(s->activity,
	                            (activity_of){.application = s->application, .query = "%artist =%"}),
	             0));
	l = leaving_now(s);
	client_close(running);
	expect_cancelled(&l, "/albums?delay=50s");
	cr_expect(eq(int, service_stop(s), 0));
}

Test(disconnect, while_the_body_is_arriving, .timeout = 120)
{
	service *s = service_start(pool_of_one);
	client *c = client_connect(s->port);
	json_t *line;

	cr_assert(client_send(c,
	                      "POST /albums HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
	                      "Content-Length: 100\r\n\r\n{\"title\":"));
	cr_assert(service_metric_becomes(s, "http_requests_in_flight", 1, 10000));
	client_close(c);
	cr_expect(service_metric_becomes(s, "http_requests_in_flight", 0, 5000));
	line = service_log(s, "/albums", 5000);
	cr_assert_not_null(line);
	cr_expect(service_line_is(line, 499, "client_disconnect", NULL), "the log says %s",
	          service_line(line));
	json_decref(line);
	cr_expect(eq(int, (int)service_metric(s, "db_query_cancel_duration_seconds_count"), 0));
	cr_expect(eq(int, service_stop(s), 0));
}
