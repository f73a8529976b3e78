/* Rotary positions and the KV write: angles, the scalar path and the choice of path; see rope.h. */
#include "kernels/rope_body.h"

void rope_frequencies(double *frequencies, uint32_t rope_size, double base, double scale, const float *factors)
{
    for (uint32_t i = 0; i < rope_size / 2; i++) {
        double divisor = pow(base, 2.0 * i / rope_size) * (factors ? (double)factors[i] : 1.0);
        frequencies[i] = scale / divisor;
    }
}

void rope_angles(float *c, float *s, enum rope_pairs pairs, uint32_t rope_size, const double *frequencies,
                 float magnitude, uint32_t position)
{
    uint32_t half = rope_size / 2;
    for (uint32_t i = 0; i < half; i++) {
        double angle = position * frequencies[i];
        uint32_t first = pairs == ROPE_PAIRS_INTERLEAVED ? 2 * i : i;
        uint32_t second = pairs == ROPE_PAIRS_INTERLEAVED ? 2 * i + 1 : i + half;
        float cosine = (float)cos(angle) * magnitude, sine = (float)sin(angle) * magnitude;
        c[first] = c[second] = cosine;
        s[first] = -sine;
        s[second] = sine;
    }
}

void rope(enum cpu_path path, float *x, const float *c, const float *s, enum rope_pairs pairs, uint32_t rope_size)
{
    static void (*const twins[CPU_PATH_COUNT])(float *, const float *, const float *, enum rope_pairs, uint32_t) = {
        [CPU_PATH_SCALAR] = rope_scalar, [CPU_PATH_AVX2] = rope_avx2, [CPU_PATH_AVX512] = rope_avx512};
    twins[cpu_path_base(path)](x, c, s, pairs, rope_size);
}

void kv_write(enum cpu_path path, const struct kv_layout *layout, uint8_t *head, uint32_t slot, const float *k,
              const float *v)
{
    static void (*const twins[CPU_PATH_COUNT])(const struct kv_layout *, uint8_t *, uint32_t, const float *,
                                               const float *) = {
        [CPU_PATH_SCALAR] = kv_write_scalar, [CPU_PATH_AVX2] = kv_write_avx2, [CPU_PATH_AVX512] = kv_write_avx512};
    twins[cpu_path_base(path)](layout, head, slot, k, v);
}
