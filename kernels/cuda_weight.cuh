/* How the weights of a CUDA device lie (enum cuda_type), and the value of each: for the kernels that read them.
 *
 * BF16 and E4M3 are plain [N][K]; the scale of an E4M3 code is scales[k / scale_cols][row / scale_rows].
 * The Q types are cut into tiles of 16 rows and spans of 128 (Q4) or 64 (Q8) inputs. Of a (tile, span), a row is 64
 * bytes, which four lanes t of a warp read as 16 bytes each (matmul_tile.cuh):
 *
 *   Q4   word b (0..3) of lane t: the 8 inputs 32 b + 8 t ..; input 2j + i of them is nibble j + 4 i
 *   Q8   byte 8 b + 4 h + i of lane t: input 32 b + 16 h + 4 t + i, code + 128
 *
 * so that one mma lies within one block of 32 inputs (Q4) or 16 (Q8), and unpacks with few instructions. A block of 32
 * inputs of a row has one word of scales, [tile][span][16 rows][4 (Q4) or 2 (Q8) blocks]:
 *
 *   Q4_0   f16 scale, 0                     Q8_0   int8 scale of inputs 0..15, int8 of 16..31, f16 D
 *   _1     f16 scale, f16 minimum           _K     uint8 scale, uint8 minimum, f16: D in even blocks, DM in odd ones
 *
 * lowest bits first. K-quants multiply an f16 and a small integer: a product that no 16 bits hold, so both are kept, D
 * and DM once for two blocks: 20 bytes for 32 inputs of Q4_K, exactly. Rows beyond N and inputs beyond K of the last
 * tile and span are allocated; inputs beyond K are 0. */
#ifndef KERNELS_CUDA_WEIGHT_CUH
#define KERNELS_CUDA_WEIGHT_CUH

#include "kernels/cuda_ops.h"
#include "kernels/vec.cuh"

namespace kx
{

/* What a kernel must know of a weight besides its pointers. */
struct weight_shape {
    uint32_t type, N, K;
    uint32_t scale_rows, scale_cols, scale_stride; /* of E4M3: 0 = all; from a row of scales to the next */
};
inline weight_shape weight_shape_of(const struct cuda_weight &weight)
{
    const uint32_t rows = weight.scale_rows ? (weight.N + weight.scale_rows - 1) / weight.scale_rows : 1;
    return {(uint32_t)weight.type, weight.N, weight.K, weight.scale_rows, weight.scale_cols, rows};
}

__host__ __device__ __forceinline__ constexpr bool weight_is_q4(uint32_t type)
{
    return type >= CUDA_TYPE_Q4_0 && type <= CUDA_TYPE_Q4_K;
}
__host__ __device__ __forceinline__ constexpr bool weight_is_q8(uint32_t type)
{
    return type >= CUDA_TYPE_Q8_0 && type <= CUDA_TYPE_Q8_K;
}
/* Spans of a row; K is padded to 128 in both. */
__host__ __device__ __forceinline__ uint32_t weight_spans(uint32_t type, uint32_t K)
{
    return (K + 127) / 128 * (weight_is_q4(type) ? 1 : 2);
}
/* Index of a row's 64 bytes within the tiles; its words of scales begin at this times 4 (Q4) or 2 (Q8). */
__device__ __forceinline__ size_t weight_piece(uint32_t row, uint32_t span, uint32_t spans)
{
    return ((size_t)(row / 16) * spans + span) * 16 + row % 16;
}

/* Scale of both halves of a block of 32 inputs, and what is added. */
struct block_scale {
    float low, high, minimum;
};
/* word: of the block; pair: the words of the even block and the odd one beside it, for _K. */
template <bool Q8>
__device__ __forceinline__ block_scale weight_block_scale(uint32_t type, uint32_t word, uint32_t even, uint32_t odd)
{
    constexpr uint32_t K_TYPE = Q8 ? CUDA_TYPE_Q8_K : CUDA_TYPE_Q4_K;
    if (type == K_TYPE) {
        const float scale = f16_to_f32((uint16_t)(even >> 16)) * (float)(word & 255);
        return {scale, scale, -(f16_to_f32((uint16_t)(odd >> 16)) * (float)(word >> 8 & 255))};
    }
    if (Q8 && type == CUDA_TYPE_Q8_0) {
        const float d = f16_to_f32((uint16_t)(word >> 16));
        return {d * (float)(int8_t)(word & 255), d * (float)(int8_t)(word >> 8 & 255), 0.0f};
    }
    const float scale = f16_to_f32((uint16_t)word);
    return {scale, scale, f16_to_f32((uint16_t)(word >> 16))};
}

/* Does the type add a minimum? */
__host__ __device__ __forceinline__ constexpr bool weight_has_minimum(uint32_t type)
{
    return type != CUDA_TYPE_Q4_0 && type != CUDA_TYPE_Q8_0 && type >= CUDA_TYPE_Q4_0;
}

/* Four codes of E4M3 as BF16, exactly, NaN excepted (0x7f would become 480; repack.cu makes its scale NaN). */
__device__ __forceinline__ void e4m3x4_to_bf16(uint32_t codes, uint32_t &low, uint32_t &high)
{
    /* a code in the high byte of a half: its sign stays, the rest moves to BF16's place with the exponent 120 too low
     */
    const uint32_t a = __byte_perm(codes, 0, 0x1404), b = __byte_perm(codes, 0, 0x3424);
    low = bf16x2_mul((a & 0x80008000u) | (a >> 4 & 0x07f007f0u), 0x7b807b80u);
    high = bf16x2_mul((b & 0x80008000u) | (b >> 4 & 0x07f007f0u), 0x7b807b80u);
}

/* The values of inputs k .. k + 7 (k a multiple of 8, below K) of a row, as kernels/dequantize.h gives them. */
__device__ __forceinline__ void weight_values(const weight_shape &w, const void *codes, const void *scales,
                                              uint32_t row, uint32_t k, float (&value)[8])
{
    if (w.type == CUDA_TYPE_BF16) {
        bf16x8_unpack(load((const uint4 *)((const uint16_t *)codes + (size_t)row * w.K + k)), value);
        return;
    }
    if (w.type == CUDA_TYPE_E4M3) {
        const uint2 c = load((const uint2 *)((const uint8_t *)codes + (size_t)row * w.K + k));
        const size_t at = (w.scale_cols ? k / w.scale_cols : 0) * (size_t)w.scale_stride;
        const float scale = load((const float *)scales + at + (w.scale_rows ? row / w.scale_rows : 0));
        uint32_t p[4];
        e4m3x4_to_bf16(c.x, p[0], p[1]);
        e4m3x4_to_bf16(c.y, p[2], p[3]);
        bf16x8_unpack(make_uint4(p[0], p[1], p[2], p[3]), value);
        KX_UNROLL
        for (int i = 0; i < 8; i++) value[i] *= scale;
        return;
    }
    const bool q4 = weight_is_q4(w.type);
    const uint32_t span_inputs = q4 ? 128 : 64, spans = weight_spans(w.type, w.K), in_span = k % span_inputs;
    const size_t piece = weight_piece(row, k / span_inputs, spans);
    const uint32_t block = in_span / 32, words = q4 ? 4 : 2;
    const uint32_t *const word = (const uint32_t *)scales + piece * words + block;
    const uint32_t own = load(word), even = load(word - (block & 1)), odd = load(word - (block & 1) + 1);
    const uint32_t *const code = (const uint32_t *)codes + piece * 16;
    if (q4) {
        const block_scale s = weight_block_scale<false>(w.type, own, even, odd);
        const uint32_t c = load(code + in_span % 32 / 8 * 4 + block), less = w.type == CUDA_TYPE_Q4_0 ? 8 : 0;
        KX_UNROLL
        for (uint32_t i = 0; i < 8; i++)
            value[i] = __fadd_rn(s.low * (float)(int)((c >> (i / 2 + i % 2 * 4) * 4 & 15) - less), s.minimum);
        return;
    }
    const block_scale s = weight_block_scale<true>(w.type, own, even, odd);
    const uint32_t half = in_span % 32 / 16, lane = in_span % 16 / 4;
    const float scale = half ? s.high : s.low;
    KX_UNROLL
    for (uint32_t i = 0; i < 8; i++) {
        const uint32_t c = load(code + (lane + i / 4) * 4 + block * 2 + half);
        value[i] = __fadd_rn(scale * (float)((int)(c >> i % 4 * 8 & 255) - 128), s.minimum);
    }
}

} // namespace kx
#endif
