#include "loops.h"

#include <stdio.h>
#include <stdlib.h>

#include "support.h"

static void must(bool ok, const char *what)
{
	if (ok)
		return;
	perror(what);
	abort();
}

typedef struct first_fiber {
	void (*fn)(void *arg);
	void *arg;
} first_fiber;

static void first_fiber_run(void *arg)
{
	first_fiber *first = arg;
	first->fn(first->arg);
	loop_stop(loop_current());
}

void in_fiber_with(const loop_options *options, void (*fn)(void *arg), void *arg)
{
	first_fiber first = {fn, arg};
	loop *l = loop_new(options);
	must(l, "loop_new");
	must(loop_spawn(l, first_fiber_run, &first) == 0, "loop_spawn");
	loop_run(l);
	loop_free(l);
}

void in_fiber(void (*fn)(void *arg), void *arg)
{
	in_fiber_with(NULL, fn, arg);
}

static void set_event(void *arg)
{
	wait_event_set(arg);
}

void let_others_run(void)
{
	wait_event others_ran = WAIT_EVENT_INIT;
	must(loop_spawn(loop_current(), set_event, &others_ran) == 0, "loop_spawn");
	wait_event_wait(NULL, &others_ran);
}

struct loop_thread {
	loop *loop;
	pthread_t thread;
};

static void *loop_thread_run(void *arg)
{
	loop_run(arg);
	return NULL;
}

loop_thread *loop_thread_start(const loop_options *options)
{
	loop_thread *t = malloc(sizeof(*t));
	must(t, "malloc");
	t->loop = loop_new(options);
	must(t->loop, "loop_new");
	must(pthread_create(&t->thread, NULL, loop_thread_run, t->loop) == 0, "pthread_create");
	return t;
}

loop *loop_thread_loop(const loop_thread *t)
{
	return t->loop;
}

void loop_thread_stop(loop_thread *t)
{
	if (!t)
		return;
	loop_stop(t->loop);
	pthread_join(t->thread, NULL);
	loop_free(t->loop);
	free(t);
}

typedef struct awaited_fibers {
	loop *loop;
	size_t n;
} awaited_fibers;

static bool has_fibers(void *arg)
{
	awaited_fibers *awaited = arg;
	return loop_fibers(awaited->loop) == awaited->n;
}

bool loop_fibers_become(loop *l, size_t n)
{
	awaited_fibers awaited = {l, n};
	return eventually(has_fibers, &awaited, 20000);
}
