/*
 * What the programs that test uploads share: a server whose handlers read their bodies as they come, each in its own
 * way, and what they have seen. Unlike most of these it uses Criterion, hence is all in a header.
 */
#ifndef TESTS_UPLOADS_H
#define TESTS_UPLOADS_H

#include <criterion/criterion.h>
#include <criterion/new/assert.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include <tether/http.h>
#include <tether/loop.h>

#include "h2_peer.h"
#include "http_peer.h"
#include "support.h"
#include "tls_peer.h"

/* What the handlers have seen of the requests so far, in all; error and cause: of the last. */
static struct {
	atomic_size_t read; /* bytes, by the handler */
	atomic_int entered, done, status, error;
	_Atomic(const ctx_error *) cause;
	atomic_bool wrong; /* a byte that was not the one sent */
	wait_event go;
} seen;

static inline void on_done(http_request *request, const http_outcome *outcome, void *data)
{
	(void)request, (void)data;
	atomic_store(&seen.status, outcome->status);
	atomic_fetch_add(&seen.done, 1);
}

static inline bool has_read(void *size)
{
	return atomic_load(&seen.read) >= *(size_t *)size;
}

/* The byte at that place of every body sent here. */
static inline char byte_at(size_t at)
{
	return (char)(at * 7 + at / 251);
}

static inline void fill(char *data, size_t size, size_t from)
{
	for (size_t i = 0; i < size; i++)
		data[i] = byte_at(from + i);
}

/* Reads to the end, and says how that was. */
static inline void read_all(http_request *request, http_response *response)
{
	char piece[10000], text[64];
	ssize_t got;
	while ((got = http_body_read(request, piece, sizeof(piece))) > 0) {
		for (ssize_t i = 0; i < got; i++)
			if (piece[i] != byte_at(seen.read + (size_t)i))
				atomic_store(&seen.wrong, true);
		atomic_fetch_add(&seen.read, (size_t)got);
	}
	atomic_store(&seen.error, got < 0 ? errno : 0);
	atomic_store(&seen.cause, ctx_cause(http_request_ctx(request)));
	snprintf(text, sizeof(text), "%zu", atomic_load(&seen.read));
	http_response_text(response, 200, text);
}

static inline void reads(http_request *request, http_response *response)
{
	atomic_fetch_add(&seen.entered, 1);
	cr_expect(eq(str, (char *)http_body(request, NULL), ""));
	read_all(request, response);
}

static inline void reads_when_told(http_request *request, http_response *response)
{
	atomic_fetch_add(&seen.entered, 1);
	wait_event_wait(NULL, &seen.go);
	read_all(request, response);
}

static inline void does_not_read(http_request *request, http_response *response)
{
	(void)request;
	atomic_fetch_add(&seen.entered, 1);
	http_response_text(response, 403, "no, thank you");
}

static inline void writes_before_the_end(http_request *request, http_response *response)
{
	char piece[100] = {0};
	atomic_fetch_add(&seen.entered, 1);
	ssize_t got = http_body_read(request, piece, 1);
	http_write(response, piece, got > 0 ? (size_t)got : 0);
	bool refused = http_body_read(request, piece, sizeof(piece)) == -1 && errno == EPIPE;
	for (int i = 0; i < 2000; i++)
		http_write(response, piece, sizeof(piece));
	http_write(response, refused ? "yes" : "no ", 3);
}

static inline void reads_none(http_request *request, http_response *response)
{
	char piece[10];
	cr_expect(eq(int, (int)http_body_read(request, piece, 0), -1));
	cr_expect(eq(int, errno, EINVAL));
	atomic_store(&seen.error, (int)http_body_read(request, piece, sizeof(piece)));
	http_response_text(response, 200, "");
}

/* Serves them all, each at a path that says what it does; tls may be NULL. End it with http_peer_stop. */
static inline http_peer_server *serve_tls(const http_server_options *options, http_tls *tls)
{
	static const struct {
		const char *pattern;
		http_handler *handler;
		http_route_options options;
	} routes[] = {
		{"/read", reads, {.streams_body = true}},
		{"/small", reads, {.streams_body = true, .body_size = 1000}},
		{"/told", reads_when_told, {.streams_body = true, .body_size = (size_t)1 << 30}},
		{"/forbidden", does_not_read, {.streams_body = true, .body_size = (size_t)1 << 30}},
		{"/write", writes_before_the_end, {.streams_body = true}},
		{"/none", reads_none, {.streams_body = true}},
		{"/whole", read_all, {.body_size = 1000}},
	};
	http_server_options chosen = {0};
	if (options)
		chosen = *options;
	chosen.on_done = on_done;
	http_peer_server *server = http_peer_prepare(&chosen);
	for (size_t i = 0; i < sizeof(routes) / sizeof(*routes); i++)
		cr_assert(eq(int,
		             http_handle_with(http_peer_server_of(server), routes[i].pattern,
		                              &routes[i].options, routes[i].handler, NULL),
		             0));
	http_peer_begin(server, tls);
	return server;
}

static inline http_peer_server *serve(const http_server_options *options)
{
	return serve_tls(options, NULL);
}

/* ---- HTTP/1.1 ---------------------------------------------------------------------------------------- */

/* A client's end. */
typedef struct wire {
	int fd;
	tls_peer *tls; /* whose socket it is; NULL: bare */
} wire;

static inline wire wire_connect(const http_peer_server *server, bool tls)
{
	wire w = {.tls = tls ? tls_peer_connect(server, NULL) : NULL};
	w.fd = tls ? tls_peer_fd(w.tls) : http_peer_connect(server);
	return w;
}

static inline bool wire_send_bytes(wire w, const void *data, size_t size)
{
	return w.tls ? tls_peer_send_bytes(w.tls, data, size) : http_peer_send_bytes(w.fd, data, size);
}

static inline bool wire_send(wire w, const char *text)
{
	return wire_send_bytes(w, text, strlen(text));
}

static inline void wire_close(wire w)
{
	if (w.tls)
		tls_peer_close(w.tls);
	else
		close(w.fd);
}

/* Sends a head, and with a size in it not -1 what delimits the body. */
static inline void send_head(wire w, const char *path, long size, const char *fields)
{
	char head[512], framing[64] = "Transfer-Encoding: chunked\r\n";
	if (size >= 0)
		snprintf(framing, sizeof(framing), "Content-Length: %ld\r\n", size);
	snprintf(head, sizeof(head), "POST %s HTTP/1.1\r\nHost: h\r\n%s%s\r\n", path, framing, fields);
	wire_send(w, head);
}

static inline bool wire_send_piece(wire w, size_t from, size_t size, bool chunked)
{
	char *data = malloc(size), line[32];
	bool sent = true;
	fill(data, size, from);
	snprintf(line, sizeof(line), "%zx\r\n", size);
	sent = (!chunked || wire_send(w, line)) && wire_send_bytes(w, data, size) &&
	       (!chunked || wire_send(w, "\r\n"));
	free(data);
	return sent;
}

static inline void wire_expect_answer(wire w, int status, const char *body)
{
	http_peer_response response = w.tls ? tls_peer_read(w.tls, false) : http_peer_read(w.fd, false);
	cr_expect(eq(int, response.status, status));
	if (body && response.status == status)
		cr_expect(eq(str, response.body, (char *)body));
	http_peer_clear(&response);
}

static inline void wire_expect_alive(wire w)
{
	wire_send(w, "GET /none HTTP/1.1\r\nHost: h\r\n\r\n");
	wire_expect_answer(w, 200, "");
}

/* Of a non-blocking socket. What GnuTLS has not sent to its end it wants to be given again, as does its caller. */
static inline ssize_t wire_send_some(wire w, const void *data, size_t size)
{
	ssize_t n = w.tls ? gnutls_record_send(tls_peer_session(w.tls), data, size)
	                  : send(w.fd, data, size, MSG_NOSIGNAL | MSG_DONTWAIT);
	return w.tls && n == GNUTLS_E_AGAIN ? 0 : n;
}

/* Sends until the other side takes no more for a while: how many bytes. */
static inline size_t send_until_full(wire w, size_t most)
{
	char data[16384];
	size_t sent = 0;
	fcntl(w.fd, F_SETFL, O_NONBLOCK);
	while (sent < most) {
		struct pollfd writable = {.fd = w.fd, .events = POLLOUT};
		size_t size = most - sent < sizeof(data) ? most - sent : sizeof(data);
		fill(data, size, sent);
		if (poll(&writable, 1, 500) != 1)
			break;
		ssize_t n = wire_send_some(w, data, size);
		cr_assert(ge(long, (long)n, 0));
		sent += (size_t)n;
	}
	fcntl(w.fd, F_SETFL, 0);
	return sent;
}

/* ---- What is tested of both, bare and by TLS --------------------------------------------------------- */

static inline void test_pieces_are_read_as_they_come(http_tls *tls)
{
	http_peer_server *server = serve_tls(NULL, tls);
	for (int chunked = 0; chunked < 2; chunked++) {
		atomic_store(&seen.read, 0);
		wire w = wire_connect(server, tls);
		send_head(w, "/read", chunked ? -1 : 300000, "");
		for (size_t sent = 0; sent < 300000;) {
			wire_send_piece(w, sent, 30000, chunked);
			sent += 30000;
			cr_assert(eventually(has_read, &sent, 10000), "of %zu bytes %zu are read", sent,
			          seen.read);
		}
		if (chunked)
			wire_send(w, "0\r\n\r\n");
		wire_expect_answer(w, 200, "300000");
		cr_expect(not(seen.wrong));
		if (!chunked)
			wire_expect_alive(w);
		wire_close(w);
	}
	http_peer_stop(server);
}

static inline void test_a_handler_that_does_not_read_holds_the_client_up(http_tls *tls)
{
	enum { SIZE = 64 << 20, KERNELS = 24 << 20 };
	http_server_options options = {.idle_timeout = 100 * CTX_SECOND};
	http_peer_server *server = serve_tls(&options, tls);
	wire w = wire_connect(server, tls);
	send_head(w, "/told", SIZE, "");
	size_t sent = send_until_full(w, SIZE);
	cr_assert(lt(sz, sent, KERNELS), "the server took %zu bytes that nobody has read", sent);
	wait_event_set(&seen.go);
	while (sent < SIZE) {
		size_t size = SIZE - sent < 1 << 20 ? SIZE - sent : 1 << 20;
		cr_assert(wire_send_piece(w, sent, size, false));
		sent += size;
	}
	wire_expect_answer(w, 200, "67108864");
	cr_expect(not(seen.wrong));
	wire_expect_alive(w);
	wire_close(w);
	http_peer_stop(server);
}

static inline void expect_cancelled(int count)
{
	cr_assert(eventually_counts(&seen.done, count, 10000));
	cr_expect(eq(int, seen.error, ECANCELED));
	cr_expect(eq(ptr, (void *)seen.cause, (void *)&HTTP_CLIENT_DISCONNECTED));
	cr_expect(eq(int, seen.status, 499));
}

/* ---- HTTP/2 ------------------------------------------------------------------------------------------ */

static inline h2_peer *h2_connect(const http_peer_server *server, bool tls)
{
	return tls ? h2_peer_connect_tls(server) : h2_peer_connect(server);
}

static inline void h2_send_data(h2_peer *peer, uint32_t stream, size_t from, size_t size, bool last)
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

static inline void test_h2_pieces_are_read_as_they_come(http_tls *tls)
{
	http_peer_server *server = serve_tls(NULL, tls);
	h2_peer *peer = h2_connect(server, tls);
	h2_peer_begin(peer, 1, "POST", "/read");
	for (size_t sent = 0; sent < 300000;) {
		h2_send_data(peer, 1, sent, 30000, sent == 270000);
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

static inline void test_h2_a_handler_that_does_not_read_keeps_the_window_shut(http_tls *tls)
{
	http_peer_server *server = serve_tls(NULL, tls);
	h2_peer *peer = h2_connect(server, tls);
	h2_peer_begin(peer, 1, "POST", "/told");
	h2_peer_ping(peer);
	h2_send_data(peer, 1, 0, 65535, false);
	h2_peer_ping(peer);
	cr_expect(eq(i64, h2_peer_so_far(peer, 1)->window, 0));
	/* Other streams are not held up by it. */
	h2_peer_begin(peer, 3, "POST", "/read");
	h2_send_data(peer, 3, 0, 200000, true);
	h2_answer *answer = h2_peer_answer(peer, 3);
	cr_expect(eq(int, answer->status, 200));
	atomic_store(&seen.read, 0);
	wait_event_set(&seen.go);
	h2_send_data(peer, 1, 65535, 200000, true);
	answer = h2_peer_answer(peer, 1);
	cr_expect(eq(str, answer->body, "265535"));
	cr_expect(not(seen.wrong));
	h2_peer_close(peer);
	http_peer_stop(server);
}

#endif
