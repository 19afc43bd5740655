/* PostgreSQL stopped and started again under load: 503s with Retry-After meanwhile, and then all is well by itself. */
#include <criterion/criterion.h>
#include <criterion/new/assert.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>

#include "client.h"
#include "private_db.h"
#include "service.h"
#include "support.h"

enum { CLIENTS = 4 };

typedef struct load {
	int port;
	atomic_bool stop;
	atomic_int ok, unavailable, without_retry, other, last_other;
} load;

static void *ask_on(void *arg)
{
	load *l = arg;
	client *c = client_connect(l->port);
	reply r;

	while (c && !atomic_load(&l->stop) && client_send_get(c, "/albums/1") &&
	       client_receive(c, &r, 20000)) {
		if (r.status == 200) {
			atomic_fetch_add(&l->ok, 1);
		} else if (r.status == 503) {
			char *retry = reply_header(&r, "Retry-After");

			atomic_fetch_add(&l->unavailable, 1);
			if (!retry)
				atomic_fetch_add(&l->without_retry, 1);
			free(retry);
		} else {
			atomic_fetch_add(&l->other, 1);
			atomic_store(&l->last_other, r.status);
		}
		reply_free(&r);
	}
	if (!atomic_load(&l->stop))
		atomic_fetch_add(&l->other, 1); /* the connection to albumd is no business of PostgreSQL's */
	client_close(c);
	return NULL;
}

struct growth {
	atomic_int *count;
	int from, by;
};

static bool has_grown(void *arg)
{
	struct growth *g = arg;

	return atomic_load(g->count) >= g->from + g->by;
}

static bool grows(atomic_int *count, int by, int timeout_ms)
{
	return eventually(has_grown, &(struct growth){count, atomic_load(count), by}, timeout_ms);
}

static void survive_outage(bool immediate)
{
	private_db *db = private_db_start(NULL);
	service *s = service_start_on(private_db_url(db), (const char *const[]){"--pool-size", "4", NULL});
	load l = {.port = s->port};
	pthread_t threads[CLIENTS];

	for (int i = 0; i < CLIENTS; i++)
		cr_assert(eq(int, pthread_create(&threads[i], NULL, ask_on, &l), 0));
	for (int round = 0; round < 2; round++) {
		cr_expect(grows(&l.ok, 100, 20000), "no answers while all is well");
		cr_assert(private_db_halt(db, immediate));
		cr_expect(grows(&l.unavailable, 100, 20000), "no 503s in the outage");
		cr_expect(eq(int, client_get(s->admin_port, "/readyz", NULL, 10000), 503));
		cr_assert(private_db_resume(db, NULL));
		int64_t resumed = service_now();
		cr_expect(grows(&l.ok, 100, 20000), "it has not recovered");
		fprintf(stderr, "100 answers %.0f ms after PostgreSQL was back\n",
		        (double)(service_now() - resumed) / 1e6);
		cr_expect(eq(int, client_get(s->admin_port, "/readyz", NULL, 10000), 200));
	}
	atomic_store(&l.stop, true);
	for (int i = 0; i < CLIENTS; i++)
		pthread_join(threads[i], NULL);
	cr_expect(eq(int, l.other, 0), "an answer was %d", l.last_other);
	cr_expect(eq(int, l.without_retry, 0));
	cr_expect(eq(int, service_stop(s), 0));
	private_db_stop(db);
}

Test(outage, is_survived, .timeout = 300)
{
	survive_outage(false);
}

Test(outage, by_a_crash_is_survived, .timeout = 300)
{
	survive_outage(true);
}
