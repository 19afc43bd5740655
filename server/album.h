/*
 * album.h — an album: as JSON, {"id":1,"title":"Blue Train","artist":"John Coltrane","price":56.99}; as a line of
 * CSV, 1,Blue Train,John Coltrane,56.99; and what a client may send as one.
 */
#ifndef ALBUMD_ALBUM_H
#define ALBUMD_ALBUM_H

#include <jansson.h>
#include <stddef.h>
#include <tether/pg.h>

#include "answer.h"
#include "handler.h"
#include "parse.h"
#include "text.h"

/* The columns that album_write expects, in its order, and one more where the version is of interest. */
#define ALBUM_COLUMNS "id, title, artist, price"
#define ALBUM_VERSION "xmin"
enum { ALBUM_ID, ALBUM_TITLE, ALBUM_ARTIST, ALBUM_PRICE, ALBUM_XMIN };

/* Appends the current row. The price is the digits that PostgreSQL gave. A line of CSV ends with CRLF. */
void album_write(text *t, const pg_rows *row, media as);

#define ALBUM_CSV_HEAD "id,title,artist,price\r\n"

/* An album that a client sent. The strings belong to the JSON it was read from. */
typedef struct album_input {
	const char *title, *artist; /* NULL: not sent */
	char price[PRICE_SIZE];     /* "": not sent */
} album_input;

/* The field that is at fault where it is the album as a whole. */
#define ALBUM_ITSELF "the body"

/* How an album may be sent: whole, or only what shall change (a JSON merge patch, RFC 7396). */
typedef enum album_form { ALBUM_WHOLE, ALBUM_CHANGES } album_form;

/* The faults found so far, of which only so many are told. */
enum { FAULTS_TOLD = 8 };
typedef struct faults {
	answer_fault list[FAULTS_TOLD];
	size_t count;
} faults;

/*
 * Reads an album. `document` is the text from which json_parse made `json`, which album borrows. id, if not NULL, is
 * what an id among the fields must be, and else there must be none.
 */
void album_read(album_input *album, const json_t *json, const char *document, size_t size, album_form form,
                const char *id, faults *f);

/* The fault that a violated constraint of the table stands for; a NULL field if it is none of the table's. */
answer_fault album_constraint_fault(const char *constraint);

#endif
