#include "setting.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "parse.h"

#define SECOND INT64_C(1000000000)

/* ---- Reading values ---------------------------------------------------------------------------------- */

static const char *read_address(const setting *s, const char *value, void *field)
{
	(void)s;
	if (!parse_is_address(value))
		return "an address such as 127.0.0.1:8080, [::1]:8080, :8080, unix:/run/albumd.sock or "
		       "systemd:";
	*(const char **)field = value;
	return NULL;
}

static const char *read_address_or_off(const setting *s, const char *value, void *field)
{
	if (strcmp(value, "off") != 0)
		return read_address(s, value, field) ? "an address such as 127.0.0.1:9090, or off" : NULL;
	*(const char **)field = NULL;
	return NULL;
}

static const char *read_string(const setting *s, const char *value, void *field)
{
	(void)s;
	*(const char **)field = value;
	return NULL;
}

static const char *read_count(const setting *s, const char *value, void *field)
{
	static char wanted[64];
	uint64_t count;
	if (!parse_uint(value, s->most, &count) || count < s->least) {
		snprintf(wanted, sizeof(wanted), "a whole number from %llu to %llu",
		         (unsigned long long)s->least, (unsigned long long)s->most);
		return wanted;
	}
	*(uint64_t *)field = count;
	return NULL;
}

static const char *read_duration(const setting *s, const char *value, void *field)
{
	int64_t ns;
	if (!parse_duration(value, &ns) || ns < (int64_t)s->least || ns > (int64_t)s->most)
		return s->least ? "a duration such as 250ms, 5s or 1m, from 1ms to 24h"
		                : "a duration such as 250ms, 5s or 1m, from 0 to 24h";
	*(int64_t *)field = ns;
	return NULL;
}

static const char *read_switch(const setting *s, const char *value, void *field)
{
	(void)s;
	return parse_bool(value, field) ? NULL : "on or off";
}

static const char *read_name(const setting *s, const char *value, void *field)
{
	static char wanted[64];
	size_t used = 0;
	for (uint64_t i = 0; s->names[i]; i++) {
		if (strcmp(value, s->names[i]) == 0) {
			*(uint64_t *)field = i;
			return NULL;
		}
		const char *before = i == 0 ? "one of " : s->names[i + 1] ? ", " : " or ";
		used += (size_t)snprintf(wanted + used, sizeof(wanted) - used, "%s%s", before, s->names[i]);
	}
	return wanted;
}

/* The settings are read again and again, but nothing is kept twice. */
const char *setting_keep(const char *value)
{
	static struct kept {
		struct kept *next;
		char text[];
	} * all;
	for (const struct kept *k = all; k; k = k->next) {
		if (strcmp(k->text, value) == 0)
			return k->text;
	}
	size_t size = strlen(value) + 1;
	struct kept *k = malloc(sizeof(*k) + size);
	if (!k)
		return NULL;
	memcpy(k->text, value, size);
	k->next = all;
	all = k;
	return k->text;
}

/* The first line of a file: what everybody on this machine could read in a list of processes is no secret. */
static const char *read_token(const setting *s, const char *value, void *field)
{
	static char wanted[64];
	char line[1024] = "";
	(void)s;
	*(const char **)field = "";
	if (!value[0])
		return NULL;
	FILE *file = fopen(value, "re");
	const char *read = file ? fgets(line, sizeof(line), file) : NULL;
	int error = errno;
	if (file)
		fclose(file);
	bool whole = strlen(line) < sizeof(line) - 1;
	line[strcspn(line, "\r\n")] = '\0';
	const char *kept = read && whole && line[0] ? setting_keep(line) : NULL;
	if (kept) {
		*(const char **)field = kept;
		return NULL;
	}
	snprintf(wanted, sizeof(wanted), "a file that holds a token (%s)",
	         !file    ? strerror(error)
	         : !whole ? "its line is too long"
	                  : "it is empty");
	return wanted;
}

/* ---- The table --------------------------------------------------------------------------------------- */

/* In the order of pg_statements. */
static const char *const statements_names[] = {"auto", "always", "never", NULL};

/* In the order of access_traced. */
static const char *const traced_names[] = {"off", "sampled", "all", NULL};

/* A table is read by its columns, which clang-format would not leave alone. */
/* clang-format off */
#define FIELD(name) offsetof(config, name)
const setting settings[] = {
	{"listen", "ADDRESS", "where to serve",
	 FIELD(listen), read_address, "127.0.0.1:8080", 0, 0, NULL, 0},
	{"admin-listen", "ADDRESS", "where to serve health, metrics and the live page, or off",
	 FIELD(admin_listen), read_address_or_off, "127.0.0.1:9090", 0, 0, NULL, 0},
	{"tls-cert", "FILE", "serve HTTPS with this certificate, and its chain (PEM); SIGHUP reads it again",
	 FIELD(tls_cert), read_string, "", 0, 0, NULL, 0},
	{"tls-key", "FILE", "the certificate's private key (PEM), if not in the same file",
	 FIELD(tls_key), read_string, "", 0, 0, NULL, 0},
	{"tls-client-ca", "FILE", "serve only clients with a certificate by one of these (PEM)",
	 FIELD(tls_client_ca), read_string, "", 0, 0, NULL, 0},
	{"tls-client-optional", NULL, "serve clients without a certificate too; never one with a bad certificate",
	 FIELD(tls_client_optional), read_switch, "off", 0, 0, NULL, 0},
	{"database-url", "URL", "PostgreSQL: postgresql://… or key=value; else libpq's PG* variables",
	 FIELD(database_url), read_string, "", 0, 0, NULL, SETTING_SECRET},
	{"pool-size", "N", "database connections at most",
	 FIELD(pool_size), read_count, "16", 1, 10000, NULL, 0},
	{"pool-min-idle", "N", "database connections kept ready, made ahead of need",
	 FIELD(pool_min_idle), read_count, "0", 0, 10000, NULL, 0},
	{"pool-max-idle", "N", "database connections idle at most; 0: as many as there are",
	 FIELD(pool_max_idle), read_count, "0", 0, 10000, NULL, 0},
	{"pool-max-lifetime", "DURATION", "after which a database connection is replaced; 0: never",
	 FIELD(pool_max_lifetime), read_duration, "0", 0, 86400 * SECOND, NULL, 0},
	{"pool-max-idle-time", "DURATION", "after which an idle database connection is closed; 0: never",
	 FIELD(pool_max_idle_time), read_duration, "0", 0, 86400 * SECOND, NULL, 0},
	{"prepared-statements", "WHEN", "auto, always (PgBouncer that keeps track of them) or never",
	 FIELD(statements), read_name, "auto", 0, 0, statements_names, 0},
	{"workers", "N", "event-loop threads; half the CPUs unless given",
	 FIELD(workers), read_count, NULL, 1, 256, NULL, 0},
	{"queue-size", "N", "requests waiting for a connection at most, past it 503",
	 FIELD(queue_size), read_count, "1024", 1, 10000000, NULL, 0},
	{"query-timeout", "DURATION", "for a request's queries, the wait for a connection included",
	 FIELD(query_timeout), read_duration, "5s", SECOND / 1000, 86400 * SECOND, NULL, 0},
	{"request-timeout", "DURATION", "for a request's handling as a whole; 0: as long as its queries may take",
	 FIELD(request_timeout), read_duration, "0", 0, 86400 * SECOND, NULL, 0},
	{"header-timeout", "DURATION", "for a request's head to arrive",
	 FIELD(header_timeout), read_duration, "10s", SECOND / 1000, 86400 * SECOND, NULL, 0},
	{"body-timeout", "DURATION", "for a request's body to arrive",
	 FIELD(body_timeout), read_duration, "30s", SECOND / 1000, 86400 * SECOND, NULL, 0},
	{"write-timeout", "DURATION", "for a client to take the next of its answer, 500 bytes for each second at least",
	 FIELD(write_timeout), read_duration, "30s", SECOND / 1000, 86400 * SECOND, NULL, 0},
	{"idle-timeout", "DURATION", "for a connection between two requests",
	 FIELD(idle_timeout), read_duration, "1m", SECOND / 1000, 86400 * SECOND, NULL, 0},
	{"connections", "N", "client connections at most, past it 503",
	 FIELD(connections), read_count, "10000", 1, 10000000, NULL, 0},
	{"connections-per-address", "N", "of these from one address (IPv6: one /64); 0: no limit",
	 FIELD(address_connections), read_count, "0", 0, 10000000, NULL, 0},
	{"requests", "N", "requests handled at once at most, past it 503",
	 FIELD(requests), read_count, "10000", 1, 10000000, NULL, 0},
	{"head-size", "BYTES", "of a request's head at most, past it 431; 0: 6656 over HTTP/1.1, 16384 over HTTP/2",
	 FIELD(head_size), read_count, "0", 0, 65536, NULL, 0},
	{"body-size", "BYTES", "of a request's body at most, past it 413",
	 FIELD(body_size), read_count, "1048576", 1, 1 << 30, NULL, 0},
	{"drain-timeout", "DURATION", "for requests in flight once SIGTERM or SIGINT has come",
	 FIELD(drain_timeout), read_duration, "10s", 0, 86400 * SECOND, NULL, 0},
	{"drain-delay", "DURATION", "to go on accepting before that, until balancers have noticed",
	 FIELD(drain_delay), read_duration, "0", 0, 86400 * SECOND, NULL, 0},
	{"share-port", NULL, "let the albumd that is to take over listen on the same addresses meanwhile",
	 FIELD(share_port), read_switch, "off", 0, 0, NULL, 0},
	{"allow-delay", NULL, "allow GET /albums?delay=30s, which makes a query slow on purpose",
	 FIELD(allow_delay), read_switch, "off", 0, 0, NULL, SETTING_RELOADED},
	{"allow-all", NULL, "allow GET /albums?limit=all, which streams the whole table",
	 FIELD(allow_all), read_switch, "off", 0, 0, NULL, SETTING_RELOADED},
	{"cors-origin", "ORIGIN", "the origin from which browsers may call, * for any",
	 FIELD(cors_origin), read_string, "", 0, 0, NULL, 0},
	{"write-token-file", "FILE", "the bearer token without which nothing is changed",
	 FIELD(write_token), read_token, "", 0, 0, NULL, SETTING_RELOADED},
	{"admin-token-file", "FILE", "the bearer token without which the admin listener tells nothing",
	 FIELD(admin_token), read_token, "", 0, 0, NULL, SETTING_RELOADED},
	{"slow-query", "DURATION", "requests that take longer are logged as warnings; 0: none",
	 FIELD(slow_query), read_duration, "1s", 0, 86400 * SECOND, NULL, SETTING_RELOADED},
	{"trace-queries", "WHICH", "queries that tell PostgreSQL their request, in a comment: off, sampled or all",
	 FIELD(trace_queries), read_name, "off", 0, 0, traced_names, SETTING_RELOADED},
	{"log-level", "LEVEL", "debug, info, warn, error or off",
	 FIELD(log_level), read_name, "info", 0, 0, log_level_names, SETTING_RELOADED},
	{"log-format", "FORMAT", "text or json; text on a terminal, else json, unless given",
	 FIELD(log_format), read_name, NULL, 0, 0, log_format_names, 0},
};
/* clang-format on */
_Static_assert(sizeof(settings) / sizeof(*settings) == SETTINGS, "setting.h says how many there are");

const setting *setting_find(const char *name, size_t length)
{
	for (const setting *s = settings; s < settings + SETTINGS; s++) {
		if (strlen(s->name) == length && strncmp(s->name, name, length) == 0)
			return s;
	}
	return NULL;
}

bool setting_is_same(const setting *s, const config *before, const config *after)
{
	const void *old = (const char *)before + s->offset, *new = (const char *)after + s->offset;
	if (s->read == read_switch)
		return *(const bool *)old == *(const bool *)new;
	if (s->read == read_count || s->read == read_duration || s->read == read_name)
		return *(const uint64_t *)old == *(const uint64_t *)new;
	const char *was = *(const char *const *)old, *is = *(const char *const *)new;
	return was && is ? strcmp(was, is) == 0 : was == is;
}
