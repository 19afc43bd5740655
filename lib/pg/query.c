/*
 * One exchange with PostgreSQL: send, wait under a context, read.
 *
 * How an exchange left the connection is not kept a second time here: libpq's PQtransactionStatus knows
 * (ACTIVE: something is in flight; UNKNOWN: broken), and conn_return asks it.
 */
#include <stdio.h>

#include "pg_priv.h"

void conn_flush(conn *cn)
{
	/* A failure to write is told by the read that follows, with what the server said before it hung up. */
	cn->unsent = PQflush(cn->pg) == 1;
}

/* ---- Waiting ---------------------------------------------------------------------------------------- */

/*
 * Waits for the socket once, reads what has arrived and writes what is left. false: c is done, or the wait failed.
 * What has arrived by then has been read, too: a real answer is never hidden by the context's end. (But PQconsumeInput
 * writes as well: not where the rest of a message must never be written.)
 */
static bool move(ctx *c, conn *cn)
{
	int ready = wait_fd(c, cn->fd, cn->unsent ? WAIT_READ | WAIT_WRITE : WAIT_READ);
	if (ready < 0) {
		if (!conn_holds_back(cn))
			PQconsumeInput(cn->pg);
		return false;
	}
	if (ready & WAIT_READ)
		PQconsumeInput(cn->pg);
	if (cn->unsent)
		conn_flush(cn);
	return true;
}

static answer why_not_moved(ctx *c)
{
	return ctx_err(c) ? ANSWER_CTX_DONE : ANSWER_FAILED;
}

/* ---- COPY ------------------------------------------------------------------------------------------- */

enum { COPY_PIECE = 32 * 1024 }; /* bytes buffered for one at most */

answer conn_copy_read(ctx *c, conn *cn, char **row, int *length)
{
	bool moved = true;
	while ((*length = PQgetCopyData(cn->pg, row, 1)) == 0 && !conn_is_broken(cn)) {
		if (!moved)
			return why_not_moved(c);
		moved = move(c, cn);
	}
	if (*length > 0)
		return ANSWER_RESULT;
	if (*length == -2 && !conn_is_broken(cn)) {
		cn->doomed = true;
		return ANSWER_FAILED;
	}
	cn->copy = COPY_NONE;
	return ANSWER_END;
}

answer conn_copy_write(ctx *c, conn *cn, const char *data, size_t length)
{
	while (length > 0) {
		size_t piece = length < COPY_PIECE ? length : COPY_PIECE;
		if (PQputCopyData(cn->pg, data, (int)piece) != 1)
			return conn_is_broken(cn) ? ANSWER_END : ANSWER_FAILED;
		data += piece;
		length -= piece;
		cn->unflushed += piece;
		if (cn->unflushed < COPY_PIECE)
			continue;
		/* libpq would buffer without end: what it holds must go before there is more. */
		conn_flush(cn);
		PQconsumeInput(cn->pg);
		while (cn->unsent && !conn_is_broken(cn)) {
			if (!move(c, cn) && cn->unsent)
				return why_not_moved(c);
		}
		cn->unflushed = 0;
		if (conn_is_broken(cn))
			return ANSWER_END;
	}
	return ANSWER_RESULT;
}

void conn_copy_end(conn *cn, bool success)
{
	if (cn->copy != COPY_IN)
		return;
	if (PQputCopyEnd(cn->pg, success ? NULL : "the client has given up") != 1 && !conn_is_broken(cn))
		cn->doomed = true; /* out of memory: the server would wait for ever */
	cn->copy = success ? COPY_NONE : COPY_FAILED;
	cn->unflushed = 0;
	conn_flush(cn);
}

/* Whether there is nothing yet that PQgetResult could give at once. Data of a COPY that nobody wants are dropped. */
static bool must_wait(conn *cn)
{
	char *row;
	int length;
	if (cn->copy != COPY_OUT)
		return PQisBusy(cn->pg) && !conn_is_broken(cn);
	while ((length = PQgetCopyData(cn->pg, &row, 1)) > 0)
		PQfreemem(row);
	if (length == 0)
		return !conn_is_broken(cn);
	cn->copy = COPY_NONE;
	cn->doomed |= length == -2;
	return PQisBusy(cn->pg) && !conn_is_broken(cn);
}

/* PQgetResult repeats a COPY's beginning until its data have been moved. */
static void note_copy(conn *cn, const PGresult *result)
{
	ExecStatusType status = PQresultStatus(result);
	if (status == PGRES_COPY_IN)
		cn->copy = COPY_IN;
	else if (status == PGRES_COPY_OUT)
		cn->copy = COPY_OUT;
	else if (status == PGRES_COPY_BOTH)
		cn->doomed = true;
}

/* ---- Answers ---------------------------------------------------------------------------------------- */

answer conn_answer(ctx *c, conn *cn, PGresult **result)
{
	bool moved = true;
	conn_copy_end(cn, false); /* who asks for the answer has nothing to write */
	if (cn->doomed)
		return ANSWER_END;
	while (must_wait(cn)) {
		if (!moved)
			return why_not_moved(c);
		moved = move(c, cn);
	}
	*result = PQgetResult(cn->pg); /* does not block now */
	if (!*result) {
		cn->copy = COPY_NONE;
		return ANSWER_END;
	}
	note_copy(cn, *result);
	return ANSWER_RESULT;
}

bool conn_drain_arrived(conn *cn)
{
	if (conn_holds_back(cn))
		return false;
	conn_copy_end(cn, false);
	PQconsumeInput(cn->pg);
	while (!cn->doomed && !must_wait(cn)) {
		PGresult *result = PQgetResult(cn->pg);
		if (!result) {
			cn->copy = COPY_NONE;
			return true;
		}
		note_copy(cn, result);
		conn_copy_end(cn, false);
		PQclear(result);
	}
	return false;
}

/* ---- Notifications ---------------------------------------------------------------------------------- */

answer conn_notification(ctx *c, conn *cn, PGnotify **notification)
{
	bool moved = true;
	while (!(*notification = PQnotifies(cn->pg))) {
		if (conn_is_broken(cn))
			return ANSWER_END;
		if (!moved)
			return why_not_moved(c);
		moved = move(c, cn);
	}
	return ANSWER_RESULT;
}

void conn_drop_notifications(conn *cn)
{
	PGnotify *notification;
	while ((notification = PQnotifies(cn->pg)))
		PQfreemem(notification);
}

/* ---- Errors and commands ------------------------------------------------------------------------------ */

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
