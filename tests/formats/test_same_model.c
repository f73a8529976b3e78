/* A folder of quantised weights against one that holds the same values plainly: every weight the same bits in f32, and
 * so every logit in exact numerics, prefill and decode. In fast numerics, where the types that rows become take
 * activations in different forms, logits lie within 0.4 on average.
 *
 *   test_same_model QUANTISED PLAIN     as quantise_folder.py writes them */
#include "kernels/dequantize.h"
#include "runtime/base/mem.h"
#include "runtime/device/device_cpu_parts.h"
#include "tests/exact/real_model.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Random weights make up to 0.08, and 0.13 to 0.24 with experts, where a token now and then goes to another one; a
 * wrong computation makes several units everywhere. */
#define MEAN_FAST 0.4
enum { TOKENS = 64, PREFILL = 40 };

#define X(name, id, block_items, block_bytes) TENSOR_##name,
static const enum tensor_type types[] = {TENSOR_TYPE_MAP(X)};
#undef X
enum { TYPES = sizeof types / sizeof *types };

struct comparison {
    uint64_t matrices, rows, wrong;
    uint64_t by_type[TYPES]; /* of the quantised folder's matrices */
};

/* One row of a view as f32. */
static void read_row(const struct tensor_view *view, uint32_t row, void *block, float *values)
{
    dequantize_row(view->type, tensor_rows(view, row, row + 1, block), values, view->cols);
}

static void compare_views(struct comparison *c, const struct tensor_view *a, const struct tensor_view *b)
{
    if (!a->data && !b->data) return;
    size_t row_bytes = tensor_row_bytes(tensor_type_info(a->type), a->cols);
    void *block_a = mem_alloc(1, row_bytes), *block_b = mem_alloc(b->cols, 4);
    float *values_a = mem_alloc(a->cols, 4), *values_b = mem_alloc(b->cols, 4);
    if (!block_a || !block_b || !values_a || !values_b || a->rows != b->rows || a->cols != b->cols) {
        fprintf(stderr, "%s: other shapes, or no memory\n", a->name ? a->name : b->name);
        exit(1);
    }
    for (uint32_t row = 0; row < a->rows; row++) {
        read_row(a, row, block_a, values_a);
        read_row(b, row, block_b, values_b);
        for (uint32_t k = 0; k < a->cols; k++) /* -0 and 0 are the same weight */
            if (values_a[k] != values_b[k] && c->wrong++ < 8)
                fprintf(stderr, "%s: row %" PRIu32 ", input %" PRIu32 ": %.9g, wanted %.9g\n", a->name, row, k,
                        (double)values_a[k], (double)values_b[k]);
    }
    c->matrices++;
    c->rows += a->rows;
    for (uint32_t t = 0; t < TYPES; t++) c->by_type[t] += types[t] == a->type;
    mem_free(block_a);
    mem_free(block_b);
    mem_free(values_a);
    mem_free(values_b);
}

static void compare_layers(struct comparison *c, const struct model *a, const struct model *b)
{
    for (uint32_t l = 0; l < a->spec.layers; l++) {
        const struct layer_weights *x = &a->weights.layers[l], *y = &b->weights.layers[l];
        const struct tensor_view *of_a[] = {&x->q, &x->k, &x->v, &x->o, &x->gate, &x->up, &x->down, &x->router};
        const struct tensor_view *of_b[] = {&y->q, &y->k, &y->v, &y->o, &y->gate, &y->up, &y->down, &y->router};
        for (size_t i = 0; i < sizeof of_a / sizeof *of_a; i++) compare_views(c, of_a[i], of_b[i]);
        for (uint32_t e = 0; x->experts && e < a->spec.experts; e++) {
            compare_views(c, &x->experts[e].gate, &y->experts[e].gate);
            compare_views(c, &x->experts[e].up, &y->experts[e].up);
            compare_views(c, &x->experts[e].down, &y->experts[e].down);
        }
    }
}

static bool compare_weights(const char *quantised, const char *plain)
{
    struct comparison c = {0};
    struct model *models[2] = {NULL, NULL};
    struct error err = {""};
    const char *const paths[] = {quantised, plain};
    for (int i = 0; i < 2; i++)
        if (model_open(paths[i], &models[i], &err) != ST_OK) {
            fprintf(stderr, "%s\n", err.message);
            exit(1);
        }
    bool same_size = models[0]->spec.parameters == models[1]->spec.parameters;
    if (!same_size)
        fprintf(stderr, "%" PRIu64 " parameters, wanted %" PRIu64 "\n", models[0]->spec.parameters,
                models[1]->spec.parameters);
    compare_views(&c, &models[0]->weights.embed, &models[1]->weights.embed);
    compare_views(&c, &models[0]->weights.head, &models[1]->weights.head);
    compare_layers(&c, models[0], models[1]);
    printf("%" PRIu64 " matrices, %" PRIu64 " rows, %" PRIu64 " wrong weights;", c.matrices, c.rows, c.wrong);
    for (uint32_t t = 0; t < TYPES; t++)
        if (c.by_type[t]) printf(" %" PRIu64 " as %s", c.by_type[t], tensor_type_info(types[t])->name);
    printf("\n");
    model_close(models[0]);
    model_close(models[1]);
    return same_size && c.matrices && !c.wrong;
}

/* (TOKENS, V) logits of a fixed text: its begin in one step, as often as its rows take, then token by token. */
static float *run(const char *path, enum numerics numerics, uint32_t *vocab)
{
    static const struct sampling_params greedy = {.top_p = 1, .repetition_penalty = 1, .logprobs = -1};
    struct real_model real;
    uint32_t tokens[TOKENS];
    real_model_open(&real, path, numerics, cpu_path_best(), false, TOKENS);
    uint32_t V = *vocab = real.model->spec.vocab;
    float *logits = mem_alloc((size_t)TOKENS * V, sizeof *logits);
    if (!logits) exit(1);
    for (uint32_t i = 0; i < TOKENS; i++) tokens[i] = (7 * i * i + 13 * i + 5) % V;
    for (uint32_t at = 0, rows; at < TOKENS; at += rows) {
        bool prefill = at < PREFILL;
        rows = !prefill ? 1 : PREFILL - at < LOGIT_ROWS ? PREFILL - at : LOGIT_ROWS;
        real_model_run(&real, tokens + (prefill ? 0 : at), prefill ? PREFILL : 1, prefill ? 0 : at, prefill ? at : 0,
                       rows, &greedy);
        for (uint32_t r = 0; r < rows; r++)
            memcpy(logits + (size_t)(at + r) * V, real_model_logits(&real, r), V * sizeof *logits);
    }
    real_model_close(&real);
    return logits;
}

static bool compare_logits(const char *quantised, const char *plain, enum numerics numerics)
{
    uint32_t vocab, vocab_plain;
    float *a = run(quantised, numerics, &vocab), *b = run(plain, numerics, &vocab_plain);
    bool exact = numerics == NUMERICS_EXACT;
    size_t count = vocab == vocab_plain ? (size_t)TOKENS * vocab : 0, others = 0;
    double worst = 0, sum = 0;
    for (size_t i = 0; i < count; i++) {
        double difference = fabs((double)a[i] - (double)b[i]);
        others += memcmp(&a[i], &b[i], sizeof *a) != 0;
        sum += difference;
        if (!(difference <= worst)) worst = difference;
    }
    mem_free(a);
    mem_free(b);
    printf("%s: %zu logits of %d tokens, %zu with other bits, differences %.1e at most, %.1e on average\n",
           exact ? "exact" : "fast", count, TOKENS, others, worst, sum / (double)(count ? count : 1));
    return count && (exact ? !others : sum <= MEAN_FAST * (double)count);
}

int main(int argc, char **argv)
{
    if (argc != 3) {
        fprintf(stderr, "usage: test_same_model QUANTISED PLAIN\n");
        return 2;
    }
    bool passed = compare_weights(argv[1], argv[2]);
    passed = compare_logits(argv[1], argv[2], NUMERICS_EXACT) && passed;
    return !(compare_logits(argv[1], argv[2], NUMERICS_FAST) && passed);
}
