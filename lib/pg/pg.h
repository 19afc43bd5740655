/*
 * tether/pg.h — PostgreSQL under a context: a pool, queries, rows, transactions.
 *
 * The shape of Go's database/sql over libpq, with a cancel that keeps the connection. Every call that can
 * wait takes a context. When that context is done the call returns at once with the context's error; if its
 * query had reached PostgreSQL, the pool has it cancelled there, waits until the connection is provably clean,
 * and only then lends it out again. The caller never waits for that, and no other query is ever hit.
 *
 *	ctx_auto *five_seconds = ctx_with_timeout(parent, 5 * CTX_SECOND);
 *	pg_rows_auto *rows = pg_query(five_seconds, pool, "SELECT title FROM album WHERE artist = $1",
 *	                              PG_PARAMS(artist));
 *	while (pg_rows_next(rows))
 *		puts(pg_rows_text(rows, 0));
 *	if (pg_rows_error(rows))
 *		fprintf(stderr, "%s\n", pg_rows_error(rows)->message);
 *
 * Calls may be made from fibers of any loop and from plain threads alike, and wait as wait_*() does
 * (tether/loop.h). A pool may be used by all of them at once; a pg_rows, pg_tx or pg_conn by one at a time.
 */
#ifndef TETHER_PG_H
#define TETHER_PG_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <tether/ctx.h>

/* ---- Errors ----------------------------------------------------------------------------------------- */

typedef enum pg_error_kind {
	PG_ERROR_CANCELED = 1, /* the call's context was cancelled; `cause` says by what */
	PG_ERROR_DEADLINE,     /* the call's context passed its deadline */
	PG_ERROR_CONNECTION,   /* PostgreSQL could not be reached, or the connection broke */
	PG_ERROR_SERVER,       /* PostgreSQL refused or failed the statement; `sqlstate` says why */
	PG_ERROR_SATURATED,    /* as many as the queue holds wait for a connection already */
	PG_ERROR_CLOSED,       /* the pool, transaction or pinned connection was closed before */
	PG_ERROR_NO_ROWS,      /* pg_query_row found no row */
	PG_ERROR_VALUE,        /* a getter was asked for a type that the value does not fit */
	PG_ERROR_USAGE,        /* a call that makes no sense here, such as two statements in one string */
	PG_ERROR_UNKNOWN, /* the connection broke during COMMIT: the transaction may have happened, or not */
	PG_ERROR_MEMORY,  /* out of memory */
} pg_error_kind;

/*
 * What went wrong. A context's error is never reported as anything else, but for UNKNOWN in pg_commit, and never
 * hides a real error that PostgreSQL had already sent. Belongs to the object that reported it and lives as long.
 */
typedef struct pg_error {
	pg_error_kind kind;
	char sqlstate[6];       /* five characters from PostgreSQL, else "" */
	bool settling;          /* a query was in flight: on_settled will be called for it */
	const ctx_error *cause; /* ctx_cause() of the context, where its end is what went wrong; else NULL */
	char constraint[64];    /* the constraint that a SERVER error violated, else "" */
	char message[512];      /* one line in English, or PostgreSQL's own message; cut if longer */
} pg_error;

/* "canceled", "deadline", "connection", … : short stable names for logs and metrics. Static. */
const char *pg_error_kind_name(pg_error_kind kind);

/* ---- The pool --------------------------------------------------------------------------------------- */

typedef struct pg_pool pg_pool;
typedef struct pg_conn pg_conn;

/* How a cancelled query ended, told once its connection has settled. */
typedef struct pg_settled {
	ctx *query_ctx; /* the context that ended; borrowed for the call: its values tell whose it was */
	const ctx_error *cause; /* its cause */
	int64_t stop_ns;   /* from the context's end to PostgreSQL's ReadyForQuery; -1 if that never came */
	int64_t settle_ns; /* from the context's end to the connection's return, or its close */
	unsigned cancels_sent; /* cancel requests it took; 0 if the query ended by itself first */
	bool kept;             /* the connection went back to the pool; false: it was closed */
} pg_settled;

/* What a statement does. A transaction's BEGIN and COMMIT are statements too. */
typedef enum pg_query_state {
	PG_QUERY_QUEUED,    /* it asks for a connection, and waits if there is none */
	PG_QUERY_RUNNING,   /* it has one: PostgreSQL works on it, or is about to */
	PG_QUERY_STREAMING, /* its first rows have come, and more are to */
	PG_QUERY_ENDED,     /* its caller is done with it, well or not */
} pg_query_state;

typedef struct pg_query_event {
	ctx *query_ctx; /* borrowed for the call: its values tell whose it is, and it knows the deadline */
	pg_query_state state;
	const char *sql; /* QUEUED, RUNNING: untagged, borrowed for the call; NULL: pg_conn_acquire asks */
	int backend;     /* RUNNING: the process id that PostgreSQL, or a pooler, gives for its session */
	uint64_t rows;   /* ENDED: inserted, updated, deleted or selected, where it came to its end */
	bool settling;   /* ENDED: its context ended in flight; on_settled is called for it, or has been */
} pg_query_event;

/*
 * Tags say whose a statement is to who sees it in PostgreSQL: in pg_stat_activity, in the server's log, in auto_explain.
 * They go behind its text as a comment in sqlcommenter's form, by key:
 *
 *	SELECT title FROM album WHERE id = $1 [comment:] request_id='7f3a',traceparent='00-4bf92f35…-01'
 *
 * A statement with tags is like no other, so it is not prepared but parsed and planned each time. That makes one that
 * finds a row by its key about twice as dear to PostgreSQL, and is nothing to one that takes long. What pg_stat_activity
 * shows ends at track_activity_query_size, 1 KiB unless set: of a long statement the tags are not seen there.
 */
typedef struct pg_tags pg_tags;

/*
 * Adds one, from the callback that is given tags. Both are copied, and may hold anything: each byte but letters, digits
 * and "-._~" is written as %XX, so that nothing in them ends the comment. A value of NULL is no tag, a key that has a
 * value keeps it, and a tag that would make all of them longer than 1000 bytes is left out. Does not block.
 */
void pg_tag(pg_tags *tags, const char *key, const char *value);

/* Whether statements are prepared under names, once for each connection, or sent in whole each time. */
typedef enum pg_statements {
	PG_STATEMENTS_AUTO, /* prepared where PostgreSQL itself is at the other end; not behind a pooler */
	/*
	 * Prepared always. For a pooler that keeps track of them: PgBouncer from 1.21 on with max_prepared_statements
	 * above 0, which cannot be seen from here. With one that does not, statements come to be sent twice.
	 */
	PG_STATEMENTS_PREPARED,
	PG_STATEMENTS_UNPREPARED,
} pg_statements;

/* All durations are nanoseconds; a 0 takes the default named. */
typedef struct pg_pool_options {
	/*
	 * libpq connection string or URI, with all that libpq knows: several hosts, target_session_attrs=read-write
	 * for the one that is the primary now, load_balance_hosts (libpq 16). NULL or "": libpq's PG* environment. Each
	 * connection is sought anew among all hosts, so after a failover the pool finds the new primary by itself; a
	 * pool for writing and one for reading are two pools, with target_session_attrs=prefer-standby in the second.
	 */
	const char *conninfo;
	const char *application_name; /* as pg_stat_activity shows it; NULL: "tether"; conninfo's own wins */
	size_t size;                  /* connections at most, in whatever state; 0: 16 */
	size_t min_idle; /* kept idle and ready, made ahead of need in the background, one at a time; 0: none */
	size_t max_idle; /* idle at most: what comes back beyond is closed (Go's SetMaxIdleConns); 0: size */
	/*
	 * The two limits of time close only connections that are idle or come back, and never a lent one. Lifetime ends
	 * at random between max_lifetime less its jitter and max_lifetime, one connection at a time while its successor
	 * is made, and not while the server takes no new ones: those made together do not end together.
	 */
	int64_t max_lifetime;        /* closed at that age (Go's SetConnMaxLifetime); 0: never */
	int64_t max_lifetime_jitter; /* at most max_lifetime; 0: a tenth of it */
	int64_t max_idle_time; /* closed when idle so long, down to min_idle (Go's SetConnMaxIdleTime); 0: never */
	size_t queue_size; /* callers waiting for a connection at most; 0: 1024 */
	int64_t connect_timeout; /* for each address tried; libpq rounds it up to seconds, before 17 to 2 s; 0: 5 s */
	int64_t settle_timeout; /* a cancelled connection that is not clean by then is closed; 0: 2 s */
	pg_statements statements;
	/*
	 * The two backstops are set for each session when it opens, and over TCP the server's keep-alive, so that it
	 * finds out in 45 s if our machine or the network is gone. Behind a pooler they are not, for sessions are
	 * shared there: set them for the role (ALTER ROLE … SET).
	 */
	int64_t statement_timeout; /* PostgreSQL's own limit as a backstop, a little above any deadline; 0: none */
	int64_t liveness_interval; /* client_connection_check_interval, the backstop for our own death; 0: 1 s */
	/*
	 * What a new session begins with, before it is first lent: SQL (several statements, ";" between them), then a
	 * call. The call runs in a fiber of the pool's own thread, where it may wait under c but must not block; c ends
	 * with the attempt to connect. session is borrowed: not to be released, its rows closed, no transaction left
	 * open. false, with *error filled in or not, or failing SQL: the attempt has failed, and those who wait for a
	 * connection get PG_ERROR_CONNECTION with that message and SQLSTATE. Behind a pooler that shares its sessions
	 * neither lasts. NULL: nothing.
	 */
	const char *after_connect_sql;
	bool (*after_connect)(ctx *c, pg_conn *session, pg_error *error, void *data);
	/*
	 * Called once for each query whose context ended in flight (those whose error says `settling`, and those
	 * whose rows were not looked at any more), on the pool's own thread: it must not block. NULL: not called.
	 */
	void (*on_settled)(const pg_settled *settled, void *data);
	/*
	 * Called as a statement goes from state to state, forwards only, by whoever runs it: in its fiber or on its
	 * thread, with no lock held. Those of a session start as RUNNING. For showing what is alive, and for telling
	 * the waiting from the work. NULL: not called.
	 */
	void (*on_query)(const pg_query_event *event, void *data);
	/*
	 * Called for each statement and COPY that has got its connection, as on_query is: gives it the tags that c, its
	 * context, asks for (pg_tag), or none. Not for BEGIN, COMMIT and the like, nor for what the pool itself asks. NULL: no
	 * tags.
	 */
	void (*tag)(ctx *c, pg_tags *tags, void *data);
	void *data; /* for the four */
} pg_pool_options;

/*
 * Makes a pool and its keeper thread, on which connections are made, watched, cancelled, settled and closed.
 * Waits for no connection (as Go's sql.Open; see pg_pool_ping), and makes none yet but for min_idle. options and its
 * strings are copied. NULL on failure, with *error filled in where error is not NULL: USAGE for a conninfo that
 * libpq cannot read or for limits that contradict each other, MEMORY.
 */
pg_pool *pg_pool_open(const pg_pool_options *options, pg_error *error);

/*
 * Closes the pool: who waits for a connection gets PG_ERROR_CLOSED, as do calls made meanwhile; connections lent
 * out are closed when they come back, settling ones get until their settle timeout, connecting ones are left.
 * Waits until all are closed; rows, transactions and pinned connections must have been or be closed by others
 * meanwhile. The loops whose fibers used the pool must still run, or have returned from loop_run. Frees the
 * pool. NULL is allowed.
 */
void pg_pool_close(pg_pool *pool);

/* One round trip to PostgreSQL. true, or false with *error (may be NULL) filled in. Waits. */
bool pg_pool_ping(ctx *c, pg_pool *pool, pg_error *error);

/* A snapshot of the pool's connections by state, and totals since it was opened. */
typedef struct pg_pool_stats {
	size_t size; /* the maximum */
	size_t open; /* the sum of the five below */
	size_t connecting, idle, busy, canceling, settling;
	size_t waiting;                                         /* callers in the queue now */
	uint64_t acquires, waits, acquires_canceled, saturated; /* totals */
	uint64_t wait_ns;                                       /* total time spent in the queue */
	uint64_t connects, connect_failures;
	uint64_t cancels; /* queries whose context ended in flight */
	uint64_t cancels_sent,
		cancel_batches; /* requests it took; statements that sent several of them together */
	uint64_t settled_kept, settled_closed; /* what became of their connections */
	uint64_t lost;                         /* connections that broke or that the server ended */
	uint64_t closed_max_idle, closed_idle_time, closed_lifetime; /* connections that a limit closed */
} pg_pool_stats;
void pg_pool_stats_get(const pg_pool *pool, pg_pool_stats *stats);

/* ---- Parameters ------------------------------------------------------------------------------------- */

/*
 * The $1, $2, … of a statement, as libpq's PQexecPrepared takes them. PG_PARAMS("a", NULL, id) makes text
 * parameters of C strings, NULL being SQL's NULL; lengths and formats (1: binary) are for binary ones. All is
 * borrowed for the call. Text ends at its NUL, and cannot hold one: that takes a bytea. A binary value is in network byte
 * order, as PostgreSQL's own type would send it; arrays are easiest as text, "{1,2,3}".
 */
typedef struct pg_params {
	size_t count;
	const char *const *values;
	const int *lengths; /* NULL where all are text */
	const int *formats; /* NULL where all are text */
} pg_params;
#define PG_PARAMS(...)                                                                           \
	((pg_params){.count = sizeof((const char *const[]){__VA_ARGS__}) / sizeof(const char *), \
	             .values = (const char *const[]){__VA_ARGS__}})
#define PG_NO_PARAMS ((pg_params){.count = 0})

/* ---- Queries ---------------------------------------------------------------------------------------- */

typedef struct pg_rows pg_rows;
typedef struct pg_tx pg_tx;

/*
 * pg_query(ctx, where, sql, params) runs one statement on where: a pg_pool *, pg_tx * or pg_conn *. It returns
 * when the first row is there, or the end, or an error: see pg_rows_error. The rows then stream in constant
 * memory, the connection staying lent until the last has been read or pg_rows_close. The context governs all of
 * it and is retained so long: when it ends the query is cancelled at that moment, whatever its reader is doing.
 *
 * pg_query_row is for one row: it returns positioned on the first, with the connection already given back;
 * further rows are read and dropped, since only its end tells that a statement has succeeded. No row at all is
 * PG_ERROR_NO_ROWS.
 *
 * pg_exec is for a statement whose rows are of no interest: see pg_rows_affected. The connection is given back.
 *
 * All three wait for a connection where they need one, first come first served. The statement is prepared once
 * for each connection and remembered by its text, but for one with tags: give values as parameters, never as text,
 * or the memory of statements is of no use. They never return NULL: failure is told by pg_rows_error, and closing is
 * always due.
 */
#define pg_query(c, where, sql, params)   \
	_Generic((where), pg_pool *       \
	         : pg_pool_query, pg_tx * \
	         : pg_tx_query, pg_conn * \
	         : pg_conn_query)(c, where, sql, params)
#define pg_query_row(c, where, sql, params)   \
	_Generic((where), pg_pool *           \
	         : pg_pool_query_row, pg_tx * \
	         : pg_tx_query_row, pg_conn * \
	         : pg_conn_query_row)(c, where, sql, params)
#define pg_exec(c, where, sql, params)   \
	_Generic((where), pg_pool *      \
	         : pg_pool_exec, pg_tx * \
	         : pg_tx_exec, pg_conn * \
	         : pg_conn_exec)(c, where, sql, params)

pg_rows *pg_pool_query(ctx *c, pg_pool *pool, const char *sql, pg_params params);
pg_rows *pg_pool_query_row(ctx *c, pg_pool *pool, const char *sql, pg_params params);
pg_rows *pg_pool_exec(ctx *c, pg_pool *pool, const char *sql, pg_params params);
pg_rows *pg_tx_query(ctx *c, pg_tx *tx, const char *sql, pg_params params);
pg_rows *pg_tx_query_row(ctx *c, pg_tx *tx, const char *sql, pg_params params);
pg_rows *pg_tx_exec(ctx *c, pg_tx *tx, const char *sql, pg_params params);
pg_rows *pg_conn_query(ctx *c, pg_conn *session, const char *sql, pg_params params);
pg_rows *pg_conn_query_row(ctx *c, pg_conn *session, const char *sql, pg_params params);
pg_rows *pg_conn_exec(ctx *c, pg_conn *session, const char *sql, pg_params params);

/* ---- Rows ------------------------------------------------------------------------------------------- */

/* The next row becomes the current one: true. false: no more, or failure (pg_rows_error). Waits. */
bool pg_rows_next(pg_rows *rows);

/* NULL while all is well; then what went wrong first, for good. Borrowed, lives as long as rows. */
const pg_error *pg_rows_error(const pg_rows *rows);

/*
 * Ends the query, gives the connection back, frees rows. With rows still to come the query is cancelled in
 * PostgreSQL rather than read to its end; on a pg_tx or pg_conn, which a cancel would cost its transaction, the
 * next statement skips them. Does not wait. NULL is allowed.
 */
void pg_rows_close(pg_rows *rows);
void pg_rows_close_scoped(pg_rows **rows); /* for pg_rows_auto */
#define pg_rows_auto __attribute__((cleanup(pg_rows_close_scoped))) pg_rows

int pg_rows_columns(const pg_rows *rows);                         /* 0 until the first row or the end */
const char *pg_rows_column_name(const pg_rows *rows, int column); /* NULL past the last */
uint64_t pg_rows_affected(const pg_rows *rows); /* rows inserted, updated, deleted, selected, once ended */

/*
 * Values of the current row; column counts from 0. Text is as PostgreSQL spells it, borrowed until the next
 * pg_rows_next or pg_rows_close, and NULL for SQL's NULL. The typed getters return false and leave *value alone
 * for a NULL, a column that is not there, or a value that does not fit wholly; all but NULL set PG_ERROR_VALUE.
 */
bool pg_rows_is_null(const pg_rows *rows, int column);
const char *pg_rows_text(const pg_rows *rows, int column);
size_t pg_rows_length(const pg_rows *rows, int column);
bool pg_rows_int64(pg_rows *rows, int column, int64_t *value);
bool pg_rows_double(pg_rows *rows, int column, double *value);
bool pg_rows_bool(pg_rows *rows, int column, bool *value);

/*
 * A timestamptz as microseconds since 1970-01-01 UTC, which is PostgreSQL's own resolution. A timestamp without time
 * zone, which names no moment, is refused, as are infinity and a DateStyle other than ISO.
 */
bool pg_rows_time(pg_rows *rows, int column, int64_t *unix_microseconds);

/* A bytea, decoded into buffer; refused where it has more than size bytes. pg_rows_length / 2 of them are always enough. */
bool pg_rows_bytes(pg_rows *rows, int column, void *buffer, size_t size, size_t *length);

/* ---- COPY ------------------------------------------------------------------------------------------- */

/*
 * Rows in bulk: pg_copy_out(ctx, where, "COPY album TO STDOUT") and pg_copy_in(ctx, where, "COPY album FROM STDIN"),
 * on a pg_pool *, pg_tx * or pg_conn *, in any of COPY's formats. As with pg_query the context governs all of it and is
 * retained so long, the connection stays lent to the end, NULL is never returned: failure is told by pg_copy_error, and
 * closing is always due. Whatever ends it, the connection is kept. They wait.
 *
 *	pg_copy_auto *copy = pg_copy_in(c, pool, "COPY album (title, artist) FROM STDIN (FORMAT csv)");
 *	while (read_line(&line, &size) && pg_copy_write(copy, line, size))
 *		;
 *	if (!pg_copy_finish(copy))
 *		fprintf(stderr, "%s\n", pg_copy_error(copy)->message);
 */
typedef struct pg_copy pg_copy;
#define pg_copy_out(c, where, sql)           \
	_Generic((where), pg_pool *          \
	         : pg_pool_copy_out, pg_tx * \
	         : pg_tx_copy_out, pg_conn * \
	         : pg_conn_copy_out)(c, where, sql)
#define pg_copy_in(c, where, sql)           \
	_Generic((where), pg_pool *         \
	         : pg_pool_copy_in, pg_tx * \
	         : pg_tx_copy_in, pg_conn * \
	         : pg_conn_copy_in)(c, where, sql)
pg_copy *pg_pool_copy_out(ctx *c, pg_pool *pool, const char *sql);
pg_copy *pg_pool_copy_in(ctx *c, pg_pool *pool, const char *sql);
pg_copy *pg_tx_copy_out(ctx *c, pg_tx *tx, const char *sql);
pg_copy *pg_tx_copy_in(ctx *c, pg_tx *tx, const char *sql);
pg_copy *pg_conn_copy_out(ctx *c, pg_conn *session, const char *sql);
pg_copy *pg_conn_copy_in(ctx *c, pg_conn *session, const char *sql);

/*
 * The next row of a pg_copy_out, in the format asked for, line end included, and not terminated by NUL: true, and *data is
 * lent until the next call. false: no more, or failure (pg_copy_error). Waits.
 */
bool pg_copy_read(pg_copy *copy, const char **data, size_t *size);

/*
 * Gives a pg_copy_in more data, divided as it comes: the pieces need not be rows. Waits while PostgreSQL takes less than
 * it is given, so that no more than some 32 KiB are held. false: failure (pg_copy_error). What PostgreSQL thinks of the
 * data is told by pg_copy_finish.
 */
bool pg_copy_write(pg_copy *copy, const void *data, size_t size);

/* The end of the data: true if PostgreSQL has taken all of it. false: see pg_copy_error. Waits. */
bool pg_copy_finish(pg_copy *copy);

/* NULL while all is well; then what went wrong first, for good. Borrowed, lives as long as copy. */
const pg_error *pg_copy_error(const pg_copy *copy);

/* Rows read so far, or in all; of a pg_copy_in those that PostgreSQL has taken, once finished. */
uint64_t pg_copy_rows(const pg_copy *copy);

/*
 * Gives the connection back, frees copy. A pg_copy_in that was not finished is aborted: nothing of it stays, and a
 * transaction that it is part of has failed. A pg_copy_out is cancelled, or skipped by the session's next statement,
 * as with pg_rows_close. Does not wait. NULL is allowed.
 */
void pg_copy_close(pg_copy *copy);
void pg_copy_close_scoped(pg_copy **copy); /* for pg_copy_auto */
#define pg_copy_auto __attribute__((cleanup(pg_copy_close_scoped))) pg_copy

/* ---- Pinned connections and transactions ------------------------------------------------------------ */

/*
 * Lends one connection for several statements (session state, advisory locks, temporary tables). Never NULL:
 * see pg_conn_error; statements on a failed one report its error. Give it back with pg_conn_release, always, and
 * with its rows closed; a transaction left open is rolled back, other state of the session is yours to undo.
 * After a statement whose context ended the session is still yours: the next statement waits until it has settled.
 */
pg_conn *pg_conn_acquire(ctx *c, pg_pool *pool);
const pg_error *pg_conn_error(const pg_conn *session);
void pg_conn_release(pg_conn *session);

/*
 * LISTEN and UNLISTEN on a pinned connection. channel is quoted for you, 63 bytes at most, and so is case-sensitive. What
 * the session listens to ends with its release. true, or false with *error (may be NULL): USAGE for a name, and behind a
 * pooler, where notifications would get lost. They wait.
 */
bool pg_listen(ctx *c, pg_conn *session, const char *channel, pg_error *error);
bool pg_unlisten(ctx *c, pg_conn *session, const char *channel, pg_error *error);

typedef struct pg_notification {
	const char *channel, *payload; /* "" where there is none */
	int backend;                   /* process id of the session that sent it */
} pg_notification;

/*
 * Waits for the next notification, in the order they were sent; those that came while nobody waited come first. true, and
 * *notification is lent until the next call or the release. false with *error (may be NULL): when c ends the session
 * listens on and nothing is lost. When the connection breaks it is over, which is told (CONNECTION): what is sent from
 * then on is missed, so take a new session, listen, and look for what happened meanwhile.
 */
bool pg_notification_next(ctx *c, pg_conn *session, pg_notification *notification, pg_error *error);

typedef enum pg_isolation {
	PG_ISOLATION_DEFAULT,
	PG_READ_COMMITTED,
	PG_REPEATABLE_READ,
	PG_SERIALIZABLE,
} pg_isolation;

typedef struct pg_tx_options {
	pg_isolation isolation;
	bool read_only;
	bool deferrable;
} pg_tx_options;

/*
 * Begins a transaction, which lives under c from BEGIN to its end: when c is done the transaction is rolled
 * back at that moment, its connection kept, and every later call reports c's error (Go's BeginTx). A statement
 * whose own context ends does the same to it. Never NULL: see pg_tx_error; options may be NULL. Retains c.
 */
pg_tx *pg_begin(ctx *c, pg_pool *pool, const pg_tx_options *options);
const pg_error *pg_tx_error(const pg_tx *tx);

/*
 * Savepoints, under the transaction's context: set one; undo all since, which also mends a transaction that a statement
 * has failed; forget one and keep what was done since. name is quoted for you, 63 bytes at most; one may be set within
 * another. true, or false with *error (may be NULL): USAGE for a name, SERVER (3B001) for one that was not set. They wait.
 */
bool pg_savepoint(pg_tx *tx, const char *name, pg_error *error);
bool pg_rollback_to(pg_tx *tx, const char *name, pg_error *error);
bool pg_release(pg_tx *tx, const char *name, pg_error *error);

/*
 * Commits: true only if PostgreSQL confirmed it. false: see pg_tx_error; PG_ERROR_UNKNOWN, with a cause if the
 * context ended just then, means that nobody here can know. Waits, under the transaction's context. The tx must
 * still be closed.
 */
bool pg_commit(pg_tx *tx);

/* Rolls back unless committed, gives the connection back, frees tx; its rows must be closed. Does not wait. NULL is allowed. */
void pg_rollback(pg_tx *tx);
void pg_rollback_scoped(pg_tx **tx); /* for pg_tx_auto */
#define pg_tx_auto __attribute__((cleanup(pg_rollback_scoped))) pg_tx

#endif
