/*
 * Values: parameters as they are sent, getters that take what fits and refuse the rest.
 */
#include <arpa/inet.h>
#include <criterion/criterion.h>
#include <criterion/new/assert.h>
#include <locale.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "querying.h"
#include "support.h"

TestSuite(pg_value, .init = open_pool, .fini = close_pool, .timeout = 60);

/* ---- Values ------------------------------------------------------------------------------------------- */

TEST_BOTH_WAYS(pg_value, reads_values_as_text_and_as_types)
{
	pg_rows *r = row("SELECT 'Blue Train', 9223372036854775807, -2.5::float8, true, NULL", PG_NO_PARAMS);
	int64_t integer = 0;
	double number = 0;
	bool truth = false;
	cr_assert_null(pg_rows_error(r));
	cr_expect(eq(int, pg_rows_columns(r), 5));
	cr_expect(eq(str, (char *)pg_rows_text(r, 0), "Blue Train"));
	cr_expect(eq(sz, pg_rows_length(r, 0), 10));
	cr_expect(pg_rows_int64(r, 1, &integer));
	cr_expect(eq(i64, integer, INT64_MAX));
	cr_expect(pg_rows_double(r, 2, &number));
	cr_expect(ieee_ulp_eq(dbl, number, -2.5, 1));
	cr_expect(pg_rows_bool(r, 3, &truth));
	cr_expect(truth);
	cr_expect(pg_rows_is_null(r, 4));
	cr_expect_null(pg_rows_text(r, 4));
	cr_expect_not(pg_rows_int64(r, 4, &integer));
	cr_expect(eq(i64, integer, INT64_MAX), "a NULL leaves the value alone");
	cr_expect_null(pg_rows_error(r), "and is no error");
	pg_rows_close(r);
}

static void expect_refused(const char *sql, int column)
{
	for (int type = 0; type < 3; type++) {
		pg_rows *r = row(sql, PG_NO_PARAMS);
		int64_t integer = 7;
		double number = 7;
		bool truth = true;
		bool taken = type == 0   ? pg_rows_int64(r, column, &integer)
		             : type == 1 ? pg_rows_double(r, column, &number)
		                         : pg_rows_bool(r, column, &truth);
		cr_expect_not(taken, "%s as type %d", sql, type);
		cr_expect(integer == 7 && number == 7 && truth, "%s as type %d", sql, type);
		expect_error(r, PG_ERROR_VALUE, "");
	}
}

Test(pg_value, refuses_values_that_do_not_fit_the_type)
{
	expect_refused("SELECT 'abc'", 0);
	expect_refused("SELECT ''", 0);
	expect_refused("SELECT ' 1'", 0);
	expect_refused("SELECT '1 '", 0);
	expect_refused("SELECT '0x1F'", 0);
	expect_refused("SELECT '+5x'", 0);
	expect_refused("SELECT 1", 1);
	expect_refused("SELECT 1", -1);
}

Test(pg_value, refuses_integers_beyond_64_bits_and_numbers_beyond_a_double)
{
	int64_t integer = 7;
	double number = 7;
	pg_rows *r = row("SELECT 9223372036854775808", PG_NO_PARAMS);
	cr_expect_not(pg_rows_int64(r, 0, &integer));
	expect_error(r, PG_ERROR_VALUE, "");
	r = row("SELECT -9223372036854775809", PG_NO_PARAMS);
	cr_expect_not(pg_rows_int64(r, 0, &integer));
	expect_error(r, PG_ERROR_VALUE, "");
	r = row("SELECT '-'", PG_NO_PARAMS);
	cr_expect_not(pg_rows_int64(r, 0, &integer));
	expect_error(r, PG_ERROR_VALUE, "");
	r = row("SELECT 1.5", PG_NO_PARAMS);
	cr_expect_not(pg_rows_int64(r, 0, &integer));
	cr_expect(eq(i64, integer, 7));
	expect_error(r, PG_ERROR_VALUE, "");
	r = row("SELECT 1e400::numeric", PG_NO_PARAMS);
	cr_expect_not(pg_rows_double(r, 0, &number));
	expect_error(r, PG_ERROR_VALUE, "");
	r = row("SELECT '-Infinity'::float8, 'NaN'::float8", PG_NO_PARAMS);
	cr_expect(pg_rows_double(r, 0, &number) && isinf(number));
	cr_expect(pg_rows_double(r, 1, &number) && isnan(number));
	pg_rows_close(r);
}

/* A program that has called setlocale may have a comma for a decimal point; PostgreSQL's text never has. */
Test(pg_value, reads_numbers_alike_in_every_locale)
{
	static const char *const with_comma[] = {"de_DE.UTF-8", "de_DE.utf8", "fr_FR.UTF-8", "pt_BR.UTF-8"};
	for (size_t i = 0; i < sizeof(with_comma) / sizeof(with_comma[0]); i++)
		if (setlocale(LC_ALL, with_comma[i]))
			break;
	double number = 0;
	pg_rows_auto *r = row("SELECT 12.25", PG_NO_PARAMS);
	cr_expect(pg_rows_double(r, 0, &number));
	cr_expect(ieee_ulp_eq(dbl, number, 12.25, 1));
}

TEST_BOTH_WAYS(pg_value, sends_parameters_nulls_and_binary)
{
	const char *values[] = {"O'Neill; DROP TABLE album", NULL, "a\0b"};
	pg_params params = {
		.count = 3,
		.values = values,
		.lengths = (const int[]){0, 0, 3},
		.formats = (const int[]){0, 0, 1},
	};
	pg_rows_auto *r = row("SELECT $1::text, $2::int IS NULL, length($3::bytea)", params);
	bool is_null = false;
	int64_t length = 0;
	cr_assert_null(pg_rows_error(r));
	cr_expect(eq(str, (char *)pg_rows_text(r, 0), (char *)values[0]));
	cr_expect(pg_rows_bool(r, 1, &is_null) && is_null);
	cr_expect(pg_rows_int64(r, 2, &length));
	cr_expect(eq(i64, length, 3));
}

/* ---- Binary parameters -------------------------------------------------------------------------------- */

Test(pg_value, refuses_more_parameters_than_the_protocol_has)
{
	const char **values = calloc(70000, sizeof(*values));
	pg_params params = {.count = 70000, .values = values};
	expect_error(row("SELECT 1", params), PG_ERROR_USAGE, "");
	params.count = SIZE_MAX / 2;
	expect_error(row("SELECT 1", params), PG_ERROR_USAGE, "");
	expect_error(row("SELECT $1::int", PG_NO_PARAMS), PG_ERROR_SERVER, "08P01");
	must_exec(t, "SELECT 1");
	cr_expect(eq(u64, stats_of(t).connects, 1));
	free(values);
}

static void put_big_endian(unsigned char *to, uint64_t value, int size)
{
	for (int i = 0; i < size; i++)
		to[i] = (unsigned char)(value >> (8 * (size - 1 - i)));
}

/* One of each kind, as PostgreSQL's own types are sent; what comes back is read by the getter. */
TEST_BOTH_WAYS(pg_value, sends_binary_integers_booleans_and_floats)
{
	unsigned char two[2], four[4], eight[8], number[8], truth = 1;
	double pi = 3.141592653589793;
	uint64_t bits;
	memcpy(&bits, &pi, sizeof(bits));
	put_big_endian(two, (uint64_t)-32768, 2);
	put_big_endian(four, (uint64_t)INT32_MAX, 4);
	put_big_endian(eight, (uint64_t)INT64_MIN, 8);
	put_big_endian(number, bits, 8);
	pg_params params = {
		.count = 5,
		.values = (const char *const[]){(char *)two, (char *)four, (char *)eight, (char *)number,
	                                        (char *)&truth},
		.lengths = (const int[]){2, 4, 8, 8, 1},
		.formats = (const int[]){1, 1, 1, 1, 1},
	};
	pg_rows_auto *r = row("SELECT $1::int2, $2::int4, $3::int8, $4::float8, $5::bool", params);
	int64_t a = 0, b = 0, c = 0;
	double d = 0;
	bool e = false;
	cr_assert_null(pg_rows_error(r));
	cr_expect(pg_rows_int64(r, 0, &a) && pg_rows_int64(r, 1, &b) && pg_rows_int64(r, 2, &c));
	cr_expect(eq(i64, a, -32768));
	cr_expect(eq(i64, b, INT32_MAX));
	cr_expect(eq(i64, c, INT64_MIN));
	cr_expect(pg_rows_double(r, 3, &d) && d == pi, "every bit of it");
	cr_expect(pg_rows_bool(r, 4, &e) && e);
}

Test(pg_value, binary_values_of_the_wrong_size_are_refused_by_postgresql)
{
	pg_params params = {
		.count = 1,
		.values = (const char *const[]){"123"},
		.lengths = (const int[]){3},
		.formats = (const int[]){1},
	};
	expect_error(row("SELECT $1::int4", params), PG_ERROR_SERVER, "08P01");
	params.formats = (const int[]){7};
	expect_error(row("SELECT $1::int4", params), PG_ERROR_SERVER, "22023");
	must_exec(t, "SELECT 1");
	cr_expect(eq(u64, stats_of(t).connects, 1));
}

Test(pg_value, refuses_negative_lengths_and_counts_that_would_wrap)
{
	pg_params params = {
		.count = 1,
		.values = (const char *const[]){"1"},
		.lengths = (const int[]){-1},
		.formats = (const int[]){1},
	};
	expect_error(row("SELECT $1::bytea", params), PG_ERROR_USAGE, "");
	params.count = ((size_t)1 << 32) + 1;
	expect_error(row("SELECT $1::bytea", params), PG_ERROR_USAGE, "");
	params = (pg_params){.count = 1, .values = (const char *const[]){"1"}, .formats = (const int[]){1}};
	expect_error(row("SELECT $1::bytea", params), PG_ERROR_USAGE, "");
	cr_expect(eq(u64, stats_of(t).connects, 1));
}

/* A NUL cannot be in PostgreSQL's text: as binary it is refused, never cut there. */
Test(pg_value, text_with_a_nul_is_refused)
{
	pg_params params = {
		.count = 1,
		.values = (const char *const[]){"a\0b"},
		.lengths = (const int[]){3},
		.formats = (const int[]){1},
	};
	expect_error(row("SELECT $1::text", params), PG_ERROR_SERVER, "22021");
}

Test(pg_value, arrays_go_as_text)
{
	pg_rows_auto *r =
		row("SELECT sum(i), $1::int[] FROM unnest($1::int[]) i", PG_PARAMS("{1,2,NULL,40}"));
	int64_t sum = 0;
	cr_expect(pg_rows_int64(r, 0, &sum));
	cr_expect(eq(i64, sum, 43));
	cr_expect(eq(str, (char *)pg_rows_text(r, 1), "{1,2,NULL,40}"));
}

/* ---- bytea -------------------------------------------------------------------------------------------- */

TEST_BOTH_WAYS(pg_value, bytes_come_back_as_they_went)
{
	unsigned char sent[256], got[256];
	for (int i = 0; i < 256; i++)
		sent[i] = (unsigned char)i;
	pg_params params = {
		.count = 1,
		.values = (const char *const[]){(char *)sent},
		.lengths = (const int[]){256},
		.formats = (const int[]){1},
	};
	pg_rows_auto *r = row("SELECT $1::bytea, ''::bytea, NULL::bytea", params);
	size_t length = 7;
	cr_assert(pg_rows_bytes(r, 0, got, sizeof(got), &length));
	cr_expect(eq(sz, length, 256));
	cr_expect(memcmp(sent, got, 256) == 0);
	cr_expect(ge(sz, pg_rows_length(r, 0) / 2, length));
	cr_expect(pg_rows_bytes(r, 1, NULL, 0, &length));
	cr_expect(eq(sz, length, 0));
	length = 7;
	cr_expect_not(pg_rows_bytes(r, 2, got, sizeof(got), &length));
	cr_expect(eq(sz, length, 7));
	cr_expect_null(pg_rows_error(r));
}

Test(pg_value, refuses_bytes_that_do_not_fit_or_are_none)
{
	static const char *const refused[] = {
		"SELECT '\\x0102'::bytea", "SELECT 'text'", "SELECT '\\x0'", "SELECT '\\xAB'",
		"SELECT '\\x0g'",          "SELECT '\\'",   "SELECT ''",
	};
	for (size_t i = 0; i < sizeof(refused) / sizeof(refused[0]); i++) {
		char byte = 'u';
		size_t length = 7;
		pg_rows *r = row(refused[i], PG_NO_PARAMS);
		cr_expect_not(pg_rows_bytes(r, 0, &byte, 1, &length), "%s", refused[i]);
		cr_expect(byte == 'u' && length == 7, "%s", refused[i]);
		expect_error(r, PG_ERROR_VALUE, "");
	}
}

/* ---- timestamptz -------------------------------------------------------------------------------------- */

static pg_conn *session_in(const char *zone)
{
	pg_conn *session = pg_conn_acquire(ctx_background(), t->pool);
	pg_rows_close(pg_query_row(ctx_background(), session, "SELECT set_config('TimeZone', $1, false)",
	                           PG_PARAMS(zone)));
	return session;
}

/* PostgreSQL's own arithmetic is the judge: all over the calendar, in zones whose offsets have minutes and seconds. */
Test(pg_value, moments_are_postgresqls_own)
{
	static const char *const zones[] = {"UTC", "Europe/Amsterdam", "Asia/Kathmandu", "America/St_Johns"};
	static const char sql[] =
		"SELECT x, (extract(epoch FROM x) * 1000000)::int8 FROM"
		" (SELECT '1970-01-01 00:00+00'::timestamptz + i * i * i * interval '3.000017 days' AS x"
		"  FROM generate_series(-80, 300) i"
		"  UNION ALL VALUES ('0001-01-01 BC'::timestamptz), ('4713-01-01 00:00+00 BC'), "
		"('0001-01-01'),"
		"  ('2000-02-29 23:59:59.999999'), ('1900-03-01'), ('294246-12-31 23:59:59.5+00'), "
		"('9999-12-31')) v";
	for (size_t i = 0; i < sizeof(zones) / sizeof(zones[0]); i++) {
		pg_conn *session = session_in(zones[i]);
		pg_rows *r = pg_query(ctx_background(), session, sql, PG_NO_PARAMS);
		int64_t got, expected;
		int rows = 0;
		while (pg_rows_next(r)) {
			cr_assert(pg_rows_time(r, 0, &got), "%s in %s", pg_rows_text(r, 0), zones[i]);
			cr_assert(pg_rows_int64(r, 1, &expected));
			cr_assert(eq(i64, got, expected), "%s in %s", pg_rows_text(r, 0), zones[i]);
			rows++;
		}
		cr_expect_null(pg_rows_error(r));
		cr_expect(eq(int, rows, 388));
		pg_rows_close(r);
		pg_conn_release(session);
	}
}

Test(pg_value, refuses_what_names_no_moment)
{
	static const char *const refused[] = {
		"SELECT 'infinity'::timestamptz",
		"SELECT '-infinity'::timestamptz",
		"SELECT '2024-06-07 08:09:10'::timestamp",
		"SELECT '2024-06-07'::date",
		"SELECT '294276-12-31 23:59:59+00'::timestamptz", /* beyond 64 bits of microseconds from 1970 */
		"SELECT '2024-06-07 08:09:10+02 AD'",
		"SELECT '2024-06-07 08:09:10.+02'",
		"SELECT '2024-06-07 08:09:10+2'",
		"SELECT 'yesterday'",
		"SELECT ''",
	};
	for (size_t i = 0; i < sizeof(refused) / sizeof(refused[0]); i++) {
		int64_t moment = 7;
		pg_rows *r = row(refused[i], PG_NO_PARAMS);
		cr_expect_not(pg_rows_time(r, 0, &moment), "%s", refused[i]);
		cr_expect(eq(i64, moment, 7));
		expect_error(r, PG_ERROR_VALUE, "");
	}
	pg_conn *session = pg_conn_acquire(ctx_background(), t->pool);
	pg_rows_close(pg_exec(ctx_background(), session, "SET DateStyle = 'SQL, DMY'", PG_NO_PARAMS));
	int64_t moment;
	pg_rows *r = pg_query_row(ctx_background(), session, "SELECT now()", PG_NO_PARAMS);
	cr_expect_not(pg_rows_time(r, 0, &moment));
	expect_error(r, PG_ERROR_VALUE, "");
	pg_conn_release(session);
}
