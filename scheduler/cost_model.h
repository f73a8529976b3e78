/* How long a step will take:   t = max(bytes * ns_per_byte, tokens * ns_per_token) + base_ns + rows * ns_per_row
 *
 * bytes is what the step reads: all weights and the KV of its sequences. It starts from a cautious guess and is fitted
 * to measured steps: the branch of the max that explains the step is corrected by a share of the error (a half while it
 * is new, then a sixteenth), so that one odd step moves little. Frozen, it is a pure function of the batch, which
 * reproducible runs need. Source: scheduler-and-serving design, section 2. Pure; engine thread. */
#ifndef SCHEDULER_COST_MODEL_H
#define SCHEDULER_COST_MODEL_H

#include <stdbool.h>
#include <stdint.h>

struct cost_model {
    double ns_per_byte, ns_per_token, base_ns, ns_per_row;
    uint32_t fits_bytes, fits_tokens; /* measurements that each branch has seen */
    bool frozen;
};

struct cost_step {
    uint64_t bytes; /* weights and KV read */
    uint32_t tokens, rows;
};

/* First values: 8 GB/s; a token as dear as 1/16 of reading the weights, until measured. */
void cost_model_init(struct cost_model *model, uint64_t weights_bytes, bool frozen);

uint64_t cost_model_predict_ns(const struct cost_model *model, const struct cost_step *step);

/* The largest number of tokens with a prediction of at most target_ns; 0 when even reading takes longer. */
uint32_t cost_model_tokens_max(const struct cost_model *model, uint64_t bytes, uint32_t rows, uint64_t target_ns);

/* A step that took measured_ns. */
void cost_model_observe(struct cost_model *model, const struct cost_step *step, uint64_t measured_ns);

#endif
