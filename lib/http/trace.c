/*
 * Names for a request that outlive it in logs: X-Request-Id, and the traceparent of W3C's Trace Context.
 * Each is taken from the client where it is well-formed, and made where it is not; the answer repeats both.
 */
#include <inttypes.h>
#include <string.h>
#include <sys/random.h>
#include <unistd.h>

#include "http_priv.h"

enum { ID_MAX = 128 };

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

bool trace_begin(http_request *request)
{
	worker *w = request->conn->worker;
	const char *id = http_header(request, "X-Request-Id");
	const char *parent = http_header(request, "traceparent");
	char made[17], trace[56];
	if (!id || !is_id(id)) {
		snprintf(made, sizeof(made), "%016" PRIx64, next_random(w));
		id = arena_copy(&request->arena, made, sizeof(made) - 1);
	}
	/* The same trace, and a span of our own in it; or a trace of our own, which nobody has asked to record. */
	uint64_t span = next_random(w) | 1;
	if (parent && is_traceparent(parent))
		snprintf(trace, sizeof(trace), "00-%.32s-%016" PRIx64 "-%.2s", parent + 3, span, parent + 53);
	else
		snprintf(trace, sizeof(trace), "00-%016" PRIx64 "%016" PRIx64 "-%016" PRIx64 "-00",
		         next_random(w), next_random(w) | 1, span);
	request->id = id;
	request->trace = arena_copy(&request->arena, trace, sizeof(trace) - 1);
	return request->id && request->trace;
}

void trace_answer(http_request *request)
{
	if (!request->trace)
		return;
	http_response_header(&request->response, "X-Request-Id", request->id);
	http_response_header(&request->response, "traceparent", request->trace);
}
