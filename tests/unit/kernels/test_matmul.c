/* The matmul: panels keep every value, all paths give the scalar path's bits, and those lie within a bound of the
 * meaning.
 *
 * Bound of fast mode, per output: an activation is off by at most half a step, da / 2, of its block; below ACT_AMAX_MIN
 * a block counts as zeros; and each f32 rounding costs 2^-24 of the partial sums. Bound of exact mode: a chain of K
 * FMAs. BF16 weights in fast mode: test_matmul_bf16.c. */
#include "tests/unit/unit.h"

#include "kernels/dequantize.h"
#include "kernels/matmul.h"
#include "kernels/matmul_panel.h"
#include "runtime/base/mem.h"
#include "runtime/base/random.h"
#include "tests/support/matmul_avxvnni_evex.h"

#include <math.h>
#include <sys/mman.h>

static uint64_t seed = 20240607;

#define X(name, id, block_items, block_bytes) TENSOR_##name,
static const enum tensor_type types[] = {TENSOR_TYPE_MAP(X)};
#undef X
static const uint32_t row_counts[] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 23, 31, 32, 33, 64};

#define COUNT(a) (sizeof(a) / sizeof(a)[0])
enum { ROWS_MAX = 300, CANARY = 0x5a };
#define VALUE_MAX 48.0 /* of |d * code| + |m| in what matrix_random makes */

/* A matrix in the file's form, ending at a page that cannot be read, and packed. */
struct fixture {
    struct matrix matrix;
    uint8_t *file; /* N rows */
    size_t row_bytes, map_bytes;
    void *map;
};

#ifdef __SANITIZE_ADDRESS__ /* values beside random ones only with the smallest shape: they move no access */
enum { FEWER = 1 };
#else
enum { FEWER = 0 };
#endif
enum fill { FILL_RANDOM, FILL_ENDS, FILL_COUNT };
enum input { INPUT_RANDOM, INPUT_MINUS_ONE, INPUT_OUTLIER, INPUT_ZERO_BLOCKS, INPUT_DENORMAL, INPUT_COUNT };

static float uniform(uint64_t *state, float low, float high)
{
    return low + (high - low) * (float)(random_next(state) >> 40) * 0x1p-24f;
}

static void put_f16(uint8_t *p, float x)
{
    const uint16_t h = f32_to_f16(x);
    memcpy(p, &h, 2);
}

/* Gives a block finite, moderate scales; its other bytes are random or all ones and zeros. */
static void block_scales(enum tensor_type type, uint8_t *block, uint64_t *state)
{
    const float d = uniform(state, -0.05f, 0.05f), m = uniform(state, -1.0f, 1.0f);
    switch (type) {
    case TENSOR_F32: {
        const float x = uniform(state, -8.0f, 8.0f);
        memcpy(block, &x, 4);
        break;
    }
    case TENSOR_F16: put_f16(block, uniform(state, -8.0f, 8.0f)); break;
    case TENSOR_BF16: {
        const uint16_t h = f32_to_bf16(uniform(state, -8.0f, 8.0f));
        memcpy(block, &h, 2);
        break;
    }
    case TENSOR_Q4_1:
    case TENSOR_Q5_1:
        put_f16(block, d);
        put_f16(block + 2, m);
        break;
    case TENSOR_Q4_K:
    case TENSOR_Q5_K:
        put_f16(block, d * 0.1f);
        put_f16(block + 2, m * 0.05f);
        break;
    case TENSOR_Q6_K: put_f16(block + 208, d * 0.1f); break;
    case TENSOR_F8:
        memcpy(block, &d, 4);
        for (int i = 4; i < 132; i++)
            if ((block[i] & 0x7f) == 0x7f) block[i] ^= 1; /* not NaN */
        break;
    default: put_f16(block, d); break;
    }
}

static void fixture_make(struct fixture *f, enum tensor_type type, enum numerics numerics, uint32_t N, uint32_t K,
                         enum fill fill)
{
    const struct tensor_type_info *info = tensor_type_info(type);
    uint64_t state = seed + (uint64_t)type * 1000 + N + K;
    f->row_bytes = tensor_row_bytes(info, K);
    const size_t file_bytes = N * f->row_bytes, pages = (file_bytes + 4095) / 4096;
    f->map_bytes = (pages + 1) * 4096;
    f->map = mmap(NULL, f->map_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    assert_true(f->map != MAP_FAILED);
    assert_int_equal(mprotect((uint8_t *)f->map + pages * 4096, 4096, PROT_NONE), 0);
    f->file = (uint8_t *)f->map + pages * 4096 - file_bytes;
    for (size_t i = 0; i < file_bytes; i++) {
        const uint64_t r = random_next(&state);
        f->file[i] = fill == FILL_RANDOM ? (uint8_t)r : r & 1 ? 0xff : 0;
    }
    for (uint8_t *block = f->file; block < f->file + file_bytes; block += info->block_bytes)
        block_scales(type, block, &state);
    assert_int_equal(matmul_plan(type, numerics, CPU_PATH_SCALAR, N, K, &f->matrix), ST_OK);
    assert_int_equal(f->matrix.panel_bytes % 64, 0);
    f->matrix.data = mem_alloc(f->matrix.panels, f->matrix.panel_bytes);
    assert_non_null(f->matrix.data);
    memset(f->matrix.data, 0xff, f->matrix.panels * f->matrix.panel_bytes); /* scales would be NaN */
    const uint32_t middle = f->matrix.panels / 2;
    const size_t panel_rows_bytes = MATMUL_PANEL_ROWS * tensor_row_bytes(info, K);
    matmul_pack(&f->matrix, f->file + middle * panel_rows_bytes, middle, f->matrix.panels);
    matmul_pack(&f->matrix, f->file, 0, middle);
}

static void fixture_free(struct fixture *f)
{
    mem_free(f->matrix.data);
    munmap(f->map, f->map_bytes);
}

/* Inputs that a type allows: odd shapes, and K that is not a multiple of 64 where blocks allow. */
static uint32_t shape_of(enum tensor_type type, unsigned i, uint32_t *K)
{
    static const uint32_t N[3] = {37, 16, 5}, K_of[3][3] = {{70, 64, 1}, {160, 64, 32}, {512, 256, 256}};
    const uint32_t items = tensor_type_info(type)->block_items;
    *K = K_of[items == 1 ? 0 : items == 32 ? 1 : 2][i];
    if (items == 128 && i) *K = 128;
    return N[i];
}

static void input_make(float *x, uint32_t M, uint32_t K, size_t stride_m, enum input input)
{
    uint64_t state = seed * 31 + M;
    for (uint32_t m = 0; m < M; m++)
        for (uint32_t k = 0; k < K; k++) {
            float v = uniform(&state, -1.0f, 1.0f);
            if (input == INPUT_MINUS_ONE) v = -1.0f;
            if (input == INPUT_OUTLIER && k == (m * 7) % K) v = 1000.0f;
            if (input == INPUT_ZERO_BLOCKS && (k / 32 + m) % 2) v = 0.0f;
            if (input == INPUT_DENORMAL) v *= m % 2 ? 0x1p-130f : 0x1p-119f;
            x[m * stride_m + k] = v;
        }
}

/* Prepares in two ranges and multiplies in three; out has canaries outside [0, N) of each row. */
static void run(enum cpu_path path, const struct fixture *f, const float *x, size_t stride_m, uint32_t M, float *out,
                size_t stride_out)
{
    const struct matrix *w = &f->matrix;
    const size_t act_bytes = matmul_act_bytes(w->act, M, w->K);
    uint8_t *act = mem_alloc(act_bytes + 64, 1);
    const uint32_t a = w->panels / 3, b = w->panels / 2;
    assert_int_equal(act_bytes % 64, 0);
    memset(act, CANARY, act_bytes + 64);
    assert_true(matmul_prepare(path, w->act, x, stride_m, M, w->K, M / 2, M, act));
    assert_true(matmul_prepare(path, w->act, x, stride_m, M, w->K, 0, M / 2, act));
    for (size_t i = act_bytes; i < act_bytes + 64; i++) assert_int_equal(act[i], CANARY);
    matmul(path, w, b, w->panels, act, M, out, stride_out);
    matmul(path, w, 0, a, act, M, out, stride_out);
    matmul(path, w, a, b, act, M, out, stride_out);
    matmul(path, w, a, a, act, M, out, stride_out);
    mem_free(act);
}

/* M rows and one more, stride wider than N. */
static float *out_make(uint32_t M, size_t stride)
{
    float *out = mem_alloc((M + 1) * stride, sizeof *out);
    assert_non_null(out);
    memset(out, CANARY, (M + 1) * stride * sizeof *out);
    return out;
}

static void canaries_check(const float *out, uint32_t M, uint32_t N, size_t stride)
{
    float canary;
    memset(&canary, CANARY, sizeof canary);
    for (uint32_t m = 0; m <= M; m++)
        for (size_t n = m < M ? N : 0; n < stride; n++)
            assert_memory_equal(&out[m * stride + n], &canary, sizeof canary);
}

static double bound_of(const struct matrix *w, const float *x, const float *row)
{
    double bound = 0, absolute = 0, amax_row = 0;
    for (uint32_t k0 = 0; k0 < w->K; k0 += 32) {
        double amax = 0, weights = 0;
        for (uint32_t k = k0; k < k0 + 32 && k < w->K; k++) {
            amax = fmax(amax, fabs((double)x[k]));
            weights += fabs((double)row[k]);
            absolute += fabs((double)row[k] * x[k]);
        }
        bound += amax / 127 * 0.50001 * weights + 1e-36 * weights;
        amax_row = fmax(amax_row, amax);
    }
    if (w->act == ACT_F32) return absolute * (w->K + 1) * 0x1p-24 * 1.01 + w->K * 0x1p-149;
    if (w->act == ACT_BF16) return absolute * (0x1p-8 + (w->K + 1) * 0x1.02p-24) + w->K * VALUE_MAX * 0x1p-125;
    return bound + amax_row * VALUE_MAX * w->K * (w->K / 16 + 8) * 0x1p-24;
}

static void check_meaning(const struct fixture *f, const float *x, size_t stride_m, uint32_t M, const float *out,
                          size_t stride_out)
{
    const struct matrix *w = &f->matrix;
    double *meaning = mem_alloc((size_t)M * w->N + 1, sizeof *meaning);
    float *row = mem_alloc(w->K, sizeof *row);
    matmul_meaning(w, x, stride_m, M, meaning);
    for (uint32_t n = 0; n < w->N; n++) {
        dequantize_row(w->type, f->file + n * f->row_bytes, row, w->K);
        for (uint32_t m = 0; m < M; m++) {
            double sum = 0;
            for (uint32_t k = 0; k < w->K; k++) sum += (double)x[m * stride_m + k] * row[k];
            assert_true(sum == meaning[(size_t)m * w->N + n]);
            const double got = out[m * stride_out + n], bound = bound_of(w, x + m * stride_m, row);
            if (!(fabs(got - sum) <= bound)) {
                print_error("type %s act %d n %u m %u: got %.9g, meant %.9g, bound %.3g\n",
                            tensor_type_info(w->type)->name, w->act, n, m, got, sum, bound);
                fail();
            }
        }
    }
    mem_free(row);
    mem_free(meaning);
}

/* Prepared activations are the same bytes on every path. */
static void check_act(const struct fixture *f, const float *x, size_t stride_m, uint32_t M)
{
    const struct matrix *w = &f->matrix;
    const size_t bytes = matmul_act_bytes(w->act, M, w->K);
    uint8_t *want = mem_alloc(bytes + 1, 1), *got = mem_alloc(bytes + 1, 1);
    assert_true(matmul_prepare(CPU_PATH_SCALAR, w->act, x, stride_m, M, w->K, 0, M, want));
    for (enum cpu_path path = CPU_PATH_AVX2; path < CPU_PATH_COUNT; path++) {
        if (!cpu_path_supported(path)) continue;
        assert_true(matmul_prepare(path, w->act, x, stride_m, M, w->K, 0, M, got));
        assert_memory_equal(got, want, bytes + 1);
    }
    mem_free(want);
    mem_free(got);
}

/* The AVX-VNNI tile in its other encoding, against the scalar results: whole panels at once, then a part-full one.
 * (ACT_BF16 is not its work.) */
static void check_avxvnni_evex(const struct fixture *f, const float *x, size_t stride_m, uint32_t M,
                               const float *scalar, size_t stride_scalar)
{
    const struct matrix *w = &f->matrix;
    const uint32_t whole = w->N / 16, left = w->N % 16;
    if (!M || M > MATMUL_TILE_ROWS || w->act == ACT_BF16 || !cpu_path_supported(CPU_PATH_AVX512)) return;
    float *out = out_make(M, 16 * w->panels);
    uint8_t *act = mem_alloc(matmul_act_bytes(w->act, M, w->K), 1);
    assert_true(matmul_prepare(CPU_PATH_AVXVNNI, w->act, x, stride_m, M, w->K, 0, M, act));
    if (whole) matmul_tile_avxvnni_evex(w, w->data, whole, act, M, out, 16 * w->panels);
    if (left)
        matmul_tile_avxvnni_evex(w, w->data + whole * w->panel_bytes, 1, act, M, out + 16 * whole, 16 * w->panels);
    for (uint32_t m = 0; m < M; m++)
        if (memcmp(out + (size_t)m * 16 * w->panels, scalar + m * stride_scalar, w->N * sizeof *out) != 0)
            fail_msg("type %s act %d N %u K %u M %u row %u: differs from scalar", tensor_type_info(w->type)->name,
                     w->act, w->N, w->K, M, m);
    canaries_check(out, M, 16 * w->panels, 16 * w->panels);
    mem_free(out);
    mem_free(act);
}

static void check_case(const struct fixture *f, uint32_t M, enum input input)
{
    const struct matrix *w = &f->matrix;
    const size_t stride_m = w->K + 3, stride_out = w->N + 5;
    float *x = mem_alloc(M * stride_m + 1, sizeof *x), *scalar = out_make(M, stride_out);
    input_make(x, M, w->K, stride_m, input);
    run(CPU_PATH_SCALAR, f, x, stride_m, M, scalar, stride_out);
    canaries_check(scalar, M, w->N, stride_out);
    check_act(f, x, stride_m, M);
    check_meaning(f, x, stride_m, M, scalar, stride_out);
    for (enum cpu_path path = CPU_PATH_AVX2; path < CPU_PATH_COUNT; path++) {
        if (!cpu_path_supported(path)) continue;
        float *out = out_make(M, stride_out);
        run(path, f, x, stride_m, M, out, stride_out);
        if (memcmp(out, scalar, (M + 1) * stride_out * sizeof *out) != 0) {
            print_error("type %s act %d N %u K %u M %u input %d: %s differs from scalar\n",
                        tensor_type_info(w->type)->name, w->act, w->N, w->K, M, input, cpu_path_name(path));
            fail();
        }
        mem_free(out);
    }
    check_avxvnni_evex(f, x, stride_m, M, scalar, stride_out);
    mem_free(scalar);
    mem_free(x);
}

static void check_all(enum numerics numerics)
{
    for (size_t t = 0; t < COUNT(types); t++)
        for (unsigned shape = 0; shape < 3; shape++)
            for (enum fill fill = 0; fill < FILL_COUNT; fill++) {
                uint32_t K;
                const uint32_t N = shape_of(types[t], shape, &K);
                struct fixture f;
                fixture_make(&f, types[t], numerics, N, K, fill);
                for (size_t i = 0; i < COUNT(row_counts); i++)
                    for (enum input input = 0; input < INPUT_COUNT; input++)
                        if (FEWER && shape != 2 && (fill != FILL_RANDOM || input != INPUT_RANDOM))
                            continue;
                        else if (input == INPUT_RANDOM || row_counts[i] < 6 || row_counts[i] == 16 ||
                                 row_counts[i] == 23)
                            check_case(&f, row_counts[i], input);
                fixture_free(&f);
            }
}

static void test_matmul_fast_paths_equal_scalar(void **state)
{
    (void)state;
    check_all(NUMERICS_FAST);
}

static void test_matmul_exact_paths_equal_scalar(void **state)
{
    (void)state;
    check_all(NUMERICS_EXACT);
}

/* Two passes of 256 rows, on the smallest shape: the scalar path is slow. */
static void test_matmul_512_rows(void **state)
{
    (void)state;
    for (size_t t = 0; t < COUNT(types); t++)
        for (enum numerics numerics = NUMERICS_FAST; numerics <= NUMERICS_EXACT; numerics++) {
            uint32_t K;
            const uint32_t N = shape_of(types[t], 2, &K);
            struct fixture f;
            fixture_make(&f, types[t], numerics, N, K, FILL_RANDOM);
            check_case(&f, 512, INPUT_RANDOM);
            fixture_free(&f);
        }
}

static void test_matmul_unpack_equals_dequantize(void **state)
{
    (void)state;
    for (size_t t = 0; t < COUNT(types); t++)
        for (unsigned i = 0; i < 6; i++) {
            uint32_t K;
            const uint32_t N = shape_of(types[t], i / 2, &K);
            struct fixture f;
            fixture_make(&f, types[t], NUMERICS_FAST, N, K, i % 2 ? FILL_ENDS : FILL_RANDOM);
            float *want = mem_alloc(K, sizeof *want), *got = mem_alloc(K, sizeof *got);
            for (uint32_t n = 0; n < N; n++) {
                dequantize_row(types[t], f.file + n * f.row_bytes, want, K);
                matmul_unpack_row(&f.matrix, n, got);
                assert_memory_equal(got, want, K * sizeof *got);
            }
            mem_free(want);
            mem_free(got);
            fixture_free(&f);
        }
}

/* A row's bits are the same alone and anywhere in a batch, above and below a tile and above 256 rows. */
static void test_matmul_row_does_not_depend_on_batch(void **state)
{
    (void)state;
    for (size_t t = 0; t < COUNT(types); t++)
        for (enum numerics numerics = NUMERICS_FAST; numerics <= NUMERICS_EXACT; numerics++) {
            uint32_t K;
            const uint32_t N = shape_of(types[t], 0, &K);
            const enum cpu_path path = cpu_path_best();
            struct fixture f;
            fixture_make(&f, types[t], numerics, N, K, FILL_RANDOM);
            float *x = mem_alloc((size_t)ROWS_MAX * K, sizeof *x), *all = out_make(ROWS_MAX, N);
            input_make(x, ROWS_MAX, K, K, INPUT_RANDOM);
            run(path, &f, x, K, ROWS_MAX, all, N);
            for (uint32_t m = 0; m < ROWS_MAX; m += 13) {
                const uint32_t M = 1 + m % 19 < ROWS_MAX - m ? 1 + m % 19 : ROWS_MAX - m;
                float *some = out_make(M, N);
                run(path, &f, x + (size_t)m * K, K, M, some, N);
                assert_memory_equal(some, all + (size_t)m * N, M * N * sizeof *some);
                mem_free(some);
            }
            mem_free(x);
            mem_free(all);
            fixture_free(&f);
        }
}

/* Every range of panels writes its columns, the same bits as the whole, and nothing else. */
static void test_matmul_range_writes_its_columns(void **state)
{
    (void)state;
    static const uint32_t Ms[] = {1, 16, 21};
    for (size_t t = 0; t < COUNT(types); t++)
        for (enum cpu_path path = CPU_PATH_SCALAR; path < CPU_PATH_COUNT; path++) {
            if (!cpu_path_supported(path)) continue;
            uint32_t K;
            const uint32_t N = shape_of(types[t], 0, &K), stride = N + 9;
            struct fixture f;
            fixture_make(&f, types[t], NUMERICS_FAST, N, K, FILL_RANDOM);
            for (size_t i = 0; i < COUNT(Ms); i++) {
                const uint32_t M = Ms[i];
                float *x = mem_alloc((size_t)M * K, sizeof *x), *whole = out_make(M, stride);
                uint8_t *act = mem_alloc(matmul_act_bytes(f.matrix.act, M, K), 1);
                input_make(x, M, K, K, INPUT_RANDOM);
                run(path, &f, x, K, M, whole, stride);
                assert_true(matmul_prepare(path, f.matrix.act, x, K, M, K, 0, M, act));
                for (uint32_t range = 0; range < 16; range++) {
                    const uint32_t begin = range / 4, end = range % 4;
                    if (begin > end) continue;
                    float *got = out_make(M, stride), *want = out_make(M, stride);
                    const uint32_t first = 16 * begin, last = 16 * end < N ? 16 * end : N;
                    for (uint32_t m = 0; m < M && first < last; m++)
                        memcpy(want + m * stride + first, whole + m * stride + first, (last - first) * sizeof *want);
                    matmul(path, &f.matrix, begin, end, act, M, got, stride);
                    assert_memory_equal(got, want, (M + 1) * stride * sizeof *want);
                    mem_free(got);
                    mem_free(want);
                }
                mem_free(x);
                mem_free(whole);
                mem_free(act);
            }
            fixture_free(&f);
        }
}

static void test_matmul_bad_row_leaves_others(void **state)
{
    (void)state;
    static const float bad[] = {NAN, INFINITY, -INFINITY, -NAN};
    for (size_t t = 0; t < COUNT(types); t++)
        for (enum numerics numerics = NUMERICS_FAST; numerics <= NUMERICS_EXACT; numerics++) {
            uint32_t K;
            const uint32_t N = shape_of(types[t], 0, &K), M = 19;
            struct fixture f;
            fixture_make(&f, types[t], numerics, N, K, FILL_RANDOM);
            float *x = mem_alloc((size_t)M * K, sizeof *x), *want = out_make(M, N), *got = out_make(M, N);
            uint8_t *act = mem_alloc(matmul_act_bytes(f.matrix.act, M, K), 1);
            input_make(x, M, K, K, INPUT_RANDOM);
            for (enum cpu_path path = CPU_PATH_SCALAR; path < CPU_PATH_COUNT; path++) {
                if (!cpu_path_supported(path)) continue;
                run(path, &f, x, K, M, want, N);
                for (uint32_t i = 0; i < 8; i++) {
                    const uint32_t m = i * 5 % M, k = i % 2 ? K - 1 : i * 3 % K;
                    const float saved = x[(size_t)m * K + k];
                    x[(size_t)m * K + k] = bad[i % 4];
                    assert_false(matmul_prepare(path, f.matrix.act, x, K, M, K, 0, M, act));
                    x[(size_t)m * K + k] = saved;
                    matmul(path, &f.matrix, 0, f.matrix.panels, act, M, got, N);
                    for (uint32_t r = 0; r < M; r++) {
                        if (r != m) assert_memory_equal(got + (size_t)r * N, want + (size_t)r * N, N * sizeof *got);
                        for (uint32_t n = 0; r == m && n < N; n++) assert_true(got[(size_t)r * N + n] == 0);
                    }
                }
            }
            mem_free(x);
            mem_free(want);
            mem_free(got);
            mem_free(act);
            fixture_free(&f);
        }
}

static void test_matmul_plan_refuses_bad_shapes(void **state)
{
    (void)state;
    struct matrix matrix = {.N = 77};
    assert_int_equal(matmul_plan(TENSOR_Q4_1, NUMERICS_FAST, CPU_PATH_SCALAR, 16, 33, &matrix), ST_INVAL);
    assert_int_equal(matmul_plan(TENSOR_Q4_K, NUMERICS_FAST, CPU_PATH_SCALAR, 16, 128, &matrix), ST_INVAL);
    assert_int_equal(matmul_plan(TENSOR_F32, NUMERICS_FAST, CPU_PATH_SCALAR, 16, 0, &matrix), ST_INVAL);
    assert_int_equal(matmul_plan(TENSOR_F32, NUMERICS_FAST, CPU_PATH_SCALAR, 0, 16, &matrix), ST_INVAL);
    assert_int_equal(matmul_plan((enum tensor_type)99, NUMERICS_FAST, CPU_PATH_SCALAR, 16, 32, &matrix), ST_INVAL);
    assert_int_equal(matmul_plan(TENSOR_F32, NUMERICS_FAST, CPU_PATH_SCALAR, UINT32_MAX, 1, &matrix), ST_INVAL);
    assert_int_equal(matrix.N, 77); /* written on success only */
    assert_int_equal(matmul_plan(TENSOR_Q4_1, NUMERICS_EXACT, CPU_PATH_SCALAR, 17, 32, &matrix), ST_OK);
    assert_int_equal(matrix.act, ACT_F32);
    assert_int_equal(matrix.panels, 2);
    assert_null(matrix.data);
}

int main(int argc, char **argv)
{
    if (argc > 1) seed = strtoull(argv[1], NULL, 0);
    printf("seed %llu\n", (unsigned long long)seed);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_matmul_unpack_equals_dequantize),
        cmocka_unit_test(test_matmul_fast_paths_equal_scalar),
        cmocka_unit_test(test_matmul_exact_paths_equal_scalar),
        cmocka_unit_test(test_matmul_512_rows),
        cmocka_unit_test(test_matmul_row_does_not_depend_on_batch),
        cmocka_unit_test(test_matmul_range_writes_its_columns),
        cmocka_unit_test(test_matmul_bad_row_leaves_others),
        cmocka_unit_test(test_matmul_plan_refuses_bad_shapes),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
