/*
 * Reaching a server: one PQconnectdb, with its name lookups and its walk through several hosts and addresses,
 * which only it can do (libpq's "host=a,b", target_session_attrs, load_balance_hosts). It blocks, so it is an
 * errand; each host and address it tries gets the connect timeout, and together they get as many of these.
 */
#include <arpa/inet.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "pg_priv.h"

/* What a name may have of them; libpq tries all in turn. */
enum { ADDRESSES_OF_A_NAME = 4 };

/* libpq before 17 gives no address less than that. */
static const int64_t LEAST_TIMEOUT = 2 * CTX_SECOND;

typedef struct reaching {
	errand errand;
	char *conninfo, *application_name;
	int timeout; /* seconds */
	PGconn *pg;
} reaching;

static void reaching_work(errand *e)
{
	reaching *job = container_of(e, reaching, errand);
	char timeout[16];
	snprintf(timeout, sizeof(timeout), "%d", job->timeout);
	/* What comes later wins: the conninfo over our defaults, which are in turn above libpq's. */
	const char *const keywords[] = {
		"fallback_application_name", "connect_timeout",  "keepalives_idle",
		"keepalives_interval",       "keepalives_count", "tcp_user_timeout",
		"client_encoding",           "dbname",           NULL,
	};
	const char *const values[] = {
		job->application_name,
		getenv("PGCONNECT_TIMEOUT") ? NULL : timeout,
		"30",
		"5",
		"3",
		"15000",
		getenv("PGCLIENTENCODING") ? NULL : "UTF8",
		job->conninfo,
		NULL,
	};
	job->pg = PQconnectdbParams(keywords, values, 1);
}

static void reaching_discard(errand *e)
{
	reaching *job = container_of(e, reaching, errand);
	PQfinish(job->pg);
	free(job->conninfo);
	free(job->application_name);
	free(job);
}

/* ---- How long it may take --------------------------------------------------------------------------- */

/* One entry of a list of hosts. Empty, it is libpq's default; a path, or with "@" a name for one, is a Unix socket. */
static int addresses_of(const char *host, size_t length)
{
	char text[INET6_ADDRSTRLEN + 1];
	struct in6_addr address;
	if (length == 0 || *host == '/' || *host == '@')
		return 1;
	snprintf(text, sizeof(text), "%.*s", (int)length, host);
	if (length < sizeof(text) &&
	    (inet_pton(AF_INET, text, &address) == 1 || inet_pton(AF_INET6, text, &address) == 1))
		return 1;
	return ADDRESSES_OF_A_NAME;
}

static int addresses_in(const char *hosts)
{
	int n = 0;
	for (;;) {
		size_t length = strcspn(hosts, ",");
		n += addresses_of(hosts, length);
		if (!hosts[length])
			return n;
		hosts += length + 1;
	}
}

/* A setting of the conninfo, or else of the environment; NULL: of neither. */
static const char *setting(const PQconninfoOption *own, const PQconninfoOption *environment,
                           const char *keyword)
{
	const PQconninfoOption *const places[] = {own, environment};
	for (size_t i = 0; i < sizeof(places) / sizeof(places[0]); i++) {
		for (const PQconninfoOption *o = places[i]; o && o->keyword; o++) {
			if (o->val && strcmp(o->keyword, keyword) == 0)
				return o->val;
		}
	}
	return NULL;
}

/* All attempts that libpq may make in turn, with their lookups. */
static int64_t time_for(const pg_pool *pool)
{
	PQconninfoOption *own = PQconninfoParse(pool->conninfo, NULL);
	PQconninfoOption *environment = PQconndefaults();
	const char *hosts = setting(own, environment, "hostaddr");
	const char *timeout = setting(own, environment, "connect_timeout");
	if (!hosts)
		hosts = setting(own, environment, "host");
	if (!hosts && setting(own, environment, "service"))
		hosts = "a name";
	int addresses = addresses_in(hosts ? hosts : "");
	int64_t each = pool->options.connect_timeout, seconds = timeout ? strtol(timeout, NULL, 10) : 0;
	if (seconds > 0)
		each = seconds < LONGEST_TIME / CTX_SECOND ? seconds * CTX_SECOND : LONGEST_TIME;
	if (addresses > 1 && each < LEAST_TIMEOUT)
		each = LEAST_TIMEOUT;
	PQconninfoFree(own);
	PQconninfoFree(environment);
	return each < LONGEST_TIME / addresses ? each * addresses : LONGEST_TIME;
}

/* ---- Reaching --------------------------------------------------------------------------------------- */

static reaching *reaching_new(const pg_pool *pool)
{
	reaching *job = calloc(1, sizeof(*job));
	if (!job)
		return NULL;
	job->errand.work = reaching_work;
	job->errand.discard = reaching_discard;
	job->timeout = (int)((pool->options.connect_timeout + CTX_SECOND - 1) / CTX_SECOND);
	job->conninfo = strdup(pool->conninfo);
	job->application_name = strdup(pool->application_name);
	if (job->conninfo && job->application_name)
		return job;
	reaching_discard(&job->errand);
	return NULL;
}

PGconn *server_reach(const pg_pool *pool, pg_error *error)
{
	ctx_auto *c = ctx_with_timeout(pool->ctx, time_for(pool));
	reaching *job = c ? reaching_new(pool) : NULL;
	if (!job) {
		error_set(error, PG_ERROR_MEMORY, "out of memory");
		return NULL;
	}
	if (!errand_run(c, &job->errand)) {
		if (ctx_err(c))
			error_set(error, PG_ERROR_CONNECTION, "no connection to PostgreSQL in time");
		else
			error_set(error, PG_ERROR_MEMORY, "no thread to connect with");
		return NULL;
	}
	PGconn *pg = job->pg;
	job->pg = NULL;
	reaching_discard(&job->errand);
	if (!pg) {
		error_set(error, PG_ERROR_MEMORY, "out of memory");
	} else if (PQstatus(pg) != CONNECTION_OK) {
		error_from_conn(error, pg);
		PQfinish(pg);
		pg = NULL;
	}
	return pg;
}
