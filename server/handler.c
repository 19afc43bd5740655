#include "handler.h"

#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "answer.h"
#include "parse.h"

/* ---- Lists in header fields --------------------------------------------------------------------------- */

static const char *skip_blanks(const char *at)
{
	return at + strspn(at, " \t");
}

/*
 * The next element of a comma-separated list, without the blanks around it; NULL at the end. No quoted string of the
 * fields read here holds a comma.
 */
static const char *next_element(const char **list, size_t *size)
{
	while (**list == ',' || **list == ' ' || **list == '\t')
		++*list;
	const char *element = *list;
	*size = strcspn(element, ",");
	*list += *size;
	while (*size && (element[*size - 1] == ' ' || element[*size - 1] == '\t'))
		--*size;
	return *size ? element : NULL;
}

static bool is_word(const char *at, size_t size, const char *word)
{
	return size == strlen(word) && strncasecmp(at, word, size) == 0;
}

/* ---- Preferences -------------------------------------------------------------------------------------- */

bool prefers(const http_request *request, const char *preference)
{
	const char *list = http_header(request, "Prefer");
	size_t size;
	for (const char *at; list && (at = next_element(&list, &size));) {
		if (is_word(at, size, preference))
			return true;
	}
	return false;
}

/* The seconds of "wait=2", 0 if the client does not say. */
static int64_t preferred_wait(const http_request *request)
{
	const char *list = http_header(request, "Prefer");
	size_t size;
	for (const char *at; list && (at = next_element(&list, &size));) {
		char digits[8] = "";
		uint64_t seconds;
		if (size <= 5 || size >= 5 + sizeof(digits) || strncasecmp(at, "wait=", 5) != 0)
			continue;
		memcpy(digits, at + 5, size - 5);
		if (parse_uint(digits, INT32_MAX, &seconds))
			return (int64_t)seconds;
	}
	return 0;
}

ctx *query_context(const albums *a, http_request *request, http_response *response)
{
	int64_t wait = preferred_wait(request) * CTX_SECOND;
	ctx *c = ctx_with_timeout(http_request_ctx(request),
	                          wait && wait < a->query_timeout ? wait : a->query_timeout);
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

/* "0.25" in thousandths; 1000 if it is no weight. */
static int weight_of(const char *q)
{
	int weight = 0, worth = 1000;
	if (q[0] != '0' && q[0] != '1')
		return 1000;
	for (const char *at = q; worth && ((*at >= '0' && *at <= '9') || (at == q + 1 && *at == '.')); at++) {
		if (*at == '.')
			continue;
		weight += (*at - '0') * worth;
		worth /= 10;
	}
	return weight > 1000 ? 1000 : weight;
}

/* A range of an Accept field, such as "text/csv;q=0.5", taken apart. */
typedef struct range {
	size_t type_size; /* of the range without its parameters */
	int weight;
} range;

static range read_range(const char *at, size_t size)
{
	range r = {.type_size = 0, .weight = 1000};
	while (r.type_size < size && !strchr("; \t", at[r.type_size]))
		r.type_size++;
	for (size_t i = r.type_size; i < size; i++) {
		const char *parameter = at[i] == ';' ? skip_blanks(at + i + 1) : "";
		if ((parameter[0] == 'q' || parameter[0] == 'Q') && parameter[1] == '=')
			r.weight = weight_of(parameter + 2);
	}
	return r;
}

media negotiate(const http_request *request, http_response *response)
{
	static const char *const ranges[][3] = {{"application/json", "application/*", "*/*"},
	                                        {"text/csv", "text/*", "*/*"}};
	const char *list = http_header(request, "Accept");
	if (!list || strcmp(list, "*/*") == 0)
		return MEDIA_JSON;
	int weight[] = {0, 0},
	    vague[] = {3, 3}; /* the most exact of the ranges that fit is the one that counts */
	size_t size;
	for (const char *at; (at = next_element(&list, &size));) {
		range r = read_range(at, size);
		for (int m = MEDIA_JSON; m <= MEDIA_CSV; m++) {
			for (int i = 0; i < vague[m]; i++) {
				if (is_word(at, r.type_size, ranges[m][i])) {
					vague[m] = i;
					weight[m] = r.weight;
				}
			}
		}
	}
	if (weight[MEDIA_JSON] || weight[MEDIA_CSV])
		return weight[MEDIA_CSV] > weight[MEDIA_JSON] ? MEDIA_CSV : MEDIA_JSON;
	http_response_problem(response, 406, "There is application/json and text/csv.");
	return MEDIA_NONE;
}
