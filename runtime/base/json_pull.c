/* A hand-written scanner without lookahead; see json_pull.h. */
#include "runtime/base/json_pull.h"

#include "runtime/base/limits.h"
#include "runtime/base/utf8.h"

#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

void json_pull_init(struct json_pull *pull, char *text, size_t length, struct error *err)
{
    *pull = (struct json_pull){.text = text, .length = length, .err = err};
}

void json_pull_fail(struct json_pull *pull, enum status status, const char *message)
{
    if (pull->status == ST_OK) pull->status = error_set(pull->err, status, "%s at byte %zu", message, pull->at);
}

static void skip_space(struct json_pull *p)
{
    while (p->at < p->length &&
           (p->text[p->at] == ' ' || p->text[p->at] == '\n' || p->text[p->at] == '\t' || p->text[p->at] == '\r'))
        p->at++;
}

/* The next character that is no white space, or 0 at the end and after a failure. */
static char next_char(struct json_pull *p)
{
    if (p->status != ST_OK) return 0;
    skip_space(p);
    return p->at < p->length ? p->text[p->at] : 0;
}

static bool take(struct json_pull *p, char c, const char *message)
{
    if (next_char(p) != c) {
        json_pull_fail(p, ST_INVAL, message);
        return false;
    }
    p->at++;
    return true;
}

static bool is_digit(char c)
{
    return c >= '0' && c <= '9';
}

enum json_kind json_pull_kind(struct json_pull *pull)
{
    char c = next_char(pull);
    switch (c) {
    case '{': return JSON_KIND_OBJECT;
    case '[': return JSON_KIND_LIST;
    case '"': return JSON_KIND_TEXT;
    case 't':
    case 'f': return JSON_KIND_BOOL;
    default: return c == '-' || is_digit(c) ? JSON_KIND_FLOAT : JSON_KIND_NULL;
    }
}

/* --- nesting --- */

static void enter(struct json_pull *p, char open, const char *message)
{
    if (!take(p, open, message)) return;
    if (++p->depth > JSON_PULL_DEPTH || p->depth > limits.json_depth)
        json_pull_fail(p, ST_LIMIT, "JSON is nested too deep (json_depth)");
    p->fresh = true;
}

void json_pull_object(struct json_pull *pull)
{
    enter(pull, '{', "an object is missing");
}

void json_pull_list(struct json_pull *pull)
{
    enter(pull, '[', "an array is missing");
}

/* The comma before the next member or item; false at the end of the object or array, which is left. */
static bool more(struct json_pull *p, char close)
{
    char c = next_char(p);
    if (c == close) {
        p->at++;
        p->depth--;
        p->fresh = false;
        return false;
    }
    if (!p->fresh && !take(p, ',', "a comma or the end is missing")) return false;
    p->fresh = false;
    return p->status == ST_OK;
}

bool json_pull_item(struct json_pull *pull)
{
    return more(pull, ']');
}

/* --- strings --- */

static int hex_value(char c)
{
    if (is_digit(c)) return c - '0';
    if (c >= 'a' && c <= 'f') return c - 'a' + 10;
    return c >= 'A' && c <= 'F' ? c - 'A' + 10 : -1;
}

/* The four digits of \uXXXX at `at`, or UINT32_MAX. */
static uint32_t read_hex(const struct json_pull *p, size_t at)
{
    uint32_t value = 0;
    if (p->length - at < 4) return UINT32_MAX;
    for (size_t i = 0; i < 4; i++) {
        int digit = hex_value(p->text[at + i]);
        if (digit < 0) return UINT32_MAX;
        value = value << 4 | (uint32_t)digit;
    }
    return value;
}

/* The escape whose backslash is at p->at: its character, and p->at behind it. UINT32_MAX: it is none. */
static uint32_t read_escape(struct json_pull *p)
{
    static const char names[] = "\"\\/bfnrt", values[] = "\"\\/\b\f\n\r\t";
    if (p->length - p->at < 2) return UINT32_MAX;
    char name = p->text[p->at + 1];
    const char *found = name ? strchr(names, name) : NULL;
    if (found) {
        p->at += 2;
        return (unsigned char)values[found - names];
    }
    uint32_t c = name == 'u' ? read_hex(p, p->at + 2) : UINT32_MAX;
    if (c == UINT32_MAX || (c >= 0xdc00 && c < 0xe000)) return UINT32_MAX;
    if (c < 0xd800 || c >= 0xe000) {
        p->at += 6;
        return c;
    }
    if (p->length - p->at < 12 || p->text[p->at + 6] != '\\' || p->text[p->at + 7] != 'u') return UINT32_MAX;
    uint32_t low = read_hex(p, p->at + 8);
    if (low < 0xdc00 || low >= 0xe000) return UINT32_MAX;
    p->at += 12;
    return 0x10000 + ((c - 0xd800) << 10) + (low - 0xdc00);
}

/* The end of the run of plain characters that starts at `at`. */
static size_t plain_end(const struct json_pull *p, size_t at)
{
    while (at < p->length && p->text[at] != '"' && p->text[at] != '\\' && (unsigned char)p->text[at] >= 0x20) at++;
    return at;
}

bool json_pull_text(struct json_pull *pull, struct json_slice *text)
{
    struct json_pull *p = pull;
    if (!take(p, '"', "a string is missing")) return false;
    size_t start = p->at, out = plain_end(p, start);
    p->at = out;
    while (p->at < p->length && p->text[p->at] == '\\') {
        uint32_t c = read_escape(p);
        if (c == UINT32_MAX) {
            json_pull_fail(p, ST_INVAL, "a wrong escape");
            return false;
        }
        out += utf8_encode(c, p->text + out);
        size_t end = plain_end(p, p->at);
        memmove(p->text + out, p->text + p->at, end - p->at);
        out += end - p->at;
        p->at = end;
    }
    if (p->at >= p->length || p->text[p->at] != '"') {
        json_pull_fail(p, ST_INVAL, p->at < p->length ? "a control character in a string" : "a string has no end");
        return false;
    }
    p->at++;
    *text = (struct json_slice){p->text + start, out - start};
    return true;
}

bool json_pull_member(struct json_pull *pull, struct json_slice *name)
{
    return more(pull, '}') && json_pull_text(pull, name) && take(pull, ':', "a colon is missing");
}

/* --- numbers --- */

/* The number at the cursor into room, NUL-terminated; its characters, or 0 after a failure. */
static size_t read_number(struct json_pull *p, char *room, size_t size)
{
    char c = next_char(p);
    size_t n = 0, at = p->at;
    if (p->status != ST_OK) return 0;
    while (at + n < p->length && p->text[at + n] && strchr("0123456789+-.eE", p->text[at + n])) n++;
    if (n >= size || n > limits.json_number_chars) {
        json_pull_fail(p, ST_LIMIT, "a number is too long (json_number_chars)");
        return 0;
    }
    memcpy(room, p->text + at, n);
    room[n] = 0;
    /* -?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)? */
    size_t i = c == '-', digits = i;
    while (is_digit(room[i])) i++;
    bool good = i > digits && (room[digits] != '0' || i == digits + 1);
    if (room[i] == '.') {
        for (digits = ++i; is_digit(room[i]);) i++;
        good &= i > digits;
    }
    if (room[i] == 'e' || room[i] == 'E') {
        i += room[i + 1] == '+' || room[i + 1] == '-' ? 2 : 1;
        for (digits = i; is_digit(room[i]);) i++;
        good &= i > digits;
    }
    if (!good || i != n) {
        json_pull_fail(p, ST_INVAL, "a number is missing or malformed");
        return 0;
    }
    p->at += n;
    return n;
}

enum { NUMBER_ROOM = 1100 }; /* above the ceiling of json_number_chars */

bool json_pull_uint(struct json_pull *pull, uint64_t *value)
{
    char c = next_char(pull);
    uint64_t result = 0;
    size_t start = pull->at, at = start;
    bool good = is_digit(c);
    for (; at < pull->length && is_digit(pull->text[at]); at++)
        good &= !__builtin_mul_overflow(result, 10, &result) &&
                !__builtin_add_overflow(result, (uint64_t)(pull->text[at] - '0'), &result);
    if (at < pull->length && pull->text[at] && strchr(".eE+-", pull->text[at])) good = false;
    if (!good || (c == '0' && at > start + 1)) {
        json_pull_fail(pull, ST_INVAL, "a number without sign and fraction is missing");
        return false;
    }
    pull->at = at;
    *value = result;
    return true;
}

bool json_pull_number(struct json_pull *pull, double *value)
{
    char room[NUMBER_ROOM];
    if (!read_number(pull, room, sizeof room)) return false;
    double result = strtod(room, NULL);
    if (!isfinite(result)) {
        json_pull_fail(pull, ST_INVAL, "a number is too large");
        return false;
    }
    *value = result;
    return true;
}

/* --- passing over --- */

static void skip_text(struct json_pull *p)
{
    if (!take(p, '"', "a string is missing")) return;
    for (p->at = plain_end(p, p->at); p->at < p->length && p->text[p->at] == '\\'; p->at = plain_end(p, p->at)) {
        if (read_escape(p) != UINT32_MAX) continue;
        json_pull_fail(p, ST_INVAL, "a wrong escape");
        return;
    }
    if (p->at >= p->length || p->text[p->at] != '"')
        json_pull_fail(p, ST_INVAL, p->at < p->length ? "a control character in a string" : "a string has no end");
    else
        p->at++;
}

static void skip_word(struct json_pull *p)
{
    static const char *const words[] = {"true", "false", "null"};
    for (size_t i = 0; i < sizeof words / sizeof *words; i++) {
        size_t n = strlen(words[i]);
        if (p->length - p->at < n || memcmp(p->text + p->at, words[i], n) != 0) continue;
        p->at += n;
        return;
    }
    json_pull_fail(p, ST_INVAL, "a value is missing");
}

/* A scalar, or the opening of an object or array. */
static void skip_one(struct json_pull *p, uint64_t *are_objects)
{
    char room[NUMBER_ROOM], c = next_char(p);
    if (c == '{' || c == '[') {
        enter(p, c, "");
        *are_objects = *are_objects << 1 | (c == '{');
    } else if (c == '"') {
        skip_text(p);
    } else if (c == '-' || is_digit(c)) {
        read_number(p, room, sizeof room);
    } else if (p->status == ST_OK) {
        skip_word(p);
    }
}

void json_pull_skip(struct json_pull *pull, struct json_slice *text)
{
    struct json_pull *p = pull;
    uint64_t are_objects = 0; /* a bit a level entered here, the innermost lowest */
    uint32_t depth = p->depth;
    next_char(p);
    size_t start = p->at;
    skip_one(p, &are_objects);
    while (p->status == ST_OK && p->depth > depth) {
        bool object = are_objects & 1;
        if (!more(p, object ? '}' : ']')) {
            are_objects >>= 1;
            continue;
        }
        if (object) {
            skip_text(p);
            take(p, ':', "a colon is missing");
        }
        skip_one(p, &are_objects);
    }
    p->fresh = false;
    if (text && p->status == ST_OK) *text = (struct json_slice){p->text + start, p->at - start};
}

void json_pull_end(struct json_pull *pull)
{
    if (next_char(pull)) json_pull_fail(pull, ST_INVAL, "text after the end of the JSON value");
    if (pull->at < pull->length) json_pull_fail(pull, ST_INVAL, "text after the end of the JSON value");
}
