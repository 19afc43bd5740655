/*
 * json.h — writing JSON, and reading it where jansson's number is not exact enough.
 */
#ifndef ALBUMD_JSON_H
#define ALBUMD_JSON_H

#include <jansson.h>
#include <stddef.h>

#include "text.h"

/* Appends bytes as a JSON string, quotes included. What is not UTF-8 becomes U+FFFD. */
void json_write_string(text *t, const char *bytes, size_t size);

/* Whether a C string is UTF-8, which is all that PostgreSQL takes as text. */
bool json_is_utf8(const char *string);

/*
 * Parses a document that a client sent. NULL, with what is wrong in `problem`, if it is not JSON, nests
 * deeper than any request does (jansson recurses, on the small stack of a fiber), or gives a name twice.
 */
json_t *json_parse(const char *document, size_t size, char *problem, size_t problem_size);

/*
 * The text of the next element of the array, or of the value of the object's next member, that *document, which json_parse
 * has accepted, begins with, or is in the midst of; moves both beyond it. As often as jansson counts them, and in the order
 * in which it iterates them: that of the text.
 */
const char *json_element_text(const char **document, size_t *size, size_t *element_size);
const char *json_member_text(const char **document, size_t *size, size_t *value_size);

#endif
