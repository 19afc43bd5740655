/*
 * Bodies that the handler reads as they come: in order, no faster than it reads, and no longer than it is wanted.
 */
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

#include <tether/loop.h>

#include "h2_peer.h"
#include "http_peer.h"
#include "support.h"

static struct {
	atomic_size_t read; /* bytes, by the handler */
	atomic_int entered, done, status, error;
	_Atomic(const ctx_error *) cause;
	atomic_bool wrong; /* a byte that was not the one sent */
	wait_event go;
} seen;

static void on_done(http_request *request, const http_outcome *outcome, void *data)
{
	(void)request, (void)data;
	atomic_store(&seen.status, outcome->status);
	atomic_fetch_add(&seen.done, 1);
}

static bool has_read(void *size)
{
	return atomic_load(&seen.read) >= *(size_t *)size;
}

static bool is_done(void *count)
{
	return atomic_load(&seen.done) >= *(int *)count;
}

static bool is_entered(void *count)
{
	return atomic_load(&seen.entered) >= *(int *)count;
}

/* The byte at that place of every body sent here. */
static char byte_at(size_t at)
{
	return (char)(at * 7 + at / 251);
}

static void fill(char *data, size_t size, size_t from)
{
	for (size_t i = 0; i < size; i++)
		data[i] = byte_at(from + i);
}

/* Reads to the end, and says how that was. */
static void read_all(http_request *request, http_response *response)
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

static void reads(http_request *request, http_response *response)
{
	atomic_fetch_add(&seen.entered, 1);
	cr_expect(eq(str, (char *)http_body(request, NULL), ""));
	read_all(request, response);
}

static void reads_when_told(http_request *request, http_response *response)
{
	atomic_fetch_add(&seen.entered, 1);
	wait_event_wait(NULL, &seen.go);
	read_all(request, response);
}

static void does_not_read(http_request *request, http_response *response)
{
	(void)request;
	atomic_fetch_add(&seen.entered, 1);
	http_response_text(response, 403, "no, thank you");
}

static void writes_before_the_end(http_request *request, http_response *response)
{
	char piece[100];
	atomic_fetch_add(&seen.entered, 1);
	ssize_t got = http_body_read(request, piece, 1);
	http_write(response, piece, got > 0 ? (size_t)got : 0);
	bool refused = http_body_read(request, piece, sizeof(piece)) == -1 && errno == EPIPE;
	for (int i = 0; i < 2000; i++)
		http_write(response, piece, sizeof(piece));
	http_write(response, refused ? "yes" : "no ", 3);
}

static void reads_none(http_request *request, http_response *response)
{
	char piece[10];
	cr_expect(eq(int, (int)http_body_read(request, piece, 0), -1));
	cr_expect(eq(int, errno, EINVAL));
	atomic_store(&seen.error, (int)http_body_read(request, piece, sizeof(piece)));
	http_response_text(response, 200, "");
}

static http_peer_server *serve(const http_server_options *options)
{
	static const struct {
		const char *pattern;
		http_handler *handler;
		http_route_options options;
	} routes[] = {
		{"/read", reads, {.streams_body = true}},
		{"/large", reads, {.streams_body = true, .body_size = (size_t)1 << 30}},
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
	http_peer_begin(server, NULL);
	return server;
}

/* Sends a head, and with a size in it not -1 what delimits the body. */
static int begin(http_peer_server *server, const char *path, long size, const char *fields)
{
	char head[512], framing[64] = "Transfer-Encoding: chunked\r\n";
	int fd = http_peer_connect(server);
	if (size >= 0)
		snprintf(framing, sizeof(framing), "Content-Length: %ld\r\n", size);
	snprintf(head, sizeof(head), "POST %s HTTP/1.1\r\nHost: h\r\n%s%s\r\n", path, framing, fields);
	http_peer_send(fd, head);
	return fd;
}

static bool send_piece(int fd, size_t from, size_t size, bool chunked)
{
	char *data = malloc(size), line[32];
	bool sent = true;
	fill(data, size, from);
	snprintf(line, sizeof(line), "%zx\r\n", size);
	sent = (!chunked || http_peer_send(fd, line)) && http_peer_send_bytes(fd, data, size) &&
	       (!chunked || http_peer_send(fd, "\r\n"));
	free(data);
	return sent;
}

static void expect_answer(int fd, int status, const char *body)
{
	http_peer_response response = http_peer_read(fd, false);
	cr_expect(eq(int, response.status, status));
	if (body && response.status == status)
		cr_expect(eq(str, response.body, (char *)body));
	http_peer_clear(&response);
}

static void expect_alive(int fd)
{
	http_peer_send(fd, "GET /none HTTP/1.1\r\nHost: h\r\n\r\n");
	expect_answer(fd, 200, "");
}

/* ---- As it comes ------------------------------------------------------------------------------------- */

Test(http_upload, pieces_are_read_as_they_come, .timeout = 60)
{
	http_peer_server *server = serve(NULL);
	for (int chunked = 0; chunked < 2; chunked++) {
		atomic_store(&seen.read, 0);
		int fd = begin(server, "/read", chunked ? -1 : 300000, "");
		for (size_t sent = 0; sent < 300000;) {
			send_piece(fd, sent, 30000, chunked);
			sent += 30000;
			cr_assert(eventually(has_read, &sent, 10000), "of %zu bytes %zu are read", sent,
			          seen.read);
		}
		if (chunked)
			http_peer_send(fd, "0\r\n\r\n");
		expect_answer(fd, 200, "300000");
		cr_expect(not(seen.wrong));
		if (!chunked)
			expect_alive(fd);
		close(fd);
	}
	http_peer_stop(server);
}

/* Many small chunks in one segment: libmicrohttpd goes on with those it has read, suspended or not. */
Test(http_upload, chunks_that_come_together, .timeout = 60)
{
	http_peer_server *server = serve(NULL);
	static const char before[3] = {'5', '\r', '\n'}, after[2] = {'\r', '\n'};
	static const char last[5] = {'0', '\r', '\n', '\r', '\n'};
	size_t size = 0, chunks = 20000;
	char *sent = malloc(chunks * 16);
	for (size_t i = 0; i < chunks; i++) {
		char piece[5];
		fill(piece, 5, i * 5);
		memcpy(sent + size, before, sizeof(before));
		memcpy(sent + size + 3, piece, 5);
		memcpy(sent + size + 8, after, sizeof(after));
		size += 10;
	}
	memcpy(sent + size, last, sizeof(last));
	int fd = begin(server, "/told", -1, "");
	/* The handler reads late: all that fits has come by then. */
	cr_assert(eventually(is_entered, &(int){1}, 10000));
	wait_event_set(&seen.go);
	http_peer_send_bytes(fd, sent, size + 5);
	expect_answer(fd, 200, "100000");
	cr_expect(not(seen.wrong));
	close(fd);
	free(sent);
	http_peer_stop(server);
}

/* Sends until the other side takes no more for a while: how many bytes. */
static size_t send_until_full(int fd, size_t most)
{
	char data[16384];
	size_t sent = 0;
	fcntl(fd, F_SETFL, O_NONBLOCK);
	while (sent < most) {
		struct pollfd writable = {.fd = fd, .events = POLLOUT};
		size_t size = most - sent < sizeof(data) ? most - sent : sizeof(data);
		fill(data, size, sent);
		if (poll(&writable, 1, 500) != 1)
			break;
		ssize_t n = send(fd, data, size, MSG_NOSIGNAL | MSG_DONTWAIT);
		cr_assert(gt(long, (long)n, 0));
		sent += (size_t)n;
	}
	fcntl(fd, F_SETFL, 0);
	return sent;
}

Test(http_upload, a_handler_that_does_not_read_holds_the_client_up, .timeout = 120)
{
	enum { SIZE = 64 << 20, KERNELS = 24 << 20 };
	http_server_options options = {.idle_timeout = 100 * CTX_SECOND};
	http_peer_server *server = serve(&options);
	int fd = begin(server, "/told", SIZE, "");
	size_t sent = send_until_full(fd, SIZE);
	cr_assert(lt(sz, sent, KERNELS), "the server took %zu bytes that nobody has read", sent);
	wait_event_set(&seen.go);
	while (sent < SIZE) {
		size_t size = SIZE - sent < 1 << 20 ? SIZE - sent : 1 << 20;
		cr_assert(send_piece(fd, sent, size, false));
		sent += size;
	}
	expect_answer(fd, 200, "67108864");
	cr_expect(not(seen.wrong));
	expect_alive(fd);
	close(fd);
	http_peer_stop(server);
}

Test(http_upload, what_has_no_body_ends_at_once, .timeout = 60)
{
	http_peer_server *server = serve(NULL);
	atomic_store(&seen.error, -2);
	http_peer_response response = http_peer_ask(server, "GET", "/none", NULL);
	cr_expect(eq(int, seen.error, 0));
	http_peer_clear(&response);
	atomic_store(&seen.error, -2);
	response = http_peer_ask(server, "POST", "/none", "");
	cr_expect(eq(int, seen.error, 0));
	http_peer_clear(&response);
	/* And a body that was read before can be read all the same. */
	char body[500];
	fill(body, sizeof(body), 0);
	int fd = begin(server, "/whole", sizeof(body), "");
	http_peer_send_bytes(fd, body, sizeof(body));
	expect_answer(fd, 200, "500");
	cr_expect(not(seen.wrong));
	close(fd);
	http_peer_stop(server);
}

/* ---- Clients that leave, or stop --------------------------------------------------------------------- */

static void expect_cancelled(int count)
{
	cr_assert(eventually(is_done, &count, 10000));
	cr_expect(eq(int, seen.error, ECANCELED));
	cr_expect(eq(ptr, (void *)seen.cause, (void *)&HTTP_CLIENT_DISCONNECTED));
	cr_expect(eq(int, seen.status, 499));
}

Test(http_upload, a_client_that_leaves_amid_the_body_cancels, .timeout = 60)
{
	http_peer_server *server = serve(NULL);
	for (int reset = 0; reset < 2; reset++) {
		atomic_store(&seen.read, 0);
		int fd = begin(server, "/read", 100000, "");
		send_piece(fd, 0, 1000, false);
		cr_assert(eventually(has_read, &(size_t){1000}, 10000));
		if (reset)
			http_peer_reset(fd);
		else
			close(fd);
		expect_cancelled(reset + 1);
	}
	/* Bytes that are no chunk are no end either. */
	int fd = begin(server, "/read", -1, "");
	http_peer_send(fd, "zz\r\n");
	cr_assert(eventually(is_done, &(int){3}, 10000));
	cr_expect(eq(int, seen.error, ECANCELED));
	close(fd);
	http_peer_stop(server);
}

static bool is_cancelled(void *unused)
{
	(void)unused;
	return atomic_load(&seen.cause);
}

/* Watches its context and nothing else, while more of the body waits than there is room for. */
static void waits_for_the_end(http_request *request, http_response *response)
{
	atomic_fetch_add(&seen.entered, 1);
	wait_done(http_request_ctx(request));
	atomic_store(&seen.cause, ctx_cause(http_request_ctx(request)));
	http_response_text(response, 200, "");
}

Test(http_upload, a_client_that_leaves_is_seen_past_a_full_body, .timeout = 60)
{
	http_server_options options = {.workers = 1, .on_done = on_done};
	http_peer_server *server = http_peer_prepare(&options);
	http_handle_with(http_peer_server_of(server), "/", &(http_route_options){.streams_body = true},
	                 waits_for_the_end, NULL);
	http_peer_begin(server, NULL);
	int fd = begin(server, "/", 1000000, "");
	send_piece(fd, 0, 100000,
	           false); /* all that the body has room for, and some in libmicrohttpd and the kernel */
	cr_assert(eventually(is_entered, &(int){1}, 10000));
	close(fd);
	cr_assert(eventually(is_cancelled, NULL, 10000));
	cr_expect(eq(ptr, (void *)seen.cause, (void *)&HTTP_CLIENT_DISCONNECTED));
	cr_assert(eventually(is_done, &(int){1}, 10000));
	cr_expect(eq(int, seen.status, 499));
	http_peer_stop(server);
}

Test(http_upload, a_client_that_stops_sending_is_told, .timeout = 60)
{
	http_server_options options = {.body_timeout = 200 * CTX_MILLISECOND};
	http_peer_server *server = serve(&options);
	int fd = begin(server, "/read", 100000, "");
	send_piece(fd, 0, 1000, false);
	expect_answer(fd, 408, NULL);
	cr_expect(http_peer_closed(fd));
	close(fd);
	cr_assert(eventually(is_done, &(int){1}, 10000));
	cr_expect(eq(int, seen.error, ETIMEDOUT));
	cr_expect(eq(int, seen.status, 408));
	/* One that is held up by the handler has all the time it needs. */
	atomic_store(&seen.read, 0);
	fd = begin(server, "/told", 100000, "");
	send_piece(fd, 0, 100000, false);
	struct pollfd readable = {.fd = fd, .events = POLLIN};
	cr_expect(eq(int, poll(&readable, 1, 600), 0));
	wait_event_set(&seen.go);
	expect_answer(fd, 200, "100000");
	close(fd);
	http_peer_stop(server);
}

/* ---- Bodies that are not wanted ---------------------------------------------------------------------- */

Test(http_upload, what_is_not_read_is_skipped, .timeout = 60)
{
	http_peer_server *server = serve(NULL);
	/* Nothing of it has come when the answer is given: the connection ends with it, which costs nothing. */
	int fd = begin(server, "/forbidden", 100000, "");
	expect_answer(fd, 403, "no, thank you");
	cr_expect(http_peer_closed(fd));
	close(fd);
	/* Sent or not, the answer arrives. */
	fd = begin(server, "/forbidden", 8 << 20, "");
	send_piece(fd, 0, 8 << 20, false);
	expect_answer(fd, 403, "no, thank you");
	close(fd);
	http_peer_stop(server);
}

Test(http_upload, an_answer_ends_the_reading, .timeout = 60)
{
	http_peer_server *server = serve(NULL);
	int fd = begin(server, "/write", 100000, "");
	send_piece(fd, 0, 100000, false);
	http_peer_response response = http_peer_read(fd, false);
	cr_expect(eq(int, response.status, 200));
	cr_assert(eq(sz, response.body_size, 200004));
	cr_expect(eq(chr, response.body[0], byte_at(0)));
	cr_expect(eq(str, response.body + 200001, "yes"));
	http_peer_clear(&response);
	expect_alive(fd);
	close(fd);
	/* A client that would send for ever is told that it is enough. */
	fd = begin(server, "/write", -1, "");
	send_piece(fd, 0, 1 << 20, true);
	expect_answer(fd, 413, NULL);
	cr_expect(http_peer_closed(fd));
	close(fd);
	http_peer_stop(server);
}

Test(http_upload, too_much_is_refused, .timeout = 60)
{
	http_peer_server *server = serve(NULL);
	/* What says so, before the handler; per route. */
	int fd = begin(server, "/small", 1001, "");
	expect_answer(fd, 413, NULL);
	close(fd);
	fd = begin(server, "/whole", 1001, "");
	expect_answer(fd, 413, NULL);
	close(fd);
	cr_expect(eq(int, seen.entered, 0));
	/* What does not, when it is. */
	fd = begin(server, "/small", -1, "");
	send_piece(fd, 0, 500, true);
	cr_assert(eventually(has_read, &(size_t){500}, 10000));
	send_piece(fd, 500, 501, true);
	http_peer_send(fd, "0\r\n\r\n");
	expect_answer(fd, 413, NULL);
	cr_expect(eq(int, seen.error, EMSGSIZE));
	close(fd);
	/* And all that is allowed is. */
	atomic_store(&seen.read, 0);
	fd = begin(server, "/small", -1, "");
	send_piece(fd, 0, 1000, true);
	http_peer_send(fd, "0\r\n\r\n");
	expect_answer(fd, 200, "1000");
	close(fd);
	http_peer_stop(server);
}

/* ---- Expectations ------------------------------------------------------------------------------------ */

static bool says_continue(int fd)
{
	char said[26] = "";
	return recv(fd, said, 25, MSG_WAITALL) == 25 && strcmp(said, "HTTP/1.1 100 Continue\r\n\r\n") == 0;
}

static bool is_silent(int fd)
{
	struct pollfd readable = {.fd = fd, .events = POLLIN};
	return poll(&readable, 1, 50) == 0;
}

Test(http_upload, continue_is_said_when_the_handler_reads, .timeout = 60)
{
	http_peer_server *server = serve(NULL);
	int fd = begin(server, "/told", 1000, "Expect: 100-continue\r\n");
	cr_assert(eventually(is_entered, &(int){1}, 10000));
	cr_expect(is_silent(fd), "the client was told to send what nobody has asked for");
	wait_event_set(&seen.go);
	cr_assert(says_continue(fd));
	send_piece(fd, 0, 1000, false);
	expect_answer(fd, 200, "1000");
	expect_alive(fd);
	close(fd);
	/* At once, by one that reads at once. */
	atomic_store(&seen.read, 0);
	fd = begin(server, "/read", 1000, "Expect: 100-continue\r\n");
	cr_assert(says_continue(fd));
	send_piece(fd, 0, 1000, false);
	expect_answer(fd, 200, "1000");
	close(fd);
	/* Never by one that answers instead, nor where there is too much. */
	fd = begin(server, "/forbidden", 1000, "Expect: 100-continue\r\n");
	char said[13] = "";
	cr_assert(eq(int, (int)recv(fd, said, 12, MSG_WAITALL), 12));
	cr_expect(eq(str, said, "HTTP/1.1 403"));
	close(fd);
	fd = begin(server, "/small", 1001, "Expect: 100-continue\r\n");
	cr_assert(eq(int, (int)recv(fd, said, 12, MSG_WAITALL), 12));
	cr_expect(eq(str, said, "HTTP/1.1 413"));
	close(fd);
	http_peer_stop(server);
}

Test(http_upload, other_expectations_fail, .timeout = 60)
{
	http_peer_server *server = serve(NULL);
	static const char *const bad[] = {"Expect: pigs-to-fly\r\n", "Expect: 100-continue, x\r\n",
	                                  "Expect:\r\n", "Expect: 100-continue\r\nExpect: x\r\n"};
	for (size_t i = 0; i < sizeof(bad) / sizeof(*bad); i++) {
		int fd = begin(server, "/read", 1000, bad[i]);
		char said[13] = "";
		cr_assert(eq(int, (int)recv(fd, said, 12, MSG_WAITALL), 12));
		cr_expect(eq(str, said, "HTTP/1.1 417"), "%s", bad[i]);
		close(fd);
	}
	cr_expect(eq(int, seen.entered, 0));
	http_peer_stop(server);
}

/* ---- Trailers ---------------------------------------------------------------------------------------- */

Test(http_upload, trailers_are_checked_and_dropped, .timeout = 60)
{
	http_peer_server *server = serve(NULL);
	static const char *const targets[] = {"/read", "/whole"};
	static const char *const bad[] = {"Content-Length: 5\r\n", "transfer-encoding: chunked\r\n",
	                                  "Host: other\r\n",       "a b: c\r\n",
	                                  "X-A: \x01\r\n",         "X-A : b\r\n",
	                                  "X-A: b\r\n folded\r\n"};
	for (size_t t = 0; t < 2; t++) {
		int fd = begin(server, targets[t], -1, "");
		atomic_store(&seen.read, 0);
		send_piece(fd, 0, 100, true);
		http_peer_send(fd, "0\r\nX-Checksum: abc\r\nX-Other: d\r\n\r\n");
		expect_answer(fd, 200, "100");
		close(fd);
		for (size_t i = 0; i < sizeof(bad) / sizeof(*bad); i++) {
			char trailer[128];
			atomic_store(&seen.read, 0);
			fd = begin(server, targets[t], -1, "");
			send_piece(fd, 0, 100, true);
			snprintf(trailer, sizeof(trailer), "0\r\nX-First: 1\r\n%s\r\n", bad[i]);
			http_peer_send(fd, trailer);
			expect_answer(fd, 400, NULL);
			cr_expect(http_peer_closed(fd), "%s: %s", targets[t], bad[i]);
			close(fd);
		}
		/* More than fits is not taken, be it in one line or in many. */
		fd = begin(server, targets[t], -1, "");
		send_piece(fd, 0, 100, true);
		http_peer_send(fd, "0\r\n");
		bool open = true;
		for (int i = 0; i < 100000 && open; i++)
			open = http_peer_send(fd, "X-More: and more and more and more\r\n");
		cr_expect(not(open), "%s", targets[t]);
		close(fd);
	}
	http_peer_stop(server);
}

/* ---- HTTP/2 ------------------------------------------------------------------------------------------ */

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

Test(http_upload, http2_pieces_are_read_as_they_come, .timeout = 60)
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

Test(http_upload, http2_a_handler_that_does_not_read_keeps_the_window_shut, .timeout = 60)
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

Test(http_upload, http2_a_stream_that_is_reset_cancels, .timeout = 60)
{
	http_peer_server *server = serve(NULL);
	h2_peer *peer = h2_peer_connect(server);
	h2_peer_begin(peer, 1, "POST", "/read");
	send_data(peer, 1, 0, 1000, false);
	cr_assert(eventually(has_read, &(size_t){1000}, 10000));
	h2_peer_number(peer, H2_RST_STREAM, 1, H2_CANCEL);
	cr_assert(eventually(is_done, &(int){1}, 10000));
	cr_expect(eq(int, seen.error, ECANCELED));
	cr_expect(eq(ptr, (void *)seen.cause, (void *)&HTTP_STREAM_RESET));
	h2_peer_close(peer);
	http_peer_stop(server);
}

Test(http_upload, http2_what_is_too_long_late_or_unwanted, .timeout = 60)
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

Test(http_upload, http2_continue_is_said_when_the_handler_reads, .timeout = 60)
{
	http_peer_server *server = serve(NULL);
	h2_peer *peer = h2_peer_connect(server);
	static const char *const fields[] = {":method", "POST",         ":path",      "/told",
	                                     ":scheme", "http",         ":authority", "h",
	                                     "expect",  "100-continue", NULL};
	h2_peer_headers(peer, 1, 0, fields);
	cr_assert(eventually(is_entered, &(int){1}, 10000));
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
