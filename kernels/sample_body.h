/* The lane-structured passes over logits, compiled once a path; see sample.h and lanes.h. Included by sample*.c alone.
 */
#ifndef KERNELS_SAMPLE_BODY_H
#define KERNELS_SAMPLE_BODY_H

#include "kernels/lanes.h"
#include "kernels/sample.h"

#include <math.h>

/* Sixteen values from p, or the n < 16 there are and `rest` beyond them. */
LANES_INLINE struct lanes load_or(const float *p, uint32_t n, float rest)
{
    return n >= 16 ? lanes_load(p) : lanes_first(n, lanes_load_n(p, n), lanes_set(rest));
}

static inline uint32_t unit_size(const struct logit_row *row, uint32_t unit)
{
    uint32_t left = row->V - unit * SAMPLE_UNIT;
    return left < SAMPLE_UNIT ? left : SAMPLE_UNIT;
}

/* The highest of n <= SAMPLE_UNIT logits. x * 0 is NaN for what is not finite, so one fma a vector watches over all. */
LANES_INLINE float scan_unit(const float *logits, uint32_t n)
{
    struct lanes peak = lanes_set(-INFINITY), watch = lanes_zero();
    for (uint32_t i = 0; i < n; i += 16) {
        watch = lanes_fma(load_or(logits + i, n - i, 0), lanes_zero(), watch);
        peak = lanes_max(load_or(logits + i, n - i, -INFINITY), peak);
    }
    return lanes_mask_eq(watch, lanes_zero()) == 0xffff ? lanes_peak(peak) : NAN;
}

static void scan(const float *logits, uint32_t count, float *highest)
{
    uint32_t whole = count / SAMPLE_UNIT;
    for (uint32_t u = 0; u < whole; u++) highest[u] = scan_unit(logits + u * SAMPLE_UNIT, SAMPLE_UNIT);
    if (count % SAMPLE_UNIT) highest[whole] = scan_unit(logits + whole * SAMPLE_UNIT, count % SAMPLE_UNIT);
}

static void set(const struct logit_row *row, uint32_t id, float value)
{
    uint32_t unit = id / SAMPLE_UNIT, n = unit_size(row, unit);
    float old = row->logits[id], *highest = row->highest + unit;
    row->logits[id] = value;
    if (value > *highest) {
        *highest = value;
    } else if (old == *highest) {
        const float *logits = row->logits + unit * SAMPLE_UNIT;
        struct lanes peak = lanes_set(-INFINITY);
        for (uint32_t i = 0; i < n; i += 16) peak = lanes_max(load_or(logits + i, n - i, -INFINITY), peak);
        *highest = lanes_peak(peak);
    }
}

/* The first of `count` values that equals `value`; count when none does. */
static uint32_t find(const float *values, uint32_t count, float value)
{
    for (uint32_t i = 0; i < count; i += 16) {
        uint32_t found = lanes_mask_eq(load_or(values + i, count - i, NAN), lanes_set(value));
        if (found) return i + (uint32_t)__builtin_ctz(found);
    }
    return count;
}

static struct logit_peak peak_of(const struct logit_row *row)
{
    uint32_t units = sample_units(row->V);
    struct lanes highest = lanes_set(-INFINITY);
    struct logit_peak peak = {.finite = true};
    for (uint32_t u = 0; u < units; u += 16) {
        struct lanes v = load_or(row->highest + u, units - u, -INFINITY);
        if (lanes_mask_eq(v, v) != 0xffff) peak.finite = false;
        highest = lanes_max(v, highest);
    }
    peak.value = lanes_peak(highest);
    if (peak.value - peak.value != 0) peak.finite = false;
    if (!peak.finite) return peak;
    uint32_t unit = find(row->highest, units, peak.value);
    peak.id = unit * SAMPLE_UNIT + find(row->logits + unit * SAMPLE_UNIT, unit_size(row, unit), peak.value);
    return peak;
}

/* Weights of 16 logits; lanes from n on are 0. */
LANES_INLINE struct lanes weigh_lanes(struct lanes v, const struct logit_weights *weights)
{
    struct lanes z = lanes_div(lanes_sub(v, lanes_set(weights->peak)), lanes_set(weights->temperature));
    return lanes_zero_below(z, lanes_set(weights->lowest), lanes_exp(z));
}

static double weight_sum(const struct logit_row *row, const struct logit_weights *weights)
{
    struct lanes_double sum = lanes_double_zero();
    uint32_t units = sample_units(row->V);
    for (uint32_t u = 0; u < units; u++) {
        const float *logits = row->logits + u * SAMPLE_UNIT;
        uint32_t n = unit_size(row, u), whole = n & ~15u, tail = n & 15u;
        float z = (row->highest[u] - weights->peak) / weights->temperature;
        if (z < weights->lowest || z < -87) continue; /* lanes_exp gives 0 for all of them */
        for (uint32_t i = 0; i < whole; i += 16) {
            sum = lanes_double_add(sum, weigh_lanes(lanes_load(logits + i), weights));
        }
        if (!tail) continue;
        struct lanes w = weigh_lanes(lanes_load_n(logits + whole, tail), weights);
        sum = lanes_double_add(sum, lanes_first(tail, w, lanes_zero()));
    }
    return lanes_double_sum(sum);
}

static uint32_t gather_unit(const struct logit_row *row, uint32_t unit, float low, float high, uint64_t *keys)
{
    uint32_t count = 0, first = unit * SAMPLE_UNIT, n = unit_size(row, unit);
    for (uint32_t i = 0; i < n; i += 16) {
        struct lanes v = load_or(row->logits + first + i, n - i, NAN);
        uint32_t found = lanes_mask_ge(v, lanes_set(low));
        if (!found) continue;
        for (found &= lanes_mask_gt(lanes_set(high), v); found; found &= found - 1) {
            uint32_t id = first + i + (uint32_t)__builtin_ctz(found);
            keys[count++] = sample_key(row->logits[id], id);
        }
    }
    return count;
}

static uint32_t gather(const struct logit_row *row, float low, float high, uint64_t *keys)
{
    uint32_t count = 0, units = sample_units(row->V);
    for (uint32_t u = 0; u < units; u += 16) {
        uint32_t near = lanes_mask_ge(load_or(row->highest + u, units - u, NAN), lanes_set(low));
        for (; near; near &= near - 1) {
            count += gather_unit(row, u + (uint32_t)__builtin_ctz(near), low, high, keys + count);
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

static uint32_t count_before_unit(const struct logit_row *row, uint32_t unit, float value, uint32_t id)
{
    uint32_t count = 0, first = unit * SAMPLE_UNIT, n = unit_size(row, unit);
    for (uint32_t i = 0; i < n; i += 16) {
        struct lanes v = load_or(row->logits + first + i, n - i, NAN);
        count += (uint32_t)__builtin_popcount(lanes_mask_gt(v, lanes_set(value)));
        if (first + i < id) {
            uint32_t lower = id - first - i < 16 ? (1u << (id - first - i)) - 1 : 0xffffu;
            count += (uint32_t)__builtin_popcount(lanes_mask_eq(v, lanes_set(value)) & lower);
        }
    }
    return count;
}

static uint32_t count_before(const struct logit_row *row, float value, uint32_t id)
{
    uint32_t count = 0, units = sample_units(row->V);
    for (uint32_t u = 0; u < units; u += 16) {
        uint32_t near = lanes_mask_ge(load_or(row->highest + u, units - u, NAN), lanes_set(value));
        for (; near; near &= near - 1) {
            count += count_before_unit(row, u + (uint32_t)__builtin_ctz(near), value, id);
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

const struct sample_ops LANES_NAME(sample_ops) = {scan, set, peak_of, weight_sum, gather, weigh, count_before, dot};

#endif
