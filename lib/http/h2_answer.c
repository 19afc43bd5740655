/*
 * HTTP/2 answers: from a response to HEADERS and DATA.
 *
 * nghttp2 takes the head at once and asks for the body when it has room for it, in the socket and in the client's
 * windows. A stream that has nothing to give then is deferred, until wake.
 */
#include <string.h>
#include <time.h>

#include "h2_priv.h"

enum { TINY_WINDOW = 256 }; /* bytes: what a client lets us send at once that only wants to keep us busy */

static ssize_t pull_whole(http_response *response, uint8_t *data, size_t size)
{
	size_t left = response->body_size - response->pulled;
	if (size > left)
		size = left;
	memcpy(data, response->body + response->pulled, size);
	response->pulled += size;
	return (ssize_t)size;
}

static bool is_pulled(const http_response *response)
{
	bool complete = !response->streaming || (response->ended && !response->failed);
	return complete && response->pulled == response->body_size;
}

/* nghttp2 asks for what goes into a DATA frame, as much as the windows allow. */
static ssize_t pull(nghttp2_session *session, int32_t id, uint8_t *data, size_t size, uint32_t *flags,
                    nghttp2_data_source *source, void *arg)
{
	h2_stream *s = h2_stream_of(session, id);
	(void)source, (void)arg;
	if (!s)
		return NGHTTP2_ERR_TEMPORAL_CALLBACK_FAILURE;
	http_response *response = &s->request->response;
	ssize_t pulled = response->streaming ? response_pull(response, (char *)data, size)
	                                     : pull_whole(response, data, size);
	if (pulled == PULL_FAILED) {
		s->ours = true;
		return NGHTTP2_ERR_TEMPORAL_CALLBACK_FAILURE; /* RST_STREAM with INTERNAL_ERROR */
	}
	if (is_pulled(response))
		*flags |= NGHTTP2_DATA_FLAG_EOF;
	else if (pulled == PULL_LATER)
		return NGHTTP2_ERR_DEFERRED;
	if (pulled > 0) {
		s->sent += (uint64_t)pulled;
		s->h2->sent += (uint64_t)pulled;
	}
	if (size > TINY_WINDOW || is_pulled(response))
		h2_limit_progress(s->h2);
	return pulled == PULL_END ? 0 : pulled;
}

nghttp2_nv h2_pair(const char *name, const char *value)
{
	return (nghttp2_nv){
		.name = (uint8_t *)(uintptr_t)name,
		.value = (uint8_t *)(uintptr_t)value,
		.namelen = strlen(name),
		.valuelen = strlen(value),
	};
}

/* Field names are in lower case here. NULL: out of memory. */
static const char *lower(arena *a, const char *name)
{
	char *copy = arena_copy(a, name, strlen(name));
	for (char *c = copy; c && *c; c++)
		if (*c >= 'A' && *c <= 'Z')
			*c = (char)(*c + 'a' - 'A');
	return copy;
}

static bool may_have_body(const http_response *response)
{
	return response->status != 204 && response->status != 304;
}

/* The head's fields, in the request's arena. NULL: out of memory. */
static nghttp2_nv *make_fields(http_request *request, size_t *count)
{
	enum { OWN_FIELDS = 3, STATUS_SIZE = 16, DATE_SIZE = 40, LENGTH_SIZE = 24 };
	const http_response *response = &request->response;
	arena *a = &request->arena;
	size_t most = OWN_FIELDS;
	for (const http_pair *field = response->fields; field; field = field->next)
		most++;
	nghttp2_nv *fields = arena_alloc(a, most * sizeof(*fields));
	char *own = arena_alloc(a, STATUS_SIZE + DATE_SIZE + LENGTH_SIZE);
	if (!fields || !own)
		return NULL;
	char *status = own, *date = own + STATUS_SIZE, *length = date + DATE_SIZE;
	struct tm tm;
	time_t now = time(NULL);
	snprintf(status, STATUS_SIZE, "%d", response->status);
	strftime(date, DATE_SIZE, "%a, %d %b %Y %H:%M:%S GMT", gmtime_r(&now, &tm));
	snprintf(length, LENGTH_SIZE, "%zu", response->body_size);
	nghttp2_nv *next = fields;
	*next++ = h2_pair(":status", status);
	*next++ = h2_pair("date", date);
	if (!response->streaming && may_have_body(response))
		*next++ = h2_pair("content-length", length);
	for (const http_pair *field = response->fields; field; field = field->next) {
		const char *name = lower(a, field->name);
		if (!name)
			return NULL;
		*next++ = h2_pair(name, field->value);
	}
	*count = (size_t)(next - fields);
	return fields;
}

static bool submit(h2_stream *s)
{
	http_request *request = s->request;
	const http_response *response = &request->response;
	size_t count = 0;
	const nghttp2_nv *fields = make_fields(request, &count);
	bool body = strcmp(request->method, "HEAD") != 0 && may_have_body(response) &&
	            (response->streaming || response->body_size > 0);
	nghttp2_data_provider provider = {.read_callback = pull};
	return fields &&
	       nghttp2_submit_response(s->h2->session, s->id, fields, count, body ? &provider : NULL) == 0;
}

/* From the handler's fiber, or from within one of nghttp2's callbacks. */
void h2_answer(http_request *request)
{
	h2_stream *s = request->stream;
	s->answered = true;
	if (!submit(s))
		h2_stream_reset(s, NGHTTP2_INTERNAL_ERROR);
	h2_touch(s->h2);
}

void h2_wake(http_request *request)
{
	h2_stream *s = request->stream;
	/* That it was not deferred is no error: it is asked for anyhow. */
	s->h2->dead |= nghttp2_session_resume_data(s->h2->session, s->id) == NGHTTP2_ERR_NOMEM;
	h2_touch(s->h2);
}
