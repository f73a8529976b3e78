/* Tensors of a Hugging Face folder to their places in model_weights, by two tables of names. Used by hf_folder.c. */
#ifndef RUNTIME_MODEL_HF_WEIGHTS_H
#define RUNTIME_MODEL_HF_WEIGHTS_H

#include "runtime/base/arena.h"
#include "runtime/base/status.h"
#include "runtime/model/hf_config.h"
#include "runtime/model/model.h"
#include "runtime/model/safetensors.h"

/* Places every tensor of the set, or refuses it by name. Matrices stay where they are (F32, F16, BF16; through a recipe
 * where they are quantised or not aligned); vectors become F32 in the arena, as do the factors of RoPE already there.
 * Fills in spec->parameters, and corrects tied_head: a head of other values than the embedding's counts. ST_INVAL: a
 * tensor that is missing, too much, or of a wrong shape or dtype; ST_NOMEM. */
NODISCARD enum status hf_weights_place(const struct safetensors *set, const struct hf_config *config,
                                       struct arena *arena, struct model_spec *spec, struct model_weights *weights,
                                       struct error *err);

#endif
