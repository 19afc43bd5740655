/*
 * What the programs that test the bridge share: a server by TLS, what its handlers have seen, and the ways in which a
 * client may leave it. As uploads.h all in a header.
 */
#ifndef TESTS_BRIDGES_H
#define TESTS_BRIDGES_H

#include <criterion/criterion.h>
#include <criterion/new/assert.h>
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

static inline bool on_request(http_request *request, void *data)
{
	(void)request, (void)data;
	atomic_fetch_add(&seen.begun, 1);
	return true;
}

static inline void on_done(http_request *request, const http_outcome *outcome, void *data)
{
	(void)request, (void)data;
	if (outcome->status == 499 && outcome->cause == &HTTP_CLIENT_DISCONNECTED)
		atomic_fetch_add(&seen.left, 1);
	atomic_fetch_add(&seen.done, 1);
}

static inline void waits(http_request *request, http_response *response)
{
	atomic_fetch_add(&seen.entered, 1);
	wait_done(http_request_ctx(request));
	seen.cause = ctx_cause(http_request_ctx(request));
	http_response_text(response, 200, "nobody will read this");
}

static inline void sleeps(http_request *request, http_response *response)
{
	atomic_fetch_add(&seen.entered, 1);
	if (wait_sleep(http_request_ctx(request), 50 * CTX_MILLISECOND) == 0)
		http_response_text(response, 200, "slept");
}

static inline void answers(http_request *request, http_response *response)
{
	(void)request;
	http_response_text(response, 200, "hello");
}

enum { STREAM_SIZE = 8 << 20, FLOOD = 1 << 30 };

static inline unsigned char byte_at(size_t at)
{
	return (unsigned char)(at * 31 + at / 251);
}

/* As many bytes as data says, in pieces of all sizes. */
static inline void streams(http_request *request, http_response *response)
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

static inline http_peer_server *serve(http_server_options options)
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

static inline int status_of(tls_peer *p)
{
	http_peer_response response = tls_peer_read(p, false);
	int status = response.status;
	http_peer_clear(&response);
	return status;
}

static inline void expect_serves(http_peer_server *server)
{
	tls_peer *p = tls_peer_connect(server, NULL);
	cr_expect(tls_peer_send(p, GET("/hello")));
	cr_expect(eq(int, status_of(p), 200));
	tls_peer_close(p);
}

/* For eventually(): the handler that streams writes no more; *arg is how much it had at the last look. */
static inline bool stalled(void *arg)
{
	size_t *last = arg, now = seen.written;
	struct pollfd none = {.fd = -1};
	poll(&none, 1, 100);
	bool same = now == *last && now > 0;
	*last = now;
	return same;
}

#endif
