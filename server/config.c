#include "config.h"

#include <ctype.h>
#include <errno.h>
#include <sched.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "parse.h"

#define SECOND INT64_C(1000000000)

/* ---- The settings: one table from which parsing, help and messages are made ------------------------------- */

enum { RELOADED = 1, SECRET = 2 };

typedef struct setting setting;
struct setting {
	const char *name; /* --name; the environment variable is the same in capitals */
	const char *value, *help;
	size_t offset; /* into config */
	/* Reads a value into the config: NULL, or what it should have been. */
	const char *(*read)(const setting *s, const char *value, void *field);
	const char *fallback; /* the default, as one would write it; NULL: computed */
	uint64_t least, most;
	const char *const *names; /* of an enum */
	int flags;
};

static const char *read_address(const setting *s, const char *value, void *field)
{
	(void)s;
	if (!parse_is_address(value))
		return "an address such as 127.0.0.1:8080, [::1]:8080, :8080 or unix:/run/albumd.sock";
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

/* A copy that stays: the settings are read again and again, but nothing is kept twice. */
static const char *keep(const char *value)
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
	line[strcspn(line, "\r\n")] = '\0';
	if (read && line[0] && (*(const char **)field = keep(line)))
		return NULL;
	snprintf(wanted, sizeof(wanted), "a file that holds a token (%s)",
	         file ? "it is empty" : strerror(error));
	return wanted;
}

/* A table is read by its columns, which clang-format would not leave alone. */
/* clang-format off */
#define FIELD(name) offsetof(config, name)
static const setting settings[] = {
	{"listen", "ADDRESS", "where to serve",
	 FIELD(listen), read_address, "127.0.0.1:8080", 0, 0, NULL, 0},
	{"admin-listen", "ADDRESS", "where to serve health, metrics and the live page, or off",
	 FIELD(admin_listen), read_address_or_off, "127.0.0.1:9090", 0, 0, NULL, 0},
	{"database-url", "URL", "PostgreSQL: postgresql://… or key=value; else libpq's PG* variables",
	 FIELD(database_url), read_string, "", 0, 0, NULL, SECRET},
	{"pool-size", "N", "database connections at most",
	 FIELD(pool_size), read_count, "16", 1, 10000, NULL, 0},
	{"workers", "N", "event-loop threads; half the CPUs unless given",
	 FIELD(workers), read_count, NULL, 1, 256, NULL, 0},
	{"queue-size", "N", "requests waiting for a connection at most, past it 503",
	 FIELD(queue_size), read_count, "1024", 1, 10000000, NULL, 0},
	{"query-timeout", "DURATION", "for a request's queries, the wait for a connection included",
	 FIELD(query_timeout), read_duration, "5s", SECOND / 1000, 86400 * SECOND, NULL, 0},
	{"drain-timeout", "DURATION", "for requests in flight once SIGTERM or SIGINT has come",
	 FIELD(drain_timeout), read_duration, "10s", 0, 86400 * SECOND, NULL, 0},
	{"allow-delay", NULL, "allow GET /albums?delay=30s, which makes a query slow on purpose",
	 FIELD(allow_delay), read_switch, "off", 0, 0, NULL, RELOADED},
	{"allow-all", NULL, "allow GET /albums?limit=all, which streams the whole table",
	 FIELD(allow_all), read_switch, "off", 0, 0, NULL, RELOADED},
	{"cors-origin", "ORIGIN", "the origin from which browsers may call, * for any",
	 FIELD(cors_origin), read_string, "", 0, 0, NULL, 0},
	{"write-token-file", "FILE", "the bearer token without which nothing is changed",
	 FIELD(write_token), read_token, "", 0, 0, NULL, 0},
	{"admin-token-file", "FILE", "the bearer token without which the admin listener tells nothing",
	 FIELD(admin_token), read_token, "", 0, 0, NULL, 0},
	{"slow-query", "DURATION", "requests that take longer are logged as warnings; 0: none",
	 FIELD(slow_query), read_duration, "1s", 0, 86400 * SECOND, NULL, RELOADED},
	{"log-level", "LEVEL", "debug, info, warn, error or off",
	 FIELD(log_level), read_name, "info", 0, 0, log_level_names, RELOADED},
	{"log-format", "FORMAT", "text or json; text on a terminal, else json, unless given",
	 FIELD(log_format), read_name, NULL, 0, 0, log_format_names, 0},
};
/* clang-format on */
enum { SETTINGS = sizeof(settings) / sizeof(*settings) };

/* Each setting's value as it was written, and where: for --print-config, and for finding what has changed. */
typedef struct written {
	const char *value;
	const char *where; /* "--pool-size", "POOL_SIZE", the file's name, "default" */
} written;

/* ---- Complaints -------------------------------------------------------------------------------------------- */

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

static const setting *find(const char *name, size_t length)
{
	for (const setting *s = settings; s < settings + SETTINGS; s++) {
		if (strlen(s->name) == length && strncmp(s->name, name, length) == 0)
			return s;
	}
	return NULL;
}

/* NULL, or what the value should have been. */
static const char *set(const setting *s, config *c, written values[], const char *value, const char *where)
{
	const char *wanted = s->read(s, value, (char *)c + s->offset);
	if (!wanted)
		values[s - settings] = (written){value, where};
	return wanted;
}

/* ---- The file: lines of "name = value", and comments from a # to the end of a line -------------------------- */

static char *trim(char *line)
{
	line += strspn(line, " \t\r\n");
	size_t size = strlen(line);
	while (size && strchr(" \t\r\n", line[size - 1]))
		line[--size] = '\0';
	return line;
}

/* A # begins a comment where a word would: a password may hold one. */
static void cut_comment(char *line)
{
	for (char *at = line; (at = strchr(at, '#')); at++) {
		if (at == line || at[-1] == ' ' || at[-1] == '\t') {
			*at = '\0';
			return;
		}
	}
}

static config_action read_line(config *c, written values[], char *line, int number)
{
	cut_comment(line);
	char *name = trim(line);
	char *equals = strchr(name, '=');
	if (!name[0])
		return CONFIG_SERVE;
	if (!equals)
		return wrong("%s, line %d: should be a setting, name = value", c->file, number);
	*equals = '\0';
	name = trim(name);
	const setting *s = find(name, strlen(name));
	if (!s)
		return wrong("%s, line %d: there is no setting %s (see albumd --help)", c->file, number,
		             name);
	const char *value = keep(trim(equals + 1));
	const char *wanted = value ? set(s, c, values, value, c->file) : "kept in memory, but there is none";
	if (wanted)
		return wrong("%s, line %d: %s = %s: should be %s", c->file, number, name, value ? value : "",
		             wanted);
	return CONFIG_SERVE;
}

static config_action read_file(config *c, written values[])
{
	FILE *file = fopen(c->file, "re");
	if (!file)
		return wrong("--config %s: %s", c->file, strerror(errno));
	config_action action = CONFIG_SERVE;
	char *line = NULL;
	size_t capacity = 0;
	for (int number = 1; action == CONFIG_SERVE && getline(&line, &capacity, file) >= 0; number++)
		action = read_line(c, values, line, number);
	if (action == CONFIG_SERVE && ferror(file))
		action = wrong("--config %s: %s", c->file, strerror(errno));
	free(line);
	fclose(file);
	return action;
}

/* ---- The environment ------------------------------------------------------------------------------------------ */

static const char *variable_name(const setting *s)
{
	static char names[SETTINGS][32];
	char *name = names[s - settings];
	size_t i;
	for (i = 0; s->name[i] && i < sizeof(names[0]) - 1; i++)
		name[i] = (char)(s->name[i] == '-' ? '_' : toupper(s->name[i]));
	name[i] = '\0';
	return name;
}

static config_action read_environment(config *c, written values[])
{
	for (const setting *s = settings; s < settings + SETTINGS; s++) {
		const char *name = variable_name(s);
		const char *value = getenv(name);
		const char *wanted = value && *value ? set(s, c, values, value, name) : NULL;
		if (wanted)
			return wrong("%s=%s in the environment: should be %s", name, value, wanted);
	}
	return CONFIG_SERVE;
}

/* ---- The command line ----------------------------------------------------------------------------------------- */

/* One flag at argv[*at], and its value in the same argument or the next. */
static config_action read_flag(config *c, written values[], char **argv, int *at)
{
	const char *argument = argv[*at];
	size_t length = strcspn(argument, "=");
	const setting *s = find(argument + 2, length - 2);
	if (!s)
		return wrong("%.*s: no such flag (see albumd --help)", (int)length, argument);
	const char *value = argument[length] == '=' ? argument + length + 1 : s->value ? argv[++*at] : "on";
	if (!value)
		return wrong("--%s needs a value: %s", s->name, s->help);
	const char *wanted = set(s, c, values, value, argument);
	if (wanted)
		return wrong("--%s %s: should be %s", s->name, value, wanted);
	return CONFIG_SERVE;
}

/* What is no setting: the file, which is read first, and questions. */
typedef struct questions {
	bool help, version, check, print, healthcheck;
} questions;

static bool is_question(questions *q, const char *argument)
{
	const struct {
		const char *flag;
		bool *asked;
	} flags[] = {
		{"--help", &q->help},          {"-h", &q->help},
		{"--version", &q->version},    {"--check-config", &q->check},
		{"--print-config", &q->print}, {"--healthcheck", &q->healthcheck},
	};
	for (size_t i = 0; i < sizeof(flags) / sizeof(*flags); i++) {
		if (strcmp(argument, flags[i].flag) == 0)
			return *flags[i].asked = true;
	}
	return false;
}

/* "--config FILE" or "--config=FILE" at argv[*at]: true, with *file NULL if there is none. */
static bool is_file(char **argv, int *at, const char **file)
{
	if (strcmp(argv[*at], "--config") == 0)
		*file = argv[++*at];
	else if (strncmp(argv[*at], "--config=", 9) == 0)
		*file = argv[*at] + 9;
	else
		return false;
	return true;
}

/* Goes over the command line twice: for the file and the questions, and, values being there, for the settings. */
static config_action read_command_line(config *c, written values[], int argc, char **argv, questions *q)
{
	config_action action = CONFIG_SERVE;
	for (int i = 1; i < argc && action == CONFIG_SERVE; i++) {
		const char *file;
		if (is_file(argv, &i, &file)) {
			c->file = file;
			if (!file)
				return wrong("--config needs a value: the file to read");
		} else if (strncmp(argv[i], "--", 2) != 0 && strcmp(argv[i], "-h") != 0) {
			return wrong("%s: no such argument; all are flags (see albumd --help)", argv[i]);
		} else if (!is_question(q, argv[i]) && values) {
			action = read_flag(c, values, argv, &i);
		} else if (!values) {
			const setting *s = find(argv[i] + 2, strlen(argv[i] + 2));
			i += s && s->value && i + 1 < argc;
		}
	}
	return action;
}

/* ---- Questions --------------------------------------------------------------------------------------------------- */

static void print_help(void)
{
	puts("albumd serves albums from PostgreSQL over HTTP. A query ends when nobody waits for it any "
	     "more.\n\n"
	     "usage: albumd [--flag value]…\n");
	for (const setting *s = settings; s < settings + SETTINGS; s++) {
		char flag[48];
		snprintf(flag, sizeof(flag), "--%s %s", s->name, s->value ? s->value : "");
		printf("  %-26s %s", flag, s->help);
		if (s->fallback && s->fallback[0])
			printf(" (%s)", s->fallback);
		putchar('\n');
	}
	puts("\n"
	     "  --config FILE              read settings from a file: lines of name = value; SIGHUP reads it "
	     "again\n"
	     "  --check-config             say whether the settings are good, and exit\n"
	     "  --print-config             print them all, and where each comes from, and exit\n"
	     "  --healthcheck              ask the albumd that runs with these settings whether it is ready\n"
	     "  --help                     this\n"
	     "  --version                  the version\n\n"
	     "Each setting has an environment variable of the same name in capitals, QUERY_TIMEOUT for\n"
	     "--query-timeout. Flags win over the environment, and that over the file.\n"
	     "Durations are written 250ms, 5s, 1m30s.\n"
	     "SIGTERM or SIGINT drain and exit; a second one ends what is still in flight at once.");
}

/* A conninfo without its password: in postgresql://user:password@host, in password=… and ?password=…. */
static void print_secret(const char *value)
{
	const char *authority = strstr(value, "://");
	const char *at_sign = authority ? strchr(authority, '@') : NULL;
	const char *colon = authority ? strchr(authority + 3, ':') : NULL;
	if (at_sign && colon && colon < at_sign) {
		printf("%.*s:****", (int)(colon - value), value);
		value = at_sign;
	}
	for (const char *key; (key = strstr(value, "password"));) {
		const char *secret = key + strlen("password");
		secret += strspn(secret, " =");
		printf("%.*s****", (int)(secret - value), value);
		value = secret;
		if (*value == '\'') {
			while (*++value && *value != '\'')
				value += *value == '\\' && value[1];
			value += *value == '\'';
		} else {
			value += strcspn(value, " &");
		}
	}
	fputs(value, stdout);
}

static void print_computed(const setting *s, const config *c)
{
	uint64_t value = *(const uint64_t *)((const char *)c + s->offset);
	if (s->names)
		fputs(s->names[value], stdout);
	else
		printf("%llu", (unsigned long long)value);
}

static void print_config(const config *c, const written values[])
{
	for (const setting *s = settings; s < settings + SETTINGS; s++) {
		const written *w = &values[s - settings];
		printf("%s = ", s->name);
		if (!w->value)
			print_computed(s, c);
		else if (s->flags & SECRET)
			print_secret(w->value);
		else
			fputs(w->value, stdout);
		printf("  # %.*s\n", (int)strcspn(w->where, "="), w->where);
	}
}

/* ---- All of it ------------------------------------------------------------------------------------------------------ */

static uint64_t default_workers(const config *c)
{
	cpu_set_t cpus;
	uint64_t count = sched_getaffinity(0, sizeof(cpus), &cpus) == 0 ? (uint64_t)CPU_COUNT(&cpus) : 1;
	uint64_t half = count < 2 ? 1 : count / 2;
	return half < c->pool_size ? half : c->pool_size;
}

static config_action answer_questions(const config *c, const written values[], const questions *q)
{
	if (q->help)
		print_help();
	else if (q->version)
		puts("albumd " TETHER_VERSION);
	else if (q->print)
		print_config(c, values);
	else
		return q->check ? CONFIG_CHECK : q->healthcheck ? CONFIG_HEALTHCHECK : CONFIG_SERVE;
	return CONFIG_DONE;
}

config_action config_read(config *c, int argc, char **argv)
{
	written values[SETTINGS];
	questions q = {.help = false};
	*c = (config){.log_format = isatty(STDERR_FILENO) ? LOG_TEXT : LOG_JSON, .file = getenv("CONFIG")};
	for (const setting *s = settings; s < settings + SETTINGS; s++) {
		values[s - settings] = (written){NULL, "default"};
		if (s->fallback)
			set(s, c, values, s->fallback, "default");
	}
	config_action action = read_command_line(c, NULL, argc, argv, &q);
	if (action == CONFIG_SERVE && (q.help || q.version))
		return answer_questions(c, values, &q);
	if (action == CONFIG_SERVE && c->file && c->file[0])
		action = read_file(c, values);
	if (action == CONFIG_SERVE)
		action = read_environment(c, values);
	if (action == CONFIG_SERVE)
		action = read_command_line(c, values, argc, argv, &q);
	if (!c->workers)
		c->workers = default_workers(c);
	return action == CONFIG_SERVE ? answer_questions(c, values, &q) : action;
}

static bool is_same(const setting *s, const void *before, const void *after)
{
	if (s->read == read_switch)
		return *(const bool *)before == *(const bool *)after;
	if (s->read == read_count || s->read == read_duration || s->read == read_name)
		return *(const uint64_t *)before == *(const uint64_t *)after;
	const char *old = *(const char *const *)before, *new = *(const char *const *)after;
	return old && new ? strcmp(old, new) == 0 : old == new;
}

void config_compare(const config *before, const config *after,
                    void (*changed)(const char *name, bool reloaded))
{
	for (const setting *s = settings; s < settings + SETTINGS; s++) {
		if (!is_same(s, (const char *)before + s->offset, (const char *)after + s->offset))
			changed(s->name, s->flags & RELOADED);
	}
}
