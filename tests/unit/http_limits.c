/*
 * What one client may cost: time for each phase of a request, bytes, connections, processor time.
 */
#include <criterion/criterion.h>
#include <criterion/new/assert.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include <tether/loop.h>

#include "http_peer.h"
#include "support.h"
#include "watched.h"

static const http_peer_route routes[] = {
	{"GET /", answers_hello, NULL}, {"POST /", answers_hello, NULL}, {0}};

static void expect_status(int fd, int status)
{
	http_peer_response response = http_peer_read(fd, false);
	cr_expect(eq(int, response.status, status));
	if (status >= 400)
		cr_expect(eq(str, (char *)http_peer_field(&response, "Content-Type"),
		             "application/problem+json"));
	http_peer_clear(&response);
}

/* ---- Time -------------------------------------------------------------------------------------------- */

/* All times are out of the way but the one under test. */
static http_server_options patient(void)
{
	return (http_server_options){
		.header_timeout = 1000 * CTX_SECOND,
		.body_timeout = 1000 * CTX_SECOND,
		.write_timeout = 1000 * CTX_SECOND,
		.idle_timeout = 1000 * CTX_SECOND,
		.on_done = see_done,
	};
}

/* Sends text a byte at a time, the last byte over and over, until the server has had enough. */
static void trickle(int fd, const char *text)
{
	struct pollfd readable = {.fd = fd, .events = POLLIN};
	while (poll(&readable, 1, 5) == 0) {
		if (!http_peer_send_bytes(fd, text, 1))
			break;
		text += text[1] != '\0';
	}
}

Test(http_limits, a_head_must_arrive_in_time, .timeout = 60)
{
	http_server_options options = patient();
	options.header_timeout = 200 * CTX_MILLISECOND;
	http_peer_server *server = http_peer_serve(&options, routes);
	int64_t began = now_ms(); /* their time begins as they connect */
	int silent = http_peer_connect(server), half = http_peer_connect(server),
	    slow = http_peer_connect(server);
	http_peer_send(half, "GET / HTTP/1.1\r\nHos");
	trickle(slow, "GET / HTTP/1.1\r\nHost: aaaa");
	cr_expect(ge(long, (long)(now_ms() - began), 200));
	cr_expect(lt(long, (long)(now_ms() - began), 5000L * support_patience()));
	expect_status(slow, 408);
	expect_status(half, 408);
	cr_expect(http_peer_closed(half));
	http_peer_response none = http_peer_read(silent, false);
	cr_expect(eq(int, none.status, 0), "an answer to nothing");
	http_peer_clear(&none);
	close(silent);
	close(half);
	close(slow);
	http_peer_stop(server);
	cr_expect(eq(int, seen.done, 0));
}

/* On a connection that has been idle, the time for the next head begins with its first byte. */
Test(http_limits, the_next_head_must_arrive_in_time, .timeout = 60)
{
	http_server_options options = patient();
	options.header_timeout = 200 * CTX_MILLISECOND;
	http_peer_server *server = http_peer_serve(&options, routes);
	int fd = http_peer_connect(server);
	http_peer_send(fd, "GET / HTTP/1.1\r\nHost: h\r\n\r\n");
	expect_status(fd, 200);
	int64_t began;
	struct pollfd readable = {.fd = fd, .events = POLLIN};
	cr_expect(eq(int, poll(&readable, 1, 1000), 0), "idleness was taken for a slow head");
	began = now_ms();
	trickle(fd, "GET / HTTP/1.1\r\nHost: aaaa");
	cr_expect(ge(long, (long)(now_ms() - began), 200));
	cr_expect(lt(long, (long)(now_ms() - began), 5000L * support_patience()));
	expect_status(fd, 408);
	close(fd);
	http_peer_stop(server);
}

Test(http_limits, idle_connections_are_closed, .timeout = 60)
{
	http_server_options options = patient();
	options.idle_timeout = 200 * CTX_MILLISECOND;
	http_peer_server *server = http_peer_serve(&options, routes);
	int fd = http_peer_connect(server);
	int64_t began = now_ms();
	for (int i = 0; i < 3; i++) {
		http_peer_send(fd, "GET / HTTP/1.1\r\nHost: h\r\n\r\n");
		expect_status(fd, 200);
		began = now_ms();
	}
	http_peer_response none = http_peer_read(fd, false);
	cr_expect(eq(int, none.status, 0));
	http_peer_clear(&none);
	cr_expect(ge(long, (long)(now_ms() - began), 190));
	cr_expect(lt(long, (long)(now_ms() - began), 4000L * support_patience()));
	close(fd);
	http_peer_stop(server);
}

/*
 * libmicrohttpd counts its own, later, idle timeout in seconds of 32 bits: of 136 years less four seconds there was one
 * second left.
 */
Test(http_limits, the_longest_times_are_long, .timeout = 60)
{
	http_server_options options = {.header_timeout = INT64_MAX,
	                               .body_timeout = INT64_MAX,
	                               .write_timeout = INT64_MAX,
	                               .idle_timeout = ((INT64_C(1) << 32) - 4) * CTX_SECOND,
	                               .request_timeout = INT64_MAX};
	http_peer_server *server = http_peer_serve(&options, routes);
	int fd = http_peer_connect(server);
	for (int round = 0; round < 2; round++) {
		cr_expect(http_peer_send(fd, "GET / HTTP/1.1\r\nHost: h\r\n\r\n"));
		expect_status(fd, 200);
		struct pollfd idle = {.fd = fd, .events = POLLIN};
		cr_expect(eq(int, poll(&idle, 1, round == 0 ? 4000 : 0), 0), "it was closed");
	}
	close(fd);
	http_peer_stop(server);
}

Test(http_limits, a_body_must_arrive_in_time, .timeout = 60)
{
	http_server_options options = patient();
	options.body_timeout = 200 * CTX_MILLISECOND;
	http_peer_server *server = http_peer_serve(&options, routes);
	int fd = http_peer_connect(server);
	int64_t began = now_ms();
	http_peer_send(fd, "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 100000\r\n\r\n");
	trickle(fd, "xxxx");
	cr_expect(ge(long, (long)(now_ms() - began), 200));
	cr_expect(lt(long, (long)(now_ms() - began), 5000L * support_patience()));
	expect_status(fd, 408);
	close(fd);
	cr_assert(eventually_counts(&seen.done, 1, 10000));
	cr_expect(eq(int, seen.status, 408));
	http_peer_stop(server);
	cr_expect(eq(int, seen.done, 1));
}

static void much(http_request *request, http_response *response)
{
	static char data[100000];
	if (http_request_data(request)) {
		while (http_write(response, data, sizeof(data)) == 0)
			;
	} else {
		for (int i = 0; i < 200; i++)
			http_response_append(response, data, sizeof(data));
	}
}

/* A client that stops reading is reset, whether the answer is buffered or a stream. */
Test(http_limits, an_answer_must_be_taken, .timeout = 60)
{
	http_server_options options = patient();
	options.write_timeout = 300 * CTX_MILLISECOND;
	http_peer_server *server = http_peer_serve(
		&options,
		(http_peer_route[]){{"GET /buffered", much, NULL}, {"GET /stream", much, &seen}, {0}});
	for (int i = 0; i < 2; i++) {
		int fd = http_peer_connect_narrow(server);
		int64_t began = now_ms();
		http_peer_send(fd, i ? "GET /stream HTTP/1.1\r\nHost: h\r\n\r\n"
		                     : "GET /buffered HTTP/1.1\r\nHost: h\r\n\r\n");
		cr_assert(eventually_counts(&seen.done, i + 1, 10000));
		cr_expect(ge(long, (long)(now_ms() - began), 300));
		cr_expect(eq(int, seen.status, 499));
		http_peer_response response = http_peer_read(fd, false);
		cr_expect(eq(int, response.status, -1));
		http_peer_clear(&response);
		close(fd);
	}
	http_peer_stop(server);
	cr_expect(eq(int, seen.done, 2));
}

/* One that takes a little now and then keeps its connection, however long it takes in all. */
Test(http_limits, a_slow_reader_is_not_a_dead_one, .timeout = 60)
{
	http_server_options options = patient();
	options.write_timeout = 500 * CTX_MILLISECOND;
	http_peer_server *server = http_peer_serve(&options, (http_peer_route[]){{"GET /", much, NULL}, {0}});
	int fd = http_peer_connect_narrow(server);
	char data[64 * 1024];
	int64_t began = now_ms();
	http_peer_send(fd, "GET / HTTP/1.1\r\nHost: h\r\n\r\n");
	while (now_ms() - began < 2000) {
		cr_assert(ge(long, (long)recv(fd, data, sizeof(data), 0), 1));
		poll(NULL, 0, 50);
	}
	cr_expect(eq(int, seen.done, 0));
	http_peer_reset(fd);
	http_peer_stop(server);
}

static void slow(http_request *request, http_response *response)
{
	if (wait_sleep(http_request_ctx(request), CTX_SECOND) == 0)
		http_response_text(response, 200, "slept");
}

/* The client's times do not run while it waits for us. */
Test(http_limits, handlers_may_take_their_time, .timeout = 60)
{
	http_server_options options = {.header_timeout = 100 * CTX_MILLISECOND,
	                               .body_timeout = 100 * CTX_MILLISECOND,
	                               .write_timeout = 100 * CTX_MILLISECOND,
	                               .idle_timeout = 100 * CTX_MILLISECOND};
	http_peer_server *server = http_peer_serve(&options, (http_peer_route[]){{"GET /", slow, NULL}, {0}});
	http_peer_response response = http_peer_ask(server, "GET", "/", NULL);
	cr_expect(eq(int, response.status, 200));
	http_peer_clear(&response);
	http_peer_stop(server);
}

/* ---- Bytes ------------------------------------------------------------------------------------------- */

Test(http_limits, bodies_are_bounded, .timeout = 60)
{
	http_server_options options = {.body_size = 1000, .on_done = see_done};
	http_peer_server *server = http_peer_serve(&options, routes);
	struct {
		char *request;
		int status;
	} cases[] = {
		{support_repeat("POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 1000\r\n\r\n", "a", 1000, ""),
	         200},
		{support_repeat("POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 1001\r\n\r\n", "a", 1001, ""),
	         413},
		{support_repeat("POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 999999999999\r\n\r\n", "a", 10,
	                        ""),
	         413},
		{support_repeat("POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n",
	                        "5\r\nhello\r\n", 200, "0\r\n\r\n"),
	         200},
		{support_repeat("POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n",
	                        "5\r\nhello\r\n", 201, "0\r\n\r\n"),
	         413},
	};
	int done = 0;
	for (size_t i = 0; i < sizeof(cases) / sizeof(*cases); i++) {
		int fd = http_peer_connect(server);
		http_peer_send(fd, cases[i].request);
		http_peer_response response = http_peer_read(fd, false);
		cr_expect(eq(int, response.status, cases[i].status), "case %zu", i);
		http_peer_clear(&response);
		close(fd);
		free(cases[i].request);
		done++;
		cr_assert(eventually_counts(&seen.done, done, 10000));
		cr_expect(eq(int, seen.status, cases[i].status), "case %zu", i);
	}
	http_peer_stop(server);
	cr_expect(eq(int, seen.done, done));
}

/*
 * The answer to a body that is too long goes out before the body has come. If the connection were closed at
 * once, the bytes still coming would have the kernel reset it, and a client that first sends all it has
 * would never read the answer.
 */
Test(http_limits, a_refusal_reaches_a_client_that_goes_on_sending, .timeout = 60)
{
	enum { LENGTH = 32 << 20 };
	http_server_options options = {.body_size = 1000};
	http_peer_server *server = http_peer_serve(&options, routes);
	char *body = calloc(1, LENGTH);
	char head[128];
	snprintf(head, sizeof(head), "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n\r\n", LENGTH);
	for (int i = 0; i < 5; i++) {
		int fd = http_peer_connect(server);
		cr_assert(http_peer_send(fd, head));
		cr_expect(http_peer_send_bytes(fd, body, LENGTH));
		http_peer_response response = http_peer_read(fd, false);
		cr_expect(eq(int, response.status, 413));
		http_peer_clear(&response);
		cr_expect(http_peer_closed(fd));
		close(fd);
	}
	free(body);
	http_peer_stop(server);
}

/* ---- Connections ------------------------------------------------------------------------------------- */

static bool connections_are(void *arg)
{
	struct {
		http_peer_server *server;
		size_t count;
	} *wanted = arg;
	http_server_stats stats;
	http_server_stats_get(http_peer_server_of(wanted->server), &stats);
	return stats.connections == wanted->count;
}

Test(http_limits, connections_beyond_the_limit_are_told, .timeout = 60)
{
	http_server_options options = {.connections = 5};
	http_peer_server *server = http_peer_serve(&options, routes);
	struct {
		http_peer_server *server;
		size_t count;
	} wanted = {server, 5};
	int fds[5];
	for (int i = 0; i < 5; i++)
		fds[i] = http_peer_connect(server);
	cr_assert(eventually(connections_are, &wanted, 10000));
	for (int i = 0; i < 3; i++) {
		int fd = http_peer_connect(server);
		http_peer_response response = http_peer_read(fd, false);
		cr_expect(eq(int, response.status, 503));
		cr_expect_not_null(http_peer_field(&response, "Retry-After"));
		cr_expect(http_peer_closed(fd));
		http_peer_clear(&response);
		close(fd);
	}
	/* Those that are in are served, and a place that is free again is given away. */
	for (int i = 0; i < 5; i++) {
		http_peer_send(fds[i], "GET / HTTP/1.1\r\nHost: h\r\n\r\n");
		expect_status(fds[i], 200);
	}
	close(fds[0]);
	wanted.count = 4;
	cr_assert(eventually(connections_are, &wanted, 10000));
	fds[0] = http_peer_connect(server);
	http_peer_send(fds[0], "GET / HTTP/1.1\r\nHost: h\r\n\r\n");
	expect_status(fds[0], 200);
	http_server_stats stats;
	http_server_stats_get(http_peer_server_of(server), &stats);
	cr_expect(eq(u64, stats.connections_refused, 3));
	for (int i = 0; i < 5; i++)
		close(fds[i]);
	http_peer_stop(server);
}

/* ---- Processor time ---------------------------------------------------------------------------------- */

static double processor_seconds(void)
{
	struct timespec now;
	clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &now);
	return (double)now.tv_sec + (double)now.tv_nsec / 1e9;
}

/* A chunk extension larger than its buffer has libmicrohttpd 0.9.75 run in circles until somebody ends it. */
Test(http_limits, an_endless_chunk_extension_does_not_cost_a_processor, .timeout = 60)
{
	http_server_options options = patient();
	options.body_timeout = 2 * CTX_SECOND;
	http_peer_server *server = http_peer_serve(&options, routes);
	char *request = support_repeat(
		"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n5;x=", "a", 40000, "");
	int fd = http_peer_connect(server);
	http_peer_send(fd, request);
	free(request);
	http_peer_response response = http_peer_ask(server, "GET", "/", NULL);
	cr_expect(eq(int, response.status, 200));
	http_peer_clear(&response);
	double began = processor_seconds();
	int64_t began_ms = now_ms();
	struct pollfd closed = {.fd = fd, .events = POLLIN};
	poll(&closed, 1, 10000);
	double spent = processor_seconds() - began;
	cr_expect(lt(dbl, spent, 0.3 * support_patience()), "%.2f s of processor time in %ld ms", spent,
	          (long)(now_ms() - began_ms));
	cr_expect(http_peer_closed(fd));
	close(fd);
	cr_expect(eq(int, http_peer_stop(server), 0));
}
