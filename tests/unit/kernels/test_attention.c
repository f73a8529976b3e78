/* Attention over paged KV: the same bits on every path, whatever rows are taken together and whatever lies in slots
 * that no row may see; within a bound of the meaning. */
#include "tests/unit/unit.h"

#include "kernels/attention.h"
#include "kernels/dequantize.h"
#include "kernels/rope.h"
#include "runtime/base/mem.h"
#include "tests/unit/kernels/paths.h"

#include <math.h>

#ifdef __SANITIZE_ADDRESS__ /* thirty times as slow, and one shape in three leaves no code out */
enum { EACH = 3 };
#else
enum { EACH = 1 };
#endif
enum { BLOCKS = 80 };

struct fixture {
    struct attention_args args;
    uint8_t *kv;
    uint32_t blocks[BLOCKS];
    float *q, *out, *scratch;
    uint32_t tokens; /* written */
};

/* KV of `tokens` tokens in scattered blocks; everything else is NaN. */
static void fixture_make(struct fixture *f, enum kv_type type, uint32_t D, uint32_t G, uint32_t tokens, uint64_t *seed)
{
    struct kv_layout layout = kv_layout_of(type, D);
    size_t block_bytes = layout.head_bytes + 64;
    f->tokens = tokens;
    f->kv = mem_alloc(BLOCKS, block_bytes);
    f->q = mem_alloc((size_t)tokens * G * D, sizeof(float));
    f->out = mem_alloc((size_t)tokens * G * D, sizeof(float));
    f->scratch = mem_alloc(attention_scratch_floats(type, G, D), sizeof(float));
    assert_true(f->kv && f->q && f->out && f->scratch);
    memset(f->kv, 0xff, BLOCKS * block_bytes); /* NaN in both formats */
    for (uint32_t b = 0; b < BLOCKS; b++) f->blocks[b] = b * 7 % BLOCKS;
    for (size_t i = 0; i < (size_t)tokens * G * D; i++) {
        f->q[i] = random_between(seed, -2, 2);
        if (type != KV_F32) f->q[i] = bf16_to_f32(f32_to_bf16(f->q[i])); /* the bound for p alone is far tighter */
    }
    for (uint32_t t = 0; t < tokens; t++) {
        float k[256], v[256];
        for (uint32_t d = 0; d < D; d++) {
            k[d] = random_between(seed, -2, 2);
            v[d] = random_between(seed, -2, 2);
        }
        kv_write(CPU_PATH_SCALAR, &layout, f->kv + f->blocks[t / KV_TOKENS] * block_bytes, t % KV_TOKENS, k, v);
    }
    f->args = (struct attention_args){.layout = layout,
                                      .kv = f->kv,
                                      .kv_block_bytes = block_bytes,
                                      .blocks = f->blocks,
                                      .q_stride = (size_t)G * D,
                                      .out_stride = (size_t)G * D,
                                      .G = G,
                                      .scale = 1 / sqrtf((float)D),
                                      .scratch = f->scratch};
}

static void fixture_free(struct fixture *f)
{
    mem_free(f->kv);
    mem_free(f->q);
    mem_free(f->out);
    mem_free(f->scratch);
}

/* All rows from `position` on, `rows` at a time, into f->out (row r at r). */
static void attend(struct fixture *f, enum cpu_path path, uint32_t position, uint32_t rows)
{
    struct attention_args args = f->args;
    size_t stride = args.q_stride;
    memset(f->scratch, 0xff, attention_scratch_floats(args.layout.type, args.G, args.layout.D) * sizeof(float));
    for (uint32_t at = position; at < f->tokens; at += rows) {
        args.rows = f->tokens - at < rows ? f->tokens - at : rows;
        args.position = at;
        args.q = f->q + at * stride;
        args.out = f->out + at * stride;
        attention(path, &args);
    }
}

static void check(enum kv_type type, uint32_t D, uint32_t G, uint32_t tokens, uint32_t window, uint64_t *seed)
{
    struct fixture f;
    fixture_make(&f, type, D, G, tokens, seed);
    f.args.window = window;
    size_t count = (size_t)tokens * G * D;
    float *wanted = mem_alloc(count, sizeof(float));
    assert_non_null(wanted);
    attend(&f, CPU_PATH_SCALAR, 0, 1);
    memcpy(wanted, f.out, count * sizeof(float));
    for (uint32_t t = 0; t < tokens; t += tokens < 40 ? 1 : 41) { /* the definition lies near the meaning */
        struct attention_args args = f.args;
        float meaning[256 * 16], bound = 2 * (type == KV_F32 ? 3e-6f : 0x1p-8f); /* |V| <= 2 */
        args.rows = 1;
        args.position = t;
        args.q = f.q + t * args.q_stride;
        args.out = meaning;
        attention_ref(&args);
        for (uint32_t i = 0; i < G * D; i++) {
            float got = wanted[t * args.q_stride + i];
            if (!(fabsf(got - meaning[i]) <= bound))
                fail_msg("D %u G %u t %u: %g, wanted %g", D, G, t, (double)got, (double)meaning[i]);
        }
    }
    PATHS_EACH(path)
    {
        uint32_t most = attention_rows(G);
        const uint32_t rows[] = {1, 2, 5, most};
        for (uint32_t i = 0; i < 4; i++) {
            if (rows[i] > most) continue;
            memset(f.out, 0, count * sizeof(float));
            attend(&f, path, 0, rows[i]);
            assert_memory_equal(f.out, wanted, count * sizeof(float));
        }
    }
    mem_free(wanted);
    fixture_free(&f);
}

static void test_attention_agrees_over_paths_rows_and_shapes(void **state)
{
    (void)state;
    uint64_t seed = 6;
    static const uint32_t heads[] = {1, 2, 3, 4, 5, 6, 7, 8, 9, 11}, sizes[] = {8, 64, 80, 20, 128};
    for (size_t g = 0; g < 10; g += EACH) {
        check(KV_BF16, 64, heads[g], 150, 0, &seed);
        check(KV_F32, 16, heads[g], 37, 0, &seed);
    }
    for (size_t d = 0; d < 5; d++) {
        check(KV_F32, sizes[d], 3, 20 + (uint32_t)d, 0, &seed);
        check(KV_BF16, sizes[d], 2, 130, 0, &seed);
    }
    check(KV_BF16, 32, 3, 384, 0, &seed);
    check(KV_I8, 64, 3, 150, 0, &seed);
    check(KV_I8, 80, 4, 131, 0, &seed);
    check(KV_I8, 7, 2, 33, 0, &seed);
    check(KV_BF16, 256, 8, 131, 0, &seed);
    check(KV_BF16, 7, 4, 33, 0, &seed);  /* the last pair of K is half */
    check(KV_F32, 16, 50, 17, 0, &seed); /* more heads than a tile has vectors */
}

/* Windows shorter and longer than a tile's rows, a block and a chunk, that begin in the middle of each. */
static void test_attention_agrees_with_windows(void **state)
{
    (void)state;
    uint64_t seed = 16;
    static const uint32_t windows[] = {1, 2, 3, 15, 16, 17, 40, 127, 128, 129, 200, 300, 1000};
    for (size_t w = 0; w < 13; w += EACH) {
        check(KV_BF16, 32, 1 + (uint32_t)w % 5, 300, windows[w], &seed);
        check(KV_F32, 16, 1 + (uint32_t)w % 4, 290, windows[w], &seed);
    }
    check(KV_I8, 32, 4, 280, 65, &seed);
    check(KV_BF16, 256, 4, 280, 130, &seed);
}

/* The same bits when the chunks of a call are shared out in `parts` and merged. */
static void check_parts(enum kv_type type, uint32_t D, uint32_t G, uint32_t position, uint32_t rows, uint32_t window,
                        uint64_t *seed)
{
    struct fixture f;
    uint32_t tokens = position + rows, first = attention_first(position, window) / ATTENTION_CHUNK;
    uint32_t chunks = attention_chunks(tokens) - first;
    size_t floats = chunks * attention_partial_floats(rows * G, D), count = (size_t)rows * G * D;
    fixture_make(&f, type, D, G, tokens, seed);
    float *wanted = mem_alloc(count, sizeof(float)), *partials = mem_alloc(floats, sizeof(float));
    assert_true(wanted && partials && rows <= attention_rows(G));
    struct attention_args args = f.args;
    args.rows = rows;
    args.window = window;
    args.position = position;
    args.q = f.q + position * args.q_stride;
    args.out = wanted;
    attention(CPU_PATH_SCALAR, &args);
    PATHS_EACH(path)
    {
        for (uint32_t parts = 1; parts <= 8; parts += EACH) {
            memset(partials, 0xff, floats * sizeof(float));
            args.out = f.out;
            args.partials = partials;
            for (uint32_t part = parts; part-- > 0;) {
                args.chunk_begin = first + chunks * part / parts;
                args.chunk_end = first + chunks * (part + 1) / parts;
                attention(path, &args);
            }
            attention_merge(path, &args);
            assert_memory_equal(f.out, wanted, count * sizeof(float));
        }
    }
    mem_free(wanted);
    mem_free(partials);
    fixture_free(&f);
}

static void test_attention_merges_parts_into_the_same_bits(void **state)
{
    (void)state;
    uint64_t seed = 9;
    static const uint32_t groups[] = {1, 3, 4, 8}, sizes[] = {64, 80, 128, 256};
    static const uint32_t positions[] = {0, 126, 127, 128, 129, 383, 500, 1021};
    for (size_t i = 0; i < 8; i++) {
        for (size_t g = 0; g < 4; g++) {
            check_parts(KV_BF16, sizes[(i + g) % 4], groups[g], positions[i], 1 + (uint32_t)i % 3, 0, &seed);
            check_parts(KV_BF16, 32, groups[g], positions[i], 1 + (uint32_t)(i + g) % 6, 100 + 60 * (uint32_t)g, &seed);
            check_parts(KV_F32, 16, groups[g], positions[i], attention_rows(groups[g]), 0, &seed);
        }
    }
    check_parts(KV_I8, 64, 3, 120, 16, 0, &seed);
    check_parts(KV_BF16, 64, 3, 120, 16, 0, &seed); /* rows on both sides of a chunk's end */
}

static void test_attention_ignores_what_a_row_may_not_see(void **state)
{
    (void)state;
    uint64_t seed = 7;
    struct fixture f;
    fixture_make(&f, KV_BF16, 64, 3, 145, &seed);
    float wanted[3 * 64];
    PATHS_EACH(path)
    {
        for (uint32_t position = 0; position < 145; position += 9) {
            struct attention_args args = f.args;
            args.rows = 1;
            args.position = position;
            args.window = position % 2 ? 50 : 0;
            args.q = f.q;
            args.out = wanted;
            attention(path, &args);
            for (int i = 0; i < 3 * 64; i++) assert_true(isfinite(wanted[i]));
            /* the same with the later tokens gone, and those before the pair in which the window begins */
            struct fixture g;
            uint64_t same = 7;
            float got[3 * 64];
            fixture_make(&g, KV_BF16, 64, 3, 145, &same);
            for (uint32_t t = 0; t < 145; t++) {
                if (t >= attention_first(position, args.window) / 2 * 2 && t <= position) continue;
                float nan[64];
                for (int d = 0; d < 64; d++) nan[d] = NAN;
                kv_write(path, &g.args.layout, g.kv + g.blocks[t / KV_TOKENS] * g.args.kv_block_bytes, t % KV_TOKENS,
                         nan, nan);
            }
            args.kv = g.kv;
            args.blocks = g.blocks;
            args.scratch = g.scratch;
            args.out = got;
            attention(path, &args);
            assert_memory_equal(got, wanted, sizeof got);
            fixture_free(&g);
        }
    }
    fixture_free(&f);
}

static void test_attention_carries_nan_to_its_row(void **state)
{
    (void)state;
    uint64_t seed = 8;
    PATHS_EACH(path)
    {
        struct fixture f;
        fixture_make(&f, KV_BF16, 64, 3, 140, &seed);
        float k[64] = {0}, v[64] = {0};
        v[5] = NAN;
        kv_write(path, &f.args.layout, f.kv + f.blocks[1] * f.args.kv_block_bytes, 4, k, v); /* position 20 */
        attend(&f, path, 0, 1);
        for (uint32_t t = 0; t < 140; t++) {
            for (uint32_t g = 0; g < 3; g++) assert_int_equal(isnan(f.out[(t * 3 + g) * 64 + 5]) != 0, t >= 20);
        }
        fixture_free(&f);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_attention_agrees_over_paths_rows_and_shapes),
                                       cmocka_unit_test(test_attention_agrees_with_windows),
                                       cmocka_unit_test(test_attention_merges_parts_into_the_same_bits),
                                       cmocka_unit_test(test_attention_ignores_what_a_row_may_not_see),
                                       cmocka_unit_test(test_attention_carries_nan_to_its_row)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
