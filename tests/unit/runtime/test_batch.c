/* What a device refuses before a step: each rule of runtime/batch.h broken once. */
#include "tests/unit/unit.h"

#include "runtime/base/mem.h"
#include "tests/unit/runtime/make_batch.h"

enum { TOKENS = 40, SEQS = 6, ROWS = 24, CONTEXT = 100, V = 500, BLOCKS = 30 };

static const struct batch_bounds whole = {TOKENS, SEQS, ROWS, CONTEXT, V, BLOCKS};
static const struct sampling_params params = {.top_p = 1, .repetition_penalty = 1, .logprobs = -1};

struct fixture {
    struct batch_bounds bounds;
    struct batch *batch;
    uint32_t ids[SEQS][CONTEXT];
    block_id tables[SEQS][8];
    uint8_t marks[ROWS];
};

static void fixture_make(struct fixture *f)
{
    *f = (struct fixture){.bounds = whole};
    assert_int_equal(batch_create(TOKENS, SEQS, ROWS, &f->batch), ST_OK);
    for (uint32_t s = 0; s < SEQS; s++) {
        for (uint32_t b = 0; b < 8; b++) f->tables[s][b] = (s * 8 + b) % BLOCKS;
        for (uint32_t i = 0; i < CONTEXT; i++) f->ids[s][i] = (s * 31 + i * 7) % V;
    }
}

static void add(struct fixture *f, uint32_t s, uint32_t position, uint32_t count)
{
    struct batch_sequence sequence = {f->ids[s], f->tables[s], s};
    batch_add_sequence(f->batch, &sequence, position, count, &params);
}

static enum status check(struct fixture *f, uint32_t previous_rows)
{
    return batch_check(&f->bounds, f->batch, previous_rows, f->marks);
}

static void test_batch_refuses_what_breaks_the_contract(void **state)
{
    (void)state;
    struct fixture f;
    fixture_make(&f);
    for (int fault = 0; fault <= 30; fault++) {
        f.bounds = whole;
        batch_clear(f.batch);
        add(&f, 0, 0, 17);
        add(&f, 1, 30, 1);
        add(&f, 2, 99, 1);
        struct batch *b = f.batch;
        block_id bad_table[3] = {0, 1, BLOCKS};
        uint32_t previous = 2;
        b->tokens[17] = TOKEN_OF_ROW | 1;
        b->rows[17].pending = true;
        switch (fault) {
        case 1: b->tokens[7] = V; break;
        case 2: b->positions[3] = 4; break;
        case 3: b->kv_len[1] = 33; break;
        case 4: b->kv_len[0] = 33, b->block_table[0] = bad_table; break; /* past its tokens */
        case 5: b->block_table[1] = bad_table + 1; break;
        case 6: b->q_start[1] = 0; break;
        case 7: b->seq_of_token[18] = 0; break;
        case 8: b->rows[4].token = 19; break;
        case 9: b->rows[4].token = 2; break;
        case 10: b->rows[2].params = NULL; break;
        case 11: b->rows[2].score_only = true, b->rows[2].target = V; break;
        case 12: b->rows_count = ROWS + 1; break;
        case 13: b->positions[18] = CONTEXT, b->kv_len[2] = CONTEXT + 1; break;
        case 14: b->tokens[17] = TOKEN_OF_ROW | 2; break; /* there are two rows */
        case 15: previous = 0; break;                     /* and now none */
        case 16: b->tokens[18] = TOKEN_OF_ROW | 1; break; /* named twice */
        case 17: b->tokens[16] = TOKEN_OF_ROW | 0; break; /* not alone in its sequence */
        case 18: b->rows[16].pending = true; break;       /* its token is known */
        case 19: b->rows[3].seen_prompt = b->rows[3].seen_count + 1; break;
        case 20: b->rows[3].seen_count = CONTEXT + 1; break;
        case 21: b->tokens_count = TOKENS + 1; break;
        case 22: b->q_start[0] = 1; break;
        case 23: b->rows[18].token = 19; break;
        case 24: b->tokens_count = 20; break; /* one of no sequence */
        case 25: b->positions[18] = UINT32_MAX, b->kv_len[2] = 0; break;
        case 26: f.bounds.tokens_max = 18; break;
        case 27: f.bounds.seqs_max = 2; break;
        case 28: f.bounds.rows_max = 18; break;
        case 29: /* a sequence without tokens; all else is sound */
            b->q_start[2] = 17, b->seq_of_token[17] = 2;
            b->kv_len[1] = b->positions[17] = 98;
            b->tokens[17] = 1, b->rows[17].pending = false;
            break;
        case 30: /* longer than the batch, whose arrays end there */
            for (uint32_t n = 0; n < TOKENS; n++) b->tokens[n] = b->seq_of_token[n] = 0, b->positions[n] = n;
            b->q_start[1] = b->kv_len[0] = TOKENS + 1;
            break;
        default: break;
        }
        enum status status = check(&f, previous);
        if (status != (fault ? ST_INVAL : ST_OK)) fail_msg("fault %d gives %s", fault, status_name(status));
        if (!fault) assert_int_equal(check(&f, previous), ST_OK); /* it leaves no marks */
    }
    f.bounds = whole;
    batch_clear(f.batch);
    assert_int_equal(check(&f, 0), ST_OK); /* nothing to do */
    batch_destroy(f.batch);
}

/* Every block that a sequence covers is looked at, and no entry behind them. */
static void test_batch_reads_no_more_of_a_table_than_a_sequence_has(void **state)
{
    (void)state;
    struct fixture f;
    fixture_make(&f);
    for (uint32_t length = 1; length <= CONTEXT; length++) {
        uint32_t blocks = (length + 15) / 16;
        block_id *table = mem_alloc(blocks, sizeof *table); /* asan guards its end */
        for (uint32_t i = 0; i < blocks; i++) table[i] = i;
        batch_clear(f.batch);
        add(&f, 0, length - 1, 1);
        f.batch->block_table[0] = table;
        assert_int_equal(check(&f, 0), ST_OK);
        table[blocks - 1] = BLOCKS;
        assert_int_equal(check(&f, 0), ST_INVAL);
        mem_free(table);
    }
    batch_destroy(f.batch);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_batch_refuses_what_breaks_the_contract),
        cmocka_unit_test(test_batch_reads_no_more_of_a_table_than_a_sequence_has),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
