#include "album.h"

#include <string.h>

#include "json.h"

enum { LONGEST = 255 }; /* characters of a title or an artist, as sql/schema.sql has it */

#define TOO_LONG "must not be longer than 255 characters"
#define BLANK    "must not be blank"

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

void album_write(text *t, const pg_rows *row)
{
	text_string(t, "{\"id\":");
	write_number(t, row, 0);
	text_string(t, ",\"title\":");
	write_string(t, row, 1);
	text_string(t, ",\"artist\":");
	write_string(t, row, 2);
	text_string(t, ",\"price\":");
	write_number(t, row, 3);
	text_char(t, '}');
}

/* ---- Reading ---------------------------------------------------------------------------------------- */

typedef struct faults {
	answer_fault *list;
	size_t count;
} faults;

static void add_fault(faults *f, const char *field, const char *fault)
{
	if (f->count < ALBUM_FAULTS)
		f->list[f->count++] = (answer_fault){field, fault};
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
		add_fault(f, field, value ? "must be a string" : "is missing");
	else if (string[strspn(string, " \t\n\v\f\r")] == '\0')
		add_fault(f, field, BLANK);
	else if (characters(string) > LONGEST)
		add_fault(f, field, TOO_LONG);
	return string;
}

static void read_price(album_input *album, const json_t *value, const char *number, size_t size, faults *f)
{
	if (!json_is_number(value)) {
		add_fault(f, "price", value ? "must be a number" : "is missing");
		return;
	}
	const char *fault = parse_price(number, size, album->price);
	if (fault)
		add_fault(f, "price", fault);
}

size_t album_read(album_input *album, json_t *json, const char *document, size_t size,
                  answer_fault list[ALBUM_FAULTS])
{
	faults f = {.list = list};
	*album = (album_input){.json = json_incref(json)};
	if (!json_is_object(json)) {
		add_fault(&f, "the body", "must be an object with title, artist and price");
		return f.count;
	}
	album->title = read_name("title", json_object_get(json, "title"), &f);
	album->artist = read_name("artist", json_object_get(json, "artist"), &f);
	const char *price = "";
	size_t index = 0, price_size = 0;
	const char *name;
	json_t *value;
	json_object_foreach(json, name, value)
	{
		if (strcmp(name, "price") == 0)
			price = json_member_text(document, size, index, &price_size);
		else if (strcmp(name, "title") != 0 && strcmp(name, "artist") != 0)
			add_fault(&f, name, "is not a field that can be set");
		index++;
	}
	read_price(album, json_object_get(json, "price"), price, price_size, &f);
	return f.count;
}

void album_free(album_input *album)
{
	json_decref(album->json);
	*album = (album_input){0};
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
