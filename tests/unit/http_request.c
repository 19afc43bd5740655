/*
 * One request and its answer: what a handler is told, what a client gets, over HTTP/1.1.
 */
#include <criterion/criterion.h>
#include <criterion/new/assert.h>
#include <curl/curl.h>
#include <errno.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include <tether/loop.h>

#include "http_peer.h"
#include "support.h"

/* ---- What is asked ----------------------------------------------------------------------------------- */

static void line(http_response *response, const char *name, const char *value)
{
	char text[512];
	int size = snprintf(text, sizeof(text), "%s=%s\n", name, value ? value : "(null)");
	http_response_append(response, text, (size_t)size);
}

static void describe(http_request *request, http_response *response)
{
	size_t size = 99;
	line(response, "method", http_request_method(request));
	line(response, "path", http_request_path(request));
	line(response, "target", http_request_target(request));
	line(response, "route", http_request_route(request));
	line(response, "data", http_request_data(request));
	line(response, "q", http_query_value(request, "q"));
	line(response, "r", http_query_value(request, "r"));
	line(response, "x-twice", http_header(request, "X-TWICE"));
	line(response, "x-empty", http_header(request, "x-empty"));
	line(response, "absent", http_header(request, "x-absent"));
	line(response, "body", http_body(request, &size));
	line(response, "whole", size == strlen(http_body(request, NULL)) ? "yes" : "no");
	line(response, "peer",
	     strncmp(http_request_peer(request), "127.0.0.1:", 10) == 0 ? "yes" : http_request_peer(request));
}

static http_peer_response tell(http_peer_server *server, const char *bytes)
{
	int fd = http_peer_connect(server);
	http_peer_send(fd, bytes);
	http_peer_response response = http_peer_read(fd, strncmp(bytes, "HEAD", 4) == 0);
	close(fd);
	return response;
}

Test(http_request, a_handler_sees_the_whole_request, .timeout = 60)
{
	http_peer_server *server =
		http_peer_serve(NULL, (http_peer_route[]){{"POST /a/{x}", describe, "data!"}, {0}});
	http_peer_response response =
		tell(server, "POST /a/b%20c?q=1+2%2b&q=2&r&s=%3D HTTP/1.1\r\nHost: h\r\nX-Twice: first\r\n"
	                     "x-twice:second\r\nX-Empty:\r\nContent-Length: 5\r\n\r\nhello");
	cr_expect(eq(int, response.status, 200));
	cr_expect(eq(str, response.body,
	             "method=POST\npath=/a/b c\ntarget=/a/b%20c?q=1+2%2b&q=2&r&s=%3D\nroute=POST /a/{x}\n"
	             "data=data!\nq=1 2+\nr=\nx-twice=first\nx-empty=\nabsent=(null)\nbody=hello\n"
	             "whole=yes\npeer=yes\n"));
	http_peer_clear(&response);
	http_peer_stop(server);
}

Test(http_request, malformed_escapes_in_a_query, .timeout = 60)
{
	http_peer_server *server = http_peer_serve(NULL, (http_peer_route[]){{"GET /", describe, NULL}, {0}});
	static const char *const bad[] = {"/?a=%", "/?a=%1", "/?%g1=1", "/?a=1&b=%00", "/?a=%0"};
	for (size_t i = 0; i < sizeof(bad) / sizeof(*bad); i++) {
		http_peer_response response = http_peer_ask(server, "GET", bad[i], NULL);
		cr_expect(eq(int, response.status, 400), "%s", bad[i]);
		cr_expect(eq(str, (char *)http_peer_field(&response, "Content-Type"),
		             "application/problem+json"));
		http_peer_clear(&response);
	}
	static const char *const good[] = {"/?", "/?&&", "/?=", "/?a=b=c", "/??", "/?a=%ff", "/?;a"};
	for (size_t i = 0; i < sizeof(good) / sizeof(*good); i++) {
		http_peer_response response = http_peer_ask(server, "GET", good[i], NULL);
		cr_expect(eq(int, response.status, 200), "%s", good[i]);
		http_peer_clear(&response);
	}
	http_peer_stop(server);
}

static void echo(http_request *request, http_response *response)
{
	size_t size;
	const char *body = http_body(request, &size);
	http_response_body(response, 201, "application/octet-stream", body, size);
}

Test(http_request, bodies_of_any_bytes_and_both_framings, .timeout = 60)
{
	http_peer_server *server = http_peer_serve(NULL, (http_peer_route[]){{"PUT /{$}", echo, NULL}, {0}});
	char sent[70000];
	for (size_t i = 0; i < sizeof(sent); i++)
		sent[i] = (char)(i * 7 + i / 256);
	for (int chunked = 0; chunked < 2; chunked++) {
		int fd = http_peer_connect(server);
		http_peer_send(fd, chunked ? "PUT / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n"
		                           : "PUT / HTTP/1.1\r\nHost: h\r\nContent-Length: 70000\r\n\r\n");
		for (size_t at = 0; at < sizeof(sent); at += 7000) {
			char size[16];
			snprintf(size, sizeof(size), "%x\r\n", 7000);
			http_peer_send(fd, chunked ? size : "");
			http_peer_send_bytes(fd, sent + at, 7000);
			http_peer_send(fd, chunked ? "\r\n" : "");
		}
		http_peer_send(fd, chunked ? "0\r\n\r\n" : "");
		http_peer_response response = http_peer_read(fd, false);
		cr_expect(eq(int, response.status, 201));
		cr_assert(eq(sz, response.body_size, sizeof(sent)));
		cr_expect(memcmp(response.body, sent, sizeof(sent)) == 0);
		http_peer_clear(&response);
		close(fd);
	}
	http_peer_stop(server);
}

Test(http_request, continue_is_said_before_the_body, .timeout = 60)
{
	http_peer_server *server = http_peer_serve(NULL, (http_peer_route[]){{"PUT /{$}", echo, NULL}, {0}});
	int fd = http_peer_connect(server);
	char said[26] = "";
	http_peer_send(fd, "PUT / HTTP/1.1\r\nHost: h\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n");
	cr_assert(eq(int, (int)recv(fd, said, 25, MSG_WAITALL), 25));
	cr_expect(eq(str, said, "HTTP/1.1 100 Continue\r\n\r\n"));
	http_peer_send(fd, "hi");
	http_peer_response response = http_peer_read(fd, false);
	cr_expect(eq(int, response.status, 201));
	cr_expect(eq(str, response.body, "hi"));
	http_peer_clear(&response);
	close(fd);
	/* Without a route there is no need for the body, and no asking for it. */
	fd = http_peer_connect(server);
	http_peer_send(
		fd, "PUT /nowhere HTTP/1.1\r\nHost: h\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n");
	char first[13] = "";
	cr_assert(eq(int, (int)recv(fd, first, 12, MSG_WAITALL), 12));
	cr_expect(eq(str, first, "HTTP/1.1 404"));
	close(fd);
	http_peer_stop(server);
}

/* ---- What is answered -------------------------------------------------------------------------------- */

static void nothing(http_request *request, http_response *response)
{
	(void)request, (void)response;
}

static void headers(http_request *request, http_response *response)
{
	(void)request;
	http_response_header(response, "X-One", "1");
	http_response_header(response, "x-one", "2");
	http_response_add_header(response, "X-Many", "a");
	http_response_add_header(response, "X-Many", "b");
	http_response_append(response, "ab", 2);
	http_response_append(response, "cd", 2);
	http_response_status(response, 202);
}

static void problem(http_request *request, http_response *response)
{
	(void)request;
	http_response_text(response, 200, "dropped");
	http_response_problem(response, 422, "price: \"high\"\n\xc3\xa9");
}

static void not_utf8(http_request *request, http_response *response)
{
	(void)request;
	http_response_problem(response, 422, "\xff");
}

static void no_content(http_request *request, http_response *response)
{
	(void)request;
	http_response_status(response, 204);
}

static size_t count(const char *text, const char *what)
{
	size_t n = 0;
	for (; (text = strstr(text, what)); text += strlen(what))
		n++;
	return n;
}

Test(http_request, responses_are_as_the_handler_said, .timeout = 60)
{
	http_peer_server *server =
		http_peer_serve(NULL, (http_peer_route[]){{"/nothing", nothing, NULL},
	                                                  {"/headers", headers, NULL},
	                                                  {"/problem", problem, NULL},
	                                                  {"/not_utf8", not_utf8, NULL},
	                                                  {"/no_content", no_content, NULL},
	                                                  {0}});
	http_peer_response response = http_peer_ask(server, "GET", "/nothing", NULL);
	cr_expect(eq(int, response.status, 200));
	cr_expect(eq(str, (char *)http_peer_field(&response, "Content-Length"), "0"));
	cr_expect_not_null(http_peer_field(&response, "Date"));
	http_peer_clear(&response);

	response = http_peer_ask(server, "GET", "/headers", NULL);
	cr_expect(eq(int, response.status, 202));
	cr_expect(eq(str, (char *)http_peer_field(&response, "X-One"), "2"));
	cr_expect(eq(sz, count(response.head, "ne: "), 1));
	cr_expect(eq(sz, count(response.head, "X-Many: "), 2));
	cr_expect(eq(str, response.body, "abcd"));
	http_peer_clear(&response);

	response = http_peer_ask(server, "GET", "/problem", NULL);
	cr_expect(eq(int, response.status, 422));
	cr_expect(eq(str, (char *)http_peer_field(&response, "Content-Type"), "application/problem+json"));
	cr_expect(eq(str, response.body,
	             "{\"type\":\"about:blank\",\"title\":\"Unprocessable Content\",\"status\":422,"
	             "\"detail\":\"price: \\\"high\\\"\\n\xc3\xa9\"}"));
	http_peer_clear(&response);

	response = http_peer_ask(server, "GET", "/not_utf8", NULL);
	cr_expect(eq(str, response.body,
	             "{\"type\":\"about:blank\",\"title\":\"Unprocessable Content\",\"status\":422}"));
	http_peer_clear(&response);

	response = http_peer_ask(server, "GET", "/no_content", NULL);
	cr_expect(eq(int, response.status, 204));
	cr_expect_null(http_peer_field(&response, "Content-Length"));
	http_peer_clear(&response);

	response = http_peer_ask(server, "HEAD", "/headers", NULL);
	cr_expect(eq(int, response.status, 202));
	cr_expect(eq(str, (char *)http_peer_field(&response, "Content-Length"), "4"));
	cr_expect(eq(str, response.body, ""));
	http_peer_clear(&response);
	http_peer_stop(server);
}

/* What could break the message's frame never leaves; the handler's author gets a 500 to look at. */
static void misuse(http_request *request, http_response *response)
{
	const char *what = http_path_value(request, "what");
	http_response_text(response, 200, "fine");
	if (strcmp(what, "value") == 0)
		http_response_header(response, "X-A", "a\r\nX-B: b");
	else if (strcmp(what, "name") == 0)
		http_response_header(response, "X A", "a");
	else if (strcmp(what, "empty") == 0)
		http_response_header(response, "", "a");
	else if (strcmp(what, "framing") == 0)
		http_response_header(response, "content-length", "1");
	else if (strcmp(what, "coding") == 0)
		http_response_add_header(response, "Transfer-Encoding", "chunked");
	else if (strcmp(what, "status") == 0)
		http_response_status(response, 99);
	else if (strcmp(what, "much") == 0)
		for (int i = 0; i < 1000; i++)
			http_response_add_header(response, "X-A", "0123456789");
	http_response_text(response, 200, "too late");
}

Test(http_request, misuse_of_a_response_is_a_500, .timeout = 60)
{
	http_peer_server *server = http_peer_serve(NULL, (http_peer_route[]){{"/{what}", misuse, NULL}, {0}});
	static const char *const whats[] = {"/value",  "/name",   "/empty", "/framing",
	                                    "/coding", "/status", "/much"};
	for (size_t i = 0; i < sizeof(whats) / sizeof(*whats); i++) {
		http_peer_response response = http_peer_ask(server, "GET", whats[i], NULL);
		cr_expect(eq(int, response.status, 500), "%s", whats[i]);
		cr_expect_null(http_peer_field(&response, "X-B"));
		http_peer_clear(&response);
	}
	http_peer_stop(server);
}

/* ---- Connections ------------------------------------------------------------------------------------- */

Test(http_request, a_connection_serves_many, .timeout = 60)
{
	http_peer_server *server = http_peer_serve(
		NULL, (http_peer_route[]){{"GET /{x}", describe, NULL}, {"PUT /{$}", echo, NULL}, {0}});
	static const int statuses[] = {201, 200, 404};
	int fd = http_peer_connect(server);
	for (int i = 0; i < 50; i++) {
		http_peer_send(fd, i % 3 == 0   ? "PUT / HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\n\r\nabc"
		                   : i % 3 == 1 ? "GET /x HTTP/1.1\r\nHost: h\r\n\r\n"
		                                : "GET /no/where HTTP/1.1\r\nHost: h\r\n\r\n");
		http_peer_response response = http_peer_read(fd, false);
		cr_assert(eq(int, response.status, statuses[i % 3]));
		http_peer_clear(&response);
	}
	/* Pipelined. */
	for (int i = 0; i < 50; i++)
		http_peer_send(fd, "GET /x HTTP/1.1\r\nHost: h\r\n\r\n");
	for (int i = 0; i < 50; i++) {
		http_peer_response response = http_peer_read(fd, false);
		cr_assert(eq(int, response.status, 200));
		http_peer_clear(&response);
	}
	http_peer_send(fd, "GET /x HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n");
	http_peer_response response = http_peer_read(fd, false);
	cr_assert(eq(int, response.status, 200));
	http_peer_clear(&response);
	cr_assert(http_peer_closed(fd));
	close(fd);
	http_server_stats stats;
	http_server_stats_get(http_peer_server_of(server), &stats);
	cr_expect(eq(u64, stats.connections_total, 1));
	cr_expect(eq(u64, stats.requests_total, 101));
	http_peer_stop(server);
}

static void refuse_body_then(http_request *request, http_response *response)
{
	http_response_text(response, 200, http_request_method(request));
}

/* A body that no route wants is read over, and the next request of the connection is not taken for its rest. */
Test(http_request, an_unwanted_body_does_not_cost_the_connection, .timeout = 60)
{
	http_peer_server *server =
		http_peer_serve(NULL, (http_peer_route[]){{"GET /", refuse_body_then, NULL}, {0}});
	int fd = http_peer_connect(server);
	http_peer_send(
		fd,
		"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 28\r\n\r\nGET /x HTTP/1.1\r\nHost: h\r\n\r\n"
		"GET / HTTP/1.1\r\nHost: h\r\n\r\n");
	http_peer_response response = http_peer_read(fd, false);
	cr_expect(eq(int, response.status, 405));
	http_peer_clear(&response);
	response = http_peer_read(fd, false);
	cr_expect(eq(int, response.status, 200));
	http_peer_clear(&response);
	close(fd);
	http_peer_stop(server);
}

static size_t add_to(char *data, size_t size, size_t n, void *string)
{
	strncat(string, data, size * n);
	return size * n;
}

Test(http_request, curl_agrees, .timeout = 60)
{
	http_peer_server *server = http_peer_serve(NULL, (http_peer_route[]){{"POST /", echo, NULL}, {0}});
	char url[128], body[128];
	long status;
	snprintf(url, sizeof(url), "http://%s/", http_peer_address(server));
	CURL *curl = curl_easy_init();
	curl_easy_setopt(curl, CURLOPT_URL, url);
	curl_easy_setopt(curl, CURLOPT_WRITEFUNCTION, add_to);
	curl_easy_setopt(curl, CURLOPT_WRITEDATA, body);
	curl_easy_setopt(curl, CURLOPT_POSTFIELDS, "a=1&b=2");
	for (int i = 0; i < 3; i++) {
		body[0] = '\0';
		cr_assert(eq(int, (int)curl_easy_perform(curl), CURLE_OK));
		curl_easy_getinfo(curl, CURLINFO_RESPONSE_CODE, &status);
		cr_expect(eq(long, status, 201));
		cr_expect(eq(str, body, "a=1&b=2"));
	}
	curl_easy_cleanup(curl);
	http_peer_stop(server);
}

/* ---- The hooks --------------------------------------------------------------------------------------- */

static const ctx_key name_key = {.name = "name", .destroy = free};

static struct {
	atomic_int asked, done, status;
	atomic_llong duration, bytes;
	_Atomic(const ctx_error *) cause;
	char route[64], path[64];
	bool refuse;
} hooks;

static bool on_request(http_request *request, void *data)
{
	cr_assert(eq(ptr, data, &hooks));
	cr_assert(http_request_set(request, &name_key, strdup("set by on_request")) == 0);
	atomic_fetch_add(&hooks.asked, 1);
	return !hooks.refuse;
}

static void on_done(http_request *request, const http_outcome *outcome, void *data)
{
	cr_assert(eq(ptr, data, &hooks));
	snprintf(hooks.path, sizeof(hooks.path), "%s", http_request_path(request));
	snprintf(hooks.route, sizeof(hooks.route), "%s",
	         http_request_route(request) ? http_request_route(request) : "-");
	cr_expect_not_null(ctx_value(http_request_ctx(request), &name_key));
	cr_expect_not_null(ctx_err(http_request_ctx(request)));
	hooks.status = outcome->status;
	hooks.cause = outcome->cause;
	hooks.bytes = (long long)outcome->body_bytes;
	hooks.duration = outcome->duration_ns;
	atomic_fetch_add(&hooks.done, 1);
}

static bool is_done(void *times)
{
	return atomic_load(&hooks.done) == *(int *)times;
}

static ctx *kept;

static void say_value(http_request *request, http_response *response)
{
	http_response_text(response, 200, ctx_value(http_request_ctx(request), &name_key));
	if (!kept)
		kept = ctx_retain(http_request_ctx(request));
}

Test(http_request, hooks_see_each_request_once, .timeout = 60)
{
	http_server_options options = {.on_request = on_request, .on_done = on_done, .data = &hooks};
	http_peer_server *server =
		http_peer_serve(&options, (http_peer_route[]){{"GET /v", say_value, NULL}, {0}});
	http_peer_response response = http_peer_ask(server, "GET", "/v", NULL);
	cr_expect(eq(str, response.body, "set by on_request"));
	http_peer_clear(&response);
	cr_assert(eventually(is_done, &(int){1}, 5000));
	cr_expect(eq(int, hooks.status, 200));
	cr_expect(eq(ptr, (void *)hooks.cause, NULL));
	cr_expect(eq(llong, hooks.bytes, 17));
	cr_expect(gt(llong, hooks.duration, 0));
	cr_expect(eq(str, hooks.route, "GET /v"));
	/* The context outlives the request for whoever retains it; it is done, and says why. */
	cr_expect(eq(ptr, (void *)ctx_err(kept), (void *)&CTX_CANCELED));
	cr_expect(eq(ptr, (void *)ctx_cause(kept), (void *)&HTTP_REQUEST_FINISHED));
	cr_expect(eq(str, ctx_value(kept, &name_key), "set by on_request"));
	ctx_release(kept);

	response = http_peer_ask(server, "GET", "/nowhere", NULL);
	cr_expect(eq(int, response.status, 404));
	http_peer_clear(&response);
	cr_assert(eventually(is_done, &(int){2}, 5000));
	cr_expect(eq(int, hooks.status, 404));
	cr_expect(eq(str, hooks.route, "-"));
	cr_expect(eq(str, hooks.path, "/nowhere"));

	hooks.refuse = true;
	response = http_peer_ask(server, "GET", "/v", NULL);
	cr_expect(eq(int, response.status, 503));
	http_peer_clear(&response);
	cr_assert(eventually(is_done, &(int){3}, 5000));
	cr_expect(eq(int, hooks.status, 503));
	http_peer_stop(server);
	cr_expect(eq(int, hooks.asked, 3));
	cr_expect(eq(int, hooks.done, 3));
}

/* The context given to http_serve lends requests its values, not its end. */
static void say_base(http_request *request, http_response *response)
{
	const char *value = ctx_value(http_request_ctx(request), http_request_data(request));
	http_response_text(response, 200, value ? value : "none");
}

static http_server *base_server;

static void *serve_base(void *arg)
{
	http_serve(base_server, arg);
	return NULL;
}

Test(http_request, contexts_have_the_values_of_the_servers, .timeout = 60)
{
	static const ctx_key key = {.name = "base"};
	char bound[64], url[128], body[64] = "";
	ctx *with_value = ctx_with_value(ctx_background(), &key, "from the base");
	ctx *c = ctx_with_cancel(with_value);
	base_server = http_server_new(NULL);
	cr_assert(eq(int, http_handle(base_server, "GET /", say_base, (void *)(uintptr_t)&key), 0));
	cr_assert(eq(int, http_listen(base_server, "127.0.0.1:0", bound, sizeof(bound)), 0));
	pthread_t thread;
	pthread_create(&thread, NULL, serve_base, c);
	snprintf(url, sizeof(url), "http://%s/", bound);
	CURL *curl = curl_easy_init();
	curl_easy_setopt(curl, CURLOPT_URL, url);
	curl_easy_setopt(curl, CURLOPT_WRITEFUNCTION, add_to);
	curl_easy_setopt(curl, CURLOPT_WRITEDATA, body);
	cr_expect(eq(int, (int)curl_easy_perform(curl), CURLE_OK));
	cr_expect(eq(str, body, "from the base"));
	curl_easy_cleanup(curl);
	ctx_end(c);
	pthread_join(thread, NULL);
	http_server_free(base_server);
	ctx_release(with_value);
}

/* ---- Addresses --------------------------------------------------------------------------------------- */

Test(http_request, addresses, .timeout = 60)
{
	static const char *const bad[] = {"",
	                                  "8080",
	                                  "127.0.0.1",
	                                  "127.0.0.1:",
	                                  "127.0.0.1:x",
	                                  "127.0.0.1:70000",
	                                  ":99999",
	                                  "::1:80",
	                                  "[::1]",
	                                  "no.such.host.invalid:80",
	                                  "unix:"};
	http_server *server = http_server_new(NULL);
	for (size_t i = 0; i < sizeof(bad) / sizeof(*bad); i++) {
		errno = 0;
		cr_expect(eq(int, http_listen(server, bad[i], NULL, 0), -1), "%s", bad[i]);
		cr_expect(ne(int, errno, 0), "%s", bad[i]);
	}
	char bound[64];
	cr_expect(eq(int, http_listen(server, "127.0.0.1:0", bound, sizeof(bound)), 0));
	cr_expect(eq(int, http_listen(server, bound, NULL, 0), -1));
	cr_expect(eq(int, errno, EADDRINUSE));
	cr_expect(eq(int, http_listen(server, ":0", bound, sizeof(bound)), 0));
	cr_expect(ne(str, strrchr(bound, ':'), ":0"));
	http_server_free(server);
}

Test(http_request, unix_sockets, .timeout = 60)
{
	char address[64], bound[64], body[64] = "";
	snprintf(address, sizeof(address), "unix:/tmp/tether-test-%d", (int)getpid());
	ctx *c = ctx_with_cancel(ctx_background());
	/* The socket that a server which died has left does not stand in the way; one in use does. */
	for (int round = 0; round < 2; round++) {
		base_server = http_server_new(NULL);
		cr_assert(eq(int, http_listen(base_server, address, bound, sizeof(bound)), 0));
		cr_expect(eq(str, bound, address));
		if (round == 1)
			break;
		http_server *second = http_server_new(NULL);
		cr_expect(eq(int, http_listen(second, address, NULL, 0), -1));
		http_server_free(second);
		http_server_free(base_server);
	}
	cr_assert(eq(int, http_handle(base_server, "GET /", say_base, &base_server), 0));
	pthread_t thread;
	pthread_create(&thread, NULL, serve_base, c);
	CURL *curl = curl_easy_init();
	curl_easy_setopt(curl, CURLOPT_URL, "http://localhost/");
	curl_easy_setopt(curl, CURLOPT_UNIX_SOCKET_PATH, address + 5);
	curl_easy_setopt(curl, CURLOPT_WRITEFUNCTION, add_to);
	curl_easy_setopt(curl, CURLOPT_WRITEDATA, body);
	cr_expect(eq(int, (int)curl_easy_perform(curl), CURLE_OK));
	cr_expect(eq(str, body, "none"));
	curl_easy_cleanup(curl);
	ctx_end(c);
	pthread_join(thread, NULL);
	http_server_free(base_server);
	cr_expect(eq(int, access(address + 5, F_OK), -1));
}

/* ---- Deadlines and names ----------------------------------------------------------------------------- */

static void until_done(http_request *request, http_response *response)
{
	ctx *c = http_request_ctx(request);
	int64_t deadline;
	bool limited = ctx_deadline(c, &deadline);
	if (limited && deadline - ctx_now() < 60 * CTX_SECOND)
		wait_done(c);
	bool passed = ctx_err(c) == &CTX_DEADLINE_EXCEEDED && ctx_cause(c) == &CTX_DEADLINE_EXCEEDED;
	http_response_text(response, passed ? 504 : 200, limited ? "limited" : "not limited");
}

static int status_with(http_peer_server *server, const char *field)
{
	char request[256];
	snprintf(request, sizeof(request), "GET / HTTP/1.1\r\nHost: h\r\n%s\r\n", field);
	http_peer_response response = tell(server, request);
	int status = response.status;
	http_peer_clear(&response);
	return status;
}

Test(http_request, deadlines, .timeout = 60)
{
	http_server_options options = {.request_timeout = 50 * CTX_MILLISECOND,
	                               .on_request = on_request,
	                               .on_done = on_done,
	                               .data = &hooks};
	const http_peer_route until[] = {{"GET /", until_done, NULL}, {0}};
	http_peer_server *server = http_peer_serve(&options, until);
	cr_expect(eq(int, status_with(server, ""), 504));
	cr_assert(eventually(is_done, &(int){1}, 5000));
	cr_expect(eq(int, hooks.status, 504));
	cr_expect(eq(ptr, (void *)hooks.cause, (void *)&CTX_DEADLINE_EXCEEDED));
	/* The client may shorten it, not lengthen it. */
	cr_expect(eq(int, status_with(server, "Prefer: wait=1000\r\n"), 504));
	http_peer_stop(server);

	options.request_timeout = 1000 * CTX_SECOND;
	server = http_peer_serve(&options, until);
	cr_expect(eq(int, status_with(server, ""), 200));
	cr_expect(eq(int, status_with(server, "Prefer: wait=0\r\n"), 504));
	cr_expect(eq(int, status_with(server, "Prefer: respond-async, Wait=0; x=y\r\n"), 504));
	/* Of several the first counts, wherever it stands. */
	cr_expect(eq(int, status_with(server, "Prefer: a\r\nPrefer: b, wait = 0 , wait=9\r\n"), 504));
	cr_expect(eq(int, status_with(server, "Prefer: wait=900, wait=0\r\n"), 200));
	static const char *const not [] = {
		"wait",    "wait=",   "wait=x",        "wait=-1",   "wait, wait=0",    "wait;wait=0",
		"await=0", "wait=0s", "wait=00000000", "a; wait=0", "a=\"b, wait=0\"", "a=\"\\\", wait=0",
		"wait=0 0"};
	for (size_t i = 0; i < sizeof(not ) / sizeof(*not ); i++) {
		char field[64];
		snprintf(field, sizeof(field), "Prefer: %s\r\n", not [i]);
		cr_expect(eq(int, status_with(server, field), 200), "%s", not [i]);
	}
	http_peer_stop(server);

	server = http_peer_serve(NULL, until);
	http_peer_response response = http_peer_ask(server, "GET", "/", NULL);
	cr_expect(eq(str, response.body, "not limited"));
	http_peer_clear(&response);
	cr_expect(eq(int, status_with(server, "Prefer: wait=0\r\n"), 504));
	http_peer_stop(server);
}

static void say_names(http_request *request, http_response *response)
{
	if (http_request_data(request))
		http_write(response, "", 0);
	else
		line(response, http_request_id(request), http_request_trace(request));
}

#define TRACE "0af7651916cd43dd8448eb211c80319c"

/* Sends the two fields, and copies what comes back of them. */
static void exchange(http_peer_server *server, const char *target, const char *fields, char id[200],
                     char trace[200])
{
	char request[1024];
	snprintf(request, sizeof(request), "GET %s HTTP/1.1\r\nHost: h\r\n%s\r\n", target, fields);
	http_peer_response response = tell(server, request);
	snprintf(id, 200, "%s", http_peer_field(&response, "X-Request-Id"));
	snprintf(trace, 200, "%s", http_peer_field(&response, "traceparent"));
	if (response.status == 200 && !response.chunked) {
		char expected[512];
		snprintf(expected, sizeof(expected), "%s=%s\n", id, trace);
		cr_expect(eq(str, response.body, expected));
	}
	http_peer_clear(&response);
}

Test(http_request, names_for_logs, .timeout = 60)
{
	http_server_options options = {.traces = true};
	http_peer_server *server = http_peer_serve(
		&options,
		(http_peer_route[]){{"GET /{$}", say_names, NULL}, {"GET /stream", say_names, &hooks}, {0}});
	char id[200], trace[200], other_id[200], other_trace[200];
	exchange(server, "/", "X-Request-Id: abc-1\r\ntraceparent: 00-" TRACE "-b7ad6b7169203331-01\r\n", id,
	         trace);
	cr_expect(eq(str, id, "abc-1"));
	cr_expect(eq(sz, strlen(trace), 55));
	cr_expect(strncmp(trace, "00-" TRACE "-", 36) == 0, "%s", trace);
	cr_expect(strncmp(trace + 36, "b7ad6b7169203331", 16) != 0, "the span is the client's");
	cr_expect(eq(str, trace + 52, "-01"));
	/* What is made is new each time, and is there whatever the answer. */
	static const char *const targets[] = {"/", "/nowhere", "/stream", "/%zz"};
	for (size_t i = 0; i < sizeof(targets) / sizeof(*targets); i++) {
		exchange(server, targets[i], "", id, trace);
		exchange(server, targets[i], "", other_id, other_trace);
		cr_expect(eq(sz, strlen(id), 16), "%s", targets[i]);
		cr_expect(eq(sz, strlen(trace), 55), "%s", targets[i]);
		cr_expect(ne(str, id, other_id));
		cr_expect(strncmp(trace, other_trace, 35) != 0);
	}
	static const char *const bad[] = {
		"00-" TRACE "-b7ad6b7169203331",
		"00-" TRACE "-b7ad6b7169203331-1",
		"00-" TRACE "-b7ad6b7169203331-01-x",
		"ff-" TRACE "-b7ad6b7169203331-01",
		"00-" TRACE "-0000000000000000-01",
		"00-00000000000000000000000000000000-b7ad6b7169203331-01",
		"00-" TRACE "-B7AD6B7169203331-01",
		"00_" TRACE "-b7ad6b7169203331-01",
		"0-" TRACE "-b7ad6b7169203331-01",
		"x",
	};
	for (size_t i = 0; i < sizeof(bad) / sizeof(*bad); i++) {
		char fields[256];
		snprintf(fields, sizeof(fields), "traceparent: %s\r\nX-Request-Id: a b\r\n", bad[i]);
		exchange(server, "/", fields, id, trace);
		cr_expect(strncmp(trace + 3, TRACE, 32) != 0, "%s", bad[i]);
		cr_expect(eq(sz, strlen(id), 16));
	}
	exchange(server, "/", "traceparent: 01-" TRACE "-b7ad6b7169203331-fd-more\r\n", id, trace);
	cr_expect(strncmp(trace, "00-" TRACE, 35) == 0, "a later version is read as far as it is known");
	cr_expect(eq(str, trace + 52, "-01"), "flags that nobody knows go on");
	/* Two of one name are none: which would it be? */
	exchange(server, "/",
	         "traceparent: 00-" TRACE "-b7ad6b7169203331-01\r\nX-Request-Id: a\r\n"
	         "traceparent: 00-" TRACE "-b7ad6b7169203331-01\r\nX-Request-Id: b\r\n",
	         id, trace);
	cr_expect(strncmp(trace + 3, TRACE, 32) != 0);
	cr_expect(eq(sz, strlen(id), 16));
	http_peer_stop(server);
}

/* The names are the layer's own affair: a handler that has used up its room for fields does not lose them. */
static void many_fields(http_request *request, http_response *response)
{
	char value[1000];
	memset(value, 'x', sizeof(value) - 1);
	value[sizeof(value) - 1] = '\0';
	for (int i = 0; i < 3; i++)
		http_response_add_header(response, "X-Long", value);
	http_response_header(response, "X-Request-Id", "not this one");
	if (http_request_data(request))
		http_write(response, "hello", 5);
	else
		http_response_append(response, "hello", 5);
}

Test(http_request, names_fit_whatever_the_handler_has_said, .timeout = 60)
{
	http_server_options options = {.traces = true};
	http_peer_server *server =
		http_peer_serve(&options, (http_peer_route[]){{"GET /{$}", many_fields, NULL},
	                                                      {"GET /stream", many_fields, &hooks},
	                                                      {0}});
	static const char *const targets[] = {"/", "/stream"};
	for (size_t i = 0; i < sizeof(targets) / sizeof(*targets); i++) {
		char id[129], request[512];
		memset(id, 'i', sizeof(id) - 1);
		id[sizeof(id) - 1] = '\0';
		snprintf(request, sizeof(request), "GET %s HTTP/1.1\r\nHost: h\r\nX-Request-Id: %s\r\n\r\n",
		         targets[i], id);
		http_peer_response response = tell(server, request);
		cr_expect(eq(int, response.status, 200), "%s", targets[i]);
		cr_expect(eq(str, response.body, "hello"));
		cr_expect(eq(str, (char *)http_peer_field(&response, "X-Request-Id"), id));
		cr_expect(ne(ptr, (void *)http_peer_field(&response, "traceparent"), NULL));
		http_peer_clear(&response);
		/* One more is too long. */
		snprintf(request, sizeof(request), "GET %s HTTP/1.1\r\nHost: h\r\nX-Request-Id: %sx\r\n\r\n",
		         targets[i], id);
		response = tell(server, request);
		cr_expect(eq(sz, strlen(http_peer_field(&response, "X-Request-Id")), 16));
		http_peer_clear(&response);
	}
	http_peer_stop(server);
}
