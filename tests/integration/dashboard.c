/* server/grafana-dashboard.json asks for nothing that albumd does not expose. */
#include <criterion/criterion.h>
#include <criterion/new/assert.h>
#include <ctype.h>
#include <jansson.h>
#include <stdio.h>
#include <string.h>

#include "client.h"
#include "service.h"
#include "support.h"

enum { TIMEOUT_MS = 10000 };

/* What PromQL has words for, and the labels that Prometheus adds. */
static const char *const words[] = {"sum",          "by",  "rate",     "histogram_quantile",
                                    "label_values", "job", "instance", "le"};

static bool is_word(const char *name)
{
	for (size_t i = 0; i < sizeof words / sizeof *words; i++) {
		if (strcmp(name, words[i]) == 0)
			return true;
	}
	return false;
}

/* Whether there is a sample of that name, or with a label of that name. */
static bool is_exposed(const char *metrics, const char *name)
{
	size_t length = strlen(name);

	for (const char *at = metrics; (at = strstr(at, name)); at += length) {
		bool sample = (at == metrics || at[-1] == '\n') && (at[length] == ' ' || at[length] == '{');
		bool label = at > metrics && (at[-1] == '{' || at[-1] == ',') && at[length] == '=';

		if (sample || label)
			return true;
	}
	return false;
}

/* Each name of an expression, but within quotes and behind a $. Returns how many were looked up. */
static int check_expression(const char *metrics, const char *expression)
{
	int names = 0;

	for (const char *at = expression; *at;) {
		size_t length = 0;
		char name[128];

		while (isalnum((unsigned char)at[length]) || at[length] == '_')
			length++;
		if (*at == '"') {
			at += strcspn(at + 1, "\"") + 2;
		} else if (*at == '$' || isdigit((unsigned char)*at)) {
			at++;
			while (isalnum((unsigned char)*at) || *at == '_' || *at == '.')
				at++;
		} else if (length == 0) {
			at++;
		} else {
			snprintf(name, sizeof name, "%.*s", (int)length, at);
			if (!is_word(name)) {
				cr_expect(is_exposed(metrics, name), "%s is not exposed: %s", name,
				          expression);
				names++;
			}
			at += length;
		}
	}
	return names;
}

/* {{label}} in a legend. */
static void check_legend(const char *metrics, const char *legend)
{
	for (const char *at = legend; (at = strstr(at, "{{")); at += 2) {
		char name[64];

		snprintf(name, sizeof name, "%.*s", (int)strcspn(at + 2, "}"), at + 2);
		cr_expect(is_word(name) || is_exposed(metrics, name), "no label %s: %s", name, legend);
	}
}

Test(dashboard, asks_for_what_is_exposed, .timeout = 60)
{
	const char *path = support_source("server/grafana-dashboard.json");
	service *s = service_start(NULL);
	json_t *dashboard, *panel, *target, *variable;
	size_t i, j;
	int expressions = 0;
	reply r;

	dashboard = json_load_file(path, JSON_REJECT_DUPLICATES, NULL);
	cr_assert_not_null(dashboard, "%s", path);
	client_get(s->port, "/albums/1", NULL, TIMEOUT_MS);
	cr_assert(eq(int, client_get(s->admin_port, "/metrics", &r, TIMEOUT_MS), 200));
	json_array_foreach(json_object_get(dashboard, "panels"), i, panel)
	{
		json_array_foreach(json_object_get(panel, "targets"), j, target)
		{
			const char *expression = json_string_value(json_object_get(target, "expr"));

			cr_assert_not_null(expression);
			cr_expect(check_expression(r.body, expression) > 0, "nothing in %s", expression);
			check_legend(r.body, json_string_value(json_object_get(target, "legendFormat")));
			expressions++;
		}
	}
	json_array_foreach(json_object_get(json_object_get(dashboard, "templating"), "list"), i, variable)
	{
		if (strcmp(json_string_value(json_object_get(variable, "type")), "query") == 0)
			check_expression(r.body, json_string_value(json_object_get(variable, "query")));
	}
	cr_expect(expressions > 20);
	json_decref(dashboard);
	reply_free(&r);
	service_stop(s);
}
