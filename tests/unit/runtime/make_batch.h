/* Batches that keep the contract of runtime/batch.h, for tests: sequences added one behind the other. */
#ifndef TESTS_UNIT_RUNTIME_MAKE_BATCH_H
#define TESTS_UNIT_RUNTIME_MAKE_BATCH_H

#include "runtime/batch.h"

/* All borrowed; ids and table reach as far as the sequence will. */
struct batch_sequence {
    const uint32_t *ids;
    const block_id *table;
    uint64_t seed;
};

static inline void batch_clear(struct batch *batch)
{
    batch->tokens_count = batch->seqs_count = batch->rows_count = 0;
    batch->q_start[0] = 0;
}

/* Adds `count` tokens of a sequence from `position` on. Each wants logits, chosen by params, unless that is NULL. */
static inline void batch_add_sequence(struct batch *batch, const struct batch_sequence *sequence, uint32_t position,
                                      uint32_t count, const struct sampling_params *params)
{
    uint32_t seq = batch->seqs_count++;
    batch->q_start[seq] = batch->tokens_count;
    batch->kv_len[seq] = position + count;
    batch->block_table[seq] = sequence->table;
    for (uint32_t i = position; i < position + count; i++) {
        uint32_t n = batch->tokens_count++;
        batch->tokens[n] = sequence->ids[i];
        batch->positions[n] = i;
        batch->seq_of_token[n] = seq;
        if (!params) continue;
        batch->rows[batch->rows_count++] = (struct batch_row){.token = n,
                                                              .params = params,
                                                              .seed = sequence->seed,
                                                              .position = i + 1,
                                                              .seen = sequence->ids,
                                                              .seen_prompt = i / 2,
                                                              .seen_count = i + 1};
    }
    batch->q_start[batch->seqs_count] = batch->tokens_count;
}

#endif
