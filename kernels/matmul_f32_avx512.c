/* f32 activations against panels, with AVX-512: exact mode, and F32 and F16 weights.
 *
 * Weights of 32 inputs are widened to f32 into a 2 KB buffer that stays in L1, with the roundings of dequantize_row;
 * then one FMA an output and input, in rising order of inputs, all rows of the tile at once: 16 accumulators, one load
 * of weights for up to 16 FMAs with the activation broadcast from memory. The buffer keeps the instances at 16 (one a
 * number of rows) where widening in registers needs 176, and costs about a tenth of the time at 16 rows. */
#include "kernels/matmul_panel.h"

#include <immintrin.h>

#define INLINE static inline __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 32")

INLINE __m512 load_scale(enum tensor_type type, const uint8_t *group, const uint8_t *head, unsigned half, unsigned s)
{
    const uint8_t *p = group + panel_scale_offset(type) + (2 * s + half) * panel_scale_bytes(type);
    if (!panel_has_head(type)) return _mm512_cvtph_ps(_mm256_load_si256((const __m256i *)p));
    const __m128i bytes = _mm_load_si128((const __m128i *)p);
    const __m512i scale = panel_halves(type) ? _mm512_cvtepi8_epi32(bytes) : _mm512_cvtepu8_epi32(bytes);
    const __m256i factor = _mm256_load_si256((const __m256i *)(head + panel_factor_offset(type, s)));
    return _mm512_mul_ps(_mm512_cvtph_ps(factor), _mm512_cvtepi32_ps(scale));
}

/* Quad i of a block: dword r holds the four codes of row r. */
INLINE __m512i quad(enum tensor_type type, const uint8_t *group, unsigned half, unsigned i)
{
    const uint8_t *low = group + half * panel_code_bytes(type);
    const uint8_t *high = group + panel_high_offset(type) + half * panel_high_bytes(type);
    if (panel_code_bits(type) == 8) return _mm512_load_si512(low + 64 * i);
    __m512i v = _mm512_srli_epi16(_mm512_load_si512(low + 64 * (i & 3)), i & 4);
    v = _mm512_and_si512(v, _mm512_set1_epi8(15));
    if (panel_code_bits(type) == 5) {
        const __m512i bit = _mm512_slli_epi16(_mm512_srli_epi16(_mm512_load_si512(high), i), 4);
        v = _mm512_or_si512(v, _mm512_and_si512(bit, _mm512_set1_epi8(0x10)));
    }
    if (panel_code_bits(type) == 6) {
        const __m512i bits =
            _mm512_slli_epi16(_mm512_srli_epi16(_mm512_load_si512(high + 64 * (i / 4)), 2 * (i & 3)), 4);
        v = _mm512_or_si512(v, _mm512_and_si512(bits, _mm512_set1_epi8(0x30)));
    }
    return v;
}

INLINE void widen_block(enum tensor_type type, const uint8_t *panel, uint32_t b, float weights[32][16])
{
    const uint8_t *group = panel + panel_group_offset(type, b / 2), *head = panel + panel_head_offset(type, b / 2);
    const __m512 first = load_scale(type, group, head, b & 1, 0);
    const __m512 second = panel_scales(type) == 2 ? load_scale(type, group, head, b & 1, 1) : first;
    for (unsigned i = 0; i < 8; i++) {
        const __m512 d = panel_halves(type) && i >= 4 ? second : first;
        __m512i v = quad(type, group, b & 1, i);
        UNROLL for (unsigned k = 0; k < 4; k++, v = _mm512_srli_epi32(v, 8))
        {
            const __m512i code = _mm512_and_si512(v, _mm512_set1_epi32(255));
            __m512 w = _mm512_cvtepi32_ps(_mm512_sub_epi32(code, _mm512_set1_epi32(panel_zero_point(type))));
            w = _mm512_mul_ps(w, d);
            if (panel_has_min(type)) w = _mm512_add_ps(w, second);
            _mm512_store_ps(weights[4 * i + k], w);
        }
    }
}

/* Inputs [k_begin, k_begin + k_count) of a panel as f32 [k][row]. */
static const float *widen(enum tensor_type type, const uint8_t *panel, uint32_t k_begin, uint32_t k_count,
                          float weights[32][16])
{
    const uint32_t b = k_begin / PANEL_BLOCK;
    switch (type) {
    case TENSOR_F32: return (const float *)(const void *)(panel + (size_t)k_begin * 64);
    case TENSOR_F16:
        for (uint32_t k = 0; k < k_count; k++) {
            const __m256i h = _mm256_load_si256((const __m256i *)(panel + (size_t)(k_begin + k) * 32));
            _mm512_store_ps(weights[k], _mm512_cvtph_ps(h));
        }
        break;
    case TENSOR_BF16:
        for (uint32_t k = 0; k < k_count; k += 2) {
            const __m512i pair = _mm512_load_si512(panel + (size_t)(k_begin + k) * 32);
            _mm512_store_si512(weights[k], _mm512_slli_epi32(pair, 16));
            _mm512_store_si512(weights[k + 1], _mm512_and_si512(pair, _mm512_set1_epi32((int)0xffff0000u)));
        }
        break;
    case TENSOR_Q4_0: widen_block(TENSOR_Q4_0, panel, b, weights); break;
    case TENSOR_Q4_1: widen_block(TENSOR_Q4_1, panel, b, weights); break;
    case TENSOR_Q5_0: widen_block(TENSOR_Q5_0, panel, b, weights); break;
    case TENSOR_Q5_1: widen_block(TENSOR_Q5_1, panel, b, weights); break;
    case TENSOR_Q8_0: widen_block(TENSOR_Q8_0, panel, b, weights); break;
    case TENSOR_Q4_K: widen_block(TENSOR_Q4_K, panel, b, weights); break;
    case TENSOR_Q5_K: widen_block(TENSOR_Q5_K, panel, b, weights); break;
    case TENSOR_Q6_K: widen_block(TENSOR_Q6_K, panel, b, weights); break;
    case TENSOR_F8: panel_weights(TENSOR_F8, panel, k_begin, k_count, weights); break; /* exact numerics alone */
    }
    return weights[0];
}

INLINE void panels_loop(const int M, const struct matrix *matrix, const uint8_t *panel, uint32_t panels,
                        const float *act, float *out, size_t stride_m)
{
    _Alignas(64) float buffer[32][16];
    for (; panels > 0; panels--, out += 16, panel += matrix->panel_bytes) {
        const float *x = act;
        __m512 F[16];
        UNROLL for (int m = 0; m < M; m++) F[m] = _mm512_setzero_ps();
        for (uint32_t k0 = 0; k0 < matrix->K; k0 += 32) {
            const uint32_t k_count = matrix->K - k0 < 32 ? matrix->K - k0 : 32;
            const float *w = widen(matrix->type, panel, k0, k_count, buffer);
            for (uint32_t k = 0; k < k_count; k++, x += M, w += 16) {
                const __m512 weights = _mm512_load_ps(w);
                UNROLL for (int m = 0; m < M; m++) F[m] = _mm512_fmadd_ps(weights, _mm512_set1_ps(x[m]), F[m]);
            }
        }
        UNROLL for (int m = 0; m < M; m++) _mm512_storeu_ps(out + m * stride_m, F[m]);
    }
}

typedef void instance_fn(const struct matrix *matrix, const uint8_t *panel, uint32_t panels, const float *act,
                         float *out, size_t stride_m);

#define ALL_ROWS(X) X(1) X(2) X(3) X(4) X(5) X(6) X(7) X(8) X(9) X(10) X(11) X(12) X(13) X(14) X(15) X(16)
#define DEFINE(M)                                                                                                      \
    static void matmul_f32_##M(const struct matrix *matrix, const uint8_t *panel, uint32_t panels, const float *act,   \
                               float *out, size_t stride_m)                                                            \
    {                                                                                                                  \
        panels_loop(M, matrix, panel, panels, act, out, stride_m);                                                     \
    }
#define ENTRY(M) matmul_f32_##M,

ALL_ROWS(DEFINE)
static instance_fn *const instances[MATMUL_TILE_ROWS + 1] = {NULL, ALL_ROWS(ENTRY)};

void matmul_tile_f32_avx512(const struct matrix *matrix, const uint8_t *panel, uint32_t panels, const uint8_t *act,
                            uint32_t R, float *out, size_t stride_m)
{
    instances[R](matrix, panel, panels, (const float *)(const void *)act, out, stride_m);
}
