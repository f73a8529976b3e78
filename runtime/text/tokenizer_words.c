/* One hash table of tokens; see tokenizer_words.h. */
#include "runtime/text/tokenizer_words.h"

#include "runtime/base/hash.h"
#include "runtime/base/mem.h"
#include "runtime/base/random.h"
#include "runtime/base/utf8.h"
#include "runtime/text/tokenizer_bpe.h"

#include <string.h>

enum { PREFIX_MAX = 64, CHARS_MAX = 1000 };

void words_free(struct words *words)
{
    mem_free(words->slots);
    mem_free(words->prefix);
    memset(words, 0, sizeof *words);
}

static uint32_t slot_of(const struct words *w, const char *bytes, size_t length)
{
    uint32_t slot = (uint32_t)hash_bytes(bytes, length, w->seed) & w->mask;
    for (; w->slots[slot] != VOCAB_NO_ID; slot = (slot + 1) & w->mask) {
        uint32_t n;
        const char *word = token_table_get(w->table, w->slots[slot], &n);
        if (n == length && !memcmp(word, bytes, length)) break;
    }
    return slot;
}

static size_t count_characters(const char *text, size_t length)
{
    size_t count = 0;
    for (size_t at = 0, n; at < length; at += n, count++) {
        n = utf8_length(text + at, length - at);
        if (!n) n = 1;
    }
    return count;
}

enum status words_init(struct words *words, const struct token_table *table, const struct vocab *vocab, bool pieces,
                       struct error *err)
{
    const struct vocab_pipeline *p = vocab->pipeline;
    size_t slots = 16;
    while (slots < 2 * (size_t)table->count) slots *= 2;
    *words = (struct words){.table = table,
                            .mask = (uint32_t)(slots - 1),
                            .unknown_id = vocab->unknown_id,
                            .chars_max = p->word_chars_max,
                            .pieces = pieces,
                            .prefix_length = p->continuing_prefix.length};
    random_fill(&words->seed, sizeof words->seed);
    if (vocab->unknown_id == VOCAB_NO_ID) return error_set(err, ST_INVAL, "vocabulary: the unknown token is missing");
    if (p->continuing_prefix.length > PREFIX_MAX || (pieces && p->word_chars_max > CHARS_MAX))
        return error_set(err, ST_INVAL, "vocabulary: max_input_chars_per_word is at most %d, the prefix %d bytes",
                         (int)CHARS_MAX, (int)PREFIX_MAX);
    words->slots = mem_resize(NULL, slots, sizeof *words->slots);
    words->prefix =
        mem_strdup(p->continuing_prefix.length ? p->continuing_prefix.text : "", p->continuing_prefix.length);
    if (!words->slots || !words->prefix) {
        words_free(words);
        return ST_NOMEM;
    }
    memset(words->slots, 0xff, slots * sizeof *words->slots);
    for (uint32_t id = 0; id < table->count; id++) {
        uint32_t length;
        const char *bytes = token_table_get(table, id, &length);
        if ((table->kinds[id] != VOCAB_NORMAL && table->kinds[id] != VOCAB_USER_DEFINED) || !length) continue;
        if (pieces && count_characters(bytes, length) > words->chars_max + words->prefix_length)
            continue; /* never met */
        if (pieces && length > WORD_MAX) {
            words_free(words);
            return error_set(err, ST_INVAL, "vocabulary: token %u is longer than %d bytes", id, (int)WORD_MAX);
        }
        words->slots[slot_of(words, bytes, length)] = id;
        if (!pieces) continue;
        words->lengths[length] = true;
        if (length > words->length_max) words->length_max = length;
    }
    return ST_OK;
}

static enum status push(struct token_list *list, uint32_t id)
{
    TRY(token_list_reserve(list, 1));
    list->ids[list->count++] = id;
    return ST_OK;
}

/* The longest token at the start of rest, and its bytes there. */
static uint32_t longest(const struct words *w, const char *rest, size_t length, bool continued, size_t *taken,
                        uint64_t *work)
{
    char room[PREFIX_MAX + WORD_MAX];
    size_t prefix = continued ? w->prefix_length : 0;
    size_t most = w->length_max > prefix ? w->length_max - prefix : 0;
    if (length > most) length = most;
    memcpy(room, w->prefix, prefix);
    memcpy(room + prefix, rest, length);
    for (; length; length--) {
        ++*work;
        if (!w->lengths[prefix + length]) continue;
        uint32_t id = w->slots[slot_of(w, room, prefix + length)];
        if (id == VOCAB_NO_ID) continue;
        *taken = length;
        return id;
    }
    return VOCAB_NO_ID;
}

enum status words_encode(const struct words *words, const char *piece, size_t length, uint64_t *work,
                         struct token_list *list)
{
    const struct words *w = words;
    size_t first = list->count;
    ++*work;
    if (!w->pieces) {
        uint32_t id = w->slots[slot_of(w, piece, length)];
        return push(list, id == VOCAB_NO_ID ? w->unknown_id : id);
    }
    if (count_characters(piece, length) > w->chars_max) return push(list, w->unknown_id);
    for (size_t at = 0, taken = 0; at < length; at += taken) {
        uint32_t id = longest(w, piece + at, length - at, at > 0, &taken, work);
        if (id == VOCAB_NO_ID) {
            list->count = first;
            return push(list, w->unknown_id);
        }
        TRY(push(list, id));
    }
    return ST_OK;
}
