/* See rope_factors.h. */
#include "runtime/model/rope_factors.h"

#include <math.h>

static const double two_pi = 6.283185307179586;

/* The pair, as a real number, that turns so many times over the context. */
static double pair_of_turns(double turns, uint32_t rope_size, double base, double context)
{
    return rope_size * log(context / (turns * two_pi)) / (2 * log(base));
}

void rope_yarn_factors(float *factors, uint32_t rope_size, double base, const struct rope_yarn *yarn)
{
    double low = floor(pair_of_turns((double)yarn->beta_fast, rope_size, base, yarn->context));
    double high = ceil(pair_of_turns((double)yarn->beta_slow, rope_size, base, yarn->context));
    low = fmax(low, 0);
    high = fmin(high, rope_size - 1.0);
    if (low == high) high += 0.001;
    for (uint32_t i = 0; i < rope_size / 2; i++) {
        double slowed = fmin(fmax((i - low) / (high - low), 0), 1);
        factors[i] = (float)(1 / (slowed / (double)yarn->factor + 1 - slowed));
    }
}

double rope_yarn_magnitude(double factor, double weight)
{
    return factor <= 1 ? 1 : 0.1 * weight * log(factor) + 1;
}

void rope_llama3_factors(float *factors, uint32_t rope_size, double base, const struct rope_llama3 *llama3)
{
    double low = (double)llama3->low, high = (double)llama3->high, factor = (double)llama3->factor;
    for (uint32_t i = 0; i < rope_size / 2; i++) {
        double turns = llama3->context * pow(base, -2.0 * i / rope_size) / two_pi;
        double kept = turns < low ? 0 : turns > high ? 1 : (turns - low) / (high - low);
        factors[i] = (float)(1 / ((1 - kept) / factor + kept));
    }
}
