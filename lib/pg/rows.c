/*
 * Rows: one statement, from its sending to its last row.
 *
 * All three modes read row by row (libpq's single-row mode): what PostgreSQL sends is bounded by nobody, so
 * what is kept of it must be. A statement for one row, or for none, is read to its end all the same, since
 * only its end tells that it has succeeded: INSERT … RETURNING sends its row before the constraints are
 * checked that may yet refuse it.
 */
#include <stdlib.h>
#include <string.h>

#include "pg_priv.h"

/* Rows to a result where libpq can gather several: fewer allocations, still little memory. */
enum { CHUNK = 64 };

/* Answers every call as one that failed for lack of memory. */
static pg_rows no_memory = {
	.magic = ROWS_MAGIC,
	.row = -1,
	.ended = true,
	.error = {.kind = PG_ERROR_MEMORY, .message = "out of memory"},
};

static pg_rows *rows_new(rows_mode mode)
{
	pg_rows *rows = malloc(sizeof(*rows));
	if (!rows)
		return &no_memory;
	rows->magic = ROWS_MAGIC;
	rows->mode = mode;
	rows->result = NULL;
	rows->row = -1;
	rows->ahead = false;
	rows->ended = false;
	rows->affected = 0;
	rows->stream.lease = NULL;
	error_clear(&rows->error);
	return rows;
}

bool rows_are_real(const pg_rows *rows)
{
	if (rows->magic != ROWS_MAGIC)
		pg_misuse("pg_rows", "not rows, or closed before");
	return rows != &no_memory;
}

/* ---- Reading ---------------------------------------------------------------------------------------- */

static void keep_result(pg_rows *rows, PGresult *result)
{
	PQclear(rows->result);
	rows->result = result;
	rows->row = -1;
}

/*
 * Gathering several rows, libpq gives the command's tag with the last of them; else with the empty result after them.
 * A single row never has it, and asking would be a tenth of what the row costs.
 */
static void note_affected(pg_rows *rows, PGresult *result)
{
	if (PQresultStatus(result) == PGRES_SINGLE_TUPLE)
		return;
	const char *count = PQcmdTuples(result);
	if (*count)
		rows->affected = strtoull(count, NULL, 10);
}

/* Takes a result over. true: it brought rows that the caller is to have. */
static bool digest(pg_rows *rows, conn *cn, PGresult *result)
{
	note_affected(rows, result);
	bool keeps = rows->mode == ROWS_STREAM || (rows->mode == ROWS_FIRST && !rows->result);
	switch (PQresultStatus(result)) {
#ifdef LIBPQ_HAS_CHUNK_MODE
	case PGRES_TUPLES_CHUNK:
#endif
	case PGRES_SINGLE_TUPLE:
		if (!keeps)
			break;
		keep_result(rows, result);
		return rows->mode == ROWS_STREAM;
	case PGRES_TUPLES_OK: /* the end of the rows: none are in it, but the columns' names are */
		if (!keeps)
			break;
		keep_result(rows, result);
		return false;
	case PGRES_COMMAND_OK:
		cn->listening |= strcmp(PQcmdStatus(result), "LISTEN") == 0;
		break;
	case PGRES_EMPTY_QUERY:
		break;
	case PGRES_COPY_IN:
	case PGRES_COPY_OUT:
	case PGRES_COPY_BOTH:
		error_set(
			&rows->error, PG_ERROR_USAGE,
			"COPY FROM STDIN and COPY TO STDOUT are no queries: see pg_copy_in and pg_copy_out");
		break;
	default:
		if (!rows->error.kind)
			error_from_result(&rows->error, result);
		break;
	}
	PQclear(result);
	return false;
}

/* Waits for rows to give: true. false: the end, or failure. */
static bool fetch(pg_rows *rows, ctx *c, conn *cn)
{
	PGresult *result;
	answer a;
	while ((a = conn_answer(c, cn, &result)) == ANSWER_RESULT) {
		if (digest(rows, cn, result))
			return true;
	}
	rows->ended = true;
	if (!rows->error.kind && (a != ANSWER_END || conn_is_broken(cn)))
		answer_error(a, c, cn, &rows->error);
	if (rows->error.kind)
		keep_result(rows, NULL);
	return false;
}

/* ---- Running ---------------------------------------------------------------------------------------- */

static bool send_prepared(conn *cn, const statement *st, const pg_params *p)
{
	return PQsendQueryPrepared(cn->pg, st->name, (int)p->count, p->values, p->lengths, p->formats, 0);
}

/* Parsed, bound and run in one go: a pooler may give each of our exchanges another session. */
static bool send_unprepared(conn *cn, const char *sql, const pg_params *p)
{
	return PQsendQueryParams(cn->pg, sql, (int)p->count, NULL, p->values, p->lengths, p->formats, 0);
}

static void set_row_mode(const pg_rows *rows, conn *cn)
{
#ifdef LIBPQ_HAS_CHUNK_MODE
	if (rows->mode == ROWS_STREAM) {
		PQsetChunkedRowsMode(cn->pg, CHUNK);
		return;
	}
#endif
	(void)rows;
	PQsetSingleRowMode(cn->pg);
}

/* Sends the statement and reads what the mode wants at first. */
static void run_once(pg_rows *rows, ctx *c, conn *cn, const char *sql, const pg_params *params, statement *st)
{
	bool sent = st ? send_prepared(cn, st, params) : send_unprepared(cn, sql, params);
	if (!sent) {
		rows->ended = true;
		error_from_conn(&rows->error, cn->pg);
		return;
	}
	set_row_mode(rows, cn);
	conn_flush(cn);
	rows->ahead = fetch(rows, c, cn);
}

/*
 * Has the server lost the statement (DISCARD ALL, a pooler's doing), or must its plan not go on because the
 * schema has changed? Then it was refused before it did anything; but where a transaction is open, the
 * refusal has ended that.
 */
static bool is_outdated(const pg_rows *rows, const conn *cn, const statement *st)
{
	return st && (st->proven || !cn->direct) && rows->error.kind == PG_ERROR_SERVER &&
	       (strcmp(rows->error.sqlstate, "26000") == 0 || strcmp(rows->error.sqlstate, "0A000") == 0);
}

/* What libpq would take for something else. */
static bool are_sound(const pg_params *p)
{
	enum { MOST = 65535 };
	bool sound = p->count <= MOST;
	for (size_t i = 0; sound && p->lengths && i < p->count; i++)
		sound = p->lengths[i] >= 0;
	return sound;
}

static void rows_run(pg_rows *rows, conn *cn, const char *sql, const pg_params *params, bool prepares)
{
	ctx *c = rows->stream.scope.ctx;
	if (!are_sound(params)) {
		rows->ended = true;
		error_set(&rows->error, PG_ERROR_USAGE,
		          "more than 65535 parameters, or one of a negative length");
		return;
	}
	for (;;) {
		statement *st = prepares ? statement_get(c, cn, sql, &rows->error) : NULL;
		if (prepares && !st) {
			rows->ended = true;
			return;
		}
		run_once(rows, c, cn, sql, params, st);
		if (!is_outdated(rows, cn, st)) {
			if (st && !rows->error.kind)
				st->proven = true;
			break;
		}
		statement_forget(cn, st);
		if (PQtransactionStatus(cn->pg) != PQTRANS_IDLE)
			break;
		error_clear(&rows->error);
		rows->ended = false;
		/* A pooler may answer a new statement of the same text with the old one that it remembers. */
		prepares = cn->direct;
	}
	if (rows->mode != ROWS_FIRST || rows->error.kind)
		return;
	if (rows->result && PQntuples(rows->result) > 0)
		rows->row = 0;
	else
		error_set(&rows->error, PG_ERROR_NO_ROWS, "the query returned no row");
}

/* The statement has a connection, or has none. */
static pg_rows *begin(pg_rows *rows, conn *cn, const char *sql, const pg_params *params)
{
	if (!cn) {
		rows->ended = true;
		return rows;
	}
	char *tagged;
	if (tags_append(rows->stream.scope.ctx, cn, sql, &tagged, &rows->error))
		rows_run(rows, cn, tagged ? tagged : sql, params, cn->prepares && !tagged);
	else
		rows->ended = true;
	free(tagged);
	if (rows->ended)
		stream_end(&rows->stream, rows->affected, &rows->error);
	else
		stream_hold(&rows->stream);
	return rows;
}

static pg_rows *pool_run(ctx *c, pg_pool *pool, const char *sql, const pg_params *params, rows_mode mode)
{
	pg_rows *rows = rows_new(mode);
	if (!rows_are_real(rows))
		return rows;
	return begin(rows, stream_open(&rows->stream, c, pool, sql, &rows->error), sql, params);
}

pg_rows *rows_run_in(ctx *c, pg_conn *session, const char *sql, const pg_params *params, rows_mode mode)
{
	pg_rows *rows = rows_new(mode);
	if (!rows_are_real(rows))
		return rows;
	return begin(rows, stream_open_in(&rows->stream, c, session, sql, &rows->error), sql, params);
}

pg_rows *pg_pool_query(ctx *c, pg_pool *pool, const char *sql, pg_params params)
{
	return pool_run(c, pool, sql, &params, ROWS_STREAM);
}

pg_rows *pg_pool_query_row(ctx *c, pg_pool *pool, const char *sql, pg_params params)
{
	return pool_run(c, pool, sql, &params, ROWS_FIRST);
}

pg_rows *pg_pool_exec(ctx *c, pg_pool *pool, const char *sql, pg_params params)
{
	return pool_run(c, pool, sql, &params, ROWS_NONE);
}

/* ---- Streaming -------------------------------------------------------------------------------------- */

static bool fetch_more(pg_rows *rows)
{
	conn *cn = stream_enter(&rows->stream, rows->affected, &rows->error);
	if (!cn) {
		keep_result(rows, NULL);
		rows->ended = true;
		return false;
	}
	if (fetch(rows, rows->stream.scope.ctx, cn)) {
		stream_leave(&rows->stream);
		rows->row = 0;
		return true;
	}
	stream_end(&rows->stream, rows->affected, &rows->error);
	return false;
}

bool pg_rows_next(pg_rows *rows)
{
	if (!rows_are_real(rows) || rows->error.kind || rows->mode != ROWS_STREAM)
		return false;
	if (rows->stream.lease && ctx_err(rows->stream.scope.ctx))
		return fetch_more(rows); /* which tells that */
	if (rows->ahead) {
		rows->ahead = false;
		rows->row = 0;
		return true;
	}
	if (rows->row >= 0 && rows->row + 1 < PQntuples(rows->result)) {
		rows->row++;
		return true;
	}
	rows->row = -1;
	return rows->stream.lease && fetch_more(rows);
}

const pg_error *pg_rows_error(const pg_rows *rows)
{
	return rows->error.kind ? &rows->error : NULL;
}

void pg_rows_close(pg_rows *rows)
{
	if (!rows || !rows_are_real(rows))
		return;
	stream_close(&rows->stream, rows->affected);
	PQclear(rows->result);
	rows->magic = 0;
	free(rows);
}

void pg_rows_close_scoped(pg_rows **rows)
{
	pg_rows_close(*rows);
}

/* ---- Asking ----------------------------------------------------------------------------------------- */

int pg_rows_columns(const pg_rows *rows)
{
	return PQnfields(rows->result);
}

const char *pg_rows_column_name(const pg_rows *rows, int column)
{
	return PQfname(rows->result, column);
}

uint64_t pg_rows_affected(const pg_rows *rows)
{
	return rows->affected;
}
