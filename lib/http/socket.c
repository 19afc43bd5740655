#include <linux/sockios.h>
#include <linux/tcp.h>
#include <netinet/in.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

#include "socket.h"

size_t socket_unread(int fd)
{
	int size = 0;
	return ioctl(fd, SIOCINQ, &size) == 0 && size > 0 ? (size_t)size : 0;
}

static bool ask_tcp(int fd, struct tcp_info *info)
{
	socklen_t size = sizeof(*info);
	*info = (struct tcp_info){0};
	return getsockopt(fd, IPPROTO_TCP, TCP_INFO, info, &size) == 0;
}

bool socket_has_received(int fd)
{
	struct tcp_info info;
	return !ask_tcp(fd, &info) || info.tcpi_bytes_received > 0;
}

size_t socket_waiting(int fd)
{
	int size = 0;
	return ioctl(fd, SIOCOUTQ, &size) == 0 && size > 0 ? (size_t)size : 0;
}

uint64_t socket_taken(int fd)
{
	struct tcp_info info;
	return ask_tcp(fd, &info) ? info.tcpi_bytes_acked : 0;
}

void socket_limit_closing(int fd, int ms)
{
	setsockopt(fd, IPPROTO_TCP, TCP_USER_TIMEOUT, &ms, sizeof(ms));
}

/* Disconnecting a TCP socket does it, whatever is done to the socket afterwards, before it is closed. */
bool socket_reset(int fd)
{
	struct sockaddr nowhere = {.sa_family = AF_UNSPEC};
	return connect(fd, &nowhere, sizeof(nowhere)) == 0;
}
