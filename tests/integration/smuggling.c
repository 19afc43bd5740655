/*
 * No request is seen by us in a stream where a strict reader in front of us sees another, or none: the vectors of
 * tests/support/smuggling.c, all at once, straight to a server, whole and byte by byte; and through nginx and HAProxy,
 * whose logs must then tell of the same requests as the server behind them.
 */
#include <criterion/criterion.h>
#include <criterion/new/assert.h>
#include <errno.h>
#include <microhttpd.h>
#include <poll.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "http_peer.h"
#include "proxy.h"
#include "smuggling.h"
#include "support.h"

enum { LINES_MAX = 2000 };

static bool is_old(void)
{
	return strncmp(MHD_get_version(), "0.", 2) == 0;
}

/* ---- The server: what it has seen, under a lock ------------------------------------------------------- */

static struct {
	pthread_mutex_t lock;
	char *served[LINES_MAX]; /* "METHOD TARGET BODY", by handlers */
	size_t served_count;
	char *begun[LINES_MAX]; /* "METHOD TARGET", all */
	size_t begun_count;
} seen = {.lock = PTHREAD_MUTEX_INITIALIZER};

static char *text(const char *format, ...) __attribute__((format(printf, 1, 2)));

static char *text(const char *format, ...)
{
	va_list arguments;
	char *made;
	va_start(arguments, format);
	if (vasprintf(&made, format, arguments) < 0)
		abort();
	va_end(arguments);
	return made;
}

static void keep(char **lines, size_t *count, char *line)
{
	pthread_mutex_lock(&seen.lock);
	if (*count == LINES_MAX)
		abort();
	lines[(*count)++] = line;
	pthread_mutex_unlock(&seen.lock);
}

static void serve(http_request *request, http_response *response)
{
	size_t size;
	const char *body = http_body(request, &size);
	const char *target = http_request_target(request);
	keep(seen.served, &seen.served_count,
	     text("%s %s %.*s", http_request_method(request), target, (int)size, body ? body : ""));
	char answer[128];
	snprintf(answer, sizeof(answer), "served %s\n", target);
	http_response_text(response, 200, answer);
}

static void on_done(http_request *request, const http_outcome *outcome, void *data)
{
	(void)outcome, (void)data;
	keep(seen.begun, &seen.begun_count,
	     text("%s %s", http_request_method(request), http_request_target(request)));
}

static void forget(void)
{
	for (size_t i = 0; i < seen.served_count; i++)
		free(seen.served[i]);
	for (size_t i = 0; i < seen.begun_count; i++)
		free(seen.begun[i]);
	seen.served_count = seen.begun_count = 0;
}

static http_peer_server *start(int64_t patience)
{
	static const http_peer_route routes[] = {
		{"/{any}", serve, NULL}, {"GET /get/{any}", serve, NULL}, {0}};
	const http_server_options options = {
		.header_timeout = patience, .body_timeout = patience, .on_done = on_done};
	return http_peer_serve(&options, routes);
}

/* What was served of those whose target has that vector's number, in the table's form. */
static char *served_of(size_t number)
{
	char *digits = smuggling_text(number, "###"), *all = text("%s", "");
	for (size_t i = 0; i < seen.served_count; i++) {
		char *target = strchr(seen.served[i], ' ');
		char *end = strchr(target + 1, ' ');
		char *found = strstr(target, digits);
		if (!found || found > end)
			continue;
		char *longer = text("%s%s|", all, seen.served[i]);
		free(all);
		all = longer;
	}
	free(digits);
	return all;
}

/* ---- The clients: one for each vector, all at once ----------------------------------------------------- */

struct talk {
	int fd;
	char *stream, *said; /* what came back, NUL-terminated */
	size_t size, said_size;
	bool over;
};

/* All but the vectors with that text in them, NULL: all. */
static struct talk *talks_begin(const char *address, const char *without)
{
	struct talk *talks = calloc(smuggling_count, sizeof(*talks));
	if (!talks)
		abort();
	for (size_t i = 0; i < smuggling_count; i++) {
		talks[i].fd = http_peer_connect_to(address);
		talks[i].stream = smuggling_stream(i, &talks[i].size);
		talks[i].said = calloc(1, 1);
		if (without && strstr(talks[i].stream, without))
			talks[i].size = 0;
	}
	return talks;
}

/* So many bytes of each in turn. A server that has had enough does not take the rest. */
static void talks_send(struct talk *talks, size_t piece)
{
	bool more = true;
	for (size_t at = 0; more; at += piece) {
		more = false;
		for (size_t i = 0; i < smuggling_count; i++) {
			size_t left = talks[i].size > at ? talks[i].size - at : 0;
			if (left > 0)
				http_peer_send_bytes(talks[i].fd, talks[i].stream + at,
				                     left < piece ? left : piece);
			more = more || left > piece;
		}
	}
}

static void receive(struct talk *t)
{
	char piece[4096];
	ssize_t got = recv(t->fd, piece, sizeof(piece), MSG_DONTWAIT);
	if (got < 0 && errno == EAGAIN)
		return;
	if (got <= 0) {
		t->over = true;
		return;
	}
	t->said = realloc(t->said, t->said_size + (size_t)got + 1);
	if (!t->said)
		abort();
	memcpy(t->said + t->said_size, piece, (size_t)got);
	t->said_size += (size_t)got;
	t->said[t->said_size] = '\0';
}

/* Until the server has closed all of them. */
static void talks_read(struct talk *talks, int timeout_ms)
{
	struct pollfd *fds = calloc(smuggling_count, sizeof(*fds));
	int64_t until = now_ms() + (int64_t)timeout_ms * support_patience();
	size_t left = smuggling_count;
	while (fds && left > 0 && now_ms() < until) {
		for (size_t i = 0; i < smuggling_count; i++)
			fds[i] = (struct pollfd){.fd = talks[i].over ? -1 : talks[i].fd, .events = POLLIN};
		poll(fds, smuggling_count, 100);
		left = 0;
		for (size_t i = 0; i < smuggling_count; i++) {
			if (fds[i].revents)
				receive(&talks[i]);
			left += !talks[i].over;
		}
	}
	free(fds);
}

static void talks_end(struct talk *talks)
{
	for (size_t i = 0; i < smuggling_count; i++) {
		close(talks[i].fd);
		free(talks[i].stream);
		free(talks[i].said);
	}
	free(talks);
}

/* The last answer's status, 0 if there is none. */
static int status_of(const char *said)
{
	int status = 0;
	for (const char *at = said; (at = strstr(at, "HTTP/1.")); at++)
		sscanf(at, "HTTP/1.%*d %d", &status);
	return status;
}

/* ---- Straight to the server ---------------------------------------------------------------------------- */

static bool is_served(const smuggling_vector *v)
{
	switch (v->fate) {
	case REFUSED:
	case WORDLESS:
		return false;
	case OLD_SERVES:
	case OLD_SERVES_ALONE:
		return is_old();
	case NEW_SERVES:
		return !is_old();
	default:
		return true;
	}
}

static bool is_served_alone(const smuggling_vector *v)
{
	return v->fate == SERVED_ALONE || v->fate == OLD_SERVES_ALONE ||
	       (v->fate == SERVED_CHUNKED && is_old());
}

/* libmicrohttpd has no word for what does not look like HTTP to it, since 1.0 for more of it. */
static bool may_be_wordless(const smuggling_vector *v)
{
	return v->fate == WORDLESS || v->fate == OLD_SERVES;
}

static void expect_fate(size_t i, const struct talk *t, bool told)
{
	const smuggling_vector *v = &smuggling_vectors[i];
	bool served = is_served(v);
	char *expected = smuggling_text(i, served ? v->requests : "");
	if (served && !is_served_alone(v)) {
		char *next = smuggling_text(i, "GET /next### |"), *both = text("%s%s", expected, next);
		free(expected);
		free(next);
		expected = both;
	}
	char *had = served_of(i);
	cr_expect(t->over, "%zu was not closed: %s", i, t->stream);
	if (*had || v->fate != OLD_SERVES_ALONE)
		cr_expect(eq(str, had, expected), "%zu: %s", i, t->stream);
	int status = status_of(t->said);
	if (told)
		cr_expect(served ? status > 0 : status == v->status || (status == 0 && may_be_wordless(v)),
		          "%d for %zu: %s\n%s", status, i, t->stream, t->said);
	free(had);
	free(expected);
}

static void expect_fates(size_t piece, int64_t patience)
{
	http_peer_server *server = start(patience * support_patience());
	struct talk *talks = talks_begin(http_peer_address(server), NULL);
	talks_send(talks, piece);
	talks_read(talks, 20000);
	http_peer_stop(server);
	for (size_t i = 0; i < smuggling_count; i++)
		expect_fate(i, &talks[i], piece > 1);
	talks_end(talks);
	for (size_t i = 0; i < seen.begun_count; i++)
		cr_expect_null(strstr(seen.begun[i], SMUGGLED), "%s", seen.begun[i]);
	forget();
}

Test(smuggling, straight, .timeout = 240)
{
	expect_fates(SIZE_MAX / 2, 2 * CTX_SECOND);
}

/* A parser that was interrupted anywhere must go on as if it had not been. What is refused early is not told surely. */
Test(smuggling, straight_byte_by_byte, .timeout = 240)
{
	expect_fates(1, 10 * CTX_SECOND);
}

/* ---- Through a proxy ----------------------------------------------------------------------------------- */

/* Requests as lines, "METHOD TARGET BODY"; without the body, if the proxy does not tell of bodies. */
struct lines {
	char *line[LINES_MAX];
	size_t count;
};

struct views {
	const proxy *proxy;
	struct lines passed, answered; /* by the proxy: all, and those whose answer was a 200 */
	struct lines served, begun;    /* by us: by handlers, and all */
};

static void lines_add(struct lines *lines, char *line)
{
	if (lines->count == LINES_MAX)
		abort();
	lines->line[lines->count++] = line;
}

static void lines_forget(struct lines *lines)
{
	for (size_t i = 0; i < lines->count; i++)
		free(lines->line[i]);
	lines->count = 0;
}

static int compare(const void *a, const void *b)
{
	return strcmp(*(char *const *)a, *(char *const *)b);
}

/* The first line that the others, sorted as these are, do not have, or not as often; NULL: none. */
static const char *missing(const struct lines *lines, const struct lines *others, bool whole)
{
	for (size_t i = 0, j = 0; i < lines->count; i++, j++) {
		const char *line = lines->line[i];
		size_t size = strlen(line) + whole; /* as strncmp counts */
		while (j < others->count && strncmp(others->line[j], line, size) < 0)
			j++;
		if (j == others->count || strncmp(others->line[j], line, size) != 0)
			return line;
	}
	return NULL;
}

static void views_forget(struct views *v)
{
	lines_forget(&v->passed);
	lines_forget(&v->answered);
	lines_forget(&v->served);
	lines_forget(&v->begun);
}

static void views_take(struct views *v)
{
	size_t count;
	proxy_request *requests = proxy_passed_on(v->proxy, &count);
	bool bodies = count > 0 && requests[0].body;
	views_forget(v);
	for (size_t i = 0; i < count; i++) {
		const proxy_request *r = &requests[i];
		lines_add(&v->passed, text("%s %s %s", r->method, r->target, bodies ? r->body : ""));
		if (r->status == 200)
			lines_add(&v->answered, text("%s", v->passed.line[i]));
	}
	proxy_requests_free(requests, count);
	pthread_mutex_lock(&seen.lock);
	for (size_t i = 0; i < seen.served_count; i++) {
		const char *line = seen.served[i], *target = strchr(line, ' ') + 1;
		int size = (int)(target - line) + (int)strcspn(target, " ") + 1;
		lines_add(&v->served, bodies ? text("%s", line) : text("%.*s", size, line));
	}
	for (size_t i = 0; i < seen.begun_count; i++)
		lines_add(&v->begun, text("%s ", seen.begun[i]));
	pthread_mutex_unlock(&seen.lock);
	struct lines *const all[] = {&v->passed, &v->answered, &v->served, &v->begun};
	for (size_t i = 0; i < 4; i++)
		qsort(all[i]->line, all[i]->count, sizeof(char *), compare);
}

/* What we have had it has passed on, bodies included, and what it has an answer to we have served. */
static bool agree(void *arg)
{
	struct views *v = arg;
	views_take(v);
	return !missing(&v->begun, &v->passed, false) && !missing(&v->served, &v->passed, true) &&
	       !missing(&v->answered, &v->served, true);
}

/* Answers that are another client's. */
static void expect_own_answers(size_t i, const struct talk *t)
{
	char *digits = smuggling_text(i, "###");
	for (const char *at = t->said; (at = strstr(at, "\nserved ")); at++) {
		char *line = text("%.*s", (int)strcspn(at + 1, "\n"), at + 1);
		cr_expect_not_null(strstr(line, digits), "%zu was given \"%s\"", i, line);
		free(line);
	}
	free(digits);
}

static void expect_agreement(const proxy_options *how, size_t at_least)
{
	static struct views views;
	if (!proxy_is_there(how->program))
		cr_skip_test("it is not on this machine");
	http_peer_server *server = start(5 * CTX_SECOND);
	proxy_options options = *how;
	options.server_port = atoi(strrchr(http_peer_address(server), ':') + 1);
	options.logs = true;
	proxy *p = proxy_start(&options);
	char *address = text("127.0.0.1:%d", proxy_port(p));
	struct talk *talks = talks_begin(address, how->http2 ? "Upgrade:" : NULL);
	talks_send(talks, SIZE_MAX / 2);
	talks_read(talks, 20000);
	for (size_t i = 0; i < smuggling_count; i++)
		expect_own_answers(i, &talks[i]);
	views.proxy = p;
	cr_expect(eventually(agree, &views, 5000),
	          "not passed on: %s; not passed on so: %s; answered by another: %s",
	          missing(&views.begun, &views.passed, false), missing(&views.served, &views.passed, true),
	          missing(&views.answered, &views.served, true));
	cr_expect(ge(sz, views.answered.count, at_least));
	talks_end(talks);
	free(address);
	proxy_stop(p);
	http_peer_stop(server);
	views_forget(&views);
	forget();
}

Test(smuggling, through_nginx, .timeout = 120)
{
	expect_agreement(&(proxy_options){.program = PROXY_NGINX}, 100);
}

Test(smuggling, through_lenient_nginx, .timeout = 120)
{
	expect_agreement(&(proxy_options){.program = PROXY_NGINX, .lenient = true}, 100);
}

Test(smuggling, through_haproxy, .timeout = 120)
{
	expect_agreement(&(proxy_options){.program = PROXY_HAPROXY}, 100);
}

Test(smuggling, through_lenient_haproxy, .timeout = 120)
{
	expect_agreement(&(proxy_options){.program = PROXY_HAPROXY, .lenient = true}, 100);
}

/*
 * All requests share one connection here. HAProxy cannot pass an Upgrade on over it, and then resets a
 * stream that it has not opened, which by RFC 9113 (6.4) is the end of the connection and of all requests on it.
 */
Test(smuggling, through_haproxy_to_http2, .timeout = 120)
{
	expect_agreement(&(proxy_options){.program = PROXY_HAPROXY, .http2 = true}, 60);
}
