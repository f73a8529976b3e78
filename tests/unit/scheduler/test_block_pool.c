/* Take, share, release and evict, in the order the header promises. */
#include "tests/unit/unit.h"

#include "scheduler/block_pool.h"

static block_id evicted[16];
static uint32_t evicted_count;

static void on_evict(void *state, block_id block)
{
    (void)state;
    evicted[evicted_count++] = block;
}

static void test_block_pool_life(void **state)
{
    (void)state;
    struct block_pool pool;
    evicted_count = 0;
    assert_int_equal(block_pool_init(&pool, 4, on_evict, NULL), ST_OK);
    for (uint32_t i = 0; i < 4; i++) assert_int_equal(block_pool_take(&pool), i);
    assert_int_equal(block_pool_take(&pool), BLOCK_NONE);
    assert_int_equal(evicted_count, 0); /* used blocks are never evicted */

    block_pool_index(&pool, 1, true);
    block_pool_index(&pool, 3, true);
    block_pool_share(&pool, 1);
    block_pool_release(&pool, 1);
    assert_int_equal(pool.used_count, 4); /* one holder is left */
    block_pool_release(&pool, 3);         /* cached, the oldest */
    block_pool_release(&pool, 1);         /* cached */
    block_pool_release(&pool, 0);         /* free */
    assert_int_equal(pool.free_count, 1);
    assert_int_equal(pool.cached_count, 2);
    assert_int_equal(pool.used_count, 1);
    assert_int_equal(block_pool_available(&pool), 3);

    assert_int_equal(block_pool_take(&pool), 0); /* free before cached */
    assert_int_equal(block_pool_take(&pool), 3); /* then the least recently released */
    assert_int_equal(evicted_count, 1);
    assert_int_equal(evicted[0], 3);
    block_pool_share(&pool, 1); /* a hit brings a cached block back */
    assert_int_equal(pool.cached_count, 0);
    assert_int_equal(block_pool_take(&pool), BLOCK_NONE);
    block_pool_release(&pool, 1);
    block_pool_index(&pool, 1, false); /* forgotten while cached: free */
    assert_int_equal(pool.free_count, 1);
    assert_int_equal(pool.cached_count, 0);
    assert_int_equal(evicted_count, 1);
    block_pool_free(&pool);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_block_pool_life)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
