/*
 * HTTPS: what is agreed on, who is let in, and that what is behind TLS is the same service as without.
 */
#include <criterion/criterion.h>
#include <criterion/new/assert.h>
#include <errno.h>
#include <netinet/in.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "alloc_fault.h"
#include "certificates.h"
#include "http_peer.h"
#include "support.h"
#include "tls_peer.h"

/* ---- A server ---------------------------------------------------------------------------------------- */

static void answers(http_request *request, http_response *response)
{
	http_response_text(response, http_request_is_encrypted(request) ? 200 : 500, "hello");
}

static void echoes(http_request *request, http_response *response)
{
	size_t size;
	const char *body = http_body(request, &size);
	http_response_body(response, 200, "application/octet-stream", body, size);
}

static void names(http_request *request, http_response *response)
{
	const http_client_certificate *client = http_request_client_certificate(request);
	char text[256] = "nobody";
	if (client)
		snprintf(text, sizeof(text), "%s %zu %s", client->subject, strlen(client->fingerprint),
		         client->der_size > 100 ? "der" : "");
	http_response_text(response, 200, text);
}

static void tells_peer(http_request *request, http_response *response)
{
	http_response_text(response, 200, http_request_peer(request));
}

static const http_peer_route routes[] = {{"GET /hello", answers, NULL},
                                         {"POST /echo", echoes, NULL},
                                         {"GET /name", names, NULL},
                                         {"GET /peer", tells_peer, NULL},
                                         {0}};

static http_tls *make_tls(const char *client_ca, bool optional)
{
	const certificates *c = certificates_get();
	char error[256] = "";
	http_tls *tls = http_tls_new(&(http_tls_options){.certificate = c->server,
	                                                 .key = c->server_key,
	                                                 .client_ca = client_ca,
	                                                 .client_optional = optional},
	                             error, sizeof(error));
	cr_assert_not_null(tls, "%s", error);
	return tls;
}

/* With a certificate that nobody but the server holds on to. */
static http_peer_server *serve(const http_server_options *options)
{
	http_tls *tls = make_tls(NULL, false);
	http_peer_server *server = http_peer_serve_tls(options, routes, tls);
	http_tls_free(tls);
	return server;
}

static void expect_get(tls_peer *p, const char *target, int status, const char *body)
{
	char head[256];
	snprintf(head, sizeof(head), "GET %s HTTP/1.1\r\nHost: localhost\r\n\r\n", target);
	cr_assert(tls_peer_send(p, head));
	http_peer_response response = tls_peer_read(p, false);
	cr_assert(eq(int, response.status, status));
	if (body)
		cr_expect(eq(str, response.body, (char *)body));
	http_peer_clear(&response);
}

/* ---- What is agreed on ------------------------------------------------------------------------------- */

#define ONLY_1_1 "NORMAL:-VERS-ALL:+VERS-TLS1.1"
#define ONLY_1_2 "NORMAL:-VERS-ALL:+VERS-TLS1.2"
#define ONLY_1_3 "NORMAL:-VERS-ALL:+VERS-TLS1.3"

Test(http_tls, speaks_tls_1_2_and_1_3, .timeout = 60)
{
	http_peer_server *server = serve(NULL);
	const struct {
		const char *priorities;
		gnutls_protocol_t version;
	} versions[] = {{"NORMAL", GNUTLS_TLS1_3}, {ONLY_1_3, GNUTLS_TLS1_3}, {ONLY_1_2, GNUTLS_TLS1_2}};
	for (size_t i = 0; i < sizeof(versions) / sizeof(*versions); i++) {
		tls_peer *p =
			tls_peer_connect(server, &(tls_peer_options){.priorities = versions[i].priorities});
		cr_expect(eq(int, gnutls_protocol_get_version(tls_peer_session(p)), versions[i].version));
		for (int n = 0; n < 3; n++)
			expect_get(p, "/hello", 200, "hello");
		tls_peer_close(p);
	}
	cr_expect(eventually(http_peer_is_quiet, server, 10000));
	cr_expect(eq(int, http_peer_stop(server), 0));
}

/* What must not be agreed on, and what the client is told. */
Test(http_tls, refuses_what_is_weak, .timeout = 60)
{
	http_peer_server *server = serve(NULL);
	const char *const refused[] = {
		ONLY_1_1 ":%COMPAT:-SIGN-ALL:+SIGN-ECDSA-SHA1",
		ONLY_1_2 ":-CIPHER-ALL:+AES-128-CBC",
		ONLY_1_3 ":-GROUP-ALL:+GROUP-FFDHE8192",
	};
	for (size_t i = 0; i < sizeof(refused) / sizeof(*refused); i++) {
		tls_peer *p = tls_peer_new(http_peer_connect(server),
		                           &(tls_peer_options){.priorities = refused[i]});
		int result = tls_peer_handshake(p);
		cr_expect(result < 0, "%s was agreed on", refused[i]);
		tls_peer_cut(p);
	}
	cr_expect(eventually(http_peer_is_quiet, server, 10000));
	http_peer_stop(server);
}

Test(http_tls, alpn_decides, .timeout = 60)
{
	http_peer_server *server = serve(NULL);
	gnutls_datum_t chosen;
	tls_peer *p = tls_peer_connect(server, &(tls_peer_options){.alpn = {"spdy/3", "http/1.1"}});
	cr_expect(eq(int, gnutls_alpn_get_selected_protocol(tls_peer_session(p), &chosen), 0));
	cr_expect(chosen.size == 8 && memcmp(chosen.data, "http/1.1", 8) == 0);
	expect_get(p, "/hello", 200, "hello");
	tls_peer_close(p);

	for (int version = 2; version <= 3; version++) {
		p = tls_peer_new(http_peer_connect(server),
		                 &(tls_peer_options){.priorities = version == 2 ? ONLY_1_2 : ONLY_1_3,
		                                     .alpn = {"spdy/3", "http/1.0"}});
		cr_expect(eq(int, tls_peer_handshake(p), GNUTLS_E_FATAL_ALERT_RECEIVED));
		cr_expect(eq(int, gnutls_alert_get(tls_peer_session(p)), GNUTLS_A_NO_APPLICATION_PROTOCOL));
		tls_peer_cut(p);
	}
	cr_expect(eventually(http_peer_is_quiet, server, 10000));
	http_peer_stop(server);
}

/* A second connection resumes the first one's session; after a reload none does. */
Test(http_tls, sessions_are_resumed_until_a_reload, .timeout = 60)
{
	for (int version = 2; version <= 3; version++) {
		http_tls *tls = make_tls(NULL, false);
		http_peer_server *server = http_peer_serve_tls(NULL, routes, tls);
		tls_peer_options options = {.priorities = version == 2 ? ONLY_1_2 : ONLY_1_3};
		gnutls_datum_t ticket;
		tls_peer *p = tls_peer_connect(server, &options);
		expect_get(p, "/hello", 200, "hello");
		cr_assert(eq(int, gnutls_session_get_data2(tls_peer_session(p), &ticket), 0));
		tls_peer_close(p);
		options.resume = &ticket;
		for (int reloaded = 0; reloaded < 2; reloaded++) {
			p = tls_peer_connect(server, &options);
			cr_expect(eq(int, gnutls_session_is_resumed(tls_peer_session(p)) != 0, !reloaded),
			          "TLS 1.%d", version);
			expect_get(p, "/hello", 200, "hello");
			tls_peer_close(p);
			cr_assert(eq(int, http_tls_reload(tls, NULL, 0), 0));
		}
		gnutls_free(ticket.data);
		http_peer_stop(server);
		http_tls_free(tls);
	}
}

/* ---- The same service as without --------------------------------------------------------------------- */

Test(http_tls, the_peer_is_the_client, .timeout = 60)
{
	http_peer_server *server = serve(NULL);
	tls_peer *p = tls_peer_connect(server, NULL);
	struct sockaddr_in in = {0};
	socklen_t size = sizeof(in);
	char own[64];
	cr_assert(eq(int, getsockname(tls_peer_fd(p), (struct sockaddr *)&in, &size), 0));
	snprintf(own, sizeof(own), "127.0.0.1:%d", ntohs(in.sin_port));
	expect_get(p, "/peer", 200, own);
	tls_peer_close(p);
	http_peer_stop(server);
}

/* Bodies of all sizes around a record's, both ways. */
Test(http_tls, bodies_arrive_as_they_were_sent, .timeout = 120)
{
	http_peer_server *server = serve(NULL);
	const size_t sizes[] = {0, 1, 16383, 16384, 16385, 65536, 100001, 1 << 20};
	char *body = malloc(1 << 20);
	for (size_t i = 0; i < 1 << 20; i++)
		body[i] = (char)(i * 31 + i / 251);
	tls_peer *p = tls_peer_connect(server, NULL);
	for (size_t i = 0; i < sizeof(sizes) / sizeof(*sizes); i++) {
		char head[128];
		snprintf(head, sizeof(head), "POST /echo HTTP/1.1\r\nHost: h\r\nContent-Length: %zu\r\n\r\n",
		         sizes[i]);
		cr_assert(tls_peer_send(p, head));
		cr_assert(tls_peer_send_bytes(p, body, sizes[i]));
		http_peer_response response = tls_peer_read(p, false);
		cr_assert(eq(int, response.status, 200), "%zu bytes", sizes[i]);
		cr_assert(eq(sz, response.body_size, sizes[i]));
		cr_expect(memcmp(response.body, body, sizes[i]) == 0, "%zu bytes", sizes[i]);
		http_peer_clear(&response);
	}
	tls_peer_close(p);
	free(body);
	http_peer_stop(server);
}

/* A thousand requests without waiting for an answer: both directions are full at once. */
Test(http_tls, pipelined_requests_are_all_answered, .timeout = 120)
{
	enum { COUNT = 1000 };
	http_peer_server *server = serve(NULL);
	tls_peer *p = tls_peer_connect(server, NULL);
	for (int i = 0; i < COUNT; i++)
		cr_assert(tls_peer_send(p, "GET /hello HTTP/1.1\r\nHost: localhost\r\n\r\n"));
	for (int i = 0; i < COUNT; i++) {
		http_peer_response response = tls_peer_read(p, false);
		cr_assert(eq(int, response.status, 200), "the answer %d", i);
		http_peer_clear(&response);
	}
	tls_peer_close(p);
	http_peer_stop(server);
}

/* The server's close is seen for what it is: whole by close_notify. */
Test(http_tls, the_server_says_close_notify, .timeout = 60)
{
	http_peer_server *server = serve(NULL);
	tls_peer *p = tls_peer_connect(server, NULL);
	cr_assert(tls_peer_send(p, "GET /hello HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n"));
	http_peer_response response = tls_peer_read(p, false);
	cr_expect(eq(int, response.status, 200));
	http_peer_clear(&response);
	cr_expect(eq(int, tls_peer_end(p), TLS_CLOSE_NOTIFY));
	tls_peer_close(p);
	http_peer_stop(server);
}

/* An answer before the body is read, and the rest of the body then: the answer arrives, and the end is no reset. */
Test(http_tls, an_early_refusal_arrives, .timeout = 60)
{
	http_peer_server *server = serve(&(http_server_options){.body_size = 1000});
	for (int i = 0; i < 20; i++) {
		tls_peer *p = tls_peer_connect(server, NULL);
		char piece[16384] = {0};
		cr_assert(
			tls_peer_send(p, "POST /echo HTTP/1.1\r\nHost: h\r\nContent-Length: 200000\r\n\r\n"));
		for (int n = 0; n < 12; n++)
			tls_peer_send_bytes(p, piece, sizeof(piece));
		http_peer_response response = tls_peer_read(p, false);
		cr_assert(eq(int, response.status, 413), "round %d", i);
		http_peer_clear(&response);
		cr_expect(eq(int, tls_peer_end(p), TLS_CLOSE_NOTIFY));
		tls_peer_close(p);
	}
	http_peer_stop(server);
}

/* ---- Whose certificate ------------------------------------------------------------------------------- */

Test(http_tls, a_reload_is_for_those_who_come, .timeout = 60)
{
	const certificates *c = certificates_get();
	http_tls *tls = make_tls(NULL, false);
	http_peer_server *server = http_peer_serve_tls(NULL, routes, tls);
	char error[256];
	tls_peer *before = tls_peer_connect(server, NULL);
	cr_expect(eq(int, tls_peer_serial(before), 2));

	/* The renewed certificate is there, its key is not yet: nothing changes. */
	certificates_replace(c->server, c->renewed);
	cr_expect(eq(int, http_tls_reload(tls, error, sizeof(error)), -1));
	cr_expect(eq(int, errno, EINVAL));
	cr_expect(strstr(error, c->server_key) && strstr(error, c->server), "%s", error);
	tls_peer *between = tls_peer_connect(server, NULL);
	cr_expect(eq(int, tls_peer_serial(between), 2));

	certificates_replace(c->server_key, c->renewed_key);
	cr_expect(eq(int, http_tls_reload(tls, error, sizeof(error)), 0));
	tls_peer *after = tls_peer_connect(server, NULL);
	cr_expect(eq(int, tls_peer_serial(after), 3));
	expect_get(before, "/hello", 200, "hello");
	expect_get(between, "/hello", 200, "hello");
	expect_get(after, "/hello", 200, "hello");
	tls_peer_close(before);
	tls_peer_close(between);
	tls_peer_close(after);
	http_peer_stop(server);
	http_tls_free(tls);
}

/* Reloads while others shake hands: each has one certificate or the other, whole. */
struct reloader {
	http_tls *tls;
	atomic_bool stop;
	int reloads;
};

static void *reload_on_and_on(void *arg)
{
	struct reloader *r = arg;
	while (!atomic_load(&r->stop))
		r->reloads += http_tls_reload(r->tls, NULL, 0) == 0;
	return NULL;
}

Test(http_tls, reloads_race_handshakes, .timeout = 120)
{
	struct reloader reloader = {.tls = make_tls(NULL, false)};
	http_peer_server *server =
		http_peer_serve_tls(&(http_server_options){.workers = 2}, routes, reloader.tls);
	pthread_t thread;
	cr_assert(eq(int, pthread_create(&thread, NULL, reload_on_and_on, &reloader), 0));
	for (int i = 0; i < 50; i++) {
		tls_peer *p = tls_peer_connect(server, NULL);
		expect_get(p, "/hello", 200, "hello");
		tls_peer_close(p);
	}
	atomic_store(&reloader.stop, true);
	pthread_join(thread, NULL);
	cr_expect(ge(int, reloader.reloads, 2));
	http_peer_stop(server);
	http_tls_free(reloader.tls);
}

static void expect_error(const http_tls_options *options, int number, const char *names, const char *why)
{
	char error[256] = "";
	errno = 0;
	http_tls *tls = http_tls_new(options, error, sizeof(error));
	cr_expect_null(tls);
	cr_expect(eq(int, errno, number), "%s", error);
	cr_expect(strstr(error, names) && strstr(error, why), "%s", error);
	http_tls_free(tls);
}

Test(http_tls, says_what_is_wrong_with_a_file, .timeout = 60)
{
	const certificates *c = certificates_get();
	expect_error(&(http_tls_options){.certificate = "/nowhere.pem", .key = c->server_key}, ENOENT,
	             "certificate /nowhere.pem", "No such file");
	expect_error(&(http_tls_options){.certificate = c->server, .key = "/nowhere.key"}, ENOENT,
	             "key /nowhere.key", "No such file");
	expect_error(&(http_tls_options){.certificate = c->server, .key = c->dir}, EISDIR, c->dir,
	             "directory");
	expect_error(&(http_tls_options){.certificate = c->server, .key = c->renewed_key}, EINVAL,
	             c->renewed_key, c->server);
	expect_error(&(http_tls_options){.certificate = c->server_key, .key = c->server_key}, EINVAL,
	             "certificate ", c->server_key);
	expect_error(&(http_tls_options){.certificate = c->server, .key = c->server}, EINVAL, "key ",
	             c->server);
	expect_error(&(http_tls_options){.certificate = c->server}, EINVAL, "key ", c->server);
	expect_error(&(http_tls_options){.certificate = c->server,
	                                 .key = c->server_key,
	                                 .client_ca = "/nowhere.ca"},
	             ENOENT, "client CA /nowhere.ca", "No such file");
	expect_error(&(http_tls_options){.certificate = c->server,
	                                 .key = c->server_key,
	                                 .client_ca = c->server_key},
	             EINVAL, "client CA ", c->server_key);
	expect_error(&(http_tls_options){.certificate = "/dev/zero", .key = c->server_key}, EFBIG,
	             "/dev/zero", "large");
	expect_error(&(http_tls_options){0}, EINVAL, "certificate", "");
}

/* ---- Who the client is ------------------------------------------------------------------------------- */

/* A handshake that a server refuses after its own part is over (TLS 1.3) is known by the first read. */
static bool is_refused(tls_peer *p)
{
	if (tls_peer_handshake(p) != 0)
		return true;
	tls_peer_send(p, "GET /name HTTP/1.1\r\nHost: localhost\r\n\r\n");
	http_peer_response response = tls_peer_read(p, false);
	bool refused = response.status <= 0;
	http_peer_clear(&response);
	return refused;
}

Test(http_tls, client_certificates, .timeout = 60)
{
	const certificates *c = certificates_get();
	for (int optional = 0; optional < 2; optional++) {
		http_tls *tls = make_tls(c->ca, optional);
		http_peer_server *server = http_peer_serve_tls(NULL, routes, tls);
		http_tls_free(tls);
		for (int version = 2; version <= 3; version++) {
			const char *priorities = version == 2 ? ONLY_1_2 : ONLY_1_3;
			gnutls_datum_t ticket;
			tls_peer_options alice = {
				.priorities = priorities, .certificate = c->client, .key = c->client_key};
			tls_peer_options mallory = {
				.priorities = priorities, .certificate = c->stranger, .key = c->stranger_key};
			tls_peer_options servers_own = {
				.priorities = priorities, .certificate = c->server, .key = c->server_key};
			tls_peer_options nobody = {.priorities = priorities};

			tls_peer *p = tls_peer_connect(server, &alice);
			expect_get(p, "/name", 200, "CN=alice,O=Example 64 der");
			gnutls_session_get_data2(tls_peer_session(p), &ticket);
			tls_peer_close(p);

			/* Who resumes a session is who began it. */
			alice.resume = &ticket;
			p = tls_peer_connect(server, &alice);
			cr_expect(gnutls_session_is_resumed(tls_peer_session(p)));
			expect_get(p, "/name", 200, "CN=alice,O=Example 64 der");
			tls_peer_close(p);
			gnutls_free(ticket.data);

			p = tls_peer_new(http_peer_connect(server), &mallory);
			/* GnuTLS's client shows no certificate that nobody asked for: force it. */
			cr_expect(eq(int, is_refused(p), !optional), "TLS 1.%d, optional %d", version,
			          optional);
			tls_peer_cut(p);
			p = tls_peer_new(http_peer_connect(server), &servers_own);
			cr_expect(is_refused(p), "a certificate for servers was taken from a client");
			tls_peer_cut(p);
			p = tls_peer_new(http_peer_connect(server), &nobody);
			if (optional) {
				cr_assert(eq(int, tls_peer_handshake(p), 0));
				expect_get(p, "/name", 200, "nobody");
			} else {
				cr_expect(is_refused(p));
			}
			tls_peer_cut(p);
		}
		cr_expect(eventually(http_peer_is_quiet, server, 10000));
		http_peer_stop(server);
	}
}

/* ---- Memory that fails ------------------------------------------------------------------------------- */

Test(http_tls, survives_allocations_that_fail, .timeout = 60)
{
	const certificates *c = certificates_get();
	const http_tls_options options = {
		.certificate = c->server, .key = c->server_key, .client_ca = c->ca, .client_optional = true};
	char error[256];
	bool failed = true;
	for (unsigned n = 1; failed; n++) {
		cr_assert(lt(uint, n, 100));
		fault_set(FAULT_MEMORY, n);
		http_tls *tls = http_tls_new(&options, error, sizeof(error));
		failed = fault_clear(FAULT_MEMORY);
		cr_expect(eq(int, !tls, failed));
		http_tls_free(tls);
	}
	http_tls *tls = http_tls_new(&options, error, sizeof(error));
	failed = true;
	for (unsigned n = 1; failed; n++) {
		fault_set(FAULT_MEMORY, n);
		int result = http_tls_reload(tls, error, sizeof(error));
		failed = fault_clear(FAULT_MEMORY);
		cr_expect(eq(int, result, failed ? -1 : 0));
	}
	http_peer_server *server = http_peer_serve_tls(NULL, routes, tls);
	http_tls_free(tls);
	tls_peer *p = tls_peer_connect(server, NULL);
	expect_get(p, "/hello", 200, "hello"); /* all of the server's beginning is over */
	failed = true;
	for (unsigned n = 1; failed; n++) {
		cr_assert(lt(uint, n, 100));
		fault_set_process(FAULT_MEMORY, n);
		int fd = http_peer_connect(server);
		char nothing[] = "\x16\x03\x01";
		http_peer_send(fd, nothing);
		shutdown(fd, SHUT_WR);
		cr_expect(http_peer_closed(fd), "n = %u", n);
		failed = fault_clear(FAULT_MEMORY);
		close(fd);
	}
	expect_get(p, "/hello", 200, "hello");
	tls_peer_close(p);
	http_peer_stop(server);
}
