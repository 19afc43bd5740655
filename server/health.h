/*
 * health.h — albumd --healthcheck: whether the one that runs is ready.
 */
#ifndef ALBUMD_HEALTH_H
#define ALBUMD_HEALTH_H

#include <stdbool.h>

/*
 * Asks the admin listener at that address, NULL if there is none, for two seconds at most, and says in a line what it
 * found. true: it is ready.
 */
bool health_check(const char *admin_listen);

#endif
