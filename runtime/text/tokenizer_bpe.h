/* Byte-pair encoding: a piece of text starts as a token a byte, or one a character; then, again and again, the
 * neighbouring pair whose merge has the lowest rank (the leftmost of equals) becomes one token, until no pair has a
 * merge. Source: Sennrich et al. 2016, arXiv:1508.07909; over bytes: Radford et al. 2019 (GPT-2).
 *
 *   symbols   bytes (GPT-2 and its kin), or characters (SentencePiece and its kin), where a character without a token
 *             becomes its bytes' tokens "<0x41>" or the unknown token
 *   merges    a list by rank, or, as in SentencePiece, every two tokens that make a third: its score is the rank
 *
 * Only tokens of kind NORMAL and USER_DEFINED are ever merged, so no text can become a control token here, but for the
 * unknown one. Immutable after creation; any thread. */
#ifndef RUNTIME_TEXT_TOKENIZER_BPE_H
#define RUNTIME_TEXT_TOKENIZER_BPE_H

#include "runtime/base/status.h"
#include "runtime/model/vocab.h"
#include "runtime/text/token_table.h"
#include "runtime/text/tokenizer.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct bpe_options {
    bool whole_words;   /* a piece that is a token is taken as it is, whatever the merges say */
    bool characters;    /* symbols are characters; else bytes, and the rest does not count */
    bool by_score;      /* merges by the vocabulary's scores; else its list */
    bool byte_fallback; /* a character without a token: its bytes */
    bool fuse_unknown;  /* neighbouring unknown characters are one unknown token */
    uint32_t unknown_id;
    struct vocab_string prefix, suffix; /* of all characters of a piece but the first; of its last one */
};

struct bpe_pair; /* in tokenizer_bpe.c */

struct bpe {
    const struct token_table *table; /* borrowed */
    struct bpe_options options;
    uint32_t byte_ids[256]; /* the token of each byte ("<0x41>" for characters), VOCAB_NO_ID where there is none */
    uint32_t bytes_missing;
    uint32_t *words; /* open addressing: bytes -> id, the top bit set when whole */
    uint32_t words_mask;
    uint64_t seed;          /* of its hash */
    struct bpe_pair *pairs; /* open addressing: (left, right) -> rank, product */
    uint32_t pairs_mask;
    uint64_t *hashes, *powers; /* by_score: hash of each token; factor of a hash by the length that follows it */
    uint32_t *ranks;           /* by_score: of each token, lower is better */
    char *affixes;             /* options.prefix and suffix */
    uint8_t *joins;            /* characters: which may stand side by side within a token; NULL: any */
};

/* table must live as long as bpe. ST_INVAL: two tokens with one name, a merge that is malformed, doubled, or of pieces
 * that are no tokens; ST_NOMEM. On failure bpe needs no free. */
NODISCARD enum status bpe_init(struct bpe *bpe, const struct token_table *table, const struct vocab *vocab,
                               const struct bpe_options *options, struct error *err);
void bpe_free(struct bpe *bpe); /* fine on zeroed memory */

/* Memory for long pieces, kept over the pieces of one call. Zeroed = empty. */
struct bpe_scratch {
    uint32_t *ids, *previous, *next; /* (capacity) a linked list of tokens, at the offset of their first byte */
    uint64_t *pairs;                 /* (capacity) rank << 32 | product of a token and its right neighbour */
    uint64_t *heap;                  /* (2 capacity) rank << 32 | offset */
    size_t capacity;
    uint64_t work; /* comparisons, look-ups and moves, for tests of the bound */
};

void bpe_scratch_free(struct bpe_scratch *scratch);

/* Appends the ids of one piece. A byte, or character, that there is no token for gives none, and its neighbours may
 * merge (as in the `tokenizers` library). Work: O(n log n). ST_LIMIT: list->limit, or 4 GiB; ST_NOMEM. */
NODISCARD enum status bpe_encode(const struct bpe *bpe, const char *piece, size_t length, struct bpe_scratch *scratch,
                                 struct token_list *list);

/* Room for `more` ids. ST_LIMIT, ST_NOMEM. */
NODISCARD enum status token_list_reserve(struct token_list *list, size_t more);

#endif
