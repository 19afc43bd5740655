/*
 * nghttp2's memory: each session's is on a list, and is given back all at once.
 *
 * nghttp2_session_del is not asked to do it. After an allocation that failed, while a frame was being sent, it frees
 * what has been freed already (1.52: the item of a stream's DATA). The list knows what there is.
 */
#include <stddef.h>
#include <string.h>

#include "h2_priv.h"

/* Before each piece. */
struct h2_block {
	_Alignas(max_align_t) h2_block *next;
	h2_block *previous;
};

static void link_block(h2 *h, h2_block *b)
{
	b->previous = NULL;
	b->next = h->memory;
	if (b->next)
		b->next->previous = b;
	h->memory = b;
}

static void unlink_block(h2 *h, h2_block *b)
{
	if (b->next)
		b->next->previous = b->previous;
	if (b->previous)
		b->previous->next = b->next;
	else
		h->memory = b->next;
}

static void *take(size_t size, void *h)
{
	h2_block *b = size <= SIZE_MAX - sizeof(*b) ? malloc(sizeof(*b) + size) : NULL;
	if (!b)
		return NULL;
	link_block(h, b);
	return b + 1;
}

static void *take_zeroed(size_t count, size_t size, void *h)
{
	size_t total;
	void *piece = __builtin_mul_overflow(count, size, &total) ? NULL : take(total, h);
	return piece ? memset(piece, 0, total) : NULL;
}

static void give_back(void *piece, void *h)
{
	if (!piece)
		return;
	h2_block *b = (h2_block *)piece - 1;
	unlink_block(h, b);
	free(b);
}

static void *resize(void *piece, size_t size, void *h)
{
	if (!piece)
		return take(size, h);
	h2_block *b = (h2_block *)piece - 1;
	if (size > SIZE_MAX - sizeof(*b))
		return NULL;
	unlink_block(h, b);
	h2_block *resized = realloc(b, sizeof(*b) + size);
	link_block(h, resized ? resized : b);
	return resized ? resized + 1 : NULL;
}

nghttp2_mem h2_memory(h2 *h)
{
	return (nghttp2_mem){.mem_user_data = h,
	                     .malloc = take,
	                     .calloc = take_zeroed,
	                     .realloc = resize,
	                     .free = give_back};
}

void h2_memory_free(h2 *h)
{
	h2_block *next;
	for (h2_block *b = h->memory; b; b = next) {
		next = b->next;
		free(b);
	}
	h->memory = NULL;
}
