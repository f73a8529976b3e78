/* The matmul in parts: activations prepared by columns, sums added to what stands there, single tiles. Each is held to
 * the whole operation bit for bit. */
#include "tests/unit/kernels/paths.h"
#include "tests/unit/unit.h"

#include "kernels/dequantize.h"
#include "kernels/matmul.h"
#include "runtime/base/mem.h"

#include <math.h>

enum { N = 69, M_MAX = 37 };

static const enum tensor_type types[] = {TENSOR_Q4_0, TENSOR_Q4_1, TENSOR_Q8_0, TENSOR_Q6_K,
                                         TENSOR_F32,  TENSOR_F16,  TENSOR_BF16, TENSOR_F8};
static const uint32_t row_counts[] = {1, 4, 16, 17, M_MAX};

struct fixture {
    enum cpu_path path;
    uint32_t M;
    struct matrix matrix;
    float *x;       /* (M, K) */
    uint8_t *act;   /* prepared whole */
    float *product; /* (M, N) */
};

static void *take(size_t count, size_t size)
{
    void *p = mem_alloc(count, size);
    assert_non_null(p);
    return p;
}

static void fixture_make(struct fixture *f, enum tensor_type type, enum cpu_path path, uint32_t M)
{
    const struct tensor_type_info *info = tensor_type_info(type);
    const uint32_t K = info->block_items == 256   ? 512
                       : info->block_items == 128 ? 256
                       : info->block_items == 32  ? 160
                                                  : 75;
    const size_t row_bytes = tensor_row_bytes(info, K);
    uint64_t state = 77 + (uint64_t)type * 100 + M;
    uint8_t *file = take(N, row_bytes);
    for (size_t i = 0; i < N * row_bytes; i++) file[i] = random_next(&state) & 0x3b; /* no exponent of all ones */
    *f = (struct fixture){.path = path, .M = M};
    assert_int_equal(matmul_plan(type, NUMERICS_FAST, path, N, K, &f->matrix), ST_OK);
    f->matrix.data = take(f->matrix.panels, f->matrix.panel_bytes);
    matmul_pack(&f->matrix, file, 0, f->matrix.panels);
    mem_free(file);
    f->x = take((size_t)M * K, sizeof(float));
    for (size_t i = 0; i < (size_t)M * K; i++) f->x[i] = random_between(&state, -3, 3);
    f->act = take(matmul_act_bytes(f->matrix.act, M, K), 1);
    assert_true(matmul_prepare(path, f->matrix.act, f->x, K, M, K, 0, M, f->act));
    f->product = take((size_t)M * N, sizeof(float));
    matmul(path, &f->matrix, 0, f->matrix.panels, f->act, M, f->product, N);
}

static void fixture_free(struct fixture *f)
{
    mem_free(f->matrix.data);
    mem_free(f->x);
    mem_free(f->act);
    mem_free(f->product);
}

static void check_columns(const struct fixture *f)
{
    const uint32_t K = f->matrix.K, M = f->M;
    const size_t bytes = matmul_act_bytes(f->matrix.act, M, K);
    uint8_t *act = take(bytes, 1);
    for (uint32_t k_end = K; k_end > 0;) { /* pieces of 32, or less at the end, from the last */
        const uint32_t k_begin = (k_end - 1) / 32 * 32, half = M / 2;
        const float *x = f->x + k_begin;
        assert_true(matmul_prepare_columns(f->path, f->matrix.act, x + (size_t)half * K, K, M, K, half, M, k_begin,
                                           k_end, act));
        assert_true(matmul_prepare_columns(f->path, f->matrix.act, x, K, M, K, 0, half, k_begin, k_end, act));
        k_end = k_begin;
    }
    assert_memory_equal(act, f->act, bytes);
    mem_free(act);
}

/* A NaN in one piece of one row: reported, and every other row's product stays as it was. */
static void check_nan(const struct fixture *f)
{
    const uint32_t K = f->matrix.K, M = f->M, bad = M / 3, k_end = K < 64 ? K : 64;
    float piece[32], *out = take((size_t)M * N, sizeof(float));
    memcpy(piece, f->x + (size_t)bad * K + 32, (k_end - 32) * sizeof(float));
    piece[3] = NAN;
    assert_false(matmul_prepare_columns(f->path, f->matrix.act, piece, 0, M, K, bad, bad + 1, 32, k_end, f->act));
    matmul(f->path, &f->matrix, 0, f->matrix.panels, f->act, M, out, N);
    for (uint32_t m = 0; m < M; m++) {
        if (m != bad) assert_memory_equal(out + (size_t)m * N, f->product + (size_t)m * N, N * sizeof(float));
        for (uint32_t n = 0; n < N; n++) assert_true(isfinite(out[(size_t)m * N + n]));
    }
    mem_free(out);
}

static void check_add(const struct fixture *f)
{
    const uint32_t M = f->M, middle = f->matrix.panels / 2;
    enum { STRIDE = N + 3 };
    float *out = take((size_t)M * STRIDE, sizeof(float));
    for (size_t i = 0; i < (size_t)M * STRIDE; i++) out[i] = (float)i * 0.37f;
    matmul_add(f->path, &f->matrix, 0, middle, f->act, M, out, STRIDE);
    matmul_add(f->path, &f->matrix, middle, f->matrix.panels, f->act, M, out, STRIDE);
    for (size_t i = 0; i < (size_t)M * STRIDE; i++) {
        const size_t m = i / STRIDE, n = i % STRIDE;
        const float before = (float)i * 0.37f, wanted = n < N ? before + f->product[m * N + n] : before;
        assert_memory_equal(&out[i], &wanted, sizeof wanted);
    }
    mem_free(out);
}

static void check_tiles(const struct fixture *f)
{
    for (uint32_t m = 0; m < f->M; m += MATMUL_TILE_ROWS) {
        const uint32_t R = f->M - m < MATMUL_TILE_ROWS ? f->M - m : MATMUL_TILE_ROWS;
        for (uint32_t p = 0; p < f->matrix.panels; p += 2) {
            float out[MATMUL_TILE_ROWS][32];
            const uint32_t end = f->matrix.panels - p < 2 ? f->matrix.panels : p + 2;
            const uint32_t columns = end * 16 < N ? 32 : N - p * 16;
            matmul_tile(f->path, &f->matrix, p, end, f->act, f->M, m, out[0], 32);
            for (uint32_t r = 0; r < R; r++)
                assert_memory_equal(out[r], f->product + (size_t)(m + r) * N + (size_t)p * 16, columns * sizeof(float));
        }
    }
}

static void test_parts_equal_the_whole(void **state)
{
    (void)state;
    PATHS_EACH(path)
    {
        for (size_t t = 0; t < sizeof types / sizeof types[0]; t++) {
            for (size_t i = 0; i < sizeof row_counts / sizeof row_counts[0]; i++) {
                struct fixture f;
                fixture_make(&f, types[t], path, row_counts[i]);
                check_columns(&f);
                check_add(&f);
                check_tiles(&f);
                check_nan(&f);
                fixture_free(&f);
            }
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_parts_equal_the_whole)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
