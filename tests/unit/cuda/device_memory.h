/* Device memory, random values and number formats for the tests of CUDA kernels. Formats are written out here once
 * more, so that a reference shares no code with the kernel it judges. */
#ifndef TESTS_UNIT_CUDA_DEVICE_MEMORY_H
#define TESTS_UNIT_CUDA_DEVICE_MEMORY_H

#include "tests/unit/unit.h"

#include <cuda_runtime_api.h>
#include <math.h>

#define UNUSED_HELPER __attribute__((unused))

enum { DEVICE_POISON = 0xa5 };

/* With TSan a block of the emulator costs a millisecond and more: tests then run a choice of their cases. */
#ifdef __SANITIZE_THREAD__
enum { CHOICE_ONLY = 1 };
#else
enum { CHOICE_ONLY = 0 };
#endif

/* Sanitizers meet each branch of the long tests in fewer cases; so does each of many schedules (schedules.sh). */
UNUSED_HELPER static bool fewer_cases(void)
{
#if defined(__SANITIZE_THREAD__) || defined(__SANITIZE_ADDRESS__)
    return true;
#else
    return getenv("CUSIM_SEED") != NULL;
#endif
}

/* 64 random bits from a seed. Source: Steele et al. 2014, SplitMix64. */
UNUSED_HELPER static uint64_t random_bits(uint64_t *seed)
{
    uint64_t z = *seed += UINT64_C(0x9e3779b97f4a7c15);
    z = (z ^ z >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ z >> 27) * UINT64_C(0x94d049bb133111eb);
    return z ^ z >> 31;
}
UNUSED_HELPER static double random_within(uint64_t *seed, double low, double high)
{
    return low + (high - low) * (double)(random_bits(seed) >> 11) * 0x1p-53;
}

UNUSED_HELPER static void cuda_ok(cudaError_t error)
{
    if (error != cudaSuccess) fail_msg("CUDA: %s", cudaGetErrorString(error));
}
/* The one stream of a test program, created at first use. */
UNUSED_HELPER static cudaStream_t device_stream(void)
{
    static cudaStream_t stream;
    if (!stream) cuda_ok(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
    return stream;
}
UNUSED_HELPER static void device_wait(void)
{
    cuda_ok(cudaStreamSynchronize(device_stream()));
}
/* On the tests' own stream: a cudaMemset would run beside it, since it does not wait for the legacy stream. */
UNUSED_HELPER static void device_fill(void *at, int byte, size_t bytes)
{
    cuda_ok(cudaMemsetAsync(at, byte, bytes, device_stream()));
    device_wait();
}
UNUSED_HELPER static void device_poison(void *at, size_t bytes)
{
    device_fill(at, DEVICE_POISON, bytes);
}
/* Poisoned device memory; the caller frees it with cudaFree. */
UNUSED_HELPER static void *device_take(size_t bytes)
{
    void *at = NULL;
    cuda_ok(cudaMalloc(&at, bytes ? bytes : 1));
    if (bytes) device_poison(at, bytes);
    return at;
}
UNUSED_HELPER static void device_write(void *target, const void *source, size_t bytes)
{
    cuda_ok(cudaMemcpy(target, source, bytes, cudaMemcpyHostToDevice));
}
UNUSED_HELPER static void *device_copy(const void *source, size_t bytes)
{
    void *at = device_take(bytes);
    device_write(at, source, bytes);
    return at;
}
UNUSED_HELPER static void device_read(void *target, const void *source, size_t bytes)
{
    cuda_ok(cudaMemcpy(target, source, bytes, cudaMemcpyDeviceToHost));
}
/* Every byte is still poison. */
UNUSED_HELPER static void expect_poison(const void *host_copy, size_t bytes, const char *what)
{
    for (size_t i = 0; i < bytes; i++) {
        const uint8_t byte = ((const uint8_t *)host_copy)[i];
        if (byte != DEVICE_POISON) fail_msg("%s: byte %zu was written: %02x", what, i, byte);
    }
}

UNUSED_HELPER static double bf16_value(uint16_t bits)
{
    const int exponent = bits >> 7 & 0xff, mantissa = bits & 0x7f;
    const double sign = bits & 0x8000 ? -1 : 1;
    if (exponent == 255) return mantissa ? (double)NAN : sign * (double)INFINITY;
    return sign * (exponent ? ldexp(128 + mantissa, exponent - 134) : ldexp(mantissa, -133));
}
/* To nearest, ties to even. */
UNUSED_HELPER static uint16_t bf16_of(double value)
{
    const uint16_t sign = signbit(value) ? 0x8000 : 0;
    if (value != value) return 0x7fc0;
    if (isinf(value)) return (uint16_t)(sign | 0x7f80);
    value = fabs(value);
    int exponent = 0;
    (void)frexp(value, &exponent);
    if (exponent < -125) exponent = -125; /* subnormal */
    const double units = nearbyint(ldexp(value, 8 - exponent));
    if (units == 0) return sign;
    int field = exponent + 126;
    double mantissa = units;
    if (mantissa >= 256) mantissa /= 2, field++;
    if (mantissa < 128) return (uint16_t)(sign | (uint16_t)mantissa);
    return (uint16_t)(field >= 255 ? sign | 0x7f80 : sign | field << 7 | ((int)mantissa - 128));
}
UNUSED_HELPER static double e4m3_value(uint8_t code)
{
    const int exponent = code >> 3 & 15, mantissa = code & 7;
    const double sign = code & 0x80 ? -1 : 1;
    if (exponent == 15 && mantissa == 7) return (double)NAN;
    return sign * (exponent ? ldexp(8 + mantissa, exponent - 10) : ldexp(mantissa, -9));
}

/* A value that was rounded to bf16 once, after f32 arithmetic with an error of `slack`. */
UNUSED_HELPER static void expect_bf16(uint16_t bits, double wanted, double slack, const char *what, size_t row,
                                      size_t at)
{
    const double is = bf16_value(bits);
    if (wanted != wanted) {
        if (is == is) fail_msg("%s, row %zu, value %zu: %g, wanted NaN", what, row, at, is);
        return;
    }
    if (!(fabs(is - wanted) <= fabs(wanted) * 0x1.01p-8 + slack + 1e-38))
        fail_msg("%s, row %zu, value %zu: %.9g, wanted %.9g", what, row, at, is, wanted);
}
/* A value that was rounded to E4M3 with the given scale. */
UNUSED_HELPER static void expect_e4m3(uint8_t code, double scale, double wanted, const char *what, size_t row,
                                      size_t at)
{
    const double is = e4m3_value(code) * scale;
    const double bound = fmax(fabs(wanted) * 0x1.01p-4, scale * 0x1.01p-10);
    if (!(fabs(is - wanted) <= bound)) fail_msg("%s, row %zu, value %zu: %.9g, wanted %.9g", what, row, at, is, wanted);
}

#endif
