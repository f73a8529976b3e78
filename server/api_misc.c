/* Answers that need no engine: text to ids and back. Shapes are vLLM's; see api.h. */
#include "server/api_call.h"

#include "runtime/base/limits.h"
#include "runtime/base/mem.h"

#include <inttypes.h>
#include <string.h>

/* A list that refuses to outgrow what one request may hold. */
static struct token_list bounded_list(void)
{
    return (struct token_list){.limit = limits.api_request_memory_bytes / sizeof(uint32_t)};
}

static bool tokenize_text(const struct api_model *model, const struct fields *fields, struct token_list *list)
{
    const char *prompt = NULL;
    size_t length = 0;
    bool add_special = true;
    if (!field_text(fields, "prompt", &prompt, &length)) return false;
    if (!field_bool(fields, "add_special_tokens", &add_special)) return false;
    enum status status = tokenizer_encode(model->tokenizer, prompt, length, NULL, 0, add_special, list);
    if (status == ST_OK) return true;
    if (status != ST_LIMIT) return refuse_memory(fields->error);
    api_error_set(fields->error, 400, "invalid_request_error", "string_above_max_length", "prompt",
                  "Invalid 'prompt': it has more than %zu tokens.", list->limit);
    return false;
}

static bool tokenize_chat(const struct api_model *model, const struct fields *fields, struct token_list *list)
{
    struct chat_options chat;
    if (!api_chat_read(fields, model, &chat)) return false;
    /* No clock here: a template that prints the date gets that of the model, which has the same length. */
    return api_chat_tokens(model, &chat, model->created_unix_s, list, fields->error);
}

static void append_token_strings(const struct api_model *model, const struct token_list *list, struct buf *out)
{
    buf_append_char(out, '[');
    for (size_t i = 0; i < list->count; i++) {
        uint32_t length;
        const char *bytes = tokenizer_bytes(model->tokenizer, list->ids[i], &length);
        if (i) buf_append_char(out, ',');
        buf_append_json_string(out, bytes, length);
    }
    buf_append_char(out, ']');
}

static bool tokenize(const struct api_model *model, const struct fields *fields, struct buf *out)
{
    bool strings = false, good;
    struct token_list list = bounded_list();
    if (!field_bool(fields, "return_token_strs", &strings)) return false;
    if (field_get(fields, "messages")) {
        good = tokenize_chat(model, fields, &list);
    } else if (field_get(fields, "prompt")) {
        good = tokenize_text(model, fields, &list);
    } else {
        good = refuse_missing(fields->error, "prompt");
    }
    if (good) {
        buf_append_format(out, "{\"count\":%zu,\"max_model_len\":%" PRIu32 ",\"tokens\":", list.count,
                          model->context_max);
        api_append_ids(out, list.ids, (uint32_t)list.count);
        buf_append_text(out, ",\"token_strs\":");
        if (strings)
            append_token_strings(model, &list, out);
        else
            buf_append_text(out, "null");
        buf_append_char(out, '}');
    }
    token_list_free(&list);
    return good;
}

static bool detokenize(const struct api_model *model, const struct fields *fields, struct buf *out)
{
    const struct json *tokens = field_get(fields, "tokens");
    struct detokenizer detokenizer;
    struct buf text;
    if (!tokens) return refuse_missing(fields->error, "tokens");
    size_t count = json_length(tokens);
    uint32_t *ids = mem_alloc(count ? count : 1, sizeof *ids);
    if (!ids) return refuse_memory(fields->error);
    bool good = value_ids(tokens, "tokens", limits.json_values, tokenizer_count(model->tokenizer), fields->error, ids);
    buf_init(&text, 0);
    detokenizer_init_whole(&detokenizer, model->tokenizer, true);
    for (size_t i = 0; good && i < count; i++) detokenizer_push(&detokenizer, ids[i], &text);
    detokenizer_finish(&detokenizer, &text);
    if (good) {
        buf_append_text(out, "{\"prompt\":");
        buf_append_json_string(out, buf_bytes(&text), text.length);
        buf_append_char(out, '}');
        if (!buf_ok(&text)) good = refuse_memory(fields->error);
    }
    buf_free(&text);
    mem_free(ids);
    return good;
}

static int answer(struct api_models *models, const char *body, size_t length, struct buf *out,
                  bool (*work)(const struct api_model *, const struct fields *, struct buf *))
{
    struct json *root;
    struct api_error error;
    size_t before = out->length;
    bool good = api_read_object(body, length, &root, &error);
    if (good) {
        struct fields fields = {root, &error};
        good = api_model_pick(&fields, models) && work(models->items[models->picked], &fields, out);
        json_release(root);
    }
    if (good) return 200;
    out->length = before;
    api_error_body(&error, out);
    return error.http_status;
}

int api_tokenize(struct api_models *models, const char *body, size_t length, struct buf *out)
{
    return answer(models, body, length, out, tokenize);
}

int api_detokenize(struct api_models *models, const char *body, size_t length, struct buf *out)
{
    return answer(models, body, length, out, detokenize);
}
