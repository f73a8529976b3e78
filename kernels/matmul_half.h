/* Int8 activations against 256-bit halves of a panel ("sides": rows 0..7 and 8..15), for CPUs with 16 registers of that
 * size. Written once for AVX2 and AVX-VNNI, whose files include this and define `dots`, the only part that differs.
 *
 * A tile of up to 16 rows is taken in passes of 1..4 rows, so that products of all sides and rows stay in registers. Is
 * one pass enough, the codes of a block are decoded in registers and the sums over K stay there too; else a block is
 * decoded once into a buffer in L1 (1 KB) and sums lie in memory between blocks (1 KB). Sums, their order and their
 * roundings are the scalar path's whatever the pass.
 *
 * One-instruction asm where GCC 12 would move loads and products out of the order that needs no spilling. */
#ifndef KERNELS_MATMUL_HALF_H
#define KERNELS_MATMUL_HALF_H

#include "kernels/matmul_panel.h"

#include <immintrin.h>
#include <string.h>

#define INLINE static inline __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 16")

enum { PASS_ROWS = 4 };

typedef int32_t __attribute__((may_alias)) aliasing_i32;

/* A block of 32 inputs: as it lies in the panel, and where it is decoded to. Dword r of quad i is inputs 4i..4i+3 of
 * row r; codes of 8 bits may be in two planes. */
struct block {
    const uint8_t *group, *head;
    unsigned half;
    struct decoded {
        _Alignas(32) uint8_t codes[2][8][64];
        _Alignas(32) float scale[2][16];
    } * decoded; /* NULL: read the panel */
};

/* Sums of a pass, exact: of rows and sides, starts (-zero point * sum of q) included. Types with halves have those of
 * inputs 0..15 in [0], 16..31 in [1]; others use [0] alone. */
typedef __m256i pass_sums[2][PASS_ROWS][2];

INLINE struct block block_of(enum tensor_type type, const uint8_t *panel, uint32_t g, unsigned half,
                             struct decoded *decoded)
{
    return (struct block){panel + panel_group_offset(type, g), panel + panel_head_offset(type, g), half, decoded};
}

/* By the includer: 8 quads of R rows against both sides. q: bytes of the first row. init, last: see matmul_pack.c. */
INLINE void dots(enum tensor_type type, int R, const struct block *block, const uint8_t *q, const uint8_t *init,
                 const uint8_t *last, pass_sums S);
/* By the includer: how many rows a pass takes, and in how many planes a type's codes are decoded. */
INLINE uint32_t pass_rows(enum tensor_type type);
INLINE int code_planes(enum tensor_type type);

INLINE __m256i load(const void *p)
{
    return _mm256_load_si256((const __m256i *)p);
}
INLINE __m256i load_once(const uint8_t *p)
{
    __m256i v;
    __asm__ volatile("vmovdqa %1, %0" : "=x"(v) : "m"(*(const __m256i *)p));
    return v;
}
INLINE __m256i broadcast_once(const uint8_t *p)
{
    __m256i v;
    __asm__ volatile("vpbroadcastd %1, %0" : "=x"(v) : "m"(*(const aliasing_i32 *)p));
    return v;
}
/* Computed here, not later: the compiler would keep the parts of it in registers instead. */
INLINE void settle(__m256i *v)
{
    __asm__ volatile("" : "+x"(*v));
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

/* Fields of `bits` bits at bit `from` of each byte, moved to bit 4 of the byte. */
INLINE __m256i field_to_bit4(__m256i v, unsigned from, unsigned bits)
{
    v = from < 4 ? _mm256_slli_epi16(v, (int)(4 - from)) : _mm256_srli_epi16(v, (int)(from - 4));
    return _mm256_and_si256(v, _mm256_set1_epi8((char)(((1 << bits) - 1) << 4)));
}

/* Quad i of rows 8 * side .. 8 * side + 7, from the panel. */
INLINE __m256i quad(enum tensor_type type, const uint8_t *group, unsigned half, unsigned i, unsigned side)
{
    const uint8_t *low = group + half * panel_code_bytes(type) + 32 * side;
    const uint8_t *high = group + panel_high_offset(type) + half * panel_high_bytes(type) + 32 * side;
    if (panel_code_bits(type) == 8) return load(low + 64 * i);
    __m256i v = _mm256_and_si256(_mm256_srli_epi16(load(low + 64 * (i & 3)), (int)(i & 4)), _mm256_set1_epi8(15));
    if (panel_code_bits(type) == 5) v = _mm256_or_si256(v, field_to_bit4(load(high), i, 1));
    if (panel_code_bits(type) == 6) v = _mm256_or_si256(v, field_to_bit4(load(high + 64 * (i / 4)), 2 * (i & 3), 2));
    return v;
}

/* The same of a plane: all bits, or with two planes the low and the high four. */
INLINE __m256i plane_of(enum tensor_type type, __m256i codes, int plane)
{
    if (code_planes(type) == 1) return codes;
    return _mm256_and_si256(plane ? _mm256_srli_epi16(codes, 4) : codes, _mm256_set1_epi8(15));
}

INLINE void decode(enum tensor_type type, const struct block *block)
{
    UNROLL for (unsigned i = 0; i < 8; i++) UNROLL for (unsigned side = 0; side < 2; side++)
    {
        const __m256i v = quad(type, block->group, block->half, i, side);
        UNROLL for (int plane = 0; plane < code_planes(type); plane++)
        {
            void *codes = block->decoded->codes[plane][i] + 32 * side;
            _mm256_store_si256((__m256i *)codes, plane_of(type, v, plane));
        }
    }
    UNROLL for (unsigned s = 0; s < panel_scales(type); s++) UNROLL for (unsigned side = 0; side < 2; side++)
    {
        _mm256_store_ps(block->decoded->scale[s] + 8 * side,
                        load_scale(type, block->group, block->head, block->half, s, side));
    }
    __asm__ volatile("" : : : "memory"); /* the buffer is read by asm, and not to be kept in registers */
}

INLINE __m256i block_codes(enum tensor_type type, const struct block *block, int plane, unsigned i, unsigned side)
{
    if (block->decoded) return load_once(block->decoded->codes[plane][i] + 32 * side);
    return plane_of(type, quad(type, block->group, block->half, i, side), plane);
}
INLINE __m256 block_scale(enum tensor_type type, const struct block *block, unsigned s, unsigned side)
{
    if (block->decoded) return _mm256_load_ps(block->decoded->scale[s] + 8 * side);
    return load_scale(type, block->group, block->head, block->half, s, side);
}

/* A block's share of the sums F of R rows; act: of the block, m: the first row of the tile's M. */
INLINE void pass(enum tensor_type type, const int R, const struct block *block, const uint8_t *act, size_t M, size_t m,
                 __m256 F[PASS_ROWS][2])
{
    const uint8_t *init = act + M * 32 + m * 4, *da = init + M * 4, *last = da + M * 4;
    pass_sums S;
    dots(type, R, block, act + m * 32, init, last, S);
    __m256 first[2], second[2];
    UNROLL for (unsigned side = 0; side < 2; side++)
    {
        first[side] = block_scale(type, block, 0, side);
        second[side] = panel_scales(type) == 2 ? block_scale(type, block, 1, side) : first[side];
    }
    UNROLL for (int r = 0; r < R; r++)
    {
        const __m256 scale = _mm256_castsi256_ps(broadcast_once(da + 4 * r));
        const __m256 das = panel_has_min(type) ? _mm256_castsi256_ps(broadcast_once(last + 4 * r)) : scale;
        UNROLL for (int side = 0; side < 2; side++)
        {
            const __m256 value = _mm256_cvtepi32_ps(S[0][r][side]);
            if (panel_halves(type)) {
                const __m256 both =
                    _mm256_fmadd_ps(_mm256_cvtepi32_ps(S[1][r][side]), second[side], _mm256_mul_ps(value, first[side]));
                F[r][side] = _mm256_fmadd_ps(both, scale, F[r][side]);
                continue;
            }
            F[r][side] = _mm256_fmadd_ps(value, _mm256_mul_ps(first[side], scale), F[r][side]);
            if (panel_has_min(type)) F[r][side] = _mm256_fmadd_ps(second[side], das, F[r][side]);
        }
    }
}

INLINE void pass_in_memory(enum tensor_type type, const int R, const struct block *block, const uint8_t *act, size_t M,
                           size_t m, float rows[16][16])
{
    __m256 F[PASS_ROWS][2];
    UNROLL for (int r = 0; r < R; r++) UNROLL for (int s = 0; s < 2; s++) F[r][s] = _mm256_load_ps(rows[m + r] + 8 * s);
    pass(type, R, block, act, M, m, F);
    UNROLL for (int r = 0; r < R; r++) UNROLL for (int s = 0; s < 2; s++) _mm256_store_ps(rows[m + r] + 8 * s, F[r][s]);
}

/* A tile that one pass does. */
INLINE void panel_few(enum tensor_type type, const int R, const uint8_t *panel, uint32_t groups, const uint8_t *act,
                      float *out, size_t stride_m)
{
    __m256 F[PASS_ROWS][2];
    UNROLL for (int r = 0; r < R; r++) F[r][0] = F[r][1] = _mm256_setzero_ps();
    for (uint32_t g = 0; g < groups; g++, act += (size_t)2 * R * ACT_BLOCK_BYTES) {
        const struct block first = block_of(type, panel, g, 0, NULL), second = block_of(type, panel, g, 1, NULL);
        pass(type, R, &first, act, (size_t)R, 0, F);
        pass(type, R, &second, act + (size_t)R * ACT_BLOCK_BYTES, (size_t)R, 0, F);
    }
    UNROLL for (int r = 0; r < R; r++) UNROLL for (int s = 0; s < 2; s++)
        _mm256_storeu_ps(out + r * stride_m + 8 * s, F[r][s]);
}

INLINE void panel_many(enum tensor_type type, const uint8_t *panel, uint32_t groups, const uint8_t *act, size_t M,
                       float *out, size_t stride_m)
{
    const size_t at_once = pass_rows(type);
    struct decoded decoded;
    _Alignas(32) float rows[16][16];
    memset(rows, 0, M * sizeof rows[0]);
    for (uint32_t b = 0; b < 2 * groups; b++, act += M * ACT_BLOCK_BYTES) {
        const struct block block = block_of(type, panel, b / 2, b & 1, &decoded);
        size_t m = 0;
        decode(type, &block);
        for (; m + at_once <= M; m += at_once) pass_in_memory(type, (int)at_once, &block, act, M, m, rows);
        if (at_once == 4 && M - m == 3) pass_in_memory(type, 3, &block, act, M, m, rows);
        if (at_once == 4 && M - m == 2) pass_in_memory(type, 2, &block, act, M, m, rows);
        if (M - m == 1) pass_in_memory(type, 1, &block, act, M, m, rows);
    }
    for (size_t m = 0; m < M; m++) memcpy(out + m * stride_m, rows[m], sizeof rows[m]);
}

typedef void panel_fn(const uint8_t *panel, uint32_t groups, const uint8_t *act, uint32_t M, float *out,
                      size_t stride_m);

INLINE void panel_rows(enum tensor_type type, const uint8_t *panel, uint32_t groups, const uint8_t *act, uint32_t M,
                       float *out, size_t stride_m)
{
    const bool four = pass_rows(type) == 4;
    if (M == 1)
        panel_few(type, 1, panel, groups, act, out, stride_m);
    else if (M == 2)
        panel_few(type, 2, panel, groups, act, out, stride_m);
    else if (M == 3 && four)
        panel_few(type, 3, panel, groups, act, out, stride_m);
    else if (M == 4 && four)
        panel_few(type, 4, panel, groups, act, out, stride_m);
    else
        panel_many(type, panel, groups, act, M, out, stride_m);
}

#define DEFINE(type)                                                                                                   \
    static void panel_##type(const uint8_t *panel, uint32_t groups, const uint8_t *act, uint32_t M, float *out,        \
                             size_t stride_m)                                                                          \
    {                                                                                                                  \
        panel_rows(TENSOR_##type, panel, groups, act, M, out, stride_m);                                               \
    }
#define ENTRY(type)  [TENSOR_##type] = panel_##type,
#define ALL_TYPES(X) X(Q4_0) X(Q4_1) X(Q5_0) X(Q5_1) X(Q8_0) X(Q4_K) X(Q5_K) X(Q6_K)

ALL_TYPES(DEFINE)
static panel_fn *const panel_fns[] = {ALL_TYPES(ENTRY)};

/* Whole panels against a tile of M rows, as matmul_tile_fn says. */
static inline void panels_multiply(const struct matrix *matrix, const uint8_t *panel, uint32_t panels,
                                   const uint8_t *act, uint32_t M, float *out, size_t stride_m)
{
    for (uint32_t p = 0; p < panels; p++, panel += matrix->panel_bytes, out += 16)
        panel_fns[matrix->type](panel, panel_groups(matrix->K), act, M, out, stride_m);
}

#endif
