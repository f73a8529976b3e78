/* The arrays of batch.h, taken once at start. */
#include "runtime/batch.h"

#include "runtime/base/mem.h"

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
