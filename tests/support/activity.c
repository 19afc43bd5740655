#include "activity.h"
#include "support.h"

#include <libpq-fe.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct activity {
	PGconn *conn;
};

activity *activity_open(const char *url)
{
	activity *a = calloc(1, sizeof *a);

	if (!a)
		return NULL;
	a->conn = PQconnectdb(url);
	if (PQstatus(a->conn) != CONNECTION_OK) {
		fprintf(stderr, "activity: %s", PQerrorMessage(a->conn));
		activity_close(a);
		return NULL;
	}
	return a;
}

void activity_close(activity *a)
{
	if (!a)
		return;
	PQfinish(a->conn);
	free(a);
}

/* The pids in ascending order, or NULL. The caller clears the result. */
static PGresult *ask(activity *a, activity_of of)
{
	const char *patterns[] = {of.application ? of.application : "%", of.state ? of.state : "%",
	                          of.query ? of.query : "%"};
	PGresult *result =
		PQexecParams(a->conn,
	                     "SELECT pid FROM pg_stat_activity WHERE backend_type = 'client backend'"
	                     " AND pid <> pg_backend_pid() AND coalesce(application_name, '') LIKE $1"
	                     " AND coalesce(state, '') LIKE $2 AND coalesce(query, '') LIKE $3 ORDER BY pid",
	                     3, NULL, patterns, NULL, NULL, 0);

	if (PQresultStatus(result) == PGRES_TUPLES_OK)
		return result;
	fprintf(stderr, "activity: %s", PQerrorMessage(a->conn));
	PQclear(result);
	return NULL;
}

int activity_pids(activity *a, activity_of of, pid_t pids[], int size)
{
	PGresult *result = ask(a, of);
	int count;

	if (!result)
		return -1;
	count = PQntuples(result);
	for (int i = 0; i < count && i < size; i++)
		pids[i] = (pid_t)strtol(PQgetvalue(result, i, 0), NULL, 10);
	PQclear(result);
	return count;
}

int activity_count(activity *a, activity_of of)
{
	return activity_pids(a, of, NULL, 0);
}

struct expectation {
	activity *a;
	activity_of of;
	int count;
};

static bool is_met(void *arg)
{
	struct expectation *e = arg;

	return activity_count(e->a, e->of) == e->count;
}

bool activity_becomes(activity *a, activity_of of, int count, int timeout_ms)
{
	struct expectation expectation = {.a = a, .of = of, .count = count};

	return eventually(is_met, &expectation, timeout_ms);
}

char *activity_sql(activity *a, const char *sql)
{
	PGresult *result = PQexec(a->conn, sql);
	ExecStatusType status = PQresultStatus(result);
	char *value = NULL;

	if (status == PGRES_TUPLES_OK && PQntuples(result) > 0 && PQnfields(result) > 0)
		value = strdup(PQgetvalue(result, 0, 0));
	else if (status != PGRES_TUPLES_OK && status != PGRES_COMMAND_OK)
		fprintf(stderr, "activity: %s", PQerrorMessage(a->conn));
	PQclear(result);
	return value;
}
