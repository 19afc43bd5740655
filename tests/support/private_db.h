/*
 * A PostgreSQL of a test's own, made in about a second by sql/local-db, for tests that stop it, fill it or need
 * other settings than the run's common one (support_database_url). It is gone when the test's process is.
 */
#ifndef TESTS_PRIVATE_DB_H
#define TESTS_PRIVATE_DB_H

#include <stdbool.h>

typedef struct private_db private_db;

typedef struct private_db_options {
	const char *const *settings;         /* "max_connections=50", …, NULL; or NULL for none */
	bool tcp;                            /* listen on 127.0.0.1 too */
	bool tls;                            /* with tcp: speak TLS there; the certificate signs itself */
	bool empty;                          /* no schema, no rows */
	const struct private_db *standby_of; /* a streaming standby of that one, with its rows and password */
} private_db_options;

/* Blocks until it serves. `options` may be NULL. The caller gives it back with private_db_stop. NULL on failure. */
private_db *private_db_start(const private_db_options *options);

/* Over the Unix socket; as superuser. Lives as long as db. */
const char *private_db_url(const private_db *db);

/* Over TCP, with its password; NULL without .tcp. Lives as long as db. */
const char *private_db_tcp_url(const private_db *db);

/* The directory it was made in; data/log is the server's log. */
const char *private_db_dir(const private_db *db);

/* An outage: the server stops, breaking every connection; `immediate`: as in a crash. Blocks until it is down. */
bool private_db_halt(private_db *db, bool immediate);

/* The outage's end. `setting`, "name=value", is set from now on; NULL for none. Blocks until it serves. */
bool private_db_resume(private_db *db, const char *setting);

/* A standby becomes a primary. Blocks until it is one. */
bool private_db_promote(private_db *db);

/* Stops it and removes all of it. NULL is allowed. */
void private_db_stop(private_db *db);

#endif
