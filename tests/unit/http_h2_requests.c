/*
 * Requests over HTTP/2: what a handler sees and answers is the same as over HTTP/1.1, on the same port.
 */
#include <criterion/criterion.h>
#include <criterion/new/assert.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <tether/loop.h>

#include "h2_peer.h"
#include "support.h"
#include "watched.h"

/* ---- Handlers ---------------------------------------------------------------------------------------- */

static void answers(http_request *request, http_response *response)
{
	(void)request;
	http_response_header(response, "X-Mixed-Case", "Kept As It Is");
	http_response_text(response, 200, "hello");
}

/* All that there is to be seen of a request. */
static void tells(http_request *request, http_response *response)
{
	char text[4096];
	size_t size;
	const char *body = http_body(request, &size);
	const char *host = http_header(request, "Host"), *cookie = http_header(request, "Cookie");
	const char *q = http_query_value(request, "q"), *name = http_path_value(request, "name");
	snprintf(text, sizeof(text), "%s %s path=%s name=%s q=%s host=%s cookie=%s body=%zu:%.20s",
	         http_request_method(request), http_request_target(request), http_request_path(request),
	         name ? name : "-", q ? q : "-", host ? host : "-", cookie ? cookie : "-", size, body);
	http_response_text(response, 200, text);
}

static void waits_a_little(http_request *request, http_response *response)
{
	atomic_fetch_add(&seen.entered, 1);
	if (wait_sleep(http_request_ctx(request), 20 * CTX_MILLISECOND) == 0)
		http_response_text(response, 200, http_path_value(request, "n"));
}

static void nothing(http_request *request, http_response *response)
{
	http_response_status(response, (int)strtol(http_path_value(request, "status"), NULL, 10));
}

/* n bytes in pieces. */
static void streams(http_request *request, http_response *response)
{
	size_t n = strtoul(http_path_value(request, "n"), NULL, 10);
	char piece[1000];
	for (size_t at = 0; at < n; at += sizeof(piece)) {
		size_t size = n - at < sizeof(piece) ? n - at : sizeof(piece);
		for (size_t i = 0; i < size; i++)
			piece[i] = (char)('a' + (at + i) % 26);
		if (http_write(response, piece, size) != 0)
			break;
		if (at % 50000 == 0)
			wait_sleep(http_request_ctx(request), CTX_MILLISECOND / 10);
	}
}

static void fails(http_request *request, http_response *response)
{
	(void)request;
	http_write(response, "some", 4);
	http_response_fail(response);
}

static const http_peer_route routes[] = {{"GET /hello", answers, NULL},
                                         {"/tell/{name}", tells, NULL},
                                         {"GET /wait/{n}", waits_a_little, NULL},
                                         {"GET /status/{status}", nothing, NULL},
                                         {"GET /stream/{n}", streams, NULL},
                                         {"GET /fail", fails, NULL},
                                         {0}};

/* ---- Requests ---------------------------------------------------------------------------------------- */

Test(http_h2_requests, get, .timeout = 60)
{
	http_peer_server *server = http_peer_serve(&watched, routes);
	h2_peer *p = h2_peer_connect(server);
	for (uint32_t id = 1; id < 20; id += 2) {
		h2_peer_ask(p, id, "GET", "/hello");
		h2_answer *answer = h2_peer_answer(p, id);
		cr_assert(eq(int, answer->status, 200));
		cr_expect(answer->ended && !answer->reset);
		cr_expect(eq(str, answer->body, "hello"));
		cr_expect(eq(str, (char *)h2_answer_field(answer, "content-length"), "5"));
		cr_expect(eq(str, (char *)h2_answer_field(answer, "x-mixed-case"), "Kept As It Is"));
		cr_expect_not_null(strstr(answer->fields, " GMT\n"), "no Date");
		cr_expect_null(strstr(answer->fields, "connection"));
	}
	cr_assert(eventually_counts(&seen.done, 10, 10000));
	cr_expect(eq(int, seen.status, 200));
	cr_expect(eq(llong, seen.bytes, 5));
	cr_expect(eq(ptr, (void *)seen.done_cause, NULL));
	h2_peer_close(p);
	http_peer_stop(server);
}

Test(http_h2_requests, what_a_handler_sees, .timeout = 60)
{
	http_peer_server *server = http_peer_serve(NULL, routes);
	h2_peer *p = h2_peer_connect(server);
	const char *const fields[] = {
		":method",    "POST", ":scheme", "http", ":path",   "/tell/a%20b?q=c%2Fd",
		":authority", "h:80", "cookie",  "a=1",  "x-other", "y",
		"host",       "h:80", "cookie",  "b=2",  "cookie",  "c=3",
		NULL};
	h2_peer_headers(p, 1, 0, fields);
	h2_peer_frame(p, H2_DATA, 0, 1, "the ", 4);
	h2_peer_frame(p, H2_DATA, H2_PADDED, 1, "\003bod\0\0\0", 7);
	h2_peer_frame(p, H2_DATA, H2_END_STREAM, 1, "y", 1);
	h2_answer *answer = h2_peer_answer(p, 1);
	cr_expect(eq(str, answer->body,
	             "POST /tell/a%20b?q=c%2Fd path=/tell/a b name=a b q=c/d host=h:80 cookie=a=1; b=2; c=3 "
	             "body=8:the body"));
	/* Trailers end a request, too; nobody depends on them. */
	h2_peer_begin(p, 3, "PUT", "/tell/x");
	h2_peer_frame(p, H2_DATA, 0, 3, "1", 1);
	h2_peer_headers(p, 3, H2_END_STREAM, (const char *[]){"x-checksum", "1", NULL});
	answer = h2_peer_answer(p, 3);
	cr_expect(eq(str, answer->body, "PUT /tell/x path=/tell/x name=x q=- host=h cookie=- body=1:1"));
	h2_peer_close(p);
	http_peer_stop(server);
}

Test(http_h2_requests, answers_without_bodies, .timeout = 60)
{
	http_peer_server *server = http_peer_serve(&watched, routes);
	h2_peer *p = h2_peer_connect(server);
	static const struct {
		const char *method, *path, *length;
		int status;
	} asked[] = {{"HEAD", "/hello", "5", 200},       {"GET", "/status/204", NULL, 204},
	             {"GET", "/status/304", NULL, 304},  {"GET", "/status/200", "0", 200},
	             {"HEAD", "/stream/500", NULL, 200}, {"HEAD", "/nowhere", "55", 404}};
	for (uint32_t i = 0; i < sizeof(asked) / sizeof(*asked); i++) {
		h2_peer_ask(p, 2 * i + 1, asked[i].method, asked[i].path);
		h2_answer *answer = h2_peer_answer(p, 2 * i + 1);
		const char *length = h2_answer_field(answer, "content-length");
		cr_expect(eq(int, answer->status, asked[i].status), "%s", asked[i].path);
		cr_expect(eq(sz, answer->body_size, 0), "%s", asked[i].path);
		cr_expect(answer->ended && !answer->reset, "%s", asked[i].path);
		cr_expect(length ? asked[i].length && strcmp(length, asked[i].length) == 0 : !asked[i].length,
		          "%s: %s", asked[i].path, length);
	}
	cr_expect(eq(sz, p->frames[H2_DATA], 0), "HEADERS alone would have ended the streams");
	h2_peer_close(p);
	http_peer_stop(server);
}

Test(http_h2_requests, a_hundred_at_once, .timeout = 60)
{
	http_peer_server *server = http_peer_serve(&watched, routes);
	h2_peer *p = h2_peer_connect(server);
	for (uint32_t i = 0; i < 100; i++) {
		char path[32];
		snprintf(path, sizeof(path), "/wait/%u", i);
		h2_peer_ask(p, 2 * i + 1, "GET", path);
	}
	for (uint32_t i = 0; i < 100; i++) {
		char expected[16];
		snprintf(expected, sizeof(expected), "%u", i);
		h2_answer *answer = h2_peer_answer(p, 2 * i + 1);
		cr_assert(eq(int, answer->status, 200));
		cr_expect(eq(str, answer->body, expected));
	}
	http_server_stats stats;
	http_server_stats_get(http_peer_server_of(server), &stats);
	cr_expect(eq(u64, stats.connections_total, 1));
	h2_peer_close(p);
	http_peer_stop(server);
}

/* ---- Bodies in pieces -------------------------------------------------------------------------------- */

static void expect_streamed(const h2_answer *answer, size_t size)
{
	cr_assert(eq(int, answer->status, 200));
	cr_assert(answer->ended && !answer->reset);
	cr_assert(eq(sz, answer->body_size, size));
	for (size_t i = 0; i < size; i++)
		cr_assert(eq(chr, answer->body[i], (char)('a' + i % 26)));
}

Test(http_h2_requests, streams, .timeout = 60)
{
	http_peer_server *server = http_peer_serve(&watched, routes);
	h2_peer *p = h2_peer_connect(server);
	static const size_t sizes[] = {1, 999, 65535, 65536, 3000000};
	uint32_t id = 1;
	for (size_t i = 0; i < sizeof(sizes) / sizeof(*sizes); i++, id += 2) {
		char path[32];
		snprintf(path, sizeof(path), "/stream/%zu", sizes[i]);
		h2_peer_ask(p, id, "GET", path);
		expect_streamed(h2_peer_answer(p, id), sizes[i]);
		cr_assert(eventually_counts(&seen.done, (int)i + 1, 10000));
		cr_expect(eq(llong, seen.bytes, (long long)sizes[i]));
		cr_expect(eq(int, seen.status, 200));
	}
	/* Side by side, each its own. */
	for (uint32_t i = 0; i < 10; i++)
		h2_peer_ask(p, id + 2 * i, "GET", "/stream/300000");
	for (uint32_t i = 0; i < 10; i++)
		expect_streamed(h2_peer_answer(p, id + 2 * i), 300000);
	h2_peer_close(p);
	http_peer_stop(server);
}

Test(http_h2_requests, a_failed_stream_is_reset, .timeout = 60)
{
	http_peer_server *server = http_peer_serve(&watched, routes);
	h2_peer *p = h2_peer_connect(server);
	h2_peer_ask(p, 1, "GET", "/fail");
	h2_answer *answer = h2_peer_answer(p, 1);
	cr_expect(answer->reset && !answer->ended);
	cr_expect(eq(u32, answer->reason, H2_INTERNAL_ERROR));
	cr_assert(eventually_counts(&seen.done, 1, 10000));
	cr_expect(eq(int, seen.status, 200), "what was answered");
	h2_peer_ask(p, 3, "GET", "/hello");
	cr_expect(eq(int, h2_peer_answer(p, 3)->status, 200));
	h2_peer_close(p);
	http_peer_stop(server);
}

/* ---- Which protocol ---------------------------------------------------------------------------------- */

/* The preface may come in any pieces; what only begins like it is HTTP/1.1, and gets all of its bytes. */
Test(http_h2_requests, the_first_bytes_tell, .timeout = 120)
{
	static const char preface[] = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
	http_peer_server *server = http_peer_serve(NULL, routes);
	for (size_t size = 0; size < sizeof(preface) - 1; size++) {
		h2_peer *p = h2_peer_open(http_peer_connect(server));
		h2_peer_bytes(p, preface, size);
		/* Another connection's whole exchange: the server has looked at this one meanwhile. */
		http_peer_response other = http_peer_ask(server, "GET", "/hello", NULL);
		cr_assert(eq(int, other.status, 200));
		http_peer_clear(&other);
		h2_peer_bytes(p, preface + size, sizeof(preface) - 1 - size);
		h2_peer_frame(p, H2_SETTINGS, 0, 0, NULL, 0);
		h2_peer_ask(p, 1, "GET", "/hello");
		cr_assert(eq(int, h2_peer_answer(p, 1)->status, 200), "cut at %zu", size);
		h2_peer_close(p);
		if (size == 0)
			continue;
		char text[64] = {0};
		memcpy(text, preface, size);
		int fd = http_peer_connect(server);
		http_peer_send(fd, text);
		other = http_peer_ask(server, "GET", "/hello", NULL);
		http_peer_clear(&other);
		http_peer_send(fd, size < 4 ? "X /hello HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n"
		                            : "\x01\r\n\r\n");
		http_peer_response response = http_peer_read(fd, false);
		cr_expect(size < 4 ? response.status == 405 : response.status >= 400 || response.status == 0,
		          "%d for %zu bytes", response.status, size);
		if (response.status)
			cr_expect(eq(int, strncmp(response.head, "HTTP/1.", 7), 0));
		http_peer_clear(&response);
		cr_expect(http_peer_closed(fd));
		close(fd);
	}
	http_peer_stop(server);
}

Test(http_h2_requests, byte_by_byte, .timeout = 60)
{
	http_peer_server *server = http_peer_serve(NULL, routes);
	/* The preface, SETTINGS, and HEADERS with GET and / from the static table, authority "h". */
	static const char bytes[] = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
				    "\0\0\0\4\0\0\0\0\0"
				    "\0\0\6\1\5\0\0\0\1\x82\x86\x84\x41\1h";
	h2_peer *p = h2_peer_open(http_peer_connect(server));
	for (size_t i = 0; i < sizeof(bytes) - 1; i++) {
		h2_peer_bytes(p, bytes + i, 1);
		http_peer_response other = http_peer_ask(server, "GET", "/hello", NULL);
		http_peer_clear(&other);
	}
	cr_expect(eq(int, h2_peer_answer(p, 1)->status, 404));
	h2_peer_close(p);
	http_peer_stop(server);
}

static int connect_unix(const char *path)
{
	struct sockaddr_un un = {.sun_family = AF_UNIX};
	snprintf(un.sun_path, sizeof(un.sun_path), "%s", path);
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	cr_assert(eq(int, connect(fd, (const struct sockaddr *)&un, sizeof(un)), 0));
	return fd;
}

Test(http_h2_requests, over_a_unix_socket, .timeout = 60)
{
	char path[64], address[80];
	snprintf(path, sizeof(path), "/tmp/tether-h2-%d", getpid());
	snprintf(address, sizeof(address), "unix:%s", path);
	http_server *server = http_server_new(&(http_server_options){.workers = 1});
	cr_assert(eq(int, http_handle(server, "GET /hello", answers, NULL), 0));
	cr_assert(eq(int, http_listen(server, address, NULL, 0), 0));
	http_peer_server *serving = http_peer_start(server, NULL);
	for (int cut = 0; cut < 2; cut++) {
		h2_peer *p = h2_peer_open(connect_unix(path));
		if (cut) {
			h2_peer_bytes(p, "PRI * HTT", 9);
			h2_peer *other = h2_peer_open(connect_unix(path));
			h2_peer_preface(other);
			cr_expect(h2_peer_ping(other));
			h2_peer_close(other);
			h2_peer_bytes(p, "P/2.0\r\n\r\nSM\r\n\r\n", 15);
			h2_peer_frame(p, H2_SETTINGS, 0, 0, NULL, 0);
		} else {
			h2_peer_preface(p);
		}
		h2_peer_ask(p, 1, "GET", "/hello");
		cr_expect(eq(int, h2_peer_answer(p, 1)->status, 200));
		h2_peer_close(p);
	}
	http_server_abort(server);
	http_peer_stop(serving);
}
