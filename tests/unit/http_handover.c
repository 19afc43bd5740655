/*
 * The example lib/http/examples/server.c, and with it the hand-over: one server takes another's place under load, on a
 * shared port or with a socket that a service manager holds, and no request is lost.
 */
#include <criterion/criterion.h>
#include <criterion/new/assert.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <tether/http.h>

#include "http_peer.h"
#include "process.h"
#include "support.h"
#include "watched.h"

static process *start(const char *address, const char *const env[])
{
	process *p = process_start(
		(const char *const[]){support_built("examples/http_server"), address, NULL}, env);
	cr_assert(process_wait_for(p, "listening on ", 20000 * support_patience()));
	return p;
}

/* Where it says it listens. */
static void address_of(const process *p, char address[64])
{
	char *output = process_output(p);
	cr_assert(eq(int, sscanf(strstr(output, "listening on "), "listening on %63s", address), 1));
	free(output);
}

static bool stop(process *p)
{
	process_signal(p, SIGTERM);
	int status = process_wait(p, 20000 * support_patience());
	process_stop(p);
	return status == 0;
}

/* One request on a connection of its own. */
static int ask(const char *address, const char *request, char body[64])
{
	int fd = http_peer_connect_to(address);
	http_peer_send(fd, request);
	http_peer_response response = http_peer_read(fd, false);
	if (body)
		snprintf(body, 64, "%s", response.body ? response.body : "");
	int status = response.status;
	http_peer_clear(&response);
	close(fd);
	return status;
}

static const char hello[] = "GET /hello/you HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n";

/* ---- The example ------------------------------------------------------------------------------------- */

Test(http_handover, the_example_does_what_it_says, .timeout = 120)
{
	char address[64], body[64];
	process *p = start(NULL, NULL);
	address_of(p, address);
	cr_expect(eq(int, ask(address, hello, body), 200));
	cr_expect(eq(str, body, "hello, you\n"));

	int fd = http_peer_connect_to(address);
	http_peer_send(fd, "GET /ticks HTTP/1.1\r\nHost: h\r\n\r\n");
	char some[64];
	cr_assert(ge(int, (int)recv(fd, some, sizeof(some), 0), 1));
	close(fd);
	cr_expect(process_wait_for(p, " ticks: client disconnected", 20000));

	fd = http_peer_connect_to(address);
	http_peer_send(fd, "PUT /weigh HTTP/1.1\r\nHost: h\r\nContent-Length: 3000000\r\n\r\n");
	char *megabyte = calloc(1, 1000000);
	for (int i = 0; i < 3; i++)
		cr_assert(http_peer_send_bytes(fd, megabyte, 1000000));
	free(megabyte);
	http_peer_response response = http_peer_read(fd, false);
	cr_expect(eq(int, response.status, 201));
	cr_expect(eq(str, response.body, "3000000 bytes\n"));
	http_peer_clear(&response);
	close(fd);
	cr_expect(process_wait_for(p, "noted: 3000000 bytes", 20000));

	process_signal(p, SIGINT);
	cr_expect(process_wait_for(p, "stopped: interrupt", 20000));
	cr_expect(eq(int, process_wait(p, 20000), 0));
	process_stop(p);
}

/* ---- Load -------------------------------------------------------------------------------------------- */

static struct {
	char address[64];
	atomic_bool over;
	atomic_int answered, lost;
} load;

static void *ask_on(void *unused)
{
	(void)unused;
	while (!load.over)
		atomic_fetch_add(ask(load.address, hello, NULL) == 200 ? &load.answered : &load.lost, 1);
	return NULL;
}

/* The same over a connection that is kept until the server says otherwise. */
static void *ask_on_one(void *unused)
{
	(void)unused;
	while (!load.over) {
		int fd = http_peer_connect_to(load.address);
		bool kept = true;
		while (kept && !load.over) {
			http_peer_send(fd, "GET /hello/you HTTP/1.1\r\nHost: h\r\n\r\n");
			http_peer_response response = http_peer_read(fd, false);
			atomic_fetch_add(response.status == 200 ? &load.answered : &load.lost, 1);
			kept = response.status == 200 && !http_peer_field(&response, "Connection");
			http_peer_clear(&response);
		}
		close(fd);
	}
	return NULL;
}

/* What is asked between two restarts keeps every moment of them busy. */
static bool so_many_more(void *from)
{
	return load.answered >= *(int *)from + 200;
}

static void expect_nothing_lost(void (*restart)(void *arg), void *arg)
{
	enum { CLIENTS = 4, RESTARTS = 6 };
	pthread_t clients[CLIENTS];
	for (int i = 0; i < CLIENTS; i++)
		pthread_create(&clients[i], NULL, i % 2 ? ask_on : ask_on_one, NULL);
	for (int i = 0; i < RESTARTS; i++) {
		int answered = load.answered;
		cr_expect(eventually(so_many_more, &answered, 20000));
		restart(arg);
	}
	load.over = true;
	for (int i = 0; i < CLIENTS; i++)
		pthread_join(clients[i], NULL);
	cr_expect(eq(int, load.lost, 0), "of %d requests", load.answered + load.lost);
	cr_expect(ge(int, load.answered, 1001));
}

/* ---- A shared port ----------------------------------------------------------------------------------- */

static void replace(void *arg)
{
	process **now = arg;
	process *next = start(load.address, NULL);
	cr_expect(stop(*now));
	*now = next;
}

/*
 * The next server listens on the same port before the last one stops. What was lost here before was a request on a
 * connection that the last one had just accepted, and closed for idleness as its drain began.
 */
Test(http_handover, on_a_shared_port_nothing_is_lost, .timeout = 240)
{
	snprintf(load.address, sizeof(load.address), "127.0.0.1:%d", support_free_port());
	process *p = start(load.address, NULL);
	expect_nothing_lost(replace, &p);
	cr_expect(stop(p));
}

static void says_name(http_request *request, http_response *response)
{
	http_response_text(response, 200, http_request_data(request));
}

static bool is_draining(void *server)
{
	http_server_stats stats;
	http_server_stats_get(http_peer_server_of(server), &stats);
	return stats.draining;
}

static atomic_int serving;

static void counts(void *counter)
{
	atomic_fetch_add((atomic_int *)counter, 1);
}

/* Who shares a port listens only when it serves. */
static http_peer_server *serve_the_last(const http_server_options *options)
{
	http_server_options told = *options;
	told.on_serve = counts;
	told.data = &serving;
	http_peer_server *server =
		http_peer_serve(&told, (http_peer_route[]){{"GET /", says_name, "last"}, {0}});
	cr_assert(eventually_counts(&serving, 1, 10000));
	return server;
}

static bool twenty_by(http_peer_server *server, const char *name)
{
	for (int i = 0; i < 20; i++) {
		http_peer_response response = http_peer_ask(server, "GET", "/", NULL);
		bool so = response.status == 200 && strcmp(response.body, name) == 0;
		http_peer_clear(&response);
		if (!so)
			return false;
	}
	return true;
}

static bool twenty_by_the_next(void *server)
{
	return twenty_by(server, "next");
}

/*
 * Of two sockets on one port the kernel gives each about every second new connection: the one that is about to be
 * closed as well, and what comes to it in that moment is lost; and the one whose process does not serve yet, and
 * never will if something is wrong with its database, and what came to it is lost, too.
 */
Test(http_handover, new_connections_are_for_the_next_from_when_it_serves, .timeout = 60)
{
	http_server_options options = {.share_port = true, .drain_delay = 1000 * CTX_SECOND, .workers = 1};
	http_peer_server *last = serve_the_last(&options);
	http_server *next = http_server_new(&options);
	cr_assert(eq(int, http_handle(next, "GET /", says_name, "next"), 0));
	cr_assert(eq(int, http_listen(next, http_peer_address(last), NULL, 0), 0));
	for (int i = 0; i < 10; i++)
		cr_expect(twenty_by(last, "last"));
	http_peer_server *the_next = http_peer_start(next, NULL);
	cr_expect(eventually(twenty_by_the_next, last, 10000));
	for (int i = 0; i < 10; i++)
		cr_expect(twenty_by_the_next(last));
	http_peer_drain(last);
	cr_assert(eventually(is_draining, last, 10000));
	for (int i = 0; i < 10; i++)
		cr_expect(twenty_by_the_next(last));
	http_server_abort(http_peer_server_of(last));
	http_peer_stop(last);
	http_server_abort(next);
	http_peer_stop(the_next);
}

/* A handshake that began with it would be lost if it went at once. What has come to it meanwhile it serves. */
Test(http_handover, who_shares_a_port_accepts_for_a_moment_longer, .timeout = 60)
{
	http_peer_server *server = serve_the_last(&(http_server_options){.share_port = true});
	http_peer_drain(server);
	cr_assert(eventually(is_draining, server, 10000));
	cr_expect(twenty_by(server, "last"));
	cr_expect(eq(int, http_peer_stop(server), 0));
}

/* ---- A socket handed over ---------------------------------------------------------------------------- */

/* As a service manager does: the socket is descriptor 3, and the process is told that this is for it. */
static process *activate(int fd, const char *address, const char *names)
{
	static const char exec[] = "LISTEN_PID=$$ exec \"$0\" \"$1\"";
	char variable[64];
	snprintf(variable, sizeof(variable), "LISTEN_FDNAMES=%s", names);
	const char *const argv[] = {"/bin/sh", "-c", exec, support_built("examples/http_server"),
	                            address,   NULL};
	return process_start_handed(argv, (const char *const[]){"LISTEN_FDS=1", variable, NULL}, fd);
}

static int listening_socket(char address[64])
{
	int port, fd = support_listen(&port);
	cr_assert(ge(int, fd, 0));
	snprintf(address, 64, "127.0.0.1:%d", port);
	return fd;
}

struct activated {
	process *now;
	int fd;
};

/* With the socket held by another there need not even be a server all the time. */
static void reactivate(void *arg)
{
	struct activated *a = arg;
	cr_expect(stop(a->now));
	a->now = activate(a->fd, "systemd:", "web");
	cr_assert(process_wait_for(a->now, "listening on ", 20000 * support_patience()));
}

Test(http_handover, with_a_socket_handed_over_nothing_is_lost, .timeout = 240)
{
	struct activated a = {.fd = listening_socket(load.address)};
	a.now = activate(a.fd, "systemd:web", "web");
	cr_assert(process_wait_for(a.now, "listening on ", 20000 * support_patience()));
	char said[64];
	address_of(a.now, said);
	cr_expect(eq(str, said, load.address));
	expect_nothing_lost(reactivate, &a);
	cr_expect(stop(a.now));
	close(a.fd);
}

Test(http_handover, only_what_was_handed_over_is_taken, .timeout = 60)
{
	char address[64], body[64];
	int fd = listening_socket(address), plain = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	const struct {
		int fd;
		const char *address, *names, *error;
	} bad[] = {{fd, "systemd:other", "web", "Cannot assign requested address"},
	           {fd, "systemd:web", "", "Cannot assign requested address"},
	           {plain, "systemd:", "web", "Socket operation on non-socket"}};
	for (size_t i = 0; i < sizeof(bad) / sizeof(*bad); i++) {
		process *p = activate(bad[i].fd, bad[i].address, bad[i].names);
		cr_expect(eq(int, process_wait(p, 20000), 1));
		char *output = process_output(p);
		cr_expect(ne(ptr, strstr(output, bad[i].error), NULL), "%s", output);
		free(output);
		process_stop(p);
	}
	/* Nor what was for another process. */
	http_server *server = http_server_new(NULL);
	setenv("LISTEN_FDS", "1", 1);
	setenv("LISTEN_PID", "1", 1);
	cr_expect(eq(int, http_listen(server, "systemd:", body, sizeof(body)), -1));
	http_server_free(server);
	close(fd);
	close(plain);
}

/* ---- What the service manager is told ---------------------------------------------------------------- */

static void expect_notice(int fd, const char *expected)
{
	char said[64] = "";
	cr_expect(ge(int, (int)recv(fd, said, sizeof(said) - 1, 0), 1));
	cr_expect(eq(str, said, (char *)expected));
}

Test(http_handover, the_service_manager_is_told, .timeout = 60)
{
	for (int abstract = 0; abstract < 2; abstract++) {
		struct sockaddr_un un = {.sun_family = AF_UNIX};
		char variable[128];
		snprintf(un.sun_path, sizeof(un.sun_path), "%s/tether-notify-%d", abstract ? "@" : "/tmp",
		         getpid());
		snprintf(variable, sizeof(variable), "NOTIFY_SOCKET=%s", un.sun_path);
		socklen_t size = (socklen_t)(offsetof(struct sockaddr_un, sun_path) + strlen(un.sun_path));
		if (abstract)
			un.sun_path[0] = '\0';
		int fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
		struct timeval patience = {.tv_sec = 20};
		setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof(patience));
		cr_assert(eq(int, bind(fd, (struct sockaddr *)&un, size), 0));
		process *p = start(NULL, (const char *const[]){variable, NULL});
		expect_notice(fd, "READY=1");
		process_signal(p, SIGTERM);
		expect_notice(fd, "STOPPING=1");
		cr_expect(stop(p));
		close(fd);
		if (!abstract)
			unlink(un.sun_path);
	}
}

/* As many as it takes from one sender: that has a limit of its own. */
static int fill_from(int sender, const struct sockaddr_un *un, socklen_t size)
{
	int queued = 0;
	while (sendto(sender, "other", 5, MSG_DONTWAIT, (const struct sockaddr *)un, size) == 5)
		queued++;
	return queued;
}

/* Its queue may be full at that moment, with others that start as well. */
Test(http_handover, a_busy_service_manager_is_told_too, .timeout = 60)
{
	struct sockaddr_un un = {.sun_family = AF_UNIX};
	socklen_t size = (socklen_t)(offsetof(struct sockaddr_un, sun_path) + 1 +
	                             (size_t)sprintf(un.sun_path + 1, "tether-busy-%d", getpid()));
	char variable[128], said[64] = "";
	snprintf(variable, sizeof(variable), "NOTIFY_SOCKET=@%s", un.sun_path + 1);
	int fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0), others[8], queued = 0;
	struct timeval patience = {.tv_sec = 20};
	setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof(patience));
	cr_assert(eq(int, bind(fd, (struct sockaddr *)&un, size), 0));
	for (int i = 0; i < 8; i++) {
		others[i] = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
		queued += fill_from(others[i], &un, size);
	}
	process *p = process_start((const char *const[]){support_built("examples/http_server"), NULL},
	                           (const char *const[]){variable, NULL});
	cr_expect(not(process_wait_for(p, "listening on", 300)), "it went on, with nothing said");
	while (queued-- > 0)
		cr_assert(eq(int, (int)recv(fd, said, sizeof(said), 0), 5));
	expect_notice(fd, "READY=1");
	cr_assert(process_wait_for(p, "listening on", 20000));
	cr_expect(stop(p));
	for (int i = 0; i < 8; i++)
		close(others[i]);
	close(fd);
}

/* ---- Going on for a while ---------------------------------------------------------------------------- */

/* With a delay it accepts on, but no connection outlives its answer: by the time it stops there are none left. */
Test(http_handover, a_drain_may_wait_for_others_to_notice, .timeout = 60)
{
	http_server_options options = {.drain_delay = 1000 * CTX_SECOND};
	http_peer_server *server =
		http_peer_serve(&options, (http_peer_route[]){{"GET /", answers_hello, NULL}, {0}});
	int fd = http_peer_connect(server);
	for (int draining = 0; draining < 2; draining++) {
		http_peer_send(fd, "GET / HTTP/1.1\r\nHost: h\r\n\r\n");
		http_peer_response response = http_peer_read(fd, false);
		cr_expect(eq(int, response.status, 200));
		cr_expect(eq(int, http_peer_field(&response, "Connection") != NULL, draining));
		http_peer_clear(&response);
		if (!draining)
			http_peer_drain(server);
		cr_assert(eventually(is_draining, server, 10000));
	}
	cr_expect(http_peer_closed(fd));
	close(fd);
	http_peer_response response = http_peer_ask(server, "GET", "/", NULL);
	cr_expect(eq(int, response.status, 200));
	http_peer_clear(&response);
	http_server_abort(http_peer_server_of(server));
	http_peer_stop(server);
}
