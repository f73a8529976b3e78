/* The passes over a row of logits that sampling is made of; what they are used for, and in which order, is
 * runtime/sampler.h. Each gives the same result on every path: comparisons are exact, sums of exponentials are double
 * over 16 lanes (lanes_exp in f32, added in double, id mod 16, the tree of lanes.h).
 *
 * A row is logits (V) f32 and, for each unit of SAMPLE_UNIT of them, the highest. sample_scan makes these while the
 * logits are in the cache of whoever computed them; then the highest of all and the candidates near it cost a pass over
 * V / 128 values and the few units that hold one, and V logits are read again only for a sum over all. A unit of 16, a
 * vector, would point more closely, but its maximum across lanes costs as much as the pass it saves.
 *
 * A "key" orders candidates: ascending keys are falling logits, lower ids first among equals (-0 = +0). The meaning of
 * all of them is their loop, so there is no _ref; tests hold them against plain sorting. Pure; any thread. */
#ifndef KERNELS_SAMPLE_H
#define KERNELS_SAMPLE_H

#include "kernels/cpu_path.h"

#include <stdbool.h>
#include <stdint.h>
#include <string.h>

enum { SAMPLE_UNIT = 128 };

struct logit_row {
    uint32_t V;
    float *logits;  /* (V) */
    float *highest; /* (sample_units(V)) of each unit; NaN where sample_scan met a NaN or an infinity in it */
};

struct logit_peak {
    float value; /* the highest */
    uint32_t id; /* the lowest id that has it */
    bool finite; /* value is finite and no unit's highest is NaN; else value and id mean nothing */
};

struct logit_weights { /* weight of a logit: e^((l - peak) / temperature), 0 where the exponent is below `lowest` */
    float peak, temperature, lowest;
};

static inline uint32_t sample_units(uint32_t V)
{
    return V / SAMPLE_UNIT + (V % SAMPLE_UNIT != 0);
}

/* The highest of each unit of `count` logits, where the first begins a unit. */
void sample_scan(enum cpu_path path, const float *logits, uint32_t count, float *highest);
/* row->logits[id] = value, and the highest of its unit follows. -infinity stands for "may not be chosen". */
void sample_set(enum cpu_path path, const struct logit_row *row, uint32_t id, float value);

struct logit_peak sample_peak(enum cpu_path path, const struct logit_row *row);
/* Sum of all weights. */
double sample_weight_sum(enum cpu_path path, const struct logit_row *row, const struct logit_weights *weights);
/* Keys of all logits with low <= l < high, in rising id; gives their number. keys (V). */
uint32_t sample_gather(enum cpu_path path, const struct logit_row *row, float low, float high, uint64_t *keys);
/* Weights of `count` keys: out (count). */
void sample_weigh(enum cpu_path path, const uint64_t *keys, uint32_t count, const struct logit_weights *weights,
                  float *out);
/* How many logits stand before (value, id): higher, or equal with a lower id. */
uint32_t sample_count_before(enum cpu_path path, const struct logit_row *row, float value, uint32_t id);

/* sum_k a[k] * b[k], k < count: lane k mod 16 over rising k by fma, then the tree of lanes.h. A logit again, in f32. */
float sample_dot(enum cpu_path path, const float *a, const float *b, uint32_t count);

static inline uint64_t sample_key(float logit, uint32_t id)
{
    uint32_t bits;
    logit += 0.0f; /* -0 becomes +0 */
    memcpy(&bits, &logit, 4);
    bits = bits >> 31 ? bits : ~bits & 0x7fffffffu; /* falling logits rise */
    return (uint64_t)bits << 32 | id;
}
static inline float sample_key_logit(uint64_t key)
{
    uint32_t bits = (uint32_t)(key >> 32);
    float logit;
    bits = bits >> 31 ? bits : ~bits & 0x7fffffffu;
    memcpy(&logit, &bits, 4);
    return logit;
}
static inline uint32_t sample_key_id(uint64_t key)
{
    return (uint32_t)key;
}
/* Sorts keys of rising id by key; spare (count). */
void sample_sort(uint64_t *keys, uint64_t *spare, uint32_t count);

/* The twins behind `path`. */
struct sample_ops {
    void (*scan)(const float *logits, uint32_t count, float *highest);
    void (*set)(const struct logit_row *row, uint32_t id, float value);
    struct logit_peak (*peak)(const struct logit_row *row);
    double (*weight_sum)(const struct logit_row *row, const struct logit_weights *weights);
    uint32_t (*gather)(const struct logit_row *row, float low, float high, uint64_t *keys);
    void (*weigh)(const uint64_t *keys, uint32_t count, const struct logit_weights *weights, float *out);
    uint32_t (*count_before)(const struct logit_row *row, float value, uint32_t id);
    float (*dot)(const float *a, const float *b, uint32_t count);
};
extern const struct sample_ops sample_ops_scalar, sample_ops_avx2, sample_ops_avx512;

#endif
