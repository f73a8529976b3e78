/* From logits to ids on the GPU; sampler.h and batch.h say what, sample.cuh how a goal is found. Three launches:
 *
 * scan_logits, grid (parts, R): reads the logits: the peak of each tile of 1024, finite or not. A row that asks for it
 * gets its changed logits (masks, bias, penalties) in a copy, with peaks of their own. Bins that will be needed are
 * cleared.
 *
 * measure_weights, grid (parts, R, 2): rows that draw, and rows with log-probabilities: the histogram of weights.
 *
 * choose_ids, grid (R): the id; its log-probability and rank; the best.
 *
 * A greedy row reads its logits once. One that draws reads them once more for the histogram, and then the few tiles
 * that hold candidates near the place that was drawn. Launches follow each other instead of tickets between blocks:
 * no counter must be zero, and the two later ones end at once for rows that do not need them.
 *
 * The changed logits are a copy (scratch: V floats a row), since log-probabilities are of the raw ones. A mark for each
 * id of a part is made in shared memory by reading the row's lists once a part: penalties cost 4 bytes of L2 a seen id
 * and part of 4096 logits. Rejected: changing in place and putting back; a table of marks in device memory, which
 * would have to be cleared. */
#include "kernels/cuda_ops.h"
#include "kernels/sample.cuh"

#include <float.h>

namespace
{

using namespace sample;

/* struct row_result of runtime/batch.h, which lies in a layer above; a test compares them. */
struct row_result {
    uint32_t id, flags;
    float logprob;
    uint32_t rank, top_count, top_ids[TOP];
    float top_logprobs[TOP];
};
constexpr uint32_t NOT_FINITE = 1, NO_CHOICE = 2;

constexpr uint32_t SCAN_WARPS = 4, SCAN_THREADS = 32 * SCAN_WARPS, PART = SCAN_WARPS * TILE;
enum mark { MARK_ALLOWED = 1, MARK_BANNED = 2, MARK_SEEN = 4, MARK_TIME = 8 /* once for each time in the output */ };
constexpr uint32_t ROW_BINS = 2 * BINS; /* high, low; a row has two sets: for its draw, for log-probabilities */

/* ---- scan ---- */

struct part_marks {
    uint32_t marks[PART];
    float bias[PART];
};

__device__ __forceinline__ bool draws(const cuda_row &row)
{
    return !(row.flags & CUDA_ROW_SCORE_ONLY) && row.temperature > 0;
}
__device__ __forceinline__ bool penalises(const cuda_row &row)
{
    return row.repetition_penalty != 1 || row.frequency_penalty != 0 || row.presence_penalty != 0;
}
__device__ __forceinline__ bool changes(const cuda_row &row)
{
    return !(row.flags & CUDA_ROW_SCORE_ONLY) &&
           (row.any_allowed || row.banned_count || row.bias_count || penalises(row));
}

/* What the row's lists say about ids [first, first + PART). All threads; ends with a barrier. */
__device__ __forceinline__ void mark_part(part_marks &p, const cuda_row &row, const uint32_t *lists,
                                          const uint32_t *previous, uint32_t first)
{
    for (uint32_t i = threadIdx.x; i < PART; i += SCAN_THREADS) {
        p.marks[i] = 0;
        p.bias[i] = 0;
    }
    __syncthreads();
    for (uint32_t i = threadIdx.x; row.any_allowed && i < row.allowed_count; i += SCAN_THREADS) {
        const uint32_t at = lists[row.allowed + i] - first;
        if (at < PART) atomicOr(&p.marks[at], (uint32_t)MARK_ALLOWED);
    }
    for (uint32_t i = threadIdx.x; i < row.banned_count; i += SCAN_THREADS) {
        const uint32_t at = lists[row.banned + i] - first;
        if (at < PART) atomicOr(&p.marks[at], (uint32_t)MARK_BANNED);
    }
    for (uint32_t i = threadIdx.x; i < row.bias_count; i += SCAN_THREADS) {
        const uint32_t at = lists[row.bias + 2 * i] - first;
        if (at < PART) p.bias[at] = __uint_as_float(lists[row.bias + 2 * i + 1]);
    }
    if (penalises(row)) {
        const uint32_t begin = row.repetition_penalty != 1 ? 0 : row.seen_prompt;
        for (uint32_t i = begin + threadIdx.x; i < row.seen_count; i += SCAN_THREADS) {
            const uint32_t at = lists[row.seen + i] - first;
            if (at >= PART) continue;
            if (i < row.seen_prompt)
                atomicOr(&p.marks[at], (uint32_t)MARK_SEEN);
            else
                atomicAdd(&p.marks[at], (uint32_t)MARK_TIME);
        }
        if (row.flags & CUDA_ROW_PENDING_SEEN && threadIdx.x == 0) {
            const uint32_t at = previous[row.pending] - first;
            if (at < PART) atomicAdd(&p.marks[at], (uint32_t)MARK_TIME);
        }
    }
    __syncthreads();
}

/* The logit as the row wants it: masks, bias, penalties, in the operations of runtime/sampler.c. */
__device__ __forceinline__ float changed_logit(float logit, const cuda_row &row, uint32_t mark, float bias)
{
    if ((row.any_allowed && !(mark & MARK_ALLOWED)) || mark & MARK_BANNED) return -INFINITY;
    if (row.bias_count) logit = __fadd_rn(logit, bias);
    if (mark < MARK_SEEN) return logit;
    const float times = (float)(mark / MARK_TIME);
    logit = logit > 0 ? logit / row.repetition_penalty : __fmul_rn(logit, row.repetition_penalty);
    if (times > 0) logit = __fadd_rn(__fadd_rn(logit, -__fmul_rn(times, row.frequency_penalty)), -row.presence_penalty);
    return logit;
}

__device__ __forceinline__ void take(peak &best, float logit, uint32_t id)
{
    if (best.id == NO_ID || logit > best.value) best = {logit, id};
}

__global__ void __launch_bounds__(SCAN_THREADS)
    scan_logits(const cuda_step_header *header, const cuda_row *rows, const uint32_t *lists, const uint32_t *previous,
                const float *logits, uint32_t stride, uint32_t V, float scale, peak *raw_peaks, peak *changed_peaks,
                float *changed, uint32_t changed_stride, u64 *bins)
{
    KX_SHARED(part_marks, part, );
    const uint32_t r = blockIdx.y, tiles = (V + TILE - 1) / TILE, warp = threadIdx.x / 32;
    if (r >= header->rows) return;
    const cuda_row &row = rows[r];
    const bool change = changes(row);
    const float *own = logits + (size_t)r * stride;
    float *out = changed + (size_t)r * changed_stride;
    u64 *own_bins = bins + (size_t)r * 2 * ROW_BINS;
    for (uint32_t i = blockIdx.x * SCAN_THREADS + threadIdx.x; i < 2 * ROW_BINS; i += gridDim.x * SCAN_THREADS) {
        if (i < ROW_BINS ? draws(row) : row.logprobs >= 0) own_bins[i] = 0;
    }
    for (uint32_t first = blockIdx.x * SCAN_WARPS; first < tiles; first += gridDim.x * SCAN_WARPS) {
        if (change) {
            __syncthreads(); /* the marks of the part before have been read */
            mark_part(part, row, lists, previous, first * TILE);
        }
        const uint32_t tile = first + warp;
        if (tile >= tiles) continue;
        bool finite = true;
        peak raw = {-INFINITY, NO_ID}, best = {-INFINITY, NO_ID};
        each_of_tile(own, scale, V, tile, [&](float logit, uint32_t id) {
            finite = finite && fabsf(logit) <= FLT_MAX;
            take(raw, logit, id);
            if (!change) return;
            const float l = changed_logit(logit, row, part.marks[id - first * TILE], part.bias[id - first * TILE]);
            out[id] = l;
            take(best, l, id);
        });
        finite = __all_sync(kx::FULL_MASK, finite);
        raw = warp_peak(raw);
        if (change) best = warp_peak(best);
        if (kx::lane() == 0) {
            if (!finite) raw.value = NAN;
            raw_peaks[(size_t)r * tiles + tile] = raw;
            if (change) changed_peaks[(size_t)r * tiles + tile] = best;
        }
    }
}

/* ---- measure and choose ---- */

/* The row as its draw sees it, and raw, as its log-probabilities do. */
__device__ __forceinline__ view view_of(const cuda_row &row, bool raw, uint32_t r, const float *logits, uint32_t stride,
                                        uint32_t V, float scale, const peak *raw_peaks, const peak *changed_peaks,
                                        const float *changed, uint32_t changed_stride)
{
    const uint32_t tiles = (V + TILE - 1) / TILE;
    view v = {logits + (size_t)r * stride, scale, V, raw_peaks + (size_t)r * tiles, 0, 1, -INFINITY, raw};
    if (raw) return v;
    v.temperature = row.temperature;
    if (row.min_p > 0) v.lowest = (float)log((double)row.min_p);
    if (changes(row)) {
        v.logits = changed + (size_t)r * changed_stride;
        v.scale = 1;
        v.tiles = changed_peaks + (size_t)r * tiles;
    }
    return v;
}

__global__ void __launch_bounds__(THREADS, 2)
    measure_weights(const cuda_step_header *header, const cuda_row *rows, const float *logits, uint32_t stride,
                    uint32_t V, float scale, const peak *raw_peaks, const peak *changed_peaks, const float *changed,
                    uint32_t changed_stride, u64 *bins)
{
    KX_SHARED(state, s, );
    const uint32_t r = blockIdx.y;
    const bool raw = blockIdx.z == 1;
    if (r >= header->rows || !(raw ? rows[r].logprobs >= 0 : draws(rows[r]))) return;
    view v = view_of(rows[r], raw, r, logits, stride, V, scale, raw_peaks, changed_peaks, changed, changed_stride);
    find_peak(s, v.tiles, V);
    v.highest = s.best.value;
    if (!(fabsf(v.highest) <= FLT_MAX)) return;
    clear_bins(s);
    each(v, KEY_NONE, blockIdx.x * WARPS, gridDim.x * WARPS, [&](float logit, uint32_t id) {
        (void)id;
        const float z = exponent(v, logit);
        const mass own = weigh(v, z);
        if (own.low) add_to_bin(s, bin_of(z), own);
    });
    __syncthreads();
    u64 *own_bins = bins + ((size_t)r * 2 + blockIdx.z) * ROW_BINS;
    for (uint32_t i = threadIdx.x; i < BINS; i += THREADS) {
        if (s.high[i]) atomicAdd(&own_bins[i], s.high[i]);
        if (s.low[i]) atomicAdd(&own_bins[BINS + i], s.low[i]);
    }
}

/* Whether the row's token, or one before it in its sequence and this step, was bad. */
__device__ __forceinline__ bool is_bad(const cuda_row &row, const uint32_t *bad, const uint32_t *seq_of_token,
                                       const uint32_t *q_start)
{
    uint32_t found = 0;
    for (uint32_t t = q_start[seq_of_token[row.token]] + threadIdx.x; t <= row.token; t += THREADS) found |= bad[t];
    return __syncthreads_or(found != 0);
}

/* top_k, top_p and the draw, each a goal; the id is in s.spot.id. */
__device__ __forceinline__ void draw(const view &v, state &s, const u64 *bins, const cuda_row &row, uint32_t peak_id)
{
    load_bins(s, bins);
    sum_bins(s);
    const mass total = s.total;
    double sum = weight_of(total);
    if (threadIdx.x == 0) s.spot = {key_of(v.highest), 0, peak_id, {0, 0}};
    __syncthreads();
    for (int step = 0; step < 3; step++) {
        if (step == 0 && (row.top_k == 0 || row.top_k >= count_of(total))) continue;
        if (step == 1 && !(row.top_p < 1)) continue;
        goal g = {GOAL_COUNT, row.top_k, 0};
        if (step == 1) g = {GOAL_REACH, 0, (double)row.top_p * sum};
        if (step == 2) g = {GOAL_PASS, 0, uniform(row.seed, row.position) * sum};
        locate(v, s, bins, g);
        sum = weight_of(s.spot.running);
        __syncthreads();
    }
    if (s.spot.id == NO_ID) find_ties(v, s, s.spot.key, s.spot.tie, 1, &s.spot.id);
}

/* Log-probability and rank of `id` and the best, from the raw logits. */
__device__ __forceinline__ void score(const view &v, state &s, const u64 *bins, uint32_t id, int32_t wanted,
                                      row_result *result)
{
    const uint32_t top = min(min((uint32_t)wanted, TOP), v.V);
    const float logit = __fmul_rn(kx::load(v.logits + id), v.scale);
    load_bins(s, bins);
    sum_bins(s);
    const double base = (double)v.highest + log(weight_of(s.total));
    uint32_t higher = 0;
    each(v, key_of(logit) + 1, 0, WARPS, [&](float l, uint32_t i) { higher += l > logit || (l == logit && i < id); });
    higher = __reduce_add_sync(kx::FULL_MASK, higher);
    if (threadIdx.x == 0) s.count = 0;
    __syncthreads();
    if (kx::lane() == 0) atomicAdd(&s.count, higher);
    __syncthreads();
    if (threadIdx.x == 0) {
        result->logprob = (float)((double)logit - base);
        result->rank = 1 + s.count;
        result->top_count = top;
    }
    if (top == 0) return;
    locate(v, s, bins, {GOAL_COUNT, top, 0});
    const uint32_t key = s.spot.key, ties = s.spot.tie + 1, above = top - ties;
    if (threadIdx.x == 0) s.count = 0;
    __syncthreads();
    find_ties(v, s, key, 0, ties, s.list_id + above);
    each(v, key, 0, WARPS, [&](float l, uint32_t i) {
        if (key_of(l) >= key) return;
        const uint32_t at = atomicAdd(&s.count, 1u);
        s.list_key[at] = key_of(l);
        s.list_id[at] = i;
    });
    if (threadIdx.x >= above && threadIdx.x < top) s.list_key[threadIdx.x] = key;
    __syncthreads();
    if (threadIdx.x >= top) return;
    const u64 mine = (u64)s.list_key[threadIdx.x] << 32 | s.list_id[threadIdx.x];
    uint32_t place = 0;
    for (uint32_t j = 0; j < top; j++) place += ((u64)s.list_key[j] << 32 | s.list_id[j]) < mine;
    result->top_ids[place] = s.list_id[threadIdx.x];
    result->top_logprobs[place] = (float)((double)logit_of(s.list_key[threadIdx.x]) - base);
}

__global__ void __launch_bounds__(THREADS, 2)
    choose_ids(const cuda_step_header *header, const cuda_row *rows, const uint32_t *seq_of_token,
               const uint32_t *q_start, const uint32_t *bad, const float *logits, uint32_t stride, uint32_t V,
               float scale, const peak *raw_peaks, const peak *changed_peaks, const float *changed,
               uint32_t changed_stride, const u64 *bins, uint32_t *ids, row_result *results)
{
    KX_SHARED(state, s, );
    const uint32_t r = blockIdx.x;
    if (r >= header->rows) return;
    const cuda_row &row = rows[r];
    view raw = view_of(row, true, r, logits, stride, V, scale, raw_peaks, changed_peaks, changed, changed_stride);
    view own = view_of(row, false, r, logits, stride, V, scale, raw_peaks, changed_peaks, changed, changed_stride);
    const u64 *own_bins = bins + (size_t)r * 2 * ROW_BINS;
    uint32_t flags = is_bad(row, bad, seq_of_token, q_start) ? NOT_FINITE : 0, id = 0;
    find_peak(s, raw.tiles, V);
    raw.highest = s.best.value;
    if (!(fabsf(raw.highest) <= FLT_MAX)) flags = NOT_FINITE;
    if (flags == 0 && row.flags & CUDA_ROW_SCORE_ONLY) {
        id = row.target;
    } else if (flags == 0) {
        __syncthreads();
        find_peak(s, own.tiles, V);
        own.highest = s.best.value;
        id = s.best.id;
        if (!(fabsf(own.highest) <= FLT_MAX)) flags = own.highest > 0 ? NOT_FINITE : NO_CHOICE;
        if (flags == 0 && draws(row)) {
            draw(own, s, own_bins, row, id);
            id = s.spot.id;
        }
    }
    if (flags) id = 0;
    row_result *result = results + r;
    if (threadIdx.x == 0) {
        result->id = id;
        result->flags = flags;
        result->logprob = 0;
        result->rank = result->top_count = 0;
        ids[r] = id;
    }
    __syncthreads();
    if (flags == 0 && row.logprobs >= 0) score(raw, s, own_bins + ROW_BINS, id, row.logprobs, result);
}

/* ---- scratch and launch ---- */

struct scratch {
    u64 *bins;
    peak *raw_peaks, *changed_peaks;
    float *changed;
    uint32_t changed_stride;
    size_t bytes;
};

/* bins (R, 2, 2 BINS), raw and changed peaks (R, tiles), changed logits (R, V rounded up to 4) */
scratch divide(void *memory, size_t rows, uint32_t V)
{
    const size_t tiles = (V + TILE - 1) / TILE, bins = rows * 2 * ROW_BINS * sizeof(u64);
    const size_t peaks = (rows * tiles * sizeof(peak) + 15) / 16 * 16;
    scratch s;
    unsigned char *at = static_cast<unsigned char *>(memory);
    s.changed_stride = (V + 3) / 4 * 4;
    s.bytes = bins + 2 * peaks + rows * s.changed_stride * sizeof(float);
    s.bins = reinterpret_cast<u64 *>(at);
    s.raw_peaks = reinterpret_cast<peak *>(at + bins);
    s.changed_peaks = reinterpret_cast<peak *>(at + bins + peaks);
    s.changed = reinterpret_cast<float *>(at + bins + 2 * peaks);
    return s;
}

/* Blocks a row: one for each `most` logits, fewer when the rows alone fill a GPU. It changes no bit. */
uint32_t parts_of(uint32_t V, uint32_t most, uint32_t R)
{
    const uint32_t wanted = (V + most - 1) / most, enough = (1024 + R - 1) / R;
    return wanted < enough ? wanted : enough;
}

} // namespace

size_t cuda_sample_scratch_bytes(uint32_t rows_max, uint32_t V)
{
    return divide(nullptr, rows_max, V).bytes;
}

cudaError_t cuda_sample(const struct cuda_sample *sample, const struct cuda_step *step, uint32_t R, cudaStream_t stream)
{
    const uint32_t V = sample->V, stride = sample->stride;
    if (V == 0 || V > V_MAX || stride < V || stride % 4 || (uintptr_t)sample->logits % 16) return cudaErrorInvalidValue;
    if (R == 0) return cudaSuccess;
    const scratch s = divide(sample->scratch, R, V);
    const float scale = sample->logit_scale, *logits = sample->logits;
    cudaError_t error = kx::launch(scan_logits, dim3(parts_of(V, PART, R), R), SCAN_THREADS, 0, stream, step->header,
                                   step->rows, step->lists, sample->previous, logits, stride, V, scale, s.raw_peaks,
                                   s.changed_peaks, s.changed, s.changed_stride, s.bins);
    if (error != cudaSuccess) return error;
    const uint32_t parts = parts_of(V, 2 * PART, R);
    error = kx::launch(measure_weights, dim3(parts, R, 2), THREADS, 0, stream, step->header, step->rows, logits, stride,
                       V, scale, s.raw_peaks, s.changed_peaks, s.changed, s.changed_stride, s.bins);
    if (error != cudaSuccess) return error;
    return kx::launch(choose_ids, R, THREADS, 0, stream, step->header, step->rows, step->seq_of_token, step->q_start,
                      sample->bad, logits, stride, V, scale, s.raw_peaks, s.changed_peaks, s.changed, s.changed_stride,
                      s.bins, sample->ids, static_cast<row_result *>(sample->results));
}
