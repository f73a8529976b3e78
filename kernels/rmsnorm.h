/* RMSNorm of one row:  y[e] = x[e] * (1 / sqrt(mean_e(x[e]^2) + eps)) * w[e]
 *
 * x, y (E) f32, may be the same buffer; w (E) f32; E >= 1, any; eps > 0. Order: squares summed over 16 lanes and a
 * fixed tree (lanes.h), then (x * scale) * w: the same bits on every path. Tolerance to _ref: 1e-6 * |y| + 1e-30 up to
 * E = 16384. Source: Zhang and Sennrich 2019, arXiv:1910.07467. Pure; any thread. */
#ifndef KERNELS_RMSNORM_H
#define KERNELS_RMSNORM_H

#include "kernels/cpu_path.h"

#include <stdint.h>

void rmsnorm(enum cpu_path path, float *y, const float *x, const float *w, uint32_t E, float eps);

void rmsnorm_ref(float *y, const float *x, const float *w, uint32_t E, float eps); /* the meaning, in double */

/* The twins behind `path`. */
void rmsnorm_scalar(float *y, const float *x, const float *w, uint32_t E, float eps);
void rmsnorm_avx2(float *y, const float *x, const float *w, uint32_t E, float eps);
void rmsnorm_avx512(float *y, const float *x, const float *w, uint32_t E, float eps);

#endif
