/* Who computes which part of a step's attention: from lengths to the items of kernels/cuda_attention.h. Pure; made once
 * a step and once a rank, and once more where layers have a window. It decides about time only: a row's bits are the
 * same in every plan.
 *
 * A sequence's rows are grouped by 64. A group costs its tiles of 64 positions, and a constant. Groups go to workers in
 * falling order of cost, each to the worker with the least so far. A group that would exceed the even share is cut at
 * chunks, as long as there are tickets and partials: pieces fill workers up to the share.
 *
 * P1. Every row and every chunk that it sees is in exactly one item.
 * P2. The same step gives the same items.
 * P3. The highest load exceeds the even share by at most the cost of one group, or of one chunk where cutting was
 *     possible. */
#ifndef RUNTIME_DEVICE_CUDA_ATTENTION_PLAN_H
#define RUNTIME_DEVICE_CUDA_ATTENTION_PLAN_H

#include "kernels/cuda_attention.h"
#include "runtime/base/status.h"

#include <stdint.h>

struct attention_plan_config {
    uint32_t tokens_max, seqs_max, context_max;
    uint32_t H, KH, D; /* of the rank */
    uint32_t grid;     /* blocks of cuda_attention */
};

struct attention_plan;

/* Items of the longest plan of a step of at most so many tokens and sequences. */
uint32_t attention_plan_items_max(const struct attention_plan_config *config, uint32_t tokens, uint32_t seqs);

/* Takes all memory that planning needs. ST_NOMEM. ST_INVAL: H is no multiple of KH, the grid has
 * less than KH blocks, or a context has more chunks than
 * an item can name. */
NODISCARD enum status attention_plan_create(const struct attention_plan_config *config, struct attention_plan **plan);
void attention_plan_destroy(struct attention_plan *plan);

/* Writes the items of a step of `seqs` sequences (q_start, kv_len as in cuda_step.h) for layers with `window` (0: none)
 * and returns how many. Sequences without tokens have none. Allocates nothing. */
uint32_t attention_plan_make(struct attention_plan *plan, uint32_t seqs, const uint32_t *q_start,
                             const uint32_t *kv_len, uint32_t window, struct attention_item *items);

#endif
