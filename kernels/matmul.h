/* out[m][n] = sum_k x[m][k] * W[n][k] with packed weights: the operation that takes nearly all of a step.
 *
 * M tokens, N outputs, K inputs. Three parts, so that each is done once and by any number of threads:
 *
 *   pack      rows of the file, once at load, to panels of 16 output rows (layout in matmul_pack.c): moves bits only
 *   prepare   activations of a phase, once for all matrices of the same act kind: int8 per 32 with scale and sums,
 *             BF16, or f32
 *   multiply  a range of panels against up to any number of rows
 *
 * Bits of out[m][n] depend on x[m], W[n] and the numerics alone: not on M, the place of the row, the panel range, the
 * threads or the path (C12-C14). Order of each output, in f32:
 *   fast   F = 0; for each block of 32 inputs, rising: F = fma((float)S, d * da, F), then for types with a minimum
 *          F = fma(m, das, F); S the exact int32 sum of (code - zero point) * q over the block, q = x * (127 / amax) to
 *          nearest even, da = amax / 127, das = da * sum of q (a block with amax < 2^-120 counts as zeros). d and m as
 *          dequantize_row rounds them: for K-quants the f32 products of the block's scales. Q6_K has a d for each 16
 *          inputs: F = fma(fma(S1, d1, S0 * d0), da, F). K counts as padded with zeros to 64
 *   fast, BF16 weights
 *          F = 0; for each pair of inputs, rising: F = step(x[2j+1], w[2j+1], F), then F = step(x[2j], w[2j], F); x
 *          rounded to BF16 (nearest even), an odd K padded with a zero. step is fma to nearest even where a denormal
 *          operand counts as the zero of its sign, and so does a result that is denormal when rounded to 24 bits at any
 *          exponent: what vdpbf16ps does, or two FMAs under FTZ and DAZ
 *   fast, F8 weights
 *          F = 0; for each 128 inputs, rising: P the sum over the codes in the order of BF16 weights, then F = F + P *
 *          scale, product and sum rounded each
 *   exact, and fast with F32 or F16 weights
 *          F = 0; for each k, rising: F = fma(x[k], w[k], F); w[k] as dequantize_row gives it
 * Everything here is pure over caller-owned memory: no allocation, no globals, no threads. */
#ifndef KERNELS_MATMUL_H
#define KERNELS_MATMUL_H

#include "kernels/cpu_path.h"
#include "kernels/tensor_type.h"
#include "runtime/base/status.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { MATMUL_PANEL_ROWS = 16, MATMUL_TILE_ROWS = 16 };

/* The form in which activations enter. Matrices that share one share the prepared activations. */
enum act_kind {
    ACT_F32,      /* exact mode, and F32/F16 weights */
    ACT_BF16,     /* BF16 and F8 weights */
    ACT_Q8_MIN,   /* int8 per 32, scale, scale * sum: codes without zero point (Q4_1, Q5_1, Q4_K, Q5_K) */
    ACT_Q8_ZP8,   /* the same with -zp * sum as the accumulator's start: Q4_0 */
    ACT_Q8_ZP16,  /* Q5_0 */
    ACT_Q8_ZP32,  /* Q6_K */
    ACT_Q8_ZP128, /* Q8_0 */
    ACT_KIND_COUNT
};

/* A packed matrix. Plan fills everything but data. */
struct matrix {
    enum tensor_type type; /* of the file */
    enum numerics numerics;
    enum act_kind act;
    uint32_t N, K;
    uint32_t panels;    /* ceil(N / 16) */
    size_t panel_bytes; /* a multiple of 64 */
    uint8_t *data;      /* panels * panel_bytes, 64-byte aligned, owner: the device */
};

/* What a matrix of this type and shape needs. ST_INVAL: K is not whole blocks of the type, or N or K is 0. */
NODISCARD enum status matmul_plan(enum tensor_type type, enum numerics numerics, enum cpu_path path, uint32_t N,
                                  uint32_t K, struct matrix *matrix);

/* Packs panels [panel_begin, panel_end) of the file into matrix->data. source: row 16 * panel_begin and those after it,
 * in whole blocks. */
void matmul_pack(const struct matrix *matrix, const void *source, uint32_t panel_begin, uint32_t panel_end);

/* Row n of the packed matrix as f32 (K values), equal to dequantize_row of the file's row. Embedding look-up, tests. */
void matmul_unpack_row(const struct matrix *matrix, uint32_t n, float *row);

/* Bytes of prepared activations for M rows; a multiple of 64, the same whatever rows are prepared by whom. */
size_t matmul_act_bytes(enum act_kind kind, uint32_t M, uint32_t K);

/* Prepares rows [row_begin, row_end) of x (M, K; row stride stride_m values) into act (64-byte aligned). Different row
 * ranges may be prepared by different threads. Returns false when one of the rows holds a NaN or an infinity (for
 * ACT_BF16 also: a value that rounds to one); that row is prepared as zeros and other rows' are not touched. */
bool matmul_prepare(enum cpu_path path, enum act_kind kind, const float *x, size_t stride_m, uint32_t M, uint32_t K,
                    uint32_t row_begin, uint32_t row_end, void *act);

/* The same for inputs [k_begin, k_end) of rows [row_begin, row_end): x (row_end - row_begin, k_end - k_begin). k_begin
 * is a multiple of 32, k_end too unless it is K. Different ranges may be prepared by different threads; once all of a
 * row's are, it is as matmul_prepare makes it. Returns false when one of them holds a NaN or an infinity: that row's
 * inputs of the range are prepared as zeros. */
bool matmul_prepare_columns(enum cpu_path path, enum act_kind kind, const float *x, size_t stride_m, uint32_t M,
                            uint32_t K, uint32_t row_begin, uint32_t row_end, uint32_t k_begin, uint32_t k_end,
                            void *act);

/* Multiplies panels [panel_begin, panel_end): out[m * stride_m + n] for m < M and n in 16 * panel_begin .. min(16 *
 * panel_end, N). Reads and writes no other n. act: prepared for matrix->act with the same M and K. */
void matmul(enum cpu_path path, const struct matrix *matrix, uint32_t panel_begin, uint32_t panel_end, const void *act,
            uint32_t M, float *out, size_t stride_m);

/* The same with out[..] = out[..] + product. */
void matmul_add(enum cpu_path path, const struct matrix *matrix, uint32_t panel_begin, uint32_t panel_end,
                const void *act, uint32_t M, float *out, size_t stride_m);

/* One tile of the M rows: rows [row_begin, min(row_begin + 16, M)), row_begin a multiple of 16, against the panels. out
 * is that of row row_begin and output 16 * panel_begin. */
void matmul_tile(enum cpu_path path, const struct matrix *matrix, uint32_t panel_begin, uint32_t panel_end,
                 const void *act, uint32_t M, uint32_t row_begin, float *out, size_t stride_m);

#endif
