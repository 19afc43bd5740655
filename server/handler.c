#include "handler.h"

#include "accept.h"
#include "answer.h"
#include "parse.h"

/* ---- Preferences -------------------------------------------------------------------------------------- */

bool prefers(const http_request *request, const char *preference)
{
	const char *list = http_header(request, "Prefer");
	size_t size;
	for (const char *at; list && (at = list_next(&list, &size));) {
		if (list_is(at, size, preference))
			return true;
	}
	return false;
}

ctx *query_context(const albums *a, http_request *request, http_response *response)
{
	ctx *c = ctx_with_timeout(http_request_ctx(request), a->query_timeout);
	if (!c)
		answer_failed(request, response, NULL);
	return c;
}

/* ---- The id -------------------------------------------------------------------------------------------- */

const char *path_id(http_request *request, http_response *response)
{
	/* As ids are printed: anything else names no album, and need not be asked for. */
	const char *id = http_path_value(request, "id");
	uint64_t number;
	if (id[0] != '0' && parse_uint(id, INT64_MAX, &number))
		return id;
	answer_failed(request, response, &(pg_error){.kind = PG_ERROR_NO_ROWS});
	return NULL;
}

/* ---- Content negotiation ------------------------------------------------------------------------------- */

const char *const media_types[] = {"application/json", "text/csv; charset=utf-8"};

media negotiate(const http_request *request, http_response *response)
{
	static const char *const types[] = {"application/json", "text/csv"};
	int best = accept_best(http_header(request, "Accept"), types, 2);
	if (best >= 0)
		return (media)best;
	http_response_problem(response, 406, "There is application/json and text/csv.");
	return MEDIA_NONE;
}
