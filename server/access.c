#include "access.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "log.h"

/* ---- The record -------------------------------------------------------------------------------------
 *
 * Two may be the last to speak: the worker's loop, when the request is over, and the pool's thread, when a
 * cancelled query has settled; in either order. Whoever finds both told writes the line. A query can also settle
 * without its handler having known (its rows were closed half read): nobody waits for that one.
 */

typedef struct record {
	pthread_mutex_t mutex; /* guards what the pool's thread shares with the loop's: these five */
	int settling, settled; /* queries the handler knew to be settling, and those that have settled */
	bool ended, written;
	struct {
		int64_t stop_ns;
		unsigned cancels;
		bool kept;
	} last;
	bool slow;
	reason why;
	http_outcome outcome;
	char method[16], peer[64];
	char target[512], error[256];
} record;

static void record_free(void *value)
{
	record *r = value;
	pthread_mutex_destroy(&r->mutex);
	free(r);
}

static const ctx_key record_key = {.name = "access", .destroy = record_free};

static record *record_of(const ctx *c)
{
	return ctx_value(c, &record_key);
}

static void copy(char *to, size_t size, const char *from)
{
	size_t length = strnlen(from, size - 1);
	memcpy(to, from, length);
	to[length] = '\0';
}

/* ---- The line --------------------------------------------------------------------------------------- */

static log_level level_of(const record *r)
{
	return r->outcome.status == 500             ? LOG_ERROR
	       : r->outcome.status > 500 || r->slow ? LOG_WARN
	                                            : LOG_INFO;
}

static void write_line(const record *r)
{
	log_level level = level_of(r);
	if (!log_enabled(level))
		return;
	log_line line;
	if (log_format_now() == LOG_JSON) {
		log_begin(&line, level, "request");
		log_field(&line, "method", r->method);
		log_field(&line, "path", r->target);
		log_field_int(&line, "status", r->outcome.status);
		log_field(&line, "peer", r->peer);
	} else {
		char message[sizeof(r->method) + sizeof(r->target) + 16];
		snprintf(message, sizeof(message), "%s %s %d", r->method, r->target, r->outcome.status);
		log_begin(&line, level, message);
	}
	log_field_ms(&line, "duration", r->outcome.duration_ns);
	if (r->why)
		log_field(&line, "reason", reason_answers[r->why].name);
	if (r->settled) {
		if (r->last.stop_ns >= 0)
			log_field_ms(&line, "cancel", r->last.stop_ns);
		log_field_int(&line, "cancels", r->last.cancels);
		log_field(&line, "connection", r->last.kept ? "kept" : "closed");
	}
	if (r->slow)
		log_field_bool(&line, "slow", true);
	if (r->error[0])
		log_field(&line, "error", r->error);
	log_end(&line);
}

static void write_if_complete_locked(record *r)
{
	if (!r->ended || r->written || r->settled < r->settling)
		return;
	r->written = true;
	write_line(r);
}

/* ---- The callbacks ---------------------------------------------------------------------------------- */

bool access_begin(http_request *request, void *data)
{
	(void)data;
	record *r = malloc(sizeof(*r));
	if (!r)
		return false;
	/* Not all of it to zero: it is large, and this is every request's way. */
	pthread_mutex_init(&r->mutex, NULL);
	r->settling = r->settled = 0;
	r->ended = r->written = false;
	r->why = REASON_NONE;
	r->error[0] = '\0';
	if (http_request_set(request, &record_key, r) == 0)
		return true;
	record_free(r);
	return false;
}

void access_failed(http_request *request, reason why, const pg_error *error)
{
	record *r = record_of(http_request_ctx(request));
	if (!r)
		return;
	r->why = why;
	/* What the client did, or the clock, needs no explaining; what PostgreSQL says does. */
	if (error && error->kind != PG_ERROR_CANCELED && error->kind != PG_ERROR_DEADLINE)
		copy(r->error, sizeof(r->error), error->message);
	if (error && error->settling) {
		pthread_mutex_lock(&r->mutex);
		r->settling++;
		pthread_mutex_unlock(&r->mutex);
	}
}

void access_end(http_request *request, const http_outcome *outcome, void *data)
{
	access_log *log = data;
	record *r = record_of(http_request_ctx(request));
	reason why = r ? r->why : REASON_NONE;
	/* A client that left got no answer, whatever the handler meant to say. */
	if (outcome->status == 499)
		why = REASON_CLIENT_DISCONNECT;
	else if (!why && outcome->status >= 500)
		why = outcome->cause == &HTTP_SERVER_SHUTDOWN ? REASON_SHUTDOWN : REASON_ERROR;
	metrics_request(log->metrics, request, outcome, why);
	if (!r)
		return;
	r->why = why;
	r->outcome = *outcome;
	int64_t slow = atomic_load_explicit(&log->slow_ns, memory_order_relaxed);
	r->slow = slow && outcome->duration_ns > slow;
	copy(r->method, sizeof(r->method), http_request_method(request));
	copy(r->peer, sizeof(r->peer), http_request_peer(request));
	copy(r->target, sizeof(r->target), http_request_target(request));

	pthread_mutex_lock(&r->mutex);
	r->ended = true;
	write_if_complete_locked(r);
	pthread_mutex_unlock(&r->mutex);
}

void access_settled(const pg_settled *settled, void *data)
{
	access_log *log = data;
	metrics_settled(log->metrics, settled);
	record *r = record_of(settled->query_ctx);
	if (!r)
		return;
	pthread_mutex_lock(&r->mutex);
	r->last.stop_ns = settled->stop_ns;
	r->last.cancels = settled->cancels_sent;
	r->last.kept = settled->kept;
	r->settled++;
	write_if_complete_locked(r);
	pthread_mutex_unlock(&r->mutex);
}
