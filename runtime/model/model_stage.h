/* A rank's part of a model whose layers are divided into stages (pipeline parallelism), and each stage's matrices over
 * ranks as model_shard.h says.
 *
 *   stage 0        embedding, layers 0 .. a-1, and behind the last stage: final norm, head
 *   stage 1        layers a .. b-1
 *   ..             ..
 *
 * Stages form a ring: residual rows go from each to the next, and the rows with logits from the last back to stage 0,
 * which has the head. So a tied embedding matrix is kept once, ids are chosen where they are looked up for the next
 * step, and whoever samples is the rank that has the requests. Rejected: the head on the last stage, as training has
 * it: a second copy of a tied matrix, and sampling parameters to send there and results to send back, for one transfer
 * of a few rows less. Stage 0 counts embedding and head among its bytes, and takes fewer layers for them.
 *
 * A part's spec describes its own layers (count, flags, whether any has a window or experts); views of what a stage
 * does not have are absent. The division follows from the whole model alone, so every rank finds the same. Source of
 * the splitting: Huang et al. 2018, arXiv:1811.06965, without its micro-batches. */
#ifndef RUNTIME_MODEL_MODEL_STAGE_H
#define RUNTIME_MODEL_MODEL_STAGE_H

#include "runtime/model/model_shard.h"

struct model_place {
    uint32_t rank, ranks;   /* of a stage */
    uint32_t stage, stages; /* stages * ranks are at most MODEL_RANKS_MAX */
};

/* Places in the order of numbers: stage * ranks + rank. */
static inline struct model_place model_place_of(uint32_t number, uint32_t ranks, uint32_t stages)
{
    return (struct model_place){number % ranks, ranks, number / ranks, stages};
}

/* The part at a place, which borrows as model_shard says and is ended as its parts are. ST_INVAL: the model does not
 * divide so; err says why and names the counts that fit. ST_NOMEM. */
NODISCARD enum status model_divide(const struct model *whole, struct model_place place, struct model **part,
                                   struct error *err);

/* Layers [begin, end) of a stage: at least one, and as near as whole layers allow to equal bytes. 1 <= stages <=
 * spec.layers. */
void model_stage_layers(const struct model *whole, uint32_t stage, uint32_t stages, uint32_t *begin, uint32_t *end);

#endif
