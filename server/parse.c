#include "parse.h"

#include <ctype.h>
#include <stdio.h>
#include <string.h>

static bool is_digit(char c)
{
	return c >= '0' && c <= '9';
}

/* ---- Durations -------------------------------------------------------------------------------------- */

static const struct unit {
	const char *name;
	int64_t ns;
} units[] = {
	{"ns", 1}, {"us", 1000}, {"ms", 1000000}, {"s", 1000000000}, {"m", 60000000000}, {"h", 3600000000000},
};

/* The unit that text begins with. "ms" is not "m": the name must end where the letters do. */
static const struct unit *unit_at(const char *text, size_t *length)
{
	size_t letters = 0;
	while (isalpha((unsigned char)text[letters]))
		letters++;
	for (size_t i = 0; i < sizeof(units) / sizeof(*units); i++) {
		if (strlen(units[i].name) == letters && strncmp(units[i].name, text, letters) == 0) {
			*length = letters;
			return &units[i];
		}
	}
	return NULL;
}

/* One number and its unit at *text, added to *ns. */
static bool duration_term(const char **text, int64_t *ns)
{
	const char *at = *text;
	int64_t whole = 0;
	if (!is_digit(*at))
		return false;
	for (; is_digit(*at); at++) {
		if (__builtin_mul_overflow(whole, 10, &whole) ||
		    __builtin_add_overflow(whole, *at - '0', &whole))
			return false;
	}
	const char *decimals = at;
	if (*at == '.') {
		decimals = ++at;
		while (is_digit(*at))
			at++;
		if (at == decimals)
			return false;
	}
	size_t length;
	const struct unit *unit = unit_at(at, &length);
	int64_t term;
	if (!unit || __builtin_mul_overflow(whole, unit->ns, &term))
		return false;
	int64_t worth = unit->ns;
	for (const char *digit = decimals; digit < at && worth > 1; digit++) {
		worth /= 10;
		if (__builtin_add_overflow(term, (*digit - '0') * worth, &term))
			return false;
	}
	if (__builtin_add_overflow(*ns, term, ns))
		return false;
	*text = at + length;
	return true;
}

bool parse_duration(const char *text, int64_t *ns)
{
	int64_t total = 0;
	if (strcmp(text, "0") != 0) {
		do {
			if (!duration_term(&text, &total))
				return false;
		} while (*text);
	}
	*ns = total;
	return true;
}

/* ---- Numbers, switches, addresses ------------------------------------------------------------------- */

bool parse_uint(const char *text, uint64_t most, uint64_t *value)
{
	uint64_t n = 0;
	if (!is_digit(*text))
		return false;
	for (; is_digit(*text); text++) {
		if (__builtin_mul_overflow(n, UINT64_C(10), &n) ||
		    __builtin_add_overflow(n, (uint64_t)(*text - '0'), &n))
			return false;
	}
	if (*text || n > most)
		return false;
	*value = n;
	return true;
}

bool parse_bool(const char *text, bool *value)
{
	static const char *const words[2][4] = {{"off", "false", "no", "0"}, {"on", "true", "yes", "1"}};
	for (int truth = 0; truth < 2; truth++) {
		for (int i = 0; i < 4; i++) {
			if (strcmp(text, words[truth][i]) == 0) {
				*value = truth;
				return true;
			}
		}
	}
	return false;
}

bool parse_is_address(const char *text)
{
	if (strncmp(text, "unix:", 5) == 0)
		return text[5] == '/';
	if (strncmp(text, "systemd:", 8) == 0)
		return !strchr(text + 8, ':');
	const char *colon = strrchr(text, ':');
	uint64_t port;
	if (!colon || !parse_uint(colon + 1, UINT16_MAX, &port))
		return false;
	/* An IPv6 address has colons of its own, and so stands in brackets. */
	return text[0] == '[' ? colon > text && colon[-1] == ']' : colon == strchr(text, ':');
}

/* ---- Prices ----------------------------------------------------------------------------------------- */

enum { PRICE_DIGITS = 8, PRICE_DECIMALS = 2 }; /* what numeric(10, 2) holds */

/* The digits of a number without its sign, point and zeros at either end, and where its point is among them. */
struct decimal {
	const char *digits, *end; /* between which there may be the point */
	int64_t count;            /* of the digits */
	int64_t point; /* how many of them stand before the point; beyond either end is thinkable */
};

static int64_t exponent_at(const char *text, const char *end)
{
	enum { FAR = 1 << 30 }; /* past any number of digits that a body can hold */
	int64_t exponent = 0;
	bool negative = text < end && *text == '-';
	if (text < end && (*text == '-' || *text == '+'))
		text++;
	for (; text < end; text++)
		exponent = exponent < FAR ? exponent * 10 + (*text - '0') : exponent;
	return negative ? -exponent : exponent;
}

static struct decimal decimal_of(const char *number, const char *end)
{
	const char *mantissa_end = number;
	while (mantissa_end < end && *mantissa_end != 'e' && *mantissa_end != 'E')
		mantissa_end++;
	int64_t exponent = mantissa_end < end ? exponent_at(mantissa_end + 1, end) : 0;
	const char *dot = memchr(number, '.', (size_t)(mantissa_end - number));
	int64_t point = (dot ? dot : mantissa_end) - number + exponent;
	for (; number < mantissa_end && (*number == '0' || *number == '.'); number++)
		point -= *number == '0';
	while (mantissa_end > number && (mantissa_end[-1] == '0' || mantissa_end[-1] == '.'))
		mantissa_end--;
	bool dot_inside = dot && dot >= number && dot < mantissa_end;
	return (struct decimal){number, mantissa_end, mantissa_end - number - dot_inside, point};
}

const char *parse_price(const char *number, size_t size, char price[PRICE_SIZE])
{
	bool negative = size && number[0] == '-';
	struct decimal d = decimal_of(number + negative, number + size);
	if (d.count == 0)
		d.point = 0;
	if (negative && d.count)
		return "must not be negative";
	if (d.count - d.point > PRICE_DECIMALS)
		return "must not have more than two decimals";
	if (d.point > PRICE_DIGITS)
		return "must be less than 100000000";
	uint64_t cents = 0;
	for (const char *at = d.digits; at < d.end; at++)
		cents = *at == '.' ? cents : cents * 10 + (uint64_t)(*at - '0');
	for (int64_t zeros = d.point + PRICE_DECIMALS - d.count; zeros > 0 && cents; zeros--)
		cents *= 10;
	snprintf(price, PRICE_SIZE, "%u.%02u", (unsigned)(cents / 100) % 100000000, (unsigned)(cents % 100));
	return NULL;
}
