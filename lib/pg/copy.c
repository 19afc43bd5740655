/*
 * COPY: rows in bulk, out of PostgreSQL or into it, in constant memory.
 *
 * The statement is parsed by itself first, since only the extended protocol refuses two statements in one string; and
 * then run by the simple one. In the extended one a COPY that fails before it has read the Sync behind it would leave
 * us a ReadyForQuery too many.
 */
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "pg_priv.h"

struct pg_copy {
	unsigned magic;
	copy_state direction;
	char *row; /* libpq's, lent to the reader */
	uint64_t rows;
	bool finished;
	stream stream;
	pg_error error;
};

static pg_copy no_memory = {
	.magic = COPY_MAGIC,
	.error = {.kind = PG_ERROR_MEMORY, .message = "out of memory"},
};

/* ---- Starting --------------------------------------------------------------------------------------- */

/* Any other statement would have run before it is seen to be none. */
static bool is_copy_statement(const char *sql)
{
	return strncasecmp(sql + strspn(sql, " \t\r\n"), "copy", 4) == 0;
}

static pg_copy *copy_new(copy_state direction, const char *sql)
{
	pg_copy *copy = calloc(1, sizeof(*copy));
	if (!copy)
		return &no_memory;
	copy->magic = COPY_MAGIC;
	copy->direction = direction;
	if (!is_copy_statement(sql))
		error_set(&copy->error, PG_ERROR_USAGE, "the statement does not begin with COPY");
	return copy;
}

/* Reads to the end of the statement: what it has come to. */
static void read_end(pg_copy *copy, conn *cn)
{
	ctx *c = copy->stream.scope.ctx;
	PGresult *result;
	answer a;
	while ((a = conn_answer(c, cn, &result)) == ANSWER_RESULT) {
		ExecStatusType status = PQresultStatus(result);
		if (status == PGRES_FATAL_ERROR && !copy->error.kind)
			error_from_result(&copy->error, result);
		else if (status == PGRES_COMMAND_OK)
			copy->rows = strtoull(PQcmdTuples(result), NULL, 10);
		PQclear(result);
	}
	if (!copy->error.kind && (a != ANSWER_END || conn_is_broken(cn) || cn->doomed))
		answer_error(a, c, cn, &copy->error);
}

static bool send_text(pg_copy *copy, conn *cn, const char *sql)
{
	ctx *c = copy->stream.scope.ctx;
	bool sent = PQsendPrepare(cn->pg, "", sql, 0, NULL);
	if (sent) {
		conn_flush(cn);
		if (!conn_collect(c, cn, &copy->error, NULL))
			return false;
		sent = PQsendQuery(cn->pg, sql);
	}
	if (!sent) {
		error_from_conn(&copy->error, cn->pg);
		return false;
	}
	conn_flush(cn);
	return true;
}

static bool send_statement(pg_copy *copy, conn *cn, const char *sql)
{
	char *tagged;
	bool sent = tags_append(copy->stream.scope.ctx, cn, sql, &tagged, &copy->error) &&
	            send_text(copy, cn, tagged ? tagged : sql);
	free(tagged);
	return sent;
}

/* true: the data are on their way, or may be. */
static bool start(pg_copy *copy, conn *cn, const char *sql)
{
	ctx *c = copy->stream.scope.ctx;
	PGresult *result;
	if (!send_statement(copy, cn, sql))
		return false;
	answer a = conn_answer(c, cn, &result);
	if (a != ANSWER_RESULT) {
		answer_error(a, c, cn, &copy->error);
		return false;
	}
	if (PQresultStatus(result) == PGRES_FATAL_ERROR)
		error_from_result(&copy->error, result);
	else if (cn->copy != copy->direction)
		error_set(&copy->error, PG_ERROR_USAGE,
		          copy->direction == COPY_IN ? "the statement is no COPY … FROM STDIN"
		                                     : "the statement is no COPY … TO STDOUT");
	PQclear(result);
	if (!copy->error.kind)
		return true;
	read_end(copy, cn);
	return false;
}

static pg_copy *begin(pg_copy *copy, conn *cn, const char *sql)
{
	if (cn && start(copy, cn, sql))
		stream_hold(&copy->stream);
	else if (cn)
		stream_end(&copy->stream, 0, &copy->error);
	return copy;
}

static pg_copy *run(ctx *c, pg_pool *pool, const char *sql, copy_state direction)
{
	pg_copy *copy = copy_new(direction, sql);
	if (copy->error.kind)
		return copy;
	return begin(copy, stream_open(&copy->stream, c, pool, sql, &copy->error), sql);
}

static pg_copy *run_in(ctx *c, pg_conn *session, const char *sql, copy_state direction)
{
	pg_copy *copy = copy_new(direction, sql);
	if (copy->error.kind)
		return copy;
	return begin(copy, stream_open_in(&copy->stream, c, session, sql, &copy->error), sql);
}

pg_copy *pg_pool_copy_out(ctx *c, pg_pool *pool, const char *sql)
{
	return run(c, pool, sql, COPY_OUT);
}

pg_copy *pg_pool_copy_in(ctx *c, pg_pool *pool, const char *sql)
{
	return run(c, pool, sql, COPY_IN);
}

pg_copy *pg_conn_copy_out(ctx *c, pg_conn *session, const char *sql)
{
	return run_in(c, session, sql, COPY_OUT);
}

pg_copy *pg_conn_copy_in(ctx *c, pg_conn *session, const char *sql)
{
	return run_in(c, session, sql, COPY_IN);
}

/* ---- Moving data ------------------------------------------------------------------------------------ */

/* The connection, while data may be moved in that direction. */
static conn *enter(pg_copy *copy, copy_state direction)
{
	if (copy->magic != COPY_MAGIC)
		pg_misuse("pg_copy", "not a COPY, or closed before");
	if (copy->error.kind || copy->finished)
		return NULL;
	if (copy->direction != direction)
		pg_misuse("pg_copy", "the COPY goes the other way");
	return stream_enter(&copy->stream, copy->rows, &copy->error);
}

/* It has come to its end, in whatever way. */
static void end(pg_copy *copy, conn *cn, answer a)
{
	if (a == ANSWER_END)
		read_end(copy, cn);
	else
		answer_error(a, copy->stream.scope.ctx, cn, &copy->error);
	stream_end(&copy->stream, copy->rows, &copy->error);
	copy->finished = !copy->error.kind;
}

bool pg_copy_read(pg_copy *copy, const char **data, size_t *size)
{
	int length;
	conn *cn = enter(copy, COPY_OUT);
	PQfreemem(copy->row);
	copy->row = NULL;
	if (!cn)
		return false;
	answer a = conn_copy_read(copy->stream.scope.ctx, cn, &copy->row, &length);
	if (a != ANSWER_RESULT) {
		end(copy, cn, a);
		return false;
	}
	stream_leave(&copy->stream);
	copy->rows++;
	*data = copy->row;
	*size = (size_t)length;
	return true;
}

bool pg_copy_write(pg_copy *copy, const void *data, size_t size)
{
	conn *cn = enter(copy, COPY_IN);
	if (!cn)
		return false;
	answer a = conn_copy_write(copy->stream.scope.ctx, cn, data, size);
	if (a != ANSWER_RESULT) {
		end(copy, cn, a);
		return false;
	}
	stream_leave(&copy->stream);
	return true;
}

bool pg_copy_finish(pg_copy *copy)
{
	conn *cn = enter(copy, COPY_IN);
	if (cn) {
		conn_copy_end(cn, true);
		end(copy, cn, ANSWER_END);
	}
	return copy->finished;
}

/* ---- Asking and closing ------------------------------------------------------------------------------- */

const pg_error *pg_copy_error(const pg_copy *copy)
{
	return copy->error.kind ? &copy->error : NULL;
}

uint64_t pg_copy_rows(const pg_copy *copy)
{
	return copy->rows;
}

void pg_copy_close(pg_copy *copy)
{
	if (!copy || copy == &no_memory)
		return;
	if (copy->magic != COPY_MAGIC)
		pg_misuse("pg_copy_close", "not a COPY, or closed before");
	stream_close(&copy->stream, copy->rows);
	PQfreemem(copy->row);
	copy->magic = 0;
	free(copy);
}

void pg_copy_close_scoped(pg_copy **copy)
{
	pg_copy_close(*copy);
}
