/* Heap memory: the seam through which every allocation of ours passes.
 *
 * Sizes are multiplied with overflow checks; a failed allocation returns NULL and the caller reports ST_NOMEM. Tests
 * replace the hook to fail the k-th allocation, and read the counters to show that the step loop allocates nothing.
 * Large and long-lived (weights, KV) memory comes from mem_map: anonymous pages, huge where the system has them.
 * Any thread. The hook is set before other threads start. */
#ifndef RUNTIME_BASE_MEM_H
#define RUNTIME_BASE_MEM_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* a + b and a * b into *out; false when the result does not fit. Lengths from outside go through these. */
static inline bool checked_add(size_t a, size_t b, size_t *out)
{
    return !__builtin_add_overflow(a, b, out);
}
static inline bool checked_mul(size_t a, size_t b, size_t *out)
{
    return !__builtin_mul_overflow(a, b, out);
}

/* Zeroed memory for count items of size bytes, 64-byte aligned when count * size >= 64. NULL when there is none.
 * A request for 0 bytes returns a valid pointer. Release with mem_free. */
void *mem_alloc(size_t count, size_t size_bytes) __attribute__((malloc, warn_unused_result));

/* Grows or shrinks memory of mem_alloc; new bytes are not zeroed. On NULL the old memory stays valid. */
void *mem_resize(void *memory, size_t count, size_t size_bytes) __attribute__((warn_unused_result));

/* A NUL-terminated copy of length bytes. */
char *mem_strdup(const char *text, size_t length) __attribute__((malloc, warn_unused_result));

void mem_free(void *memory); /* NULL is fine */

/* Zeroed anonymous pages, page-aligned, committed at first touch; asks for huge pages. NULL when there is none. */
void *mem_map(size_t size_bytes) __attribute__((warn_unused_result));
void mem_unmap(void *memory, size_t size_bytes);
/* Gives the pages of mem_map back to the system; the memory stays valid and reads as zero until it is written again. */
void mem_map_empty(void *memory, size_t size_bytes);

/* Called before each allocation with its size; returning false makes it fail. For tests. NULL restores the default. */
typedef bool (*mem_hook_fn)(void *state, size_t size_bytes);
void mem_hook_set(mem_hook_fn hook, void *state);

/* Allocations (mem_alloc, mem_resize, mem_strdup, mem_map) since the process started, and those by the calling thread.
 */
uint64_t mem_allocations(void);
uint64_t mem_allocations_of_thread(void);

#endif
