/* Causal attention of one KV head over paged KV: `rows` consecutive tokens of one sequence, G query heads each.
 *
 *   s[t] = scale * sum_d q[d] * K[t][d],   t = first .. position of the row; first = 0, or with a window the position
 *          window - 1 before the row's own
 *   out  = sum_t softmax(s)[t] * V[t]
 *
 * One definition for prefill and decode (cpu-engine C10), so that a row's bits depend on its own sequence alone:
 *   - a score is one chain over rising d, then the product with scale
 *   - positions come in chunks of 128 at multiples of 128. In a chunk: m = maximum; p = lanes_exp(s - m); l = sum of p,
 *     lane t mod 16 over rising t, then the tree of lanes.h; a[d] = one chain of p[t] * V[t][d] over rising t
 *   - chunks merge in rising order: M' = max(M, m), x = exp(M - M'), y = exp(m - M'); L = fma(L, x, l * y),
 *     A[d] = fma(A[d], x, a[d] * y); at the end out[d] = A[d] * (1 / L)
 *   - positions after the row's own and before its first are never part of a sum, whatever their slots hold (in BF16
 *     the other position of the first's pair must hold numbers); a NaN between makes the row NaN. A row's first chunk
 * is that of its first position KV in f32: a chain takes one fma an item. KV in BF16: scale is multiplied with log2 e
 * and lanes_exp2 takes the place of lanes_exp; q is rounded to BF16, p too and l is the sum of the rounded p; a chain
 * takes pairs (2i, 2i + 1) by lanes_dot_pairs, the odd item first (lanes_bf16.h); what lies below 2^-40 counts as 0.
 * Either way the same bits on every path. Tolerance to _ref (double, same KV): f32 3e-6 * max|V|; BF16 2^-8 * (1 +
 * scale * max_t sum_d |q[d] K[t][d]|) * max|V|, of which the 1 is for p, the rest for a q that is no BF16. Sources:
 * chunked softmax: Milakov and Gimelshein 2018, arXiv:1805.02867; paging: Kwon et al. 2023, arXiv:2309.06180. Pure over
 * the caller's memory; any thread.
 *
 * Chunks of one call can be shared out: attention with `partials` only leaves the results of chunks [chunk_begin,
 * chunk_end) there; when all have, attention_merge makes `out` of them, with the bits of a single call. */
#ifndef KERNELS_ATTENTION_H
#define KERNELS_ATTENTION_H

#include "kernels/cpu_path.h"
#include "kernels/kv.h"

#include <stddef.h>
#include <stdint.h>

enum { ATTENTION_CHUNK = 128, ATTENTION_VECTORS_MAX = 48 };

struct attention_args {
    struct kv_layout layout;
    const uint8_t *kv;      /* this layer and KV head in block 0 */
    size_t kv_block_bytes;  /* from one block to the next */
    const uint32_t *blocks; /* (ceil((position + rows) / 16)) block table */
    const float *q;         /* row r, head g: q + r * q_stride + g * D */
    float *out;             /* row r, head g: out + r * out_stride + g * D */
    size_t q_stride, out_stride;
    uint32_t rows, G;  /* rows <= attention_rows(G) */
    uint32_t position; /* of the first row */
    uint32_t window;   /* positions that a row sees, its own included; 0: all */
    float scale;
    float *scratch;  /* attention_scratch_floats, 64-byte aligned */
    float *partials; /* NULL, or attention_partial_floats a chunk, from the first that is seen on, 64-byte aligned */
    uint32_t chunk_begin, chunk_end; /* with partials: the chunks to compute */
};

/* Rows of one call: so that rows * G is at most ATTENTION_VECTORS_MAX, and at least one row. */
static inline uint32_t attention_rows(uint32_t G)
{
    uint32_t rows = ATTENTION_VECTORS_MAX / G;
    return rows < 1 ? 1 : rows > 16 ? 16 : rows;
}
/* The first position that the row at `position` sees, and so its chunk. */
static inline uint32_t attention_first(uint32_t position, uint32_t window)
{
    return window && position >= window ? position + 1 - window : 0;
}
/* The end of the chunks that rows up to `positions` - 1 see. */
static inline uint32_t attention_chunks(uint32_t positions)
{
    return positions / ATTENTION_CHUNK + (positions % ATTENTION_CHUNK != 0);
}
/* The result of one chunk for rows * G vectors: maxima, sums, a[d]. */
static inline size_t attention_partial_floats(uint32_t vectors, uint32_t D)
{
    return 2 * (((size_t)vectors + 15) & ~(size_t)15) + (size_t)vectors * ((D + 15) & ~15u);
}
size_t attention_scratch_floats(enum kv_type type, uint32_t G, uint32_t D);

void attention(enum cpu_path path, const struct attention_args *args);
/* Chunks of args->partials into out; partials are used up. */
void attention_merge(enum cpu_path path, const struct attention_args *args);

void attention_ref(const struct attention_args *args); /* the meaning, in double; scratch and partials unused */

/* The twins behind `path`. */
void attention_scalar(const struct attention_args *args);
void attention_avx2(const struct attention_args *args);
void attention_avx512(const struct attention_args *args);
void attention_avx512bf16(const struct attention_args *args);
void attention_merge_scalar(const struct attention_args *args);
void attention_merge_avx2(const struct attention_args *args);
void attention_merge_avx512(const struct attention_args *args);

#endif
