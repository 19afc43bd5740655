#include "config.h"

#include <ctype.h>
#include <errno.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "complain.h"
#include "parse.h"
#include "setting.h"

/* Each setting's value as it was written, and where: for --print-config, and for finding what has changed. */
typedef struct written {
	const char *value;
	const char *where; /* "--pool-size", "POOL_SIZE", the file's name, "default" */
} written;

/* ---- Complaints -------------------------------------------------------------------------------------------- */

#define wrong(...) (complain(__VA_ARGS__), CONFIG_WRONG)

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

static config_action read_line(config *c, written values[], char *line, size_t size, int number)
{
	if (memchr(line, '\0', size)) /* all behind it would be lost without a word */
		return wrong("%s, line %d: a NUL: this is not a text file", c->file, number);
	cut_comment(line);
	char *name = trim(line);
	char *equals = strchr(name, '=');
	if (!name[0])
		return CONFIG_SERVE;
	if (!equals)
		return wrong("%s, line %d: should be a setting, name = value", c->file, number);
	*equals = '\0';
	name = trim(name);
	const setting *s = setting_find(name, strlen(name));
	if (!s)
		return wrong("%s, line %d: there is no setting %s (see albumd --help)", c->file, number,
		             name);
	const char *value = setting_keep(trim(equals + 1));
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
	ssize_t size;
	for (int number = 1; action == CONFIG_SERVE && (size = getline(&line, &capacity, file)) >= 0;
	     number++)
		action = read_line(c, values, line, (size_t)size, number);
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
	const setting *s = setting_find(argument + 2, length - 2);
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
			const setting *s = setting_find(argv[i] + 2, strlen(argv[i] + 2));
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
		printf("  %-31s %s", flag, s->help);
		if (s->fallback && s->fallback[0])
			printf(" (%s)", s->fallback);
		putchar('\n');
	}
	puts("\n"
	     "  --config FILE                   read settings from a file: lines of name = value; SIGHUP "
	     "reads it "
	     "again\n"
	     "  --check-config                  say whether the settings are good, and exit\n"
	     "  --print-config                  print them all, and where each comes from, and exit\n"
	     "  --healthcheck                   ask the albumd that runs with these settings whether it is "
	     "ready\n"
	     "  --help                          this\n"
	     "  --version                       the version\n\n"
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
		else if (s->flags & SETTING_SECRET)
			print_secret(w->value);
		else
			fputs(w->value, stdout);
		printf("  # %.*s\n", (int)strcspn(w->where, "="), w->where);
	}
}

/* ---- All of it ------------------------------------------------------------------------------------------------------ */

/* Whether the service manager has opened sockets for us: then the first of them, unless told otherwise. */
static bool is_handed_sockets(void)
{
	const char *pid = getenv("LISTEN_PID"), *count = getenv("LISTEN_FDS");
	uint64_t number;
	return pid && count && parse_uint(pid, INT32_MAX, &number) && (pid_t)number == getpid() &&
	       parse_uint(count, INT32_MAX, &number) && number > 0;
}

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
	if (strcmp(values[setting_find("listen", 6) - settings].where, "default") == 0 && is_handed_sockets())
		c->listen = "systemd:";
	if (!c->workers)
		c->workers = default_workers(c);
	return action == CONFIG_SERVE ? answer_questions(c, values, &q) : action;
}

void config_compare(const config *before, const config *after,
                    void (*changed)(const char *name, bool reloaded))
{
	for (const setting *s = settings; s < settings + SETTINGS; s++) {
		if (!setting_is_same(s, before, after))
			changed(s->name, s->flags & SETTING_RELOADED);
	}
}
