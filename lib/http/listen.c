/*
 * Addresses: from their text to a listening socket, and back.
 */
#include <errno.h>
#include <linux/filter.h>
#include <netdb.h>
#include <netinet/in.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "http_priv.h"

enum { BACKLOG = 4096 }; /* the kernel caps it at net.core.somaxconn */

static int listen_on(const struct sockaddr *address, socklen_t size, bool shared)
{
	int fd = socket(address->sa_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
	if (fd < 0)
		return -1;
	int on = 1, off = 0;
	setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
	if (shared)
		setsockopt(fd, SOL_SOCKET, SO_REUSEPORT, &on, sizeof(on));
	if (address->sa_family == AF_INET6)
		setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &off, sizeof(off));
	if (bind(fd, address, size) == 0 && (shared || listen(fd, BACKLOG) == 0))
		return fd;
	int error = errno;
	close(fd);
	errno = error;
	return -1;
}

/* ---- unix:/path -------------------------------------------------------------------------------------- */

/*
 * Removes a socket that nobody listens on any more: what a server that died has left behind. A file that is none refuses
 * connections likewise, and is somebody's.
 */
static void remove_stale(const struct sockaddr_un *un)
{
	struct stat about;
	if (lstat(un->sun_path, &about) != 0 || !S_ISSOCK(about.st_mode))
		return;
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (fd < 0)
		return;
	if (connect(fd, (const struct sockaddr *)un, sizeof(*un)) != 0 && errno == ECONNREFUSED)
		unlink(un->sun_path);
	close(fd);
}

static int listen_unix(const char *path)
{
	struct sockaddr_un un = {.sun_family = AF_UNIX};
	size_t size = strlen(path);
	if (size == 0 || size >= sizeof(un.sun_path)) {
		errno = size ? ENAMETOOLONG : EINVAL;
		return -1;
	}
	memcpy(un.sun_path, path, size);
	remove_stale(&un);
	return listen_on((const struct sockaddr *)&un, sizeof(un), false);
}

/* ---- host:port --------------------------------------------------------------------------------------- */

static bool is_port(const char *text)
{
	size_t digits = strspn(text, "0123456789");
	return digits >= 1 && digits <= 5 && text[digits] == '\0' && strtoul(text, NULL, 10) <= UINT16_MAX;
}

/* "host:port", "[v6]:port" or ":port" into its two parts; host has room for the whole. False: malformed. */
static bool split_address(const char *address, char *host, const char **port)
{
	const char *colon = strrchr(address, ':');
	if (!colon || !is_port(colon + 1))
		return false;
	size_t size = (size_t)(colon - address);
	bool brackets = size >= 2 && address[0] == '[' && colon[-1] == ']';
	if (brackets)
		address++, size -= 2;
	else if (memchr(address, ':', size))
		return false;
	memcpy(host, address, size);
	host[size] = '\0';
	*port = colon + 1;
	return true;
}

static int listen_all(const char *port, bool shared)
{
	unsigned long number = strtoul(port, NULL, 10);
	/* One socket for both families, unless the machine has no IPv6. */
	struct sockaddr_in6 in6 = {.sin6_family = AF_INET6, .sin6_port = htons((uint16_t)number)};
	int fd = listen_on((const struct sockaddr *)&in6, sizeof(in6), shared);
	if (fd >= 0 || (errno != EAFNOSUPPORT && errno != EADDRNOTAVAIL))
		return fd;
	struct sockaddr_in in = {.sin_family = AF_INET, .sin_port = htons((uint16_t)number)};
	return listen_on((const struct sockaddr *)&in, sizeof(in), shared);
}

/* The first of the host's addresses that works, IPv4 before IPv6 as Go has it. */
static int listen_host(const char *host, const char *port, bool shared)
{
	struct addrinfo hints = {.ai_socktype = SOCK_STREAM, .ai_flags = AI_PASSIVE | AI_NUMERICSERV};
	struct addrinfo *found;
	int error = getaddrinfo(host, port, &hints, &found);
	if (error) {
		errno = error == EAI_SYSTEM ? errno : error == EAI_MEMORY ? ENOMEM : EINVAL;
		return -1;
	}
	int fd = -1;
	for (struct addrinfo *a = found; a && fd < 0; a = a->ai_next)
		if (a->ai_family == AF_INET)
			fd = listen_on(a->ai_addr, a->ai_addrlen, shared);
	for (struct addrinfo *a = found; a && fd < 0; a = a->ai_next)
		if (a->ai_family == AF_INET6)
			fd = listen_on(a->ai_addr, a->ai_addrlen, shared);
	freeaddrinfo(found);
	return fd;
}

static int listen_tcp(const char *address, bool shared)
{
	char *host = malloc(strlen(address) + 1);
	if (!host)
		return -1;
	const char *port;
	int fd = -1;
	if (!split_address(address, host, &port))
		errno = EINVAL;
	else
		fd = *host ? listen_host(host, port, shared) : listen_all(port, shared);
	free(host);
	return fd;
}

/* ---- The other end ----------------------------------------------------------------------------------- */

/* A socket that is connected, or about to be. */
static int connect_to(const struct sockaddr *address, socklen_t size)
{
	int fd = socket(address->sa_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
	if (fd < 0 || connect(fd, address, size) == 0 || errno == EINPROGRESS)
		return fd;
	int error = errno;
	close(fd);
	errno = error;
	return -1;
}

static int connect_unix(const char *path)
{
	struct sockaddr_un un = {.sun_family = AF_UNIX};
	if (strlen(path) >= sizeof(un.sun_path)) {
		errno = ENAMETOOLONG;
		return -1;
	}
	memcpy(un.sun_path, path, strlen(path));
	return connect_to((const struct sockaddr *)&un, sizeof(un));
}

/* No host is this machine. Of several addresses the first, IPv4 before IPv6 as listen_host has it. */
static int connect_tcp(const char *address)
{
	char host[NI_MAXHOST];
	const char *port;
	struct addrinfo hints = {.ai_socktype = SOCK_STREAM, .ai_flags = AI_NUMERICSERV}, *found;
	if (strlen(address) >= sizeof(host) || !split_address(address, host, &port) ||
	    getaddrinfo(*host ? host : NULL, port, &hints, &found) != 0) {
		errno = EINVAL;
		return -1;
	}
	const struct addrinfo *best = found;
	while (best && best->ai_family != AF_INET)
		best = best->ai_next;
	if (!best)
		best = found;
	int fd = best ? connect_to(best->ai_addr, best->ai_addrlen) : -1;
	freeaddrinfo(found);
	return fd;
}

int address_connect(const char *address)
{
	return strncmp(address, "unix:", 5) == 0 ? connect_unix(address + 5) : connect_tcp(address);
}

/* ---- Both -------------------------------------------------------------------------------------------- */

void address_text(const struct sockaddr *address, char *text, size_t size)
{
	char host[NI_MAXHOST], port[NI_MAXSERV];
	socklen_t length =
		address->sa_family == AF_INET6 ? sizeof(struct sockaddr_in6) : sizeof(struct sockaddr_in);
	if (address->sa_family == AF_UNIX || getnameinfo(address, length, host, sizeof(host), port,
	                                                 sizeof(port), NI_NUMERICHOST | NI_NUMERICSERV) != 0)
		snprintf(text, size, "unix");
	else
		snprintf(text, size, address->sa_family == AF_INET6 ? "[%s]:%s" : "%s:%s", host, port);
}

int address_listen(const char *address, bool shared, listener *made, char *bound, size_t bound_size)
{
	bool unix_socket = strncmp(address, "unix:", 5) == 0;
	bool inherited = strncmp(address, "systemd:", 8) == 0;
	char *path = unix_socket ? strdup(address + 5) : NULL;
	if (unix_socket && !path)
		return -1;
	int fd = unix_socket ? listen_unix(path)
	         : inherited ? systemd_socket(address + 8)
	                     : listen_tcp(address, shared);
	if (fd < 0) {
		free(path);
		return -1;
	}
	struct sockaddr_storage actual = {0};
	socklen_t size = sizeof(actual);
	if (bound && unix_socket)
		snprintf(bound, bound_size, "%s", address);
	else if (bound && getsockname(fd, (struct sockaddr *)&actual, &size) == 0)
		address_text((struct sockaddr *)&actual, bound, bound_size);
	*made = (listener){.fd = fd, .shared = shared && !unix_socket && !inherited, .unix_path = path};
	return 0;
}

/*
 * A process that listens is given connections, and those that it has not accepted when it ends are lost. So one that
 * shares a port is bound first, by which it knows whether it may, and listens when nothing can go wrong any more.
 *
 * The sockets that share a port are an array, in the order in which they began to listen, and the kernel would spread
 * new connections over it. This has all go to the second: to us, if another was there before. Where there is only one,
 * the answer is out of bounds, and all is as it was. It holds for all that share the port, and for as long as any does.
 */
int listener_open(const listener *l)
{
	struct sock_filter second = {.code = BPF_RET | BPF_K, .k = 1};
	struct sock_fprog program = {.len = 1, .filter = &second};
	if (!l->shared)
		return 0;
	if (listen(l->fd, BACKLOG) != 0)
		return -1;
	setsockopt(l->fd, SOL_SOCKET, SO_ATTACH_REUSEPORT_CBPF, &program, sizeof(program));
	return 0;
}

void listener_close(listener *l)
{
	if (l->fd < 0)
		return;
	if (l->unix_path)
		unlink(l->unix_path);
	close(l->fd);
	free(l->unix_path);
	l->unix_path = NULL;
	l->fd = -1;
}
