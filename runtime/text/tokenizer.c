/* From text to ids in three layers:
 *   special tokens cut the text       special_tokens.h, under the rule of trusted spans
 *   the parts are cut into pieces     pretokenize.h
 *   pieces become tokens              tokenizer_bpe.h
 * One pass from left to right; nothing is copied. Spans say only where special tokens may be recognised: a part of
 * ordinary text runs on across their borders.
 *
 *   spans     |--- trusted ---|------- content -------|-- trusted --|
 *   text      <|im_start|>user\nsay <|im_end|>, please<|im_end|>\n
 *   cut       [special][ one part: "user\nsay <|im_end|>, please"   ][special][part]
 *
 * Left out on purpose: Unicode normalisation (tokenizer.json of Qwen asks for NFC; GGUF does not carry it, and text
 * would no longer come back as it went in), the lstrip/rstrip/single_word flags of added tokens (GGUF drops them), and
 * add_space_prefix, which byte-level vocabularies do not use. */
#include "runtime/text/tokenizer.h"

#include "runtime/base/check.h"
#include "runtime/base/mem.h"
#include "runtime/text/pretokenize.h"
#include "runtime/text/special_tokens.h"
#include "runtime/text/tokenizer_bpe.h"

#include <string.h>

struct tokenizer {
    struct token_table table;
    struct bpe bpe;
    struct special_tokens special;
    struct unicode_classes classes;
    enum pretokenize_pattern pattern;
    uint32_t bos_id, eos_id;
    bool add_bos;
    uint32_t *around; /* prefix_count ids that go before a text, then suffix_count that go after it */
    uint32_t prefix_count, suffix_count;
    uint32_t end_ids_count;
    uint32_t end_ids[VOCAB_END_IDS_MAX];
};

/* --- creation --- */

static enum status check_id(const struct vocab *vocab, const char *what, uint32_t id, struct error *err)
{
    if (id < vocab->count || id == VOCAB_NO_ID) return ST_OK;
    return error_set(err, ST_INVAL, "vocabulary: the %s token %u is outside its %u tokens", what, id, vocab->count);
}

static enum status check_pipeline(const struct vocab *vocab, enum pretokenize_pattern *pattern, struct error *err)
{
    const struct vocab_pipeline *p = vocab->pipeline;
    if (strcmp(vocab->model, "BPE") != 0 || p->continuing_prefix.length || p->word_suffix.length)
        return error_set(err, ST_INVAL, "tokenizer.json: only byte-level BPE can be built so far, not %s",
                         vocab->model);
    if (!pretokenize_recognise(p->pretokenizers, p->pretokenizers_count, pattern))
        return error_set(err, ST_INVAL, "tokenizer.json: the pre_tokenizer is not one that can be built so far");
    if (p->normalizers_count) return error_set(err, ST_INVAL, "tokenizer.json: no normalizer can be built so far");
    return ST_OK;
}

static enum status check_gguf(const struct vocab *vocab, enum pretokenize_pattern *pattern, bool *whole_words,
                              struct error *err)
{
    if (strncmp(vocab->model, "gpt2", sizeof vocab->model) != 0)
        return error_set(err, ST_INVAL, "tokenizer.ggml.model \"%.31s\" is not known; known: gpt2 (byte-level BPE)",
                         vocab->model);
    if (!memchr(vocab->pre, 0, sizeof vocab->pre) || !pretokenize_find(vocab->pre, pattern, whole_words))
        return error_set(err, ST_INVAL, "tokenizer.ggml.pre \"%.63s\" %s; known: %s", vocab->pre,
                         !*vocab->pre || !strcmp(vocab->pre, "default")
                             ? "does not say how text is cut (convert the model again)"
                             : "is not known",
                         pretokenize_names());
    return ST_OK;
}

static enum status check_vocab(const struct vocab *vocab, enum pretokenize_pattern *pattern, bool *whole_words,
                               struct error *err)
{
    *whole_words = vocab->pipeline && vocab->pipeline->ignore_merges;
    TRY(vocab->pipeline ? check_pipeline(vocab, pattern, err) : check_gguf(vocab, pattern, whole_words, err));
    TRY(check_id(vocab, "BOS", vocab->bos_id, err));
    TRY(check_id(vocab, "EOS", vocab->eos_id, err));
    if (vocab->end_ids_count > VOCAB_END_IDS_MAX)
        return error_set(err, ST_INVAL, "vocabulary: more than %d end tokens", (int)VOCAB_END_IDS_MAX);
    for (uint32_t i = 0; i < vocab->end_ids_count; i++) TRY(check_id(vocab, "end", vocab->end_ids[i], err));
    return ST_OK;
}

/* What tokenizer_encode puts around a text. */
static enum status copy_around(struct tokenizer *t, const struct vocab *vocab)
{
    const struct vocab_pipeline *p = vocab->pipeline;
    bool bos = vocab->add_bos && vocab->bos_id != VOCAB_NO_ID, eos = vocab->add_eos && vocab->eos_id != VOCAB_NO_ID;
    t->prefix_count = p ? p->prefix_count : bos;
    t->suffix_count = p ? p->suffix_count : eos;
    t->around = mem_alloc((size_t)t->prefix_count + t->suffix_count, sizeof *t->around);
    if (!t->around) return ST_NOMEM;
    for (uint32_t i = 0; i < t->prefix_count; i++) t->around[i] = p ? p->prefix_ids[i] : vocab->bos_id;
    for (uint32_t i = 0; i < t->suffix_count; i++)
        t->around[t->prefix_count + i] = p ? p->suffix_ids[i] : vocab->eos_id;
    t->add_bos = t->prefix_count && t->around[0] == vocab->bos_id;
    return ST_OK;
}

enum status tokenizer_create(const struct vocab *vocab, struct tokenizer **tokenizer, struct error *err)
{
    bool whole_words;
    enum pretokenize_pattern pattern;
    TRY(check_vocab(vocab, &pattern, &whole_words, err));
    struct tokenizer *t = mem_alloc(1, sizeof *t);
    if (!t) return error_set(err, ST_NOMEM, "no memory for the tokenizer");
    t->pattern = pattern;
    t->bos_id = vocab->bos_id;
    t->eos_id = vocab->eos_id;
    t->end_ids_count = vocab->end_ids_count;
    memcpy(t->end_ids, vocab->end_ids, sizeof t->end_ids);
    enum status st = copy_around(t, vocab);
    if (st == ST_OK) st = unicode_classes_init(&t->classes);
    if (st == ST_OK) st = token_table_init(&t->table, vocab, err);
    if (st == ST_OK) st = special_tokens_init(&t->special, &t->table, err);
    if (st == ST_OK) st = bpe_init(&t->bpe, &t->table, vocab, whole_words, err);
    if (st != ST_OK) {
        tokenizer_destroy(t);
        return st == ST_NOMEM ? error_set(err, st, "no memory for the tokenizer") : st;
    }
    *tokenizer = t;
    return ST_OK;
}

void tokenizer_destroy(struct tokenizer *tokenizer)
{
    if (!tokenizer) return;
    bpe_free(&tokenizer->bpe);
    special_tokens_free(&tokenizer->special);
    token_table_free(&tokenizer->table);
    unicode_classes_free(&tokenizer->classes);
    mem_free(tokenizer->around);
    mem_free(tokenizer);
}

/* --- encoding --- */

/* One call of tokenizer_encode. */
struct encoding {
    const struct tokenizer *tokenizer;
    const char *text;
    size_t length;
    const struct text_span *spans;
    size_t spans_count;
    size_t span_idx; /* the first span not left of the place last asked for */
    size_t run_end;  /* where the run of spans of one kind ends that holds that place */
    bool run_trusted;
    struct bpe_scratch scratch;
    struct token_list *list;
};

/* Moves to the run of equally trusted spans that holds `at`. Places are asked for in ascending order. */
static void run_seek(struct encoding *e, size_t at)
{
    if (at < e->run_end) return;
    while (e->span_idx < e->spans_count && e->spans[e->span_idx].end <= at) e->span_idx++;
    if (e->span_idx == e->spans_count) {
        e->run_end = e->length;
        e->run_trusted = false;
        return;
    }
    e->run_trusted = e->spans[e->span_idx].trusted;
    for (size_t start = at; e->span_idx < e->spans_count; e->span_idx++) {
        const struct text_span *span = &e->spans[e->span_idx];
        if (span->end > start && span->trusted != e->run_trusted) break; /* an empty span parts nothing */
        e->run_end = start = span->end > start ? span->end : start;
        e->scratch.work++;
    }
}

/* The next special token at or after `from`, and where it begins; NULL when only ordinary text is left. */
static const struct special_name *next_special(struct encoding *e, size_t from, size_t *at)
{
    const struct special_tokens *special = &e->tokenizer->special;
    if (!special->count || (!special->any_anywhere && !e->spans_count)) return NULL;
    for (size_t i = from; i < e->length; i++) {
        run_seek(e, i);
        if (!e->run_trusted && !special->any_anywhere) {
            i = e->run_end - 1;
            continue;
        }
        unsigned char first = (unsigned char)e->text[i];
        if (special->firsts[first] == special->firsts[first + 1]) continue;
        size_t trusted = e->run_trusted ? e->run_end - i : 0;
        const struct special_name *name =
            special_tokens_match(special, e->text + i, e->length - i, trusted, &e->scratch.work);
        if (!name) continue;
        *at = i;
        return name;
    }
    return NULL;
}

static enum status push_id(struct token_list *list, uint32_t id)
{
    TRY(token_list_reserve(list, 1));
    list->ids[list->count++] = id;
    return ST_OK;
}

static enum status encode_ordinary(struct encoding *e, size_t from, size_t to)
{
    struct pretokenize_cursor cursor;
    enum status st = ST_OK;
    pretokenize_start(&cursor, &e->tokenizer->classes, e->tokenizer->pattern, e->text + from, to - from);
    while (st == ST_OK) {
        const char *piece = cursor.text + cursor.at;
        size_t length = pretokenize_next(&cursor);
        if (!length) break;
        st = bpe_encode(&e->tokenizer->bpe, piece, length, &e->scratch, e->list);
    }
    e->scratch.work += cursor.work;
    return st;
}

static enum status encode_all(struct encoding *e, bool add_special)
{
    const struct tokenizer *t = e->tokenizer;
    for (uint32_t i = 0; add_special && i < t->prefix_count; i++) TRY(push_id(e->list, t->around[i]));
    for (size_t at = 0; at < e->length;) {
        size_t end = e->length;
        const struct special_name *name = next_special(e, at, &end);
        TRY(encode_ordinary(e, at, end));
        if (name) TRY(push_id(e->list, name->id));
        at = end + (name ? name->length : 0);
    }
    for (uint32_t i = 0; add_special && i < t->suffix_count; i++) TRY(push_id(e->list, t->around[t->prefix_count + i]));
    return ST_OK;
}

/* tokenizer_encode, which also tells the work it took (tests hold it to a bound). */
static enum status encode_counted(const struct tokenizer *tokenizer, const char *text, size_t length,
                                  const struct text_span *spans, size_t spans_count, bool add_special,
                                  struct token_list *list, uint64_t *work)
{
    struct encoding e = {.tokenizer = tokenizer,
                         .text = text,
                         .length = length,
                         .spans = spans,
                         .spans_count = spans_count,
                         .list = list};
    size_t count = list->count, end = 0;
    for (size_t i = 0; i < spans_count; i++) {
        CHECK(spans[i].end >= end);
        end = spans[i].end;
    }
    CHECK(!spans_count || end == length);
    enum status st = encode_all(&e, add_special);
    if (st != ST_OK) list->count = count;
    *work = e.scratch.work;
    bpe_scratch_free(&e.scratch);
    return st;
}

enum status tokenizer_encode(const struct tokenizer *tokenizer, const char *text, size_t length,
                             const struct text_span *spans, size_t spans_count, bool add_special,
                             struct token_list *list)
{
    uint64_t work;
    return encode_counted(tokenizer, text, length, spans, spans_count, add_special, list, &work);
}

/* --- queries --- */

const char *tokenizer_bytes(const struct tokenizer *tokenizer, uint32_t id, uint32_t *length)
{
    *length = 0;
    return id < tokenizer->table.count ? token_table_get(&tokenizer->table, id, length) : "";
}

void tokenizer_copy_name(const struct tokenizer *tokenizer, uint32_t id, char *name, size_t size)
{
    uint32_t length;
    const char *bytes = tokenizer_bytes(tokenizer, id, &length);
    if (length >= size) length = 0;
    memcpy(name, bytes, length);
    name[length] = '\0';
}

bool tokenizer_is_special(const struct tokenizer *tokenizer, uint32_t id)
{
    if (id >= tokenizer->table.count) return false;
    return tokenizer->table.kinds[id] == VOCAB_CONTROL || tokenizer->table.kinds[id] == VOCAB_UNKNOWN;
}

uint32_t tokenizer_special_id(const struct tokenizer *tokenizer, const char *name)
{
    uint64_t work = 0;
    size_t length = strlen(name);
    const struct special_name *found = special_tokens_match(&tokenizer->special, name, length, length, &work);
    return found && found->length == length ? found->id : VOCAB_NO_ID;
}

uint32_t tokenizer_count(const struct tokenizer *tokenizer)
{
    return tokenizer->table.count;
}
uint32_t tokenizer_bos(const struct tokenizer *tokenizer)
{
    return tokenizer->bos_id;
}
uint32_t tokenizer_eos(const struct tokenizer *tokenizer)
{
    return tokenizer->eos_id;
}
bool tokenizer_adds_bos(const struct tokenizer *tokenizer)
{
    return tokenizer->add_bos;
}

const uint32_t *tokenizer_end_ids(const struct tokenizer *tokenizer, uint32_t *count)
{
    *count = tokenizer->end_ids_count;
    return tokenizer->end_ids;
}
