#include "openapi.h"

#include <stddef.h>

extern const unsigned char openapi_json[];
extern const size_t openapi_json_size;

static void get_openapi(http_request *request, http_response *response)
{
	(void)request;
	http_response_header(response, "Cache-Control", "no-cache");
	http_response_header(response, "X-Content-Type-Options", "nosniff");
	http_response_body(response, 200, "application/json", openapi_json, openapi_json_size);
}

int openapi_handle(http_server *server, metrics *m)
{
	static const char pattern[] = "GET /openapi.json";
	metrics_add_route(m, pattern);
	return http_handle(server, pattern, get_openapi, NULL);
}
