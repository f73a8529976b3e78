/* The matmul in plain C: its meaning, in double, and the order of sums that every path has to give bit for bit. The
 * second is also the scalar path, for CPUs without the others; fmaf rounds once with or without an FMA unit. */
#include "kernels/matmul_panel.h"

#include <math.h>
#include <string.h>

void matmul_meaning(const struct matrix *matrix, const float *x, size_t stride_m, uint32_t M, double *out)
{
    float weights[32][16];
    for (size_t i = 0; i < (size_t)M * matrix->N; i++) out[i] = 0;
    for (uint32_t p = 0; p < matrix->panels; p++) {
        for (uint32_t k0 = 0; k0 < matrix->K; k0 += 32) {
            const uint32_t k_count = matrix->K - k0 < 32 ? matrix->K - k0 : 32;
            panel_weights(matrix->type, matrix->data + p * matrix->panel_bytes, k0, k_count, weights);
            for (uint32_t m = 0; m < M; m++)
                for (uint32_t r = 0; r < 16 && 16 * p + r < matrix->N; r++)
                    for (uint32_t k = 0; k < k_count; k++)
                        out[(size_t)m * matrix->N + 16 * p + r] += (double)x[m * stride_m + k0 + k] * weights[k][r];
        }
    }
}

/* False, with some of the row written, at a NaN or an infinity. */
static bool quantise_row(enum act_kind kind, const float *x, uint32_t K, uint32_t blocks, uint8_t *tile, uint32_t R,
                         uint32_t r)
{
    const int zero_point = act_zero_point(kind);
    for (uint32_t b = 0; b < blocks; b++, tile += (size_t)R * ACT_BLOCK_BYTES) {
        const uint32_t k0 = b * PANEL_BLOCK, n = K <= k0 ? 0 : K - k0 < PANEL_BLOCK ? K - k0 : PANEL_BLOCK;
        uint32_t bits_max = 0;
        for (uint32_t k = 0; k < n; k++) {
            uint32_t bits;
            memcpy(&bits, x + k0 + k, 4);
            bits &= 0x7fffffffu;
            bits_max = bits > bits_max ? bits : bits_max;
        }
        if (bits_max >= 0x7f800000u) return false;
        float amax;
        memcpy(&amax, &bits_max, 4);
        const bool live = amax >= ACT_AMAX_MIN;
        const float inverse = live ? 127.0f / amax : 0.0f, da = live ? amax / 127.0f : 0.0f;
        int8_t q[32] = {0};
        int32_t sum[2] = {0, 0};
        for (uint32_t k = 0; k < n; k++) {
            q[k] = (int8_t)lrintf(x[k0 + k] * inverse);
            sum[k / 16] += q[k];
        }
        const int32_t init[2] = {-zero_point * (kind == ACT_Q8_ZP32 ? sum[0] : sum[0] + sum[1]), -zero_point * sum[1]};
        const float das = da * (float)(sum[0] + sum[1]);
        memcpy(tile + (size_t)r * 32, q, 32);
        memcpy(tile + (size_t)R * 32 + r * 4, &init[0], 4);
        memcpy(tile + (size_t)R * 36 + r * 4, &da, 4);
        memcpy(tile + (size_t)R * 40 + r * 4, kind == ACT_Q8_ZP32 ? (const void *)&init[1] : (const void *)&das, 4);
    }
    return true;
}

uint32_t matmul_quantise_scalar(enum act_kind kind, const float *x, size_t stride_m, uint32_t K, uint32_t blocks,
                                uint8_t *tile, uint32_t R, uint32_t r_begin, uint32_t r_end)
{
    uint32_t bad_rows = 0;
    for (uint32_t r = r_begin; r < r_end; r++, x += stride_m)
        if (!quantise_row(kind, x, K, blocks, tile, R, r)) bad_rows |= UINT32_C(1) << r;
    return bad_rows;
}

/* Sums of code * activation over inputs [k_begin, k_end) of a block, for the 16 rows of the panel. */
static void dot(const uint8_t codes[32][16], const int8_t *q, unsigned k_begin, unsigned k_end, int32_t S[16])
{
    for (unsigned k = k_begin; k < k_end; k++)
        for (unsigned r = 0; r < 16; r++) S[r] += codes[k][r] * q[k];
}

/* One block against the tile's rows: the definition of the fast order. */
static void block(enum tensor_type type, const uint8_t *panel, uint32_t b, const uint8_t *act, uint32_t R,
                  float F[16][16])
{
    uint8_t codes[32][16];
    float scale[2][16];
    panel_codes(type, panel, b, codes);
    for (unsigned s = 0; s < panel_scales(type); s++) panel_scale(type, panel, b, s, scale[s]);
    for (uint32_t m = 0; m < R; m++) {
        int8_t q[32];
        int32_t init[2], S[16], S1[16];
        float da, das;
        memcpy(q, act + (size_t)m * 32, 32);
        memcpy(&init[0], act + (size_t)R * 32 + m * 4, 4);
        memcpy(&da, act + (size_t)R * 36 + m * 4, 4);
        memcpy(&das, act + (size_t)R * 40 + m * 4, 4);
        memcpy(&init[1], act + (size_t)R * 40 + m * 4, 4);
        for (unsigned r = 0; r < 16; r++) S[r] = init[0], S1[r] = init[1];
        if (panel_halves(type)) {
            dot(codes, q, 0, 16, S);
            dot(codes, q, 16, 32, S1);
            for (unsigned r = 0; r < 16; r++) {
                const float G = fmaf((float)S1[r], scale[1][r], (float)S[r] * scale[0][r]);
                F[m][r] = fmaf(G, da, F[m][r]);
            }
            continue;
        }
        dot(codes, q, 0, 32, S);
        for (unsigned r = 0; r < 16; r++) F[m][r] = fmaf((float)S[r], scale[0][r] * da, F[m][r]);
        if (panel_has_min(type))
            for (unsigned r = 0; r < 16; r++) F[m][r] = fmaf(scale[1][r], das, F[m][r]);
    }
}

/* f32 activations: the definition of the exact order. */
static void panel_f32(const struct matrix *matrix, const uint8_t *panel, const uint8_t *act, uint32_t R,
                      float F[16][16])
{
    float weights[32][16];
    for (uint32_t k0 = 0; k0 < matrix->K; k0 += 32) {
        const uint32_t k_count = matrix->K - k0 < 32 ? matrix->K - k0 : 32;
        panel_weights(matrix->type, panel, k0, k_count, weights);
        for (uint32_t k = 0; k < k_count; k++)
            for (uint32_t m = 0; m < R; m++) {
                float x;
                memcpy(&x, act + ((size_t)(k0 + k) * R + m) * 4, 4);
                for (unsigned r = 0; r < 16; r++) F[m][r] = fmaf(x, weights[k][r], F[m][r]);
            }
    }
}

void matmul_tile_scalar(const struct matrix *matrix, const uint8_t *panel, uint32_t panels, const uint8_t *act,
                        uint32_t R, float *out, size_t stride_m)
{
    for (uint32_t p = 0; p < panels; p++, panel += matrix->panel_bytes, out += 16) {
        float F[16][16] = {{0}};
        if (matrix->act == ACT_F32)
            panel_f32(matrix, panel, act, R, F);
        else
            for (uint32_t b = 0; b < 2 * panel_groups(matrix->K); b++)
                block(matrix->type, panel, b, act + (size_t)b * R * ACT_BLOCK_BYTES, R, F);
        for (uint32_t m = 0; m < R; m++) memcpy(out + m * stride_m, F[m], sizeof F[m]);
    }
}
