/* A bump allocator: everything of one request, released at once. Memory comes in chunks from mem_alloc and never moves;
 * the limit bounds what one request can make the process hold. Owner: one request; one thread at a time. */
#ifndef RUNTIME_BASE_ARENA_H
#define RUNTIME_BASE_ARENA_H

#include <stddef.h>

struct arena_chunk;

struct arena {
    struct arena_chunk *chunks; /* newest first */
    size_t used_bytes;          /* over all chunks */
    size_t limit_bytes;         /* 0 = no limit */
};

void arena_init(struct arena *arena, size_t limit_bytes);
void arena_free(struct arena *arena); /* releases everything; the arena stays usable */

/* Zeroed memory for count items, 16-byte aligned, valid until arena_free. NULL: limit or no memory. */
void *arena_alloc(struct arena *arena, size_t count, size_t size_bytes) __attribute__((warn_unused_result));
/* A NUL-terminated copy of length bytes. */
char *arena_strdup(struct arena *arena, const char *text, size_t length) __attribute__((warn_unused_result));

#endif
