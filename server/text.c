#include "text.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

char *text_room(text *t, size_t size)
{
	if (t->data && size <= t->capacity - t->size)
		return t->data + t->size;
	size_t capacity = t->capacity < 64 ? 64 : t->capacity;
	while (capacity - t->size < size && capacity <= SIZE_MAX / 2)
		capacity *= 2;
	char *data = capacity - t->size < size ? NULL : realloc(t->owned ? t->data : NULL, capacity);
	if (!data) {
		t->failed = true;
		return NULL;
	}
	if (!t->owned && t->data)
		memcpy(data, t->data, t->size);
	t->data = data;
	t->capacity = capacity;
	t->owned = true;
	return data + t->size;
}

void text_append(text *t, const void *data, size_t size)
{
	char *room = text_room(t, size);
	if (!room || !size)
		return;
	memcpy(room, data, size);
	t->size += size;
}

void text_string(text *t, const char *string)
{
	text_append(t, string, strlen(string));
}

void text_char(text *t, char c)
{
	text_append(t, &c, 1);
}

void text_int(text *t, int64_t n)
{
	char digits[20];
	size_t at = sizeof(digits);
	uint64_t rest = n < 0 ? 0 - (uint64_t)n : (uint64_t)n;
	do
		digits[--at] = (char)('0' + rest % 10);
	while (rest /= 10);
	if (n < 0)
		digits[--at] = '-';
	text_append(t, digits + at, sizeof(digits) - at);
}

void text_fixed3(text *t, int64_t ns, int64_t unit)
{
	int64_t thousandths = (ns + unit / 2000) / (unit / 1000);
	text_int(t, thousandths / 1000);
	int rest = (int)(thousandths % 1000);
	char decimals[4] = {'.', (char)('0' + rest / 100), (char)('0' + rest / 10 % 10),
	                    (char)('0' + rest % 10)};
	text_append(t, decimals, sizeof(decimals));
}

void text_format(text *t, const char *format, ...)
{
	va_list arguments;
	va_start(arguments, format);
	int size = vsnprintf(NULL, 0, format, arguments);
	va_end(arguments);
	char *room = size < 0 ? NULL : text_room(t, (size_t)size + 1);
	if (!room)
		return;
	va_start(arguments, format);
	vsnprintf(room, (size_t)size + 1, format, arguments);
	va_end(arguments);
	t->size += (size_t)size;
}

void text_clear(text *t)
{
	t->size = 0;
	t->failed = false;
}

void text_free(text *t)
{
	if (t->owned)
		free(t->data);
	*t = (text){0};
}

void text_copy(char *to, size_t size, const char *from)
{
	size_t length = strnlen(from, size - 1);
	memcpy(to, from, length);
	to[length] = '\0';
}
