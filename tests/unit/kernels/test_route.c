/* Routing: the experts and weights of the meaning, for any number of experts, with equal logits and with NaN. */
#include "tests/unit/unit.h"

#include "kernels/route.h"
#include "runtime/base/random.h"

#include <math.h>

enum { EXPERTS_MAX = 160 };

static void check(const float *logits, uint32_t experts, uint32_t used, bool normed)
{
    uint32_t chosen[EXPERTS_MAX], wanted[EXPERTS_MAX];
    float weights[EXPERTS_MAX];
    double meaning[EXPERTS_MAX];
    route(logits, experts, used, normed, chosen, weights);
    route_ref(logits, experts, used, normed, wanted, meaning);
    for (uint32_t u = 0; u < used; u++) {
        assert_int_equal(chosen[u], wanted[u]);
        if (!(fabs((double)weights[u] - meaning[u]) <= 1e-6))
            fail_msg("%u of %u: weight %g, wanted %g", used, experts, (double)weights[u], meaning[u]);
    }
}

static void test_route_agrees_with_its_meaning(void **state)
{
    (void)state;
    uint64_t seed = 3;
    float logits[EXPERTS_MAX];
    static const uint32_t experts[] = {1, 2, 3, 8, 15, 16, 17, 64, 128, 160};
    for (size_t e = 0; e < 10; e++) {
        for (uint32_t used = 1; used <= experts[e]; used += used < 4 ? 1 : used) {
            for (int round = 0; round < 20; round++) {
                for (uint32_t i = 0; i < experts[e]; i++) {
                    float x = (float)(random_next(&seed) >> 40) * 0x1p-20f - 8; /* -8 to 8 */
                    logits[i] = round % 2 ? x : floorf(x);                      /* many are equal */
                }
                check(logits, experts[e], used, round % 3 == 0);
            }
        }
    }
}

static void test_route_survives_nan(void **state)
{
    (void)state;
    float logits[20], weights[4];
    uint32_t chosen[4];
    for (int i = 0; i < 20; i++) logits[i] = i % 3 ? (float)i : NAN;
    route(logits, 20, 4, true, chosen, weights);
    for (int u = 0; u < 4; u++) {
        assert_true(chosen[u] < 20 && isnan(weights[u]));
        for (int k = 0; k < u; k++) assert_int_not_equal(chosen[u], chosen[k]);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_route_agrees_with_its_meaning),
                                       cmocka_unit_test(test_route_survives_nan)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
