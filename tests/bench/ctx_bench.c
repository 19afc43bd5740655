/*
 * What the context layer costs, beside what Go's context package costs on the same machine in the same minute:
 * where a Go compiler is installed the twin in ctx_go/ runs in turns with the measures here, and the last column
 * says how many times faster this is.
 *
 * Each figure is the best of several rounds: what the code costs, on a machine that does other things too. With two
 * threads it is the time from start to end over the number of operations of both, as Go's RunParallel counts.
 */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <tether/ctx.h>

/* Rounds are short, a millisecond or two, so that on a busy machine some are undisturbed. */
enum { TURNS = 3, ROUNDS = 60, THREADS = 2 };

typedef struct measure {
	const char *name, *what;
	int64_t (*run)(int64_t n);
	int64_t n;       /* operations per round */
	double limit;    /* ns an operation may take; 0: none is set */
	double here, go; /* ns an operation took; 0: not measured */
} measure;

static ctx *parent;

/* What a loop computes has to go somewhere. */
static const void *volatile sink;

/* ---- One thread ---------------------------------------------------------------------------------------- */

static int64_t with_cancel(int64_t n)
{
	int64_t begin = ctx_now();

	for (int64_t i = 0; i < n; i++)
		ctx_end(ctx_with_cancel(ctx_background()));
	return ctx_now() - begin;
}

static int64_t with_cancel_child(int64_t n)
{
	int64_t begin = ctx_now();

	for (int64_t i = 0; i < n; i++)
		ctx_end(ctx_with_cancel(parent));
	return ctx_now() - begin;
}

static int64_t with_timeout(int64_t n)
{
	int64_t begin = ctx_now();

	for (int64_t i = 0; i < n; i++)
		ctx_end(ctx_with_timeout(ctx_background(), 5 * CTX_SECOND));
	return ctx_now() - begin;
}

static int64_t request_tree(int64_t n)
{
	int64_t begin = ctx_now();

	for (int64_t i = 0; i < n; i++) {
		ctx *request = ctx_with_cancel(ctx_background());
		ctx *query = ctx_with_timeout(request, 5 * CTX_SECOND);

		ctx_end(query);
		ctx_end(request);
	}
	return ctx_now() - begin;
}

static int64_t err(int64_t n)
{
	int64_t begin = ctx_now();

	for (int64_t i = 0; i < n; i++) {
		if (ctx_err(parent))
			abort();
	}
	return ctx_now() - begin;
}

static int64_t value_at(int depth, int64_t n)
{
	static ctx_key keys[8];
	ctx *c = ctx_retain(ctx_background());

	for (int i = 0; i < depth; i++) {
		ctx *child = ctx_with_value(c, &keys[i], &keys[i]);

		ctx_release(c);
		c = child;
	}

	int64_t begin = ctx_now();

	for (int64_t i = 0; i < n; i++)
		sink = ctx_value(c, &keys[0]);

	int64_t took = ctx_now() - begin;

	ctx_release(c);
	return took;
}

static int64_t value_1(int64_t n)
{
	return value_at(1, n);
}

static int64_t value_8(int64_t n)
{
	return value_at(8, n);
}

static int64_t cancel_1000(int64_t n)
{
	ctx *children[1000];
	int64_t least = INT64_MAX;

	for (int64_t i = 0; i < n; i++) {
		ctx *top = ctx_with_cancel(ctx_background());

		for (int child = 0; child < 1000; child++)
			children[child] = ctx_with_cancel(top);

		int64_t begin = ctx_now();

		ctx_cancel(top);

		int64_t took = ctx_now() - begin;

		if (took < least)
			least = took;
		for (int child = 0; child < 1000; child++)
			ctx_end(children[child]);
		ctx_end(top);
	}
	return least * n;
}

static void no_op(ctx_hook *h)
{
	(void)h;
}

static int64_t hook(int64_t n)
{
	int64_t begin = ctx_now();

	for (int64_t i = 0; i < n; i++) {
		ctx_hook h;

		ctx_hook_add(parent, &h, no_op);
		ctx_hook_remove(parent, &h);
	}
	return ctx_now() - begin;
}

/* What no function can be cheaper than. */
__attribute__((noinline)) static const void *nothing(const void *p)
{
	__asm__ volatile("" ::: "memory");
	return p;
}

static int64_t call(int64_t n)
{
	int64_t begin = ctx_now();

	for (int64_t i = 0; i < n; i++) {
		if (!nothing(&parent))
			abort();
	}
	return ctx_now() - begin;
}

/* ---- Two threads ----------------------------------------------------------------------------------------- */

typedef struct share {
	pthread_t thread;
	pthread_barrier_t *barrier;
	int64_t (*body)(int64_t n);
	int64_t n, begin, end;
} share;

static void *do_share(void *arg)
{
	share *s = arg;

	pthread_barrier_wait(s->barrier);
	s->begin = ctx_now();
	s->body(s->n);
	s->end = ctx_now();
	return NULL;
}

/* From when the first begins to when the last has ended. */
static int64_t shared(int64_t (*body)(int64_t n), int64_t n)
{
	pthread_barrier_t barrier;
	share shares[THREADS];
	int64_t begin = INT64_MAX, end = 0;

	pthread_barrier_init(&barrier, NULL, THREADS);
	for (int i = 0; i < THREADS; i++) {
		shares[i] = (share){.barrier = &barrier, .body = body, .n = n / THREADS};
		if (pthread_create(&shares[i].thread, NULL, do_share, &shares[i]) != 0)
			abort();
	}
	for (int i = 0; i < THREADS; i++) {
		pthread_join(shares[i].thread, NULL);
		begin = shares[i].begin < begin ? shares[i].begin : begin;
		end = shares[i].end > end ? shares[i].end : end;
	}
	pthread_barrier_destroy(&barrier);
	return end - begin;
}

static int64_t with_timeout_child(int64_t n)
{
	for (int64_t i = 0; i < n; i++)
		ctx_end(ctx_with_timeout(parent, 5 * CTX_SECOND));
	return 0;
}

static int64_t with_timeout_alone(int64_t n)
{
	int64_t begin = ctx_now();

	with_timeout_child(n);
	return ctx_now() - begin;
}

static int64_t with_timeout_shared(int64_t n)
{
	return shared(with_timeout_child, n);
}

static int64_t err_shared(int64_t n)
{
	return shared(err, n);
}

/* ---- The table -------------------------------------------------------------------------------------------- */

static measure measures[] = {
	{"with_cancel", "with_cancel + end", with_cancel, 50000, 32, 0, 0},
	{"with_cancel_child", "the same under a cancel context", with_cancel_child, 50000, 0, 0, 0},
	{"with_timeout", "with_timeout(5 s) + end", with_timeout, 30000, 118, 0, 0},
	{"with_timeout_child", "the same under a cancel context", with_timeout_alone, 30000, 0, 0, 0},
	{"with_timeout_shared", "the same, two threads under one parent", with_timeout_shared, 60000, 120, 0,
         0},
	{"request_tree", "cancel parent, timeout child, both ended", request_tree, 20000, 290, 0, 0},
	{"err", "ctx_err of a live context", err, 1000000, 1.5, 0, 0},
	{"err_shared", "the same, two threads", err_shared, 2000000, 1.5, 0, 0},
	{"value_1", "ctx_value at depth 1", value_1, 1000000, 2, 0, 0},
	{"value_8", "ctx_value at depth 8", value_8, 300000, 12, 0, 0},
	{"cancel_1000", "cancel of a parent with 1000 children", cancel_1000, 5, 18000, 0, 0},
	{"call", "for comparison: a call that does nothing", call, 1000000, 0, 0, 0},
	{"hook", "hook_add + hook_remove", hook, 100000, 25, 0, 0},
};

enum { MEASURES = sizeof measures / sizeof measures[0] };

static void keep_least(double *least, double value)
{
	if (value > 0 && (*least == 0 || value < *least))
		*least = value;
}

static void run_here(void)
{
	for (int i = 0; i < MEASURES; i++) {
		for (int round = 0; round < ROUNDS; round++)
			keep_least(&measures[i].here,
			           (double)measures[i].run(measures[i].n) / (double)measures[i].n);
	}
}

static void run_go(const char *program)
{
	char command[512], line[128], name[64];
	double ns;

	snprintf(command, sizeof command, "%s", program);

	FILE *twin = popen(command, "r");

	if (!twin)
		return;
	while (fgets(line, sizeof line, twin)) {
		if (sscanf(line, "%63s %lf", name, &ns) != 2)
			continue;
		for (int i = 0; i < MEASURES; i++) {
			if (!strcmp(measures[i].name, name))
				keep_least(&measures[i].go, ns);
		}
	}
	pclose(twin);
}

/* Where the twin's source lies: beside this file. */
static bool build_go(const char *program)
{
	const char *slash = strrchr(__FILE__, '/');
	char command[512];

	snprintf(command, sizeof command,
	         "command -v go >/dev/null && cd '%.*s/ctx_go' && GOFLAGS=-mod=mod go build -o '%s' .",
	         slash ? (int)(slash - __FILE__) : 1, slash ? __FILE__ : ".", program);
	return system(command) == 0; /* NOLINT(cert-env33-c): a benchmark, run by hand */
}

int main(void)
{
	char directory[] = "/tmp/ctx_bench.XXXXXX", program[64];
	bool made = mkdtemp(directory) != NULL;

	snprintf(program, sizeof program, "%s/twin", directory);
	bool has_go = made && build_go(program);

	parent = ctx_with_cancel(ctx_background());
	for (int turn = 0; turn < TURNS; turn++) {
		run_here();
		if (has_go)
			run_go(program);
	}
	ctx_end(parent);
	if (has_go)
		unlink(program);
	if (made)
		rmdir(directory);

	printf("%-46s %10s %10s %10s %8s\n", "contexts, ns", "here", "promised", "Go", "ratio");
	for (int i = 0; i < MEASURES; i++) {
		measure *m = &measures[i];

		printf("%-46s %10.2f", m->what, m->here);
		if (m->limit > 0)
			printf(" %10.2f", m->limit);
		else
			printf(" %10s", "");
		if (m->go > 0)
			printf(" %10.2f %7.1fx", m->go, m->go / m->here);
		printf("%s\n", m->limit > 0 && m->here > m->limit ? "   over" : "");
	}
	return 0;
}
