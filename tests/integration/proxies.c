/*
 * Behind nginx and HAProxy: a client that leaves the proxy takes its query with it, which is the proxy's to pass on and
 * ours to understand; and connections are kept between the two, whatever becomes of the requests on them.
 */
#include <criterion/criterion.h>
#include <criterion/new/assert.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "certificates.h"
#include "client.h"
#include "leaving.h"
#include "process.h"
#include "proxy.h"
#include "service.h"
#include "support.h"

enum { REQUESTS = 50 };

static const struct setup {
	const char *name;
	proxy_program program;
	bool tls, http2;
} setups[] = {
	{"nginx", PROXY_NGINX, false, false},        {"nginx-tls", PROXY_NGINX, true, false},
	{"haproxy", PROXY_HAPROXY, false, false},    {"haproxy-tls", PROXY_HAPROXY, true, false},
	{"haproxy-h2c", PROXY_HAPROXY, false, true}, {"haproxy-h2", PROXY_HAPROXY, true, true},
};

enum { NGINX, NGINX_TLS, HAPROXY, HAPROXY_TLS, HAPROXY_H2C, HAPROXY_H2 };

/* albumd and the proxy before it. Skips the test if there is no such proxy. */
static proxy *start(const struct setup *setup, bool keeps_going, service **s)
{
	const certificates *c = certificates_get();
	const char *const flags[] = {
		"--pool-size", "1",         "--query-timeout", "60s", setup->tls ? "--tls-cert" : NULL,
		c->server,     "--tls-key", c->server_key,     NULL};
	if (!proxy_is_there(setup->program))
		cr_skip_test("%s is not on this machine", setup->name);
	*s = service_start(flags);
	return proxy_start(&(proxy_options){.program = setup->program,
	                                    .server_port = (*s)->port,
	                                    .ca = setup->tls ? c->ca : NULL,
	                                    .http2 = setup->http2,
	                                    .keeps_going = keeps_going});
}

/* A client of the proxy that leaves, and the next one's request on the same database connection. */
static void expect_left(int which, const char *way, void (*leave)(client *c))
{
	service *s;
	proxy *p = start(&setups[which], false, &s);
	double stopped[ATTEMPTS];
	for (int i = 0; i < ATTEMPTS; i++) {
		char target[96];
		snprintf(target, sizeof(target), "/albums?delay=50s&by=%s-%s-%d", setups[which].name, way, i);
		client *c = client_connect(proxy_port(p));
		cr_assert_not_null(c);
		cr_assert(client_send_get(c, target));
		leaving l = leaving_now(s);
		leave(c);
		stopped[i] = leaving_cancels(&l, target);
		cr_expect(eq(int, client_get(proxy_port(p), "/albums/1", NULL, 5000), 200));
		leaving_keeps(&l);
	}
	expect_in_time(stopped);
	proxy_stop(p);
	cr_expect(eq(int, service_stop(s), 0));
}

static void expect_left_either_way(int which)
{
	expect_left(which, "fin", client_close);
	expect_left(which, "rst", client_reset);
}

Test(proxies, nginx_passes_on_that_a_client_left, .timeout = 120)
{
	expect_left_either_way(NGINX);
}

Test(proxies, nginx_passes_it_on_over_tls, .timeout = 120)
{
	expect_left_either_way(NGINX_TLS);
}

Test(proxies, haproxy_passes_on_that_a_client_left, .timeout = 120)
{
	expect_left_either_way(HAPROXY);
}

Test(proxies, haproxy_passes_it_on_over_tls, .timeout = 120)
{
	expect_left_either_way(HAPROXY_TLS);
}

/* Over HTTP/2 as a stream reset, on a connection that other clients' requests share. */
Test(proxies, haproxy_passes_it_on_over_http2, .timeout = 120)
{
	expect_left_either_way(HAPROXY_H2C);
}

Test(proxies, haproxy_passes_it_on_over_http2_and_tls, .timeout = 120)
{
	expect_left_either_way(HAPROXY_H2);
}

/* What server/README.md says of the settings is so: without them the query goes on when the client has left. */
static void expect_kept_going(int which)
{
	service *s;
	proxy *p = start(&setups[which], true, &s);
	client *c = client_connect(proxy_port(p));
	cr_assert_not_null(c);
	cr_assert(client_send_get(c, "/albums?delay=2s"));
	cr_assert(service_runs(s, 1, 10000));
	client_close(c);
	json_t *line = service_log(s, "/albums?delay=2s", 10000);
	cr_assert_not_null(line);
	cr_expect(service_line_is(line, 200, NULL, NULL), "the log says %s", service_line(line));
	json_decref(line);
	proxy_stop(p);
	cr_expect(eq(int, service_stop(s), 0));
}

Test(proxies, nginx_told_to_ignore_it_does, .timeout = 60)
{
	expect_kept_going(NGINX);
}

Test(proxies, haproxy_not_told_to_abort_does_not, .timeout = 60)
{
	expect_kept_going(HAPROXY);
}

/* Every so often a client leaves in the middle; the others' requests are answered, over connections that are kept. */
static void expect_kept_connections(int which)
{
	service *s;
	proxy *p = start(&setups[which], false, &s);
	client *c = client_connect(proxy_port(p));
	double before = service_metric(s, "http_connections_total");
	cr_assert_not_null(c);
	for (int i = 0; i < REQUESTS; i++) {
		reply r;
		cr_assert(client_send_get(c, i % 2 ? "/albums/1" : "/albums"));
		cr_assert(client_receive(c, &r, 5000), "request %d", i);
		cr_expect(eq(int, r.status, 200), "request %d", i);
		reply_free(&r);
	}
	double after = service_metric(s, "http_connections_total");
	cr_expect(before >= 0 && after - before <= 2, "%g connections for %d requests", after - before,
	          REQUESTS);
	client_close(c);
	proxy_stop(p);
	cr_expect(eq(int, service_stop(s), 0));
}

Test(proxies, connections_are_kept, .timeout = 120)
{
	for (int which = 0; which <= HAPROXY_H2; which++)
		if (proxy_is_there(setups[which].program))
			expect_kept_connections(which);
}
