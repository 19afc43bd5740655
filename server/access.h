/*
 * access.h — the record of each request: its line in the log and its place in the metrics.
 *
 * A record is a value of the request's context, and so of every context derived from it: that is how a query
 * cancelled long after its request was answered still finds whose it was. The line is written once both are
 * known: how the request ended, and how long PostgreSQL took to stop the query that was cancelled for it.
 */
#ifndef ALBUMD_ACCESS_H
#define ALBUMD_ACCESS_H

#include <stdatomic.h>
#include <tether/http.h>
#include <tether/pg.h>

#include "live.h"
#include "metrics.h"
#include "reason.h"

/* Which requests' queries tell PostgreSQL whose they are. */
typedef enum access_traced {
	TRACED_NONE,
	TRACED_SAMPLED, /* those whose trace their caller records, as the flags of its traceparent say */
	TRACED_ALL,
} access_traced;

/* What data is for the five calls below, which are an http_server's and a pg_pool's callbacks. */
typedef struct access_log {
	metrics *metrics;
	live *live;
	/* These two may change meanwhile: queries that run longer are warned of, 0: none; an access_traced. */
	atomic_int_least64_t slow_ns;
	atomic_int traced;
} access_log;

bool access_begin(http_request *request, void *data);
void access_end(http_request *request, const http_outcome *outcome, void *data);
void access_query(const pg_query_event *event, void *data);
void access_settled(const pg_settled *settled, void *data);
void access_tag(ctx *c, pg_tags *tags, void *data);

/* The handler begins. */
void access_handling(http_request *request);

/* A handler's word on why its request failed; error may be NULL. In the handler, once. */
void access_failed(http_request *request, reason why, const pg_error *error);

#endif
