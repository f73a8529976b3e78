/* Matmuls of few tokens: the time is that of reading the weight, so every SM reads an equal part of it, once.
 *
 * The chunks of a weight (128 rows x 128 inputs, row groups outermost) are dealt evenly to a fixed number of blocks, in
 * order. A block walks its run with matmul_tile.cuh. A row group that several blocks share is summed in scratch:
 *
 *   blocks   |---- 0 ----|---- 1 ----|---- 2 ----|        each writes its f32 sums to a slot of its own (two a block:
 *   groups   |-- a --|------ b ------|-- c --|-- d         the group it goes on with, the group it begins), and takes
 *                        ^ 0, 1 share b                    a ticket; who takes the last one adds the slots in rising
 * order
 *
 * Cuts depend on N, K, type and the number of SMs alone, so a row's bits depend neither on M nor on its neighbours. A
 * ticket belongs to the block that begins the group, so that all weights use the same few words; the last block leaves
 * it at zero for the next launch. */
#include "kernels/matmul_tile.cuh"

namespace
{
using namespace kx;

constexpr uint32_t SLOT_TOKENS = 64;

/* Where a block's sums of a group lie: sums of a thread 16 bytes at a time, thread innermost. */
template <int NT> __device__ __forceinline__ float4 *slot_of(float4 *slots, uint32_t block, uint32_t first)
{
    return slots + (size_t)(2 * block + (block == first ? 1 : 0)) * 2 * NT * MATMUL_THREADS + threadIdx.x;
}

/* Adds the block's sums to those of others that share the group. True in the last of them, with the whole in sums. */
template <int NT>
__device__ __forceinline__ bool merge(float4 *slots, uint32_t *tickets, uint32_t first, uint32_t last,
                                      matmul_sums<NT> &sums)
{
    KX_SHARED(uint32_t, is_last);
    float4 *const mine = slot_of<NT>(slots, blockIdx.x, first);
    KX_UNROLL
    for (int i = 0; i < 2 * NT; i++) {
        const float(&s)[4] = sums[i / NT][i % NT];
        store(mine + i * MATMUL_THREADS, make_float4(s[0], s[1], s[2], s[3]));
    }
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) {
        is_last = atomicAdd(tickets + first, 1u) == last - first;
        __threadfence(); /* by the thread that saw the ticket, before the barrier that tells the others */
    }
    __syncthreads();
    if (!is_last) return false;
    if (threadIdx.x == 0) tickets[first] = 0;
    for (uint32_t block = first; block <= last; block++) {
        const float4 *const from = slot_of<NT>(slots, block, first);
        KX_UNROLL
        for (int i = 0; i < 2 * NT; i++) {
            const float4 v = __ldcg(from + i * MATMUL_THREADS);
            float(&s)[4] = sums[i / NT][i % NT];
            s[0] = block == first ? v.x : s[0] + v.x;
            s[1] = block == first ? v.y : s[1] + v.y;
            s[2] = block == first ? v.z : s[2] + v.z;
            s[3] = block == first ? v.w : s[3] + v.w;
        }
    }
    return true;
}

template <class F, int NT>
__global__ void __launch_bounds__(MATMUL_THREADS, 2)
    matmul_skinny(void *y, const uint16_t *x, const uint8_t *codes, const void *scales, const uint16_t *bias,
                  uint32_t *tickets, float4 *slots, weight_shape w, matmul_slicing slices, matmul_output out,
                  uint32_t M)
{
    const matmul_operands o = {x, codes, scales, w, M, 0};
    const uint32_t begin = matmul_begin(slices, blockIdx.x), end = matmul_begin(slices, blockIdx.x + 1);
    matmul_sums<NT> sums = {};
    matmul_run<F, NT>(o, slices.chunks, begin, end, sums, [&](uint32_t unit) {
        const uint32_t group = unit / slices.chunks, group_end = (group + 1) * slices.chunks;
        if (unit + 1 != group_end && unit + 1 != end) return;
        const uint32_t first = matmul_block_of(slices, group * slices.chunks);
        const uint32_t last = matmul_block_of(slices, group_end - 1);
        if (first == last || merge<NT>(slots, tickets, first, last, sums))
            matmul_finish<NT>(o, group, sums, bias, y, out);
        KX_UNROLL
        for (int i = 0; i < 8 * NT; i++) sums[i / (4 * NT)][i / 4 % NT][i % 4] = 0.0f;
    });
}

size_t ticket_bytes(uint32_t sms)
{
    return ((size_t)2 * sms * sizeof(uint32_t) + 255) / 256 * 256;
}

template <class F, int NT> cudaError_t go(const struct cuda_matmul &m, uint32_t M, uint32_t sms, cudaStream_t stream)
{
    const weight_shape w = weight_shape_of(*m.weight);
    const matmul_slicing slices = matmul_slices(w, sms);
    const uint32_t width = m.weight->alternating ? w.N / 2 : w.N;
    const matmul_output out = {m.y_stride ? m.y_stride : width, m.y_f32, m.gelu, m.weight->alternating};
    return launch(matmul_skinny<F, NT>, slices.blocks, MATMUL_THREADS, matmul_plan<F, NT>::bytes(), stream, m.y, m.x,
                  (const uint8_t *)m.weight->codes, m.weight->scales, m.weight->bias, (uint32_t *)m.scratch,
                  (float4 *)((uint8_t *)m.scratch + ticket_bytes(sms)), w, slices, out, M);
}

using go_fn = cudaError_t (*)(const struct cuda_matmul &, uint32_t, uint32_t, cudaStream_t);
const go_fn table[4][4] = {{go<matmul_bf16, 1>, go<matmul_bf16, 2>},
                           {go<matmul_e4m3, 1>, go<matmul_e4m3, 2>},
                           {go<matmul_q4, 1>, go<matmul_q4, 2>, go<matmul_q4, 4>, go<matmul_q4, 8>},
                           {go<matmul_q8, 1>, go<matmul_q8, 2>, go<matmul_q8, 4>, go<matmul_q8, 8>}};
} // namespace

extern "C" uint32_t cuda_matmul_skinny_max(enum cuda_type type)
{
    return weight_is_q4(type) || weight_is_q8(type) ? 64 : 16;
}

extern "C" size_t cuda_matmul_scratch_bytes(uint32_t sms)
{
    return ticket_bytes(sms) + (size_t)2 * 2 * sms * MATMUL_ROWS * SLOT_TOKENS * sizeof(float);
}

extern "C" cudaError_t cuda_matmul_skinny(const struct cuda_matmul *matmul, uint32_t M, uint32_t sms,
                                          cudaStream_t stream)
{
    const enum cuda_type type = matmul->weight->type;
    if (M == 0 || matmul->weight->N == 0) return cudaSuccess;
    if (type >= CUDA_TYPES || M > cuda_matmul_skinny_max(type) || sms == 0) return cudaErrorInvalidValue;
    const uint32_t format = weight_is_q4(type) ? 2 : weight_is_q8(type) ? 3 : type;
    return table[format][M <= 8 ? 0 : M <= 16 ? 1 : M <= 32 ? 2 : 3](*matmul, M, sms, stream);
}
