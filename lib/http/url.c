/*
 * Percent-encoding, and the values in a query.
 */
#include <errno.h>
#include <string.h>

#include "http_priv.h"

static int hex_digit(char c)
{
	if (c >= '0' && c <= '9')
		return c - '0';
	if (c >= 'a' && c <= 'f')
		return c - 'a' + 10;
	if (c >= 'A' && c <= 'F')
		return c - 'A' + 10;
	return -1;
}

/* The byte that %XX at text stands for; -1 for what is no escape, and for %00, which would cut a C string short. */
static int decode_escape(const char *text, size_t size)
{
	if (size < 3)
		return -1;
	int high = hex_digit(text[1]);
	int low = hex_digit(text[2]);
	if (high < 0 || low < 0)
		return -1;
	return high * 16 + low > 0 ? high * 16 + low : -1;
}

char *percent_decode(arena *a, const char *text, size_t size, bool plus)
{
	char *decoded = arena_copy(a, text, size);
	if (!decoded)
		return NULL;
	char *end = decoded;
	for (size_t i = 0; i < size; i++) {
		if (text[i] == '+' && plus) {
			*end++ = ' ';
		} else if (text[i] != '%') {
			*end++ = text[i];
		} else {
			int byte = decode_escape(text + i, size - i);
			if (byte < 0) {
				errno = EINVAL;
				return NULL;
			}
			*end++ = (char)byte;
			i += 2;
		}
	}
	*end = '\0';
	return decoded;
}

static http_pair *query_pair(arena *a, const char *text, size_t size)
{
	const char *equals = memchr(text, '=', size);
	size_t name_size = equals ? (size_t)(equals - text) : size;
	http_pair *pair = arena_alloc(a, sizeof(*pair));
	if (!pair)
		return NULL;
	pair->next = NULL;
	pair->name = percent_decode(a, text, name_size, true);
	if (!pair->name)
		return NULL;
	pair->value = equals ? percent_decode(a, equals + 1, size - name_size - 1, true) : "";
	return pair->value ? pair : NULL;
}

bool query_parse(arena *a, const char *query, http_pair **pairs)
{
	http_pair **end = pairs;
	for (;;) {
		size_t size = strcspn(query, "&");
		if (size > 0) {
			*end = query_pair(a, query, size);
			if (!*end)
				return false;
			end = &(*end)->next;
		}
		if (query[size] == '\0')
			return true;
		query += size + 1;
	}
}

const char *pair_value(const http_pair *pairs, const char *name)
{
	for (; pairs; pairs = pairs->next)
		if (strcmp(pairs->name, name) == 0)
			return pairs->value;
	return NULL;
}
