/* Ten thousand requests, and as many aborted ones, leave nothing behind: files, threads, fibers. */
#include <criterion/criterion.h>
#include <criterion/new/assert.h>
#include <dirent.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include "client.h"
#include "service.h"
#include "support.h"

enum { REQUESTS = 10000, TOGETHER = 20 };

static int entries(const service *s, const char *what)
{
	char path[64];
	int count = -2; /* "." and ".." */
	DIR *dir;

	snprintf(path, sizeof path, "/proc/%d/%s", (int)service_pid(s), what);
	dir = opendir(path);
	cr_assert_not_null(dir);
	while (readdir(dir))
		count++;
	closedir(dir);
	return count;
}

typedef struct footprint {
	const service *s;
	int files, threads;
} footprint;

static bool back_at(void *arg)
{
	const footprint *base = arg;

	return service_metric(base->s, "albumd_fibers") == 0 &&
	       service_metric(base->s, "http_open_connections") == 0 &&
	       entries(base->s, "fd") <= base->files && entries(base->s, "task") <= base->threads;
}

/* Enough of both kinds that what is made once has been made. */
static void keep_alive(const service *s, int requests)
{
	client *clients[TOGETHER];
	int wrong = 0;

	for (int i = 0; i < TOGETHER; i++)
		clients[i] = client_connect(s->port);
	for (int done = 0; done < requests; done += TOGETHER) {
		for (int i = 0; i < TOGETHER; i++)
			wrong += !client_send_get(clients[i], "/albums/1");
		for (int i = 0; i < TOGETHER; i++) {
			reply r = {0};

			wrong += !client_receive(clients[i], &r, 20000) || r.status != 200;
			reply_free(&r);
		}
	}
	for (int i = 0; i < TOGETHER; i++)
		client_close(clients[i]);
	cr_expect(eq(int, wrong, 0));
}

/* Leaves in every phase of a request there is: some clients at once, others while their queries run. */
static void abort_all(const service *s, int requests)
{
	unsigned int random = 1;

	for (int done = 0; done < requests; done += TOGETHER) {
		client *clients[TOGETHER];
		struct timespec moment = {.tv_nsec = (long)(rand_r(&random) % 3000) * 1000};

		for (int i = 0; i < TOGETHER; i++) {
			clients[i] = client_connect(s->port);
			cr_assert_not_null(clients[i]);
			client_send_get(clients[i], i % 2 ? "/albums/1" : "/albums?delay=20s");
		}
		ppoll(NULL, 0, &moment, NULL);
		for (int i = 0; i < TOGETHER; i++) {
			if (i % 3)
				client_close(clients[i]);
			else
				client_reset(clients[i]);
		}
	}
}

Test(baseline, is_where_it_returns_to, .timeout = 600)
{
	service *s = service_start((const char *const[]){"--pool-size", "8", NULL});
	footprint base = {.s = s};

	keep_alive(s, 400);
	abort_all(s, 400);
	cr_assert(service_metric_becomes(s, "db_pool_connections{state=\"idle\"}", 8, 10000));
	cr_assert(service_metric_becomes(s, "albumd_fibers", 0, 10000));
	cr_assert(service_metric_becomes(s, "http_open_connections", 0, 10000));
	base.files = entries(s, "fd");
	base.threads = entries(s, "task");

	keep_alive(s, REQUESTS);
	cr_expect(eventually(back_at, &base, 10000),
	          "after requests: %d files (%d before), %d threads (%d), %.0f fibers", entries(s, "fd"),
	          base.files, entries(s, "task"), base.threads, service_metric(s, "albumd_fibers"));
	abort_all(s, REQUESTS);
	cr_expect(eventually(back_at, &base, 10000),
	          "after aborts: %d files (%d before), %d threads (%d), %.0f fibers", entries(s, "fd"),
	          base.files, entries(s, "task"), base.threads, service_metric(s, "albumd_fibers"));
	cr_expect(service_runs(s, 0, 5000));
	cr_expect(eq(int, (int)service_metric(s, "db_pool_connects_total"), 8));
	cr_expect(eq(int, (int)service_metric(s, "log_lines_dropped_total"), 0));
	fprintf(stderr, "%d requests and as many aborted: %d files, %d threads, as before\n", REQUESTS,
	        base.files, base.threads);
	cr_expect(eq(int, service_stop(s), 0));
}
