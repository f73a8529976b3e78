/* The four forms of a completion's prompt: a text, a list of texts, a list of ids, a list of such lists.
 *
 * A prompt's text is the client's: nothing in it becomes a control token ("<|im_end|>" stays eleven characters or so).
 * A client that wants control tokens sends ids. */
#include "server/api_call.h"

#include "runtime/base/limits.h"
#include "runtime/base/mem.h"

#include <inttypes.h>
#include <stdio.h>

static const char forms[] = "a string, an array of strings, an array of token ids, or an array of such arrays";

static bool is_ids(const struct json *list)
{
    return json_kind(json_at(list, 0)) == JSON_KIND_INT;
}

static bool refuse_empty(struct api_error *error, const char *param)
{
    api_error_set(error, 400, "invalid_request_error", "invalid_value", param, "Invalid '%s': the prompt is empty.",
                  param);
    return false;
}

static bool check_ids(const struct api_call *call, const struct json *list, const char *param, struct api_error *error)
{
    size_t count = json_length(list);
    uint32_t ids_count = tokenizer_count(call->model->tokenizer);
    if (!count) return refuse_empty(error, param);
    for (size_t i = 0; i < count; i++) {
        const struct json *item = json_at(list, i);
        int64_t id = json_to_int(item);
        if (json_kind(item) == JSON_KIND_INT && id >= 0 && id < (int64_t)ids_count) continue;
        char name[64]; /* only for the refusal: a prompt may have a million ids */
        snprintf(name, sizeof name, "%s[%zu]", param, i);
        return value_int(item, name, 0, (int64_t)ids_count - 1, error, &id);
    }
    return true;
}

static bool read_list(struct api_call *call, const struct json *list, struct api_error *error)
{
    size_t count = json_length(list);
    if (count > limits.api_prompts) return refuse_too_long(error, "prompt", "array", limits.api_prompts, count);
    enum json_kind first = json_kind(json_at(list, 0));
    for (size_t i = 0; i < count; i++) {
        const struct json *item = json_at(list, i);
        char param[32];
        snprintf(param, sizeof param, "prompt[%zu]", i);
        if (json_kind(item) != first)
            return refuse_type(error, param, first == JSON_KIND_TEXT ? "a string" : "an array of token ids", item);
        if (first == JSON_KIND_LIST) {
            if (!check_ids(call, item, param, error)) return false;
        } else if (first != JSON_KIND_TEXT) {
            return refuse_type(error, param, "a string or an array of token ids", item);
        }
    }
    return true;
}

bool api_prompt_read(struct api_call *call, const struct fields *fields, uint32_t *count)
{
    const struct json *prompt = field_get(fields, "prompt");
    if (!prompt) return refuse_missing(fields->error, "prompt");
    call->prompt = prompt;
    if (json_kind(prompt) == JSON_KIND_TEXT) {
        *count = 1;
        return true;
    }
    if (json_kind(prompt) != JSON_KIND_LIST) return refuse_type(fields->error, "prompt", forms, prompt);
    if (!json_length(prompt)) return refuse_empty(fields->error, "prompt");
    if (is_ids(prompt)) {
        *count = 1;
        return check_ids(call, prompt, "prompt", fields->error);
    }
    *count = (uint32_t)json_length(prompt); /* read_list refuses what would not fit */
    return read_list(call, prompt, fields->error);
}

static enum status append_ids(const struct json *list, struct token_list *out)
{
    size_t count = json_length(list);
    if (out->limit && count > out->limit) {
        out->full = true;
        return ST_LIMIT;
    }
    if (count > out->capacity) {
        uint32_t *ids = mem_resize(out->ids, count, sizeof *ids);
        if (!ids) return ST_NOMEM;
        out->ids = ids;
        out->capacity = count;
    }
    for (size_t i = 0; i < count; i++) out->ids[i] = (uint32_t)json_to_int(json_at(list, i));
    out->count = count;
    return ST_OK;
}

bool api_prompt_tokens(const struct api_call *call, uint32_t idx, struct token_list *list, struct api_error *error)
{
    const struct json *prompt = call->prompt;
    bool single = json_kind(prompt) == JSON_KIND_TEXT || is_ids(prompt);
    if (!single) prompt = json_at(prompt, idx);
    size_t length;
    const char *text = json_to_text(prompt, &length);
    enum status status =
        text ? tokenizer_encode(call->model->tokenizer, text, length, NULL, 0, call->add_special_tokens, list)
             : append_ids(prompt, list);
    if (status == ST_OK) return list->count ? true : refuse_empty(error, "prompt");
    if (status == ST_LIMIT && !list->full) return api_refuse_work("prompt", error);
    if (status == ST_LIMIT) return api_refuse_context(call->model, API_COMPLETIONS, list->limit + 1, 0, error);
    return refuse_memory(error);
}
