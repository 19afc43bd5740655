#include <libpq-fe.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "pgbouncer.h"
#include "process.h"
#include "support.h"

struct pgbouncer {
	char dir[256], url[256];
	process *process;
};

static const char *option(const PQconninfoOption *options, const char *keyword)
{
	for (; options->keyword; options++)
		if (strcmp(options->keyword, keyword) == 0)
			return options->val ? options->val : "";
	return "";
}

static void write_configuration(const pgbouncer *b, const char *server_url, const char *more, int port)
{
	char path[300];
	snprintf(path, sizeof(path), "%s/pgbouncer.ini", b->dir);
	FILE *file = fopen(path, "w");
	PQconninfoOption *server = PQconninfoParse(server_url, NULL);
	if (!file || !server)
		abort();
	fprintf(file,
	        "[databases]\n"
	        "albums = host=%s port=%s dbname=%s user=%s password=%s\n"
	        "[pgbouncer]\n"
	        "listen_addr = 127.0.0.1\n"
	        "listen_port = %d\n"
	        "unix_socket_dir =\n"
	        "auth_type = any\n"
	        "pool_mode = transaction\n"
	        "default_pool_size = 20\n"
	        "max_client_conn = 600\n"
	        "%s",
	        option(server, "host"), option(server, "port"), option(server, "dbname"),
	        option(server, "user"), option(server, "password"), port, more);
	PQconninfoFree(server);
	fclose(file);
	chmod(path, 0644);
}

static bool answers(void *arg)
{
	return PQping(((pgbouncer *)arg)->url) == PQPING_OK;
}

/* It refuses to be root; Debian keeps it out of an ordinary user's PATH. */
static const char *program(void)
{
	return access("/usr/sbin/pgbouncer", X_OK) == 0 ? "/usr/sbin/pgbouncer" : "pgbouncer";
}

bool pgbouncer_knows_statements(void)
{
	char *said = NULL;
	int major = 0, minor = 0;
	process_run((const char *const[]){program(), "--version", NULL}, NULL, 10000, &said);
	if (said)
		sscanf(said, "PgBouncer %d.%d", &major, &minor);
	free(said);
	return major > 1 || minor >= 21;
}

pgbouncer *pgbouncer_start(const char *server_url)
{
	return pgbouncer_start_with(server_url, "");
}

pgbouncer *pgbouncer_start_with(const char *server_url, const char *more)
{
	pgbouncer *b = calloc(1, sizeof(*b));
	int port = support_free_port();
	char ini[300];
	if (!b)
		abort();
	snprintf(b->dir, sizeof(b->dir), "/tmp/tether-pgbouncer.XXXXXX");
	if (!mkdtemp(b->dir) || chmod(b->dir, 0755) != 0)
		abort();
	write_configuration(b, server_url, more, port);
	snprintf(b->url, sizeof(b->url), "postgresql://anyone@127.0.0.1:%d/albums", port);
	snprintf(ini, sizeof(ini), "%s/pgbouncer.ini", b->dir);
	const char *const as_root[] = {program(), "-u", "nobody", ini, NULL};
	const char *const as_user[] = {program(), ini, NULL};
	b->process = process_start(geteuid() == 0 ? as_root : as_user, NULL);
	if (!b->process || !eventually(answers, b, 10000)) {
		char *said = b->process ? process_output(b->process) : NULL;
		fprintf(stderr, "pgbouncer: %s\n", said ? said : "cannot be started");
		abort();
	}
	return b;
}

const char *pgbouncer_url(const pgbouncer *b)
{
	return b->url;
}

void pgbouncer_stop(pgbouncer *b)
{
	char ini[300];
	if (!b)
		return;
	process_stop(b->process);
	snprintf(ini, sizeof(ini), "%s/pgbouncer.ini", b->dir);
	unlink(ini);
	rmdir(b->dir);
	free(b);
}
