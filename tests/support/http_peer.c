#include "http_peer.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/socket.h>
#include <unistd.h>

#include "support.h"

enum { PATIENCE = 20 }; /* seconds until a read is taken for hanging */

struct http_peer_server {
	http_server *server;
	ctx *ctx;
	pthread_t thread;
	int result;
	char address[64];
};

_Noreturn static void die(const char *what)
{
	perror(what);
	abort();
}

/* ---- A server ---------------------------------------------------------------------------------------- */

static void *serve(void *arg)
{
	http_peer_server *s = arg;
	s->result = http_serve(s->server, s->ctx);
	return NULL;
}

http_peer_server *http_peer_prepare(const http_server_options *options)
{
	http_server_options chosen = {0};
	if (options)
		chosen = *options;
	if (chosen.workers == 0)
		chosen.workers = 1;
	http_peer_server *s = calloc(1, sizeof(*s));
	if (!s || !(s->ctx = ctx_with_cancel(ctx_background())) || !(s->server = http_server_new(&chosen)))
		die("http_server_new");
	return s;
}

static void start(http_peer_server *s)
{
	if (pthread_create(&s->thread, NULL, serve, s) != 0)
		die("pthread_create");
}

void http_peer_begin(http_peer_server *s, http_tls *tls)
{
	if (http_listen_tls(s->server, "127.0.0.1:0", tls, s->address, sizeof(s->address)) != 0)
		die("http_listen");
	start(s);
}

http_peer_server *http_peer_start(http_server *server, ctx *base)
{
	http_peer_server *s = calloc(1, sizeof(*s));
	if (!s || !(s->ctx = ctx_with_cancel(base ? base : ctx_background())))
		die("ctx_with_cancel");
	s->server = server;
	start(s);
	return s;
}

http_peer_server *http_peer_serve_tls(const http_server_options *options, const http_peer_route *routes,
                                      http_tls *tls)
{
	http_peer_server *s = http_peer_prepare(options);
	for (; routes->pattern; routes++)
		if (http_handle(s->server, routes->pattern, routes->handler, routes->data) != 0)
			die(routes->pattern);
	http_peer_begin(s, tls);
	return s;
}

http_peer_server *http_peer_serve(const http_server_options *options, const http_peer_route *routes)
{
	return http_peer_serve_tls(options, routes, NULL);
}

http_server *http_peer_server_of(const http_peer_server *s)
{
	return s->server;
}

const char *http_peer_address(const http_peer_server *s)
{
	return s->address;
}

bool http_peer_is_quiet(void *server)
{
	http_server_stats stats;
	http_server_stats_get(http_peer_server_of(server), &stats);
	return stats.connections == 0 && stats.requests == 0 && stats.fibers == 0;
}

void http_peer_drain(http_peer_server *s)
{
	ctx_cancel(s->ctx);
}

int http_peer_stop(http_peer_server *s)
{
	http_peer_drain(s);
	pthread_join(s->thread, NULL);
	int result = s->result;
	http_server_free(s->server);
	ctx_release(s->ctx);
	free(s);
	return result;
}

/* ---- A client ---------------------------------------------------------------------------------------- */

/* From the address `source`, or with NULL any. */
static int connect_socket(int fd, const char *source, const char *address)
{
	struct timeval patience = {.tv_sec = PATIENCE * support_patience()};
	struct sockaddr_in in = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
	in.sin_port = htons((uint16_t)atoi(strrchr(address, ':') + 1));
	struct sockaddr_in from = {.sin_family = AF_INET};
	if (source && (inet_pton(AF_INET, source, &from.sin_addr) != 1 ||
	               bind(fd, (const struct sockaddr *)&from, sizeof(from)) != 0))
		die(source);
	if (fd < 0 || setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof(patience)) != 0 ||
	    setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof(patience)) != 0 ||
	    connect(fd, (const struct sockaddr *)&in, sizeof(in)) != 0)
		die("connect");
	return fd;
}

static int connect_from(const char *source, const char *address)
{
	return connect_socket(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), source, address);
}

int http_peer_connect_narrow(const http_peer_server *s)
{
	const int room = 2048, segment = 100;
	int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &room, sizeof(room));
	setsockopt(fd, IPPROTO_TCP, TCP_MAXSEG, &segment, sizeof(segment));
	return connect_socket(fd, NULL, s->address);
}

int http_peer_connect_to(const char *address)
{
	return connect_from(NULL, address);
}

int http_peer_connect_from(const http_peer_server *s, const char *source)
{
	return connect_from(source, s->address);
}

int http_peer_connect(const http_peer_server *s)
{
	return http_peer_connect_to(s->address);
}

bool http_peer_send_bytes(int fd, const void *data, size_t size)
{
	for (const char *from = data; size > 0;) {
		ssize_t sent = send(fd, from, size, MSG_NOSIGNAL);
		if (sent <= 0)
			return false;
		from += sent;
		size -= (size_t)sent;
	}
	return true;
}

bool http_peer_send(int fd, const char *text)
{
	return http_peer_send_bytes(fd, text, strlen(text));
}

void http_peer_reset(int fd)
{
	struct linger linger = {.l_onoff = 1};
	setsockopt(fd, SOL_SOCKET, SO_LINGER, &linger, sizeof(linger));
	close(fd);
}

int http_peer_leave(int fd, enum http_peer_way way)
{
	if (way == BY_RESET) {
		http_peer_reset(fd);
		return -1;
	}
	if (way == BY_HALF_CLOSE) {
		shutdown(fd, SHUT_WR);
		return fd;
	}
	close(fd);
	return -1;
}

/* Bytes read so far, NUL-terminated. */
struct bytes {
	char *data;
	size_t size, capacity;
};

static void add_byte(struct bytes *b, char c)
{
	if (b->size + 2 > b->capacity) {
		b->capacity = b->capacity ? b->capacity * 2 : 1024;
		b->data = realloc(b->data, b->capacity);
		if (!b->data)
			die("realloc");
	}
	b->data[b->size++] = c;
	b->data[b->size] = '\0';
}

/* What a response is read from. */
struct source {
	http_peer_receive *receive;
	void *arg;
};

/* Byte by byte, so that nothing behind what is wanted is taken. False: the end. */
static bool read_byte(const struct source *from, struct bytes *b)
{
	char c;
	if (from->receive(from->arg, &c, 1) != 1)
		return false;
	add_byte(b, c);
	return true;
}

static bool read_until(const struct source *from, struct bytes *b, const char *end)
{
	size_t size = strlen(end);
	while (read_byte(from, b))
		if (b->size >= size && memcmp(b->data + b->size - size, end, size) == 0)
			return true;
	return false;
}

static bool read_exactly(const struct source *from, struct bytes *b, size_t size)
{
	char piece[16 * 1024];
	while (size > 0) {
		ssize_t got = from->receive(from->arg, piece, size < sizeof(piece) ? size : sizeof(piece));
		if (got <= 0)
			return false;
		for (ssize_t i = 0; i < got; i++)
			add_byte(b, piece[i]);
		size -= (size_t)got;
	}
	return true;
}

static bool read_chunks(const struct source *from, struct bytes *body)
{
	for (;;) {
		struct bytes line = {0};
		bool whole = read_until(from, &line, "\r\n");
		size_t size = whole ? strtoul(line.data, NULL, 16) : 0;
		free(line.data);
		struct bytes end = {0};
		whole = whole && read_exactly(from, body, size) && read_until(from, &end, "\r\n");
		free(end.data);
		if (!whole || size == 0)
			return whole;
	}
}

const char *http_peer_field(const http_peer_response *response, const char *name)
{
	static _Thread_local char value[1024];
	size_t size = strlen(name);
	for (const char *line = strstr(response->head, "\r\n"); line; line = strstr(line, "\r\n")) {
		line += 2;
		if (strncasecmp(line, name, size) == 0 && line[size] == ':') {
			line += size + 1 + strspn(line + size + 1, " ");
			snprintf(value, sizeof(value), "%.*s", (int)strcspn(line, "\r"), line);
			return value;
		}
	}
	return NULL;
}

http_peer_response http_peer_read_from(http_peer_receive *receive, void *arg, bool to_head)
{
	const struct source source = {receive, arg}, *from = &source;
	http_peer_response response = {0};
	struct bytes head = {0}, body = {0};
	bool whole;
	add_byte(&head, '\0');
	add_byte(&body, '\0');
	body.size = 0;
	do {
		head.size = 0;
		whole = read_until(from, &head, "\r\n\r\n");
	} while (whole && strncmp(head.data, "HTTP/1.1 100", 12) == 0);
	response.head = head.data;
	if (whole && sscanf(head.data, "HTTP/1.%*d %d", &response.status) == 1) {
		response.chunked = http_peer_field(&response, "Transfer-Encoding");
		const char *length = http_peer_field(&response, "Content-Length");
		if (to_head || response.status == 204 || response.status == 304)
			whole = true;
		else if (response.chunked)
			whole = read_chunks(from, &body);
		else if (length)
			whole = read_exactly(from, &body, strtoul(length, NULL, 10));
		else
			while (read_byte(from, &body))
				;
	}
	if (!whole)
		response.status = head.size ? -1 : 0;
	response.body = body.data; /* NOLINT(clang-analyzer-unix.Malloc): the caller frees both */
	response.body_size = body.size;
	return response;
}

static ssize_t receive_plain(void *fd, char *data, size_t size)
{
	return recv(*(int *)fd, data, size, 0);
}

http_peer_response http_peer_read(int fd, bool to_head)
{
	return http_peer_read_from(receive_plain, &fd, to_head);
}

void http_peer_clear(http_peer_response *response)
{
	free(response->head);
	free(response->body);
	*response = (http_peer_response){0};
}

bool http_peer_closed(int fd)
{
	char piece[4096];
	ssize_t got;
	while ((got = recv(fd, piece, sizeof(piece), 0)) > 0)
		;
	return got == 0 || errno == ECONNRESET;
}

http_peer_response http_peer_ask(const http_peer_server *s, const char *method, const char *target,
                                 const char *body)
{
	int fd = http_peer_connect(s);
	char head[8192];
	if (body)
		snprintf(head, sizeof(head),
		         "%s %s HTTP/1.1\r\nHost: test\r\nConnection: close\r\nContent-Length: %zu\r\n\r\n",
		         method, target, strlen(body));
	else
		snprintf(head, sizeof(head), "%s %s HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n",
		         method, target);
	http_peer_send(fd, head);
	if (body)
		http_peer_send(fd, body);
	http_peer_response response = http_peer_read(fd, strcmp(method, "HEAD") == 0);
	close(fd);
	return response;
}

http_peer_response http_peer_tell(const http_peer_server *s, const char *request)
{
	int fd = http_peer_connect(s);
	http_peer_send(fd, request);
	http_peer_response response = http_peer_read(fd, strncmp(request, "HEAD", 4) == 0);
	close(fd);
	return response;
}
