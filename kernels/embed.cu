/* Embeddings of a step's tokens: cuda_embed of cuda_ops.h. A block a token. BF16 rows: four values a thread at a time,
 * so that reads and the f32 writes are whole sectors; other types: eight (cuda_weight.cuh).
 *
 * A token may be an id that the step before has chosen: it is read here, on the device, which is why the host need not
 * wait for it. An id that is not in this table gives zeros: another rank's row, or what a failed row left behind. */
#include "kernels/cuda_ops.h"
#include "kernels/cuda_weight.cuh"
#include "kernels/vec.cuh"

constexpr uint32_t EMBED_THREADS = 256;

struct embed_shape {
    kx::weight_shape table;
    uint32_t vocab_first;
    float scale;
};

__device__ __forceinline__ float4 embed_scaled(float4 v, float k)
{
    return make_float4(v.x * k, v.y * k, v.z * k, v.w * k);
}

/* x (E) = row of the table * scale, by a block. */
template <bool BF16>
__device__ __forceinline__ void embed_row(float4 *x, const void *codes, const void *scales, uint32_t row,
                                          const embed_shape &s)
{
    const uint32_t E = s.table.K;
    if constexpr (BF16) {
        const uint2 *source = (const uint2 *)((const uint16_t *)codes + (size_t)row * E);
        for (uint32_t group = threadIdx.x; group < E / 4; group += blockDim.x) {
            const uint2 bits = kx::load(source + group);
            const float2 low = kx::bf16x2_unpack(bits.x), high = kx::bf16x2_unpack(bits.y);
            kx::store(x + group, embed_scaled(make_float4(low.x, low.y, high.x, high.y), s.scale));
        }
    } else {
        for (uint32_t group = threadIdx.x; group < E / 8; group += blockDim.x) {
            float v[8];
            kx::weight_values(s.table, codes, scales, row, group * 8, v);
            kx::store(x + 2 * group, embed_scaled(make_float4(v[0], v[1], v[2], v[3]), s.scale));
            kx::store(x + 2 * group + 1, embed_scaled(make_float4(v[4], v[5], v[6], v[7]), s.scale));
        }
    }
}

template <bool BF16>
__global__ void __launch_bounds__(EMBED_THREADS)
    embed(float *x, uint32_t *bad, const void *codes, const void *scales, const cuda_step_header *header,
          const uint32_t *tokens, const uint32_t *previous, embed_shape s)
{
    const uint32_t m = blockIdx.x, E = s.table.K;
    if (m >= kx::load(&header->tokens)) return;
    uint32_t id = kx::load(tokens + m);
    if (id & CUDA_TOKEN_OF_ROW) id = previous ? kx::load(previous + (id & ~CUDA_TOKEN_OF_ROW)) : UINT32_MAX;
    float4 *target = (float4 *)(x + (size_t)m * E);
    if (id - s.vocab_first < s.table.N) { /* wraps for ids below */
        embed_row<BF16>(target, codes, scales, id - s.vocab_first, s);
    } else {
        for (uint32_t group = threadIdx.x; group < E / 4; group += blockDim.x)
            kx::store(target + group, make_float4(0.0f, 0.0f, 0.0f, 0.0f));
    }
    if (threadIdx.x == 0) kx::store(bad + m, 0u);
}

/* Grid: a block a token of the launch. */
extern "C" cudaError_t cuda_embed(const struct cuda_embedding *embedding, const struct cuda_step *step, uint32_t M,
                                  cudaStream_t stream)
{
    const struct cuda_weight *table = embedding->table;
    const uint32_t E = table->K;
    const bool bf16 = table->type == CUDA_TYPE_BF16;
    if (E == 0 || E % 8) return cudaErrorInvalidValue;
    if (M == 0) return cudaSuccess;
    const embed_shape shape = {kx::weight_shape_of(*table), embedding->vocab_first, embedding->scale};
    const uint32_t groups = E / (bf16 ? 4 : 8),
                   threads = groups < EMBED_THREADS ? (groups + 31) / 32 * 32 : EMBED_THREADS;
    return kx::launch(bf16 ? embed<true> : embed<false>, M, threads, 0, stream, embedding->x, embedding->bad,
                      table->codes, table->scales, step->header, step->tokens, embedding->previous, shape);
}
