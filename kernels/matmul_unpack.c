/* Panels back to values: for the embedding of a token, for the few logits that are made again in f32, for the scalar
 * path and for tests. The layout is drawn in matmul_pack.c. */
#include "kernels/dequantize.h"
#include "kernels/matmul_panel.h"
#include "runtime/base/check.h"

#include <string.h>

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

/* Scale array s of block b, row r. */
static inline float scale_at(enum tensor_type type, const uint8_t *panel, uint32_t b, unsigned s, unsigned r)
{
    const uint8_t *group = panel + panel_group_offset(type, b / 2), *head = panel + panel_head_offset(type, b / 2);
    const uint8_t *scale = group + panel_scale_offset(type) + (2 * s + (b & 1)) * panel_scale_bytes(type);
    if (!panel_has_head(type)) return f16_to_f32(load_u16(scale + r * 2));
    const float factor = f16_to_f32(load_u16(head + panel_factor_offset(type, s) + r * 2));
    return factor * (float)(panel_halves(type) ? (int8_t)scale[r] : scale[r]);
}

/* The 32 codes of row r in a block: dword i is inputs 4i..4i+3. */
static inline void row_codes(enum tensor_type type, const uint8_t *group, unsigned half, unsigned r, uint8_t codes[32])
{
    const unsigned bits = panel_code_bits(type);
    const uint8_t *low = group + half * panel_code_bytes(type) + r * 4;
    const uint8_t *high = group + panel_high_offset(type) + half * panel_high_bytes(type) + r * 4;
    uint32_t planes[2] = {0, 0};
    for (unsigned j = 0; j < panel_high_bytes(type) / 64; j++) planes[j] = load_u32(high + j * 64);
    for (unsigned i = 0; i < 8; i++) {
        uint32_t v = load_u32(low + (bits == 8 ? i : i & 3) * 64);
        if (bits != 8) v = v >> (i & 4) & 0x0f0f0f0fu;
        if (bits == 5) v |= (planes[0] >> i & 0x01010101u) << 4;
        if (bits == 6) v |= (planes[i / 4] >> 2 * (i & 3) & 0x03030303u) << 4;
        memcpy(codes + (size_t)i * 4, &v, 4);
    }
}

/* All codes of a block. */
static inline void block_codes(enum tensor_type type, const uint8_t *group, unsigned half, uint8_t codes[32][16])
{
    for (unsigned r = 0; r < 16; r++) {
        uint8_t row[32];
        row_codes(type, group, half, r, row);
        for (unsigned k = 0; k < 32; k++) codes[k][r] = row[k];
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

static inline float float_at(enum tensor_type type, const uint8_t *panel, uint32_t k, unsigned r)
{
    const uint8_t *p = panel + panel_float_offset(type, k, r);
    if (type == TENSOR_F8) return bf16_to_f32(load_u16(p)) * load_f32(panel + panel_f8_scale_offset(k, r));
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

static inline void unpack_blocks(enum tensor_type type, const uint8_t *panel, unsigned r, uint32_t blocks, float *row)
{
    for (uint32_t b = 0; b < blocks; b++, row += PANEL_BLOCK) {
        uint8_t codes[32];
        row_codes(type, panel + panel_group_offset(type, b / 2), b & 1, r, codes);
        const float first = scale_at(type, panel, b, 0, r);
        const float second = panel_scales(type) == 2 ? scale_at(type, panel, b, 1, r) : first;
        const float upper = panel_halves(type) ? second : first;
        for (unsigned k = 0; k < 16; k++) row[k] = weight_of(type, codes[k], first, second);
        for (unsigned k = 16; k < 32; k++) row[k] = weight_of(type, codes[k], upper, second);
    }
}

static inline void unpack_floats(enum tensor_type type, const uint8_t *panel, unsigned r, uint32_t K, float *row)
{
    for (uint32_t k = 0; k < K; k++) row[k] = float_at(type, panel, k, r);
}

void matmul_unpack_row(const struct matrix *matrix, uint32_t n, float *row)
{
    const unsigned r = n % MATMUL_PANEL_ROWS;
    const uint8_t *panel = matrix->data + n / MATMUL_PANEL_ROWS * matrix->panel_bytes;
    const uint32_t blocks = matrix->K / PANEL_BLOCK;
    CHECK(n < matrix->N);
    switch (matrix->type) { /* constants, so that the loops above lose their branches */
    case TENSOR_Q4_0: unpack_blocks(TENSOR_Q4_0, panel, r, blocks, row); break;
    case TENSOR_Q4_1: unpack_blocks(TENSOR_Q4_1, panel, r, blocks, row); break;
    case TENSOR_Q5_0: unpack_blocks(TENSOR_Q5_0, panel, r, blocks, row); break;
    case TENSOR_Q5_1: unpack_blocks(TENSOR_Q5_1, panel, r, blocks, row); break;
    case TENSOR_Q8_0: unpack_blocks(TENSOR_Q8_0, panel, r, blocks, row); break;
    case TENSOR_Q4_K: unpack_blocks(TENSOR_Q4_K, panel, r, blocks, row); break;
    case TENSOR_Q5_K: unpack_blocks(TENSOR_Q5_K, panel, r, blocks, row); break;
    case TENSOR_Q6_K: unpack_blocks(TENSOR_Q6_K, panel, r, blocks, row); break;
    case TENSOR_F32: unpack_floats(TENSOR_F32, panel, r, matrix->K, row); break;
    case TENSOR_F16: unpack_floats(TENSOR_F16, panel, r, matrix->K, row); break;
    case TENSOR_BF16: unpack_floats(TENSOR_BF16, panel, r, matrix->K, row); break;
    case TENSOR_F8: unpack_floats(TENSOR_F8, panel, r, matrix->K, row); break;
    }
}
