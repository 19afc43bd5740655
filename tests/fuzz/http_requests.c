/*
 * Whole connections: heads, bodies, pipelines, and where one request ends and the next begins.
 *
 * An input is what a client sends; at each byte 0xff it waits until the server has taken what came before. Beside
 * the server a reader that knows nothing but RFC 9112, and knows no mercy, reads the same bytes. The server may
 * refuse more than that reader; but what its handlers see must be, request for request and byte for byte, what the
 * reader has read. Two that disagree there are how requests are smuggled.
 *
 * Below /read/ a handler reads the body itself, as it comes, and streams its answer; below /early/ one answers when
 * it has read little of it, or none.
 */
#include <errno.h>
#include <microhttpd.h>
#include <pthread.h>
#include <strings.h>

#include "exchange.h"
#include "fuzz.h"
#include "http_priv.h"

enum { PAUSE = 0xff, BODY_MAX = 2000, REQUESTS_MAX = 2048 };

/* ---- A record of requests, as text: "GET /a\nname:value\n…\n3\nabc\n" ---------------------------------- */

typedef struct record {
	char *text;
	size_t size, requests, heads; /* HEAD requests */
	bool early[REQUESTS_MAX];     /* of which nobody asked for the whole body */
	bool too_much; /* the last one had too much of it, or a chunk whose size is no number at all */
} record;

static void add(record *r, const void *data, size_t size)
{
	char *text = realloc(r->text, r->size + size + 1);
	HOLDS(text);
	r->text = text;
	if (size > 0)
		memcpy(text + r->size, data, size);
	r->size += size;
	text[r->size] = '\0';
}

static void add_string(record *r, const char *string)
{
	add(r, string, strlen(string));
}

static void add_body(record *r, const void *body, size_t size)
{
	char line[32];
	if (size <= BODY_MAX) {
		snprintf(line, sizeof(line), "\n%zu\n", size);
		add_string(r, line);
		add(r, body, size);
		add_string(r, "\n");
	} else {
		add_string(r, "\ntoo much\n");
	}
	r->requests++;
}

/* What the body was is not asked. */
static void add_early(record *r)
{
	add_string(r, "\nearly\n");
	r->early[r->requests++] = true;
}

/* ---- What the server has seen ------------------------------------------------------------------------ */

static record seen;
static pthread_mutex_t seen_mutex =
	PTHREAD_MUTEX_INITIALIZER; /* the server's thread writes it, ours reads it */

/* The body of the one request whose handler runs. The server's thread alone uses it. */
static char streamed[BODY_MAX];
static size_t streamed_size;

static void answer_it(http_request *request, http_response *response)
{
	size_t size;
	const char *body = http_body(request, &size);
	http_response_header(response, "Target", http_request_target(request));
	http_response_body(response, 200, "text/plain", body, size);
}

enum { PIECE_MAX = 64 };

/* As http_body_read; on to what was read before. */
static ssize_t read_piece(http_request *request, size_t most)
{
	char piece[PIECE_MAX];
	ssize_t got = http_body_read(request, piece, most);
	if (got < 0) {
		HOLDS(errno == EMSGSIZE || errno == ETIMEDOUT || errno == EBADMSG ||
		      ctx_err(http_request_ctx(request)));
		return got;
	}
	HOLDS((size_t)got <= most && (size_t)got <= sizeof(streamed) - streamed_size);
	memcpy(streamed + streamed_size, piece, (size_t)got);
	streamed_size += (size_t)got;
	return got;
}

/* In pieces of every size. A body that did not come whole must not be answered like one that did. */
static void read_it(http_request *request, http_response *response)
{
	size_t most = 1;
	ssize_t got;
	streamed_size = 0;
	while ((got = read_piece(request, most)) > 0)
		most = most % PIECE_MAX + 1;
	if (got < 0)
		http_response_problem(response, 503, NULL);
	for (size_t i = 0; got == 0 && i < streamed_size; i += 500)
		got = http_write(response, streamed + i, 1);
}

static void answer_early(http_request *request, http_response *response)
{
	streamed_size = 0;
	if (http_query_value(request, "some"))
		read_piece(request, 10);
	http_response_text(response, 200, "early\n");
}

/* Whatever the client sends as its names for them, a request's own go into logs. */
static void check_names(const http_request *request)
{
	const char *id = http_request_id(request), *trace = http_request_trace(request);
	HOLDS(id && *id && strlen(id) <= 128 && !strpbrk(id, " \"\\\t\r\n\x7f"));
	HOLDS(trace && strlen(trace) == 55 && strspn(trace, "0123456789abcdef-") == 55);
	HOLDS(memcmp(trace, "00-", 3) == 0 && trace[35] == '-' && trace[52] == '-');
}

/* Those that were understood: served, redirected to the clean path, of too much body, or too late (Prefer: wait=0). */
static void note(http_request *request, const http_outcome *outcome, void *data)
{
	(void)data;
	size_t size;
	const char *body = http_body(request, &size);
	const char *route = http_request_route(request);
	/* Bodies that no handler has seen, or not all of. */
	bool early = (route && strcmp(route, "/early/") == 0) || outcome->status == 308 ||
	             outcome->status == 413 || outcome->status == 503;
	check_names(request);
	if (route && strcmp(route, "/read/") == 0) {
		body = streamed;
		size = streamed_size;
	}
	if (outcome->status != 200 && outcome->status != 308 && outcome->status != 413 &&
	    outcome->status != 503)
		return;
	pthread_mutex_lock(&seen_mutex);
	add_string(&seen, http_request_method(request));
	add_string(&seen, " ");
	add_string(&seen, http_request_target(request));
	add_string(&seen, "\n");
	for (const http_pair *field = request->fields; field; field = field->next) {
		add_string(&seen, field->name);
		add_string(&seen, ":");
		add_string(&seen, field->value);
		add_string(&seen, "\n");
	}
	HOLDS(seen.requests < REQUESTS_MAX);
	seen.too_much = outcome->status == 413;
	if (early)
		add_early(&seen);
	else
		add_body(&seen, body, size);
	seen.heads += strcmp(http_request_method(request), "HEAD") == 0;
	pthread_mutex_unlock(&seen_mutex);
}

/* ---- What there is to be seen ------------------------------------------------------------------------ */

typedef struct reader {
	const char *at, *end;
	record record;
	const bool *early;     /* of which of the requests no more than the head is asked */
	bool chunks_malformed; /* those of the last one on the record, whose head alone is there */
} reader;

/*
 * Before 1.0 libmicrohttpd takes what no strict reader would, and does not always tell: of malformed chunks all that
 * can be asked is that nothing is served behind them.
 */
static bool mhd_is_lenient(void)
{
	return strncmp(MHD_get_version(), "0.", 2) == 0;
}

/* A line without its CR and LF. False: there is none, or a CR or LF stands alone in it. */
static bool read_line(reader *r, const char **line, size_t *size)
{
	const char *lf = r->at < r->end ? memchr(r->at, '\n', (size_t)(r->end - r->at)) : NULL;
	if (!lf || lf == r->at || lf[-1] != '\r')
		return false;
	*line = r->at;
	*size = (size_t)(lf - r->at) - 1;
	r->at = lf + 1;
	return !memchr(*line, '\r', *size) && !memchr(*line, '\0', *size);
}

/* What decides how a request's body is framed, and whether another may follow. */
typedef struct framing {
	bool old, chunked, has_length, closes, keeps;
	size_t length;
	unsigned hosts;
} framing;

static bool is_name(const char *name, size_t size, const char *known)
{
	return size == strlen(known) && strncasecmp(name, known, size) == 0;
}

static bool read_length(framing *f, const char *value, size_t size)
{
	if (f->has_length || size == 0)
		return false;
	f->has_length = true;
	for (size_t i = 0; i < size; i++) {
		if (value[i] < '0' || value[i] > '9')
			return false;
		if (f->length <= BODY_MAX) /* past it, it is too much whatever it is */
			f->length = f->length * 10 + (size_t)(value[i] - '0');
	}
	return true;
}

static bool has_option(const char *value, size_t size, const char *option)
{
	const char *end = value + size;
	while (value < end) {
		const char *comma = memchr(value, ',', (size_t)(end - value));
		const char *next = comma ? comma : end, *last = next;
		while (value < last && (*value == ' ' || *value == '\t'))
			value++;
		while (last > value && (last[-1] == ' ' || last[-1] == '\t'))
			last--;
		if (is_name(value, (size_t)(last - value), option))
			return true;
		value = next + 1;
	}
	return false;
}

static bool read_framing(framing *f, const char *name, size_t name_size, const char *value, size_t size)
{
	if (is_name(name, name_size, "Content-Length"))
		return read_length(f, value, size);
	if (is_name(name, name_size, "Transfer-Encoding")) {
		bool good = !f->chunked && !f->old && is_name(value, size, "chunked");
		f->chunked = true;
		return good;
	}
	if (is_name(name, name_size, "Connection")) {
		f->closes = f->closes || has_option(value, size, "close");
		f->keeps = f->keeps || has_option(value, size, "keep-alive");
	}
	f->hosts += is_name(name, name_size, "Host");
	return true;
}

/* RFC 9110, 5.2: lines of one name, of those from there on, are one field. */
static void join_lines(record *r, size_t from)
{
	char *lines = r->size > from ? strdup(r->text + from) : NULL, *next;
	r->size = from;
	for (char *line = lines; line && *line; line = next) {
		size_t name = strcspn(line, ":");
		const char *between = is_name(line, name, "cookie") ? "; " : ", ";
		next = strchr(line, '\n') + 1;
		if (name == 0)
			continue; /* it is part of another */
		add(r, line, (size_t)(next - line) - 1);
		for (char *later = next; *later; later = strchr(later, '\n') + 1) {
			if (strcspn(later, ":") != name || strncasecmp(later, line, name) != 0)
				continue;
			add_string(r, between);
			add(r, later + name + 1, strcspn(later + name + 1, "\n"));
			*later = ':';
		}
		add_string(r, "\n");
	}
	free(lines);
}

/* Fields up to the empty line. to: where they are recorded, or NULL. */
static bool read_fields(reader *r, framing *f, record *to)
{
	const char *line;
	size_t size;
	while (read_line(r, &line, &size)) {
		const char *colon = memchr(line, ':', size), *end = line + size;
		if (size == 0)
			return true;
		if (!colon || !is_token(line, (size_t)(colon - line)))
			return false;
		const char *value = colon + 1;
		while (value < end && (*value == ' ' || *value == '\t'))
			value++;
		while (end > value && (end[-1] == ' ' || end[-1] == '\t'))
			end--;
		if (!is_field_value(value, (size_t)(end - value)))
			return false;
		if (!to)
			continue;
		add(to, line, (size_t)(colon - line));
		add_string(to, ":");
		add(to, value, (size_t)(end - value));
		add_string(to, "\n");
		if (!read_framing(f, line, (size_t)(colon - line), value, (size_t)(end - value)))
			return false;
	}
	return false;
}

static bool read_chunk_size(const char *line, size_t size, size_t *chunk)
{
	size_t digits = 0;
	*chunk = 0;
	for (; digits < size && strchr("0123456789abcdefABCDEF", line[digits]); digits++) {
		if (*chunk > SIZE_MAX / 32)
			return false;
		char digit[2] = {line[digits], '\0'};
		*chunk = *chunk * 16 + strtoul(digit, NULL, 16);
	}
	size_t blanks = digits;
	while (blanks < size && (line[blanks] == ' ' || line[blanks] == '\t'))
		blanks++;
	/* RFC 9112, 7.1.1: blanks only before an extension. What that says is nobody's business. */
	return digits > 0 && (digits == size || (blanks < size && line[blanks] == ';'));
}

static bool read_chunks(reader *r, record *body)
{
	const char *line;
	size_t size, chunk;
	while (read_line(r, &line, &size) && read_chunk_size(line, size, &chunk)) {
		if (chunk == 0)
			return read_fields(r, NULL, NULL);
		if ((size_t)(r->end - r->at) < chunk + 2 || memcmp(r->at + chunk, "\r\n", 2) != 0)
			return false;
		add(body, r->at, chunk);
		r->at += chunk + 2;
	}
	return false;
}

/* False: the line is not one. */
static bool read_request_line(reader *r, framing *f)
{
	const char *line;
	size_t size;
	/* RFC 9112, 2.2: empty lines before it are nothing, and what ends them is nobody's business. */
	while (r->at < r->end &&
	       (*r->at == '\n' || (*r->at == '\r' && r->end - r->at > 1 && r->at[1] == '\n')))
		r->at += *r->at == '\r' ? 2 : 1;
	if (!read_line(r, &line, &size))
		return false;
	const char *space = memchr(line, ' ', size);
	const char *version = space ? memchr(space + 1, ' ', size - (size_t)(space + 1 - line)) : NULL;
	if (!version || !is_token(line, (size_t)(space - line)) || line + size - version != 9)
		return false;
	f->old = version[8] == '0';
	add(&r->record, line, (size_t)(version - line));
	add_string(&r->record, "\n");
	/* RFC 9110, 2.5: a minor version that is yet to come is understood as the latest there is. */
	return memcmp(version, " HTTP/1.", 8) == 0 && version[8] >= '0' && version[8] <= '9';
}

/* Reads one request onto the record. True: there may be another. False and *whole unset: it is none. */
static bool read_request(reader *r, bool *whole)
{
	framing f = {0};
	record body = {0};
	*whole = false;
	if (!read_request_line(r, &f))
		return false;
	size_t fields = r->record.size;
	if (!read_fields(r, &f, &r->record) || (f.chunked && f.has_length) || f.hosts > 1 ||
	    (f.hosts == 0 && !f.old))
		return false;
	join_lines(&r->record, fields);
	bool early = r->early[r->record.requests];
	if (early)
		add_early(&r->record);
	if (f.chunked) {
		*whole = read_chunks(r, &body);
		r->chunks_malformed = !*whole;
		f.closes = f.closes || mhd_is_lenient();
	} else if (f.length > BODY_MAX && !early) {
		add_body(&r->record, NULL, f.length);
		return false;
	} else if (f.length <= (size_t)(r->end - r->at)) {
		add(&body, r->at, f.length);
		r->at += f.length;
		*whole = true;
	}
	if (*whole && !early)
		add_body(&r->record, body.text, body.size);
	free(body.text);
	return *whole && !f.closes && (!f.old || f.keeps);
}

/* Reads as many requests as were handled, and no more. */
static reader read_strictly(const char *data, size_t size, const record *handled)
{
	reader r = {.at = data, .end = data + size, .early = handled->early};
	bool whole = true, more = true;
	while (whole && more && r.record.requests < handled->requests)
		more = read_request(&r, &whole);
	return r;
}

/*
 * It also writes a NUL over each line's end, and then cannot be asked whether there was one before: a line that began
 * with one was passed over as an empty one, and so was one that began with a colon, where an LF for a CR and LF made
 * up for its length.
 */
static bool is_beyond_knowing(const char *data, size_t size)
{
	return mhd_is_lenient() &&
	       (memchr(data, '\0', size) || memmem(data, size, ":\n", 2) || memmem(data, size, "\n:\r", 3));
}

static bool agree(const reader *wanted, const record *handled)
{
	const record *read = &wanted->record;
	bool forgiven = wanted->chunks_malformed && (mhd_is_lenient() || handled->too_much) &&
	                read->requests + 1 == handled->requests;
	if (forgiven ? read->size > handled->size : read->size != handled->size)
		return false;
	return (forgiven || read->requests == handled->requests) &&
	       (read->size == 0 || memcmp(read->text, handled->text, read->size) == 0);
}

/* ---- The answers ------------------------------------------------------------------------------------- */

/* The value of a field within a head; NULL: there is none. name: "\r\nName: ". */
static const char *value_of(const char *head, const char *end, const char *name)
{
	size_t size = strlen(name);
	for (; head + size < end; head++)
		if (strncasecmp(head, name, size) == 0)
			return head + size;
	return NULL;
}

/* What is behind the chunks; NULL: they are cut. */
static const char *skip_chunks(const char *at, const char *end)
{
	for (;;) {
		const char *lf = memchr(at, '\n', (size_t)(end - at));
		if (!lf)
			return NULL;
		size_t digits = strspn(at, "0123456789abcdefABCDEF"), size = strtoul(at, NULL, 16);
		HOLDS(digits > 0 && at + digits + 1 == lf && lf[-1] == '\r');
		at = lf + 1;
		if ((size_t)(end - at) < size + 2)
			return NULL;
		HOLDS(memcmp(at + size, "\r\n", 2) == 0);
		at += size + 2;
		if (size == 0)
			return at;
	}
}

/* What is behind the body of an answer; NULL: it is cut, or goes on to the end of the connection. */
static const char *skip_body(const char *head, const char *body, const char *end, int status)
{
	const char *length = value_of(head, body, "\r\nContent-Length: ");
	if (length) {
		size_t size = strtoul(length, NULL, 10);
		return (size_t)(end - body) < size ? NULL : body + size;
	}
	if (value_of(head, body, "\r\nTransfer-Encoding: chunked"))
		return skip_chunks(body, end);
	return status == 200 ? NULL : body;
}

/* Nothing but responses, one behind the other, each as long as it says. The last may be cut by a reset. */
static void check_answers(const char *answer, size_t size)
{
	const char *end = answer + size;
	while (answer < end) {
		const char *head_end = strstr(answer, "\r\n\r\n");
		HOLDS(strncmp(answer, "HTTP/1.1 ", 9) == 0);
		if (!head_end)
			return;
		int status = atoi(answer + 9);
		HOLDS(status == 100 || (status >= 200 && status <= 599));
		answer = skip_body(answer, head_end + 4, end, status);
		if (!answer)
			return;
	}
}

/* What is sent, and where it pauses. */
typedef struct script {
	char *bytes;
	size_t size, pauses[64], pause_count;
} script;

static void read_script(script *s, const uint8_t *data, size_t size)
{
	enum { PAUSES_MAX = sizeof(s->pauses) / sizeof(*s->pauses) };
	*s = (script){.bytes = malloc(size + 1)};
	HOLDS(s->bytes);
	for (size_t i = 0; i < size; i++) {
		if (data[i] != PAUSE)
			s->bytes[s->size++] = (char)data[i];
		else if (s->pause_count < PAUSES_MAX)
			s->pauses[s->pause_count++] = s->size;
	}
}

/* What may be HTTP/2 is another target's. */
static bool may_be_preface(const char *sent, size_t size)
{
	return memcmp(sent, "PRI ", size < 4 ? size : 4) == 0;
}

static void compare(http_server *server, const script *s)
{
	size_t answer_size;
	pthread_mutex_lock(&seen_mutex);
	seen = (record){0};
	pthread_mutex_unlock(&seen_mutex);
	const char *answer =
		exchange(server, (const uint8_t *)s->bytes, s->size, s->pauses, s->pause_count, &answer_size);
	pthread_mutex_lock(&seen_mutex);
	reader wanted = read_strictly(s->bytes, s->size, &seen);
	if (!agree(&wanted, &seen) && !is_beyond_knowing(s->bytes, s->size)) {
		fprintf(stderr, "seen %zu:\n%s\nto be seen %zu:\n%s\n", seen.requests, seen.text,
		        wanted.record.requests, wanted.record.text);
		HOLDS(false && "the server saw other requests than there were");
	}
	if (seen.heads == 0 && !memmem(s->bytes, s->size, "HEAD", 4))
		check_answers(answer, answer_size);
	free(wanted.record.text);
	free(seen.text);
	pthread_mutex_unlock(&seen_mutex);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static http_server *server;
	script s;
	if (!server) {
		static const http_route_options streams = {.streams_body = true};
		server = exchange_server(
			&(http_server_options){.body_size = BODY_MAX, .traces = true, .on_done = note}, NULL);
		HOLDS(http_handle(server, "/", answer_it, NULL) == 0);
		HOLDS(http_handle_with(server, "/read/", &streams, read_it, NULL) == 0);
		HOLDS(http_handle_with(server, "/early/", &streams, answer_early, NULL) == 0);
		exchange_serve(server);
	}
	read_script(&s, data, size);
	if (!may_be_preface(s.bytes, s.size))
		compare(server, &s);
	free(s.bytes);
	return 0;
}
