/* PCRE2 with its just-in-time compiler; see regex.h. */
#include "runtime/text/regex.h"

#include "runtime/base/buf.h"
#include "runtime/base/mem.h"
#include "runtime/base/utf8.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>
#include <string.h>

/* Backtracking steps of one match: beyond any expression of a tokeniser on any text it was made for. */
enum { STEPS_MAX = 1000000, DEPTH_MAX = 10000, HEAP_KIB_MAX = 20000 };

struct regex {
    pcre2_code *code;
    pcre2_match_context *limits;
};

/* White_Space, as a class without its brackets. */
static const char space_class[] =
    "\\t-\\r\\x20\\x{85}\\x{a0}\\x{1680}\\x{2000}-\\x{200a}\\x{2028}\\x{2029}\\x{202f}\\x{205f}\\x{3000}";

/* Oniguruma's \w, found by asking it about every character: Alphabetic, marks, decimal numbers, connectors; and, but
 * not within a class, the numbers of Latin-1. PCRE2's lacks marks and has all numbers. */
static const char word_class[] = "\\p{L}\\p{M}\\p{Nd}\\p{Nl}\\p{Pc}\\x{24b6}-\\x{24e9}"
                                 "\\x{1f130}-\\x{1f149}\\x{1f150}-\\x{1f169}\\x{1f170}-\\x{1f189}";
static const char word_latin[] = "\\x{b2}\\x{b3}\\x{b9}\\x{bc}-\\x{be}";

static const char *refusal(const char *at, size_t left, bool in_class)
{
    if (in_class && left >= 2 && at[0] == '&' && at[1] == '&') return "\"&&\" in a class";
    if (left >= 2 && at[0] == '\\' && strchr(in_class ? "hHWRXKGyYO" : "hHbBRXKGyYO", at[1]))
        return "an escape that other engines read otherwise";
    if (in_class || left < 3 || at[0] != '(' || at[1] != '?') return NULL;
    for (size_t i = 2; i < left && (at[i] == '-' || (at[i] >= 'a' && at[i] <= 'z')); i++)
        if (at[i] == 'm' || at[i] == 'x' || at[i] == 's') return "the options m, s and x";
    return NULL;
}

/* Ruby's expression as one that PCRE2 reads the same. */
static enum status rewrite(const char *pattern, size_t length, struct buf *out, struct error *err)
{
    unsigned depth = 0; /* of classes: Ruby's nest, Perl's do not */
    for (size_t i = 0; i < length; i++) {
        char c = pattern[i];
        const char *what = refusal(pattern + i, length - i, depth > 0);
        if (depth && c == '[' && !(i + 1 < length && pattern[i + 1] == ':')) what = "a class within a class";
        if (what) return error_set(err, ST_INVAL, "regular expression: %s at character %zu is not supported", what, i);
        if (c == '\\' && i + 1 < length) {
            char name = pattern[++i];
            if (name == 's')
                buf_append_format(out, depth ? "%s" : "[%s]", space_class);
            else if (name == 'S' && !depth)
                buf_append_format(out, "[^%s]", space_class);
            else if (name == 'w' && depth)
                buf_append_text(out, word_class);
            else if (name == 'w' || name == 'W')
                buf_append_format(out, "[%s%s%s]", name == 'W' ? "^" : "", word_class, word_latin);
            else
                buf_append(out, pattern + i - 1, 2);
            continue;
        }
        if (c == '[' && depth) { /* [:alpha:] */
            size_t end = i;
            while (end < length && pattern[end] != ']') end++;
            buf_append(out, pattern + i, end - i + (end < length));
            i = end;
            continue;
        }
        if (c == '[') {
            depth++;
            buf_append_char(out, c);
            if (i + 1 < length && pattern[i + 1] == '^') buf_append_char(out, pattern[++i]);
            if (i + 1 < length && pattern[i + 1] == ']') { /* a bracket that comes first is meant */
                buf_append_text(out, "\\]");
                i++;
            }
            continue;
        }
        if (c == ']' && depth) depth--;
        buf_append_char(out, c);
    }
    return buf_ok(out) ? ST_OK : error_set(err, ST_NOMEM, "no memory for a regular expression");
}

void regex_destroy(struct regex *regex)
{
    if (!regex) return;
    pcre2_code_free(regex->code);
    pcre2_match_context_free(regex->limits);
    mem_free(regex);
}

static enum status compile(struct regex *regex, const struct buf *pattern, struct error *err)
{
    int code;
    PCRE2_SIZE offset;
    regex->code =
        pcre2_compile((PCRE2_SPTR)pattern->data, pattern->length,
                      PCRE2_UTF | PCRE2_UCP | PCRE2_MULTILINE | PCRE2_NEVER_BACKSLASH_C, &code, &offset, NULL);
    if (!regex->code) {
        PCRE2_UCHAR message[160] = {0};
        pcre2_get_error_message(code, message, sizeof message);
        return error_set(err, code == PCRE2_ERROR_HEAP_FAILED ? ST_NOMEM : ST_INVAL,
                         "regular expression: %s (at character %zu of its form for PCRE2)", (char *)message,
                         (size_t)offset);
    }
    pcre2_jit_compile(regex->code, PCRE2_JIT_COMPLETE); /* without it, or without memory for it: slower, not wrong */
    regex->limits = pcre2_match_context_create(NULL);
    if (!regex->limits) return error_set(err, ST_NOMEM, "no memory for a regular expression");
    pcre2_set_match_limit(regex->limits, STEPS_MAX);
    pcre2_set_depth_limit(regex->limits, DEPTH_MAX);
    pcre2_set_heap_limit(regex->limits, HEAP_KIB_MAX);
    return ST_OK;
}

enum status regex_create(const char *pattern, size_t length, struct regex **regex, struct error *err)
{
    struct buf text;
    struct regex *made = mem_alloc(1, sizeof *made);
    if (!made) return error_set(err, ST_NOMEM, "no memory for a regular expression");
    buf_init(&text, 0);
    enum status status = rewrite(pattern, length, &text, err);
    if (status == ST_OK && !text.length) status = error_set(err, ST_INVAL, "regular expression: it is empty");
    if (status == ST_OK) status = compile(made, &text, err);
    buf_free(&text);
    if (status != ST_OK) {
        regex_destroy(made);
        return status;
    }
    *regex = made;
    return ST_OK;
}

/* The matches within text[from .. to), which is valid UTF-8. */
static enum status find_in(const struct regex *regex, pcre2_match_data *data, const char *text, size_t from, size_t to,
                           regex_match_fn match, void *state)
{
    size_t at = from;
    PCRE2_SIZE *bounds = pcre2_get_ovector_pointer(data);
    while (at <= to) {
        int found = pcre2_match(regex->code, (PCRE2_SPTR)(text + from), to - from, at - from, PCRE2_NO_UTF_CHECK, data,
                                regex->limits);
        if (found == PCRE2_ERROR_JIT_STACKLIMIT)
            found = pcre2_match(regex->code, (PCRE2_SPTR)(text + from), to - from, at - from,
                                PCRE2_NO_UTF_CHECK | PCRE2_NO_JIT, data, regex->limits);
        if (found == PCRE2_ERROR_NOMATCH) return ST_OK;
        if (found == PCRE2_ERROR_NOMEMORY) return ST_NOMEM;
        if (found < 0) return ST_LIMIT;
        size_t start = from + bounds[0], end = from + bounds[1];
        TRY(match(state, start, end));
        if (end > at || end > start) {
            at = end;
        }
        if (end == start) { /* an empty match: one character on */
            size_t step = end < to ? utf8_length(text + end, to - end) : 1;
            at = end + step;
        }
    }
    return ST_OK;
}

enum status regex_find_all(const struct regex *regex, const char *text, size_t length, regex_match_fn match,
                           void *state)
{
    pcre2_match_data *data = pcre2_match_data_create(1, NULL); /* the whole match; groups are not asked for */
    if (!data) return ST_NOMEM;
    enum status status = ST_OK;
    for (size_t at = 0; at < length && status == ST_OK;) {
        size_t valid = length - at;
        utf8_valid(text + at, length - at, &valid);
        if (valid) status = find_in(regex, data, text, at, at + valid, match, state);
        at += valid + (at + valid < length);
    }
    pcre2_match_data_free(data);
    return status;
}
