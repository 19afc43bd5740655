/* The example lib/loop/examples/echo.c: many clients at once, idle ones let go, and an end by SIGINT. */
#include <arpa/inet.h>
#include <criterion/criterion.h>
#include <criterion/new/assert.h>
#include <netinet/in.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "process.h"
#include "support.h"

static process *server;
static int port;

static void start(const char *idle_seconds)
{
	server = process_start(
		(const char *const[]){support_built("examples/loop_echo"), "0", idle_seconds, NULL}, NULL);
	cr_assert_not_null(server);
	cr_assert(process_wait_for(server, "port ", 20000) && process_wait_for(server, "\n", 20000));
	char *said = process_output(server);
	port = (int)strtol(strstr(said, "port ") + strlen("port "), NULL, 10);
	free(said);
}

static int join(void)
{
	struct sockaddr_in address = {.sin_family = AF_INET,
	                              .sin_port = htons((in_port_t)port),
	                              .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
	int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	cr_assert(eq(int, connect(fd, (struct sockaddr *)&address, sizeof(address)), 0));
	return fd;
}

static bool becomes_readable(int fd)
{
	return poll(&(struct pollfd){.fd = fd, .events = POLLIN}, 1, 20000 * support_patience()) == 1;
}

static void says_back(int fd, const char *text)
{
	char back[64] = "";
	size_t size = strlen(text), got = 0;
	cr_assert(eq(long, send(fd, text, size, MSG_NOSIGNAL), (long)size));
	while (got < size) {
		cr_assert(becomes_readable(fd));
		ssize_t n = recv(fd, back + got, sizeof(back) - 1 - got, 0);
		cr_assert(ge(long, n, 1));
		got += (size_t)n;
	}
	cr_assert(eq(str, back, (char *)text));
}

static bool is_hung_up_on(int fd)
{
	char byte;
	return becomes_readable(fd) && recv(fd, &byte, 1, 0) <= 0;
}

enum { CLIENTS = 100 };

Test(loop_echo, many_clients_and_an_end_by_sigint, .timeout = 120)
{
	int clients[CLIENTS];
	start("60");
	for (int i = 0; i < CLIENTS; i++)
		clients[i] = join();
	for (int round = 0; round < 3; round++)
		for (int i = 0; i < CLIENTS; i++) {
			char text[64];
			snprintf(text, sizeof(text), "client %d, round %d\n", i, round);
			says_back(clients[i], text);
		}
	for (int i = 0; i < CLIENTS / 2; i++)
		close(clients[i]);
	says_back(clients[CLIENTS - 1], "still here\n");

	cr_assert(process_signal(server, SIGINT));
	for (int i = CLIENTS / 2; i < CLIENTS; i++) {
		cr_assert(is_hung_up_on(clients[i]));
		close(clients[i]);
	}
	cr_assert(eq(int, process_wait(server, 20000 * support_patience()), 0));
	char *said = process_output(server);
	cr_expect_not_null(strstr(said, "interrupt signal received"), "%s", said);
	free(said);
	process_stop(server);
}

Test(loop_echo, an_idle_client_is_let_go, .timeout = 120)
{
	start("1");
	int64_t begin = now_ms();
	int quiet = join();
	cr_assert(is_hung_up_on(quiet));
	cr_expect(ge(i64, now_ms() - begin, 1000));
	int other = join();
	says_back(other, "hello\n");
	close(quiet);
	close(other);
	cr_assert(eq(int, process_stop(server), 0));
}
