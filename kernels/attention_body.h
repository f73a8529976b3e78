/* The lane-structured attention, compiled once a path; see attention.h for the definition and lanes.h for the lanes.
 *
 * A "vector" is one query head of one row; vector v = row * G + head. A chunk goes through three passes:
 *   dots   tokens in lanes: each K register serves up to DOT_VECTORS vectors, each query broadcast DOT_BLOCKS blocks,
 *          which also gives the multipliers enough chains where vectors are few
 *   peaks  maximum, exponentials, sum; lanes past the row's position become probability 0
 *   mixes  d in lanes: each V register serves up to MIX_VECTORS vectors; only tokens that a row may see are read
 * How many are taken together changes no bits: every score, sum and a[d] is one chain of its own. In BF16 a probability
 * row is rounded in place: 64 pairs in the place of the first 64 scores. Included by attention*.c alone. */
#ifndef KERNELS_ATTENTION_BODY_H
#define KERNELS_ATTENTION_BODY_H

#include "kernels/attention.h"
#include "kernels/lanes_bf16.h"

#include <stdbool.h>

#if defined(__AVX512F__) /* 32 registers of 16 lanes */
enum { DOT_VECTORS = 6, DOT_BLOCKS = 4, MIX_VECTORS = 6, MIX_LANES = 4 };
#elif defined(__AVX2__) /* 16 of 8 */
enum { DOT_VECTORS = 4, DOT_BLOCKS = 1, MIX_VECTORS = 4, MIX_LANES = 1 };
#else
enum { DOT_VECTORS = 1, DOT_BLOCKS = 1, MIX_VECTORS = 1, MIX_LANES = 1 };
#endif
enum { DOT_CHAINS = DOT_VECTORS * DOT_BLOCKS, CHUNK_BLOCKS = ATTENTION_CHUNK / KV_TOKENS };

/* Results of one chunk, or of several merged: as attention_partial_floats counts them. */
struct partial {
    float *peaks, *sums; /* [vectors, rounded up to 16] */
    float *mixed;        /* [vectors][P] */
};

struct token_span {
    uint32_t begin, end;
    bool fresh; /* the first of a chain */
};

struct chunk {
    const struct attention_args *args;
    uint32_t begin, blocks; /* first position; blocks with positions that the last row sees */
    uint32_t block_begin;   /* of these, the first that the first row sees */
    const uint8_t *heads[CHUNK_BLOCKS];
    const uint8_t *ahead[CHUNK_BLOCKS]; /* those whose K will be read next */
    uint32_t vector_begin, vector_end;  /* of the rows that see the chunk at all */
    const float *turned;                /* q: [group of DOT_VECTORS][dot_steps][vectors of the group] */
    float *scores;                      /* [vector][128], then probabilities */
    struct partial result;
};

/* Steps of a score's chain: items in f32, pairs in BF16. */
LANES_INLINE uint32_t dot_steps(const struct attention_args *args)
{
    return args->layout.type == KV_F32 ? args->layout.D : (args->layout.D + 1) / 2;
}
LANES_INLINE const float *keys_of(const struct chunk *chunk, uint32_t block)
{
    return (const float *)(const void *)chunk->heads[block];
}
LANES_INLINE const float *values_of(const struct chunk *chunk, uint32_t block)
{
    return (const float *)(const void *)(chunk->heads[block] + chunk->args->layout.v_offset_bytes);
}
LANES_INLINE struct lanes multiply_add(enum kv_type type, struct lanes a, struct lanes b, struct lanes sum)
{
    return type == KV_F32 ? lanes_fma(a, b, sum) : lanes_dot_pairs(a, b, sum);
}

LANES_INLINE struct lanes exponential(enum kv_type type, struct lanes x)
{
    return type == KV_F32 ? lanes_exp(x) : lanes_exp2(x);
}

/* Tokens of the chunk that a row sees; 0 when the chunk begins after it. */
static uint32_t chunk_end(const struct chunk *chunk, uint32_t row)
{
    uint32_t seen = chunk->args->position + row + 1;
    if (seen <= chunk->begin) return 0;
    return seen - chunk->begin < ATTENTION_CHUNK ? seen - chunk->begin : ATTENTION_CHUNK;
}

/* The first token of the chunk that a row sees, of the rows that see any. */
static uint32_t chunk_first(const struct chunk *chunk, uint32_t row)
{
    uint32_t first = attention_first(chunk->args->position + row, chunk->args->window);
    return first > chunk->begin ? first - chunk->begin : 0;
}

#include "kernels/attention_dots.h"
#include "kernels/attention_mixes.h"

/* The highest of the scores from `begin` to `end`; the others of the first and the last sixteen become -infinity. */
static float peak_vector(float *scores, uint32_t begin, uint32_t end)
{
    struct lanes highest = lanes_set(-INFINITY);
    for (uint32_t t = begin & ~15u; t < end; t += 16) {
        struct lanes s = lanes_load(scores + t);
        if (t < begin || end - t < 16) {
            if (end - t < 16) s = lanes_first(end - t, s, lanes_set(-INFINITY));
            if (t < begin) s = lanes_first(begin - t, lanes_set(-INFINITY), s);
            lanes_store(scores + t, s);
        }
        highest = lanes_max(s, highest);
    }
    return lanes_peak(highest);
}

/* Scores become probabilities, unnormalised. Gives their sum. */
LANES_INLINE float weigh_vector(enum kv_type type, float *scores, uint32_t begin, uint32_t end, float peak)
{
    struct lanes total = lanes_zero();
    for (uint32_t t = begin & ~15u; t < end; t += 16) {
        struct lanes p = exponential(type, lanes_sub(lanes_load(scores + t), lanes_set(peak)));
        if (type == KV_F32) {
            lanes_store(scores + t, p);
        } else {
            p = lanes_store_bf16((uint16_t *)(void *)scores + t, p);
        }
        total = lanes_add(total, p);
    }
    return lanes_sum(total);
}

/* fetch: the work is so little for each line of KV that memory must be asked early. */
LANES_INLINE void chunk_run(enum kv_type type, bool fetch, const struct chunk *chunk)
{
    dot_groups(type, fetch, chunk);
    uint32_t begin = chunk->vector_begin, end = chunk->vector_end, G = chunk->args->G;
    for (uint32_t v = begin; v < end; v++) {
        chunk->result.peaks[v] = peak_vector(chunk->scores + (size_t)v * ATTENTION_CHUNK, chunk_first(chunk, v / G),
                                             chunk_end(chunk, v / G));
    }
    for (uint32_t v = begin; v < end; v++) { /* apart, so that no exponential waits for a maximum */
        float *scores = chunk->scores + (size_t)v * ATTENTION_CHUNK;
        chunk->result.sums[v] =
            weigh_vector(type, scores, chunk_first(chunk, v / G), chunk_end(chunk, v / G), chunk->result.peaks[v]);
    }
    chunk_mix(type, fetch, chunk);
}

/* The first vector that sees the chunk. */
static uint32_t chunk_vector_begin(const struct attention_args *args, uint32_t chunk_idx)
{
    uint32_t begin = chunk_idx * ATTENTION_CHUNK;
    return begin > args->position ? (begin - args->position) * args->G : 0;
}

/* The first vector whose window begins at or after the start of the chunk. */
static uint32_t window_vector_begin(const struct attention_args *args, uint32_t chunk_idx)
{
    uint64_t row = (uint64_t)chunk_idx * ATTENTION_CHUNK + args->window; /* less position + 1 */
    if (!args->window || row > args->position + (uint64_t)args->rows) return args->rows * args->G;
    return row > args->position ? (uint32_t)(row - args->position - 1) * args->G : 0;
}

#include "kernels/attention_expand.h"
#include "kernels/attention_merges.h"

/* expanded: room for the chunk's blocks in BF16 where they are int8. */
static void attention_chunk(const struct attention_args *args, uint32_t chunk_idx, const float *turned, float *scores,
                            float *expanded, struct partial result)
{
    struct attention_args wide;
    struct chunk chunk = {.args = args,
                          .begin = chunk_idx * ATTENTION_CHUNK,
                          .vector_begin = chunk_vector_begin(args, chunk_idx),
                          .vector_end = window_vector_begin(args, chunk_idx + 1),
                          .turned = turned,
                          .scores = scores,
                          .result = result};
    uint32_t tokens = chunk_end(&chunk, chunk.vector_end / args->G - 1);
    chunk.block_begin = chunk_first(&chunk, chunk.vector_begin / args->G) / KV_TOKENS;
    chunk.blocks = (tokens + KV_TOKENS - 1) / KV_TOKENS;
    for (uint32_t b = 0; b < chunk.blocks; b++) {
        const uint32_t *block = args->blocks + chunk.begin / KV_TOKENS + b;
        bool last = chunk.begin + b * KV_TOKENS + ATTENTION_CHUNK >= args->position + args->rows;
        chunk.heads[b] = args->kv + block[0] * args->kv_block_bytes;
        chunk.ahead[b] = last ? chunk.heads[b] : args->kv + block[CHUNK_BLOCKS] * args->kv_block_bytes;
    }
    if (args->layout.type == KV_I8) {
        wide = *args;
        wide.layout = kv_layout_of(KV_BF16, args->layout.D);
        chunk.args = &wide;
        for (uint32_t b = chunk.block_begin; b < chunk.blocks; b++) {
            uint8_t *to = (uint8_t *)expanded + b * wide.layout.head_bytes;
            const uint8_t *next = b + 1 < chunk.blocks ? chunk.heads[b + 1] : chunk.ahead[0];
            for (size_t i = 0; i < args->layout.head_bytes; i += 64) __builtin_prefetch(next + i, 0, 2);
            expand_head(wide.layout.D, chunk.heads[b], to);
            chunk.heads[b] = to;
        }
        chunk_run(KV_BF16, false, &chunk);
    } else if (args->layout.type == KV_F32) {
        chunk_run(KV_F32, false, &chunk);
    } else if (chunk.vector_end > DOT_VECTORS) {
        chunk_run(KV_BF16, false, &chunk);
    } else {
        chunk_run(KV_BF16, true, &chunk);
    }
}

static void attention_run(const struct attention_args *args)
{
    uint32_t vectors = args->rows * args->G;
    uint32_t chunk_begin = attention_first(args->position, args->window) / ATTENTION_CHUNK;
    size_t partial = attention_partial_floats(vectors, args->layout.D);
    float *turned = args->scratch, *scores = turned + (size_t)vectors * args->layout.P;
    float *results = scores + (size_t)vectors * ATTENTION_CHUNK;
    float *expanded = results + 2 * partial;
    struct partial all = partial_at(args, results), one = partial_at(args, results + partial);
    turn_queries(args, turned);
    if (args->partials) {
        for (uint32_t c = args->chunk_begin; c < args->chunk_end; c++) {
            attention_chunk(args, c, turned, scores, expanded,
                            partial_at(args, args->partials + (c - chunk_begin) * partial));
        }
        return;
    }
    for (uint32_t c = chunk_begin; c < attention_chunks(args->position + args->rows); c++) {
        attention_chunk(args, c, turned, scores, expanded, c > chunk_begin ? one : all);
        if (c > chunk_begin) join_chunk(args, all, one, c);
    }
    write_out(args, all);
}

#ifdef LANES_DPBF16

void attention_avx512bf16(const struct attention_args *args)
{
    attention_run(args);
}

#else

void LANES_NAME(attention)(const struct attention_args *args)
{
    attention_run(args);
}

void LANES_NAME(attention_merge)(const struct attention_args *args)
{
    size_t partial = attention_partial_floats(args->rows * args->G, args->layout.D);
    struct partial all = partial_at(args, args->partials);
    uint32_t chunk_begin = attention_first(args->position, args->window) / ATTENTION_CHUNK;
    for (uint32_t c = chunk_begin + 1; c < attention_chunks(args->position + args->rows); c++) {
        join_chunk(args, all, partial_at(args, args->partials + (c - chunk_begin) * partial), c);
    }
    write_out(args, all);
}

#endif
#endif
