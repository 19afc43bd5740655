/*
 * A stand-in for PostgreSQL that misbehaves as told: it speaks just enough of the protocol (version 3, extended
 * and simple) for lib/pg to connect, run statements and cancel them.
 *
 * The statement "hang" runs until it is cancelled; any other succeeds at once without rows.
 */
#ifndef TESTS_PG_STUB_H
#define TESTS_PG_STUB_H

#include <stdbool.h>
#include <stddef.h>

typedef enum pg_stub_fault {
	STUB_HEALTHY,
	STUB_NO_READY,        /* a cancelled statement's error comes, its ReadyForQuery never */
	STUB_ERROR_LATE,      /* both come 200 ms after the cancel */
	STUB_LINK_STAYS_OPEN, /* a cancel is carried out, its link is not closed */
	STUB_LINK_RESET,      /* a cancel is carried out, its link is reset */
	STUB_NO_FENCE,        /* the empty round trip is not answered */
	STUB_FENCE_CANCELED,  /* the first two empty round trips are answered as cancelled */
	STUB_DIES,            /* on a cancel it dies in the midst of a message */
	STUB_DEAF,            /* it takes cancels and does nothing */
	STUB_DEAF_AT_FIRST,   /* it does nothing for the first three cancels of each statement */
	STUB_ENDS_ITSELF,     /* the statement ends by itself 50 ms after it began */
	STUB_NO_COMMIT,       /* it dies on COMMIT */
	STUB_POOLER,          /* the process that serves is not the one whose number was given */
} pg_stub_fault;

typedef struct pg_stub pg_stub;

/* Listens on 127.0.0.1; a thread serves each connection. Aborts on failure. */
pg_stub *pg_stub_start(pg_stub_fault fault);

/* Lives as long as the stand-in. */
const char *pg_stub_conninfo(const pg_stub *s);

/* From now on it behaves so. */
void pg_stub_set(pg_stub *s, pg_stub_fault fault);

/* How many cancels have come, on links and as statements; sessions now open; statements other than "hang" so far. */
int pg_stub_cancels(const pg_stub *s);
int pg_stub_sessions(const pg_stub *s);
int pg_stub_statements(const pg_stub *s);

/* Sends these bytes on every connection, unasked. */
void pg_stub_send(pg_stub *s, const void *bytes, size_t size);

/* Closes all connections and ends. */
void pg_stub_stop(pg_stub *s);

#endif
