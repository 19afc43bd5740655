/*
 * wait_queue: first come, first served, over fibers of any loop and threads.
 *
 * Each waiter stands in the queue with a place on its own stack. All fields but the event are guarded by the
 * queue's mutex, so a place that is handed something and one that leaves because its context is done are
 * told apart by the order in which they got it. A hand never goes to somebody whose context is done already,
 * even if it has not come round to leaving yet; one that is done a moment later returns with what it was
 * handed.
 */
#include "loop_priv.h"

struct wait_place {
	struct wait_place *next, *previous;
	wait_event event;
	ctx *ctx;
	void *thing;
	bool queued, handed;
};

static void place_enter(wait_queue *q, struct wait_place *place)
{
	place->next = NULL;
	place->previous = q->last;
	if (q->last)
		q->last->next = place;
	else
		q->first = place;
	q->last = place;
	q->length++;
	place->queued = true;
}

static void place_leave(wait_queue *q, struct wait_place *place)
{
	if (place->next)
		place->next->previous = place->previous;
	else
		q->last = place->previous;
	if (place->previous)
		place->previous->next = place->next;
	else
		q->first = place->next;
	q->length--;
	place->queued = false;
}

int wait_queue_wait(ctx *c, wait_queue *q, pthread_mutex_t *mutex, void **handed)
{
	loop_waiting_fiber("wait_queue_wait");
	if (ctx_err(c))
		return loop_fail(ctx_err(c)->code);
	struct wait_place place = {.event = WAIT_EVENT_INIT, .ctx = c};
	place_enter(q, &place);
	pthread_mutex_unlock(mutex);
	wait_event_wait(c, &place.event);
	pthread_mutex_lock(mutex);
	if (place.handed) {
		*handed = place.thing;
		return 0;
	}
	if (place.queued)
		place_leave(q, &place);
	return loop_fail(ctx_err(c)->code);
}

bool wait_queue_hand(wait_queue *q, void *thing)
{
	struct wait_place *place;
	while ((place = q->first)) {
		place_leave(q, place);
		if (ctx_err(place->ctx))
			continue; /* it is about to find itself gone */
		place->thing = thing;
		place->handed = true;
		wait_event_set(&place->event);
		return true;
	}
	return false;
}
