/* See hf_config.h. */
#include "runtime/model/hf_config.h"

#include "runtime/base/limits.h"
#include "runtime/model/hf_keys.h"
#include "runtime/model/json_file.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

static const char file_name[] = "config.json";

enum windows {
    WINDOWS_NONE,
    WINDOWS_ALL,   /* every layer */
    WINDOWS_LATE,  /* by layer_types, else the layers from max_window_layers on */
    WINDOWS_PERIOD /* by layer_types, else all but each sliding_window_pattern-th */
};
enum experts {
    EXPERTS_NONE,
    EXPERTS_ALL,  /* in every layer, of intermediate_size, weights made to sum to 1 */
    EXPERTS_MIXED /* of moe_intermediate_size, in layers that mlp_only_layers and decoder_sparse_step tell */
};

/* What is assumed for keys that are absent; 0: the key is needed. */
struct defaults {
    uint32_t vocab, heads, kv_heads, head_size, context;
    double norm_eps;
    double scores; /* query_pre_attn_scalar */
};

struct family {
    const char *class_name; /* in architectures */
    const char *model_type;
    const char *activation_key;
    enum activation activation;
    bool tied, qkv_bias, qk_norm, gemma, scales;
    bool fused;          /* Q, K and V in one tensor, gate and up in another */
    bool attention_bias; /* is read: Q, K and V may have biases */
    enum windows windows;
    bool window_switch;      /* sliding_window counts only with use_sliding_window */
    uint32_t window_default; /* when sliding_window is absent (null: there is none) */
    enum experts experts;
    enum hf_expert_names expert_names;
    struct hf_rope_defaults rope;
    struct defaults defaults;
};

static const struct family families[] = {
    {.class_name = "LlamaForCausalLM", /* Llama 1-3, SmolLM2, TinyLlama, Yi ... */
     .model_type = "llama",
     .activation_key = "hidden_act",
     .attention_bias = true,
     .rope = {.base = 10000}},
    {.class_name = "MistralForCausalLM",
     .model_type = "mistral",
     .activation_key = "hidden_act",
     .windows = WINDOWS_ALL,
     .window_default = 4096,
     .rope = {.base = 10000},
     .defaults = {.kv_heads = 8}},
    {.class_name = "Qwen2ForCausalLM", /* 2 and 2.5 */
     .model_type = "qwen2",
     .activation_key = "hidden_act",
     .qkv_bias = true,
     .windows = WINDOWS_LATE,
     .window_switch = true,
     .window_default = 4096,
     .rope = {.base = 10000},
     .defaults = {.kv_heads = 32}},
    {.class_name = "Qwen3ForCausalLM",
     .model_type = "qwen3",
     .activation_key = "hidden_act",
     .qk_norm = true,
     .attention_bias = true,
     .windows = WINDOWS_LATE,
     .window_switch = true,
     .window_default = 4096,
     .rope = {.base = 10000},
     .defaults = {.kv_heads = 32, .head_size = 128}},
    {.class_name = "Qwen3MoeForCausalLM",
     .model_type = "qwen3_moe",
     .activation_key = "hidden_act",
     .qk_norm = true,
     .attention_bias = true,
     .windows = WINDOWS_ALL,
     .window_switch = true,
     .window_default = 4096,
     .experts = EXPERTS_MIXED,
     .expert_names = HF_EXPERTS_MLP,
     .rope = {.base = 10000},
     .defaults = {.kv_heads = 4}},
    {.class_name = "MixtralForCausalLM",
     .model_type = "mixtral",
     .activation_key = "hidden_act",
     .windows = WINDOWS_ALL,
     .experts = EXPERTS_ALL,
     .expert_names = HF_EXPERTS_BLOCK_SPARSE,
     .rope = {.base = 1000000},
     .defaults = {.kv_heads = 8}},
    {.class_name = "Gemma3ForCausalLM",
     .model_type = "gemma3_text",
     .activation_key = "hidden_activation",
     .activation = ACTIVATION_GELU_TANH,
     .tied = true,
     .qk_norm = true,
     .gemma = true,
     .attention_bias = true,
     .windows = WINDOWS_PERIOD,
     .window_default = 4096,
     .rope = {.base = 1000000, .window_base = 10000},
     .defaults = {.vocab = 262208,
                  .heads = 8,
                  .kv_heads = 4,
                  .head_size = 256,
                  .context = 131072,
                  .norm_eps = 1e-6,
                  .scores = 256}},
    {.class_name = "Phi3ForCausalLM", /* Phi 3, 3.5 and 4, their mini models too */
     .model_type = "phi3",
     .activation_key = "hidden_act",
     .fused = true,
     .windows = WINDOWS_ALL,
     .rope = {.base = 10000, .original_context = 4096, .partial = true, .old_longrope_names = true}},
    {.class_name = "GraniteForCausalLM",
     .model_type = "granite",
     .activation_key = "hidden_act",
     .scales = true,
     .attention_bias = true,
     .rope = {.base = 10000}},
};

/* Gemma 3's larger models see images: the text model of the last row but two, in a configuration of its own. */
static const char image_class[] = "Gemma3ForConditionalGeneration", image_text_class[] = "Gemma3ForCausalLM";

struct reader {
    const struct family *family;
    struct hf_object keys;
    struct error *err;
};

static const struct family *family_of_class(const char *class_name)
{
    for (size_t i = 0; i < sizeof families / sizeof *families; i++)
        if (strcmp(families[i].class_name, class_name) == 0) return &families[i];
    return NULL;
}

static enum status unknown_architecture(const char *key, const char *name, struct error *err)
{
    char known[400];
    int used = 0;
    for (size_t i = 0; i < sizeof families / sizeof *families; i++)
        used += snprintf(known + used, sizeof known - (size_t)used, "%s%s", i ? ", " : "", families[i].class_name);
    return error_set(err, ST_INVAL, "architecture \"%.60s\" (key %s) is not supported, known are: %s, %s", name, key,
                     known, image_class);
}

/* The row, and the text configuration inside one of a model with images. */
static enum status find_family(struct hf_config *config, const struct family **family, struct error *err)
{
    struct hf_object keys = {config->root, "", err};
    const struct json *list = hf_member(&keys, "architectures");
    const char *type = NULL, *name = json_to_text(json_at(list, 0), NULL);
    TRY(hf_read_text(&keys, "model_type", &type));
    if (list && (json_length(list) != 1 || !name))
        return error_set(err, ST_INVAL, "key architectures must be an array of one name");
    if (!name && !type)
        return error_set(err, ST_INVAL, "keys architectures and model_type are missing: this describes no model");
    config->text = config->root;
    if (name && strcmp(name, image_class) == 0) {
        config->text = hf_member(&keys, "text_config");
        config->has_images = true;
        if (json_kind(config->text) != JSON_KIND_OBJECT)
            return error_set(err, ST_INVAL, "key text_config is missing or no object, %s needs it", name);
        *family = family_of_class(image_text_class);
        return ST_OK;
    }
    if (name) {
        *family = family_of_class(name);
        if (!*family) return unknown_architecture("architectures", name, err);
        if (type && strcmp(type, (*family)->model_type) != 0)
            return error_set(err, ST_INVAL, "key model_type is \"%.60s\", but architectures say %s: one is wrong", type,
                             name);
        return ST_OK;
    }
    for (size_t i = 0; i < sizeof families / sizeof *families; i++)
        if (strcmp(families[i].model_type, type) == 0) *family = &families[i];
    return *family ? ST_OK : unknown_architecture("model_type", type, err);
}

static enum status check_keys(const struct reader *r)
{
    const struct family *f = r->family;
    unsigned groups = 0;
    if (f->windows != WINDOWS_NONE) groups |= HF_KEYS_WINDOW;
    if (f->window_switch) groups |= HF_KEYS_WINDOW_SWITCH | HF_KEYS_WINDOW_LATE; /* WINDOWS_ALL: written, not read */
    if (f->gemma) groups |= HF_KEYS_GEMMA;
    if (f->scales) groups |= HF_KEYS_SCALES;
    if (f->experts != EXPERTS_NONE) groups |= HF_KEYS_EXPERTS;
    if (f->experts == EXPERTS_MIXED) groups |= HF_KEYS_EXPERTS_MIXED;
    if (f->rope.partial) groups |= HF_KEYS_PARTIAL_ROTARY;
    return hf_keys_check(&r->keys, groups);
}

/* An integer with the family's default, if it has one. */
static enum status read_size(const struct reader *r, const char *key, uint64_t min, uint64_t max, uint32_t fallback,
                             uint32_t *value)
{
    *value = fallback;
    return hf_read_u32(&r->keys, key, !fallback, min, max, value);
}

/* null, where a number would be, asks for the default that follows from the others. */
static bool is_null(const struct reader *r, const char *key)
{
    const struct json *value = json_member(r->keys.json, key);
    return value && json_kind(value) == JSON_KIND_NULL;
}

static enum status read_sizes(const struct reader *r, struct model_spec *spec)
{
    const struct defaults *d = &r->family->defaults;
    double eps = d->norm_eps;
    TRY(read_size(r, "num_hidden_layers", 1, limits.model_layers, 0, &spec->layers));
    TRY(read_size(r, "hidden_size", 1, limits.model_width, 0, &spec->width));
    TRY(read_size(r, "intermediate_size", 1, limits.model_width * 8, 0, &spec->ff_width));
    TRY(read_size(r, "vocab_size", 1, limits.model_vocab, d->vocab, &spec->vocab));
    TRY(read_size(r, "max_position_embeddings", 1, INT32_MAX, d->context, &spec->context_max));
    TRY(read_size(r, "num_attention_heads", 1, limits.model_heads, d->heads, &spec->heads));
    bool all_heads = !d->kv_heads || is_null(r, "num_key_value_heads");
    TRY(read_size(r, "num_key_value_heads", 1, limits.model_heads, all_heads ? spec->heads : d->kv_heads,
                  &spec->kv_heads));
    if (spec->heads % spec->kv_heads)
        return error_set(r->err, ST_INVAL,
                         "%" PRIu32 " query heads do not divide among %" PRIu32 " KV heads (keys "
                         "num_attention_heads and num_key_value_heads)",
                         spec->heads, spec->kv_heads);
    uint32_t share = spec->width % spec->heads ? 0 : spec->width / spec->heads;
    TRY(read_size(r, "head_dim", 1, limits.model_width, d->head_size && !is_null(r, "head_dim") ? d->head_size : share,
                  &spec->head_size));
    if ((uint64_t)spec->heads * spec->head_size > limits.model_width)
        return error_set(r->err, ST_LIMIT,
                         "%" PRIu32 " heads of %" PRIu32 " values are wider than the limit of %" PRIu64
                         " (model_width)",
                         spec->heads, spec->head_size, limits.model_width);
    TRY(hf_read_number(&r->keys, "rms_norm_eps", eps == 0, 0, 0.1, &eps));
    spec->norm_eps = (float)eps;
    return ST_OK;
}

static enum status read_activation(const struct reader *r, struct model_spec *spec)
{
    static const char *const names[] = {[ACTIVATION_SILU] = "silu", [ACTIVATION_GELU_TANH] = "gelu_pytorch_tanh"};
    const char *key = r->family->activation_key, *name = names[r->family->activation], *other = NULL;
    TRY(hf_read_text(&r->keys, key, &name));
    TRY(hf_read_text(&r->keys, "hidden_act", &other));
    if (other && strcmp(other, name) != 0)
        return error_set(r->err, ST_INVAL, "keys %s and hidden_act are \"%.40s\" and \"%.40s\": one must go", key, name,
                         other);
    for (uint32_t i = 0; i < sizeof names / sizeof *names; i++) {
        if (strcmp(name, names[i]) != 0) continue;
        spec->activation = (enum activation)i;
        return ST_OK;
    }
    return error_set(r->err, ST_INVAL, "key %s is \"%.40s\": the activations silu and gelu_pytorch_tanh are supported",
                     key, name);
}

/* --- windows --- */

/* sliding_window as transformers sees it: 0 when there is none. */
static enum status read_window_size(const struct reader *r, uint32_t *window)
{
    bool used = !r->family->window_switch;
    *window = 0;
    if (r->family->windows == WINDOWS_NONE) return ST_OK;
    if (r->family->window_switch) TRY(hf_read_bool(&r->keys, "use_sliding_window", &used));
    if (used && r->family->windows == WINDOWS_PERIOD && is_null(r, "sliding_window"))
        return error_set(r->err, ST_INVAL, "key sliding_window is null: this architecture needs a number");
    if (!used || is_null(r, "sliding_window")) return ST_OK;
    *window = r->family->window_default;
    return hf_read_u32(&r->keys, "sliding_window", false, 1, INT32_MAX, window);
}

static enum status read_layer_types(const struct reader *r, const struct json *types, uint32_t window,
                                    struct model_spec *spec)
{
    if (json_kind(types) != JSON_KIND_LIST || json_length(types) != spec->layers)
        return error_set(r->err, ST_INVAL,
                         "key layer_types must be an array with one name for each of %" PRIu32 " layers", spec->layers);
    for (uint32_t l = 0; l < spec->layers; l++) {
        const char *type = json_to_text(json_at(types, l), NULL);
        bool windowed = type && strcmp(type, "sliding_attention") == 0;
        if (!windowed && (!type || strcmp(type, "full_attention") != 0))
            return error_set(r->err, ST_INVAL,
                             "key layer_types: layer %" PRIu32 " is \"%.40s\": full_attention and sliding_attention "
                             "are supported",
                             l, type ? type : json_kind_name(json_kind(json_at(types, l))));
        bool fixed = r->family->windows == WINDOWS_NONE || r->family->windows == WINDOWS_ALL;
        if ((windowed && !window) || (fixed && window && !windowed))
            return error_set(r->err, ST_INVAL,
                             "key layer_types: layer %" PRIu32 " is %s, which does not go together with sliding_window "
                             "in architecture %s",
                             l, type, r->family->class_name);
        if (windowed) spec->layer_flags[l] |= LAYER_WINDOWED;
    }
    return ST_OK;
}

static enum status mark_windows(const struct reader *r, uint32_t window, struct model_spec *spec)
{
    const struct json *types = hf_member(&r->keys, "layer_types");
    uint32_t late = 28, period = 6; /* of transformers */
    if (r->family->windows == WINDOWS_LATE)
        TRY(hf_read_u32(&r->keys, "max_window_layers", false, 0, UINT32_MAX, &late));
    if (r->family->windows == WINDOWS_PERIOD)
        TRY(hf_read_u32(&r->keys, "sliding_window_pattern", false, 1, MODEL_LAYERS_MAX, &period));
    if (types) return read_layer_types(r, types, window, spec);
    for (uint32_t l = 0; l < spec->layers; l++) {
        bool windowed = r->family->windows == WINDOWS_LATE     ? l >= late
                        : r->family->windows == WINDOWS_PERIOD ? (l + 1) % period != 0
                                                               : true;
        if (windowed && window) spec->layer_flags[l] |= LAYER_WINDOWED;
    }
    return ST_OK;
}

static enum status read_windows(const struct reader *r, struct model_spec *spec)
{
    uint32_t window;
    bool windowed = false, keep = r->family->rope.window_base > 0; /* such layers differ by more than their window */
    TRY(read_window_size(r, &window));
    TRY(mark_windows(r, window, spec));
    keep = keep || window < spec->context_max; /* else no position is ever outside */
    for (uint32_t l = 0; l < spec->layers; l++) {
        if (!keep) spec->layer_flags[l] &= (uint8_t)~LAYER_WINDOWED;
        windowed = windowed || (spec->layer_flags[l] & LAYER_WINDOWED);
    }
    spec->window = windowed ? window : 0;
    return ST_OK;
}

/* --- experts --- */

static enum status mark_dense_layers(const struct reader *r, struct model_spec *spec)
{
    const struct json *dense = hf_member(&r->keys, "mlp_only_layers");
    uint32_t step = 1;
    TRY(hf_read_u32(&r->keys, "decoder_sparse_step", false, 1, MODEL_LAYERS_MAX, &step));
    if (dense && json_kind(dense) != JSON_KIND_LIST)
        return error_set(r->err, ST_INVAL, "key mlp_only_layers must be an array of layers");
    for (uint32_t l = 0; l < spec->layers; l++)
        if ((l + 1) % step != 0) spec->layer_flags[l] &= (uint8_t)~LAYER_EXPERTS;
    for (size_t i = 0; i < json_length(dense); i++) {
        int64_t layer = json_kind(json_at(dense, i)) == JSON_KIND_INT ? json_to_int(json_at(dense, i)) : -1;
        if (layer < 0 || layer >= spec->layers)
            return error_set(r->err, ST_INVAL, "key mlp_only_layers: item %zu is none of the layers 0 to %" PRIu32, i,
                             spec->layers - 1);
        spec->layer_flags[layer] &= (uint8_t)~LAYER_EXPERTS;
    }
    return ST_OK;
}

static enum status read_experts(const struct reader *r, struct model_spec *spec)
{
    uint32_t experts = 0, local = 0, any = 0;
    bool mixed = r->family->experts == EXPERTS_MIXED;
    if (r->family->experts == EXPERTS_NONE) return ST_OK;
    TRY(hf_read_u32(&r->keys, "num_experts", false, 1, limits.model_experts, &experts));
    TRY(hf_read_u32(&r->keys, "num_local_experts", !experts, 1, limits.model_experts, &local));
    if (experts && local && experts != local)
        return error_set(r->err, ST_INVAL,
                         "keys num_experts and num_local_experts are %" PRIu32 " and %" PRIu32 ": one must go", experts,
                         local);
    spec->experts = experts ? experts : local;
    TRY(hf_read_u32(&r->keys, "num_experts_per_tok", true, 1, spec->experts, &spec->experts_used));
    spec->expert_width = spec->ff_width;
    spec->experts_normed = !mixed;
    for (uint32_t l = 0; l < spec->layers; l++) spec->layer_flags[l] |= LAYER_EXPERTS;
    if (mixed) {
        TRY(hf_read_u32(&r->keys, "moe_intermediate_size", true, 1, limits.model_width * 8, &spec->expert_width));
        TRY(hf_read_bool(&r->keys, "norm_topk_prob", &spec->experts_normed));
        TRY(mark_dense_layers(r, spec));
    }
    for (uint32_t l = 0; l < spec->layers; l++) any |= spec->layer_flags[l] & LAYER_EXPERTS;
    if (!any) spec->experts = spec->experts_used = spec->expert_width = 0;
    return ST_OK;
}

/* --- the rest --- */

static enum status read_scales(const struct reader *r, struct model_spec *spec)
{
    double scores = r->family->defaults.scores, embedding = 1, residual = 1, attention = 1, logits = 1;
    spec->embedding_scale = spec->residual_scale = spec->logit_scale = 1;
    spec->attention_scale = 1.0f / sqrtf((float)spec->head_size);
    if (r->family->gemma) {
        spec->embedding_scale = sqrtf((float)spec->width);
        TRY(hf_read_number(&r->keys, "query_pre_attn_scalar", false, 1e-3, 1e9, &scores));
        spec->attention_scale = (float)(1 / sqrt(scores));
    }
    if (!r->family->scales) return ST_OK;
    TRY(hf_read_number(&r->keys, "embedding_multiplier", false, 1e-6, 1e6, &embedding));
    TRY(hf_read_number(&r->keys, "residual_multiplier", false, 1e-6, 1e6, &residual));
    TRY(hf_read_number(&r->keys, "attention_multiplier", false, 1e-6, 1e6, &attention));
    TRY(hf_read_number(&r->keys, "logits_scaling", false, 1e-6, 1e6, &logits));
    spec->embedding_scale = (float)embedding;
    spec->residual_scale = (float)residual;
    spec->attention_scale = (float)attention;
    spec->logit_scale = (float)(1 / logits); /* the key divides */
    return ST_OK;
}

static enum status read_features(const struct reader *r, const struct hf_object *root, struct model_spec *spec)
{
    bool bias = false;
    spec->tied_head = r->family->tied;
    TRY(hf_read_bool(root, "tie_word_embeddings", &spec->tied_head)); /* both places say it */
    TRY(hf_read_bool(&r->keys, "tie_word_embeddings", &spec->tied_head));
    TRY(hf_read_bool(&r->keys, "attention_bias", &bias));
    spec->has_qkv_bias = r->family->qkv_bias || (r->family->attention_bias && bias);
    spec->has_qk_norm = r->family->qk_norm;
    spec->has_post_norms = r->family->gemma;
    snprintf(spec->arch, sizeof spec->arch, "%s", r->family->model_type);
    return ST_OK;
}

/* How weights are quantised, if they are: config.json says it at its top, or in the text model's part. */
static enum status read_quantised(const struct reader *r, const struct hf_object *root, struct quant_scheme *scheme)
{
    bool at_top = hf_member(root, "quantization_config");
    if (hf_member(root, "compression_config") || hf_member(&r->keys, "compression_config"))
        return error_set(r->err, ST_INVAL,
                         "key compression_config is of an old form: newer files call it quantization_config");
    return quant_scheme_read(at_top ? root->json : r->keys.json, scheme, r->err);
}

static enum status read_all(struct hf_config *config, struct arena *arena, struct error *err)
{
    const struct family *family = NULL;
    struct model_spec *spec = &config->spec;
    TRY(find_family(config, &family, err));
    struct hf_object root = {config->root, "", err};
    struct reader r = {family, {config->text, config->has_images ? "text_config." : "", err}, err};
    config->expert_names = family->expert_names;
    config->norms_plus_one = family->gemma;
    config->fused = family->fused;
    TRY(check_keys(&r));
    TRY(read_quantised(&r, &root, &config->quantised));
    TRY(read_sizes(&r, spec));
    TRY(read_activation(&r, spec));
    TRY(read_windows(&r, spec));
    TRY(hf_rope_read(&r.keys, &family->rope, arena, spec, &config->rope_factors));
    TRY(read_experts(&r, spec));
    TRY(read_scales(&r, spec));
    return read_features(&r, &root, spec);
}

enum status hf_config_read(const char *folder, struct arena *arena, struct hf_config *out, struct error *err)
{
    struct hf_config config = {0};
    struct error inner = {""};
    enum status status = json_file_read(folder, file_name, &config.root, err);
    if (status == ST_NOTFOUND)
        return error_set(err, status,
                         "%s is missing: this is no Hugging Face folder (of a GGUF model, give the file itself)",
                         file_name);
    if (status != ST_OK) return status;
    status = read_all(&config, arena, &inner);
    if (status != ST_OK) {
        hf_config_free(&config);
        return error_set(err, status, "%s: %s", file_name, inner.message);
    }
    *out = config;
    return ST_OK;
}

void hf_config_free(struct hf_config *config)
{
    json_release(config->root);
    config->root = NULL;
}
