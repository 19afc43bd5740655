/*
 * What fuzzing has found, or might: each target's corpus, and mutations of it, the same ones every time. The search
 * itself is `make fuzz`.
 */
#include <criterion/criterion.h>
#include <criterion/new/assert.h>
#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>

#include "process.h"
#include "support.h"

enum { SECONDS = 10, LIMIT_MS = 60000 };

static void try(const char *name)
{
	char program[64], corpus[64], seconds[32], *said = NULL;
	snprintf(program, sizeof(program), "fuzz/%s", name);
	snprintf(corpus, sizeof(corpus), "tests/fuzz/corpus/%s", name);
	snprintf(seconds, sizeof(seconds), "-seconds=%d", SECONDS);
	const char *const argv[] = {support_built(program), "-runs=20000", seconds, support_source(corpus),
	                            NULL};
	int status = process_run(argv, NULL, LIMIT_MS * support_patience(), &said);
	cr_expect(eq(int, status, 0), "%s", said ? said : "");
	free(said);
}

#define TARGETS(each)                                                                     \
	each(http_h2) each(http_requests) each(http_router) each(http_tls) each(http_url) \
		each(server_config) each(server_requests) each(server_values)

#define TEST_OF(name)                     \
	Test(fuzz, name, .timeout = 1200) \
	{                                 \
		try(#name);               \
	}
TARGETS(TEST_OF)

static int is_visible(const struct dirent *entry)
{
	return entry->d_name[0] != '.';
}

/* One without its name above would never be tried. */
Test(fuzz, every_corpus_is_tried, .timeout = 60)
{
#define NAME(name) #name,
	static const char *const tried[] = {TARGETS(NAME)};
	struct dirent **found;
	int count = scandir(support_source("tests/fuzz/corpus"), &found, is_visible, alphasort);
	cr_assert(eq(int, count, sizeof(tried) / sizeof(*tried)));
	for (int i = 0; i < count; i++) {
		cr_expect(eq(str, found[i]->d_name, (char *)tried[i]));
		free(found[i]);
	}
	free(found);
}
