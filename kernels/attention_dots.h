/* The first pass of attention_body.h: scores of a chunk. Included by it alone. */
#ifndef KERNELS_ATTENTION_DOTS_H
#define KERNELS_ATTENTION_DOTS_H

#ifndef KERNELS_ATTENTION_BODY_H
#error "include kernels/attention_body.h"
#endif

/* Scores of n vectors against nb blocks; n, nb and half are constants. */
LANES_INLINE void dot_tile(int n, int nb, int half, const struct chunk *chunk, uint32_t v, uint32_t block)
{
    struct lanes sums[DOT_CHAINS > DOT_VECTORS ? DOT_CHAINS : DOT_VECTORS];
    uint32_t D = chunk->args->layout.D;
    const float *q = chunk->turned + (size_t)v * D;
    LANES_UNROLL for (int i = 0; i < n * nb; i++) sums[i] = lanes_zero();
    for (uint32_t d = 0; d < D; d++, q += n) {
        LANES_UNROLL for (int b = 0; b < nb; b++)
        {
            struct lanes k = kv_load(half, chunk->heads[block + (uint32_t)b], (size_t)d * KV_TOKENS);
            LANES_UNROLL for (int i = 0; i < n; i++) sums[b * n + i] = lanes_fma(lanes_set(q[i]), k, sums[b * n + i]);
        }
    }
    struct lanes scale = lanes_set(chunk->args->scale);
    LANES_UNROLL for (int b = 0; b < nb; b++)
    {
        LANES_UNROLL for (int i = 0; i < n; i++)
        {
            float *s = chunk->scores + (v + (uint32_t)i) * ATTENTION_CHUNK + (block + (uint32_t)b) * KV_TOKENS;
            lanes_store(s, lanes_mul(sums[b * n + i], scale));
        }
    }
}

/* All blocks of the chunk, nb at a time while there are so many. */
LANES_INLINE void dot_blocks(int n, int half, const struct chunk *chunk, uint32_t v)
{
    const int nb = n * 4 <= DOT_CHAINS ? 4 : n * 2 <= DOT_CHAINS ? 2 : 1;
    uint32_t block = 0;
    for (; block + (uint32_t)nb <= chunk->blocks; block += (uint32_t)nb) dot_tile(n, nb, half, chunk, v, block);
    if (nb > 1) {
        for (; block < chunk->blocks; block++) dot_tile(n, 1, half, chunk, v, block);
    }
}

LANES_INLINE void dot_groups(int half, const struct chunk *chunk, uint32_t vectors)
{
    for (uint32_t v = 0; v < vectors; v += DOT_VECTORS) {
        uint32_t n = vectors - v < DOT_VECTORS ? vectors - v : DOT_VECTORS;
        if (v + n <= chunk->vector_begin) continue;
        if (n == 1) dot_blocks(1, half, chunk, v);
        if (DOT_VECTORS >= 2 && n == 2) dot_blocks(2, half, chunk, v);
        if (DOT_VECTORS >= 3 && n == 3) dot_blocks(3, half, chunk, v);
        if (DOT_VECTORS >= 4 && n == 4) dot_blocks(4, half, chunk, v);
        if (DOT_VECTORS >= 5 && n == 5) dot_blocks(5, half, chunk, v);
        if (DOT_VECTORS >= 6 && n == 6) dot_blocks(6, half, chunk, v);
        if (DOT_VECTORS >= 7 && n == 7) dot_blocks(7, half, chunk, v);
        if (DOT_VECTORS >= 8 && n == 8) dot_blocks(8, half, chunk, v);
    }
}

#endif
