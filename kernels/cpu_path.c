/* The instruction set of the CPU kernels, from CPUID. __builtin_cpu_supports also asks XGETBV, so a set that the
 * operating system does not save on a switch counts as absent. */
#include "kernels/cpu_path.h"

#include <string.h>

static const char *const names[CPU_PATH_COUNT] = {"scalar", "avx2", "avx512"};

const char *cpu_path_name(enum cpu_path path)
{
    return names[path];
}

int cpu_path_supported(enum cpu_path path)
{
#if defined(__x86_64__)
    if (path == CPU_PATH_AVX2 || path == CPU_PATH_AVX512) {
        if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma") || !__builtin_cpu_supports("bmi2"))
            return 0;
        unsigned f16c = 0;
        __asm__("cpuid" : "=c"(f16c) : "a"(1), "c"(0) : "ebx", "edx"); /* no name for it in GCC 12 */
        if (!(f16c >> 29 & 1)) return 0;
    }
    if (path == CPU_PATH_AVX512)
        return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
               __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
               __builtin_cpu_supports("avx512vnni");
    return path == CPU_PATH_SCALAR || path == CPU_PATH_AVX2;
#else
    return path == CPU_PATH_SCALAR;
#endif
}

enum cpu_path cpu_path_best(void)
{
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
    return error_set(err, ST_INVAL, "cpu path \"%s\" is unknown: auto, scalar, avx2 or avx512", name);
}
