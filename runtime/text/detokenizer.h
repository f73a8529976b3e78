/* Ids to text as they come, never emitting a broken UTF-8 character.
 *
 * Bytes that may be the beginning of a character are held back (at most 3); bytes that can be no character become
 * U+FFFD, one for each maximal bad sequence, as Python's bytes.decode(errors="replace") does. So the joined output
 * equals the decoding of all ids at once. Plain data in the caller's memory; one thread at a time. */
#ifndef RUNTIME_TEXT_DETOKENIZER_H
#define RUNTIME_TEXT_DETOKENIZER_H

#include "runtime/base/buf.h"
#include "runtime/text/tokenizer.h"

struct detokenizer {
    const struct tokenizer *tokenizer;
    bool keep_special; /* false: special tokens give no text */
    uint8_t held_count;
    uint32_t start_spaces; /* that many spaces at the front are left out */
    char held[4];
};

void detokenizer_init(struct detokenizer *detokenizer, const struct tokenizer *tokenizer, bool keep_special);

/* The same for ids that are a whole text from its start, not what follows a prompt. */
void detokenizer_init_whole(struct detokenizer *detokenizer, const struct tokenizer *tokenizer, bool keep_special);

/* Appends the text that id completes (perhaps none) to out. */
void detokenizer_push(struct detokenizer *detokenizer, uint32_t id, struct buf *out);

/* The same for raw bytes (a token cut short by a stop string). */
void detokenizer_push_bytes(struct detokenizer *detokenizer, const char *bytes, size_t length, struct buf *out);

/* What is still held becomes U+FFFD. */
void detokenizer_finish(struct detokenizer *detokenizer, struct buf *out);

#endif
