/*
 * A tree of contexts that Ctrl-C cancels from the root: three children, each with two of its own, on threads that
 * wait until they are told. A second Ctrl-C kills, since ctx_cancel() gives the signal back.
 */
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <unistd.h>

#include <tether/ctx.h>

enum { CHILDREN = 3, GRANDCHILDREN = 2 };

static void *wait_until_done(void *arg)
{
	ctx *c = arg;
	char name[256];

	ctx_wait(c);
	ctx_string(c, name, sizeof name);
	printf("%s: %s\n", name, ctx_cause(c)->message);
	ctx_end(c);
	return NULL;
}

int main(void)
{
	ctx_auto *root = ctx_with_signals(ctx_background(), (int[]){SIGINT, SIGTERM}, 2);
	pthread_t threads[CHILDREN * GRANDCHILDREN];
	int n = 0;

	if (!root) {
		perror("ctx_with_signals");
		return 1;
	}
	for (int i = 0; i < CHILDREN; i++) {
		ctx *child = ctx_with_cancel(root);

		for (int j = 0; child && j < GRANDCHILDREN; j++) {
			ctx *grandchild = ctx_with_cancel(child);

			/* The thread owns its context from here on. */
			if (grandchild && pthread_create(&threads[n], NULL, wait_until_done, grandchild) == 0)
				n++;
			else
				ctx_end(grandchild);
		}
		/* Not needed here any more. The grandchildren keep it alive: released, it is not cancelled. */
		ctx_release(child);
	}
	printf("%d threads wait; press Ctrl-C, or: kill %d\n", n, (int)getpid());
	fflush(stdout);

	ctx_wait(root);
	ctx_cancel(root);
	for (int i = 0; i < n; i++)
		pthread_join(threads[i], NULL);
	printf("all gone\n");
	return 0;
}
