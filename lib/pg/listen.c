/*
 * LISTEN: waiting for notifications on a pinned connection.
 *
 * They come on that connection alone, so that it is waited on as it is, and its loss is told: a listener that was
 * connected anew behind the scenes would have missed what was sent meanwhile, and not know.
 */
#include "pg_priv.h"

static bool is_listener(const conn *cn, pg_error *error)
{
	if (!cn->direct)
		error_set(error, PG_ERROR_USAGE,
		          "LISTEN takes a connection to PostgreSQL itself, not through a pooler");
	return cn->direct;
}

bool pg_listen(ctx *c, pg_conn *session, const char *channel, pg_error *error)
{
	pg_error unwanted;
	return session_command(c, session, "LISTEN", channel, is_listener, error ? error : &unwanted);
}

bool pg_unlisten(ctx *c, pg_conn *session, const char *channel, pg_error *error)
{
	pg_error unwanted;
	return session_command(c, session, "UNLISTEN", channel, NULL, error ? error : &unwanted);
}

bool pg_notification_next(ctx *c, pg_conn *session, pg_notification *notification, pg_error *error)
{
	pg_error unwanted;
	if (!error)
		error = &unwanted;
	error_clear(error);
	conn *cn = session_enter(c, session, error);
	if (!cn)
		return false;
	PQfreemem(session->heard);
	session->heard = NULL;
	if (!cn->listening) {
		error_set(error, PG_ERROR_USAGE, "the session does not listen to anything: see pg_listen");
	} else {
		answer a = conn_notification(c, cn, &session->heard);
		if (a != ANSWER_RESULT)
			answer_error(a, c, cn, error);
	}
	session_leave(session, c, error);
	if (!session->heard)
		return false;
	*notification = (pg_notification){
		.channel = session->heard->relname,
		.payload = session->heard->extra,
		.backend = session->heard->be_pid,
	};
	return true;
}
