/* Answers: chunks of a stream, pulled when the socket is writable, and whole bodies; see api.h.
 *
 * Order in a stream (api-and-ecosystem.md, section 2): per choice the role with its first token, then text as it comes,
 * choices mixed by index, then one chunk with finish_reason; then usage, if asked; then [DONE]. Without
 * log-probabilities all new text of a choice is one chunk; with them each token is one.
 *
 * Events only mark a view dirty; rendering walks over the dirty views. The start of every chunk was made once
 * (api_prepare.c), so a chunk costs a few copies. Scratch memory lives in the call and is reused. */
#include "server/api_call.h"

#include "runtime/base/check.h"

#include <math.h>
#include <string.h>

/* ---- events ---- */

static void mark_dirty(struct api_call *call, struct choice_view *view)
{
    if (view->dirty) return;
    view->dirty = true;
    call->dirty[call->dirty_count++] = (uint32_t)(view - call->views);
}

/* Everything of a choice that has ended is the server's to read. */
static void take_final(struct api_call *call, struct choice_view *view)
{
    const struct choice *choice = view->choice;
    view->output_count = choice->output_count;
    view->text_bytes = choice->text_bytes;
    view->reasoning_count = choice->reasoning_count;
    view->finish = choice->finish == FINISH_NONE ? FINISH_ERROR : choice->finish;
    mark_dirty(call, view);
}

void api_call_event(struct api_call *call, const struct event *event)
{
    CHECK(event->request >= call->requests && event->request < call->requests + call->requests_count);
    uint32_t request_idx = (uint32_t)(event->request - call->requests), n = event->request->choices_count;
    struct choice_view *views = call->views + request_idx * n;
    switch (event->kind) {
    case CHOICE_TOKENS: {
        CHECK(event->choice < n);
        struct choice_view *view = &views[event->choice];
        view->output_count = event->output_count;
        view->text_bytes = event->text_bytes;
        view->reasoning_count = event->reasoning_count;
        view->finish = event->finish;
        mark_dirty(call, view);
        break;
    }
    case REQUEST_DONE:
        for (uint32_t i = 0; i < n; i++) take_final(call, &views[i]);
        call->requests_done++;
        break;
    case REQUEST_SCHEDULED:
    case REQUEST_REFUSED: break;
    }
}

/* ---- usage ---- */

struct usage api_call_usage(const struct api_call *call)
{
    struct usage sum = {.cause = CAUSE_STOP};
    for (uint32_t i = 0; i < call->requests_count; i++) {
        const struct usage *one = &call->requests[i].usage;
        if (one->cause > sum.cause) sum.cause = one->cause; /* the worst of them */
        sum.mismatch = sum.mismatch || one->mismatch;
        sum.in_total += one->in_total;
        sum.in_hit += one->in_hit;
        sum.out += one->out;
        sum.out_reasoning += one->out_reasoning;
        sum.out_trimmed += one->out_trimmed;
        sum.choices += one->choices;
        sum.recomputed += one->recomputed;
        sum.preemptions += one->preemptions;
    }
    return sum;
}

static void append_usage(uint32_t prompt, uint32_t completion, struct buf *out)
{
    buf_append_text(out, "{\"prompt_tokens\":");
    api_append_uint(out, prompt);
    buf_append_text(out, ",\"completion_tokens\":");
    api_append_uint(out, completion);
    buf_append_text(out, ",\"total_tokens\":");
    api_append_uint(out, (uint64_t)prompt + completion);
}

static void append_final_usage(const struct api_call *call, struct buf *out)
{
    struct usage usage = api_call_usage(call);
    append_usage(usage.in_total, usage.out, out);
    buf_append_text(out, ",\"prompt_tokens_details\":{\"cached_tokens\":");
    api_append_uint(out, usage.in_hit);
    buf_append_text(out, "},\"completion_tokens_details\":{\"reasoning_tokens\":");
    api_append_uint(out, usage.out_reasoning);
    buf_append_text(out, ",\"rejected_prediction_tokens\":0}");
    if (call->has_energy) buf_append_format(out, ",\"energy_joules\":%.6f", call->joules);
    buf_append_char(out, '}');
}

void api_call_energy(struct api_call *call, double joules)
{
    call->has_energy = isfinite(joules) && joules >= 0;
    call->joules = joules;
}

/* continuous_usage_stats: of what has been rendered so far, over all choices. */
static void append_running_usage(const struct api_call *call, struct buf *out)
{
    uint32_t prompt = 0, completion = 0;
    for (uint32_t i = 0; i < call->requests_count; i++) prompt += call->requests[i].prompt_count;
    for (uint32_t i = 0; i < call->views_count; i++) completion += call->views[i].cursor;
    append_usage(prompt, completion, out);
    buf_append_char(out, '}');
}

/* ---- pieces of a choice ---- */

/* finish_reason knows four words only (typed clients); what they cannot say stands in stop_reason, and for who pays in
 * finish_details as well: a member of a choice that clients made from OpenAI's schema keep or pass over. */
static void append_finish(const struct api_call *call, const struct choice_view *view, struct buf *out)
{
    const struct request *request = view->request;
    const struct choice *choice = view->choice;
    buf_append_text(out, view->finish == FINISH_STOP ? ",\"finish_reason\":\"stop\"" : ",\"finish_reason\":\"length\"");
    if (view->finish == FINISH_QUOTA || view->finish == FINISH_ACCOUNT) {
        const char *why = view->finish == FINISH_QUOTA ? "quota_exhausted" : "account_stopped";
        buf_append_format(out, ",\"stop_reason\":\"%s\",\"finish_details\":{\"type\":\"%s\"}", why, why);
        return;
    }
    buf_append_text(out, ",\"stop_reason\":");
    if (view->finish == FINISH_CANCELED) {
        buf_append_text(out, "\"canceled\"");
        return;
    }
    if (view->finish == FINISH_ERROR) {
        buf_append_text(out, "\"error\"");
        return;
    }
    if (view->finish == FINISH_STOP && choice->stop_string < request->stops_count) {
        const struct stop_string *stop = &request->stops[choice->stop_string];
        buf_append_json_string(out, stop->bytes, stop->length);
        return;
    }
    for (uint32_t i = 0; view->finish == FINISH_STOP && i < request->stop_ids_count; i++) {
        if (request->stop_ids[i] != choice->stop_id) continue;
        api_append_uint(out, choice->stop_id);
        return;
    }
    buf_append_text(out, "null"); /* the model's own end, or length */
    (void)call;
}

static void append_text(const char *key, const struct buf *text, struct buf *out)
{
    buf_append_text(out, key);
    buf_append_json_string(out, buf_bytes(text), text->length);
    if (!buf_ok(text)) out->failed = true;
}

static void append_logprobs(struct api_call *call, const struct choice_view *view, bool prompt, uint32_t first,
                            uint32_t last, struct buf *out)
{
    bool none = call->base.params.logprobs < 0 || (first == last && !prompt);
    buf_append_text(out, ",\"logprobs\":");
    if (none)
        buf_append_text(out, "null");
    else if (call->kind == API_CHAT)
        api_logprobs_chat(call, view, first, last, out);
    else
        api_logprobs_text(call, view, prompt, first, last, out);
    if (!buf_ok(&call->segment.offsets)) out->failed = true;
}

/* ---- streams ---- */

static void open_chunk(const struct api_call *call, const struct choice_view *view, struct buf *out)
{
    buf_append(out, "data: ", 6);
    buf_append(out, call->prefix, call->prefix_length);
    buf_append_text(out, "{\"index\":");
    api_append_uint(out, view->idx);
}

/* Ids passed since the last chunk of this choice. */
static void append_new_ids(const struct api_call *call, struct choice_view *view, struct buf *out)
{
    if (!call->return_ids) return;
    buf_append_text(out, ",\"token_ids\":");
    api_append_ids(out, view->choice->tokens + view->request->prompt_count + view->ids_sent,
                   view->cursor - view->ids_sent);
    view->ids_sent = view->cursor;
}

static void close_chunk(const struct api_call *call, struct buf *out)
{
    buf_append_text(out, "}]");
    if (call->continuous_usage) {
        buf_append_text(out, ",\"usage\":");
        append_running_usage(call, out);
    } else if (call->include_usage) {
        buf_append_text(out, ",\"usage\":null");
    }
    buf_append(out, "}\n\n", 3);
}

static void stream_role(struct api_call *call, struct choice_view *view, struct buf *out)
{
    open_chunk(call, view, out);
    buf_append_text(out,
                    ",\"delta\":{\"role\":\"assistant\",\"content\":\"\"},\"logprobs\":null,\"finish_reason\":null");
    if (call->return_ids) {
        buf_append_text(out, ",\"prompt_token_ids\":");
        api_append_ids(out, view->request->prompt, view->request->prompt_count);
    }
    close_chunk(call, out);
}

/* One chunk of what the segment holds. */
static void stream_segment(struct api_call *call, struct choice_view *view, bool prompt, struct buf *out)
{
    const struct segment *segment = &call->segment;
    open_chunk(call, view, out);
    if (call->kind == API_COMPLETIONS) {
        append_text(",\"text\":", &segment->text, out);
    } else if (segment->reasoning && !call->include_reasoning) {
        buf_append_text(out, ",\"delta\":{}");
    } else {
        append_text(segment->reasoning ? ",\"delta\":{\"reasoning\":" : ",\"delta\":{\"content\":", &segment->text,
                    out);
        buf_append_char(out, '}');
    }
    append_logprobs(call, view, prompt, segment->first, segment->last, out);
    buf_append_text(out, ",\"finish_reason\":null");
    if (call->return_ids && call->kind == API_COMPLETIONS && !view->opened) {
        buf_append_text(out, ",\"prompt_token_ids\":");
        api_append_ids(out, view->request->prompt, view->request->prompt_count);
    }
    append_new_ids(call, view, out);
    close_chunk(call, out);
}

static void stream_finish(struct api_call *call, struct choice_view *view, struct buf *out)
{
    open_chunk(call, view, out);
    buf_append_text(out, call->kind == API_CHAT ? ",\"delta\":{}" : ",\"text\":\"\"");
    buf_append_text(out, ",\"logprobs\":null");
    append_finish(call, view, out);
    append_new_ids(call, view, out);
    close_chunk(call, out);
    view->closed = true;
}

static void stream_opening(struct api_call *call, struct choice_view *view, struct buf *out)
{
    if (view->opened) return;
    if (call->kind == API_CHAT) {
        stream_role(call, view, out);
    } else if (call->echo) {
        api_view_echo(call, view);
        stream_segment(call, view, call->base.params.logprobs >= 0, out);
    } else if (call->return_ids) {
        buf_clear(&call->segment.text);
        call->segment.first = call->segment.last = 0;
        stream_segment(call, view, false, out);
    }
    view->opened = true;
}

static void stream_view(struct api_call *call, struct choice_view *view, struct buf *out)
{
    struct segment *segment = &call->segment;
    bool each_token = call->base.params.logprobs >= 0;
    if (view->closed || (!view->output_count && view->finish == FINISH_NONE)) return;
    stream_opening(call, view, out);
    do {
        api_view_step(call, view, each_token);
        bool hidden = segment->reasoning && !call->include_reasoning;
        bool text = segment->text.length && !hidden;
        if (text || (each_token && segment->last > segment->first) || !buf_ok(&segment->text))
            stream_segment(call, view, false, out);
    } while (segment->more && buf_ok(out));
    if (view->finish != FINISH_NONE && buf_ok(out)) stream_finish(call, view, out);
}

void api_call_render(struct api_call *call, struct buf *out)
{
    CHECK(call->stream);
    for (uint32_t i = 0; i < call->dirty_count; i++) {
        struct choice_view *view = &call->views[call->dirty[i]];
        view->dirty = false;
        stream_view(call, view, out);
    }
    call->dirty_count = 0;
}

static void stream_usage(const struct api_call *call, struct buf *out)
{
    buf_append(out, "data: ", 6);
    buf_append(out, call->prefix, call->prefix_length);
    buf_append_text(out, "],\"usage\":");
    append_final_usage(call, out);
    buf_append(out, "}\n\n", 3);
}

/* ---- bodies ---- */

/* All text of a view; a chat's reasoning goes to *reasoning. Leaves the segment with the offsets of all ids. */
static void whole_chat(struct api_call *call, struct choice_view *view, struct buf *content, struct buf *reasoning)
{
    struct segment *segment = &call->segment;
    do {
        api_view_step(call, view, false);
        buf_append(segment->reasoning ? reasoning : content, segment->text.data, segment->text.length);
        if (!buf_ok(&segment->text)) content->failed = true;
    } while (segment->more && buf_ok(content));
}

static void body_chat(struct api_call *call, struct choice_view *view, struct buf *out)
{
    struct buf content, reasoning;
    buf_init(&content, 0);
    buf_init(&reasoning, 0);
    whole_chat(call, view, &content, &reasoning);
    append_text(",\"message\":{\"role\":\"assistant\",\"content\":", &content, out);
    buf_append_text(out, ",\"refusal\":null");
    if (reasoning.length && call->include_reasoning) append_text(",\"reasoning\":", &reasoning, out);
    if (!buf_ok(&reasoning)) out->failed = true;
    buf_append_char(out, '}');
    append_logprobs(call, view, false, 0, view->output_count, out);
    buf_free(&reasoning);
    buf_free(&content);
}

static void body_text(struct api_call *call, struct choice_view *view, struct buf *out)
{
    struct segment *segment = &call->segment;
    struct buf echoed, offsets;
    buf_init(&echoed, 0);
    buf_init(&offsets, 0);
    if (call->echo) {
        api_view_echo(call, view);
        buf_append(&echoed, segment->text.data, segment->text.length);
        buf_append(&offsets, segment->offsets.data, segment->offsets.length);
        if (!buf_ok(&segment->text) || !buf_ok(&segment->offsets)) out->failed = true;
    }
    api_view_step(call, view, false); /* completions have one kind of text: one step takes all */
    buf_append_text(out, ",\"text\":\"");
    buf_append_json_escaped(out, buf_bytes(&echoed), echoed.length);
    buf_append_json_escaped(out, buf_bytes(&segment->text), segment->text.length);
    buf_append_char(out, '"');
    if (offsets.length) { /* the prompt's stand before */
        if (segment->offsets.length) buf_append_char(&offsets, ',');
        buf_append(&offsets, segment->offsets.data, segment->offsets.length);
        buf_clear(&segment->offsets);
        buf_append(&segment->offsets, offsets.data, offsets.length);
    }
    if (!buf_ok(&echoed) || !buf_ok(&offsets) || !buf_ok(&segment->text)) out->failed = true;
    append_logprobs(call, view, call->echo && call->base.params.logprobs >= 0, 0, view->output_count, out);
    buf_free(&offsets);
    buf_free(&echoed);
}

static void append_body(struct api_call *call, struct buf *out)
{
    buf_append(out, call->prefix, call->prefix_length);
    for (uint32_t i = 0; i < call->views_count && buf_ok(out); i++) {
        struct choice_view *view = &call->views[i];
        if (i) buf_append_char(out, ',');
        buf_append_text(out, "{\"index\":");
        api_append_uint(out, view->idx);
        if (call->kind == API_CHAT)
            body_chat(call, view, out);
        else
            body_text(call, view, out);
        append_finish(call, view, out);
        if (call->return_ids) {
            if (call->kind == API_COMPLETIONS) {
                buf_append_text(out, ",\"prompt_token_ids\":");
                api_append_ids(out, view->request->prompt, view->request->prompt_count);
            }
            append_new_ids(call, view, out);
        }
        buf_append_char(out, '}');
    }
    buf_append_text(out, "],\"usage\":");
    append_final_usage(call, out);
    if (call->return_ids && call->kind == API_CHAT) {
        buf_append_text(out, ",\"prompt_token_ids\":");
        api_append_ids(out, call->requests[0].prompt, call->requests[0].prompt_count);
    }
    buf_append_char(out, '}');
}

void api_call_finish(struct api_call *call, struct buf *out)
{
    CHECK_EQ(call->requests_done, call->requests_count);
    if (!call->stream) {
        append_body(call, out);
        return;
    }
    api_call_render(call, out);
    if (call->include_usage) stream_usage(call, out);
    buf_append_text(out, "data: [DONE]\n\n");
}

void api_call_fail(struct api_call *call, const struct api_error *error, struct buf *out)
{
    if (call->stream && call->include_usage && call->requests_done == call->requests_count) stream_usage(call, out);
    buf_append_text(out, "data: ");
    api_error_body(error, out);
    buf_append_text(out, "\n\n");
}
