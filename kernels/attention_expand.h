/* KV of int8 as KV of BF16, block by block, in front of the passes of attention_body.h: code * scale, rounded. The
 * passes then know BF16 alone; a block is expanded once for all rows and heads of a call. Included by it alone. */
#ifndef KERNELS_ATTENTION_EXPAND_H
#define KERNELS_ATTENTION_EXPAND_H

#ifndef KERNELS_ATTENTION_BODY_H
#error "include kernels/attention_body.h"
#endif

LANES_INLINE struct lanes expand_codes(const int8_t *codes, struct lanes scales)
{
    return lanes_mul(lanes_load_i8(codes), scales);
}

/* One head of one block: `from` laid out as KV_I8, `to` as KV_BF16. */
static void expand_head(uint32_t D, const uint8_t *from, uint8_t *to)
{
    struct kv_layout small = kv_layout_of(KV_I8, D), wide = kv_layout_of(KV_BF16, D);
    const int8_t *k = (const int8_t *)from, *v = (const int8_t *)from + small.v_offset_bytes;
    const float *k_scales = (const float *)(const void *)(k + kv_i8_scales((size_t)KV_TOKENS * D));
    const float *v_scales = (const float *)(const void *)(v + kv_i8_scales((size_t)KV_TOKENS * small.P));
    float *pairs = (float *)(void *)to;
    struct lanes scales = lanes_load(k_scales);
    for (uint32_t d = 0; d < D; d += 2, k += 2 * KV_TOKENS, pairs += KV_TOKENS) {
        struct lanes odd = d + 1 < D ? expand_codes(k + KV_TOKENS, scales) : lanes_zero();
        lanes_store(pairs, lanes_round_pairs(expand_codes(k, scales), odd));
    }
    pairs = (float *)(void *)(to + wide.v_offset_bytes);
    for (uint32_t t = 0; t < KV_TOKENS; t += 2, v += 2 * small.P) {
        struct lanes even = lanes_set(v_scales[t]), odd = lanes_set(v_scales[t + 1]);
        for (uint32_t d = 0; d < small.P; d += 16, pairs += 16) {
            lanes_store(pairs, lanes_round_pairs(expand_codes(v + d, even), expand_codes(v + small.P + d, odd)));
        }
    }
}

#endif
