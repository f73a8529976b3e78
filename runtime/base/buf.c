/* Growth by doubling up to the limit; JSON escaping of untrusted bytes. See buf.h. */
#include "runtime/base/buf.h"

#include "runtime/base/mem.h"
#include "runtime/base/utf8.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

void buf_init(struct buf *buf, size_t limit_bytes)
{
    *buf = (struct buf){.limit = limit_bytes};
}

void buf_free(struct buf *buf)
{
    mem_free(buf->data);
    buf_init(buf, buf->limit);
}

void buf_clear(struct buf *buf)
{
    buf->length = 0;
    buf->failed = false;
}

bool buf_reserve(struct buf *buf, size_t more_bytes)
{
    size_t need;
    if (buf->failed) return false;
    if (!checked_add(buf->length, more_bytes, &need) || (buf->limit && need > buf->limit)) return !(buf->failed = true);
    if (need <= buf->capacity) return true;
    size_t capacity = buf->capacity ? buf->capacity : 256;
    while (capacity < need) capacity = capacity > need / 2 ? need + need / 2 : capacity * 2;
    if (buf->limit && capacity > buf->limit) capacity = buf->limit;
    char *data = mem_resize(buf->data, capacity, 1);
    if (!data) return !(buf->failed = true);
    buf->data = data;
    buf->capacity = capacity;
    return true;
}

void buf_append(struct buf *buf, const void *data, size_t length)
{
    if (!length || !buf_reserve(buf, length)) return;
    memcpy(buf->data + buf->length, data, length);
    buf->length += length;
}

void buf_append_text(struct buf *buf, const char *text)
{
    buf_append(buf, text, strlen(text));
}
void buf_append_char(struct buf *buf, char c)
{
    buf_append(buf, &c, 1);
}

void buf_append_format(struct buf *buf, const char *format, ...)
{
    char stack[256];
    va_list args, again;
    va_start(args, format);
    va_copy(again, args);
    int length = vsnprintf(stack, sizeof stack, format, args);
    va_end(args);
    if (length < 0) {
        buf->failed = true;
    } else if ((size_t)length < sizeof stack) {
        buf_append(buf, stack, (size_t)length);
    } else if (buf_reserve(buf, (size_t)length + 1)) {
        vsnprintf(buf->data + buf->length, (size_t)length + 1, format, again);
        buf->length += (size_t)length;
    }
    va_end(again);
}

void buf_append_json_escaped(struct buf *buf, const char *text, size_t length)
{
    static const char hex[] = "0123456789abcdef";
    size_t plain = 0, i = 0;
    if (!length) return; /* text may be NULL then */
    while (i < length) {
        unsigned char c = (unsigned char)text[i];
        size_t n = 1;
        char escape[8];
        size_t escape_length = 0;
        if (c >= 0x80) {
            n = utf8_length(text + i, length - i);
            if (!n) {
                memcpy(escape, "\xef\xbf\xbd", 3);
                escape_length = 3;
                n = 1;
            }
        } else if (c < 0x20 || c == '"' || c == '\\' || c == 0x7f) {
            const char *two = c == '"'    ? "\\\""
                              : c == '\\' ? "\\\\"
                              : c == '\n' ? "\\n"
                              : c == '\t' ? "\\t"
                              : c == '\r' ? "\\r"
                                          : NULL;
            if (two) {
                memcpy(escape, two, 2);
                escape_length = 2;
            } else {
                memcpy(escape, "\\u00", 4);
                escape[4] = hex[c >> 4];
                escape[5] = hex[c & 15];
                escape_length = 6;
            }
        }
        if (escape_length) {
            buf_append(buf, text + plain, i - plain);
            buf_append(buf, escape, escape_length);
            plain = i + n;
        }
        i += n;
    }
    buf_append(buf, text + plain, length - plain);
}

void buf_append_json_string(struct buf *buf, const char *text, size_t length)
{
    buf_append_char(buf, '"');
    buf_append_json_escaped(buf, text, length);
    buf_append_char(buf, '"');
}

void buf_append_json_float(struct buf *buf, float value)
{
    if (!isfinite(value)) {
        buf_append_text(buf, "null");
        return;
    }
    char text[40];
    for (int digits = 6; digits <= 9; digits++) { /* 9 significant digits always read back as the same float */
        snprintf(text, sizeof text, "%.*g", digits, (double)value);
        if (strtof(text, NULL) == value) break;
    }
    buf_append_text(buf, text);
    if (!strpbrk(text, ".e")) buf_append_text(buf, ".0");
}
