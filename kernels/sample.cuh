/* Sampling on the GPU: what the kernels of sample.cu are made of. The meaning is runtime/sampler.h; here is how a block
 * of 256 threads finds, in a row of V logits, the first item in the order of falling logits (lower ids first) at which
 * a running count or sum passes a goal, without sorting.
 *
 * Order. Keys are those of kernels/sample.h: ascending keys are falling logits, -0 = +0.
 *
 * Sums. The weight of a logit has the CPU's bits (f32: subtraction, division and lanes_exp, operation for operation).
 * Weights are summed in fixed point, in units of 2^-53: integer sums are the same in any order, so atomics and any
 * number of blocks give the same bits, and the running sum at an item is that of a full sort. The CPU adds the same
 * weights in double: equal wherever all are at least 2^-29, since both are exact then, else off by at most V * 2^-53 of
 * the sum on either side. A draw can differ only when its goal falls into that gap: probability V * 2^-51, 1e-10 at
 * V = 262,144. Sums in double in the CPU's order were rejected: a chain of additions as long as the candidates are
 * many.
 *
 * Search. A histogram of 2048 bins over z = (l - peak) / T, 64 bins a unit, holds sum and count of each bin (the last
 * takes all that lies below). The bin in which the goal is passed is split again by ranges of keys until it holds 256
 * items, which are compared pair by pair, or a single key, whose items are a matter of division. Real rows need no
 * split; flat ones one; the worst three. Bins by the leading bits of keys were rejected as the first level: a bin would
 * span a quarter of the logits' value, and most of a vocabulary fell into ten of them. */
#ifndef KERNELS_SAMPLE_CUH
#define KERNELS_SAMPLE_CUH

#include "kernels/exp_as_cpu.cuh"
#include "kernels/vec.cuh"

namespace sample
{

typedef unsigned long long u64; /* what atomicAdd takes */

constexpr uint32_t TILE = 1024;   /* logits that a warp takes at a time, and that have a peak of their own */
constexpr uint32_t THREADS = 256; /* of a block of measure_weights and choose_ids */
constexpr uint32_t WARPS = THREADS / 32;
constexpr uint32_t BINS = 2048;
constexpr uint32_t LIST = THREADS;         /* items that are compared pair by pair */
constexpr uint32_t TOP = 21;               /* LOGPROBS_MAX */
constexpr uint32_t V_MAX = 1u << 21;       /* 2048 tiles; sums of fixed point that a double holds */
constexpr uint32_t KEY_NONE = 0xff800000u; /* of -infinity: masked, and beyond all candidates */

__device__ __forceinline__ uint32_t key_of(float logit)
{
    uint32_t bits = __float_as_uint(logit);
    if (bits == 0x80000000u) bits = 0;
    return bits >> 31 ? bits : ~bits & 0x7fffffffu;
}
__device__ __forceinline__ float logit_of(uint32_t key)
{
    return __uint_as_float(key >> 31 ? key : ~key & 0x7fffffffu);
}

/* random_uniform of runtime/base/random.h. */
__device__ __forceinline__ double uniform(u64 seed, uint32_t position)
{
    uint32_t c0 = position, c1 = 0, c2 = 0, c3 = 0, k0 = (uint32_t)seed, k1 = (uint32_t)(seed >> 32);
    for (int round = 0; round < 10; round++) {
        const u64 p0 = (u64)0xd2511f53u * c0, p1 = (u64)0xcd9e8d57u * c2;
        c0 = (uint32_t)(p1 >> 32) ^ c1 ^ k0;
        c1 = (uint32_t)p1;
        c2 = (uint32_t)(p0 >> 32) ^ c3 ^ k1;
        c3 = (uint32_t)p0;
        k0 += 0x9e3779b9u;
        k1 += 0xbb67ae85u;
    }
    return (double)(((u64)c0 << 32 | c1) >> 11) * 0x1p-53;
}

/* The highest logit of a tile and the lowest id that has it; NaN where the tile is not finite. */
struct peak {
    float value;
    uint32_t id;
};

/* A row of logits as one request sees it. */
struct view {
    const float *logits;
    float scale;
    uint32_t V;
    const peak *tiles;
    float highest, temperature,
        lowest; /* weight: e^((l - highest) / temperature), 0 where the exponent is below lowest */
    bool all;   /* what weighs nothing counts too */
};

__device__ __forceinline__ float exponent(const view &v, float logit)
{
    return (logit - v.highest) / v.temperature;
}
__device__ __forceinline__ uint32_t bin_of(float z)
{
    const float depth = -z * 64.0f;
    return depth < (float)(BINS - 1) ? (uint32_t)fmaxf(depth, 0.0f) : BINS - 1;
}

/* A sum of weights and a count: high in units of 2^-32, low in units of 2^-53 below a count in units of 2^42. */
struct mass {
    u64 high, low;
};
constexpr u64 COUNT_ONE = (u64)1 << 42;

__device__ __forceinline__ uint32_t count_of(const mass &m)
{
    return (uint32_t)(m.low >> 42);
}
__device__ __forceinline__ double weight_of(const mass &m) /* rounded once: both parts are exact */
{
    return (double)m.high * 0x1p-32 + (double)(m.low & (COUNT_ONE - 1)) * 0x1p-53;
}
__device__ __forceinline__ mass operator+(const mass &a, const mass &b)
{
    return {a.high + b.high, a.low + b.low};
}
/* Of one item; count 0 when it is no candidate. */
__device__ __forceinline__ mass weigh(const view &v, float z)
{
    const bool weighs = z >= v.lowest && z >= -87.0f;
    if (!weighs) return {0, v.all ? COUNT_ONE : 0};
    const u64 units = (u64)rintf(kx::exp_as_cpu(z) * 0x1p53f);
    return {units >> 21, (units & 0x1fffff) | COUNT_ONE};
}

enum goal_kind { GOAL_COUNT, GOAL_REACH, GOAL_PASS };
struct goal { /* count >= count; sum >= sum; sum > sum */
    goal_kind kind;
    uint32_t count;
    double sum;
};
__device__ __forceinline__ bool met(const goal &g, const mass &running)
{
    if (g.kind == GOAL_COUNT) return count_of(running) >= g.count;
    const double sum = weight_of(running);
    return g.kind == GOAL_REACH ? sum > 0 && sum >= g.sum : sum > g.sum;
}

/* Where a goal was met: the item with this key that has `tie` equals before it. */
struct spot {
    uint32_t key, tie;
    uint32_t id; /* NO_ID: not known yet */
    mass running;
};
constexpr uint32_t NO_ID = 0xffffffffu;

struct state { /* of a block, shared */
    u64 high[BINS], low[BINS];
    u64 warp_high[WARPS], warp_low[WARPS];
    mass before, within, total;
    sample::spot spot;
    peak best;
    float warp_value[WARPS];
    uint32_t warp_id[WARPS];
    uint32_t bin, count;
    uint32_t list_key[LIST], list_id[LIST];
};

/* Calls f(logit, id) for all logits of the tile in hand, by all lanes of a warp: lane l has ids 128 i + 4 l ... + 3.
 * The row is 16-byte aligned. */
template <class F>
__device__ __forceinline__ void each_of_tile(const float *row, float scale, uint32_t V, uint32_t tile, F f)
{
    const uint32_t first = tile * TILE + 4 * (uint32_t)kx::lane();
    float4 four[TILE / 128];
    KX_UNROLL
    for (uint32_t i = 0; i < TILE / 128; i++) {
        const uint32_t id = first + 128 * i;
        four[i] = make_float4(0, 0, 0, 0);
        if (id + 4 <= V) {
            four[i] = kx::load(reinterpret_cast<const float4 *>(row + id));
        } else if (id < V) {
            four[i].x = kx::load(row + id);
            if (id + 1 < V) four[i].y = kx::load(row + id + 1);
            if (id + 2 < V) four[i].z = kx::load(row + id + 2);
        }
    }
    KX_UNROLL
    for (uint32_t i = 0; i < TILE / 128; i++) {
        const uint32_t id = first + 128 * i;
        if (id < V) f(__fmul_rn(four[i].x, scale), id);
        if (id + 1 < V) f(__fmul_rn(four[i].y, scale), id + 1);
        if (id + 2 < V) f(__fmul_rn(four[i].z, scale), id + 2);
        if (id + 3 < V) f(__fmul_rn(four[i].w, scale), id + 3);
    }
}

/* The same for all tiles from first_tile on, a warp each, that hold a key below `end`. */
template <class F>
__device__ __forceinline__ void each(const view &v, uint32_t end, uint32_t first_tile, uint32_t step, F f)
{
    const uint32_t tiles = (v.V + TILE - 1) / TILE;
    for (uint32_t tile = first_tile + threadIdx.x / 32; tile < tiles; tile += step) {
        if (key_of(v.tiles[tile].value) < end) each_of_tile(v.logits, v.scale, v.V, tile, f);
    }
}

/* The lowest key, and of equals the lowest id, over the warp. */
__device__ __forceinline__ peak warp_peak(peak best)
{
    const uint32_t key = key_of(best.value), lowest = __reduce_min_sync(kx::FULL_MASK, key);
    return {logit_of(lowest), __reduce_min_sync(kx::FULL_MASK, key == lowest ? best.id : NO_ID)};
}

/* The peak of a row from those of its tiles, in s.best; NaN when one is not finite. All threads of the block. */
__device__ __forceinline__ void find_peak(state &s, const peak *tiles, uint32_t V)
{
    const uint32_t count = (V + TILE - 1) / TILE;
    peak best = {-INFINITY, NO_ID};
    bool finite = true;
    for (uint32_t i = threadIdx.x; i < count; i += THREADS) {
        const peak p = tiles[i];
        finite = finite && p.value == p.value;
        if (best.id == NO_ID || p.value > best.value) best = p;
    }
    best = warp_peak(best);
    if (kx::lane() == 0) {
        s.warp_value[threadIdx.x / 32] = best.value;
        s.warp_id[threadIdx.x / 32] = best.id;
    }
    finite = __syncthreads_and(finite);
    if (threadIdx.x < 32) {
        best = {-INFINITY, NO_ID};
        if (threadIdx.x < WARPS) best = {s.warp_value[threadIdx.x], s.warp_id[threadIdx.x]};
        best = warp_peak(best);
        if (!finite) best.value = NAN;
        if (threadIdx.x == 0) s.best = best;
    }
    __syncthreads();
}

__device__ __forceinline__ void clear_bins(state &s)
{
    for (uint32_t i = threadIdx.x; i < BINS; i += THREADS) s.high[i] = s.low[i] = 0;
    __syncthreads();
}
__device__ __forceinline__ void add_to_bin(state &s, uint32_t bin, const mass &m)
{
    if (m.high) atomicAdd(&s.high[bin], m.high);
    if (m.low) atomicAdd(&s.low[bin], m.low);
}

/* Sum of `own` over the threads before this one; the sum of all is in s.total. Ends with a barrier. */
__device__ __forceinline__ mass scan_block(state &s, const mass &own)
{
    const uint32_t lane = (uint32_t)kx::lane(), warp = threadIdx.x / 32;
    mass sum = own;
    for (uint32_t d = 1; d < 32; d <<= 1) {
        const u64 high = __shfl_up_sync(kx::FULL_MASK, sum.high, d), low = __shfl_up_sync(kx::FULL_MASK, sum.low, d);
        if (lane >= d) sum = sum + mass{high, low};
    }
    if (lane == 31) {
        s.warp_high[warp] = sum.high;
        s.warp_low[warp] = sum.low;
    }
    __syncthreads();
    mass before = {0, 0}, total = {0, 0};
    for (uint32_t w = 0; w < WARPS; w++) {
        const mass part = {s.warp_high[w], s.warp_low[w]};
        if (w < warp) before = before + part;
        total = total + part;
    }
    if (threadIdx.x == 0) s.total = total;
    __syncthreads();
    return {before.high + sum.high - own.high, before.low + sum.low - own.low};
}

/* What bins [first, first + BINS / THREADS) of each thread hold. */
__device__ __forceinline__ mass own_bins(const state &s, uint32_t first)
{
    mass own = {0, 0};
    for (uint32_t i = first; i < first + BINS / THREADS; i++) own = own + mass{s.high[i], s.low[i]};
    return own;
}
/* s.total of all bins. */
__device__ __forceinline__ void sum_bins(state &s)
{
    scan_block(s, own_bins(s, threadIdx.x * (BINS / THREADS)));
}

/* The first bin at which the goal is met, given what lies before all of them: s.bin, s.before (of the bin), s.within.
 * When none meets it, s.bin is BINS. */
__device__ __forceinline__ void find_bin(state &s, const mass &before, const goal &g)
{
    constexpr uint32_t EACH = BINS / THREADS;
    const uint32_t first = threadIdx.x * EACH;
    if (threadIdx.x == 0) s.bin = BINS;
    const mass own = own_bins(s, first);
    mass running = before + scan_block(s, own);
    if (!met(g, running) && met(g, running + own)) {
        for (uint32_t i = first; i < first + EACH; i++) {
            const mass within = {s.high[i], s.low[i]};
            if (met(g, running + within)) {
                s.bin = i;
                s.before = running;
                s.within = within;
                break;
            }
            running = running + within;
        }
    }
    __syncthreads();
}

/* The lowest key whose bin is at least `bin`. */
__device__ __forceinline__ uint32_t first_key(const view &v, uint32_t bin)
{
    if (bin == 0) return 0;
    if (bin >= BINS) return KEY_NONE;
    uint32_t low = key_of(v.highest), high = KEY_NONE; /* low is in bin 0 */
    while (high - low > 1) {
        const uint32_t middle = low + (high - low) / 2;
        if (bin_of(exponent(v, logit_of(middle))) >= bin)
            high = middle;
        else
            low = middle;
    }
    return high;
}

/* Compares the at most LIST items of keys low .. high - 1 pair by pair; the one that meets the goal goes to s.spot. */
__device__ __forceinline__ void search_list(const view &v, state &s, uint32_t low, uint32_t high, const goal &g)
{
    if (threadIdx.x == 0) s.count = 0;
    const mass before = s.before;
    __syncthreads();
    each(v, high, 0, WARPS, [&](float logit, uint32_t id) {
        const uint32_t key = key_of(logit);
        if (key < low || key >= high || weigh(v, exponent(v, logit)).low == 0) return;
        const uint32_t at = atomicAdd(&s.count, 1u);
        if (at >= LIST) return; /* never: the bin's count said so */
        s.list_key[at] = key;
        s.list_id[at] = id;
    });
    __syncthreads();
    const uint32_t count = min(s.count, LIST), i = threadIdx.x;
    mass own = {0, 0}, running = before;
    if (i < count) {
        own = weigh(v, exponent(v, logit_of(s.list_key[i])));
        s.high[i] = own.high;
        s.low[i] = own.low;
    }
    __syncthreads();
    if (i < count) {
        const u64 mine = (u64)s.list_key[i] << 32 | s.list_id[i];
        uint32_t tie = 0;
        for (uint32_t j = 0; j < count; j++) {
            if (((u64)s.list_key[j] << 32 | s.list_id[j]) >= mine) continue;
            running = running + mass{s.high[j], s.low[j]};
            tie += s.list_key[j] == s.list_key[i];
        }
        if (!met(g, running) && met(g, running + own)) s.spot = {s.list_key[i], tie, s.list_id[i], running + own};
    }
    __syncthreads();
}

/* All items of s.within have this key: the goal is met at the first multiple of their weight that does. */
__device__ __forceinline__ void search_ties(const view &v, state &s, uint32_t key, const goal &g)
{
    if (threadIdx.x == 0) {
        const mass own = weigh(v, exponent(v, logit_of(key)));
        uint32_t low = 0, high = count_of(s.within); /* met with `high` items, not with `low` */
        while (high - low > 1) {
            const uint32_t middle = low + (high - low) / 2;
            if (met(g, s.before + mass{own.high * middle, own.low * middle}))
                high = middle;
            else
                low = middle;
        }
        s.spot = {key, high - 1, NO_ID, s.before + mass{own.high * high, own.low * high}};
    }
    __syncthreads();
}

/* The bins of a row from global memory, high then low. */
__device__ __forceinline__ void load_bins(state &s, const u64 *bins)
{
    for (uint32_t i = threadIdx.x; i < BINS; i += THREADS) {
        s.high[i] = bins[i];
        s.low[i] = bins[BINS + i];
    }
    __syncthreads();
}

/* Finds the first item at which the goal is met: s.spot, which stays as it is when no item meets it. All threads. */
__device__ __forceinline__ void locate(const view &v, state &s, const u64 *bins, const goal &g)
{
    load_bins(s, bins);
    find_bin(s, {0, 0}, g);
    if (s.bin == BINS) return;
    uint32_t low = first_key(v, s.bin), high = first_key(v, s.bin + 1);
    while (count_of(s.within) > LIST) {
        if (high - low == 1) {
            search_ties(v, s, low, g);
            return;
        }
        uint32_t shift = 0;
        while ((high - low - 1) >> shift >= BINS) shift++;
        const mass before = s.before;
        clear_bins(s);
        each(v, high, 0, WARPS, [&](float logit, uint32_t id) {
            (void)id;
            const uint32_t key = key_of(logit);
            if (key >= low && key < high) add_to_bin(s, (key - low) >> shift, weigh(v, exponent(v, logit)));
        });
        __syncthreads();
        find_bin(s, before, g);
        if (s.bin == BINS) return; /* never: these are the items of the bin that meets it; but no launch may hang */
        low += s.bin << shift;
        high = min(high, low + (1u << shift));
    }
    search_list(v, s, low, high, g);
}

/* ids[0 .. n): the logits with this key that have first, first + 1, ... equals before them. All threads. */
__device__ __forceinline__ void find_ties(const view &v, state &s, uint32_t key, uint32_t first, uint32_t n,
                                          uint32_t *ids)
{
    const uint32_t tiles = (v.V + TILE - 1) / TILE, warp = threadIdx.x / 32, lane = (uint32_t)kx::lane();
    clear_bins(s);
    for (uint32_t tile = warp; tile < tiles; tile += WARPS) { /* how many each tile has */
        if (key_of(v.tiles[tile].value) > key) continue;
        uint32_t own = 0;
        each_of_tile(v.logits, v.scale, v.V, tile, [&](float logit, uint32_t id) {
            (void)id;
            own += key_of(logit) == key;
        });
        own = __reduce_add_sync(kx::FULL_MASK, own);
        if (lane == 0) s.low[tile] = own;
    }
    __syncthreads();
    constexpr uint32_t EACH = BINS / THREADS;
    mass own = {0, 0};
    for (uint32_t i = threadIdx.x * EACH; i < (threadIdx.x + 1) * EACH; i++) own.low += s.low[i];
    u64 before = scan_block(s, own).low;
    for (uint32_t i = threadIdx.x * EACH; i < (threadIdx.x + 1) * EACH; i++) {
        s.high[i] = before;
        before += s.low[i];
    }
    __syncthreads();
    for (uint32_t tile = warp; tile < tiles; tile += WARPS) {
        uint32_t at = (uint32_t)s.high[tile];
        if (s.low[tile] == 0 || at + s.low[tile] <= first || at >= first + n) continue;
        for (uint32_t i = 0; i < TILE / 32; i++) {
            const uint32_t id = tile * TILE + 32 * i + lane;
            const bool equal = id < v.V && key_of(__fmul_rn(kx::load(v.logits + id), v.scale)) == key;
            const uint32_t equals = __ballot_sync(kx::FULL_MASK, equal);
            const uint32_t place = at + (uint32_t)__popc(equals & ((1u << lane) - 1));
            if (equal && place >= first && place < first + n) ids[place - first] = id;
            at += (uint32_t)__popc(equals);
        }
    }
    __syncthreads();
}

} // namespace sample
#endif
