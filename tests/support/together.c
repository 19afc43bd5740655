#include "together.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>

typedef struct runner {
	pthread_t thread;
	pthread_barrier_t *barrier;
	void (*fn)(void *arg, int index);
	void *arg;
	int index;
} runner;

static void *run(void *arg)
{
	runner *r = arg;

	pthread_barrier_wait(r->barrier);
	r->fn(r->arg, r->index);
	return NULL;
}

void together(int n, void (*fn)(void *arg, int index), void *arg)
{
	pthread_barrier_t barrier;
	runner *runners = calloc((size_t)n, sizeof *runners);

	if (!runners || pthread_barrier_init(&barrier, NULL, (unsigned)n)) {
		perror("together");
		abort();
	}
	for (int i = 0; i < n; i++) {
		runners[i] = (runner){.barrier = &barrier, .fn = fn, .arg = arg, .index = i};
		if (pthread_create(&runners[i].thread, NULL, run, &runners[i])) {
			perror("together: pthread_create");
			abort();
		}
	}
	for (int i = 0; i < n; i++)
		pthread_join(runners[i].thread, NULL);
	pthread_barrier_destroy(&barrier);
	free(runners);
}
