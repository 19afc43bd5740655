/*
 * albumd over HTTPS: that it starts, or says why not; that it renews its certificate; and that a client that leaves
 * takes its query with it there too, over either protocol, whatever way it leaves by.
 */
#include <criterion/criterion.h>
#include <criterion/new/assert.h>
#include <curl/curl.h>
#include <dirent.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#include "certificates.h"
#include "leaving.h"
#include "process.h"
#include "service.h"
#include "support.h"
#include "tls_peer.h"

static service *serve_clients(const char *client_ca, const char *optional)
{
	const certificates *c = certificates_get();
	const char *const flags[] = {"--pool-size",     "1",
	                             "--query-timeout", "60s",
	                             "--tls-cert",      c->server,
	                             "--tls-key",       c->server_key,
	                             "--tls-client-ca", client_ca ? client_ca : "",
	                             optional,          NULL};
	return service_start(flags);
}

static service *serve(const char *client_ca)
{
	return serve_clients(client_ca, NULL);
}

/* The status of a GET on a connection that goes on; -1: none came. */
static int get(tls_peer *p, const char *target)
{
	char head[256];
	snprintf(head, sizeof(head), "GET %s HTTP/1.1\r\nHost: localhost\r\n\r\n", target);
	if (!tls_peer_send(p, head))
		return -1;
	http_peer_response response = tls_peer_read(p, false);
	int status = response.status;
	http_peer_clear(&response);
	return status;
}

static int get_once(const service *s, const char *target)
{
	tls_peer *p = tls_peer_connect_to(s->port, NULL);
	int status = get(p, target);
	tls_peer_close(p);
	return status;
}

/* ---- Clients that leave ------------------------------------------------------------------------------ */

static void half_close(tls_peer *p)
{
	shutdown(tls_peer_fd(p), SHUT_WR);
}

static void send_another_and_cut(tls_peer *p)
{
	tls_peer_send(p, "GET /albums?delay=40s HTTP/1.1\r\nHost: localhost\r\n\r\n");
	tls_peer_cut(p);
}

static void expect_left(const char *name, void (*leave)(tls_peer *p))
{
	service *s = serve(NULL);
	double stopped[ATTEMPTS];
	for (int i = 0; i < ATTEMPTS; i++) {
		char target[64], head[128];
		snprintf(target, sizeof(target), "/albums?delay=50s&by=%s%d", name, i);
		snprintf(head, sizeof(head), "GET %s HTTP/1.1\r\nHost: localhost\r\n\r\n", target);
		tls_peer *p = tls_peer_connect_to(s->port, NULL);
		cr_assert(tls_peer_send(p, head));
		leaving l = leaving_now(s);
		leave(p);
		stopped[i] = leaving_cancels(&l, target);
		if (leave == tls_peer_bye || leave == half_close)
			tls_peer_cut(p);
		cr_expect(eq(int, get_once(s, "/albums/1"), 200));
		leaving_keeps(&l);
	}
	expect_in_time(stopped);
	cr_expect(eq(int, service_stop(s), 0));
}

Test(https, by_close_notify_and_fin, .timeout = 120)
{
	expect_left("close", tls_peer_close);
}

/* The socket stays open: only the close_notify tells. */
Test(https, by_close_notify_alone, .timeout = 120)
{
	expect_left("notify", tls_peer_bye);
}

Test(https, by_fin_without_close_notify, .timeout = 120)
{
	expect_left("fin", tls_peer_cut);
}

Test(https, by_half_close_without_close_notify, .timeout = 120)
{
	expect_left("half", half_close);
}

Test(https, by_reset, .timeout = 120)
{
	expect_left("reset", tls_peer_reset);
}

Test(https, with_a_second_request_pipelined, .timeout = 120)
{
	expect_left("pipelined", send_another_and_cut);
}

static process *start_curl(const service *s, const char *version, const char *target)
{
	char url[128];
	snprintf(url, sizeof(url), "https://127.0.0.1:%d%s", s->port, target);
	process *curl =
		process_start((const char *const[]){"curl", "-s", version, "-w", "HTTP/%{http_version}",
	                                            "--cacert", certificates_get()->ca, url, NULL},
	                      NULL);
	cr_assert_not_null(curl);
	return curl;
}

static void kill_curl(const char *version)
{
	service *s = serve(NULL);
	double stopped[ATTEMPTS];
	for (int i = 0; i < ATTEMPTS; i++) {
		char target[64];
		snprintf(target, sizeof(target), "/albums?delay=60s&curl=%d", i);
		process *curl = start_curl(s, version, target);
		leaving l = leaving_now(s);
		process_signal(curl, SIGKILL);
		stopped[i] = leaving_cancels(&l, target);
		cr_expect(eq(int, process_stop(curl), 128 + SIGKILL));
	}
	expect_in_time(stopped);
	cr_expect(eq(int, service_stop(s), 0));
}

Test(https, curl_killed, .timeout = 120)
{
	kill_curl("--http1.1");
}

Test(https, curl_killed_over_http2, .timeout = 120)
{
	kill_curl("--http2");
}

static size_t ignore(char *data, size_t one, size_t size, void *arg)
{
	(void)data, (void)arg;
	return one * size;
}

static CURL *easy(const service *s, const char *target)
{
	char url[128];
	CURL *c = curl_easy_init();
	snprintf(url, sizeof(url), "https://127.0.0.1:%d%s", s->port, target);
	curl_easy_setopt(c, CURLOPT_URL, url);
	curl_easy_setopt(c, CURLOPT_CAINFO, certificates_get()->ca);
	curl_easy_setopt(c, CURLOPT_HTTP_VERSION, (long)CURL_HTTP_VERSION_2TLS);
	curl_easy_setopt(c, CURLOPT_NOSIGNAL, 1L);
	curl_easy_setopt(c, CURLOPT_WRITEFUNCTION, ignore);
	return c;
}

struct transfer {
	CURLM *multi;
	const service *s; /* NULL: until nothing is under way; else until it runs a query */
};

static bool transferred(void *arg)
{
	struct transfer *t = arg;
	int running = 0;
	curl_multi_perform(t->multi, &running);
	return t->s ? service_running(t->s) == 1 : running == 0;
}

/* A stream that is reset, and the connection it was on goes on. */
Test(https, a_stream_reset_over_http2, .timeout = 120)
{
	service *s = serve(NULL);
	CURLM *multi = curl_multi_init();
	double stopped[ATTEMPTS];
	CURL *first =
		easy(s, "/albums/1"); /* by whose end libcurl knows that the connection is one of HTTP/2 */
	curl_multi_add_handle(multi, first);
	cr_assert(eventually(transferred, &(struct transfer){multi, NULL}, 10000));
	curl_multi_remove_handle(multi, first);
	curl_easy_cleanup(first);
	for (int i = 0; i < ATTEMPTS; i++) {
		char target[64];
		long version = 0, status = 0, connects = -1;
		snprintf(target, sizeof(target), "/albums?delay=50s&stream=%d", i);
		CURL *slow = easy(s, target), *quick = easy(s, "/albums/1");
		curl_multi_add_handle(multi, slow);
		cr_assert(eventually(transferred, &(struct transfer){multi, s}, 10000),
		          "the query did not run");
		leaving l = leaving_now(s);
		curl_multi_remove_handle(multi, slow);
		curl_multi_add_handle(multi, quick); /* libcurl sends the reset along with it */
		cr_assert(eventually(transferred, &(struct transfer){multi, NULL}, 10000));
		stopped[i] = leaving_cancels(&l, target);
		curl_easy_getinfo(quick, CURLINFO_HTTP_VERSION, &version);
		curl_easy_getinfo(quick, CURLINFO_RESPONSE_CODE, &status);
		curl_easy_getinfo(quick, CURLINFO_NUM_CONNECTS, &connects);
		cr_expect(eq(long, version, CURL_HTTP_VERSION_2_0));
		cr_expect(eq(long, status, 200));
		cr_expect(eq(long, connects, 0), "the connection was not used again");
		curl_multi_remove_handle(multi, quick);
		curl_easy_cleanup(quick);
		curl_easy_cleanup(slow);
	}
	curl_multi_cleanup(multi);
	expect_in_time(stopped);
	cr_expect(eq(int, service_stop(s), 0));
}

/* ---- Certificates ------------------------------------------------------------------------------------ */

Test(https, says_where_it_listens, .timeout = 60)
{
	service *s = serve(NULL);
	cr_expect(process_wait_for(s->albumd->process, "albumd: listening on https://127.0.0.1:", 5000));
	cr_expect(process_wait_for(s->albumd->process, "albumd: admin on http://127.0.0.1:", 5000));
	for (int i = 0; i < 2; i++) {
		process *curl = start_curl(s, i ? "--http2" : "--http1.1", "/albums/1");
		cr_expect(eq(int, process_wait(curl, 20000), 0));
		cr_expect(process_wait_for(curl, i ? "HTTP/2" : "HTTP/1.1", 0));
		process_stop(curl);
	}
	cr_expect(eq(int, service_stop(s), 0));
}

static void start_badly(const char *certificate, const char *key, const char *client_ca,
                        const char *complaint)
{
	char *output = NULL;
	int status = process_run((const char *const[]){support_built("albumd"), "--listen", "127.0.0.1:0",
	                                               "--admin-listen", "off", "--database-url", "",
	                                               "--tls-cert", certificate, "--tls-key", key,
	                                               "--tls-client-ca", client_ca, NULL},
	                         NULL, 20000, &output);
	cr_expect(eq(int, status, 2), "%s", output);
	cr_expect(strstr(output, complaint) && !strchr(output, '\n'), "%s", output);
	free(output);
}

Test(https, a_bad_certificate_is_one_clear_line, .timeout = 60)
{
	const certificates *c = certificates_get();
	start_badly("/nowhere.pem", c->server_key, "", "certificate /nowhere.pem: No such file");
	start_badly(c->server, "/nowhere.key", "", "key /nowhere.key: No such file");
	start_badly(c->server, c->renewed_key, "", "is not the key of the certificate");
	start_badly(c->server_key, c->server_key, "", "certificate ");
	start_badly(c->server, c->server_key, "/nowhere.ca", "client CA /nowhere.ca: No such file");
	start_badly("", c->server_key, "", "--tls-cert");
	start_badly("", "", c->ca, "--tls-cert");
	char *output = NULL;
	const char *const optional[] = {
		support_built("albumd"), "--tls-cert", c->server, "--tls-key", c->server_key,
		"--tls-client-optional", NULL};
	cr_expect(eq(int, process_run(optional, NULL, 20000, &output), 2));
	cr_expect(strstr(output, "nothing without --tls-client-ca") != NULL, "%s", output);
	free(output);
}

/* SIGHUP while requests run: they finish with what they have, and who comes then sees the renewed one. */
Test(https, sighup_renews_the_certificate, .timeout = 120)
{
	const certificates *c = certificates_get();
	service *s = serve(NULL);
	tls_peer *running = tls_peer_connect_to(s->port, NULL);
	cr_expect(eq(int, tls_peer_serial(running), 2));
	cr_assert(tls_peer_send(running, "GET /albums?delay=2s HTTP/1.1\r\nHost: localhost\r\n\r\n"));
	cr_assert(service_runs(s, 1, 10000));

	/* First only the certificate, as an unlucky reload may find it. */
	certificates_replace(c->server, c->renewed);
	process_signal(s->albumd->process, SIGHUP);
	cr_assert(process_wait_for(s->albumd->process, "the certificate is left as it was", 10000));
	tls_peer *between = tls_peer_connect_to(s->port, NULL);
	cr_expect(eq(int, tls_peer_serial(between), 2));

	certificates_replace(c->server_key, c->renewed_key);
	process_signal(s->albumd->process, SIGHUP);
	cr_assert(process_wait_for(s->albumd->process, "certificate read again", 10000));
	tls_peer *after = tls_peer_connect_to(s->port, NULL);
	cr_expect(eq(int, tls_peer_serial(after), 3));

	http_peer_response response = tls_peer_read(running, false);
	cr_expect(eq(int, response.status, 200), "the request that ran did not finish");
	http_peer_clear(&response);
	cr_expect(eq(int, get(running, "/albums/1"), 200));
	cr_expect(eq(int, get(between, "/albums/1"), 200));
	cr_expect(eq(int, get(after, "/albums/1"), 200));
	tls_peer_close(running);
	tls_peer_close(between);
	tls_peer_close(after);
	cr_expect(eq(int, service_stop(s), 0));
}

Test(https, only_clients_with_a_certificate, .timeout = 60)
{
	const certificates *c = certificates_get();
	service *s = serve(c->ca);
	tls_peer *p = tls_peer_connect_to(
		s->port, &(tls_peer_options){.certificate = c->client, .key = c->client_key});
	cr_expect(eq(int, get(p, "/albums/1"), 200));
	cr_expect(process_wait_for(s->albumd->process, "\"client\":\"CN=alice,O=Example\"", 10000));
	tls_peer_close(p);
	/* With TLS 1.3 a client is through with the handshake before the server has looked at its certificate. */
	p = tls_peer_connect_to(s->port, NULL);
	cr_expect(le(int, get(p, "/albums/1"), 0));
	tls_peer_cut(p);
	cr_expect(eq(int, service_stop(s), 0));
}

Test(https, clients_may_have_a_certificate, .timeout = 60)
{
	const certificates *c = certificates_get();
	service *s = serve_clients(c->ca, "--tls-client-optional");
	tls_peer *p = tls_peer_connect_to(s->port, NULL);
	cr_expect(eq(int, get(p, "/albums/1"), 200));
	cr_expect(process_wait_for(s->albumd->process, "\"path\":\"/albums/1\"", 10000));
	cr_expect(not(process_wait_for(s->albumd->process, "\"client\":", 0)), "it names who has not said");
	tls_peer_close(p);
	p = tls_peer_connect_to(s->port, &(tls_peer_options){.certificate = c->client, .key = c->client_key});
	cr_expect(eq(int, get(p, "/albums/2"), 200));
	cr_expect(process_wait_for(s->albumd->process, "\"client\":\"CN=alice,O=Example\"", 10000));
	tls_peer_close(p);
	p = tls_peer_connect_to(s->port, &(tls_peer_options){.certificate = c->server, .key = c->server_key});
	cr_expect(le(int, get(p, "/albums/3"), 0), "a certificate for servers was as good as none");
	tls_peer_cut(p);
	cr_expect(eq(int, service_stop(s), 0));
}

/* ---- What connections cost --------------------------------------------------------------------------- */

static long resident_kib(const service *s)
{
	char path[64], line[128];
	long kib = -1;
	snprintf(path, sizeof(path), "/proc/%d/status", (int)service_pid(s));
	FILE *file = fopen(path, "r");
	while (file && fgets(line, sizeof(line), file))
		if (strncmp(line, "VmRSS:", 6) == 0)
			kib = strtol(line + 6, NULL, 10);
	if (file)
		fclose(file);
	return kib;
}

static size_t open_files(const service *s)
{
	char path[64];
	size_t count = 0;
	snprintf(path, sizeof(path), "/proc/%d/fd", (int)service_pid(s));
	DIR *dir = opendir(path);
	while (dir && readdir(dir))
		count++;
	if (dir)
		closedir(dir);
	return count;
}

struct files {
	const service *s;
	size_t count;
};

/* A connection for the metrics may have been among them. */
static bool files_are(void *arg)
{
	const struct files *files = arg;
	return open_files(files->s) <= files->count;
}

static void connect_all(const service *s, tls_peer *peers[], int count)
{
	for (int i = 0; i < count; i++) {
		peers[i] = tls_peer_connect_to(s->port, NULL);
		cr_assert(eq(int, get(peers[i], "/albums/1"), 200));
	}
}

/* Kept alive and idle, twice over: the second time nothing more is taken, and afterwards no descriptor is. */
Test(https, five_hundred_connections, .timeout = 300)
{
	enum { COUNT = 500, KIB_EACH = 64 };
	static tls_peer *peers[COUNT];
	service *s = serve(NULL);
	cr_expect(eq(int, get_once(s, "/albums/1"), 200));
	cr_assert(service_metric_becomes(s, "http_open_connections", 0, 10000));
	struct files before = {s, open_files(s)};
	long empty = resident_kib(s), full[2];
	for (int round = 0; round < 2; round++) {
		connect_all(s, peers, COUNT);
		cr_expect(eq(int, (int)service_metric(s, "http_open_connections"), COUNT));
		full[round] = resident_kib(s);
		for (int i = 0; i < COUNT; i++)
			(i % 2 ? tls_peer_close : tls_peer_reset)(peers[i]);
		cr_assert(service_metric_becomes(s, "http_open_connections", 0, 10000));
		cr_expect(eventually(files_are, &before, 10000), "%zu files are open, %zu were",
		          open_files(s), before.count);
	}
	fprintf(stderr, "%.1f KiB for each idle connection\n", (double)(full[0] - empty) / COUNT);
	if (support_patience() == 1) { /* a sanitizer's memory is its own */
		cr_expect(le(long, (full[0] - empty) / COUNT, KIB_EACH));
		cr_expect(le(long, full[1] - full[0], COUNT), "the second time took %ld KiB more",
		          full[1] - full[0]);
	}
	cr_expect(eq(int, service_stop(s), 0));
}
