/*
 * The albums resource, from the request to what PostgreSQL is asked, and back; and what operators ask.
 *
 * An input is "METHOD TARGET", header lines, an empty line, and a body. It goes through the real server and the real
 * handlers to a database that is played here. What that is asked must be one of few statements, with parameters that
 * PostgreSQL takes; what the client is answered must be what its Content-Type says; and what is said of it in the
 * log is one line.
 */
#include <ctype.h>
#include <strings.h>

#include <tether/pg.h>

#include "access.h"
#include "admin.h"
#include "albums.h"
#include "exchange.h"
#include "fuzz.h"
#include "json.h"
#include "log.h"

/* ---- The database ------------------------------------------------------------------------------------ */

struct pg_rows {
	pg_error error;
	bool counts, failed;
	int row, rows;
};

/* Statements are prepared once on each connection: of what clients send nothing may be in their text. */
static void check_statement(const char *sql, size_t count)
{
	enum { STATEMENTS_MAX = 256 };
	static char *known[STATEMENTS_MAX];
	int i = 0;
	while (i < STATEMENTS_MAX && known[i] && strcmp(known[i], sql) != 0)
		i++;
	HOLDS(i < STATEMENTS_MAX);
	if (!known[i])
		HOLDS((known[i] = strdup(sql)));
	for (size_t n = 1; n <= count + 1; n++) {
		char parameter[8];
		snprintf(parameter, sizeof(parameter), "$%zu", n);
		HOLDS(!strstr(sql, parameter) == (n > count));
	}
}

/* The number of elements of an array, {"a","b\"c"}, each in quotes or bare. */
static size_t array_length(const char *array)
{
	size_t count = 0;
	HOLDS(*array++ == '{');
	while (*array != '}') {
		HOLDS(count == 0 || *array++ == ',');
		if (*array == '"') {
			for (array++; *array != '"'; array++) {
				array += *array == '\\';
				HOLDS(*array);
			}
			array++;
		} else {
			HOLDS(isdigit((unsigned char)*array));
			while (isdigit((unsigned char)*array))
				array++;
		}
		count++;
	}
	HOLDS(array[1] == '\0');
	return count;
}

static void check_parameters(const char *sql, pg_params params)
{
	for (size_t i = 0; i < params.count; i++)
		HOLDS(!params.values[i] || json_is_utf8(params.values[i]));
	if (strstr(sql, "unnest($1::text[], $2::text[], $3::numeric[])")) {
		size_t length = array_length(params.values[0]);
		HOLDS(array_length(params.values[1]) == length && array_length(params.values[2]) == length);
	}
}

static access_log record = {.traced = TRACED_ALL};

/* What a query says of its request are the names that the answer has, too. */
void pg_tag(pg_tags *tags, const char *key, const char *value)
{
	(void)tags;
	HOLDS(strcmp(key, "request_id") == 0 || strcmp(key, "traceparent") == 0);
	HOLDS(value[0] && strlen(value) <= 128);
	for (; *value; value++)
		HOLDS(*value > ' ' && *value <= '~');
}

static pg_rows *run(ctx *c, const char *sql, pg_params params, int rows)
{
	pg_rows *r = calloc(1, sizeof(*r));
	HOLDS(r);
	access_tag(c, NULL, &record);
	check_statement(sql, params.count);
	check_parameters(sql, params);
	r->counts = strstr(sql, "count(*)");
	r->rows = rows;
	/* Some parameters have it fail. */
	for (size_t i = 0; i < params.count; i++) {
		const char *value = params.values[i] ? params.values[i] : "";
		if (strcmp(value, "404") == 0)
			r->rows = 0;
		r->failed = r->failed || strcmp(value, "fails") == 0;
	}
	if (r->failed)
		r->error = (pg_error){
			.kind = PG_ERROR_SERVER, .sqlstate = "23514", .constraint = "album_title_length"};
	return r;
}

pg_rows *pg_pool_query(ctx *c, pg_pool *pool, const char *sql, pg_params params)
{
	(void)pool;
	return run(c, sql, params, 8);
}

pg_rows *pg_pool_query_row(ctx *c, pg_pool *pool, const char *sql, pg_params params)
{
	(void)pool;
	pg_rows *r = run(c, sql, params, 1);
	if (r->rows == 0) {
		r->failed = true;
		r->error = (pg_error){.kind = PG_ERROR_NO_ROWS};
	}
	return r;
}

bool pg_rows_next(pg_rows *r)
{
	return !r->failed && r->row++ < r->rows;
}

const pg_error *pg_rows_error(const pg_rows *r)
{
	return r->failed ? &r->error : NULL;
}

void pg_rows_close_scoped(pg_rows **r)
{
	free(*r);
}

const char *pg_rows_text(const pg_rows *r, int column)
{
	static const char *const names[] = {"Blue Train",
	                                    "a \"quote\", a comma",
	                                    "\x01\t\r\n\x7f\xc2\x85",
	                                    "\xff\xc3",
	                                    "",
	                                    "\xe2\x82\xac",
	                                    NULL,
	                                    "{}[]\\/"};
	static const char *const values[] = {"17", NULL, NULL, "56.99", "742"};
	if (r->counts)
		return "3";
	if (column == 1 || column == 2)
		return names[r->row & 7];
	return column == 3 && r->row == 5 ? "NaN" : values[column];
}

size_t pg_rows_length(const pg_rows *r, int column)
{
	return strlen(pg_rows_text(r, column));
}

bool pg_rows_bool(pg_rows *r, int column, bool *value)
{
	(void)r, (void)column;
	*value = true;
	return true;
}

void pg_pool_stats_get(const pg_pool *pool, pg_pool_stats *stats)
{
	(void)pool;
	*stats = (pg_pool_stats){.size = 1, .idle = 1};
}

/* What other files of the server call, for which there is no occasion here. */
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wunused-parameter"
#define NO_OCCASION(type, name, ...) \
	type name(__VA_ARGS__)       \
	{                            \
		abort();             \
	}
NO_OCCASION(pg_pool *, pg_pool_open, const pg_pool_options *options, pg_error *error)
NO_OCCASION(void, pg_pool_close, pg_pool *pool)
NO_OCCASION(bool, pg_pool_ping, ctx *c, pg_pool *pool, pg_error *error)
#pragma GCC diagnostic pop

/* ---- The answer -------------------------------------------------------------------------------------- */

typedef struct message {
	char *head, *body;
	size_t size;
} message;

static const char *field_of(const message *m, const char *name)
{
	size_t size = strlen(name);
	for (const char *line = strstr(m->head, "\r\n"); line; line = strstr(line + 2, "\r\n"))
		if (strncasecmp(line + 2, name, size) == 0 && line[2 + size] == ':')
			return line + size + 4;
	return NULL;
}

/* Puts the chunks together, in place. */
static void unchunk(message *m)
{
	char *at = m->body, *end = m->body + m->size, *to = m->body;
	for (;;) {
		size_t chunk = strtoul(at, &at, 16);
		HOLDS(end - at >= 2 && memcmp(at, "\r\n", 2) == 0);
		at += 2;
		if (chunk == 0)
			break;
		HOLDS((size_t)(end - at) >= chunk + 2);
		memmove(to, at, chunk);
		to += chunk;
		at += chunk + 2;
	}
	m->size = (size_t)(to - m->body);
}

static void check_head(const char *head)
{
	for (const char *line = strstr(head, "\r\n"); line; line = strstr(line + 2, "\r\n")) {
		size_t name = strcspn(line + 2, ":\r\n \t");
		HOLDS(line[2] == '\0' || (name > 0 && line[2 + name] == ':'));
	}
}

static void check_csv(const char *at, const char *end)
{
	size_t columns = 1;
	while (at < end) {
		if (*at == '"') {
			for (at++; at < end && (*at != '"' || at[1] == '"'); at++)
				at += *at == '"';
			HOLDS(at < end);
			at++;
		} else {
			at += strcspn(at, "\",\r\n");
		}
		HOLDS(*at == ',' || (*at == '\r' && at[1] == '\n'));
		HOLDS(*at == ',' || columns == 4);
		columns = *at == ',' ? columns + 1 : 1;
		at += *at == ',' ? 1 : 2;
	}
	HOLDS(columns == 1);
}

/* One response; a 100 may go before it. */
static void check_answer(char *answer, size_t size)
{
	message m = {.head = answer};
	char *head_end = strstr(answer, "\r\n\r\n");
	while (head_end && strncmp(m.head, "HTTP/1.1 100", 12) == 0) {
		m.head = head_end + 4;
		head_end = strstr(m.head, "\r\n\r\n");
	}
	if (!head_end || strstr(answer, "<html>")) /* the latter is libmicrohttpd's own */
		return;
	head_end[2] = '\0';
	m.body = head_end + 4;
	m.size = size - (size_t)(m.body - answer);
	check_head(m.head);
	if (field_of(&m, "Transfer-Encoding"))
		unchunk(&m);
	const char *type = m.size ? field_of(&m, "Content-Type") : NULL;
	if (type && (strncmp(type, "application/json", 16) == 0 ||
	             strncmp(type, "application/problem+json", 24) == 0)) {
		json_t *json = json_loadb(m.body, m.size, JSON_REJECT_DUPLICATES, NULL);
		HOLDS(json);
		json_decref(json);
	} else if (type && strncmp(type, "application/openmetrics-text", 28) == 0) {
		HOLDS(m.size > 6 && memcmp(m.body + m.size - 6, "# EOF\n", 6) == 0);
	} else if (type && strncmp(type, "text/csv", 8) == 0) {
		check_csv(m.body, m.body + m.size);
	} else if (type) {
		HOLDS(strncmp(type, "text/plain", 10) == 0 || strncmp(type, "text/html", 9) == 0);
	}
}

/* ---- The request ------------------------------------------------------------------------------------- */

/* Nothing that a client can send breaks a line of the log, or has a terminal do more than show it. */
static void over(http_request *request, const http_outcome *outcome, void *data)
{
	log_line line;
	log_begin(&line, LOG_INFO, http_request_target(request));
	log_field(&line, "request", http_request_id(request));
	text_char(&line.text, '\0');
	HOLDS(!line.text.failed && json_is_utf8(line.text.data));
	for (const unsigned char *c = (unsigned char *)line.text.data; *c; c++)
		HOLDS(*c >= ' ' && *c != 0x7f && !(*c == 0xc2 && c[1] < 0xa0));
	text_free(&line.text);
	access_end(request, outcome, data);
}

static http_server *serve(void)
{
	static albums resource = {.query_timeout = CTX_SECOND,
	                          .cors_origin = "*",
	                          .allow_delay = true,
	                          .allow_all = true,
	                          .write_token = "t"};
	static admin operators = {.listens_on = "here", .token = ""};
	log_set_level(LOG_OFF);
	HOLDS((record.metrics = metrics_new()) && (record.live = live_new()));
	http_server *server = exchange_server(&(http_server_options){.on_request = access_begin,
	                                                             .on_done = over,
	                                                             .data = &record,
	                                                             .body_size = 64 * 1024,
	                                                             .traces = true},
	                                      NULL);
	operators.server = server;
	operators.metrics = record.metrics;
	operators.live = record.live;
	operators.over = ctx_with_cancel(ctx_background());
	ctx_cancel(operators.over); /* nobody is kept to watch */
	HOLDS(albums_handle(server, record.metrics, &resource) == 0 && admin_handle(server, &operators) == 0);
	exchange_serve(server);
	return server;
}

/* Tells whether something is among bytes in which case counts only for the first letter. */
static bool says(const char *bytes, size_t size, const char *lower)
{
	char upper[32];
	snprintf(upper, sizeof(upper), "%c%s", toupper((unsigned char)lower[0]), lower + 1);
	return memmem(bytes, size, lower, strlen(lower)) || memmem(bytes, size, upper, strlen(upper));
}

/*
 * A request of the input's lines: the first up to the empty one with CRLF, and what else a request needs. With the
 * token, unless the input says something of that; and a host likewise.
 */
static size_t make_request(char *request, size_t room, const char *input, size_t size)
{
	const char *body = memmem(input, size, "\n\n", 2);
	size_t head_size = body ? (size_t)(body - input) : size;
	size_t body_size = body ? size - head_size - 2 : 0, made = 0;
	const char *host = says(input, head_size, "host:") ? "" : "Host: h\r\n";
	const char *token = says(input, head_size, "authorization:") ? "" : "Authorization: Bearer t\r\n";
	bool first = true;
	for (const char *at = input, *end = input + head_size; at < end || first;) {
		const char *lf = memchr(at, '\n', (size_t)(end - at));
		size_t length = lf ? (size_t)(lf - at) : (size_t)(end - at);
		made += (size_t)snprintf(request + made, room - made, "%.*s%s\r\n", (int)length, at,
		                         first ? " HTTP/1.1" : "");
		at += length + 1;
		first = false;
	}
	made += (size_t)snprintf(request + made, room - made,
	                         "%s%sConnection: close\r\nContent-Length: %zu\r\n\r\n", host, token,
	                         body_size);
	if (body_size > 0)
		memcpy(request + made, body + 2, body_size);
	return made + body_size;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	enum { INPUT_MAX = 32 * 1024 };
	static http_server *server;
	static char request[4 * INPUT_MAX], answer[1 << 20];
	if (!server)
		server = serve();
	if (size > INPUT_MAX)
		return 0;
	size_t answer_size, request_size = make_request(request, sizeof(request), (const char *)data, size);
	const char *said = exchange(server, (const uint8_t *)request, request_size, NULL, 0, &answer_size);
	HOLDS(answer_size < sizeof(answer));
	memcpy(answer, said, answer_size + 1);
	if (strncmp(request, "HEAD", 4) != 0 && strncmp(request, "PRI", 3) != 0)
		check_answer(answer, answer_size);
	return 0;
}
