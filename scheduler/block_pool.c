/* Free stack, reference counts and the cached list of KV blocks; see block_pool.h. */
#include "scheduler/block_pool.h"

#include "runtime/base/check.h"
#include "runtime/base/mem.h"
#include "scheduler/planted.h"

#include <string.h>

enum status block_pool_init(struct block_pool *pool, uint32_t blocks, block_evict_fn evict, void *evict_state)
{
    memset(pool, 0, sizeof *pool);
    pool->records = mem_alloc(blocks, sizeof *pool->records);
    pool->free_stack = mem_alloc(blocks, sizeof *pool->free_stack);
    if (!pool->records || !pool->free_stack) {
        block_pool_free(pool);
        return ST_NOMEM;
    }
    pool->total = pool->free_count = blocks;
    for (uint32_t i = 0; i < blocks; i++) pool->free_stack[i] = blocks - 1 - i; /* low ids first */
    pool->oldest = pool->newest = BLOCK_NONE;
    pool->evict = evict;
    pool->evict_state = evict_state;
    return ST_OK;
}

void block_pool_free(struct block_pool *pool)
{
    mem_free(pool->records);
    mem_free(pool->free_stack);
    memset(pool, 0, sizeof *pool);
}

static void list_append(struct block_pool *pool, block_id block)
{
    struct block_record *record = &pool->records[block];
    record->previous = pool->newest;
    record->next = BLOCK_NONE;
    if (pool->newest != BLOCK_NONE)
        pool->records[pool->newest].next = block;
    else
        pool->oldest = block;
    pool->newest = block;
    pool->cached_count++;
}

static void list_remove(struct block_pool *pool, block_id block)
{
    struct block_record *record = &pool->records[block];
    if (record->previous != BLOCK_NONE)
        pool->records[record->previous].next = record->next;
    else
        pool->oldest = record->next;
    if (record->next != BLOCK_NONE)
        pool->records[record->next].previous = record->previous;
    else
        pool->newest = record->previous;
    pool->cached_count--;
}

static void check_total(const struct block_pool *pool)
{
    CHECK(pool->free_count + pool->used_count + pool->cached_count == pool->total); /* R1 */
}

block_id block_pool_take(struct block_pool *pool)
{
    pool->touched++;
    if (!pool->free_count) {
        if (pool->oldest == BLOCK_NONE) return BLOCK_NONE;
        block_id victim = pool->oldest;
        pool->evict(pool->evict_state, victim);
        block_pool_index(pool, victim, false);
    }
    block_id block = pool->free_stack[--pool->free_count];
    struct block_record *record = &pool->records[block];
    CHECK(record->references == 0 && !record->indexed);
    record->references = 1;
    pool->used_count++;
    check_total(pool);
    return block;
}

void block_pool_share(struct block_pool *pool, block_id block)
{
    pool->touched++;
    struct block_record *record = &pool->records[block];
    if (!record->references) {
        CHECK(record->indexed); /* a free block has no content to share */
        list_remove(pool, block);
        pool->used_count++;
        record->references = 1;
        return;
    }
    if (!PLANTED(SKIP_REFERENCE)) record->references++;
}

void block_pool_release(struct block_pool *pool, block_id block)
{
    pool->touched++;
    struct block_record *record = &pool->records[block];
    if (PLANTED(SKIP_REFERENCE) && !record->references) return;
    CHECK(record->references > 0);
    if (--record->references) return;
    pool->used_count--;
    if (record->indexed)
        list_append(pool, block);
    else
        pool->free_stack[pool->free_count++] = block;
    check_total(pool);
}

void block_pool_index(struct block_pool *pool, block_id block, bool indexed)
{
    pool->touched++;
    struct block_record *record = &pool->records[block];
    if (record->indexed == indexed) return;
    record->indexed = indexed;
    if (record->references) return;
    CHECK(!indexed); /* only a block that somebody holds is full and committed */
    list_remove(pool, block);
    pool->free_stack[pool->free_count++] = block;
}
