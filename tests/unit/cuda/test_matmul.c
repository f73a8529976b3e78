/* Matmuls of few tokens: results against sums in double, over odd shapes; a row's bits over M, and over both kernels.
 *
 * Bound of a sum of K products: each of the K + 8 f32 roundings costs 2^-24 of the sum of magnitudes. */
#include "kernels/cuda_ops.h"
#include "tests/unit/cuda/device_memory.h"

#include "runtime/base/mem.h"

static uint64_t seed = 20261123;

enum { SMS = 4, TOKENS_MAX = 80 };

/* A weight on the device and its values on the host. */
struct fixture {
    struct cuda_weight weight;
    double *values; /* (N, K) */
    void *codes;
};

static void fixture_bf16(struct fixture *f, uint32_t N, uint32_t K)
{
    uint16_t *codes = mem_alloc((size_t)N * K, sizeof *codes);
    f->values = mem_alloc((size_t)N * K, sizeof *f->values);
    for (size_t i = 0; i < (size_t)N * K; i++) {
        codes[i] = bf16_of(random_within(&seed, -1, 1));
        f->values[i] = bf16_value(codes[i]);
    }
    f->codes = device_copy(codes, (size_t)N * K * sizeof *codes);
    f->weight = (struct cuda_weight){.type = CUDA_TYPE_BF16, .N = N, .K = K, .codes = f->codes};
    mem_free(codes);
}

static void fixture_free(struct fixture *f)
{
    cuda_ok(cudaFree(f->codes));
    mem_free(f->values);
}

static uint16_t *inputs(uint32_t M, uint32_t K)
{
    uint16_t *x = mem_alloc((size_t)M * K + 1, sizeof *x);
    for (size_t i = 0; i < (size_t)M * K; i++) x[i] = bf16_of(random_within(&seed, -2, 2));
    return x;
}

static void *scratch_take(void)
{
    void *scratch = device_take(cuda_matmul_scratch_bytes(SMS));
    device_fill(scratch, 0, 256); /* tickets; the rest stays poison */
    return scratch;
}

typedef cudaError_t matmul_fn(const struct cuda_matmul *matmul, uint32_t M, uint32_t sms, cudaStream_t stream);

/* y (M, N) f32 or bf16 as it comes from the device, of two launches one after the other, which must agree. */
static void run(matmul_fn *fn, const struct fixture *f, const uint16_t *x, uint32_t M, bool y_f32, uint32_t stride,
                void *y)
{
    const uint32_t width = f->weight.alternating ? f->weight.N / 2 : f->weight.N;
    const size_t row = (size_t)(stride ? stride : width) * (y_f32 ? 4 : 2), bytes = row * M;
    void *device_x = device_copy(x, (size_t)M * f->weight.K * 2), *device_y = device_take(bytes);
    uint8_t *first = mem_alloc(bytes + 1, 1);
    struct cuda_matmul matmul = {.weight = &f->weight, .x = device_x, .y = device_y, .y_f32 = y_f32};
    matmul.y_stride = stride;
    matmul.scratch = scratch_take();
    for (int i = 0; i < 2; i++) {
        device_poison(device_y, bytes);
        cuda_ok(fn(&matmul, M, SMS, device_stream()));
        device_wait();
        device_read(i ? y : first, device_y, bytes);
    }
    assert_memory_equal(first, y, bytes);
    for (uint32_t m = 0; m < M && stride; m++)
        expect_poison(first + m * row + width * (y_f32 ? 4 : 2), (stride - width) * (size_t)(y_f32 ? 4 : 2),
                      "beside y");
    mem_free(first);
    cuda_ok(cudaFree(device_x));
    cuda_ok(cudaFree(device_y));
    cuda_ok(cudaFree(matmul.scratch));
}

static double dot(const struct fixture *f, const uint16_t *x, uint32_t m, uint32_t n, double *magnitude)
{
    const uint32_t K = f->weight.K;
    double sum = 0;
    *magnitude = 0;
    for (uint32_t k = 0; k < K; k++) {
        const double product = f->values[(size_t)n * K + k] * bf16_value(x[(size_t)m * K + k]);
        sum += product;
        *magnitude += fabs(product);
    }
    return sum;
}

static void expect_f32(const struct fixture *f, const uint16_t *x, uint32_t M, const float *y)
{
    for (uint32_t m = 0; m < M; m++)
        for (uint32_t n = 0; n < f->weight.N; n++) {
            double magnitude, wanted = dot(f, x, m, n, &magnitude);
            const double bound = (f->weight.K + 8) * 0x1p-24 * magnitude;
            const float is = y[(size_t)m * f->weight.N + n];
            if (!(fabs(is - wanted) <= bound))
                fail_msg("N %u K %u M %u: y[%u][%u] is %.9g, wanted %.9g within %g", f->weight.N, f->weight.K, M, m, n,
                         (double)is, wanted, bound);
        }
}

static const uint32_t counts[] = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 33, 64, 65};
enum { COUNTS = sizeof counts / sizeof *counts };

static void test_bf16_equals_sums_in_double(void **state)
{
    (void)state;
    static const uint32_t shapes[][2] = {{1, 32}, {37, 96}, {128, 576}, {129, 8}, {300, 1056}, {16, 4096}};
    for (unsigned i = 0; i < sizeof shapes / sizeof *shapes; i++) {
        struct fixture f;
        fixture_bf16(&f, shapes[i][0], shapes[i][1]);
        uint16_t *x = inputs(TOKENS_MAX, f.weight.K);
        float *y = mem_alloc((size_t)TOKENS_MAX * f.weight.N, sizeof *y);
        for (unsigned j = 0; j < COUNTS && counts[j] <= cuda_matmul_skinny_max(CUDA_TYPE_BF16); j += i ? 7 : 1) {
            run(cuda_matmul_skinny, &f, x, counts[j], true, 0, y);
            expect_f32(&f, x, counts[j], y);
        }
        mem_free(x);
        mem_free(y);
        fixture_free(&f);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_bf16_equals_sums_in_double),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
