/* albumd is killed outright: PostgreSQL finds out by itself, soon. */
#include <criterion/criterion.h>
#include <criterion/new/assert.h>
#include <signal.h>
#include <stdio.h>

#include "client.h"
#include "service.h"
#include "support.h"

enum { QUERIES = 4, PROMISED_MS = 2000 };

Test(crash, leaves_no_query_for_longer_than_two_seconds, .timeout = 120)
{
	service *s = service_start((const char *const[]){"--query-timeout", "60s", NULL});
	client *clients[QUERIES];
	int64_t killed;
	double stopped;

	for (int i = 0; i < QUERIES; i++) {
		clients[i] = client_connect(s->port);
		cr_assert(client_send_get(clients[i], "/albums?delay=55s"));
	}
	cr_assert(service_runs(s, QUERIES, 10000));
	killed = service_now();
	process_signal(s->albumd->process, SIGKILL);
	stopped = service_stopped_ms(s, killed, 30000);
	cr_expect(stopped >= 0 && stopped <= PROMISED_MS * support_patience(), "stopped after %.0f ms",
	          stopped);
	fprintf(stderr, "kill -9: %d queries stopped after %.0f ms\n", QUERIES, stopped);
	for (int i = 0; i < QUERIES; i++)
		client_close(clients[i]);
	service_stop(s);
}
