/* build/albumd, started for a test on free ports of 127.0.0.1. */
#ifndef TESTS_ALBUMD_H
#define TESTS_ALBUMD_H

#include "process.h"

typedef struct albumd {
	process *process; /* process_output() is its log so far */
	int port;
	int admin_port;
} albumd;

typedef struct albumd_options {
	const char *database_url; /* NULL: the run's common database */
	const char *const *args;  /* more flags, "--pool-size", "4", …, NULL; or NULL for none */
	const char *const *env;   /* as for process_start */
} albumd_options;

/*
 * Blocks until it serves. It has --allow-delay. `options` may be NULL. The caller ends it with albumd_stop.
 * NULL on failure, with what it said on stderr.
 */
albumd *albumd_start(const albumd_options *options);

/* SIGTERM, which drains, and SIGKILL after half a minute. Its exit status (process_wait). NULL is allowed (-1). */
int albumd_stop(albumd *a);

#endif
