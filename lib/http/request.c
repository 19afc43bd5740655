/*
 * Requests: from the head to on_done, whatever protocol brought them.
 *
 *	request_new ─► request_add_field… ─► request_begin ─► request_body… ─► request_run
 *	                                                                            │
 *	                            refused, or the client has gone ◄───────────────┴─► the handler, in a fiber
 *	                                        │                                                │
 *	                                        └────────► transport->answer ◄───────────────────┘
 *	                                                        │
 *	                                   request_detach ◄─────┘   (or at any time, if the connection ends)
 *
 * It is over when the handler has returned and the protocol has let go of it, whichever is last; on_done is
 * called there, once. Each of the two holds a reference.
 */
#include <errno.h>
#include <string.h>
#include <strings.h>

#include "http_priv.h"

const ctx_error HTTP_CLIENT_DISCONNECTED = {ECONNRESET, "client disconnected"};
const ctx_error HTTP_STREAM_RESET = {ECONNRESET, "stream reset by the client"};
const ctx_error HTTP_SERVER_SHUTDOWN = {ESHUTDOWN, "server shutting down"};
const ctx_error HTTP_CONNECTION_CLOSED = {ECANCELED, "connection closed"};
const ctx_error HTTP_REQUEST_FINISHED = {ECANCELED, "request finished"};

enum { SPARE_MAX = 64 }; /* requests a worker keeps for reuse */

/* ---- Birth and death --------------------------------------------------------------------------------- */

static http_request *take_memory(worker *w)
{
	http_request *request = w->spare;
	if (!request)
		return malloc(sizeof(*request));
	w->spare = request->next;
	w->spare_count--;
	return request;
}

static void give_memory_back(worker *w, http_request *request)
{
	if (w->spare_count >= SPARE_MAX) {
		free(request);
		return;
	}
	request->magic = 0;
	request->next = w->spare;
	w->spare = request;
	w->spare_count++;
}

void request_free_spare(worker *w)
{
	http_request *next;
	for (http_request *request = w->spare; request; request = next) {
		next = request->next;
		free(request);
	}
	w->spare = NULL;
}

http_request *request_new(conn *c, const transport *t, const char *target)
{
	http_request *request = take_memory(c->worker);
	if (!request)
		return NULL;
	memset(request, 0, offsetof(http_request, memory));
	request->magic = REQUEST_MAGIC;
	request->references = 1;
	request->attached = true;
	request->transport = t;
	request->conn = conn_ref(c);
	request->method = "";
	request->path = "";
	request->fields_end = &request->fields;
	request->began_ns = ctx_now();
	arena_init(&request->arena, request->memory, sizeof(request->memory));
	response_init(&request->response, request);
	request->target = arena_copy(&request->arena, target, strlen(target));
	request->root = request->target ? ctx_with_cancel(c->ctx) : NULL;
	if (!request->root) {
		request_unref(request);
		return NULL;
	}
	request->ctx = ctx_retain(request->root);
	return request;
}

void request_unref(http_request *request)
{
	if (--request->references > 0)
		return;
	ctx_release(request->ctx);
	ctx_release(request->root);
	response_free(&request->response);
	free(request->body);
	arena_free(&request->arena);
	conn *c = request->conn;
	c->bodies -= request->body_counted;
	give_memory_back(c->worker, request);
	conn_unref(c);
}

/* ---- Refusals ---------------------------------------------------------------------------------------- */

void request_refuse(http_request *request, int status, const char *detail)
{
	if (request->refused)
		return;
	request->refused = true;
	response_error(&request->response, status, detail);
}

void request_refuse_and_close(http_request *request, int status, const char *detail)
{
	request_refuse(request, status, detail);
	request->response.closes = true;
}

/* ---- Handler and end --------------------------------------------------------------------------------- */

/* What the access log will say. */
static int final_status(const http_request *request)
{
	if (request->sent || request->told)
		return request->response.status;
	return request->cause == &HTTP_SERVER_SHUTDOWN ? 503 : 499;
}

static void over(http_request *request)
{
	http_server *server = request->conn->worker->server;
	if (!request->begun)
		return;
	ctx_cancel_cause(request->root, &HTTP_REQUEST_FINISHED);
	http_outcome outcome = {
		.status = final_status(request),
		.cause = request->cause,
		.body_bytes = request->response.sent_size,
		.duration_ns = ctx_now() - request->began_ns,
	};
	if (outcome.status == 499)
		atomic_fetch_add_explicit(&server->disconnects_total, 1, memory_order_relaxed);
	if (server->options.on_done)
		server->options.on_done(request, &outcome, server->options.data);
	atomic_fetch_sub_explicit(&server->requests, 1, memory_order_relaxed);
}

void request_answer(http_request *request)
{
	if (request->response.broken)
		response_error(&request->response, 500, NULL);
	trace_answer(request);
	if (request->attached)
		request->transport->answer(request);
}

/* In the fiber, on its own stack: what follows the handler. */
static void handler_returned(http_request *request)
{
	http_response *response = &request->response;
	request->running = false;
	request->conn->handlers--;
	admit_handler_over(request);
	if (!request->cause)
		request->cause = ctx_cause(request->ctx);
	ctx_cancel_cause(request->root, &HTTP_REQUEST_FINISHED);
	if (request->body_error && !response->streaming)
		response_error(response, request->body_error, NULL);
	if (!response->streaming || strcmp(request->method, "HEAD") == 0) {
		request_answer(request);
	} else {
		response->ended = true;
		if (request->attached)
			request->transport->wake(request);
	}
	if (!request->attached)
		over(request);
}

static void run_handler(void *arg)
{
	http_request *request = arg;
	if (request->magic != REQUEST_MAGIC)
		http_misuse("http", "a request's memory was overwritten");
	request->route->handler(request, &request->response);
	handler_returned(request);
	request_unref(request);
}

void request_run(http_request *request)
{
	if (request->refused || request->conn->gone || !admit_handler(request)) {
		request_answer(request);
		return;
	}
	request->running = true;
	request->references++;
	request->conn->handlers++;
	if (loop_start(request->conn->worker->loop, run_handler, request) >= 0)
		return;
	request->running = false;
	request->references--;
	request->conn->handlers--;
	admit_handler_over(request);
	request_refuse(request, 503, NULL);
	request_answer(request);
}

void request_cancel(http_request *request, const ctx_error *cause)
{
	const ctx_error *earlier = ctx_cause(request->root);
	if (!request->cause && !request->running)
		request->cause = earlier && earlier != &HTTP_REQUEST_FINISHED ? earlier : cause;
	ctx_cancel_cause(request->root, cause);
}

void request_detach(http_request *request, bool sent)
{
	http_response *response = &request->response;
	request->attached = false;
	request->sent = sent;
	if (sent && !response->streaming && strcmp(request->method, "HEAD") != 0)
		response->sent_size = response->body_size;
	if (request->running)
		request_cancel(request, &HTTP_CLIENT_DISCONNECTED);
	else
		over(request);
	request_unref(request);
}

/* ---- What handlers see ------------------------------------------------------------------------------- */

ctx *http_request_ctx(const http_request *request)
{
	return request->ctx;
}

void http_request_cancel(http_request *request, const ctx_error *cause)
{
	/* The handler that this wakes may be done, and the request gone, before we are. */
	ctx *root = ctx_retain(request->root);
	ctx_cancel_cause(root, cause);
	ctx_release(root);
}

void *http_request_data(const http_request *request)
{
	return request->route ? request->route->data : NULL;
}

const char *http_request_method(const http_request *request)
{
	return request->method;
}

const char *http_request_path(const http_request *request)
{
	return request->path;
}

const char *http_request_target(const http_request *request)
{
	return request->target;
}

const char *http_request_route(const http_request *request)
{
	return request->route ? request->route->pattern : NULL;
}

const char *http_request_peer(const http_request *request)
{
	return request->conn->info->peer;
}

const char *http_request_local(const http_request *request)
{
	return request->conn->info->local;
}

const char *http_request_id(const http_request *request)
{
	return request->id;
}

const char *http_request_trace(const http_request *request)
{
	return request->trace;
}

const http_client_certificate *http_request_client_certificate(const http_request *request)
{
	return request->conn->certificate;
}

bool http_request_is_encrypted(const http_request *request)
{
	return request->conn->outer;
}

const char *http_path_value(const http_request *request, const char *name)
{
	return pair_value(request->path_values, name);
}

const char *http_query_value(const http_request *request, const char *name)
{
	return pair_value(request->query_values, name);
}

const char *http_header(const http_request *request, const char *name)
{
	for (const http_pair *field = request->fields; field; field = field->next)
		if (strcasecmp(field->name, name) == 0)
			return field->value;
	return NULL;
}

int http_request_set(http_request *request, const ctx_key *key, void *value)
{
	ctx *with_value = ctx_with_value(request->ctx, key, value);
	if (!with_value)
		return -1;
	ctx_release(request->ctx);
	request->ctx = with_value;
	return 0;
}
