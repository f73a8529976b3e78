/* See relay_ask.h. */
#include "server/upstream/relay_ask.h"

#include "runtime/base/limits.h"
#include "server/api_call.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

static const char invalid[] = "invalid_request_error";

/* As api_prompt_read counts them: a text or a list of ids is one, a list of such as many. */
static bool count_prompts(const struct fields *fields, uint32_t *count)
{
    const struct json *prompt = field_get(fields, "prompt");
    const struct json *first = json_at(prompt, 0);
    bool many = json_kind(first) == JSON_KIND_TEXT || json_kind(first) == JSON_KIND_LIST;
    size_t prompts = many ? json_length(prompt) : 1;
    if (!prompt) return refuse_missing(fields->error, "prompt");
    if (prompts > limits.api_prompts)
        return refuse_too_long(fields->error, "prompt", "array", limits.api_prompts, prompts);
    *count = (uint32_t)prompts;
    return true;
}

static bool read_stream(struct relay_ask *ask, const struct fields *fields)
{
    const struct json *options = NULL;
    if (!field_bool(fields, "stream", &ask->stream) || !field_object(fields, "stream_options", &options)) return false;
    if (!options) return true;
    if (!ask->stream) {
        api_error_set(fields->error, 400, invalid, NULL, "stream_options",
                      "The 'stream_options' parameter is only allowed when 'stream' is enabled.");
        return false;
    }
    struct fields inner = {options, fields->error};
    return field_bool(&inner, "include_usage", &ask->include_usage);
}

static bool read_tokens(struct relay_ask *ask, const struct fields *fields, const char **param)
{
    int64_t tokens = -1, newer = -1;
    *param = "max_tokens";
    if (!field_int(fields, "max_tokens", ask->kind == API_CHAT ? 1 : 0, INT64_MAX, &tokens)) return false;
    if (ask->kind == API_CHAT && !field_int(fields, "max_completion_tokens", 1, INT64_MAX, &newer)) return false;
    if (newer >= 0) {
        tokens = newer;
        *param = "max_completion_tokens";
    }
    if (tokens > ask->model->output_max) {
        api_error_set(fields->error, 400, invalid, "integer_above_max_value", *param,
                      "Invalid '%s': %" PRId64 " is more than this model's answers may have, %" PRIu32 " tokens.",
                      *param, tokens, ask->model->output_max);
        return false;
    }
    ask->max_tokens = tokens < 0 ? ask->model->output_max : (uint32_t)tokens;
    return true;
}

static bool read_counts(struct relay_ask *ask, const struct fields *fields, size_t length, const char **param)
{
    int64_t n = 1, best_of = 1;
    uint32_t prompts = 1;
    if (ask->kind == API_CHAT && !field_get(fields, "messages")) return refuse_missing(fields->error, "messages");
    if (ask->kind == API_COMPLETIONS && !count_prompts(fields, &prompts)) return false;
    if (!field_int(fields, "n", 1, (int64_t)limits.api_choices, &n)) return false;
    if (!field_int(fields, "best_of", 1, (int64_t)limits.api_choices, &best_of)) return false;
    if (!read_stream(ask, fields) || !read_tokens(ask, fields, param)) return false;
    uint64_t bytes = (uint64_t)length + (uint64_t)prompts * RELAY_TEMPLATE_TOKENS;
    uint64_t context = (uint64_t)ask->model->context_max * prompts;
    if (context && bytes > context) bytes = context;
    ask->choices = (uint32_t)(best_of > n ? best_of : n) * prompts;
    ask->prompt_max = bytes < UINT32_MAX ? (uint32_t)bytes : UINT32_MAX;
    return true;
}

static bool is_ours(const char *key)
{
    static const char *const keys[] = {"model", "stream_options", "max_tokens", "max_completion_tokens"};
    for (size_t i = 0; i < sizeof keys / sizeof *keys; i++)
        if (strcmp(keys[i], key) == 0) return true;
    return false;
}

static void print_body(struct relay_ask *ask, const struct json *root, const char *param)
{
    struct buf *out = &ask->body;
    void *iterator = NULL;
    const char *key;
    const struct json *value;
    buf_append_text(out, "{\"model\":");
    buf_append_json_string(out, ask->model->as, strlen(ask->model->as));
    buf_append_format(out, ",\"%s\":", param);
    ask->tokens_at = out->length;
    buf_append_format(out, "%*" PRIu32, RELAY_TOKENS_CHARS, ask->max_tokens);
    if (ask->stream)
        buf_append_format(out, ",\"stream_options\":{\"include_usage\":true%s}",
                          ask->model->upstream->continuous ? ",\"continuous_usage_stats\":true" : "");
    while (json_iterate(root, &iterator, &key, &value)) {
        if (is_ours(key)) continue;
        buf_append_char(out, ',');
        buf_append_json_string(out, key, strlen(key));
        buf_append_char(out, ':');
        json_print(value, out);
    }
    buf_append_char(out, '}');
}

bool relay_ask_read(struct relay_ask *ask, const struct upstream_model *model, enum api_kind kind, const char *body,
                    size_t length, struct api_error *error)
{
    struct json *root;
    const char *param = "max_tokens";
    *ask = (struct relay_ask){.model = model, .kind = kind};
    buf_init(&ask->body, (size_t)limits.api_request_memory_bytes);
    if (!api_read_object(body, length, &root, error)) return false;
    struct fields fields = {root, error};
    bool good = read_counts(ask, &fields, length, &param);
    if (good) {
        print_body(ask, root, param);
        good = buf_ok(&ask->body) || refuse_memory(error);
    }
    json_release(root);
    return good;
}

void relay_ask_lower(struct relay_ask *ask, uint32_t max_tokens)
{
    char digits[RELAY_TOKENS_CHARS + 1];
    if (max_tokens >= ask->max_tokens) return;
    ask->max_tokens = max_tokens;
    (void)snprintf(digits, sizeof digits, "%*" PRIu32, RELAY_TOKENS_CHARS, max_tokens);
    memcpy(ask->body.data + ask->tokens_at, digits, RELAY_TOKENS_CHARS);
}

void relay_ask_free(struct relay_ask *ask)
{
    buf_free(&ask->body);
}
