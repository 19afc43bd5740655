#include "exchange.h"

#include <errno.h>
#include <linux/sockios.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "fuzz.h"

enum { PATIENCE_MS = 30000, PAUSE_MS = 20, ANSWER_MAX = 1 << 20 };

/* ---- The server -------------------------------------------------------------------------------------- */

static struct sockaddr_un address = {.sun_family = AF_UNIX};
static pthread_t thread;
static ctx *serving;

static void *serve(void *arg)
{
	HOLDS(http_serve(arg, serving) == 0);
	return arg;
}

static void stop(void)
{
	void *server = NULL;
	ctx_cancel(serving);
	pthread_join(thread, &server);
	http_server_free(server);
	ctx_release(serving);
}

http_server *exchange_server(const http_server_options *options, http_tls *tls)
{
	char listen[sizeof(address.sun_path) + 8];
	http_server_options chosen = *options;
	chosen.workers = 1;
	if (!tls) {
		chosen.header_timeout = chosen.body_timeout = chosen.write_timeout = CTX_SECOND / 10;
		chosen.idle_timeout = CTX_SECOND / 5;
	}
	chosen.half_close_is_waiting = true;
	http_server *server = http_server_new(&chosen);
	snprintf(address.sun_path, sizeof(address.sun_path), "/tmp/tether-fuzz-%ld", (long)getpid());
	snprintf(listen, sizeof(listen), "unix:%s", address.sun_path);
	HOLDS(server && http_listen_tls(server, listen, tls, NULL, 0) == 0);
	return server;
}

void exchange_serve(http_server *server)
{
	serving = ctx_with_cancel(ctx_background());
	HOLDS(serving && pthread_create(&thread, NULL, serve, server) == 0);
	atexit(stop);
}

/* ---- The client -------------------------------------------------------------------------------------- */

static int64_t now_ms(void)
{
	return ctx_now() / CTX_MILLISECOND;
}

/* The answers so far. One that nobody reads would have the server wait. */
static char answer[ANSWER_MAX + 1];
static size_t answered;

/* False: the end. */
static bool read_some(int fd, int flags)
{
	static char scrap[4096];
	size_t room = ANSWER_MAX - answered;
	ssize_t got = room ? recv(fd, answer + answered, room, flags) : recv(fd, scrap, sizeof(scrap), flags);
	if (got > 0 && room)
		answered += (size_t)got;
	return got > 0 || (got < 0 && (errno == EAGAIN || errno == EINTR));
}

void exchange_wait_until_taken(int fd)
{
	int64_t end = now_ms() + PAUSE_MS;
	int left = 1;
	while (ioctl(fd, SIOCOUTQ, &left) == 0 && left > 0 && now_ms() < end)
		sched_yield();
}

static void send_all(int fd, const uint8_t *data, size_t size)
{
	int64_t end = now_ms() + PATIENCE_MS;
	while (size > 0) {
		ssize_t sent = send(fd, data, size, MSG_DONTWAIT | MSG_NOSIGNAL);
		if (sent < 0 && errno != EAGAIN)
			return;
		data += sent > 0 ? sent : 0;
		size -= sent > 0 ? (size_t)sent : 0;
		read_some(fd, MSG_DONTWAIT);
		HOLDS(now_ms() < end);
	}
}

void exchange_wait_until_over(http_server *server)
{
	int64_t end = now_ms() + PATIENCE_MS;
	http_server_stats stats;
	do {
		http_server_stats_get(server, &stats);
		HOLDS(now_ms() < end);
	} while ((stats.requests > 0 || stats.connections > 0 || stats.fibers > 0) && sched_yield() == 0);
}

int exchange_connect(void)
{
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	struct timeval patience = {.tv_sec = PATIENCE_MS / 1000};
	HOLDS(fd >= 0 && setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof(patience)) == 0);
	HOLDS(connect(fd, (const struct sockaddr *)&address, sizeof(address)) == 0);
	return fd;
}

const char *exchange(http_server *server, const uint8_t *data, size_t size, const size_t *pauses,
                     size_t pause_count, size_t *answer_size)
{
	int fd = exchange_connect();
	size_t sent = 0;
	answered = 0;
	for (size_t i = 0; i < pause_count; i++) {
		send_all(fd, data + sent, pauses[i] - sent);
		exchange_wait_until_taken(fd);
		sent = pauses[i];
	}
	send_all(fd, data + sent, size - sent);
	shutdown(fd, SHUT_WR);
	int64_t end = now_ms() + PATIENCE_MS;
	while (read_some(fd, 0))
		HOLDS(now_ms() < end);
	close(fd);
	exchange_wait_until_over(server);
	answer[answered] = '\0';
	*answer_size = answered;
	return answer;
}
