/*
 * One request and its answer: what a handler is told, what a client gets, over HTTP/1.1.
 */
#include <criterion/criterion.h>
#include <criterion/new/assert.h>
#include <curl/curl.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "http_peer.h"

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

Test(http_request, a_handler_sees_the_whole_request, .timeout = 60)
{
	http_peer_server *server =
		http_peer_serve(NULL, (http_peer_route[]){{"POST /a/{x}", describe, "data!"}, {0}});
	http_peer_response response = http_peer_tell(
		server, "POST /a/b%20c?q=1+2%2b&q=2&r&s=%3D HTTP/1.1\r\nHost: h\r\nX-Twice: first\r\n"
			"x-twice:second\r\nX-Empty:\r\nContent-Length: 5\r\n\r\nhello");
	cr_expect(eq(int, response.status, 200));
	cr_expect(eq(str, response.body,
	             "method=POST\npath=/a/b c\ntarget=/a/b%20c?q=1+2%2b&q=2&r&s=%3D\nroute=POST /a/{x}\n"
	             "data=data!\nq=1 2+\nr=\nx-twice=first, second\nx-empty=\nabsent=(null)\nbody=hello\n"
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
