/* What programs that test statements share. Unlike most of these it uses Criterion, hence is all in a header. */
#ifndef TESTS_QUERYING_H
#define TESTS_QUERYING_H

#include <criterion/criterion.h>
#include <criterion/new/assert.h>

#include <tether/pg.h>

#include "pools.h"

/* Each test's own pool: of two connections, where it is made by open_pool. */
static test_pool *t;

static inline void open_pool(void)
{
	t = test_pool_open(2, NULL);
}

static inline void close_pool(void)
{
	test_pool_close(t);
}

static inline pg_rows *row(const char *sql, pg_params params)
{
	return pg_query_row(ctx_background(), t->pool, sql, params);
}

/* Closes the rows. */
static inline void expect_error(pg_rows *rows, pg_error_kind kind, const char *sqlstate)
{
	const pg_error *error = pg_rows_error(rows);
	cr_assert_not_null(error);
	cr_expect(eq(int, error->kind, kind), "%s: %s", pg_error_kind_name(error->kind), error->message);
	cr_expect(eq(str, (char *)error->sqlstate, (char *)sqlstate));
	cr_expect(ne(str, (char *)error->message, ""));
	pg_rows_close(rows);
}

#endif
