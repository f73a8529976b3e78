/* quantization_config: which way of coding, with which sizes. One function a method, in a table by name.
 *
 * Only what decides what a weight is worth is read; how it was found (damping, observers, calibration) is not. Lists of
 * modules that are not quantised are not needed: see quant.h. */
#include "runtime/model/quant.h"

#include "runtime/model/quant_pattern.h"

#include <inttypes.h>
#include <string.h>

static const char *text_member(const struct json *object, const char *key)
{
    return json_to_text(json_member(object, key), NULL);
}

/* An integer in least..most, or the default when the member is absent or null. */
static enum status int_member(const struct json *object, const char *key, int64_t least, int64_t most,
                              int64_t otherwise, int64_t *value, struct error *err)
{
    const struct json *member = json_member(object, key);
    *value = otherwise;
    if (json_kind(member) == JSON_KIND_NULL) return ST_OK;
    *value = json_to_int(member);
    if (json_kind(member) == JSON_KIND_INT && *value >= least && *value <= most) return ST_OK;
    return error_set(err, ST_INVAL, "quantization_config: %s must be an integer from %" PRId64 " to %" PRId64, key,
                     least, most);
}

/* The text member, if there is one, must be one of a list that ends with NULL. */
static enum status expect_text(const struct json *object, const char *key, const char *const *known, struct error *err)
{
    const struct json *member = json_member(object, key);
    const char *text = json_to_text(member, NULL);
    if (json_kind(member) == JSON_KIND_NULL) return ST_OK;
    for (; text && *known; known++)
        if (strcmp(text, *known) == 0) return ST_OK;
    return error_set(err, ST_INVAL, "quantization_config: %s \"%.64s\" is not supported", key,
                     text ? text : json_kind_name(json_kind(member)));
}

/* What would change the weights' meaning must be absent, null, false or empty. */
static enum status expect_none(const struct json *object, const char *key, struct error *err)
{
    const struct json *member = json_member(object, key);
    switch (json_kind(member)) {
    case JSON_KIND_NULL: return ST_OK;
    case JSON_KIND_BOOL:
        if (!json_to_bool(member)) return ST_OK;
        break;
    case JSON_KIND_LIST:
    case JSON_KIND_OBJECT:
        if (json_length(member) == 0) return ST_OK;
        break;
    default: break;
    }
    return error_set(err, ST_INVAL, "quantization_config: %s is not supported", key);
}

/* A group size: -1 or absent is a group for all inputs. */
static enum status group_member(const struct json *object, const char *key, struct quant_group *group,
                                struct error *err)
{
    int64_t size;
    TRY(int_member(object, key, -1, INT32_MAX, -1, &size, err));
    if (size == 0) return error_set(err, ST_INVAL, "quantization_config: %s is 0", key);
    group->block_rows = 1;
    group->block_cols = size < 0 ? UINT32_MAX : (uint32_t)size;
    return ST_OK;
}

/* [rows, columns] that share a scale; absent or null: as the scales' shape says. */
static enum status block_member(const struct json *object, const char *key, struct quant_group *group,
                                struct error *err)
{
    const struct json *list = json_member(object, key);
    if (json_kind(list) == JSON_KIND_NULL) return ST_OK;
    int64_t rows = json_to_int(json_at(list, 0)), cols = json_to_int(json_at(list, 1));
    if (json_length(list) != 2 || rows < 1 || rows > INT32_MAX || cols < 1 || cols > INT32_MAX)
        return error_set(err, ST_INVAL, "quantization_config: %s must be two positive integers", key);
    group->block_rows = (uint32_t)rows;
    group->block_cols = (uint32_t)cols;
    return ST_OK;
}

static struct quant_group *only_group(struct quant_scheme *scheme)
{
    scheme->groups_count = 1;
    return &scheme->groups[0];
}

static enum status read_awq(const struct json *config, struct quant_scheme *scheme, struct error *err)
{
    static const char *const versions[] = {"gemm", "GEMM", NULL};
    struct quant_group *group = only_group(scheme);
    int64_t bits;
    scheme->method = QUANT_AWQ;
    TRY(expect_text(config, "version", versions, err));
    TRY(expect_text(config, "format", versions, err));
    TRY(int_member(config, json_member(config, "w_bit") ? "w_bit" : "bits", 1, 16, 4, &bits, err));
    if (bits != 4)
        return error_set(err, ST_INVAL, "quantization_config: AWQ of %" PRId64 " bits, only 4 are known", bits);
    group->bits = 4;
    return group_member(config, json_member(config, "q_group_size") ? "q_group_size" : "group_size", group, err);
}

static enum status read_gptq(const struct json *config, struct quant_scheme *scheme, struct error *err)
{
    static const char *const formats[] = {"gptq", "gptq_v2", NULL}, *const words[] = {"int32", "torch.int32", NULL};
    static const char *const unsupported[] = {"is_marlin_format", "dynamic", "adapter", "rotation"};
    struct quant_group *group = only_group(scheme);
    int64_t bits;
    scheme->method = QUANT_GPTQ;
    TRY(expect_text(config, "checkpoint_format", formats, err));
    TRY(expect_text(config, "format", formats, err));
    TRY(expect_text(config, "pack_dtype", words, err));
    for (size_t i = 0; i < sizeof unsupported / sizeof *unsupported; i++) TRY(expect_none(config, unsupported[i], err));
    const char *format = text_member(config, "checkpoint_format");
    if (!format) format = text_member(config, "format");
    scheme->zeros_less_one = !format || strcmp(format, "gptq") == 0;
    scheme->has_order = json_to_bool(json_member(config, "desc_act"));
    TRY(int_member(config, "bits", 1, 16, 0, &bits, err));
    if (bits != 4 && bits != 8)
        return error_set(err, ST_INVAL, "quantization_config: GPTQ of %" PRId64 " bits, only 4 and 8 are known", bits);
    group->bits = (uint32_t)bits;
    return group_member(config, "group_size", group, err);
}

static enum status read_fp8(const struct json *config, struct quant_scheme *scheme, struct error *err)
{
    static const char *const formats[] = {"e4m3", "float8_e4m3fn", NULL}, *const experts[] = {"fp8", NULL};
    struct quant_group *group = only_group(scheme);
    scheme->method = QUANT_FP8;
    group->bits = 8;
    group->is_float = true;
    TRY(expect_text(config, "fmt", formats, err));
    TRY(expect_text(config, "expert_dtype", experts, err));
    return block_member(config, "weight_block_size", group, err);
}

static enum status read_modelopt(const struct json *config, struct quant_scheme *scheme, struct error *err)
{
    static const char *const algorithms[] = {"FP8", NULL};
    if (!json_member(config, "quant_algo"))
        return error_set(err, ST_INVAL, "quantization_config: modelopt needs quant_algo");
    TRY(expect_text(config, "quant_algo", algorithms, err));
    return read_fp8(config, scheme, err);
}

/* One of config_groups. */
static enum status read_group(const char *name, const struct json *json, struct quant_group *group, struct error *err)
{
    static const char *const types[] = {"int", "float", NULL};
    static const char *const formats[] = {"pack-quantized",  "int-quantized", "float-quantized",
                                          "naive-quantized", "dense",         NULL};
    static const char *const strategies[] = {"tensor", "channel", "group", "block", NULL};
    const struct json *weights = json_member(json, "weights");
    const char *type = text_member(weights, "type"), *strategy = text_member(weights, "strategy");
    int64_t bits;
    if (json_kind(weights) != JSON_KIND_OBJECT)
        return error_set(err, ST_INVAL, "quantization_config: config group %.64s has no weights", name);
    TRY(expect_text(json, "format", formats, err));
    TRY(expect_text(weights, "type", types, err));
    TRY(expect_text(weights, "strategy", strategies, err));
    TRY(expect_none(weights, "dynamic", err));
    TRY(int_member(weights, "num_bits", 1, 16, 8, &bits, err));
    group->is_float = type && strcmp(type, "float") == 0;
    group->bits = (uint32_t)bits;
    group->symmetric = json_kind(json_member(weights, "symmetric")) == JSON_KIND_NULL ||
                       json_to_bool(json_member(weights, "symmetric"));
    if (group->is_float ? bits != 8 || !group->symmetric : bits != 4 && bits != 8)
        return error_set(err, ST_INVAL,
                         "quantization_config: config group %.64s has weights of type %s with %" PRId64
                         " bits%s; known are int of 4 and 8 bits and float of 8 (E4M3)",
                         name, group->is_float ? "float" : "int", bits, group->symmetric ? "" : " and zero points");
    if (strategy && strcmp(strategy, "block") == 0) return block_member(weights, "block_structure", group, err);
    if (json_kind(json_member(weights, "group_size")) == JSON_KIND_NULL) return ST_OK;
    return group_member(weights, "group_size", group, err);
}

static enum status check_targets(const char *name, const struct json *targets, struct error *err)
{
    if (json_kind(targets) != JSON_KIND_LIST)
        return error_set(err, ST_INVAL, "quantization_config: config group %.64s has no list of targets", name);
    if (json_length(targets) > QUANT_TARGETS_MAX)
        return error_set(err, ST_LIMIT, "quantization_config: config group %.64s has %zu targets, at most %d are read",
                         name, json_length(targets), (int)QUANT_TARGETS_MAX);
    for (size_t i = 0; i < json_length(targets); i++) {
        const char *target = json_to_text(json_at(targets, i), NULL);
        if (!target || (strncmp(target, "re:", 3) == 0 && !quant_pattern_is_known(target + 3)))
            return error_set(err, ST_INVAL,
                             "quantization_config: config group %.64s: target \"%.128s\" uses what this version does "
                             "not know of regular expressions",
                             name, target ? target : json_kind_name(json_kind(json_at(targets, i))));
    }
    return ST_OK;
}

static enum status read_compressed_tensors(const struct json *config, struct quant_scheme *scheme, struct error *err)
{
    static const char *const formats[] = {
        "pack-quantized", "int-quantized", "float-quantized", "naive-quantized", "dense", "mixed-precision", NULL};
    static const char *const dense[] = {"dense", NULL};
    const struct json *groups = json_member(config, "config_groups"), *group;
    const char *name;
    void *iterator = NULL;
    scheme->method = QUANT_COMPRESSED_TENSORS;
    TRY(expect_text(config, "format", formats, err));
    TRY(expect_none(config, "transform_config", err));
    if (json_length(json_member(config, "sparsity_config")))
        TRY(expect_text(json_member(config, "sparsity_config"), "format", dense, err));
    if (json_kind(groups) != JSON_KIND_OBJECT || json_length(groups) == 0)
        return error_set(err, ST_INVAL, "quantization_config: config_groups is missing or empty");
    while (json_iterate(groups, &iterator, &name, &group)) {
        if (scheme->groups_count == QUANT_GROUPS_MAX)
            return error_set(err, ST_LIMIT, "quantization_config: more than %d config_groups", QUANT_GROUPS_MAX);
        struct quant_group *made = &scheme->groups[scheme->groups_count++];
        made->targets = json_member(group, "targets");
        TRY(check_targets(name, made->targets, err));
        TRY(read_group(name, group, made, err));
    }
    return ST_OK;
}

static const struct {
    const char *name;
    enum status (*read)(const struct json *config, struct quant_scheme *scheme, struct error *err);
} methods[] = {
    {"awq", read_awq},        {"gptq", read_gptq},         {"fp8", read_fp8},
    {"fbgemm_fp8", read_fp8}, {"modelopt", read_modelopt}, {"compressed-tensors", read_compressed_tensors},
};

enum status quant_scheme_read(const struct json *config, struct quant_scheme *scheme, struct error *err)
{
    const struct json *quantization = json_member(config, "quantization_config");
    const char *method = text_member(quantization, "quant_method");
    struct quant_scheme made = {.method = QUANT_NONE};
    if (json_kind(quantization) == JSON_KIND_NULL) {
        *scheme = made;
        return ST_OK;
    }
    if (json_kind(quantization) != JSON_KIND_OBJECT || !method)
        return error_set(err, ST_INVAL, "quantization_config has no quant_method");
    for (size_t i = 0; i < sizeof methods / sizeof *methods; i++) {
        if (strcmp(method, methods[i].name) != 0) continue;
        TRY(methods[i].read(quantization, &made, err));
        *scheme = made;
        return ST_OK;
    }
    return error_set(err, ST_INVAL,
                     "quantization_config: quant_method \"%.64s\" is not supported; known are awq, gptq, fp8, "
                     "fbgemm_fp8, modelopt (FP8) and compressed-tensors",
                     method);
}

/* How well a target names a module: 0 not at all, 3 by its name, 2 by a pattern, 1 by the class of a matrix. */
static unsigned target_rank(const char *target, const char *module, bool *gave_up)
{
    const char *last = strrchr(module, '.');
    bool embedding = strcmp(last ? last + 1 : module, "embed_tokens") == 0;
    if (strcmp(target, module) == 0) return 3;
    if (strncmp(target, "re:", 3) == 0) return quant_pattern_match(target + 3, module, gave_up) ? 2 : 0;
    return strcmp(target, embedding ? "Embedding" : "Linear") == 0;
}

/* compressed-tensors' match_targets: names before patterns before classes, and the first in alphabetical order. */
enum status quant_scheme_group(const struct quant_scheme *scheme, const char *module, const struct quant_group **group,
                               struct error *err)
{
    const struct quant_group *best = NULL;
    const char *best_target = NULL;
    unsigned best_rank = 0;
    bool gave_up = false;
    for (uint32_t g = 0; g < scheme->groups_count; g++) {
        const struct quant_group *candidate = &scheme->groups[g];
        if (!candidate->targets) best = candidate;
        for (size_t i = 0; !gave_up && i < json_length(candidate->targets); i++) {
            const char *target = json_to_text(json_at(candidate->targets, i), NULL);
            unsigned rank = target_rank(target, module, &gave_up);
            if (rank < best_rank || !rank || (rank == best_rank && strcmp(target, best_target) >= 0)) continue;
            best = candidate;
            best_target = target;
            best_rank = rank;
        }
    }
    if (gave_up)
        return error_set(err, ST_LIMIT, "quantization_config: a target takes too many steps to match %.128s", module);
    if (!best)
        return error_set(err, ST_INVAL,
                         "quantization_config: no config group has %.128s as a target, but its weights are quantised",
                         module);
    *group = best;
    return ST_OK;
}

const char *quant_method_name(enum quant_method method)
{
    switch (method) {
    case QUANT_NONE: return "none";
    case QUANT_AWQ: return "AWQ";
    case QUANT_GPTQ: return "GPTQ";
    case QUANT_FP8: return "FP8";
    case QUANT_COMPRESSED_TENSORS: return "compressed-tensors";
    }
    return "?";
}

bool quant_is_activation_scale(const char *name)
{
    static const char *const suffixes[] = {
        ".input_scale",      ".input_zero_point", ".output_scale", ".output_zero_point",
        ".activation_scale", ".input_scale_ub",   ".k_scale",      ".v_scale",
        ".q_scale",          ".k_zero_point",     ".v_zero_point",
    };
    size_t length = strlen(name);
    for (size_t i = 0; i < sizeof suffixes / sizeof *suffixes; i++) {
        size_t suffix = strlen(suffixes[i]);
        if (length > suffix && strcmp(name + length - suffix, suffixes[i]) == 0) return true;
    }
    return false;
}
