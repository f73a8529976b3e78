/* The first pass of attention_body.h: queries in the order in which they are read, scores of a chunk. Included by it
 * alone. */
#ifndef KERNELS_ATTENTION_DOTS_H
#define KERNELS_ATTENTION_DOTS_H

#ifndef KERNELS_ATTENTION_BODY_H
#error "include kernels/attention_body.h"
#endif

/* Lines that memory or another core's cache has are asked for at once: later loads and stores would wait one by one. */
static void fetch_rows(const struct attention_args *args)
{
    size_t items = (size_t)args->G * args->layout.D;
    for (uint32_t r = 0; r < args->rows; r++) {
        for (size_t i = 0; i < items; i += 16) __builtin_prefetch(args->q + r * args->q_stride + i, 0);
        for (size_t i = 0; i < items; i += 16) __builtin_prefetch(args->out + r * args->out_stride + i, 1);
    }
}

static void turn_queries(const struct attention_args *args, float *turned)
{
    uint32_t vectors = args->rows * args->G, D = args->layout.D, steps = dot_steps(args);
    fetch_rows(args);
    for (uint32_t v = 0; v < vectors; v++) {
        uint32_t first = v - v % DOT_VECTORS, n = vectors - first < DOT_VECTORS ? vectors - first : DOT_VECTORS;
        const float *q = args->q + v / args->G * args->q_stride + (size_t)(v % args->G) * D;
        float *target = turned + (size_t)first * steps + v % DOT_VECTORS;
        for (uint32_t d = 0; d < D; d += 16) {
            float items[16];
            struct lanes x = lanes_load_n(q + d, D - d < 16 ? D - d : 16);
            uint32_t count = args->layout.type == KV_F32 ? 16 : 8, begin = d * count / 16;
            if (args->layout.type == KV_F32) {
                lanes_store(items, x);
            } else {
                lanes_store_bf16((uint16_t *)(void *)items, lanes_drop_small(x));
            }
            if (count > steps - begin) count = steps - begin;
            for (uint32_t i = 0; i < count; i++, target += n) memcpy(target, items + i, sizeof *target);
        }
    }
}

/* Scores of n vectors against nb blocks; type, fetch, n and nb are constants. fetch: asks for the lines of V meanwhile.
 */
LANES_INLINE void dot_tile(enum kv_type type, bool fetch, int n, int nb, const struct chunk *chunk, uint32_t v,
                           uint32_t block)
{
    struct lanes sums[DOT_CHAINS];
    uint32_t steps = dot_steps(chunk->args);
    const float *q = chunk->turned + (size_t)v * steps;
    LANES_UNROLL for (int i = 0; i < n * nb; i++) sums[i] = lanes_zero();
    for (uint32_t d = 0; d < steps; d++, q += n) {
        struct lanes k[DOT_BLOCKS];
        LANES_UNROLL for (int b = 0; fetch && b < nb; b++)
        {
            __builtin_prefetch(values_of(chunk, block + (uint32_t)b) + d * KV_TOKENS, 0, 2);
        }
        LANES_UNROLL for (int b = 0; b < nb; b++) k[b] =
            lanes_load(keys_of(chunk, block + (uint32_t)b) + d * KV_TOKENS);
        LANES_UNROLL for (int i = 0; i < n; i++)
        {
            struct lanes query = lanes_set(q[i]);
            LANES_UNROLL for (int b = 0; b < nb; b++)
            {
                sums[b * n + i] = multiply_add(type, query, k[b], sums[b * n + i]);
            }
        }
    }
    struct lanes scale = lanes_set(type == KV_F32 ? chunk->args->scale : chunk->args->scale * 1.44269504088896341f);
    LANES_UNROLL for (int b = 0; b < nb; b++)
    {
        LANES_UNROLL for (int i = 0; i < n; i++)
        {
            float *s = chunk->scores + (v + (uint32_t)i) * ATTENTION_CHUNK + (block + (uint32_t)b) * KV_TOKENS;
            lanes_store(s, lanes_mul(sums[b * n + i], scale));
        }
    }
}

/* All blocks of the chunk, as many at a time as there are. */
LANES_INLINE void dot_blocks(enum kv_type type, bool fetch, int n, const struct chunk *chunk, uint32_t v)
{
    uint32_t block = chunk->block_begin;
    if (DOT_BLOCKS >= 4) {
        for (; block + 4 <= chunk->blocks; block += 4) dot_tile(type, fetch, n, 4, chunk, v, block);
    }
    if (DOT_BLOCKS >= 2) {
        for (; block + 2 <= chunk->blocks; block += 2) dot_tile(type, fetch, n, 2, chunk, v, block);
    }
    for (; block < chunk->blocks; block++) dot_tile(type, fetch, n, 1, chunk, v, block);
}

LANES_INLINE void dot_groups(enum kv_type type, bool fetch, const struct chunk *chunk)
{
    uint32_t vectors = chunk->args->rows * chunk->args->G; /* groups are those of turn_queries */
    for (uint32_t v = 0; v < chunk->vector_end; v += DOT_VECTORS) {
        uint32_t n = vectors - v < DOT_VECTORS ? vectors - v : DOT_VECTORS;
        if (v + n <= chunk->vector_begin) continue;
        if (n == 1) dot_blocks(type, fetch, 1, chunk, v);
        if (DOT_VECTORS >= 2 && n == 2) dot_blocks(type, fetch, 2, chunk, v);
        if (DOT_VECTORS >= 3 && n == 3) dot_blocks(type, fetch, 3, chunk, v);
        if (DOT_VECTORS >= 4 && n == 4) dot_blocks(type, fetch, 4, chunk, v);
        if (DOT_VECTORS >= 5 && n == 5) dot_blocks(type, fetch, 5, chunk, v);
        if (DOT_VECTORS >= 6 && n == 6) dot_blocks(type, fetch, 6, chunk, v);
    }
}

#endif
