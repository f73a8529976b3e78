/* Strings of a running template: bytes that know where they came from.
 *
 *   store   data   < | i m _ s t a r t | > u s e r \n H e l l o         used = 24, capacity = 40
 *           marks                        12^trusted           ^24 content
 *   text    [offset, offset + length) of a store
 *
 * A text is a window on a store, so slicing, stripping and splitting copy nothing. A store only ever grows at its end,
 * and a text that ends where its store ends is appended to in place: earlier windows stay what they were. A chain of k
 * concatenations or an accumulating loop therefore copies O(n) bytes, not O(k n). Literals of the template and strings
 * of the request are stores with capacity 0: borrowed, never written, shared by threads.
 *
 * Origin: a byte is trusted when the template's author wrote it and content otherwise. Every operation carries it
 * along; what is neither (quotes and commas that printing a list adds) counts as content.
 *
 * Rejected: ropes (every search would have to flatten first) and a flag per string (one concatenation and it is lost).
 * Memory comes from the render's heap and is released with it. One thread at a time. */
#ifndef RUNTIME_TEXT_TEMPLATE_TEXT_H
#define RUNTIME_TEXT_TEMPLATE_TEXT_H

#include "runtime/base/arena.h"
#include "runtime/base/status.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* What one compilation or render may spend, and where it says what went wrong. */
struct tmpl_heap {
    struct arena arena;
    uint64_t steps_left;
    uint32_t depth, depth_limit; /* nesting of values while one is printed or compared */
    uint32_t line;               /* of the template, for messages */
    struct error *err;           /* may be NULL */
};

struct tmpl_mark {
    uint32_t end; /* in the store */
    bool trusted;
};

struct tmpl_store {
    char *data;
    uint32_t used, capacity; /* capacity 0: borrowed, never written */
    struct tmpl_mark *marks; /* NULL: all of it is `trusted` */
    uint32_t mark_count, mark_capacity;
    bool trusted;
};

struct tmpl_text {
    struct tmpl_store *store; /* NULL: empty */
    uint32_t offset, length;
};

/* Fails with a message that names the line. Returns status. */
enum status tmpl_fail(struct tmpl_heap *heap, enum status status, const char *format, ...) PRINTF_LIKE(3, 4);

/* Zeroed memory into *memory. ST_LIMIT: template_memory_bytes; ST_NOMEM. */
NODISCARD enum status tmpl_alloc(struct tmpl_heap *heap, size_t count, size_t size_bytes, void *memory);

/* Pays for work: a step for each item or statement. ST_LIMIT: template_steps are spent. */
NODISCARD enum status tmpl_charge(struct tmpl_heap *heap, uint64_t steps);
/* The same for a pass over bytes: a step for each KiB. */
NODISCARD enum status tmpl_charge_bytes(struct tmpl_heap *heap, size_t bytes);

static inline const char *tmpl_text_data(struct tmpl_text text)
{
    return text.store ? text.store->data + text.offset : "";
}

/* Bytes [start, start + length) of text. */
static inline struct tmpl_text tmpl_text_part(struct tmpl_text text, size_t start, size_t length)
{
    return (struct tmpl_text){text.store, text.offset + (uint32_t)start, (uint32_t)length};
}

/* A text over borrowed bytes, which outlive the heap. */
NODISCARD enum status tmpl_text_borrow(struct tmpl_heap *heap, const char *bytes, size_t length, bool trusted,
                                       struct tmpl_text *text);

/* Appends; *to is replaced, other windows on its store are not affected. Start with a zeroed text. */
NODISCARD enum status tmpl_text_append(struct tmpl_heap *heap, struct tmpl_text *to, struct tmpl_text piece);
NODISCARD enum status tmpl_text_append_bytes(struct tmpl_heap *heap, struct tmpl_text *to, const char *bytes,
                                             size_t length, bool trusted);
NODISCARD enum status tmpl_text_append_char(struct tmpl_heap *heap, struct tmpl_text *to, uint32_t codepoint,
                                            bool trusted);

/* The next stretch of one origin at *position (which it advances); false at the end. */
bool tmpl_text_segment(struct tmpl_text text, size_t *position, const char **bytes, size_t *length, bool *trusted);
bool tmpl_text_trusted_at(struct tmpl_text text, size_t position); /* false outside */
bool tmpl_text_all_trusted(struct tmpl_text text);                 /* true when empty */

bool tmpl_text_equal(struct tmpl_text a, struct tmpl_text b);
bool tmpl_text_is(struct tmpl_text text, const char *literal);
int tmpl_text_compare(struct tmpl_text a, struct tmpl_text b); /* by code points */
/* Byte offset of needle at or after from, or SIZE_MAX. */
size_t tmpl_text_find(struct tmpl_text text, struct tmpl_text needle, size_t from);
size_t tmpl_text_find_last(struct tmpl_text text, struct tmpl_text needle);

size_t tmpl_text_codepoints(struct tmpl_text text);
size_t tmpl_text_byte_of(struct tmpl_text text, size_t codepoint); /* its byte offset; length when beyond the end */
/* The code point at a byte offset and its bytes. The text is valid UTF-8, so this always advances. */
uint32_t tmpl_text_decode(struct tmpl_text text, size_t byte, size_t *bytes);

/* Whether Python's str.isspace holds; str.splitlines breaks. */
bool tmpl_is_space(uint32_t codepoint);
bool tmpl_is_line_end(uint32_t codepoint);

enum tmpl_sides { TMPL_SIDE_LEFT = 1, TMPL_SIDE_RIGHT = 2, TMPL_SIDE_BOTH = 3 };
/* str.strip, lstrip, rstrip: white space, or any of the code points in chars (if not NULL). */
struct tmpl_text tmpl_text_strip(struct tmpl_text text, const struct tmpl_text *chars, enum tmpl_sides sides);

#endif
