/* The CUDA device under the emulator behind the real engine: continuous batching, graphs and one step ahead, with a
 * pool of KV blocks so small that sequences are preempted and computed again, prompts that share blocks, and several
 * choices a request. In deterministic mode each id and log-probability has the bits that it has with room for all. */
#include "tests/unit/unit.h"

#include "runtime/device/device_cuda.h"
#include "tests/emulator/counters.h"
#include "tests/support/engine_run.h"
#include "tests/unit/cuda/fake_libraries.h"
#include "tests/unit/runtime/tiny_model.h"

#include <stdlib.h>

enum {
    V = 597,
    CONTEXT = 96,
    RUNNING = 8,
    STEP_TOKENS = 48,
    JOBS = 8,
    PREFIXES = 2,
    PREFIX_TOKENS = 16,
    TAIL_MAX = 12,
    NEW_MAX = 60,
    LARGE_POOL = 160
};

static const struct model_spec base_spec = {
    TINY_SPEC,      .heads = 4, .head_size = 64,       .rope_size = 64, .attention_scale = 0.125f,
    .ff_width = 96, .vocab = V, .context_max = CONTEXT};

static struct device *device_make(const struct tiny_model *tiny, uint32_t ranks, uint32_t stages, bool kv_fp8)
{
    struct device_cuda_config config = {.ranks = ranks,
                                        .stages = stages,
                                        .kv_fp8 = kv_fp8,
                                        .memory_utilization = 0.06,
                                        .spare_bytes = 1 << 20,
                                        .graphs = true,
                                        .deterministic = true,
                                        .step_deadline_ns = 600 * NS_PER_S,
                                        .tokens_max = STEP_TOKENS,
                                        .seqs_max = RUNNING,
                                        .rows_max = STEP_TOKENS,
                                        .context_max = CONTEXT,
                                        .libraries = &fake_libraries};
    struct device *device = NULL;
    struct error err = {""};
    if (device_cuda_create(&tiny->model, &config, NULL, NULL, &device, &err) != ST_OK) fail_msg("%s", err.message);
    assert_true(device->info.kv_blocks >= LARGE_POOL);
    return device;
}

static struct tokenizer *tokenizer_make(void)
{
    static struct vocab_string tokens[2] = {{.text = "a", .length = 1}, {.text = "b", .length = 1}};
    static uint8_t kinds[2] = {VOCAB_NORMAL, VOCAB_NORMAL};
    struct vocab vocab = {.model = "gpt2",
                          .pre = "gpt-2",
                          .count = 2,
                          .tokens = tokens,
                          .kinds = kinds,
                          .bos_id = VOCAB_NO_ID,
                          .eos_id = VOCAB_NO_ID,
                          .unknown_id = VOCAB_NO_ID,
                          .padding_id = VOCAB_NO_ID};
    struct tokenizer *tokenizer = NULL;
    struct error err = {""};
    if (tokenizer_create(&vocab, &tokenizer, &err) != ST_OK) fail_msg("%s", err.message);
    return tokenizer;
}

/* Most begin with one of two prefixes of a block, whole or cut, and all end differently. */
static void jobs_make(struct engine_job jobs[JOBS])
{
    uint64_t seed = 20261123;
    uint32_t prefixes[PREFIXES][PREFIX_TOKENS], prompt[PREFIX_TOKENS + TAIL_MAX];
    for (uint32_t p = 0; p < PREFIXES; p++)
        for (uint32_t i = 0; i < PREFIX_TOKENS; i++) prefixes[p][i] = (uint32_t)(random_next(&seed) % V);
    for (uint32_t j = 0; j < JOBS; j++) {
        uint32_t shared = j % 5 == 4 ? 0 : j % 4 == 3 ? 9 : PREFIX_TOKENS, tail = 1 + (5 * j + 3) % TAIL_MAX;
        memcpy(prompt, prefixes[j % PREFIXES], shared * sizeof *prompt);
        for (uint32_t i = 0; i < tail; i++) prompt[shared + i] = (uint32_t)(random_next(&seed) % V);
        uint32_t choices = j == 2 ? 3 : j == 7 ? 2 : 1;
        engine_job_make(&jobs[j], j + 1, prompt, shared + tail, NEW_MAX - j % 4, choices);
        struct sampling_params *params = &jobs[j].request.params;
        params->logprobs = j % 3 ? 20 : 3;
        if (j % 2 == 0) params->temperature = 0.9f, params->top_p = 0.95f;
        if (j % 3 == 1) params->repetition_penalty = 1.3f, params->presence_penalty = 0.4f;
    }
}

static void run_jobs(struct device *device, const struct tokenizer *tokenizer, uint32_t pool, bool cache,
                     struct engine_job jobs[JOBS], struct engine_stats *stats)
{
    struct engine_config config = {.context_max = CONTEXT,
                                   .running_max = RUNNING,
                                   .step_tokens_max = STEP_TOKENS,
                                   .queue_requests_max = JOBS,
                                   .queue_tokens_max = 100000,
                                   .tenants_max = 1,
                                   .tenant_share_percent = 100,
                                   .prefix_cache = cache,
                                   .think_start_id = VOCAB_NO_ID,
                                   .think_end_id = VOCAB_NO_ID};
    struct error err = {""};
    jobs_make(jobs);
    device->info.kv_blocks = pool; /* of those that it has */
    if (engine_jobs_run(&config, device, tokenizer, jobs, JOBS, stats, &err) != ST_OK) fail_msg("%s", err.message);
    for (uint32_t j = 0; j < JOBS; j++) assert_int_equal(jobs[j].status, ST_OK);
}

static void assert_same(const struct engine_job *got, const struct engine_job *wanted)
{
    const struct request *request = &wanted->request;
    for (uint32_t c = 0; c < request->choices_count; c++) {
        const struct choice *a = &got->choices[c], *b = &wanted->choices[c];
        assert_int_equal(b->output_count, request->max_tokens);
        assert_int_equal(a->output_count, b->output_count);
        for (uint32_t i = 0; i < a->output_count; i++) {
            const struct token_logprobs *x = &a->logprobs[i], *y = &b->logprobs[i];
            uint32_t id = a->tokens[request->prompt_count + i], other = b->tokens[request->prompt_count + i];
            bool same = id == other && x->rank == y->rank && x->top_count == y->top_count &&
                        !memcmp(&x->logprob, &y->logprob, sizeof x->logprob) &&
                        !memcmp(x->top_ids, y->top_ids, x->top_count * sizeof *x->top_ids) &&
                        !memcmp(x->top_logprobs, y->top_logprobs, x->top_count * sizeof *x->top_logprobs);
            if (!same)
                fail_msg("request %u, choice %u, token %u: %u (%.9g) and %u (%.9g)", (unsigned)request->id, c, i, id,
                         (double)x->logprob, other, (double)y->logprob);
        }
    }
}

/* Prompt tokens of all choices. */
static uint64_t prompt_tokens(const struct engine_job jobs[JOBS])
{
    uint64_t tokens = 0;
    for (uint32_t j = 0; j < JOBS; j++) tokens += jobs[j].request.prompt_count * jobs[j].request.choices_count;
    return tokens;
}

static void check_pressure(const char *what, const struct model_spec *spec, enum tensor_type type, uint32_t ranks,
                           uint32_t stages, bool kv_fp8, uint32_t pool)
{
    static struct tiny_model tiny;
    static struct engine_job alone[JOBS], pressed[JOBS];
    struct engine_stats stats;
    tiny_make(&tiny, spec, type, false, false);
    struct tokenizer *tokenizer = tokenizer_make();
    struct device *device = device_make(&tiny, ranks, stages, kv_fp8);
    run_jobs(device, tokenizer, LARGE_POOL, false, alone, &stats);
    assert_int_equal(stats.preemptions, 0);
    assert_int_equal(stats.prefix_hits_tokens, 0);
    assert_true(stats.computed_prompt_tokens < prompt_tokens(alone)); /* choices took blocks of their request's first */
    uint64_t graphs = counters_graphs();
    run_jobs(device, tokenizer, pool, true, pressed, &stats);
    graphs = counters_graphs() - graphs;
    print_message("%s: %u steps, %u ahead, %u graphs, %u preemptions, %u tokens again, %u of %u prompt tokens cached\n",
                  what, (unsigned)stats.steps, (unsigned)stats.steps_ahead, (unsigned)graphs,
                  (unsigned)stats.preemptions, (unsigned)stats.recomputed_tokens, (unsigned)stats.prefix_hits_tokens,
                  (unsigned)stats.prompt_tokens);
    assert_true(stats.preemptions >= 3 && stats.recomputed_tokens > 0);
    assert_true(stats.prefix_hits_tokens >= KV_BLOCK_TOKENS);
    assert_true(graphs > 0 && stats.steps_ahead > 0);
    for (uint32_t j = 0; j < JOBS; j++) {
        assert_same(&pressed[j], &alone[j]);
        engine_job_free(&pressed[j]);
        engine_job_free(&alone[j]);
    }
    device_destroy(device);
    tokenizer_destroy(tokenizer);
    tiny_free(&tiny);
}

/* Pools in blocks: a sequence has up to 6, eight run at once where there is room. */
static void test_device_cuda_engine_preempts_without_a_trace(void **state)
{
    (void)state;
    struct model_spec spec = tiny_rich(base_spec, 21);
    check_pressure("f32, a window, FP8 KV", &spec, TENSOR_F32, 1, 1, true, 20);
}

static void test_device_cuda_engine_preempts_on_several_gpus(void **state)
{
    (void)state;
    struct model_spec spec = base_spec;
    check_pressure("two GPUs, q4_1", &spec, TENSOR_Q4_1, 2, 1, false, 24);
    spec = tiny_mixture(base_spec);
    spec.experts_used = 2;
    check_pressure("four GPUs, whole experts in two stages", &spec, TENSOR_Q8_0, 4, 2, false, 20);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_device_cuda_engine_preempts_without_a_trace),
        cmocka_unit_test(test_device_cuda_engine_preempts_on_several_gpus),
    };
    setenv("CUSIM_DEVICES", "4", 1);
    if (getenv("MILLRACE_TEST_FILTER")) cmocka_set_test_filter(getenv("MILLRACE_TEST_FILTER"));
    return cmocka_run_group_tests(tests, NULL, NULL);
}
