/*
 * --trace-queries: the queries of a request tell PostgreSQL whose they are, by the names that its answer and the log
 * have for it; whatever a client calls itself, and at the cost of no connection.
 */
#include <criterion/criterion.h>
#include <criterion/new/assert.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "client.h"
#include "process.h"
#include "service.h"
#include "support.h"

#define TRACE  "0af7651916cd43dd8448eb211c80319c"
#define CALLER "b7ad6b7169203331"

enum { TIMEOUT_MS = 10000 };

/* The one connection's query: what runs, or ran last. The caller frees it. */
static char *query_of(const service *s)
{
	char sql[192];
	snprintf(sql, sizeof(sql), "SELECT query FROM pg_stat_activity WHERE application_name = '%s'",
	         s->application);
	char *query = activity_sql(s->activity, sql);
	cr_assert_not_null(query);
	return query;
}

static service *start(const char *which)
{
	return service_start((const char *const[]){"--pool-size", "1", "--query-timeout", "60s",
	                                           "--trace-queries", which, NULL});
}

static bool is_traced(const service *s, const char *headers)
{
	cr_expect(eq(int, client_request(s->port, "GET", "/albums/1", headers, NULL, NULL, TIMEOUT_MS), 200));
	char *query = query_of(s);
	bool traced = strstr(query, "traceparent='00-");
	cr_expect(eq(int, strstr(query, "/*") != NULL, traced), "%s", query);
	cr_expect_not_null(strstr(query, "FROM album WHERE id = $1"));
	free(query);
	return traced;
}

/* From a query that an operator sees to its request, while it runs and in the log; and the client leaves as always. */
Test(traces, a_running_query_tells_its_request, .timeout = 120)
{
	service *s = start("all");
	static const char target[] = "/albums?delay=50s&by=trace";
	client *c = client_connect(s->port);
	cr_assert_not_null(c);
	cr_assert(client_send(c,
	                      "GET %s HTTP/1.1\r\nHost: h\r\nX-Request-Id: here-and-there\r\n"
	                      "traceparent: 00-" TRACE "-" CALLER "-01\r\n\r\n",
	                      target));
	cr_assert(service_runs(s, 1, TIMEOUT_MS));
	char *query = query_of(s);
	char *comment = strstr(query, " /*request_id='here-and-there',traceparent='00-" TRACE "-");
	cr_assert_not_null(comment, "%s", query);
	cr_expect_null(strstr(query, CALLER), "the span is our own: %s", query);
	cr_expect(eq(str, query + strlen(query) - strlen("-01'*/"), "-01'*/"));
	free(query);

	pid_t backend = service_backend(s);
	int64_t left = service_now();
	client_close(c);
	cr_expect(ge(dbl, service_cancelled_ms(s, target, left, backend), 0));
	json_t *line = service_log(s, target, TIMEOUT_MS);
	cr_assert_not_null(line);
	cr_expect(eq(str, (char *)json_string_value(json_object_get(line, "request")), "here-and-there"));
	cr_expect(eq(str, (char *)json_string_value(json_object_get(line, "trace")), TRACE));
	json_decref(line);
	cr_expect(eq(int, client_get(s->port, "/albums/1", NULL, TIMEOUT_MS), 200));
	cr_expect(eq(int, service_backend(s), backend), "the connection was not kept");
	cr_expect(eq(int, service_stop(s), 0));
}

/* Names of albumd's own making, where the client has none: in the comment are those of the answer. */
Test(traces, the_names_are_the_answers, .timeout = 60)
{
	service *s = start("all");
	reply r;
	char expected[256];
	cr_assert(eq(int, client_get(s->port, "/albums/1", &r, TIMEOUT_MS), 200));
	char *id = reply_header(&r, "X-Request-Id"), *trace = reply_header(&r, "traceparent");
	char *query = query_of(s);
	snprintf(expected, sizeof(expected), " /*request_id='%s',traceparent='%s'*/", id, trace);
	cr_expect_not_null(strstr(query, expected), "%s has no %s", query, expected);
	free(query);
	free(id);
	free(trace);
	reply_free(&r);
	cr_expect(eq(int, service_stop(s), 0));
}

static void expect_written(const service *s, const char *id, const char *escaped)
{
	char headers[512], expected[512];
	snprintf(headers, sizeof(headers), "X-Request-Id: %s\r\n", id);
	snprintf(expected, sizeof(expected), "FROM album WHERE id = $1 /*request_id='%s',traceparent='00-",
	         escaped);
	cr_expect(eq(int, client_request(s->port, "GET", "/albums/1", headers, NULL, NULL, TIMEOUT_MS), 200));
	char *query = query_of(s);
	char *comment = strstr(query, expected);
	cr_expect_not_null(comment, "%s has no %s", query, expected);
	cr_expect(comment && strstr(comment, "*/") == query + strlen(query) - 2,
	          "it ends where the query does");
	free(query);
}

Test(traces, a_hostile_name_stays_in_the_comment, .timeout = 60)
{
	service *s = start("all");
	char longest[129], escaped[385] = "";
	expect_written(s, "*/;DROP/**/TABLE/**/album;--",
	               "%2A%2F%3BDROP%2F%2A%2A%2FTABLE%2F%2A%2A%2Falbum%3B--");
	expect_written(s, "',a='1'*/", "%27%2Ca%3D%271%27%2A%2F");
	expect_written(s, "$1$$/*", "%241%24%24%2F%2A");
	expect_written(s, "%2A%2F%27", "%252A%252F%2527");
	for (int i = 0; i < 128; i++) {
		longest[i] = '\'';
		strcat(escaped, "%27");
	}
	longest[128] = '\0';
	expect_written(s, longest, escaped);
	/* No name at all, and so one of albumd's own: what is no visible ASCII. */
	cr_expect(is_traced(s, "X-Request-Id: \xff\xfe*/\r\n"));
	cr_expect(is_traced(s, "X-Request-Id: \"*/\r\ntraceparent: 00-*/-'-01\r\n"));
	cr_expect(eq(int, service_stop(s), 0));
}

#define SAMPLED     "traceparent: 00-" TRACE "-" CALLER "-01\r\n"
#define NOT_SAMPLED "traceparent: 00-" TRACE "-" CALLER "-00\r\n"

Test(traces, off_there_is_nothing, .timeout = 60)
{
	service *s = service_start((const char *const[]){"--pool-size", "1", NULL});
	cr_expect_not(is_traced(s, ""));
	cr_expect_not(is_traced(s, SAMPLED));
	cr_expect_not(is_traced(s, "X-Request-Id: mine\r\n"));
	cr_expect(eq(int, service_stop(s), 0));
}

Test(traces, sampled_are_those_whose_caller_records_them, .timeout = 60)
{
	service *s = start("sampled");
	cr_expect_not(is_traced(s, ""));
	cr_expect_not(is_traced(s, NOT_SAMPLED));
	cr_expect(is_traced(s, SAMPLED));
	cr_expect(is_traced(s, "traceparent: 00-" TRACE "-" CALLER "-03\r\n"), "sampled, and random");
	cr_expect_not(is_traced(s, "traceparent: 00-" TRACE "-" CALLER "-02\r\n"), "random only");
	cr_expect(eq(int, service_stop(s), 0));
}

static bool begins_to_be_traced(void *s)
{
	return is_traced(s, "");
}

static bool ceases_to_be_traced(void *s)
{
	return !is_traced(s, "");
}

/* For as long as somebody looks. */
Test(traces, a_hangup_turns_it_on_and_off, .timeout = 60)
{
	static const char all[] = "trace-queries = all\n";
	char path[] = "/tmp/tether-config.XXXXXX";
	int fd = mkstemp(path);
	cr_assert(fd >= 0);
	service *s = service_start((const char *const[]){"--pool-size", "1", "--config", path, NULL});
	cr_expect_not(is_traced(s, ""));
	cr_assert(eq(i64, write(fd, all, strlen(all)), (int64_t)strlen(all)));
	process_signal(s->albumd->process, SIGHUP);
	cr_expect(eventually(begins_to_be_traced, s, TIMEOUT_MS));
	cr_assert(eq(int, ftruncate(fd, 0), 0));
	process_signal(s->albumd->process, SIGHUP);
	cr_expect(eventually(ceases_to_be_traced, s, TIMEOUT_MS));
	close(fd);
	unlink(path);
	cr_expect(eq(int, service_stop(s), 0));
}
