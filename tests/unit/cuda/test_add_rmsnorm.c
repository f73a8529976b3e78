/* Residual and norm against their meaning in double: every form, odd widths, padding rows, gathered rows, NaN; and the
 * same bits of a row in any batch. */
#include "tests/unit/cuda/device_memory.h"

#include "kernels/cuda_ops.h"

enum { TOKENS = 5, ROWS_MAX = 7 };

struct form {
    uint32_t E, M, live;
    bool add, post, gather, gathered, e4m3, no_weight;
    float residual_scale;
    int nan_row; /* of x or y, or -1 */
};

struct data {
    struct form f;
    float *x, *post_weight, *weight;
    uint16_t *y;
    uint32_t rows[ROWS_MAX];
    /* results */
    float *x_after, *gathered, scales[ROWS_MAX];
    uint8_t *out;
    uint32_t bad[TOKENS];
};

static const float eps = 1e-5f;

static void data_make(struct data *d, const struct form *form, uint64_t *seed)
{
    static const uint32_t rows[ROWS_MAX] = {4, 0, 0, 3, 4, 1, 2};
    *d = (struct data){.f = *form};
    const uint32_t E = d->f.E;
    d->x = malloc((size_t)TOKENS * E * sizeof(float)), d->x_after = malloc((size_t)TOKENS * E * sizeof(float));
    d->y = malloc((size_t)TOKENS * E * sizeof(uint16_t)), d->out = malloc((size_t)ROWS_MAX * E * 2);
    d->gathered = malloc((size_t)ROWS_MAX * E * sizeof(float));
    d->weight = malloc(E * sizeof(float)), d->post_weight = malloc(E * sizeof(float));
    memcpy(d->rows, rows, sizeof rows);
    for (size_t i = 0; i < (size_t)TOKENS * E; i++) {
        d->x[i] = (float)random_within(seed, -4, 4);
        d->y[i] = bf16_of(random_within(seed, -1, 1));
    }
    for (uint32_t e = 0; e < E; e++) {
        d->weight[e] = (float)random_within(seed, 0.2, 2);
        d->post_weight[e] = (float)random_within(seed, -2, 2);
    }
    if (form->nan_row < 0) return;
    const size_t at = (size_t)form->nan_row * E + random_bits(seed) % E;
    if (form->add) {
        d->y[at] = random_bits(seed) & 1 ? 0x7fc0 : 0xff80;
    } else {
        d->x[at] = random_bits(seed) & 1 ? NAN : INFINITY;
    }
}

static void data_free(struct data *d)
{
    free(d->x), free(d->x_after), free(d->y), free(d->out), free(d->gathered), free(d->weight), free(d->post_weight);
}

/* Runs the kernel on fresh copies of the inputs; twice, which must give the same bytes. */
static void data_run(struct data *d)
{
    const struct form *f = &d->f;
    const size_t x_bytes = (size_t)TOKENS * f->E * sizeof(float), y_bytes = (size_t)TOKENS * f->E * 2;
    const size_t out_bytes = (size_t)f->M * f->E * (f->e4m3 ? 1 : 2), gathered_bytes = (size_t)f->M * f->E * 4;
    struct cuda_norm norm = {.x = device_take(x_bytes),
                             .y = f->add ? device_copy(d->y, y_bytes) : NULL,
                             .post_weight = f->post ? device_copy(d->post_weight, f->E * sizeof(float)) : NULL,
                             .residual_scale = f->residual_scale,
                             .weight = f->no_weight ? NULL : device_copy(d->weight, f->E * sizeof(float)),
                             .out = device_take(out_bytes),
                             .out_scales = f->e4m3 ? device_take(ROWS_MAX * sizeof(float)) : NULL,
                             .rows = f->gather ? device_copy(d->rows, sizeof d->rows) : NULL,
                             .gathered = f->gathered ? device_take(gathered_bytes) : NULL,
                             .bad = device_take(sizeof d->bad),
                             .E = f->E,
                             .eps = eps};
    uint32_t *live = device_copy(&f->live, sizeof f->live);
    uint8_t *before = malloc(out_bytes);
    for (int launch = 0; launch < 2; launch++) {
        device_write(norm.x, d->x, x_bytes);
        device_poison(norm.out, out_bytes);
        if (f->e4m3) device_poison(norm.out_scales, ROWS_MAX * sizeof(float));
        if (f->gathered) device_poison(norm.gathered, gathered_bytes);
        device_fill(norm.bad, 0, sizeof d->bad);
        cuda_ok(cuda_add_rmsnorm(&norm, live, f->M, device_stream()));
        device_wait();
        device_read(d->out, norm.out, out_bytes);
        if (launch == 1) assert_memory_equal(d->out, before, out_bytes);
        memcpy(before, d->out, out_bytes);
    }
    device_read(d->x_after, norm.x, x_bytes);
    device_read(d->bad, norm.bad, sizeof d->bad);
    if (f->e4m3) device_read(d->scales, norm.out_scales, sizeof d->scales);
    if (f->gathered) device_read(d->gathered, norm.gathered, gathered_bytes);
    void *all[] = {norm.x,
                   (void *)(uintptr_t)norm.y,
                   (void *)(uintptr_t)norm.post_weight,
                   (void *)(uintptr_t)norm.weight,
                   norm.out,
                   norm.out_scales,
                   (void *)(uintptr_t)norm.rows,
                   norm.gathered,
                   norm.bad,
                   live};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) cudaFree(all[i]);
    free(before);
}

/* The row that x becomes, in double. */
static void wanted_x(const struct data *d, uint32_t row, double *x)
{
    const uint32_t E = d->f.E;
    double squares = 0;
    for (uint32_t e = 0; e < E; e++) squares += pow(bf16_value(d->y[(size_t)row * E + e]), 2);
    const double k = 1 / sqrt(squares / E + (double)eps);
    for (uint32_t e = 0; e < E; e++) {
        double y = bf16_value(d->y[(size_t)row * E + e]);
        if (d->f.post) y *= k * (double)d->post_weight[e];
        x[e] = (double)d->x[(size_t)row * E + e] + (d->f.add ? (double)d->f.residual_scale * y : 0);
    }
}

static void expect_f32(float is, double wanted, double bound, const char *what, size_t row, size_t at)
{
    if (wanted != wanted || isinf(wanted)) {
        assert_false(isfinite(is));
    } else if (!(fabs((double)is - wanted) <= bound)) {
        fail_msg("%s, row %zu, value %zu: %.9g, wanted %.9g", what, row, at, (double)is, wanted);
    }
}

static void expect_out(const struct data *d, uint32_t m, const double *x)
{
    const uint32_t E = d->f.E;
    double squares = 0, amax = 0;
    for (uint32_t e = 0; e < E; e++) squares += x[e] * x[e];
    const double k = 1 / sqrt(squares / E + (double)eps);
    for (uint32_t e = 0; e < E; e++) amax = fmax(amax, fabs(x[e] * k * (double)d->weight[e]));
    if (!isfinite(squares)) {
        if (d->f.e4m3) assert_true(d->scales[m] != d->scales[m]);
        return;
    }
    if (d->f.e4m3) expect_f32(d->scales[m], amax / 448, amax * 1e-8, "scale", m, 0);
    for (uint32_t e = 0; e < E; e++) {
        const double wanted = x[e] * k * (double)d->weight[e];
        if (d->f.e4m3) {
            expect_e4m3(d->out[(size_t)m * E + e], (double)d->scales[m], wanted, "codes", m, e);
        } else {
            uint16_t bits;
            memcpy(&bits, d->out + ((size_t)m * E + e) * 2, 2);
            expect_bf16(bits, wanted, 2e-6 * fabs(wanted) + 1e-7 * k, "out", m, e);
        }
    }
}

static void data_expect(const struct data *d)
{
    const struct form *f = &d->f;
    const uint32_t E = f->E;
    double *x = malloc(E * sizeof *x);
    bool bad[TOKENS] = {0}, changed[TOKENS] = {0};
    for (uint32_t m = 0; m < f->live; m++) {
        const uint32_t row = f->gather ? d->rows[m] : m;
        wanted_x(d, row, x);
        for (uint32_t e = 0; e < E; e++) bad[row] = bad[row] || !isfinite(x[e]);
        const float *after = f->gathered ? d->gathered + (size_t)m * E : d->x_after + (size_t)row * E;
        for (uint32_t e = 0; e < E && (f->gathered || !f->gather); e++) {
            expect_f32(after[e], x[e], 3e-6 * (fabs(x[e]) + 4), "x", row, e);
        }
        changed[row] = !f->gather;
        if (!f->no_weight) expect_out(d, m, x);
    }
    for (uint32_t t = 0; t < TOKENS; t++) {
        assert_int_equal(d->bad[t], bad[t]);
        if (!changed[t]) assert_memory_equal(d->x_after + (size_t)t * E, d->x + (size_t)t * E, E * sizeof(float));
    }
    const size_t item = f->e4m3 ? 1 : 2, written = f->no_weight ? 0 : (size_t)f->live * E * item;
    expect_poison(d->out + written, (size_t)f->M * E * item - written, "out beyond the live rows");
    if (f->e4m3) expect_poison(d->scales + f->live, (ROWS_MAX - f->live) * sizeof(float), "scales");
    if (f->gathered) expect_poison(d->gathered + (size_t)f->live * E, (size_t)(f->M - f->live) * E * 4, "gathered");
    free(x);
}

static void check(const struct form *form, uint64_t *seed)
{
    struct data d;
    data_make(&d, form, seed);
    data_run(&d);
    data_expect(&d);
    data_free(&d);
}

static void test_norm_is_its_meaning(void **state)
{
    (void)state;
    uint64_t seed = 31;
    static const uint32_t widths[] = {4, 36, 128, 576, 2048, 2052, 5120, 8192, 16384};
    for (size_t i = 0; i < sizeof widths / sizeof *widths; i++) {
        for (uint32_t bits = 0; bits < 64; bits++) {
            if (CHOICE_ONLY && (widths[i] > 2048 || (bits + i) % 11)) continue;
            if ((bits + 50) % (1 + 2 * (widths[i] / 576))) continue; /* long rows: a choice of forms */
            struct form f = {.E = widths[i], .residual_scale = bits & 1 ? 0.22f : 1.0f, .nan_row = -1};
            f.add = bits & 2, f.post = f.add && bits & 4, f.gather = bits & 8;
            f.gathered = f.gather && bits & 1, f.e4m3 = bits & 16, f.no_weight = bits & 32 && !f.e4m3;
            f.M = f.gather ? ROWS_MAX : TOKENS;
            f.live = bits % 3 == 0 ? f.M : bits % 3 == 1 ? 1 : 3;
            check(&f, &seed);
        }
    }
}

static void test_norm_of_an_empty_batch_writes_nothing(void **state)
{
    (void)state;
    uint64_t seed = 32;
    for (int e4m3 = 0; e4m3 < 2; e4m3++) {
        check(&(struct form){.E = 64, .M = 4, .add = true, .e4m3 = e4m3, .residual_scale = 1, .nan_row = -1}, &seed);
        check(&(struct form){.E = 64, .M = 4, .add = true, .gather = true, .gathered = true, .nan_row = 2}, &seed);
    }
}

static void test_norm_marks_rows_that_are_not_finite(void **state)
{
    (void)state;
    uint64_t seed = 33;
    for (uint32_t i = 0; i < 40; i += CHOICE_ONLY ? 7 : 1) {
        struct form f = {.E = i & 1 ? 576 : 100, .gather = i & 16, .residual_scale = 1};
        f.M = f.live = f.gather ? ROWS_MAX : TOKENS, f.gathered = f.gather;
        f.add = i & 2, f.post = f.add && i & 4, f.e4m3 = i & 8, f.nan_row = (int)(i % TOKENS);
        check(&f, &seed);
    }
}

static void test_norm_of_zeros_is_zero(void **state)
{
    (void)state;
    uint64_t seed = 34;
    for (int e4m3 = 0; e4m3 < 2; e4m3++) {
        struct form f = {.E = 64, .M = 2, .live = 2, .e4m3 = e4m3, .nan_row = -1};
        struct data d;
        data_make(&d, &f, &seed);
        memset(d.x, 0, (size_t)TOKENS * f.E * sizeof(float));
        data_run(&d);
        data_expect(&d);
        data_free(&d);
    }
}

/* Row r of a batch of 5 and alone in a launch of M = 1: the same bits. */
static void test_norm_bits_do_not_depend_on_the_batch(void **state)
{
    (void)state;
    uint64_t seed = 35;
    static const uint32_t widths[] = {36, 576, 5120};
    for (size_t i = 0; i < 3; i++) {
        struct form f = {.E = widths[i], .M = TOKENS, .live = TOKENS, .add = true, .residual_scale = 1, .nan_row = -1};
        struct data all, one;
        data_make(&all, &f, &seed);
        data_run(&all);
        const uint32_t row = 3;
        f.M = f.live = 1;
        data_make(&one, &f, &seed);
        memcpy(one.x, all.x + (size_t)row * f.E, f.E * sizeof(float));
        memcpy(one.y, all.y + (size_t)row * f.E, f.E * 2);
        memcpy(one.weight, all.weight, f.E * sizeof(float));
        data_run(&one);
        assert_memory_equal(one.out, all.out + (size_t)row * f.E * 2, f.E * 2);
        assert_memory_equal(one.x_after, all.x_after + (size_t)row * f.E, f.E * sizeof(float));
        data_free(&all), data_free(&one);
    }
}

static void test_norm_refuses_widths_it_cannot_hold(void **state)
{
    (void)state;
    struct cuda_norm norm = {.E = 16388};
    assert_int_equal(cuda_add_rmsnorm(&norm, NULL, 1, device_stream()), cudaErrorInvalidValue);
    norm.E = 6;
    assert_int_equal(cuda_add_rmsnorm(&norm, NULL, 1, device_stream()), cudaErrorInvalidValue);
    norm.E = 8;
    assert_int_equal(cuda_add_rmsnorm(&norm, NULL, 0, device_stream()), cudaSuccess);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_norm_is_its_meaning),
        cmocka_unit_test(test_norm_of_an_empty_batch_writes_nothing),
        cmocka_unit_test(test_norm_marks_rows_that_are_not_finite),
        cmocka_unit_test(test_norm_of_zeros_is_zero),
        cmocka_unit_test(test_norm_bits_do_not_depend_on_the_batch),
        cmocka_unit_test(test_norm_refuses_widths_it_cannot_hold),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
