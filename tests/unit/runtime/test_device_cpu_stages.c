/* The CPU device in stages of layers, a thread a rank: the bits of the device that has all layers, with ranks those of
 * as many ranks without stages, whatever the chunks and threads; and never a wait without end when a stage is lost. */
#include "tests/unit/unit.h"

#include "tests/unit/runtime/rank_grid.h"

enum { V = GRID_VOCAB, L = TINY_LAYERS_MAX, TOKENS = GRID_TOKENS, CONTEXT = GRID_CONTEXT };

static const struct model_spec base_spec = {
    TINY_SPEC_OF(L),          .heads = 6,      .head_size = 16, .rope_size = 16,
    .attention_scale = 0.25f, .ff_width = 224, .vocab = V,      .context_max = CONTEXT};
static void same_rows(const struct grid *a, const struct grid *b, uint32_t every, const char *what)
{
    for (uint32_t i = 0; i < TOKENS; i += every)
        if (memcmp(&a->rows[i], &b->rows[i], sizeof a->rows[i]))
            fail_msg("%s: row %u has other bits: flags %u and %u, ids %u and %u, log-probabilities %g and %g", what, i,
                     a->rows[i].flags, b->rows[i].flags, a->rows[i].id, b->rows[i].id, (double)a->rows[i].logprob,
                     (double)b->rows[i].logprob);
}

static void check_stages(const struct tiny_model *tiny, uint32_t ranks, uint32_t stages, enum numerics numerics)
{
    static struct grid one, grid;
    char what[64];
    size_t block_bytes = 0, weights_bytes = 0;
    snprintf(what, sizeof what, "%s, %u stages of %u", numerics ? "exact" : "fast", stages, ranks);
    grid_make(&one, tiny, ranks, 1, numerics, 2, 60 * NS_PER_S);
    grid_make(&grid, tiny, ranks, stages, numerics, 1 + stages % 2, 60 * NS_PER_S);
    grid_run(&one, TOKENS, 1);
    for (uint32_t i = 0; i < TOKENS; i++) assert_int_equal(one.rows[i].flags, 0);
    grid_run(&grid, 19, 1); /* more rows than a group of logits has */
    same_rows(&one, &grid, 1, what);
    grid_run(&grid, 3, 1); /* as few as threads prepare alone */
    same_rows(&one, &grid, 1, what);
    grid_run(&grid, 16, 7); /* few rows in the last layer */
    same_rows(&one, &grid, 7, what);
    grid_fill(&grid, 0, 33, 0); /* none at all, then those after them */
    grid_step(&grid);
    assert_int_equal(grid.status[0], ST_OK);
    grid_fill(&grid, 33, 1, 1);
    grid_step(&grid);
    assert_memory_equal(&grid.result->rows[0], &one.rows[33], sizeof one.rows[33]);
    for (uint32_t number = 0; number < grid.count; number++) {
        block_bytes += grid.devices[number]->info.kv_block_bytes;
        weights_bytes += grid.devices[number]->info.weights_bytes;
    }
    for (uint32_t number = 0; number < one.count; number++) {
        block_bytes -= one.devices[number]->info.kv_block_bytes;
        weights_bytes -= one.devices[number]->info.weights_bytes;
    }
    assert_int_equal(block_bytes, 0); /* KV, and weights but for RoPE's frequencies, are on one stage */
    assert_true(weights_bytes <= (stages - 1) * ranks * 2 * 64);
    grid_free(&one);
    grid_free(&grid);
}

static void check_spec(const struct model_spec *spec, enum tensor_type type, bool q8_v)
{
    static struct tiny_model tiny;
    tiny_make_layers(&tiny, spec, L, type, q8_v, false);
    for (enum numerics numerics = NUMERICS_FAST; numerics <= NUMERICS_EXACT; numerics++) {
        check_stages(&tiny, 1, 2, numerics);
        check_stages(&tiny, 1, 3, numerics);
        check_stages(&tiny, 1, 5, numerics);
        check_stages(&tiny, 2, 2, numerics);
    }
    check_stages(&tiny, 2, 3, NUMERICS_EXACT);
    tiny_free(&tiny);
}

static void test_device_cpu_stages_llama(void **state)
{
    (void)state;
    check_spec(&base_spec, TENSOR_Q4_1, true);
}

static void test_device_cpu_stages_biases_norms_scales(void **state)
{
    (void)state;
    struct model_spec spec = base_spec;
    spec.rope = ROPE_HALVES;
    spec.has_qkv_bias = spec.has_qk_norm = spec.has_post_norms = true;
    spec.tied_head = false;
    spec.layer_flags[1] = spec.layer_flags[4] = LAYER_WINDOWED; /* stages with and without */
    spec.window = 21;
    spec.has_window_rope = true;
    spec.rope_window = (struct rope_spec){500, 1, 1};
    spec.embedding_scale = 8;
    spec.residual_scale = 0.7f;
    spec.logit_scale = 0.25f;
    check_spec(&spec, TENSOR_Q8_0, false);
}

static void test_device_cpu_stages_experts(void **state)
{
    (void)state;
    struct model_spec spec = base_spec;
    spec.layer_flags[1] = LAYER_EXPERTS;
    spec.layer_flags[2] = LAYER_EXPERTS | LAYER_WINDOWED; /* 0, 3 and 4 are dense */
    spec.window = 9;
    spec.experts = 5;
    spec.experts_used = 2;
    spec.expert_width = 64;
    spec.experts_normed = true;
    check_spec(&spec, TENSOR_Q8_0, true);
    for (uint32_t l = 0; l < L; l++) spec.layer_flags[l] = LAYER_EXPERTS;
    spec.window = 0;
    spec.expert_width = 256;
    check_spec(&spec, TENSOR_Q4_1, false);
}

/* A value that is not finite in any one layer marks the same rows as without stages, in this step and the next. */
static void test_device_cpu_stages_not_finite(void **state)
{
    (void)state;
    static struct tiny_model tiny;
    static struct grid one, grid;
    for (uint32_t l = 0; l < L; l++) {
        tiny_make_layers(&tiny, &base_spec, L, TENSOR_F32, false, false);
        /* where a token's input 3 is above a bound its product overflows: some tokens, not all */
        struct tensor_view *v = &tiny.layers[l].v;
        for (uint32_t i = 0; i < tiny.owned_count; i++)
            if (tiny.owned[i] == v->data) ((float *)tiny.owned[i])[3] = 3e38f;
        for (uint32_t ranks = 1; ranks <= 2; ranks++)
            for (uint32_t threads = 1; threads <= 2; threads++) {
                uint32_t flagged = 0;
                grid_make(&one, &tiny, ranks, 1, NUMERICS_FAST, threads, 60 * NS_PER_S);
                grid_make(&grid, &tiny, ranks, 3, NUMERICS_FAST, threads, 60 * NS_PER_S);
                grid_run(&one, 5, 3);
                grid_run(&grid, 5, 3);
                for (uint32_t i = 0; i < TOKENS; i += 3) flagged += one.rows[i].flags == ROW_NOT_FINITE;
                assert_true(flagged > 0 && one.rows[TOKENS - 1 - (TOKENS - 1) % 3].flags == ROW_NOT_FINITE);
                same_rows(&one, &grid, 3, "not finite");
                grid_free(&one);
                grid_free(&grid);
            }
        tiny_free(&tiny);
    }
}

/* A stage that does not come: all are lost, at once and for good. */
static void test_device_cpu_stages_lost(void **state)
{
    (void)state;
    static struct tiny_model tiny;
    static struct grid g;
    tiny_make_layers(&tiny, &base_spec, L, TENSOR_Q4_1, false, false);
    for (uint32_t threads = 1; threads <= 3; threads += 2)
        for (uint32_t absent = 1; absent < 3; absent++) {
            grid_make(&g, &tiny, 1, 3, NUMERICS_FAST, threads, 30 * NS_PER_MS);
            grid_fill(&g, 0, absent == 1 ? 1 : 20, 1);
            g.absent = absent;
            grid_step(&g);
            for (uint32_t number = 0; number < 3; number++)
                if (number != absent) assert_int_equal(g.status[number], ST_DEVICE);
            g.absent = 0;
            grid_step(&g);
            for (uint32_t number = 0; number < 3; number++) assert_int_equal(g.status[number], ST_DEVICE);
            grid_free(&g);
        }
    tiny_free(&tiny);
}

/* The comm ends at every pass of a step in turn. */
struct failing {
    struct comm comm;
    struct comm *inner;
    uint32_t left;
};

static enum status failing_pass(struct comm *comm, void *data, size_t bytes, uint32_t from, uint32_t to, void *stream)
{
    struct failing *f = (struct failing *)(void *)comm;
    if (f->left-- == 0) comm_abort(f->inner);
    return comm_pass(f->inner, data, bytes, from, to, stream);
}

static void test_device_cpu_stages_lost_anywhere(void **state)
{
    (void)state;
    static const struct comm_ops ops = {.pass = failing_pass};
    static struct tiny_model tiny;
    static struct grid g;
    tiny_make_layers(&tiny, &base_spec, L, TENSOR_Q4_1, false, false);
    for (uint32_t threads = 1; threads <= 3; threads += 2)
        for (uint32_t number = 0; number < 3; number++)
            for (uint32_t at = 0; at <= 3; at++) {
                grid_make(&g, &tiny, 1, 3, NUMERICS_FAST, threads, 3600 * NS_PER_S);
                struct device_cpu *cpu = (struct device_cpu *)(void *)g.devices[number];
                struct failing failing = {{&ops, number, 3}, g.comms[number].line, at};
                cpu->stages = &failing.comm;
                grid_fill(&g, 0, 40, 1);
                grid_step(&g);
                for (uint32_t i = 0; i < 3; i++) /* three passes a step */
                    assert_int_equal(g.status[i], at < 3 ? ST_DEVICE : ST_OK);
                grid_free(&g);
            }
    tiny_free(&tiny);
}

static void test_device_cpu_stages_refuses(void **state)
{
    (void)state;
    static struct tiny_model tiny;
    static struct grid g;
    struct error err = {""};
    struct device *device = NULL;
    struct model *part = NULL;
    struct device_config config = {.path = cpu_path_best(),
                                   .numerics = NUMERICS_FAST,
                                   .threads = 1,
                                   .tokens_max = 8,
                                   .seqs_max = 1,
                                   .rows_max = 8,
                                   .context_max = 64};
    tiny_make_layers(&tiny, &base_spec, L, TENSOR_Q4_1, false, false);
    grid_make(&g, &tiny, 1, 2, NUMERICS_FAST, 1, NS_PER_S);
    assert_int_equal(model_divide(&tiny.model, model_place_of(0, 1, 2), &part, &err), ST_OK);
    assert_int_equal(device_cpu_create(part, &config, NULL, NULL, &device, &err), ST_INVAL); /* no comm */
    config.stages = g.comms[1].line;
    assert_int_equal(device_cpu_create(part, &config, NULL, NULL, &device, &err), ST_INVAL); /* another stage's */
    assert_non_null(strstr(err.message, "stage 0 of 2"));
    assert_int_equal(device_cpu_create(&tiny.model, &config, NULL, NULL, &device, &err), ST_INVAL); /* whole */
    model_close(part);
    grid_fill(&g, 0, 4, 1);
    g.batch->tokens[2] = V;
    for (uint32_t number = 0; number < 2; number++)
        assert_int_equal(device_step(g.devices[number], g.batch, g.result), ST_INVAL); /* before anything ran */
    grid_free(&g);
    tiny_free(&tiny);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_device_cpu_stages_llama),   cmocka_unit_test(test_device_cpu_stages_biases_norms_scales),
        cmocka_unit_test(test_device_cpu_stages_experts), cmocka_unit_test(test_device_cpu_stages_not_finite),
        cmocka_unit_test(test_device_cpu_stages_lost),    cmocka_unit_test(test_device_cpu_stages_lost_anywhere),
        cmocka_unit_test(test_device_cpu_stages_refuses),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
