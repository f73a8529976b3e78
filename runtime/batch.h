/* The contract between scheduler and device: one step is one flat list of tokens. Prefill chunks and decodes are not
 * different kinds of batch; a sequence brings 1..n consecutive tokens, and logits are made only for the rows that want
 * them.
 *
 *   sequence s owns tokens[q_start[s] .. q_start[s+1])     at positions[..], consecutive
 *   its KV covers positions 0 .. kv_len[s]-1 after the step, in blocks block_table[s][0 .. ceil(kv_len[s] / 16))
 *   row r wants the logits of token rows[r].token          rows in rising order of token
 *
 * A token may be one that nobody knows yet: TOKEN_OF_ROW | r is the id that row r of the step launched before this one
 * chooses, while that step is not collected (device.h). Such a token is the only one of its sequence in the step, the
 * row that chooses it is of the same sequence, and position, kv_len and block table are what they are with any id. No
 * two tokens name one row.
 *
 * All arrays belong to the engine, are sized at start (batch_create) and are valid for the step. The device writes a
 * batch_result: ids and, where asked, log-probabilities; nothing else comes back. */
#ifndef RUNTIME_BATCH_H
#define RUNTIME_BATCH_H

#include "runtime/base/status.h"

#include <stdbool.h>
#include <stdint.h>

enum { KV_BLOCK_TOKENS = 16, LOGPROBS_MAX = 21 /* top_logprobs 20, and the chosen one */ };

/* Or-ed with a row of the step launched before: see above. Vocabularies are below it. */
#define TOKEN_OF_ROW UINT32_C(0x80000000)

typedef uint32_t block_id;

/* Blocks that so many tokens of a sequence take. */
static inline uint32_t kv_blocks_for(uint32_t tokens)
{
    return tokens / KV_BLOCK_TOKENS + (tokens % KV_BLOCK_TOKENS != 0);
}

struct logit_bias {
    uint32_t id;
    float bias;
};

/* How a request wants its tokens chosen. Immutable while the request lives; shared by its choices apart from the seed.
 * Order of application: allowed ids, banned ids, bias, penalties (repetition, then frequency and presence),
 * temperature, min_p, top_k, top_p, draw. temperature 0 is greedy: the highest logit, the lowest id on a tie.
 * Log-probabilities are of the raw logits (vLLM's default), before all of this. */
struct sampling_params {
    float temperature;             /* 0..2 */
    float top_p;                   /* (0, 1]; 1 = off */
    float min_p;                   /* [0, 1]; 0 = off */
    uint32_t top_k;                /* 0 = off */
    float repetition_penalty;      /* > 0; 1 = off; over prompt and output (Keskar et al. 2019, as vLLM applies it) */
    float frequency_penalty;       /* -2..2, times the count in the output */
    float presence_penalty;        /* -2..2, once for ids in the output */
    const struct logit_bias *bias; /* one entry an id, or NULL */
    uint32_t bias_count;
    const uint32_t *allowed; /* only these ids may be chosen, or NULL */
    uint32_t allowed_count;
    int32_t logprobs; /* -1: none; k: the chosen token's and the k best */
};

/* One row that wants logits. */
struct batch_row {
    uint32_t token; /* index into tokens[]: its logits are wanted */
    const struct sampling_params *params;
    uint64_t seed;        /* the choice's; the draw depends on (seed, position) alone */
    uint32_t position;    /* of the token to be chosen */
    const uint32_t *seen; /* the sequence's ids so far: prompt, then output; for penalties */
    uint32_t seen_prompt, seen_count;
    const uint32_t *banned; /* ids that may not be chosen now (end ids while min_tokens is not reached), or NULL */
    uint32_t banned_count;
    bool pending;    /* tokens[token] is a TOKEN_OF_ROW: it is output too, the one after seen[seen_count - 1] */
    bool score_only; /* a prompt position (echo with logprobs): nothing is drawn, `target` is scored */
    uint32_t target;
};

struct batch {
    uint32_t tokens_count, seqs_count, rows_count;
    uint32_t *tokens;             /* [tokens_count] */
    uint32_t *positions;          /* [tokens_count] */
    uint32_t *seq_of_token;       /* [tokens_count] index of the sequence in this batch */
    uint32_t *q_start;            /* [seqs_count + 1] */
    uint32_t *kv_len;             /* [seqs_count] including this step's tokens */
    const block_id **block_table; /* [seqs_count] */
    struct batch_row *rows;       /* [rows_count] */
    uint32_t tokens_max, seqs_max, rows_max;
};

enum row_flag {
    ROW_NOT_FINITE = 1, /* NaN or infinity met: no token; the request must fail and its blocks must not be cached */
    ROW_NO_CHOICE = 2   /* nothing was left to choose from after the masks */
};

struct row_result {
    uint32_t id;                    /* chosen, or the target; with flags not meant for anyone */
    uint32_t flags;                 /* enum row_flag */
    float logprob;                  /* of id; only when logprobs >= 0 */
    uint32_t rank;                  /* of id among all logits, 1 = highest; only when logprobs >= 0 */
    uint32_t top_count;             /* min(logprobs, V) */
    uint32_t top_ids[LOGPROBS_MAX]; /* by falling logit, lower id first on a tie */
    float top_logprobs[LOGPROBS_MAX];
};

struct batch_result {
    struct row_result *rows; /* [rows_max] */
};

/* Does choosing the row look at seen ids? */
static inline bool batch_row_wants_seen(const struct batch_row *row)
{
    const struct sampling_params *p = row->params;
    return !row->score_only && (p->repetition_penalty != 1 || p->frequency_penalty != 0 || p->presence_penalty != 0);
}

/* Arrays for at most so many tokens, sequences and rows a step. ST_NOMEM. Owner: the engine. */
NODISCARD enum status batch_create(uint32_t tokens_max, uint32_t seqs_max, uint32_t rows_max, struct batch **batch);
void batch_destroy(struct batch *batch);
NODISCARD enum status batch_result_create(uint32_t rows_max, struct batch_result **result);
void batch_result_destroy(struct batch_result *result);

/* What a device takes. */
struct batch_bounds {
    uint32_t tokens_max, seqs_max, rows_max, context_max;
    uint32_t vocab, kv_blocks;
};
/* ST_INVAL: the batch breaks the contract above or the bounds. previous_rows: rows of the step launched before, while
 * it is not collected, else 0. marks: previous_rows bytes of scratch. Pure; any thread. */
NODISCARD enum status batch_check(const struct batch_bounds *bounds, const struct batch *batch, uint32_t previous_rows,
                                  uint8_t *marks);

#endif
