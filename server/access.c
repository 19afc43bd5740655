#include "access.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "log.h"
#include "text.h"

/* ---- The record -------------------------------------------------------------------------------------
 *
 * Two may be the last to speak: the worker's loop, when the request is over, and the pool's thread, when a
 * cancelled query has settled; in either order. Whoever finds all told writes the line.
 */

typedef struct record {
	live_request live;     /* what it is, and what it is at */
	pthread_mutex_t mutex; /* guards what the pool's thread shares with the loop's: these five */
	int settling,
		settled; /* queries whose context ended in flight, and those of them that have settled */
	bool ended, written;
	struct {
		int64_t stop_ns;
		unsigned cancels;
		bool kept;
	} last;
	int queries;
	int64_t asked;              /* when its query asked for a connection, or had it */
	bool runs, slow;            /* it has it; one of them took too long */
	int64_t queue_ns, query_ns; /* of all its queries: the wait for connections, and the time they ran */
	uint64_t rows;
	reason why;
	http_outcome outcome;
	char route[64], client[128], id[130], trace[33], error[256];
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
	const live_view *request = &r->live.view;
	if (log_format_now() == LOG_JSON) {
		log_begin(&line, level, "request");
		log_field(&line, "method", request->method);
		log_field(&line, "path", request->target);
		log_field(&line, "route", r->route);
		log_field_int(&line, "status", r->outcome.status);
		log_field(&line, "peer", request->peer);
	} else {
		char message[sizeof(request->method) + sizeof(request->target) + 16];
		snprintf(message, sizeof(message), "%s %s %d", request->method, request->target,
		         r->outcome.status);
		log_begin(&line, level, message);
	}
	if (r->client[0])
		log_field(&line, "client", r->client);
	log_field_ms(&line, "duration", r->outcome.duration_ns);
	if (r->asked)
		log_field_ms(&line, "queue", r->queue_ns);
	if (r->queries) {
		log_field_ms(&line, "query", r->query_ns);
		log_field_int(&line, "rows", (int64_t)r->rows);
	}
	if (r->why)
		log_field(&line, "reason", reason_answers[r->why].name);
	if (r->settled) {
		if (r->last.stop_ns >= 0)
			log_field_ms(&line, "cancel", r->last.stop_ns);
		log_field_int(&line, "cancels", r->last.cancels);
		log_field(&line, "connection", r->last.kept ? "kept" : "closed");
	}
	if (r->slow)
		log_field(&line, "slow", request->sql);
	if (r->error[0])
		log_field(&line, "error", r->error);
	if (r->id[0])
		log_field(&line, "request", r->id);
	if (r->trace[0])
		log_field(&line, "trace", r->trace);
	log_end(&line);
}

/* Whether this was the last that had to be told. */
static bool is_complete_locked(record *r)
{
	if (!r->ended || r->written || r->settled < r->settling)
		return false;
	r->written = true;
	return true;
}

static bool was_cancelled(reason why)
{
	return why == REASON_DEADLINE || why == REASON_CLIENT_DISCONNECT || why == REASON_SHUTDOWN ||
	       why == REASON_OPERATOR;
}

static void conclude(const access_log *log, record *r)
{
	write_line(r);
	if (was_cancelled(r->why))
		live_cancelled(log->live,
		               &(live_cancellation){
				       .why = r->why,
				       .status = r->outcome.status,
				       .duration = r->outcome.duration_ns,
				       .in_flight = r->settled > 0,
				       .stop = r->settled ? r->last.stop_ns : -1,
				       .cancels = r->settled ? r->last.cancels : 0,
				       .kept = r->settled && r->last.kept,
			       },
		               &r->live);
	live_end(log->live, &r->live);
}

static void queue_left(access_log *log, record *r, int64_t now)
{
	r->queue_ns += now - r->asked;
	metrics_queued(log->metrics, now - r->asked);
}

static void query_ended(access_log *log, record *r, int64_t ran_ns, uint64_t rows)
{
	metrics_queried(log->metrics, ran_ns);
	int64_t slow = atomic_load_explicit(&log->slow_ns, memory_order_relaxed);
	r->slow = r->slow || (slow && ran_ns > slow);
	r->query_ns += ran_ns;
	r->rows += rows;
}

/* ---- The callbacks ---------------------------------------------------------------------------------- */

bool access_begin(http_request *request, void *data)
{
	const access_log *log = data;
	record *r = malloc(sizeof(*r));
	if (!r)
		return false;
	/* Not all of it to zero: it is large, and this is every request's way. */
	pthread_mutex_init(&r->mutex, NULL);
	r->settling = r->settled = r->queries = 0;
	r->ended = r->written = false;
	r->asked = r->queue_ns = r->query_ns = 0;
	r->rows = 0;
	r->why = REASON_NONE;
	r->runs = r->slow = false;
	r->error[0] = '\0';
	if (http_request_set(request, &record_key, r) < 0) {
		record_free(r);
		return false;
	}
	live_begin(log->live, &r->live, request);
	return true;
}

void access_handling(http_request *request)
{
	record *r = record_of(http_request_ctx(request));
	if (r)
		live_handling(&r->live);
}

/* A request's statements run one after the other, on its worker. */
void access_query(const pg_query_event *event, void *data)
{
	access_log *log = data;
	record *r = record_of(event->query_ctx);
	int64_t now = ctx_now();
	if (!r)
		return;
	live_query(&r->live, event);
	switch (event->state) {
	case PG_QUERY_QUEUED:
		r->asked = now;
		r->runs = false;
		break;
	case PG_QUERY_RUNNING:
		r->queries++;
		queue_left(log, r, now);
		r->asked = now;
		r->runs = true;
		break;
	case PG_QUERY_STREAMING:
		break;
	case PG_QUERY_ENDED:
		if (r->runs)
			query_ended(log, r, now - r->asked, event->rows);
		else
			queue_left(log, r, now);
		break;
	}
	if (event->settling) {
		pthread_mutex_lock(&r->mutex);
		r->settling++;
		pthread_mutex_unlock(&r->mutex);
	}
}

/* "00-<trace>-<span>-01": the lowest bit of the flags. */
static bool is_sampled(const char *trace)
{
	const char *flags = strrchr(trace, '-');
	return flags && strtoul(flags + 1, NULL, 16) & 1;
}

/* By the names that the answer and the log have for the request. A look at the database that is nobody's has none. */
void access_tag(ctx *c, pg_tags *tags, void *data)
{
	access_log *log = data;
	int traced = atomic_load_explicit(&log->traced, memory_order_relaxed);
	const http_info *info = traced == TRACED_NONE ? NULL : http_info_of(c);
	if (!info || !info->trace || (traced == TRACED_SAMPLED && !is_sampled(info->trace)))
		return;
	pg_tag(tags, "request_id", info->id);
	pg_tag(tags, "traceparent", info->trace);
}

void access_failed(http_request *request, reason why, const pg_error *error)
{
	record *r = record_of(http_request_ctx(request));
	if (!r)
		return;
	r->why = why;
	if (why == REASON_DB_DOWN)
		log_message(LOG_WARN, "the database cannot be reached", "error", error->message);
	/* What the client did, or the clock, needs no explaining; what PostgreSQL says does. */
	if (error && error->kind != PG_ERROR_CANCELED && error->kind != PG_ERROR_DEADLINE)
		text_copy(r->error, sizeof(r->error), error->message);
}

/* Who the client has proved to be; "": it was not asked. A certificate without a subject is known by its digest. */
static void name_client(record *r, const http_request *request)
{
	const http_client_certificate *certificate = http_request_client_certificate(request);
	const char *name = "";
	if (certificate)
		name = certificate->subject[0] ? certificate->subject : certificate->fingerprint;
	text_copy(r->client, sizeof(r->client), name);
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
	const char *route = http_request_route(request);
	const char *id = http_request_id(request), *trace = http_request_trace(request);
	text_copy(r->route, sizeof(r->route), route ? route : "");
	name_client(r, request);
	text_copy(r->id, sizeof(r->id), id ? id : "");
	/* Of "00-<trace>-<span>-01" the trace; people are told only of one that reaches further than albumd. */
	bool told = trace && (log_format_now() == LOG_JSON || http_header(request, "traceparent"));
	text_copy(r->trace, sizeof(r->trace), told ? trace + strlen("00-") : "");
	/* How long it would have run for a client that left, nobody knows. */
	r->slow = r->slow && why != REASON_CLIENT_DISCONNECT;
	live_over(log->live, &r->live);

	pthread_mutex_lock(&r->mutex);
	r->ended = true;
	bool complete = is_complete_locked(r);
	pthread_mutex_unlock(&r->mutex);
	if (complete)
		conclude(log, r);
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
	live_settled(&r->live);
	bool complete = is_complete_locked(r);
	pthread_mutex_unlock(&r->mutex);
	if (complete)
		conclude(log, r);
}
