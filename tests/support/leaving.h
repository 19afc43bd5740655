/*
 * What must be so when a client of albumd leaves: the steps that the programs share which try it in their several ways.
 *
 *	leaving l = leaving_now(s);            its query runs
 *	client_close(c);
 *	stopped[i] = leaving_cancels(&l, target);
 *	…                                      the next request
 *	leaving_keeps(&l);
 *	…
 *	expect_in_time(stopped);               after ATTEMPTS of them
 *
 * The service has a pool of one. As uploads.h all in a header.
 */
#ifndef TESTS_LEAVING_H
#define TESTS_LEAVING_H

#include <criterion/criterion.h>
#include <criterion/new/assert.h>

#include "service.h"
#include "support.h"

enum { PROMISED_MS = 50, ATTEMPTS = 3 }; /* from the client's end to PostgreSQL's */

typedef struct leaving {
	const service *s;
	pid_t backend;
	int64_t since_ns;
} leaving;

static inline leaving leaving_now(const service *s)
{
	cr_assert(service_runs(s, 1, 20000), "the query did not run");
	pid_t backend = service_backend(s);
	return (leaving){.s = s, .backend = backend, .since_ns = service_now()};
}

/* The milliseconds until PostgreSQL had stopped. */
static inline double leaving_cancels(const leaving *l, const char *target)
{
	double stopped = service_cancelled_ms(l->s, target, l->since_ns, l->backend);
	cr_expect(stopped >= 0, "%s was not cancelled as it should be", target);
	return stopped;
}

/* What came next was served on the same connection to PostgreSQL. */
static inline void leaving_keeps(const leaving *l)
{
	cr_expect(eq(int, service_backend(l->s), l->backend), "the connection was not kept");
	cr_expect(eq(int, (int)service_metric(l->s, "db_pool_connects_total"), 1));
}

/* The figure is of an unloaded machine, and others may be at work on this one: the best of a few counts. */
static inline void expect_in_time(const double stopped[ATTEMPTS])
{
	double best = stopped[0];
	for (int i = 1; i < ATTEMPTS; i++)
		best = stopped[i] < best ? stopped[i] : best;
	cr_expect(best >= 0 && best <= PROMISED_MS * support_patience(),
	          "PostgreSQL stopped after %.1f ms at best", best);
}

#endif
