/*
 * lib/ctx by itself, as somebody takes it away: the header in every language it promises, the symbols, the
 * pkg-config file, a program built with nothing else, and the examples.
 */
#include <criterion/criterion.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <tether/ctx.h>

#include "process.h"
#include "support.h"
#include "under.h"

enum { LIMIT_MS = 60000 };

static char directory[64];

static void make_directory(void)
{
	snprintf(directory, sizeof directory, "/tmp/ctx_standalone.XXXXXX");
	cr_assert_not_null(mkdtemp(directory));
}

static void remove_directory(void)
{
	process_run((const char *const[]){"rm", "-rf", directory, NULL}, NULL, LIMIT_MS, NULL);
}

TestSuite(ctx_standalone, .init = make_directory, .fini = remove_directory, .timeout = 300);

/* Runs a shell command with $BUILD, $SOURCE and $TMP set. Its status; *output is the caller's. */
static int shell(const char *command, char **output)
{
	char build[4200], source[4200], tmp[80];

	snprintf(build, sizeof build, "BUILD=%s", support_built(""));
	snprintf(source, sizeof source, "SOURCE=%s", support_source(""));
	snprintf(tmp, sizeof tmp, "TMP=%s", directory);
	return process_run((const char *const[]){"sh", "-euc", command, NULL},
	                   (const char *const[]){build, source, tmp, "LC_ALL=C", NULL}, LIMIT_MS, output);
}

static bool have(const char *compiler)
{
	char command[64];

	snprintf(command, sizeof command, "command -v %s >/dev/null", compiler);
	return shell(command, NULL) == 0;
}

static void succeeds(const char *command)
{
	char *output = NULL;
	int status = shell(command, &output);

	cr_assert_eq(status, 0, "%s\n%s", command, output ? output : "");
	free(output);
}

static void write_file(const char *name, const char *text)
{
	char path[128];
	FILE *f;

	snprintf(path, sizeof path, "%s/%s", directory, name);
	f = fopen(path, "w");
	cr_assert_not_null(f);
	cr_assert_geq(fputs(text, f), 0);
	cr_assert_eq(fclose(f), 0);
}

/* ---- The header and the sources ------------------------------------------------------------------------------ */

static int compile_with(const char *compiler, const char *const standards[], const char *flags,
                        const char *files)
{
	char command[1024];
	int n = 0;

	if (!have(compiler))
		return 0;
	for (; standards[n]; n++) {
		snprintf(command, sizeof command,
		         "%s -std=%s %s -fsyntax-only -Wall -Wextra -Wshadow -Werror -I\"$BUILD/include\" %s",
		         compiler, standards[n], flags, files);
		succeeds(command);
	}
	return n;
}

Test(ctx_standalone, the_header_compiles_alone_in_c_and_cpp_with_gcc_and_clang)
{
	static const char *const c[] = {"c11", "gnu11", "c17", "gnu17", NULL};
	static const char *const cpp[] = {"c++11", "c++17", "gnu++17", NULL};
	int checked = 0;

	write_file("alone.c", "#include <tether/ctx.h>\n#include <tether/ctx.h>\n"
	                      "int main(void)\n{\n\tctx_auto *c = ctx_with_cancel(ctx_background());\n"
	                      "\treturn ctx_err(c) == &CTX_CANCELED;\n}\n");
	write_file("alone.cc",
	           "#include <tether/ctx.h>\n"
	           "int main()\n{\n\tctx_auto *c = ctx_with_timeout(ctx_background(), 5 * CTX_SECOND);\n"
	           "\tctx_hook hook;\n\tctx_hook_add(c, &hook, [](ctx_hook *) {});\n"
	           "\treturn ctx_hook_remove(c, &hook) && ctx_err(c) == nullptr ? 0 : 1;\n}\n");
	checked += compile_with("gcc", c, "-Wpedantic -Wstrict-prototypes", "\"$TMP/alone.c\"");
	checked += compile_with("clang", c, "-Wpedantic -Wstrict-prototypes", "\"$TMP/alone.c\"");
	cr_assert_gt(checked, 0, "neither gcc nor clang is there");
	compile_with("g++", cpp, "-Wpedantic", "\"$TMP/alone.cc\"");
	compile_with("clang++", cpp, "-Wpedantic", "\"$TMP/alone.cc\"");
}

Test(ctx_standalone, the_sources_compile_clean_with_gcc_and_clang)
{
	static const char *const c[] = {"c11", "gnu17", NULL};
	int checked = 0;

	checked += compile_with("gcc", c, "-D_GNU_SOURCE -Wconversion -Wstrict-prototypes",
	                        "\"$SOURCE\"lib/ctx/*.c");
	checked += compile_with("clang", c, "-D_GNU_SOURCE -Wconversion -Wstrict-prototypes",
	                        "\"$SOURCE\"lib/ctx/*.c");
	cr_assert_gt(checked, 0, "neither gcc nor clang is there");
}

/* ---- The library ---------------------------------------------------------------------------------------------- */

Test(ctx_standalone, no_symbol_leaks_but_those_of_the_header)
{
	char *leaked = NULL;
	static const char *const commands[] = {
		"nm -D --defined-only \"$BUILD/libtether-ctx.so\"",
		"nm -g --defined-only \"$BUILD/libtether-ctx.a\"",
	};

	for (int i = 0; i < 2; i++) {
		char command[512];

		/* Each is in the header, and there are as many as one would think. */
		snprintf(command, sizeof command,
		         "%s | awk 'NF == 3 { print $3 }' | grep -v __odr_asan >\"$TMP/symbols\"; test $(wc "
		         "-l <\"$TMP/symbols\") -ge 29; "
		         "while read -r name; do case $name in ctx_*|CTX_*) ;; *) echo \"$name\" ;; esac; "
		         "grep -q \"[ *]$name[(;]\" \"$BUILD/include/tether/ctx.h\" || echo \"$name\"; "
		         "done <\"$TMP/symbols\"",
		         commands[i]);
		cr_assert_eq(shell(command, &leaked), 0, "%s", leaked);
		cr_assert_str_eq(leaked, "", "%s: %s", commands[i], leaked);
		free(leaked);
	}
}

Test(ctx_standalone, needs_nothing_but_libc)
{
	char *needed = NULL;

	cr_assert_eq(shell("objdump -p \"$BUILD/libtether-ctx.so\" | awk '$1 == \"NEEDED\" { print $2 }' | "
	                   "grep -v -e '^libc\\.' -e '^libpthread\\.' -e '^ld-' -e san || true",
	                   &needed),
	             0);
	cr_assert_str_eq(needed, "");
	free(needed);
}

/* A sanitizer's build of the library needs the sanitizer in the program as well. */
Test(ctx_standalone, links_with_what_pkg_config_says, .disabled = UNDER_TSAN || UNDER_ASAN)
{
	write_file("user.c",
	           "#include <tether/ctx.h>\n#include <stdio.h>\n"
	           "int main(void)\n{\n\tctx_auto *c = ctx_with_timeout(ctx_background(), CTX_MILLISECOND);\n"
	           "\tputs(ctx_wait(c)->message);\n\treturn 0;\n}\n");
	static const char *const links[] = {
		/* with the shared library */
		"PKG_CONFIG_PATH=\"$BUILD\"; export PKG_CONFIG_PATH; "
		"cc -std=c11 \"$TMP/user.c\" -o \"$TMP/user\" $(pkg-config "
		"--define-variable=includedir=\"$BUILD/include\" "
		"--define-variable=libdir=\"$BUILD\" --cflags --libs tether-ctx); LD_LIBRARY_PATH=\"$BUILD\" "
		"\"$TMP/user\"",
		/* with the static one */
		"cc -std=c11 \"$TMP/user.c\" -I\"$BUILD/include\" \"$BUILD/libtether-ctx.a\" -pthread -o "
		"\"$TMP/user\"; "
		"\"$TMP/user\"",
	};

	for (int i = 0; i < 2; i++) {
		char *output = NULL;

		cr_assert_eq(shell(links[i], &output), 0, "%s", output);
		cr_assert_str_eq(output, "context deadline exceeded");
		free(output);
	}
}

/* ---- The examples ---------------------------------------------------------------------------------------------- */

static void example_says(const char *command, int status, const char *text)
{
	char *output = NULL;

	cr_assert_eq(shell(command, &output), status, "%s", output);
	cr_assert_not_null(strstr(output, text), "%s", output);
	free(output);
}

Test(ctx_standalone, the_example_of_a_timeout_stops_in_time)
{
	example_says("\"$BUILD/examples/ctx_timeout\" 50", 0, "primes, then: context deadline exceeded");
}

Test(ctx_standalone, the_example_of_workers_stops_at_the_first_failure)
{
	example_says("\"$BUILD/examples/ctx_workers\"", 0, "100 of 100 jobs done, nothing failed");
	example_says("\"$BUILD/examples/ctx_workers\" 20", 2, "of 100 jobs done, a job failed");
}

Test(ctx_standalone, the_example_of_a_poll_loop_ends_with_its_input_or_its_time)
{
	example_says("echo line | \"$BUILD/examples/ctx_poll_loop\" 60000", 0, "line\nend of input");
	/* An input that does not end: a pipe that this shell keeps open. */
	example_says("mkfifo \"$TMP/pipe\"; exec 3<>\"$TMP/pipe\"; \"$BUILD/examples/ctx_poll_loop\" 50 <&3",
	             2, "context deadline exceeded");
}

Test(ctx_standalone, the_example_of_ctrl_c_cancels_its_tree)
{
	process *p = process_start((const char *const[]){support_built("examples/ctx_ctrl_c"), NULL}, NULL);
	char *output;

	cr_assert_not_null(p);
	cr_assert(process_wait_for(p, "6 threads wait", LIMIT_MS));
	cr_assert(process_signal(p, SIGINT));
	cr_assert_eq(process_wait(p, LIMIT_MS), 0);
	output = process_output(p);
	cr_assert_not_null(strstr(output, "WithCancel.WithCancel: interrupt signal received"), "%s", output);
	cr_assert_not_null(strstr(output, "all gone"), "%s", output);
	free(output);
	process_stop(p);
}
