/*
 * Values of the current row, as C types. What does not fit wholly is refused.
 */
#include <errno.h>
#include <inttypes.h>
#include <locale.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "pg_priv.h"

static bool is_there(const pg_rows *rows, int column)
{
	return rows->row >= 0 && column >= 0 && column < PQnfields(rows->result);
}

bool pg_rows_is_null(const pg_rows *rows, int column)
{
	return !is_there(rows, column) || PQgetisnull(rows->result, rows->row, column);
}

const char *pg_rows_text(const pg_rows *rows, int column)
{
	return pg_rows_is_null(rows, column) ? NULL : PQgetvalue(rows->result, rows->row, column);
}

size_t pg_rows_length(const pg_rows *rows, int column)
{
	return pg_rows_is_null(rows, column) ? 0 : (size_t)PQgetlength(rows->result, rows->row, column);
}

static void refuse(pg_rows *rows, const char *why)
{
	if (rows_are_real(rows) && !rows->error.kind)
		error_set(&rows->error, PG_ERROR_VALUE, why);
}

/* The text of a value that is to be converted; NULL, with the error told, if there is none. */
static const char *text_to_convert(pg_rows *rows, int column)
{
	if (!is_there(rows, column)) {
		refuse(rows, "there is no such column, or no current row");
		return NULL;
	}
	return pg_rows_text(rows, column);
}

bool pg_rows_int64(pg_rows *rows, int column, int64_t *value)
{
	const char *text = text_to_convert(rows, column);
	if (!text)
		return false;
	char *end;
	errno = 0;
	intmax_t number = strtoimax(text, &end, 10);
	bool begins_well = text[0] == '-' || (text[0] >= '0' && text[0] <= '9');
	if (!begins_well || *end || errno || number < INT64_MIN || number > INT64_MAX) {
		refuse(rows, "not an integer of 64 bits");
		return false;
	}
	*value = (int64_t)number;
	return true;
}

/* PostgreSQL writes a point whatever the program's locale says. */
static locale_t c_locale;
static pthread_once_t c_locale_once = PTHREAD_ONCE_INIT;

static void make_c_locale(void)
{
	c_locale = newlocale(LC_NUMERIC_MASK, "C", (locale_t)0);
}

bool pg_rows_double(pg_rows *rows, int column, double *value)
{
	const char *text = text_to_convert(rows, column);
	if (!text)
		return false;
	pthread_once(&c_locale_once, make_c_locale);
	locale_t before = c_locale ? uselocale(c_locale) : (locale_t)0;
	char *end;
	errno = 0;
	double number = strtod(text, &end);
	bool overflow = errno == ERANGE && (number > 1 || number < -1);
	if (before)
		uselocale(before);
	bool begins_well = text[0] && strchr("-0123456789.NI", text[0]);
	if (!begins_well || *end || overflow || strpbrk(text, "xX")) {
		refuse(rows, "not a number, or beyond what a double holds");
		return false;
	}
	*value = number;
	return true;
}

bool pg_rows_bool(pg_rows *rows, int column, bool *value)
{
	const char *text = text_to_convert(rows, column);
	if (!text)
		return false;
	if ((text[0] != 't' && text[0] != 'f') || text[1]) {
		refuse(rows, "not a boolean");
		return false;
	}
	*value = text[0] == 't';
	return true;
}
