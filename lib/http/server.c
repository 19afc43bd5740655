/*
 * The server: its workers, and the drain.
 *
 *	     http_serve         its context is done        drain timeout, or http_server_abort
 *	NEW ───────────► SERVING ─────────────────► DRAINING ──────────────────► (cut)
 *	                                               │ the last connection is closed │
 *	                                               └──────────► STOPPED ◄──────────┘
 *
 * Each worker is a thread with a loop. All workers watch all listening sockets; whoever is awake first gets
 * the connection, which then stays with its worker. http_serve itself runs on the caller's thread and only
 * waits: for its context, for the workers to run out of connections, for the drain timeout.
 */
#include <errno.h>
#include <signal.h>
#include <unistd.h>

#include "http_priv.h"

enum {
	CONNECTIONS_DEFAULT = 10000,
	REQUESTS_DEFAULT = 10000,
	BODY_SIZE_DEFAULT = 1024 * 1024,
	STACKS_KEPT = 512,
};

static const int64_t LONGEST_TIMEOUT = INT32_MAX * CTX_MILLISECOND; /* 24 days */
static const int64_t CUT_GRACE = CTX_SECOND; /* for handlers, cancelled at the drain timeout, to answer */

/*
 * For handshakes that began with us to end with us: the kernel drops what a socket that is closed had only half
 * accepted, also where another listens on the same port (tcp_migrate_req is off by default). A packet that was lost is
 * sent again after a second.
 */
static const int64_t HANDSHAKE_GRACE = 1200 * CTX_MILLISECOND;

void http_misuse(const char *call, const char *why)
{
	fprintf(stderr, "tether: %s: %s\n", call, why);
	abort();
}

/* ---- Making a server --------------------------------------------------------------------------------- */

static void fill_defaults(http_server_options *options)
{
	long cpus = sysconf(_SC_NPROCESSORS_ONLN);
	if (options->workers == 0)
		options->workers = cpus >= 4 ? (size_t)cpus / 2 : 1;
	if (options->connections == 0)
		options->connections = CONNECTIONS_DEFAULT;
	if (options->requests == 0)
		options->requests = REQUESTS_DEFAULT;
	if (options->head_size > HEAD_SIZE_MAX)
		options->head_size = HEAD_SIZE_MAX;
	if (options->body_size == 0)
		options->body_size = BODY_SIZE_DEFAULT;
	if (options->header_timeout == 0)
		options->header_timeout = 10 * CTX_SECOND;
	if (options->body_timeout == 0)
		options->body_timeout = 30 * CTX_SECOND;
	if (options->write_timeout == 0)
		options->write_timeout = 30 * CTX_SECOND;
	if (options->idle_timeout == 0)
		options->idle_timeout = 60 * CTX_SECOND;
	if (options->drain_timeout == 0)
		options->drain_timeout = 10 * CTX_SECOND;
	/* The kernel and libmicrohttpd count in fewer bits: more than anybody means could come to anything. */
	int64_t *const times[] = {&options->header_timeout, &options->body_timeout, &options->write_timeout,
	                          &options->idle_timeout};
	for (size_t i = 0; i < sizeof(times) / sizeof(*times); i++)
		if (*times[i] > LONGEST_TIMEOUT)
			*times[i] = LONGEST_TIMEOUT;
}

http_server *http_server_new(const http_server_options *options)
{
	http_server *server = calloc(1, sizeof(*server));
	if (!server)
		return NULL;
	server->abort = ctx_with_cancel(ctx_background());
	if (!server->abort) {
		free(server);
		return NULL;
	}
	if (options)
		server->options = *options;
	fill_defaults(&server->options);
	if (!admit_init(server)) {
		admit_free(server);
		ctx_release(server->abort);
		free(server);
		return NULL;
	}
	pthread_mutex_init(&server->lock, NULL);
	return server;
}

void http_server_free(http_server *server)
{
	if (!server)
		return;
	if (server->state == SERVER_SERVING || server->state == SERVER_DRAINING)
		http_misuse("http_server_free", "called while the server serves");
	for (size_t i = 0; i < server->listener_count; i++) {
		listener_close(&server->listeners[i]);
		http_tls_free(server->listeners[i].tls);
	}
	free(server->listeners);
	router_free(&server->router);
	admit_free(server);
	ctx_release(server->abort);
	pthread_mutex_destroy(&server->lock);
	free(server);
}

int http_handle(http_server *server, const char *pattern, http_handler *handler, void *data)
{
	return http_handle_with(server, pattern, NULL, handler, data);
}

int http_handle_with(http_server *server, const char *pattern, const http_route_options *options,
                     http_handler *handler, void *data)
{
	if (server->state != SERVER_NEW)
		http_misuse("http_handle", "called after http_serve");
	return router_add(&server->router, pattern, options, handler, data);
}

int http_listen(http_server *server, const char *address, char *bound, size_t bound_size)
{
	return http_listen_tls(server, address, NULL, bound, bound_size);
}

int http_listen_tls(http_server *server, const char *address, http_tls *tls, char *bound, size_t bound_size)
{
	if (server->state != SERVER_NEW)
		http_misuse("http_listen", "called after http_serve");
	listener *more = realloc(server->listeners, (server->listener_count + 1) * sizeof(*more));
	if (!more)
		return -1;
	server->listeners = more;
	if (address_listen(address, server->options.share_port, &more[server->listener_count], bound,
	                   bound_size) != 0)
		return -1;
	more[server->listener_count++].tls = tls ? tls_ref(tls) : NULL;
	return 0;
}

/* ---- The end of a worker ----------------------------------------------------------------------------- */

/* In a drain, with no connection left, there is nothing more to come. */
static void stop_if_idle(worker *w)
{
	if (!w->draining || w->idle || w->conns)
		return;
	w->idle = true;
	loop_stop(w->loop);
	if (atomic_fetch_sub(&w->server->workers_busy, 1) == 1)
		wait_event_set(&w->server->workers_idle);
}

void worker_conn_closed(worker *w)
{
	stop_if_idle(w);
}

/* On the worker's loop. */
static void drain_worker(loop_task *task)
{
	worker *w = container_of(task, worker, drain);
	acceptors_finish(w);
	w->draining = true;
	conns_drain(w);
	stop_if_idle(w);
}

/* On the worker's loop: the patience is at its end. */
static void cut_worker(loop_task *task)
{
	worker *w = container_of(task, worker, cut);
	for (conn *c = w->conns; c; c = c->next)
		conn_kick(c);
}

/* Closes the handles, on the loop's thread, or before the loop has run. */
static void close_handles(worker *w)
{
	acceptors_close(w);
	uv_close((uv_handle_t *)&w->ticks, NULL);
	h2_stop(w);
	h1_stop(w->h1);
	w->h1 = NULL;
	linger_stop(w);
}

static void loop_ends(loop_exit *hook, loop *l)
{
	(void)l;
	close_handles(container_of(hook, worker, on_exit));
}

/* ---- The workers ------------------------------------------------------------------------------------- */

static int worker_init(worker *w, http_server *server, ctx *base)
{
	w->server = server;
	w->drain.fn = drain_worker;
	w->cut.fn = cut_worker;
	w->on_exit.fn = loop_ends;
	trace_seed(w);
	w->acceptors = calloc(server->listener_count + 1, sizeof(*w->acceptors));
	w->base = ctx_with_cancel(base);
	w->loop = w->acceptors && w->base ? loop_new(&(loop_options){.stacks_kept = STACKS_KEPT}) : NULL;
	w->h1 = w->loop ? h1_new(w) : NULL;
	if (!w->h1)
		return -1;
	uv_timer_init(loop_uv(w->loop), &w->ticks);
	acceptors_open(w);
	h2_start(w);
	loop_exit_add(w->loop, &w->on_exit);
	return 0;
}

/* Of a worker that has ended, or never run. */
static void worker_destroy(worker *w)
{
	if (w->h1 && loop_exit_remove(w->loop, &w->on_exit))
		close_handles(w);
	loop_free(w->loop);
	request_free_spare(w);
	ctx_release(w->base);
	free(w->acceptors);
}

static void *worker_main(void *arg)
{
	worker *w = arg;
	loop_run(w->loop);
	return NULL;
}

/* Signals are for the program's own threads. */
static int start_thread(worker *w)
{
	sigset_t all, before;
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &before);
	int error = pthread_create(&w->thread, NULL, worker_main, w);
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	errno = error;
	return error ? -1 : 0;
}

static void post_to_all(http_server *server, size_t count, bool cut)
{
	for (size_t i = 0; i < count; i++)
		loop_post_task(server->workers[i].loop,
		               cut ? &server->workers[i].cut : &server->workers[i].drain);
}

/* Joins the first so many, and frees all. */
static void join_workers(http_server *server, size_t running)
{
	for (size_t i = 0; i < running; i++)
		pthread_join(server->workers[i].thread, NULL);
	pthread_mutex_lock(&server->lock);
	for (size_t i = 0; i < server->worker_count; i++)
		worker_destroy(&server->workers[i]);
	free(server->workers);
	server->workers = NULL;
	server->worker_count = 0;
	pthread_mutex_unlock(&server->lock);
}

static int start_workers(http_server *server, ctx *base)
{
	size_t count = server->options.workers, running = 0;
	worker *workers = calloc(count, sizeof(*workers));
	if (!workers)
		return -1;
	pthread_mutex_lock(&server->lock);
	server->workers = workers;
	int result = 0;
	while (server->worker_count < count && result == 0)
		result = worker_init(&workers[server->worker_count++], server, base);
	for (size_t i = 0; i < server->listener_count && result == 0; i++)
		result = listener_open(&server->listeners[i]);
	pthread_mutex_unlock(&server->lock);
	atomic_store(&server->workers_accepting, count);
	atomic_store(&server->workers_busy, count);
	while (running < count && result == 0)
		if ((result = start_thread(&workers[running])) == 0)
			running++;
	if (result == 0)
		return 0;
	int error = errno;
	post_to_all(server, running, false);
	join_workers(server, running);
	errno = error;
	return -1;
}

/* ---- Serving and draining ---------------------------------------------------------------------------- */

static bool enter(http_server *server, enum server_state from, enum server_state to)
{
	pthread_mutex_lock(&server->lock);
	bool entered = server->state == from;
	if (entered)
		server->state = to;
	pthread_mutex_unlock(&server->lock);
	return entered;
}

/* True: all connections are closed. */
static bool wait_for_idle(http_server *server, ctx *patience, int64_t timeout)
{
	ctx_auto *limit = ctx_with_timeout(patience, timeout);
	return limit && wait_event_wait(limit, &server->workers_idle) == 0;
}

/* Goes on serving while others notice that it is about to go. */
static void leave(http_server *server)
{
	const http_server_options *options = &server->options;
	int64_t delay = options->drain_delay;
	atomic_store(&server->leaving, true);
	if (options->notify)
		systemd_notify("STOPPING=1");
	if (options->share_port && delay < HANDSHAKE_GRACE)
		delay = HANDSHAKE_GRACE;
	ctx_auto *waiting = delay ? ctx_with_timeout(server->abort, delay) : NULL;
	if (waiting)
		ctx_wait(waiting);
}

static void drain(http_server *server, ctx *base)
{
	enter(server, SERVER_SERVING, SERVER_DRAINING);
	leave(server);
	post_to_all(server, server->worker_count, false);
	if (!wait_for_idle(server, server->abort, server->options.drain_timeout)) {
		ctx_cancel_cause(base, &HTTP_SERVER_SHUTDOWN);
		if (!wait_for_idle(server, ctx_background(), CUT_GRACE)) {
			post_to_all(server, server->worker_count, true);
			wait_event_wait(NULL, &server->workers_idle);
		}
	}
	join_workers(server, server->worker_count);
	enter(server, SERVER_DRAINING, SERVER_STOPPED);
}

struct abort_hook {
	ctx_hook hook;
	ctx *serving;
};

static void on_abort(ctx_hook *hook)
{
	ctx_cancel(container_of(hook, struct abort_hook, hook)->serving);
}

int http_serve(http_server *server, ctx *c)
{
	if (loop_current())
		http_misuse("http_serve", "called on a loop's thread, which it would block");
	if (server->listener_count == 0 || !enter(server, SERVER_NEW, SERVER_SERVING)) {
		errno = EINVAL;
		return -1;
	}
	/* Requests have the values of c, but not its end: they may finish. */
	ctx *values = ctx_without_cancel(c);
	ctx *base = values ? ctx_with_cancel(values) : NULL;
	ctx *serving = base ? ctx_with_cancel(c) : NULL;
	int result = serving ? start_workers(server, base) : -1;
	if (result == 0) {
		struct abort_hook abort = {.serving = serving};
		if (server->options.notify)
			systemd_notify("READY=1");
		if (server->options.on_serve)
			server->options.on_serve(server->options.data);
		ctx_hook_add(server->abort, &abort.hook, on_abort);
		ctx_wait(serving);
		ctx_hook_remove(server->abort, &abort.hook);
		drain(server, base);
	} else {
		enter(server, SERVER_SERVING, SERVER_NEW);
	}
	int error = errno;
	ctx_release(serving);
	ctx_release(base);
	ctx_release(values);
	errno = error;
	return result;
}

void http_server_abort(http_server *server)
{
	ctx_cancel(server->abort);
}

void http_server_stats_get(const http_server *server, http_server_stats *stats)
{
	pthread_mutex_t *lock = (pthread_mutex_t *)(uintptr_t)&server->lock;
	pthread_mutex_lock(lock);
	*stats = (http_server_stats){
		.connections = atomic_load(&server->connections),
		.requests = atomic_load(&server->requests),
		.connections_total = atomic_load(&server->connections_total),
		.connections_refused = atomic_load(&server->connections_refused),
		.address_refused = atomic_load(&server->address_refused),
		.requests_refused = atomic_load(&server->requests_refused),
		.handlers = atomic_load(&server->handlers),
		.requests_total = atomic_load(&server->requests_total),
		.disconnects_total = atomic_load(&server->disconnects_total),
		.draining = server->state == SERVER_DRAINING,
	};
	for (size_t i = 0; i < server->worker_count; i++) {
		stats->fibers += loop_fibers(server->workers[i].loop);
		stats->stacks += loop_stacks(server->workers[i].loop);
		int64_t lag_ns = atomic_load_explicit(&server->workers[i].lag_ns, memory_order_relaxed);
		if (lag_ns > stats->lag_ns)
			stats->lag_ns = lag_ns;
	}
	pthread_mutex_unlock(lock);
}
