/*
 * The bodies of requests: whole, before the handler begins, or as they come, while it runs.
 *
 *	                        the protocol                                        the handler
 *	whole        request_body… ─► all of it in memory ─► request_run ─► http_body, http_body_read
 *	streamed     request_run ─────────────────────────────────────────► http_body_read, which waits
 *	             body_push… ─► at most BODY_WINDOW bytes in memory ───► takes some: transport->take_body
 *	             body_end, or body_fail
 *
 * Of a streamed body the client may send no more than the handler has taken and the window holds: the protocol stops
 * reading, and TCP's window or HTTP/2's closes. From the beginning of the answer on nobody reads it any more.
 */
#include <errno.h>
#include <string.h>

#include "http_priv.h"

/* No less than a stream's initial window in HTTP/2, which body_push must take. */
enum { BODY_WINDOW = 64 * 1024 };

size_t body_limit(const http_request *request)
{
	const http_route *route = request->route;
	return route && route->body_size ? route->body_size
	                                 : request->conn->worker->server->options.body_size;
}

/* Room for more at the end, and a NUL. Grows as the bytes come: what was only announced costs nothing. */
static bool reserve(http_request *request, size_t size)
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

static void append(http_request *request, const char *data, size_t size)
{
	memcpy(request->body + request->body_size, data, size);
	request->body_size += size;
	request->body[request->body_size] = '\0';
}

/* ---- Whole ------------------------------------------------------------------------------------------- */

bool request_body(http_request *request, const char *data, size_t size)
{
	if (request->refused)
		return false;
	if (size > body_limit(request) - request->body_size)
		request_refuse(request, 413, NULL);
	else if (!reserve(request, size))
		request_refuse(request, 503, NULL);
	if (request->refused) {
		free(request->body);
		request->body = NULL;
		request->body_size = request->body_capacity = 0;
		return false;
	}
	append(request, data, size);
	return true;
}

const char *http_body(const http_request *request, size_t *size)
{
	bool whole = request->body && !request->streams_body;
	if (size)
		*size = whole ? request->body_size : 0;
	return whole ? request->body : "";
}

/* ---- Streamed ---------------------------------------------------------------------------------------- */

/* What has come and nobody has read moves to the front. */
static void compact(http_request *request)
{
	if (request->body_taken == 0)
		return;
	request->body_size -= request->body_taken;
	memmove(request->body, request->body + request->body_taken, request->body_size);
	request->body_taken = 0;
}

size_t body_waiting(const http_request *request)
{
	return request->body_size - request->body_taken;
}

bool body_is_full(const http_request *request)
{
	return body_waiting(request) >= BODY_WINDOW;
}

size_t body_push(http_request *request, const char *data, size_t size)
{
	if (request->body_error || !request->running || request->response.streaming)
		return size;
	if (size > body_limit(request) - request->body_total) {
		body_fail(request, 413);
		return size;
	}
	size_t room = BODY_WINDOW - body_waiting(request);
	if (size > room)
		size = room;
	compact(request);
	if (!reserve(request, size)) {
		body_fail(request, 503);
		return size;
	}
	append(request, data, size);
	request->body_total += size;
	wait_event_set(&request->body_come);
	return size;
}

void body_end(http_request *request)
{
	request->body_ended = true;
	wait_event_set(&request->body_come);
}

void body_fail(http_request *request, int status)
{
	if (!request->body_error)
		request->body_error = status;
	wait_event_set(&request->body_come);
}

static size_t take(http_request *request, void *data, size_t size)
{
	size_t waiting = body_waiting(request);
	if (size > waiting)
		size = waiting;
	memcpy(data, request->body + request->body_taken, size);
	request->body_taken += size;
	return size;
}

/* Why there is nothing to be had, nor will be; 0: there may be. */
static int reading_error(const http_request *request)
{
	const ctx_error *done = ctx_err(request->ctx);
	if (done)
		return done->code;
	if (request->response.streaming)
		return EPIPE;
	switch (request->body_error) {
	case 0:
		return 0;
	case 408:
		return ETIMEDOUT;
	case 413:
		return EMSGSIZE;
	case 400:
		return EBADMSG;
	default:
		return ENOMEM;
	}
}

ssize_t http_body_read(http_request *request, void *data, size_t size)
{
	if (size == 0) {
		errno = EINVAL;
		return -1;
	}
	for (;;) {
		errno = reading_error(request);
		if (errno)
			return -1;
		bool more = request->streams_body && !request->body_ended;
		size_t taken = body_waiting(request) ? take(request, data, size) : 0;
		if (more && request->attached)
			request->transport->take_body(request, taken);
		if (taken || !more)
			return (ssize_t)taken;
		if (wait_event_wait(request->ctx, &request->body_come) != 0)
			return -1;
	}
}
