/* See hf_rope.h. */
#include "runtime/model/hf_rope.h"

#include "runtime/model/rope_factors.h"

#include <inttypes.h>
#include <math.h>
#include <string.h>

enum scaling { DEFAULT = 1, LINEAR = 2, LLAMA3 = 4, YARN = 8, LONGROPE = 16 };

static const struct {
    const char *name;
    enum scaling scaling;
} scalings[] = {{"default", DEFAULT}, {"linear", LINEAR},     {"llama3", LLAMA3},
                {"yarn", YARN},       {"longrope", LONGROPE}, {"su", LONGROPE}};

/* Keys of a scaling, and for which it says something. */
static const struct {
    const char *name;
    unsigned scalings;
} known_keys[] = {
    {"rope_type", UINT32_MAX},
    {"type", UINT32_MAX},
    {"rope_theta", UINT32_MAX},
    {"partial_rotary_factor", UINT32_MAX}, /* checked apart */
    {"finetuned", UINT32_MAX},
    {"factor", LINEAR | LLAMA3 | YARN | LONGROPE},
    {"original_max_position_embeddings", UINT32_MAX}, /* without a scaling it says nothing */
    {"low_freq_factor", LLAMA3},
    {"high_freq_factor", LLAMA3},
    {"attention_factor", YARN | LONGROPE},
    {"beta_fast", YARN},
    {"beta_slow", YARN},
    {"mscale", YARN},
    {"mscale_all_dim", YARN},
    {"truncate", YARN},
    {"short_factor", LONGROPE},
    {"long_factor", LONGROPE},
};

struct reader {
    const struct hf_object *config;
    const struct hf_rope_defaults *defaults;
    struct arena *arena;
    struct model_spec *spec;
    struct error *err;
};

static enum status find_scaling(const struct reader *r, const struct hf_object *keys, enum scaling *scaling)
{
    const char *name = "default";
    TRY(hf_read_text(keys, "type", &name));
    TRY(hf_read_text(keys, "rope_type", &name));
    if (r->defaults->old_longrope_names && strcmp(name, "yarn") == 0) name = "longrope";
    for (size_t i = 0; i < sizeof scalings / sizeof *scalings; i++) {
        if (strcmp(name, scalings[i].name) != 0) continue;
        *scaling = scalings[i].scaling;
        return ST_OK;
    }
    return error_set(r->err, ST_INVAL,
                     "key %srope_type is \"%.40s\": of the RoPE scalings default, linear, llama3, yarn and longrope "
                     "are supported",
                     keys->where, name);
}

static enum status check_keys(const struct reader *r, const struct hf_object *keys, enum scaling scaling)
{
    void *iterator = NULL;
    const char *key;
    const struct json *value;
    while (json_iterate(keys->json, &iterator, &key, &value)) {
        size_t row = 0, rows = sizeof known_keys / sizeof *known_keys;
        while (row < rows && strcmp(known_keys[row].name, key) != 0) row++;
        if (json_kind(value) == JSON_KIND_NULL || (row < rows && (known_keys[row].scalings & scaling))) continue;
        return error_set(r->err, ST_INVAL, "key %s%.60s is not known for this kind of RoPE scaling: it is refused",
                         keys->where, key);
    }
    return ST_OK;
}

/* The context before it was stretched: beside the scaling or in it; where layers with windows have keys of their own,
 * only in it. */
static enum status read_original(const struct reader *r, const struct hf_object *keys, uint32_t *context)
{
    static const char key[] = "original_max_position_embeddings";
    *context = r->defaults->original_context ? r->defaults->original_context : r->spec->context_max;
    bool nested = r->defaults->window_base > 0;
    bool fixed = r->defaults->original_context || (!nested && hf_member(r->config, key));
    return hf_read_u32(fixed ? r->config : keys, key, false, 1, INT32_MAX, context);
}

static float *new_factors(const struct reader *r)
{
    float *factors = arena_alloc(r->arena, r->spec->rope_size / 2, sizeof *factors);
    if (!factors) (void)error_set(r->err, ST_NOMEM, "no memory for the factors of RoPE");
    return factors;
}

static enum status read_llama3(const struct reader *r, const struct hf_object *keys, const struct rope_spec *rope,
                               float **factors)
{
    struct rope_llama3 llama3;
    double factor = 0, low = 0, high = 0;
    TRY(read_original(r, keys, &llama3.context));
    TRY(hf_read_number(keys, "factor", true, 1, 1e6, &factor));
    TRY(hf_read_number(keys, "low_freq_factor", true, 1e-3, 1e6, &low));
    TRY(hf_read_number(keys, "high_freq_factor", true, 1e-3, 1e6, &high));
    if (!(low < high))
        return error_set(r->err, ST_INVAL, "key %slow_freq_factor is %g, it must be below high_freq_factor, %g",
                         keys->where, low, high);
    llama3.factor = (float)factor;
    llama3.low = (float)low;
    llama3.high = (float)high;
    if (!(*factors = new_factors(r))) return ST_NOMEM;
    rope_llama3_factors(*factors, r->spec->rope_size, (double)rope->base, &llama3);
    return ST_OK;
}

static enum status read_yarn(const struct reader *r, const struct hf_object *keys, struct rope_spec *rope,
                             float **factors)
{
    struct rope_yarn yarn;
    double fast = 0, slow = 0, mscale = 0, mscale_all = 0;
    bool truncate = true;
    TRY(read_original(r, keys, &yarn.context));
    double factor = r->spec->context_max / (double)yarn.context;
    TRY(hf_read_number(keys, "factor", false, 1, 1e6, &factor));
    TRY(hf_read_number(keys, "beta_fast", false, 0, 1e6, &fast));
    TRY(hf_read_number(keys, "beta_slow", false, 0, 1e6, &slow));
    TRY(hf_read_number(keys, "mscale", false, 0, 1e3, &mscale));
    TRY(hf_read_number(keys, "mscale_all_dim", false, 0, 1e3, &mscale_all));
    TRY(hf_read_bool(keys, "truncate", &truncate));
    if (!truncate)
        return error_set(r->err, ST_INVAL,
                         "key %struncate is false: YaRN with a range that is not rounded is not "
                         "supported",
                         keys->where);
    double magnitude = rope_yarn_magnitude(factor, 1);
    if (mscale > 0 && mscale_all > 0)
        magnitude = rope_yarn_magnitude(factor, mscale) / rope_yarn_magnitude(factor, mscale_all);
    TRY(hf_read_number(keys, "attention_factor", false, 1e-3, 1e3, &magnitude));
    rope->magnitude = (float)magnitude;
    if (factor <= 1) return ST_OK; /* then every pair is kept */
    yarn.factor = (float)factor;
    yarn.beta_fast = fast > 0 ? (float)fast : 32;
    yarn.beta_slow = slow > 0 ? (float)slow : 1;
    if (!(*factors = new_factors(r))) return ST_NOMEM;
    rope_yarn_factors(*factors, r->spec->rope_size, (double)rope->base, &yarn);
    return ST_OK;
}

static enum status read_list(const struct reader *r, const struct hf_object *keys, const char *key, float **factors)
{
    const struct json *list = hf_member(keys, key);
    uint32_t count = r->spec->rope_size / 2;
    if (json_kind(list) != JSON_KIND_LIST || json_length(list) != count)
        return error_set(r->err, ST_INVAL, "key %s%s must be an array of %" PRIu32 " numbers, one a pair of RoPE",
                         keys->where, key, count);
    if (!(*factors = new_factors(r))) return ST_NOMEM;
    for (uint32_t i = 0; i < count; i++) {
        double number = json_to_number(json_at(list, i));
        if (!(number >= 1e-6 && number <= 1e9))
            return error_set(r->err, ST_INVAL, "key %s%s: item %" PRIu32 " is %g, possible are 1e-6 to 1e9",
                             keys->where, key, i, number);
        (*factors)[i] = (float)number;
    }
    return ST_OK;
}

static enum status read_longrope(const struct reader *r, const struct hf_object *keys, struct rope_spec *rope,
                                 struct hf_rope_factors *factors)
{
    uint32_t original = 0;
    TRY(read_original(r, keys, &original));
    double factor = r->spec->context_max / (double)original;
    TRY(hf_read_number(keys, "factor", false, 1e-3, 1e6, &factor));
    double magnitude = factor <= 1 || original < 2 ? 1 : sqrt(1 + log(factor) / log(original));
    TRY(hf_read_number(keys, "attention_factor", false, 1e-3, 1e3, &magnitude));
    rope->magnitude = (float)magnitude;
    r->spec->rope_switch = original;
    TRY(read_list(r, keys, "short_factor", &factors->factors));
    return read_list(r, keys, "long_factor", &factors->factors_long);
}

/* rope_size: the part of a head that rotates. */
static enum status read_partial(const struct reader *r, const struct hf_object *keys)
{
    double part = 1;
    TRY(hf_read_number(r->config, "partial_rotary_factor", false, 0, 1, &part));
    TRY(hf_read_number(keys, "partial_rotary_factor", false, 0, 1, &part));
    if (part != 1 && !r->defaults->partial)
        return error_set(r->err, ST_INVAL, "key %spartial_rotary_factor is %g: this architecture rotates whole heads",
                         keys->where, part);
    r->spec->rope_size = (uint32_t)(r->spec->head_size * part);
    if (r->spec->rope_size < 2 || r->spec->rope_size % 2)
        return error_set(r->err, ST_INVAL,
                         "%" PRIu32 " values of a head's %" PRIu32 " rotate (head_dim and partial_rotary_factor): it "
                         "must be an even number from 2 up",
                         r->spec->rope_size, r->spec->head_size);
    return ST_OK;
}

static enum status read_main(const struct reader *r, const struct hf_object *keys, struct hf_rope_factors *factors)
{
    enum scaling scaling = DEFAULT;
    struct rope_spec *rope = &r->spec->rope_main;
    double base = (double)r->defaults->base, factor = 1;
    TRY(find_scaling(r, keys, &scaling));
    TRY(check_keys(r, keys, scaling));
    TRY(hf_read_number(r->config, "rope_theta", false, 1.001, 1e12, &base));
    TRY(hf_read_number(keys, "rope_theta", false, 1.001, 1e12, &base));
    TRY(read_partial(r, keys));
    *rope = (struct rope_spec){.base = (float)base, .scale = 1, .magnitude = 1};
    switch (scaling) {
    case DEFAULT: break;
    case LINEAR:
        TRY(hf_read_number(keys, "factor", true, 1, 1e6, &factor));
        rope->scale = (float)(1 / factor);
        break;
    case LLAMA3: return read_llama3(r, keys, rope, &factors->factors);
    case YARN: return read_yarn(r, keys, rope, &factors->factors);
    case LONGROPE: return read_longrope(r, keys, rope, factors);
    }
    return ST_OK;
}

static enum status read_window(const struct reader *r, const struct hf_object *keys)
{
    enum scaling scaling = DEFAULT;
    double base = (double)r->defaults->window_base;
    TRY(find_scaling(r, keys, &scaling));
    TRY(check_keys(r, keys, scaling));
    if (scaling != DEFAULT)
        return error_set(r->err, ST_INVAL, "key %srope_type: a RoPE scaling of windowed layers is not supported",
                         keys->where);
    TRY(hf_read_number(r->config, "rope_local_base_freq", false, 1.001, 1e12, &base));
    TRY(hf_read_number(keys, "rope_theta", false, 1.001, 1e12, &base));
    r->spec->rope_window = (struct rope_spec){.base = (float)base, .scale = 1, .magnitude = 1};
    r->spec->has_window_rope = true;
    return ST_OK;
}

static enum status member_object(const struct hf_object *object, const char *key, const char *where,
                                 struct hf_object *member)
{
    *member = (struct hf_object){hf_member(object, key), where, object->err};
    if (member->json && json_kind(member->json) != JSON_KIND_OBJECT)
        return error_set(object->err, ST_INVAL, "key %s%s must be an object", object->where, key);
    return ST_OK;
}

/* Of one RoPE a layer kind: rope_parameters holds an object for each, and nothing else. */
static enum status read_two(const struct reader *r, const struct hf_object *parameters, const struct hf_object *scaling,
                            struct hf_rope_factors *factors)
{
    struct hf_object full, window;
    void *iterator = NULL;
    const char *key;
    const struct json *value;
    while (json_iterate(parameters->json, &iterator, &key, &value))
        if (strcmp(key, "full_attention") != 0 && strcmp(key, "sliding_attention") != 0)
            return error_set(r->err, ST_INVAL,
                             "key rope_parameters.%.60s: this architecture has one RoPE for full_attention and one for "
                             "sliding_attention, nothing else belongs there",
                             key);
    TRY(member_object(parameters, "full_attention", "rope_parameters.full_attention.", &full));
    TRY(member_object(parameters, "sliding_attention", "rope_parameters.sliding_attention.", &window));
    if (full.json && scaling->json)
        return error_set(r->err, ST_INVAL, "keys rope_scaling and rope_parameters.full_attention: one must go");
    TRY(read_main(r, full.json ? &full : scaling, factors));
    return read_window(r, &window);
}

enum status hf_rope_read(const struct hf_object *config, const struct hf_rope_defaults *defaults, struct arena *arena,
                         struct model_spec *spec, struct hf_rope_factors *factors)
{
    struct reader r = {config, defaults, arena, spec, config->err};
    struct hf_object parameters, scaling;
    TRY(member_object(config, "rope_parameters", "rope_parameters.", &parameters));
    TRY(member_object(config, "rope_scaling", "rope_scaling.", &scaling));
    *factors = (struct hf_rope_factors){0};
    spec->rope = ROPE_HALVES;
    spec->rope_window = (struct rope_spec){.scale = 1, .magnitude = 1};
    if (defaults->window_base > 0) return read_two(&r, &parameters, &scaling, factors);
    return read_main(&r, json_length(scaling.json) ? &scaling : &parameters, factors);
}
