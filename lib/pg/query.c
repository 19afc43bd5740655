/*
 * One exchange with PostgreSQL: send, wait under a context, read.
 *
 * How an exchange left the connection is not kept a second time here: libpq's PQtransactionStatus knows
 * (ACTIVE: something is in flight; UNKNOWN: broken), and conn_return asks it.
 */
#include <stdio.h>
#include <string.h>

#include "pg_priv.h"

void conn_flush(conn *cn)
{
	/* A failure to write is told by the read that follows, with what the server said before it hung up. */
	cn->unsent = PQflush(cn->pg) == 1;
}

/* A COPY wants data to be moved before it ends, and PQgetResult repeats itself until it has been. */
static bool is_copy(const PGresult *result)
{
	ExecStatusType status = PQresultStatus(result);
	return status == PGRES_COPY_IN || status == PGRES_COPY_OUT || status == PGRES_COPY_BOTH;
}

answer conn_answer(ctx *c, conn *cn, PGresult **result)
{
	if (cn->doomed)
		return ANSWER_END;
	while (PQisBusy(cn->pg) && !conn_is_broken(cn)) {
		int ready = wait_fd(c, cn->fd, cn->unsent ? WAIT_READ | WAIT_WRITE : WAIT_READ);
		if (ready < 0) {
			/* What has arrived by now counts: a real answer is never hidden by the context's end.
			   (PQconsumeInput writes, too: not where the rest of a message must never be written.) */
			if (!cn->unsent && PQconsumeInput(cn->pg) && !PQisBusy(cn->pg))
				break;
			return ctx_err(c) ? ANSWER_CTX_DONE : ANSWER_FAILED;
		}
		if (ready & WAIT_READ)
			PQconsumeInput(cn->pg);
		if (cn->unsent)
			conn_flush(cn);
	}
	*result = PQgetResult(cn->pg); /* does not block now */
	if (!*result)
		return ANSWER_END;
	cn->doomed = is_copy(*result);
	return ANSWER_RESULT;
}

bool conn_drain_arrived(conn *cn)
{
	if (cn->unsent)
		return false;
	PQconsumeInput(cn->pg);
	while (!cn->doomed && !PQisBusy(cn->pg)) {
		PGresult *result = PQgetResult(cn->pg);
		if (!result)
			return true;
		cn->doomed = is_copy(result);
		PQclear(result);
	}
	return false;
}

void answer_error(answer a, ctx *c, conn *cn, pg_error *error)
{
	if (a == ANSWER_CTX_DONE)
		error_if_done(error, c);
	else if (a == ANSWER_FAILED)
		error_set(error, PG_ERROR_MEMORY, "out of memory while waiting for PostgreSQL");
	else
		error_from_conn(error, cn->pg);
}

bool conn_collect(ctx *c, conn *cn, pg_error *error, char *tag)
{
	bool failed = false;
	PGresult *result;
	answer a;
	while ((a = conn_answer(c, cn, &result)) == ANSWER_RESULT) {
		ExecStatusType status = PQresultStatus(result);
		if (status == PGRES_FATAL_ERROR && !failed) {
			failed = true;
			error_from_result(error, result);
		} else if (status == PGRES_COMMAND_OK && tag) {
			snprintf(tag, 16, "%s", PQcmdStatus(result));
		}
		PQclear(result);
	}
	if (!failed && (a != ANSWER_END || conn_is_broken(cn) || cn->doomed)) {
		failed = true;
		answer_error(a, c, cn, error);
	}
	return !failed;
}

bool conn_command(ctx *c, conn *cn, const char *sql, pg_error *error, char *tag)
{
	if (!PQsendQuery(cn->pg, sql)) {
		error_from_conn(error, cn->pg);
		return false;
	}
	conn_flush(cn);
	return conn_collect(c, cn, error, tag);
}
