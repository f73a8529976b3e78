/* One-shot all-reduce fused with residual and norm: cuda_all_reduce_rmsnorm of cuda_ops.h, for sums of up to some
 * hundred KB inside a node.
 *
 *   block b, epoch e, of each rank:   1. push   own rows b, b + 32, ... of y into slot e % 2 of every peer's buffer
 *                                     2. tell   flag (b, own rank) of every peer = e
 *                                     3. wait   until every flag (b, peer) of its own is e or later
 *                                     4. sum    the ranks' rows in rank order, f32; norm_row.cuh goes on with the sum
 *
 * Why this is right:
 *   - A row's parts are complete when they are read. All threads push, then meet in a barrier, then one thread a peer
 *     stores that peer's flag with release at system scope. Barrier and release are cumulative: whoever sees the flag
 *     with acquire, and all who meet that thread in a later barrier, see every push of the block. Blocks of the same
 *     number on the ranks serve the same rows, so no block needs more than its namesakes. The slot is read by ordinary
 *     loads, never by the read-only path, which may hold what an earlier epoch left.
 *   - A fast rank does not overwrite what a slow one still reads. Row m is always block m % 32's, whatever M is
 *     (E is one for all launches), so a block and its namesakes are a protocol of their own. Block b of A
 *     writes slot e % 2 again in its epoch e + 2, after its epoch e + 1, in which it saw flag e + 1 of every
 *     rank B: stored by B's kernel of e + 1, hence after B's kernel of e, with all its reads, had ended. Two
 *     slots are therefore enough, and one is not: B may still sum epoch e while A, done, pushes e + 1. (Kernels
 *     of one stream that overlap, programmatic dependent launch, would break this.)
 *   - A flag may be ahead by one: a fast peer stores e + 1 before a slow block has looked for e. So flags are
 *     compared by their difference as a signed number, which also outlives the wrap at 2^32.
 *   - Each block counts its epochs itself, on the device, so that a captured graph can be replayed. A block
 *     without rows that live does nothing, on all ranks alike: they have the same step.
 *   - All ranks get the same bits: they add the same bf16 parts in the same order.
 *   - Blocks wait for other GPUs, so all must be resident: a cooperative launch, which fails where they do not fit.
 *
 * No wait is without end: a waiting thread looks at the host's stop word and at a clock. The word is across PCIe and
 * costs a microsecond or two, so it is read once in 64 looks at the flag. Who gives up writes who did not come, which
 * ends all later waits of this rank too; nothing that was summed since may be used.
 *
 * Rejected: pulling from peers (reads cross NVLink there and back, and need a second exchange before the buffer may be
 * written again); data that are their own flags (a value kept for "not yet", buffers cleared each time): one round of
 * latency less, but bf16 has no spare value that a sum of NaN could not show; to be measured on GPUs. */
#include "kernels/norm_row.cuh"

constexpr uint32_t ALL_REDUCE_LOOKS = 64; /* at a flag, between two at the stop word and the clock */

struct all_reduce_peers { /* by value: kernel parameters are constant memory, a table on the device would be one more
                             load that everything waits for */
    uint16_t *buffers[CUDA_RANKS_MAX];
    uint32_t *flags[CUDA_RANKS_MAX];
};
struct all_reduce_numbers {
    uint32_t rank, ranks, M;
    size_t slot_values;
    uint64_t wait_ns_max;
    norm_row_numbers n;
};

/* Writes this block's rows into slot `slot_at` of the peers; each begins with another one. */
__device__ __forceinline__ void all_reduce_push(const all_reduce_peers &peers, const uint16_t *y, const uint32_t *rows,
                                                uint32_t live, size_t slot_at, const all_reduce_numbers &a)
{
    const uint32_t E = a.n.E;
    const size_t mine = slot_at + a.rank * a.slot_values;
    for (uint32_t m = blockIdx.x; m < live; m += CUDA_ALL_REDUCE_BLOCKS) {
        const uint32_t row = rows ? kx::load(rows + m) : m;
        for (uint32_t group = threadIdx.x; group < E / 8; group += blockDim.x) {
            const uint4 values = kx::load((const uint4 *)(y + (size_t)row * E) + group);
            for (uint32_t i = 1; i < a.ranks; i++) {
                const uint32_t peer = a.rank + i < a.ranks ? a.rank + i : a.rank + i - a.ranks;
                kx::store((uint4 *)(peers.buffers[peer] + mine + (size_t)m * E) + group, values);
            }
        }
    }
}

/* Waits for `peer`'s flag; false: gave up. */
__device__ __forceinline__ bool all_reduce_wait(const uint32_t *flag, uint32_t epoch, uint32_t peer, uint32_t *stop,
                                                uint64_t wait_ns_max)
{
    const uint64_t began = kx::device_ns();
    for (uint32_t looks = 1; (int32_t)(kx::load_acquire_system(flag) - epoch) < 0; looks++) {
        if (looks % ALL_REDUCE_LOOKS == 0) {
            if (kx::load_acquire_system(stop)) return false;
            if (kx::device_ns() - began > wait_ns_max) {
                kx::store_release_system(stop, 1 + peer);
                return false;
            }
        }
        __nanosleep(20);
    }
    return true;
}

/* A thread's units of the sum of row m over the ranks, in their order. */
template <int UNITS>
__device__ __forceinline__ void all_reduce_sum(float4 (&sum)[UNITS], const uint16_t *slots, const uint16_t *own,
                                               uint32_t m, const all_reduce_numbers &a)
{
    const uint32_t E = a.n.E;
    KX_UNROLL
    for (int u = 0; u < UNITS; u++) sum[u] = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
    for (uint32_t r = 0; r < a.ranks; r++) {
        const uint16_t *part = r == a.rank ? own : slots + r * a.slot_values + (size_t)m * E;
        KX_UNROLL
        for (int u = 0; u < UNITS; u++) {
            const uint32_t group = norm_row_group(u);
            if (group >= E / 4) break;
            const uint2 bits = kx::load((const uint2 *)part + group);
            const float2 low = kx::bf16x2_unpack(bits.x), high = kx::bf16x2_unpack(bits.y);
            sum[u] = make_float4(sum[u].x + low.x, sum[u].y + low.y, sum[u].z + high.x, sum[u].w + high.y);
        }
    }
}

template <int UNITS>
__global__ void __launch_bounds__(NORM_THREADS_MAX)
    all_reduce_rmsnorm(const __grid_constant__ all_reduce_peers peers, uint32_t *epochs, uint32_t *stop,
                       const uint16_t *y, float *x, const float *post_weight, const float *weight, void *out,
                       float *out_scales, const uint32_t *rows, float *gathered, uint32_t *bad, const uint32_t *live,
                       const all_reduce_numbers a)
{
    const uint32_t b = blockIdx.x, count = min(kx::load(live), a.M);
    if (b >= count) return; /* the whole block */
    const uint32_t epoch = kx::load(epochs + b) + 1;
    const size_t slot_at = (size_t)(epoch & 1) * a.ranks * a.slot_values;
    all_reduce_push(peers, y, rows, count, slot_at, a);
    __syncthreads();
    bool came = true;
    const uint32_t peer = threadIdx.x, at = b * CUDA_RANKS_MAX;
    if (peer < a.ranks && peer != a.rank) {
        kx::store_release_system(peers.flags[peer] + at + a.rank, epoch);
        came = all_reduce_wait(peers.flags[a.rank] + at + peer, epoch, peer, stop, a.wait_ns_max);
    }
    if (__syncthreads_or(!came)) return; /* the whole block */
    if (threadIdx.x == 0) kx::store(epochs + b, epoch);
    for (uint32_t m = b; m < count; m += CUDA_ALL_REDUCE_BLOCKS) {
        const uint32_t row = rows ? kx::load(rows + m) : m;
        float4 sum[UNITS];
        all_reduce_sum(sum, peers.buffers[a.rank] + slot_at, y + (size_t)row * a.n.E, m, a);
        norm_row r;
        r.x = x + (size_t)row * a.n.E;
        r.x_out = !rows ? r.x : gathered ? gathered + (size_t)m * a.n.E : nullptr;
        r.post_weight = post_weight;
        r.weight = weight;
        r.out = (uint8_t *)out + (size_t)m * a.n.E * (out_scales ? 1 : 2);
        r.scale = out_scales ? out_scales + m : nullptr;
        r.bad = bad + row;
        r.added = true;
        r.n = a.n;
        norm_row_finish(r, sum);
        __syncthreads();
    }
}

/* Grid: a block a row, at most CUDA_ALL_REDUCE_BLOCKS, resident together. */
extern "C" cudaError_t cuda_all_reduce_rmsnorm(const struct cuda_all_reduce *reduce, const uint16_t *y,
                                               const struct cuda_norm *norm, const uint32_t *live, uint32_t M,
                                               cudaStream_t stream)
{
    const uint32_t E = norm->E;
    if (E == 0 || E % 8 || E > NORM_E_MAX || (size_t)M * E > reduce->slot_values) return cudaErrorInvalidValue;
    if (reduce->ranks < 2 || reduce->ranks > CUDA_RANKS_MAX || reduce->rank >= reduce->ranks)
        return cudaErrorInvalidValue;
    if (reduce->slot_values % 8) return cudaErrorInvalidValue;
    if (M == 0) return cudaSuccess;
    all_reduce_peers peers = {};
    for (uint32_t r = 0; r < reduce->ranks; r++) {
        peers.buffers[r] = reduce->buffers[r];
        peers.flags[r] = reduce->flags[r];
    }
    const uint32_t blocks = M < CUDA_ALL_REDUCE_BLOCKS ? M : (uint32_t)CUDA_ALL_REDUCE_BLOCKS;
    const norm_row_shape shape = norm_row_shape_of(E);
    const auto kernel = shape.units == 1   ? all_reduce_rmsnorm<1>
                        : shape.units == 2 ? all_reduce_rmsnorm<2>
                        : shape.units == 4 ? all_reduce_rmsnorm<4>
                                           : all_reduce_rmsnorm<8>;
    const all_reduce_numbers numbers = {reduce->rank,        reduce->ranks,       M,
                                        reduce->slot_values, reduce->wait_ns_max, {E, norm->residual_scale, norm->eps}};
    return kx::launch_cooperative(kernel, blocks, shape.threads, 0, stream, peers, reduce->epochs, reduce->stop, y,
                                  norm->x, norm->post_weight, norm->weight, norm->out, norm->out_scales, norm->rows,
                                  norm->gathered, norm->bad, live, numbers);
}
