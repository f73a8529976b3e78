/* BF16 weights against activations rounded to BF16, with AVX2 and FMA: a pair of inputs is two FMAs, the odd one first,
 * under FTZ and DAZ, which is what vdpbf16ps computes. Four rows at a time; a BF16 is widened by a shift or a mask, on
 * units that the FMAs leave idle. */
#include "kernels/matmul_panel.h"

#include <immintrin.h>
#include <string.h>

#define INLINE static inline __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 16")

enum { PAIR_BYTES = 64, BLOCK_PAIRS = 16, FTZ_DAZ = 0x8040 };

typedef int32_t __attribute__((may_alias)) aliasing_i32;

INLINE __m256 odd_of(__m256i pairs)
{
    return _mm256_castsi256_ps(_mm256_and_si256(pairs, _mm256_set1_epi32((int)0xffff0000u)));
}
INLINE __m256 even_of(__m256i pairs)
{
    return _mm256_castsi256_ps(_mm256_slli_epi32(pairs, 16));
}

/* R = 1..4 rows from act on, in a tile of M rows. */
INLINE void rows(const uint8_t *w, uint32_t pairs, const uint8_t *act, uint32_t M, const int R, float *out,
                 size_t stride_m)
{
    __m256 F[4][2];
    UNROLL for (int r = 0; r < R; r++) F[r][0] = F[r][1] = _mm256_setzero_ps();
    for (uint32_t i = 0; i < pairs; i++, w += PAIR_BYTES) {
        const uint8_t *a = act + (size_t)(i / BLOCK_PAIRS) * M * ACT_BF16_BYTES + i % BLOCK_PAIRS * 4;
        const __m256i w0 = _mm256_load_si256((const __m256i *)(const void *)w);
        const __m256i w1 = _mm256_load_si256((const __m256i *)(const void *)(w + 32));
        const __m256 odd[2] = {odd_of(w0), odd_of(w1)}, even[2] = {even_of(w0), even_of(w1)};
        UNROLL for (int r = 0; r < R; r++)
        {
            const __m256i x = _mm256_set1_epi32(*(const aliasing_i32 *)(a + r * ACT_BF16_BYTES));
            UNROLL for (int s = 0; s < 2; s++) F[r][s] = _mm256_fmadd_ps(odd_of(x), odd[s], F[r][s]);
            UNROLL for (int s = 0; s < 2; s++) F[r][s] = _mm256_fmadd_ps(even_of(x), even[s], F[r][s]);
        }
    }
    UNROLL for (int r = 0; r < R; r++) UNROLL for (int s = 0; s < 2; s++)
    {
        _mm256_storeu_ps(out + (size_t)r * stride_m + 8 * s, F[r][s]);
    }
}

/* Not inlined: no FMA may move out of the section in which MXCSR is set. */
static __attribute__((noinline)) void panel_rows(const uint8_t *w, uint32_t pairs, const uint8_t *act, uint32_t M,
                                                 float *out, size_t stride_m)
{
    uint32_t m = 0;
    for (; m + 4 <= M; m += 4)
        rows(w, pairs, act + (size_t)m * ACT_BF16_BYTES, M, 4, out + (size_t)m * stride_m, stride_m);
    act += (size_t)m * ACT_BF16_BYTES;
    out += (size_t)m * stride_m;
    if (M - m == 3) rows(w, pairs, act, M, 3, out, stride_m);
    if (M - m == 2) rows(w, pairs, act, M, 2, out, stride_m);
    if (M - m == 1) rows(w, pairs, act, M, 1, out, stride_m);
}

void matmul_tile_bf16_avx2(const struct matrix *matrix, const uint8_t *panel, uint32_t panels, const uint8_t *act,
                           uint32_t R, float *out, size_t stride_m)
{
    const unsigned saved = _mm_getcsr();
    _mm_setcsr(saved | FTZ_DAZ);
    for (uint32_t p = 0; p < panels; p++, panel += matrix->panel_bytes, out += 16)
        panel_rows(panel, (matrix->K + 1) / 2, act, R, out, stride_m);
    _mm_setcsr(saved);
}

/* Eight values to BF16 in the low halves of dwords, nearest even, denormals to zeros of their sign; the
 * largest magnitude goes to bits_max. */
INLINE __m256i round_8(const float *x, __m256i *bits_max)
{
    const __m256i bits = _mm256_loadu_si256((const __m256i *)(const void *)x);
    const __m256i magnitude = _mm256_and_si256(bits, _mm256_set1_epi32(0x7fffffff));
    *bits_max = _mm256_max_epu32(*bits_max, magnitude);
    const __m256i exponent = _mm256_and_si256(bits, _mm256_set1_epi32(0x7f800000));
    const __m256i small = _mm256_cmpeq_epi32(exponent, _mm256_setzero_si256());
    const __m256i last = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    const __m256i up = _mm256_add_epi32(_mm256_add_epi32(bits, _mm256_set1_epi32(0x7fff)), last);
    const __m256i zero = _mm256_and_si256(bits, _mm256_set1_epi32((int)0x80000000u));
    return _mm256_srli_epi32(_mm256_blendv_epi8(up, zero, small), 16);
}

INLINE uint32_t max_lanes(__m256i v)
{
    __m128i m = _mm_max_epu32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
    m = _mm_max_epu32(m, _mm_shuffle_epi32(m, 0x4e));
    return (uint32_t)_mm_cvtsi128_si32(_mm_max_epu32(m, _mm_shuffle_epi32(m, 0xb1)));
}

bool matmul_round_avx2(const float *x, uint32_t K, uint8_t *tile, uint32_t R, uint32_t r)
{
    __m256i bits_max = _mm256_setzero_si256();
    tile += (size_t)r * ACT_BF16_BYTES;
    for (uint32_t k = 0; k < K; k += PANEL_BLOCK, tile += (size_t)R * ACT_BF16_BYTES) {
        float edge[PANEL_BLOCK] = {0};
        const float *p = x + k;
        if (K - k < PANEL_BLOCK) {
            memcpy(edge, p, (K - k) * sizeof *p);
            p = edge;
        }
        UNROLL for (int i = 0; i < 2; i++)
        {
            const __m256i y0 = round_8(p + 16 * i, &bits_max), y1 = round_8(p + 16 * i + 8, &bits_max);
            /* packus works within 128-bit lanes: quads come out as 0 2 1 3 */
            const __m256i y = _mm256_permute4x64_epi64(_mm256_packus_epi32(y0, y1), 0xd8);
            _mm256_store_si256((__m256i *)(void *)(tile + 32 * i), y);
        }
    }
    return max_lanes(bits_max) < ACT_BF16_BAD;
}
