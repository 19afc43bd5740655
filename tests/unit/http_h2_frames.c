/*
 * RFC 9113, sections 3 to 7: what a client's frames may be and when they may come. Each violation ends what it
 * must end, the connection or one stream alone, with the reason the section names; what must be ignored is.
 */
#include <criterion/criterion.h>
#include <criterion/new/assert.h>
#include <stdlib.h>
#include <string.h>

#include "h2_peer.h"
#include "support.h"
#include "watched.h"

/* n bytes. */
static void streams(http_request *request, http_response *response)
{
	static const char data[1000];
	for (size_t n = strtoul(http_path_value(request, "n"), NULL, 10); n > 0;) {
		size_t size = n < sizeof(data) ? n : sizeof(data);
		if (http_write(response, data, size) != 0)
			return;
		n -= size;
	}
}

static const http_peer_route routes[] = {{"GET /hello", answers_hello, NULL},
                                         {"GET /wait", waits_until_done, NULL},
                                         {"POST /body", answers_body_size, NULL},
                                         {"GET /stream/{n}", streams, NULL},
                                         {0}};

enum { OPEN = 1, CLOSED = 3, HALF_CLOSED = 5, RESET = 7, IDLE = 9 };

/* A connection with a stream in each of these states. */
static h2_peer *connect_with_streams(http_peer_server *server)
{
	h2_peer *p = h2_peer_connect(server);
	h2_peer_begin(p, OPEN, "POST", "/body");
	h2_peer_ask(p, CLOSED, "GET", "/hello");
	h2_peer_ask(p, HALF_CLOSED, "GET", "/wait");
	h2_peer_ask(p, RESET, "GET", "/wait");
	h2_peer_number(p, H2_RST_STREAM, RESET, H2_CANCEL);
	cr_assert(eq(int, h2_peer_answer(p, CLOSED)->status, 200));
	cr_assert(h2_peer_ping(p));
	return p;
}

struct wrong {
	const char *name;
	uint8_t type, flags;
	uint32_t stream;
	const char *payload;
	size_t size;
	uint32_t reason;
};

#define P(literal) literal, sizeof(literal) - 1

/* GOAWAY with the reason, and the end. */
static void breaks_the_connection(const struct wrong *wrong, size_t count)
{
	http_peer_server *server = http_peer_serve(NULL, routes);
	for (; count > 0; wrong++, count--) {
		h2_peer *p = connect_with_streams(server);
		h2_peer_frame(p, wrong->type, wrong->flags, wrong->stream, wrong->payload, wrong->size);
		cr_expect(h2_peer_goes_away(p, 1), "%s: no GOAWAY", wrong->name);
		cr_expect(eq(u32, p->goaway_reason, wrong->reason), "%s", wrong->name);
		cr_expect(h2_peer_ends(p), "%s: the connection stays", wrong->name);
		h2_peer_close(p);
	}
	http_peer_stop(server);
}

#define BREAKS_THE_CONNECTION(...)                                            \
	do {                                                                  \
		static const struct wrong wrong[] = {__VA_ARGS__};            \
		breaks_the_connection(wrong, sizeof(wrong) / sizeof(*wrong)); \
	} while (0)

/* RST_STREAM with the reason, and all else goes on. */
static void breaks_the_stream(const struct wrong *wrong, size_t count)
{
	http_peer_server *server = http_peer_serve(NULL, routes);
	for (; count > 0; wrong++, count--) {
		h2_peer *p = connect_with_streams(server);
		h2_peer_frame(p, wrong->type, wrong->flags, wrong->stream, wrong->payload, wrong->size);
		h2_answer *answer = h2_peer_answer(p, wrong->stream);
		cr_expect(answer->reset, "%s: not reset", wrong->name);
		cr_expect(eq(u32, answer->reason, wrong->reason), "%s", wrong->name);
		h2_peer_ask(p, IDLE + 2, "GET", "/hello");
		cr_expect(eq(int, h2_peer_answer(p, IDLE + 2)->status, 200),
		          "%s: the connection has suffered", wrong->name);
		cr_expect(eq(int, p->goaways, 0), "%s", wrong->name);
		h2_peer_close(p);
	}
	http_peer_stop(server);
}

#define BREAKS_THE_STREAM(...)                                            \
	do {                                                              \
		static const struct wrong wrong[] = {__VA_ARGS__};        \
		breaks_the_stream(wrong, sizeof(wrong) / sizeof(*wrong)); \
	} while (0)

/* Nothing happens. */
static void is_ignored(const struct wrong *wrong, size_t count)
{
	http_peer_server *server = http_peer_serve(NULL, routes);
	for (; count > 0; wrong++, count--) {
		h2_peer *p = connect_with_streams(server);
		h2_peer_frame(p, wrong->type, wrong->flags, wrong->stream, wrong->payload, wrong->size);
		cr_expect(h2_peer_ping(p), "%s", wrong->name);
		h2_peer_frame(p, H2_DATA, H2_END_STREAM, OPEN, "body", 4);
		cr_expect(eq(str, h2_peer_answer(p, OPEN)->body, "4"), "%s", wrong->name);
		cr_expect(eq(sz, p->frames[H2_RST_STREAM] + p->frames[H2_GOAWAY], 0), "%s", wrong->name);
		h2_peer_close(p);
	}
	http_peer_stop(server);
}

#define IS_IGNORED(...)                                            \
	do {                                                       \
		static const struct wrong wrong[] = {__VA_ARGS__}; \
		is_ignored(wrong, sizeof(wrong) / sizeof(*wrong)); \
	} while (0)

/* ---- 3 Starting, 4 Frames ---------------------------------------------------------------------------- */

Test(http_h2_frames, s3_4_settings_come_first, .timeout = 60)
{
	static const struct wrong first[] = {{"PING", H2_PING, 0, 0, P("12345678"), 0},
	                                     {"HEADERS", H2_HEADERS, 5, 1, P("\x82\x86\x84\x41\1h"), 0},
	                                     {"unknown", 0xbe, 0, 0, P("x"), 0},
	                                     {"SETTINGS's ACK", H2_SETTINGS, H2_ACK, 0, P(""), 0}};
	http_peer_server *server = http_peer_serve(NULL, routes);
	for (size_t i = 0; i < sizeof(first) / sizeof(*first); i++) {
		h2_peer *p = h2_peer_open(http_peer_connect(server));
		h2_peer_bytes(p, "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 24);
		h2_peer_frame(p, first[i].type, first[i].flags, first[i].stream, first[i].payload,
		              first[i].size);
		cr_expect(h2_peer_goes_away(p, 1), "%s", first[i].name);
		cr_expect(eq(u32, p->goaway_reason, H2_PROTOCOL_ERROR), "%s", first[i].name);
		cr_expect(h2_peer_ends(p));
		h2_peer_close(p);
	}
	http_peer_stop(server);
}

Test(http_h2_frames, s3_4_ours_come_first_too, .timeout = 60)
{
	http_peer_server *server = http_peer_serve(NULL, routes);
	h2_peer *p = h2_peer_connect(server);
	cr_assert(h2_peer_step(p));
	cr_expect(eq(sz, p->frames[H2_SETTINGS], 1));
	cr_expect(eq(u32, p->settings[3], 100), "SETTINGS_MAX_CONCURRENT_STREAMS");
	cr_expect(eq(u32, p->settings[6], 16384), "SETTINGS_MAX_HEADER_LIST_SIZE");
	while (p->frames[H2_SETTINGS] < 2)
		cr_assert(h2_peer_step(p), "ours were not acknowledged");
	h2_peer_close(p);
	http_peer_stop(server);
}

Test(http_h2_frames, s4_1_what_is_unknown_is_ignored, .timeout = 60)
{
	IS_IGNORED({"a type", 0xbe, 0xff, 0, P("whatever"), 0},
	           {"a type, on a stream", 0xbe, 0, OPEN, P("x"), 0},
	           {"a type, on an idle one", 0xbe, 0, IDLE, P("x"), 0},
	           {"flags", H2_PING, 0xfe, 0, P("12345678"), 0},
	           {"the reserved bit", H2_PING, 0, 0x80000000, P("12345678"), 0});
}

static const char huge[16385];

Test(http_h2_frames, s4_2_frame_sizes, .timeout = 60)
{
	BREAKS_THE_CONNECTION(
		{"HEADERS", H2_HEADERS, H2_END_HEADERS, IDLE, huge, sizeof(huge), H2_FRAME_SIZE_ERROR},
		{"DATA", H2_DATA, 0, OPEN, huge, sizeof(huge), H2_FRAME_SIZE_ERROR},
		{"SETTINGS", H2_SETTINGS, 0, 0, huge, 16386 - 2, H2_FRAME_SIZE_ERROR},
		{"unknown", 0xbe, 0, 0, huge, sizeof(huge), H2_FRAME_SIZE_ERROR});
	IS_IGNORED({"of the largest allowed", 0xbe, 0, 0, huge, 16384, 0});
}

Test(http_h2_frames, s4_3_header_compression, .timeout = 60)
{
	BREAKS_THE_CONNECTION(
		{"index 0", H2_HEADERS, 5, IDLE, P("\x80"), H2_COMPRESSION_ERROR},
		{"an index beyond the table", H2_HEADERS, 5, IDLE, P("\xff\xff\x7f"), H2_COMPRESSION_ERROR},
		{"a number without end", H2_HEADERS, 5, IDLE, P("\xff\xff\xff\xff\xff\xff\xff\xff"),
	         H2_COMPRESSION_ERROR},
		{"a string cut short", H2_HEADERS, 5, IDLE, P("\x82\x86\x84\x41\x7fh"), H2_COMPRESSION_ERROR},
		{"bad Huffman padding", H2_HEADERS, 5, IDLE, P("\x82\x86\x84\x41\x81\x00"),
	         H2_COMPRESSION_ERROR},
		{"a table larger than allowed", H2_HEADERS, 5, IDLE, P("\x3f\xff\xff\x03\x82\x86\x84\x41\1h"),
	         H2_COMPRESSION_ERROR},
		{"a change of the table behind a field", H2_HEADERS, 5, IDLE, P("\x82\x20\x86\x84\x41\1h"),
	         H2_COMPRESSION_ERROR},
		{"in trailers", H2_HEADERS, 5, OPEN, P("\x80"), H2_COMPRESSION_ERROR});
}

/* ---- 5 Streams --------------------------------------------------------------------------------------- */

Test(http_h2_frames, s5_1_idle_streams, .timeout = 60)
{
	BREAKS_THE_CONNECTION({"DATA", H2_DATA, 0, IDLE, P("x"), H2_PROTOCOL_ERROR},
	                      {"RST_STREAM", H2_RST_STREAM, 0, IDLE, P("\0\0\0\x8"), H2_PROTOCOL_ERROR},
	                      {"WINDOW_UPDATE", H2_WINDOW_UPDATE, 0, IDLE, P("\0\0\0\1"), H2_PROTOCOL_ERROR},
	                      {"CONTINUATION", H2_CONTINUATION, 4, IDLE, P("\x82"), H2_PROTOCOL_ERROR});
}

Test(http_h2_frames, s5_1_half_closed_and_closed_streams, .timeout = 60)
{
	BREAKS_THE_CONNECTION(
		{"HEADERS, half-closed", H2_HEADERS, 5, HALF_CLOSED, P("\x82\x86\x84\x41\1h"),
	         H2_STREAM_CLOSED},
		{"DATA, half-closed", H2_DATA, 0, HALF_CLOSED, P("x"), H2_STREAM_CLOSED},
		{"CONTINUATION, half-closed", H2_CONTINUATION, 4, HALF_CLOSED, P("x"), H2_PROTOCOL_ERROR},
		{"HEADERS, closed", H2_HEADERS, 5, CLOSED, P("\x82\x86\x84\x41\1h"), H2_STREAM_CLOSED},
		{"HEADERS, reset", H2_HEADERS, 5, RESET, P("\x82\x86\x84\x41\1h"), H2_STREAM_CLOSED});
	IS_IGNORED({"DATA, closed", H2_DATA, 0, CLOSED, P("x"), 0},
	           {"WINDOW_UPDATE, closed", H2_WINDOW_UPDATE, 0, CLOSED, P("\0\0\0\1"), 0},
	           {"RST_STREAM, closed", H2_RST_STREAM, 0, CLOSED, P("\0\0\0\x8"), 0},
	           {"RST_STREAM, reset", H2_RST_STREAM, 0, RESET, P("\0\0\0\x8"), 0},
	           {"PRIORITY, closed", H2_PRIORITY, 0, CLOSED, P("\0\0\0\0\1"), 0});
}

Test(http_h2_frames, s5_1_1_stream_numbers, .timeout = 60)
{
	BREAKS_THE_CONNECTION({"even", H2_HEADERS, 5, IDLE + 1, P("\x82\x86\x84\x41\1h"), H2_PROTOCOL_ERROR},
	                      {"none", H2_HEADERS, 5, 0, P("\x82\x86\x84\x41\1h"), H2_PROTOCOL_ERROR});
	/* A number passed over is closed by the next. */
	http_peer_server *server = http_peer_serve(NULL, routes);
	h2_peer *p = h2_peer_connect(server);
	h2_peer_ask(p, 11, "GET", "/hello");
	h2_peer_ask(p, 9, "GET", "/hello");
	cr_expect(h2_peer_goes_away(p, 1));
	cr_expect(p->goaway_reason == H2_PROTOCOL_ERROR || p->goaway_reason == H2_STREAM_CLOSED);
	h2_peer_close(p);
	http_peer_stop(server);
}

Test(http_h2_frames, s5_1_2_streams_past_the_limit, .timeout = 60)
{
	http_peer_server *server = http_peer_serve(NULL, routes);
	h2_peer *p = h2_peer_connect(server);
	p->silent = true; /* the limit holds before it is acknowledged, too */
	for (uint32_t i = 0; i < 110; i++)
		h2_peer_ask(p, 2 * i + 1, "GET", "/wait");
	for (uint32_t i = 100; i < 110; i++) {
		h2_answer *answer = h2_peer_answer(p, 2 * i + 1);
		cr_expect(answer->reset);
		cr_expect(eq(u32, answer->reason, H2_REFUSED_STREAM));
	}
	for (uint32_t i = 0; i < 100; i++)
		cr_expect(not(h2_peer_so_far(p, 2 * i + 1)->reset));
	h2_peer_frame(p, H2_SETTINGS, H2_ACK, 0, NULL, 0);
	h2_peer_ask(p, 221, "GET", "/wait");
	cr_expect(h2_peer_goes_away(p, 1));
	cr_expect(eq(u32, p->goaway_reason, H2_PROTOCOL_ERROR));
	h2_peer_close(p);
	http_peer_stop(server);
}

Test(http_h2_frames, s5_5_no_extension_within_a_header_block, .timeout = 60)
{
	http_peer_server *server = http_peer_serve(NULL, routes);
	h2_peer *p = h2_peer_connect(server);
	h2_peer_frame(p, H2_HEADERS, 0, 1, "\x82", 1);
	h2_peer_frame(p, 0xbe, 0, 1, "x", 1);
	cr_expect(h2_peer_goes_away(p, 1));
	cr_expect(eq(u32, p->goaway_reason, H2_PROTOCOL_ERROR));
	h2_peer_close(p);
	http_peer_stop(server);
}

/* ---- 6 Frames, each in turn -------------------------------------------------------------------------- */

Test(http_h2_frames, s6_1_data, .timeout = 60)
{
	BREAKS_THE_CONNECTION(
		{"stream 0", H2_DATA, 0, 0, P("x"), H2_PROTOCOL_ERROR},
		{"all padding and more", H2_DATA, H2_PADDED, OPEN, P("\4abc"), H2_PROTOCOL_ERROR},
		{"no room for the padding's length", H2_DATA, H2_PADDED, OPEN, P(""), H2_PROTOCOL_ERROR});
	IS_IGNORED({"all padding", H2_DATA, H2_PADDED, OPEN, P("\3\0\0\0"), 0},
	           {"nothing", H2_DATA, 0, OPEN, P(""), 0});
}

Test(http_h2_frames, s6_2_headers, .timeout = 60)
{
	BREAKS_THE_CONNECTION({"stream 0", H2_HEADERS, 5, 0, P("\x82"), H2_PROTOCOL_ERROR},
	                      {"too much padding", H2_HEADERS, 5 | H2_PADDED, IDLE,
	                       P("\x9\x82\x86\x84\x41\1h"), H2_PROTOCOL_ERROR},
	                      {"no room for the priority", H2_HEADERS, 5 | H2_PRIORITIES, IDLE, P("\0\0"),
	                       H2_FRAME_SIZE_ERROR});
	/* In pieces, with padding and priority. */
	http_peer_server *server = http_peer_serve(NULL, routes);
	h2_peer *p = h2_peer_connect(server);
	h2_peer_frame(p, H2_HEADERS, H2_END_STREAM | H2_PADDED | H2_PRIORITIES, 1,
	              "\2\0\0\0\0\x10\x82\x86\0\0", 10);
	h2_peer_frame(p, H2_CONTINUATION, 0, 1, "", 0);
	h2_peer_frame(p, H2_CONTINUATION, 0, 1, "\x44\6/he", 5);
	h2_peer_frame(p, H2_CONTINUATION, H2_END_HEADERS, 1, "llo\x41\1h", 6);
	cr_expect(eq(int, h2_peer_answer(p, 1)->status, 200));
	h2_peer_close(p);
	http_peer_stop(server);
}

Test(http_h2_frames, s6_3_priority, .timeout = 60)
{
	BREAKS_THE_CONNECTION({"stream 0", H2_PRIORITY, 0, 0, P("\0\0\0\0\1"), H2_PROTOCOL_ERROR},
	                      {"too short", H2_PRIORITY, 0, OPEN, P("\0\0\0\0"), H2_FRAME_SIZE_ERROR});
	IS_IGNORED({"on an idle stream", H2_PRIORITY, 0, IDLE, P("\0\0\0\0\1"), 0});
}

Test(http_h2_frames, s6_4_rst_stream, .timeout = 60)
{
	BREAKS_THE_CONNECTION({"stream 0", H2_RST_STREAM, 0, 0, P("\0\0\0\x8"), H2_PROTOCOL_ERROR},
	                      {"too short", H2_RST_STREAM, 0, OPEN, P("\0\0\0"), H2_FRAME_SIZE_ERROR},
	                      {"too long", H2_RST_STREAM, 0, OPEN, P("\0\0\0\0\0"), H2_FRAME_SIZE_ERROR});
}

Test(http_h2_frames, s6_5_settings, .timeout = 60)
{
	BREAKS_THE_CONNECTION(
		{"on a stream", H2_SETTINGS, 0, OPEN, P(""), H2_PROTOCOL_ERROR},
		{"ACK with a payload", H2_SETTINGS, H2_ACK, 0, P("\0\0\0\0\0\0"), H2_FRAME_SIZE_ERROR},
		{"not a multiple of six", H2_SETTINGS, 0, 0, P("\0\3\0\0\0"), H2_FRAME_SIZE_ERROR},
		{"ENABLE_PUSH 2", H2_SETTINGS, 0, 0, P("\0\2\0\0\0\2"), H2_PROTOCOL_ERROR},
		{"INITIAL_WINDOW_SIZE", H2_SETTINGS, 0, 0, P("\0\4\x80\0\0\0"), H2_FLOW_CONTROL_ERROR},
		{"MAX_FRAME_SIZE too small", H2_SETTINGS, 0, 0, P("\0\5\0\0\x3f\xff"), H2_PROTOCOL_ERROR},
		{"MAX_FRAME_SIZE too large", H2_SETTINGS, 0, 0, P("\0\5\1\0\0\0"), H2_PROTOCOL_ERROR});
	IS_IGNORED({"an unknown one", H2_SETTINGS, 0, 0, P("\xbe\xef\0\0\0\1"), 0});
}

Test(http_h2_frames, s6_6_push_promise, .timeout = 60)
{
	BREAKS_THE_CONNECTION(
		{"of a client", H2_PUSH_PROMISE, 4, OPEN, P("\0\0\0\2\x82"), H2_PROTOCOL_ERROR});
}

Test(http_h2_frames, s6_7_ping, .timeout = 60)
{
	BREAKS_THE_CONNECTION({"on a stream", H2_PING, 0, OPEN, P("12345678"), H2_PROTOCOL_ERROR},
	                      {"too short", H2_PING, 0, 0, P("1234567"), H2_FRAME_SIZE_ERROR},
	                      {"too long", H2_PING, 0, 0, P("123456789"), H2_FRAME_SIZE_ERROR});
	IS_IGNORED({"ACK of none sent", H2_PING, H2_ACK, 0, P("12345678"), 0});
}

Test(http_h2_frames, s6_8_goaway, .timeout = 60)
{
	BREAKS_THE_CONNECTION({"on a stream", H2_GOAWAY, 0, OPEN, P("\0\0\0\0\0\0\0\0"), H2_PROTOCOL_ERROR},
	                      {"too short", H2_GOAWAY, 0, 0, P("\0\0\0\0"), H2_FRAME_SIZE_ERROR});
}

Test(http_h2_frames, s6_9_window_update, .timeout = 60)
{
	BREAKS_THE_CONNECTION(
		{"by nothing", H2_WINDOW_UPDATE, 0, 0, P("\0\0\0\0"), H2_PROTOCOL_ERROR},
		{"too short", H2_WINDOW_UPDATE, 0, 0, P("\0\0\1"), H2_FRAME_SIZE_ERROR},
		{"past 2^31-1", H2_WINDOW_UPDATE, 0, 0, P("\x7f\xff\xff\xff"), H2_FLOW_CONTROL_ERROR});
	/* A stream's error may be taken for the connection's (RFC 9113, 5.4). */
	BREAKS_THE_CONNECTION({"a stream's, by nothing", H2_WINDOW_UPDATE, 0, HALF_CLOSED, P("\0\0\0\0"),
	                       H2_PROTOCOL_ERROR});
	BREAKS_THE_STREAM({"past 2^31-1", H2_WINDOW_UPDATE, 0, HALF_CLOSED, P("\x7f\xff\xff\xff"),
	                   H2_FLOW_CONTROL_ERROR});
}

/* The windows hold us back, of the connection and of each stream, and go down when the client says so. */
Test(http_h2_frames, s6_9_1_the_windows_are_heeded, .timeout = 60)
{
	http_peer_server *server = http_peer_serve(NULL, routes);
	h2_peer *p = h2_peer_connect(server);
	p->silent = true;
	h2_peer_frame(p, H2_SETTINGS, 0, 0, "\0\4\0\0\x03\xe8", 6); /* 1000 for each stream */
	h2_peer_ask(p, 1, "GET", "/stream/200000");
	cr_assert(h2_peer_ping(p));
	cr_assert(h2_peer_ping(p));
	cr_expect(eq(sz, h2_peer_so_far(p, 1)->body_size, 1000));
	h2_peer_number(p, H2_WINDOW_UPDATE, 1, 1);
	cr_assert(h2_peer_ping(p));
	cr_assert(h2_peer_ping(p));
	cr_expect(eq(sz, h2_peer_so_far(p, 1)->body_size, 1001));
	h2_peer_frame(p, H2_SETTINGS, 0, 0, "\0\4\0\0\0\0", 6); /* 1000 below nothing */
	h2_peer_number(p, H2_WINDOW_UPDATE, 1, 1005);
	cr_assert(h2_peer_ping(p));
	cr_assert(h2_peer_ping(p));
	cr_expect(eq(sz, h2_peer_so_far(p, 1)->body_size, 1006));
	h2_peer_number(p, H2_WINDOW_UPDATE, 1, 1000000);
	while (h2_peer_so_far(p, 1)->body_size < 65535)
		cr_assert(h2_peer_step(p));
	cr_assert(h2_peer_ping(p));
	cr_expect(eq(sz, h2_peer_so_far(p, 1)->body_size, 65535), "the connection's window was used up");
	h2_peer_number(p, H2_WINDOW_UPDATE, 0, 1000000);
	h2_answer *answer = h2_peer_answer(p, 1);
	cr_expect(answer->ended);
	cr_expect(eq(sz, answer->body_size, 200000));
	h2_peer_close(p);
	http_peer_stop(server);
}

/* Sends a piece of a body when both windows have room for it. */
static void send_data(h2_peer *p, uint32_t id, uint8_t flags, const char *piece, size_t size)
{
	h2_answer *answer = h2_peer_so_far(p, id);
	while (p->window < (int64_t)size || answer->window < (int64_t)size)
		cr_assert(h2_peer_step(p), "no more room on stream %u", id);
	p->window -= (int64_t)size;
	answer->window -= (int64_t)size;
	h2_peer_frame(p, H2_DATA, flags, id, piece, size);
}

/* The room a body took is given back, padding and all, and also that of a body that nobody wants. */
Test(http_h2_frames, s6_9_1_windows_are_given_back, .timeout = 60)
{
	http_peer_server *server = http_peer_serve(NULL, routes);
	h2_peer *p = h2_peer_connect(server);
	static char piece[16384] = {(char)200};
	p->silent = true;
	for (uint32_t id = 1; id < 11; id += 2) {
		h2_peer_begin(p, id, "POST", "/body");
		for (int i = 0; i < 60; i++)
			send_data(p, id, H2_PADDED, piece, sizeof(piece));
		send_data(p, id, H2_END_STREAM, NULL, 0);
		h2_answer *answer = h2_peer_answer(p, id);
		cr_assert(eq(int, answer->status, 200));
		cr_expect(eq(str, answer->body, "970980"));
	}
	for (uint32_t id = 11; id < 511; id += 2) {
		h2_peer_begin(p, id, "POST", "/nowhere");
		for (int i = 0; i < 3; i++)
			send_data(p, id, 0, piece, sizeof(piece));
		cr_assert(eq(int, h2_peer_answer(p, id)->status, 404));
	}
	h2_peer_close(p);
	http_peer_stop(server);
}

Test(http_h2_frames, s6_10_continuation, .timeout = 60)
{
	BREAKS_THE_CONNECTION({"of nothing", H2_CONTINUATION, 4, OPEN, P("\x82"), H2_PROTOCOL_ERROR},
	                      {"stream 0", H2_CONTINUATION, 4, 0, P("\x82"), H2_PROTOCOL_ERROR});
	static const struct wrong between[] = {
		{"DATA", H2_DATA, 0, 1, P("x"), 0},
		{"HEADERS", H2_HEADERS, 5, 3, P("\x82\x86\x84\x41\1h"), 0},
		{"PING", H2_PING, 0, 0, P("12345678"), 0},
		{"PRIORITY", H2_PRIORITY, 0, 1, P("\0\0\0\0\1"), 0},
		{"CONTINUATION of another stream", H2_CONTINUATION, 4, 3, P("\x82"), 0}};
	http_peer_server *server = http_peer_serve(NULL, routes);
	for (size_t i = 0; i < sizeof(between) / sizeof(*between); i++) {
		const struct wrong *b = &between[i];
		h2_peer *p = h2_peer_connect(server);
		h2_peer_frame(p, H2_HEADERS, 0, 1, "\x82", 1);
		h2_peer_frame(p, b->type, b->flags, b->stream, b->payload, b->size);
		cr_expect(h2_peer_goes_away(p, 1), "%s", b->name);
		cr_expect(eq(u32, p->goaway_reason, H2_PROTOCOL_ERROR), "%s", b->name);
		cr_expect(h2_peer_ends(p));
		h2_peer_close(p);
	}
	http_peer_stop(server);
}

/* ---- 7 Error codes ----------------------------------------------------------------------------------- */

Test(http_h2_frames, s7_unknown_error_codes, .timeout = 60)
{
	http_peer_server *server = http_peer_serve(NULL, routes);
	h2_peer *p = connect_with_streams(server);
	h2_peer_number(p, H2_RST_STREAM, HALF_CLOSED, 0xbeef);
	h2_peer_ask(p, IDLE, "GET", "/hello");
	cr_expect(eq(int, h2_peer_answer(p, IDLE)->status, 200));
	h2_peer_close(p);
	http_peer_stop(server);
}
