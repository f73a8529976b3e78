/* A binary min-heap of small ids with 64-bit keys, where each id is in at most once and can be moved or taken out.
 *
 *   items[0] is the id with the lowest key; equal keys come out by rising id, so the order is the same everywhere
 *   position[id] is where id stands in items, HEAP_NONE when it is not inside
 *
 * Used for tenants by counter, deadlines and ageing. A timer wheel was the first plan for the last two: the heap is
 * exact, shorter, and costs O(log waiting) only where a request comes or goes. No allocation after heap_init. One
 * thread. */
#ifndef SCHEDULER_HEAP_H
#define SCHEDULER_HEAP_H

#include "runtime/base/status.h"

#include <stdbool.h>
#include <stdint.h>

enum { HEAP_NONE = UINT32_MAX };

struct heap {
    uint32_t *items;    /* [ids_max] */
    uint32_t *position; /* [ids_max] */
    uint64_t *keys;     /* [ids_max] by id */
    uint32_t count, ids_max;
    uint64_t touched; /* records moved or compared since the start, for the tests of the growth law */
};

NODISCARD enum status heap_init(struct heap *heap, uint32_t ids_max); /* ST_NOMEM */
void heap_free(struct heap *heap);

void heap_set(struct heap *heap, uint32_t id, uint64_t key); /* inserts id or changes its key */
void heap_remove(struct heap *heap, uint32_t id);            /* harmless when id is not inside */

static inline uint32_t heap_top(const struct heap *heap)
{
    return heap->count ? heap->items[0] : HEAP_NONE;
}
static inline bool heap_contains(const struct heap *heap, uint32_t id)
{
    return heap->position[id] != HEAP_NONE;
}

#endif
