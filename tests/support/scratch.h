/* A table of a test's own, in the one database that all tests share. */
#ifndef TESTS_SCRATCH_H
#define TESTS_SCRATCH_H

#include "pools.h"

typedef struct scratch {
	test_pool *t;
	char table[32];
} scratch;

/* Makes the table, over t, with columns as in CREATE TABLE; and drops it. They abort on failure, as do those below. */
void scratch_make(scratch *s, test_pool *t, const char *columns);
void scratch_drop(scratch *s);

/* sql with the table's name for each "@". Valid until eight more of these calls. */
const char *scratch_sql(const scratch *s, const char *sql);

/* Runs such a statement, over the pool. */
void scratch_run(const scratch *s, const char *sql);

/* How many rows it has, seen from outside of the pool. */
int64_t scratch_rows(const scratch *s);

#endif
