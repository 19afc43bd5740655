/*
 * auth.h — bearer tokens (RFC 6750).
 */
#ifndef ALBUMD_AUTH_H
#define ALBUMD_AUTH_H

#include <stdbool.h>
#include <tether/http.h>

/* Whether the request bears the token; "" asks for none. false: it is answered with a 401. */
bool auth_bears(http_request *request, http_response *response, const char *token);

#endif
