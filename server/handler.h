/*
 * handler.h — what the handlers of the albums resource have in common: what they begin with.
 */
#ifndef ALBUMD_HANDLER_H
#define ALBUMD_HANDLER_H

#include <stdbool.h>
#include <stddef.h>
#include <tether/http.h>

#include "albums.h"

typedef void albums_handler(const albums *a, http_request *request, http_response *response);

albums_handler get_album, list_albums, create_albums, replace_album, patch_album, delete_album;

/*
 * The context of a request's queries: the request's, and at most the query timeout long, counted from here, so
 * that the wait for a connection is part of it; less where the request's own ends before. The caller ends it.
 * NULL: out of memory, and the request is answered.
 */
ctx *query_context(const albums *a, http_request *request, http_response *response);

/* The id in the path; NULL if no album can have it, and then the request is answered with a 404. */
const char *path_id(http_request *request, http_response *response);

/* What a representation can be. */
typedef enum media { MEDIA_JSON, MEDIA_CSV, MEDIA_NONE } media;

/*
 * What the client prefers of these (RFC 9110, 12.5.1); JSON if it does not say. MEDIA_NONE: neither, and the request
 * is answered with a 406.
 */
media negotiate(const http_request *request, http_response *response);
extern const char *const media_types[];

/* Whether "Prefer: preference" was sent, by its whole text, "count=exact". */
bool prefers(const http_request *request, const char *preference);

#endif
