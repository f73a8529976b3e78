/* The gated activation:  out[i] = act(gate[i]) * up[i]
 *
 *   SiLU        act(g) = g / (1 + e^-g)
 *   GELU, tanh  act(g) = g / (1 + e^-2u), u = sqrt(2/pi) (g + 0.044715 g^3), which is 0.5 g (1 + tanh u)
 *
 * count f32 values each; out may be gate or up. e^x is lanes_exp: the same bits on every path. Tolerance to _ref:
 * 1e-6 * |out| + 1e-30. Sources: Shazeer 2020, arXiv:2002.05202; Hendrycks and Gimpel 2016, arXiv:1606.08415.
 * Pure; any thread. */
#ifndef KERNELS_GLU_H
#define KERNELS_GLU_H

#include "kernels/cpu_path.h"

#include <stdint.h>

enum glu_kind { GLU_SILU, GLU_GELU_TANH };

void glu(enum cpu_path path, enum glu_kind kind, float *out, const float *gate, const float *up, uint32_t count);

void glu_ref(enum glu_kind kind, float *out, const float *gate, const float *up, uint32_t count); /* in double */

/* The twins behind `path`. */
void glu_scalar(enum glu_kind kind, float *out, const float *gate, const float *up, uint32_t count);
void glu_avx2(enum glu_kind kind, float *out, const float *gate, const float *up, uint32_t count);
void glu_avx512(enum glu_kind kind, float *out, const float *gate, const float *up, uint32_t count);

#endif
