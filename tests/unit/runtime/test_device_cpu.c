/* The CPU device on tiny random models: near a forward pass in double, and the same bits whatever the batch, the
 * chunks, the blocks, the threads and, in exact numerics, the path. */
#include "tests/unit/unit.h"

#include "runtime/device/device_cpu_parts.h"
#include "tests/unit/runtime/device_run.h"
#include "tests/unit/runtime/tiny_model.h"

enum { V = 597, TOKENS = 150, SEQS = RUN_SEQS, CONTEXT = 1024, BLOCKS = 3 * CONTEXT / KV_BLOCK_TOKENS };

static const struct model_spec base_spec = {
    TINY_SPEC,      .heads = 6, .head_size = 16,       .rope_size = 16, .attention_scale = 0.25f,
    .ff_width = 96, .vocab = V, .context_max = CONTEXT};
/* Rows of a batch want different things: a row that changes its logits or reads few of them must not show in others. */
static const uint32_t few[] = {3, 77, 127, 128, 255, 596};
static const struct logit_bias bias[] = {{5, 2}, {200, -3}};
static const struct sampling_params params[] = {
    {.temperature = 0.9f, .top_p = 1, .repetition_penalty = 1, .logprobs = 20},
    {.temperature = 0, .top_p = 1, .repetition_penalty = 1.3f, .logprobs = 20},
    {.temperature = 1.2f, .top_p = 0.8f, .repetition_penalty = 1, .bias = bias, .bias_count = 2, .logprobs = 20},
    {.temperature = 1, .top_p = 1, .repetition_penalty = 1, .allowed = few, .allowed_count = 6, .logprobs = 20},
    {.temperature = 0.7f, .top_p = 1, .top_k = 9, .repetition_penalty = 1, .frequency_penalty = 0.5f, .logprobs = 20},
};
enum { PARAMS = sizeof params / sizeof params[0] };

static const struct run_plan plan = {CONTEXT, V, BLOCKS, {TOKENS, 37, 20}, params, PARAMS};
static const uint32_t *const lengths = plan.lengths;

static void fixture_make(struct device_run *f, const struct tiny_model *tiny, enum cpu_path path,
                         enum numerics numerics, uint32_t threads)
{
    struct error err = {""};
    struct device_config config = {.path = path,
                                   .numerics = numerics,
                                   .threads = threads,
                                   .tokens_max = 256,
                                   .seqs_max = SEQS,
                                   .rows_max = 256,
                                   .context_max = CONTEXT,
                                   .kv_bytes = BLOCKS * device_cpu_kv_block_bytes(&tiny->model.spec, numerics, false)};
    struct device *device = NULL;
    if (device_cpu_create(&tiny->model, &config, NULL, NULL, &device, &err) != ST_OK) fail_msg("%s", err.message);
    assert_int_equal(device->info.kv_blocks, BLOCKS);
    struct device_cpu *cpu = (struct device_cpu *)(void *)device;
    memset(cpu->kv, 0xff, cpu->kv_bytes); /* stale blocks hold NaN */
    run_begin(f, &plan, device);
}

/* (Random weights amplify what int8 activations round; the real model is held to closer bounds in tests/exact.)
 * Differences of all log-probabilities that came back from the reference's: the largest, and the mean. */
static void compare(const struct device_run *f, const struct tiny_model *tiny, uint32_t s, double *worst, double *mean)
{
    static double wanted[CONTEXT * V];
    double sum = 0;
    uint32_t count = 0;
    tiny_forward(tiny, prompts[s], lengths[s], wanted);
    *worst = 0;
    for (uint32_t i = 0; i < lengths[s]; i++) {
        const struct row_result *row = &f->rows[s][i];
        assert_int_equal(row->flags, 0);
        assert_int_equal(row->top_count, 20);
        for (uint32_t k = 0; k < 20; k++) {
            double difference = fabs((double)row->top_logprobs[k] - wanted[i * V + row->top_ids[k]]);
            if (!(difference <= *worst)) *worst = difference;
            sum += difference;
            count++;
        }
    }
    *mean = sum / count;
}

static void check_spec(const struct model_spec *spec, enum tensor_type type, bool q8_v, bool factors)
{
    static struct tiny_model tiny;
    static struct device_run f;
    double worst, mean;
    tiny_make(&tiny, spec, type, q8_v, factors);
    for (enum cpu_path path = CPU_PATH_SCALAR; path < CPU_PATH_COUNT; path++) {
        if (!cpu_path_supported(path)) continue;
        fixture_make(&f, &tiny, path, NUMERICS_EXACT, 2);
        run_alone(&f, 1, lengths[1], 37);
        compare(&f, &tiny, 1, &worst, &mean);
        if (!(worst < 1e-4)) fail_msg("exact, %s: off by %g", cpu_path_name(path), worst);
        run_end(&f);
        fixture_make(&f, &tiny, path, NUMERICS_FAST, 2);
        run_alone(&f, 1, lengths[1], 37);
        compare(&f, &tiny, 1, &worst, &mean);
        if (!(mean < 0.3)) fail_msg("fast, %s: off by %g in the mean", cpu_path_name(path), mean);
        run_end(&f);
    }
    tiny_free(&tiny);
}

static void test_device_cpu_computes_every_kind_of_model(void **state)
{
    (void)state;
    struct model_spec spec = base_spec;
    check_spec(&spec, TENSOR_Q4_1, false, false); /* Llama */
    check_spec(&spec, TENSOR_F32, true, true);    /* Llama 3's factors; two kinds of activations in one phase */
    spec.rope = ROPE_HALVES;
    spec.has_qkv_bias = true;
    spec.rope_main.scale = 0.5f;
    check_spec(&spec, TENSOR_Q8_0, false, false); /* Qwen 2 */
    spec.has_qk_norm = true;
    spec.tied_head = false;
    spec.activation = ACTIVATION_GELU_TANH;
    spec.rope_size = 8;
    check_spec(&spec, TENSOR_Q8_0, false, false); /* Qwen 3's norm, an untied head, part of a head rotating */
    spec.head_size = 24;                          /* heads that are no whole panels */
    spec.heads = spec.kv_heads = 4;
    spec.attention_scale = 0.2f;
    check_spec(&spec, TENSOR_F32, false, false);
}

static void test_device_cpu_computes_windows_norms_and_scales(void **state)
{
    (void)state;
    struct model_spec spec = tiny_rich(base_spec, 21);
    check_spec(&spec, TENSOR_F32, true, true);
    check_spec(&spec, TENSOR_Q8_0, false, false);
    spec.rope_switch = 512; /* the context is longer */
    check_spec(&spec, TENSOR_Q8_0, false, true);
}

static void test_device_cpu_computes_experts(void **state)
{
    (void)state;
    struct model_spec spec = tiny_mixture(base_spec);
    check_spec(&spec, TENSOR_Q8_0, false, false);
    spec.experts_normed = true;
    check_spec(&spec, TENSOR_F32, true, false); /* two kinds of activations */
    spec.layer_flags[0] = LAYER_WINDOWED;       /* one layer without experts */
    spec.experts_used = 9;
    spec.residual_scale = 0.5f;
    check_spec(&spec, TENSOR_Q4_1, false, false);
}

static void check_same_bits(const struct tiny_model *tiny, enum numerics numerics)
{
    static struct device_run alone, other;
    fixture_make(&alone, tiny, cpu_path_best(), numerics, 1);
    for (uint32_t s = 0; s < SEQS; s++) run_alone(&alone, s, lengths[s], lengths[s]);
    for (uint32_t threads = 1; threads <= 4; threads++) { /* chunks, one by one and all together */
        fixture_make(&other, tiny, cpu_path_best(), numerics, threads);
        for (uint32_t chunk = 1; chunk <= lengths[1]; chunk += threads == 2 ? 1 : 9) {
            run_alone(&other, 1, lengths[1], chunk);
            assert_same_rows(&other, &alone, 1);
        }
        run_alone(&other, 0, lengths[0], 1 + 16 * threads);
        assert_same_rows(&other, &alone, 0);
        run_end(&other);
    }
    for (uint32_t turn = 0; turn < SEQS; turn++) { /* permuted batches, prefill beside decode, other block tables */
        fixture_make(&other, tiny, cpu_path_best(), numerics, 1 + turn);
        run_mixed(&other, (const uint32_t[]){33, 1, 6}, turn);
        for (uint32_t s = 0; s < SEQS; s++) assert_same_rows(&other, &alone, s);
        run_end(&other);
    }
    run_end(&alone);
}

static void test_device_cpu_gives_the_same_bits_in_any_batch(void **state)
{
    (void)state;
    static struct tiny_model tiny;
    tiny_make(&tiny, &base_spec, TENSOR_Q4_1, true, false);
    check_same_bits(&tiny, NUMERICS_EXACT);
    check_same_bits(&tiny, NUMERICS_FAST);
    tiny_free(&tiny);
    const struct model_spec specs[] = {tiny_rich(base_spec, 21), tiny_mixture(base_spec)};
    for (int i = 0; i < 2; i++) {
        tiny_make(&tiny, &specs[i], TENSOR_Q8_0, false, false);
        check_same_bits(&tiny, NUMERICS_EXACT);
        check_same_bits(&tiny, NUMERICS_FAST);
        tiny_free(&tiny);
    }
}

/* Tokens of sequence 0 up to `end`, `chunk` at a time, then one by one to `length`; gives the most parts of a tile. */
static uint32_t run_long(struct device_run *f, uint32_t chunk, uint32_t end, uint32_t length)
{
    const struct device_cpu *cpu = (const struct device_cpu *)(const void *)f->device;
    uint32_t parts_max = 0;
    for (uint32_t position = 0, count; position < length; position += count) {
        count = position >= end ? 1 : end - position < chunk ? end - position : chunk;
        batch_clear(f->batch);
        run_add(f, 0, position, count);
        if (position >= end) run_add(f, 1, position - end, 1); /* a short one beside it */
        run_step(f);
        run_keep(f, 0, 0);
        for (uint32_t i = 0; i < cpu->plans[0].tiles_count; i++) {
            if (cpu->plans[0].tiles[i].parts > parts_max) parts_max = cpu->plans[0].tiles[i].parts;
        }
    }
    return parts_max;
}

static void test_device_cpu_divides_long_contexts_without_a_trace(void **state)
{
    (void)state;
    static struct tiny_model tiny;
    static struct device_run alone, other;
    const uint32_t length = 1010;
    struct model_spec spec = base_spec;
    spec.layer_flags[1] = LAYER_WINDOWED;
    spec.window = 700;
    tiny_make(&tiny, &spec, TENSOR_Q8_0, false, false);
    for (enum numerics numerics = NUMERICS_FAST; numerics <= NUMERICS_EXACT; numerics++) {
        fixture_make(&alone, &tiny, cpu_path_best(), numerics, 1);
        assert_int_equal(run_long(&alone, 256, length, length), 1);
        for (uint32_t threads = 2; threads <= 8; threads += 3) {
            fixture_make(&other, &tiny, cpu_path_best(), numerics, threads);
            assert_true(run_long(&other, 101, 990, length) > 1);
            assert_memory_equal(other.rows[0], alone.rows[0], length * sizeof alone.rows[0][0]);
            run_end(&other);
        }
        run_end(&alone);
    }
    tiny_free(&tiny);
}

static void test_device_cpu_exact_paths_give_the_same_bits(void **state)
{
    (void)state;
    static struct tiny_model tiny;
    static struct device_run scalar, other;
    tiny_make(&tiny, &base_spec, TENSOR_Q4_1, true, true);
    for (int numerics = NUMERICS_FAST; numerics <= NUMERICS_EXACT; numerics++) {
        fixture_make(&scalar, &tiny, CPU_PATH_SCALAR, (enum numerics)numerics, 2);
        for (uint32_t s = 0; s < SEQS; s++) run_alone(&scalar, s, lengths[s], 64);
        for (enum cpu_path path = CPU_PATH_AVX2; path < CPU_PATH_COUNT; path++) {
            if (!cpu_path_supported(path)) continue;
            fixture_make(&other, &tiny, path, (enum numerics)numerics, 2);
            for (uint32_t s = 0; s < SEQS; s++) run_alone(&other, s, lengths[s], 64);
            for (uint32_t s = 0; s < SEQS; s++) assert_same_rows(&other, &scalar, s);
            run_end(&other);
        }
        run_end(&scalar);
    }
    tiny_free(&tiny);
}

static void test_device_cpu_reads_a_prefix_from_shared_blocks(void **state)
{
    (void)state;
    static struct tiny_model tiny;
    static struct device_run alone, shared;
    tiny_make(&tiny, &base_spec, TENSOR_Q4_1, false, false);
    fixture_make(&alone, &tiny, cpu_path_best(), NUMERICS_EXACT, 2);
    fixture_make(&shared, &tiny, cpu_path_best(), NUMERICS_EXACT, 2);
    memcpy(prompts[1], prompts[0], 32 * sizeof prompts[0][0]); /* two blocks alike */
    run_alone(&alone, 1, lengths[1], lengths[1]);
    run_alone(&shared, 0, lengths[0], TOKENS);
    memcpy(shared.tables[1], shared.tables[0], 2 * sizeof shared.tables[0][0]);
    batch_clear(shared.batch);
    run_add(&shared, 1, 32, lengths[1] - 32);
    run_step(&shared);
    run_keep(&shared, 0, 1);
    for (uint32_t i = 32; i < lengths[1]; i++)
        assert_memory_equal(&shared.rows[1][i], &alone.rows[1][i], sizeof alone.rows[1][i]);
    run_end(&alone);
    run_end(&shared);
    tiny_free(&tiny);
}

static void check_not_finite(const struct tiny_model *tiny, enum numerics numerics, uint32_t threads)
{
    static struct device_run alone, other;
    fixture_make(&alone, tiny, cpu_path_best(), numerics, threads);
    for (uint32_t i = 0; i < lengths[1]; i++) prompts[1][i] %= V - 1; /* without the token whose embedding is NaN */
    run_alone(&alone, 1, lengths[1], lengths[1]);
    fixture_make(&other, tiny, cpu_path_best(), numerics, threads);
    for (uint32_t i = 0; i < lengths[1]; i++) prompts[1][i] %= V - 1;
    for (uint32_t i = 0; i < 30; i++) prompts[2][i] %= V - 1;
    prompts[2][9] = V - 1;
    batch_clear(other.batch);
    run_add(&other, 2, 0, 16);
    run_add(&other, 1, 0, lengths[1]);
    run_step(&other);
    run_keep(&other, 0, 2);
    run_keep(&other, 1, 1);
    assert_same_rows(&other, &alone, 1); /* the neighbour has not noticed */
    for (uint32_t i = 0; i < 16; i++) assert_int_equal(other.rows[2][i].flags, i < 9 ? 0 : ROW_NOT_FINITE);
    batch_clear(other.batch);
    run_add(&other, 2, 16, 3); /* a later step of the same sequence: only its KV is spoilt */
    run_step(&other);
    for (uint32_t i = 0; i < 3; i++) assert_int_equal(other.result->rows[i].flags, ROW_NOT_FINITE);
    memcpy(other.tables[1], other.tables[2], sizeof other.tables[2]); /* its blocks, used again */
    run_alone(&other, 1, lengths[1], 5);
    assert_same_rows(&other, &alone, 1);
    run_end(&alone);
    run_end(&other);
}

static void test_device_cpu_flags_rows_that_are_not_finite(void **state)
{
    (void)state;
    static struct tiny_model tiny;
    tiny_make(&tiny, &base_spec, TENSOR_F32, true, false);
    struct tensor_view embed = tiny.model.weights.embed;
    for (size_t i = 0; i < tiny.owned_count; i++) {
        if (tiny.owned[i] == embed.data) ((float *)tiny.owned[i])[(V - 1) * 64 + 5] = NAN;
    }
    tiny.model.spec.tied_head = false; /* else every logit row would hold the NaN */
    tiny.model.weights.head = tiny_tensor(&tiny, TENSOR_Q8_0, V, 64, 1, "head");
    for (uint32_t threads = 1; threads <= 2; threads++) {
        check_not_finite(&tiny, NUMERICS_FAST, threads);
        check_not_finite(&tiny, NUMERICS_EXACT, threads);
    }
    tiny_free(&tiny);
}

static void test_device_cpu_step_allocates_nothing(void **state)
{
    (void)state;
    static struct tiny_model tiny;
    static struct device_run f;
    tiny_make(&tiny, &base_spec, TENSOR_Q4_1, false, false);
    fixture_make(&f, &tiny, cpu_path_best(), NUMERICS_FAST, 3);
    uint64_t before = mem_allocations();
    for (uint32_t s = 0; s < SEQS; s++) run_alone(&f, s, lengths[s], 64);
    assert_int_equal(mem_allocations() - before, 0);
    run_end(&f);
    tiny_free(&tiny);
}

static void test_device_cpu_refuses_batches_that_break_the_contract(void **state)
{
    (void)state;
    static struct tiny_model tiny;
    static struct device_run f;
    tiny_make(&tiny, &base_spec, TENSOR_Q4_1, false, false);
    fixture_make(&f, &tiny, cpu_path_best(), NUMERICS_FAST, 2);
    for (int fault = 0; fault <= 12; fault++) {
        batch_clear(f.batch);
        run_add(&f, 0, 0, 20);
        run_add(&f, 1, 0, 5);
        struct batch *b = f.batch;
        block_id bad_table[2] = {0, BLOCKS};
        switch (fault) {
        case 1: b->tokens[7] = V; break;
        case 2: b->positions[3] = 4; break;
        case 3: b->kv_len[1] = 6; break;
        case 4: b->block_table[0] = bad_table; break;
        case 5: b->q_start[1] = 0; break;
        case 6: b->seq_of_token[21] = 0; break;
        case 7: b->rows[4].token = 25; break;
        case 8: b->rows[4].token = 9; break;
        case 9: b->rows[2].params = NULL; break;
        case 10: b->rows[2].score_only = true, b->rows[2].target = V; break;
        case 11: b->rows_count = 257; break;
        case 12: b->positions[0] = CONTEXT + 1; break;
        default: break;
        }
        assert_int_equal(device_step(f.device, b, f.result), fault ? ST_INVAL : ST_OK);
    }
    batch_clear(f.batch);
    run_step(&f); /* empty: nothing happens */
    run_end(&f);
    tiny_free(&tiny);
}

static uint64_t fail_at;
static bool fail_one(void *state, size_t size_bytes)
{
    (void)state;
    (void)size_bytes;
    return fail_at == 0 || --fail_at > 0;
}

static void test_device_cpu_create_fails_cleanly(void **state)
{
    (void)state;
    static struct tiny_model tiny;
    struct device *device = NULL;
    struct error err;
    struct device_config config = {.path = cpu_path_best(),
                                   .numerics = NUMERICS_EXACT,
                                   .threads = 2,
                                   .tokens_max = 8,
                                   .seqs_max = 2,
                                   .rows_max = 2,
                                   .context_max = 64};
    tiny_make(&tiny, &base_spec, TENSOR_Q4_1, false, true);
    uint64_t k = 0;
    enum status status;
    do {
        fail_at = ++k;
        mem_hook_set(fail_one, NULL);
        status = device_cpu_create(&tiny.model, &config, NULL, NULL, &device, &err);
        mem_hook_set(NULL, NULL);
        if (status != ST_OK) assert_int_equal(status, ST_NOMEM);
    } while (status != ST_OK && k < 100);
    assert_true(k > 5 && k < 100);
    assert_int_equal(device->info.kv_blocks, 4); /* a sequence's worth */
    device_destroy(device);
    struct device_config exact = config;
    exact.numerics = NUMERICS_EXACT;
    exact.kv_int8 = true;
    assert_int_equal(device_cpu_create(&tiny.model, &exact, NULL, NULL, &device, &err), ST_INVAL);
    assert_non_null(strstr(err.message, "int8"));
    tiny.layers[1].up.rows = 95;
    assert_int_equal(device_cpu_create(&tiny.model, &config, NULL, NULL, &device, &err), ST_INVAL);
    assert_non_null(strstr(err.message, "up"));
    config.threads = 0;
    assert_int_equal(device_cpu_create(&tiny.model, &config, NULL, NULL, &device, &err), ST_INVAL);
    tiny_free(&tiny);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_device_cpu_computes_every_kind_of_model),
        cmocka_unit_test(test_device_cpu_computes_windows_norms_and_scales),
        cmocka_unit_test(test_device_cpu_computes_experts),
        cmocka_unit_test(test_device_cpu_gives_the_same_bits_in_any_batch),
        cmocka_unit_test(test_device_cpu_divides_long_contexts_without_a_trace),
        cmocka_unit_test(test_device_cpu_exact_paths_give_the_same_bits),
        cmocka_unit_test(test_device_cpu_reads_a_prefix_from_shared_blocks),
        cmocka_unit_test(test_device_cpu_flags_rows_that_are_not_finite),
        cmocka_unit_test(test_device_cpu_step_allocates_nothing),
        cmocka_unit_test(test_device_cpu_refuses_batches_that_break_the_contract),
        cmocka_unit_test(test_device_cpu_create_fails_cleanly),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
