/*
 * Settling, on the keeper: from the end of a query's context to a clean connection.
 *
 * The settling note. PostgreSQL does not answer a cancel request; it signals the backend and closes the link
 * the request came on. What the backend then does depends on when the signal arrives: running, it stops the
 * query; waiting for a command, it ignores the signal. Two things go wrong from there.
 *
 * A cancel too early. The request travels on a link of its own and may overtake its query; the backend, idle
 * still, ignores it, and the query runs to its end. So a cancel is repeated until the results are drained:
 * that is, until ReadyForQuery has been read.
 *
 * A cancel too late. A request on its way when its query ends would hit the next one. So a connection is
 * used again only when nothing can be on its way any more:
 *
 *  1. the results are drained to ReadyForQuery, so no request will be sent for them any more;
 *  2. the server has closed every link a request was sent on, or answered the statement that sent it, which it
 *     does after the signal was sent; a link that ended otherwise, or has not ended in time, makes the
 *     connection unsure, and it is closed;
 *  3. the fence is answered: one empty round trip. A signal sent before (2) and still pending is taken by
 *     the backend at the latest when it reads the fence, where it is ignored, or hits the fence itself,
 *     which is then repeated. On a direct connection (1) and (2) would be enough, as PostgreSQL is now;
 *     behind a pooler, or another implementation of the protocol, it is the fence that makes it true.
 *
 * A query that ends by itself before its request is sent has no request sent for it. All of this lasts at
 * most the settle timeout; what is not clean by then is closed.
 */
#include <string.h>

#include "pg_priv.h"

/* How long after one request the next is sent, while the results do not end. */
static const int64_t PAUSES[] = {5 * CTX_MILLISECOND, 10 * CTX_MILLISECOND, 20 * CTX_MILLISECOND};
enum { PAUSE_COUNT = sizeof(PAUSES) / sizeof(PAUSES[0]) };

/* ---- From the context's end to a clean connection --------------------------------------------------- */

/* Reads to ReadyForQuery, for as long as `pause`. */
static bool drain(ctx *limit, conn *cn, int64_t pause)
{
	ctx *c = ctx_with_timeout(limit, pause);
	if (!c)
		return false;
	PGresult *result;
	answer a;
	while ((a = conn_answer(c, cn, &result)) == ANSWER_RESULT)
		PQclear(result);
	ctx_end(c);
	return a == ANSWER_END;
}

/* CANCELING. true: the results are drained and every link was closed by the server. */
static bool stop_query(ctx *limit, conn *cn)
{
	ending *e = &cn->ending;
	bool drained = conn_drain_arrived(cn);
	/* A COPY that waits for our data is deaf to cancels. CopyFail, which it has been sent just now, ends it at once. */
	if (!drained && cn->copy == COPY_FAILED)
		drained = drain(limit, cn, PAUSES[0]);
	for (size_t turn = 0; !drained && !ctx_err(limit) && !conn_is_broken(cn); turn++) {
		cancel_outcome outcome = cancel_send(limit, cn);
		e->cancels += outcome == CANCEL_SENT || outcome == CANCEL_UNSURE;
		e->unsure |= outcome == CANCEL_UNSURE;
		drained = outcome == CANCEL_NEEDLESS;
		/* The rest of a message must never be written: no more can be done for it than this. */
		if (conn_holds_back(cn))
			return false;
		drained = drained || drain(limit, cn, PAUSES[turn < PAUSE_COUNT ? turn : PAUSE_COUNT - 1]);
	}
	if (!drained || conn_is_broken(cn))
		return false;
	e->stopped = ctx_now();
	return !e->unsure;
}

/* A command that a cancel still on its way may hit: then it is sent again. */
static bool command_until_done(ctx *limit, conn *cn, const char *sql)
{
	pg_error error;
	while (!conn_command(limit, cn, sql, &error, NULL)) {
		if (error.kind != PG_ERROR_SERVER || strcmp(error.sqlstate, "57014") != 0)
			return false;
	}
	return true;
}

/* SETTLING. */
static bool fence(ctx *limit, conn *cn, bool to_pool)
{
	if (to_pool && PQtransactionStatus(cn->pg) != PQTRANS_IDLE &&
	    !command_until_done(limit, cn, "ROLLBACK"))
		return false;
	if (to_pool && cn->listening) {
		if (!command_until_done(limit, cn, "UNLISTEN *"))
			return false;
		cn->listening = false;
		conn_drop_notifications(cn);
	}
	return command_until_done(limit, cn, "");
}

/* Returns whether the connection goes back to the pool, as opposed to a pinned session. */
static bool enter_settling(conn *cn)
{
	pool_lock(cn->pool);
	conn_move(cn, CONN_SETTLING);
	bool to_pool = !cn->session;
	pool_unlock(cn->pool);
	return to_pool;
}

/* The connection goes where it belongs; false: back to the pool, but not as it is. */
static bool hand_over(conn *cn, bool clean)
{
	pg_pool *pool = cn->pool;
	pool_lock(pool);
	if (clean && !cn->session && (PQtransactionStatus(cn->pg) != PQTRANS_IDLE || cn->listening)) {
		pool_unlock(pool);
		return false;
	}
	ending e = cn->ending;
	pg_conn *session = cn->session;
	cn->ending.ctx = NULL;
	cn->session = NULL;
	cn->doomed = cn->doomed || !clean || conn_is_broken(cn) || !conn_watch(cn);
	bool kept = !cn->doomed && !pool->closed;
	if (session && kept)
		conn_move(cn, CONN_BUSY);
	else
		pool_give_locked(cn);
	if (session)
		session_returned(session, kept ? cn : NULL);
	pool->totals.cancels_sent += e.cancels;
	if (e.ctx && kept)
		pool->totals.settled_kept++;
	else if (e.ctx)
		pool->totals.settled_closed++;
	pool_unlock(pool);

	if (e.ctx && pool->options.on_settled)
		pool->options.on_settled(&(pg_settled){.query_ctx = e.ctx,
		                                       .cause = ctx_cause(e.ctx),
		                                       .stop_ns = e.stopped ? e.stopped - e.since : -1,
		                                       .settle_ns = ctx_now() - e.since,
		                                       .cancels_sent = e.cancels,
		                                       .kept = kept},
		                         pool->options.data);
	ctx_release(e.ctx);
	return true;
}

static void settle_fiber(void *arg)
{
	conn *cn = arg;
	conn_unwatch(cn);
	ctx *limit = ctx_with_timeout(ctx_background(), cn->pool->options.settle_timeout);
	bool clean = limit && (cn->state == CONN_SETTLING || stop_query(limit, cn));
	bool to_pool = clean && enter_settling(cn);
	do {
		clean = clean && fence(limit, cn, to_pool);
		if (clean &&
		    PQtransactionStatus(cn->pg) == PQTRANS_IDLE) /* in a failed transaction it could not */
			cancel_help(cn);
		to_pool = true; /* the session was given back meanwhile, in the midst of a transaction */
	} while (!hand_over(cn, clean));
	ctx_end(limit);
}

void settle_task(loop_task *task)
{
	conn *cn = container_of(task, conn, task);
	if (loop_start(cn->pool->keeper, settle_fiber, cn) < 0)
		hand_over(cn, false);
}
