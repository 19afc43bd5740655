#include "metrics.h"

#include <dirent.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "log.h"

/* ---- What is counted -------------------------------------------------------------------------------- */

enum { ROUTES = 24, OTHER_ROUTE = ROUTES, STATUS_FIRST = 100, STATUSES = 500, LONGEST = 14 };

/* Labels take few values, whatever clients send: a method that is none of these is "other". */
static const char *const methods[] = {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "other"};
enum { METHODS = sizeof(methods) / sizeof(*methods), OTHER_METHOD = METHODS - 1 };

typedef atomic_uint_least64_t counter;

typedef struct histogram {
	counter buckets[LONGEST + 1]; /* the last: longer than all bounds */
	counter sum_ns;
} histogram;

/* Upper bounds in nanoseconds: from the fastest answer to the longest deadline. */
static const int64_t request_bounds[LONGEST] = {
	500000,    1000000,   2500000,   5000000,    10000000,   25000000,   50000000,
	100000000, 250000000, 500000000, 1000000000, 2500000000, 5000000000, 10000000000,
};
static const int64_t cancel_bounds[LONGEST] = {
	100000,   250000,   500000,    1000000,   2000000,   5000000,    10000000,
	20000000, 50000000, 100000000, 250000000, 500000000, 1000000000, 2000000000,
};

struct metrics {
	const char *routes[ROUTES];
	size_t route_count;
	counter requests[ROUTES + 1][METHODS][STATUSES];
	histogram durations[ROUTES + 1];
	counter failures[REASONS];
	counter body_bytes;
	counter cancels[REASONS][2]; /* by reason and whether the connection was kept */
	histogram queue_durations, query_durations, cancel_durations;
};

static void count(counter *c, uint64_t n)
{
	atomic_fetch_add_explicit(c, n, memory_order_relaxed);
}

static uint64_t value(const counter *c)
{
	return atomic_load_explicit(c, memory_order_relaxed);
}

static void observe(histogram *h, const int64_t bounds[LONGEST], int64_t ns)
{
	int bucket = 0;
	while (bucket < LONGEST && ns > bounds[bucket])
		bucket++;
	count(&h->buckets[bucket], 1);
	count(&h->sum_ns, (uint64_t)(ns > 0 ? ns : 0));
}

metrics *metrics_new(void)
{
	return calloc(1, sizeof(metrics));
}

void metrics_free(metrics *m)
{
	free(m);
}

void metrics_add_route(metrics *m, const char *pattern)
{
	if (m->route_count < ROUTES)
		m->routes[m->route_count++] = pattern;
}

static size_t route_index(const metrics *m, const char *pattern)
{
	for (size_t i = 0; pattern && i < m->route_count; i++) {
		if (strcmp(m->routes[i], pattern) == 0)
			return i;
	}
	return OTHER_ROUTE;
}

static size_t method_index(const char *method)
{
	size_t i = 0;
	while (i < OTHER_METHOD && strcmp(methods[i], method) != 0)
		i++;
	return i;
}

void metrics_request(metrics *m, const http_request *request, const http_outcome *outcome, reason why)
{
	size_t route = route_index(m, http_request_route(request));
	size_t method = method_index(http_request_method(request));
	int status = outcome->status - STATUS_FIRST;
	if (status >= 0 && status < STATUSES)
		count(&m->requests[route][method][status], 1);
	observe(&m->durations[route], request_bounds, outcome->duration_ns);
	if (why)
		count(&m->failures[why], 1);
	count(&m->body_bytes, outcome->body_bytes);
}

void metrics_queued(metrics *m, int64_t ns)
{
	observe(&m->queue_durations, request_bounds, ns);
}

void metrics_queried(metrics *m, int64_t ns)
{
	observe(&m->query_durations, request_bounds, ns);
}

void metrics_settled(metrics *m, const pg_settled *settled)
{
	count(&m->cancels[reason_of_cause(settled->cause)][settled->kept], 1);
	if (settled->stop_ns >= 0)
		observe(&m->cancel_durations, cancel_bounds, settled->stop_ns);
}

/* ---- Writing ---------------------------------------------------------------------------------------- */

/* The two formats differ in little; OpenMetrics names a counter's family without its _total. */
typedef struct exposition {
	text *text;
	metrics_format format;
} exposition;

static void head(exposition *e, const char *name, const char *type, const char *help)
{
	int length = (int)strlen(name);
	if (e->format == METRICS_OPENMETRICS && strcmp(type, "counter") == 0)
		length -= (int)strlen("_total");
	if (e->format == METRICS_OPENMETRICS && strcmp(type, "info") == 0)
		length -= (int)strlen("_info");
	if (e->format == METRICS_PROMETHEUS && strcmp(type, "info") == 0)
		type = "gauge";
	text_format(e->text, "# HELP %.*s %s\n# TYPE %.*s %s\n", length, name, help, length, name, type);
}

static void single(exposition *e, const char *name, const char *type, const char *help, double number)
{
	head(e, name, type, help);
	text_format(e->text, "%s %.15g\n", name, number);
}

/* labels: "" or `name="value",` */
static void write_histogram(exposition *e, const char *name, const char *labels, const histogram *h,
                            const int64_t bounds[LONGEST])
{
	uint64_t total = 0;
	for (int i = 0; i <= LONGEST; i++) {
		total += value(&h->buckets[i]);
		if (i < LONGEST)
			text_format(e->text, "%s_bucket{%sle=\"%g%s\"} %llu\n", name, labels,
			            (double)bounds[i] / 1e9, bounds[i] % 1000000000 ? "" : ".0",
			            (unsigned long long)total);
		else
			text_format(e->text, "%s_bucket{%sle=\"+Inf\"} %llu\n", name, labels,
			            (unsigned long long)total);
	}
	size_t length = strlen(labels);
	char braces[128] = "";
	if (length)
		snprintf(braces, sizeof(braces), "{%.*s}", (int)length - 1, labels);
	text_format(e->text, "%s_sum%s %.9f\n%s_count%s %llu\n", name, braces,
	            (double)value(&h->sum_ns) / 1e9, name, braces, (unsigned long long)total);
}

/* The path of a pattern, without its method. */
static const char *route_label(const metrics *m, size_t route)
{
	if (route >= m->route_count)
		return "other";
	const char *path = strchr(m->routes[route], '/');
	return path ? path : m->routes[route];
}

static void write_requests(const metrics *m, exposition *e)
{
	head(e, "http_requests_total", "counter", "Requests answered, or left (status 499).");
	for (size_t route = 0; route <= ROUTES; route++) {
		for (size_t method = 0; method < METHODS; method++) {
			for (size_t status = 0; status < STATUSES; status++) {
				uint64_t n = value(&m->requests[route][method][status]);
				if (n)
					text_format(e->text,
					            "http_requests_total{route=\"%s\",method=\"%s\",status="
					            "\"%zu\"} %llu\n",
					            route_label(m, route), methods[method],
					            status + STATUS_FIRST, (unsigned long long)n);
			}
		}
	}
	head(e, "http_request_failures_total", "counter", "Requests not answered as asked, by reason.");
	for (int why = REASON_NONE + 1; why < REASONS; why++)
		text_format(e->text, "http_request_failures_total{reason=\"%s\"} %llu\n",
		            reason_answers[why].name, (unsigned long long)value(&m->failures[why]));
	head(e, "http_request_duration_seconds", "histogram",
	     "From a request's first byte to its answer's last.");
	for (size_t route = 0; route <= ROUTES; route++) {
		if (route >= m->route_count && route != OTHER_ROUTE)
			continue;
		char labels[96];
		const char *pattern = route < m->route_count ? m->routes[route] : "";
		snprintf(labels, sizeof(labels), "route=\"%s\",method=\"%.*s\",", route_label(m, route),
		         pattern[0] ? (int)strcspn(pattern, " ") : 5, pattern[0] ? pattern : "other");
		write_histogram(e, "http_request_duration_seconds", labels, &m->durations[route],
		                request_bounds);
	}
	single(e, "http_response_body_bytes_total", "counter", "Bytes of response bodies sent.",
	       (double)value(&m->body_bytes));
}

static void write_server(const http_server *server, exposition *e)
{
	http_server_stats stats;
	http_server_stats_get(server, &stats);
	single(e, "http_requests_in_flight", "gauge", "Requests being answered.", (double)stats.requests);
	single(e, "http_open_connections", "gauge", "Open client connections.", (double)stats.connections);
	single(e, "http_connections_total", "counter", "Client connections accepted.",
	       (double)stats.connections_total);
	single(e, "http_connections_refused_total", "counter", "Connections past the limit, answered 503.",
	       (double)stats.connections_refused);
	single(e, "http_address_refused_total", "counter", "Of these, past the limit of their address.",
	       (double)stats.address_refused);
	single(e, "http_requests_refused_total", "counter", "Requests past the limit, answered 503.",
	       (double)stats.requests_refused);
	single(e, "http_handlers", "gauge", "Handlers that run.", (double)stats.handlers);
	single(e, "http_client_disconnects_total", "counter", "Requests whose client left before the answer.",
	       (double)stats.disconnects_total);
	single(e, "http_draining", "gauge", "1 while the server drains.", stats.draining);
	single(e, "albumd_fibers", "gauge", "Fibers alive.", (double)stats.fibers);
	single(e, "albumd_fiber_stacks", "gauge", "Fiber stacks mapped, in use or kept.",
	       (double)stats.stacks);
	single(e, "albumd_loop_lag_seconds", "gauge",
	       "How late the event loops' timers were, the latest of them.", (double)stats.lag_ns / 1e9);
}

static void write_pool(const pg_pool *pool, exposition *e)
{
	pg_pool_stats stats;
	pg_pool_stats_get(pool, &stats);
	single(e, "db_pool_size", "gauge", "Database connections at most.", (double)stats.size);
	head(e, "db_pool_connections", "gauge", "Database connections by state.");
	const struct {
		const char *state;
		size_t count;
	} states[] = {{"connecting", stats.connecting},
	              {"idle", stats.idle},
	              {"busy", stats.busy},
	              {"canceling", stats.canceling},
	              {"settling", stats.settling}};
	for (size_t i = 0; i < sizeof(states) / sizeof(*states); i++)
		text_format(e->text, "db_pool_connections{state=\"%s\"} %zu\n", states[i].state,
		            states[i].count);
	single(e, "db_pool_waiting", "gauge", "Requests that wait for a connection.", (double)stats.waiting);
	single(e, "db_pool_acquires_total", "counter", "Connections lent.", (double)stats.acquires);
	single(e, "db_pool_waits_total", "counter", "Requests that had to wait for a connection.",
	       (double)stats.waits);
	single(e, "db_pool_wait_seconds_total", "counter", "Time spent waiting for connections.",
	       (double)stats.wait_ns / 1e9);
	single(e, "db_pool_acquires_canceled_total", "counter", "Requests that left while they waited.",
	       (double)stats.acquires_canceled);
	single(e, "db_pool_saturated_total", "counter", "Requests turned away from a full queue.",
	       (double)stats.saturated);
	single(e, "db_pool_connects_total", "counter", "Connections made.", (double)stats.connects);
	single(e, "db_pool_connect_failures_total", "counter", "Connection attempts that failed.",
	       (double)stats.connect_failures);
	head(e, "db_pool_closed_total", "counter", "Connections closed, by the limit that did it.");
	text_format(e->text,
	            "db_pool_closed_total{limit=\"max_idle\"} "
	            "%llu\ndb_pool_closed_total{limit=\"max_idle_time\"} "
	            "%llu\ndb_pool_closed_total{limit=\"max_lifetime\"} %llu\n",
	            (unsigned long long)stats.closed_max_idle, (unsigned long long)stats.closed_idle_time,
	            (unsigned long long)stats.closed_lifetime);
	single(e, "db_cancel_requests_total", "counter", "Cancel requests sent to PostgreSQL.",
	       (double)stats.cancels_sent);
	single(e, "db_cancel_batches_total", "counter", "Statements that sent several of them together.",
	       (double)stats.cancel_batches);
	single(e, "db_pool_lost_total", "counter", "Connections that broke.", (double)stats.lost);
}

static void write_queries(const metrics *m, exposition *e)
{
	head(e, "db_query_queue_duration_seconds", "histogram",
	     "How long a query waited for its connection.");
	write_histogram(e, "db_query_queue_duration_seconds", "", &m->queue_durations, request_bounds);
	head(e, "db_query_duration_seconds", "histogram",
	     "How long a query ran, from its connection to its last row.");
	write_histogram(e, "db_query_duration_seconds", "", &m->query_durations, request_bounds);
}

static void write_cancels(const metrics *m, exposition *e)
{
	head(e, "db_query_cancel_total", "counter",
	     "Queries cancelled, by reason, and what became of the connection.");
	for (int why = REASON_NONE; why < REASONS; why++) {
		for (int kept = 0; kept < 2; kept++) {
			uint64_t n = value(&m->cancels[why][kept]);
			if (n || why == REASON_CLIENT_DISCONNECT || why == REASON_DEADLINE ||
			    why == REASON_SHUTDOWN)
				text_format(e->text,
				            "db_query_cancel_total{reason=\"%s\",outcome=\"%s\"} %llu\n",
				            why ? reason_answers[why].name : "unread",
				            kept ? "kept" : "closed", (unsigned long long)n);
		}
	}
	head(e, "db_query_cancel_duration_seconds", "histogram",
	     "From the end of a query's context until PostgreSQL had stopped it.");
	write_histogram(e, "db_query_cancel_duration_seconds", "", &m->cancel_durations, cancel_bounds);
}

static size_t open_files(void)
{
	size_t files = 0;
	DIR *dir = opendir("/proc/self/fd");
	while (dir && readdir(dir))
		files++;
	if (dir)
		closedir(dir);
	return files > 3 ? files - 3 : 0; /* ".", ".." and dir's own */
}

/* The numbers of /proc/self/stat from its third field, the state, on: numbers[n] is field n + 3 of proc(5). */
static bool read_stat(unsigned long long numbers[], size_t count)
{
	char line[1024];
	FILE *stat = fopen("/proc/self/stat", "re");
	size_t size = stat ? fread(line, 1, sizeof(line) - 1, stat) : 0;
	if (stat)
		fclose(stat);
	line[size] = '\0';
	/* Counted from the end of the name, which may hold anything. */
	char *at = strrchr(line, ')');
	if (!at || strlen(at) < 3)
		return false;
	at += 3; /* the state is a letter */
	numbers[0] = 0;
	for (size_t i = 1; i < count; i++)
		numbers[i] = strtoull(at, &at, 10);
	return true;
}

static void write_process(exposition *e)
{
	enum { USER = 14 - 3, SYSTEM, THREADS = 20 - 3, START = 22 - 3, RESIDENT = 24 - 3, FIELDS };
	unsigned long long stat[FIELDS];
	if (read_stat(stat, FIELDS)) {
		double hz = (double)sysconf(_SC_CLK_TCK);
		struct timespec boot, now;
		clock_gettime(CLOCK_BOOTTIME, &boot);
		clock_gettime(CLOCK_REALTIME, &now);
		single(e, "process_cpu_seconds_total", "counter", "CPU time.",
		       (double)(stat[USER] + stat[SYSTEM]) / hz);
		single(e, "process_resident_memory_bytes", "gauge", "Resident memory.",
		       (double)stat[RESIDENT] * (double)sysconf(_SC_PAGESIZE));
		single(e, "process_threads", "gauge", "Threads.", (double)stat[THREADS]);
		single(e, "process_start_time_seconds", "gauge", "When the process started.",
		       (double)(now.tv_sec - boot.tv_sec) + (double)stat[START] / hz);
	}
	single(e, "process_open_fds", "gauge", "Open file descriptors.", (double)open_files());
	single(e, "process_max_fds", "gauge", "Open file descriptors at most.",
	       (double)sysconf(_SC_OPEN_MAX));
	single(e, "log_lines_dropped_total", "counter", "Log lines that nobody read in time.",
	       (double)log_dropped());
	head(e, "albumd_build_info", "info", "The version.");
	text_string(e->text, "albumd_build_info{version=\"" TETHER_VERSION "\"} 1\n");
}

void metrics_write(const metrics *m, const http_server *server, const pg_pool *pool, metrics_format format,
                   text *t)
{
	exposition e = {.text = t, .format = format};
	write_requests(m, &e);
	write_server(server, &e);
	write_pool(pool, &e);
	write_queries(m, &e);
	write_cancels(m, &e);
	write_process(&e);
	if (format == METRICS_OPENMETRICS)
		text_string(t, "# EOF\n");
}
