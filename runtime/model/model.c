/* From an open GGUF file to a model: the spec, a view of every weight, and copies of what outlives the file.
 *
 * Weights are placed by two tables, one for the model and one for a layer: name, place in the struct, shape in words of
 * the spec, and when it is there. Each tensor of the file must have been placed at the end, so nothing is left out in
 * silence. */
#include "runtime/model/model.h"

#include "runtime/base/check.h"
#include "runtime/base/mem.h"
#include "runtime/model/gguf.h"
#include "runtime/model/vocab_read.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

enum size { SIZE_1, SIZE_E, SIZE_F, SIZE_V, SIZE_D, SIZE_HD, SIZE_KD, SIZE_ROPE }; /* SIZE_1 rows: a vector */
enum when { WHEN_ALWAYS, WHEN_UNTIED, WHEN_BIAS, WHEN_QK_NORM, WHEN_FOUND };

struct place {
    const char *name; /* of a layer's tensors: after "blk.<i>." */
    size_t offset;    /* in struct model_weights or struct layer_weights */
    enum size rows, cols;
    enum when when;
};

static const struct place model_places[] = {
    {"token_embd.weight", offsetof(struct model_weights, embed), SIZE_V, SIZE_E, WHEN_ALWAYS},
    {"output_norm.weight", offsetof(struct model_weights, final_norm), SIZE_1, SIZE_E, WHEN_ALWAYS},
    {"output.weight", offsetof(struct model_weights, head), SIZE_V, SIZE_E, WHEN_UNTIED},
    {"rope_freqs.weight", offsetof(struct model_weights, rope_factors), SIZE_1, SIZE_ROPE, WHEN_FOUND},
};

#define LAYER(member) offsetof(struct layer_weights, member)
static const struct place layer_places[] = {
    {"attn_norm.weight", LAYER(attn_norm), SIZE_1, SIZE_E, WHEN_ALWAYS},
    {"attn_q.weight", LAYER(q), SIZE_HD, SIZE_E, WHEN_ALWAYS},
    {"attn_k.weight", LAYER(k), SIZE_KD, SIZE_E, WHEN_ALWAYS},
    {"attn_v.weight", LAYER(v), SIZE_KD, SIZE_E, WHEN_ALWAYS},
    {"attn_output.weight", LAYER(o), SIZE_E, SIZE_HD, WHEN_ALWAYS},
    {"attn_q.bias", LAYER(q_bias), SIZE_1, SIZE_HD, WHEN_BIAS},
    {"attn_k.bias", LAYER(k_bias), SIZE_1, SIZE_KD, WHEN_BIAS},
    {"attn_v.bias", LAYER(v_bias), SIZE_1, SIZE_KD, WHEN_BIAS},
    {"attn_q_norm.weight", LAYER(q_norm), SIZE_1, SIZE_D, WHEN_QK_NORM},
    {"attn_k_norm.weight", LAYER(k_norm), SIZE_1, SIZE_D, WHEN_QK_NORM},
    {"ffn_norm.weight", LAYER(ffn_norm), SIZE_1, SIZE_E, WHEN_ALWAYS},
    {"ffn_gate.weight", LAYER(gate), SIZE_F, SIZE_E, WHEN_ALWAYS},
    {"ffn_up.weight", LAYER(up), SIZE_F, SIZE_E, WHEN_ALWAYS},
    {"ffn_down.weight", LAYER(down), SIZE_E, SIZE_F, WHEN_ALWAYS},
};
#undef LAYER

static uint32_t size_of(const struct model_spec *spec, enum size size)
{
    switch (size) {
    case SIZE_1: return 1;
    case SIZE_E: return spec->width;
    case SIZE_F: return spec->ff_width;
    case SIZE_V: return spec->vocab;
    case SIZE_D: return spec->head_size;
    case SIZE_HD: return spec->heads * spec->head_size;
    case SIZE_KD: return spec->kv_heads * spec->head_size;
    case SIZE_ROPE: return spec->rope_size / 2;
    }
    return 0;
}

static bool wanted(const struct model_spec *spec, enum when when)
{
    return when == WHEN_UNTIED    ? !spec->tied_head
           : when == WHEN_BIAS    ? spec->has_qkv_bias
           : when == WHEN_QK_NORM ? spec->has_qk_norm
                                  : true;
}

static enum status place_tensor(const struct gguf *file, const struct model_spec *spec, const struct place *place,
                                const char *name, struct tensor_view *view, size_t *placed, struct error *err)
{
    if (!wanted(spec, place->when)) return ST_OK;
    const struct gguf_tensor *tensor = gguf_find_tensor(file, name);
    if (!tensor && place->when == WHEN_FOUND) return ST_OK;
    if (!tensor)
        return error_set(err, ST_INVAL, "tensor %s is missing, architecture %s with %" PRIu32 " layers needs it", name,
                         spec->arch, spec->layers);
    bool vector = place->rows == SIZE_1;
    uint32_t rows = size_of(spec, place->rows), cols = size_of(spec, place->cols);
    if (tensor->dims[0] != cols || tensor->dims[1] != rows || tensor->dims[2] != 1 || tensor->dims[3] != 1)
        return error_set(err, ST_INVAL,
                         "tensor %s has shape (%" PRIu64 ", %" PRIu64 ", %" PRIu64 ", %" PRIu64 "), the keys of "
                         "the file need (%" PRIu32 ", %" PRIu32 "): keys and tensors do not belong together",
                         name, tensor->dims[0], tensor->dims[1], tensor->dims[2], tensor->dims[3], cols, rows);
    if (vector && tensor->type != TENSOR_F32)
        return error_set(err, ST_INVAL, "tensor %s is of type %s, vectors must be F32: convert the file again", name,
                         tensor_type_info(tensor->type)->name);
    *view = (struct tensor_view){tensor->data, tensor->type, rows, cols, tensor->name};
    ++*placed;
    return ST_OK;
}

/* Is name one that a table has, for the tensors that are left over? */
static bool is_placed(const struct model_spec *spec, const char *name)
{
    unsigned layer;
    int used = 0;
    for (size_t i = 0; i < sizeof model_places / sizeof *model_places; i++)
        if (strcmp(name, model_places[i].name) == 0) return wanted(spec, model_places[i].when);
    if (sscanf(name, "blk.%5u.%n", &layer, &used) != 1 || !used || layer >= spec->layers) return false;
    char expected[16];
    int length = snprintf(expected, sizeof expected, "blk.%u.", layer); /* no leading zeros, no signs */
    if (length != used || strncmp(name, expected, (size_t)length) != 0) return false;
    for (size_t i = 0; i < sizeof layer_places / sizeof *layer_places; i++)
        if (strcmp(name + used, layer_places[i].name) == 0) return wanted(spec, layer_places[i].when);
    return false;
}

static enum status refuse_leftover(const struct gguf *file, const struct model_spec *spec, struct error *err)
{
    for (size_t i = 0; i < gguf_tensors(file); i++) {
        const char *name = gguf_tensor_at(file, i)->name;
        if (!is_placed(spec, name))
            return error_set(err, ST_INVAL,
                             "tensor %s has no place in architecture %s with %" PRIu32 " layers as this version "
                             "knows it: the feature behind it is not supported",
                             name, spec->arch, spec->layers);
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

static enum status place_weights(struct model *model, struct error *err)
{
    struct model_weights *weights = &model->weights;
    size_t placed = 0;
    char name[64];
    weights->layers = mem_alloc(model->spec.layers, sizeof *weights->layers);
    if (!weights->layers) return error_set(err, ST_NOMEM, "no memory for %" PRIu32 " layers", model->spec.layers);
    for (size_t i = 0; i < sizeof model_places / sizeof *model_places; i++) {
        const struct place *place = &model_places[i];
        void *view = (char *)weights + place->offset;
        TRY(place_tensor(model->file, &model->spec, place, place->name, view, &placed, err));
    }
    for (uint32_t layer = 0; layer < model->spec.layers; layer++)
        for (size_t i = 0; i < sizeof layer_places / sizeof *layer_places; i++) {
            const struct place *place = &layer_places[i];
            void *view = (char *)&weights->layers[layer] + place->offset;
            snprintf(name, sizeof name, "blk.%" PRIu32 ".%s", layer, place->name);
            TRY(place_tensor(model->file, &model->spec, place, name, view, &placed, err));
        }
    if (placed != gguf_tensors(model->file)) return refuse_leftover(model->file, &model->spec, err);
    if (model->spec.tied_head) weights->head = weights->embed;
    return check_rope_factors(&weights->rope_factors, err);
}

static enum status open_file(struct gguf *file, struct model **out, struct error *err)
{
    struct model *model = mem_alloc(1, sizeof *model);
    if (!model) {
        gguf_close(file);
        return error_set(err, ST_NOMEM, "no memory for the model");
    }
    model->file = file;
    model->file_bytes = gguf_bytes(file);
    enum status status = model_spec_read(file, &model->spec, err);
    if (status == ST_OK) status = place_weights(model, err);
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

enum status model_open(const char *path, struct model **model, struct error *err)
{
    struct gguf *file = NULL;
    struct error inner = {""};
    enum status status = gguf_open(path, &file, &inner);
    if (status == ST_OK) status = open_file(file, model, &inner);
    return status == ST_OK ? ST_OK : error_set(err, status, "%.160s: %s", path, inner.message);
}

void model_forget_rows(const struct model *model, const struct tensor_view *view, uint32_t row_begin, uint32_t row_end)
{
    size_t row_bytes = tensor_row_bytes(tensor_type_info(view->type), view->cols);
    if (row_end > view->rows) row_end = view->rows;
    if (model->file && row_begin < row_end)
        gguf_forget(model->file, (const uint8_t *)view->data + row_begin * row_bytes,
                    (row_end - row_begin) * row_bytes);
}

void model_release_file(struct model *model)
{
    mem_free(model->weights.layers);
    model->weights = (struct model_weights){0};
    gguf_close(model->file);
    model->file = NULL;
}

void model_close(struct model *model)
{
    if (!model) return;
    model_release_file(model);
    vocab_free(&model->vocab);
    mem_free((void *)(uintptr_t)model->chat_template);
    mem_free(model);
}
