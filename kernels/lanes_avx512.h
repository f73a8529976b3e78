/* struct lanes as one AVX-512 register; what each operation means stands in lanes_scalar.h. Included by lanes.h alone.
 */
#ifndef KERNELS_LANES_AVX512_H
#define KERNELS_LANES_AVX512_H

#ifndef LANES_INLINE
#error "include kernels/lanes.h"
#endif

#include <immintrin.h>
#define LANES_PATH avx512
struct lanes {
    __m512 v;
};
LANES_INLINE struct lanes lanes_set(float x)
{
    return (struct lanes){_mm512_set1_ps(x)};
}
LANES_INLINE struct lanes lanes_load(const float *p)
{
    return (struct lanes){_mm512_loadu_ps(p)};
}
LANES_INLINE struct lanes lanes_load_n(const float *p, uint32_t n)
{
    return (struct lanes){_mm512_maskz_loadu_ps((__mmask16)((1u << n) - 1), p)};
}
LANES_INLINE void lanes_store(float *p, struct lanes x)
{
    _mm512_storeu_ps(p, x.v);
}
LANES_INLINE void lanes_store_n(float *p, struct lanes x, uint32_t n)
{
    _mm512_mask_storeu_ps(p, (__mmask16)((1u << n) - 1), x.v);
}
LANES_INLINE struct lanes lanes_add(struct lanes a, struct lanes b)
{
    return (struct lanes){_mm512_add_ps(a.v, b.v)};
}
LANES_INLINE struct lanes lanes_sub(struct lanes a, struct lanes b)
{
    return (struct lanes){_mm512_sub_ps(a.v, b.v)};
}
LANES_INLINE struct lanes lanes_mul(struct lanes a, struct lanes b)
{
    return (struct lanes){_mm512_mul_ps(a.v, b.v)};
}
LANES_INLINE struct lanes lanes_div(struct lanes a, struct lanes b)
{
    return (struct lanes){_mm512_div_ps(a.v, b.v)};
}
LANES_INLINE struct lanes lanes_fma(struct lanes a, struct lanes b, struct lanes c)
{
    return (struct lanes){_mm512_fmadd_ps(a.v, b.v, c.v)};
}
/* a > b ? a : b, so b where either is NaN */
LANES_INLINE struct lanes lanes_max(struct lanes a, struct lanes b)
{
    return (struct lanes){_mm512_max_ps(a.v, b.v)};
}
/* a < b ? a : b, so b where either is NaN */
LANES_INLINE struct lanes lanes_min(struct lanes a, struct lanes b)
{
    return (struct lanes){_mm512_min_ps(a.v, b.v)};
}
/* lanes below n from a, the others from b */
LANES_INLINE struct lanes lanes_first(uint32_t n, struct lanes a, struct lanes b)
{
    return (struct lanes){_mm512_mask_blend_ps((__mmask16)((1u << n) - 1), b.v, a.v)};
}
/* y, but 0 where x < limit */
LANES_INLINE struct lanes lanes_zero_below(struct lanes x, struct lanes limit, struct lanes y)
{
    return (struct lanes){_mm512_maskz_mov_ps(_mm512_cmp_ps_mask(x.v, limit.v, _CMP_NLT_UQ), y.v)};
}
/* lane 2i with lane 2i + 1 */
LANES_INLINE struct lanes lanes_swap_pairs(struct lanes x)
{
    return (struct lanes){_mm512_permute_ps(x.v, 0xb1)};
}
/* 2^n, for t = n + LANES_ROUND and n in -126..127 */
LANES_INLINE struct lanes lanes_power_of_two(struct lanes t)
{
    __m512i bits = _mm512_add_epi32(_mm512_slli_epi32(_mm512_castps_si512(t.v), 23), _mm512_set1_epi32(0x3f800000));
    return (struct lanes){_mm512_castsi512_ps(bits)};
}
LANES_INLINE __m256 lanes_low_(struct lanes x)
{
    return _mm512_castps512_ps256(x.v);
}
LANES_INLINE __m256 lanes_high_(struct lanes x)
{
    return _mm512_extractf32x8_ps(x.v, 1);
}
/* bit j: a[j] >= b[j], a[j] > b[j], a[j] == b[j] */
LANES_INLINE uint32_t lanes_mask_ge(struct lanes a, struct lanes b)
{
    return _mm512_cmp_ps_mask(a.v, b.v, _CMP_GE_OQ);
}
LANES_INLINE uint32_t lanes_mask_gt(struct lanes a, struct lanes b)
{
    return _mm512_cmp_ps_mask(a.v, b.v, _CMP_GT_OQ);
}
LANES_INLINE uint32_t lanes_mask_eq(struct lanes a, struct lanes b)
{
    return _mm512_cmp_ps_mask(a.v, b.v, _CMP_EQ_OQ);
}
struct lanes_double {
    __m512d low, high;
};
LANES_INLINE struct lanes_double lanes_double_zero(void)
{
    return (struct lanes_double){_mm512_setzero_pd(), _mm512_setzero_pd()};
}
LANES_INLINE struct lanes_double lanes_double_add(struct lanes_double sum, struct lanes x)
{
    return (struct lanes_double){_mm512_add_pd(sum.low, _mm512_cvtps_pd(lanes_low_(x))),
                                 _mm512_add_pd(sum.high, _mm512_cvtps_pd(lanes_high_(x)))};
}
LANES_INLINE void lanes_double_store(double *p, struct lanes_double x)
{
    _mm512_storeu_pd(p, x.low);
    _mm512_storeu_pd(p + 8, x.high);
}

#endif
