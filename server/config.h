/*
 * config.h — what albumd is told by flags, environment and file.
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
	const char *database_url; /* "": libpq's own PG* environment and defaults */
	uint64_t pool_size;
	uint64_t workers;
	uint64_t queue_size;
	int64_t query_timeout;
	int64_t drain_timeout;
	bool allow_delay;
	uint64_t log_level;
	uint64_t log_format;
} config;

/* What the command line asks for. */
typedef enum config_action {
	CONFIG_SERVE,
	CONFIG_DONE,  /* --help, --version and the like were answered: exit 0 */
	CONFIG_WRONG, /* a line on stderr has said what is wrong: exit 2 */
} config_action;

/* Reads the settings: the command line over the environment over the defaults. Before the first thread. */
config_action config_read(config *c, int argc, char **argv);

#endif
