/* The number formats of weights, by the ids that GGUF gives them, and from TENSOR_OWN on by ids of our own, for what
 * other files hold. A row is a sequence of blocks; a block holds block_items values in block_bytes bytes. Source:
 * ggml's gguf specification (docs/gguf.md) and block layouts (ggml-common.h), read for the formats, not copied. Pure,
 * any thread. */
#ifndef KERNELS_TENSOR_TYPE_H
#define KERNELS_TENSOR_TYPE_H

#include <stddef.h>
#include <stdint.h>

#define TENSOR_TYPE_MAP(X)                                                                                             \
    X(F32, 0, 1, 4)                                                                                                    \
    X(F16, 1, 1, 2)                                                                                                    \
    X(Q4_0, 2, 32, 18)                                                                                                 \
    X(Q4_1, 3, 32, 20)                                                                                                 \
    X(Q5_0, 6, 32, 22)                                                                                                 \
    X(Q5_1, 7, 32, 24)                                                                                                 \
    X(Q8_0, 8, 32, 34)                                                                                                 \
    X(Q4_K, 12, 256, 144)                                                                                              \
    X(Q5_K, 13, 256, 176)                                                                                              \
    X(Q6_K, 14, 256, 210)                                                                                              \
    X(BF16, 30, 1, 2)                                                                                                  \
    X(F8, 1000, 128, 132) /* f32 scale, then E4M3 codes: value = code * scale, rounded to f32 */

enum tensor_type {
#define X(name, id, block_items, block_bytes) TENSOR_##name = id,
    TENSOR_TYPE_MAP(X)
#undef X
};

enum { TENSOR_OWN = 1000 };

struct tensor_type_info {
    const char *name; /* "Q4_1" */
    uint32_t block_items;
    uint32_t block_bytes;
};

/* NULL for an id that is not in the table. */
const struct tensor_type_info *tensor_type_info(uint32_t type);

/* Bytes of a row of K values. K must be a multiple of block_items. */
static inline size_t tensor_row_bytes(const struct tensor_type_info *info, size_t K)
{
    return K / info->block_items * info->block_bytes;
}

#endif
