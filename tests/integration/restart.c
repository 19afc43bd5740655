/*
 * A restart as an operator does it: one albumd takes another's place while clients of every kind are served, over a
 * shared port or a socket that the service manager holds. Each request has one answer, and a good one; no query is
 * cancelled for it, and none is left behind.
 */
#include <criterion/criterion.h>
#include <criterion/new/assert.h>
#include <curl/curl.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "certificates.h"
#include "client.h"
#include "h2_peer.h"
#include "service.h"
#include "support.h"
#include "tls_peer.h"

enum { RESTARTS = 3, BETWEEN = 20, PATIENCE_MS = 20000, LAST_CALL_MS = 300 };

/* A few milliseconds each, so that the clients do not take all of the machine. */
static const char target[] = "/albums?limit=1&delay=5ms", slow_target[] = "/albums?limit=1&delay=700ms";

/* ---- Clients that never leave, and go on asking ------------------------------------------------------------- */

typedef struct visitor {
	const char *name;
	/* Asks over one connection, for as long as that lasts. */
	void (*visit)(struct visitor *v);
	pthread_t thread;
	atomic_int answered, lost;
} visitor;

static struct {
	int port;
	atomic_bool over;
	visitor *visitors;
	size_t count;
} load;

static void count(visitor *v, int status, const char *body)
{
	bool good = status == 200 && body && strstr(body, "\"id\":1");
	atomic_fetch_add(good ? &v->answered : &v->lost, 1);
	if (!good)
		fprintf(stderr, "%s: %d %s\n", v->name, status, body ? body : "");
}

static void visit_once(visitor *v)
{
	reply r = {0};
	int status = client_get(load.port, target, &r, PATIENCE_MS);
	count(v, status, r.body);
	reply_free(&r);
}

/*
 * Any server closes a connection that is idle, and a client that did not ask again for a while meets that and asks
 * elsewhere (RFC 9112, 9.3.1). Ours ask again at once; where the machine held one up, it is no loss.
 */
static bool was_idle(int64_t since_ms)
{
	return since_ms && now_ms() - since_ms > LAST_CALL_MS;
}

static void stay(visitor *v, const char *asked)
{
	client *c = client_connect(load.port);
	int64_t idle_since = 0;
	bool kept = c;
	if (!c)
		count(v, -1, "not connected");
	while (kept && !load.over) {
		reply r = {0};
		bool late = was_idle(idle_since);
		bool came = client_send_get(c, asked) && client_receive(c, &r, PATIENCE_MS);
		if (came || !late)
			count(v, came ? r.status : -1, r.body);
		char *closes = came ? reply_header(&r, "Connection") : NULL;
		kept = came && !closes;
		idle_since = now_ms();
		free(closes);
		reply_free(&r);
	}
	client_close(c);
}

static void visit_and_stay(visitor *v)
{
	stay(v, target);
}

static void visit_slowly(visitor *v)
{
	stay(v, slow_target);
}

/* Three streams at a time, until GOAWAY. One that this names as not served is no loss: its client knows. */
static void visit_by_h2(visitor *v)
{
	enum { STREAMS = 3 };
	h2_peer *p = h2_peer_dial(load.port);
	for (uint32_t id = 1; p->goaways == 0 && !p->closed && !load.over; id += 2 * STREAMS) {
		for (uint32_t i = 0; i < STREAMS; i++)
			h2_peer_ask(p, id + 2 * i, "GET", target);
		for (uint32_t i = 0; i < STREAMS; i++) {
			h2_answer *answer = h2_peer_answer(p, id + 2 * i);
			if (answer->ended || p->goaways < 2 || id + 2 * i <= p->goaway_last)
				count(v, answer->ended ? answer->status : -1, answer->body);
		}
	}
	h2_peer_close(p);
}

/* ---- The same with TLS -------------------------------------------------------------------------------------- */

static bool ask_by_tls(visitor *v, tls_peer *p, bool late)
{
	char head[128];
	snprintf(head, sizeof(head), "GET %s HTTP/1.1\r\nHost: localhost\r\n\r\n", target);
	tls_peer_send(p, head);
	http_peer_response response = tls_peer_read(p, false);
	if (response.status > 0 || !late)
		count(v, response.status, response.body);
	bool kept = response.status > 0 && !http_peer_field(&response, "Connection");
	http_peer_clear(&response);
	return kept;
}

static void visit_by_tls(visitor *v)
{
	tls_peer *p = tls_peer_connect_to(load.port, NULL);
	ask_by_tls(v, p, false);
	tls_peer_close(p);
}

static void visit_and_stay_by_tls(visitor *v)
{
	tls_peer *p = tls_peer_connect_to(load.port, NULL);
	int64_t idle_since = 0;
	while (!load.over && ask_by_tls(v, p, was_idle(idle_since)))
		idle_since = now_ms();
	tls_peer_close(p);
}

typedef struct text {
	char data[4096];
	size_t size;
} text;

static size_t keep(char *data, size_t size, size_t n, void *arg)
{
	text *t = arg;
	size_t room = sizeof(t->data) - 1 - t->size, taken = size * n < room ? size * n : room;
	memcpy(t->data + t->size, data, taken);
	t->size += taken;
	return size * n;
}

/* HTTP/2 with TLS, by a real client. */
static void visit_by_curl(visitor *v)
{
	CURL *curl = curl_easy_init();
	char url[128];
	text body;
	snprintf(url, sizeof(url), "https://localhost:%d%s", load.port, target);
	curl_easy_setopt(curl, CURLOPT_URL, url);
	curl_easy_setopt(curl, CURLOPT_CAINFO, certificates_get()->ca);
	curl_easy_setopt(curl, CURLOPT_HTTP_VERSION, (long)CURL_HTTP_VERSION_2TLS);
	curl_easy_setopt(curl, CURLOPT_IPRESOLVE, (long)CURL_IPRESOLVE_V4);
	curl_easy_setopt(curl, CURLOPT_NOSIGNAL, 1L);
	curl_easy_setopt(curl, CURLOPT_WRITEFUNCTION, keep);
	curl_easy_setopt(curl, CURLOPT_WRITEDATA, &body);
	while (!load.over) {
		long status = 0;
		memset(&body, 0, sizeof(body));
		CURLcode result = curl_easy_perform(curl);
		curl_easy_getinfo(curl, CURLINFO_RESPONSE_CODE, &status);
		count(v, result == CURLE_OK ? (int)status : -1,
		      result == CURLE_OK ? body.data : curl_easy_strerror(result));
	}
	curl_easy_cleanup(curl);
}

/* ---- Load --------------------------------------------------------------------------------------------------- */

static void *ask_on(void *arg)
{
	visitor *v = arg;
	while (!load.over)
		v->visit(v);
	return NULL;
}

static void load_begin(int port, visitor *visitors, size_t size)
{
	load.port = port;
	load.visitors = visitors;
	load.count = size;
	for (size_t i = 0; i < size; i++)
		cr_assert(eq(int, pthread_create(&visitors[i].thread, NULL, ask_on, &visitors[i]), 0));
}

/* Everyone has been served again, the slow ones once at least. */
static void load_goes_on(void)
{
	for (size_t i = 0; i < load.count; i++) {
		visitor *v = &load.visitors[i];
		int more = v->visit == visit_slowly ? 1 : BETWEEN;
		cr_expect(eventually_counts(&v->answered, v->answered + more, PATIENCE_MS),
		          "%s are not served", v->name);
	}
}

/* How many were answered. */
static int load_end(void)
{
	int answered = 0;
	load.over = true;
	for (size_t i = 0; i < load.count; i++) {
		visitor *v = &load.visitors[i];
		pthread_join(v->thread, NULL);
		cr_expect(eq(int, v->lost, 0), "%s: %d of %d", v->name, v->lost, v->lost + v->answered);
		answered += v->answered;
	}
	return answered;
}

/* ---- Over a shared port ------------------------------------------------------------------------------------- */

static service *start_at(int port, int admin_port, const char *const more[])
{
	char listen[32], admin[32];
	const char *flags[32] = {"--share-port", "--pool-size",    "8",  "--listen",
	                         listen,         "--admin-listen", admin};
	size_t n = 7;
	snprintf(listen, sizeof(listen), "127.0.0.1:%d", port);
	snprintf(admin, sizeof(admin), "127.0.0.1:%d", admin_port);
	while (more && *more && n < 31)
		flags[n++] = *more++;
	return service_start(flags);
}

/* It has drained, and left nothing. How many requests it has had. */
static int expect_good_end(service *s)
{
	process_signal(s->albumd->process, SIGTERM);
	cr_expect(eq(int, process_wait(s->albumd->process, PATIENCE_MS * support_patience()), 0));
	cr_expect(activity_becomes(s->activity, (activity_of){.application = s->application}, 0, 2000),
	          "it has left connections to PostgreSQL");
	cr_expect(eq(int, service_log_count(s, "shutdown"), 0));
	int served = service_log_count(s, NULL);
	service_stop(s);
	return served;
}

static bool runs_something(void *s)
{
	return service_running(s) > 0;
}

static void take_over(visitor *visitors, size_t size, const char *const flags[])
{
	service *now = start_at(0, 0, flags);
	int served = 0;
	load_begin(now->port, visitors, size);
	for (int i = 0; i < RESTARTS; i++) {
		load_goes_on();
		service *next = start_at(now->port, now->admin_port, flags);
		cr_expect(eq(int, client_get(next->admin_port, "/readyz", NULL, PATIENCE_MS), 200));
		cr_expect(eventually(runs_something, now, PATIENCE_MS), "nothing is in flight");
		served += expect_good_end(now);
		now = next;
	}
	load_goes_on();
	int answered = load_end();
	served += expect_good_end(now);
	cr_expect(eq(int, served, answered), "some were served twice, or for nobody");
}

Test(restart, over_a_shared_port_loses_nothing, .timeout = 240)
{
	visitor visitors[] = {{.name = "who connect anew", .visit = visit_once},
	                      {.name = "who stay", .visit = visit_and_stay},
	                      {.name = "whose requests are slow", .visit = visit_slowly},
	                      {.name = "who speak HTTP/2", .visit = visit_by_h2}};
	take_over(visitors, sizeof(visitors) / sizeof(*visitors), NULL);
}

Test(restart, over_a_shared_port_with_tls_loses_nothing, .timeout = 240)
{
	const certificates *c = certificates_get();
	visitor visitors[] = {{.name = "who connect anew", .visit = visit_by_tls},
	                      {.name = "who stay", .visit = visit_and_stay_by_tls},
	                      {.name = "curl, by HTTP/2", .visit = visit_by_curl}};
	curl_global_init(CURL_GLOBAL_DEFAULT);
	take_over(visitors, sizeof(visitors) / sizeof(*visitors),
	          (const char *const[]){"--tls-cert", c->server, "--tls-key", c->server_key, NULL});
}

/* The run's database, or another of its server, and for whom. The caller frees it. */
static char *url_of(const char *database, const char *application)
{
	const char *common = support_database_url();
	char *url;
	cr_assert(ge(int,
	             asprintf(&url, "%s%s%s%s&application_name=%s", common, strchr(common, '?') ? "&" : "?",
	                      database ? "dbname=" : "connect_timeout=10", database ? database : "",
	                      application),
	             1));
	return url;
}

/*
 * The next one may be no good: here its database is not. It had been given connections by then, which were reset
 * when it ended.
 */
Test(restart, over_a_shared_port_may_fail, .timeout = 120)
{
	service *now = start_at(0, 0, NULL);
	visitor visitors[] = {{.name = "who connect anew", .visit = visit_once},
	                      {.name = "others who do", .visit = visit_once}};
	char address[32], *url = url_of("nowhere", "nobody");
	snprintf(address, sizeof(address), "127.0.0.1:%d", now->port);
	const char *const argv[] = {support_built("albumd"),
	                            "--share-port",
	                            "--listen",
	                            address,
	                            "--admin-listen",
	                            "off",
	                            "--database-url",
	                            url,
	                            NULL};
	load_begin(now->port, visitors, 2);
	for (int i = 0; i < 10; i++) {
		char *output;
		cr_expect(eq(int, process_run(argv, NULL, PATIENCE_MS, &output), 1));
		cr_expect(ne(ptr, strstr(output, "there is no such database"), NULL), "%s", output);
		free(output);
		load_goes_on();
	}
	load_end();
	service_stop(now);
	free(url);
}

/* ---- With a socket that the service manager holds ----------------------------------------------------------- */

/* As the unit albumd.socket has it handed over. */
static process *activate(int fd, const char *url)
{
	static const char exec[] = "LISTEN_PID=$$ exec \"$0\" --allow-delay --pool-size 8 --admin-listen off "
				   "--database-url \"$1\"";
	const char *const argv[] = {"/bin/sh", "-c", exec, support_built("albumd"), url, NULL};
	process *p = process_start_handed(
		argv, (const char *const[]){"LISTEN_FDS=1", "LISTEN_FDNAMES=albumd", NULL}, fd);
	cr_assert(process_wait_for(p, "albumd: listening on ", PATIENCE_MS * support_patience()));
	return p;
}

/* There is nobody for a while, from the beginning of the drain to the next one's start: clients wait. */
Test(restart, with_a_socket_that_is_held_loses_nothing, .timeout = 240)
{
	visitor visitors[] = {{.name = "who connect anew", .visit = visit_once},
	                      {.name = "who stay", .visit = visit_and_stay},
	                      {.name = "whose requests are slow", .visit = visit_slowly},
	                      {.name = "who speak HTTP/2", .visit = visit_by_h2}};
	int port, fd = support_listen(&port);
	cr_assert(ge(int, fd, 0));
	char application[32], *url;
	snprintf(application, sizeof(application), "activated-%d", getpid());
	url = url_of(NULL, application);
	activity *watched = activity_open(support_database_url());
	process *p = activate(fd, url);
	load_begin(port, visitors, sizeof(visitors) / sizeof(*visitors));
	for (int i = 0; i < RESTARTS; i++) {
		load_goes_on();
		process_signal(p, SIGTERM);
		cr_expect(eq(int, process_wait(p, PATIENCE_MS * support_patience()), 0));
		process_stop(p);
		cr_expect(activity_becomes(watched, (activity_of){.application = application}, 0, 2000),
		          "it has left connections to PostgreSQL");
		p = activate(fd, url);
	}
	load_goes_on();
	load_end();
	process_signal(p, SIGTERM);
	cr_expect(eq(int, process_wait(p, PATIENCE_MS * support_patience()), 0));
	process_stop(p);
	activity_close(watched);
	close(fd);
	free(url);
}
