/* Log-probabilities as the two dialects show them. There is an entry for each counted id, the stop id and ids whose
 * text a stop string withheld included (as vLLM does), so the list is as long as completion_tokens.
 *
 *   chat         {"content":[{"token","logprob","bytes","top_logprobs":[{"token","logprob","bytes"}]}]}
 *   completions  {"tokens":[],"token_logprobs":[],"top_logprobs":[{"text":logprob}],"text_offset":[]}
 *
 * `bytes` are the id's true bytes, also where they are no whole character and `token` shows U+FFFD. */
#include "server/api_call.h"

#include "runtime/base/utf8.h"

#include <string.h>

/* OpenAI's value for "very unlikely", where JSON has no word for minus infinity. */
static const float LOGPROB_MIN = -9999.0f;

static void append_logprob(struct buf *out, float logprob)
{
    buf_append_json_float(out, logprob >= LOGPROB_MIN ? logprob : LOGPROB_MIN);
}

/* The id's text as a JSON string. */
static void append_token(struct api_call *call, uint32_t id, struct buf *out)
{
    uint32_t length;
    const char *bytes = tokenizer_bytes(call->model->tokenizer, id, &length);
    if (call->ids_as_tokens) {
        buf_append_text(out, "\"token_id:");
        api_append_uint(out, id);
        buf_append_char(out, '"');
    } else if (utf8_valid(bytes, length, NULL)) {
        buf_append_json_string(out, bytes, length);
    } else {
        struct detokenizer whole;
        buf_clear(&call->token_text);
        detokenizer_init(&whole, call->model->tokenizer, true);
        detokenizer_push_bytes(&whole, bytes, length, &call->token_text);
        detokenizer_finish(&whole, &call->token_text);
        if (!buf_ok(&call->token_text)) out->failed = true;
        buf_append_json_string(out, buf_bytes(&call->token_text), call->token_text.length);
    }
}

static void append_entry(struct api_call *call, uint32_t id, float logprob, struct buf *out)
{
    uint32_t length;
    const char *bytes = tokenizer_bytes(call->model->tokenizer, id, &length);
    buf_append_text(out, "{\"token\":");
    append_token(call, id, out);
    buf_append_text(out, ",\"logprob\":");
    append_logprob(out, logprob);
    buf_append_text(out, ",\"bytes\":[");
    for (uint32_t i = 0; i < length; i++) {
        if (i) buf_append_char(out, ',');
        api_append_uint(out, (unsigned char)bytes[i]);
    }
    buf_append_char(out, ']');
}

/* How many of the best are shown: never more than was asked for. */
static uint32_t top_count(const struct api_call *call, const struct token_logprobs *score)
{
    uint32_t wanted = call->base.params.logprobs > 0 ? (uint32_t)call->base.params.logprobs : 0;
    return score->top_count < wanted ? score->top_count : wanted;
}

void api_logprobs_chat(struct api_call *call, const struct choice_view *view, uint32_t first, uint32_t last,
                       struct buf *out)
{
    const uint32_t *ids = view->choice->tokens + view->request->prompt_count;
    buf_append_text(out, "{\"content\":[");
    for (uint32_t i = first; i < last; i++) {
        const struct token_logprobs *score = &view->choice->logprobs[i];
        if (i > first) buf_append_char(out, ',');
        append_entry(call, ids[i], score->logprob, out);
        buf_append_text(out, ",\"top_logprobs\":[");
        for (uint32_t k = 0; k < top_count(call, score); k++) {
            if (k) buf_append_char(out, ',');
            append_entry(call, score->top_ids[k], score->top_logprobs[k], out);
            buf_append_char(out, '}');
        }
        buf_append_text(out, "]}");
    }
    buf_append_text(out, "],\"refusal\":null}");
}

/* Adds "text":logprob to an object whose keys stand at out->data[starts[..]]; a key that is there already (two ids can
 * have the same text) is left out, since readers take one of a pair or refuse both. */
static void append_pair(struct api_call *call, uint32_t id, float logprob, size_t *starts, uint32_t *count,
                        struct buf *out)
{
    size_t before = out->length;
    if (*count) buf_append_char(out, ',');
    size_t start = out->length;
    append_token(call, id, out);
    buf_append_char(out, ':');
    if (!buf_ok(out)) return;
    size_t length = out->length - start;
    for (uint32_t i = 0; i < *count; i++) {
        if (memcmp(out->data + starts[i], out->data + start, length) != 0) continue;
        out->length = before;
        return;
    }
    starts[(*count)++] = start;
    append_logprob(out, logprob);
}

/* The best and, where it is not among them, the id itself. */
static void append_top(struct api_call *call, uint32_t id, const struct token_logprobs *score, struct buf *out)
{
    size_t starts[LOGPROBS_MAX + 1];
    uint32_t count = 0;
    bool shown = false;
    buf_append_char(out, '{');
    for (uint32_t k = 0; k < top_count(call, score); k++) {
        append_pair(call, score->top_ids[k], score->top_logprobs[k], starts, &count, out);
        shown = shown || score->top_ids[k] == id;
    }
    if (!shown) append_pair(call, id, score->logprob, starts, &count, out);
    buf_append_char(out, '}');
}

/* Position i of the list: the prompt's ids first, if they are in it; its first one has no probability. */
static const struct token_logprobs *score_at(const struct choice_view *view, bool prompt, uint32_t i)
{
    uint32_t prompt_count = prompt ? view->request->prompt_count : 0;
    if (i < prompt_count) return i ? &view->request->prompt_logprobs[i] : NULL;
    return &view->choice->logprobs[i - prompt_count];
}

void api_logprobs_text(struct api_call *call, const struct choice_view *view, bool prompt, uint32_t first,
                       uint32_t last, struct buf *out)
{
    uint32_t prompt_count = view->request->prompt_count;
    const uint32_t *ids = view->choice->tokens + (prompt ? 0 : prompt_count);
    if (prompt) last += prompt_count;
    buf_append_text(out, "{\"tokens\":[");
    for (uint32_t i = first; i < last; i++) {
        if (i > first) buf_append_char(out, ',');
        append_token(call, ids[i], out);
    }
    buf_append_text(out, "],\"token_logprobs\":[");
    for (uint32_t i = first; i < last; i++) {
        const struct token_logprobs *score = score_at(view, prompt, i);
        if (i > first) buf_append_char(out, ',');
        if (score)
            append_logprob(out, score->logprob);
        else
            buf_append_text(out, "null");
    }
    buf_append_text(out, "],\"top_logprobs\":[");
    for (uint32_t i = first; i < last; i++) {
        const struct token_logprobs *score = score_at(view, prompt, i);
        if (i > first) buf_append_char(out, ',');
        if (score)
            append_top(call, ids[i], score, out);
        else
            buf_append_text(out, "null");
    }
    buf_append_text(out, "],\"text_offset\":[");
    buf_append(out, call->segment.offsets.data, call->segment.offsets.length);
    buf_append_text(out, "]}");
}
