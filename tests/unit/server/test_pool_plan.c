/* What the pool decides: offers, take-backs, and how much is pulled, each at its edge. */
#include "tests/unit/unit.h"

#include "server/pool/pool_plan.h"

static const int64_t HOUR_MS = 3600000;

static struct pool_offer offer_in(int64_t left_ms)
{
    return (struct pool_offer){
        .now_ms = HOUR_MS, .deadline_ms = HOUR_MS + left_ms, .span_ms = 5000, .waits_green = true};
}

static void test_pool_plan_offers(void **state)
{
    (void)state;
    struct pool_offer offer = offer_in(24 * HOUR_MS);
    assert_true(pool_may_offer(&offer));
    offer.waits_green = false; /* it runs, or waits for something that others cannot help with */
    assert_false(pool_may_offer(&offer));
    offer.waits_green = true;
    offer.expected_ms = offer.now_ms + POOL_WAIT_MS_MIN;
    assert_true(pool_may_offer(&offer));
    offer.expected_ms--; /* own green comes before others could do it */
    assert_false(pool_may_offer(&offer));
    offer = offer_in(2 * POOL_TAKE_BACK_MS + 5000);
    assert_false(pool_may_offer(&offer)); /* it would be taken back soon */
    offer.deadline_ms++;
    assert_true(pool_may_offer(&offer));
}

static void test_pool_plan_takes_back(void **state)
{
    (void)state;
    struct pool_offer offer = offer_in(24 * HOUR_MS);
    assert_false(pool_takes_back(&offer, false, false));
    assert_false(pool_takes_back(&offer, false, true));
    assert_true(pool_takes_back(&offer, true, false)); /* let go here, and nobody has it */
    assert_false(pool_takes_back(&offer, true, true));
    offer = offer_in(POOL_TAKE_BACK_MS + 5001);
    assert_false(pool_takes_back(&offer, true, true));
    offer.deadline_ms--; /* the last moment: whoever has it, and whatever the plan says */
    assert_true(pool_takes_back(&offer, true, true));
    assert_true(pool_takes_back(&offer, false, false));
    /* Between what may be offered and what is taken back there is a slot. */
    for (int64_t left_ms = 0; left_ms < 3 * POOL_TAKE_BACK_MS; left_ms += 1000) {
        offer = offer_in(left_ms);
        assert_false(pool_may_offer(&offer) && pool_takes_back(&offer, false, true));
    }
}

static void test_pool_plan_pulls(void **state)
{
    (void)state;
    struct pool_room room = {.surplus_s = 100, .running_max = 32, .kv_tokens = 10000};
    assert_int_equal(pool_pulls(&room), 1); /* the first, to learn from */
    room.running = 1;
    assert_int_equal(pool_pulls(&room), 0); /* and no other until it is known */
    room.job_s = 10;
    room.job_tokens = 100;
    assert_int_equal(pool_pulls(&room), 10); /* by green */
    room.surplus_s = 9.9;
    assert_int_equal(pool_pulls(&room), 0);
    room.surplus_s = 1e9;
    assert_int_equal(pool_pulls(&room), 31); /* by concurrency */
    room.running = 32;
    assert_int_equal(pool_pulls(&room), 0);
    room.running = 0;
    room.kv_tokens = 599;
    assert_int_equal(pool_pulls(&room), 5); /* by KV */
    room.queued = 1;                        /* own requests do not get in */
    assert_int_equal(pool_pulls(&room), 0);
    room.queued = 0;
    room.running_max = 0;
    assert_int_equal(pool_pulls(&room), 0);
    room.running_max = 32;
    room.surplus_s = 0;
    assert_int_equal(pool_pulls(&room), 0);
    room.surplus_s = -(double)1 / 0.0;
    assert_int_equal(pool_pulls(&room), 0);
    room.surplus_s = 0.0 / 0.0;
    assert_int_equal(pool_pulls(&room), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_pool_plan_offers),
        cmocka_unit_test(test_pool_plan_takes_back),
        cmocka_unit_test(test_pool_plan_pulls),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
