/*
 * AfterFunc: functions that run on threads of the library once a context is done.
 *
 * Two things may befall a registration, the end of its context and ctx_after_stop(); which was first is decided
 * by one compare-and-swap on its `word`, and the winner has the registration from there on:
 *
 *	            hook: begin()            a helper            fn returned
 *	WAITING ------------------> STARTED ----------> (fn runs) ----------.
 *	   |                                                                v
 *	   `----------------------> STOPPED -----------------------------> free, generation + 1
 *	        ctx_after_stop()              hook removed
 *
 * A handle is not a pointer but a slot's number and generation: Go's stop functions may be called at any later
 * time, and so may ours, with nobody to free anything. Slots are never given back to malloc, only reused.
 *
 * Helpers are threads that run one function at a time. While a registration waits there is at least one that is
 * idle: whoever registers starts it if need be, so that a registration which cannot be served fails then and not
 * when its context is done; and an idle helper that takes a run starts its successor first.
 */
#include "ctx_priv.h"

#include <errno.h>
#include <stdlib.h>
#include <time.h>

/* Handles: 24 bits of slot number + 1, 40 of generation (on 32-bit machines, 16 and 16). */
#define INDEX_BITS   (sizeof(uintptr_t) == 8 ? 24 : 16)
#define INDEX_MASK   (((uintptr_t)1 << INDEX_BITS) - 1)
/* Slots come in chunks, each twice the size of the one before: FIRST, 2 * FIRST, ... */
#define FIRST_CHUNK  64
#define CHUNKS       18
#define IDLE_SECONDS 2
#define MAX_IDLE     4

enum state { STATE_FREE, STATE_WAITING, STATE_STOPPED, STATE_STARTED, STATES };

struct registration {
	_Atomic uintptr_t word; /* generation * STATES + state */
	size_t index;
	struct registration *next; /* on the free list, or in the queue */
	ctx_hook hook;
	ctx *c; /* held */
	void (*fn)(void *arg);
	void *arg;
};

static _Atomic(struct registration *) chunks[CHUNKS];

static struct {
	pthread_mutex_t mutex; /* guards all below */
	pthread_cond_t cond;   /* the queue is not empty, or stop */
	struct registration *free;
	size_t slots;
	size_t waiting; /* registrations that are WAITING or in the queue */
	struct registration *first, **last;
	unsigned helpers, idle;
	bool has_zombie; /* the helper that left last is not joined yet; the next to leave does it */
	pthread_t zombie;
	bool stop;
} pool = {.mutex = PTHREAD_MUTEX_INITIALIZER, .last = &pool.first};

/* ---- Slots and handles ----------------------------------------------------- */

static uintptr_t word_of(uintptr_t generation, enum state state)
{
	return generation * STATES + state;
}

static size_t chunk_of(size_t index)
{
	return (size_t)(63 - __builtin_clzll(index / FIRST_CHUNK + 1));
}

static size_t chunk_start(size_t chunk)
{
	return FIRST_CHUNK * (((size_t)1 << chunk) - 1);
}

/* NULL if there is no such slot. */
static struct registration *slot(size_t index)
{
	size_t chunk = chunk_of(index);
	struct registration *slots =
		chunk < CHUNKS ? atomic_load_explicit(&chunks[chunk], memory_order_acquire) : NULL;

	return slots ? &slots[index - chunk_start(chunk)] : NULL;
}

static ctx_after *handle_of(const struct registration *r)
{
	uintptr_t generation = atomic_load_explicit(&r->word, memory_order_relaxed) / STATES;

	return (ctx_after *)(generation << INDEX_BITS | (r->index + 1));
}

/* False: out of memory, or more registrations at a time than a handle can number. */
static bool grow_locked(void)
{
	size_t chunk = chunk_of(pool.slots);
	size_t count = (size_t)FIRST_CHUNK << chunk;

	if (chunk >= CHUNKS || pool.slots + count > INDEX_MASK)
		return false;

	struct registration *slots = calloc(count, sizeof(*slots));

	if (!slots)
		return false;
	for (size_t i = count; i-- > 0;) {
		slots[i].index = pool.slots + i;
		slots[i].next = pool.free;
		pool.free = &slots[i];
	}
	pool.slots += count;
	atomic_store_explicit(&chunks[chunk], slots, memory_order_release);
	return true;
}

static void free_locked(struct registration *r)
{
	uintptr_t generation = atomic_load_explicit(&r->word, memory_order_relaxed) / STATES + 1;

	atomic_store_explicit(&r->word, word_of(generation & (UINTPTR_MAX >> INDEX_BITS), STATE_FREE),
	                      memory_order_relaxed);
	r->next = pool.free;
	pool.free = r;
}

/* ---- Helpers ---------------------------------------------------------------- */

static void *helper(void *arg);

static int start_helper_locked(void)
{
	pthread_t thread;
	int error = ctx_thread_start(helper, NULL, &thread);

	if (!error) {
		pool.helpers++;
		/* Counted as idle from now on, so that two do not start it. */
		pool.idle++;
	}
	return error;
}

/* False when there is nothing to do and this helper need not stay. */
static bool await_run_locked(void)
{
	struct timespec until;

	clock_gettime(CLOCK_MONOTONIC, &until);
	until.tv_sec += IDLE_SECONDS;
	while (!pool.first) {
		if (pool.stop)
			return false;
		if (pthread_cond_timedwait(&pool.cond, &pool.mutex, &until) == ETIMEDOUT && !pool.first) {
			if (pool.waiting == 0 || pool.idle > 1)
				return false;
			until.tv_sec += IDLE_SECONDS;
		}
	}
	return true;
}

static struct registration *take_locked(void)
{
	struct registration *r = pool.first;

	pool.first = r->next;
	if (!pool.first)
		pool.last = &pool.first;
	pool.waiting--;
	return r;
}

static void join_zombie_locked(void)
{
	pthread_t zombie = pool.zombie;
	bool has_zombie = pool.has_zombie;

	pool.has_zombie = true;
	pool.zombie = pthread_self();
	if (has_zombie) {
		pthread_mutex_unlock(&pool.mutex);
		pthread_join(zombie, NULL);
		pthread_mutex_lock(&pool.mutex);
	}
}

static void *helper(void *arg)
{
	pthread_mutex_lock(&pool.mutex);
	while (await_run_locked()) {
		struct registration *r = take_locked();

		pool.idle--;
		if (pool.waiting > 0 && pool.idle == 0)
			start_helper_locked(); /* if it fails, the queue waits for this one */
		pthread_mutex_unlock(&pool.mutex);
		r->fn(r->arg);
		ctx_release(r->c);
		pthread_mutex_lock(&pool.mutex);
		free_locked(r);
		pool.idle++;
		if (pool.idle > MAX_IDLE)
			break;
	}
	pool.idle--;
	pool.helpers--;
	if (pool.stop)
		pthread_cond_broadcast(&pool.cond);
	join_zombie_locked();
	pthread_mutex_unlock(&pool.mutex);
	return arg;
}

/* ---- Registering and stopping ------------------------------------------------ */

/* The hook: the context is done. */
static void begin(ctx_hook *h)
{
	struct registration *r = ctx_container(h, struct registration, hook);
	uintptr_t word = atomic_load_explicit(&r->word, memory_order_relaxed);

	if (word % STATES != STATE_WAITING ||
	    !atomic_compare_exchange_strong(&r->word, &word, word_of(word / STATES, STATE_STARTED)))
		return;
	pthread_mutex_lock(&pool.mutex);
	r->next = NULL;
	*pool.last = r;
	pool.last = &r->next;
	/* There is one, but in a forked child, or where a successor could not be started: perhaps it can now. */
	if (pool.idle == 0)
		start_helper_locked();
	pthread_cond_signal(&pool.cond);
	pthread_mutex_unlock(&pool.mutex);
}

static void before_fork(void)
{
	pthread_mutex_lock(&pool.mutex);
}

static void after_fork_in_parent(void)
{
	pthread_mutex_unlock(&pool.mutex);
}

static void init_cond(void)
{
	pthread_condattr_t attr;

	pthread_condattr_init(&attr);
	pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
	pthread_cond_init(&pool.cond, &attr);
	pthread_condattr_destroy(&attr);
}

/* What was in the queue is the parent's to run; what waits, waits here as well. */
static void after_fork_in_child(void)
{
	pthread_mutex_init(&pool.mutex, NULL);
	init_cond();
	while (pool.first)
		take_locked();
	pool.helpers = pool.idle = 0;
	pool.has_zombie = false;
}

static void init_once(void)
{
	init_cond();
	pthread_atfork(before_fork, after_fork_in_parent, after_fork_in_child);
}

/* A slot, and a helper to be there when it starts. NULL with errno. */
static struct registration *reserve(void)
{
	static pthread_once_t once = PTHREAD_ONCE_INIT;
	struct registration *r = NULL;
	int error = 0;

	pthread_once(&once, init_once);
	pthread_mutex_lock(&pool.mutex);
	if (!pool.free && !grow_locked())
		error = ENOMEM;
	else if (pool.idle == 0)
		error = start_helper_locked();
	if (!error) {
		r = pool.free;
		pool.free = r->next;
		pool.waiting++;
	}
	pthread_mutex_unlock(&pool.mutex);
	if (error)
		errno = error;
	return r;
}

ctx_after *ctx_after_func(ctx *c, void (*fn)(void *arg), void *arg)
{
	if (!c)
		ctx_misuse("ctx_after_func", "the context is NULL");
	if (!fn)
		ctx_misuse("ctx_after_func", "the function is NULL");

	struct registration *r = reserve();

	if (!r)
		return NULL;

	ctx_after *handle = handle_of(r);
	uintptr_t word = atomic_load_explicit(&r->word, memory_order_relaxed);

	r->c = ctx_retain(c);
	r->fn = fn;
	r->arg = arg;
	atomic_store_explicit(&r->word, word_of(word / STATES, STATE_WAITING), memory_order_release);
	ctx_hook_add(c, &r->hook, begin); /* from here on it may run, and be gone */
	return handle;
}

bool ctx_after_stop(ctx_after *a)
{
	if (!a)
		return false;

	struct registration *r = slot(((uintptr_t)a & INDEX_MASK) - 1);
	uintptr_t generation = (uintptr_t)a >> INDEX_BITS;
	uintptr_t word = word_of(generation, STATE_WAITING);

	if (!r)
		return false; /* after ctx_after_shutdown(), in somebody's destructor */
	if (!atomic_compare_exchange_strong(&r->word, &word, word_of(generation, STATE_STOPPED)))
		return false;
	/* The end of the context may have come second, and begin() be about to find that out. */
	ctx_hook_remove(r->c, &r->hook);
	ctx_release(r->c);
	pthread_mutex_lock(&pool.mutex);
	free_locked(r);
	pool.waiting--;
	pthread_mutex_unlock(&pool.mutex);
	return true;
}

/* At exit: idle helpers leave, and are waited for; those that run a function are left to run it. */
void ctx_after_shutdown(void)
{
	struct timespec until = ctx_shutdown_deadline(CLOCK_MONOTONIC);
	int error = 0;

	pthread_mutex_lock(&pool.mutex);
	pool.stop = true;
	pthread_cond_broadcast(&pool.cond);
	while (pool.idle > 0 && error != ETIMEDOUT)
		error = pthread_cond_timedwait(&pool.cond, &pool.mutex, &until);
	bool has_zombie = pool.has_zombie;

	pool.has_zombie = false;
	bool unused = pool.helpers == 0 && pool.waiting == 0;

	if (unused) {
		pool.free = NULL;
		pool.slots = 0;
	}
	pthread_mutex_unlock(&pool.mutex);
	if (has_zombie)
		ctx_thread_join(pool.zombie);
	for (size_t chunk = 0; unused && chunk < CHUNKS; chunk++)
		free(atomic_exchange(&chunks[chunk], NULL));
}
