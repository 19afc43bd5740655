/*
 * The end of a server: what has begun may finish, what does not is cancelled, nothing is lost or left.
 */
#include <criterion/criterion.h>
#include <criterion/new/assert.h>
#include <errno.h>
#include <netinet/in.h>
#include <poll.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include <tether/loop.h>

#include "alloc_fault.h"
#include "certificates.h"
#include "http_peer.h"
#include "support.h"
#include "tls_peer.h"
#include "watched.h"

/* Waits to be told to go on, or for its context; answers in both cases. */
static void waits(http_request *request, http_response *response)
{
	ctx *c = http_request_ctx(request);
	atomic_fetch_add(&seen.entered, 1);
	bool told = wait_event_wait(c, &seen.go) == 0;
	seen.cause = ctx_cause(c);
	http_response_text(response, told ? 200 : 503, told ? "told" : ctx_cause(c)->message);
}

/* Does not look at its context at all. */
static void stubborn(http_request *request, http_response *response)
{
	atomic_fetch_add(&seen.entered, 1);
	wait_event_wait(NULL, &seen.go);
	seen.cause = ctx_cause(http_request_ctx(request));
	http_response_text(response, 200, "at last");
}

static const http_peer_route routes[] = {{"GET /wait", waits, NULL},
                                         {"GET /stubborn", stubborn, NULL},
                                         {"GET /hello", answers_hello, NULL},
                                         {0}};

static bool is_draining(void *server)
{
	http_server_stats stats;
	http_server_stats_get(http_peer_server_of(server), &stats);
	return stats.draining;
}

/* It accepts no more. */
static bool is_shut(void *server)
{
	struct sockaddr_in in = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
	in.sin_port = htons((uint16_t)atoi(strrchr(http_peer_address(server), ':') + 1));
	int fd = socket(AF_INET, SOCK_STREAM, 0);
	bool refused = connect(fd, (struct sockaddr *)&in, sizeof(in)) != 0 && errno == ECONNREFUSED;
	close(fd);
	return refused;
}

static bool is_cancelled(void *unused)
{
	(void)unused;
	return seen.cause;
}

static int ask(http_peer_server *server, const char *path)
{
	char head[128];
	int fd = http_peer_connect(server);
	snprintf(head, sizeof(head), "GET %s HTTP/1.1\r\nHost: h\r\n\r\n", path);
	int asked = atomic_load(&seen.entered) + 1;
	http_peer_send(fd, head);
	if (strcmp(path, "/hello") != 0)
		cr_assert(eventually_counts(&seen.entered, asked, 10000));
	return fd;
}

static void expect_answer(int fd, int status, const char *body)
{
	http_peer_response response = http_peer_read(fd, false);
	cr_expect(eq(int, response.status, status));
	if (response.status > 0) {
		cr_expect(eq(str, response.body, (char *)body));
		cr_expect(eq(str, (char *)http_peer_field(&response, "Connection"), "close"));
	}
	cr_expect(http_peer_closed(fd));
	http_peer_clear(&response);
	close(fd);
}

Test(http_drain, idle_connections_are_closed_soon, .timeout = 60)
{
	http_peer_server *server = http_peer_serve(NULL, routes);
	int used = ask(server, "/hello"), fresh = http_peer_connect(server);
	http_peer_response response = http_peer_read(used, false);
	cr_expect(eq(int, response.status, 200));
	http_peer_clear(&response);
	int64_t began = now_ms();
	http_peer_drain(server);
	cr_expect(http_peer_closed(used));
	cr_expect(http_peer_closed(fresh));
	cr_expect(eq(int, http_peer_stop(server), 0));
	cr_expect(lt(long, (long)(now_ms() - began), 2000L * support_patience()));
	close(used);
	close(fresh);
}

/* Whether a second request, sent in time, was answered. */
static bool asks_once_more(bool *in_time)
{
	http_peer_server *server = http_peer_serve(NULL, routes);
	int fd = ask(server, "/hello");
	int64_t began = now_ms();
	http_peer_response first = http_peer_read(fd, false), second;
	cr_expect(eq(int, first.status, 200));
	cr_expect(eq(ptr, (void *)(uintptr_t)http_peer_field(&first, "Connection"), NULL));
	http_peer_drain(server);
	cr_assert(eventually(is_shut, server, 10000));
	http_peer_send(fd, "GET /hello HTTP/1.1\r\nHost: h\r\n\r\n");
	*in_time = now_ms() - began < 300;
	second = http_peer_read(fd, false);
	bool answered = second.status == 200;
	if (answered)
		cr_expect(eq(str, (char *)(uintptr_t)http_peer_field(&second, "Connection"), "close"));
	cr_expect(http_peer_closed(fd));
	http_peer_clear(&first);
	http_peer_clear(&second);
	close(fd);
	cr_expect(eq(int, http_peer_stop(server), 0));
	return answered;
}

/*
 * A client that asks again as soon as it is answered has its next request on its way when the drain begins. The drain
 * closed such a connection for being idle, and the request was lost.
 */
Test(http_drain, a_client_just_answered_may_ask_once_more, .timeout = 120)
{
	bool answered, in_time;
	do
		answered = asks_once_more(&in_time);
	while (!in_time); /* on a busy machine */
	cr_expect(answered);
}

Test(http_drain, requests_in_flight_finish, .timeout = 60)
{
	http_server_options options = {.on_done = see_done};
	http_peer_server *server = http_peer_serve(&options, routes);
	int fd = ask(server, "/wait");
	http_peer_drain(server);
	cr_assert(eventually(is_draining, server, 10000));
	wait_event_set(&seen.go);
	expect_answer(fd, 200, "told");
	cr_expect(eq(int, http_peer_stop(server), 0));
	cr_expect(eq(int, seen.status, 200));
	cr_expect(eq(ptr, (void *)seen.done_cause, NULL));
}

Test(http_drain, new_connections_are_refused, .timeout = 60)
{
	http_peer_server *server = http_peer_serve(&(http_server_options){.workers = 3}, routes);
	int fd = ask(server, "/wait");
	http_peer_drain(server);
	cr_expect(eventually(is_shut, server, 10000));
	wait_event_set(&seen.go);
	expect_answer(fd, 200, "told");
	cr_expect(eq(int, http_peer_stop(server), 0));
}

/*
 * What was sent before the drain is answered, even where nobody had accepted it yet.
 *
 * And the listening socket, which all workers watch, is closed by the last that has stopped watching. A worker that
 * took it out of its epoll after having counted itself off did that to a descriptor closed meanwhile, or by then
 * another's: ThreadSanitizer reports it here, each time.
 */
Test(http_drain, what_was_sent_before_is_answered, .timeout = 120)
{
	for (int round = 0; round < 20; round++) {
		http_peer_server *server = http_peer_serve(&(http_server_options){.workers = 2}, routes);
		int fds[20];
		for (int i = 0; i < 20; i++)
			fds[i] = ask(server, "/hello");
		http_peer_drain(server);
		for (int i = 0; i < 20; i++) {
			http_peer_response response = http_peer_read(fds[i], false);
			cr_assert(eq(int, response.status, 200), "round %d, connection %d", round, i);
			http_peer_clear(&response);
			close(fds[i]);
		}
		cr_expect(eq(int, http_peer_stop(server), 0));
	}
}

Test(http_drain, the_timeout_cancels_and_handlers_still_answer, .timeout = 60)
{
	http_server_options options = {.on_done = see_done, .drain_timeout = 100 * CTX_MILLISECOND};
	http_peer_server *server = http_peer_serve(&options, routes);
	int fd = ask(server, "/wait");
	int64_t began = now_ms();
	http_peer_drain(server);
	expect_answer(fd, 503, "server shutting down");
	cr_expect(ge(long, (long)(now_ms() - began), 100));
	cr_expect(eq(int, http_peer_stop(server), 0));
	cr_expect(eq(ptr, (void *)seen.cause, (void *)&HTTP_SERVER_SHUTDOWN));
	cr_expect(eq(ptr, (void *)seen.done_cause, (void *)&HTTP_SERVER_SHUTDOWN));
	cr_expect(eq(int, seen.status, 503));
}

Test(http_drain, abort_cancels_at_once, .timeout = 60)
{
	for (int draining = 0; draining < 2; draining++) {
		memset(&seen, 0, sizeof(seen));
		http_server_options options = {.on_done = see_done, .drain_timeout = 1000 * CTX_SECOND};
		http_peer_server *server = http_peer_serve(&options, routes);
		int fd = ask(server, "/wait");
		if (draining) {
			http_peer_drain(server);
			cr_assert(eventually(is_draining, server, 10000));
		}
		http_server_abort(http_peer_server_of(server));
		http_server_abort(http_peer_server_of(server));
		expect_answer(fd, 503, "server shutting down");
		cr_expect(eq(int, http_peer_stop(server), 0));
		cr_expect(eq(ptr, (void *)seen.cause, (void *)&HTTP_SERVER_SHUTDOWN));
	}
}

/* A handler that does not heed its context keeps http_serve, whose connection is cut meanwhile. */
Test(http_drain, a_stubborn_handler_is_waited_for, .timeout = 60)
{
	http_server_options options = {.on_done = see_done, .drain_timeout = 1};
	http_peer_server *server = http_peer_serve(&options, routes);
	int fd = ask(server, "/stubborn");
	http_peer_drain(server);
	cr_expect(http_peer_closed(fd));
	cr_expect(eq(int, seen.done, 0));
	wait_event_set(&seen.go);
	cr_expect(eq(int, http_peer_stop(server), 0));
	cr_expect(eq(int, seen.done, 1));
	cr_expect(eq(int, seen.status, 503));
	cr_expect(eq(ptr, (void *)seen.cause, (void *)&HTTP_SERVER_SHUTDOWN));
	close(fd);
}

/* A client that sends its request slowly does not hold up the end. */
Test(http_drain, requests_half_sent_are_cut_at_the_timeout, .timeout = 60)
{
	http_server_options options = {.on_done = see_done, .drain_timeout = 50 * CTX_MILLISECOND};
	http_peer_server *server =
		http_peer_serve(&options, (http_peer_route[]){{"POST /", answers_hello, NULL}, {0}});
	int head = http_peer_connect(server), body = http_peer_connect(server);
	http_peer_send(head, "GET / HT");
	http_peer_send(body, "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 10\r\n\r\nabc");
	http_peer_response response = http_peer_ask(server, "POST", "/", "x");
	cr_expect(eq(int, response.status, 200));
	http_peer_clear(&response);
	http_peer_drain(server);
	cr_expect(http_peer_closed(head));
	cr_expect(http_peer_closed(body));
	cr_expect(eq(int, http_peer_stop(server), 0));
	close(head);
	close(body);
}

static void floods(http_request *request, http_response *response)
{
	char data[4096] = {0};
	(void)request;
	atomic_fetch_add(&seen.entered, 1);
	while (http_write(response, data, sizeof(data)) == 0)
		;
	seen.cause = ctx_cause(http_request_ctx(request));
}

Test(http_drain, a_stream_nobody_reads_is_cut, .timeout = 60)
{
	http_server_options options = {.drain_timeout = 50 * CTX_MILLISECOND};
	http_peer_server *server =
		http_peer_serve(&options, (http_peer_route[]){{"GET /flood", floods, NULL}, {0}});
	int fd = ask(server, "/flood");
	http_peer_drain(server);
	cr_assert(eventually(is_cancelled, NULL, 10000));
	http_peer_response response = http_peer_read(fd, false);
	cr_expect(eq(int, response.status, -1), "a stream that was cut looks whole");
	http_peer_clear(&response);
	cr_expect(eq(int, http_peer_stop(server), 0));
	cr_expect(eq(ptr, (void *)seen.cause, (void *)&HTTP_SERVER_SHUTDOWN));
	close(fd);
}

/* ---- With TLS ---------------------------------------------------------------------------------------- */

static http_peer_server *serve_tls(void)
{
	const certificates *c = certificates_get();
	http_tls *tls =
		http_tls_new(&(http_tls_options){.certificate = c->server, .key = c->server_key}, NULL, 0);
	http_peer_server *server = http_peer_serve_tls(NULL, routes, tls);
	http_tls_free(tls);
	return server;
}

/* Whether a client that had connected only was served, if it began its handshake in time. */
static bool shakes_hands_yet(bool *in_time)
{
	http_peer_server *server = serve_tls();
	int64_t began = now_ms();
	int fd = http_peer_connect(server), status = 0;
	http_peer_drain(server);
	cr_assert(eventually(is_shut, server, 10000));
	tls_peer *p = tls_peer_new(fd, NULL);
	*in_time = now_ms() - began < 300;
	if (tls_peer_handshake(p) == 0 && tls_peer_send(p, "GET /hello HTTP/1.1\r\nHost: h\r\n\r\n")) {
		http_peer_response response = tls_peer_read(p, false);
		status = response.status;
		http_peer_clear(&response);
	}
	tls_peer_close(p);
	cr_expect(eq(int, http_peer_stop(server), 0));
	return status == 200;
}

/* It was closed at once: its first bytes were yet to come, which over TLS take a round trip more to be of any use. */
Test(http_drain, a_client_just_connected_may_begin_its_handshake, .timeout = 120)
{
	bool served, in_time;
	do
		served = shakes_hands_yet(&in_time);
	while (!in_time); /* on a busy machine */
	cr_expect(served);
}

/* And a slow one may take what the drain has, not the half second that a silent client gets. */
Test(http_drain, a_handshake_that_has_begun_goes_on, .timeout = 60)
{
	http_peer_server *server = serve_tls();
	int fd = http_peer_connect(server);
	http_peer_send_bytes(fd, "\x16\x03", 2);
	http_peer_drain(server);
	cr_assert(eventually(is_shut, server, 10000));
	cr_expect(eq(int, poll(&(struct pollfd){.fd = fd, .events = POLLIN}, 1, 1000), 0));
	close(fd);
	cr_expect(eq(int, http_peer_stop(server), 0));
}

/* ---- Beginnings that fail ---------------------------------------------------------------------------- */

Test(http_drain, serving_needs_an_address_and_happens_once, .timeout = 60)
{
	ctx *over = ctx_with_cancel(ctx_background());
	ctx_cancel(over);
	http_server *server = http_server_new(NULL);
	cr_expect(eq(int, http_serve(server, over), -1));
	cr_expect(eq(int, errno, EINVAL));
	cr_assert(eq(int, http_listen(server, "127.0.0.1:0", NULL, 0), 0));
	cr_expect(eq(int, http_serve(server, over), 0));
	cr_expect(eq(int, http_serve(server, over), -1));
	cr_expect(eq(int, errno, EINVAL));
	http_server_free(server);
	server = http_server_new(NULL);
	cr_assert(eq(int, http_listen(server, "127.0.0.1:0", NULL, 0), 0));
	http_server_abort(server);
	cr_expect(eq(int, http_serve(server, ctx_background()), 0));
	http_server_free(server);
	http_server_free(NULL);
	ctx_release(over);
}

static void serve_with_faults(fault_kind kind)
{
	ctx *over = ctx_with_cancel(ctx_background());
	ctx_cancel(over);
	bool failed = true;
	unsigned n;
	for (n = 1; failed; n++) {
		cr_assert(lt(uint, n, 500));
		http_server *server = http_server_new(&(http_server_options){.workers = 3});
		cr_assert(eq(int, http_listen(server, "127.0.0.1:0", NULL, 0), 0));
		fault_set(kind, n);
		int result = http_serve(server, over);
		failed = fault_clear(kind);
		if (result != 0) {
			cr_expect(failed);
			cr_expect(ne(int, errno, 0));
			cr_expect(eq(int, http_serve(server, over), 0), "it cannot be tried again, n = %u",
			          n);
		}
		http_server_free(server);
	}
	cr_expect(ge(uint, n, 4));
	ctx_release(over);
}

Test(http_drain, starting_survives_allocations_that_fail, .timeout = 120)
{
	serve_with_faults(FAULT_MEMORY);
}

Test(http_drain, starting_survives_threads_that_fail, .timeout = 120)
{
	serve_with_faults(FAULT_THREAD);
}
