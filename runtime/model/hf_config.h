/* config.json of a Hugging Face folder as a model_spec: a family is a row of a table in hf_config.c.
 *
 * Known are the architectures whose class stands in `architectures` (or, without it, whose model_type); keys that are
 * absent get what transformers would assume for that class. Source of names, defaults and meanings: transformers 5,
 * models/<family>/configuration_<family>.py and modeling_<family>.py. Used by hf_folder.c. */
#ifndef RUNTIME_MODEL_HF_CONFIG_H
#define RUNTIME_MODEL_HF_CONFIG_H

#include "runtime/base/arena.h"
#include "runtime/base/json.h"
#include "runtime/base/status.h"
#include "runtime/model/hf_rope.h"
#include "runtime/model/model_spec.h"
#include "runtime/model/quant.h"

#include <stdbool.h>

/* How a family calls the tensors of its experts. */
enum hf_expert_names {
    HF_EXPERTS_MLP,         /* mlp.gate, mlp.experts.<x>.{gate,up,down}_proj */
    HF_EXPERTS_BLOCK_SPARSE /* block_sparse_moe.gate, block_sparse_moe.experts.<x>.{w1,w3,w2} */
};

struct hf_config {
    struct json *root;
    const struct json *text; /* root, or its text_config where a model sees images too */
    struct model_spec spec;  /* but for name and parameters; tied_head as the keys say */
    struct hf_rope_factors rope_factors;
    struct quant_scheme quantised; /* borrows from root */
    enum hf_expert_names expert_names;
    bool norms_plus_one; /* norms are stored as what their weights differ from 1 by */
    bool fused;          /* Q, K and V in one tensor, gate and up in another */
    bool has_images;     /* tensors of another model, which sees images, lie beside */
};

/* Reads folder/config.json; arena holds the factors of RoPE. ST_NOTFOUND: there is none; ST_INVAL: an architecture that
 * is not known (err lists those that are), a key that is missing, out of range or asks for what is not supported;
 * ST_LIMIT; ST_IO; ST_NOMEM. err begins with the file's name. hf_config_free after success only. */
NODISCARD enum status hf_config_read(const char *folder, struct arena *arena, struct hf_config *config,
                                     struct error *err);
void hf_config_free(struct hf_config *config);

#endif
