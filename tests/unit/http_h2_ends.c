/*
 * The ends of HTTP/2 streams and connections: a reset stream's context ends alone, a connection's end is that of
 * all its streams, and a drain loses nothing.
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

#include "h2_peer.h"
#include "support.h"
#include "watched.h"

enum { SLOTS = 256 };

/* Of the request /wait/{n}: its handler's progress and end. */
static struct slot {
	atomic_int entered, returned, done, status;
	_Atomic(const ctx_error *) cause, done_cause;
	wait_event go;
} slots[SLOTS];

static atomic_int entered, returned, done;

static struct slot *slot_of(const http_request *request)
{
	const char *n = http_path_value(request, "n");
	return &slots[n ? strtoul(n, NULL, 10) % SLOTS : SLOTS - 1];
}

static void on_done(http_request *request, const http_outcome *outcome, void *data)
{
	struct slot *slot = slot_of(request);
	(void)data;
	slot->status = outcome->status;
	slot->done_cause = outcome->cause;
	atomic_fetch_add(&slot->done, 1);
	atomic_fetch_add(&done, 1);
}

static const http_server_options watched_slots = {.on_done = on_done};

/* Waits to be told to go on, or for its context; answers in both cases. */
static void waits(http_request *request, http_response *response)
{
	struct slot *slot = slot_of(request);
	ctx *c = http_request_ctx(request);
	atomic_fetch_add(&slot->entered, 1);
	atomic_fetch_add(&entered, 1);
	bool told = wait_event_wait(c, &slot->go) == 0;
	slot->cause = ctx_cause(c);
	http_response_text(response, told ? 200 : 503, told ? "told" : ctx_cause(c)->message);
	atomic_fetch_add(&slot->returned, 1);
	atomic_fetch_add(&returned, 1);
}

static void floods(http_request *request, http_response *response)
{
	struct slot *slot = slot_of(request);
	char data[4096] = {0};
	atomic_fetch_add(&slot->entered, 1);
	atomic_fetch_add(&entered, 1);
	while (http_write(response, data, sizeof(data)) == 0)
		;
	slot->cause = ctx_cause(http_request_ctx(request));
	atomic_fetch_add(&slot->returned, 1);
	atomic_fetch_add(&returned, 1);
}

static const http_peer_route routes[] = {{"GET /wait/{n}", waits, NULL},
                                         {"POST /wait/{n}", waits, NULL},
                                         {"GET /flood/{n}", floods, NULL},
                                         {"GET /hello", answers_hello, NULL},
                                         {0}};

static void ask_to_wait(h2_peer *p, uint32_t id, int n)
{
	char path[32];
	snprintf(path, sizeof(path), "/wait/%d", n);
	h2_peer_ask(p, id, "GET", path);
	cr_assert(eventually_counts(&slots[n].entered, 1, 10000), "request %d does not run", n);
}

/* ---- RST_STREAM -------------------------------------------------------------------------------------- */

Test(http_h2_ends, a_reset_ends_one_context_alone, .timeout = 60)
{
	http_peer_server *server = http_peer_serve(&watched_slots, routes);
	h2_peer *p = h2_peer_connect(server);
	ask_to_wait(p, 1, 0);
	ask_to_wait(p, 3, 1);
	h2_peer_number(p, H2_RST_STREAM, 1, H2_CANCEL);
	cr_assert(eventually_counts(&slots[0].done, 1, 10000));
	cr_expect(eq(ptr, (void *)slots[0].cause, (void *)&HTTP_STREAM_RESET));
	cr_expect(eq(ptr, (void *)slots[0].done_cause, (void *)&HTTP_STREAM_RESET));
	cr_expect(eq(int, slots[0].status, 499));
	cr_assert(h2_peer_ping(p));
	cr_expect(eq(int, slots[1].returned, 0), "the other request was not to be touched");
	wait_event_set(&slots[1].go);
	cr_expect(eq(int, h2_peer_answer(p, 3)->status, 200));
	cr_expect_null(h2_peer_so_far(p, 1)->fields, "an answer to a stream that was reset");
	cr_assert(eventually_counts(&slots[1].done, 1, 10000));
	cr_expect(eq(int, slots[1].status, 200));
	cr_expect(eq(ptr, (void *)slots[1].done_cause, NULL));
	h2_peer_close(p);
	http_peer_stop(server);
}

Test(http_h2_ends, half_of_a_hundred_reset, .timeout = 60)
{
	http_peer_server *server = http_peer_serve(&watched_slots, routes);
	h2_peer *p = h2_peer_connect(server);
	for (int i = 0; i < 100; i++)
		ask_to_wait(p, (uint32_t)(2 * i + 1), i);
	for (int i = 0; i < 100; i += 2)
		h2_peer_number(p, H2_RST_STREAM, (uint32_t)(2 * i + 1), H2_CANCEL);
	cr_assert(eventually_counts(&done, 50, 10000));
	for (int i = 0; i < 100; i++) {
		cr_expect(eq(int, slots[i].done, i % 2 == 0), "request %d", i);
		if (i % 2 == 0)
			cr_expect(eq(ptr, (void *)slots[i].done_cause, (void *)&HTTP_STREAM_RESET));
		else
			wait_event_set(&slots[i].go);
	}
	for (int i = 1; i < 100; i += 2)
		cr_expect(eq(int, h2_peer_answer(p, (uint32_t)(2 * i + 1))->status, 200));
	cr_expect(eq(int, p->goaways, 0));
	h2_peer_close(p);
	cr_expect(eventually(http_peer_is_quiet, server, 10000));
	http_peer_stop(server);
}

Test(http_h2_ends, a_reset_while_the_body_arrives, .timeout = 60)
{
	http_peer_server *server = http_peer_serve(&watched_slots, routes);
	h2_peer *p = h2_peer_connect(server);
	h2_peer_begin(p, 1, "POST", "/wait/5");
	h2_peer_frame(p, H2_DATA, 0, 1, "half", 4);
	h2_peer_number(p, H2_RST_STREAM, 1, H2_CANCEL);
	cr_assert(eventually_counts(&slots[5].done, 1, 10000));
	cr_expect(eq(int, slots[5].entered, 0));
	cr_expect(eq(int, slots[5].status, 499));
	cr_expect(eq(ptr, (void *)slots[5].done_cause, (void *)&HTTP_STREAM_RESET));
	h2_peer_ask(p, 3, "GET", "/hello");
	cr_expect(eq(int, h2_peer_answer(p, 3)->status, 200));
	h2_peer_close(p);
	http_peer_stop(server);
}

/* A handler parked in http_write, behind a window that is used up. */
Test(http_h2_ends, a_reset_wakes_a_write_that_waits, .timeout = 60)
{
	http_peer_server *server = http_peer_serve(&watched_slots, routes);
	h2_peer *p = h2_peer_connect(server);
	p->silent = true;
	h2_peer_ask(p, 1, "GET", "/flood/7");
	while (h2_peer_so_far(p, 1)->body_size < 65535)
		cr_assert(h2_peer_step(p));
	cr_assert(h2_peer_ping(p));
	cr_expect(eq(int, slots[7].returned, 0));
	h2_peer_number(p, H2_RST_STREAM, 1, H2_CANCEL);
	cr_assert(eventually_counts(&slots[7].done, 1, 10000));
	cr_expect(eq(ptr, (void *)slots[7].cause, (void *)&HTTP_STREAM_RESET));
	cr_expect(eq(int, slots[7].status, 499));
	h2_peer_close(p);
	http_peer_stop(server);
}

/* What the client sends behind its own reset, and what it resets too late, harms nobody. */
Test(http_h2_ends, a_reset_of_what_is_over, .timeout = 60)
{
	http_peer_server *server = http_peer_serve(&watched_slots, routes);
	h2_peer *p = h2_peer_connect(server);
	for (uint32_t id = 1; id < 100; id += 2) {
		h2_peer_ask(p, id, "GET", "/hello");
		cr_assert(eq(int, h2_peer_answer(p, id)->status, 200));
		h2_peer_number(p, H2_RST_STREAM, id, H2_CANCEL);
	}
	cr_expect(h2_peer_ping(p));
	cr_assert(eventually_counts(&done, 50, 10000));
	cr_expect(eq(int, slots[SLOTS - 1].status, 200));
	h2_peer_close(p);
	http_peer_stop(server);
}

/* ---- The connection's end ---------------------------------------------------------------------------- */

enum way { FIN, RESET, HALF_CLOSE, BROKEN, WAYS };

static const char *const names[] = {"FIN", "reset", "half-close", "a frame that breaks the protocol"};

static void leave(h2_peer *p, enum way way)
{
	switch (way) {
	case FIN:
		close(p->fd);
		p->fd = -1;
		break;
	case RESET:
		http_peer_reset(p->fd);
		p->fd = -1;
		break;
	case HALF_CLOSE:
		shutdown(p->fd, SHUT_WR);
		break;
	default:
		h2_peer_frame(p, H2_PUSH_PROMISE, H2_END_HEADERS, 1, "\0\0\0\2\x82", 5);
	}
}

Test(http_h2_ends, the_connections_end_is_that_of_all, .timeout = 120)
{
	http_peer_server *server = http_peer_serve(&watched_slots, routes);
	for (enum way way = FIN; way < WAYS; way++) {
		memset(slots, 0, sizeof(slots));
		done = entered = 0;
		h2_peer *p = h2_peer_connect(server);
		for (int i = 0; i < 10; i++)
			ask_to_wait(p, (uint32_t)(2 * i + 1), i);
		h2_peer_begin(p, 21, "POST", "/wait/10"); /* its body is on its way */
		h2_peer_ask(p, 23, "GET", "/flood/11");   /* its answer is */
		cr_assert(eventually_counts(&slots[11].entered, 1, 10000));
		h2_peer_frame(p, H2_HEADERS, 0, 25, "\x82",
		              1); /* its head is, and nothing may come between */
		leave(p, way);
		cr_assert(eventually_counts(&done, 12, 10000), "%s: %d of 12 are over", names[way], done);
		for (int i = 0; i < 12; i++) {
			cr_expect(eq(int, slots[i].status, 499), "%s, %d", names[way], i);
			cr_expect(eq(ptr, (void *)slots[i].done_cause, (void *)&HTTP_CLIENT_DISCONNECTED),
			          "%s, %d", names[way], i);
			if (i != 10)
				cr_expect(eq(ptr, (void *)slots[i].cause, (void *)&HTTP_CLIENT_DISCONNECTED),
				          "%s, %d", names[way], i);
		}
		cr_expect(eq(int, slots[10].entered, 0));
		cr_expect(eventually(http_peer_is_quiet, server, 10000), "%s", names[way]);
		if (way == BROKEN) {
			cr_expect(h2_peer_goes_away(p, 1));
			cr_expect(eq(u32, p->goaway_reason, H2_PROTOCOL_ERROR));
		}
		h2_peer_close(p);
	}
	http_peer_stop(server);
}

/* In one packet with the requests. */
Test(http_h2_ends, the_end_comes_with_the_requests, .timeout = 120)
{
	http_peer_server *server = http_peer_serve(&watched_slots, routes);
	for (int round = 0; round < 100; round++) {
		h2_peer *p = h2_peer_connect(server);
		char path[32];
		snprintf(path, sizeof(path), "/wait/%d", round);
		h2_peer_ask(p, 1, "GET", path);
		h2_peer_ask(p, 3, "GET", "/hello");
		leave(p, (enum way)(round % BROKEN));
		h2_peer_close(p);
	}
	cr_expect(eventually(http_peer_is_quiet, server, 20000));
	cr_expect(eq(int, returned, entered));
	http_peer_stop(server);
}

/* With half_close_is_waiting all that was asked is answered, and then the connection closed. */
Test(http_h2_ends, a_half_closed_client_may_be_waiting, .timeout = 60)
{
	http_server_options options = watched_slots;
	options.half_close_is_waiting = true;
	http_peer_server *server = http_peer_serve(&options, routes);
	h2_peer *p = h2_peer_connect(server);
	ask_to_wait(p, 1, 0);
	h2_peer_ask(p, 3, "GET", "/hello");
	shutdown(p->fd, SHUT_WR);
	p->silent = true;
	cr_expect(eq(int, h2_peer_answer(p, 3)->status, 200));
	wait_event_set(&slots[0].go);
	cr_expect(eq(int, h2_peer_answer(p, 1)->status, 200));
	cr_expect(h2_peer_ends(p));
	cr_expect(eq(int, slots[0].status, 200));
	h2_peer_close(p);
	/* A reset is a reset. */
	p = h2_peer_connect(server);
	ask_to_wait(p, 1, 1);
	http_peer_reset(p->fd);
	p->fd = -1;
	cr_assert(eventually_counts(&slots[1].done, 1, 10000));
	cr_expect(eq(ptr, (void *)slots[1].cause, (void *)&HTTP_CLIENT_DISCONNECTED));
	h2_peer_close(p);
	http_peer_stop(server);
}

/* The client's GOAWAY announces its end, and is not yet that. */
Test(http_h2_ends, a_client_that_goes_away_still_gets_its_answers, .timeout = 60)
{
	http_peer_server *server = http_peer_serve(&watched_slots, routes);
	h2_peer *p = h2_peer_connect(server);
	ask_to_wait(p, 1, 0);
	h2_peer_frame(p, H2_GOAWAY, 0, 0, "\0\0\0\0\0\0\0\0", 8);
	cr_assert(h2_peer_ping(p));
	cr_expect(eq(int, slots[0].returned, 0));
	wait_event_set(&slots[0].go);
	cr_expect(eq(int, h2_peer_answer(p, 1)->status, 200));
	cr_expect(h2_peer_ends(p));
	h2_peer_close(p);
	http_peer_stop(server);
}

/* ---- The server's end -------------------------------------------------------------------------------- */

Test(http_h2_ends, a_drain_says_goaway_twice_and_serves_what_comes_between, .timeout = 60)
{
	http_peer_server *server = http_peer_serve(&watched_slots, routes);
	h2_peer *p = h2_peer_connect(server);
	ask_to_wait(p, 1, 0);
	p->silent = true; /* the PING is to be answered later */
	http_peer_drain(server);
	cr_assert(h2_peer_goes_away(p, 1));
	cr_expect(eq(u32, p->goaway_last, INT32_MAX));
	cr_expect(eq(u32, p->goaway_reason, H2_NO_ERROR));
	/* It has to be the first: who has answered the PING has to know that the end is near. */
	cr_expect(eq(sz, p->frames[H2_PING], 0));
	/* This request crosses the GOAWAY. */
	h2_peer_ask(p, 3, "GET", "/hello");
	cr_expect(eq(int, h2_peer_answer(p, 3)->status, 200));
	h2_peer_frame(p, H2_PING, H2_ACK, 0, "\0\0\0\0\0\0\0\0", 8);
	cr_assert(h2_peer_goes_away(p, 2));
	cr_expect(eq(u32, p->goaway_last, 3));
	/* This one comes too late. */
	h2_peer_ask(p, 5, "GET", "/hello");
	cr_assert(h2_peer_ping(p));
	cr_expect(eq(int, h2_peer_so_far(p, 5)->status, 0));
	wait_event_set(&slots[0].go);
	cr_expect(eq(int, h2_peer_answer(p, 1)->status, 200));
	cr_expect(h2_peer_ends(p));
	cr_expect(eq(int, done, 2));
	h2_peer_close(p);
	cr_expect(eq(int, http_peer_stop(server), 0));
}

Test(http_h2_ends, a_drain_closes_idle_connections, .timeout = 60)
{
	http_peer_server *server = http_peer_serve(&watched_slots, routes);
	h2_peer *used = h2_peer_connect(server), *fresh = h2_peer_connect(server),
		*deaf = h2_peer_connect(server);
	h2_peer_ask(used, 1, "GET", "/hello");
	cr_expect(eq(int, h2_peer_answer(used, 1)->status, 200));
	cr_assert(h2_peer_ping(fresh));
	cr_assert(h2_peer_ping(deaf));
	deaf->silent = true;
	int64_t began = now_ms();
	http_peer_drain(server);
	cr_expect(h2_peer_ends(used));
	cr_expect(eq(int, used->goaways, 2));
	cr_expect(eq(u32, used->goaway_last, 1));
	cr_expect(h2_peer_ends(fresh));
	cr_expect(lt(long, (long)(now_ms() - began), 1000L * support_patience()));
	/* Who does not acknowledge the PING has a while. */
	cr_expect(h2_peer_ends(deaf));
	cr_expect(eq(int, deaf->goaways, 2));
	cr_expect(eq(int, http_peer_stop(server), 0));
	cr_expect(lt(long, (long)(now_ms() - began), 5000L * support_patience()));
	h2_peer_close(used);
	h2_peer_close(fresh);
	h2_peer_close(deaf);
}

Test(http_h2_ends, a_drain_cancels_at_its_timeout, .timeout = 60)
{
	http_server_options options = watched_slots;
	options.drain_timeout = 100 * CTX_MILLISECOND;
	http_peer_server *server = http_peer_serve(&options, routes);
	h2_peer *p = h2_peer_connect(server);
	ask_to_wait(p, 1, 0);
	h2_peer_begin(p, 3, "POST", "/wait/1");
	cr_assert(h2_peer_ping(p));
	http_peer_drain(server);
	h2_answer *answer = h2_peer_answer(p, 1);
	cr_expect(eq(int, answer->status, 503));
	cr_expect(eq(str, answer->body, "server shutting down"));
	cr_expect(h2_peer_ends(p));
	cr_expect(eq(int, http_peer_stop(server), 0));
	cr_expect(eq(ptr, (void *)slots[0].cause, (void *)&HTTP_SERVER_SHUTDOWN));
	cr_expect(eq(ptr, (void *)slots[0].done_cause, (void *)&HTTP_SERVER_SHUTDOWN));
	cr_expect(eq(int, slots[0].status, 503));
	cr_expect(eq(int, slots[1].entered, 0));
	cr_expect(eq(ptr, (void *)slots[1].done_cause, (void *)&HTTP_SERVER_SHUTDOWN));
	cr_expect(eq(int, slots[1].status, 503));
	h2_peer_close(p);
}

Test(http_h2_ends, a_drain_cuts_a_stream_visibly, .timeout = 60)
{
	http_server_options options = watched_slots;
	options.drain_timeout = 50 * CTX_MILLISECOND;
	http_peer_server *server = http_peer_serve(&options, routes);
	h2_peer *p = h2_peer_connect(server);
	h2_peer_ask(p, 1, "GET", "/flood/0");
	cr_assert(eventually_counts(&slots[0].entered, 1, 10000));
	http_peer_drain(server);
	h2_answer *answer = h2_peer_answer(p, 1);
	cr_expect(answer->reset && !answer->ended);
	cr_expect(eq(u32, answer->reason, H2_INTERNAL_ERROR));
	cr_expect(h2_peer_ends(p));
	cr_expect(eq(int, http_peer_stop(server), 0));
	cr_expect(eq(ptr, (void *)slots[0].cause, (void *)&HTTP_SERVER_SHUTDOWN));
	h2_peer_close(p);
}
