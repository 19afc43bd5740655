/*
 * Responses in pieces: framing, back-pressure, and ends that can be told from failures.
 */
#include <criterion/criterion.h>
#include <criterion/new/assert.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include <tether/loop.h>

#include "http_peer.h"
#include "support.h"
#include "watched.h"

static atomic_long written; /* bytes that http_write has taken */
static atomic_int result;   /* of the last http_write */

static int count_write(http_response *response, const void *data, size_t size)
{
	result = http_write(response, data, size);
	if (result == 0)
		atomic_fetch_add(&written, (long)size);
	return result;
}

static size_t number(const http_request *request)
{
	return strtoul(http_path_value(request, "n"), NULL, 10);
}

/* n lines, small ones, with a wait now and then. */
static void lines(http_request *request, http_response *response)
{
	http_response_header(response, "Content-Type", "text/plain");
	http_response_append(response, "begin\n", 6);
	for (size_t i = 0; i < number(request); i++) {
		char text[32];
		int size = snprintf(text, sizeof(text), "line %zu\n", i);
		if (count_write(response, text, (size_t)size) != 0)
			break;
		if (i % 100 == 3)
			wait_sleep(http_request_ctx(request), CTX_MILLISECOND / 10);
	}
	/* Too late for all of these. */
	http_response_status(response, 404);
	http_response_header(response, "X-Late", "1");
	http_response_append(response, "late", 4);
	seen.cause = ctx_cause(http_request_ctx(request));
	atomic_fetch_add(&seen.returned, 1);
}

/* n bytes in one write. */
static void block(http_request *request, http_response *response)
{
	size_t size = number(request);
	char *data = malloc(size + 1);
	for (size_t i = 0; i < size; i++)
		data[i] = (char)(i * 31 + i / 999);
	count_write(response, data, size);
	free(data);
	atomic_fetch_add(&seen.returned, 1);
}

static char *expected_lines(size_t n)
{
	char *text = malloc(n * 16 + 16), *end = stpcpy(text, "begin\n");
	for (size_t i = 0; i < n; i++)
		end += sprintf(end, "line %zu\n", i);
	return text;
}

static const http_peer_route routes[] = {
	{"GET /lines/{n}", lines, NULL}, {"GET /block/{n}", block, NULL}, {0}};

Test(http_stream, pieces_arrive_in_order_and_the_connection_goes_on, .timeout = 60)
{
	http_peer_server *server = http_peer_serve(&watched, routes);
	int fd = http_peer_connect(server);
	char *expected = expected_lines(20000);
	http_peer_send(
		fd,
		"GET /lines/20000 HTTP/1.1\r\nHost: h\r\n\r\nGET /lines/20000 HTTP/1.1\r\nHost: h\r\n\r\n");
	for (int i = 0; i < 2; i++) {
		http_peer_response response = http_peer_read(fd, false);
		cr_expect(eq(int, response.status, 200));
		cr_expect(response.chunked);
		cr_assert(eq(sz, response.body_size, strlen(expected)));
		cr_assert(strcmp(response.body, expected) == 0);
		cr_expect_null(http_peer_field(&response, "X-Late"));
		http_peer_clear(&response);
	}
	cr_assert(eventually_counts(&seen.done, 2, 10000));
	cr_expect(eq(int, seen.status, 200));
	cr_expect(eq(llong, seen.bytes, (long long)strlen(expected)));
	cr_expect(eq(ptr, (void *)seen.done_cause, NULL));
	free(expected);
	close(fd);
	http_peer_stop(server);
}

Test(http_stream, one_write_may_be_larger_than_any_buffer, .timeout = 60)
{
	http_peer_server *server = http_peer_serve(&watched, routes);
	static const char *const sizes[] = {"0", "1", "65535", "65536", "65537", "5000000"};
	for (size_t i = 0; i < sizeof(sizes) / sizeof(*sizes); i++) {
		char target[64];
		snprintf(target, sizeof(target), "/block/%s", sizes[i]);
		http_peer_response response = http_peer_ask(server, "GET", target, NULL);
		cr_assert(eq(int, response.status, 200));
		cr_assert(eq(sz, response.body_size, strtoul(sizes[i], NULL, 10)));
		for (size_t at = 0; at < response.body_size; at++)
			cr_assert(eq(chr, response.body[at], (char)(at * 31 + at / 999)));
		http_peer_clear(&response);
	}
	http_peer_stop(server);
}

/* HTTP/1.0 knows no chunks: the body ends with the connection. */
Test(http_stream, for_http_1_0, .timeout = 60)
{
	http_peer_server *server = http_peer_serve(&watched, routes);
	int fd = http_peer_connect(server);
	char *expected = expected_lines(5000);
	http_peer_send(fd, "GET /lines/5000 HTTP/1.0\r\n\r\n");
	http_peer_response response = http_peer_read(fd, false);
	cr_expect(eq(int, response.status, 200));
	cr_expect(not(response.chunked));
	cr_expect(strcmp(response.body, expected) == 0);
	http_peer_clear(&response);
	free(expected);
	close(fd);
	http_peer_stop(server);
}

/* HEAD: what GET would say, and no body; not even the end of one, which the next response would begin with. */
Test(http_stream, for_head, .timeout = 60)
{
	http_peer_server *server = http_peer_serve(&watched, routes);
	int fd = http_peer_connect(server);
	for (int i = 0; i < 3; i++) {
		http_peer_send(fd, "HEAD /lines/500 HTTP/1.1\r\nHost: h\r\n\r\n");
		http_peer_response response = http_peer_read(fd, true);
		cr_assert(eq(int, response.status, 200));
		cr_expect(eq(str, (char *)http_peer_field(&response, "Content-Type"), "text/plain"));
		cr_expect_null(http_peer_field(&response, "Content-Length"), "the length is not known");
		if (http_peer_field(&response, "Connection")) {
			/* What libmicrohttpd 0.9.75 needs to get this right. */
			cr_expect(http_peer_closed(fd));
			close(fd);
			fd = http_peer_connect(server);
		}
		http_peer_clear(&response);
		http_peer_send(fd, "GET /block/5 HTTP/1.1\r\nHost: h\r\n\r\n");
		response = http_peer_read(fd, false);
		cr_assert(eq(int, response.status, 200));
		cr_expect(eq(sz, response.body_size, 5));
		http_peer_clear(&response);
	}
	cr_expect(eq(int, result, 0));
	close(fd);
	http_peer_stop(server);
}

/* ---- Back-pressure ----------------------------------------------------------------------------------- */

enum { FLOOD_MAX = 256 * 1024 * 1024 };

static void flood(http_request *request, http_response *response)
{
	static char data[10000];
	for (size_t i = 0; i < sizeof(data); i++)
		data[i] = (char)('a' + i % 26);
	while (atomic_load(&written) < FLOOD_MAX && count_write(response, data, sizeof(data)) == 0)
		;
	seen.cause = ctx_cause(http_request_ctx(request));
	atomic_fetch_add(&seen.returned, 1);
}

static bool stands_still(void *last)
{
	long now = atomic_load(&written);
	bool still = now > 0 && now == *(long *)last;
	*(long *)last = now;
	return still;
}

/* Waits until the handler has not got further for a while. */
static long wait_for_standstill(void)
{
	long last = -1;
	for (int calm = 0; calm < 20; calm++)
		cr_assert(eventually(stands_still, &last, 20000));
	return last;
}

Test(http_stream, a_slow_client_holds_the_handler_not_memory, .timeout = 120)
{
	http_peer_server *server =
		http_peer_serve(&watched, (http_peer_route[]){{"GET /flood", flood, NULL}, {0}});
	int fd = http_peer_connect_narrow(server);
	long before = support_resident_kib();
	http_peer_send(fd, "GET /flood HTTP/1.1\r\nHost: h\r\n\r\n");
	long stopped = wait_for_standstill();
	cr_expect(lt(long, stopped, 16L * 1024 * 1024), "nothing holds the handler back");
	/* What the client takes, the handler may add; no more. */
	char data[64 * 1024];
	for (long taken = 0; taken < 8 * 1024 * 1024;) {
		ssize_t got = recv(fd, data, sizeof(data), 0);
		cr_assert(ge(long, (long)got, 1));
		taken += got;
	}
	long further = wait_for_standstill();
	cr_expect(ge(long, further, stopped + 1));
	cr_expect(lt(long, further, stopped + 16L * 1024 * 1024));
	cr_expect(lt(long, support_resident_kib() - before, 8L * 1024 * support_patience()));
	http_peer_reset(fd);
	cr_assert(eventually_counts(&seen.done, 1, 10000));
	http_peer_stop(server);
}

/* ---- Ends -------------------------------------------------------------------------------------------- */

Test(http_stream, leaving_ends_a_write_that_waits, .timeout = 60)
{
	http_peer_server *server =
		http_peer_serve(&watched, (http_peer_route[]){{"GET /flood", flood, NULL}, {0}});
	for (int way = 0; way < WAYS_TO_LEAVE; way++) {
		written = 0;
		int fd = http_peer_connect_narrow(server);
		http_peer_send(fd, "GET /flood HTTP/1.1\r\nHost: h\r\n\r\n");
		wait_for_standstill();
		int rest = http_peer_leave(fd, (enum http_peer_way)way);
		cr_assert(eventually_counts(&seen.returned, way + 1, 10000), "way %d", way);
		cr_assert(eventually_counts(&seen.done, way + 1, 10000), "way %d", way);
		cr_expect(eq(int, result, -1));
		cr_expect(eq(ptr, (void *)seen.cause, (void *)&HTTP_CLIENT_DISCONNECTED));
		cr_expect(eq(ptr, (void *)seen.done_cause, (void *)&HTTP_CLIENT_DISCONNECTED));
		cr_expect(eq(int, seen.status, 499));
		if (rest >= 0)
			close(rest);
	}
	http_peer_stop(server);
	cr_expect(eq(int, seen.done, 3));
}

/* A handler that waits for something else between two writes. */
static void starts_then_waits(http_request *request, http_response *response)
{
	count_write(response, "first", 5);
	wait_event_wait(http_request_ctx(request), &seen.go);
	seen.cause = ctx_cause(http_request_ctx(request));
	count_write(response, "second", 6);
	atomic_fetch_add(&seen.returned, 1);
}

Test(http_stream, leaving_ends_a_handler_that_waits_elsewhere, .timeout = 60)
{
	http_peer_server *server =
		http_peer_serve(&watched, (http_peer_route[]){{"GET /", starts_then_waits, NULL}, {0}});
	for (int way = 0; way < WAYS_TO_LEAVE; way++) {
		char text[512];
		size_t size = 0;
		int fd = http_peer_connect(server);
		http_peer_send(fd, "GET / HTTP/1.1\r\nHost: h\r\n\r\n");
		do
			cr_assert(eq(int, (int)recv(fd, text + size++, 1, 0), 1));
		while (size < 5 ||
		       memcmp(text + size - 5, "first", 5) != 0); /* what is written is sent, not kept */
		int rest = http_peer_leave(fd, (enum http_peer_way)way);
		cr_assert(eventually_counts(&seen.done, way + 1, 10000), "way %d", way);
		cr_expect(eq(int, result, -1));
		cr_expect(eq(int, seen.returned, way + 1));
		cr_expect(eq(ptr, (void *)seen.cause, (void *)&HTTP_CLIENT_DISCONNECTED));
		cr_expect(eq(int, seen.status, 499));
		if (rest >= 0)
			close(rest);
	}
	http_peer_stop(server);
	cr_expect(eq(int, seen.done, 3));
}

static void fails(http_request *request, http_response *response)
{
	size_t n = number(request);
	for (size_t i = 0; i < n; i++)
		count_write(response, "data\n", 5);
	if (n % 2)
		wait_sleep(http_request_ctx(request), CTX_MILLISECOND);
	http_response_fail(response);
	cr_expect(eq(int, http_write(response, "more", 4), -1));
	atomic_fetch_add(&seen.returned, 1);
}

Test(http_stream, a_failed_stream_is_not_taken_for_whole, .timeout = 60)
{
	http_peer_server *server =
		http_peer_serve(&watched, (http_peer_route[]){{"GET /{n}", fails, NULL}, {0}});
	static const char *const requests[] = {"GET /1 HTTP/1.1\r\nHost: h\r\n\r\n",
	                                       "GET /2 HTTP/1.1\r\nHost: h\r\n\r\n",
	                                       "GET /50001 HTTP/1.1\r\nHost: h\r\n\r\n"};
	int done = 0;
	for (size_t i = 0; i < sizeof(requests) / sizeof(*requests); i++) {
		int fd = http_peer_connect(server);
		http_peer_send(fd, requests[i]);
		http_peer_response response = http_peer_read(fd, false);
		cr_expect(eq(int, response.status, -1), "%s", requests[i]);
		http_peer_clear(&response);
		close(fd);
		done++;
		cr_assert(eventually_counts(&seen.done, done, 10000));
		cr_expect(eq(int, seen.status, 200), "what was answered");
	}
	/* Before anything was sent there is a better way to say it. */
	http_peer_response response = http_peer_ask(server, "GET", "/0", NULL);
	cr_expect(eq(int, response.status, 500));
	http_peer_clear(&response);
	http_peer_stop(server);
	cr_expect(eq(int, seen.done, done + 1));
}

Test(http_stream, a_failed_stream_of_http_1_0_ends_in_a_reset, .timeout = 60)
{
	http_peer_server *server =
		http_peer_serve(&watched, (http_peer_route[]){{"GET /{n}", fails, NULL}, {0}});
	int fd = http_peer_connect(server);
	char text[4096];
	ssize_t got;
	http_peer_send(fd, "GET /3 HTTP/1.0\r\n\r\n");
	while ((got = recv(fd, text, sizeof(text), 0)) > 0)
		;
	cr_expect(eq(int, (int)got, -1), "the end of the stream looks like the end of the body");
	close(fd);
	http_peer_stop(server);
}
