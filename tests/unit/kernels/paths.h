/* The paths that this machine can run, and random numbers, for tests of kernels. */
#ifndef TESTS_UNIT_KERNELS_PATHS_H
#define TESTS_UNIT_KERNELS_PATHS_H

#include "kernels/cpu_path.h"
#include "runtime/base/random.h"

#define PATHS_EACH(path)                                                                                               \
    for (enum cpu_path path = CPU_PATH_SCALAR; path < CPU_PATH_COUNT; path++)                                          \
        if (cpu_path_supported(path))

static inline float random_between(uint64_t *state, float low, float high)
{
    return low + (high - low) * (float)(random_next(state) >> 40) * 0x1p-24f;
}

#endif
