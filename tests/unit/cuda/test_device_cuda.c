/* The CUDA device under the emulator, on tiny random models: near the CPU device's exact numerics for every kind of
 * model, and the same bits whatever the batch, the chunks, the blocks, graphs, launching ahead and, in deterministic
 * mode, the path. */
#include "tests/unit/unit.h"

#include "runtime/device/device_cuda.h"
#include "tests/emulator/faults.h"
#include "tests/unit/cuda/fake_libraries.h"
#include "tests/unit/runtime/device_run.h"
#include "tests/unit/runtime/tiny_model.h"

#include <stdlib.h>

enum { V = 597, TOKENS = 40, SEQS = RUN_SEQS, CONTEXT = 256, BLOCKS = SEQS * CONTEXT / KV_BLOCK_TOKENS };

static const struct model_spec base_spec = {
    TINY_SPEC,      .heads = 4, .head_size = 64,       .rope_size = 64, .attention_scale = 0.125f,
    .ff_width = 96, .vocab = V, .context_max = CONTEXT};
static const struct device_cuda_config base_config = {.ranks = 1,
                                                      .memory_utilization = 0.06,
                                                      .spare_bytes = 1 << 20,
                                                      .step_deadline_ns = 600000000000u,
                                                      .tokens_max = 80,
                                                      .seqs_max = SEQS,
                                                      .rows_max = 80,
                                                      .context_max = CONTEXT,
                                                      .libraries = &fake_libraries};
static const struct sampling_params greedy = {.top_p = 1, .repetition_penalty = 1, .logprobs = 20};

static const struct run_plan plan = {CONTEXT, V, BLOCKS, {TOKENS, 23, 9}, &greedy, 1};
static const uint32_t *const lengths = plan.lengths;

/* Lost devices keep their memory: others get theirs beside. */
static struct device_cuda_config beside_others(const struct device_cuda_config *config)
{
    struct device_cuda_config other = *config;
    size_t free_bytes, total_bytes;
    assert_int_equal(cudaMemGetInfo(&free_bytes, &total_bytes), cudaSuccess);
    other.memory_utilization += (double)(total_bytes - free_bytes) / (double)total_bytes;
    return other;
}

static void fixture_cuda(struct device_run *f, const struct tiny_model *tiny, const struct device_cuda_config *config)
{
    struct error err = {""};
    struct device_cuda_config beside = beside_others(config);
    struct device *device = NULL;
    if (device_cuda_create(&tiny->model, &beside, NULL, NULL, &device, &err) != ST_OK) fail_msg("%s", err.message);
    assert_true(device->info.kv_blocks >= BLOCKS);
    run_begin(f, &plan, device);
}

static void fixture_cpu(struct device_run *f, const struct tiny_model *tiny)
{
    struct error err = {""};
    size_t block_bytes = device_cpu_kv_block_bytes(&tiny->model.spec, NUMERICS_EXACT, false);
    struct device_config config = {.path = cpu_path_best(),
                                   .numerics = NUMERICS_EXACT,
                                   .threads = 1,
                                   .tokens_max = 80,
                                   .seqs_max = SEQS,
                                   .rows_max = 80,
                                   .context_max = CONTEXT,
                                   .kv_bytes = BLOCKS * block_bytes};
    struct device *device = NULL;
    if (device_cpu_create(&tiny->model, &config, NULL, NULL, &device, &err) != ST_OK) fail_msg("%s", err.message);
    run_begin(f, &plan, device);
}

/* Differences of log-probabilities of ids that are among the highest of both. */
struct difference {
    double worst, mean;
    uint32_t choices, equal; /* ids that had to be equal by their margin */
};

static struct difference compare(const struct device_run *got, const struct device_run *wanted, uint32_t s)
{
    struct difference d = {0, 0, 0, 0};
    uint32_t count = 0;
    for (uint32_t i = 0; i < lengths[s]; i++) {
        const struct row_result *a = &got->rows[s][i], *b = &wanted->rows[s][i];
        assert_int_equal(a->flags, 0);
        assert_int_equal(a->top_count, 20);
        for (uint32_t k = 0; k < 20; k++) {
            for (uint32_t j = 0; j < 20; j++) {
                if (a->top_ids[k] != b->top_ids[j]) continue;
                double difference = fabs((double)a->top_logprobs[k] - (double)b->top_logprobs[j]);
                if (!(difference <= d.worst)) d.worst = difference;
                d.mean += difference;
                count++;
            }
        }
    }
    assert_true(count >= 10 * lengths[s]);
    d.mean /= count;
    for (uint32_t i = 0; i < lengths[s]; i++) {
        const struct row_result *a = &got->rows[s][i], *b = &wanted->rows[s][i];
        if ((double)(b->top_logprobs[0] - b->top_logprobs[1]) <= 2 * d.worst) continue;
        d.choices++;
        d.equal += a->id == b->id;
    }
    return d;
}

/* Bounds: BF16 between kernels is 2^-9 of each value, amplified by random weights. */
static void check_spec(const char *what, const struct model_spec *spec, enum tensor_type type, bool q8_v, bool factors,
                       const struct device_cuda_config *config, double worst, double mean)
{
    static struct tiny_model tiny;
    static struct device_run cuda, cpu;
    tiny_make(&tiny, spec, type, q8_v, factors);
    fixture_cpu(&cpu, &tiny);
    fixture_cuda(&cuda, &tiny, config);
    run_alone(&cpu, 1, lengths[1], lengths[1]);
    run_alone(&cuda, 1, 20, 20);
    struct difference d = compare(&cuda, &cpu, 1);
    print_message("%s: log-probabilities differ by %.4f at most, %.4f in the mean; %u of %u clear choices equal\n",
                  what, d.worst, d.mean, d.equal, d.choices);
    assert_int_equal(d.equal, d.choices);
    if (!(d.worst < worst && d.mean < mean)) fail_msg("%s: off by %g, %g in the mean", what, d.worst, d.mean);
    run_end(&cuda);
    run_end(&cpu);
    tiny_free(&tiny);
}

static void test_device_cuda_computes_every_kind_of_model(void **state)
{
    (void)state;
    struct model_spec spec = base_spec;
    struct device_cuda_config config = base_config;
    check_spec("llama q4_1", &spec, TENSOR_Q4_1, false, false, &config, 1, 0.1);
    config.graphs = true;
    check_spec("llama f32, two types", &spec, TENSOR_F32, true, true, &config, 1, 0.1);
    spec.rope = ROPE_HALVES;
    spec.has_qkv_bias = true;
    spec.rope_main.scale = 0.5f;
    check_spec("qwen2 q8_0", &spec, TENSOR_Q8_0, false, false, &config, 1, 0.1);
    spec.has_qk_norm = true;
    spec.tied_head = false;
    spec.activation = ACTIVATION_GELU_TANH;
    spec.rope_size = 32;
    check_spec("qwen3 q8_0, untied", &spec, TENSOR_Q8_0, false, false, &config, 1, 0.1);
}

static void test_device_cuda_computes_windows_norms_and_scales(void **state)
{
    (void)state;
    struct model_spec spec = tiny_rich(base_spec, 7);
    check_spec("windows, norms, scales", &spec, TENSOR_F32, true, true, &base_config, 1, 0.1);
    spec.rope_switch = 128; /* the context is longer */
    check_spec("long rope, q8_0", &spec, TENSOR_Q8_0, false, true, &base_config, 1, 0.1);
}

static void test_device_cuda_computes_experts(void **state)
{
    (void)state;
    struct model_spec spec = tiny_mixture(base_spec);
    check_spec("experts q8_0", &spec, TENSOR_Q8_0, false, false, &base_config, 1, 0.1);
    spec.experts_normed = true;
    check_spec("experts of two types", &spec, TENSOR_F32, true, false, &base_config, 1, 0.1);
    spec.layer_flags[0] = LAYER_WINDOWED; /* one layer without experts */
    spec.experts_used = 9;
    spec.residual_scale = 0.5f;
    check_spec("all experts q4_1", &spec, TENSOR_Q4_1, false, false, &base_config, 1, 0.1);
}

/* FP8 weights and KV are other values: their error is of the format (3 bits of mantissa), not of the device. */
static void test_device_cuda_takes_other_dtypes(void **state)
{
    (void)state;
    struct device_cuda_config config = base_config;
    config.dtype = CUDA_DTYPE_BF16;
    check_spec("q8_0 as bf16", &base_spec, TENSOR_Q8_0, false, false, &config, 1, 0.1);
    config.dtype = CUDA_DTYPE_FP8;
    check_spec("f32 as fp8", &base_spec, TENSOR_F32, false, false, &config, 4, 0.6);
    config.dtype = CUDA_DTYPE_AUTO;
    config.kv_fp8 = true;
    check_spec("kv in fp8", &base_spec, TENSOR_F32, false, false, &config, 4, 0.6);
}

/* ---- the same bits ---- */

static void check_same_bits(const struct tiny_model *tiny)
{
    static struct device_run alone, other;
    struct device_cuda_config config = base_config;
    config.deterministic = true;
    fixture_cuda(&alone, tiny, &config);
    for (uint32_t s = 0; s < SEQS; s++) run_alone(&alone, s, lengths[s], lengths[s]);
    config.graphs = true;
    fixture_cuda(&other, tiny, &config);
    for (uint32_t chunk = 1; chunk <= 17; chunk += 8) {
        run_alone(&other, 1, lengths[1], chunk);
        assert_same_rows(&other, &alone, 1);
    }
    for (uint32_t turn = 0; turn < SEQS; turn++) {
        run_mixed(&other, (const uint32_t[]){13, 1, 4}, turn);
        for (uint32_t s = 0; s < SEQS; s++) assert_same_rows(&other, &alone, s);
    }
    memcpy(other.tables[1], other.tables[2], sizeof other.tables[1]); /* blocks that others have used */
    run_alone(&other, 1, 5, 5);
    assert_same_rows(&other, &alone, 1);
    run_end(&other);
    run_end(&alone);
}

static void test_device_cuda_gives_the_same_bits_in_any_batch(void **state)
{
    (void)state;
    static struct tiny_model tiny;
    const struct model_spec specs[] = {base_spec, tiny_rich(base_spec, 7), tiny_mixture(base_spec)};
    const enum tensor_type types[] = {TENSOR_Q4_1, TENSOR_Q8_0, TENSOR_F32};
    for (int i = 0; i < 3; i++) {
        tiny_make(&tiny, &specs[i], types[i], i == 0, false);
        check_same_bits(&tiny);
        tiny_free(&tiny);
    }
}

static void test_device_cuda_reads_a_prefix_from_shared_blocks(void **state)
{
    (void)state;
    static struct tiny_model tiny;
    static struct device_run alone, shared;
    struct device_cuda_config config = base_config;
    config.deterministic = true;
    tiny_make(&tiny, &base_spec, TENSOR_Q8_0, false, false);
    fixture_cuda(&alone, &tiny, &config);
    fixture_cuda(&shared, &tiny, &config);
    memcpy(prompts[1], prompts[0], 16 * sizeof prompts[0][0]); /* a block alike */
    run_alone(&alone, 1, lengths[1], lengths[1]);
    run_alone(&shared, 0, TOKENS, TOKENS);
    shared.tables[1][0] = shared.tables[0][0];
    batch_clear(shared.batch);
    run_add(&shared, 1, 16, lengths[1] - 16);
    run_step(&shared);
    run_keep(&shared, 0, 1);
    for (uint32_t i = 16; i < lengths[1]; i++)
        assert_memory_equal(&shared.rows[1][i], &alone.rows[1][i], sizeof alone.rows[1][i]);
    run_end(&alone);
    run_end(&shared);
    tiny_free(&tiny);
}

/* ---- launching ahead ---- */

static const uint32_t few[] = {3, 77, 127, 128, 255, 596};
static const struct logit_bias bias[] = {{5, 2}, {200, -3}};
static const struct sampling_params kinds[SEQS] = {
    {.temperature = 0.9f, .top_p = 0.9f, .repetition_penalty = 1.3f, .frequency_penalty = 0.4f, .logprobs = 20},
    {.top_p = 1, .repetition_penalty = 1.2f, .presence_penalty = 0.5f, .bias = bias, .bias_count = 2, .logprobs = 3},
    {.temperature = 1, .top_p = 1, .repetition_penalty = 1, .allowed = few, .allowed_count = 6, .logprobs = 20},
};

/* Sequences that generate `new` tokens each after their prompt: ids_of[s] is the prompt and what came. Ahead: the
 * next step is launched before the last one's ids are known. Returns with the rows of all new tokens in f->rows[s][i].
 */
static void generate(struct device_run *f, bool ahead, uint32_t new, uint32_t ids_of[SEQS][CONTEXT])
{
    static struct sampling_params params[SEQS];
    for (uint32_t s = 0; s < SEQS; s++) memcpy(ids_of[s], prompts[s], lengths[s] * sizeof(uint32_t));
    for (uint32_t i = 0; i <= new; i++) {
        struct batch *b = f->batch;
        batch_clear(b);
        for (uint32_t s = 0; i < new &&s < SEQS; s++) {
            uint32_t position = i ? lengths[s] + i - 1 : 0, count = i ? 1 : lengths[s], n = b->tokens_count;
            bool pending = ahead && i;
            run_add(f, s, position, count);
            b->rows_count -= count;
            memcpy(b->tokens + n, ids_of[s] + position, count * sizeof(uint32_t));
            if (pending) b->tokens[n] = TOKEN_OF_ROW | s;
            params[s] = kinds[s]; /* L2: may change as soon as launch has returned */
            b->rows[b->rows_count++] = (struct batch_row){.token = b->tokens_count - 1,
                                                          .params = &params[s],
                                                          .seed = 77 + s,
                                                          .position = lengths[s] + i,
                                                          .seen = ids_of[s],
                                                          .seen_prompt = lengths[s],
                                                          .seen_count = lengths[s] + i - pending,
                                                          .pending = pending};
        }
        if (i < new) {
            assert_int_equal(device_launch(f->device, b), ST_OK);
            memset(params, 0xee, sizeof params);
            memset(b->tokens, 0xee, b->tokens_max * sizeof *b->tokens);
            for (uint32_t s = 0; s < SEQS; s++) b->block_table[s] = NULL;
        }
        if (ahead && i == 0) continue;
        uint32_t of = ahead ? i - 1 : i;
        if (of == new) break;
        assert_int_equal(device_collect(f->device, f->result), ST_OK);
        for (uint32_t s = 0; s < SEQS; s++) {
            f->rows[s][of] = f->result->rows[s];
            ids_of[s][lengths[s] + of] = f->result->rows[s].id;
            for (uint32_t k = f->rows[s][of].top_count; k < LOGPROBS_MAX; k++)
                f->rows[s][of].top_ids[k] = 0, f->rows[s][of].top_logprobs[k] = 0;
        }
    }
}

static void test_device_cuda_runs_ahead_without_a_trace(void **state)
{
    (void)state;
    enum { NEW = 9 };
    static struct tiny_model tiny;
    static struct device_run by_step, ahead;
    static uint32_t ids[2][SEQS][CONTEXT];
    tiny_make(&tiny, &base_spec, TENSOR_Q8_0, false, false);
    struct device_cuda_config config = base_config;
    fixture_cuda(&by_step, &tiny, &config);
    generate(&by_step, false, NEW, ids[0]);
    for (int graphs = 0; graphs < 2; graphs++) {
        config.graphs = graphs;
        fixture_cuda(&ahead, &tiny, &config);
        generate(&ahead, true, NEW, ids[1]);
        for (uint32_t s = 0; s < SEQS; s++) {
            for (uint32_t i = 0; i < NEW; i++) {
                assert_int_equal(by_step.rows[s][i].flags, 0);
                if (memcmp(&ahead.rows[s][i], &by_step.rows[s][i], sizeof ahead.rows[s][i]) != 0)
                    fail_msg("sequence %u, new token %u: %u, not %u", s, i, ahead.rows[s][i].id, by_step.rows[s][i].id);
            }
        }
        run_end(&ahead);
    }
    run_end(&by_step);
    tiny_free(&tiny);
}

/* ---- what must not be, and what must not happen ---- */

static void test_device_cuda_flags_rows_that_are_not_finite(void **state)
{
    (void)state;
    static struct tiny_model tiny;
    static struct device_run alone, other;
    struct device_cuda_config config = base_config;
    config.deterministic = true;
    tiny_make(&tiny, &base_spec, TENSOR_F32, true, false);
    const struct tensor_view embed = tiny.model.weights.embed;
    for (size_t i = 0; i < tiny.owned_count; i++) {
        if (tiny.owned[i] == embed.data) ((float *)tiny.owned[i])[(V - 1) * 64 + 5] = NAN;
    }
    tiny.model.spec.tied_head = false; /* else every logit row would hold the NaN */
    tiny.model.weights.head = tiny_tensor(&tiny, TENSOR_Q8_0, V, 64, 1, "head");
    fixture_cuda(&alone, &tiny, &config);
    for (uint32_t i = 0; i < CONTEXT; i++) prompts[1][i] %= V - 1; /* without the token whose embedding is NaN */
    run_alone(&alone, 1, lengths[1], lengths[1]);
    fixture_cuda(&other, &tiny, &config);
    for (uint32_t s = 1; s < SEQS; s++) {
        for (uint32_t i = 0; i < CONTEXT; i++) prompts[s][i] %= V - 1;
    }
    prompts[2][9] = V - 1;
    batch_clear(other.batch);
    run_add(&other, 2, 0, 16);
    run_add(&other, 1, 0, lengths[1]);
    run_step(&other);
    run_keep(&other, 0, 2);
    run_keep(&other, 1, 1);
    assert_same_rows(&other, &alone, 1); /* the neighbour has not noticed */
    for (uint32_t i = 9; i < 16; i++) assert_int_equal(other.rows[2][i].flags, ROW_NOT_FINITE);
    batch_clear(other.batch);
    run_add(&other, 2, 16, 3); /* a later step of the same sequence: only its KV is spoilt */
    run_step(&other);
    for (uint32_t i = 0; i < 3; i++) assert_int_equal(other.result->rows[i].flags, ROW_NOT_FINITE);
    memcpy(other.tables[1], other.tables[2], sizeof other.tables[2]); /* its blocks, used again */
    run_alone(&other, 1, 5, 5);
    assert_same_rows(&other, &alone, 1);
    run_end(&alone);
    run_end(&other);
    tiny_free(&tiny);
}

static void test_device_cuda_step_allocates_nothing(void **state)
{
    (void)state;
    static struct tiny_model tiny;
    static struct device_run f;
    size_t all_bytes, before_bytes, after_bytes, total_bytes;
    tiny_make(&tiny, &base_spec, TENSOR_Q4_1, false, false);
    assert_int_equal(cudaMemGetInfo(&all_bytes, &total_bytes), cudaSuccess);
    struct device_cuda_config config = base_config;
    config.graphs = true;
    fixture_cuda(&f, &tiny, &config);
    uint64_t before = mem_allocations();
    assert_int_equal(cudaMemGetInfo(&before_bytes, &total_bytes), cudaSuccess);
    for (uint32_t s = 0; s < SEQS; s++) run_alone(&f, s, 5, 5);
    assert_int_equal(mem_allocations() - before, 0);
    assert_int_equal(cudaMemGetInfo(&after_bytes, &total_bytes), cudaSuccess);
    assert_int_equal(after_bytes, before_bytes);
    run_end(&f);
    assert_int_equal(cudaMemGetInfo(&after_bytes, &total_bytes), cudaSuccess);
    assert_int_equal(after_bytes, all_bytes); /* all of it was given back */
    assert_int_equal(atomic_load(&fake_nvml_open), 0);
    tiny_free(&tiny);
}

static void test_device_cuda_refuses_what_breaks_the_contract(void **state)
{
    (void)state;
    static struct tiny_model tiny;
    static struct device_run f;
    tiny_make(&tiny, &base_spec, TENSOR_Q4_1, false, false);
    fixture_cuda(&f, &tiny, &base_config);
    assert_int_equal(device_collect(f.device, f.result), ST_INVAL);
    batch_clear(f.batch);
    run_add(&f, 0, 0, 20);
    f.batch->tokens[7] = V;
    assert_int_equal(device_launch(f.device, f.batch), ST_INVAL);
    f.batch->tokens[7] = 1;
    assert_int_equal(device_launch(f.device, f.batch), ST_OK);
    batch_clear(f.batch);
    run_add(&f, 1, 30, 1);
    f.batch->tokens[0] = TOKEN_OF_ROW | 20;
    assert_int_equal(device_launch(f.device, f.batch), ST_INVAL); /* rows 0 .. 19 */
    f.batch->tokens[0] = TOKEN_OF_ROW | 19;
    assert_int_equal(device_launch(f.device, f.batch), ST_OK);
    batch_clear(f.batch);
    assert_int_equal(device_launch(f.device, f.batch), ST_INVAL); /* a third */
    assert_int_equal(device_collect(f.device, f.result), ST_OK);
    assert_int_equal(device_launch(f.device, f.batch), ST_OK); /* empty: nothing happens */
    assert_int_equal(device_collect(f.device, f.result), ST_OK);
    assert_int_equal(device_collect(f.device, f.result), ST_OK);
    assert_int_equal(device_collect(f.device, f.result), ST_INVAL);
    run_end(&f);
    tiny_free(&tiny);
}

/* ---- several GPUs ---- */

static void test_device_cuda_divides_a_model_over_gpus(void **state)
{
    (void)state;
    struct device_cuda_config config = base_config;
    struct model_spec spec = base_spec;
    config.ranks = 2;
    check_spec("two GPUs, q4_1", &spec, TENSOR_Q4_1, false, false, &config, 1, 0.1);
    config.one_shot_bytes = 1; /* NCCL makes all sums */
    check_spec("two GPUs, NCCL", &spec, TENSOR_Q4_1, false, false, &config, 1, 0.1);
    config.one_shot_bytes = 3 * 64 * 2; /* for chunks; our kernel those of a few tokens */
    config.graphs = true;
    spec.has_qkv_bias = true;
    spec.tied_head = false;
    check_spec("two GPUs, biases, graphs", &spec, TENSOR_F32, true, true, &config, 1, 0.1);
    spec = tiny_rich(base_spec, 7);
    spec.heads = 3; /* uneven: two KV heads, and one */
    spec.kv_heads = 3;
    check_spec("two GPUs, windows, uneven heads", &spec, TENSOR_Q8_0, false, false, &config, 1, 0.1);
    spec = tiny_mixture(base_spec);
    spec.expert_width = 256;
    check_spec("two GPUs, experts", &spec, TENSOR_Q8_0, false, false, &config, 1, 0.1);
}

/* Experts too narrow to be split: each has one GPU, some GPUs one expert more. */
static void test_device_cuda_divides_experts_over_gpus(void **state)
{
    (void)state;
    struct device_cuda_config config = base_config;
    struct model_spec spec = tiny_mixture(base_spec);
    config.ranks = 2;
    check_spec("two GPUs, whole experts", &spec, TENSOR_Q8_0, false, false, &config, 1, 0.1);
    config.ranks = 4;
    config.graphs = true;
    spec.experts_normed = true;
    check_spec("four GPUs, whole experts of two types", &spec, TENSOR_F32, true, false, &config, 1, 0.1);
    spec.experts_used = 1; /* most GPUs have nothing to add */
    config.one_shot_bytes = 1;
    check_spec("four GPUs, one expert a token", &spec, TENSOR_Q4_1, false, false, &config, 1, 0.1);
}

static void test_device_cuda_gpus_run_ahead_without_a_trace(void **state)
{
    (void)state;
    enum { NEW = 5 };
    static struct tiny_model tiny;
    static struct device_run by_step, ahead;
    static uint32_t ids[2][SEQS][CONTEXT];
    struct device_cuda_config config = base_config;
    config.ranks = 2;
    config.deterministic = config.graphs = true;
    tiny_make(&tiny, &base_spec, TENSOR_Q8_0, false, false);
    fixture_cuda(&by_step, &tiny, &config);
    generate(&by_step, false, NEW, ids[0]);
    fixture_cuda(&ahead, &tiny, &config);
    generate(&ahead, true, NEW, ids[1]);
    for (uint32_t s = 0; s < SEQS; s++)
        for (uint32_t i = 0; i < NEW; i++)
            assert_memory_equal(&ahead.rows[s][i], &by_step.rows[s][i], sizeof ahead.rows[s][i]);
    run_end(&ahead);
    run_end(&by_step);
    tiny_free(&tiny);
}

/* Stages of layers: the bits of as many ranks without stages, in chunks, beside each other and launched ahead. */
static void check_stages(const struct tiny_model *tiny, uint32_t ranks, uint32_t stages)
{
    enum { NEW = 4 };
    static struct device_run one, staged;
    static uint32_t ids[2][SEQS][CONTEXT];
    struct device_cuda_config config = base_config;
    config.ranks = ranks;
    config.deterministic = config.graphs = true;
    fixture_cuda(&one, tiny, &config);
    config.ranks = ranks * stages;
    config.stages = stages;
    fixture_cuda(&staged, tiny, &config);
    assert_int_equal(staged.device->info.kv_block_bytes, one.device->info.kv_block_bytes);
    assert_true(staged.device->info.weights_bytes < one.device->info.weights_bytes + 4096 * (size_t)ranks * stages);
    run_alone(&one, 1, lengths[1], lengths[1]);
    run_alone(&staged, 1, 13, 7);
    assert_same_rows(&staged, &one, 1);
    generate(&one, false, NEW, ids[0]);
    generate(&staged, true, NEW, ids[1]);
    for (uint32_t s = 0; s < SEQS; s++)
        for (uint32_t i = 0; i < NEW; i++)
            assert_memory_equal(&staged.rows[s][i], &one.rows[s][i], sizeof one.rows[s][i]);
    run_end(&staged);
    run_end(&one);
}

/* Where V of some layer overflows for some tokens, the same rows are flagged as on one stage. */
static void check_flags_of_stages(uint32_t spoilt)
{
    static struct tiny_model tiny;
    static struct device_run one, staged;
    struct device_cuda_config config = base_config;
    struct model_spec spec = base_spec;
    uint32_t flagged = 0;
    for (uint32_t l = 0; l < 3; l++) spec.layer_flags[l] = LAYER_WINDOWED; /* few rows see the NaN themselves */
    spec.window = 2;
    tiny_make_layers(&tiny, &spec, 3, TENSOR_F32, false, false);
    for (uint32_t i = 0; i < tiny.owned_count; i++)
        if (tiny.owned[i] == tiny.layers[spoilt].v.data) ((float *)tiny.owned[i])[3] = 2e38f;
    config.deterministic = true;
    fixture_cuda(&one, &tiny, &config);
    config.ranks = config.stages = 3;
    fixture_cuda(&staged, &tiny, &config);
    run_alone(&one, 1, lengths[1], lengths[1]);
    run_alone(&staged, 1, lengths[1], lengths[1]);
    for (uint32_t i = 0; i < lengths[1]; i++) {
        assert_int_equal(staged.rows[1][i].flags, one.rows[1][i].flags);
        flagged += one.rows[1][i].flags == ROW_NOT_FINITE;
    }
    assert_true(flagged > 0);
    run_end(&staged);
    run_end(&one);
    tiny_free(&tiny);
}

static void test_device_cuda_divides_layers_into_stages(void **state)
{
    (void)state;
    static struct tiny_model tiny;
    struct model_spec rich = tiny_rich(base_spec, 7), mixture = tiny_mixture(base_spec);
    rich.layer_flags[0] = rich.layer_flags[2] = 0; /* windows on one stage alone */
    rich.layer_flags[1] = LAYER_WINDOWED;
    mixture.layer_flags[2] = 0;
    tiny_make_layers(&tiny, &base_spec, 4, TENSOR_Q4_1, false, false);
    check_stages(&tiny, 1, 4);
    tiny_free(&tiny);
    tiny_make_layers(&tiny, &rich, 3, TENSOR_Q8_0, false, true);
    check_stages(&tiny, 1, 3);
    check_stages(&tiny, 2, 2);
    tiny_free(&tiny);
    tiny_make_layers(&tiny, &mixture, 3, TENSOR_F32, false, false);
    check_stages(&tiny, 1, 2);
    check_stages(&tiny, 2, 2);
    tiny_free(&tiny);
    for (uint32_t l = 0; l < 3; l++) check_flags_of_stages(l);
}

static uint64_t fail_at;
static bool fail_one(void *state, size_t size_bytes)
{
    (void)state;
    (void)size_bytes;
    return fail_at == 0 || --fail_at > 0;
}

static void assert_not_created(const struct model *model, const struct device_cuda_config *config, enum status status,
                               const char *word)
{
    struct device *device = NULL;
    struct error err = {""};
    enum status got = device_cuda_create(model, config, NULL, NULL, &device, &err);
    if (got != status || !strstr(err.message, word)) fail_msg("%s: %s", status_name(got), err.message);
    print_message("%s: %s\n", status_name(got), err.message);
}

static void test_device_cuda_create_fails_cleanly(void **state)
{
    (void)state;
    static struct tiny_model tiny;
    struct device *device = NULL;
    struct error err;
    size_t free_bytes, total_bytes;
    struct device_cuda_config config = beside_others(&base_config);
    tiny_make(&tiny, &base_spec, TENSOR_Q4_1, false, true);
    uint64_t k = 0;
    enum status status;
    assert_int_equal(cudaMemGetInfo(&free_bytes, &total_bytes), cudaSuccess);
    do {
        fail_at = ++k;
        mem_hook_set(fail_one, NULL);
        status = device_cuda_create(&tiny.model, &config, NULL, NULL, &device, &err);
        mem_hook_set(NULL, NULL);
        if (status != ST_OK) assert_int_equal(status, ST_NOMEM);
    } while (status != ST_OK && k < 100);
    assert_true(k > 5 && k < 100);
    device_destroy(device);
    config.memory_utilization = 0.0005;
    assert_not_created(&tiny.model, &config, ST_NOMEM, "--max-model-len");
    config = beside_others(&base_config);
    config.tokens_max = config.rows_max = 1 << 21;
    assert_not_created(&tiny.model, &config, ST_NOMEM, "--max-num-batched-tokens");
    config = base_config;
    config.ranks = 5;
    assert_not_created(&tiny.model, &config, ST_NOTFOUND, "there are");
    config = base_config;
    config.ranks = 3;
    config.stages = 2;
    assert_not_created(&tiny.model, &config, ST_INVAL, "3 GPUs do not divide into 2 stages");
    config.stages = 3;
    assert_not_created(&tiny.model, &config, ST_INVAL, "1-2 do");
    const struct device_share share = {.ranks_all = 4};
    config = base_config;
    config.deterministic = true;
    config.share = &share;
    config.stages = 2; /* the first of which needs two GPUs */
    assert_not_created(&tiny.model, &config, ST_INVAL, "--deterministic");
    config = base_config;
    config.tokens_max = 0;
    assert_not_created(&tiny.model, &config, ST_INVAL, "tokens_max");
    tiny.layers[1].up.rows = 95;
    assert_not_created(&tiny.model, &base_config, ST_INVAL, "up");
    tiny.layers[1].up.rows = 96;
    tiny.model.spec.head_size = tiny.model.spec.rope_size = 40;
    assert_not_created(&tiny.model, &base_config, ST_INVAL, "heads of 40");
    tiny.model.spec.head_size = tiny.model.spec.rope_size = 64;
    atomic_store(&fake_nvml_recovery, 1);
    assert_not_created(&tiny.model, &base_config, ST_DEVICE, "reset");
    atomic_store(&fake_nvml_recovery, 0);
    size_t left_bytes;
    assert_int_equal(cudaMemGetInfo(&left_bytes, &total_bytes), cudaSuccess);
    assert_int_equal(left_bytes, free_bytes);
    tiny_free(&tiny);
}

/* Waits for the watch to see what was planted: it looks every 2 ms. */
static enum status step_until_lost(struct device_run *f)
{
    enum status status = ST_OK;
    for (int i = 0; i < 2000 && status == ST_OK; i++) {
        batch_clear(f->batch);
        run_add(f, 2, 0, 1);
        status = device_step(f->device, f->batch, f->result);
    }
    return status;
}

static void test_device_cuda_ends_with_a_gpu_that_reports_an_error(void **state)
{
    (void)state;
    static struct tiny_model tiny;
    static struct device_run f;
    tiny_make(&tiny, &base_spec, TENSOR_Q8_0, false, false);
    for (int i = 0; i < 3; i++) {
        fixture_cuda(&f, &tiny, &base_config);
        if (i == 0) {
            atomic_store(&fake_nvml_xid, 13); /* a step's own: its CUDA error, if any, says more */
            while (atomic_load(&fake_nvml_xid)) (void)nanosleep(&(struct timespec){0, 1000000}, NULL);
            batch_clear(f.batch);
            run_add(&f, 2, 0, 1);
            run_step(&f);
        }
        assert_false(device_is_lost(f.device));
        if (i == 2) {
            atomic_store(&fake_nvml_result, NVML_GPU_LOST);
        } else {
            atomic_store(&fake_nvml_xid, i ? 1 : 79); /* ECC; fallen off the bus */
        }
        if (i == 0) assert_int_equal(step_until_lost(&f), ST_DEVICE);
        for (int ms = 0; ms < 30000 && !device_is_lost(f.device); ms++) /* without any step */
            (void)nanosleep(&(struct timespec){0, 1000000}, NULL);
        assert_true(device_is_lost(f.device));
        assert_int_equal(device_launch(f.device, f.batch), ST_DEVICE);
        assert_int_equal(device_collect(f.device, f.result), ST_DEVICE);
        atomic_store(&fake_nvml_result, 0);
        run_end(&f);
    }
    tiny_free(&tiny);
}

/* ---- planted faults ---- */

static void assert_lost(struct device_run *f, const char *what)
{
    batch_clear(f->batch);
    run_add(f, 1, 0, 9);
    enum status status = device_step(f->device, f->batch, f->result);
    if (status != ST_DEVICE) fail_msg("%s: %s", what, status_name(status));
    assert_int_equal(device_launch(f->device, f->batch), ST_DEVICE);
    assert_int_equal(device_collect(f->device, f->result), ST_DEVICE);
}

/* A device that has run a step, so that it knows how long one takes. */
static void begin_faulty(struct device_run *f, const struct tiny_model *tiny, uint32_t ranks, uint32_t stages)
{
    struct device_cuda_config config = base_config;
    config.ranks = ranks;
    config.stages = stages;
    config.step_deadline_ns = 1;
    fixture_cuda(f, tiny, &config);
    batch_clear(f->batch);
    run_add(f, 1, 0, 9);
    run_step(f);
}

static void end_faulty(struct device_run *f)
{
    run_end(f);
    faults_clear();
}

/* A sticky error stays with a GPU until its process ends, or here until it is reset: the device's threads have ended.
 */
static void end_broken(struct device_run *f)
{
    assert_true(faults_struck() > 0);
    end_faulty(f);
    for (int gpu = 3; gpu >= 0; gpu--) {
        (void)cudaSetDevice(gpu); /* gives the sticky error */
        assert_int_equal(cudaDeviceReset(), cudaSuccess);
    }
}

static void test_device_cuda_is_lost_by_a_sticky_error(void **state)
{
    (void)state;
    static struct tiny_model tiny;
    static struct device_run f;
    const int errors[] = {214, 700, 719};
    tiny_make(&tiny, &base_spec, TENSOR_Q8_0, false, false);
    for (uint64_t i = 0; i < 3; i++) {
        begin_faulty(&f, &tiny, 1 + (uint32_t)(i == 2), 1);
        fault_sticky(errors[i], 1 + 7 * i);
        assert_lost(&f, "sticky error");
        end_broken(&f);
    }
    begin_faulty(&f, &tiny, 1, 1);
    fault_launch(701, 5); /* refused: our bug, and the step cannot be finished */
    assert_lost(&f, "refused launch");
    end_broken(&f);
    tiny_free(&tiny);
}

static void test_device_cuda_is_lost_by_a_step_that_hangs(void **state)
{
    (void)state;
    static struct tiny_model tiny;
    static struct device_run f;
    tiny_make(&tiny, &base_spec, TENSOR_Q8_0, false, false);
    for (uint64_t k = 1; k < 12; k += 10) {
        begin_faulty(&f, &tiny, 1, 1);
        fault_hang_kernel(k);
        assert_lost(&f, "hung kernel");
        end_faulty(&f);
    }
    tiny_free(&tiny);
}

static void test_device_cuda_is_lost_with_a_rank(void **state)
{
    (void)state;
    static struct tiny_model tiny;
    static struct device_run f;
    tiny_make(&tiny, &base_spec, TENSOR_Q8_0, false, false);
    for (int fault = 0; fault < 6; fault++) { /* the last two are of a pass between stages */
        begin_faulty(&f, &tiny, 2, 1 + (uint32_t)(fault >= 4));
        if (fault == 4) fault_hang_collective(2);
        if (fault == 5) fault_nccl_async(6, 3);
        if (fault == 0) fault_hang_collective(3);
        if (fault == 1) fault_nccl_call(2, 2);
        if (fault == 2) fault_nccl_async(6, 2);
        if (fault == 3) fault_rank_absent(1);
        assert_lost(&f, "rank");
        end_faulty(&f);
    }
    struct device_cuda_config config = base_config; /* with no deadline in sight: NCCL alone knows */
    config.ranks = config.stages = 2;
    fixture_cuda(&f, &tiny, &config);
    fault_nccl_async(6, 8); /* a step's last */
    assert_lost(&f, "a stage");
    end_faulty(&f);
    tiny_free(&tiny);
}

static void test_device_cuda_create_survives_every_failed_allocation(void **state)
{
    (void)state;
    static struct tiny_model tiny;
    struct device_cuda_config config = beside_others(&base_config);
    struct device *device = NULL;
    struct error err;
    size_t free_bytes, left_bytes, total_bytes;
    uint64_t k = 0;
    enum status status;
    config.graphs = true;
    tiny_make(&tiny, &base_spec, TENSOR_Q8_0, false, false);
    assert_int_equal(cudaMemGetInfo(&free_bytes, &total_bytes), cudaSuccess);
    do {
        fault_allocation(++k, 0);
        status = device_cuda_create(&tiny.model, &config, NULL, NULL, &device, &err);
        faults_clear();
        if (status == ST_OK) break;
        if (status != ST_NOMEM) fail_msg("allocation %u: %s", (unsigned)k, err.message);
        assert_int_equal(cudaMemGetInfo(&left_bytes, &total_bytes), cudaSuccess);
        assert_int_equal(left_bytes, free_bytes);
    } while (k < 100);
    assert_true(k > 10 && k < 100);
    device_destroy(device);
    tiny_free(&tiny);
}

static void test_device_cuda_says_why_there_is_no_gpu(void **state)
{
    (void)state;
    static struct tiny_model tiny;
    struct error err = {""};
    uint32_t gpus = 0;
    tiny_make(&tiny, &base_spec, TENSOR_Q8_0, false, false);
    assert_int_equal(device_cuda_probe(&gpus, &err), ST_OK);
    assert_int_equal(gpus, 4);
    fault_no_device(35);
    assert_not_created(&tiny.model, &base_config, ST_NOTFOUND, "driver");
    assert_int_equal(device_cuda_probe(&gpus, &err), ST_NOTFOUND);
    fault_no_device(100);
    assert_not_created(&tiny.model, &base_config, ST_NOTFOUND, "no GPU");
    fault_no_device(802);
    assert_not_created(&tiny.model, &base_config, ST_NOTFOUND, "802");
    faults_clear();
    tiny_free(&tiny);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_device_cuda_computes_every_kind_of_model),
        cmocka_unit_test(test_device_cuda_computes_windows_norms_and_scales),
        cmocka_unit_test(test_device_cuda_computes_experts),
        cmocka_unit_test(test_device_cuda_takes_other_dtypes),
        cmocka_unit_test(test_device_cuda_gives_the_same_bits_in_any_batch),
        cmocka_unit_test(test_device_cuda_reads_a_prefix_from_shared_blocks),
        cmocka_unit_test(test_device_cuda_runs_ahead_without_a_trace),
        cmocka_unit_test(test_device_cuda_flags_rows_that_are_not_finite),
        cmocka_unit_test(test_device_cuda_step_allocates_nothing),
        cmocka_unit_test(test_device_cuda_refuses_what_breaks_the_contract),
        cmocka_unit_test(test_device_cuda_divides_a_model_over_gpus),
        cmocka_unit_test(test_device_cuda_divides_experts_over_gpus),
        cmocka_unit_test(test_device_cuda_gpus_run_ahead_without_a_trace),
        cmocka_unit_test(test_device_cuda_divides_layers_into_stages),
        cmocka_unit_test(test_device_cuda_create_fails_cleanly),
        cmocka_unit_test(test_device_cuda_create_survives_every_failed_allocation),
        cmocka_unit_test(test_device_cuda_says_why_there_is_no_gpu),
        cmocka_unit_test(test_device_cuda_ends_with_a_gpu_that_reports_an_error),
        cmocka_unit_test(test_device_cuda_is_lost_by_a_sticky_error),
        cmocka_unit_test(test_device_cuda_is_lost_by_a_step_that_hangs),
        cmocka_unit_test(test_device_cuda_is_lost_with_a_rank),
    };
    setenv("CUSIM_DEVICES", "4", 1);
    if (getenv("MILLRACE_TEST_FILTER")) cmocka_set_test_filter(getenv("MILLRACE_TEST_FILTER"));
    return cmocka_run_group_tests(tests, NULL, NULL);
}
