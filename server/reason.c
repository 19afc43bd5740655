#include "reason.h"

#include <errno.h>
#include <string.h>
#include <tether/http.h>

const ctx_error OPERATOR_CANCELED = {ECANCELED, "cancelled by an operator"};

const reason_answer reason_answers[REASONS] = {
	[REASON_NONE] = {"", 200, false, NULL},
	[REASON_DEADLINE] = {"deadline", 504, false,
                             "The database did not answer in time; the query was cancelled."},
	/* Nobody reads this answer: the status is for log and metrics, as nginx has it. */
	[REASON_CLIENT_DISCONNECT] = {"client_disconnect", 499, false, NULL},
	[REASON_SATURATED] = {"saturated", 503, true, "Too many requests wait for the database."},
	[REASON_DB_DOWN] = {"db_down", 503, true, "The database cannot be reached."},
	[REASON_SHUTDOWN] = {"shutdown", 503, true, "The server is shutting down."},
	[REASON_OPERATOR] = {"operator", 503, false, "The request was cancelled by an operator."},
	[REASON_UNAUTHORIZED] = {"unauthorized", 401, false, NULL},
	[REASON_NOT_FOUND] = {"not_found", 404, false, "There is no such album."},
	[REASON_INVALID] = {"invalid", 422, false, "The database does not accept one of the values."},
	[REASON_ERROR] = {"error", 500, false, NULL},
};

/* What PostgreSQL's own refusals mean. See its Appendix A, "Error Codes". */
static reason reason_of_sqlstate(const char *sqlstate)
{
	static const struct {
		const char *prefix;
		reason reason;
	} known[] = {
		{"57014",
	         REASON_DEADLINE}, /* query_canceled, though not by us: statement_timeout, the backstop */
		{"57P", REASON_DB_DOWN}, /* shut down, crashed, starting up, or a dropped session */
		{"08", REASON_DB_DOWN},  /* connection exceptions */
		{"53", REASON_DB_DOWN},  /* too many connections, out of memory, disk full */
		{"22", REASON_INVALID},  /* data exceptions */
		{"23", REASON_INVALID},  /* constraint violations */
	};
	for (size_t i = 0; i < sizeof(known) / sizeof(*known); i++) {
		if (strncmp(sqlstate, known[i].prefix, strlen(known[i].prefix)) == 0)
			return known[i].reason;
	}
	return REASON_ERROR;
}

reason reason_of_error(const pg_error *error)
{
	switch (error->kind) {
	case PG_ERROR_CANCELED:
		return reason_of_cause(error->cause);
	case PG_ERROR_DEADLINE:
		return REASON_DEADLINE;
	case PG_ERROR_CONNECTION:
		return REASON_DB_DOWN;
	case PG_ERROR_SATURATED:
		return REASON_SATURATED;
	case PG_ERROR_CLOSED:
		return REASON_SHUTDOWN;
	case PG_ERROR_SERVER:
		return reason_of_sqlstate(error->sqlstate);
	case PG_ERROR_NO_ROWS:
		return REASON_NOT_FOUND;
	case PG_ERROR_VALUE:
	case PG_ERROR_USAGE:
	case PG_ERROR_UNKNOWN:
	case PG_ERROR_MEMORY:
		break;
	}
	return REASON_ERROR;
}

reason reason_of_cause(const ctx_error *cause)
{
	if (!cause || cause == &HTTP_REQUEST_FINISHED)
		return REASON_NONE;
	if (cause == &HTTP_CLIENT_DISCONNECTED || cause == &HTTP_STREAM_RESET)
		return REASON_CLIENT_DISCONNECT;
	if (cause == &HTTP_SERVER_SHUTDOWN)
		return REASON_SHUTDOWN;
	if (cause == &OPERATOR_CANCELED)
		return REASON_OPERATOR;
	if (cause == &CTX_DEADLINE_EXCEEDED)
		return REASON_DEADLINE;
	return REASON_ERROR;
}
