/* What a step tells the kernels: one buffer, written on the host into pinned memory, copied once, read by all kernels
 * of the step. Plain C and CUDA.
 *
 * The arrays lie at fixed places of the buffer, sized for the largest step, so that a captured graph finds them again;
 * how many entries live is in the header, which kernels read on the device. A launch may cover more tokens or rows than
 * the step has (a graph's bucket): what lies beyond the header's counts is not read and writes nothing.
 *
 * Nothing is kept between steps: block tables travel whole, as flat entries with a start a sequence. 450,000 tokens of
 * KV are 28,000 entries, 112 KB, 2 us of PCIe. Deltas against tables kept on the device were rejected: host and device
 * would have to agree about what was preempted, replaced and dropped. */
#ifndef KERNELS_CUDA_STEP_H
#define KERNELS_CUDA_STEP_H

#include "kernels/cuda_attention.h"

#include <stdint.h>

/* A token whose id is what row (token & ~CUDA_TOKEN_OF_ROW) of the step before has chosen. */
#define CUDA_TOKEN_OF_ROW 0x80000000u

struct cuda_step_header {
    uint32_t tokens, seqs, rows; /* M, S, R of this step */
    uint32_t items[CUDA_ATTENTION_PLANS];
    uint32_t reserved[3]; /* 0 */
};

enum cuda_row_flag {
    CUDA_ROW_SCORE_ONLY = 1,  /* nothing is drawn: target is scored */
    CUDA_ROW_PENDING_SEEN = 2 /* the id that the row `pending` of the step before chose counts as seen, in the output */
};

/* A row that wants logits (struct batch_row of runtime/batch.h without pointers). Lists are entries of `lists`. */
struct cuda_row {
    uint64_t seed;
    uint32_t token;    /* index of the token whose logits are wanted */
    uint32_t position; /* of the token to be chosen: the draw depends on (seed, position) alone */
    uint32_t flags;    /* enum cuda_row_flag */
    uint32_t target;
    uint32_t pending;
    float temperature, top_p, min_p;
    float repetition_penalty, frequency_penalty, presence_penalty;
    uint32_t top_k;
    int32_t logprobs;
    uint32_t bias, bias_count;       /* pairs: id, bits of the f32 */
    uint32_t allowed, allowed_count; /* ids; any_allowed tells an empty list from none */
    uint32_t any_allowed;
    uint32_t banned, banned_count;
    uint32_t seen, seen_prompt, seen_count;
};

/* Device pointers into the step buffer; a plain struct of the host, never passed to a kernel whole. */
struct cuda_step {
    const struct cuda_step_header *header;
    const uint32_t *tokens;                                   /* (M) ids, or CUDA_TOKEN_OF_ROW */
    const uint32_t *positions;                                /* (M) */
    const uint32_t *seq_of_token;                             /* (M) */
    const uint32_t *q_start;                                  /* (S + 1) first token of each sequence */
    const uint32_t *kv_len;                                   /* (S) including this step's tokens */
    const uint32_t *table_start;                              /* (S + 1) into table */
    const uint32_t *table;                                    /* block ids of all sequences, one after the other */
    const struct attention_item *items[CUDA_ATTENTION_PLANS]; /* (header->items) of layers without, with a window */
    const struct cuda_row *rows;                              /* (R) rising in token */
    const uint32_t *row_tokens;                               /* (R) rows[r].token, for the norm before the head */
    const uint32_t *lists;                                    /* what rows point into */
};

#endif
