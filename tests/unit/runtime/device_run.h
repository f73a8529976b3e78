/* Random prompts through a device: alone, in chunks or all beside each other, with what each token's row has given
 * kept. For tests that hold a device to its own bits in another batch, or to another device. */
#ifndef TESTS_UNIT_RUNTIME_DEVICE_RUN_H
#define TESTS_UNIT_RUNTIME_DEVICE_RUN_H

#include "runtime/base/random.h"
#include "runtime/device/device.h"
#include "tests/unit/runtime/make_batch.h"

#include <string.h>

enum { RUN_SEQS = 3, RUN_CONTEXT_MAX = 1024, RUN_BLOCKS_MAX = RUN_CONTEXT_MAX / KV_BLOCK_TOKENS };

struct run_plan {
    uint32_t context, vocab, blocks;      /* blocks: of the pool that tables are of */
    uint32_t lengths[RUN_SEQS];           /* of the prompts that run_alone and run_mixed give */
    const struct sampling_params *params; /* the row of position p takes number p % params_count */
    uint32_t params_count;
};

/* A device with its batch, and what every token of every sequence has given. */
struct device_run {
    const struct run_plan *plan;
    struct device *device;
    struct batch *batch;
    struct batch_result *result;
    block_id tables[RUN_SEQS][RUN_BLOCKS_MAX];
    struct row_result rows[RUN_SEQS][RUN_CONTEXT_MAX];
};

static uint32_t prompts[RUN_SEQS][RUN_CONTEXT_MAX]; /* the same for all: a test may change them after a run_begin, which
                                                       makes them */

/* The device is the run's from then on. */
static void run_begin(struct device_run *r, const struct run_plan *plan, struct device *device)
{
    const struct device_info *info = &device->info;
    uint64_t seed = 19;
    memset(r, 0, sizeof *r);
    r->plan = plan;
    r->device = device;
    assert_int_equal(batch_create(info->tokens_max, RUN_SEQS, info->rows_max, &r->batch), ST_OK);
    assert_int_equal(batch_result_create(info->rows_max, &r->result), ST_OK);
    for (uint32_t s = 0; s < RUN_SEQS; s++) {
        for (uint32_t i = 0; i < plan->context; i++) prompts[s][i] = (uint32_t)(random_next(&seed) % plan->vocab);
        for (uint32_t b = 0; b < plan->context / KV_BLOCK_TOKENS; b++)
            r->tables[s][b] = (b * RUN_SEQS + s) * 7 % plan->blocks;
    }
}

static void run_end(struct device_run *r)
{
    device_destroy(r->device);
    batch_destroy(r->batch);
    batch_result_destroy(r->result);
}

/* Adds `count` tokens of sequence s from `position` on, all of which want logits. */
static void run_add(struct device_run *r, uint32_t s, uint32_t position, uint32_t count)
{
    struct batch_sequence sequence = {prompts[s], r->tables[s], s};
    uint32_t first = r->batch->rows_count;
    batch_add_sequence(r->batch, &sequence, position, count, r->plan->params);
    for (uint32_t i = 0; i < count; i++)
        r->batch->rows[first + i].params = &r->plan->params[(position + i) % r->plan->params_count];
}

static void run_step(struct device_run *r)
{
    assert_int_equal(device_step(r->device, r->batch, r->result), ST_OK);
}

/* Copies the rows of the sequence in place `seq` of the batch to r->rows[s]. */
static void run_keep(struct device_run *r, uint32_t seq, uint32_t s)
{
    for (uint32_t n = r->batch->q_start[seq]; n < r->batch->q_start[seq + 1]; n++) {
        struct row_result *row = &r->rows[s][r->batch->positions[n]];
        *row = r->result->rows[n];
        for (uint32_t i = row->top_count; i < LOGPROBS_MAX; i++) row->top_ids[i] = 0, row->top_logprobs[i] = 0;
    }
}

/* The first `prefill` tokens `chunk` at a time, then one by one. */
static void run_alone(struct device_run *r, uint32_t s, uint32_t prefill, uint32_t chunk)
{
    for (uint32_t position = 0, count; position < r->plan->lengths[s]; position += count) {
        uint32_t end = position < prefill ? prefill : position + 1;
        if (end > r->plan->lengths[s]) end = r->plan->lengths[s];
        count = end - position < chunk ? end - position : chunk;
        batch_clear(r->batch);
        run_add(r, s, position, count);
        run_step(r);
        run_keep(r, 0, s);
    }
}

/* All sequences beside each other, each in chunks of its own, with other block tables; `turn` permutes them. */
static void run_mixed(struct device_run *r, const uint32_t chunks[RUN_SEQS], uint32_t turn)
{
    uint32_t done[RUN_SEQS] = {0}, left = 1;
    for (uint32_t s = 0; s < RUN_SEQS; s++) {
        for (uint32_t b = 0; b < r->plan->context / KV_BLOCK_TOKENS; b++)
            r->tables[s][b] = r->plan->blocks - 1 - (b * RUN_SEQS + s) * 11 % r->plan->blocks;
    }
    while (left) {
        uint32_t places[RUN_SEQS], count = 0;
        batch_clear(r->batch);
        left = 0;
        for (uint32_t i = 0; i < RUN_SEQS; i++) {
            uint32_t s = (i + turn) % RUN_SEQS, rest = r->plan->lengths[s] - done[s];
            if (!rest) continue;
            uint32_t chunk = rest < chunks[s] ? rest : chunks[s];
            run_add(r, s, done[s], chunk);
            done[s] += chunk;
            left += rest - chunk;
            places[count++] = s;
        }
        run_step(r);
        for (uint32_t i = 0; i < count; i++) run_keep(r, i, places[i]);
    }
}

static void assert_same_rows(const struct device_run *a, const struct device_run *b, uint32_t s)
{
    for (uint32_t i = 0; i < a->plan->lengths[s]; i++) {
        assert_int_equal(a->rows[s][i].flags, 0);
        if (memcmp(&a->rows[s][i], &b->rows[s][i], sizeof a->rows[s][i]) != 0)
            fail_msg("sequence %u, token %u: %u (%.9g) and %u (%.9g)", s, i, a->rows[s][i].id,
                     (double)a->rows[s][i].logprob, b->rows[s][i].id, (double)b->rows[s][i].logprob);
    }
}

#endif
