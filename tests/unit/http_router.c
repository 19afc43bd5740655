/*
 * Which handler a request goes to, and what it is told of the path: the rules that Go documents for
 * net/http.ServeMux since 1.22 (its hosts left out), asked of a running server.
 */
#include <criterion/criterion.h>
#include <criterion/new/assert.h>
#include <errno.h>
#include <string.h>

#include "http_peer.h"

/* Answers with the pattern that matched and the values of the names that the tests use. */
static void tell(http_request *request, http_response *response)
{
	static const char *const names[] = {"id", "a", "b", "rest"};
	http_response_text(response, 200, http_request_route(request));
	for (size_t i = 0; i < sizeof(names) / sizeof(*names); i++) {
		const char *value = http_path_value(request, names[i]);
		if (!value)
			continue;
		http_response_append(response, " ", 1);
		http_response_append(response, names[i], strlen(names[i]));
		http_response_append(response, "=", 1);
		http_response_append(response, value, strlen(value));
	}
}

struct expectation {
	const char *method, *target;
	int status;
	const char *answer; /* 200: the body; 405: Allow; 308: Location */
};

/* Both orders of registration must give the same router. */
static void expect(const char *const patterns[], const struct expectation *expected)
{
	http_peer_route routes[16] = {{0}}, reversed[16] = {{0}};
	size_t count = 0;
	while (patterns[count])
		count++;
	for (size_t i = 0; i < count; i++) {
		routes[i] = (http_peer_route){patterns[i], tell, NULL};
		reversed[count - 1 - i] = routes[i];
	}
	for (int order = 0; order < 2; order++) {
		http_peer_server *server = http_peer_serve(NULL, order ? reversed : routes);
		for (const struct expectation *e = expected; e->method; e++) {
			http_peer_response response = http_peer_ask(server, e->method, e->target, NULL);
			const char *answer = response.body;
			if (e->status == 405 || e->status == 308)
				answer = http_peer_field(&response, e->status == 405 ? "Allow" : "Location");
			cr_assert(eq(int, response.status, e->status), "%s %s", e->method, e->target);
			if (e->answer)
				cr_assert(answer && strcmp(answer, e->answer) == 0, "%s %s: %s, not %s",
				          e->method, e->target, answer, e->answer);
			http_peer_clear(&response);
		}
		cr_assert(eq(int, http_peer_stop(server), 0));
	}
}

Test(http_router, literals_and_methods, .timeout = 60)
{
	expect((const char *[]){"GET /a", "POST /a", "/any", "GET /sub/", "DELETE /sub/b", NULL},
	       (struct expectation[]){
		       {"GET", "/a", 200, "GET /a"},
		       {"POST", "/a", 200, "POST /a"},
		       {"HEAD", "/a", 200, NULL}, /* GET serves HEAD */
		       {"PUT", "/a", 405, "GET, HEAD, POST"},
		       {"PATCH", "/any", 200, "/any"},
		       {"DELETE", "/sub/b", 200, "DELETE /sub/b"},
		       {"GET", "/sub/b", 200, "GET /sub/"},
		       {"POST", "/sub/b", 405, "DELETE, GET, HEAD"},
		       {"POST", "/sub/c", 405, "GET, HEAD"},
		       {"get", "/a", 405, NULL}, /* methods are case-sensitive */
		       {"GET", "/A", 404, NULL}, /* and so are paths */
		       {"GET", "/a/", 404, NULL},
		       {0},
	       });
}

Test(http_router, head_of_its_own, .timeout = 60)
{
	expect((const char *[]){"GET /a", "HEAD /a", "HEAD /b", NULL}, (struct expectation[]){
									       {"GET", "/a", 200, "GET /a"},
									       {"GET", "/b", 405, "HEAD"},
									       {"GET", "/c", 404, NULL},
									       {0},
								       });
}

Test(http_router, wildcards, .timeout = 60)
{
	expect((const char *[]){"GET /albums/{id}", "GET /albums/latest", "GET /x/{a}/y/{b}",
	                        "GET /files/{rest...}", "GET /albums/{id}/tracks", NULL},
	       (struct expectation[]){
		       {"GET", "/albums/7", 200, "GET /albums/{id} id=7"},
		       {"GET", "/albums/latest", 200, "GET /albums/latest"},
		       {"GET", "/albums/7/tracks", 200, "GET /albums/{id}/tracks id=7"},
		       {"GET", "/albums/7/other", 404, NULL},
		       {"GET", "/albums/", 404, NULL}, /* a segment is not empty */
		       {"GET", "/albums", 404, NULL},
		       {"GET", "/albums/7/", 404, NULL},
		       {"GET", "/x/1/y/2", 200, "GET /x/{a}/y/{b} a=1 b=2"},
		       {"GET", "/files/a/b/c.txt", 200, "GET /files/{rest...} rest=a/b/c.txt"},
		       {"GET", "/files/", 200, "GET /files/{rest...} rest="},
		       {"GET", "/files/a/", 200, "GET /files/{rest...} rest=a/"},
		       {"GET", "/files", 308, "/files/"},
		       {0},
	       });
}

Test(http_router, ends_and_subtrees, .timeout = 60)
{
	expect((const char *[]){"/{$}", "/tree/", "/tree/{$}", "/tree/leaf", "/both", "/both/", NULL},
	       (struct expectation[]){
		       {"GET", "/", 200, "/{$}"},
		       {"GET", "/x", 404, NULL},
		       {"GET", "/tree", 308, "/tree/"},
		       {"GET", "/tree?q=1&r=%20", 308, "/tree/?q=1&r=%20"},
		       {"GET", "/tree/", 200, "/tree/{$}"},
		       {"GET", "/tree/x", 200, "/tree/"},
		       {"GET", "/tree/x/y/", 200, "/tree/"},
		       {"GET", "/tree/leaf", 200, "/tree/leaf"},
		       {"GET", "/tree/leaf/", 200, "/tree/"},
		       {"GET", "/both", 200, "/both"},
		       {"GET", "/both/", 200, "/both/"},
		       {0},
	       });
}

Test(http_router, more_specific_wins, .timeout = 60)
{
	expect((const char *[]){"/", "/{a}", "/{a}/", "/images/", "/images/thumbnails/{$}",
	                        "/images/{id}/raw/x", "GET /images/{id}/raw/x", NULL},
	       (struct expectation[]){
		       {"GET", "/", 200, "/"},
		       {"GET", "/q", 200, "/{a} a=q"},
		       {"GET", "/q/", 200, "/{a}/ a=q"},
		       {"GET", "/q/r/s", 200, "/{a}/ a=q"},
		       {"GET", "/images", 200, "/{a} a=images"}, /* a match of its own: no redirect */
		       {"GET", "/images/1", 200, "/images/"},
		       {"GET", "/images/thumbnails/", 200, "/images/thumbnails/{$}"},
		       {"GET", "/images/raw/raw/x", 200, "GET /images/{id}/raw/x id=raw"},
		       {"POST", "/images/raw/raw/x", 200, "/images/{id}/raw/x id=raw"},
		       {0},
	       });
}

Test(http_router, unclean_paths_are_redirected, .timeout = 60)
{
	expect((const char *[]){"/a/b", "/d/", NULL},
	       (struct expectation[]){
		       {"GET", "/a//b", 308, "/a/b"},
		       {"GET", "/a/./b", 308, "/a/b"},
		       {"GET", "/x/../a/b", 308, "/a/b"},
		       {"GET", "/../../a/b?x=//", 308, "/a/b?x=//"},
		       {"GET", "//evil.example/", 308, "/evil.example/"},      /* never another host */
		       {"GET", "//\\evil.example/", 308, "/%5Cevil.example/"}, /* to browsers \ is / */
		       {"GET", "/d/x/..", 308, "/d/"},
		       {"GET", "/d/..x/.y", 200, "/d/"},
		       {"GET", "/", 404, NULL},
		       {"GET", "/..", 308, "/"},
		       {0},
	       });
}

Test(http_router, segments_are_matched_decoded, .timeout = 60)
{
	expect((const char *[]){"/name/{id}", "/with%20space/{rest...}", "/caf%C3%A9", NULL},
	       (struct expectation[]){
		       {"GET", "/name/a%2Fb", 200,
	                "/name/{id} id=a/b"}, /* an encoded slash divides nothing */
		       {"GET", "/name/%7Bx%7d", 200, "/name/{id} id={x}"},
		       {"GET", "/n%61me/1", 200, "/name/{id} id=1"},
		       {"GET", "/name/a+b", 200, "/name/{id} id=a+b"}, /* in a path a plus is a plus */
		       {"GET", "/with%20space/x%2F/y", 200, "/with%20space/{rest...} rest=x//y"},
		       {"GET", "/caf%c3%a9", 200, "/caf%C3%A9"},
		       {"GET", "/name/%2e%2e", 200, "/name/{id} id=.."},
		       {"GET", "/name/%", 400, NULL},
		       {"GET", "/name/%2", 400, NULL},
		       {"GET", "/name/%zz", 400, NULL},
		       {"GET", "/name/%00", 400, NULL},
		       {"GET", "/nowhere/%zz", 400, NULL},
		       {0},
	       });
}

static int add(http_server *server, const char *pattern)
{
	errno = 0;
	return http_handle(server, pattern, tell, NULL);
}

Test(http_router, malformed_patterns, .timeout = 60)
{
	static const char *const patterns[] = {
		"",          "a",        "GET",         "GET ",   " /a",       "G(T /a",   "GET a/b",
		"/{",        "/}{",      "/a{id}",      "/{id}b", "/{}",       "/{...}",   "/{a b}",
		"/{1a}",     "/{a}/{a}", "/{a}/{a...}", "/{$}/b", "/{a...}/b", "/{a...}/", "/a//b",
		"/a/../b",   "/./a",     "/%zz",        "/a%",    "/%00",      "host/a",   "/{a..}",
		"/{a.b...}", "GET //a",  "/{a}{b}",     "/{é}",
	};
	http_server *server = http_server_new(NULL);
	for (size_t i = 0; i < sizeof(patterns) / sizeof(*patterns); i++) {
		cr_expect(eq(int, add(server, patterns[i]), -1), "\"%s\"", patterns[i]);
		cr_expect(eq(int, errno, EINVAL), "\"%s\"", patterns[i]);
	}
	http_server_free(server);
}

Test(http_router, conflicts, .timeout = 60)
{
	static const struct {
		const char *first, *second;
		bool conflict;
	} pairs[] = {
		{"/a", "/a", true},
		{"GET /a", "GET /a", true},
		{"/{x}", "/{y}", true},
		{"/{x...}", "/", true},
		{"GET /a", "POST /a", false},
		{"GET /a", "/a", false},
		{"GET /a", "HEAD /a", false},
		{"/a/{x}", "/{y}/b", true}, /* both match /a/b, neither within the other */
		{"/a/{x}", "/a/b", false},
		{"/posts/latest", "GET /posts/{id}",
	         true}, /* the one narrower in path, the other in method */
		{"GET /posts/latest", "/posts/{id}", false},
		{"/a/{x}/", "/a/b/{y}", false},
		{"/a/{x}/", "/a/{x}/{y}", false},
		{"/a/{$}", "/a/{x}", false},
		{"/a/{$}", "/a/", false},
		{"/a/b/", "/a/{x}/c", true},
		{"/%61", "/a", true},
		{"/a/{x}/c", "/a/b/d", false},
	};
	for (size_t i = 0; i < sizeof(pairs) / sizeof(*pairs); i++)
		for (int order = 0; order < 2; order++) {
			http_server *server = http_server_new(NULL);
			cr_assert(eq(int, add(server, order ? pairs[i].second : pairs[i].first), 0));
			int result = add(server, order ? pairs[i].first : pairs[i].second);
			cr_expect(eq(int, result, pairs[i].conflict ? -1 : 0), "%s, %s", pairs[i].first,
			          pairs[i].second);
			if (pairs[i].conflict)
				cr_expect(eq(int, errno, EEXIST), "%s, %s", pairs[i].first, pairs[i].second);
			http_server_free(server);
		}
}
