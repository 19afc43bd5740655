/*
 * Transactions: a session under one context from BEGIN to the end.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "pg_priv.h"

struct pg_tx {
	unsigned magic;
	pg_conn session;
	ctx_hook hook; /* on the transaction's context: takes the connection between statements */
	bool hooked;
	bool committed;
};

static pg_tx no_memory = {
	.magic = TX_MAGIC,
	.session = {.magic = SESSION_MAGIC, .error = {.kind = PG_ERROR_MEMORY, .message = "out of memory"}},
};

static void tx_ctx_done(ctx_hook *hook)
{
	pg_tx *tx = container_of(hook, pg_tx, hook);
	lease_take(&tx->session.lease, tx->session.ctx);
}

static void begin_command(char *sql, size_t size, const pg_tx_options *options)
{
	static const pg_tx_options defaults;
	static const char *const isolation[] = {
		[PG_ISOLATION_DEFAULT] = "",
		[PG_READ_COMMITTED] = " ISOLATION LEVEL READ COMMITTED",
		[PG_REPEATABLE_READ] = " ISOLATION LEVEL REPEATABLE READ",
		[PG_SERIALIZABLE] = " ISOLATION LEVEL SERIALIZABLE",
	};
	if (!options)
		options = &defaults;
	snprintf(sql, size, "BEGIN%s%s%s", isolation[options->isolation],
	         options->read_only ? " READ ONLY" : "", options->deferrable ? " DEFERRABLE" : "");
}

pg_tx *pg_begin(ctx *c, pg_pool *pool, const pg_tx_options *options)
{
	char sql[96];
	pg_tx *tx = calloc(1, sizeof(*tx));
	if (!tx)
		return &no_memory;
	tx->magic = TX_MAGIC;
	pg_conn *session = &tx->session;
	session->magic = SESSION_MAGIC;
	session->ctx = ctx_retain(c);
	begin_command(sql, sizeof(sql), options);
	tell_queued(pool, c, sql);
	conn *cn = pool_acquire(c, pool, &session->error);
	if (!cn) {
		tell_ended(pool, c, 0, false);
		return tx;
	}
	tell_running(cn, c, sql);
	lease_begin(&session->lease, cn);
	if (!conn_command(c, cn, sql, &session->error, NULL)) {
		session->error.settling = lease_end(&session->lease, c);
		tell_ended(pool, c, 0, session->error.settling);
		return tx;
	}
	tell_ended(pool, c, 0, false);
	tx->hooked = true;
	ctx_hook_add(c, &tx->hook, tx_ctx_done);
	lease_leave(&session->lease, c);
	return tx;
}

const pg_error *pg_tx_error(const pg_tx *tx)
{
	/* The end of its context may be news; but for that, asking changes nothing. */
	pg_conn *session = &((pg_tx *)(uintptr_t)tx)->session;
	return session_is_over(session) && !tx->committed ? &session->error : NULL;
}

/* Once COMMIT is on its way, only PostgreSQL's answer says what came of it. */
static bool judge(pg_error *error, bool answered, const char *tag)
{
	if (answered && strcmp(tag, "COMMIT") == 0) {
		error_set(error, PG_ERROR_CLOSED, "the transaction was committed already");
		return true;
	}
	if (answered) {
		error_set(error, PG_ERROR_SERVER,
		          "a statement had failed, so PostgreSQL rolled back instead");
		memcpy(error->sqlstate, "25P02", sizeof("25P02"));
	} else if (error->kind != PG_ERROR_SERVER) {
		error->kind = PG_ERROR_UNKNOWN;
	}
	return false;
}

bool pg_commit(pg_tx *tx)
{
	if (tx->magic != TX_MAGIC)
		pg_misuse("pg_commit", "not a transaction, or closed before");
	pg_conn *session = &tx->session;
	pg_error error;
	error_clear(&error);
	conn *cn = session_enter(session->ctx, session, &error);
	if (!cn) {
		if (!session->error.kind)
			session->error = error;
		return false;
	}
	char tag[16] = "";
	tell_running(cn, session->ctx, "COMMIT");
	bool answered = conn_command(session->ctx, cn, "COMMIT", &session->error, tag);
	tx->committed = judge(&session->error, answered, tag);
	session->error.settling = lease_end(&session->lease, session->ctx);
	tell_ended(session->lease.pool, session->ctx, 0, session->error.settling);
	return tx->committed;
}

static bool savepoint(pg_tx *tx, const char *verb, const char *name, pg_error *error)
{
	pg_error unwanted;
	if (tx->magic != TX_MAGIC)
		pg_misuse("pg_savepoint", "not a transaction, or closed before");
	ctx *c = tx->session.ctx ? tx->session.ctx : ctx_background();
	return session_command(c, &tx->session, verb, name, NULL, error ? error : &unwanted);
}

bool pg_savepoint(pg_tx *tx, const char *name, pg_error *error)
{
	return savepoint(tx, "SAVEPOINT", name, error);
}

bool pg_rollback_to(pg_tx *tx, const char *name, pg_error *error)
{
	return savepoint(tx, "ROLLBACK TO", name, error);
}

bool pg_release(pg_tx *tx, const char *name, pg_error *error)
{
	return savepoint(tx, "RELEASE", name, error);
}

void pg_rollback(pg_tx *tx)
{
	if (!tx || tx == &no_memory)
		return;
	if (tx->magic != TX_MAGIC)
		pg_misuse("pg_rollback", "not a transaction, or closed before");
	pg_conn *session = &tx->session;
	if (session->stream)
		pg_misuse("pg_rollback", "rows of it are still open");
	if (tx->hooked)
		ctx_hook_remove(session->ctx, &tx->hook);
	if (session->lease.pool)
		lease_take(&session->lease, session->ctx);
	ctx_release(session->ctx);
	session->magic = tx->magic = 0;
	free(tx);
}

void pg_rollback_scoped(pg_tx **tx)
{
	pg_rollback(*tx);
}

pg_rows *pg_tx_query(ctx *c, pg_tx *tx, const char *sql, pg_params params)
{
	return rows_run_in(c, &tx->session, sql, &params, ROWS_STREAM);
}

pg_rows *pg_tx_query_row(ctx *c, pg_tx *tx, const char *sql, pg_params params)
{
	return rows_run_in(c, &tx->session, sql, &params, ROWS_FIRST);
}

pg_rows *pg_tx_exec(ctx *c, pg_tx *tx, const char *sql, pg_params params)
{
	return rows_run_in(c, &tx->session, sql, &params, ROWS_NONE);
}

pg_copy *pg_tx_copy_out(ctx *c, pg_tx *tx, const char *sql)
{
	return pg_conn_copy_out(c, &tx->session, sql);
}

pg_copy *pg_tx_copy_in(ctx *c, pg_tx *tx, const char *sql)
{
	return pg_conn_copy_in(c, &tx->session, sql);
}
