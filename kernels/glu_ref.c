/* What the gated activations mean, in double; see glu.h. */
#include "kernels/glu.h"

#include <math.h>

void glu_ref(enum glu_kind kind, float *out, const float *gate, const float *up, uint32_t count)
{
    for (uint32_t i = 0; i < count; i++) {
        double g = (double)gate[i], a;
        if (kind == GLU_SILU) {
            a = g / (1 + exp(-g));
        } else {
            a = 0.5 * g * (1 + tanh(sqrt(2 / 3.14159265358979323846) * (g + 0.044715 * g * g * g)));
        }
        out[i] = (float)(a * (double)up[i]);
    }
}
