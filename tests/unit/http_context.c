/*
 * Contexts from the server's over the connection's to the request's: values that come down, ends that come down,
 * and what each knows of itself.
 */
#include <criterion/criterion.h>
#include <criterion/new/assert.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <tether/loop.h>

#include "http_peer.h"
#include "support.h"

static struct {
	atomic_int connections, connections_freed, done, finished, status;
	_Atomic(ctx *) kept, connection;
	_Atomic(const ctx_error *) cause, write_error;
	wait_event go;
	atomic_bool entered;
} seen;

static bool is_set(void *flag)
{
	return atomic_load((atomic_bool *)flag);
}

static bool is_one(void *count)
{
	return atomic_load((atomic_int *)count) == 1;
}

static void ask_on(int fd, const char *path, const char *expected)
{
	char request[256];
	snprintf(request, sizeof(request), "GET %s HTTP/1.1\r\nHost: h\r\nX-Request-Id: it\r\n\r\n", path);
	http_peer_send(fd, request);
	http_peer_response response = http_peer_read(fd, false);
	cr_expect(eq(int, response.status, 200));
	cr_expect(eq(str, response.body, (char *)expected));
	http_peer_clear(&response);
}

/* ---- What a context knows ---------------------------------------------------------------------------- */

/* As a library far below would: it has nothing but the context. */
static void keep(ctx *c)
{
	atomic_store(&seen.kept, ctx_retain(c));
}

static void keeps(http_request *request, http_response *response)
{
	ctx_auto *below = ctx_with_timeout(http_request_ctx(request), CTX_SECOND);
	const http_info *info = http_info_of(below);
	cr_expect(eq(str, (char *)info->peer, (char *)http_request_peer(request)));
	cr_expect(eq(str, (char *)info->local, (char *)http_request_local(request)));
	cr_expect(eq(str, (char *)info->trace, (char *)http_request_trace(request)));
	char text[512];
	ctx_string(below, text, sizeof(text));
	cr_expect(ne(ptr, strstr(text, "WithValue(http, "), NULL), "%s", text);
	keep(below);
	http_response_text(response, 200, "kept");
}

Test(http_context, a_context_tells_of_its_request_as_long_as_it_lives, .timeout = 60)
{
	http_server_options options = {.traces = true};
	http_peer_server *server =
		http_peer_serve(&options, (http_peer_route[]){{"GET /kept/{x}", keeps, NULL}, {0}});
	char local[64];
	snprintf(local, sizeof(local), "%s", http_peer_address(server));
	int fd = http_peer_connect(server);
	ask_on(fd, "/kept/1", "kept");
	close(fd);
	http_peer_stop(server);
	/* The request, its connection and the server are gone. */
	const http_info *info = http_info_of(seen.kept);
	cr_expect(eq(str, (char *)info->id, "it"));
	cr_expect(eq(str, (char *)info->method, "GET"));
	cr_expect(eq(str, (char *)info->route, "GET /kept/{x}"));
	cr_expect(eq(str, (char *)info->local, local));
	cr_expect(strncmp(info->peer, "127.0.0.1:", 10) == 0);
	cr_expect(eq(sz, strlen(info->trace), 55));
	ctx_release(seen.kept);
	cr_expect(eq(ptr, (void *)http_info_of(ctx_background()), NULL));
}

/* ---- The server's ------------------------------------------------------------------------------------ */

static const ctx_key greeting = {"greeting", NULL};

static void greets(http_request *request, http_response *response)
{
	ctx *c = http_request_ctx(request);
	http_response_text(response, ctx_err(c) ? 500 : 200, ctx_value(c, &greeting));
}

Test(http_context, values_of_the_servers_context_come_down, .timeout = 60)
{
	ctx *base = ctx_with_value(ctx_background(), &greeting, "hello from the base");
	http_server *server = http_server_new(NULL);
	char address[64];
	cr_assert(eq(int, http_handle(server, "GET /", greets, NULL), 0));
	cr_assert(eq(int, http_listen(server, "127.0.0.1:0", address, sizeof(address)), 0));
	http_peer_server *serving = http_peer_start(server, base);
	int fd = http_peer_connect_to(address);
	ask_on(fd, "/", "hello from the base");
	close(fd);
	http_peer_stop(serving);
	ctx_release(base);
}

/* ---- The connection's -------------------------------------------------------------------------------- */

static void free_number(void *number)
{
	free(number);
	atomic_fetch_add(&seen.connections_freed, 1);
}

static const ctx_key connection_number = {"connection number", free_number};

static ctx *numbered(ctx *connection, void *data)
{
	(void)data;
	const http_info *info = http_info_of(connection);
	cr_expect(strncmp(info->peer, "127.0.0.1:", 10) == 0);
	cr_expect(eq(ptr, (void *)info->method, NULL));
	char *number = malloc(16);
	snprintf(number, 16, "%d", atomic_fetch_add(&seen.connections, 1) + 1);
	atomic_store(&seen.connection, ctx_retain(connection));
	return ctx_with_value(connection, &connection_number, number);
}

static void says_number(http_request *request, http_response *response)
{
	http_response_text(response, 200, ctx_value(http_request_ctx(request), &connection_number));
}

static bool has_ended(void *c)
{
	return ctx_err(c);
}

Test(http_context, each_connection_has_its_own, .timeout = 60)
{
	http_server_options options = {.on_connection = numbered};
	http_peer_server *server =
		http_peer_serve(&options, (http_peer_route[]){{"GET /", says_number, NULL}, {0}});
	int first = http_peer_connect(server);
	ask_on(first, "/", "1");
	ctx *of_first = seen.connection;
	int second = http_peer_connect(server);
	ask_on(second, "/", "2");
	ctx *of_second = seen.connection;
	ask_on(first, "/", "1");
	cr_expect(eq(ptr, (void *)ctx_err(of_first), NULL));

	close(first);
	cr_expect(eventually(has_ended, of_first, 10000));
	cr_expect(eq(ptr, (void *)ctx_cause(of_first), (void *)&HTTP_CLIENT_DISCONNECTED));
	cr_expect(eventually(is_one, &seen.connections_freed, 10000));
	cr_expect(eq(ptr, (void *)ctx_err(of_second), NULL));

	http_peer_send(second, "GET / HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n");
	cr_expect(http_peer_closed(second));
	cr_expect(eventually(has_ended, of_second, 10000));
	cr_expect(eq(ptr, (void *)ctx_cause(of_second), (void *)&HTTP_CONNECTION_CLOSED));
	close(second);
	http_peer_stop(server);
	cr_expect(eq(int, seen.connections_freed, 2));
	ctx_release(of_first);
	ctx_release(of_second);
}

static ctx *refuses(ctx *connection, void *data)
{
	(void)data;
	atomic_store(&seen.connection, ctx_retain(connection));
	return NULL;
}

Test(http_context, a_connection_may_be_refused, .timeout = 60)
{
	http_server_options options = {.on_connection = refuses};
	http_peer_server *server =
		http_peer_serve(&options, (http_peer_route[]){{"GET /", says_number, NULL}, {0}});
	int fd = http_peer_connect(server);
	cr_expect(http_peer_closed(fd));
	close(fd);
	cr_expect(eq(ptr, (void *)ctx_cause(seen.connection), (void *)&HTTP_CONNECTION_CLOSED));
	ctx_release(seen.connection);
	http_server_stats stats;
	http_server_stats_get(http_peer_server_of(server), &stats);
	cr_expect(eq(u64, stats.connections_refused, 1));
	cr_expect(eq(sz, stats.connections, 0));
	http_peer_stop(server);
}

static ctx *same(ctx *connection, void *data)
{
	(void)data;
	return connection;
}

Test(http_context, a_connections_own_will_do, .timeout = 60)
{
	http_server_options options = {.on_connection = same};
	http_peer_server *server =
		http_peer_serve(&options, (http_peer_route[]){{"GET /{$}", keeps, NULL}, {0}});
	http_peer_response response = http_peer_ask(server, "GET", "/nowhere", NULL);
	cr_expect(eq(int, response.status, 404));
	http_peer_clear(&response);
	http_peer_stop(server);
}

/* ---- What must finish -------------------------------------------------------------------------------- */

/*
 * A write that must finish, whoever has left meanwhile: under a context of the same values that does not end with
 * the request's, and has a deadline of its own instead.
 */
static void must_finish(http_request *request, http_response *response)
{
	ctx_auto *whatever_happens = ctx_without_cancel(http_request_ctx(request));
	ctx_auto *work = ctx_with_timeout(whatever_happens, 30 * CTX_SECOND);
	atomic_store(&seen.entered, true);
	bool done = wait_event_wait(work, &seen.go) == 0;
	atomic_store(&seen.cause, ctx_cause(http_request_ctx(request)));
	atomic_store(&seen.write_error, ctx_err(work));
	cr_expect(eq(str, (char *)http_info_of(work)->method, "POST"), "the values are lost");
	if (done)
		atomic_fetch_add(&seen.finished, 1);
	http_response_text(response, done ? 201 : 504, "");
}

/* The same with no patience: its own deadline still ends it. */
static void must_finish_soon(http_request *request, http_response *response)
{
	ctx_auto *whatever_happens = ctx_without_cancel(http_request_ctx(request));
	ctx_auto *work = ctx_with_timeout(whatever_happens, CTX_MILLISECOND);
	wait_done(work);
	http_response_text(response, ctx_err(work) == &CTX_DEADLINE_EXCEEDED ? 504 : 500, "");
}

static void on_done(http_request *request, const http_outcome *outcome, void *data)
{
	(void)request, (void)data;
	atomic_store(&seen.status, outcome->status);
	atomic_fetch_add(&seen.done, 1);
}

static bool is_cancelled(void *request_ctx)
{
	return ctx_err(request_ctx);
}

static bool keep_it(http_request *request, void *data)
{
	(void)data;
	keep(http_request_ctx(request));
	return true;
}

Test(http_context, a_write_that_must_finish_does, .timeout = 60)
{
	http_server_options options = {.on_done = on_done, .on_request = keep_it};
	http_peer_server *server =
		http_peer_serve(&options, (http_peer_route[]){{"POST /{$}", must_finish, NULL},
	                                                      {"POST /soon", must_finish_soon, NULL},
	                                                      {0}});
	int fd = http_peer_connect(server);
	http_peer_send(fd, "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 0\r\n\r\n");
	cr_assert(eventually(is_set, &seen.entered, 10000));
	close(fd);
	cr_assert(eventually(is_cancelled, seen.kept, 10000));
	cr_expect(eq(int, seen.done, 0), "the handler was not left to finish");
	wait_event_set(&seen.go);
	cr_assert(eventually(is_one, &seen.done, 10000));
	cr_expect(eq(int, seen.finished, 1));
	cr_expect(eq(int, seen.status, 499));
	cr_expect(eq(ptr, (void *)seen.cause, (void *)&HTTP_CLIENT_DISCONNECTED));
	cr_expect(eq(ptr, (void *)seen.write_error, NULL));
	ctx_release(seen.kept);

	http_peer_response response = http_peer_ask(server, "POST", "/soon", "");
	cr_expect(eq(int, response.status, 504));
	http_peer_clear(&response);
	ctx_release(seen.kept);
	http_peer_stop(server);
}
