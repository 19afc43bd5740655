/*
 * Cancel requests: how they reach PostgreSQL. When they are sent, and what must be true before their
 * connection is used again, is the business of settle.c.
 *
 * There are two ways. A link of its own (PQcancel) is always open, even where the server has no room for
 * another session, but PostgreSQL forks a process for each, some two milliseconds of it. A statement on another
 * connection (pg_cancel_backend) costs a tenth of that, and stops any number of queries. So a request goes out
 * with all others that are waiting, on a connection of the pool's that happens to be idle. Where none is, the
 * first goes on a link, alone, for several at once would only slow each other down; as soon as its connection
 * has settled, which is a matter of milliseconds, that one helps all who wait, before it is lent again. (A
 * connection kept for nothing but cancels would save these milliseconds, and be one more than the pool's size
 * promises.) If the help is late, who is first in the queue takes another link.
 *
 *	                    an idle connection, or one that has settled: cancel_help
 *	 cancel_send ─► QUEUED ──────────────────────────────────────► in a batch ─► over
 *	                   │ the first: no help is to be expected, or it is late
 *	                   └────────────────────────────────────────► on its link ─► over
 *
 * All of this happens in fibers of the keeper, so none of it needs a lock.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "pg_priv.h"

/* Cancel links at once. They have this budget of their own, so that nothing else delays them. */
enum { LINKS_MAX = 4 };

/* How long the first in the queue waits for help before it takes a link beside those in use. */
static const int64_t HELP_IS_LATE = 20 * CTX_MILLISECOND;

/* Queries stopped by one statement. */
enum { BATCH_MAX = 256 };

struct cancel_request {
	conn *cn;
	cancel_request *next;
	cancel_outcome outcome;
	bool queued, over;
	wait_event change; /* it is over, or the first in the queue, or a link or a helper may be had now */
};

static void enqueue(pg_pool *pool, cancel_request *r)
{
	cancel_request **end = &pool->cancels;
	while (*end)
		end = &(*end)->next;
	*end = r;
	r->next = NULL;
	r->queued = true;
}

static void dequeue(pg_pool *pool, cancel_request *r)
{
	cancel_request **at = &pool->cancels;
	while (*at != r)
		at = &(*at)->next;
	*at = r->next;
	r->queued = false;
}

static void finish(cancel_request *r, cancel_outcome outcome)
{
	r->outcome = outcome;
	r->over = true;
	wait_event_set(&r->change);
}

static void wake_first(pg_pool *pool)
{
	if (pool->cancels)
		wait_event_set(&pool->cancels->change);
}

/* ---- On a link of its own --------------------------------------------------------------------------- */

#ifdef LIBPQ_HAS_ASYNC_CANCEL

/* Sends a request as its connection is encrypted, and waits until the server has closed the link. */
static cancel_outcome send_on_link(ctx *limit, conn *cn)
{
	PGcancelConn *link = PQcancelCreate(cn->pg);
	PostgresPollingStatusType state = PGRES_POLLING_FAILED;
	if (link && PQcancelStart(link))
		state = PGRES_POLLING_WRITING;
	while (state == PGRES_POLLING_READING || state == PGRES_POLLING_WRITING) {
		int events = state == PGRES_POLLING_READING ? WAIT_READ : WAIT_WRITE;
		if (wait_fd(limit, PQcancelSocket(link), events) < 0)
			break;
		state = PQcancelPoll(link);
	}
	PQcancelFinish(link);
	return state == PGRES_POLLING_OK ? CANCEL_SENT : CANCEL_UNSURE;
}

#else

/* PQcancel blocks, without a limit of its own. It returns when the server has closed the link. */
typedef struct cancel_job {
	errand errand;
	PGcancel *cancel;
	bool sent;
} cancel_job;

static void cancel_work(errand *e)
{
	cancel_job *job = container_of(e, cancel_job, errand);
	char why[256];
	job->sent = PQcancel(job->cancel, why, sizeof(why));
}

static void cancel_discard(errand *e)
{
	cancel_job *job = container_of(e, cancel_job, errand);
	PQfreeCancel(job->cancel);
	free(job);
}

static cancel_outcome send_on_link(ctx *limit, conn *cn)
{
	cancel_job *job = calloc(1, sizeof(*job));
	if (!job)
		return CANCEL_NOT_SENT;
	job->errand.work = cancel_work;
	job->errand.discard = cancel_discard;
	job->cancel = PQgetCancel(cn->pg);
	if (!job->cancel) {
		cancel_discard(&job->errand);
		return CANCEL_NOT_SENT;
	}
	if (!errand_run(limit, &job->errand))
		return CANCEL_UNSURE;
	bool sent = job->sent;
	cancel_discard(&job->errand);
	return sent ? CANCEL_SENT : CANCEL_UNSURE;
}

#endif

/* ---- Together, on another connection ------------------------------------------------------------------ */

/*
 * Process numbers mean something on one server only, and what is one address may be several servers (behind
 * a proxy, or a name with several addresses): cn->server tells them apart.
 */
static bool can_cancel(const conn *helper, const conn *cn)
{
	return helper->direct && !helper->no_help && cn->direct && strcmp(helper->server, cn->server) == 0;
}

/* Takes from the queue what the helper can cancel and what still runs. Returns how many there are. */
static size_t gather(pg_pool *pool, const conn *helper, cancel_request *batch[static BATCH_MAX])
{
	size_t n = 0;
	for (cancel_request *r = pool->cancels, *next; r && n < BATCH_MAX; r = next) {
		next = r->next;
		if (!can_cancel(helper, r->cn))
			continue;
		dequeue(pool, r);
		if (conn_drain_arrived(r->cn))
			finish(r, CANCEL_NEEDLESS);
		else
			batch[n++] = r;
	}
	return n;
}

static cancel_outcome cancel_backends(conn *helper, cancel_request *const batch[], size_t n)
{
	char pids[BATCH_MAX * 12 + 2];
	int length = 0;
	for (size_t i = 0; i < n; i++)
		length += snprintf(pids + length, sizeof(pids) - (size_t)length, "%c%d", i ? ',' : '{',
		                   PQbackendPID(batch[i]->cn->pg));
	snprintf(pids + length, sizeof(pids) - (size_t)length, "}");

	/* Half the time there is, so that a helper that hangs leaves some for the links. */
	ctx_auto *c = ctx_with_timeout(ctx_background(), helper->pool->options.settle_timeout / 2);
	pg_error error;
	const char *values[] = {pids};
	if (!c || !PQsendQueryParams(
			  helper->pg,
			  "SELECT pg_catalog.pg_cancel_backend(pid) FROM pg_catalog.unnest($1::int[]) pid", 1,
			  NULL, values, NULL, NULL, 0))
		return CANCEL_NOT_SENT;
	conn_flush(helper);
	if (conn_collect(c, helper, &error, NULL))
		return CANCEL_SENT;
	if (error.kind != PG_ERROR_SERVER)
		return CANCEL_UNSURE;
	/* Refused (the session has another role by now, say), it would be so again. */
	helper->no_help = strcmp(error.sqlstate, "57014") != 0;
	return CANCEL_NOT_SENT;
}

/* Cancels all that wait and that the helper can cancel. The helper is the keeper's, and not watched. */
static void cancel_together(pg_pool *pool, conn *helper)
{
	cancel_request *batch[BATCH_MAX];
	size_t n;
	pool->batching = true;
	while (!conn_is_broken(helper) && (n = gather(pool, helper, batch)) > 0) {
		cancel_outcome outcome = cancel_backends(helper, batch, n);
		for (size_t i = 0; i < n; i++)
			finish(batch[i], outcome);
		pool_lock(pool);
		pool->totals.cancel_batches++;
		pool_unlock(pool);
		if (outcome != CANCEL_SENT)
			break;
	}
	pool->batching = false;
	wake_first(pool);
}

static conn *find_helper(const conn_list *list, const conn *cn)
{
	conn *helper = list->first;
	while (helper && !can_cancel(helper, cn))
		helper = helper->next;
	return helper;
}

/* An idle connection to the same server, or NULL. */
static conn *borrow_helper(pg_pool *pool, const conn *cn)
{
	pool_lock(pool);
	conn *helper = find_helper(&pool->lists[CONN_IDLE], cn);
	for (home *h = pool->homes; h && !helper; h = h->next)
		helper = find_helper(&h->idle, cn);
	if (helper)
		conn_move(helper, CONN_BUSY);
	pool_unlock(pool);
	if (helper)
		conn_unwatch(helper);
	return helper;
}

static void give_helper_back(conn *helper)
{
	helper->doomed |= !conn_watch(helper);
	conn_return(helper, ctx_background());
}

void cancel_help(conn *cn)
{
	pg_pool *pool = cn->pool;
	if (pool->cancels && !pool->batching)
		cancel_together(pool, cn);
}

/* ---- A request ---------------------------------------------------------------------------------------- */

static void set_event(void *arg)
{
	wait_event_set(arg);
}

/* Contexts end together: when a parent is cancelled, when a deadline passes. One turn brings all of them here. */
static void let_others_come(pg_pool *pool)
{
	wait_event others = WAIT_EVENT_INIT;
	if (loop_spawn(pool->keeper, set_event, &others) == 0)
		wait_event_wait(NULL, &others);
}

static conn *find_helper_to_be(const conn_list *list, const conn *cn)
{
	conn *helper = list->first;
	while (helper && !(helper->ending.on_link && can_cancel(helper, cn)))
		helper = helper->next;
	return helper;
}

/* A batch is on its way, after which another may go, or a connection settles that will send one. */
static bool help_is_coming(pg_pool *pool, const conn *cn)
{
	if (!cn->direct)
		return false;
	pool_lock(pool);
	bool coming = pool->batching || find_helper_to_be(&pool->lists[CONN_CANCELING], cn) ||
	              find_helper_to_be(&pool->lists[CONN_SETTLING], cn);
	pool_unlock(pool);
	return coming;
}

/* true: it has not come in good time. false: it may be there now. */
static bool help_is_late(ctx *limit, cancel_request *r)
{
	ctx_auto *patience = ctx_with_timeout(limit, HELP_IS_LATE);
	return !patience || wait_event_wait(patience, &r->change) != 0;
}

static void use_link(ctx *limit, pg_pool *pool, cancel_request *r)
{
	dequeue(pool, r);
	wake_first(pool);
	pool->cancel_links++;
	r->cn->ending.on_link = true;
	r->outcome = conn_drain_arrived(r->cn) ? CANCEL_NEEDLESS : send_on_link(limit, r->cn);
	r->over = true;
	pool->cancel_links--;
	wake_first(pool);
}

/* For who is first in the queue: takes a way that is open, or waits until something has changed. */
static void take_a_way(ctx *limit, pg_pool *pool, cancel_request *r)
{
	conn *helper = pool->batching ? NULL : borrow_helper(pool, r->cn);
	if (helper) {
		cancel_together(pool, helper);
		give_helper_back(helper);
		return;
	}
	if (help_is_coming(pool, r->cn) && (!help_is_late(limit, r) || !r->queued))
		return;
	if (pool->cancel_links < LINKS_MAX)
		use_link(limit, pool, r);
	else
		wait_event_wait(limit, &r->change);
}

cancel_outcome cancel_send(ctx *limit, conn *cn)
{
	pg_pool *pool = cn->pool;
	cancel_request r = {.cn = cn, .change = WAIT_EVENT_INIT};
	cn->ending.on_link = false;
	enqueue(pool, &r);
	let_others_come(pool);
	while (r.queued && !ctx_err(limit)) {
		if (pool->cancels == &r)
			take_a_way(limit, pool, &r);
		else
			wait_event_wait(limit, &r.change);
	}
	if (r.queued) {
		dequeue(pool, &r);
		wake_first(pool);
		return CANCEL_NOT_SENT;
	}
	/* Taken into a batch, which is bounded. */
	while (!r.over)
		wait_event_wait(NULL, &r.change);
	return r.outcome;
}
