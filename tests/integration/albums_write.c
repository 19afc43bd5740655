/* Changing albums: PUT, PATCH, DELETE, versions and conditions, many at once, and who may. */
#include <criterion/criterion.h>
#include <criterion/new/assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "client.h"
#include "service.h"
#include "support.h"

enum { TIMEOUT_MS = 10000 };

#define AS_JSON "Content-Type: application/json\r\n"

/* A new album of the artist's: its target, "/albums/17", to be freed, and its tag, NULL if of no interest. */
static char *create(const service *s, const char *artist, char **etag)
{
	char body[128];
	reply r;
	char *location;

	snprintf(body, sizeof body, "{\"title\":\"New\",\"artist\":\"%s\",\"price\":10}", artist);
	cr_assert(eq(int, client_request(s->port, "POST", "/albums", AS_JSON, body, &r, TIMEOUT_MS), 201));
	location = reply_header(&r, "Location");
	cr_assert_not_null(location);
	if (etag)
		*etag = reply_header(&r, "ETag");
	reply_free(&r);
	return location;
}

/* One request; an @ in the header lines stands for the tag. Its status; *body is to be freed, if asked for. */
static int request(const service *s, const char *method, const char *target, const char *headers,
                   const char *tag, const char *sent, char **body)
{
	size_t before = strcspn(headers, "@");
	char lines[256];
	reply r;
	int status;

	snprintf(lines, sizeof lines, "%.*s%s%s", (int)before, headers, tag,
	         headers + before + (headers[before] == '@'));
	status = client_request(s->port, method, target, lines, sent, &r, TIMEOUT_MS);
	if (body) {
		*body = r.body;
		r.body = NULL;
	}
	reply_free(&r);
	return status;
}

static char *etag_of(const service *s, const char *target, const char *headers)
{
	reply r;
	char *etag;

	client_request(s->port, "GET", target, headers, NULL, &r, TIMEOUT_MS);
	etag = reply_header(&r, "ETag");
	cr_assert_not_null(etag);
	reply_free(&r);
	return etag;
}

static void expect_body(char *body, const char *target, const char *rest)
{
	char expected[256];

	snprintf(expected, sizeof expected, "{\"id\":%s,%s}", target + strlen("/albums/"), rest);
	cr_expect(eq(str, body, expected));
	free(body);
}

Test(albums_write, replaced, .timeout = 60)
{
	service *s = service_start(NULL);
	char *target = create(s, "Put", NULL);
	char *body, sent[128];

	cr_expect(eq(int,
	             request(s, "PUT", target, AS_JSON "@", "",
	                     "{\"title\":\"T\",\"artist\":\"A\",\"price\":1.5}", &body),
	             200));
	expect_body(body, target, "\"title\":\"T\",\"artist\":\"A\",\"price\":1.50");
	/* What was got may be put back as it is, id and all; but not elsewhere. */
	snprintf(sent, sizeof sent, "{\"id\":%s,\"title\":\"T2\",\"artist\":\"A\",\"price\":2}", target + 8);
	cr_expect(eq(int, request(s, "PUT", target, AS_JSON "@", "", sent, &body), 200));
	expect_body(body, target, "\"title\":\"T2\",\"artist\":\"A\",\"price\":2.00");
	cr_expect(eq(int, request(s, "PUT", "/albums/1", AS_JSON "@", "", sent, NULL), 422));
	cr_expect(eq(int,
	             request(s, "PUT", target, AS_JSON "@", "", "{\"title\":\"T\",\"artist\":\"A\"}", NULL),
	             422));
	cr_expect(eq(int, request(s, "PUT", target, AS_JSON "@", "", "[]", NULL), 422));
	cr_expect(eq(int, request(s, "PUT", target, "@", "", "{}", NULL), 415));
	cr_expect(eq(int, request(s, "PUT", target, AS_JSON "@", "", "{", NULL), 400));
	cr_expect(eq(int,
	             request(s, "PUT", "/albums/9223372036854775807", AS_JSON "@", "",
	                     "{\"title\":\"T\",\"artist\":\"A\",\"price\":1}", NULL),
	             404));
	free(target);
	service_stop(s);
}

Test(albums_write, patched, .timeout = 60)
{
	service *s = service_start(NULL);
	char *target = create(s, "Patch", NULL);
	char *body;

	cr_expect(eq(int,
	             request(s, "PATCH", target, "Content-Type: application/merge-patch+json\r\n@", "",
	                     "{\"price\":12.34}", &body),
	             200));
	expect_body(body, target, "\"title\":\"New\",\"artist\":\"Patch\",\"price\":12.34");
	cr_expect(eq(int, request(s, "PATCH", target, AS_JSON "@", "", "{\"title\":\"Newer\"}", &body), 200));
	expect_body(body, target, "\"title\":\"Newer\",\"artist\":\"Patch\",\"price\":12.34");
	cr_expect(eq(int, request(s, "PATCH", target, AS_JSON "@", "", "{}", &body), 200));
	expect_body(body, target, "\"title\":\"Newer\",\"artist\":\"Patch\",\"price\":12.34");
	/* null removes, in a merge patch; and an album has no field that could be done without. */
	cr_expect(eq(int, request(s, "PATCH", target, AS_JSON "@", "", "{\"title\":null}", NULL), 422));
	cr_expect(eq(int, request(s, "PATCH", target, AS_JSON "@", "", "{\"title\":\" \"}", NULL), 422));
	cr_expect(eq(int, request(s, "PATCH", target, AS_JSON "@", "", "{\"price\":1.001}", NULL), 422));
	cr_expect(eq(int, request(s, "PATCH", target, AS_JSON "@", "", "{\"colour\":1}", NULL), 422));
	cr_expect(
		eq(int,
	           request(s, "PATCH", "/albums/9223372036854775807", AS_JSON "@", "", "{\"price\":1}", NULL),
	           404));
	free(target);
	service_stop(s);
}

Test(albums_write, deleted, .timeout = 60)
{
	service *s = service_start(NULL);
	char *target = create(s, "Delete", NULL);
	char *body;

	cr_expect(eq(int, request(s, "DELETE", target, "@", "", NULL, &body), 204));
	cr_expect(eq(str, body, ""));
	free(body);
	cr_expect(eq(int, request(s, "DELETE", target, "@", "", NULL, NULL), 404));
	cr_expect(eq(int, client_get(s->port, target, NULL, TIMEOUT_MS), 404));
	cr_expect(eq(int, request(s, "DELETE", "/albums/x", "@", "", NULL, NULL), 404));
	free(target);
	service_stop(s);
}

Test(albums_write, version_seen_is_the_version_changed, .timeout = 60)
{
	service *s = service_start(NULL);
	char *first, *second, *target = create(s, "Versions", &first);
	char *got = etag_of(s, target, "");

	cr_expect(eq(str, got, first), "POST told the tag that GET tells");
	free(got);
	cr_expect(eq(int,
	             request(s, "PATCH", target, AS_JSON "If-Match: @\r\n", first, "{\"price\":1}", NULL),
	             200));
	second = etag_of(s, target, "");
	cr_expect(strcmp(first, second) != 0, "a change is a new version");
	cr_expect(eq(int,
	             request(s, "PATCH", target, AS_JSON "If-Match: @\r\n", first, "{\"price\":2}", NULL),
	             412));
	cr_expect(eq(int,
	             request(s, "PUT", target, AS_JSON "If-Match: @\r\n", first,
	                     "{\"title\":\"T\",\"artist\":\"A\",\"price\":2}", NULL),
	             412));
	cr_expect(eq(int, request(s, "DELETE", target, "If-Match: @\r\n", first, NULL, NULL), 412));
	cr_expect(eq(int, request(s, "DELETE", target, "If-Match: W/@\r\n", second, NULL, NULL), 412),
	          "weak is not the same");
	cr_expect(eq(
		int,
		request(s, "DELETE", target, "If-Match: \"0\", \"x'); --\", nonsense%s\r\n", "", NULL, NULL),
		412));
	cr_expect(eq(
		int,
		request(s, "PATCH", target, AS_JSON "If-Match: \"1\", @\r\n", second, "{\"price\":3}", NULL),
		200));
	cr_expect(eq(int, request(s, "PATCH", target, AS_JSON "If-Match: *@\r\n", "", "{\"price\":4}", NULL),
	             200));
	cr_expect(eq(int,
	             request(s, "PATCH", target, AS_JSON "If-None-Match: *@\r\n", "", "{\"price\":5}", NULL),
	             412));
	second[strlen(second) - 1] =
		'\0'; /* of another representation, and weak: the same version all the same */
	cr_expect(eq(int,
	             request(s, "PATCH", target, AS_JSON "If-None-Match: W/@-csv\"\r\n", second,
	                     "{\"price\":5}", NULL),
	             200),
	          "that was the version before");
	free(second);
	second = etag_of(s, target, "");
	cr_expect(eq(int, request(s, "DELETE", target, "If-None-Match: W/@\r\n", second, NULL, NULL), 412));
	cr_expect(eq(int, request(s, "DELETE", target, "If-Match: *@\r\n", "", NULL, NULL), 204));
	cr_expect(eq(int, request(s, "DELETE", target, "If-None-Match: *@\r\n", "", NULL, NULL), 404));
	cr_expect(eq(int, request(s, "DELETE", target, "If-Match: @\r\n", second, NULL, NULL), 404));
	free(first);
	free(second);
	free(target);
	service_stop(s);
}

/*
 * A change that waits for another's lock looks at the version again when it gets it. The lock is held on a connection
 * of its own: within a transaction pg_stat_activity goes on saying what it said at first, and the change might not
 * have been running then.
 */
Test(albums_write, version_is_looked_at_when_the_row_is_locked, .timeout = 60)
{
	service *s = service_start(NULL);
	activity *other = activity_open(support_database_url());
	char *etag, *target = create(s, "Locked", &etag);
	char sql[128];
	client *c = client_connect(s->port);
	reply r;

	cr_assert_not_null(other);
	free(activity_sql(other, "BEGIN"));
	snprintf(sql, sizeof sql, "UPDATE album SET price = 77 WHERE id = %s", target + 8);
	free(activity_sql(other, sql));
	cr_assert(client_send(c,
	                      "PATCH %s HTTP/1.1\r\nHost: h\r\n" AS_JSON
	                      "If-Match: %s\r\nContent-Length: 11\r\n\r\n{\"price\":1}",
	                      target, etag));
	cr_assert(service_runs(s, 1, TIMEOUT_MS));
	free(activity_sql(other, "COMMIT"));
	cr_assert(client_receive(c, &r, TIMEOUT_MS));
	cr_expect(eq(int, r.status, 412));
	reply_free(&r);
	client_close(c);
	free(etag);
	free(target);
	activity_close(other);
	service_stop(s);
}

/*
 * A condition may be in several lines, which together are one (RFC 9110, 5.2). Of these only the first was looked at, and
 * what the second ruled out was done.
 */
Test(albums_write, conditions_in_several_lines_are_one, .timeout = 60)
{
	static const char whole[] = "{\"title\":\"New\",\"artist\":\"Lines\",\"price\":10}";
	service *s = service_start(NULL);
	char *etag;
	char *target = create(s, "Lines", &etag);

	cr_expect(eq(int,
	             request(s, "PUT", target, AS_JSON "If-None-Match: \"7\"\r\nIf-None-Match: @\r\n", etag,
	                     whole, NULL),
	             412));
	cr_expect(eq(
		int,
		request(s, "GET", target, "If-None-Match: \"7\"\r\nif-none-match: @\r\n", etag, NULL, NULL),
		304));
	cr_expect(
		eq(int,
	           request(s, "GET", target,
	                   "Accept: image/png\r\nX-Other: @\r\nAccept: application/json\r\n", "", NULL, NULL),
	           200));
	cr_expect(
		eq(int,
	           request(s, "PUT", target, AS_JSON "If-Match: \"7\"\r\nIf-Match: @\r\n", etag, whole, NULL),
	           200));
	free(target);
	free(etag);
	service_stop(s);
}

Test(albums_write, what_the_client_has_is_not_sent_again, .timeout = 60)
{
	service *s = service_start(NULL);
	char *etag = etag_of(s, "/albums/2", "");
	char *csv = etag_of(s, "/albums/2", "Accept: text/csv\r\n");
	char *body;

	cr_expect(strcmp(etag, csv) != 0, "one tag is of one representation");
	cr_expect(eq(int, request(s, "GET", "/albums/2", "If-None-Match: @\r\n", etag, NULL, &body), 304));
	cr_expect(eq(str, body, ""));
	free(body);
	cr_expect(eq(int, request(s, "GET", "/albums/2", "If-None-Match: \"x\", W/@\r\n", etag, NULL, NULL),
	             304));
	cr_expect(eq(int, request(s, "GET", "/albums/2", "If-None-Match: *@\r\n", "", NULL, NULL), 304));
	cr_expect(eq(int, request(s, "HEAD", "/albums/2", "If-None-Match: @\r\n", etag, NULL, NULL), 304));
	cr_expect(eq(int, request(s, "GET", "/albums/2", "If-None-Match: @\r\n", csv, NULL, NULL), 200));
	cr_expect(eq(int, request(s, "GET", "/albums/2", "If-None-Match: \"0\"@\r\n", "", NULL, NULL), 200));
	cr_expect(eq(int, request(s, "HEAD", "/albums/2", "@", "", NULL, &body), 200));
	cr_expect(eq(str, body, ""));
	free(body);
	free(etag);
	free(csv);
	service_stop(s);
}

Test(albums_write, many_at_once_or_none, .timeout = 60)
{
	service *s = service_start(NULL);
	char *body, *count;
	json_t *list;

	cr_expect(
		eq(int,
	           request(s, "POST", "/albums", AS_JSON "@", "",
	                   "[{\"title\":\"One \\\"\\\\,{}\",\"artist\":\"Many\",\"price\":1.10},\n"
	                   " {\"price\":2.2e0,\"artist\":\"Many\",\"title\":\"Two\"} , {\"artist\":\"Many\","
	                   "\"title\":\"NULL\",\"price\":3}]",
	                   &body),
	           201));
	list = json_loads(body, 0, NULL);
	cr_assert(eq(int, (int)json_array_size(list), 3), "%s", body);
	cr_expect_not_null(strstr(body, "\"title\":\"One \\\"\\\\,{}\",\"artist\":\"Many\",\"price\":1.10}"));
	cr_expect_not_null(strstr(body, "\"title\":\"Two\",\"artist\":\"Many\",\"price\":2.20}"));
	cr_expect_not_null(strstr(body, "\"title\":\"NULL\",\"artist\":\"Many\",\"price\":3.00}"));
	json_decref(list);
	free(body);

	cr_expect(eq(int,
	             request(s, "POST", "/albums", AS_JSON "@", "",
	                     "[{\"title\":\"x\",\"artist\":\"Many\",\"price\":1},{\"title\":\"\",\"artist\":"
	                     "\"Many\"}]",
	                     &body),
	             422));
	cr_expect(strstr(body, "\"[1].title\"") && strstr(body, "\"[1].price\""), "%s", body);
	free(body);
	/* Acceptable to albumd, not to the table: nothing of it is kept. */
	cr_expect(eq(int,
	             request(s, "POST", "/albums", AS_JSON "@", "",
	                     "[{\"title\":\"x\",\"artist\":\"Many\",\"price\":1},{\"title\":\"\\u3000\","
	                     "\"artist\":\"Many\",\"price\":1}]",
	                     NULL),
	             422));
	count = activity_sql(s->activity, "SELECT count(*) FROM album WHERE artist = 'Many'");
	cr_expect(eq(str, count, "3"));
	free(count);
	cr_expect(eq(int, request(s, "POST", "/albums", AS_JSON "@", "", "[]", NULL), 422));
	service_stop(s);
}

Test(albums_write, a_thousand_at_once_but_no_more, .timeout = 60)
{
	enum { MOST = 1000 };
	static const char one[] = "{\"title\":\"t\",\"artist\":\"Thousand\",\"price\":0.01},";
	service *s = service_start(NULL);
	char *sent = malloc((MOST + 1) * sizeof one + 2), *at = sent;
	char *count;

	*at++ = '[';
	for (int i = 0; i < MOST; i++)
		at = stpcpy(at, one);
	at[-1] = ']';
	cr_expect(eq(int, request(s, "POST", "/albums", AS_JSON "@", "", sent, NULL), 201));
	at[-1] = ',';
	at = stpcpy(at, one);
	at[-1] = ']';
	cr_expect(eq(int, request(s, "POST", "/albums", AS_JSON "@", "", sent, NULL), 422));
	count = activity_sql(s->activity, "SELECT count(*) FROM album WHERE artist = 'Thousand'");
	cr_expect(eq(str, count, "1000"));
	free(count);
	free(sent);
	service_stop(s);
}

static void expect_header(const reply *r, const char *name, const char *expected)
{
	char *value = reply_header(r, name);

	if (expected)
		cr_expect(value && strcmp(value, expected) == 0, "%s: %s", name, value ? value : "missing");
	else
		cr_expect_null(value, "%s: %s", name, value);
	free(value);
}

/*
 * To find the text of each member's value the whole document was gone through again from its beginning: a body of a
 * megabyte with a hundred thousand members kept its worker, and everybody else's requests on it, for minutes.
 */
Test(albums_write, a_body_of_many_members_is_gone_through_once, .timeout = 60)
{
	enum { MEMBERS = 60000, MEMBER_SIZE = 16 };
	service *s = service_start(NULL);
	char *sent = malloc(MEMBERS * MEMBER_SIZE + 2), *at = sent;
	char *body;

	*at++ = '{';
	for (int i = 0; i < MEMBERS; i++)
		at += sprintf(at, "\"%x\": 0,", i);
	at[-1] = '}';
	cr_assert(eq(int, request(s, "POST", "/albums", AS_JSON "@", "", sent, &body), 422));
	cr_expect_not_null(strstr(body, "\"field\":\"0\""));
	free(body);
	free(sent);
	service_stop(s);
}

Test(albums_write, options, .timeout = 60)
{
	service *s = service_start(NULL);
	reply r;

	cr_expect(eq(int, client_request(s->port, "OPTIONS", "/albums", "", NULL, &r, TIMEOUT_MS), 204));
	expect_header(&r, "Allow", "GET, HEAD, OPTIONS, POST");
	expect_header(&r, "Access-Control-Allow-Origin", NULL);
	reply_free(&r);
	cr_expect(eq(int, client_request(s->port, "OPTIONS", "/albums/1", "", NULL, &r, TIMEOUT_MS), 204));
	expect_header(&r, "Allow", "DELETE, GET, HEAD, OPTIONS, PATCH, PUT");
	reply_free(&r);
	/* The same that is told to who uses another method. */
	cr_expect(eq(int, client_request(s->port, "POST", "/albums/1", "", "", &r, TIMEOUT_MS), 405));
	expect_header(&r, "Allow", "DELETE, GET, HEAD, OPTIONS, PATCH, PUT");
	reply_free(&r);
	service_stop(s);
}

Test(albums_write, browsers_of_one_other_origin_are_admitted, .timeout = 60)
{
	static const char preflight[] = "Origin: https://a.example\r\nAccess-Control-Request-Method: PUT\r\n";
	service *s = service_start((const char *const[]){"--cors-origin", "https://a.example", NULL});
	reply r;

	cr_expect(eq(int, client_request(s->port, "OPTIONS", "/albums/1", preflight, NULL, &r, TIMEOUT_MS),
	             204));
	expect_header(&r, "Access-Control-Allow-Origin", "https://a.example");
	expect_header(&r, "Access-Control-Allow-Methods", "DELETE, GET, HEAD, OPTIONS, PATCH, PUT");
	reply_free(&r);
	client_request(s->port, "GET", "/albums/1", "Origin: https://a.example\r\n", NULL, &r, TIMEOUT_MS);
	expect_header(&r, "Access-Control-Allow-Origin", "https://a.example");
	expect_header(&r, "Vary", "Accept, Origin");
	reply_free(&r);
	client_request(s->port, "GET", "/albums/1", "Origin: https://b.example\r\n", NULL, &r, TIMEOUT_MS);
	expect_header(&r, "Access-Control-Allow-Origin", NULL);
	reply_free(&r);
	service_stop(s);
}

static bool seven_were_turned_away(void *arg)
{
	return service_log_count(arg, "unauthorized") == 7;
}

Test(albums_write, token, .timeout = 60)
{
	char path[] = "/tmp/tether-token.XXXXXX";
	int fd = mkstemp(path);
	service *s;
	char *target, *body;

	cr_assert(fd >= 0 && write(fd, "s3cret\n", 7) == 7);
	close(fd);
	s = service_start(
		(const char *const[]){"--write-token-file", path, "--admin-token-file", path, NULL});
	unlink(path);
	cr_expect(eq(int, client_get(s->port, "/albums/1", NULL, TIMEOUT_MS), 200), "reading needs none");
	static const char *const wrong[] = {"",
	                                    "Authorization: Bearer s3cre\r\n",
	                                    "Authorization: Bearer s3cret2\r\n",
	                                    "Authorization: Bearer \r\n",
	                                    "Authorization: Bearer\r\n",
	                                    "Authorization: Basic s3cret\r\n",
	                                    "Authorization: s3cret\r\n"};
	for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
		reply r;

		cr_expect(eq(int,
		             client_request(s->port, "DELETE", "/albums/1", wrong[i], NULL, &r, TIMEOUT_MS),
		             401));
		char *challenge = reply_header(&r, "WWW-Authenticate");
		cr_expect(challenge && strncmp(challenge, "Bearer", 6) == 0);
		free(challenge);
		reply_free(&r);
		cr_expect(
			eq(int,
		           client_request(s->admin_port, "GET", "/metrics", wrong[i], NULL, NULL, TIMEOUT_MS),
		           401));
	}
	cr_expect(eq(int,
	             request(s, "POST", "/albums", "Authorization: bearer s3cret\r\n" AS_JSON "@", "",
	                     "{\"title\":\"t\",\"artist\":\"Token\",\"price\":1}", &body),
	             201));
	free(body);
	cr_expect(eq(int,
	             client_request(s->admin_port, "GET", "/metrics", "Authorization: Bearer s3cret\r\n",
	                            NULL, NULL, TIMEOUT_MS),
	             200));
	cr_expect(eq(int, client_get(s->admin_port, "/livez", NULL, TIMEOUT_MS), 200));
	cr_expect(eq(int, client_get(s->admin_port, "/readyz", NULL, TIMEOUT_MS), 200));
	cr_expect(eventually(seven_were_turned_away, s, TIMEOUT_MS), "%d",
	          service_log_count(s, "unauthorized"));
	target = process_output(s->albumd->process);
	cr_expect_null(strstr(target, "s3cret"), "in the log");
	free(target);
	service_stop(s);
}
