/*
 * What the files of lib/ctx share: the shape of a context, its lock and lists.
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

/* Circular doubly linked lists with a head; a link that is on no list has a NULL next. */
#define ctx_container(link, type, member) ((type *)(void *)((char *)(link)-offsetof(type, member)))

static inline void ctx_list_init(struct ctx_link_ *head)
{
	head->next = head->prev = head;
}

static inline bool ctx_list_empty(const struct ctx_link_ *head)
{
	return head->next == head;
}

static inline void ctx_list_append(struct ctx_link_ *head, struct ctx_link_ *link)
{
	link->next = head;
	link->prev = head->prev;
	head->prev->next = link;
	head->prev = link;
}

static inline void ctx_list_remove(struct ctx_link_ *link)
{
	link->next->prev = link->prev;
	link->prev->next = link->next;
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
	struct ctx *parent;      /* held; NULL in a root */
	struct ctx_node *node;   /* who ends this context: itself, one above, or &ctx_never */
	struct ctx_pair *values; /* nearest value, itself or above */
	int64_t deadline;        /* nearest deadline, if has_deadline */
	uint8_t kind;
	bool has_deadline;
	/* What deriving a child writes lies together, across the border to struct ctx_node, for one cache line. */
	_Atomic unsigned refs;
	ctx_lock lock; /* of a node */
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
	struct ctx_link_ children;      /* nodes below, by their sibling link */
	_Atomic(const ctx_error *) err; /* set once, after cause, with release: readers need no lock */
	const ctx_error *cause;
	struct ctx_node *up;      /* the nearest node above, or &ctx_never; constant */
	struct ctx_link_ sibling; /* on up->children; guarded by up's lock */
	/*
	 * Whether up may still reach this node. Written under up's lock, cleared as the last thing up's
	 * canceller does to the node: who reads it clear without the lock may free the node.
	 */
	atomic_bool linked;
	int done_fd;                  /* -1 until asked for */
	struct ctx_link_ hooks;       /* waiting to be run */
	struct hook_run *running;     /* being run */
	struct ctx_node *next_notify; /* belongs to the one thread that ended the node */
};

struct ctx_timer {
	struct ctx_link_ link;
	struct timer_shard *shard;
	/* As linked above: written under the shard's lock, cleared last. */
	atomic_bool armed;
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

static inline const ctx_error *ctx_node_err(const struct ctx_node *n)
{
	return atomic_load_explicit(&n->err, memory_order_acquire);
}

/* Says on stderr what the program did wrong in which call, and aborts. */
_Noreturn void ctx_misuse(const char *call, const char *what);

/* ctx.c: building blocks of the contexts made elsewhere. */
struct ctx_node *ctx_node_new(size_t size, enum ctx_kind kind, ctx *parent);
void ctx_node_discard(struct ctx_node *n);
void ctx_node_join(struct ctx_node *n);
bool ctx_node_finish(struct ctx_node *n, const ctx_error *err, const ctx_error *cause);
ctx *ctx_derive(size_t size, enum ctx_kind kind, ctx *parent);
bool ctx_try_retain(ctx *c);

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
