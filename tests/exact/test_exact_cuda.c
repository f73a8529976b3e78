/* The real model through the whole CUDA device under the emulator: continuous batching of several prompts, prefill in
 * chunks beside decodes, decodes by graphs, one step ahead. Each greedy token must be the one that the CPU device
 * chooses in exact numerics, on the same weights: for dtypes other than the file's, rounded alike.
 *
 *   test_exact_cuda DTYPE RANKS [PROMPTS TOKENS]      DTYPE: auto, bf16, fp8
 *
 * A token that differs is printed with the margin (of log-probabilities) by which the CPU preferred its own; where that
 * is more than rounding explains (twice what it did where both agree), or less than four prompts of five agree, the
 * test fails. */
#include "kernels/dequantize.h"
#include "runtime/base/clock.h"
#include "runtime/base/mem.h"
#include "runtime/device/device_cuda.h"
#include "runtime/text/tokenizer.h"
#include "tests/exact/real_model.h"
#include "tests/unit/cuda/fake_libraries.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* BF16 between kernels moves log-probabilities of this model by up to 0.1; a row's logits span about 30. */
#define WORST 0.25f
enum { PROMPTS_MAX = 11, PROMPT_TOKENS_MAX = 64, TOKENS_MAX = 64, CONTEXT = 256, STEP_TOKENS = 32, BLOCKS = 16 };

/* The last three meet near ties, which BF16 decides by chance: longer runs alone take them. */
static const char *const texts[PROMPTS_MAX] = {
    "The capital of France is",
    "Water boils at a temperature of",
    "def fibonacci(n):\n    if n < 2:\n        return",
    "Once upon a time, in a small village by the sea, there lived",
    "1, 2, 3, 4, 5,",
    "The opposite of hot is",
    "In 1969, the first humans walked on",
    "Monday, Tuesday, Wednesday,",
    "The three primary colours are red,",
    "To make a cup of tea, first",
    "SELECT name FROM users WHERE",
};

struct prompt {
    uint32_t ids[PROMPT_TOKENS_MAX + TOKENS_MAX];
    uint32_t length;                /* of the prompt */
    uint32_t wanted[TOKENS_MAX];    /* the CPU's choices, */
    float margins[TOKENS_MAX];      /* by how much the second was less likely, */
    float logprobs[2][TOKENS_MAX];  /* and what the CPU and the device give their choices */
    uint32_t done, launched, given; /* tokens the device has; that it was told; that came back */
    block_id table[BLOCKS];
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

static const struct sampling_params greedy = {.top_p = 1, .repetition_penalty = 1, .logprobs = 2};

static void add(struct batch *b, struct prompt *p, uint32_t from, uint32_t count, bool of_row, uint32_t row)
{
    uint32_t seq = b->seqs_count++, end = from + count;
    b->q_start[seq] = b->tokens_count;
    b->kv_len[seq] = end;
    b->block_table[seq] = p->table;
    for (uint32_t i = from; i < end; i++) {
        uint32_t n = b->tokens_count++;
        b->tokens[n] = of_row ? TOKEN_OF_ROW | row : p->ids[i];
        b->positions[n] = i;
        b->seq_of_token[n] = seq;
    }
    b->q_start[b->seqs_count] = b->tokens_count;
    if (end < p->length) return;
    b->rows[b->rows_count++] = (struct batch_row){.token = b->tokens_count - 1,
                                                  .params = &greedy,
                                                  .seed = 1,
                                                  .position = end,
                                                  .seen = p->ids,
                                                  .seen_prompt = p->length,
                                                  .seen_count = of_row ? end - 1 : end,
                                                  .pending = of_row};
}

/* Which prompt each row of a step belongs to. */
struct rows {
    uint32_t prompt[PROMPTS_MAX], count;
};

/* The next step: every sequence that is under way decodes, and what room is left goes to prompts. */
static bool plan(struct batch *b, const struct rows *before, struct rows *now)
{
    b->tokens_count = b->seqs_count = b->rows_count = now->count = 0;
    b->q_start[0] = 0;
    for (uint32_t i = 0; i < prompts_count; i++) {
        struct prompt *p = &prompts[i];
        uint32_t row = UINT32_MAX, room = STEP_TOKENS - b->tokens_count;
        for (uint32_t r = 0; r < before->count; r++) {
            if (before->prompt[r] == i) row = r;
        }
        uint32_t count = p->done < p->length ? p->length - p->done : 1;
        if (count > room) count = room;
        if (p->done < p->length && count > 11) count = 11; /* chunks */
        if (p->launched == tokens_count || count == 0) continue;
        bool of_row = p->done >= p->length && p->given < p->launched;
        add(b, p, p->done, count, of_row, row);
        p->done += count;
        if (p->done < p->length) continue;
        p->launched++;
        now->prompt[now->count++] = i;
    }
    return b->tokens_count > 0;
}

static void take(const struct rows *rows, const struct batch_result *result)
{
    for (uint32_t r = 0; r < rows->count; r++) {
        struct prompt *p = &prompts[rows->prompt[r]];
        p->logprobs[1][p->given] = result->rows[r].logprob;
        p->ids[p->length + p->given++] = result->rows[r].id;
        if (result->rows[r].flags) require(false, "a row has flags", NULL);
    }
}

static uint32_t run_on_cuda(struct device *device)
{
    struct batch *batch;
    struct batch_result *result;
    struct rows rows[3] = {{{0}, 0}};
    uint32_t launched = 0, collected = 0;
    require(batch_create(STEP_TOKENS, PROMPTS_MAX, STEP_TOKENS, &batch) == ST_OK, "batch", NULL);
    require(batch_result_create(STEP_TOKENS, &result) == ST_OK, "result", NULL);
    for (;;) {
        struct rows none = {{0}, 0}, *now = &rows[launched % 3];
        const struct rows *before = launched > collected ? &rows[(launched + 2) % 3] : &none;
        bool more = plan(batch, before, now);
        if (more) {
            require(device_launch(device, batch) == ST_OK, "launch", NULL);
            launched++;
        }
        if (launched == collected) break;
        if (launched - collected < 2 && more) continue;
        require(device_collect(device, result) == ST_OK, "collect", NULL);
        take(&rows[collected++ % 3], result);
    }
    batch_destroy(batch);
    batch_result_destroy(result);
    return launched;
}

/* The largest difference of a log-probability where both chose the same in the same context. */
static float worst_difference(void)
{
    float worst = 0;
    for (uint32_t i = 0; i < prompts_count; i++) {
        const struct prompt *p = &prompts[i];
        for (uint32_t t = 0; t < tokens_count && p->ids[p->length + t] == p->wanted[t]; t++)
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
            if (p->ids[p->length + t] == p->wanted[t]) continue;
            printf("prompt %u, token %u: %u, the CPU chose %u by a margin of %.4f\n", i, t, p->ids[p->length + t],
                   p->wanted[t], (double)p->margins[t]);
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
    if (argc < 3) return 2;
    if (argc > 4) {
        prompts_count = (uint32_t)strtoul(argv[3], NULL, 10);
        tokens_count = (uint32_t)strtoul(argv[4], NULL, 10);
    }
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
        for (uint32_t b = 0; b < BLOCKS; b++) prompts[i].table[b] = (b * PROMPTS_MAX + i) * 7 % (PROMPTS_MAX * BLOCKS);
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
    uint32_t steps = run_on_cuda(device);
    uint64_t end_ns = clock_now_ns(clock_system());
    printf("%s, %s: CPU %.1f s, loading %.1f s, %u steps %.1f s\n", device->info.name, argv[1],
           (double)(chosen_ns - begin_ns) * 1e-9, (double)(created_ns - chosen_ns) * 1e-9, steps,
           (double)(end_ns - created_ns) * 1e-9);
    uint32_t equal, mistakes = compare(&equal);
    if (equal < prompts_count * 4 / 5) mistakes++;
    device_destroy(device);
    model_close(model);
    tokenizer_destroy(tokenizer);
    real_model_close(&cpu);
    return mistakes ? 1 : 0;
}
