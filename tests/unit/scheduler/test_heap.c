/* The heap against a plain array under random changes. */
#include "tests/unit/unit.h"

#include "runtime/base/random.h"
#include "scheduler/heap.h"

enum { IDS = 64 };

static void test_heap_random(void **state)
{
    (void)state;
    uint64_t rng = 11, keys[IDS];
    bool inside[IDS] = {false};
    struct heap heap;
    assert_int_equal(heap_init(&heap, IDS), ST_OK);
    assert_int_equal(heap_top(&heap), HEAP_NONE);
    for (uint32_t round = 0; round < 200000; round++) {
        uint32_t id = (uint32_t)(random_next(&rng) % IDS);
        if (random_next(&rng) % 3) {
            keys[id] = random_next(&rng) % 20; /* many ties */
            inside[id] = true;
            heap_set(&heap, id, keys[id]);
        } else {
            inside[id] = false;
            heap_remove(&heap, id);
        }
        uint32_t best = HEAP_NONE, count = 0;
        for (uint32_t i = 0; i < IDS; i++) {
            count += inside[i];
            assert_int_equal(heap_contains(&heap, i), inside[i]);
            if (inside[i] && (best == HEAP_NONE || keys[i] < keys[best])) best = i;
        }
        assert_int_equal(heap_top(&heap), best);
        assert_int_equal(heap.count, count);
    }
    heap_free(&heap);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_heap_random)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
