/* The angles of rope_angle.cuh against sine and cosine in long double, to positions far beyond any context. */
#include "kernels/cuda_ops.h"
#include "kernels/rope_angle.cuh"

extern "C" {
#include "tests/unit/cuda/device_memory.h"
}

enum { COUNT = 20000 };

__global__ void angles(float2 *out, const uint32_t *positions, const uint64_t *turns, uint32_t count)
{
    const uint32_t i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < count) out[i] = rope_cos_sin(positions[i] * turns[i]);
}

/* The highest error over COUNT pairs of position and frequency, and what f32 frequencies would have come to. */
static double worst_error(uint32_t position_max, uint64_t *seed, double *of_f32)
{
    static uint32_t positions[COUNT];
    static uint64_t turns[COUNT];
    static double frequencies[COUNT];
    static float2 result[COUNT];
    static const double bases[] = {10000, 500000, 1e6};
    for (uint32_t i = 0; i < COUNT; i++) {
        positions[i] = i < 300 ? position_max - i / 3 : (uint32_t)(random_bits(seed) % (position_max + 1ull));
        frequencies[i] = pow(bases[i % 3], -2.0 * (double)(i % 64) / 128) * (i & 128 ? 0.125 : 1);
        turns[i] = cuda_rope_turn(frequencies[i]);
    }
    auto *d_positions = (uint32_t *)device_copy(positions, sizeof positions);
    auto *d_turns = (uint64_t *)device_copy(turns, sizeof turns);
    auto *d_result = (float2 *)device_take(sizeof result);
    cuda_ok(kx::launch(angles, (COUNT + 127) / 128, 128, 0, device_stream(), d_result, d_positions, d_turns, COUNT));
    device_wait();
    device_read(result, d_result, sizeof result);
    double worst = 0;
    for (uint32_t i = 0; i < COUNT; i++) {
        const long double angle = (long double)positions[i] * frequencies[i];
        worst = fmax(worst, fabs((double)(cosl(angle) - result[i].x)));
        worst = fmax(worst, fabs((double)(sinl(angle) - result[i].y)));
        *of_f32 = fmax(*of_f32, fabs((double)(cosl(angle) - cosl((long double)positions[i] * (float)frequencies[i]))));
    }
    cudaFree(d_positions), cudaFree(d_turns), cudaFree(d_result);
    return worst;
}

static void test_angles_are_exact_at_any_position(void **state)
{
    (void)state;
    uint64_t seed = 41;
    for (uint32_t position_max = 127; position_max < 1u << 28; position_max = position_max * 32 + 31) {
        double of_f32 = 0;
        const double worst = worst_error(position_max, &seed, &of_f32);
        print_message("positions to %u: error %.2g (f32 frequencies: %.2g)\n", position_max, worst, of_f32);
        assert_true(worst <= 1.2e-7);
    }
}

static void test_a_turn_is_a_fraction(void **state)
{
    (void)state;
    assert_true(cuda_rope_turn(0) == 0);
    assert_true(cuda_rope_turn(6.283185307179586476925 * 0.25) == (uint64_t)1 << 62);
    const uint64_t whole_turns_drop = cuda_rope_turn(6.283185307179586476925 * 3.25) - ((uint64_t)1 << 62);
    assert_true(whole_turns_drop + 65536 < 131072); /* the rounding of 3.25 turns, either way */
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_angles_are_exact_at_any_position),
        cmocka_unit_test(test_a_turn_is_a_fraction),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
