/* Matmuls of few tokens: results against sums in double, over odd shapes; a row's bits over M, and over both kernels.
 *
 * Bound of a sum of K products: each of the K + 8 f32 roundings costs 2^-24 of the sum of magnitudes. */
#include "tests/emulator/counters.h"
#include "tests/unit/cuda/weights.h"

static uint64_t seed = 20261123;

/* Sanitizers see the same code in fewer of its shapes: TSan takes forty times as long. So does each schedule. */
#if defined(__SANITIZE_THREAD__)
enum { TOKENS_MAX = 20 };
static unsigned each = 4, counts_each = 8;
#elif defined(__SANITIZE_ADDRESS__)
enum { TOKENS_MAX = 66 };
static unsigned each = 1, counts_each = 4;
#else
enum { TOKENS_MAX = 80 };
static unsigned each = 1, counts_each = 1;
#endif
enum { SMS = 4 };

static uint16_t *inputs(uint32_t M, uint32_t K)
{
    uint16_t *x = mem_alloc((size_t)M * K + 1, sizeof *x);
    for (size_t i = 0; i < (size_t)M * K; i++) x[i] = bf16_of(random_within(&seed, -2, 2));
    return x;
}

/* One for all, as on a device: poison but for the tickets, which every launch leaves at zero. */
static void *scratch(void)
{
    static void *at;
    if (at) return at;
    at = device_take(cuda_matmul_scratch_bytes(SMS));
    device_fill(at, 0, 256);
    return at;
}

static bool run_gelu;
typedef cudaError_t matmul_fn(const struct cuda_matmul *matmul, uint32_t M, uint32_t sms, cudaStream_t stream);

/* Device memory that is kept from call to call: every launch opens and closes all that was ever allocated. */
struct room {
    uint8_t *at;
    size_t bytes;
};
static uint8_t *room_of(struct room *room, size_t bytes)
{
    if (bytes <= room->bytes) return room->at;
    if (room->at) cuda_ok(cudaFree(room->at));
    room->at = device_take(bytes);
    room->bytes = bytes;
    return room->at;
}

/* y (M, N) f32 or bf16 as it comes from the device, of two launches one after the other, which must agree. Nothing is
 * written beyond it, nor between its rows. */
static void run(matmul_fn *fn, const struct test_weight *w, const uint16_t *x, uint32_t M, bool y_f32, uint32_t stride,
                void *y)
{
    static struct room x_room, y_room;
    enum { BEYOND = 1024 };
    const uint32_t width = w->weight.alternating ? w->weight.N / 2 : w->weight.N;
    const size_t item = y_f32 ? 4 : 2, row = (stride ? stride : width) * item, bytes = row * M;
    uint8_t *const device_x = room_of(&x_room, (size_t)M * w->weight.K * 2);
    uint8_t *const device_y = room_of(&y_room, bytes + BEYOND), *const first = mem_alloc(bytes + BEYOND, 1);
    struct cuda_matmul matmul = {.weight = &w->weight, .gelu = run_gelu, .x = (uint16_t *)device_x, .y = device_y};
    matmul.y_f32 = y_f32;
    matmul.y_stride = stride;
    matmul.scratch = scratch();
    device_write(device_x, x, (size_t)M * w->weight.K * 2);
    for (int i = 0; i < 2; i++) {
        device_poison(device_y, bytes + BEYOND);
        cuda_ok(fn(&matmul, M, SMS, device_stream()));
        device_wait();
        device_read(i ? y : first, device_y, i ? bytes : bytes + BEYOND);
    }
    assert_memory_equal(first, y, bytes);
    expect_poison(first + bytes, BEYOND, "beyond y");
    for (uint32_t m = 0; m < M && stride; m++)
        expect_poison(first + m * row + width * item, (stride - width) * item, "beside y");
    mem_free(first);
}

/* The sum for weight row n, its bias included, and the sum of its terms' magnitudes: of a code and of its minimum,
 * which are rounded apart, not of their difference. */
static double dot(const struct test_weight *w, const double *x, uint32_t n, double *magnitude)
{
    const uint32_t K = w->weight.K;
    const double *const values = w->values + (size_t)n * K;
    double sum = w->bias ? bf16_value(w->bias[n]) : 0;
    *magnitude = fabs(sum);
    for (uint32_t k = 0; k < K; k++) {
        sum += values[k] * x[k];
        *magnitude += (fabs(values[k]) + 2) * fabs(x[k]);
    }
    return sum;
}

/* y[i] of one token and how far a kernel may be from it. */
static double wanted_of(const struct test_weight *w, const double *x, uint32_t i, bool gelu, double *bound)
{
    const double ulps = (w->weight.K + 16) * 0x1p-24;
    double magnitude, up_magnitude;
    if (!w->weight.alternating) {
        const double sum = dot(w, x, i, &magnitude);
        *bound = ulps * magnitude;
        return sum;
    }
    const double gate = dot(w, x, i / 8 * 16 + i % 8, &magnitude);
    const double up = dot(w, x, i / 8 * 16 + 8 + i % 8, &up_magnitude);
    const double z = 0.79788456080286535588 * (gate + 0.044715 * gate * gate * gate);
    const double factor = gelu ? (1 + tanh(z)) / 2 : 1 / (1 + exp(-gate));
    *bound = ulps * (magnitude * fabs(up) * 1.2 + up_magnitude * fabs(gate)) + 1e-5 * fabs(gate * up) + 1e-30;
    return gate * factor * up;
}

static void expect_f32(const struct test_weight *w, const uint16_t *x, uint32_t M, bool gelu, const float *y)
{
    const uint32_t width = w->weight.alternating ? w->weight.N / 2 : w->weight.N;
    double *const values = mem_alloc(w->weight.K, sizeof *values);
    for (uint32_t m = 0; m < M; m++) {
        for (uint32_t k = 0; k < w->weight.K; k++) values[k] = bf16_value(x[(size_t)m * w->weight.K + k]);
        for (uint32_t i = 0; i < width; i++) {
            double bound, wanted = wanted_of(w, values, i, gelu, &bound);
            const double is = (double)y[(size_t)m * width + i];
            if (!(fabs(is - wanted) <= bound))
                fail_msg("type %d N %u K %u M %u: y[%u][%u] is %.9g, wanted %.9g within %g", w->file_type, w->weight.N,
                         w->weight.K, M, m, i, is, wanted, bound);
        }
    }
    mem_free(values);
}

/* All but those that become BF16 as well (test_repack.cu). */
static const enum tensor_type types[] = {TENSOR_BF16, TENSOR_F8,   TENSOR_Q4_0, TENSOR_Q4_1, TENSOR_Q4_K,
                                         TENSOR_Q5_0, TENSOR_Q5_1, TENSOR_Q5_K, TENSOR_Q6_K, TENSOR_Q8_0};
enum { TYPES = sizeof types / sizeof *types };

static const uint32_t counts[] = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 33, 64, 65};
enum { COUNTS = sizeof counts / sizeof *counts };

/* K near those wanted that the type allows. */
static uint32_t inputs_of(enum tensor_type type, uint32_t K)
{
    const uint32_t items = tensor_type_info(type)->block_items;
    return (K + items - 1) / items * items;
}

/* Both kernels, every M: near the double sums, and each row's bits those of the largest run of tiled. */
static void check_all(struct test_weight *w, unsigned step)
{
    const uint32_t width = w->weight.alternating ? w->weight.N / 2 : w->weight.N;
    uint16_t *x = inputs(TOKENS_MAX, w->weight.K);
    float *y = mem_alloc((size_t)TOKENS_MAX * width, sizeof *y),
          *all = mem_alloc((size_t)TOKENS_MAX * width, sizeof *y);
    run(cuda_matmul_tiled, w, x, TOKENS_MAX, true, 0, all);
    expect_f32(w, x, TOKENS_MAX, false, all);
    for (unsigned j = 0; j < COUNTS && counts[j] <= TOKENS_MAX; j += step * counts_each) {
        run(cuda_matmul_tiled, w, x, counts[j], true, 0, y);
        assert_memory_equal(y, all, (size_t)counts[j] * width * sizeof *y);
        if (counts[j] > cuda_matmul_skinny_max(w->weight.type)) continue;
        run(cuda_matmul_skinny, w, x, counts[j], true, 0, y);
        if (memcmp(y, all, (size_t)counts[j] * width * sizeof *y))
            fail_msg("type %d N %u K %u: %u tokens have other bits than many", w->file_type, w->weight.N, w->weight.K,
                     counts[j]);
    }
    mem_free(x);
    mem_free(y);
    mem_free(all);
}

static void test_every_type_and_shape(void **state)
{
    (void)state;
    static const uint32_t shapes[][2] = {{37, 96}, {1, 32}, {129, 576}, {300, 1056}};
    for (unsigned i = 0; i < TYPES; i += each)
        for (unsigned j = 0; j < sizeof shapes / sizeof *shapes; j++) {
            struct test_weight w;
            test_weight_make(&w, types[i], cuda_type_of(types[i]), shapes[j][0], inputs_of(types[i], shapes[j][1]),
                             false, &seed);
            if (j % 2) test_weight_bias(&w, &seed);
            check_all(&w, j == 0 ? (i % 4 == 0 ? 1 : 3) : 6);
            test_weight_free(&w);
        }
}

/* Long K on many blocks: several share a row group, some have whole groups and parts of two more. */
static void test_groups_shared_by_many_blocks(void **state)
{
    (void)state;
    static const uint32_t shapes[][2] = {{16, 4096}, {700, 640}, {128, 2048}};
    for (unsigned i = 0; i < 3; i++)
        for (unsigned j = 0; j < 4; j += each) {
            static const enum tensor_type some[] = {TENSOR_BF16, TENSOR_F8, TENSOR_Q4_1, TENSOR_Q8_0};
            struct test_weight w;
            test_weight_make(&w, some[j], cuda_type_of(some[j]), shapes[i][0], shapes[i][1], false, &seed);
            check_all(&w, 9);
            test_weight_free(&w);
        }
}

static void test_gate_and_up_meet(void **state)
{
    (void)state;
    for (unsigned i = 0; i < TYPES; i += each)
        for (unsigned gelu = 0; gelu < 2; gelu++) {
            struct test_weight w;
            test_weight_make(&w, types[i], cuda_type_of(types[i]), 2 * 72, inputs_of(types[i], 160), true, &seed);
            if (gelu) test_weight_bias(&w, &seed);
            uint16_t *x = inputs(9, w.weight.K);
            for (size_t k = 0; k < 9ul * w.weight.K; k++) x[k] = bf16_of(bf16_value(x[k]) / 8);
            float *y = mem_alloc(9 * 72, sizeof *y), *other = mem_alloc(9 * 72, sizeof *y);
            run_gelu = gelu;
            run(cuda_matmul_skinny, &w, x, 9, true, 0, y);
            expect_f32(&w, x, 9, gelu, y);
            run(cuda_matmul_tiled, &w, x, 9, true, 0, other);
            assert_memory_equal(y, other, 9 * 72 * sizeof *y);
            run_gelu = false;
            mem_free(x);
            mem_free(y);
            mem_free(other);
            test_weight_free(&w);
        }
}

/* bf16 is the f32 result rounded once; rows further apart leave what lies between. */
static void test_output_types_and_strides(void **state)
{
    (void)state;
    for (unsigned i = 0; i < TYPES; i += each) {
        struct test_weight w;
        test_weight_make(&w, types[i], cuda_type_of(types[i]), 150, inputs_of(types[i], 256), false, &seed);
        uint16_t *x = inputs(16, w.weight.K), *y = mem_alloc(16 * 200, sizeof *y);
        float *wide = mem_alloc(16 * 200, sizeof *wide);
        for (unsigned tiled = 0; tiled < 2; tiled++) {
            matmul_fn *const fn = tiled ? cuda_matmul_tiled : cuda_matmul_skinny;
            run(fn, &w, x, 16, true, 0, wide);
            run(fn, &w, x, 16, false, 200, y);
            for (uint32_t m = 0; m < 16; m++)
                for (uint32_t n = 0; n < 150; n++) assert_int_equal(y[m * 200 + n], bf16_of((double)wide[m * 150 + n]));
        }
        mem_free(x);
        mem_free(y);
        mem_free(wide);
        test_weight_free(&w);
    }
}

/* A token with a NaN or an infinity spoils its own row alone; the others keep their bits. */
static void test_bad_inputs_stay_in_their_row(void **state)
{
    (void)state;
    for (unsigned i = 0; i < TYPES; i += each) {
        struct test_weight w;
        test_weight_make(&w, types[i], cuda_type_of(types[i]), 130, inputs_of(types[i], 544), false, &seed);
        uint16_t *x = inputs(12, w.weight.K);
        float *clean = mem_alloc(12 * 130, sizeof *clean), *y = mem_alloc(12 * 130, sizeof *y);
        run(cuda_matmul_skinny, &w, x, 12, true, 0, clean);
        x[3 * w.weight.K + 5] = 0x7fc0; /* beyond the inputs of token 2 */
        x[9 * w.weight.K + 500] = 0x7f80;
        for (unsigned tiled = 0; tiled < 2; tiled++) {
            run(tiled ? cuda_matmul_tiled : cuda_matmul_skinny, &w, x, 12, true, 0, y);
            for (uint32_t m = 0; m < 12; m++)
                for (uint32_t n = 0; n < 130; n++) {
                    const float is = y[m * 130 + n];
                    if (m == 3 && is == is) fail_msg("type %d: a NaN became %g", types[i], (double)is);
                    if (m == 9 && isfinite(is)) fail_msg("type %d: infinity became %g", types[i], (double)is);
                    if (m != 3 && m != 9) assert_memory_equal(&is, &clean[m * 130 + n], sizeof is);
                }
        }
        mem_free(x);
        mem_free(y);
        mem_free(clean);
        test_weight_free(&w);
    }
}

/* Scales of E4M3 that whole rows, tensors or blocks of 128 x 128 share. */
static void test_shared_scales(void **state)
{
    (void)state;
    static const uint32_t shared[][2] = {{0, 0}, {1, 0}, {128, 128}, {0, 128}};
    enum { N = 200, K = 288 };
    for (unsigned i = 0; i < 4; i++) {
        struct test_weight w;
        test_weight_make(&w, TENSOR_F32, CUDA_TYPE_E4M3, N, K, false, &seed);
        uint8_t *all = mem_alloc((size_t)N * K, 1);
        float scales[3 * N];
        device_read(all, w.codes, (size_t)N * K);
        for (unsigned j = 0; j < 3 * N; j++) scales[j] = (float)random_within(&seed, -0.01, 0.01);
        w.weight.scale_rows = shared[i][0];
        w.weight.scale_cols = shared[i][1];
        const uint32_t stride = shared[i][0] ? (N + shared[i][0] - 1) / shared[i][0] : 1;
        for (uint32_t n = 0; n < N; n++)
            for (uint32_t k = 0; k < K; k++) {
                const uint32_t col = shared[i][1] ? k / shared[i][1] : 0, row = shared[i][0] ? n / shared[i][0] : 0;
                w.values[n * K + k] = e4m3_value(all[n * K + k]) * (double)scales[col * stride + row];
            }
        const size_t count = stride * (shared[i][1] ? 3 : 1);
        void *on_device = device_copy(scales, count * sizeof *scales);
        w.weight.scales = on_device;
        check_all(&w, 9);
        cuda_ok(cudaFree(on_device));
        mem_free(all);
        test_weight_free(&w);
    }
}

/* What a launch reads of a weight, in 32-byte sectors, against its bytes; and how its accesses of shared memory meet.
 */
static void test_weights_are_read_once(void **state)
{
    (void)state;
    static const uint32_t shapes[][2] = {{1024, 1024}, {576, 1536}, {300, 1056}};
    for (unsigned i = 0; i < TYPES; i += each)
        for (unsigned j = each - 1; j < 3; j++) {
            struct test_weight w;
            const uint32_t N = shapes[j][0], K = inputs_of(types[i], shapes[j][1]);
            test_weight_make(&w, types[i], cuda_type_of(types[i]), N, K, false, &seed);
            const uint32_t M = j == 2 && cuda_matmul_skinny_max(w.weight.type) > 16 ? 33 : 8 + j;
            uint16_t *const x = device_take((size_t)M * K * 2);
            float *const y = device_take((size_t)M * N * 4);
            device_fill(x, 0, (size_t)M * K * 2);
            const struct cuda_matmul matmul = {
                .weight = &w.weight, .x = x, .y = y, .y_f32 = true, .scratch = scratch()};
            counters_start();
            counters_watch("codes", w.codes, w.codes_bytes);
            counters_watch("scales", w.scales, w.scales_bytes ? w.scales_bytes : 1);
            cuda_ok(cuda_matmul_skinny(&matmul, M, SMS, device_stream()));
            device_wait();
            counters_stop();
            struct range_counts codes = {0}, scales = {0};
            struct kernel_counts kernel = {0};
            assert_true(counters_range("codes", &codes) && counters_kernel("", &kernel));
            (void)counters_range("scales", &scales);
            const double ideal = (double)(w.codes_bytes + w.scales_bytes) / 32;
            const double is = (double)(codes.read_sectors + scales.read_sectors);
            printf("type %u, %u x %u, M %u: %.4f of the sectors that it must read; %llu bank conflicts in %llu "
                   "wavefronts\n",
                   types[i], N, K, M, is / ideal, (unsigned long long)kernel.shared_conflicts,
                   (unsigned long long)kernel.shared_wavefronts);
            assert_true(codes.sectors_touched == codes.read_sectors); /* none twice */
            assert_true(is / ideal <= 1.05);
            assert_true(j == 2 || is / ideal >= 1);
            assert_int_equal(kernel.shared_conflicts, 0);
            cuda_ok(cudaFree(x));
            cuda_ok(cudaFree(y));
            test_weight_free(&w);
        }
}

static void test_nothing_to_do_and_refusals(void **state)
{
    (void)state;
    struct cuda_weight w = {.type = CUDA_TYPE_BF16, .N = 16, .K = 32};
    struct cuda_matmul m = {.weight = &w};
    assert_int_equal(cuda_matmul_skinny(&m, 0, SMS, device_stream()), cudaSuccess);
    assert_int_equal(cuda_matmul_tiled(&m, 0, SMS, device_stream()), cudaSuccess);
    assert_int_equal(cuda_matmul_skinny(&m, 17, SMS, device_stream()), cudaErrorInvalidValue);
    w.type = CUDA_TYPE_Q8_1;
    assert_int_equal(cuda_matmul_skinny(&m, 65, SMS, device_stream()), cudaErrorInvalidValue);
    w.type = CUDA_TYPES;
    assert_int_equal(cuda_matmul_skinny(&m, 1, SMS, device_stream()), cudaErrorInvalidValue);
    assert_int_equal(cuda_matmul_tiled(&m, 1, SMS, device_stream()), cudaErrorInvalidValue);
}

int main(void)
{
    if (getenv("CUSIM_SEED")) each = 3, counts_each = 5;
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_every_type_and_shape),
        cmocka_unit_test(test_groups_shared_by_many_blocks),
        cmocka_unit_test(test_gate_and_up_meet),
        cmocka_unit_test(test_output_types_and_strides),
        cmocka_unit_test(test_bad_inputs_stay_in_their_row),
        cmocka_unit_test(test_shared_scales),
        cmocka_unit_test(test_weights_are_read_once),
        cmocka_unit_test(test_nothing_to_do_and_refusals),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
