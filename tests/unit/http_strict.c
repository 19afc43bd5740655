/*
 * What is not exactly a request is refused, so that no two readers of one stream can see different requests in
 * it: the cases of RFC 9112, section 11.2, and of request smuggling as it is practised. Each is sent with a
 * second request behind it, which must not be answered.
 */
#include <criterion/criterion.h>
#include <criterion/new/assert.h>
#include <microhttpd.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "http_peer.h"
#include "support.h"

static atomic_int handled;

static void answers(http_request *request, http_response *response)
{
	atomic_fetch_add(&handled, 1);
	size_t size;
	const char *body = http_body(request, &size);
	http_response_body(response, 200, "text/plain", body, size);
}

static const http_peer_route routes[] = {{"/", answers, NULL}, {0}};

struct attempt {
	const char *bytes;
	size_t size; /* 0: up to the NUL */
	int status;
};

#define BYTES(text) (text), sizeof(text) - 1

static const char second[] = "GET /second HTTP/1.1\r\nHost: h\r\n\r\n";

/* One status, the connection closed, and no handler run; a refusal without any answer counts as a 400, and a 400 will do for 501. */
static void refused(const struct attempt *attempts, size_t count)
{
	http_peer_server *server = http_peer_serve(NULL, routes);
	for (size_t i = 0; i < count; i++) {
		const struct attempt *a = &attempts[i];
		int fd = http_peer_connect(server);
		http_peer_send_bytes(fd, a->bytes, a->size ? a->size : strlen(a->bytes));
		http_peer_send(fd, second);
		http_peer_response response = http_peer_read(fd, false);
		cr_expect(response.status == a->status || (response.status == 0 && a->status == 400) ||
		                  (response.status == 400 && a->status == 501),
		          "%d for %zu: %s", response.status, i, a->bytes);
		cr_expect(http_peer_closed(fd), "%zu: %s", i, a->bytes);
		cr_expect(eq(int, handled, 0), "%zu: %s", i, a->bytes);
		handled = 0;
		http_peer_clear(&response);
		close(fd);
	}
	http_peer_stop(server);
}

#define REFUSED(...)                                                     \
	do {                                                             \
		static const struct attempt attempts[] = {__VA_ARGS__};  \
		refused(attempts, sizeof(attempts) / sizeof(*attempts)); \
	} while (0)

Test(http_strict, request_lines, .timeout = 120)
{
	REFUSED({"GET  / HTTP/1.1\r\nHost: h\r\n\r\n", 0, 400},
	        {"GET /  HTTP/1.1\r\nHost: h\r\n\r\n", 0, 400},
	        {"GET\t/ HTTP/1.1\r\nHost: h\r\n\r\n", 0, 400},
	        {"GET / HTTP/1.1 \r\nHost: h\r\n\r\n", 0, 400},
	        {" GET / HTTP/1.1\r\nHost: h\r\n\r\n", 0, 400},
	        {"GET /a b HTTP/1.1\r\nHost: h\r\n\r\n", 0, 400}, {"GET /\r\nHost: h\r\n\r\n", 0, 400},
	        {"GET / http/1.1\r\nHost: h\r\n\r\n", 0, 400}, {"GET / HTTP/1.1\nHost: h\r\n\r\n", 0, 400},
	        {"GET / HTTP/1.1\r\r\nHost: h\r\n\r\n", 0, 400},
	        {BYTES("GET /a\0b HTTP/1.1\r\nHost: h\r\n\r\n"), 400},
	        {"GET /\x01 HTTP/1.1\r\nHost: h\r\n\r\n", 0, 400},
	        {"GET /\x7f HTTP/1.1\r\nHost: h\r\n\r\n", 0, 400},
	        {"GET /#a HTTP/1.1\r\nHost: h\r\n\r\n", 0, 400},
	        {"G\"T / HTTP/1.1\r\nHost: h\r\n\r\n", 0, 400},
	        {"GET / HTTP/1.1x\r\nHost: h\r\n\r\n", 0, 400}, {"GET / HTTP/11\r\nHost: h\r\n\r\n", 0, 400},
	        {BYTES("G\0T / HTTP/1.1\r\nHost: h\r\n\r\n"), 400});
}

Test(http_strict, targets, .timeout = 120)
{
	REFUSED({"GET http://h/ HTTP/1.1\r\nHost: h\r\n\r\n", 0, 400},
	        {"GET h:80 HTTP/1.1\r\nHost: h\r\n\r\n", 0, 400},
	        {"CONNECT h:80 HTTP/1.1\r\nHost: h\r\n\r\n", 0, 400},
	        {"OPTIONS * HTTP/1.1\r\nHost: h\r\n\r\n", 0, 400},
	        {"GET a HTTP/1.1\r\nHost: h\r\n\r\n", 0, 400},
	        {"GET /%zz HTTP/1.1\r\nHost: h\r\n\r\n", 0, 400},
	        {"GET /%00 HTTP/1.1\r\nHost: h\r\n\r\n", 0, 400},
	        {"GET /?a=%1 HTTP/1.1\r\nHost: h\r\n\r\n", 0, 400});
}

Test(http_strict, versions, .timeout = 120)
{
	REFUSED({"GET / HTTP/2.0\r\nHost: h\r\n\r\n", 0, 505}, {"GET / HTTP/3.1\r\nHost: h\r\n\r\n", 0, 505},
	        {"GET / HTTP/0.9\r\nHost: h\r\n\r\n", 0, 505});
}

Test(http_strict, field_lines, .timeout = 120)
{
	REFUSED({"GET / HTTP/1.1\r\nHost : h\r\n\r\n", 0, 400},
	        {"GET / HTTP/1.1\r\nHost: h\r\nX : y\r\n\r\n", 0, 400},
	        {"GET / HTTP/1.1\r\nHost: h\r\nX\t: y\r\n\r\n", 0, 400},
	        {"GET / HTTP/1.1\r\nHost: h\r\n: y\r\n\r\n", 0, 400},
	        {"GET / HTTP/1.1\r\nHost: h\r\nX\r\n\r\n", 0, 400},
	        {"GET / HTTP/1.1\r\nHost: h\r\nX(: y\r\n\r\n", 0, 400},
	        {"GET / HTTP/1.1\r\nHost: h\r\n X: y\r\n\r\n", 0, 400},
	        {"GET / HTTP/1.1\r\n X: y\r\nHost: h\r\n\r\n", 0, 400},
	        {"GET / HTTP/1.1\r\nHost: h\r\nX: y\r\n z\r\n\r\n", 0, 400}, /* obs-fold */
	        {"GET / HTTP/1.1\r\nHost: h\r\nX: y\r\n\tz\r\n\r\n", 0, 400},
	        {"GET / HTTP/1.1\r\nHost: h\r\nX: y\r\n \r\n\r\n", 0, 400},
	        {"GET / HTTP/1.1\r\nHost: h\nX: y\r\n\r\n", 0, 400}, /* bare LF */
	        /* libmicrohttpd 0.9.75 takes a line that begins with a colon for the empty one */
	        {"GET / HTTP/1.1\r\nHost: h\r\nX: y\n:z\nGET / HTTP/1.1\r\nHost: h\r\n\r\n", 0, 400},
	        {"GET / HTTP/1.1\r\nHost: h\r\nX: y\n\r\n", 0, 400},
	        {"GET / HTTP/1.1\r\nHost: h\r\nX: y\r\n\n", 0, 400},
	        {"GET / HTTP/1.1\r\nHost: h\r\nX: y\n\n", 0, 400}, {"GET / HTTP/1.1\n\n", 0, 400},
	        {"GET / HTTP/1.1\r\nHost: h\r\nX: y\rz\r\n\r\n", 0, 400}, /* bare CR */
	        {"GET / HTTP/1.1\r\nHost: h\r\nX: y\r\r\n\r\n", 0, 400},
	        {"GET / HTTP/1.1\r\nHost: h\r\nX\r: y\r\n\r\n", 0, 400},
	        {BYTES("GET / HTTP/1.1\r\nHost: h\r\nX: y\0z\r\n\r\n"), 400},
	        {BYTES("GET / HTTP/1.1\r\nHost: h\r\nX: y\0\r\n\r\n"), 400},
	        {BYTES("GET / HTTP/1.1\r\nHost: h\r\nX\0: y\r\n\r\n"), 400},
	        {"GET / HTTP/1.1\r\nHost: h\r\nX: \x01\r\n\r\n", 0, 400},
	        {"GET / HTTP/1.1\r\nHost: h\r\nX: \x7f\r\n\r\n", 0, 400});
}

Test(http_strict, hosts, .timeout = 120)
{
	REFUSED({"GET / HTTP/1.1\r\n\r\n", 0, 400}, {"GET / HTTP/1.1\r\nHost: h\r\nHost: h\r\n\r\n", 0, 400},
	        {"GET / HTTP/1.1\r\nHost: h\r\nhost: i\r\n\r\n", 0, 400},
	        {"GET / HTTP/1.1\r\nHost: a b\r\n\r\n", 0, 400},
	        {"GET / HTTP/1.1\r\nHost: a,b\r\n\r\n", 0, 400},
	        {"GET / HTTP/1.1\r\nHost: u@h\r\n\r\n", 0, 400},
	        {"GET / HTTP/1.1\r\nHost: h/x\r\n\r\n", 0, 400},
	        {"GET / HTTP/1.1\r\nHost: http://h\r\n\r\n", 0, 400},
	        {"GET / HTTP/1.1\r\nHost: h:x\r\n\r\n", 0, 400});
}

Test(http_strict, lengths, .timeout = 120)
{
	REFUSED({"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello", 0, 400},
	        {"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\ncontent-length: 5\r\n\r\nhello", 0, 400},
	        {"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 5, 5\r\n\r\nhello", 0, 400},
	        {"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: +5\r\n\r\nhello", 0, 400},
	        {"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: -5\r\n\r\nhello", 0, 400},
	        {"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 0x5\r\n\r\nhello", 0, 400},
	        {"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 5 5\r\n\r\nhello", 0, 400},
	        {"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 5a\r\n\r\nhello", 0, 400},
	        {"POST / HTTP/1.1\r\nHost: h\r\nContent-Length:\r\n\r\nhello", 0, 400},
	        {"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: five\r\n\r\nhello", 0, 400},
	        {"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\nTransfer-Encoding: "
	         "chunked\r\n\r\n0\r\n\r\n",
	         0, 400},
	        {"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\nContent-Length: "
	         "5\r\n\r\n0\r\n\r\n",
	         0, 400});
}

Test(http_strict, transfer_codings, .timeout = 120)
{
	REFUSED({"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: gzip\r\n\r\n0\r\n\r\n", 0, 400},
	        {"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\n", 0, 400},
	        {"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", 0, 501},
	        {"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n", 0,
	         400},
	        {"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n", 0,
	         400},
	        {"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: "
	         "chunked\r\n\r\n0\r\n\r\n",
	         0, 400},
	        {"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: "
	         "x\r\n\r\n0\r\n\r\n",
	         0, 400},
	        {"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n", 0, 400},
	        {"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked;q=1\r\n\r\n0\r\n\r\n", 0, 400},
	        {"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: \"chunked\"\r\n\r\n0\r\n\r\n", 0, 400},
	        {"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: ,chunked\r\n\r\n0\r\n\r\n", 0, 400},
	        {"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding:\r\n\r\n0\r\n\r\n", 0, 400},
	        {"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding:\x0b"
	         "chunked\r\n\r\n0\r\n\r\n",
	         0, 400},
	        {"POST / HTTP/1.0\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 0, 400});
}

#define CHUNKED "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n"

Test(http_strict, chunks, .timeout = 120)
{
	REFUSED({CHUNKED "g\r\nhello\r\n0\r\n\r\n", 0, 400}, {CHUNKED "\r\nhello\r\n0\r\n\r\n", 0, 400},
	        {CHUNKED "-5\r\nhello\r\n0\r\n\r\n", 0, 400}, {CHUNKED "+5\r\nhello\r\n0\r\n\r\n", 0, 400},
	        {CHUNKED "0x5\r\nhello\r\n0\r\n\r\n", 0, 400}, {CHUNKED " 5\r\nhello\r\n0\r\n\r\n", 0, 400},
	        {CHUNKED "5 5\r\nhello\r\n0\r\n\r\n", 0, 400}, {CHUNKED "5\r\nhelloo\r\n0\r\n\r\n", 0, 400},
	        {CHUNKED "5\r\nhello0\r\n\r\n", 0, 400}, {CHUNKED "5\rhello\r\n0\r\n\r\n", 0, 400},
	        {CHUNKED "fffffffffffffffff\r\nhello\r\n0\r\n\r\n", 0, 413});
}

/*
 * libmicrohttpd before 1.0 takes a bare LF between chunks, and any line for a trailer, and keeps it to itself. The
 * request may be served then, but nothing behind it: two readers who disagree about its end find no next one there.
 */
static bool ends_are_unseen(void)
{
	return strncmp(MHD_get_version(), "0.", 2) == 0;
}

static void served_alone_or_refused(const char *bytes)
{
	http_peer_server *server = http_peer_serve(NULL, routes);
	int fd = http_peer_connect(server);
	http_peer_send(fd, bytes);
	http_peer_send(fd, second);
	http_peer_response response = http_peer_read(fd, false);
	bool served = response.status == 200 && ends_are_unseen();
	cr_expect(served || response.status == 400 || response.status == 0, "%d: %s", response.status, bytes);
	cr_expect(http_peer_closed(fd), "%s", bytes);
	cr_expect(le(int, handled, served), "%s", bytes);
	handled = 0;
	http_peer_clear(&response);
	close(fd);
	http_peer_stop(server);
}

Test(http_strict, line_ends_of_chunks, .timeout = 120)
{
	served_alone_or_refused(CHUNKED "5\nhello\r\n0\r\n\r\n");
	served_alone_or_refused(CHUNKED "5\r\nhello\n0\r\n\r\n");
	served_alone_or_refused(CHUNKED "5;a\nhello\r\n0\r\n\r\n");
	served_alone_or_refused(CHUNKED "5\r\nhello\r\n0\n\r\n");
	served_alone_or_refused(CHUNKED "5\r\nhello\r\n0\r\n\n");
	served_alone_or_refused(CHUNKED "5\r\nhello\r\n5\nhello\r\n0\r\n\r\n");
	served_alone_or_refused(CHUNKED "5\r\nhello\r\n0;x\n\r\n");
	served_alone_or_refused(CHUNKED "5\r\nhello\r\n0\r\nX : y\r\n\r\n");
}

Test(http_strict, expectations, .timeout = 120)
{
	REFUSED({"POST / HTTP/1.1\r\nHost: h\r\nExpect: 200-ok\r\nContent-Length: 1\r\n\r\nx", 0, 417});
}

/* ---- The answers ------------------------------------------------------------------------------------- */

static atomic_int done_status;

static void on_done(http_request *request, const http_outcome *outcome, void *data)
{
	(void)request, (void)data;
	done_status = outcome->status;
}

/* One answer, whole and alone, then the end; where it is ours, a problem of that status. */
static void expect_problem(int fd, int status, const char *allow, const char *bytes)
{
	http_peer_response response = http_peer_read(fd, false);
	char member[32];
	snprintf(member, sizeof(member), "\"status\":%d", status);
	cr_expect(eq(int, response.status, status), "%s", bytes);
	cr_assert_not_null(response.head, "%s", bytes);
	const char *type = http_peer_field(&response, "Content-Type");
	cr_expect(eq(str, (char *)(type ? type : "none"), "application/problem+json"), "%s", bytes);
	cr_expect_not_null(strstr(response.body, member), "%s", response.body);
	const char *allowed = http_peer_field(&response, "Allow");
	cr_expect(eq(str, (char *)(allowed ? allowed : ""), (char *)(allow ? allow : "")), "%s", bytes);
	http_peer_clear(&response);
}

/*
 * libmicrohttpd refuses some of these by itself, with a page of its own, and before 1.0 with two heads and the page
 * behind the second. It is forestalled.
 */
Test(http_strict, refusals_are_problems, .timeout = 120)
{
	static const http_peer_route some[] = {{"GET /", answers, NULL}, {"PUT /put", answers, NULL}, {0}};
	static const struct {
		const char *bytes;
		int status;
		bool kept; /* the connection */
		const char *allow;
	} cases[] = {
		{"GET / HTTP/1.1\r\n\r\n", 400, false, NULL},
		{"GET / HTTP/1.1\r\nX: y\r\n\r\n", 400, false, NULL},
		{"GET / HTTP/1.1\r\nHost: a b\r\n\r\n", 400, false, NULL},
		{"GET / HTTP/1.1\r\nHost: h\r\nHost: h\r\n\r\n", 400, false, NULL},
		{"GET http://h/ HTTP/1.1\r\nHost: h\r\n\r\n", 400, false, NULL},
		{"GET /%00 HTTP/1.1\r\nHost: h\r\n\r\n", 400, false, NULL},
		{"PUT /put HTTP/1.1\r\nHost: h\r\nContent-Length: five\r\n\r\nhello", 400, false, NULL},
		{"PUT /put HTTP/1.1\r\nHost: h\r\nContent-Length: -5\r\n\r\nhello", 400, false, NULL},
		{"PUT /put HTTP/1.1\r\nHost: h\r\nContent-Length:\r\n\r\nhello", 400, false, NULL},
		{"PUT /put HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello", 400,
	         false, NULL},
		{"PUT /put HTTP/1.1\r\nHost: h\r\nContent-Length: 99999999999999999999\r\n\r\n", 413, false,
	         NULL},
		{"PUT /put HTTP/1.1\r\nHost: h\r\nContent-Length: 18446744073709551615\r\n\r\n", 413, false,
	         NULL},
		{"PUT /put HTTP/1.1\r\nHost: h\r\nContent-Length: 9999999\r\n\r\n", 413, false, NULL},
		{"PUT /put HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\nTransfer-Encoding: "
	         "chunked\r\n\r\n0\r\n\r\n",
	         400, false, NULL},
		{"PUT /put HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", 501,
	         false, NULL},
		{"PUT /put HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: gzip\r\n\r\n", 400, false, NULL},
		{"PUT /put HTTP/1.1\r\nHost: h\r\nExpect: tea\r\nContent-Length: 5\r\n\r\nhello", 417, false,
	         NULL},
		{"PUT /put HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\n\r\nhel", 408, false, NULL},
		{"GET / HTTP/1.1\r\nHost: h\r\nX: y", 408, false, NULL},
		{"POST / HTTP/1.1\r\nHost: h\r\n\r\n", 405, true, "GET, HEAD"},
		{"POST /put HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\n\r\nhello", 405, true,
	         "GET, HEAD, PUT"},
	};
	const http_server_options options = {.header_timeout = CTX_SECOND * support_patience(),
	                                     .body_timeout = CTX_SECOND * support_patience()};
	http_peer_server *server = http_peer_serve(&options, some);
	for (size_t i = 0; i < sizeof(cases) / sizeof(*cases); i++)
		for (size_t piece = 1000; piece > 0; piece = piece > 1 ? 1 : 0) {
			int fd = http_peer_connect(server);
			const char *bytes = cases[i].bytes;
			for (size_t at = 0; at < strlen(bytes); at += piece)
				http_peer_send_bytes(fd, bytes + at, strnlen(bytes + at, piece));
			expect_problem(fd, cases[i].status, cases[i].allow, bytes);
			if (cases[i].kept) {
				http_peer_send(fd,
				               "DELETE / HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n");
				expect_problem(fd, 405, "GET, HEAD", bytes);
			}
			http_peer_response none = http_peer_read(fd, false);
			cr_expect(eq(int, none.status, 0), "%s", bytes);
			http_peer_clear(&none);
			close(fd);
		}
	http_peer_stop(server);
}

/* What libmicrohttpd answers amid a body is what is told of the request, which no handler has seen. */
Test(http_strict, what_it_refuses_amid_a_body_is_told, .timeout = 60)
{
	static const struct {
		const char *bytes;
		int status;
	} cases[] = {
		{CHUNKED "5\r\nhelloo\r\n0\r\n\r\n", 400},
		{CHUNKED "g\r\nhello\r\n0\r\n\r\n", 400},
		{CHUNKED "fffffffffffffffff\r\nhello\r\n0\r\n\r\n", 413},
	};
	http_peer_server *server = http_peer_serve(&(http_server_options){.on_done = on_done}, routes);
	for (size_t i = 0; i < sizeof(cases) / sizeof(*cases); i++) {
		done_status = 0;
		int fd = http_peer_connect(server);
		http_peer_send(fd, cases[i].bytes);
		http_peer_response response = http_peer_read(fd, false);
		cr_expect(eq(int, response.status, cases[i].status), "%s", cases[i].bytes);
		http_peer_clear(&response);
		cr_expect(http_peer_closed(fd));
		cr_expect(eventually_counts(&done_status, 1, 5000));
		cr_expect(eq(int, done_status, cases[i].status), "%s", cases[i].bytes);
		close(fd);
	}
	http_peer_stop(server);
	cr_expect(eq(int, handled, 0));
}

/* What is allowed stays so. */
Test(http_strict, the_unusual_is_not_wrong, .timeout = 120)
{
	static const struct attempt good[] = {
		{"GET / HTTP/1.1\r\nHost: h\r\n\r\n", 0, 200},
		{"\r\nGET / HTTP/1.1\r\nHost: h\r\n\r\n", 0, 200},
		{"GET / HTTP/1.1\r\nHost:\t h \t\r\n\r\n", 0, 200},
		{"GET / HTTP/1.1\r\nHost:h\r\n\r\n", 0, 200},
		{"GET / HTTP/1.1\r\nHost:\r\n\r\n", 0, 200},
		{"GET / HTTP/1.1\r\nHost: [::1]:80\r\nX:\r\nY: \r\n\r\n", 0, 200},
		{"GET / HTTP/1.1\r\nHost: a-b.example:8080\r\n\r\n", 0, 200},
		{"GET / HTTP/1.1\r\nhost: h\r\nX: \xc3\xa9 \xff\ty\r\n\r\n", 0, 200},
		{"GET /?a=\"<>{}|\\^`\xc3\xa9 HTTP/1.1\r\nHost: h\r\n\r\n", 0, 200},
		{"ODD-method! / HTTP/1.1\r\nHost: h\r\n\r\n", 0, 200},
		{"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n", 0, 200},
		{"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 05\r\n\r\nhello", 0, 200},
		{"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 0\r\n\r\n", 0, 200},
		{"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: "
	         "Chunked\r\n\r\n005\r\nhello\r\n0\r\n\r\n",
	         0, 200},
		{"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: "
	         "chunked\r\n\r\n2\r\nhe\r\n3\r\nllo\r\n0\r\nX: y\r\n\r\n",
	         0, 200},
		{"POST / HTTP/1.1\r\nHost: h\r\nExpect: 100-Continue\r\nContent-Length: 2\r\n\r\nhi", 0, 200},
	};
	http_peer_server *server = http_peer_serve(NULL, routes);
	for (size_t i = 0; i < sizeof(good) / sizeof(*good); i++) {
		int fd = http_peer_connect(server);
		http_peer_send(fd, good[i].bytes);
		http_peer_send(fd, "GET / HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n");
		bool alone = ends_are_unseen() && strstr(good[i].bytes, "Transfer-Encoding");
		for (int j = 0; j < 2; j++) {
			http_peer_response response = http_peer_read(fd, false);
			cr_expect(eq(int, response.status, j &&alone ? 0 : 200), "%d of %s", j,
			          good[i].bytes);
			http_peer_clear(&response);
		}
		close(fd);
	}
	http_peer_stop(server);
}
