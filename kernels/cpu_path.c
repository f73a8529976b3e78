/* The instruction set of the CPU kernels, from CPUID. __builtin_cpu_supports also asks XGETBV, so a set that the
 * operating system does not save on a switch counts as absent. So does one above MILLRACE_TEST_CPU_MAX, read here
 * alone. */
#include "kernels/cpu_path.h"

#include "kernels/cpu_path_dot.h"

#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#if defined(__x86_64__)
#include <cpuid.h>
#endif

static const char *const names[CPU_PATH_COUNT] = {"scalar", "avx2", "avxvnni", "avx512", "avx512bf16"};

const char *cpu_path_name(enum cpu_path path)
{
    return names[path];
}

#if defined(__x86_64__)
/* Bits that GCC 12 has no name for: F16C, and those of leaf 7.1. */
static bool cpuid_bit(unsigned leaf, unsigned subleaf, bool in_eax, unsigned bit)
{
    unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
    if (!__get_cpuid_count(leaf, subleaf, &eax, &ebx, &ecx, &edx)) return false;
    return (in_eax ? eax : ecx) >> bit & 1;
}

static bool has_avx2(void)
{
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2") &&
           cpuid_bit(1, 0, false, 29);
}

static bool has_avx512(void)
{
    return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
           __builtin_cpu_supports("avx512vnni");
}
#endif

/* The best path that MILLRACE_TEST_CPU_MAX leaves; a name that is unknown leaves none but scalar. */
static enum cpu_path path_max(void)
{
    const char *name = getenv("MILLRACE_TEST_CPU_MAX");
    if (!name || !*name) return CPU_PATH_COUNT - 1;
    enum cpu_path path = CPU_PATH_COUNT - 1;
    while (path > CPU_PATH_SCALAR && strcmp(name, names[path]) != 0) path--;
    return path;
}

int cpu_path_supported(enum cpu_path path)
{
    if (path > path_max()) return 0;
#if defined(__x86_64__)
    switch (path) {
    case CPU_PATH_SCALAR: return 1;
    case CPU_PATH_AVX2: return has_avx2();
    case CPU_PATH_AVXVNNI: return has_avx2() && cpuid_bit(7, 1, true, 4);
    case CPU_PATH_AVX512: return has_avx512();
    case CPU_PATH_AVX512BF16: return has_avx512() && cpuid_bit(7, 1, true, 5) && cpu_path_dot_as_defined();
    case CPU_PATH_COUNT: break;
    }
    return 0;
#else
    return path == CPU_PATH_SCALAR;
#endif
}

static bool dot_pays(void)
{
#if defined(__x86_64__)
    uint64_t dot_ticks, fma_ticks;
    cpu_path_dot_measure(&dot_ticks, &fma_ticks);
    return cpu_path_dot_pays(dot_ticks, fma_ticks);
#else
    return false;
#endif
}

enum cpu_path cpu_path_best(void)
{
    if (cpu_path_supported(CPU_PATH_AVX512BF16) && dot_pays()) return CPU_PATH_AVX512BF16;
    for (enum cpu_path path = CPU_PATH_AVX512; path > CPU_PATH_SCALAR; path--)
        if (cpu_path_supported(path)) return path;
    return CPU_PATH_SCALAR;
}

enum status cpu_path_parse(const char *name, enum cpu_path *path, struct error *err)
{
    if (strcmp(name, "auto") == 0) {
        *path = cpu_path_best();
        return ST_OK;
    }
    for (enum cpu_path p = CPU_PATH_SCALAR; p < CPU_PATH_COUNT; p++) {
        if (strcmp(name, names[p]) != 0) continue;
        if (!cpu_path_supported(p)) return error_set(err, ST_DEVICE, "cpu path %s: this CPU does not have it", name);
        *path = p;
        return ST_OK;
    }
    return error_set(err, ST_INVAL, "cpu path \"%s\" is unknown: auto, scalar, avx2, avxvnni, avx512 or avx512bf16",
                     name);
}
