/*
 * COPY in as a stream, under a context: rows in constant memory; what ends it midway leaves nothing of it, and costs no
 * connection.
 */
#include <criterion/criterion.h>
#include <criterion/new/assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "copying.h"
#include "pools.h"
#include "scratch.h"
#include "support.h"

static test_pool *t;
static int64_t pid; /* of the pool's one connection */
static scratch s;
static const char *copy_in;

static void open_pool(void)
{
	t = test_pool_open(1, NULL);
	pid = backend_of_pool(t);
	scratch_make(&s, t, "id int, title text");
	copy_in = strdup(scratch_sql(&s, "COPY @ FROM STDIN"));
}

/* Whatever has happened, the connection is the one it was, and clean. */
static void close_pool(void)
{
	cr_expect(pool_at_rest(t));
	if (pid)
		cr_expect(eq(i64, backend_of_pool(t), pid), "the connection was kept");
	scratch_drop(&s);
	test_pool_close(t);
	free((char *)(uintptr_t)copy_in);
}

TestSuite(pg_copy_in, .init = open_pool, .fini = close_pool, .timeout = 120);

/* ---- In ----------------------------------------------------------------------------------------------- */

TEST_BOTH_WAYS(pg_copy_in, writes_a_million_rows_in_constant_memory)
{
	long before = support_peak_kib();
	pg_copy *copy = pg_copy_in(ctx_background(), t->pool, copy_in);
	for (int i = 1; i <= MILLION; i++)
		cr_assert(write_row(copy, i));
	cr_expect(pg_copy_finish(copy));
	cr_expect_null(pg_copy_error(copy));
	cr_expect(eq(u64, pg_copy_rows(copy), MILLION));
	cr_expect(eq(sz, stats_of(t).idle, 1), "the connection is back before the close");
	cr_expect_not(write_row(copy, 7));
	cr_expect(pg_copy_finish(copy), "it stays finished");
	pg_copy_close(copy);
	expect_flat(before);
	cr_expect(eq(i64, scratch_rows(&s), MILLION));
}

/* One piece of 64 MiB, and pieces of one byte: rows are PostgreSQL's business. */
Test(pg_copy_in, pieces_need_not_be_rows)
{
	enum { ROW = 1 << 20, ROWS = 64 };
	char *data = malloc(ROWS * ROW);
	cr_assert_not_null(data);
	memset(data, 'x', ROWS * ROW);
	for (int i = 0; i < ROWS; i++) {
		data[i * ROW] = '1';
		data[i * ROW + 1] = '\t';
		data[(i + 1) * ROW - 1] = '\n';
	}
	long before = support_peak_kib();
	pg_copy *copy = pg_copy_in(ctx_background(), t->pool, copy_in);
	cr_expect(pg_copy_write(copy, data, ROWS * ROW));
	for (const char *p = "2\ttwo\n3\tthree\n"; *p; p++)
		cr_expect(pg_copy_write(copy, p, 1));
	cr_expect(pg_copy_write(copy, "", 0));
	cr_expect(pg_copy_finish(copy));
	cr_expect(eq(u64, pg_copy_rows(copy), ROWS + 2));
	pg_copy_close(copy);
	expect_flat(before);
	free(data);
	cr_expect(eq(i64, scratch_rows(&s), ROWS + 2));
}

static void expect_refused_data(const char *data, const char *sqlstate)
{
	pg_copy *copy = pg_copy_in(ctx_background(), t->pool, copy_in);
	for (int i = 1; i <= 1000; i++)
		write_row(copy, i);
	pg_copy_write(copy, data, strlen(data));
	for (int i = 1; i <= 100000; i++)
		write_row(copy, i);
	cr_expect_not(pg_copy_finish(copy));
	cr_expect_not(pg_copy_finish(copy));
	expect_error(copy, "server", sqlstate);
	cr_expect(eq(i64, scratch_rows(&s), 0));
}

Test(pg_copy_in, a_row_that_postgresql_refuses_is_told_and_nothing_stays)
{
	expect_refused_data("no number\tx\n", "22P02");
	expect_refused_data("1\tx\ttoo many\n", "22P04");
	expect_refused_data("1\t\xff\n", "22021");
}

/* It has failed before it reads a byte, and so early that what we send crosses with that. */
Test(pg_copy_in, a_copy_that_fails_at_its_beginning_is_told)
{
	scratch_run(&s,
	            "CREATE FUNCTION @_no() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'no'; END $$");
	scratch_run(&s, "CREATE TRIGGER no BEFORE INSERT ON @ EXECUTE FUNCTION @_no()");
	expect_refused_data("", "P0001");
	expect_refused_data("", "P0001");
	scratch_run(&s, "DROP TRIGGER no ON @");
	scratch_run(&s, "DROP FUNCTION @_no");
}

/* Notices enough to fill every buffer on the way, while we write: both sides would wait for the other. */
Test(pg_copy_in, notices_that_come_meanwhile_are_read)
{
	scratch_run(&s, "CREATE FUNCTION @_tell() RETURNS trigger LANGUAGE plpgsql AS"
	                " $$ BEGIN RAISE NOTICE '%', repeat('x', 500); RETURN NEW; END $$");
	scratch_run(&s, "CREATE TRIGGER tell BEFORE INSERT ON @ FOR EACH ROW EXECUTE FUNCTION @_tell()");
	pg_copy *copy = pg_copy_in(ctx_background(), t->pool, copy_in);
	for (int i = 1; i <= 50000; i++)
		cr_assert(write_row(copy, i));
	cr_expect(pg_copy_finish(copy));
	cr_expect(eq(u64, pg_copy_rows(copy), 50000));
	pg_copy_close(copy);
	scratch_run(&s, "DROP TRIGGER tell ON @");
	scratch_run(&s, "DROP FUNCTION @_tell");
}

Test(pg_copy_in, closing_unfinished_leaves_nothing)
{
	for (int rows = 0; rows <= 10000; rows += 5000) {
		pg_copy *copy = pg_copy_in(ctx_background(), t->pool, copy_in);
		for (int i = 1; i <= rows; i++)
			cr_assert(write_row(copy, i));
		pg_copy_close(copy);
		cr_assert(pool_at_rest(t));
		cr_expect(eq(i64, scratch_rows(&s), 0));
	}
	cr_expect(eq(int, t->settled, 0), "no context has ended");
}

/* PostgreSQL waits for data, deaf to cancels: only CopyFail ends that. */
TEST_BOTH_WAYS(pg_copy_in, the_contexts_end_aborts_a_copy_that_waits_for_data)
{
	ctx_auto *c = ctx_with_cancel(ctx_background());
	pg_copy *copy = pg_copy_in(c, t->pool, copy_in);
	for (int i = 1; i <= 3; i++)
		cr_assert(write_row(copy, i));
	ctx_cancel_cause(c, &left);
	cr_assert(settled_become(t, 1));
	cr_expect(eq(int, t->kept, 1));
	cr_expect_not(write_row(copy, 4));
	cr_expect_not(pg_copy_finish(copy));
	cr_expect(eq(ptr, (void *)pg_copy_error(copy)->cause, (void *)&left));
	cr_expect(pg_copy_error(copy)->settling);
	expect_error(copy, "canceled", "");
	cr_expect(eq(i64, scratch_rows(&s), 0));
}

/* Every buffer on the way is full: that is what a writer waits for, and what its context ends. */
TEST_BOTH_WAYS(pg_copy_in, the_contexts_end_aborts_a_copy_that_postgresql_is_slow_to_take)
{
	scratch_run(&s, "CREATE FUNCTION @_slow() RETURNS trigger LANGUAGE plpgsql AS"
	                " $$ BEGIN PERFORM pg_sleep(60); RETURN NEW; END $$");
	scratch_run(&s, "CREATE TRIGGER slow BEFORE INSERT ON @ FOR EACH ROW EXECUTE FUNCTION @_slow()");
	ctx_auto *c = ctx_with_timeout(ctx_background(), 300 * CTX_MILLISECOND);
	long before = support_peak_kib();
	pg_copy *copy = pg_copy_in(c, t->pool, copy_in);
	static char row[10000];
	memset(row, 'x', sizeof(row));
	row[0] = '1';
	row[1] = '\t';
	row[sizeof(row) - 1] = '\n';
	int rows = 0;
	while (pg_copy_write(copy, row, sizeof(row)))
		rows++;
	cr_expect(rows < 1000, "%d rows were taken that went nowhere", rows);
	cr_expect(pg_copy_error(copy)->settling);
	expect_error(copy, "deadline", "");
	cr_assert(settled_become(t, 1));
	cr_expect(eq(int, t->kept, 1));
	expect_flat(before);
	cr_expect(eq(i64, scratch_rows(&s), 0));
	scratch_run(&s, "DROP TRIGGER slow ON @");
	scratch_run(&s, "DROP FUNCTION @_slow");
}

/* What was written is on its way when the context ends: it must not be the end of the data that follows it. */
Test(pg_copy_in, the_contexts_end_during_the_finish_is_told)
{
	scratch_run(&s, "CREATE FUNCTION @_slow() RETURNS trigger LANGUAGE plpgsql AS"
	                " $$ BEGIN PERFORM pg_sleep(60); RETURN NULL; END $$");
	scratch_run(&s, "CREATE TRIGGER slow AFTER INSERT ON @ EXECUTE FUNCTION @_slow()");
	ctx_auto *c = ctx_with_timeout(ctx_background(), 200 * CTX_MILLISECOND);
	pg_copy *copy = pg_copy_in(c, t->pool, copy_in);
	write_row(copy, 1);
	cr_expect_not(pg_copy_finish(copy));
	expect_error(copy, "deadline", "");
	cr_assert(settled_become(t, 1));
	cr_expect(eq(int, t->kept, 1));
	cr_expect(eq(i64, scratch_rows(&s), 0));
	scratch_run(&s, "DROP TRIGGER slow ON @");
	scratch_run(&s, "DROP FUNCTION @_slow");
}
