/* How a block of 16 tokens of KV lies in memory, for one layer: KH heads one after the other, each
 *
 *   f32   K  [D][16]         lane t of row d is value d of token t: a score needs no shuffle and no transposition
 *         V  [16][P]         P = D rounded up to 16
 *   BF16  K  [D/2][16][2]    values 2d and 2d + 1 of a token stand together, as vdpbf16ps takes them
 *         V  [8][P][2]       and so do value d of tokens 2t and 2t + 1; D odd: the last K pair ends in 0
 *   int8  K  [D][16], then a scale in f32 a token, V [16][P], then the same: value = code * scale, rounded to BF16
 *
 * f32 in exact numerics, BF16 in fast, int8 on request: half the bytes of BF16. A block of the cache is L of these, so
 * that a sequence touches memory in step with its length. Slots not yet written may hold anything, NaN included:
 * readers mask them (attention.h). */
#ifndef KERNELS_KV_H
#define KERNELS_KV_H

#include <stddef.h>
#include <stdint.h>

enum kv_type { KV_F32, KV_BF16, KV_I8 };
enum { KV_TOKENS = 16 };

struct kv_layout {
    enum kv_type type;
    uint32_t D, P;
    size_t v_offset_bytes; /* of V within a head */
    size_t head_bytes;     /* K and V of one head, a multiple of 64 */
};

/* Offset of the scales behind so many codes. */
static inline size_t kv_i8_scales(size_t codes)
{
    return (codes + 63) & ~(size_t)63;
}

static inline struct kv_layout kv_layout_of(enum kv_type type, uint32_t D)
{
    uint32_t P = (D + 15) & ~15u;
    if (type == KV_I8) {
        size_t k_bytes = kv_i8_scales(KV_TOKENS * D) + KV_TOKENS * sizeof(float);
        return (struct kv_layout){type, D, P, k_bytes,
                                  k_bytes + kv_i8_scales(KV_TOKENS * P) + KV_TOKENS * sizeof(float)};
    }
    size_t item_bytes = type == KV_F32 ? 4 : 2;
    size_t k_bytes = KV_TOKENS * (type == KV_F32 ? D : (D + 1) & ~1u) * item_bytes;
    return (struct kv_layout){type, D, P, k_bytes, k_bytes + KV_TOKENS * P * item_bytes};
}

/* Index of value d of the token in `slot`, in items of the type, from the head's K and from its V. */
static inline size_t kv_k_index(const struct kv_layout *layout, uint32_t slot, uint32_t d)
{
    return layout->type != KV_BF16 ? (size_t)d * KV_TOKENS + slot : ((size_t)d / 2 * KV_TOKENS + slot) * 2 + d % 2;
}
static inline size_t kv_v_index(const struct kv_layout *layout, uint32_t slot, uint32_t d)
{
    return layout->type != KV_BF16 ? (size_t)slot * layout->P + d : ((size_t)slot / 2 * layout->P + d) * 2 + slot % 2;
}

#endif
