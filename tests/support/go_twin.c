#include "go_twin.h"
#include "support.h"

#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct started {
	process *process;
	int port;
};

static bool listens_or_ended(void *arg)
{
	struct started *s = arg;
	char *output = process_output(s->process);
	char *colon = output && strchr(output, '\n') ? strrchr(output, ':') : NULL;
	if (colon)
		s->port = (int)strtol(colon + 1, NULL, 10);
	free(output);
	return s->port || process_wait(s->process, 0) >= 0;
}

/* Debian's packages of Go's libraries lie in a GOPATH of their own. */
static bool build(const char *program, const char *driver)
{
	char *output = NULL;
	bool pgx = strcmp(driver, "pgx") == 0;
	const char *const go[] = {"go",
	                          "build",
	                          "-o",
	                          program,
	                          support_source("tests/bench/http_go/main.go"),
	                          pgx ? support_source("tests/bench/http_go/pgx.go") : NULL,
	                          NULL};
	const char *const env[] = {"GO111MODULE=off", "GOPATH=/usr/share/gocode", "GOFLAGS=", NULL};
	int status = process_run(go, env, 300000, &output);
	if (status != 0)
		printf("  no Go twin with %s: %s\n", driver, output && *output ? output : "go cannot be run");
	free(output);
	return status == 0;
}

process *go_twin_start(const go_twin *twin, int *port)
{
	char program[PATH_MAX], url[2048], size[16];
	struct started s = {0};
	snprintf(program, sizeof(program), "%s%s", support_built("bench/http_go"),
	         strcmp(twin->driver, "pgx") == 0 ? "_pgx" : "");
	snprintf(url, sizeof(url), "%s%csslmode=disable%s%s", twin->database_url,
	         strchr(twin->database_url, '?') ? '&' : '?', twin->name ? "&application_name=" : "",
	         twin->name ? twin->name : "");
	snprintf(size, sizeof(size), "%d", twin->pool_size);
	if (!build(program, twin->driver))
		return NULL;
	s.process = process_start((const char *const[]){program, twin->driver, url, size,
	                                                twin->deadline ? twin->deadline : "5s", NULL},
	                          NULL);
	if (!s.process || (eventually(listens_or_ended, &s, 20000) && s.port)) {
		*port = s.port;
		return s.process;
	}
	char *output = process_output(s.process);
	printf("  no Go twin with %s: %s\n", twin->driver, output ? output : "");
	free(output);
	process_stop(s.process);
	return NULL;
}
