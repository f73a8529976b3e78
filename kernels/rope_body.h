/* The lane-structured rotation and KV write, compiled once a path; see rope.h and lanes.h. Included by rope*.c alone.
 */
#ifndef KERNELS_ROPE_BODY_H
#define KERNELS_ROPE_BODY_H

#include "kernels/lanes_bf16.h"
#include "kernels/rope.h"

#include <stdbool.h>

LANES_INLINE struct lanes rope_turn(struct lanes x, struct lanes partner, struct lanes c, struct lanes s)
{
    return lanes_fma(x, c, lanes_mul(partner, s));
}

void LANES_NAME(rope)(float *x, const float *c, const float *s, enum rope_pairs pairs, uint32_t rope_size)
{
    if (pairs == ROPE_PAIRS_INTERLEAVED) {
        for (uint32_t i = 0; i < rope_size; i += 16) {
            uint32_t n = rope_size - i < 16 ? rope_size - i : 16;
            struct lanes v = lanes_load_n(x + i, n);
            v = rope_turn(v, lanes_swap_pairs(v), lanes_load_n(c + i, n), lanes_load_n(s + i, n));
            lanes_store_n(x + i, v, n);
        }
        return;
    }
    uint32_t half = rope_size / 2;
    for (uint32_t i = 0; i < half; i += 16) {
        uint32_t n = half - i < 16 ? half - i : 16;
        struct lanes a = lanes_load_n(x + i, n), b = lanes_load_n(x + half + i, n);
        lanes_store_n(x + i, rope_turn(a, b, lanes_load_n(c + i, n), lanes_load_n(s + i, n)), n);
        lanes_store_n(x + half + i, rope_turn(b, a, lanes_load_n(c + half + i, n), lanes_load_n(s + half + i, n)), n);
    }
}

/* An infinity, which would make a score of -infinity and go unnoticed, as NaN. */
LANES_INLINE uint16_t bf16_or_nan(uint16_t x)
{
    return (uint16_t)(x | ((x & 0x7fffu) == 0x7f80u) << 6);
}

/* Codes and scale of one token: code = x * (127 / amax) to nearest even, scale = amax / 127, which is 0 or at least
 * LANES_BF16_LEAST. What BF16 cannot hold makes the scale NaN, and with it every value. */
static void write_i8(int8_t *codes, size_t stride, float *scale, const float *x, uint32_t D)
{
    float amax = 0;
    bool sound = true;
    for (uint32_t d = 0; d < D; d++) {
        float size = fabsf(x[d]);
        if (!(size <= 0x1.fep127f)) sound = false;
        amax = size > amax ? size : amax;
    }
    bool live = sound && amax >= 128 * LANES_BF16_LEAST;
    float inverse = live ? 127.0f / amax : 0.0f;
    *scale = live ? amax / 127.0f : sound ? 0.0f : NAN;
    for (uint32_t d = 0; d < D; d++) codes[d * stride] = live ? (int8_t)lrintf(x[d] * inverse) : 0;
}

void LANES_NAME(kv_write)(const struct kv_layout *layout, uint8_t *head, uint32_t slot, const float *k, const float *v)
{
    uint32_t D = layout->D;
    if (layout->type == KV_F32) {
        float *K = (float *)(void *)head + slot;
        for (uint32_t d = 0; d < D; d++) K[d * KV_TOKENS] = k[d];
        memcpy((float *)(void *)(head + layout->v_offset_bytes) + slot * layout->P, v, D * sizeof *v);
        return;
    }
    if (layout->type == KV_I8) {
        uint8_t *values = head + layout->v_offset_bytes;
        float *k_scales = (float *)(void *)(head + kv_i8_scales((size_t)KV_TOKENS * D));
        float *v_scales = (float *)(void *)(values + kv_i8_scales((size_t)KV_TOKENS * layout->P));
        write_i8((int8_t *)head + kv_k_index(layout, slot, 0), KV_TOKENS, k_scales + slot, k, D);
        write_i8((int8_t *)values + kv_v_index(layout, slot, 0), 1, v_scales + slot, v, D);
        return;
    }
    uint16_t *K = (uint16_t *)(void *)head + kv_k_index(layout, slot, 0);
    uint16_t *V = (uint16_t *)(void *)(head + layout->v_offset_bytes) + kv_v_index(layout, slot, 0);
    for (uint32_t d = 0; d < D; d += 16, K += 16 * KV_TOKENS, V += 32) {
        uint16_t items[16];
        uint32_t n = D - d < 16 ? D - d : 16;
        lanes_store_bf16(items, lanes_drop_small(lanes_load_n(k + d, n)));
        for (uint32_t i = 0; i < (n + 1) / 2; i++) {
            K[i * 2 * KV_TOKENS] = bf16_or_nan(items[2 * i]);
            K[i * 2 * KV_TOKENS + 1] = bf16_or_nan(items[2 * i + 1]);
        }
        lanes_store_bf16(items, lanes_drop_small(lanes_load_n(v + d, n)));
        for (uint32_t i = 0; i < 16; i++) V[2 * i] = bf16_or_nan(items[i]);
    }
}

#endif
