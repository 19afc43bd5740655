/*
 * What a service manager hands over and wants to be told, by systemd's two protocols, of which others speak the same
 * few words: sockets that are open already (sd_listen_fds(3)), and where the service stands (sd_notify(3)).
 */
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/time.h>
#include <sys/un.h>
#include <unistd.h>

#include "http_priv.h"

enum { FIRST_FD = 3, FDS_MAX = 4096 };

/* A whole decimal number in the environment; -1: absent, or something else. */
static long number_of(const char *variable)
{
	const char *text = getenv(variable);
	char *end;
	if (!text || *text < '0' || *text > '9')
		return -1;
	errno = 0;
	long number = strtol(text, &end, 10);
	return errno || *end ? -1 : number;
}

/* The names stand in the order of the descriptors, with colons between them. */
static bool is_named(long index, const char *name)
{
	const char *at = getenv("LISTEN_FDNAMES");
	for (; at && index > 0; index--)
		at = strchr(at, ':') ? strchr(at, ':') + 1 : NULL;
	return at && strlen(name) == strcspn(at, ":") && strncmp(at, name, strlen(name)) == 0;
}

static bool is_listening(int fd)
{
	int type = 0, listens = 0;
	socklen_t size = sizeof(int);
	return getsockopt(fd, SOL_SOCKET, SO_TYPE, &type, &size) == 0 && type == SOCK_STREAM &&
	       getsockopt(fd, SOL_SOCKET, SO_ACCEPTCONN, &listens, &size) == 0 && listens;
}

/* They come without FD_CLOEXEC: one that has it was taken before. */
int systemd_socket(const char *name)
{
	long count = number_of("LISTEN_PID") == getpid() ? number_of("LISTEN_FDS") : 0;
	for (long i = 0; i < count && i < FDS_MAX; i++) {
		int fd = FIRST_FD + (int)i;
		int flags = fcntl(fd, F_GETFD);
		if (flags < 0 || (flags & FD_CLOEXEC) || (*name && !is_named(i, name)))
			continue;
		if (!is_listening(fd)) {
			errno = ENOTSOCK;
			return -1;
		}
		int status = fcntl(fd, F_GETFL);
		if (status < 0 || fcntl(fd, F_SETFL, status | O_NONBLOCK) != 0 ||
		    fcntl(fd, F_SETFD, flags | FD_CLOEXEC) != 0)
			return -1;
		return fd;
	}
	errno = EADDRNOTAVAIL;
	return -1;
}

/* One whose queue is full is waited for: it kills services of which it does not hear that they are ready. */
void systemd_notify(const char *state)
{
	static const struct timeval patience = {.tv_sec = 5};
	const char *path = getenv("NOTIFY_SOCKET");
	struct sockaddr_un un = {.sun_family = AF_UNIX};
	size_t size = path ? strlen(path) : 0;
	if (size < 2 || size >= sizeof(un.sun_path) || (*path != '/' && *path != '@'))
		return;
	memcpy(un.sun_path, path, size);
	if (*path == '@') /* not a file, but a name of the kernel's */
		un.sun_path[0] = '\0';
	int fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	if (fd < 0)
		return;
	setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof(patience));
	sendto(fd, state, strlen(state), MSG_NOSIGNAL, (const struct sockaddr *)&un,
	       (socklen_t)(offsetof(struct sockaddr_un, sun_path) + size));
	close(fd);
}
