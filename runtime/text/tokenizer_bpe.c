/* Three ways through a piece, from common to rare:
 *   1. the piece as a whole is a token that its own merges lead to (known since creation): one look-up;
 *   2. up to SHORT symbols: tokens in an array on the stack; find the lowest rank by a scan, merge, close the gap;
 *   3. longer: a linked list and a binary heap of (rank, offset). An entry is checked when it comes up, against the
 *      rank that the pair at its offset has now, so merges need not find and remove old ones. At most 2 entries a
 * merge: O(n log n).
 *
 *        offset   0    1    2    3    4    5
 *        ids      th   .    e    q    u    .        next[0] = 2, previous[2] = 0; "." is dead
 *        heap     (rank of th+e, 0) (rank of q+u, 3) ...
 *
 * Way 1 does most of English over bytes. Rejected: a cache of words (a lock, or memory a thread), for what way 1 gives
 * without state; a trie over tokens (larger, and no faster than one hash of a short word).
 *
 * Vocabularies over characters have no pre-tokeniser to speak of: their piece is the text. But where two characters
 * stand side by side in no token, no merge reaches across, so the piece falls apart there into words ("joins": which
 * classes of characters do). The ids are the same; the work is that of short pieces.
 *
 * Merges by score ask whether two tokens together are a token. A polynomial hash (h = sum of bytes times powers, modulo
 * 2^64) makes the hash of the pair from those of its halves, so nothing is concatenated; collisions cost time only. */
#include "runtime/text/tokenizer_bpe.h"

#include "runtime/base/hash.h"
#include "runtime/base/mem.h"
#include "runtime/base/random.h"
#include "runtime/base/utf8.h"

#include <string.h>

enum { SHORT = 48 };
#define WHOLE   (UINT32_C(1) << 31)
#define NO_PAIR UINT64_MAX

struct bpe_pair {
    uint64_t key;   /* left << 32 | right; NO_PAIR: free */
    uint64_t value; /* rank << 32 | product */
};

/* --- tables of words and pairs --- */

static const uint64_t hash_factor = UINT64_C(0x9e3779b97f4a7c15); /* odd: 2^64 over the golden ratio */

static uint64_t polynomial(const char *bytes, size_t length)
{
    uint64_t hash = 0;
    for (size_t i = 0; i < length; i++) hash = hash * hash_factor + (unsigned char)bytes[i] + 1;
    return hash;
}

static inline uint32_t slot_of(const struct bpe *bpe, uint64_t hash)
{
    return (uint32_t)((hash ^ hash >> 29) * UINT64_C(0xbf58476d1ce4e5b9) >> 32) & bpe->words_mask;
}

/* The slot of words that holds these bytes, or the free slot where they belong. */
static uint32_t word_slot(const struct bpe *bpe, const char *bytes, size_t length)
{
    uint32_t slot = bpe->options.by_score ? slot_of(bpe, polynomial(bytes, length))
                                          : (uint32_t)hash_bytes(bytes, length, bpe->seed) & bpe->words_mask;
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

/* rank << 32 | product of a pair where the merges are not listed: the token of both, ranked by its score; or NO_PAIR.
 */
static uint64_t pair_by_score(const struct bpe *bpe, uint32_t left, uint32_t right)
{
    uint32_t left_length, right_length, length;
    const char *left_bytes = token_table_get(bpe->table, left, &left_length);
    const char *right_bytes = token_table_get(bpe->table, right, &right_length);
    if (right_length > bpe->table->length_max - left_length) return NO_PAIR;
    uint32_t slot = slot_of(bpe, bpe->hashes[left] * bpe->powers[right_length] + bpe->hashes[right]);
    for (; bpe->words[slot] != VOCAB_NO_ID; slot = (slot + 1) & bpe->words_mask) {
        uint32_t id = bpe->words[slot] & ~WHOLE;
        const char *bytes = token_table_get(bpe->table, id, &length);
        if (length == left_length + right_length && !memcmp(bytes, left_bytes, left_length) &&
            !memcmp(bytes + left_length, right_bytes, right_length))
            return (uint64_t)bpe->ranks[id] << 32 | id;
    }
    return NO_PAIR;
}

/* rank << 32 | product of a pair, or NO_PAIR. */
static inline uint64_t pair_find(const struct bpe *bpe, uint32_t left, uint32_t right)
{
    if (bpe->options.by_score) return pair_by_score(bpe, left, right);
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
    return ST_OK;
}

/* The tokens of bytes: by themselves, or as "<0x41>". */
static void add_bytes(struct bpe *bpe)
{
    if (bpe->options.characters) token_table_bytes(bpe->table, bpe->byte_ids);
    for (int b = 0; b < 256 && !bpe->options.characters; b++) {
        char byte = (char)b;
        bpe->byte_ids[b] = word_find(bpe, &byte, 1);
    }
    for (int b = 0; b < 256; b++) bpe->bytes_missing += bpe->byte_ids[b] == VOCAB_NO_ID;
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
    if (!byte_level_decode(byte_of, text->text, left_text, room, &left)) return false;
    if (!byte_level_decode(byte_of, space + 1, right_text, room + left, &right)) return false;
    merge->left = word_find(bpe, room, left);
    merge->right = word_find(bpe, room + left, right);
    merge->product = word_find(bpe, room, left + right);
    return merge->left != VOCAB_NO_ID && merge->right != VOCAB_NO_ID && merge->product != VOCAB_NO_ID;
}

/* GGUF's merges are texts. */
static enum status parse_merges(const struct bpe *bpe, const struct vocab *vocab, struct vocab_merge *merges,
                                struct error *err)
{
    int16_t byte_of[BYTE_CHARACTERS];
    char *room = mem_alloc(2 * (size_t)bpe->table->length_max, 1);
    if (!room) return ST_NOMEM;
    byte_level_map(byte_of, NULL);
    for (uint32_t rank = 0; rank < vocab->merges_count; rank++) {
        const struct vocab_string *text = &vocab->merges[rank];
        if (merge_parse(bpe, byte_of, text, room, &merges[rank])) continue;
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
static enum status check_merges(const struct bpe *bpe, const struct vocab_merge *merges, uint32_t count,
                                struct error *err)
{
    for (uint32_t rank = 0; rank < count; rank++)
        if (!makes_text(bpe, merges[rank].left) || !makes_text(bpe, merges[rank].right) ||
            !makes_text(bpe, merges[rank].product))
            return error_set(err, ST_INVAL, "vocabulary: merge %u takes or makes a control token (ids %u, %u, %u)",
                             rank, merges[rank].left, merges[rank].right, merges[rank].product);
    return ST_OK;
}

/* A pair that stands twice: GGUF's are refused; of tokenizer.json's the later one counts, as in the library. */
static enum status add_pairs(struct bpe *bpe, const struct vocab *vocab, const struct vocab_merge *merges,
                             struct error *err)
{
    for (uint32_t rank = 0; rank < vocab->merges_count; rank++) {
        uint64_t key = (uint64_t)merges[rank].left << 32 | merges[rank].right;
        uint32_t slot = pair_slot(bpe, key);
        while (bpe->pairs[slot].key != NO_PAIR && bpe->pairs[slot].key != key) slot = (slot + 1) & bpe->pairs_mask;
        if (bpe->pairs[slot].key == key && !vocab->pipeline)
            return error_set(err, ST_INVAL, "vocabulary: merge %u (\"%.*s\") stands twice", rank,
                             (int)(vocab->merges[rank].length < 64 ? vocab->merges[rank].length : 64),
                             vocab->merges[rank].text);
        bpe->pairs[slot] = (struct bpe_pair){key, (uint64_t)rank << 32 | merges[rank].product};
    }
    return ST_OK;
}

static enum status add_merges(struct bpe *bpe, const struct vocab *vocab, struct error *err)
{
    if (vocab->merges_count >= UINT32_MAX / 4) return error_set(err, ST_INVAL, "vocabulary: too many merges");
    bpe->pairs = slots_create(vocab->merges_count, sizeof *bpe->pairs, &bpe->pairs_mask);
    if (!bpe->pairs) return ST_NOMEM;
    if (vocab->pipeline) {
        TRY(check_merges(bpe, vocab->pipeline->merges, vocab->merges_count, err));
        return add_pairs(bpe, vocab, vocab->pipeline->merges, err);
    }
    struct vocab_merge *merges = mem_alloc(vocab->merges_count, sizeof *merges);
    if (!merges) return ST_NOMEM;
    enum status status = parse_merges(bpe, vocab, merges, err);
    if (status == ST_OK) status = add_pairs(bpe, vocab, merges, err);
    mem_free(merges);
    return status;
}

/* The order of floats as that of unsigned numbers, turned round: a higher score is a lower rank. */
static uint32_t rank_of_score(float score)
{
    uint32_t bits;
    score += 0.0F; /* -0 is 0 */
    memcpy(&bits, &score, sizeof bits);
    return ~(bits & UINT32_C(1) << 31 ? ~bits : bits | UINT32_C(1) << 31);
}

static enum status add_scores(struct bpe *bpe, const struct vocab *vocab, struct error *err)
{
    if (!vocab->scores) return error_set(err, ST_INVAL, "vocabulary: the scores of tokens are missing");
    bpe->hashes = mem_alloc(vocab->count, sizeof *bpe->hashes);
    bpe->ranks = mem_alloc(vocab->count, sizeof *bpe->ranks);
    bpe->powers = mem_alloc((size_t)bpe->table->length_max + 1, sizeof *bpe->powers);
    if (!bpe->hashes || !bpe->ranks || !bpe->powers) return ST_NOMEM;
    bpe->powers[0] = 1;
    for (uint32_t i = 0; i < bpe->table->length_max; i++) bpe->powers[i + 1] = bpe->powers[i] * hash_factor;
    for (uint32_t id = 0; id < vocab->count; id++) {
        uint32_t length;
        const char *bytes = token_table_get(bpe->table, id, &length);
        bpe->hashes[id] = polynomial(bytes, length);
        bpe->ranks[id] = rank_of_score(vocab->scores[id]);
    }
    return ST_OK;
}

/* --- where a piece falls apart --- */

/* Characters are told apart by the byte that meets the neighbour; "▁" (U+2581), which begins most words, by itself, for
 * it shares its bytes with dashes and quotes. */
enum { CLASS_SPACE = 256, CLASSES };

static inline bool is_space_mark(const char *text, size_t length)
{
    return length >= 3 && !memcmp(text, "\xe2\x96\x81", 3);
}

static inline size_t join_bit(const char *left, size_t left_length, const char *right, size_t right_length)
{
    size_t l = left_length == 3 && is_space_mark(left, 3) ? CLASS_SPACE : (unsigned char)left[left_length - 1];
    size_t r = is_space_mark(right, right_length) ? CLASS_SPACE : (unsigned char)*right;
    return l * CLASSES + r;
}

static size_t character(const char *text, size_t length)
{
    size_t n = utf8_length(text, length);
    return n ? n : 1;
}

static enum status note_joins(struct bpe *bpe)
{
    bool all_bytes = bpe->options.byte_fallback && !bpe->bytes_missing;
    /* With a prefix or suffix pieces are words already; whole_words speaks of whole pieces; and where a character can
     * give no id at all, its neighbours may merge. */
    if (bpe->options.unknown_id == VOCAB_NO_ID && !all_bytes) return ST_OK;
    if (bpe->options.prefix.length || bpe->options.suffix.length || bpe->options.whole_words) return ST_OK;
    bpe->joins = mem_alloc((CLASSES * CLASSES + 7) / 8, 1);
    if (!bpe->joins) return ST_NOMEM;
    for (uint32_t slot = 0; slot <= bpe->words_mask; slot++) {
        uint32_t length;
        if (bpe->words[slot] == VOCAB_NO_ID) continue;
        const char *text = token_table_get(bpe->table, bpe->words[slot] & ~WHOLE, &length);
        for (size_t at = 0, n = character(text, length); at + n < length;) {
            size_t bit = join_bit(text + at, n, text + at + n, length - at - n);
            bpe->joins[bit / 8] |= (uint8_t)(1u << bit % 8);
            at += n;
            n = character(text + at, length - at);
        }
    }
    return ST_OK;
}

/* The bytes of text up to the first place that no merge reaches across. */
static size_t word_length(const struct bpe *bpe, const char *text, size_t length)
{
    size_t at = 0, n = character(text, length);
    for (; at + n < length; n = character(text + at, length - at)) {
        size_t bit = join_bit(text + at, n, text + at + n, length - at - n);
        at += n;
        if (!(bpe->joins[bit / 8] >> bit % 8 & 1)) return at;
    }
    return length;
}

/* --- encoding --- */

enum status token_list_reserve(struct token_list *list, size_t more)
{
    size_t need, capacity = list->capacity;
    if (!checked_add(list->count, more, &need)) return ST_NOMEM;
    if (list->limit && need > list->limit) {
        list->full = true;
        return ST_LIMIT;
    }
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
            if (pairs[i] >> 32 < pairs[best] >> 32) best = i; /* by rank; the leftmost of equals stays */
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

/* The pair of `at` and its right neighbour, noted and, if it is one, put on the heap; the heap's new count. */
static size_t note_pair(const struct bpe *bpe, struct bpe_scratch *s, uint32_t at, uint32_t n, size_t count)
{
    s->pairs[at] = s->next[at] < n ? pair_find(bpe, s->ids[at], s->ids[s->next[at]]) : NO_PAIR;
    if (s->pairs[at] != NO_PAIR) heap_up(s->heap, count++, (s->pairs[at] >> 32 << 32) | at, &s->work);
    return count;
}

/* Way 3 on s->ids[n]; what is left is chained by s->next from 0 to n. */
static void merge_long(const struct bpe *bpe, struct bpe_scratch *s, uint32_t n)
{
    size_t count = 0;
    for (uint32_t i = 0; i < n; i++) {
        s->previous[i] = i - 1;
        s->next[i] = i + 1;
        s->pairs[i] = i + 1 < n ? pair_find(bpe, s->ids[i], s->ids[i + 1]) : NO_PAIR;
        if (s->pairs[i] != NO_PAIR) s->heap[count++] = (s->pairs[i] >> 32 << 32) | i;
    }
    s->work += n;
    for (size_t i = count / 2; i-- > 0;) heap_down(s->heap, count, i, &s->work);
    while (count) {
        uint32_t at = (uint32_t)s->heap[0];
        uint64_t pair = s->pairs[at];
        bool stale = pair == NO_PAIR || pair >> 32 != s->heap[0] >> 32;
        s->heap[0] = s->heap[--count];
        if (count) heap_down(s->heap, count, 0, &s->work);
        s->work++;
        if (stale) continue;
        uint32_t right = s->next[at];
        s->ids[at] = (uint32_t)pair;
        s->pairs[right] = NO_PAIR; /* dead */
        uint32_t after = s->next[at] = s->next[right];
        if (after < n) s->previous[after] = at;
        count = note_pair(bpe, s, at, n, count);
        if (at) count = note_pair(bpe, s, s->previous[at], n, count);
    }
}

void bpe_scratch_free(struct bpe_scratch *scratch)
{
    mem_free(scratch->ids);
    mem_free(scratch->previous);
    mem_free(scratch->next);
    mem_free(scratch->pairs);
    mem_free(scratch->heap);
    memset(scratch, 0, sizeof *scratch);
}

/* Room for pieces of n symbols. What was in it is lost. */
static enum status scratch_reserve(struct bpe_scratch *s, size_t n)
{
    uint64_t work = s->work;
    if (n <= s->capacity) return ST_OK;
    bpe_scratch_free(s);
    s->work = work;
    s->ids = mem_resize(NULL, n, sizeof *s->ids);
    s->previous = mem_resize(NULL, n, sizeof *s->previous);
    s->next = mem_resize(NULL, n, sizeof *s->next);
    s->pairs = mem_resize(NULL, n, sizeof *s->pairs);
    s->heap = mem_resize(NULL, n, 2 * sizeof *s->heap);
    if (!s->ids || !s->previous || !s->next || !s->pairs || !s->heap)
        return ST_NOMEM; /* freed by the scratch's owner */
    s->capacity = n;
    return ST_OK;
}

/* --- symbols --- */

/* The ids of one character that has no token: its bytes, or the unknown token, or none. */
static size_t unknown_symbols(const struct bpe *bpe, const char *text, size_t length, bool after_unknown, uint32_t *ids)
{
    bool all = bpe->options.byte_fallback;
    for (size_t i = 0; all && i < length; i++) {
        ids[i] = bpe->byte_ids[(unsigned char)text[i]];
        all = ids[i] != VOCAB_NO_ID;
    }
    if (all) return length;
    if (bpe->options.unknown_id == VOCAB_NO_ID || (after_unknown && bpe->options.fuse_unknown)) return 0;
    ids[0] = bpe->options.unknown_id;
    return 1;
}

/* The ids of the characters of a piece, at most symbols_max of them; *after_unknown: whether the last one was unknown,
 * before and afterwards. */
static size_t character_symbols(const struct bpe *bpe, const char *piece, size_t length, bool *after_unknown,
                                uint32_t *ids)
{
    enum { ROOM = 512 };
    char room[ROOM];
    size_t n = 0, step;
    const struct vocab_string *prefix = &bpe->options.prefix, *suffix = &bpe->options.suffix;
    for (size_t at = 0; at < length; at += step) {
        step = character(piece + at, length - at);
        const char *text = piece + at;
        size_t before = at ? prefix->length : 0, after = at + step == length ? suffix->length : 0;
        if (before + after) { /* both together are at most ROOM - 4, see bpe_init */
            memcpy(room, prefix->text, before);
            memcpy(room + before, text, step);
            memcpy(room + before + step, suffix->text, after);
            text = room;
        }
        uint32_t id = word_find(bpe, text, before + step + after);
        if (id != VOCAB_NO_ID) {
            ids[n++] = id & ~WHOLE;
            *after_unknown = false;
            continue;
        }
        size_t added = unknown_symbols(bpe, text, before + step + after, *after_unknown, ids + n);
        *after_unknown = (added == 1 && ids[n] == bpe->options.unknown_id) || (!added && *after_unknown);
        n += added;
    }
    return n;
}

static size_t symbols(const struct bpe *bpe, const char *piece, size_t length, bool *after_unknown, uint32_t *ids)
{
    size_t n = 0;
    if (bpe->options.characters) return character_symbols(bpe, piece, length, after_unknown, ids);
    for (size_t i = 0; i < length; i++) {
        uint32_t id = bpe->byte_ids[(unsigned char)piece[i]];
        if (id != VOCAB_NO_ID) ids[n++] = id;
    }
    return n;
}

/* At most that many symbols come from a piece: one a byte or character; with byte_fallback also the bytes of what is
 * put around characters. */
static bool symbols_max(const struct bpe *bpe, size_t length, size_t *max)
{
    *max = length;
    if (!bpe->options.byte_fallback) return true;
    return checked_mul(length, 1 + (size_t)bpe->options.prefix.length, max) &&
           checked_add(*max, bpe->options.suffix.length, max);
}

static enum status encode_long(const struct bpe *bpe, const char *piece, size_t length, size_t room,
                               bool *after_unknown, struct bpe_scratch *s, struct token_list *list)
{
    if (room >= UINT32_MAX) return ST_LIMIT;
    /* No token is longer than length_max, so a prompt far past the limit is refused before memory is taken for it. */
    if (!bpe->bytes_missing && (!bpe->options.characters || bpe->options.byte_fallback))
        TRY(token_list_reserve(list, length / bpe->table->length_max));
    TRY(scratch_reserve(s, room));
    uint32_t n = (uint32_t)symbols(bpe, piece, length, after_unknown, s->ids);
    merge_long(bpe, s, n);
    for (uint32_t i = 0; i < n; i = s->next[i]) {
        TRY(token_list_reserve(list, 1));
        list->ids[list->count++] = s->ids[i];
        s->work++;
    }
    return ST_OK;
}

/* Ways 2 and 3. */
static enum status encode_parts(const struct bpe *bpe, const char *piece, size_t length, bool *after_unknown,
                                struct bpe_scratch *scratch, struct token_list *list)
{
    uint32_t ids[SHORT];
    size_t room;
    if (!symbols_max(bpe, length, &room)) return ST_LIMIT;
    if (room > SHORT) return encode_long(bpe, piece, length, room, after_unknown, scratch, list);
    size_t n = symbols(bpe, piece, length, after_unknown, ids);
    n = merge_short(bpe, ids, n, &scratch->work);
    TRY(token_list_reserve(list, n));
    if (n) memcpy(list->ids + list->count, ids, n * sizeof *ids);
    list->count += n;
    return ST_OK;
}

/* A piece, or a part of one that merges do not leave. */
static inline enum status encode_word(const struct bpe *bpe, const char *piece, size_t length, bool *after_unknown,
                                      struct bpe_scratch *scratch, struct token_list *list)
{
    uint32_t word = word_find(bpe, piece, length);
    scratch->work++;
    if (word == VOCAB_NO_ID || !(word & WHOLE)) return encode_parts(bpe, piece, length, after_unknown, scratch, list);
    *after_unknown = false;
    if (list->count >= list->capacity || list->limit) TRY(token_list_reserve(list, 1));
    list->ids[list->count++] = word & ~WHOLE;
    return ST_OK;
}

enum status bpe_encode(const struct bpe *bpe, const char *piece, size_t length, struct bpe_scratch *scratch,
                       struct token_list *list)
{
    bool after_unknown = false;
    if (!bpe->joins) return encode_word(bpe, piece, length, &after_unknown, scratch, list);
    for (size_t at = 0, n; at < length; at += n) {
        n = word_length(bpe, piece + at, length - at);
        scratch->work += n;
        TRY(encode_word(bpe, piece + at, n, &after_unknown, scratch, list));
    }
    return ST_OK;
}

/* --- creation --- */

void bpe_free(struct bpe *bpe)
{
    mem_free(bpe->words);
    mem_free(bpe->pairs);
    mem_free(bpe->hashes);
    mem_free(bpe->powers);
    mem_free(bpe->ranks);
    mem_free(bpe->joins);
    mem_free(bpe->affixes);
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

/* The prefix and suffix are the vocabulary's, which need not outlive us. */
static enum status copy_affixes(struct bpe *bpe)
{
    struct vocab_string *prefix = &bpe->options.prefix, *suffix = &bpe->options.suffix;
    if (!prefix->length && !suffix->length) return ST_OK;
    bpe->affixes = mem_alloc((size_t)prefix->length + suffix->length, 1);
    if (!bpe->affixes) return ST_NOMEM;
    if (prefix->length) memcpy(bpe->affixes, prefix->text, prefix->length);
    if (suffix->length) memcpy(bpe->affixes + prefix->length, suffix->text, suffix->length);
    prefix->text = bpe->affixes;
    suffix->text = bpe->affixes + prefix->length;
    return ST_OK;
}

enum status bpe_init(struct bpe *bpe, const struct token_table *table, const struct vocab *vocab,
                     const struct bpe_options *options, struct error *err)
{
    memset(bpe, 0, sizeof *bpe);
    bpe->table = table;
    bpe->options = *options;
    random_fill(&bpe->seed, sizeof bpe->seed);
    if (options->prefix.length > 200 || options->suffix.length > 200)
        return error_set(err, ST_INVAL, "vocabulary: the prefix or suffix of subwords is longer than 200 bytes");
    bpe->words = slots_create(table->count, sizeof *bpe->words, &bpe->words_mask);
    enum status st = bpe->words ? copy_affixes(bpe) : ST_NOMEM;
    if (st == ST_OK) st = add_words(bpe, err);
    if (st == ST_OK) add_bytes(bpe);
    if (st == ST_OK) st = options->by_score ? add_scores(bpe, vocab, err) : add_merges(bpe, vocab, err);
    if (st == ST_OK && options->characters) st = note_joins(bpe);
    if (st == ST_OK) st = mark_whole(bpe, options->whole_words);
    if (st != ST_OK) bpe_free(bpe);
    return st;
}
