/*
 * Homes: with which loop a connection's socket is registered.
 *
 * A loop that waits for the same socket again and again keeps it registered (wait_fd_keep), so that a query
 * costs no epoll_ctl. Only that loop's thread can take the registration back, and until it has, the
 * descriptor must not be closed. Anything else may be done with the connection meanwhile: who borrows it on
 * another loop or thread just waits there without keeping, at a few system calls more. So a registration is
 * never waited for by anyone but the close, and a connection moves to where it is used as it comes:
 *
 *	         borrowed on a loop                     borrowed on another loop
 *	  no home ─────────────────► home ───────────────────────────────────────► home, leaving
 *	     ▲                        │ closed, or the loop ends                        │
 *	     └────────────────────────┴───── on the home's thread ◄─────────────────────┘
 */
#include <stdlib.h>

#include "pg_priv.h"

static void home_errands(loop_task *task);
static void home_exit(loop_exit *hook, loop *l);

home *home_of(pg_pool *pool, loop *l)
{
	home *h = pool->homes;
	while (h && h->loop != l)
		h = h->next;
	if (h || !(h = calloc(1, sizeof(*h))))
		return h;
	h->pool = pool;
	h->loop = l;
	h->task.fn = home_errands;
	h->exit.fn = home_exit;
	h->gone = (wait_event)WAIT_EVENT_INIT;
	h->next = pool->homes;
	pool->homes = h;
	loop_exit_add(l, &h->exit);
	return h;
}

static void home_call(home *h)
{
	if (h->called)
		return;
	h->called = true;
	loop_post_task(h->loop, &h->task);
}

/* On the home's thread. */
static void take_off(conn *cn)
{
	wait_fd_drop(cn->fd);
	cn->home = NULL;
	if (cn->state == CONN_IDLE)
		conn_move(cn, CONN_IDLE);
}

/* true: the connection has no home now. false: its home's thread will see to that. */
static bool leave_home(conn *cn)
{
	home *h = cn->home;
	if (!h)
		return true;
	if (h->loop == loop_current()) {
		if (!cn->leaving)
			take_off(cn);
	} else if (!cn->leaving) {
		cn->leaving = true;
		cn->leaving_next = h->leaving;
		h->leaving = cn;
		home_call(h);
	}
	return !cn->home;
}

void conn_adopt(conn *cn, loop *here)
{
	if (!here)
		return;
	if (!cn->home && (cn->home = home_of(cn->pool, here)))
		wait_fd_keep(cn->fd);
	else if (cn->home && cn->home->loop != here)
		leave_home(cn);
}

void conn_dispatch(conn *cn)
{
	bool closing = cn->state == CONN_CLOSED;
	if (closing && !leave_home(cn))
		return;
	cn->task.fn = closing ? conn_close_task : settle_task;
	loop_post_task(cn->pool->keeper, &cn->task);
}

/* Nobody posts to the loop any more, nothing is posted, no hook will run: the home may be freed. */
static void tell_if_gone(home *h)
{
	if (!h->loop && !h->called)
		wait_event_set(&h->gone);
}

static void release_leaving(home *h)
{
	while (h->leaving) {
		conn *cn = h->leaving;
		h->leaving = cn->leaving_next;
		cn->leaving = false;
		take_off(cn);
		if (cn->state == CONN_CLOSED)
			conn_dispatch(cn);
	}
}

/* On the home's loop: what others have asked for. */
static void home_errands(loop_task *task)
{
	home *h = container_of(task, home, task);
	pg_pool *pool = h->pool;
	pool_lock(pool);
	h->called = false;
	release_leaving(h);
	if (h->farewell && h->loop && loop_exit_remove(h->loop, &h->exit))
		h->loop = NULL;
	tell_if_gone(h);
	pool_unlock(pool);
}

/* On the home's loop, which ends: nothing may stay registered there, used or not. */
static void home_exit(loop_exit *hook, loop *l)
{
	(void)l;
	home *h = container_of(hook, home, exit);
	pg_pool *pool = h->pool;
	pool_lock(pool);
	release_leaving(h);
	while (h->idle.first)
		take_off(h->idle.first);
	for (int state = 0; state < CONN_STATES; state++) {
		for (conn *cn = pool->lists[state].first; cn; cn = cn->next) {
			if (cn->home == h)
				take_off(cn);
		}
	}
	h->loop = NULL;
	tell_if_gone(h);
	pool_unlock(pool);
}

void homes_close(pg_pool *pool)
{
	for (home *h = pool->homes; h; h = h->next) {
		pool_lock(pool);
		h->farewell = true;
		if (h->loop)
			home_call(h);
		else
			tell_if_gone(h);
		pool_unlock(pool);
		wait_event_wait(NULL, &h->gone);
	}
	/* Whoever told us held the mutex; once we have had it ourselves he has let go of it. */
	pool_lock(pool);
	pool_unlock(pool);
}
