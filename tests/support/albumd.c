#include "albumd.h"
#include "support.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { START_TIMEOUT_MS = 30000, DRAIN_TIMEOUT_MS = 30000, MAX_ARGUMENTS = 64 };

struct announcement {
	process *process;
	const char *what;
	int port;
};

/* Looks for the whole line "<what> http://127.0.0.1:<port>". */
static bool announced_or_ended(void *arg)
{
	struct announcement *a = arg;
	bool ended = process_wait(a->process, 0) >= 0; /* first, so that the last words are seen */
	char *output = process_output(a->process);
	char *line = output ? strstr(output, a->what) : NULL;
	char *end = line ? strchr(line, '\n') : NULL;

	if (end) {
		*end = '\0';
		a->port = (int)strtol(strrchr(line, ':') + 1, NULL, 10);
	}
	free(output);
	return a->port > 0 || ended;
}

/* The port it says it listens on, or 0. */
static int announced_port(process *p, const char *what)
{
	struct announcement announcement = {.process = p, .what = what};

	eventually(announced_or_ended, &announcement, START_TIMEOUT_MS);
	return announcement.port;
}

albumd *albumd_start(const albumd_options *options)
{
	const albumd_options none = {0};
	const char *argv[MAX_ARGUMENTS] = {support_built("albumd"), "--listen",    "127.0.0.1:0",
	                                   "--admin-listen",        "127.0.0.1:0", "--allow-delay",
	                                   "--database-url",        NULL /* below */};
	int n = 8;
	albumd *a = calloc(1, sizeof *a);

	if (!a)
		return NULL;
	if (!options)
		options = &none;
	argv[7] = options->database_url ? options->database_url : support_database_url();
	for (int i = 0; options->args && options->args[i] && n < MAX_ARGUMENTS - 1; i++)
		argv[n++] = options->args[i];
	a->process = process_start(argv, options->env);
	if (!a->process) {
		free(a);
		return NULL;
	}
	a->port = announced_port(a->process, "albumd: listening on");
	a->admin_port = a->port ? announced_port(a->process, "albumd: admin on") : 0;
	if (!a->port || !a->admin_port) {
		char *output = process_output(a->process);

		fprintf(stderr, "albumd did not say where it listens:\n%s", output ? output : "");
		free(output);
		albumd_stop(a);
		return NULL;
	}
	return a;
}

int albumd_stop(albumd *a)
{
	int status;

	if (!a)
		return -1;
	process_signal(a->process, SIGTERM);
	status = process_wait(a->process, DRAIN_TIMEOUT_MS);
	if (status < 0)
		process_signal(a->process, SIGKILL);
	process_stop(a->process);
	free(a);
	return status;
}
