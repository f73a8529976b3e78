/* Gated activations and the exponential under them: the same bits on every path, within the bound of the meaning. */
#include "tests/unit/unit.h"

#include "kernels/glu.h"
#include "tests/unit/kernels/paths.h"

#include <math.h>

enum { COUNT_MAX = 333 };

static void check(enum glu_kind kind, const float *gate, const float *up, uint32_t count)
{
    float wanted[COUNT_MAX], scalar[COUNT_MAX], out[COUNT_MAX + 1];
    glu_ref(kind, wanted, gate, up, count);
    glu(CPU_PATH_SCALAR, kind, scalar, gate, up, count);
    for (uint32_t i = 0; i < count; i++) {
        float bound = 1e-6f * fabsf(wanted[i]) + 1e-30f;
        if (!(fabsf(scalar[i] - wanted[i]) <= bound)) {
            fail_msg("kind %d, gate %.9g, up %.9g: %.9g, wanted %.9g", kind, (double)gate[i], (double)up[i],
                     (double)scalar[i], (double)wanted[i]);
        }
    }
    PATHS_EACH(path)
    {
        out[count] = 77;
        glu(path, kind, out, gate, up, count);
        assert_memory_equal(out, scalar, count * sizeof *out);
        assert_true(out[count] == 77);
        memcpy(out, gate, count * sizeof *out);
        glu(path, kind, out, out, up, count); /* in place */
        assert_memory_equal(out, scalar, count * sizeof *out);
    }
}

static void test_glu_paths_agree_and_match_reference(void **state)
{
    (void)state;
    uint64_t seed = 3;
    float gate[COUNT_MAX], up[COUNT_MAX];
    static const float ranges[] = {0.01f, 1, 10, 60, 200};
    for (uint32_t count = 0; count <= COUNT_MAX; count += count < 40 ? 1 : 31) {
        for (size_t r = 0; r < 5; r++) {
            for (uint32_t i = 0; i < count; i++) {
                gate[i] = random_between(&seed, -ranges[r], ranges[r]);
                up[i] = random_between(&seed, -2, 2);
            }
            check(GLU_SILU, gate, up, count);
            if (ranges[r] <= 4)
                check(GLU_GELU_TANH, gate, up, count); /* further out 1 + tanh cancels in the reference */
        }
    }
}

static void test_glu_takes_the_ends_of_the_range(void **state)
{
    (void)state;
    float gate[] = {0, -0.0f, 1e30f, -1e30f, INFINITY, NAN, 88, -88}, up[] = {1, 1, 1, 1, 1, 1, 1, 1}, out[8];
    PATHS_EACH(path)
    {
        for (int kind = GLU_SILU; kind <= GLU_GELU_TANH; kind++) {
            glu(path, (enum glu_kind)kind, out, gate, up, 8);
            assert_true(out[0] == 0 && out[1] == 0);
            assert_true(out[2] == 1e30f && fabsf(out[3]) < 1e-7f);
            assert_true(isinf(out[4]) && isnan(out[5]));
            assert_true(out[6] == 88 && fabsf(out[7]) < 1e-30f);
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_glu_paths_agree_and_match_reference),
                                       cmocka_unit_test(test_glu_takes_the_ends_of_the_range)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
