/*
 * Values of the current row, as C types. What does not fit wholly is refused.
 */
#include <errno.h>
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

/* By hand, for it is what a streamed row costs most here: strtoll looks at the locale first. */
static bool read_integer(const char *text, int64_t *value)
{
	bool negative = *text == '-';
	int64_t number = 0; /* kept negative, where there is one more of them */
	text += negative;
	bool sound = *text;
	for (; sound && *text; text++)
		sound = *text >= '0' && *text <= '9' && !__builtin_mul_overflow(number, 10, &number) &&
		        !__builtin_sub_overflow(number, *text - '0', &number);
	if (!sound || (!negative && __builtin_mul_overflow(number, -1, &number)))
		return false;
	*value = number;
	return true;
}

bool pg_rows_int64(pg_rows *rows, int column, int64_t *value)
{
	const char *text = text_to_convert(rows, column);
	if (!text)
		return false;
	if (!read_integer(text, value)) {
		refuse(rows, "not an integer of 64 bits");
		return false;
	}
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

/* ---- bytea -------------------------------------------------------------------------------------------- */

static int hex_digit(char c)
{
	if (c >= '0' && c <= '9')
		return c - '0';
	return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

bool pg_rows_bytes(pg_rows *rows, int column, void *buffer, size_t size, size_t *length)
{
	const char *text = text_to_convert(rows, column);
	if (!text)
		return false;
	size_t n = pg_rows_length(rows, column);
	bool sound = n >= 2 && n % 2 == 0 && text[0] == '\\' && text[1] == 'x';
	for (size_t i = 2; i < n && sound; i++)
		sound = hex_digit(text[i]) >= 0;
	n = n / 2 - 1;
	if (!sound || n > size) {
		refuse(rows, sound ? "more bytes than there is room for" : "not a bytea in hexadecimal");
		return false;
	}
	for (size_t i = 0; i < n; i++)
		((unsigned char *)buffer)[i] =
			(unsigned char)(hex_digit(text[2 + 2 * i]) * 16 + hex_digit(text[3 + 2 * i]));
	*length = n;
	return true;
}

/* ---- timestamptz -------------------------------------------------------------------------------------- */

/* Reads `least` to `most` digits at *p, and what must follow them. */
static bool read_digits(const char **p, int least, int most, char follows, int64_t *value)
{
	int n = 0;
	for (*value = 0; n < most && **p >= '0' && **p <= '9'; n++)
		*value = *value * 10 + (*(*p)++ - '0');
	if (n < least || (follows && **p != follows))
		return false;
	*p += follows != 0;
	return true;
}

/* From 1970-01-01, in the Gregorian calendar extended to all times. The year 0 is 1 BC. */
static int64_t days_since_1970(int64_t year, int64_t month, int64_t day)
{
	/* Years begin in March here, so that the leap day is their last. */
	year -= month <= 2;
	int64_t era = (year >= 0 ? year : year - 399) / 400;
	int64_t year_of_era = year - era * 400;
	int64_t day_of_year = (153 * (month + (month > 2 ? -3 : 9)) + 2) / 5 + day - 1;
	int64_t day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
	return era * 146097 + day_of_era - 719468;
}

/* ".123" as microseconds. */
static bool read_fraction(const char **p, int64_t *microseconds)
{
	*microseconds = 0;
	if (**p != '.')
		return true;
	const char *begin = ++*p;
	if (!read_digits(p, 1, 6, 0, microseconds))
		return false;
	for (long n = *p - begin; n < 6; n++)
		*microseconds *= 10;
	return true;
}

/* "+02", "-03:30", "+00:53:28": seconds east of Greenwich. */
static bool read_zone(const char **p, int64_t *seconds)
{
	int64_t hours, part = 0;
	char sign = **p;
	if (sign != '+' && sign != '-')
		return false;
	++*p;
	if (!read_digits(p, 2, 2, 0, &hours))
		return false;
	*seconds = hours * 3600;
	for (int unit = 60; **p == ':' && unit; unit /= 60) {
		++*p;
		if (!read_digits(p, 2, 2, 0, &part))
			return false;
		*seconds += part * unit;
	}
	*seconds = sign == '-' ? -*seconds : *seconds;
	return true;
}

/* "2024-06-07 08:09:10.123456+02", as the DateStyle ISO has it. */
static bool read_time(const char *p, int64_t *unix_microseconds)
{
	int64_t year, month, day, hour, minute, second, fraction, zone;
	if (!read_digits(&p, 4, 6, '-', &year) || !read_digits(&p, 2, 2, '-', &month) ||
	    !read_digits(&p, 2, 2, ' ', &day) || !read_digits(&p, 2, 2, ':', &hour) ||
	    !read_digits(&p, 2, 2, ':', &minute) || !read_digits(&p, 2, 2, 0, &second) ||
	    !read_fraction(&p, &fraction) || !read_zone(&p, &zone))
		return false;
	if (strcmp(p, " BC") == 0)
		year = 1 - year;
	else if (*p)
		return false;
	int64_t seconds =
		days_since_1970(year, month, day) * 86400 + hour * 3600 + minute * 60 + second - zone;
	int64_t whole;
	return !__builtin_mul_overflow(seconds, INT64_C(1000000), &whole) &&
	       !__builtin_add_overflow(whole, fraction, unix_microseconds);
}

bool pg_rows_time(pg_rows *rows, int column, int64_t *unix_microseconds)
{
	const char *text = text_to_convert(rows, column);
	int64_t moment;
	if (!text)
		return false;
	if (!read_time(text, &moment)) {
		refuse(rows, "not a moment: a timestamp with time zone, in the DateStyle ISO");
		return false;
	}
	*unix_microseconds = moment;
	return true;
}
