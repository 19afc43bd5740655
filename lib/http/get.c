/*
 * http_get: one question to another server, for health checks.
 */
#include <errno.h>
#include <string.h>
#include <unistd.h>

#include "http_priv.h"

enum { ANSWER_MAX = 16 * 1024 };

/* Waits for the connection, which may fail only now. */
static bool await_connection(ctx *c, int fd)
{
	int error = 0;
	socklen_t size = sizeof(error);
	if (wait_fd(c, fd, WAIT_WRITE) < 0)
		return false;
	if (getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &size) == 0 && error)
		errno = error;
	return !error;
}

static bool write_all(ctx *c, int fd, const char *data, size_t size)
{
	while (size) {
		ssize_t sent = send(fd, data, size, MSG_NOSIGNAL);
		if (sent < 0 && errno != EAGAIN && errno != EINTR)
			return false;
		if (sent > 0) {
			data += sent;
			size -= (size_t)sent;
		} else if (wait_fd(c, fd, WAIT_WRITE) < 0) {
			return false;
		}
	}
	return true;
}

/* Until the end of what the server sends, or of the room for it. The size; -1 with errno. */
static ssize_t read_all(ctx *c, int fd, char *answer, size_t room)
{
	size_t size = 0;
	while (size < room) {
		ssize_t received = recv(fd, answer + size, room - size, 0);
		if (received == 0)
			break;
		if (received > 0)
			size += (size_t)received;
		else if ((errno != EAGAIN && errno != EINTR) || wait_fd(c, fd, WAIT_READ) < 0)
			return -1;
	}
	return (ssize_t)size;
}

/* The status of an answer, and its body. -1 with errno EPROTO: it is none. */
static int parse_answer(const char *answer, char *body, size_t body_size)
{
	const char *end = strstr(answer, "\r\n\r\n");
	const char *digits = answer + strlen("HTTP/1.1 ");
	bool is_http = end && strncmp(answer, "HTTP/1.", 7) == 0 && strspn(digits, "0123456789") == 3;
	long status = is_http ? strtol(digits, NULL, 10) : 0;
	if (status < 100) {
		errno = EPROTO;
		return -1;
	}
	if (body && body_size)
		snprintf(body, body_size, "%s", end + 4);
	return (int)status;
}

static int ask(ctx *c, int fd, const char *question, char *answer, char *body, size_t body_size)
{
	if (!await_connection(c, fd) || !write_all(c, fd, question, strlen(question)))
		return -1;
	ssize_t size = read_all(c, fd, answer, ANSWER_MAX);
	if (size < 0)
		return -1;
	answer[size] = '\0';
	return parse_answer(answer, body, body_size);
}

int http_get(ctx *c, const char *address, const char *target, char *body, size_t body_size)
{
	char question[512];
	int length = snprintf(question, sizeof(question),
	                      "GET %s HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n", target);
	if (length >= (int)sizeof(question) || target[0] != '/' || target[strcspn(target, " \r\n")]) {
		errno = EINVAL;
		return -1;
	}
	char *answer = malloc(ANSWER_MAX + 1);
	int fd = answer ? address_connect(address) : -1;
	int status = fd < 0 ? -1 : ask(c, fd, question, answer, body, body_size);
	int error = errno;
	if (fd >= 0)
		close(fd);
	free(answer);
	errno = error;
	return status;
}
