/* RMSNorm: every path has the scalar path's bits, which lie within the header's bound of the meaning. */
#include "tests/unit/unit.h"

#include "kernels/rmsnorm.h"
#include "tests/unit/kernels/paths.h"

#include <math.h>

enum { E_MAX = 700, CANARY = 77 };

static void test_rmsnorm_paths_agree_and_match_reference(void **state)
{
    (void)state;
    uint64_t seed = 1;
    static const float scales[] = {1, 1e-12f, 1e12f};
    float x[E_MAX], w[E_MAX], wanted[E_MAX], scalar[E_MAX], y[E_MAX + 1];
    for (uint32_t E = 1; E <= E_MAX; E += E < 40 ? 1 : 33) {
        for (size_t k = 0; k < 3; k++) {
            for (uint32_t e = 0; e < E; e++) {
                x[e] = random_between(&seed, -3, 3) * scales[k];
                w[e] = random_between(&seed, -2, 2);
            }
            rmsnorm_ref(wanted, x, w, E, 1e-5f);
            rmsnorm(CPU_PATH_SCALAR, scalar, x, w, E, 1e-5f);
            for (uint32_t e = 0; e < E; e++) {
                float bound = 1e-6f * fabsf(wanted[e]) + 1e-30f;
                if (!(fabsf(scalar[e] - wanted[e]) <= bound))
                    fail_msg("E %u, e %u: %g, wanted %g", E, e, (double)scalar[e], (double)wanted[e]);
            }
            PATHS_EACH(path)
            {
                y[E] = CANARY;
                rmsnorm(path, y, x, w, E, 1e-5f);
                assert_memory_equal(y, scalar, E * sizeof *y);
                assert_true(y[E] == CANARY);
                memcpy(y, x, E * sizeof *y);
                rmsnorm(path, y, y, w, E, 1e-5f); /* in place */
                assert_memory_equal(y, scalar, E * sizeof *y);
            }
        }
    }
}

static void test_rmsnorm_spreads_nan(void **state)
{
    (void)state;
    float x[40], w[40], y[40];
    PATHS_EACH(path)
    {
        for (uint32_t e = 0; e < 40; e++) x[e] = w[e] = 1;
        x[37] = NAN;
        rmsnorm(path, y, x, w, 40, 1e-5f);
        for (uint32_t e = 0; e < 40; e++) assert_true(isnan(y[e]));
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_rmsnorm_paths_agree_and_match_reference),
                                       cmocka_unit_test(test_rmsnorm_spreads_nan)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
