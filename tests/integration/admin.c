/* The admin listener and the log: what operators see. */
#include <criterion/criterion.h>
#include <criterion/new/assert.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "client.h"
#include "service.h"
#include "support.h"

enum { TIMEOUT_MS = 10000 };

Test(admin, lives_and_is_ready, .timeout = 60)
{
	service *s = service_start(NULL);
	reply r;

	cr_expect(eq(int, client_get(s->admin_port, "/livez", &r, TIMEOUT_MS), 200));
	cr_expect(eq(str, r.body, "ok\n"));
	reply_free(&r);
	cr_expect(eq(int, client_get(s->admin_port, "/readyz", NULL, TIMEOUT_MS), 200));
	cr_expect(eq(int, client_get(s->port, "/metrics", NULL, TIMEOUT_MS), 404), "not where the public is");
	service_stop(s);
}

Test(admin, is_ready_when_every_connection_is_busy, .timeout = 60)
{
	service *s = service_start((const char *const[]){"--pool-size", "1", NULL});
	client *c = client_connect(s->port);

	cr_assert(client_send_get(c, "/albums?delay=4s"));
	cr_assert(service_runs(s, 1, TIMEOUT_MS));
	cr_expect(eq(int, client_get(s->admin_port, "/readyz", NULL, TIMEOUT_MS), 200));
	client_close(c);
	service_stop(s);
}

Test(admin, counts_what_happened, .timeout = 60)
{
	service *s = service_start((const char *const[]){"--query-timeout", "2s", NULL});
	client *c;

	client_get(s->port, "/albums/1", NULL, TIMEOUT_MS);
	client_get(s->port, "/albums/2", NULL, TIMEOUT_MS);
	client_get(s->port, "/albums/nothing", NULL, TIMEOUT_MS);
	client_get(s->port, "/nothing", NULL, TIMEOUT_MS);
	client_get(s->port, "/albums?delay=10s", NULL, TIMEOUT_MS);
	cr_assert(service_runs(s, 0, TIMEOUT_MS), "the 504 comes before PostgreSQL has stopped");
	c = client_connect(s->port);
	cr_assert(client_send_get(c, "/albums?delay=10s"));
	cr_assert(service_runs(s, 1, TIMEOUT_MS));
	client_close(c);

	cr_expect(service_metric_becomes(
		s, "http_requests_total{route=\"/albums\",method=\"GET\",status=\"499\"}", 1, TIMEOUT_MS));
	cr_expect(service_metric_becomes(
		s, "db_query_cancel_total{reason=\"client_disconnect\",outcome=\"kept\"}", 1, TIMEOUT_MS));
	cr_expect(service_metric_becomes(s, "db_query_cancel_total{reason=\"deadline\",outcome=\"kept\"}", 1,
	                                 TIMEOUT_MS));
	static const struct {
		const char *name;
		double value;
	} expected[] = {
		{"http_requests_total{route=\"/albums/{id}\",method=\"GET\",status=\"200\"}", 2},
		{"http_requests_total{route=\"/albums/{id}\",method=\"GET\",status=\"404\"}", 1},
		{"http_requests_total{route=\"other\",method=\"GET\",status=\"404\"}", 1},
		{"http_requests_total{route=\"/albums\",method=\"GET\",status=\"504\"}", 1},
		{"http_request_failures_total{reason=\"deadline\"}", 1},
		{"http_request_failures_total{reason=\"client_disconnect\"}", 1},
		{"http_request_duration_seconds_count{route=\"/albums/{id}\",method=\"GET\"}", 3},
		{"http_request_duration_seconds_bucket{route=\"/albums/{id}\",method=\"GET\",le=\"+Inf\"}",
	         3},
		{"db_query_cancel_duration_seconds_count", 2},
		{"db_pool_size", 16},
		{"http_requests_in_flight", 0},
		{"http_client_disconnects_total", 1},
		{"log_lines_dropped_total", 0},
	};
	for (size_t i = 0; i < sizeof expected / sizeof *expected; i++)
		cr_expect(eq(dbl, service_metric(s, expected[i].name), expected[i].value), "%s",
		          expected[i].name);
	service_stop(s);
}

/* What Prometheus itself has to say of both forms, where it is installed. */
Test(admin, metrics_please_promtool, .timeout = 60)
{
	service *s = service_start(NULL);
	char *output = NULL;
	int status = process_run((const char *const[]){"/bin/sh", "-c", "command -v promtool", NULL}, NULL,
	                         5000, &output);
	char command[128];

	free(output);
	if (status != 0) {
		service_stop(s);
		cr_skip("promtool is not installed");
	}
	client_get(s->port, "/albums/1", NULL, TIMEOUT_MS);
	snprintf(command, sizeof command, "curl -s http://127.0.0.1:%d/metrics | promtool check metrics 2>&1",
	         s->admin_port);
	status = process_run((const char *const[]){"/bin/sh", "-c", command, NULL}, NULL, 20000, &output);
	cr_expect(status == 0 && strcmp(output, "") == 0, "%s", output);
	free(output);
	service_stop(s);
}

static bool has_line(const char *text, const char *line)
{
	size_t length = strlen(line);

	for (const char *at = text; (at = strstr(at, line)); at += length) {
		if ((at == text || at[-1] == '\n') && at[length] == '\n')
			return true;
	}
	return false;
}

Test(admin, metrics_come_as_openmetrics_too, .timeout = 60)
{
	/* As Prometheus asks. */
	static const char accept[] =
		"Accept: application/openmetrics-text;version=1.0.0;q=0.5,application/openmetrics-text;"
		"version=0.0.1;q=0.4,text/plain;version=0.0.4;q=0.3,*/*;q=0.1\r\n";
	service *s = service_start(NULL);
	char *type;
	reply r;

	client_get(s->port, "/albums/1", NULL, TIMEOUT_MS);
	cr_assert(
		eq(int, client_request(s->admin_port, "GET", "/metrics", accept, NULL, &r, TIMEOUT_MS), 200));
	type = reply_header(&r, "Content-Type");
	cr_expect(eq(str, type, "application/openmetrics-text; version=1.0.0; charset=utf-8"));
	free(type);
	cr_expect(has_line(r.body, "# TYPE http_requests counter"));
	cr_expect(has_line(r.body, "# TYPE albumd_build info"));
	cr_expect(has_line(r.body,
	                   "http_requests_total{route=\"/albums/{id}\",method=\"GET\",status=\"200\"} 1"));
	cr_expect(has_line(r.body, "db_query_duration_seconds_bucket{le=\"5.0\"} 1"));
	cr_expect(r.size > 6 && strcmp(r.body + r.size - 6, "# EOF\n") == 0);
	/* A family has one name and one type, which "http_connections" and "http_connections_total" would not. */
	for (const char *at = r.body; (at = strstr(at, "# TYPE ")); at++) {
		char family[128];

		snprintf(family, sizeof family, "%.*s ", (int)strcspn(at + 7, " "), at + 7);
		for (const char *other = at + 7; (other = strstr(other, "# TYPE ")); other++)
			cr_expect(strncmp(other + 7, family, strlen(family)) != 0, "twice: %s", family);
	}
	reply_free(&r);
	cr_assert(eq(int,
	             client_request(s->admin_port, "GET", "/metrics", "Accept: text/html, */*;q=0.8\r\n",
	                            NULL, &r, TIMEOUT_MS),
	             200));
	type = reply_header(&r, "Content-Type");
	cr_expect(eq(str, type, "text/plain; version=0.0.4; charset=utf-8"));
	free(type);
	cr_expect_null(strstr(r.body, "# EOF"));
	reply_free(&r);
	service_stop(s);
}

/* Every line that is no comment: a name, maybe labels, a number; every family introduced once, before its samples. */
Test(admin, metrics_have_prometheus_form, .timeout = 60)
{
	service *s = service_start(NULL);
	reply r;
	char *rest, *line, family[128] = "";
	int samples = 0;

	cr_assert(eq(int, client_get(s->port, "/albums/1", NULL, TIMEOUT_MS), 200));
	cr_assert(eq(int, client_get(s->admin_port, "/metrics", &r, TIMEOUT_MS), 200));
	rest = r.body;
	while ((line = strsep(&rest, "\n")) && *line) {
		if (strncmp(line, "# TYPE ", 7) == 0) {
			snprintf(family, sizeof family, "%.*s", (int)strcspn(line + 7, " "), line + 7);
			continue;
		}
		if (line[0] == '#')
			continue;
		char *number = strrchr(line, ' ');
		char *end;

		cr_assert_not_null(number, "%s", line);
		strtod(number + 1, &end);
		cr_expect(number[1] && !*end, "no number: %s", line);
		cr_expect(strncmp(line, family, strlen(family)) == 0, "%s is not of the family %s", line,
		          family);
		samples++;
	}
	cr_expect(samples > 100);
	reply_free(&r);
	service_stop(s);
}

Test(admin, log_tells_each_request, .timeout = 60)
{
	service *s = service_start(NULL);
	json_t *line;

	client_get(s->port, "/albums/1?x=%0a%22y", NULL, TIMEOUT_MS);
	line = service_log(s, "/albums/1?x=%0a%22y", TIMEOUT_MS);
	cr_assert_not_null(line);
	cr_expect(eq(str, (char *)json_string_value(json_object_get(line, "method")), "GET"));
	cr_expect(eq(int, (int)json_integer_value(json_object_get(line, "status")), 200));
	cr_expect(json_real_value(json_object_get(line, "duration_ms")) > 0);
	cr_expect_null(json_object_get(line, "reason"));
	cr_expect_not_null(json_string_value(json_object_get(line, "time")));
	cr_expect(eq(str, (char *)json_string_value(json_object_get(line, "route")), "GET /albums/{id}"));
	cr_expect(json_real_value(json_object_get(line, "queue_ms")) >= 0);
	cr_expect(json_real_value(json_object_get(line, "query_ms")) > 0);
	cr_expect(eq(int, (int)json_integer_value(json_object_get(line, "rows")), 1));
	cr_expect_not_null(json_string_value(json_object_get(line, "request")));
	json_decref(line);

	/* Its names are the client's, where it has some; and no query is none that took no time. */
	client_request(s->port, "GET", "/nowhere",
	               "X-Request-Id: here-and-there\r\n"
	               "traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01\r\n",
	               NULL, NULL, TIMEOUT_MS);
	line = service_log(s, "/nowhere", TIMEOUT_MS);
	cr_assert_not_null(line);
	cr_expect(eq(str, (char *)json_string_value(json_object_get(line, "request")), "here-and-there"));
	cr_expect(eq(str, (char *)json_string_value(json_object_get(line, "trace")),
	             "0af7651916cd43dd8448eb211c80319c"));
	cr_expect_null(json_object_get(line, "query_ms"));
	cr_expect_null(json_object_get(line, "queue_ms"));
	json_decref(line);
	service_stop(s);
}

/* The time in the queue is told apart from the time that the query ran. */
Test(admin, log_tells_waiting_from_work, .timeout = 60)
{
	service *s = service_start((const char *const[]){"--pool-size", "1", "--query-timeout", "3s", NULL});
	client *first = client_connect(s->port);
	json_t *line;

	cr_assert(client_send_get(first, "/albums?delay=2s"));
	cr_assert(service_runs(s, 1, TIMEOUT_MS));
	cr_expect(
		eq(int,
	           client_request(s->port, "GET", "/albums/2", "Prefer: wait=1\r\n", NULL, NULL, TIMEOUT_MS),
	           504));
	line = service_log(s, "/albums/2", TIMEOUT_MS);
	cr_assert_not_null(line);
	cr_expect(json_real_value(json_object_get(line, "queue_ms")) >= 900, "%s", service_line(line));
	cr_expect_null(json_object_get(line, "query_ms"), "it never ran: %s", service_line(line));
	json_decref(line);
	cr_expect(eq(int, client_get(s->port, "/albums/3", NULL, TIMEOUT_MS), 200));
	line = service_log(s, "/albums/3", TIMEOUT_MS);
	cr_assert_not_null(line);
	cr_expect(json_real_value(json_object_get(line, "queue_ms")) >
	                  json_real_value(json_object_get(line, "query_ms")),
	          "%s", service_line(line));
	json_decref(line);
	client_close(first);
	service_stop(s);
}

/* A message that comes again and again is written a few times, and then counted. */
Test(admin, log_does_not_repeat_itself, .timeout = 60)
{
	char url[96];
	albumd *a;
	char *output;
	int said = 0;

	snprintf(url, sizeof url, "postgresql://127.0.0.1:%d/albums", support_free_port());
	a = albumd_start(&(albumd_options){.database_url = url});
	cr_assert_not_null(a);
	for (int i = 0; i < 20; i++)
		cr_expect(eq(int, client_get(a->port, "/albums/1", NULL, TIMEOUT_MS), 503));
	process_signal(a->process, SIGTERM);
	cr_expect(eq(int, process_wait(a->process, TIMEOUT_MS), 0));
	output = process_output(a->process);
	for (const char *at = output; (at = strstr(at, "\"msg\":\"the database cannot be reached\"")); at++)
		said++;
	cr_expect(eq(int, said, 6), "%s", output);
	cr_expect_not_null(strstr(output, "\"repeated\":15"), "%s", output);
	free(output);
	albumd_stop(a);
}

/* What a client sends cannot end a line, begin another, or reach a terminal as a control sequence. */
Test(admin, log_cannot_be_forged, .timeout = 60)
{
	static const char *const formats[] = {"json", "text"};

	for (int i = 0; i < 2; i++) {
		service *s = service_start((const char *const[]){"--log-format", formats[i], NULL});
		client *c = client_connect(s->port);
		char *output;

		cr_assert(client_send(c,
		                      "GET /x?\x1b[31m\x7f\xc3\x28\xc2\x9b[31m HTTP/1.1\r\nHost: h\r\n\r\n"));
		reply r = {0};
		client_receive(c, &r, 2000);
		reply_free(&r);
		client_close(c);
		client_request(s->port, "GET\x1b[2J", "/y", "", NULL, NULL, 2000);
		client_get(s->port, "/after", NULL, TIMEOUT_MS);
		cr_expect(process_wait_for(s->albumd->process, "/after", TIMEOUT_MS));
		output = process_output(s->albumd->process);
		for (const unsigned char *at = (unsigned char *)output; *at; at++) {
			bool control =
				(*at < ' ' && *at != '\n') || *at == 0x7f || (*at == 0xc2 && at[1] < 0xa0);

			cr_expect(not(control), "byte %02x in the log", *at);
		}
		free(output);
		service_stop(s);
	}
}

Test(admin, slow_requests_are_warned_of, .timeout = 60)
{
	service *s = service_start((const char *const[]){"--slow-query", "100ms", NULL});
	json_t *line;

	cr_expect(eq(int, client_get(s->port, "/albums?delay=200ms", NULL, TIMEOUT_MS), 200));
	line = service_log(s, "/albums?delay=200ms", TIMEOUT_MS);
	cr_assert_not_null(line);
	cr_expect(eq(str, (char *)json_string_value(json_object_get(line, "level")), "warn"));
	cr_expect_not_null(strstr(json_string_value(json_object_get(line, "slow")), "pg_sleep($1)"));
	json_decref(line);
	service_stop(s);
}
