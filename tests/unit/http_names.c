/*
 * The names that a request has in logs, its id and its trace (W3C Trace Context): taken from the client if they are
 * well formed, else made, and told in the answer whatever it is.
 */
#include <criterion/criterion.h>
#include <criterion/new/assert.h>
#include <stdio.h>
#include <string.h>

#include "http_peer.h"

static void say_names(http_request *request, http_response *response)
{
	char text[512];
	snprintf(text, sizeof(text), "%s=%s\n", http_request_id(request), http_request_trace(request));
	if (http_request_data(request))
		http_write(response, "", 0);
	else
		http_response_text(response, 200, text);
}

#define TRACE "0af7651916cd43dd8448eb211c80319c"

/* Sends the two fields, and copies what comes back of them. */
static void exchange(http_peer_server *server, const char *target, const char *fields, char id[200],
                     char trace[200])
{
	char request[1024];
	snprintf(request, sizeof(request), "GET %s HTTP/1.1\r\nHost: h\r\n%s\r\n", target, fields);
	http_peer_response response = http_peer_tell(server, request);
	snprintf(id, 200, "%s", http_peer_field(&response, "X-Request-Id"));
	snprintf(trace, 200, "%s", http_peer_field(&response, "traceparent"));
	if (response.status == 200 && !response.chunked) {
		char expected[512];
		snprintf(expected, sizeof(expected), "%s=%s\n", id, trace);
		cr_expect(eq(str, response.body, expected));
	}
	http_peer_clear(&response);
}

Test(http_names, names_for_logs, .timeout = 60)
{
	http_server_options options = {.traces = true};
	http_peer_server *server = http_peer_serve(
		&options, (http_peer_route[]){
				  {"GET /{$}", say_names, NULL}, {"GET /stream", say_names, "stream"}, {0}});
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

Test(http_names, names_fit_whatever_the_handler_has_said, .timeout = 60)
{
	http_server_options options = {.traces = true};
	http_peer_server *server =
		http_peer_serve(&options, (http_peer_route[]){{"GET /{$}", many_fields, NULL},
	                                                      {"GET /stream", many_fields, "stream"},
	                                                      {0}});
	static const char *const targets[] = {"/", "/stream"};
	for (size_t i = 0; i < sizeof(targets) / sizeof(*targets); i++) {
		char id[129], request[512];
		memset(id, 'i', sizeof(id) - 1);
		id[sizeof(id) - 1] = '\0';
		snprintf(request, sizeof(request), "GET %s HTTP/1.1\r\nHost: h\r\nX-Request-Id: %s\r\n\r\n",
		         targets[i], id);
		http_peer_response response = http_peer_tell(server, request);
		cr_expect(eq(int, response.status, 200), "%s", targets[i]);
		cr_expect(eq(str, response.body, "hello"));
		cr_expect(eq(str, (char *)http_peer_field(&response, "X-Request-Id"), id));
		cr_expect(ne(ptr, (void *)http_peer_field(&response, "traceparent"), NULL));
		http_peer_clear(&response);
		/* One more is too long. */
		snprintf(request, sizeof(request), "GET %s HTTP/1.1\r\nHost: h\r\nX-Request-Id: %sx\r\n\r\n",
		         targets[i], id);
		response = http_peer_tell(server, request);
		cr_expect(eq(sz, strlen(http_peer_field(&response, "X-Request-Id")), 16));
		http_peer_clear(&response);
	}
	http_peer_stop(server);
}
