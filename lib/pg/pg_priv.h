/*
 * What the files of this layer share: the pool, its connections, and who owns them when. The files:
 *
 *	pool.c       who gets a connection                         upkeep.c: how many there are
 *	conn.c       a connection: made, watched, closed           reach.c: one PQconnectdb, over all hosts
 *	query.c      one exchange: send, wait, read                statement.c: prepared once; tags.c: and whose it is
 *	stream.c     what a statement holds until its end          lease.c: and who may take it away
 *	rows.c       its rows; value.c: as C types                 copy.c: rows in bulk
 *	session.c    a connection for more than one statement      tx.c: a transaction; listen.c: notifications
 *	settle.c     from a cancelled query to a clean connection  cancel.c: how PostgreSQL is told
 *	errand.c     libpq calls that block                        home.c: which loop watches a connection's socket
 *	error.c      what went wrong, by where it came from
 */
#ifndef TETHER_PG_PRIV_H
#define TETHER_PG_PRIV_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <libpq-fe.h>
#include <uv.h>

#include <tether/loop.h>
#include <tether/pg.h>

#pragma GCC visibility push(hidden)

#define container_of(pointer, type, member) ((type *)(void *)((char *)(pointer)-offsetof(type, member)))

typedef struct conn conn;
typedef struct home home;
typedef struct statement statement;
typedef struct cancel_request cancel_request;

enum {
	POOL_MAGIC = 0x706f6f6c,
	CONN_MAGIC = 0x636f6e6e,
	ROWS_MAGIC = 0x726f7773,
	SESSION_MAGIC = 0x73657373,
	TX_MAGIC = 0x74786e78,
	COPY_MAGIC = 0x636f7079,
};

/* Ten years: what an option that is a time may be. */
#define LONGEST_TIME (INT64_C(3650) * 86400 * CTX_SECOND)

/* A broken program, told in one line; the library goes no further with it. */
_Noreturn void pg_misuse(const char *call, const char *why);

/* ---- conn.c: a connection and its states ------------------------------------------------------------ */

/*
 * A connection is in exactly one state, and a state is the list it is on.
 *
 *	              connected              acquire                 context done, query in flight
 *	 CONNECTING ───────────► IDLE ─────────────────► BUSY ─────────────────────────► CANCELING
 *	     │                    ▲ │ ◄──────────────────┘ │ │                                │ results drained and
 *	     │                    │ │    given back clean  │ │ given back in a transaction    │ cancel links closed
 *	     │                    │ │                      │ └──────────────► SETTLING ◄──────┘
 *	     │ failed             │ │ lost                 │ lost                │ │
 *	     │                    └─┼──────────────────────┼─────────────────────┘ │ unsure, or not in time
 *	     └──────────► CLOSED ◄──┴──────────────────────┴───────────────────────┘   (CANCELING too)
 *
 *	 state       who may touch the PGconn                what ends it
 *	 CONNECTING  the keeper (and its errand thread)      a session that is set up, or a failure
 *	 IDLE        nobody; the keeper watches the socket   acquire; the server's hang-up; the pool's close
 *	 BUSY        its borrower                            the borrower gives it back, or its context ends
 *	 CANCELING   the keeper                              ReadyForQuery and the end of every cancel link
 *	 SETTLING    the keeper                              the answer to ROLLBACK, where due, and to the fence
 *	 CLOSED      the keeper                              PQfinish; then it is freed
 *
 * Invariants, all under the pool's mutex:
 *  - Connections on all lists together are never more than the pool's size.
 *  - A cancel is sent only for a CANCELING connection, and a connection leaves CANCELING and SETTLING for
 *    BUSY or IDLE only if nothing sent for its last query can arrive any more. Hence no cancel ever meets
 *    another query: see the settling note in settle.c.
 *  - `home` is the one loop with which the connection's socket is registered (wait_fd_keep), NULL if none;
 *    the descriptor is closed only when it is NULL. See home.c.
 *  - Nobody waits while a connection is IDLE.
 */
typedef enum conn_state {
	CONN_CONNECTING,
	CONN_IDLE,
	CONN_BUSY,
	CONN_CANCELING,
	CONN_SETTLING,
	CONN_CLOSED,
	CONN_STATES, /* how many there are */
} conn_state;

typedef struct conn_list {
	conn *first, *last;
	size_t length;
} conn_list;

/* The query that a connection is being freed of. */
typedef struct ending {
	ctx *ctx;         /* whose end it was, retained; NULL if rows were closed before their end */
	int64_t since;    /* when the connection was taken from its borrower */
	int64_t stopped;  /* when ReadyForQuery was read; 0: not yet */
	unsigned cancels; /* requests sent */
	bool unsure;      /* a cancel link broke or was left: something may be on its way still */
	bool on_link; /* the last request went on a link: the connection will help others when it has settled */
} ending;

/* Where a COPY stands. After its last data, or CopyDone, what is in flight is a statement like any other. */
typedef enum copy_state {
	COPY_NONE,
	COPY_OUT,    /* rows come */
	COPY_IN,     /* PostgreSQL waits for data */
	COPY_FAILED, /* and was told that there will be no more: CopyFail */
} copy_state;

struct conn {
	unsigned magic;
	pg_pool *pool;

	/* Under the pool's mutex. */
	conn_state state;
	conn_list *list;
	conn *next, *previous;
	home *home;
	conn *leaving_next; /* on home->leaving */
	bool leaving;       /* the home has been asked to let go of it */
	bool lost;          /* the server has hung up: not to be lent again */
	pg_conn *session;   /* gets the connection back after it has settled; NULL: the pool does */
	loop_task task;     /* carries it to the keeper */

	/* Whoever may touch the PGconn. */
	PGconn *pg;
	int fd;          /* a duplicate of its socket: see conn_open */
	char server[32]; /* when its server was started, which tells it from others */
	bool direct;     /* no pooler in between: the session and its settings are ours alone */
	bool prepares;   /* statements get names */
	bool unsent;     /* a part of a message has not been written yet */
	bool listening;  /* or was: UNLISTEN is due before it is lent again */
	copy_state copy;
	size_t unflushed; /* of COPY data, since it was last written */
	bool doomed;      /* in a state that nothing but a close gets it out of */
	int64_t idle_since;
	int64_t expires_at; /* past its lifetime from then on; 0: never */
	struct {
		statement *buckets[64];
		statement *newest, *oldest; /* by last use */
		size_t count;
		unsigned named; /* gives each statement a name never used before */
	} statements;

	/* The keeper. */
	bool no_help; /* the server has refused to cancel others for it */
	ending ending;
	uv_poll_t watch;
	bool watch_made;
};

/* Under the pool's mutex: moves the connection to the list of its new state. */
void conn_move(conn *cn, conn_state state);

conn *conn_new(pg_pool *pool);
void conn_connect_task(loop_task *task); /* on the keeper: CONNECTING */
void conn_close_task(loop_task *task);   /* on the keeper: CLOSED */

/* On the keeper: has on_hangup called when the server hangs up; libuv allows one watcher of a socket at a time. */
bool conn_watch(conn *cn);
void conn_unwatch(conn *cn);

/* Whether the server has hung up on a connection that was idle. Costs a system call. */
bool conn_is_stale(conn *cn);

/* ---- statement.c: prepared once --------------------------------------------------------------------- */

struct statement {
	statement *bucket_next;
	statement *newer, *older;
	uint64_t hash;
	bool proven; /* it has been run with success */
	char name[24];
	char text[];
};

/*
 * The prepared statement of this text; prepares it first if need be, under c. NULL with *error otherwise.
 * Waits.
 */
statement *statement_get(ctx *c, conn *cn, const char *sql, pg_error *error);
void statement_forget(conn *cn, statement *st); /* that the server no longer has, or not as it was */
void statements_free(conn *cn);

/* ---- tags.c: whose a statement is, told in its text -------------------------------------------------- */

/*
 * What is to be sent for sql: *tagged, malloc()ed, with the comment of the tags that the program gives it for c; NULL
 * where it gives none, and then sql as it is. A tagged text is like no other: neither prepared nor remembered. false
 * with *error.
 */
bool tags_append(ctx *c, const conn *cn, const char *sql, char **tagged, pg_error *error);

/* ---- query.c: one exchange with PostgreSQL ---------------------------------------------------------- */

typedef enum answer {
	ANSWER_RESULT,
	ANSWER_END,      /* ReadyForQuery, or the connection is broken: see conn_is_broken */
	ANSWER_CTX_DONE, /* and nothing more had arrived */
	ANSWER_FAILED,   /* the wait itself failed: out of memory */
} answer;

/* Waits for the next result of what is in flight. An answer that has arrived wins over a context that is done. */
answer conn_answer(ctx *c, conn *cn, PGresult **result);

/* Writes what libpq has buffered, as far as the socket takes it; conn_answer writes the rest. */
void conn_flush(conn *cn);

/*
 * Reads to the end of what is in flight. true if PostgreSQL reported no error; else *error has the first.
 * tag: NULL, or 16 bytes for the command tag.
 */
bool conn_collect(ctx *c, conn *cn, pg_error *error, char *tag);

/*
 * COPY, which an answer has begun. conn_answer and conn_drain_arrived, called in the midst of one, end it: they drop
 * rows that still come, and send CopyFail to who waits for data.
 */
answer conn_copy_read(ctx *c, conn *cn, char **row,
                      int *length); /* RESULT: a row, for PQfreemem; END: conn_answer tells */
answer conn_copy_write(ctx *c, conn *cn, const char *data, size_t length); /* RESULT: taken */
void conn_copy_end(conn *cn, bool success); /* CopyDone or CopyFail, if it waits for data */

/* Reads what has arrived, without waiting. true: to the end of what was in flight. */
bool conn_drain_arrived(conn *cn);

/* Runs one SQL command that has no parameters; as conn_collect. */
bool conn_command(ctx *c, conn *cn, const char *sql, pg_error *error, char *tag);

/* Waits for a notification, for PQfreemem. */
answer conn_notification(ctx *c, conn *cn, PGnotify **notification);
void conn_drop_notifications(conn *cn);

/* *error for an answer that is none. */
void answer_error(answer a, ctx *c, conn *cn, pg_error *error);

/*
 * The rest of a message that has not been written must never be: its statement would run. Of a COPY that ends in
 * CopyFail nothing stays, so that it may.
 */
static inline bool conn_holds_back(const conn *cn)
{
	return cn->unsent && (cn->copy == COPY_NONE || cn->copy == COPY_OUT);
}

static inline bool conn_is_broken(const conn *cn)
{
	return PQstatus(cn->pg) == CONNECTION_BAD;
}

/* ---- home.c: with which loop a connection's socket is registered ------------------------------------ */

/* A loop whose fibers borrow connections. Made on the loop's first use, lives as long as the pool. */
struct home {
	pg_pool *pool;
	home *next;
	loop *loop;     /* NULL once that loop has ended, or the pool has said farewell */
	conn_list idle; /* the IDLE connections registered with this loop, the one used last first */
	conn *leaving;  /* connections to be taken off this loop */
	loop_task task; /* home_errands */
	bool called;    /* the task is posted */
	bool farewell;  /* the pool is being closed */
	wait_event gone;
	loop_exit exit;
};

/* All of these under the mutex, but homes_close. */
home *home_of(pg_pool *pool, loop *l); /* NULL if there is no memory for one: nothing is kept there then */
void conn_adopt(conn *cn, loop *here); /* it is about to be used on this loop, or on a plain thread: NULL */
void conn_dispatch(conn *cn);          /* sends it to the keeper, which does what its state says */
void homes_close(pg_pool *pool);       /* when no connection is left; waits for the loops to answer */

/* ---- pool.c ----------------------------------------------------------------------------------------- */

struct pg_pool {
	unsigned magic;
	char *conninfo, *application_name, *after_connect_sql;
	pg_pool_options options; /* with the defaults filled in */
	ctx *ctx;                /* ends when the pool is closed: what stops the connecting */
	loop *keeper;
	pthread_t keeper_thread;

	pthread_mutex_t mutex; /* guards all that follows; held for short, never over a wait */
	bool closed;
	conn_list lists[CONN_STATES]; /* IDLE: those without a home */
	home *homes;
	wait_queue waiters;
	unsigned failures; /* attempts to connect that failed in a row */
	int64_t retry_at;  /* no attempt before */
	pg_error failure;  /* the last attempt's */
	pg_pool_stats totals;
	wait_event all_closed;

	/* The keeper. */
	cancel_request *cancels; /* that wait to be sent */
	size_t cancel_links;
	bool batching; /* some are being sent together */
	uv_timer_t retry, upkeep;
	loop_exit keeper_exit;
};

/*
 * A connection for a borrower, now BUSY; waits in the queue if it must. NULL with *error. The borrower gives
 * it back by conn_return.
 */
conn *pool_acquire(ctx *c, pg_pool *pool, pg_error *error);

/*
 * Takes a connection back from its borrower, in whatever condition it is: lends it on, or has the keeper cancel
 * what is in flight, roll back what is open, or close it. c: the borrower's context, which may be done. True if
 * on_settled will be called for it. Does not wait; any thread.
 */
bool conn_return(conn *cn, ctx *c);
bool conn_return_locked(conn *cn, ctx *c);

/* From the keeper, with the mutex held: the connection is clean / not to be used again / gone. */
void pool_give_locked(conn *cn);
void pool_retire_locked(conn *cn);
void pool_forget_locked(conn *cn);

/* Under the mutex: how many are idle / may serve someone yet / count against the pool's size. */
size_t pool_idle_count(const pg_pool *pool);
size_t pool_alive_count(const pg_pool *pool);
size_t pool_all_count(const pg_pool *pool);

void pool_tell_failure(pg_pool *pool); /* under the mutex: all who wait get pool->failure */

static inline void pool_lock(pg_pool *pool)
{
	pthread_mutex_lock(&pool->mutex);
}

static inline void pool_unlock(pg_pool *pool)
{
	pthread_mutex_unlock(&pool->mutex);
}

/* ---- upkeep.c: how many connections there are, and for how long --------------------------------------- */

/* From the keeper: how an attempt to connect ended. */
void pool_connect_failed(conn *cn, const pg_error *error);
void pool_connected(conn *cn);

/*
 * Under the mutex: begins connections for who waits (`more`: and is about to), and for the least that is to be idle, as
 * far as the limits allow.
 */
void pool_feed(pg_pool *pool, size_t more);

/* Under the mutex: no connection is alive, none is being made, none may be made yet. */
bool pool_is_down(const pg_pool *pool);

/* Under the mutex: whether it is past its lifetime, and this is a moment to close it. */
bool pool_is_worn(const conn *cn);

/* Under the mutex, from the keeper: closes an idle connection that is past its time, and sees to it that the next is. */
void pool_upkeep(pg_pool *pool);

/* ---- cancel.c: requests, on the keeper ---------------------------------------------------------------- */

typedef enum cancel_outcome {
	CANCEL_SENT,     /* PostgreSQL has signalled the backend and said so */
	CANCEL_NEEDLESS, /* the query had come to its end by itself, and nothing was sent */
	CANCEL_UNSURE,   /* it may be on its way still */
	CANCEL_NOT_SENT,
} cancel_outcome;

/* Has what is in flight on cn cancelled, once. Waits. */
cancel_outcome cancel_send(ctx *limit, conn *cn);

/* Lets a clean connection that is the keeper's send what waits to be sent. Waits; it may be broken afterwards. */
void cancel_help(conn *cn);

/* ---- reach.c ---------------------------------------------------------------------------------------- */

/* On the keeper: a connection to one of the servers that the conninfo names; NULL with *error. Waits. */
PGconn *server_reach(const pg_pool *pool, pg_error *error);

/* ---- settle.c --------------------------------------------------------------------------------------- */

void settle_task(loop_task *task); /* on the keeper: CANCELING or SETTLING */

/* ---- errand.c: libpq calls that block --------------------------------------------------------------- */

/* pthread_create with all signals blocked, which are the program's business. */
int thread_start(pthread_t *thread, const pthread_attr_t *attributes, void *(*fn)(void *arg), void *arg);

/* Embedded in a struct of the caller's on the heap. */
typedef struct errand {
	void (*work)(struct errand *e);    /* runs on a thread of its own and may block for long */
	void (*discard)(struct errand *e); /* frees it, and what the work has made; on any thread */
	atomic_int state;
	wait_event done;
} errand;

/*
 * Runs e->work on a thread of its own and waits for its end: true, and e is the caller's again. false: c was
 * done first, or there was no thread for it; e was, or will be once its work has ended, discarded.
 */
bool errand_run(ctx *c, errand *e);

/* ---- lease.c: a connection on loan whose context may end while its borrower is elsewhere ------------- */

/*
 * A call on it begins with lease_enter and ends with lease_leave or lease_end; between calls the end of the
 * context takes the connection away (lease_take), so that its query is cancelled at that moment and not when
 * the borrower comes back.
 *
 *	          enter                    take
 *	 QUIET ───────────► IN_CALL   QUIET ─────► TAKEN
 *	   ▲      leave       │ │ end                ▲
 *	   └──────────────────┘ └────────────────────┘     whoever leaves looks whether the context has ended meanwhile
 */
typedef struct lease {
	_Atomic(int) use;
	pg_pool *pool;
	conn *conn;       /* for who is IN_CALL */
	pg_conn *session; /* gets the connection back after it was taken and has settled; NULL: nobody */
	/* Under the pool's mutex. */
	bool settling; /* what conn_return answered when it was taken */
	bool taken; /* for good; of a pinned session: since its last stream began, even if it is QUIET again */
} lease;
enum { LEASE_QUIET, LEASE_IN_CALL, LEASE_TAKEN };

void lease_begin(lease *l, conn *cn); /* IN_CALL */
int lease_enter(lease *l);            /* what it was: QUIET means entered */
void lease_leave(lease *l, ctx *c);   /* back to QUIET; or taken, if c is done */
bool lease_take(lease *l, ctx *c);    /* if it is QUIET, once; any thread. Whether it is taken, or was */
bool lease_end(lease *l, ctx *c);     /* while IN_CALL: gives the connection back, as conn_return */
bool lease_is_settling(lease *l);     /* whether it is taken, and a query was in flight then */
bool lease_was_settling(lease *l);    /* whether a query was in flight as it was taken; true only once */

/* ---- stream.c: what a statement holds from its start to its end --------------------------------------- */

void tell_queued(pg_pool *pool, ctx *c, const char *sql);
void tell_running(const conn *cn, ctx *c, const char *sql);
void tell_ended(pg_pool *pool, ctx *c, uint64_t rows, bool settling);

/* The end of a statement's own context, or of the transaction's that it is part of, whichever comes first. */
typedef struct scope {
	ctx *ctx;      /* retained */
	ctx *outer;    /* retained; NULL if there is none, or if it is the same */
	ctx_hook hook; /* on outer: ends ctx, which is the scope's own then */
} scope;

/*
 * A statement's connection and its scope. Embedded in what reads or writes; over when `lease` is NULL.
 *
 *	      open            hold                leave
 *	 ────────────► in call ───► between calls ◄───── in call
 *	                  │ end          │  │      ─────►  │ end
 *	                  ▼              │  │ enter        ▼
 *	                over ◄───────────┘  └─ its context has ended: over, with the error
 *	                         close
 */
typedef struct stream {
	lease *lease; /* NULL: the connection is not ours any more */
	lease own;
	pg_conn *session; /* whose lease it is otherwise */
	scope scope;
	ctx_hook hook; /* on the scope, once held: takes the lease */
	bool held;
} stream;

/* The connection for a statement on the pool / in a session. NULL with *error, and the stream is over. Waits. */
conn *stream_open(stream *s, ctx *c, pg_pool *pool, const char *sql, pg_error *error);
conn *stream_open_in(stream *s, ctx *c, pg_conn *session, const char *sql, pg_error *error);

void stream_hold(stream *s); /* there is more to come, in further calls */
conn *stream_enter(stream *s, uint64_t affected, pg_error *error);
void stream_leave(stream *s);

/* The end, in a call: what is in flight still, is so because of *error. affected: for tell_ended. */
void stream_end(stream *s, uint64_t affected, pg_error *error);
void stream_close(stream *s, uint64_t affected); /* the end between calls, if it is not over */

/* ---- session.c -------------------------------------------------------------------------------------- */

/* A connection lent for more than one statement: a pinned one, or the one under a transaction. */
struct pg_conn {
	unsigned magic;
	bool returns; /* pinned: the connection comes back here after it has settled */
	ctx *ctx;     /* a transaction's, retained by it; NULL: each statement has its own only */
	lease lease;
	stream *stream;      /* that is open now */
	PGnotify *heard;     /* the last notification, lent to the listener */
	wait_event returned; /* pinned: it came back, or is lost */
	bool lost;           /* under the mutex, until `returned` is taken */
	pg_error error;      /* why no more statements can be run; kind 0: they can */
};

bool session_is_over(pg_conn *session); /* true, with session->error; the end of its context included */
conn *session_enter(ctx *c, pg_conn *session, pg_error *error);
void session_leave(pg_conn *session, ctx *c,
                   pg_error *error); /* error: the statement's, which may end the session */

/*
 * Runs "VERB "name"", name being one that PostgreSQL neither cuts nor folds. may: NULL, or says with *error whether the
 * connection is fit for it. Waits.
 */
bool session_command(ctx *c, pg_conn *session, const char *verb, const char *name,
                     bool (*may)(const conn *cn, pg_error *error), pg_error *error);

/* On the keeper: after_connect, for a connection that is CONNECTING. false with *error: not to be used. Waits. */
bool session_introduce(ctx *c, conn *cn, pg_error *error);

/* From the keeper, under the mutex: a connection that settled comes back; with NULL, it never will. */
void session_returned(pg_conn *session, conn *cn);

/* ---- rows.c ----------------------------------------------------------------------------------------- */

typedef enum rows_mode {
	ROWS_STREAM,
	ROWS_FIRST,
	ROWS_NONE,
} rows_mode;

struct pg_rows {
	unsigned magic;
	rows_mode mode;
	PGresult *result; /* with the current row, or the last that came */
	int row;          /* in result; -1: none is current */
	bool ahead;       /* result's first row has not been asked for yet */
	bool ended;       /* PostgreSQL has said all it had to say */
	uint64_t affected;
	stream stream;
	pg_error error;
};

bool rows_are_real(const pg_rows *rows); /* false for the ones that stand for "out of memory" */

pg_rows *rows_run_in(ctx *c, pg_conn *session, const char *sql, const pg_params *params, rows_mode mode);

/* ---- error.c ---------------------------------------------------------------------------------------- */

void error_clear(pg_error *error);
void error_set(pg_error *error, pg_error_kind kind, const char *message);
bool error_if_done(pg_error *error, const ctx *c); /* true, with *error, if c is done */
void error_from_conn(pg_error *error, PGconn *pg); /* libpq refused or failed a call */
void error_from_result(pg_error *error, const PGresult *result);

#pragma GCC visibility pop

#endif
