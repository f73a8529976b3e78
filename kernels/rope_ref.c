/* What rotary positions mean, in double; see rope.h. */
#include "kernels/rope.h"

#include <math.h>

void rope_ref(float *x, enum rope_pairs pairs, uint32_t rope_size, double base, double scale, const float *factors,
              uint32_t position)
{
    for (uint32_t i = 0; i < rope_size / 2; i++) {
        uint32_t first = pairs == ROPE_PAIRS_INTERLEAVED ? 2 * i : i;
        uint32_t second = pairs == ROPE_PAIRS_INTERLEAVED ? 2 * i + 1 : i + rope_size / 2;
        double angle = position * scale * pow(base, -2.0 * i / rope_size) / (factors ? (double)factors[i] : 1.0);
        double a = (double)x[first], b = (double)x[second];
        x[first] = (float)(a * cos(angle) - b * sin(angle));
        x[second] = (float)(b * cos(angle) + a * sin(angle));
    }
}
