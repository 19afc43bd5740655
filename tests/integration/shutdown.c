/* SIGTERM: short requests finish, the rest are cancelled at the drain timeout, and PostgreSQL is left idle. */
#include <criterion/criterion.h>
#include <criterion/new/assert.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>

#include "client.h"
#include "service.h"
#include "support.h"

enum { SHORT = 5, LONG = 5, ALL = SHORT + LONG };

static void start_all(const service *s, client *clients[ALL], const char *short_delay)
{
	char target[64];

	snprintf(target, sizeof target, "/albums?delay=%s", short_delay);
	for (int i = 0; i < ALL; i++) {
		clients[i] = client_connect(s->port);
		cr_assert(client_send_get(clients[i], i < SHORT ? target : "/albums?delay=55s"));
	}
	cr_assert(service_runs(s, ALL, 20000), "the queries did not run");
}

static void expect_status(client *c, int status)
{
	reply r = {0};

	cr_expect(client_receive(c, &r, 20000), "no answer");
	cr_expect(eq(int, r.status, status));
	if (status == 503) {
		char *retry = reply_header(&r, "Retry-After");
		cr_expect_not_null(retry);
		free(retry);
	}
	reply_free(&r);
	client_close(c);
}

/* Ends a service that was signalled already: exit status 0, nothing left running. */
static void expect_clean_exit(service *s)
{
	cr_expect(eq(int, process_wait(s->albumd->process, 20000 * support_patience()), 0));
	cr_expect(service_runs(s, 0, 0), "queries are left running");
	cr_expect(activity_becomes(s->activity, (activity_of){.application = s->application}, 0, 2000),
	          "connections are left open");
	service_stop(s);
}

Test(shutdown, drains, .timeout = 120)
{
	service *s =
		service_start((const char *const[]){"--drain-timeout", "2s", "--query-timeout", "60s", NULL});
	client *clients[ALL];
	int64_t signalled;
	double taken;

	start_all(s, clients, "1s");
	signalled = service_now();
	process_signal(s->albumd->process, SIGTERM);
	for (int i = 0; i < SHORT; i++)
		expect_status(clients[i], 200);
	for (int i = SHORT; i < ALL; i++)
		expect_status(clients[i], 503);
	taken = (double)(service_now() - signalled) / 1e6;
	cr_expect(taken >= 2000 && taken <= 2000 + 1000 * support_patience(), "the rest ended after %.0f ms",
	          taken);
	cr_expect(eq(int, process_wait(s->albumd->process, 20000 * support_patience()), 0));
	cr_expect(eq(int, service_log_count(s, "shutdown"), LONG));
	expect_clean_exit(s);
}

Test(shutdown, tells_that_it_is_not_ready_while_it_drains, .timeout = 120)
{
	service *s =
		service_start((const char *const[]){"--drain-timeout", "3s", "--query-timeout", "60s", NULL});
	client *clients[ALL];

	cr_expect(eq(int, client_get(s->admin_port, "/readyz", NULL, 5000), 200));
	start_all(s, clients, "2s");
	process_signal(s->albumd->process, SIGTERM);
	cr_expect(service_metric_becomes(s, "http_draining", 1, 2000));
	cr_expect(eq(int, client_get(s->admin_port, "/readyz", NULL, 5000), 503));
	cr_expect(eq(int, client_get(s->admin_port, "/livez", NULL, 5000), 200));
	for (int i = 0; i < ALL; i++)
		expect_status(clients[i], i < SHORT ? 200 : 503);
	expect_clean_exit(s);
}

Test(shutdown, at_once_at_the_second_signal, .timeout = 120)
{
	service *s = service_start(
		(const char *const[]){"--drain-timeout", "50s", "--query-timeout", "60s", NULL});
	client *clients[ALL];
	int64_t signalled;

	start_all(s, clients, "54s");
	process_signal(s->albumd->process, SIGINT);
	cr_assert(process_wait_for(s->albumd->process, "draining", 5000));
	signalled = service_now();
	process_signal(s->albumd->process, SIGTERM);
	for (int i = 0; i < ALL; i++)
		expect_status(clients[i], 503);
	expect_clean_exit(s);
	cr_expect(service_now() - signalled < INT64_C(3000000000) * support_patience());
}

Test(shutdown, of_an_idle_server_is_quick, .timeout = 120)
{
	service *s = service_start(NULL);
	client *idle = client_connect(s->port);
	reply r;
	int64_t signalled;

	cr_assert(client_send_get(idle, "/albums/1"));
	cr_assert(client_receive(idle, &r, 5000));
	reply_free(&r);
	signalled = service_now();
	process_signal(s->albumd->process, SIGTERM);
	expect_clean_exit(s);
	cr_expect(service_now() - signalled < INT64_C(1000000000) * support_patience());
	client_close(idle);
}
