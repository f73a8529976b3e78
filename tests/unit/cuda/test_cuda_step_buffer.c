/* A batch on its way to a GPU: what was written says the same as the batch, read back through the pointers that kernels
 * get. */
#include "tests/unit/unit.h"

#include "runtime/base/limits.h"
#include "runtime/base/mem.h"
#include "runtime/device/cuda/cuda_step_buffer.h"
#include "tests/unit/runtime/make_batch.h"

#include <string.h>

enum { TOKENS = 40, SEQS = 6, ROWS = 24, CONTEXT = 100, V = 500, BLOCKS = 30, GROUP = 7, ITEMS = 5 };

struct fixture {
    struct cuda_step_bounds bounds;
    struct batch *batch;
    block_id tables[SEQS][8];
    uint32_t seen[SEQS][CONTEXT];
};

static const uint32_t allowed[] = {4, 77, 300};
static const struct logit_bias bias[] = {{9, 1.5f}, {10, -2}};
static const uint32_t banned[] = {2, 3};
static const struct sampling_params plain = {.top_p = 1, .repetition_penalty = 1, .logprobs = -1};
static const struct sampling_params rich = {.temperature = 0.5f,
                                            .top_p = 0.9f,
                                            .min_p = 0.1f,
                                            .top_k = 40,
                                            .repetition_penalty = 1.1f,
                                            .frequency_penalty = 0.2f,
                                            .presence_penalty = 0.3f,
                                            .bias = bias,
                                            .bias_count = 2,
                                            .allowed = allowed,
                                            .allowed_count = 3,
                                            .logprobs = 4};

static void fixture_make(struct fixture *f)
{
    memset(f, 0, sizeof *f);
    struct batch_bounds bounds = {TOKENS, SEQS, ROWS, CONTEXT, V, BLOCKS};
    f->bounds = (struct cuda_step_bounds){bounds, GROUP, cuda_step_lists_max(&bounds)};
    assert_int_equal(batch_create(TOKENS, SEQS, ROWS, &f->batch), ST_OK);
    for (uint32_t s = 0; s < SEQS; s++) {
        for (uint32_t b = 0; b < 8; b++) f->tables[s][b] = (s * 8 + b) % BLOCKS;
        for (uint32_t i = 0; i < CONTEXT; i++) f->seen[s][i] = (s * 31 + i * 7) % V;
    }
}

/* Sequence s with `count` tokens from `position` on; each wants logits when params is given. */
static void add(struct fixture *f, uint32_t s, uint32_t position, uint32_t count, const struct sampling_params *params)
{
    struct batch_sequence sequence = {f->seen[s], f->tables[s], 1000 + s};
    batch_add_sequence(f->batch, &sequence, position, count, params);
}

static void assert_list(const struct cuda_step *step, uint32_t at, const void *words, uint32_t count)
{
    assert_memory_equal(step->lists + at, words, count * sizeof(uint32_t));
}

static void check_row(const struct cuda_step *step, const struct batch *batch, uint32_t r)
{
    const struct cuda_row *row = &step->rows[r];
    const struct batch_row *from = &batch->rows[r];
    const struct sampling_params *p = from->params;
    assert_int_equal(step->row_tokens[r], from->token);
    assert_int_equal(row->token, from->token);
    assert_int_equal(row->seed, from->seed);
    assert_int_equal(row->position, from->position);
    assert_int_equal(row->logprobs, p->logprobs);
    assert_true(row->temperature == p->temperature && row->top_p == p->top_p && row->min_p == p->min_p);
    assert_true(row->top_k == p->top_k && row->repetition_penalty == p->repetition_penalty);
    assert_true(row->frequency_penalty == p->frequency_penalty && row->presence_penalty == p->presence_penalty);
    if (from->score_only) {
        assert_int_equal(row->flags, CUDA_ROW_SCORE_ONLY);
        assert_int_equal(row->target, from->target);
        assert_int_equal(row->seen_count + row->allowed_count + row->bias_count + row->banned_count, 0);
        return;
    }
    assert_int_equal(row->flags, from->pending ? CUDA_ROW_PENDING_SEEN : 0);
    if (from->pending) assert_int_equal(row->pending, batch->tokens[from->token] & ~TOKEN_OF_ROW);
    assert_int_equal(row->any_allowed, p->allowed != NULL);
    assert_int_equal(row->allowed_count, p->allowed_count);
    assert_list(step, row->allowed, p->allowed, p->allowed_count);
    assert_int_equal(row->bias_count, p->bias_count);
    assert_list(step, row->bias, p->bias, 2 * p->bias_count);
    assert_int_equal(row->banned_count, from->banned_count);
    assert_list(step, row->banned, from->banned, from->banned_count);
    if (p == &plain) return; /* wants no list of what was seen */
    assert_int_equal(row->seen_count, from->seen_count);
    assert_int_equal(row->seen_prompt, from->seen_prompt);
    assert_list(step, row->seen, from->seen, from->seen_count);
}

static void check_filled(struct fixture *f, struct cuda_step_room room, size_t *bytes)
{
    const struct batch *b = f->batch;
    struct cuda_step_layout layout;
    cuda_step_layout_make(&f->bounds, room, &layout);
    size_t most = cuda_step_bytes_max(&f->bounds, ITEMS);
    uint8_t *buffer = mem_alloc(most, 1);
    assert_non_null(buffer);
    memset(buffer, 0xee, most);
    uint8_t marks[2];
    assert_int_equal(batch_check(&f->bounds.batch, f->batch, 2, marks), ST_OK);
    assert_int_equal(cuda_step_fill(&f->bounds, &layout, b, buffer, bytes), ST_OK);
    assert_true(*bytes <= most);
    for (size_t i = *bytes; i < most; i++) assert_int_equal(buffer[i], 0xee);
    struct cuda_step step = cuda_step_at(&layout, buffer);
    assert_int_equal(step.header->tokens, b->tokens_count);
    assert_int_equal(step.header->seqs, b->seqs_count);
    assert_int_equal(step.header->rows, b->rows_count);
    assert_memory_equal(step.tokens, b->tokens, b->tokens_count * sizeof(uint32_t));
    assert_memory_equal(step.positions, b->positions, b->tokens_count * sizeof(uint32_t));
    assert_memory_equal(step.seq_of_token, b->seq_of_token, b->tokens_count * sizeof(uint32_t));
    assert_memory_equal(step.q_start, b->q_start, (b->seqs_count + 1) * sizeof(uint32_t));
    assert_memory_equal(step.kv_len, b->kv_len, b->seqs_count * sizeof(uint32_t));
    for (uint32_t s = 0; s < b->seqs_count; s++) {
        uint32_t blocks = step.table_start[s + 1] - step.table_start[s];
        assert_int_equal(blocks, (b->kv_len[s] + 15) / 16);
        assert_memory_equal(step.table + step.table_start[s], b->block_table[s], blocks * sizeof(block_id));
    }
    for (uint32_t r = 0; r < b->rows_count; r++) check_row(&step, b, r);
    uint32_t rows = 0;
    for (uint32_t g = 0; g * GROUP < room.rows; g++) {
        struct cuda_step group = cuda_step_group(&step, GROUP, g);
        assert_ptr_equal(group.rows, step.rows + g * GROUP);
        assert_ptr_equal(group.row_tokens, step.row_tokens + g * GROUP);
        assert_int_equal(group.header->tokens, b->tokens_count);
        rows += group.header->rows;
        assert_true(group.header->rows <= GROUP && (group.header->rows == GROUP || rows == b->rows_count));
    }
    assert_int_equal(rows, b->rows_count);
    assert_true((const uint8_t *)step.items[1] >= (const uint8_t *)(step.items[0] + room.items));
    assert_true((const uint8_t *)step.table >= (const uint8_t *)(step.items[1] + room.items));
    mem_free(buffer);
}

static void test_cuda_step_buffer_says_what_the_batch_says(void **state)
{
    (void)state;
    struct fixture f;
    size_t bytes, roomy_bytes;
    fixture_make(&f);
    batch_clear(f.batch);
    add(&f, 0, 0, 9, &rich);
    add(&f, 1, 30, 1, &rich);
    add(&f, 2, 99, 1, &plain);
    add(&f, 3, 50, 11, &rich);
    add(&f, 4, 15, 2, NULL);
    f.batch->tokens[9] = TOKEN_OF_ROW | 1;
    f.batch->rows[9].pending = true;
    f.batch->rows[9].banned = banned;
    f.batch->rows[9].banned_count = 2;
    for (uint32_t r = 11; r < 15; r++) f.batch->rows[r].score_only = true, f.batch->rows[r].target = r;
    struct batch *b = f.batch;
    check_filled(&f, (struct cuda_step_room){b->tokens_count, b->seqs_count, b->rows_count, ITEMS}, &bytes);
    check_filled(&f, (struct cuda_step_room){TOKENS, SEQS, ROWS, ITEMS}, &roomy_bytes); /* a graph's room */
    assert_true(bytes < roomy_bytes);
    batch_clear(f.batch);
    check_filled(&f, (struct cuda_step_room){0, 0, 0, ITEMS}, &bytes);
    batch_destroy(f.batch);
}

/* All rows of a sequence share one list of what was seen; the worst that requests may bring has room.
 */
static void test_cuda_step_buffer_has_room_for_the_worst_lists(void **state)
{
    (void)state;
    struct fixture f;
    size_t bytes, more;
    fixture_make(&f);
    batch_clear(f.batch);
    add(&f, 0, CONTEXT - 20, 20, &rich);
    check_filled(&f, (struct cuda_step_room){20, 1, 20, ITEMS}, &bytes);
    f.batch->rows_count = 1;
    f.batch->rows[0] = f.batch->rows[19];
    check_filled(&f, (struct cuda_step_room){20, 1, 20, ITEMS}, &more);
    assert_int_equal(bytes, more);
    uint32_t all[V];
    struct logit_bias biases[V];
    for (uint32_t i = 0; i < V; i++) all[i] = i, biases[i] = (struct logit_bias){i, 1};
    struct sampling_params heavy[SEQS];
    batch_clear(f.batch);
    for (uint32_t s = 0; s < SEQS; s++) {
        heavy[s] = rich;
        heavy[s].allowed = all, heavy[s].allowed_count = V;
        heavy[s].bias = biases, heavy[s].bias_count = V;
        add(&f, s, CONTEXT - 1, 1, &heavy[s]);
        f.batch->rows[s].banned = all;
        f.batch->rows[s].banned_count = (uint32_t)limits.api_stop_token_ids + 256;
    }
    check_filled(&f, (struct cuda_step_room){SEQS, SEQS, SEQS, ITEMS}, &bytes);
    struct cuda_step_layout layout;
    uint8_t *buffer = mem_alloc(cuda_step_bytes_max(&f.bounds, ITEMS), 1);
    cuda_step_layout_make(&f.bounds, (struct cuda_step_room){TOKENS, SEQS, ROWS, ITEMS}, &layout);
    assert_int_equal(cuda_step_fill(&f.bounds, &layout, f.batch, buffer, &bytes), ST_OK);
    f.bounds.lists_max = 0;
    assert_int_equal(cuda_step_fill(&f.bounds, &layout, f.batch, buffer, &bytes), ST_INVAL);
    mem_free(buffer);
    batch_destroy(f.batch);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_cuda_step_buffer_says_what_the_batch_says),
        cmocka_unit_test(test_cuda_step_buffer_has_room_for_the_worst_lists),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
