/* How the KV cache lies in a GPU's memory: [L][B][KH] pieces of one block of 16 tokens and one head each,
 *
 *   BF16  K [16][D], V [16][D]
 *   E4M3  K [16][D], V [16][D] codes, then f32 scales: K [16], V [16]      value = code * scale of its token and head
 *
 * K after RoPE. K and V of a (block, head) are one piece, 8 KB at D = 128 in BF16, so that attention reads runs of
 * whole sectors; layer outermost: a layer reads few memory pages. A scale over several tokens was rejected: it would
 * tie their bits together. Plain C and CUDA; D is a multiple of 8. */
#ifndef KERNELS_CUDA_KV_H
#define KERNELS_CUDA_KV_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { CUDA_KV_TOKENS = 16 };

struct cuda_kv {
    void *base;                                   /* device memory, L * layer_bytes */
    uint32_t layers, blocks, kv_heads, head_size; /* of this rank */
    bool fp8;
};

#ifdef __CUDACC__
#define CUDA_KV_FUNCTION static __host__ __device__ __forceinline__
#else
#define CUDA_KV_FUNCTION static inline
#endif

CUDA_KV_FUNCTION size_t cuda_kv_piece_bytes(uint32_t head_size, bool fp8)
{
    return (size_t)2 * CUDA_KV_TOKENS * (fp8 ? head_size + 4 : 2 * head_size);
}
/* From the beginning of a layer. */
CUDA_KV_FUNCTION size_t cuda_kv_piece_at(uint32_t block, uint32_t head, uint32_t kv_heads, uint32_t head_size, bool fp8)
{
    return ((size_t)block * kv_heads + head) * cuda_kv_piece_bytes(head_size, fp8);
}
CUDA_KV_FUNCTION size_t cuda_kv_layer_bytes(uint32_t blocks, uint32_t kv_heads, uint32_t head_size, bool fp8)
{
    return (size_t)blocks * kv_heads * cuda_kv_piece_bytes(head_size, fp8);
}

#endif
