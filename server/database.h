/*
 * database.h — whether the database can be used, and if not, what is wrong and how it is mended.
 */
#ifndef ALBUMD_DATABASE_H
#define ALBUMD_DATABASE_H

#include <stdbool.h>
#include <tether/ctx.h>
#include <tether/pg.h>

/* What a look at the database has found. */
typedef struct database_look {
	bool usable;
	bool busy;          /* not usable just now, because all of its connections are lent */
	bool final;         /* not usable, and waiting will not change that */
	const char *wrong;  /* what is wrong, "the database does not accept the password" */
	const char *remedy; /* and what to do, "give the right one in --database-url" */
	char said[512];     /* PostgreSQL's own words on it; "" if it had none */
	char name[64];      /* of the database, if it could be asked */
} database_look;

/* Asks it once. Waits, no longer than c lasts. true: it can be used. */
bool database_look_at(ctx *c, pg_pool *pool, database_look *look);

/* One sentence on what is wrong and how it is mended; with `words`, PostgreSQL's own too. Returns sentence. */
const char *database_describe(const database_look *look, bool words, char *sentence, size_t size);

/*
 * The look before serving, a second at most. false: what is wrong will not mend itself, and one sentence has been said
 * about it on stderr. A database that is not there yet is no such thing: true, with *seen false.
 */
bool database_may_serve(ctx *c, pg_pool *pool, bool *seen);

/* Waits until it is there, or c is done, and tells the log. */
void database_await(ctx *c, pg_pool *pool);

#endif
