/* One description of a decoder-only transformer. A model family is a row of a table that fills this in (model_spec.c),
 * not a file of code; devices read nothing else about a family. Immutable after loading; any thread. */
#ifndef RUNTIME_MODEL_MODEL_SPEC_H
#define RUNTIME_MODEL_MODEL_SPEC_H

#include "runtime/base/status.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum rope_kind {
    ROPE_INTERLEAVED, /* pairs (2i, 2i+1): GGUF's llama family, whose Q and K rows are permuted for it */
    ROPE_HALVES       /* pairs (i, i + D/2): Qwen, Gemma, Phi ("neox") */
};
enum activation { ACTIVATION_SILU, ACTIVATION_GELU_TANH };

/* Angle of pair i of a head at a position: position * scale / (base^(2i / rope_size) * factor[i]); cosine and sine are
 * multiplied by magnitude. */
struct rope_spec {
    float base;
    float scale;     /* 1 without linear scaling */
    float magnitude; /* 1 but for YaRN and LongRoPE */
};

enum { MODEL_LAYERS_MAX = 1024 };
enum layer_flag {
    LAYER_WINDOWED = 1, /* sees the last `window` positions, its own included */
    LAYER_EXPERTS = 2   /* the feed-forward is a mixture of experts */
};

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
    uint32_t rope_size;           /* leading values of a head that rotate; <= head_size, even */
    struct rope_spec rope_main;   /* of all layers; with has_window_rope of those without a window */
    struct rope_spec rope_window; /* of windowed layers with has_window_rope: never with factors */
    bool has_window_rope;
    uint32_t rope_switch; /* contexts longer than this take the weights' rope_factors_long; 0: there are none */
    enum activation activation;
    bool tied_head; /* lm_head is the embedding matrix */
    bool has_qkv_bias;
    bool has_qk_norm;
    bool has_post_norms;                   /* what attention and feed-forward give is normed before it is added */
    float attention_scale;                 /* scores are multiplied by this; usually 1/sqrt(D) */
    float embedding_scale;                 /* embeddings, by this; 1 in most families, as are the next two */
    float residual_scale;                  /* what attention and feed-forward give, by this, before it is added */
    float logit_scale;                     /* logits, by this */
    uint32_t window;                       /* of LAYER_WINDOWED; 0 when no layer is */
    uint32_t experts;                      /* X of LAYER_EXPERTS; 0 when no layer is */
    uint32_t experts_used;                 /* the best so many of each token, by the softmax over all */
    uint32_t expert_width;                 /* their feed-forward width, in place of ff_width */
    bool experts_normed;                   /* the weights of the used are divided by their sum */
    uint64_t parameters;                   /* values in all tensors */
    uint8_t layer_flags[MODEL_LAYERS_MAX]; /* enum layer_flag of layer 0 .. layers - 1 */
};

/* Takes text as the name: cut between characters where it is too long, control characters replaced. */
void model_spec_set_name(struct model_spec *spec, const char *text, size_t length);

/* ST_INVAL (err): the dimensions make no transformer, as every device needs them. */
NODISCARD enum status model_spec_check(const struct model_spec *spec, struct error *err);

/* The spec of a GGUF file, from its keys and the presence of optional tensors, and what its RoPE factors are made of
 * (factor 0: they lie in the file, or there are none). ST_INVAL: an unknown architecture (err lists the known ones), a
 * key that is missing, out of range or asks for what is not supported; ST_LIMIT: past a model_* limit. Shapes of
 * tensors are not looked at: model_open does that. */
struct gguf;
struct rope_yarn;
NODISCARD enum status model_spec_read(const struct gguf *file, struct model_spec *spec, struct rope_yarn *yarn,
                                      struct error *err);

#endif
