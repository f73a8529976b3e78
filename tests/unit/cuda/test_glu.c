/* The gated activation against its meaning in double: both kinds, both layouts, odd sizes, padding, NaN. */
#include "tests/unit/cuda/device_memory.h"

#include "kernels/cuda_ops.h"

static double meaning(bool gelu, double g, double u)
{
    if (!gelu) return g / (1 + exp(-g)) * u;
    return g / (1 + exp(-2 * 0.79788456080286535588 * (g + 0.044715 * g * g * g))) * u; /* 1 + tanh(v) cancels */
}

static size_t place(uint32_t F, bool alternating, uint32_t f, bool up)
{
    return alternating ? f / 8 * 16 + (up ? 8 : 0) + f % 8 : f + (up ? F : 0);
}

static void check(uint32_t F, uint32_t M, uint32_t live, bool gelu, bool alternating, uint64_t *seed)
{
    const size_t in = (size_t)M * 2 * F, out = (size_t)M * F;
    uint16_t *gu = malloc(in * 2), *result = malloc(out * 2);
    for (size_t i = 0; i < in; i++) gu[i] = bf16_of(random_within(seed, -1, 1) * exp(random_within(seed, -8, 3)));
    static const double special[] = {0, -0.0, 1e30, -1e30, 90, -90, 3e38, -3e38};
    for (uint32_t i = 0; i < 8 && live; i++) gu[place(F, alternating, i, false)] = bf16_of(special[i]);
    uint16_t *d_gu = device_copy(gu, in * 2), *d_out = device_take(out * 2);
    uint32_t *d_live = device_copy(&live, sizeof live);
    for (int launch = 0; launch < 2; launch++) {
        device_poison(d_out, out * 2);
        cuda_ok(cuda_glu(d_out, d_gu, F, gelu, alternating, d_live, M, device_stream()));
        device_wait();
        device_read(result, d_out, out * 2);
        for (uint32_t m = 0; m < live; m++) {
            for (uint32_t f = 0; f < F; f++) {
                const double g = bf16_value(gu[(size_t)m * 2 * F + place(F, alternating, f, false)]);
                const double u = bf16_value(gu[(size_t)m * 2 * F + place(F, alternating, f, true)]);
                const double wanted = meaning(gelu, g, u);
                if (fabs(wanted) > 3e38) continue;
                expect_bf16(result[(size_t)m * F + f], wanted, 2e-5 * fabs(wanted) + 1e-30, "glu", m, f);
            }
        }
        expect_poison(result + (size_t)live * F, (size_t)(M - live) * F * 2, "padding rows");
    }
    cudaFree(d_gu), cudaFree(d_out), cudaFree(d_live);
    free(gu), free(result);
}

static void test_glu_is_its_meaning(void **state)
{
    (void)state;
    uint64_t seed = 11;
    static const uint32_t sizes[] = {8, 40, 1016, 1024, 1032, 1536};
    for (size_t i = 0; i < 6; i++) {
        for (int kind = 0; kind < 4; kind++) {
            if (CHOICE_ONLY && (i + (size_t)kind) % 3) continue;
            check(sizes[i], 1, 1, kind & 1, kind & 2, &seed);
            check(sizes[i], 5, 3, kind & 1, kind & 2, &seed);
            check(sizes[i], 4, 0, kind & 1, kind & 2, &seed);
        }
    }
}

static void test_glu_lets_nan_and_infinity_pass(void **state)
{
    (void)state;
    enum { F = 16 };
    const uint32_t live = 1;
    uint16_t gu[2 * F], result[F], *d_gu = device_take(sizeof gu), *d_out = device_take(sizeof result);
    uint32_t *d_live = device_copy(&live, sizeof live);
    for (int kind = 0; kind < 4; kind++) {
        const bool alternating = kind & 2;
        for (int i = 0; i < 2 * F; i++) gu[i] = bf16_of(1);
        gu[place(F, alternating, 2, false)] = 0x7fc0, gu[place(F, alternating, 3, false)] = 0x7f80;
        gu[place(F, alternating, 5, true)] = 0x7fc0, gu[place(F, alternating, 14, true)] = 0xff80;
        device_write(d_gu, gu, sizeof gu);
        cuda_ok(cuda_glu(d_out, d_gu, F, kind & 1, alternating, d_live, 1, device_stream()));
        device_wait();
        device_read(result, d_out, sizeof result);
        for (int f = 0; f < F; f++) {
            const bool finite = isfinite(bf16_value(result[f]));
            assert_int_equal(finite, f != 2 && f != 3 && f != 5 && f != 14);
        }
    }
    cudaFree(d_gu), cudaFree(d_out), cudaFree(d_live);
}

static void test_glu_refuses_what_it_cannot_cut(void **state)
{
    (void)state;
    assert_int_equal(cuda_glu(NULL, NULL, 12, false, false, NULL, 1, device_stream()), cudaErrorInvalidValue);
    assert_int_equal(cuda_glu(NULL, NULL, 8, false, false, NULL, 0, device_stream()), cudaSuccess);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_glu_is_its_meaning),
        cmocka_unit_test(test_glu_lets_nan_and_infinity_pass),
        cmocka_unit_test(test_glu_refuses_what_it_cannot_cut),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
