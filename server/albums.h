/*
 * albums.h — the albums resource.
 */
#ifndef ALBUMD_ALBUMS_H
#define ALBUMD_ALBUMS_H

#include <stdbool.h>
#include <stdint.h>
#include <tether/http.h>
#include <tether/pg.h>

#include "metrics.h"

typedef struct albums {
	pg_pool *pool;
	int64_t query_timeout;
	bool allow_delay;
} albums;

/* Adds the handlers; a is borrowed while the server lives. 0, or -1 with errno. */
int albums_handle(http_server *server, metrics *m, albums *a);

#endif
