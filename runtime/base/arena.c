/* Chunks of 4 KiB and up, doubling to 64 KiB; a large request gets a chunk of its own. See arena.h. */
#include "runtime/base/arena.h"

#include "runtime/base/mem.h"

#include <stdint.h>
#include <string.h>

enum { CHUNK_BYTES_FIRST = 4096, CHUNK_BYTES_MAX = 65536 };

struct arena_chunk {
    struct arena_chunk *next;
    size_t used, capacity;
    _Alignas(16) uint8_t data[];
};

void arena_init(struct arena *arena, size_t limit_bytes)
{
    *arena = (struct arena){.limit_bytes = limit_bytes};
}

void arena_free(struct arena *arena)
{
    while (arena->chunks) {
        struct arena_chunk *next = arena->chunks->next;
        mem_free(arena->chunks);
        arena->chunks = next;
    }
    arena->used_bytes = 0;
}

void *arena_alloc(struct arena *arena, size_t count, size_t size_bytes)
{
    size_t bytes;
    if (!checked_mul(count, size_bytes, &bytes) || bytes > SIZE_MAX / 2) return NULL;
    bytes = (bytes + 15) & ~(size_t)15;
    if (arena->limit_bytes && bytes > arena->limit_bytes - arena->used_bytes) return NULL;
    struct arena_chunk *chunk = arena->chunks;
    if (!chunk || chunk->capacity - chunk->used < bytes) {
        size_t capacity = chunk ? chunk->capacity * 2 : CHUNK_BYTES_FIRST;
        if (capacity > CHUNK_BYTES_MAX) capacity = CHUNK_BYTES_MAX;
        if (capacity < bytes) capacity = bytes;
        chunk = mem_alloc(1, sizeof *chunk + capacity);
        if (!chunk) return NULL;
        chunk->capacity = capacity;
        chunk->next = arena->chunks;
        arena->chunks = chunk;
    }
    void *memory = chunk->data + chunk->used;
    chunk->used += bytes;
    arena->used_bytes += bytes;
    return memory;
}

char *arena_strdup(struct arena *arena, const char *text, size_t length)
{
    size_t bytes;
    if (!checked_add(length, 1, &bytes)) return NULL;
    char *copy = arena_alloc(arena, bytes, 1);
    if (copy && length) memcpy(copy, text, length);
    return copy;
}
