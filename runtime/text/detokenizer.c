/* Held bytes are always a proper beginning of some character. Each new byte completes it, continues it, or proves that
 * nothing can: then what was held is one maximal bad sequence (Unicode 15, section 3.9, "substitution of maximal
 * subparts"), and the byte is looked at afresh. */
#include "runtime/text/detokenizer.h"

#include "runtime/base/utf8.h"

#include <string.h>

static const char replacement[] = "\xef\xbf\xbd"; /* U+FFFD */

void detokenizer_init(struct detokenizer *detokenizer, const struct tokenizer *tokenizer, bool keep_special)
{
    memset(detokenizer, 0, sizeof *detokenizer);
    detokenizer->tokenizer = tokenizer;
    detokenizer->keep_special = keep_special;
}

void detokenizer_init_whole(struct detokenizer *detokenizer, const struct tokenizer *tokenizer, bool keep_special)
{
    detokenizer_init(detokenizer, tokenizer, keep_special);
    detokenizer->start_spaces = tokenizer_start_spaces(tokenizer);
}

/* Takes one byte into `held`; false: it does not belong there, what was held has been replaced, and it must be given
 * again. */
static bool hold_byte(struct detokenizer *d, char byte, struct buf *out)
{
    d->held[d->held_count] = byte;
    size_t n = d->held_count + 1u;
    if (utf8_length(d->held, n) == n) {
        buf_append(out, d->held, n);
        d->held_count = 0;
        return true;
    }
    if (utf8_incomplete_tail(d->held, n) == n) {
        d->held_count = (uint8_t)n;
        return true;
    }
    buf_append_text(out, replacement);
    d->held_count = 0;
    return n == 1; /* a byte that begins nothing is itself the bad sequence */
}

void detokenizer_push_bytes(struct detokenizer *detokenizer, const char *bytes, size_t length, struct buf *out)
{
    size_t at = 0;
    while (at < length && detokenizer->start_spaces && bytes[at] == ' ') {
        detokenizer->start_spaces--;
        at++;
    }
    if (at < length) detokenizer->start_spaces = 0;
    while (at < length) {
        if (detokenizer->held_count == 0) {
            size_t bad = length - at;
            utf8_valid(bytes + at, length - at, &bad);
            buf_append(out, bytes + at, bad);
            at += bad;
            if (at == length) break;
        }
        at += hold_byte(detokenizer, bytes[at], out);
    }
}

void detokenizer_push(struct detokenizer *detokenizer, uint32_t id, struct buf *out)
{
    uint32_t length;
    if (!detokenizer->keep_special && tokenizer_is_special(detokenizer->tokenizer, id)) return;
    const char *bytes = tokenizer_bytes(detokenizer->tokenizer, id, &length);
    detokenizer_push_bytes(detokenizer, bytes, length, out);
}

void detokenizer_finish(struct detokenizer *detokenizer, struct buf *out)
{
    if (detokenizer->held_count) buf_append_text(out, replacement);
    detokenizer->held_count = 0;
}
