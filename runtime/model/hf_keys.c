/* See hf_keys.h. */
#include "runtime/model/hf_keys.h"

#include <inttypes.h>
#include <math.h>
#include <string.h>

const struct json *hf_member(const struct hf_object *object, const char *key)
{
    const struct json *value = json_member(object->json, key);
    return json_kind(value) == JSON_KIND_NULL ? NULL : value;
}

static enum status missing(const struct hf_object *object, const char *key)
{
    return error_set(object->err, ST_INVAL, "key %s%s is missing", object->where, key);
}

static enum status wrong_kind(const struct hf_object *object, const char *key, const struct json *value,
                              const char *wanted)
{
    return error_set(object->err, ST_INVAL, "key %s%s is of kind %s, it must be %s", object->where, key,
                     json_kind_name(json_kind(value)), wanted);
}

enum status hf_read_u32(const struct hf_object *object, const char *key, bool needed, uint64_t min, uint64_t max,
                        uint32_t *value)
{
    const struct json *found = hf_member(object, key);
    if (!found) return needed ? missing(object, key) : ST_OK;
    if (json_kind(found) != JSON_KIND_INT) return wrong_kind(object, key, found, "an integer");
    int64_t number = json_to_int(found);
    if (max > UINT32_MAX) max = UINT32_MAX;
    if (number < 0 || (uint64_t)number < min || (uint64_t)number > max)
        return error_set(object->err, ST_INVAL, "key %s%s is %" PRId64 ", possible are %" PRIu64 " to %" PRIu64,
                         object->where, key, number, min, max);
    *value = (uint32_t)number;
    return ST_OK;
}

enum status hf_read_number(const struct hf_object *object, const char *key, bool needed, double min, double max,
                           double *value)
{
    const struct json *found = hf_member(object, key);
    if (!found) return needed ? missing(object, key) : ST_OK;
    if (!json_has_number(found)) return wrong_kind(object, key, found, "a number");
    double number = json_to_number(found);
    if (!(number >= min && number <= max))
        return error_set(object->err, ST_INVAL, "key %s%s is %g, possible are %g to %g", object->where, key, number,
                         min, max);
    *value = number;
    return ST_OK;
}

enum status hf_read_bool(const struct hf_object *object, const char *key, bool *value)
{
    const struct json *found = hf_member(object, key);
    if (!found) return ST_OK;
    if (json_kind(found) != JSON_KIND_BOOL) return wrong_kind(object, key, found, "true or false");
    *value = json_to_bool(found);
    return ST_OK;
}

enum status hf_read_text(const struct hf_object *object, const char *key, const char **value)
{
    const struct json *found = hf_member(object, key);
    if (!found) return ST_OK;
    if (json_kind(found) != JSON_KIND_TEXT) return wrong_kind(object, key, found, "a text");
    *value = json_to_text(found, NULL);
    return ST_OK;
}

/* --- all keys --- */

enum {
    READ = -1,    /* by every family */
    NEUTRAL = -2, /* says nothing about the arithmetic of a forward pass */
    OFF = -3      /* must have the value by which its feature is off */
};

static const struct {
    const char *name;
    int rule; /* of the above, or the group of families that read it: for others it must be off */
} known_keys[] = {
    {"architectures", READ},
    {"model_type", READ},
    {"hidden_size", READ},
    {"intermediate_size", READ},
    {"num_hidden_layers", READ},
    {"num_attention_heads", READ},
    {"num_key_value_heads", READ},
    {"head_dim", READ},
    {"max_position_embeddings", READ},
    {"original_max_position_embeddings", READ},
    {"rms_norm_eps", READ},
    {"hidden_act", READ},
    {"vocab_size", READ},
    {"tie_word_embeddings", READ},
    {"rope_theta", READ},
    {"rope_scaling", READ},
    {"rope_parameters", READ},
    {"layer_types", READ},
    {"attention_bias", READ},
    {"quantization_config", READ},
    {"compression_config", READ},
    {"sliding_window", HF_KEYS_WINDOW},
    {"use_sliding_window", HF_KEYS_WINDOW_SWITCH},
    {"max_window_layers", HF_KEYS_WINDOW_LATE},
    {"sliding_window_pattern", HF_KEYS_GEMMA},
    {"_sliding_window_pattern", HF_KEYS_GEMMA}, /* always beside layer_types, which count */
    {"rope_local_base_freq", HF_KEYS_GEMMA},
    {"query_pre_attn_scalar", HF_KEYS_GEMMA},
    {"hidden_activation", HF_KEYS_GEMMA},
    {"embedding_multiplier", HF_KEYS_SCALES},
    {"residual_multiplier", HF_KEYS_SCALES},
    {"attention_multiplier", HF_KEYS_SCALES},
    {"logits_scaling", HF_KEYS_SCALES},
    {"num_experts", HF_KEYS_EXPERTS},
    {"num_local_experts", HF_KEYS_EXPERTS},
    {"num_experts_per_tok", HF_KEYS_EXPERTS},
    {"moe_intermediate_size", HF_KEYS_EXPERTS_MIXED},
    {"norm_topk_prob", HF_KEYS_EXPERTS_MIXED},
    {"mlp_only_layers", HF_KEYS_EXPERTS_MIXED},
    {"decoder_sparse_step", HF_KEYS_EXPERTS_MIXED},
    {"partial_rotary_factor", HF_KEYS_PARTIAL_ROTARY},
    {"mlp_bias", OFF},
    {"attn_logit_softcapping", OFF},
    {"final_logit_softcapping", OFF},
    {"use_bidirectional_attention", OFF},
    {"is_encoder_decoder", OFF},
    {"add_cross_attention", OFF},
    {"pruned_heads", OFF},
    /* training, tools, and how somebody else's program computes the same */
    {"attention_dropout", NEUTRAL},
    {"attention_probs_dropout_prob", NEUTRAL},
    {"embd_pdrop", NEUTRAL},
    {"resid_pdrop", NEUTRAL},
    {"output_router_logits", NEUTRAL},
    {"router_aux_loss_coef", NEUTRAL},
    {"router_jitter_noise", NEUTRAL},
    {"output_attentions", NEUTRAL},
    {"_attn_implementation", NEUTRAL},
    {"_attn_implementation_internal", NEUTRAL},
    {"_attn_implementation_autoset", NEUTRAL},
    {"attn_implementation", NEUTRAL},
    {"_flash_attn_2_enabled", NEUTRAL},
    {"use_flash_attn", NEUTRAL},
    {"use_flash_attention", NEUTRAL},
    {"experts_implementation", NEUTRAL},
    {"_experts_implementation", NEUTRAL},
};

/* Parts of names by which configurations of decoders call their arithmetic. */
static const char *const arithmetic_words[] = {
    "rope",   "rotary",   "softcap",     "soft_cap", "scal",       "multiplier", "clip",      "clamp",  "window",
    "bias",   "alibi",    "norm",        "expert",   "residual",   "attn",       "attention", "act_fn", "activation",
    "sparse", "parallel", "bidirection", "causal",   "layer_type", "logits",     "position",  "_skip",  "mup_",
};

static bool is_off(const char *key, const struct json *value)
{
    switch (json_kind(value)) {
    case JSON_KIND_NULL: return true;
    case JSON_KIND_BOOL: return !json_to_bool(value);
    case JSON_KIND_TEXT: return !*json_to_text(value, NULL);
    case JSON_KIND_LIST:
    case JSON_KIND_OBJECT: return json_length(value) == 0;
    case JSON_KIND_INT:
    case JSON_KIND_FLOAT: break;
    }
    double number = json_to_number(value);
    bool factor = strstr(key, "scal") || strstr(key, "multiplier") || strstr(key, "factor");
    return number == 0 || (factor && number == 1);
}

static bool speaks_of_arithmetic(const char *key)
{
    for (size_t i = 0; i < sizeof arithmetic_words / sizeof *arithmetic_words; i++)
        if (strstr(key, arithmetic_words[i])) return true;
    return false;
}

static enum status check_key(const struct hf_object *config, unsigned groups, const char *key, const struct json *value)
{
    size_t row = 0, rows = sizeof known_keys / sizeof *known_keys;
    while (row < rows && strcmp(known_keys[row].name, key) != 0) row++;
    if (row == rows && !speaks_of_arithmetic(key)) return ST_OK;
    int rule = row < rows ? known_keys[row].rule : OFF;
    if (rule == READ || rule == NEUTRAL || (rule > 0 && ((unsigned)rule & groups)) || is_off(key, value)) return ST_OK;
    return error_set(
        config->err, ST_INVAL,
        "key %s%.80s asks for what this version does not have in this architecture: the model would answer "
        "wrongly, it is refused",
        config->where, key);
}

enum status hf_keys_check(const struct hf_object *config, unsigned groups)
{
    void *iterator = NULL;
    const char *key;
    const struct json *value;
    while (json_iterate(config->json, &iterator, &key, &value)) TRY(check_key(config, groups, key, value));
    return ST_OK;
}
