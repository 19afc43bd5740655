#include "watched.h"

#include <stdio.h>

struct seen seen = {.go = WAIT_EVENT_INIT};

bool see_request(http_request *request, void *data)
{
	(void)request, (void)data;
	atomic_fetch_add(&seen.begun, 1);
	return true;
}

void see_done(http_request *request, const http_outcome *outcome, void *data)
{
	(void)request, (void)data;
	seen.status = outcome->status;
	seen.bytes = (long long)outcome->body_bytes;
	seen.done_cause = outcome->cause;
	if (outcome->status == 499 && outcome->cause == &HTTP_CLIENT_DISCONNECTED)
		atomic_fetch_add(&seen.left, 1);
	atomic_fetch_add(&seen.done, 1);
}

const http_server_options watched = {.on_request = see_request, .on_done = see_done};

void answers_hello(http_request *request, http_response *response)
{
	(void)request;
	http_response_text(response, 200, "hello");
}

void answers_body_size(http_request *request, http_response *response)
{
	char text[32];
	size_t size;
	http_body(request, &size);
	snprintf(text, sizeof(text), "%zu", size);
	http_response_text(response, 200, text);
}

void waits_until_done(http_request *request, http_response *response)
{
	ctx *c = http_request_ctx(request);
	atomic_fetch_add(&seen.entered, 1);
	wait_done(c);
	seen.cause = ctx_cause(c);
	http_response_text(response, 200, "nobody will read this");
	atomic_fetch_add(&seen.returned, 1);
}

void floods_until_done(http_request *request, http_response *response)
{
	static const char data[4096];
	(void)request;
	atomic_fetch_add(&seen.entered, 1);
	while (http_write(response, data, sizeof(data)) == 0)
		;
	atomic_fetch_add(&seen.returned, 1);
}
