/* A tiny model of a family against the logits that `transformers` gave it (golden/NAME.bin, made by make.py, which
 * states its layout): in exact numerics every logit that the file holds within 1e-4, and the same highest token; in
 * fast numerics within 0.1 on average.
 *
 *   test_families MODEL GOLDEN.bin [texts]    MODEL: a folder of write_folder.py, or a file of write_gguf.py
 *
 * With "texts" the model's tokeniser must give the ids of the file's texts too.
 * Each run of the file is done three times: its prompt in one step; everything in chunks of odd sizes; and the prompt
 * in chunks, then what follows it token by token. The three must give the same bits. */
#include "runtime/base/mem.h"
#include "runtime/device/device_cpu_parts.h"
#include "runtime/text/tokenizer.h"
#include "tests/exact/real_model.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define TOLERANCE_EXACT 1e-4
/* Fast numerics round activations and KV: of that random weights make 0.02 to 0.05 on average, and more at the few
 * tokens whose router then chooses another expert; a wrong computation makes several units everywhere. */
#define MEAN_FAST 0.1
enum { TOP = 6, TOKENS_MAX = 256 };

struct golden_row {
    uint32_t ids[TOP];
    float logits[TOP];
};

struct run {
    uint32_t context_max, count, prefill, full_count, vocab, first_row;
    const uint32_t *tokens;        /* (count) */
    const struct golden_row *rows; /* (count - first_row) */
    const uint32_t *full_rows;     /* (full_count) */
    const float *full;             /* (full_count, vocab) */
};

/* What comparing has found so far; logits of the first pass over a run, which the others repeat. */
struct findings {
    double tolerance; /* two logits closer together than twice this may change places */
    uint32_t compared, wrong, other_bits;
    double worst, sum;
    float *first; /* (TOKENS_MAX, vocab) */
};

static const void *take(const char **at, const char *end, size_t size_bytes)
{
    const char *taken = *at;
    if ((size_t)(end - taken) < size_bytes) {
        fprintf(stderr, "the golden file ends too early\n");
        exit(1);
    }
    *at += size_bytes;
    return taken;
}

static struct run read_run(const char **at, const char *end)
{
    const uint32_t *head = take(at, end, 5 * sizeof *head);
    struct run run = {
        .context_max = head[0], .count = head[1], .prefill = head[2], .full_count = head[3], .vocab = head[4]};
    run.tokens = take(at, end, run.count * sizeof *run.tokens);
    run.first_row = *(const uint32_t *)take(at, end, sizeof run.first_row);
    if (run.count > TOKENS_MAX || run.first_row >= run.count || !run.prefill || run.prefill > run.count) {
        fprintf(stderr, "the golden file contradicts itself\n");
        exit(1);
    }
    run.rows = take(at, end, (run.count - run.first_row) * sizeof *run.rows);
    run.full_rows = take(at, end, run.full_count * sizeof *run.full_rows);
    run.full = take(at, end, (size_t)run.full_count * run.vocab * sizeof *run.full);
    return run;
}

static void compare_logit(struct findings *found, uint32_t position, uint32_t id, float got, float wanted)
{
    double difference = fabs((double)got - (double)wanted);
    found->compared++;
    found->sum += difference;
    if (!(difference <= found->worst)) found->worst = difference;
    if (difference <= found->tolerance) return;
    if (found->wrong++ < 8)
        fprintf(stderr, "position %" PRIu32 ", token %" PRIu32 ": logit %.6f, wanted %.6f\n", position, id, (double)got,
                (double)wanted);
}

/* One position's logits against the golden file, and against the pass before. */
static void compare_row(struct findings *found, const struct run *run, uint32_t position, const float *logits,
                        uint32_t chosen)
{
    float *first = found->first + (size_t)position * run->vocab;
    if (isnan(first[0]))
        memcpy(first, logits, run->vocab * sizeof *logits);
    else
        found->other_bits += memcmp(first, logits, run->vocab * sizeof *logits) != 0;
    if (position < run->first_row) return;
    const struct golden_row *row = &run->rows[position - run->first_row];
    for (uint32_t i = 0; i < TOP; i++) compare_logit(found, position, row->ids[i], logits[row->ids[i]], row->logits[i]);
    if (chosen != row->ids[0] && (double)row->logits[0] - (double)row->logits[1] > 2 * found->tolerance) {
        if (found->wrong++ < 8)
            fprintf(stderr, "position %" PRIu32 ": highest is %" PRIu32 ", wanted %" PRIu32 "\n", position, chosen,
                    row->ids[0]);
    }
    for (uint32_t f = 0; f < run->full_count; f++) {
        if (run->full_rows[f] != position) continue;
        for (uint32_t id = 0; id < run->vocab; id++)
            compare_logit(found, position, id, logits[id], run->full[(size_t)f * run->vocab + id]);
    }
}

/* Runs count tokens at a position and compares the rows [first_row, first_row + rows_count) of them. */
static void step(struct real_model *real, struct findings *found, const struct run *run, uint32_t position,
                 uint32_t count, uint32_t first_row, uint32_t rows_count)
{
    static const struct sampling_params greedy = {.top_p = 1, .repetition_penalty = 1, .logprobs = -1};
    real_model_run(real, run->tokens + position, count, position, first_row, rows_count, &greedy);
    for (uint32_t r = 0; r < rows_count; r++)
        compare_row(found, run, position + first_row + r, real_model_logits(real, r), real->result->rows[r].id);
}

/* Tokens [begin, end) in chunks whose sizes go round a list of odd ones. */
static void run_chunks(struct real_model *real, struct findings *found, const struct run *run, uint32_t begin,
                       uint32_t end, const uint32_t *sizes, uint32_t sizes_count)
{
    for (uint32_t i = 0; begin < end; i++) {
        uint32_t size = sizes[i % sizes_count];
        if (size > end - begin) size = end - begin;
        step(real, found, run, begin, size, 0, size);
        begin += size;
    }
}

static bool check_run(const char *path, const struct run *run, uint32_t idx, enum numerics numerics)
{
    static const uint32_t odd[] = {7, 1, 13, 16, 3, 11}, other[] = {5, 16, 9, 2}, one[] = {1};
    bool exact = numerics == NUMERICS_EXACT;
    struct real_model real;
    struct findings found = {.tolerance = exact ? TOLERANCE_EXACT : (double)INFINITY};
    found.first = mem_alloc((size_t)TOKENS_MAX * run->vocab, sizeof *found.first);
    if (!found.first) return false;
    real_model_open(&real, path, numerics, cpu_path_best(), false, run->context_max);
    if (real.model->spec.vocab != run->vocab) {
        fprintf(stderr, "%" PRIu32 " tokens, wanted %" PRIu32 "\n", real.model->spec.vocab, run->vocab);
        exit(1);
    }
    for (uint32_t i = 0; i < TOKENS_MAX; i++) found.first[(size_t)i * run->vocab] = NAN;
    for (uint32_t at = 0; at < run->prefill; at += LOGIT_ROWS) /* as many rows as a step leaves logits of */
        step(&real, &found, run, 0, run->prefill, at, run->prefill - at < LOGIT_ROWS ? run->prefill - at : LOGIT_ROWS);
    run_chunks(&real, &found, run, 0, run->count, odd, sizeof odd / sizeof *odd);
    run_chunks(&real, &found, run, 0, run->prefill, other, sizeof other / sizeof *other);
    run_chunks(&real, &found, run, run->prefill, run->count, one, 1);
    double mean = found.sum / found.compared;
    printf("run %" PRIu32 ", context %" PRIu32 ", %s: %" PRIu32 " logits compared, %" PRIu32
           " wrong, differences %.1e at most, %.1e on average; %" PRIu32 " rows with other bits\n",
           idx, run->context_max, exact ? "exact" : "fast", found.compared, found.wrong, found.worst, mean,
           found.other_bits);
    real_model_close(&real);
    mem_free(found.first);
    return found.compared && !found.wrong && !found.other_bits && (exact || mean <= MEAN_FAST);
}

/* The texts at the file's end through the model's tokeniser. */
static bool check_texts(const char *path, const char *at, const char *end)
{
    struct model *model;
    struct tokenizer *tokenizer;
    struct error err = {""};
    if (model_open(path, &model, &err) != ST_OK || tokenizer_create(&model->vocab, &tokenizer, &err) != ST_OK) {
        fprintf(stderr, "%s\n", err.message);
        return false;
    }
    uint32_t texts = *(const uint32_t *)take(&at, end, sizeof texts), wrong = !texts;
    for (uint32_t i = 0; i < texts; i++) {
        const uint32_t *head = take(&at, end, 2 * sizeof *head);
        const char *text = take(&at, end, (head[0] + 3) / 4 * 4);
        const uint32_t *wanted = take(&at, end, head[1] * sizeof *wanted);
        struct text_span trusted = {head[0], true};
        struct token_list ids = {0};
        bool same = tokenizer_encode(tokenizer, text, head[0], &trusted, 1, true, &ids) == ST_OK &&
                    ids.count == head[1] && (!ids.count || memcmp(ids.ids, wanted, ids.count * sizeof *wanted) == 0);
        size_t parted = 0;
        while (parted < ids.count && parted < head[1] && ids.ids[parted] == wanted[parted]) parted++;
        if (!same)
            fprintf(stderr, "text %" PRIu32 " (%.40s): %zu ids, wanted %" PRIu32 "; they part at %zu\n", i, text,
                    ids.count, head[1], parted);
        wrong += !same;
        token_list_free(&ids);
    }
    printf("%" PRIu32 " texts, %" PRIu32 " with other ids\n", texts, wrong);
    tokenizer_destroy(tokenizer);
    model_close(model);
    return !wrong;
}

int main(int argc, char **argv)
{
    size_t length;
    char *data = argc >= 3 ? real_file_read(argv[2], &length) : NULL;
    if (!data) {
        fprintf(stderr, "usage: test_families MODEL GOLDEN.bin [texts] (a golden file that can be read)\n");
        return 2;
    }
    const char *at = data, *end = data + length;
    uint32_t runs = *(const uint32_t *)take(&at, end, sizeof runs);
    bool passed = runs > 0;
    for (uint32_t i = 0; i < runs; i++) {
        struct run run = read_run(&at, end);
        passed = check_run(argv[1], &run, i, NUMERICS_EXACT) && passed;
        passed = check_run(argv[1], &run, i, NUMERICS_FAST) && passed;
    }
    if (argc > 3) passed = check_texts(argv[1], at, end) && passed;
    mem_free(data);
    return !passed;
}
