/* BF16 on the lanes of lanes.h: rounding, and the dot of pairs that vdpbf16ps computes, for every path.
 *
 * "Pairs" are lanes whose 32 bits hold two BF16: the even item low, the odd one high. They travel as struct lanes,
 * whose loads and sets move bits unchanged. lanes_dot_pairs is two fma, odd first: what Zen 4's vdpbf16ps gives bit for
 * bit (and what Intel documents) as long as no operand, product or sum is denormal, which the instruction flushes. None
 * ever is here: lanes_drop_small and lanes_exp2 turn what lies below 2^-40 into 0, so that products and their sums are
 * multiples of 2^-94. attention_bf16_avx512.c defines LANES_DPBF16 to have the instructions; elsewhere the same bits
 * come from f32. */
#ifndef KERNELS_LANES_BF16_H
#define KERNELS_LANES_BF16_H

#include "kernels/lanes.h"

#define LANES_BF16_LEAST 0x1p-40f

#if defined(__AVX512F__)

#ifdef LANES_DPBF16
LANES_INLINE struct lanes lanes_dot_pairs(struct lanes a, struct lanes b, struct lanes sum)
{
    return (struct lanes){
        _mm512_dpbf16_ps(sum.v, (__m512bh)_mm512_castps_si512(a.v), (__m512bh)_mm512_castps_si512(b.v))};
}
LANES_INLINE __m256i lanes_to_bf16_(__m512 x)
{
    return (__m256i)_mm512_cvtneps_pbh(x);
}
#else
LANES_INLINE __m512 lanes_odd_(struct lanes x)
{
    return _mm512_castsi512_ps(_mm512_and_si512(_mm512_castps_si512(x.v), _mm512_set1_epi32((int)0xffff0000)));
}
LANES_INLINE __m512 lanes_even_(struct lanes x)
{
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_castps_si512(x.v), 16));
}
LANES_INLINE struct lanes lanes_dot_pairs(struct lanes a, struct lanes b, struct lanes sum)
{
    __m512 odd = _mm512_fmadd_ps(lanes_odd_(a), lanes_odd_(b), sum.v);
    return (struct lanes){_mm512_fmadd_ps(lanes_even_(a), lanes_even_(b), odd)};
}
LANES_INLINE __m256i lanes_to_bf16_(__m512 x)
{
    __m512i bits = _mm512_castps_si512(x), upper = _mm512_srli_epi32(bits, 16);
    __m512i ties = _mm512_and_si512(upper, _mm512_set1_epi32(1));
    __m512i rounded = _mm512_add_epi32(bits, _mm512_add_epi32(ties, _mm512_set1_epi32(0x7fff)));
    __mmask16 nan = _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q);
    rounded = _mm512_mask_or_epi32(_mm512_srli_epi32(rounded, 16), nan, upper, _mm512_set1_epi32(0x40));
    return _mm512_cvtepi32_epi16(rounded);
}
#endif
/* 0 in place of what lies below 2^-40; NaN stays. */
LANES_INLINE struct lanes lanes_drop_small(struct lanes x)
{
    __mmask16 large = _mm512_cmp_ps_mask(_mm512_abs_ps(x.v), _mm512_set1_ps(LANES_BF16_LEAST), _CMP_NLT_UQ);
    return (struct lanes){_mm512_maskz_mov_ps(large, x.v)};
}
/* Rounds to nearest even, keeps NaN; gives the rounded values. x has been through lanes_drop_small or need not. */
LANES_INLINE struct lanes lanes_store_bf16(uint16_t *target, struct lanes x)
{
    __m256i rounded = lanes_to_bf16_(x.v);
    _mm256_storeu_si256((__m256i *)(void *)target, rounded);
    return (struct lanes){_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(rounded), 16))};
}
/* The even items, with 0 for the odd ones. */
LANES_INLINE struct lanes lanes_even_pairs(struct lanes x)
{
    return (struct lanes){_mm512_castsi512_ps(_mm512_and_si512(_mm512_castps_si512(x.v), _mm512_set1_epi32(0xffff)))};
}

/* Both rounded, as pairs. */
LANES_INLINE struct lanes lanes_round_pairs(struct lanes even, struct lanes odd)
{
#ifdef LANES_DPBF16
    const __m512i order = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6,
                                           21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
    __m512i both = _mm512_permutexvar_epi16(order, (__m512i)_mm512_cvtne2ps_pbh(odd.v, even.v));
#else
    __m512i upper = _mm512_slli_epi32(_mm512_cvtepu16_epi32(lanes_to_bf16_(odd.v)), 16);
    __m512i both = _mm512_or_si512(upper, _mm512_cvtepu16_epi32(lanes_to_bf16_(even.v)));
#endif
    return (struct lanes){_mm512_castsi512_ps(both)};
}
LANES_INLINE struct lanes lanes_load_i8(const int8_t *p)
{
    return (struct lanes){_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)(const void *)p)))};
}

#elif defined(__AVX2__)

LANES_INLINE __m256 lanes_odd_(__m256 x)
{
    return _mm256_and_ps(x, _mm256_castsi256_ps(_mm256_set1_epi32((int)0xffff0000)));
}
LANES_INLINE __m256 lanes_even_(__m256 x)
{
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_castps_si256(x), 16));
}
LANES_INLINE __m256 lanes_dot_half_(__m256 a, __m256 b, __m256 sum)
{
    return _mm256_fmadd_ps(lanes_even_(a), lanes_even_(b), _mm256_fmadd_ps(lanes_odd_(a), lanes_odd_(b), sum));
}
LANES_INLINE struct lanes lanes_dot_pairs(struct lanes a, struct lanes b, struct lanes sum)
{
    return (struct lanes){lanes_dot_half_(a.a, b.a, sum.a), lanes_dot_half_(a.b, b.b, sum.b)};
}
LANES_INLINE __m256 lanes_drop_half_(__m256 x)
{
    __m256 size = _mm256_and_ps(x, _mm256_castsi256_ps(_mm256_set1_epi32(0x7fffffff)));
    return _mm256_and_ps(x, _mm256_cmp_ps(size, _mm256_set1_ps(LANES_BF16_LEAST), _CMP_NLT_UQ));
}
LANES_INLINE struct lanes lanes_drop_small(struct lanes x)
{
    return (struct lanes){lanes_drop_half_(x.a), lanes_drop_half_(x.b)};
}
/* Rounded, in the upper halves of the lanes. */
LANES_INLINE __m256 lanes_round_bf16_(__m256 x)
{
    __m256i bits = _mm256_castps_si256(x), ties = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    __m256i rounded = _mm256_add_epi32(bits, _mm256_add_epi32(ties, _mm256_set1_epi32(0x7fff)));
    __m256i quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x400000));
    __m256 nan = _mm256_cmp_ps(x, x, _CMP_UNORD_Q);
    return lanes_odd_(_mm256_blendv_ps(_mm256_castsi256_ps(rounded), _mm256_castsi256_ps(quiet), nan));
}
LANES_INLINE struct lanes lanes_store_bf16(uint16_t *target, struct lanes x)
{
    x = (struct lanes){lanes_round_bf16_(x.a), lanes_round_bf16_(x.b)};
    __m256i low = _mm256_srli_epi32(_mm256_castps_si256(x.a), 16);
    __m256i high = _mm256_srli_epi32(_mm256_castps_si256(x.b), 16);
    __m256i packed = _mm256_permute4x64_epi64(_mm256_packus_epi32(low, high), 0xd8);
    _mm256_storeu_si256((__m256i *)(void *)target, packed);
    return x;
}
LANES_INLINE struct lanes lanes_even_pairs(struct lanes x)
{
    __m256 mask = _mm256_castsi256_ps(_mm256_set1_epi32(0xffff));
    return (struct lanes){_mm256_and_ps(x.a, mask), _mm256_and_ps(x.b, mask)};
}
LANES_INLINE __m256 lanes_join_half_(__m256 even, __m256 odd)
{
    __m256i low = _mm256_srli_epi32(_mm256_castps_si256(lanes_round_bf16_(even)), 16);
    return _mm256_or_ps(_mm256_castsi256_ps(low), lanes_round_bf16_(odd));
}
LANES_INLINE struct lanes lanes_round_pairs(struct lanes even, struct lanes odd)
{
    return (struct lanes){lanes_join_half_(even.a, odd.a), lanes_join_half_(even.b, odd.b)};
}
LANES_INLINE __m256 lanes_load_i8_half_(const int8_t *p)
{
    return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)(const void *)p)));
}
LANES_INLINE struct lanes lanes_load_i8(const int8_t *p)
{
    return (struct lanes){lanes_load_i8_half_(p), lanes_load_i8_half_(p + 8)};
}

#else

LANES_INLINE uint32_t lanes_bits_(float x)
{
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return bits;
}
LANES_INLINE float lanes_float_(uint32_t bits)
{
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}
LANES_INLINE struct lanes lanes_dot_pairs(struct lanes a, struct lanes b, struct lanes sum)
{
    for (int j = 0; j < 16; j++) {
        uint32_t x = lanes_bits_(a.v[j]), y = lanes_bits_(b.v[j]);
        float odd = fmaf(lanes_float_(x & 0xffff0000u), lanes_float_(y & 0xffff0000u), sum.v[j]);
        sum.v[j] = fmaf(lanes_float_(x << 16), lanes_float_(y << 16), odd);
    }
    return sum;
}
LANES_INLINE struct lanes lanes_drop_small(struct lanes x)
{
    for (int j = 0; j < 16; j++) x.v[j] = fabsf(x.v[j]) < LANES_BF16_LEAST ? 0.0f : x.v[j];
    return x;
}
LANES_INLINE struct lanes lanes_store_bf16(uint16_t *target, struct lanes x)
{
    for (int j = 0; j < 16; j++) {
        uint32_t bits = lanes_bits_(x.v[j]);
        uint32_t rounded = isnan(x.v[j]) ? bits | 0x400000u : bits + 0x7fffu + (bits >> 16 & 1u);
        target[j] = (uint16_t)(rounded >> 16);
        x.v[j] = lanes_float_(rounded & 0xffff0000u);
    }
    return x;
}
LANES_INLINE struct lanes lanes_even_pairs(struct lanes x)
{
    for (int j = 0; j < 16; j++) x.v[j] = lanes_float_(lanes_bits_(x.v[j]) & 0xffffu);
    return x;
}
LANES_INLINE struct lanes lanes_round_pairs(struct lanes even, struct lanes odd)
{
    uint16_t unused[16];
    even = lanes_store_bf16(unused, even);
    odd = lanes_store_bf16(unused, odd);
    for (int j = 0; j < 16; j++) even.v[j] = lanes_float_(lanes_bits_(even.v[j]) >> 16 | lanes_bits_(odd.v[j]));
    return even;
}
LANES_INLINE struct lanes lanes_load_i8(const int8_t *p)
{
    struct lanes x;
    for (int j = 0; j < 16; j++) x.v[j] = (float)p[j];
    return x;
}

#endif

/* 2^x for x of at most 0, to 2^-18 of itself, which BF16 keeps 2^-9 of; 0 below -40; NaN stays NaN. The coefficients
 * are those of least relative error on [-1/2, 1/2] with 2^0 = 1 (weighted least squares, repeated until even). */
LANES_INLINE struct lanes lanes_exp2(struct lanes x)
{
    struct lanes t = lanes_add(x, lanes_set(LANES_ROUND)), r = lanes_sub(x, lanes_sub(t, lanes_set(LANES_ROUND)));
    struct lanes p = lanes_set(0.009582852944731712f);
    p = lanes_fma(p, r, lanes_set(0.055906426161527634f));
    p = lanes_fma(p, r, lanes_set(0.24024099111557007f));
    p = lanes_fma(p, r, lanes_set(0.6931241750717163f));
    p = lanes_fma(p, r, lanes_set(1.0f));
    return lanes_zero_below(x, lanes_set(-40.0f), lanes_mul(p, lanes_power_of_two(t)));
}

#endif
