/*
 * metrics.h — what is counted, in the text formats of Prometheus and OpenMetrics.
 */
#ifndef ALBUMD_METRICS_H
#define ALBUMD_METRICS_H

#include <tether/http.h>
#include <tether/pg.h>

#include "reason.h"
#include "text.h"

typedef struct metrics metrics;

/* NULL: out of memory. */
metrics *metrics_new(void);
void metrics_free(metrics *m);

/* Has a route's requests counted apart. pattern is http_handle's, borrowed. Before serving. */
void metrics_add_route(metrics *m, const char *pattern);

/* Any thread. `why` tells apart the failures of one status. */
void metrics_request(metrics *m, const http_request *request, const http_outcome *outcome, reason why);
void metrics_queued(metrics *m, int64_t ns);  /* a query's wait for its connection is over */
void metrics_queried(metrics *m, int64_t ns); /* a query has ended that ran so long */
void metrics_settled(metrics *m, const pg_settled *settled);

typedef enum metrics_format { METRICS_PROMETHEUS, METRICS_OPENMETRICS } metrics_format;

/* Appends all of it. */
void metrics_write(const metrics *m, const http_server *server, const pg_pool *pool, metrics_format format,
                   text *t);

#endif
