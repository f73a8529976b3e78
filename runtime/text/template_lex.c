/* jinja2's lexer as a hand-written scanner; see template_lex.h.
 *
 * In text: find the next opening tag, decide how much white space before it goes. In a tag: names, literals, operators;
 * the closing tag counts only where brackets are balanced, so that {{ {'a': {}} }} works. */
#include "runtime/text/template_lex.h"

#include "runtime/base/utf8.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

struct lexer {
    struct tmpl_heap *heap;
    struct tmpl_tokens *tokens;
    struct tmpl_text source; /* line ends are "\n" */
    const char *data;
    size_t length, at;
    uint32_t line;
    bool line_starting; /* what the last rule took ended with a line end */
};

static enum status add_token(struct lexer *lex, struct tmpl_token token)
{
    struct tmpl_tokens *list = lex->tokens;
    if (list->count == list->capacity) {
        struct tmpl_token *tokens;
        uint32_t capacity = list->capacity ? list->capacity * 2 : 256;
        TRY(tmpl_alloc(lex->heap, capacity, sizeof *tokens, &tokens));
        if (list->count) memcpy(tokens, list->tokens, list->count * sizeof *tokens);
        list->tokens = tokens;
        list->capacity = capacity;
    }
    list->tokens[list->count++] = token;
    return ST_OK;
}

static enum status add(struct lexer *lex, enum tmpl_token_kind kind, const char *text, size_t length)
{
    return add_token(lex,
                     (struct tmpl_token){.kind = kind, .line = lex->line, .text = text, .length = (uint32_t)length});
}

static enum status lex_fail(struct lexer *lex, const char *message)
{
    lex->heap->line = lex->line;
    return tmpl_fail(lex->heap, ST_INVAL, "%s", message);
}

static char peek(const struct lexer *lex, size_t ahead)
{
    return lex->at + ahead < lex->length ? lex->data[lex->at + ahead] : '\0';
}

static bool at_text(const struct lexer *lex, const char *text)
{
    size_t n = strlen(text);
    return lex->length - lex->at >= n && memcmp(lex->data + lex->at, text, n) == 0;
}

static void advance(struct lexer *lex, size_t count)
{
    for (size_t i = 0; i < count; i++) lex->line += lex->data[lex->at + i] == '\n';
    lex->at += count;
}

/* Bytes of the white space character at byte `at`, or 0. */
static size_t space_at(const struct lexer *lex, size_t at)
{
    size_t n;
    if (at >= lex->length) return 0;
    return tmpl_is_space(tmpl_text_decode(lex->source, at, &n)) ? n : 0;
}

static void skip_spaces(struct lexer *lex)
{
    for (size_t n; (n = space_at(lex, lex->at)) != 0;) advance(lex, n);
}

/* Takes a closing tag if one stands here: "-}}" eats white space behind it; "%}" and "#}" one line end; "+%}" nothing.
 */
static bool take_close(struct lexer *lex, const char *close)
{
    bool minus = peek(lex, 0) == '-', plus = peek(lex, 0) == '+' && *close != '}', sign = minus || plus;
    size_t start = lex->at;
    if (sign) lex->at++;
    if (!at_text(lex, close)) {
        lex->at = start;
        return false;
    }
    advance(lex, 2);
    if (minus)
        skip_spaces(lex);
    else if (!sign && *close != '}' && peek(lex, 0) == '\n')
        advance(lex, 1);
    lex->line_starting = lex->data[lex->at - 1] == '\n';
    return true;
}

/* The text before a tag, without the white space that the tag's sign or lstrip_blocks takes from its end. */
static enum status add_data(struct lexer *lex, size_t start, size_t end, uint32_t line, char sign, bool is_variable)
{
    struct tmpl_text text = tmpl_text_part(lex->source, start, end - start);
    if (sign == '-') {
        text = tmpl_text_strip(text, NULL, TMPL_SIDE_RIGHT);
    } else if (sign != '+' && !is_variable) {
        const char *newline = memrchr(lex->data + start, '\n', end - start);
        size_t last = newline ? (size_t)(newline - lex->data) + 1 : start;
        struct tmpl_text tail = tmpl_text_part(lex->source, last, end - last);
        if ((newline || lex->line_starting) && !tmpl_text_strip(tail, NULL, TMPL_SIDE_BOTH).length)
            text.length = (uint32_t)(last - start);
    }
    if (!text.length) return ST_OK;
    return add_token(lex,
                     (struct tmpl_token){
                         .kind = TMPL_TOKEN_DATA, .line = line, .text = tmpl_text_data(text), .length = text.length});
}

/* ---- inside a tag ---- */

static bool is_word(char c)
{
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_';
}
static bool is_digit(char c)
{
    return c >= '0' && c <= '9';
}

/* Digits with single underscores between them, from offset `from`; returns the offset behind them. */
static size_t digits(const struct lexer *lex, size_t from)
{
    while (is_digit(peek(lex, from)) || (peek(lex, from) == '_' && is_digit(peek(lex, from + 1)))) from++;
    return from;
}

static enum status lex_number(struct lexer *lex)
{
    char text[72];
    size_t end = digits(lex, 0), used = 0, exponent = end;
    bool is_float = false, after_dot = lex->at && lex->data[lex->at - 1] == '.';
    if (!after_dot && peek(lex, end) == '.' && is_digit(peek(lex, end + 1))) {
        exponent = digits(lex, end + 1);
        is_float = true;
    }
    if (!after_dot && (peek(lex, exponent) | 32) == 'e') {
        size_t first = exponent + 1 + (peek(lex, exponent + 1) == '+' || peek(lex, exponent + 1) == '-');
        if (is_digit(peek(lex, first))) {
            exponent = digits(lex, first);
            is_float = true;
        }
    }
    if (is_float) end = exponent;
    for (size_t i = 0; i < end; i++) {
        if (peek(lex, i) == '_') continue;
        if (used + 1 == sizeof text) return lex_fail(lex, "a number is too long");
        text[used++] = peek(lex, i);
    }
    text[used] = '\0';
    struct tmpl_token token = {.line = lex->line, .text = lex->data + lex->at, .length = (uint32_t)end};
    errno = 0;
    token.kind = is_float ? TMPL_TOKEN_FLOAT : TMPL_TOKEN_INT;
    if (is_float)
        token.number = strtod(text, NULL);
    else
        token.integer = strtoll(text, NULL, 10);
    if (!is_float && errno) return lex_fail(lex, "an integer does not fit 64 bits");
    if (!is_float && used > 1 && text[0] == '0' && strspn(text, "0") != used)
        return lex_fail(lex, "an integer begins with 0");
    if (!is_float && is_word(peek(lex, end))) return lex_fail(lex, "a number runs into a name");
    advance(lex, end);
    return add_token(lex, token);
}

/* A hexadecimal or octal escape of up to `count` digits at `from`; returns the offset behind it, 0 when there is none.
 */
static size_t escape_digits(const char *text, size_t from, size_t end, unsigned base, size_t count, bool exact,
                            uint32_t *codepoint)
{
    size_t i = from;
    *codepoint = 0;
    for (; i < end && i - from < count; i++) {
        char c = text[i];
        unsigned digit = is_digit(c)                          ? (unsigned)(c - '0')
                         : (c | 32) >= 'a' && (c | 32) <= 'f' ? (unsigned)((c | 32) - 'a') + 10
                                                              : 99;
        if (digit >= base) break;
        *codepoint = *codepoint * base + digit;
    }
    return i == from || (exact && i - from != count) ? 0 : i;
}

/* Resolves the escape behind the backslash at text[i - 1]; returns the offset behind it, 0 for a bad one. Unknown
 * escapes keep their backslash, as in Python. */
static size_t unescape(const char *text, size_t i, size_t end, char *out, size_t *used)
{
    static const char letters[] = "n\nt\tr\ra\ab\bf\fv\v\\\\''\"\"";
    char c = text[i];
    uint32_t codepoint;
    size_t next = 0;
    if (c == '\n') return i + 1;
    const char *letter = NULL;
    for (const char *p = letters; *p && !letter; p += 2)
        if (*p == c) letter = p;
    if (letter) {
        out[(*used)++] = letter[1];
        return i + 1;
    }
    if (c == 'N') return 0; /* names of characters: no table for them here */
    if (c == 'x' || c == 'u' || c == 'U')
        next = escape_digits(text, i + 1, end, 16, c == 'x' ? 2 : c == 'u' ? 4 : 8, true, &codepoint);
    else if (c >= '0' && c <= '7')
        next = escape_digits(text, i, end, 8, 3, false, &codepoint);
    else {
        out[(*used)++] = '\\';
        return i;
    }
    size_t n = next ? utf8_encode(codepoint, out + *used) : 0;
    *used += n;
    return n ? next : 0;
}

static enum status lex_string(struct lexer *lex)
{
    char quote = peek(lex, 0);
    size_t end = lex->at + 1, used = 0;
    bool escaped = false;
    while (end < lex->length && lex->data[end] != quote) {
        if (lex->data[end] == '\\') escaped = true;
        end += lex->data[end] == '\\' ? 2 : 1;
    }
    if (end >= lex->length) return lex_fail(lex, "a string is not closed");
    const char *text = lex->data + lex->at + 1;
    size_t length = end - lex->at - 1;
    uint32_t line = lex->line;
    if (escaped) {
        char *out;
        TRY(tmpl_alloc(lex->heap, length + 4, 1, &out)); /* an escape is never shorter than its bytes */
        for (size_t i = 0; i < length;) {
            if (text[i] != '\\') {
                out[used++] = text[i++];
                continue;
            }
            i = unescape(text, i + 1, length, out, &used);
            if (!i) return lex_fail(lex, "a string has a bad escape");
        }
        text = out;
        length = used;
    }
    advance(lex, end + 1 - lex->at);
    return add_token(
        lex, (struct tmpl_token){.kind = TMPL_TOKEN_STRING, .line = line, .text = text, .length = (uint32_t)length});
}

static enum status lex_operator(struct lexer *lex, uint32_t *open)
{
    static const char *const doubles[] = {"//", "**", "==", "!=", "<=", ">="};
    size_t length = 1;
    char c = peek(lex, 0);
    for (size_t i = 0; i < sizeof doubles / sizeof *doubles; i++)
        if (at_text(lex, doubles[i])) length = 2;
    if (length == 1 && (!c || !strchr("+-*/%~[](){}<>=.:|,;", c)))
        return lex_fail(lex, "an unexpected character in a tag");
    if (strchr("([{", c)) ++*open;
    if (strchr(")]}", c)) {
        if (!*open) return lex_fail(lex, "a closing bracket without its opening one");
        --*open;
    }
    TRY(add(lex, TMPL_TOKEN_OPERATOR, lex->data + lex->at, length));
    lex->at += length;
    return ST_OK;
}

/* Everything up to the closing tag, which is "}}" or "%}". */
static enum status lex_tag(struct lexer *lex, const char *close)
{
    uint32_t open = 0;
    while (lex->at < lex->length) {
        uint32_t line = lex->line;
        if (!open && take_close(lex, close)) {
            struct tmpl_token token = {.kind = *close == '%' ? TMPL_TOKEN_BLOCK_END : TMPL_TOKEN_VARIABLE_END,
                                       .line = line};
            return add_token(lex, token);
        }
        char c = peek(lex, 0);
        if (space_at(lex, lex->at)) {
            skip_spaces(lex);
        } else if (is_digit(c)) {
            TRY(lex_number(lex));
        } else if (is_word(c)) {
            size_t length = 1;
            while (is_word(peek(lex, length))) length++;
            TRY(add(lex, TMPL_TOKEN_NAME, lex->data + lex->at, length));
            lex->at += length;
        } else if (c == '"' || c == '\'') {
            TRY(lex_string(lex));
        } else {
            TRY(lex_operator(lex, &open));
        }
    }
    return lex_fail(lex, *close == '%' ? "'{%' is not closed" : "'{{' is not closed");
}

/* ---- text, comments, raw ---- */

static enum status lex_comment(struct lexer *lex)
{
    while (lex->at < lex->length) {
        if (take_close(lex, "#}")) return ST_OK;
        advance(lex, 1);
    }
    return lex_fail(lex, "'{#' is not closed");
}

/* Whether "{%", a sign, `word` and, for "raw", the closing tag stand at `at`; the offset behind the word goes to *end.
 */
static bool block_word_at(const struct lexer *lex, size_t at, const char *word, size_t *end)
{
    size_t length = strlen(word), n;
    if (lex->length - at < 2 || memcmp(lex->data + at, "{%", 2) != 0) return false;
    at += 2;
    if (at < lex->length && (lex->data[at] == '-' || lex->data[at] == '+')) at++;
    while ((n = space_at(lex, at)) != 0) at += n;
    if (lex->length - at < length || memcmp(lex->data + at, word, length) != 0) return false;
    at += length;
    while ((n = space_at(lex, at)) != 0) at += n;
    *end = at;
    size_t close = at < lex->length && (lex->data[at] == '-' || (*word == 'e' && lex->data[at] == '+')) ? at + 1 : at;
    return lex->length - close >= 2 && memcmp(lex->data + close, "%}", 2) == 0;
}

static enum status lex_raw(struct lexer *lex, size_t body)
{
    advance(lex, body - lex->at);
    bool minus = peek(lex, 0) == '-';
    advance(lex, minus ? 3 : 2);
    if (minus) skip_spaces(lex);
    lex->line_starting = lex->data[lex->at - 1] == '\n';
    size_t start = lex->at, end;
    uint32_t line = lex->line;
    for (; lex->at < lex->length; advance(lex, 1)) {
        if (!block_word_at(lex, lex->at, "endraw", &end)) continue;
        TRY(add_data(lex, start, lex->at, line, peek(lex, 2), false));
        advance(lex, end - lex->at);
        take_close(lex, "%}");
        return ST_OK;
    }
    return lex_fail(lex, "'{% raw %}' is not closed");
}

static enum status lex_text(struct lexer *lex)
{
    size_t start = lex->at, body;
    uint32_t line = lex->line;
    for (;; advance(lex, 1)) {
        const char *brace = memchr(lex->data + lex->at, '{', lex->length - lex->at);
        advance(lex, brace ? (size_t)(brace - lex->data) - lex->at : lex->length - lex->at);
        if (!brace) return add_data(lex, start, lex->at, line, '+', false);
        char kind = peek(lex, 1);
        if (kind == '{' || kind == '%' || kind == '#') break;
    }
    char kind = peek(lex, 1), sign = peek(lex, 2);
    bool raw = block_word_at(lex, lex->at, "raw", &body);
    TRY(add_data(lex, start, lex->at, line, sign, kind == '{'));
    if (raw) return lex_raw(lex, body);
    lex->at += sign == '-' || sign == '+' ? 3 : 2;
    lex->line_starting = false;
    if (kind == '#') return lex_comment(lex);
    TRY(add(lex, kind == '{' ? TMPL_TOKEN_VARIABLE_BEGIN : TMPL_TOKEN_BLOCK_BEGIN, "", 0));
    return lex_tag(lex, kind == '{' ? "}}" : "%}");
}

enum status tmpl_lex(struct tmpl_heap *heap, const char *source, size_t length, struct tmpl_tokens *tokens)
{
    struct lexer lex = {.heap = heap, .tokens = tokens, .line = 1, .line_starting = true};
    char *copy;
    size_t bad;
    heap->line = 1;
    if (!utf8_valid(source, length, &bad)) return tmpl_fail(heap, ST_INVAL, "invalid UTF-8 at byte %zu", bad);
    TRY(tmpl_alloc(heap, length + 1, 1, &copy));
    for (size_t i = 0; i < length; i++) {
        if (source[i] == '\r' && i + 1 < length && source[i + 1] == '\n') continue;
        copy[lex.length++] = source[i] == '\r' ? '\n' : source[i];
    }
    if (lex.length && copy[lex.length - 1] == '\n') lex.length--;
    TRY(tmpl_text_borrow(heap, copy, lex.length, true, &lex.source));
    lex.data = copy;
    while (lex.at < lex.length) TRY(lex_text(&lex));
    return add(&lex, TMPL_TOKEN_END, "end of template", 15);
}
