/*
 * Leases: drawn in pg_priv.h. Entering and leaving is one atomic step each, since a stream of rows does it
 * for every row. Taking happens under the pool's mutex, so that who finds the lease taken learns under the
 * same mutex all there is to know about it.
 */
#include "pg_priv.h"

void lease_begin(lease *l, conn *cn)
{
	l->pool = cn->pool;
	l->conn = cn;
	l->session = NULL;
	l->settling = l->taken = false;
	atomic_store(&l->use, LEASE_IN_CALL);
}

int lease_enter(lease *l)
{
	int was = LEASE_QUIET;
	atomic_compare_exchange_strong(&l->use, &was, LEASE_IN_CALL);
	return was;
}

/* Once: a pinned session's may have settled, and be QUIET again, before all who saw the context's end have called. */
bool lease_take(lease *l, ctx *c)
{
	int was = LEASE_QUIET;
	pool_lock(l->pool);
	if (!l->taken && atomic_compare_exchange_strong(&l->use, &was, LEASE_TAKEN)) {
		l->taken = true;
		l->conn->session = l->session;
		l->settling = conn_return_locked(l->conn, c);
	}
	bool taken = l->taken || was == LEASE_TAKEN;
	pool_unlock(l->pool);
	return taken;
}

void lease_leave(lease *l, ctx *c)
{
	atomic_store(&l->use, LEASE_QUIET);
	/* Its hook may have come while we were in the call, and gone. */
	if (ctx_err(c))
		lease_take(l, c);
}

bool lease_end(lease *l, ctx *c)
{
	conn *cn = l->conn;
	atomic_store(&l->use, LEASE_TAKEN);
	return conn_return(cn, c);
}

bool lease_is_settling(lease *l)
{
	pool_lock(l->pool);
	bool settling = l->settling && atomic_load(&l->use) == LEASE_TAKEN;
	pool_unlock(l->pool);
	return settling;
}

bool lease_was_settling(lease *l)
{
	if (!l->pool)
		return false; /* it never began */
	pool_lock(l->pool);
	bool settling = l->settling;
	l->settling = false;
	pool_unlock(l->pool);
	return settling;
}
