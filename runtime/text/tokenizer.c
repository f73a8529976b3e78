/* From text to ids in layers:
 *   special tokens cut the text         special_tokens.h, under the rule of trusted spans
 *   the parts are normalised            normalise.h; then special tokens of the normalised text cut again
 *   and cut into pieces                 pretokenize.h (one lexer), or pretokenize_steps.h (tokenizer.json's steps)
 *   pieces become tokens                tokenizer_bpe.h, tokenizer_unigram.h, tokenizer_words.h
 * One pass from left to right; without a normaliser nothing is copied. Spans say only where special tokens may be
 * recognised: a part of ordinary text runs on across their borders.
 *
 *   spans     |--- trusted ---|------- content -------|-- trusted --|
 *   text      <|im_start|>user\nsay <|im_end|>, please<|im_end|>\n
 *   cut       [special][ one part: "user\nsay <|im_end|>, please"   ][special][part]
 *
 * What the layers are is the tokenizer's plan. tokenizer.json spells it out; for GGUF it follows from the model's name
 * (tokenizer_plan.h). */
#include "runtime/text/tokenizer.h"

#include "runtime/base/check.h"
#include "runtime/base/mem.h"
#include "runtime/base/utf8.h"
#include "runtime/text/normalise.h"
#include "runtime/text/pretokenize.h"
#include "runtime/text/pretokenize_steps.h"
#include "runtime/text/special_tokens.h"
#include "runtime/text/tokenizer_bpe.h"
#include "runtime/text/tokenizer_plan.h"
#include "runtime/text/tokenizer_unigram.h"
#include "runtime/text/tokenizer_words.h"

#include <string.h>

struct tokenizer {
    enum plan_model model;
    struct token_table table;  /* what is looked up */
    struct token_table output; /* what ids stand for; empty: the same */
    uint32_t start_spaces;     /* at the start of a text that many spaces of output are not meant */
    struct bpe bpe;
    struct unigram unigram;
    struct words words;
    struct special_tokens special;        /* in the text as it is */
    struct special_tokens normal_special; /* in what the normaliser made of it */
    struct unicode_classes classes;
    bool lexed;
    enum pretokenize_pattern pattern; /* lexed: cuts the text */
    struct cutter *cutter;            /* else, NULL: a part is one piece */
    struct normaliser *normaliser;    /* NULL: none */
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

static enum status check_ids(const struct vocab *vocab, struct error *err)
{
    TRY(check_id(vocab, "BOS", vocab->bos_id, err));
    TRY(check_id(vocab, "EOS", vocab->eos_id, err));
    TRY(check_id(vocab, "unknown", vocab->unknown_id, err));
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

/* GGUF: every control, unknown and user-defined token is looked for in the text as it is. */
static enum status add_names_by_kind(struct tokenizer *t)
{
    for (uint32_t id = 0; id < t->table.count; id++) {
        uint8_t kind = t->table.kinds[id];
        uint32_t length;
        const char *bytes = token_table_get(&t->table, id, &length);
        if (!token_table_is_name(kind) || !length) continue;
        struct special_name name = {.id = id, .anywhere = kind == VOCAB_USER_DEFINED};
        TRY(special_tokens_add(&t->special, bytes, length, name));
    }
    return ST_OK;
}

/* tokenizer.json: added tokens, with their flags; the text of a normalised one is normalised too. */
static enum status add_names_by_list(struct tokenizer *t, const struct vocab_pipeline *p, struct error *err)
{
    struct normal_text normal = {0};
    enum status status = ST_OK;
    for (uint32_t i = 0; i < p->added_count && status == ST_OK; i++) {
        const struct vocab_added *added = &p->added[i];
        uint32_t length;
        const char *bytes = token_table_get(&t->table, added->id, &length);
        struct special_name name = {.id = added->id,
                                    .anywhere = t->table.kinds[added->id] == VOCAB_USER_DEFINED,
                                    .lstrip = added->lstrip,
                                    .rstrip = added->rstrip,
                                    .single_word = added->single_word};
        bool normalised = added->normalized && t->normaliser;
        if (normalised) status = normaliser_run(t->normaliser, bytes, length, NULL, &normal);
        if (status == ST_LIMIT) error_set(err, status, "vocabulary: the normaliser fails on token %u", added->id);
        if (status != ST_OK || (normalised && !normal.text.length)) continue; /* of nothing nothing can be found */
        status =
            special_tokens_add(added->normalized ? &t->normal_special : &t->special,
                               normalised ? normal.text.data : bytes, normalised ? normal.text.length : length, name);
    }
    normal_text_free(&normal);
    return status;
}

static enum status create_special(struct tokenizer *t, const struct vocab *vocab, struct error *err)
{
    TRY(vocab->pipeline ? add_names_by_list(t, vocab->pipeline, err) : add_names_by_kind(t));
    TRY(special_tokens_sort(&t->special, err));
    return special_tokens_sort(&t->normal_special, err);
}

static enum status create_layers(struct tokenizer *t, const struct vocab *vocab, const struct plan *plan,
                                 struct error *err)
{
    TRY(copy_around(t, vocab));
    TRY(unicode_classes_init(&t->classes));
    TRY(token_table_init(&t->table, vocab, plan->bytes, err));
    if (plan->decoded)
        TRY(token_table_init_output(&t->output, vocab, plan->decoders, plan->decoders_count, &t->start_spaces, err));
    TRY(normaliser_create(plan->normalizers, plan->normalizers_count, &t->normaliser, err));
    if (!plan->lexed && (plan->pretokenizers_count || plan->mapped))
        TRY(cutter_create(plan->pretokenizers, plan->pretokenizers_count, plan->mapped, plan->bytes, &t->classes,
                          &t->cutter, err));
    TRY(create_special(t, vocab, err));
    switch (plan->model) {
    case PLAN_BPE: return bpe_init(&t->bpe, &t->table, vocab, &plan->bpe, err);
    case PLAN_UNIGRAM: return unigram_init(&t->unigram, &t->table, vocab, err);
    case PLAN_WORDPIECE: return words_init(&t->words, &t->table, vocab, true, err);
    case PLAN_WORDLEVEL: return words_init(&t->words, &t->table, vocab, false, err);
    }
    return ST_OK;
}

enum status tokenizer_create(const struct vocab *vocab, struct tokenizer **tokenizer, struct error *err)
{
    struct plan plan;
    TRY(plan_tokenizer(vocab, &plan, err));
    TRY(check_ids(vocab, err));
    struct tokenizer *t = mem_alloc(1, sizeof *t);
    if (!t) return error_set(err, ST_NOMEM, "no memory for the tokenizer");
    t->model = plan.model;
    t->lexed = plan.lexed;
    t->pattern = plan.pattern;
    t->bos_id = vocab->bos_id;
    t->eos_id = vocab->eos_id;
    t->end_ids_count = vocab->end_ids_count;
    memcpy(t->end_ids, vocab->end_ids, sizeof t->end_ids);
    enum status st = create_layers(t, vocab, &plan, err);
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
    unigram_free(&tokenizer->unigram);
    words_free(&tokenizer->words);
    special_tokens_free(&tokenizer->special);
    special_tokens_free(&tokenizer->normal_special);
    token_table_free(&tokenizer->table);
    token_table_free(&tokenizer->output);
    cutter_destroy(tokenizer->cutter);
    normaliser_destroy(tokenizer->normaliser);
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
    struct unigram_scratch unigram_scratch;
    struct normal_text normal;
    struct cutting cutting;
    size_t trust_idx; /* the first span that ends behind the start of the part whose trust was last asked for */
    struct buf trust; /* a byte for each of a part's, where the normalised text is searched for control tokens */
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

/* A special token found in a text, and what goes with it. */
struct found {
    const struct special_name *name;
    size_t start, end;
};

static bool word_before(const struct unicode_classes *classes, const char *text, size_t at)
{
    uint32_t c;
    size_t start = at;
    while (start && at - start < 4 && ((unsigned char)text[--start] & 0xc0) == 0x80) {
    }
    return start < at && utf8_decode(text + start, at - start, &c) == at - start && unicode_is_word(classes, c);
}

static bool word_after(const struct unicode_classes *classes, const char *text, size_t length, size_t at)
{
    uint32_t c;
    return utf8_decode(text + at, length - at, &c) && unicode_is_word(classes, c);
}

/* A name at `at`, by its flags, in text[from .. length): where it begins and ends. False: it does not count, and found
 * is as it was. */
static bool accept(const struct encoding *e, const struct special_name *name, const char *text, size_t length,
                   size_t from, size_t at, struct found *found)
{
    const struct unicode_classes *classes = &e->tokenizer->classes;
    uint32_t c;
    if (name->single_word && (word_before(classes, text, at) || word_after(classes, text, length, at + name->length)))
        return false;
    *found = (struct found){name, at, at + name->length};
    while (name->lstrip && found->start > from) {
        size_t start = found->start - 1;
        while (start > from && found->start - start < 4 && ((unsigned char)text[start] & 0xc0) == 0x80) start--;
        if (utf8_decode(text + start, found->start - start, &c) != found->start - start || !unicode_is_space(c)) break;
        found->start = start;
    }
    for (size_t n;
         name->rstrip && (n = utf8_decode(text + found->end, length - found->end, &c)) && unicode_is_space(c);)
        found->end += n;
    return true;
}

/* The next special token at or after `from` in the text as it is; false when only ordinary text is left. */
static bool next_special(struct encoding *e, size_t from, struct found *found)
{
    const struct special_tokens *special = &e->tokenizer->special;
    if (!special->count || (!special->any_anywhere && !e->spans_count)) return false;
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
        if (accept(e, name, e->text, e->length, from, i, found)) return true;
        i += name->length - 1; /* one that does not count hides what lies within it, as in the library */
    }
    return false;
}

/* The same in normalised text, whose trust (if any of it is) stands byte by byte. */
static bool next_normal(struct encoding *e, const char *text, size_t length, const char *trust, size_t from,
                        struct found *found)
{
    const struct special_tokens *special = &e->tokenizer->normal_special;
    if (!special->count || (!special->any_anywhere && !trust)) return false;
    for (size_t i = from; i < length; i++) {
        unsigned char first = (unsigned char)text[i];
        if (special->firsts[first] == special->firsts[first + 1]) continue;
        size_t trusted = 0;
        while (trust && i + trusted < length && trusted < special->length_max && trust[i + trusted]) trusted++;
        const struct special_name *name =
            special_tokens_match(special, text + i, length - i, trusted, &e->scratch.work);
        if (!name) continue;
        if (accept(e, name, text, length, from, i, found)) return true;
        i += name->length - 1;
    }
    return false;
}

static enum status push_id(struct token_list *list, uint32_t id)
{
    TRY(token_list_reserve(list, 1));
    list->ids[list->count++] = id;
    return ST_OK;
}

static enum status encode_piece(struct encoding *e, const char *piece, size_t length)
{
    const struct tokenizer *t = e->tokenizer;
    switch (t->model) {
    case PLAN_BPE: return bpe_encode(&t->bpe, piece, length, &e->scratch, e->list);
    case PLAN_UNIGRAM: return unigram_encode(&t->unigram, piece, length, &e->unigram_scratch, e->list);
    case PLAN_WORDPIECE:
    case PLAN_WORDLEVEL: return words_encode(&t->words, piece, length, &e->scratch.work, e->list);
    }
    return ST_OK;
}

static enum status encode_lexed(struct encoding *e, const char *text, size_t length)
{
    struct pretokenize_cursor cursor;
    enum status st = ST_OK;
    pretokenize_start(&cursor, &e->tokenizer->classes, e->tokenizer->pattern, text, length);
    while (st == ST_OK) {
        const char *piece = cursor.text + cursor.at;
        size_t n = pretokenize_next(&cursor);
        if (!n) break;
        st = encode_piece(e, piece, n);
    }
    e->scratch.work += cursor.work;
    return st;
}

/* Normalised text without special tokens. */
static enum status encode_part(struct encoding *e, const char *text, size_t length, bool at_start)
{
    if (!length) return ST_OK;
    if (e->tokenizer->lexed) return encode_lexed(e, text, length);
    if (!e->tokenizer->cutter) return encode_piece(e, text, length);
    TRY(cutter_run(e->tokenizer->cutter, text, length, at_start, &e->cutting));
    const struct piece_list *pieces = &e->cutting.now;
    for (size_t i = 0, start = 0; i < pieces->count; start = pieces->ends[i++])
        TRY(encode_piece(e, pieces->text.data + start, pieces->ends[i] - start));
    return ST_OK;
}

/* The trust of text[from .. to), byte by byte, into e->trust. Parts come from left to right. */
static enum status spread_trust(struct encoding *e, size_t from, size_t to)
{
    buf_clear(&e->trust);
    if (!buf_reserve(&e->trust, to - from)) return ST_NOMEM;
    memset(e->trust.data, 0, to - from);
    while (e->trust_idx < e->spans_count && e->spans[e->trust_idx].end <= from) e->trust_idx++;
    size_t i = e->trust_idx, start = i ? e->spans[i - 1].end : 0;
    for (; i < e->spans_count && start < to; start = e->spans[i++].end) {
        size_t low = start > from ? start : from, high = e->spans[i].end < to ? e->spans[i].end : to;
        if (e->spans[i].trusted && high > low) memset(e->trust.data + (low - from), 1, high - low);
    }
    e->trust.length = to - from;
    return ST_OK;
}

static enum status encode_ordinary(struct encoding *e, size_t from, size_t to)
{
    const struct tokenizer *t = e->tokenizer;
    const char *text = e->text + from, *trust = NULL;
    size_t length = to - from;
    if (!length) return ST_OK;
    if (t->normal_special.any_control && e->spans_count) {
        TRY(spread_trust(e, from, to));
        trust = e->trust.data;
    }
    if (t->normaliser) {
        TRY(normaliser_run(t->normaliser, text, length, (const unsigned char *)trust, &e->normal));
        text = e->normal.text.data;
        length = e->normal.text.length;
        trust = trust ? e->normal.trust.data : NULL;
    }
    for (size_t at = 0; at < length;) {
        struct found found = {NULL, length, length};
        bool special = next_normal(e, text, length, trust, at, &found);
        TRY(encode_part(e, text + at, found.start - at, !from && !at));
        if (special) TRY(push_id(e->list, found.name->id));
        at = found.end;
    }
    return ST_OK;
}

static enum status encode_all(struct encoding *e, bool add_special)
{
    const struct tokenizer *t = e->tokenizer;
    for (uint32_t i = 0; add_special && i < t->prefix_count; i++) TRY(push_id(e->list, t->around[i]));
    for (size_t at = 0; at < e->length;) {
        struct found found = {NULL, e->length, e->length};
        bool special = next_special(e, at, &found);
        TRY(encode_ordinary(e, at, found.start));
        if (special) TRY(push_id(e->list, found.name->id));
        at = found.end;
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
    *work = e.scratch.work + e.unigram_scratch.work;
    bpe_scratch_free(&e.scratch);
    unigram_scratch_free(&e.unigram_scratch);
    normal_text_free(&e.normal);
    cutting_free(&e.cutting);
    buf_free(&e.trust);
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
    if (id >= tokenizer->table.count) return "";
    return token_table_get(tokenizer->output.count ? &tokenizer->output : &tokenizer->table, id, length);
}

uint32_t tokenizer_start_spaces(const struct tokenizer *tokenizer)
{
    return tokenizer->start_spaces;
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
    const struct token_table *table = &tokenizer->table;
    size_t length = strlen(name);
    for (uint32_t id = 0; id < table->count; id++) { /* the lists hold what the normaliser makes of names */
        uint32_t n;
        if (!token_table_is_name(table->kinds[id])) continue;
        const char *bytes = token_table_get(table, id, &n);
        if (length && n == length && !memcmp(bytes, name, n)) return id;
    }
    return VOCAB_NO_ID;
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
