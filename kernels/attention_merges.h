/* What follows the passes of attention_body.h: results of chunks become one, and then rows. Included by it alone. */
#ifndef KERNELS_ATTENTION_MERGES_H
#define KERNELS_ATTENTION_MERGES_H

#ifndef KERNELS_ATTENTION_BODY_H
#error "include kernels/attention_body.h"
#endif

static struct partial partial_at(const struct attention_args *args, float *base)
{
    uint32_t vectors = args->rows * args->G, padded = (vectors + 15) & ~15u;
    return (struct partial){base, base + padded, base + 2 * (size_t)padded};
}

/* Merges a chunk's results into those of the chunks before it, for vectors [vector_begin, vector_end). */
LANES_INLINE void merge(enum kv_type type, const struct attention_args *args, struct partial all, struct partial chunk,
                        uint32_t vector_begin, uint32_t vector_end)
{
    uint32_t P = args->layout.P;
    for (uint32_t v = vector_begin; v < vector_end; v += 16) {
        float x_of[16], y_of[16];
        uint32_t n = vector_end - v < 16 ? vector_end - v : 16;
        struct lanes before = lanes_load_n(all.peaks + v, n), added = lanes_load_n(chunk.peaks + v, n);
        struct lanes highest = lanes_max(before, added);
        struct lanes x = exponential(type, lanes_sub(before, highest)),
                     y = exponential(type, lanes_sub(added, highest));
        struct lanes sum = lanes_mul(lanes_load_n(chunk.sums + v, n), y);
        lanes_store_n(all.sums + v, lanes_fma(lanes_load_n(all.sums + v, n), x, sum), n);
        lanes_store_n(all.peaks + v, highest, n);
        lanes_store(x_of, x);
        lanes_store(y_of, y);
        for (uint32_t i = 0; i < n; i++) {
            float *target = all.mixed + (size_t)(v + i) * P;
            const float *mixed = chunk.mixed + (size_t)(v + i) * P;
            for (uint32_t d = 0; d < P; d += 16) {
                struct lanes scaled = lanes_mul(lanes_load(mixed + d), lanes_set(y_of[i]));
                lanes_store(target + d, lanes_fma(lanes_load(target + d), lanes_set(x_of[i]), scaled));
            }
        }
    }
}

/* A chunk after the first: merged for the vectors that saw chunks before it, taken for those whose first it is. */
static void join_chunk(const struct attention_args *args, struct partial all, struct partial chunk, uint32_t chunk_idx)
{
    uint32_t begin = chunk_vector_begin(args, chunk_idx), first = window_vector_begin(args, chunk_idx);
    uint32_t end = window_vector_begin(args, chunk_idx + 1);
    if (args->layout.type == KV_F32) {
        merge(KV_F32, args, all, chunk, begin, first);
    } else {
        merge(KV_BF16, args, all, chunk, begin, first);
    }
    if (first < begin) first = begin;
    if (first >= end) return;
    memcpy(all.peaks + first, chunk.peaks + first, (end - first) * sizeof(float));
    memcpy(all.sums + first, chunk.sums + first, (end - first) * sizeof(float));
    memcpy(all.mixed + (size_t)first * args->layout.P, chunk.mixed + (size_t)first * args->layout.P,
           (size_t)(end - first) * args->layout.P * sizeof(float));
}

static void write_out(const struct attention_args *args, struct partial all)
{
    uint32_t vectors = args->rows * args->G, P = args->layout.P, D = args->layout.D;
    for (uint32_t v = 0; v < vectors; v++) {
        float *out = args->out + v / args->G * args->out_stride + (size_t)(v % args->G) * D;
        struct lanes scale = lanes_set(1.0f / all.sums[v]);
        for (uint32_t d = 0; d < D; d += 16) {
            lanes_store_n(out + d, lanes_mul(lanes_load(all.mixed + (size_t)v * P + d), scale),
                          D - d < 16 ? D - d : 16);
        }
    }
}

#endif
