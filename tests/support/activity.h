/*
 * What PostgreSQL is doing, watched over a connection of its own: pg_stat_activity, for waiting until a query
 * runs, or has stopped. Watch with eventually() or activity_becomes(); nothing here sleeps.
 */
#ifndef TESTS_ACTIVITY_H
#define TESTS_ACTIVITY_H

#include <stdbool.h>
#include <stddef.h>
#include <sys/types.h>

typedef struct activity activity;

/* Which client backends: LIKE patterns on pg_stat_activity's columns; NULL for any. The watcher never counts. */
typedef struct activity_of {
	const char *application; /* application_name, "albumd%" */
	const char *state;       /* "active", "idle", "idle in transaction%" */
	const char *query;       /* "%pg_sleep%" */
} activity_of;

/* Connects to `url`; blocks. The caller gives it back with activity_close. NULL on failure. */
activity *activity_open(const char *url);

/* NULL is allowed. */
void activity_close(activity *a);

/* How many there are, or -1 when the server cannot be asked. */
int activity_count(activity *a, activity_of of);

/* Their process ids, in ascending order, at most `size` of them. Returns how many, or -1. */
int activity_pids(activity *a, activity_of of, pid_t pids[], int size);

/* Waits until there are exactly `count`. False after timeout_ms. */
bool activity_becomes(activity *a, activity_of of, int count, int timeout_ms);

/* Runs any SQL and gives the first row's first value as a string that the caller frees; NULL if there is none. */
char *activity_sql(activity *a, const char *sql);

#endif
