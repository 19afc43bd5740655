#include "support.h"

#include <arpa/inet.h>
#include <dirent.h>
#include <netinet/in.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

int64_t now_ms(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

bool eventually(bool (*condition)(void *arg), void *arg, int timeout_ms)
{
	int64_t deadline = now_ms() + (int64_t)timeout_ms * support_patience();

	while (!condition(arg)) {
		if (now_ms() >= deadline)
			return condition(arg);
		poll(NULL, 0, 2);
	}
	return true;
}

struct count {
	atomic_int *counter;
	int value;
};

static bool is_reached(void *arg)
{
	const struct count *count = arg;
	return atomic_load(count->counter) >= count->value;
}

bool eventually_counts(atomic_int *counter, int value, int timeout_ms)
{
	return eventually(is_reached, &(struct count){counter, value}, timeout_ms);
}

/* What tests/run says about this run. */
static const char *from_runner(const char *name)
{
	const char *value = getenv(name);

	if (!value) {
		fprintf(stderr, "%s is not set: run this with `make test T=…` or tests/run\n", name);
		abort();
	}
	return value;
}

int support_patience(void)
{
	const char *value = getenv("TETHER_PATIENCE");
	long patience = value ? strtol(value, NULL, 10) : 1;

	return patience >= 1 && patience <= 100 ? (int)patience : 1;
}

const char *support_database_url(void)
{
	return from_runner("DATABASE_URL");
}

/* Paths from the last few calls stay valid, so that several fit into one list of arguments. */
static const char *join(const char *dir, const char *name)
{
	static char paths[8][4096];
	static unsigned int calls;
	char *path = paths[calls++ % 8];

	snprintf(path, sizeof paths[0], "%s/%s", dir, name);
	return path;
}

const char *support_built(const char *name)
{
	return join(from_runner("TETHER_BUILD"), name);
}

const char *support_source(const char *name)
{
	return join(from_runner("TETHER_SOURCE"), name);
}

static int ascending(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;

	return (x > y) - (x < y);
}

double support_median(double values[], int count)
{
	qsort(values, (size_t)count, sizeof *values, ascending);
	return values[count / 2];
}

char *support_repeat(const char *before, const char *what, size_t times, const char *after)
{
	char *text = malloc(strlen(before) + strlen(what) * times + strlen(after) + 1);
	char *end = text ? stpcpy(text, before) : NULL;

	if (!text)
		return NULL;
	while (times-- > 0)
		end = stpcpy(end, what);
	strcpy(end, after);
	return text;
}

int support_listen(int *port)
{
	struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
	socklen_t length = sizeof address;
	int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

	if (fd < 0 || bind(fd, (struct sockaddr *)&address, length) || listen(fd, 1000) ||
	    getsockname(fd, (struct sockaddr *)&address, &length)) {
		perror("a socket to listen on");
		if (fd >= 0)
			close(fd);
		return -1;
	}
	*port = ntohs(address.sin_port);
	return fd;
}

int support_free_port(void)
{
	struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
	socklen_t length = sizeof address;
	int fd = socket(AF_INET, SOCK_STREAM, 0);
	int port = -1;

	if (fd < 0)
		return -1;
	if (!bind(fd, (struct sockaddr *)&address, sizeof address) &&
	    !getsockname(fd, (struct sockaddr *)&address, &length))
		port = ntohs(address.sin_port);
	close(fd);
	return port;
}

long support_resident_kib(void)
{
	long pages = 0;
	FILE *statm = fopen("/proc/self/statm", "r"); /* "TOTAL RESIDENT …", in pages */

	if (!statm || fscanf(statm, "%*d %ld", &pages) != 1)
		perror("/proc/self/statm");
	if (statm)
		fclose(statm);
	return pages * (sysconf(_SC_PAGESIZE) / 1024);
}

long support_peak_kib(void)
{
	struct rusage usage;
	getrusage(RUSAGE_SELF, &usage);
	return usage.ru_maxrss;
}

int support_open_files(void)
{
	DIR *dir = opendir("/proc/self/fd");
	int count = -3; /* ".", ".." and the directory's own */

	if (!dir)
		return -1;
	while (readdir(dir))
		count++;
	closedir(dir);
	return count;
}

int support_threads(void)
{
	char line[128];
	int count = -1;
	FILE *status = fopen("/proc/self/status", "r");

	while (status && fgets(line, sizeof line, status))
		if (sscanf(line, "Threads: %d", &count) == 1)
			break;
	if (status)
		fclose(status);
	return count;
}
