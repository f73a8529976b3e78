/* See tokenizer_unigram.h. All tokens that begin at a place are found by narrowing the sorted vocabulary byte by byte,
 * as special_tokens.c does with names. Rejected: a trie, faster to walk and four times as large. */
#include "runtime/text/tokenizer_unigram.h"

#include "runtime/base/mem.h"
#include "runtime/base/utf8.h"
#include "runtime/text/tokenizer_bpe.h"

#include <stdlib.h>
#include <string.h>

enum { UNKNOWN_PENALTY = 10 };

struct unigram_node {
    double score;   /* of the best way from the start of the piece to here */
    uint32_t start; /* where its last token begins; UINT32_MAX: no way leads here */
    uint32_t id;    /* that token */
    uint32_t next;  /* on the best way: where the token ends that begins here */
};

/* --- creation --- */

void unigram_free(struct unigram *unigram)
{
    mem_free(unigram->sorted);
    mem_free(unigram->scores);
    memset(unigram, 0, sizeof *unigram);
}

static int compare(const void *a, const void *b, void *state)
{
    const struct token_table *table = state;
    uint32_t n, m, x = *(const uint32_t *)a, y = *(const uint32_t *)b;
    const char *s = token_table_get(table, x, &n), *t = token_table_get(table, y, &m);
    int order = memcmp(s, t, n < m ? n : m);
    return order ? order : n < m ? -1 : n > m;
}

static void sort_tokens(struct unigram *u)
{
    for (uint32_t id = 0; id < u->table->count; id++) {
        uint32_t length;
        const char *bytes = token_table_get(u->table, id, &length);
        uint8_t kind = u->table->kinds[id];
        if ((kind != VOCAB_NORMAL && kind != VOCAB_USER_DEFINED) || !length || id == u->unknown_id) continue;
        u->sorted[u->sorted_count++] = id;
        u->firsts[(unsigned char)*bytes + 1]++;
    }
    for (int b = 0; b < 256; b++) u->firsts[b + 1] += u->firsts[b];
    qsort_r(u->sorted, u->sorted_count, sizeof *u->sorted, compare, (void *)(uintptr_t)u->table);
}

enum status unigram_init(struct unigram *unigram, const struct token_table *table, const struct vocab *vocab,
                         struct error *err)
{
    struct unigram *u = unigram;
    const struct vocab_pipeline *p = vocab->pipeline;
    memset(u, 0, sizeof *u);
    u->table = table;
    u->unknown_id = vocab->unknown_id;
    u->byte_fallback = p->byte_fallback;
    u->fuse_unknown = p->fuse_unknown;
    if (!p->scores) return error_set(err, ST_INVAL, "vocabulary: the scores of tokens are missing");
    u->sorted = mem_alloc(table->count, sizeof *u->sorted);
    u->scores = mem_alloc(table->count, sizeof *u->scores);
    if (!u->sorted || !u->scores) {
        unigram_free(u);
        return ST_NOMEM;
    }
    double lowest = 0;
    for (uint32_t id = 0; id < table->count; id++) {
        u->scores[id] = p->scores[id];
        if (!id || u->scores[id] < lowest) lowest = u->scores[id];
    }
    u->unknown_score = lowest - UNKNOWN_PENALTY;
    token_table_bytes(table, u->byte_ids);
    bool bytes = u->byte_fallback;
    for (int b = 0; bytes && b < 256; b++) bytes = u->byte_ids[b] != VOCAB_NO_ID;
    u->covers = bytes || (!u->fuse_unknown && u->unknown_id != VOCAB_NO_ID);
    sort_tokens(u);
    return ST_OK;
}

/* --- encoding --- */

void unigram_scratch_free(struct unigram_scratch *scratch)
{
    mem_free(scratch->nodes);
    memset(scratch, 0, sizeof *scratch);
}

static enum status scratch_reserve(struct unigram_scratch *s, size_t nodes)
{
    if (nodes <= s->capacity) return ST_OK;
    struct unigram_node *more = mem_resize(s->nodes, nodes, sizeof *more);
    if (!more) return ST_NOMEM;
    s->nodes = more;
    s->capacity = nodes;
    return ST_OK;
}

/* The byte at depth of a token, which is longer than that. */
static unsigned byte_at(const struct unigram *u, uint32_t place, size_t depth)
{
    return (unsigned char)u->table->bytes[u->table->starts[u->sorted[place]] + depth];
}

/* The first of sorted[low .. high) whose byte at depth is at least `byte`. */
static uint32_t lower_bound(const struct unigram *u, uint32_t low, uint32_t high, size_t depth, unsigned byte)
{
    while (low < high) {
        uint32_t middle = low + (high - low) / 2;
        if (byte_at(u, middle, depth) < byte)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

static void reach(struct unigram_node *node, double score, uint32_t start, uint32_t id)
{
    if (node->start != UINT32_MAX && score <= node->score) return;
    *node = (struct unigram_node){score, start, id, 0};
}

/* Every token that begins at `at`; true if one of them is `character` bytes long. */
static bool reach_tokens(const struct unigram *u, const char *piece, size_t length, size_t at, size_t character_bytes,
                         struct unigram_scratch *s)
{
    const char *text = piece + at;
    size_t left = length - at;
    bool single = false;
    uint32_t low = u->firsts[(unsigned char)*text], high = u->firsts[(unsigned char)*text + 1];
    for (size_t depth = 1; low < high; depth++) {
        s->work++;
        uint32_t id = u->sorted[low];
        if (u->table->starts[id + 1] - u->table->starts[id] == depth) { /* it sorts before those that go on */
            reach(&s->nodes[at + depth], s->nodes[at].score + u->scores[id], (uint32_t)at, id);
            single |= depth == character_bytes;
            low++;
        }
        if (depth == left) break;
        unsigned byte = (unsigned char)text[depth];
        low = lower_bound(u, low, high, depth, byte);
        high = lower_bound(u, low, high, depth, byte + 1);
    }
    return single;
}

/* The ids of text that no token covers. */
static enum status append_unknown(const struct unigram *u, const char *text, size_t length, struct token_list *list)
{
    bool all = u->byte_fallback;
    TRY(token_list_reserve(list, length));
    for (size_t i = 0; all && i < length; i++) all = u->byte_ids[(unsigned char)text[i]] != VOCAB_NO_ID;
    for (size_t i = 0; all && i < length; i++) list->ids[list->count++] = u->byte_ids[(unsigned char)text[i]];
    if (!all && u->unknown_id != VOCAB_NO_ID) list->ids[list->count++] = u->unknown_id;
    return ST_OK;
}

/* The best way, from its end back to its start and then forwards. */
static enum status append_best(const struct unigram *u, const char *piece, uint32_t length, struct unigram_node *nodes,
                               struct token_list *list)
{
    for (uint32_t at = length; at; at = nodes[at].start) nodes[nodes[at].start].next = at;
    for (uint32_t at = 0, end; at < length; at = end) {
        end = nodes[at].next;
        uint32_t id = nodes[end].id;
        if (id != u->unknown_id) {
            TRY(token_list_reserve(list, 1));
            list->ids[list->count++] = id;
            continue;
        }
        while (u->fuse_unknown && end < length && nodes[nodes[end].next].id == u->unknown_id) end = nodes[end].next;
        TRY(append_unknown(u, piece + at, end - at, list));
    }
    return ST_OK;
}

enum status unigram_encode(const struct unigram *unigram, const char *piece, size_t length,
                           struct unigram_scratch *scratch, struct token_list *list)
{
    if (length >= UINT32_MAX - 1) return ST_LIMIT;
    /* A text far past the limit is refused before memory is taken for it. */
    uint32_t longest = unigram->table->length_max > 4 ? unigram->table->length_max : 4;
    if (unigram->covers) TRY(token_list_reserve(list, length / longest));
    TRY(scratch_reserve(scratch, length + 1));
    struct unigram_node *nodes = scratch->nodes;
    for (size_t i = 0; i <= length; i++) nodes[i] = (struct unigram_node){0, UINT32_MAX, 0, 0};
    nodes[0].start = 0;
    for (size_t at = 0; at < length;) {
        size_t n = utf8_length(piece + at, length - at);
        if (!n) n = 1;
        /* A token may end within a character only if the vocabulary is odd; such places are passed over. */
        if (!reach_tokens(unigram, piece, length, at, n, scratch))
            reach(&nodes[at + n], nodes[at].score + unigram->unknown_score, (uint32_t)at, unigram->unknown_id);
        at += n;
    }
    return append_best(unigram, piece, (uint32_t)length, nodes, list);
}
