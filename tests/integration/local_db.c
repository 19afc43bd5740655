/* The private PostgreSQL itself: side by side, an outage, and gone when its owner is gone. */
#include <criterion/criterion.h>
#include <criterion/new/assert.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "activity.h"
#include "private_db.h"
#include "process.h"
#include "support.h"

static char *value(const char *url, const char *sql)
{
	activity *a = activity_open(url);
	char *result;

	if (!a)
		return NULL;
	result = activity_sql(a, sql);
	activity_close(a);
	return result;
}

Test(local_db, has_schema_and_seed_rows, .timeout = 120)
{
	char *title = value(support_database_url(), "SELECT title FROM album WHERE id = 1");

	cr_assert(eq(str, title, "Blue Train"));
	free(title);
}

Test(local_db, runs_side_by_side_with_others, .timeout = 240)
{
	private_db *one = private_db_start(NULL);
	private_db *two = private_db_start(&(private_db_options){
		.settings = (const char *const[]){"application_name=it's two", "max_connections=17", NULL},
		.empty = true,
	});

	cr_assert_not_null(one);
	cr_assert_not_null(two);
	free(value(private_db_url(one), "UPDATE album SET price = 1 WHERE id = 1"));
	char *in_one = value(private_db_url(one), "SELECT price FROM album WHERE id = 1");
	char *in_common = value(support_database_url(), "SELECT price FROM album WHERE id = 1");
	char *in_two = value(private_db_url(two), "SELECT to_regclass('album') IS NULL");
	char *setting = value(private_db_url(two), "SHOW max_connections");

	cr_expect(eq(str, in_one, "1.00"));
	cr_expect(eq(str, in_common, "56.99"));
	cr_expect(eq(str, in_two, "t"), "an empty one has no table");
	cr_expect(eq(str, setting, "17"));
	free(in_one);
	free(in_common);
	free(in_two);
	free(setting);
	private_db_stop(one);
	private_db_stop(two);
}

Test(local_db, speaks_tls_over_tcp_and_asks_for_the_password, .timeout = 240)
{
	private_db *db = private_db_start(&(private_db_options){.tcp = true, .tls = true});
	char url[256];

	cr_assert_not_null(db);
	snprintf(url, sizeof url, "%s?sslmode=require", private_db_tcp_url(db));
	char *tls = value(url, "SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()");

	cr_expect(eq(str, tls, "t"));
	free(tls);

	const char *host = strchr(private_db_tcp_url(db), '@');

	cr_assert_not_null(host);
	snprintf(url, sizeof url, "postgresql://tether:guessed%s", host);
	cr_expect_null(activity_open(url), "a wrong password must not do");
	private_db_stop(db);
}

Test(local_db, halts_and_resumes_with_its_rows, .timeout = 240)
{
	private_db *db = private_db_start(NULL);

	cr_assert_not_null(db);
	free(value(private_db_url(db), "DELETE FROM album WHERE id > 1"));
	cr_assert(private_db_halt(db, false));
	cr_expect_null(value(private_db_url(db), "SELECT 1"), "it is down");
	cr_assert(private_db_resume(db, "work_mem=5MB"));
	char *rows = value(private_db_url(db), "SELECT count(*) FROM album");
	char *setting = value(private_db_url(db), "SHOW work_mem");

	cr_expect(eq(str, rows, "1"));
	cr_expect(eq(str, setting, "5MB"));
	free(rows);
	free(setting);
	private_db_stop(db);
}

/*
 * With synchronous_commit off, as a throwaway database once had it, a commit stayed in the server's memory for up to
 * 0.6 s: a crash right after the start lost the table itself.
 */
Test(local_db, keeps_what_was_committed_when_it_crashes, .timeout = 240)
{
	private_db *db = private_db_start(&(private_db_options){
		.settings = (const char *const[]){"wal_writer_delay=10s", NULL}, /* the window, held open */
	});

	cr_assert_not_null(db);
	free(value(private_db_url(db), "DELETE FROM album WHERE id > 1"));
	cr_assert(private_db_halt(db, true));
	cr_assert(private_db_resume(db, NULL));
	char *rows = value(private_db_url(db), "SELECT count(*) FROM album");

	cr_assert_not_null(rows, "the table is gone");
	cr_expect(eq(str, rows, "1"));
	free(rows);
	private_db_stop(db);
}

struct database {
	pid_t postmaster;
	const char *dir;
};

static bool is_gone(void *arg)
{
	struct database *db = arg;

	return !process_exists(db->postmaster) && access(db->dir, F_OK) != 0;
}

/* `local-db run` becomes the command it is given: killing that kills the owner, by surprise. */
Test(local_db, is_gone_when_its_owner_is_killed, .timeout = 240)
{
	struct database db = {.dir = support_built("private-db.owner-killed")};
	char pid_file[4096];
	const char *argv[] = {support_source("sql/local-db"),
	                      "run",
	                      "--throwaway",
	                      db.dir,
	                      "sh",
	                      "-c",
	                      "echo ready; exec cat /dev/zero >/dev/null",
	                      NULL};
	process *owner = process_start(argv, NULL);

	cr_assert_not_null(owner);
	cr_assert(process_wait_for(owner, "ready", 60000), "%s", process_output(owner));
	snprintf(pid_file, sizeof pid_file, "%s/data/postmaster.pid", db.dir);
	FILE *file = fopen(pid_file, "r");
	char line[32] = "";

	cr_assert(file && fgets(line, sizeof line, file));
	fclose(file);
	db.postmaster = (pid_t)strtol(line, NULL, 10);
	cr_assert(ge(int, db.postmaster, 2));
	cr_assert(process_exists(db.postmaster), "it runs while its owner does");

	process_signal(owner, SIGKILL);
	cr_assert(eq(int, process_stop(owner), 128 + SIGKILL));
	cr_expect(eventually(is_gone, &db, 10000), "postmaster %d or %s is still there", (int)db.postmaster,
	          db.dir);
}

Test(local_db, belongs_to_one_owner_at_a_time, .timeout = 240)
{
	private_db *db = private_db_start(NULL);

	cr_assert_not_null(db);
	const char *argv[] = {support_source("sql/local-db"), "start", private_db_dir(db), NULL};
	char *said = NULL;

	cr_expect(eq(int, process_run(argv, NULL, 60000, &said), 1));
	cr_expect(said && strstr(said, "in use by process"), "it said: %s", said);
	free(said);
	char *alive = value(private_db_url(db), "SELECT 'yes'");

	cr_expect(eq(str, alive, "yes"), "the refused start did no harm");
	free(alive);
	private_db_stop(db);
}
