#include "admin.h"

#include "accept.h"
#include "answer.h"
#include "auth.h"
#include "database.h"
#include "requests.h"
#include "text.h"

/* Alive: this very answer is the proof. */
static void get_livez(http_request *request, http_response *response)
{
	(void)request;
	http_response_text(response, 200, "ok\n");
}

/*
 * Ready: the database can be used and the server is not draining. A look that only waited for one of many busy
 * connections says nothing against PostgreSQL: taking a busy instance out of service would only make the
 * others busier.
 */
static void get_readyz(http_request *request, http_response *response)
{
	const admin *a = http_request_data(request);
	http_server_stats server;
	http_server_stats_get(a->server, &server);
	if (server.draining) {
		http_response_problem(response, 503, "The server is draining.");
		return;
	}
	ctx_auto *c = ctx_with_timeout(http_request_ctx(request), CTX_SECOND);
	database_look look;
	char why[768];
	if (!c) {
		http_response_problem(response, 500, NULL);
	} else if (database_look_at(c, a->pool, &look)) {
		http_response_text(response, 200, "ok\n");
	} else if (look.busy) {
		http_response_text(response, 200, "ok, every database connection is busy\n");
	} else {
		/* Where there is a token, what PostgreSQL says, of hosts and users, is not for everybody. */
		bool words = !*atomic_load(&a->token);
		http_response_problem(response, 503, database_describe(&look, words, why, sizeof(why)));
	}
}

static void get_metrics(http_request *request, http_response *response)
{
	const admin *a = http_request_data(request);
	if (!auth_bears(request, response, atomic_load(&a->token)))
		return;
	/* Who does not ask for the newer form, or for neither, gets what everybody can read. */
	static const char *const types[] = {"text/plain", "application/openmetrics-text"};
	static const char *const full_types[] = {
		"text/plain; version=0.0.4; charset=utf-8",
		"application/openmetrics-text; version=1.0.0; charset=utf-8"};
	bool open = accept_best(http_header(request, "Accept"), types, 2) == 1;
	text_auto body = {0};
	metrics_write(a->metrics, a->server, a->pool, open ? METRICS_OPENMETRICS : METRICS_PROMETHEUS, &body);
	answer(response, 200, full_types[open], &body);
	http_response_header(response, "Vary", "Accept");
}

int admin_handle(http_server *server, admin *a)
{
	return http_handle(server, "GET /livez", get_livez, a) < 0 ||
	                       http_handle(server, "GET /readyz", get_readyz, a) < 0 ||
	                       http_handle(server, "GET /metrics", get_metrics, a) < 0 ||
	                       requests_handle(server, a) < 0
	               ? -1
	               : 0;
}
