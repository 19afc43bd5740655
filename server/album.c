#include "album.h"

#include <string.h>

#include "json.h"

enum { LONGEST = 255 }; /* characters of a title or an artist, as sql/schema.sql has it */

#define TOO_LONG "must not be longer than 255 characters"
#define BLANK    "must not be blank"

/* ---- Writing ------------------------------------------------------------------------------------------- */

static void write_string(text *t, const pg_rows *row, int column)
{
	const char *string = pg_rows_text(row, column);
	if (string)
		json_write_string(t, string, pg_rows_length(row, column));
	else
		text_string(t, "null");
}

/* A number as PostgreSQL spells it; NULL and numeric's NaN are none that JSON has. */
static void write_number(text *t, const pg_rows *row, int column)
{
	const char *number = pg_rows_text(row, column);
	text_string(t, number && number[0] != 'N' ? number : "null");
}

static void write_json(text *t, const pg_rows *row)
{
	text_string(t, "{\"id\":");
	write_number(t, row, ALBUM_ID);
	text_string(t, ",\"title\":");
	write_string(t, row, ALBUM_TITLE);
	text_string(t, ",\"artist\":");
	write_string(t, row, ALBUM_ARTIST);
	text_string(t, ",\"price\":");
	write_number(t, row, ALBUM_PRICE);
	text_char(t, '}');
}

/* RFC 4180: in quotes where it must be, quotes doubled. */
static void write_csv_string(text *t, const char *string)
{
	if (!string[strcspn(string, "\",\r\n")]) {
		text_string(t, string);
		return;
	}
	text_char(t, '"');
	for (const char *quote; (quote = strchr(string, '"')); string = quote + 1) {
		text_append(t, string, (size_t)(quote + 1 - string));
		text_char(t, '"');
	}
	text_string(t, string);
	text_char(t, '"');
}

static void write_csv(text *t, const pg_rows *row)
{
	for (int column = ALBUM_ID; column <= ALBUM_PRICE; column++) {
		const char *value = pg_rows_text(row, column);
		write_csv_string(t, value ? value : "");
		text_string(t, column < ALBUM_PRICE ? "," : "\r\n");
	}
}

void album_write(text *t, const pg_rows *row, media as)
{
	if (as == MEDIA_CSV)
		write_csv(t, row);
	else
		write_json(t, row);
}

/* ---- Reading ---------------------------------------------------------------------------------------- */

static void add_fault(faults *f, const char *field, const char *fault)
{
	if (f->count < FAULTS_TOLD)
		f->list[f->count++] = (answer_fault){field, fault};
}

/* Why a field that has to be there is not a string, or a number. */
static const char *absence(const json_t *value, const char *wrong)
{
	return !value ? "is missing" : json_is_null(value) ? "cannot be null" : wrong;
}

/* jansson's strings are UTF-8: what does not continue a character begins one. */
static size_t characters(const char *string)
{
	size_t count = 0;
	for (; *string; string++)
		count += ((unsigned char)*string & 0xC0) != 0x80;
	return count;
}

static const char *read_name(const char *field, const json_t *value, faults *f)
{
	const char *string = json_string_value(value);
	if (!string)
		add_fault(f, field, absence(value, "must be a string"));
	else if (string[strspn(string, " \t\n\v\f\r")] == '\0')
		add_fault(f, field, BLANK);
	else if (characters(string) > LONGEST)
		add_fault(f, field, TOO_LONG);
	return string;
}

static void read_price(album_input *album, const json_t *value, const char *number, size_t size, faults *f)
{
	const char *fault = json_is_number(value) ? parse_price(number, size, album->price)
	                                          : absence(value, "must be a number");
	if (fault)
		add_fault(f, "price", fault);
}

/* jansson's number may be rounded, its text is not; ids are short, and compared as text. */
static bool is_same_id(const char *number, size_t size, const char *id)
{
	return id && size == strlen(id) && memcmp(number, id, size) == 0;
}

void album_read(album_input *album, const json_t *json, const char *document, size_t size, album_form form,
                const char *id, faults *f)
{
	*album = (album_input){0};
	if (!json_is_object(json)) {
		add_fault(f, ALBUM_ITSELF, "must be an object with title, artist and price");
		return;
	}
	const char *price = "", *name;
	size_t price_size = 0;
	json_t *value;
	/* Only read; jansson's loop wants it without const. */
	json_object_foreach((json_t *)json, name, value)
	{
		size_t literal_size;
		const char *literal = json_member_text(&document, &size, &literal_size);
		if (strcmp(name, "price") == 0) {
			price = literal;
			price_size = literal_size;
		} else if (strcmp(name, "id") == 0 && id) {
			if (!is_same_id(literal, literal_size, id))
				add_fault(f, "id", "must be the one in the path");
		} else if (strcmp(name, "title") != 0 && strcmp(name, "artist") != 0) {
			add_fault(f, name, "is not a field that can be set");
		}
	}
	const json_t *title = json_object_get(json, "title"), *artist = json_object_get(json, "artist");
	const json_t *amount = json_object_get(json, "price");
	if (title || form == ALBUM_WHOLE)
		album->title = read_name("title", title, f);
	if (artist || form == ALBUM_WHOLE)
		album->artist = read_name("artist", artist, f);
	if (amount || form == ALBUM_WHOLE)
		read_price(album, amount, price, price_size, f);
}

answer_fault album_constraint_fault(const char *constraint)
{
	static const struct {
		const char *constraint;
		answer_fault fault;
	} known[] = {
		{"album_title_not_blank", {"title", BLANK}},
		{"album_title_length", {"title", TOO_LONG}},
		{"album_artist_not_blank", {"artist", BLANK}},
		{"album_artist_length", {"artist", TOO_LONG}},
		{"album_price_not_negative", {"price", "must not be negative"}},
	};
	for (size_t i = 0; i < sizeof(known) / sizeof(*known); i++) {
		if (strcmp(constraint, known[i].constraint) == 0)
			return known[i].fault;
	}
	return (answer_fault){NULL, NULL};
}
