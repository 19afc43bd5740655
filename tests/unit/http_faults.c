/*
 * Memory that fails while requests are served: each allocation that a worker makes for a connection, its requests and
 * their answers fails once, nghttp2's own included. The client has an answer, a reset or the connection's end each time,
 * and the next connection is served as if nothing had happened. (That nothing is leaked is for AddressSanitizer to say.)
 */
#include <criterion/criterion.h>
#include <criterion/new/assert.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include <tether/loop.h>

#include "alloc_fault.h"
#include "certificates.h"
#include "h2_peer.h"
#include "http_peer.h"
#include "support.h"
#include "tls_peer.h"

enum { ALLOCATIONS_MAX = 3000, HANGS_MS = 10000, UPLOAD = 150 * 1024, STREAM = 100 * 1024 };

/* ---- The server --------------------------------------------------------------------------------------------- */

static void hello(http_request *request, http_response *response)
{
	const char *name = http_query_value(request, "name");
	char header[64];
	for (int i = 0; i < 8; i++) {
		snprintf(header, sizeof(header), "X-Field-%d", i);
		http_response_header(response, header, "a value that is not all that short");
	}
	http_response_text(response, 200, name ? name : "hello");
}

static void echo(http_request *request, http_response *response)
{
	size_t size;
	const char *body = http_body(request, &size);
	http_response_text(response, 200, body);
}

static void stream(http_request *request, http_response *response)
{
	char data[1000];
	(void)request;
	memset(data, 'x', sizeof(data));
	for (size_t sent = 0; sent < STREAM; sent += sizeof(data))
		if (http_write(response, data, sizeof(data)) != 0)
			return;
}

static void weigh(http_request *request, http_response *response)
{
	char data[4096], text[32];
	size_t weight = 0;
	for (ssize_t n; (n = http_body_read(request, data, sizeof(data))) > 0;)
		weight += (size_t)n;
	snprintf(text, sizeof(text), "%zu", weight);
	http_response_text(response, 200, text);
}

static void waits(http_request *request, http_response *response)
{
	wait_done(http_request_ctx(request));
	http_response_text(response, 503, "");
}

/* ---- Faults, which are the worker's thread's ---------------------------------------------------------------- */

static void disarm(http_request *request, http_response *response)
{
	(void)request;
	http_response_text(response, 200, fault_clear(FAULT_MEMORY) ? "struck" : "not");
}

static void arm(http_request *request, http_response *response)
{
	(void)request;
	http_response_text(response, 200, "");
}

/* When all has been done for that request, so that what comes is the next connection's. */
static void on_done(http_request *request, const http_outcome *outcome, void *data)
{
	(void)outcome, (void)data;
	if (strcmp(http_request_path(request), "/arm") == 0)
		fault_set(FAULT_MEMORY, (unsigned)atoi(http_query_value(request, "n")));
}

static const http_peer_route routes[] = {{"GET /hello", hello, NULL},
                                         {"POST /echo", echo, NULL},
                                         {"GET /stream", stream, NULL},
                                         {"GET /wait", waits, NULL},
                                         {"GET /arm", arm, NULL},
                                         {"GET /disarm", disarm, NULL},
                                         {0}};

static http_peer_server *serve(http_tls *tls)
{
	http_peer_server *server =
		http_peer_prepare(&(http_server_options){.traces = true, .on_done = on_done, .workers = 1});
	http_server *s = http_peer_server_of(server);
	for (const http_peer_route *r = routes; r->pattern; r++)
		cr_assert(eq(int, http_handle(s, r->pattern, r->handler, r->data), 0));
	cr_assert(eq(
		int,
		http_handle_with(s, "POST /weigh", &(http_route_options){.streams_body = true}, weigh, NULL),
		0));
	http_peer_begin(server, tls);
	return server;
}

/* Asks on a connection that is told to be the last thing before, or after, the one under test. */
static http_peer_response control(http_peer_server *server, http_tls *tls, const char *path)
{
	char head[128];
	int fd = http_peer_connect(server);
	tls_peer *p = NULL;
	http_peer_response response = {.status = -1};
	snprintf(head, sizeof(head), "GET %s HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n", path);
	if (!tls) {
		http_peer_send(fd, head);
		response = http_peer_read(fd, false);
		http_peer_closed(fd);
		close(fd);
		return response;
	}
	p = tls_peer_new(fd, NULL);
	if (tls_peer_handshake(p) == 0 && tls_peer_send(p, head)) {
		response = tls_peer_read(p, false);
		tls_peer_end(p);
	}
	tls_peer_close(p);
	return response;
}

/*
 * Lets each allocation fail, one a round, while `scene` plays; until a round has fewer. It returns whether all that was
 * asked was answered, as it is while nothing fails.
 */
static void with_faults(bool (*scene)(http_peer_server *server), http_tls *tls)
{
	http_peer_server *server = serve(tls);
	bool struck = true;
	unsigned n;
	cr_assert(scene(server));
	for (n = 1; struck; n++) {
		char path[32];
		cr_assert(lt(uint, n, ALLOCATIONS_MAX));
		snprintf(path, sizeof(path), "/arm?n=%u", n);
		http_peer_response response = control(server, tls, path);
		cr_assert(eq(int, response.status, 200), "n = %u", n);
		http_peer_clear(&response);
		cr_assert(eventually(http_peer_is_quiet, server, HANGS_MS));
		int64_t began = now_ms();
		scene(server);
		cr_expect(lt(long, (long)(now_ms() - began), (long)HANGS_MS), "n = %u: something hangs", n);
		/* The fault may strike only here; then it was one too many for the scene, and this is tried again. */
		response = control(server, tls, "/disarm");
		if (response.status != 200) {
			http_peer_clear(&response);
			response = control(server, tls, "/disarm");
		}
		cr_assert(eq(int, response.status, 200), "n = %u: the next connection is not served", n);
		struck = strcmp(response.body, "struck") == 0;
		http_peer_clear(&response);
		cr_assert(eventually(http_peer_is_quiet, server, HANGS_MS), "n = %u: something is left", n);
	}
	fprintf(stderr, "%u allocations\n", n - 2);
	cr_expect(ge(uint, n, 11));
	cr_expect(eq(int, http_peer_stop(server), 0));
}

/* ---- HTTP/2 ------------------------------------------------------------------------------------------------- */

static bool is_over(const h2_peer *p, const h2_answer *answer)
{
	return answer->ended || answer->reset || p->closed;
}

static void send_body(h2_peer *p, uint32_t id, size_t size)
{
	static const char data[1024] = {0};
	for (size_t sent = 0; sent < size; sent += sizeof(data))
		if (!h2_peer_frame(p, H2_DATA, sent + sizeof(data) >= size ? H2_END_STREAM : 0, id, data,
		                   sizeof(data)))
			return;
}

static void ask_with_fields(h2_peer *p, uint32_t id)
{
	char value[1500];
	memset(value, 'v', sizeof(value) - 1);
	value[sizeof(value) - 1] = '\0';
	const char *const fields[] = {":method", "GET",  ":path",      "/hello?name=some%20one",
	                              ":scheme", "http", ":authority", "h",
	                              "cookie",  "a=b",  "cookie",     "c=d",
	                              "x-one",   value,  "x-two",      value,
	                              NULL};
	h2_peer_headers(p, id, H2_END_STREAM, fields);
}

static bool play_h2(http_peer_server *server)
{
	h2_peer *p = h2_peer_open(http_peer_connect(server));
	enum { LAST = 17 };
	bool all = true;
	h2_peer_preface(p);
	h2_peer_ask(p, 1, "GET", "/hello");
	h2_peer_begin(p, 3, "POST", "/echo");
	send_body(p, 3, 4 * 1024);
	h2_peer_ask(p, 5, "GET", "/stream");
	h2_peer_ask(p, 7, "GET", "/wait");
	h2_peer_begin(p, 9, "POST", "/weigh");
	send_body(p, 9, 48 * 1024);
	ask_with_fields(p, 11);
	h2_peer_ask(p, 13, "HEAD", "/stream");
	h2_peer_ask(p, 15, "GET", "/nowhere");
	h2_peer_number(p, H2_RST_STREAM, 7, H2_CANCEL);
	h2_peer_ask(p, LAST, "DELETE", "/hello");
	for (uint32_t id = 1; id <= LAST; id += 2) {
		if (id == 7)
			continue;
		const h2_answer *answer = h2_peer_answer(p, id);
		cr_expect(is_over(p, answer), "stream %u hangs", id);
		all = all && answer->ended && answer->status < 500;
		if (answer->ended && answer->status == 200 && id == 5)
			cr_expect(eq(sz, answer->body_size, ((STREAM + 999) / 1000) * 1000UL));
	}
	h2_peer_close(p);
	return all;
}

Test(http_faults, of_memory_over_h2, .timeout = 300)
{
	with_faults(play_h2, NULL);
}

/* ---- HTTP/1.1 ----------------------------------------------------------------------------------------------- */

/* One request after the other on a connection, and a new one where it ended. */
static bool ask_h1(http_peer_server *server, int *fd, const char *head, const void *body, size_t size,
                   bool to_head)
{
	if (*fd < 0)
		*fd = http_peer_connect(server);
	bool sent = http_peer_send(*fd, head) && (size == 0 || http_peer_send_bytes(*fd, body, size));
	http_peer_response response = http_peer_read(*fd, to_head);
	if (!sent || response.status <= 0 || http_peer_field(&response, "Connection")) {
		close(*fd);
		*fd = -1;
	}
	bool answered = response.status > 0 && response.status < 500;
	http_peer_clear(&response);
	return answered;
}

static bool play_h1(http_peer_server *server)
{
	static const char body[UPLOAD] = {0};
	char head[128];
	int fd = -1;
	bool all = true;
	all &= ask_h1(server, &fd, "GET /hello?name=some%20one HTTP/1.1\r\nHost: h\r\nCookie: a=b\r\n\r\n",
	              NULL, 0, false);
	all &= ask_h1(server, &fd, "POST /echo HTTP/1.1\r\nHost: h\r\nContent-Length: 4096\r\n\r\n", body,
	              4096, false);
	all &= ask_h1(server, &fd, "GET /stream HTTP/1.1\r\nHost: h\r\n\r\n", NULL, 0, false);
	snprintf(head, sizeof(head), "POST /weigh HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n\r\n", UPLOAD);
	all &= ask_h1(server, &fd, head, body, UPLOAD, false);
	all &= ask_h1(server, &fd, "HEAD /hello HTTP/1.1\r\nHost: h\r\n\r\n", NULL, 0, true);
	all &= ask_h1(server, &fd, "DELETE /hello HTTP/1.1\r\nHost: h\r\n\r\n", NULL, 0, false);
	if (fd >= 0)
		close(fd);
	fd = http_peer_connect(server);
	http_peer_send(fd, "GET /wait HTTP/1.1\r\nHost: h\r\n\r\n");
	http_peer_reset(fd);
	return all;
}

Test(http_faults, of_memory_over_h1, .timeout = 300)
{
	with_faults(play_h1, NULL);
}

/* ---- HTTPS: what is GnuTLS's own does not fail, the bridge's does ------------------------------------------- */

static bool play_tls(http_peer_server *server)
{
	static const char body[UPLOAD] = {0};
	const certificates *c = certificates_get();
	const tls_peer_options options = {.certificate = c->client, .key = c->client_key};
	tls_peer *p = tls_peer_new(http_peer_connect(server), &options);
	char head[128];
	bool all = false;
	snprintf(head, sizeof(head), "POST /weigh HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n\r\n", UPLOAD);
	if (tls_peer_handshake(p) == 0) {
		http_peer_response response = {.status = 0};
		if (tls_peer_send(p, "GET /stream HTTP/1.1\r\nHost: h\r\n\r\n"))
			response = tls_peer_read(p, false);
		bool goes_on = response.status > 0 && !http_peer_field(&response, "Connection");
		http_peer_clear(&response);
		if (goes_on && tls_peer_send(p, head) && tls_peer_send_bytes(p, body, UPLOAD)) {
			response = tls_peer_read(p, false);
			all = response.status == 200;
			http_peer_clear(&response);
		}
	}
	tls_peer_close(p);
	return all;
}

static void with_faults_over_tls(bool (*scene)(http_peer_server *server))
{
	const certificates *c = certificates_get();
	const http_tls_options options = {
		.certificate = c->server, .key = c->server_key, .client_ca = c->ca, .client_optional = true};
	http_tls *tls = http_tls_new(&options, NULL, 0);
	with_faults(scene, tls);
	http_tls_free(tls);
}

Test(http_faults, of_memory_over_tls, .timeout = 300)
{
	with_faults_over_tls(play_tls);
}

static bool send_frame(tls_peer *p, uint8_t type, uint8_t flags, uint8_t stream, const void *payload,
                       size_t size)
{
	uint8_t head[9] = {0, (uint8_t)(size >> 8), (uint8_t)size, type, flags, 0, 0, 0, stream};
	return tls_peer_send_bytes(p, head, sizeof(head)) &&
	       (size == 0 || tls_peer_send_bytes(p, payload, size));
}

static bool ask_over_tls(tls_peer *p, uint8_t stream, const char *path)
{
	const char *const fields[] = {":method", "GET",        ":path", path, ":scheme",
	                              "https",   ":authority", "h",     NULL};
	uint8_t block[256];
	size_t size = h2_block(block, sizeof(block), fields);
	return send_frame(p, H2_HEADERS, H2_END_STREAM | H2_END_HEADERS, stream, block, size) &&
	       send_frame(p, H2_WINDOW_UPDATE, 0, stream, "\0\1\0\0", 4);
}

/* All of size bytes; false: the connection has ended, or hangs. A session ticket makes GnuTLS say that there is none. */
static bool receive(tls_peer *p, uint8_t *data, size_t size)
{
	for (int tickets = 0; size > 0 && tickets < 5;) {
		ssize_t n = gnutls_record_recv(tls_peer_session(p), data, size);
		if (n == 0 || (n < 0 && gnutls_error_is_fatal((int)n)))
			break;
		tickets += n < 0;
		data += n > 0 ? n : 0;
		size -= n > 0 ? (size_t)n : 0;
	}
	return size == 0;
}

/* Reads until so many streams are over, or the connection is. Whether all have ended well. */
static bool read_streams(tls_peer *p, int left)
{
	uint8_t head[9], payload[16 * 1024];
	bool all = true;
	while (left > 0 && receive(p, head, sizeof(head))) {
		size_t size = (size_t)head[1] << 8 | head[2];
		bool carries = head[3] == H2_DATA || head[3] == H2_HEADERS;
		if (size > sizeof(payload) || !receive(p, payload, size) || head[3] == H2_GOAWAY)
			break;
		left -= head[3] == H2_RST_STREAM || (carries && (head[4] & H2_END_STREAM));
		all = all && head[3] != H2_RST_STREAM;
	}
	return all && left == 0;
}

static bool play_tls_h2(http_peer_server *server)
{
	static const char preface[] = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
	tls_peer *p = tls_peer_new(http_peer_connect(server), &(tls_peer_options){.alpn = {"h2"}});
	bool all = tls_peer_handshake(p) == 0 && tls_peer_send_bytes(p, preface, sizeof(preface) - 1) &&
	           send_frame(p, H2_SETTINGS, 0, 0, NULL, 0) &&
	           send_frame(p, H2_WINDOW_UPDATE, 0, 0, "\0\4\0\0", 4) && ask_over_tls(p, 1, "/stream") &&
	           ask_over_tls(p, 3, "/hello") && ask_over_tls(p, 5, "/stream") && read_streams(p, 3);
	tls_peer_close(p);
	return all;
}

Test(http_faults, of_memory_over_tls_and_h2, .timeout = 300)
{
	with_faults_over_tls(play_tls_h2);
}
