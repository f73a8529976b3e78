/* Int8 activations against panels, with AVX-512 VNNI. Every number of rows 1..16 is an instance of one template, so
 * that all loops over rows are unrolled and the sums stay in registers: no second pass over the weights, no stack in
 * the loop.
 *
 * For a block the eight code registers are decoded once; then four rows at a time (vpdpbusd has a latency of four) take
 * eight dots each, with the activation dword broadcast from memory. 10 multiply slots per 8 dots, 11 with a minimum;
 * the prototype came to 95 % of that bound on Zen 4, so nothing else was tuned. GCC 12 does not fold a broadcast load
 * into vpdpbusd and loads a value again for its second use, hence the one-instruction asm.
 *
 * Software prefetch only where arithmetic, not memory, is the limit: it stops at 20-23 GB/s a core. */
#include "kernels/matmul_panel.h"

#include <immintrin.h>
#include <string.h>

#define INLINE static inline __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 32")

enum { CHAINS = 4, PREFETCH_AHEAD_BYTES = 16384, SUPER_GROUPS = PANEL_SUPER / PANEL_GROUP };

typedef int32_t __attribute__((may_alias)) aliasing_i32;
typedef float __attribute__((may_alias)) aliasing_f32;

INLINE __m512i dot(__m512i acc, __m512i codes, const uint8_t *q)
{
    __asm__ volatile("vpdpbusd %2%{1to16%}, %1, %0" : "+v"(acc) : "v"(codes), "m"(*(const aliasing_i32 *)q));
    return acc;
}
INLINE __m512i load_once(const uint8_t *p)
{
    __m512i v;
    __asm__ volatile("vmovdqa64 %1, %0" : "=v"(v) : "m"(*(const __m512i *)p));
    return v;
}
INLINE __m512 load_f16_once(const uint8_t *p)
{
    __m512 v;
    __asm__ volatile("vcvtph2ps %1, %0" : "=v"(v) : "m"(*(const __m256i *)p));
    return v;
}
INLINE __m512i zero(void) /* no register kept for a constant 0 */
{
    __m512i z;
    __asm__ volatile("vpxord %0, %0, %0" : "=v"(z));
    return z;
}
INLINE __m512i broadcast_i32(const uint8_t *p)
{
    return _mm512_set1_epi32(*(const aliasing_i32 *)p);
}
INLINE __m512 broadcast_f32(const uint8_t *p)
{
    return _mm512_set1_ps(*(const aliasing_f32 *)p);
}

/* Below this number of rows the hardware prefetcher alone reads fastest. */
INLINE unsigned prefetch_from(enum tensor_type type)
{
    return type == TENSOR_Q8_0 ? 5 : panel_has_head(type) ? 2 : 3;
}

INLINE __m512 load_scale(enum tensor_type type, const uint8_t *group, const uint8_t *head, unsigned half, unsigned s)
{
    const uint8_t *p = group + panel_scale_offset(type) + (2 * s + half) * panel_scale_bytes(type);
    if (!panel_has_head(type)) return _mm512_cvtph_ps(_mm256_load_si256((const __m256i *)p));
    const __m128i bytes = _mm_load_si128((const __m128i *)p);
    const __m512i scale = panel_halves(type) ? _mm512_cvtepi8_epi32(bytes) : _mm512_cvtepu8_epi32(bytes);
    return _mm512_mul_ps(load_f16_once(head + panel_factor_offset(type, s)), _mm512_cvtepi32_ps(scale));
}

/* Fields of `bits` bits at bit `from` of each byte of v, moved to bit 4 of the byte. */
INLINE __m512i field_to_bit4(__m512i v, unsigned from, unsigned bits)
{
    const __m512i mask = _mm512_set1_epi8((char)(((1 << bits) - 1) << 4));
    if (from < 4) v = _mm512_slli_epi16(v, 4 - from);
    if (from > 4) v = _mm512_srli_epi16(v, from - 4);
    return _mm512_and_si512(v, mask);
}

/* Codes of one block: register i is quad i of the 16 rows. */
INLINE void decode(enum tensor_type type, const uint8_t *group, unsigned half, __m512i codes[8])
{
    const uint8_t *low = group + half * panel_code_bytes(type);
    const uint8_t *high = group + panel_high_offset(type) + half * panel_high_bytes(type);
    const __m512i nibble = _mm512_set1_epi8(15);
    if (panel_code_bits(type) == 8) {
        UNROLL for (int i = 0; i < 8; i++) codes[i] = load_once(low + 64 * i);
        return;
    }
    UNROLL for (int i = 0; i < 4; i++)
    {
        const __m512i v = load_once(low + 64 * i);
        codes[i] = _mm512_and_si512(v, nibble);
        codes[i + 4] = _mm512_and_si512(_mm512_srli_epi16(v, 4), nibble);
    }
    if (panel_code_bits(type) == 5) {
        const __m512i plane = load_once(high);
        UNROLL for (int i = 0; i < 8; i++) codes[i] = _mm512_or_si512(codes[i], field_to_bit4(plane, (unsigned)i, 1));
    }
    if (panel_code_bits(type) == 6) {
        const __m512i planes[2] = {load_once(high), load_once(high + 64)};
        UNROLL for (unsigned i = 0; i < 8; i++)
        {
            codes[i] = _mm512_or_si512(codes[i], field_to_bit4(planes[i / 4], 2 * (i & 3), 2));
        }
    }
}

/* Quads [begin, end) of R rows; rows take turns, so that dots of one row are R apart. */
INLINE void dots(const __m512i codes[8], const uint8_t *q, const int begin, const int end, const int R,
                 __m512i S[CHAINS])
{
    UNROLL for (int i = begin; i < end; i++)
    {
        UNROLL for (int r = 0; r < R; r++) S[r] = dot(S[r], codes[i], q + r * 32 + 4 * i);
    }
}

/* One block against M rows: act points at the block's activations (44 M bytes). */
INLINE void block(const enum tensor_type type, const int M, const uint8_t *group, const uint8_t *head,
                  const unsigned half, const uint8_t *act, __m512 F[16])
{
    __m512i codes[8];
    decode(type, group, half, codes);
    const __m512 d = load_scale(type, group, head, half, 0);
    const __m512 second = panel_scales(type) == 2 ? load_scale(type, group, head, half, 1) : d;
    const uint8_t *init = act + M * 32, *da = act + M * 36, *last = act + M * 40;
    UNROLL for (int m0 = 0; m0 < M; m0 += CHAINS)
    {
        const int R = M - m0 < CHAINS ? M - m0 : CHAINS;
        __m512i S[CHAINS];
        __m512 G[CHAINS];
        UNROLL for (int r = 0; r < R; r++) S[r] = panel_zero_point(type) ? broadcast_i32(init + (m0 + r) * 4) : zero();
        dots(codes, act + m0 * 32, 0, panel_halves(type) ? 4 : 8, R, S);
        if (panel_halves(type)) {
            UNROLL for (int r = 0; r < R; r++)
            {
                G[r] = _mm512_mul_ps(_mm512_cvtepi32_ps(S[r]), d);
                S[r] = broadcast_i32(last + (m0 + r) * 4);
            }
            dots(codes, act + m0 * 32, 4, 8, R, S);
        }
        UNROLL for (int r = 0; r < R; r++)
        {
            const int m = m0 + r;
            if (panel_halves(type)) {
                G[r] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(S[r]), second, G[r]);
                F[m] = _mm512_fmadd_ps(G[r], broadcast_f32(da + m * 4), F[m]);
                continue;
            }
            const __m512 scale = _mm512_mul_ps(d, broadcast_f32(da + m * 4));
            F[m] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(S[r]), scale, F[m]);
            if (panel_has_min(type)) F[m] = _mm512_fmadd_ps(second, broadcast_f32(last + m * 4), F[m]);
        }
    }
}

/* Groups that follow each other; head: of their 256 inputs, where the type has one. */
INLINE void groups_loop(const enum tensor_type type, const int M, const uint8_t **w, const uint8_t *head,
                        uint32_t groups, const uint8_t **a, __m512 F[16])
{
    const unsigned group_bytes = panel_group_bytes(type);
    for (uint32_t g = 0; g < groups; g++, *w += group_bytes, *a += M * 2 * ACT_BLOCK_BYTES) {
        if ((unsigned)M >= prefetch_from(type))
            UNROLL for (unsigned i = 0; i < group_bytes; i += 64)
                _mm_prefetch((const char *)*w + PREFETCH_AHEAD_BYTES + i, _MM_HINT_T1);
        block(type, M, *w, head, 0, *a, F);
        block(type, M, *w, head, 1, *a + M * ACT_BLOCK_BYTES, F);
    }
}

/* Whole panels, one after the other: one stream through memory. */
INLINE void panels_loop(const enum tensor_type type, const int M, const uint8_t *w, uint32_t panels, uint32_t groups,
                        const uint8_t *act, float *out, size_t stride_m)
{
    for (; panels > 0; panels--, out += 16) {
        const uint8_t *a = act;
        __m512 F[16];
        UNROLL for (int m = 0; m < M; m++) F[m] = _mm512_setzero_ps();
        for (uint32_t g = 0; panel_has_head(type) && g < groups; g += SUPER_GROUPS) {
            const uint8_t *head = w;
            w += PANEL_HEAD_BYTES;
            if ((unsigned)M >= prefetch_from(type))
                _mm_prefetch((const char *)head + PREFETCH_AHEAD_BYTES, _MM_HINT_T1);
            groups_loop(type, M, &w, head, SUPER_GROUPS, &a, F);
        }
        if (!panel_has_head(type)) groups_loop(type, M, &w, NULL, groups, &a, F);
        UNROLL for (int m = 0; m < M; m++) _mm512_storeu_ps(out + m * stride_m, F[m]);
    }
}

typedef void instance_fn(const uint8_t *w, uint32_t panels, uint32_t groups, const uint8_t *act, float *out,
                         size_t stride_m);

#define ALL_TYPES(X) X(Q4_0) X(Q4_1) X(Q5_0) X(Q5_1) X(Q8_0) X(Q4_K) X(Q5_K) X(Q6_K)
/* clang-format off */
#define ALL_ROWS(X, type)                                                                                              \
    X(type, 1) X(type, 2) X(type, 3) X(type, 4) X(type, 5) X(type, 6) X(type, 7) X(type, 8)                            \
    X(type, 9) X(type, 10) X(type, 11) X(type, 12) X(type, 13) X(type, 14) X(type, 15) X(type, 16)
/* clang-format on */
#define DEFINE(type, M)                                                                                                \
    static void matmul_##type##_##M(const uint8_t *w, uint32_t panels, uint32_t groups, const uint8_t *act,            \
                                    float *out, size_t stride_m)                                                       \
    {                                                                                                                  \
        panels_loop(TENSOR_##type, M, w, panels, groups, act, out, stride_m);                                          \
    }
#define DEFINE_TYPE(type) ALL_ROWS(DEFINE, type)
#define ENTRY(type, M)    matmul_##type##_##M,
#define ENTRY_TYPE(type)  [TENSOR_##type] = {NULL, ALL_ROWS(ENTRY, type)},

ALL_TYPES(DEFINE_TYPE)
static instance_fn *const instances[][MATMUL_TILE_ROWS + 1] = {ALL_TYPES(ENTRY_TYPE)};

void matmul_tile_avx512(const struct matrix *matrix, const uint8_t *panel, uint32_t panels, const uint8_t *act,
                        uint32_t R, float *out, size_t stride_m)
{
    if (matrix->act == ACT_F32)
        matmul_tile_f32_avx512(matrix, panel, panels, act, R, out, stride_m);
    else
        instances[matrix->type][R](panel, panels, panel_groups(matrix->K), act, out, stride_m);
}
