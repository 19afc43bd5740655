/*
 * The times of HTTP/2: the preface, a head, a body, an answer that is not taken and the pause between two requests each
 * have theirs, and what has none is left alone.
 */
#include <criterion/criterion.h>
#include <criterion/new/assert.h>
#include <poll.h>

#include "h2_peer.h"
#include "support.h"
#include "watched.h"

static const http_peer_route routes[] = {{"GET /hello", answers_hello, NULL},
                                         {"POST /hello", answers_hello, NULL},
                                         {"GET /wait", waits_until_done, NULL},
                                         {"GET /flood", floods_until_done, NULL},
                                         {0}};

static const int64_t short_time = 200 * CTX_MILLISECOND;

static http_peer_server *serve_with(int64_t header, int64_t body, int64_t write, int64_t idle)
{
	http_server_options options = watched;
	options.header_timeout = header;
	options.body_timeout = body;
	options.write_timeout = write;
	options.idle_timeout = idle;
	return http_peer_serve(&options, routes);
}

Test(http_h2_times, time_for_the_preface, .timeout = 60)
{
	http_peer_server *server = serve_with(short_time, 0, 0, 0);
	static const size_t sizes[] = {1, 3, 23, 24};
	for (size_t i = 0; i < sizeof(sizes) / sizeof(*sizes); i++) {
		h2_peer *p = h2_peer_open(http_peer_connect(server));
		int64_t began = now_ms();
		p->silent = true;
		h2_peer_bytes(p, "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", sizes[i]);
		cr_expect(h2_peer_ends(p), "%zu bytes", sizes[i]);
		cr_expect(ge(long, (long)(now_ms() - began), 190));
		if (sizes[i] == 24) /* the SETTINGS are missing */
			cr_expect(eq(u32, p->goaway_reason, H2_SETTINGS_TIMEOUT));
		h2_peer_close(p);
	}
	http_peer_stop(server);
}

/* In the middle of a head nothing else can be said on the connection. */
Test(http_h2_times, time_for_the_head, .timeout = 60)
{
	http_peer_server *server = serve_with(short_time, 0, 0, 0);
	h2_peer *p = h2_peer_connect(server);
	h2_peer_ask(p, 1, "GET", "/wait");
	cr_assert(eventually_counts(&seen.entered, 1, 20000));
	cr_assert(h2_peer_ping(p));
	int64_t began = now_ms();
	h2_peer_frame(p, H2_HEADERS, 0, 3, "\x82", 1);
	cr_expect(h2_peer_goes_away(p, 1));
	cr_expect(h2_peer_ends(p));
	cr_expect(ge(long, (long)(now_ms() - began), 190));
	cr_assert(eventually_counts(&seen.done, 1, 20000));
	cr_expect(eq(ptr, (void *)seen.done_cause, (void *)&HTTP_CLIENT_DISCONNECTED));
	h2_peer_close(p);
	http_peer_stop(server);
}

/* All of the body, not each piece of it. */
Test(http_h2_times, time_for_the_body, .timeout = 60)
{
	http_peer_server *server = serve_with(0, short_time, 0, 0);
	h2_peer *p = h2_peer_connect(server);
	int64_t began = now_ms();
	h2_peer_begin(p, 1, "POST", "/hello");
	h2_answer *answer = h2_peer_so_far(p, 1);
	while (!answer->ended && h2_peer_frame(p, H2_DATA, 0, 1, "x", 1) && h2_peer_ping(p))
		poll(NULL, 0, 10);
	cr_expect(eq(int, answer->status, 408));
	cr_expect(ge(long, (long)(now_ms() - began), 190));
	cr_assert(eventually_counts(&seen.done, 1, 20000));
	cr_expect(eq(int, seen.status, 408));
	cr_expect(eq(int, p->goaways, 0));
	h2_peer_ask(p, 3, "GET", "/hello");
	cr_expect(eq(int, h2_peer_answer(p, 3)->status, 200));
	h2_peer_close(p);
	http_peer_stop(server);
}

/* A window that is not opened costs the stream, and only that. (Of one that is, see http_pace.c.) */
Test(http_h2_times, time_for_the_answer, .timeout = 60)
{
	http_peer_server *server = serve_with(0, 0, 2 * short_time, 0);
	h2_peer *p = h2_peer_connect(server);
	p->silent = true;
	h2_peer_ask(p, 1, "GET", "/wait");
	h2_peer_ask(p, 3, "GET", "/flood");
	while (h2_peer_so_far(p, 3)->body_size < 65535)
		cr_assert(h2_peer_step(p));
	h2_peer_number(p, H2_WINDOW_UPDATE, 0, 100000);
	int64_t until = now_ms() + 800;
	while (now_ms() < until) {
		h2_peer_number(p, H2_WINDOW_UPDATE, 3, 100);
		cr_assert(h2_peer_ping(p));
		poll(NULL, 0, 20);
		cr_assert(not(h2_peer_so_far(p, 3)->reset), "it was making progress");
	}
	int64_t began = now_ms();
	h2_answer *answer = h2_peer_answer(p, 3);
	cr_expect(answer->reset);
	cr_expect(eq(u32, answer->reason, H2_CANCEL));
	cr_expect(ge(long, (long)(now_ms() - began), 300));
	cr_assert(eventually_counts(&seen.returned, 1, 20000));
	cr_assert(eventually_counts(&seen.done, 1, 20000));
	cr_expect(eq(int, seen.status, 499));
	cr_expect(h2_peer_ping(p));
	cr_expect(eq(int, seen.done, 1), "the other stream only waits for us");
	h2_peer_close(p);
	http_peer_stop(server);
}

Test(http_h2_times, time_between_requests, .timeout = 60)
{
	http_peer_server *server = serve_with(0, 0, 0, short_time);
	h2_peer *p = h2_peer_connect(server);
	h2_peer_ask(p, 1, "GET", "/hello");
	cr_expect(eq(int, h2_peer_answer(p, 1)->status, 200));
	int64_t began = now_ms();
	cr_expect(h2_peer_goes_away(p, 1));
	cr_expect(eq(u32, p->goaway_reason, H2_NO_ERROR));
	cr_expect(eq(u32, p->goaway_last, 1));
	cr_expect(h2_peer_ends(p));
	cr_expect(ge(long, (long)(now_ms() - began), 150));
	h2_peer_close(p);
	/* Waiting for an answer is not idleness. */
	p = h2_peer_connect(server);
	h2_peer_ask(p, 1, "GET", "/wait");
	poll(NULL, 0, 600);
	cr_expect(h2_peer_ping(p));
	cr_expect(eq(int, p->goaways, 0));
	h2_peer_close(p);
	http_peer_stop(server);
}
