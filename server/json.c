#include "json.h"

#include <stdio.h>
#include <string.h>

/* ---- Writing ---------------------------------------------------------------------------------------- */

/* The length of the UTF-8 sequence at `at`; 0 if it is none (overlong, a surrogate, out of range, cut). */
static size_t utf8_length(const unsigned char *at, size_t left)
{
	size_t length = at[0] < 0x80   ? 1
	                : at[0] < 0xC2 ? 0
	                : at[0] < 0xE0 ? 2
	                : at[0] < 0xF0 ? 3
	                : at[0] < 0xF5 ? 4
	                               : 0;
	if (length > left)
		return 0;
	for (size_t i = 1; i < length; i++) {
		if ((at[i] & 0xC0) != 0x80)
			return 0;
	}
	if ((at[0] == 0xE0 && at[1] < 0xA0) || (at[0] == 0xED && at[1] >= 0xA0) ||
	    (at[0] == 0xF0 && at[1] < 0x90) || (at[0] == 0xF4 && at[1] >= 0x90))
		return 0;
	return length;
}

bool json_is_utf8(const char *string)
{
	const unsigned char *at = (const unsigned char *)string, *end = at + strlen(string);
	while (at < end) {
		size_t length = utf8_length(at, (size_t)(end - at));
		if (!length)
			return false;
		at += length;
	}
	return true;
}

static void write_escape(text *t, unsigned char c)
{
	static const char letters[] = {['\b'] = 'b', ['\t'] = 't', ['\n'] = 'n', ['\f'] = 'f',
	                               ['\r'] = 'r', ['"'] = '"',  ['\\'] = '\\'};
	if (c < sizeof(letters) && letters[c])
		text_append(t, (char[]){'\\', letters[c]}, 2);
	else
		text_format(t, "\\u%04x", c);
}

void json_write_string(text *t, const char *bytes, size_t size)
{
	const unsigned char *at = (const unsigned char *)bytes, *end = at + size, *plain = at;
	text_char(t, '"');
	while (at < end) {
		size_t length = *at < 0x80 ? 1 : utf8_length(at, (size_t)(end - at));
		/* DEL and the C1 controls are legal in JSON, but not for the terminal of who reads a log. */
		bool c1 = length == 2 && at[0] == 0xC2 && at[1] < 0xA0;
		bool escape = *at < 0x20 || *at == '"' || *at == '\\' || *at == 0x7F || c1;
		if (length && !escape) {
			at += length;
			continue;
		}
		text_append(t, plain, (size_t)(at - plain));
		if (escape)
			write_escape(t, c1 ? at[1] : at[0]);
		else
			text_string(t, "\uFFFD");
		at += c1 ? 2 : 1;
		plain = at;
	}
	text_append(t, plain, (size_t)(at - plain));
	text_char(t, '"');
}

/* ---- Reading ---------------------------------------------------------------------------------------- */

/* Past the string that begins at `at`; end if it has no end. */
static const char *skip_string(const char *at, const char *end)
{
	for (at++; at < end && *at != '"'; at++) {
		if (*at == '\\' && at + 1 < end)
			at++;
	}
	return at < end ? at + 1 : end;
}

static bool nests_deeper(const char *at, const char *end, int most)
{
	int depth = 0;
	while (at < end) {
		if (*at == '"') {
			at = skip_string(at, end);
			continue;
		}
		if (*at == '{' || *at == '[')
			depth++;
		else if (*at == '}' || *at == ']')
			depth--;
		if (depth > most)
			return true;
		at++;
	}
	return false;
}

json_t *json_parse(const char *document, size_t size, char *problem, size_t problem_size)
{
	enum { DEEPEST = 16 };
	if (nests_deeper(document, document + size, DEEPEST)) {
		snprintf(problem, problem_size, "the JSON nests deeper than %d levels", DEEPEST);
		return NULL;
	}
	json_error_t error;
	/* An integer too long for jansson's is still a number; its text is what counts (json_member_text). */
	const size_t flags = JSON_DECODE_ANY | JSON_REJECT_DUPLICATES | JSON_DECODE_INT_AS_REAL;
	json_t *json = json_loadb(document, size, flags, &error);
	if (!json)
		snprintf(problem, problem_size, "the body is not JSON: line %d, column %d: %s", error.line,
		         error.column, error.text);
	return json;
}

static const char *skip_space(const char *at, const char *end)
{
	while (at < end && (*at == ' ' || *at == '\t' || *at == '\n' || *at == '\r'))
		at++;
	return at;
}

/* Past the value at `at`: to the comma, bracket or end that follows on its own level. */
static const char *skip_value(const char *at, const char *end)
{
	int depth = 0;
	while (at < end) {
		if (*at == '"') {
			at = skip_string(at, end);
			continue;
		}
		if (depth == 0 && (*at == ',' || *at == '}' || *at == ']'))
			break;
		depth += *at == '{' || *at == '[';
		depth -= *at == '}' || *at == ']';
		at++;
	}
	return at;
}

/* The value at `at`, without the blanks around it; *after is where it is followed by the next, or the end. */
static const char *value_at(const char *at, const char *end, size_t *size, const char **after)
{
	const char *value = skip_space(at, end);
	const char *value_end = *after = skip_value(value, end);
	while (value_end > value && strchr(" \t\n\r", value_end[-1]))
		value_end--;
	*size = (size_t)(value_end - value);
	return value;
}

const char *json_element_text(const char **document, size_t *size, size_t *element_size)
{
	const char *end = *document + *size;
	const char *at = skip_space(*document, end);
	const char *element = value_at(at + 1, end, element_size, &at); /* past [ or , */
	*document = at;
	*size = (size_t)(end - at);
	return element;
}

const char *json_member_text(const char **document, size_t *size, size_t *value_size)
{
	const char *end = *document + *size;
	const char *name = skip_space(skip_space(*document, end) + 1, end); /* past { or , */
	const char *colon = skip_space(skip_string(name, end), end);
	const char *at, *value = value_at(colon + 1, end, value_size, &at);
	*document = at;
	*size = (size_t)(end - at);
	return value;
}
