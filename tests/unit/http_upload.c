/*
 * Bodies that the handler reads as they come: in order, no faster than it reads, and no longer than it is wanted.
 * Over HTTP/1.1; http_upload_h2.c has the same over HTTP/2, http_upload_tls.c both by TLS.
 */
#include <criterion/criterion.h>
#include <criterion/new/assert.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "support.h"
#include "uploads.h"

static int begin(http_peer_server *server, const char *path, long size, const char *fields)
{
	int fd = http_peer_connect(server);
	send_head((wire){.fd = fd}, path, size, fields);
	return fd;
}

static bool send_piece(int fd, size_t from, size_t size, bool chunked)
{
	return wire_send_piece((wire){.fd = fd}, from, size, chunked);
}

static void expect_answer(int fd, int status, const char *body)
{
	wire_expect_answer((wire){.fd = fd}, status, body);
}

static void expect_alive(int fd)
{
	wire_expect_alive((wire){.fd = fd});
}

/* ---- As it comes ------------------------------------------------------------------------------------- */

Test(http_upload, pieces_are_read_as_they_come, .timeout = 60)
{
	test_pieces_are_read_as_they_come(NULL);
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
	cr_assert(eventually_counts(&seen.entered, 1, 10000));
	wait_event_set(&seen.go);
	http_peer_send_bytes(fd, sent, size + 5);
	expect_answer(fd, 200, "100000");
	cr_expect(not(seen.wrong));
	close(fd);
	free(sent);
	http_peer_stop(server);
}

Test(http_upload, a_handler_that_does_not_read_holds_the_client_up, .timeout = 120)
{
	test_a_handler_that_does_not_read_holds_the_client_up(NULL);
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
	cr_assert(eventually_counts(&seen.done, 3, 10000));
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
	/* All that the body has room for, and some in libmicrohttpd and the kernel. */
	send_piece(fd, 0, 100000, false);
	cr_assert(eventually_counts(&seen.entered, 1, 10000));
	close(fd);
	cr_assert(eventually(is_cancelled, NULL, 10000));
	cr_expect(eq(ptr, (void *)seen.cause, (void *)&HTTP_CLIENT_DISCONNECTED));
	cr_assert(eventually_counts(&seen.done, 1, 10000));
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
	cr_assert(eventually_counts(&seen.done, 1, 10000));
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
	cr_assert(eventually_counts(&seen.entered, 1, 10000));
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
