/*
 * What the programs that test uploads share: a server whose handlers read their bodies as they come, each in its own
 * way, and what they have seen. Unlike most of these it uses Criterion, hence is all in a header.
 */
#ifndef TESTS_UPLOADS_H
#define TESTS_UPLOADS_H

#include <criterion/criterion.h>
#include <criterion/new/assert.h>
#include <errno.h>
#include <stdatomic.h>
#include <stdio.h>

#include <tether/http.h>
#include <tether/loop.h>

#include "http_peer.h"

/* What the handlers have seen of the requests so far, in all; error and cause: of the last. */
static struct {
	atomic_size_t read; /* bytes, by the handler */
	atomic_int entered, done, status, error;
	_Atomic(const ctx_error *) cause;
	atomic_bool wrong; /* a byte that was not the one sent */
	wait_event go;
} seen;

static inline void on_done(http_request *request, const http_outcome *outcome, void *data)
{
	(void)request, (void)data;
	atomic_store(&seen.status, outcome->status);
	atomic_fetch_add(&seen.done, 1);
}

static inline bool has_read(void *size)
{
	return atomic_load(&seen.read) >= *(size_t *)size;
}

/* The byte at that place of every body sent here. */
static inline char byte_at(size_t at)
{
	return (char)(at * 7 + at / 251);
}

static inline void fill(char *data, size_t size, size_t from)
{
	for (size_t i = 0; i < size; i++)
		data[i] = byte_at(from + i);
}

/* Reads to the end, and says how that was. */
static inline void read_all(http_request *request, http_response *response)
{
	char piece[10000], text[64];
	ssize_t got;
	while ((got = http_body_read(request, piece, sizeof(piece))) > 0) {
		for (ssize_t i = 0; i < got; i++)
			if (piece[i] != byte_at(seen.read + (size_t)i))
				atomic_store(&seen.wrong, true);
		atomic_fetch_add(&seen.read, (size_t)got);
	}
	atomic_store(&seen.error, got < 0 ? errno : 0);
	atomic_store(&seen.cause, ctx_cause(http_request_ctx(request)));
	snprintf(text, sizeof(text), "%zu", atomic_load(&seen.read));
	http_response_text(response, 200, text);
}

static inline void reads(http_request *request, http_response *response)
{
	atomic_fetch_add(&seen.entered, 1);
	cr_expect(eq(str, (char *)http_body(request, NULL), ""));
	read_all(request, response);
}

static inline void reads_when_told(http_request *request, http_response *response)
{
	atomic_fetch_add(&seen.entered, 1);
	wait_event_wait(NULL, &seen.go);
	read_all(request, response);
}

static inline void does_not_read(http_request *request, http_response *response)
{
	(void)request;
	atomic_fetch_add(&seen.entered, 1);
	http_response_text(response, 403, "no, thank you");
}

static inline void writes_before_the_end(http_request *request, http_response *response)
{
	char piece[100];
	atomic_fetch_add(&seen.entered, 1);
	ssize_t got = http_body_read(request, piece, 1);
	http_write(response, piece, got > 0 ? (size_t)got : 0);
	bool refused = http_body_read(request, piece, sizeof(piece)) == -1 && errno == EPIPE;
	for (int i = 0; i < 2000; i++)
		http_write(response, piece, sizeof(piece));
	http_write(response, refused ? "yes" : "no ", 3);
}

static inline void reads_none(http_request *request, http_response *response)
{
	char piece[10];
	cr_expect(eq(int, (int)http_body_read(request, piece, 0), -1));
	cr_expect(eq(int, errno, EINVAL));
	atomic_store(&seen.error, (int)http_body_read(request, piece, sizeof(piece)));
	http_response_text(response, 200, "");
}

/* Serves them all, each at a path that says what it does. End it with http_peer_stop. */
static inline http_peer_server *serve(const http_server_options *options)
{
	static const struct {
		const char *pattern;
		http_handler *handler;
		http_route_options options;
	} routes[] = {
		{"/read", reads, {.streams_body = true}},
		{"/small", reads, {.streams_body = true, .body_size = 1000}},
		{"/told", reads_when_told, {.streams_body = true, .body_size = (size_t)1 << 30}},
		{"/forbidden", does_not_read, {.streams_body = true, .body_size = (size_t)1 << 30}},
		{"/write", writes_before_the_end, {.streams_body = true}},
		{"/none", reads_none, {.streams_body = true}},
		{"/whole", read_all, {.body_size = 1000}},
	};
	http_server_options chosen = {0};
	if (options)
		chosen = *options;
	chosen.on_done = on_done;
	http_peer_server *server = http_peer_prepare(&chosen);
	for (size_t i = 0; i < sizeof(routes) / sizeof(*routes); i++)
		cr_assert(eq(int,
		             http_handle_with(http_peer_server_of(server), routes[i].pattern,
		                              &routes[i].options, routes[i].handler, NULL),
		             0));
	http_peer_begin(server, NULL);
	return server;
}

#endif
