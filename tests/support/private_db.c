#include "private_db.h"
#include "process.h"
#include "support.h"

#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

enum { LOCAL_DB_TIMEOUT_MS = 120000, MAX_ARGUMENTS = 64 };

struct private_db {
	char dir[4096];
	char *url;
	char *tcp_url;
};

/* Runs sql/local-db with arguments up to a NULL. True if it succeeded; else what it said is on stderr. */
static bool local_db(char **output, const char *const arguments[])
{
	const char *argv[MAX_ARGUMENTS + 2] = {support_source("sql/local-db")};
	char *said = NULL;
	int status;

	for (int i = 0; i < MAX_ARGUMENTS && arguments[i]; i++)
		argv[i + 1] = arguments[i];
	status = process_run(argv, NULL, LOCAL_DB_TIMEOUT_MS, &said);
	if (status != 0)
		fprintf(stderr, "local-db %s: status %d: %s\n", arguments[0], status, said ? said : "");
	if (output && status == 0)
		*output = said;
	else
		free(said);
	return status == 0;
}

private_db *private_db_start(const private_db_options *options)
{
	static int count;
	const private_db_options none = {0};
	const char *arguments[MAX_ARGUMENTS] = {"start", "--throwaway", "--owner"};
	int n = 3;
	char owner[16];
	char port[16];
	private_db *db = calloc(1, sizeof *db);

	if (!db)
		return NULL;
	if (!options)
		options = &none;
	snprintf(db->dir, sizeof db->dir, "%s.%d.%d", support_built("private-db"), (int)getpid(), ++count);
	snprintf(owner, sizeof owner, "%d", (int)getpid());
	arguments[n++] = owner;
	if (options->tcp) {
		snprintf(port, sizeof port, "%d", support_free_port());
		arguments[n++] = "--port";
		arguments[n++] = port;
	}
	if (options->tls)
		arguments[n++] = "--ssl";
	if (options->empty)
		arguments[n++] = "--empty";
	if (options->standby_of) {
		arguments[n++] = "--standby-of";
		arguments[n++] = options->standby_of->dir;
	}
	for (int i = 0; options->settings && options->settings[i] && n < MAX_ARGUMENTS - 4; i++) {
		arguments[n++] = "-o";
		arguments[n++] = options->settings[i];
	}
	arguments[n] = db->dir;
	if (!local_db(&db->url, arguments) ||
	    (options->tcp && !local_db(&db->tcp_url, (const char *[]){"url", "--tcp", db->dir, NULL}))) {
		private_db_stop(db);
		return NULL;
	}
	return db;
}

const char *private_db_url(const private_db *db)
{
	return db->url;
}

const char *private_db_tcp_url(const private_db *db)
{
	return db->tcp_url;
}

const char *private_db_dir(const private_db *db)
{
	return db->dir;
}

bool private_db_halt(private_db *db, bool immediate)
{
	if (immediate)
		return local_db(NULL, (const char *[]){"halt", "--immediate", db->dir, NULL});
	return local_db(NULL, (const char *[]){"halt", db->dir, NULL});
}

bool private_db_resume(private_db *db, const char *setting)
{
	if (setting)
		return local_db(NULL, (const char *[]){"resume", "-o", setting, db->dir, NULL});
	return local_db(NULL, (const char *[]){"resume", db->dir, NULL});
}

bool private_db_promote(private_db *db)
{
	return local_db(NULL, (const char *[]){"promote", db->dir, NULL});
}

void private_db_stop(private_db *db)
{
	if (!db)
		return;
	local_db(NULL, (const char *[]){"stop", db->dir, NULL});
	free(db->url);
	free(db->tcp_url);
	free(db);
}
