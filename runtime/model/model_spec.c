/* Model families as rows of a table, and the one function that reads a file by such a row; see model_spec.h.
 *
 * Keys of an architecture ("llama.block_count") are known by name: those that are read, those that change nothing, and
 * those that are harmless only with a certain value. Any other key under the architecture's prefix is refused by name,
 * as is every tensor that model.c has no place for: a feature that is not built must never be left out in silence, for
 * the model would answer, only worse. */
#include "runtime/model/model_spec.h"

#include "runtime/base/limits.h"
#include "runtime/base/mem.h"
#include "runtime/model/gguf.h"
#include "runtime/model/rope_factors.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

enum presence { NEVER, OPTIONAL, ALWAYS };

struct family {
    const char *arch; /* general.architecture, and the prefix of its keys */
    enum rope_kind rope;
    enum activation activation;
    float rope_base;        /* when the file does not say */
    enum presence qkv_bias; /* OPTIONAL: when the first layer has one */
    enum presence qk_norm;
    enum presence experts; /* OPTIONAL: when expert_count is above 0 */
    bool experts_normed;   /* weights of the used experts sum to 1 */
    bool scales;           /* embedding_scale, residual_scale and logit_scale are read, else they must be 1 */
    bool post_norms;
    bool embedding_sqrt;      /* embeddings times sqrt(E) */
    uint32_t window_period;   /* each so many-th layer sees all, the others a window; 0: every layer has the window */
    float window_rope_base;   /* of windowed layers; 0: as the others */
    uint32_t layers_by_width; /* with so many layers scores are scaled by 1/sqrt(E / H), not 1/sqrt(D); 0: never */
};

static const struct family families[] = {
    /* Llama 1-3, Mistral, Mixtral, SmolLM2, TinyLlama ...: one GGUF architecture */
    {.arch = "llama",
     .rope = ROPE_INTERLEAVED,
     .rope_base = 10000,
     .qkv_bias = OPTIONAL,
     .experts = OPTIONAL,
     .experts_normed = true},
    {.arch = "qwen2", .rope = ROPE_HALVES, .rope_base = 10000, .qkv_bias = ALWAYS},
    {.arch = "qwen3", .rope = ROPE_HALVES, .rope_base = 10000, .qkv_bias = OPTIONAL, .qk_norm = ALWAYS},
    {.arch = "qwen3moe",
     .rope = ROPE_HALVES,
     .rope_base = 10000,
     .qkv_bias = OPTIONAL,
     .qk_norm = ALWAYS,
     .experts = ALWAYS,
     .experts_normed = true},
    /* 270M to 27B; the last scales scores in its own way and can be told by its layers alone */
    {.arch = "gemma3",
     .rope = ROPE_HALVES,
     .activation = ACTIVATION_GELU_TANH,
     .rope_base = 1000000,
     .qk_norm = ALWAYS,
     .post_norms = true,
     .embedding_sqrt = true,
     .window_period = 6,
     .window_rope_base = 10000,
     .layers_by_width = 62},
    {.arch = "phi3", .rope = ROPE_HALVES, .rope_base = 10000},
    {.arch = "granite", .rope = ROPE_INTERLEAVED, .rope_base = 10000, .scales = true},
};

/* What a key under the architecture's prefix may be. */
enum key_rule {
    KEY_READ,    /* model_spec_read uses it */
    KEY_NEUTRAL, /* says nothing about the arithmetic */
    KEY_ZERO,    /* a number that must be 0: the feature is off */
    KEY_ONE,     /* a number that must be 1 (or 0, unset) */
    KEY_SCALE,   /* the same unless the family reads it */
    KEY_EXPERTS, /* a number that must be 0 unless the family has experts */
    KEY_TRUE     /* a bool that must be true */
};

static const struct {
    const char *name; /* after the prefix */
    enum key_rule rule;
    const char *feature; /* what it asks for, in the message */
} known_keys[] = {
    {"block_count", KEY_READ, NULL},
    {"context_length", KEY_READ, NULL},
    {"embedding_length", KEY_READ, NULL},
    {"feed_forward_length", KEY_READ, NULL},
    {"vocab_size", KEY_READ, NULL},
    {"attention.head_count", KEY_READ, NULL},
    {"attention.head_count_kv", KEY_READ, NULL},
    {"attention.key_length", KEY_READ, NULL},
    {"attention.value_length", KEY_READ, NULL},
    {"attention.layer_norm_rms_epsilon", KEY_READ, NULL},
    {"attention.scale", KEY_READ, NULL},
    {"attention.sliding_window", KEY_READ, NULL},
    {"rope.dimension_count", KEY_READ, NULL},
    {"rope.freq_base", KEY_READ, NULL},
    {"rope.scale_linear", KEY_READ, NULL},
    {"rope.scaling.type", KEY_READ, NULL},
    {"rope.scaling.factor", KEY_READ, NULL},
    {"attention.sliding_window_pattern", KEY_READ, NULL},
    {"rope.freq_base_swa", KEY_READ, NULL},
    {"rope.scaling.original_context_length", KEY_READ, NULL},
    {"rope.scaling.attn_factor", KEY_READ, NULL},
    {"rope.scaling.yarn_beta_fast", KEY_READ, NULL},
    {"rope.scaling.yarn_beta_slow", KEY_READ, NULL},
    {"rope.scaling.yarn_ext_factor", KEY_ONE, "a mixture of YaRN and plain frequencies"},
    {"rope.scaling.yarn_log_multiplier", KEY_ZERO, "a YaRN magnitude of its own"},
    {"rope.scaling.finetuned", KEY_NEUTRAL, NULL},
    {"tensor_data_layout", KEY_NEUTRAL, NULL},
    {"attention.causal", KEY_TRUE, "attention that is not causal"},
    {"attention.clamp_kqv", KEY_ZERO, "clamped Q, K and V"},
    {"attention.max_alibi_bias", KEY_ZERO, "ALiBi positions"},
    {"attn_logit_softcapping", KEY_ZERO, "soft-capped attention"},
    {"final_logit_softcapping", KEY_ZERO, "soft-capped logits"},
    {"logit_scale", KEY_SCALE, "scaled logits"},
    {"embedding_scale", KEY_SCALE, "scaled embeddings"},
    {"residual_scale", KEY_SCALE, "scaled residuals"},
    {"expert_count", KEY_EXPERTS, "a mixture of experts"},
    {"expert_used_count", KEY_EXPERTS, "a mixture of experts"},
    {"expert_feed_forward_length", KEY_EXPERTS, "a mixture of experts"},
    {"expert_weights_scale", KEY_ONE, "scaled weights of experts"},
    {"expert_group_count", KEY_ZERO, "groups of experts"},
    {"leading_dense_block_count", KEY_ZERO, "dense layers before the experts"},
    {"interleave_moe_layer_step", KEY_ONE, "layers with and without experts by turns"},
    {"expert_shared_count", KEY_ZERO, "shared experts"},
    {"pooling_type", KEY_ZERO, "pooling (an embedding model)"},
    {"nextn_predict_layers", KEY_ZERO, "layers that predict further tokens"},
    {"use_parallel_residual", KEY_ZERO, "parallel residuals"},
};

struct reader {
    const struct gguf *file;
    const struct family *family;
    const char *arch;
    struct error *err;
};

static void full_name(const struct reader *r, const char *suffix, char name[128])
{
    snprintf(name, 128, "%s.%s", r->arch, suffix);
}

/* A number in [min, max]; absent: `fallback` unless that is outside the range too, then ST_INVAL. */
static enum status read_u32(const struct reader *r, const char *suffix, uint32_t min, uint64_t max, uint32_t fallback,
                            uint32_t *value)
{
    char name[128];
    uint32_t found = fallback;
    full_name(r, suffix, name);
    enum status status = gguf_get_u32(r->file, name, &found, r->err);
    if (status == ST_NOTFOUND) {
        if (fallback < min || fallback > max) return ST_INVAL; /* with gguf's message: the key is missing */
    } else if (status != ST_OK) {
        return status;
    } else if (found < min) {
        return error_set(r->err, ST_INVAL, "key %s is %" PRIu32 ", it must be at least %" PRIu32, name, found, min);
    } else if (found > max) {
        return error_set(r->err, ST_LIMIT, "key %s is %" PRIu32 ", more than the limit of %" PRIu64, name, found, max);
    }
    *value = found;
    return ST_OK;
}

/* A float above 0 and at most max; absent: `fallback`, or ST_INVAL when that is not above 0. */
static enum status read_f32(const struct reader *r, const char *suffix, float max, float fallback, float *value)
{
    char name[128];
    float found = fallback;
    full_name(r, suffix, name);
    enum status status = gguf_get_f32(r->file, name, &found, r->err);
    if (status == ST_NOTFOUND) {
        if (!(fallback > 0)) return ST_INVAL;
    } else if (status != ST_OK) {
        return status;
    } else if (!(found > 0) || found > max) {
        return error_set(r->err, ST_INVAL, "key %s is %g, it must be above 0 and at most %g", name, (double)found,
                         (double)max);
    }
    *value = found;
    return ST_OK;
}

static enum status refuse_feature(const char *key, size_t length, const char *feature, struct error *err)
{
    return error_set(err, ST_INVAL, "key %.*s asks for %s, which is not supported", length > 100 ? 100 : (int)length,
                     key, feature);
}

/* A key whose value decides whether it matters. Numbers may be of any type: 0 is 0. */
static enum status check_value(const struct reader *r, const char *name, size_t length, enum key_rule rule,
                               const char *feature)
{
    char terminated[128];
    struct error ignored;
    float number = NAN;
    uint32_t integer;
    bool truth;
    snprintf(terminated, sizeof terminated, "%.*s", (int)length, name);
    if (gguf_get_u32(r->file, terminated, &integer, &ignored) == ST_OK)
        number = (float)integer;
    else if (gguf_get_bool(r->file, terminated, &truth, &ignored) == ST_OK)
        number = truth ? 1.0f : 0.0f;
    else if (gguf_get_f32(r->file, terminated, &number, &ignored) != ST_OK)
        return refuse_feature(name, length, feature, r->err);
    bool harmless = rule == KEY_ZERO || rule == KEY_EXPERTS ? number == 0.0f
                    : rule == KEY_ONE || rule == KEY_SCALE  ? number == 1.0f || number == 0.0f
                                                            : number == 1.0f;
    return harmless ? ST_OK : refuse_feature(name, length, feature, r->err);
}

static enum status check_keys(const struct reader *r)
{
    size_t prefix = strlen(r->arch) + 1;
    for (size_t i = 0; i < gguf_keys(r->file); i++) {
        const struct gguf_key *key = gguf_key_at(r->file, i);
        if (key->name_length <= prefix || memcmp(key->name, r->arch, prefix - 1) != 0 || key->name[prefix - 1] != '.')
            continue;
        const char *suffix = key->name + prefix;
        size_t length = key->name_length - prefix, row = 0, rows = sizeof known_keys / sizeof *known_keys;
        while (row < rows &&
               (strlen(known_keys[row].name) != length || memcmp(known_keys[row].name, suffix, length) != 0))
            row++;
        if (row == rows)
            return refuse_feature(key->name, key->name_length, "something this version does not know", r->err);
        enum key_rule rule = known_keys[row].rule;
        bool read = rule == KEY_READ || rule == KEY_NEUTRAL || (rule == KEY_SCALE && r->family->scales) ||
                    (rule == KEY_EXPERTS && r->family->experts != NEVER);
        if (!read) TRY(check_value(r, key->name, key->name_length, known_keys[row].rule, known_keys[row].feature));
    }
    return ST_OK;
}

/* general.*: what kind of file this is. */
static enum status check_general(const struct gguf *file, struct error *err)
{
    struct vocab_string type;
    enum status status = gguf_get_text(file, "general.type", &type, err);
    if (status == ST_OK && (type.length != 5 || memcmp(type.text, "model", 5) != 0))
        return error_set(err, ST_INVAL, "key general.type is %.*s: the file holds no model that can be served alone",
                         type.length > 60 ? 60 : (int)type.length, type.text);
    if (status != ST_OK && status != ST_NOTFOUND) return status;
    uint32_t parts = 0, version = 2;
    status = gguf_get_u32(file, "split.count", &parts, err);
    if (status == ST_OK && parts > 1)
        return error_set(err, ST_INVAL,
                         "key split.count is %" PRIu32 ": the model is split over files, merge them into one", parts);
    if (status != ST_OK && status != ST_NOTFOUND) return status;
    status = gguf_get_u32(file, "general.quantization_version", &version, err);
    if (status == ST_OK && version != 2)
        return error_set(err, ST_INVAL,
                         "key general.quantization_version is %" PRIu32 ", only 2 is supported: convert the file",
                         version);
    return status == ST_NOTFOUND ? ST_OK : status;
}

static enum status find_family(const struct gguf *file, const struct family **family, struct error *err)
{
    struct vocab_string arch;
    char known[128];
    int used = 0;
    enum status status = gguf_get_text(file, "general.architecture", &arch, err);
    if (status != ST_OK) return ST_INVAL;
    for (size_t i = 0; i < sizeof families / sizeof *families; i++) {
        if (strlen(families[i].arch) == arch.length && memcmp(families[i].arch, arch.text, arch.length) == 0) {
            *family = &families[i];
            return ST_OK;
        }
        used += snprintf(known + used, sizeof known - (size_t)used, "%s%s", used ? ", " : "", families[i].arch);
    }
    return error_set(err, ST_INVAL, "architecture \"%.*s\" (key general.architecture) is not supported, known are: %s",
                     arch.length > 60 ? 60 : (int)arch.length, arch.text, known);
}

static enum status read_sizes(const struct reader *r, struct model_spec *spec)
{
    uint32_t value_size;
    TRY(read_u32(r, "block_count", 1, limits.model_layers, 0, &spec->layers));
    TRY(read_u32(r, "embedding_length", 1, limits.model_width, 0, &spec->width));
    TRY(read_u32(r, "feed_forward_length", 1, limits.model_width * 8, 0, &spec->ff_width));
    TRY(read_u32(r, "context_length", 1, INT32_MAX, 0, &spec->context_max));
    TRY(read_u32(r, "attention.head_count", 1, limits.model_heads, 0, &spec->heads));
    TRY(read_u32(r, "attention.head_count_kv", 1, limits.model_heads, spec->heads, &spec->kv_heads));
    if (spec->heads % spec->kv_heads)
        return error_set(r->err, ST_INVAL,
                         "%" PRIu32 " query heads do not divide among %" PRIu32 " KV heads "
                         "(keys %s.attention.head_count and head_count_kv)",
                         spec->heads, spec->kv_heads, r->arch);
    uint32_t fallback = spec->width % spec->heads ? 0 : spec->width / spec->heads;
    TRY(read_u32(r, "attention.key_length", 1, limits.model_width, fallback, &spec->head_size));
    TRY(read_u32(r, "attention.value_length", 1, limits.model_width, spec->head_size, &value_size));
    if (value_size != spec->head_size)
        return error_set(r->err, ST_INVAL,
                         "values of %" PRIu32 " and keys of %" PRIu32 " per head (keys %s.attention."
                         "value_length and key_length): different sizes are not supported",
                         value_size, spec->head_size, r->arch);
    if ((uint64_t)spec->heads * spec->head_size > limits.model_width)
        return error_set(r->err, ST_LIMIT,
                         "%" PRIu32 " heads of %" PRIu32 " values are wider than the limit of %" PRIu64
                         " (model_width)",
                         spec->heads, spec->head_size, limits.model_width);
    return ST_OK;
}

/* Which layers see a window, and of how many positions. The pattern may be a period or a list of truths. */
static enum status read_window(const struct reader *r, struct model_spec *spec)
{
    char name[128];
    const struct gguf_key *pattern = NULL;
    uint32_t window, period = r->family->window_period;
    TRY(read_u32(r, "attention.sliding_window", 0, UINT32_MAX, 0, &window));
    full_name(r, "attention.sliding_window_pattern", name);
    const struct gguf_key *key = gguf_find_key(r->file, name);
    if (key && key->type == GGUF_ARRAY) {
        TRY(gguf_get_array(r->file, name, GGUF_BOOL, &pattern, r->err));
        if (pattern->count != spec->layers)
            return error_set(r->err, ST_INVAL, "key %s has %" PRIu64 " items for %" PRIu32 " layers", name,
                             pattern->count, spec->layers);
    } else {
        TRY(read_u32(r, "attention.sliding_window_pattern", 0, MODEL_LAYERS_MAX, period, &period));
    }
    bool neutral = window >= spec->context_max && !(r->family->window_rope_base > 0); /* nothing is ever outside */
    if (!window || neutral) return ST_OK;
    spec->window = window;
    for (uint32_t l = 0; l < spec->layers; l++) {
        bool windowed = pattern ? pattern->value[l] != 0 : !period || (l + 1) % period != 0;
        if (windowed) spec->layer_flags[l] |= LAYER_WINDOWED;
    }
    return ST_OK;
}

static bool is_text(struct vocab_string text, const char *word)
{
    return text.length == strlen(word) && memcmp(text.text, word, text.length) == 0;
}

/* The scaling of positions: none, linear, YaRN, or factors that lie in the file (Llama 3's, LongRoPE's). */
static enum status read_rope_scaling(const struct reader *r, struct model_spec *spec, struct rope_yarn *yarn)
{
    char name[128];
    struct vocab_string type = {"none", 4};
    float factor = 1, legacy = 1, magnitude;
    TRY(read_f32(r, "rope.scaling.factor", 1e6f, 1, &factor));
    TRY(read_f32(r, "rope.scale_linear", 1e6f, 1, &legacy));
    TRY(read_u32(r, "rope.scaling.original_context_length", 1, UINT32_MAX, spec->context_max, &yarn->context));
    TRY(read_f32(r, "rope.scaling.yarn_beta_fast", 1e6f, 32, &yarn->beta_fast));
    TRY(read_f32(r, "rope.scaling.yarn_beta_slow", 1e6f, 1, &yarn->beta_slow));
    full_name(r, "rope.scaling.type", name);
    enum status status = gguf_get_text(r->file, name, &type, r->err);
    if (status != ST_OK && status != ST_NOTFOUND) return status;
    spec->rope_main.magnitude = 1;
    if (is_text(type, "linear")) {
        spec->rope_main.scale = 1.0f / factor;
    } else if (is_text(type, "yarn")) {
        if (!(factor > 1))
            return error_set(r->err, ST_INVAL, "key %s.rope.scaling.factor is %g, YaRN needs more than 1", r->arch,
                             (double)factor);
        spec->rope_main.scale = 1;
        spec->rope_main.magnitude = (float)rope_yarn_magnitude((double)factor, 1);
        yarn->factor = factor;
    } else if (is_text(type, "none") || is_text(type, "longrope")) {
        spec->rope_main.scale = 1.0f / legacy;
    } else {
        return error_set(r->err, ST_INVAL,
                         "key %s is \"%.*s\": of the RoPE scalings none, linear, yarn, longrope and Llama 3's factors "
                         "are supported",
                         name, type.length > 40 ? 40 : (int)type.length, type.text);
    }
    TRY(read_f32(r, "rope.scaling.attn_factor", 1e3f, 1, &magnitude));
    spec->rope_main.magnitude *= magnitude;
    bool has_long = gguf_find_tensor(r->file, "rope_factors_long.weight") != NULL;
    bool has_short = gguf_find_tensor(r->file, "rope_factors_short.weight") != NULL;
    if (has_long != has_short || (is_text(type, "longrope") && !has_long))
        return error_set(r->err, ST_INVAL,
                         "LongRoPE needs the tensors rope_factors_short.weight and "
                         "rope_factors_long.weight: convert the file again");
    if (has_long) spec->rope_switch = yarn->context;
    return ST_OK;
}

static enum status read_rope(const struct reader *r, struct model_spec *spec, struct rope_yarn *yarn)
{
    spec->rope = r->family->rope;
    TRY(read_u32(r, "rope.dimension_count", 2, UINT32_MAX, spec->head_size, &spec->rope_size));
    if (spec->rope_size > spec->head_size || spec->rope_size % 2)
        return error_set(r->err, ST_INVAL,
                         "key %s.rope.dimension_count is %" PRIu32 ", it must be even and at most the head's "
                         "%" PRIu32,
                         r->arch, spec->rope_size, spec->head_size);
    TRY(read_f32(r, "rope.freq_base", 1e12f, r->family->rope_base, &spec->rope_main.base));
    TRY(read_rope_scaling(r, spec, yarn));
    float window_base = r->family->window_rope_base;
    spec->has_window_rope = spec->window && window_base > 0;
    spec->rope_window = (struct rope_spec){.scale = 1, .magnitude = 1};
    return read_f32(r, "rope.freq_base_swa", 1e12f, window_base > 0 ? window_base : spec->rope_main.base,
                    &spec->rope_window.base);
}

static enum status read_experts(const struct reader *r, struct model_spec *spec)
{
    uint32_t experts = 0;
    if (r->family->experts == NEVER) return ST_OK;
    TRY(read_u32(r, "expert_count", r->family->experts == ALWAYS, limits.model_experts, 0, &experts));
    if (!experts) return ST_OK;
    spec->experts = experts;
    spec->experts_normed = r->family->experts_normed;
    TRY(read_u32(r, "expert_used_count", 1, experts, 0, &spec->experts_used));
    TRY(read_u32(r, "expert_feed_forward_length", 1, limits.model_width * 8, spec->ff_width, &spec->expert_width));
    for (uint32_t l = 0; l < spec->layers; l++) spec->layer_flags[l] |= LAYER_EXPERTS;
    return ST_OK;
}

static enum status read_scales(const struct reader *r, struct model_spec *spec)
{
    float logit_scale = 1, scores = (float)spec->head_size;
    spec->embedding_scale = r->family->embedding_sqrt ? sqrtf((float)spec->width) : 1;
    spec->residual_scale = 1;
    if (r->family->scales) {
        TRY(read_f32(r, "embedding_scale", 1e6f, 1, &spec->embedding_scale));
        TRY(read_f32(r, "residual_scale", 1e6f, 1, &spec->residual_scale));
        TRY(read_f32(r, "logit_scale", 1e6f, 1, &logit_scale));
    }
    spec->logit_scale = 1 / logit_scale; /* the key divides */
    if (r->family->layers_by_width && spec->layers == r->family->layers_by_width)
        scores = (float)spec->width / (float)spec->heads;
    return read_f32(r, "attention.scale", 1e3f, 1.0f / sqrtf(scores), &spec->attention_scale);
}

static enum status read_features(const struct reader *r, struct model_spec *spec)
{
    const struct family *family = r->family;
    const struct gguf_key *tokens = NULL;
    uint32_t vocab;
    TRY(read_f32(r, "attention.layer_norm_rms_epsilon", 0.1f, 0, &spec->norm_eps));
    if (gguf_get_array(r->file, "tokenizer.ggml.tokens", GGUF_TEXT, &tokens, r->err) != ST_OK) return ST_INVAL;
    if (tokens->count < 1 || tokens->count > limits.model_vocab)
        return error_set(r->err, tokens->count ? ST_LIMIT : ST_INVAL,
                         "key tokenizer.ggml.tokens holds %" PRIu64 " tokens, possible are 1 to %" PRIu64
                         " (model_vocab)",
                         tokens->count, limits.model_vocab);
    spec->vocab = (uint32_t)tokens->count;
    TRY(read_u32(r, "vocab_size", 0, UINT32_MAX, spec->vocab, &vocab));
    if (vocab != spec->vocab)
        return error_set(r->err, ST_INVAL, "key %s.vocab_size is %" PRIu32 ", but tokenizer.ggml.tokens holds %" PRIu32,
                         r->arch, vocab, spec->vocab);
    spec->activation = family->activation;
    spec->tied_head = !gguf_find_tensor(r->file, "output.weight");
    bool bias_found = gguf_find_tensor(r->file, "blk.0.attn_q.bias") != NULL;
    spec->has_qkv_bias = family->qkv_bias == ALWAYS || (family->qkv_bias == OPTIONAL && bias_found);
    spec->has_qk_norm = family->qk_norm == ALWAYS;
    spec->has_post_norms = family->post_norms;
    return ST_OK;
}

void model_spec_set_name(struct model_spec *spec, const char *text, size_t length)
{
    size_t kept = length < sizeof spec->name ? length : sizeof spec->name - 1;
    while (kept < length && kept && ((unsigned char)text[kept] & 0xc0) == 0x80) kept--;
    for (size_t i = 0; i < kept; i++) {
        unsigned char c = (unsigned char)text[i];
        spec->name[i] = c < 0x20 || c == 0x7f ? '?' : (char)c;
    }
    spec->name[kept] = 0;
}

enum status model_spec_check(const struct model_spec *s, struct error *err)
{
    bool sound = s->layers && s->width && s->heads && s->kv_heads && s->head_size && s->ff_width && s->vocab &&
                 s->heads % s->kv_heads == 0 && s->rope_size <= s->head_size && s->rope_size % 2 == 0 &&
                 s->experts_used <= s->experts && (!s->experts || (s->experts_used && s->expert_width));
    if (!sound) return error_set(err, ST_INVAL, "the model's dimensions make no transformer (%s)", s->arch);
    return ST_OK;
}

enum status model_spec_read(const struct gguf *file, struct model_spec *out, struct rope_yarn *yarn, struct error *err)
{
    const struct family *family = NULL;
    struct model_spec spec = {0};
    struct vocab_string name;
    struct error ignored;
    TRY(check_general(file, err));
    TRY(find_family(file, &family, err));
    struct reader r = {file, family, family->arch, err};
    *yarn = (struct rope_yarn){0};
    snprintf(spec.arch, sizeof spec.arch, "%s", family->arch);
    if (gguf_get_text(file, "general.name", &name, &ignored) == ST_OK)
        model_spec_set_name(&spec, name.text, name.length);
    TRY(check_keys(&r));
    TRY(read_sizes(&r, &spec));
    TRY(read_window(&r, &spec));
    TRY(read_rope(&r, &spec, yarn));
    TRY(read_experts(&r, &spec));
    TRY(read_scales(&r, &spec));
    TRY(read_features(&r, &spec));
    for (size_t i = 0; i < gguf_tensors(file); i++) {
        const struct gguf_tensor *tensor = gguf_tensor_at(file, i);
        uint64_t values = 1; /* products fit: the reader checked them, and all lie in one file */
        for (uint32_t d = 0; d < tensor->dims_count; d++) values *= tensor->dims[d];
        spec.parameters += values;
    }
    *out = spec;
    return ST_OK;
}
