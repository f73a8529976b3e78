/* Attention: the scalar path and the choice of path; see attention.h. */
#include "kernels/attention_body.h"

size_t attention_scratch_floats(enum kv_type type, uint32_t G, uint32_t D)
{
    uint32_t vectors = attention_rows(G) * G, P = (D + 15) & ~15u;
    size_t expanded = type == KV_I8 ? CHUNK_BLOCKS * kv_layout_of(KV_BF16, D).head_bytes / sizeof(float) : 0;
    return (size_t)vectors * (P + ATTENTION_CHUNK) + 2 * attention_partial_floats(vectors, D) + expanded;
}

void attention(enum cpu_path path, const struct attention_args *args)
{
    static void (*const twins[CPU_PATH_COUNT])(const struct attention_args *) = {[CPU_PATH_SCALAR] = attention_scalar,
                                                                                 [CPU_PATH_AVX2] = attention_avx2,
                                                                                 [CPU_PATH_AVXVNNI] = attention_avx2,
                                                                                 [CPU_PATH_AVX512] = attention_avx512,
                                                                                 [CPU_PATH_AVX512BF16] =
                                                                                     attention_avx512bf16};
    twins[path](args);
}

void attention_merge(enum cpu_path path, const struct attention_args *args)
{
    static void (*const twins[CPU_PATH_COUNT])(const struct attention_args *) = {
        [CPU_PATH_SCALAR] = attention_merge_scalar,
        [CPU_PATH_AVX2] = attention_merge_avx2,
        [CPU_PATH_AVX512] = attention_merge_avx512};
    twins[cpu_path_base(path)](args);
}
