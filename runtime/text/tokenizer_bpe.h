/* Byte-level byte-pair encoding: a piece of text starts as one token a byte; then, again and again, the neighbouring
 * pair whose merge has the lowest rank (the leftmost of equals) becomes one token, until no pair has a merge. Source:
 * Sennrich et al. 2016, arXiv:1508.07909; over bytes: Radford et al. 2019 (GPT-2).
 *
 * Files write a byte as a printable character (GPT-2's map: "Ġ" is a space); here tokens are plain bytes from creation
 * on. Only tokens of kind NORMAL and USER_DEFINED are ever made from text, so no text can become a control token here.
 * Both structures are immutable after creation; any thread. */
#ifndef RUNTIME_TEXT_TOKENIZER_BPE_H
#define RUNTIME_TEXT_TOKENIZER_BPE_H

#include "runtime/base/status.h"
#include "runtime/model/vocab.h"
#include "runtime/text/tokenizer.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* The bytes of every token: of normal ones what they stand for, of special and user-defined ones their name. */
struct token_table {
    uint32_t count, length_max;
    uint32_t *starts; /* (count + 1) offsets into bytes */
    char *bytes;
    uint8_t *kinds; /* (count) enum vocab_kind */
    bool *plain;    /* (count) the name is in the byte-level alphabet: merges may name it */
};

/* ST_INVAL: no tokens, an unknown kind, more than 4 GiB of text; ST_NOMEM. On failure the table needs no free. */
NODISCARD enum status token_table_init(struct token_table *table, const struct vocab *vocab, struct error *err);
void token_table_free(struct token_table *table); /* fine on zeroed memory */

static inline const char *token_table_get(const struct token_table *table, uint32_t id, uint32_t *length)
{
    *length = table->starts[id + 1] - table->starts[id];
    return table->bytes + table->starts[id];
}

struct bpe_pair; /* in tokenizer_bpe.c */

struct bpe {
    const struct token_table *table; /* borrowed */
    uint32_t byte_ids[256];          /* the token of each byte, VOCAB_NO_ID where the vocabulary has none */
    uint32_t bytes_missing;
    uint32_t *words; /* open addressing: bytes -> id, the top bit set when whole */
    uint32_t words_mask;
    struct bpe_pair *pairs; /* open addressing: (left, right) -> rank, product */
    uint32_t pairs_mask;
    struct vocab_merge *merges; /* (merges_count) by rank */
    uint32_t merges_count;
};

/* table must live as long as bpe. whole_words: a piece that is a token is taken as it is, whatever the merges say.
 * ST_INVAL: two tokens with one name, a merge that is malformed, doubled, or of pieces that are no tokens; ST_NOMEM. On
 * failure bpe needs no free. */
NODISCARD enum status bpe_init(struct bpe *bpe, const struct token_table *table, const struct vocab *vocab,
                               bool whole_words, struct error *err);
void bpe_free(struct bpe *bpe); /* fine on zeroed memory */

/* Memory for long pieces, kept over the pieces of one call. Zeroed = empty. */
struct bpe_scratch {
    uint32_t *ids, *previous, *next; /* (capacity) a linked list of tokens, at the offset of their first byte */
    uint64_t *heap;                  /* (2 capacity) rank << 32 | offset */
    size_t capacity;
    uint64_t work; /* comparisons, look-ups and moves, for tests of the bound */
};

void bpe_scratch_free(struct bpe_scratch *scratch);

/* Appends the ids of one piece. A byte that the vocabulary has no token for gives none, and its neighbours may merge
 * (as in the `tokenizers` library). Work: O(n log n). ST_LIMIT: list->limit, or 4 GiB; ST_NOMEM. */
NODISCARD enum status bpe_encode(const struct bpe *bpe, const char *piece, size_t length, struct bpe_scratch *scratch,
                                 struct token_list *list);

/* Room for `more` ids. ST_LIMIT, ST_NOMEM. */
NODISCARD enum status token_list_reserve(struct token_list *list, size_t more);

#endif
