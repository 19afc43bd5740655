#include "memory.h"

#include <stdlib.h>

#ifdef __GLIBC__
#include <malloc.h>
#endif

#include <tether/loop.h>

#include "log.h"

/*
 * What a client has cost is free again when it has gone, but not the system's: glibc's allocator keeps what lies below
 * anything that is still in use, that is, nearly all of what a crowd has left behind, for as long as the process lives.
 * Asked to, it gives back every page with nothing in it. That takes it some milliseconds during which others may have
 * to wait for memory, and so it is asked only when many have gone and no others have come for a while.
 */
enum {
	CROWD = 200,    /* clients: some megabytes */
	CALM = 3,       /* looks, a second apart */
	KEPT_SHARE = 2, /* of a crowd one in so many is none */
};

typedef struct crowd {
	size_t most;   /* clients at once, since memory was given back last */
	size_t before; /* at the last look */
	int calm;      /* looks at which there were no more than at the one before */
} crowd;

static bool has_gone(crowd *c, size_t now)
{
	c->most = now > c->most ? now : c->most;
	c->calm = now <= c->before ? c->calm + 1 : 0;
	c->before = now;
	return c->most - now >= CROWD && now * KEPT_SHARE <= c->most && c->calm >= CALM;
}

static void give_back(void)
{
#ifdef __GLIBC__
	malloc_trim(0);
	log_message(LOG_DEBUG, "a crowd has gone, and its memory is given back", NULL, NULL);
#endif
}

void memory_watch(ctx *c, const http_server *server)
{
	crowd clients = {0};
	while (wait_sleep(c, CTX_SECOND) == 0) {
		http_server_stats stats;
		http_server_stats_get(server, &stats);
		size_t now = stats.connections + stats.requests;
		if (has_gone(&clients, now)) {
			give_back();
			clients.most = now;
		}
	}
}
