/*
 * Streams: what a statement holds from its start to its end, whether that comes at once or after a million rows.
 *
 * That is a connection, the pool's or a session's; the scope it runs under; and the hook that takes the connection away
 * when the scope ends while nobody is in a call. rows.c and copy.c differ in what they read and write, not in this.
 */
#include "pg_priv.h"

/* ---- What the program is told ------------------------------------------------------------------------- */

static void tell(pg_pool *pool, pg_query_event event)
{
	if (pool->options.on_query)
		pool->options.on_query(&event, pool->options.data);
}

void tell_queued(pg_pool *pool, ctx *c, const char *sql)
{
	tell(pool, (pg_query_event){.query_ctx = c, .state = PG_QUERY_QUEUED, .sql = sql});
}

void tell_running(const conn *cn, ctx *c, const char *sql)
{
	tell(cn->pool,
	     (pg_query_event){
		     .query_ctx = c, .state = PG_QUERY_RUNNING, .sql = sql, .backend = PQbackendPID(cn->pg)});
}

void tell_ended(pg_pool *pool, ctx *c, uint64_t rows, bool settling)
{
	tell(pool,
	     (pg_query_event){.query_ctx = c, .state = PG_QUERY_ENDED, .rows = rows, .settling = settling});
}

/* ---- Scopes ----------------------------------------------------------------------------------------- */

static void outer_done(ctx_hook *hook)
{
	scope *s = container_of(hook, scope, hook);
	ctx_cancel_cause(s->ctx, ctx_cause(s->outer));
}

static bool scope_begin(scope *s, ctx *c, ctx *outer)
{
	if (!outer || outer == c) {
		*s = (scope){.ctx = ctx_retain(c)};
		return true;
	}
	*s = (scope){.ctx = ctx_with_cancel(c)};
	if (!s->ctx)
		return false;
	s->outer = ctx_retain(outer);
	ctx_hook_add(outer, &s->hook, outer_done);
	return true;
}

static void scope_end(scope *s)
{
	if (s->outer) {
		ctx_hook_remove(s->outer, &s->hook);
		ctx_release(s->outer);
	}
	ctx_release(s->ctx);
}

static void scope_correct(const scope *s, pg_error *error)
{
	if (s->outer && error->kind == PG_ERROR_CANCELED)
		error_if_done(error, s->outer);
}

/* ---- From its start to its end ------------------------------------------------------------------------ */

conn *stream_open(stream *s, ctx *c, pg_pool *pool, const char *sql, pg_error *error)
{
	*s = (stream){.session = NULL};
	tell_queued(pool, c, sql);
	conn *cn = pool_acquire(c, pool, error);
	if (!cn) {
		tell_ended(pool, c, 0, false);
		return NULL;
	}
	scope_begin(&s->scope, c, NULL);
	lease_begin(&s->own, cn);
	s->lease = &s->own;
	tell_running(cn, c, sql);
	return cn;
}

conn *stream_open_in(stream *s, ctx *c, pg_conn *session, const char *sql, pg_error *error)
{
	*s = (stream){.session = session};
	if (!scope_begin(&s->scope, c, session->ctx)) {
		error_set(error, PG_ERROR_MEMORY, "out of memory");
		return NULL;
	}
	conn *cn = session_enter(s->scope.ctx, session, error);
	if (!cn) {
		scope_correct(&s->scope, error);
		scope_end(&s->scope);
		return NULL;
	}
	s->lease = &session->lease;
	if (session->returns)
		s->lease->taken = false; /* that was another stream's, and nobody else takes it */
	session->stream = s;
	tell_running(cn, s->scope.ctx, sql);
	return cn;
}

static void scope_over(ctx_hook *hook)
{
	stream *s = container_of(hook, stream, hook);
	lease_take(s->lease, s->scope.ctx);
}

void stream_hold(stream *s)
{
	s->held = true;
	tell(s->lease->pool, (pg_query_event){.query_ctx = s->scope.ctx, .state = PG_QUERY_STREAMING});
	ctx_hook_add(s->scope.ctx, &s->hook, scope_over);
	lease_leave(s->lease, s->scope.ctx);
}

/* Lets go of the context, and of the session, which may run something else now. */
static void finish(stream *s, uint64_t affected, bool settling)
{
	if (s->held)
		ctx_hook_remove(s->scope.ctx, &s->hook);
	tell_ended(s->lease->pool, s->scope.ctx, affected, settling);
	pg_conn *session = s->session;
	if (session) {
		session->stream = NULL;
		/* Taken with its stream, a transaction is over. */
		if (!session->returns && atomic_load(&s->lease->use) == LEASE_TAKEN && !session->error.kind)
			error_if_done(&session->error, s->scope.ctx);
	}
	scope_end(&s->scope);
	s->lease = NULL;
}

/* The end of a context took the connection while the caller was elsewhere. */
static void find_taken(stream *s, uint64_t affected, pg_error *error)
{
	if (!error_if_done(error, s->scope.ctx))
		error_if_done(error, s->session->ctx);
	scope_correct(&s->scope, error);
	error->settling = lease_was_settling(s->lease);
	finish(s, affected, error->settling);
}

conn *stream_enter(stream *s, uint64_t affected, pg_error *error)
{
	bool taken = ctx_err(s->scope.ctx) && lease_take(s->lease, s->scope.ctx);
	switch (taken ? LEASE_TAKEN : lease_enter(s->lease)) {
	case LEASE_TAKEN:
		find_taken(s, affected, error);
		return NULL;
	case LEASE_IN_CALL:
		pg_misuse("pg", "rows or a COPY are used from two threads at once");
	default:
		return s->lease->conn;
	}
}

void stream_leave(stream *s)
{
	lease_leave(s->lease, s->scope.ctx);
}

void stream_end(stream *s, uint64_t affected, pg_error *error)
{
	scope_correct(&s->scope, error);
	if (s->session)
		session_leave(s->session, s->scope.ctx, error);
	else
		error->settling = lease_end(s->lease, s->scope.ctx);
	finish(s, affected, error->settling);
}

void stream_close(stream *s, uint64_t affected)
{
	lease *l = s->lease;
	bool settling = false;
	if (!l)
		return;
	if (lease_enter(l) != LEASE_QUIET) {
		settling = lease_is_settling(l);
	} else if (s->session) {
		/* What still comes is skipped by the next statement: a cancel would cost the transaction. */
		conn_copy_end(l->conn, false);
		lease_leave(l, s->session->ctx ? s->session->ctx : ctx_background());
	} else {
		conn_drain_arrived(l->conn);
		settling = lease_end(l, s->scope.ctx);
	}
	finish(s, affected, settling);
}
