/* CPU devices of all stages and ranks of a tiny model over one shared memory, a thread each, and a prompt through them.
 * For the tests of ranks and of stages. */
#ifndef TESTS_UNIT_RUNTIME_RANK_GRID_H
#define TESTS_UNIT_RUNTIME_RANK_GRID_H

#include "runtime/device/device_cpu_parts.h"
#include "runtime/device/rank_comms.h"
#include "runtime/model/model_stage.h"
#include "tests/unit/runtime/make_batch.h"
#include "tests/unit/runtime/tiny_model.h"

#include <pthread.h>

enum {
    GRID_VOCAB = 597,
    GRID_TOKENS = 45, /* of the prompt */
    GRID_CONTEXT = 64,
    GRID_BLOCKS = GRID_CONTEXT / KV_BLOCK_TOKENS,
    GRID_MAX = 6, /* devices */
    GRID_SLOT_BYTES = 4096
};

static const struct sampling_params grid_params = {
    .temperature = 0.9f, .top_p = 1, .repetition_penalty = 1, .logprobs = 20};

/* Devices of all stages and ranks over one shared memory; the results of number 0. */
struct grid {
    uint32_t count;
    void *memory;
    size_t memory_bytes;
    struct rank_comms comms[GRID_MAX];
    struct device *devices[GRID_MAX];
    struct batch *batch;
    struct batch_result *result;
    enum status status[GRID_MAX];
    block_id table[GRID_BLOCKS];
    struct row_result rows[GRID_CONTEXT];
    uint32_t absent; /* a number that takes no part in steps; 0: none */
};

static uint32_t prompt[GRID_CONTEXT];

static void grid_device(struct grid *g, const struct tiny_model *tiny, uint32_t number, uint32_t ranks, uint32_t stages,
                        const struct device_config *settings)
{
    struct error err = {""};
    struct model *part = NULL;
    struct device_config config = *settings;
    config.comm = g->comms[number].peers;
    config.stages = g->comms[number].line;
    if (model_divide(&tiny->model, model_place_of(number, ranks, stages), &part, &err) != ST_OK)
        fail_msg("%s", err.message);
    if (device_cpu_create(part, &config, NULL, NULL, &g->devices[number], &err) != ST_OK)
        fail_msg("rank %u: %s", number, err.message);
    model_close(part);
    assert_int_equal(g->devices[number]->info.vocab, GRID_VOCAB);
    struct device_cpu *cpu = (struct device_cpu *)(void *)g->devices[number];
    memset(cpu->kv, 0xff, cpu->kv_bytes); /* stale blocks hold NaN */
}

static void grid_make(struct grid *g, const struct tiny_model *tiny, uint32_t ranks, uint32_t stages,
                      enum numerics numerics, uint32_t threads, uint64_t deadline_ns)
{
    uint64_t seed = 19;
    struct device_config config = {.path = cpu_path_best(),
                                   .numerics = numerics,
                                   .threads = threads,
                                   .tokens_max = GRID_CONTEXT,
                                   .seqs_max = 1,
                                   .rows_max = GRID_CONTEXT,
                                   .context_max = GRID_CONTEXT};
    *g = (struct grid){.count = ranks * stages};
    assert_true(batch_create(GRID_CONTEXT, 1, GRID_CONTEXT, &g->batch) == ST_OK &&
                batch_result_create(GRID_CONTEXT, &g->result) == ST_OK);
    g->memory_bytes = rank_comms_bytes(ranks, stages, GRID_SLOT_BYTES);
    g->memory = mem_map(g->memory_bytes);
    rank_comms_prepare(g->memory, ranks, stages, GRID_SLOT_BYTES);
    for (uint32_t number = 0; number < g->count; number++) {
        struct comm_local_config comm = {number, g->count, GRID_SLOT_BYTES, deadline_ns, 0, clock_system()};
        assert_int_equal(rank_comms_join(g->memory, &comm, stages, &g->comms[number]), ST_OK);
        grid_device(g, tiny, number, ranks, stages, &config);
    }
    for (uint32_t i = 0; i < GRID_CONTEXT; i++) prompt[i] = (uint32_t)(random_next(&seed) % (GRID_VOCAB - 1));
    for (uint32_t b = 0; b < GRID_BLOCKS; b++) g->table[b] = b * 3 % GRID_BLOCKS;
}

static void grid_free(struct grid *g)
{
    for (uint32_t number = 0; number < g->count; number++) {
        device_destroy(g->devices[number]);
        rank_comms_leave(&g->comms[number]);
    }
    mem_unmap(g->memory, g->memory_bytes);
    batch_destroy(g->batch);
    batch_result_destroy(g->result);
}

struct rank_thread {
    struct grid *grid;
    uint32_t number;
};

static void *rank_main(void *state)
{
    struct rank_thread *at = state;
    struct grid *g = at->grid;
    struct batch_result none = {NULL}; /* only number 0 has results */
    g->status[at->number] = device_step(g->devices[at->number], g->batch, at->number ? &none : g->result);
    return NULL;
}

static void grid_step(struct grid *g)
{
    pthread_t threads[GRID_MAX];
    struct rank_thread states[GRID_MAX];
    for (uint32_t number = 1; number < g->count; number++) {
        states[number] = (struct rank_thread){g, number};
        if (number != g->absent)
            assert_int_equal(pthread_create(&threads[number], NULL, rank_main, &states[number]), 0);
    }
    states[0] = (struct rank_thread){g, 0};
    rank_main(&states[0]);
    for (uint32_t number = 1; number < g->count; number++)
        if (number != g->absent) pthread_join(threads[number], NULL);
}

/* Tokens from position on; a row for every `every`th, 0: for none. */
static void grid_fill(struct grid *g, uint32_t position, uint32_t count, uint32_t every)
{
    struct batch *batch = g->batch;
    struct batch_sequence sequence = {prompt, g->table, 5};
    batch_clear(batch);
    batch_add_sequence(batch, &sequence, position, count, NULL);
    for (uint32_t n = 0; every && n < count; n++) {
        if ((position + n) % every) continue;
        batch->rows[batch->rows_count++] = (struct batch_row){
            .token = n, .params = &grid_params, .seed = 5, .position = position + n + 1, .seen = prompt};
    }
}

/* The prompt in chunks; every `every`th token's row goes to g->rows. */
static void grid_run(struct grid *g, uint32_t chunk, uint32_t every)
{
    memset(g->rows, 0, sizeof g->rows);
    for (uint32_t position = 0; position < GRID_TOKENS; position += chunk) {
        grid_fill(g, position, GRID_TOKENS - position < chunk ? GRID_TOKENS - position : chunk, every);
        memset(g->result->rows, 0, GRID_CONTEXT * sizeof *g->result->rows);
        grid_step(g);
        for (uint32_t number = 0; number < g->count; number++) assert_int_equal(g->status[number], ST_OK);
        for (uint32_t i = 0; i < g->batch->rows_count; i++)
            g->rows[position + g->batch->rows[i].token] = g->result->rows[i];
    }
}

#endif
