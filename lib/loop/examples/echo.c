/*
 * An echo server: every line a client sends comes back to it. A client that says nothing for IDLE_SECONDS is
 * let go; Ctrl-C stops accepting, and with that context all clients are told at once, wherever they wait.
 *
 *	echo [PORT [IDLE_SECONDS]]        127.0.0.1 only; port 0 (the default) is any free one
 *
 * One thread, one fiber for each client, and no state machine: the code says what happens in the order in which
 * it happens.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include <tether/loop.h>

struct server {
	loop *loop;
	ctx *ctx; /* done when Ctrl-C is pressed */
	int listener;
	int64_t idle;
};

struct client {
	struct server *server;
	int fd;
};

/* Reads what is there, at most size bytes: their number; 0 when the client has left, is idle for too long, or must go. */
static size_t read_some(const struct server *server, int fd, char *bytes, size_t size)
{
	ctx_auto *idle = ctx_with_timeout(server->ctx, server->idle);
	while (idle && wait_fd(idle, fd, WAIT_READ) > 0) {
		ssize_t n = recv(fd, bytes, size, 0);
		if (n >= 0)
			return (size_t)n;
		if (errno != EAGAIN && errno != EINTR)
			return 0;
	}
	return 0;
}

/* Writes it all; false if the client does not take it in time. */
static bool write_all(const struct server *server, int fd, const char *bytes, size_t size)
{
	ctx_auto *idle = ctx_with_timeout(server->ctx, server->idle);
	while (idle && size > 0) {
		ssize_t n = send(fd, bytes, size, MSG_NOSIGNAL);
		if (n >= 0) {
			bytes += n;
			size -= (size_t)n;
		} else if (errno == EAGAIN) {
			if (wait_fd(idle, fd, WAIT_WRITE) < 0)
				return false;
		} else if (errno != EINTR) {
			return false;
		}
	}
	return size == 0;
}

static void serve_client(void *arg)
{
	struct client *client = arg;
	char bytes[4096];
	size_t n;
	wait_fd_keep(client->fd);
	while ((n = read_some(client->server, client->fd, bytes, sizeof(bytes))) > 0)
		if (!write_all(client->server, client->fd, bytes, n))
			break;
	wait_fd_drop(client->fd);
	close(client->fd);
	free(client);
}

/* Out of memory a client is refused, and the server goes on. */
static void welcome(struct server *server, int fd)
{
	struct client *client = malloc(sizeof(*client));
	if (client)
		*client = (struct client){server, fd};
	if (!client || loop_spawn(server->loop, serve_client, client) != 0) {
		free(client);
		close(fd);
	}
}

static void accept_clients(void *arg)
{
	struct server *server = arg;
	while (wait_fd(server->ctx, server->listener, WAIT_READ) > 0) {
		int fd = accept4(server->listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
		if (fd >= 0)
			welcome(server, fd);
		else if (errno == EMFILE || errno == ENFILE || errno == ENOMEM || errno == ENOBUFS)
			wait_sleep(server->ctx, 100 * CTX_MILLISECOND); /* until somebody leaves */
	}
	printf("%s, %zu clients to see off\n", ctx_cause(server->ctx)->message,
	       loop_fibers(server->loop) - 1);
	loop_stop(server->loop); /* loop_run returns when the last of them has gone */
}

static int listen_on(in_port_t port)
{
	struct sockaddr_in address = {
		.sin_family = AF_INET, .sin_port = htons(port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
	socklen_t size = sizeof(address);
	int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
	if (fd < 0)
		return -1;
	setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &(int){1}, sizeof(int));
	if (bind(fd, (struct sockaddr *)&address, sizeof(address)) != 0 || listen(fd, SOMAXCONN) != 0 ||
	    getsockname(fd, (struct sockaddr *)&address, &size) != 0) {
		close(fd);
		return -1;
	}
	printf("echo: listening on 127.0.0.1 port %d\n", ntohs(address.sin_port));
	fflush(stdout);
	return fd;
}

int main(int argc, char **argv)
{
	long port = argc > 1 ? strtol(argv[1], NULL, 10) : 0;
	long idle = argc > 2 ? strtol(argv[2], NULL, 10) : 30;
	if (port < 0 || port > 65535 || idle < 1 || idle > 86400) {
		fprintf(stderr, "usage: %s [PORT [IDLE_SECONDS]]\n", argv[0]);
		return 2;
	}
	int signals[] = {SIGINT, SIGTERM};
	struct server server = {
		.loop = loop_new(NULL),
		.ctx = ctx_with_signals(ctx_background(), signals, 2),
		.listener = listen_on((in_port_t)port),
		.idle = idle * CTX_SECOND,
	};
	int status = 1;
	if (server.loop && server.ctx && server.listener >= 0 &&
	    loop_spawn(server.loop, accept_clients, &server) == 0) {
		loop_run(server.loop);
		status = 0;
	} else {
		perror(argv[0]);
	}
	if (server.listener >= 0)
		close(server.listener);
	ctx_end(server.ctx);
	loop_free(server.loop);
	return status;
}
