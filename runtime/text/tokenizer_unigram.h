/* Unigram tokenisation: of all ways to cut a piece into tokens, the one whose scores (log probabilities) have the
 * highest sum; a character that no token covers costs the lowest score less 10. Source: Kudo 2018, arXiv:1804.10959;
 * the search (best way to every offset, from left to right) is SentencePiece's EncodeOptimized, as is the choice among
 * equals: the first one found, shorter tokens before longer ones.
 *
 * Only tokens of kind NORMAL and USER_DEFINED are made, and bytes and the unknown token for what they do not cover
 * (nothing, where the vocabulary has neither; the library fails there).
 * Immutable after creation; any thread. */
#ifndef RUNTIME_TEXT_TOKENIZER_UNIGRAM_H
#define RUNTIME_TEXT_TOKENIZER_UNIGRAM_H

#include "runtime/base/status.h"
#include "runtime/model/vocab.h"
#include "runtime/text/token_table.h"
#include "runtime/text/tokenizer.h"

struct unigram {
    const struct token_table *table; /* borrowed */
    uint32_t *sorted;                /* (sorted_count) ids in the order of their bytes */
    uint32_t sorted_count;
    uint32_t firsts[257]; /* sorted[firsts[b]] .. sorted[firsts[b + 1] - 1] begin with byte b */
    double *scores;       /* (count) */
    double unknown_score;
    uint32_t unknown_id, byte_ids[256];
    bool byte_fallback, fuse_unknown;
    bool covers; /* every id stands for at most the longest token or character: no text comes to nothing */
};

/* table must live as long as unigram. ST_INVAL: no scores; ST_NOMEM. On failure unigram needs no
 * free. */
NODISCARD enum status unigram_init(struct unigram *unigram, const struct token_table *table, const struct vocab *vocab,
                                   struct error *err);
void unigram_free(struct unigram *unigram); /* fine on zeroed memory */

struct unigram_node; /* in tokenizer_unigram.c */

/* Memory for pieces, kept over those of one call. Zeroed = empty. */
struct unigram_scratch {
    struct unigram_node *nodes; /* (capacity) */
    size_t capacity;
    uint64_t work;
};

void unigram_scratch_free(struct unigram_scratch *scratch);

/* Appends the ids of one piece. Work: O(n m log V) for tokens of at most m bytes. ST_LIMIT: list->limit, or 4 GiB;
 * ST_NOMEM. */
NODISCARD enum status unigram_encode(const struct unigram *unigram, const char *piece, size_t length,
                                     struct unigram_scratch *scratch, struct token_list *list);

#endif
