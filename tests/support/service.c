#include "service.h"
#include "client.h"
#include "support.h"

#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum { ADMIN_TIMEOUT_MS = 10000, START_TIMEOUT_MS = 20000 };

service *service_start(const char *const flags[])
{
	return service_start_on(support_database_url(), flags);
}

service *service_start_on(const char *url, const char *const flags[])
{
	static int started;
	service *s = calloc(1, sizeof *s);
	char *own_url = NULL;

	if (!s)
		abort();
	snprintf(s->application, sizeof s->application, "albumd-%d-%d", (int)getpid(), ++started);
	if (asprintf(&own_url, "%s%sapplication_name=%s", url, strchr(url, '?') ? "&" : "?", s->application) <
	    0)
		abort();
	s->albumd = albumd_start(&(albumd_options){.database_url = own_url, .args = flags});
	s->activity = activity_open(url);
	free(own_url);
	/* albumd's own first look at the database must not be taken for a request's query. */
	if (!s->albumd || !s->activity ||
	    !process_wait_for(s->albumd->process, "the database is reachable", START_TIMEOUT_MS)) {
		fprintf(stderr, "service: albumd or its database could not be started\n");
		abort();
	}
	s->port = s->albumd->port;
	s->admin_port = s->albumd->admin_port;
	return s;
}

int service_stop(service *s)
{
	int status = albumd_stop(s->albumd);

	activity_close(s->activity);
	free(s);
	return status;
}

pid_t service_pid(const service *s)
{
	return process_pid(s->albumd->process);
}

/* ---- PostgreSQL ------------------------------------------------------------------------------------- */

static activity_of own_queries(const service *s)
{
	return (activity_of){.application = s->application, .state = "active"};
}

int service_running(const service *s)
{
	return activity_count(s->activity, own_queries(s));
}

bool service_runs(const service *s, int count, int timeout_ms)
{
	return activity_becomes(s->activity, own_queries(s), count, timeout_ms);
}

int64_t service_now(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

double service_stopped_ms(const service *s, int64_t since_ns, int timeout_ms)
{
	/* No pause between two looks: what is measured is of the order of one. */
	while (service_running(s) != 0) {
		if (service_now() - since_ns > (int64_t)timeout_ms * 1000000 * support_patience())
			return -1;
	}
	return (double)(service_now() - since_ns) / 1e6;
}

pid_t service_backend(const service *s)
{
	pid_t pids[2];

	return activity_pids(s->activity, (activity_of){.application = s->application}, pids, 2) == 1
	               ? pids[0]
	               : -1;
}

double service_cancelled_ms(const service *s, const char *target, int64_t since_ns, pid_t backend)
{
	double stopped = service_stopped_ms(s, since_ns, 10000);
	json_t *line = service_log(s, target, 5000);
	const char *wrong = NULL;

	if (stopped < 0)
		wrong = "the query goes on";
	else if (!line || !service_line_is(line, 499, "client_disconnect", "kept"))
		wrong = "the log does not say so";
	else if (service_backend(s) != backend)
		wrong = "the connection was not kept";
	fprintf(stderr, "%s: stopped %.2f ms after the client had left; %s\n", target, stopped,
	        line ? service_line(line) : "no line in the log");
	if (wrong)
		fprintf(stderr, "%s: %s\n", target, wrong);
	json_decref(line);
	return wrong ? -1 : stopped;
}

/* ---- Metrics ---------------------------------------------------------------------------------------- */

double service_metric(const service *s, const char *name)
{
	size_t length = strlen(name);
	double value = -1;
	reply r;

	if (client_get(s->admin_port, "/metrics", &r, ADMIN_TIMEOUT_MS) == 200) {
		for (const char *line = r.body; line; line = strchr(line, '\n'), line += line != NULL) {
			if (strncmp(line, name, length) == 0 && line[length] == ' ') {
				value = strtod(line + length, NULL);
				break;
			}
		}
	}
	reply_free(&r);
	return value;
}

struct expected_metric {
	const service *s;
	const char *name;
	double value;
};

static bool metric_is(void *arg)
{
	const struct expected_metric *e = arg;

	return service_metric(e->s, e->name) == e->value;
}

bool service_metric_becomes(const service *s, const char *name, double value, int timeout_ms)
{
	return eventually(metric_is, &(struct expected_metric){s, name, value}, timeout_ms);
}

static bool metric_is_below(void *arg)
{
	struct expected_metric *e = arg;

	return service_metric(e->s, e->name) < e->value;
}

bool service_metric_falls(const service *s, const char *name, double value, int timeout_ms)
{
	return eventually(metric_is_below, &(struct expected_metric){s, name, value}, timeout_ms);
}

/* Asks for so many slow pages at once. Whether all came. */
static bool ask_at_once(const service *s, int count)
{
	client **clients = calloc((size_t)count, sizeof(client *));
	bool answered = clients;

	for (int i = 0; answered && i < count; i++) {
		clients[i] = client_connect(s->port);
		answered = clients[i] && client_send_get(clients[i], "/albums?delay=500ms&limit=1");
	}
	for (int i = 0; clients && i < count; i++) {
		reply r = {0};

		answered = answered && client_receive(clients[i], &r, START_TIMEOUT_MS);
		reply_free(&r);
		client_close(clients[i]);
	}
	free(clients);
	return answered;
}

bool service_fill_pool(const service *s, int size)
{
	for (int round = 0; round < 20 && service_metric(s, "db_pool_connects_total") < size; round++)
		if (!ask_at_once(s, size))
			return false;
	return service_metric_becomes(s, "db_pool_connections{state=\"idle\"}", size, START_TIMEOUT_MS);
}

/* ---- The log ---------------------------------------------------------------------------------------- */

/* Calls visit for each line of the log that is JSON, until it returns false. */
static void each_line(const service *s, bool (*visit)(json_t *line, void *arg), void *arg)
{
	char *output = process_output(s->albumd->process);
	char *rest = output;
	char *text;
	bool more = true;

	/* The last line may be in the middle of being written. */
	while (more && rest && strchr(rest, '\n') && (text = strsep(&rest, "\n"))) {
		json_t *line = json_loads(text, 0, NULL);

		if (line)
			more = visit(line, arg);
		json_decref(line);
	}
	free(output);
}

struct wanted_line {
	const service *s;
	const char *target;
	json_t *found;
};

static bool is_wanted(json_t *line, void *arg)
{
	struct wanted_line *w = arg;
	const char *path = json_string_value(json_object_get(line, "path"));

	if (path && strcmp(path, w->target) == 0)
		w->found = json_incref(line);
	return !w->found;
}

static bool line_is_there(void *arg)
{
	struct wanted_line *w = arg;

	each_line(w->s, is_wanted, w);
	return w->found;
}

json_t *service_log(const service *s, const char *target, int timeout_ms)
{
	struct wanted_line wanted = {.s = s, .target = target};

	eventually(line_is_there, &wanted, timeout_ms);
	return wanted.found;
}

static bool member_is(json_t *line, const char *name, const char *expected)
{
	const char *value = json_string_value(json_object_get(line, name));

	return expected ? value && strcmp(value, expected) == 0 : !value;
}

bool service_line_is(json_t *line, int status, const char *reason, const char *connection)
{
	return json_integer_value(json_object_get(line, "status")) == status &&
	       member_is(line, "reason", reason) && member_is(line, "connection", connection);
}

const char *service_line(json_t *line)
{
	static char text[1024];

	text[json_dumpb(line, text, sizeof text - 1, JSON_ENSURE_ASCII) % sizeof text] = '\0';
	return text;
}

struct counted_lines {
	const char *reason;
	int count;
};

static bool count_line(json_t *line, void *arg)
{
	struct counted_lines *c = arg;
	const char *reason = json_string_value(json_object_get(line, "reason"));

	c->count +=
		json_object_get(line, "path") && (!c->reason || (reason && strcmp(reason, c->reason) == 0));
	return true;
}

int service_log_count(const service *s, const char *reason)
{
	struct counted_lines counted = {.reason = reason};

	each_line(s, count_line, &counted);
	return counted.count;
}
