/*
 * text.h — text that grows as it is written.
 *
 * Running out of memory is remembered instead of reported by each call: what was written so far stays, the
 * rest is dropped, and `failed` says so once, at the end.
 */
#ifndef ALBUMD_TEXT_H
#define ALBUMD_TEXT_H

#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef struct text {
	char *data; /* not NUL-terminated */
	size_t size, capacity;
	bool failed;
	bool owned; /* data came from malloc */
} text;

/* An empty text that begins in `buffer`, an array, and moves to the heap only when that is full. */
#define TEXT_IN(buffer) ((text){.data = (buffer), .capacity = sizeof(buffer)})

void text_append(text *t, const void *data, size_t size);
void text_string(text *t, const char *string);
void text_char(text *t, char c);
void text_int(text *t, int64_t n);
void text_format(text *t, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* Nanoseconds in another unit, with three decimals: text_fixed3(t, 1234567, 1000000) writes 1.235. */
void text_fixed3(text *t, int64_t ns, int64_t unit);

/* Room for `size` bytes more at the end, to be counted into `size` by whoever fills it; NULL: out of memory. */
char *text_room(text *t, size_t size);

/* Forgets what was written, keeps the memory. */
void text_clear(text *t);

void text_free(text *t);
#define text_auto __attribute__((cleanup(text_free))) text

/* As much of a string as an array of `size` bytes holds, and its NUL. */
void text_copy(char *to, size_t size, const char *from);

#endif
