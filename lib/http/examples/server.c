/*
 * A small service: it greets, ticks, and weighs what it is sent.
 *
 *	http_server [ADDRESS]        127.0.0.1:0, any free port, unless said otherwise; "systemd:" is a socket handed over
 *
 *	curl localhost:PORT/hello/you
 *	curl -N localhost:PORT/ticks            until Ctrl-C: the server says at once that you have left
 *	curl -T FILE localhost:PORT/weigh       read as it comes, however large
 *
 * Ctrl-C at the server: what has begun may finish, for two seconds. Started once more on the same address before the
 * first has ended, the second takes over, and nobody notices.
 */
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>

#include <tether/http.h>
#include <tether/loop.h>

/* The plain case: all in one go, sent when the handler returns. */
static void hello(http_request *request, http_response *response)
{
	char text[256];
	snprintf(text, sizeof(text), "hello, %s\n", http_path_value(request, "name"));
	http_response_text(response, 200, text);
}

/* An answer without an end: a line, a wait, and the context ends either. */
static void ticks(http_request *request, http_response *response)
{
	ctx *c = http_request_ctx(request);
	uint64_t n = 0;
	char line[32];
	do {
		int size = snprintf(line, sizeof(line), "%" PRIu64 "\n", ++n);
		if (http_write(response, line, (size_t)size) != 0)
			break;
	} while (wait_sleep(c, 100 * CTX_MILLISECOND) == 0);
	printf("%s after %" PRIu64 " ticks: %s\n", http_request_peer(request), n, ctx_cause(c)->message);
}

/* Stands for a transaction: it takes a moment, and gives up with its context. */
static bool note_down(ctx *c, uint64_t weight)
{
	return wait_sleep(c, CTX_MILLISECOND) == 0 && printf("noted: %" PRIu64 " bytes\n", weight) > 0;
}

/* A body of any size, in pieces; then a write that finishes even if the client leaves now, within its own second. */
static void weigh(http_request *request, http_response *response)
{
	char piece[16 * 1024], text[64];
	uint64_t weight = 0;
	ssize_t got;
	while ((got = http_body_read(request, piece, sizeof(piece))) > 0)
		weight += (uint64_t)got;
	if (got < 0)
		return; /* it left, or stopped, or sent too much: the server sees to the answer */
	ctx_auto *whatever_happens = ctx_without_cancel(http_request_ctx(request));
	ctx_auto *second = whatever_happens ? ctx_with_timeout(whatever_happens, CTX_SECOND) : NULL;
	if (!second || !note_down(second, weight)) {
		http_response_problem(response, 503, "It could not be noted down.");
		return;
	}
	snprintf(text, sizeof(text), "%" PRIu64 " bytes\n", weight);
	http_response_text(response, 201, text);
}

/* Whoever waits for this line may stop the one before: new connections are ours. */
static void say_so(void *bound)
{
	printf("listening on %s\n", (const char *)bound);
}

int main(int argc, char **argv)
{
	char bound[128];
	const http_server_options options = {.drain_timeout = 2 * CTX_SECOND,
	                                     .share_port = true,
	                                     .notify = true,
	                                     .on_serve = say_so,
	                                     .data = bound};
	const http_route_options streams = {.streams_body = true, .body_size = SIZE_MAX};
	const int signals[] = {SIGINT, SIGTERM};
	setvbuf(stdout, NULL, _IOLBF, 0);
	ctx_auto *until_signal = ctx_with_signals(ctx_background(), signals, 2);
	http_server *server = http_server_new(&options);
	if (!until_signal || !server || http_handle(server, "GET /hello/{name}", hello, NULL) != 0 ||
	    http_handle(server, "GET /ticks", ticks, NULL) != 0 ||
	    http_handle_with(server, "PUT /weigh", &streams, weigh, NULL) != 0 ||
	    http_listen(server, argc > 1 ? argv[1] : "127.0.0.1:0", bound, sizeof(bound)) != 0) {
		perror("http_server");
		http_server_free(server);
		return EXIT_FAILURE;
	}
	http_serve(server, until_signal);
	printf("stopped: %s\n", ctx_cause(until_signal)->message);
	http_server_free(server);
	return EXIT_SUCCESS;
}
