/* From an open GGUF file to a model: the spec, a view of every weight, and copies of what outlives the file. (A folder:
 * hf_folder.c.)
 *
 * Weights are placed by two tables, one for the model and one for a layer: name, place in the struct, shape in words of
 * the spec, and when it is there. Each tensor of the file must have been placed at the end, so nothing is left out in
 * silence. */
#include "runtime/model/model.h"

#include "runtime/base/check.h"
#include "runtime/base/mem.h"
#include "runtime/model/gguf.h"
#include "runtime/model/hf_folder.h"
#include "runtime/model/safetensors.h"
#include "runtime/model/rope_factors.h"
#include "runtime/model/vocab_read.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

enum size { /* SIZE_1 rows: a vector */
            SIZE_1,
            SIZE_E,
            SIZE_F,
            SIZE_2F,
            SIZE_V,
            SIZE_D,
            SIZE_HD,
            SIZE_KD,
            SIZE_QKV,
            SIZE_ROPE,
            SIZE_X,
            SIZE_FX
};
enum when {
    WHEN_ALWAYS,
    WHEN_UNTIED,
    WHEN_BIAS,
    WHEN_QK_NORM,
    WHEN_POST_NORMS,
    WHEN_APART,       /* Q, K and V are tensors of their own */
    WHEN_QKV,         /* or lie one after the other in one */
    WHEN_DENSE,       /* a feed-forward without experts: its down */
    WHEN_DENSE_APART, /* its gate and up, as tensors of their own */
    WHEN_GATE_UP,     /* or one after the other in one */
    WHEN_EXPERTS,
    WHEN_FOUND
};

struct place {
    const char *name; /* of a layer's tensors: after "blk.<i>." */
    size_t offset;    /* in struct model_weights or struct layer_file */
    enum size rows, cols;
    enum when when;
    enum size depth; /* matrices one after the other; SIZE_1 for most */
};

/* A layer's weights as the file has them: some of several matrices in one tensor. */
struct layer_file {
    struct layer_weights weights;
    struct tensor_view qkv, gate_up, gate_experts, up_experts, down_experts;
};

/* What decides about a tensor's place, besides the layer. */
struct layout {
    const struct model_spec *spec;
    bool qkv_in_one, gate_up_in_one;
};

static const struct place model_places[] = {
    {"token_embd.weight", offsetof(struct model_weights, embed), SIZE_V, SIZE_E, WHEN_ALWAYS, SIZE_1},
    {"output_norm.weight", offsetof(struct model_weights, final_norm), SIZE_1, SIZE_E, WHEN_ALWAYS, SIZE_1},
    {"output.weight", offsetof(struct model_weights, head), SIZE_V, SIZE_E, WHEN_UNTIED, SIZE_1},
    {"rope_freqs.weight", offsetof(struct model_weights, rope_factors), SIZE_1, SIZE_ROPE, WHEN_FOUND, SIZE_1},
    {"rope_factors_short.weight", offsetof(struct model_weights, rope_factors), SIZE_1, SIZE_ROPE, WHEN_FOUND, SIZE_1},
    {"rope_factors_long.weight", offsetof(struct model_weights, rope_factors_long), SIZE_1, SIZE_ROPE, WHEN_FOUND,
     SIZE_1},
};

#define LAYER(member) offsetof(struct layer_file, weights.member)
#define FUSED(member) offsetof(struct layer_file, member)
static const struct place layer_places[] = {
    {"attn_norm.weight", LAYER(attn_norm), SIZE_1, SIZE_E, WHEN_ALWAYS, SIZE_1},
    {"attn_q.weight", LAYER(q), SIZE_HD, SIZE_E, WHEN_APART, SIZE_1},
    {"attn_k.weight", LAYER(k), SIZE_KD, SIZE_E, WHEN_APART, SIZE_1},
    {"attn_v.weight", LAYER(v), SIZE_KD, SIZE_E, WHEN_APART, SIZE_1},
    {"attn_qkv.weight", FUSED(qkv), SIZE_QKV, SIZE_E, WHEN_QKV, SIZE_1},
    {"attn_output.weight", LAYER(o), SIZE_E, SIZE_HD, WHEN_ALWAYS, SIZE_1},
    {"attn_q.bias", LAYER(q_bias), SIZE_1, SIZE_HD, WHEN_BIAS, SIZE_1},
    {"attn_k.bias", LAYER(k_bias), SIZE_1, SIZE_KD, WHEN_BIAS, SIZE_1},
    {"attn_v.bias", LAYER(v_bias), SIZE_1, SIZE_KD, WHEN_BIAS, SIZE_1},
    {"attn_q_norm.weight", LAYER(q_norm), SIZE_1, SIZE_D, WHEN_QK_NORM, SIZE_1},
    {"attn_k_norm.weight", LAYER(k_norm), SIZE_1, SIZE_D, WHEN_QK_NORM, SIZE_1},
    {"post_attention_norm.weight", LAYER(attn_post_norm), SIZE_1, SIZE_E, WHEN_POST_NORMS, SIZE_1},
    {"ffn_norm.weight", LAYER(ffn_norm), SIZE_1, SIZE_E, WHEN_ALWAYS, SIZE_1},
    {"post_ffw_norm.weight", LAYER(ffn_post_norm), SIZE_1, SIZE_E, WHEN_POST_NORMS, SIZE_1},
    {"ffn_gate.weight", LAYER(gate), SIZE_F, SIZE_E, WHEN_DENSE_APART, SIZE_1},
    {"ffn_up.weight", LAYER(up), SIZE_F, SIZE_E, WHEN_DENSE_APART, SIZE_1},
    {"ffn_up.weight", FUSED(gate_up), SIZE_2F, SIZE_E, WHEN_GATE_UP, SIZE_1},
    {"ffn_down.weight", LAYER(down), SIZE_E, SIZE_F, WHEN_DENSE, SIZE_1},
    {"ffn_gate_inp.weight", LAYER(router), SIZE_X, SIZE_E, WHEN_EXPERTS, SIZE_1},
    {"ffn_gate_exps.weight", FUSED(gate_experts), SIZE_FX, SIZE_E, WHEN_EXPERTS, SIZE_X},
    {"ffn_up_exps.weight", FUSED(up_experts), SIZE_FX, SIZE_E, WHEN_EXPERTS, SIZE_X},
    {"ffn_down_exps.weight", FUSED(down_experts), SIZE_E, SIZE_FX, WHEN_EXPERTS, SIZE_X},
};
#undef LAYER
#undef FUSED

static uint32_t size_of(const struct model_spec *spec, enum size size)
{
    switch (size) {
    case SIZE_1: return 1;
    case SIZE_E: return spec->width;
    case SIZE_F: return spec->ff_width;
    case SIZE_2F: return 2 * spec->ff_width;
    case SIZE_V: return spec->vocab;
    case SIZE_D: return spec->head_size;
    case SIZE_HD: return spec->heads * spec->head_size;
    case SIZE_KD: return spec->kv_heads * spec->head_size;
    case SIZE_QKV: return (spec->heads + 2 * spec->kv_heads) * spec->head_size;
    case SIZE_ROPE: return spec->rope_size / 2;
    case SIZE_X: return spec->experts;
    case SIZE_FX: return spec->expert_width;
    }
    return 0;
}

static bool wanted(const struct layout *layout, enum when when, uint32_t layer)
{
    const struct model_spec *spec = layout->spec;
    bool experts = spec->layer_flags[layer] & LAYER_EXPERTS;
    switch (when) {
    case WHEN_ALWAYS:
    case WHEN_FOUND: return true;
    case WHEN_UNTIED: return !spec->tied_head;
    case WHEN_BIAS: return spec->has_qkv_bias;
    case WHEN_QK_NORM: return spec->has_qk_norm;
    case WHEN_POST_NORMS: return spec->has_post_norms;
    case WHEN_APART: return !layout->qkv_in_one;
    case WHEN_QKV: return layout->qkv_in_one;
    case WHEN_DENSE: return !experts;
    case WHEN_DENSE_APART: return !experts && !layout->gate_up_in_one;
    case WHEN_GATE_UP: return !experts && layout->gate_up_in_one;
    case WHEN_EXPERTS: return experts;
    }
    return false;
}

static enum status place_tensor(const struct gguf *file, const struct layout *layout, const struct place *place,
                                uint32_t layer, const char *name, struct tensor_view *view, size_t *placed,
                                struct error *err)
{
    const struct model_spec *spec = layout->spec;
    if (!wanted(layout, place->when, layer)) return ST_OK;
    const struct gguf_tensor *tensor = gguf_find_tensor(file, name);
    if (!tensor && place->when == WHEN_FOUND) return ST_OK;
    if (!tensor)
        return error_set(err, ST_INVAL, "tensor %s is missing, architecture %s with %" PRIu32 " layers needs it", name,
                         spec->arch, spec->layers);
    if (view->data) /* short factors of two kinds */
        return error_set(err, ST_INVAL, "tensors %s and %s ask for the same place: one must go", view->name, name);
    bool vector = place->rows == SIZE_1;
    uint32_t rows = size_of(spec, place->rows), cols = size_of(spec, place->cols), depth = size_of(spec, place->depth);
    if (tensor->dims[0] != cols || tensor->dims[1] != rows || tensor->dims[2] != depth || tensor->dims[3] != 1)
        return error_set(err, ST_INVAL,
                         "tensor %s has shape (%" PRIu64 ", %" PRIu64 ", %" PRIu64 ", %" PRIu64 "), the keys of "
                         "the file need (%" PRIu32 ", %" PRIu32 ", %" PRIu32
                         "): keys and tensors do not belong together",
                         name, tensor->dims[0], tensor->dims[1], tensor->dims[2], tensor->dims[3], cols, rows, depth);
    if (vector && tensor->type != TENSOR_F32)
        return error_set(err, ST_INVAL, "tensor %s is of type %s, vectors must be F32: convert the file again", name,
                         tensor_type_info(tensor->type)->name);
    *view = (struct tensor_view){tensor->data, tensor->type, rows, cols, tensor->name, NULL};
    ++*placed;
    return ST_OK;
}

/* Is name one that a table has, for the tensors that are left over? */
static bool is_placed(const struct layout *layout, const char *name)
{
    unsigned layer;
    int used = 0;
    for (size_t i = 0; i < sizeof model_places / sizeof *model_places; i++)
        if (strcmp(name, model_places[i].name) == 0) return wanted(layout, model_places[i].when, 0);
    if (sscanf(name, "blk.%5u.%n", &layer, &used) != 1 || !used || layer >= layout->spec->layers) return false;
    char expected[16];
    int length = snprintf(expected, sizeof expected, "blk.%u.", layer); /* no leading zeros, no signs */
    if (length != used || strncmp(name, expected, (size_t)length) != 0) return false;
    for (size_t i = 0; i < sizeof layer_places / sizeof *layer_places; i++)
        if (strcmp(name + used, layer_places[i].name) == 0 && wanted(layout, layer_places[i].when, layer)) return true;
    return false;
}

static enum status refuse_leftover(const struct gguf *file, const struct layout *layout, struct error *err)
{
    for (size_t i = 0; i < gguf_tensors(file); i++) {
        const char *name = gguf_tensor_at(file, i)->name;
        if (!is_placed(layout, name))
            return error_set(err, ST_INVAL,
                             "tensor %s has no place in architecture %s with %" PRIu32 " layers as this version "
                             "knows it: the feature behind it is not supported",
                             name, layout->spec->arch, layout->spec->layers);
    }
    bool every_tensor_has_a_place = true;
    CHECK(!every_tensor_has_a_place); /* then place_weights would have counted them all */
    return ST_INVAL;
}

static enum status check_rope_factors(const struct tensor_view *factors, struct error *err)
{
    const float *values = factors->data;
    for (uint32_t i = 0; values && i < factors->cols; i++)
        if (!(values[i] > 0) || !isfinite(values[i]))
            return error_set(err, ST_INVAL, "tensor %s: factor %" PRIu32 " is %g, it must be finite and above 0",
                             factors->name, i, (double)values[i]);
    return ST_OK;
}

/* Rows [begin, begin + rows) of a view, as a matrix of its own. */
static struct tensor_view cut_rows(const struct tensor_view *view, uint32_t begin, uint32_t rows)
{
    struct tensor_view cut = *view;
    cut.data = (const uint8_t *)view->data + begin * tensor_row_bytes(tensor_type_info(view->type), view->cols);
    cut.rows = rows;
    return cut;
}

/* Tensors that hold several matrices become these. */
static enum status divide_layer(struct model *model, const struct layer_file *file, struct layer_weights *layer,
                                struct error *err)
{
    const struct model_spec *spec = &model->spec;
    uint32_t q_rows = spec->heads * spec->head_size, kv_rows = spec->kv_heads * spec->head_size;
    *layer = file->weights;
    if (file->qkv.data) {
        layer->q = cut_rows(&file->qkv, 0, q_rows);
        layer->k = cut_rows(&file->qkv, q_rows, kv_rows);
        layer->v = cut_rows(&file->qkv, q_rows + kv_rows, kv_rows);
    }
    if (file->gate_up.data) {
        layer->gate = cut_rows(&file->gate_up, 0, spec->ff_width);
        layer->up = cut_rows(&file->gate_up, spec->ff_width, spec->ff_width);
    }
    if (!file->gate_experts.data) return ST_OK;
    layer->experts = arena_alloc(&model->arena, spec->experts, sizeof *layer->experts);
    if (!layer->experts) return error_set(err, ST_NOMEM, "no memory for %" PRIu32 " experts", spec->experts);
    for (uint32_t x = 0; x < spec->experts; x++)
        layer->experts[x] = (struct expert_weights){
            .gate = cut_rows(&file->gate_experts, x * spec->expert_width, spec->expert_width),
            .up = cut_rows(&file->up_experts, x * spec->expert_width, spec->expert_width),
            .down = cut_rows(&file->down_experts, x * spec->width, spec->width),
        };
    return ST_OK;
}

static enum status place_weights(struct model *model, struct error *err)
{
    struct model_weights *weights = &model->weights;
    const struct gguf_tensor *up = gguf_find_tensor(model->file, "blk.0.ffn_up.weight");
    struct layout layout = {.spec = &model->spec,
                            .qkv_in_one = gguf_find_tensor(model->file, "blk.0.attn_qkv.weight"),
                            .gate_up_in_one = up && up->dims[1] == 2 * (uint64_t)model->spec.ff_width};
    size_t placed = 0;
    char name[64];
    weights->layers = arena_alloc(&model->arena, model->spec.layers, sizeof *weights->layers);
    if (!weights->layers) return error_set(err, ST_NOMEM, "no memory for %" PRIu32 " layers", model->spec.layers);
    for (size_t i = 0; i < sizeof model_places / sizeof *model_places; i++) {
        const struct place *place = &model_places[i];
        void *view = (char *)weights + place->offset;
        TRY(place_tensor(model->file, &layout, place, 0, place->name, view, &placed, err));
    }
    for (uint32_t layer = 0; layer < model->spec.layers; layer++) {
        struct layer_file file = {0};
        for (size_t i = 0; i < sizeof layer_places / sizeof *layer_places; i++) {
            const struct place *place = &layer_places[i];
            void *view = (char *)&file + place->offset;
            snprintf(name, sizeof name, "blk.%" PRIu32 ".%s", layer, place->name);
            TRY(place_tensor(model->file, &layout, place, layer, name, view, &placed, err));
        }
        TRY(divide_layer(model, &file, &weights->layers[layer], err));
    }
    if (placed != gguf_tensors(model->file)) return refuse_leftover(model->file, &layout, err);
    if (model->spec.tied_head) weights->head = weights->embed;
    TRY(check_rope_factors(&weights->rope_factors, err));
    return check_rope_factors(&weights->rope_factors_long, err);
}

/* YaRN's factors are made; others lie in the file. */
static enum status make_rope_factors(struct model *model, const struct rope_yarn *yarn, struct error *err)
{
    const struct model_spec *spec = &model->spec;
    if (!(yarn->factor > 0)) return ST_OK;
    if (model->weights.rope_factors.data)
        return error_set(err, ST_INVAL,
                         "key %s.rope.scaling.type is yarn, and tensor %s has factors too: one RoPE scaling must go",
                         spec->arch, model->weights.rope_factors.name);
    float *factors = arena_alloc(&model->arena, spec->rope_size / 2, sizeof *factors);
    if (!factors) return error_set(err, ST_NOMEM, "no memory for the factors of RoPE");
    rope_yarn_factors(factors, spec->rope_size, (double)spec->rope_main.base, yarn);
    model->weights.rope_factors =
        (struct tensor_view){factors, TENSOR_F32, 1, spec->rope_size / 2, "YaRN's factors", NULL};
    return ST_OK;
}

static enum status open_file(struct gguf *file, struct model **out, struct error *err)
{
    struct model *model = mem_alloc(1, sizeof *model);
    if (!model) {
        gguf_close(file);
        return error_set(err, ST_NOMEM, "no memory for the model");
    }
    model->defaults = sampling_defaults_none();
    model->file = file;
    model->file_bytes = gguf_bytes(file);
    arena_init(&model->arena, 0);
    struct rope_yarn yarn;
    enum status status = model_spec_read(file, &model->spec, &yarn, err);
    if (status == ST_OK) status = place_weights(model, err);
    if (status == ST_OK) status = make_rope_factors(model, &yarn, err);
    if (status == ST_OK) status = vocab_read(file, &model->vocab, err);
    if (status == ST_OK) status = vocab_read_template(file, &model->chat_template, &model->chat_template_length, err);
    if (status != ST_OK) {
        model_close(model);
        return status;
    }
    *out = model;
    return ST_OK;
}

enum status model_open_memory(const void *data, size_t size_bytes, struct model **model, struct error *err)
{
    struct gguf *file = NULL;
    TRY(gguf_open_memory(data, size_bytes, &file, err));
    return open_file(file, model, err);
}

static enum status open_folder(const char *path, struct model **out, struct error *err)
{
    struct model *model = mem_alloc(1, sizeof *model);
    if (!model) return error_set(err, ST_NOMEM, "no memory for the model");
    arena_init(&model->arena, 0);
    enum status status = hf_folder_open(path, model, err);
    if (status != ST_OK) {
        model_close(model);
        return status;
    }
    *out = model;
    return ST_OK;
}

static enum status open_path(const char *path, struct model **model, struct error *err)
{
    struct gguf *file = NULL;
    struct stat info;
    const char *ending = strrchr(path, '.');
    if (stat(path, &info) == 0 && S_ISDIR(info.st_mode)) return open_folder(path, model, err);
    if (ending && strcmp(ending, ".safetensors") == 0)
        return error_set(err, ST_INVAL, "these are weights alone: give the folder, which has config.json beside them");
    TRY(gguf_open(path, &file, err));
    return open_file(file, model, err);
}

enum status model_open(const char *path, struct model **model, struct error *err)
{
    struct error inner = {""};
    enum status status = open_path(path, model, &inner);
    return status == ST_OK ? ST_OK : error_set(err, status, "%.160s: %s", path, inner.message);
}

const void *tensor_rows(const struct tensor_view *view, uint32_t row_begin, uint32_t row_end, void *rows)
{
    if (!view->recipe)
        return (const uint8_t *)view->data + row_begin * tensor_row_bytes(tensor_type_info(view->type), view->cols);
    view->recipe->make(view->recipe, (struct tensor_area){row_begin, row_end, 0, view->cols}, rows);
    return rows;
}

enum status tensor_view_check(const struct tensor_view *view, uint32_t rows, uint32_t cols, struct error *err)
{
    const char *name = view->name ? view->name : "?";
    if (!view->data) return error_set(err, ST_INVAL, "tensor %s is missing", name);
    if (view->rows != rows || view->cols != cols)
        return error_set(err, ST_INVAL, "tensor %s is %ux%u, wanted %ux%u", name, view->rows, view->cols, rows, cols);
    return ST_OK;
}

void tensor_area_copy(const struct tensor_view *view, struct tensor_area area, void *rows)
{
    if (view->recipe) {
        view->recipe->make(view->recipe, area, rows);
        return;
    }
    const struct tensor_type_info *info = tensor_type_info(view->type);
    size_t stride = tensor_row_bytes(info, view->cols), begin = tensor_row_bytes(info, area.col_begin);
    size_t bytes = tensor_row_bytes(info, area.col_end) - begin;
    const uint8_t *from = (const uint8_t *)view->data + area.row_begin * stride + begin;
    for (uint32_t row = area.row_begin; row < area.row_end; row++, from += stride)
        memcpy((uint8_t *)rows + (row - area.row_begin) * bytes, from, bytes);
}

void model_forget_rows(const struct model *model, const struct tensor_view *view, uint32_t row_begin, uint32_t row_end)
{
    size_t row_bytes = tensor_row_bytes(tensor_type_info(view->type), view->cols);
    if (row_end > view->rows) row_end = view->rows;
    if (view->recipe || row_begin >= row_end) return;
    const uint8_t *rows = (const uint8_t *)view->data + row_begin * row_bytes;
    if (model->part.whole) model = model->part.whole;
    if (model->file) gguf_forget(model->file, rows, (row_end - row_begin) * row_bytes);
    if (model->shards) safetensors_forget(model->shards, rows, (row_end - row_begin) * row_bytes);
}

void model_release_file(struct model *model)
{
    arena_free(&model->arena);
    model->weights = (struct model_weights){0};
    gguf_close(model->file);
    safetensors_close(model->shards);
    model->file = NULL;
    model->shards = NULL;
}

void model_close(struct model *model)
{
    if (!model) return;
    model_release_file(model);
    vocab_free(&model->vocab);
    mem_free((void *)(uintptr_t)model->chat_template);
    mem_free(model);
}
