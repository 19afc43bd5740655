/*
 * Bodies that the handler reads as they come, over HTTP/2: a stream's window opens as the handler reads, and one
 * stream's handler does not hold up another's.
 */
#include <criterion/criterion.h>
#include <criterion/new/assert.h>
#include <errno.h>

#include "h2_peer.h"
#include "support.h"
#include "uploads.h"

static void send_data(h2_peer *peer, uint32_t stream, size_t from, size_t size, bool last)
{
	char data[16384];
	for (size_t sent = 0; sent < size;) {
		size_t piece = size - sent < sizeof(data) ? size - sent : sizeof(data);
		fill(data, piece, from + sent);
		while (h2_peer_so_far(peer, stream)->window < (int64_t)piece || peer->window < (int64_t)piece)
			cr_assert(h2_peer_step(peer));
		sent += piece;
		h2_peer_frame(peer, H2_DATA, last && sent == size ? H2_END_STREAM : 0, stream, data, piece);
		h2_peer_so_far(peer, stream)->window -= (int64_t)piece;
		peer->window -= (int64_t)piece;
	}
}

Test(http_upload_h2, pieces_are_read_as_they_come, .timeout = 60)
{
	http_peer_server *server = serve(NULL);
	h2_peer *peer = h2_peer_connect(server);
	h2_peer_begin(peer, 1, "POST", "/read");
	for (size_t sent = 0; sent < 300000;) {
		send_data(peer, 1, sent, 30000, sent == 270000);
		sent += 30000;
		cr_assert(eventually(has_read, &sent, 10000));
	}
	h2_answer *answer = h2_peer_answer(peer, 1);
	cr_expect(eq(int, answer->status, 200));
	cr_expect(eq(str, answer->body, "300000"));
	cr_expect(not(seen.wrong));
	h2_peer_close(peer);
	http_peer_stop(server);
}

Test(http_upload_h2, a_handler_that_does_not_read_keeps_the_window_shut, .timeout = 60)
{
	http_peer_server *server = serve(NULL);
	h2_peer *peer = h2_peer_connect(server);
	h2_peer_begin(peer, 1, "POST", "/told");
	h2_peer_ping(peer);
	send_data(peer, 1, 0, 65535, false);
	h2_peer_ping(peer);
	cr_expect(eq(i64, h2_peer_so_far(peer, 1)->window, 0));
	/* Other streams are not held up by it. */
	h2_peer_begin(peer, 3, "POST", "/read");
	send_data(peer, 3, 0, 200000, true);
	h2_answer *answer = h2_peer_answer(peer, 3);
	cr_expect(eq(int, answer->status, 200));
	atomic_store(&seen.read, 0);
	wait_event_set(&seen.go);
	send_data(peer, 1, 65535, 200000, true);
	answer = h2_peer_answer(peer, 1);
	cr_expect(eq(str, answer->body, "265535"));
	cr_expect(not(seen.wrong));
	h2_peer_close(peer);
	http_peer_stop(server);
}

Test(http_upload_h2, a_stream_that_is_reset_cancels, .timeout = 60)
{
	http_peer_server *server = serve(NULL);
	h2_peer *peer = h2_peer_connect(server);
	h2_peer_begin(peer, 1, "POST", "/read");
	send_data(peer, 1, 0, 1000, false);
	cr_assert(eventually(has_read, &(size_t){1000}, 10000));
	h2_peer_number(peer, H2_RST_STREAM, 1, H2_CANCEL);
	cr_assert(eventually_counts(&seen.done, 1, 10000));
	cr_expect(eq(int, seen.error, ECANCELED));
	cr_expect(eq(ptr, (void *)seen.cause, (void *)&HTTP_STREAM_RESET));
	h2_peer_close(peer);
	http_peer_stop(server);
}

Test(http_upload_h2, what_is_too_long_late_or_unwanted, .timeout = 60)
{
	http_server_options options = {.body_timeout = 200 * CTX_MILLISECOND};
	http_peer_server *server = serve(&options);
	h2_peer *peer = h2_peer_connect(server);
	h2_peer_begin(peer, 1, "POST", "/small");
	send_data(peer, 1, 0, 1001, false);
	cr_expect(eq(int, h2_peer_answer(peer, 1)->status, 413));
	h2_peer_begin(peer, 3, "POST", "/forbidden");
	cr_expect(eq(int, h2_peer_answer(peer, 3)->status, 403));
	atomic_store(&seen.read, 0);
	h2_peer_begin(peer, 5, "POST", "/read");
	send_data(peer, 5, 0, 1000, false);
	cr_expect(eq(int, h2_peer_answer(peer, 5)->status, 408));
	h2_peer_close(peer);
	http_peer_stop(server);
}

Test(http_upload_h2, continue_is_said_when_the_handler_reads, .timeout = 60)
{
	http_peer_server *server = serve(NULL);
	h2_peer *peer = h2_peer_connect(server);
	static const char *const fields[] = {":method", "POST",         ":path",      "/told",
	                                     ":scheme", "http",         ":authority", "h",
	                                     "expect",  "100-continue", NULL};
	h2_peer_headers(peer, 1, 0, fields);
	cr_assert(eventually_counts(&seen.entered, 1, 10000));
	h2_peer_ping(peer);
	cr_expect(eq(int, h2_peer_so_far(peer, 1)->status, 0));
	wait_event_set(&seen.go);
	while (h2_peer_so_far(peer, 1)->status != 100)
		cr_assert(h2_peer_step(peer));
	send_data(peer, 1, 0, 1000, true);
	h2_answer *answer = h2_peer_answer(peer, 1);
	cr_expect(eq(int, answer->status, 200));
	cr_expect(eq(int, answer->interim, 1));
	h2_peer_close(peer);
	http_peer_stop(server);
}
