/* /requests on the admin listener: what is alive, what was cancelled, and cancelling by hand. */
#include <criterion/criterion.h>
#include <criterion/new/assert.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "client.h"
#include "service.h"
#include "support.h"

enum { TIMEOUT_MS = 10000 };

/* ---- /requests.json ----------------------------------------------------------------------------------- */

static json_t *look(const service *s)
{
	reply r;
	json_t *all = NULL;

	if (client_get(s->admin_port, "/requests.json", &r, TIMEOUT_MS) == 200)
		all = json_loadb(r.body, r.size, 0, NULL);
	reply_free(&r);
	cr_assert_not_null(all, "/requests.json is no JSON");
	return all;
}

static const char *text_of(const json_t *object, const char *name)
{
	const char *text = json_string_value(json_object_get(object, name));

	return text ? text : "(none)";
}

static json_int_t number_of(const json_t *object, const char *name)
{
	return json_integer_value(json_object_get(object, name));
}

/* The first request with that target; NULL if none is alive. Borrowed from `all`. */
static json_t *request_in(json_t *all, const char *target)
{
	size_t i, j;
	json_t *connection, *request;

	json_array_foreach(json_object_get(all, "connections"), i, connection)
	{
		json_array_foreach(json_object_get(connection, "requests"), j, request)
		{
			if (strcmp(text_of(request, "target"), target) == 0)
				return request;
		}
	}
	return NULL;
}

struct wanted {
	const service *s;
	const char *target, *stage; /* NULL: not alive */
};

static bool is_at(void *arg)
{
	const struct wanted *w = arg;
	json_t *all = look(w->s);
	json_t *request = request_in(all, w->target);
	bool is = w->stage ? request && strcmp(text_of(request, "stage"), w->stage) == 0 : !request;

	json_decref(all);
	return is;
}

static bool becomes(const service *s, const char *target, const char *stage)
{
	return eventually(is_at, &(struct wanted){s, target, stage}, TIMEOUT_MS);
}

static json_int_t id_of(const service *s, const char *target)
{
	json_t *all = look(s);
	json_int_t id = number_of(request_in(all, target), "id");

	json_decref(all);
	return id;
}

struct wanted_cancellation {
	const service *s;
	const char *target;
	json_t *found;
};

static bool was_cancelled(void *arg)
{
	struct wanted_cancellation *w = arg;
	json_t *all = look(w->s);
	json_t *one;
	size_t i;

	json_array_foreach(json_object_get(all, "cancellations"), i, one)
	{
		if (!w->found && strcmp(text_of(one, "target"), w->target) == 0)
			w->found = json_incref(one);
	}
	json_decref(all);
	return w->found;
}

/* Waits for the cancellation of that target, and looks at what matters in it. */
static void expect_cancellation(const service *s, const char *target, const char *reason, const char *struck,
                                int status, const char *connection)
{
	struct wanted_cancellation w = {.s = s, .target = target};

	cr_assert(eventually(was_cancelled, &w, TIMEOUT_MS), "%s was not cancelled", target);
	cr_expect(eq(str, (char *)text_of(w.found, "reason"), (char *)reason), "%s", target);
	cr_expect(eq(str, (char *)text_of(w.found, "struck"), (char *)struck), "%s", target);
	cr_expect(eq(int, (int)number_of(w.found, "status"), status), "%s", target);
	cr_expect(eq(str, (char *)text_of(w.found, "connection"), (char *)connection), "%s", target);
	/* PostgreSQL had something to stop exactly where a query was in flight. */
	cr_expect(
		eq(int, json_is_number(json_object_get(w.found, "stop")), strcmp(connection, "(none)") != 0),
		"%s", target);
	json_decref(w.found);
}

struct wanted_more {
	const service *s;
	int more;
};

/* Those too young to be listed, or counted, grow. */
static bool has_more(void *arg)
{
	const struct wanted_more *w = arg;
	json_t *all = look(w->s);
	bool has = number_of(all, "more") == w->more;

	json_decref(all);
	return has;
}

/* ---- What is alive ------------------------------------------------------------------------------------ */

Test(requests, shows_who_runs_and_who_waits, .timeout = 60)
{
	service *s = service_start((const char *const[]){"--pool-size", "1", "--query-timeout", "20s", NULL});
	client *runs = client_connect(s->port), *waits = client_connect(s->port);

	cr_assert(client_send_get(runs, "/albums?delay=19s&n=1"));
	cr_assert(becomes(s, "/albums?delay=19s&n=1", "running"));
	cr_assert(client_send_get(waits, "/albums?delay=19s&n=2"));
	cr_assert(becomes(s, "/albums?delay=19s&n=2", "queued"));

	json_t *all = look(s);
	json_t *request = request_in(all, "/albums?delay=19s&n=1"),
	       *query = json_object_get(request, "query");
	cr_expect(eq(str, (char *)text_of(request, "method"), "GET"));
	cr_expect(eq(str, (char *)text_of(query, "stage"), "running"));
	cr_expect_not_null(strstr(text_of(query, "sql"), "pg_sleep($1)"));
	cr_expect(eq(int, (int)number_of(query, "backend"), (int)service_backend(s)));
	int lasts = (int)(number_of(query, "deadline") - number_of(query, "since"));
	bool as_told = lasts > 19000 && lasts <= 20000;
	cr_expect(as_told, "%d ms", lasts);
	bool later = number_of(query, "since") >= number_of(request, "since");
	cr_expect(later);

	query = json_object_get(request_in(all, "/albums?delay=19s&n=2"), "query");
	cr_expect_not(json_is_integer(json_object_get(query, "backend")), "it has no connection");
	cr_expect_not_null(strstr(text_of(query, "sql"), "pg_sleep($1)"));
	cr_expect(eq(int, (int)json_array_size(json_object_get(all, "connections")), 2));
	json_decref(all);

	client_close(runs);
	cr_expect(becomes(s, "/albums?delay=19s&n=1", NULL));
	cr_expect(becomes(s, "/albums?delay=19s&n=2", "running"), "the connection is the next one's");
	client_close(waits);
	cr_expect(becomes(s, "/albums?delay=19s&n=2", NULL));
	service_stop(s);
}

Test(requests, remembers_what_was_cancelled_and_where_it_struck, .timeout = 60)
{
	service *s = service_start((const char *const[]){"--pool-size", "1", "--query-timeout", "20s", NULL});
	client *runs = client_connect(s->port), *waits = client_connect(s->port);

	cr_assert(client_send_get(runs, "/albums?delay=19s&left=running"));
	cr_assert(becomes(s, "/albums?delay=19s&left=running", "running"));
	cr_assert(client_send_get(waits, "/albums?left=queued"));
	cr_assert(becomes(s, "/albums?left=queued", "queued"));
	client_reset(waits);
	expect_cancellation(s, "/albums?left=queued", "client_disconnect", "queued", 499, "(none)");
	client_close(runs);
	expect_cancellation(s, "/albums?delay=19s&left=running", "client_disconnect", "running", 499, "kept");

	cr_expect(eq(int,
	             client_request(s->port, "GET", "/albums?delay=19s&late", "Prefer: wait=1\r\n", NULL,
	                            NULL, TIMEOUT_MS),
	             504));
	expect_cancellation(s, "/albums?delay=19s&late", "deadline", "running", 504, "kept");

	client *sends = client_connect(s->port);
	cr_assert(client_send(sends, "POST /albums?left=body HTTP/1.1\r\nHost: h\r\nContent-Type: "
	                             "application/json\r\nContent-Length: 100\r\n\r\n{"));
	cr_assert(becomes(s, "/albums?left=body", "receiving"));
	client_close(sends);
	expect_cancellation(s, "/albums?left=body", "client_disconnect", "receiving", 499, "(none)");

	json_t *all = look(s);
	cr_expect(eq(int, (int)json_array_size(json_object_get(all, "cancellations")), 4));
	cr_expect(eq(int, (int)json_array_size(json_object_get(all, "connections")), 0), "nothing is left");
	json_decref(all);
	service_stop(s);
}

static bool has_seen_120(void *arg)
{
	json_t *all = look(arg), *cancellations = json_object_get(all, "cancellations");
	bool has =
		number_of(json_array_get(cancellations, json_array_size(cancellations) - 1), "number") == 120;

	json_decref(all);
	return has;
}

/* However many there are, a bounded number is kept: the last. */
Test(requests, remembers_the_last_hundred, .timeout = 120)
{
	service *s = service_start((const char *const[]){"--query-timeout", "1ms", NULL});

	for (int i = 0; i < 120; i++) {
		char target[48];

		snprintf(target, sizeof target, "/albums?delay=1s&n=%d", i);
		cr_assert(eq(int, client_get(s->port, target, NULL, TIMEOUT_MS), 504));
	}
	/* They are remembered once they have settled, in whatever order that is. */
	cr_assert(eventually(has_seen_120, s, TIMEOUT_MS));
	json_t *all = look(s), *cancellations = json_object_get(all, "cancellations");
	cr_expect(eq(int, (int)json_array_size(cancellations), 100));
	cr_expect(eq(int, (int)number_of(json_array_get(cancellations, 0), "number"), 21));
	json_decref(all);
	service_stop(s);
}

/* However many wait, a bounded number is listed: those that wait longest. */
Test(requests, lists_the_oldest_hundred, .timeout = 120)
{
	enum { MANY = 112 };
	service *s = service_start((const char *const[]){"--pool-size", "1", "--query-timeout", "30s", NULL});
	client *clients[MANY];

	for (int i = 0; i < MANY; i++) {
		char target[48];

		clients[i] = client_connect(s->port);
		snprintf(target, sizeof target, "/albums?delay=20s&n=%d", i);
		cr_assert(client_send_get(clients[i], target));
		if (i == 0)
			cr_assert(becomes(s, target, "running"));
	}
	cr_assert(service_metric_becomes(s, "db_pool_waiting", MANY - 1, TIMEOUT_MS));
	cr_assert(eventually(has_more, &(struct wanted_more){s, MANY - 100}, TIMEOUT_MS));
	json_t *all = look(s);
	cr_expect(eq(int, (int)json_array_size(json_object_get(all, "connections")), 100));
	cr_expect_not_null(request_in(all, "/albums?delay=20s&n=0"));
	json_decref(all);
	for (int i = 0; i < MANY; i++)
		client_close(clients[i]);
	service_stop(s);
}

/* ---- Cancelling by hand ------------------------------------------------------------------------------- */

static int cancel(const service *s, json_int_t id, const char *headers)
{
	char target[64];

	snprintf(target, sizeof target, "/requests/%lld/cancel", (long long)id);
	return client_request(s->admin_port, "POST", target, headers, NULL, NULL, TIMEOUT_MS);
}

Test(requests, an_operator_cancels_and_the_client_is_answered, .timeout = 60)
{
	service *s = service_start(NULL);
	client *c = client_connect(s->port);
	reply r;

	cr_assert(client_send_get(c, "/albums?delay=30s"));
	cr_assert(becomes(s, "/albums?delay=30s", "running"));
	json_int_t id = id_of(s, "/albums?delay=30s");
	cr_expect(eq(int, cancel(s, id, "X-Requested-With: test\r\n"), 204));
	cr_assert(client_receive(c, &r, TIMEOUT_MS));
	cr_expect(eq(int, r.status, 503));
	cr_expect_not_null(strstr(r.body, "cancelled by an operator"));
	reply_free(&r);
	expect_cancellation(s, "/albums?delay=30s", "operator", "running", 503, "kept");
	cr_expect(eq(int, cancel(s, id, "X-Requested-With: test\r\n"), 404), "it is over");

	json_t *line = service_log(s, "/albums?delay=30s", TIMEOUT_MS);
	cr_expect(service_line_is(line, 503, "operator", "kept"), "%s", service_line(line));
	json_decref(line);
	cr_expect(service_metric_becomes(s, "db_query_cancel_total{reason=\"operator\",outcome=\"kept\"}", 1,
	                                 TIMEOUT_MS));
	cr_expect(eq(int, client_get(s->port, "/albums/1", NULL, TIMEOUT_MS), 200));
	client_close(c);
	service_stop(s);
}

/* A browser sends what a page of another site asks it to send; these are the ways it could try. */
Test(requests, other_sites_get_nowhere, .timeout = 60)
{
	static const struct {
		const char *headers;
		int expected;
	} attempts[] = {
		{"", 403},
		{"X-Requested-With: x\r\nSec-Fetch-Site: cross-site\r\n", 403},
		{"X-Requested-With: x\r\nSec-Fetch-Site: same-site\r\n", 403},
		{"X-Requested-With: x\r\nOrigin: https://evil.example\r\n", 403},
		{"X-Requested-With: x\r\nOrigin: null\r\n", 403},
		{"X-Requested-With: x\r\nSec-Fetch-Site: same-origin\r\n", 404},
	};
	service *s = service_start(NULL);

	for (size_t i = 0; i < sizeof attempts / sizeof *attempts; i++)
		cr_expect(eq(int, cancel(s, 999, attempts[i].headers), attempts[i].expected), "%s",
		          attempts[i].headers);
	cr_expect(eq(int, cancel(s, -1, "X-Requested-With: x\r\n"), 404));

	/* DNS rebinding: the name is the attacker's, the address ours. */
	static const struct {
		const char *host;
		int expected;
	} hosts[] = {{"evil.example", 403},   {"evil.example:9090", 403}, {"127.0.0.1.evil.example", 403},
	             {"localhost:9090", 200}, {"127.0.0.1:9090", 200},    {"[::1]:9090", 200},
	             {"albumd", 200}};
	for (size_t i = 0; i < sizeof hosts / sizeof *hosts; i++) {
		client *c = client_connect(s->admin_port);
		reply r;

		cr_assert(client_send(c, "GET /requests.json HTTP/1.1\r\nHost: %s\r\n\r\n", hosts[i].host));
		cr_assert(client_receive(c, &r, TIMEOUT_MS));
		cr_expect(eq(int, r.status, hosts[i].expected), "%s", hosts[i].host);
		reply_free(&r);
		client_close(c);
	}
	service_stop(s);
}

Test(requests, the_admin_token_guards_all_but_the_page, .timeout = 60)
{
	char path[] = "/tmp/tether-token.XXXXXX";
	int fd = mkstemp(path);

	cr_assert(fd >= 0 && write(fd, "open-sesame\n", 12) == 12);
	close(fd);
	service *s = service_start((const char *const[]){"--admin-token-file", path, NULL});
	unlink(path);
	cr_expect(eq(int, client_get(s->admin_port, "/requests", NULL, TIMEOUT_MS), 200));
	cr_expect(eq(int, client_get(s->admin_port, "/requests.json", NULL, TIMEOUT_MS), 401));
	cr_expect(eq(int, client_get(s->admin_port, "/requests/events", NULL, TIMEOUT_MS), 401));
	cr_expect(eq(int, cancel(s, 1, "X-Requested-With: x\r\n"), 401));
	cr_expect(eq(int, cancel(s, 1, "X-Requested-With: x\r\nAuthorization: Bearer open-sesame\r\n"), 404));
	cr_expect(eq(int,
	             client_request(s->admin_port, "GET", "/requests.json",
	                            "Authorization: Bearer open-sesame\r\n", NULL, NULL, TIMEOUT_MS),
	             200));
	service_stop(s);
}

/* ---- The events --------------------------------------------------------------------------------------- */

/* Reads what comes until it holds `text`: true. false: the end, or too late. */
static bool reads(client *c, const char *text)
{
	static char seen[1 << 20];
	size_t size = 0;
	int64_t until = now_ms() + (int64_t)TIMEOUT_MS * support_patience();

	while (now_ms() < until && size < sizeof seen - 1) {
		struct pollfd readable = {.fd = client_fd(c), .events = POLLIN};
		ssize_t got = poll(&readable, 1, 100) > 0
		                      ? recv(readable.fd, seen + size, sizeof seen - 1 - size, 0)
		                      : -1;

		if (got == 0)
			return false;
		size += got > 0 ? (size_t)got : 0;
		seen[size] = '\0';
		if (strstr(seen, text))
			return true;
	}
	return false;
}

static client *watch(const service *s)
{
	client *c = client_connect(s->admin_port);

	cr_assert(c && client_send_get(c, "/requests/events"));
	return c;
}

Test(requests, events_tell_of_each_change, .timeout = 60)
{
	service *s = service_start(NULL);
	client *page = watch(s), *c = client_connect(s->port);

	cr_expect(reads(page, "Content-Type: text/event-stream"));
	cr_assert(client_send_get(c, "/albums?delay=30s"));
	cr_expect(reads(page, "\"stage\":\"running\""));
	cr_expect(reads(page, "\"busy\":1"), "a sample each second");
	client_close(c);
	cr_expect(reads(page, "\"reason\":\"client_disconnect\""));
	client_close(page);

	page = watch(s);
	cr_expect(reads(page, "\"reason\":\"client_disconnect\""), "who comes later is told everything too");
	client_close(page);
	service_stop(s);
}

static bool has_room(void *arg)
{
	const service *s = arg;
	client *page = watch(s);
	bool room = reads(page, "HTTP/1.1 200");

	client_close(page);
	return room;
}

/* A limited number of pages at once; one that leaves makes room. */
Test(requests, streams_are_bounded_and_end_with_their_page, .timeout = 120)
{
	enum { MOST = 16 };
	service *s = service_start(NULL);
	client *pages[MOST];

	for (int i = 0; i < MOST; i++) {
		pages[i] = watch(s);
		cr_assert(reads(pages[i], "data: "));
	}
	cr_expect(eq(int, client_get(s->admin_port, "/requests/events", NULL, TIMEOUT_MS), 503));
	for (int i = 0; i < MOST; i++)
		client_close(pages[i]);
	cr_expect(eventually(has_room, s, TIMEOUT_MS));
	service_stop(s);
}

Test(requests, a_page_that_watches_does_not_hold_up_the_end, .timeout = 60)
{
	service *s = service_start(NULL);
	client *page = watch(s);

	cr_assert(reads(page, "data: "));
	int64_t since = now_ms();
	cr_expect(eq(int, service_stop(s), 0));
	cr_expect(lt(int, (int)(now_ms() - since), 900 * support_patience()),
	          "the admin listener's drain is 1 s");
	client_close(page);
}

/* ---- The page ----------------------------------------------------------------------------------------- */

Test(requests, the_page_trusts_nothing_but_itself, .timeout = 60)
{
	service *s = service_start(NULL);
	char *nonces[2];

	for (int i = 0; i < 2; i++) {
		reply r;

		cr_assert(eq(int, client_get(s->admin_port, "/requests", &r, TIMEOUT_MS), 200));
		char *policy = reply_header(&r, "Content-Security-Policy");
		cr_assert_not_null(policy);
		cr_expect_not_null(strstr(policy, "default-src 'none'"));
		char *nonce = strstr(policy, "script-src 'nonce-");
		cr_assert_not_null(nonce);
		nonces[i] = strndup(nonce + strlen("script-src 'nonce-"), 32);
		char attribute[64];
		snprintf(attribute, sizeof attribute, "<script nonce=\"%s\">", nonces[i]);
		cr_expect_not_null(strstr(r.body, attribute));
		cr_expect_null(strstr(r.body, "@NONCE@"));
		cr_expect_null(strstr(r.body, "src=\"http"));
		free(policy);
		reply_free(&r);
	}
	cr_expect(ne(str, nonces[0], nonces[1]), "a nonce is for one time");
	free(nonces[0]);
	free(nonces[1]);
	service_stop(s);
}
