/* What the plan of attention (runtime/device/cuda/attention_plan.h) and its kernel (attention.cu) share. Plain C and
 * CUDA.
 *
 * Rows of a sequence and KV head: its tokens of the step times the G = H / KH query heads of the KV head, row = token *
 * G
 * + head. An item is at most CUDA_ATTENTION_ROWS of them and a range of chunks: CUDA_ATTENTION_CHUNK positions at
 * absolute multiples. It stands for all KV heads: blocks of the grid form workers of one block a KV head, and the
 * blocks of a worker do its items, each for its own head. So a plan is KH times shorter.
 *
 *   items[w], w < workers    the first item of worker w; none where w >= the number of items
 *   item.next                the worker's next, 0: no more
 *
 * A group of rows whose chunks are in one item writes its outputs. One that was cut leaves a partial result (maximum,
 * sum, D values; f32) a row and chunk, and who finishes last merges them in rising order of chunks. */
#ifndef KERNELS_CUDA_ATTENTION_H
#define KERNELS_CUDA_ATTENTION_H

#include <stddef.h>
#include <stdint.h>

enum {
    CUDA_ATTENTION_CHUNK = 512, /* positions; part of the definition of a row's bits; to be tuned on a GPU */
    CUDA_ATTENTION_ROWS = 64,
    CUDA_ATTENTION_PLANS = 2 /* of a step: for layers without and with a window */
};

/* Partials of all KV heads take at most so many bytes; past them, groups are not cut: slower, never wrong. */
#define CUDA_ATTENTION_PARTIAL_BYTES ((size_t)64 << 20)

struct attention_item {
    uint32_t seq;
    uint32_t row;                    /* first row of the group */
    uint16_t rows;                   /* 1 .. CUDA_ATTENTION_ROWS */
    uint16_t pieces;                 /* items that the group was cut into; 1: whole */
    uint16_t chunk_begin, chunk_end; /* of this item */
    uint16_t group_begin, group_end; /* of all pieces */
    uint32_t partial;                /* with pieces > 1: of the group's first chunk and row; */
    uint32_t ticket;                 /* chunk c, row r: partial + (c - group_begin) * rows + r */
    uint32_t next;
};

#ifdef __CUDACC__
#define CUDA_ATTENTION_FUNCTION static __host__ __device__ __forceinline__
#else
#define CUDA_ATTENTION_FUNCTION static inline
#endif

/* Workers of a grid of at least KH blocks; its last (grid % KH) have nothing to do. */
CUDA_ATTENTION_FUNCTION uint32_t cuda_attention_workers(uint32_t grid, uint32_t KH)
{
    return grid / KH;
}
/* Groups that may be cut in one plan: each has a ticket a KV head. */
CUDA_ATTENTION_FUNCTION uint32_t cuda_attention_tickets(uint32_t grid, uint32_t KH)
{
    return 2 * cuda_attention_workers(grid, KH);
}
CUDA_ATTENTION_FUNCTION size_t cuda_attention_ticket_bytes(uint32_t grid, uint32_t KH)
{
    return ((size_t)cuda_attention_tickets(grid, KH) * KH * sizeof(uint32_t) + 255) / 256 * 256;
}
/* Partials a KV head. */
CUDA_ATTENTION_FUNCTION uint32_t cuda_attention_partials(uint32_t tokens_max, uint32_t context_max, uint32_t H,
                                                         uint32_t KH, uint32_t D)
{
    const size_t chunks = (context_max + (size_t)CUDA_ATTENTION_CHUNK - 1) / CUDA_ATTENTION_CHUNK;
    const size_t all = (size_t)tokens_max * (H / KH) * chunks;
    const size_t most = CUDA_ATTENTION_PARTIAL_BYTES / (KH * (D + (size_t)2) * sizeof(float));
    return (uint32_t)(all < most ? all : most);
}
/* Scratch of cuda_attention: tickets (zero before the first launch; each launch leaves them so), partials. */
CUDA_ATTENTION_FUNCTION size_t cuda_attention_scratch_bytes(uint32_t tokens_max, uint32_t context_max, uint32_t H,
                                                            uint32_t KH, uint32_t D, uint32_t grid)
{
    return cuda_attention_ticket_bytes(grid, KH) +
           (size_t)cuda_attention_partials(tokens_max, context_max, H, KH, D) * KH * (D + (size_t)2) * sizeof(float);
}

#endif
