/* See normalise.h. A step reads `text` and writes `next_text`, then the two change places. Steps that look at single
 * characters share one loop (map_characters); those that need neighbours have their own.
 *
 * Source of what each step does: the library's normalizers, release 0.23; NFC and its kin: Unicode Standard Annex 15.
 * The map of a Precompiled normaliser: normalise_map.h. */
#include "runtime/text/normalise.h"

#include "runtime/base/arena.h"
#include "runtime/base/mem.h"
#include "runtime/base/utf8.h"
#include "runtime/text/normalise_map.h"
#include "runtime/text/regex.h"
#include "runtime/text/token_table.h"
#include "runtime/text/unicode_class.h"

#include <string.h>
#include <utf8proc.h>

struct step {
    struct vocab_step is; /* its texts lie in the normaliser's arena */
    struct regex *regex;
    struct normalise_map map;
};

struct normaliser {
    struct arena arena;
    struct step *steps;
    uint32_t count;
    uint16_t char_of[256]; /* the byte-level alphabet */
};

/* --- creation --- */

static enum status create_step(struct normaliser *n, const struct vocab_step *from, struct step *step,
                               struct error *err)
{
    step->is = *from;
    if (from->type == STEP_PRECOMPILED)
        return normalise_map_init(&step->map, from->content.text, from->content.length, err);
    TRY(step_texts_copy(&n->arena, &step->is));
    if (!from->regex) return ST_OK;
    return regex_create(from->pattern.text, from->pattern.length, &step->regex, err);
}

enum status normaliser_create(const struct vocab_step *steps, uint32_t count, struct normaliser **normaliser,
                              struct error *err)
{
    *normaliser = NULL;
    if (!count) return ST_OK;
    struct normaliser *n = mem_alloc(1, sizeof *n);
    if (!n) return ST_NOMEM;
    arena_init(&n->arena, 0);
    byte_level_map(NULL, n->char_of);
    n->steps = mem_alloc(count, sizeof *n->steps);
    enum status status = n->steps ? ST_OK : ST_NOMEM;
    for (; status == ST_OK && n->count < count; n->count++)
        status = create_step(n, &steps[n->count], &n->steps[n->count], err);
    if (status != ST_OK) {
        normaliser_destroy(n);
        return status;
    }
    *normaliser = n;
    return ST_OK;
}

void normaliser_destroy(struct normaliser *normaliser)
{
    if (!normaliser) return;
    for (uint32_t i = 0; i < normaliser->count; i++) {
        regex_destroy(normaliser->steps[i].regex);
        normalise_map_free(&normaliser->steps[i].map);
    }
    mem_free(normaliser->steps);
    arena_free(&normaliser->arena);
    mem_free(normaliser);
}

void normal_text_free(struct normal_text *text)
{
    buf_free(&text->text);
    buf_free(&text->trust);
    buf_free(&text->next_text);
    buf_free(&text->next_trust);
}

/* --- writing --- */

/* What a step may make of a part: far beyond any form of Unicode (NFKC: 11 bytes of one), and any normaliser that a
 * model was trained with. */
enum { GROWTH_MAX = 64, GROWTH_FREE = 65536 };

struct flow {
    struct normal_text *text;
    size_t limit; /* of text's bytes */
    bool tracked; /* trust goes along */
    bool beyond;  /* the limit was reached; nothing is written any more */
};

static bool fits(struct flow *f, size_t length)
{
    if (length > f->limit - f->text->next_text.length) f->beyond = true;
    return length && !f->beyond;
}

static void emit(struct flow *f, const char *bytes, size_t length, bool trusted)
{
    if (!fits(f, length)) return;
    buf_append(&f->text->next_text, bytes, length);
    if (!f->tracked || !buf_reserve(&f->text->next_trust, length)) return;
    memset(f->text->next_trust.data + f->text->next_trust.length, trusted, length);
    f->text->next_trust.length += length;
}

static void emit_character(struct flow *f, uint32_t c, bool trusted)
{
    char bytes[4];
    emit(f, bytes, utf8_encode(c, bytes), trusted);
}

/* Whether all of text[from .. to) is trusted. */
static bool all_trusted(const struct flow *f, size_t from, size_t to)
{
    return f->tracked && to > from && !memchr(f->text->trust.data + from, 0, to - from);
}

/* Copies text[from .. to) as it is. */
static void keep(struct flow *f, size_t from, size_t to)
{
    if (to <= from || !fits(f, to - from)) return;
    buf_append(&f->text->next_text, f->text->text.data + from, to - from);
    if (f->tracked) buf_append(&f->text->next_trust, f->text->trust.data + from, to - from);
}

static void swap(struct buf *a, struct buf *b)
{
    struct buf other = *a;
    *a = *b;
    *b = other;
}

/* --- steps over single characters --- */

/* What the library's clean_text takes away: control, format and private characters. */
static bool is_control(uint32_t c)
{
    if (c == '\t' || c == '\n' || c == '\r') return false;
    switch (utf8proc_category((utf8proc_int32_t)c)) {
    case UTF8PROC_CATEGORY_CC:
    case UTF8PROC_CATEGORY_CF:
    case UTF8PROC_CATEGORY_CS:
    case UTF8PROC_CATEGORY_CO: return true;
    default: return false;
    }
}

static bool is_chinese(uint32_t c)
{
    return (c >= 0x4e00 && c <= 0x9fff) || (c >= 0x3400 && c <= 0x4dbf) || (c >= 0x20000 && c <= 0x2a6df) ||
           (c >= 0x2a700 && c <= 0x2b73f) || (c >= 0x2b740 && c <= 0x2b81f) || (c >= 0x2b920 && c <= 0x2ceaf) ||
           (c >= 0xf900 && c <= 0xfaff) || (c >= 0x2f800 && c <= 0x2fa1f);
}

static bool is_mark(uint32_t c, bool nonspacing_only)
{
    utf8proc_category_t category = utf8proc_category((utf8proc_int32_t)c);
    return category == UTF8PROC_CATEGORY_MN ||
           (!nonspacing_only && (category == UTF8PROC_CATEGORY_MC || category == UTF8PROC_CATEGORY_ME));
}

/* U+0130 is the one character whose small letter is two. */
static void lower(struct flow *f, uint32_t c, bool trusted)
{
    if (c == 0x130)
        emit(f, "i\xcc\x87", 3, trusted);
    else
        emit_character(f, (uint32_t)utf8proc_tolower((utf8proc_int32_t)c), trusted);
}

static void nmt(struct flow *f, uint32_t c, bool trusted)
{
    if ((c >= 1 && c <= 8) || c == 0xb || (c >= 0xe && c <= 0x1f) || c == 0x7f || c == 0x8f || c == 0x9f) return;
    bool space = c == 9 || c == 0xa || c == 0xc || c == 0xd || c == 0x1680 || (c >= 0x200b && c <= 0x200f) ||
                 c == 0x2028 || c == 0x2029 || c == 0x2581 || c == 0xfeff || c == 0xfffd;
    emit_character(f, space ? ' ' : c, trusted);
}

static void clean(struct flow *f, uint32_t c, bool trusted)
{
    if (c == 0 || c == 0xfffd || is_control(c)) return;
    emit_character(f, unicode_is_space(c) ? ' ' : c, trusted);
}

static void space_chinese(struct flow *f, uint32_t c, bool trusted)
{
    if (is_chinese(c)) emit(f, " ", 1, trusted);
    emit_character(f, c, trusted);
    if (is_chinese(c)) emit(f, " ", 1, trusted);
}

static void strip_mark(struct flow *f, uint32_t c, bool trusted)
{
    if (!is_mark(c, false)) emit_character(f, c, trusted);
}

static void strip_nonspacing(struct flow *f, uint32_t c, bool trusted)
{
    if (!is_mark(c, true)) emit_character(f, c, trusted);
}

typedef void (*map_fn)(struct flow *f, uint32_t c, bool trusted);

static void map_characters(struct flow *f, map_fn map)
{
    const struct buf *text = &f->text->text;
    for (size_t at = 0, n; at < text->length; at += n) {
        uint32_t c;
        n = utf8_decode(text->data + at, text->length - at, &c);
        if (n) {
            map(f, c, all_trusted(f, at, at + n));
        } else {
            n = 1;
            keep(f, at, at + 1);
        }
    }
}

/* --- NFC, NFD, NFKC, NFKD --- */

struct points {
    utf8proc_int32_t *points;
    size_t count, capacity;
};

static bool reserve(struct points *p, size_t more)
{
    if (p->capacity - p->count >= more) return true;
    size_t capacity = 2 * p->capacity + more + 64;
    utf8proc_int32_t *points = mem_resize(p->points, capacity, sizeof *points);
    if (!points) return false;
    p->points = points;
    p->capacity = capacity;
    return true;
}

static uint8_t class_of(utf8proc_int32_t c)
{
    return c < 0x300 ? 0 : (uint8_t)utf8proc_get_property(c)->combining_class;
}

/* Orders a run of marks by their class, equals as they stood: insertion for short runs, counting for long ones (room
 * has the run's length). */
static void order_run(utf8proc_int32_t *run, size_t n, utf8proc_int32_t *room)
{
    if (n > 32) {
        size_t starts[257] = {0};
        for (size_t i = 0; i < n; i++) starts[class_of(run[i]) + 1]++;
        for (int c = 0; c < 256; c++) starts[c + 1] += starts[c];
        for (size_t i = 0; i < n; i++) room[starts[class_of(run[i])]++] = run[i];
        memcpy(run, room, n * sizeof *run);
        return;
    }
    for (size_t i = 1; i < n; i++) {
        utf8proc_int32_t c = run[i];
        size_t k = i;
        for (; k && class_of(run[k - 1]) > class_of(c); k--) run[k] = run[k - 1];
        run[k] = c;
    }
}

static bool order_marks(struct points *p)
{
    size_t count = p->count;
    if (!reserve(p, count)) return false; /* the upper half is the room */
    for (size_t at = 0; at < count;) {
        size_t end = at;
        while (end < count && class_of(p->points[end])) end++;
        if (end - at > 1) order_run(p->points + at, end - at, p->points + count);
        at = end + (end == at);
    }
    return true;
}

/* One stretch of text[from .. to), valid UTF-8, that its neighbours do not change. It has one trust, but for an ASCII
 * character at its start that stays what it is: that one keeps its own. */
static enum status unicode_stretch(struct flow *f, size_t from, size_t to, utf8proc_option_t options, struct points *p)
{
    const struct buf *text = &f->text->text;
    p->count = 0;
    for (size_t at = from, n; at < to; at += n) {
        uint32_t c;
        int boundary = 0;
        n = utf8_decode(text->data + at, to - at, &c);
        if (!reserve(p, 32)) return ST_NOMEM; /* the longest decomposition has 18 */
        utf8proc_ssize_t added = utf8proc_decompose_char((utf8proc_int32_t)c, p->points + p->count, 32,
                                                         (options & ~UTF8PROC_COMPOSE) | UTF8PROC_DECOMPOSE, &boundary);
        if (added > 0 && added <= 32) p->count += (size_t)added;
    }
    if (!order_marks(p)) return ST_NOMEM;
    if (options & UTF8PROC_COMPOSE) {
        utf8proc_ssize_t left = utf8proc_normalize_utf32(p->points, (utf8proc_ssize_t)p->count, options);
        if (left >= 0) p->count = (size_t)left;
    }
    unsigned char first = (unsigned char)text->data[from];
    bool apart = first < 0x80 && p->count && p->points[0] == first;
    bool trusted = all_trusted(f, from + apart, to);
    if (apart) keep(f, from, from + 1);
    for (size_t i = apart; i < p->count; i++) emit_character(f, (uint32_t)p->points[i], trusted);
    return ST_OK;
}

/* ASCII never changes, and never joins what stands before it: stretches begin at the last ASCII character before
 * others. */
static enum status unicode_form(struct flow *f, utf8proc_option_t options)
{
    const struct buf *text = &f->text->text;
    struct points points = {NULL, 0, 0};
    enum status status = ST_OK;
    for (size_t at = 0; at < text->length && status == ST_OK;) {
        size_t plain = at;
        while (plain < text->length && (unsigned char)text->data[plain] < 0x80) plain++;
        if (plain == text->length) {
            keep(f, at, plain);
            break;
        }
        size_t start = plain > at ? plain - 1 : at, end = plain, n;
        keep(f, at, start);
        while (end < text->length && (unsigned char)text->data[end] >= 0x80 &&
               (n = utf8_length(text->data + end, text->length - end)))
            end += n;
        status = unicode_stretch(f, start, end, options, &points);
        if (end < text->length && (unsigned char)text->data[end] >= 0x80) keep(f, end, end + 1), end++;
        at = end;
    }
    mem_free(points.points);
    return status;
}

/* --- steps that look further --- */

static void replace_string(struct flow *f, struct vocab_string pattern, struct vocab_string content)
{
    const struct buf *text = &f->text->text;
    size_t from = 0;
    while (pattern.length && text->length - from >= pattern.length) {
        const char *found = memmem(text->data + from, text->length - from, pattern.text, pattern.length);
        if (!found) break;
        size_t at = (size_t)(found - text->data);
        keep(f, from, at);
        emit(f, content.text, content.length, all_trusted(f, at, at + pattern.length));
        from = at + pattern.length;
    }
    keep(f, from, text->length);
}

struct replacing {
    struct flow *flow;
    struct vocab_string content;
    size_t from;
};

static enum status replace_match(void *state, size_t start, size_t end)
{
    struct replacing *r = state;
    keep(r->flow, r->from, start);
    emit(r->flow, r->content.text, r->content.length, all_trusted(r->flow, start, end));
    r->from = end;
    return ST_OK;
}

static enum status replace(struct flow *f, const struct step *step)
{
    const struct buf *text = &f->text->text;
    if (!step->regex) {
        replace_string(f, step->is.pattern, step->is.content);
        return ST_OK;
    }
    struct replacing r = {f, step->is.content, 0};
    TRY(regex_find_all(step->regex, text->data, text->length, replace_match, &r));
    keep(f, r.from, text->length);
    return ST_OK;
}

static void strip(struct flow *f, bool left, bool right)
{
    const struct buf *text = &f->text->text;
    size_t start = 0, end = text->length, n;
    uint32_t c;
    while (left && start < end && (n = utf8_decode(text->data + start, end - start, &c)) && unicode_is_space(c))
        start += n;
    while (right && end > start) {
        size_t at = end - 1;
        while (at > start && ((unsigned char)text->data[at] & 0xc0) == 0x80 && end - at < 4) at--;
        if (utf8_decode(text->data + at, end - at, &c) != end - at || !unicode_is_space(c)) break;
        end = at;
    }
    keep(f, start, end);
}

static void bytes_to_characters(struct flow *f, const uint16_t char_of[256])
{
    const struct buf *text = &f->text->text;
    for (size_t at = 0; at < text->length; at++)
        emit_character(f, char_of[(unsigned char)text->data[at]], all_trusted(f, at, at + 1));
}

static void map_piece(void *state, size_t from, size_t to, const char *replacement, size_t length)
{
    struct flow *f = state;
    if (replacement)
        emit(f, replacement, length, all_trusted(f, from, to));
    else
        keep(f, from, to);
}

/* --- the steps --- */

static enum status next_step(struct flow *f)
{
    if (f->beyond) return ST_LIMIT;
    if (!buf_ok(&f->text->next_text) || !buf_ok(&f->text->next_trust)) return ST_NOMEM;
    swap(&f->text->text, &f->text->next_text);
    swap(&f->text->trust, &f->text->next_trust);
    buf_clear(&f->text->next_text);
    buf_clear(&f->text->next_trust);
    return ST_OK;
}

static enum status bert(struct flow *f, const struct vocab_step *step)
{
    if (step->clean_text) {
        map_characters(f, clean);
        TRY(next_step(f));
    }
    if (step->chinese) {
        map_characters(f, space_chinese);
        TRY(next_step(f));
    }
    if (step->accents) {
        TRY(unicode_form(f, UTF8PROC_STABLE | UTF8PROC_DECOMPOSE));
        TRY(next_step(f));
        map_characters(f, strip_nonspacing);
        TRY(next_step(f));
    }
    if (step->lowercase)
        map_characters(f, lower);
    else
        keep(f, 0, f->text->text.length);
    return ST_OK;
}

static enum status run_step(struct flow *f, const struct normaliser *n, const struct step *step)
{
    size_t length = f->text->text.length;
    switch (step->is.type) {
    case STEP_NFC: return unicode_form(f, UTF8PROC_STABLE | UTF8PROC_COMPOSE);
    case STEP_NFD: return unicode_form(f, UTF8PROC_STABLE | UTF8PROC_DECOMPOSE);
    case STEP_NFKC: return unicode_form(f, UTF8PROC_STABLE | UTF8PROC_COMPAT | UTF8PROC_COMPOSE);
    case STEP_NFKD: return unicode_form(f, UTF8PROC_STABLE | UTF8PROC_COMPAT | UTF8PROC_DECOMPOSE);
    case STEP_NMT: map_characters(f, nmt); break;
    case STEP_LOWERCASE: map_characters(f, lower); break;
    case STEP_STRIP_ACCENTS: map_characters(f, strip_mark); break;
    case STEP_STRIP: strip(f, step->is.left, step->is.right); break;
    case STEP_PREPEND:
        if (length) emit(f, step->is.content.text, step->is.content.length, all_trusted(f, 0, 1));
        keep(f, 0, length);
        break;
    case STEP_REPLACE: return replace(f, step);
    case STEP_BERT_NORMALIZER: return bert(f, &step->is);
    case STEP_BYTE_LEVEL: bytes_to_characters(f, n->char_of); break;
    case STEP_PRECOMPILED: normalise_map_run(&step->map, f->text->text.data, length, map_piece, f); break;
    default: keep(f, 0, length); break;
    }
    return ST_OK;
}

enum status normaliser_run(const struct normaliser *normaliser, const char *text, size_t length,
                           const unsigned char *trust, struct normal_text *out)
{
    size_t limit = length < (SIZE_MAX - GROWTH_FREE) / GROWTH_MAX ? GROWTH_MAX * length + GROWTH_FREE : SIZE_MAX;
    struct flow f = {out, limit, trust != NULL, false};
    buf_clear(&out->text);
    buf_clear(&out->trust);
    buf_clear(&out->next_text);
    buf_clear(&out->next_trust);
    if (length) buf_append(&out->text, text, length);
    if (length && trust) buf_append(&out->trust, trust, length);
    if (!buf_ok(&out->text) || !buf_ok(&out->trust)) return ST_NOMEM;
    for (uint32_t i = 0; i < normaliser->count && out->text.length; i++) {
        TRY(run_step(&f, normaliser, &normaliser->steps[i]));
        TRY(next_step(&f));
    }
    return ST_OK;
}
