/*
 * albumd as a whole: GET /albums/1 from 64 keep-alive connections (wrk) over 16 to a private PostgreSQL, beside its
 * twin of Go's net/http, database/sql and lib/pq (http_go/) where a Go compiler and lib/pq are installed, and beside
 * itself with a line in the log for each request, and over HTTPS. They run in turns, so that whatever else the machine
 * does is done to all; what counts is the ratio of the medians.
 *
 *	http_bench [SECONDS [ROUNDS]]     8 seconds each, three rounds
 */
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "albumd.h"
#include "certificates.h"
#include "go_twin.h"
#include "private_db.h"
#include "process.h"
#include "support.h"

enum { MAX_ROUNDS = 20 };

typedef struct contender {
	const char *name;
	bool tls;
	process *process; /* NULL: not to be had here */
	int port;
	double rate[MAX_ROUNDS], cpu_us[MAX_ROUNDS], p99_ms[MAX_ROUNDS];
} contender;

/* tests/run tells tests where things are; a benchmark finds out: BUILD/bench/http_bench, SOURCE/tests/bench/…. */
static void find_places(const char *program)
{
	char path[PATH_MAX];
	if (realpath(program, path)) {
		*strrchr(path, '/') = '\0';
		*strrchr(path, '/') = '\0';
		setenv("TETHER_BUILD", path, 0);
	}
	if (realpath(__FILE__, path)) {
		for (int i = 0; i < 3; i++)
			*strrchr(path, '/') = '\0';
		setenv("TETHER_SOURCE", path, 0);
	}
}

/* User and system time of a process so far, in microseconds. */
static double cpu_us(const contender *c)
{
	char path[64], line[1024] = "";
	snprintf(path, sizeof(path), "/proc/%d/stat", (int)process_pid(c->process));
	FILE *file = fopen(path, "re");
	if (!file || !fgets(line, sizeof(line), file))
		fprintf(stderr, "cannot read %s\n", path);
	if (file)
		fclose(file);
	char *at = strrchr(line, ')');
	for (int i = 0; at && i < 12; i++)
		at = strchr(at + 1, ' ');
	if (!at)
		return 0;
	double ticks = strtod(at, &at);
	ticks += strtod(at, NULL);
	return ticks * 1e6 / (double)sysconf(_SC_CLK_TCK);
}

/* "12.34us", "1.23ms", "1.23s" in milliseconds. */
static double milliseconds(const char *text)
{
	char *unit;
	double value = strtod(text, &unit);
	return strncmp(unit, "us", 2) == 0   ? value / 1000
	       : strncmp(unit, "ms", 2) == 0 ? value
	                                     : value * 1000;
}

static void run_round(contender *c, const char *seconds, int round)
{
	char duration[16], url[64];
	char *output = NULL;
	snprintf(duration, sizeof(duration), "-d%ss", seconds);
	snprintf(url, sizeof(url), "http%s://127.0.0.1:%d/albums/1", c->tls ? "s" : "", c->port);
	double before = cpu_us(c);
	int status =
		process_run((const char *const[]){"wrk", "-t1", "-c64", duration, "--latency", url, NULL},
	                    NULL, 120000, &output);
	double used = cpu_us(c) - before;
	const char *rate = output ? strstr(output, "Requests/sec:") : NULL;
	const char *requests = output ? strstr(output, " requests in") : NULL;
	const char *p99 = output ? strstr(output, "99%") : NULL;
	if (status != 0 || !rate || !requests || !p99 || strstr(output, "Non-2xx")) {
		fprintf(stderr, "wrk against %s failed:\n%s\n", c->name, output ? output : "");
		exit(1);
	}
	while (requests > output && requests[-1] != '\n')
		requests--;
	c->rate[round] = strtod(rate + strlen("Requests/sec:"), NULL);
	c->cpu_us[round] = used / strtod(requests, NULL);
	c->p99_ms[round] = milliseconds(p99 + strlen("99%"));
	printf("  %-28s %8.0f requests/s  %6.1f us of CPU each  p99 %6.2f ms\n", c->name, c->rate[round],
	       c->cpu_us[round], c->p99_ms[round]);
	fflush(stdout);
	free(output);
}

static bool start_albumd(contender *c, const char *url, const char *level)
{
	const certificates *made = certificates_get();
	const albumd_options options = {
		.database_url = url,
		.args = (const char *const[]){"--pool-size", "16", "--log-level", level,
	                                      c->tls ? "--tls-cert" : NULL, made->server, "--tls-key",
	                                      made->server_key, NULL},
	};
	albumd *a = albumd_start(&options);
	if (a) {
		c->process = a->process;
		c->port = a->port;
	}
	free(a); /* not what it holds, which is stopped as any process */
	return c->process;
}

int main(int argc, char **argv)
{
	const char *seconds = argc > 1 ? argv[1] : "8";
	int rounds = argc > 2 ? (int)strtol(argv[2], NULL, 10) : 3;
	contender contenders[] = {
		{.name = "albumd"},
		{.name = "albumd, a log line each"},
		{.name = "albumd, HTTPS", .tls = true},
		{.name = "Go net/http, lib/pq"},
	};
	enum { CONTENDERS = sizeof(contenders) / sizeof(*contenders), OURS = 0, OURS_TLS = 2, THEIRS = 3 };

	rounds = rounds < 1 ? 1 : rounds > MAX_ROUNDS ? MAX_ROUNDS : rounds;
	find_places(argv[0]);
	if (process_run((const char *const[]){"sh", "-c", "command -v wrk", NULL}, NULL, 10000, NULL) != 0) {
		printf("http: not measured, it needs wrk\n");
		return 0;
	}
	private_db *db = private_db_start(NULL);
	if (!db || !start_albumd(&contenders[0], private_db_url(db), "warn") ||
	    !start_albumd(&contenders[1], private_db_url(db), "info") ||
	    !start_albumd(&contenders[OURS_TLS], private_db_url(db), "warn"))
		return 1;
	printf("GET /albums/1, 64 connections, 16 to PostgreSQL, %d rounds of %s s in turns:\n", rounds,
	       seconds);
	contenders[THEIRS].process = go_twin_start(
		&(go_twin){.driver = "lib/pq", .database_url = private_db_url(db), .pool_size = 16},
		&contenders[THEIRS].port);
	for (int round = 0; round < rounds; round++) {
		for (contender *c = contenders; c < contenders + CONTENDERS; c++) {
			if (c->process)
				run_round(c, seconds, round);
		}
	}
	printf("medians:\n");
	for (contender *c = contenders; c < contenders + CONTENDERS; c++) {
		if (!c->process)
			continue;
		printf("  %-28s %8.0f requests/s  %6.1f us of CPU each  p99 %6.2f ms\n", c->name,
		       support_median(c->rate, rounds), support_median(c->cpu_us, rounds),
		       support_median(c->p99_ms, rounds));
	}
	printf("HTTPS: %.1f us of CPU a request more than HTTP\n",
	       support_median(contenders[OURS_TLS].cpu_us, rounds) -
	               support_median(contenders[OURS].cpu_us, rounds));
	if (contenders[THEIRS].process)
		printf("albumd against Go: %.2f times the requests, %.2f of the CPU for each\n",
		       support_median(contenders[OURS].rate, rounds) /
		               support_median(contenders[THEIRS].rate, rounds),
		       support_median(contenders[OURS].cpu_us, rounds) /
		               support_median(contenders[THEIRS].cpu_us, rounds));
	for (contender *c = contenders; c < contenders + CONTENDERS; c++)
		process_stop(c->process);
	private_db_stop(db);
	return 0;
}
