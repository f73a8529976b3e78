/* What the time of a step depends on: counts taken from its batch. Pure. */
#ifndef BENCH_GPU_MODEL_STEP_SHAPE_H
#define BENCH_GPU_MODEL_STEP_SHAPE_H

#include "runtime/batch.h"

struct step_shape {
    uint32_t tokens, rows, seqs;
    double kv_tokens, kv_tokens_windowed; /* positions of KV that are read: once a sequence */
    double pairs, pairs_windowed;         /* (token, position it attends to) */
};

/* window: what tokens of windowed layers see; 0: the model has none. */
struct step_shape step_shape_of(const struct batch *batch, uint32_t window);

#endif
