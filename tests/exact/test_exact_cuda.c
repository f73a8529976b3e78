/* The real model through the real engine and the whole CUDA device under the emulator: continuous batching of several
 * prompts, prefill in chunks beside decodes, decodes by graphs, one step ahead, a prefix from the cache and, with few
 * BLOCKS of KV, preemption; that each of these happened is part of the test. Each greedy token must be the one that the
 * CPU device chooses in exact numerics, on the same weights: for dtypes other than the file's, rounded alike.
 *
 *   test_exact_cuda DTYPE RANKS [PROMPTS TOKENS [BLOCKS]]      DTYPE: auto, bf16, fp8
 *
 * A token that differs is printed with the margin (of log-probabilities) by which the CPU preferred its own; where that
 * is more than rounding explains (twice what it did where both agree), or less than four prompts of five agree, the
 * test fails. */
#include "kernels/dequantize.h"
#include "runtime/base/clock.h"
#include "runtime/base/mem.h"
#include "runtime/device/device_cuda.h"
#include "runtime/text/tokenizer.h"
#include "tests/emulator/counters.h"
#include "tests/exact/real_model.h"
#include "tests/support/engine_run.h"
#include "tests/unit/cuda/fake_libraries.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* BF16 between kernels moves log-probabilities of this model by up to 0.1; a row's logits span about 30. */
#define WORST 0.25f
enum { PROMPTS_MAX = 11, PROMPT_TOKENS_MAX = 64, TOKENS_MAX = 64, CONTEXT = 256, STEP_TOKENS = 32 };

/* The eighth begins with the first, whose block it finds in the cache. The last three meet near ties, which BF16
 * decides by chance: longer runs alone take them. */
static const char *const texts[PROMPTS_MAX] = {
    "Once upon a time, in a small village by the sea, there lived a",
    "def fibonacci(n):\n    if n < 2:\n        return",
    "The capital of France is",
    "Water boils at a temperature of",
    "1, 2, 3, 4, 5,",
    "The opposite of hot is",
    "In 1969, the first humans walked on",
    "Once upon a time, in a small village by the sea, there lived a young",
    "The three primary colours are red,",
    "To make a cup of tea, first",
    "SELECT name FROM users WHERE",
};

struct prompt {
    uint32_t ids[PROMPT_TOKENS_MAX], length;
    uint32_t wanted[TOKENS_MAX], given[TOKENS_MAX]; /* the CPU's choices, and the device's */
    float margins[TOKENS_MAX];                      /* by how much the CPU's second was less likely */
    float logprobs[2][TOKENS_MAX];                  /* what the CPU and the device give their choices */
};

static struct prompt prompts[PROMPTS_MAX];
static uint32_t prompts_count = 8, tokens_count = 8;

static void require(bool condition, const char *what, const struct error *err)
{
    if (condition) return;
    fprintf(stderr, "%s: %s\n", what, err ? err->message : "failed");
    exit(1);
}

/* ---- weights as --dtype rounds them ---- */

enum { VIEWS_MAX = 512, COLS_MAX = 8192 };

/* Rows of a matrix in F32, each value rounded. */
struct rounding {
    struct tensor_recipe recipe; /* first */
    struct tensor_view source;
    bool fp8;
};

static struct rounding roundings[VIEWS_MAX];
static uint32_t roundings_count;
static bool round_to_fp8;

static float to_bf16(float value)
{
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    bits = (bits + 0x7fff + (bits >> 16 & 1)) & 0xffff0000u;
    memcpy(&value, &bits, sizeof bits);
    return value;
}

/* The nearest E4M3 number: 3 bits of mantissa, exponents from -6, at most 448. */
static float to_e4m3(float value)
{
    int exponent;
    float size = fabsf(value) > 448 ? 448 : fabsf(value);
    (void)frexpf(size, &exponent);
    float step = ldexpf(1, (exponent < -5 ? -5 : exponent) - 4);
    return copysignf(rintf(size / step) * step, value);
}

/* As repack.cu does it: a scale for 128 inputs of a row, their highest magnitude / 448. */
static void round_row(float *row, uint32_t cols, bool fp8)
{
    for (uint32_t k = 0; !fp8 && k < cols; k++) row[k] = to_bf16(row[k]);
    for (uint32_t begin = 0; fp8 && begin < cols; begin += 128) {
        uint32_t end = cols - begin < 128 ? cols : begin + 128;
        float highest = 0;
        for (uint32_t k = begin; k < end; k++) highest = fmaxf(highest, fabsf(row[k]));
        float scale = highest / 448, inverse = scale > 0 ? 1 / scale : 0;
        for (uint32_t k = begin; k < end; k++) row[k] = to_e4m3(row[k] * inverse) * scale;
    }
}

static void make_rounded(const struct tensor_recipe *recipe, struct tensor_area area, void *rows)
{
    const struct rounding *own = (const struct rounding *)(const void *)recipe;
    uint32_t cols = own->source.cols, width = area.col_end - area.col_begin;
    size_t row_bytes = tensor_row_bytes(tensor_type_info(own->source.type), cols);
    float row[COLS_MAX];
    for (uint32_t r = area.row_begin; r < area.row_end; r++) {
        dequantize_row(own->source.type, (const uint8_t *)own->source.data + r * row_bytes, row, cols);
        round_row(row, cols, own->fp8);
        memcpy((float *)rows + (size_t)(r - area.row_begin) * width, row + area.col_begin, width * sizeof(float));
    }
}

static void round_view(struct tensor_view *view, bool fp8)
{
    require(roundings_count < VIEWS_MAX && view->cols <= COLS_MAX && !view->recipe, "a model for this test", NULL);
    struct rounding *own = &roundings[roundings_count++];
    *own = (struct rounding){{make_rounded}, *view, fp8};
    view->type = TENSOR_F32;
    view->recipe = &own->recipe;
}

/* As the device does with --dtype: FP8 leaves embedding and head as they are. */
static void round_model(struct model *model)
{
    if (!round_to_fp8) {
        round_view(&model->weights.embed, false);
        require(model->spec.tied_head, "a tied head", NULL);
        model->weights.head = model->weights.embed;
    }
    for (uint32_t l = 0; l < model->spec.layers; l++) {
        struct layer_weights *w = &model->weights.layers[l];
        struct tensor_view *views[] = {&w->q, &w->k, &w->v, &w->o, &w->gate, &w->up, &w->down};
        for (uint32_t i = 0; i < 7; i++) round_view(views[i], round_to_fp8);
    }
}

/* ---- what the CPU chooses ---- */

static void choose_on_cpu(struct real_model *real, struct prompt *p)
{
    static const struct sampling_params params = {.top_p = 1, .repetition_penalty = 1, .logprobs = 2};
    uint32_t position = p->length;
    real_model_run(real, p->ids, p->length, 0, p->length - 1, 1, &params);
    for (uint32_t i = 0; i < tokens_count; i++) {
        const struct row_result *row = &real->result->rows[0];
        p->wanted[i] = row->id;
        p->margins[i] = row->top_logprobs[0] - row->top_logprobs[1];
        p->logprobs[0][i] = row->logprob;
        if (i + 1 < tokens_count) real_model_run(real, &p->wanted[i], 1, position++, 0, 1, &params);
    }
}

/* ---- what the CUDA device chooses ---- */

/* All prompts at once through the engine. blocks: of KV, 0 for all that the device has. */
static void run_on_cuda(struct device *device, const struct tokenizer *tokenizer, uint32_t blocks,
                        struct engine_stats *stats)
{
    static struct engine_job jobs[PROMPTS_MAX];
    struct error err = {""};
    struct engine_config config = {.context_max = CONTEXT,
                                   .running_max = PROMPTS_MAX,
                                   .step_tokens_max = STEP_TOKENS,
                                   .queue_requests_max = PROMPTS_MAX,
                                   .queue_tokens_max = PROMPTS_MAX * CONTEXT,
                                   .tenants_max = 1,
                                   .tenant_share_percent = 100,
                                   .prefix_cache = true,
                                   .think_start_id = VOCAB_NO_ID,
                                   .think_end_id = VOCAB_NO_ID};
    if (blocks) device->info.kv_blocks = blocks;
    for (uint32_t i = 0; i < prompts_count; i++)
        engine_job_make(&jobs[i], i + 1, prompts[i].ids, prompts[i].length, tokens_count, 1);
    require(engine_jobs_run(&config, device, tokenizer, jobs, prompts_count, stats, &err) == ST_OK, "engine", &err);
    for (uint32_t i = 0; i < prompts_count; i++) {
        const struct choice *choice = &jobs[i].choices[0];
        require(jobs[i].status == ST_OK && choice->output_count == tokens_count, "a request", NULL);
        memcpy(prompts[i].given, choice->tokens + prompts[i].length, tokens_count * sizeof(uint32_t));
        for (uint32_t t = 0; t < tokens_count; t++) prompts[i].logprobs[1][t] = choice->logprobs[t].logprob;
        engine_job_free(&jobs[i]);
    }
}

/* What the run was to meet on its way. */
static bool has_met_all(const struct engine_stats *stats, uint64_t graphs, uint32_t blocks)
{
    printf("%u steps, %u one ahead, %u graphs replayed; %u prompt tokens of %u from the prefix cache; %u preemptions, "
           "%u tokens computed again\n",
           (unsigned)stats->steps, (unsigned)stats->steps_ahead, (unsigned)graphs, (unsigned)stats->prefix_hits_tokens,
           (unsigned)stats->prompt_tokens, (unsigned)stats->preemptions, (unsigned)stats->recomputed_tokens);
    bool batched = prompts_count == 1 || stats->steps < (uint64_t)prompts_count * tokens_count;
    bool cached = prompts_count < 8 || blocks || stats->prefix_hits_tokens > 0; /* few blocks: it may be gone */
    bool preempted = !blocks || (stats->preemptions > 0 && stats->recomputed_tokens > 0);
    if (!batched) printf("no step had several sequences\n");
    if (!cached) printf("the last prompt begins as the first, and nothing was taken from the prefix cache\n");
    if (!preempted) printf("%u blocks were enough for all\n", blocks);
    if (!graphs) printf("no graph was replayed\n");
    if (!stats->steps_ahead) printf("no step was launched ahead\n");
    return batched && cached && preempted && graphs && stats->steps_ahead;
}

/* The largest difference of a log-probability where both chose the same in the same context. */
static float worst_difference(void)
{
    float worst = 0;
    for (uint32_t i = 0; i < prompts_count; i++) {
        const struct prompt *p = &prompts[i];
        for (uint32_t t = 0; t < tokens_count && p->given[t] == p->wanted[t]; t++)
            worst = fmaxf(worst, fabsf(p->logprobs[0][t] - p->logprobs[1][t]));
    }
    return worst;
}

/* How many prompts have a token that the CPU did not choose, though its own was ahead by more than rounding can move
 * two logits; *equal: how many agree in all tokens. */
static uint32_t compare(uint32_t *equal)
{
    uint32_t mistakes = 0;
    float worst = worst_difference();
    *equal = prompts_count;
    for (uint32_t i = 0; i < prompts_count; i++) {
        const struct prompt *p = &prompts[i];
        for (uint32_t t = 0; t < tokens_count; t++) {
            if (p->given[t] == p->wanted[t]) continue;
            printf("prompt %u, token %u: %u, the CPU chose %u by a margin of %.4f\n", i, t, p->given[t], p->wanted[t],
                   (double)p->margins[t]);
            mistakes += p->margins[t] > 2 * worst;
            --*equal;
            break; /* what follows has another context */
        }
    }
    printf("%u of %u prompts agree in all %u tokens; log-probabilities differ by at most %.4f\n", *equal, prompts_count,
           tokens_count, (double)worst);
    if (worst > WORST) mistakes++;
    return mistakes;
}

int main(int argc, char **argv)
{
    struct error err = {""};
    struct real_model cpu;
    struct model *model;
    struct tokenizer *tokenizer;
    struct device *device;
    struct engine_stats stats;
    if (argc < 3) return 2;
    if (argc > 4) {
        prompts_count = (uint32_t)strtoul(argv[3], NULL, 10);
        tokens_count = (uint32_t)strtoul(argv[4], NULL, 10);
    }
    uint32_t blocks = argc > 5 ? (uint32_t)strtoul(argv[5], NULL, 10) : 0;
    require(prompts_count <= PROMPTS_MAX && tokens_count <= TOKENS_MAX, "too many", NULL);
    uint64_t begin_ns = clock_now_ns(clock_system());
    round_to_fp8 = !strcmp(argv[1], "fp8");
    real_model_open_changed(&cpu, real_model_path(), CONTEXT, strcmp(argv[1], "auto") != 0 ? round_model : NULL);
    require(tokenizer_create(&cpu.model->vocab, &tokenizer, &err) == ST_OK, "tokenizer", &err);
    for (uint32_t i = 0; i < prompts_count; i++) {
        struct token_list ids = {0};
        require(tokenizer_encode(tokenizer, texts[i], strlen(texts[i]), NULL, 0, false, &ids) == ST_OK, "encode", NULL);
        require(ids.count > 0 && ids.count <= PROMPT_TOKENS_MAX, "prompt", NULL);
        memcpy(prompts[i].ids, ids.ids, ids.count * sizeof ids.ids[0]);
        prompts[i].length = (uint32_t)ids.count;
        token_list_free(&ids);
        choose_on_cpu(&cpu, &prompts[i]);
    }
    uint64_t chosen_ns = clock_now_ns(clock_system());
    struct device_cuda_config config = {.ranks = (uint32_t)strtoul(argv[2], NULL, 10),
                                        .dtype = !strcmp(argv[1], "bf16")  ? CUDA_DTYPE_BF16
                                                 : !strcmp(argv[1], "fp8") ? CUDA_DTYPE_FP8
                                                                           : CUDA_DTYPE_AUTO,
                                        .memory_utilization = 0.9,
                                        .graphs = true,
                                        .tokens_max = STEP_TOKENS,
                                        .seqs_max = PROMPTS_MAX,
                                        .rows_max = STEP_TOKENS,
                                        .context_max = CONTEXT,
                                        .step_deadline_ns = 600 * NS_PER_S,
                                        .libraries = &fake_libraries};
    require(model_open(real_model_path(), &model, &err) == ST_OK, "model_open", &err);
    require(device_cuda_create(model, &config, NULL, NULL, &device, &err) == ST_OK, "device_cuda_create", &err);
    uint64_t created_ns = clock_now_ns(clock_system());
    uint64_t graphs = counters_graphs();
    run_on_cuda(device, tokenizer, blocks, &stats);
    uint64_t end_ns = clock_now_ns(clock_system());
    printf("%s, %s: CPU %.1f s, loading %.1f s, steps %.1f s\n", device->info.name, argv[1],
           (double)(chosen_ns - begin_ns) * 1e-9, (double)(created_ns - chosen_ns) * 1e-9,
           (double)(end_ns - created_ns) * 1e-9);
    uint32_t equal, mistakes = compare(&equal);
    if (!has_met_all(&stats, counters_graphs() - graphs, blocks)) mistakes++;
    if (equal < prompts_count * 4 / 5) mistakes++;
    device_destroy(device);
    model_close(model);
    tokenizer_destroy(tokenizer);
    real_model_close(&cpu);
    return mistakes ? 1 : 0;
}
