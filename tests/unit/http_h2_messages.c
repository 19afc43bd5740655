/*
 * RFC 9113, section 8: what a request is over HTTP/2. What is none ends its stream with PROTOCOL_ERROR and never
 * reaches a handler; what is one that we do not serve is answered as over HTTP/1.1; and the connection goes on.
 */
#include <criterion/criterion.h>
#include <criterion/new/assert.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>

#include "h2_peer.h"
#include "support.h"

static atomic_int handled, done;

static void answers(http_request *request, http_response *response)
{
	(void)request;
	atomic_fetch_add(&handled, 1);
	http_response_text(response, 200, "hello");
}

static void on_done(http_request *request, const http_outcome *outcome, void *data)
{
	(void)request, (void)outcome, (void)data;
	atomic_fetch_add(&done, 1);
}

static const http_peer_route routes[] = {{"GET /hello", answers, NULL}, {"POST /hello", answers, NULL}, {0}};
static const http_server_options watched = {.on_done = on_done};

/* What goes before the fields under test: a whole request, or less. */
#define GET   ":method", "GET", ":scheme", "http", ":path", "/hello"
#define GET_H GET, ":authority", "h"

enum { FIELDS = 16, EITHER = -1 };

struct message {
	const char *name;
	const char *fields[FIELDS];
	int status; /* 0: malformed. EITHER: that, or 400; nghttp2's versions differ */
};

static void expect_stream_error(h2_peer *p, uint32_t id, const char *name)
{
	h2_answer *answer = h2_peer_answer(p, id);
	cr_expect(answer->reset, "%s: not reset but answered with %d", name, answer->status);
	cr_expect(eq(u32, answer->reason, H2_PROTOCOL_ERROR), "%s", name);
	cr_expect(eq(int, answer->status, 0), "%s", name);
	cr_expect(eq(int, handled, 0), "%s: a handler ran", name);
}

static void sent(const struct message *messages, size_t count)
{
	http_peer_server *server = http_peer_serve(&watched, routes);
	h2_peer *p = h2_peer_connect(server);
	uint32_t id = 1;
	for (; count > 0; messages++, count--, id += 4) {
		handled = 0;
		h2_peer_headers(p, id, H2_END_STREAM, messages->fields);
		bool either = messages->status == EITHER;
		if (messages->status == 0 || (either && h2_peer_answer(p, id)->reset)) {
			expect_stream_error(p, id, messages->name);
		} else {
			h2_answer *answer = h2_peer_answer(p, id);
			cr_expect(eq(int, answer->status, either ? 400 : messages->status), "%s",
			          messages->name);
			cr_expect(answer->ended && !answer->reset, "%s", messages->name);
			cr_expect(eq(int, handled, messages->status == 200), "%s", messages->name);
		}
		h2_peer_ask(p, id + 2, "GET", "/hello");
		cr_expect(eq(int, h2_peer_answer(p, id + 2)->status, 200), "%s: the connection has suffered",
		          messages->name);
	}
	cr_expect(eq(int, p->goaways, 0));
	h2_peer_close(p);
	http_peer_stop(server);
}

#define SENT(...)                                                       \
	do {                                                            \
		static const struct message messages[] = {__VA_ARGS__}; \
		sent(messages, sizeof(messages) / sizeof(*messages));   \
	} while (0)

/* ---- 8.1 Framing ------------------------------------------------------------------------------------- */

Test(http_h2_messages, s8_1_trailers, .timeout = 60)
{
	static const struct {
		const char *name;
		const char *fields[4];
		uint8_t flags;
	} wrong[] = {{"not at the end", {"x-a", "1", NULL}, 0},
	             {"with a pseudo-field", {":path", "/", NULL}, H2_END_STREAM},
	             {"with a field of the connection's", {"connection", "x", NULL}, H2_END_STREAM},
	             {"in upper case", {"X-A", "1", NULL}, H2_END_STREAM}};
	http_peer_server *server = http_peer_serve(&watched, routes);
	h2_peer *p = h2_peer_connect(server);
	for (uint32_t i = 0; i < sizeof(wrong) / sizeof(*wrong); i++) {
		h2_peer_begin(p, 2 * i + 1, "POST", "/hello");
		h2_peer_frame(p, H2_DATA, 0, 2 * i + 1, "x", 1);
		h2_peer_headers(p, 2 * i + 1, wrong[i].flags, wrong[i].fields);
		expect_stream_error(p, 2 * i + 1, wrong[i].name);
	}
	h2_peer_close(p);
	http_peer_stop(server);
	cr_expect(eq(int, done, 4), "the heads were whole");
}

Test(http_h2_messages, s8_1_1_content_length_is_what_comes, .timeout = 60)
{
	static const struct {
		const char *length;
		size_t sent;
		int status;
	} bodies[] = {{"4", 4, 200}, {"0", 0, 200},
	              {"4", 3, 0},   {"4", 5, 0},
	              {"0", 1, 0},   {"4", 0, 0},
	              {"-1", 1, 0},  {"+1", 1, 0},
	              {"1 ", 1, 0},  {"0x1", 1, 0},
	              {"1,1", 1, 0}, {"", 0, 0},
	              {"1a", 1, 0},  {"99999999999999999999", 1, 0}};
	http_peer_server *server = http_peer_serve(&watched, routes);
	h2_peer *p = h2_peer_connect(server);
	for (uint32_t i = 0; i < sizeof(bodies) / sizeof(*bodies); i++) {
		const char *const fields[] = {":method",        "POST",           ":scheme",    "http",
		                              ":path",          "/hello",         ":authority", "h",
		                              "content-length", bodies[i].length, NULL};
		handled = 0;
		h2_peer_headers(p, 2 * i + 1, bodies[i].sent ? 0 : H2_END_STREAM, fields);
		if (bodies[i].sent)
			h2_peer_frame(p, H2_DATA, H2_END_STREAM, 2 * i + 1, "12345", bodies[i].sent);
		if (bodies[i].status)
			cr_expect(eq(int, h2_peer_answer(p, 2 * i + 1)->status, 200), "%s", bodies[i].length);
		else
			expect_stream_error(p, 2 * i + 1, bodies[i].length);
	}
	h2_peer_close(p);
	http_peer_stop(server);
}

Test(http_h2_messages, s8_1_1_two_lengths, .timeout = 60)
{
	SENT({"the same", {GET_H, "content-length", "0", "content-length", "0", NULL}, 0},
	     {"different", {GET_H, "content-length", "0", "content-length", "1", NULL}, 0});
}

/* ---- 8.2 Fields -------------------------------------------------------------------------------------- */

Test(http_h2_messages, s8_2_1_names, .timeout = 60)
{
	SENT({"upper case", {GET_H, "X-a", "1", NULL}, 0}, {"a space", {GET_H, "x a", "1", NULL}, 0},
	     {"a space behind", {GET_H, "x ", "1", NULL}, 0}, {"a colon", {GET_H, "x:a", "1", NULL}, 0},
	     {"nothing", {GET_H, "", "1", NULL}, 0}, {"a control character", {GET_H, "x\x01", "1", NULL}, 0},
	     {"a line's end", {GET_H, "x\r\ny", "1", NULL}, 0},
	     {"beyond ASCII", {GET_H, "x\xff", "1", NULL}, 0}, {"DEL", {GET_H, "x\x7f", "1", NULL}, 0},
	     {"a token", {GET_H, "x!#$%&'*+-.^_`|~09", "1", NULL}, 200});
}

Test(http_h2_messages, s8_2_1_values, .timeout = 60)
{
	SENT({"CR", {GET_H, "x", "a\rb", NULL}, 0}, {"LF", {GET_H, "x", "a\nb", NULL}, 0},
	     {"a control character", {GET_H, "x", "a\x01", NULL}, 0}, {"DEL", {GET_H, "x", "a\x7f", NULL}, 0},
	     {"a space before", {GET_H, "x", " a", NULL}, 0}, {"a tab behind", {GET_H, "x", "a\t", NULL}, 0},
	     {"nothing", {GET_H, "x", "", NULL}, 200}, {"spaces within", {GET_H, "x", "a \t b", NULL}, 200},
	     {"beyond ASCII", {GET_H, "x", "\xc3\xa4", NULL}, 200});
}

/* What strings cannot hold. */
Test(http_h2_messages, s8_2_1_nul, .timeout = 60)
{
	static const struct {
		const char *name, *value;
		size_t name_size, value_size;
	} fields[] = {{"x", "a\0b", 1, 3},
	              {"x\0y", "a", 3, 1},
	              {":path", "/a\0b", 5, 4},
	              {":method", "GET\0", 7, 4},
	              {":authority", "h\0", 10, 2}};
	http_peer_server *server = http_peer_serve(&watched, routes);
	h2_peer *p = h2_peer_connect(server);
	for (uint32_t i = 0; i < sizeof(fields) / sizeof(*fields); i++) {
		uint8_t block[256];
		const char *const begin[] = {":scheme", "http", i == 2 ? ":method" : ":path",
		                             i == 2 ? "GET" : "/", NULL};
		const char *const with_method[] = {":scheme", "http", ":method", "GET", ":path", "/", NULL};
		size_t size = h2_block(block, sizeof(block), i == 2 || i == 3 ? begin : with_method);
		size += h2_block_field(block + size, sizeof(block) - size, fields[i].name,
		                       fields[i].name_size, fields[i].value, fields[i].value_size);
		if (i != 4)
			size += h2_block_field(block + size, sizeof(block) - size, "host", 4, "h", 1);
		h2_peer_frame(p, H2_HEADERS, 5, 2 * i + 1, block, size);
		expect_stream_error(p, 2 * i + 1, fields[i].name);
	}
	h2_peer_close(p);
	http_peer_stop(server);
}

Test(http_h2_messages, s8_2_2_fields_of_the_connection, .timeout = 60)
{
	SENT({"connection", {GET_H, "connection", "close", NULL}, 0},
	     {"proxy-connection", {GET_H, "proxy-connection", "close", NULL}, 0},
	     {"keep-alive", {GET_H, "keep-alive", "timeout=5", NULL}, 0},
	     {"transfer-encoding", {GET_H, "transfer-encoding", "chunked", NULL}, 0},
	     {"upgrade", {GET_H, "upgrade", "h2c", NULL}, 0}, {"te", {GET_H, "te", "gzip", NULL}, 0},
	     {"te of several", {GET_H, "te", "trailers, gzip", NULL}, 0},
	     {"te: trailers", {GET_H, "te", "trailers", NULL}, 200});
}

/* ---- 8.3 Control data -------------------------------------------------------------------------------- */

Test(http_h2_messages, s8_3_pseudo_fields, .timeout = 60)
{
	SENT({"one unknown", {GET_H, ":x", "1", NULL}, 0},
	     {"a response's", {GET_H, ":status", "200", NULL}, 0},
	     {"behind another field",
	      {":method", "GET", ":scheme", "http", "x", "1", ":path", "/hello", ":authority", "h", NULL},
	      0},
	     {"two methods", {GET_H, ":method", "GET", NULL}, 0},
	     {"two schemes", {GET_H, ":scheme", "http", NULL}, 0},
	     {"two paths", {GET_H, ":path", "/hello", NULL}, 0},
	     {"two authorities", {GET_H, ":authority", "h", NULL}, 0},
	     {"a protocol, not asked for", {GET_H, ":protocol", "websocket", NULL}, 0});
}

Test(http_h2_messages, s8_3_1_what_must_be_there, .timeout = 60)
{
	SENT({"nothing", {NULL}, 0},
	     {"no method", {":scheme", "http", ":path", "/hello", ":authority", "h", NULL}, 0},
	     {"no scheme", {":method", "GET", ":path", "/hello", ":authority", "h", NULL}, 0},
	     {"no path", {":method", "GET", ":scheme", "http", ":authority", "h", NULL}, 0},
	     {"no authority", {GET, NULL}, 0}, {"Host for it", {GET, "host", "h", NULL}, 200});
}

Test(http_h2_messages, s8_3_1_paths, .timeout = 60)
{
#define PATH(path) {":method", "GET", ":scheme", "http", ":authority", "h", ":path", path, NULL}
	SENT({"empty", PATH(""), 0}, {"relative", PATH("hello"), 0}, {"absolute", PATH("http://h/hello"), 0},
	     {"an asterisk", PATH("*"), 0}, {"a space", PATH("/he llo"), 0},
	     {"a control character", PATH("/\x01"), 0}, {"a fragment", PATH("/hello#a"), 400},
	     {"a bad escape", PATH("/%zz"), 400}, {"a NUL", PATH("/%00"), 400},
	     {"a bad escape in the query", PATH("/hello?a=%1"), 400}, {"not clean", PATH("//hello"), 308},
	     {"beyond ASCII", PATH("/\xc3\xa4"), 404},
	     {"OPTIONS *",
	      {":method", "OPTIONS", ":scheme", "http", ":authority", "h", ":path", "*", NULL},
	      400});
}

Test(http_h2_messages, s8_3_1_authorities, .timeout = 60)
{
#define AUTHORITY(authority) {GET, ":authority", authority, NULL}
	SENT({"a user", AUTHORITY("user@h"), EITHER}, {"a path", AUTHORITY("h/x"), 0},
	     {"a list", AUTHORITY("a,b"), 400}, {"a port that is none", AUTHORITY("h:x"), 400},
	     {"an address", AUTHORITY("[::1]:80"), 200},
	     {"and another Host", {GET_H, "host", "other", NULL}, 400},
	     {"and the same Host", {GET, ":authority", "h:80", "host", "H:80", NULL}, 200},
	     {"two Hosts", {GET, "host", "h", "host", "g", NULL}, 0});
}

Test(http_h2_messages, s8_3_1_methods_and_schemes, .timeout = 60)
{
	SENT({"no token",
	      {":method", "G(T", ":scheme", "http", ":authority", "h", ":path", "/hello", NULL},
	      0},
	     {"empty", {":method", "", ":scheme", "http", ":authority", "h", ":path", "/hello", NULL}, 0},
	     {"not served",
	      {":method", "PUT", ":scheme", "http", ":authority", "h", ":path", "/hello", NULL},
	      405},
	     {"ftp", {":method", "GET", ":scheme", "ftp", ":authority", "h", ":path", "/hello", NULL}, 400},
	     {"https",
	      {":method", "GET", ":scheme", "https", ":authority", "h", ":path", "/hello", NULL},
	      200});
}

Test(http_h2_messages, s8_5_connect, .timeout = 60)
{
	SENT({"as it should be", {":method", "CONNECT", ":authority", "h:80", NULL}, 400},
	     {"with a path",
	      {":method", "CONNECT", ":scheme", "http", ":authority", "h:80", ":path", "/", NULL},
	      0},
	     {"without authority", {":method", "CONNECT", NULL}, 0});
}

/* ---- What is one, and too much ----------------------------------------------------------------------- */

static void expect_problem(h2_answer *answer, int status)
{
	cr_expect(eq(int, answer->status, status));
	cr_expect(eq(str, (char *)h2_answer_field(answer, "content-type"), "application/problem+json"));
	cr_expect(answer->ended);
}

/* Each is the affair of its stream alone. */
Test(http_h2_messages, refusals_are_problems, .timeout = 60)
{
	static const struct {
		const char *method, *target;
		int status;
	} cases[] = {{"PUT", "/hello", 405},
	             {"GET", "/nowhere", 404},
	             {"GET", "/hello/%00", 400},
	             {"GET", "/hello?a=%1", 400},
	             {"DELETE", "/hello?a=b", 405}};
	http_peer_server *server = http_peer_serve(&watched, routes);
	h2_peer *p = h2_peer_connect(server);
	uint32_t id = 1;
	for (size_t i = 0; i < sizeof(cases) / sizeof(*cases); i++, id += 2) {
		h2_peer_ask(p, id, cases[i].method, cases[i].target);
		h2_answer *answer = h2_peer_answer(p, id);
		expect_problem(answer, cases[i].status);
		const char *allow = h2_answer_field(answer, "allow");
		cr_expect(eq(str, (char *)(allow ? allow : ""),
		             cases[i].status == 405 ? "GET, HEAD, POST" : ""));
	}
	h2_peer_ask(p, id, "GET", "/hello");
	cr_expect(eq(int, h2_peer_answer(p, id)->status, 200));
	h2_peer_close(p);
	http_peer_stop(server);
	cr_expect(eq(int, handled, 1));
}

Test(http_h2_messages, s10_5_1_header_lists_too_large, .timeout = 60)
{
	http_peer_server *server = http_peer_serve(&watched, routes);
	h2_peer *p = h2_peer_connect(server);
	static char value[15000], target[9000], many[101][16];
	const char *fields[2 * 110] = {GET_H, "x", value};
	memset(value, 'v', sizeof(value) - 1);
	h2_peer_headers(p, 1, H2_END_STREAM, fields);
	cr_expect(eq(int, h2_peer_answer(p, 1)->status, 200));
	fields[10] = "y";
	fields[11] = value + 13000;
	h2_peer_headers(p, 3, H2_END_STREAM, fields);
	expect_problem(h2_peer_answer(p, 3), 431);
	for (int i = 0; i < 101; i++) {
		snprintf(many[i], sizeof(many[i]), "x%d", i);
		fields[8 + 2 * i] = many[i];
		fields[9 + 2 * i] = "";
	}
	h2_peer_headers(p, 5, H2_END_STREAM, fields);
	expect_problem(h2_peer_answer(p, 5), 431);
	memset(target, 'a', sizeof(target) - 1);
	target[0] = '/';
	h2_peer_ask(p, 7, "GET", target);
	expect_problem(h2_peer_answer(p, 7), 414);
	h2_peer_ask(p, 9, "GET", "/hello");
	cr_expect(eq(int, h2_peer_answer(p, 9)->status, 200));
	h2_peer_close(p);
	http_peer_stop(server);
}

Test(http_h2_messages, bodies_too_large, .timeout = 60)
{
	http_server_options options = watched;
	options.body_size = 1000;
	http_peer_server *server = http_peer_serve(&options, routes);
	h2_peer *p = h2_peer_connect(server);
	static char body[1001];
	/* As announced: answered before the body comes, which then need not. */
	h2_peer_headers(p, 1, 0,
	                (const char *[]){":method", "POST", ":scheme", "http", ":path", "/hello",
	                                 ":authority", "h", "content-length", "1001", NULL});
	h2_answer *answer = h2_peer_answer(p, 1);
	expect_problem(answer, 413);
	while (!answer->reset)
		cr_assert(h2_peer_step(p));
	cr_expect(eq(u32, answer->reason, H2_NO_ERROR));
	h2_peer_frame(p, H2_DATA, H2_END_STREAM, 1, body, sizeof(body)); /* it was under way */
	/* As it turns out. */
	h2_peer_begin(p, 3, "POST", "/hello");
	h2_peer_frame(p, H2_DATA, 0, 3, body, 1000);
	cr_assert(h2_peer_ping(p));
	cr_expect(eq(int, h2_peer_so_far(p, 3)->status, 0));
	h2_peer_frame(p, H2_DATA, 0, 3, body, 1);
	expect_problem(h2_peer_answer(p, 3), 413);
	/* As large as allowed. */
	h2_peer_begin(p, 5, "POST", "/hello");
	h2_peer_frame(p, H2_DATA, H2_END_STREAM, 5, body, 1000);
	cr_expect(eq(int, h2_peer_answer(p, 5)->status, 200));
	cr_expect(eq(int, handled, 1));
	h2_peer_close(p);
	http_peer_stop(server);
	cr_expect(eq(int, done, 3));
}

Test(http_h2_messages, expectations, .timeout = 60)
{
	http_peer_server *server = http_peer_serve(&watched, routes);
	h2_peer *p = h2_peer_connect(server);
	const char *fields[] = {":method",    "POST", ":scheme", "http",         ":path", "/hello",
	                        ":authority", "h",    "expect",  "100-continue", NULL};
	h2_peer_headers(p, 1, 0, fields);
	h2_answer *answer = h2_peer_so_far(p, 1);
	while (answer->status == 0)
		cr_assert(h2_peer_step(p));
	cr_expect(eq(int, answer->status, 100));
	h2_peer_frame(p, H2_DATA, H2_END_STREAM, 1, "body", 4);
	answer = h2_peer_answer(p, 1);
	cr_expect(eq(int, answer->status, 200));
	cr_expect(eq(int, answer->interim, 1));
	fields[9] = "wonders";
	h2_peer_headers(p, 3, 0, fields);
	expect_problem(h2_peer_answer(p, 3), 417);
	fields[5] = "/nowhere";
	fields[9] = "100-continue";
	h2_peer_headers(p, 5, 0, fields);
	answer = h2_peer_answer(p, 5);
	expect_problem(answer, 404);
	cr_expect(eq(int, answer->interim, 0), "the body was asked for, and will not be read");
	h2_peer_close(p);
	http_peer_stop(server);
}
