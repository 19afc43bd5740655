/*
 * memory.h — gives memory back to the system when a crowd of clients has gone.
 */
#ifndef ALBUMD_MEMORY_H
#define ALBUMD_MEMORY_H

#include <tether/ctx.h>
#include <tether/http.h>

/* Watches the server's clients until c is done. Blocks; on a thread of its own. */
void memory_watch(ctx *c, const http_server *server);

#endif
