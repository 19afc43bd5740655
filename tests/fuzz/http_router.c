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

/* How much a segment of a pattern leaves open; 0 for the most exact. *at is behind its slash, and moves to the next. */
static int openness(const char **at)
{
	size_t size = strcspn(*at, "/");
	const char *text = *at, *end = text + size;
	*at = *end ? end + 1 : end;
	if (size == 0 || (size > 5 && memcmp(end - 4, "...}", 4) == 0))
		return 2;
	return *text == '{' && text[1] != '$';
}

static size_t count_of(const char *text, char c)
{
	size_t count = 0;
	for (; *text; text++)
		count += *text == c;
	return count;
}

/* Of two patterns that match the same request, one is in every part as exact as the other, or more. */
static void check_more_specific(const char *one, const char *other)
{
	HOLDS(*one != '/' || *other == '/'); /* a method is more exact than none */
	HOLDS(count_of(one, '/') >= count_of(other, '/'));
	one = strchr(one, '/') + 1;
	other = strchr(other, '/') + 1;
	for (size_t left = 1 + count_of(other, '/'); left > 0; left--) {
		int here = openness(&one), there = openness(&other);
		HOLDS(here <= there);
	}
}

/* Each of the other patterns that would have matched is less specific. */
static void check_winner(const char *const *patterns, size_t count, const char *winner, const char *method,
                         const char *path)
{
	for (size_t i = 0; i < count; i++) {
		char memory[64];
		arena a;
		router alone = {0};
		route_match match = {0};
		arena_init(&a, memory, sizeof(memory));
		HOLDS(router_add(&alone, patterns[i], NULL, NULL, NULL) == 0);
		if (router_match(&alone, &a, method, path, &match) == ROUTE_FOUND)
			check_more_specific(winner, patterns[i]);
		arena_free(&a);
		router_free(&alone);
	}
}

static void same(const char *a, const char *b)
{
	HOLDS(!a == !b && (!a || strcmp(a, b) == 0));
}

static enum route_result match_both(const router *forward, const router *backward, const char *method,
                                    const char *path, const char **winner)
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
	*winner = one.route ? one.route->pattern : NULL;
	arena_free(&a);
	arena_free(&b);
	return result;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	char *text = fuzz_string(data, size), *rest = text, *line;
	const char *patterns[PATTERNS_MAX];
	size_t count = 0;
	router forward = {0}, backward = {0};
	while ((line = strsep(&rest, "\n")) && *line && count < PATTERNS_MAX) {
		if (router_add(&forward, line, NULL, NULL, NULL) == 0)
			patterns[count++] = line;
		else
			HOLDS(errno == EINVAL || errno == EEXIST);
	}
	for (size_t i = count; i > 0; i--)
		HOLDS(router_add(&backward, patterns[i - 1], NULL, NULL, NULL) == 0);
	while ((line = strsep(&rest, "\n"))) {
		const char *method = strsep(&line, " ");
		const char *winner;
		if (is_request(method, line) &&
		    match_both(&forward, &backward, method, line, &winner) == ROUTE_FOUND)
			check_winner(patterns, count, winner, method, line);
	}
	router_free(&forward);
	router_free(&backward);
	free(text);
	return 0;
}
