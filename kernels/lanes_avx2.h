/* struct lanes as two AVX registers; what each operation means stands in lanes_scalar.h. Included by lanes.h alone. */
#ifndef KERNELS_LANES_AVX2_H
#define KERNELS_LANES_AVX2_H

#ifndef LANES_INLINE
#error "include kernels/lanes.h"
#endif

#include <immintrin.h>
#define LANES_PATH avx2
struct lanes {
    __m256 a, b;
};
LANES_INLINE struct lanes lanes_set(float x)
{
    return (struct lanes){_mm256_set1_ps(x), _mm256_set1_ps(x)};
}
LANES_INLINE struct lanes lanes_load(const float *p)
{
    return (struct lanes){_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)};
}
LANES_INLINE __m256i lanes_mask_(uint32_t n, int first)
{
    return _mm256_cmpgt_epi32(_mm256_set1_epi32((int)n - first), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
LANES_INLINE struct lanes lanes_load_n(const float *p, uint32_t n)
{
    return (struct lanes){_mm256_maskload_ps(p, lanes_mask_(n, 0)), _mm256_maskload_ps(p + 8, lanes_mask_(n, 8))};
}
LANES_INLINE void lanes_store(float *p, struct lanes x)
{
    _mm256_storeu_ps(p, x.a);
    _mm256_storeu_ps(p + 8, x.b);
}
LANES_INLINE void lanes_store_n(float *p, struct lanes x, uint32_t n)
{
    _mm256_maskstore_ps(p, lanes_mask_(n, 0), x.a);
    _mm256_maskstore_ps(p + 8, lanes_mask_(n, 8), x.b);
}
#define LANES_TWICE_(name, op)                                                                                         \
    LANES_INLINE struct lanes name(struct lanes x, struct lanes y)                                                     \
    {                                                                                                                  \
        return (struct lanes){op(x.a, y.a), op(x.b, y.b)};                                                             \
    }
LANES_TWICE_(lanes_add, _mm256_add_ps)
LANES_TWICE_(lanes_sub, _mm256_sub_ps)
LANES_TWICE_(lanes_mul, _mm256_mul_ps)
LANES_TWICE_(lanes_div, _mm256_div_ps)
LANES_TWICE_(lanes_max, _mm256_max_ps)
LANES_TWICE_(lanes_min, _mm256_min_ps)
LANES_INLINE struct lanes lanes_fma(struct lanes x, struct lanes y, struct lanes z)
{
    return (struct lanes){_mm256_fmadd_ps(x.a, y.a, z.a), _mm256_fmadd_ps(x.b, y.b, z.b)};
}
LANES_INLINE struct lanes lanes_first(uint32_t n, struct lanes x, struct lanes y)
{
    return (struct lanes){_mm256_blendv_ps(y.a, x.a, _mm256_castsi256_ps(lanes_mask_(n, 0))),
                          _mm256_blendv_ps(y.b, x.b, _mm256_castsi256_ps(lanes_mask_(n, 8)))};
}
LANES_INLINE struct lanes lanes_zero_below(struct lanes x, struct lanes limit, struct lanes y)
{
    return (struct lanes){_mm256_and_ps(_mm256_cmp_ps(x.a, limit.a, _CMP_NLT_UQ), y.a),
                          _mm256_and_ps(_mm256_cmp_ps(x.b, limit.b, _CMP_NLT_UQ), y.b)};
}
LANES_INLINE struct lanes lanes_swap_pairs(struct lanes x)
{
    return (struct lanes){_mm256_permute_ps(x.a, 0xb1), _mm256_permute_ps(x.b, 0xb1)};
}
LANES_INLINE __m256 lanes_power_(__m256 t)
{
    return _mm256_castsi256_ps(
        _mm256_add_epi32(_mm256_slli_epi32(_mm256_castps_si256(t), 23), _mm256_set1_epi32(0x3f800000)));
}
LANES_INLINE struct lanes lanes_power_of_two(struct lanes t)
{
    return (struct lanes){lanes_power_(t.a), lanes_power_(t.b)};
}
LANES_INLINE __m256 lanes_low_(struct lanes x)
{
    return x.a;
}
LANES_INLINE __m256 lanes_high_(struct lanes x)
{
    return x.b;
}
LANES_INLINE uint32_t lanes_mask_ge(struct lanes x, struct lanes y)
{
    return (uint32_t)_mm256_movemask_ps(_mm256_cmp_ps(x.a, y.a, _CMP_GE_OQ)) |
           (uint32_t)_mm256_movemask_ps(_mm256_cmp_ps(x.b, y.b, _CMP_GE_OQ)) << 8;
}
LANES_INLINE uint32_t lanes_mask_gt(struct lanes x, struct lanes y)
{
    return (uint32_t)_mm256_movemask_ps(_mm256_cmp_ps(x.a, y.a, _CMP_GT_OQ)) |
           (uint32_t)_mm256_movemask_ps(_mm256_cmp_ps(x.b, y.b, _CMP_GT_OQ)) << 8;
}
LANES_INLINE uint32_t lanes_mask_eq(struct lanes x, struct lanes y)
{
    return (uint32_t)_mm256_movemask_ps(_mm256_cmp_ps(x.a, y.a, _CMP_EQ_OQ)) |
           (uint32_t)_mm256_movemask_ps(_mm256_cmp_ps(x.b, y.b, _CMP_EQ_OQ)) << 8;
}
struct lanes_double {
    __m256d q[4];
};
LANES_INLINE struct lanes_double lanes_double_zero(void)
{
    __m256d zero = _mm256_setzero_pd();
    return (struct lanes_double){{zero, zero, zero, zero}};
}
LANES_INLINE struct lanes_double lanes_double_add(struct lanes_double sum, struct lanes x)
{
    return (struct lanes_double){{_mm256_add_pd(sum.q[0], _mm256_cvtps_pd(_mm256_castps256_ps128(x.a))),
                                  _mm256_add_pd(sum.q[1], _mm256_cvtps_pd(_mm256_extractf128_ps(x.a, 1))),
                                  _mm256_add_pd(sum.q[2], _mm256_cvtps_pd(_mm256_castps256_ps128(x.b))),
                                  _mm256_add_pd(sum.q[3], _mm256_cvtps_pd(_mm256_extractf128_ps(x.b, 1)))}};
}
LANES_INLINE void lanes_double_store(double *p, struct lanes_double x)
{
    for (int i = 0; i < 4; i++) _mm256_storeu_pd(p + 4 * i, x.q[i]);
}

#endif
