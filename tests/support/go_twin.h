/*
 * albumd's twin in Go (tests/bench/http_go), for the benchmarks that measure one beside the other. It needs golang-go
 * and golang-github-lib-pq-dev; for pgx golang-github-jackc-pgx-v4-dev.
 */
#ifndef TESTS_GO_TWIN_H
#define TESTS_GO_TWIN_H

#include "process.h"

typedef struct go_twin {
	const char *driver; /* as main.go has them */
	const char *database_url;
	const char *name; /* its application_name; NULL: none */
	int pool_size;
	const char *deadline; /* of a query, "5s"; NULL: that */
} go_twin;

/*
 * Builds it and blocks until it serves, on *port of 127.0.0.1. The caller ends it with process_stop. NULL, and says why
 * on standard output, where it cannot be had.
 */
process *go_twin_start(const go_twin *twin, int *port);

#endif
