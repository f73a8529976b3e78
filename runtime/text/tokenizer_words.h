/* WordPiece and WordLevel: a piece is a word. WordLevel: it is a token, or unknown. WordPiece: the longest token that
 * it begins with, then the longest that continues it ("##ing"), and so on; unknown as a whole when that fails or it has
 * too many characters. Source: Schuster and Nakajima 2012; the `tokenizers` library, models/wordpiece. Only tokens of
 * kind NORMAL and USER_DEFINED are made, and the unknown one. Immutable after creation; any thread. */
#ifndef RUNTIME_TEXT_TOKENIZER_WORDS_H
#define RUNTIME_TEXT_TOKENIZER_WORDS_H

#include "runtime/base/status.h"
#include "runtime/model/vocab.h"
#include "runtime/text/token_table.h"
#include "runtime/text/tokenizer.h"

enum { WORD_MAX = 512 }; /* bytes of a token of WordPiece, of those that a word can hold */

struct words {
    const struct token_table *table; /* borrowed */
    uint32_t *slots;                 /* open addressing: bytes -> id */
    uint32_t mask, unknown_id, chars_max;
    uint64_t seed; /* of the hash of slots */
    bool pieces;   /* WordPiece */
    char *prefix;
    uint32_t prefix_length, length_max;
    bool lengths[WORD_MAX + 1]; /* WordPiece: of which some token is; length_max is the greatest */
};

/* table must live as long as words. ST_INVAL: the prefix is longer than 64 bytes, words may have more than 1,000
 * characters, a token of WordPiece that a word can hold is longer than 512 bytes, or the unknown token is missing;
 * ST_NOMEM. On failure words needs no free. */
NODISCARD enum status words_init(struct words *words, const struct token_table *table, const struct vocab *vocab,
                                 bool pieces, struct error *err);
void words_free(struct words *words); /* fine on zeroed memory */

/* Appends the ids of one piece. Work: for each character at most a look-up for each length of a token. *work is
 * raised.
 * ST_LIMIT: list->limit; ST_NOMEM. */
NODISCARD enum status words_encode(const struct words *words, const char *piece, size_t length, uint64_t *work,
                                   struct token_list *list);

#endif
