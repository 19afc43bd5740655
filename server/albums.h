/*
 * albums.h — the albums resource: its routes, and what holds for all of them.
 */
#ifndef ALBUMD_ALBUMS_H
#define ALBUMD_ALBUMS_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <tether/http.h>
#include <tether/pg.h>

#include "metrics.h"

typedef struct albums {
	pg_pool *pool;
	int64_t query_timeout;
	const char *cors_origin; /* the origin that browsers may call from, "*" for any; "": none */
	/* These may change while albumd serves. */
	_Atomic(const char *) write_token; /* who changes something must bear it; "": anybody may */
	atomic_bool allow_delay;           /* ?delay=30s */
	atomic_bool allow_all;             /* ?limit=all */
} albums;

/* Adds the handlers; a is borrowed while the server lives. 0, or -1 with errno. */
int albums_handle(http_server *server, metrics *m, const albums *a);

#endif
