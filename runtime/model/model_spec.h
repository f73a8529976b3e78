/* One description of a decoder-only transformer. A model family is a row of a table that fills this in (model_spec.c),
 * not a file of code; devices read nothing else about a family. Immutable after loading; any thread. */
#ifndef RUNTIME_MODEL_MODEL_SPEC_H
#define RUNTIME_MODEL_MODEL_SPEC_H

#include "runtime/base/status.h"

#include <stdbool.h>
#include <stdint.h>

enum rope_kind {
    ROPE_INTERLEAVED, /* pairs (2i, 2i+1): GGUF's llama family, whose Q and K rows are permuted for it */
    ROPE_HALVES       /* pairs (i, i + D/2): Qwen, Gemma, Phi ("neox") */
};
enum activation { ACTIVATION_SILU, ACTIVATION_GELU_TANH };

struct model_spec {
    char arch[32];        /* general.architecture */
    char name[128];       /* general.name, for people */
    uint32_t layers;      /* L */
    uint32_t width;       /* E */
    uint32_t heads;       /* H  query heads */
    uint32_t kv_heads;    /* KH; heads % kv_heads == 0 */
    uint32_t head_size;   /* D */
    uint32_t ff_width;    /* F */
    uint32_t vocab;       /* V */
    uint32_t context_max; /* positions the model was trained for */
    float norm_eps;
    enum rope_kind rope;
    uint32_t rope_size; /* leading values of a head that rotate; <= head_size, even */
    float rope_base;
    float rope_scale; /* positions are multiplied by this; 1 without linear scaling */
    enum activation activation;
    bool tied_head; /* lm_head is the embedding matrix */
    bool has_qkv_bias;
    bool has_qk_norm;
    float attention_scale; /* scores are multiplied by this; usually 1/sqrt(D) */
    uint64_t parameters;   /* values in all tensors */
};

/* The spec of a file, from its keys and the presence of optional tensors. ST_INVAL: an unknown architecture (err lists
 * the known ones), a key that is missing, out of range or asks for what is not supported; ST_LIMIT: past a model_*
 * limit. Shapes of tensors are not looked at: model_open does that. */
struct gguf;
NODISCARD enum status model_spec_read(const struct gguf *file, struct model_spec *spec, struct error *err);

#endif
