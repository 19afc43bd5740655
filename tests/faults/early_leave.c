/*
 * Clients that leave 0 to 3 ms after sending. PostgreSQL ignores a cancel that reaches a backend before its query,
 * and the cancel travels on a link of its own, which can be the faster one: sent once it would leave the query
 * running to its end, and the connection lent until then.
 */
#include <criterion/criterion.h>
#include <criterion/new/assert.h>
#include <poll.h>
#include <stdio.h>
#include <time.h>

#include "client.h"
#include "service.h"
#include "support.h"

enum { CLIENTS = 500, WHOLE_MS = 100 };

Test(early_leave, leaves_nothing_running, .timeout = 300)
{
	service *s = service_start((const char *const[]){"--pool-size", "4", "--query-timeout", "60s", NULL});
	unsigned int random = 1;
	int64_t left = 0;
	double stopped;

	for (int i = 0; i < CLIENTS; i++) {
		client *c = client_connect(s->port);
		struct timespec until_then = {.tv_nsec = (long)(rand_r(&random) % 3000) * 1000};
		struct pollfd answered = {.fd = client_fd(c), .events = POLLIN};

		cr_assert(client_send_get(c, "/albums?delay=60s"));
		ppoll(&answered, 1, &until_then, NULL);
		client_close(c);
		left = service_now();
	}
	stopped = service_stopped_ms(s, left, 10000);
	cr_expect(stopped >= 0 && stopped <= WHOLE_MS * support_patience(),
	          "the last query stopped after %.1f ms", stopped);
	cr_expect(service_metric_becomes(s, "db_pool_connections{state=\"busy\"}", 0, WHOLE_MS));
	cr_expect(service_metric_becomes(s, "db_pool_connections{state=\"canceling\"}", 0, WHOLE_MS));
	cr_expect(service_metric_becomes(s, "db_pool_connections{state=\"settling\"}", 0, WHOLE_MS));
	double whole = (double)(service_now() - left) / 1e6;
	cr_expect(whole <= WHOLE_MS * support_patience(), "the pool was whole after %.1f ms", whole);
	/* Four connections were made, and are still the ones: none was spent on a cancel. */
	cr_expect(eq(int, (int)service_metric(s, "db_pool_connects_total"), 4));
	cr_expect(eq(int, activity_count(s->activity, (activity_of){.application = s->application}), 4));
	fprintf(stderr,
	        "%d early leavers: all stopped %.1f ms after the last, pool whole after %.1f ms, %.0f "
	        "cancelled\n",
	        CLIENTS, stopped, whole, service_metric(s, "db_query_cancel_duration_seconds_count"));
	for (int i = 0; i < 8; i++)
		cr_expect(eq(int, client_get(s->port, "/albums/1", NULL, 5000), 200));
	cr_expect(eq(int, service_stop(s), 0));
}
