/* albumd as a service of systemd's. Its units are judged by systemd's own tools, where these are installed. */
#include <criterion/criterion.h>
#include <criterion/new/assert.h>
#include <netinet/in.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

#include "client.h"
#include "process.h"
#include "support.h"

enum { PATIENCE_MS = 30000 };

static void need(const char *tool)
{
	if (process_run((const char *const[]){tool, "--version", NULL}, NULL, PATIENCE_MS, NULL) != 0)
		cr_skip_test("there is no %s", tool);
}

/* The units in a directory of their own, with the albumd of the build. They are to say nothing. */
static int judge(const char *judge, char **said)
{
	static const char script[] =
		"set -e; units=$(mktemp -d); trap 'rm -r \"$units\"' EXIT; cd \"$units\"\n"
		"sed \"s,/usr/local/bin/albumd,$2,\" \"$1/albumd.service\" >albumd.service\n"
		"cp \"$1/albumd.socket\" .\n";
	char command[1024];
	snprintf(command, sizeof(command), "%s%s", script, judge);
	return process_run((const char *const[]){"/bin/sh", "-c", command, "judge", support_source("server"),
	                                         support_built("albumd"), NULL},
	                   NULL, PATIENCE_MS, said);
}

Test(systemd, units_are_well_formed, .timeout = 60)
{
	char *said;
	need("systemd-analyze");
	cr_expect(eq(int,
	             judge("systemd-analyze verify --man=no ./albumd.service ./albumd.socket 2>&1", &said),
	             0));
	cr_expect(eq(str, said, ""));
	free(said);
}

/* Of 100 points of exposure a plain service has 96. */
Test(systemd, service_is_hardened, .timeout = 60)
{
	char *said;
	need("systemd-analyze");
	cr_expect(
		eq(int,
	           judge("systemd-analyze security --offline=yes --threshold=20 albumd.service 2>&1", &said),
	           0),
		"%s", said);
	free(said);
}

/* As systemd hands a socket over: as descriptor 3, told in the environment. */
Test(systemd, socket_is_taken_without_being_told, .timeout = 60)
{
	char command[512];
	int fd = socket(AF_INET, SOCK_STREAM, 0);
	struct sockaddr_in in = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
	socklen_t size = sizeof in;

	cr_assert(fd >= 0 && bind(fd, (struct sockaddr *)&in, size) == 0 && listen(fd, 16) == 0);
	getsockname(fd, (struct sockaddr *)&in, &size);
	snprintf(command, sizeof command,
	         "LISTEN_FDS=1 LISTEN_PID=$$ exec %s --admin-listen off --database-url '%s'",
	         support_built("albumd"), support_database_url());
	process *p = process_start_handed((const char *const[]){"/bin/sh", "-c", command, NULL}, NULL, fd);
	cr_expect(process_wait_for(p, "albumd: listening on http://127.0.0.1:", PATIENCE_MS));
	close(fd);
	cr_expect(eq(int, client_get(ntohs(in.sin_port), "/albums/1", NULL, PATIENCE_MS), 200));
	process_signal(p, SIGTERM);
	cr_expect(eq(int, process_wait(p, PATIENCE_MS), 0));
	process_stop(p);
}

/* It is started by its first client, who is served. */
Test(systemd, is_activated_by_a_connection, .timeout = 60)
{
	char address[32];
	int port = support_free_port();
	reply r = {0};
	need("systemd-socket-activate");
	snprintf(address, sizeof(address), "127.0.0.1:%d", port);
	process *p =
		process_start((const char *const[]){"systemd-socket-activate", "--fdname=albumd", "-l",
	                                            address, support_built("albumd"), "--admin-listen", "off",
	                                            "--database-url", support_database_url(), NULL},
	                      NULL);
	cr_assert(process_wait_for(p, "Listening on", PATIENCE_MS));
	cr_expect(eq(int, client_get(port, "/albums/1", &r, PATIENCE_MS), 200));
	reply_free(&r);
	process_signal(p, SIGTERM);
	cr_expect(eq(int, process_wait(p, PATIENCE_MS), 0));
	process_stop(p);
}
