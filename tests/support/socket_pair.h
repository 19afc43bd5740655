/* Two connected sockets: a file that can be waited for, and the end that makes it ready. */
#ifndef TESTS_SOCKET_PAIR_H
#define TESTS_SOCKET_PAIR_H

/* Nonblocking both; a stream. socket_pair aborts on failure. */
void socket_pair(int ends[2]);
void socket_pair_close(const int ends[2]);

/* Writes until there is no more room; reads until there is nothing more. Neither waits. */
void socket_fill(int fd);
void socket_drain(int fd);

#endif
