/* A model opened for use: its description, its vocabulary, and views of its weights.
 *
 * Weights are borrowed from the mapped file until model_release_file: a device packs them into its own memory first.
 * After that only spec, vocab and chat_template stay. Owner: the caller. Not thread-safe while opening; then read-only.
 *
 * Vectors (norms, biases, rope_factors) are always F32. The file is mapped: if another process cuts it while its
 * weights are read, the kernel sends SIGBUS. Whoever owns the process (server/main.c) may catch that to say so before
 * it exits; a model is replaced by renaming a new file over the old one, never by writing into it. */
#ifndef RUNTIME_MODEL_MODEL_H
#define RUNTIME_MODEL_MODEL_H

#include "kernels/tensor_type.h"
#include "runtime/base/arena.h"
#include "runtime/base/status.h"
#include "runtime/model/model_spec.h"
#include "runtime/model/sampling_defaults.h"
#include "runtime/model/vocab.h"

#include <stddef.h>

/* Rows and columns of a matrix. The columns begin and end on blocks of its type and on multiples of 8, or with the row.
 */
struct tensor_area {
    uint32_t row_begin, row_end, col_begin, col_end;
};

/* How rows of a matrix are made whose file keeps them in another form (packed by columns, scales apart, or of a matrix
 * of which this is a part): the first member of whatever the maker needs. Writes the area's rows, one behind the other,
 * as whole blocks of the view's type. Pure; any thread; cannot fail, since everything was checked when the file was
 * opened. */
struct tensor_recipe {
    void (*make)(const struct tensor_recipe *recipe, struct tensor_area area, void *rows);
};

/* A matrix (rows N outputs, cols K inputs, row-major, each row whole blocks) or a vector (rows 1). data NULL: absent.
 */
struct tensor_view {
    const void *data; /* with a recipe: where its bytes begin in the file */
    enum tensor_type type;
    uint32_t rows, cols;
    const char *name;                   /* as in the file */
    const struct tensor_recipe *recipe; /* NULL: the rows lie at data */
};

struct expert_weights {
    struct tensor_view gate, up, down; /* (F, E), (F, E), (E, F) with F = expert_width */
};

struct layer_weights {
    struct tensor_view attn_norm, q, k, v, o, q_bias, k_bias, v_bias, q_norm, k_norm;
    struct tensor_view attn_post_norm, ffn_post_norm; /* (E), with has_post_norms */
    struct tensor_view ffn_norm, gate, up, down;      /* gate, up, down: absent with LAYER_EXPERTS */
    struct tensor_view router;                        /* (X, E), with LAYER_EXPERTS */
    struct expert_weights *experts;                   /* (X), with LAYER_EXPERTS */
};

struct model_weights {
    struct tensor_view embed;      /* (V, E) */
    struct tensor_view final_norm; /* (E) */
    struct tensor_view head;       /* (V, E); the same view as embed when tied */
    /* (rope_size / 2) f32 divisors of the frequencies of rope_main, or absent: for contexts up to rope_switch, if there
     * is one, and beyond */
    struct tensor_view rope_factors, rope_factors_long;
    struct layer_weights *layers; /* (L) */
};

/* Where a part of a model (model_shard.h, model_stage.h) stands in the whole: what a device of several ranks must know
 * besides the part's spec and views. All zero: the model is whole. */
struct model_part {
    const struct model *whole; /* owns the file */
    uint32_t rank, ranks;      /* of its stage; 1: its matrices are whole */
    uint32_t stage, stages;    /* 0 or 1 stages: it has all layers */
    uint32_t layers_begin;     /* of the whole's layers, the first of the part's spec.layers */
    uint32_t heads_begin;      /* of the whole model's query heads, the first of the part's spec.heads */
    uint32_t kv_heads_begin;   /* the same for KV heads; ranks may share one */
    uint32_t ff_begin;         /* of the whole's feed-forward inputs, the first of the part's ff_width */
    uint32_t expert_ff_begin;  /* and of expert_width, where experts are split */
    uint32_t experts_begin;    /* where they are not, the part has the weights of [experts_begin, experts_end); */
    uint32_t experts_end;      /* the views of others are absent. Split: 0 .. spec.experts */
    uint32_t vocab_begin;      /* row of the whole's embedding and head that is the part's row 0 */
    uint32_t vocab_stride;     /* rows a rank has: rank r's begin at r * vocab_stride; the last may have fewer */
    uint32_t vocab;            /* of the whole; spec.vocab is the part's rows */
};

struct model {
    struct model_spec spec; /* of a part: its own heads, widths, vocabulary rows and layers */
    struct vocab vocab;
    struct model_weights weights;
    const char *chat_template; /* NUL-terminated, or NULL */
    size_t chat_template_length;
    struct sampling_defaults defaults;
    size_t file_bytes;
    struct gguf *file;          /* of a GGUF file; NULL after model_release_file */
    struct safetensors *shards; /* of a folder; the same */
    struct arena arena;         /* what was made for the weights while opening; released with the file */
    struct model_part part;
};

/* Rows [row_begin, row_end) of a matrix as whole blocks: where they lie, or made into `rows`, which then holds them. */
const void *tensor_rows(const struct tensor_view *view, uint32_t row_begin, uint32_t row_end, void *rows);
/* An area of a matrix, into `rows`, whether it lies in the file or is made. */
void tensor_area_copy(const struct tensor_view *view, struct tensor_area area, void *rows);
/* ST_INVAL (err names it): the tensor is not there, or of another shape. */
NODISCARD enum status tensor_view_check(const struct tensor_view *view, uint32_t rows, uint32_t cols,
                                        struct error *err);

/* Opens a GGUF file, or a Hugging Face folder. ST_NOTFOUND, ST_IO: path; ST_INVAL, ST_LIMIT: the content: err says
 * what, where (file, offset, key, tensor) and, for an unknown architecture, which are known. */
NODISCARD enum status model_open(const char *path, struct model **model, struct error *err);
/* A GGUF file in memory, which stays the caller's, is aligned to 64 bytes and outlives the model's use of its weights.
 */
NODISCARD enum status model_open_memory(const void *data, size_t size_bytes, struct model **model, struct error *err);
/* Rows [row_begin, row_end) of a matrix are packed: their pages of the file may leave memory. Any thread, while open.
 */
void model_forget_rows(const struct model *model, const struct tensor_view *view, uint32_t row_begin, uint32_t row_end);

void model_release_file(struct model *model); /* weights become invalid; vocabulary and template stay */
void model_close(struct model *model);

#endif
