/* How a block of 16 tokens of KV lies in memory, for one layer: KH heads one after the other, each
 *
 *   K  [D][16]    lane t of row d is value d of token t: a score needs no shuffle and no transposition
 *   V  [16][P]    P = D rounded up to 16
 *
 * in f32 (exact numerics) or binary16 (fast). A block of the cache is L of these, so that a sequence touches memory in
 * step with its length. Slots not yet written may hold anything, NaN included: readers mask them (attention.h). */
#ifndef KERNELS_KV_H
#define KERNELS_KV_H

#include <stddef.h>
#include <stdint.h>

enum kv_type { KV_F32, KV_F16 };
enum { KV_TOKENS = 16 };

struct kv_layout {
    enum kv_type type;
    uint32_t D, P;
    size_t v_offset_bytes; /* of V within a head */
    size_t head_bytes;     /* K and V of one head, a multiple of 64 */
};

static inline struct kv_layout kv_layout_of(enum kv_type type, uint32_t D)
{
    size_t item_bytes = type == KV_F32 ? 4 : 2;
    uint32_t P = (D + 15) & ~15u;
    size_t k_bytes = (KV_TOKENS * D * item_bytes + 63) & ~(size_t)63;
    size_t v_bytes = (KV_TOKENS * P * item_bytes + 63) & ~(size_t)63;
    return (struct kv_layout){type, D, P, k_bytes, k_bytes + v_bytes};
}

#endif
