/*
 * requests.h — /requests on the admin listener: everything alive, to be looked at and, where need be, cancelled.
 *
 *	GET  /requests              the page: live.html, which shows the events below
 *	GET  /requests/events       server-sent events: at first everything, then what has changed (live_json.h)
 *	GET  /requests.json         everything, once
 *	POST /requests/{id}/cancel  ends a request; its client gets a 503
 *
 * The page tells nothing by itself; all the others ask for the admin token, if there is one. Pages of other sites
 * that a browser on this machine happens to show get nowhere: see is_welcome.
 */
#ifndef ALBUMD_REQUESTS_H
#define ALBUMD_REQUESTS_H

#include <tether/http.h>

#include "admin.h"

/* Adds the handlers; a is borrowed while the server lives. 0, or -1 with errno. */
int requests_handle(http_server *server, admin *a);

#endif
