/*
 * Errands: libpq calls that block, each on a thread of its own that can be left to its end.
 *
 * PQconnectdb may sit in a name lookup, PQcancel of libpq before 17 on a server that says nothing, and
 * nothing ends either early. What can be ended is the waiting for it. Not on libuv's threads: there are four
 * for the whole process, and four hung servers would take them all.
 */
#include <signal.h>

#include "pg_priv.h"

/* Threads left behind that have not come to their end; past that many no errand is begun. */
enum { LEFT_MAX = 64 };
static atomic_int left;

enum { RUNNING, DONE, LEFT };

static void *errand_main(void *arg)
{
	errand *e = arg;
	e->work(e);
	if (atomic_exchange(&e->state, DONE) == LEFT) {
		e->discard(e);
		atomic_fetch_sub(&left, 1);
	} else {
		wait_event_set(&e->done);
	}
	return NULL;
}

int thread_start(pthread_t *thread, const pthread_attr_t *attributes, void *(*fn)(void *arg), void *arg)
{
	sigset_t all, before;
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &before);
	int error = pthread_create(thread, attributes, fn, arg);
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	return error;
}

static bool start_detached(errand *e)
{
	pthread_attr_t attributes;
	pthread_t thread;
	if (pthread_attr_init(&attributes) != 0)
		return false;
	pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
	int error = thread_start(&thread, &attributes, errand_main, e);
	pthread_attr_destroy(&attributes);
	return error == 0;
}

bool errand_run(ctx *c, errand *e)
{
	atomic_init(&e->state, RUNNING);
	e->done = (wait_event)WAIT_EVENT_INIT;
	if (atomic_load(&left) >= LEFT_MAX || !start_detached(e)) {
		e->discard(e);
		return false;
	}
	if (wait_event_wait(c, &e->done) == 0)
		return true;
	atomic_fetch_add(&left, 1);
	int was = RUNNING;
	if (atomic_compare_exchange_strong(&e->state, &was, LEFT))
		return false;
	atomic_fetch_sub(&left, 1);
	wait_event_wait(NULL, &e->done); /* it ended just now */
	return true;
}
