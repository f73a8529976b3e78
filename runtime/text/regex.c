/* PCRE2 with its just-in-time compiler; see regex.h. */
#include "runtime/text/regex.h"

#include "runtime/base/buf.h"
#include "runtime/base/mem.h"
#include "runtime/base/utf8.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>
#include <string.h>

/* STEPS_FREE: backtracking steps at one place before they are paid for; most expressions of tokenisers take a few. */
enum { WINDOW = 512, STEPS_FREE = 256, STEPS_MAX = 1 << 28, BUDGET_FREE = 100000 };
enum { DEPTH_MAX = 10000, HEAP_KIB_MAX = 20000 };

struct regex {
    pcre2_code *code;
    pcre2_match_context *limits;
    bool line_starts; /* has "^" */
};

/* White_Space, as a class without its brackets. */
static const char space_class[] =
    "\\t-\\r\\x20\\x{85}\\x{a0}\\x{1680}\\x{2000}-\\x{200a}\\x{2028}\\x{2029}\\x{202f}\\x{205f}\\x{3000}";

/* Oniguruma's \w, found by asking it about every character: Alphabetic, marks, decimal numbers, connectors; and, but
 * not within a class, the numbers of Latin-1. PCRE2's lacks marks and has all numbers. */
static const char word_class[] = "\\p{L}\\p{M}\\p{Nd}\\p{Nl}\\p{Pc}\\x{24b6}-\\x{24e9}"
                                 "\\x{1f130}-\\x{1f149}\\x{1f150}-\\x{1f169}\\x{1f170}-\\x{1f189}";
static const char word_latin[] = "\\x{b2}\\x{b3}\\x{b9}\\x{bc}-\\x{be}";

/* Ruby reads "{,3}" as "{0,3}", "{3}?" as "(?:{3})?" and "{3}+" as "(?:{3})+". */
static const char *refuse_interval(const char *at, size_t left)
{
    size_t i = 1;
    bool range = false;
    if (left > 1 && at[1] == ',') return "an interval without its lower bound";
    for (; i < left && ((at[i] >= '0' && at[i] <= '9') || at[i] == ','); i++) range |= at[i] == ',';
    if (i == 1 || i + 1 >= left || at[i] != '}') return NULL;
    return at[i + 1] == '+' || (at[i + 1] == '?' && !range) ? "an interval that is repeated" : NULL;
}

static const char *refusal(const char *at, size_t left, bool in_class, bool first)
{
    if (in_class && left >= 2 && at[0] == '&' && at[1] == '&') return "\"&&\" in a class";
    if (left >= 2 && at[0] == '\\' && strchr(in_class ? "hHWRXKGyYO" : "hHbBRXKGyYO", at[1]))
        return "an escape that other engines read otherwise";
    if (!in_class && at[0] == '{') return refuse_interval(at, left);
    if (in_class || left < 3 || at[0] != '(' || at[1] != '?') return NULL;
    size_t i = 2;
    for (; i < left && (at[i] == '-' || (at[i] >= 'a' && at[i] <= 'z')); i++)
        if (at[i] == 'm' || at[i] == 'x' || at[i] == 's') return "the options m, s and x";
    return i > 2 && i < left && at[i] == ')' && !first ? "an option for the rest of a group" : NULL;
}

/* Ruby's expression as one that PCRE2 reads the same. */
static enum status rewrite(struct regex *regex, const char *pattern, size_t length, struct buf *out, struct error *err)
{
    unsigned depth = 0; /* of classes: Ruby's nest, Perl's do not */
    for (size_t i = 0; i < length; i++) {
        char c = pattern[i];
        const char *what = refusal(pattern + i, length - i, depth > 0, !i);
        regex->line_starts |= c == '^';
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
            if (strchr("pPx", name) && i + 1 < length && pattern[i + 1] == '{') /* no interval */
                while (i + 1 < length && pattern[i] != '}') buf_append_char(out, pattern[++i]);
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
                      PCRE2_UTF | PCRE2_UCP | PCRE2_MULTILINE | PCRE2_NEVER_BACKSLASH_C | PCRE2_USE_OFFSET_LIMIT, &code,
                      &offset, NULL);
    if (!regex->code) {
        PCRE2_UCHAR message[160] = {0};
        pcre2_get_error_message(code, message, sizeof message);
        return error_set(err, code == PCRE2_ERROR_HEAP_FAILED ? ST_NOMEM : ST_INVAL,
                         "regular expression: %s (at character %zu of its form for PCRE2)", (char *)message,
                         (size_t)offset);
    }
    pcre2_jit_compile(regex->code,
                      PCRE2_JIT_COMPLETE |
                          PCRE2_JIT_PARTIAL_HARD); /* without it, or without memory for it: slower, not wrong */
    regex->limits = pcre2_match_context_create(NULL);
    if (!regex->limits) return error_set(err, ST_NOMEM, "no memory for a regular expression");
    pcre2_set_match_limit(regex->limits, STEPS_FREE);
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
    enum status status = rewrite(made, pattern, length, &text, err);
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

/* --- searching ---
 *
 * A backtracking engine may look at all that follows, and again from the next place: runs square. So it is shown a
 * window, and asked to tell when it comes to the window's end (a partial match: nothing that it has found so far
 * depended on what follows). The place where that happens is looked at by itself in windows that double, as is one that
 * takes many steps with limits that grow; both are paid from one budget. Work within a window is free: so many windows
 * cover a text. */

struct search {
    const struct regex *regex;
    const char *text;
    size_t from, to;             /* valid UTF-8 */
    size_t single_until;         /* places before this are looked at one by one */
    uint64_t budget;             /* bytes and steps */
    pcre2_match_data *data;      /* the whole match; groups are not asked for */
    pcre2_match_context *limits; /* our own; NULL until needed */
};

static size_t window_end(const struct search *s, size_t at, size_t bytes)
{
    if (s->to - at <= bytes) return s->to;
    size_t end = at + bytes;
    while (((unsigned char)s->text[end] & 0xc0) == 0x80) end--;
    /* "^" behind a newline does not tell that it looks at the end */
    while (s->regex->line_starts && end < s->to && s->text[end - 1] == '\n')
        end += utf8_length(s->text + end, s->to - end);
    return end;
}

static bool pay(struct search *s, uint64_t amount)
{
    if (amount > s->budget) return false;
    s->budget -= amount;
    return true;
}

/* What PCRE2 finds in the window that ends at `end`, from `at` on; with steps: at `at` only, in so many steps. */
static int match_window(struct search *s, size_t at, size_t end, uint32_t steps)
{
    pcre2_match_context *limits = s->regex->limits;
    uint32_t options = PCRE2_NO_UTF_CHECK | (end < s->to ? PCRE2_PARTIAL_HARD : 0);
    PCRE2_SPTR text = (PCRE2_SPTR)(s->text + s->from);
    if (steps) {
        if (!s->limits) s->limits = pcre2_match_context_copy(limits);
        if (!s->limits) return PCRE2_ERROR_NOMEMORY;
        limits = s->limits;
        pcre2_set_match_limit(limits, steps);
        pcre2_set_offset_limit(limits, at - s->from);
    }
    int found = pcre2_match(s->regex->code, text, end - s->from, at - s->from, options, s->data, limits);
    if (found == PCRE2_ERROR_JIT_STACKLIMIT)
        found = pcre2_match(s->regex->code, text, end - s->from, at - s->from, options | PCRE2_NO_JIT, s->data, limits);
    /* an empty match at the window's end may be a longer one */
    if (found >= 0 && end < s->to && s->from + pcre2_get_ovector_pointer(s->data)[0] == end)
        found = PCRE2_ERROR_NOMATCH;
    return found;
}

/* A match that begins at `at`. */
static int match_here(struct search *s, size_t at)
{
    size_t bytes = WINDOW;
    uint32_t steps = STEPS_FREE;
    for (;;) {
        size_t end = window_end(s, at, bytes);
        if (end - at > WINDOW && !pay(s, end - at)) return PCRE2_ERROR_MATCHLIMIT;
        int found = match_window(s, at, end, steps);
        if (found == PCRE2_ERROR_PARTIAL) {
            bytes = 2 * (end - at);
        } else if (found == PCRE2_ERROR_MATCHLIMIT) {
            steps *= 4;
            if (steps > STEPS_MAX || !pay(s, steps)) return found;
        } else {
            return found;
        }
    }
}

/* The first match at or after `at`; its bounds lie in data. */
static int match_next(struct search *s, size_t at)
{
    while (at <= s->to) {
        if (at < s->single_until) {
            int found = match_here(s, at);
            if (found != PCRE2_ERROR_NOMATCH) return found;
            at += at < s->to ? utf8_length(s->text + at, s->to - at) : 1;
            continue;
        }
        size_t end = window_end(s, at, WINDOW);
        if (end - at > WINDOW && !pay(s, end - at)) return PCRE2_ERROR_MATCHLIMIT;
        int found = match_window(s, at, end, 0);
        size_t start = s->from + pcre2_get_ovector_pointer(s->data)[0];
        if (found == PCRE2_ERROR_MATCHLIMIT)
            s->single_until = end + 1;
        else if (found == PCRE2_ERROR_PARTIAL && start > at)
            at = start;
        else if (found == PCRE2_ERROR_PARTIAL)
            s->single_until = at + 1;
        else if (found != PCRE2_ERROR_NOMATCH)
            return found;
        else if (end == s->to)
            break;
        else
            at = end;
    }
    return PCRE2_ERROR_NOMATCH;
}

static enum status find_in(struct search *s, regex_match_fn match, void *state)
{
    size_t at = s->from;
    PCRE2_SIZE *bounds = pcre2_get_ovector_pointer(s->data);
    s->single_until = at;
    while (at <= s->to) {
        int found = match_next(s, at);
        if (found == PCRE2_ERROR_NOMATCH) return ST_OK;
        if (found == PCRE2_ERROR_NOMEMORY) return ST_NOMEM;
        if (found < 0) return ST_LIMIT;
        size_t start = s->from + bounds[0], end = s->from + bounds[1];
        TRY(match(state, start, end));
        at = end;
        if (end == start) at += end < s->to ? utf8_length(s->text + end, s->to - end) : 1; /* one character on */
    }
    return ST_OK;
}

enum status regex_find_all(const struct regex *regex, const char *text, size_t length, regex_match_fn match,
                           void *state)
{
    struct search s = {.regex = regex, .text = text, .budget = 64 * (uint64_t)length + BUDGET_FREE};
    enum status status = ST_OK;
    s.data = pcre2_match_data_create(1, NULL);
    if (!s.data) return ST_NOMEM;
    for (size_t at = 0; at < length && status == ST_OK;) {
        size_t valid = length - at;
        utf8_valid(text + at, length - at, &valid);
        s.from = at;
        s.to = at + valid;
        if (valid) status = find_in(&s, match, state);
        at += valid + (at + valid < length);
    }
    pcre2_match_data_free(s.data);
    pcre2_match_context_free(s.limits);
    return status;
}
