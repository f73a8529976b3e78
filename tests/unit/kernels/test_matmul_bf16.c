/* BF16 weights in fast numerics: the order of matmul.h by hand-made cases, all paths equal to the scalar one by memcmp,
 * that one within a bound of the meaning, and a row's bits the same at every M and place.
 *
 * Bound, per output: rounding an activation to BF16 costs 2^-8 of each product, a chain of K steps K * 2^-24 of the sum
 * of magnitudes, and each step may flush an operand and a result of up to 2^-126. */
#include "tests/unit/unit.h"

#include "kernels/dequantize.h"
#include "kernels/matmul.h"
#include "runtime/base/mem.h"
#include "tests/unit/kernels/paths.h"

#include <math.h>

static uint64_t seed = 20261123;

#define COUNT(a) (sizeof(a) / sizeof(a)[0])
static const uint32_t row_counts[] = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 31, 32, 33, 64, 512};
static const uint32_t shapes[][2] = {{37, 70}, {16, 64}, {5, 1}, {33, 2}, {48, 33}, {17, 576}, {50, 31}}; /* N, K */
enum { ROWS_MAX = 512 };

enum values {
    VALUES_UNIFORM,
    VALUES_CANCEL,  /* large products of both signs, of which little remains */
    VALUES_TINY,    /* products and sums around the smallest normal number */
    VALUES_FLUSHED, /* denormals and zeros of both signs among normal numbers */
    VALUES_WIDE,    /* 80 powers of two */
    VALUES_TIES,    /* activations half way between two BF16 */
    VALUES_COUNT
};

static float of_bits(uint32_t bits)
{
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

/* f32 of random sign and fraction with an exponent field in [low, high]. */
static float random_float(uint64_t *state, uint32_t low, uint32_t high)
{
    const uint64_t r = random_next(state);
    return of_bits((uint32_t)(r >> 32 & 0x807fffffu) | (low + (uint32_t)(r % (high - low + 1))) << 23);
}

static float value(uint64_t *state, enum values kind, uint32_t k)
{
    switch (kind) {
    case VALUES_CANCEL: return random_float(state, 127, 127) * (k % 2 ? -0x1p20f : 0x1p20f);
    case VALUES_TINY: return random_float(state, 54, 66);
    case VALUES_FLUSHED: return k % 3 ? random_float(state, 0, 2) : random_float(state, 120, 130);
    case VALUES_WIDE: return random_float(state, 87, 167);
    case VALUES_TIES: return of_bits((uint32_t)(random_next(state) >> 32 & 0x807f0000u) | 0x3f808000u);
    default: return random_between(state, -1, 1);
    }
}

struct fixture {
    struct matrix matrix;
    uint16_t *file;                 /* (N, K) */
    float *x, *scalar, *out, *some; /* (ROWS_MAX, K), (ROWS_MAX, N) three times */
    void *act;
};

static void fixture_make(struct fixture *f, uint32_t N, uint32_t K, enum values kind)
{
    uint64_t state = seed + N * 1000 + K * 10 + kind;
    assert_int_equal(matmul_plan(TENSOR_BF16, NUMERICS_FAST, CPU_PATH_SCALAR, N, K, &f->matrix), ST_OK);
    assert_int_equal(f->matrix.act, ACT_BF16);
    f->file = mem_alloc((size_t)N * K, sizeof *f->file);
    f->matrix.data = mem_alloc(f->matrix.panels, f->matrix.panel_bytes);
    f->x = mem_alloc((size_t)ROWS_MAX * K, sizeof *f->x);
    f->scalar = mem_alloc((size_t)ROWS_MAX * N, sizeof *f->scalar);
    f->out = mem_alloc((size_t)ROWS_MAX * N, sizeof *f->out);
    f->some = mem_alloc((size_t)ROWS_MAX * N, sizeof *f->some);
    f->act = mem_alloc(matmul_act_bytes(ACT_BF16, ROWS_MAX, K), 1);
    assert_true(f->file && f->matrix.data && f->x && f->scalar && f->out && f->some && f->act);
    for (size_t i = 0; i < (size_t)N * K; i++) f->file[i] = f32_to_bf16(value(&state, kind, (uint32_t)(i / K)));
    for (size_t i = 0; i < (size_t)ROWS_MAX * K; i++) f->x[i] = value(&state, kind, (uint32_t)(i % K));
    memset(f->matrix.data, 0xff, f->matrix.panels * f->matrix.panel_bytes); /* NaN where packing leaves something */
    matmul_pack(&f->matrix, f->file, 0, f->matrix.panels);
}

static void fixture_free(struct fixture *f)
{
    void *const parts[] = {f->file, f->matrix.data, f->x, f->scalar, f->out, f->some, f->act};
    for (size_t i = 0; i < COUNT(parts); i++) mem_free(parts[i]);
}

/* Rows [first, first + M) of x. */
static void run(struct fixture *f, enum cpu_path path, uint32_t first, uint32_t M, float *out)
{
    const struct matrix *w = &f->matrix;
    memset(f->act, 0xff, matmul_act_bytes(ACT_BF16, M, w->K));
    assert_true(matmul_prepare(path, ACT_BF16, f->x + (size_t)first * w->K, w->K, M, w->K, 0, M, f->act));
    matmul(path, w, 0, w->panels, f->act, M, out, w->N);
}

static void check_meaning(const struct fixture *f, uint32_t M)
{
    const uint32_t N = f->matrix.N, K = f->matrix.K;
    for (uint32_t m = 0; m < M; m++)
        for (uint32_t n = 0; n < N; n++) {
            double sum = 0, magnitudes = 0, flushed = 0;
            for (uint32_t k = 0; k < K; k++) {
                const double x = f->x[(size_t)m * K + k], w = bf16_to_f32(f->file[(size_t)n * K + k]);
                sum += x * w;
                magnitudes += fabs(x * w);
                flushed += fabs(x) + fabs(w) + 2;
            }
            const double bound = magnitudes * (0x1p-8 + (K + 1) * 0x1.02p-24) + flushed * 0x1.02p-126;
            const double got = f->scalar[(size_t)m * N + n];
            if (!(fabs(got - sum) <= bound)) {
                print_error("N %u K %u n %u m %u: got %.9g, meant %.9g, bound %.3g\n", N, K, n, m, got, sum, bound);
                fail();
            }
        }
}

static void test_matmul_bf16_paths_equal_scalar_and_meaning(void **state)
{
    (void)state;
    for (size_t s = 0; s < COUNT(shapes); s++)
        for (enum values kind = 0; kind < VALUES_COUNT; kind++) {
            const uint32_t N = shapes[s][0], K = shapes[s][1];
            struct fixture f;
            fixture_make(&f, N, K, kind);
            run(&f, CPU_PATH_SCALAR, 0, ROWS_MAX, f.scalar);
            check_meaning(&f, 33);
            for (enum cpu_path path = CPU_PATH_SCALAR + 1; path < CPU_PATH_COUNT; path++) {
                if (!cpu_path_supported(path)) continue;
                for (size_t i = 0; i < COUNT(row_counts); i++) {
                    run(&f, path, 0, row_counts[i], f.out);
                    if (memcmp(f.out, f.scalar, (size_t)row_counts[i] * N * sizeof *f.out) == 0) continue;
                    print_error("%s differs from scalar: N %u K %u M %u values %d\n", cpu_path_name(path), N, K,
                                row_counts[i], kind);
                    fail();
                }
            }
            fixture_free(&f);
        }
}

/* Every path, the scalar one too: rows alone or at another place of another batch. */
static void test_matmul_bf16_row_does_not_depend_on_batch(void **state)
{
    (void)state;
    struct fixture f;
    fixture_make(&f, 37, 70, VALUES_WIDE);
    PATHS_EACH(path)
    {
        run(&f, path, 0, ROWS_MAX, f.out);
        for (uint32_t first = 0; first + 40 < ROWS_MAX; first += 11) {
            const uint32_t M = 1 + first % 37;
            run(&f, path, first, M, f.some);
            assert_memory_equal(f.some, f.out + (size_t)first * 37, (size_t)M * 37 * sizeof *f.out);
        }
    }
    fixture_free(&f);
}

/* One row against one column: what the order of matmul.h gives, by hand. Weights are BF16 values. */
struct order_case {
    uint32_t K;
    float x[5], w[5], want;
};

static void test_matmul_bf16_order(void **state)
{
    (void)state;
    static const struct order_case cases[] = {
        /* pairs rise, the odd input first: 2^24 is there when 1 comes, and lost with it; then -2^24 */
        {4, {0, 1, -0x1p24f, 1}, {0, 0x1p24f, 1, 1}, 0},
        {4, {0, 0x1p24f, 1, -0x1p24f}, {0, 1, 1, 1}, 1},
        /* two roundings a pair, not one: 1 + 2^-24 is 1, and again */
        {4, {0, 1, 0x1p-24f, 0x1p-24f}, {0, 1, 1, 1}, 1},
        /* a product keeps its 16 bits */
        {4, {0, -1, 0, 1 - 0x1p-8f}, {0, 1, 0, 1 - 0x1p-8f}, -0x1p-7f + 0x1p-16f},
        /* activations go to the nearest BF16, ties to even */
        {1, {1 + 0x1p-8f}, {1}, 1},
        {1, {1 + 3 * 0x1p-8f}, {1}, 1 + 0x1p-6f},
        {1, {1 + 0x1p-8f + 0x1p-23f}, {1}, 1 + 0x1p-7f},
        /* an odd K ends with the even input of a pair */
        {5, {0, 0, 0, 0, 3}, {0, 0, 0, 0, 7}, 21},
        /* denormals count as zeros: activation, weight, sum; the smallest normal does not */
        {2, {0x1.fep-127f, 0}, {0x1p120f, 0}, 0},
        {2, {0x1p120f, 0}, {0x1.fcp-127f, 0}, 0},
        {4, {0, 0x1p-63f, 0x1p-63f, 0}, {0, 0x1p-64f, 0x1p-64f, 0}, 0},
        {4, {0, 0x1p-63f, 0x1p-63f, 0}, {0, 0x1p-63f, 0x1p-63f, 0}, 0x1p-125f},
        /* judged after rounding to 24 bits: 2^-126 - 2^-151 rounds to 2^-126, anything below it is a denormal */
        {4, {0, 0x1p-63f, -0x1p-75f, 0}, {0, 0x1p-63f, 0x1p-76f, 0}, 0x1p-126f},
        {4, {0, 0x1p-63f, -0x1.02p-75f, 0}, {0, 0x1p-63f, 0x1p-76f, 0}, 0},
        {4, {0, 0x1p-63f, 0, -0x1p-75f}, {0, 0x1p-63f, 0, 0x1p-75f}, 0},
        {4, {0, -0x1p-63f, 0, 0x1.fep-76f}, {0, 0x1p-63f, 0, 0x1p-75f}, -0.0f},
    };
    for (size_t i = 0; i < COUNT(cases); i++) {
        const struct order_case *c = &cases[i];
        uint16_t file[5];
        _Alignas(64) uint8_t panel[3 * 64], act[64];
        struct matrix w;
        for (uint32_t k = 0; k < c->K; k++) {
            file[k] = f32_to_bf16(c->w[k]);
            assert_true(bf16_to_f32(file[k]) == c->w[k]);
        }
        assert_int_equal(matmul_plan(TENSOR_BF16, NUMERICS_FAST, CPU_PATH_SCALAR, 1, c->K, &w), ST_OK);
        assert_in_range(w.panel_bytes, 1, sizeof panel);
        assert_in_range(matmul_act_bytes(w.act, 1, c->K), 1, sizeof act);
        w.data = panel;
        matmul_pack(&w, file, 0, 1);
        PATHS_EACH(path)
        {
            float out = NAN;
            assert_true(matmul_prepare(path, w.act, c->x, c->K, 1, c->K, 0, 1, act));
            matmul(path, &w, 0, 1, act, 1, &out, 1);
            if (out != c->want) {
                print_error("case %zu on %s: got %a, want %a\n", i, cpu_path_name(path), (double)out, (double)c->want);
                fail();
            }
        }
    }
}

/* Bad: every NaN, infinities, and what would round to one. */
static void test_matmul_bf16_refuses_what_is_not_finite(void **state)
{
    (void)state;
    static const uint32_t bad[] = {0x7fffffff, 0xffffffff, 0x7f800001, 0xff800001, 0x7fc00000,
                                   0x7f800000, 0xff800000, 0x7f7f8000, 0xff7fffff};
    static const uint32_t good[] = {0x7f7f7fff, 0xff7f7fff, 0x80000001, 0x007fffff};
    float x[70];
    _Alignas(64) uint8_t act[3 * 64], zeros[3 * 64] = {0};
    for (uint32_t k = 0; k < 70; k++) x[k] = 1;
    PATHS_EACH(path)
    for (uint32_t k = 0; k < 70; k++) {
        for (size_t i = 0; i < COUNT(bad); i++) {
            x[k] = of_bits(bad[i]);
            assert_false(matmul_prepare(path, ACT_BF16, x, 70, 1, 70, 0, 1, act));
            assert_memory_equal(act, zeros, sizeof act);
        }
        for (size_t i = 0; i < COUNT(good); i++) {
            x[k] = of_bits(good[i]);
            assert_true(matmul_prepare(path, ACT_BF16, x, 70, 1, 70, 0, 1, act));
        }
        x[k] = 1;
    }
}

int main(int argc, char **argv)
{
    if (argc > 1) seed = strtoull(argv[1], NULL, 0);
    printf("seed %llu\n", (unsigned long long)seed);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_matmul_bf16_order),
        cmocka_unit_test(test_matmul_bf16_refuses_what_is_not_finite),
        cmocka_unit_test(test_matmul_bf16_paths_equal_scalar_and_meaning),
        cmocka_unit_test(test_matmul_bf16_row_does_not_depend_on_batch),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
