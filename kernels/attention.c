/* Attention: the scalar path and the choice of path; see attention.h. */
#include "kernels/attention_body.h"

size_t attention_scratch_floats(uint32_t G, uint32_t D)
{
    size_t vectors = (size_t)attention_rows(G) * G, P = (D + 15) & ~(size_t)15;
    return vectors * (ATTENTION_CHUNK + 3 * P + 4);
}

void attention(enum cpu_path path, const struct attention_args *args)
{
    static void (*const twins[CPU_PATH_COUNT])(const struct attention_args *) = {[CPU_PATH_SCALAR] = attention_scalar,
                                                                                 [CPU_PATH_AVX2] = attention_avx2,
                                                                                 [CPU_PATH_AVXVNNI] = attention_avx2,
                                                                                 [CPU_PATH_AVX512] = attention_avx512,
                                                                                 [CPU_PATH_AVX512BF16] =
                                                                                     attention_avx512};
    twins[path](args);
}
