/*
 * What the kernel knows of a connection's socket. A header of its own because Linux's idea of TCP, which has
 * the fields looked at here, does not go together with libc's, which libuv brings along.
 */
#ifndef TETHER_HTTP_SOCKET_H
#define TETHER_HTTP_SOCKET_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Bytes that wait to be read. */
size_t socket_unread(int fd);

/* Whether the peer has ever sent any. True where the kernel cannot tell. */
bool socket_has_received(int fd);

/* Bytes sent that the peer has not acknowledged yet. Of a unix socket: the memory they take. */
size_t socket_waiting(int fd);

/* Bytes sent that it has. TCP only. */
uint64_t socket_taken(int fd);

/* TCP: how long what is under way when the socket is closed may wait for the peer to take some of it. */
void socket_limit_closing(int fd, int ms);

/* Resets the connection here and now: what is under way to the peer is dropped. False: not possible. */
bool socket_reset(int fd);

#endif
