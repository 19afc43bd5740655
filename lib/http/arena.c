/*
 * Arenas: memory that a request gives back all at once. The first piece lies inside the request itself and
 * is enough for most, so that a request costs one allocation.
 */
#include <errno.h>
#include <string.h>

#include "http_priv.h"

enum { BLOCK_SIZE = 4096 };

struct arena_block {
	struct arena_block *next;
	max_align_t data[];
};

void arena_init(arena *a, void *first, size_t size)
{
	*a = (arena){.next = first, .end = (char *)first + size};
}

void arena_free(arena *a)
{
	struct arena_block *next;
	for (struct arena_block *block = a->blocks; block; block = next) {
		next = block->next;
		free(block);
	}
	*a = (arena){0};
}

static bool arena_grow(arena *a, size_t size)
{
	if (size > SIZE_MAX / 2) {
		errno = ENOMEM;
		return false;
	}
	size_t room = size > BLOCK_SIZE ? size : BLOCK_SIZE;
	struct arena_block *block = malloc(sizeof(*block) + room);
	if (!block)
		return false;
	block->next = a->blocks;
	a->blocks = block;
	a->next = (char *)block->data;
	a->end = a->next + room;
	return true;
}

void *arena_alloc(arena *a, size_t size)
{
	size_t padding = -(uintptr_t)a->next & (_Alignof(max_align_t) - 1);
	size_t room = (size_t)(a->end - a->next);
	if (room < padding || room - padding < size) {
		if (!arena_grow(a, size))
			return NULL;
		padding = 0;
	}
	char *memory = a->next + padding;
	a->next = memory + size;
	return memory;
}

/* Text needs no alignment: strings lie side by side. */
char *arena_copy(arena *a, const char *text, size_t size)
{
	if (size >= (size_t)(a->end - a->next) && !arena_grow(a, size + 1))
		return NULL;
	char *copy = a->next;
	a->next += size + 1;
	memcpy(copy, text, size);
	copy[size] = '\0';
	return copy;
}
