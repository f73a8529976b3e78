/* Embeddings: BF16 and E4M3 rows with each kind of scale, ids of the step before, a part of the vocabulary, padding. */
#include "tests/unit/cuda/device_memory.h"

#include "kernels/cuda_ops.h"
#include "tests/unit/cuda/weights.h"

enum { ROWS = 37, M = 7, PREVIOUS = 5 };

struct table {
    enum cuda_type type;
    uint32_t E, scale_rows, scale_cols;
    uint8_t *codes;
    float *scales;
    size_t codes_bytes, scales_count;
};

static void table_make(struct table *t, uint64_t *seed)
{
    t->codes_bytes = (size_t)ROWS * t->E * (t->type == CUDA_TYPE_BF16 ? 2 : 1);
    t->codes = malloc(t->codes_bytes);
    for (size_t i = 0; i < (size_t)ROWS * t->E; i++) {
        const uint16_t value = bf16_of(random_within(seed, -3, 3));
        if (t->type == CUDA_TYPE_BF16) {
            memcpy(t->codes + 2 * i, &value, 2);
        } else {
            do t->codes[i] = (uint8_t)random_bits(seed);
            while ((t->codes[i] & 0x7f) == 0x7f);
        }
    }
    const size_t rows = t->scale_rows ? (ROWS + t->scale_rows - 1) / t->scale_rows : 1;
    const size_t cols = t->scale_cols ? (t->E + t->scale_cols - 1) / t->scale_cols : 1;
    t->scales_count = rows * cols;
    t->scales = malloc(t->scales_count * sizeof(float));
    for (size_t i = 0; i < t->scales_count; i++) t->scales[i] = (float)random_within(seed, 0.001, 2);
}

static double table_value(const struct table *t, uint32_t row, uint32_t e)
{
    uint16_t bits;
    if (t->type == CUDA_TYPE_BF16) {
        memcpy(&bits, t->codes + ((size_t)row * t->E + e) * 2, 2);
        return bf16_value(bits);
    }
    size_t at = 0;
    if (t->scale_cols) at = e / t->scale_cols * (t->scale_rows ? (ROWS + t->scale_rows - 1) / t->scale_rows : 1);
    if (t->scale_rows) at += row / t->scale_rows;
    return e4m3_value(t->codes[(size_t)row * t->E + e]) * (double)t->scales[at];
}

static void check(struct table *t, uint32_t live, uint32_t vocab_first, float scale, uint64_t *seed)
{
    table_make(t, seed);
    const uint32_t previous[PREVIOUS] = {vocab_first + 3, vocab_first + ROWS - 1, 0, 0xfffffffe, vocab_first + ROWS};
    const uint32_t tokens[M] = {vocab_first,           CUDA_TOKEN_OF_ROW | 0, CUDA_TOKEN_OF_ROW | 1, vocab_first + 9,
                                CUDA_TOKEN_OF_ROW | 3, CUDA_TOKEN_OF_ROW | 4, vocab_first - 1};
    const uint32_t rows[M] = {0, 3, ROWS - 1, 9, ROWS, ROWS, ROWS}; /* ROWS: none */
    const struct cuda_step_header header = {.tokens = live};
    const struct cuda_weight weight = {.type = t->type,
                                       .N = ROWS,
                                       .K = t->E,
                                       .codes = device_copy(t->codes, t->codes_bytes),
                                       .scales = device_copy(t->scales, t->scales_count * sizeof(float)),
                                       .scale_rows = t->scale_rows,
                                       .scale_cols = t->scale_cols};
    const struct cuda_step step = {.header = device_copy(&header, sizeof header),
                                   .tokens = device_copy(tokens, sizeof tokens)};
    const size_t count = (size_t)M * t->E;
    const struct cuda_embedding embedding = {.x = device_take(count * sizeof(float)),
                                             .bad = device_take(M * sizeof(uint32_t)),
                                             .table = &weight,
                                             .vocab_first = vocab_first,
                                             .scale = scale,
                                             .previous = device_copy(previous, sizeof previous)};
    float *x = malloc(count * sizeof *x);
    uint32_t bad[M];
    for (int launch = 0; launch < 2; launch++) {
        device_poison(embedding.x, count * sizeof *x);
        device_poison(embedding.bad, sizeof bad);
        cuda_ok(cuda_embed(&embedding, &step, M, device_stream()));
        device_wait();
        device_read(x, embedding.x, count * sizeof *x);
        device_read(bad, embedding.bad, sizeof bad);
        for (size_t m = 0; m < live; m++) {
            assert_int_equal(bad[m], 0);
            for (uint32_t e = 0; e < t->E; e++) {
                const double wanted = rows[m] == ROWS ? 0 : table_value(t, rows[m], e) * (double)scale;
                const double is = (double)x[m * t->E + e];
                if (!(fabs(is - wanted) <= 2e-7 * fabs(wanted)))
                    fail_msg("E %u, token %zu, value %u: %.9g, wanted %.9g", t->E, m, e, is, wanted);
            }
        }
        expect_poison(x + (size_t)live * t->E, (count - (size_t)live * t->E) * sizeof *x, "padding tokens");
        expect_poison(bad + live, (M - live) * sizeof *bad, "marks of padding tokens");
    }
    cudaFree((void *)(uintptr_t)weight.codes), cudaFree((void *)(uintptr_t)weight.scales);
    cudaFree((void *)(uintptr_t)step.header), cudaFree((void *)(uintptr_t)step.tokens);
    cudaFree(embedding.x), cudaFree(embedding.bad), cudaFree((void *)(uintptr_t)embedding.previous);
    free(x), free(t->codes), free(t->scales);
}

static void test_embed_gives_rows(void **state)
{
    (void)state;
    uint64_t seed = 21;
    static const uint32_t sizes[] = {8, 48, 128, 576, 1040};
    for (size_t i = 0; i < 5; i++) {
        for (uint32_t live = 0; live <= M; live += live == 1 ? M - 2 : 1) {
            struct table tables[] = {
                {.type = CUDA_TYPE_BF16, .E = sizes[i]},
                {.type = CUDA_TYPE_E4M3, .E = sizes[i]},
                {.type = CUDA_TYPE_E4M3, .E = sizes[i], .scale_rows = 1},
                {.type = CUDA_TYPE_E4M3, .E = sizes[i], .scale_rows = 16, .scale_cols = 128},
            };
            for (size_t k = 0; k < 4; k++)
                if (!CHOICE_ONLY || (i + k + live) % 5 == 0) check(&tables[k], live, 100, k & 1 ? 1.0f : 24.5f, &seed);
        }
    }
}

/* A table in a file's format, as cuda_repack_rows leaves it: the values of dequantize.h. */
static void check_format(enum tensor_type format, uint64_t *seed)
{
    enum { E = 512, TOKENS = 3 };
    static float x[TOKENS * E];
    static const uint32_t tokens[TOKENS] = {ROWS - 1, 0, 17};
    struct test_weight w;
    test_weight_make(&w, format, cuda_type_of(format), ROWS, E, false, seed);
    const struct cuda_step_header header = {.tokens = TOKENS};
    const struct cuda_step step = {.header = device_copy(&header, sizeof header),
                                   .tokens = device_copy(tokens, sizeof tokens)};
    const struct cuda_embedding embedding = {
        .x = device_take(sizeof x), .bad = device_take(TOKENS * sizeof(uint32_t)), .table = &w.weight, .scale = 1};
    cuda_ok(cuda_embed(&embedding, &step, TOKENS, device_stream()));
    device_wait();
    device_read(x, embedding.x, sizeof x);
    for (size_t i = 0; i < TOKENS * E; i++) {
        const double wanted = w.values[tokens[i / E] * E + i % E];
        if (!(fabs((double)x[i] - wanted) <= 2e-7 * fabs(wanted) + 1e-9))
            fail_msg("format %d, token %zu, value %zu: %.9g, wanted %.9g", format, i / E, i % E, (double)x[i], wanted);
    }
    cudaFree((void *)(uintptr_t)step.header), cudaFree((void *)(uintptr_t)step.tokens);
    cudaFree(embedding.x), cudaFree(embedding.bad);
    test_weight_free(&w);
}

static void test_embed_unpacks_every_format(void **state)
{
    (void)state;
    uint64_t seed = 22;
    static const enum tensor_type formats[] = {TENSOR_BF16, TENSOR_F8,   TENSOR_Q4_0, TENSOR_Q4_1, TENSOR_Q4_K,
                                               TENSOR_Q8_0, TENSOR_Q5_0, TENSOR_Q5_1, TENSOR_Q5_K, TENSOR_Q6_K};
    for (size_t i = 0; i < sizeof formats / sizeof *formats; i++) check_format(formats[i], &seed);
}

static void test_embed_refuses_what_it_does_not_know(void **state)
{
    (void)state;
    struct cuda_weight weight = {.type = CUDA_TYPE_BF16, .N = 1, .K = 6};
    const struct cuda_embedding embedding = {.table = &weight};
    const struct cuda_step step = {0};
    assert_int_equal(cuda_embed(&embedding, &step, 1, device_stream()), cudaErrorInvalidValue);
    weight.K = 8;
    assert_int_equal(cuda_embed(&embedding, &step, 0, device_stream()), cudaSuccess);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_embed_gives_rows),
        cmocka_unit_test(test_embed_unpacks_every_format),
        cmocka_unit_test(test_embed_refuses_what_it_does_not_know),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
