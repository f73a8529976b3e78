/* Embeddings of a step's tokens: cuda_embed of cuda_ops.h. A block a token, four values a thread at a time, so that
 * reads and the f32 writes are whole sectors.
 *
 * A token may be an id that the step before has chosen: it is read here, on the device, which is why the host need not
 * wait for it. An id that is not in this table gives zeros: another rank's row, or what a failed row left behind. */
#include "kernels/cuda_ops.h"
#include "kernels/vec.cuh"

constexpr uint32_t EMBED_THREADS = 256;

struct embed_shape {
    uint32_t N, E, vocab_first, scale_rows, scale_cols;
    float scale;
};

template <cuda_type TYPE>
__device__ __forceinline__ float4 embed_values(const void *codes, const float *scales, const embed_shape &s,
                                               uint32_t row, uint32_t group)
{
    const size_t at = (size_t)row * (s.E / 4) + group;
    if (TYPE == CUDA_TYPE_BF16) {
        const uint2 bits = kx::load((const uint2 *)codes + at);
        const float2 low = kx::bf16x2_unpack(bits.x), high = kx::bf16x2_unpack(bits.y);
        return make_float4(low.x, low.y, high.x, high.y);
    }
    float v[4];
    kx::e4m3x4_unpack(kx::load((const uint32_t *)codes + at), v);
    const uint32_t cols = s.scale_cols ? (s.E + s.scale_cols - 1) / s.scale_cols : 1;
    const uint32_t scale_row = s.scale_rows ? row / s.scale_rows : 0;
    const uint32_t scale_col = s.scale_cols ? group * 4 / s.scale_cols : 0; /* scale_cols is a multiple of 4 */
    const float k = kx::load(scales + (size_t)scale_row * cols + scale_col);
    return make_float4(v[0] * k, v[1] * k, v[2] * k, v[3] * k);
}

template <cuda_type TYPE>
__global__ void __launch_bounds__(EMBED_THREADS)
    embed(float *x, uint32_t *bad, const void *codes, const float *scales, const cuda_step_header *header,
          const uint32_t *tokens, const uint32_t *previous, embed_shape s)
{
    const uint32_t m = blockIdx.x;
    if (m >= kx::load(&header->tokens)) return;
    uint32_t id = kx::load(tokens + m);
    if (id & CUDA_TOKEN_OF_ROW) id = previous ? kx::load(previous + (id & ~CUDA_TOKEN_OF_ROW)) : UINT32_MAX;
    const bool here = id >= s.vocab_first && id - s.vocab_first < s.N;
    for (uint32_t group = threadIdx.x; group < s.E / 4; group += blockDim.x) {
        float4 v = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
        if (here) {
            v = embed_values<TYPE>(codes, scales, s, id - s.vocab_first, group);
            v = make_float4(v.x * s.scale, v.y * s.scale, v.z * s.scale, v.w * s.scale);
        }
        kx::store((float4 *)(x + (size_t)m * s.E) + group, v);
    }
    if (threadIdx.x == 0) kx::store(bad + m, 0u);
}

/* Grid: a block a token of the launch. */
extern "C" cudaError_t cuda_embed(const struct cuda_embedding *embedding, const struct cuda_step *step, uint32_t M,
                                  cudaStream_t stream)
{
    const struct cuda_weight *table = embedding->table;
    const uint32_t E = table->K;
    if (E == 0 || E % 4 || table->scale_cols % 4) return cudaErrorInvalidValue;
    if (M == 0) return cudaSuccess;
    if (table->type != CUDA_TYPE_BF16 && table->type != CUDA_TYPE_E4M3) return cudaErrorInvalidValue;
    const embed_shape shape = {table->N,        E, embedding->vocab_first, table->scale_rows, table->scale_cols,
                               embedding->scale};
    const uint32_t threads = E / 4 < EMBED_THREADS ? (E / 4 + 31) / 32 * 32 : EMBED_THREADS;
    return kx::launch(table->type == CUDA_TYPE_BF16 ? embed<CUDA_TYPE_BF16> : embed<CUDA_TYPE_E4M3>, M, threads, 0,
                      stream, embedding->x, embedding->bad, table->codes, (const float *)table->scales, step->header,
                      step->tokens, embedding->previous, shape);
}
