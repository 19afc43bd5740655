/*
 * COPY out as a stream, under a context; and of both ways: binary, sessions, moments of cancellation, refusals. Whatever
 * ends one, the connection is kept.
 */
#include <criterion/criterion.h>
#include <criterion/new/assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "alloc_fault.h"
#include "copying.h"
#include "pools.h"
#include "scratch.h"
#include "support.h"

static test_pool *t;
static int64_t pid; /* of the pool's one connection */
static scratch s;
static const char *copy_in, *copy_out;

static void open_pool(void)
{
	t = test_pool_open(1, NULL);
	pid = backend_of_pool(t);
	scratch_make(&s, t, "id int, title text");
	copy_in = strdup(scratch_sql(&s, "COPY @ FROM STDIN"));
	copy_out = strdup(scratch_sql(&s, "COPY @ TO STDOUT"));
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
	free((char *)(uintptr_t)copy_out);
}

TestSuite(pg_copy, .init = open_pool, .fini = close_pool, .timeout = 120);

/* ---- Out ---------------------------------------------------------------------------------------------- */

static const char million_out[] =
	"COPY (SELECT i, 'title ' || i FROM generate_series(1, 1000000) i) TO STDOUT";
static const char endless_out[] = "COPY (SELECT generate_series(1, 1000000000)) TO STDOUT";

TEST_BOTH_WAYS(pg_copy, reads_a_million_rows_in_constant_memory)
{
	long before = support_peak_kib();
	pg_copy *copy = pg_copy_out(ctx_background(), t->pool, million_out);
	const char *row;
	size_t size;
	uint64_t rows = 0, bytes = 0;
	while (pg_copy_read(copy, &row, &size)) {
		char expected[64];
		if (++rows % 99999 == 0) {
			int n = snprintf(expected, sizeof(expected), "%d\ttitle %d\n", (int)rows, (int)rows);
			cr_assert(eq(sz, size, (size_t)n));
			cr_assert(memcmp(row, expected, size) == 0);
		}
		bytes += size;
	}
	cr_expect_null(pg_copy_error(copy));
	cr_expect(eq(u64, rows, MILLION));
	cr_expect(eq(u64, bytes, UINT64_C(19777792)));
	cr_expect(eq(u64, pg_copy_rows(copy), MILLION));
	cr_expect(eq(sz, stats_of(t).idle, 1), "the connection is back before the close");
	cr_expect_not(pg_copy_read(copy, &row, &size));
	pg_copy_close(copy);
	expect_flat(before);
}

Test(pg_copy, reads_no_rows)
{
	const char *row = "untouched";
	size_t size = 7;
	pg_copy *copy = pg_copy_out(ctx_background(), t->pool, copy_out);
	cr_expect_null(pg_copy_error(copy));
	cr_expect_not(pg_copy_read(copy, &row, &size));
	cr_expect_null(pg_copy_error(copy));
	cr_expect(eq(str, (char *)row, "untouched"));
	cr_expect(eq(sz, size, 7));
	pg_copy_close(copy);
}

Test(pg_copy, an_error_in_the_midst_of_rows_comes_after_them)
{
	pg_copy *copy =
		pg_copy_out(ctx_background(), t->pool,
	                    "COPY (SELECT 100 / (5000 - i) FROM generate_series(1, 10000) i) TO STDOUT");
	const char *row;
	size_t size;
	int rows = 0;
	while (pg_copy_read(copy, &row, &size))
		rows++;
	cr_expect(rows > 4000 && rows < 5000, "%d rows before the division by zero", rows);
	expect_error(copy, "server", "22012");
}

TEST_BOTH_WAYS(pg_copy, the_contexts_end_stops_rows_that_are_being_read)
{
	ctx_auto *c = ctx_with_timeout_cause(ctx_background(), 100 * CTX_MILLISECOND, &left);
	pg_copy *copy = pg_copy_out(c, t->pool, endless_out);
	const char *row;
	size_t size;
	while (pg_copy_read(copy, &row, &size))
		;
	cr_expect(eq(ptr, (void *)pg_copy_error(copy)->cause, (void *)&left));
	cr_expect(pg_copy_error(copy)->settling);
	expect_error(copy, "deadline", "");
	cr_assert(settled_become(t, 1));
	cr_expect(eq(int, t->kept, 1));
	cr_expect(backends_become(t, "active", NULL, 0));
}

/* Nobody is in a call: the rows stop all the same, at that moment. */
TEST_BOTH_WAYS(pg_copy, the_contexts_end_stops_rows_that_nobody_reads)
{
	ctx_auto *c = ctx_with_cancel(ctx_background());
	pg_copy *copy = pg_copy_out(c, t->pool, endless_out);
	const char *row;
	size_t size;
	cr_assert(pg_copy_read(copy, &row, &size));
	ctx_cancel_cause(c, &left);
	cr_assert(settled_become(t, 1));
	cr_expect(eq(int, t->kept, 1));
	cr_expect_not(pg_copy_read(copy, &row, &size));
	cr_expect(pg_copy_error(copy)->settling);
	expect_error(copy, "canceled", "");
}

Test(pg_copy, closing_early_stops_the_rows)
{
	pg_copy *copy = pg_copy_out(ctx_background(), t->pool, endless_out);
	const char *row;
	size_t size;
	cr_assert(pg_copy_read(copy, &row, &size));
	pg_copy_close(copy);
	cr_expect(backends_become(t, "active", NULL, 0));
	cr_expect(eq(int, t->settled, 0), "no context has ended");
	pg_copy_close(NULL);
}

/* ---- Both --------------------------------------------------------------------------------------------- */

/* Whenever it ends, the next statement gets its own answer, and of the data all or nothing is there. */
TEST_BOTH_WAYS(pg_copy, may_be_cancelled_at_any_moment)
{
	unsigned seed = 20240607;
	for (int round = 0; round < 200; round++) {
		ctx_auto *c = ctx_with_timeout(ctx_background(), rand_r(&seed) % (3 * (int)CTX_MILLISECOND));
		const char *row;
		size_t size;
		bool finished = false;
		int rows = rand_r(&seed) % 5000;
		pg_copy *copy =
			round % 2 ? pg_copy_in(c, t->pool, copy_in) : pg_copy_out(c, t->pool, million_out);
		if (round % 2) {
			for (int i = 0; i < rows && write_row(copy, i); i++)
				;
			finished = pg_copy_finish(copy);
		} else {
			for (; rows > 0 && pg_copy_read(copy, &row, &size); rows--)
				;
		}
		const pg_error *error = pg_copy_error(copy);
		cr_assert(error == NULL || error->kind == PG_ERROR_DEADLINE, "%s: %s", kind_of(error),
		          error ? error->message : "");
		pg_copy_close(copy);
		char expected[16];
		snprintf(expected, sizeof(expected), "%d", round);
		pg_rows *r = pg_query_row(ctx_background(), t->pool, "SELECT $1::text", PG_PARAMS(expected));
		cr_assert_null(pg_rows_error(r));
		cr_assert(eq(str, (char *)pg_rows_text(r, 0), expected));
		pg_rows_close(r);
		/* Ended while PostgreSQL confirmed it, all of them may be there too. */
		int64_t there = round % 2 ? scratch_rows(&s) : 0;
		bool whole = there == rows || (there == 0 && !finished);
		cr_assert(whole, "%d of %d rows", (int)there, rows);
		scratch_run(&s, "TRUNCATE @");
	}
	cr_expect(eq(u64, stats_of(t).connects, 1));
}

Test(pg_copy, binary_goes_out_and_in_again)
{
	scratch_run(&s, "INSERT INTO @ SELECT i, repeat('ä', i) FROM generate_series(1, 300) i");
	const char *binary_out = scratch_sql(&s, "COPY @ TO STDOUT (FORMAT binary)"),
		   *binary_in = scratch_sql(&s, "COPY @ FROM STDIN (FORMAT binary)");
	test_pool *other = test_pool_open(1, NULL);
	pg_copy *from = pg_copy_out(ctx_background(), t->pool, binary_out),
		*to = pg_copy_in(ctx_background(), other->pool, binary_in);
	const char *row;
	size_t size;
	while (pg_copy_read(from, &row, &size))
		cr_assert(pg_copy_write(to, row, size));
	cr_expect_null(pg_copy_error(from));
	cr_expect(pg_copy_finish(to));
	cr_expect(eq(u64, pg_copy_rows(to), 300));
	pg_copy_close(from);
	pg_copy_close(to);
	test_pool_close(other);
	cr_expect(eq(i64, scratch_rows(&s), 600));
}

static void terminate(void)
{
	char sql[96];
	snprintf(sql, sizeof(sql), "SELECT pg_terminate_backend(%d)::int", (int)pid);
	free(activity_sql(t->watcher, sql));
	pid = 0;
}

Test(pg_copy, a_server_that_ends_the_session_is_told_to_the_reader)
{
	pg_copy *copy = pg_copy_out(ctx_background(), t->pool, endless_out);
	const char *row;
	size_t size;
	cr_assert(pg_copy_read(copy, &row, &size));
	terminate();
	while (pg_copy_read(copy, &row, &size))
		;
	/* A backend that is told to end while it waits for its reader says nothing any more: it might wait again. */
	bool told = pg_copy_error(copy) && *pg_copy_error(copy)->sqlstate;
	expect_error(copy, "connection", told ? "57P01" : "");
	cr_expect(eq(u64, stats_of(t).lost, 1));
}

Test(pg_copy, a_server_that_ends_the_session_is_told_to_the_writer)
{
	pg_copy *copy = pg_copy_in(ctx_background(), t->pool, copy_in);
	cr_assert(write_row(copy, 1));
	terminate();
	int rows = 0;
	while (write_row(copy, 2) && rows < 100 * MILLION)
		rows++;
	cr_expect(rows < 100 * MILLION);
	expect_error(copy, "connection", "57P01");
	cr_expect(eq(u64, stats_of(t).lost, 1));
	cr_expect(eq(i64, scratch_rows(&s), 0));
}

/* ---- In sessions -------------------------------------------------------------------------------------- */

Test(pg_copy, is_part_of_its_transaction)
{
	pg_tx *tx = pg_begin(ctx_background(), t->pool, NULL);
	pg_copy *copy = pg_copy_in(ctx_background(), tx, copy_in);
	write_row(copy, 1);
	pg_rows *r = pg_exec(ctx_background(), tx, "SELECT 1", PG_NO_PARAMS);
	EXPECT_KIND(pg_rows_error(r), "usage");
	pg_rows_close(r);
	cr_expect(pg_copy_finish(copy));
	pg_copy_close(copy);
	cr_expect(eq(i64, scratch_rows(&s), 0));
	copy = pg_copy_out(ctx_background(), tx, copy_out);
	const char *row;
	size_t size;
	cr_assert(pg_copy_read(copy, &row, &size));
	cr_expect(memcmp(row, "1\ttitle 1\n", size) == 0);
	pg_copy_close(copy);
	cr_expect(pg_commit(tx));
	pg_rollback(tx);
	cr_expect(eq(i64, scratch_rows(&s), 1));
}

Test(pg_copy, one_that_is_aborted_fails_its_transaction)
{
	pg_tx *tx = pg_begin(ctx_background(), t->pool, NULL);
	pg_copy *copy = pg_copy_in(ctx_background(), tx, copy_in);
	write_row(copy, 1);
	pg_copy_close(copy);
	cr_expect_not(pg_commit(tx));
	cr_expect(eq(str, (char *)pg_tx_error(tx)->sqlstate, "25P02"));
	pg_rollback(tx);
	cr_expect(eq(i64, scratch_rows(&s), 0));
}

Test(pg_copy, the_transactions_end_ends_it)
{
	ctx_auto *c = ctx_with_cancel(ctx_background()), *own = ctx_with_cancel(ctx_background());
	pg_tx *tx = pg_begin(c, t->pool, NULL);
	pg_copy *copy = pg_copy_in(own, tx, copy_in);
	write_row(copy, 1);
	ctx_cancel_cause(c, &left);
	cr_assert(settled_become(t, 1));
	cr_expect(eq(int, t->kept, 1));
	cr_expect_not(write_row(copy, 2));
	cr_expect(eq(ptr, (void *)pg_copy_error(copy)->cause, (void *)&left));
	expect_error(copy, "canceled", "");
	EXPECT_KIND(pg_tx_error(tx), "canceled");
	pg_rollback(tx);
	cr_expect(eq(i64, scratch_rows(&s), 0));
}

TEST_BOTH_WAYS(pg_copy, a_pinned_session_goes_on_after_each_way_to_end)
{
	pg_conn *session = pg_conn_acquire(ctx_background(), t->pool);
	for (int turn = 0; turn < 4; turn++) {
		ctx_auto *c = ctx_with_cancel(ctx_background());
		pg_copy *copy =
			turn % 2 ? pg_copy_in(c, session, copy_in) : pg_copy_out(c, session, million_out);
		const char *row;
		size_t size;
		cr_assert(turn % 2 ? write_row(copy, 1) : pg_copy_read(copy, &row, &size));
		if (turn >= 2)
			ctx_cancel(c);
		pg_copy_close(copy);
		cr_expect(eq(i64, backend_of(session), pid));
	}
	pg_conn_release(session);
	cr_expect(eq(i64, scratch_rows(&s), 0));
}

/* ---- What is refused ---------------------------------------------------------------------------------- */

Test(pg_copy, refuses_what_is_no_copy_of_that_kind)
{
	const char *both = scratch_sql(&s, "COPY @ TO STDOUT; DROP TABLE @"),
		   *delete = scratch_sql(&s, "DELETE FROM @");
	scratch_run(&s, "INSERT INTO @ VALUES (1, 'one')");
	expect_error(pg_copy_out(ctx_background(), t->pool, both), "usage", "42601");
	expect_error(pg_copy_in(ctx_background(), t->pool, both), "usage", "42601");
	expect_error(pg_copy_out(ctx_background(), t->pool, delete), "usage", "");
	expect_error(pg_copy_in(ctx_background(), t->pool, ""), "usage", "");
	expect_error(pg_copy_out(ctx_background(), t->pool, copy_in), "usage", "");
	expect_error(pg_copy_in(ctx_background(), t->pool, copy_out), "usage", "");
	expect_error(pg_copy_out(ctx_background(), t->pool, "COPY no_such TO STDOUT"), "server", "42P01");
	expect_error(pg_copy_in(ctx_background(), t->pool, "COPY no_such FROM STDIN"), "server", "42P01");
	cr_expect(eq(i64, scratch_rows(&s), 1));
}

Test(pg_copy, a_context_that_is_done_comes_before_anything_else)
{
	ctx_auto *c = ctx_with_cancel(ctx_background());
	ctx_cancel(c);
	uint64_t before = stats_of(t).acquires;
	expect_error(pg_copy_in(c, t->pool, copy_in), "canceled", "");
	expect_error(pg_copy_out(c, t->pool, copy_out), "canceled", "");
	cr_expect(eq(u64, stats_of(t).acquires, before));
}

Test(pg_copy, out_of_memory_is_an_error_and_nothing_leaks)
{
	pg_copy *copy = NULL;
	for (unsigned n = 1; n < 20; n++) {
		fault_set(FAULT_MEMORY, n);
		copy = pg_copy_in(ctx_background(), t->pool, copy_in);
		write_row(copy, 1);
		bool finished = pg_copy_finish(copy);
		bool failed = fault_clear(FAULT_MEMORY);
		cr_expect(finished || (failed && pg_copy_error(copy)));
		pg_copy_close(copy);
		cr_assert(pool_at_rest(t));
		if (!failed)
			break;
	}
}
