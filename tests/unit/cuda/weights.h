/* Random weights in every format of files, with the values that kernels/dequantize.c gives them, and on the device as
 * cuda_repack_rows leaves them. C and C++. */
#ifndef TESTS_UNIT_CUDA_WEIGHTS_H
#define TESTS_UNIT_CUDA_WEIGHTS_H

#include "kernels/cuda_ops.h"
#include "kernels/dequantize.h"
#include "runtime/base/mem.h"
#include "tests/unit/cuda/device_memory.h"

struct test_weight {
    struct cuda_weight weight;
    enum tensor_type file_type;
    size_t row_bytes;
    uint8_t *file;  /* the rows of a matrix, or those of gate and then of up */
    double *values; /* (N, K), rows as the device has them */
    void *codes, *scales, *device_bias;
    uint16_t *bias;
    size_t codes_bytes, scales_bytes;
};

UNUSED_HELPER static void test_put_f16(uint8_t *p, double x)
{
    const uint16_t h = f32_to_f16((float)x);
    memcpy(p, &h, 2);
}

/* Gives a block of random bytes finite, moderate scales. */
UNUSED_HELPER static void test_block_scales(enum tensor_type type, uint8_t *block, uint64_t *seed)
{
    const double d = random_within(seed, -0.05, 0.05), m = random_within(seed, -1, 1);
    const float f = (float)random_within(seed, -1, 1);
    const uint16_t h = f32_to_bf16(f);
    switch (type) {
    case TENSOR_F32: memcpy(block, &f, 4); break;
    case TENSOR_F16: test_put_f16(block, f); break;
    case TENSOR_BF16: memcpy(block, &h, 2); break;
    case TENSOR_Q4_1:
    case TENSOR_Q5_1:
        test_put_f16(block, d);
        test_put_f16(block + 2, m);
        break;
    case TENSOR_Q4_K:
    case TENSOR_Q5_K:
        test_put_f16(block, d * 0.1);
        test_put_f16(block + 2, m * 0.05);
        break;
    case TENSOR_Q6_K: test_put_f16(block + 208, d * 0.1); break;
    case TENSOR_F8: {
        const float scale = (float)(d * 0.1);
        memcpy(block, &scale, 4);
        for (int i = 4; i < 132; i++)
            if ((block[i] & 0x7f) == 0x7f) block[i] ^= 1; /* not NaN */
        break;
    }
    default: test_put_f16(block, d); break;
    }
}

/* Row of the device for row i of the file. */
UNUSED_HELPER static uint32_t test_weight_row(const struct test_weight *w, uint32_t i)
{
    if (!w->weight.alternating) return i;
    const uint32_t F = w->weight.N / 2, row = i % F;
    return row / 8 * 16 + i / F * 8 + row % 8;
}

/* Codes and scales of `bytes` more than they need are poison, and stay so (test_weight_free). */
UNUSED_HELPER static void test_weight_make(struct test_weight *w, enum tensor_type file_type, enum cuda_type type,
                                           uint32_t N, uint32_t K, bool alternating, uint64_t *seed)
{
    const struct tensor_type_info *info = tensor_type_info(file_type);
    memset(w, 0, sizeof *w);
    w->file_type = file_type;
    w->row_bytes = tensor_row_bytes(info, K);
    w->weight.type = type;
    w->weight.N = N;
    w->weight.K = K;
    w->weight.alternating = alternating;
    w->weight.scale_rows = w->weight.scale_cols = 0;
    if (type == CUDA_TYPE_E4M3) w->weight.scale_rows = 1, w->weight.scale_cols = 128;
    const size_t bytes = N * w->row_bytes;
    w->file = (uint8_t *)mem_alloc(bytes + 1, 1);
    for (size_t i = 0; i < bytes; i++) w->file[i] = (uint8_t)random_bits(seed);
    for (uint8_t *block = w->file; block < w->file + bytes; block += info->block_bytes)
        test_block_scales(file_type, block, seed);
    w->values = (double *)mem_alloc((size_t)N * K + 1, sizeof *w->values);
    float *row = (float *)mem_alloc(K + 1, sizeof *row);
    for (uint32_t i = 0; i < N; i++) {
        dequantize_row(file_type, w->file + i * w->row_bytes, row, K);
        double *to = w->values + (size_t)test_weight_row(w, i) * K;
        for (uint32_t k = 0; k < K; k++) to[k] = type == CUDA_TYPE_BF16 ? bf16_value(f32_to_bf16(row[k])) : row[k];
    }
    mem_free(row);
    cuda_weight_bytes(type, N, K, &w->codes_bytes, &w->scales_bytes);
    w->weight.codes = w->codes = device_take(w->codes_bytes + 64);
    w->weight.scales = w->scales = device_take(w->scales_bytes + 64);
    /* in two pieces, from the staging buffer's beginning, as a loader would */
    void *staging = device_take(bytes + 1);
    const uint32_t parts = alternating ? 2 : 1, rows = N / parts;
    for (uint32_t part = 0; part < parts; part++)
        for (uint32_t begin = 0; begin < rows;) {
            const uint32_t count = begin ? rows - begin : rows / 3 + 1 < rows ? rows / 3 + 1 : rows;
            device_write(staging, w->file + (size_t)(part * rows + begin) * w->row_bytes, count * w->row_bytes);
            cuda_ok(cuda_repack_rows(&w->weight, file_type, staging, begin, count, part, device_stream()));
            device_wait();
            begin += count;
        }
    cuda_ok(cudaFree(staging));
}

UNUSED_HELPER static void test_weight_bias(struct test_weight *w, uint64_t *seed)
{
    const size_t bytes = w->weight.N * sizeof *w->bias;
    w->bias = (uint16_t *)mem_alloc(w->weight.N, sizeof *w->bias);
    for (uint32_t n = 0; n < w->weight.N; n++) w->bias[n] = bf16_of(random_within(seed, -1, 1));
    w->device_bias = device_copy(w->bias, bytes);
    w->weight.bias = (const uint16_t *)w->device_bias;
}

UNUSED_HELPER static void test_weight_free(struct test_weight *w)
{
    uint8_t beyond[64];
    device_read(beyond, (uint8_t *)w->codes + w->codes_bytes, sizeof beyond);
    expect_poison(beyond, sizeof beyond, "beyond the codes");
    device_read(beyond, (uint8_t *)w->scales + w->scales_bytes, sizeof beyond);
    expect_poison(beyond, sizeof beyond, "beyond the scales");
    cuda_ok(cudaFree(w->codes));
    cuda_ok(cudaFree(w->scales));
    if (w->device_bias) cuda_ok(cudaFree(w->device_bias));
    mem_free(w->bias);
    mem_free(w->file);
    mem_free(w->values);
}

#endif
