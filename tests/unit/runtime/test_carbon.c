/* CO2 by both methods: by hand, whole units that add up to what doubles say, and numbers that cannot be. */
#include "tests/unit/unit.h"

#include "runtime/base/random.h"
#include "runtime/power/carbon.h"

#include <math.h>

#define KWH_UJ  UINT64_C(3600000000000)
#define HOUR_NS UINT64_C(3600000000000)

static void test_carbon_by_hand(void **state)
{
    (void)state;
    struct carbon_rest rest = {0};
    struct carbon_rates rates = {.pue = 1.2, .green_w = 300, .mean_g = 400, .residual_g = 500};
    struct carbon one = carbon_of(&rates, KWH_UJ, HOUR_NS, &rest);
    assert_in_range(one.location_ug, 480 * 1000000 - 1, 480 * 1000000);   /* green changes nothing here */
    assert_in_range(one.green_uj, 3 * KWH_UJ / 10 - 1, 3 * KWH_UJ / 10);  /* 300 W for an hour */
    assert_in_range(one.market_ug, 450 * 1000000 - 1, 450 * 1000000 + 1); /* (1.2 - 0.3) * 500 */
    assert_int_equal(one.marginal_ug, 0);                                 /* never made of the others */
    rates.green_w = 5000;
    one = carbon_of(&rates, KWH_UJ, HOUR_NS, &rest);
    assert_true(one.market_ug <= 1 && one.green_uj + 2 > 12 * KWH_UJ / 10); /* no more is matched than is drawn */
    assert_in_range(one.location_ug, 480 * 1000000 - 1, 480 * 1000000 + 1);
    one = carbon_of(&(struct carbon_rates){.marginal_g = 700}, KWH_UJ, HOUR_NS, &rest);
    assert_true(one.marginal_ug + 1 >= 700 * 1000000 && one.location_ug == 0 && one.market_ug == 0);
    one = carbon_of(&(struct carbon_rates){.pue = NAN, .green_w = INFINITY, .mean_g = -5, .residual_g = NAN}, KWH_UJ,
                    HOUR_NS, &rest);
    assert_true(one.location_ug == 0 && one.market_ug == 0 && one.green_uj == 0);
    one = carbon_of(&(struct carbon_rates){.mean_g = 1e300}, UINT64_MAX, HOUR_NS, &rest);
    assert_int_equal(one.location_ug, 9007199254740991); /* and not what a double cannot turn into */
}

/* A million small stretches: what each cuts off is not lost. */
static void test_carbon_keeps_rests(void **state)
{
    (void)state;
    struct carbon_rest rest = {0};
    struct carbon sum = {0};
    struct carbon_rates rates = {.pue = 1.07, .green_w = 33, .mean_g = 412, .residual_g = 530};
    uint64_t rng = 7;
    double location = 0, market = 0, green = 0;
    for (uint32_t i = 0; i < 1000000; i++) {
        uint64_t uj = random_next(&rng) % 40000, ns = random_next(&rng) % 1000000;
        struct carbon one = carbon_of(&rates, uj, ns, &rest);
        carbon_add(&sum, &one);
        double matched = fmin(33 * (double)ns * 1e-3, 1.07 * (double)uj);
        green += matched;
        location += (double)uj * 1.07 * 412 / 3.6e6;
        market += (1.07 * (double)uj - matched) * 530 / 3.6e6;
    }
    assert_true(fabs((double)sum.location_ug - location) < 2 && fabs((double)sum.market_ug - market) < 2);
    assert_true(fabs((double)sum.green_uj - green) < 4);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_carbon_by_hand),
        cmocka_unit_test(test_carbon_keeps_rests),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
