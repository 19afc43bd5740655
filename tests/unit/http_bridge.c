/*
 * The bridge between TLS and the protocols: what happens on one side of it happens on the other, in time, and costs
 * what it may cost.
 */
#include <criterion/criterion.h>
#include <criterion/new/assert.h>
#include <dirent.h>
#include <poll.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include <tether/loop.h>

#include "certificates.h"
#include "http_peer.h"
#include "support.h"
#include "tls_peer.h"

/* ---- What is observed -------------------------------------------------------------------------------- */

static struct {
	atomic_int begun, entered, done, left;
	_Atomic(const ctx_error *) cause; /* of the last handler that waited */
	_Atomic(size_t) written;          /* bytes, by the handler that streams */
} seen;

static bool on_request(http_request *request, void *data)
{
	(void)request, (void)data;
	atomic_fetch_add(&seen.begun, 1);
	return true;
}

static void on_done(http_request *request, const http_outcome *outcome, void *data)
{
	(void)request, (void)data;
	if (outcome->status == 499 && outcome->cause == &HTTP_CLIENT_DISCONNECTED)
		atomic_fetch_add(&seen.left, 1);
	atomic_fetch_add(&seen.done, 1);
}

static void waits(http_request *request, http_response *response)
{
	atomic_fetch_add(&seen.entered, 1);
	wait_done(http_request_ctx(request));
	seen.cause = ctx_cause(http_request_ctx(request));
	http_response_text(response, 200, "nobody will read this");
}

static void sleeps(http_request *request, http_response *response)
{
	atomic_fetch_add(&seen.entered, 1);
	if (wait_sleep(http_request_ctx(request), 50 * CTX_MILLISECOND) == 0)
		http_response_text(response, 200, "slept");
}

static void answers(http_request *request, http_response *response)
{
	(void)request;
	http_response_text(response, 200, "hello");
}

enum { STREAM_SIZE = 8 << 20, FLOOD = 1 << 30 };

static unsigned char byte_at(size_t at)
{
	return (unsigned char)(at * 31 + at / 251);
}

/* As many bytes as data says, in pieces of all sizes. */
static void streams(http_request *request, http_response *response)
{
	char piece[5000];
	size_t total = (size_t)(uintptr_t)http_request_data(request);
	atomic_fetch_add(&seen.entered, 1);
	for (size_t at = 0; at < total;) {
		size_t size = at % sizeof(piece) + 1;
		size = size < total - at ? size : total - at;
		for (size_t i = 0; i < size; i++)
			piece[i] = (char)byte_at(at + i);
		if (http_write(response, piece, size) != 0)
			break;
		at += size;
		seen.written = at;
	}
	seen.cause = ctx_cause(http_request_ctx(request));
}

static const http_peer_route routes[] = {{"GET /wait", waits, NULL},
                                         {"POST /wait", waits, NULL},
                                         {"GET /sleep", sleeps, NULL},
                                         {"GET /hello", answers, NULL},
                                         {"GET /stream", streams, (void *)STREAM_SIZE},
                                         {"GET /flood", streams, (void *)FLOOD},
                                         {0}};

static http_peer_server *serve(http_server_options options)
{
	const certificates *c = certificates_get();
	char error[256];
	http_tls *tls = http_tls_new(&(http_tls_options){.certificate = c->server, .key = c->server_key},
	                             error, sizeof(error));
	cr_assert_not_null(tls, "%s", error);
	options.on_request = on_request;
	options.on_done = on_done;
	http_peer_server *server = http_peer_serve_tls(&options, routes, tls);
	http_tls_free(tls);
	return server;
}

#define GET(path) "GET " path " HTTP/1.1\r\nHost: h\r\n\r\n"

static int status_of(tls_peer *p)
{
	http_peer_response response = tls_peer_read(p, false);
	int status = response.status;
	http_peer_clear(&response);
	return status;
}

static void expect_serves(http_peer_server *server)
{
	tls_peer *p = tls_peer_connect(server, NULL);
	cr_expect(tls_peer_send(p, GET("/hello")));
	cr_expect(eq(int, status_of(p), 200));
	tls_peer_close(p);
}

/* ---- Leaving ----------------------------------------------------------------------------------------- */

static void shut_down(tls_peer *p)
{
	shutdown(tls_peer_fd(p), SHUT_WR);
}

static const struct way {
	const char *name;
	void (*leave)(tls_peer *p);
	bool stays; /* the client's socket is open still */
} ways[] = {
	{"close_notify and FIN", tls_peer_close, false},
	{"FIN", tls_peer_cut, false},
	{"reset", tls_peer_reset, false},
	{"close_notify alone", tls_peer_bye, true},
	{"half a FIN", shut_down, true},
};

enum { WAYS = sizeof(ways) / sizeof(*ways) };

static const struct stage {
	const char *name, *sends;
	int begun, entered;
} stages[] = {
	{"while the handler waits", GET("/wait"), 1, 1},
	{"with a request pipelined behind", GET("/wait") GET("/hello"), 1, 1},
	{"with half a request behind", GET("/wait") "GET /hel", 1, 1},
	{"while the body arrives", "POST /wait HTTP/1.1\r\nHost: h\r\nContent-Length: 40\r\n\r\nbody", 1, 0},
	{"in the middle of the head", "GET /wait HTTP/1.1\r\nHo", 0, 0},
	{"after the handshake", "", 0, 0},
};

Test(http_bridge, a_client_that_leaves_is_gone_at_any_stage, .timeout = 120)
{
	http_peer_server *server = serve((http_server_options){0});
	int over = 0;
	for (size_t s = 0; s < sizeof(stages) / sizeof(*stages); s++)
		for (size_t w = 0; w < WAYS; w++) {
			const struct stage *stage = &stages[s];
			int begun = seen.begun, entered = seen.entered;
			tls_peer *p = tls_peer_connect(server, NULL);
			if (stage->sends[0])
				cr_assert(tls_peer_send(p, stage->sends));
			cr_assert(eventually_counts(&seen.begun, begun + stage->begun, 10000), "%s",
			          stage->name);
			cr_assert(eventually_counts(&seen.entered, entered + stage->entered, 10000), "%s",
			          stage->name);
			ways[w].leave(p);
			over += stage->begun;
			cr_assert(eventually_counts(&seen.done, over, 10000),
			          "%s, %s: the request is not over", stage->name, ways[w].name);
			cr_assert(eventually(http_peer_is_quiet, server, 10000),
			          "%s, %s: the connection is not closed", stage->name, ways[w].name);
			cr_assert(eq(int, seen.left, over), "%s, %s: not taken for a client that left",
			          stage->name, ways[w].name);
			if (stage->entered)
				cr_assert(eq(ptr, (void *)seen.cause, (void *)&HTTP_CLIENT_DISCONNECTED),
				          "%s, %s", stage->name, ways[w].name);
			if (ways[w].stays) {
				cr_expect(ne(int, tls_peer_end(p), TLS_HANGS),
				          "%s, %s: the server keeps its side open", stage->name,
				          ways[w].name);
				tls_peer_cut(p);
			}
		}
	http_peer_stop(server);
}

/* More than all buffers on the way hold lies before the FIN, and the handler reads none of it. */
Test(http_bridge, a_client_that_leaves_is_gone_past_full_buffers, .timeout = 60)
{
	http_peer_server *server = serve((http_server_options){0});
	static char piece[16384];
	memset(piece, 'x', sizeof(piece));
	for (size_t w = 0; w < 3; w++) {
		int entered = seen.entered, left = seen.left;
		tls_peer *p = tls_peer_connect(server, NULL);
		cr_assert(tls_peer_send(p, GET("/wait")));
		cr_assert(eventually_counts(&seen.entered, entered + 1, 10000));
		for (int i = 0; i < 16; i++) /* into the kernel's buffers, which take it all */
			cr_assert(tls_peer_send_bytes(p, piece, sizeof(piece)));
		ways[w].leave(p);
		cr_assert(eventually_counts(&seen.left, left + 1, 10000), "%s", ways[w].name);
		cr_assert(eventually(http_peer_is_quiet, server, 10000), "%s", ways[w].name);
	}
	http_peer_stop(server);
}

/* By close_notify a client may end its side and be answered; a FIN alone may be somebody's who cut the line. */
Test(http_bridge, a_half_closed_client_may_be_waiting, .timeout = 60)
{
	http_peer_server *server = serve((http_server_options){.half_close_is_waiting = true});
	for (int i = 0; i < 10; i++) {
		int entered = seen.entered;
		tls_peer *p = tls_peer_connect(server, NULL);
		cr_assert(tls_peer_send(p, GET("/sleep")));
		if (i % 2)
			cr_assert(eventually_counts(&seen.entered, entered + 1, 10000));
		tls_peer_bye(p);
		if (i % 3 == 0)
			shut_down(p);
		cr_assert(eq(int, status_of(p), 200), "round %d", i);
		cr_expect(eq(int, tls_peer_end(p), TLS_CLOSE_NOTIFY));
		tls_peer_cut(p);
	}
	cr_expect(eq(int, seen.left, 0));
	int entered = seen.entered;
	tls_peer *p = tls_peer_connect(server, NULL);
	cr_assert(tls_peer_send(p, GET("/wait")));
	cr_assert(eventually_counts(&seen.entered, entered + 1, 10000));
	shut_down(p);
	cr_assert(eventually_counts(&seen.left, 1, 10000));
	cr_assert(eventually(http_peer_is_quiet, server, 10000));
	tls_peer_cut(p);
	http_peer_stop(server);
}

/* ---- Clients that are none --------------------------------------------------------------------------- */

Test(http_bridge, http_is_told_that_this_is_https, .timeout = 60)
{
	http_peer_server *server = serve((http_server_options){0});
	http_peer_response response = http_peer_ask(server, "GET", "/hello", NULL);
	cr_assert(eq(int, response.status, 400));
	cr_expect(eq(str, (char *)http_peer_field(&response, "Content-Type"), "application/problem+json"));
	cr_expect(strstr(response.body, "This port speaks HTTPS.") != NULL, "%s", response.body);
	http_peer_clear(&response);
	cr_expect(eq(int, seen.begun, 0));
	cr_expect(eventually(http_peer_is_quiet, server, 10000));
	expect_serves(server);
	http_peer_stop(server);
}

Test(http_bridge, bad_handshakes_are_cut, .timeout = 120)
{
	http_peer_server *server = serve((http_server_options){.header_timeout = 300 * CTX_MILLISECOND});
	const struct {
		const char *name, *bytes;
		size_t size;
		bool waits; /* for more: only time ends it */
	} bad[] = {
		{"nothing", "", 0, true},
		{"half a record's head", "\x16\x03", 2, true},
		{"a record that never comes", "\x16\x03\x01\x01\x00", 5, true},
		{"half a hello", "\x16\x03\x01\x00\x40\x01\x00\x00\x3c\x03\x03", 11, true},
		{"a record too long", "\x16\x03\x03\xff\xff\x01", 6, false},
		{"an alert", "\x15\x03\x03\x00\x02\x02\x28", 7, false},
		{"application data", "\x17\x03\x03\x00\x01\x00", 6, false},
		{"zeros", "\0\0\0\0\0\0\0\0\0\0", 10, false},
		{"SSLv2", "\x80\x2e\x01\x00\x02\x00\x15\x00\x00\x00\x10", 11, false},
		{"an empty hello", "\x16\x03\x01\x00\x04\x01\x00\x00\x00", 9, false},
	};
	for (size_t i = 0; i < sizeof(bad) / sizeof(*bad); i++)
		for (int leaves = 0; leaves < 3; leaves++) {
			int fd = http_peer_connect(server);
			int64_t began = now_ms();
			http_peer_send_bytes(fd, bad[i].bytes, bad[i].size);
			if (leaves == 1)
				shutdown(fd, SHUT_WR);
			if (leaves == 2) {
				http_peer_reset(fd);
			} else {
				cr_assert(http_peer_closed(fd), "%s: it is not cut", bad[i].name);
				cr_expect(leaves == 1 || now_ms() - began >= 250 || !bad[i].waits,
				          "%s: it had no time", bad[i].name);
				cr_expect(now_ms() - began < 3000L * support_patience(), "%s: after %ld ms",
				          bad[i].name, (long)(now_ms() - began));
				close(fd);
			}
			cr_assert(eventually(http_peer_is_quiet, server, 10000), "%s", bad[i].name);
		}
	expect_serves(server);
	cr_expect(eq(int, seen.begun, 1));
	http_peer_stop(server);
}

/* A byte now and then does not buy time, neither for the handshake nor after it for the head. */
Test(http_bridge, slow_handshakes_are_cut, .timeout = 60)
{
	http_peer_server *server = serve((http_server_options){.header_timeout = 300 * CTX_MILLISECOND});
	const char hello[] = "\x16\x03\x01\x40\x00\x01\x00\x3f\xfc\x03\x03";
	int fd = http_peer_connect(server);
	struct pollfd readable = {.fd = fd, .events = POLLIN};
	int64_t began = now_ms();
	for (size_t i = 0; poll(&readable, 1, 5) == 0 && now_ms() - began < 10000; i++)
		if (!http_peer_send_bytes(fd, i < sizeof(hello) - 1 ? &hello[i] : "x", 1))
			break;
	cr_expect(ge(long, (long)(now_ms() - began), 250));
	cr_expect(lt(long, (long)(now_ms() - began), 3000L * support_patience()));
	close(fd);
	tls_peer *p = tls_peer_connect(server, NULL);
	cr_expect(ne(int, tls_peer_end(p), TLS_HANGS));
	tls_peer_cut(p);
	http_peer_stop(server);
}

/* What is sent past GnuTLS, under a session that runs: whoever did it, the session is over, and so is its request. */
Test(http_bridge, a_forged_record_ends_it, .timeout = 60)
{
	http_peer_server *server = serve((http_server_options){0});
	const char *const forged[] = {"\x17\x03\x03\x00\x20"
	                              "0123456789abcdef0123456789abcdef",
	                              "\x17\x03\x03\xff\xff"
	                              "0123456789abcdef0123456789abcdef",
	                              "garbage garbage garbage garbage garbag"};
	for (size_t i = 0; i < sizeof(forged) / sizeof(*forged); i++) {
		int entered = seen.entered, left = seen.left;
		tls_peer *p = tls_peer_connect(server, NULL);
		cr_assert(tls_peer_send(p, GET("/wait")));
		cr_assert(eventually_counts(&seen.entered, entered + 1, 10000));
		cr_assert(http_peer_send_bytes(tls_peer_fd(p), forged[i], 37));
		cr_assert(eventually_counts(&seen.left, left + 1, 10000), "forgery %zu", i);
		cr_expect(ne(int, tls_peer_end(p), TLS_HANGS));
		tls_peer_cut(p);
	}
	cr_expect(eventually(http_peer_is_quiet, server, 10000));
	expect_serves(server);
	http_peer_stop(server);
}

Test(http_bridge, renegotiation_is_refused, .timeout = 60)
{
	http_peer_server *server = serve((http_server_options){0});
	tls_peer *p =
		tls_peer_connect(server, &(tls_peer_options){.priorities = "NORMAL:-VERS-ALL:+VERS-TLS1.2"});
	cr_assert(tls_peer_send(p, GET("/hello")));
	cr_expect(eq(int, status_of(p), 200));
	cr_expect(ne(int, tls_peer_handshake(p), 0), "it was renegotiated");
	cr_expect(eventually(http_peer_is_quiet, server, 10000));
	tls_peer_cut(p);
	expect_serves(server);
	http_peer_stop(server);
}

/* New keys in the middle (TLS 1.3) are every client's right. */
Test(http_bridge, keys_may_be_updated, .timeout = 60)
{
	http_peer_server *server = serve((http_server_options){0});
	tls_peer *p =
		tls_peer_connect(server, &(tls_peer_options){.priorities = "NORMAL:-VERS-ALL:+VERS-TLS1.3"});
	for (int i = 0; i < 4; i++) {
		cr_assert(tls_peer_send(p, GET("/hello")));
		cr_assert(eq(int, status_of(p), 200));
		cr_assert(eq(int, gnutls_session_key_update(tls_peer_session(p), GNUTLS_KU_PEER), 0));
	}
	tls_peer_close(p);
	http_peer_stop(server);
}

/* ---- HTTP/2 or not ----------------------------------------------------------------------------------- */

#define PREFACE "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

static const char empty_settings[9] = {0, 0, 0, 4, 0, 0, 0, 0, 0};

/* The type of the first frame that comes; -1: none. */
static int first_frame(tls_peer *p)
{
	unsigned char head[9];
	for (size_t got = 0; got < sizeof(head);) {
		ssize_t n = gnutls_record_recv(tls_peer_session(p), head + got, sizeof(head) - got);
		if (n == 0 || (n < 0 && gnutls_error_is_fatal((int)n)))
			return -1;
		got += n > 0 ? (size_t)n : 0;
	}
	return head[3];
}

Test(http_bridge, alpn_decides_whatever_is_sent, .timeout = 60)
{
	http_peer_server *server = serve((http_server_options){0});
	gnutls_datum_t chosen;
	tls_peer *p = tls_peer_connect(server, &(tls_peer_options){.alpn = {"http/1.1", "h2"}});
	cr_expect(eq(int, gnutls_alpn_get_selected_protocol(tls_peer_session(p), &chosen), 0));
	cr_expect(chosen.size == 2 && memcmp(chosen.data, "h2", 2) == 0);
	cr_assert(tls_peer_send(p, PREFACE) &&
	          tls_peer_send_bytes(p, empty_settings, sizeof(empty_settings)));
	cr_expect(eq(int, first_frame(p), 4), "no SETTINGS");
	tls_peer_close(p);

	/* HTTP/1.1 where HTTP/2 was agreed on, and the other way round. */
	p = tls_peer_connect(server, &(tls_peer_options){.alpn = {"h2"}});
	cr_assert(tls_peer_send(p, GET("/hello")));
	cr_expect(ne(int, tls_peer_end(p), TLS_HANGS));
	tls_peer_cut(p);
	for (int asked = 0; asked < 2; asked++) {
		p = tls_peer_connect(server, &(tls_peer_options){.alpn = {asked ? "http/1.1" : NULL}});
		cr_assert(tls_peer_send(p, PREFACE) && tls_peer_send_bytes(p, empty_settings, 9));
		int status = status_of(p);
		cr_expect(status == 0 || (status >= 400 && status < 600), "HTTP/2 was served as %d", status);
		tls_peer_cut(p);
	}
	cr_expect(eq(int, seen.entered, 0));
	http_peer_stop(server);
}

/* ---- Back-pressure ----------------------------------------------------------------------------------- */

static ssize_t receive_some(tls_peer *p, unsigned char *data, size_t size)
{
	ssize_t got;
	do {
		got = gnutls_record_recv(tls_peer_session(p), data, size);
	} while (got < 0 && !gnutls_error_is_fatal((int)got));
	return got;
}

static bool stalled(void *arg)
{
	size_t *last = arg, now = seen.written;
	struct pollfd none = {.fd = -1};
	poll(&none, 1, 100);
	bool same = now == *last && now > 0;
	*last = now;
	return same;
}

/* A reader that stops stops the writer, before much has been buffered; going on it misses nothing. */
Test(http_bridge, a_slow_reader_slows_the_writer, .timeout = 120)
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
	while ((got = receive_some(p, piece, sizeof(piece))) > 0)
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

Test(http_bridge, a_reader_that_stops_is_cut, .timeout = 60)
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

Test(http_bridge, a_reader_that_leaves_stops_the_writer, .timeout = 60)
{
	http_peer_server *server = serve((http_server_options){0});
	for (size_t w = 0; w < WAYS; w++) {
		int done = seen.done, left = seen.left;
		size_t last = 0;
		tls_peer *p = tls_peer_connect(server, NULL);
		cr_assert(tls_peer_send(p, GET("/flood")));
		cr_assert(eventually(stalled, &last, 20000));
		ways[w].leave(p);
		cr_assert(eventually_counts(&seen.done, done + 1, 10000), "%s", ways[w].name);
		cr_expect(eq(int, seen.left, left + 1), "%s", ways[w].name);
		if (ways[w].stays)
			tls_peer_cut(p);
		cr_assert(eventually(http_peer_is_quiet, server, 10000), "%s", ways[w].name);
	}
	http_peer_stop(server);
}

/* ---- The server's own ends --------------------------------------------------------------------------- */

Test(http_bridge, idle_connections_end_with_close_notify, .timeout = 60)
{
	http_peer_server *server = serve((http_server_options){.idle_timeout = 200 * CTX_MILLISECOND});
	tls_peer *p = tls_peer_connect(server, NULL);
	cr_assert(tls_peer_send(p, GET("/hello")));
	cr_expect(eq(int, status_of(p), 200));
	cr_expect(eq(int, tls_peer_end(p), TLS_CLOSE_NOTIFY));
	tls_peer_cut(p);
	cr_expect(eventually(http_peer_is_quiet, server, 10000));
	http_peer_stop(server);
}

Test(http_bridge, a_drain_ends_all, .timeout = 60)
{
	http_peer_server *server = serve((http_server_options){.drain_timeout = 500 * CTX_MILLISECOND});
	int silent = http_peer_connect(server), half = http_peer_connect(server);
	http_peer_send_bytes(half, "\x16\x03\x01\x02", 4);
	tls_peer *fresh = tls_peer_connect(server, NULL), *used = tls_peer_connect(server, NULL);
	tls_peer *asleep = tls_peer_connect(server, NULL), *waiting = tls_peer_connect(server, NULL);
	tls_peer *flooded = tls_peer_connect(server, NULL);
	cr_assert(tls_peer_send(used, GET("/hello")));
	cr_expect(eq(int, status_of(used), 200));
	cr_assert(tls_peer_send(asleep, GET("/sleep")));
	cr_assert(tls_peer_send(waiting, GET("/wait")));
	cr_assert(tls_peer_send(flooded, GET("/flood")));
	cr_assert(eventually_counts(&seen.entered, 3, 10000));
	http_peer_drain(server);
	cr_expect(eq(int, tls_peer_end(fresh), TLS_CLOSE_NOTIFY));
	cr_expect(eq(int, tls_peer_end(used), TLS_CLOSE_NOTIFY));
	cr_expect(http_peer_closed(silent));
	cr_expect(eq(int, status_of(asleep), 200));
	cr_expect(eq(int, tls_peer_end(asleep), TLS_CLOSE_NOTIFY));
	cr_expect(eq(int, status_of(waiting), 200), "a handler cancelled by the drain could not answer");
	cr_expect(http_peer_closed(half));
	cr_expect(eq(int, http_peer_stop(server), 0));
	cr_expect(eq(int, seen.done, 4));
	close(silent);
	close(half);
	tls_peer_cut(fresh);
	tls_peer_cut(used);
	tls_peer_cut(asleep);
	tls_peer_cut(waiting);
	tls_peer_cut(flooded);
}

/* ---- What it costs ----------------------------------------------------------------------------------- */

Test(http_bridge, a_connection_counts_once, .timeout = 60)
{
	http_peer_server *server = serve((http_server_options){.connections = 2});
	tls_peer *first = tls_peer_connect(server, NULL), *second = tls_peer_connect(server, NULL);
	cr_assert(tls_peer_send(first, GET("/hello")) && tls_peer_send(second, GET("/hello")));
	cr_expect(eq(int, status_of(first), 200));
	cr_expect(eq(int, status_of(second), 200));
	http_server_stats stats;
	http_server_stats_get(http_peer_server_of(server), &stats);
	cr_expect(eq(sz, stats.connections, 2));
	int third = http_peer_connect(server);
	cr_expect(http_peer_closed(third));
	close(third);
	tls_peer_close(first);
	tls_peer_close(second);
	cr_expect(eventually(http_peer_is_quiet, server, 10000));
	http_server_stats_get(http_peer_server_of(server), &stats);
	cr_expect(eq(u64, stats.connections_refused, 1));
	expect_serves(server);
	http_peer_stop(server);
}

static size_t open_files(void)
{
	size_t n = 0;
	DIR *dir = opendir("/proc/self/fd");
	while (readdir(dir))
		n++;
	closedir(dir);
	return n;
}

struct baseline {
	http_peer_server *server;
	size_t files;
};

/* A connection counts no more a moment before its descriptors are closed: the baseline may have seen some of those. */
static bool back_at_baseline(void *arg)
{
	const struct baseline *baseline = arg;
	return http_peer_is_quiet(baseline->server) && open_files() <= baseline->files;
}

/* Every way of leaving, in the middle of a request, a thousand times over all. */
Test(http_bridge, a_thousand_leave_nothing_behind, .timeout = 300)
{
	enum { BATCH = 50 };
	const int total = support_patience() > 5 ? 200 : 1000;
	struct baseline baseline = {.server = serve((http_server_options){.workers = 2})};
	expect_serves(baseline.server);
	cr_assert(eventually(http_peer_is_quiet, baseline.server, 10000));
	baseline.files = open_files();
	for (int i = 0; i < total; i += BATCH) {
		tls_peer *peers[BATCH];
		int entered = seen.entered;
		for (int j = 0; j < BATCH; j++) {
			peers[j] = tls_peer_connect(baseline.server, NULL);
			cr_assert(tls_peer_send(peers[j], GET("/wait")));
		}
		cr_assert(eventually_counts(&seen.entered, entered + BATCH, 10000));
		for (int j = 0; j < BATCH; j++)
			ways[j % WAYS].leave(peers[j]);
		for (int j = 0; j < BATCH; j++)
			if (ways[j % WAYS].stays)
				tls_peer_cut(peers[j]);
	}
	cr_expect(eventually(back_at_baseline, &baseline, 10000));
	cr_expect(eq(int, seen.left, total));
	http_peer_stop(baseline.server);
}
