/*
 * Which handler: the patterns of Go 1.22's net/http.ServeMux, without its hosts.
 *
 * A pattern stands for a set of requests. Two patterns are related as their sets are: disjoint, equal, one
 * within the other, or overlapping with neither within the other. The last is a conflict and refused, as
 * equality is; so of all patterns that match one request any two are comparable, and there is a smallest.
 * The routes are kept in an order in which the smaller comes first: the first that matches is it.
 */
#include <errno.h>
#include <string.h>

#include "http_priv.h"

enum segment_kind {
	LITERAL, /* text, decoded */
	ONE,     /* {text}: any one segment */
	REST,    /* {text...}, or with text NULL a trailing slash: all that follows, even nothing */
	END,     /* {$}: a slash, and there the path ends */
};

struct segment {
	enum segment_kind kind;
	char *text;
};

/* ---- Paths ------------------------------------------------------------------------------------------- */

/*
 * The path without empty, "." and ".." segments, and with its trailing slash; it begins with a slash and is
 * no longer than before. clean may not overlap path. Go: path.Clean, cleanPath.
 */
static void clean_path(const char *path, char *clean)
{
	char *end = clean;
	for (const char *at = path; *at;) {
		at += strspn(at, "/");
		size_t size = strcspn(at, "/");
		bool up = size == 2 && at[0] == '.' && at[1] == '.';
		if (up) {
			while (end > clean && *--end != '/')
				;
		} else if (size > 0 && !(size == 1 && *at == '.')) {
			*end++ = '/';
			memcpy(end, at, size);
			end += size;
		}
		at += size;
		/* A trailing slash stays, and nothing at all is the root. */
		if (*at == '\0' && (end == clean || size == 0))
			*end++ = '/';
	}
	*end = '\0';
}

static bool is_clean(const char *path)
{
	for (const char *slash = strchr(path, '/'); slash; slash = strchr(slash + 1, '/')) {
		size_t size = strcspn(slash + 1, "/");
		bool dots =
			(size == 1 && slash[1] == '.') || (size == 2 && slash[1] == '.' && slash[2] == '.');
		if (dots || (size == 0 && slash[1] == '/'))
			return false;
	}
	return true;
}

/* ---- Reading a pattern ------------------------------------------------------------------------------- */

static bool is_alphanumeric(char c)
{
	return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
}

bool is_token(const char *text, size_t size)
{
	for (size_t i = 0; i < size; i++)
		if (!is_alphanumeric(text[i]) && (text[i] == '\0' || !strchr("!#$%&'*+-.^_`|~", text[i])))
			return false;
	return size > 0;
}

static bool is_identifier(const char *text)
{
	for (const char *c = text; *c; c++)
		if (!is_alphanumeric(*c) && *c != '_')
			return false;
	return *text && !(*text >= '0' && *text <= '9');
}

static char *read_literal(const char *text, size_t size)
{
	char first[256];
	arena a;
	arena_init(&a, first, sizeof(first));
	const char *decoded = percent_decode(&a, text, size, false);
	char *literal = decoded ? strdup(decoded) : NULL;
	arena_free(&a);
	return literal;
}

/* text is what stands between two slashes, or behind the last. False: malformed, or out of memory with its errno. */
static bool read_segment(struct segment *segment, const char *text, size_t size, bool last)
{
	*segment = (struct segment){.kind = LITERAL};
	if (size == 0) {
		segment->kind = REST;
		return last;
	}
	if (!memchr(text, '{', size)) {
		segment->text = read_literal(text, size);
		return segment->text;
	}
	if (text[0] != '{' || text[size - 1] != '}')
		return false;
	const char *name = text + 1;
	size_t name_size = size - 2;
	if (name_size == 1 && *name == '$') {
		segment->kind = END;
		return last;
	}
	segment->kind = ONE;
	if (name_size > 3 && memcmp(name + name_size - 3, "...", 3) == 0) {
		segment->kind = REST;
		name_size -= 3;
		if (!last)
			return false;
	}
	segment->text = strndup(name, name_size);
	return segment->text && is_identifier(segment->text);
}

/* Whether the last of the route's segments has a name that an earlier one has. */
static bool name_is_taken(const http_route *route)
{
	const struct segment *last = &route->segments[route->segment_count - 1];
	for (const struct segment *s = route->segments; s < last; s++)
		if (s->kind == ONE && last->kind != LITERAL && last->text && strcmp(s->text, last->text) == 0)
			return true;
	return false;
}

static bool read_path(http_route *route, const char *path)
{
	size_t slashes = 0;
	for (const char *c = path; *c; c++)
		slashes += *c == '/';
	if (slashes > 0)
		route->segments = calloc(slashes, sizeof(*route->segments));
	if (!route->segments)
		return false;
	while (*path == '/') {
		size_t size = strcspn(path + 1, "/");
		bool last = path[1 + size] == '\0';
		if (!read_segment(&route->segments[route->segment_count++], path + 1, size, last) ||
		    name_is_taken(route))
			return false;
		path += 1 + size;
	}
	return true;
}

static bool read_pattern(http_route *route, const char *pattern)
{
	const char *path = pattern;
	size_t method_size = strcspn(pattern, " \t");
	if (pattern[method_size]) {
		if (!is_token(pattern, method_size))
			return false;
		route->method = strndup(pattern, method_size);
		path = pattern + method_size + strspn(pattern + method_size, " \t");
	}
	route->pattern = strdup(pattern);
	if (!route->pattern || (path != pattern && !route->method))
		return false;
	bool connects = route->method && strcmp(route->method, "CONNECT") == 0;
	return *path == '/' && (connects || is_clean(path)) && read_path(route, path);
}

static void route_free(http_route *route)
{
	for (size_t i = 0; i < route->segment_count; i++)
		free(route->segments[i].text);
	free(route->segments);
	free(route->pattern);
	free(route->method);
	free(route);
}

/* ---- Comparing patterns ------------------------------------------------------------------------------ */

/* What the set of requests of one is to that of another. */
enum relation { EQUAL, WITHIN, AROUND, OVERLAPPING, DISJOINT };

/* Of pairs, from the relations of their parts. */
static enum relation both(enum relation a, enum relation b)
{
	if (a == DISJOINT || b == DISJOINT)
		return DISJOINT;
	if (a == EQUAL)
		return b;
	if (b == EQUAL || a == b)
		return a;
	return OVERLAPPING;
}

static enum relation compare_methods(const char *a, const char *b)
{
	if (!a || !b)
		return !a && !b ? EQUAL : a ? WITHIN : AROUND;
	if (strcmp(a, b) == 0)
		return EQUAL;
	if (strcmp(a, "GET") == 0 && strcmp(b, "HEAD") == 0)
		return AROUND;
	if (strcmp(a, "HEAD") == 0 && strcmp(b, "GET") == 0)
		return WITHIN;
	return DISJOINT;
}

static enum relation compare_segments(const struct segment *a, const struct segment *b)
{
	if (a->kind == b->kind && a->kind != LITERAL)
		return EQUAL;
	if (a->kind == REST)
		return AROUND;
	if (b->kind == REST)
		return WITHIN;
	if (a->kind == END || b->kind == END)
		return DISJOINT;
	if (a->kind == ONE)
		return AROUND;
	if (b->kind == ONE)
		return WITHIN;
	return strcmp(a->text, b->text) == 0 ? EQUAL : DISJOINT;
}

static enum relation compare_routes(const http_route *a, const http_route *b)
{
	enum relation relation = compare_methods(a->method, b->method);
	size_t shorter = a->segment_count < b->segment_count ? a->segment_count : b->segment_count;
	for (size_t i = 0; i < shorter; i++)
		relation = both(relation, compare_segments(&a->segments[i], &b->segments[i]));
	if (a->segment_count == b->segment_count)
		return relation;
	/* The shorter one matches longer paths only if it ends in a REST. */
	const http_route *short_one = a->segment_count == shorter ? a : b;
	if (short_one->segments[shorter - 1].kind != REST)
		return DISJOINT;
	return both(relation, short_one == a ? AROUND : WITHIN);
}

int router_add(router *r, const char *pattern, const http_route_options *options, http_handler *handler,
               void *data)
{
	http_route *route = calloc(1, sizeof(*route));
	if (!route)
		return -1;
	route->handler = handler;
	route->data = data;
	if (options) {
		route->streams_body = options->streams_body;
		route->body_size = options->body_size;
	}
	errno = EINVAL;
	if (!read_pattern(route, pattern)) {
		int error = errno == ENOMEM ? ENOMEM : EINVAL;
		route_free(route);
		errno = error;
		return -1;
	}
	/* Before the first that it is within. All that are within it come even earlier, since they are within that too. */
	http_route **place = NULL, **at = &r->first;
	for (; *at; at = &(*at)->next) {
		enum relation relation = compare_routes(route, *at);
		if (relation == EQUAL || relation == OVERLAPPING) {
			route_free(route);
			errno = EEXIST;
			return -1;
		}
		if (relation == WITHIN && !place)
			place = at;
	}
	if (!place)
		place = at;
	route->next = *place;
	*place = route;
	return 0;
}

void router_free(router *r)
{
	http_route *next;
	for (http_route *route = r->first; route; route = next) {
		next = route->next;
		route_free(route);
	}
	r->first = NULL;
}

/* ---- Matching ---------------------------------------------------------------------------------------- */

/* A path, cut at its slashes. */
typedef struct split_path {
	size_t count; /* "/a/b" has two pieces, and "/a/" has two, the second empty */
	struct piece {
		const char *start; /* behind the slash, still encoded; reaches to the end of the path */
		const char *decoded;
	} pieces[];
} split_path;

/* NULL with errno: EINVAL, a bad escape; ENOMEM. */
static split_path *split(arena *a, const char *path)
{
	size_t slashes = 0;
	for (const char *c = path; *c; c++)
		slashes += *c == '/';
	split_path *s = arena_alloc(a, sizeof(*s) + slashes * sizeof(*s->pieces));
	if (!s)
		return NULL;
	s->count = 0;
	do {
		size_t size = strcspn(++path, "/");
		const char *decoded = percent_decode(a, path, size, false);
		if (!decoded)
			return NULL;
		s->pieces[s->count++] = (struct piece){.start = path, .decoded = decoded};
		path += size;
	} while (*path == '/');
	return s;
}

static bool segment_matches(const struct segment *segment, const struct piece *piece, bool last)
{
	switch (segment->kind) {
	case LITERAL:
		return strcmp(segment->text, piece->decoded) == 0;
	case ONE:
		return *piece->decoded;
	case END:
		return last && !*piece->decoded;
	case REST:
		return true;
	}
	return false;
}

static bool path_matches(const http_route *route, const split_path *path)
{
	bool open = route->segments[route->segment_count - 1].kind == REST;
	if (open ? path->count < route->segment_count : path->count != route->segment_count)
		return false;
	for (size_t i = 0; i < route->segment_count; i++)
		if (!segment_matches(&route->segments[i], &path->pieces[i], i == path->count - 1))
			return false;
	return true;
}

static bool method_matches(const http_route *route, const char *method)
{
	return !route->method || strcmp(route->method, method) == 0 ||
	       (strcmp(method, "HEAD") == 0 && strcmp(route->method, "GET") == 0);
}

static const http_route *find(const router *r, const char *method, const split_path *path)
{
	for (const http_route *route = r->first; route; route = route->next)
		if (method_matches(route, method) && path_matches(route, path))
			return route;
	return NULL;
}

/* Whether the route is about this path itself rather than something below which it lies. */
static bool exact(const http_route *route, const split_path *path)
{
	bool open = route->segments[route->segment_count - 1].kind == REST;
	return !open || (path->count == route->segment_count && !*path->pieces[path->count - 1].decoded);
}

/* A subtree's root asked for without its slash. */
static bool wants_slash(const router *r, arena *a, const char *method, const char *path,
                        const http_route *found, const split_path *pieces, char **location)
{
	size_t size = strlen(path);
	if ((found && exact(found, pieces)) || path[size - 1] == '/')
		return false;
	char *longer = arena_alloc(a, size + 2);
	if (!longer)
		return false;
	snprintf(longer, size + 2, "%s/", path);
	const split_path *more = split(a, longer);
	const http_route *subtree = more ? find(r, method, more) : NULL;
	*location = longer;
	return subtree && exact(subtree, more);
}

static bool take_values(arena *a, const http_route *route, const split_path *path, http_pair **values)
{
	for (size_t i = 0; i < route->segment_count; i++) {
		const struct segment *segment = &route->segments[i];
		if (segment->kind == LITERAL || !segment->text)
			continue;
		http_pair *value = arena_alloc(a, sizeof(*value));
		if (!value)
			return false;
		const char *rest = path->pieces[i].start;
		*value = (http_pair){
			.name = segment->text,
			.value = segment->kind == ONE ? path->pieces[i].decoded
		                                      : percent_decode(a, rest, strlen(rest), false),
		};
		if (!value->value)
			return false;
		*values = value;
		values = &value->next;
	}
	return true;
}

static int compare_names(const void *a, const void *b)
{
	return strcmp(*(const char *const *)a, *(const char *const *)b);
}

/* The value of an Allow field: the methods there are for this path, sorted. NULL: none, or no memory. */
static const char *allowed_methods(const router *r, arena *a, const split_path *path)
{
	size_t count = 0, size = 1;
	for (const http_route *route = r->first; route; route = route->next)
		count += path_matches(route, path) ? 2 : 0;
	const char **names = arena_alloc(a, (count + 1) * sizeof(*names));
	if (count == 0 || !names)
		return NULL;
	count = 0;
	for (const http_route *route = r->first; route; route = route->next) {
		if (!path_matches(route, path))
			continue;
		names[count++] = route->method;
		if (strcmp(route->method, "GET") == 0)
			names[count++] = "HEAD";
	}
	qsort(names, count, sizeof(*names), compare_names);
	for (size_t i = 0; i < count; i++)
		size += strlen(names[i]) + 2;
	char *list = arena_alloc(a, size), *end = list;
	if (!list)
		return NULL;
	for (size_t i = 0; i < count; i++)
		if (i == 0 || strcmp(names[i], names[i - 1]) != 0)
			end += sprintf(end, "%s%s", i ? ", " : "", names[i]);
	return list;
}

enum route_result router_match(const router *r, arena *a, const char *method, const char *path,
                               route_match *match)
{
	const char *asked = path;
	if (!is_clean(path) && strcmp(method, "CONNECT") != 0) {
		char *clean = arena_alloc(a, strlen(path) + 2);
		if (!clean)
			return ROUTE_NO_MEMORY;
		clean_path(path, clean);
		path = clean;
	}
	const split_path *pieces = split(a, path);
	if (!pieces)
		return errno == EINVAL ? ROUTE_BAD_PATH : ROUTE_NO_MEMORY;
	const http_route *route = find(r, method, pieces);
	char *location = NULL;
	if (wants_slash(r, a, method, path, route, pieces, &location)) {
		match->location = location;
		return ROUTE_REDIRECT;
	}
	if (path != asked) {
		match->location = path;
		return ROUTE_REDIRECT;
	}
	if (!route) {
		match->allow = allowed_methods(r, a, pieces);
		return match->allow ? ROUTE_METHOD_UNKNOWN : ROUTE_NOT_FOUND;
	}
	match->route = route;
	return take_values(a, route, pieces, &match->values) ? ROUTE_FOUND : ROUTE_NO_MEMORY;
}
