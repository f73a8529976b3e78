/* Windows on append-only stores, with their origin; see template_text.h. */
#include "runtime/text/template_text.h"

#include "runtime/base/limits.h"
#include "runtime/base/utf8.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

enum { STORE_SLACK = 48, TEXT_BYTES_MAX = 0x7fffffff };

enum status tmpl_fail(struct tmpl_heap *heap, enum status status, const char *format, ...)
{
    char message[384];
    va_list args;
    va_start(args, format);
    vsnprintf(message, sizeof message, format, args);
    va_end(args);
    return error_set(heap->err, status, "chat template, line %u: %s", heap->line, message);
}

enum status tmpl_alloc(struct tmpl_heap *heap, size_t count, size_t size_bytes, void *memory)
{
    void *result = arena_alloc(&heap->arena, count, size_bytes);
    if (!result) {
        size_t left = heap->arena.limit_bytes - heap->arena.used_bytes;
        if (size_bytes && count > (left < 15 ? 0 : left - 15) / size_bytes)
            return tmpl_fail(heap, ST_LIMIT, "needs more than %zu bytes of memory", heap->arena.limit_bytes);
        return tmpl_fail(heap, ST_NOMEM, "out of memory");
    }
    memcpy(memory, &result, sizeof result);
    return ST_OK;
}

enum status tmpl_charge(struct tmpl_heap *heap, uint64_t steps)
{
    if (steps > heap->steps_left) {
        heap->steps_left = 0;
        return tmpl_fail(heap, ST_LIMIT, "takes more than %llu steps", (unsigned long long)limits.template_steps);
    }
    heap->steps_left -= steps;
    return ST_OK;
}

enum status tmpl_charge_bytes(struct tmpl_heap *heap, size_t bytes)
{
    return tmpl_charge(heap, bytes >> 10);
}

enum status tmpl_text_borrow(struct tmpl_heap *heap, const char *bytes, size_t length, bool trusted,
                             struct tmpl_text *text)
{
    struct tmpl_store *store;
    if (length > TEXT_BYTES_MAX) return tmpl_fail(heap, ST_LIMIT, "a string of %zu bytes", length);
    TRY(tmpl_alloc(heap, 1, sizeof *store, &store));
    store->data = (char *)(uintptr_t)bytes; /* capacity 0: never written */
    store->used = (uint32_t)length;
    store->trusted = trusted;
    *text = (struct tmpl_text){store, 0, (uint32_t)length};
    return ST_OK;
}

/* Notes that the store now reaches to `used` and that what is new has this origin. */
static enum status mark(struct tmpl_heap *heap, struct tmpl_store *store, uint32_t old_used, bool trusted)
{
    if (!store->mark_count) {
        if (!old_used) store->trusted = trusted;
        if (store->trusted == trusted) return ST_OK;
    } else if (store->marks[store->mark_count - 1].trusted == trusted) {
        store->marks[store->mark_count - 1].end = store->used;
        return ST_OK;
    }
    uint32_t need = store->mark_count ? store->mark_count + 1 : 2;
    if (need > store->mark_capacity) {
        struct tmpl_mark *marks;
        uint32_t capacity = need < 8 ? 8 : need * 2;
        TRY(tmpl_alloc(heap, capacity, sizeof *marks, &marks));
        if (store->mark_count) memcpy(marks, store->marks, store->mark_count * sizeof *marks);
        store->marks = marks;
        store->mark_capacity = capacity;
    }
    if (!store->mark_count) store->marks[store->mark_count++] = (struct tmpl_mark){old_used, store->trusted};
    store->marks[store->mark_count++] = (struct tmpl_mark){store->used, trusted};
    return ST_OK;
}

static bool fits_in_place(const struct tmpl_text *to, size_t more)
{
    const struct tmpl_store *store = to->store;
    return store && store->capacity && to->offset + to->length == store->used && more <= store->capacity - store->used;
}

/* Makes *to a text at the end of a store with room for `more` bytes. */
static enum status make_room(struct tmpl_heap *heap, struct tmpl_text *to, size_t more)
{
    if (fits_in_place(to, more)) return ST_OK;
    if (more > TEXT_BYTES_MAX - (size_t)to->length) return tmpl_fail(heap, ST_LIMIT, "a string is too long");
    size_t need = to->length + more;
    /* A store that has grown once will grow again. */
    size_t capacity = to->store && to->store->capacity ? need + need / 2 + STORE_SLACK : need + STORE_SLACK;
    struct tmpl_store *store;
    if (capacity > heap->arena.limit_bytes - heap->arena.used_bytes) capacity = need;
    TRY(tmpl_alloc(heap, 1, sizeof *store, &store));
    TRY(tmpl_alloc(heap, capacity, 1, &store->data));
    store->capacity = (uint32_t)capacity;
    size_t position = 0, length;
    const char *bytes;
    bool trusted;
    while (tmpl_text_segment(*to, &position, &bytes, &length, &trusted)) {
        uint32_t old_used = store->used;
        memcpy(store->data + old_used, bytes, length);
        store->used += (uint32_t)length;
        TRY(mark(heap, store, old_used, trusted));
    }
    *to = (struct tmpl_text){store, 0, to->length};
    return ST_OK;
}

enum status tmpl_text_append_bytes(struct tmpl_heap *heap, struct tmpl_text *to, const char *bytes, size_t length,
                                   bool trusted)
{
    if (!length) return ST_OK;
    TRY(make_room(heap, to, length));
    struct tmpl_store *store = to->store;
    uint32_t old_used = store->used;
    memcpy(store->data + old_used, bytes, length);
    store->used += (uint32_t)length;
    to->length += (uint32_t)length;
    return mark(heap, store, old_used, trusted);
}

enum status tmpl_text_append(struct tmpl_heap *heap, struct tmpl_text *to, struct tmpl_text piece)
{
    if (!piece.length) return ST_OK;
    if (!to->length) {
        *to = piece;
        return ST_OK;
    }
    TRY(make_room(heap, to, piece.length));
    size_t position = 0, length;
    const char *bytes;
    bool trusted;
    while (tmpl_text_segment(piece, &position, &bytes, &length, &trusted))
        TRY(tmpl_text_append_bytes(heap, to, bytes, length, trusted));
    return ST_OK;
}

enum status tmpl_text_append_char(struct tmpl_heap *heap, struct tmpl_text *to, uint32_t codepoint, bool trusted)
{
    char bytes[4];
    return tmpl_text_append_bytes(heap, to, bytes, utf8_encode(codepoint, bytes), trusted);
}

/* The first mark that ends after position (of the store). */
static uint32_t mark_at(const struct tmpl_store *store, uint32_t position)
{
    uint32_t low = 0, high = store->mark_count - 1;
    while (low < high) {
        uint32_t middle = low + (high - low) / 2;
        if (store->marks[middle].end > position)
            high = middle;
        else
            low = middle + 1;
    }
    return low;
}

bool tmpl_text_segment(struct tmpl_text text, size_t *position, const char **bytes, size_t *length, bool *trusted)
{
    if (*position >= text.length) return false;
    const struct tmpl_store *store = text.store;
    uint32_t start = text.offset + (uint32_t)*position, end = text.offset + text.length;
    *trusted = store->trusted;
    if (store->mark_count) {
        uint32_t idx = mark_at(store, start);
        *trusted = store->marks[idx].trusted;
        if (store->marks[idx].end < end) end = store->marks[idx].end;
    }
    *bytes = store->data + start;
    *length = end - start;
    *position += *length;
    return true;
}

bool tmpl_text_trusted_at(struct tmpl_text text, size_t position)
{
    const char *bytes;
    size_t length;
    bool trusted = false;
    return tmpl_text_segment(text, &position, &bytes, &length, &trusted) && trusted;
}

bool tmpl_text_all_trusted(struct tmpl_text text)
{
    const char *bytes;
    size_t position = 0, length;
    bool trusted;
    while (tmpl_text_segment(text, &position, &bytes, &length, &trusted))
        if (!trusted) return false;
    return true;
}

bool tmpl_text_equal(struct tmpl_text a, struct tmpl_text b)
{
    return a.length == b.length && memcmp(tmpl_text_data(a), tmpl_text_data(b), a.length) == 0;
}

bool tmpl_text_is(struct tmpl_text text, const char *literal)
{
    return strlen(literal) == text.length && memcmp(tmpl_text_data(text), literal, text.length) == 0;
}

int tmpl_text_compare(struct tmpl_text a, struct tmpl_text b)
{
    uint32_t shorter = a.length < b.length ? a.length : b.length;
    int order = memcmp(tmpl_text_data(a), tmpl_text_data(b), shorter); /* UTF-8 sorts as its code points do */
    return order ? order : (a.length > b.length) - (a.length < b.length);
}

size_t tmpl_text_find(struct tmpl_text text, struct tmpl_text needle, size_t from)
{
    if (from > text.length) return SIZE_MAX;
    if (!needle.length) return from;
    const char *data = tmpl_text_data(text);
    const char *hit = memmem(data + from, text.length - from, tmpl_text_data(needle), needle.length);
    return hit ? (size_t)(hit - data) : SIZE_MAX;
}

size_t tmpl_text_find_last(struct tmpl_text text, struct tmpl_text needle)
{
    if (!needle.length) return text.length;
    size_t last = SIZE_MAX;
    for (size_t at = tmpl_text_find(text, needle, 0); at != SIZE_MAX; at = tmpl_text_find(text, needle, at + 1))
        last = at;
    return last;
}

size_t tmpl_text_codepoints(struct tmpl_text text)
{
    const char *data = tmpl_text_data(text);
    size_t count = 0;
    for (uint32_t i = 0; i < text.length; i++) count += ((unsigned char)data[i] & 0xc0) != 0x80;
    return count;
}

size_t tmpl_text_byte_of(struct tmpl_text text, size_t codepoint)
{
    const char *data = tmpl_text_data(text);
    size_t i = 0;
    for (; i < text.length; i++)
        if (((unsigned char)data[i] & 0xc0) != 0x80 && !codepoint--) break;
    return i;
}

uint32_t tmpl_text_decode(struct tmpl_text text, size_t byte, size_t *bytes)
{
    uint32_t codepoint = 0xfffd;
    *bytes = utf8_decode(tmpl_text_data(text) + byte, text.length - byte, &codepoint);
    if (!*bytes) *bytes = 1;
    return codepoint;
}

bool tmpl_is_space(uint32_t c)
{
    return (c >= 9 && c <= 13) || (c >= 0x1c && c <= 0x20) || c == 0x85 || c == 0xa0 || c == 0x1680 ||
           (c >= 0x2000 && c <= 0x200a) || c == 0x2028 || c == 0x2029 || c == 0x202f || c == 0x205f || c == 0x3000;
}

bool tmpl_is_line_end(uint32_t c)
{
    return (c >= 10 && c <= 13) || (c >= 0x1c && c <= 0x1e) || c == 0x85 || c == 0x2028 || c == 0x2029;
}

static bool strips(uint32_t codepoint, const struct tmpl_text *chars)
{
    if (!chars) return tmpl_is_space(codepoint);
    for (size_t i = 0, n; i < chars->length; i += n)
        if (tmpl_text_decode(*chars, i, &n) == codepoint) return true;
    return false;
}

struct tmpl_text tmpl_text_strip(struct tmpl_text text, const struct tmpl_text *chars, enum tmpl_sides sides)
{
    size_t start = 0, end = text.length, n;
    const char *data = tmpl_text_data(text);
    if (sides & TMPL_SIDE_LEFT)
        while (start < end && strips(tmpl_text_decode(text, start, &n), chars)) start += n;
    if (sides & TMPL_SIDE_RIGHT) {
        while (end > start) {
            size_t last = end - 1;
            while (last > start && ((unsigned char)data[last] & 0xc0) == 0x80) last--;
            if (!strips(tmpl_text_decode(text, last, &n), chars)) break;
            end = last;
        }
    }
    return tmpl_text_part(text, start, end - start);
}
