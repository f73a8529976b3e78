/* See relay_answer.h. Server-sent events as WHATWG's HTML standard reads them (9.2.6): lines end with LF, CR LF or CR,
 * data lines of an event are joined, comments and other fields are dropped. */
#include "server/upstream/relay_answer.h"

#include "runtime/base/json.h"
#include "runtime/base/limits.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

enum { TOKENS_MAX = 9000000 /* of a request: record.h */ };

void relay_answer_init(struct relay_answer *answer)
{
    *answer = (struct relay_answer){.deltas = 0};
    buf_init(&answer->text, 4 * (size_t)limits.upstream_answer_bytes);
    buf_init(&answer->line, 0);
    buf_init(&answer->event, 0);
}

void relay_answer_free(struct relay_answer *answer)
{
    buf_free(&answer->text);
    buf_free(&answer->line);
    buf_free(&answer->event);
}

/* ---- JSON ---- */

/* False: no number of tokens. Absent: untouched. */
static bool read_count(const struct json *object, const char *key, int64_t max, uint32_t *out)
{
    const struct json *value = json_member(object, key);
    if (json_kind(value) == JSON_KIND_NULL) return true;
    if (json_kind(value) != JSON_KIND_INT || json_to_int(value) < 0 || json_to_int(value) > max) return false;
    *out = (uint32_t)json_to_int(value);
    return true;
}

static bool read_usage(struct relay_answer *answer, const struct json *usage)
{
    struct relay_counts counts = {0};
    if (json_kind(usage) == JSON_KIND_NULL) return true;
    if (json_kind(json_member(usage, "prompt_tokens")) != JSON_KIND_INT ||
        !read_count(usage, "prompt_tokens", TOKENS_MAX, &counts.in_total) ||
        !read_count(usage, "completion_tokens", TOKENS_MAX - counts.in_total, &counts.out))
        return false;
    const struct json *in = json_member(usage, "prompt_tokens_details");
    const struct json *out = json_member(usage, "completion_tokens_details");
    if (!read_count(in, "cached_tokens", counts.in_total, &counts.in_hit) ||
        !read_count(out, "reasoning_tokens", counts.out, &counts.out_reasoning))
        return false;
    answer->counts = counts;
    answer->has_usage = true;
    return true;
}

static bool says_something(const struct json *value)
{
    size_t length = 0;
    if (json_kind(value) == JSON_KIND_TEXT) return json_to_text(value, &length) && length > 0;
    return json_length(value) > 0;
}

static bool has_delta(const struct json *choice)
{
    static const char *const keys[] = {"content",    "reasoning_content", "reasoning",
                                       "tool_calls", "refusal",           "function_call"};
    const struct json *delta = json_member(choice, "delta");
    if (says_something(json_member(choice, "text"))) return true;
    for (size_t i = 0; i < sizeof keys / sizeof *keys; i++)
        if (says_something(json_member(delta, keys[i]))) return true;
    return false;
}

static bool read_choices(struct relay_answer *answer, const struct json *choices)
{
    for (size_t i = 0; i < json_length(choices); i++) {
        const struct json *choice = json_at(choices, i);
        const char *reason = json_to_text(json_member(choice, "finish_reason"), NULL);
        if (json_kind(choice) != JSON_KIND_OBJECT) return false;
        if (has_delta(choice)) answer->deltas++;
        if (!reason) continue;
        answer->finished++;
        if (strcmp(reason, "length") == 0) answer->has_length_end = true;
    }
    return true;
}

/* The object with our names, without usage, and without its last brace. */
static void print_object(const struct relay_answer *answer, const struct json *root, struct buf *out)
{
    void *iterator = NULL;
    const char *key;
    const struct json *value;
    buf_append_text(out, "{\"id\":");
    buf_append_json_string(out, answer->id, strlen(answer->id));
    while (json_iterate(root, &iterator, &key, &value)) {
        bool is_model = strcmp(key, "model") == 0;
        if (strcmp(key, "id") == 0 || strcmp(key, "usage") == 0) continue;
        buf_append_char(out, ',');
        buf_append_json_string(out, key, strlen(key));
        buf_append_char(out, ':');
        if (is_model)
            buf_append_json_string(out, answer->model, strlen(answer->model));
        else
            json_print(value, out);
    }
}

static enum answer_verdict judge(const struct relay_answer *answer, const struct json *root)
{
    (void)answer;
    if (json_kind(root) != JSON_KIND_OBJECT) return ANSWER_GARBAGE;
    if (json_kind(json_member(root, "error")) != JSON_KIND_NULL) return ANSWER_ERROR;
    return json_kind(json_member(root, "choices")) == JSON_KIND_LIST ? ANSWER_FINE : ANSWER_GARBAGE;
}

static enum answer_verdict read_object(struct relay_answer *answer, const char *text, size_t length, struct json **root)
{
    struct error err;
    enum status status = json_read(text, length, root, &err);
    if (status != ST_OK) return status == ST_NOMEM ? ANSWER_NO_MEMORY : ANSWER_GARBAGE;
    enum answer_verdict verdict = judge(answer, *root);
    if (verdict == ANSWER_FINE &&
        (!read_usage(answer, json_member(*root, "usage")) || !read_choices(answer, json_member(*root, "choices"))))
        verdict = ANSWER_GARBAGE;
    if (verdict != ANSWER_FINE) json_release(*root);
    return verdict;
}

/* ---- streams ---- */

static enum answer_verdict take_event(struct relay_answer *answer)
{
    struct json *root;
    const char *text = answer->event.data ? answer->event.data : "";
    if (answer->over) return ANSWER_FINE;
    if (answer->event.length == 6 && memcmp(text, "[DONE]", 6) == 0) {
        answer->over = true;
        return ANSWER_FINE;
    }
    enum answer_verdict verdict = read_object(answer, text, answer->event.length, &root);
    if (verdict != ANSWER_FINE) return verdict;
    bool only_usage =
        json_length(json_member(root, "choices")) == 0 && json_kind(json_member(root, "usage")) == JSON_KIND_OBJECT;
    if (!only_usage) {
        buf_append_text(&answer->text, "data: ");
        print_object(answer, root, &answer->text);
        buf_append_text(&answer->text, "}\n\n");
    }
    json_release(root);
    return buf_ok(&answer->text) ? ANSWER_FINE : ANSWER_TOO_LONG;
}

static enum answer_verdict take_line(struct relay_answer *answer)
{
    struct buf *line = &answer->line;
    enum answer_verdict verdict = ANSWER_FINE;
    if (line->length == 0) {
        if (answer->has_data) verdict = take_event(answer);
        answer->has_data = false;
        buf_clear(&answer->event);
        return verdict;
    }
    if (line->length >= 5 && memcmp(line->data, "data:", 5) == 0) {
        size_t skip = line->length > 5 && line->data[5] == ' ' ? 6 : 5;
        if (answer->has_data) buf_append_char(&answer->event, '\n');
        buf_append(&answer->event, line->data + skip, line->length - skip);
        answer->has_data = true;
        if (!buf_ok(&answer->event)) verdict = ANSWER_NO_MEMORY;
    }
    buf_clear(line);
    return verdict;
}

static enum answer_verdict feed_stream(struct relay_answer *answer, const char *bytes, size_t length)
{
    while (length > 0) {
        if (answer->skip_lf && *bytes == '\n') {
            bytes++, length--;
            answer->skip_lf = false;
            continue;
        }
        answer->skip_lf = false;
        size_t part = 0;
        while (part < length && bytes[part] != '\n' && bytes[part] != '\r') part++;
        if (answer->line.length + answer->event.length + part > limits.upstream_event_bytes) return ANSWER_TOO_LONG;
        buf_append(&answer->line, bytes, part);
        if (!buf_ok(&answer->line)) return ANSWER_NO_MEMORY;
        if (part == length) return ANSWER_FINE;
        answer->skip_lf = bytes[part] == '\r';
        enum answer_verdict verdict = take_line(answer);
        if (verdict != ANSWER_FINE) return verdict;
        bytes += part + 1;
        length -= part + 1;
    }
    return ANSWER_FINE;
}

enum answer_verdict relay_answer_feed(struct relay_answer *answer, const char *bytes, size_t length)
{
    if (answer->stream) return feed_stream(answer, bytes, length);
    if (answer->event.length + length > limits.upstream_answer_bytes) return ANSWER_TOO_LONG;
    buf_append(&answer->event, bytes, length);
    return buf_ok(&answer->event) ? ANSWER_FINE : ANSWER_NO_MEMORY;
}

enum answer_verdict relay_answer_end(struct relay_answer *answer)
{
    if (answer->stream) {
        if (!answer->over) return ANSWER_CUT;
        return answer->has_usage ? ANSWER_FINE : ANSWER_NO_USAGE;
    }
    struct json *root;
    enum answer_verdict verdict =
        read_object(answer, answer->event.data ? answer->event.data : "", answer->event.length, &root);
    if (verdict != ANSWER_FINE) return verdict;
    if (json_length(json_member(root, "choices")) == 0)
        verdict = ANSWER_GARBAGE;
    else if (!answer->has_usage)
        verdict = ANSWER_NO_USAGE;
    else
        print_object(answer, root, &answer->text);
    json_release(root);
    return verdict == ANSWER_FINE && !buf_ok(&answer->text) ? ANSWER_TOO_LONG : verdict;
}

static void append_usage(const struct usage *usage, struct buf *out)
{
    buf_append_format(out,
                      "\"usage\":{\"prompt_tokens\":%" PRIu32 ",\"total_tokens\":%" PRIu64
                      ",\"completion_tokens\":%" PRIu32 ",\"prompt_tokens_details\":{\"cached_tokens\":%" PRIu32
                      "},\"completion_tokens_details\":{\"reasoning_tokens\":%" PRIu32 "}}",
                      usage->in_total, (uint64_t)usage->in_total + usage->out, usage->out, usage->in_hit,
                      usage->out_reasoning);
}

void relay_answer_close_text(const struct relay_answer *answer, const struct usage *usage, struct buf *out)
{
    if (!answer->stream) {
        buf_append_char(out, ',');
        append_usage(usage, out);
        buf_append_char(out, '}');
        return;
    }
    if (answer->include_usage) {
        buf_append_text(out, "data: {\"id\":");
        buf_append_json_string(out, answer->id, strlen(answer->id));
        buf_append_format(out, ",\"object\":\"%s\",\"created\":%" PRId64 ",\"model\":",
                          answer->kind == API_CHAT ? "chat.completion.chunk" : "text_completion",
                          answer->created_unix_s);
        buf_append_json_string(out, answer->model, strlen(answer->model));
        buf_append_text(out, ",\"choices\":[],");
        append_usage(usage, out);
        buf_append_text(out, "}\n\n");
    }
    buf_append_text(out, "data: [DONE]\n\n");
}

void relay_error_message(const char *body, size_t length, char *out, size_t size_bytes)
{
    struct json *root;
    struct error err;
    out[0] = '\0';
    if (json_read(body, length, &root, &err) != ST_OK) return;
    const struct json *error = json_member(root, "error");
    const char *text = json_to_text(json_kind(error) == JSON_KIND_TEXT ? error : json_member(error, "message"), NULL);
    if (text) {
        size_t used = strlen(text) < size_bytes ? strlen(text) : size_bytes - 1;
        memcpy(out, text, used); /* a character cut in two is mended where JSON is made of it */
        out[used] = '\0';
    }
    json_release(root);
}
