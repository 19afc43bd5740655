/*
 * The bridge between TLS and the protocols: an end on one side of it is an end on the other, in time, and nothing is
 * left of it. What it carries is http_bridge_bytes.c's, how its sessions begin http_bridge_sessions.c's.
 */
#include <criterion/criterion.h>
#include <criterion/new/assert.h>
#include <dirent.h>

#include "bridges.h"

/* ---- Leaving ----------------------------------------------------------------------------------------- */

static const struct stage {
	const char *name, *sends;
	int begun, entered;
} stages[] = {
	{"while the handler waits", GET("/wait"), 1, 1},
	{"with a request pipelined behind", GET("/wait") GET("/hello"), 1, 1},
	{"with half a request behind", GET("/wait") "GET /hel", 1, 1},
	{"while the body arrives", "POST /wait HTTP/1.1\r\nHost: h\r\nContent-Length: 40\r\n\r\nbody", 1, 0},
	{"in the middle of the head", "GET /wait HTTP/1.1\r\nHo", 0, 0},
	{"after the handshake", "", 0, 0},
};

Test(http_bridge, a_client_that_leaves_is_gone_at_any_stage, .timeout = 120)
{
	http_peer_server *server = serve((http_server_options){0});
	int over = 0;
	for (size_t s = 0; s < sizeof(stages) / sizeof(*stages); s++)
		for (size_t w = 0; w < TLS_WAYS; w++) {
			const struct stage *stage = &stages[s];
			int begun = seen.begun, entered = seen.entered;
			tls_peer *p = tls_peer_connect(server, NULL);
			if (stage->sends[0])
				cr_assert(tls_peer_send(p, stage->sends));
			cr_assert(eventually_counts(&seen.begun, begun + stage->begun, 10000), "%s",
			          stage->name);
			cr_assert(eventually_counts(&seen.entered, entered + stage->entered, 10000), "%s",
			          stage->name);
			tls_ways[w].leave(p);
			over += stage->begun;
			cr_assert(eventually_counts(&seen.done, over, 10000),
			          "%s, %s: the request is not over", stage->name, tls_ways[w].name);
			cr_assert(eventually(http_peer_is_quiet, server, 10000),
			          "%s, %s: the connection is not closed", stage->name, tls_ways[w].name);
			cr_assert(eq(int, seen.left, over), "%s, %s: not taken for a client that left",
			          stage->name, tls_ways[w].name);
			if (stage->entered)
				cr_assert(eq(ptr, (void *)seen.cause, (void *)&HTTP_CLIENT_DISCONNECTED),
				          "%s, %s", stage->name, tls_ways[w].name);
			if (tls_ways[w].stays) {
				cr_expect(ne(int, tls_peer_end(p), TLS_HANGS),
				          "%s, %s: the server keeps its side open", stage->name,
				          tls_ways[w].name);
				tls_peer_cut(p);
			}
		}
	http_peer_stop(server);
}

/* More than all buffers on the way hold lies before the FIN, and the handler reads none of it. */
Test(http_bridge, a_client_that_leaves_is_gone_past_full_buffers, .timeout = 60)
{
	http_peer_server *server = serve((http_server_options){0});
	static char piece[16384];
	memset(piece, 'x', sizeof(piece));
	for (size_t w = 0; w < 3; w++) {
		int entered = seen.entered, left = seen.left;
		tls_peer *p = tls_peer_connect(server, NULL);
		cr_assert(tls_peer_send(p, GET("/wait")));
		cr_assert(eventually_counts(&seen.entered, entered + 1, 10000));
		for (int i = 0; i < 16; i++) /* into the kernel's buffers, which take it all */
			cr_assert(tls_peer_send_bytes(p, piece, sizeof(piece)));
		tls_ways[w].leave(p);
		cr_assert(eventually_counts(&seen.left, left + 1, 10000), "%s", tls_ways[w].name);
		cr_assert(eventually(http_peer_is_quiet, server, 10000), "%s", tls_ways[w].name);
	}
	http_peer_stop(server);
}

/* By close_notify a client may end its side and be answered; a FIN alone may be somebody's who cut the line. */
Test(http_bridge, a_half_closed_client_may_be_waiting, .timeout = 60)
{
	http_peer_server *server = serve((http_server_options){.half_close_is_waiting = true});
	for (int i = 0; i < 10; i++) {
		int entered = seen.entered;
		tls_peer *p = tls_peer_connect(server, NULL);
		cr_assert(tls_peer_send(p, GET("/sleep")));
		if (i % 2)
			cr_assert(eventually_counts(&seen.entered, entered + 1, 10000));
		tls_peer_bye(p);
		if (i % 3 == 0)
			tls_peer_half_cut(p);
		cr_assert(eq(int, status_of(p), 200), "round %d", i);
		cr_expect(eq(int, tls_peer_end(p), TLS_CLOSE_NOTIFY));
		tls_peer_cut(p);
	}
	cr_expect(eq(int, seen.left, 0));
	int entered = seen.entered;
	tls_peer *p = tls_peer_connect(server, NULL);
	cr_assert(tls_peer_send(p, GET("/wait")));
	cr_assert(eventually_counts(&seen.entered, entered + 1, 10000));
	tls_peer_half_cut(p);
	cr_assert(eventually_counts(&seen.left, 1, 10000));
	cr_assert(eventually(http_peer_is_quiet, server, 10000));
	tls_peer_cut(p);
	http_peer_stop(server);
}

/* ---- The server's own ends --------------------------------------------------------------------------- */

Test(http_bridge, idle_connections_end_with_close_notify, .timeout = 60)
{
	http_peer_server *server = serve((http_server_options){.idle_timeout = 200 * CTX_MILLISECOND});
	tls_peer *p = tls_peer_connect(server, NULL);
	cr_assert(tls_peer_send(p, GET("/hello")));
	cr_expect(eq(int, status_of(p), 200));
	cr_expect(eq(int, tls_peer_end(p), TLS_CLOSE_NOTIFY));
	tls_peer_cut(p);
	cr_expect(eventually(http_peer_is_quiet, server, 10000));
	http_peer_stop(server);
}

Test(http_bridge, a_drain_ends_all, .timeout = 60)
{
	http_peer_server *server = serve((http_server_options){.drain_timeout = 500 * CTX_MILLISECOND});
	int silent = http_peer_connect(server), half = http_peer_connect(server);
	http_peer_send_bytes(half, "\x16\x03\x01\x02", 4);
	tls_peer *fresh = tls_peer_connect(server, NULL), *used = tls_peer_connect(server, NULL);
	tls_peer *asleep = tls_peer_connect(server, NULL), *waiting = tls_peer_connect(server, NULL);
	tls_peer *flooded = tls_peer_connect(server, NULL);
	cr_assert(tls_peer_send(used, GET("/hello")));
	cr_expect(eq(int, status_of(used), 200));
	cr_assert(tls_peer_send(asleep, GET("/sleep")));
	cr_assert(tls_peer_send(waiting, GET("/wait")));
	cr_assert(tls_peer_send(flooded, GET("/flood")));
	cr_assert(eventually_counts(&seen.entered, 3, 10000));
	http_peer_drain(server);
	cr_expect(eq(int, tls_peer_end(fresh), TLS_CLOSE_NOTIFY));
	cr_expect(eq(int, tls_peer_end(used), TLS_CLOSE_NOTIFY));
	cr_expect(http_peer_closed(silent));
	cr_expect(eq(int, status_of(asleep), 200));
	cr_expect(eq(int, tls_peer_end(asleep), TLS_CLOSE_NOTIFY));
	cr_expect(eq(int, status_of(waiting), 200), "a handler cancelled by the drain could not answer");
	cr_expect(http_peer_closed(half));
	cr_expect(eq(int, http_peer_stop(server), 0));
	cr_expect(eq(int, seen.done, 4));
	close(silent);
	close(half);
	tls_peer_cut(fresh);
	tls_peer_cut(used);
	tls_peer_cut(asleep);
	tls_peer_cut(waiting);
	tls_peer_cut(flooded);
}

/* ---- What it costs ----------------------------------------------------------------------------------- */

Test(http_bridge, a_connection_counts_once, .timeout = 60)
{
	http_peer_server *server = serve((http_server_options){.connections = 2});
	tls_peer *first = tls_peer_connect(server, NULL), *second = tls_peer_connect(server, NULL);
	cr_assert(tls_peer_send(first, GET("/hello")) && tls_peer_send(second, GET("/hello")));
	cr_expect(eq(int, status_of(first), 200));
	cr_expect(eq(int, status_of(second), 200));
	http_server_stats stats;
	http_server_stats_get(http_peer_server_of(server), &stats);
	cr_expect(eq(sz, stats.connections, 2));
	int third = http_peer_connect(server);
	cr_expect(http_peer_closed(third));
	close(third);
	tls_peer_close(first);
	tls_peer_close(second);
	cr_expect(eventually(http_peer_is_quiet, server, 10000));
	http_server_stats_get(http_peer_server_of(server), &stats);
	cr_expect(eq(u64, stats.connections_refused, 1));
	expect_serves(server);
	http_peer_stop(server);
}

static size_t open_files(void)
{
	size_t n = 0;
	DIR *dir = opendir("/proc/self/fd");
	while (readdir(dir))
		n++;
	closedir(dir);
	return n;
}

struct baseline {
	http_peer_server *server;
	size_t files;
};

/* A connection counts no more a moment before its descriptors are closed: the baseline may have seen some of those. */
static bool back_at_baseline(void *arg)
{
	const struct baseline *baseline = arg;
	return http_peer_is_quiet(baseline->server) && open_files() <= baseline->files;
}

/* Every way of leaving, in the middle of a request, a thousand times over all. */
Test(http_bridge, a_thousand_leave_nothing_behind, .timeout = 300)
{
	enum { BATCH = 50 };
	const int total = support_patience() > 5 ? 200 : 1000;
	struct baseline baseline = {.server = serve((http_server_options){.workers = 2})};
	expect_serves(baseline.server);
	cr_assert(eventually(http_peer_is_quiet, baseline.server, 10000));
	baseline.files = open_files();
	for (int i = 0; i < total; i += BATCH) {
		tls_peer *peers[BATCH];
		int entered = seen.entered;
		for (int j = 0; j < BATCH; j++) {
			peers[j] = tls_peer_connect(baseline.server, NULL);
			cr_assert(tls_peer_send(peers[j], GET("/wait")));
		}
		cr_assert(eventually_counts(&seen.entered, entered + BATCH, 10000));
		for (int j = 0; j < BATCH; j++)
			tls_ways[j % TLS_WAYS].leave(peers[j]);
		for (int j = 0; j < BATCH; j++)
			if (tls_ways[j % TLS_WAYS].stays)
				tls_peer_cut(peers[j]);
	}
	cr_expect(eventually(back_at_baseline, &baseline, 10000));
	cr_expect(eq(int, seen.left, total));
	http_peer_stop(baseline.server);
}
