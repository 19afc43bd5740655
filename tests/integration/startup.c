/* Starting albumd: what it says, and what it says when something is wrong. */
#include <criterion/criterion.h>
#include <criterion/new/assert.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "client.h"
#include "private_db.h"
#include "process.h"
#include "service.h"
#include "support.h"

/* Runs albumd to its end with those arguments; returns what it wrote, to be freed. */
static char *run(const char *const args[], const char *const env[], int *status)
{
	const char *argv[16] = {support_built("albumd")};
	char *output = NULL;

	for (int i = 0; args[i]; i++)
		argv[i + 1] = args[i];
	*status = process_run(argv, env, 20000, &output);
	return output ? output : strdup("");
}

/* Exit status 2, and one line that holds all of `words` (NULL-terminated). */
static void expect_usage_error(const char *const args[], const char *const env[], const char *const words[])
{
	int status;
	char *output = run(args, env, &status);

	cr_expect(eq(int, status, 2), "%s", output);
	cr_expect_null(strchr(output, '\n'), "more than a line: %s", output);
	cr_expect(strncmp(output, "albumd: ", 8) == 0, "%s", output);
	for (int i = 0; words[i]; i++)
		cr_expect_not_null(strstr(output, words[i]), "'%s' is not in: %s", words[i], output);
	free(output);
}

#define LIST(...) ((const char *const[]){__VA_ARGS__, NULL})

Test(startup, wrong_values_are_one_clear_line, .timeout = 120)
{
	expect_usage_error(LIST("--pool-size", "0"), NULL, LIST("--pool-size", "1 to 10000"));
	expect_usage_error(LIST("--pool-size=many"), NULL, LIST("--pool-size", "many"));
	expect_usage_error(LIST("--pool-size", "99999999999999999999"), NULL, LIST("--pool-size"));
	expect_usage_error(LIST("--query-timeout", "5"), NULL, LIST("--query-timeout", "5s"));
	expect_usage_error(LIST("--query-timeout", "0"), NULL, LIST("--query-timeout"));
	expect_usage_error(LIST("--query-timeout"), NULL, LIST("--query-timeout", "value"));
	expect_usage_error(LIST("--drain-timeout", "1d"), NULL, LIST("--drain-timeout", "1d"));
	expect_usage_error(LIST("--allow-delay=maybe"), NULL, LIST("--allow-delay", "on or off"));
	expect_usage_error(LIST("--log-level", "loud"), NULL, LIST("--log-level", "debug"));
	expect_usage_error(LIST("--log-format", "xml"), NULL, LIST("text or json"));
	expect_usage_error(LIST("--listen", "8080"), NULL, LIST("--listen", "127.0.0.1:8080"));
	expect_usage_error(LIST("--listen", "localhost:99999"), NULL, LIST("--listen"));
	expect_usage_error(LIST("--admin-listen", "::1:80"), NULL, LIST("--admin-listen", "off"));
	expect_usage_error(LIST("--colour"), NULL, LIST("--colour", "--help"));
	expect_usage_error(LIST("serve"), NULL, LIST("serve", "--help"));
	expect_usage_error(LIST("--database-url", "nonsense here"), NULL, LIST("--database-url"));
	expect_usage_error(LIST("--log-level", "info"), LIST("POOL_SIZE=-3"),
	                   LIST("POOL_SIZE", "environment"));
	expect_usage_error(LIST("--log-level", "info"), LIST("QUERY_TIMEOUT=soon"),
	                   LIST("QUERY_TIMEOUT", "soon"));
}

Test(startup, help_and_version, .timeout = 60)
{
	int status;
	char *output = run(LIST("--help"), NULL, &status);

	cr_expect(eq(int, status, 0));
	for (const char *const *flag =
	             LIST("--listen", "--admin-listen", "--database-url", "--pool-size", "--workers",
	                  "--queue-size", "--query-timeout", "--drain-timeout", "--allow-delay",
	                  "--log-level", "--log-format", "--config", "--slow-query");
	     *flag; flag++)
		cr_expect_not_null(strstr(output, *flag), "%s is not in the help", *flag);
	free(output);
	output = run(LIST("--version"), NULL, &status);
	cr_expect(eq(int, status, 0));
	cr_expect(strncmp(output, "albumd ", 7) == 0, "%s", output);
	free(output);
}

/* Every flag is in the table of server/README.md, and every flag of the table is one. */
Test(startup, readme_names_every_flag, .timeout = 60)
{
	int status, flags = 0;
	char *output = run(LIST("--help"), NULL, &status), *rest = output, *line;
	char readme[64 << 10], name[64];
	FILE *file = fopen(support_source("server/README.md"), "re");

	cr_assert_not_null(file);
	readme[fread(readme, 1, sizeof readme - 1, file)] = '\0';
	fclose(file);
	while ((line = strsep(&rest, "\n"))) {
		if (strncmp(line, "  --", 4) != 0 || strncmp(line, "  --help", 8) == 0 ||
		    strncmp(line, "  --version", 11) == 0)
			continue;
		snprintf(name, sizeof name, "`%.*s", (int)strcspn(line + 2, " "), line + 2);
		cr_expect_not_null(strstr(readme, name), "%s` is not in the README", name);
		flags++;
	}
	cr_expect(flags > 30);
	free(output);
	output = run(LIST("--help"), NULL, &status);
	for (const char *at = readme; (at = strstr(at, "\n| `--")); at++) {
		snprintf(name, sizeof name, "  %.*s ", (int)strcspn(at + 4, "`"), at + 4);
		cr_expect_not_null(strstr(output, name), "%s is in the README, but no flag", name);
	}
	free(output);
}

Test(startup, flags_win_over_the_environment, .timeout = 60)
{
	albumd *a = albumd_start(&(albumd_options){.args = LIST("--pool-size", "3"),
	                                           .env = LIST("POOL_SIZE=5", "QUEUE_SIZE=7")});
	reply r;

	cr_assert_not_null(a);
	cr_expect(eq(int, client_get(a->admin_port, "/metrics", &r, 5000), 200));
	cr_expect_not_null(strstr(r.body, "\ndb_pool_size 3\n"));
	reply_free(&r);
	cr_expect(eq(int, albumd_stop(a), 0));
	a = albumd_start(&(albumd_options){.env = LIST("POOL_SIZE=5")});
	cr_assert_not_null(a);
	cr_expect(eq(int, client_get(a->admin_port, "/metrics", &r, 5000), 200));
	cr_expect_not_null(strstr(r.body, "\ndb_pool_size 5\n"));
	reply_free(&r);
	cr_expect(eq(int, albumd_stop(a), 0));
}

/* A file of settings, to be unlinked. */
static char *file_of(const char *text)
{
	char *path = strdup("/tmp/tether-config.XXXXXX");
	int fd = mkstemp(path);

	cr_assert(fd >= 0 && write(fd, text, strlen(text)) == (ssize_t)strlen(text));
	close(fd);
	return path;
}

Test(startup, settings_from_a_file, .timeout = 60)
{
	char *path = file_of("# settings\n\n pool-size = 3 # few\nqueue-size=9\n"
	                     "database-url = postgresql://me:s3cret@host/db?password=hush&x=1\n");
	int status;
	char *output = run(LIST("--config", path, "--print-config", "--queue-size=8"),
	                   LIST("QUERY_TIMEOUT=2s", "DATABASE_URL"), &status);

	cr_expect(eq(int, status, 0));
	for (const char *const *line =
	             LIST("pool-size = 3  # /tmp/tether-config", "queue-size = 8  # --queue-size",
	                  "query-timeout = 2s  # QUERY_TIMEOUT", "drain-timeout = 10s  # default",
	                  "workers = ", "postgresql://me:****@host/db?password=****&x=1");
	     *line; line++)
		cr_expect_not_null(strstr(output, *line), "'%s' is not in:\n%s", *line, output);
	cr_expect_null(strstr(output, "s3cret"));
	free(output);
	/* What is printed is itself a file of settings. */
	output = run(LIST("--print-config"), LIST("DATABASE_URL"), &status);
	char *printed = file_of(output);
	free(output);
	output = run(LIST("--check-config", "--config", printed), LIST("DATABASE_URL"), &status);
	cr_expect(eq(int, status, 0), "%s", output);
	free(output);
	output = run(LIST("--check-config", "--database-url", "user=me password='a b' host=h password=x"),
	             NULL, &status);
	cr_expect(eq(int, status, 0), "%s", output);
	free(output);
	unlink(path);
	unlink(printed);
	free(path);
	free(printed);
}

static void expect_file_error(const char *text, const char *const words[])
{
	char *path = file_of(text);

	expect_usage_error(LIST("--check-config", "--config", path), NULL, words);
	unlink(path);
	free(path);
}

Test(startup, wrong_files_are_one_clear_line, .timeout = 60)
{
	expect_file_error("pool-size = 3\nnonsense\n", LIST("line 2", "name = value"));
	expect_file_error("\n\npool-sise = 3\n", LIST("line 3", "pool-sise"));
	expect_file_error("pool-size =\n", LIST("line 1", "pool-size", "1 to 10000"));
	expect_file_error("write-token-file = /nonexistent/token\n",
	                  LIST("write-token-file", "No such file"));
	expect_usage_error(LIST("--config", "/nonexistent/file"), NULL,
	                   LIST("/nonexistent/file", "No such file"));
	expect_usage_error(LIST("--config"), NULL, LIST("--config", "value"));
	expect_usage_error(LIST("--check-config", "--database-url", "host"), NULL, LIST("--database-url"));
}

/* Whether a request leaves no line in the log any more. */
struct silence {
	service *s;
	int requests;
};

static bool is_silent(void *arg)
{
	struct silence *silence = arg;
	char target[32];

	snprintf(target, sizeof target, "/albums/1?n=%d", silence->requests++);
	client_get(silence->s->port, target, NULL, 5000);
	json_t *line = service_log(silence->s, target, 100);
	json_decref(line);
	return !line;
}

static bool write_file(const char *path, const char *text)
{
	FILE *file = fopen(path, "we");
	bool written = file && fputs(text, file) >= 0;

	return file && fclose(file) == 0 && written;
}

Test(startup, hangup_reads_the_file_again, .timeout = 60)
{
	char *path = file_of("allow-delay = off\nlog-level = info\n");
	service *s = service_start(LIST("--config", path));

	/* albumd_start gives it --allow-delay, and flags win over the file: another switch, then. */
	cr_expect(eq(int, client_get(s->port, "/albums?limit=all", NULL, 5000), 400));
	cr_assert(write_file(path, "allow-all = on\npool-size = 3\n"));
	process_signal(s->albumd->process, SIGHUP);
	cr_expect(process_wait_for(s->albumd->process, "\"setting\":\"allow-all\"", 10000));
	cr_expect(process_wait_for(s->albumd->process, "not before a restart", 10000));
	cr_expect(eq(int, client_get(s->port, "/albums?limit=all", NULL, 5000), 200));
	cr_assert(write_file(path, "allow-all = perhaps\n"));
	process_signal(s->albumd->process, SIGHUP);
	cr_expect(process_wait_for(s->albumd->process, "left as they are", 10000));
	cr_expect(process_wait_for(s->albumd->process, "line 1: allow-all = perhaps: should be on or off\"}",
	                           10000),
	          "and why, in a line of the log");
	cr_expect(eq(int, client_get(s->port, "/albums?limit=all", NULL, 5000), 200));
	cr_assert(write_file(path, "log-level = error\n"));
	process_signal(s->albumd->process, SIGHUP);
	struct silence silence = {s, 0};
	cr_expect(eventually(is_silent, &silence, 10000), "the log goes on");
	cr_expect(eq(int, service_stop(s), 0));
	unlink(path);
	free(path);
}

Test(startup, port_that_is_taken, .timeout = 60)
{
	service *s = service_start(NULL);
	char address[32];
	int status;
	char *output;

	snprintf(address, sizeof address, "127.0.0.1:%d", s->port);
	output = run(LIST("--listen", address, "--admin-listen", "off"), NULL, &status);
	cr_expect(eq(int, status, 1));
	cr_expect(strstr(output, address) && strstr(output, "--listen") && !strchr(output, '\n'), "%s",
	          output);
	free(output);
	output = run(LIST("--listen", "127.0.0.1:0", "--admin-listen", address), NULL, &status);
	cr_expect(eq(int, status, 1));
	cr_expect(strstr(output, address) && strstr(output, "--admin-listen") && !strchr(output, '\n'), "%s",
	          output);
	free(output);
	service_stop(s);
}

/* Starts it on a database that cannot be used; it must serve all the same, and say what is wrong. */
static void expect_complaint(const char *url, const char *complaint, int answer)
{
	albumd *a = albumd_start(&(albumd_options){.database_url = url});
	reply r;

	cr_assert_not_null(a);
	cr_expect(process_wait_for(a->process, complaint, 10000), "'%s' is not in the log", complaint);
	cr_expect(eq(int, client_get(a->port, "/albums/1", &r, 10000), answer), "%s", r.body);
	char *retry = reply_header(&r, "Retry-After");
	cr_expect(answer != 503 || retry, "no Retry-After");
	free(retry);
	reply_free(&r);
	cr_expect(eq(int, client_get(a->admin_port, "/livez", NULL, 5000), 200));
	cr_expect(eq(int, client_get(a->admin_port, "/readyz", &r, 5000), 503));
	cr_expect_not_null(strstr(r.body, complaint), "%s", r.body);
	cr_expect_null(strstr(r.body, "s3cret"));
	reply_free(&r);
	char *output = process_output(a->process);
	cr_expect_null(strstr(output, "s3cret"), "a password in the log: %s", output);
	free(output);
	cr_expect(eq(int, albumd_stop(a), 0));
}

Test(startup, database_that_is_not_there, .timeout = 60)
{
	char url[96];

	snprintf(url, sizeof url, "postgresql://me:s3cret@127.0.0.1:%d/albums?password=s3cret",
	         support_free_port());
	expect_complaint(url, "no database listens there: start PostgreSQL", 503);
}

/* ---- What waiting would not change ends it at once, with a sentence ------------------------------------------ */

static void expect_refusal(const char *url, const char *const words[])
{
	int status;
	char *output = run(LIST("--listen", "127.0.0.1:0", "--admin-listen", "off", "--log-format", "text",
	                        "--database-url", url),
	                   NULL, &status);

	cr_expect(eq(int, status, 1), "%s", output);
	cr_expect_null(strchr(output, '\n'), "more than a line: %s", output);
	cr_expect(strncmp(output, "albumd: ", 8) == 0, "%s", output);
	for (int i = 0; words[i]; i++)
		cr_expect_not_null(strstr(output, words[i]), "'%s' is not in: %s", words[i], output);
	fprintf(stderr, "%s\n", output);
	free(output);
}

/* The URL with a part of it, `from`, replaced. To be freed. */
static char *replaced(const char *url, const char *from, const char *to)
{
	const char *at = strstr(url, from);
	char *made = NULL;

	cr_assert_not_null(at, "%s is not in %s", from, url);
	cr_assert(asprintf(&made, "%.*s%s%s", (int)(at - url), url, to, at + strlen(from)) > 0);
	return made;
}

Test(startup, database_that_is_wrong, .timeout = 120)
{
	private_db *db = private_db_start(&(private_db_options){.tcp = true});
	char *url, *password;

	cr_assert_not_null(db);
	/* postgresql://user:password@127.0.0.1:port/albums */
	const char *right = private_db_tcp_url(db);
	const char *colon = strchr(strstr(right, "://") + 3, ':');
	cr_assert(colon && strchr(colon, '@'), "%s", right);
	password = strndup(colon, (size_t)(strchr(colon, '@') - colon));

	url = replaced(right, password, ":wr0ng");
	expect_refusal(url, LIST("does not accept the password", "PGPASSWORD", "--database-url"));
	free(url);
	url = replaced(right, password, "");
	expect_refusal(url, LIST("asks for a password", "PGPASSWORD"));
	free(url);
	url = replaced(right, "/albums", "/nowhere");
	expect_refusal(url, LIST("no such database", "createdb", "nowhere"));
	free(url);
	url = replaced(right, "/albums", "/albums?sslmode=require");
	expect_refusal(url, LIST("does not speak TLS", "ssl = on"));
	free(url);
	url = replaced(right, "/albums", "/postgres");
	expect_refusal(url, LIST("no table album", "sql/schema.sql"));
	free(url);
	cr_assert(asprintf(&url, "%s&user=nobody_here", private_db_url(db)) > 0);
	expect_refusal(url, LIST("knows no such user", "createuser"));
	free(url);
	free(password);
	private_db_stop(db);
}

Test(startup, admin_listener_that_is_open_to_others_is_warned_of, .timeout = 60)
{
	static const struct {
		const char *address;
		bool warned;
	} addresses[] = {{"127.0.0.1:0", false}, {"0.0.0.0:0", true}};

	for (int i = 0; i < 2; i++) {
		process *p = process_start(LIST(support_built("albumd"), "--listen", "127.0.0.1:0",
		                                "--admin-listen", addresses[i].address, "--database-url",
		                                support_database_url()),
		                           NULL);
		char *output;

		cr_assert(process_wait_for(p, "albumd: listening on", 10000));
		process_signal(p, SIGTERM);
		cr_expect(eq(int, process_wait(p, 10000), 0));
		output = process_output(p);
		bool warned = strstr(output, "--admin-token-file");

		cr_expect(eq(int, warned, addresses[i].warned), "%s", output);
		free(output);
		process_stop(p);
	}
}

/* ---- albumd --healthcheck ------------------------------------------------------------------------------------- */

static void expect_health(const char *address, int expected, const char *word)
{
	int status;
	char *output = run(LIST("--healthcheck", "--admin-listen", address), NULL, &status);

	cr_expect(eq(int, status, expected), "%s", output);
	cr_expect(strstr(output, word) && !strchr(output, '\n'), "%s", output);
	free(output);
}

Test(startup, healthcheck_asks_the_one_that_runs, .timeout = 60)
{
	char address[64], socket_path[64], url[96];
	service *s = service_start(NULL);

	snprintf(address, sizeof address, "127.0.0.1:%d", s->admin_port);
	expect_health(address, 0, "ok");
	snprintf(address, sizeof address, ":%d", s->admin_port);
	expect_health(address, 0, "ok");
	snprintf(address, sizeof address, "127.0.0.1:%d", s->port);
	expect_health(address, 1, "not ready");
	service_stop(s);
	expect_health(address, 1, "nobody answers on 127.0.0.1");
	expect_health("off", 1, "off");

	snprintf(url, sizeof url, "postgresql://127.0.0.1:%d/albums", support_free_port());
	snprintf(socket_path, sizeof socket_path, "unix:/tmp/tether-admin.%d", (int)getpid());
	process *p = process_start(LIST(support_built("albumd"), "--listen", "127.0.0.1:0", "--admin-listen",
	                                socket_path, "--database-url", url),
	                           NULL);
	cr_assert(process_wait_for(p, "listening on", 10000));
	expect_health(socket_path, 1, "no database listens there");
	process_signal(p, SIGTERM);
	cr_expect(eq(int, process_wait(p, 10000), 0));
	process_stop(p);
}
