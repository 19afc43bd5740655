#include "process.h"
#include "support.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>
#ifdef __linux__
#include <sys/prctl.h>
#endif

enum { HANDED_FD = STDERR_FILENO + 1 };

struct process {
	pid_t pid;
	int status; /* of waitpid, once `ended` */
	bool ended;
	int output; /* a file without a name, so that a full pipe never stops the program */
};

static int open_unnamed_file(void)
{
	char path[] = "/tmp/tether-output.XXXXXX";
	int fd = mkostemp(path, O_APPEND | O_CLOEXEC);

	if (fd >= 0)
		unlink(path);
	return fd;
}

static void change_environment(const char *const env[])
{
	for (; env && *env; env++) {
		if (strchr(*env, '='))
			putenv((char *)*env);
		else
			unsetenv(*env);
	}
}

/* In the child. Leaves it as a shell would: default signals, nothing but the standard descriptors. */
static _Noreturn void become(const char *const argv[], const char *const env[], int output, pid_t parent,
                             int handed)
{
	sigset_t none;
	int nothing = open("/dev/null", O_RDONLY);

#ifdef __linux__
	prctl(PR_SET_PDEATHSIG, SIGKILL);
#endif
	if (getppid() != parent) /* it died before prctl */
		_exit(127);
	sigemptyset(&none);
	sigprocmask(SIG_SETMASK, &none, NULL);
	dup2(nothing, STDIN_FILENO);
	dup2(output, STDOUT_FILENO);
	dup2(output, STDERR_FILENO);
	if (handed == HANDED_FD)
		fcntl(handed, F_SETFD, 0);
	else if (handed >= 0)
		dup2(handed, HANDED_FD);
	for (int fd = handed >= 0 ? HANDED_FD + 1 : HANDED_FD; fd < 256; fd++)
		close(fd);
	change_environment(env);
	execvp(argv[0], (char *const *)argv);
	fprintf(stderr, "cannot run %s: %s\n", argv[0], strerror(errno));
	_exit(127);
}

process *process_start(const char *const argv[], const char *const env[])
{
	return process_start_handed(argv, env, -1);
}

process *process_start_handed(const char *const argv[], const char *const env[], int fd)
{
	process *p = calloc(1, sizeof *p);
	pid_t parent = getpid();

	if (!p)
		return NULL;
	p->output = open_unnamed_file();
	if (p->output < 0)
		goto failed;
	p->pid = fork();
	if (p->pid < 0)
		goto failed;
	if (p->pid == 0)
		become(argv, env, p->output, parent, fd);
	return p;

failed:
	fprintf(stderr, "cannot start %s: %s\n", argv[0], strerror(errno));
	if (p->output >= 0)
		close(p->output);
	free(p);
	return NULL;
}

pid_t process_pid(const process *p)
{
	return p->pid;
}

bool process_signal(process *p, int signal)
{
	return !p->ended && kill(p->pid, signal) == 0;
}

static bool has_ended(void *arg)
{
	process *p = arg;

	if (!p->ended)
		p->ended = waitpid(p->pid, &p->status, WNOHANG) == p->pid;
	return p->ended;
}

int process_wait(process *p, int timeout_ms)
{
	if (!eventually(has_ended, p, timeout_ms))
		return -1;
	return WIFSIGNALED(p->status) ? 128 + WTERMSIG(p->status) : WEXITSTATUS(p->status);
}

char *process_output(const process *p)
{
	struct stat file;
	char *text;
	ssize_t length;

	if (fstat(p->output, &file))
		return NULL;
	text = malloc((size_t)file.st_size + 1);
	if (!text)
		return NULL;
	length = pread(p->output, text, (size_t)file.st_size, 0);
	text[length > 0 ? length : 0] = '\0';
	return text;
}

struct wanted {
	process *p;
	const char *text;
	bool found;
};

static bool found_or_ended(void *arg)
{
	struct wanted *wanted = arg;
	bool ended = has_ended(wanted->p); /* first, so that the last words are seen */
	char *output = process_output(wanted->p);

	wanted->found = output && strstr(output, wanted->text);
	free(output);
	return wanted->found || ended;
}

bool process_wait_for(process *p, const char *text, int timeout_ms)
{
	struct wanted wanted = {.p = p, .text = text};

	eventually(found_or_ended, &wanted, timeout_ms);
	return wanted.found;
}

int process_stop(process *p)
{
	int status;

	if (!p)
		return -1;
	process_signal(p, SIGTERM);
	status = process_wait(p, 10000);
	if (status < 0) {
		process_signal(p, SIGKILL);
		status = process_wait(p, 10000);
	}
	close(p->output);
	free(p);
	return status;
}

int process_run(const char *const argv[], const char *const env[], int timeout_ms, char **output)
{
	process *p = process_start(argv, env);
	int status;

	if (!p)
		return -1;
	status = process_wait(p, timeout_ms);
	if (status < 0)
		process_signal(p, SIGKILL);
	if (output) {
		*output = process_output(p);
		for (size_t n = *output ? strlen(*output) : 0; n > 0 && (*output)[n - 1] == '\n'; n--)
			(*output)[n - 1] = '\0';
	}
	process_stop(p);
	return status;
}

bool process_exists(pid_t pid)
{
	char path[64];
	char stat[512] = "";
	const char *state;
	FILE *file;

	if (kill(pid, 0) && errno == ESRCH)
		return false;
	/* "pid (name) state …": a dead process stays as Z until its parent, or a container's lazy init, looks. */
	snprintf(path, sizeof path, "/proc/%d/stat", (int)pid);
	file = fopen(path, "r");
	if (!file)
		return access("/proc/self/stat", F_OK) != 0; /* not there, or no /proc to tell */
	state = fgets(stat, sizeof stat, file) ? strrchr(stat, ')') : NULL;
	fclose(file);
	return state && state[1] == ' ' && !strchr("ZX", state[2]);
}
