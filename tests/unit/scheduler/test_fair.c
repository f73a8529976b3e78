/* Ranks before counters, counters before arrival, groups and priorities inside a tenant; removal from anywhere. */
#include "tests/unit/unit.h"

#include "runtime/base/random.h"
#include "scheduler/fair.h"

enum { TENANTS = 6, ENTRIES = 300 };

static void test_fair_order(void **state)
{
    (void)state;
    struct fair fair;
    assert_int_equal(fair_init(&fair, TENANTS, ENTRIES), ST_OK);
    assert_int_equal(fair_top(&fair), FAIR_NONE);
    fair_push(&fair, 0, 1, 2, FAIR_NEW, 0, 10);
    fair_push(&fair, 1, 1, 2, FAIR_NEW, -1, 11);
    assert_int_equal(fair_top(&fair), 1); /* lower priority first */
    fair_push(&fair, 2, 1, 2, FAIR_CHOICE, 9, 12);
    assert_int_equal(fair_top(&fair), 2); /* started requests before new ones */
    fair_push(&fair, 3, 1, 2, FAIR_PREEMPTED, 9, 13);
    assert_int_equal(fair_top(&fair), 3);
    fair_push(&fair, 4, 0, 3, FAIR_PREEMPTED, -9, 1);
    assert_int_equal(fair_top(&fair), 3); /* a higher rank comes first */
    fair_push(&fair, 5, 0, 1, FAIR_NEW, 0, 14);
    assert_int_equal(fair_top(&fair), 5);
    fair_remove(&fair, 5);
    fair_push(&fair, 6, 2, 2, FAIR_NEW, 0, 15);
    fair_charge(&fair, 1, 2, 5);
    fair_settle(&fair);
    assert_int_equal(fair_top(&fair), 6); /* the tenant that has had less */
    fair_free(&fair);
}

static void test_fair_idling_saves_no_credit(void **state)
{
    (void)state;
    struct fair fair;
    assert_int_equal(fair_init(&fair, TENANTS, ENTRIES), ST_OK);
    fair_push(&fair, 0, 0, 2, FAIR_NEW, 0, 1);
    fair_run_begin(&fair, 0, 2);
    fair_charge(&fair, 0, 2, 1000);
    fair_settle(&fair);
    fair_push(&fair, 1, 1, 2, FAIR_NEW, 0, 2);
    assert_int_equal(fair_account(&fair, 1, 2)->counter, 1000); /* lifted to the lowest active counter */
    fair_remove(&fair, 0);
    fair_run_end(&fair, 0, 2);
    assert_int_equal(fair.active[2].count, 1);
    fair_free(&fair);
}

/* Against a scan over all entries. */
static void test_fair_random(void **state)
{
    (void)state;
    struct fair fair;
    assert_int_equal(fair_init(&fair, TENANTS, ENTRIES), ST_OK);
    uint64_t rng = 5;
    for (uint32_t round = 0; round < 30000; round++) {
        uint32_t e = (uint32_t)(random_next(&rng) % ENTRIES);
        if (fair.entries[e].waiting) {
            fair_remove(&fair, random_next(&rng) % 2 ? e : fair_top(&fair));
        } else {
            fair_push(&fair, e, (uint32_t)(random_next(&rng) % TENANTS), (uint32_t)(random_next(&rng) % FAIR_RANKS),
                      (enum fair_group)(random_next(&rng) % 3), (int32_t)(random_next(&rng) % 5), round + 1);
        }
        if (random_next(&rng) % 4 == 0) {
            fair_charge(&fair, (uint32_t)(random_next(&rng) % TENANTS), (uint32_t)(random_next(&rng) % FAIR_RANKS),
                        random_next(&rng) % 50);
            fair_settle(&fair);
        }
        uint32_t best = FAIR_NONE;
        for (uint32_t i = 0; i < ENTRIES; i++) {
            const struct fair_entry *a = &fair.entries[i], *b = &fair.entries[best == FAIR_NONE ? i : best];
            if (!a->waiting) continue;
            uint64_t ca = fair_account(&fair, a->tenant, a->rank)->counter,
                     cb = fair_account(&fair, b->tenant, b->rank)->counter;
            bool first = a->rank != b->rank           ? a->rank < b->rank
                         : ca != cb                   ? ca < cb
                         : a->tenant != b->tenant     ? a->tenant < b->tenant
                         : a->group != b->group       ? a->group < b->group
                         : a->priority != b->priority ? a->priority < b->priority
                                                      : a->order < b->order;
            if (best == FAIR_NONE || first) best = i;
        }
        assert_int_equal(fair_top(&fair), best);
    }
    fair_free(&fair);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_fair_order),
                                       cmocka_unit_test(test_fair_idling_saves_no_credit),
                                       cmocka_unit_test(test_fair_random)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
