/* A program ends a request of its own accord: the handler hears why, and its answer is sent. */
#include <criterion/criterion.h>
#include <criterion/new/assert.h>
#include <errno.h>
#include <stdatomic.h>
#include <string.h>
#include <unistd.h>

#include <tether/loop.h>

#include "http_peer.h"
#include "support.h"

static const ctx_error ENOUGH = {ECANCELED, "that is enough"};

static struct {
	_Atomic(http_request *) waiting; /* in its handler */
	_Atomic(const ctx_error *) cause;
	_Atomic(const ctx_error *) done_cause;
	atomic_int status;
} seen;

static void on_done(http_request *request, const http_outcome *outcome, void *data)
{
	(void)request, (void)data;
	seen.done_cause = outcome->cause;
	seen.status = outcome->status;
}

static void waits(http_request *request, http_response *response)
{
	ctx *c = http_request_ctx(request);
	seen.waiting = request;
	wait_done(c);
	seen.cause = ctx_cause(c);
	http_response_text(response, 503, ctx_cause(c)->message);
}

static void streams(http_request *request, http_response *response)
{
	static const char much[16384];
	seen.waiting = request;
	while (http_write(response, much, sizeof much) == 0)
		;
	seen.cause = ctx_cause(http_request_ctx(request));
	http_response_fail(response);
}

static void hello(http_request *request, http_response *response)
{
	(void)request;
	http_response_text(response, 200, "hello");
}

static http_peer_server *serve(void)
{
	static const http_peer_route routes[] = {{"GET /waits", waits, NULL},
	                                         {"GET /streams", streams, NULL},
	                                         {"GET /hello", hello, NULL},
	                                         {0}};
	return http_peer_serve(&(http_server_options){.on_done = on_done}, routes);
}

static bool is_waiting(void *nothing)
{
	(void)nothing;
	return seen.waiting;
}

static bool is_done(void *nothing)
{
	(void)nothing;
	return seen.status;
}

Test(http_cancel, the_client_is_answered_and_its_connection_lives, .timeout = 60)
{
	http_peer_server *s = serve();
	int fd = http_peer_connect(s);

	http_peer_send(fd, "GET /waits HTTP/1.1\r\nHost: h\r\n\r\n");
	cr_assert(eventually(is_waiting, NULL, 10000));
	http_request_cancel(seen.waiting, &ENOUGH);
	http_peer_response r = http_peer_read(fd, false);
	cr_expect(eq(int, r.status, 503));
	cr_expect(eq(str, r.body, "that is enough"));
	http_peer_clear(&r);
	cr_expect(eq(ptr, (void *)seen.cause, (void *)&ENOUGH));
	cr_expect(eventually(is_done, NULL, 10000));
	cr_expect(eq(ptr, (void *)seen.done_cause, (void *)&ENOUGH));
	cr_expect(eq(int, seen.status, 503));

	http_peer_send(fd, "GET /hello HTTP/1.1\r\nHost: h\r\n\r\n");
	r = http_peer_read(fd, false);
	cr_expect(eq(int, r.status, 200));
	http_peer_clear(&r);
	close(fd);
	cr_expect(eq(int, http_peer_stop(s), 0));
}

Test(http_cancel, a_stream_ends_broken, .timeout = 60)
{
	http_peer_server *s = serve();
	int fd = http_peer_connect(s);

	http_peer_send(fd, "GET /streams HTTP/1.1\r\nHost: h\r\n\r\n");
	cr_assert(eventually(is_waiting, NULL, 10000));
	http_request_cancel(seen.waiting, &ENOUGH);
	http_peer_response r = http_peer_read(fd, false);
	cr_expect(eq(int, r.status, -1), "no client takes it for whole");
	http_peer_clear(&r);
	cr_expect(eventually(is_done, NULL, 10000));
	cr_expect(eq(ptr, (void *)seen.cause, (void *)&ENOUGH));
	close(fd);
	cr_expect(eq(int, http_peer_stop(s), 0));
}
