/* Who holds which KV block: a free stack, reference counts, and the blocks nobody holds but the prefix index knows.
 *
 *            take                      release, not indexed
 *   free  ---------->  used (count >= 1)  ---------->  free
 *     ^                  |        ^
 *     |                  v release| share              cached blocks stand in a list, least recently released first;
 *     +---- take ---- cached (count 0, indexed)        when the stack is empty, take evicts the first
 *
 * R1 free + used + cached = total.   R2 a block's count is the number of block tables that hold it; cached = count 0
 * and indexed. Counts change nowhere else. All operations O(1); no allocation after block_pool_init. Engine thread. */
#ifndef SCHEDULER_BLOCK_POOL_H
#define SCHEDULER_BLOCK_POOL_H

#include "runtime/base/status.h"
#include "runtime/batch.h"

#include <stdbool.h>
#include <stdint.h>

enum { BLOCK_NONE = UINT32_MAX };

/* A cached block is about to be used for something else: forget its content. Engine thread, inside take. */
typedef void (*block_evict_fn)(void *state, block_id block);

struct block_record {
    uint32_t references;
    uint32_t previous, next; /* in the cached list */
    bool indexed;
};

struct block_pool {
    struct block_record *records; /* [total] */
    block_id *free_stack;         /* [total] */
    uint32_t free_count, used_count, cached_count, total;
    uint32_t oldest, newest; /* ends of the cached list */
    block_evict_fn evict;
    void *evict_state;
    uint64_t touched;
};

NODISCARD enum status block_pool_init(struct block_pool *pool, uint32_t blocks, block_evict_fn evict,
                                      void *evict_state);
void block_pool_free(struct block_pool *pool);

/* Blocks that take can still give: free and cached. */
static inline uint32_t block_pool_available(const struct block_pool *pool)
{
    return pool->free_count + pool->cached_count;
}

/* A block with count 1 and no content. BLOCK_NONE when none is available. */
block_id block_pool_take(struct block_pool *pool);
void block_pool_share(struct block_pool *pool, block_id block);   /* one more holder; a cached block becomes used */
void block_pool_release(struct block_pool *pool, block_id block); /* one holder fewer */
/* Whether the prefix index knows the block. A cached block that it forgets becomes free. */
void block_pool_index(struct block_pool *pool, block_id block, bool indexed);

#endif
