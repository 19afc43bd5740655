/*
 * What an HTTP/2 client may cost: the known ways to keep a server busy for nothing end in ENHANCE_YOUR_CALM, each
 * phase of a stream has its time, and what one connection may hold in memory is bounded.
 */
#include <criterion/criterion.h>
#include <criterion/new/assert.h>
#include <poll.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/socket.h>

#include <tether/loop.h>

#include "h2_peer.h"
#include "support.h"
#include "watched.h"

static atomic_bool enough;

/* Does not look at its context. */
static void stubborn(http_request *request, http_response *response)
{
	(void)request, (void)response;
	atomic_fetch_add(&seen.entered, 1);
	while (!enough)
		wait_sleep(ctx_background(), CTX_MILLISECOND);
	atomic_fetch_add(&seen.returned, 1);
}

static const http_peer_route routes[] = {
	{"GET /hello", answers_hello, NULL},     {"POST /hello", answers_hello, NULL},
	{"GET /wait", waits_until_done, NULL},   {"GET /stubborn", stubborn, NULL},
	{"GET /flood", floods_until_done, NULL}, {0}};

/* Since it was so many KiB. What sanitizers and valgrind add is not counted. */
static void expect_grown_less(long before, long mib)
{
	if (support_patience() == 1)
		cr_expect(lt(long, support_resident_kib() - before, mib * 1024));
}

/* ---- Busy for nothing -------------------------------------------------------------------------------- */

/* One round of an attack. Returns false when the other side does not take it any more. */
typedef bool attack(h2_peer *p, uint32_t round);

static bool has_input(const h2_peer *p)
{
	struct pollfd poll_for = {.fd = p->fd, .events = POLLIN};
	return poll(&poll_for, 1, 0) > 0;
}

/* Attacks for so many rounds, or until it is told to calm down. */
static void attack_with(h2_peer *p, attack *once, uint32_t rounds)
{
	uint32_t round = 0;
	while (round < rounds && p->goaways == 0 && !p->closed && once(p, round)) {
		round++;
		while (has_input(p) && h2_peer_step(p))
			;
	}
}

static void expect_calmed(attack *once, uint32_t rounds)
{
	http_peer_server *server = http_peer_serve(&watched, routes);
	h2_peer *p = h2_peer_connect(server), *other = h2_peer_connect(server);
	h2_peer_ask(other, 1, "GET", "/hello");
	cr_assert(eq(int, h2_peer_answer(other, 1)->status, 200));
	long before = support_resident_kib();
	attack_with(p, once, rounds);
	cr_expect(h2_peer_ends(p), "nothing ended it");
	cr_expect(eq(int, p->goaways, 1), "%d of reason %u", p->goaways, p->goaway_reason);
	cr_expect(eq(u32, p->goaway_reason, H2_ENHANCE_YOUR_CALM));
	h2_peer_close(p);
	h2_peer_ask(other, 3, "GET", "/hello");
	cr_expect(eq(int, h2_peer_answer(other, 3)->status, 200), "others have suffered");
	expect_grown_less(before, 16);
	h2_peer_close(other);
	cr_expect(eventually(http_peer_is_quiet, server, 10000));
	cr_expect(eq(int, seen.done, seen.begun));
	cr_expect(eq(int, seen.returned, seen.entered));
	http_peer_stop(server);
}

static bool reset_at_once(h2_peer *p, uint32_t round)
{
	return h2_peer_ask(p, 2 * round + 1, "GET", "/wait") &&
	       h2_peer_number(p, H2_RST_STREAM, 2 * round + 1, H2_CANCEL);
}

/* CVE-2023-44487. What has begun until then is bounded, and all of it is cancelled. */
Test(http_h2_limits, rapid_reset, .timeout = 60)
{
	expect_calmed(reset_at_once, 4000);
	cr_expect(lt(int, seen.begun, 500 * support_patience()), "%d requests were begun", seen.begun);
}

/* It does not depend on turns: all at once, in one write. */
Test(http_h2_limits, rapid_reset_in_one_write, .timeout = 60)
{
	enum { ROUNDS = 2000, SIZE = 21 + 13 };
	static char bytes[ROUNDS * SIZE];
	static const char round[] = "\0\0\xc\1\5\0\0\0\0\x82\x86\x44\5/wait\x41\1h" /* GET /wait */
				    "\0\0\4\3\0\0\0\0\0\0\0\0\x8";                  /* RST_STREAM, CANCEL */
	http_peer_server *server = http_peer_serve(&watched, routes);
	h2_peer *p = h2_peer_connect(server);
	cr_assert(h2_peer_ping(p));
	for (uint32_t i = 0; i < ROUNDS; i++) {
		uint32_t id = 2 * i + 1;
		char *at = bytes + (size_t)i * SIZE;
		memcpy(at, round, SIZE);
		at[7] = at[21 + 7] = (char)(id >> 8);
		at[8] = at[21 + 8] = (char)id;
	}
	h2_peer_bytes(p, bytes, sizeof(bytes));
	cr_expect(h2_peer_goes_away(p, 1));
	cr_expect(eq(u32, p->goaway_reason, H2_ENHANCE_YOUR_CALM));
	h2_peer_close(p);
	cr_expect(eventually(http_peer_is_quiet, server, 10000));
	cr_expect(lt(int, seen.begun, 300));
	cr_expect(ge(int, seen.begun, 200));
	cr_expect(eq(int, seen.done, seen.begun));
	http_peer_stop(server);
}

/* Who gets answers may also take requests back, as many as those. */
Test(http_h2_limits, honest_resets_are_no_attack, .timeout = 60)
{
	http_peer_server *server = http_peer_serve(&watched, routes);
	h2_peer *p = h2_peer_connect(server);
	for (uint32_t i = 0; i < 1000; i++) {
		h2_peer_ask(p, 4 * i + 1, "GET", "/wait");
		h2_peer_ask(p, 4 * i + 3, "GET", "/hello");
		h2_peer_number(p, H2_RST_STREAM, 4 * i + 1, H2_CANCEL);
		cr_assert(eq(int, h2_peer_answer(p, 4 * i + 3)->status, 200), "round %u", i);
	}
	cr_expect(eq(int, p->goaways, 0));
	h2_peer_close(p);
	http_peer_stop(server);
}

/* CVE-2025-8671: it is we who reset, made to by an error within the stream. */
static bool make_us_reset(h2_peer *p, uint32_t round)
{
	uint32_t id = 2 * round + 1;
	return h2_peer_ask(p, id, "GET", "/wait") && h2_peer_number(p, H2_WINDOW_UPDATE, id, INT32_MAX) &&
	       h2_peer_answer(p, id)->reset;
}

Test(http_h2_limits, made_you_reset, .timeout = 60)
{
	expect_calmed(make_us_reset, 4000);
	cr_expect(lt(int, seen.begun, 500 * support_patience()), "%d requests were begun", seen.begun);
}

static bool send_malformed(h2_peer *p, uint32_t round)
{
	uint32_t id = 2 * round + 1;
	return h2_peer_headers(p, id, H2_END_STREAM, (const char *[]){":method", "GET", NULL}) &&
	       h2_peer_answer(p, id)->reset;
}

Test(http_h2_limits, malformed_requests, .timeout = 60)
{
	expect_calmed(send_malformed, 4000);
	cr_expect(eq(int, seen.begun, 2), "the other connection's");
}

/* Past the limit of streams, without ever acknowledging that. */
static bool ask_too_much(h2_peer *p, uint32_t round)
{
	p->silent = true;
	return h2_peer_ask(p, 2 * round + 1, "GET", "/wait");
}

Test(http_h2_limits, streams_past_the_limit, .timeout = 60)
{
	expect_calmed(ask_too_much, 4000);
	cr_expect(eq(int, seen.begun, 2 + 100), "the other connection's, and those within the limit");
}

/* CVE-2019-9512, -9515, -9518 and their kin. */
static bool send_ping(h2_peer *p, uint32_t round)
{
	(void)round;
	return h2_peer_frame(p, H2_PING, 0, 0, "12345678", 8);
}

static bool send_settings(h2_peer *p, uint32_t round)
{
	(void)round;
	return h2_peer_frame(p, H2_SETTINGS, 0, 0, "\0\1\0\0\0\0", 6);
}

static bool send_nothing(h2_peer *p, uint32_t round)
{
	return (round > 0 || h2_peer_begin(p, 1, "POST", "/hello")) &&
	       h2_peer_frame(p, H2_DATA, 0, 1, NULL, 0);
}

static bool send_padding(h2_peer *p, uint32_t round)
{
	return (round > 0 || h2_peer_begin(p, 1, "POST", "/hello")) &&
	       h2_peer_frame(p, H2_DATA, H2_PADDED, 1, "\7\0\0\0\0\0\0", 8);
}

static bool send_priority(h2_peer *p, uint32_t round)
{
	return h2_peer_frame(p, H2_PRIORITY, 0, 2 * round + 1, "\0\0\0\0\1", 5);
}

static bool open_window(h2_peer *p, uint32_t round)
{
	(void)round;
	return h2_peer_number(p, H2_WINDOW_UPDATE, 0, 1);
}

static bool reset_what_is_over(h2_peer *p, uint32_t round)
{
	return (round > 0 || h2_peer_ask(p, 1, "GET", "/hello")) &&
	       h2_peer_number(p, H2_RST_STREAM, 1, H2_CANCEL);
}

Test(http_h2_limits, frames_that_carry_nothing, .timeout = 120)
{
	static attack *const attacks[] = {send_ping,     send_settings, send_nothing,      send_padding,
	                                  send_priority, open_window,   reset_what_is_over};
	for (size_t i = 0; i < sizeof(attacks) / sizeof(*attacks); i++)
		expect_calmed(attacks[i], 20000);
}

/* CVE-2024-27316: a head without end, each piece of it empty or small. */
static bool send_continuation(h2_peer *p, uint32_t round)
{
	return (round > 0 || h2_peer_frame(p, H2_HEADERS, 0, 1, "\x82", 1)) &&
	       h2_peer_frame(p, H2_CONTINUATION, 0, 1, "\x82", round % 2);
}

Test(http_h2_limits, continuations_without_end, .timeout = 60)
{
	http_peer_server *server = http_peer_serve(&watched, routes);
	h2_peer *p = h2_peer_connect(server);
	attack_with(p, send_continuation, 20000);
	cr_expect(h2_peer_ends(p));
	h2_peer_close(p);
	cr_expect(eventually(http_peer_is_quiet, server, 10000));
	cr_expect(eq(int, seen.begun, 0));
	http_peer_stop(server);
}

/* CVE-2016-6581: a large field once, and a byte for each time it is to be there again. */
Test(http_h2_limits, header_bombs, .timeout = 60)
{
	http_peer_server *server = http_peer_serve(&watched, routes);
	h2_peer *p = h2_peer_connect(server);
	/* GET /, of "h"; "x" is indexed, and has 4000 bytes. The second time the authority is not indexed. */
	static const uint8_t first[] = {0x82, 0x86, 0x84, 0x41, 1, 'h', 0x40, 1, 'x', 0x7f, 0xa1, 0x1e};
	static const uint8_t second[] = {0x82, 0x86, 0x84, 0x01, 1, 'h'};
	uint8_t block[16384];
	size_t size = sizeof(first) + 4000;
	memset(block, 'v', size);
	memcpy(block, first, sizeof(first));
	cr_assert(eq(int, h2_peer_frame(p, H2_HEADERS, 5, 1, block, size), true));
	cr_expect(eq(int, h2_peer_answer(p, 1)->status, 404));
	memset(block, 0xbe, sizeof(block)); /* the newest entry, again and again */
	memcpy(block, second, sizeof(second));
	long before = support_resident_kib();
	int64_t began = now_ms();
	h2_peer_frame(p, H2_HEADERS, 5, 3, block, sizeof(block));
	cr_expect(h2_peer_goes_away(p, 1));
	cr_expect(eq(u32, p->goaway_reason, H2_ENHANCE_YOUR_CALM));
	cr_expect(h2_peer_ends(p));
	cr_expect(lt(long, (long)(now_ms() - began), 1000L * support_patience()));
	expect_grown_less(before, 4);
	cr_expect(eq(int, seen.begun, 1));
	h2_peer_close(p);
	http_peer_stop(server);
}

/* CVE-2019-9511: an answer that goes out byte by byte, as the windows say. */
static bool open_by_one(h2_peer *p, uint32_t round)
{
	p->silent = true;
	if (round == 0) {
		h2_peer_frame(p, H2_SETTINGS, 0, 0, "\0\4\0\0\0\1", 6);
		h2_peer_ask(p, 1, "GET", "/flood");
	}
	return h2_peer_number(p, H2_WINDOW_UPDATE, 1, 1);
}

Test(http_h2_limits, tiny_windows, .timeout = 60)
{
	expect_calmed(open_by_one, 20000);
}

/* A client that takes much and acknowledges often is none of these. */
Test(http_h2_limits, a_large_download_with_small_updates, .timeout = 60)
{
	http_peer_server *server = http_peer_serve(&watched, routes);
	h2_peer *p = h2_peer_connect(server);
	h2_peer_ask(p, 1, "GET", "/flood");
	while (h2_peer_so_far(p, 1)->body_size < 40 * 1024 * 1024)
		cr_assert(h2_peer_step(p), "ended after %zu bytes", h2_peer_so_far(p, 1)->body_size);
	cr_expect(ge(sz, p->frames[H2_DATA], 2001));
	h2_peer_close(p);
	http_peer_stop(server);
}

/* ---- Clients that do not read ------------------------------------------------------------------------ */

/* What it is owed waits neither in our memory nor for ever. */
Test(http_h2_limits, a_client_that_never_reads, .timeout = 120)
{
	http_server_options options = watched;
	options.write_timeout = 300 * CTX_MILLISECOND;
	http_peer_server *server = http_peer_serve(&options, routes);
	h2_peer *p = h2_peer_connect(server);
	setsockopt(p->fd, SOL_SOCKET, SO_RCVBUF, &(int){4096}, sizeof(int));
	h2_peer_frame(p, H2_SETTINGS, 0, 0, "\0\4\x7f\xff\xff\xff", 6);
	h2_peer_number(p, H2_WINDOW_UPDATE, 0, INT32_MAX - 65535);
	long before = support_resident_kib();
	for (uint32_t i = 0; i < 100; i++)
		h2_peer_ask(p, 2 * i + 1, "GET", "/flood");
	cr_assert(eventually_counts(&seen.returned, 100, 20000));
	expect_grown_less(before, 64); /* a hundred streams of 64 KiB, and their handlers' stacks */
	cr_assert(eventually_counts(&seen.done, 100, 20000));
	cr_expect(eq(int, seen.status, 499));
	cr_expect(eq(ptr, (void *)seen.done_cause, (void *)&HTTP_CLIENT_DISCONNECTED));
	cr_expect(eventually(http_peer_is_quiet, server, 10000));
	h2_peer_close(p);
	http_peer_stop(server);
}

/* One that sends on meanwhile, so that ever more acknowledgements would have to wait. */
Test(http_h2_limits, a_client_that_pings_and_never_reads, .timeout = 60)
{
	http_server_options options = watched;
	options.write_timeout = 500 * CTX_MILLISECOND;
	http_peer_server *server = http_peer_serve(&options, routes);
	h2_peer *p = h2_peer_connect(server);
	setsockopt(p->fd, SOL_SOCKET, SO_RCVBUF, &(int){4096}, sizeof(int));
	long before = support_resident_kib();
	for (int i = 0; i < 200000; i++)
		if (!h2_peer_frame(p, H2_PING, 0, 0, "12345678", 8))
			break;
	cr_expect(eventually(http_peer_is_quiet, server, 20000));
	expect_grown_less(before, 8);
	h2_peer_close(p);
	http_peer_stop(server);
}

/* ---- Memory ------------------------------------------------------------------------------------------ */

/* A hundred bodies that never end: some megabytes of them are kept, the rest is refused. */
Test(http_h2_limits, bodies_that_never_end, .timeout = 60)
{
	static char piece[16384];
	http_peer_server *server = http_peer_serve(&watched, routes);
	h2_peer *p = h2_peer_connect(server);
	int refused = 0;
	long before = support_resident_kib();
	for (uint32_t id = 1; id < 40; id += 2)
		h2_peer_begin(p, id, "POST", "/hello");
	for (int i = 0; i < 60; i++)
		for (uint32_t id = 1; id < 40; id += 2) {
			h2_answer *answer = h2_peer_so_far(p, id);
			while (!answer->ended && (p->window < (int64_t)sizeof(piece) ||
			                          answer->window < (int64_t)sizeof(piece)))
				cr_assert(h2_peer_step(p));
			if (answer->ended)
				continue;
			p->window -= (int64_t)sizeof(piece);
			answer->window -= (int64_t)sizeof(piece);
			h2_peer_frame(p, H2_DATA, 0, id, piece, sizeof(piece));
		}
	cr_assert(h2_peer_ping(p));
	for (uint32_t id = 1; id < 40; id += 2)
		refused += h2_peer_so_far(p, id)->status == 503;
	cr_expect(ge(int, refused, 6));
	cr_expect(lt(int, refused, 20));
	expect_grown_less(before, 40);
	h2_peer_close(p);
	http_peer_stop(server);
}

/* Handlers that outlive their streams count all the same. */
Test(http_h2_limits, handlers_that_do_not_heed_resets, .timeout = 60)
{
	http_peer_server *server = http_peer_serve(&watched, routes);
	h2_peer *p = h2_peer_connect(server);
	uint32_t id = 1;
	for (int i = 0; i < 150; i++, id += 2) {
		h2_peer_ask(p, id, "GET", "/stubborn");
		h2_peer_number(p, H2_RST_STREAM, id, H2_CANCEL);
	}
	for (int i = 0; i < 50; i++, id += 2)
		h2_peer_ask(p, id, "GET", "/stubborn");
	cr_assert(eventually_counts(&seen.entered, 200, 20000));
	h2_peer_ask(p, id, "GET", "/hello");
	h2_answer *answer = h2_peer_answer(p, id);
	cr_expect(answer->reset);
	cr_expect(eq(u32, answer->reason, H2_REFUSED_STREAM));
	enough = true;
	cr_assert(eventually_counts(&seen.returned, 200, 20000));
	cr_assert(eq(int, h2_peer_answer(p, id - 2)->status, 200));
	h2_peer_ask(p, id + 2, "GET", "/hello");
	cr_expect(eq(int, h2_peer_answer(p, id + 2)->status, 200));
	h2_peer_close(p);
	http_peer_stop(server);
}
