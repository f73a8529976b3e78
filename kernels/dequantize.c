/* Blocks of every weight format to f32, one plain function a format; see dequantize.h for the order of roundings.
 *
 * A format is a function over one block, and dequantize_row walks the row: the branch on the type is taken once a row.
 * Nothing here is tuned: devices pack weights once, and the embedding of a token is one row. Source of the layouts:
 * ggml's block definitions and gguf-py's quants.py, read for the formats. */
#include "kernels/dequantize.h"

#include "runtime/base/check.h"

#include <string.h>

static inline uint32_t bits_of_f32(float x)
{
    uint32_t u;
    memcpy(&u, &x, sizeof u);
    return u;
}

static inline float f32_of_bits(uint32_t u)
{
    float x;
    memcpy(&x, &u, sizeof x);
    return x;
}

float f16_to_f32(uint16_t h)
{
    uint32_t sign = (uint32_t)(h & 0x8000) << 16, exponent = h >> 10 & 31, fraction = h & 0x3ff;
    if (exponent == 31) return f32_of_bits(sign | 0x7f800000 | (fraction ? 0x400000 | fraction << 13 : 0)); /* quiet */
    if (exponent == 0) {
        float magnitude = (float)fraction * 0x1p-24f; /* exact: 10 bits, and 2^-24 is a normal float */
        return f32_of_bits(sign | bits_of_f32(magnitude));
    }
    return f32_of_bits(sign | (exponent + 112) << 23 | fraction << 13);
}

uint16_t f32_to_f16(float x)
{
    uint32_t u = bits_of_f32(x), sign = u >> 16 & 0x8000, a = u & 0x7fffffff;
    if (a > 0x7f800000) return (uint16_t)(sign | 0x7e00 | (a >> 13 & 0x3ff));
    if (a >= 0x477ff000) return (uint16_t)(sign | 0x7c00); /* 65520 is halfway between the largest half and 2^16 */
    if (a < 0x38800000) { /* below 2^-14: 0.5f + |x| rounds at 2^-24, a half's last place */
        float shifted = f32_of_bits(a) + 0.5f;
        return (uint16_t)(sign | (bits_of_f32(shifted) - 0x3f000000));
    }
    a += 0xfff + (a >> 13 & 1); /* nearest, ties to even; a carry moves into the exponent, as it should */
    return (uint16_t)(sign | (a - 0x38000000) >> 13);
}

float f8_to_f32(uint8_t code)
{
    uint32_t sign = (uint32_t)(code & 0x80) << 24, magnitude = code & 0x7f;
    if (magnitude == 0x7f) return f32_of_bits(sign | 0x7fc00000);
    return f32_of_bits(sign | bits_of_f32(f32_of_bits(magnitude << 20) * 0x1p120f)); /* exact, denormals too */
}

uint16_t f32_to_bf16(float x)
{
    uint32_t u = bits_of_f32(x);
    if ((u & 0x7fffffff) > 0x7f800000) return (uint16_t)(u >> 16 | 0x40);
    return (uint16_t)((u + 0x7fff + (u >> 16 & 1)) >> 16);
}

static inline float read_f16(const uint8_t *p)
{
    return f16_to_f32((uint16_t)(p[0] | p[1] << 8));
}

static inline uint32_t read_u32(const uint8_t *p)
{
    return (uint32_t)p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24;
}

static void block_q4_0(const uint8_t *b, float *x) /* d | 16 bytes of codes: low nibbles 0..15, high 16..31 */
{
    float d = read_f16(b);
    for (int i = 0; i < 16; i++) {
        x[i] = d * (float)((b[2 + i] & 15) - 8);
        x[i + 16] = d * (float)((b[2 + i] >> 4) - 8);
    }
}

static void block_q4_1(const uint8_t *b, float *x) /* d m | 16 */
{
    float d = read_f16(b), m = read_f16(b + 2);
    for (int i = 0; i < 16; i++) {
        x[i] = d * (float)(b[4 + i] & 15) + m;
        x[i + 16] = d * (float)(b[4 + i] >> 4) + m;
    }
}

static void block_q5_0(const uint8_t *b, float *x) /* d | fifth bits, bit i of value i | 16 */
{
    float d = read_f16(b);
    uint32_t high = read_u32(b + 2);
    for (int i = 0; i < 16; i++) {
        int low = (b[6 + i] & 15) | (int)(high >> i & 1) << 4, up = b[6 + i] >> 4 | (int)(high >> (i + 16) & 1) << 4;
        x[i] = d * (float)(low - 16);
        x[i + 16] = d * (float)(up - 16);
    }
}

static void block_q5_1(const uint8_t *b, float *x) /* d m | fifth bits | 16 */
{
    float d = read_f16(b), m = read_f16(b + 2);
    uint32_t high = read_u32(b + 4);
    for (int i = 0; i < 16; i++) {
        int low = (b[8 + i] & 15) | (int)(high >> i & 1) << 4, up = b[8 + i] >> 4 | (int)(high >> (i + 16) & 1) << 4;
        x[i] = d * (float)low + m;
        x[i + 16] = d * (float)up + m;
    }
}

static void block_q8_0(const uint8_t *b, float *x) /* d | 32 signed bytes */
{
    float d = read_f16(b);
    for (int i = 0; i < 32; i++) x[i] = (float)(int8_t)b[2 + i] * d;
}

/* Q4_K and Q5_K: eight groups of 32, each with a 6-bit scale and a 6-bit minimum packed in 12 bytes s. Bytes 0-3 hold
 * the scales of groups 0-3 and bytes 4-7 their minima in the low six bits; bytes 8-11 the low nibbles of scales and
 * minima of groups 4-7, whose high two bits are the high two bits of bytes 0-7. */
static void group_scale_min(const uint8_t *s, int group, int *scale, int *min)
{
    if (group < 4) {
        *scale = s[group] & 63;
        *min = s[group + 4] & 63;
    } else {
        *scale = (s[group + 4] & 15) | (s[group - 4] >> 6) << 4;
        *min = s[group + 4] >> 4 | (s[group] >> 6) << 4;
    }
}

static void block_q4_k(const uint8_t *b, float *x) /* d dmin | 12 | 128: 32 bytes hold two groups, low nibbles first */
{
    float d = read_f16(b), dmin = read_f16(b + 2);
    for (int group = 0; group < 8; group++) {
        int scale, min, shift = group % 2 * 4;
        group_scale_min(b + 4, group, &scale, &min);
        float step = d * (float)scale, base = dmin * (float)min;
        const uint8_t *codes = b + 16 + group / 2 * 32;
        for (int i = 0; i < 32; i++) x[group * 32 + i] = step * (float)(codes[i] >> shift & 15) - base;
    }
}

static void block_q5_k(const uint8_t *b, float *x) /* d dmin | 12 | 32: bit g of byte i is the fifth of (g, i) | 128 */
{
    float d = read_f16(b), dmin = read_f16(b + 2);
    for (int group = 0; group < 8; group++) {
        int scale, min, shift = group % 2 * 4;
        group_scale_min(b + 4, group, &scale, &min);
        float step = d * (float)scale, base = dmin * (float)min;
        const uint8_t *high = b + 16, *codes = b + 48 + group / 2 * 32;
        for (int i = 0; i < 32; i++) {
            int code = (codes[i] >> shift & 15) | (high[i] >> group & 1) << 4;
            x[group * 32 + i] = step * (float)code - base;
        }
    }
}

/* 128 low nibbles | 64 high pairs | 16 signed scales | d. Half h of the block: value 64 s + j has its nibble in byte
 * 64 h + j, shifted by 4 s; value 32 t + i has its pair in byte 32 h + i, shifted by 2 t. */
static void block_q6_k(const uint8_t *b, float *x)
{
    float d = read_f16(b + 208);
    for (int i = 0; i < 256; i++) {
        int half = i / 128, j = i % 128;
        int low = b[64 * half + j % 64] >> (j / 64 * 4) & 15;
        int high = b[128 + 32 * half + j % 32] >> (j / 32 * 2) & 3;
        float step = d * (float)(int8_t)b[192 + i / 16];
        x[i] = step * (float)((low | high << 4) - 32);
    }
}

static void block_f8(const uint8_t *b, float *x)
{
    float scale;
    memcpy(&scale, b, sizeof scale);
    for (int i = 0; i < 128; i++) x[i] = f8_to_f32(b[4 + i]) * scale;
}

static void rows_f16(const uint8_t *b, float *x, size_t K)
{
    for (size_t i = 0; i < K; i++) x[i] = read_f16(b + 2 * i);
}

static void rows_bf16(const uint8_t *b, float *x, size_t K)
{
    for (size_t i = 0; i < K; i++) x[i] = bf16_to_f32((uint16_t)(b[2 * i] | b[2 * i + 1] << 8));
}

void dequantize_row(enum tensor_type type, const void *source, float *target, size_t K)
{
    const struct tensor_type_info *info = tensor_type_info(type);
    CHECK(info != NULL);
    CHECK_EQ(K % info->block_items, 0);
    void (*block)(const uint8_t *, float *) = NULL;
    switch (type) {
    case TENSOR_F32: memcpy(target, source, K * sizeof *target); return;
    case TENSOR_F16: rows_f16(source, target, K); return;
    case TENSOR_BF16: rows_bf16(source, target, K); return;
    case TENSOR_Q4_0: block = block_q4_0; break;
    case TENSOR_Q4_1: block = block_q4_1; break;
    case TENSOR_Q5_0: block = block_q5_0; break;
    case TENSOR_Q5_1: block = block_q5_1; break;
    case TENSOR_Q8_0: block = block_q8_0; break;
    case TENSOR_Q4_K: block = block_q4_k; break;
    case TENSOR_Q5_K: block = block_q5_k; break;
    case TENSOR_Q6_K: block = block_q6_k; break;
    case TENSOR_F8: block = block_f8; break;
    }
    CHECK(block != NULL);
    const uint8_t *bytes = source;
    for (size_t k = 0; k < K; k += info->block_items, bytes += info->block_bytes) block(bytes, target + k);
}
