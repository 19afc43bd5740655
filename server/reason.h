/*
 * reason.h — why a request was not answered as asked: the one place where what went wrong becomes a status, a
 * sentence for the client, and a word for log and metrics.
 */
#ifndef ALBUMD_REASON_H
#define ALBUMD_REASON_H

#include <tether/ctx.h>
#include <tether/pg.h>

typedef enum reason {
	REASON_NONE,
	REASON_DEADLINE,
	REASON_CLIENT_DISCONNECT,
	REASON_SATURATED,
	REASON_DB_DOWN,
	REASON_SHUTDOWN,
	REASON_OPERATOR,
	REASON_UNAUTHORIZED,
	REASON_NOT_FOUND,
	REASON_INVALID,
	REASON_ERROR,
	REASONS,
} reason;

typedef struct reason_answer {
	const char *name;
	int status;
	bool retry; /* with a Retry-After: it is worth trying again, and soon */
	const char *detail;
} reason_answer;
extern const reason_answer reason_answers[REASONS];

/* The cause of a request that somebody cancelled by hand: REASON_OPERATOR. */
extern const ctx_error OPERATOR_CANCELED;

reason reason_of_error(const pg_error *error);

/* REASON_NONE for a NULL cause, REASON_ERROR for one that is none of ours. */
reason reason_of_cause(const ctx_error *cause);

#endif
