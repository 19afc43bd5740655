/*
 * HTTP/2: frames, in any order and of any content, into a connection.
 *
 * An input is a list of steps, most of which are frames; the client's preface goes before them:
 *
 *	TYPE FLAGS STREAM SIZE payload…     TYPE below 0xf0: a frame, whose length is what there is of the payload
 *	RAW SIZE bytes…                     bytes as they are
 *	PAUSE                               waits until the server has taken what came before
 *	FIELDS FLAGS STREAM SIZE lines…     a HEADERS frame of "name:value" lines, compressed as a client would
 *	BULK FLAGS STREAM SIZE              a DATA frame of 64 times SIZE bytes
 *
 * What handlers see is a request that HTTP/1.1 could have brought as well; what the client sees is whole frames of
 * streams that it has opened, none behind its stream's end, and heads that can be decompressed.
 */
#include <errno.h>
#include <nghttp2/nghttp2.h>
#include <stdatomic.h>

#include "exchange.h"
#include "fuzz.h"
#include "http_priv.h"

enum { FRAME = 0xf0, RAW = 0xf0, PAUSE = 0xf1, FIELDS = 0xf2, BULK = 0xf3 };
enum { HEAD_SIZE = 9, FRAME_MAX = 16384, STREAMS = 256, OUT_MAX = 1 << 20, BULK_UNIT = 64 };
enum {
	DATA,
	HEADERS,
	PRIORITY,
	RST_STREAM,
	SETTINGS,
	PUSH_PROMISE,
	PING,
	GOAWAY,
	WINDOW_UPDATE,
	CONTINUATION
};
enum { STREAMED_MAX = 100 * 1000 }; /* more than a window */
enum { END_STREAM = 0x1, END_HEADERS = 0x4, PADDED = 0x8 };

/* ---- What the client says ---------------------------------------------------------------------------- */

typedef struct script {
	uint8_t bytes[OUT_MAX];
	size_t size;
	size_t pauses[64]; /* sizes at which there is one */
	size_t pause_count;
	nghttp2_hd_deflater *deflater;
	size_t heads; /* frames that may begin a request */
	bool frames_only;
} script;

static void put(script *s, const void *bytes, size_t size)
{
	if (size > sizeof(s->bytes) - s->size)
		size = sizeof(s->bytes) - s->size;
	if (size > 0)
		memcpy(s->bytes + s->size, bytes, size);
	s->size += size;
}

static void put_frame(script *s, uint8_t type, uint8_t flags, uint8_t stream, const void *payload,
                      size_t size)
{
	const uint8_t head[HEAD_SIZE] = {
		(uint8_t)(size >> 16), (uint8_t)(size >> 8), (uint8_t)size, type, flags, 0, 0, 0, stream};
	s->heads += type == HEADERS;
	put(s, head, sizeof(head));
	put(s, payload, size);
}

/* Lines of "name:value"; a name may begin with a colon. */
static void put_fields(script *s, uint8_t flags, uint8_t stream, const uint8_t *lines, size_t size)
{
	enum { MOST = 64 };
	nghttp2_nv fields[MOST];
	uint8_t block[FRAME_MAX];
	size_t count = 0;
	for (const uint8_t *at = lines, *end = lines + size; at < end && count < MOST;) {
		const uint8_t *lf = memchr(at, '\n', (size_t)(end - at));
		const uint8_t *line_end = lf ? lf : end;
		const uint8_t *colon =
			line_end > at ? memchr(at + 1, ':', (size_t)(line_end - at - 1)) : NULL;
		if (colon)
			fields[count++] = (nghttp2_nv){.name = (uint8_t *)(uintptr_t)at,
			                               .namelen = (size_t)(colon - at),
			                               .value = (uint8_t *)(uintptr_t)(colon + 1),
			                               .valuelen = (size_t)(line_end - colon - 1)};
		at = line_end + 1;
	}
	ssize_t made = nghttp2_hd_deflate_hd(s->deflater, block, sizeof(block), fields, count);
	if (made >= 0)
		put_frame(s, HEADERS, flags, stream, block, (size_t)made);
}

static void put_bulk(script *s, uint8_t flags, uint8_t stream, size_t units)
{
	static const uint8_t zeros[UINT8_MAX * BULK_UNIT];
	put_frame(s, DATA, flags, stream, zeros, units * BULK_UNIT);
}

static void put_pause(script *s)
{
	if (s->pause_count < sizeof(s->pauses) / sizeof(*s->pauses))
		s->pauses[s->pause_count++] = s->size;
}

static uint8_t next_byte(const uint8_t **at, const uint8_t *end)
{
	return *at < end ? *(*at)++ : 0;
}

static void read_steps(script *s, const uint8_t *at, const uint8_t *end)
{
	while (at < end) {
		uint8_t type = next_byte(&at, end);
		if (type == PAUSE) {
			put_pause(s);
			continue;
		}
		uint8_t flags = type == RAW ? 0 : next_byte(&at, end);
		uint8_t stream = type == RAW ? 0 : next_byte(&at, end);
		size_t size = next_byte(&at, end);
		if (type == BULK) {
			put_bulk(s, flags, stream, size);
			continue;
		}
		if (size > (size_t)(end - at))
			size = (size_t)(end - at);
		if (type == RAW)
			put(s, at, size);
		else if (type == FIELDS)
			put_fields(s, flags, stream, at, size);
		else
			put_frame(s, type, flags, stream, at, size);
		s->frames_only &= type != RAW;
		at += size;
	}
}

/* ---- What handlers see ------------------------------------------------------------------------------- */

static atomic_size_t handled;

static void check_request(const http_request *request)
{
	const char *method = http_request_method(request);
	HOLDS(is_token(method, strlen(method)));
	HOLDS(http_request_target(request)[0] == '/' && !strpbrk(http_request_target(request), " \r\n\t#"));
	HOLDS(http_header(request, "host"));
	for (const http_pair *field = request->fields; field; field = field->next) {
		HOLDS(is_token(field->name, strlen(field->name)));
		HOLDS(is_field_value(field->value, strlen(field->value)));
	}
	HOLDS(!http_header(request, "transfer-encoding") && !http_header(request, "connection"));
	HOLDS(strlen(http_request_trace(request)) == 55 && http_request_id(request)[0]);
}

/* Of a body that came whole. */
static void check_length(const http_request *request, size_t body_size)
{
	const char *length = http_header(request, "content-length");
	HOLDS(!length || strtoull(length, NULL, 10) == body_size);
}

static void echo(http_request *request, http_response *response)
{
	size_t size;
	const char *body = http_body(request, &size);
	handled++;
	check_request(request);
	check_length(request, size);
	http_response_header(response, "Target", http_request_target(request));
	http_response_body(response, 200, "text/plain", body, size);
}

/* More than a window holds. */
static void stream(http_request *request, http_response *response)
{
	static const char piece[10000];
	handled++;
	check_request(request);
	for (int i = 0; i < 10 && http_write(response, piece, sizeof(piece)) == 0; i++)
		;
}

static void wait_a_little(http_request *request, http_response *response)
{
	handled++;
	check_request(request);
	if (wait_sleep(http_request_ctx(request), 2 * CTX_MILLISECOND) == 0)
		http_response_text(response, 200, "waited\n");
}

/* Gives back what it reads, as it comes; once it has given something, the rest is thrown away. */
static void read_it(http_request *request, http_response *response)
{
	char piece[1000];
	size_t size = 0;
	ssize_t got;
	handled++;
	check_request(request);
	while ((got = http_body_read(request, piece, sizeof(piece))) > 0)
		size += (size_t)got;
	HOLDS(size <= STREAMED_MAX);
	if (got == 0)
		check_length(request, size);
	else
		HOLDS(errno == EMSGSIZE || errno == ETIMEDOUT || errno == EBADMSG ||
		      ctx_err(http_request_ctx(request)));
	if (got == 0)
		http_write(response, piece, size < sizeof(piece) ? size : sizeof(piece));
}

/* Answers when it has read a little, while more may come. */
static void answer_early(http_request *request, http_response *response)
{
	char piece[10];
	handled++;
	check_request(request);
	ssize_t got = http_body_read(request, piece, sizeof(piece));
	if (got > 0 && http_write(response, piece, (size_t)got) == 0)
		HOLDS(http_body_read(request, piece, sizeof(piece)) < 0);
	if (got > 3)
		http_response_fail(response);
}

/* ---- What the client sees ---------------------------------------------------------------------------- */

typedef struct view {
	nghttp2_hd_inflater *inflater;
	bool headed[STREAMS], ended[STREAMS];
	bool settled;
} view;

static void check_head(view *v, const uint8_t *block, size_t size, bool end)
{
	bool first = true;
	int flags = 0;
	do {
		nghttp2_nv field;
		ssize_t used = nghttp2_hd_inflate_hd2(v->inflater, &field, &flags, block, size, end);
		HOLDS(used >= 0);
		block += used;
		size -= (size_t)used;
		if (!(flags & NGHTTP2_HD_INFLATE_EMIT))
			continue;
		HOLDS(first == (field.namelen == 7 && memcmp(field.name, ":status", 7) == 0));
		HOLDS(is_field_value((const char *)field.value, field.valuelen));
		first = false;
	} while (size > 0 || (flags & NGHTTP2_HD_INFLATE_EMIT));
	HOLDS(flags & NGHTTP2_HD_INFLATE_FINAL);
	nghttp2_hd_inflate_end_headers(v->inflater);
}

static void check_frame(view *v, uint8_t type, uint8_t flags, uint32_t id, const uint8_t *payload,
                        size_t size)
{
	HOLDS(type <= CONTINUATION && type != PUSH_PROMISE && type != PRIORITY && size <= FRAME_MAX);
	HOLDS(v->settled || type == SETTINGS);
	v->settled = true;
	bool of_stream = type == DATA || type == HEADERS || type == RST_STREAM;
	HOLDS(!of_stream || (id % 2 == 1 && id < STREAMS));
	HOLDS(of_stream || type == WINDOW_UPDATE || id == 0);
	if (type == DATA || type == HEADERS)
		HOLDS(!v->ended[id] && !(flags & PADDED));
	if (type == DATA)
		HOLDS(v->headed[id]);
	if (type == HEADERS) {
		HOLDS(flags & END_HEADERS);
		check_head(v, payload, size, true);
		v->headed[id] = true;
	}
	if (type == RST_STREAM || ((type == DATA || type == HEADERS) && (flags & END_STREAM)))
		v->ended[id] = true;
}

/* The connection may have been reset in the midst of a frame. */
static void check_answer(view *v, const uint8_t *answer, size_t size)
{
	while (size >= HEAD_SIZE) {
		size_t length = (size_t)answer[0] << 16 | (size_t)answer[1] << 8 | answer[2];
		uint32_t id = (uint32_t)(answer[5] & 0x7f) << 24 | (uint32_t)answer[6] << 16 |
		              (uint32_t)answer[7] << 8 | answer[8];
		if (length > size - HEAD_SIZE)
			return;
		check_frame(v, answer[3], answer[4], id, answer + HEAD_SIZE, length);
		answer += HEAD_SIZE + length;
		size -= HEAD_SIZE + length;
	}
}

static http_server *serve(void)
{
	static const http_route_options streams = {.streams_body = true, .body_size = STREAMED_MAX};
	http_server *server =
		exchange_server(&(http_server_options){.body_size = 4096, .traces = true}, NULL);
	HOLDS(http_handle(server, "/", echo, NULL) == 0);
	HOLDS(http_handle(server, "/stream", stream, NULL) == 0);
	HOLDS(http_handle(server, "/wait", wait_a_little, NULL) == 0);
	HOLDS(http_handle_with(server, "/read", &streams, read_it, NULL) == 0);
	HOLDS(http_handle_with(server, "/early", &streams, answer_early, NULL) == 0);
	exchange_serve(server);
	return server;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static http_server *server;
	static script s;
	if (!server)
		server = serve();
	s.size = s.pause_count = s.heads = 0;
	handled = 0;
	s.frames_only = true;
	HOLDS(nghttp2_hd_deflate_new(&s.deflater, 4096) == 0);
	put(&s, NGHTTP2_CLIENT_MAGIC, NGHTTP2_CLIENT_MAGIC_LEN);
	read_steps(&s, data, data + size);
	nghttp2_hd_deflate_del(s.deflater);

	size_t answer_size;
	const char *answer = exchange(server, s.bytes, s.size, s.pauses, s.pause_count, &answer_size);
	if (s.frames_only) {
		view v = {0};
		HOLDS(nghttp2_hd_inflate_new(&v.inflater) == 0);
		check_answer(&v, (const uint8_t *)answer, answer_size);
		nghttp2_hd_inflate_del(v.inflater);
		HOLDS(handled <= s.heads);
	}
	return 0;
}
