/*
 * Bodies that the handler reads as they come, by TLS: what holds of bare sockets holds here, whatever lies between; and
 * a client's ends in the middle of one, of which TLS has more.
 */
#include <criterion/criterion.h>
#include <criterion/new/assert.h>

#include "certificates.h"
#include "uploads.h"

static http_tls *tls;

static void make_tls(void)
{
	const certificates *c = certificates_get();
	char error[256];
	tls = http_tls_new(&(http_tls_options){.certificate = c->server, .key = c->server_key}, error,
	                   sizeof(error));
	cr_assert_not_null(tls, "%s", error);
}

static void free_tls(void)
{
	http_tls_free(tls);
}

TestSuite(http_upload_tls, .init = make_tls, .fini = free_tls);

Test(http_upload_tls, pieces_are_read_as_they_come, .timeout = 60)
{
	test_pieces_are_read_as_they_come(tls);
}

Test(http_upload_tls, pieces_are_read_as_they_come_h2, .timeout = 60)
{
	test_h2_pieces_are_read_as_they_come(tls);
}

Test(http_upload_tls, a_handler_that_does_not_read_holds_the_client_up, .timeout = 120)
{
	test_a_handler_that_does_not_read_holds_the_client_up(tls);
}

Test(http_upload_tls, a_handler_that_does_not_read_keeps_the_window_shut_h2, .timeout = 60)
{
	test_h2_a_handler_that_does_not_read_keeps_the_window_shut(tls);
}

/* ---- Ends amid the body ------------------------------------------------------------------------------ */

Test(http_upload_tls, a_client_that_ends_amid_the_body_cancels, .timeout = 60)
{
	http_peer_server *server = serve_tls(NULL, tls);
	for (int i = 0; i < TLS_WAYS; i++) {
		atomic_store(&seen.read, 0);
		wire w = wire_connect(server, true);
		send_head(w, "/read", 100000, "");
		wire_send_piece(w, 0, 1000, false);
		cr_assert(eventually(has_read, &(size_t){1000}, 10000), "%s", tls_ways[i].name);
		tls_ways[i].leave(w.tls);
		expect_cancelled(i + 1);
		if (tls_ways[i].stays)
			tls_peer_cut(w.tls);
		cr_assert(eventually(http_peer_is_quiet, server, 10000), "%s", tls_ways[i].name);
	}
	http_peer_stop(server);
}

Test(http_upload_tls, a_client_that_ends_amid_the_body_cancels_h2, .timeout = 60)
{
	http_peer_server *server = serve_tls(NULL, tls);
	for (int i = 0; i < TLS_WAYS; i++) {
		atomic_store(&seen.read, 0);
		h2_peer *peer = h2_connect(server, true);
		h2_peer_begin(peer, 1, "POST", "/read");
		h2_send_data(peer, 1, 0, 1000, false);
		cr_assert(eventually(has_read, &(size_t){1000}, 10000), "%s", tls_ways[i].name);
		tls_ways[i].leave(peer->tls);
		expect_cancelled(i + 1);
		if (tls_ways[i].stays)
			tls_peer_cut(peer->tls);
		peer->fd = -1;
		h2_peer_close(peer);
		cr_assert(eventually(http_peer_is_quiet, server, 10000), "%s", tls_ways[i].name);
	}
	http_peer_stop(server);
}

/* Where half a close may be a client that waits, half a body is still no body; and a whole one is. */
Test(http_upload_tls, a_close_notify_ends_the_body_where_it_is, .timeout = 60)
{
	const http_server_options options = {.half_close_is_waiting = true};
	http_peer_server *server = serve_tls(&options, tls);
	wire w = wire_connect(server, true);
	send_head(w, "/read", 100000, "");
	wire_send_piece(w, 0, 1000, false);
	cr_assert(eventually(has_read, &(size_t){1000}, 10000));
	tls_peer_bye(w.tls);
	cr_assert(eventually_counts(&seen.done, 1, 10000));
	cr_expect(eq(int, seen.error, ECANCELED));
	cr_expect(ne(int, tls_peer_end(w.tls), TLS_HANGS));
	tls_peer_cut(w.tls);

	atomic_store(&seen.read, 0);
	w = wire_connect(server, true);
	send_head(w, "/told", 100000, "");
	wire_send_piece(w, 0, 100000, false);
	tls_peer_bye(w.tls);
	wait_event_set(&seen.go);
	wire_expect_answer(w, 200, "100000");
	cr_expect(not(seen.wrong));
	cr_expect(eq(int, tls_peer_end(w.tls), TLS_CLOSE_NOTIFY));
	tls_peer_cut(w.tls);
	cr_expect(eventually(http_peer_is_quiet, server, 10000));
	http_peer_stop(server);
}
