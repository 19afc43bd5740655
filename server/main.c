/*
 * main: start-up, wiring, signals of albumd. What its other files are for:
 *
 *	config, setting, parse              what it is told            complain: when it cannot do that
 *	albums, album                       the resource, and one      handler: what its handlers begin with
 *	album_get, album_list, album_write  its handlers               answer, reason: what they answer, and why
 *	accept, auth, etag                  what requests ask for, by whom, and on what condition
 *	access, log, metrics                what is told of requests   live, live_json, requests: of those alive
 *	admin, health, database             how it is doing            openapi: what it says of itself
 *	json, text                          writing
 *
 * Its threads:
 *
 *	main thread        serves albums (http_serve), drains, then takes everything down
 *	admin thread       serves the admin listener until the albums' drain is over
 *	signal thread      says that the drain has begun, and makes a second signal end it at once
 *	reload thread      reads the settings, the files they name and the certificate again at SIGHUP
 *	sampler thread     notes each second how the pool is, for /requests
 *	memory thread      gives memory back when a crowd has gone
 *	first-look thread  waits for a database that was not there at the start, for the log
 */
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#include <tether/ctx.h>
#include <tether/http.h>
#include <tether/loop.h>
#include <tether/pg.h>

#include "access.h"
#include "admin.h"
#include "albums.h"
#include "complain.h"
#include "config.h"
#include "database.h"
#include "health.h"
#include "log.h"
#include "memory.h"
#include "metrics.h"
#include "openapi.h"

enum { EXIT_OK = 0, EXIT_FAILED = 1, EXIT_WRONG_USAGE = 2 };

/* SIGHUP asks for the settings to be read again; but from a terminal it says, too, that the terminal is closed. */
static const ctx_error TERMINAL_GONE = {ECANCELED, "the terminal is gone"};

typedef struct app {
	int argc;
	char **argv;
	config config, reloaded; /* as it started, and as it was last read */
	metrics *metrics;
	live *live;
	access_log access;
	pg_pool *pool;
	http_tls *tls; /* NULL: plain */
	albums albums;
	http_server *server;
	admin admin;
	http_server *admin_server; /* NULL: off */
	char bound[128], admin_bound[128];
	bool on_terminal, database_seen, served;
	wait_event admin_serves; /* or never will */
	ctx *stop;               /* done at the first signal */
	ctx *over;               /* done when the drain is over */
	ctx *hangup;             /* done at SIGHUP */
	pthread_t threads[6];
} app;

/* ---- Opening: each says what is wrong, and how to mend it -------------------------------------------- */

/* A connection is a file descriptor: as many as the administrator allows, not as many as select(2) could take. */
static void raise_file_limit(void)
{
	struct rlimit files;
	if (getrlimit(RLIMIT_NOFILE, &files) == 0) {
		files.rlim_cur = files.rlim_max;
		setrlimit(RLIMIT_NOFILE, &files);
	}
}

static int open_pool(app *a)
{
	const config *c = &a->config;
	pg_error error;
	a->pool = pg_pool_open(
		&(pg_pool_options){
			.conninfo = c->database_url,
			.application_name = "albumd",
			.size = c->pool_size,
			.min_idle = c->pool_min_idle,
			.max_idle = c->pool_max_idle,
			.max_lifetime = c->pool_max_lifetime,
			.max_idle_time = c->pool_max_idle_time,
			.statements = (pg_statements)c->statements,
			.queue_size = c->queue_size,
			/* PostgreSQL's own limit must not be what ends a query while we are alive. */
			.statement_timeout = c->query_timeout + CTX_SECOND,
			.liveness_interval = CTX_SECOND,
			.on_settled = access_settled,
			.on_query = access_query,
			.tag = access_tag,
			.data = &a->access,
		},
		&error);
	if (a->pool)
		return EXIT_OK;
	complain("--database-url: %s", error.message);
	return error.kind == PG_ERROR_USAGE ? EXIT_WRONG_USAGE : EXIT_FAILED;
}

static int open_tls(app *a)
{
	const config *c = &a->config;
	char error[512];
	if (!c->tls_cert[0] && (c->tls_key[0] || c->tls_client_ca[0])) {
		complain("--tls-key and --tls-client-ca are nothing without --tls-cert");
		return EXIT_WRONG_USAGE;
	}
	if (c->tls_client_optional && !c->tls_client_ca[0]) {
		complain("--tls-client-optional is nothing without --tls-client-ca");
		return EXIT_WRONG_USAGE;
	}
	if (!c->tls_cert[0])
		return EXIT_OK;
	a->tls = http_tls_new(
		&(http_tls_options){
			.certificate = c->tls_cert,
			.key = c->tls_key[0] ? c->tls_key : NULL,
			.client_ca = c->tls_client_ca[0] ? c->tls_client_ca : NULL,
			.client_optional = c->tls_client_optional,
		},
		error, sizeof(error));
	if (a->tls)
		return EXIT_OK;
	complain("cannot serve HTTPS: %s", error);
	return EXIT_WRONG_USAGE;
}

static int listen_on(http_server *server, const char *flag, const char *address, http_tls *tls, char *bound,
                     size_t size)
{
	if (http_listen_tls(server, address, tls, bound, size) == 0)
		return EXIT_OK;
	const char *remedy = errno == EADDRINUSE
	                             ? "something listens there already: stop it, or choose another port"
	                     : errno == EACCES        ? "ports below 1024 need privileges: choose another"
	                     : errno == EADDRNOTAVAIL ? "this machine has no such address"
	                                              : "is it an address of this machine?";
	complain("cannot listen on %s (%s): %s (--%s)", address, strerror(errno), remedy, flag);
	return EXIT_FAILED;
}

/* The settings that can change while albumd serves. */
static void apply(app *a, const config *c)
{
	log_set_level((log_level)c->log_level);
	atomic_store(&a->access.slow_ns, c->slow_query);
	atomic_store(&a->access.traced, (int)c->trace_queries);
	atomic_store(&a->albums.allow_delay, c->allow_delay);
	atomic_store(&a->albums.allow_all, c->allow_all);
	atomic_store(&a->albums.write_token, c->write_token);
	atomic_store(&a->admin.token, c->admin_token);
}

static void on_serve(void *access);

static int open_server(app *a)
{
	const config *c = &a->config;
	a->albums.pool = a->pool;
	a->albums.query_timeout = c->query_timeout;
	a->albums.cors_origin = c->cors_origin;
	apply(a, c);
	a->server = http_server_new(&(http_server_options){
		.workers = c->workers,
		.connections = c->connections,
		.address_connections = c->address_connections,
		.requests = c->requests,
		.head_size = c->head_size,
		.body_size = c->body_size,
		.header_timeout = c->header_timeout,
		.body_timeout = c->body_timeout,
		.write_timeout = c->write_timeout,
		.idle_timeout = c->idle_timeout,
		.request_timeout = c->request_timeout,
		.drain_timeout =
			c->drain_timeout ? c->drain_timeout : 1, /* 0 would be the library's default */
		.traces = true,
		.drain_delay = c->drain_delay,
		.share_port = c->share_port,
		.notify = true,
		.on_serve = on_serve,
		.on_request = access_begin,
		.on_done = access_end,
		.data = &a->access,
	});
	if (!a->server || albums_handle(a->server, a->metrics, &a->albums) < 0 ||
	    openapi_handle(a->server, a->metrics) < 0) {
		complain("out of memory");
		return EXIT_FAILED;
	}
	return listen_on(a->server, "listen", c->listen, a->tls, a->bound, sizeof(a->bound));
}

static void on_admin_serve(void *arg)
{
	app *a = arg;
	wait_event_set(&a->admin_serves);
}

static int open_admin(app *a)
{
	if (!a->config.admin_listen)
		return EXIT_OK;
	a->admin.server = a->server;
	a->admin.pool = a->pool;
	a->admin.metrics = a->metrics;
	a->admin.live = a->live;
	a->admin.over = a->over;
	a->admin.listens_on = a->bound;
	a->admin_server = http_server_new(&(http_server_options){
		.workers = 1,
		.drain_timeout = CTX_SECOND,
		.share_port = a->config.share_port,
		.on_serve = on_admin_serve,
		.data = a,
	});
	if (!a->admin_server || admin_handle(a->admin_server, &a->admin) < 0) {
		complain("out of memory");
		return EXIT_FAILED;
	}
	return listen_on(a->admin_server, "admin-listen", a->config.admin_listen, NULL, a->admin_bound,
	                 sizeof(a->admin_bound));
}

static int open_contexts(app *a)
{
	a->stop = ctx_with_signals(ctx_background(), (const int[]){SIGTERM, SIGINT}, 2);
	a->over = ctx_with_cancel(ctx_background());
	if (a->over)
		a->hangup = ctx_with_signals(a->over, (const int[]){SIGHUP}, 1);
	if (a->stop && a->hangup)
		return EXIT_OK;
	complain("cannot watch for signals: %s", strerror(errno));
	return EXIT_FAILED;
}

/* ---- The threads ------------------------------------------------------------------------------------ */

static void *serve_admin(void *arg)
{
	app *a = arg;
	if (http_serve(a->admin_server, a->over) < 0)
		log_message(LOG_ERROR, "the admin listener could not be served", "error", strerror(errno));
	wait_event_set(&a->admin_serves);
	return NULL;
}

static void *take_samples(void *arg)
{
	app *a = arg;
	live_watch(a->live, a->over, a->pool, a->server);
	return NULL;
}

static void *watch_memory(void *arg)
{
	app *a = arg;
	memory_watch(a->over, a->server);
	return NULL;
}

static void *watch_signals(void *arg)
{
	app *a = arg;
	ctx_wait(a->stop);
	if (ctx_err(a->over))
		return NULL;
	log_message(LOG_INFO, "draining; a second signal ends what is in flight at once", "cause",
	            ctx_cause(a->stop)->message);
	ctx_auto *again = ctx_with_signals(a->over, (const int[]){SIGTERM, SIGINT}, 2);
	if (again && ctx_wait(again) && !ctx_err(a->over)) {
		log_message(LOG_WARN, "ending what is in flight", "cause", ctx_cause(again)->message);
		http_server_abort(a->server);
	}
	return NULL;
}

static void tell_change(const char *name, bool reloaded)
{
	if (reloaded)
		log_message(LOG_INFO, "setting changed", "setting", name);
	else
		log_message(LOG_WARN, "setting changed, but not before a restart", "setting", name);
}

static void reload(app *a)
{
	config c;
	if (config_read(&c, a->argc, a->argv) != CONFIG_SERVE) {
		log_message(LOG_ERROR,
		            "the settings are wrong, and left as they are (see albumd --check-config)", NULL,
		            NULL);
		return;
	}
	log_message(LOG_INFO, "settings read again", c.file ? "file" : NULL, c.file);
	config_compare(&a->reloaded, &c, tell_change);
	apply(a, &c);
	a->reloaded = c;
}

/* Whatever became of the settings: a renewed certificate is in the files they named at the start. */
static void reload_tls(app *a)
{
	char error[512];
	if (!a->tls)
		return;
	if (http_tls_reload(a->tls, error, sizeof(error)) == 0)
		log_message(LOG_INFO, "certificate read again", "file", a->config.tls_cert);
	else
		log_message(LOG_ERROR, "the certificate is left as it was", "error", error);
}

/* The next context is there before the last is gone: no SIGHUP finds nobody, which would be the process's end. */
static void *watch_hangups(void *arg)
{
	app *a = arg;
	while (ctx_wait(a->hangup) && !ctx_err(a->over)) {
		ctx *next = ctx_with_signals(a->over, (const int[]){SIGHUP}, 1);
		if (!next)
			break;
		ctx_end(a->hangup);
		a->hangup = next;
		if (a->on_terminal && !isatty(STDIN_FILENO)) {
			ctx_cancel_cause(a->stop, &TERMINAL_GONE);
			break;
		}
		reload(a);
		reload_tls(a);
	}
	return NULL;
}

static void *await_database(void *arg)
{
	app *a = arg;
	if (!a->database_seen)
		database_await(a->stop, a->pool);
	return NULL;
}

/* ---- Serving ---------------------------------------------------------------------------------------- */

static const char *scheme(const char *bound, const http_tls *tls)
{
	return strncmp(bound, "unix:", 5) == 0 ? "" : tls ? "https://" : "http://";
}

static void say_ready(const app *a)
{
	if (a->admin_server)
		printf("albumd: admin on %s%s\n", scheme(a->admin_bound, NULL), a->admin_bound);
	printf("albumd: listening on %s%s\n", scheme(a->bound, a->tls), a->bound);
	if (isatty(STDOUT_FILENO) && !a->tls && scheme(a->bound, NULL)[0]) {
		printf("\n  Try, in another terminal:\n\n"
		       "    curl http://%s/albums\n"
		       "    curl http://%s/albums/1\n",
		       a->bound, a->bound);
		if (a->config.allow_delay)
			printf("    curl 'http://%s/albums?delay=60s'     and press Ctrl-C: "
			       "PostgreSQL stops "
			       "at once\n",
			       a->bound);
		if (a->admin_server && scheme(a->admin_bound, NULL)[0])
			printf("    http://%s/requests     in a browser: everything alive, as it comes and "
			       "goes\n",
			       a->admin_bound);
		putchar('\n');
	}
	fflush(stdout);
}

/* Who reaches the admin listener can read what runs, and cancel it. */
static void warn_of_open_admin(const app *a)
{
	static const char *const near[] = {"127.", "[::1]", "unix"};
	bool open = a->admin_server && !a->config.admin_token[0];
	for (size_t i = 0; i < sizeof(near) / sizeof(*near); i++)
		open = open && strncmp(a->admin_bound, near[i], strlen(near[i])) != 0;
	if (open)
		log_message(LOG_WARN,
		            "other machines may reach the admin listener, which asks for no token "
		            "(see --admin-token-file)",
		            "address", a->admin_bound);
}

/* Where the ports are shared, those who come are still served by another until now. */
static void on_serve(void *access)
{
	app *a = (app *)(void *)((char *)access - offsetof(app, access));
	say_ready(a);
	complain_in_log();
	warn_of_open_admin(a);
}

static int start_threads(app *a, int *started)
{
	void *(*const runs[])(void *) = {
		watch_signals,
		await_database,
		a->admin_server ? serve_admin : NULL,
		a->admin_server ? take_samples : NULL,
		watch_hangups,
		watch_memory,
	};
	*started = 0;
	for (size_t i = 0; i < sizeof(runs) / sizeof(*runs); i++) {
		int failure = runs[i] ? pthread_create(&a->threads[*started], NULL, runs[i], a) : 0;
		if (failure) {
			complain("cannot start a thread: %s", strerror(failure));
			return EXIT_FAILED;
		}
		*started += runs[i] != NULL;
	}
	return EXIT_OK;
}

static int serve(app *a)
{
	int started;
	int status = start_threads(a, &started);
	if (status == EXIT_OK) {
		if (a->admin_server)
			wait_event_wait(NULL, &a->admin_serves);
		a->served = true;
		if (http_serve(a->server, a->stop) < 0) {
			complain("cannot serve: %s", strerror(errno));
			status = EXIT_FAILED;
		}
	}
	ctx_cancel(a->over);
	ctx_cancel(a->stop);
	for (int i = 0; i < started; i++)
		pthread_join(a->threads[i], NULL);
	return status;
}

static void close_all(app *a)
{
	http_server_free(a->server);
	http_server_free(a->admin_server);
	http_tls_free(a->tls);
	/* Waits for the cancelled queries to settle, whose lines in the log come last. */
	pg_pool_close(a->pool);
	if (a->served)
		log_message(LOG_INFO, "stopped", NULL, NULL);
	log_close();
	ctx_end(a->hangup);
	ctx_end(a->stop);
	ctx_end(a->over);
	live_free(a->live);
	metrics_free(a->metrics);
}

/* Whether these settings would do, as far as can be said without starting. */
static int check_config(app *a)
{
	int status = open_tls(a);
	http_tls_free(a->tls);
	if (status == EXIT_OK)
		status = open_pool(a);
	pg_pool_close(a->pool);
	if (status == EXIT_OK)
		puts("albumd: the settings are good");
	return status;
}

static int run(app *a)
{
	raise_file_limit();
	a->on_terminal = isatty(STDIN_FILENO);
	signal(SIGPIPE, SIG_IGN);
	if (!log_open((log_level)a->config.log_level, (log_format)a->config.log_format) ||
	    !(a->metrics = a->access.metrics = metrics_new()) || !(a->live = a->access.live = live_new())) {
		complain("out of memory");
		return EXIT_FAILED;
	}
	int status = open_contexts(a);
	if (status == EXIT_OK)
		status = open_tls(a);
	if (status == EXIT_OK)
		status = open_pool(a);
	if (status == EXIT_OK)
		status = open_server(a);
	if (status == EXIT_OK)
		status = open_admin(a);
	if (status == EXIT_OK)
		status = database_may_serve(a->stop, a->pool, &a->database_seen) ? EXIT_OK : EXIT_FAILED;
	if (status == EXIT_OK)
		status = serve(a);
	close_all(a);
	return status;
}

int main(int argc, char **argv)
{
	static app a;
	a.argc = argc;
	a.argv = argv;
	switch (config_read(&a.config, argc, argv)) {
	case CONFIG_SERVE:
		a.reloaded = a.config;
		return run(&a);
	case CONFIG_CHECK:
		return check_config(&a);
	case CONFIG_HEALTHCHECK:
		return health_check(a.config.admin_listen) ? EXIT_OK : EXIT_FAILED;
	case CONFIG_DONE:
		return EXIT_OK;
	case CONFIG_WRONG:
		break;
	}
	return EXIT_WRONG_USAGE;
}
