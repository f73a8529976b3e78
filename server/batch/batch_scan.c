/* An input file's lines: where they are, and whether each is a request; see batch_disk.h. The file is read in pieces; a
 * line stands in memory as a whole, for the parser, and no longer than http_body_bytes. */
#include "server/batch/batch_parts.h"

#include "runtime/base/hash.h"
#include "runtime/base/limits.h"
#include "runtime/base/mem.h"
#include "runtime/base/random.h"

#include <errno.h>
#include <string.h>

enum { OUTPUT_UNKNOWN = 256, TOKENS_MAX = 1048576, CHOICES_MAX = 128 };
enum { PIECE_BYTES = 1048576, ERRORS_MAX = 100 };

struct scan {
    const struct batch_info *info;
    const struct batch_gauge *gauge;
    struct batch_lines *lines;
    struct buf *errors;
    uint32_t errors_count, number;
    const _Atomic bool *stop;
    uint64_t *seen; /* hashes of custom_ids, open addressing; 0: free */
    size_t places;
    uint64_t seed;
};

static void add_error(struct scan *scan, const char *code, const char *param, const char *message)
{
    if (scan->errors_count++ >= ERRORS_MAX) return;
    if (scan->errors->length > 0) buf_append_char(scan->errors, ',');
    buf_append_format(scan->errors, "{\"code\":\"%s\",\"line\":%u,\"message\":", code, scan->number);
    buf_append_json_string(scan->errors, message, strlen(message));
    if (param)
        buf_append_format(scan->errors, ",\"param\":\"%s\"}", param);
    else
        buf_append_text(scan->errors, ",\"param\":null}");
}

/* false: it was there before. Keyed by 64 bits under a seed that nobody can know. */
static bool first_of(struct scan *scan, const char *custom_id, size_t length)
{
    uint64_t hash = hash_bytes(custom_id, length, scan->seed);
    if (hash == 0) hash = 1;
    size_t at = hash % scan->places;
    while (scan->seen[at] && scan->seen[at] != hash) at = (at + 1) % scan->places;
    if (scan->seen[at]) return false;
    scan->seen[at] = hash;
    return true;
}

/* Where a line cannot be rendered. */
static void estimate(const struct json *body, struct batch_line *line)
{
    const struct json *most = json_member(body, "max_completion_tokens");
    if (!json_has_number(most)) most = json_member(body, "max_tokens");
    int64_t tokens = json_has_number(most) ? json_to_int(most) : OUTPUT_UNKNOWN;
    int64_t choices = json_has_number(json_member(body, "n")) ? json_to_int(json_member(body, "n")) : 1;
    tokens = tokens < 1 ? 1 : tokens > TOKENS_MAX ? TOKENS_MAX : tokens;
    choices = choices < 1 ? 1 : choices > CHOICES_MAX ? CHOICES_MAX : choices;
    line->prompt_tokens = line->length / 4 + 1;
    line->output_tokens = (uint32_t)(tokens * choices);
}

static void measure_line(const struct scan *scan, const struct json *body, struct batch_line *line)
{
    struct buf text;
    buf_init(&text, 0);
    if (scan->gauge->measure && body) json_print(body, &text);
    if (text.length == 0 ||
        !scan->gauge->measure(scan->gauge->state, &text, &line->prompt_tokens, &line->output_tokens))
        estimate(body, line);
    buf_free(&text);
}

static void check_line(struct scan *scan, const struct json *root)
{
    size_t length;
    const char *custom_id = json_to_text(json_member(root, "custom_id"), &length);
    const char *method = json_to_text(json_member(root, "method"), NULL);
    const char *url = json_to_text(json_member(root, "url"), NULL);
    const struct json *body = json_member(root, "body");
    if (!custom_id || length == 0 || length > BATCH_CUSTOM_ID_MAX)
        add_error(scan, "invalid_custom_id", "custom_id", "Expected a 'custom_id' of 1 to 255 bytes.");
    else if (!first_of(scan, custom_id, length))
        add_error(scan, "duplicate_custom_id", "custom_id",
                  "The 'custom_id' of this line was used on an earlier line.");
    else if (!method || strcmp(method, "POST") != 0)
        add_error(scan, "invalid_method", "method", "Expected 'method' to be 'POST'.");
    else if (!url || strcmp(url, batch_endpoint(scan->info)) != 0)
        add_error(scan, "mismatched_endpoint", "url", "The 'url' of this line is not the batch's endpoint.");
    else if (json_kind(body) != JSON_KIND_OBJECT)
        add_error(scan, "missing_body", "body", "Expected 'body' to be an object.");
    else if (json_to_bool(json_member(body, "stream")))
        add_error(scan, "invalid_request", "body.stream", "A batch does not stream; leave 'stream' out.");
}

static enum status take_line(struct scan *scan, const char *text, size_t length, uint64_t offset, struct error *err)
{
    scan->number++;
    while (length > 0 && (text[length - 1] == '\r' || text[length - 1] == ' ')) length--;
    if (length == 0) return ST_OK;
    struct batch_lines *lines = scan->lines;
    if (lines->count == limits.batch_lines) {
        if (lines->count++ == limits.batch_lines)
            add_error(scan, "too_many_requests", NULL, "The file has more requests than a batch may have.");
        return ST_OK;
    }
    if (lines->count > limits.batch_lines) return ST_OK;
    if (lines->count == lines->capacity) {
        uint32_t capacity = lines->capacity ? lines->capacity * 2 : 256;
        struct batch_line *items = mem_resize(lines->items, capacity, sizeof *items);
        if (!items) return error_set(err, ST_NOMEM, "out of memory");
        lines->items = items;
        lines->capacity = capacity;
    }
    lines->items[lines->count++] =
        (struct batch_line){.offset = offset, .length = (uint32_t)length, .number = scan->number};
    struct json *root;
    struct error reason;
    enum status status = json_read(text, length, &root, &reason);
    if (status == ST_NOMEM) return error_set(err, ST_NOMEM, "out of memory");
    if (status != ST_OK || json_kind(root) != JSON_KIND_OBJECT) {
        add_error(scan, "invalid_json_line", NULL, "This line is not parseable as a JSON object.");
        if (status == ST_OK) json_release(root);
        return ST_OK;
    }
    check_line(scan, root);
    if (scan->errors_count == 0) measure_line(scan, json_member(root, "body"), &lines->items[lines->count - 1]);
    json_release(root);
    return ST_OK;
}

/* All lines of `held`, whose first byte stands at offset of the file; what is left of the last one moves to its start.
 */
static enum status take_lines(struct scan *scan, struct buf *held, uint64_t *offset, struct error *err)
{
    size_t start = 0;
    enum status status = ST_OK;
    while (status == ST_OK) {
        const char *end = held->length > start ? memchr(held->data + start, '\n', held->length - start) : NULL;
        if (!end) break;
        size_t length = (size_t)(end - (held->data + start));
        if (length > limits.http_body_bytes)
            return error_set(err, ST_LIMIT, "line %u is longer than a request may be", scan->number + 1);
        if (scan->stop && *scan->stop) return error_set(err, ST_CANCELED, "told to stop");
        status = take_line(scan, held->data + start, length, *offset + start, err);
        start += length + 1;
    }
    if (status != ST_OK) return status;
    if (start > 0) memmove(held->data, held->data + start, held->length - start);
    held->length -= start;
    *offset += start;
    if (held->length > limits.http_body_bytes)
        return error_set(err, ST_LIMIT, "line %u is longer than a request may be", scan->number + 1);
    return ST_OK;
}

static enum status scan_all(const struct batch_folder *folder, struct scan *scan, struct error *err)
{
    struct buf held;
    uint64_t offset = 0, at = 0;
    enum status status = ST_OK;
    buf_init(&held, (size_t)limits.http_body_bytes + 2 * PIECE_BYTES);
    for (;;) {
        size_t got;
        if (folder->stop && *folder->stop) status = error_set(err, ST_CANCELED, "told to stop");
        if (status == ST_OK && !buf_reserve(&held, PIECE_BYTES)) status = error_set(err, ST_NOMEM, "out of memory");
        if (status == ST_OK)
            status = batch_read_at(folder, scan->info->input_id, at, held.data + held.length, PIECE_BYTES, &got, err);
        if (status != ST_OK || got == 0) break;
        held.length += got;
        at += got;
        status = take_lines(scan, &held, &offset, err);
        if (status != ST_OK) break;
    }
    if (status == ST_OK && held.length > 0) status = take_line(scan, held.data, held.length, offset, err);
    buf_free(&held);
    return status;
}

enum status batch_scan(const struct batch_folder *folder, const struct batch_info *info,
                       const struct batch_gauge *gauge, struct batch_lines *lines, struct buf *errors,
                       struct error *err)
{
    struct scan scan = {.info = info,
                        .gauge = gauge,
                        .lines = lines,
                        .errors = errors,
                        .stop = folder->stop,
                        .places = 2 * (size_t)limits.batch_lines + 1};
    lines->count = 0;
    random_fill(&scan.seed, sizeof scan.seed);
    scan.seen = mem_alloc(scan.places, sizeof *scan.seen);
    if (!scan.seen) return error_set(err, ST_NOMEM, "out of memory");
    enum status status = scan_all(folder, &scan, err);
    mem_free(scan.seen);
    if (status == ST_LIMIT) { /* the client's */
        add_error(&scan, "invalid_json_line", NULL, "This line is longer than a request may be.");
        status = ST_OK;
    }
    if (lines->count > limits.batch_lines) lines->count = (uint32_t)limits.batch_lines;
    if (status == ST_OK && lines->count == 0 && errors->length == 0)
        add_error(&scan, "empty_file", NULL, "The file has no request.");
    if (status == ST_OK && !buf_ok(errors)) return error_set(err, ST_NOMEM, "out of memory");
    return status;
}

enum status batch_line_read(const struct batch_folder *folder, const char *input_id, const struct batch_line *line,
                            char custom_id[BATCH_CUSTOM_ID_MAX + 1], struct buf *body, struct error *err)
{
    size_t got, length;
    struct json *root;
    char *text = mem_alloc(line->length + (size_t)1, 1);
    if (!text) return error_set(err, ST_NOMEM, "out of memory");
    enum status status = batch_read_at(folder, input_id, line->offset, text, line->length, &got, err);
    if (status == ST_OK && got != line->length) status = error_set(err, ST_IO, "a file of a batch has become shorter");
    if (status == ST_OK) status = json_read(text, got, &root, err);
    mem_free(text);
    TRY(status);
    const char *id = json_to_text(json_member(root, "custom_id"), &length);
    if (id && length <= BATCH_CUSTOM_ID_MAX)
        memcpy(custom_id, id, length + 1);
    else
        status = error_set(err, ST_INVAL, "a line of a batch has changed");
    if (status == ST_OK && body) json_print(json_member(root, "body"), body);
    json_release(root);
    return status == ST_OK && body && !buf_ok(body) ? error_set(err, ST_NOMEM, "out of memory") : status;
}
