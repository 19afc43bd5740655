/*
 * A pool of workers that stops: four threads take jobs from a queue until there are none, or until the first job
 * fails, which cancels the others with its error as the cause.
 *
 *	ctx_workers [N]		job N fails (none)
 */
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>

#include <tether/ctx.h>

enum { WORKERS = 4, JOBS = 100 };

static const ctx_error JOB_FAILED = {1, "a job failed"};

typedef struct pool {
	ctx *c;
	atomic_int next, done;
	int failing;
} pool;

/* A job is a millisecond of waiting, which the end of the pool's context cuts short. */
static bool do_job(pool *p, int job)
{
	ctx_auto *c = ctx_with_timeout(p->c, CTX_MILLISECOND);

	if (!c || job == p->failing)
		return false;
	ctx_wait(c);
	return true;
}

static void *work(void *arg)
{
	pool *p = arg;
	int job;

	while (!ctx_err(p->c) && (job = atomic_fetch_add(&p->next, 1)) < JOBS) {
		if (do_job(p, job))
			atomic_fetch_add(&p->done, 1);
		else
			ctx_cancel_cause(p->c, &JOB_FAILED);
	}
	return NULL;
}

int main(int argc, char **argv)
{
	ctx_auto *c = ctx_with_cancel(ctx_background());
	pool p = {.c = c, .failing = argc > 1 ? (int)strtol(argv[1], NULL, 10) : -1};
	pthread_t threads[WORKERS];
	int started = 0;

	if (!c) {
		perror("ctx_with_cancel");
		return 1;
	}
	while (started < WORKERS && pthread_create(&threads[started], NULL, work, &p) == 0)
		started++;
	for (int i = 0; i < started; i++)
		pthread_join(threads[i], NULL);

	printf("%d of %d jobs done, %s\n", p.done, JOBS,
	       ctx_cause(c) ? ctx_cause(c)->message : "nothing failed");
	return ctx_err(c) ? 2 : 0;
}
