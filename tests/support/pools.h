/*
 * Pools for tests: on the database of this run, and visible in pg_stat_activity by a name of the test's own.
 */
#ifndef TESTS_POOLS_H
#define TESTS_POOLS_H

#include <pthread.h>

#include <tether/pg.h>

#include "activity.h"
#include "loops.h"

typedef struct test_pool {
	pg_pool *pool;
	activity *watcher;
	char application[32];
	/* What on_settled has told. */
	_Atomic(int) settled, kept;
	_Atomic(int64_t) stop_ns, settle_ns; /* of the last */
	_Atomic(unsigned) cancels_sent;
	const ctx_error *cause;
	ctx *query_ctx; /* retained */
} test_pool;

/* Opens one of `size` connections; options may be NULL, and conninfo in it: the run's database. Aborts on failure. */
test_pool *test_pool_open(size_t size, const pg_pool_options *options);
void test_pool_close(test_pool *t);

pg_pool_stats stats_of(const test_pool *t);

/* pg_error_kind_name, and "none" for NULL. */
const char *kind_of(const pg_error *error);
#define EXPECT_KIND(error, kind) cr_expect(eq(str, (char *)kind_of(error), kind))

/* Waits until so many callers stand in its queue. */
bool waiting_become(test_pool *t, size_t waiting);

/* Its backends: all of them, or those in a state, running a query (LIKE patterns; NULL: any). */
int backends(test_pool *t, const char *state, const char *query);
bool backends_become(test_pool *t, const char *state, const char *query, int count);

/* Waits until on_settled has been called `count` times, or until no connection is lent, cancelled or settling. */
bool settled_become(test_pool *t, int count);
bool pool_at_rest(test_pool *t);

/* The pid of the backend that serves a pinned connection, or some connection of the pool. -1 on failure. */
int64_t backend_of(pg_conn *session);
int64_t backend_of_pool(test_pool *t);

/* Runs a statement that must succeed, whose rows are of no interest. Aborts otherwise. */
void must_exec(test_pool *t, const char *sql);

/* A number from the first column of the first row; INT64_MIN on failure. Over the watcher: any state of the pool. */
int64_t ask_number(test_pool *t, const char *sql);

/* A query under a context of its own, on a thread of its own. */
typedef struct test_query {
	ctx *c;
	pg_pool *pool;
	const char *sql;
	pthread_t thread;
	/* Once it was joined. */
	pg_error error; /* kind 0: none */
	int64_t ended_at;
} test_query;

/* sql is borrowed. Aborts if there is no thread. test_query_join waits for its end; the caller frees it then. */
test_query *test_query_start(test_pool *t, const char *sql);
void test_query_join(test_query *q);

#endif
