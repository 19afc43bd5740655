/*
 * What a server does around each request: its hooks, once each; the values and the deadline of the request's context,
 * which a client may shorten.
 */
#include <criterion/criterion.h>
#include <criterion/new/assert.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <tether/loop.h>

#include "http_peer.h"
#include "support.h"

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

static ctx *kept;

static void say_value(http_request *request, http_response *response)
{
	http_response_text(response, 200, ctx_value(http_request_ctx(request), &name_key));
	if (!kept)
		kept = ctx_retain(http_request_ctx(request));
}

Test(http_hooks, hooks_see_each_request_once, .timeout = 60)
{
	http_server_options options = {.on_request = on_request, .on_done = on_done, .data = &hooks};
	http_peer_server *server =
		http_peer_serve(&options, (http_peer_route[]){{"GET /v", say_value, NULL}, {0}});
	http_peer_response response = http_peer_ask(server, "GET", "/v", NULL);
	cr_expect(eq(str, response.body, "set by on_request"));
	http_peer_clear(&response);
	cr_assert(eventually_counts(&hooks.done, 1, 5000));
	cr_expect(eq(int, hooks.status, 200));
	cr_expect(eq(ptr, (void *)hooks.cause, NULL));
	cr_expect(eq(llong, hooks.bytes, 17));
	cr_expect(ge(llong, hooks.duration, 1));
	cr_expect(eq(str, hooks.route, "GET /v"));
	/* The context outlives the request for whoever retains it; it is done, and says why. */
	cr_expect(eq(ptr, (void *)ctx_err(kept), (void *)&CTX_CANCELED));
	cr_expect(eq(ptr, (void *)ctx_cause(kept), (void *)&HTTP_REQUEST_FINISHED));
	cr_expect(eq(str, ctx_value(kept, &name_key), "set by on_request"));
	ctx_release(kept);

	response = http_peer_ask(server, "GET", "/nowhere", NULL);
	cr_expect(eq(int, response.status, 404));
	http_peer_clear(&response);
	cr_assert(eventually_counts(&hooks.done, 2, 5000));
	cr_expect(eq(int, hooks.status, 404));
	cr_expect(eq(str, hooks.route, "-"));
	cr_expect(eq(str, hooks.path, "/nowhere"));

	hooks.refuse = true;
	response = http_peer_ask(server, "GET", "/v", NULL);
	cr_expect(eq(int, response.status, 503));
	http_peer_clear(&response);
	cr_assert(eventually_counts(&hooks.done, 3, 5000));
	cr_expect(eq(int, hooks.status, 503));
	http_peer_stop(server);
	cr_expect(eq(int, hooks.asked, 3));
	cr_expect(eq(int, hooks.done, 3));
}

/* ---- Contexts ---------------------------------------------------------------------------------------- */

/* The context given to http_serve lends requests its values, not its end. */
static void say_base(http_request *request, http_response *response)
{
	const char *value = ctx_value(http_request_ctx(request), http_request_data(request));
	http_response_text(response, 200, value ? value : "none");
}

Test(http_hooks, contexts_have_the_values_of_the_servers, .timeout = 60)
{
	static const ctx_key key = {.name = "base"};
	char bound[64], body[64] = "";
	ctx *with_value = ctx_with_value(ctx_background(), &key, "from the base");
	http_server *server = http_server_new(NULL);
	cr_assert(eq(int, http_handle(server, "GET /", say_base, (void *)(uintptr_t)&key), 0));
	cr_assert(eq(int, http_listen(server, "127.0.0.1:0", bound, sizeof(bound)), 0));
	http_peer_server *serving = http_peer_start(server, with_value);
	cr_expect(eq(int, http_get(ctx_background(), bound, "/", body, sizeof(body)), 200));
	cr_expect(eq(str, body, "from the base"));
	http_peer_stop(serving);
	ctx_release(with_value);
}

/* ---- Deadlines --------------------------------------------------------------------------------------- */

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
	http_peer_response response = http_peer_tell(server, request);
	int status = response.status;
	http_peer_clear(&response);
	return status;
}

Test(http_hooks, deadlines, .timeout = 60)
{
	http_server_options options = {.request_timeout = 50 * CTX_MILLISECOND,
	                               .on_request = on_request,
	                               .on_done = on_done,
	                               .data = &hooks};
	const http_peer_route until[] = {{"GET /", until_done, NULL}, {0}};
	http_peer_server *server = http_peer_serve(&options, until);
	cr_expect(eq(int, status_with(server, ""), 504));
	cr_assert(eventually_counts(&hooks.done, 1, 5000));
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
