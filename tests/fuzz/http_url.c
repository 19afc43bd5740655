/*
 * Percent-decoding and queries.
 *
 * The input is text of a target. What was decoded says the same when it is encoded anew and decoded again; and a
 * query's pairs are those that a second reading, by hand, finds.
 */
#include <errno.h>

#include "fuzz.h"
#include "http_priv.h"

/* Each byte as its escape. The caller frees it. */
static char *encode(const char *text)
{
	size_t size = strlen(text);
	char *encoded = malloc(3 * size + 1);
	HOLDS(encoded);
	for (size_t i = 0; i < size; i++)
		snprintf(encoded + 3 * i, 4, i % 2 ? "%%%02x" : "%%%02X", (unsigned char)text[i]);
	encoded[3 * size] = '\0';
	return encoded;
}

static bool is_escape(const char *text, const char *end)
{
	static const char digits[] = "0123456789abcdefABCDEF";
	return end - text >= 3 && strchr(digits, text[1]) && strchr(digits, text[2]) &&
	       (text[1] != '0' || text[2] != '0');
}

static bool is_decodable(const char *text, size_t size)
{
	for (const char *at = text; at < text + size; at++)
		if (*at == '%' && !is_escape(at, text + size))
			return false;
	return true;
}

static void check_decoding(arena *a, const char *text, size_t size, bool plus)
{
	errno = 0;
	const char *decoded = percent_decode(a, text, size, plus);
	HOLDS(is_decodable(text, size) == (decoded != NULL));
	HOLDS(decoded || errno == EINVAL);
	if (!decoded)
		return;
	HOLDS(strlen(decoded) <= size);
	char *encoded = encode(decoded);
	const char *again = percent_decode(a, encoded, strlen(encoded), plus);
	HOLDS(again && strcmp(again, decoded) == 0);
	free(encoded);
}

static void check_query(arena *a, char *text)
{
	http_pair *pairs = NULL;
	bool good = query_parse(a, text, &pairs);
	HOLDS(good == is_decodable(text, strlen(text)));
	if (!good)
		return;
	char *pair;
	while ((pair = strsep(&text, "&"))) {
		if (!*pair)
			continue;
		char *value = strchr(pair, '=');
		const char *name =
			percent_decode(a, pair, value ? (size_t)(value - pair) : strlen(pair), true);
		const char *decoded = value ? percent_decode(a, value + 1, strlen(value + 1), true) : "";
		HOLDS(pairs && strcmp(pairs->name, name) == 0 && strcmp(pairs->value, decoded) == 0);
		pairs = pairs->next;
	}
	HOLDS(!pairs);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	char memory[64]; /* small, so that it does not do */
	char *text = fuzz_string(data, size);
	arena a;
	arena_init(&a, memory, sizeof(memory));
	check_decoding(&a, text, strlen(text), false);
	check_decoding(&a, text, strlen(text), true);
	check_query(&a, text);
	arena_free(&a);
	free(text);
	return 0;
}
