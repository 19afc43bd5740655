#include "albums.h"

#include <string.h>

#include "access.h"
#include "auth.h"
#include "handler.h"

/* ---- Routes -------------------------------------------------------------------------------------------- */

#define ALBUMS "GET, HEAD, OPTIONS, POST"
#define ALBUM  "DELETE, GET, HEAD, OPTIONS, PATCH, PUT"

static albums_handler list_methods, album_methods;

typedef struct route {
	const char *pattern;
	albums_handler *handler;
	bool writes;
	const albums *albums; /* the service's, set when it starts: one in a process */
} route;

static route routes[] = {
	{"GET /albums", list_albums, false, NULL},
	{"POST /albums", create_albums, true, NULL},
	{"OPTIONS /albums", list_methods, false, NULL},
	{"GET /albums/{id}", get_album, false, NULL},
	{"PUT /albums/{id}", replace_album, true, NULL},
	{"PATCH /albums/{id}", patch_album, true, NULL},
	{"DELETE /albums/{id}", delete_album, true, NULL},
	{"OPTIONS /albums/{id}", album_methods, false, NULL},
};

/* ---- Browsers of another origin (the Fetch standard, 3.2) ------------------------------------------------ */

static bool is_allowed_origin(const albums *a, const char *origin)
{
	return strcmp(a->cors_origin, "*") == 0 || (origin && strcmp(a->cors_origin, origin) == 0);
}

static void admit_origin(const albums *a, const http_request *request, http_response *response)
{
	if (!a->cors_origin[0] || !is_allowed_origin(a, http_header(request, "Origin")))
		return;
	http_response_header(response, "Access-Control-Allow-Origin", a->cors_origin);
	http_response_header(
		response, "Access-Control-Expose-Headers",
		"ETag, Link, Location, Preference-Applied, Retry-After, Total-Count, X-Request-Id");
}

static void answer_options(const albums *a, const http_request *request, http_response *response,
                           const char *methods)
{
	http_response_status(response, 204);
	http_response_header(response, "Allow", methods);
	if (!a->cors_origin[0] || !http_header(request, "Access-Control-Request-Method") ||
	    !is_allowed_origin(a, http_header(request, "Origin")))
		return;
	http_response_header(response, "Access-Control-Allow-Methods", methods);
	http_response_header(
		response, "Access-Control-Allow-Headers",
		"Authorization, Content-Type, If-Match, If-None-Match, Prefer, X-Request-Id, traceparent");
	http_response_header(response, "Access-Control-Max-Age", "600");
}

static void list_methods(const albums *a, http_request *request, http_response *response)
{
	answer_options(a, request, response, ALBUMS);
}

static void album_methods(const albums *a, http_request *request, http_response *response)
{
	answer_options(a, request, response, ALBUM);
}

/* ---- What precedes every handler -------------------------------------------------------------------------- */

static void dispatch(http_request *request, http_response *response)
{
	const route *r = http_request_data(request);
	access_handling(request);
	admit_origin(r->albums, request, response);
	/* A copy may be kept, but is asked after each time: the ETag makes that cheap. */
	http_response_header(response, "Cache-Control", "no-cache");
	http_response_header(response, "X-Content-Type-Options", "nosniff");
	/* What a shared cache keeps depends on what was asked for, and from where. */
	http_response_header(response, "Vary", r->albums->cors_origin[0] ? "Accept, Origin" : "Accept");
	if (!r->writes || auth_bears(request, response, atomic_load(&r->albums->write_token)))
		r->handler(r->albums, request, response);
}

int albums_handle(http_server *server, metrics *m, const albums *a)
{
	for (size_t i = 0; i < sizeof(routes) / sizeof(*routes); i++) {
		routes[i].albums = a;
		if (http_handle(server, routes[i].pattern, dispatch, &routes[i]) < 0)
			return -1;
		metrics_add_route(m, routes[i].pattern);
	}
	return 0;
}
