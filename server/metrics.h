/*
 * metrics.h — what is counted, in the text format of Prometheus.
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
void metrics_settled(metrics *m, const pg_settled *settled);

/* Appends all of it. */
void metrics_write(const metrics *m, const http_server *server, const pg_pool *pool, text *t);

#endif
