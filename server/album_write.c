/* POST /albums, PUT, PATCH and DELETE /albums/{id}. Each is one statement, and so one transaction. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "album.h"
#include "answer.h"
#include "etag.h"
#include "handler.h"
#include "json.h"

enum { ALBUMS_MOST = 1000 }; /* in one request */

#define RETURNING " RETURNING " ALBUM_COLUMNS ", " ALBUM_VERSION

/* ---- What was sent --------------------------------------------------------------------------------------- */

static bool is_type(const char *field, const char *type)
{
	size_t length = field ? strcspn(field, "; \t") : 0;
	return length == strlen(type) && strncasecmp(field, type, length) == 0;
}

/* The body as JSON. NULL: it is none, and the request is answered. The caller decrefs it. */
static json_t *read_body(http_request *request, http_response *response, album_form form)
{
	const char *type = http_header(request, "Content-Type");
	bool patch = form == ALBUM_CHANGES && is_type(type, "application/merge-patch+json");
	if (!patch && !is_type(type, "application/json")) {
		http_response_problem(response, 415,
		                      "The body must be JSON: send Content-Type: application/json.");
		return NULL;
	}
	size_t size;
	const char *document = http_body(request, &size);
	char problem[256];
	json_t *json = json_parse(document, size, problem, sizeof(problem));
	if (!json)
		http_response_problem(response, 400, problem);
	return json;
}

/* The one album in the body. false: it is not acceptable, and the request is answered. */
static bool read_album(http_request *request, http_response *response, const json_t *json, album_form form,
                       const char *id, album_input *album)
{
	size_t size;
	const char *document = http_body(request, &size);
	faults f = {.count = 0};
	album_read(album, json, document, size, form, id, &f);
	if (f.count)
		answer_invalid(response, f.list, f.count);
	return f.count == 0;
}

/* ---- What is answered ------------------------------------------------------------------------------------ */

/* A statement that writes failed: the table's own word on a field, or else as any query. */
static void answer_not_written(http_request *request, http_response *response, const pg_error *error)
{
	answer_fault fault = album_constraint_fault(error->constraint);
	if (fault.field)
		answer_invalid(response, &fault, 1);
	else
		answer_failed(request, response, error);
}

static void answer_row(http_response *response, int status, const pg_rows *row)
{
	char buffer[1024], etag[ETAG_SIZE];
	text_auto body = TEXT_IN(buffer);
	etag_write(etag, pg_rows_text(row, ALBUM_XMIN), MEDIA_JSON);
	album_write(&body, row, MEDIA_JSON);
	answer(response, status, media_types[MEDIA_JSON], &body);
	http_response_header(response, "ETag", etag);
}

/* ---- POST: one, or an array of them --------------------------------------------------------------------- */

static void create_one(const albums *a, http_request *request, http_response *response, const json_t *json)
{
	album_input album;
	if (!read_album(request, response, json, ALBUM_WHOLE, NULL, &album))
		return;
	ctx_auto *query_ctx = query_context(a, request, response);
	if (!query_ctx)
		return;
	pg_rows_auto *row = pg_query_row(
		query_ctx, a->pool, "INSERT INTO album (title, artist, price) VALUES ($1, $2, $3)" RETURNING,
		PG_PARAMS(album.title, album.artist, album.price));
	if (pg_rows_error(row)) {
		answer_not_written(request, response, pg_rows_error(row));
		return;
	}
	char location[48];
	answer_row(response, 201, row);
	snprintf(location, sizeof(location), "/albums/%s", pg_rows_text(row, ALBUM_ID));
	http_response_header(response, "Location", location);
}

/* Three PostgreSQL arrays, {"Blue Train","Giant Steps"}, and the faults of their members. */
typedef struct columns {
	text title, artist, price;
	faults faults;
	char fields[FAULTS_TOLD][40]; /* "[3].title", for the faults to name */
} columns;

static void add_element(text *array, const char *value)
{
	text_string(array, array->size ? ",\"" : "{\"");
	for (; *value; value++) {
		if (*value == '"' || *value == '\\')
			text_char(array, '\\');
		text_char(array, *value);
	}
	text_char(array, '"');
}

static void name_places(columns *c, size_t from, size_t index)
{
	for (size_t i = from; i < c->faults.count; i++) {
		const char *field = c->faults.list[i].field;
		bool whole = strcmp(field, ALBUM_ITSELF) == 0;
		snprintf(c->fields[i], sizeof(c->fields[i]), whole ? "[%zu]" : "[%zu].%.16s", index, field);
		c->faults.list[i].field = c->fields[i];
	}
}

static void read_columns(columns *c, const json_t *array, const char *document, size_t size)
{
	size_t index;
	json_t *json;
	json_array_foreach(array, index, json)
	{
		album_input album;
		size_t known = c->faults.count, text_size;
		const char *literal = json_element_text(&document, &size, &text_size);
		album_read(&album, json, literal, text_size, ALBUM_WHOLE, NULL, &c->faults);
		name_places(c, known, index);
		if (c->faults.count)
			continue;
		add_element(&c->title, album.title);
		add_element(&c->artist, album.artist);
		add_element(&c->price, album.price);
	}
	text_append(&c->title, "}", 2);
	text_append(&c->artist, "}", 2);
	text_append(&c->price, "}", 2);
}

static void insert_columns(const albums *a, http_request *request, http_response *response, const columns *c)
{
	ctx_auto *query_ctx = query_context(a, request, response);
	if (!query_ctx)
		return;
	/* In the order of the array, so that the ids ascend with it. */
	pg_rows_auto *rows = pg_query(query_ctx, a->pool,
	                              "INSERT INTO album (title, artist, price) SELECT title, artist, price"
	                              " FROM unnest($1::text[], $2::text[], $3::numeric[]) WITH ORDINALITY AS"
	                              " new (title, artist, price, place) ORDER BY place" RETURNING,
	                              PG_PARAMS(c->title.data, c->artist.data, c->price.data));
	char buffer[4096];
	text_auto body = TEXT_IN(buffer);
	while (pg_rows_next(rows)) {
		text_char(&body, body.size ? ',' : '[');
		album_write(&body, rows, MEDIA_JSON);
	}
	text_char(&body, ']');
	if (pg_rows_error(rows))
		answer_not_written(request, response, pg_rows_error(rows));
	else
		answer(response, 201, media_types[MEDIA_JSON], &body);
}

static void create_many(const albums *a, http_request *request, http_response *response, const json_t *array)
{
	size_t size;
	const char *document = http_body(request, &size);
	columns c = {.faults.count = 0};
	if (json_array_size(array) < 1 || json_array_size(array) > ALBUMS_MOST) {
		answer_invalid(response,
		               &(answer_fault){ALBUM_ITSELF, "must be an album or an array of 1 to 1000"}, 1);
		return;
	}
	read_columns(&c, array, document, size);
	if (c.faults.count)
		answer_invalid(response, c.faults.list, c.faults.count);
	else if (c.title.failed || c.artist.failed || c.price.failed)
		answer_failed(request, response, NULL);
	else
		insert_columns(a, request, response, &c);
	text_free(&c.title);
	text_free(&c.artist);
	text_free(&c.price);
}

void create_albums(const albums *a, http_request *request, http_response *response)
{
	json_auto_t *json = read_body(request, response, ALBUM_WHOLE);
	if (json_is_array(json))
		create_many(a, request, response, json);
	else if (json)
		create_one(a, request, response, json);
}

/* ---- PUT, PATCH, DELETE: of any version, or of the one that the client has seen ---------------------------- */

/* The conditions of a request on the version of the album, as parameters of its statement. */
typedef struct conditions {
	const char *match; /* the versions that will do; NULL: any */
	const char *none;  /* those that will not; NULL: none */
	const char *unmet; /* what is said if no version meets them */
	text match_text, none_text;
	char match_buffer[64], none_buffer[64];
} conditions;

#define MEETS(match, none)                                                              \
	" AND (" match "::text[] IS NULL OR " ALBUM_VERSION "::text = ANY (" match "))" \
	" AND (" none "::text[] IS NULL OR " ALBUM_VERSION "::text <> ALL (" none "))"

/* false: out of memory, and the request is answered. */
static bool read_conditions(http_request *request, http_response *response, conditions *c)
{
	const char *match = http_header(request, "If-Match");
	const char *none = http_header(request, "If-None-Match");
	*c = (conditions){.match_text = TEXT_IN(c->match_buffer), .none_text = TEXT_IN(c->none_buffer)};
	if (match && !etag_is_any(match)) {
		etag_versions(match, true, &c->match_text);
		text_char(&c->match_text, '\0');
		c->match = c->match_text.data;
		c->unmet = "The album has changed since: get it again.";
	}
	if (none && etag_is_any(none)) {
		/* What is there has some version: none will do. */
		c->match = "{}";
		c->unmet = "If-None-Match: * is for what is not there yet.";
	} else if (none) {
		etag_versions(none, false, &c->none_text);
		text_char(&c->none_text, '\0');
		c->none = c->none_text.data;
		c->unmet = "The album is of a version that If-None-Match excludes.";
	}
	if (c->match_text.failed || c->none_text.failed) {
		answer_failed(request, response, NULL);
		return false;
	}
	return true;
}

static void conditions_free(conditions *c)
{
	text_free(&c->match_text);
	text_free(&c->none_text);
}

/*
 * No row was changed: there is none of that id, which is answered first, as if there were no condition (RFC 9110,
 * 13.2.1), or its version does not meet them.
 */
static void answer_no_row(ctx *query_ctx, const albums *a, http_request *request, http_response *response,
                          const char *id, const conditions *c, const pg_error *error)
{
	if (error->kind != PG_ERROR_NO_ROWS || !c->unmet) {
		answer_not_written(request, response, error);
		return;
	}
	pg_rows_auto *row =
		pg_query_row(query_ctx, a->pool, "SELECT id FROM album WHERE id = $1", PG_PARAMS(id));
	if (pg_rows_error(row))
		answer_failed(request, response, pg_rows_error(row));
	else
		http_response_problem(response, 412, c->unmet);
}

static void write_changes(const albums *a, http_request *request, http_response *response, const char *id,
                          const album_input *album, const conditions *c)
{
	ctx_auto *query_ctx = query_context(a, request, response);
	if (!query_ctx)
		return;
	pg_rows_auto *row =
		pg_query_row(query_ctx, a->pool,
	                     "UPDATE album SET title = coalesce($2, title), artist = coalesce($3, artist),"
	                     " price = coalesce($4, price) WHERE id = $1" MEETS("$5", "$6") RETURNING,
	                     PG_PARAMS(id, album->title, album->artist, album->price[0] ? album->price : NULL,
	                               c->match, c->none));
	if (pg_rows_error(row))
		answer_no_row(query_ctx, a, request, response, id, c, pg_rows_error(row));
	else
		answer_row(response, 200, row);
}

static void change_album(const albums *a, http_request *request, http_response *response, album_form form)
{
	const char *id = path_id(request, response);
	json_auto_t *json = id ? read_body(request, response, form) : NULL;
	album_input album;
	conditions c;
	if (!json || !read_album(request, response, json, form, id, &album))
		return;
	if (read_conditions(request, response, &c))
		write_changes(a, request, response, id, &album, &c);
	conditions_free(&c);
}

void replace_album(const albums *a, http_request *request, http_response *response)
{
	change_album(a, request, response, ALBUM_WHOLE);
}

void patch_album(const albums *a, http_request *request, http_response *response)
{
	change_album(a, request, response, ALBUM_CHANGES);
}

static void remove_row(const albums *a, http_request *request, http_response *response, const char *id,
                       const conditions *c)
{
	ctx_auto *query_ctx = query_context(a, request, response);
	if (!query_ctx)
		return;
	pg_rows_auto *row = pg_query_row(query_ctx, a->pool,
	                                 "DELETE FROM album WHERE id = $1" MEETS("$2", "$3") " RETURNING id",
	                                 PG_PARAMS(id, c->match, c->none));
	if (pg_rows_error(row))
		answer_no_row(query_ctx, a, request, response, id, c, pg_rows_error(row));
	else
		http_response_status(response, 204);
}

void delete_album(const albums *a, http_request *request, http_response *response)
{
	const char *id = path_id(request, response);
	conditions c;
	if (!id)
		return;
	if (read_conditions(request, response, &c))
		remove_row(a, request, response, id, &c);
	conditions_free(&c);
}
