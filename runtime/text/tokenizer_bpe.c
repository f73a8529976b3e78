/* Three ways through a piece, from common to rare:
 *   1. the piece as a whole is a token that its own merges lead to (known since creation): one look-up;
 *   2. up to SHORT bytes: tokens in an array on the stack; find the lowest rank by a scan, merge, close the gap;
 *   3. longer: a linked list and a binary heap of (rank, offset). An entry is checked when it comes up, against the
 * pair its rank belongs to, so merges need not find and remove old ones. At most 2 entries a merge: O(n log n).
 *
 *        offset   0    1    2    3    4    5
 *        ids      th   .    e    q    u    .        next[0] = 2, previous[2] = 0; "." is dead
 *        heap     (rank of th+e, 0) (rank of q+u, 3) ...
 *
 * Way 1 does most of English. Rejected: a cache of words (a lock, or memory a thread), for what way 1 gives without
 * state; a trie over tokens (larger, and no faster than one hash of a short word). */
#include "runtime/text/tokenizer_bpe.h"

#include "runtime/base/check.h"
#include "runtime/base/hash.h"
#include "runtime/base/mem.h"
#include "runtime/base/utf8.h"

#include <string.h>

enum { SHORT = 48 };
#define WHOLE   (UINT32_C(1) << 31)
#define NO_PAIR UINT64_MAX

struct bpe_pair {
    uint64_t key;   /* left << 32 | right; NO_PAIR: free */
    uint64_t value; /* rank << 32 | product */
};

/* GPT-2's map: printable Latin-1 bytes stand for themselves, the other 68 for U+0100 upwards in their order.
 * byte_of[c] is the byte of character c, or -1. */
enum { BYTE_CHARACTERS = 0x100 + 68 };

static void byte_map(int16_t byte_of[BYTE_CHARACTERS])
{
    int other = 0x100;
    memset(byte_of, 0xff, BYTE_CHARACTERS * sizeof *byte_of);
    for (int b = 0; b < 256; b++) {
        bool printable = (b >= '!' && b <= '~') || (b >= 0xa1 && b <= 0xac) || b >= 0xae;
        byte_of[printable ? b : other++] = (int16_t)b;
    }
    CHECK_EQ(other, BYTE_CHARACTERS);
}

/* Byte-level text to bytes; false when a character is not of that alphabet. out has room for length bytes. */
static bool to_bytes(const int16_t byte_of[BYTE_CHARACTERS], const char *text, size_t length, char *out,
                     size_t *out_length)
{
    size_t n = 0;
    for (size_t i = 0; i < length;) {
        uint32_t c;
        size_t step = utf8_decode(text + i, length - i, &c);
        if (!step || c >= BYTE_CHARACTERS || byte_of[c] < 0) return false;
        out[n++] = (char)byte_of[c];
        i += step;
    }
    *out_length = n;
    return true;
}

/* --- the table of tokens --- */

void token_table_free(struct token_table *table)
{
    mem_free(table->starts);
    mem_free(table->bytes);
    mem_free(table->kinds);
    mem_free(table->plain);
    memset(table, 0, sizeof *table);
}

static void table_fill(struct token_table *table, const struct vocab *vocab)
{
    int16_t byte_of[BYTE_CHARACTERS];
    uint32_t at = 0;
    byte_map(byte_of);
    for (uint32_t id = 0; id < vocab->count; id++) {
        const struct vocab_string *token = &vocab->tokens[id];
        uint8_t kind = vocab->kinds[id];
        size_t length = token->length;
        bool plain = to_bytes(byte_of, token->text, token->length, table->bytes + at, &length);
        bool name = kind == VOCAB_CONTROL || kind == VOCAB_UNKNOWN || kind == VOCAB_USER_DEFINED;
        if (name || !plain) {
            length = token->length;
            if (length) memcpy(table->bytes + at, token->text, length);
        }
        table->starts[id] = at;
        table->kinds[id] = kind;
        table->plain[id] = plain;
        at += (uint32_t)length;
        if (length > table->length_max) table->length_max = (uint32_t)length;
    }
    table->starts[vocab->count] = at;
}

enum status token_table_init(struct token_table *table, const struct vocab *vocab, struct error *err)
{
    size_t bytes = 0;
    memset(table, 0, sizeof *table);
    if (!vocab->count || vocab->count >= WHOLE)
        return error_set(err, ST_INVAL, "vocabulary: %u tokens, expected 1 to 2^31 - 1", vocab->count);
    for (uint32_t id = 0; id < vocab->count; id++) {
        if (vocab->kinds[id] < VOCAB_NORMAL || vocab->kinds[id] > VOCAB_BYTE)
            return error_set(err, ST_INVAL, "vocabulary: token %u has the unknown kind %u", id, vocab->kinds[id]);
        bytes += vocab->tokens[id].length;
        if (bytes > UINT32_MAX) return error_set(err, ST_INVAL, "vocabulary: more than 4 GiB of token text");
    }
    table->count = vocab->count;
    table->starts = mem_alloc((size_t)vocab->count + 1, sizeof *table->starts);
    table->bytes = mem_alloc(bytes, 1);
    table->kinds = mem_alloc(vocab->count, sizeof *table->kinds);
    table->plain = mem_alloc(vocab->count, sizeof *table->plain);
    if (!table->starts || !table->bytes || !table->kinds || !table->plain) {
        token_table_free(table);
        return ST_NOMEM;
    }
    table_fill(table, vocab);
    return ST_OK;
}

/* --- tables of words and pairs --- */

/* The slot of words that holds these bytes, or the free slot where they belong. */
static uint32_t word_slot(const struct bpe *bpe, const char *bytes, size_t length)
{
    uint32_t slot = (uint32_t)hash_bytes(bytes, length, 0) & bpe->words_mask;
    for (; bpe->words[slot] != VOCAB_NO_ID; slot = (slot + 1) & bpe->words_mask) {
        uint32_t n;
        const char *word = token_table_get(bpe->table, bpe->words[slot] & ~WHOLE, &n);
        if (n == length && !memcmp(word, bytes, length)) break;
    }
    return slot;
}

static uint32_t word_find(const struct bpe *bpe, const char *bytes, size_t length)
{
    return length > bpe->table->length_max ? VOCAB_NO_ID : bpe->words[word_slot(bpe, bytes, length)];
}

static inline uint32_t pair_slot(const struct bpe *bpe, uint64_t key)
{
    return (uint32_t)(key * UINT64_C(0x9e3779b97f4a7c15) >> 32) & bpe->pairs_mask;
}

/* rank << 32 | product of a pair, or NO_PAIR. */
static inline uint64_t pair_find(const struct bpe *bpe, uint32_t left, uint32_t right)
{
    uint64_t key = (uint64_t)left << 32 | right;
    uint32_t slot = pair_slot(bpe, key);
    while (bpe->pairs[slot].key != key) {
        if (bpe->pairs[slot].key == NO_PAIR) return NO_PAIR;
        slot = (slot + 1) & bpe->pairs_mask;
    }
    return bpe->pairs[slot].value;
}

/* A power of two of at least 2 count slots, all bytes 0xff (which is "free" for words and pairs alike), or NULL. */
static void *slots_create(uint32_t count, size_t slot_bytes, uint32_t *mask)
{
    size_t slots = 16;
    while (slots < 2 * (size_t)count) slots *= 2;
    void *memory = mem_resize(NULL, slots, slot_bytes);
    if (memory) memset(memory, 0xff, slots * slot_bytes);
    *mask = (uint32_t)(slots - 1);
    return memory;
}

/* Normal tokens first: where a user-defined token has the bytes of a normal one, text gives the normal one. */
static enum status add_words(struct bpe *bpe, struct error *err)
{
    const struct token_table *table = bpe->table;
    for (int pass = 0; pass < 2; pass++) {
        for (uint32_t id = 0; id < table->count; id++) {
            uint32_t length;
            const char *bytes = token_table_get(table, id, &length);
            if (table->kinds[id] != (pass ? VOCAB_USER_DEFINED : VOCAB_NORMAL) || !table->plain[id] || !length)
                continue;
            uint32_t slot = word_slot(bpe, bytes, length);
            if (bpe->words[slot] == VOCAB_NO_ID)
                bpe->words[slot] = id;
            else if (!pass)
                return error_set(err, ST_INVAL, "vocabulary: tokens %u and %u are the same", bpe->words[slot], id);
        }
    }
    for (int b = 0; b < 256; b++) {
        char byte = (char)b;
        bpe->byte_ids[b] = word_find(bpe, &byte, 1);
        bpe->bytes_missing += bpe->byte_ids[b] == VOCAB_NO_ID;
    }
    return ST_OK;
}

/* "left right" to the ids of both and of their concatenation. room has 2 length_max bytes. */
static bool merge_parse(const struct bpe *bpe, const int16_t *byte_of, const struct vocab_string *text, char *room,
                        struct vocab_merge *merge)
{
    const char *space = text->length ? memchr(text->text + 1, ' ', text->length - 1) : NULL;
    size_t left, right, room_bytes = bpe->table->length_max;
    if (!space) return false;
    size_t left_text = (size_t)(space - text->text), right_text = text->length - left_text - 1;
    /* A byte takes one or two bytes of text: more cannot be a token, and less fits in room. */
    if (left_text + right_text > 2 * room_bytes || !right_text) return false;
    if (!to_bytes(byte_of, text->text, left_text, room, &left)) return false;
    if (!to_bytes(byte_of, space + 1, right_text, room + left, &right)) return false;
    merge->left = word_find(bpe, room, left);
    merge->right = word_find(bpe, room + left, right);
    merge->product = word_find(bpe, room, left + right);
    return merge->left != VOCAB_NO_ID && merge->right != VOCAB_NO_ID && merge->product != VOCAB_NO_ID;
}

/* GGUF's merges are texts. */
static enum status parse_merges(struct bpe *bpe, const struct vocab *vocab, struct error *err)
{
    int16_t byte_of[BYTE_CHARACTERS];
    char *room = mem_alloc(2 * (size_t)bpe->table->length_max, 1);
    if (!room) return ST_NOMEM;
    byte_map(byte_of);
    for (uint32_t rank = 0; rank < vocab->merges_count; rank++) {
        const struct vocab_string *text = &vocab->merges[rank];
        if (merge_parse(bpe, byte_of, text, room, &bpe->merges[rank])) continue;
        mem_free(room);
        return error_set(err, ST_INVAL, "vocabulary: merge %u (\"%.*s\") does not join two tokens into a third", rank,
                         (int)(text->length < 64 ? text->length : 64), text->text);
    }
    mem_free(room);
    return ST_OK;
}

static bool makes_text(const struct bpe *bpe, uint32_t id)
{
    return bpe->table->kinds[id] == VOCAB_NORMAL || bpe->table->kinds[id] == VOCAB_USER_DEFINED;
}

/* tokenizer.json's merges are ids. */
static enum status copy_merges(struct bpe *bpe, const struct vocab *vocab, struct error *err)
{
    for (uint32_t rank = 0; rank < vocab->merges_count; rank++) {
        const struct vocab_merge *merge = &vocab->pipeline->merges[rank];
        if (!makes_text(bpe, merge->left) || !makes_text(bpe, merge->right) || !makes_text(bpe, merge->product))
            return error_set(err, ST_INVAL, "vocabulary: merge %u takes or makes a control token (ids %u, %u, %u)",
                             rank, merge->left, merge->right, merge->product);
        bpe->merges[rank] = *merge;
    }
    return ST_OK;
}

/* A pair that stands twice: GGUF's are refused; of tokenizer.json's the later one counts, as in the library. */
static enum status add_merges(struct bpe *bpe, const struct vocab *vocab, struct error *err)
{
    TRY(vocab->pipeline ? copy_merges(bpe, vocab, err) : parse_merges(bpe, vocab, err));
    for (uint32_t rank = 0; rank < vocab->merges_count; rank++) {
        const struct vocab_merge *merge = &bpe->merges[rank];
        uint64_t key = (uint64_t)merge->left << 32 | merge->right;
        uint32_t slot = pair_slot(bpe, key);
        while (bpe->pairs[slot].key != NO_PAIR && bpe->pairs[slot].key != key) slot = (slot + 1) & bpe->pairs_mask;
        if (bpe->pairs[slot].key == key && !vocab->pipeline)
            return error_set(err, ST_INVAL, "vocabulary: merge %u (\"%.*s\") stands twice", rank,
                             (int)(vocab->merges[rank].length < 64 ? vocab->merges[rank].length : 64),
                             vocab->merges[rank].text);
        bpe->pairs[slot] = (struct bpe_pair){key, (uint64_t)rank << 32 | merge->product};
    }
    return ST_OK;
}

/* --- encoding --- */

enum status token_list_reserve(struct token_list *list, size_t more)
{
    size_t need, capacity = list->capacity;
    if (!checked_add(list->count, more, &need)) return ST_NOMEM;
    if (list->limit && need > list->limit) return ST_LIMIT;
    if (need <= capacity) return ST_OK;
    capacity = capacity < 64 ? 64 : capacity > SIZE_MAX / 2 ? SIZE_MAX : 2 * capacity;
    if (capacity < need) capacity = need;
    uint32_t *ids = mem_resize(list->ids, capacity, sizeof *ids);
    if (!ids) return ST_NOMEM;
    list->ids = ids;
    list->capacity = capacity;
    return ST_OK;
}

void token_list_free(struct token_list *list)
{
    mem_free(list->ids);
    list->ids = NULL;
    list->count = list->capacity = 0;
}

/* Way 2: merges ids[n] in place and returns how many are left. n <= SHORT. */
static size_t merge_short(const struct bpe *bpe, uint32_t *ids, size_t n, uint64_t *work)
{
    uint64_t pairs[SHORT]; /* pairs[i] is that of ids[i] and ids[i + 1] */
    for (size_t i = 0; i + 1 < n; i++) pairs[i] = pair_find(bpe, ids[i], ids[i + 1]);
    while (n > 1) {
        size_t best = 0;
        for (size_t i = 1; i + 1 < n; i++)
            if (pairs[i] < pairs[best]) best = i; /* the rank is on top, and the leftmost of equals stays */
        *work += 2 * n;
        if (pairs[best] == NO_PAIR) break;
        ids[best] = (uint32_t)pairs[best];
        n--;
        memmove(&ids[best + 1], &ids[best + 2], (n - best - 1) * sizeof *ids);
        memmove(&pairs[best], &pairs[best + 1], (n - best - 1) * sizeof *pairs);
        if (best) pairs[best - 1] = pair_find(bpe, ids[best - 1], ids[best]);
        if (best + 1 < n) pairs[best] = pair_find(bpe, ids[best], ids[best + 1]);
    }
    return n;
}

static void heap_down(uint64_t *heap, size_t count, size_t at, uint64_t *work)
{
    uint64_t item = heap[at];
    for (size_t child; (child = 2 * at + 1) < count; at = child) {
        ++*work;
        if (child + 1 < count && heap[child + 1] < heap[child]) child++;
        if (heap[child] >= item) break;
        heap[at] = heap[child];
    }
    heap[at] = item;
}

static void heap_up(uint64_t *heap, size_t at, uint64_t item, uint64_t *work)
{
    for (; at && heap[(at - 1) / 2] > item; at = (at - 1) / 2) {
        ++*work;
        heap[at] = heap[(at - 1) / 2];
    }
    heap[at] = item;
}

/* Way 3 on s->ids[n]; what is left is chained by s->next from 0 to n. */
static void merge_long(const struct bpe *bpe, struct bpe_scratch *s, uint32_t n)
{
    size_t count = 0;
    for (uint32_t i = 0; i < n; i++) {
        s->previous[i] = i - 1;
        s->next[i] = i + 1;
        uint64_t pair = i + 1 < n ? pair_find(bpe, s->ids[i], s->ids[i + 1]) : NO_PAIR;
        if (pair != NO_PAIR) s->heap[count++] = (pair >> 32 << 32) | i;
    }
    s->work += n;
    for (size_t i = count / 2; i-- > 0;) heap_down(s->heap, count, i, &s->work);
    while (count) {
        uint32_t at = (uint32_t)s->heap[0];
        const struct vocab_merge *merge = &bpe->merges[s->heap[0] >> 32];
        s->heap[0] = s->heap[--count];
        if (count) heap_down(s->heap, count, 0, &s->work);
        s->work++;
        uint32_t right = s->next[at];
        if (s->ids[at] != merge->left || right == n || s->ids[right] != merge->right) continue; /* an old entry */
        s->ids[at] = merge->product;
        s->ids[right] = VOCAB_NO_ID; /* dead: equals no merge's left */
        uint32_t after = s->next[at] = s->next[right];
        if (after != n) {
            s->previous[after] = at;
            uint64_t pair = pair_find(bpe, s->ids[at], s->ids[after]);
            if (pair != NO_PAIR) heap_up(s->heap, count++, (pair >> 32 << 32) | at, &s->work);
        }
        if (at) {
            uint32_t before = s->previous[at];
            uint64_t pair = pair_find(bpe, s->ids[before], s->ids[at]);
            if (pair != NO_PAIR) heap_up(s->heap, count++, (pair >> 32 << 32) | before, &s->work);
        }
    }
}

void bpe_scratch_free(struct bpe_scratch *scratch)
{
    mem_free(scratch->ids);
    mem_free(scratch->previous);
    mem_free(scratch->next);
    mem_free(scratch->heap);
    memset(scratch, 0, sizeof *scratch);
}

/* Room for pieces of n bytes. What was in it is lost. */
static enum status scratch_reserve(struct bpe_scratch *s, size_t n)
{
    uint64_t work = s->work;
    if (n <= s->capacity) return ST_OK;
    bpe_scratch_free(s);
    s->work = work;
    s->ids = mem_resize(NULL, n, sizeof *s->ids);
    s->previous = mem_resize(NULL, n, sizeof *s->previous);
    s->next = mem_resize(NULL, n, sizeof *s->next);
    s->heap = mem_resize(NULL, n, 2 * sizeof *s->heap);
    if (!s->ids || !s->previous || !s->next || !s->heap) return ST_NOMEM; /* freed by the scratch's owner */
    s->capacity = n;
    return ST_OK;
}

static enum status encode_long(const struct bpe *bpe, const char *piece, size_t length, struct bpe_scratch *s,
                               struct token_list *list)
{
    uint32_t n = 0;
    if (length >= UINT32_MAX) return ST_LIMIT;
    /* No token is longer than length_max, so a prompt far past the limit is refused before memory is taken for it. */
    if (!bpe->bytes_missing) TRY(token_list_reserve(list, length / bpe->table->length_max));
    TRY(scratch_reserve(s, length));
    for (size_t i = 0; i < length; i++) {
        uint32_t id = bpe->byte_ids[(unsigned char)piece[i]];
        if (id != VOCAB_NO_ID) s->ids[n++] = id;
    }
    merge_long(bpe, s, n);
    for (uint32_t i = 0; i < n; i = s->next[i]) {
        TRY(token_list_reserve(list, 1));
        list->ids[list->count++] = s->ids[i];
        s->work++;
    }
    return ST_OK;
}

enum status bpe_encode(const struct bpe *bpe, const char *piece, size_t length, struct bpe_scratch *scratch,
                       struct token_list *list)
{
    uint32_t ids[SHORT];
    size_t n = 0;
    uint32_t word = word_find(bpe, piece, length);
    scratch->work++;
    if (word != VOCAB_NO_ID && word & WHOLE) {
        ids[n++] = word & ~WHOLE;
    } else if (length > SHORT) {
        return encode_long(bpe, piece, length, scratch, list);
    } else {
        for (size_t i = 0; i < length; i++) {
            uint32_t id = bpe->byte_ids[(unsigned char)piece[i]];
            if (id != VOCAB_NO_ID) ids[n++] = id;
        }
        n = merge_short(bpe, ids, n, &scratch->work);
    }
    TRY(token_list_reserve(list, n));
    if (n) memcpy(list->ids + list->count, ids, n * sizeof *ids);
    list->count += n;
    return ST_OK;
}

/* --- creation --- */

void bpe_free(struct bpe *bpe)
{
    mem_free(bpe->words);
    mem_free(bpe->pairs);
    mem_free(bpe->merges);
    memset(bpe, 0, sizeof *bpe);
}

/* Marks the words that bpe_encode may take without merging: all, or those that their own merges lead to. */
static enum status mark_whole(struct bpe *bpe, bool whole_words)
{
    enum status st = ST_OK;
    struct bpe_scratch scratch = {0};
    struct token_list list = {0};
    for (uint32_t slot = 0; slot <= bpe->words_mask && st == ST_OK; slot++) {
        uint32_t id = bpe->words[slot], length;
        if (id == VOCAB_NO_ID) continue;
        const char *bytes = token_table_get(bpe->table, id, &length);
        list.count = 0;
        if (!whole_words) st = bpe_encode(bpe, bytes, length, &scratch, &list);
        if (whole_words || (st == ST_OK && list.count == 1 && list.ids[0] == id)) bpe->words[slot] = id | WHOLE;
    }
    token_list_free(&list);
    bpe_scratch_free(&scratch);
    return st;
}

enum status bpe_init(struct bpe *bpe, const struct token_table *table, const struct vocab *vocab, bool whole_words,
                     struct error *err)
{
    memset(bpe, 0, sizeof *bpe);
    bpe->table = table;
    bpe->merges_count = vocab->merges_count;
    if (vocab->merges_count >= UINT32_MAX / 4) return error_set(err, ST_INVAL, "vocabulary: too many merges");
    bpe->words = slots_create(table->count, sizeof *bpe->words, &bpe->words_mask);
    bpe->pairs = slots_create(vocab->merges_count, sizeof *bpe->pairs, &bpe->pairs_mask);
    bpe->merges = mem_alloc(vocab->merges_count, sizeof *bpe->merges);
    enum status st = bpe->words && bpe->pairs && bpe->merges ? ST_OK : ST_NOMEM;
    if (st == ST_OK) st = add_words(bpe, err);
    if (st == ST_OK) st = add_merges(bpe, vocab, err);
    if (st == ST_OK) st = mark_whole(bpe, whole_words);
    if (st != ST_OK) bpe_free(bpe);
    return st;
}
