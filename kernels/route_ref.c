/* What routing means, in double; see route.h. */
#include "kernels/route.h"

#include <math.h>

void route_ref(const float *logits, uint32_t experts, uint32_t used, bool normed, uint32_t *chosen, double *weights)
{
    double total = 0, chosen_sum = 0;
    for (uint32_t i = 0; i < experts; i++) total += exp((double)logits[i]);
    for (uint32_t u = 0; u < used; u++) {
        uint32_t best = UINT32_MAX;
        for (uint32_t i = 0; i < experts; i++) {
            bool taken = false;
            for (uint32_t k = 0; k < u; k++) taken = taken || chosen[k] == i;
            if (!taken && (best == UINT32_MAX || logits[i] > logits[best])) best = i;
        }
        chosen[u] = best;
        weights[u] = exp((double)logits[best]) / total;
        chosen_sum += weights[u];
    }
    for (uint32_t u = 0; normed && u < used; u++) weights[u] /= chosen_sum;
}
