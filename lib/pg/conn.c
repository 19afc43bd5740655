/*
 * Connections: made, watched and closed, on the keeper. The states are drawn in pg_priv.h.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "pg_priv.h"

/* ---- States ----------------------------------------------------------------------------------------- */

static void list_remove(conn_list *list, conn *cn)
{
	if (cn->next)
		cn->next->previous = cn->previous;
	else
		list->last = cn->previous;
	if (cn->previous)
		cn->previous->next = cn->next;
	else
		list->first = cn->next;
	list->length--;
}

static void list_push(conn_list *list, conn *cn)
{
	cn->previous = NULL;
	cn->next = list->first;
	if (cn->next)
		cn->next->previous = cn;
	else
		list->last = cn;
	list->first = cn;
	list->length++;
}

void conn_move(conn *cn, conn_state state)
{
	if (cn->list)
		list_remove(cn->list, cn);
	cn->state = state;
	if (state == CONN_STATES)
		cn->list = NULL;
	else if (state == CONN_IDLE && cn->home)
		cn->list = &cn->home->idle;
	else
		cn->list = &cn->pool->lists[state];
	if (cn->list)
		list_push(cn->list, cn);
}

conn *conn_new(pg_pool *pool)
{
	conn *cn = calloc(1, sizeof(*cn));
	if (!cn)
		return NULL;
	cn->magic = CONN_MAGIC;
	cn->pool = pool;
	cn->fd = -1;
	conn_move(cn, CONN_CONNECTING);
	return cn;
}

/* ---- Opening ---------------------------------------------------------------------------------------- */

static void ignore_notice(void *arg, const char *message)
{
	(void)arg;
	(void)message;
}

static bool set_setting(ctx *c, conn *cn, const char *name, int64_t ns)
{
	char sql[96];
	pg_error refused;
	int64_t ms = (ns + CTX_MILLISECOND - 1) / CTX_MILLISECOND;
	if (ms > INT32_MAX)
		ms = INT32_MAX; /* PostgreSQL's own limit; past it there would be none */
	snprintf(sql, sizeof(sql), "SET %s = %lld", name, (long long)ms);
	/* Not every server has every setting: a refusal is no failure. */
	conn_command(c, cn, sql, &refused, NULL);
	return !conn_is_broken(cn) && PQtransactionStatus(cn->pg) == PQTRANS_IDLE;
}

/*
 * client_connection_check_interval sees a connection that was closed, not one whose network is gone: that takes the
 * server's own keep-alive, which by default looks after two hours. Ours, in the other direction, is in reach.c.
 */
static bool set_keepalive(ctx *c, conn *cn)
{
	pg_error refused;
	conn_command(c, cn,
	             "SET tcp_keepalives_idle = 30; SET tcp_keepalives_interval = 5;"
	             " SET tcp_keepalives_count = 3",
	             &refused, NULL);
	return !conn_is_broken(cn) && PQtransactionStatus(cn->pg) == PQTRANS_IDLE;
}

/* Which server is it, and are we talking to the very process whose number we would cancel? Behind a pooler we are not. */
static bool ask_who_serves(ctx *c, conn *cn)
{
	PGresult *result;
	answer a;
	if (!PQsendQuery(cn->pg, "SELECT pg_catalog.pg_backend_pid(),"
	                         " extract(epoch FROM pg_catalog.pg_postmaster_start_time())"))
		return false;
	conn_flush(cn);
	while ((a = conn_answer(c, cn, &result)) == ANSWER_RESULT) {
		if (PQresultStatus(result) == PGRES_TUPLES_OK && PQntuples(result) == 1) {
			cn->direct = strtol(PQgetvalue(result, 0, 0), NULL, 10) == PQbackendPID(cn->pg);
			snprintf(cn->server, sizeof(cn->server), "%s", PQgetvalue(result, 0, 1));
		}
		PQclear(result);
	}
	return a == ANSWER_END && !conn_is_broken(cn);
}

/*
 * The backstops for the case that we die ourselves. Behind a pooler the session is shared with others: there
 * they are for the role to set (ALTER ROLE … SET), not for us.
 */
static bool set_up_session(ctx *c, conn *cn, pg_error *error)
{
	const pg_pool_options *options = &cn->pool->options;
	bool ok = ask_who_serves(c, cn);
	cn->prepares = options->statements == PG_STATEMENTS_PREPARED ||
	               (options->statements == PG_STATEMENTS_AUTO && cn->direct);
	if (ok && cn->direct && PQserverVersion(cn->pg) >= 140000)
		ok = set_setting(c, cn, "client_connection_check_interval", options->liveness_interval);
	if (ok && cn->direct && *PQhost(cn->pg) != '/')
		ok = set_keepalive(c, cn);
	if (ok && cn->direct && options->statement_timeout > 0)
		ok = set_setting(c, cn, "statement_timeout", options->statement_timeout);
	if (!ok && ctx_err(c))
		error_set(error, PG_ERROR_CONNECTION, "PostgreSQL did not answer in time");
	else if (!ok)
		error_from_conn(error, cn->pg);
	return ok;
}

static bool make_ready(ctx *c, conn *cn, pg_error *error)
{
	PQsetNoticeProcessor(cn->pg, ignore_notice, NULL);
	/*
	 * libpq closes its socket the moment it finds it broken, in the midst of a call; another thread may get
	 * that number for another socket while loops still have it registered as ours. So loops are given a
	 * duplicate, whose end we decide.
	 */
	cn->fd = fcntl(PQsocket(cn->pg), F_DUPFD_CLOEXEC, 0);
	if (cn->fd < 0 || PQsetnonblocking(cn->pg, 1) != 0) {
		error_set(error, PG_ERROR_MEMORY, cn->fd < 0 ? strerror(errno) : "out of memory");
		return false;
	}
	if (!set_up_session(c, cn, error) || !session_introduce(c, cn, error))
		return false;
	if (!conn_watch(cn)) {
		error_set(error, PG_ERROR_MEMORY, "cannot watch the connection");
		return false;
	}
	return true;
}

static bool conn_open(conn *cn, pg_error *error)
{
	ctx_auto *c = ctx_with_timeout(cn->pool->ctx, cn->pool->options.connect_timeout);
	if (!c)
		error_set(error, PG_ERROR_MEMORY, "out of memory");
	return c && make_ready(c, cn, error);
}

static void connect_fiber(void *arg)
{
	conn *cn = arg;
	pg_pool *pool = cn->pool;
	pg_error error;
	error_clear(&error);
	cn->pg = server_reach(pool, &error);
	if (cn->pg && conn_open(cn, &error))
		pool_connected(cn);
	else
		pool_connect_failed(cn, &error);
}

void conn_connect_task(loop_task *task)
{
	conn *cn = container_of(task, conn, task);
	if (loop_start(cn->pool->keeper, connect_fiber, cn) >= 0)
		return;
	pg_error error;
	error_set(&error, PG_ERROR_MEMORY, "out of memory");
	pool_connect_failed(cn, &error);
}

/* ---- Watching --------------------------------------------------------------------------------------- */

static void on_hangup(uv_poll_t *watch, int status, int events)
{
	(void)status;
	(void)events;
	conn *cn = container_of(watch, conn, watch);
	uv_poll_stop(watch); /* it would be told again and again */
	pool_lock(cn->pool);
	cn->lost = true;
	if (cn->state == CONN_IDLE)
		pool_retire_locked(cn);
	pool_unlock(cn->pool);
}

/*
 * Every open connection is watched for the server's hang-up alone (RDHUP), by the keeper's loop, whichever
 * loop reads it: an ordinary answer does not wake the keeper.
 */
bool conn_watch(conn *cn)
{
	if (!cn->watch_made && uv_poll_init(loop_uv(cn->pool->keeper), &cn->watch, cn->fd) != 0)
		return false;
	cn->watch_made = true;
	return uv_poll_start(&cn->watch, UV_DISCONNECT, on_hangup) == 0;
}

void conn_unwatch(conn *cn)
{
	if (cn->watch_made)
		uv_poll_stop(&cn->watch);
}

bool conn_is_stale(conn *cn)
{
	/* What a server says before it hangs up, and notices nobody asked for, lie in front of the hang-up itself. */
	for (int looks = 0; looks < 4; looks++) {
		char byte;
		ssize_t n = recv(cn->fd, &byte, 1, MSG_PEEK | MSG_DONTWAIT);
		if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR))
			return false;
		if (n <= 0 || !PQconsumeInput(cn->pg))
			return true;
	}
	return false;
}

/* ---- Closing ---------------------------------------------------------------------------------------- */

static void conn_free(conn *cn)
{
	pg_pool *pool = cn->pool;
	statements_free(cn);
	/* PQfinish would write the rest of a message that must never be complete. */
	if (conn_holds_back(cn))
		shutdown(cn->fd, SHUT_RDWR);
	PQfinish(cn->pg);
	if (cn->fd >= 0)
		close(cn->fd);
	pool_lock(pool);
	pool_forget_locked(cn);
	pool_unlock(pool);
	free(cn);
}

static void watch_closed(uv_handle_t *handle)
{
	conn_free(container_of(handle, conn, watch));
}

void conn_close_task(loop_task *task)
{
	conn *cn = container_of(task, conn, task);
	if (cn->watch_made)
		uv_close((uv_handle_t *)&cn->watch, watch_closed);
	else
		conn_free(cn);
}
