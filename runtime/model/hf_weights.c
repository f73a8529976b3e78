/* See hf_weights.h.
 *
 * As in model.c a table says of each tensor its name, its place, its shape in words of the spec and when it is there;
 * and at the end every tensor of the files must have been used. What files hold besides weights (frequencies of RoPE,
 * which follow from config.json) is left out by name. */
#include "runtime/model/hf_weights.h"

#include "kernels/dequantize.h"
#include "runtime/base/mem.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

enum size { SIZE_1, SIZE_E, SIZE_F, SIZE_2F, SIZE_V, SIZE_D, SIZE_HD, SIZE_KD, SIZE_QKV };
enum when {
    WHEN_ALWAYS,
    WHEN_BIAS,
    WHEN_QK_NORM,
    WHEN_PLAIN_NORMS, /* one norm before attention, one before the feed-forward */
    WHEN_POST_NORMS,  /* and one behind each */
    WHEN_APART,       /* Q, K and V are tensors of their own */
    WHEN_QKV,         /* or lie one after the other in one */
    WHEN_DENSE,       /* a feed-forward without experts: its down */
    WHEN_DENSE_APART, /* its gate and up, as tensors of their own */
    WHEN_GATE_UP      /* or one after the other in one */
};
enum form {
    FORM_MATRIX,
    FORM_VECTOR,
    FORM_NORM, /* a vector, 1 more where the family stores it so */
};

struct place {
    const char *name; /* of a layer's tensors: after the layer's prefix; of a matrix: without ".weight" */
    size_t offset;    /* in struct layer_file */
    enum form form;
    enum size rows, cols;
    enum when when;
};

/* A layer's weights as the files have them: some of several matrices in one tensor. */
struct layer_file {
    struct layer_weights weights;
    struct tensor_view qkv, gate_up;
};

#define LAYER(member) offsetof(struct layer_file, weights.member)
#define FUSED(member) offsetof(struct layer_file, member)
static const struct place layer_places[] = {
    {"input_layernorm.weight", LAYER(attn_norm), FORM_NORM, SIZE_1, SIZE_E, WHEN_ALWAYS},
    {"self_attn.q_proj", LAYER(q), FORM_MATRIX, SIZE_HD, SIZE_E, WHEN_APART},
    {"self_attn.k_proj", LAYER(k), FORM_MATRIX, SIZE_KD, SIZE_E, WHEN_APART},
    {"self_attn.v_proj", LAYER(v), FORM_MATRIX, SIZE_KD, SIZE_E, WHEN_APART},
    {"self_attn.qkv_proj", FUSED(qkv), FORM_MATRIX, SIZE_QKV, SIZE_E, WHEN_QKV},
    {"self_attn.o_proj", LAYER(o), FORM_MATRIX, SIZE_E, SIZE_HD, WHEN_ALWAYS},
    {"self_attn.q_proj.bias", LAYER(q_bias), FORM_VECTOR, SIZE_1, SIZE_HD, WHEN_BIAS},
    {"self_attn.k_proj.bias", LAYER(k_bias), FORM_VECTOR, SIZE_1, SIZE_KD, WHEN_BIAS},
    {"self_attn.v_proj.bias", LAYER(v_bias), FORM_VECTOR, SIZE_1, SIZE_KD, WHEN_BIAS},
    {"self_attn.q_norm.weight", LAYER(q_norm), FORM_NORM, SIZE_1, SIZE_D, WHEN_QK_NORM},
    {"self_attn.k_norm.weight", LAYER(k_norm), FORM_NORM, SIZE_1, SIZE_D, WHEN_QK_NORM},
    {"post_attention_layernorm.weight", LAYER(ffn_norm), FORM_NORM, SIZE_1, SIZE_E, WHEN_PLAIN_NORMS},
    {"post_attention_layernorm.weight", LAYER(attn_post_norm), FORM_NORM, SIZE_1, SIZE_E, WHEN_POST_NORMS},
    {"pre_feedforward_layernorm.weight", LAYER(ffn_norm), FORM_NORM, SIZE_1, SIZE_E, WHEN_POST_NORMS},
    {"post_feedforward_layernorm.weight", LAYER(ffn_post_norm), FORM_NORM, SIZE_1, SIZE_E, WHEN_POST_NORMS},
    {"mlp.gate_proj", LAYER(gate), FORM_MATRIX, SIZE_F, SIZE_E, WHEN_DENSE_APART},
    {"mlp.up_proj", LAYER(up), FORM_MATRIX, SIZE_F, SIZE_E, WHEN_DENSE_APART},
    {"mlp.gate_up_proj", FUSED(gate_up), FORM_MATRIX, SIZE_2F, SIZE_E, WHEN_GATE_UP},
    {"mlp.down_proj", LAYER(down), FORM_MATRIX, SIZE_E, SIZE_F, WHEN_DENSE},
};
#undef LAYER
#undef FUSED

static const struct {
    const char *router, *experts, *gate, *up, *down; /* after the layer's prefix; after "experts<x>." */
} expert_places[] = {
    [HF_EXPERTS_MLP] = {"mlp.gate", "mlp.experts.", "gate_proj", "up_proj", "down_proj"},
    [HF_EXPERTS_BLOCK_SPARSE] = {"block_sparse_moe.gate", "block_sparse_moe.experts.", "w1", "w3", "w2"},
};

/* Where the decoder's tensors may stand, and the head's beside them: plain, and in models that see images by the old
 * and the new names. */
static const struct {
    const char *model, *head;
    bool has_images;
} prefixes[] = {
    {"model.", "lm_head", false},
    {"language_model.model.", "language_model.lm_head", true},
    {"model.language_model.", "lm_head", true},
};
static const char *const image_prefixes[] = {"vision_tower.", "multi_modal_projector.", "model.vision_tower.",
                                             "model.multi_modal_projector."};

enum { NAME_BYTES = SAFETENSORS_NAME_MAX + 1 };

struct placing {
    const struct safetensors *set;
    const struct hf_config *config;
    struct arena *arena;
    struct model_spec *spec;
    uint8_t *used; /* of each tensor: 1 once it has a place */
    const char *prefix, *head;
    struct error *err;
};

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
    }
    return 0;
}

static bool wanted(const struct placing *p, enum when when, uint32_t layer)
{
    const struct model_spec *spec = p->spec;
    bool experts = spec->layer_flags[layer] & LAYER_EXPERTS;
    switch (when) {
    case WHEN_ALWAYS: return true;
    case WHEN_BIAS: return spec->has_qkv_bias;
    case WHEN_QK_NORM: return spec->has_qk_norm;
    case WHEN_PLAIN_NORMS: return !spec->has_post_norms;
    case WHEN_POST_NORMS: return spec->has_post_norms;
    case WHEN_APART: return !p->config->fused;
    case WHEN_QKV: return p->config->fused;
    case WHEN_DENSE: return !experts;
    case WHEN_DENSE_APART: return !experts && !p->config->fused;
    case WHEN_GATE_UP: return !experts && p->config->fused;
    }
    return false;
}

/* --- one tensor --- */

static bool type_of(enum safetensors_dtype dtype, enum tensor_type *type)
{
    switch ((int)dtype) {
    case SAFETENSORS_F32: *type = TENSOR_F32; return true;
    case SAFETENSORS_F16: *type = TENSOR_F16; return true;
    case SAFETENSORS_BF16: *type = TENSOR_BF16; return true;
    default: return false;
    }
}

/* A tensor of numbers that is there, of the shape (rows, cols), or (cols) when rows is 0. */
static enum status find_tensor(struct placing *p, const char *name, uint32_t rows, uint32_t cols,
                               const struct safetensors_tensor **found, enum tensor_type *type)
{
    const struct safetensors_tensor *tensor = safetensors_find(p->set, name);
    if (!tensor)
        return error_set(p->err, ST_INVAL, "tensor %s is missing, architecture %s with %" PRIu32 " layers needs it",
                         name, p->spec->arch, p->spec->layers);
    uint64_t first = rows ? rows : cols, second = rows ? cols : 1;
    if (tensor->dims_count != (rows ? 2u : 1u) || tensor->dims[0] != first || tensor->dims[1] != second)
        return error_set(p->err, ST_INVAL,
                         "tensor %s has %" PRIu32 " dimensions, (%" PRIu64 ", %" PRIu64
                         " ...); config.json needs (%" PRIu64 "%s%.0" PRIu64 "): they do not belong together",
                         name, tensor->dims_count, tensor->dims[0], tensor->dims[1], first, rows ? ", " : "",
                         rows ? second : 0);
    if (!type_of(tensor->dtype, type))
        return error_set(p->err, ST_INVAL,
                         "tensor %s is of dtype %s: weights that are not quantised must be F32, F16 "
                         "or BF16",
                         name, safetensors_dtype_name(tensor->dtype));
    p->used[safetensors_index_of(p->set, tensor)] = 1;
    p->spec->parameters += (uint64_t)first * second;
    *found = tensor;
    return ST_OK;
}

/* Tensors by name for the readers of quantised formats: what they find is used. */
static bool find_raw(void *state, const char *name, struct raw_tensor *raw)
{
    struct placing *p = state;
    const struct safetensors_tensor *tensor = safetensors_find(p->set, name);
    if (!tensor || tensor->dims_count > QUANT_DIMS_MAX) return false;
    *raw = (struct raw_tensor){.dtype = safetensors_dtype_name(tensor->dtype),
                               .dims_count = tensor->dims_count,
                               .data = tensor->data,
                               .size_bytes = tensor->bytes};
    for (uint32_t d = 0; d < QUANT_DIMS_MAX; d++) raw->dims[d] = tensor->dims[d];
    p->used[safetensors_index_of(p->set, tensor)] = 1;
    return true;
}

/* The weights of a module: quantised where the tensors for that are there, else plain. */
static enum status place_matrix(struct placing *p, const char *module, uint32_t rows, uint32_t cols,
                                struct tensor_view *view)
{
    const struct safetensors_tensor *tensor = NULL;
    enum tensor_type type = TENSOR_F32;
    char name[NAME_BYTES];
    enum status status = quant_view(&p->config->quantised, find_raw, p, p->arena, module, rows, cols, view, p->err);
    if (status == ST_OK) p->spec->parameters += (uint64_t)rows * cols;
    if (status != ST_NOTFOUND) return status;
    snprintf(name, sizeof name, "%s.weight", module);
    TRY(find_tensor(p, name, rows, cols, &tensor, &type));
    *view = (struct tensor_view){tensor->data, type, rows, cols, tensor->name, NULL};
    return ST_OK;
}

/* Values of a tensor, whose data may stand at any byte, as F32. */
static void read_values(const void *data, enum tensor_type type, float *values, uint32_t count)
{
    const uint8_t *bytes = data;
    for (uint32_t i = 0; i < count; i++) {
        uint16_t half;
        if (type == TENSOR_F32) {
            memcpy(&values[i], bytes + 4 * (size_t)i, 4);
            continue;
        }
        memcpy(&half, bytes + 2 * (size_t)i, 2);
        values[i] = type == TENSOR_F16 ? f16_to_f32(half) : bf16_to_f32(half);
    }
}

static enum status place_vector(struct placing *p, const char *name, uint32_t count, float more,
                                struct tensor_view *view)
{
    const struct safetensors_tensor *tensor = NULL;
    enum tensor_type type = TENSOR_F32;
    TRY(find_tensor(p, name, 0, count, &tensor, &type));
    float *values = arena_alloc(p->arena, count, sizeof *values);
    if (!values) return error_set(p->err, ST_NOMEM, "no memory for tensor %s", name);
    read_values(tensor->data, type, values, count);
    if (more != 0)
        for (uint32_t i = 0; i < count; i++) values[i] += more;
    *view = (struct tensor_view){values, TENSOR_F32, 1, count, tensor->name, NULL};
    return ST_OK;
}

/* --- matrices that are not aligned for their type --- */

struct copy_recipe {
    struct tensor_recipe recipe;
    struct tensor_view rows; /* as they lie in the file */
};

static void copy_area(const struct tensor_recipe *recipe, struct tensor_area area, void *rows)
{
    const struct copy_recipe *copy = (const struct copy_recipe *)(const void *)recipe;
    tensor_area_copy(&copy->rows, area, rows);
}

static enum status align(struct placing *p, struct tensor_view *view)
{
    const struct tensor_type_info *info = tensor_type_info(view->type);
    if (!view->data || view->recipe || (uintptr_t)view->data % info->block_bytes == 0) return ST_OK;
    struct copy_recipe *copy = arena_alloc(p->arena, 1, sizeof *copy);
    if (!copy) return error_set(p->err, ST_NOMEM, "no memory for tensor %s", view->name);
    *copy = (struct copy_recipe){{copy_area}, *view};
    view->recipe = &copy->recipe;
    return ST_OK;
}

/* --- a layer --- */

static enum status cut_rows(struct placing *p, const struct tensor_view *view, uint32_t begin, uint32_t rows,
                            struct tensor_view *cut)
{
    if (quant_cut_rows(view, begin, rows, p->arena, cut) == ST_OK) return ST_OK;
    return error_set(p->err, ST_NOMEM, "no memory for tensor %s", view->name);
}

static enum status divide_layer(struct placing *p, const struct layer_file *file, struct layer_weights *layer)
{
    const struct model_spec *spec = p->spec;
    uint32_t q_rows = spec->heads * spec->head_size, kv_rows = spec->kv_heads * spec->head_size;
    *layer = file->weights;
    const struct tensor_view *qkv = &file->qkv, *gate_up = &file->gate_up;
    if (qkv->data) {
        TRY(cut_rows(p, qkv, 0, q_rows, &layer->q));
        TRY(cut_rows(p, qkv, q_rows, kv_rows, &layer->k));
        TRY(cut_rows(p, qkv, q_rows + kv_rows, kv_rows, &layer->v));
    }
    if (gate_up->data) {
        TRY(cut_rows(p, gate_up, 0, spec->ff_width, &layer->gate));
        TRY(cut_rows(p, gate_up, spec->ff_width, spec->ff_width, &layer->up));
    }
    struct tensor_view *views[] = {&layer->q, &layer->k, &layer->v, &layer->o, &layer->gate, &layer->up, &layer->down};
    for (size_t i = 0; i < sizeof views / sizeof *views; i++) TRY(align(p, views[i]));
    return ST_OK;
}

static enum status place_expert(struct placing *p, const char *prefix, const char *name, uint32_t rows, uint32_t cols,
                                struct tensor_view *view)
{
    char module[NAME_BYTES];
    snprintf(module, sizeof module, "%s%s", prefix, name);
    TRY(place_matrix(p, module, rows, cols, view));
    return align(p, view);
}

static enum status place_experts(struct placing *p, const char *layer_prefix, struct layer_weights *layer)
{
    const struct model_spec *spec = p->spec;
    enum hf_expert_names names = p->config->expert_names;
    uint32_t F = spec->expert_width, E = spec->width;
    char prefix[NAME_BYTES];
    TRY(place_expert(p, layer_prefix, expert_places[names].router, spec->experts, E, &layer->router));
    layer->experts = arena_alloc(p->arena, spec->experts, sizeof *layer->experts);
    if (!layer->experts) return error_set(p->err, ST_NOMEM, "no memory for %" PRIu32 " experts", spec->experts);
    for (uint32_t x = 0; x < spec->experts; x++) {
        struct expert_weights *expert = &layer->experts[x];
        snprintf(prefix, sizeof prefix, "%s%s%" PRIu32 ".", layer_prefix, expert_places[names].experts, x);
        TRY(place_expert(p, prefix, expert_places[names].gate, F, E, &expert->gate));
        TRY(place_expert(p, prefix, expert_places[names].up, F, E, &expert->up));
        TRY(place_expert(p, prefix, expert_places[names].down, E, F, &expert->down));
    }
    return ST_OK;
}

static enum status place_layer(struct placing *p, uint32_t l, struct layer_weights *layer)
{
    struct layer_file file = {0};
    char prefix[64], name[NAME_BYTES];
    snprintf(prefix, sizeof prefix, "%slayers.%" PRIu32 ".", p->prefix, l);
    for (size_t i = 0; i < sizeof layer_places / sizeof *layer_places; i++) {
        const struct place *place = &layer_places[i];
        struct tensor_view *view = (void *)((char *)&file + place->offset);
        uint32_t rows = size_of(p->spec, place->rows), cols = size_of(p->spec, place->cols);
        if (!wanted(p, place->when, l)) continue;
        snprintf(name, sizeof name, "%s%s", prefix, place->name);
        if (place->form == FORM_MATRIX)
            TRY(place_matrix(p, name, rows, cols, view));
        else
            TRY(place_vector(p, name, cols, place->form == FORM_NORM && p->config->norms_plus_one, view));
    }
    TRY(divide_layer(p, &file, layer));
    return p->spec->layer_flags[l] & LAYER_EXPERTS ? place_experts(p, prefix, layer) : ST_OK;
}

/* --- the model --- */

/* The head: its own, the embedding's, or a copy of the embedding's that needs no place. Files that say it is tied and
 * bring another one are taken at their tensors' word, as transformers does. */
static enum status place_head(struct placing *p, struct model_weights *weights)
{
    struct tensor_view *head = &weights->head, *embed = &weights->embed;
    char name[NAME_BYTES];
    snprintf(name, sizeof name, "%s.weight", p->head);
    bool tied = p->spec->tied_head;
    if (!tied || safetensors_find(p->set, name)) {
        TRY(place_matrix(p, p->head, p->spec->vocab, p->spec->width, head));
        size_t bytes = head->rows * tensor_row_bytes(tensor_type_info(head->type), head->cols);
        if (tied)
            tied = head->type == embed->type && !head->recipe && !embed->recipe &&
                   memcmp(head->data, embed->data, bytes) == 0;
        if (tied) p->spec->parameters -= (uint64_t)head->rows * head->cols;
        TRY(align(p, head));
    }
    TRY(align(p, embed));
    p->spec->tied_head = tied;
    if (tied) *head = *embed;
    return ST_OK;
}

static bool ends_with(const char *text, const char *ending)
{
    size_t length = strlen(text), count = strlen(ending);
    return length >= count && strcmp(text + length - count, ending) == 0;
}

/* Biases for which a device has no place, and which say nothing: some writers put one behind every matrix. */
static bool is_zero_bias(const struct safetensors_tensor *tensor)
{
    static const uint8_t zeros[64];
    const uint8_t *bytes = tensor->data;
    enum tensor_type type;
    if (!ends_with(tensor->name, "_proj.bias") || !type_of(tensor->dtype, &type)) return false;
    for (size_t i = 0; i < tensor->bytes; i += sizeof zeros)
        if (memcmp(bytes + i, zeros, tensor->bytes - i < sizeof zeros ? tensor->bytes - i : sizeof zeros) != 0)
            return false;
    return tensor->bytes > 0;
}

/* Tensors that no place needs: frequencies of RoPE as old files hold them, scales for activations, the part that sees
 * images. */
static bool is_harmless(const struct placing *p, const struct safetensors_tensor *tensor)
{
    const char *name = tensor->name;
    if (ends_with(name, "rotary_emb.inv_freq") || is_zero_bias(tensor)) return true;
    if (p->config->quantised.method != QUANT_NONE && quant_is_activation_scale(name)) return true;
    for (size_t i = 0; p->config->has_images && i < sizeof image_prefixes / sizeof *image_prefixes; i++)
        if (strncmp(name, image_prefixes[i], strlen(image_prefixes[i])) == 0) return true;
    return false;
}

static enum status refuse_leftover(const struct placing *p)
{
    for (size_t i = 0; i < safetensors_tensors(p->set); i++) {
        const struct safetensors_tensor *tensor = safetensors_tensor_at(p->set, i);
        if (!p->used[i] && !is_harmless(p, tensor))
            return error_set(p->err, ST_INVAL,
                             "tensor %s has no place in architecture %s with %" PRIu32 " layers as this version knows "
                             "it: the feature behind it is not supported",
                             tensor->name, p->spec->arch, p->spec->layers);
    }
    return ST_OK;
}

static enum status find_prefix(struct placing *p)
{
    char name[NAME_BYTES];
    for (size_t i = 0; i < sizeof prefixes / sizeof *prefixes; i++) {
        if (prefixes[i].has_images != p->config->has_images) continue;
        p->prefix = prefixes[i].model;
        p->head = prefixes[i].head;
        snprintf(name, sizeof name, "%sembed_tokens.weight", p->prefix);
        if (safetensors_find(p->set, name)) break;
    }
    if (p->spec->layers > safetensors_tensors(p->set)) /* before memory is taken for them */
        return error_set(p->err, ST_INVAL, "config.json has %" PRIu32 " layers, the files only %zu tensors",
                         p->spec->layers, safetensors_tensors(p->set));
    return ST_OK;
}

static struct tensor_view factors_view(const struct placing *p, const float *factors)
{
    return (struct tensor_view){factors, TENSOR_F32, 1, p->spec->rope_size / 2, "factors of RoPE", NULL};
}

static enum status place_all(struct placing *p, struct model_weights *weights)
{
    char name[NAME_BYTES];
    TRY(find_prefix(p));
    weights->layers = arena_alloc(p->arena, p->spec->layers, sizeof *weights->layers);
    if (!weights->layers) return error_set(p->err, ST_NOMEM, "no memory for %" PRIu32 " layers", p->spec->layers);
    snprintf(name, sizeof name, "%sembed_tokens", p->prefix);
    TRY(place_matrix(p, name, p->spec->vocab, p->spec->width, &weights->embed));
    snprintf(name, sizeof name, "%snorm.weight", p->prefix);
    TRY(place_vector(p, name, p->spec->width, p->config->norms_plus_one, &weights->final_norm));
    TRY(place_head(p, weights));
    for (uint32_t l = 0; l < p->spec->layers; l++) TRY(place_layer(p, l, &weights->layers[l]));
    if (p->config->rope_factors.factors) weights->rope_factors = factors_view(p, p->config->rope_factors.factors);
    if (p->config->rope_factors.factors_long)
        weights->rope_factors_long = factors_view(p, p->config->rope_factors.factors_long);
    return refuse_leftover(p);
}

enum status hf_weights_place(const struct safetensors *set, const struct hf_config *config, struct arena *arena,
                             struct model_spec *spec, struct model_weights *weights, struct error *err)
{
    struct placing p = {.set = set, .config = config, .arena = arena, .spec = spec, .err = err};
    p.used = mem_alloc(safetensors_tensors(set), 1);
    if (!p.used) return error_set(err, ST_NOMEM, "no memory to place the tensors");
    enum status status = place_all(&p, weights);
    mem_free(p.used);
    return status;
}
