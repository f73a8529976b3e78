/* Which instruction set the CPU kernels use: chosen once at start, the same for every kernel of a device.
 *
 *   avx512bf16  what avx512 has, and vdpbf16ps, where that gives the bits of matmul.h's `step`
 *   avx512      AVX-512 F/BW/DQ/VL + VNNI (vpdpbusd, 16 rows a register)
 *   avxvnni     AVX2 and vpdpbusd on half registers
 *   avx2        AVX2 + FMA + F16C (vpmaddubsw)
 *   scalar      plain C, any CPU; also the definition that the others equal bit for bit (cpu-engine C13, C14)
 *
 * The environment variable MILLRACE_TEST_CPU_MAX names the last of these (in rising order) that may count as supported,
 * so that a lesser CPU can be had on a better one, for tests. Pure apart from it, CPUID and, in cpu_path_best, the time
 * stamp counter; any thread. */
#ifndef KERNELS_CPU_PATH_H
#define KERNELS_CPU_PATH_H

#include "runtime/base/status.h"

enum cpu_path {
    CPU_PATH_SCALAR,
    CPU_PATH_AVX2,
    CPU_PATH_AVXVNNI,
    CPU_PATH_AVX512,
    CPU_PATH_AVX512BF16,
    CPU_PATH_COUNT
};

/* exact: f32 activations, KV and accumulation; the oracle, same bits on every path. fast: int8 activations per 32. */
enum numerics { NUMERICS_FAST, NUMERICS_EXACT };

const char *cpu_path_name(enum cpu_path path); /* "scalar", "avx2", ... as above */
int cpu_path_supported(enum cpu_path path);    /* whether this CPU and operating system can run it */
/* The fastest of them. Takes up to a millisecond, since it measures whether the BF16 dot beats FMA; where the two are
 * close the answer may change between calls, and the kernels' bits do not. */
enum cpu_path cpu_path_best(void);

/* A path by name, "auto" for the best. ST_INVAL: unknown name (err lists them); ST_DEVICE: this CPU lacks it. */
NODISCARD enum status cpu_path_parse(const char *name, enum cpu_path *path, struct error *err);

/* The path whose kernels a path runs where it has none of its own. */
static inline enum cpu_path cpu_path_base(enum cpu_path path)
{
    return path == CPU_PATH_AVXVNNI ? CPU_PATH_AVX2 : path == CPU_PATH_AVX512BF16 ? CPU_PATH_AVX512 : path;
}

#endif
