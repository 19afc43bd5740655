#include "requests.h"

#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/random.h>
#include <tether/loop.h>

#include "auth.h"
#include "live_json.h"
#include "parse.h"

enum { STREAMS_MOST = 16 };

/* How often a stream looks for changes. */
static const int64_t TICK = 200 * CTX_MILLISECOND;

/* ---- Who may ask -------------------------------------------------------------------------------------- */

/*
 * A site that gives its own name this machine's address after its page has loaded (DNS rebinding) is to the browser
 * still the same site. But it needs a name with a dot in it: an address, localhost, or the name of a container has
 * no such story.
 */
static bool is_local_name(const char *host)
{
	size_t size = strcspn(host, ":");
	if (host[0] == '[')
		return true;
	if (!memchr(host, '.', size))
		return true;
	return strspn(host, "0123456789.") >= size;
}

/* Browsers say where a request comes from: in Sec-Fetch-Site all of today's, in Origin the older ones too. */
static bool is_from_here(const http_request *request, const char *host)
{
	const char *site = http_header(request, "Sec-Fetch-Site");
	const char *origin = http_header(request, "Origin");
	if (site && strcmp(site, "same-origin") != 0 && strcmp(site, "none") != 0)
		return false;
	const char *after_scheme = origin ? strstr(origin, "://") : NULL;
	return !origin || (after_scheme && strcasecmp(after_scheme + 3, host) == 0);
}

/* false: the request is answered. */
static bool is_welcome(const admin *a, http_request *request, http_response *response)
{
	const char *host = http_header(request, "Host");
	const char *token = atomic_load(&a->token);
	http_response_header(response, "Cache-Control", "no-store");
	http_response_header(response, "X-Content-Type-Options", "nosniff");
	http_response_header(response, "Cross-Origin-Resource-Policy", "same-origin");
	if (!host)
		host = "";
	if (!is_from_here(request, host)) {
		http_response_problem(response, 403, "This is not for pages of other sites.");
		return false;
	}
	if (!token[0] && !is_local_name(host)) {
		http_response_problem(response, 403,
		                      "Without an admin token, ask by an address or as localhost.");
		return false;
	}
	return auth_bears(request, response, token);
}

/* ---- The page ----------------------------------------------------------------------------------------- */

extern const unsigned char live_html[];
extern const size_t live_html_size;

enum { NONCE_SIZE = 32 + 1 };

static bool make_nonce(char nonce[NONCE_SIZE])
{
	unsigned char bytes[(NONCE_SIZE - 1) / 2];
	if (getrandom(bytes, sizeof(bytes), 0) != sizeof(bytes))
		return false;
	for (size_t i = 0; i < sizeof(bytes); i++)
		snprintf(nonce + 2 * i, 3, "%02x", bytes[i]);
	return true;
}

/* The page has this where its script and style say that they are ours. */
#define NONCE_MARK "@NONCE@"

static void append_page(http_response *response, const char *nonce)
{
	const char *at = (const char *)live_html, *end = at + live_html_size;
	const char *mark;
	while ((mark = memmem(at, (size_t)(end - at), NONCE_MARK, strlen(NONCE_MARK)))) {
		http_response_append(response, at, (size_t)(mark - at));
		http_response_append(response, nonce, strlen(nonce));
		at = mark + strlen(NONCE_MARK);
	}
	http_response_append(response, at, (size_t)(end - at));
}

static void get_page(http_request *request, http_response *response)
{
	char nonce[NONCE_SIZE], policy[512];
	(void)request;
	if (!make_nonce(nonce)) {
		http_response_problem(response, 500, NULL);
		return;
	}
	snprintf(
		policy, sizeof(policy),
		"default-src 'none'; script-src 'nonce-%s'; style-src 'nonce-%s'; img-src data:; connect-src "
		"'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
		"require-trusted-types-for 'script'",
		nonce, nonce);
	static const char *const headers[][2] = {
		{"Content-Type", "text/html; charset=utf-8"},
		{"Cache-Control", "no-store"},
		{"X-Content-Type-Options", "nosniff"},
		{"X-Frame-Options", "DENY"},
		{"Referrer-Policy", "no-referrer"},
		{"Cross-Origin-Opener-Policy", "same-origin"},
		{"Cross-Origin-Resource-Policy", "same-origin"},
		{"Permissions-Policy", "camera=(), geolocation=(), microphone=()"},
	};
	http_response_status(response, 200);
	for (size_t i = 0; i < sizeof(headers) / sizeof(*headers); i++)
		http_response_header(response, headers[i][0], headers[i][1]);
	http_response_header(response, "Content-Security-Policy", policy);
	append_page(response, nonce);
}

/* ---- All of it, once ---------------------------------------------------------------------------------- */

static live_snapshot *new_snapshot(http_response *response)
{
	live_snapshot *s = malloc(sizeof(*s));
	if (!s)
		http_response_problem(response, 500, NULL);
	return s;
}

static void get_json(http_request *request, http_response *response)
{
	admin *a = http_request_data(request);
	live_snapshot *s = is_welcome(a, request, response) ? new_snapshot(response) : NULL;
	if (!s)
		return;
	text_auto body = {0};
	live_look(a->live, s, 0, 0);
	text_char(&body, '{');
	if (s->sample_count) {
		live_write_server(&body, s, a->listens_on);
		text_char(&body, ',');
	}
	live_write_connections(&body, s);
	text_char(&body, ',');
	live_write_cancellations(&body, s);
	text_char(&body, ',');
	live_write_samples(&body, s);
	text_string(&body, "}\n");
	free(s);
	if (body.failed)
		http_response_problem(response, 500, NULL);
	else
		http_response_body(response, 200, "application/json", body.data, body.size);
}

/* ---- What changes, as it does ------------------------------------------------------------------------- */

/* What a stream's reader knows already. */
typedef struct stream {
	live_snapshot *snapshot;
	text connections; /* the tree as it was sent last */
	text event;
	uint64_t cancellation;
	int64_t sample;
} stream;

static void begin_part(text *event)
{
	text_string(event, event->size ? "," : "data: {");
}

/* The parts that have changed since the last; none leave the event empty. A sample comes each second: a sign of life. */
static void write_event(const admin *a, stream *st)
{
	live_snapshot *s = st->snapshot;
	text_auto connections = {0};
	live_look(a->live, s, st->cancellation, st->sample);
	text_clear(&st->event);
	if (s->sample_count) {
		begin_part(&st->event);
		live_write_server(&st->event, s, a->listens_on);
		begin_part(&st->event);
		live_write_samples(&st->event, s);
		st->sample = s->samples[s->sample_count - 1].at;
	}
	live_write_connections(&connections, s);
	if (connections.size != st->connections.size ||
	    memcmp(connections.data, st->connections.data, connections.size) != 0) {
		begin_part(&st->event);
		text_append(&st->event, connections.data, connections.size);
		text old = st->connections;
		st->connections = connections;
		connections = old;
	}
	if (s->cancellation_count) {
		begin_part(&st->event);
		live_write_cancellations(&st->event, s);
		st->cancellation = s->cancellations[s->cancellation_count - 1].number;
	}
	if (st->event.size)
		text_string(&st->event, "}\n\n");
	st->event.failed |= st->connections.failed || connections.failed;
}

static void stream_events(const admin *a, http_request *request, http_response *response)
{
	ctx *c = http_request_ctx(request);
	stream st = {.snapshot = new_snapshot(response)};
	if (!st.snapshot)
		return;
	http_response_header(response, "Content-Type", "text/event-stream");
	http_response_header(response, "X-Accel-Buffering", "no"); /* nginx would gather them */
	bool goes_on = strcmp(http_request_method(request), "HEAD") != 0;
	while (goes_on) {
		write_event(a, &st);
		goes_on = !st.event.failed && !ctx_err(a->over) &&
		          (!st.event.size || http_write(response, st.event.data, st.event.size) == 0) &&
		          wait_sleep(c, TICK) == 0;
	}
	text_free(&st.connections);
	text_free(&st.event);
	free(st.snapshot);
}

static void get_events(http_request *request, http_response *response)
{
	static atomic_int streams;
	const admin *a = http_request_data(request);
	if (!is_welcome(a, request, response))
		return;
	if (atomic_fetch_add(&streams, 1) < STREAMS_MOST) {
		stream_events(a, request, response);
	} else {
		http_response_problem(response, 503, "Too many watch already.");
		http_response_header(response, "Retry-After", "10");
	}
	atomic_fetch_sub(&streams, 1);
}

/* ---- Cancelling --------------------------------------------------------------------------------------- */

static void post_cancel(http_request *request, http_response *response)
{
	const admin *a = http_request_data(request);
	uint64_t id;
	if (!is_welcome(a, request, response))
		return;
	/* What a page of another site could have a browser send without asking us first has no such header. */
	if (!http_header(request, "X-Requested-With"))
		http_response_problem(response, 403, "Send a header X-Requested-With, whatever its value.");
	else if (parse_uint(http_path_value(request, "id"), INT64_MAX, &id) && live_cancel(a->live, id))
		http_response_status(response, 204);
	else
		http_response_problem(response, 404, "There is no such request any more.");
}

int requests_handle(http_server *server, admin *a)
{
	return http_handle(server, "GET /requests", get_page, a) < 0 ||
	                       http_handle(server, "GET /requests.json", get_json, a) < 0 ||
	                       http_handle(server, "GET /requests/events", get_events, a) < 0 ||
	                       http_handle(server, "POST /requests/{id}/cancel", post_cancel, a) < 0
	               ? -1
	               : 0;
}
