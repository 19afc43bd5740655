/*
 * What a connection costs in memory while it does nothing, and a request while it waits: the resident size of the
 * server's process for thousands of them. Their clients live in the same process, and cost it only descriptors.
 */
#include <criterion/criterion.h>
#include <criterion/new/assert.h>
#include <malloc.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <unistd.h>

#include "certificates.h"
#include "http_peer.h"
#include "support.h"
#include "tls_peer.h"
#include "watched.h"

enum {
	IDLE = 2000,
	WAITING = 1000,
	IDLE_BYTES = 16 * 1024, /* promised, for each */
	WAITING_BYTES = 32 * 1024,
	TLS_BYTES = 28 * 1024,
};

static const http_peer_route routes[] = {
	{"GET /", answers_hello, NULL}, {"GET /wait", waits_until_done, NULL}, {0}};

/* Asks for path, by TLS if it is. */
static int ask(const http_peer_server *server, const char *path, bool answered, bool tls)
{
	char request[512];
	snprintf(request, sizeof(request),
	         "GET %s HTTP/1.1\r\nHost: localhost:8080\r\nUser-Agent: curl/7.88.1\r\nAccept: */*\r\n\r\n",
	         path);
	tls_peer *peer = tls ? tls_peer_connect(server, NULL) : NULL;
	int fd = tls ? tls_peer_fd(peer) : http_peer_connect(server);
	cr_assert(tls ? tls_peer_send(peer, request) : http_peer_send(fd, request));
	if (answered) {
		http_peer_response response = tls ? tls_peer_read(peer, false) : http_peer_read(fd, false);
		cr_assert(eq(int, response.status, 200));
		http_peer_clear(&response);
	}
	return tls ? tls_peer_forget(peer) : fd;
}

/* Connects that many, which ask for path; with its answer, if there is to be one. */
static int *ask_all(http_peer_server *server, int count, const char *path, bool answered, bool tls)
{
	struct rlimit files;
	getrlimit(RLIMIT_NOFILE, &files);
	files.rlim_cur = files.rlim_max;
	setrlimit(RLIMIT_NOFILE, &files);
	if (files.rlim_cur < 2 * (rlim_t)count + 100)
		cr_skip_test("it takes %d descriptors", 2 * count + 100);
	int *fds = calloc((size_t)count, sizeof(*fds));
	for (int i = 0; i < count; i++)
		fds[i] = ask(server, path, answered, tls);
	return fds;
}

static void close_all(int *fds, int count)
{
	for (int i = 0; i < count; i++)
		close(fds[i]);
	free(fds);
}

static bool all_wait(void *unused)
{
	(void)unused;
	return atomic_load(&seen.entered) == WAITING;
}

/* A sanitizer's own bookkeeping is no part of the figure. */
static void expect_at_most(size_t bytes, size_t most)
{
	if (support_patience() == 1)
		cr_expect(le(sz, bytes, most));
}

Test(http_memory, of_an_idle_connection, .timeout = 120)
{
	http_peer_server *server = http_peer_serve(NULL, routes);
	close_all(ask_all(server, 10, "/", true, false), 10);
	size_t before = (size_t)support_resident_kib() * 1024;
	int *fds = ask_all(server, IDLE, "/", true, false);
	size_t each = ((size_t)support_resident_kib() * 1024 - before) / IDLE;
	fprintf(stderr, "an idle connection: %zu bytes\n", each);
	expect_at_most(each, IDLE_BYTES);
	close_all(fds, IDLE);
	http_peer_stop(server);
}

/* What it says of itself: twice as much as a head may take, and some. */
Test(http_memory, of_an_idle_connection_with_large_heads, .timeout = 120)
{
	http_server_options options = {.head_size = 16 * 1024};
	http_peer_server *server = http_peer_serve(&options, routes);
	close_all(ask_all(server, 10, "/", true, false), 10);
	size_t before = (size_t)support_resident_kib() * 1024;
	int *fds = ask_all(server, IDLE / 4, "/", true, false);
	size_t each = ((size_t)support_resident_kib() * 1024 - before) / (IDLE / 4);
	fprintf(stderr, "an idle connection with large heads: %zu bytes\n", each);
	expect_at_most(each, 46 * 1024);
	close_all(fds, IDLE / 4);
	http_peer_stop(server);
}

/* Most of what it takes more is GnuTLS's session. */
Test(http_memory, of_an_idle_connection_by_tls, .timeout = 120)
{
	const certificates *c = certificates_get();
	char error[256];
	http_tls *tls = http_tls_new(&(http_tls_options){.certificate = c->server, .key = c->server_key},
	                             error, sizeof(error));
	cr_assert_not_null(tls, "%s", error);
	http_peer_server *server = http_peer_serve_tls(NULL, routes, tls);
	http_tls_free(tls);
	close_all(ask_all(server, 100, "/", true, true), 100);
	size_t before = (size_t)support_resident_kib() * 1024;
	int *fds = ask_all(server, IDLE / 2, "/", true, true);
	size_t each = ((size_t)support_resident_kib() * 1024 - before) / (IDLE / 2);
	fprintf(stderr, "an idle connection by TLS: %zu bytes\n", each);
	expect_at_most(each, TLS_BYTES);
	close_all(fds, IDLE / 2);
	http_peer_stop(server);
}

Test(http_memory, of_a_waiting_request, .timeout = 120)
{
	http_peer_server *server = http_peer_serve(NULL, routes);
	close_all(ask_all(server, 10, "/", true, false), 10);
	size_t before = (size_t)support_resident_kib() * 1024;
	int *fds = ask_all(server, WAITING, "/wait", false, false);
	cr_assert(eventually(all_wait, NULL, 60000));
	size_t each = ((size_t)support_resident_kib() * 1024 - before) / WAITING;
	fprintf(stderr, "a waiting request: %zu bytes\n", each);
	expect_at_most(each, WAITING_BYTES);
	close_all(fds, WAITING);
	http_peer_stop(server);
}
