/*
 * One query, with a five-second deadline and Ctrl-C, in a program of plain threads without any loop.
 *
 *	DATABASE_URL=… pg_query "SELECT pg_sleep(10)"
 */
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>

#include <tether/pg.h>

int main(int argc, char **argv)
{
	const int interrupt[] = {SIGINT};
	ctx_auto *signals = ctx_with_signals(ctx_background(), interrupt, 1);
	ctx_auto *c = signals ? ctx_with_timeout(signals, 5 * CTX_SECOND) : NULL;
	pg_error error = {.message = "out of memory"};
	pg_pool *pool =
		c ? pg_pool_open(&(pg_pool_options){.conninfo = getenv("DATABASE_URL"), .size = 1}, &error)
		  : NULL;
	if (!pool) {
		fprintf(stderr, "%s\n", error.message);
		return 1;
	}
	pg_rows *rows =
		pg_query(c, pool, argc > 1 ? argv[1] : "SELECT 'Hello from ' || version()", PG_NO_PARAMS);
	while (pg_rows_next(rows)) {
		for (int i = 0; i < pg_rows_columns(rows); i++)
			printf("%s%s", i ? "\t" : "", pg_rows_is_null(rows, i) ? "" : pg_rows_text(rows, i));
		printf("\n");
	}
	const pg_error *failed = pg_rows_error(rows);
	if (failed)
		fprintf(stderr, "%s: %s\n", pg_error_kind_name(failed->kind), failed->message);
	int status = failed ? 1 : 0;
	pg_rows_close(rows);
	pg_pool_close(pool); /* waits until PostgreSQL has stopped */
	return status;
}
