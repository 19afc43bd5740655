/*
 * Tags: what PostgreSQL sees of them, whatever they hold, and that they cost nothing but the preparing.
 *
 * current_query() is the text that PostgreSQL was sent, so that most of this needs no look from outside.
 */
#include <criterion/criterion.h>
#include <criterion/new/assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "alloc_fault.h"
#include "private_db.h"
#include "querying.h"
#include "scratch.h"
#include "support.h"

/* The tags that a context carries: keys and values in turn, to a NULL key. */
static const ctx_key tags_key = {.name = "tags"};

static void give_tags(ctx *c, pg_tags *tags, void *data)
{
	const char **pairs = ctx_value(c, &tags_key);
	(void)data;
	for (; pairs && pairs[0]; pairs += 2)
		pg_tag(tags, pairs[0], pairs[1]);
}

static ctx *with_tags(const char **pairs)
{
	return ctx_with_value(ctx_background(), &tags_key, pairs);
}

#define TAGS(...) ((const char *[]){__VA_ARGS__, NULL})

static const pg_pool_options tagging = {.tag = give_tags};

static void open_tagging_pool(void)
{
	t = test_pool_open(2, &tagging);
}

TestSuite(pg_tags, .init = open_tagging_pool, .fini = close_pool, .timeout = 60);

static void expect_sent(const char **pairs, const char *comment)
{
	char expected[2048];
	ctx_auto *c = with_tags(pairs);
	pg_rows_auto *r = pg_query_row(c, t->pool, "SELECT current_query()", PG_NO_PARAMS);
	cr_assert_null(pg_rows_error(r), "%s", pg_rows_error(r) ? pg_rows_error(r)->message : "");
	snprintf(expected, sizeof(expected), "SELECT current_query()%s", comment);
	cr_expect(eq(str, (char *)pg_rows_text(r, 0), expected));
}

/* ---- What is sent --------------------------------------------------------------------------------------- */

TEST_BOTH_WAYS(pg_tags, go_behind_the_statement_in_order)
{
	expect_sent(TAGS("traceparent", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", "route",
	                 "/albums", "request_id", "7f3a"),
	            " /*request_id='7f3a',route='%2Falbums',"
	            "traceparent='00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01'*/");
	expect_sent(TAGS("b", "2", "a", "1", "ab", "3"), " /*a='1',ab='3',b='2'*/");
}

Test(pg_tags, no_tags_leave_the_text_alone)
{
	expect_sent((const char *[]){NULL}, "");
	expect_sent(NULL, "");
	expect_sent(TAGS("a", NULL), "");
	expect_sent(TAGS("", "1"), "");
}

Test(pg_tags, a_key_keeps_its_first_value)
{
	expect_sent(TAGS("a", "2", "a", "1", "a", "3"), " /*a='2'*/");
	expect_sent(TAGS("a", "", "ab", "", "a", "1"), " /*a='',ab=''*/");
}

Test(pg_tags, nothing_in_them_ends_the_comment)
{
	expect_sent(TAGS("a", "*/; DROP TABLE album; --"),
	            " /*a='%2A%2F%3B%20DROP%20TABLE%20album%3B%20--'*/");
	expect_sent(TAGS("a", "'*/"), " /*a='%27%2A%2F'*/");
	expect_sent(TAGS("a", "/*/*"), " /*a='%2F%2A%2F%2A'*/");
	expect_sent(TAGS("a'*/", "1", "a,b=", "2"), " /*a%27%2A%2F='1',a%2Cb%3D='2'*/");
	expect_sent(TAGS("a", "\\\n\r\t\"$$%27"), " /*a='%5C%0A%0D%09%22%24%24%2527'*/");
	expect_sent(TAGS("a", "\xff\xc3(\x80"), " /*a='%FF%C3%28%80'*/");
	expect_sent(TAGS("a", "é"), " /*a='%C3%A9'*/");
	expect_sent(TAGS("a", "AZaz09-._~"), " /*a='AZaz09-._~'*/");
}

/* Every byte there is, as a value and as a key, is harmless or escaped. */
Test(pg_tags, each_byte_is_safe)
{
	for (int byte = 1; byte < 256; byte++) {
		char text[] = {(char)byte, '\0'}, escaped[4], comment[32];
		bool plain = byte < 128 && strchr("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
		                                  "0123456789-._~",
		                                  byte);
		snprintf(escaped, sizeof(escaped), plain ? "%c" : "%%%02X", byte);
		snprintf(comment, sizeof(comment), " /*%s='%s'*/", escaped, escaped);
		expect_sent(TAGS(text, text), comment);
	}
}

/* A tag goes in whole or not at all: a cut one would name something else. */
Test(pg_tags, are_bounded)
{
	char fits[1001], escaped[1001], comment[1100];
	memset(fits, 'x', sizeof(fits));
	fits[1000 - strlen("long='',")] = '\0';
	snprintf(comment, sizeof(comment), " /*long='%s'*/", fits);
	expect_sent(TAGS("long", fits), comment);
	expect_sent(TAGS("long", fits, "more", "", "a", "1"), comment);
	fits[strlen(fits) - strlen("a='1',")] = '\0';
	snprintf(comment, sizeof(comment), " /*a='1',long='%s'*/", fits);
	expect_sent(TAGS("long", fits, "a", "1"), comment);
	expect_sent(TAGS("a", "1", "longer", fits), " /*a='1'*/");

	memset(escaped, '*', sizeof(escaped));
	escaped[1000] = '\0';
	expect_sent(TAGS("long", escaped, "a", "1"), " /*a='1'*/");
	expect_sent(TAGS(escaped, "long"), "");
	char *huge = malloc(10000001);
	memset(huge, '\'', 10000000);
	huge[10000000] = '\0';
	expect_sent(TAGS("huge", huge, "a", "1", huge, "1"), " /*a='1'*/");
	free(huge);
}

/* ---- Statements that are not well-formed ------------------------------------------------------------------ */

/*
 * A statement that ends in the midst of a string has the comment in that string, and its quotes would be the string's;
 * but they come in pairs. It is the syntax error that it was, whatever the tags.
 */
Test(pg_tags, a_statement_that_is_broken_off_stays_so)
{
	static const char *const broken[] = {
		"SELECT 'x",   "SELECT E'x\\", "SELECT \"x", "SELECT $$x",
		"SELECT $a$x", "SELECT /* x",  "SELECT 1 +",
	};
	ctx_auto *c = with_tags(TAGS("a", "x", "b", "*/ 'x", "c", "1"));
	for (size_t i = 0; i < sizeof(broken) / sizeof(*broken); i++)
		expect_error(pg_query_row(c, t->pool, broken[i], PG_NO_PARAMS), PG_ERROR_SERVER, "42601");
	cr_expect(eq(u64, stats_of(t).connects, 1));
}

Test(pg_tags, errors_are_what_they_are_without)
{
	ctx_auto *c = with_tags(TAGS("a", "1"));
	expect_error(pg_query_row(c, t->pool, "SELECT 1; SELECT 2", PG_NO_PARAMS), PG_ERROR_USAGE, "42601");
	expect_error(pg_query_row(c, t->pool, "SELECT 1 / 0", PG_NO_PARAMS), PG_ERROR_SERVER, "22012");
	expect_error(pg_query_row(c, t->pool, "SELECT 1 WHERE false", PG_NO_PARAMS), PG_ERROR_NO_ROWS, "");
	pg_rows *r = pg_query_row(c, t->pool, "SELEC 1", PG_NO_PARAMS);
	cr_expect(eq(str, (char *)pg_rows_error(r)->message, "syntax error at or near \"SELEC\""));
	expect_error(r, PG_ERROR_SERVER, "42601");
}

Test(pg_tags, a_comment_a_semicolon_or_nothing_may_come_before)
{
	static const char *const texts[] = {"SELECT 1 -- one", "SELECT 1;", "SELECT 1 /* one */", ""};
	ctx_auto *c = with_tags(TAGS("a", "1"));
	for (size_t i = 0; i < sizeof(texts) / sizeof(*texts); i++) {
		pg_rows_auto *r = pg_exec(c, t->pool, texts[i], PG_NO_PARAMS);
		cr_expect_null(pg_rows_error(r), "%s: %s", texts[i],
		               pg_rows_error(r) ? pg_rows_error(r)->message : "");
	}
}

/* ---- Which statements ------------------------------------------------------------------------------------- */

static char *sent_in_copy(pg_copy *copy)
{
	const char *data;
	size_t size;
	cr_assert(pg_copy_read(copy, &data, &size), "%s", pg_copy_error(copy)->message);
	char *text = strndup(data, size - strlen("\n"));
	cr_expect_not(pg_copy_read(copy, &data, &size));
	cr_expect_null(pg_copy_error(copy));
	pg_copy_close(copy);
	return text;
}

TEST_BOTH_WAYS(pg_tags, are_on_every_kind_of_statement)
{
	static const char sql[] = "SELECT current_query(), $1::text FROM generate_series(1, 300)";
	static const char copy_sql[] = "COPY (SELECT current_query()) TO STDOUT";
	ctx_auto *c = with_tags(TAGS("a", "1"));
	pg_rows *r = pg_query(c, t->pool, sql, PG_PARAMS("x"));
	int rows = 0;
	for (; pg_rows_next(r); rows++) {
		cr_expect(eq(int, strcmp(pg_rows_text(r, 0) + strlen(sql), " /*a='1'*/"), 0));
		cr_expect(eq(str, (char *)pg_rows_text(r, 1), "x"));
	}
	cr_expect(eq(int, rows, 300));
	pg_rows_close(r);

	char *copied = sent_in_copy(pg_copy_out(c, t->pool, copy_sql));
	cr_expect(eq(str, copied, "COPY (SELECT current_query()) TO STDOUT /*a='1'*/"));
	free(copied);

	pg_tx *tx = pg_begin(c, t->pool, NULL);
	cr_expect(backends_become(t, "idle in transaction", "BEGIN", 1), "that one needs none");
	r = pg_query_row(c, tx, "SELECT current_query()", PG_NO_PARAMS);
	cr_expect(eq(str, (char *)pg_rows_text(r, 0), "SELECT current_query() /*a='1'*/"));
	pg_rows_close(r);
	r = pg_query_row(ctx_background(), tx, "SELECT current_query()", PG_NO_PARAMS);
	cr_expect(eq(str, (char *)pg_rows_text(r, 0), "SELECT current_query()"), "each has its own context");
	pg_rows_close(r);
	cr_expect(pg_commit(tx));
	pg_rollback(tx);
}

Test(pg_tags, a_copy_in_is_seen_with_them)
{
	scratch s;
	scratch_make(&s, t, "id int");
	ctx_auto *c = with_tags(TAGS("a", "1"));
	pg_copy *copy = pg_copy_in(c, t->pool, scratch_sql(&s, "COPY @ FROM STDIN"));
	cr_expect(backends_become(t, "active", "COPY % FROM STDIN /*a='1'*/", 1));
	cr_expect(pg_copy_write(copy, "7\n", 2) && pg_copy_finish(copy));
	cr_expect(eq(u64, pg_copy_rows(copy), 1));
	pg_copy_close(copy);
	scratch_drop(&s);
}

static char heard[256];

static void hear(const pg_query_event *event, void *data)
{
	(void)data;
	if (event->state == PG_QUERY_RUNNING)
		snprintf(heard, sizeof(heard), "%s", event->sql);
}

/* The program's own log groups statements by their text. */
Test(pg_tags, on_query_tells_the_text_as_it_was_given)
{
	test_pool *told = test_pool_open(1, &(pg_pool_options){.tag = give_tags, .on_query = hear});
	ctx_auto *c = with_tags(TAGS("a", "1"));
	pg_rows_close(pg_exec(c, told->pool, "SELECT 5", PG_NO_PARAMS));
	cr_expect(eq(str, heard, "SELECT 5"));
	test_pool_close(told);
}

/* ---- What it costs, and what not ---------------------------------------------------------------------------- */

static int64_t prepared(pg_conn *session)
{
	int64_t count = -1;
	pg_rows_auto *r = pg_query_row(ctx_background(), session,
	                               "SELECT count(*) FROM pg_prepared_statements", PG_NO_PARAMS);
	pg_rows_int64(r, 0, &count);
	return count;
}

/* Texts that differ each time would push out those that are worth remembering. */
Test(pg_tags, nothing_is_remembered_of_a_statement_that_has_them)
{
	pg_conn *session = pg_conn_acquire(ctx_background(), t->pool);
	pg_rows_close(pg_exec(ctx_background(), session, "SELECT 'prepared'", PG_NO_PARAMS));
	cr_assert(eq(i64, prepared(session), 2));
	for (int i = 0; i < 600; i++) {
		char id[16];
		snprintf(id, sizeof(id), "%d", i);
		ctx_auto *c = with_tags(TAGS("request_id", id));
		pg_rows_auto *r = pg_query_row(c, session, "SELECT 'prepared'", PG_NO_PARAMS);
		cr_assert_null(pg_rows_error(r));
	}
	cr_expect(eq(i64, prepared(session), 2), "what has no tags is prepared, what has them is not");
	pg_conn_release(session);
}

/* pg_stat_statements counts by what a statement means. */
Test(pg_tags, statistics_see_one_statement)
{
	if (ask_number(t, "SELECT count(*) FROM pg_available_extensions WHERE name = 'pg_stat_statements'") !=
	    1)
		cr_skip_test("the server has no pg_stat_statements");
	private_db *db = private_db_start(&(private_db_options){
		.empty = true,
		.settings = (const char *const[]){"shared_preload_libraries=pg_stat_statements", NULL}});
	cr_assert_not_null(db);
	test_pool *counted =
		test_pool_open(1, &(pg_pool_options){.conninfo = private_db_url(db), .tag = give_tags});
	must_exec(counted, "CREATE EXTENSION pg_stat_statements");
	ctx_auto *first = with_tags(TAGS("request_id", "1")), *second = with_tags(TAGS("request_id", "2"));
	pg_rows_close(pg_exec(first, counted->pool, "SELECT 'counted', $1::int", PG_PARAMS("1")));
	pg_rows_close(pg_exec(second, counted->pool, "SELECT 'counted', $1::int", PG_PARAMS("2")));
	pg_rows_close(pg_exec(ctx_background(), counted->pool, "SELECT 'counted', $1::int", PG_PARAMS("3")));
	pg_rows_auto *r = pg_query_row(
		ctx_background(), counted->pool,
		"SELECT count(*), sum(calls) FROM pg_stat_statements WHERE query LIKE '%counted%'"
		" OR query LIKE 'SELECT $_, $_::int%'",
		PG_NO_PARAMS);
	cr_assert_null(pg_rows_error(r), "%s", pg_rows_error(r) ? pg_rows_error(r)->message : "");
	cr_expect(eq(str, (char *)pg_rows_text(r, 0), "1"));
	cr_expect(eq(str, (char *)pg_rows_text(r, 1), "3"));
	test_pool_close(counted);
	private_db_stop(db);
}

/* ---- Ends ----------------------------------------------------------------------------------------------------- */

TEST_BOTH_WAYS(pg_tags, a_cancel_stops_it_and_keeps_the_connection)
{
	int64_t pid = backend_of_pool(t);
	ctx_auto *tagged = with_tags(TAGS("a", "1"));
	ctx_auto *c = ctx_with_timeout(tagged, 100 * CTX_MILLISECOND);
	expect_error(pg_query(c, t->pool, "SELECT pg_sleep(60)", PG_NO_PARAMS), PG_ERROR_DEADLINE, "");
	cr_expect(settled_become(t, 1));
	cr_expect(backends_become(t, "active", "%pg_sleep%", 0));
	cr_expect(eq(int, t->kept, 1));
	cr_expect(eq(i64, backend_of_pool(t), pid));
}

Test(pg_tags, out_of_memory_is_told_and_costs_no_connection)
{
	ctx_auto *c = with_tags(TAGS("a", "1"));
	must_exec(t, "SELECT 1");
	bool failed = true;
	for (unsigned n = 1; failed && n < 20; n++) {
		fault_set(FAULT_MEMORY, n);
		pg_rows_auto *r = pg_exec(c, t->pool, "SELECT 1", PG_NO_PARAMS);
		failed = fault_clear(FAULT_MEMORY);
		cr_expect(eq(int, pg_rows_error(r) && pg_rows_error(r)->kind == PG_ERROR_MEMORY, failed),
		          "allocation %u", n);
	}
	cr_expect_not(failed);
	for (unsigned n = 1; n < 3; n++) {
		fault_set(FAULT_MEMORY, n);
		pg_copy_auto *copy = pg_copy_out(c, t->pool, "COPY (SELECT 1) TO STDOUT");
		cr_expect(fault_clear(FAULT_MEMORY));
		cr_assert_not_null(pg_copy_error(copy));
		cr_expect(eq(int, pg_copy_error(copy)->kind, PG_ERROR_MEMORY));
	}
	cr_expect(pool_at_rest(t));
	cr_expect(eq(u64, stats_of(t).connects, 1));
}
