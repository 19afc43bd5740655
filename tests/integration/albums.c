/* The albums resource, over HTTP, as a client sees it. */
#include <criterion/criterion.h>
#include <criterion/new/assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "client.h"
#include "service.h"
#include "support.h"

enum { TIMEOUT_MS = 10000 };

static const char as_json[] = "Content-Type: application/json\r\n";

static int post(const service *s, const char *headers, const char *body, reply *r)
{
	return client_request(s->port, "POST", "/albums", headers, body, r, TIMEOUT_MS);
}

static void expect_header(const reply *r, const char *name, const char *expected)
{
	char *value = reply_header(r, name);

	cr_expect(value && strcmp(value, expected) == 0, "%s is %s, not %s", name, value ? value : "missing",
	          expected);
	free(value);
}

/* What the service says of a body: 422, naming the field. */
static void expect_fault(const service *s, const char *body, const char *field)
{
	reply r;
	json_t *problem, *fault;
	size_t i;
	bool named = false;

	cr_expect(eq(int, post(s, as_json, body, &r), 422), "%s", body);
	expect_header(&r, "Content-Type", "application/problem+json");
	problem = json_loads(r.body ? r.body : "", 0, NULL);
	cr_assert_not_null(problem, "not JSON: %s", r.body);
	json_array_foreach(json_object_get(problem, "errors"), i, fault) named |=
		strcmp(json_string_value(json_object_get(fault, "field")), field) == 0;
	cr_expect(named, "%s: %s is not named in %s", body, field, r.body);
	json_decref(problem);
	reply_free(&r);
}

Test(albums, one, .timeout = 60)
{
	service *s = service_start(NULL);
	reply r;

	cr_expect(eq(int, client_get(s->port, "/albums/1", &r, TIMEOUT_MS), 200));
	expect_header(&r, "Content-Type", "application/json");
	cr_expect(eq(str, r.body,
	             "{\"id\":1,\"title\":\"Blue Train\",\"artist\":\"John Coltrane\",\"price\":56.99}"));
	reply_free(&r);
	service_stop(s);
}

Test(albums, none_of_that_id, .timeout = 60)
{
	static const char *const targets[] = {"/albums/999999999",
	                                      "/albums/9223372036854775807",
	                                      "/albums/9223372036854775808",
	                                      "/albums/99999999999999999999999",
	                                      "/albums/0",
	                                      "/albums/-1",
	                                      "/albums/01",
	                                      "/albums/1a",
	                                      "/albums/%31%00",
	                                      "/albums/1%3B",
	                                      "/albums/%FF"};
	service *s = service_start(NULL);
	reply r;

	for (size_t i = 0; i < sizeof targets / sizeof *targets; i++) {
		int status = client_get(s->port, targets[i], &r, TIMEOUT_MS);

		/* %00 may as well be refused as a bad request: it can be no part of a path. */
		cr_expect(status == 404 || (status == 400 && strstr(targets[i], "%00")), "%s: %d", targets[i],
		          status);
		expect_header(&r, "Content-Type", "application/problem+json");
		reply_free(&r);
	}
	cr_expect(eq(int, client_get(s->port, "/albums/%31", &r, TIMEOUT_MS), 200), "the path is decoded");
	reply_free(&r);
	service_stop(s);
}

Test(albums, list, .timeout = 60)
{
	service *s = service_start(NULL);
	reply r;
	json_t *list, *album;
	size_t i;
	json_int_t last = 0;

	cr_expect(eq(int, client_get(s->port, "/albums", &r, TIMEOUT_MS), 200));
	expect_header(&r, "Content-Type", "application/json");
	list = json_loads(r.body, 0, NULL);
	cr_assert(json_array_size(list) >= 12, "%s", r.body);
	json_array_foreach(list, i, album)
	{
		cr_expect(json_integer_value(json_object_get(album, "id")) > last,
		          "in the order of their ids");
		last = json_integer_value(json_object_get(album, "id"));
		cr_expect_not_null(json_string_value(json_object_get(album, "title")));
		cr_expect_not_null(json_string_value(json_object_get(album, "artist")));
		cr_expect_not_null(json_object_get(album, "price"));
	}
	json_decref(list);
	reply_free(&r);
	service_stop(s);
}

Test(albums, list_of_one_artist, .timeout = 60)
{
	service *s = service_start(NULL);
	reply r;
	json_t *list, *album;
	size_t i;

	cr_expect(eq(int, client_get(s->port, "/albums?artist=John+Coltrane", &r, TIMEOUT_MS), 200));
	list = json_loads(r.body, 0, NULL);
	cr_expect(json_array_size(list) >= 2);
	json_array_foreach(list, i, album) cr_expect(
		eq(str, (char *)json_string_value(json_object_get(album, "artist")), "John Coltrane"));
	json_decref(list);
	reply_free(&r);

	cr_expect(eq(int, client_get(s->port, "/albums?artist=John%20Coltrane&delay=1ms", &r, TIMEOUT_MS),
	             200));
	reply_free(&r);
	cr_expect(eq(int, client_get(s->port, "/albums?artist=nobody", &r, TIMEOUT_MS), 200));
	cr_expect(eq(str, r.body, "[]"));
	reply_free(&r);
	cr_expect(
		eq(int, client_get(s->port, "/albums?artist=%27%20OR%20%27%27%3D%27", &r, TIMEOUT_MS), 200));
	cr_expect(eq(str, r.body, "[]"), "a value is not SQL");
	reply_free(&r);
	cr_expect(eq(int, client_get(s->port, "/albums?artist=%FF%FE", &r, TIMEOUT_MS), 400));
	reply_free(&r);
	service_stop(s);
}

Test(albums, delay_is_slow_even_when_nothing_matches, .timeout = 60)
{
	service *s = service_start(NULL);
	int64_t sent = service_now();

	cr_expect(eq(int, client_get(s->port, "/albums?artist=nobody&delay=300ms", NULL, TIMEOUT_MS), 200));
	cr_expect(service_now() - sent >= 300000000);
	sent = service_now();
	cr_expect(eq(int, client_get(s->port, "/albums?delay=0.3s", NULL, TIMEOUT_MS), 200));
	double taken = (double)(service_now() - sent) / 1e6;
	cr_expect(taken >= 300 && taken < 300 + 2000 * support_patience(), "once, not for each row: %.0f ms",
	          taken);
	service_stop(s);
}

Test(albums, delay_that_is_wrong_or_not_allowed, .timeout = 60)
{
	static const char *const wrong[] = {"5",    "5x",  "-1s", "2h",  "",    "1e3s",
	                                    "s",    "1s ", "1m1", "1.s", ".5s", "99999999999999999999s",
	                                    "3601s"};
	service *s = service_start(NULL);
	service *strict = service_start((const char *const[]){"--allow-delay=off", NULL});
	char target[96];
	reply r;

	for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
		snprintf(target, sizeof target, "/albums?delay=%s",
		         wrong[i][0] == '1' && strchr(wrong[i], ' ') ? "1s%20" : wrong[i]);
		cr_expect(eq(int, client_get(s->port, target, &r, TIMEOUT_MS), 400), "%s", target);
		expect_header(&r, "Content-Type", "application/problem+json");
		reply_free(&r);
	}
	cr_expect(eq(int, client_get(strict->port, "/albums?delay=1ms", &r, TIMEOUT_MS), 400));
	reply_free(&r);
	cr_expect(eq(int, client_get(strict->port, "/albums", NULL, TIMEOUT_MS), 200));
	service_stop(s);
	service_stop(strict);
}

Test(albums, created, .timeout = 60)
{
	service *s = service_start(NULL);
	reply r;
	char *location, *body;

	cr_assert(eq(
		int,
		post(s, as_json, "{\"title\":\"Ascension\",\"artist\":\"John Coltrane\",\"price\":12.5}", &r),
		201));
	location = reply_header(&r, "Location");
	cr_assert_not_null(location);
	cr_expect(strncmp(location, "/albums/", 8) == 0, "%s", location);
	body = r.body;
	r.body = NULL;
	reply_free(&r);
	cr_expect(eq(int, client_get(s->port, location, &r, TIMEOUT_MS), 200));
	cr_expect(eq(str, r.body, body), "what was created is what is there");
	cr_expect_not_null(strstr(body, "\"price\":12.50}"), "%s", body);
	reply_free(&r);
	free(location);
	free(body);
	service_stop(s);
}

Test(albums, price_is_exact, .timeout = 60)
{
	static const struct {
		const char *sent, *kept; /* NULL: not accepted */
	} prices[] = {
		{"0", "0.00"},
		{"0.01", "0.01"},
		{"0.1", "0.10"},
		{"17", "17.00"},
		{"99999999.99", "99999999.99"},
		{"1e2", "100.00"},
		{"5.699e1", "56.99"},
		{"5699E-2", "56.99"},
		{"56.990000", "56.99"},
		{"1e-2", "0.01"},
		{"-0", "0.00"},
		{"0e99", "0.00"},
		{"0.0e-400", "0.00"},
		{"1.005e1", "10.05"},
		{"8.1e7", "81000000.00"},
		{"12345678.90", "12345678.90"},
		{"70368744.17", "70368744.17"},
		{"0.00000000000001e14", "1.00"},
		{"0.001", NULL},
		{"56.999", NULL},
		{"-0.01", NULL},
		{"100000000", NULL},
		{"99999999.999", NULL},
		{"1e-3", NULL},
		{"1e8", NULL},
		{"123456789012345678901234567890", NULL},
		{"1e300", NULL},
	};
	service *s = service_start(NULL);
	char body[128], expected[64];
	reply r;

	for (size_t i = 0; i < sizeof prices / sizeof *prices; i++) {
		snprintf(body, sizeof body, "{\"title\":\"t\",\"price\":%s,\"artist\":\"Prices\"}",
		         prices[i].sent);
		if (!prices[i].kept) {
			expect_fault(s, body, "price");
			continue;
		}
		cr_expect(eq(int, post(s, as_json, body, &r), 201), "%s: %s", prices[i].sent, r.body);
		snprintf(expected, sizeof expected, "\"price\":%s}", prices[i].kept);
		cr_expect(r.body && strstr(r.body, expected), "%s became %s", prices[i].sent, r.body);
		reply_free(&r);
	}
	service_stop(s);
}

Test(albums, strings_survive_the_way_there_and_back, .timeout = 60)
{
	static const char *const titles[] = {
		"\"quoted\" \\ and / slashed", "tab\tnewline\ncontrol\x01\x1f",
		"Ünïcødé 漢字 \U0001F3B7",     "</script>",
		"'; DROP TABLE album; --",     "\x7f",
		"line\u2028ends\u2029",
	};
	service *s = service_start(NULL);

	for (size_t i = 0; i < sizeof titles / sizeof *titles; i++) {
		json_t *album =
			json_pack("{s:s, s:s, s:i}", "title", titles[i], "artist", titles[i], "price", 1);
		char *body = json_dumps(album, JSON_ENSURE_ASCII);
		reply r;
		json_t *answer;

		cr_expect(eq(int, post(s, as_json, body, &r), 201), "%s: %s", body, r.body);
		answer = json_loads(r.body ? r.body : "", 0, NULL);
		cr_assert_not_null(answer, "not JSON: %s", r.body);
		cr_expect(eq(str, (char *)json_string_value(json_object_get(answer, "title")),
		             (char *)titles[i]));
		cr_expect(eq(str, (char *)json_string_value(json_object_get(answer, "artist")),
		             (char *)titles[i]));
		json_decref(answer);
		reply_free(&r);
		free(body);
		json_decref(album);
	}
	service_stop(s);
}

static char *repeated(const char *piece, int times, const char *before, const char *after)
{
	size_t size = strlen(piece) * (size_t)times;
	char *text = malloc(strlen(before) + size + strlen(after) + 1);
	char *at = stpcpy(text, before);

	for (int i = 0; i < times; i++)
		at = stpcpy(at, piece);
	stpcpy(at, after);
	return text;
}

Test(albums, faults_are_named, .timeout = 60)
{
	service *s = service_start(NULL);
	char *text;

	expect_fault(s, "{}", "title");
	expect_fault(s, "{}", "artist");
	expect_fault(s, "{}", "price");
	expect_fault(s, "{\"title\":1,\"artist\":\"a\",\"price\":1}", "title");
	expect_fault(s, "{\"title\":\"t\",\"artist\":null,\"price\":1}", "artist");
	expect_fault(s, "{\"title\":\"t\",\"artist\":\"a\",\"price\":\"1\"}", "price");
	expect_fault(s, "{\"title\":\" \\t\\n\",\"artist\":\"a\",\"price\":1}", "title");
	expect_fault(s, "{\"title\":\"\",\"artist\":\"a\",\"price\":1}", "title");
	expect_fault(s, "{\"title\":\"t\",\"artist\":\"a\",\"price\":1,\"id\":7}", "id");
	/* Blank by PostgreSQL's reckoning only: its own constraint is the judge of last resort. */
	expect_fault(s, "{\"title\":\"\\u3000\",\"artist\":\"a\",\"price\":1}", "title");
	expect_fault(s, "[1]", "[0]");
	expect_fault(s, "7", "the body");
	expect_fault(s, "null", "the body");

	/* 255 characters, which are more bytes, are not too long. */
	text = repeated("ü", 255, "{\"artist\":\"a\",\"price\":1,\"title\":\"", "\"}");
	cr_expect(eq(int, post(s, as_json, text, NULL), 201));
	free(text);
	text = repeated("ü", 256, "{\"artist\":\"a\",\"price\":1,\"title\":\"", "\"}");
	expect_fault(s, text, "title");
	free(text);
	service_stop(s);
}

Test(albums, bodies_that_are_not_json, .timeout = 60)
{
	static const char *const bodies[] = {"",
	                                     "{",
	                                     "{\"title\":}",
	                                     "{'title':1}",
	                                     "{\"a\":1,\"a\":2}",
	                                     "nope",
	                                     "{\"title\":\"\\u0000\",\"artist\":\"a\",\"price\":1}",
	                                     "{\"title\":\"\xff\",\"artist\":\"a\",\"price\":1}",
	                                     "{\"title\":\"t\",\"artist\":\"a\",\"price\":NaN}",
	                                     "{\"title\":\"t\",\"artist\":\"a\",\"price\":01}"};
	service *s = service_start(NULL);
	char *deep;
	reply r;

	for (size_t i = 0; i < sizeof bodies / sizeof *bodies; i++) {
		cr_expect(eq(int, post(s, as_json, bodies[i], &r), 400), "%s", bodies[i]);
		expect_header(&r, "Content-Type", "application/problem+json");
		reply_free(&r);
	}
	/* jansson recurses for each level, on a fiber's small stack. */
	deep = repeated("[", 100000, "{\"title\":\"\\\"", "");
	cr_expect(eq(int, post(s, as_json, deep, NULL), 400));
	free(deep);
	deep = repeated("{\"a\":", 100000, "", "");
	cr_expect(eq(int, post(s, as_json, deep, NULL), 400));
	free(deep);
	cr_expect(eq(int, post(s, "Content-Type: text/plain\r\n", "{}", NULL), 415));
	cr_expect(eq(int, post(s, "", "{}", NULL), 415));
	cr_expect(eq(int, post(s, "Content-Type: application/JSON; charset=utf-8\r\n", "{}", NULL), 422));
	deep = repeated("x", 2 << 20, "", "");
	cr_expect(eq(int, post(s, as_json, deep, NULL), 413));
	free(deep);
	cr_expect(eq(int, client_get(s->port, "/albums/1", NULL, TIMEOUT_MS), 200), "and it is still there");
	service_stop(s);
}

Test(albums, other_paths_and_methods, .timeout = 60)
{
	service *s = service_start(NULL);
	reply r;

	cr_expect(eq(int, client_get(s->port, "/", &r, TIMEOUT_MS), 404));
	expect_header(&r, "Content-Type", "application/problem+json");
	reply_free(&r);
	cr_expect(eq(int, client_get(s->port, "/albums/1/songs", NULL, TIMEOUT_MS), 404));
	cr_expect(eq(int, client_request(s->port, "BREW", "/albums", "", NULL, &r, TIMEOUT_MS), 405));
	char *allow = reply_header(&r, "Allow");
	cr_expect(allow && strstr(allow, "GET") && strstr(allow, "POST"), "Allow: %s",
	          allow ? allow : "missing");
	free(allow);
	reply_free(&r);
	service_stop(s);
}

Test(albums, long_list_is_streamed, .timeout = 120)
{
	service *s = service_start((const char *const[]){"--allow-all", NULL});
	json_t *list;
	reply r;

	free(activity_sql(s->activity,
	                  "INSERT INTO album (title, artist, price)"
	                  " SELECT repeat('long ', 40), 'Streamed', n FROM generate_series(1, 20000) n"));
	cr_expect(eq(int, client_get(s->port, "/albums?artist=Streamed&limit=all", &r, 30000), 200));
	expect_header(&r, "Transfer-Encoding", "chunked");
	expect_header(&r, "Content-Type", "application/json");
	list = json_loads(r.body ? r.body : "", 0, NULL);
	cr_expect(eq(int, (int)json_array_size(list), 20000));
	json_decref(list);
	reply_free(&r);
	free(activity_sql(s->activity, "DELETE FROM album WHERE artist = 'Streamed'"));
	service_stop(s);
}

Test(albums, client_that_leaves_a_long_list_ends_its_query, .timeout = 120)
{
	service *s = service_start((const char *const[]){"--pool-size", "1", "--allow-all", NULL});
	client *c = client_connect(s->port);
	json_t *line;

	free(activity_sql(s->activity,
	                  "INSERT INTO album (title, artist, price)"
	                  " SELECT repeat('long ', 40), 'Left', 1 FROM generate_series(1, 100000) n"));
	cr_assert(client_send_get(c, "/albums?artist=Left&limit=all"));
	/* Nothing is received, so that the sockets' buffers fill and the list stands still. */
	cr_assert(service_runs(s, 1, 10000));
	client_reset(c);
	cr_expect(service_runs(s, 0, 5000), "the query goes on");
	line = service_log(s, "/albums?artist=Left&limit=all", 5000);
	cr_assert_not_null(line);
	cr_expect(service_line_is(line, 499, "client_disconnect", "kept"), "the log says %s",
	          service_line(line));
	json_decref(line);
	cr_expect(eq(int, client_get(s->port, "/albums/1", NULL, TIMEOUT_MS), 200));
	cr_expect(eq(int, (int)service_metric(s, "db_pool_connects_total"), 1));
	free(activity_sql(s->activity, "DELETE FROM album WHERE artist = 'Left'"));
	service_stop(s);
}
