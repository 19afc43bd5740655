/*
 * What the files of lib/ctx share: the shape of a context, its lock and lists. The files:
 *
 *	ctx.c       the tree: references, joining it, ending, asking
 *	derive.c    WithCancel, WithDeadline, WithoutCancel         value.c: WithValue
 *	signals.c   contexts that signals cancel
 *	hook.c      being told of the end: hooks, ctx_wait, the descriptor
 *	after.c     functions that run after it, on threads of the library
 *	deadline.c  timers, and the thread that lets them go off
 *	string.c    a context as Go describes it
 *	sync.c      the lock, and the library's threads: their start and their end
 *
 * Contexts of all kinds begin with a struct ctx. Those that have an end of
 * their own (cancel, deadline, signals) go on as a struct ctx_node. Every
 * context points at its node, itself or the nearest one above, and at the
 * nearest value, so that no question walks the tree by more than it must:
 *
 *	background <-- cancel A <-- value v <-- deadline B <-- value w
 *	   |             |             |            |             |
 *	 never           A             A            B             B     node
 *	                                            A                   up
 *	   -             -             v            v             w     values
 *
 * One allocation makes a context, of the size its kind needs.
 */
#ifndef TETHER_CTX_PRIV_H
#define TETHER_CTX_PRIV_H

#include <tether/ctx.h>

#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <time.h>

#pragma GCC visibility push(hidden)

/*
 * A lock of four bytes: a context has one and is small. Free, or held, or held
 * with others perhaps asleep. Where several are held, they were taken in this
 * order: a context's, a child's under its parent's; then one of a timer shard.
 */
typedef struct ctx_lock {
	_Atomic unsigned state;
} ctx_lock;

enum { CTX_LOCK_FREE, CTX_LOCK_HELD, CTX_LOCK_CONTENDED };

void ctx_lock_wait(ctx_lock *l);
void ctx_lock_wake(ctx_lock *l);

static inline void ctx_lock_acquire(ctx_lock *l)
{
	unsigned expected = CTX_LOCK_FREE;

	if (!atomic_compare_exchange_strong_explicit(&l->state, &expected, CTX_LOCK_HELD,
	                                             memory_order_acquire, memory_order_relaxed))
		ctx_lock_wait(l);
}

static inline void ctx_lock_release(ctx_lock *l)
{
	if (atomic_exchange_explicit(&l->state, CTX_LOCK_FREE, memory_order_release) == CTX_LOCK_CONTENDED)
		ctx_lock_wake(l);
}

#define ctx_container(link, type, member) ((type *)(void *)((char *)(link)-offsetof(type, member)))

/* Rings: doubly linked lists known by their first link, NULL if empty. A link on no ring has a NULL next. */
static inline void ctx_ring_append(struct ctx_link_ **ring, struct ctx_link_ *link)
{
	struct ctx_link_ *first = *ring;

	if (!first) {
		*ring = link->next = link->prev = link;
		return;
	}
	link->next = first;
	link->prev = first->prev;
	first->prev->next = link;
	first->prev = link;
}

static inline void ctx_ring_remove(struct ctx_link_ **ring, struct ctx_link_ *link)
{
	if (link->next == link) {
		*ring = NULL;
	} else {
		link->next->prev = link->prev;
		link->prev->next = link->next;
		if (*ring == link)
			*ring = link->next;
	}
	link->next = NULL;
}

enum ctx_kind {
	CTX_KIND_BACKGROUND,
	CTX_KIND_TODO,
	CTX_KIND_VALUE,
	CTX_KIND_WITHOUT_CANCEL,
	CTX_KIND_CANCEL, /* from here on a struct ctx_node */
	CTX_KIND_DEADLINE,
	CTX_KIND_SIGNALS,
};

struct ctx {
	/* That of the node that ends this context: itself, one above, or ctx_never. First: ctx_err() is inline. */
	_Atomic(const ctx_error *) *err;
	struct ctx *parent;      /* held; NULL in a root */
	struct ctx_pair *values; /* nearest value, itself or above */
	int64_t deadline;        /* nearest deadline, if has_deadline */
	uint8_t kind : 7;        /* enum ctx_kind */
	uint8_t has_deadline : 1;
	/*
	 * From here to err in a node is what deriving and ending a child writes or asks: one cache line or two. Only
	 * nodes use linked (whether `up` may still reach it: written under up's lock, cleared last), pins (who is
	 * ending it without a reference: see "Lifetime" in ctx.c), lock, and done_fd (-1 until asked for).
	 */
	atomic_bool linked;
	_Atomic unsigned short pins;
	_Atomic unsigned refs;
	ctx_lock lock;
	int done_fd;
};

/* A key with its value (CTX_KIND_VALUE). */
struct ctx_pair {
	ctx base;
	const ctx_key *key;
	void *value;
	struct ctx_pair *next; /* the values above */
};

/* A context with an end of its own. Fields without a word on it are guarded by base.lock. */
struct ctx_node {
	ctx base;
	struct ctx_link_ *children;     /* ring of the nodes below, by their sibling link */
	_Atomic(const ctx_error *) err; /* set once, after cause, with release: readers need no lock */
	const ctx_error *cause;
	struct ctx_link_ sibling;     /* on up->children; guarded by up's lock */
	struct ctx_link_ *hooks;      /* ring of those waiting to be run */
	struct ctx_node *up;          /* the nearest node above, or &ctx_never; constant */
	struct hook_run *running;     /* hooks being run */
	struct ctx_node *next_notify; /* belongs to the one thread that ended the node */
};

struct ctx_timer {
	struct ctx_link_ link;
	struct timer_shard *shard;
	uint8_t bucket;
	atomic_bool armed; /* as `linked` is: written under the shard's lock, cleared last */
};

/* CTX_KIND_DEADLINE */
struct ctx_deadline {
	struct ctx_node node;
	struct ctx_timer timer;
	const ctx_error *cause;
};

/* The node of all that is never done. */
extern struct ctx_node ctx_never;

static inline struct ctx_node *ctx_as_node(ctx *c)
{
	return c->kind >= CTX_KIND_CANCEL ? (struct ctx_node *)(void *)c : NULL;
}

static inline struct ctx_deadline *ctx_as_deadline(struct ctx_node *n)
{
	return n->base.kind == CTX_KIND_DEADLINE ? (struct ctx_deadline *)(void *)n : NULL;
}

/* Who ends this context. */
static inline struct ctx_node *ctx_node_of(const ctx *c)
{
	return ctx_container(c->err, struct ctx_node, err);
}

static inline const ctx_error *ctx_node_err(const struct ctx_node *n)
{
	return atomic_load_explicit(&n->err, memory_order_acquire);
}

/* Roots are never freed: their references are not counted. */
static inline bool ctx_is_root(const ctx *c)
{
	return c->kind <= CTX_KIND_TODO;
}

static inline void ctx_retain_inline(ctx *c)
{
	if (!ctx_is_root(c))
		atomic_fetch_add_explicit(&c->refs, 1, memory_order_relaxed);
}

/*
 * A child of `parent` that differs from it in nothing yet. This and the next are inlined where they are called, with
 * size and kind known: of the 17 ns that making and ending a context take, more than half of them in malloc and
 * free, it saves 3.
 */
__attribute__((always_inline)) static inline ctx *ctx_derive(size_t size, enum ctx_kind kind, ctx *parent)
{
	ctx *c = malloc(size);

	if (!c)
		return NULL;
	c->parent = parent;
	c->err = parent->err;
	c->values = parent->values;
	c->deadline = parent->deadline;
	c->kind = kind & 0x7f;
	c->has_deadline = parent->has_deadline;
	atomic_init(&c->refs, 1);
	ctx_retain_inline(parent);
	return c;
}

/* A node that its parent does not know of yet: see ctx_node_join(). */
__attribute__((always_inline)) static inline struct ctx_node *ctx_node_new(size_t size, enum ctx_kind kind,
                                                                           ctx *parent)
{
	struct ctx_node *n = (struct ctx_node *)(void *)ctx_derive(size, kind, parent);

	if (!n)
		return NULL;
	n->up = ctx_node_of(parent);
	n->base.err = &n->err;
	n->base.done_fd = -1;
	atomic_init(&n->base.lock.state, CTX_LOCK_FREE);
	atomic_init(&n->base.linked, n->up != &ctx_never);
	n->children = NULL;
	atomic_init(&n->err, NULL);
	n->cause = NULL;
	n->sibling.next = NULL;
	n->hooks = NULL;
	n->running = NULL;
	atomic_init(&n->base.pins, 0);
	return n;
}

/* Says on stderr what the program did wrong in which call, and aborts. */
_Noreturn void ctx_misuse(const char *call, const char *what);

/* ctx.c: building blocks for derive.c, value.c and signals.c. */
void ctx_node_discard(struct ctx_node *n);
void ctx_node_join(struct ctx_node *n);
bool ctx_node_finish(struct ctx_node *n, const ctx_error *err, const ctx_error *cause);
void ctx_node_pin(struct ctx_node *n);
void ctx_node_unpin(struct ctx_node *n);

/* hook.c */
void ctx_hooks_run(struct ctx_node *n);
void ctx_done_fd_ring(int fd);

/* deadline.c */
int ctx_timer_arm(struct ctx_deadline *d);
void ctx_timer_disarm(struct ctx_deadline *d);
void ctx_timers_revive(void);
void ctx_timers_shutdown(void);

/* after.c */
void ctx_after_shutdown(void);

/* value.c */
void ctx_pair_destroy(struct ctx_pair *p);

/* signals.c */
void ctx_signals_stop(struct ctx_node *n);
size_t ctx_signals_list(const ctx *c, const int **signals);
const char *ctx_signal_name(int signo);
void ctx_signals_shutdown(void);

/* sync.c */
#define CTX_THREAD_STACK ((size_t)256 * 1024)
int ctx_thread_start(void *(*fn)(void *arg), void *arg, pthread_t *thread);
void ctx_thread_join(pthread_t thread);
struct timespec ctx_shutdown_deadline(clockid_t clock);

#pragma GCC visibility pop

#endif
