/*
 * HTTP/2 with clients that others have written: nghttp, curl and h2load find nothing to complain of.
 */
#include <criterion/criterion.h>
#include <criterion/new/assert.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "http_peer.h"
#include "process.h"
#include "support.h"
#include "watched.h"

static void answers(http_request *request, http_response *response)
{
	(void)request;
	http_response_text(response, 200, "hello\n");
}

static void streams(http_request *request, http_response *response)
{
	static const char data[10000];
	(void)request;
	for (int i = 0; i < 1000; i++)
		if (http_write(response, data, sizeof(data)) != 0)
			return;
}

static const http_peer_route routes[] = {{"GET /hello", answers, NULL},
                                         {"POST /body", answers_body_size, NULL},
                                         {"GET /stream", streams, NULL},
                                         {"GET /wait", waits_until_done, NULL},
                                         {0}};

enum { ARGS = 24 };

/* Runs a client on the server's path; args are what comes before the URL. Its output is to be freed. */
static char *run(http_peer_server *server, const char *path, int expected, const char *const args[])
{
	const char *argv[ARGS] = {0};
	char url[128], *output = NULL;
	size_t n = 0;
	for (; args[n]; n++)
		argv[n] = args[n];
	snprintf(url, sizeof(url), "http://%s%s", http_peer_address(server), path);
	argv[n] = url;
	int status = process_run(argv, NULL, 60000, &output);
	cr_assert(eq(int, status, expected), "%s %s: %s", args[0], path, output);
	return output;
}

#define RUN(server, path, expected, ...) run(server, path, expected, (const char *[]){__VA_ARGS__, NULL})

/* A file of so many bytes; to be unlinked. */
static void make_file(char path[64], size_t size)
{
	snprintf(path, 64, "/tmp/tether-upload-%d", getpid());
	FILE *file = fopen(path, "w");
	cr_assert_not_null(file);
	for (size_t i = 0; i < size; i++)
		fputc('a' + (int)(i % 26), file);
	fclose(file);
}

/* ---- curl -------------------------------------------------------------------------------------------- */

#define CURL         "curl", "-sS", "--http2-prior-knowledge"
#define SUMMARY      "-w", " %{http_version} %{response_code} %{size_download}"
#define SUMMARY_ONLY "-o", "/dev/null", "-w", "%{http_version} %{response_code} %{size_download}"

static void expect_output(char *output, const char *expected)
{
	cr_expect(eq(str, output, (char *)expected));
	free(output);
}

Test(http_h2_clients, curl, .timeout = 120)
{
	http_peer_server *server = http_peer_serve(&watched, routes);
	char file[64], upload[80];
	expect_output(RUN(server, "/hello", 0, CURL, SUMMARY), "hello\n 2 200 6");
	expect_output(RUN(server, "/hello", 0, CURL, "-I", SUMMARY_ONLY), "2 200 0");
	expect_output(RUN(server, "/nowhere", 0, CURL, SUMMARY_ONLY), "2 404 55");
	expect_output(RUN(server, "/stream", 0, CURL, SUMMARY_ONLY), "2 200 10000000");
	make_file(file, 1000000);
	snprintf(upload, sizeof(upload), "@%s", file);
	expect_output(RUN(server, "/body", 0, CURL, "--data-binary", upload), "1000000");
	expect_output(RUN(server, "/body", 0, CURL, "--data-binary", upload, "-H", "Expect: 100-continue"),
	              "1000000");
	make_file(file, 3000000);
	expect_output(RUN(server, "/body", 0, CURL, "--data-binary", upload, "-o", "/dev/null", "-w",
	                  "%{response_code}"),
	              "413");
	unlink(file);
	http_peer_stop(server);
}

/* By the same port, as they come. */
Test(http_h2_clients, curl_with_either_protocol, .timeout = 120)
{
	http_peer_server *server = http_peer_serve(&watched, routes);
	for (int i = 0; i < 5; i++) {
		expect_output(RUN(server, "/hello", 0, "curl", "-sS", SUMMARY), "hello\n 1.1 200 6");
		/* An offer to upgrade need not be taken (RFC 9113, 3.1): the answer is one of HTTP/1.1. */
		expect_output(RUN(server, "/hello", 0, "curl", "-sS", "--http2", SUMMARY),
		              "hello\n 1.1 200 6");
		expect_output(RUN(server, "/hello", 0, CURL, SUMMARY), "hello\n 2 200 6");
	}
	http_peer_stop(server);
}

Test(http_h2_clients, curl_killed, .timeout = 120)
{
	http_peer_server *server = http_peer_serve(&watched, routes);
	char url[128];
	snprintf(url, sizeof(url), "http://%s/wait", http_peer_address(server));
	for (int i = 1; i <= 3; i++) {
		process *curl = process_start((const char *const[]){CURL, url, NULL}, NULL);
		cr_assert(eventually_counts(&seen.entered, i, 20000));
		process_signal(curl, SIGKILL);
		cr_assert(eventually_counts(&seen.done, i, 10000));
		cr_expect(eq(ptr, (void *)seen.done_cause, (void *)&HTTP_CLIENT_DISCONNECTED));
		cr_expect(eq(int, seen.status, 499));
		process_stop(curl);
	}
	http_peer_stop(server);
}

/* ---- nghttp ------------------------------------------------------------------------------------------ */

static void expect_in(const char *output, const char *text)
{
	cr_expect_not_null(strstr(output, text), "no %s in %s", text, output);
}

Test(http_h2_clients, nghttp, .timeout = 120)
{
	http_peer_server *server = http_peer_serve(&watched, routes);
	char file[64];
	char *output = RUN(server, "/hello", 0, "nghttp", "-v", "-m", "20");
	expect_in(output, "recv SETTINGS frame");
	expect_in(output, ":status: 200");
	cr_expect_null(strstr(output, "RST_STREAM"), "%s", output);
	cr_expect_null(strstr(output, "[ERROR]"), "%s", output);
	free(output);
	make_file(file, 500000);
	output = RUN(server, "/body", 0, "nghttp", "-v", "-d", file);
	expect_in(output, "500000");
	free(output);
	/* Windows of a kilobyte, small frames of its own, padding, no table. */
	output = RUN(server, "/stream", 0, "nghttp", "-nv", "-w", "10", "-W", "12", "-b", "200", "-c", "0");
	expect_in(output, ":status: 200");
	cr_expect_null(strstr(output, "RST_STREAM"), "a slow reader is no attacker");
	free(output);
	/* A head too large for one frame. */
	output = RUN(server, "/hello", 0, "nghttp", "-v", "--continuation");
	expect_in(output, ":status: 431"); /* it pads with 16 KiB */
	free(output);
	unlink(file);
	http_peer_stop(server);
}

/* ---- h2load ------------------------------------------------------------------------------------------ */

Test(http_h2_clients, h2load, .timeout = 120)
{
	http_server_options options = watched;
	options.workers = 2;
	http_peer_server *server = http_peer_serve(&options, routes);
	char *output = RUN(server, "/hello", 0, "h2load", "-n", "10000", "-c", "10", "-m", "100");
	expect_in(output,
	          "10000 total, 10000 started, 10000 done, 10000 succeeded, 0 failed, 0 errored, 0 timeout");
	fprintf(stderr, "%.*s\n", (int)strcspn(strstr(output, "finished"), "\n"), strstr(output, "finished"));
	free(output);
	output = RUN(server, "/stream", 0, "h2load", "-n", "20", "-c", "2", "-m", "10");
	expect_in(output, "20 succeeded, 0 failed, 0 errored, 0 timeout");
	free(output);
	cr_assert(eventually_counts(&seen.done, 10020, 10000));
	http_peer_stop(server);
	cr_expect(eq(int, seen.done, 10020));
}
