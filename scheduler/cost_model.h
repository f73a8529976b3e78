/* How long a step will take:
 *
 *   t = base_ns + max(bytes * ns_per_byte, tokens * ns_per_token + rows * ns_per_row + pairs * ns_per_pair)
 *
 * bytes is what the step reads: all weights and the KV of its sequences. pairs is what attention multiplies: for each
 * token the positions before it. The model starts from a cautious guess and is fitted to measured steps: the branch of
 * the max that explains the step is corrected by a share of the error (a half while it is new, then a sixteenth of at
 * most a quarter), so that odd steps move little: the fit follows the usual step, not the mean (Huber 1964). In the
 * second branch each rate takes the part of the correction that goes with the square of its part in the prediction:
 * steps of different make-up tell the rates apart, and no rate can become negative (normalised least mean squares,
 * Widrow and Hoff 1960, on the logarithms of the rates). Frozen, it is a pure function of the batch, which reproducible
 * runs need. Pure; engine thread. */
#ifndef SCHEDULER_COST_MODEL_H
#define SCHEDULER_COST_MODEL_H

#include <stdbool.h>
#include <stdint.h>

struct cost_model {
    double ns_per_byte, ns_per_token, ns_per_row, ns_per_pair, base_ns;
    uint32_t fits_bytes, fits_work; /* measurements that each branch has seen */
    bool frozen;
};

struct cost_step {
    uint64_t bytes; /* weights and KV read */
    uint32_t tokens, rows;
    uint64_t pairs; /* tokens times the positions that each attends to */
};

/* First values: 8 GB/s; a token as dear as 1/16 of reading the weights, a row as a quarter of a token, 2,048 pairs as
 * a token, until measured. */
void cost_model_init(struct cost_model *model, uint64_t weights_bytes, bool frozen);

uint64_t cost_model_predict_ns(const struct cost_model *model, const struct cost_step *step);

/* How many tokens at position 0 may join the step so that its prediction is at most target_ns; 0 when it has no room.
 */
uint32_t cost_model_room(const struct cost_model *model, const struct cost_step *step, uint64_t target_ns);

/* How many tokens at position 0 cost as much as one at `position`. */
double cost_model_weight(const struct cost_model *model, uint32_t position);

/* A step that took measured_ns. */
void cost_model_observe(struct cost_model *model, const struct cost_step *step, uint64_t measured_ns);

#endif
