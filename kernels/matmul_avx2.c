/* The matmul with AVX2, FMA and F16C: 256-bit halves of a panel.
 *
 * vpmaddubsw adds two products of unsigned code and signed activation in 16 bits, and saturates. With codes up to 63
 * and activations within +-127 a pair is at most 2 * 63 * 127 = 16002, so sums of 8 quads of 4-bit codes, 4 of 5-bit
 * and 2 of 6-bit codes are exact in 16 bits (30480, 31496, 32004). Q8_0 takes |code| as the unsigned side and gives the
 * activation the code's sign: 2 * 128 * 127 = 32512 is exact too, so its sums need no zero point.
 *
 * A block is decoded once a tile into a buffer in L1; two rows and two halves are in flight. Sums of the tile stay in
 * memory between blocks (1 KB). Bits equal the scalar path's: same sums, same order, same roundings. */
#include "kernels/matmul_panel.h"

#include <immintrin.h>
#include <string.h>

#define INLINE static inline __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 16")

typedef int32_t __attribute__((may_alias)) aliasing_i32;
typedef float __attribute__((may_alias)) aliasing_f32;

/* A decoded block: codes (for Q8_0 their magnitude), for Q8_0 the signed codes, and the scales. */
struct decoded {
    _Alignas(32) uint8_t codes[8][64];
    _Alignas(32) int8_t signs[8][64];
    _Alignas(32) float scale[2][16];
};

/* Without this GCC 12 takes the sums apart, makes all products first, and spills them. */
INLINE void keep(__m256i *v)
{
    __asm__ volatile("" : "+x"(*v));
}
INLINE __m256i load(const void *p)
{
    return _mm256_load_si256((const __m256i *)p);
}

INLINE __m256 load_scale(enum tensor_type type, const uint8_t *group, const uint8_t *head, unsigned half, unsigned s,
                         unsigned side)
{
    const uint8_t *p = group + panel_scale_offset(type) + (2 * s + half) * panel_scale_bytes(type);
    if (!panel_has_head(type)) return _mm256_cvtph_ps(_mm_load_si128((const __m128i *)(const void *)(p + 16 * side)));
    const __m128i bytes = _mm_loadl_epi64((const __m128i *)(const void *)(p + 8 * side));
    const __m256i scale = panel_halves(type) ? _mm256_cvtepi8_epi32(bytes) : _mm256_cvtepu8_epi32(bytes);
    const uint8_t *factor = head + panel_factor_offset(type, s) + 16 * side;
    return _mm256_mul_ps(_mm256_cvtph_ps(_mm_load_si128((const __m128i *)(const void *)factor)),
                         _mm256_cvtepi32_ps(scale));
}

/* Quad i, rows 8 * side .. 8 * side + 7. */
INLINE __m256i quad(enum tensor_type type, const uint8_t *group, unsigned half, unsigned i, unsigned side)
{
    const uint8_t *low = group + half * panel_code_bytes(type) + 32 * side;
    const uint8_t *high = group + panel_high_offset(type) + half * panel_high_bytes(type) + 32 * side;
    if (panel_code_bits(type) == 8) return load(low + 64 * i);
    __m256i v = _mm256_and_si256(_mm256_srli_epi16(load(low + 64 * (i & 3)), (int)(i & 4)), _mm256_set1_epi8(15));
    if (panel_code_bits(type) == 5) {
        const __m256i bit = _mm256_slli_epi16(_mm256_srli_epi16(load(high), (int)i), 4);
        v = _mm256_or_si256(v, _mm256_and_si256(bit, _mm256_set1_epi8(0x10)));
    }
    if (panel_code_bits(type) == 6) {
        const __m256i bits = _mm256_slli_epi16(_mm256_srli_epi16(load(high + 64 * (i / 4)), (int)(2 * (i & 3))), 4);
        v = _mm256_or_si256(v, _mm256_and_si256(bits, _mm256_set1_epi8(0x30)));
    }
    return v;
}

INLINE void decode(enum tensor_type type, const uint8_t *group, const uint8_t *head, unsigned half, struct decoded *out)
{
    UNROLL for (unsigned i = 0; i < 8; i++) UNROLL for (unsigned side = 0; side < 2; side++)
    {
        __m256i v = quad(type, group, half, i, side);
        if (panel_code_bits(type) == 8) {
            v = _mm256_xor_si256(v, _mm256_set1_epi8((char)0x80));
            _mm256_store_si256((__m256i *)(void *)(out->signs[i] + 32 * side), v);
            v = _mm256_abs_epi8(v);
        }
        _mm256_store_si256((__m256i *)(void *)(out->codes[i] + 32 * side), v);
    }
    UNROLL for (unsigned n = 0; n < panel_scales(type); n++) UNROLL for (unsigned side = 0; side < 2; side++)
    {
        _mm256_store_ps(out->scale[n] + 8 * side, load_scale(type, group, head, half, n, side));
    }
}

/* Quads [i_begin, i_end) of R rows against both sides: exact sums added to S[row][side]. */
INLINE void dots(enum tensor_type type, const struct decoded *block, const int R, const uint8_t *q, unsigned i_begin,
                 unsigned i_end, __m256i S[4][2])
{
    const unsigned bits = panel_code_bits(type), run = bits == 4 ? 8 : bits == 5 ? 4 : bits == 6 ? 2 : 1;
    const __m256i ones = _mm256_set1_epi16(1);
    UNROLL for (unsigned i0 = i_begin; i0 < i_end; i0 += run)
    {
        __m256i pairs[4][2];
        UNROLL for (unsigned i = i0; i < i0 + run; i++) UNROLL for (int r = 0; r < R; r++)
        {
            const __m256i a = _mm256_set1_epi32(*(const aliasing_i32 *)(q + r * 32 + 4 * i));
            UNROLL for (int side = 0; side < 2; side++)
            {
                const __m256i codes = load(block->codes[i] + 32 * side), signs = load(block->signs[i] + 32 * side);
                const __m256i signed_a = bits == 8 ? _mm256_sign_epi8(a, signs) : a;
                const __m256i p = _mm256_maddubs_epi16(codes, signed_a);
                pairs[r][side] = i == i0 ? p : _mm256_add_epi16(pairs[r][side], p);
                keep(&pairs[r][side]);
            }
        }
        UNROLL for (int r = 0; r < R; r++) UNROLL for (int side = 0; side < 2; side++)
        {
            S[r][side] = _mm256_add_epi32(S[r][side], _mm256_madd_epi16(pairs[r][side], ones));
        }
    }
}

/* R = 1..4 rows from row m of a tile of M rows. */
INLINE void rows(enum tensor_type type, const struct decoded *block, const uint8_t *act, const uint32_t M,
                 const uint32_t m, const int R, float F[16][16])
{
    const uint8_t *q = act + (size_t)m * 32, *init = act + (size_t)M * 32 + m * 4, *da = act + (size_t)M * 36 + m * 4;
    const uint8_t *last = act + (size_t)M * 40 + m * 4;
    const bool zero_point = panel_zero_point(type) && panel_code_bits(type) != 8;
    __m256i S[4][2];
    __m256 G[4][2];
    UNROLL for (int r = 0; r < R; r++) UNROLL for (int side = 0; side < 2; side++)
    {
        S[r][side] = zero_point ? _mm256_set1_epi32(*(const aliasing_i32 *)(init + 4 * r)) : _mm256_setzero_si256();
    }
    dots(type, block, R, q, 0, panel_halves(type) ? 4 : 8, S);
    if (panel_halves(type)) {
        UNROLL for (int r = 0; r < R; r++) UNROLL for (int side = 0; side < 2; side++)
        {
            G[r][side] = _mm256_mul_ps(_mm256_cvtepi32_ps(S[r][side]), _mm256_load_ps(block->scale[0] + 8 * side));
            S[r][side] = _mm256_set1_epi32(*(const aliasing_i32 *)(last + 4 * r));
        }
        dots(type, block, R, q, 4, 8, S);
    }
    UNROLL for (int r = 0; r < R; r++) UNROLL for (int side = 0; side < 2; side++)
    {
        const __m256 d = _mm256_load_ps(block->scale[0] + 8 * side);
        const __m256 scale = _mm256_set1_ps(*(const aliasing_f32 *)(da + 4 * r));
        const __m256 value = _mm256_cvtepi32_ps(S[r][side]);
        float *sum = F[m + (uint32_t)r] + 8 * side;
        __m256 f = _mm256_load_ps(sum);
        if (panel_halves(type)) {
            G[r][side] = _mm256_fmadd_ps(value, _mm256_load_ps(block->scale[1] + 8 * side), G[r][side]);
            f = _mm256_fmadd_ps(G[r][side], scale, f);
        } else {
            f = _mm256_fmadd_ps(value, _mm256_mul_ps(d, scale), f);
        }
        if (panel_has_min(type)) {
            const __m256 das = _mm256_set1_ps(*(const aliasing_f32 *)(last + 4 * r));
            f = _mm256_fmadd_ps(_mm256_load_ps(block->scale[1] + 8 * side), das, f);
        }
        _mm256_store_ps(sum, f);
    }
}

INLINE void panel_q8(enum tensor_type type, const uint8_t *panel, uint32_t groups, const uint8_t *act, uint32_t M,
                     float F[16][16])
{
    struct decoded block;
    for (uint32_t b = 0; b < 2 * groups; b++, act += (size_t)M * ACT_BLOCK_BYTES) {
        const uint8_t *group = panel + panel_group_offset(type, b / 2), *head = panel + panel_head_offset(type, b / 2);
        decode(type, group, head, b & 1, &block);
        uint32_t m = 0;
        for (; m + 4 <= M; m += 4) rows(type, &block, act, M, m, 4, F);
        if (M - m == 3) rows(type, &block, act, M, m, 3, F);
        if (M - m == 2) rows(type, &block, act, M, m, 2, F);
        if (M - m == 1) rows(type, &block, act, M, m, 1, F);
    }
}

#define ALL_TYPES(X) X(Q4_0) X(Q4_1) X(Q5_0) X(Q5_1) X(Q8_0) X(Q4_K) X(Q5_K) X(Q6_K)
#define DEFINE(type)                                                                                                   \
    static void panel_##type(const uint8_t *panel, uint32_t groups, const uint8_t *act, uint32_t M, float F[16][16])   \
    {                                                                                                                  \
        panel_q8(TENSOR_##type, panel, groups, act, M, F);                                                             \
    }
#define ENTRY(type) [TENSOR_##type] = panel_##type,

ALL_TYPES(DEFINE)
static void (*const panel_fns[])(const uint8_t *panel, uint32_t groups, const uint8_t *act, uint32_t M,
                                 float F[16][16]) = {ALL_TYPES(ENTRY)};

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
    for (uint32_t p = 0; p < panels; p++, panel += matrix->panel_bytes, out += 16) {
        _Alignas(32) float F[16][16] = {{0}};
        if (matrix->act == ACT_F32)
            panel_f32(matrix, panel, (const float *)(const void *)act, R, F);
        else
            panel_fns[matrix->type](panel, panel_groups(matrix->K), act, R, F);
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
