/* Inside of the matmul: the layout of panels and of prepared activations, and the functions each path supplies.
 * Included by kernels/matmul*.c, its tests and bench only. Layouts are drawn in matmul_pack.c. Pure, any thread. */
#ifndef KERNELS_MATMUL_PANEL_H
#define KERNELS_MATMUL_PANEL_H

#include "kernels/matmul.h"

enum { PANEL_BLOCK = 32, PANEL_GROUP = 64, PANEL_SUPER = 256, PANEL_HEAD_BYTES = 64 };
/* F8: 128 inputs of 16 rows, codes as BF16, then scales. */
enum { F8_INPUTS = 128, F8_CODES_BYTES = F8_INPUTS * 32, F8_SEGMENT_BYTES = F8_CODES_BYTES + 64 };
enum { ACT_BLOCK_BYTES = 44, ACT_BF16_BYTES = 64 };

/* Magnitudes from this on round to an infinity in BF16, and NaN lies above. */
#define ACT_BF16_BAD UINT32_C(0x7f7f8000)

/* A block whose largest magnitude is below this is taken as zeros: 127 / amax would overflow. */
#define ACT_AMAX_MIN 0x1p-120f

/* Traits of a type's panel. Constant once inlined with a constant type. code_bits 0: no blocks (F32, F16, BF16, F8). */
static inline unsigned panel_code_bits(enum tensor_type type)
{
    switch (type) {
    case TENSOR_Q4_0:
    case TENSOR_Q4_1:
    case TENSOR_Q4_K: return 4;
    case TENSOR_Q5_0:
    case TENSOR_Q5_1:
    case TENSOR_Q5_K: return 5;
    case TENSOR_Q6_K: return 6;
    case TENSOR_Q8_0: return 8;
    default: return 0;
    }
}

static inline int panel_zero_point(enum tensor_type type)
{
    return type == TENSOR_Q4_0   ? 8
           : type == TENSOR_Q5_0 ? 16
           : type == TENSOR_Q6_K ? 32
           : type == TENSOR_Q8_0 ? 128
                                 : 0;
}

static inline bool panel_has_min(enum tensor_type type)
{
    return type == TENSOR_Q4_1 || type == TENSOR_Q5_1 || type == TENSOR_Q4_K || type == TENSOR_Q5_K;
}

/* The file scales its scales, for 256 inputs: a block's scale is d times an integer, not the file's f16. */
static inline bool panel_has_head(enum tensor_type type)
{
    return type == TENSOR_Q4_K || type == TENSOR_Q5_K || type == TENSOR_Q6_K;
}

/* Two scales a block: Q6_K has one for each 16 inputs, types with a minimum have d and m. */
static inline bool panel_halves(enum tensor_type type)
{
    return type == TENSOR_Q6_K;
}
static inline unsigned panel_scales(enum tensor_type type)
{
    return panel_has_min(type) || panel_halves(type) ? 2 : 1;
}

/* Bytes of one block of 16 rows: code dwords, planes of high bits, one scale array; and of a group of two blocks. */
static inline unsigned panel_code_bytes(enum tensor_type type)
{
    return panel_code_bits(type) == 8 ? 512 : 256;
}
static inline unsigned panel_high_bytes(enum tensor_type type)
{
    return panel_code_bits(type) == 5 ? 64 : panel_code_bits(type) == 6 ? 128 : 0;
}
static inline unsigned panel_scale_bytes(enum tensor_type type)
{
    return panel_has_head(type) ? 16 : 32;
}
static inline unsigned panel_high_offset(enum tensor_type type)
{
    return 2 * panel_code_bytes(type);
}
static inline unsigned panel_scale_offset(enum tensor_type type)
{
    return 2 * (panel_code_bytes(type) + panel_high_bytes(type));
}
static inline unsigned panel_group_bytes(enum tensor_type type)
{
    return panel_scale_offset(type) + 2 * panel_scales(type) * panel_scale_bytes(type);
}

static inline uint32_t panel_groups(uint32_t K)
{
    return K / PANEL_GROUP + (K % PANEL_GROUP != 0);
}

/* Where in a panel group g begins; the head of its 256 inputs; where scale array s has its f16 factors in a head. */
static inline size_t panel_group_offset(enum tensor_type type, uint32_t g)
{
    const size_t heads = panel_has_head(type) ? g / (PANEL_SUPER / PANEL_GROUP) + 1 : 0;
    return g * (size_t)panel_group_bytes(type) + heads * PANEL_HEAD_BYTES;
}
static inline size_t panel_head_offset(enum tensor_type type, uint32_t g)
{
    const uint32_t first = g - g % (PANEL_SUPER / PANEL_GROUP);
    return panel_has_head(type) ? panel_group_offset(type, first) - PANEL_HEAD_BYTES : 0;
}
static inline unsigned panel_factor_offset(enum tensor_type type, unsigned s)
{
    return panel_has_min(type) ? 32 * s : 0;
}

static inline int act_zero_point(enum act_kind kind)
{
    switch (kind) {
    case ACT_Q8_ZP8: return 8;
    case ACT_Q8_ZP16: return 16;
    case ACT_Q8_ZP32: return 32;
    case ACT_Q8_ZP128: return 128;
    default: return 0;
    }
}

/* Bytes of prepared activations a row. Whole tiles of 16 rows are a multiple of 64. */
static inline size_t act_row_bytes(enum act_kind kind, uint32_t K)
{
    switch (kind) {
    case ACT_F32: return (size_t)K * 4;
    case ACT_BF16: return (K / PANEL_BLOCK + (K % PANEL_BLOCK != 0)) * (size_t)ACT_BF16_BYTES;
    default: return (size_t)panel_groups(K) * 2 * ACT_BLOCK_BYTES;
    }
}

/* F32, F16, BF16, F8: where in a panel input k of lane r lies; F8: its scale. */
static inline size_t panel_f8_scale_offset(uint32_t k, unsigned r)
{
    return k / F8_INPUTS * (size_t)F8_SEGMENT_BYTES + F8_CODES_BYTES + 4 * r;
}
static inline size_t panel_float_offset(enum tensor_type type, uint32_t k, unsigned r)
{
    if (type == TENSOR_F8)
        return k / F8_INPUTS * (size_t)F8_SEGMENT_BYTES + panel_float_offset(TENSOR_BF16, k % F8_INPUTS, r);
    if (type == TENSOR_F32) return ((size_t)k * 16 + r) * 4;
    if (type == TENSOR_F16) return ((size_t)k * 16 + r) * 2;
    return ((size_t)(k / 2) * 32 + 2 * r + (k & 1)) * 2;
}

/* matmul_unpack.c. Block b of 32 inputs of a panel: the codes as [k][row]; scale array s as f32. */
void panel_codes(enum tensor_type type, const uint8_t *panel, uint32_t b, uint8_t codes[32][16]);
void panel_scale(enum tensor_type type, const uint8_t *panel, uint32_t b, unsigned s, float scale[16]);
/* Weights of inputs [k_begin, k_begin + k_count) of a panel as [k][row]; k_begin a multiple of 32, k_count at most 32.
 */
void panel_weights(enum tensor_type type, const uint8_t *panel, uint32_t k_begin, uint32_t k_count,
                   float weights[32][16]);

/* matmul_ref.c: what the matmul means, sums in double over unrounded activations. out (M, N). */
void matmul_meaning(const struct matrix *matrix, const float *x, size_t stride_m, uint32_t M, double *out);

/* A path. tile: `panels` whole panels from `panel` on against one tile of R = 1..16 rows; writes 16 * panels columns.
 * quantise: `blocks` blocks of rows [r_begin, r_end) of a tile of R rows to int8, each from K values at x + row *
 * stride_m with zeros after them; `tile` is the first of these blocks. Gives bit r for a row that holds a NaN or an
 * infinity, of which anything may have been written. */
typedef void (*matmul_tile_fn)(const struct matrix *matrix, const uint8_t *panel, uint32_t panels, const uint8_t *act,
                               uint32_t R, float *out, size_t stride_m);
typedef uint32_t (*matmul_quantise_fn)(enum act_kind kind, const float *x, size_t stride_m, uint32_t K, uint32_t blocks,
                                       uint8_t *tile, uint32_t R, uint32_t r_begin, uint32_t r_end);

void matmul_tile_scalar(const struct matrix *matrix, const uint8_t *panel, uint32_t panels, const uint8_t *act,
                        uint32_t R, float *out, size_t stride_m);
void matmul_tile_avx2(const struct matrix *matrix, const uint8_t *panel, uint32_t panels, const uint8_t *act,
                      uint32_t R, float *out, size_t stride_m);
void matmul_tile_avxvnni(const struct matrix *matrix, const uint8_t *panel, uint32_t panels, const uint8_t *act,
                         uint32_t R, float *out, size_t stride_m);
void matmul_tile_avx512(const struct matrix *matrix, const uint8_t *panel, uint32_t panels, const uint8_t *act,
                        uint32_t R, float *out, size_t stride_m);
/* matmul_f32_avx512.c: the same for activations in f32. */
void matmul_tile_f32_avx512(const struct matrix *matrix, const uint8_t *panel, uint32_t panels, const uint8_t *act,
                            uint32_t R, float *out, size_t stride_m);

/* The same for ACT_BF16 (matmul_bf16_*.c), which the tiles above do not take. round: K values of row r of a tile of R
 * rows to BF16, zeros to the end of the block; false, with them written, at a value that is or rounds to a NaN or an
 * infinity. */
typedef bool (*matmul_round_fn)(const float *x, uint32_t K, uint8_t *tile, uint32_t R, uint32_t r);

void matmul_tile_bf16_scalar(const struct matrix *matrix, const uint8_t *panel, uint32_t panels, const uint8_t *act,
                             uint32_t R, float *out, size_t stride_m);
void matmul_tile_bf16_avx2(const struct matrix *matrix, const uint8_t *panel, uint32_t panels, const uint8_t *act,
                           uint32_t R, float *out, size_t stride_m);
void matmul_tile_bf16_avx512(const struct matrix *matrix, const uint8_t *panel, uint32_t panels, const uint8_t *act,
                             uint32_t R, float *out, size_t stride_m);
void matmul_tile_bf16_avx512bf16(const struct matrix *matrix, const uint8_t *panel, uint32_t panels, const uint8_t *act,
                                 uint32_t R, float *out, size_t stride_m);

bool matmul_round_scalar(const float *x, uint32_t K, uint8_t *tile, uint32_t R, uint32_t r);
bool matmul_round_avx2(const float *x, uint32_t K, uint8_t *tile, uint32_t R, uint32_t r);
bool matmul_round_avx512(const float *x, uint32_t K, uint8_t *tile, uint32_t R, uint32_t r);
bool matmul_round_avx512bf16(const float *x, uint32_t K, uint8_t *tile, uint32_t R, uint32_t r);

uint32_t matmul_quantise_scalar(enum act_kind kind, const float *x, size_t stride_m, uint32_t K, uint32_t blocks,
                                uint8_t *tile, uint32_t R, uint32_t r_begin, uint32_t r_end);
uint32_t matmul_quantise_avx2(enum act_kind kind, const float *x, size_t stride_m, uint32_t K, uint32_t blocks,
                              uint8_t *tile, uint32_t R, uint32_t r_begin, uint32_t r_end);
/* matmul_quantise_avx512.c */
uint32_t matmul_quantise_avx512(enum act_kind kind, const float *x, size_t stride_m, uint32_t K, uint32_t blocks,
                                uint8_t *tile, uint32_t R, uint32_t r_begin, uint32_t r_end);

#endif
