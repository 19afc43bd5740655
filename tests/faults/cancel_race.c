/*
 * A cancel that races the natural end of its query. What it must never do is hit the next query of that
 * connection: another client's, who would be told that his query was cancelled when he cancelled nothing.
 */
#include <criterion/criterion.h>
#include <criterion/new/assert.h>
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include "client.h"
#include "service.h"
#include "support.h"

enum { ROUNDS = 2000, STEP_US = 50, JITTER_US = 400 };

typedef struct innocent {
	int port;
	atomic_bool stop;
	int answers, wrong, status;
} innocent;

/* Asks again and again over one connection, and leaves nothing: each of its answers must be a 200. */
static void *ask_on(void *arg)
{
	innocent *self = arg;
	client *c = client_connect(self->port);
	reply r;

	while (c && !atomic_load(&self->stop)) {
		if (!client_send_get(c, "/albums?delay=500us") || !client_receive(c, &r, 20000)) {
			self->wrong++;
			break;
		}
		self->answers++;
		if (r.status != 200) {
			self->wrong++;
			self->status = r.status;
		}
		reply_free(&r);
	}
	client_close(c);
	return NULL;
}

Test(cancel_race, hits_nobody_else, .timeout = 600)
{
	service *s = service_start((const char *const[]){"--pool-size", "2", NULL});
	innocent other = {.port = s->port};
	pthread_t thread;
	unsigned int random = 1;
	int finished = 0, leave_us = 3000;

	cr_assert(eq(int, pthread_create(&thread, NULL, ask_on, &other), 0));
	for (int i = 0; i < ROUNDS; i++) {
		client *c = client_connect(s->port);
		int us = leave_us + rand_r(&random) % JITTER_US;
		struct timespec until_then = {.tv_nsec = us * 1000L};
		struct pollfd answered = {.fd = client_fd(c), .events = POLLIN};
		bool in_time = false;
		reply r;

		cr_assert(client_send_get(c, "/albums?delay=1ms"));
		if (ppoll(&answered, 1, &until_then, NULL) == 1 && client_poll(c, &r) == 1) {
			cr_expect(eq(int, r.status, 200));
			in_time = true;
			reply_free(&r);
		}
		client_close(c);
		/* However fast this machine is: half of them leave too late. */
		finished += in_time;
		leave_us += in_time ? -STEP_US : leave_us < 900000 ? STEP_US : 0;
		leave_us = leave_us < 0 ? 0 : leave_us;
	}
	atomic_store(&other.stop, true);
	pthread_join(thread, NULL);
	cr_expect(eq(int, other.wrong, 0), "an innocent got %d", other.status);
	cr_expect(other.answers > 100);
	/* Of both kinds there must have been enough for this to have been a race. */
	int cancelled = (int)service_metric(s, "db_query_cancel_duration_seconds_count");
	cr_expect(finished > ROUNDS / 10 && cancelled > ROUNDS / 10, "%d finished, %d cancelled", finished,
	          cancelled);
	cr_expect(service_runs(s, 0, 1000));
	fprintf(stderr,
	        "%d rounds: %d finished, %d cancelled in PostgreSQL, %d answers to the innocent, %d "
	        "wrong\n",
	        ROUNDS, finished, cancelled, other.answers, other.wrong);
	cr_expect(eq(int, service_stop(s), 0));
}
