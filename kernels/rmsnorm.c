/* RMSNorm: the scalar path and the choice of path; see rmsnorm.h. */
#include "kernels/rmsnorm_body.h"

void rmsnorm(enum cpu_path path, float *y, const float *x, const float *w, uint32_t E, float eps)
{
    static void (*const twins[CPU_PATH_COUNT])(float *, const float *, const float *, uint32_t, float) = {
        [CPU_PATH_SCALAR] = rmsnorm_scalar, [CPU_PATH_AVX2] = rmsnorm_avx2, [CPU_PATH_AVX512] = rmsnorm_avx512};
    twins[cpu_path_base(path)](y, x, w, E, eps);
}
