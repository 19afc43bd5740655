/*
 * How transactions begin, and savepoints within them; what the end of a context leaves of them.
 */
#include <criterion/criterion.h>
#include <criterion/new/assert.h>
#include <errno.h>
#include <string.h>

#include "pools.h"
#include "scratch.h"
#include "support.h"

static test_pool *t;
static scratch s;

static void open_pool(void)
{
	t = test_pool_open(2, NULL);
	scratch_make(&s, t, "id int");
}

static void close_pool(void)
{
	scratch_drop(&s);
	test_pool_close(t);
}

TestSuite(pg_savepoint, .init = open_pool, .fini = close_pool, .timeout = 60);

static void insert(pg_tx *tx, const char *id)
{
	pg_rows_auto *r = pg_exec(ctx_background(), tx, scratch_sql(&s, "INSERT INTO @ VALUES ($1::int)"),
	                          PG_PARAMS(id));
	cr_assert_null(pg_rows_error(r), "%s", pg_rows_error(r) ? pg_rows_error(r)->message : "");
}

static void fail(pg_tx *tx)
{
	pg_rows_auto *r = pg_exec(ctx_background(), tx, "SELECT 1 / 0", PG_NO_PARAMS);
	cr_assert_not_null(pg_rows_error(r));
	cr_expect_null(pg_tx_error(tx));
}

/* ---- How they begin ------------------------------------------------------------------------------------- */

static void expect_setting(pg_tx *tx, const char *name, const char *value)
{
	pg_rows_auto *r = pg_query_row(ctx_background(), tx, "SELECT current_setting($1)", PG_PARAMS(name));
	cr_assert_null(pg_rows_error(r));
	cr_expect(eq(str, (char *)pg_rows_text(r, 0), (char *)value), "%s", name);
}

Test(pg_savepoint, each_isolation_is_the_one_asked_for)
{
	static const struct {
		pg_isolation isolation;
		const char *name;
	} levels[] = {
		{PG_ISOLATION_DEFAULT, "read committed"},
		{PG_READ_COMMITTED, "read committed"},
		{PG_REPEATABLE_READ, "repeatable read"},
		{PG_SERIALIZABLE, "serializable"},
	};
	for (size_t i = 0; i < sizeof(levels) / sizeof(levels[0]); i++) {
		bool odd = i % 2;
		pg_tx_auto *tx = pg_begin(ctx_background(), t->pool,
		                          &(pg_tx_options){.isolation = levels[i].isolation,
		                                           .read_only = odd,
		                                           .deferrable = !odd});
		expect_setting(tx, "transaction_isolation", levels[i].name);
		expect_setting(tx, "transaction_read_only", odd ? "on" : "off");
		expect_setting(tx, "transaction_deferrable", odd ? "off" : "on");
	}
}

Test(pg_savepoint, repeatable_read_sees_one_moment)
{
	pg_tx *tx = pg_begin(ctx_background(), t->pool, &(pg_tx_options){.isolation = PG_REPEATABLE_READ});
	int64_t n = -1;
	for (int i = 0; i < 2; i++) {
		pg_rows *r = pg_query_row(ctx_background(), tx, scratch_sql(&s, "SELECT count(*) FROM @"),
		                          PG_NO_PARAMS);
		cr_expect(pg_rows_int64(r, 0, &n));
		cr_expect(eq(i64, n, 0));
		pg_rows_close(r);
		scratch_run(&s, "INSERT INTO @ VALUES (1)");
	}
	pg_rollback(tx);
}

Test(pg_savepoint, read_only_refuses_to_write)
{
	pg_tx *tx = pg_begin(ctx_background(), t->pool, &(pg_tx_options){.read_only = true});
	pg_rows *r = pg_exec(ctx_background(), tx, scratch_sql(&s, "INSERT INTO @ VALUES (1)"), PG_NO_PARAMS);
	cr_assert_not_null(pg_rows_error(r));
	cr_expect(eq(str, (char *)pg_rows_error(r)->sqlstate, "25006"));
	pg_rows_close(r);
	pg_rollback(tx);
}

/* Two that each read what the other writes: one is refused, at its commit or before, and says so with 40001. */
Test(pg_savepoint, serializable_refuses_what_no_order_explains)
{
	const pg_tx_options options = {.isolation = PG_SERIALIZABLE};
	pg_tx *tx[2];
	bool refused[2] = {false, false};
	for (int i = 0; i < 2; i++) {
		tx[i] = pg_begin(ctx_background(), t->pool, &options);
		pg_rows_close(pg_query_row(ctx_background(), tx[i], scratch_sql(&s, "SELECT count(*) FROM @"),
		                           PG_NO_PARAMS));
	}
	for (int i = 0; i < 2; i++) {
		insert(tx[i], "1");
	}
	for (int i = 0; i < 2; i++) {
		refused[i] = !pg_commit(tx[i]);
		if (refused[i])
			cr_expect(eq(str, (char *)pg_tx_error(tx[i])->sqlstate, "40001"));
		pg_rollback(tx[i]);
	}
	cr_expect(eq(int, refused[0] + refused[1], 1));
	cr_expect(eq(i64, scratch_rows(&s), 1));
}

/* ---- Savepoints --------------------------------------------------------------------------------------- */

TEST_BOTH_WAYS(pg_savepoint, undoes_what_came_after_it_and_mends_a_failure)
{
	pg_error error;
	pg_tx *tx = pg_begin(ctx_background(), t->pool, NULL);
	insert(tx, "1");
	cr_expect(pg_savepoint(tx, "here", &error), "%s", error.message);
	insert(tx, "2");
	for (int i = 0; i < 2; i++) {
		fail(tx);
		cr_expect(pg_rollback_to(tx, "here", &error), "%s", error.message);
		insert(tx, "3");
	}
	cr_expect(pg_release(tx, "here", &error), "%s", error.message);
	cr_expect(pg_commit(tx));
	pg_rollback(tx);
	cr_expect(eq(i64, scratch_rows(&s), 2));
	cr_expect(eq(i64, ask_number(t, scratch_sql(&s, "SELECT sum(id) FROM @")), 4));
}

Test(pg_savepoint, lie_within_each_other)
{
	pg_tx *tx = pg_begin(ctx_background(), t->pool, NULL);
	cr_expect(pg_savepoint(tx, "outer", NULL));
	insert(tx, "1");
	cr_expect(pg_savepoint(tx, "inner", NULL));
	insert(tx, "2");
	cr_expect(pg_savepoint(tx, "inner", NULL), "the same name hides the one before");
	insert(tx, "4");
	cr_expect(pg_rollback_to(tx, "inner", NULL));
	cr_expect(pg_release(tx, "inner", NULL));
	cr_expect(pg_rollback_to(tx, "inner", NULL));
	insert(tx, "8");
	cr_expect(pg_commit(tx));
	pg_rollback(tx);
	cr_expect(eq(i64, ask_number(t, scratch_sql(&s, "SELECT sum(id) FROM @")), 9));
}

Test(pg_savepoint, names_may_be_anything_that_postgresql_keeps_whole)
{
	char name[65];
	pg_error error;
	pg_tx *tx = pg_begin(ctx_background(), t->pool, NULL);
	cr_expect(pg_savepoint(tx, "a \"b\"; ROLLBACK; --", &error), "%s", error.message);
	cr_expect(pg_savepoint(tx, "Savepoint", &error), "%s", error.message);
	cr_expect(pg_rollback_to(tx, "a \"b\"; ROLLBACK; --", &error), "%s", error.message);
	memset(name, 'n', 64);
	name[64] = '\0';
	cr_expect_not(pg_savepoint(tx, name, &error));
	cr_expect(eq(int, error.kind, PG_ERROR_USAGE));
	cr_expect_not(pg_savepoint(tx, "", NULL));
	insert(tx, "1");
	cr_expect(pg_commit(tx));
	pg_rollback(tx);
	cr_expect(eq(i64, scratch_rows(&s), 1));
}

Test(pg_savepoint, one_that_was_not_set_is_told_and_fails_the_transaction)
{
	pg_error error;
	pg_tx *tx = pg_begin(ctx_background(), t->pool, NULL);
	cr_expect_not(pg_rollback_to(tx, "nowhere", &error));
	cr_expect(eq(int, error.kind, PG_ERROR_SERVER));
	cr_expect(eq(str, error.sqlstate, "3B001"));
	cr_expect_null(pg_tx_error(tx));
	cr_expect_not(pg_commit(tx));
	cr_expect_not(pg_savepoint(tx, "late", &error));
	pg_rollback(tx);
}

static const ctx_error left = {ECONNRESET, "the client has left"};

/* A savepoint is no shelter: the context is the whole transaction's. */
TEST_BOTH_WAYS(pg_savepoint, the_contexts_end_takes_the_whole_transaction)
{
	int64_t pid = backend_of_pool(t);
	ctx_auto *c = ctx_with_cancel(ctx_background());
	pg_error error;
	pg_tx *tx = pg_begin(c, t->pool, NULL);
	insert(tx, "1");
	cr_expect(pg_savepoint(tx, "here", NULL));
	insert(tx, "2");
	ctx_cancel_cause(c, &left);
	cr_expect(backends_become(t, "idle in transaction%", NULL, 0));
	cr_expect_not(pg_rollback_to(tx, "here", &error));
	cr_expect(eq(int, error.kind, PG_ERROR_CANCELED));
	cr_expect(eq(ptr, (void *)error.cause, (void *)&left));
	cr_expect_not(pg_commit(tx));
	pg_rollback(tx);
	cr_assert(pool_at_rest(t));
	cr_expect(eq(i64, backend_of_pool(t), pid));
	cr_expect(eq(i64, scratch_rows(&s), 0));
}

/* Nor is it one from a statement's own context: to go on after that would take a connection that has settled. */
Test(pg_savepoint, the_end_of_a_statements_context_takes_the_whole_transaction)
{
	pg_error error;
	pg_tx *tx = pg_begin(ctx_background(), t->pool, NULL);
	insert(tx, "1");
	cr_expect(pg_savepoint(tx, "here", NULL));
	ctx_auto *c = ctx_with_timeout(ctx_background(), 50 * CTX_MILLISECOND);
	pg_rows_close(pg_exec(c, tx, "SELECT pg_sleep(60)", PG_NO_PARAMS));
	cr_expect_not(pg_rollback_to(tx, "here", &error));
	cr_expect(eq(int, error.kind, PG_ERROR_DEADLINE));
	pg_rollback(tx);
	cr_assert(settled_become(t, 1));
	cr_expect(eq(int, t->kept, 1));
	cr_expect(eq(i64, scratch_rows(&s), 0));
}
