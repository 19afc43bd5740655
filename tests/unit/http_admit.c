/*
 * Who is let in: so many connections of one address, so many handlers at once, and a clear answer to the rest.
 */
#include <criterion/criterion.h>
#include <criterion/new/assert.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

#include <tether/loop.h>

#include "alloc_fault.h"
#include "http_peer.h"
#include "support.h"
#include "together.h"

static struct {
	atomic_int entered, inside, most, served, shed, others;
	wait_event go[2];
} seen;

static void waits(http_request *request, http_response *response)
{
	int index = atomic_fetch_add(&seen.entered, 1);
	wait_event_wait(http_request_ctx(request), &seen.go[index % 2]);
	http_response_text(response, 200, "done");
}

static void answers(http_request *request, http_response *response)
{
	(void)request;
	http_response_text(response, 200, "hello");
}

/* Stays a moment, and counts who else is there. */
static void stays(http_request *request, http_response *response)
{
	int now = atomic_fetch_add(&seen.inside, 1) + 1, most = atomic_load(&seen.most);
	while (now > most && !atomic_compare_exchange_weak(&seen.most, &most, now))
		;
	wait_sleep(http_request_ctx(request), CTX_MILLISECOND);
	atomic_fetch_sub(&seen.inside, 1);
	http_response_text(response, 200, "done");
}

static const http_peer_route routes[] = {
	{"POST /wait", waits, NULL}, {"GET /stay", stays, NULL}, {"GET /hello", answers, NULL}, {0}};

static http_server_stats stats_of(const http_peer_server *server)
{
	http_server_stats stats;
	http_server_stats_get(http_peer_server_of(server), &stats);
	return stats;
}

static bool entered_two(void *unused)
{
	(void)unused;
	return atomic_load(&seen.entered) == 2;
}

/* ---- Addresses --------------------------------------------------------------------------------------- */

struct wanted {
	http_peer_server *server;
	size_t connections;
};

static bool connections_are(void *arg)
{
	const struct wanted *wanted = arg;
	return stats_of(wanted->server).connections == wanted->connections;
}

/* 0: it was refused, with an answer that says so. */
static int status_over(int fd)
{
	http_peer_send(fd, "GET /hello HTTP/1.1\r\nHost: h\r\n\r\n");
	http_peer_response response = http_peer_read(fd, false);
	int status = response.status;
	if (status == 503)
		cr_expect(ne(ptr, (void *)http_peer_field(&response, "Retry-After"), NULL));
	http_peer_clear(&response);
	return status;
}

Test(http_admit, an_address_has_so_many_connections, .timeout = 60)
{
	http_server_options options = {.address_connections = 2};
	http_peer_server *server = http_peer_serve(&options, routes);
	struct wanted wanted = {server, 2};
	int first = http_peer_connect_from(server, "127.0.0.1"), second = http_peer_connect(server);
	cr_expect(eq(int, status_over(first), 200));
	cr_expect(eq(int, status_over(second), 200));
	int third = http_peer_connect(server);
	cr_expect(eq(int, status_over(third), 503));
	cr_expect(http_peer_closed(third));
	/* Another address has its own. */
	int elsewhere = http_peer_connect_from(server, "127.0.0.2");
	cr_expect(eq(int, status_over(elsewhere), 200));
	cr_expect(eq(u64, stats_of(server).address_refused, 1));
	cr_expect(eq(u64, stats_of(server).connections_refused, 1));
	cr_expect(eq(u64, stats_of(server).connections_total, 4));
	close(third);
	/* A place given up is free again; an address of which nothing is left, forgotten. */
	close(first);
	close(elsewhere);
	wanted.connections = 1;
	cr_assert(eventually(connections_are, &wanted, 10000));
	third = http_peer_connect(server);
	elsewhere = http_peer_connect_from(server, "127.0.0.2");
	cr_expect(eq(int, status_over(third), 200));
	cr_expect(eq(int, status_over(elsewhere), 200));
	close(second);
	close(third);
	close(elsewhere);
	http_peer_stop(server);
}

/* Threads come and go from many addresses, on two workers: the table's own test, for the sanitizers above all. */
static void come_and_go(void *server, int index)
{
	char address[32];
	snprintf(address, sizeof(address), "127.0.0.%d", 1 + index / 4);
	for (int i = 0; i < 10; i++) {
		int fd = http_peer_connect_from(server, address);
		int status = status_over(fd);
		atomic_fetch_add(status == 200 ? &seen.served : status == 503 ? &seen.shed : &seen.others, 1);
		close(fd);
	}
}

Test(http_admit, many_addresses_at_once, .timeout = 120)
{
	http_server_options options = {.address_connections = 2, .workers = 2};
	http_peer_server *server = http_peer_serve(&options, routes);
	struct wanted wanted = {server, 0};
	together(16, come_and_go, server);
	cr_assert(eventually(connections_are, &wanted, 10000));
	cr_expect(eq(int, seen.others, 0));
	cr_expect(eq(int, seen.served + seen.shed, 160));
	cr_expect(eq(u64, stats_of(server).address_refused, (uint64_t)seen.shed));
	/* Nothing was left counted. */
	int fds[2];
	for (int i = 0; i < 2; i++) {
		fds[i] = http_peer_connect_from(server, "127.0.0.1");
		cr_expect(eq(int, status_over(fds[i]), 200));
	}
	close(fds[0]);
	close(fds[1]);
	http_peer_stop(server);
}

/* ---- Handlers ---------------------------------------------------------------------------------------- */

Test(http_admit, handlers_beyond_the_limit_do_not_begin, .timeout = 60)
{
	http_server_options options = {.requests = 2};
	http_peer_server *server = http_peer_serve(&options, routes);
	static const char post[] = "POST /wait HTTP/1.1\r\nHost: h\r\nContent-Length: 2\r\n\r\nhi";
	int fds[2];
	for (int i = 0; i < 2; i++) {
		fds[i] = http_peer_connect(server);
		http_peer_send(fds[i], post);
	}
	cr_assert(eventually(entered_two, NULL, 10000));
	cr_expect(eq(sz, stats_of(server).handlers, 2));
	/* Past it each is told when to come back, and may do so on the same connection. */
	int fd = http_peer_connect(server);
	for (int i = 0; i < 3; i++) {
		http_peer_send(fd, post);
		http_peer_response response = http_peer_read(fd, false);
		cr_expect(eq(int, response.status, 503));
		cr_expect(eq(str, (char *)http_peer_field(&response, "Retry-After"), "1"));
		http_peer_clear(&response);
	}
	/* What no handler would serve is answered as ever. */
	http_peer_response response = http_peer_ask(server, "GET", "/nowhere", NULL);
	cr_expect(eq(int, response.status, 404));
	http_peer_clear(&response);
	/* Nobody is asked to send a body that nobody will read. */
	int polite = http_peer_connect(server);
	http_peer_send(polite,
	               "POST /wait HTTP/1.1\r\nHost: h\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n");
	char said[13] = "";
	cr_assert(eq(int, (int)recv(polite, said, 12, MSG_WAITALL), 12));
	cr_expect(eq(str, said, "HTTP/1.1 503"));
	close(polite);
	cr_expect(eq(u64, stats_of(server).requests_refused, 4));
	cr_expect(eq(int, seen.entered, 2));
	/* A handler that returns makes room. */
	wait_event_set(&seen.go[0]);
	wait_event_set(&seen.go[1]);
	for (int i = 0; i < 2; i++) {
		response = http_peer_read(fds[i], false);
		cr_expect(eq(int, response.status, 200));
		http_peer_clear(&response);
		close(fds[i]);
	}
	cr_expect(eq(int, status_over(fd), 200));
	close(fd);
	http_peer_stop(server);
}

static void ask_to_stay(void *server, int index)
{
	(void)index;
	for (int i = 0; i < 10; i++) {
		http_peer_response response = http_peer_ask(server, "GET", "/stay", NULL);
		atomic_fetch_add(response.status == 200   ? &seen.served
		                 : response.status == 503 ? &seen.shed
		                                          : &seen.others,
		                 1);
		http_peer_clear(&response);
	}
}

/* The limit is that of all workers together. */
Test(http_admit, never_more_handlers_than_the_limit, .timeout = 120)
{
	http_server_options options = {.requests = 3, .workers = 3};
	http_peer_server *server = http_peer_serve(&options, routes);
	together(16, ask_to_stay, server);
	cr_expect(le(int, seen.most, 3));
	cr_expect(eq(int, seen.others, 0));
	cr_expect(eq(int, seen.served + seen.shed, 160));
	cr_expect(ge(int, seen.served, 1));
	cr_expect(eq(u64, stats_of(server).requests_refused, (uint64_t)seen.shed));
	cr_expect(eq(sz, stats_of(server).handlers, 0));
	http_peer_stop(server);
}

Test(http_admit, a_server_survives_memory_that_fails, .timeout = 60)
{
	bool failed = true;
	for (unsigned n = 1; failed; n++) {
		cr_assert(lt(uint, n, 50));
		fault_set(FAULT_MEMORY, n);
		http_server *server = http_server_new(&(http_server_options){.address_connections = 1});
		failed = fault_clear(FAULT_MEMORY);
		cr_expect(eq(int, server == NULL, failed));
		http_server_free(server);
	}
}
