/*
 * Fifty clients ask for something slow and leave, all at once: what albumd makes of it, and its twins in Go (http_go/)
 * with the drivers that are installed, each over a pool of 64. In turns, so that whatever else the machine does is done
 * to all; medians of the rounds.
 *
 *	free     from the first client's leaving until PostgreSQL runs none of the fifty queries any more
 *	kept     how many of the fifty connections were still there after the next burst
 *	burst    the next fifty requests, sent at once then: until the last one is answered
 *
 * PostgreSQL is asked every two milliseconds.
 */
#include <stdio.h>
#include <stdlib.h>

#include <tether/ctx.h>

#include "activity.h"
#include "albumd.h"
#include "client.h"
#include "go_twin.h"
#include "private_db.h"
#include "support.h"

enum { CROWD = 50, POOL = 64, ROUNDS = 11, PATIENCE_MS = 60000 };

typedef struct contender {
	const char *name;
	const char *driver;      /* of the twin; NULL: albumd */
	const char *application; /* its application_name */
	const char *slow;        /* what the crowd asks for */
	process *process;        /* NULL: not to be had here */
	int port;
	double free_ms[ROUNDS], kept[ROUNDS], burst_ms[ROUNDS];
} contender;

static activity *watcher;

static void must(bool ok, const contender *c, const char *why)
{
	if (ok)
		return;
	fprintf(stderr, "abort_bench: %s: %s\n", c->name, why);
	exit(1);
}

static activity_of running(const contender *c)
{
	return (activity_of){.application = c->application, .state = "active", .query = "%pg_sleep%"};
}

/* All at once: the connections are made before the first asks. */
static void ask(const contender *c, client *crowd[], const char *target)
{
	for (int i = 0; i < CROWD; i++)
		must((crowd[i] = client_connect(c->port)), c, "cannot be connected to");
	for (int i = 0; i < CROWD; i++)
		must(client_send_get(crowd[i], target), c, "cannot be sent to");
}

static double burst(const contender *c)
{
	client *crowd[CROWD];
	int64_t start = ctx_now();
	ask(c, crowd, "/albums/1");
	for (int i = 0; i < CROWD; i++) {
		reply r;
		must(client_receive(crowd[i], &r, PATIENCE_MS), c, "does not answer");
		must(r.status == 200, c, r.body);
		reply_free(&r);
	}
	int64_t took = ctx_now() - start;
	for (int i = 0; i < CROWD; i++)
		client_close(crowd[i]);
	return (double)took / 1e6;
}

static bool none_runs(void *arg)
{
	return activity_count(watcher, running(arg)) == 0;
}

/* All leave by FIN. */
static double leave(contender *c, client *crowd[])
{
	int64_t start = ctx_now();
	for (int i = 0; i < CROWD; i++)
		client_close(crowd[i]);
	must(eventually(none_runs, c, PATIENCE_MS), c, "its queries go on");
	return (double)(ctx_now() - start) / 1e6;
}

static int in_both(const pid_t a[], int a_count, const pid_t b[], int b_count)
{
	int count = 0;
	for (int i = 0, j = 0; i < a_count && j < b_count;) {
		count += a[i] == b[j];
		if (a[i] <= b[j])
			i++;
		else
			j++;
	}
	return count;
}

static void run_round(contender *c, int round)
{
	client *crowd[CROWD];
	pid_t before[POOL], after[POOL];
	ask(c, crowd, c->slow);
	must(activity_becomes(watcher, running(c), CROWD, PATIENCE_MS), c, "its queries do not run");
	int before_count = activity_pids(watcher, running(c), before, POOL);
	c->free_ms[round] = leave(c, crowd);
	c->burst_ms[round] = burst(c);
	int after_count = activity_pids(watcher, (activity_of){.application = c->application}, after, POOL);
	c->kept[round] = in_both(before, before_count, after, after_count);
}

static void start(contender *c, const char *url)
{
	if (c->driver) {
		const go_twin twin = {.driver = c->driver,
		                      .database_url = url,
		                      .name = c->application,
		                      .pool_size = POOL,
		                      .deadline = "60s"};
		c->process = go_twin_start(&twin, &c->port);
		return;
	}
	const albumd_options options = {
		.database_url = url,
		.args = (const char *const[]){"--pool-size", "64", "--query-timeout", "60s", "--log-level",
	                                      "warn", NULL},
	};
	albumd *a = albumd_start(&options);
	must(a, c, "does not start");
	c->process = a->process;
	c->port = a->port;
	free(a); /* not what it holds, which is stopped as any process */
}

int main(void)
{
	const char *url = getenv("DATABASE_URL");
	contender contenders[] = {
		{.name = "albumd", .application = "albumd", .slow = "/albums?limit=1&delay=50s"},
		{.name = "Go, lib/pq", .driver = "lib/pq", .application = "go-prepared"},
		{.name = "Go, lib/pq, unprepared",
	         .driver = "lib/pq, unprepared",
	         .application = "go-unprepared"},
		{.name = "Go, pgx", .driver = "pgx", .application = "go-pgx"},
	};
	enum { CONTENDERS = sizeof(contenders) / sizeof(*contenders) };
	must(url, &contenders[0], "DATABASE_URL is not set");
	watcher = activity_open(url);
	must(watcher, &contenders[0], "PostgreSQL cannot be asked");
	for (contender *c = contenders; c < contenders + CONTENDERS; c++) {
		if (!c->slow)
			c->slow = "/albums/1?delay=50s";
		start(c, url);
	}
	printf("%d requests left at once, a pool of %d, %d rounds in turns, medians:\n", CROWD, POOL, ROUNDS);
	for (int round = 0; round < ROUNDS; round++)
		for (contender *c = contenders; c < contenders + CONTENDERS; c++)
			if (c->process)
				run_round(c, round);
	double ours = support_median(contenders[0].free_ms, ROUNDS);
	for (contender *c = contenders; c < contenders + CONTENDERS; c++) {
		if (!c->process)
			continue;
		double free_ms = support_median(c->free_ms, ROUNDS);
		printf("  %-24s free after %6.1f ms (%4.1f times ours)  kept %2.0f of %d  burst %6.1f ms\n",
		       c->name, free_ms, free_ms / ours, support_median(c->kept, ROUNDS), CROWD,
		       support_median(c->burst_ms, ROUNDS));
		process_stop(c->process);
	}
	activity_close(watcher);
	return 0;
}
