/* Activations to int8 blocks, with AVX-512: four blocks at a time, of one row or of four rows, so that their maxima and
 * sums are reduced together and their divisions are one.
 * Same bits as the scalar path: see matmul.h for the definition, matmul_pack.c for the layout. */
#include "kernels/matmul_panel.h"

#include <immintrin.h>
#include <string.h>

#define INLINE static inline __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 32")

enum { TOGETHER = 4 };

/* Lane j of the first 128 bits: the highest of v[j]'s 16 lanes. */
INLINE __m128i highest(const __m512i v[TOGETHER])
{
    const __m512i ab = _mm512_max_epu32(_mm512_unpacklo_epi32(v[0], v[1]), _mm512_unpackhi_epi32(v[0], v[1]));
    const __m512i cd = _mm512_max_epu32(_mm512_unpacklo_epi32(v[2], v[3]), _mm512_unpackhi_epi32(v[2], v[3]));
    __m512i all = _mm512_max_epu32(_mm512_unpacklo_epi64(ab, cd), _mm512_unpackhi_epi64(ab, cd));
    all = _mm512_max_epu32(all, _mm512_shuffle_i64x2(all, all, 0x4e));
    all = _mm512_max_epu32(all, _mm512_shuffle_i64x2(all, all, 0xb1));
    return _mm512_castsi512_si128(all);
}

/* 32 int8 each of two blocks, from 4 x 16 int32 in [-127, 127]. */
INLINE __m512i narrow(const __m512i q[4])
{
    const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    const __m512i words = _mm512_packs_epi16(_mm512_packs_epi32(q[0], q[1]), _mm512_packs_epi32(q[2], q[3]));
    return _mm512_permutexvar_epi32(order, words);
}

/* Sums of the first and of the second 16 bytes of each of four blocks. */
INLINE void half_sums(const __m512i bytes[2], __m128i *first, __m128i *second)
{
    const __m512i ones = _mm512_set1_epi8(1);
    const __m512i ab = _mm512_dpbusd_epi32(_mm512_setzero_si512(), ones, bytes[0]);
    const __m512i cd = _mm512_dpbusd_epi32(_mm512_setzero_si512(), ones, bytes[1]);
    __m512i sums = _mm512_add_epi32(_mm512_unpacklo_epi32(ab, cd), _mm512_unpackhi_epi32(ab, cd));
    sums = _mm512_add_epi32(sums, _mm512_shuffle_epi32(sums, (_MM_PERM_ENUM)0x4e)); /* a c a c | a c a c | b d | b d */
    *first = _mm_unpacklo_epi32(_mm512_castsi512_si128(sums), _mm512_extracti32x4_epi32(sums, 2));
    *second = _mm_unpacklo_epi32(_mm512_extracti32x4_epi32(sums, 1), _mm512_extracti32x4_epi32(sums, 3));
}

INLINE void put(uint8_t *p, __m128i v, unsigned lane)
{
    const int32_t x = lane == 0   ? _mm_cvtsi128_si32(v)
                      : lane == 1 ? _mm_extract_epi32(v, 1)
                      : lane == 2 ? _mm_extract_epi32(v, 2)
                                  : _mm_extract_epi32(v, 3);
    memcpy(p, &x, 4);
}

/* Up to four blocks: the i-th from x + i * x_step to row r + i * r_step of the block at tile + i * tile_step. Gives bit
 * i for a block that is not finite. */
INLINE unsigned quantise(enum act_kind kind, const float *x, size_t x_step, uint8_t *tile, size_t tile_step, uint32_t R,
                         uint32_t r, uint32_t r_step, unsigned count)
{
    const __m512i magnitude = _mm512_set1_epi32(0x7fffffff);
    __m512 v[2 * TOGETHER];
    __m512i bits[TOGETHER], q[2 * TOGETHER], bytes[2];
    UNROLL for (unsigned i = 0; i < TOGETHER; i++)
    {
        const float *from = x + (i < count ? i * x_step : 0);
        v[2 * i] = _mm512_loadu_ps(from);
        v[2 * i + 1] = _mm512_loadu_ps(from + 16);
        bits[i] = _mm512_max_epu32(_mm512_and_si512(_mm512_castps_si512(v[2 * i]), magnitude),
                                   _mm512_and_si512(_mm512_castps_si512(v[2 * i + 1]), magnitude));
    }
    const __m128i bits_max = highest(bits);
    const __m128 amax = _mm_castsi128_ps(bits_max), steps = _mm_set1_ps(127.0f);
    const __mmask8 live = _mm_cmp_ps_mask(amax, _mm_set1_ps(ACT_AMAX_MIN), _CMP_GE_OQ);
    const __m128 inverse = _mm_maskz_div_ps(live, steps, amax), da = _mm_maskz_div_ps(live, amax, steps);
    UNROLL for (int i = 0; i < TOGETHER; i++)
    {
        const __m512 by = _mm512_permutexvar_ps(_mm512_set1_epi32(i), _mm512_castps128_ps512(inverse));
        q[2 * i] = _mm512_cvtps_epi32(_mm512_mul_ps(v[2 * i], by));
        q[2 * i + 1] = _mm512_cvtps_epi32(_mm512_mul_ps(v[2 * i + 1], by));
    }
    bytes[0] = narrow(q);
    bytes[1] = narrow(q + 4);
    __m128i first, second;
    half_sums(bytes, &first, &second);
    const __m128i sum = _mm_add_epi32(first, second), zero_point = _mm_set1_epi32(-act_zero_point(kind));
    const bool halves = kind == ACT_Q8_ZP32;
    const __m128i init = _mm_mullo_epi32(zero_point, halves ? first : sum);
    const __m128i last =
        halves ? _mm_mullo_epi32(zero_point, second) : _mm_castps_si128(_mm_mul_ps(da, _mm_cvtepi32_ps(sum)));
    UNROLL for (unsigned i = 0; i < TOGETHER; i++)
    {
        if (i >= count) break;
        uint8_t *block = tile + i * tile_step;
        const uint32_t row = r + i * r_step;
        _mm256_storeu_si256((__m256i *)(block + (size_t)row * 32),
                            i & 1 ? _mm512_extracti64x4_epi64(bytes[i / 2], 1) : _mm512_castsi512_si256(bytes[i / 2]));
        put(block + (size_t)R * 32 + row * 4, init, i);
        put(block + (size_t)R * 36 + row * 4, _mm_castps_si128(da), i);
        put(block + (size_t)R * 40 + row * 4, last, i);
    }
    return _mm_cmpge_epu32_mask(bits_max, _mm_set1_epi32(0x7f800000));
}

/* Blocks of a row whose values end before the block does. */
static bool quantise_rest(enum act_kind kind, const float *x, uint32_t K, uint32_t blocks, uint8_t *tile, uint32_t R,
                          uint32_t r)
{
    bool finite = true;
    for (uint32_t b = 0; b < blocks; b++, tile += (size_t)R * ACT_BLOCK_BYTES) {
        float edge[PANEL_BLOCK] = {0};
        const uint32_t k = b * PANEL_BLOCK;
        if (k < K) memcpy(edge, x + k, (K - k) * sizeof *x);
        if (quantise(kind, edge, 0, tile, 0, R, r, 0, 1)) finite = false;
    }
    return finite;
}

uint32_t matmul_quantise_avx512(enum act_kind kind, const float *x, size_t stride_m, uint32_t K, uint32_t blocks,
                                uint8_t *tile, uint32_t R, uint32_t r_begin, uint32_t r_end)
{
    const size_t block_bytes = (size_t)R * ACT_BLOCK_BYTES;
    const uint32_t whole = K / PANEL_BLOCK < blocks ? K / PANEL_BLOCK : blocks;
    uint32_t bad_rows = 0;
    if (blocks == 1 && whole == 1) {
        for (uint32_t r = r_begin; r < r_end; r += TOGETHER, x += TOGETHER * stride_m) {
            const unsigned count = r_end - r < TOGETHER ? r_end - r : TOGETHER;
            bad_rows |= (quantise(kind, x, stride_m, tile, 0, R, r, 1, count) & ((1u << count) - 1)) << r;
        }
        return bad_rows;
    }
    for (uint32_t r = r_begin; r < r_end; r++, x += stride_m) {
        bool finite = true;
        for (uint32_t b = 0; b < whole; b += TOGETHER) {
            const unsigned count = whole - b < TOGETHER ? whole - b : TOGETHER;
            if (quantise(kind, x + (size_t)b * PANEL_BLOCK, PANEL_BLOCK, tile + b * block_bytes, block_bytes, R, r, 0,
                         count))
                finite = false;
        }
        if (whole < blocks && !quantise_rest(kind, x + (size_t)whole * PANEL_BLOCK, K - whole * PANEL_BLOCK,
                                             blocks - whole, tile + whole * block_bytes, R, r))
            finite = false;
        if (!finite) bad_rows |= UINT32_C(1) << r;
    }
    return bad_rows;
}
