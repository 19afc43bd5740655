/*
 * Over HTTP/2 a client takes back one request of many, and with it one query: by RST_STREAM, or all of them by
 * ending the connection. Against the real albumd, watching pg_stat_activity.
 */
#include <criterion/criterion.h>
#include <criterion/new/assert.h>
#include <stdio.h>
#include <sys/socket.h>
#include <unistd.h>

#include "h2_peer.h"
#include "leaving.h"
#include "service.h"
#include "support.h"

static const char *const pool_of_one[] = {"--pool-size", "1", "--query-timeout", "60s", NULL};

/* The same HTTP/2 connection, and the same PostgreSQL connection, serve what comes next. */
Test(disconnect_h2, by_rst_stream, .timeout = 120)
{
	service *s = service_start(pool_of_one);
	h2_peer *p = h2_peer_dial(s->port);
	double stopped[ATTEMPTS];

	for (uint32_t i = 0; i < ATTEMPTS; i++) {
		char target[64];
		leaving l;

		snprintf(target, sizeof target, "/albums?delay=50s&by=%u", i);
		h2_peer_ask(p, 4 * i + 1, "GET", target);
		l = leaving_now(s);
		h2_peer_number(p, H2_RST_STREAM, 4 * i + 1, H2_CANCEL);
		stopped[i] = leaving_cancels(&l, target);
		h2_peer_ask(p, 4 * i + 3, "GET", "/albums/1");
		cr_expect(eq(int, h2_peer_answer(p, 4 * i + 3)->status, 200));
		leaving_keeps(&l);
	}
	expect_in_time(stopped);
	h2_peer_close(p);
	cr_expect(eq(int, service_stop(s), 0));
}

static void expect_left(const char *name, void (*leave)(h2_peer *p))
{
	service *s = service_start(pool_of_one);
	double stopped[ATTEMPTS];

	for (int i = 0; i < ATTEMPTS; i++) {
		h2_peer *p = h2_peer_dial(s->port);
		char running[64], waiting[64];
		leaving l;

		snprintf(running, sizeof running, "/albums?delay=50s&by=%s%d", name, i);
		snprintf(waiting, sizeof waiting, "/albums?delay=40s&by=%s%d", name, i);
		h2_peer_ask(p, 1, "GET", running);
		cr_assert(service_runs(s, 1, 10000), "the query did not run");
		h2_peer_ask(p, 3, "GET", waiting);
		cr_assert(service_metric_becomes(s, "db_pool_waiting", 1, 10000));
		l = leaving_now(s);
		leave(p);
		stopped[i] = leaving_cancels(&l, running);
		json_t *line = service_log(s, waiting, 5000);
		cr_assert_not_null(line);
		cr_expect(service_line_is(line, 499, "client_disconnect", NULL), "the log says %s",
		          service_line(line));
		json_decref(line);
		h2_peer_close(p);
		p = h2_peer_dial(s->port);
		h2_peer_ask(p, 1, "GET", "/albums/1");
		cr_expect(eq(int, h2_peer_answer(p, 1)->status, 200));
		leaving_keeps(&l);
		h2_peer_close(p);
	}
	expect_in_time(stopped);
	cr_expect(eq(int, service_stop(s), 0));
}

static void by_fin(h2_peer *p)
{
	close(p->fd);
	p->fd = -1;
}

static void by_rst(h2_peer *p)
{
	http_peer_reset(p->fd);
	p->fd = -1;
}

static void by_half_close(h2_peer *p)
{
	shutdown(p->fd, SHUT_WR);
}

Test(disconnect_h2, by_fin, .timeout = 120)
{
	expect_left("fin", by_fin);
}

Test(disconnect_h2, by_rst, .timeout = 120)
{
	expect_left("rst", by_rst);
}

Test(disconnect_h2, by_half_close, .timeout = 120)
{
	expect_left("half", by_half_close);
}

enum { HUNDRED = 100, OF_TEN = 10 };

/* The first ten have the pool, and keep it until they are reset; of those that wait it is every other one. */
static bool is_left(uint32_t i)
{
	return i < OF_TEN || i % 2 == 0;
}

/* A hundred on one connection over a pool of ten: each reset takes its own query only. */
Test(disconnect_h2, half_of_a_hundred, .timeout = 120)
{
	static const char *const flags[] = {"--pool-size", "10", "--query-timeout", "60s", NULL};
	service *s = service_start(flags);
	h2_peer *p = h2_peer_dial(s->port);
	int left = 0;

	for (uint32_t i = 0; i < HUNDRED; i++)
		h2_peer_ask(p, 2 * i + 1, "GET", is_left(i) ? "/albums?delay=50s" : "/albums?delay=100ms");
	cr_assert(service_runs(s, OF_TEN, 10000));
	cr_assert(service_metric_becomes(s, "db_pool_waiting", HUNDRED - OF_TEN, 10000));
	for (uint32_t i = 0; i < HUNDRED; i++) {
		if (is_left(i))
			h2_peer_number(p, H2_RST_STREAM, 2 * i + 1, H2_CANCEL);
		left += is_left(i);
	}
	for (uint32_t i = 0; i < HUNDRED; i++) {
		if (!is_left(i))
			cr_expect(eq(int, h2_peer_answer(p, 2 * i + 1)->status, 200), "stream %u", 2 * i + 1);
	}
	cr_expect(service_runs(s, 0, 10000), "a query whose stream was reset goes on");
	cr_expect(service_metric_becomes(s, "http_requests_in_flight", 0, 5000));
	cr_expect(eq(int, service_log_count(s, "client_disconnect"), left));
	cr_expect(eq(int, (int)service_metric(s, "db_pool_connects_total"), OF_TEN),
	          "not all connections were kept");
	cr_expect(eq(int, p->goaways, 0));
	h2_peer_close(p);
	cr_expect(eq(int, service_stop(s), 0));
}
