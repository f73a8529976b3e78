/* Result and speed of vdpbf16ps, asked of the instruction itself. */
#include "kernels/cpu_path_dot.h"

#include <immintrin.h>
#include <stddef.h>
#include <x86intrin.h>

#define INLINE static inline __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 16")

enum { SLICES = 160, TURNS = 256, CHAINS = 16 }; /* 4096 instructions a slice: 1 us at one a cycle, 3.7 GHz */

/* One step of a pair: f32 bits of sum, and of even and odd input and weight, which have 16 bits each. */
struct dot_case {
    uint32_t sum, even[2], odd[2], want;
};

static const struct dot_case dot_cases[] = {
    /* 1 + 2^-24 is 1, twice; the other order, the pair first, or one rounding for all would give more */
    {0x3f800000, {0x3f800000, 0x33800000}, {0x3f800000, 0x33800000}, 0x3f800000},
    /* (2^24 + 1) - 2^24: the odd product first gives 0, the even one first 1 */
    {0x3f800000, {0xbf800000, 0x4b800000}, {0x4b800000, 0x3f800000}, 0},
    /* (1 - 2^-8)^2 - 1 = -2^-7 + 2^-16: the product keeps all its bits */
    {0xbf800000, {0, 0}, {0x3f7f0000, 0x3f7f0000}, 0xbbff8000},
    /* 2^-127 as sum, weight, and result (2^-126 - 2^-127) counts as zero */
    {0x00400000, {0, 0}, {0, 0}, 0},
    {0x3f800000, {0x00400000, 0x7f000000}, {0, 0}, 0x3f800000},
    {0x00800000, {0xa0000000, 0x1f800000}, {0, 0}, 0},
    /* 2^-126 - 1.5 * 2^-151 rounds to 2^-126 at the step of denormals, but not in 24 bits: zero */
    {0x00800000, {0x9a400000, 0x19800000}, {0, 0}, 0},
    /* 2^-126 - 2^-151 rounds to 2^-126 in both */
    {0x00800000, {0x9a000000, 0x19800000}, {0, 0}, 0x00800000},
};

bool cpu_path_dot_as_defined(void)
{
    for (size_t i = 0; i < sizeof dot_cases / sizeof dot_cases[0]; i++) {
        const struct dot_case *c = &dot_cases[i];
        const uint32_t x = c->even[0] >> 16 | (c->odd[0] & 0xffff0000u),
                       w = c->even[1] >> 16 | (c->odd[1] & 0xffff0000u);
        const __m512bh inputs = (__m512bh)_mm512_set1_epi32((int)x), weights = (__m512bh)_mm512_set1_epi32((int)w);
        const __m512 sum = _mm512_castsi512_ps(_mm512_set1_epi32((int)c->sum));
        const __m512i got = _mm512_castps_si512(_mm512_dpbf16_ps(sum, inputs, weights));
        if (_mm512_cmpneq_epi32_mask(got, _mm512_set1_epi32((int)c->want)) != 0) return false;
    }
    return true;
}

/* All operands 0: neither instruction slows down on values, and nothing overflows. */
INLINE uint64_t slice_ticks(const bool dot)
{
    __m512 sums[CHAINS];
    __m512i operand = _mm512_setzero_si512();
    UNROLL for (int i = 0; i < CHAINS; i++) sums[i] = _mm512_setzero_ps(); /* unrolled, else they live in memory */
    const uint64_t start = __rdtsc();
    for (int turn = 0; turn < TURNS; turn++) UNROLL for (int i = 0; i < CHAINS; i++)
        {
            if (dot)
                __asm__ volatile("vdpbf16ps %1, %1, %0" : "+v"(sums[i]) : "v"(operand));
            else
                __asm__ volatile("vfmadd231ps %1, %1, %0" : "+v"(sums[i]) : "v"(operand));
        }
    return __rdtsc() - start;
}

void cpu_path_dot_measure(uint64_t *dot_ticks, uint64_t *fma_ticks)
{
    uint64_t best[2] = {UINT64_MAX, UINT64_MAX};
    for (int i = 0; i < SLICES; i++) {
        const uint64_t dot = slice_ticks(true), fma = slice_ticks(false);
        best[0] = dot < best[0] ? dot : best[0];
        best[1] = fma < best[1] ? fma : best[1];
    }
    *dot_ticks = best[0];
    *fma_ticks = best[1];
}
