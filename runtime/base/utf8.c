/* Decoding by the table of well-formed sequences (Unicode 15, table 3-7); see utf8.h. */
#include "runtime/base/utf8.h"

/* Bytes a character starting with `lead` has, and the range its second byte must be in. 0: no character starts so. */
static size_t sequence(unsigned char lead, unsigned char *low, unsigned char *high)
{
    *low = 0x80;
    *high = 0xbf;
    if (lead < 0x80) return 1;
    if (lead < 0xc2 || lead > 0xf4) return 0;
    if (lead == 0xe0) *low = 0xa0;
    if (lead == 0xed) *high = 0x9f;
    if (lead == 0xf0) *low = 0x90;
    if (lead == 0xf4) *high = 0x8f;
    return lead < 0xe0 ? 2 : lead < 0xf0 ? 3 : 4;
}

size_t utf8_length(const char *text, size_t length)
{
    const unsigned char *s = (const unsigned char *)text;
    unsigned char low, high;
    if (!length) return 0;
    size_t n = sequence(s[0], &low, &high);
    if (!n || n > length) return 0;
    if (n > 1 && (s[1] < low || s[1] > high)) return 0;
    for (size_t i = 2; i < n; i++)
        if ((s[i] & 0xc0) != 0x80) return 0;
    return n;
}

size_t utf8_decode(const char *text, size_t length, uint32_t *codepoint)
{
    const unsigned char *s = (const unsigned char *)text;
    size_t n = utf8_length(text, length);
    if (n == 1) *codepoint = s[0];
    if (n == 2) *codepoint = (uint32_t)(s[0] & 0x1f) << 6 | (s[1] & 0x3fu);
    if (n == 3) *codepoint = (uint32_t)(s[0] & 0x0f) << 12 | (uint32_t)(s[1] & 0x3f) << 6 | (s[2] & 0x3fu);
    if (n == 4)
        *codepoint = (uint32_t)(s[0] & 0x07) << 18 | (uint32_t)(s[1] & 0x3f) << 12 | (uint32_t)(s[2] & 0x3f) << 6 |
                     (s[3] & 0x3fu);
    return n;
}

size_t utf8_encode(uint32_t c, char out[4])
{
    if (c < 0x80) {
        out[0] = (char)c;
        return 1;
    }
    if (c < 0x800) {
        out[0] = (char)(0xc0 | c >> 6);
        out[1] = (char)(0x80 | (c & 0x3f));
        return 2;
    }
    if (c > 0x10ffff || (c >= 0xd800 && c < 0xe000)) return 0;
    if (c < 0x10000) {
        out[0] = (char)(0xe0 | c >> 12);
        out[1] = (char)(0x80 | (c >> 6 & 0x3f));
        out[2] = (char)(0x80 | (c & 0x3f));
        return 3;
    }
    out[0] = (char)(0xf0 | c >> 18);
    out[1] = (char)(0x80 | (c >> 12 & 0x3f));
    out[2] = (char)(0x80 | (c >> 6 & 0x3f));
    out[3] = (char)(0x80 | (c & 0x3f));
    return 4;
}

bool utf8_valid(const char *text, size_t length, size_t *offset)
{
    size_t i = 0;
    while (i < length) {
        size_t n = (unsigned char)text[i] < 0x80 ? 1 : utf8_length(text + i, length - i);
        if (!n) {
            if (offset) *offset = i;
            return false;
        }
        i += n;
    }
    return true;
}

size_t utf8_incomplete_tail(const char *text, size_t length)
{
    const unsigned char *s = (const unsigned char *)text;
    for (size_t back = 1; back <= 3 && back <= length; back++) {
        unsigned char c = s[length - back], low, high;
        if ((c & 0xc0) == 0x80) continue; /* a continuation byte: look further back for its lead */
        size_t n = sequence(c, &low, &high);
        if (n <= back) return 0; /* complete, or nothing starts so */
        if (back > 1 && (s[length - back + 1] < low || s[length - back + 1] > high)) return 0;
        return back;
    }
    return 0;
}
