/*
 * The router: patterns as a program gives them, paths as a client sends them.
 *
 * An input is lines: patterns, one empty line, then requests, "METHOD /path". What two routers with the same
 * patterns, added in opposite orders, say of a request must be the same: of the patterns that match, the most
 * specific one does not depend on who came first.
 */
#include <errno.h>

#include "fuzz.h"
#include "http_priv.h"

enum { PATTERNS_MAX = 16 };

/* The method of the request that is looked at is one a parser has let through. */
static bool is_request(const char *method, const char *path)
{
	return path && *path == '/' && is_token(method, strlen(method));
}

static void check_redirect(const router *r, const char *method, const char *location)
{
	char memory[256];
	arena a;
	route_match again = {0};
	HOLDS(location[0] == '/' && location[1] != '/');
	arena_init(&a, memory, sizeof(memory));
	HOLDS(router_match(r, &a, method, location, &again) != ROUTE_REDIRECT);
	arena_free(&a);
}

/* Each name of the pattern has its value, and one of a single segment is not empty. */
static void check_values(const route_match *match)
{
	for (const http_pair *value = match->values; value; value = value->next) {
		char one[64];
		HOLDS(value->name && value->value);
		HOLDS(pair_value(match->values, value->name) == value->value);
		if (snprintf(one, sizeof(one), "{%s}", value->name) < (int)sizeof(one) &&
		    strstr(match->route->pattern, one))
			HOLDS(*value->value);
	}
}

static void same(const char *a, const char *b)
{
	HOLDS(!a == !b && (!a || strcmp(a, b) == 0));
}

static void match_both(const router *forward, const router *backward, const char *method, const char *path)
{
	char memory[2][64]; /* small, so that it does not do */
	arena a, b;
	route_match one = {0}, other = {0};
	arena_init(&a, memory[0], sizeof(memory[0]));
	arena_init(&b, memory[1], sizeof(memory[1]));
	enum route_result result = router_match(forward, &a, method, path, &one);
	HOLDS(router_match(backward, &b, method, path, &other) == result);
	HOLDS(result != ROUTE_NO_MEMORY);
	same(one.route ? one.route->pattern : NULL, other.route ? other.route->pattern : NULL);
	same(one.location, other.location);
	same(one.allow, other.allow);
	HOLDS((result == ROUTE_FOUND) == (one.route != NULL));
	HOLDS((result == ROUTE_REDIRECT) == (one.location != NULL));
	HOLDS((result == ROUTE_METHOD_UNKNOWN) == (one.allow != NULL));
	if (one.route)
		check_values(&one);
	if (one.location && strcmp(method, "CONNECT") != 0)
		check_redirect(forward, method, one.location);
	arena_free(&a);
	arena_free(&b);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	char *text = fuzz_string(data, size), *rest = text, *line;
	const char *patterns[PATTERNS_MAX];
	size_t count = 0;
	router forward = {0}, backward = {0};
	while ((line = strsep(&rest, "\n")) && *line && count < PATTERNS_MAX) {
		if (router_add(&forward, line, NULL, NULL) == 0)
			patterns[count++] = line;
		else
			HOLDS(errno == EINVAL || errno == EEXIST);
	}
	for (size_t i = count; i > 0; i--)
		HOLDS(router_add(&backward, patterns[i - 1], NULL, NULL) == 0);
	while ((line = strsep(&rest, "\n"))) {
		const char *method = strsep(&line, " ");
		if (is_request(method, line))
			match_both(&forward, &backward, method, line);
	}
	router_free(&forward);
	router_free(&backward);
	free(text);
	return 0;
}
