/*
 * album.h — an album as JSON: {"id":1,"title":"Blue Train","artist":"John Coltrane","price":56.99}.
 */
#ifndef ALBUMD_ALBUM_H
#define ALBUMD_ALBUM_H

#include <jansson.h>
#include <stddef.h>
#include <tether/pg.h>

#include "answer.h"
#include "parse.h"
#include "text.h"

/* The columns that album_write expects, in its order. */
#define ALBUM_COLUMNS "id, title, artist, price"

/* Appends the current row. The price is the digits that PostgreSQL gave. */
void album_write(text *t, const pg_rows *row);

/* An album that a client sent. The strings belong to json. */
typedef struct album_input {
	const char *title, *artist;
	char price[PRICE_SIZE];
	json_t *json;
} album_input;

enum { ALBUM_FAULTS = 8 };

/*
 * Reads an album, all three fields of it. json is what json_parse made of document; a reference is kept in
 * album until album_free. Returns the number of faults found, at most ALBUM_FAULTS, and lists them.
 */
size_t album_read(album_input *album, json_t *json, const char *document, size_t size,
                  answer_fault list[ALBUM_FAULTS]);
void album_free(album_input *album);
#define album_auto __attribute__((cleanup(album_free))) album_input

/* The fault that a violated constraint of the table stands for; a NULL field if it is none of the table's. */
answer_fault album_constraint_fault(const char *constraint);

#endif
