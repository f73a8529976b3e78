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
 * BF16 [K/2][16][2].
 *
 * Prepared activations are streams too, a tile of up to 16 rows each. With R rows in the tile, for each block of 32:
 *
 *   s8 q[R][32] | s32 init[R] = -zp * sum(q) | f32 da[R] = amax / 127 | f32 das[R] = da * sum(q)      (44 R bytes)
 *
 * For ACT_Q8_ZP32 init covers inputs 0..15, and the last array is s32, -zp times the sum of inputs 16..31. ACT_F32: f32
 * x[K][R]. Source of the layout: measured on the prototype; several panels side by side or rows of activations at a
 * stride of K were slower. */
#include "kernels/dequantize.h"
#include "kernels/matmul_panel.h"
#include "runtime/base/check.h"

#include <string.h>

static enum act_kind act_kind_for(enum tensor_type type, enum numerics numerics)
{
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

static float load_f32(const uint8_t *p)
{
    float v;
    memcpy(&v, p, sizeof v);
    return v;
}

/* ---- file to panel ---- */

/* Bits b, b+4, .. b+28 of the file's 32 high bits to bits 0..7 of byte b. */
static uint32_t high_plane(uint32_t bits)
{
    uint32_t plane = 0;
    for (unsigned b = 0; b < 4; b++) {
        uint32_t t = bits >> b & 0x11111111u;
        t = (t | t >> 3) & 0x03030303u;
        t = (t | t >> 6) & 0x000f000fu;
        t = (t | t >> 12) & 0xffu;
        plane |= t << 8 * b;
    }
    return plane;
}

/* Q4_0, Q4_1, Q5_0, Q5_1, Q8_0: one block of the file (d, m, high bits, codes) to half h, lane r of a group. */
static inline void pack_block(enum tensor_type type, uint8_t *group, unsigned h, unsigned r, const uint8_t *file)
{
    const unsigned scales = panel_scales(type), dwords = panel_code_bytes(type) / 64;
    const uint32_t flip = type == TENSOR_Q8_0 ? 0x80808080u : 0;
    for (unsigned s = 0; s < scales; s++, file += 2)
        memcpy(group + panel_scale_offset(type) + (2 * s + h) * 32 + r * 2, file, 2);
    if (panel_high_bytes(type)) {
        uint32_t plane = high_plane(load_u32(file));
        memcpy(group + panel_high_offset(type) + h * 64 + r * 4, &plane, 4);
        file += 4;
    }
    for (unsigned i = 0; i < dwords; i++) {
        uint32_t v = load_u32(file + 4 * i) ^ flip;
        memcpy(group + (h * dwords + i) * 64 + r * 4, &v, 4);
    }
}

static inline void pack_row_blocks(enum tensor_type type, uint8_t *panel, unsigned r, const uint8_t *file,
                                   uint32_t blocks)
{
    const unsigned block_bytes =
        panel_code_bytes(type) / 16 + panel_high_bytes(type) / 16 + panel_scales(type) * 2; /* as in the file */
    for (uint32_t b = 0; b < blocks; b++, file += block_bytes)
        pack_block(type, panel + (size_t)(b / 2) * panel_group_bytes(type), b & 1, r, file);
}

/* Scale and minimum j = 0..7 of Q4_K and Q5_K: six bits each in 12 bytes. */
static void scale_min(const uint8_t *scales, unsigned j, uint8_t *scale, uint8_t *min)
{
    if (j < 4) {
        *scale = scales[j] & 63;
        *min = scales[j + 4] & 63;
    } else {
        *scale = (uint8_t)((scales[j + 4] & 15) | scales[j - 4] >> 6 << 4);
        *min = (uint8_t)(scales[j + 4] >> 4 | scales[j] >> 6 << 4);
    }
}

/* Block j = 0..7 of a super-block of 256: code dword i is inputs 4i..4i+3, a byte each; and the two scales. */
static inline void k_block_read(enum tensor_type type, const uint8_t *file, unsigned j, uint32_t codes[8],
                                uint8_t scale[2])
{
    if (type == TENSOR_Q6_K) { /* 128 low nibbles, 64 high bits, 16 s8 scales, d */
        const uint8_t *low = file + 64 * (j / 4) + 32 * (j & 1), *high = file + 128 + 32 * (j / 4);
        for (unsigned i = 0; i < 8; i++)
            codes[i] = (load_u32(low + 4 * i) >> (j & 2 ? 4 : 0) & 0x0f0f0f0fu) |
                       (load_u32(high + 4 * i) >> 2 * (j & 3) & 0x03030303u) << 4;
        memcpy(scale, file + 192 + 2 * j, 2);
        return;
    }
    /* d, dmin, 12 bytes of scales, for Q5_K 32 bytes of high bits, 128 low nibbles */
    const uint8_t *high = file + 16, *low = file + (type == TENSOR_Q5_K ? 48 : 16) + 32 * (j / 2);
    scale_min(file + 4, j, &scale[0], &scale[1]);
    for (unsigned i = 0; i < 8; i++) {
        codes[i] = load_u32(low + 4 * i) >> (j & 1 ? 4 : 0) & 0x0f0f0f0fu;
        if (type == TENSOR_Q5_K) codes[i] |= (load_u32(high + 4 * i) >> j & 0x01010101u) << 4;
    }
}

static inline void k_block_pack(enum tensor_type type, uint8_t *group, unsigned h, unsigned r, const uint32_t codes[8],
                                const uint8_t scale[2])
{
    const uint32_t nibble = 0x0f0f0f0fu;
    uint32_t planes[2] = {0, 0};
    for (unsigned i = 0; i < 4; i++) {
        const uint32_t v = (codes[i] & nibble) | (codes[i + 4] & nibble) << 4;
        memcpy(group + (h * 4 + i) * 64 + r * 4, &v, 4);
    }
    for (unsigned i = 0; i < 8; i++) {
        if (type == TENSOR_Q5_K) planes[0] |= (codes[i] >> 4 & 0x01010101u) << i;
        if (type == TENSOR_Q6_K) planes[i / 4] |= (codes[i] >> 4 & 0x03030303u) << 2 * (i & 3);
    }
    uint8_t *high = group + panel_high_offset(type) + h * panel_high_bytes(type);
    for (unsigned j = 0; j < panel_high_bytes(type) / 64; j++) memcpy(high + j * 64 + r * 4, &planes[j], 4);
    for (unsigned s = 0; s < 2; s++) group[panel_scale_offset(type) + (2 * s + h) * 16 + r] = scale[s];
}

static inline void k_head_pack(enum tensor_type type, uint8_t *head, unsigned r, const uint8_t *file)
{
    const uint16_t d = load_u16(type == TENSOR_Q6_K ? file + 208 : file);
    const uint16_t minus_dmin = type == TENSOR_Q6_K ? 0 : load_u16(file + 2) ^ 0x8000;
    memcpy(head + 2 * r, &d, 2);
    memcpy(head + 32 + 2 * r, &minus_dmin, 2);
}

static inline void k_row_pack(enum tensor_type type, uint8_t *panel, unsigned r, const uint8_t *file, uint32_t blocks)
{
    const size_t super_bytes = type == TENSOR_Q4_K ? 144 : type == TENSOR_Q5_K ? 176 : 210;
    uint32_t codes[8];
    uint8_t scale[2];
    for (uint32_t b = 0; b < blocks; b++) {
        if (b % 8 == 0) k_head_pack(type, panel + panel_head_offset(type, b / 2), r, file + b / 8 * super_bytes);
        k_block_read(type, file + b / 8 * super_bytes, b & 7, codes, scale);
        k_block_pack(type, panel + panel_group_offset(type, b / 2), b & 1, r, codes, scale);
    }
}

/* F32, F16, BF16: input k of lane r lies at this offset. */
static inline size_t float_offset(enum tensor_type type, uint32_t k, unsigned r)
{
    if (type == TENSOR_F32) return ((size_t)k * 16 + r) * 4;
    if (type == TENSOR_F16) return ((size_t)k * 16 + r) * 2;
    return ((size_t)(k / 2) * 32 + 2 * r + (k & 1)) * 2;
}

static inline void pack_row_floats(enum tensor_type type, uint8_t *panel, unsigned r, const uint8_t *file, uint32_t K)
{
    const size_t item_bytes = type == TENSOR_F32 ? 4 : 2;
    uint32_t k = 0;
    for (; type == TENSOR_BF16 && k + 2 <= K; k += 2) memcpy(panel + (size_t)k * 32 + r * 4, file + (size_t)k * 2, 4);
    for (; k < K; k++) memcpy(panel + float_offset(type, k, r), file + k * item_bytes, item_bytes);
}

static void pack_row(enum tensor_type type, uint8_t *panel, unsigned r, const uint8_t *file, uint32_t K)
{
    const uint32_t blocks = K / PANEL_BLOCK;
    switch (type) { /* constants, so that the loops above lose their branches */
    case TENSOR_Q4_0: pack_row_blocks(TENSOR_Q4_0, panel, r, file, blocks); break;
    case TENSOR_Q4_1: pack_row_blocks(TENSOR_Q4_1, panel, r, file, blocks); break;
    case TENSOR_Q5_0: pack_row_blocks(TENSOR_Q5_0, panel, r, file, blocks); break;
    case TENSOR_Q5_1: pack_row_blocks(TENSOR_Q5_1, panel, r, file, blocks); break;
    case TENSOR_Q8_0: pack_row_blocks(TENSOR_Q8_0, panel, r, file, blocks); break;
    case TENSOR_Q4_K: k_row_pack(TENSOR_Q4_K, panel, r, file, blocks); break;
    case TENSOR_Q5_K: k_row_pack(TENSOR_Q5_K, panel, r, file, blocks); break;
    case TENSOR_Q6_K: k_row_pack(TENSOR_Q6_K, panel, r, file, blocks); break;
    case TENSOR_F32: pack_row_floats(TENSOR_F32, panel, r, file, K); break;
    case TENSOR_F16: pack_row_floats(TENSOR_F16, panel, r, file, K); break;
    case TENSOR_BF16: pack_row_floats(TENSOR_BF16, panel, r, file, K); break;
    }
}

void matmul_pack(const struct matrix *matrix, const void *source, uint32_t panel_begin, uint32_t panel_end)
{
    const size_t row_bytes = tensor_row_bytes(tensor_type_info(matrix->type), matrix->K);
    CHECK(panel_begin <= panel_end && panel_end <= matrix->panels);
    for (uint32_t p = panel_begin; p < panel_end; p++) {
        uint8_t *panel = matrix->data + p * matrix->panel_bytes;
        const uint32_t row = p * MATMUL_PANEL_ROWS;
        const uint32_t rows = matrix->N - row < MATMUL_PANEL_ROWS ? matrix->N - row : MATMUL_PANEL_ROWS;
        if (rows < MATMUL_PANEL_ROWS || matrix->K % PANEL_GROUP) memset(panel, 0, matrix->panel_bytes);
        for (unsigned r = 0; r < rows; r++)
            pack_row(matrix->type, panel, r, (const uint8_t *)source + (row + r) * row_bytes, matrix->K);
    }
}

/* ---- panel to values ---- */

static inline uint8_t code_at(enum tensor_type type, const uint8_t *group, unsigned h, unsigned k, unsigned r)
{
    const unsigned bits = panel_code_bits(type), i = k / 4, byte = r * 4 + (k & 3);
    const uint8_t *codes = group + h * panel_code_bytes(type);
    const uint8_t *high = group + panel_high_offset(type) + h * panel_high_bytes(type);
    if (bits == 8) return codes[i * 64 + byte];
    unsigned code = codes[(i & 3) * 64 + byte] >> (i & 4) & 15;
    if (bits == 5) code |= (high[byte] >> i & 1u) << 4;
    if (bits == 6) code |= (high[i / 4 * 64 + byte] >> 2 * (i & 3) & 3u) << 4;
    return (uint8_t)code;
}

/* Scale array s of block b, row r. */
static inline float scale_at(enum tensor_type type, const uint8_t *panel, uint32_t b, unsigned s, unsigned r)
{
    const uint8_t *group = panel + panel_group_offset(type, b / 2), *head = panel + panel_head_offset(type, b / 2);
    const uint8_t *scale = group + panel_scale_offset(type) + (2 * s + (b & 1)) * panel_scale_bytes(type);
    if (!panel_has_head(type)) return f16_to_f32(load_u16(scale + r * 2));
    const float factor = f16_to_f32(load_u16(head + panel_factor_offset(type, s) + r * 2));
    return factor * (float)(panel_halves(type) ? (int8_t)scale[r] : scale[r]);
}

/* All codes of a block, a dword of four inputs at a time. */
static inline void block_codes(enum tensor_type type, const uint8_t *group, unsigned h, uint8_t codes[32][16])
{
    const unsigned bits = panel_code_bits(type);
    const uint8_t *low = group + h * panel_code_bytes(type);
    const uint8_t *high = group + panel_high_offset(type) + h * panel_high_bytes(type);
    for (unsigned i = 0; i < 8; i++)
        for (unsigned r = 0; r < 16; r++) {
            uint32_t v = load_u32(low + (bits == 8 ? i : i & 3) * 64 + r * 4);
            if (bits != 8) v = v >> (i & 4) & 0x0f0f0f0fu;
            if (bits == 5) v |= (load_u32(high + r * 4) >> i & 0x01010101u) << 4;
            if (bits == 6) v |= (load_u32(high + i / 4 * 64 + r * 4) >> 2 * (i & 3) & 0x03030303u) << 4;
            for (unsigned b = 0; b < 4; b++) codes[4 * i + b][r] = (uint8_t)(v >> 8 * b);
        }
}

void panel_codes(enum tensor_type type, const uint8_t *panel, uint32_t b, uint8_t codes[32][16])
{
    const uint8_t *group = panel + panel_group_offset(type, b / 2);
    const unsigned half = b & 1;
    switch (panel_code_bits(type)) { /* types of the same width have their codes at the same places */
    case 4: block_codes(TENSOR_Q4_0, group, half, codes); break;
    case 5: block_codes(TENSOR_Q5_0, group, half, codes); break;
    case 6: block_codes(TENSOR_Q6_K, group, half, codes); break;
    default: block_codes(TENSOR_Q8_0, group, half, codes); break;
    }
}

void panel_scale(enum tensor_type type, const uint8_t *panel, uint32_t b, unsigned s, float scale[16])
{
    for (unsigned r = 0; r < 16; r++) scale[r] = scale_at(type, panel, b, s, r);
}

/* One weight, with the roundings of dequantize_row: the product, then the sum with the minimum. */
static inline float weight_of(enum tensor_type type, unsigned code, float d, float m)
{
    float product = d * (float)((int)code - panel_zero_point(type));
    return panel_has_min(type) ? product + m : product;
}

static float float_at(enum tensor_type type, const uint8_t *panel, uint32_t k, unsigned r)
{
    const uint8_t *p = panel + float_offset(type, k, r);
    if (type == TENSOR_F32) return load_f32(p);
    return type == TENSOR_F16 ? f16_to_f32(load_u16(p)) : bf16_to_f32(load_u16(p));
}

void panel_weights(enum tensor_type type, const uint8_t *panel, uint32_t k_begin, uint32_t k_count,
                   float weights[32][16])
{
    if (!panel_code_bits(type)) {
        for (uint32_t k = 0; k < k_count; k++)
            for (unsigned r = 0; r < 16; r++) weights[k][r] = float_at(type, panel, k_begin + k, r);
        return;
    }
    const uint32_t b = k_begin / PANEL_BLOCK;
    uint8_t codes[32][16];
    float scale[2][16] = {{0}};
    panel_codes(type, panel, b, codes);
    for (unsigned s = 0; s < panel_scales(type); s++) panel_scale(type, panel, b, s, scale[s]);
    for (uint32_t k = 0; k < k_count; k++) {
        const float *d = scale[panel_halves(type) && k >= 16];
        for (unsigned r = 0; r < 16; r++) weights[k][r] = weight_of(type, codes[k][r], d[r], scale[1][r]);
    }
}

void matmul_unpack_row(const struct matrix *matrix, uint32_t n, float *row)
{
    const enum tensor_type type = matrix->type;
    const unsigned r = n % MATMUL_PANEL_ROWS;
    const uint8_t *panel = matrix->data + n / MATMUL_PANEL_ROWS * matrix->panel_bytes;
    CHECK(n < matrix->N);
    if (!panel_code_bits(type)) {
        for (uint32_t k = 0; k < matrix->K; k++) row[k] = float_at(type, panel, k, r);
        return;
    }
    for (uint32_t b = 0; b < matrix->K / PANEL_BLOCK; b++) {
        const uint8_t *group = panel + panel_group_offset(type, b / 2);
        const float first = scale_at(type, panel, b, 0, r);
        const float second = panel_scales(type) == 2 ? scale_at(type, panel, b, 1, r) : first;
        for (unsigned k = 0; k < 32; k++) {
            const float d = panel_halves(type) && k >= 16 ? second : first;
            row[b * PANEL_BLOCK + k] = weight_of(type, code_at(type, group, b & 1, k, r), d, second);
        }
    }
}
