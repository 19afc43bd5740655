/*
 * Values as people write them: durations, numbers, addresses, prices, entity tags, media types; and what of them
 * stands in the log and on the live page, as JSON.
 *
 * An input is one text, read as each of them. Beside each reader stands a slower one, or a way back.
 */
#include <ctype.h>
#include <math.h>

#include "accept.h"
#include "etag.h"
#include "fuzz.h"
#include "json.h"
#include "live_json.h"
#include "log.h"
#include "parse.h"

/* With floating point, where that is exact enough to compare. -1: it is none. */
static double duration_of(const char *input)
{
	static const struct {
		const char *name;
		double ns;
	} units[] = {{"ns", 1}, {"us", 1e3}, {"ms", 1e6}, {"s", 1e9}, {"m", 60e9}, {"h", 3600e9}};
	double sum = 0;
	if (strcmp(input, "0") == 0)
		return 0;
	do {
		char number[64];
		size_t size = strspn(input, "0123456789."), letters;
		const char *dot = memchr(input, '.', size);
		bool digits_around = !dot || (dot > input && dot + 1 < input + size &&
		                              !memchr(dot + 1, '.', size - (size_t)(dot + 1 - input)));
		if (size == 0 || size >= sizeof(number) || !digits_around)
			return -1;
		snprintf(number, sizeof(number), "%.*s", (int)size, input);
		input += size;
		letters = strspn(input, "hmnsu");
		size_t unit = 0, count = sizeof(units) / sizeof(*units);
		while (unit < count && (strlen(units[unit].name) != letters ||
		                        strncmp(units[unit].name, input, letters) != 0))
			unit++;
		if (unit == count)
			return -1;
		sum += strtod(number, NULL) * units[unit].ns;
		input += letters;
	} while (*input);
	return sum;
}

static void check_duration(const char *input)
{
	int64_t ns = -1;
	bool good = parse_duration(input, &ns);
	double wanted = duration_of(input);
	HOLDS(good == (ns >= 0));
	if (strlen(input) < 40 && wanted < 9e18)
		HOLDS(good == (wanted >= 0));
	if (good && wanted >= 0)
		HOLDS(fabs((double)ns - wanted) <=
		      10 + wanted * 1e-12); /* each term is cut to a nanosecond */
}

static void check_number(const char *input)
{
	uint64_t value = 7;
	char *end;
	bool good = parse_uint(input, UINT32_MAX, &value);
	bool digits = *input && !input[strspn(input, "0123456789")];
	unsigned long long wanted = strtoull(input, &end, 10);
	HOLDS(good == (digits && wanted <= UINT32_MAX));
	HOLDS(value == (good ? wanted : 7));
	bool truth;
	HOLDS(!parse_bool(input, &truth) || strlen(input) <= 5);
	if (parse_is_address(input))
		HOLDS(strncmp(input, "unix:/", 6) == 0 || strncmp(input, "systemd:", 8) == 0 ||
		      input[strlen(input) - 1] != ':');
}

/* The price and the number are the same to well below a cent. */
static void check_price(const char *input)
{
	char price[PRICE_SIZE] = "", *end;
	json_t *json = json_loads(input, JSON_DECODE_ANY | JSON_DECODE_INT_AS_REAL, NULL);
	size_t size = strspn(input, "+-.0123456789eE");
	if (json && json_is_number(json) && input[size] == '\0') {
		double number = strtod(input, NULL);
		const char *fault = parse_price(input, size, price);
		if (!fault) {
			HOLDS(fabs(strtod(price, &end) - number) < 1e-6 && *end == '\0');
			HOLDS(end - price >= 4 && end[-3] == '.');
		} else {
			bool too_fine = fabs(number * 100 - nearbyint(number * 100)) > 0 ||
			                fabs(number) < 0.01 || strlen(input) > 15;
			HOLDS(number < 0 || number >= 99999999.99 || too_fine);
		}
	}
	json_decref(json);
}

static void check_etags(const char *input)
{
	char etag[ETAG_SIZE];
	text_auto array = {0};
	etag_write(etag, "742", MEDIA_CSV);
	bool among = etag_is_among(input, etag);
	HOLDS(!among || etag_is_any(input) || strstr(input, etag));
	etag_versions(input, false, &array);
	text_char(&array, '\0');
	HOLDS(!array.failed && array.data[strspn(array.data, "{},0123456789")] == '\0');
	HOLDS(array.data[0] == '{' && array.data[array.size - 2] == '}' && !strstr(array.data, ",,"));
}

/* What is written as a JSON string is one, and says the same if it was UTF-8. */
static void check_string(const char *input)
{
	text_auto written = {0};
	json_write_string(&written, input, strlen(input));
	json_t *json = json_loadb(written.data, written.size, JSON_DECODE_ANY, NULL);
	HOLDS(json_is_string(json));
	HOLDS(!json_is_utf8(input) || strcmp(json_string_value(json), input) == 0);
	json_decref(json);
}

/* The members of an object, or all of it: its JSON. Frees the text. */
static json_t *read_back(text *t, bool braces)
{
	text_auto whole = {0};
	text_string(&whole, braces ? "{" : "");
	text_append(&whole, t->data, t->size);
	text_string(&whole, "}");
	HOLDS(!t->failed && !whole.failed && !memchr(whole.data, '\n', whole.size));
	json_t *json = json_loadb(whole.data, whole.size, JSON_REJECT_DUPLICATES, NULL);
	HOLDS(json);
	text_free(t);
	return json;
}

/* Whatever it holds, it breaks no line of the log, and fakes no field of one. */
static void check_log(const char *input)
{
	log_line line;
	log_begin(&line, LOG_INFO, input);
	log_field(&line, "value", input);
	json_t *json = read_back(&line.text, false);
	HOLDS(json_object_size(json) == 4);
	if (strlen(input) < 1024 && json_is_utf8(input))
		HOLDS(strcmp(json_string_value(json_object_get(json, "value")), input) == 0);
	json_decref(json);
}

static void put(char *to, size_t size, const char *input)
{
	snprintf(to, size, "%s", input);
}

static void check_live(const char *input)
{
	static live_snapshot s = {.view_count = 1, .cancellation_count = 1};
	text_auto connections = {0}, cancellations = {0};
	live_view *view = &s.views[0];
	live_cancellation *cancellation = &s.cancellations[0];
	view->stage = LIVE_RUNNING;
	put(view->method, sizeof(view->method), input);
	put(view->peer, sizeof(view->peer), input);
	put(view->target, sizeof(view->target), input);
	put(view->sql, sizeof(view->sql), input);
	put(cancellation->method, sizeof(cancellation->method), input);
	put(cancellation->target, sizeof(cancellation->target), input);
	put(cancellation->sql, sizeof(cancellation->sql), input);
	live_write_connections(&connections, &s);
	live_write_cancellations(&cancellations, &s);
	json_decref(read_back(&connections, true));
	json_decref(read_back(&cancellations, true));
}

/*
 * Whichever is best has a weight, and without any other it would be the best as well. Doubling a list changes
 * nothing, nor does the case of its letters.
 */
static void check_accept(const char *input)
{
	static const char *const types[] = {"application/json", "text/csv"};
	int best = accept_best(input, types, 2);
	HOLDS(best >= -1 && best < 2);
	if (best >= 0)
		HOLDS(accept_best(input, types + best, 1) == 0);
	else if (strcmp(input, "*/*") != 0)
		HOLDS(accept_best(input, types, 1) < 0 && accept_best(input, types + 1, 1) < 0);
	text_auto twice = {0};
	text_string(&twice, input);
	text_string(&twice, ", ");
	for (const char *c = input; *c; c++)
		text_char(&twice, (char)toupper((unsigned char)*c));
	text_char(&twice, '\0');
	if (strcmp(input, "*/*") != 0)
		HOLDS(accept_best(twice.data, types, 2) == best);
	const char *rest = input;
	size_t size;
	for (const char *at; (at = list_next(&rest, &size));)
		HOLDS(size > 0 && !memchr(at, ',', size) && at + size <= rest);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static bool opened;
	if (!opened)
		opened = log_open(LOG_OFF, LOG_JSON);
	char *input = fuzz_string(data, size);
	check_duration(input);
	check_number(input);
	check_price(input);
	check_etags(input);
	check_string(input);
	check_log(input);
	check_live(input);
	check_accept(input);
	free(input);
	return 0;
}
