/* Sixteen f32 lanes, three times: AVX-512, AVX2 (two halves) and plain C. What stands here is the definition that makes
 * every path give the same bits (cpu-engine C12, C13): an op is written once over `struct lanes` in <op>_body.h, and
 * <op>.c, <op>_avx2.c and <op>_avx512.c compile that body. Which of the three this is follows from the compiler's
 * flags.
 *
 * Rules. Each operation is one correctly rounded IEEE operation in each lane; a product with its sum is always
 * lanes_fma. Sums over an array: lane j takes items 16i + j in rising i, then lanes_sum adds in a fixed tree: j with j
 * + 8, j + 4, j + 2, j + 1. Tails are loaded with zeros. Nothing here allocates or has state. */
#ifndef KERNELS_LANES_H
#define KERNELS_LANES_H

#include "kernels/dequantize.h"

#include <math.h>
#include <stdint.h>
#include <string.h>

/* Debug and sanitizer builds do without inlining by force and unrolling: instrumented, the copies take minutes to
 * compile. */
#ifdef MILLRACE_DEBUG
#define LANES_INLINE static inline __attribute__((unused))
#define LANES_UNROLL
#else
#define LANES_INLINE static inline __attribute__((always_inline, unused))
/* Full unrolling of loops with constant bounds: arrays of lanes become registers. */
#ifdef __clang__
#define LANES_UNROLL _Pragma("clang loop unroll(full)")
#else
#define LANES_UNROLL _Pragma("GCC unroll 32")
#endif
#endif

#define LANES_JOIN_(name, path) name##_##path
#define LANES_JOIN(name, path)  LANES_JOIN_(name, path)
#define LANES_NAME(name)        LANES_JOIN(name, LANES_PATH) /* rmsnorm -> rmsnorm_avx2 */

#if defined(__AVX512F__)
#include "kernels/lanes_avx512.h"
#elif defined(__AVX2__)
#include "kernels/lanes_avx2.h"
#else
#include "kernels/lanes_scalar.h"
#endif

LANES_INLINE struct lanes lanes_zero(void)
{
    return lanes_set(0);
}

#ifdef __AVX2__
LANES_INLINE float lanes_sum(struct lanes x)
{
    __m256 eight = _mm256_add_ps(lanes_low_(x), lanes_high_(x));
    __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}
LANES_INLINE float lanes_peak(struct lanes x)
{
    __m256 eight = _mm256_max_ps(lanes_low_(x), lanes_high_(x));
    __m128 four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)));
}
#else
LANES_INLINE float lanes_sum(struct lanes x)
{
    for (int step = 8; step; step /= 2)
        for (int j = 0; j < step; j++) x.v[j] = x.v[j] + x.v[j + step];
    return x.v[0];
}
LANES_INLINE float lanes_peak(struct lanes x)
{
    for (int step = 8; step; step /= 2)
        for (int j = 0; j < step; j++) x.v[j] = x.v[j] > x.v[j + step] ? x.v[j] : x.v[j + step];
    return x.v[0];
}
#endif

LANES_INLINE double lanes_double_sum(struct lanes_double x)
{
    double v[16];
    lanes_double_store(v, x);
    for (int step = 8; step; step /= 2)
        for (int j = 0; j < step; j++) v[j] = v[j] + v[j + step];
    return v[0];
}

/* e^x, to about 1.2 ulp; 0 below -87, e^88 above 88; NaN stays NaN. x = n ln 2 + r by the usual two-part constant, a
 * polynomial in r, then a product with 2^n. Source of the coefficients: Moshier, Cephes 2.2, single/expf.c. */
#define LANES_ROUND 12582912.0f /* 1.5 * 2^23: adding it rounds to an integer, ties to even */
LANES_INLINE struct lanes lanes_exp(struct lanes input)
{
    struct lanes x = lanes_min(lanes_set(88.0f), input);
    struct lanes t = lanes_fma(x, lanes_set(1.44269504088896341f), lanes_set(LANES_ROUND));
    struct lanes n = lanes_sub(t, lanes_set(LANES_ROUND));
    struct lanes r = lanes_fma(n, lanes_set(-0.693359375f), x);
    r = lanes_fma(n, lanes_set(2.12194440e-4f), r);
    struct lanes p = lanes_set(1.9875691500e-4f);
    p = lanes_fma(p, r, lanes_set(1.3981999507e-3f));
    p = lanes_fma(p, r, lanes_set(8.3334519073e-3f));
    p = lanes_fma(p, r, lanes_set(4.1665795894e-2f));
    p = lanes_fma(p, r, lanes_set(1.6666665459e-1f));
    p = lanes_fma(p, r, lanes_set(5.0000001201e-1f));
    p = lanes_fma(p, lanes_mul(r, r), r);
    p = lanes_add(p, lanes_set(1.0f));
    return lanes_zero_below(x, lanes_set(-87.0f), lanes_mul(p, lanes_power_of_two(t)));
}

#endif
