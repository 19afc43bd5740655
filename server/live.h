/*
 * live.h — everything alive: the requests and queries of this moment, the last that were cancelled, and how the
 * pool has been over the last minutes. What /requests shows (requests.h).
 *
 * Bounded, however many requests there are: a request carries its own entry (access.h has it), the last hundred
 * cancellations are kept, and five minutes of samples.
 */
#ifndef ALBUMD_LIVE_H
#define ALBUMD_LIVE_H

#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <tether/http.h>
#include <tether/pg.h>

#include "reason.h"

typedef struct live live;

/* What a request is at. From QUEUED to SETTLING it is its query that is. */
typedef enum live_stage {
	LIVE_RECEIVING, /* its body arrives */
	LIVE_HANDLING,  /* its handler is at work, without a query */
	LIVE_QUEUED,    /* waits for a database connection */
	LIVE_RUNNING,   /* PostgreSQL works */
	LIVE_STREAMING, /* rows come, as fast as the client takes them */
	LIVE_SETTLING,  /* the query was cancelled; PostgreSQL has not stopped yet */
	LIVE_STAGES,
} live_stage;
extern const char *const live_stage_names[LIVE_STAGES];

/* A request as it is now. Times are ctx_now()'s; deadlines 0: none. Text is cut where it is too long. */
typedef struct live_view {
	uint64_t id;
	int64_t since, deadline;
	live_stage stage;
	bool over; /* it has been answered, or its client has left; only its query is still to settle */
	struct {
		int64_t since, deadline;
		int backend; /* PostgreSQL's process id; 0: none yet */
	} query;             /* from QUEUED on */
	char method[16], peer[64], target[512], sql[512];
} live_view;

/* ---- Requests: kept up to date by access.c ------------------------------------------------------------ */

/* A request's entry, where its record is. */
typedef struct live_request {
	struct live_request *next, *previous; /* guarded by the registry's mutex, as is this: */
	http_request *request;                /* NULL: over */
	pthread_mutex_t mutex;                /* guards `stage`, `query`, `sql` and what follows here */
	live_view view;
	live_stage struck; /* what it was at when its context ended; LIVE_STAGES: not that we know */
} live_request;

/* The request begins: on its worker's loop. Fills in the entry. */
void live_begin(live *l, live_request *r, http_request *request);
void live_handling(live_request *r);                           /* its handler does */
void live_query(live_request *r, const pg_query_event *event); /* any thread */
void live_settled(live_request *r);       /* a query that was cancelled has; any thread */
void live_over(live *l, live_request *r); /* it must not be cancelled any more */
/* It is over, and all its queries have settled: lets go of the entry. Once, after live_begin. */
void live_end(live *l, live_request *r);

/* How one ended that was cancelled. */
typedef struct live_cancellation {
	uint64_t number; /* 1, 2, … since the start; given by live_cancelled */
	uint64_t id;     /* the request's */
	int64_t at;      /* when it was all over */
	reason why;
	live_stage struck; /* what it was at when its context ended */
	int status;
	int64_t duration; /* until it was answered, or left */
	bool in_flight;   /* it had a query in flight, for which: */
	int64_t stop;     /* from the context's end until PostgreSQL had stopped; -1: not known to have */
	unsigned cancels; /* cancel requests sent */
	bool kept;        /* its connection went back to the pool */
	char method[16], peer[64], target[256], sql[256];
} live_cancellation;

/* Remembers it. Fills in the number, the time and what the entry knows. */
void live_cancelled(live *l, live_cancellation *c, const live_request *r);

/* ---- The registry ------------------------------------------------------------------------------------- */

/* One second of the pool. */
typedef struct live_sample {
	int64_t at;
	size_t size, connecting, idle, busy, ending,
		waiting;              /* connections by state; ending: being cancelled */
	size_t requests, connections; /* in flight; clients */
	uint64_t requests_total, disconnects_total, cancels, kept, closed;
	bool draining;
} live_sample;

enum { LIVE_VIEWS = 100, LIVE_CANCELLATIONS = 100, LIVE_SAMPLES = 300 };

live *live_new(void); /* NULL: out of memory */
void live_free(live *l);

/* Takes a sample each second until c is done. Blocks; on a thread of its own. */
void live_watch(live *l, ctx *c, const pg_pool *pool, const http_server *server);

/* All there is at this moment, for who shows it. Large: to be allocated. */
typedef struct live_snapshot {
	int64_t wall; /* what to add to a time of ctx_now() for one since 1970 */
	size_t view_count, cancellation_count, sample_count;
	size_t more; /* requests that did not fit into `views`; those too young to be looked at are not counted */
	live_view views[LIVE_VIEWS];                         /* the oldest first */
	live_cancellation cancellations[LIVE_CANCELLATIONS]; /* these two only what is newer than asked for */
	live_sample samples[LIVE_SAMPLES];
} live_snapshot;

/* Takes a snapshot. newest: the last cancellation and the last sample's time that are known already, 0: none. */
void live_look(live *l, live_snapshot *snapshot, uint64_t cancellation, int64_t sample);

/* Cancels the request with that id, with REASON_OPERATOR: true. false: there is none, or it is over. Any thread. */
bool live_cancel(live *l, uint64_t id);

#endif
