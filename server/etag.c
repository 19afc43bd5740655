#include "etag.h"

#include <stdio.h>
#include <string.h>

void etag_write(char etag[ETAG_SIZE], const char *version, media as)
{
	snprintf(etag, ETAG_SIZE, "\"%.10s%s\"", version, as == MEDIA_CSV ? "-csv" : "");
}

/* The next tag of a list, between its quotes; NULL at the end, or where the list is broken. */
static const char *next_tag(const char **list, size_t *size, bool *weak)
{
	*list += strspn(*list, ", \t");
	*weak = strncmp(*list, "W/", 2) == 0;
	*list += *weak ? 2 : 0;
	if (**list != '"')
		return NULL;
	const char *tag = *list + 1;
	*size = strcspn(tag, "\"");
	if (tag[*size] != '"')
		return NULL;
	*list = tag + *size + 1;
	return tag;
}

bool etag_is_any(const char *field)
{
	field += strspn(field, " \t");
	return field[0] == '*' && field[1 + strspn(field + 1, " \t")] == '\0';
}

bool etag_is_among(const char *field, const char *etag)
{
	size_t size;
	bool weak;
	if (etag_is_any(field))
		return true;
	for (const char *tag; (tag = next_tag(&field, &size, &weak));) {
		if (size == strlen(etag) - 2 && memcmp(tag, etag + 1, size) == 0)
			return true;
	}
	return false;
}

void etag_versions(const char *field, bool strong, text *array)
{
	size_t size;
	bool weak;
	text_char(array, '{');
	for (const char *tag; (tag = next_tag(&field, &size, &weak));) {
		size_t digits = strspn(tag, "0123456789");
		bool ours =
			digits && digits <= 10 && (digits == size || strncmp(tag + digits, "-csv\"", 5) == 0);
		if ((weak && strong) || !ours)
			continue;
		if (array->size > 1)
			text_char(array, ',');
		text_append(array, tag, digits);
	}
	text_char(array, '}');
}
