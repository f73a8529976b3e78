/* See pretokenize_steps.h. Every step comes down to the same: ranges of a piece, each a match or what stands between
 * matches, and a behaviour that says which of them stay, alone or joined. Source: the library's
 * tokenizer/normalizer.rs (split) and pre_tokenizers, release 0.23. */
#include "runtime/text/pretokenize_steps.h"

#include "runtime/base/arena.h"
#include "runtime/base/mem.h"
#include "runtime/base/utf8.h"
#include "runtime/text/pretokenize.h"
#include "runtime/text/regex.h"
#include "runtime/text/token_table.h"

#include <string.h>
#include <utf8proc.h>

struct step {
    struct vocab_step is; /* its texts lie in the cutter's arena */
    struct regex *regex;
    bool lexed; /* a lexer stands for the expression */
    enum pretokenize_pattern lexer;
};

struct cutter {
    struct arena arena;
    const struct unicode_classes *classes;
    struct step *steps;
    uint32_t count;
    bool bytes;       /* the pieces shall be bytes */
    bool mapped_last; /* the last step leaves bytes written as characters */
    uint16_t char_of[256];
    int16_t byte_of[BYTE_CHARACTERS];
};

/* --- creation --- */

static enum status create_step(struct cutter *c, const struct vocab_step *from, struct step *step, struct error *err)
{
    step->is = *from;
    TRY(step_texts_copy(&c->arena, &step->is));
    if ((from->type == STEP_SPLIT || from->type == STEP_CHAR_DELIMITER) && !from->pattern.length)
        return error_set(err, ST_INVAL, "pre_tokenizer Split: the pattern is empty");
    if (from->type == STEP_METASPACE &&
        (!from->content.length || utf8_length(from->content.text, from->content.length) != from->content.length))
        return error_set(err, ST_INVAL, "pre_tokenizer Metaspace: \"replacement\" is not one character");
    if (!from->regex) return ST_OK;
    step->lexed = pretokenize_find_expression(from->pattern.text, from->pattern.length, &step->lexer);
    return step->lexed ? ST_OK : regex_create(from->pattern.text, from->pattern.length, &step->regex, err);
}

enum status cutter_create(const struct vocab_step *steps, uint32_t count, bool mapped, bool bytes,
                          const struct unicode_classes *classes, struct cutter **cutter, struct error *err)
{
    bool written = mapped;
    struct cutter *c = mem_alloc(1, sizeof *c);
    if (!c) return ST_NOMEM;
    arena_init(&c->arena, 0);
    c->classes = classes;
    byte_level_map(c->byte_of, c->char_of);
    c->steps = mem_alloc(count ? count : 1, sizeof *c->steps);
    enum status status = c->steps ? ST_OK : ST_NOMEM;
    for (; status == ST_OK && c->count < count; c->count++) {
        status = create_step(c, &steps[c->count], &c->steps[c->count], err);
        if (status != ST_OK || steps[c->count].type != STEP_BYTE_LEVEL) continue;
        if (written) status = error_set(err, ST_INVAL, "bytes are written as characters twice (ByteLevel)");
        written = true;
        c->mapped_last = c->count + 1 < count || !bytes;
    }
    c->mapped_last |= mapped;
    c->bytes = bytes;
    if (status != ST_OK) {
        cutter_destroy(c);
        return status;
    }
    *cutter = c;
    return ST_OK;
}

void cutter_destroy(struct cutter *cutter)
{
    if (!cutter) return;
    for (uint32_t i = 0; i < cutter->count; i++) regex_destroy(cutter->steps[i].regex);
    mem_free(cutter->steps);
    arena_free(&cutter->arena);
    mem_free(cutter);
}

void cutting_free(struct cutting *cutting)
{
    buf_free(&cutting->now.text);
    buf_free(&cutting->next.text);
    mem_free(cutting->now.ends);
    mem_free(cutting->next.ends);
    mem_free(cutting->ranges);
    memset(cutting, 0, sizeof *cutting);
}

/* --- pieces and ranges --- */

static void clear(struct piece_list *list)
{
    buf_clear(&list->text);
    list->count = 0;
    list->starts = false;
}

/* What was appended to the text since the last piece becomes one, unless it is empty. */
static void end_piece(struct piece_list *list)
{
    size_t last = list->count ? list->ends[list->count - 1] : 0;
    if (list->text.length == last) return;
    if (list->count == list->capacity) {
        size_t capacity = list->capacity ? 2 * list->capacity : 64;
        size_t *ends = mem_resize(list->ends, capacity, sizeof *ends);
        if (!ends) {
            list->failed = true;
            return;
        }
        list->ends = ends;
        list->capacity = capacity;
    }
    list->ends[list->count++] = list->text.length;
}

static void add_range(struct cutting *cut, size_t start, size_t end, bool match)
{
    if (cut->ranges_count == cut->ranges_capacity) {
        size_t capacity = cut->ranges_capacity ? 2 * cut->ranges_capacity : 64;
        struct piece_range *ranges = mem_resize(cut->ranges, capacity, sizeof *ranges);
        if (!ranges) {
            cut->failed = true;
            return;
        }
        cut->ranges = ranges;
        cut->ranges_capacity = capacity;
    }
    cut->ranges[cut->ranges_count++] = (struct piece_range){start, end, match};
}

/* A match, and what stood before it. */
static enum status add_match(void *state, size_t start, size_t end)
{
    struct cutting *cut = state;
    size_t last = cut->ranges_count ? cut->ranges[cut->ranges_count - 1].end : 0;
    if (start > last) add_range(cut, last, start, false);
    add_range(cut, start, end, true);
    return cut->failed ? ST_NOMEM : ST_OK;
}

static void add_rest(struct cutting *cut, size_t length)
{
    size_t last = cut->ranges_count ? cut->ranges[cut->ranges_count - 1].end : 0;
    if (length > last) add_range(cut, last, length, false);
}

/* Joins ranges in place as the behaviour says. Afterwards each range is a piece, or (Removed) a match that goes. */
static void join_ranges(struct cutting *cut, enum vocab_behavior behavior)
{
    struct piece_range *r = cut->ranges;
    size_t n = cut->ranges_count, kept = 0;
    if (behavior == BEHAVIOR_CONTIGUOUS || behavior == BEHAVIOR_MERGED_WITH_PREVIOUS) {
        bool before = false; /* the last range was a match */
        for (size_t i = 0; i < n; i++) {
            bool match = r[i].match;
            bool join = kept && (behavior == BEHAVIOR_CONTIGUOUS ? match == before : match && !before);
            if (join)
                r[kept - 1].end = r[i].end;
            else
                r[kept++] = r[i];
            before = match;
        }
        cut->ranges_count = kept;
    } else if (behavior == BEHAVIOR_MERGED_WITH_NEXT) {
        bool after = false;
        kept = n;
        for (size_t i = n; i-- > 0;) {
            bool match = r[i].match;
            if (match && !after && kept < n)
                r[kept].start = r[i].start;
            else
                r[--kept] = r[i];
            after = match;
        }
        memmove(r, r + kept, (n - kept) * sizeof *r);
        cut->ranges_count = n - kept;
    }
}

/* The ranges of a piece become pieces. starts: the piece stands at the start of the whole text. */
static void emit_ranges(struct cutting *cut, const char *piece, enum vocab_behavior behavior, bool invert, bool starts)
{
    if (invert)
        for (size_t i = 0; i < cut->ranges_count; i++) cut->ranges[i].match = !cut->ranges[i].match;
    join_ranges(cut, behavior);
    for (size_t i = 0; i < cut->ranges_count; i++) {
        const struct piece_range *range = &cut->ranges[i];
        if (behavior == BEHAVIOR_REMOVED && range->match) continue;
        if (range->end == range->start) continue;
        if (starts && !range->start) cut->next.starts = true;
        buf_append(&cut->next.text, piece + range->start, range->end - range->start);
        end_piece(&cut->next);
    }
}

/* --- what matches --- */

static bool is_punctuation(uint32_t c)
{
    if (c < 0x80)
        return (c >= '!' && c <= '/') || (c >= ':' && c <= '@') || (c >= '[' && c <= '`') || (c >= '{' && c <= '~');
    switch (utf8proc_category((utf8proc_int32_t)c)) {
    case UTF8PROC_CATEGORY_PC:
    case UTF8PROC_CATEGORY_PD:
    case UTF8PROC_CATEGORY_PS:
    case UTF8PROC_CATEGORY_PE:
    case UTF8PROC_CATEGORY_PI:
    case UTF8PROC_CATEGORY_PF:
    case UTF8PROC_CATEGORY_PO: return true;
    default: return false;
    }
}

enum matcher { MATCH_SPACE, MATCH_DIGIT, MATCH_PUNCTUATION, MATCH_CHARACTER };

static bool matches(const struct cutter *c, enum matcher matcher, uint32_t codepoint, uint32_t wanted)
{
    enum unicode_class class = unicode_class_of(c->classes, codepoint);
    switch (matcher) {
    case MATCH_SPACE: return class == UNICODE_SPACE || class == UNICODE_NEWLINE;
    case MATCH_DIGIT: return class == UNICODE_NUMBER || class == UNICODE_NUMBER_NEW;
    case MATCH_PUNCTUATION: return is_punctuation(codepoint);
    case MATCH_CHARACTER: return codepoint == wanted;
    }
    return false;
}

/* Every character that matches is a match of its own. */
static void match_characters(const struct cutter *c, struct cutting *cut, const char *piece, size_t length,
                             enum matcher matcher, uint32_t wanted)
{
    for (size_t at = 0, n; at < length; at += n) {
        uint32_t codepoint;
        n = utf8_decode(piece + at, length - at, &codepoint);
        if (n && matches(c, matcher, codepoint, wanted)) add_match(cut, at, at + n);
        if (!n) n = 1;
    }
    add_rest(cut, length);
}

/* \w+|[^\w\s]+ : runs of words and runs of what is neither word nor white space. */
static void match_words(const struct cutter *c, struct cutting *cut, const char *piece, size_t length)
{
    int before = 0;
    size_t start = 0;
    for (size_t at = 0, n; at <= length; at += n) {
        uint32_t codepoint = 0;
        int kind = 0; /* 0: white space or the end, 1: word, 2: other */
        n = at < length ? utf8_decode(piece + at, length - at, &codepoint) : 1;
        if (at < length)
            kind = n && unicode_is_word(c->classes, codepoint) ? 1 : n && unicode_is_space(codepoint) ? 0 : 2;
        if (!n) n = 1;
        if (kind == before) continue;
        if (before) add_match(cut, start, at);
        start = at;
        before = kind;
    }
    add_rest(cut, length);
}

static void match_string(struct cutting *cut, const char *piece, size_t length, struct vocab_string pattern)
{
    for (size_t at = 0; length - at >= pattern.length;) {
        const char *found = memmem(piece + at, length - at, pattern.text, pattern.length);
        if (!found) break;
        at = (size_t)(found - piece);
        add_match(cut, at, at + pattern.length);
        at += pattern.length;
    }
    add_rest(cut, length);
}

static void match_lexer(const struct cutter *c, struct cutting *cut, const char *piece, size_t length,
                        enum pretokenize_pattern pattern)
{
    struct pretokenize_cursor cursor;
    pretokenize_start(&cursor, c->classes, pattern, piece, length);
    for (size_t at = 0; pretokenize_next(&cursor); at = cursor.at) add_match(cut, at, cursor.at);
}

/* --- the steps --- */

static enum status split(const struct cutter *c, const struct step *step, struct cutting *cut, const char *piece,
                         size_t length, bool starts)
{
    if (step->lexed) {
        match_lexer(c, cut, piece, length, step->lexer);
    } else if (step->regex) {
        TRY(regex_find_all(step->regex, piece, length, add_match, cut));
        add_rest(cut, length);
    } else {
        match_string(cut, piece, length, step->is.pattern);
    }
    emit_ranges(cut, piece, step->is.behavior, step->is.invert, starts);
    return ST_OK;
}

/* " " becomes the replacement, which begins every piece. */
static void metaspace(const struct step *step, struct cutting *cut, const char *piece, size_t length, bool starts)
{
    struct vocab_string mark = step->is.content;
    struct piece_list *out = &cut->next;
    bool has_mark = length && (*piece == ' ' || (length >= mark.length && !memcmp(piece, mark.text, mark.length)));
    bool prepend = step->is.prepend == PREPEND_ALWAYS || (step->is.prepend == PREPEND_FIRST && starts);
    if (prepend && !has_mark) buf_append(&out->text, mark.text, mark.length);
    if (starts) out->starts = true;
    for (size_t at = 0; at < length;) {
        bool space = piece[at] == ' ';
        bool begins = space || (length - at >= mark.length && !memcmp(piece + at, mark.text, mark.length));
        if (begins && step->is.split) end_piece(out);
        if (begins)
            buf_append(&out->text, mark.text, mark.length);
        else
            buf_append_char(&out->text, piece[at]);
        at += space ? 1 : begins ? mark.length : 1;
    }
    end_piece(out);
}

static void byte_level(const struct cutter *c, const struct step *step, bool map, struct cutting *cut,
                       const char *piece, size_t length, bool starts)
{
    struct piece_list *out = &cut->next;
    size_t first = out->text.length;
    if (starts) out->starts = true;
    if (step->is.add_prefix_space && *piece != ' ') buf_append_char(&out->text, ' ');
    buf_append(&out->text, piece, length);
    if (!buf_ok(&out->text)) return;
    /* The lexer reads the copy, which has the space. Without a mapping pieces lie there already. */
    struct pretokenize_cursor cursor;
    size_t total = out->text.length - first;
    if (!map) {
        pretokenize_start(&cursor, c->classes, PRETOKENIZE_GPT2, out->text.data + first, total);
        while (step->is.use_regex && pretokenize_next(&cursor)) {
            size_t end = out->text.length;
            out->text.length = first + cursor.at;
            end_piece(out);
            out->text.length = end;
        }
        end_piece(out);
        return;
    }
    char *copy = mem_strdup(out->text.data + first, total);
    out->text.length = first;
    if (!copy) {
        out->failed = true;
        return;
    }
    pretokenize_start(&cursor, c->classes, PRETOKENIZE_GPT2, copy, total);
    for (size_t at = 0, n; at < total; at += n) {
        char bytes[4];
        n = step->is.use_regex ? pretokenize_next(&cursor) : total;
        for (size_t i = 0; i < n; i++)
            buf_append(&out->text, bytes, utf8_encode(c->char_of[(unsigned char)copy[at + i]], bytes));
        end_piece(out);
    }
    mem_free(copy);
}

static enum status run_step(const struct cutter *c, uint32_t idx, struct cutting *cut, const char *piece, size_t length,
                            bool starts)
{
    const struct step *step = &c->steps[idx];
    uint32_t wanted = 0;
    cut->ranges_count = 0;
    switch (step->is.type) {
    case STEP_SPLIT: return split(c, step, cut, piece, length, starts);
    case STEP_METASPACE: metaspace(step, cut, piece, length, starts); break;
    case STEP_BYTE_LEVEL: byte_level(c, step, idx + 1 < c->count || !c->bytes, cut, piece, length, starts); break;
    case STEP_DIGITS:
        match_characters(c, cut, piece, length, MATCH_DIGIT, 0);
        emit_ranges(cut, piece, step->is.individual ? BEHAVIOR_ISOLATED : BEHAVIOR_CONTIGUOUS, false, starts);
        break;
    case STEP_PUNCTUATION:
        match_characters(c, cut, piece, length, MATCH_PUNCTUATION, 0);
        emit_ranges(cut, piece, step->is.behavior, false, starts);
        break;
    case STEP_CHAR_DELIMITER:
        utf8_decode(step->is.pattern.text, step->is.pattern.length, &wanted);
        match_characters(c, cut, piece, length, MATCH_CHARACTER, wanted);
        emit_ranges(cut, piece, BEHAVIOR_REMOVED, false, starts);
        break;
    case STEP_WHITESPACE:
        match_words(c, cut, piece, length);
        emit_ranges(cut, piece, BEHAVIOR_REMOVED, true, starts);
        break;
    case STEP_WHITESPACE_SPLIT:
    case STEP_BERT_PRE_TOKENIZER:
        match_characters(c, cut, piece, length, MATCH_SPACE, 0);
        emit_ranges(cut, piece, BEHAVIOR_REMOVED, false, starts);
        break;
    default: break;
    }
    return ST_OK;
}

static void swap_lists(struct cutting *cut)
{
    struct piece_list list = cut->now;
    cut->now = cut->next;
    cut->next = list;
    clear(&cut->next);
}

static enum status check_memory(const struct cutting *cut)
{
    return cut->failed || cut->next.failed || !buf_ok(&cut->next.text) || !buf_ok(&cut->now.text) ? ST_NOMEM : ST_OK;
}

/* All pieces through one step. punctuation: the second half of BertPreTokenizer. */
static enum status run_all(const struct cutter *c, uint32_t idx, bool punctuation, struct cutting *cut)
{
    for (size_t i = 0, start = 0; i < cut->now.count; i++) {
        const char *piece = cut->now.text.data + start;
        size_t length = cut->now.ends[i] - start;
        bool starts = !i && cut->now.starts;
        if (punctuation) {
            cut->ranges_count = 0;
            match_characters(c, cut, piece, length, MATCH_PUNCTUATION, 0);
            emit_ranges(cut, piece, BEHAVIOR_ISOLATED, false, starts);
        } else {
            TRY(run_step(c, idx, cut, piece, length, starts));
        }
        start = cut->now.ends[i];
    }
    TRY(check_memory(cut));
    swap_lists(cut);
    return ST_OK;
}

/* Characters of the byte-level alphabet back to the bytes they stand for. */
static enum status unmap(const struct cutter *c, struct cutting *cut)
{
    for (size_t i = 0, start = 0; i < cut->now.count; i++) {
        const char *piece = cut->now.text.data + start;
        size_t length = cut->now.ends[i] - start, n = length, at = cut->next.text.length;
        if (!buf_reserve(&cut->next.text, length)) return ST_NOMEM;
        if (!byte_level_decode(c->byte_of, piece, length, cut->next.text.data + at, &n))
            memcpy(cut->next.text.data + at, piece, n = length);
        cut->next.text.length += n;
        end_piece(&cut->next);
        start = cut->now.ends[i];
    }
    TRY(check_memory(cut));
    swap_lists(cut);
    return ST_OK;
}

enum status cutter_run(const struct cutter *cutter, const char *text, size_t length, bool at_start,
                       struct cutting *cutting)
{
    clear(&cutting->now);
    clear(&cutting->next);
    cutting->failed = cutting->now.failed = cutting->next.failed = false;
    if (!length) return ST_OK;
    buf_append(&cutting->now.text, text, length);
    end_piece(&cutting->now);
    cutting->now.starts = at_start;
    if (cutting->now.failed || !buf_ok(&cutting->now.text)) return ST_NOMEM;
    for (uint32_t i = 0; i < cutter->count; i++) {
        TRY(run_all(cutter, i, false, cutting));
        if (cutter->steps[i].is.type == STEP_BERT_PRE_TOKENIZER) TRY(run_all(cutter, i, true, cutting));
    }
    return cutter->bytes && cutter->mapped_last ? unmap(cutter, cutting) : ST_OK;
}
