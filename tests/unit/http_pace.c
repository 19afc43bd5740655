/*
 * How slowly an answer may be taken.
 *
 * Each test's client has next to no room in its kernel and segments of a hundred bytes. What it reads, the server sees it
 * take, in steps of some 1300 bytes.
 */
#include <criterion/criterion.h>
#include <criterion/new/assert.h>
#include <errno.h>
#include <netinet/in.h>
#include <poll.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include <tether/loop.h>

#include "certificates.h"
#include "h2_peer.h"
#include "http_peer.h"
#include "support.h"
#include "tls_peer.h"

/* ---- A server ---------------------------------------------------------------------------------------- */

enum { MUCH = 10 << 20, SOME = 15000 };

static struct {
	atomic_int done, status;
} seen;

static void on_done(http_request *request, const http_outcome *outcome, void *data)
{
	(void)request, (void)data;
	seen.status = outcome->status;
	atomic_fetch_add(&seen.done, 1);
}

static void answer_with(http_response *response, size_t size)
{
	char *data = calloc(1, size);
	cr_assert_not_null(data);
	http_response_body(response, 200, NULL, data, size);
	free(data);
}

static void much(http_request *request, http_response *response)
{
	(void)request;
	answer_with(response, MUCH);
}

/* No more than the server's kernel holds. */
static void some(http_request *request, http_response *response)
{
	(void)request;
	answer_with(response, SOME);
}

static void floods(http_request *request, http_response *response)
{
	static const char data[4096];
	(void)request;
	while (http_write(response, data, sizeof(data)) == 0)
		;
}

/* An event now and then, for two seconds. */
static void tells(http_request *request, http_response *response)
{
	static const int64_t pauses[] = {20, 30, 600, 20, 800, 10, 500, 20};
	for (size_t i = 0; i < sizeof(pauses) / sizeof(*pauses); i++)
		if (http_write(response, "data: x\n\n", 9) != 0 ||
		    wait_sleep(http_request_ctx(request), pauses[i] * CTX_MILLISECOND) != 0)
			return;
}

static const http_peer_route routes[] = {{"GET /much", much, NULL},
                                         {"GET /some", some, NULL},
                                         {"GET /flood", floods, NULL},
                                         {"GET /events", tells, NULL},
                                         {0}};

static http_tls *make_tls(void)
{
	const certificates *c = certificates_get();
	http_tls *tls =
		http_tls_new(&(http_tls_options){.certificate = c->server, .key = c->server_key}, NULL, 0);
	cr_assert_not_null(tls);
	return tls;
}

static http_peer_server *serve(http_server_options options, bool encrypted)
{
	http_tls *tls = encrypted ? make_tls() : NULL;
	options.on_done = on_done;
	http_peer_server *server = http_peer_serve_tls(&options, routes, tls);
	http_tls_free(tls);
	return server;
}

/* ---- Clients ----------------------------------------------------------------------------------------- */

typedef struct client {
	int fd;
	h2_peer *h2;
	tls_peer *tls;
	long got;
	int64_t lasted; /* milliseconds until it saw the connection reset; 0: it did not */
} client;

#define GET(path) "GET " path " HTTP/1.1\r\nHost: h\r\n\r\n"

static client buffered(http_peer_server *server)
{
	client c = {.fd = http_peer_connect_narrow(server)};
	http_peer_send(c.fd, GET("/much"));
	return c;
}

static client streamed(http_peer_server *server)
{
	client c = {.fd = http_peer_connect_narrow(server)};
	http_peer_send(c.fd, GET("/flood"));
	return c;
}

static client encrypted(http_peer_server *server)
{
	client c = {.fd = http_peer_connect_narrow(server)};
	c.tls = tls_peer_new(c.fd, NULL);
	cr_assert(eq(int, tls_peer_handshake(c.tls), 0));
	tls_peer_send(c.tls, GET("/much"));
	return c;
}

/* With windows as wide as can be: it is by its socket that it is slow. */
static client wide_open(http_peer_server *server)
{
	client c = {.fd = http_peer_connect_narrow(server)};
	c.h2 = h2_peer_open(c.fd);
	h2_peer_preface(c.h2);
	h2_peer_frame(c.h2, H2_SETTINGS, 0, 0, "\0\4\x7f\xff\xff\xff", 6);
	h2_peer_number(c.h2, H2_WINDOW_UPDATE, 0, INT32_MAX - 65535);
	h2_peer_ask(c.h2, 1, "GET", "/much");
	return c;
}

static const struct {
	const char *name;
	client (*ask)(http_peer_server *server);
	bool encrypted;
} ways[] = {
	{"HTTP/1.1, buffered", buffered, false},
	{"HTTP/1.1, streamed", streamed, false},
	{"HTTPS", encrypted, true},
	{"HTTP/2", wide_open, false},
};

enum { WAYS = sizeof(ways) / sizeof(*ways) };

/* A client for each way. */
static void ask_all(http_peer_server *server, http_peer_server *with_tls, client clients[WAYS])
{
	for (int w = 0; w < WAYS; w++)
		clients[w] = ways[w].ask(ways[w].encrypted ? with_tls : server);
}

static void leave(client *c)
{
	if (c->h2)
		h2_peer_close(c->h2);
	else if (c->tls)
		tls_peer_cut(c->tls);
	else
		close(c->fd);
}

static bool is_reset(int fd)
{
	int why = 0;
	struct pollfd error = {.fd = fd};
	if (poll(&error, 1, 0) <= 0)
		return false;
	getsockopt(fd, SOL_SOCKET, SO_ERROR, &why, &(socklen_t){sizeof(why)});
	return why == ECONNRESET;
}

/* Each reads so many bytes a second, for so long, or until all are reset. How many are. */
static int trickle(client clients[], int count, long per_second, long ms)
{
	int64_t began = now_ms(), passed;
	int resets = 0;
	while ((passed = now_ms() - began) < ms && resets < count) {
		for (client *c = clients; c < clients + count; c++) {
			char bytes[64];
			ssize_t n = 1;
			while (!c->lasted && n > 0 && c->got < per_second * passed / 1000) {
				n = recv(c->fd, bytes, sizeof(bytes), MSG_DONTWAIT);
				c->got += n > 0 ? n : 0;
			}
			if (!c->lasted && is_reset(c->fd)) {
				c->lasted = passed;
				resets++;
			}
		}
		poll(NULL, 0, 10);
	}
	return resets;
}

/* ---- Sockets ----------------------------------------------------------------------------------------- */

/*
 * Less than 500 bytes a second. Once a single byte within write_timeout was enough: here some are always taken within
 * it, and ten megabytes would have lasted for eight hours.
 */
Test(http_pace, a_trickle_is_not_enough, .timeout = 120)
{
	http_server_options options = {.write_timeout = 6 * CTX_SECOND};
	http_peer_server *server = serve(options, false), *with_tls = serve(options, true);
	client clients[WAYS];
	ask_all(server, with_tls, clients);
	trickle(clients, WAYS, 325, 15000L * support_patience());
	for (int w = 0; w < WAYS; w++) {
		cr_expect(clients[w].lasted > 0, "%s: is not reset", ways[w].name);
		cr_expect(ge(long, (long)clients[w].lasted, 5500), "%s", ways[w].name);
		leave(&clients[w]);
	}
	cr_expect(eventually_counts(&seen.done, WAYS, 10000));
	cr_expect(eq(int, seen.status, 499));
	cr_expect(eventually(http_peer_is_quiet, server, 10000));
	cr_expect(eventually(http_peer_is_quiet, with_tls, 10000));
	http_peer_stop(with_tls);
	http_peer_stop(server);
}

/* A telephone's two kilobytes a second are. */
Test(http_pace, slow_is_enough, .timeout = 120)
{
	http_server_options options = {.write_timeout = 2 * CTX_SECOND * support_patience()};
	http_peer_server *server = serve(options, false), *with_tls = serve(options, true);
	client clients[WAYS];
	ask_all(server, with_tls, clients);
	cr_expect(eq(int, trickle(clients, WAYS, 2000, 6000L * support_patience()), 0));
	cr_expect(eq(int, seen.done, 0));
	for (int w = 0; w < WAYS; w++)
		leave(&clients[w]);
	http_peer_stop(with_tls);
	http_peer_stop(server);
}

/*
 * A client that takes nothing is told that it is cut, though it does not read: by a reset, as long as the kernel does not
 * give the connection up before (with TCP_USER_TIMEOUT it would, and not say a word).
 */
Test(http_pace, who_takes_nothing_sees_a_reset, .timeout = 60)
{
	http_server_options options = {.write_timeout = 4 * CTX_SECOND};
	http_peer_server *server = serve(options, false), *with_tls = serve(options, true);
	client clients[WAYS];
	ask_all(server, with_tls, clients);
	trickle(clients, WAYS, 0, 12000L * support_patience());
	for (int w = 0; w < WAYS; w++) {
		cr_expect(clients[w].lasted > 0, "%s", ways[w].name);
		leave(&clients[w]);
	}
	http_peer_stop(with_tls);
	http_peer_stop(server);
}

/* Where nothing waits nobody is slow. */
Test(http_pace, events_may_be_rare, .timeout = 60)
{
	http_peer_server *server =
		serve((http_server_options){.write_timeout = 200 * CTX_MILLISECOND}, false);
	int fd = http_peer_connect_narrow(server);
	http_peer_send(fd, GET("/events"));
	http_peer_response response = http_peer_read(fd, false);
	cr_expect(eq(int, response.status, 200));
	cr_expect(eq(sz, response.body_size, 8 * 9));
	http_peer_clear(&response);
	close(fd);
	http_peer_stop(server);
}

/* ---- An answer that is the kernel's ------------------------------------------------------------------ */

/* The handler has returned, and all of its answer is on its way: the client is not idle before it has it. */
Test(http_pace, idleness_begins_when_the_answer_is_taken, .timeout = 60)
{
	http_peer_server *server = serve((http_server_options){.idle_timeout = 300 * CTX_MILLISECOND}, false);
	client c = {.fd = http_peer_connect_narrow(server)};
	int fd = c.fd;
	http_peer_send(fd, GET("/some"));
	cr_assert(eventually_counts(&seen.done, 1, 10000));
	cr_expect(eq(int, trickle(&c, 1, 0, 1500), 0));
	for (int i = 0; i < 2; i++) {
		http_peer_response response = http_peer_read(fd, false);
		cr_expect(eq(int, response.status, 200));
		cr_expect(eq(sz, response.body_size, SOME));
		http_peer_clear(&response);
		if (i == 0)
			http_peer_send(fd, GET("/some"));
	}
	cr_expect(http_peer_closed(fd), "then it is");
	close(fd);
	http_peer_stop(server);
}

Test(http_pace, an_answer_that_is_sent_must_be_taken, .timeout = 60)
{
	http_peer_server *server =
		serve((http_server_options){.write_timeout = 500 * CTX_MILLISECOND}, false);
	client c = {.fd = http_peer_connect_narrow(server)};
	http_peer_send(c.fd, GET("/some"));
	cr_assert(eventually_counts(&seen.done, 1, 10000));
	cr_expect(eq(int, trickle(&c, 1, 0, 10000L * support_patience()), 1));
	close(c.fd);
	http_peer_stop(server);
}

/* Whether the kernel still has the server's end of that client's connection, whoever owns it. */
static bool is_forgotten(void *arg)
{
	const struct {
		int server, client;
	} *ports = arg;
	char line[512], both[64];
	FILE *all = fopen("/proc/net/tcp", "re");
	bool found = false;
	cr_assert_not_null(all);
	snprintf(both, sizeof(both), "0100007F:%04X 0100007F:%04X", (unsigned)ports->server,
	         (unsigned)ports->client);
	while (fgets(line, sizeof(line), all))
		found = found || strstr(line, both);
	fclose(all);
	return !found;
}

/*
 * Past the socket's end it is the kernel's: it would ask a client that is alive whether it has room for ever, and keep
 * the bytes as long.
 */
Test(http_pace, what_is_left_at_the_end_is_given_up, .timeout = 60)
{
	http_peer_server *server =
		serve((http_server_options){.write_timeout = 500 * CTX_MILLISECOND}, false);
	struct sockaddr_in here = {0};
	struct {
		int server, client;
	} ports = {atoi(strrchr(http_peer_address(server), ':') + 1), 0};
	int fd = http_peer_connect_narrow(server);
	cr_assert(eq(int, getsockname(fd, (struct sockaddr *)&here, &(socklen_t){sizeof(here)}), 0));
	ports.client = ntohs(here.sin_port);
	cr_expect(not(is_forgotten(&ports)));
	http_peer_send(fd, "GET /some HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n");
	cr_assert(eventually(http_peer_is_quiet, server, 10000), "it is the server's still");
	cr_expect(eventually(is_forgotten, &ports, 10000), "it is the kernel's still");
	close(fd);
	http_peer_stop(server);
}

/* ---- Windows ----------------------------------------------------------------------------------------- */

/* Opens windows by so much every 20 ms: those of the first two streams, or with 0 the connection's. */
static void open_windows(h2_peer *p, uint32_t stream, uint32_t by)
{
	for (uint32_t id = stream; id <= (stream ? 3 : 0); id += 2)
		h2_peer_number(p, H2_WINDOW_UPDATE, id, by);
	h2_peer_ping(p);
	poll(NULL, 0, 20);
}

static bool is_cut(h2_peer *p)
{
	return p->closed || (h2_peer_so_far(p, 1)->reset && h2_peer_so_far(p, 3)->reset);
}

/* Two streams, with all that they may send sent: their own windows are shut, or the connection's. */
static h2_peer *shut(http_peer_server *server, bool own)
{
	h2_peer *p = h2_peer_connect(server);
	p->silent = true;
	if (own)
		h2_peer_number(p, H2_WINDOW_UPDATE, 0, 1 << 20);
	else
		h2_peer_frame(p, H2_SETTINGS, 0, 0, "\0\4\x7f\xff\xff\xff", 6);
	h2_peer_ask(p, 1, "GET", "/flood");
	h2_peer_ask(p, 3, "GET", "/much");
	while (h2_peer_so_far(p, 1)->body_size + h2_peer_so_far(p, 3)->body_size < (own ? 2 : 1) * 65535)
		cr_assert(h2_peer_step(p));
	return p;
}

/* 500 bytes a second, by a window as by a socket. */
Test(http_pace, windows_must_open_wide_enough, .timeout = 120)
{
	for (int own = 0; own < 2; own++) {
		http_peer_server *server =
			serve((http_server_options){.write_timeout = CTX_SECOND * support_patience()}, false);
		h2_peer *p = shut(server, own);
		int64_t until = now_ms() + 3000L * support_patience();
		while (now_ms() < until && !is_cut(p))
			open_windows(p, own ? 1 : 0, 100);
		cr_assert(not(is_cut(p)), "it was fast enough");
		until = now_ms() + 10000L * support_patience();
		while (now_ms() < until && !is_cut(p))
			open_windows(p, own ? 1 : 0, 1);
		cr_expect(is_cut(p));
		cr_expect(not(p->closed), "the other streams do not suffer for it");
		cr_expect(eq(u32, h2_peer_so_far(p, 1)->reason, H2_CANCEL));
		h2_peer_close(p);
		http_peer_stop(server);
	}
}

/*
 * Nor does it help to shut them in turns, so that at each look it is another one. Of windows 0 and 1 the shut one is
 * opened by 2, one byte goes out, and they are 1 and 0.
 */
Test(http_pace, windows_shut_in_turns, .timeout = 60)
{
	http_peer_server *server =
		serve((http_server_options){.write_timeout = 500 * CTX_MILLISECOND}, false);
	h2_peer *p = h2_peer_connect(server);
	p->silent = true;
	h2_peer_ask(p, 1, "GET", "/much");
	while (h2_peer_so_far(p, 1)->body_size < 65535)
		cr_assert(h2_peer_step(p));
	h2_peer_number(p, H2_WINDOW_UPDATE, 0, 1);
	int64_t until = now_ms() + 10000L * support_patience();
	for (uint32_t turn = 0; now_ms() < until && !h2_peer_so_far(p, 1)->reset; turn++) {
		h2_peer_number(p, H2_WINDOW_UPDATE, turn % 2 ? 0 : 1, 2);
		cr_assert(h2_peer_ping(p));
		poll(NULL, 0, 60);
	}
	cr_expect(h2_peer_so_far(p, 1)->reset);
	h2_peer_close(p);
	http_peer_stop(server);
}
