/* An HAProxy in TCP mode that looks after the health of the servers behind it. */
#ifndef TESTS_HAPROXY_H
#define TESTS_HAPROXY_H

#include <stdbool.h>

typedef struct haproxy haproxy;

/* Whether the program is on this machine. If not, says so on stderr. */
bool haproxy_is_there(void);

/*
 * In front of two servers, postgresql:// URLs that name a port of 127.0.0.1; takes user, password and database of the
 * first. `spread`: connections to both in turn, cancel links included; else to the second only while the first is
 * down. Sessions of a server found down are closed. Aborts on failure.
 */
haproxy *haproxy_start(const char *first_url, const char *second_url, bool spread);

/* Lives as long as it does. */
const char *haproxy_url(const haproxy *h);

void haproxy_stop(haproxy *h);

#endif
