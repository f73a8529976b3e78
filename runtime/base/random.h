/* Randomness, of two kinds: secrets from the kernel (the seam), and numbers that anyone can compute again.
 *
 * Sampling uses Philox4x32-10 keyed by (request seed, position): a token's draw depends on nothing else, so it is the
 * same alone, batched, preempted, and on every device. Source: Salmon et al., "Parallel random numbers: as easy as 1,
 * 2, 3", SC 2011. Pure except random_fill; any thread. */
#ifndef RUNTIME_BASE_RANDOM_H
#define RUNTIME_BASE_RANDOM_H

#include <stddef.h>
#include <stdint.h>

/* Unpredictable bytes from the kernel, or from the hook a test has set. Aborts when the kernel has none. */
void random_fill(void *out, size_t length);
typedef void (*random_hook_fn)(void *state, void *out, size_t length);
void random_hook_set(random_hook_fn hook, void *state);

/* A new UUID of version 4 (RFC 9562) from random_fill, as text and NUL. */
enum { UUID_CHARS = 36 };
void random_uuid(char uuid[UUID_CHARS + 1]);

/* The 128-bit Philox4x32-10 block of (key, counter). */
void philox4x32(uint64_t key, uint64_t counter_low, uint64_t counter_high, uint32_t out[4]);

/* A double in [0, 1) with 53 bits, from (seed, position). */
double random_uniform(uint64_t seed, uint64_t position);

/* splitmix64: a small generator for simulations and tests. */
static inline uint64_t random_next(uint64_t *state)
{
    uint64_t z = (*state += UINT64_C(0x9e3779b97f4a7c15));
    z = (z ^ z >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ z >> 27) * UINT64_C(0x94d049bb133111eb);
    return z ^ z >> 31;
}
/* Its next number as a double in [0, 1), with 53 bits. */
static inline double random_next_uniform(uint64_t *state)
{
    return (double)(random_next(state) >> 11) * 0x1p-53;
}

#endif
