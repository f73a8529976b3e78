/* The lane-structured attention, compiled once a path; see attention.h for the definition and lanes.h for the lanes.
 *
 * A "vector" is one query head of one row; vector v = row * G + head. A chunk goes through three passes:
 *   dots   tokens in lanes: each K register serves up to DOT_VECTORS vectors, and several blocks at once where few
 * vectors would leave the fma pipes waiting for their own results peaks  maximum, exponentials, sum; lanes past the
 * row's position become probability 0 mixes  d in lanes: each V register serves up to MIX_VECTORS vectors; only tokens
 * that a row may see are read How many are taken together changes no bits: every score, sum and a[d] is one chain of
 * its own. Included by attention*.c alone. */
#ifndef KERNELS_ATTENTION_BODY_H
#define KERNELS_ATTENTION_BODY_H

#include "kernels/attention.h"
#include "kernels/lanes.h"

#include <stdbool.h>

#if defined(__AVX512F__) /* 32 registers of 16 lanes */
enum { DOT_VECTORS = 8, DOT_CHAINS = 12, MIX_VECTORS = 6, MIX_LANES = 4 };
#elif defined(__AVX2__) /* 16 of 8 */
enum { DOT_VECTORS = 4, DOT_CHAINS = 4, MIX_VECTORS = 6, MIX_LANES = 1 };
#else
enum { DOT_VECTORS = 1, DOT_CHAINS = 1, MIX_VECTORS = 1, MIX_LANES = 1 };
#endif
enum { CHUNK_BLOCKS = ATTENTION_CHUNK / KV_TOKENS };

struct chunk {
    const struct attention_args *args;
    uint32_t begin, blocks; /* first position; blocks with positions that the last row sees */
    const uint8_t *heads[CHUNK_BLOCKS];
    uint32_t vector_begin, vector_end; /* of the rows that see the chunk at all */
    float *turned;                     /* q: [group of DOT_VECTORS][D][vectors of the group] */
    float *scores;                     /* [vector][128], then probabilities */
    float *mixed;                      /* [vector][P] */
};

LANES_INLINE struct lanes kv_load(int half, const uint8_t *base, size_t idx)
{
    return half ? lanes_load_half((const uint16_t *)(const void *)base + idx)
                : lanes_load((const float *)(const void *)base + idx);
}

#include "kernels/attention_dots.h"

/* Scores become probabilities, unnormalised; positions from `end` on (of the chunk) become 0. Gives maximum and sum. */
static void peak_vector(float *scores, uint32_t end, float *peak, float *sum)
{
    struct lanes highest = lanes_set(-INFINITY), total = lanes_zero();
    for (uint32_t t = 0; t < end; t += 16) {
        struct lanes s = lanes_load(scores + t);
        if (end - t < 16) {
            s = lanes_first(end - t, s, lanes_set(-INFINITY));
            lanes_store(scores + t, s);
        }
        highest = lanes_max(s, highest);
    }
    *peak = lanes_peak(highest);
    for (uint32_t t = 0; t < end; t += 16) {
        struct lanes p = lanes_exp(lanes_sub(lanes_load(scores + t), lanes_set(*peak)));
        if (end - t < 16) p = lanes_first(end - t, p, lanes_zero());
        lanes_store(scores + t, p);
        total = lanes_add(total, p);
    }
    *sum = lanes_sum(total);
}

/* a[d0 .. d0 + 16 nd) of n vectors over tokens [begin, end) of the chunk; n, nd and half are constants. */
LANES_INLINE void mix_tile(int n, int nd, int half, const struct chunk *chunk, uint32_t v, uint32_t d0, uint32_t begin,
                           uint32_t end)
{
    const struct kv_layout *layout = &chunk->args->layout;
    float *mixed = chunk->mixed + (size_t)v * layout->P + d0;
    const float *p = chunk->scores + (size_t)v * ATTENTION_CHUNK;
    struct lanes a[MIX_VECTORS][MIX_LANES];
    LANES_UNROLL for (int i = 0; i < n; i++)
    {
        LANES_UNROLL for (int j = 0; j < nd; j++) a[i][j] = lanes_load(mixed + (uint32_t)i * layout->P + j * 16);
    }
    for (uint32_t t = begin; t < end;) {
        const uint8_t *values = chunk->heads[t / KV_TOKENS] + layout->v_offset_bytes;
        uint32_t stop = (t / KV_TOKENS + 1) * KV_TOKENS < end ? (t / KV_TOKENS + 1) * KV_TOKENS : end;
        for (; t < stop; t++) {
            struct lanes value[MIX_LANES];
            LANES_UNROLL for (int j = 0; j < nd; j++)
            {
                value[j] = kv_load(half, values, (size_t)(t % KV_TOKENS) * layout->P + d0 + (uint32_t)j * 16);
            }
            LANES_UNROLL for (int i = 0; i < n; i++)
            {
                struct lanes weight = lanes_set(p[i * ATTENTION_CHUNK + (int)t]);
                LANES_UNROLL for (int j = 0; j < nd; j++) a[i][j] = lanes_fma(weight, value[j], a[i][j]);
            }
        }
    }
    LANES_UNROLL for (int i = 0; i < n; i++)
    {
        LANES_UNROLL for (int j = 0; j < nd; j++) lanes_store(mixed + (uint32_t)i * layout->P + j * 16, a[i][j]);
    }
}

LANES_INLINE void mix_columns(int n, int half, const struct chunk *chunk, uint32_t v, uint32_t begin, uint32_t end)
{
    uint32_t d0 = 0, P = chunk->args->layout.P;
    for (; d0 + MIX_LANES * 16 <= P; d0 += MIX_LANES * 16) mix_tile(n, MIX_LANES, half, chunk, v, d0, begin, end);
    if (MIX_LANES > 1) {
        for (; d0 < P; d0 += 16) mix_tile(n, 1, half, chunk, v, d0, begin, end);
    }
}

/* Vectors [v, v_end) over tokens [begin, end) of the chunk. */
LANES_INLINE void mix_groups(int half, const struct chunk *chunk, uint32_t v, uint32_t v_end, uint32_t begin,
                             uint32_t end)
{
    for (; v < v_end; v += MIX_VECTORS) {
        uint32_t n = v_end - v < MIX_VECTORS ? v_end - v : MIX_VECTORS;
        if (n == 1) mix_columns(1, half, chunk, v, begin, end);
        if (MIX_VECTORS >= 2 && n == 2) mix_columns(2, half, chunk, v, begin, end);
        if (MIX_VECTORS >= 3 && n == 3) mix_columns(3, half, chunk, v, begin, end);
        if (MIX_VECTORS >= 4 && n == 4) mix_columns(4, half, chunk, v, begin, end);
        if (MIX_VECTORS >= 5 && n == 5) mix_columns(5, half, chunk, v, begin, end);
        if (MIX_VECTORS >= 6 && n == 6) mix_columns(6, half, chunk, v, begin, end);
    }
}

static void mix(const struct chunk *chunk, uint32_t v, uint32_t v_end, uint32_t begin, uint32_t end)
{
    if (chunk->args->layout.type == KV_F16) {
        mix_groups(1, chunk, v, v_end, begin, end);
    } else {
        mix_groups(0, chunk, v, v_end, begin, end);
    }
}

/* Tokens of the chunk that a row sees; 0 when the chunk begins after it. */
static uint32_t chunk_end(const struct chunk *chunk, uint32_t row)
{
    uint32_t seen = chunk->args->position + row + 1;
    if (seen <= chunk->begin) return 0;
    return seen - chunk->begin < ATTENTION_CHUNK ? seen - chunk->begin : ATTENTION_CHUNK;
}

/* The chunk's a[d] for all vectors that see it: what all rows see together, then each row's own rest. */
static void chunk_mix(const struct chunk *chunk)
{
    uint32_t G = chunk->args->G, P = chunk->args->layout.P;
    uint32_t common = chunk_end(chunk, chunk->vector_begin / G);
    for (size_t i = (size_t)chunk->vector_begin * P; i < (size_t)chunk->vector_end * P; i += 16) {
        lanes_store(chunk->mixed + i, lanes_zero());
    }
    mix(chunk, chunk->vector_begin, chunk->vector_end, 0, common);
    for (uint32_t v = chunk->vector_begin; v < chunk->vector_end; v += G) {
        uint32_t end = chunk_end(chunk, v / G);
        if (end > common) mix(chunk, v, v + G, common, end);
    }
}

static float exp_of(float x)
{
    float y[16];
    lanes_store(y, lanes_exp(lanes_set(x)));
    return y[0];
}

/* Merges chunk results (peak, sum, mixed) of one vector into the running ones. */
static void merge_vector(float *peak_all, float *sum_all, float *all, float peak, float sum, const float *mixed,
                         uint32_t P)
{
    float highest = *peak_all > peak ? *peak_all : peak;
    float x = exp_of(*peak_all - highest), y = exp_of(peak - highest);
    *sum_all = fmaf(*sum_all, x, sum * y);
    *peak_all = highest;
    for (uint32_t d = 0; d < P; d += 16) {
        struct lanes added = lanes_mul(lanes_load(mixed + d), lanes_set(y));
        lanes_store(all + d, lanes_fma(lanes_load(all + d), lanes_set(x), added));
    }
}

static void turn_queries(const struct attention_args *args, float *turned)
{
    uint32_t vectors = args->rows * args->G, D = args->layout.D;
    for (uint32_t v = 0; v < vectors; v++) {
        uint32_t first = v - v % DOT_VECTORS, n = vectors - first < DOT_VECTORS ? vectors - first : DOT_VECTORS;
        const float *q = args->q + v / args->G * args->q_stride + (size_t)(v % args->G) * D;
        float *target = turned + (size_t)first * D + v % DOT_VECTORS;
        for (uint32_t d = 0; d < D; d++) target[(size_t)d * n] = q[d];
    }
}

/* Peaks and sums of the vectors that see the chunk, into peaks[v], sums[v]. */
static void chunk_peaks(const struct chunk *chunk, float *peaks, float *sums)
{
    for (uint32_t v = chunk->vector_begin; v < chunk->vector_end; v++) {
        float *scores = chunk->scores + (size_t)v * ATTENTION_CHUNK;
        peak_vector(scores, chunk_end(chunk, v / chunk->args->G), &peaks[v], &sums[v]);
    }
}

static void write_out(const struct attention_args *args, const float *all, const float *sums)
{
    uint32_t vectors = args->rows * args->G, P = args->layout.P, D = args->layout.D;
    for (uint32_t v = 0; v < vectors; v++) {
        float *out = args->out + v / args->G * args->out_stride + (size_t)(v % args->G) * D;
        struct lanes scale = lanes_set(1.0f / sums[v]);
        for (uint32_t d = 0; d < D; d += 16) {
            lanes_store_n(out + d, lanes_mul(lanes_load(all + (size_t)v * P + d), scale), D - d < 16 ? D - d : 16);
        }
    }
}

void LANES_NAME(attention)(const struct attention_args *args)
{
    uint32_t vectors = args->rows * args->G, P = args->layout.P, positions = args->position + args->rows;
    float *turned = args->scratch, *mixed = turned + (size_t)vectors * P, *all = mixed + (size_t)vectors * P;
    float *scores = all + (size_t)vectors * P, *peaks = scores + (size_t)vectors * ATTENTION_CHUNK;
    float *sums = peaks + vectors, *chunk_tops = sums + vectors, *chunk_sums = chunk_tops + vectors;
    struct chunk chunk = {.args = args, .vector_end = vectors, .turned = turned, .scores = scores};
    turn_queries(args, turned);
    for (; chunk.begin < positions; chunk.begin += ATTENTION_CHUNK) {
        uint32_t tokens = positions - chunk.begin < ATTENTION_CHUNK ? positions - chunk.begin : ATTENTION_CHUNK;
        bool first = chunk.begin == 0; /* needs no merge: its results are the running ones */
        chunk.blocks = (tokens + KV_TOKENS - 1) / KV_TOKENS;
        for (uint32_t b = 0; b < chunk.blocks; b++) {
            chunk.heads[b] = args->kv + args->blocks[chunk.begin / KV_TOKENS + b] * args->kv_block_bytes;
        }
        chunk.vector_begin = chunk.begin > args->position ? (chunk.begin - args->position) * args->G : 0;
        chunk.mixed = first ? all : mixed;
        if (args->layout.type == KV_F16) {
            dot_groups(1, &chunk, vectors);
        } else {
            dot_groups(0, &chunk, vectors);
        }
        chunk_peaks(&chunk, first ? peaks : chunk_tops, first ? sums : chunk_sums);
        chunk_mix(&chunk);
        for (uint32_t v = chunk.vector_begin; !first && v < vectors; v++) {
            size_t offset = (size_t)v * P;
            merge_vector(&peaks[v], &sums[v], all + offset, chunk_tops[v], chunk_sums[v], mixed + offset, P);
        }
    }
    write_out(args, all, sums);
}

#endif
