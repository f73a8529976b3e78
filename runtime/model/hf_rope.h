/* RoPE as config.json describes it: its base, and one of the scalings default, linear, llama3, yarn and longrope.
 *
 * Two generations of files are read: rope_theta beside rope_scaling, and rope_parameters, which holds both (and in
 * families with two RoPEs one object for each kind of layer). Source of the formulas and of what is assumed when a key
 * is absent: transformers 5, modeling_rope_utils.py. One thread. */
#ifndef RUNTIME_MODEL_HF_ROPE_H
#define RUNTIME_MODEL_HF_ROPE_H

#include "runtime/base/arena.h"
#include "runtime/base/status.h"
#include "runtime/model/hf_keys.h"
#include "runtime/model/model_spec.h"

struct hf_rope_defaults {
    float base;
    float window_base;         /* of windowed layers; 0: as the others */
    uint32_t original_context; /* 0: max_position_embeddings */
    bool partial;              /* partial_rotary_factor is read */
    bool old_longrope_names;   /* "su" and "yarn" mean longrope */
};

/* Divisors of frequencies, (rope_size / 2) each in the arena, or NULL. */
struct hf_rope_factors {
    float *factors, *factors_long;
};

/* Fills in rope_size, rope_main, rope_window, has_window_rope and rope_switch of a spec whose head_size and context_max
 * are set. ST_INVAL: what cannot be; ST_NOMEM. */
NODISCARD enum status hf_rope_read(const struct hf_object *config, const struct hf_rope_defaults *defaults,
                                   struct arena *arena, struct model_spec *spec, struct hf_rope_factors *factors);

#endif
