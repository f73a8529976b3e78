/* A mixture of experts around its matmuls (moe_matmul.cu): who goes where, and the sum of what comes back.
 *
 * moe_choose, a warp a token: the experts and weights of kernels/route.h, with its bits: e^x is lanes_exp, sums go over
 * 16 lanes and their tree. Keys in place of logits order a NaN too, so any logits give valid, distinct experts.
 *
 * moe_sort, a block an expert: a stable counting sort. The block reads the choices of all tokens, counts those of lower
 * experts (its begin) and its own, warp by warp, and writes its places in rising order of choices. No atomics, no
 * scratch and one launch, for X times as many reads of an array that lies in L2: 8,192 tokens, 8 of 128 experts each,
 * are 32 MB. Rejected: counters in device memory, which something would have to clear.
 *
 * moe_combine, a thread eight outputs: f32 FMAs in the router's order, whatever the order of experts in memory. Where
 * the experts are divided over GPUs, each adds its own, and a sum over the GPUs follows. */
#include "kernels/cuda_ops.h"
#include "kernels/exp_as_cpu.cuh"
#include "kernels/vec.cuh"

namespace
{

constexpr uint32_t CHOOSE_WARPS = 4, EXPERTS_MAX = 256, USED_MAX = 32, HELD = EXPERTS_MAX / 32;

/* Of logits: ascending keys are falling logits, -0 = +0; NaNs stand at the ends. */
__device__ __forceinline__ uint32_t key_of(float logit)
{
    const uint32_t bits = __float_as_uint(logit) == 0x80000000u ? 0 : __float_as_uint(logit);
    return bits >> 31 ? bits : ~bits & 0x7fffffffu;
}

__device__ __forceinline__ float exp_below(float x) /* lanes_exp of what is at most 0, or NaN */
{
    return x < -87.0f ? 0.0f : kx::exp_as_cpu(x);
}

/* e^(logit - highest) summed over all experts, as route.c does. Every lane gets it. */
__device__ __forceinline__ float sum_of_all(const float *logits, uint32_t X, float highest)
{
    const uint32_t lane = (uint32_t)kx::lane();
    float sum = 0;
    for (uint32_t i = lane; lane < 16 && i < X; i += 16) sum += exp_below(logits[i] - highest);
    for (uint32_t step = 8; step; step /= 2) sum += __shfl_down_sync(kx::FULL_MASK, sum, step);
    return __shfl_sync(kx::FULL_MASK, sum, 0);
}

__global__ void __launch_bounds__(32 * CHOOSE_WARPS)
    moe_choose(const float *router_logits, uint32_t X, uint32_t used, bool normed, uint32_t *chosen, float *weights,
               const uint32_t *live)
{
    const uint32_t m = blockIdx.x * CHOOSE_WARPS + threadIdx.x / 32, lane = (uint32_t)kx::lane();
    if (m >= *live) return;
    const float *logits = router_logits + (size_t)m * X;
    uint32_t keys[HELD]; /* of experts lane, lane + 32, ...; all ones: none, or taken */
    KX_UNROLL
    for (uint32_t i = 0; i < HELD; i++) {
        keys[i] = 0xffffffffu;
        if (lane + 32 * i < X) keys[i] = min(key_of(logits[lane + 32 * i]), 0xfffffffeu);
    }
    uint32_t mine = 0; /* lane u has the expert chosen u-th */
    for (uint32_t u = 0; u < used; u++) {
        uint32_t best = 0xffffffffu, at = 0;
        KX_UNROLL
        for (uint32_t i = 0; i < HELD; i++) {
            if (keys[i] >= best) continue;
            best = keys[i];
            at = lane + 32 * i;
        }
        const uint32_t lowest = __reduce_min_sync(kx::FULL_MASK, best);
        const uint32_t expert = __reduce_min_sync(kx::FULL_MASK, best == lowest ? at : 0xffffffffu);
        KX_UNROLL
        for (uint32_t i = 0; i < HELD; i++) {
            if (lane + 32 * i == expert) keys[i] = 0xffffffffu;
        }
        if (lane == u) mine = expert;
    }
    const float logit = logits[mine], highest = __shfl_sync(kx::FULL_MASK, logit, 0);
    float weight = exp_below(logit - highest) / sum_of_all(logits, X, highest), chosen_sum = 0;
    for (uint32_t u = 0; u < used; u++) chosen_sum += __shfl_sync(kx::FULL_MASK, weight, (int)u);
    if (normed) weight = weight / chosen_sum;
    if (lane >= used) return;
    chosen[(size_t)m * used + lane] = mine;
    weights[(size_t)m * used + lane] = weight;
}

/* A warp of the block takes a run of the choices. */
__global__ void __launch_bounds__(1024) moe_sort(const uint32_t *chosen, uint32_t used, uint32_t *begins,
                                                 uint32_t *places, uint32_t *place_of, const uint32_t *live)
{
    KX_SHARED(uint32_t, lower_of_warp, [32]);
    KX_SHARED(uint32_t, own_of_warp, [32]);
    const uint32_t expert = blockIdx.x, lane = (uint32_t)kx::lane(), warp = threadIdx.x / 32, warps = blockDim.x / 32;
    const uint32_t items = *live * used, run = (items + warps - 1) / warps;
    const uint32_t begin = min(warp * run, items), end = min(begin + run, items);
    uint32_t lower = 0, own = 0;
    for (uint32_t i = begin + lane; i < end; i += 32) {
        lower += chosen[i] < expert;
        own += chosen[i] == expert;
    }
    lower = __reduce_add_sync(kx::FULL_MASK, lower);
    own = __reduce_add_sync(kx::FULL_MASK, own);
    if (lane == 0) {
        lower_of_warp[warp] = lower;
        own_of_warp[warp] = own;
    }
    __syncthreads();
    uint32_t first = 0, place = 0;
    for (uint32_t w = 0; w < warps; w++) {
        first += lower_of_warp[w];
        if (w < warp) place += own_of_warp[w];
    }
    if (threadIdx.x == 0) begins[expert] = first;
    if (threadIdx.x == 0 && expert == gridDim.x - 1) begins[gridDim.x] = items;
    place += first;
    for (uint32_t i = begin; i < end; i += 32) {
        const bool is_own = i + lane < end && chosen[i + lane] == expert;
        const uint32_t all = __ballot_sync(kx::FULL_MASK, is_own);
        if (is_own) {
            const uint32_t at = place + (uint32_t)__popc(all & ((1u << lane) - 1));
            places[at] = (i + lane) / used;
            place_of[i + lane] = at;
        }
        place += (uint32_t)__popc(all);
    }
}

constexpr uint32_t COMBINE_THREADS = 128;

__global__ void __launch_bounds__(COMBINE_THREADS)
    moe_combine(uint16_t *out, const uint16_t *y, const float *weights, const uint32_t *chosen,
                const uint32_t *place_of, uint32_t used, uint32_t first, uint32_t count, uint32_t E,
                const uint32_t *live)
{
    const uint32_t m = blockIdx.x, group = blockIdx.y * COMBINE_THREADS + threadIdx.x;
    if (m >= *live || group >= E / 8) return;
    float sum[8] = {};
    for (uint32_t u = 0; u < used; u++) {
        const size_t choice = (size_t)m * used + u;
        if (chosen[choice] - first >= count) continue; /* another GPU's */
        float value[8];
        kx::bf16x8_unpack(kx::load((const uint4 *)(y + (size_t)place_of[choice] * E) + group), value);
        const float weight = weights[choice];
        KX_UNROLL
        for (int i = 0; i < 8; i++) sum[i] = fmaf(weight, value[i], sum[i]);
    }
    kx::store((uint4 *)(out + (size_t)m * E) + group, kx::bf16x8_pack(sum));
}

} // namespace

/* Grids: tokens, four a block; experts. Threads of a sorting block: enough for 64 choices a warp, which changes no
 * bit. */
extern "C" cudaError_t cuda_moe_route(const struct cuda_moe *moe, const uint32_t *live, uint32_t M, cudaStream_t stream)
{
    const uint32_t X = moe->X, used = moe->used;
    if (X == 0 || X > EXPERTS_MAX || used == 0 || used > X || used > USED_MAX) return cudaErrorInvalidValue;
    if (M == 0) return cudaSuccess;
    const cudaError_t error =
        kx::launch(moe_choose, (M + CHOOSE_WARPS - 1) / CHOOSE_WARPS, 32 * CHOOSE_WARPS, 0, stream, moe->router_logits,
                   X, used, moe->normed, moe->chosen, moe->weights, live);
    if (error != cudaSuccess) return error;
    const uint32_t warps = min((uint32_t)(((uint64_t)M * used + 63) / 64), 32u);
    return kx::launch(moe_sort, X, 32 * warps, 0, stream, moe->chosen, used, moe->begins, moe->places, moe->place_of,
                      live);
}

/* Grid: tokens by eights of E. */
extern "C" cudaError_t cuda_moe_combine(uint16_t *out, const struct cuda_moe *moe, const uint16_t *y, uint32_t E,
                                        const uint32_t *live, uint32_t M, cudaStream_t stream)
{
    if (E == 0 || E % 8) return cudaErrorInvalidValue;
    if (M == 0) return cudaSuccess;
    const dim3 grid(M, (E / 8 + COMBINE_THREADS - 1) / COMBINE_THREADS);
    return kx::launch(moe_combine, grid, COMBINE_THREADS, 0, stream, out, y, moe->weights, moe->chosen, moe->place_of,
                      moe->used, moe->first, moe->count, E, live);
}
