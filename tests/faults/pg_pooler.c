/*
 * Through PgBouncer in transaction mode, where each of our connections meets another backend with each transaction:
 * prepared statements, by what its version can do.
 */
#include <criterion/criterion.h>
#include <criterion/new/assert.h>
#include <stdio.h>

#include "pgbouncer.h"
#include "pools.h"
#include "private_db.h"
#include "support.h"
#include "together.h"

TestSuite(pg_pooler, .timeout = 120);

enum { CLIENTS = 8, ROUNDS = 60, TEXTS = 7 };

typedef struct asking {
	pg_pool *pools[2];
	_Atomic(int) wrong, failed;
} asking;

/* Both pools number their statements in the same way, and each number means something else in each client. */
static void ask_around(void *arg, int index)
{
	asking *a = arg;
	for (int i = 0; i < ROUNDS; i++) {
		char sql[64], number[16];
		int64_t expected = (index * 31 + i) % TEXTS * 1000 + i, answer = -1;
		snprintf(sql, sizeof(sql), "SELECT %d + $1::int", (index * 31 + i) % TEXTS * 1000);
		snprintf(number, sizeof(number), "%d", i);
		pg_rows *r = pg_query_row(ctx_background(), a->pools[index % 2], sql, PG_PARAMS(number));
		if (pg_rows_error(r)) {
			a->failed++;
			fprintf(stderr, "%s: %s\n", pg_error_kind_name(pg_rows_error(r)->kind),
			        pg_rows_error(r)->message);
		} else if (!pg_rows_int64(r, 0, &answer) || answer != expected) {
			a->wrong++;
		}
		pg_rows_close(r);
	}
}

/* Statements of the backends that have a name, as somebody on a backend of the pooler's sees them. */
static int64_t named_statements(pg_pool *pool)
{
	int64_t n = -1;
	pg_rows_auto *r = pg_query_row(ctx_background(), pool, "SELECT count(*) FROM pg_prepared_statements",
	                               PG_NO_PARAMS);
	pg_rows_int64(r, 0, &n);
	return n;
}

static void ask_through(const char *more, pg_statements statements, bool named)
{
	private_db *db = private_db_start(&(private_db_options){.tcp = true});
	pgbouncer *b = pgbouncer_start_with(private_db_tcp_url(db), more);
	pg_pool_options options = {.conninfo = pgbouncer_url(b), .statements = statements};
	test_pool *pools[2] = {test_pool_open(CLIENTS, &options), test_pool_open(CLIENTS, &options)};
	asking a = {.pools = {pools[0]->pool, pools[1]->pool}};
	together(CLIENTS, ask_around, &a);
	cr_expect(eq(int, a.wrong, 0));
	cr_expect(eq(int, a.failed, 0));
	if (named)
		cr_expect(ge(i64, named_statements(pools[0]->pool), 1));
	else if (statements != PG_STATEMENTS_PREPARED)
		cr_expect(eq(i64, named_statements(pools[0]->pool), 0));
	test_pool_close(pools[0]);
	test_pool_close(pools[1]);
	pgbouncer_stop(b);
	private_db_stop(db);
}

Test(pg_pooler, statements_have_no_names_by_default)
{
	ask_through("", PG_STATEMENTS_AUTO, false);
}

Test(pg_pooler, statements_have_names_where_it_keeps_track)
{
	if (!pgbouncer_knows_statements()) {
		fprintf(stderr, "skipped: PgBouncer before 1.21 keeps no track of prepared statements\n");
		return;
	}
	ask_through("max_prepared_statements = 100\n", PG_STATEMENTS_PREPARED, true);
}

/* Told wrongly that it keeps track: the backend refuses names it does not know, and never runs another's statement. */
Test(pg_pooler, statements_with_names_it_does_not_know_are_sent_again)
{
	ask_through(pgbouncer_knows_statements() ? "max_prepared_statements = 0\n" : "",
	            PG_STATEMENTS_PREPARED, false);
}

/* With names, the plan of a text is the pooler's to remember, and outlives a change of the schema. */
Test(pg_pooler, a_change_of_the_schema_costs_no_answer)
{
	bool knows = pgbouncer_knows_statements();
	private_db *db = private_db_start(&(private_db_options){.tcp = true});
	pgbouncer *b =
		pgbouncer_start_with(private_db_tcp_url(db), knows ? "max_prepared_statements = 100\n" : "");
	test_pool *t = test_pool_open(
		2, &(pg_pool_options){.conninfo = pgbouncer_url(b), .statements = PG_STATEMENTS_PREPARED});
	must_exec(t, "CREATE TABLE changing (a int)");
	must_exec(t, "INSERT INTO changing VALUES (1)");
	must_exec(t, "SELECT * FROM changing");
	must_exec(t, "ALTER TABLE changing ADD b int");
	for (int i = 0; i < 4; i++)
		must_exec(t, "SELECT * FROM changing");
	test_pool_close(t);
	pgbouncer_stop(b);
	private_db_stop(db);
}
