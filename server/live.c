#include "live.h"

#include <stdlib.h>
#include <time.h>

#include <tether/loop.h>

#include "text.h"

/* Requests younger than this come and go too fast to be looked at; they are counted. */
static const int64_t BRIEF = 50 * CTX_MILLISECOND;

const char *const live_stage_names[LIVE_STAGES] = {
	"receiving", "handling", "queued", "running", "streaming", "settling",
};

/*
 * One mutex guards the list, the cancellations and the samples; each request's entry has one of its own for what
 * its query does. The registry's comes first where both are held. http_request_cancel is called under it, which
 * is what keeps the request alive meanwhile: what that call runs (it wakes the handler's fiber, and has the pool
 * take the connection back) never comes back here on the same thread.
 */
struct live {
	int64_t wall; /* see live_snapshot */
	pthread_mutex_t mutex;
	live_request *oldest, *newest;
	size_t request_count;
	uint64_t last_id;
	live_cancellation cancellations[LIVE_CANCELLATIONS]; /* number n lies at n modulo their count */
	uint64_t last_cancellation;
	live_sample samples[LIVE_SAMPLES];
	size_t sample_count; /* since the start */
};

live *live_new(void)
{
	live *l = calloc(1, sizeof(*l));
	if (!l)
		return NULL;
	pthread_mutex_init(&l->mutex, NULL);
	struct timespec now;
	clock_gettime(CLOCK_REALTIME, &now);
	l->wall = now.tv_sec * CTX_SECOND + now.tv_nsec - ctx_now();
	return l;
}

void live_free(live *l)
{
	if (l)
		pthread_mutex_destroy(&l->mutex);
	free(l);
}

/* ---- A request's life --------------------------------------------------------------------------------- */

static int64_t deadline_of(const ctx *c)
{
	int64_t deadline = 0;
	return ctx_deadline(c, &deadline) ? deadline : 0;
}

void live_begin(live *l, live_request *r, http_request *request)
{
	live_view *v = &r->view;
	pthread_mutex_init(&r->mutex, NULL);
	r->request = request;
	r->next = NULL;
	v->deadline = deadline_of(http_request_ctx(request));
	v->stage = LIVE_RECEIVING;
	v->over = false;
	text_copy(v->method, sizeof(v->method), http_request_method(request));
	text_copy(v->peer, sizeof(v->peer), http_request_peer(request));
	text_copy(v->target, sizeof(v->target), http_request_target(request));
	v->sql[0] = '\0';
	r->struck = LIVE_STAGES;

	pthread_mutex_lock(&l->mutex);
	l->request_count++;
	v->id = ++l->last_id;
	v->since = ctx_now(); /* here, so that the list is in its order */
	r->previous = l->newest;
	*(l->newest ? &l->newest->next : &l->oldest) = r;
	l->newest = r;
	pthread_mutex_unlock(&l->mutex);
}

static void enter(live_request *r, live_stage stage)
{
	pthread_mutex_lock(&r->mutex);
	r->view.stage = stage;
	pthread_mutex_unlock(&r->mutex);
}

void live_handling(live_request *r)
{
	enter(r, LIVE_HANDLING);
}

static void begin_query(live_view *v, const pg_query_event *event, live_stage stage)
{
	v->stage = stage;
	v->query.since = ctx_now();
	v->query.deadline = deadline_of(event->query_ctx);
	v->query.backend = event->backend;
	text_copy(v->sql, sizeof(v->sql), event->sql ? event->sql : "");
}

void live_query(live_request *r, const pg_query_event *event)
{
	live_view *v = &r->view;
	pthread_mutex_lock(&r->mutex);
	switch (event->state) {
	case PG_QUERY_QUEUED:
		begin_query(v, event, LIVE_QUEUED);
		break;
	case PG_QUERY_RUNNING:
		/* Where it has been queued, its text is known. */
		if (v->stage != LIVE_QUEUED)
			begin_query(v, event, LIVE_RUNNING);
		v->stage = LIVE_RUNNING;
		v->query.backend = event->backend;
		break;
	case PG_QUERY_STREAMING:
		v->stage = LIVE_STREAMING;
		break;
	case PG_QUERY_ENDED:
		if (r->struck == LIVE_STAGES && ctx_err(event->query_ctx))
			r->struck = v->stage;
		v->stage = event->settling ? LIVE_SETTLING : LIVE_HANDLING;
		break;
	}
	pthread_mutex_unlock(&r->mutex);
}

void live_settled(live_request *r)
{
	pthread_mutex_lock(&r->mutex);
	if (r->view.stage == LIVE_SETTLING)
		r->view.stage = LIVE_HANDLING;
	pthread_mutex_unlock(&r->mutex);
}

void live_over(live *l, live_request *r)
{
	pthread_mutex_lock(&l->mutex);
	r->request = NULL;
	r->view.over = true;
	pthread_mutex_unlock(&l->mutex);
	pthread_mutex_lock(&r->mutex);
	if (r->struck == LIVE_STAGES)
		r->struck = r->view.stage;
	pthread_mutex_unlock(&r->mutex);
}

void live_end(live *l, live_request *r)
{
	pthread_mutex_lock(&l->mutex);
	l->request_count--;
	*(r->previous ? &r->previous->next : &l->oldest) = r->next;
	*(r->next ? &r->next->previous : &l->newest) = r->previous;
	pthread_mutex_unlock(&l->mutex);
	pthread_mutex_destroy(&r->mutex);
}

void live_cancelled(live *l, live_cancellation *c, const live_request *r)
{
	c->id = r->view.id;
	c->at = ctx_now();
	c->struck = r->struck;
	text_copy(c->method, sizeof(c->method), r->view.method);
	text_copy(c->peer, sizeof(c->peer), r->view.peer);
	text_copy(c->target, sizeof(c->target), r->view.target);
	text_copy(c->sql, sizeof(c->sql), r->view.sql);
	pthread_mutex_lock(&l->mutex);
	c->number = ++l->last_cancellation;
	l->cancellations[c->number % LIVE_CANCELLATIONS] = *c;
	pthread_mutex_unlock(&l->mutex);
}

bool live_cancel(live *l, uint64_t id)
{
	bool found = false;
	pthread_mutex_lock(&l->mutex);
	/* The oldest first: who is cancelled by hand has been there for a while. */
	for (live_request *r = l->oldest; r && r->view.id <= id && !found; r = r->next) {
		found = r->view.id == id && r->request;
		if (found)
			http_request_cancel(r->request, &OPERATOR_CANCELED);
	}
	pthread_mutex_unlock(&l->mutex);
	return found;
}

/* ---- The pool's last minutes -------------------------------------------------------------------------- */

static live_sample sample_now(const pg_pool *pool, const http_server *server)
{
	pg_pool_stats p;
	http_server_stats s;
	pg_pool_stats_get(pool, &p);
	http_server_stats_get(server, &s);
	return (live_sample){
		.at = ctx_now(),
		.size = p.size,
		.connecting = p.connecting,
		.idle = p.idle,
		.busy = p.busy,
		.ending = p.canceling + p.settling,
		.waiting = p.waiting,
		.requests = s.requests,
		.connections = s.connections,
		.requests_total = s.requests_total,
		.disconnects_total = s.disconnects_total,
		.cancels = p.cancels,
		.kept = p.settled_kept,
		.closed = p.settled_closed,
		.draining = s.draining,
	};
}

void live_watch(live *l, ctx *c, const pg_pool *pool, const http_server *server)
{
	int64_t next = ctx_now();
	do {
		live_sample sample = sample_now(pool, server);
		pthread_mutex_lock(&l->mutex);
		l->samples[l->sample_count++ % LIVE_SAMPLES] = sample;
		pthread_mutex_unlock(&l->mutex);
		next += CTX_SECOND;
	} while (wait_sleep(c, next - ctx_now()) == 0);
}

/* ---- Looking ------------------------------------------------------------------------------------------ */

static void look_at_requests(const live *l, live_snapshot *s)
{
	int64_t grown = ctx_now() - BRIEF;
	size_t brief = 0;
	for (const live_request *r = l->newest; r && r->view.since > grown; r = r->previous)
		brief++;
	s->view_count = 0;
	for (live_request *r = l->oldest; r && s->view_count < LIVE_VIEWS && r->view.since <= grown;
	     r = r->next) {
		pthread_mutex_lock(&r->mutex);
		s->views[s->view_count++] = r->view;
		pthread_mutex_unlock(&r->mutex);
	}
	s->more = l->request_count - brief - s->view_count;
}

void live_look(live *l, live_snapshot *s, uint64_t cancellation, int64_t sample)
{
	s->wall = l->wall;
	pthread_mutex_lock(&l->mutex);
	look_at_requests(l, s);

	uint64_t first =
		l->last_cancellation > LIVE_CANCELLATIONS ? l->last_cancellation - LIVE_CANCELLATIONS + 1 : 1;
	if (first <= cancellation)
		first = cancellation + 1;
	s->cancellation_count = 0;
	for (uint64_t n = first; n <= l->last_cancellation; n++)
		s->cancellations[s->cancellation_count++] = l->cancellations[n % LIVE_CANCELLATIONS];

	size_t begin = l->sample_count > LIVE_SAMPLES ? l->sample_count - LIVE_SAMPLES : 0;
	s->sample_count = 0;
	for (size_t i = begin; i < l->sample_count; i++) {
		const live_sample *one = &l->samples[i % LIVE_SAMPLES];
		if (one->at > sample)
			s->samples[s->sample_count++] = *one;
	}
	pthread_mutex_unlock(&l->mutex);
}
