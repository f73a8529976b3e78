/* Unicode classes as pre-tokenisers ask for them: one byte a character, from a two-level table built at creation.
 *
 * The classes are those of Unicode 16, which the regular expressions of the `tokenizers` library know: general
 * categories from libutf8proc (Unicode 15 or later), completed by a short list of what came after. White space is the
 * Unicode property White_Space. Immutable after creation; any thread. */
#ifndef RUNTIME_TEXT_UNICODE_CLASS_H
#define RUNTIME_TEXT_UNICODE_CLASS_H

#include "runtime/base/status.h"

#include <stdbool.h>
#include <stdint.h>

enum unicode_class {
    UNICODE_OTHER,      /* also every byte that is no valid UTF-8 */
    UNICODE_LETTER,     /* \p{L} */
    UNICODE_MARK,       /* \p{M} */
    UNICODE_NUMBER,     /* \p{N} */
    UNICODE_NUMBER_NEW, /* a number since Unicode 17: the library's digit splitter knows it, its \p{N} does not yet */
    UNICODE_SPACE,      /* \s without the two below */
    UNICODE_NEWLINE     /* \r and \n */
};

enum { UNICODE_BLOCK = 256, UNICODE_BLOCKS = 0x110000 / UNICODE_BLOCK };

struct unicode_classes {
    uint8_t ascii[128];                 /* class of each */
    uint16_t block_idx[UNICODE_BLOCKS]; /* which block of `blocks` a range of 256 characters has */
    uint8_t (*blocks)[UNICODE_BLOCK];   /* the distinct ones */
};

/* ST_NOMEM. */
NODISCARD enum status unicode_classes_init(struct unicode_classes *classes);
void unicode_classes_free(struct unicode_classes *classes); /* fine on zeroed memory */

/* codepoint <= 0x10ffff. */
static inline enum unicode_class unicode_class_of(const struct unicode_classes *classes, uint32_t codepoint)
{
    return (enum unicode_class)
        classes->blocks[classes->block_idx[codepoint / UNICODE_BLOCK]][codepoint % UNICODE_BLOCK];
}

/* \w of Rust's regular expressions: letters, marks, decimal and letter numbers, connectors, joiners, and letters in
 * circles (the property Alphabetic). codepoint <= 0x10ffff. */
bool unicode_is_word(const struct unicode_classes *classes, uint32_t codepoint);

/* The Unicode property White_Space. */
bool unicode_is_space(uint32_t codepoint);

#endif
