/* What a step of the CPU device divides its work by: tiles of attention, and the ways of rows to experts. Shape letters
 * as in kernels/README.md. A part of device_cpu_parts.h. */
#ifndef RUNTIME_DEVICE_DEVICE_CPU_PLANS_H
#define RUNTIME_DEVICE_DEVICE_CPU_PLANS_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Rows of one sequence that attend together, or a part of their context. */
struct attention_tile {
    uint32_t seq, token, rows;
    bool wanted;               /* one of them at least has logits */
    uint32_t chunk_begin;      /* the first that one of them sees */
    uint32_t chunks;           /* how many they see */
    uint32_t part, parts;      /* this one does span_of(chunks, part, parts); the rest only if parts > 1: */
    float *partials;           /* [KV head][chunk] results of all parts */
    size_t head_floats;        /* of one KV head in them */
    _Atomic uint32_t *pending; /* (KH) parts not yet done */
};

struct attention_plan {
    uint32_t window; /* of its layers; 0: they see all */
    uint32_t tiles_count;
    struct attention_tile *tiles; /* (device_cpu_tiles_max) */
    _Atomic uint32_t *pending;    /* counters of divided tiles */
};

/* Which experts the live rows of a layer go to. An item is a row at one of its experts; items stand by expert, and by
 * row within an expert. */
struct expert_routes {
    float *logits;    /* (M, experts rounded up to panels) of the router */
    uint32_t *chosen; /* (M, U) */
    float *weights;   /* (M, U) */
    uint32_t *begins; /* (X + 1) the first item of each expert */
    uint32_t *rows;   /* (M U) of each item */
    float *shares;    /* (M U) of each item: its weight */
    uint32_t *tokens; /* (M U) of each item, for marks of what is not finite */
};

#endif
