/*
 * config.h — what albumd is told by flags, environment and file, and what it does if not told.
 */
#ifndef ALBUMD_CONFIG_H
#define ALBUMD_CONFIG_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "log.h"

/* Strings live as long as the process. Durations are nanoseconds. */
typedef struct config {
	const char *listen;
	const char *admin_listen; /* NULL: off */
	const char *tls_cert;     /* "": plain HTTP, and then so are the other three */
	const char *tls_key;
	const char *tls_client_ca;
	bool tls_client_optional;
	const char *database_url; /* "": libpq's own PG* environment and defaults */
	uint64_t pool_size;
	uint64_t pool_min_idle, pool_max_idle;         /* the latter 0: no limit */
	int64_t pool_max_lifetime, pool_max_idle_time; /* 0: none */
	uint64_t statements;                           /* a pg_statements */
	uint64_t workers;
	uint64_t queue_size;
	int64_t query_timeout;
	int64_t request_timeout; /* 0: none */
	int64_t header_timeout, body_timeout, write_timeout, idle_timeout;
	uint64_t connections, address_connections, requests; /* address_connections: 0 is no limit */
	uint64_t head_size;                                  /* 0: the library's */
	uint64_t body_size;
	int64_t drain_timeout, drain_delay;
	bool share_port;
	int64_t slow_query;
	uint64_t trace_queries; /* an access_traced */
	bool allow_delay;
	bool allow_all;
	const char *cors_origin; /* "": none */
	const char *write_token; /* what the file holds; "": none */
	const char *admin_token;
	uint64_t log_level;
	uint64_t log_format;
	const char *file; /* NULL: none */
} config;

/* What the command line asks for. */
typedef enum config_action {
	CONFIG_SERVE,
	CONFIG_CHECK,       /* --check-config: say whether this would start */
	CONFIG_HEALTHCHECK, /* --healthcheck: ask the admin listener of one that runs */
	CONFIG_DONE,        /* --help, --version, --print-config were answered: exit 0 */
	CONFIG_WRONG,       /* a line on stderr has said what is wrong: exit 2 */
} config_action;

/*
 * Reads the settings: the command line over the environment over the file over the defaults. Again, to reload the
 * file, at any time; one thread at a time. argv has to stay.
 */
config_action config_read(config *c, int argc, char **argv);

/*
 * Calls `changed` for each setting that differs, by its name; `reloaded` is whether it is one that can change while
 * albumd serves.
 */
void config_compare(const config *before, const config *after,
                    void (*changed)(const char *name, bool reloaded));

#endif
