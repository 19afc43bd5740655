/* A PgBouncer in transaction mode, between a test and a PostgreSQL. */
#ifndef TESTS_PGBOUNCER_H
#define TESTS_PGBOUNCER_H

#include <stdbool.h>

typedef struct pgbouncer pgbouncer;

/* In front of the server of a postgresql:// URL that names host, port, user, password and database. Aborts on failure. */
pgbouncer *pgbouncer_start(const char *server_url);

/* The same with more lines of configuration, such as "max_prepared_statements = 100\n". */
pgbouncer *pgbouncer_start_with(const char *server_url, const char *more);

/* Whether it is PgBouncer 1.21 or newer, which can keep track of prepared statements. */
bool pgbouncer_knows_statements(void);

/* Lives as long as it does. */
const char *pgbouncer_url(const pgbouncer *b);

void pgbouncer_stop(pgbouncer *b);

#endif
