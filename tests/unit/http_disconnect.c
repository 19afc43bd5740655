/*
 * A client that leaves ends its request's context, whatever stage the request is in and whichever way the
 * client goes: by FIN, by reset, by half-close.
 */
#include <criterion/criterion.h>
#include <criterion/new/assert.h>
#include <pthread.h>
#include <stdatomic.h>
#include <sys/socket.h>
#include <unistd.h>

#include <tether/loop.h>

#include "http_peer.h"
#include "support.h"
#include "watched.h"

/* ---- What is observed -------------------------------------------------------------------------------- */

static _Atomic(ctx *) last; /* the last request's context, retained */

static bool on_request(http_request *request, void *data)
{
	ctx *before = atomic_exchange(&last, ctx_retain(http_request_ctx(request)));
	ctx_release(before);
	return see_request(request, data);
}

static const http_server_options watched_contexts = {.on_request = on_request, .on_done = see_done};

static const http_peer_route routes[] = {{"GET /wait", waits_until_done, NULL},
                                         {"POST /wait", waits_until_done, NULL},
                                         {"GET /hello", answers_hello, NULL},
                                         {0}};

/* ---- Ways to leave ----------------------------------------------------------------------------------- */

static const char *const names[] = {"FIN", "reset", "half-close"};

/* The stages of a request in which a client may leave: what it has sent by then, and what must be so. */
struct stage {
	const char *name, *sends;
	int begun, entered;
};

static const struct stage stages[] = {
	{"while the handler waits", "GET /wait HTTP/1.1\r\nHost: h\r\n\r\n", 1, 1},
	{"with a request pipelined behind",
         "GET /wait HTTP/1.1\r\nHost: h\r\n\r\nGET /hello HTTP/1.1\r\nHost: h\r\n\r\n", 1, 1},
	{"with half a request behind", "GET /wait HTTP/1.1\r\nHost: h\r\n\r\nGET /hel", 1, 1},
	{"after a body", "POST /wait HTTP/1.1\r\nHost: h\r\nContent-Length: 4\r\n\r\nbody", 1, 1},
	{"after a chunked body",
         "POST /wait HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nbody\r\n0\r\n\r\n", 1, 1},
	{"while the body arrives", "POST /wait HTTP/1.1\r\nHost: h\r\nContent-Length: 40\r\n\r\nbody", 1, 0},
	{"before the body arrives", "POST /wait HTTP/1.1\r\nHost: h\r\nContent-Length: 40\r\n\r\n", 1, 0},
	{"while chunks arrive",
         "POST /wait HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nbod", 1, 0},
	{"in the middle of the head", "GET /wait HTTP/1.1\r\nHo", 0, 0},
	{"before anything was sent", "", 0, 0},
};

Test(http_disconnect, ends_the_context_at_any_stage, .timeout = 120)
{
	http_peer_server *server = http_peer_serve(&watched_contexts, routes);
	int over = 0;
	for (size_t s = 0; s < sizeof(stages) / sizeof(*stages); s++)
		for (enum http_peer_way way = BY_FIN; way < WAYS_TO_LEAVE; way++) {
			const struct stage *stage = &stages[s];
			int begun = seen.begun, entered = seen.entered;
			int fd = http_peer_connect(server);
			http_peer_send(fd, stage->sends);
			cr_assert(eventually_counts(&seen.begun, begun + stage->begun, 10000), "%s",
			          stage->name);
			cr_assert(eventually_counts(&seen.entered, entered + stage->entered, 10000), "%s",
			          stage->name);
			int rest = http_peer_leave(fd, way);
			over += stage->begun;
			cr_assert(eventually_counts(&seen.done, over, 10000),
			          "%s, %s: the request is not over", stage->name, names[way]);
			cr_assert(eventually(http_peer_is_quiet, server, 10000),
			          "%s, %s: the connection is not closed", stage->name, names[way]);
			cr_assert(eq(int, seen.done, over), "%s, %s", stage->name, names[way]);
			cr_assert(eq(int, seen.left, over), "%s, %s: not taken for a client that left",
			          stage->name, names[way]);
			cr_assert(eq(int, seen.entered, entered + stage->entered), "%s, %s", stage->name,
			          names[way]);
			if (stage->begun)
				cr_assert(eq(ptr, (void *)ctx_cause(last), (void *)&HTTP_CLIENT_DISCONNECTED),
				          "%s, %s", stage->name, names[way]);
			if (stage->entered)
				cr_assert(eq(ptr, (void *)seen.cause, (void *)&HTTP_CLIENT_DISCONNECTED),
				          "%s, %s", stage->name, names[way]);
			if (rest >= 0) {
				cr_assert(http_peer_closed(rest), "%s, %s: the server keeps its side open",
				          stage->name, names[way]);
				close(rest);
			}
		}
	http_peer_stop(server);
	ctx_release(last);
}

/* While it stands in a queue, for a database connection say, the waiter leaves that at once. */
static pthread_mutex_t queue_mutex = PTHREAD_MUTEX_INITIALIZER;
static wait_queue queue = WAIT_QUEUE_INIT;

static void queues(http_request *request, http_response *response)
{
	void *handed;
	pthread_mutex_lock(&queue_mutex);
	atomic_fetch_add(&seen.entered, 1);
	int result = wait_queue_wait(http_request_ctx(request), &queue, &queue_mutex, &handed);
	pthread_mutex_unlock(&queue_mutex);
	cr_assert(eq(int, result, -1));
	seen.cause = ctx_cause(http_request_ctx(request));
	http_response_status(response, 503);
	atomic_fetch_add(&seen.returned, 1);
}

static bool queue_is(void *length)
{
	pthread_mutex_lock(&queue_mutex);
	bool is = queue.length == *(size_t *)length;
	pthread_mutex_unlock(&queue_mutex);
	return is;
}

Test(http_disconnect, takes_the_request_out_of_a_queue, .timeout = 60)
{
	http_peer_server *server =
		http_peer_serve(&watched_contexts, (http_peer_route[]){{"GET /", queues, NULL}, {0}});
	int fds[30];
	for (int i = 0; i < 30; i++) {
		fds[i] = http_peer_connect(server);
		http_peer_send(fds[i], "GET / HTTP/1.1\r\nHost: h\r\n\r\n");
	}
	cr_assert(eventually(queue_is, &(size_t){30}, 10000));
	/* From the middle, the end and the front. */
	for (int i = 0; i < 30; i++) {
		int at = (i * 7 + 13) % 30;
		int rest = http_peer_leave(fds[at], (enum http_peer_way)(i % WAYS_TO_LEAVE));
		cr_assert(eventually(queue_is, &(size_t){(size_t)(29 - i)}, 10000));
		if (rest >= 0)
			close(rest);
	}
	cr_assert(eventually_counts(&seen.left, 30, 10000));
	http_peer_stop(server);
	ctx_release(last);
}

/* The end of the stream that comes in one packet with the request: MHD may overlook it. */
Test(http_disconnect, together_with_the_request, .timeout = 120)
{
	http_peer_server *server = http_peer_serve(&watched_contexts, routes);
	const int rounds = 300;
	for (int i = 0; i < rounds; i++) {
		int fd = http_peer_connect(server);
		http_peer_send(fd, i % 2 ? "GET /wait HTTP/1.1\r\nHost: h\r\n\r\n"
		                         : "GET /hello HTTP/1.1\r\nHost: h\r\n\r\n");
		int rest = http_peer_leave(fd, (enum http_peer_way)(i % WAYS_TO_LEAVE));
		if (rest >= 0) {
			cr_assert(http_peer_closed(rest));
			close(rest);
		}
	}
	cr_assert(eventually(http_peer_is_quiet, server, 20000));
	cr_expect(eq(int, seen.done, seen.begun));
	cr_expect(eq(int, seen.returned, seen.entered));
	http_peer_stop(server);
	ctx_release(last);
}

/* ---- Not a disconnect -------------------------------------------------------------------------------- */

Test(http_disconnect, leaving_after_the_answer_is_none, .timeout = 60)
{
	http_peer_server *server = http_peer_serve(&watched_contexts, routes);
	for (enum http_peer_way way = BY_FIN; way < WAYS_TO_LEAVE; way++) {
		int fd = http_peer_connect(server);
		http_peer_send(fd, "GET /hello HTTP/1.1\r\nHost: h\r\n\r\n");
		http_peer_response response = http_peer_read(fd, false);
		cr_expect(eq(int, response.status, 200));
		http_peer_clear(&response);
		int rest = http_peer_leave(fd, way);
		cr_assert(eventually(http_peer_is_quiet, server, 10000), "%s", names[way]);
		if (rest >= 0)
			close(rest);
	}
	cr_expect(eq(int, seen.done, 3));
	cr_expect(eq(int, seen.left, 0));
	cr_expect(eq(ptr, (void *)ctx_cause(last), (void *)&HTTP_REQUEST_FINISHED));
	http_peer_stop(server);
	ctx_release(last);
}

static void sleeps(http_request *request, http_response *response)
{
	atomic_fetch_add(&seen.entered, 1);
	if (wait_sleep(http_request_ctx(request), 50 * CTX_MILLISECOND) == 0)
		http_response_text(response, 200, "slept");
	else
		seen.cause = ctx_cause(http_request_ctx(request));
	atomic_fetch_add(&seen.returned, 1);
}

/* With half_close_is_waiting a client may shut its sending side down and still be answered; a reset is a reset. */
Test(http_disconnect, a_half_closed_client_may_be_waiting, .timeout = 60)
{
	http_server_options options = watched_contexts;
	options.half_close_is_waiting = true;
	http_peer_server *server =
		http_peer_serve(&options, (http_peer_route[]){{"GET /sleep", sleeps, NULL},
	                                                      {"GET /hello", answers_hello, NULL},
	                                                      {"GET /wait", waits_until_done, NULL},
	                                                      {0}});
	for (int i = 0; i < 20; i++) {
		int fd = http_peer_connect(server);
		int entered = seen.entered;
		http_peer_send(fd, i % 2 ? "GET /sleep HTTP/1.1\r\nHost: h\r\n\r\n"
		                         : "GET /hello HTTP/1.1\r\nHost: h\r\n\r\n");
		if (i % 4 == 1)
			cr_assert(eventually_counts(&seen.entered, entered + 1, 10000));
		shutdown(fd, SHUT_WR);
		http_peer_response response = http_peer_read(fd, false);
		cr_assert(eq(int, response.status, 200), "round %d", i);
		http_peer_clear(&response);
		cr_assert(http_peer_closed(fd), "round %d", i);
		close(fd);
	}
	cr_expect(eq(int, seen.left, 0));
	int entered = seen.entered;
	int fd = http_peer_connect(server);
	http_peer_send(fd, "GET /wait HTTP/1.1\r\nHost: h\r\n\r\n");
	cr_assert(eventually_counts(&seen.entered, entered + 1, 10000));
	http_peer_reset(fd);
	cr_assert(eventually_counts(&seen.left, 1, 10000));
	cr_assert(eventually(http_peer_is_quiet, server, 10000));
	http_peer_stop(server);
	ctx_release(last);
}

static void reads(http_request *request, http_response *response)
{
	char piece[16];
	ssize_t got;
	while ((got = http_body_read(request, piece, sizeof(piece))) > 0)
		;
	http_response_text(response, got == 0 ? 200 : 400, "read");
}

/*
 * libmicrohttpd reads once per event, and an end of the stream that came together with the last bytes is no event of
 * its own: a client that ended in the midst of a request, and might be waiting, was kept until it was late.
 */
Test(http_disconnect, a_half_closed_client_cannot_wait_for_half_a_request, .timeout = 60)
{
	static const char *const halves[] = {
		"GET /hello HT",
		"GET /hello HTTP/1.1\r\nHost: h\r\nConten",
		"POST /hello HTTP/1.1\r\nHost: h\r\nContent-Length: 9\r\n\r\nabc",
		"POST /hello HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nab",
		"POST /read HTTP/1.1\r\nHost: h\r\nContent-Length: 9\r\n\r\nabc",
		"POST /read HTTP/1.1\r\nHost: h\r\nExpect: 100-continue\r\nContent-Length: 9\r\n\r\n",
		"GET /hello HTTP/1.1\r\nHost: h\r\n\r\nPOST /hello HTTP/1.1\r\nHost: h\r\nContent-Le",
	};
	static const http_route_options streams = {.streams_body = true};
	const int64_t never = 3600 * CTX_SECOND;
	http_server_options options = {.half_close_is_waiting = true,
	                               .header_timeout = never,
	                               .body_timeout = never,
	                               .idle_timeout = never};
	http_peer_server *server = http_peer_prepare(&options);
	http_server *serving = http_peer_server_of(server);
	cr_assert(eq(int, http_handle(serving, "/hello", answers_hello, NULL), 0));
	cr_assert(eq(int, http_handle_with(serving, "POST /read", &streams, reads, NULL), 0));
	http_peer_begin(server, NULL);
	for (size_t i = 0; i < sizeof(halves) / sizeof(*halves); i++) {
		for (int round = 0; round < 20; round++) {
			int fd = http_peer_connect(server);
			http_peer_send(fd, halves[i]);
			shutdown(fd, SHUT_WR);
			cr_assert(eventually(http_peer_is_quiet, server, 10000), "round %d of %s", round,
			          halves[i]);
			close(fd);
		}
	}
	http_peer_stop(server);
}

/* ---- Nothing is left behind -------------------------------------------------------------------------- */

struct baseline {
	http_peer_server *server;
	int files;
};

static bool back_at_baseline(void *arg)
{
	const struct baseline *baseline = arg;
	return http_peer_is_quiet(baseline->server) && support_open_files() == baseline->files;
}

enum { BATCH = 50 };

static void leave_many(http_peer_server *server, int total)
{
	for (int i = 0; i < total; i += BATCH) {
		int fds[BATCH], rests[BATCH];
		int entered = seen.entered;
		for (int j = 0; j < BATCH; j++) {
			fds[j] = http_peer_connect(server);
			http_peer_send(fds[j], "GET /wait HTTP/1.1\r\nHost: h\r\n\r\n");
		}
		cr_assert(eventually_counts(&seen.entered, entered + BATCH, 10000));
		for (int j = 0; j < BATCH; j++)
			rests[j] = http_peer_leave(fds[j], (enum http_peer_way)(j % WAYS_TO_LEAVE));
		for (int j = 0; j < BATCH; j++)
			if (rests[j] >= 0)
				close(rests[j]);
	}
}

Test(http_disconnect, ten_thousand_leave_nothing_behind, .timeout = 300)
{
	const int total = support_patience() > 5 ? 1000 : 10000;
	http_server_options options = watched_contexts;
	options.workers = 2;
	struct baseline baseline = {.server = http_peer_serve(&options, routes)};
	leave_many(baseline.server, 2 * BATCH); /* what is made on first use has been made */
	cr_assert(eventually(http_peer_is_quiet, baseline.server, 10000));
	baseline.files = support_open_files();
	http_server_stats before, after;
	http_server_stats_get(http_peer_server_of(baseline.server), &before);

	leave_many(baseline.server, total);
	int fd = http_peer_connect(baseline.server);
	for (int i = 0; i < total; i++) {
		http_peer_send(fd, "GET /hello HTTP/1.1\r\nHost: h\r\n\r\n");
		http_peer_response response = http_peer_read(fd, false);
		cr_assert(eq(int, response.status, 200));
		http_peer_clear(&response);
	}
	close(fd);

	cr_expect(eventually(back_at_baseline, &baseline, 10000));
	http_server_stats_get(http_peer_server_of(baseline.server), &after);
	cr_expect(eq(u64, after.disconnects_total, (uint64_t)(total + 2 * BATCH)));
	cr_expect(eq(u64, after.requests_total - before.requests_total, (uint64_t)(2 * total)));
	cr_expect(eq(sz, after.fibers, 0));
	cr_expect(le(sz, after.stacks, before.stacks + BATCH));
	cr_expect(eq(int, seen.done, seen.begun));
	cr_expect(eq(int, http_peer_stop(baseline.server), 0));
	ctx_release(last);
}
