/*
 * What the files of this layer share. It is in two parts, a request (request_priv.h) and what it comes by
 * (conn_priv.h), both included here. The files, in the order in which a request meets them:
 *
 *	systemd.c   sockets that a service manager hands over
 *	server.c    owns the workers and the drain                   listen.c: addresses
 *	accept.c    from a listening socket to a protocol
 *	admit.c     who is let in
 *	conn.c      connections and their time limits                hangup.c: notices that a client has left
 *	pace.c      how slowly a client may take what it is sent     socket.c: what the kernel knows of that
 *	linger.c    how an answer arrives though its request was not read
 *	context.c   their contexts, and what these know
 *	bridge*.c   where TLS ends                                   tls.c: certificates
 *	h1*.c       HTTP/1.1: libmicrohttpd in a worker's loop        h1_priv.h: what they share
 *	h2*.c       HTTP/2: nghttp2 in a worker's loop               h2_priv.h: what they share
 *	request.c   a request from its head to its end, whatever protocol brought it; arena.c: its memory
 *	head.c      what its head says                               url.c: escapes, queries
 *	body.c      its body, whole or streamed
 *	validate.c  what is no request                              trace.c: what it is called in logs
 *	router.c    which handler
 *	response.c  what the handler answers                        get.c: asks another server, for health checks
 *
 * Everything of one connection happens on one worker's thread, so nothing here is locked or atomic unless
 * it says so.
 */
#ifndef TETHER_HTTP_PRIV_H
#define TETHER_HTTP_PRIV_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#include <sys/socket.h>
#include <uv.h>

#include <tether/ctx.h>
#include <tether/http.h>
#include <tether/loop.h>

#define container_of(pointer, type, member) ((type *)(void *)((char *)(pointer)-offsetof(type, member)))

typedef struct address_count address_count;
typedef struct arena arena;
typedef struct bridge bridge;
typedef struct conn conn;
typedef struct h1 h1;
typedef struct h2 h2;
typedef struct http_route http_route;
typedef struct worker worker;

/* A broken program, told in one line; the library goes no further with it. */
_Noreturn void http_misuse(const char *call, const char *why);

/* In this order: connections and the server know whole requests, these only that there are connections. */
// clang-format off
#include "request_priv.h"
#include "conn_priv.h"
// clang-format on

#endif
