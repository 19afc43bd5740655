#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "scratch.h"

const char *scratch_sql(const scratch *s, const char *sql)
{
	static char buffers[8][512];
	static unsigned next;
	char *text = buffers[next++ % 8];
	size_t n = 0;
	for (; *sql; sql++) {
		if (n + sizeof(s->table) + 2 > sizeof(buffers[0]))
			abort();
		if (*sql == '@')
			n += (size_t)sprintf(text + n, "%s", s->table);
		else
			text[n++] = *sql;
	}
	text[n] = '\0';
	return text;
}

void scratch_run(const scratch *s, const char *sql)
{
	must_exec(s->t, scratch_sql(s, sql));
}

void scratch_make(scratch *s, test_pool *t, const char *columns)
{
	static unsigned number;
	char sql[256];
	s->t = t;
	snprintf(s->table, sizeof(s->table), "scratch_%d_%u", (int)getpid(), ++number);
	snprintf(sql, sizeof(sql), "CREATE TABLE @ (%s)", columns);
	scratch_run(s, sql);
}

void scratch_drop(scratch *s)
{
	scratch_run(s, "DROP TABLE @");
}

int64_t scratch_rows(const scratch *s)
{
	return ask_number(s->t, scratch_sql(s, "SELECT count(*) FROM @"));
}
