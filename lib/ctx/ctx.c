/*
 * The tree of contexts: how they join it, end, are asked and are freed. derive.c, value.c and signals.c make them.
 *
 * Ending a node (ctx_node_finish) has three steps, and the order is the point:
 *
 *	1. mark     Depth first, each node under its parent's lock: cause, then err. All locks from the ended
 *	            node down to the one at hand are held, so that whoever finds a node done, with its lock,
 *	            finds all below it done. Marked children leave the list of their parent.
 *	2. unlink   The ended node leaves the list of its own parent.
 *	3. notify   Hooks run, with no lock held, in nodes pinned since they were marked.
 *
 * Trees may be deep and stacks small (a fiber's): nothing here recurses with the depth.
 *
 * Lifetime. A node is freed by whoever gives back the last reference, before that call returns. Two know the node
 * without a reference, its parent's ring and its timer shard; each reaches it only under its own lock and says so
 * in a flag of the node (linked, armed), which it clears as the last thing. Whoever is about to end a node, and
 * must leave that lock to do it, pins it first. So the last holder takes the node off ring and shard, after which no
 * pin can be added, and then waits until there is none left: no longer than a hook runs, and hooks do not block.
 * A thread that has a pin itself, as within a hook, does not wait, lest two wait for each other: it leaves the
 * node to the last pin.
 */
#include "ctx_priv.h"

#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

const ctx_error CTX_CANCELED = {ECANCELED, "context canceled"};
const ctx_error CTX_DEADLINE_EXCEEDED = {ETIMEDOUT, "context deadline exceeded"};

struct ctx_node ctx_never;

void ctx_misuse(const char *call, const char *what)
{
	fprintf(stderr, "tether: %s: %s\n", call, what);
	abort();
}

/* ---- Roots and references ------------------------------------------------- */

static ctx background = {.err = &ctx_never.err, .kind = CTX_KIND_BACKGROUND};
static ctx todo = {.err = &ctx_never.err, .kind = CTX_KIND_TODO};

ctx *ctx_background(void)
{
	return &background;
}

ctx *ctx_todo(void)
{
	return &todo;
}

ctx *ctx_retain(ctx *c)
{
	if (!c)
		ctx_misuse("ctx_retain", "the context is NULL");
	ctx_retain_inline(c);
	return c;
}

static inline bool is_armed(struct ctx_node *n)
{
	struct ctx_deadline *d = ctx_as_deadline(n);

	return d && atomic_load_explicit(&d->timer.armed, memory_order_acquire);
}

static inline bool is_linked(struct ctx_node *n)
{
	return atomic_load_explicit(&n->base.linked, memory_order_acquire);
}

/* Drops one reference; true if it was the last one and the context is the caller's to free. */
static bool drop(ctx *c)
{
	/* The only holder is the only one who could make it two. */
	if (atomic_load_explicit(&c->refs, memory_order_acquire) == 1)
		return true;

	unsigned refs = atomic_fetch_sub_explicit(&c->refs, 1, memory_order_acq_rel);

	if (refs == 0)
		ctx_misuse("ctx_release", "more references given back than there were");
	return refs == 1;
}

static inline void unlink_from_parent(struct ctx_node *n)
{
	if (!is_linked(n))
		return;
	ctx_lock_acquire(&n->up->base.lock);
	if (is_linked(n) && n->sibling.next)
		ctx_ring_remove(&n->up->children, &n->sibling);
	atomic_store_explicit(&n->base.linked, false, memory_order_release);
	ctx_lock_release(&n->up->base.lock);
}

static inline void disarm(struct ctx_node *n)
{
	if (is_armed(n))
		ctx_timer_disarm(ctx_as_deadline(n));
}

/* The caller has seen to it that no one else can reach the context. */
static inline void destroy(ctx *c)
{
	struct ctx_node *n = ctx_as_node(c);

	if (n) {
		if (n->hooks)
			ctx_misuse("ctx_release", "the context still has a hook on it");
		if (n->base.done_fd >= 0)
			close(n->base.done_fd);
	} else if (c->kind == CTX_KIND_VALUE) {
		ctx_pair_destroy((struct ctx_pair *)(void *)c);
	}
	free(c);
}

/* ---- Pins ---------------------------------------------------------------- */

/* A node's pins: how many, and what is to happen when the last is gone. */
enum { PIN = 1, PINS = 0x3fff, PIN_AWAITED = 0x4000, PIN_ORPHANED = 0x8000 };

/* For the last holder to wait for the last pin; rare, so one for all. */
static pthread_mutex_t unpinned_mutex = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t unpinned = PTHREAD_COND_INITIALIZER;

/* This thread's, on any node. */
static _Thread_local unsigned pins_held __attribute__((tls_model("initial-exec")));

static inline bool is_pinned(struct ctx_node *n)
{
	return atomic_load_explicit(&n->base.pins, memory_order_acquire) != 0;
}

void ctx_node_pin(struct ctx_node *n)
{
	pins_held++;
	atomic_fetch_add_explicit(&n->base.pins, PIN, memory_order_relaxed);
}

void ctx_node_unpin(struct ctx_node *n)
{
	ctx *parent = n->base.parent;
	unsigned pins;

	pins_held--;
	pins = atomic_fetch_sub_explicit(&n->base.pins, PIN, memory_order_acq_rel);
	if ((pins & PINS) != 1)
		return;
	if (pins & PIN_AWAITED) {
		pthread_mutex_lock(&unpinned_mutex);
		pthread_cond_broadcast(&unpinned);
		pthread_mutex_unlock(&unpinned_mutex);
	} else if (pins & PIN_ORPHANED) {
		destroy(&n->base);
		ctx_release(parent);
	}
}

/* The last holder of a pinned node. True once it is free of pins; false if it was left to the last of them. */
static bool settle(struct ctx_node *n)
{
	bool leave = pins_held > 0;
	unsigned short wish = leave ? PIN_ORPHANED : PIN_AWAITED;

	if (!(atomic_fetch_or_explicit(&n->base.pins, wish, memory_order_acq_rel) & PINS))
		return true;
	if (leave)
		return false;
	pthread_mutex_lock(&unpinned_mutex);
	while (atomic_load_explicit(&n->base.pins, memory_order_acquire) & PINS)
		pthread_cond_wait(&unpinned, &unpinned_mutex);
	pthread_mutex_unlock(&unpinned_mutex);
	return true;
}

/* Up the tree as long as it was the last reference: a loop, since a chain may be of any length. */
static void release(ctx *c)
{
	while (!ctx_is_root(c) && drop(c)) {
		struct ctx_node *n = ctx_as_node(c);
		ctx *parent = c->parent;

		if (n) {
			unlink_from_parent(n);
			disarm(n);
			if (c->kind == CTX_KIND_SIGNALS)
				ctx_signals_stop(n);
			if (is_pinned(n) && !settle(n))
				return;
		}
		destroy(c);
		c = parent;
	}
}

void ctx_release(ctx *c)
{
	if (c)
		release(c);
}

/* ---- Joining ------------------------------------------------------------- */

/* Undoes ctx_node_new() where what was to follow has failed. */
void ctx_node_discard(struct ctx_node *n)
{
	ctx *parent = n->base.parent;

	destroy(&n->base);
	release(parent);
}

/*
 * From here on `n` ends with the node above it. Children of what is never done are on no list and need no lock.
 * A deadline may have ended `n` already, and then found it on no list to take it off: that is seen to here.
 */
void ctx_node_join(struct ctx_node *n)
{
	struct ctx_node *up = n->up;

	if (up == &ctx_never)
		return;
	ctx_lock_acquire(&up->base.lock);
	bool done = ctx_node_err(up) != NULL;

	if (!done)
		ctx_ring_append(&up->children, &n->sibling);
	atomic_store_explicit(&n->base.linked, !done, memory_order_release);
	ctx_lock_release(&up->base.lock);

	if (done)
		ctx_node_finish(n, ctx_node_err(up), up->cause);
	else if (ctx_node_err(n))
		unlink_from_parent(n);
}

/* ---- Ending -------------------------------------------------------------- */

/* Nodes with hooks to run, in the order they were marked. */
struct notify_list {
	struct ctx_node *first, **last;
};

/* Step 1 for one node, whose lock is held. False if it is done already. */
static bool mark_locked(struct ctx_node *n, const ctx_error *err, const ctx_error *cause,
                        struct notify_list *notify)
{
	if (ctx_node_err(n))
		return false;
	n->cause = cause;
	atomic_store_explicit(&n->err, err, memory_order_release);
	disarm(n);
	if (n->base.done_fd >= 0)
		ctx_done_fd_ring(n->base.done_fd);
	if (n->hooks) {
		ctx_node_pin(n);
		n->next_notify = NULL;
		*notify->last = n;
		notify->last = &n->next_notify;
	}
	return true;
}

/* Cuts the ring of children into a chain that ends with NULL, and takes it off; gives the first. */
static struct ctx_node *take_children_locked(struct ctx_node *n)
{
	struct ctx_link_ *first = n->children;

	if (!first)
		return NULL;
	first->prev->next = NULL;
	n->children = NULL;
	return ctx_container(first, struct ctx_node, sibling);
}

/*
 * Step 1. The locks held are those on the way from `root` to `at`, whose next child is `child`. A child that is
 * found done was ended by another thread, which has left its lock and so marked all below. Once the `linked` of a
 * node is clear it may be gone: nothing touches it after.
 */
static bool mark_tree(struct ctx_node *root, const ctx_error *err, const ctx_error *cause,
                      struct notify_list *notify)
{
	struct ctx_node *at = root;
	struct ctx_node *child, *left;

	ctx_lock_acquire(&root->base.lock);
	if (!mark_locked(root, err, cause, notify)) {
		ctx_lock_release(&root->base.lock);
		return false;
	}
	child = take_children_locked(root);
	while (child || at != root) {
		if (child) {
			ctx_lock_acquire(&child->base.lock);
			if (mark_locked(child, err, cause, notify) && child->children) {
				at = child;
				child = take_children_locked(at);
				continue;
			}
			left = child;
		} else {
			left = at;
			at = at->up;
		}
		child = left->sibling.next ? ctx_container(left->sibling.next, struct ctx_node, sibling)
		                           : NULL;
		ctx_lock_release(&left->base.lock);
		atomic_store_explicit(&left->base.linked, false, memory_order_release);
	}
	ctx_lock_release(&root->base.lock);
	return true;
}

/* True if it was this call that ended `n`. The caller has a reference or a pin. */
bool ctx_node_finish(struct ctx_node *n, const ctx_error *err, const ctx_error *cause)
{
	struct notify_list notify = {NULL, &notify.first};

	if (!mark_tree(n, err, cause, &notify))
		return false;
	unlink_from_parent(n);
	while (notify.first) {
		struct ctx_node *next = notify.first->next_notify;

		ctx_hooks_run(notify.first);
		ctx_node_unpin(notify.first);
		notify.first = next;
	}
	return true;
}

static void cancel(ctx *c, const ctx_error *cause)
{
	struct ctx_node *n = ctx_as_node(c);

	if (!n)
		return;
	if (c->kind == CTX_KIND_SIGNALS)
		ctx_signals_stop(n);
	ctx_node_finish(n, &CTX_CANCELED, cause ? cause : &CTX_CANCELED);
}

void ctx_cancel(ctx *c)
{
	if (!c)
		ctx_misuse("ctx_cancel", "the context is NULL");
	cancel(c, NULL);
}

void ctx_cancel_cause(ctx *c, const ctx_error *cause)
{
	if (!c)
		ctx_misuse("ctx_cancel_cause", "the context is NULL");
	cancel(c, cause);
}

/*
 * The end of most contexts: one reference, no children (they would hold it), no hooks, nobody who is ending it.
 * Nobody is left to see it cancelled, so it need not be. False if somebody may be.
 */
static bool end_unseen(struct ctx_node *n)
{
	if (n->base.kind == CTX_KIND_SIGNALS ||
	    atomic_load_explicit(&n->base.refs, memory_order_acquire) != 1 || n->hooks)
		return false;
	unlink_from_parent(n);
	disarm(n);
	return !is_pinned(n);
}

void ctx_end(ctx *c)
{
	if (!c)
		return;

	struct ctx_node *n = ctx_as_node(c);

	if (n && end_unseen(n)) {
		ctx *parent = c->parent;

		destroy(c);
		if (!ctx_is_root(parent))
			release(parent);
		return;
	}
	cancel(c, NULL);
	release(c);
}

/* ---- Asking -------------------------------------------------------------- */

/* ctx.h has it inline; this is for callers that cannot use that: through a pointer, or from another language. */
const ctx_error *ctx_err(const ctx *c)
{
	return c ? ctx_node_err(ctx_node_of(c)) : ctx_err_of_null();
}

const ctx_error *ctx_err_of_null(void)
{
	ctx_misuse("ctx_err", "the context is NULL");
}

const ctx_error *ctx_cause(const ctx *c)
{
	if (!c)
		ctx_misuse("ctx_cause", "the context is NULL");
	const struct ctx_node *n = ctx_node_of(c);

	return ctx_node_err(n) ? n->cause : NULL;
}

bool ctx_deadline(const ctx *c, int64_t *deadline_ns)
{
	if (!c)
		ctx_misuse("ctx_deadline", "the context is NULL");
	if (c->has_deadline && deadline_ns)
		*deadline_ns = c->deadline;
	return c->has_deadline;
}

int64_t ctx_now(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (int64_t)ts.tv_sec * CTX_SECOND + ts.tv_nsec;
}
