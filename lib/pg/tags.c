/*
 * Tags: what the program has to say of a statement, as a comment behind its text, in the form of sqlcommenter
 * (google.github.io/sqlcommenter/spec): key='value',key='value', in order.
 *
 * Behind, not before: the places that PostgreSQL's errors name stay true, and COPY is still what it begins with. All but
 * a few harmless characters are escaped, quotes among them, so that the comment ends where we end it, and not even a text
 * that is broken off in the midst of a string could make more of it than the syntax error that it is.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "pg_priv.h"

enum { TAGS_SIZE = 1000 }; /* of all tags, as they are written */

struct pg_tags {
	size_t size;
	char text[TAGS_SIZE + 1]; /* each tag with a "," after it, NUL-terminated */
};

/* As a URL would have it (RFC 3986). Returns where it ended; NULL: no room, or there was none before. */
static char *write_escaped(char *to, const char *end, const char *from)
{
	static const char unreserved[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~";
	static const char digits[] = "0123456789ABCDEF";
	for (; to && *from; from++) {
		unsigned char byte = (unsigned char)*from;
		bool plain = strchr(unreserved, byte);
		if (end - to < (plain ? 1 : 3))
			return NULL;
		if (plain) {
			*to++ = *from;
		} else {
			*to++ = '%';
			*to++ = digits[byte >> 4];
			*to++ = digits[byte & 15];
		}
	}
	return to;
}

static char *write_plain(char *to, const char *end, const char *from)
{
	for (; to && *from; from++) {
		if (to == end)
			return NULL;
		*to++ = *from;
	}
	return to;
}

void pg_tag(pg_tags *tags, const char *key, const char *value)
{
	char tag[TAGS_SIZE + 1];
	const char *end = tag + TAGS_SIZE - tags->size;
	if (!key[0] || !value)
		return;
	char *equals = write_escaped(tag, end, key);
	char *past = write_plain(equals, end, "='");
	past = write_plain(write_escaped(past, end, value), end, "',");
	if (!past)
		return;
	*past = '\0';
	char *place = tags->text;
	for (; *place; place = strchr(place, ',') + 1) {
		if (strncmp(place, tag, (size_t)(equals + 1 - tag)) == 0)
			return; /* the key has a value already */
		if (strcmp(place, tag) > 0)
			break;
	}
	size_t size = (size_t)(past - tag);
	memmove(place + size, place, tags->size + 1 - (size_t)(place - tags->text));
	memcpy(place, tag, size);
	tags->size += size;
}

bool tags_append(ctx *c, const conn *cn, const char *sql, char **tagged, pg_error *error)
{
	const pg_pool_options *options = &cn->pool->options;
	pg_tags tags;
	*tagged = NULL;
	if (!options->tag)
		return true;
	tags.size = 0;
	tags.text[0] = '\0';
	options->tag(c, &tags, options->data);
	if (!tags.size)
		return true;
	size_t size = strlen(sql) + tags.size + sizeof(" /**/");
	*tagged = malloc(size);
	if (!*tagged) {
		error_set(error, PG_ERROR_MEMORY, "out of memory");
		return false;
	}
	snprintf(*tagged, size, "%s /*%.*s*/", sql, (int)tags.size - 1, tags.text); /* less the last comma */
	return true;
}
