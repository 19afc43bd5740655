/* GET /albums: filters, orders, pages, counts, and representations. */
#include <criterion/criterion.h>
#include <criterion/new/assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "client.h"
#include "service.h"
#include "support.h"

enum { TIMEOUT_MS = 10000, ALBUMS = 25 };

/* Albums of one artist, of whom no other test knows: titles and prices are in other orders than ids, with ties. */
static void fill(const service *s, const char *artist)
{
	char sql[512];

	snprintf(sql, sizeof sql,
	         "INSERT INTO album (title, artist, price) SELECT 'Title ' || lpad((n * 7 %% 10)::text, 2, "
	         "'0'), '%s',"
	         " n * 11 %% 13 + 0.5 FROM generate_series(1, %d) n",
	         artist, ALBUMS);
	free(activity_sql(s->activity, sql));
}

/* All ids of the artist in an order that PostgreSQL itself gives, "1,2,3". The caller frees it. */
static char *expected_ids(const service *s, const char *artist, const char *order)
{
	char sql[256];

	snprintf(sql, sizeof sql,
	         "SELECT string_agg(id::text, ',' ORDER BY %s) FROM album WHERE artist = '%s'", order,
	         artist);
	return activity_sql(s->activity, sql);
}

static void append_ids(const char *body, char *ids, size_t size)
{
	json_t *list = json_loads(body, 0, NULL), *album;
	size_t i;

	cr_assert_not_null(list, "%s", body);
	json_array_foreach(list, i, album)
		snprintf(ids + strlen(ids), size - strlen(ids), "%s%lld", *ids ? "," : "",
	                 json_integer_value(json_object_get(album, "id")));
	json_decref(list);
}

/* The target of a Link of relation next, to be freed; NULL if there is none. */
static char *next_page(const reply *r)
{
	char *link = reply_header(r, "Link");
	char *target = NULL;

	if (link) {
		char *end = strchr(link, '>');

		cr_assert(link[0] == '<' && end && strcmp(end, ">; rel=\"next\"") == 0, "%s", link);
		target = strndup(link + 1, (size_t)(end - link - 1));
	}
	free(link);
	return target;
}

/* Follows the links from `target` to the last page. Returns how many pages there were. */
static int read_pages(const service *s, const char *target, char *ids, size_t size)
{
	char *next = strdup(target);
	int pages = 0;

	ids[0] = '\0';
	while (next && pages < 100) {
		reply r;

		cr_assert(eq(int, client_get(s->port, next, &r, TIMEOUT_MS), 200), "%s: %s", next, r.body);
		append_ids(r.body, ids, size);
		free(next);
		next = next_page(&r);
		reply_free(&r);
		pages++;
	}
	free(next);
	return pages;
}

Test(albums_list, pages_show_everything_once_in_any_order, .timeout = 120)
{
	static const struct {
		const char *sort, *order;
	} orders[] = {
		{"", "id"},
		{"&sort=id", "id"},
		{"&sort=-id", "id DESC"},
		{"&sort=title", "title, id"},
		{"&sort=-title", "title DESC, id DESC"},
		{"&sort=price", "price, id"},
		{"&sort=-price", "price DESC, id DESC"},
		{"&sort=artist", "artist, id"},
		{"&sort=-artist", "artist DESC, id DESC"},
	};
	service *s = service_start(NULL);
	char target[128], ids[1024];

	fill(s, "Pages & Co?");
	for (size_t i = 0; i < sizeof orders / sizeof *orders; i++) {
		char *expected = expected_ids(s, "Pages & Co?", orders[i].order);

		snprintf(target, sizeof target, "/albums?artist=Pages%%20%%26%%20Co%%3F&limit=4%s",
		         orders[i].sort);
		cr_expect(eq(int, read_pages(s, target, ids, sizeof ids), 7), "%s", target);
		cr_expect(eq(str, ids, expected), "%s", target);
		free(expected);
	}
	service_stop(s);
}

Test(albums_list, last_page_has_no_next, .timeout = 60)
{
	service *s = service_start(NULL);
	char ids[1024];

	fill(s, "Last");
	cr_expect(eq(int, read_pages(s, "/albums?artist=Last&limit=5", ids, sizeof ids), 5),
	          "25 are five pages of 5");
	cr_expect(eq(int, read_pages(s, "/albums?artist=Last&limit=25", ids, sizeof ids), 1));
	cr_expect(eq(int, read_pages(s, "/albums?artist=Last&limit=24", ids, sizeof ids), 2));
	cr_expect(eq(int, read_pages(s, "/albums?artist=Last", ids, sizeof ids), 1));
	cr_expect(eq(int, read_pages(s, "/albums?artist=Nobody", ids, sizeof ids), 1));
	service_stop(s);
}

Test(albums_list, page_goes_on_when_albums_come_and_go, .timeout = 60)
{
	service *s = service_start(NULL);
	reply r;
	char *next, *after, sql[128];

	fill(s, "Moving");
	cr_assert(eq(int, client_get(s->port, "/albums?artist=Moving&limit=10", &r, TIMEOUT_MS), 200));
	next = next_page(&r);
	reply_free(&r);
	cr_assert_not_null(next);
	after = strstr(next, "after=");
	cr_assert_not_null(after);
	/* By id the place needs no album to be there. */
	snprintf(sql, sizeof sql, "DELETE FROM album WHERE id = %s", after + strlen("after="));
	free(activity_sql(s->activity, sql));
	cr_expect(eq(int, client_get(s->port, next, &r, TIMEOUT_MS), 200));
	char ids[1024] = "";
	append_ids(r.body, ids, sizeof ids);
	cr_expect(strchr(ids, ',') != NULL, "the second page is not empty: %s", ids);
	reply_free(&r);
	free(next);

	/* By title it does, and its loss is told: the page must not look like the end. */
	cr_assert(eq(int, client_get(s->port, "/albums?artist=Moving&limit=10&sort=title", &r, TIMEOUT_MS),
	             200));
	next = next_page(&r);
	reply_free(&r);
	cr_assert_not_null(next);
	snprintf(sql, sizeof sql, "DELETE FROM album WHERE id = %s",
	         strstr(next, "after=") + strlen("after="));
	free(activity_sql(s->activity, sql));
	cr_expect(eq(int, client_get(s->port, next, &r, TIMEOUT_MS), 410));
	reply_free(&r);
	free(next);
	service_stop(s);
}

Test(albums_list, parameters_that_are_wrong, .timeout = 60)
{
	static const char *const wrong[] = {
		"limit=0",       "limit=-1",      "limit=1001",   "limit=ten",   "limit=",
		"limit=1.5",     "limit=all",     "sort=",        "sort=colour", "sort=--id",
		"sort=title,id", "sort=title%3B", "after=x",      "after=",      "after=-1",
		"after=1%20",    "artist=%FF",    "title=%C3%28", "delay=never", "after=9223372036854775808",
	};
	service *s = service_start(NULL);
	char target[64];
	reply r;

	for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
		snprintf(target, sizeof target, "/albums?%s", wrong[i]);
		cr_expect(eq(int, client_get(s->port, target, &r, TIMEOUT_MS), 400), "%s", target);
		char *type = reply_header(&r, "Content-Type");
		cr_expect(eq(str, type, "application/problem+json"));
		free(type);
		reply_free(&r);
	}
	service_stop(s);
}

Test(albums_list, filters_too_long_to_be_repeated_are_told_so, .timeout = 60)
{
	service *s = service_start(NULL);
	char target[4200] = "/albums?limit=1&title=";
	reply r;

	free(activity_sql(s->activity,
	                  "INSERT INTO album (title, artist, price)"
	                  " SELECT repeat(U&'\\+01F3B7', 255), 'Long', 1 FROM generate_series(1, 2)"));
	for (int i = 0; i < 255; i++)
		strcat(target, "%F0%9F%8E%B7");
	cr_expect(eq(int, client_get(s->port, target, &r, TIMEOUT_MS), 400));
	reply_free(&r);
	target[strlen("/albums?limit=")] = '9';
	cr_expect(eq(int, client_get(s->port, target, &r, TIMEOUT_MS), 200), "one page needs no link: %s",
	          r.body);
	reply_free(&r);
	service_stop(s);
}

Test(albums_list, filter_by_title_and_count, .timeout = 60)
{
	service *s = service_start(NULL);
	char *total, *applied;
	reply r;

	fill(s, "Counted");
	cr_expect(eq(int,
	             client_request(s->port, "GET", "/albums?artist=Counted&title=Title+07&limit=2",
	                            "Prefer: wait=3, count=exact\r\n", NULL, &r, TIMEOUT_MS),
	             200));
	total = reply_header(&r, "Total-Count");
	applied = reply_header(&r, "Preference-Applied");
	cr_expect(total && strcmp(total, "3") == 0, "%s", total ? total : "missing");
	cr_expect(applied && strcmp(applied, "count=exact") == 0);
	free(total);
	free(applied);
	reply_free(&r);
	cr_expect(eq(int, client_get(s->port, "/albums?artist=Counted", &r, TIMEOUT_MS), 200));
	total = reply_header(&r, "Total-Count");
	cr_expect(total == NULL, "it was not asked for");
	reply_free(&r);
	service_stop(s);
}

Test(albums_list, as_csv, .timeout = 60)
{
	service *s = service_start(NULL);
	reply r;
	char *id, *expected = NULL;

	id = activity_sql(s->activity, "INSERT INTO album (title, artist, price)"
	                               " VALUES (E'say \"hi\", twice\\nor so', 'Csv', 3.5) RETURNING id");
	cr_assert_not_null(id);
	cr_assert(asprintf(&expected,
	                   "id,title,artist,price\r\n%s,\"say \"\"hi\"\", twice\nor so\",Csv,3.50\r\n",
	                   id) > 0);
	cr_expect(eq(int,
	             client_request(s->port, "GET", "/albums?artist=Csv", "Accept: text/csv\r\n", NULL, &r,
	                            TIMEOUT_MS),
	             200));
	cr_expect(eq(str, r.body, expected));
	char *type = reply_header(&r, "Content-Type");
	cr_expect(eq(str, type, "text/csv; charset=utf-8"));
	free(type);
	reply_free(&r);
	free(expected);
	free(id);
	cr_expect(eq(int,
	             client_request(s->port, "GET", "/albums?artist=Nobody", "Accept: text/csv\r\n", NULL, &r,
	                            TIMEOUT_MS),
	             200));
	cr_expect(eq(str, r.body, "id,title,artist,price\r\n"));
	reply_free(&r);
	service_stop(s);
}

Test(albums_list, representation_is_what_the_client_prefers, .timeout = 60)
{
	static const struct {
		const char *accept;
		const char *type; /* NULL: 406 */
	} preferences[] = {
		{"application/json", "application/json"},
		{"*/*", "application/json"},
		{"text/csv", "text/csv; charset=utf-8"},
		{"TEXT/CSV", "text/csv; charset=utf-8"},
		{"text/*", "text/csv; charset=utf-8"},
		{"text/csv, application/json", "application/json"},
		{"text/csv, application/json;q=0.9", "text/csv; charset=utf-8"},
		{"text/csv;q=0.5 , application/*;q=0.6", "application/json"},
		{"text/csv;header=present;q=1, */*;q=0.1", "text/csv; charset=utf-8"},
		{"*/*, application/json;q=0", "text/csv; charset=utf-8"},
		{"text/html, application/xhtml+xml, */*;q=0.8", "application/json"},
		{"text/html", NULL},
		{"application/json;q=0", NULL},
		{"application/json;q=0.000, text/csv;q=0", NULL},
		{",,,", NULL},
	};
	service *s = service_start(NULL);
	char header[128];
	reply r;

	for (size_t i = 0; i < sizeof preferences / sizeof *preferences; i++) {
		const char *expected = preferences[i].type ? preferences[i].type : "application/problem+json";

		snprintf(header, sizeof header, "Accept: %s\r\n", preferences[i].accept);
		int status = client_request(s->port, "GET", "/albums/1", header, NULL, &r, TIMEOUT_MS);
		char *type = reply_header(&r, "Content-Type");

		cr_expect(eq(int, status, preferences[i].type ? 200 : 406), "%s", preferences[i].accept);
		cr_expect(eq(str, type, (char *)expected), "%s", preferences[i].accept);
		free(type);
		reply_free(&r);
	}
	service_stop(s);
}
