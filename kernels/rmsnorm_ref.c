/* What RMSNorm means, in double; see rmsnorm.h. */
#include "kernels/rmsnorm.h"

#include <math.h>

void rmsnorm_ref(float *y, const float *x, const float *w, uint32_t E, float eps)
{
    double squares = 0;
    for (uint32_t e = 0; e < E; e++) squares += (double)x[e] * (double)x[e];
    double scale = 1 / sqrt(squares / E + (double)eps);
    for (uint32_t e = 0; e < E; e++) y[e] = (float)((double)x[e] * scale * (double)w[e]);
}
