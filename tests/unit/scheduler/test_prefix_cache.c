/* Keys depend on all that they must; hits are verified; removal leaves no hole in a probe. */
#include "tests/unit/unit.h"

#include "runtime/base/random.h"
#include "scheduler/prefix_cache.h"

enum { BLOCKS = 200 };

static bool same(struct prefix_key a, struct prefix_key b)
{
    return a.words[0] == b.words[0] && a.words[1] == b.words[1];
}

static void test_prefix_cache_keys(void **state)
{
    (void)state;
    uint8_t secret[32] = {1}, other[32] = {2};
    uint32_t ids[KV_BLOCK_TOKENS] = {3, 1, 4}, changed[KV_BLOCK_TOKENS] = {3, 1, 5};
    struct prefix_key root = prefix_cache_root(secret, 0), key = prefix_cache_key(root, ids);
    assert_true(same(root, prefix_cache_root(secret, 0)));
    assert_false(same(root, prefix_cache_root(other, 0)));
    assert_false(same(root, prefix_cache_root(secret, 1)));
    assert_true(same(key, prefix_cache_key(root, ids)));
    assert_false(same(key, prefix_cache_key(root, changed)));
    assert_false(same(key, prefix_cache_key(key, ids)));
}

static void test_prefix_cache_verifies(void **state)
{
    (void)state;
    struct prefix_cache cache;
    assert_int_equal(prefix_cache_init(&cache, BLOCKS), ST_OK);
    uint32_t ids[KV_BLOCK_TOKENS] = {1}, other[KV_BLOCK_TOKENS] = {2};
    struct prefix_key root = {{5, 6}}, key = {{9, 9}};
    struct prefix_content content = {.key = key, .root = root, .parent = 0, .ids = ids};
    assert_int_equal(prefix_cache_insert(&cache, 7, &content), 7);
    assert_int_equal(prefix_cache_find(&cache, &content), 7);
    struct prefix_content lie = content;
    lie.ids = other; /* equal key, other ids: a collision is a miss, and is not indexed */
    assert_int_equal(prefix_cache_find(&cache, &lie), BLOCK_NONE);
    assert_int_equal(prefix_cache_insert(&cache, 8, &lie), BLOCK_NONE);
    lie = content;
    lie.root.words[0]++; /* another domain */
    assert_int_equal(prefix_cache_find(&cache, &lie), BLOCK_NONE);
    lie = content;
    lie.parent = 77; /* the parent is not the block matched before */
    assert_int_equal(prefix_cache_find(&cache, &lie), BLOCK_NONE);
    assert_int_equal(prefix_cache_insert(&cache, 9, &content), 7); /* the first block is canonical */
    assert_int_equal(prefix_cache_insert(&cache, 9, &lie), 7);     /* its parent came back under another serial */
    assert_int_equal(prefix_cache_find(&cache, &lie), 7);
    prefix_cache_remove(&cache, 7);
    assert_int_equal(prefix_cache_find(&cache, &lie), BLOCK_NONE);
    assert_int_equal(cache.count, 0);
    prefix_cache_free(&cache);
}

/* Keys crowd into few homes, so that runs are long and wrap around the table's end. */
static void test_prefix_cache_random(void **state)
{
    (void)state;
    struct prefix_cache cache;
    assert_int_equal(prefix_cache_init(&cache, BLOCKS), ST_OK);
    uint64_t rng = 3;
    bool inside[BLOCKS] = {false};
    struct prefix_key keys[BLOCKS], root = {{0, 0}};
    uint32_t ids[KV_BLOCK_TOKENS] = {0};
    for (uint32_t round = 0; round < 20000; round++) {
        uint32_t b = (uint32_t)(random_next(&rng) % BLOCKS);
        if (inside[b]) {
            prefix_cache_remove(&cache, b);
        } else {
            keys[b] = (struct prefix_key){{cache.mask - random_next(&rng) % 8, round + 1}};
            struct prefix_content content = {.key = keys[b], .root = root, .ids = ids};
            assert_int_equal(prefix_cache_insert(&cache, b, &content), b);
        }
        inside[b] = !inside[b];
        uint32_t probe = (uint32_t)(random_next(&rng) % BLOCKS);
        if (inside[probe]) assert_int_equal(prefix_cache_holder(&cache, keys[probe]), probe);
    }
    uint32_t count = 0;
    for (uint32_t b = 0; b < BLOCKS; b++) {
        count += inside[b];
        if (inside[b]) assert_int_equal(prefix_cache_holder(&cache, keys[b]), b);
    }
    assert_int_equal(cache.count, count);
    prefix_cache_free(&cache);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_prefix_cache_keys),
                                       cmocka_unit_test(test_prefix_cache_verifies),
                                       cmocka_unit_test(test_prefix_cache_random)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
