/*
 * admin.h — what operators ask: whether albumd lives, whether it is ready, and what it counts.
 */
#ifndef ALBUMD_ADMIN_H
#define ALBUMD_ADMIN_H

#include <stdatomic.h>
#include <tether/http.h>
#include <tether/pg.h>

#include "live.h"
#include "metrics.h"

typedef struct admin {
	const http_server *server; /* the one that serves albums */
	pg_pool *pool;
	const metrics *metrics;
	live *live;
	ctx *over;              /* done when nobody is to be kept here any more */
	const char *listens_on; /* where the albums are */
	/* Without which nothing is told but whether it lives and is ready; "": none. May change meanwhile. */
	_Atomic(const char *) token;
} admin;

/* Adds the handlers; a is borrowed while the server lives. 0, or -1 with errno. */
int admin_handle(http_server *server, admin *a);

#endif
