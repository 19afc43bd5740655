/*
 * What the bridge carries: all of it, in order, by whichever way it goes, and no more at once than either side takes.
 */
#include <criterion/criterion.h>
#include <criterion/new/assert.h>
#include <netinet/in.h>
#include <netinet/tcp.h>

#include "bridges.h"
#include "h2_peer.h"

/* ---- Records ----------------------------------------------------------------------------------------- */

/* What is sent in between arrives together. */
static void hold_back(tls_peer *p, bool hold)
{
	setsockopt(tls_peer_fd(p), IPPROTO_TCP, TCP_CORK, &(int){hold}, sizeof(int));
}

/*
 * GnuTLS has its own records, too: at each it says that there is nothing to be had for now, whatever stands behind it.
 * Who believes it leaves bytes lying that were read already, and of which epoll knows nothing.
 */
Test(http_bridge_bytes, records_that_come_together, .timeout = 60)
{
	static const char asks[] = GET("/hello");
	http_peer_server *server = serve((http_server_options){0});
	tls_peer *p =
		tls_peer_connect(server, &(tls_peer_options){.priorities = "NORMAL:-VERS-ALL:+VERS-TLS1.3"});
	hold_back(p, true);
	for (int i = 0; i < 3; i++) {
		cr_assert(tls_peer_send(p, GET("/hello")));
		cr_assert(eq(int, gnutls_session_key_update(tls_peer_session(p), 0), 0));
		for (size_t at = 0; at < sizeof(asks) - 1; at++)
			cr_assert(tls_peer_send_bytes(p, asks + at, 1));
	}
	hold_back(p, false);
	for (int i = 0; i < 6; i++)
		cr_assert(eq(int, status_of(p), 200), "answer %d", i);
	tls_peer_close(p);
	http_peer_stop(server);
}

static size_t piece_size;

/* As TLS's transport: as many segments as it takes. */
static ssize_t push_in_pieces(gnutls_transport_ptr_t transport, const void *data, size_t size)
{
	int fd = (int)(intptr_t)transport;
	for (size_t at = 0; at < size; at += piece_size) {
		size_t piece = size - at < piece_size ? size - at : piece_size;
		if (send(fd, (const char *)data + at, piece, MSG_NOSIGNAL) != (ssize_t)piece)
			return -1;
	}
	return (ssize_t)size;
}

Test(http_bridge_bytes, records_that_come_in_pieces, .timeout = 60)
{
	http_peer_server *server = serve((http_server_options){0});
	tls_peer *p = tls_peer_connect(server, NULL);
	setsockopt(tls_peer_fd(p), IPPROTO_TCP, TCP_NODELAY, &(int){1}, sizeof(int));
	gnutls_transport_set_push_function(tls_peer_session(p), push_in_pieces);
	for (piece_size = 1; piece_size < 200; piece_size = piece_size * 3 + 1) {
		cr_assert(tls_peer_send(p, GET("/hello")) && tls_peer_send(p, GET("/hello")));
		cr_assert(eq(int, status_of(p), 200));
		cr_assert(eq(int, status_of(p), 200));
	}
	tls_peer_close(p);
	http_peer_stop(server);
}

/* ---- HTTP/2: the short way --------------------------------------------------------------------------- */

/* One burst, more than is read at once: it begins by the pair, where the protocol is found out, and ends past it. */
Test(http_bridge_bytes, the_ways_keep_the_order, .timeout = 60)
{
	enum { REQUESTS = 90 };
	char padding[8000];
	const char *const fields[] = {":method",    "GET", ":path",   "/hello", ":scheme", "https",
	                              ":authority", "h",   "padding", padding,  NULL};
	http_peer_server *server = serve((http_server_options){0});
	memset(padding, 'x', sizeof(padding));
	padding[sizeof(padding) - 1] = '\0';
	for (int round = 0; round < 10; round++) {
		tls_peer *tls = tls_peer_connect(server, &(tls_peer_options){.alpn = {"h2"}});
		h2_peer *peer = h2_peer_open(tls_peer_fd(tls));
		peer->tls = tls;
		hold_back(tls, true);
		cr_assert(h2_peer_preface(peer));
		for (uint32_t i = 0; i < REQUESTS; i++)
			cr_assert(h2_peer_headers(peer, 2 * i + 1, H2_END_STREAM, fields));
		hold_back(tls, false);
		for (uint32_t i = 0; i < REQUESTS; i++)
			cr_assert(eq(int, h2_peer_answer(peer, 2 * i + 1)->status, 200),
			          "round %d, request %u", round, i);
		h2_peer_close(peer);
	}
	http_peer_stop(server);
}

/* The windows are wide open: it is the socket that is full, and GnuTLS that holds a record. */
Test(http_bridge_bytes, a_slow_reader_of_http_2, .timeout = 120)
{
	http_peer_server *server = serve((http_server_options){0});
	int fd = http_peer_connect(server);
	setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &(int){128 << 10}, sizeof(int));
	tls_peer *tls = tls_peer_new(fd, &(tls_peer_options){.alpn = {"h2"}});
	cr_assert(eq(int, tls_peer_handshake(tls), 0));
	h2_peer *peer = h2_peer_open(fd);
	size_t last = 0, wrong = 0;
	peer->tls = tls;
	cr_assert(h2_peer_preface(peer));
	cr_assert(h2_peer_number(peer, H2_WINDOW_UPDATE, 0, 2 * STREAM_SIZE));
	cr_assert(h2_peer_ask(peer, 1, "GET", "/stream"));
	cr_assert(h2_peer_number(peer, H2_WINDOW_UPDATE, 1, STREAM_SIZE));
	cr_assert(eventually(stalled, &last, 20000), "it writes on and on");
	cr_expect(lt(sz, (size_t)seen.written, (size_t)STREAM_SIZE), "all of it was buffered somewhere");
	cr_assert(h2_peer_ask(peer, 3, "GET", "/hello"));
	peer->silent = true; /* it would give back the windows, which are large enough */
	h2_answer *answer = h2_peer_answer(peer, 1);
	cr_expect(eq(int, answer->status, 200));
	cr_assert(eq(sz, answer->body_size, (size_t)STREAM_SIZE));
	for (size_t at = 0; at < answer->body_size; at++)
		wrong += (unsigned char)answer->body[at] != byte_at(at);
	cr_expect(eq(sz, wrong, 0));
	cr_expect(eq(int, h2_peer_answer(peer, 3)->status, 200));
	h2_peer_close(peer);
	http_peer_stop(server);
}

/* ---- Back-pressure ----------------------------------------------------------------------------------- */

/* A reader that stops stops the writer, before much has been buffered; going on it misses nothing. */
Test(http_bridge_bytes, a_slow_reader_slows_the_writer, .timeout = 120)
{
	http_peer_server *server = serve((http_server_options){0});
	int fd = http_peer_connect(server);
	setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &(int){128 << 10}, sizeof(int));
	tls_peer *p = tls_peer_new(fd, NULL);
	cr_assert(eq(int, tls_peer_handshake(p), 0));
	cr_assert(tls_peer_send(p, "GET /stream HTTP/1.0\r\n\r\n"));
	size_t last = 0;
	cr_assert(eventually(stalled, &last, 20000), "it writes on and on");
	cr_expect(lt(sz, (size_t)seen.written, (size_t)STREAM_SIZE), "all of it was buffered somewhere");
	static unsigned char piece[16384];
	size_t at = 0, head = 0, wrong = 0;
	ssize_t got;
	while ((got = tls_peer_receive(p, piece, sizeof(piece))) > 0)
		for (ssize_t i = 0; i < got; i++) {
			if (head < 4)
				head = piece[i] == (unsigned char)"\r\n\r\n"[head] ? head + 1
				                                                   : piece[i] == '\r';
			else
				wrong += piece[i] != byte_at(at++);
		}
	cr_expect(eq(sz, wrong, 0));
	cr_expect(eq(sz, at, (size_t)STREAM_SIZE));
	cr_expect(eq(long, (long)got, 0), "it ended without close_notify");
	tls_peer_close(p);
	http_peer_stop(server);
}

Test(http_bridge_bytes, a_reader_that_stops_is_cut, .timeout = 60)
{
	http_peer_server *server = serve((http_server_options){.write_timeout = 300 * CTX_MILLISECOND});
	tls_peer *p = tls_peer_connect(server, NULL);
	cr_assert(tls_peer_send(p, GET("/flood")));
	cr_assert(eventually_counts(&seen.done, 1, 10000), "it goes on");
	cr_expect(eq(ptr, (void *)seen.cause, (void *)&HTTP_CLIENT_DISCONNECTED));
	cr_expect(eventually(http_peer_is_quiet, server, 10000));
	cr_expect(ne(int, tls_peer_end(p), TLS_CLOSE_NOTIFY), "the stream looks whole");
	tls_peer_cut(p);
	http_peer_stop(server);
}

Test(http_bridge_bytes, a_reader_that_leaves_stops_the_writer, .timeout = 60)
{
	http_peer_server *server = serve((http_server_options){0});
	for (size_t w = 0; w < TLS_WAYS; w++) {
		int done = seen.done, left = seen.left;
		size_t last = 0;
		tls_peer *p = tls_peer_connect(server, NULL);
		cr_assert(tls_peer_send(p, GET("/flood")));
		cr_assert(eventually(stalled, &last, 20000));
		tls_ways[w].leave(p);
		cr_assert(eventually_counts(&seen.done, done + 1, 10000), "%s", tls_ways[w].name);
		cr_expect(eq(int, seen.left, left + 1), "%s", tls_ways[w].name);
		if (tls_ways[w].stays)
			tls_peer_cut(p);
		cr_assert(eventually(http_peer_is_quiet, server, 10000), "%s", tls_ways[w].name);
	}
	http_peer_stop(server);
}
