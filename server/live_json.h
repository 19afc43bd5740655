/*
 * live_json.h — a snapshot of everything alive as JSON: what /requests.json answers, and, part by part, what
 * /requests/events streams. Times are milliseconds since 1970, durations milliseconds.
 *
 *	"connections": [{"peer", "requests": [{"id", "method", "target", "stage", "over", "since", "deadline",
 *	                 "query": null or {"stage", "sql", "since", "deadline", "backend"}}]}], "more": 0
 *	"cancellations": [{"number", "at", "method", "target", "peer", "reason", "struck", "status", "duration",
 *	                   "sql", "stop": ms or null, "cancels", "connection": "kept", "closed" or null}]
 *	"samples": [{"at", "size", "idle", "busy", "ending", "connecting", "waiting"}], one a second
 *	"server": {"version", "listen", "draining", "requests", "connections", …}
 *
 * A deadline that is not there is null.
 */
#ifndef ALBUMD_LIVE_JSON_H
#define ALBUMD_LIVE_JSON_H

#include "live.h"
#include "text.h"

/* Each appends members of an object, without its braces. */
void live_write_connections(text *t, const live_snapshot *s);
void live_write_cancellations(text *t, const live_snapshot *s);
void live_write_samples(text *t, const live_snapshot *s);
/* Of the last sample, which must be there. */
void live_write_server(text *t, const live_snapshot *s, const char *listens_on);

#endif
