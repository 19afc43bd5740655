/* A PgBouncer in transaction mode, between a test and a PostgreSQL. */
#ifndef TESTS_PGBOUNCER_H
#define TESTS_PGBOUNCER_H

typedef struct pgbouncer pgbouncer;

/* In front of the server of a postgresql:// URL that names host, port, user, password and database. Aborts on failure. */
pgbouncer *pgbouncer_start(const char *server_url);

/* Lives as long as it does. */
const char *pgbouncer_url(const pgbouncer *b);

void pgbouncer_stop(pgbouncer *b);

#endif
