/* The third pass of attention_body.h: a[d] of a chunk. Included by it alone. */
#ifndef KERNELS_ATTENTION_MIXES_H
#define KERNELS_ATTENTION_MIXES_H

#ifndef KERNELS_ATTENTION_BODY_H
#error "include kernels/attention_body.h"
#endif

/* Tokens of one step of a chain, and so of one row of V. */
LANES_INLINE uint32_t mix_step(enum kv_type type)
{
    return type == KV_F32 ? 1 : 2;
}

LANES_INLINE void mix_load(int nd, struct lanes *value, const float *row)
{
    LANES_UNROLL for (int j = 0; j < nd; j++) value[j] = lanes_load(row + j * 16);
}

LANES_INLINE void mix_add(enum kv_type type, int n, int nd, const float *p, const struct lanes *value,
                          struct lanes (*a)[MIX_LANES])
{
    LANES_UNROLL for (int i = 0; i < n; i++)
    {
        struct lanes weight = lanes_set(p[i * ATTENTION_CHUNK]);
        LANES_UNROLL for (int j = 0; j < nd; j++) a[i][j] = multiply_add(type, weight, value[j], a[i][j]);
    }
}

/* a[d0 .. d0 + 16 nd) of n vectors over tokens [begin, end) of the chunk, on top of what stands there unless they are
 * fresh; type, fetch, n and nd are constants. fetch: asks for the next chunk's K meanwhile. In BF16 begin is even; a
 * pair of which only the first token counts comes last. */
LANES_INLINE void mix_tile(enum kv_type type, bool fetch, int n, int nd, const struct chunk *chunk, uint32_t v,
                           uint32_t d0, struct token_span tokens)
{
    uint32_t P = chunk->args->layout.P, t = tokens.begin, whole = tokens.end - tokens.end % mix_step(type);
    float *mixed = chunk->result.mixed + (size_t)v * P + d0;
    const float *p = chunk->scores + (size_t)v * ATTENTION_CHUNK;
    struct lanes a[MIX_VECTORS][MIX_LANES], value[MIX_LANES];
    LANES_UNROLL for (int i = 0; i < n; i++)
    {
        LANES_UNROLL for (int j = 0; j < nd; j++)
        {
            a[i][j] = !tokens.fresh ? lanes_load(mixed + (uint32_t)i * P + j * 16) : lanes_zero();
        }
    }
    while (t < whole) {
        const float *row = values_of(chunk, t / KV_TOKENS) + t % KV_TOKENS / mix_step(type) * P + d0;
        uint32_t stop = (t / KV_TOKENS + 1) * KV_TOKENS < whole ? (t / KV_TOKENS + 1) * KV_TOKENS : whole;
        const float *ahead = fetch ? (const float *)(const void *)chunk->ahead[t / KV_TOKENS] : NULL;
        if (fetch) ahead += row - values_of(chunk, t / KV_TOKENS);
        for (; t < stop; t += mix_step(type), row += P) {
            LANES_UNROLL for (int j = 0; fetch && j < nd; j++) __builtin_prefetch(ahead + j * 16, 0, 2);
            if (fetch) ahead += P;
            mix_load(nd, value, row);
            mix_add(type, n, nd, p + t / mix_step(type), value, a);
        }
    }
    if (type == KV_BF16 && t < tokens.end) {
        mix_load(nd, value, values_of(chunk, t / KV_TOKENS) + t % KV_TOKENS / 2 * P + d0);
        LANES_UNROLL for (int j = 0; j < nd; j++) value[j] = lanes_even_pairs(value[j]);
        mix_add(type, n, nd, p + t / 2, value, a);
    }
    LANES_UNROLL for (int i = 0; i < n; i++)
    {
        LANES_UNROLL for (int j = 0; j < nd; j++) lanes_store(mixed + (uint32_t)i * P + j * 16, a[i][j]);
    }
}

LANES_INLINE void mix_columns(enum kv_type type, bool fetch, int n, const struct chunk *chunk, uint32_t v,
                              struct token_span tokens)
{
    uint32_t d0 = 0, P = chunk->args->layout.P;
    for (; d0 + MIX_LANES * 16 <= P; d0 += MIX_LANES * 16) mix_tile(type, fetch, n, MIX_LANES, chunk, v, d0, tokens);
    if (MIX_LANES > 1) {
        for (; d0 < P; d0 += 16) mix_tile(type, fetch, n, 1, chunk, v, d0, tokens);
    }
}

/* Vectors [v, v_end) over the tokens. */
LANES_INLINE void mix_groups(enum kv_type type, bool fetch, const struct chunk *chunk, uint32_t v, uint32_t v_end,
                             struct token_span tokens)
{
    for (; v < v_end; v += MIX_VECTORS) {
        uint32_t n = v_end - v < MIX_VECTORS ? v_end - v : MIX_VECTORS;
        if (n == 1) mix_columns(type, fetch, 1, chunk, v, tokens);
        if (MIX_VECTORS >= 2 && n == 2) mix_columns(type, fetch, 2, chunk, v, tokens);
        if (MIX_VECTORS >= 3 && n == 3) mix_columns(type, fetch, 3, chunk, v, tokens);
        if (MIX_VECTORS >= 4 && n == 4) mix_columns(type, fetch, 4, chunk, v, tokens);
        if (MIX_VECTORS >= 5 && n == 5) mix_columns(type, fetch, 5, chunk, v, tokens);
        if (MIX_VECTORS >= 6 && n == 6) mix_columns(type, fetch, 6, chunk, v, tokens);
    }
}

/* The chunk's a[d] for all vectors that see it: each row's own beginning, what all rows see together, each row's own
 * rest. A chain begins with a whole step; what the row does not see of it has probability 0. */
LANES_INLINE void chunk_mix(enum kv_type type, bool fetch, const struct chunk *chunk)
{
    uint32_t G = chunk->args->G, step = mix_step(type), begin = chunk->vector_begin, end = chunk->vector_end;
    uint32_t first_end = chunk_end(chunk, begin / G), last_begin = chunk_first(chunk, end / G - 1);
    last_begin -= last_begin % step;
    if (chunk_end(chunk, end / G - 1) == first_end && (last_begin == 0 || end - begin == G)) {
        mix_groups(type, fetch, chunk, begin, end, (struct token_span){last_begin, first_end, true});
        return;
    }
    uint32_t common_end = first_end - first_end % step;
    bool together = common_end > last_begin;
    for (uint32_t v = begin; last_begin && v < end; v += G) {
        uint32_t own = chunk_first(chunk, v / G), own_end = together ? last_begin : chunk_end(chunk, v / G);
        mix_groups(type, false, chunk, v, v + G, (struct token_span){own - own % step, own_end, true});
    }
    if (together)
        mix_groups(type, false, chunk, begin, end, (struct token_span){last_begin, common_end, last_begin == 0});
    if (!together && last_begin) return;
    for (uint32_t v = begin; v < end; v += G) {
        struct token_span rest = {together ? common_end : 0, chunk_end(chunk, v / G), !together};
        if (rest.end > rest.begin) mix_groups(type, false, chunk, v, v + G, rest);
    }
}

#endif
