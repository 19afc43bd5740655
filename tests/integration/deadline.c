/* A query that takes too long: the client is told at the deadline, PostgreSQL stops, the connection is kept. */
#include <criterion/criterion.h>
#include <criterion/new/assert.h>
#include <stdio.h>
#include <stdlib.h>

#include "client.h"
#include "service.h"
#include "support.h"

static void expect_problem(const reply *r, int status)
{
	char *type = reply_header(r, "Content-Type");
	json_t *problem = json_loads(r->body ? r->body : "", 0, NULL);

	cr_expect(eq(int, r->status, status));
	cr_assert_not_null(type);
	cr_expect(eq(str, type, "application/problem+json"));
	cr_assert_not_null(problem, "not JSON: %s", r->body);
	cr_expect(eq(int, (int)json_integer_value(json_object_get(problem, "status")), status));
	json_decref(problem);
	free(type);
}

/* Asks with further headers for a list that takes a minute; returns the milliseconds until the 504. */
static double time_to_504(const service *s, const char *headers)
{
	reply r;
	int64_t sent = service_now();
	double taken;

	client_request(s->port, "GET", "/albums?delay=60s", headers, NULL, &r, 20000);
	taken = (double)(service_now() - sent) / 1e6;
	expect_problem(&r, 504);
	reply_free(&r);
	return taken;
}

Test(deadline, answers_504_at_five_seconds_and_stops_the_query, .timeout = 120)
{
	service *s = service_start((const char *const[]){"--pool-size", "1", NULL});
	pid_t backend;
	double taken, stopped;
	json_t *line;
	int64_t answered;

	cr_assert(eq(int, client_get(s->port, "/albums/1", NULL, 5000), 200));
	backend = service_backend(s);
	taken = time_to_504(s, "");
	answered = service_now();
	cr_expect(taken >= 5000 && taken <= 5000 + 100 * support_patience(), "504 after %.1f ms", taken);
	stopped = service_stopped_ms(s, answered, 10000);
	cr_expect(stopped >= 0 && stopped <= 50 * support_patience(), "PostgreSQL stopped after %.1f ms",
	          stopped);
	line = service_log(s, "/albums?delay=60s", 5000);
	cr_assert_not_null(line);
	cr_expect(service_line_is(line, 504, "deadline", "kept"), "the log says %s", service_line(line));
	fprintf(stderr, "504 after %.1f ms; stopped %.1f ms after the answer, by albumd's clock %.3f ms\n",
	        taken, stopped, json_real_value(json_object_get(line, "cancel_ms")));
	json_decref(line);
	cr_expect(eq(int, client_get(s->port, "/albums/1", NULL, 5000), 200));
	cr_expect(eq(int, service_backend(s), backend), "the connection was not kept");
	cr_expect(eq(int, service_stop(s), 0));
}

Test(deadline, may_be_shortened_by_the_client, .timeout = 120)
{
	service *s = service_start((const char *const[]){"--pool-size", "1", NULL});
	double taken = time_to_504(s, "Prefer: respond-async, wait=1\r\n");

	cr_expect(taken >= 1000 && taken <= 1000 + 500 * support_patience(), "504 after %.1f ms", taken);
	taken = time_to_504(s, "Prefer: wait=100\r\n");
	cr_expect(taken <= 5000 + 500 * support_patience(), "but not lengthened: 504 after %.1f ms", taken);
	cr_expect(eq(int, service_stop(s), 0));
}

Test(deadline, counts_the_wait_for_a_connection, .timeout = 120)
{
	service *s = service_start((const char *const[]){"--pool-size", "1", "--query-timeout", "1s", NULL});
	client *first = client_connect(s->port);
	client *second = client_connect(s->port);
	reply r;
	int64_t sent;

	/* The first holds the connection for 900 ms, which leaves the second 100 of its second. */
	cr_assert(client_send_get(first, "/albums?delay=900ms"));
	cr_assert(service_runs(s, 1, 10000));
	sent = service_now();
	cr_assert(client_send_get(second, "/albums?delay=800ms"));
	cr_assert(client_receive(first, &r, 10000));
	cr_expect(eq(int, r.status, 200));
	reply_free(&r);
	cr_assert(client_receive(second, &r, 10000));
	double taken = (double)(service_now() - sent) / 1e6;
	expect_problem(&r, 504);
	cr_expect(taken <= 1000 + 300 * support_patience(), "504 after %.1f ms", taken);
	reply_free(&r);
	client_close(first);
	client_close(second);
	cr_expect(eq(int, service_stop(s), 0));
}
