#include "child.h"

#include <signal.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

static void be_child(void (*fn)(void *arg), void *arg)
{
	setrlimit(RLIMIT_CORE, &(struct rlimit){0, 0});
	signal(SIGABRT, SIG_DFL);
	signal(SIGSEGV, SIG_DFL);
	fn(arg);
	_exit(0);
}

int in_child(void (*fn)(void *arg), void *arg, char *said, size_t size)
{
	int ends[2], status;
	if (pipe(ends) != 0)
		return -1;
	pid_t child = fork();
	if (child < 0) {
		close(ends[0]);
		close(ends[1]);
		return -1;
	}
	if (child == 0) {
		dup2(ends[1], STDERR_FILENO);
		be_child(fn, arg);
	}
	close(ends[1]);
	size_t length = 0;
	ssize_t n;
	while ((n = read(ends[0], said + length, size - 1 - length)) > 0)
		length += (size_t)n;
	said[length] = '\0';
	close(ends[0]);
	return waitpid(child, &status, 0) == child ? status : -1;
}
