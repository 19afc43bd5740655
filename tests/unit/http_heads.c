/*
 * How large the head of a request may be: in bytes, in fields, and its target. By default, and as the program wants it.
 */
#include <criterion/criterion.h>
#include <criterion/new/assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "h2_peer.h"
#include "http_peer.h"
#include "support.h"

static void answers(http_request *request, http_response *response)
{
	(void)request;
	http_response_text(response, 200, "hello");
}

/* The longest answer's head there is. */
static void says_much(http_request *request, http_response *response)
{
	char value[1000];
	(void)request;
	memset(value, 'v', sizeof(value) - 1);
	value[sizeof(value) - 1] = '\0';
	for (int i = 0; i < 3; i++)
		http_response_add_header(response, "X-Long", value);
	http_response_text(response, 200, "hello");
}

static const http_peer_route routes[] = {
	{"GET /", answers, NULL}, {"POST /", answers, NULL}, {"GET /much", says_much, NULL}, {0}};

static int status_of(int fd)
{
	http_peer_response response = http_peer_read(fd, false);
	int status = response.status;
	http_peer_clear(&response);
	return status;
}

/* What is asked for, and what it is. */
static const struct {
	size_t asked, over_1_1, over_2;
} sizes[] = {
	{0, 6656, 16 * 1024},
	{2000, 2000, 2000},
	{16 * 1024, 16 * 1024, 16 * 1024},
	{1 << 20, 64 * 1024, 64 * 1024},
};

enum { SIZES = sizeof(sizes) / sizeof(*sizes) };

/* ---- HTTP/1.1 ---------------------------------------------------------------------------------------- */

Test(http_heads, heads_are_bounded, .timeout = 60)
{
	http_peer_server *server = http_peer_serve(NULL, routes);
	struct {
		char *request;
		int status;
	} cases[] = {
		{support_repeat("GET /?", "a", 3000, " HTTP/1.1\r\nHost: h\r\n\r\n"), 200},
		{support_repeat("GET / HTTP/1.1\r\nHost: h\r\n", "X-A: b\r\n", 50, "\r\n"), 200},
		{support_repeat("GET / HTTP/1.1\r\nHost: h\r\nX: ", "a", 6000, "\r\n\r\n"), 200},
		{support_repeat("GET / HTTP/1.1\r\nHost: h\r\nX: ", "a", 10000, "\r\n\r\n"), 431},
		{support_repeat("GET / HTTP/1.1\r\nHost: h\r\n", "X-A: b\r\n", 200, "\r\n"), 431},
		{support_repeat("GET / HTTP/1.1\r\nHost: h\r\n", "X-A: b\r\n", 5000, "\r\n"), 431},
		{support_repeat("GET / HTTP/1.1\r\nHost: h\r\nX: ", "a", 100000, "\r\n\r\n"), 431},
		{support_repeat("GET /?", "a", 100000, " HTTP/1.1\r\nHost: h\r\n\r\n"), 414},
	};
	for (size_t i = 0; i < sizeof(cases) / sizeof(*cases); i++) {
		int fd = http_peer_connect(server);
		http_peer_send(fd, cases[i].request);
		http_peer_response response = http_peer_read(fd, false);
		cr_expect(eq(int, response.status, cases[i].status), "case %zu", i);
		if (cases[i].status != 200)
			cr_expect(http_peer_closed(fd), "case %zu", i);
		http_peer_clear(&response);
		close(fd);
		free(cases[i].request);
	}
	http_peer_stop(server);
}

enum { HEAD_ROOM = 80 * 1024, FIELDS_1_1 = 64 };

/* A head of that many bytes, with as many fields as may be. */
static void write_head(char *head, int size, const char *id)
{
	int at = sprintf(head, "GET /much HTTP/1.1\r\nHost: h\r\nX-Request-Id: %s\r\n", id);
	for (int i = 3; i < FIELDS_1_1; i++)
		at += sprintf(head + at, "X-%d: v\r\n", i);
	at += sprintf(head + at, "X-Rest: ");
	int rest = size - at - 4;
	memset(head + at, 'r', (size_t)rest);
	sprintf(head + at + rest, "\r\n\r\n");
}

/* As many fields as may be, in a head as long as may be, and a long answer: once and again on one connection. */
Test(http_heads, the_largest_get_along, .timeout = 60)
{
	static char head[HEAD_ROOM], id[129];
	memset(id, 'i', sizeof(id) - 1);
	for (size_t i = 0; i < SIZES; i++) {
		http_server_options options = {.traces = true, .head_size = sizes[i].asked};
		http_peer_server *server = http_peer_serve(&options, routes);
		int fd = http_peer_connect(server);
		for (int round = 0; round < 2; round++) {
			write_head(head, (int)sizes[i].over_1_1, id);
			http_peer_send(fd, head);
			http_peer_response response = http_peer_read(fd, false);
			cr_expect(eq(int, response.status, 200), "%zu", sizes[i].asked);
			cr_expect(eq(str, (char *)http_peer_field(&response, "X-Request-Id"), id));
			http_peer_clear(&response);
		}
		write_head(head, (int)sizes[i].over_1_1 + 1, id);
		http_peer_send(fd, head);
		http_peer_response response = http_peer_read(fd, false);
		cr_expect(eq(int, response.status, 431), "%zu", sizes[i].asked);
		cr_expect(eq(str, (char *)http_peer_field(&response, "Content-Type"),
		             "application/problem+json"));
		cr_expect(http_peer_closed(fd));
		http_peer_clear(&response);
		close(fd);
		http_peer_stop(server);
	}
}

/* What a proxy in front adds: a session's cookie and a token, of eight kilobytes each. */
Test(http_heads, of_single_sign_on, .timeout = 60)
{
	http_server_options options = {.head_size = 20000};
	http_peer_server *server = http_peer_serve(&options, routes);
	char *cookie = support_repeat("GET / HTTP/1.1\r\nHost: h\r\nCookie: s=", "c", 8192, "\r\n");
	char *request = support_repeat(cookie, "", 0, "Authorization: Bearer ");
	char *whole = support_repeat(request, "t", 8192, "\r\n\r\n");
	int fd = http_peer_connect(server);
	http_peer_send(fd, whole);
	cr_expect(eq(int, status_of(fd), 200));
	close(fd);
	free(cookie);
	free(request);
	free(whole);
	http_peer_stop(server);
}

/*
 * libmicrohttpd copies cookies, and notes each of them down. So by default its memory may be used up before the limit is
 * reached, and where that left too little for the answer's head it closed the connection without a word.
 */
Test(http_heads, of_cookies, .timeout = 60)
{
	http_peer_server *standard = http_peer_serve(NULL, routes);
	http_peer_server *large = http_peer_serve(&(http_server_options){.head_size = 16 * 1024}, routes);
	for (size_t count = 1; count < 80; count++) {
		char cookie[201], *request;
		snprintf(cookie, sizeof(cookie), "name=%0193d; ", 1);
		request = support_repeat("GET /much HTTP/1.1\r\nHost: h\r\nCookie: ", cookie, count,
		                         "b=c\r\n\r\n");
		size_t size = strlen(request);
		for (int i = 0; i < 2; i++) {
			int fd = http_peer_connect(i ? large : standard);
			http_peer_send(fd, request);
			int status = status_of(fd);
			if (size < (i ? 16 * 1024 : 3 * 1024))
				cr_expect(eq(int, status, 200), "%zu bytes", size);
			else /* it may have room to begin, but not for that answer's head */
				cr_expect(status == 200 || status == 431 || status == 500, "%zu bytes: %d",
				          size, status);
			close(fd);
		}
		free(request);
	}
	http_peer_stop(large);
	http_peer_stop(standard);
}

/*
 * libmicrohttpd from 1.0 on has something to say in its log of cookies that are not quite as they should be, and goes on.
 * What it says there just before it refuses a head was taken for this, too, and the request refused.
 */
Test(http_heads, cookies_are_for_the_handler_to_judge, .timeout = 60)
{
	static const char *const cookies[] = {"a=1; b=2", "name", "a=1;; b", "a=b c",      "a=\"b",
	                                      "=",        ";",    "a=1,b=2", "\t a=1 ;b=2"};
	http_peer_server *server = http_peer_serve(NULL, routes);
	int fd = http_peer_connect(server);
	for (size_t i = 0; i < sizeof(cookies) / sizeof(*cookies); i++) {
		char request[128];
		snprintf(request, sizeof(request), "GET / HTTP/1.1\r\nHost: h\r\nCookie: %s\r\n\r\n",
		         cookies[i]);
		http_peer_send(fd, request);
		cr_expect(eq(int, status_of(fd), 200), "%s", cookies[i]);
	}
	close(fd);
	http_peer_stop(server);
}

/* ---- HTTP/2 ------------------------------------------------------------------------------------------ */

/* A head that counts as so many bytes: 32 for each field. */
static h2_answer *ask_with(h2_peer *p, uint32_t stream, size_t size)
{
	static char value[HEAD_ROOM];
	const char *const fields[] = {":method",    "GET", ":scheme", "http", ":path", "/",
	                              ":authority", "h",   "x",       value,  NULL};
	size_t counted = 0;
	value[0] = '\0';
	for (size_t i = 0; fields[i]; i++)
		counted += strlen(fields[i]) + 16;
	memset(value, 'v', size - counted);
	value[size - counted] = '\0';
	h2_peer_headers(p, stream, H2_END_STREAM, fields);
	return h2_peer_answer(p, stream);
}

/* The client is told of the limit, and past it loses only the request. */
Test(http_heads, over_http_2, .timeout = 60)
{
	for (size_t i = 0; i < SIZES; i++) {
		http_server_options options = {.head_size = sizes[i].asked};
		http_peer_server *server = http_peer_serve(&options, routes);
		h2_peer *p = h2_peer_connect(server);
		cr_expect(eq(int, ask_with(p, 1, sizes[i].over_2)->status, 200), "%zu", sizes[i].asked);
		cr_expect(eq(u32, p->settings[6], (uint32_t)sizes[i].over_2));
		h2_answer *answer = ask_with(p, 3, sizes[i].over_2 + 1);
		cr_expect(eq(int, answer->status, 431), "%zu", sizes[i].asked);
		cr_expect(
			eq(str, (char *)h2_answer_field(answer, "content-type"), "application/problem+json"));
		cr_expect(eq(int, ask_with(p, 5, 1000)->status, 200), "%zu", sizes[i].asked);
		h2_peer_close(p);
		http_peer_stop(server);
	}
}

/* ---- Both -------------------------------------------------------------------------------------------- */

/* However large a head may be. */
Test(http_heads, targets_are_bounded, .timeout = 60)
{
	http_server_options options = {.head_size = 32 * 1024};
	http_peer_server *server = http_peer_serve(&options, routes);
	h2_peer *p = h2_peer_connect(server);
	for (int over = 0; over < 2; over++) {
		char *target = support_repeat("/?", "a", over ? 7999 : 7998, "");
		char *request = support_repeat("GET ", target, 1, " HTTP/1.1\r\nHost: h\r\n\r\n");
		int fd = http_peer_connect(server);
		http_peer_send(fd, request);
		cr_expect(eq(int, status_of(fd), over ? 414 : 200));
		close(fd);
		h2_peer_ask(p, over ? 3 : 1, "GET", target);
		cr_expect(eq(int, h2_peer_answer(p, over ? 3 : 1)->status, over ? 414 : 200));
		free(request);
		free(target);
	}
	h2_peer_close(p);
	http_peer_stop(server);
}
