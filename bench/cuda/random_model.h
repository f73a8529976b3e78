/* A model of a known shape with random BF16 weights, made row by row as a device loads it: for speed, not for words. */
#ifndef BENCH_CUDA_RANDOM_MODEL_H
#define BENCH_CUDA_RANDOM_MODEL_H

#include "runtime/model/model.h"

struct random_shape {
    const char *name;
    uint32_t layers, width, heads, kv_heads, head_size, ff_width, vocab, context_max;
};

/* The caller frees it with random_model_destroy, after whatever was loaded from it. ST_NOMEM. */
NODISCARD enum status random_model_create(const struct random_shape *shape, struct model **model);
void random_model_destroy(struct model *model);

#endif
