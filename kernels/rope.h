/* Rotary positions, and the write of a token's K and V into its block.
 *
 *   y[i] = x[i] * c[i] + x[partner(i)] * s[i],  i < rope_size;  the rest of a head is unchanged
 *   interleaved: pairs (2i, 2i + 1);  halves: pairs (i, i + rope_size / 2)
 *   angle of pair i = position * scale / (base^(2i / rope_size) * factor[i]);  c = cos, s = -sin for the first of a
 * pair and +sin for the second, both times magnitude
 *
 * rope_angles fills c and s once a token, in double through the C library; rope turns heads in place, y = fma(x, c,
 * round(partner * s)): the same bits on every path. Tolerance to _ref: 2e-7 * (|x| + |partner|).
 * Sources: Su et al. 2021, arXiv:2104.09864; factors: Llama 3.1's frequency scaling as GGUF stores it. Pure; any
 * thread. */
#ifndef KERNELS_ROPE_H
#define KERNELS_ROPE_H

#include "kernels/cpu_path.h"
#include "kernels/kv.h"

#include <stdint.h>

enum rope_pairs { ROPE_PAIRS_INTERLEAVED, ROPE_PAIRS_HALVES };

/* frequencies (rope_size / 2), in double: scale / (base^(2i / rope_size) * factor[i]); factors may be NULL. */
void rope_frequencies(double *frequencies, uint32_t rope_size, double base, double scale, const float *factors);
/* c, s (rope_size) for one position, each times magnitude. */
void rope_angles(float *c, float *s, enum rope_pairs pairs, uint32_t rope_size, const double *frequencies,
                 float magnitude, uint32_t position);

/* Turns one head of at least rope_size values in place. */
void rope(enum cpu_path path, float *x, const float *c, const float *s, enum rope_pairs pairs, uint32_t rope_size);
/* Writes k and v (D) of one head into slot (0..15) of the head at `head` (layout of kv.h).
 * In BF16: rounded to nearest even, 0 below 2^-40; an infinity becomes NaN, which attention carries to the row. */
void kv_write(enum cpu_path path, const struct kv_layout *layout, uint8_t *head, uint32_t slot, const float *k,
              const float *v);

void rope_ref(float *x, enum rope_pairs pairs, uint32_t rope_size, double base, double scale, const float *factors,
              uint32_t position); /* the meaning, in double */

/* The twins behind `path`. */
void rope_scalar(float *x, const float *c, const float *s, enum rope_pairs pairs, uint32_t rope_size);
void rope_avx2(float *x, const float *c, const float *s, enum rope_pairs pairs, uint32_t rope_size);
void rope_avx512(float *x, const float *c, const float *s, enum rope_pairs pairs, uint32_t rope_size);
void kv_write_scalar(const struct kv_layout *layout, uint8_t *head, uint32_t slot, const float *k, const float *v);
void kv_write_avx2(const struct kv_layout *layout, uint8_t *head, uint32_t slot, const float *k, const float *v);
void kv_write_avx512(const struct kv_layout *layout, uint8_t *head, uint32_t slot, const float *k, const float *v);

#endif
