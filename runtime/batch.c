/* The arrays of batch.h, taken once at start, and what every device asks of a batch. */
#include "runtime/batch.h"

#include "runtime/base/mem.h"

#include <string.h>

enum status batch_create(uint32_t tokens_max, uint32_t seqs_max, uint32_t rows_max, struct batch **batch)
{
    struct batch *b = mem_alloc(1, sizeof *b);
    if (!b) return ST_NOMEM;
    b->tokens = mem_alloc(tokens_max, sizeof *b->tokens);
    b->positions = mem_alloc(tokens_max, sizeof *b->positions);
    b->seq_of_token = mem_alloc(tokens_max, sizeof *b->seq_of_token);
    b->q_start = mem_alloc((size_t)seqs_max + 1, sizeof *b->q_start);
    b->kv_len = mem_alloc(seqs_max, sizeof *b->kv_len);
    b->block_table = mem_alloc(seqs_max, sizeof *b->block_table);
    b->rows = mem_alloc(rows_max, sizeof *b->rows);
    b->tokens_max = tokens_max;
    b->seqs_max = seqs_max;
    b->rows_max = rows_max;
    if (!b->tokens || !b->positions || !b->seq_of_token || !b->q_start || !b->kv_len || !b->block_table || !b->rows) {
        batch_destroy(b);
        return ST_NOMEM;
    }
    *batch = b;
    return ST_OK;
}

void batch_destroy(struct batch *batch)
{
    if (!batch) return;
    mem_free(batch->tokens);
    mem_free(batch->positions);
    mem_free(batch->seq_of_token);
    mem_free(batch->q_start);
    mem_free(batch->kv_len);
    mem_free(batch->block_table);
    mem_free(batch->rows);
    mem_free(batch);
}

enum status batch_result_create(uint32_t rows_max, struct batch_result **result)
{
    struct batch_result *r = mem_alloc(1, sizeof *r);
    if (!r) return ST_NOMEM;
    r->rows = mem_alloc(rows_max, sizeof *r->rows);
    if (!r->rows) {
        mem_free(r);
        return ST_NOMEM;
    }
    *result = r;
    return ST_OK;
}

void batch_result_destroy(struct batch_result *result)
{
    if (!result) return;
    mem_free(result->rows);
    mem_free(result);
}

/* A token of the batch: an id, or, alone in its sequence, a row of the step before that nobody else names. */
static bool check_token(const struct batch_bounds *bounds, uint32_t token, bool alone, uint32_t previous_rows,
                        uint8_t *marks)
{
    if (!(token & TOKEN_OF_ROW)) return token < bounds->vocab;
    uint32_t row = token & ~TOKEN_OF_ROW;
    if (!alone || row >= previous_rows || marks[row]) return false;
    marks[row] = 1;
    return true;
}

static bool check_sequence(const struct batch_bounds *bounds, const struct batch *batch, uint32_t seq,
                           uint32_t previous_rows, uint8_t *marks)
{
    uint32_t begin = batch->q_start[seq], end = batch->q_start[seq + 1];
    if (begin >= end || end > batch->tokens_count) return false;
    uint32_t position = batch->positions[begin], length = batch->kv_len[seq];
    if (length > bounds->context_max || position > length || length - position != end - begin) return false;
    for (uint32_t n = begin; n < end; n++) {
        if (batch->seq_of_token[n] != seq || batch->positions[n] != position + (n - begin)) return false;
        if (!check_token(bounds, batch->tokens[n], end - begin == 1, previous_rows, marks)) return false;
    }
    for (uint32_t b = 0; b < kv_blocks_for(length); b++) {
        if (batch->block_table[seq][b] >= bounds->kv_blocks) return false;
    }
    return true;
}

static bool check_row(const struct batch_bounds *bounds, const struct batch *batch, uint32_t r)
{
    const struct batch_row *row = &batch->rows[r];
    if (row->token >= batch->tokens_count || (r && row->token < row[-1].token) || !row->params) return false;
    if (row->pending && !(batch->tokens[row->token] & TOKEN_OF_ROW)) return false;
    if (row->seen_prompt > row->seen_count || row->seen_count > bounds->context_max) return false;
    return !row->score_only || row->target < bounds->vocab;
}

enum status batch_check(const struct batch_bounds *bounds, const struct batch *batch, uint32_t previous_rows,
                        uint8_t *marks)
{
    if (batch->tokens_count > bounds->tokens_max || batch->seqs_count > bounds->seqs_max) return ST_INVAL;
    if (batch->rows_count > bounds->rows_max || batch->q_start[0] != 0) return ST_INVAL;
    if (batch->q_start[batch->seqs_count] != batch->tokens_count) return ST_INVAL;
    if (previous_rows) memset(marks, 0, previous_rows);
    for (uint32_t seq = 0; seq < batch->seqs_count; seq++) {
        if (!check_sequence(bounds, batch, seq, previous_rows, marks)) return ST_INVAL;
    }
    for (uint32_t r = 0; r < batch->rows_count; r++) {
        if (!check_row(bounds, batch, r)) return ST_INVAL;
    }
    return ST_OK;
}
