/* Weights on the device: every value is what kernels/dequantize.c says, in every type, shape and order of rows; 32
 * inputs of Q4 cost 20 bytes. */
#include "kernels/cuda_weight.cuh"

extern "C" {
#include "tests/unit/cuda/weights.h"
}

static uint64_t seed = 20261124;

/* Thread: row, then 8 inputs. */
__global__ void values_of(float *out, const void *codes, const void *scales, kx::weight_shape w)
{
    const uint32_t id = blockIdx.x * blockDim.x + threadIdx.x, row = id / (w.K / 8), k = id % (w.K / 8) * 8;
    if (row >= w.N) return;
    float value[8];
    kx::weight_values(w, codes, scales, row, k, value);
    for (uint32_t i = 0; i < 8; i++) out[(size_t)row * w.K + k + i] = value[i];
}

static void expect_values(const struct test_weight *w, double relative, double absolute)
{
    const uint32_t N = w->weight.N, K = w->weight.K;
    const size_t count = (size_t)N * K;
    float *const on_device = (float *)device_take(count * 4), *const is = (float *)mem_alloc(count + 1, 4);
    uint16_t *const device_rows = (uint16_t *)device_take(count * 2), *const rows = (uint16_t *)mem_alloc(count + 1, 2);
    cuda_ok(kx::launch(values_of, (uint32_t)((count / 8 + 63) / 64), 64, 0, device_stream(), on_device, w->weight.codes,
                       w->weight.scales, kx::weight_shape_of(w->weight)));
    const uint32_t cut = N / 2; /* panels of rows [0, cut) and [cut, N) */
    cuda_ok(cuda_unpack_rows(device_rows, &w->weight, 0, cut, device_stream()));
    cuda_ok(cuda_unpack_rows(device_rows + (size_t)cut * K, &w->weight, cut, N - cut, device_stream()));
    device_wait();
    device_read(is, on_device, count * 4);
    device_read(rows, device_rows, count * 2);
    for (size_t i = 0; i < count; i++) {
        const double wanted = w->values[i];
        if (!(fabs(is[i] - wanted) <= fabs(wanted) * relative + absolute))
            fail_msg("type %d, N %u, K %u: [%zu][%zu] is %.9g, wanted %.9g", w->file_type, N, K, i / K, i % K,
                     (double)is[i], wanted);
        if (bf16_value(rows[i]) != bf16_value(bf16_of(is[i])))
            fail_msg("type %d: unpacked [%zu][%zu] is %.9g, not %.9g", w->file_type, i / K, i % K, bf16_value(rows[i]),
                     (double)is[i]);
    }
    mem_free(is);
    mem_free(rows);
    cuda_ok(cudaFree(on_device));
    cuda_ok(cudaFree(device_rows));
}

#define X(name, id, items, bytes) TENSOR_##name,
static const enum tensor_type types[] = {TENSOR_TYPE_MAP(X)};
#undef X

static void test_every_value_is_the_files(void **state)
{
    (void)state;
    static const uint32_t rows[] = {1, 16, 37};
    for (const enum tensor_type type : types) {
        const uint32_t items = tensor_type_info(type)->block_items;
        for (unsigned i = 0; i < 3; i++) {
            const uint32_t K = items > 32 ? items * (i + 1) : i == 0 ? 32 : i == 1 ? 96 : 576;
            struct test_weight w;
            test_weight_make(&w, type, cuda_type_of(type), rows[i], K, false, &seed);
            expect_values(&w, 0, 0);
            test_weight_free(&w);
        }
    }
}

static void test_gate_and_up_alternate(void **state)
{
    (void)state;
    for (const enum tensor_type type : types) {
        struct test_weight w;
        test_weight_make(&w, type, cuda_type_of(type), 48, 256, true, &seed);
        expect_values(&w, 0, 0);
        test_weight_free(&w);
    }
}

static void test_any_type_becomes_bf16_or_fp8(void **state)
{
    (void)state;
    for (const enum tensor_type type : types) {
        struct test_weight w;
        test_weight_make(&w, type, CUDA_TYPE_BF16, 19, 256, false, &seed);
        expect_values(&w, 0, 0);
        test_weight_free(&w);
        test_weight_make(&w, type, CUDA_TYPE_E4M3, 19, 256, false, &seed);
        double highest = 0;
        for (size_t i = 0; i < 19 * 256; i++) highest = fmax(highest, fabs(w.values[i]));
        if (type != TENSOR_F8) expect_values(&w, 0x1.01p-4, highest / 448 * 0x1p-10);
        test_weight_free(&w);
    }
}

/* The scale of 128 inputs is as large as they need, and no larger; a NaN in any of them shows in all. */
static void test_fp8_scales_follow_the_highest(void **state)
{
    (void)state;
    struct test_weight w;
    test_weight_make(&w, TENSOR_F32, CUDA_TYPE_E4M3, 3, 160, false, &seed);
    float scales[6];
    device_read(scales, w.scales, sizeof scales);
    for (uint32_t row = 0; row < 3; row++)
        for (uint32_t chunk = 0; chunk < 2; chunk++) {
            double highest = 0;
            for (uint32_t k = chunk * 128; k < (chunk ? 160 : 128); k++)
                highest = fmax(highest, fabs(w.values[row * 160 + k]));
            if (fabs(scales[chunk * 3 + row] * 448 - highest) > highest * 1e-6)
                fail_msg("row %u, chunk %u: scale %g for %g", row, chunk, (double)scales[chunk * 3 + row], highest);
        }
    test_weight_free(&w);

    for (const enum tensor_type type : {TENSOR_F8, TENSOR_F32}) {
        test_weight_make(&w, type, CUDA_TYPE_E4M3, 2, 256, false, &seed);
        const float bad = INFINITY;
        if (type == TENSOR_F8)
            w.file[132 + 4 + 77] = 0xff;
        else
            memcpy(w.file + (128 + 77) * 4, &bad, 4);
        void *const staging = device_copy(w.file, w.row_bytes);
        cuda_ok(cuda_repack_rows(&w.weight, type, staging, 0, 1, 0, device_stream()));
        device_wait();
        device_read(scales, w.scales, 4 * sizeof *scales);
        assert_true(scales[0] == scales[0] && scales[1] == scales[1] && scales[3] == scales[3]);
        assert_true(scales[2] != scales[2]);
        cuda_ok(cudaFree(staging));
        test_weight_free(&w);
    }
}

static void test_bytes_and_refusals(void **state)
{
    (void)state;
    size_t codes, scales;
    cuda_weight_bytes(CUDA_TYPE_Q4_K, 4096, 4096, &codes, &scales);
    assert_int_equal(codes + scales, 4096ul * 4096 / 32 * 20);
    cuda_weight_bytes(CUDA_TYPE_Q8_0, 4096, 4096, &codes, &scales);
    assert_int_equal(codes + scales, 4096ul * 4096 / 32 * 36);
    cuda_weight_bytes(CUDA_TYPE_E4M3, 4096, 4096, &codes, &scales);
    assert_int_equal(codes + scales, 4096ul * 4096 / 128 * 132);
    cuda_weight_bytes(CUDA_TYPE_BF16, 4096, 4096, &codes, &scales);
    assert_int_equal(codes + scales, 4096ul * 4096 * 2);

    struct cuda_weight w = {};
    w.type = CUDA_TYPE_Q4_0;
    w.N = 16;
    w.K = 64;
    cudaStream_t const s = device_stream();
    assert_int_equal(cuda_repack_rows(&w, TENSOR_Q4_1, NULL, 0, 16, 0, s), cudaErrorInvalidValue); /* another form */
    assert_int_equal(cuda_repack_rows(&w, 12345, NULL, 0, 16, 0, s), cudaErrorInvalidValue);       /* no format */
    w.K = 48;
    assert_int_equal(cuda_repack_rows(&w, TENSOR_Q4_0, NULL, 0, 16, 0, s), cudaErrorInvalidValue); /* half a block */
    w.K = 64;
    w.N = 24;
    w.alternating = true;
    assert_int_equal(cuda_repack_rows(&w, TENSOR_Q4_0, NULL, 0, 12, 0, s), cudaErrorInvalidValue); /* half an eight */
    w.alternating = false;
    assert_int_equal(cuda_unpack_rows(NULL, &w, 20, 5, s), cudaErrorInvalidValue);
    assert_int_equal(cuda_repack_rows(&w, TENSOR_Q4_0, NULL, 0, 0, 0, s), cudaSuccess);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_every_value_is_the_files),     cmocka_unit_test(test_gate_and_up_alternate),
        cmocka_unit_test(test_any_type_becomes_bf16_or_fp8), cmocka_unit_test(test_fp8_scales_follow_the_highest),
        cmocka_unit_test(test_bytes_and_refusals),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
