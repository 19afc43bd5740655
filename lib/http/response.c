/*
 * Responses: what a handler answers, gathered until it is sent.
 */
#include <string.h>
#include <strings.h>

#include <jansson.h>

#include "http_priv.h"

enum {
	STREAM_BUFFER = 64 * 1024,      /* bytes of a stream that wait for the client at most */
	STREAM_LOW = STREAM_BUFFER / 2, /* below this there is room again */
};

void response_init(http_response *response, http_request *request)
{
	*response = (http_response){.request = request, .status = 200};
	response->fields_end = &response->fields;
}

void response_free(http_response *response)
{
	free(response->body);
	response->body = NULL;
}

/* Out of memory, or asked for what must not be sent. A bare 500 tells the program's author, who alone can mend it. */
static void fail(http_response *response)
{
	response->broken = true;
}

/* No longer once it is a bare 500, or its head has gone out. */
static bool may_change(http_response *response)
{
	return !response->broken && !response->streaming;
}

/* ---- Status and header fields ------------------------------------------------------------------------ */

const char *status_title(int status)
{
	static const struct {
		int status;
		const char *title;
	} titles[] = {
		{200, "OK"},
		{201, "Created"},
		{202, "Accepted"},
		{204, "No Content"},
		{206, "Partial Content"},
		{301, "Moved Permanently"},
		{302, "Found"},
		{303, "See Other"},
		{304, "Not Modified"},
		{307, "Temporary Redirect"},
		{308, "Permanent Redirect"},
		{400, "Bad Request"},
		{401, "Unauthorized"},
		{403, "Forbidden"},
		{404, "Not Found"},
		{405, "Method Not Allowed"},
		{406, "Not Acceptable"},
		{408, "Request Timeout"},
		{409, "Conflict"},
		{410, "Gone"},
		{411, "Length Required"},
		{412, "Precondition Failed"},
		{413, "Content Too Large"},
		{414, "URI Too Long"},
		{415, "Unsupported Media Type"},
		{417, "Expectation Failed"},
		{421, "Misdirected Request"},
		{422, "Unprocessable Content"},
		{428, "Precondition Required"},
		{429, "Too Many Requests"},
		{431, "Request Header Fields Too Large"},
		{500, "Internal Server Error"},
		{501, "Not Implemented"},
		{502, "Bad Gateway"},
		{503, "Service Unavailable"},
		{504, "Gateway Timeout"},
		{505, "HTTP Version Not Supported"},
	};
	for (size_t i = 0; i < sizeof(titles) / sizeof(*titles); i++)
		if (titles[i].status == status)
			return titles[i].title;
	return status < 400 ? "" : status < 500 ? "Client Error" : "Server Error";
}

void http_response_status(http_response *response, int status)
{
	if (!may_change(response))
		return;
	if (status < 200 || status > 599)
		fail(response);
	else
		response->status = status;
}

/* How a message is delimited and what becomes of its connection is not for handlers to say. */
static bool is_framing(const char *name)
{
	static const char *const names[] = {"Connection", "Content-Length",    "Keep-Alive", "TE",
	                                    "Trailer",    "Transfer-Encoding", "Upgrade",    "Date"};
	for (size_t i = 0; i < sizeof(names) / sizeof(*names); i++)
		if (strcasecmp(names[i], name) == 0)
			return true;
	return false;
}

/* Forgets what was set of that name. */
static void remove_field(http_response *response, const char *name)
{
	http_pair **at = &response->fields;
	while (*at) {
		if (strcasecmp((*at)->name, name) == 0) {
			response->fields_size -= strlen((*at)->name) + strlen((*at)->value) + 4;
			*at = (*at)->next;
		} else {
			at = &(*at)->next;
		}
	}
	response->fields_end = at;
}

/* False: out of memory. */
static bool add_field(http_response *response, const char *name, const char *value)
{
	arena *a = &response->request->arena;
	http_pair *field = arena_alloc(a, sizeof(*field));
	if (!field)
		return false;
	size_t name_size = strlen(name), value_size = strlen(value);
	*field = (http_pair){.name = arena_copy(a, name, name_size),
	                     .value = arena_copy(a, value, value_size)};
	if (!field->name || !field->value)
		return false;
	*response->fields_end = field;
	response->fields_end = &field->next;
	response->fields_size += name_size + value_size + 4;
	return true;
}

void http_response_add_header(http_response *response, const char *name, const char *value)
{
	if (!may_change(response))
		return;
	size_t name_size = strlen(name), value_size = strlen(value);
	if (!is_token(name, name_size) || !is_field_value(value, value_size) || is_framing(name) ||
	    name_size + value_size + 4 + response->fields_size > RESPONSE_FIELDS_MAX ||
	    !add_field(response, name, value))
		fail(response);
}

void http_response_header(http_response *response, const char *name, const char *value)
{
	if (!may_change(response))
		return;
	remove_field(response, name);
	http_response_add_header(response, name, value);
}

void response_own_field(http_response *response, const char *name, const char *value)
{
	remove_field(response, name);
	add_field(response, name, value);
}

/* ---- A body, whole ----------------------------------------------------------------------------------- */

static bool reserve(http_response *response, size_t size)
{
	if (size <= response->body_capacity - response->body_size)
		return true;
	if (size > SIZE_MAX / 4 || response->body_size > SIZE_MAX / 4)
		return false;
	size_t capacity = response->body_capacity ? response->body_capacity * 2 : 512;
	if (capacity < response->body_size + size)
		capacity = response->body_size + size;
	char *body = realloc(response->body, capacity);
	if (!body)
		return false;
	response->body = body;
	response->body_capacity = capacity;
	return true;
}

void http_response_append(http_response *response, const void *data, size_t size)
{
	if (!may_change(response) || size == 0)
		return;
	if (!reserve(response, size)) {
		fail(response);
		return;
	}
	memcpy(response->body + response->body_size, data, size);
	response->body_size += size;
}

void http_response_body(http_response *response, int status, const char *content_type, const void *data,
                        size_t size)
{
	if (!may_change(response))
		return;
	response->body_size = 0;
	http_response_status(response, status);
	if (content_type)
		http_response_header(response, "Content-Type", content_type);
	http_response_append(response, data, size);
}

void http_response_text(http_response *response, int status, const char *text)
{
	http_response_body(response, status, "text/plain; charset=utf-8", text, strlen(text));
}

void http_response_problem(http_response *response, int status, const char *detail)
{
	/* A detail that is not UTF-8 cannot be said in JSON; the rest can. */
	json_t *said = detail ? json_string(detail) : NULL;
	json_t *problem = json_pack("{s:s, s:s, s:i, s:o*}", "type", "about:blank", "title",
	                            status_title(status), "status", status, "detail", said);
	char *text = problem ? json_dumps(problem, JSON_COMPACT) : NULL;
	json_decref(problem);
	if (text)
		http_response_body(response, status, "application/problem+json", text, strlen(text));
	else if (may_change(response))
		fail(response);
	free(text);
}

void answer_bare(int fd, int status)
{
	answer_bare_why(fd, status, NULL);
}

/* fields: lines, each with its end. */
static void send_bare(int fd, int status, const char *fields, const char *body, size_t body_size)
{
	char head[RESPONSE_FIELDS_MAX + 512];
	int size = snprintf(head, sizeof(head),
	                    "HTTP/1.1 %d %s\r\n%sContent-Length: %zu\r\nConnection: close\r\n\r\n", status,
	                    status_title(status), fields, body_size);
	struct iovec parts[] = {{head, (size_t)size}, {(char *)body, body_size}};
	struct msghdr message = {.msg_iov = parts, .msg_iovlen = 2};
	if ((size_t)size < sizeof(head))
		sendmsg(fd, &message, MSG_NOSIGNAL | MSG_DONTWAIT);
}

void answer_bare_why(int fd, int status, const char *detail)
{
	char body[256], fields[128];
	int size = snprintf(body, sizeof(body),
	                    "{\"type\":\"about:blank\",\"title\":\"%s\",\"status\":%d%s%s%s}",
	                    status_title(status), status, detail ? ",\"detail\":\"" : "",
	                    detail ? detail : "", detail ? "\"" : "");
	snprintf(fields, sizeof(fields), "Content-Type: application/problem+json\r\n%s",
	         status == 503 ? "Retry-After: 1\r\n" : "");
	send_bare(fd, status, fields, body, (size_t)size);
}

void answer_bare_with(int fd, const http_response *response)
{
	char fields[RESPONSE_FIELDS_MAX + 256] = "";
	size_t size = 0;
	for (const http_pair *field = response->fields; field; field = field->next) {
		int more = snprintf(fields + size, sizeof(fields) - size, "%s: %s\r\n", field->name,
		                    field->value);
		if ((size_t)more >= sizeof(fields) - size)
			return;
		size += (size_t)more;
	}
	send_bare(fd, response->status, fields, response->body, response->body_size);
}

void response_error(http_response *response, int status, const char *detail)
{
	response->fields = NULL;
	response->fields_end = &response->fields;
	response->fields_size = 0;
	response->body_size = 0;
	response->broken = false;
	http_response_problem(response, status, detail);
	if (response->broken) {
		response->status = status;
		response->fields = NULL;
		response->body_size = 0;
	}
}

/* ---- A body in pieces -------------------------------------------------------------------------------- */

static bool is_head(const http_response *response)
{
	return strcmp(response->request->method, "HEAD") == 0;
}

/* Appends as much as there is room for: how much that was. */
static size_t stream_append(http_response *response, const char *data, size_t size)
{
	size_t waiting = response->body_size - response->pulled;
	size_t room = waiting < STREAM_BUFFER ? STREAM_BUFFER - waiting : 0;
	if (size > room)
		size = room;
	if (size > response->body_capacity - response->body_size) {
		memmove(response->body, response->body + response->pulled, waiting);
		response->body_size = waiting;
		response->pulled = 0;
	}
	memcpy(response->body + response->body_size, data, size);
	response->body_size += size;
	return size;
}

/* The first write: what was appended before it goes first, then the pieces. */
static bool stream_begin(http_response *response)
{
	if (response->body_capacity < STREAM_BUFFER &&
	    !reserve(response, STREAM_BUFFER - response->body_size))
		return false;
	response->streaming = true;
	/* For HEAD there is nothing to come: it is answered when the handler returns. */
	if (!is_head(response))
		request_answer(response->request);
	return true;
}

static void break_stream(http_response *response)
{
	response->failed = true;
	if (response->request->attached && !is_head(response))
		response->request->transport->wake(response->request);
}

int http_write(http_response *response, const void *data, size_t size)
{
	http_request *request = response->request;
	if (response->broken || response->failed)
		return -1;
	if (!response->streaming && !stream_begin(response)) {
		fail(response);
		return -1;
	}
	if (is_head(response))
		return ctx_err(request->ctx) ? -1 : 0;
	for (const char *from = data; size > 0;) {
		if (!request->attached || ctx_err(request->ctx))
			goto cut;
		size_t taken = stream_append(response, from, size);
		from += taken;
		size -= taken;
		if (taken > 0)
			request->transport->wake(request);
		else if (wait_event_wait(request->ctx, &response->room) != 0)
			goto cut;
	}
	return 0;

cut:
	/* The handler may well return as if all had been written: the client must see that it was not. */
	break_stream(response);
	return -1;
}

void http_response_fail(http_response *response)
{
	if (!response->streaming) {
		fail(response);
	} else if (!response->failed) {
		response->request->told = true;
		break_stream(response);
	}
}

ssize_t response_pull(http_response *response, char *data, size_t size)
{
	size_t waiting = response->body_size - response->pulled;
	if (response->failed)
		return PULL_FAILED;
	if (waiting == 0)
		return response->ended ? PULL_END : PULL_LATER;
	if (size > waiting)
		size = waiting;
	memcpy(data, response->body + response->pulled, size);
	response->pulled += size;
	response->sent_size += size;
	if (response->pulled == response->body_size)
		response->pulled = response->body_size = 0;
	if (waiting - size <= STREAM_LOW && waiting > STREAM_LOW)
		wait_event_set(&response->room);
	return (ssize_t)size;
}
