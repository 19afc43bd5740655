/*
 * Statements: prepared once for each connection, found again by their text.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "pg_priv.h"

/* Texts remembered by a connection; past that the one not used for longest is dropped. */
enum { STATEMENTS_MAX = 256 };

#define BUCKETS (sizeof((conn){0}.statements.buckets) / sizeof(statement *))

/* FNV-1a. Texts are the program's own, not an attacker's. */
static uint64_t text_hash(const char *text)
{
	uint64_t hash = 0xcbf29ce484222325;
	for (; *text; text++)
		hash = (hash ^ (unsigned char)*text) * 0x100000001b3;
	return hash;
}

static void unlink_use(conn *cn, statement *st)
{
	*(st->newer ? &st->newer->older : &cn->statements.newest) = st->older;
	*(st->older ? &st->older->newer : &cn->statements.oldest) = st->newer;
}

static void link_newest(conn *cn, statement *st)
{
	st->newer = NULL;
	st->older = cn->statements.newest;
	*(st->older ? &st->older->newer : &cn->statements.oldest) = st;
	cn->statements.newest = st;
}

static statement *find(conn *cn, const char *sql, uint64_t hash)
{
	statement *st = cn->statements.buckets[hash % BUCKETS];
	while (st && (st->hash != hash || strcmp(st->text, sql) != 0))
		st = st->bucket_next;
	return st;
}

void statement_forget(conn *cn, statement *st)
{
	statement **at = &cn->statements.buckets[st->hash % BUCKETS];
	while (*at != st)
		at = &(*at)->bucket_next;
	*at = st->bucket_next;
	unlink_use(cn, st);
	cn->statements.count--;
	free(st);
}

void statements_free(conn *cn)
{
	while (cn->statements.newest)
		statement_forget(cn, cn->statements.newest);
}

static statement *statement_new(conn *cn, const char *sql, uint64_t hash)
{
	size_t size = strlen(sql) + 1;
	statement *st = malloc(sizeof(*st) + size);
	if (!st)
		return NULL;
	memcpy(st->text, sql, size);
	st->hash = hash;
	st->proven = false;
	/* Behind a pooler that does not keep track, another's statement of the same name would be run for ours. */
	if (cn->direct)
		snprintf(st->name, sizeof(st->name), "s%u", ++cn->statements.named);
	else
		snprintf(st->name, sizeof(st->name), "s%u_%08x", ++cn->statements.named,
		         (unsigned)PQbackendPID(cn->pg));
	return st;
}

#ifdef LIBPQ_HAS_CLOSE_PREPARED

/* By the protocol's own message, of which poolers keep track. */
static bool drop_named(ctx *c, conn *cn, const char *name, pg_error *error)
{
	if (!PQsendClosePrepared(cn->pg, name)) {
		error_from_conn(error, cn->pg);
		return false;
	}
	conn_flush(cn);
	return conn_collect(c, cn, error, NULL);
}

#else

static bool drop_named(ctx *c, conn *cn, const char *name, pg_error *error)
{
	char sql[40];
	snprintf(sql, sizeof(sql), "DEALLOCATE %s", name);
	return conn_command(c, cn, sql, error, NULL);
}

#endif

/* false: the connection must not go on, *error says why. */
static bool drop_oldest(ctx *c, conn *cn, pg_error *error)
{
	char name[sizeof(cn->statements.oldest->name)];
	memcpy(name, cn->statements.oldest->name, sizeof(name));
	statement_forget(cn, cn->statements.oldest);
	/* If the server has forgotten it too, by someone's DEALLOCATE ALL, so much the better. */
	return drop_named(c, cn, name, error) ||
	       (error->kind == PG_ERROR_SERVER && PQtransactionStatus(cn->pg) == PQTRANS_IDLE);
}

statement *statement_get(ctx *c, conn *cn, const char *sql, pg_error *error)
{
	uint64_t hash = text_hash(sql);
	statement *st = find(cn, sql, hash);
	if (st) {
		if (st != cn->statements.newest) {
			unlink_use(cn, st);
			link_newest(cn, st);
		}
		return st;
	}
	if (cn->statements.count >= STATEMENTS_MAX && !drop_oldest(c, cn, error))
		return NULL;
	st = statement_new(cn, sql, hash);
	if (!st) {
		error_set(error, PG_ERROR_MEMORY, "out of memory");
		return NULL;
	}
	if (!PQsendPrepare(cn->pg, st->name, sql, 0, NULL)) {
		error_from_conn(error, cn->pg);
		free(st);
		return NULL;
	}
	conn_flush(cn);
	if (!conn_collect(c, cn, error, NULL)) {
		free(st);
		return NULL;
	}
	st->bucket_next = cn->statements.buckets[hash % BUCKETS];
	cn->statements.buckets[hash % BUCKETS] = st;
	cn->statements.count++;
	link_newest(cn, st);
	return st;
}
