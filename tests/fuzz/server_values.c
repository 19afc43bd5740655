/*
 * Values as people write them: durations, numbers, addresses, prices, entity tags, JSON strings.
 *
 * An input is one text, read as each of them. Beside each reader stands a slower one, or a way back.
 */
#include <math.h>

#include "etag.h"
#include "fuzz.h"
#include "json.h"
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
		HOLDS(strncmp(input, "unix:/", 6) == 0 || input[strlen(input) - 1] != ':');
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

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	char *input = fuzz_string(data, size);
	check_duration(input);
	check_number(input);
	check_price(input);
	check_etags(input);
	check_string(input);
	free(input);
	return 0;
}
