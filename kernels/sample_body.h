/* The lane-structured passes over logits, compiled once a path; see sample.h and lanes.h. Included by sample*.c alone.
 */
#ifndef KERNELS_SAMPLE_BODY_H
#define KERNELS_SAMPLE_BODY_H

#include "kernels/lanes.h"
#include "kernels/sample.h"

/* Each lane keeps its first highest logit and where it stood; ids are compared only between lanes, at the end. x * 0 is
 * NaN for what is not finite, so one fma a vector watches over all. */
static struct logit_peak peak_of(const float *logits, uint32_t V, bool masked)
{
    struct lanes highest = lanes_set(-INFINITY), watch = lanes_zero();
    float values[16], watched[16];
    uint32_t firsts[16] = {0}, whole = V & ~15u;
    struct logit_peak peak = {-INFINITY, 0, true};
    for (uint32_t i = 0; i < whole; i += 16) {
        struct lanes v = lanes_load(logits + i);
        watch = lanes_fma(v, lanes_zero(), watch);
        for (uint32_t higher = lanes_mask_gt(v, highest); higher; higher &= higher - 1) {
            firsts[__builtin_ctz(higher)] = i; /* rare after the first vectors */
        }
        highest = lanes_max(highest, v);
    }
    lanes_store(values, highest);
    lanes_store(watched, watch);
    for (uint32_t j = 0; j < 16 && whole; j++) {
        uint32_t id = firsts[j] + j;
        if (watched[j] != 0) peak.finite = false;
        if (values[j] > peak.value || (values[j] == peak.value && id < peak.id))
            peak = (struct logit_peak){values[j], id, peak.finite};
    }
    for (uint32_t id = whole; id < V; id++) {
        if (logits[id] * 0 != 0) peak.finite = false;
        if (logits[id] > peak.value) peak = (struct logit_peak){logits[id], id, peak.finite};
    }
    if (masked) peak.finite = peak.value - peak.value == 0;
    return peak;
}

/* Weights of 16 logits; lanes from n on are 0. */
LANES_INLINE struct lanes weigh_lanes(struct lanes v, const struct logit_weights *weights)
{
    struct lanes z = lanes_div(lanes_sub(v, lanes_set(weights->peak)), lanes_set(weights->temperature));
    return lanes_zero_below(z, lanes_set(weights->lowest), lanes_exp(z));
}

static double weight_sum(const float *logits, uint32_t V, const struct logit_weights *weights)
{
    struct lanes_double sum = lanes_double_zero();
    uint32_t whole = V & ~15u, tail = V & 15u;
    for (uint32_t i = 0; i < whole; i += 16) sum = lanes_double_add(sum, weigh_lanes(lanes_load(logits + i), weights));
    if (tail) {
        struct lanes w = weigh_lanes(lanes_load_n(logits + whole, tail), weights);
        sum = lanes_double_add(sum, lanes_first(tail, w, lanes_zero()));
    }
    return lanes_double_sum(sum);
}

static uint32_t gather(const float *logits, uint32_t V, float low, float high, uint64_t *keys)
{
    uint32_t count = 0;
    for (uint32_t i = 0; i < V; i += 16) {
        uint32_t n = V - i < 16 ? V - i : 16;
        struct lanes v = n == 16 ? lanes_load(logits + i) : lanes_load_n(logits + i, n);
        uint32_t found = lanes_mask_ge(v, lanes_set(low)) & (0xffffu >> (16 - n));
        if (!found) continue;
        for (found &= lanes_mask_gt(lanes_set(high), v); found; found &= found - 1) {
            uint32_t id = i + (uint32_t)__builtin_ctz(found);
            keys[count++] = sample_key(logits[id], id);
        }
    }
    return count;
}

static void weigh(const uint64_t *keys, uint32_t count, const struct logit_weights *weights, float *out)
{
    for (uint32_t i = 0; i < count; i += 16) {
        uint32_t n = count - i < 16 ? count - i : 16;
        float logits[16] = {0};
        for (uint32_t j = 0; j < n; j++) logits[j] = sample_key_logit(keys[i + j]);
        lanes_store_n(out + i, weigh_lanes(lanes_load(logits), weights), n);
    }
}

static uint32_t count_before(const float *logits, uint32_t V, float value, uint32_t id)
{
    uint32_t count = 0;
    for (uint32_t i = 0; i < V; i += 16) {
        uint32_t n = V - i < 16 ? V - i : 16, valid = 0xffffu >> (16 - n);
        struct lanes v = n == 16 ? lanes_load(logits + i) : lanes_load_n(logits + i, n);
        count += (uint32_t)__builtin_popcount(lanes_mask_gt(v, lanes_set(value)) & valid);
        if (i < id) {
            uint32_t lower = id - i < 16 ? (1u << (id - i)) - 1 : 0xffffu;
            count += (uint32_t)__builtin_popcount(lanes_mask_eq(v, lanes_set(value)) & valid & lower);
        }
    }
    return count;
}

static float dot(const float *a, const float *b, uint32_t count)
{
    struct lanes sum = lanes_zero();
    uint32_t whole = count & ~15u, tail = count & 15u;
    for (uint32_t k = 0; k < whole; k += 16) sum = lanes_fma(lanes_load(a + k), lanes_load(b + k), sum);
    if (tail) sum = lanes_fma(lanes_load_n(a + whole, tail), lanes_load_n(b + whole, tail), sum);
    return lanes_sum(sum);
}

const struct sample_ops LANES_NAME(sample_ops) = {peak_of, weight_sum, gather, weigh, count_before, dot};

#endif
