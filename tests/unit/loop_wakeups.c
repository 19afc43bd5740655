/* Wake-ups: that one is enough for many posts, that none is lost, and that each thread's posts stay in order. */
#include <criterion/criterion.h>
#include <criterion/new/assert.h>
#include <semaphore.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "loops.h"
#include "support.h"

/* libuv wakes a loop by writing the 8 bytes of an eventfd, found here before libc's write. */
static atomic_int wakeups;

ssize_t write(int fd, const void *buf, size_t n)
{
	if (n == 8)
		atomic_fetch_add(&wakeups, 1);
	return syscall(SYS_write, fd, buf, n);
}

enum { BURST = 1000 };

typedef struct burst {
	sem_t held, release;
	atomic_int turns, done;
} burst;

static burst b;

static void hold(void *arg)
{
	(void)arg;
	sem_post(&b.held);
	while (sem_wait(&b.release) != 0)
		;
}

static void count_task(loop_task *task)
{
	(void)task;
	b.done++;
}

static bool count_turn(loop_turn *turn)
{
	(void)turn;
	if (b.done < BURST)
		b.turns++;
	return false;
}

static bool all_done(void *arg)
{
	return atomic_load((atomic_int *)arg) == BURST;
}

static bool is_at_rest(void *arg)
{
	static int turns_before;
	int turns = atomic_load(&b.turns);
	bool at_rest = turns > 0 && turns == turns_before;
	(void)arg;
	turns_before = turns;
	return at_rest;
}

static void add_turn(void *arg)
{
	loop_turn_add(loop_current(), arg);
}

static void remove_turn(void *arg)
{
	loop_turn_remove(loop_current(), arg);
}

Test(loop_wakeups, a_burst_of_posts_is_one_wakeup_and_one_turn, .timeout = 60)
{
	static loop_task tasks[BURST];
	loop_turn turn = {.fn = count_turn};
	sem_init(&b.held, 0, 0);
	sem_init(&b.release, 0, 0);
	loop_thread *t = loop_thread_start(NULL);
	loop *l = loop_thread_loop(t);
	loop_post(l, add_turn, &turn);
	cr_assert(eventually(is_at_rest, NULL,
	                     20000)); /* libuv, which coalesces too, has no wake-up on its hands */
	loop_post(l, hold, NULL);
	sem_wait(&b.held);

	int before = atomic_load(&wakeups);
	atomic_store(&b.turns, 0);
	for (int i = 0; i < BURST; i++) {
		tasks[i].fn = count_task;
		loop_post_task(l, &tasks[i]);
	}
	cr_expect(eq(int, atomic_load(&wakeups) - before, 0), "an awake loop is not woken");
	sem_post(&b.release);
	cr_assert(eventually(all_done, &b.done, 20000));
	cr_expect(le(int, atomic_load(&b.turns), 1), "all in one turn after the one that was held");
	cr_expect(le(int, atomic_load(&wakeups) - before, 1));
	loop_post(l, remove_turn, &turn);
	loop_thread_stop(t);
}

/* One post at a time to a loop that may be falling asleep at that very moment: none may be left lying. */
static void answer(loop_task *task)
{
	(void)task;
	sem_post(&b.held);
}

Test(loop_wakeups, no_wakeup_is_lost, .timeout = 120)
{
	loop_task task = {.fn = answer};
	sem_init(&b.held, 0, 0);
	loop_thread *t = loop_thread_start(NULL);
	for (int i = 0; i < 30000; i++) {
		loop_post_task(loop_thread_loop(t), &task);
		while (sem_wait(&b.held) != 0)
			;
	}
	loop_thread_stop(t);
}

enum { POSTERS = 4, POSTS = 20000 };

typedef struct numbered_task {
	loop_task task;
	int poster, number;
} numbered_task;

static int next_of[POSTERS];
static atomic_int out_of_order;

static void check_number(loop_task *task)
{
	numbered_task *numbered = (numbered_task *)task;
	if (next_of[numbered->poster]++ != numbered->number)
		atomic_fetch_add(&out_of_order, 1);
	free(numbered);
}

typedef struct poster {
	pthread_t thread;
	loop *loop;
	int number;
} poster;

static void *post_many(void *arg)
{
	poster *p = arg;
	for (int i = 0; i < POSTS; i++) {
		numbered_task *task = malloc(sizeof(*task));
		*task = (numbered_task){{.fn = check_number}, p->number, i};
		loop_post_task(p->loop, &task->task);
	}
	return NULL;
}

Test(loop_wakeups, posts_of_each_thread_stay_in_order, .timeout = 120)
{
	poster posters[POSTERS];
	loop_thread *t = loop_thread_start(NULL);
	for (int i = 0; i < POSTERS; i++) {
		posters[i] = (poster){.loop = loop_thread_loop(t), .number = i};
		pthread_create(&posters[i].thread, NULL, post_many, &posters[i]);
	}
	for (int i = 0; i < POSTERS; i++)
		pthread_join(posters[i].thread, NULL);
	loop_thread_stop(t); /* everything posted before the stop still runs */
	cr_assert(eq(int, atomic_load(&out_of_order), 0));
	for (int i = 0; i < POSTERS; i++)
		cr_assert(eq(int, next_of[i], POSTS));
}
