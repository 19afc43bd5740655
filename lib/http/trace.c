/*
 * Names for a request that outlive it in logs: X-Request-Id, and the traceparent of W3C's Trace Context.
 * Each is taken from the client where it is well-formed, and made where it is not; the answer repeats both.
 */
#include <inttypes.h>
#include <string.h>
#include <strings.h>
#include <sys/random.h>
#include <unistd.h>

#include "http_priv.h"

enum {
	ID_MAX = 128,
	TRACE_SIZE = 55,
	KNOWN_FLAGS = 0x03, /* sampled, and (level 2) that the trace's digits are random */
};

/* SplitMix64: for names, which must differ and need not be secret. */
static uint64_t next_random(worker *w)
{
	uint64_t z = w->random += UINT64_C(0x9e3779b97f4a7c15);
	z = (z ^ (z >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
	z = (z ^ (z >> 27)) * UINT64_C(0x94d049bb133111eb);
	return z ^ (z >> 31);
}

void trace_seed(worker *w)
{
	if (getrandom(&w->random, sizeof(w->random), GRND_NONBLOCK) != sizeof(w->random))
		w->random = (uint64_t)ctx_now() ^ (uint64_t)getpid() << 32 ^ (uintptr_t)w;
}

/* Visible ASCII and not too much of it: it goes into logs. */
static bool is_id(const char *text)
{
	size_t size = strlen(text);
	for (size_t i = 0; i < size; i++)
		if (text[i] <= ' ' || text[i] > '~' || text[i] == '"' || text[i] == '\\')
			return false;
	return size > 0 && size <= ID_MAX;
}

static bool is_hex(const char *text, size_t size)
{
	return strspn(text, "0123456789abcdef") >= size;
}

static bool is_zero(const char *text, size_t size)
{
	return strspn(text, "0") >= size;
}

/*
 * "00-" 32 digits of the trace "-" 16 of the caller's span "-" 2 of flags. A later version may go on after
 * that, and is read as far as it is known.
 */
static bool is_traceparent(const char *text)
{
	if (!is_hex(text, 2) || text[2] != '-' || !is_hex(text + 3, 32) || text[35] != '-' ||
	    !is_hex(text + 36, 16) || text[52] != '-' || !is_hex(text + 53, 2))
		return false;
	if (strncmp(text, "ff", 2) == 0 || is_zero(text + 3, 32) || is_zero(text + 36, 16))
		return false;
	return text[55] == '\0' || (text[55] == '-' && strncmp(text, "00", 2) != 0);
}

/* What the client sent under that name, if just once: W3C has a second traceparent make both invalid. */
static const char *only_field(const http_request *request, const char *name)
{
	const char *value = NULL;
	for (const http_pair *field = request->fields; field; field = field->next) {
		if (strcasecmp(field->name, name) != 0)
			continue;
		if (value)
			return NULL;
		value = field->value;
	}
	return value;
}

static const char *make_id(http_request *request)
{
	char id[17];
	snprintf(id, sizeof(id), "%016" PRIx64, next_random(request->conn->worker));
	return arena_copy(&request->arena, id, sizeof(id) - 1);
}

/* A trace of our own, which nobody has asked to record. */
static const char *make_trace(http_request *request)
{
	worker *w = request->conn->worker;
	char trace[TRACE_SIZE + 1];
	uint64_t high = next_random(w), low = next_random(w) | 1, span = next_random(w) | 1;
	snprintf(trace, sizeof(trace), "00-%016" PRIx64 "%016" PRIx64 "-%016" PRIx64 "-00", high, low, span);
	return arena_copy(&request->arena, trace, TRACE_SIZE);
}

/* The caller's trace, and a span of our own in it. Of its flags go on those that are known: what others say is not. */
static const char *join_trace(http_request *request, const char *parent)
{
	char trace[TRACE_SIZE + 1];
	unsigned flags = (unsigned)strtoul(parent + 53, NULL, 16) & KNOWN_FLAGS;
	uint64_t span = next_random(request->conn->worker) | 1;
	snprintf(trace, sizeof(trace), "00-%.32s-%016" PRIx64 "-%02x", parent + 3, span, flags);
	return arena_copy(&request->arena, trace, TRACE_SIZE);
}

bool trace_begin(http_request *request)
{
	const char *id = only_field(request, "X-Request-Id");
	const char *parent = only_field(request, "traceparent");
	request->id = id && is_id(id) ? id : make_id(request);
	request->trace = parent && is_traceparent(parent) ? join_trace(request, parent) : make_trace(request);
	return request->id && request->trace;
}

void trace_answer(http_request *request)
{
	if (!request->id || !request->trace)
		return;
	response_own_field(&request->response, "X-Request-Id", request->id);
	response_own_field(&request->response, "traceparent", request->trace);
}
