/*
 * openapi.h — what the service says of itself: openapi.json, embedded in the program.
 */
#ifndef ALBUMD_OPENAPI_H
#define ALBUMD_OPENAPI_H

#include <tether/http.h>

#include "metrics.h"

/* Adds GET /openapi.json. 0, or -1 with errno. */
int openapi_handle(http_server *server, metrics *m);

#endif
