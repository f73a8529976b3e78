/* How a block of 16 tokens of KV lies in memory, for one layer: KH heads one after the other, each
 *
 *   f32   K  [D][16]         lane t of row d is value d of token t: a score needs no shuffle and no transposition
 *         V  [16][P]         P = D rounded up to 16
 *   BF16  K  [D/2][16][2]    values 2d and 2d + 1 of a token stand together, as vdpbf16ps takes them
 *         V  [8][P][2]       and so do value d of tokens 2t and 2t + 1; D odd: the last K pair ends in 0
 *
 * f32 in exact numerics, BF16 in fast. A block of the cache is L of these, so that a sequence touches memory in step
 * with its length. Slots not yet written may hold anything, NaN included: readers mask them (attention.h). */
#ifndef KERNELS_KV_H
#define KERNELS_KV_H

#include <stddef.h>
#include <stdint.h>

enum kv_type { KV_F32, KV_BF16 };
enum { KV_TOKENS = 16 };

struct kv_layout {
    enum kv_type type;
    uint32_t D, P;
    size_t v_offset_bytes; /* of V within a head */
    size_t head_bytes;     /* K and V of one head, a multiple of 64 */
};

static inline struct kv_layout kv_layout_of(enum kv_type type, uint32_t D)
{
    uint32_t P = (D + 15) & ~15u;
    size_t item_bytes = type == KV_F32 ? 4 : 2;
    size_t k_bytes = KV_TOKENS * (type == KV_F32 ? D : (D + 1) & ~1u) * item_bytes;
    return (struct kv_layout){type, D, P, k_bytes, k_bytes + KV_TOKENS * P * item_bytes};
}

/* Index of value d of the token in `slot`, in items of the type, from the head's K and from its V. */
static inline size_t kv_k_index(const struct kv_layout *layout, uint32_t slot, uint32_t d)
{
    return layout->type == KV_F32 ? (size_t)d * KV_TOKENS + slot : ((size_t)d / 2 * KV_TOKENS + slot) * 2 + d % 2;
}
static inline size_t kv_v_index(const struct kv_layout *layout, uint32_t slot, uint32_t d)
{
    return layout->type == KV_F32 ? (size_t)slot * layout->P + d : ((size_t)slot / 2 * layout->P + d) * 2 + slot % 2;
}

#endif
