/*
 * Being told of the end: hooks, and what is a hook underneath or rings in the same moment: ctx_wait() and
 * the descriptor for poll loops.
 */
#include "ctx_priv.h"

#include <errno.h>
#include <unistd.h>

#include <sys/eventfd.h>

/* ---- Hooks --------------------------------------------------------------- */

/*
 * A hook whose function is being called: on the caller's stack, on its node's list. The hook itself is not
 * touched from the moment its function begins, so the function may free it.
 */
struct hook_run {
	struct hook_run *next;
	const ctx_hook *hook;
	pthread_t thread;
	bool awaited;
};

/* For ctx_hook_remove() to wait for a function that runs on another thread; rare, so one for all. */
static pthread_mutex_t returned_mutex = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t returned = PTHREAD_COND_INITIALIZER;

/* Takes the lock off for the length of the call. The node is pinned: the hook may give back its last reference. */
static void run_hook_locked(struct ctx_node *n, ctx_hook *h)
{
	struct hook_run run = {n->running, h, pthread_self(), false};
	struct hook_run **at;

	n->running = &run;
	ctx_lock_release(&n->base.lock);
	h->fn_(h);
	ctx_lock_acquire(&n->base.lock);
	for (at = &n->running; *at != &run; at = &(*at)->next)
		;
	*at = run.next;
	if (run.awaited) {
		pthread_mutex_lock(&returned_mutex);
		pthread_cond_broadcast(&returned);
		pthread_mutex_unlock(&returned_mutex);
	}
}

/* The third step of a node's end, see ctx.c. */
void ctx_hooks_run(struct ctx_node *n)
{
	ctx_lock_acquire(&n->base.lock);
	while (n->hooks) {
		ctx_hook *h = ctx_container(n->hooks, ctx_hook, link_);

		ctx_ring_remove(&n->hooks, &h->link_);
		run_hook_locked(n, h);
	}
	ctx_lock_release(&n->base.lock);
}

void ctx_hook_add(ctx *c, ctx_hook *h, void (*fn)(ctx_hook *h))
{
	if (!c)
		ctx_misuse("ctx_hook_add", "the context is NULL");
	if (!h || !fn)
		ctx_misuse("ctx_hook_add", "the hook or its function is NULL");

	struct ctx_node *n = ctx_node_of(c);

	h->fn_ = fn;
	if (n == &ctx_never) {
		/* On a ring of its own, for remove() to tell the first time from the second. */
		h->link_.next = &h->link_;
		return;
	}
	ctx_lock_acquire(&n->base.lock);
	if (!ctx_node_err(n)) {
		ctx_ring_append(&n->hooks, &h->link_);
		ctx_lock_release(&n->base.lock);
		return;
	}
	h->link_.next = NULL;
	ctx_node_pin(n);
	run_hook_locked(n, h);
	ctx_lock_release(&n->base.lock);
	ctx_node_unpin(n);
}

/* Whether the function of `h` is running on a thread that is not this one. Marks it as awaited. */
static bool await_locked(struct ctx_node *n, const ctx_hook *h)
{
	for (struct hook_run *run = n->running; run; run = run->next) {
		if (run->hook == h && !pthread_equal(run->thread, pthread_self())) {
			run->awaited = true;
			return true;
		}
	}
	return false;
}

bool ctx_hook_remove(ctx *c, ctx_hook *h)
{
	if (!c)
		ctx_misuse("ctx_hook_remove", "the context is NULL");
	if (!h)
		ctx_misuse("ctx_hook_remove", "the hook is NULL");

	struct ctx_node *n = ctx_node_of(c);
	bool removed;

	if (n == &ctx_never) {
		removed = h->link_.next != NULL;
		h->link_.next = NULL;
		return removed;
	}
	ctx_lock_acquire(&n->base.lock);
	removed = h->link_.next != NULL;
	if (removed)
		ctx_ring_remove(&n->hooks, &h->link_);
	while (!removed && await_locked(n, h)) {
		/* The runner broadcasts under the mutex after it has taken the node's lock: no wake-up is lost. */
		pthread_mutex_lock(&returned_mutex);
		ctx_lock_release(&n->base.lock);
		pthread_cond_wait(&returned, &returned_mutex);
		pthread_mutex_unlock(&returned_mutex);
		ctx_lock_acquire(&n->base.lock);
	}
	ctx_lock_release(&n->base.lock);
	return removed;
}

/* ---- Waiting ------------------------------------------------------------- */

struct waiter {
	ctx_hook hook;
	pthread_mutex_t mutex;
	pthread_cond_t cond;
	bool done;
};

static void wake_waiter(ctx_hook *h)
{
	struct waiter *w = ctx_container(h, struct waiter, hook);

	pthread_mutex_lock(&w->mutex);
	w->done = true;
	pthread_cond_signal(&w->cond);
	pthread_mutex_unlock(&w->mutex);
}

const ctx_error *ctx_wait(ctx *c)
{
	if (!c)
		ctx_misuse("ctx_wait", "the context is NULL");

	struct waiter w = {.done = false};

	pthread_mutex_init(&w.mutex, NULL);
	pthread_cond_init(&w.cond, NULL);
	if (c->has_deadline)
		ctx_timers_revive();
	ctx_hook_add(c, &w.hook, wake_waiter);
	pthread_mutex_lock(&w.mutex);
	while (!w.done)
		pthread_cond_wait(&w.cond, &w.mutex);
	pthread_mutex_unlock(&w.mutex);
	/* The canceller may still be inside wake_waiter(). */
	ctx_hook_remove(c, &w.hook);
	pthread_cond_destroy(&w.cond);
	pthread_mutex_destroy(&w.mutex);
	return ctx_err(c);
}

/* EFD_SEMAPHORE and the largest count: readable for ever, even if somebody does read it. */
void ctx_done_fd_ring(int fd)
{
	uint64_t count = UINT64_MAX - 1;
	ssize_t n;

	do
		n = write(fd, &count, sizeof(count));
	while (n < 0 && errno == EINTR);
}

/* One for all that is never done; it is not closed before the process ends. */
static int never_fd(void)
{
	static atomic_int shared = -1;
	int expected = -1;
	int fd = atomic_load(&shared);

	if (fd >= 0)
		return fd;
	fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (fd < 0 || atomic_compare_exchange_strong(&shared, &expected, fd))
		return fd;
	close(fd);
	return expected;
}

int ctx_done_fd(ctx *c)
{
	if (!c)
		ctx_misuse("ctx_done_fd", "the context is NULL");

	struct ctx_node *n = ctx_node_of(c);

	if (n == &ctx_never)
		return never_fd();
	if (c->has_deadline)
		ctx_timers_revive();
	ctx_lock_acquire(&n->base.lock);
	if (n->base.done_fd < 0) {
		n->base.done_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK | EFD_SEMAPHORE);
		if (n->base.done_fd >= 0 && ctx_node_err(n))
			ctx_done_fd_ring(n->base.done_fd);
	}
	int fd = n->base.done_fd;

	ctx_lock_release(&n->base.lock);
	return fd;
}
