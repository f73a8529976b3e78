/* Divisors of RoPE's frequencies by which a model sees further than it was first trained to.
 *
 * frequency[i] = base^(-2i / rope_size) / factor[i], i < rope_size / 2. Both keep fast pairs as they are and slow ones
 * down; pairs between are mixed. Sources: YaRN: Peng et al. 2023, arXiv:2309.00071; Llama 3.1: its configuration's
 * "llama3" scaling. Pure; any thread. */
#ifndef RUNTIME_MODEL_ROPE_FACTORS_H
#define RUNTIME_MODEL_ROPE_FACTORS_H

#include <stdint.h>

struct rope_yarn {
    float factor;               /* > 1; 0: none of this */
    uint32_t context;           /* positions of the first training */
    float beta_fast, beta_slow; /* turns over that context above which a pair is kept, below which it is slowed */
};

/* Pairs from floor(pair that turns beta_fast times) to ceil(beta_slow times) go linearly from 1 to the factor, in terms
 * of frequency. */
void rope_yarn_factors(float *factors, uint32_t rope_size, double base, const struct rope_yarn *yarn);
/* 0.1 weight ln(factor) + 1, by which cosines and sines are multiplied (weight 1); 1 for factors up to 1. */
double rope_yarn_magnitude(double factor, double weight);

struct rope_llama3 {
    float factor;
    uint32_t context;
    float low, high; /* turns over that context: below low slowed, above high kept */
};

void rope_llama3_factors(float *factors, uint32_t rope_size, double base, const struct rope_llama3 *llama3);

#endif
