/* The matmul with AVX2, FMA and F16C: 256-bit halves of a panel.
 *
 * vpmaddubsw adds two products of unsigned code and signed activation in 16 bits, and saturates. With codes up to 63
 * and activations within +-127 a pair is at most 2 * 63 * 127 = 16002, so sums of 8 quads of 4-bit codes, 4 of 5-bit
 * and 2 of 6-bit codes are exact in 16 bits (30480, 31496, 32004), and are widened only then. Q8_0 is taken as two
 * codes of four bits, each summed like Q4_0, the high one times 16 at the end. */
#include "kernels/matmul_half.h"

INLINE uint32_t pass_rows(enum tensor_type type)
{
    return panel_code_bits(type) == 8 ? 2 : 4;
}
INLINE int code_planes(enum tensor_type type)
{
    return panel_code_bits(type) == 8 ? 2 : 1;
}

INLINE __m256i pair_products(__m256i codes, __m256i q)
{
    __m256i v;
    __asm__ volatile("vpmaddubsw %2, %1, %0" : "=x"(v) : "x"(codes), "x"(q));
    return v;
}
INLINE __m256i pairs_add(__m256i sum, __m256i v)
{
    __asm__ volatile("vpaddw %1, %0, %0" : "+x"(sum) : "x"(v));
    return sum;
}

/* run: how many quads' pairs fit in 16 bits together. */
INLINE void dots(enum tensor_type type, const int R, const struct block *block, const uint8_t *q, const uint8_t *init,
                 const uint8_t *last, pass_sums S)
{
    const unsigned bits = panel_code_bits(type), run = bits == 5 ? 4 : bits == 6 ? 2 : 8;
    UNROLL for (unsigned i0 = 0; i0 < 8; i0 += run)
    {
        const unsigned h = panel_halves(type) ? i0 / 4 : 0;
        const bool begins = i0 == 4 * h, started = begins && panel_zero_point(type);
        __m256i pairs[2][PASS_ROWS][2];
        UNROLL for (unsigned i = i0; i < i0 + run; i++)
        {
            __m256i codes[2][2];
            UNROLL for (int plane = 0; plane < code_planes(type); plane++)
                UNROLL for (unsigned side = 0; side < 2; side++)
            {
                codes[plane][side] = block_codes(type, block, plane, i, side);
            }
            UNROLL for (int r = 0; r < R; r++)
            {
                const __m256i a = broadcast_once(q + r * 32 + 4 * i);
                UNROLL for (int plane = 0; plane < code_planes(type); plane++)
                    UNROLL for (int side = 0; side < 2; side++)
                {
                    const __m256i p = pair_products(codes[plane][side], a);
                    pairs[plane][r][side] = i == i0 ? p : pairs_add(pairs[plane][r][side], p);
                }
            }
        }
        UNROLL for (int r = 0; r < R; r++)
        {
            const __m256i start = started ? broadcast_once((h ? last : init) + 4 * r) : _mm256_setzero_si256();
            UNROLL for (int side = 0; side < 2; side++)
            {
                __m256i sum = _mm256_madd_epi16(pairs[0][r][side], _mm256_set1_epi16(1));
                if (code_planes(type) == 2)
                    sum = _mm256_add_epi32(sum, _mm256_madd_epi16(pairs[1][r][side], _mm256_set1_epi16(16)));
                if (!begins)
                    sum = _mm256_add_epi32(sum, S[h][r][side]);
                else if (started)
                    sum = _mm256_add_epi32(sum, start);
                settle(&sum);
                S[h][r][side] = sum;
            }
        }
    }
}

/* ---- f32 activations ---- */

INLINE void widen_block(enum tensor_type type, const uint8_t *panel, uint32_t b, float weights[32][16])
{
    const uint8_t *group = panel + panel_group_offset(type, b / 2), *head = panel + panel_head_offset(type, b / 2);
    for (unsigned side = 0; side < 2; side++) {
        const __m256 first = load_scale(type, group, head, b & 1, 0, side);
        const __m256 second = panel_scales(type) == 2 ? load_scale(type, group, head, b & 1, 1, side) : first;
        for (unsigned i = 0; i < 8; i++) {
            const __m256 d = panel_halves(type) && i >= 4 ? second : first;
            __m256i v = quad(type, group, b & 1, i, side);
            UNROLL for (unsigned k = 0; k < 4; k++, v = _mm256_srli_epi32(v, 8))
            {
                const __m256i code = _mm256_and_si256(v, _mm256_set1_epi32(255));
                __m256 w = _mm256_cvtepi32_ps(_mm256_sub_epi32(code, _mm256_set1_epi32(panel_zero_point(type))));
                w = _mm256_mul_ps(w, d);
                if (panel_has_min(type)) w = _mm256_add_ps(w, second);
                _mm256_store_ps(weights[4 * i + k] + 8 * side, w);
            }
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
        for (uint32_t i = 0; i < 2 * k_count; i++) {
            const uint8_t *h = panel + (size_t)k_begin * 32 + (size_t)i * 16;
            _mm256_store_ps(weights[0] + 8 * i, _mm256_cvtph_ps(_mm_load_si128((const __m128i *)(const void *)h)));
        }
        break;
    case TENSOR_BF16:
        for (uint32_t k = 0; k < k_count; k += 2)
            for (unsigned side = 0; side < 2; side++) {
                const __m256i pair = load(panel + (size_t)(k_begin + k) * 32 + 32 * side);
                const __m256i odd = _mm256_and_si256(pair, _mm256_set1_epi32((int)0xffff0000u));
                _mm256_store_si256((__m256i *)(void *)(weights[k] + 8 * side), _mm256_slli_epi32(pair, 16));
                _mm256_store_si256((__m256i *)(void *)(weights[k + 1] + 8 * side), odd);
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

/* R rows from row m of a tile of M, over k_count inputs. */
INLINE void fma_rows(const float *w, uint32_t k_count, const float *x, uint32_t M, const int R, float (*F)[16])
{
    __m256 f[4][2];
    UNROLL for (int r = 0; r < R; r++) UNROLL for (int s = 0; s < 2; s++) f[r][s] = _mm256_load_ps(F[r] + 8 * s);
    for (uint32_t k = 0; k < k_count; k++, w += 16, x += M) {
        const __m256 w0 = _mm256_load_ps(w), w1 = _mm256_load_ps(w + 8);
        UNROLL for (int r = 0; r < R; r++)
        {
            const __m256 a = _mm256_set1_ps(x[r]);
            f[r][0] = _mm256_fmadd_ps(a, w0, f[r][0]);
            f[r][1] = _mm256_fmadd_ps(a, w1, f[r][1]);
        }
    }
    UNROLL for (int r = 0; r < R; r++) UNROLL for (int s = 0; s < 2; s++) _mm256_store_ps(F[r] + 8 * s, f[r][s]);
}

static void panel_f32(const struct matrix *matrix, const uint8_t *panel, const float *x, uint32_t M, float F[16][16])
{
    _Alignas(32) float buffer[32][16];
    for (uint32_t k0 = 0; k0 < matrix->K; k0 += 32, x += 32 * M) {
        const uint32_t k_count = matrix->K - k0 < 32 ? matrix->K - k0 : 32;
        const float *w = widen(matrix->type, panel, k0, k_count, buffer);
        uint32_t m = 0;
        for (; m + 4 <= M; m += 4) fma_rows(w, k_count, x + m, M, 4, F + m);
        if (M - m == 3) fma_rows(w, k_count, x + m, M, 3, F + m);
        if (M - m == 2) fma_rows(w, k_count, x + m, M, 2, F + m);
        if (M - m == 1) fma_rows(w, k_count, x + m, M, 1, F + m);
    }
}

void matmul_tile_avx2(const struct matrix *matrix, const uint8_t *panel, uint32_t panels, const uint8_t *act,
                      uint32_t R, float *out, size_t stride_m)
{
    if (matrix->act != ACT_F32) {
        panels_multiply(matrix, panel, panels, act, R, out, stride_m);
        return;
    }
    for (uint32_t p = 0; p < panels; p++, panel += matrix->panel_bytes, out += 16) {
        _Alignas(32) float F[16][16] = {{0}};
        panel_f32(matrix, panel, (const float *)(const void *)act, R, F);
        for (uint32_t m = 0; m < R; m++) memcpy(out + m * stride_m, F[m], sizeof F[m]);
    }
}

/* ---- activations ---- */

INLINE int32_t sum_lanes(__m256i v)
{
    __m128i s = _mm_add_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
    s = _mm_add_epi32(s, _mm_shuffle_epi32(s, 0x4e));
    return _mm_cvtsi128_si32(_mm_add_epi32(s, _mm_shuffle_epi32(s, 0xb1)));
}
INLINE uint32_t max_lanes(__m256i v)
{
    __m128i s = _mm_max_epu32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
    s = _mm_max_epu32(s, _mm_shuffle_epi32(s, 0x4e));
    return (uint32_t)_mm_cvtsi128_si32(_mm_max_epu32(s, _mm_shuffle_epi32(s, 0xb1)));
}

/* False, with some of the row written, at a NaN or an infinity. */
static bool quantise_row(enum act_kind kind, const float *x, uint32_t K, uint32_t blocks, uint8_t *tile, uint32_t R,
                         uint32_t r)
{
    const int zero_point = act_zero_point(kind);
    const __m256i magnitude = _mm256_set1_epi32(0x7fffffff);
    for (uint32_t b = 0; b < blocks; b++, tile += (size_t)R * ACT_BLOCK_BYTES) {
        const uint32_t k0 = b * PANEL_BLOCK, n = K <= k0 ? 0 : K - k0 < PANEL_BLOCK ? K - k0 : PANEL_BLOCK;
        _Alignas(32) float edge[32] = {0};
        const float *p = x + k0;
        if (n < PANEL_BLOCK) {
            if (n) memcpy(edge, p, n * sizeof *p);
            p = edge;
        }
        __m256 v[4];
        __m256i bits = _mm256_setzero_si256(), q[4];
        UNROLL for (int i = 0; i < 4; i++)
        {
            v[i] = _mm256_loadu_ps(p + 8 * i);
            bits = _mm256_max_epu32(bits, _mm256_and_si256(_mm256_castps_si256(v[i]), magnitude));
        }
        const uint32_t bits_max = max_lanes(bits);
        if (bits_max >= 0x7f800000u) return false;
        float amax;
        memcpy(&amax, &bits_max, 4);
        const bool live = amax >= ACT_AMAX_MIN;
        const float inverse = live ? 127.0f / amax : 0.0f, da = live ? amax / 127.0f : 0.0f;
        UNROLL for (int i = 0; i < 4; i++) q[i] = _mm256_cvtps_epi32(_mm256_mul_ps(v[i], _mm256_set1_ps(inverse)));
        const int32_t sum0 = sum_lanes(_mm256_add_epi32(q[0], q[1])), sum1 = sum_lanes(_mm256_add_epi32(q[2], q[3]));
        const int32_t init = -zero_point * (kind == ACT_Q8_ZP32 ? sum0 : sum0 + sum1), init1 = -zero_point * sum1;
        const float das = da * (float)(sum0 + sum1);
        /* packs works within 128-bit lanes: dwords come out as 0 4 1 5 2 6 3 7 */
        __m256i bytes = _mm256_packs_epi16(_mm256_packs_epi32(q[0], q[1]), _mm256_packs_epi32(q[2], q[3]));
        bytes = _mm256_permutevar8x32_epi32(bytes, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
        _mm256_storeu_si256((__m256i *)(void *)(tile + (size_t)r * 32), bytes);
        memcpy(tile + (size_t)R * 32 + r * 4, &init, 4);
        memcpy(tile + (size_t)R * 36 + r * 4, &da, 4);
        memcpy(tile + (size_t)R * 40 + r * 4, kind == ACT_Q8_ZP32 ? (const void *)&init1 : (const void *)&das, 4);
    }
    return true;
}

uint32_t matmul_quantise_avx2(enum act_kind kind, const float *x, size_t stride_m, uint32_t K, uint32_t blocks,
                              uint8_t *tile, uint32_t R, uint32_t r_begin, uint32_t r_end)
{
    uint32_t bad_rows = 0;
    for (uint32_t r = r_begin; r < r_end; r++, x += stride_m)
        if (!quantise_row(kind, x, K, blocks, tile, R, r)) bad_rows |= UINT32_C(1) << r;
    return bad_rows;
}
