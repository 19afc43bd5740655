/*
 * What the bridge makes of those who do not speak TLS as they should, of keys that change, and of what was agreed on.
 */
#include <criterion/criterion.h>
#include <criterion/new/assert.h>

#include "bridges.h"

/* ---- Clients that are none --------------------------------------------------------------------------- */

Test(http_bridge_sessions, http_is_told_that_this_is_https, .timeout = 60)
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

Test(http_bridge_sessions, bad_handshakes_are_cut, .timeout = 120)
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
Test(http_bridge_sessions, slow_handshakes_are_cut, .timeout = 60)
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
Test(http_bridge_sessions, a_forged_record_ends_it, .timeout = 60)
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

Test(http_bridge_sessions, renegotiation_is_refused, .timeout = 60)
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
Test(http_bridge_sessions, keys_may_be_updated, .timeout = 60)
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

Test(http_bridge_sessions, alpn_decides_whatever_is_sent, .timeout = 60)
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
