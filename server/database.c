#include "database.h"

#include <fnmatch.h>
#include <stdio.h>
#include <tether/loop.h>

#include "complain.h"
#include "log.h"

/*
 * What PostgreSQL and libpq say when there is no connecting. libpq passes no SQLSTATE on for that, so the words have to
 * do; those of a server that speaks another language than English are told as they are.
 */
static const struct known_fault {
	const char *said; /* a pattern, as a shell has it */
	const char *wrong, *remedy;
	bool final;
} faults[] = {
	{"*password authentication failed*", "the database does not accept the password",
         "give the right one in --database-url, in PGPASSWORD or in ~/.pgpass", true},
	{"*no password supplied*", "the database asks for a password",
         "give it in --database-url, in PGPASSWORD or in ~/.pgpass", true},
	{"*database \"*\" does not exist*", "there is no such database",
         "create it (createdb), or name another in --database-url", true},
	{"*role \"*\" does not exist*", "the database server knows no such user",
         "create it (createuser), or name another in --database-url", true},
	{"*no pg_hba.conf entry*", "the database server does not let this user in from here",
         "add a line for it to the server's pg_hba.conf", true},
	{"*server does not support SSL*", "the database server does not speak TLS",
         "set ssl = on there, or say sslmode=prefer in --database-url", true},
	{"*certificate verify failed*", "the database server's certificate is not to be trusted",
         "name the one that signed it in sslrootcert, in --database-url", true},
	{"*root certificate file*", "there is nothing to judge the database server's certificate by",
         "name the one that signed it in sslrootcert, in --database-url", true},
	{"*could not translate host name*", "the database's host is not known",
         "is its name right in --database-url?", false},
	{"*Connection refused*", "no database listens there",
         "start PostgreSQL, or say in --database-url where it is", false},
	{"*No such file or directory*", "no database listens there",
         "start PostgreSQL, or say in --database-url where it is", false},
	{"*", "the database cannot be reached", "is it well, and --database-url right?", false},
};

static void find_fault(database_look *look, const char *said)
{
	const struct known_fault *fault = faults;
	while (fnmatch(fault->said, said, 0) != 0)
		fault++;
	look->wrong = fault->wrong;
	look->remedy = fault->remedy;
	look->final = fault->final;
	snprintf(look->said, sizeof(look->said), "%s", said);
}

/* All connections being lent says nothing against the database. */
static bool is_busy(const pg_error *error, const pg_pool *pool)
{
	pg_pool_stats stats;
	pg_pool_stats_get(pool, &stats);
	bool queued =
		error->kind == PG_ERROR_SATURATED || (error->kind == PG_ERROR_DEADLINE && !error->settling);
	return queued && stats.busy == stats.size;
}

bool database_look_at(ctx *c, pg_pool *pool, database_look *look)
{
	*look = (database_look){.usable = false};
	pg_rows_auto *row = pg_query_row(
		c, pool, "SELECT to_regclass('album') IS NOT NULL, current_database()", PG_NO_PARAMS);
	const pg_error *error = pg_rows_error(row);
	if (error) {
		look->busy = is_busy(error, pool);
		find_fault(look,
		           error->kind == PG_ERROR_DEADLINE ? "it does not answer in time" : error->message);
		return false;
	}
	snprintf(look->name, sizeof(look->name), "%s", pg_rows_text(row, 1));
	if (pg_rows_bool(row, 0, &look->usable) && look->usable)
		return true;
	look->wrong = "the database has no table album";
	look->remedy = "load the schema into it: psql -f sql/schema.sql";
	look->final = true;
	return false;
}

const char *database_describe(const database_look *look, bool words, char *sentence, size_t size)
{
	words = words && look->said[0];
	snprintf(sentence, size, "%s: %s%s%s%s", look->wrong, look->remedy, words ? " (" : "",
	         words ? look->said : "", words ? ")" : "");
	return sentence;
}

static void tell_reachable(const database_look *look)
{
	log_message(LOG_INFO, "the database is reachable", "database", look->name);
}

bool database_may_serve(ctx *c, pg_pool *pool, bool *seen)
{
	database_look look;
	ctx_auto *second = ctx_with_timeout(c, CTX_SECOND);
	*seen = second && database_look_at(second, pool, &look);
	if (*seen)
		tell_reachable(&look);
	if (!second || *seen || !look.final)
		return true;
	char what[768];
	complain("%s", database_describe(&look, true, what, sizeof(what)));
	return false;
}

void database_await(ctx *c, pg_pool *pool)
{
	database_look look = {.usable = false};
	do {
		ctx_auto *limited = ctx_with_timeout(c, 10 * CTX_SECOND);
		if (!limited || database_look_at(limited, pool, &look))
			break;
		char what[768];
		database_describe(&look, true, what, sizeof(what));
		if (!ctx_err(c))
			log_message(LOG_WARN,
			            "the database cannot be used yet; until it can, answers are errors",
			            "error", what);
	} while (wait_sleep(c, CTX_SECOND) == 0);
	if (look.usable)
		tell_reachable(&look);
}
