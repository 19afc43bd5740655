/*
 * The head of a request: its fields, what the target stands for, how long it may take.
 */
#include <errno.h>
#include <string.h>
#include <strings.h>

#include "http_priv.h"

enum { WAIT_DIGITS = 7 }; /* of a preference's seconds: 115 days, past which nobody means it */

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

static bool is_same_name(const http_pair *a, const http_pair *b)
{
	return strcasecmp(a->name, b->name) == 0;
}

/* Takes the later lines of this field into the first. False: out of memory. */
static bool join_later(http_request *request, http_pair *first)
{
	const char *between = strcasecmp(first->name, "cookie") == 0 ? "; " : ", ";
	size_t size = strlen(first->value) + 1;
	for (const http_pair *field = first->next; field; field = field->next)
		size += is_same_name(field, first) ? strlen(field->value) + 2 : 0;
	char *joined = arena_alloc(&request->arena, size);
	if (!joined)
		return false;
	char *end = stpcpy(joined, first->value);
	http_pair **at = &first->next;
	while (*at) {
		if (is_same_name(*at, first)) {
			end = stpcpy(stpcpy(end, between), (*at)->value);
			*at = (*at)->next;
		} else {
			at = &(*at)->next;
		}
	}
	request->fields_end = at;
	first->value = joined;
	return true;
}

/*
 * Several lines of one name are one field, whose value is theirs with commas in between (RFC 9110, 5.2), or semicolons if
 * they are cookies (RFC 9113, 8.2.3): who asks for an If-None-Match is not to miss half of it. False: out of memory.
 */
static bool join_lines(http_request *request)
{
	uint64_t seen = 0, again = 0; /* initials, of either case */
	for (const http_pair *field = request->fields; field; field = field->next) {
		uint64_t initial = UINT64_C(1) << (field->name[0] & 31);
		again |= seen & initial;
		seen |= initial;
	}
	for (http_pair *field = request->fields; field; field = field->next) {
		if (!(again & UINT64_C(1) << (field->name[0] & 31)))
			continue;
		const http_pair *later = field->next;
		while (later && !is_same_name(later, field))
			later = later->next;
		if (later && !join_later(request, field))
			return false;
	}
	return true;
}

/*
 * A redirect to where the path should have gone, with the query it came with. Browsers take a backslash for a slash, and
 * two of those for another host: as its escape it is neither.
 */
static void redirect(http_request *request, const char *location)
{
	const char *query = strchr(request->target, '?');
	if (!query)
		query = "";
	char *target = arena_alloc(&request->arena, strlen("%5C") * strlen(location) + strlen(query) + 1);
	if (!target) {
		request_refuse(request, 503, NULL);
		return;
	}
	char *end = target;
	for (; *location; location++) {
		if (*location == '\\')
			end = stpcpy(end, "%5C");
		else
			*end++ = *location;
	}
	stpcpy(end, query);
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
		request->streams_body = match.route->streams_body;
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
	if (!request->refused && !join_lines(request))
		request_refuse(request, 503, NULL);
	if (!request->refused && !set_deadline(request, server->options.request_timeout))
		request_refuse(request, 503, NULL);
	if (server->options.traces && !trace_begin(request))
		request_refuse(request, 503, NULL);
	if (!request->refused)
		read_target(request);
	admit_request(request);
	if (!request_context_info(request))
		request_refuse(request, 503, NULL);
	if (server->options.on_request && !server->options.on_request(request, server->options.data))
		request_refuse(request, 503, NULL);
	return true;
}
