/*
 * A thousand slow requests at once on sixteen connections: who came first is served, the others are told at their
 * deadline, nobody else notices, and when they all leave they are gone at once.
 */
#include <criterion/criterion.h>
#include <criterion/new/assert.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/file.h>
#include <sys/resource.h>

#include "client.h"
#include "service.h"
#include "support.h"

enum { CROWD = 1000, POOL = 16, LIVEZ_MS = 20, LEFT_MS = 100, ATTEMPTS = 3, LEFT_BEHIND = 12 << 20 };

/* Seconds, which a program under a sanitizer needs more of for a thousand to gather before the first has ended. */
static int delay(void)
{
	return support_patience() > 1 ? 16 : 4;
}

static int deadline(void)
{
	return delay() + delay() / 4;
}

typedef struct visitor {
	client *client;
	int64_t sent;
	double taken; /* milliseconds from sent to the whole answer */
	int status;   /* -1: none yet */
} visitor;

/* The figures are of one crowd: the other test's, which Criterion would run at the same time, has to wait. */
static void be_alone_with_many_files(void)
{
	struct rlimit files;
	int lock = open(support_source("tests/faults/crowd.c"), O_RDONLY | O_CLOEXEC);

	cr_assert(lock >= 0 && flock(lock, LOCK_EX) == 0);

	getrlimit(RLIMIT_NOFILE, &files);
	files.rlim_cur = files.rlim_max;
	setrlimit(RLIMIT_NOFILE, &files);
}

/* Each asks for a target of its own, so that the log tells them apart. */
static void send_requests(const service *s, visitor visitors[], int from, int to)
{
	for (int i = from; i < to; i++) {
		char target[64];

		snprintf(target, sizeof target, "/albums?delay=%ds&visitor=%d", delay(), i);
		visitors[i].client = client_connect(s->port);
		cr_assert_not_null(visitors[i].client);
		visitors[i].sent = service_now();
		visitors[i].status = -1;
		cr_assert(client_send_get(visitors[i].client, target));
	}
}

/* The first sixteen run, the next sixteen are the first in the queue, the rest stand behind them. */
static void gather(const service *s, visitor visitors[CROWD])
{
	cr_assert(service_fill_pool(s, POOL));
	send_requests(s, visitors, 0, POOL);
	cr_assert(service_runs(s, POOL, 20000));
	send_requests(s, visitors, POOL, 2 * POOL);
	cr_assert(service_metric_becomes(s, "db_pool_waiting", POOL, 3000));
	send_requests(s, visitors, 2 * POOL, CROWD);
	cr_assert(service_metric_becomes(s, "db_pool_waiting", CROWD - POOL, 3000));
}

static void receive_all(visitor visitors[CROWD])
{
	static struct pollfd fds[CROWD];
	int64_t give_up = now_ms() + INT64_C(30000) * support_patience();
	int left = CROWD;

	for (int i = 0; i < CROWD; i++)
		fds[i] = (struct pollfd){.fd = client_fd(visitors[i].client), .events = POLLIN};
	while (left && now_ms() < give_up) {
		poll(fds, CROWD, 1000);
		for (int i = 0; i < CROWD; i++) {
			reply r = {0};

			if (fds[i].fd < 0 || !fds[i].revents || client_poll(visitors[i].client, &r) == 0)
				continue;
			visitors[i].taken = (double)(service_now() - visitors[i].sent) / 1e6;
			visitors[i].status = r.head ? r.status : 0;
			reply_free(&r);
			fds[i].fd = -1;
			left--;
		}
	}
	cr_expect(eq(int, left, 0), "have no answer");
}

/* Somebody who asks /livez all the while. */
typedef struct prober {
	int port;
	atomic_bool stop;
	int asked, failed, late;
	double slowest;
} prober;

static void *ask_livez(void *arg)
{
	prober *p = arg;
	client *c = client_connect(p->port);

	while (c && !atomic_load(&p->stop)) {
		int64_t sent = service_now();
		reply r = {0};
		double taken;

		p->failed +=
			!client_send_get(c, "/livez") || !client_receive(c, &r, 20000) || r.status != 200;
		taken = (double)(service_now() - sent) / 1e6;
		p->asked++;
		p->late += taken > LIVEZ_MS * support_patience();
		p->slowest = taken > p->slowest ? taken : p->slowest;
		reply_free(&r);
		poll(NULL, 0, 5);
	}
	client_close(c);
	return NULL;
}

static bool query_ran(const service *s, int i)
{
	char target[64];
	json_t *line;
	bool ran;

	snprintf(target, sizeof target, "/albums?delay=%ds&visitor=%d", delay(), i);
	line = service_log(s, target, 5000);
	cr_assert_not_null(line);
	ran = json_object_get(line, "cancels");
	json_decref(line);
	return ran;
}

Test(crowd, is_served_first_come_first_served, .timeout = 300)
{
	static visitor visitors[CROWD];
	service *s;
	prober p = {0};
	pthread_t thread;
	double before, during, earliest = 1e9, latest = 0;
	int right = 0;
	char timeout[16];

	be_alone_with_many_files();
	snprintf(timeout, sizeof timeout, "%ds", deadline());
	s = service_start((const char *const[]){"--pool-size", "16", "--query-timeout", timeout, NULL});
	before = service_metric(s, "process_resident_memory_bytes");
	p.port = s->admin_port;
	cr_assert(eq(int, pthread_create(&thread, NULL, ask_livez, &p), 0));
	gather(s, visitors);
	during = service_metric(s, "process_resident_memory_bytes");
	receive_all(visitors);
	atomic_store(&p.stop, true);
	pthread_join(thread, NULL);

	for (int i = 0; i < CROWD; i++) {
		double due = 1000.0 * (i < POOL ? delay() : deadline());

		right += visitors[i].status == (i < POOL ? 200 : 504) && visitors[i].taken >= due;
		if (i >= POOL) {
			earliest = visitors[i].taken < earliest ? visitors[i].taken : earliest;
			latest = visitors[i].taken > latest ? visitors[i].taken : latest;
		}
	}
	cr_expect(eq(int, right, CROWD));
	cr_expect(latest <= 1000 * deadline() + 400 * support_patience(), "the last 504 came after %.0f ms",
	          latest);
	for (int i = POOL; i < 2 * POOL; i++)
		cr_expect(query_ran(s, i), "the %dth in the queue was passed over", i - POOL);
	cr_expect(eq(int, p.failed, 0));
	cr_expect(p.asked > 100 && p.late * 100 <= p.asked,
	          "%d of %d probes of /livez were late, the slowest %.1f ms", p.late, p.asked, p.slowest);
	if (support_patience() == 1)
		cr_expect(during - before < CROWD * 64.0 * 1024, "%.1f MiB for a thousand",
		          (during - before) / 1048576);
	fprintf(stderr,
	        "a thousand: 504s after %.1f to %.1f ms; %.1f KiB a request; /livez %d times, slowest %.1f "
	        "ms, %d over %d ms\n",
	        earliest, latest, (during - before) / 1024 / CROWD, p.asked, p.slowest, p.late, LIVEZ_MS);

	for (int i = 0; i < CROWD; i++)
		client_close(visitors[i].client);
	cr_expect(service_runs(s, 0, 1000));
	cr_expect(service_metric_becomes(s, "albumd_fibers", 0, 5000));
	cr_expect(service_metric_becomes(s, "http_open_connections", 0, 5000));
	cr_expect(service_metric_becomes(s, "db_pool_connections{state=\"idle\"}", POOL, 5000));
	cr_expect(eq(int, (int)service_metric(s, "db_pool_connects_total"), POOL));
	if (support_patience() == 1)
		cr_expect(
			service_metric_falls(s, "process_resident_memory_bytes", before + LEFT_BEHIND, 20000),
			"it keeps %.1f MiB",
			(service_metric(s, "process_resident_memory_bytes") - before) / 1048576);
	cr_expect(eq(int, service_stop(s), 0));
}

Test(crowd, leaves_at_once, .timeout = 300)
{
	static const char cancelled[] =
		"db_query_cancel_total{reason=\"client_disconnect\",outcome=\"kept\"}";
	static visitor visitors[CROWD];
	service *s;
	double answered, best = 1e9;
	int crowds = 0;

	be_alone_with_many_files();
	s = service_start((const char *const[]){"--pool-size", "16", "--query-timeout", "60s", NULL});
	/* The figure is of an unloaded machine, and others may be at work on this one: the best of a few counts. */
	for (; crowds < ATTEMPTS && best > LEFT_MS * support_patience(); crowds++) {
		gather(s, visitors);
		/* Those in the queue first, or some would be lent what the sixteen give back before they have left too. */
		for (int i = CROWD - 1; i >= 0; i--)
			client_close(visitors[i].client);
		int64_t left = service_now();
		cr_expect(eq(int, client_get(s->port, "/albums/1", NULL, 20000), 200));
		answered = (double)(service_now() - left) / 1e6;
		best = answered < best ? answered : best;
		fprintf(stderr, "a thousand left, the next answer came after %.1f ms\n", answered);
		cr_expect(service_runs(s, 0, 1000));
	}
	cr_expect(best <= LEFT_MS * support_patience(), "the next answer came after %.1f ms at best", best);

	/* None of those that waited had any SQL sent. */
	cr_expect(service_metric_becomes(s, "db_pool_acquires_canceled_total", crowds * (CROWD - POOL), 5000),
	          "%.0f", service_metric(s, "db_pool_acquires_canceled_total"));
	cr_expect(service_metric_becomes(s, cancelled, crowds * POOL, 5000), "%.0f",
	          service_metric(s, cancelled));
	cr_expect(eq(int, (int)service_metric(s, "db_pool_connects_total"), POOL));
	cr_expect(service_metric_becomes(s, "albumd_fibers", 0, 5000));
	cr_expect(eq(int, service_stop(s), 0));
}
