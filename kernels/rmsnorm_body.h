/* The lane-structured RMSNorm, compiled once a path; see rmsnorm.h and lanes.h. Included by rmsnorm*.c alone. */
#ifndef KERNELS_RMSNORM_BODY_H
#define KERNELS_RMSNORM_BODY_H

#include "kernels/lanes.h"
#include "kernels/rmsnorm.h"

void LANES_NAME(rmsnorm)(float *y, const float *x, const float *w, uint32_t E, float eps)
{
    struct lanes squares = lanes_zero();
    uint32_t whole = E & ~15u, tail = E & 15u;
    for (uint32_t e = 0; e < whole; e += 16) {
        struct lanes v = lanes_load(x + e);
        squares = lanes_fma(v, v, squares);
    }
    if (tail) {
        struct lanes v = lanes_load_n(x + whole, tail);
        squares = lanes_fma(v, v, squares);
    }
    float scale = 1.0f / sqrtf(lanes_sum(squares) / (float)E + eps);
    for (uint32_t e = 0; e < whole; e += 16) {
        lanes_store(y + e, lanes_mul(lanes_mul(lanes_load(x + e), lanes_set(scale)), lanes_load(w + e)));
    }
    if (tail) {
        struct lanes v = lanes_mul(lanes_load_n(x + whole, tail), lanes_set(scale));
        lanes_store_n(y + whole, lanes_mul(v, lanes_load_n(w + whole, tail)), tail);
    }
}

#endif
