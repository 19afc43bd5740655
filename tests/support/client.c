#include "client.h"
#include "support.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/socket.h>
#include <unistd.h>

enum { SEND_TIMEOUT_MS = 10000, ROOM = 65536 };

struct client {
	int fd;
	char *data; /* received and not yet given out, NUL-terminated */
	size_t size, capacity;
	bool ended; /* the peer will send no more */
	bool head;  /* the answer will be to a HEAD */
};

client *client_connect(int port)
{
	struct sockaddr_in address = {.sin_family = AF_INET,
	                              .sin_port = htons((uint16_t)port),
	                              .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
	client *c = calloc(1, sizeof *c);

	if (!c)
		return NULL;
	c->fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (c->fd < 0 || connect(c->fd, (struct sockaddr *)&address, sizeof address) < 0) {
		fprintf(stderr, "client: cannot connect to port %d: %s\n", port, strerror(errno));
		client_close(c);
		return NULL;
	}
	setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &(int){1}, sizeof(int));
	return c;
}

static bool send_all(client *c, const char *data, size_t size)
{
	while (size) {
		ssize_t sent = send(c->fd, data, size, MSG_NOSIGNAL | MSG_DONTWAIT);

		if (sent < 0 && errno == EAGAIN) {
			struct pollfd writable = {.fd = c->fd, .events = POLLOUT};

			if (poll(&writable, 1, SEND_TIMEOUT_MS) == 1)
				continue;
		}
		if (sent < 0)
			return false;
		data += sent;
		size -= (size_t)sent;
	}
	return true;
}

bool client_send(client *c, const char *format, ...)
{
	char *text = NULL;
	va_list arguments;
	int size;
	bool sent;

	va_start(arguments, format);
	size = vasprintf(&text, format, arguments);
	va_end(arguments);
	sent = size >= 0 && send_all(c, text, (size_t)size);
	if (size >= 0)
		free(text);
	return sent;
}

bool client_send_get(client *c, const char *target)
{
	return client_send(c, "GET %s HTTP/1.1\r\nHost: localhost\r\n\r\n", target);
}

int client_fd(const client *c)
{
	return c->fd;
}

void client_close(client *c)
{
	if (!c)
		return;
	if (c->fd >= 0)
		close(c->fd);
	free(c->data);
	free(c);
}

void client_reset(client *c)
{
	if (c)
		setsockopt(c->fd, SOL_SOCKET, SO_LINGER, &(struct linger){.l_onoff = 1},
		           sizeof(struct linger));
	client_close(c);
}

void client_half_close(client *c)
{
	shutdown(c->fd, SHUT_WR);
}

/* ---- Receiving -------------------------------------------------------------------------------------- */

/* Takes what the kernel has for us. false: out of memory. */
static bool take(client *c)
{
	while (!c->ended) {
		ssize_t got;

		if (c->capacity - c->size < ROOM / 2) {
			char *data = realloc(c->data, c->size + ROOM);

			if (!data)
				return false;
			c->data = data;
			c->capacity = c->size + ROOM;
		}
		got = recv(c->fd, c->data + c->size, c->capacity - c->size - 1, MSG_DONTWAIT);
		if (got < 0 && errno == EAGAIN)
			break;
		if (got <= 0)
			c->ended = true;
		else
			c->size += (size_t)got;
	}
	if (c->data)
		c->data[c->size] = '\0';
	return true;
}

static char *header_of(const char *head, const char *name)
{
	size_t length = strlen(name);

	for (const char *line = strstr(head, "\r\n"); line && line[2]; line = strstr(line, "\r\n")) {
		line += 2;
		if (strncasecmp(line, name, length) == 0 && line[length] == ':') {
			const char *value = line + length + 1 + strspn(line + length + 1, " \t");

			return strndup(value, strcspn(value, "\r\n"));
		}
	}
	return NULL;
}

/* The end of a chunked body at `at`, its chunks moved together to `at`; NULL: not all of it is here, or it is broken. */
static const char *join_chunks(char *at, const char *end, size_t *size)
{
	char *joined = malloc((size_t)(end - at) + 1);
	const char *from = at;

	*size = 0;
	while (joined) {
		char *data;
		unsigned long chunk = strtoul(from, &data, 16);

		if (data == from || end - data < 4 || (size_t)(end - data) - 4 < chunk)
			break;
		data += 2;
		memcpy(joined + *size, data, chunk);
		*size += chunk;
		from = data + chunk + 2;
		if (chunk == 0) {
			memcpy(at, joined, *size);
			free(joined);
			return from;
		}
	}
	free(joined);
	return NULL;
}

/* Where the body of the response at c->data ends, or NULL: it is not all here. */
static const char *body_end(client *c, const reply *r, char *body, size_t *size)
{
	const char *end = c->data + c->size;
	char *length = header_of(r->head, "Content-Length");
	char *coding = header_of(r->head, "Transfer-Encoding");
	const char *result = NULL;

	if (c->head || r->status == 304 || r->status == 204 || r->status / 100 == 1) {
		*size = 0;
		result = body;
	} else if (coding) {
		result = join_chunks(body, end, size);
	} else if (length) {
		*size = strtoul(length, NULL, 10);
		result = *size <= (size_t)(end - body) ? body + *size : NULL;
	} else if (c->ended) {
		*size = (size_t)(end - body);
		result = end;
	}
	free(length);
	free(coding);
	return result;
}

int client_poll(client *c, reply *r)
{
	reply found = {0};
	const char *end;
	char *head_end;

	if (!take(c))
		return -1;
	head_end = c->data ? strstr(c->data, "\r\n\r\n") : NULL;
	if (!head_end)
		return c->ended ? -1 : 0;
	found.head = strndup(c->data, (size_t)(head_end - c->data) + 2);
	if (!found.head || strncmp(found.head, "HTTP/1.", 7) != 0) {
		free(found.head);
		return -1;
	}
	found.status = (int)strtol(found.head + 9, NULL, 10);
	end = body_end(c, &found, head_end + 4, &found.size);
	found.body = end ? strndup(head_end + 4, found.size) : NULL;
	if (!found.body) {
		free(found.head);
		return c->ended ? -1 : 0;
	}
	c->size = (size_t)(c->data + c->size - end);
	memmove(c->data, end, c->size + 1);
	*r = found;
	return 1;
}

bool client_receive(client *c, reply *r, int timeout_ms)
{
	int64_t deadline = now_ms() + (int64_t)timeout_ms * support_patience();

	for (;;) {
		struct pollfd readable = {.fd = c->fd, .events = POLLIN};
		int64_t left = deadline - now_ms();
		int result = client_poll(c, r);

		if (result)
			return result > 0;
		if (left <= 0)
			return false;
		poll(&readable, 1, (int)left);
	}
}

char *reply_header(const reply *r, const char *name)
{
	return header_of(r->head, name);
}

void reply_free(reply *r)
{
	free(r->head);
	free(r->body);
	*r = (reply){0};
}

/* ---- Whole requests --------------------------------------------------------------------------------- */

int client_request(int port, const char *method, const char *target, const char *headers, const char *body,
                   reply *r, int timeout_ms)
{
	client *c = client_connect(port);
	reply received = {.status = -1};
	char framing[48] = "";
	int status;

	if (c)
		c->head = strcmp(method, "HEAD") == 0;
	if (body)
		snprintf(framing, sizeof framing, "Content-Length: %zu\r\n", strlen(body));
	if (c && client_send(c, "%s %s HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n%s%s\r\n%s",
	                     method, target, framing, headers, body ? body : ""))
		client_receive(c, &received, timeout_ms);
	client_close(c);
	status = received.status;
	if (r)
		*r = received;
	else
		reply_free(&received);
	return status;
}

int client_get(int port, const char *target, reply *r, int timeout_ms)
{
	return client_request(port, "GET", target, "", NULL, r, timeout_ms);
}
