#include "albums.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>

#include "access.h"
#include "album.h"
#include "answer.h"
#include "json.h"
#include "parse.h"
#include "text.h"

/* ---- What all handlers begin with -------------------------------------------------------------------- */

/* The seconds of "Prefer: wait=2" (RFC 7240), 0 if the client does not say. */
static uint64_t preferred_wait(const http_request *request)
{
	const char *prefer = http_header(request, "Prefer");
	while (prefer) {
		prefer += strspn(prefer, " \t,;");
		if (strncasecmp(prefer, "wait=", 5) == 0) {
			char digits[8] = "";
			uint64_t seconds;
			memcpy(digits, prefer + 5, strnlen(prefer + 5, sizeof(digits) - 1));
			digits[strspn(digits, "0123456789")] = '\0';
			return parse_uint(digits, UINT32_MAX, &seconds) ? seconds : 0;
		}
		prefer = strpbrk(prefer, ",;");
	}
	return 0;
}

/*
 * The context of a request's queries: the request's, and at most the query timeout long, counted from here,
 * so that the wait for a connection is part of it. NULL: out of memory, and the request is answered.
 */
static ctx *query_context(http_request *request, http_response *response, const albums *a)
{
	int64_t timeout = a->query_timeout;
	uint64_t wait = preferred_wait(request);
	if (wait && (int64_t)wait * CTX_SECOND < timeout)
		timeout = (int64_t)wait * CTX_SECOND;
	ctx *c = ctx_with_timeout(http_request_ctx(request), timeout);
	if (!c)
		answer_failed(request, response, NULL);
	return c;
}

/* ---- GET /albums/{id} ------------------------------------------------------------------------------- */

/* As ids are printed: anything else names no album, and need not be asked for. */
static bool is_id(const char *id)
{
	uint64_t number;
	return id[0] != '0' && parse_uint(id, INT64_MAX, &number);
}

static void get_album(http_request *request, http_response *response)
{
	const albums *a = http_request_data(request);
	const char *id = http_path_value(request, "id");
	if (!is_id(id)) {
		answer_failed(request, response, &(pg_error){.kind = PG_ERROR_NO_ROWS});
		return;
	}
	ctx_auto *query_ctx = query_context(request, response, a);
	if (!query_ctx)
		return;
	pg_rows_auto *row = pg_query_row(query_ctx, a->pool,
	                                 "SELECT " ALBUM_COLUMNS " FROM album WHERE id = $1", PG_PARAMS(id));
	if (pg_rows_error(row)) {
		answer_failed(request, response, pg_rows_error(row));
		return;
	}
	char buffer[1024];
	text_auto body = TEXT_IN(buffer);
	album_write(&body, row);
	answer_json(response, 200, &body);
}

/* ---- GET /albums ------------------------------------------------------------------------------------ */

typedef struct list_query {
	const char *artist; /* NULL: all */
	int64_t delay;
} list_query;

/* false: a parameter is wrong, and the request is answered. */
static bool read_list_query(http_request *request, http_response *response, list_query *query)
{
	enum { HOUR = 3600 };
	const albums *a = http_request_data(request);
	const char *delay = http_query_value(request, "delay");
	*query = (list_query){.artist = http_query_value(request, "artist")};
	if (query->artist && !json_is_utf8(query->artist)) {
		http_response_problem(response, 400, "artist is not UTF-8.");
		return false;
	}
	if (delay && !a->allow_delay) {
		http_response_problem(response, 400,
		                      "delay is not allowed here: albumd was started without --allow-delay.");
		return false;
	}
	if (delay && (!parse_duration(delay, &query->delay) || query->delay > HOUR * CTX_SECOND)) {
		http_response_problem(response, 400,
		                      "delay should be a duration such as 250ms or 30s, at most 1h.");
		return false;
	}
	return true;
}

/*
 * Starts the query. The delay is an uncorrelated subquery, which PostgreSQL runs once, before the first row
 * is read and whether or not there is any: the query is as slow as one that works hard, and cancelled the
 * same way.
 */
static pg_rows *query_list(ctx *c, const albums *a, const list_query *query)
{
#define SELECT "SELECT " ALBUM_COLUMNS " FROM album"
#define ORDER  " ORDER BY id"
	char delay[32];
	snprintf(delay, sizeof(delay), "%" PRId64 ".%09" PRId64, query->delay / CTX_SECOND,
	         query->delay % CTX_SECOND);
	if (query->artist && query->delay)
		return pg_query(c, a->pool,
		                SELECT " WHERE artist = $1 AND (SELECT pg_sleep($2)) IS NOT NULL" ORDER,
		                PG_PARAMS(query->artist, delay));
	if (query->artist)
		return pg_query(c, a->pool, SELECT " WHERE artist = $1" ORDER, PG_PARAMS(query->artist));
	if (query->delay)
		return pg_query(c, a->pool, SELECT " WHERE (SELECT pg_sleep($1)) IS NOT NULL" ORDER,
		                PG_PARAMS(delay));
	return pg_query(c, a->pool, SELECT ORDER, PG_NO_PARAMS);
#undef SELECT
#undef ORDER
}

/* The last piece of a body that has begun to stream: too late for a status, not for telling that it is cut. */
static void end_stream(http_request *request, http_response *response, const text *body,
                       const pg_error *error)
{
	if (error)
		access_failed(request, reason_of_error(error), error);
	if (error || body->failed)
		http_response_fail(response);
	else
		http_write(response, body->data, body->size);
}

/*
 * A list is answered whole where it is short; a longer one streams, a piece at a time, as fast as the client
 * takes it and no faster.
 */
static void list_albums(http_request *request, http_response *response)
{
	enum { PIECE = 16 << 10 };
	const albums *a = http_request_data(request);
	list_query query;
	if (!read_list_query(request, response, &query))
		return;
	ctx_auto *query_ctx = query_context(request, response, a);
	if (!query_ctx)
		return;
	pg_rows_auto *rows = query_list(query_ctx, a, &query);
	char buffer[4096];
	text_auto body = TEXT_IN(buffer);
	bool streaming = false;
	char before = '[';
	while (pg_rows_next(rows)) {
		text_char(&body, before);
		album_write(&body, rows);
		before = ',';
		if (body.size < PIECE)
			continue;
		if (!streaming)
			http_response_header(response, "Content-Type", "application/json");
		streaming = true;
		/* A write that failed has ended the query's context too, which pg_rows_next then reports. */
		if (!body.failed)
			http_write(response, body.data, body.size);
		body.size = 0;
	}
	text_string(&body, before == '[' ? "[]" : "]");
	const pg_error *error = pg_rows_error(rows);
	if (!streaming && error)
		answer_failed(request, response, error);
	else if (!streaming)
		answer_json(response, 200, &body);
	else
		end_stream(request, response, &body, error);
}

/* ---- POST /albums ----------------------------------------------------------------------------------- */

static bool is_json(const http_request *request)
{
	const char *type = http_header(request, "Content-Type");
	size_t length = type ? strcspn(type, "; \t") : 0;
	return length == strlen("application/json") && strncasecmp(type, "application/json", length) == 0;
}

/* false: there is no valid album in the body, and the request is answered. */
static bool read_album(http_request *request, http_response *response, album_input *album)
{
	if (!is_json(request)) {
		http_response_problem(response, 415,
		                      "The body must be JSON: send Content-Type: application/json.");
		return false;
	}
	size_t size;
	const char *document = http_body(request, &size);
	char problem[256];
	json_t *json = json_parse(document, size, problem, sizeof(problem));
	if (!json) {
		http_response_problem(response, 400, problem);
		return false;
	}
	answer_fault faults[ALBUM_FAULTS];
	size_t count = album_read(album, json, document, size, faults);
	if (count)
		answer_invalid(response, faults, count);
	json_decref(json);
	return count == 0;
}

static void create_album(http_request *request, http_response *response)
{
	const albums *a = http_request_data(request);
	album_auto album = {0};
	if (!read_album(request, response, &album))
		return;
	ctx_auto *query_ctx = query_context(request, response, a);
	if (!query_ctx)
		return;
	pg_rows_auto *row = pg_query_row(query_ctx, a->pool,
	                                 "INSERT INTO album (title, artist, price) VALUES ($1, $2, "
	                                 "$3) RETURNING " ALBUM_COLUMNS,
	                                 PG_PARAMS(album.title, album.artist, album.price));
	const pg_error *error = pg_rows_error(row);
	answer_fault fault = error ? album_constraint_fault(error->constraint) : (answer_fault){NULL, NULL};
	if (fault.field) {
		answer_invalid(response, &fault, 1);
		return;
	}
	if (error) {
		answer_failed(request, response, error);
		return;
	}
	char buffer[1024], location[48];
	text_auto body = TEXT_IN(buffer);
	album_write(&body, row);
	answer_json(response, 201, &body);
	snprintf(location, sizeof(location), "/albums/%s", pg_rows_text(row, 0));
	http_response_header(response, "Location", location);
}

/* ---- Routes ----------------------------------------------------------------------------------------- */

int albums_handle(http_server *server, metrics *m, albums *a)
{
	static const struct {
		const char *pattern;
		http_handler *handler;
	} routes[] = {
		{"GET /albums", list_albums},
		{"POST /albums", create_album},
		{"GET /albums/{id}", get_album},
	};
	for (size_t i = 0; i < sizeof(routes) / sizeof(*routes); i++) {
		if (http_handle(server, routes[i].pattern, routes[i].handler, a) < 0)
			return -1;
		metrics_add_route(m, routes[i].pattern);
	}
	return 0;
}
