/* The names that stand for one token by themselves ("<|im_end|>"), in order, and the search for the longest one at a
 * place of a text. Control and unknown tokens may be taken from trusted text only; user-defined tokens (what the
 * `tokenizers` library calls added tokens that are not special) from any text, as that library does. tokenizer.json has
 * two lists of them: those looked for in the text as it is, and those looked for in what the normaliser made of it.
 *
 * A sorted table is narrowed byte by byte: at "<|im" only names that begin so are left. So the work at one place is at
 * most the longest name times the log of their number. Immutable after creation; any thread. */
#ifndef RUNTIME_TEXT_SPECIAL_TOKENS_H
#define RUNTIME_TEXT_SPECIAL_TOKENS_H

#include "runtime/base/status.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct special_name {
    const char *bytes;       /* in special_tokens.text */
    uint32_t at, length, id; /* at: offset of bytes there */
    bool anywhere;           /* user-defined: also in text that is not trusted */
    bool lstrip, rstrip;     /* takes the white space before it, behind it along */
    bool single_word;        /* only where no letter or digit stands beside it */
};

struct special_tokens {
    struct special_name *names; /* (count) sorted by bytes */
    uint32_t count;
    uint32_t firsts[257]; /* names[firsts[b]] .. names[firsts[b + 1] - 1] begin with byte b */
    bool any_anywhere, any_control;
    uint32_t length_max;
    char *text; /* the names, one behind another */
    uint32_t text_bytes, text_capacity, capacity;
};

/* Names to be: filled by special_tokens_add, which copies the bytes, then made fit for searching by
 * special_tokens_sort. Zeroed = empty. ST_INVAL: a name is empty or stands twice; ST_NOMEM: the caller frees special.
 */
NODISCARD enum status special_tokens_add(struct special_tokens *special, const char *bytes, size_t length,
                                         struct special_name name);
NODISCARD enum status special_tokens_sort(struct special_tokens *special, struct error *err);
void special_tokens_free(struct special_tokens *special); /* fine on zeroed memory */

/* The longest name at the start of text[length] that lies in its first trusted bytes, or is allowed anywhere. NULL:
 * none. *work is raised by the steps taken. */
const struct special_name *special_tokens_match(const struct special_tokens *special, const char *text, size_t length,
                                                size_t trusted, uint64_t *work);

#endif
