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
const ctx_error HTTP_REQUEST_FINISHED = {ECANCELED, "request finished"};

enum {
	SPARE_MAX = 64,  /* requests a worker keeps for reuse */
	WAIT_DIGITS = 7, /* of a preference's seconds: 115 days, past which nobody means it */
};

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
	request->root = request->target ? ctx_with_cancel(c->worker->base) : NULL;
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
	give_memory_back(c->worker, request);
	conn_unref(c);
}

/* ---- The head ---------------------------------------------------------------------------------------- */

bool request_add_field(http_request *request, const char *name, size_t name_size, const char *value,
                       size_t value_size)
{
	arena *a = &request->arena;
	http_pair *field = arena_alloc(a, sizeof(*field));
	if (!field)
		return false;
	*field = (http_pair){.name = arena_copy(a, name, name_size),
	                     .value = arena_copy(a, value, value_size)};
	*request->fields_end = field;
	request->fields_end = &field->next;
	return field->name && field->value;
}

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

/* A redirect to where the path should have gone, with the query it came with. */
static void redirect(http_request *request, const char *location)
{
	const char *query = strchr(request->target, '?');
	if (!query)
		query = "";
	size_t size = strlen(location) + strlen(query) + 1;
	char *target = arena_alloc(&request->arena, size);
	if (!target) {
		request_refuse(request, 503, NULL);
		return;
	}
	snprintf(target, size, "%s%s", location, query);
	request->refused = true;
	http_response_body(&request->response, 308, NULL, NULL, 0);
	http_response_header(&request->response, "Location", target);
}

static void find_route(http_request *request, const char *path)
{
	const router *routes = &request->conn->worker->server->router;
	route_match match = {0};
	switch (router_match(routes, &request->arena, request->method, path, &match)) {
	case ROUTE_FOUND:
		request->route = match.route;
		request->path_values = match.values;
		break;
	case ROUTE_REDIRECT:
		redirect(request, match.location);
		break;
	case ROUTE_BAD_PATH:
		request_refuse_and_close(request, 400,
		                         "The path has a malformed percent escape, or one of a NUL.");
		break;
	case ROUTE_NOT_FOUND:
		request_refuse(request, 404, NULL);
		break;
	case ROUTE_METHOD_UNKNOWN:
		request_refuse(request, 405, NULL);
		http_response_header(&request->response, "Allow", match.allow);
		break;
	case ROUTE_NO_MEMORY:
		request_refuse(request, 503, NULL);
		break;
	}
}

/* Takes the target apart: /path?query */
static void read_target(http_request *request)
{
	arena *a = &request->arena;
	size_t path_size = strcspn(request->target, "?");
	if (request->target[path_size] &&
	    !query_parse(a, request->target + path_size + 1, &request->query_values)) {
		if (errno == EINVAL)
			request_refuse_and_close(
				request, 400, "The query has a malformed percent escape, or one of a NUL.");
		else
			request_refuse(request, 503, NULL);
	}
	const char *path = arena_copy(a, request->target, path_size);
	const char *decoded = path ? percent_decode(a, path, path_size, false) : NULL;
	if (decoded)
		request->path = decoded;
	if (path)
		find_route(request, path);
	else
		request_refuse(request, 503, NULL);
}

/* The length of one preference with its parameters: up to a comma, but one within quotes. */
static size_t preference_size(const char *text)
{
	bool quoted = false;
	const char *end = text;
	for (; *end && (quoted || *end != ','); end++) {
		if (*end == '"')
			quoted = !quoted;
		else if (quoted && *end == '\\' && end[1])
			end++;
	}
	return (size_t)(end - text);
}

/* Whether one preference is "wait=2"; *seconds is -1 if it is one that says nothing sensible. */
static bool is_wait(const char *text, int64_t *seconds)
{
	text += strspn(text, " \t");
	if (strncasecmp(text, "wait", 4) != 0)
		return false;
	text += 4 + strspn(text + 4, " \t");
	*seconds = -1;
	if (*text != '=')
		return *text == '\0' || *text == ',' || *text == ';';
	text += 1 + strspn(text + 1, " \t");
	size_t digits = strspn(text, "0123456789");
	const char *after = text + digits + strspn(text + digits, " \t");
	if (digits > 0 && digits <= WAIT_DIGITS && (*after == '\0' || *after == ',' || *after == ';'))
		*seconds = strtol(text, NULL, 10);
	return true;
}

/* The seconds of "Prefer: wait=2" (RFC 7240: of several the first counts); -1 if the client does not say. */
static int64_t preferred_wait(const http_request *request)
{
	int64_t seconds = -1;
	for (const http_pair *field = request->fields; field; field = field->next) {
		if (strcasecmp(field->name, "Prefer") != 0)
			continue;
		for (const char *at = field->value; *at; at += *at == ',') {
			if (is_wait(at, &seconds))
				return seconds;
			at += preference_size(at);
		}
	}
	return -1;
}

/* From the head on. False: out of memory. */
static bool set_deadline(http_request *request, int64_t timeout)
{
	int64_t wait = preferred_wait(request);
	if (wait >= 0 && (timeout == 0 || wait * CTX_SECOND < timeout))
		timeout = wait * CTX_SECOND;
	else if (timeout == 0)
		return true;
	ctx *limited = ctx_with_timeout(request->root, timeout);
	if (!limited)
		return false;
	ctx_release(request->ctx);
	request->ctx = limited;
	return true;
}

bool request_begin(http_request *request, const char *method, enum http_version version)
{
	http_server *server = request->conn->worker->server;
	request->method = arena_copy(&request->arena, method, strlen(method));
	if (!request->method)
		return false;
	request->begun = true;
	atomic_fetch_add_explicit(&server->requests, 1, memory_order_relaxed);
	atomic_fetch_add_explicit(&server->requests_total, 1, memory_order_relaxed);
	validate_head(request, version);
	if (!request->refused && !set_deadline(request, server->options.request_timeout))
		request_refuse(request, 503, NULL);
	if (server->options.traces && !trace_begin(request))
		request_refuse(request, 503, NULL);
	if (!request->refused)
		read_target(request);
	if (server->options.on_request && !server->options.on_request(request, server->options.data))
		request_refuse(request, 503, NULL);
	return true;
}

/* ---- The body ---------------------------------------------------------------------------------------- */

/* Grows as the bytes come: what was only announced costs nothing. */
static bool body_reserve(http_request *request, size_t size)
{
	if (size < request->body_capacity - request->body_size)
		return true;
	size_t capacity = request->body_capacity ? request->body_capacity * 2 : 1024;
	while (capacity <= request->body_size + size)
		capacity *= 2;
	char *body = realloc(request->body, capacity);
	if (!body)
		return false;
	request->body = body;
	request->body_capacity = capacity;
	return true;
}

bool request_body(http_request *request, const char *data, size_t size)
{
	if (request->refused)
		return false;
	if (size > request->conn->worker->server->options.body_size - request->body_size)
		request_refuse(request, 413, NULL);
	else if (!body_reserve(request, size))
		request_refuse(request, 503, NULL);
	if (request->refused) {
		free(request->body);
		request->body = NULL;
		request->body_size = request->body_capacity = 0;
		return false;
	}
	memcpy(request->body + request->body_size, data, size);
	request->body_size += size;
	request->body[request->body_size] = '\0';
	return true;
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
	if (!request->cause)
		request->cause = ctx_cause(request->ctx);
	ctx_cancel_cause(request->root, &HTTP_REQUEST_FINISHED);
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
	if (request->refused || request->conn->gone) {
		request_answer(request);
		return;
	}
	request->running = true;
	request->references++;
	if (loop_start(request->conn->worker->loop, run_handler, request) >= 0)
		return;
	request->running = false;
	request->references--;
	request_refuse(request, 503, NULL);
	request_answer(request);
}

void request_cancel(http_request *request, const ctx_error *cause)
{
	if (!request->cause && !request->running)
		request->cause = cause;
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
	ctx_cancel_cause(request->root, cause);
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
	return request->conn->peer;
}

const char *http_request_id(const http_request *request)
{
	return request->id;
}

const char *http_request_trace(const http_request *request)
{
	return request->trace;
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

const char *http_body(const http_request *request, size_t *size)
{
	if (size)
		*size = request->body_size;
	return request->body ? request->body : "";
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
