/* What of a choice may be shown, step by step: ids to text, text to reasoning or content.
 *
 * The engine says how many ids there are and how many bytes of their text may be shown (text_bytes: without special
 * tokens, stop strings and what could become one). A view walks over ids and bytes together:
 *
 *   ids     | Hel | lo | <eot> |          cursor, cursor_bytes: the next byte to take
 *   bytes   | 3   | 2  | 0     |          taken_bytes <= text_bytes
 *
 * Bytes pass through the detokenizer, which holds back the beginning of a character; so any cutting of the same events
 * joins to the same text. In chats the model's reasoning markers switch between two texts, and are in neither.
 *
 * V1  an id is passed once, when all its bytes are taken, or when the choice has ended and its text is cut off
 * V2  taken_bytes <= text_bytes, and equal at the end
 * V3  text is always valid UTF-8, also where one text gives way to the other */
#include "server/api_call.h"

void api_append_uint(struct buf *out, uint64_t value)
{
    char digits[20];
    size_t at = sizeof digits;
    do digits[--at] = (char)('0' + value % 10);
    while (value /= 10);
    buf_append(out, digits + at, sizeof digits - at);
}

void api_append_ids(struct buf *out, const uint32_t *ids, uint32_t count)
{
    buf_append_char(out, '[');
    for (uint32_t i = 0; i < count; i++) {
        if (i) buf_append_char(out, ',');
        api_append_uint(out, ids[i]);
    }
    buf_append_char(out, ']');
}

/* A prompt may end inside reasoning: some templates write the start marker themselves. */
static bool prompt_reasons(const struct api_model *model, const uint32_t *prompt, uint32_t count)
{
    if (model->think_start_id == VOCAB_NO_ID || model->think_end_id == VOCAB_NO_ID) return false;
    while (count--) {
        if (prompt[count] == model->think_end_id) return false;
        if (prompt[count] == model->think_start_id) return true;
    }
    return false;
}

void api_view_open(struct api_call *call, struct choice_view *view)
{
    detokenizer_init(&view->detokenizer, call->model->tokenizer, view->request->keep_special);
    view->in_reasoning =
        call->kind == API_CHAT && prompt_reasons(call->model, view->choice->tokens, view->request->prompt_count);
}

/* Characters of valid UTF-8. */
static uint64_t count_chars(const char *text, size_t length)
{
    uint64_t count = 0;
    for (size_t i = 0; i < length; i++) count += ((unsigned char)text[i] & 0xc0) != 0x80;
    return count;
}

/* The bytes of an id as text_bytes counts them. */
static const char *shown_bytes(const struct api_call *call, const struct choice_view *view, uint32_t id,
                               uint32_t *length)
{
    const char *bytes = tokenizer_bytes(call->model->tokenizer, id, length);
    if (!view->request->keep_special && tokenizer_is_special(call->model->tokenizer, id)) *length = 0;
    return bytes;
}

/* Brings the count of shown characters up to the end of the segment's text. */
static void count_shown(struct segment *segment, struct choice_view *view)
{
    view->shown_chars +=
        count_chars(buf_bytes(&segment->text) + segment->counted_bytes, segment->text.length - segment->counted_bytes);
    segment->counted_bytes = segment->text.length;
}

/* The next id's text begins here. */
static void note_offset(struct api_call *call, struct choice_view *view)
{
    struct segment *segment = &call->segment;
    if (call->kind != API_COMPLETIONS || call->base.params.logprobs < 0) return;
    count_shown(segment, view);
    if (segment->offsets.length) buf_append_char(&segment->offsets, ',');
    api_append_uint(&segment->offsets, view->shown_chars);
}

static void push(struct choice_view *view, const char *bytes, uint32_t length, struct buf *text)
{
    detokenizer_push_bytes(&view->detokenizer, bytes, length, text);
}

static void begin_segment(struct segment *segment, const struct choice_view *view)
{
    buf_clear(&segment->text);
    buf_clear(&segment->offsets);
    segment->first = segment->last = view->cursor;
    segment->reasoning = view->in_reasoning;
    segment->more = false;
    segment->counted_bytes = 0;
}

/* A marker of a chat's reasoning: its bytes count, its text is not shown. True when the kind of text changes. */
static bool pass_marker(const struct api_call *call, struct choice_view *view, uint32_t id, struct buf *text)
{
    bool starts = id == call->model->think_start_id;
    bool turns = starts != view->in_reasoning;
    if (turns) detokenizer_finish(&view->detokenizer, text); /* V3 */
    view->in_reasoning = starts;
    view->cursor++;
    return turns;
}

/* Takes what may be taken of the id at the cursor. False: nothing more can be taken now. */
static bool take_id(struct api_call *call, struct choice_view *view, bool *turned)
{
    struct segment *segment = &call->segment;
    const struct api_model *model = call->model;
    uint32_t id = view->choice->tokens[view->request->prompt_count + view->cursor], length;
    const char *bytes = shown_bytes(call, view, id, &length);
    uint32_t left = view->text_bytes > view->taken_bytes ? view->text_bytes - view->taken_bytes : 0;
    uint32_t wanted = length - view->cursor_bytes;
    if (call->kind == API_CHAT && (id == model->think_start_id || id == model->think_end_id)) {
        if (wanted > left) return false;
        view->taken_bytes += wanted;
        *turned = pass_marker(call, view, id, &segment->text);
        return true;
    }
    uint32_t take = wanted < left ? wanted : left;
    if (wanted && !take) return false;
    if (!view->cursor_bytes) note_offset(call, view);
    push(view, bytes + view->cursor_bytes, take, &segment->text);
    view->taken_bytes += take;
    view->cursor_bytes += take;
    if (take < wanted) return false;
    view->cursor++;
    view->cursor_bytes = 0;
    return true;
}

/* The choice has ended: ids whose text was cut off are passed, and what the detokenizer held becomes text. */
static void take_rest(struct api_call *call, struct choice_view *view, bool one_token)
{
    struct segment *segment = &call->segment;
    view->taken_bytes = view->text_bytes; /* what is left of them can only be the beginning of a marker */
    while (view->cursor < view->output_count && !(one_token && view->cursor > segment->first)) {
        if (!view->cursor_bytes) note_offset(call, view);
        view->cursor++;
        view->cursor_bytes = 0;
    }
    if (view->cursor == view->output_count) detokenizer_finish(&view->detokenizer, &segment->text);
}

void api_view_step(struct api_call *call, struct choice_view *view, bool one_token)
{
    struct segment *segment = &call->segment;
    bool turned = false, blocked = false;
    begin_segment(segment, view);
    while (view->cursor < view->output_count && !blocked && !turned && !(one_token && view->cursor > segment->first))
        blocked = !take_id(call, view, &turned);
    if (view->finish != FINISH_NONE && !turned && (blocked || view->cursor == view->output_count))
        take_rest(call, view, one_token);
    segment->last = view->cursor;
    segment->more = view->cursor < view->output_count && (!blocked || view->finish != FINISH_NONE);
    count_shown(segment, view);
}

void api_view_echo(struct api_call *call, struct choice_view *view)
{
    struct segment *segment = &call->segment;
    begin_segment(segment, view);
    for (uint32_t i = 0; i < view->request->prompt_count; i++) {
        uint32_t length;
        const char *bytes = shown_bytes(call, view, view->choice->tokens[i], &length);
        note_offset(call, view);
        push(view, bytes, length, &segment->text);
    }
    detokenizer_finish(&view->detokenizer, &segment->text);
    count_shown(segment, view);
}
