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

Test(http_upload_h2, pieces_are_read_as_they_come, .timeout = 60)
{
	test_h2_pieces_are_read_as_they_come(NULL);
}

Test(http_upload_h2, a_handler_that_does_not_read_keeps_the_window_shut, .timeout = 60)
{
	test_h2_a_handler_that_does_not_read_keeps_the_window_shut(NULL);
}

Test(http_upload_h2, a_stream_that_is_reset_cancels, .timeout = 60)
{
	http_peer_server *server = serve(NULL);
	h2_peer *peer = h2_peer_connect(server);
	h2_peer_begin(peer, 1, "POST", "/read");
	h2_send_data(peer, 1, 0, 1000, false);
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
	h2_send_data(peer, 1, 0, 1001, false);
	cr_expect(eq(int, h2_peer_answer(peer, 1)->status, 413));
	h2_peer_begin(peer, 3, "POST", "/forbidden");
	cr_expect(eq(int, h2_peer_answer(peer, 3)->status, 403));
	atomic_store(&seen.read, 0);
	h2_peer_begin(peer, 5, "POST", "/read");
	h2_send_data(peer, 5, 0, 1000, false);
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
	h2_send_data(peer, 1, 0, 1000, true);
	h2_answer *answer = h2_peer_answer(peer, 1);
	cr_expect(eq(int, answer->status, 200));
	cr_expect(eq(int, answer->interim, 1));
	h2_peer_close(peer);
	http_peer_stop(server);
}
