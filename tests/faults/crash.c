/*
 * albumd is killed outright: PostgreSQL finds out by itself, soon. Directly and over TLS by the setting that each
 * session of ours begins with; behind PgBouncer, where sessions are shared, by the role's own, since all that
 * PgBouncer does when its client vanishes is to drop its link to PostgreSQL.
 */
#include <criterion/criterion.h>
#include <criterion/new/assert.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>

#include "client.h"
#include "pgbouncer.h"
#include "private_db.h"
#include "service.h"
#include "support.h"

TestSuite(crash, .timeout = 120);

enum { QUERIES = 4, PROMISED_MS = 2000 };

static void kill_in_the_midst(const char *url, const char *how)
{
	service *s = service_start_on(url, (const char *const[]){"--query-timeout", "60s", NULL});
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
	fprintf(stderr, "kill -9 %s: %d queries stopped after %.0f ms\n", how, QUERIES, stopped);
	for (int i = 0; i < QUERIES; i++)
		client_close(clients[i]);
	service_stop(s);
}

Test(crash, leaves_no_query_for_longer_than_two_seconds)
{
	kill_in_the_midst(support_database_url(), "of a direct client");
}

Test(crash, over_tls_leaves_no_query_for_longer_than_two_seconds)
{
	char url[256];
	private_db *db = private_db_start(&(private_db_options){.tcp = true, .tls = true});

	snprintf(url, sizeof url, "%s?sslmode=require", private_db_tcp_url(db));
	kill_in_the_midst(url, "over TLS");
	private_db_stop(db);
}

Test(crash, behind_pgbouncer_leaves_no_query_for_longer_than_two_seconds)
{
	private_db *db = private_db_start(&(private_db_options){.tcp = true});
	activity *a = activity_open(private_db_url(db));
	pgbouncer *b;

	free(activity_sql(a, "ALTER ROLE tether SET client_connection_check_interval = '1s'"));
	activity_close(a);
	b = pgbouncer_start(private_db_tcp_url(db));
	kill_in_the_midst(pgbouncer_url(b), "behind PgBouncer");
	pgbouncer_stop(b);
	private_db_stop(db);
}
