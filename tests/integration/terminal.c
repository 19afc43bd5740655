/* albumd as somebody has it before them: on a terminal, which may be closed. */
#include <criterion/criterion.h>
#include <criterion/new/assert.h>
#include <poll.h>
#include <pty.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "support.h"

typedef struct terminal {
	int fd;
	pid_t pid;
	char shown[16 << 10];
	size_t size;
} terminal;

/* albumd on a terminal of its own, which would see the end of a test too. */
static void start(terminal *t)
{
	const char *path = support_built("albumd"), *url = support_database_url();

	*t = (terminal){.fd = -1};
	t->pid = forkpty(&t->fd, NULL, NULL, NULL);
	cr_assert(t->pid >= 0);
	if (t->pid == 0) {
		execl(path, path, "--listen", "127.0.0.1:0", "--admin-listen", "off", "--allow-delay",
		      "--database-url", url, NULL);
		_exit(127);
	}
}

struct awaited {
	terminal *t;
	const char *text;
};

static bool is_shown(void *arg)
{
	struct awaited *a = arg;
	terminal *t = a->t;
	struct pollfd readable = {.fd = t->fd, .events = POLLIN};

	while (poll(&readable, 1, 0) == 1 && t->size < sizeof t->shown - 1) {
		ssize_t size = read(t->fd, t->shown + t->size, sizeof t->shown - 1 - t->size);

		if (size <= 0)
			break;
		t->size += (size_t)size;
	}
	return strstr(t->shown, a->text);
}

static bool shows(terminal *t, const char *text)
{
	return eventually(is_shown, &(struct awaited){t, text}, 10000);
}

struct ending {
	pid_t pid;
	int status;
};

static bool has_ended(void *arg)
{
	struct ending *e = arg;

	return waitpid(e->pid, &e->status, WNOHANG) == e->pid;
}

/* Its exit status, -1 if it goes on; then it is killed. */
static int ended(const terminal *t)
{
	struct ending e = {.pid = t->pid};

	if (eventually(has_ended, &e, 10000))
		return WIFEXITED(e.status) ? WEXITSTATUS(e.status) : 128 + WTERMSIG(e.status);
	kill(t->pid, SIGKILL);
	waitpid(t->pid, NULL, 0);
	return -1;
}

Test(terminal, shows_what_to_try_and_plain_lines, .timeout = 60)
{
	static terminal t;

	start(&t);
	cr_expect(shows(&t, "the database is reachable database=albums"), "%s", t.shown);
	cr_expect(shows(&t, "Try, in another terminal:"), "%s", t.shown);
	cr_expect(shows(&t, "/albums?delay=60s'"), "%s", t.shown);
	kill(t.pid, SIGHUP);
	cr_expect(shows(&t, "settings read again"), "%s", t.shown);
	/* Ctrl-C */
	cr_assert(write(t.fd, "\x03", 1) == 1);
	cr_expect(shows(&t, "draining"), "%s", t.shown);
	cr_expect(eq(int, ended(&t), 0));
	close(t.fd);
}

/* SIGHUP comes with the end of the terminal, too, and means the end of what ran there, not only to be told again. */
Test(terminal, ends_with_it, .timeout = 60)
{
	static terminal t;

	start(&t);
	cr_expect(shows(&t, "Try, in another terminal:"), "%s", t.shown);
	close(t.fd);
	cr_expect(eq(int, ended(&t), 0));
}
