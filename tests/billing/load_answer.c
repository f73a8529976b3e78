/* See load_answer.h. Text in an answer cannot be taken for a member: its quotes are escaped. */
#include "tests/billing/load_answer.h"

#include "runtime/base/hash.h"

#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

void load_answer_begin(struct load_answer *answer)
{
    struct buf raw = answer->raw;
    buf_clear(&raw);
    *answer = (struct load_answer){.raw = raw};
}

static const char *find(const char *from, const char *end, const char *text)
{
    return from && from < end ? memmem(from, (size_t)(end - from), text, strlen(text)) : NULL;
}

/* A NUL behind the bytes, so that strtoul stops. */
static bool end_text(struct buf *buf)
{
    if (!buf_reserve(buf, 1)) return false;
    buf->data[buf->length] = '\0';
    return true;
}

static bool take_head(struct load_answer *answer)
{
    const char *start = answer->raw.data, *end = start + answer->raw.length;
    const char *stop = find(start, end, "\r\n\r\n");
    if (!stop) return answer->raw.length < 16384;
    if (answer->raw.length < 12 || memcmp(start, "HTTP/1.1 ", 9) != 0) return false;
    answer->status = (uint16_t)strtoul(start + 9, NULL, 10);
    answer->head_bytes = answer->chunk_at = (size_t)(stop - start) + 4;
    const char *length = find(start, stop, "\r\ncontent-length: ");
    answer->chunked = find(start, stop, "\r\ntransfer-encoding: chunked") != NULL;
    answer->closes = find(start, stop + 2, "\r\nconnection: close") != NULL;
    answer->sized = length != NULL;
    if (length) answer->body_bytes = strtoul(length + 18, NULL, 10);
    return true;
}

static void walk_chunks(struct load_answer *answer)
{
    while (!answer->complete) {
        const char *at = answer->raw.data + answer->chunk_at, *end = answer->raw.data + answer->raw.length;
        const char *line = find(at, end, "\r\n");
        if (!line) return;
        size_t length = strtoul(at, NULL, 16);
        if ((size_t)(end - line) < length + 4) return;
        answer->chunk_at += (size_t)(line - at) + length + 4;
        answer->complete = length == 0;
    }
}

bool load_answer_feed(struct load_answer *answer, const char *bytes, size_t length)
{
    buf_append(&answer->raw, bytes, length);
    if (!end_text(&answer->raw)) return false;
    if (!answer->status && !take_head(answer)) return false;
    if (!answer->status) return true;
    if (answer->chunked)
        walk_chunks(answer);
    else
        answer->complete = answer->sized && answer->raw.length >= answer->head_bytes + answer->body_bytes;
    return true;
}

/* ---- counting ---- */

/* The body without its chunks' frames; a cut one as far as it goes. */
static void join_body(const struct load_answer *answer, struct buf *body)
{
    const char *at = answer->raw.data + answer->head_bytes, *end = answer->raw.data + answer->raw.length;
    if (!answer->chunked) {
        buf_append(body, at, (size_t)(end - at));
        return;
    }
    while (at < end) {
        const char *line = find(at, end, "\r\n");
        if (!line) return;
        size_t length = strtoul(at, NULL, 16), there = (size_t)(end - line - 2);
        buf_append(body, line + 2, there < length ? there : length);
        if (there < length + 2) return;
        at = line + 2 + length + 2;
    }
}

static void add_id(struct load_counts *counts, uint32_t choice, uint32_t id)
{
    if (choice >= ANSWER_CHOICES_MAX) return;
    if (counts->ids[choice] < ANSWER_IDS_MAX) counts->id_values[choice][counts->ids[choice]] = id;
    counts->ids[choice]++;
}

static void count_ids(const char *from, const char *end, struct load_counts *counts)
{
    uint32_t choice = 0;
    while (from < end) {
        const char *idx = find(from, end, "\"index\":"), *ids = find(from, end, "\"token_ids\":[");
        if (idx && (!ids || idx < ids)) {
            choice = (uint32_t)strtoul(idx + 8, NULL, 10);
            from = idx + 8;
            continue;
        }
        if (!ids) return;
        counts->ids_seen = true;
        for (from = ids + 13; from < end && *from != ']';) {
            char *stop;
            uint32_t id = (uint32_t)strtoul(from, &stop, 10);
            if (stop >= end) return; /* cut in the number */
            add_id(counts, choice, id);
            from = stop + (*stop == ',');
        }
    }
}

bool load_answer_hash(const struct load_counts *counts, uint32_t first_choice, uint32_t choices, char out[33])
{
    static uint8_t ids[4 * ANSWER_IDS_MAX];
    uint8_t parts[ANSWER_CHOICES_MAX * 36], digest[32];
    size_t at = 0;
    for (uint32_t c = first_choice; c < first_choice + choices; c++) {
        if (c >= ANSWER_CHOICES_MAX || counts->ids[c] > ANSWER_IDS_MAX) return false;
        size_t length = 0;
        for (uint32_t i = 0; i < counts->ids[c]; i++)
            for (int shift = 0; shift < 32; shift += 8) ids[length++] = (uint8_t)(counts->id_values[c][i] >> shift);
        for (int shift = 0; shift < 32; shift += 8) parts[at++] = (uint8_t)(counts->ids[c] >> shift);
        sha256(ids, length, parts + at);
        at += 32;
    }
    sha256(parts, at, digest);
    for (int i = 0; i < 16; i++) (void)snprintf(out + 2 * i, 3, "%02x", digest[i]);
    return true;
}

static uint64_t number_after(const char *from, const char *end, const char *key)
{
    const char *at = find(from, end, key);
    return at ? strtoull(at + strlen(key), NULL, 10) : 0;
}

static void read_usage(const char *body, const char *end, struct load_counts *counts)
{
    const char *at = body, *usage;
    while ((usage = find(at, end, "\"usage\":{\"prompt_tokens\":"))) {
        const char *close = memchr(usage + 9, '}', (size_t)(end - usage - 9));
        at = usage + 9;
        if (!close) return; /* cut */
        if (!find(usage, close, "\"prompt_tokens_details\":{")) {
            counts->running_tokens = number_after(usage, close, "\"completion_tokens\":");
            continue;
        }
        const char *last = find(usage, end, "\"rejected_prediction_tokens\":");
        if (!last) return;
        counts->usage_seen = true;
        counts->prompt_tokens = number_after(usage, last, "\"prompt_tokens\":");
        counts->completion_tokens = number_after(usage, last, "\"completion_tokens\":");
        counts->cached_tokens = number_after(usage, last, "\"cached_tokens\":");
        counts->reasoning_tokens = number_after(usage, last, "\"reasoning_tokens\":");
    }
}

static void read_word(const char *from, const char *end, const char *key, char *out, size_t size)
{
    const char *at = find(from, end, key);
    if (!at) return;
    at += strlen(key);
    const char *close = memchr(at, '"', (size_t)(end - at));
    size_t length = close ? (size_t)(close - at) : 0;
    if (length == 0 || length >= size) return;
    memcpy(out, at, length);
    out[length] = '\0';
}

void load_answer_count(const struct load_answer *answer, struct load_counts *counts)
{
    memset(counts, 0, offsetof(struct load_counts, id_values));
    if (!answer->status) return;
    struct buf body;
    buf_init(&body, 0);
    join_body(answer, &body);
    if (!end_text(&body)) return;
    const char *start = body.data, *end = start + body.length;
    if (body.length) {
        char id[64] = "";
        read_word(start, end, "{\"id\":\"", id, sizeof id);
        const char *hex = strchr(id, '-');
        if (hex && strlen(hex + 1) == 32) memcpy(counts->id, hex + 1, 33);
        count_ids(start, end, counts);
        read_usage(start, end, counts);
        const char *error = find(start, end, "{\"error\":{");
        if (error) {
            read_word(error, end, "\"type\":\"", counts->error, sizeof counts->error);
            read_word(error, end, "\"code\":\"", counts->error, sizeof counts->error);
        }
        counts->failed = error != NULL;
        if (answer->chunked)
            counts->done = answer->complete && find(start, end, "data: [DONE]\n\n");
        else
            counts->done = answer->complete && answer->status == 200;
    }
    for (uint32_t i = 0; i < ANSWER_CHOICES_MAX; i++) counts->ids_total += counts->ids[i];
    buf_free(&body);
}
