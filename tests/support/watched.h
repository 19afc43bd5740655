/*
 * An HTTP server that is watched: what its hooks are told of the requests, what its handlers see, and the handlers that
 * most tests want. The counts are the whole program's.
 */
#ifndef TESTS_WATCHED_H
#define TESTS_WATCHED_H

#include <stdatomic.h>

#include <tether/http.h>
#include <tether/loop.h>

extern struct seen {
	/* By the hooks. */
	atomic_int begun; /* requests whose head was read */
	atomic_int done;  /* requests that are over */
	atomic_int left;  /* of these, with 499 and HTTP_CLIENT_DISCONNECTED */
	/* Of the last that was over. */
	atomic_int status;
	atomic_llong bytes;
	_Atomic(const ctx_error *) done_cause;
	/* By the handlers: those that have begun, and returned, and why the last one's context ended. */
	atomic_int entered, returned;
	_Atomic(const ctx_error *) cause;
	wait_event go; /* for handlers that wait to be told */
} seen;

/* on_request and on_done, and the options that are these two. */
bool see_request(http_request *request, void *data);
void see_done(http_request *request, const http_outcome *outcome, void *data);
extern const http_server_options watched;

/* Answers 200: "hello", or with the size of the body. */
http_handler answers_hello, answers_body_size;

/* Waits for the end of its context; or streams until then. */
http_handler waits_until_done, floods_until_done;

#endif
