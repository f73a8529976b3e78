/* What vdpbf16ps is worth on this CPU. Inside of cpu_path.c and its tests; only where CPUID has AVX-512 BF16. The
 * instruction set's manual fixes its result but not its speed: public tables have it at twice the f32 FMA rate (Zen 4:
 * measured) and at half of it (Sapphire Rapids, github.com/pigirons/cpufp). Pure but for the time stamp counter. */
#ifndef KERNELS_CPU_PATH_DOT_H
#define KERNELS_CPU_PATH_DOT_H

#include <stdbool.h>
#include <stdint.h>

/* Whether the dot gives the bits of `step` in matmul.h: order of a pair, one rounding each, denormals. A few cases that
 * tell other readings apart. */
bool cpu_path_dot_as_defined(void);

/* Ticks of the time stamp counter for as many vdpbf16ps as 512-bit FMAs, independent of each other: the best of short
 * slices in turn, so that other work on the core does not count. Takes about half a millisecond. */
void cpu_path_dot_measure(uint64_t *dot_ticks, uint64_t *fma_ticks);

/* Whether dots, at two multiplies a lane, are the faster way. */
static inline bool cpu_path_dot_pays(uint64_t dot_ticks, uint64_t fma_ticks)
{
    return dot_ticks < 2 * fma_ticks;
}

#endif
