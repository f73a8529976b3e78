/* The launchers of the CUDA kernels, for C. Each enqueues its work on `stream` and returns the launch's error; none
 * allocates, synchronises or keeps state. All pointers are device memory unless said otherwise; shapes row-major,
 * outermost first; bf16 stands for uint16_t. Shape letters as in README.md: M tokens, E width, H and KH heads of this
 * rank, D head size, F feed-forward width, V vocabulary, R rows with logits, N outputs and K inputs of a matmul.
 *
 * `M`, `R` of a call are the launch's (a graph's bucket); step->header says how many of them live. */
#ifndef KERNELS_CUDA_OPS_H
#define KERNELS_CUDA_OPS_H

#include "kernels/cuda_attention.h"
#include "kernels/cuda_kv.h"
#include "kernels/cuda_step.h"

#include <cuda_runtime_api.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* ---- weights ---- */

enum cuda_type {
    CUDA_TYPE_BF16, /* [N][K], as cuBLASLt takes it */
    CUDA_TYPE_E4M3, /* [N][K] codes; value = code * scale. Scales f32 [inputs that share one][rows that share one] */
    /* 4-bit and int8 codes with a word of scales a 32 inputs, packed (cuda_weight.cuh), 20 and 36 bytes a 32 inputs;
     * named for the format of GGUF that each holds without a change of any value */
    CUDA_TYPE_Q4_0, /* (code - 8) * scale, scale f16 */
    CUDA_TYPE_Q4_1, /* code * scale + minimum, both f16 */
    CUDA_TYPE_Q4_K, /* code * (D * scale) - DM * minimum: six-bit scale and minimum, f16 D and DM of 64 or more inputs
                     */
    CUDA_TYPE_Q8_0, /* code * (D * scale): int8 scale a 16 inputs, f16 D a 32; also Q5_0, Q6_K */
    CUDA_TYPE_Q8_1, /* as Q4_1 with int8 codes: Q5_1 */
    CUDA_TYPE_Q8_K, /* as Q4_K with int8 codes: Q5_K */
    CUDA_TYPES
};

struct cuda_weight { /* a matrix in the form that kernels read; plain data of the host */
    enum cuda_type type;
    uint32_t N, K; /* K a multiple of 8 (BF16), 16 (E4M3), 32 (Q) */
    const void *codes;
    const void *scales;              /* f32 of E4M3; words of the Q types; NULL for BF16 */
    uint32_t scale_rows, scale_cols; /* E4M3: how many rows and inputs share a scale (0: all); scale_cols is a multiple
                                        of 128 or 0. cuda_repack_rows makes 1 and 128 */
    const uint16_t *bias;            /* (N) bf16, or NULL */
    bool alternating; /* rows of gate and up alternate in eights (F a multiple of 8): the matmul gives GLU'd outputs
                         (N/2) */
};

/* ---- element-wise (add_rmsnorm.cu, rope_kv_write.cu, embed.cu, glu.cu) ---- */

struct cuda_embedding {              /* x[m] = (value of token m's embedding) * scale */
    float *x;                        /* (M, E) */
    uint32_t *bad;                   /* (M) set to 0: a step's marks begin here */
    const struct cuda_weight *table; /* (N, E): rows [vocab_first, vocab_first + N) of the vocabulary; others give 0 */
    uint32_t vocab_first;
    float scale;
    const uint32_t *previous; /* ids that the step before chose, for CUDA_TOKEN_OF_ROW; NULL where no token is one */
};
/* E is a multiple of 8. */
cudaError_t cuda_embed(const struct cuda_embedding *embedding, const struct cuda_step *step, uint32_t M,
                       cudaStream_t stream);

struct cuda_norm { /* x += residual_scale * (post_weight ? rmsnorm(y, post_weight) : y); out = rmsnorm(x) * weight */
    float *x;      /* (M, E) residual stream, changed */
    const uint16_t *y;        /* bf16 (M, E) to add, or NULL */
    const float *post_weight; /* (E) or NULL */
    float residual_scale;
    const float *weight;  /* (E); NULL: no output, x alone is changed */
    void *out;            /* bf16 (M, E); with out_scales E4M3 codes */
    float *out_scales;    /* (M) f32 or NULL: the row's scale, highest magnitude / 448 */
    const uint32_t *rows; /* (M) index of the row of x and y for each row of out, or NULL: its own. Rows may repeat, so
                             x is then only read */
    float *gathered;      /* with rows: (M, E) takes the rows that x would have become, or NULL */
    uint32_t *bad;        /* (tokens) set to 1 where the squares of x's new row have no finite sum; indexed as x */
    uint32_t E;
    float eps;
};
/* live: where the number of rows that live is (header->tokens or header->rows). E is a multiple of 4, at most 16384. */
cudaError_t cuda_add_rmsnorm(const struct cuda_norm *norm, const uint32_t *live, uint32_t M, cudaStream_t stream);

struct cuda_rope {                /* turns Q and K in place, writes K and V of each token into its block */
    uint16_t *qkv;                /* bf16 (M, (H + 2 KH) D): Q, K, V of a token one after the other */
    const float *q_norm, *k_norm; /* (D) or NULL: RMSNorm of each head before it turns */
    float eps;
    const uint64_t *turns; /* (rope_size / 2) cuda_rope_turn of each frequency */
    float magnitude;       /* of cosine and sine */
    uint32_t rope_size;    /* leading values of a head that turn; even */
    bool interleaved;      /* pairs (2i, 2i + 1), else (i, i + rope_size / 2) */
    uint32_t H, KH, D, layer;
    struct cuda_kv kv;
};
/* A frequency, in radians a position, as a fraction of a turn in 2^-64: position * it, modulo 2^64, is the angle within
 * a turn, with an error below position * frequency * 2^-55 turns (the double's), at any position. For the host. */
static inline uint64_t cuda_rope_turn(double frequency)
{
    double turns = frequency / 6.283185307179586476925;
    return (uint64_t)((turns - (double)(uint64_t)turns) * 0x1p64);
}
/* D is a multiple of 8, at most 512. An infinity is written as NaN, which attention carries to the row. */
cudaError_t cuda_rope_kv_write(const struct cuda_rope *rope, const struct cuda_step *step, uint32_t M,
                               cudaStream_t stream);

/* out[m][f] = activation(gate f of gu[m]) * (up f of gu[m]), bf16; gelu: the tanh form; else SiLU. gu (M, 2F): gate and
 * up of a token one after the other, or, alternating, in eights (as an alternating weight's rows lie): one copy of such
 * a weight serves cuBLASLt too. */
cudaError_t cuda_glu(uint16_t *out, const uint16_t *gu, uint32_t F, bool gelu, bool alternating, const uint32_t *live,
                     uint32_t M, cudaStream_t stream);

/* ---- attention (attention.cu; the plan: runtime/device/cuda/attention_plan.h) ---- */

struct cuda_attention {
    uint16_t *out;       /* bf16 (M, H D) */
    const uint16_t *qkv; /* as cuda_rope left it */
    struct cuda_kv kv;
    uint32_t H, KH, D, layer;
    float scale;       /* of scores */
    uint32_t window;   /* positions a token sees, its own included; 0: all */
    void *scratch;     /* cuda_attention_scratch_bytes (cuda_attention.h); its tickets are zero between launches */
    uint32_t partials; /* cuda_attention_partials */
};
/* D is 64, 96, 128 or 256, else cudaErrorInvalidValue. grid: blocks of the launch, as the plan was told: two a
 * multiprocessor, at least KH. A layer with a window takes the step's second plan. */
cudaError_t cuda_attention(const struct cuda_attention *attention, const struct cuda_step *step, uint32_t grid,
                           cudaStream_t stream);

/* ---- matmuls (matmul_skinny.cu, matmul_tiled.cu) ---- */

struct cuda_matmul {
    const struct cuda_weight *weight;
    const uint16_t *x; /* bf16 (M, K) */
    void *y;           /* bf16 (M, N), (M, N/2) when alternating; f32 with y_f32 */
    uint32_t
        y_stride; /* values from a row of y to the next: N or N/2 where 0. More: one of several weights side by side */
    bool y_f32;
    bool gelu;     /* of an alternating weight: GELU (tanh) in place of SiLU */
    void *scratch; /* cuda_matmul_scratch_bytes; its first part is zero between launches */
};
/* M up to which matmul_skinny takes a weight of this type: 16, or 64 of the Q types. */
uint32_t cuda_matmul_skinny_max(enum cuda_type type);
/* One scratch serves all matmuls of a stream, whatever their weights. */
size_t cuda_matmul_scratch_bytes(uint32_t sms);
/* K slices depend on (N, K, type, sms) alone: bits do not depend on M or on the neighbours of a row. */
cudaError_t cuda_matmul_skinny(const struct cuda_matmul *matmul, uint32_t M, uint32_t sms, cudaStream_t stream);
/* Any M, in the order of additions of matmul_skinny: for --deterministic, and as the oracle of cuBLASLt. */
cudaError_t cuda_matmul_tiled(const struct cuda_matmul *matmul, uint32_t M, uint32_t sms, cudaStream_t stream);
/* Rows [row, row + rows) of a weight as bf16 (rows, K): panels for cuBLASLt, and whoever wants plain values. */
cudaError_t cuda_unpack_rows(uint16_t *out, const struct cuda_weight *weight, uint32_t row, uint32_t rows,
                             cudaStream_t stream);

/* ---- from the file's form to the device's (repack.cu) ---- */

/* Bytes of codes and of scales of a weight of N x K. */
void cuda_weight_bytes(enum cuda_type type, uint32_t N, uint32_t K, size_t *codes_bytes, size_t *scales_bytes);
/* The type that a file's format (enum tensor_type) becomes. */
enum cuda_type cuda_type_of(uint32_t tensor_type);
/* Rows [row, row + rows) of weight from `source`: rows as whole blocks of the file's format, in device memory
 * (staging). For alternating weights `part` 0 is gate, 1 is up, and row counts within the part. */
cudaError_t cuda_repack_rows(const struct cuda_weight *weight, uint32_t tensor_type, const void *source, uint32_t row,
                             uint32_t rows, uint32_t part, cudaStream_t stream);

/* ---- sampling (sample.cu) ---- */

struct cuda_sample {
    const float *logits; /* f32 (R, stride), 16-byte aligned; stride a multiple of 4; ids from V on are not looked at */
    uint32_t stride, V;  /* V at most 2^21 */
    float logit_scale;   /* times it */
    const uint32_t *bad; /* (tokens): rows of bad tokens are flagged, and those of later tokens of their sequence */
    const uint32_t *previous; /* ids of the step before, for CUDA_ROW_PENDING_SEEN */
    uint32_t *ids;            /* (R) chosen, for the next step's embed */
    void *results;            /* (R) struct row_result of runtime/batch.h */
    void *scratch;            /* cuda_sample_scratch_bytes */
};
/* For launches of up to rows_max rows: 4 bytes a logit and 64 KB a row. Need not be cleared. */
size_t cuda_sample_scratch_bytes(uint32_t rows_max, uint32_t V);
/* The meaning of runtime/sampler.h; how equal: sample.cuh. Rows from header->rows on write nothing. */
cudaError_t cuda_sample(const struct cuda_sample *sample, const struct cuda_step *step, uint32_t R,
                        cudaStream_t stream);

/* ---- mixtures of experts (moe.cu, moe_matmul.cu) ---- */

struct cuda_moe {
    const float *router_logits; /* f32 (M, X) */
    uint32_t X, used;           /* experts, and how many a token goes to */
    uint32_t first, count;      /* experts [first, first + count) are this GPU's; others' places are left alone */
    bool normed;                /* weights of the used are divided by their sum */
    uint32_t *chosen;           /* (M, used) in the router's order */
    float *weights;             /* (M, used) */
    uint32_t *begins;           /* (X + 1) first place of each expert */
    uint32_t *places;           /* (M * used) token of each place, sorted by expert, stable */
    uint32_t *place_of;         /* (M, used) where each choice went */
};
/* X at most 256, used at most 32. Choices and weights have the bits of kernels/route.h; places are stable. */
cudaError_t cuda_moe_route(const struct cuda_moe *moe, const uint32_t *live, uint32_t M, cudaStream_t stream);
/* y[p] = weight of p's expert * x[places ? places[p] : p] for each place p of this GPU's experts. weights (count): all
 * of one shape and type, their codes, scales and biases at equal distances in memory. A place's bits depend on its
 * activations and expert alone, not on sms or M. */
cudaError_t cuda_moe_matmul(const struct cuda_moe *moe, const struct cuda_weight *weights, const uint16_t *x,
                            const uint32_t *places, uint16_t *y, bool gelu, uint32_t M, uint32_t sms,
                            cudaStream_t stream);
/* out[m] = sum over the token's experts that are this GPU's, in the router's order, of weight * y[its place]; bf16
 * (M, E), E a multiple of 8. */
cudaError_t cuda_moe_combine(uint16_t *out, const struct cuda_moe *moe, const uint16_t *y, uint32_t E,
                             const uint32_t *live, uint32_t M, cudaStream_t stream);

/* ---- one-shot all-reduce (all_reduce.cu) ---- */

enum { CUDA_RANKS_MAX = 8, CUDA_ALL_REDUCE_BLOCKS = 32 };

struct cuda_all_reduce {
    uint32_t rank, ranks;
    size_t slot_values; /* of one rank's part of a buffer: M * E of the largest launch or more; a multiple of 8 */
    uint16_t *buffers[CUDA_RANKS_MAX]; /* bf16 (2, ranks, slot_values) of each rank, written by the others */
    uint32_t *flags[CUDA_RANKS_MAX];   /* (CUDA_ALL_REDUCE_BLOCKS, CUDA_RANKS_MAX) of each rank, 0 at start */
    uint32_t *epochs;     /* (CUDA_ALL_REDUCE_BLOCKS) of this rank, 0 at start: how many sums each block made */
    uint32_t *stop;       /* mapped host memory, 0 at start: the host writes CUDA_ALL_REDUCE_ABORT to end all waits; a
                             kernel that waited in vain writes 1 + the rank that did not come. Not 0: results are void */
    uint64_t wait_ns_max; /* how long a kernel waits for a rank */
};
#define CUDA_ALL_REDUCE_ABORT 0xffffffffu

/* Pushes y (M, E) to all peers, waits for theirs, and goes on as cuda_add_rmsnorm with the sum, f32 in rank order, in
 * place of norm->y. Every rank must launch it, with the same M, E, rows and live count; E is a multiple of 8.
 * Needs room for all of its blocks, M or CUDA_ALL_REDUCE_BLOCKS, at once (a cooperative launch). */
cudaError_t cuda_all_reduce_rmsnorm(const struct cuda_all_reduce *reduce, const uint16_t *y,
                                    const struct cuda_norm *norm, const uint32_t *live, uint32_t M,
                                    cudaStream_t stream);

#ifdef __cplusplus
}
#endif

#endif
