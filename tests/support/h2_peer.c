#include "h2_peer.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include <nghttp2/nghttp2.h>

#include "support.h"

enum {
	FRAME_HEAD = 9,
	FRAME_MAX = 1 << 16,
	STREAMS_MAX = 8192,
	WINDOW = 65535,
	PIECE = 16384,
	PATIENCE = 20 /* seconds */
};

struct h2_peer_private {
	nghttp2_hd_inflater *inflater;
	uint8_t payload[FRAME_MAX];
	uint8_t sent_block[5 * PIECE];
	uint8_t block[1 << 20]; /* of HEADERS and CONTINUATION */
	size_t block_size;
	bool block_ends; /* the stream */
	size_t pongs;
	h2_answer answers[STREAMS_MAX]; /* by id / 2 */
	h2_answer nothing;
};

_Noreturn static void die(const char *what)
{
	perror(what);
	abort();
}

/* ---- Connections ------------------------------------------------------------------------------------- */

h2_peer *h2_peer_open(int fd)
{
	h2_peer *p = calloc(1, sizeof(*p));
	if (!p || !(p->private = calloc(1, sizeof(*p->private))) ||
	    nghttp2_hd_inflate_new(&p->private->inflater) != 0)
		die("h2_peer_open");
	p->fd = fd;
	setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &(int){1}, sizeof(int));
	p->window = WINDOW;
	memset(p->settings, 0xff, sizeof(p->settings));
	return p;
}

h2_peer *h2_peer_connect(const http_peer_server *s)
{
	h2_peer *p = h2_peer_open(http_peer_connect(s));
	if (!h2_peer_preface(p))
		die("h2_peer_preface");
	return p;
}

h2_peer *h2_peer_connect_tls(const http_peer_server *s)
{
	tls_peer *tls = tls_peer_connect(s, &(tls_peer_options){.alpn = {"h2"}});
	h2_peer *p = h2_peer_open(tls_peer_fd(tls));
	p->tls = tls;
	if (!h2_peer_preface(p))
		die("h2_peer_preface");
	return p;
}

h2_peer *h2_peer_dial(int port)
{
	struct sockaddr_in in = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
	struct timeval patience = {.tv_sec = PATIENCE * support_patience()};
	int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	in.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	if (fd < 0 || setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof(patience)) != 0 ||
	    connect(fd, (const struct sockaddr *)&in, sizeof(in)) != 0)
		die("h2_peer_dial");
	h2_peer *p = h2_peer_open(fd);
	if (!h2_peer_preface(p))
		die("h2_peer_preface");
	return p;
}

void h2_peer_close(h2_peer *p)
{
	if (p->fd >= 0 && p->tls)
		tls_peer_close(p->tls);
	else if (p->fd >= 0)
		close(p->fd);
	nghttp2_hd_inflate_del(p->private->inflater);
	for (size_t i = 0; i < STREAMS_MAX; i++) {
		free(p->private->answers[i].fields);
		free(p->private->answers[i].body);
	}
	free(p->private);
	free(p);
}

/* ---- Writing ----------------------------------------------------------------------------------------- */

bool h2_peer_bytes(h2_peer *p, const void *data, size_t size)
{
	return p->tls ? tls_peer_send_bytes(p->tls, data, size) : http_peer_send_bytes(p->fd, data, size);
}

static void put_number(uint8_t *to, uint32_t number)
{
	number = htonl(number);
	memcpy(to, &number, sizeof(number));
}

static uint32_t get_number(const uint8_t *from)
{
	uint32_t number;
	memcpy(&number, from, sizeof(number));
	return ntohl(number);
}

bool h2_peer_frame(h2_peer *p, uint8_t type, uint8_t flags, uint32_t stream, const void *payload, size_t size)
{
	uint8_t frame[FRAME_HEAD + 1024] = {(uint8_t)(size >> 16), (uint8_t)(size >> 8), (uint8_t)size, type,
	                                    flags};
	put_number(frame + 5, stream);
	if (size <= 1024) {
		if (size > 0)
			memcpy(frame + FRAME_HEAD, payload, size);
		return h2_peer_bytes(p, frame, FRAME_HEAD + size);
	}
	return h2_peer_bytes(p, frame, FRAME_HEAD) && h2_peer_bytes(p, payload, size);
}

bool h2_peer_preface(h2_peer *p)
{
	static const char preface[] = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
	return h2_peer_bytes(p, preface, sizeof(preface) - 1) && h2_peer_frame(p, H2_SETTINGS, 0, 0, NULL, 0);
}

bool h2_peer_number(h2_peer *p, uint8_t type, uint32_t stream, uint32_t number)
{
	uint8_t payload[4];
	put_number(payload, number);
	return h2_peer_frame(p, type, 0, stream, payload, sizeof(payload));
}

/* A number of RFC 7541, 5.1, behind a byte with 7 bits for it. */
static size_t put_size(uint8_t *to, size_t size)
{
	size_t n = 1;
	if (size < 127) {
		to[0] = (uint8_t)size;
		return 1;
	}
	to[0] = 127;
	for (size -= 127; size >= 128; size >>= 7)
		to[n++] = (uint8_t)(size | 128);
	to[n++] = (uint8_t)size;
	return n;
}

static size_t put_text(uint8_t *to, const void *text, size_t size)
{
	size_t head = put_size(to, size);
	memcpy(to + head, text, size);
	return head + size;
}

size_t h2_block_field(uint8_t *block, size_t room, const void *name, size_t name_size, const void *value,
                      size_t value_size)
{
	if (name_size + value_size + 24 > room)
		die("h2_block_field");
	size_t size = 1;
	block[0] = 0; /* literal, not indexed, with a new name */
	size += put_text(block + size, name, name_size);
	return size + put_text(block + size, value, value_size);
}

size_t h2_block(uint8_t *block, size_t room, const char *const *fields)
{
	size_t size = 0;
	for (; *fields; fields += 2)
		size += h2_block_field(block + size, room - size, fields[0], strlen(fields[0]), fields[1],
		                       strlen(fields[1]));
	return size;
}

bool h2_peer_headers(h2_peer *p, uint32_t stream, uint8_t flags, const char *const *fields)
{
	uint8_t *block = p->private->sent_block;
	size_t size = h2_block(block, sizeof(p->private->sent_block), fields), sent = 0;
	bool begun = false, whole = false;
	while (!whole) {
		size_t piece = size - sent < PIECE ? size - sent : PIECE;
		whole = sent + piece == size;
		if (!h2_peer_frame(p, begun ? H2_CONTINUATION : H2_HEADERS,
		                   (uint8_t)((begun ? 0 : flags) | (whole ? H2_END_HEADERS : 0)), stream,
		                   block + sent, piece))
			return false;
		begun = true;
		sent += piece;
	}
	return true;
}

static bool ask(h2_peer *p, uint32_t stream, uint8_t flags, const char *method, const char *path)
{
	const char *const fields[] = {":method", method,       ":scheme", "http", ":path",
	                              path,      ":authority", "h",       NULL};
	return h2_peer_headers(p, stream, flags, fields);
}

bool h2_peer_ask(h2_peer *p, uint32_t stream, const char *method, const char *path)
{
	return ask(p, stream, H2_END_STREAM, method, path);
}

bool h2_peer_begin(h2_peer *p, uint32_t stream, const char *method, const char *path)
{
	return ask(p, stream, 0, method, path);
}

/* ---- Reading ----------------------------------------------------------------------------------------- */

static bool read_all(h2_peer *p, uint8_t *to, size_t size)
{
	while (size > 0) {
		ssize_t got = p->tls ? tls_peer_receive(p->tls, to, size) : recv(p->fd, to, size, 0);
		if (got <= 0) {
			p->closed = got == 0 || (p->tls ? got != GNUTLS_E_AGAIN : errno == ECONNRESET);
			return false;
		}
		to += got;
		size -= (size_t)got;
	}
	return true;
}

h2_answer *h2_peer_so_far(h2_peer *p, uint32_t stream)
{
	if (stream % 2 == 0 || stream / 2 >= STREAMS_MAX)
		return &p->private->nothing;
	h2_answer *answer = &p->private->answers[stream / 2];
	if (answer->id == 0)
		*answer = (h2_answer){.id = stream, .window = WINDOW};
	return answer;
}

/* What is allocated for a text of that size: a power of two. */
static size_t capacity_of(size_t size)
{
	size_t capacity = 64;
	while (capacity <= size)
		capacity *= 2;
	return capacity;
}

static void add_text(char **to, size_t *size, const void *text, size_t more)
{
	if (!*to || capacity_of(*size) != capacity_of(*size + more))
		*to = realloc(*to, capacity_of(*size + more));
	if (!*to)
		die("realloc");
	memcpy(*to + *size, text, more);
	*size += more;
	(*to)[*size] = '\0';
}

static void add_field(h2_answer *answer, const nghttp2_nv *nv)
{
	size_t size = answer->fields ? strlen(answer->fields) : 0;
	if (nv->namelen == 7 && memcmp(nv->name, ":status", 7) == 0) {
		if (answer->status >= 100 && answer->status < 200)
			answer->interim++;
		answer->status = atoi((const char *)nv->value);
	}
	add_text(&answer->fields, &size, nv->name, nv->namelen);
	add_text(&answer->fields, &size, ": ", 2);
	add_text(&answer->fields, &size, nv->value, nv->valuelen);
	add_text(&answer->fields, &size, "\n", 1);
}

static void inflate(h2_peer *p, h2_answer *answer)
{
	struct h2_peer_private *q = p->private;
	uint8_t *at = q->block;
	size_t left = q->block_size;
	for (;;) {
		nghttp2_nv nv;
		int flags = 0;
		ssize_t used = nghttp2_hd_inflate_hd2(q->inflater, &nv, &flags, at, left, 1);
		if (used < 0)
			die("the server's header block is malformed");
		at += used;
		left -= (size_t)used;
		if (flags & NGHTTP2_HD_INFLATE_EMIT)
			add_field(answer, &nv);
		if (flags & NGHTTP2_HD_INFLATE_FINAL)
			break;
	}
	nghttp2_hd_inflate_end_headers(q->inflater);
}

static void took_headers(h2_peer *p, h2_answer *answer, uint8_t type, uint8_t flags, const uint8_t *payload,
                         size_t size)
{
	struct h2_peer_private *q = p->private;
	if (type == H2_HEADERS) {
		q->block_size = 0;
		q->block_ends = flags & H2_END_STREAM;
	}
	memcpy(q->block + q->block_size, payload, size);
	q->block_size += size;
	if (!(flags & H2_END_HEADERS))
		return;
	inflate(p, answer);
	answer->ended |= q->block_ends;
}

static void took_data(h2_peer *p, h2_answer *answer, uint8_t flags, const uint8_t *payload, size_t size)
{
	add_text(&answer->body, &answer->body_size, payload, size);
	answer->ended |= flags & H2_END_STREAM;
	if (!p->silent && size > 0) {
		h2_peer_number(p, H2_WINDOW_UPDATE, 0, (uint32_t)size);
		if (!answer->ended)
			h2_peer_number(p, H2_WINDOW_UPDATE, answer->id, (uint32_t)size);
	}
}

static void took_settings(h2_peer *p, uint8_t flags, const uint8_t *payload, size_t size)
{
	if (flags & H2_ACK)
		return;
	for (; size >= 6; payload += 6, size -= 6)
		if (payload[0] == 0 && payload[1] < 16)
			p->settings[payload[1]] = get_number(payload + 2);
	if (!p->silent)
		h2_peer_frame(p, H2_SETTINGS, H2_ACK, 0, NULL, 0);
}

bool h2_peer_step(h2_peer *p)
{
	uint8_t head[FRAME_HEAD], *payload = p->private->payload;
	if (p->closed || !read_all(p, head, sizeof(head)))
		return false;
	size_t size = (size_t)head[0] << 16 | (size_t)head[1] << 8 | head[2];
	uint8_t type = head[3], flags = head[4];
	h2_answer *answer = h2_peer_so_far(p, get_number(head + 5) & INT32_MAX);
	if (size > FRAME_MAX)
		die("a frame larger than was allowed");
	if (!read_all(p, payload, size))
		return false;
	if (type < H2_TYPES)
		p->frames[type]++;
	switch (type) {
	case H2_HEADERS:
	case H2_CONTINUATION:
		took_headers(p, answer, type, flags, payload, size);
		break;
	case H2_DATA:
		took_data(p, answer, flags, payload, size);
		break;
	case H2_RST_STREAM:
		answer->reset = true;
		answer->reason = get_number(payload);
		break;
	case H2_SETTINGS:
		took_settings(p, flags, payload, size);
		break;
	case H2_PING:
		if (flags & H2_ACK)
			p->private->pongs++;
		else if (!p->silent)
			h2_peer_frame(p, H2_PING, H2_ACK, 0, payload, size);
		break;
	case H2_WINDOW_UPDATE:
		*(answer == &p->private->nothing ? &p->window : &answer->window) += get_number(payload);
		break;
	case H2_GOAWAY:
		p->goaways++;
		p->goaway_last = get_number(payload) & INT32_MAX;
		p->goaway_reason = get_number(payload + 4);
		break;
	default:
		break;
	}
	return true;
}

h2_answer *h2_peer_answer(h2_peer *p, uint32_t stream)
{
	h2_answer *answer = h2_peer_so_far(p, stream);
	while (!answer->ended && !answer->reset && h2_peer_step(p))
		;
	return answer;
}

bool h2_peer_goes_away(h2_peer *p, int goaways)
{
	while (p->goaways < goaways && h2_peer_step(p))
		;
	return p->goaways >= goaways;
}

bool h2_peer_ends(h2_peer *p)
{
	while (h2_peer_step(p))
		;
	return p->closed;
}

bool h2_peer_ping(h2_peer *p)
{
	size_t before = p->private->pongs;
	if (!h2_peer_frame(p, H2_PING, 0, 0, "barrier!", 8))
		return false;
	while (p->private->pongs == before && h2_peer_step(p))
		;
	return p->private->pongs > before;
}

const char *h2_answer_field(const h2_answer *answer, const char *name)
{
	static _Thread_local char value[4096];
	size_t size = strlen(name);
	for (const char *line = answer->fields; line && *line; line = strchr(line, '\n') + 1)
		if (strncmp(line, name, size) == 0 && line[size] == ':') {
			snprintf(value, sizeof(value), "%.*s", (int)strcspn(line + size + 2, "\n"),
			         line + size + 2);
			return value;
		}
	return NULL;
}
