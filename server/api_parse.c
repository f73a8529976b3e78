/* From a body to a checked call: every parameter that is accepted ends in call->base, its sampling_params or a flag
 * that rendering reads. Ranges are OpenAI's where it has them, else vLLM's; where both leave one open, ours keeps
 * arithmetic finite (repetition_penalty). Nothing here looks at tokens: that is api_prepare.c, on a pool thread. */
#include "server/batch/batch_record.h"
#include "server/power/plan.h"
#include "server/api_call.h"

#include "runtime/base/hash.h"
#include "runtime/base/limits.h"
#include "runtime/base/mem.h"
#include "runtime/base/random.h"

#include <float.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char invalid[] = "invalid_request_error";

bool api_read_object(const char *body, size_t length, struct json **root, struct api_error *error)
{
    struct error err = {{0}};
    struct json *value;
    enum status status = json_read(body, length, &value, &err);
    if (status == ST_NOMEM) return refuse_memory(error);
    if (status != ST_OK) {
        api_error_set(error, 400, invalid, NULL, NULL, "We could not parse the JSON body of your request: %s.",
                      err.message);
        return false;
    }
    if (json_kind(value) != JSON_KIND_OBJECT) {
        api_error_set(error, 400, invalid, NULL, NULL,
                      "The body of your request must be a JSON object, but is of type %s.",
                      json_kind_name(json_kind(value)));
        json_release(value);
        return false;
    }
    *root = value;
    return true;
}

bool api_refuse_context(const struct api_model *model, enum api_kind kind, uint64_t prompt, uint64_t completion,
                        struct api_error *error)
{
    const char *what = kind == API_CHAT ? "messages" : "prompt";
    if (completion)
        api_error_set(error, 400, invalid, "context_length_exceeded", what,
                      "This model's maximum context length is %" PRIu32 " tokens. However, you requested %" PRIu64
                      " tokens (%" PRIu64 " in the %s, %" PRIu64 " in the completion). Please reduce the length of the "
                      "%s or completion.",
                      model->context_max, prompt + completion, prompt, what, completion, what);
    else
        api_error_set(error, 400, invalid, "context_length_exceeded", what,
                      "This model's maximum context length is %" PRIu32 " tokens. However, your %s resulted in %" PRIu64
                      " tokens, which leaves no room for the completion. Please reduce the length of the %s.",
                      model->context_max, what, prompt, what);
    return false;
}

bool api_refuse_work(const char *param, struct api_error *error)
{
    api_error_set(error, 400, invalid, "invalid_value", param,
                  "Invalid '%s': this model's tokenizer would take too many steps for this text.", param);
    return false;
}

static bool read_sampling(struct api_call *call, const struct fields *fields)
{
    struct sampling_params *params = &call->base.params;
    const struct sampling_defaults *defaults = &call->model->defaults;
    double temperature = defaults->temperature, top_p = defaults->top_p, min_p = defaults->min_p;
    double repetition = defaults->repetition_penalty, frequency = 0, presence = 0;
    int64_t top_k = defaults->top_k;
    if (!field_number(fields, "temperature", 0, 2, &temperature)) return false;
    if (!field_number(fields, "top_p", 0, 1, &top_p)) return false;
    if (!field_number(fields, "min_p", 0, 1, &min_p)) return false;
    if (!field_int(fields, "top_k", -1, INT32_MAX, &top_k)) return false;
    if (!field_number(fields, "repetition_penalty", SAMPLING_REPETITION_MIN, SAMPLING_REPETITION_MAX, &repetition))
        return false;
    if (!field_number(fields, "frequency_penalty", -2, 2, &frequency)) return false;
    if (!field_number(fields, "presence_penalty", -2, 2, &presence)) return false;
    params->temperature = (float)temperature;
    /* 0 is OpenAI's to allow: the smallest nucleus, which is the most likely token. */
    params->top_p = top_p < (double)FLT_MIN ? FLT_MIN : (float)top_p;
    params->min_p = (float)min_p;
    params->top_k = top_k < 1 ? 0 : (uint32_t)top_k;
    params->repetition_penalty = (float)repetition;
    params->frequency_penalty = (float)frequency;
    params->presence_penalty = (float)presence;
    return true;
}

/* A key of logit_bias: the decimal form of an id without leading zeros, so that no id has two entries. */
static bool bias_key(const char *key, uint32_t ids_count, uint32_t *id)
{
    uint64_t value = 0;
    size_t length = strlen(key);
    if (!length || length > 10 || (length > 1 && key[0] == '0')) return false;
    for (size_t i = 0; i < length; i++) {
        if (key[i] < '0' || key[i] > '9') return false;
        value = value * 10 + (uint64_t)(key[i] - '0');
    }
    *id = (uint32_t)value;
    return value < ids_count;
}

static bool read_logit_bias(struct api_call *call, const struct fields *fields)
{
    const struct json *map = NULL;
    if (!field_object(fields, "logit_bias", &map)) return false;
    size_t count = json_length(map);
    if (!count) return true;
    if (count > limits.api_logit_bias)
        return refuse_too_long(fields->error, "logit_bias", "object", limits.api_logit_bias, count);
    struct logit_bias *bias = arena_alloc(&call->arena, count, sizeof *bias);
    if (!bias) return refuse_memory(fields->error);
    uint32_t ids_count = tokenizer_count(call->model->tokenizer);
    void *iterator = NULL;
    const char *key;
    const struct json *value;
    for (size_t i = 0; json_iterate(map, &iterator, &key, &value); i++) {
        double number = 0;
        struct fields one = {map, fields->error};
        if (!bias_key(key, ids_count, &bias[i].id)) {
            api_error_set(fields->error, 400, invalid, "invalid_value", "logit_bias",
                          "Invalid key in 'logit_bias': '%.40s' is not a token id below %" PRIu32 ".", key, ids_count);
            return false;
        }
        if (!json_has_number(value)) return refuse_type(fields->error, "logit_bias", "numbers as values", value);
        if (!field_number(&one, key, -100, 100, &number)) {
            snprintf(fields->error->param, sizeof fields->error->param, "logit_bias");
            return false;
        }
        bias[i].bias = (float)number;
    }
    call->base.params.bias = bias;
    call->base.params.bias_count = (uint32_t)count;
    return true;
}

static int compare_ids(const void *a, const void *b)
{
    uint32_t x, y;
    memcpy(&x, a, sizeof x);
    memcpy(&y, b, sizeof y);
    return (x > y) - (x < y);
}

/* A list of ids into the arena, sorted, each once. */
static bool read_ids(struct api_call *call, const struct fields *fields, const char *key, uint64_t count_max,
                     const uint32_t **out, uint32_t *out_count)
{
    const struct json *list = field_get(fields, key);
    size_t count = json_length(list);
    if (!list) return true;
    if (count > count_max) return refuse_too_long(fields->error, key, "array", count_max, count);
    uint32_t *ids = arena_alloc(&call->arena, count ? count : 1, sizeof *ids);
    if (!ids) return refuse_memory(fields->error);
    if (!value_ids(list, key, count_max, tokenizer_count(call->model->tokenizer), fields->error, ids)) return false;
    if (count) qsort(ids, count, sizeof *ids, compare_ids);
    uint32_t kept = 0;
    for (size_t i = 0; i < count; i++)
        if (!kept || ids[kept - 1] != ids[i]) ids[kept++] = ids[i];
    *out = ids;
    *out_count = kept;
    return true;
}

static bool add_stop(struct api_call *call, const struct json *value, const char *param, struct stop_string *stop,
                     struct api_error *error)
{
    size_t length;
    const char *text = json_to_text(value, &length);
    if (!text) return refuse_type(error, param, "a string", value);
    if (!length) {
        api_error_set(error, 400, invalid, "invalid_value", "stop", "Invalid '%s': a stop string cannot be empty.",
                      param);
        return false;
    }
    if (length > limits.api_stop_string_bytes)
        return refuse_too_long(error, param, "string", limits.api_stop_string_bytes, length);
    char *copy = arena_strdup(&call->arena, text, length);
    if (!copy) return refuse_memory(error);
    *stop = (struct stop_string){copy, (uint32_t)length};
    return true;
}

static bool read_stops(struct api_call *call, const struct fields *fields)
{
    const struct json *value = field_get(fields, "stop");
    if (!value) return true;
    enum json_kind kind = json_kind(value);
    if (kind != JSON_KIND_TEXT && kind != JSON_KIND_LIST)
        return refuse_type(fields->error, "stop", "a string or an array of strings", value);
    size_t count = kind == JSON_KIND_TEXT ? 1 : json_length(value);
    if (count > limits.api_stop_strings)
        return refuse_too_long(fields->error, "stop", "array", limits.api_stop_strings, count);
    if (!count) return true;
    struct stop_string *stops = arena_alloc(&call->arena, count, sizeof *stops);
    if (!stops) return refuse_memory(fields->error);
    for (size_t i = 0; i < count; i++) {
        char param[32] = "stop";
        if (kind == JSON_KIND_LIST) snprintf(param, sizeof param, "stop[%zu]", i);
        if (!add_stop(call, kind == JSON_KIND_TEXT ? value : json_at(value, i), param, &stops[i], fields->error))
            return false;
    }
    call->base.stops = stops;
    call->base.stops_count = (uint32_t)count;
    return true;
}

static bool read_stopping(struct api_call *call, const struct fields *fields)
{
    struct request *base = &call->base;
    int64_t min_tokens = 0;
    bool skip_special = true;
    if (!read_stops(call, fields)) return false;
    if (!read_ids(call, fields, "stop_token_ids", limits.api_stop_token_ids, &base->stop_ids, &base->stop_ids_count))
        return false;
    if (!read_ids(call, fields, "allowed_token_ids", limits.api_allowed_token_ids, &base->params.allowed,
                  &base->params.allowed_count))
        return false;
    if (base->params.allowed && !base->params.allowed_count) {
        api_error_set(fields->error, 400, invalid, "empty_array", "allowed_token_ids",
                      "Invalid 'allowed_token_ids': an empty array leaves no token to choose.");
        return false;
    }
    if (!field_int(fields, "min_tokens", 0, INT64_MAX, &min_tokens)) return false;
    if (!field_bool(fields, "ignore_eos", &base->ignore_eos)) return false;
    if (!field_bool(fields, "include_stop_str_in_output", &base->include_stop)) return false;
    if (!field_bool(fields, "skip_special_tokens", &skip_special)) return false;
    if (min_tokens > call->model->context_max) {
        api_error_set(fields->error, 400, invalid, "integer_above_max_value", "min_tokens",
                      "Invalid 'min_tokens': %" PRId64 " is more than the context of %" PRIu32 " tokens.", min_tokens,
                      call->model->context_max);
        return false;
    }
    base->min_tokens = (uint32_t)min_tokens;
    base->keep_special = !skip_special;
    return true;
}

static bool read_lengths(struct api_call *call, const struct fields *fields)
{
    bool chat = call->kind == API_CHAT;
    call->max_tokens = -1;
    call->max_tokens_param = "max_tokens";
    /* echo may ask for no new token: the prompt's own log-probabilities are the answer */
    if (!field_int(fields, "max_tokens", chat || !call->echo ? 1 : 0, INT64_MAX, &call->max_tokens)) return false;
    if (chat) {
        int64_t newer = -1;
        if (!field_int(fields, "max_completion_tokens", 1, INT64_MAX, &newer)) return false;
        if (newer >= 0) {
            call->max_tokens = newer;
            call->max_tokens_param = "max_completion_tokens";
        }
    }
    if (call->max_tokens >= 0 && call->base.min_tokens > call->max_tokens) {
        api_error_set(fields->error, 400, invalid, "invalid_value", "min_tokens",
                      "Invalid 'min_tokens': %" PRIu32 " is more than '%s' (%" PRId64 ").", call->base.min_tokens,
                      call->max_tokens_param, call->max_tokens);
        return false;
    }
    call->truncate = 0;
    if (!field_int(fields, "truncate_prompt_tokens", -1, call->model->context_max, &call->truncate)) return false;
    if (call->truncate == 0 && field_get(fields, "truncate_prompt_tokens")) {
        api_error_set(fields->error, 400, invalid, "integer_below_min_value", "truncate_prompt_tokens",
                      "Invalid 'truncate_prompt_tokens': 0 leaves no prompt. Expected -1 or a value >= 1.");
        return false;
    }
    const char *side = "left";
    if (!field_text(fields, "truncation_side", &side, NULL)) return false;
    call->truncate_right = strcmp(side, "right") == 0;
    if (!call->truncate_right && strcmp(side, "left") != 0) {
        api_error_set(fields->error, 400, invalid, "invalid_value", "truncation_side",
                      "Invalid value for 'truncation_side': '%.40s'. Supported values are: 'left' and 'right'.", side);
        return false;
    }
    return true;
}

static bool read_choices(struct api_call *call, const struct fields *fields)
{
    int64_t best_of = 0, seed = 0;
    call->n = 1;
    if (!field_int(fields, "n", 1, (int64_t)limits.api_choices, &call->n)) return false;
    if (!field_int(fields, "best_of", 1, INT64_MAX, &best_of)) return false;
    if (best_of && best_of != call->n)
        return refuse_unserved(fields->error, "best_of", "is served only when it equals 'n'");
    if (!field_int(fields, "seed", INT64_MIN, INT64_MAX, &seed)) return false;
    call->has_seed = field_get(fields, "seed") != NULL;
    call->seed = (uint64_t)seed;
    return true;
}

static bool read_logprobs(struct api_call *call, const struct fields *fields)
{
    int64_t count = -1;
    int64_t count_max =
        limits.api_top_logprobs < LOGPROBS_MAX - 1 ? (int64_t)limits.api_top_logprobs : LOGPROBS_MAX - 1;
    if (call->kind == API_COMPLETIONS) {
        if (!field_int(fields, "logprobs", 0, count_max, &count)) return false;
    } else {
        bool wanted = false;
        int64_t top = 0;
        if (!field_bool(fields, "logprobs", &wanted)) return false;
        if (!field_int(fields, "top_logprobs", 0, count_max, &top)) return false;
        if (top && !wanted) {
            api_error_set(fields->error, 400, invalid, NULL, "top_logprobs",
                          "Invalid value for 'top_logprobs': it is only allowed when 'logprobs' is true.");
            return false;
        }
        if (wanted) count = top;
    }
    call->base.params.logprobs = (int32_t)count;
    if (!field_bool(fields, "return_tokens_as_token_ids", &call->ids_as_tokens)) return false;
    return field_bool(fields, "return_token_ids", &call->return_ids);
}

static bool read_stream(struct api_call *call, const struct fields *fields)
{
    const struct json *options = NULL;
    if (!field_bool(fields, "stream", &call->stream)) return false;
    if (!field_object(fields, "stream_options", &options)) return false;
    if (!options) return true;
    if (!call->stream) {
        api_error_set(fields->error, 400, invalid, NULL, "stream_options",
                      "The 'stream_options' parameter is only allowed when 'stream' is enabled.");
        return false;
    }
    struct fields inner = {options, fields->error};
    if (!field_bool(&inner, "include_usage", &call->include_usage)) return false;
    return field_bool(&inner, "continuous_usage_stats", &call->continuous_usage);
}

/* Ours: until when a request of flex (its start) or batch (its end) waits, and for what power. */
static bool read_wish(struct api_call *call, const struct fields *fields)
{
    static const char *const modes[] = {
        [PLAN_GREEN_ANY] = "any", [PLAN_GREEN_PREFER] = "prefer", [PLAN_GREEN_ONLY] = "only"};
    const char *deadline = NULL, *green = NULL;
    call->wish = (struct api_wish){.service_class = call->base.service_class, .green = PLAN_GREEN_PREFER};
    if (!field_text(fields, "deadline", &deadline, NULL) || !field_text(fields, "green", &green, NULL)) return false;
    bool waits = call->wish.service_class == CLASS_FLEX || call->wish.service_class == CLASS_BATCH;
    if ((deadline || green) && !waits) {
        api_error_set(fields->error, 400, invalid, "invalid_value", deadline ? "deadline" : "green",
                      "'%s' needs 'service_tier' to be 'flex' or 'batch'.", deadline ? "deadline" : "green");
        return false;
    }
    if (deadline &&
        (!batch_time_read(deadline, &call->wish.deadline_unix_s) || call->wish.deadline_unix_s <= call->now_unix_s ||
         call->wish.deadline_unix_s > call->now_unix_s + BATCH_WINDOW_S_MAX)) {
        api_error_set(
            fields->error, 400, invalid, "invalid_value", "deadline",
            "Invalid 'deadline': expected a time of RFC 3339 in the next 30 days, as '2026-01-31T06:00:00Z'.");
        return false;
    }
    for (int i = 0; green && i <= PLAN_GREEN_ONLY; i++) {
        if (strcmp(modes[i], green) != 0) continue;
        call->wish.green = i;
        return true;
    }
    if (!green) return true;
    api_error_set(fields->error, 400, invalid, "invalid_value", "green",
                  "Invalid 'green': expected 'any', 'prefer' or 'only'.");
    return false;
}

static bool read_service(struct api_call *call, const struct fields *fields)
{
    static const struct {
        const char *name;
        enum tier_name tier;
        enum service_class service_class;
    } tiers[] = {{"auto", TIER_DEFAULT, CLASS_DEFAULT},       {"default", TIER_DEFAULT, CLASS_DEFAULT},
                 {"scale", TIER_DEFAULT, CLASS_DEFAULT},      {"flex", TIER_FLEX, CLASS_FLEX},
                 {"priority", TIER_PRIORITY, CLASS_PRIORITY}, {"fast", TIER_PRIORITY, CLASS_PRIORITY},
                 {"batch", TIER_BATCH, CLASS_BATCH}};
    const char *name = NULL;
    int64_t priority = 0;
    call->base.service_class = CLASS_DEFAULT;
    if (!field_text(fields, "service_tier", &name, NULL)) return false;
    if (!field_int(fields, "priority", INT32_MIN, INT32_MAX, &priority)) return false;
    call->base.priority = (int32_t)priority;
    if (!name) return true;
    for (size_t i = 0; i < sizeof tiers / sizeof *tiers; i++) {
        if (strcmp(tiers[i].name, name) != 0) continue;
        call->tier = tiers[i].tier;
        call->base.service_class = tiers[i].service_class;
        return true;
    }
    api_error_set(fields->error, 400, invalid, "invalid_value", "service_tier",
                  "Invalid value: '%.40s'. Supported values are: 'auto', 'default', 'flex', 'priority' and 'batch'.",
                  name);
    return false;
}

/* HMAC(secret of the node, tenant || 0 || salt): no tenant can compute another's domain, and a salt only narrows its
 * own. */
static bool read_cache_domain(struct api_call *call, const struct fields *fields, const char *tenant_name)
{
    const char *salt = "";
    size_t salt_length = 0, tenant_length = tenant_name ? strlen(tenant_name) : 0;
    if (!field_text(fields, "cache_salt", &salt, &salt_length)) return false;
    if (field_get(fields, "cache_salt") && !salt_length) {
        api_error_set(fields->error, 400, invalid, "invalid_value", "cache_salt",
                      "Invalid 'cache_salt': expected a string that is not empty.");
        return false;
    }
    struct buf message;
    buf_init(&message, 0);
    if (tenant_length) buf_append(&message, tenant_name, tenant_length);
    buf_append_char(&message, '\0');
    buf_append(&message, salt, salt_length);
    bool good = buf_ok(&message);
    if (good)
        hmac_sha256(call->model->cache_secret, sizeof call->model->cache_secret, message.data, message.length,
                    call->base.cache_domain);
    buf_free(&message);
    return good || refuse_memory(fields->error);
}

static bool read_prompt(struct api_call *call, const struct fields *fields)
{
    uint32_t prompts = 1;
    if (call->kind == API_CHAT) {
        if (!api_chat_read(fields, call->model, &call->chat)) return false;
        call->add_special_tokens = call->chat.add_special_tokens;
        if (!field_bool(fields, "include_reasoning", &call->include_reasoning)) return false;
    } else {
        call->add_special_tokens = true;
        if (!field_bool(fields, "add_special_tokens", &call->add_special_tokens)) return false;
        if (!api_prompt_read(call, fields, &prompts)) return false;
    }
    call->requests_count = prompts;
    return true;
}

static bool read_call(struct api_call *call, const struct fields *fields, const struct api_context *context)
{
    if (!api_model_pick(fields, context->models)) return false;
    call->model = context->models->items[context->models->picked];
    if (!api_refuse_unserved(fields, call->kind)) return false;
    if (call->kind == API_COMPLETIONS && !field_bool(fields, "echo", &call->echo)) return false;
    if (!read_prompt(call, fields)) return false;
    if (!read_sampling(call, fields)) return false;
    if (!read_logit_bias(call, fields)) return false;
    if (!read_stopping(call, fields)) return false;
    if (!read_lengths(call, fields)) return false;
    if (!read_choices(call, fields)) return false;
    if (!read_logprobs(call, fields)) return false;
    if (!read_stream(call, fields)) return false;
    if (!read_service(call, fields)) return false;
    if (!context->batch && !read_wish(call, fields)) return false;
    if (context->batch) {
        call->tier = TIER_BATCH;
        call->base.service_class = CLASS_BATCH;
    }
    return read_cache_domain(call, fields, context->tenant_name);
}

/* A UUID of version 7 (RFC 9562): ids of a day stand together, in a journal as in an index. */
void api_make_id(struct api_call *call, int64_t now_unix_ms)
{
    random_fill(call->uuid, sizeof call->uuid);
    for (size_t i = 0; i < 6; i++) call->uuid[i] = (uint8_t)(now_unix_ms >> (40 - 8 * i));
    call->uuid[6] = 0x70 | (call->uuid[6] & 0x0f);
    call->uuid[8] = 0x80 | (call->uuid[8] & 0x3f);
    int at = snprintf(call->id, sizeof call->id, "%s", call->kind == API_CHAT ? "chatcmpl-" : "cmpl-");
    for (size_t i = 0; i < sizeof call->uuid; i++) snprintf(call->id + at + 2 * i, 3, "%02x", call->uuid[i]);
}

bool api_call_create(enum api_kind kind, const char *body, size_t length, const struct api_context *context,
                     struct api_call **call, struct api_error *error)
{
    struct json *root;
    if (!api_read_object(body, length, &root, error)) return false;
    struct api_call *made = mem_alloc(1, sizeof *made);
    if (!made) {
        json_release(root);
        return refuse_memory(error);
    }
    arena_init(&made->arena, limits.api_request_memory_bytes);
    made->kind = kind;
    made->now_unix_s = context->now_unix_s;
    made->body = root;
    made->include_reasoning = true;
    made->base.tenant = context->tenant;
    made->base.deadline_ns = context->deadline_ns;
    api_make_id(made, context->now_unix_ms);
    struct fields fields = {root, error};
    if (!read_call(made, &fields, context)) {
        api_call_destroy(made);
        return false;
    }
    *call = made;
    return true;
}

void api_call_destroy(struct api_call *call)
{
    if (!call) return;
    json_release(call->body);
    buf_free(&call->segment.text);
    buf_free(&call->segment.offsets);
    buf_free(&call->token_text);
    arena_free(&call->arena);
    mem_free(call);
}

struct request *api_call_requests(struct api_call *call, uint32_t *count)
{
    *count = call->requests_count;
    return call->requests;
}

bool api_call_streams(const struct api_call *call)
{
    return call->stream;
}
struct api_wish api_call_wish(const struct api_call *call)
{
    return call->wish;
}
const uint8_t *api_call_uuid(const struct api_call *call)
{
    return call->uuid;
}

const char *api_call_id(const struct api_call *call)
{
    return call->id;
}
