/* Limits that flags set: they reach the library, and what they turn away is counted. */
#include <criterion/criterion.h>
#include <criterion/new/assert.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>

#include "client.h"
#include "service.h"
#include "support.h"

enum { TIMEOUT_MS = 10000 };

#define LIST(...) ((const char *const[]){__VA_ARGS__, NULL})

Test(limits, requests_at_once, .timeout = 60)
{
	service *s = service_start(LIST("--requests", "1"));
	client *c = client_connect(s->port);
	reply r;
	char *retry;

	cr_assert(client_send_get(c, "/albums?delay=8s"));
	cr_assert(service_runs(s, 1, TIMEOUT_MS));
	cr_expect(eq(int, client_get(s->port, "/albums/1", &r, TIMEOUT_MS), 503));
	retry = reply_header(&r, "Retry-After");
	cr_expect_not_null(retry);
	free(retry);
	reply_free(&r);
	cr_expect(service_metric_becomes(s, "http_requests_refused_total", 1, TIMEOUT_MS));
	client_close(c);
	cr_expect(service_metric_becomes(s, "http_handlers", 0, TIMEOUT_MS));
	cr_expect(eq(int, client_get(s->port, "/albums/1", NULL, TIMEOUT_MS), 200));
	service_stop(s);
}

Test(limits, connections_of_an_address, .timeout = 60)
{
	service *s = service_start(LIST("--connections-per-address", "2"));
	client *first = client_connect(s->port), *second = client_connect(s->port);

	cr_expect(service_metric_becomes(s, "http_open_connections", 2, TIMEOUT_MS));
	cr_expect(eq(int, client_get(s->port, "/albums/1", NULL, TIMEOUT_MS), 503));
	cr_expect(service_metric_becomes(s, "http_address_refused_total", 1, TIMEOUT_MS));
	client_close(first);
	client_close(second);
	cr_expect(service_metric_becomes(s, "http_open_connections", 0, TIMEOUT_MS));
	cr_expect(eq(int, client_get(s->port, "/albums/1", NULL, TIMEOUT_MS), 200));
	service_stop(s);
}

Test(limits, bodies_and_heads, .timeout = 60)
{
	service *s = service_start(LIST("--body-size", "10", "--header-timeout", "200ms"));
	client *slow = client_connect(s->port);
	reply r;

	cr_expect(eq(int,
	             client_request(s->port, "POST", "/albums", "Content-Type: application/json\r\n",
	                            "{\"title\":\"T\"}", NULL, TIMEOUT_MS),
	             413));
	cr_assert(client_send(slow, "GET /albums/1 HTTP/1.1\r\nHo"));
	cr_assert(client_receive(slow, &r, TIMEOUT_MS));
	cr_expect(eq(int, r.status, 408));
	reply_free(&r);
	client_close(slow);
	service_stop(s);
}

/* What single sign-on has a proxy add is more than the default allows. */
Test(limits, large_heads, .timeout = 60)
{
	service *s = service_start(LIST("--head-size", "16384")), *narrow = service_start(NULL);
	static char fields[12000] = "Cookie: ";

	memset(fields + 8, 'c', sizeof fields - 11);
	strcpy(fields + sizeof fields - 3, "\r\n");
	cr_expect(eq(int, client_request(s->port, "GET", "/albums/1", fields, NULL, NULL, TIMEOUT_MS), 200));
	cr_expect(eq(int, client_request(narrow->port, "GET", "/albums/1", fields, NULL, NULL, TIMEOUT_MS),
	             431));
	service_stop(narrow);
	service_stop(s);
}

Test(limits, idle_and_old_connections_to_the_database, .timeout = 60)
{
	service *s = service_start(LIST("--pool-min-idle", "3", "--pool-max-lifetime", "1s"));

	cr_expect(service_metric_becomes(s, "db_pool_connections{state=\"idle\"}", 3, TIMEOUT_MS),
	          "they are made ahead of need");
	cr_expect(service_metric_becomes(s, "db_pool_closed_total{limit=\"max_lifetime\"}", 1, TIMEOUT_MS));
	service_stop(s);
}

struct answer {
	service *s;
	int expected;
};

static bool readiness_is(void *arg)
{
	const struct answer *a = arg;

	return client_get(a->s->admin_port, "/readyz", NULL, TIMEOUT_MS) == a->expected;
}

/* Told to drain it is not ready any more, which a balancer takes a moment to notice: until then it serves. */
Test(limits, drain_begins_with_a_delay, .timeout = 60)
{
	service *s = service_start(LIST("--drain-delay", "3s"));

	process_signal(s->albumd->process, SIGTERM);
	cr_expect(eventually(readiness_is, &(struct answer){s, 503}, TIMEOUT_MS));
	cr_expect(eq(int, client_get(s->port, "/albums/1", NULL, TIMEOUT_MS), 200));
	cr_expect(eq(int, service_stop(s), 0));
}

/* One takes over from the other at the same address. */
Test(limits, port_is_shared_for_a_handover, .timeout = 60)
{
	service *old = service_start(LIST("--share-port")), *new;
	char address[32];

	snprintf(address, sizeof address, "127.0.0.1:%d", old->port);
	new = service_start(LIST("--share-port", "--listen", address));
	cr_expect(eq(int, new->port, old->port));
	cr_expect(eq(int, service_stop(old), 0));
	cr_expect(eq(int, client_get(new->port, "/albums/1", NULL, TIMEOUT_MS), 200));
	cr_expect(eq(int, service_stop(new), 0));
}
