/* Values of config.json by name, with messages that say what a key may be; and the list of all keys that are known.
 *
 * A key that is null counts as absent, as it does for those who write these files. Used by hf_config.c and hf_rope.c
 * alone. Borrowed from the JSON document; one thread. */
#ifndef RUNTIME_MODEL_HF_KEYS_H
#define RUNTIME_MODEL_HF_KEYS_H

#include "runtime/base/json.h"
#include "runtime/base/status.h"

#include <stdbool.h>
#include <stdint.h>

/* What a family reads besides what all read: bits of hf_keys_check's `groups`. */
enum hf_key_group {
    HF_KEYS_WINDOW = 1,          /* sliding_window */
    HF_KEYS_WINDOW_SWITCH = 2,   /* use_sliding_window */
    HF_KEYS_WINDOW_LATE = 4,     /* max_window_layers */
    HF_KEYS_GEMMA = 8,           /* query_pre_attn_scalar, sliding_window_pattern, rope_local_base_freq ... */
    HF_KEYS_SCALES = 16,         /* embedding_multiplier and its kin */
    HF_KEYS_EXPERTS = 32,        /* num_experts or num_local_experts, num_experts_per_tok */
    HF_KEYS_EXPERTS_MIXED = 64,  /* moe_intermediate_size, norm_topk_prob, mlp_only_layers, decoder_sparse_step */
    HF_KEYS_PARTIAL_ROTARY = 128 /* partial_rotary_factor */
};

struct hf_object {
    const struct json *json; /* an object, or NULL: nothing in it */
    const char *where;       /* "" for config.json itself, else like "rope_scaling." */
    struct error *err;
};

/* The member, or NULL when it is absent or null. */
const struct json *hf_member(const struct hf_object *object, const char *key);

/* Each leaves *value as it is when the key is absent, unless `needed`. ST_INVAL: missing, of another kind, or outside
 * [min, max]. */
NODISCARD enum status hf_read_u32(const struct hf_object *object, const char *key, bool needed, uint64_t min,
                                  uint64_t max, uint32_t *value);
NODISCARD enum status hf_read_number(const struct hf_object *object, const char *key, bool needed, double min,
                                     double max, double *value);
NODISCARD enum status hf_read_bool(const struct hf_object *object, const char *key, bool *value);
NODISCARD enum status hf_read_text(const struct hf_object *object, const char *key, const char **value);

/* Refuses, by name, every key that asks for arithmetic which this version does not have. A key is read by the family,
 * known to change nothing, or must have the value by which its feature is off. A key that nobody has heard of may be
 * there (tools write their own), but for one whose name speaks of arithmetic: that must be off too. */
NODISCARD enum status hf_keys_check(const struct hf_object *config, unsigned groups);

#endif
