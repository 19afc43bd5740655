/*
 * Prints what is sent on a channel until Ctrl-C, in a program without any loop. Try it with
 *
 *	DATABASE_URL=… pg_listen jobs &
 *	psql "$DATABASE_URL" -c "NOTIFY jobs, 'hello'"
 */
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>

#include <tether/loop.h>
#include <tether/pg.h>

/* Until the connection breaks, or c ends. */
static void print_notifications(ctx *c, pg_conn *session, const char *channel)
{
	pg_notification n;
	pg_error error;
	if (pg_listen(c, session, channel, &error)) {
		/* What was sent before this moment is to be looked for in tables: nobody has listened yet. */
		printf("listening to %s\n", channel);
		fflush(stdout);
		while (pg_notification_next(c, session, &n, &error)) {
			printf("%s: %s\n", n.channel, n.payload);
			fflush(stdout);
		}
	}
	fprintf(stderr, "%s: %s\n", pg_error_kind_name(error.kind), error.message);
}

int main(int argc, char **argv)
{
	ctx_auto *c = ctx_with_signals(ctx_background(), (const int[]){SIGINT, SIGTERM}, 2);
	pg_error error = {.message = "out of memory"};
	pg_pool *pool =
		c ? pg_pool_open(&(pg_pool_options){.conninfo = getenv("DATABASE_URL"), .size = 1}, &error)
		  : NULL;
	if (!pool) {
		fprintf(stderr, "%s\n", error.message);
		return 1;
	}
	while (!ctx_err(c)) {
		pg_conn *session = pg_conn_acquire(c, pool);
		print_notifications(c, session, argc > 1 ? argv[1] : "jobs");
		pg_conn_release(session);
		wait_sleep(c, CTX_SECOND); /* before it is tried again */
	}
	pg_pool_close(pool);
	return 0;
}
