/* From a row of logits to a token, its log-probability and its rank; exact, without sorting what need not be sorted.
 *
 * Order, as batch.h states it (the order of vLLM's V1 sampler): allowed ids, banned ids, bias, repetition, frequency
 * and presence penalty; then greedy (temperature 0), or temperature, min_p, top_k, top_p, draw. With z = (l - max) / T:
 *   min_p   keeps z >= ln(min_p)
 *   top_k   keeps the k first by (falling logit, rising id)
 *   top_p   keeps the shortest run of these whose weights reach top_p of their sum
 *   draw    the first, in the same order, at which the running sum of weights passes u * sum, u from (seed, position)
 * Weights are e^z in f32; all sums of them are double.
 *
 * S1. Candidates are taken in descending bands of the logits: a band is gathered in one pass and sorted, and the next
 * is looked at only when the choice has not been made. The order is that of a full sort, at the price of a short one.
 * S2. A plain greedy row reads the highest of each unit (kernels/sample.h) and one unit of logits; candidates cost as
 * much and the units they lie in. Only top_p, a draw from all and log-probabilities read all logits, for their sum.
 * S3. What a row changes (bias, penalties) is changed in place and put back before its log-probabilities, which are of
 * the raw logits, like ranks. A row with `allowed` works on a row of its own that is all masked between rows.
 * S4. The result depends on the arguments alone; memory between rows is scratch. marks is all zero between rows.
 *
 * One sampler a thread; no allocation after sampler_init. */
#ifndef RUNTIME_SAMPLER_H
#define RUNTIME_SAMPLER_H

#include "kernels/sample.h"
#include "runtime/batch.h"

#include <stddef.h>
#include <stdint.h>

struct logit_change {
    uint32_t id;
    float before;
};

struct sampler {
    enum cpu_path path;
    uint32_t V;
    struct logit_row masked;      /* -infinity everywhere between rows, once masked_ready */
    struct logit_change *changes; /* (V) what the row in hand changed */
    float *highest;               /* (units) as they were before */
    float *weights;               /* (V) of keys */
    uint64_t *keys, *spare;       /* (V) candidates found so far, in order */
    uint32_t *marks;              /* (V) penalties: 1 for seen, 2 for each time in the output; MARK_CHANGED */
    uint32_t changes_count;
    bool masked_ready;
};

/* Bytes of memory for a vocabulary of V; touched only as far as rows need it. */
size_t sampler_bytes(uint32_t V);
/* memory: zeroed, 64-byte aligned, sampler_bytes(V); the caller's, as long as the sampler is used. */
void sampler_init(struct sampler *sampler, enum cpu_path path, uint32_t V, void *memory);

/* logits: scanned by sample_scan, sampler's V; changed meanwhile, as before at return (S3). Writes all fields of result
 * but the unused end of its top lists. ROW_NOT_FINITE: the logits hold a NaN or an infinity; ROW_NO_CHOICE: masks left
 * nothing. Then id is 0 and the log-probabilities are 0. */
void sampler_row(struct sampler *sampler, const struct logit_row *logits, const struct batch_row *row,
                 struct row_result *result);

#endif
