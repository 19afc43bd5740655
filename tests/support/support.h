/*
 * What tests of every layer share: time, waiting, and where things are. Process control is in process.h,
 * PostgreSQLs of one's own in private_db.h, what PostgreSQL is doing in activity.h, the service in albumd.h.
 *
 * None of it uses Criterion, so that benchmarks can use it too: calls report failure by their result, having
 * said why on stderr.
 */
#ifndef TESTS_SUPPORT_H
#define TESTS_SUPPORT_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* CLOCK_MONOTONIC in milliseconds. */
int64_t now_ms(void);

/*
 * Asks `condition` every other millisecond until it says yes (true) or timeout_ms have passed (false). The way
 * to wait for a state; nothing in a test sleeps. The timeout is an outer bound, reached only when the test
 * fails, and is lengthened by support_patience().
 */
bool eventually(bool (*condition)(void *arg), void *arg, int timeout_ms);

/* The same until *counter is `value` at least. */
bool eventually_counts(atomic_int *counter, int value, int timeout_ms);

/*
 * How many times longer than a plain build things may take here: 1, or more under a sanitizer or valgrind.
 * For bounds that the test chose, not for figures that are promised to users.
 */
int support_patience(void);

/* The database of this test run, loaded with schema and seed rows. Never NULL: without one the test aborts. */
const char *support_database_url(void);

/*
 * The absolute path of a file of the build under test ("albumd", "examples/ctx_timeout") or of the source tree
 * ("sql/local-db"). Stays valid for seven more of these calls.
 */
const char *support_built(const char *name);
const char *support_source(const char *name);

/* The memory that this process has now, and the most that it has ever had, in KiB. */
long support_resident_kib(void);
long support_peak_kib(void);

/* Sorts the values: the middle one. */
double support_median(double values[], int count);

/* How many files this process has open, and how many threads it has. -1 on failure. */
int support_open_files(void);
int support_threads(void);

/* before, then what so many times, then after: a string that the caller frees. NULL: out of memory. */
char *support_repeat(const char *before, const char *what, size_t times, const char *after);

/* A socket that listens on a free port of 127.0.0.1, which the caller closes, and that port. -1 on failure. */
int support_listen(int *port);

/* A TCP port on 127.0.0.1 that was free a moment ago, or -1. */
int support_free_port(void);

#endif
