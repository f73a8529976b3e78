/* A growable byte buffer: responses, rendered templates, log documents. Failure is sticky: once an append failed (no
 * memory, or the limit), later appends do nothing and buf_ok is false, so a writer checks once at its end.
 * Owner: whoever holds it; one thread at a time. */
#ifndef RUNTIME_BASE_BUF_H
#define RUNTIME_BASE_BUF_H

#include "runtime/base/status.h"

#include <stdbool.h>
#include <stddef.h>

struct buf {
    char *data;      /* not NUL-terminated; NULL while empty */
    size_t length;   /* bytes in use */
    size_t capacity; /* bytes allocated */
    size_t limit;    /* never grows past this; 0 = no limit */
    bool failed;
};

void buf_init(struct buf *buf, size_t limit_bytes);
void buf_free(struct buf *buf);  /* releases the memory and leaves an empty, usable buffer */
void buf_clear(struct buf *buf); /* length = 0 and not failed; keeps the memory */
bool buf_reserve(struct buf *buf, size_t more_bytes);
void buf_append(struct buf *buf, const void *data, size_t length);
void buf_append_text(struct buf *buf, const char *text); /* NUL-terminated */
void buf_append_char(struct buf *buf, char c);
void buf_append_format(struct buf *buf, const char *format, ...) PRINTF_LIKE(2, 3);

/* Text as a JSON string without its quotes. Invalid UTF-8 becomes U+FFFD, so the output is always valid JSON. */
void buf_append_json_escaped(struct buf *buf, const char *text, size_t length);
void buf_append_json_string(struct buf *buf, const char *text, size_t length); /* with quotes */
/* The shortest decimal that reads back as the same float; NaN and infinities become null. */
void buf_append_json_float(struct buf *buf, float value);

static inline bool buf_ok(const struct buf *buf)
{
    return !buf->failed;
}

#endif
