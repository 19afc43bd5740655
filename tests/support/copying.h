/* What the two programs that test COPY share. Unlike the rest of these it uses Criterion, hence is all in a header. */
#ifndef TESTS_COPYING_H
#define TESTS_COPYING_H

#include <criterion/criterion.h>
#include <criterion/new/assert.h>
#include <errno.h>
#include <stdio.h>

#include <tether/pg.h>

#include "pools.h"
#include "support.h"

enum { MILLION = 1000000 };

static const ctx_error left = {ECONNRESET, "the client has left"};

static inline void expect_error(pg_copy *copy, const char *kind, const char *sqlstate)
{
	cr_assert_not_null(pg_copy_error(copy));
	cr_expect(eq(str, (char *)kind_of(pg_copy_error(copy)), (char *)kind), "%s",
	          pg_copy_error(copy)->message);
	cr_expect(eq(str, (char *)pg_copy_error(copy)->sqlstate, (char *)sqlstate));
	cr_expect(ne(str, (char *)pg_copy_error(copy)->message, ""));
	pg_copy_close(copy);
}

static inline bool write_row(pg_copy *copy, int i)
{
	char row[64];
	int length = snprintf(row, sizeof(row), "%d\ttitle %d\n", i, i);
	return pg_copy_write(copy, row, (size_t)length);
}

/* Under a sanitizer freed memory is kept back, so that the peak says nothing. */
static inline void expect_flat(long before)
{
	if (support_patience() == 1)
		cr_expect(support_peak_kib() - before < 4 * 1024, "%ld KiB more",
		          support_peak_kib() - before);
}

#endif
