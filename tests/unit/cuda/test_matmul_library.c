/* Matmuls by cuBLASLt, which is the emulator's: results against sums in double, weights unpacked by panels; the
 * algorithm that a clock of ours calls fastest is taken, kept in a file and found again; refusals. */
#include "tests/unit/cuda/weights.h"

#include "runtime/device/cuda/matmul_choice.h"
#include "runtime/device/cuda/matmul_library.h"

#include <unistd.h>

static uint64_t seed = 20261126;

/* The emulator's functions under the library's names. */
#define DECLARE(name, symbol, result, parameters) extern result symbol parameters;
CUBLASLT_MAP(DECLARE)
#define MEMBER(name, symbol, result, parameters) .name = symbol,

/* A table between us and the library: counts what is open, offers several algorithms, records which one runs. */
static struct {
    int open, refuse_create, refuse_matmul, refuse_heuristic;
    unsigned runs;
    uint64_t last; /* mark of the algorithm that ran */
} spy;

static int spy_desc_create(struct cublaslt_desc **desc, int compute, int scale)
{
    spy.open++;
    return cublasLtMatmulDescCreate(desc, compute, scale);
}
static int spy_desc_destroy(struct cublaslt_desc *desc)
{
    spy.open--;
    return cublasLtMatmulDescDestroy(desc);
}
static int spy_layout_create(struct cublaslt_layout **layout, int type, uint64_t rows, uint64_t cols, int64_t ld)
{
    spy.open++;
    return cublasLtMatrixLayoutCreate(layout, type, rows, cols, ld);
}
static int spy_layout_destroy(struct cublaslt_layout *layout)
{
    spy.open--;
    return cublasLtMatrixLayoutDestroy(layout);
}
static int spy_preference_create(struct cublaslt_preference **preference)
{
    spy.open++;
    return cublasLtMatmulPreferenceCreate(preference);
}
static int spy_preference_destroy(struct cublaslt_preference *preference)
{
    spy.open--;
    return cublasLtMatmulPreferenceDestroy(preference);
}
static int spy_create(struct cublaslt_handle **handle)
{
    if (spy.refuse_create) return spy.refuse_create;
    spy.open++;
    return cublasLtCreate(handle);
}
static int spy_destroy(struct cublaslt_handle *handle)
{
    spy.open--;
    return cublasLtDestroy(handle);
}

/* Marks in the algorithm's bytes: 1 is invalid, 2 needs more workspace than there is, 3 does not run, 4 is slow, 5 is
 * fast, 6 slow. */
enum { INVALID = 1, GREEDY, BROKEN, SLOW, FAST, ALSO_SLOW, MARKS };
static int spy_heuristic(struct cublaslt_handle *handle, struct cublaslt_desc *desc, struct cublaslt_layout *a,
                         struct cublaslt_layout *b, struct cublaslt_layout *c, struct cublaslt_layout *d,
                         struct cublaslt_preference *preference, int wanted, struct cublaslt_heuristic *results,
                         int *found)
{
    struct cublaslt_heuristic one;
    int status = cublasLtMatmulAlgoGetHeuristic(handle, desc, a, b, c, d, preference, 1, &one, found);
    if (status || spy.refuse_heuristic) return status ? status : spy.refuse_heuristic;
    *found = wanted < MARKS - 1 ? wanted : MARKS - 1;
    for (int i = 0; i < *found; i++) {
        results[i] = one;
        results[i].algo.data[7] = (uint64_t)(wanted == 1 ? SLOW : i + 1);
        if (results[i].algo.data[7] == INVALID) results[i].state = 15;
        results[i].workspace_bytes = results[i].algo.data[7] == GREEDY ? (size_t)MATMUL_WORKSPACE_BYTES + 1 : 256;
    }
    return 0;
}
static int spy_matmul(struct cublaslt_handle *handle, struct cublaslt_desc *desc, const void *alpha, const void *a,
                      struct cublaslt_layout *a_layout, const void *b, struct cublaslt_layout *b_layout,
                      const void *beta, const void *c, struct cublaslt_layout *c_layout, void *d,
                      struct cublaslt_layout *d_layout, const struct cublaslt_algo *algo, void *workspace,
                      size_t workspace_bytes, cudaStream_t stream)
{
    spy.runs++;
    spy.last = algo->data[7];
    assert_true(spy.last == SLOW || spy.last == FAST || spy.last == ALSO_SLOW || spy.last == BROKEN);
    if (spy.refuse_matmul) return spy.refuse_matmul;
    return cublasLtMatmul(handle, desc, alpha, a, a_layout, b, b_layout, beta, c, c_layout, d, d_layout, algo,
                          workspace, workspace_bytes, stream);
}

static const struct cublaslt_table *spied(void)
{
    static struct cublaslt_table table;
    table = (struct cublaslt_table){CUBLASLT_MAP(MEMBER)};
    table.create = spy_create;
    table.destroy = spy_destroy;
    table.desc_create = spy_desc_create;
    table.desc_destroy = spy_desc_destroy;
    table.layout_create = spy_layout_create;
    table.layout_destroy = spy_layout_destroy;
    table.preference_create = spy_preference_create;
    table.preference_destroy = spy_preference_destroy;
    table.heuristic = spy_heuristic;
    table.matmul = spy_matmul;
    memset(&spy, 0, sizeof spy);
    return &table;
}

/* Our clock. */
static uint64_t time_of(void *state, cudaError_t (*run)(void *product), void *product, uint32_t runs,
                        cudaStream_t stream)
{
    (*(unsigned *)state)++;
    assert_true(runs > 0);
    assert_int_equal(run(product), spy.refuse_matmul ? cudaErrorNotSupported : cudaSuccess);
    cuda_ok(cudaStreamSynchronize(stream));
    if (spy.refuse_matmul || spy.last == BROKEN) return UINT64_MAX;
    return spy.last == FAST ? 1000 : 2000 + spy.last;
}

struct fixture {
    struct matmul_library *library;
    struct matmul_space space;
    unsigned timed;
    char file[64];
};

static void library_open(struct fixture *f, int driver)
{
    struct error err;
    const struct matmul_library_config config = {
        .table = spied(), .gpu = "a GPU", .driver = driver, .file = f->file, .time = time_of, .time_state = &f->timed};
    assert_int_equal(matmul_library_create(&config, &f->library, &err), ST_OK);
    matmul_library_set_space(f->library, &f->space);
    f->timed = 0;
}
static void library_close(struct fixture *f)
{
    matmul_library_destroy(f->library);
    assert_int_equal(spy.open, 0);
}

static int setup(void **state)
{
    struct fixture *const f = mem_alloc(1, sizeof *f);
    memset(f, 0, sizeof *f);
    (void)snprintf(f->file, sizeof f->file, "/tmp/matmul-choice-%d", (int)getpid());
    f->space = (struct matmul_space){device_take(4096), 4096, device_take(48 << 10), 48 << 10};
    f->space.workspace_bytes = MATMUL_WORKSPACE_BYTES; /* the emulator's does not use it */
    *state = f;
    return 0;
}
static int teardown(void **state)
{
    struct fixture *const f = *state;
    (void)unlink(f->file);
    cuda_ok(cudaFree(f->space.workspace));
    cuda_ok(cudaFree(f->space.panel));
    mem_free(f);
    return 0;
}

static void check_product(struct fixture *f, const struct test_weight *w, uint32_t M, bool y_f32, uint32_t stride)
{
    const uint32_t N = w->weight.N, K = w->weight.K, row = stride ? stride : N;
    const size_t item = y_f32 ? 4 : 2;
    uint16_t *const x = mem_alloc((size_t)M * K, sizeof *x);
    uint8_t *const y = mem_alloc((size_t)M * row, item);
    for (size_t i = 0; i < (size_t)M * K; i++) x[i] = bf16_of(random_within(&seed, -2, 2));
    void *const device_x = device_copy(x, (size_t)M * K * 2), *const device_y = device_take(M * row * item);
    const struct cuda_matmul matmul = {
        .weight = &w->weight, .x = device_x, .y = device_y, .y_stride = stride, .y_f32 = y_f32};
    for (int turn = 0; turn < 2; turn++) {
        device_poison(device_y, M * row * item);
        cuda_ok(matmul_library_multiply(f->library, &matmul, M, device_stream()));
        device_wait();
    }
    device_read(y, device_y, M * row * item);
    for (uint32_t m = 0; m < M; m++) {
        for (uint32_t n = 0; n < N; n++) {
            double wanted = w->bias ? bf16_value(w->bias[n]) : 0, magnitude = fabs(wanted);
            for (uint32_t k = 0; k < K; k++) {
                const double product =
                    bf16_value(bf16_of(w->values[(size_t)n * K + k])) * bf16_value(x[(size_t)m * K + k]);
                wanted += product;
                magnitude += fabs(product);
            }
            const size_t at = (size_t)m * row + n;
            const double slack = magnitude * (K + 8) * 0x1p-24;
            if (!y_f32) expect_bf16(((uint16_t *)y)[at], wanted, slack, "y", m, n);
            if (y_f32 && !(fabs((double)((float *)y)[at] - wanted) <= slack))
                fail_msg("type %d: y[%u][%u] is %.9g, wanted %.9g", w->file_type, m, n, (double)((float *)y)[at],
                         wanted);
        }
        expect_poison(y + ((size_t)m * row + N) * item, (row - N) * item, "beside y");
    }
    mem_free(x);
    mem_free(y);
    cuda_ok(cudaFree(device_x));
    cuda_ok(cudaFree(device_y));
}

#define X(name, id, items, bytes) TENSOR_##name,
static const enum tensor_type types[] = {TENSOR_TYPE_MAP(X)};
#undef X

static void test_products_of_every_type(void **state)
{
    struct fixture *const f = *state;
    library_open(f, 1);
    for (unsigned i = 0; i < sizeof types / sizeof *types; i++) {
        struct test_weight w; /* panels of 96 rows: three, the last of 16 */
        test_weight_make(&w, types[i], cuda_type_of(types[i]), 208, 256, i % 2, &seed);
        check_product(f, &w, 33, true, 0);
        test_weight_bias(&w, &seed);
        check_product(f, &w, 17, false, i % 3 ? 0 : 240);
        test_weight_free(&w);
    }
    assert_int_equal(f->timed, 0); /* nothing is measured within a step */
    library_close(f);
}

static void prepare(struct fixture *f, const struct cuda_weight *weight, uint32_t M_max, enum status wanted)
{
    struct error err;
    void *const x = device_take((size_t)M_max * weight->K * 2), *const y = device_take((size_t)M_max * weight->N * 2);
    assert_int_equal(matmul_library_prepare(f->library, weight, false, 17, M_max, x, y, device_stream(), &err), wanted);
    device_wait();
    cuda_ok(cudaFree(x));
    cuda_ok(cudaFree(y));
}

static void test_the_fastest_is_taken_and_kept(void **state)
{
    struct fixture *const f = *state;
    struct error err;
    struct test_weight w;
    test_weight_make(&w, TENSOR_Q4_1, CUDA_TYPE_Q4_1, 200, 256, false, &seed);
    library_open(f, 1);
    prepare(f, &w.weight, 100, ST_OK); /* buckets 24, 32, 48, 64, 96, 128 of panels of 96 and 8 rows */
    assert_int_equal(matmul_library_measured(f->library), 12);
    assert_int_equal(f->timed, 12 * 4);
    prepare(f, &w.weight, 100, ST_OK);
    assert_int_equal(matmul_library_measured(f->library), 12);
    static const uint32_t counts[] = {17, 40, 96, 100};
    for (int i = 0; i < 4; i++) {
        spy.runs = 0;
        check_product(f, &w, counts[i], false, 0);
        assert_int_equal(spy.runs, 6); /* three panels, twice */
        assert_int_equal(spy.last, FAST);
    }
    assert_int_equal(matmul_library_save(f->library, &err), ST_OK);
    library_close(f);

    library_open(f, 1); /* found again: nothing to measure */
    prepare(f, &w.weight, 100, ST_OK);
    assert_int_equal(f->timed, 0);
    check_product(f, &w, 50, false, 0);
    assert_int_equal(spy.last, FAST);
    library_close(f);

    library_open(f, 2); /* another driver: measured again */
    prepare(f, &w.weight, 100, ST_OK);
    assert_int_equal(matmul_library_measured(f->library), 12);
    library_close(f);

    FILE *const file = fopen(f->file, "r+"); /* a damaged line: measured again */
    assert_non_null(file);
    assert_int_equal(fseek(file, 130, SEEK_SET), 0);
    assert_true(fputs("~~~~", file) >= 0);
    assert_int_equal(fclose(file), 0);
    library_open(f, 1);
    prepare(f, &w.weight, 100, ST_OK);
    assert_int_equal(matmul_library_measured(f->library), 1);
    library_close(f);
    test_weight_free(&w);
}

/* More products in turn than there are plans: each is made again, none is left behind. */
static void test_plans_come_and_go(void **state)
{
    struct fixture *const f = *state;
    struct test_weight w;
    test_weight_make(&w, TENSOR_BF16, CUDA_TYPE_BF16, 16, 64, false, &seed);
    library_open(f, 1);
    for (uint32_t M = 1; M < 50; M++) check_product(f, &w, M % 25 + 1, M % 2, 0);
    assert_true(spy.open < 16 * 4 + 3);
    library_close(f);
    test_weight_free(&w);
}

static void test_refusals(void **state)
{
    struct fixture *const f = *state;
    struct error err;
    struct test_weight w;
    test_weight_make(&w, TENSOR_BF16, CUDA_TYPE_BF16, 24, 64, false, &seed);
    library_open(f, 1);
    struct cuda_matmul m = {.weight = &w.weight};
    assert_int_equal(matmul_library_multiply(f->library, &m, 0, device_stream()), cudaSuccess);
    spy.refuse_matmul = 13;
    prepare(f, &w.weight, 20, ST_DEVICE);
    assert_int_equal(matmul_library_multiply(f->library, &m, 20, device_stream()), cudaErrorNotSupported);
    assert_int_equal(matmul_library_status(f->library), 13);
    spy.refuse_matmul = 0;
    spy.refuse_heuristic = 15;
    assert_int_equal(matmul_library_multiply(f->library, &m, 21, device_stream()), cudaErrorNotSupported);
    assert_int_equal(matmul_library_status(f->library), 15);
    spy.refuse_heuristic = 0;

    assert_true(matmul_library_takes(f->library, &w.weight, true));
    struct cuda_weight other = w.weight;
    uint16_t bias;
    other.bias = &bias;
    assert_true(matmul_library_takes(f->library, &other, false));
    assert_false(matmul_library_takes(f->library, &other, true)); /* a bias in f32 */
    other = w.weight;
    other.N = 25;
    assert_false(matmul_library_takes(f->library, &other, false));
    other = (struct cuda_weight){.type = CUDA_TYPE_Q4_0, .N = 64, .K = 8192};
    assert_false(matmul_library_takes(f->library, &other, false)); /* 16 rows are 256 KB */
    m.weight = &other;
    assert_int_equal(matmul_library_multiply(f->library, &m, 20, device_stream()), cudaErrorNotSupported);
    library_close(f);
    test_weight_free(&w);

    struct matmul_library *none = NULL;
    struct matmul_library_config config = {.table = spied(), .gpu = ""};
    spy.refuse_create = 1; /* not initialised */
    assert_int_equal(matmul_library_create(&config, &none, &err), ST_DEVICE);
    spy.refuse_create = 3; /* no memory */
    assert_int_equal(matmul_library_create(&config, &none, &err), ST_NOMEM);
    assert_int_equal(spy.open, 0);
    assert_null(none);
    matmul_library_destroy(NULL);
}

/* Without a file of its own: one of this GPU and library in a folder, which is made with those above it. */
static void test_a_folder_keeps_a_file_a_gpu(void **state)
{
    struct fixture *const f = *state;
    struct error err;
    struct test_weight w;
    char base[64], below[96], folder[128], wanted[256], blocked[300];
    test_weight_make(&w, TENSOR_BF16, CUDA_TYPE_BF16, 16, 64, false, &seed);
    (void)snprintf(base, sizeof base, "/tmp/matmul-folder-%d", (int)getpid());
    (void)snprintf(below, sizeof below, "%s/new", base);
    (void)snprintf(folder, sizeof folder, "%s/millrace", below);
    (void)snprintf(wanted, sizeof wanted, "%s/matmul-GPU-80-GB--cublaslt-%zu.txt", folder, spied()->version());
    struct matmul_library_config config = {
        .table = spied(), .gpu = "GPU 80/GB!", .folder = folder, .time = time_of, .time_state = &f->timed};
    for (unsigned turn = 0; turn < 3;
         turn++) { /* nothing there; found again; another GPU of the same name in letters */
        f->timed = 0;
        if (turn == 2) config.gpu = "GPU 80.GB!";
        assert_int_equal(matmul_library_create(&config, &f->library, &err), ST_OK);
        matmul_library_set_space(f->library, &f->space);
        prepare(f, &w.weight, 20, ST_OK);
        assert_int_equal(matmul_library_measured(f->library), turn != 1);
        assert_int_equal(matmul_library_save(f->library, &err), ST_OK);
        assert_int_equal(access(wanted, R_OK), 0);
        library_close(f);
    }
    (void)snprintf(blocked, sizeof blocked, "%s/no-folder", wanted); /* below a file nothing can be made */
    config.folder = blocked;
    assert_int_equal(matmul_library_create(&config, &f->library, &err), ST_OK);
    matmul_library_set_space(f->library, &f->space);
    prepare(f, &w.weight, 20, ST_OK);
    assert_int_equal(matmul_library_save(f->library, &err), ST_IO);
    assert_non_null(strstr(err.message, "Not a directory"));
    check_product(f, &w, 20, false, 0);
    library_close(f);
    assert_int_equal(unlink(wanted), 0);
    assert_int_equal(rmdir(folder), 0); /* nothing else was left there */
    assert_int_equal(rmdir(below), 0);
    assert_int_equal(rmdir(base), 0);
    test_weight_free(&w);
}

/* Without a clock of ours, events of the stream measure. A file that cannot be written is an error and no more. */
static void test_events_measure_and_files_fail(void **state)
{
    struct fixture *const f = *state;
    struct error err;
    struct test_weight w;
    test_weight_make(&w, TENSOR_BF16, CUDA_TYPE_BF16, 16, 64, false, &seed);
    const struct matmul_library_config config = {.table = spied(), .gpu = "a GPU", .file = "/nowhere/at/all"};
    assert_int_equal(matmul_library_create(&config, &f->library, &err), ST_OK);
    matmul_library_set_space(f->library, &f->space);
    assert_int_equal(matmul_library_save(f->library, &err), ST_OK); /* nothing to keep */
    prepare(f, &w.weight, 20, ST_OK);
    assert_int_equal(matmul_library_measured(f->library), 1);
    assert_int_equal(matmul_library_save(f->library, &err), ST_IO);
    assert_non_null(strstr(err.message, "/nowhere/at/all: No such file"));
    check_product(f, &w, 20, false, 0);
    library_close(f);
    test_weight_free(&w);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_products_of_every_type, setup, teardown),
        cmocka_unit_test_setup_teardown(test_the_fastest_is_taken_and_kept, setup, teardown),
        cmocka_unit_test_setup_teardown(test_plans_come_and_go, setup, teardown),
        cmocka_unit_test_setup_teardown(test_refusals, setup, teardown),
        cmocka_unit_test_setup_teardown(test_a_folder_keeps_a_file_a_gpu, setup, teardown),
        cmocka_unit_test_setup_teardown(test_events_measure_and_files_fail, setup, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
