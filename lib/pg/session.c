/*
 * Sessions: a connection lent for more than one statement, as pg_conn_acquire and pg_begin do.
 *
 * When a statement's context ends, its connection goes to the keeper. A transaction is over by that: it is
 * rolled back there. A pinned session gets its connection back once it has settled, with its locks and
 * temporary tables; the next statement waits for that.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "pg_priv.h"

/* ---- Statements on a session ------------------------------------------------------------------------ */

/* Waits for the connection that a cancelled statement has left settling. */
static bool wait_for_return(ctx *c, pg_conn *session, pg_error *error)
{
	if (wait_event_wait(c, &session->returned) != 0) {
		error_if_done(error, c);
		return false;
	}
	pool_lock(session->lease.pool);
	bool lost = session->lost;
	pool_unlock(session->lease.pool);
	if (!lost)
		return true;
	error_set(&session->error, PG_ERROR_CLOSED,
	          "the pinned connection was closed after a cancelled statement");
	*error = session->error;
	return false;
}

/* What an early pg_rows_close has left unread is read here, not cancelled: that would cost the transaction. */
static bool skip_rest(ctx *c, pg_conn *session, pg_error *error)
{
	conn *cn = session->lease.conn;
	if (PQtransactionStatus(cn->pg) != PQTRANS_ACTIVE)
		return true;
	if (conn_collect(c, cn, error, NULL))
		return true;
	if (error->kind == PG_ERROR_SERVER) {
		error_clear(error); /* that was the statement's before, and nobody wants to know any more */
		return true;
	}
	session_leave(session, c, error);
	return false;
}

bool session_is_over(pg_conn *session)
{
	if (!session->error.kind && session->ctx)
		error_if_done(&session->error, session->ctx);
	return session->error.kind;
}

conn *session_enter(ctx *c, pg_conn *session, pg_error *error)
{
	if (session->magic != SESSION_MAGIC)
		pg_misuse("pg", "not a pinned connection or transaction, or given back before");
	if (session_is_over(session)) {
		*error = session->error;
		error->settling = session->ctx && lease_was_settling(&session->lease);
		return NULL;
	}
	if (error_if_done(error, c))
		return NULL;
	if (session->stream) {
		error_set(error, PG_ERROR_USAGE,
		          "the rows or the COPY of the statement before are still open");
		return NULL;
	}
	int use;
	while ((use = lease_enter(&session->lease)) == LEASE_TAKEN && session->returns) {
		if (!wait_for_return(c, session, error))
			return NULL;
	}
	if (use == LEASE_IN_CALL)
		pg_misuse("pg", "a pinned connection or transaction is used from two threads at once");
	if (use ==
	    LEASE_TAKEN) /* just now, and only the transaction's own context takes it between statements */
		return session_enter(c, session, error);
	return skip_rest(c, session, error) ? session->lease.conn : NULL;
}

void session_leave(pg_conn *session, ctx *c, pg_error *error)
{
	lease *l = &session->lease;
	conn *cn = l->conn;
	PGTransactionStatusType status = PQtransactionStatus(cn->pg);
	bool usable = status == PQTRANS_IDLE || status == PQTRANS_INTRANS || status == PQTRANS_INERROR;
	if (usable && !cn->doomed) {
		lease_leave(l, session->ctx ? session->ctx : ctx_background());
		return;
	}
	if (session->returns && status == PQTRANS_ACTIVE && !cn->doomed) {
		cn->session = session;
	} else {
		session->error = *error;
		/* What was asked for may have come just before the end: no more will. */
		if (!session->error.kind)
			error_set(&session->error, PG_ERROR_CONNECTION, "the connection to PostgreSQL broke");
	}
	error->settling = lease_end(l, c);
}

/* "VERB "name"" into sql, where the name is of use as it is: PostgreSQL cuts longer ones. */
static bool write_command(char *sql, const char *verb, const char *name)
{
	enum { LONGEST = 63 };
	size_t length = strlen(name);
	if (length == 0 || length > LONGEST)
		return false;
	sql += sprintf(sql, "%s \"", verb);
	for (; *name; name++) {
		if (*name == '"')
			*sql++ = '"';
		*sql++ = *name;
	}
	memcpy(sql, "\"", 2);
	return true;
}

bool session_command(ctx *c, pg_conn *session, const char *verb, const char *name,
                     bool (*may)(const conn *cn, pg_error *error), pg_error *error)
{
	char sql[192];
	error_clear(error);
	conn *cn = session_enter(c, session, error);
	if (!cn)
		return false;
	bool ok = !may || may(cn, error);
	if (ok && !write_command(sql, verb, name)) {
		error_set(error, PG_ERROR_USAGE, "a name must have 1 to 63 bytes");
		ok = false;
	}
	if (!ok) {
		session_leave(session, c, error);
		return false;
	}
	tell_running(cn, c, sql);
	cn->listening |= strcmp(verb, "LISTEN") == 0;
	ok = conn_command(c, cn, sql, error, NULL);
	session_leave(session, c, error);
	tell_ended(session->lease.pool, c, 0, error->settling);
	return ok;
}

/* ---- Pinned connections ----------------------------------------------------------------------------- */

static pg_conn no_memory = {
	.magic = SESSION_MAGIC,
	.error = {.kind = PG_ERROR_MEMORY, .message = "out of memory"},
};

void session_returned(pg_conn *session, conn *cn)
{
	session->lost = !cn;
	if (cn)
		atomic_store(&session->lease.use, LEASE_QUIET);
	wait_event_set(&session->returned);
}

pg_conn *pg_conn_acquire(ctx *c, pg_pool *pool)
{
	pg_conn *session = calloc(1, sizeof(*session));
	if (!session)
		return &no_memory;
	session->magic = SESSION_MAGIC;
	session->returns = true;
	session->returned = (wait_event)WAIT_EVENT_INIT;
	tell_queued(pool, c, NULL);
	conn *cn = pool_acquire(c, pool, &session->error);
	tell_ended(pool, c, 0, false);
	if (!cn)
		return session;
	lease_begin(&session->lease, cn);
	session->lease.session = session;
	lease_leave(&session->lease, ctx_background());
	return session;
}

const pg_error *pg_conn_error(const pg_conn *session)
{
	return session->error.kind ? &session->error : NULL;
}

void pg_conn_release(pg_conn *session)
{
	if (!session || session == &no_memory)
		return;
	if (session->magic != SESSION_MAGIC)
		pg_misuse("pg_conn_release", "not a pinned connection, or given back before");
	if (session->ctx)
		pg_misuse("pg_conn_release", "the session of after_connect is borrowed");
	if (session->stream)
		pg_misuse("pg_conn_release", "rows of it are still open");
	pg_pool *pool = session->lease.pool;
	if (pool) {
		pool_lock(pool);
		conn *cn = session->lease.conn;
		int use = atomic_load(&session->lease.use);
		if (use == LEASE_QUIET)
			conn_return_locked(cn, ctx_background());
		else if (!session->error.kind && !session->lost)
			cn->session = NULL; /* it settles still, and goes back to the pool then */
		pool_unlock(pool);
	}
	PQfreemem(session->heard);
	session->magic = 0;
	free(session);
}

/* ---- What a new session begins with ------------------------------------------------------------------ */

static bool call_after_connect(ctx *c, conn *cn, pg_error *error)
{
	const pg_pool_options *options = &cn->pool->options;
	/* Like a transaction's it is over with the first context that ends in flight: then there is no point in settling. */
	pg_conn session = {.magic = SESSION_MAGIC, .ctx = c};
	lease_begin(&session.lease, cn);
	lease_leave(&session.lease, c);
	bool ok = options->after_connect(c, &session, error, options->data);
	if (session.stream)
		pg_misuse("after_connect", "rows of the session are still open");
	/* What its rows have left unread is skipped here. */
	if (ok && session_enter(c, &session, error) && PQtransactionStatus(cn->pg) == PQTRANS_IDLE)
		return true;
	if (session.error.kind && !error->kind)
		*error = session.error;
	if (!error->kind)
		error_set(error, PG_ERROR_CONNECTION,
		          ok ? "after_connect has left a transaction open"
		             : "after_connect has refused the new session");
	return false;
}

bool session_introduce(ctx *c, conn *cn, pg_error *error)
{
	const pg_pool *pool = cn->pool;
	error_clear(error);
	bool ok = !pool->after_connect_sql || conn_command(c, cn, pool->after_connect_sql, error, NULL);
	if (ok && pool->options.after_connect)
		ok = call_after_connect(c, cn, error);
	if (ok && PQtransactionStatus(cn->pg) != PQTRANS_IDLE) {
		error_set(error, PG_ERROR_CONNECTION, "after_connect_sql has left a transaction open");
		ok = false;
	}
	/* Whatever it was, to those who wait for a connection it is that there is none. */
	if (!ok && ctx_err(c))
		error_set(error, PG_ERROR_CONNECTION, "after_connect has not ended in time");
	if (!ok)
		error->kind = PG_ERROR_CONNECTION;
	error->cause = NULL;
	error->settling = false;
	return ok;
}

pg_rows *pg_conn_query(ctx *c, pg_conn *session, const char *sql, pg_params params)
{
	return rows_run_in(c, session, sql, &params, ROWS_STREAM);
}

pg_rows *pg_conn_query_row(ctx *c, pg_conn *session, const char *sql, pg_params params)
{
	return rows_run_in(c, session, sql, &params, ROWS_FIRST);
}

pg_rows *pg_conn_exec(ctx *c, pg_conn *session, const char *sql, pg_params params)
{
	return rows_run_in(c, session, sql, &params, ROWS_NONE);
}
