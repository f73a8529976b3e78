/* Routing to experts; see route.h. Its work is a hundredth of the router's own product, so it has one path. */
#include "kernels/route.h"

#include "kernels/lanes.h"

/* The best so far stand sorted in chosen; a new one is put before those that are less. */
static void choose(const float *logits, uint32_t experts, uint32_t used, uint32_t *chosen)
{
    uint32_t count = 0;
    for (uint32_t i = 0; i < experts; i++) {
        if (count == used && !(logits[i] > logits[chosen[count - 1]])) continue;
        uint32_t at = count < used ? count++ : count - 1;
        for (; at > 0 && logits[i] > logits[chosen[at - 1]]; at--) chosen[at] = chosen[at - 1];
        chosen[at] = i;
    }
}

void route(const float *logits, uint32_t experts, uint32_t used, bool normed, uint32_t *chosen, float *weights)
{
    struct lanes total = lanes_zero();
    choose(logits, experts, used, chosen);
    struct lanes highest = lanes_set(logits[chosen[0]]);
    for (uint32_t i = 0; i < experts; i += 16) {
        uint32_t n = experts - i < 16 ? experts - i : 16;
        struct lanes p = lanes_exp(lanes_sub(lanes_load_n(logits + i, n), highest));
        total = lanes_add(total, lanes_first(n, p, lanes_zero()));
    }
    float sum = lanes_sum(total), chosen_sum = 0, p[16];
    for (uint32_t i = 0; i < used; i += 16) {
        uint32_t n = used - i < 16 ? used - i : 16;
        for (uint32_t j = 0; j < n; j++) p[j] = logits[chosen[i + j]];
        lanes_store_n(weights + i, lanes_exp(lanes_sub(lanes_load_n(p, n), highest)), n);
    }
    for (uint32_t i = 0; i < used; i++) chosen_sum += weights[i] /= sum;
    for (uint32_t i = 0; normed && i < used; i++) weights[i] /= chosen_sum;
}
