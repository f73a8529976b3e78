/* The names that stand for one token by themselves ("<|im_end|>"), in order, and the search for the longest one at a
 * place of a text. Control and unknown tokens may be taken from trusted text only; user-defined tokens (what the
 * `tokenizers` library calls added tokens that are not special) from any text, as that library does.
 *
 * A sorted table is narrowed byte by byte: at "<|im" only names that begin so are left. So the work at one place is at
 * most the longest name times the log of their number. Immutable after creation; any thread. */
#ifndef RUNTIME_TEXT_SPECIAL_TOKENS_H
#define RUNTIME_TEXT_SPECIAL_TOKENS_H

#include "runtime/base/status.h"
#include "runtime/text/tokenizer_bpe.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct special_name {
    const char *bytes; /* borrowed from the token table */
    uint32_t length, id;
    bool anywhere; /* user-defined: also in text that is not trusted */
};

struct special_tokens {
    struct special_name *names; /* (count) sorted by bytes */
    uint32_t count;
    uint32_t firsts[257]; /* names[firsts[b]] .. names[firsts[b + 1] - 1] begin with byte b */
    bool any_anywhere;
};

/* table must live as long as special. ST_INVAL: a name stands twice; ST_NOMEM. On failure special needs no free. */
NODISCARD enum status special_tokens_init(struct special_tokens *special, const struct token_table *table,
                                          struct error *err);
void special_tokens_free(struct special_tokens *special); /* fine on zeroed memory */

/* The longest name at the start of text[length] that lies in its first trusted bytes, or is allowed anywhere. NULL:
 * none. *work is raised by the steps taken. */
const struct special_name *special_tokens_match(const struct special_tokens *special, const char *text, size_t length,
                                                size_t trusted, uint64_t *work);

#endif
