/*
 * GET /albums: filters, an order, and pages. A page begins after an album, not after a number of them (keyset
 * pagination), so that it costs the same however far it is from the first, and shows nothing twice when albums come
 * and go in between.
 */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "access.h"
#include "album.h"
#include "answer.h"
#include "handler.h"
#include "json.h"
#include "parse.h"

enum { LIMIT_DEFAULT = 100, LIMIT_MOST = 1000, LIMIT_ALL = -1 };

typedef struct order {
	const char *name;   /* as in ?sort= */
	const char *column; /* of the key; id breaks ties */
	bool descending;
} order;

static const order orders[] = {
	{"id", "id", false},       {"-id", "id", true},         {"title", "title", false},
	{"-title", "title", true}, {"artist", "artist", false}, {"-artist", "artist", true},
	{"price", "price", false}, {"-price", "price", true},
};

typedef struct list_query {
	const char *artist, *title; /* NULL: any */
	const char *after;          /* the id of the album before the page; NULL: the first page */
	const order *order;
	int limit;
	int64_t delay;
	media as;
	char total[24]; /* how many there are, if that was asked for; else "" */
} list_query;

/* ---- The parameters ------------------------------------------------------------------------------------- */

/* NULL, or why a filter cannot be one. */
static const char *filter_fault(const char *filter)
{
	return filter && !json_is_utf8(filter) ? "A filter is not UTF-8." : NULL;
}

static const char *read_limit(const albums *a, const char *limit, int *value)
{
	uint64_t number;
	*value = LIMIT_DEFAULT;
	if (!limit)
		return NULL;
	if (strcmp(limit, "all") == 0) {
		*value = LIMIT_ALL;
		return a->allow_all
		               ? NULL
		               : "limit=all is not allowed here: albumd was started without --allow-all.";
	}
	if (!parse_uint(limit, LIMIT_MOST, &number) || number < 1)
		return "limit should be a number from 1 to 1000.";
	*value = (int)number;
	return NULL;
}

static const char *read_sort(const char *sort, const order **value)
{
	for (size_t i = 0; i < sizeof(orders) / sizeof(*orders); i++) {
		if (strcmp(sort ? sort : "id", orders[i].name) == 0) {
			*value = &orders[i];
			return NULL;
		}
	}
	return "sort should be one of id, title, artist and price, with a - before it for the opposite "
	       "order.";
}

static const char *read_delay(const albums *a, const char *delay, int64_t *value)
{
	enum { HOUR = 3600 };
	*value = 0;
	if (!delay)
		return NULL;
	if (!a->allow_delay)
		return "delay is not allowed here: albumd was started without --allow-delay.";
	if (!parse_duration(delay, value) || *value > HOUR * CTX_SECOND)
		return "delay should be a duration such as 250ms or 30s, at most 1h.";
	return NULL;
}

static const char *read_after(const char *after, const char **value)
{
	uint64_t id;
	*value = after;
	return !after || parse_uint(after, INT64_MAX, &id) ? NULL : "after should be the id of an album.";
}

/* false: a parameter is wrong, and the request is answered. */
static bool read_query(const albums *a, http_request *request, http_response *response, list_query *q)
{
	q->artist = http_query_value(request, "artist");
	q->title = http_query_value(request, "title");
	const char *wrong[] = {
		filter_fault(q->artist),
		filter_fault(q->title),
		read_limit(a, http_query_value(request, "limit"), &q->limit),
		read_sort(http_query_value(request, "sort"), &q->order),
		read_after(http_query_value(request, "after"), &q->after),
		read_delay(a, http_query_value(request, "delay"), &q->delay),
	};
	for (size_t i = 0; i < sizeof(wrong) / sizeof(*wrong); i++) {
		if (wrong[i]) {
			http_response_problem(response, 400, wrong[i]);
			return false;
		}
	}
	q->as = negotiate(request, response);
	return q->as != MEDIA_NONE;
}

/* ---- The statement -------------------------------------------------------------------------------------- */

/* A statement under construction, and the values of its parameters. */
typedef struct statement {
	text sql;
	const char *values[6];
	size_t count;
	bool has_where;
	char sql_buffer[512], limit[16], delay[32];
} statement;

/* Has the next parameter be `value`, and returns its number. */
static int parameter(statement *s, const char *value)
{
	s->values[s->count++] = value;
	return (int)s->count;
}

static const char *conjunction(statement *s)
{
	const char *word = s->has_where ? " AND " : " WHERE ";
	s->has_where = true;
	return word;
}

static void add_filters(statement *s, const list_query *q)
{
	if (q->artist)
		text_format(&s->sql, "%sartist = $%d", conjunction(s), parameter(s, q->artist));
	if (q->title)
		text_format(&s->sql, "%stitle = $%d", conjunction(s), parameter(s, q->title));
}

/* The albums that come after one: by their keys, and its key is what the table has for it. */
static void add_after(statement *s, const list_query *q)
{
	char than = q->order->descending ? '<' : '>';
	int after = parameter(s, q->after);
	if (strcmp(q->order->column, "id") == 0)
		text_format(&s->sql, "%sid %c $%d", conjunction(s), than, after);
	else
		text_format(&s->sql, "%s(%s, id) %c ((SELECT %s FROM album WHERE id = $%d), $%d)",
		            conjunction(s), q->order->column, than, q->order->column, after, after);
}

/*
 * The delay is an uncorrelated subquery, which PostgreSQL runs once, before the first row is read and whether or not
 * there is any: the query is as slow as one that works hard, and is cancelled the same way.
 */
static void add_delay(statement *s, const list_query *q)
{
	snprintf(s->delay, sizeof(s->delay), "%" PRId64 ".%09" PRId64, q->delay / CTX_SECOND,
	         q->delay % CTX_SECOND);
	text_format(&s->sql, "%s(SELECT pg_sleep($%d)) IS NOT NULL", conjunction(s), parameter(s, s->delay));
}

/* There are few of these texts, whatever clients ask for: each is prepared once on a connection. */
static void build_list(statement *s, const list_query *q)
{
	const char *direction = q->order->descending ? " DESC" : "";
	*s = (statement){.sql = TEXT_IN(s->sql_buffer)};
	text_string(&s->sql, "SELECT " ALBUM_COLUMNS " FROM album");
	add_filters(s, q);
	if (q->after)
		add_after(s, q);
	if (q->delay)
		add_delay(s, q);
	if (strcmp(q->order->column, "id") == 0)
		text_format(&s->sql, " ORDER BY id%s", direction);
	else
		text_format(&s->sql, " ORDER BY %s%s, id%s", q->order->column, direction, direction);
	if (q->limit != LIMIT_ALL) {
		/* One more than is shown tells whether there is a next page. */
		snprintf(s->limit, sizeof(s->limit), "%d", q->limit + 1);
		text_format(&s->sql, " LIMIT $%d", parameter(s, s->limit));
	}
	text_char(&s->sql, '\0');
}

static void build_count(statement *s, const list_query *q)
{
	*s = (statement){.sql = TEXT_IN(s->sql_buffer)};
	text_string(&s->sql, "SELECT count(*) FROM album");
	add_filters(s, q);
	text_char(&s->sql, '\0');
}

static pg_params parameters(const statement *s)
{
	return (pg_params){.count = s->count, .values = s->values};
}

/* ---- What goes before the body ---------------------------------------------------------------------------- */

static void add_query_value(text *t, const char *name, const char *value)
{
	static const char unreserved[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~";
	text_format(t, "%c%s=", memchr(t->data, '?', t->size) ? '&' : '?', name);
	for (; *value; value++) {
		if (strchr(unreserved, *value))
			text_char(t, *value);
		else
			text_format(t, "%%%02X", (unsigned char)*value);
	}
}

/* RFC 8288. The same query, after the last album of this page. false: it would not fit into a response's head. */
static bool link_next(http_response *response, const list_query *q, const char *last_id)
{
	enum { LONGEST_LINK = 2000 };
	char buffer[512], number[16];
	text_auto link = TEXT_IN(buffer);
	text_string(&link, "</albums");
	if (q->artist)
		add_query_value(&link, "artist", q->artist);
	if (q->title)
		add_query_value(&link, "title", q->title);
	if (strcmp(q->order->name, "id") != 0)
		add_query_value(&link, "sort", q->order->name);
	snprintf(number, sizeof(number), "%d", q->limit);
	if (q->limit != LIMIT_DEFAULT)
		add_query_value(&link, "limit", number);
	add_query_value(&link, "after", last_id);
	text_string(&link, ">; rel=\"next\"");
	text_char(&link, '\0');
	if (link.failed || link.size > LONGEST_LINK)
		return false;
	http_response_header(response, "Link", link.data);
	return true;
}

/* Prefer: count=exact. false: the query failed, and the request is answered. */
static bool count_all(ctx *c, const albums *a, list_query *q, http_request *request, http_response *response)
{
	statement count;
	build_count(&count, q);
	pg_rows_auto *row = pg_query_row(c, a->pool, count.sql.data, parameters(&count));
	const pg_error *error = pg_rows_error(row);
	if (error)
		answer_failed(request, response, error);
	else
		snprintf(q->total, sizeof(q->total), "%s", pg_rows_text(row, 0));
	text_free(&count.sql);
	return !error;
}

/* Only where a list is answered: an error has no total. */
static void say_total(http_response *response, const list_query *q)
{
	if (!q->total[0])
		return;
	http_response_header(response, "Total-Count", q->total);
	http_response_header(response, "Preference-Applied", "count=exact");
}

/*
 * An empty page is the end of the list, or the album that it should begin after is not there any more, and with it
 * the key that says where. The second must not look like the first.
 */
static bool answer_lost_place(ctx *c, const albums *a, const list_query *q, http_request *request,
                              http_response *response)
{
	if (!q->after || strcmp(q->order->column, "id") == 0)
		return false;
	pg_rows_auto *row =
		pg_query_row(c, a->pool, "SELECT id FROM album WHERE id = $1", PG_PARAMS(q->after));
	const pg_error *error = pg_rows_error(row);
	if (error && error->kind == PG_ERROR_NO_ROWS)
		http_response_problem(response, 410,
		                      "The album that this page begins after has been deleted.");
	else if (error)
		answer_failed(request, response, error);
	return error;
}

/* ---- The body --------------------------------------------------------------------------------------------- */

/* A list in the making: '[' or ',' before each album, and "[]" if there was none; CSV has its line of names. */
typedef struct list_body {
	text text;
	media as;
	size_t albums;
	char buffer[4096];
} list_body;

static void begin_body(list_body *b, media as)
{
	b->text = TEXT_IN(b->buffer);
	b->as = as;
	b->albums = 0;
	text_string(&b->text, as == MEDIA_CSV ? ALBUM_CSV_HEAD : "[");
}

static void add_album(list_body *b, const pg_rows *row)
{
	if (b->albums++ && b->as == MEDIA_JSON)
		text_char(&b->text, ',');
	album_write(&b->text, row, b->as);
}

static void end_body(list_body *b)
{
	if (b->as == MEDIA_JSON)
		text_char(&b->text, ']');
}

/* A page is bounded, and what its head says depends on how it ends: it is answered whole. */
static void answer_page(ctx *c, const albums *a, const list_query *q, pg_rows *rows, http_request *request,
                        http_response *response)
{
	list_body body;
	char last_id[24] = "";
	bool more = false;
	begin_body(&body, q->as);
	while (!more && pg_rows_next(rows)) {
		more = body.albums == (size_t)q->limit;
		if (!more) {
			add_album(&body, rows);
			snprintf(last_id, sizeof(last_id), "%s", pg_rows_text(rows, ALBUM_ID));
		}
	}
	/* To its end, which is where an error would be, and where the connection is free again. */
	while (pg_rows_next(rows))
		;
	end_body(&body);
	const pg_error *error = pg_rows_error(rows);
	if (error)
		answer_failed(request, response, error);
	else if (more && !link_next(response, q, last_id))
		http_response_problem(response, 400,
		                      "The filters are too long for a list of more than one page.");
	else if (body.albums || !answer_lost_place(c, a, q, request, response)) {
		say_total(response, q);
		answer(response, 200, media_types[q->as], &body.text);
	}
	text_free(&body.text);
}

/* All there is, a piece at a time, as fast as the client takes it and no faster. */
static void stream_all(const list_query *q, pg_rows *rows, http_request *request, http_response *response)
{
	enum { PIECE = 16 << 10 };
	list_body body;
	bool streaming = false;
	begin_body(&body, q->as);
	while (pg_rows_next(rows) && !body.text.failed) {
		add_album(&body, rows);
		if (body.text.size < PIECE)
			continue;
		if (!streaming) {
			say_total(response, q);
			http_response_header(response, "Content-Type", media_types[q->as]);
		}
		streaming = true;
		/* A write that failed has ended the query's context too, which pg_rows_next then reports. */
		http_write(response, body.text.data, body.text.size);
		body.text.size = 0;
	}
	end_body(&body);
	const pg_error *error = pg_rows_error(rows);
	if (!streaming && error) {
		answer_failed(request, response, error);
	} else if (!streaming) {
		say_total(response, q);
		answer(response, 200, media_types[q->as], &body.text);
	} else if (error || body.text.failed) {
		/* Too late for a status, not for telling that the list is cut. */
		if (error)
			access_failed(request, reason_of_error(error), error);
		http_response_fail(response);
	} else {
		http_write(response, body.text.data, body.text.size);
	}
	text_free(&body.text);
}

void list_albums(const albums *a, http_request *request, http_response *response)
{
	list_query q = {.total = ""};
	if (!read_query(a, request, response, &q))
		return;
	ctx_auto *query_ctx = query_context(a, request, response);
	if (!query_ctx ||
	    (prefers(request, "count=exact") && !count_all(query_ctx, a, &q, request, response)))
		return;
	statement list;
	build_list(&list, &q);
	pg_rows_auto *rows = pg_query(query_ctx, a->pool, list.sql.data, parameters(&list));
	if (q.limit == LIMIT_ALL)
		stream_all(&q, rows, request, response);
	else
		answer_page(query_ctx, a, &q, rows, request, response);
	text_free(&list.sql);
}
