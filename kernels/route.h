/* The experts of a token, in a mixture of experts:
 *
 *   p = softmax(logits); the `used` of the highest logits by falling logit, the lower index of equals first;
 *   weight of each its p, divided by the sum of the chosen p when normed
 *
 * logits (experts) f32; chosen, weights (used); 1 <= used <= experts. e^x is lanes_exp in plain C on every path: the
 * same bits everywhere. A NaN among the logits gives valid indices and NaN weights. Tolerance to _ref: 1e-6. Sources:
 * Shazeer et al. 2017, arXiv:1701.06538; Jiang et al. 2024, arXiv:2401.04088. Pure; any thread. */
#ifndef KERNELS_ROUTE_H
#define KERNELS_ROUTE_H

#include <stdbool.h>
#include <stdint.h>

void route(const float *logits, uint32_t experts, uint32_t used, bool normed, uint32_t *chosen, float *weights);

void route_ref(const float *logits, uint32_t experts, uint32_t used, bool normed, uint32_t *chosen,
               double *weights); /* the meaning, in double */

#endif
