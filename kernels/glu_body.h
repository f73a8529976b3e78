/* The lane-structured gated activations, compiled once a path; see glu.h and lanes.h. Included by glu*.c alone. */
#ifndef KERNELS_GLU_BODY_H
#define KERNELS_GLU_BODY_H

#include "kernels/glu.h"
#include "kernels/lanes.h"

/* -2 sqrt(2/pi), and that times 0.044715 */
#define GLU_GELU_LINEAR -1.5957691216057308f
#define GLU_GELU_CUBIC  -0.07135481627159852f

LANES_INLINE struct lanes glu_lanes(enum glu_kind kind, struct lanes g, struct lanes u)
{
    struct lanes exponent;
    if (kind == GLU_SILU) {
        exponent = lanes_sub(lanes_zero(), g);
    } else {
        struct lanes inner = lanes_fma(lanes_mul(g, g), lanes_set(GLU_GELU_CUBIC), lanes_set(GLU_GELU_LINEAR));
        exponent = lanes_mul(g, inner);
    }
    return lanes_mul(lanes_div(g, lanes_add(lanes_set(1.0f), lanes_exp(exponent))), u);
}

void LANES_NAME(glu)(enum glu_kind kind, float *out, const float *gate, const float *up, uint32_t count)
{
    uint32_t whole = count & ~15u, tail = count & 15u;
    if (kind == GLU_SILU) {
        for (uint32_t i = 0; i < whole; i += 16) {
            lanes_store(out + i, glu_lanes(GLU_SILU, lanes_load(gate + i), lanes_load(up + i)));
        }
    } else {
        for (uint32_t i = 0; i < whole; i += 16) {
            lanes_store(out + i, glu_lanes(GLU_GELU_TANH, lanes_load(gate + i), lanes_load(up + i)));
        }
    }
    if (tail) {
        struct lanes g = lanes_load_n(gate + whole, tail), u = lanes_load_n(up + whole, tail);
        lanes_store_n(out + whole, glu_lanes(kind, g, u), tail);
    }
}

#endif
