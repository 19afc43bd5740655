/*
 * albumd under test, with eyes on PostgreSQL, its log and its metrics. Each has an application_name of its own, so
 * that tests which run at the same time over one database do not see each other's queries.
 */
#ifndef TESTS_SERVICE_H
#define TESTS_SERVICE_H

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

#include "activity.h"
#include "albumd.h"

typedef struct service {
	albumd *albumd;
	activity *activity;
	int port, admin_port;
	char application[32];
} service;

/*
 * Starts albumd with more flags, "--pool-size", "4", …, NULL; flags may be NULL. Blocks until it serves. Aborts
 * the test if that fails. The caller ends it with service_stop.
 */
service *service_start(const char *const flags[]);

/* The same on another database than the run's common one. */
service *service_start_on(const char *url, const char *const flags[]);

/* SIGTERM, and the exit status. */
int service_stop(service *s);

/* The process id of albumd. */
pid_t service_pid(const service *s);

/* How many of its queries PostgreSQL runs now; -1 if that cannot be asked. */
int service_running(const service *s);

/* Waits until it runs so many. */
bool service_runs(const service *s, int count, int timeout_ms);

/* The milliseconds from since_ns (of service_now) until PostgreSQL ran none of its queries; -1: not in timeout_ms. */
double service_stopped_ms(const service *s, int64_t since_ns, int timeout_ms);
int64_t service_now(void);

/*
 * Whether what must be so when the client of a request for target has left at since_ns is so: its query has stopped, the
 * log says client_disconnect, and its connection, that backend's, was kept. The milliseconds until the query had
 * stopped; or -1, with what is wrong on stderr.
 */
double service_cancelled_ms(const service *s, const char *target, int64_t since_ns, pid_t backend);

/* The process id of the one PostgreSQL backend that it has; -1 if it has none, or more. */
pid_t service_backend(const service *s);

/* What /metrics says now, by name and labels as printed: "db_pool_waiting". -1 if it says nothing of that. */
double service_metric(const service *s, const char *name);

/* Waits until it says that. */
bool service_metric_becomes(const service *s, const char *name, double value, int timeout_ms);

/* Waits until it says less. */
bool service_metric_falls(const service *s, const char *name, double value, int timeout_ms);

/*
 * Has a pool of that size make all its connections, which takes long where the server's processes are slow to start.
 * Whether they are there, and idle.
 */
bool service_fill_pool(const service *s, int size);

/* The line of the log about the request for that target, waited for; NULL if none comes. The caller decrefs it. */
json_t *service_log(const service *s, const char *target, int timeout_ms);

/* Whether it tells that status, reason and fate of a cancelled query's connection ("kept"; NULL: none was cancelled). */
bool service_line_is(json_t *line, int status, const char *reason, const char *connection);

/* The line as text, valid until the next call. */
const char *service_line(json_t *line);

/* How many lines of the log have that reason, any if NULL. */
int service_log_count(const service *s, const char *reason);

#endif
