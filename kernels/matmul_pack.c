/* Panels: how the rows of a matrix lie in memory for the multiply, and the way there and back.
 *
 * A panel is 16 output rows; lane r of a register is row r. One panel is one stream, from the first input to the last,
 * so that the hardware prefetcher sees a single reader. K is padded to 64, N to 16, with zeros. Quantised types have
 * inputs in blocks of 32, two blocks a group, so that no load of codes crosses a cache line:
 *
 *   | codes of block 0 | codes of block 1 | high bits 0 | high bits 1 | scale 0 | scale 1 | second scale 0, 1 |
 *
 *   codes  4 to 6 bits: 4 registers; dword r of register i holds, in bytes b = 0..3, the low four bits of inputs 4i+b
 *          (low nibble) and 16+4i+b (high nibble). 8 bits: 8 registers, dword r of register i is inputs 4i..4i+3. So
 *          "quad i", inputs 4i..4i+3 of all rows, is register i, or a nibble of register i mod 4.
 *   high   5 bits: one register, bit i of byte (r, b) is the fifth bit of input 4i+b. 6 bits: two registers, bits 2t
 *          and 2t+1 of byte (r, b) of register j are the upper two bits of input 16j+4t+b.
 *   scale  16 f16, as in the file: d, and m where the type has one.
 *
 * K-quants (K a multiple of 256) scale their scales. There a scale is 16 bytes, one a row: Q4_K, Q5_K: scale and min,
 * unsigned; Q6_K: scales of inputs 0..15 and 16..31, signed. What they are multiplied with stands in a head of 64 bytes
 * before each four groups: 16 f16 d, then 16 f16 -dmin, or 32 bytes of zeros. A path makes the f32 products once a
 * block, rounded as dequantize_row rounds them: 4.6, 5.6, 6.6 bits a weight; f32 products in the panel were 6, 7, 8.
 *
 * Codes are unsigned (Q8_0: byte xor 0x80), since vpdpbusd takes unsigned weights and signed activations. For Q4_0,
 * Q4_1, Q5_0, Q5_1 and Q8_0 a register is dwords of the file, so packing moves whole dwords. F32 is [K][16], F16 too,
 * BF16 [K/2][16][2]. F8 is, for each 128 inputs, their codes as BF16 [64][16][2] and 16 scales in f32.
 *
 * Prepared activations are streams too, a tile of up to 16 rows each. With R rows in the tile, for each block of 32:
 *
 *   s8 q[R][32] | s32 init[R] = -zp * sum(q) | f32 da[R] = amax / 127 | f32 das[R] = da * sum(q)      (44 R bytes)
 *
 * For ACT_Q8_ZP32 init covers inputs 0..15, and the last array is s32, -zp times the sum of inputs 16..31. ACT_F32: f32
 * x[K][R]. ACT_BF16, for each block of 32 inputs: bf16 x[R][32], zeros beyond K (64 R bytes). Source of the layout:
 * measured on the prototype; several panels side by side or rows of activations at a stride of K were slower. */
#include "kernels/dequantize.h"
#include "kernels/matmul_panel.h"
#include "runtime/base/check.h"

#include <string.h>

static enum act_kind act_kind_for(enum tensor_type type, enum numerics numerics)
{
    if (numerics == NUMERICS_FAST && (type == TENSOR_BF16 || type == TENSOR_F8)) return ACT_BF16;
    if (numerics == NUMERICS_EXACT || !panel_code_bits(type)) return ACT_F32;
    switch (panel_zero_point(type)) {
    case 8: return ACT_Q8_ZP8;
    case 16: return ACT_Q8_ZP16;
    case 32: return ACT_Q8_ZP32;
    case 128: return ACT_Q8_ZP128;
    default: return ACT_Q8_MIN;
    }
}

static size_t panel_bytes_for(enum tensor_type type, uint32_t K)
{
    switch (type) {
    case TENSOR_F32: return (size_t)K * 64;
    case TENSOR_F16:
    case TENSOR_BF16: return ((size_t)K + 1) / 2 * 64;
    case TENSOR_F8: return K / F8_INPUTS * (size_t)F8_SEGMENT_BYTES;
    default: return panel_group_offset(type, panel_groups(K)) - (panel_has_head(type) ? PANEL_HEAD_BYTES : 0);
    }
}

enum status matmul_plan(enum tensor_type type, enum numerics numerics, enum cpu_path path, uint32_t N, uint32_t K,
                        struct matrix *matrix)
{
    const struct tensor_type_info *info = tensor_type_info(type);
    (void)path; /* all forms are the same on every path so far */
    if (!info || !N || !K || K % info->block_items || N > UINT32_MAX - MATMUL_PANEL_ROWS) return ST_INVAL;
    *matrix = (struct matrix){
        .type = type,
        .numerics = numerics,
        .act = act_kind_for(type, numerics),
        .N = N,
        .K = K,
        .panels = (N + MATMUL_PANEL_ROWS - 1) / MATMUL_PANEL_ROWS,
        .panel_bytes = panel_bytes_for(type, K),
    };
    return ST_OK;
}

static uint16_t load_u16(const uint8_t *p)
{
    uint16_t v;
    memcpy(&v, p, sizeof v);
    return v;
}
static uint32_t load_u32(const uint8_t *p)
{
    uint32_t v;
    memcpy(&v, p, sizeof v);
    return v;
}

/* ---- file to panel: four rows at a time ----
 *
 * Dword i of four rows is 16 bytes of register i of the panel, so what moves is 4 x 4 dwords, transposed. Where the
 * file has bits of several blocks in one byte, they part in registers on the way. A row that is not there is NULL. */

#define UNROLL _Pragma("GCC unroll 8")
enum { QUAD_ROWS = 4 };

typedef uint32_t dwords __attribute__((vector_size(16)));
typedef uint8_t octets __attribute__((vector_size(16)));

/* Four dwords of a row; zeros of a row that is not there. */
static inline dwords row_dwords(const uint8_t *row, size_t offset)
{
    dwords v = {0};
    if (row) memcpy(&v, row + offset, sizeof v);
    return v;
}

static inline void transpose(dwords v[4])
{
    const dwords a = __builtin_shufflevector(v[0], v[1], 0, 4, 1, 5),
                 b = __builtin_shufflevector(v[2], v[3], 0, 4, 1, 5);
    const dwords c = __builtin_shufflevector(v[0], v[1], 2, 6, 3, 7),
                 d = __builtin_shufflevector(v[2], v[3], 2, 6, 3, 7);
    v[0] = __builtin_shufflevector(a, b, 0, 1, 4, 5);
    v[1] = __builtin_shufflevector(a, b, 2, 3, 6, 7);
    v[2] = __builtin_shufflevector(c, d, 0, 1, 4, 5);
    v[3] = __builtin_shufflevector(c, d, 2, 3, 6, 7);
}

static inline void load_columns(const uint8_t *const row[4], size_t offset, dwords v[4])
{
    UNROLL for (unsigned r = 0; r < 4; r++) v[r] = row_dwords(row[r], offset);
    transpose(v);
}

/* Four columns to registers that follow each other; target: lane of the first row in the first register. */
static inline void store_columns(uint8_t *target, const dwords v[4])
{
    UNROLL for (unsigned i = 0; i < 4; i++) memcpy(target + (size_t)i * 64, &v[i], sizeof v[i]);
}

/* Exchanges the bits under mask of `high` with those `shift` above them of `low`; or both within one dword. */
static inline void exchange(dwords *low, dwords *high, unsigned shift, uint32_t mask)
{
    const dwords t = (*low >> shift ^ *high) & mask;
    *high ^= t;
    *low ^= t << shift;
}
static inline dwords exchange_within(dwords v, unsigned shift, uint32_t mask)
{
    const dwords t = (v ^ v >> shift) & mask;
    return v ^ t ^ t << shift;
}

/* Bit 4i+b of 32 to bit i of byte b: the bits of an index are turned by two places, in four exchanges. */
static inline dwords high_planes(dwords v)
{
    v = exchange_within(v, 14, 0x0000ccccu);
    v = exchange_within(v, 7, 0x00aa00aau);
    v = exchange_within(v, 2, 0x0c0c0c0cu);
    return exchange_within(v, 1, 0x22222222u);
}

/* f16 s of a block, of four rows, as they lie side by side in the panel. */
static inline uint64_t row_halves(const uint8_t *const row[4], size_t offset)
{
    uint64_t halves = 0;
    UNROLL for (unsigned r = 0; r < 4; r++) halves |= (uint64_t)(row[r] ? load_u16(row[r] + offset) : 0) << 16 * r;
    return halves;
}

/* Q4_0, Q4_1, Q5_0, Q5_1, Q8_0: blocks of d, m, high bits, codes. lane: the first of the four. */
static inline void pack_blocks(enum tensor_type type, uint8_t *panel, unsigned lane, const uint8_t *const row[4],
                               uint32_t blocks)
{
    const unsigned scales = panel_scales(type), registers = panel_code_bytes(type) / 64;
    size_t at = 0;
    for (uint32_t b = 0; b < blocks; b++) {
        uint8_t *group = panel + panel_group_offset(type, b / 2);
        const unsigned h = b & 1;
        for (unsigned s = 0; s < scales; s++, at += 2) {
            const uint64_t halves = row_halves(row, at);
            memcpy(group + panel_scale_offset(type) + (2 * s + h) * 32 + lane * 2, &halves, 8);
        }
        if (panel_high_bytes(type)) {
            dwords v = {0};
            UNROLL for (unsigned r = 0; r < 4; r++) v[r] = row[r] ? load_u32(row[r] + at) : 0;
            v = high_planes(v);
            memcpy(group + panel_high_offset(type) + h * 64 + lane * 4, &v, sizeof v);
            at += 4;
        }
        UNROLL for (unsigned i = 0; i < registers; i += 4, at += 16)
        {
            dwords v[4];
            UNROLL for (unsigned r = 0; r < 4; r++)
            {
                v[r] = row_dwords(row[r], at);
                if (type == TENSOR_Q8_0 && row[r]) v[r] ^= 0x80808080u;
            }
            transpose(v);
            store_columns(group + (h * registers + i) * 64 + lane * 4, v);
        }
    }
}

/* Where block b of a panel has its codes, high bits, and row 0 of scale array s. */
static inline uint8_t *k_codes_at(enum tensor_type type, uint8_t *panel, uint32_t b)
{
    return panel + panel_group_offset(type, b / 2) + (b & 1) * panel_code_bytes(type);
}
static inline uint8_t *k_high_at(enum tensor_type type, uint8_t *panel, uint32_t b)
{
    return panel + panel_group_offset(type, b / 2) + panel_high_offset(type) + (b & 1) * panel_high_bytes(type);
}
static inline uint8_t *k_scale_at(enum tensor_type type, uint8_t *panel, uint32_t b, unsigned s)
{
    return panel + panel_group_offset(type, b / 2) + panel_scale_offset(type) + (2 * s + (b & 1)) * 16;
}

/* 32 bytes of nibbles: the low ones are those of a block, the high ones of another. Targets: of the first row. */
static inline void k_codes_pack(const uint8_t *const row[4], size_t offset, uint8_t *low, uint8_t *high)
{
    const uint32_t nibble = 0x0f0f0f0fu;
    dwords first[4], second[4];
    UNROLL for (unsigned r = 0; r < 4; r++)
    {
        const dwords a = row_dwords(row[r], offset), c = row_dwords(row[r], offset + 16);
        first[r] = (a & nibble) | (c & nibble) << 4;
        second[r] = (a >> 4 & nibble) | (c & ~nibble);
    }
    transpose(first);
    transpose(second);
    store_columns(low, first);
    store_columns(high, second);
}

/* Byte j of four rows' dwords to scale array s of block b + j; for Q6_K to array j % 2 of block b + j / 2. */
static inline void k_scales_pack(enum tensor_type type, uint8_t *panel, unsigned lane, uint32_t b, unsigned s, dwords v)
{
    octets bytes;
    memcpy(&bytes, &v, sizeof bytes);
    /* twice the upper half between the bytes of the lower: 4 x 4, transposed */
    bytes = __builtin_shufflevector(bytes, bytes, 0, 8, 1, 9, 2, 10, 3, 11, 4, 12, 5, 13, 6, 14, 7, 15);
    bytes = __builtin_shufflevector(bytes, bytes, 0, 8, 1, 9, 2, 10, 3, 11, 4, 12, 5, 13, 6, 14, 7, 15);
    memcpy(&v, &bytes, sizeof v);
    UNROLL for (unsigned j = 0; j < 4; j++)
    {
        const uint32_t rows = v[j];
        if (panel_halves(type)) /* scales of both halves of a block side by side */
            memcpy(k_scale_at(type, panel, b + j / 2, j & 1) + lane, &rows, 4);
        else
            memcpy(k_scale_at(type, panel, b + j, s) + lane, &rows, 4);
    }
}

/* The fifth bits of Q5_K: 32 bytes, bit j of byte i for input i of block j. An 8 x 8 transposition of bits. */
static inline void k_fifth_bits_pack(uint8_t *panel, unsigned lane, uint32_t b, const uint8_t *const row[4],
                                     size_t offset)
{
    dwords v[8];
    load_columns(row, offset, v);
    load_columns(row, offset + 16, v + 4);
    UNROLL for (unsigned i = 0; i < 4; i++) exchange(&v[i], &v[i + 4], 4, 0x0f0f0f0fu);
    UNROLL for (unsigned i = 0; i < 8; i += i & 1 ? 3 : 1) exchange(&v[i], &v[i + 2], 2, 0x33333333u);
    UNROLL for (unsigned i = 0; i < 8; i += 2) exchange(&v[i], &v[i + 1], 1, 0x55555555u);
    UNROLL for (unsigned j = 0; j < 8; j++) memcpy(k_high_at(TENSOR_Q5_K, panel, b + j) + lane * 4, &v[j], sizeof v[j]);
}

/* Q4_K and Q5_K: d, dmin, 12 bytes of scales and minima of six bits, for Q5_K 32 bytes of high bits, 128 of nibbles. */
static inline void k_super_pack(enum tensor_type type, uint8_t *panel, unsigned lane, uint32_t b,
                                const uint8_t *const row[4], size_t offset)
{
    dwords v[4]; /* d and dmin; then scales 0..3, minima 0..3, the low nibbles of 4..7; the upper two bits of each byte
                  * of the first two are the upper two of 4..7 */
    load_columns(row, offset, v);
    uint64_t d = 0, minus_dmin = 0;
    UNROLL for (unsigned r = 0; r < 4; r++)
    {
        d |= (uint64_t)(v[0][r] & 0xffffu) << 16 * r;
        minus_dmin |= (uint64_t)(row[r] ? v[0][r] >> 16 ^ 0x8000u : 0) << 16 * r;
    }
    uint8_t *head = panel + panel_head_offset(type, b / 2);
    memcpy(head + lane * 2, &d, 8);
    memcpy(head + panel_factor_offset(type, 1) + lane * 2, &minus_dmin, 8);
    k_scales_pack(type, panel, lane, b, 0, v[1] & 0x3f3f3f3fu);
    k_scales_pack(type, panel, lane, b, 1, v[2] & 0x3f3f3f3fu);
    k_scales_pack(type, panel, lane, b + 4, 0, (v[3] & 0x0f0f0f0fu) | (v[1] >> 2 & 0x30303030u));
    k_scales_pack(type, panel, lane, b + 4, 1, (v[3] >> 4 & 0x0f0f0f0fu) | (v[2] >> 2 & 0x30303030u));
    if (type == TENSOR_Q5_K) k_fifth_bits_pack(panel, lane, b, row, offset + 16);
    const size_t codes = offset + (type == TENSOR_Q5_K ? 48 : 16);
    UNROLL for (unsigned j = 0; j < 8; j += 2) k_codes_pack(
        row, codes + 16 * j, k_codes_at(type, panel, b + j) + lane * 4, k_codes_at(type, panel, b + j + 1) + lane * 4);
}

/* Q6_K: 128 bytes of nibbles, 64 of high bits, 16 s8 scales, d. Two halves of 128 inputs: the low nibbles of a half are
 * blocks 0 and 1, the high ones 2 and 3; bits 2t, 2t+1 of its high bits are those of block t. */
static inline void k_super_pack_q6(uint8_t *panel, unsigned lane, uint32_t b, const uint8_t *const row[4],
                                   size_t offset)
{
    const enum tensor_type type = TENSOR_Q6_K;
    const uint64_t d = row_halves(row, offset + 208), none = 0;
    uint8_t *head = panel + panel_head_offset(type, b / 2);
    memcpy(head + lane * 2, &d, 8);
    memcpy(head + 32 + lane * 2, &none, 8);
    dwords v[4];
    load_columns(row, offset + 192, v);
    UNROLL for (unsigned j = 0; j < 4; j++) k_scales_pack(type, panel, lane, b + 2 * j, 0, v[j]);
    for (unsigned half = 0; half < 2; half++) {
        for (unsigned c = 0; c < 2; c++)
            k_codes_pack(row, offset + 64 * half + 32 * c, k_codes_at(type, panel, b + 4 * half + c) + lane * 4,
                         k_codes_at(type, panel, b + 4 * half + c + 2) + lane * 4);
        UNROLL for (unsigned j = 0; j < 2; j++)
        { /* 4 x 4 fields of two bits, transposed: inputs 16j .. 16j+15 */
            load_columns(row, offset + 128 + 32 * half + 16 * j, v);
            UNROLL for (unsigned i = 0; i < 2; i++) exchange(&v[i], &v[i + 2], 4, 0x0f0f0f0fu);
            UNROLL for (unsigned i = 0; i < 4; i += 2) exchange(&v[i], &v[i + 1], 2, 0x33333333u);
            UNROLL for (unsigned t = 0; t < 4; t++)
                memcpy(k_high_at(type, panel, b + 4 * half + t) + 64 * j + lane * 4, &v[t], sizeof v[t]);
        }
    }
}

static inline void pack_supers(enum tensor_type type, uint8_t *panel, unsigned lane, const uint8_t *const row[4],
                               uint32_t blocks)
{
    const size_t super_bytes = type == TENSOR_Q4_K ? 144 : type == TENSOR_Q5_K ? 176 : 210;
    for (uint32_t b = 0; b < blocks; b += 8)
        if (type == TENSOR_Q6_K)
            k_super_pack_q6(panel, lane, b, row, b / 8 * super_bytes);
        else
            k_super_pack(type, panel, lane, b, row, b / 8 * super_bytes);
}

/* F32: a dword is an input. BF16 and F16: two inputs; F16 has the rows of one side by side. */
static inline void pack_floats(enum tensor_type type, uint8_t *panel, unsigned lane, const uint8_t *const row[4],
                               uint32_t K)
{
    const size_t item_bytes = type == TENSOR_F32 ? 4 : 2;
    const uint32_t run = (uint32_t)(16 / item_bytes);
    uint32_t k = 0;
    for (; k + run <= K; k += run) {
        dwords v[4];
        load_columns(row, k * item_bytes, v);
        if (type == TENSOR_F32) store_columns(panel + (size_t)k * 64 + lane * 4, v);
        if (type == TENSOR_BF16) store_columns(panel + (size_t)k * 32 + lane * 4, v);
        UNROLL for (unsigned i = 0; i < 8 && type == TENSOR_F16; i++)
        {
            uint64_t halves = 0;
            UNROLL for (unsigned r = 0; r < 4; r++) halves |= (uint64_t)(v[i / 2][r] >> 16 * (i & 1) & 0xffffu)
                                                              << 16 * r;
            memcpy(panel + panel_float_offset(type, k + i, lane), &halves, 8);
        }
    }
    for (; k < K; k++)
        for (unsigned r = 0; r < 4; r++)
            if (row[r]) memcpy(panel + panel_float_offset(type, k, lane + r), row[r] + k * item_bytes, item_bytes);
}

/* Codes are BF16 in the panel, which holds E4M3 exactly: the dot of BF16 takes them as they are. */
static void pack_f8(uint8_t *panel, unsigned lane, const uint8_t *const row[4], uint32_t K)
{
    const size_t block_bytes = tensor_type_info(TENSOR_F8)->block_bytes;
    for (unsigned r = 0; r < 4; r++) {
        const uint8_t *block = row[r];
        for (uint32_t k = 0; block && k < K; k++) {
            if (k && k % F8_INPUTS == 0) block += block_bytes;
            if (k % F8_INPUTS == 0) memcpy(panel + panel_f8_scale_offset(k, lane + r), block, 4);
            const uint16_t code = f32_to_bf16(f8_to_f32(block[4 + k % F8_INPUTS]));
            memcpy(panel + panel_float_offset(TENSOR_F8, k, lane + r), &code, 2);
        }
    }
}

static void pack_rows(enum tensor_type type, uint8_t *panel, unsigned lane, const uint8_t *const row[4], uint32_t K)
{
    const uint32_t blocks = K / PANEL_BLOCK;
    switch (type) { /* constants, so that the loops above lose their branches */
    case TENSOR_Q4_0: pack_blocks(TENSOR_Q4_0, panel, lane, row, blocks); break;
    case TENSOR_Q4_1: pack_blocks(TENSOR_Q4_1, panel, lane, row, blocks); break;
    case TENSOR_Q5_0: pack_blocks(TENSOR_Q5_0, panel, lane, row, blocks); break;
    case TENSOR_Q5_1: pack_blocks(TENSOR_Q5_1, panel, lane, row, blocks); break;
    case TENSOR_Q8_0: pack_blocks(TENSOR_Q8_0, panel, lane, row, blocks); break;
    case TENSOR_Q4_K: pack_supers(TENSOR_Q4_K, panel, lane, row, blocks); break;
    case TENSOR_Q5_K: pack_supers(TENSOR_Q5_K, panel, lane, row, blocks); break;
    case TENSOR_Q6_K: pack_supers(TENSOR_Q6_K, panel, lane, row, blocks); break;
    case TENSOR_F32: pack_floats(TENSOR_F32, panel, lane, row, K); break;
    case TENSOR_F16: pack_floats(TENSOR_F16, panel, lane, row, K); break;
    case TENSOR_BF16: pack_floats(TENSOR_BF16, panel, lane, row, K); break;
    case TENSOR_F8: pack_f8(panel, lane, row, K); break;
    }
}

void matmul_pack(const struct matrix *matrix, const void *source, uint32_t panel_begin, uint32_t panel_end)
{
    const size_t row_bytes = tensor_row_bytes(tensor_type_info(matrix->type), matrix->K);
    CHECK(panel_begin <= panel_end && panel_end <= matrix->panels);
    for (uint32_t p = panel_begin; p < panel_end; p++) {
        uint8_t *panel = matrix->data + p * matrix->panel_bytes;
        const uint8_t *from = (const uint8_t *)source + (size_t)(p - panel_begin) * MATMUL_PANEL_ROWS * row_bytes;
        const uint32_t row = p * MATMUL_PANEL_ROWS;
        const uint32_t rows = matrix->N - row < MATMUL_PANEL_ROWS ? matrix->N - row : MATMUL_PANEL_ROWS;
        if (rows < MATMUL_PANEL_ROWS || matrix->K % PANEL_GROUP) memset(panel, 0, matrix->panel_bytes);
        for (unsigned lane = 0; lane < rows; lane += QUAD_ROWS) {
            const uint8_t *four[QUAD_ROWS];
            for (unsigned r = 0; r < QUAD_ROWS; r++) four[r] = lane + r < rows ? from + (lane + r) * row_bytes : NULL;
            pack_rows(matrix->type, panel, lane, four, matrix->K);
        }
    }
}
