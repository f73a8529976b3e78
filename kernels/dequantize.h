/* Rows of any tensor_type to f32: the meaning of every format, and the value that all packed forms must keep.
 *
 * x[k] is computed in f32 with the roundings of the formats' public definition (gguf-py's quants.py): for Q4_1 the
 * product d * code is rounded, then the sum with m; K-quants round d * scale first, then times code, then minus the
 * rounded dmin * min. So the values equal those that the `gguf` Python package gives, bit for bit. Scalar, no fused
 * operations. src: K / block_items blocks. dst (K) f32. K a multiple of block_items. Pure, any thread. */
#ifndef KERNELS_DEQUANTIZE_H
#define KERNELS_DEQUANTIZE_H

#include "kernels/tensor_type.h"

void dequantize_row(enum tensor_type type, const void *source, float *target, size_t K);

/* IEEE half and bfloat16 to float (exact) and back (nearest even; NaN stays NaN). */
float f16_to_f32(uint16_t h);
uint16_t f32_to_f16(float x);
static inline float bf16_to_f32(uint16_t h)
{
    union {
        uint32_t u;
        float f;
    } v = {.u = (uint32_t)h << 16};
    return v.f;
}
uint16_t f32_to_bf16(float x);

/* A code of E4M3, without infinities ("e4m3fn"): bias 7, 0x7f and 0xff are NaN. Source: Micikevicius et al. 2022,
 * arXiv:2209.05433. */
float f8_to_f32(uint8_t code);

#endif
