/*
 * Errors: where they come from decides their kind.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "pg_priv.h"

const char *pg_error_kind_name(pg_error_kind kind)
{
	static const char *const names[] = {
		[PG_ERROR_CANCELED] = "canceled",     [PG_ERROR_DEADLINE] = "deadline",
		[PG_ERROR_CONNECTION] = "connection", [PG_ERROR_SERVER] = "server",
		[PG_ERROR_SATURATED] = "saturated",   [PG_ERROR_CLOSED] = "closed",
		[PG_ERROR_NO_ROWS] = "no_rows",       [PG_ERROR_VALUE] = "value",
		[PG_ERROR_USAGE] = "usage",           [PG_ERROR_UNKNOWN] = "unknown",
		[PG_ERROR_MEMORY] = "memory",
	};
	size_t index = (size_t)kind;
	return index < sizeof(names) / sizeof(names[0]) && names[index] ? names[index] : "none";
}

void pg_misuse(const char *call, const char *why)
{
	fprintf(stderr, "tether: %s: %s\n", call, why);
	abort();
}

/* Not all of it is zeroed: this is on every query's way. */
void error_clear(pg_error *error)
{
	error->kind = 0;
	error->sqlstate[0] = '\0';
	error->settling = false;
	error->cause = NULL;
	error->constraint[0] = '\0';
	error->message[0] = '\0';
}

/* libpq ends its messages with a newline and strings several attempts together with more of them. */
static void error_message(pg_error *error, const char *message)
{
	size_t n = 0;
	for (const char *p = message; *p && n + 1 < sizeof(error->message); p++) {
		bool space = *p == '\n' || *p == '\t' || *p == '\r';
		if (space && (n == 0 || error->message[n - 1] == ' '))
			continue;
		error->message[n] = *p;
		if (space)
			error->message[n] = ' ';
		n++;
	}
	while (n > 0 && error->message[n - 1] == ' ')
		n--;
	/* A character of UTF-8 that the end has cut is left out whole. */
	if (n + 1 == sizeof(error->message)) {
		while (n > 0 && ((unsigned char)error->message[n - 1] & 0xc0) == 0x80)
			n--;
		if (n > 0 && (unsigned char)error->message[n - 1] >= 0xc0)
			n--;
	}
	error->message[n] = '\0';
}

void error_set(pg_error *error, pg_error_kind kind, const char *message)
{
	error_clear(error);
	error->kind = kind;
	error_message(error, message);
}

bool error_if_done(pg_error *error, const ctx *c)
{
	const ctx_error *err = ctx_err(c);
	if (!err)
		return false;
	const ctx_error *cause = ctx_cause(c);
	error_set(error, err == &CTX_DEADLINE_EXCEEDED ? PG_ERROR_DEADLINE : PG_ERROR_CANCELED,
	          cause->message);
	error->cause = cause;
	return true;
}

void error_from_conn(pg_error *error, PGconn *pg)
{
	const char *message = PQerrorMessage(pg);
	if (pg && PQstatus(pg) != CONNECTION_BAD)
		error_set(error, PG_ERROR_USAGE, *message ? message : "libpq refused the call");
	else
		error_set(error, PG_ERROR_CONNECTION,
		          *message ? message : "the connection to PostgreSQL broke");
}

static void copy_field(char *to, size_t size, const PGresult *result, int field)
{
	const char *value = PQresultErrorField(result, field);
	snprintf(to, size, "%s", value ? value : "");
}

static bool field_is(const PGresult *result, int field, const char *value)
{
	const char *found = PQresultErrorField(result, field);
	return found && strcmp(found, value) == 0;
}

void error_from_result(pg_error *error, const PGresult *result)
{
	const char *message = PQresultErrorField(result, PG_DIAG_MESSAGE_PRIMARY);
	error_set(error, PG_ERROR_SERVER, message ? message : PQresultErrorMessage(result));
	copy_field(error->sqlstate, sizeof(error->sqlstate), result, PG_DIAG_SQLSTATE);
	copy_field(error->constraint, sizeof(error->constraint), result, PG_DIAG_CONSTRAINT_NAME);
	/* Without an SQLSTATE it is libpq that speaks; after FATAL the server has ended the session. */
	if (!error->sqlstate[0] || field_is(result, PG_DIAG_SEVERITY_NONLOCALIZED, "FATAL") ||
	    field_is(result, PG_DIAG_SEVERITY_NONLOCALIZED, "PANIC"))
		error->kind = PG_ERROR_CONNECTION;
	/* A syntax error, says the SQLSTATE; which one, only the place in PostgreSQL's source tells in every language. */
	else if (strcmp(error->sqlstate, "42601") == 0 &&
	         field_is(result, PG_DIAG_SOURCE_FUNCTION, "exec_parse_message"))
		error->kind = PG_ERROR_USAGE;
}
