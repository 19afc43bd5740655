/*
 * Strictness: what is not exactly a request is refused, so that no two readers of one stream can see different
 * requests in it (RFC 9112, section 11.2). All of it gets an answer of 4xx or 5xx and the end of the connection.
 *
 * Here is what holds for a head whoever parsed it. Where a field stood in the stream, and what stood between
 * two of them, is for the protocol to check.
 */
#include <string.h>
#include <strings.h>

#include "http_priv.h"

/* RFC 9110, 5.5: visible characters, spaces and tabs, and bytes beyond ASCII. */
bool is_field_value(const char *value, size_t size)
{
	for (size_t i = 0; i < size; i++)
		if (((unsigned char)value[i] < ' ' && value[i] != '\t') || value[i] == 0x7f)
			return false;
	return true;
}

/* No control characters, spaces or fragment. What else is not quite a URI harms nobody, and people type it. */
static bool is_target(const char *target)
{
	for (const char *c = target; *c; c++)
		if ((unsigned char)*c <= ' ' || *c == 0x7f || *c == '#')
			return false;
	return *target == '/';
}

/* A name or address, and perhaps a port: no user, no path, no list. */
static bool is_host(const char *host)
{
	static const char other_characters[] = "-._~%!$&'()*+;=";
	const char *end = host;
	if (*end == '[') {
		end += 1 + strspn(end + 1, "0123456789abcdefABCDEF:.");
		if (*end++ != ']')
			return false;
	} else {
		while (*end && (strchr(other_characters, *end) || is_token(end, 1)) && !strchr("#^`|", *end))
			end++;
	}
	if (*end == ':')
		end += 1 + strspn(end + 1, "0123456789");
	return *end == '\0';
}

bool is_trailer(const char *name, size_t name_size, const char *value, size_t value_size)
{
	static const char *const forbidden[] = {"Content-Length",
	                                        "Transfer-Encoding",
	                                        "Host",
	                                        "Trailer",
	                                        "Connection",
	                                        "Expect",
	                                        "TE",
	                                        "Upgrade",
	                                        "Content-Encoding",
	                                        "Content-Type",
	                                        "Content-Range",
	                                        "Authorization"};
	for (size_t i = 0; i < sizeof(forbidden) / sizeof(*forbidden); i++)
		if (strlen(forbidden[i]) == name_size && strncasecmp(forbidden[i], name, name_size) == 0)
			return false;
	return is_token(name, name_size) && is_field_value(value, value_size);
}

static void check_fields(http_request *request)
{
	for (const http_pair *field = request->fields; field; field = field->next) {
		if (!is_token(field->name, strlen(field->name)))
			request_refuse_and_close(request, 400, "A header field's name is malformed.");
		else if (!is_field_value(field->value, strlen(field->value)))
			request_refuse_and_close(request, 400,
			                         "A header field's value has control characters.");
	}
}

/* The only value of a field that may be there once at most. NULL: absent, or there twice, which is refused. */
static const char *only_value(http_request *request, const char *name)
{
	const char *value = NULL;
	for (const http_pair *field = request->fields; field; field = field->next) {
		if (strcasecmp(field->name, name) != 0)
			continue;
		if (value) {
			request_refuse_and_close(request, 400,
			                         "A header field that may appear once appears twice.");
			return NULL;
		}
		value = field->value;
	}
	return value;
}

static void check_host(http_request *request, bool required)
{
	const char *host = only_value(request, "Host");
	if (host ? !is_host(host) : required)
		request_refuse_and_close(request, 400, host ? "The Host is malformed." : "There is no Host.");
}

static void check_coding(http_request *request, const char *coding)
{
	if (strcasecmp(coding, "chunked") == 0)
		return;
	/* With another coding inside the body could be delimited, and still not be understood. */
	const char *last = strrchr(coding, ',');
	bool delimited =
		last && last > coding && strcasecmp(last + 1 + strspn(last + 1, " \t"), "chunked") == 0;
	if (delimited && !strstr(coding, "chunked,") && is_token(coding, (size_t)(last - coding)) &&
	    strncasecmp(coding, "chunked", (size_t)(last - coding)) != 0)
		request_refuse_and_close(request, 501, "The only transfer coding understood is chunked.");
	else
		request_refuse_and_close(request, 400, "The transfer coding does not delimit the body.");
}

static void check_framing(http_request *request, bool may_be_coded)
{
	const char *length = only_value(request, "Content-Length");
	const char *coding = only_value(request, "Transfer-Encoding");
	if (length && (*length == '\0' || length[strspn(length, "0123456789")] != '\0'))
		request_refuse_and_close(request, 400, "The Content-Length is not a number.");
	if (coding && (length || !may_be_coded))
		request_refuse_and_close(request, 400, "A Transfer-Encoding does not go with this message.");
	else if (coding)
		check_coding(request, coding);
}

static void check_expectation(http_request *request)
{
	for (const http_pair *field = request->fields; field; field = field->next)
		if (strcasecmp(field->name, "Expect") == 0 && strcasecmp(field->value, "100-continue") != 0)
			request_refuse_and_close(request, 417, NULL);
}

void validate_fields(http_request *request, enum http_version version)
{
	check_fields(request);
	check_host(request, version == HTTP_1_1);
	check_framing(request, version == HTTP_1_1);
}

void validate_head(http_request *request, enum http_version version)
{
	if (!is_token(request->method, strlen(request->method)))
		request_refuse_and_close(request, 400, "The method is malformed.");
	if (!is_target(request->target))
		request_refuse_and_close(
			request, 400, "The target must be a path, without control characters or fragment.");
	validate_fields(request, version);
	check_expectation(request);
}
