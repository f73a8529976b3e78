/* BF16 weights against activations rounded to BF16, in plain C: the order that every path has to give bit for bit, and
 * the scalar path. matmul_meaning (matmul_ref.c) is the meaning. */
#include "kernels/dequantize.h"
#include "kernels/matmul_panel.h"

#include <math.h>
#include <string.h>

#define NORMAL_MIN 0x1p-126f

static float flush(float x)
{
    return fabsf(x) < NORMAL_MIN ? copysignf(0, x) : x;
}

/* fma(a, b, c), denormals flushed, as matmul.h has it. b and c are not denormal.
 *
 * fmaf rounds results below 2^-126 at a fixed step of 2^-149, so it also gives 2^-126 for values that 24 bits at any
 * exponent would keep below it: those less than 2^-126 - 2^-151. Only the exact sum tells them apart. Double has it:
 * a * b has 16 bits and c is a multiple of 2^-149, so no sum that is below the mark rounds up to it. */
static float step(float a, float b, float c)
{
    const float sum = fmaf(a, b, c);
    if (fabsf(sum) != NORMAL_MIN) return flush(sum);
    return fabs((double)a * b + c) < 0x1p-126 - 0x1p-151 ? copysignf(0, sum) : sum;
}

bool matmul_round_scalar(const float *x, uint32_t K, uint8_t *tile, uint32_t R, uint32_t r)
{
    uint32_t bits_max = 0;
    for (uint32_t k0 = 0; k0 < K; k0 += PANEL_BLOCK, tile += (size_t)R * ACT_BF16_BYTES) {
        uint16_t rounded[PANEL_BLOCK] = {0};
        for (uint32_t k = k0; k < K && k < k0 + PANEL_BLOCK; k++) {
            uint32_t bits;
            memcpy(&bits, x + k, 4);
            bits &= 0x7fffffffu;
            bits_max = bits > bits_max ? bits : bits_max;
            rounded[k - k0] = f32_to_bf16(flush(x[k]));
        }
        memcpy(tile + (size_t)r * ACT_BF16_BYTES, rounded, sizeof rounded);
    }
    return bits_max < ACT_BF16_BAD;
}

/* Inputs [k0, k0 + k_count) of a panel: act is the block's activations. */
static void block(const struct matrix *matrix, const uint8_t *panel, uint32_t k0, uint32_t k_count, const uint8_t *act,
                  uint32_t R, float F[16][16])
{
    float weights[PANEL_BLOCK][16] = {{0}};
    panel_weights(matrix->type, panel, k0, k_count, weights);
    for (uint32_t k = 0; k < PANEL_BLOCK; k++)
        for (unsigned r = 0; r < 16; r++) weights[k][r] = flush(weights[k][r]);
    for (uint32_t m = 0; m < R; m++) {
        uint16_t x[PANEL_BLOCK];
        memcpy(x, act + (size_t)m * ACT_BF16_BYTES, sizeof x);
        for (uint32_t k = 0; k < k_count; k += 2) {
            const float even = bf16_to_f32(x[k]), odd = bf16_to_f32(x[k + 1]);
            for (unsigned r = 0; r < 16; r++)
                F[m][r] = step(even, weights[k][r], step(odd, weights[k + 1][r], F[m][r]));
        }
    }
}

void matmul_tile_bf16_scalar(const struct matrix *matrix, const uint8_t *panel, uint32_t panels, const uint8_t *act,
                             uint32_t R, float *out, size_t stride_m)
{
    for (uint32_t p = 0; p < panels; p++, panel += matrix->panel_bytes, out += 16) {
        float F[16][16] = {{0}};
        for (uint32_t k0 = 0; k0 < matrix->K; k0 += PANEL_BLOCK) {
            const uint32_t k_count = matrix->K - k0 < PANEL_BLOCK ? matrix->K - k0 : PANEL_BLOCK;
            block(matrix, panel, k0, k_count, act + (size_t)k0 / PANEL_BLOCK * R * ACT_BF16_BYTES, R, F);
        }
        for (uint32_t m = 0; m < R; m++) memcpy(out + m * stride_m, F[m], sizeof F[m]);
    }
}
