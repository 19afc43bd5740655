/* SIGTERM over HTTP/2 and HTTPS: what is under way is served still, what takes too long is told so, and no client guesses. */
#include <criterion/criterion.h>
#include <criterion/new/assert.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "certificates.h"
#include "client.h"
#include "h2_peer.h"
#include "process.h"
#include "service.h"
#include "support.h"
#include "tls_peer.h"

enum { PATIENCE_MS = 20000 };

static const char brief[] = "/albums?delay=1s", lasting[] = "/albums?delay=55s";

static service *start(const char *drain_timeout, const char *cert, const char *key)
{
	return service_start((const char *const[]){"--drain-timeout", drain_timeout, "--query-timeout", "60s",
	                                           "--tls-cert", cert, "--tls-key", key, NULL});
}

/* Those cut are in the log, each with its reason, and PostgreSQL is left idle. */
static void expect_clean_end(service *s, int cut)
{
	cr_expect(eq(int, process_wait(s->albumd->process, PATIENCE_MS * support_patience()), 0));
	cr_expect(activity_becomes(s->activity, (activity_of){.application = s->application}, 0, 2000),
	          "it has left connections to PostgreSQL");
	cr_expect(eq(int, service_log_count(s, "shutdown"), cut));
	json_t *line = cut ? service_log(s, lasting, 0) : NULL;
	if (cut)
		cr_expect(line && json_integer_value(json_object_get(line, "status")) == 503, "%s",
		          line ? service_line(line) : "no line in the log");
	json_decref(line);
	service_stop(s);
}

/* ---- HTTP/2 ------------------------------------------------------------------------------------------------- */

Test(shutdown_protocols, h2_says_goaway_and_serves_its_streams, .timeout = 120)
{
	service *s = start("5s", "", "");
	h2_peer *p = h2_peer_dial(s->port);
	h2_peer_ask(p, 1, "GET", brief);
	h2_peer_ask(p, 3, "GET", lasting);
	cr_assert(service_runs(s, 2, PATIENCE_MS));
	int64_t signalled = now_ms();
	process_signal(s->albumd->process, SIGTERM);
	cr_assert(h2_peer_goes_away(p, 1));
	cr_expect(eq(u32, p->goaway_last, INT32_MAX));
	cr_expect(eq(u32, p->goaway_reason, H2_NO_ERROR));
	/* It crosses the GOAWAY; the acknowledgement of the PING goes out behind it. */
	h2_peer_ask(p, 5, "GET", "/albums/1");
	cr_expect(eq(int, h2_peer_answer(p, 5)->status, 200));
	cr_assert(h2_peer_goes_away(p, 2));
	cr_expect(eq(u32, p->goaway_last, 5));
	cr_expect(eq(int, h2_peer_answer(p, 1)->status, 200));
	cr_expect(h2_peer_so_far(p, 1)->ended);
	cr_expect(lt(long, (long)(now_ms() - signalled), 5000L), "a short one was held up");
	h2_answer *cut = h2_peer_answer(p, 3);
	cr_expect(eq(int, cut->status, 503));
	cr_expect(cut->ended);
	cr_expect(ne(ptr, (void *)(uintptr_t)h2_answer_field(cut, "retry-after"), NULL));
	cr_expect(ge(long, (long)(now_ms() - signalled), 5000L));
	cr_expect(h2_peer_ends(p));
	h2_peer_close(p);
	expect_clean_end(s, 1);
}

Test(shutdown_protocols, h2_ends_at_once_at_the_second_signal, .timeout = 120)
{
	service *s = start("50s", "", "");
	h2_peer *p = h2_peer_dial(s->port);
	for (uint32_t id = 1; id <= 7; id += 2)
		h2_peer_ask(p, id, "GET", lasting);
	cr_assert(service_runs(s, 4, PATIENCE_MS));
	process_signal(s->albumd->process, SIGTERM);
	cr_assert(h2_peer_goes_away(p, 2));
	cr_expect(eq(int, service_running(s), 4), "the first signal has ended something");
	int64_t signalled = now_ms();
	process_signal(s->albumd->process, SIGTERM);
	for (uint32_t id = 1; id <= 7; id += 2)
		cr_expect(eq(int, h2_peer_answer(p, id)->status, 503));
	cr_expect(h2_peer_ends(p));
	cr_expect(lt(long, (long)(now_ms() - signalled), 3000L * support_patience()));
	h2_peer_close(p);
	expect_clean_end(s, 4);
}

/* ---- HTTPS -------------------------------------------------------------------------------------------------- */

static tls_peer *ask_by_tls(const service *s, const char *target)
{
	char head[128];
	tls_peer *p = tls_peer_connect_to(s->port, NULL);
	snprintf(head, sizeof(head), "GET %s HTTP/1.1\r\nHost: localhost\r\n\r\n", target);
	cr_assert(tls_peer_send(p, head));
	return p;
}

/* The answer, that it is the connection's last, and an end that a client can tell from an attack. */
static void expect_last(tls_peer *p, int status)
{
	http_peer_response response = tls_peer_read(p, false);
	cr_expect(eq(int, response.status, status));
	const char *connection = response.head ? http_peer_field(&response, "Connection") : NULL;
	cr_expect(connection && strcmp(connection, "close") == 0);
	cr_expect(eq(int, (int)tls_peer_end(p), (int)TLS_CLOSE_NOTIFY));
	http_peer_clear(&response);
	tls_peer_close(p);
}

Test(shutdown_protocols, tls_ends_in_good_order, .timeout = 120)
{
	const certificates *c = certificates_get();
	service *s = start("3s", c->server, c->server_key);
	tls_peer *idle = ask_by_tls(s, "/albums/1"), *soon = ask_by_tls(s, brief),
		 *late = ask_by_tls(s, lasting);
	http_peer_response response = tls_peer_read(idle, false);
	cr_expect(eq(int, response.status, 200));
	http_peer_clear(&response);
	cr_assert(service_runs(s, 2, PATIENCE_MS));
	process_signal(s->albumd->process, SIGTERM);
	cr_expect(eq(int, (int)tls_peer_end(idle), (int)TLS_CLOSE_NOTIFY));
	tls_peer_close(idle);
	expect_last(soon, 200);
	expect_last(late, 503);
	expect_clean_end(s, 1);
}

static process *curl(const service *s, const char *target)
{
	char url[128];
	snprintf(url, sizeof(url), "https://localhost:%d%s", s->port, target);
	const char *const argv[] = {"curl",     "-s",
	                            "--http2",  "-4",
	                            "-o",       "/dev/null",
	                            "-w",       "%{http_version} %{http_code}",
	                            "--cacert", certificates_get()->ca,
	                            url,        NULL};
	return process_start(argv, NULL);
}

static void expect_said(process *p, const char *expected)
{
	cr_expect(eq(int, process_wait(p, PATIENCE_MS * support_patience()), 0));
	char *said = process_output(p);
	cr_expect(eq(str, said, (char *)(uintptr_t)expected));
	free(said);
	process_stop(p);
}

Test(shutdown_protocols, tls_and_h2_serve_curl_to_the_end, .timeout = 120)
{
	const certificates *c = certificates_get();
	service *s = start("3s", c->server, c->server_key);
	process *soon = curl(s, brief), *late = curl(s, lasting);
	cr_assert(service_runs(s, 2, PATIENCE_MS));
	process_signal(s->albumd->process, SIGTERM);
	expect_said(soon, "2 200");
	expect_said(late, "2 503");
	expect_clean_end(s, 1);
}

/* ---- HTTP/1.1 ----------------------------------------------------------------------------------------------- */

/* Who is answered in a drain is told not to come back on this connection, nor to send what it has pipelined. */
Test(shutdown_protocols, h1_says_that_the_answer_is_the_last, .timeout = 120)
{
	service *s = start("20s", "", "");
	client *c = client_connect(s->port);
	reply r = {0}, none = {0};
	cr_assert(client_send_get(c, "/albums?delay=2s"));
	cr_assert(service_runs(s, 1, PATIENCE_MS));
	process_signal(s->albumd->process, SIGTERM);
	cr_assert(process_wait_for(s->albumd->process, "draining", PATIENCE_MS));
	cr_assert(client_receive(c, &r, PATIENCE_MS));
	cr_expect(eq(int, r.status, 200));
	char *connection = reply_header(&r, "Connection");
	cr_expect(connection && strcmp(connection, "close") == 0);
	cr_expect(not(client_receive(c, &none, PATIENCE_MS)));
	free(connection);
	reply_free(&r);
	client_close(c);
	expect_clean_end(s, 0);
}
