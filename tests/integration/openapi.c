/*
 * The OpenAPI document against the running service. Each status that it documents for an operation is brought about,
 * and the answer held against what is documented of it: fields of the head and body; and nothing else is answered.
 */
#include <criterion/criterion.h>
#include <criterion/new/assert.h>
#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "client.h"
#include "schema.h"
#include "service.h"
#include "support.h"

enum { TIMEOUT_MS = 20000, FAULT_SIZE = 1024 };

#define AS_JSON "Content-Type: application/json\r\n"
#define ALBUM   "{\"title\":\"Documented\",\"artist\":\"Openapi\",\"price\":12.5}"

/* ---- How each answer is brought about --------------------------------------------------------------- */

/* The services that are asked: as usual, with a token for changes, without the table, without a database. */
enum which { USUAL, GUARDED, WITHOUT_TABLE, WITHOUT_DATABASE, LOCKED, SERVICES = LOCKED };

typedef struct recipe {
	const char *operation; /* NULL: any */
	int status;
	enum which which;
	const char *target;  /* NULL: that of the operation's good request; {id} stands for a new album's */
	const char *headers; /* besides the good request's, or in its place if `body` is given */
	const char *body;    /* NULL: that of the good request */
} recipe;

/* A request of each operation with which all is well. */
static const recipe good[] = {
	{"listAlbums", 200, USUAL, "/albums?artist=Openapi&limit=1", "Prefer: count=exact\r\n", NULL},
	{"headAlbums", 200, USUAL, "/albums?limit=1", "Prefer: count=exact\r\n", NULL},
	{"createAlbums", 201, USUAL, "/albums", AS_JSON, ALBUM},
	{"optionsAlbums", 204, USUAL, "/albums", "", NULL},
	{"getAlbum", 200, USUAL, "/albums/{id}", "", NULL},
	{"headAlbum", 200, USUAL, "/albums/{id}", "", NULL},
	{"replaceAlbum", 200, USUAL, "/albums/{id}", AS_JSON, ALBUM},
	{"changeAlbum", 200, USUAL, "/albums/{id}", AS_JSON, "{\"price\":3}"},
	{"deleteAlbum", 204, USUAL, "/albums/{id}", "", NULL},
	{"optionsAlbum", 204, USUAL, "/albums/{id}", "", NULL},
	{"getOpenapi", 200, USUAL, "/openapi.json", "", NULL},
	{"headOpenapi", 200, USUAL, "/openapi.json", "", NULL},
};

/* What goes wrong, in the first way that is for the operation. */
static const recipe wrong[] = {
	{NULL, 304, USUAL, NULL, "If-None-Match: *\r\n", NULL},
	{NULL, 400, USUAL, NULL, "Host: twice\r\n", NULL},
	{NULL, 401, GUARDED, NULL, "", NULL},
	{NULL, 404, USUAL, "/albums/9223372036854775807", "", NULL},
	{NULL, 406, USUAL, NULL, "Accept: text/html\r\n", NULL},
	{NULL, 408, USUAL, NULL, "Content-Length: 4000\r\n", ""},
	{NULL, 410, USUAL, "/albums?sort=title&after=9223372036854775807", "", NULL},
	{NULL, 412, USUAL, NULL, "If-Match: \"0\"\r\n", NULL},
	{NULL, 413, USUAL, NULL, "Content-Length: 99999999\r\n", ""},
	{NULL, 415, USUAL, NULL, "Content-Type: text/plain\r\n", "{}"},
	{NULL, 417, USUAL, NULL, "Expect: tea\r\n", NULL},
	{NULL, 422, USUAL, NULL, AS_JSON, "{\"title\":\"\",\"price\":0.001,\"colour\":1}"},
	{NULL, 431, USUAL, NULL, "X-Long: %", NULL}, /* %: 10 kB */
	{NULL, 500, WITHOUT_TABLE, NULL, "", NULL},
	{NULL, 501, USUAL, NULL, "Transfer-Encoding: gzip, chunked\r\n", ""},
	{NULL, 503, WITHOUT_DATABASE, NULL, "", NULL},
	{NULL, 504, LOCKED, NULL, "Prefer: wait=1\r\n", NULL},
};

/* Requests of all sorts, of which nothing is expected but that the document knows what comes of them. */
static const struct {
	const char *operation, *target, *headers, *body;
} odd[] = {
	{"listAlbums", "/albums?limit=all", "", NULL},
	{"listAlbums", "/albums?limit=0", "", NULL},
	{"listAlbums", "/albums?sort=colour", "", NULL},
	{"listAlbums", "/albums?after=x", "", NULL},
	{"listAlbums", "/albums?delay=never", "", NULL},
	{"listAlbums", "/albums?artist=%FF", "", NULL},
	{"listAlbums", "/albums?artist=%00", "", NULL},
	{"listAlbums", "/albums?sort=-price&limit=1000", "Accept: text/csv\r\n", NULL},
	{"listAlbums", "/albums?delay=3s", "Prefer: wait=1\r\n", NULL},
	{"listAlbums", "/albums", "Accept: text/csv;q=0, application/json;q=0\r\n", NULL},
	{"headAlbums", "/albums?limit=-1", "", NULL},
	{"createAlbums", "/albums", AS_JSON, "[" ALBUM "," ALBUM "]"},
	{"createAlbums", "/albums", AS_JSON, "[" ALBUM ",{}]"},
	{"createAlbums", "/albums", AS_JSON, "[]"},
	{"createAlbums", "/albums", AS_JSON, "{\"title\":\"\\u3000\",\"artist\":\"A\",\"price\":1}"},
	{"createAlbums", "/albums", AS_JSON, "{\"title\":\"\\u0000\",\"artist\":\"A\",\"price\":1}"},
	{"createAlbums", "/albums", AS_JSON, "{\"title\":\"T\",\"artist\":\"A\",\"price\":1e400}"},
	{"createAlbums", "/albums", AS_JSON, "{\"title\":\"T\",\"artist\":\"A\",\"price\":\"1\"}"},
	{"createAlbums", "/albums", AS_JSON, "[[[[[[[[[[[[[[[[[[[[]]]]]]]]]]]]]]]]]]]]"},
	{"createAlbums", "/albums", AS_JSON, "{"},
	{"createAlbums", "/albums", AS_JSON, ""},
	{"createAlbums", "/albums", "", NULL},
	{"createAlbums", "/albums", AS_JSON "Content-Encoding: gzip\r\n", ALBUM},
	{"getAlbum", "/albums/x", "", NULL},
	{"getAlbum", "/albums/0", "", NULL},
	{"getAlbum", "/albums/1", "If-None-Match: nonsense\r\n", NULL},
	{"getAlbum", "/albums/1", "If-Match: \"0\"\r\n", NULL},
	{"getAlbum", "/albums/1", "Range: bytes=0-1\r\n", NULL},
	{"getAlbum", "/albums/1", "Prefer: wait=0\r\n", NULL},
	{"replaceAlbum", "/albums/{id}", AS_JSON "If-None-Match: *\r\n", ALBUM},
	{"replaceAlbum", "/albums/{id}", AS_JSON, "[]"},
	{"replaceAlbum", "/albums/x", AS_JSON, ALBUM},
	{"changeAlbum", "/albums/{id}", AS_JSON, "null"},
	{"changeAlbum", "/albums/{id}", AS_JSON, "{\"id\":0}"},
	{"changeAlbum", "/albums/{id}", "Content-Type: application/json-patch+json\r\n", "[]"},
	{"deleteAlbum", "/albums/{id}", "If-Match: *\r\n", NULL},
	{"deleteAlbum", "/albums/{id}", AS_JSON, "{}"},
	{"optionsAlbum", "/albums/x", "", NULL},
	{"optionsAlbums", "/albums", "Origin: https://a.example\r\nAccess-Control-Request-Method: PUT\r\n",
         NULL},
	{"getOpenapi", "/openapi.json?x", "Accept: text/html\r\n", NULL},
};

/* ---- The services ----------------------------------------------------------------------------------- */

static service *usual;
static albumd *services[SERVICES];
static json_t *document;

static void start_all(void)
{
	char token[] = "/tmp/tether-token.XXXXXX", dead[96], other[512];
	const char *url = support_database_url(), *name = strstr(url, "/albums");
	int fd = mkstemp(token);
	reply r;

	cr_assert(name && fd >= 0 && write(fd, "s3cret\n", 7) == 7);
	close(fd);
	snprintf(other, sizeof other, "%.*s/tableless%s", (int)(name - url), url, name + strlen("/albums"));
	snprintf(dead, sizeof dead, "postgresql://127.0.0.1:%d/albums", support_free_port());
	usual = service_start((const char *const[]){"--body-timeout", "250ms", "--cors-origin", "*", NULL});
	services[USUAL] = usual->albumd;
	services[GUARDED] = albumd_start(
		&(albumd_options){.args = (const char *const[]){"--write-token-file", token, NULL}});
	free(activity_sql(usual->activity, "DROP DATABASE IF EXISTS tableless WITH (FORCE)"));
	free(activity_sql(usual->activity, "CREATE DATABASE tableless"));
	activity *tableless = activity_open(other);
	cr_assert_not_null(tableless);
	/* Without its table albumd would not start: it loses it after that. */
	free(activity_sql(tableless, "CREATE TABLE album ()"));
	services[WITHOUT_TABLE] = albumd_start(&(albumd_options){.database_url = other});
	free(activity_sql(tableless, "DROP TABLE album"));
	activity_close(tableless);
	services[WITHOUT_DATABASE] = albumd_start(&(albumd_options){.database_url = dead});
	for (int i = 0; i < SERVICES; i++)
		cr_assert_not_null(services[i]);
	unlink(token);
	cr_assert(eq(int, client_get(usual->port, "/openapi.json", &r, TIMEOUT_MS), 200));
	document = json_loads(r.body, JSON_REJECT_DUPLICATES, NULL);
	cr_assert_not_null(document);
	reply_free(&r);
}

static void stop_all(void)
{
	for (int i = GUARDED; i < SERVICES; i++)
		albumd_stop(services[i]);
	free(activity_sql(usual->activity, "DROP DATABASE tableless WITH (FORCE)"));
	service_stop(usual);
	json_decref(document);
}

/* ---- The document ----------------------------------------------------------------------------------- */

/* One operation of the document. */
typedef struct operation {
	const char *id;
	char method[16];
	json_t *responses, *request_body;
} operation;

/* Calls visit for each operation there is. */
static void each_operation(void (*visit)(const operation *o))
{
	const char *path, *method;
	json_t *item, *node;

	json_object_foreach(json_object_get(document, "paths"), path, item)
	{
		json_object_foreach(item, method, node)
		{
			operation o = {.id = json_string_value(json_object_get(node, "operationId")),
			               .responses = json_object_get(node, "responses"),
			               .request_body = json_object_get(node, "requestBody")};

			if (strcmp(method, "parameters") == 0)
				continue;
			cr_assert(o.id && o.responses, "%s %s", method, path);
			for (size_t i = 0; method[i] && i < sizeof o.method - 1; i++)
				o.method[i] = (char)toupper(method[i]);
			visit(&o);
		}
	}
}

static const recipe *find(const recipe list[], size_t count, const operation *o, int status)
{
	for (size_t i = 0; i < count; i++) {
		if ((!list[i].operation || strcmp(list[i].operation, o->id) == 0) &&
		    (!status || list[i].status == status))
			return &list[i];
	}
	return NULL;
}

static const recipe *good_of(const operation *o)
{
	const recipe *r = find(good, sizeof good / sizeof *good, o, 0);

	cr_assert_not_null(r, "no request is known for %s", o->id);
	return r;
}

/* ---- Asking ----------------------------------------------------------------------------------------- */

/* A new album's target, so that what is done to it disturbs nothing. To be freed. */
static char *new_album(void)
{
	reply r;
	char *location;

	cr_assert(
		eq(int, client_request(usual->port, "POST", "/albums", AS_JSON, ALBUM, &r, TIMEOUT_MS), 201));
	location = reply_header(&r, "Location");
	cr_assert_not_null(location);
	reply_free(&r);
	return location;
}

/* The operation's good request, as the recipe has it otherwise, with further lines in its head. */
static void ask(const operation *o, const recipe *how, const char *more, reply *r)
{
	const recipe *well = good_of(o);
	const char *wanted = how->target ? how->target : well->target;
	const char *body = how->body ? how->body : well->body;
	char *album = strstr(wanted, "{id}") ? new_album() : NULL;
	char *headers = malloc(128 << 10);
	int port = how->which < SERVICES ? services[how->which]->port : usual->port;

	if (how != well && how->headers[0] && strchr(how->headers, '%')) {
		sprintf(headers, "X-Long: %010000d\r\n", 0);
	} else {
		sprintf(headers, "%s%s%s", how == well || how->body ? "" : well->headers, how->headers, more);
	}
	/* A framing of its own: there is no body to be sent. */
	if (how->body && !how->body[0])
		body = NULL;
	if (how->which == LOCKED) {
		free(activity_sql(usual->activity, "BEGIN"));
		free(activity_sql(usual->activity, "LOCK TABLE album"));
	}
	client_request(port, o->method, album ? album : wanted, headers, body, r, TIMEOUT_MS);
	if (how->which == LOCKED)
		free(activity_sql(usual->activity, "ROLLBACK"));
	free(headers);
	free(album);
}

/* ---- Holding an answer against the document ------------------------------------------------------------ */

static bool is_framing(const char *name)
{
	static const char *const framing[] = {"Date",           "Connection",   "Transfer-Encoding",
	                                      "Content-Length", "Content-Type", "Keep-Alive",
	                                      "Accept-Ranges"};

	for (size_t i = 0; i < sizeof framing / sizeof *framing; i++) {
		if (strcasecmp(name, framing[i]) == 0)
			return true;
	}
	return false;
}

/* Fields that are there but not documented. Those for browsers are the document's as a whole (info.description). */
static void check_no_other_fields(const char *what, const reply *r, const json_t *headers)
{
	char *head = strdup(r->head), *rest = strchr(head, '\n') + 1, *line;

	while ((line = strsep(&rest, "\n")) && *line) {
		const char *name;
		json_t *header;
		bool known = false;

		line[strcspn(line, ":")] = '\0';
		json_object_foreach((json_t *)headers, name, header) known =
			known || strcasecmp(name, line) == 0;
		cr_expect(known || is_framing(line) || strncasecmp(line, "Access-Control-", 15) == 0,
		          "%s: the field %s is not documented", what, line);
	}
	free(head);
}

static void check_fields(const char *what, const reply *r, json_t *headers)
{
	const char *name;
	json_t *header;
	char fault[FAULT_SIZE];

	json_object_foreach(headers, name, header)
	{
		json_t *said = schema_resolve(document, header);
		char *value = reply_header(r, name);

		if (!value) {
			bool required = json_is_true(json_object_get(said, "required"));

			cr_expect(not(required), "%s: no %s", what, name);
			continue;
		}
		json_t *string = json_string(value);
		cr_expect(schema_accepts(document, json_object_get(said, "schema"), string, fault,
		                         sizeof fault),
		          "%s, %s: %s", what, name, fault);
		json_decref(string);
		free(value);
	}
	check_no_other_fields(what, r, headers);
}

static void check_body(const char *what, const reply *r, json_t *content)
{
	char *type = reply_header(r, "Content-Type");
	char fault[FAULT_SIZE];

	if (type)
		type[strcspn(type, ";")] = '\0';
	json_t *medium = json_object_get(content, type ? type : "none");
	if (!content) {
		cr_expect(eq(sz, r->size, 0), "%s: a body that is not documented", what);
	} else if (!type || !medium) {
		cr_expect(false, "%s: the type %s is not documented", what, type ? type : "none");
	} else {
		json_t *value = strstr(type, "json") ? json_loads(r->body, JSON_REJECT_DUPLICATES, NULL)
		                                     : json_string(r->body);

		cr_expect(value && schema_accepts(document, json_object_get(medium, "schema"), value, fault,
		                                  sizeof fault),
		          "%s: %s", what, value ? fault : r->body);
		json_decref(value);
	}
	free(type);
}

static void check_answer(const operation *o, const reply *r, const char *what)
{
	char status[12];

	snprintf(status, sizeof status, "%d", r->status);
	json_t *said = schema_resolve(document, json_object_get(o->responses, status));
	if (!said || r->status < 0) {
		cr_expect(false, "%s: the status %s is not documented", what, status);
		return;
	}
	check_fields(what, r, json_object_get(said, "headers"));
	if (strcmp(o->method, "HEAD") == 0)
		cr_expect(eq(sz, r->size, 0), "%s", what);
	else
		check_body(what, r, json_object_get(said, "content"));
}

/* ---- The tests -------------------------------------------------------------------------------------- */

static int statuses;

static void produce(const operation *o, const recipe *how, int status, const char *more)
{
	char what[256];
	reply r;

	snprintf(what, sizeof what, "%s, %d, %.100s", o->id, status, more);
	what[strcspn(what, "\r\n")] = '\0';
	ask(o, how, more, &r);
	cr_expect(eq(int, r.status, status), "%s: %s", what, r.body ? r.body : "no answer");
	check_answer(o, &r, what);
	reply_free(&r);
}

/* In each representation that is documented, where there are several. */
static void produce_in_all_forms(const operation *o, const recipe *how, int status, json_t *content)
{
	const char *type;
	json_t *medium;
	char accept[128];

	json_object_foreach(content, type, medium)
	{
		snprintf(accept, sizeof accept, "Accept: %s\r\n", type);
		produce(o, how, status, accept);
	}
	produce(o, how, status, "");
}

static void produce_every_status(const operation *o)
{
	const char *status;
	json_t *response;

	json_object_foreach(o->responses, status, response)
	{
		int number = atoi(status);
		const recipe *how = find(good, sizeof good / sizeof *good, o, number);

		statuses++;
		if (how) {
			json_t *content = json_object_get(schema_resolve(document, response), "content");
			produce_in_all_forms(o, how, number, content);
			continue;
		}
		how = find(wrong, sizeof wrong / sizeof *wrong, o, number);
		cr_expect_not_null(how, "how %s comes to answer %s is not known", o->id, status);
		if (how)
			produce(o, how, number, "");
	}
}

Test(openapi, every_documented_status_is_answered_as_documented, .timeout = 300)
{
	start_all();
	each_operation(produce_every_status);
	cr_expect(statuses > 100, "%d", statuses);
	stop_all();
}

static void ask_oddly(const operation *o)
{
	for (size_t i = 0; i < sizeof odd / sizeof *odd; i++) {
		char what[256];
		reply r;

		if (strcmp(odd[i].operation, o->id) != 0)
			continue;
		char *album = strstr(odd[i].target, "{id}") ? new_album() : NULL;
		snprintf(what, sizeof what, "%s %s %.100s", o->method, odd[i].target,
		         odd[i].body ? odd[i].body : "");
		client_request(usual->port, o->method, album ? album : odd[i].target, odd[i].headers,
		               odd[i].body, &r, TIMEOUT_MS);
		check_answer(o, &r, what);
		statuses++;
		reply_free(&r);
		free(album);
	}
}

Test(openapi, nothing_else_is_answered, .timeout = 120)
{
	start_all();
	statuses = 0;
	each_operation(ask_oddly);
	cr_expect(eq(int, statuses, (int)(sizeof odd / sizeof *odd)));
	stop_all();
}

/* What the document calls a body, albumd takes; what not, not. */
static void check_bodies(const operation *o)
{
	static const char list_of_one[] = "[" ALBUM "]";
	static const char *const bodies[] = {
		ALBUM,
		"{\"title\":\"T\",\"artist\":\"A\",\"price\":99999999.99}",
		"{\"title\":\"T\",\"artist\":\"A\",\"price\":100000000}",
		"{\"title\":\"T\",\"artist\":\"A\",\"price\":-1}",
		"{\"title\":\"T\",\"artist\":\"A\",\"price\":\"1\"}",
		"{\"title\":\"T\",\"artist\":\"A\"}",
		"{\"title\":\"\",\"artist\":\"A\",\"price\":1}",
		"{\"title\":null,\"artist\":\"A\",\"price\":1}",
		"{\"title\":\"T\",\"artist\":\"A\",\"price\":1,\"colour\":1}",
		"{\"price\":1}",
		"{}",
		list_of_one,
		"[{}]",
		"[]",
		"null",
		"7",
	};
	char fault[FAULT_SIZE];

	if (!o->request_body)
		return;
	json_t *content = json_object_get(o->request_body, "content"), *medium;
	const char *type;
	json_object_foreach(content, type, medium)
	{
		for (size_t i = 0; i < sizeof bodies / sizeof *bodies; i++) {
			json_t *value = json_loads(bodies[i], JSON_DECODE_ANY, NULL);
			bool right = schema_accepts(document, json_object_get(medium, "schema"), value, fault,
			                            sizeof fault);
			char *album = new_album(), headers[128];
			bool creates = strcmp(o->method, "POST") == 0;

			snprintf(headers, sizeof headers, "Content-Type: %s\r\n", type);
			int status = client_request(usual->port, o->method, creates ? "/albums" : album,
			                            headers, bodies[i], NULL, TIMEOUT_MS);
			cr_expect(eq(int, status, right ? (creates ? 201 : 200) : 422), "%s of %s as %s",
			          o->id, bodies[i], type);
			json_decref(value);
			free(album);
			statuses++;
		}
	}
}

Test(openapi, bodies_are_as_documented, .timeout = 120)
{
	start_all();
	statuses = 0;
	each_operation(check_bodies);
	cr_expect(eq(int, statuses, 4 * 16));
	stop_all();
}
