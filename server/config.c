#include "config.h"

#include <ctype.h>
#include <sched.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "parse.h"

#define SECOND INT64_C(1000000000)

/* ---- The settings: one table from which parsing, help and messages are made ------------------------- */

typedef struct setting setting;
struct setting {
	const char *flag; /* --flag; the environment variable is the same in capitals */
	const char *value, *help;
	size_t offset; /* into config */
	/* Reads a value into the config: NULL, or what it should have been. */
	const char *(*read)(const setting *s, const char *value, void *field);
	uint64_t least, most;
	const char *const *names; /* of an enum */
	const char *fallback;     /* the default, as one would write it; NULL: computed, or empty */
};

static const char *read_address(const setting *s, const char *value, void *field)
{
	(void)s;
	if (!parse_is_address(value))
		return "an address such as 127.0.0.1:8080, [::1]:8080, :8080 or "
		       "unix:/run/albumd.sock";
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
		used += (size_t)snprintf(wanted + used, sizeof(wanted) - used, "%s%s",
		                         i == 0            ? "one of "
		                         : s->names[i + 1] ? ", "
		                                           : " or ",
		                         s->names[i]);
	}
	return wanted;
}

/* A table is read by its columns, which clang-format would not leave alone. */
/* clang-format off */
#define FIELD(name) offsetof(config, name)
static const setting settings[] = {
	{"listen", "ADDRESS", "where to serve",
	 FIELD(listen), read_address, .fallback = "127.0.0.1:8080"},
	{"admin-listen", "ADDRESS|off", "where to serve health and metrics",
	 FIELD(admin_listen), read_address_or_off, .fallback = "127.0.0.1:9090"},
	{"database-url", "URL", "PostgreSQL: postgresql://… or key=value; else libpq's PG* variables",
	 FIELD(database_url), read_string, .fallback = ""},
	{"pool-size", "N", "database connections at most",
	 FIELD(pool_size), read_count, 1, 10000, .fallback = "16"},
	{"workers", "N", "event-loop threads; half the CPUs unless given",
	 FIELD(workers), read_count, 1, 256, .fallback = NULL},
	{"queue-size", "N", "requests waiting for a connection at most, past it 503",
	 FIELD(queue_size), read_count, 1, 10000000, .fallback = "1024"},
	{"query-timeout", "DURATION", "for a request's queries, the wait for a connection included",
	 FIELD(query_timeout), read_duration, SECOND / 1000, 86400 * SECOND, .fallback = "5s"},
	{"drain-timeout", "DURATION", "for requests in flight once SIGTERM or SIGINT has come",
	 FIELD(drain_timeout), read_duration, 0, 86400 * SECOND, .fallback = "10s"},
	{"allow-delay", NULL, "allow GET /albums?delay=30s, which makes a query slow on purpose",
	 FIELD(allow_delay), read_switch, .fallback = "off"},
	{"log-level", "LEVEL", "debug, info, warn, error or off",
	 FIELD(log_level), read_name, .names = log_level_names, .fallback = "info"},
	{"log-format", "FORMAT", "text or json; text on a terminal, else json, unless given",
	 FIELD(log_format), read_name, .names = log_format_names},
};
/* clang-format on */
#define SETTINGS (sizeof(settings) / sizeof(*settings))

/* ---- Help and complaints ---------------------------------------------------------------------------- */

static void variable_name(const setting *s, char name[32])
{
	size_t i;
	for (i = 0; s->flag[i] && i < 31; i++)
		name[i] = (char)(s->flag[i] == '-' ? '_' : toupper(s->flag[i]));
	name[i] = '\0';
}

static void print_help(void)
{
	puts("albumd serves albums from PostgreSQL over HTTP. A query ends when "
	     "nobody waits for it any "
	     "more.\n\n"
	     "usage: albumd [--flag value]…\n");
	for (const setting *s = settings; s < settings + SETTINGS; s++) {
		char flag[48];
		snprintf(flag, sizeof(flag), "--%s %s", s->flag, s->value ? s->value : "");
		printf("  %-26s %s", flag, s->help);
		if (s->fallback && s->fallback[0])
			printf(" (%s)", s->fallback);
		putchar('\n');
	}
	puts("  --help                     this\n"
	     "  --version                  the version\n\n"
	     "Each flag has an environment variable of the same name in capitals, "
	     "QUERY_TIMEOUT for\n"
	     "--query-timeout; the flag wins. Durations are written 250ms, 5s, "
	     "1m30s.\n"
	     "SIGTERM or SIGINT drain and exit; a second one ends what is still in "
	     "flight at once.");
}

__attribute__((format(printf, 1, 2))) static config_action wrong(const char *format, ...)
{
	va_list arguments;
	va_start(arguments, format);
	fputs("albumd: ", stderr);
	vfprintf(stderr, format, arguments);
	fputc('\n', stderr);
	va_end(arguments);
	return CONFIG_WRONG;
}

/* ---- Reading ---------------------------------------------------------------------------------------- */

static const char *set(const setting *s, config *c, const char *value)
{
	return s->read(s, value, (char *)c + s->offset);
}

static uint64_t default_workers(const config *c)
{
	cpu_set_t cpus;
	uint64_t count = sched_getaffinity(0, sizeof(cpus), &cpus) == 0 ? (uint64_t)CPU_COUNT(&cpus) : 1;
	uint64_t half = count < 2 ? 1 : count / 2;
	return half < c->pool_size ? half : c->pool_size;
}

static config_action read_environment(config *c)
{
	for (const setting *s = settings; s < settings + SETTINGS; s++) {
		char name[32];
		variable_name(s, name);
		const char *value = getenv(name);
		const char *wanted = value && *value ? set(s, c, value) : NULL;
		if (wanted)
			return wrong("%s=%s in the environment: should be %s", name, value, wanted);
	}
	return CONFIG_SERVE;
}

static const setting *find(const char *flag, size_t length)
{
	for (const setting *s = settings; s < settings + SETTINGS; s++) {
		if (strlen(s->flag) == length && strncmp(s->flag, flag, length) == 0)
			return s;
	}
	return NULL;
}

/* One flag at argv[*at], and its value in the same argument or the next. */
static config_action read_flag(config *c, char **argv, int *at)
{
	const char *argument = argv[*at];
	if (strncmp(argument, "--", 2) != 0)
		return wrong("%s: no such argument; all are flags (see albumd --help)", argument);
	size_t length = strcspn(argument + 2, "=");
	const setting *s = find(argument + 2, length);
	if (!s)
		return wrong("%.*s: no such flag (see albumd --help)", (int)length + 2, argument);
	const char *value = argument[2 + length] == '=' ? argument + 3 + length
	                    : s->value                  ? argv[++*at]
	                                                : "on";
	if (!value)
		return wrong("--%s needs a value: %s", s->flag, s->help);
	const char *wanted = set(s, c, value);
	if (wanted)
		return wrong("--%s %s: should be %s", s->flag, value, wanted);
	return CONFIG_SERVE;
}

config_action config_read(config *c, int argc, char **argv)
{
	*c = (config){.log_format = isatty(STDERR_FILENO) ? LOG_TEXT : LOG_JSON};
	for (const setting *s = settings; s < settings + SETTINGS; s++) {
		if (s->fallback)
			set(s, c, s->fallback);
	}
	for (int i = 1; i < argc; i++) {
		if (strcmp(argv[i], "--help") == 0 || strcmp(argv[i], "-h") == 0) {
			print_help();
			return CONFIG_DONE;
		}
		if (strcmp(argv[i], "--version") == 0) {
			puts("albumd " TETHER_VERSION);
			return CONFIG_DONE;
		}
	}
	config_action action = read_environment(c);
	for (int i = 1; i < argc && action == CONFIG_SERVE; i++)
		action = read_flag(c, argv, &i);
	if (!c->workers)
		c->workers = default_workers(c);
	return action;
}
