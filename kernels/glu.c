/* Gated activations: the scalar path and the choice of path; see glu.h. */
#include "kernels/glu_body.h"

void glu(enum cpu_path path, enum glu_kind kind, float *out, const float *gate, const float *up, uint32_t count)
{
    static void (*const twins[CPU_PATH_COUNT])(enum glu_kind, float *, const float *, const float *, uint32_t) = {
        [CPU_PATH_SCALAR] = glu_scalar, [CPU_PATH_AVX2] = glu_avx2, [CPU_PATH_AVX512] = glu_avx512};
    twins[cpu_path_base(path)](kind, out, gate, up, count);
}
