/* BF16 weights against activations rounded to BF16, with AVX-512: by vdpbf16ps (path avx512bf16), or by two FMAs under
 * FTZ and DAZ, which is the same arithmetic (path avx512; found by comparing 120 million random and extreme lanes on
 * Zen 4, see cpu_path_dot_as_defined). One template: an instance a number of rows, one panel at a time, all sums of
 * the tile in registers.
 *
 * One chain an output at every M, since bits may not depend on M: at M = 1 the dot's latency of six cycles limits a
 * core to 40 GB/s of weights, which is above what it gets from memory. GCC 12 does not fold the broadcast load into the
 * dot, hence the one-instruction asm. Software prefetch only where arithmetic is the limit, as in matmul_avx512.c. */
#include "kernels/matmul_panel.h"

#include <immintrin.h>

#define INLINE static inline __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 32")

enum { PAIR_BYTES = 64, BLOCK_PAIRS = 16, PREFETCH_FROM_ROWS = 5, PREFETCH_AHEAD_BYTES = 16384, FTZ_DAZ = 0x8040 };

typedef int32_t __attribute__((may_alias)) aliasing_i32;

INLINE __m512i odd_mask(void)
{
    return _mm512_set1_epi32((int)0xffff0000u);
}

/* One pair of inputs, all 16 rows of the panel, against M rows: act is the pair of the tile's first row. */
INLINE void pair(const bool dot, const int M, const uint8_t *weights, const uint8_t *act, __m512 F[16])
{
    __m512i w;
    __asm__ volatile("vmovdqa64 %1, %0" : "=v"(w) : "m"(*(const __m512i *)weights)); /* loaded once */
    if (dot) {
        UNROLL for (int m = 0; m < M; m++)
        {
            const aliasing_i32 *x = (const aliasing_i32 *)(act + m * ACT_BF16_BYTES);
            __asm__ volatile("vdpbf16ps %2%{1to16%}, %1, %0" : "+v"(F[m]) : "v"(w), "m"(*x));
        }
        return;
    }
    const __m512 odd = _mm512_castsi512_ps(_mm512_and_si512(w, odd_mask()));
    const __m512 even = _mm512_castsi512_ps(_mm512_slli_epi32(w, 16));
    UNROLL for (int m = 0; m < M; m++)
    {
        const __m512i x = _mm512_set1_epi32(*(const aliasing_i32 *)(act + m * ACT_BF16_BYTES));
        F[m] = _mm512_fmadd_ps(_mm512_castsi512_ps(_mm512_and_si512(x, odd_mask())), odd, F[m]);
        F[m] = _mm512_fmadd_ps(_mm512_castsi512_ps(_mm512_slli_epi32(x, 16)), even, F[m]);
    }
}

INLINE void panels_loop(const bool dot, const int M, const uint8_t *w, uint32_t panels, uint32_t pairs,
                        const uint8_t *act, float *out, size_t stride_m)
{
    for (; panels > 0; panels--, out += 16) {
        const uint8_t *a = act;
        __m512 F[16];
        UNROLL for (int m = 0; m < M; m++) F[m] = _mm512_setzero_ps();
        for (uint32_t b = pairs / BLOCK_PAIRS; b > 0; b--, a += M * ACT_BF16_BYTES, w += BLOCK_PAIRS * PAIR_BYTES)
            UNROLL for (int i = 0; i < BLOCK_PAIRS; i++)
            {
                if (M >= PREFETCH_FROM_ROWS)
                    _mm_prefetch((const char *)w + PREFETCH_AHEAD_BYTES + i * PAIR_BYTES, _MM_HINT_T1);
                pair(dot, M, w + i * PAIR_BYTES, a + 4 * i, F);
            }
        for (uint32_t i = pairs % BLOCK_PAIRS; i > 0; i--, a += 4, w += PAIR_BYTES) pair(dot, M, w, a, F);
        UNROLL for (int m = 0; m < M; m++) _mm512_storeu_ps(out + m * stride_m, F[m]);
    }
}

typedef void instance_fn(const uint8_t *w, uint32_t panels, uint32_t pairs, const uint8_t *act, float *out,
                         size_t stride_m);

/* clang-format off */
#define ALL_ROWS(X, how)                                                                                               \
    X(how, 1) X(how, 2) X(how, 3) X(how, 4) X(how, 5) X(how, 6) X(how, 7) X(how, 8)                                    \
    X(how, 9) X(how, 10) X(how, 11) X(how, 12) X(how, 13) X(how, 14) X(how, 15) X(how, 16)
/* clang-format on */
#define HOW_dot true
#define HOW_fma false
#define DEFINE(how, M)                                                                                                 \
    static void matmul_bf16_##how##_##M(const uint8_t *w, uint32_t panels, uint32_t pairs, const uint8_t *act,         \
                                        float *out, size_t stride_m)                                                   \
    {                                                                                                                  \
        panels_loop(HOW_##how, M, w, panels, pairs, act, out, stride_m);                                               \
    }
#define ENTRY(how, M) matmul_bf16_##how##_##M,

ALL_ROWS(DEFINE, dot)
ALL_ROWS(DEFINE, fma)
static instance_fn *const dot_instances[MATMUL_TILE_ROWS + 1] = {NULL, ALL_ROWS(ENTRY, dot)};
static instance_fn *const fma_instances[MATMUL_TILE_ROWS + 1] = {NULL, ALL_ROWS(ENTRY, fma)};

void matmul_tile_bf16_avx512bf16(const struct matrix *matrix, const uint8_t *panel, uint32_t panels, const uint8_t *act,
                                 uint32_t R, float *out, size_t stride_m)
{
    dot_instances[R](panel, panels, (matrix->K + 1) / 2, act, out, stride_m);
}

void matmul_tile_bf16_avx512(const struct matrix *matrix, const uint8_t *panel, uint32_t panels, const uint8_t *act,
                             uint32_t R, float *out, size_t stride_m)
{
    const unsigned saved = _mm_getcsr();
    _mm_setcsr(saved | FTZ_DAZ);
    fma_instances[R](panel, panels, (matrix->K + 1) / 2, act, out, stride_m);
    _mm_setcsr(saved);
}

/* 16 values to BF16 in the low halves of dwords, nearest even, denormals to zeros of their sign. */
INLINE __m512i round_16(__m512 x)
{
    const __m512i bits = _mm512_castps_si512(x);
    const __mmask16 small = _mm512_testn_epi32_mask(bits, _mm512_set1_epi32(0x7f800000));
    const __m512i last = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    const __m512i up = _mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff)), last);
    const __m512i zero = _mm512_and_si512(bits, _mm512_set1_epi32((int)0x80000000u));
    return _mm512_srli_epi32(_mm512_mask_mov_epi32(up, small, zero), 16);
}

INLINE bool round_row(const bool convert, const float *x, uint32_t K, uint8_t *tile, uint32_t R, uint32_t r)
{
    const __m512i magnitude = _mm512_set1_epi32(0x7fffffff);
    __m512i bits_max = _mm512_setzero_si512();
    tile += (size_t)r * ACT_BF16_BYTES;
    for (uint32_t k = 0; k < K; k += PANEL_BLOCK, tile += (size_t)R * ACT_BF16_BYTES) {
        const uint32_t lanes = K - k >= 32 ? ~UINT32_C(0) : (UINT32_C(1) << (K - k)) - 1;
        const __m512 x0 = _mm512_maskz_loadu_ps((__mmask16)lanes, x + k);
        const __m512 x1 = _mm512_maskz_loadu_ps((__mmask16)(lanes >> 16), K - k > 16 ? x + k + 16 : x);
        __m512i y;
        if (convert) {
            y = (__m512i)_mm512_cvtne2ps_pbh(x1, x0);
        } else {
            y = _mm512_castsi256_si512(_mm512_cvtepi32_epi16(round_16(x0)));
            y = _mm512_inserti64x4(y, _mm512_cvtepi32_epi16(round_16(x1)), 1);
        }
        bits_max = _mm512_max_epu32(bits_max, _mm512_and_si512(_mm512_castps_si512(x0), magnitude));
        bits_max = _mm512_max_epu32(bits_max, _mm512_and_si512(_mm512_castps_si512(x1), magnitude));
        _mm512_store_si512(tile, y);
    }
    return _mm512_cmpge_epu32_mask(bits_max, _mm512_set1_epi32((int)ACT_BF16_BAD)) == 0;
}

bool matmul_round_avx512bf16(const float *x, uint32_t K, uint8_t *tile, uint32_t R, uint32_t r)
{
    return round_row(true, x, K, tile, R, r);
}
bool matmul_round_avx512(const float *x, uint32_t K, uint8_t *tile, uint32_t R, uint32_t r)
{
    return round_row(false, x, K, tile, R, r);
}
