#include "socket_pair.h"

#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

void socket_pair(int ends[2])
{
	if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, ends) == 0)
		return;
	perror("socketpair");
	abort();
}

void socket_pair_close(const int ends[2])
{
	close(ends[0]);
	close(ends[1]);
}

void socket_fill(int fd)
{
	char bytes[4096] = {0};
	while (send(fd, bytes, sizeof(bytes), MSG_NOSIGNAL) > 0)
		;
}

void socket_drain(int fd)
{
	char bytes[4096];
	while (recv(fd, bytes, sizeof(bytes), 0) > 0)
		;
}
