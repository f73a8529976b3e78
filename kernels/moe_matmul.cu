/* The matmuls of a mixture of experts: each expert by the tokens that were sent to it, all in one launch.
 *
 * The places of an expert are cut into items of 8 NT tokens and a group of 128 rows; a fixed grid takes the items of
 * all experts in turn, by expert, then rows, then tokens: blocks that share weights run side by side, so that further
 * tokens find them in L2. An item is a run of matmul_tile.cuh over all of K, whose tokens are gathered by their places
 * while they are copied. Experts without tokens have no item, nor have those of other GPUs. How many tokens there are
 * is read on the device: the launch is the same for any routing.
 *
 * A token's bits depend on its activations and the expert alone: K is never sliced, and NT, the other tokens and the
 * grid only decide where the sums are made. Rejected: slices of K as in matmul_skinny.cu, since some experts times row
 * groups fill a GPU by themselves (8 of 128 experts of 768 x 2048: 96 items for one token). */
#include "kernels/matmul_tile.cuh"

namespace
{
using namespace kx;

constexpr uint32_t EXPERTS_MAX = 256;

/* The weights of this GPU's experts: the first, and from one to the next. */
struct expert_strides {
    uint64_t codes_bytes, scales_bytes;
    uint32_t bias, experts;
};

template <class F, int NT>
__global__ void __launch_bounds__(MATMUL_THREADS, 2)
    moe_matmul(uint16_t *y, const uint16_t *x, const uint32_t *places, const uint32_t *begins, const uint8_t *codes,
               const uint8_t *scales, const uint16_t *bias, expert_strides strides, weight_shape w, matmul_output out)
{
    KX_SHARED(uint32_t, ends, [EXPERTS_MAX]); /* items of the experts up to this one */
    const uint32_t groups = (w.N + MATMUL_ROWS - 1) / MATMUL_ROWS, chunks = (w.K + MATMUL_CHUNK - 1) / MATMUL_CHUNK;
    constexpr uint32_t TOKENS = 8 * NT;
    for (uint32_t e = threadIdx.x; e < strides.experts; e += MATMUL_THREADS)
        ends[e] = (begins[e + 1] - begins[e] + TOKENS - 1) / TOKENS * groups;
    __syncthreads();
    if (threadIdx.x == 0) {
        for (uint32_t e = 1; e < strides.experts; e++) ends[e] += ends[e - 1];
    }
    __syncthreads();
    uint32_t expert = 0;
    for (uint32_t item = blockIdx.x; item < ends[strides.experts - 1]; item += gridDim.x) {
        while (item >= ends[expert]) expert++;
        const uint32_t first = begins[expert], end = begins[expert + 1], tiles = (end - first + TOKENS - 1) / TOKENS;
        const uint32_t of_expert = item - (expert ? ends[expert - 1] : 0), group = of_expert / tiles;
        const uint8_t *const own_codes = codes + expert * strides.codes_bytes;
        const uint8_t *const own_scales = scales + expert * strides.scales_bytes;
        const matmul_operands o = {x, own_codes, own_scales, w, end, first + of_expert % tiles * TOKENS, places};
        matmul_sums<NT> sums = {};
        matmul_run<F, NT>(o, chunks, group * chunks, (group + 1) * chunks, sums, [&](uint32_t unit) {
            if (unit + 1 == (group + 1) * chunks)
                matmul_finish<NT>(o, group, sums, bias ? bias + (size_t)expert * strides.bias : nullptr, y, out);
        });
        __syncthreads(); /* all have left the last activations */
    }
}

/* Whether the weights lie at equal distances; then those. */
bool measure_strides(const struct cuda_weight *weights, uint32_t X, expert_strides *strides)
{
    const struct cuda_weight *a = weights, *b = weights + (X > 1);
    *strides = {(uint64_t)((uintptr_t)b->codes - (uintptr_t)a->codes),
                (uint64_t)((uintptr_t)b->scales - (uintptr_t)a->scales), 0, X};
    const uint64_t bias_bytes = (uintptr_t)b->bias - (uintptr_t)a->bias;
    strides->bias = (uint32_t)(bias_bytes / sizeof(uint16_t));
    for (uint32_t e = 0; e < X; e++) {
        const struct cuda_weight *w = weights + e;
        if (w->type != a->type || w->N != a->N || w->K != a->K || w->alternating != a->alternating ||
            w->scale_rows != a->scale_rows || w->scale_cols != a->scale_cols ||
            (uintptr_t)w->codes != (uintptr_t)a->codes + e * strides->codes_bytes ||
            (uintptr_t)w->scales != (uintptr_t)a->scales + e * strides->scales_bytes ||
            (uintptr_t)w->bias != (uintptr_t)a->bias + e * bias_bytes)
            return false;
    }
    return true;
}

struct call {
    const struct cuda_moe *moe;
    const struct cuda_weight *weight;
    expert_strides strides;
    const uint16_t *x;
    const uint32_t *places;
    uint16_t *y;
    bool gelu;
    uint32_t grid;
    cudaStream_t stream;
};

template <class F, int NT> cudaError_t go(const call &c)
{
    const struct cuda_weight &w = *c.weight;
    const matmul_output out = {w.alternating ? w.N / 2 : w.N, false, c.gelu, w.alternating};
    return launch(moe_matmul<F, NT>, c.grid, MATMUL_THREADS, matmul_plan<F, NT>::bytes(), c.stream, c.y, c.x, c.places,
                  c.moe->begins + c.moe->first, (const uint8_t *)w.codes, (const uint8_t *)w.scales, w.bias, c.strides,
                  weight_shape_of(w), out);
}

using go_fn = cudaError_t (*)(const call &);
const go_fn table[4][2] = {{go<matmul_bf16, 1>, go<matmul_bf16, 2>},
                           {go<matmul_e4m3, 1>, go<matmul_e4m3, 2>},
                           {go<matmul_q4, 1>, go<matmul_q4, 2>},
                           {go<matmul_q8, 1>, go<matmul_q8, 2>}};
} // namespace

/* Grid: two blocks an SM, or as many as there can be items. Tokens an item: by the mean of an expert, were all used
 * alike. */
extern "C" cudaError_t cuda_moe_matmul(const struct cuda_moe *moe, const struct cuda_weight *weights, const uint16_t *x,
                                       const uint32_t *places, uint16_t *y, bool gelu, uint32_t M, uint32_t sms,
                                       cudaStream_t stream)
{
    const struct cuda_weight *w = weights;
    call c = {moe, w, {}, x, places, y, gelu, 0, stream};
    if (moe->X == 0 || moe->X > EXPERTS_MAX || sms == 0 || w->type >= CUDA_TYPES) return cudaErrorInvalidValue;
    if (moe->count == 0 || moe->first >= moe->X || moe->count > moe->X - moe->first) return cudaErrorInvalidValue;
    if (!measure_strides(weights, moe->count, &c.strides)) return cudaErrorInvalidValue;
    if (M == 0 || w->N == 0) return cudaSuccess;
    const uint64_t choices = (uint64_t)M * moe->used, mean = (choices + moe->X - 1) / moe->X;
    const uint64_t items = choices * ((w->N + MATMUL_ROWS - 1) / MATMUL_ROWS);
    c.grid = items < 2 * sms ? (uint32_t)items : 2 * sms;
    const uint32_t format = weight_is_q4(w->type) ? 2 : weight_is_q8(w->type) ? 3 : w->type;
    return table[format][mean <= 4 ? 0 : 1](c);
}
