/* wait_queue: first come, first served, over fibers of several loops and threads; nothing lost, nothing twice. */
#include <criterion/criterion.h>
#include <criterion/new/assert.h>
#include <errno.h>
#include <stdatomic.h>
#include <stdlib.h>

#include "loops.h"
#include "support.h"

static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static wait_queue queue = WAIT_QUEUE_INIT;

static bool hand(void *thing)
{
	pthread_mutex_lock(&mutex);
	bool handed = wait_queue_hand(&queue, thing);
	pthread_mutex_unlock(&mutex);
	return handed;
}

static bool queue_has(void *arg)
{
	pthread_mutex_lock(&mutex);
	bool has = queue.length == (size_t)(uintptr_t)arg;
	pthread_mutex_unlock(&mutex);
	return has;
}

static bool queue_becomes(size_t length)
{
	return eventually(queue_has, (void *)length, 20000);
}

/* ---- Order --------------------------------------------------------------------------------------------------- */

struct customer {
	ctx *ctx;
	void *got;
	pthread_t thread;
	int outcome, error;
	atomic_bool served;
};

static atomic_int served_count;

static void stand(void *arg)
{
	struct customer *customer = arg;
	pthread_mutex_lock(&mutex);
	customer->outcome = wait_queue_wait(customer->ctx, &queue, &mutex, &customer->got);
	customer->error = errno;
	pthread_mutex_unlock(&mutex);
	atomic_store(&customer->served, true);
	atomic_fetch_add(&served_count, 1);
}

static void *stand_on_thread(void *arg)
{
	stand(arg);
	return NULL;
}

static bool is_served(void *arg)
{
	return atomic_load(&((struct customer *)arg)->served);
}

enum { CUSTOMERS = 30 };

/* Every third is a fiber of the one loop, a fiber of the other, a thread. */
static void line_up(struct customer *customers, loop_thread *loops[2])
{
	for (int i = 0; i < CUSTOMERS; i++) {
		customers[i] = (struct customer){.ctx = ctx_with_cancel(ctx_background())};
		if (i % 3 < 2)
			cr_assert(
				eq(int, loop_spawn(loop_thread_loop(loops[i % 3]), stand, &customers[i]), 0));
		else
			pthread_create(&customers[i].thread, NULL, stand_on_thread, &customers[i]);
		cr_assert(queue_becomes((size_t)i + 1));
	}
}

static void send_home(struct customer *customers, loop_thread *loops[2])
{
	for (int i = 0; i < CUSTOMERS; i++) {
		cr_assert(eventually(is_served, &customers[i], 20000));
		if (i % 3 == 2)
			pthread_join(customers[i].thread, NULL);
		ctx_end(customers[i].ctx);
	}
	loop_thread_stop(loops[0]);
	loop_thread_stop(loops[1]);
	cr_assert(eq(sz, queue.length, 0));
	cr_assert_null(queue.first);
	cr_assert_null(queue.last);
}

Test(loop_queue, first_come_first_served, .timeout = 120)
{
	static struct customer customers[CUSTOMERS];
	loop_thread *loops[] = {loop_thread_start(NULL), loop_thread_start(NULL)};
	cr_assert_not(hand(&mutex), "nobody waits");
	line_up(customers, loops);
	for (int i = 0; i < CUSTOMERS; i++) {
		cr_assert(hand(&customers[i]));
		cr_assert(eventually(is_served, &customers[i], 20000));
		cr_assert(eq(int, customers[i].outcome, 0));
		cr_assert(eq(ptr, customers[i].got, &customers[i]));
		cr_assert(eq(int, atomic_load(&served_count), i + 1), "nobody else");
	}
	cr_assert_not(hand(&mutex));
	send_home(customers, loops);
}

Test(loop_queue, who_is_done_leaves_from_wherever_it_stands, .timeout = 120)
{
	static struct customer customers[CUSTOMERS];
	static void *untouched = &untouched;
	loop_thread *loops[] = {loop_thread_start(NULL), loop_thread_start(NULL)};
	line_up(customers, loops);
	for (int i = 0; i < CUSTOMERS; i++)
		customers[i].got = untouched;
	/* First, last and every other one in the middle, two neighbours among them. */
	size_t left = CUSTOMERS;
	for (int i = 0; i < CUSTOMERS; i++)
		if (i % 2 == 0 || i == 15 || i == CUSTOMERS - 1) {
			ctx_cancel(customers[i].ctx);
			cr_assert(eventually(is_served, &customers[i], 20000));
			cr_assert(eq(int, customers[i].outcome, -1));
			cr_assert(eq(int, customers[i].error, ECANCELED));
			cr_assert(eq(ptr, customers[i].got, untouched));
			cr_assert(queue_becomes(--left));
		}
	for (int i = 0; i < CUSTOMERS; i++)
		if (!atomic_load(&customers[i].served)) {
			cr_assert(hand(&customers[i]));
			cr_assert(eventually(is_served, &customers[i], 20000));
			cr_assert(eq(ptr, customers[i].got, &customers[i]));
		}
	cr_assert_not(hand(&mutex));
	send_home(customers, loops);
}

Test(loop_queue, done_before_is_not_in_the_queue_at_all, .timeout = 30)
{
	ctx *c = ctx_with_timeout(ctx_background(), -1);
	void *got = &mutex;
	pthread_mutex_lock(&mutex);
	cr_assert(eq(int, wait_queue_wait(c, &queue, &mutex, &got), -1));
	cr_assert(eq(int, errno, ETIMEDOUT));
	pthread_mutex_unlock(&mutex);
	cr_assert(eq(ptr, got, &mutex));
	cr_assert(eq(sz, queue.length, 0));
	ctx_end(c);
}

/*
 * Cancelled, but held up by the mutex before it can leave: a hand in that moment goes to the next, not to who would
 * only have to pass it on.
 */
static bool both_wait(void *arg)
{
	(void)arg;
	return queue_has((void *)2);
}

Test(loop_queue, who_is_done_is_not_handed_anything, .timeout = 60)
{
	struct customer gone = {.ctx = ctx_with_cancel(ctx_background())}, next = {.ctx = ctx_background()};
	pthread_create(&gone.thread, NULL, stand_on_thread, &gone);
	cr_assert(queue_becomes(1));
	pthread_create(&next.thread, NULL, stand_on_thread, &next);
	cr_assert(eventually(both_wait, NULL, 20000));
	pthread_mutex_lock(&mutex);
	ctx_cancel(gone.ctx);
	cr_assert(wait_queue_hand(&queue, &next));
	cr_assert(eq(sz, queue.length, 0), "and is out of the queue");
	cr_assert_not(wait_queue_hand(&queue, &mutex));
	pthread_mutex_unlock(&mutex);
	pthread_join(gone.thread, NULL);
	pthread_join(next.thread, NULL);
	cr_assert(eq(int, gone.outcome, -1));
	cr_assert(eq(int, next.outcome, 0));
	cr_assert(eq(ptr, next.got, &next));
	ctx_end(gone.ctx);
}

Test(loop_queue, done_after_it_was_handed_keeps_what_it_got, .timeout = 60)
{
	struct customer customer = {.ctx = ctx_with_cancel(ctx_background())};
	pthread_create(&customer.thread, NULL, stand_on_thread, &customer);
	cr_assert(queue_becomes(1));
	pthread_mutex_lock(&mutex);
	cr_assert(wait_queue_hand(&queue, &mutex));
	ctx_cancel(customer.ctx);
	pthread_mutex_unlock(&mutex);
	pthread_join(customer.thread, NULL);
	cr_assert(eq(int, customer.outcome, 0));
	cr_assert(eq(ptr, customer.got, &mutex));
	ctx_end(customer.ctx);
}

/* ---- A pool of tokens, taken and given back by everybody, with contexts that end at random moments ------------- */

enum { TOKENS = 3, FIBERS = 40, THREADS = 2, TURNS = 2500, TAKERS = FIBERS + THREADS };

static struct token {
	atomic_int holders;
	struct token *next;
} tokens[TOKENS], *idle_tokens;

static atomic_long taken, gone_away;
static atomic_int takers_left;

static struct token *token_take(ctx *c)
{
	void *handed = NULL;
	pthread_mutex_lock(&mutex);
	struct token *token = idle_tokens;
	if (token)
		idle_tokens = token->next;
	else if (wait_queue_wait(c, &queue, &mutex, &handed) == 0)
		token = handed;
	pthread_mutex_unlock(&mutex);
	return token;
}

static void token_give_back(struct token *token)
{
	pthread_mutex_lock(&mutex);
	if (!wait_queue_hand(&queue, token)) {
		token->next = idle_tokens;
		idle_tokens = token;
	}
	pthread_mutex_unlock(&mutex);
}

static void take_turns(void *arg)
{
	unsigned random = (unsigned)(uintptr_t)arg * 2654435761u + 1;
	for (int i = 0; i < TURNS; i++) {
		random = random * 1103515245u + 12345u;
		ctx *c = ctx_with_timeout(ctx_background(), (int64_t)(random >> 16) % 400 * 1000);
		struct token *token = token_take(c);
		if (token) {
			if (atomic_fetch_add(&token->holders, 1) != 0)
				abort(); /* handed to two */
			if (random % 8 == 0)
				wait_sleep(ctx_background(), (int64_t)(random >> 8) % 50 * 1000);
			atomic_fetch_sub(&token->holders, 1);
			token_give_back(token);
			atomic_fetch_add(&taken, 1);
		} else {
			if (!ctx_err(c))
				abort();
			atomic_fetch_add(&gone_away, 1);
		}
		ctx_end(c);
	}
	atomic_fetch_sub(&takers_left, 1);
}

static void *take_turns_on_thread(void *arg)
{
	take_turns(arg);
	return NULL;
}

static bool all_taken(void *arg)
{
	(void)arg;
	return atomic_load(&takers_left) == 0;
}

Test(loop_queue, hundred_thousand_random_hand_overs, .timeout = 300)
{
	loop_thread *loops[] = {loop_thread_start(NULL), loop_thread_start(NULL)};
	pthread_t threads[THREADS];
	for (int i = 0; i < TOKENS; i++) {
		tokens[i].next = idle_tokens;
		idle_tokens = &tokens[i];
	}
	atomic_store(&takers_left, TAKERS);
	for (intptr_t i = 0; i < FIBERS; i++)
		cr_assert(eq(int, loop_spawn(loop_thread_loop(loops[i % 2]), take_turns, (void *)i), 0));
	for (intptr_t i = 0; i < THREADS; i++)
		pthread_create(&threads[i], NULL, take_turns_on_thread, (void *)(FIBERS + i));
	cr_assert(eventually(all_taken, NULL, 200000 / support_patience()));
	for (int i = 0; i < THREADS; i++)
		pthread_join(threads[i], NULL);
	for (int i = 0; i < 2; i++)
		loop_thread_stop(loops[i]);

	int idle = 0;
	for (struct token *token = idle_tokens; token; token = token->next)
		idle++;
	cr_assert(eq(int, idle, TOKENS), "none is lost");
	cr_assert(eq(sz, queue.length, 0));
	cr_assert(eq(long, atomic_load(&taken) + atomic_load(&gone_away), (long)TAKERS * TURNS));
	cr_expect(ge(long, atomic_load(&taken), 1));
	cr_expect(ge(long, atomic_load(&gone_away), 1));
}
