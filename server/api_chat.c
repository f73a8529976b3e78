/* Messages to a prompt: checks their shapes, brings them into the form that chat templates expect, renders and
 * tokenises.
 *
 * Templates are written for plain messages, so before rendering: role developer is system, unless the template has a
 * word for it; a list of text parts is its texts, joined by line feeds, unless the template takes lists (it is asked by
 * rendering one); the arguments of earlier tool calls are objects, not the JSON text in which OpenAI's wire format has
 * them; no tool calls are no member; no content beside tool calls is the empty text; `reasoning`, as our answers name
 * it, is also `reasoning_content`, as templates do. All of this is vLLM's doing too, so that a conversation gives the
 * same prompt. Messages that already have that form are passed as they came; others are printed in the new form and
 * read again, which keeps one owner for every value. */
#include "server/api_call.h"

#include "runtime/base/limits.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

static const char invalid[] = "invalid_request_error";

static bool is_text(const struct json *value, const char *expected)
{
    const char *text = json_to_text(value, NULL);
    return text && strcmp(text, expected) == 0;
}

/* Names that a template reads from us: a keyword argument must not stand in for them. */
static bool check_arguments(const struct json *arguments, struct api_error *error)
{
    static const char *const reserved[] = {
        "messages",        "tools",        "documents", "add_generation_prompt", "bos_token", "eos_token",
        "raise_exception", "strftime_now", "namespace", "continue_final_message"};
    for (size_t i = 0; i < sizeof reserved / sizeof *reserved; i++) {
        if (!json_member(arguments, reserved[i])) continue;
        api_error_set(error, 400, invalid, "invalid_value", "chat_template_kwargs",
                      "Invalid 'chat_template_kwargs': '%s' is a name that the server sets itself.", reserved[i]);
        return false;
    }
    return true;
}

static bool check_parts(const struct json *parts, const char *param, struct api_error *error)
{
    for (size_t i = 0; i < json_length(parts); i++) {
        const struct json *part = json_at(parts, i), *text = json_member(part, "text");
        char name[64];
        snprintf(name, sizeof name, "%.40s[%zu]", param, i);
        if (json_kind(part) != JSON_KIND_OBJECT) return refuse_type(error, name, "an object", part);
        if (!is_text(json_member(part, "type"), "text")) {
            api_error_set(error, 400, invalid, "invalid_value", name,
                          "Invalid '%s': only content parts of type 'text' are served.", name);
            return false;
        }
        if (!json_to_text(text, NULL)) return refuse_type(error, name, "a string as 'text'", text);
    }
    return true;
}

static bool check_content(const struct json *message, bool optional, const char *param, struct api_error *error)
{
    const struct json *content = json_member(message, "content");
    char name[64];
    snprintf(name, sizeof name, "%.40s.content", param);
    switch (json_kind(content)) {
    case JSON_KIND_NULL:
        if (optional) return true;
        return content ? refuse_type(error, name, "a string or an array of content parts", content)
                       : refuse_missing(error, name);
    case JSON_KIND_TEXT: return true;
    case JSON_KIND_LIST: return check_parts(content, name, error);
    case JSON_KIND_BOOL:
    case JSON_KIND_INT:
    case JSON_KIND_FLOAT:
    case JSON_KIND_OBJECT: break;
    }
    return refuse_type(error, name, "a string or an array of content parts", content);
}

/* Earlier calls of the assistant: [{"type":"function","id":..,"function":{"name":..,"arguments":"{..}"}}] */
static bool check_tool_calls(const struct json *calls, const char *param, struct api_error *error)
{
    char name[64];
    snprintf(name, sizeof name, "%.40s.tool_calls", param);
    if (json_kind(calls) != JSON_KIND_LIST) return refuse_type(error, name, "an array", calls);
    for (size_t i = 0; i < json_length(calls); i++) {
        const struct json *function = json_member(json_at(calls, i), "function");
        const struct json *arguments = json_member(function, "arguments");
        if (json_kind(function) != JSON_KIND_OBJECT)
            return refuse_type(error, name, "objects with a 'function'", function);
        if (!json_to_text(json_member(function, "name"), NULL))
            return refuse_type(error, name, "a function 'name'", NULL);
        if (json_kind(arguments) != JSON_KIND_TEXT && json_kind(arguments) != JSON_KIND_OBJECT &&
            json_kind(arguments) != JSON_KIND_NULL)
            return refuse_type(error, name, "a string as 'arguments'", arguments);
    }
    return true;
}

static bool check_message(const struct json *message, size_t idx, struct api_error *error)
{
    static const char *const roles[] = {"system", "developer", "user", "assistant", "tool", "function"};
    char param[48], name[64];
    snprintf(param, sizeof param, "messages[%zu]", idx);
    if (json_kind(message) != JSON_KIND_OBJECT) return refuse_type(error, param, "an object", message);
    snprintf(name, sizeof name, "%s.role", param);
    const struct json *role = json_member(message, "role");
    const char *text = json_to_text(role, NULL);
    if (!role) return refuse_missing(error, name);
    if (!text) return refuse_type(error, name, "a string", role);
    size_t known = 0;
    while (known < sizeof roles / sizeof *roles && strcmp(roles[known], text) != 0) known++;
    if (known == sizeof roles / sizeof *roles) {
        api_error_set(error, 400, invalid, "invalid_value", name,
                      "Invalid value: '%.40s'. Supported values are: 'system', 'developer', 'user', 'assistant' and "
                      "'tool'.",
                      text);
        return false;
    }
    bool assistant = strcmp(text, "assistant") == 0;
    const struct json *calls = json_member(message, "tool_calls");
    bool has_calls = assistant && json_kind(calls) != JSON_KIND_NULL;
    if (has_calls && !check_tool_calls(calls, param, error)) return false;
    return check_content(message, has_calls, param, error);
}

static bool check_messages(const struct json *messages, struct api_error *error)
{
    size_t count = json_length(messages);
    if (!count) {
        api_error_set(error, 400, invalid, "empty_array", "messages",
                      "Invalid 'messages': empty array. Expected an array with minimum length 1.");
        return false;
    }
    if (count > limits.api_messages) return refuse_too_long(error, "messages", "array", limits.api_messages, count);
    for (size_t i = 0; i < count; i++)
        if (!check_message(json_at(messages, i), i, error)) return false;
    return true;
}

/* {"type":"function","function":{"name":..,"description":..,"parameters":{..}}}; what else it has is the template's. */
static bool check_tool(const struct json *tool, const char *param, struct api_error *error)
{
    char name[64];
    const struct json *type = json_member(tool, "type"), *function = json_member(tool, "function");
    size_t length = 0;
    if (json_kind(tool) != JSON_KIND_OBJECT) return refuse_type(error, param, "an object", tool);
    if (type && !is_text(type, "function")) {
        api_error_set(error, 400, invalid, "invalid_value", param,
                      "Invalid '%s': only tools of type 'function' are served.", param);
        return false;
    }
    snprintf(name, sizeof name, "%s.function", param);
    if (!function) return refuse_missing(error, name);
    if (json_kind(function) != JSON_KIND_OBJECT) return refuse_type(error, name, "an object", function);
    const struct json *title = json_member(function, "name"), *about = json_member(function, "description");
    const struct json *parameters = json_member(function, "parameters");
    snprintf(name, sizeof name, "%s.function.name", param);
    if (!title) return refuse_missing(error, name);
    if (!json_to_text(title, &length) || !length) return refuse_type(error, name, "a string that is not empty", title);
    snprintf(name, sizeof name, "%s.function.description", param);
    if (json_kind(about) != JSON_KIND_NULL && !json_to_text(about, NULL))
        return refuse_type(error, name, "a string", about);
    snprintf(name, sizeof name, "%s.function.parameters", param);
    if (json_kind(parameters) != JSON_KIND_NULL && json_kind(parameters) != JSON_KIND_OBJECT)
        return refuse_type(error, name, "an object", parameters);
    return true;
}

static bool read_tools(const struct fields *fields, struct chat_options *chat)
{
    if (!field_list(fields, "tools", &chat->tools)) return false;
    size_t count = json_length(chat->tools);
    if (!count) chat->tools = NULL; /* templates ask whether it is none; an empty list is not */
    if (count > limits.api_tools) return refuse_too_long(fields->error, "tools", "array", limits.api_tools, count);
    for (size_t i = 0; i < count; i++) {
        char name[32];
        snprintf(name, sizeof name, "tools[%zu]", i);
        if (!check_tool(json_at(chat->tools, i), name, fields->error)) return false;
    }
    if (!field_list(fields, "documents", &chat->documents)) return false;
    for (size_t i = 0; i < json_length(chat->documents); i++)
        if (json_kind(json_at(chat->documents, i)) != JSON_KIND_OBJECT)
            return refuse_type(fields->error, "documents", "an array of objects", json_at(chat->documents, i));
    return true;
}

bool api_chat_read(const struct fields *fields, const struct api_model *model, struct chat_options *chat)
{
    struct api_error *error = fields->error;
    *chat = (struct chat_options){0};
    if (!field_list(fields, "messages", &chat->messages)) return false;
    if (!chat->messages) return refuse_missing(error, "messages");
    if (!check_messages(chat->messages, error)) return false;
    if (!read_tools(fields, chat)) return false;
    if (!field_object(fields, "chat_template_kwargs", &chat->arguments)) return false;
    if (!check_arguments(chat->arguments, error)) return false;
    if (!field_text(fields, "chat_template", &chat->template_text, &chat->template_length)) return false;
    if (chat->template_text && !model->trust_request_chat_template)
        return refuse_unserved(error, "chat_template",
                               "is served only when the server runs with --trust-request-chat-template");
    if (!chat->template_text && !model->chat_template) {
        api_error_set(error, 400, invalid, NULL, "messages",
                      "This model has no chat template: use /v1/completions, or a model that has one.");
        return false;
    }
    if (!field_bool(fields, "continue_final_message", &chat->continue_final_message)) return false;
    chat->add_generation_prompt = !chat->continue_final_message;
    if (!field_bool(fields, "add_generation_prompt", &chat->add_generation_prompt)) return false;
    if (chat->add_generation_prompt && chat->continue_final_message) {
        api_error_set(error, 400, invalid, NULL, "continue_final_message",
                      "Cannot set both 'continue_final_message' and 'add_generation_prompt' to true.");
        return false;
    }
    return field_bool(fields, "add_special_tokens", &chat->add_special_tokens);
}

/* ---- the form that templates expect ---- */

/* What the template at hand takes as it is. */
struct forms {
    bool developer; /* the role */
    bool parts;     /* a list as content */
};

static bool is_plain(const struct json *messages)
{
    for (size_t i = 0; i < json_length(messages); i++) {
        const struct json *message = json_at(messages, i);
        if (json_kind(json_member(message, "content")) != JSON_KIND_TEXT || json_member(message, "tool_calls") ||
            json_member(message, "reasoning") || is_text(json_member(message, "role"), "developer"))
            return false;
    }
    return true;
}

/* Whether the template shows the texts of a list of parts and not the list itself: asked with a list of two. A template
 * that fails on it says no. */
static bool takes_parts(const struct chat_template *tmpl, bool *takes, struct api_error *error)
{
    static const char question[] = "[{\"role\":\"user\",\"content\":[{\"type\":\"text\",\"text\":\"first~part\"},"
                                   "{\"type\":\"text\",\"text\":\"second~part\"}]}]";
    struct chat_input input = {.bos_token = "", .eos_token = "", .add_generation_prompt = true};
    struct json *messages;
    struct buf out;
    struct span_list spans = {0};
    if (json_read(question, sizeof question - 1, &messages, NULL) != ST_OK) return refuse_memory(error);
    input.messages = messages;
    buf_init(&out, 0);
    enum status status = chat_template_render(tmpl, &input, &out, &spans, NULL);
    buf_append_char(&out, '\0');
    bool good = status != ST_NOMEM && buf_ok(&out);
    if (good)
        *takes = status == ST_OK && strstr(out.data, "first~part") && strstr(out.data, "second~part") &&
                 !strstr(out.data, "'type'") && !strstr(out.data, "\"type\"");
    span_list_free(&spans);
    buf_free(&out);
    json_release(messages);
    return good || refuse_memory(error);
}

static bool has_parts(const struct json *messages)
{
    for (size_t i = 0; i < json_length(messages); i++)
        if (json_kind(json_member(json_at(messages, i), "content")) == JSON_KIND_LIST) return true;
    return false;
}

static void print_key(struct buf *out, bool first, const char *key)
{
    if (!first) buf_append_char(out, ',');
    buf_append_json_string(out, key, strlen(key));
    buf_append_char(out, ':');
}

static void print_parts(const struct json *parts, struct buf *out)
{
    buf_append_char(out, '"');
    for (size_t i = 0; i < json_length(parts); i++) {
        size_t length;
        const char *text = json_to_text(json_member(json_at(parts, i), "text"), &length);
        if (i) buf_append_text(out, "\\n");
        if (text) buf_append_json_escaped(out, text, length);
    }
    buf_append_char(out, '"');
}

/* The same as a list; what else a part holds is not the template's to see. */
static void print_part_list(const struct json *parts, struct buf *out)
{
    buf_append_char(out, '[');
    for (size_t i = 0; i < json_length(parts); i++) {
        if (i) buf_append_char(out, ',');
        buf_append_text(out, "{\"type\":\"text\",\"text\":");
        json_print(json_member(json_at(parts, i), "text"), out);
        buf_append_char(out, '}');
    }
    buf_append_char(out, ']');
}

/* "arguments": the object inside the text. False when the text is no JSON object. */
static bool print_arguments(const struct json *arguments, struct buf *out)
{
    size_t length;
    const char *text = json_to_text(arguments, &length);
    if (json_kind(arguments) == JSON_KIND_NULL || (text && !length)) {
        buf_append_text(out, "{}");
        return true;
    }
    if (!text) {
        json_print(arguments, out);
        return true;
    }
    struct json *inner;
    if (json_read(text, length, &inner, NULL) != ST_OK) return false;
    bool good = json_kind(inner) == JSON_KIND_OBJECT;
    if (good) json_print(inner, out);
    json_release(inner);
    return good;
}

static bool print_function(const struct json *function, struct buf *out)
{
    void *iterator = NULL;
    const char *key;
    const struct json *value;
    bool first = true, good = true;
    buf_append_char(out, '{');
    while (good && json_iterate(function, &iterator, &key, &value)) {
        print_key(out, first, key);
        first = false;
        if (strcmp(key, "arguments") == 0)
            good = print_arguments(value, out);
        else
            json_print(value, out);
    }
    buf_append_char(out, '}');
    return good;
}

static bool print_tool_calls(const struct json *calls, struct buf *out)
{
    buf_append_char(out, '[');
    for (size_t i = 0; i < json_length(calls); i++) {
        void *iterator = NULL;
        const char *key;
        const struct json *value;
        bool first = true, good = true;
        if (i) buf_append_char(out, ',');
        buf_append_char(out, '{');
        while (good && json_iterate(json_at(calls, i), &iterator, &key, &value)) {
            print_key(out, first, key);
            first = false;
            if (strcmp(key, "function") == 0)
                good = print_function(value, out);
            else
                json_print(value, out);
        }
        if (!good) return false;
        buf_append_char(out, '}');
    }
    buf_append_char(out, ']');
    return true;
}

/* Lists stay lists for the two who talk, where the template takes them; elsewhere many read only a first part. */
static bool keeps_list(const struct json *message, const struct forms *forms)
{
    const struct json *role = json_member(message, "role");
    return forms->parts && json_length(json_member(message, "content")) > 1 &&
           (is_text(role, "user") || is_text(role, "assistant"));
}

static bool print_member(const struct json *message, const char *key, const struct json *value,
                         const struct forms *forms, struct buf *out)
{
    enum json_kind kind = json_kind(value);
    if (strcmp(key, "role") == 0 && is_text(value, "developer") && !forms->developer)
        buf_append_text(out, "\"system\"");
    else if (strcmp(key, "content") == 0 && kind == JSON_KIND_NULL)
        buf_append_text(out, "\"\"");
    else if (strcmp(key, "content") == 0 && kind == JSON_KIND_LIST && keeps_list(message, forms))
        print_part_list(value, out);
    else if (strcmp(key, "content") == 0 && kind == JSON_KIND_LIST)
        print_parts(value, out);
    else if (strcmp(key, "tool_calls") == 0 && kind == JSON_KIND_LIST)
        return print_tool_calls(value, out);
    else
        json_print(value, out);
    return true;
}

static bool print_message(const struct json *message, const struct forms *forms, struct buf *out)
{
    void *iterator = NULL;
    const char *key;
    const struct json *value, *reasoning = json_member(message, "reasoning");
    bool first = true;
    buf_append_char(out, '{');
    while (json_iterate(message, &iterator, &key, &value)) {
        if (strcmp(key, "tool_calls") == 0 && !json_length(value)) continue; /* null or none */
        print_key(out, first, key);
        first = false;
        if (!print_member(message, key, value, forms, out)) return false;
    }
    if (!json_member(message, "content")) {
        print_key(out, first, "content");
        buf_append_text(out, "\"\"");
    }
    if (json_to_text(reasoning, NULL) && !json_member(message, "reasoning_content")) {
        print_key(out, false, "reasoning_content");
        json_print(reasoning, out);
    }
    buf_append_char(out, '}');
    return true;
}

/* Messages in the plain form, as a document of their own. */
static bool plain_messages(const struct chat_options *chat, const struct chat_template *tmpl, struct json **plain,
                           struct api_error *error)
{
    const struct json *messages = chat->messages;
    /* a text that is to be continued must be one */
    bool lists = has_parts(messages) && !chat->continue_final_message;
    if (lists && !takes_parts(tmpl, &lists, error)) return false;
    const struct forms forms = {chat_template_knows_developer(tmpl), lists};
    struct buf text;
    struct error err = {{0}};
    buf_init(&text, 0);
    buf_append_char(&text, '[');
    for (size_t i = 0; i < json_length(messages); i++) {
        if (i) buf_append_char(&text, ',');
        if (print_message(json_at(messages, i), &forms, &text)) continue;
        char param[48];
        snprintf(param, sizeof param, "messages[%zu].tool_calls", i);
        api_error_set(error, 400, invalid, "invalid_value", param,
                      "Invalid '%s': the 'arguments' of a call must be the text of a JSON object.", param);
        buf_free(&text);
        return false;
    }
    buf_append_char(&text, ']');
    enum status status = buf_ok(&text) ? json_read(text.data, text.length, plain, &err) : ST_NOMEM;
    buf_free(&text);
    if (status == ST_OK) return true;
    if (status == ST_NOMEM) return refuse_memory(error);
    api_error_set(error, 400, invalid, NULL, "messages", "Invalid 'messages': %s.", err.message);
    return false;
}

/* ---- rendering ---- */

static bool refuse_template(enum status status, const struct error *err, const char *param, struct api_error *error)
{
    if (status == ST_NOMEM) return refuse_memory(error);
    api_error_set(error, 400, invalid, NULL, param, "The chat template failed on this request: %s", err->message);
    return false;
}

static bool ends_with(const char *text, size_t length, const char *tail, size_t tail_length)
{
    return tail_length && length >= tail_length && memcmp(text + length - tail_length, tail, tail_length) == 0;
}

/* continue_final_message: what the template wrote after the last message's text is cut off. Where that text ends is
 * known from the spans (it is the last one that is content), so no search can hit an earlier message or the template's
 * words. A template may have stripped the text. */
static bool cut_after_final(const struct json *messages, struct buf *out, struct span_list *spans,
                            struct api_error *error)
{
    size_t length = 0, last = spans->count;
    const char *text = json_to_text(json_member(json_at(messages, json_length(messages) - 1), "content"), &length);
    while (last && spans->spans[last - 1].trusted) last--;
    size_t start = last > 1 ? spans->spans[last - 2].end : 0, end = last ? spans->spans[last - 1].end : 0;
    bool found = text && last && ends_with(out->data + start, end - start, text, length);
    if (!found && text && last) {
        while (length && strchr(" \t\r\n", text[length - 1])) length--;
        while (length && strchr(" \t\r\n", text[0])) text++, length--;
        found = ends_with(out->data + start, end - start, text, length);
    }
    if (!found) {
        api_error_set(error, 400, invalid, NULL, "continue_final_message",
                      "'continue_final_message' needs a final message with text that the chat template shows.");
        return false;
    }
    out->length = end;
    spans->count = last;
    return true;
}

static bool encode_rendered(const struct api_model *model, const struct chat_options *chat, const struct buf *text,
                            const struct span_list *spans, struct token_list *list, struct api_error *error)
{
    enum status status = tokenizer_encode(model->tokenizer, text->data ? text->data : "", text->length, spans->spans,
                                          spans->count, chat->add_special_tokens, list);
    if (status == ST_LIMIT && list->full) return api_refuse_context(model, API_CHAT, list->limit + 1, 0, error);
    if (status == ST_LIMIT) return api_refuse_work("messages", error);
    if (status != ST_OK) return refuse_memory(error);
    if (list->count) return true;
    api_error_set(error, 400, invalid, NULL, "messages", "Invalid 'messages': the chat template made an empty prompt.");
    return false;
}

static bool render(const struct api_model *model, const struct chat_template *tmpl, const struct chat_options *chat,
                   const struct json *messages, int64_t now_unix_s, struct token_list *list, struct api_error *error)
{
    char bos[128], eos[128];
    struct error err = {{0}};
    struct buf text;
    struct span_list spans = {0};
    tokenizer_copy_name(model->tokenizer, tokenizer_bos(model->tokenizer), bos, sizeof bos);
    tokenizer_copy_name(model->tokenizer, tokenizer_eos(model->tokenizer), eos, sizeof eos);
    const struct chat_input input = {.messages = messages,
                                     .tools = chat->tools,
                                     .documents = chat->documents,
                                     .arguments = chat->arguments,
                                     .bos_token = bos,
                                     .eos_token = eos,
                                     .add_generation_prompt = chat->add_generation_prompt,
                                     .now_unix_s = now_unix_s};
    buf_init(&text, 0);
    enum status status = chat_template_render(tmpl, &input, &text, &spans, &err);
    bool good =
        status == ST_OK ? buf_ok(&text) || refuse_memory(error) : refuse_template(status, &err, "messages", error);
    if (good && chat->continue_final_message) good = cut_after_final(messages, &text, &spans, error);
    if (good) good = encode_rendered(model, chat, &text, &spans, list, error);
    span_list_free(&spans);
    buf_free(&text);
    return good;
}

bool api_chat_tokens(const struct api_model *model, const struct chat_options *chat, int64_t now_unix_s,
                     struct token_list *list, struct api_error *error)
{
    struct json *plain = NULL;
    struct chat_template *own = NULL;
    struct error err = {{0}};
    if (chat->template_text) {
        enum status status = chat_template_compile(chat->template_text, chat->template_length, &own, &err);
        if (status != ST_OK) return refuse_template(status, &err, "chat_template", error);
    }
    const struct chat_template *tmpl = own ? own : model->chat_template;
    bool good = is_plain(chat->messages) || plain_messages(chat, tmpl, &plain, error);
    if (good) good = render(model, tmpl, chat, plain ? plain : chat->messages, now_unix_s, list, error);
    chat_template_destroy(own);
    json_release(plain);
    return good;
}
