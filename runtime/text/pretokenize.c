/* Each lexer tries the alternatives of its expression in their order at one place, as a backtracking engine would, and
 * computes where each would end. Three facts make that possible without backtracking:
 *   - classes are disjoint, so a greedy run of one class can end in one place only;
 *   - \s*[\r\n]+ ends behind the last newline of the run of white space;
 *   - \s+(?!\S) ends before the last white space of the run, or at its end when the text ends there.
 * Expressions without a lexer go to a library (regex.h): slower, and its worst case ends only at a budget. */
#include "runtime/text/pretokenize.h"

#include "runtime/base/utf8.h"
#include "runtime/model/vocab.h"

#include <string.h>

#define BIT(class) (1u << (class))

enum {
    LETTERS = BIT(UNICODE_LETTER),
    LETTERS_MARKS = BIT(UNICODE_LETTER) | BIT(UNICODE_MARK),
    NUMBERS = BIT(UNICODE_NUMBER),
    NUMBERS_ANY = BIT(UNICODE_NUMBER) | BIT(UNICODE_NUMBER_NEW),
    SPACES = BIT(UNICODE_SPACE) | BIT(UNICODE_NEWLINE),
    NEWLINES = BIT(UNICODE_NEWLINE),
    OTHERS = BIT(UNICODE_OTHER) | BIT(UNICODE_MARK) | BIT(UNICODE_NUMBER_NEW), /* [^\s\p{L}\p{N}] */
    OTHERS_NO_MARKS = BIT(UNICODE_OTHER) | BIT(UNICODE_NUMBER_NEW)             /* [^\s\p{L}\p{M}\p{N}] */
};

/* smollm, gpt-2, llama-bpe, qwen2 and qwen35 are held against the `tokenizers` library by tests/text. The other names
 * are those that llama.cpp's loader gives the same expression (src/llama-vocab.cpp) and whose model family is known to
 * use it. "default" and an absent name are refused: llama.cpp answers them with a chain of expressions that no model
 * was trained with, and warns. */
static const struct {
    const char *name;
    enum pretokenize_pattern pattern;
    bool whole_words;
} known[] = {
    {"gpt-2", PRETOKENIZE_GPT2, false},
    {"phi-2", PRETOKENIZE_GPT2, false},
    {"smollm", PRETOKENIZE_DIGITS_GPT2, false},
    {"starcoder", PRETOKENIZE_DIGITS_GPT2, false},
    {"refact", PRETOKENIZE_DIGITS_GPT2, false},
    {"command-r", PRETOKENIZE_DIGITS_GPT2, false},
    {"llama-bpe", PRETOKENIZE_LLAMA3, true},
    {"llama-v3", PRETOKENIZE_LLAMA3, true},
    {"llama3", PRETOKENIZE_LLAMA3, true},
    {"dbrx", PRETOKENIZE_LLAMA3, false},
    {"smaug-bpe", PRETOKENIZE_LLAMA3, false},
    {"qwen2", PRETOKENIZE_QWEN2, false},
    {"deepseek-r1-qwen", PRETOKENIZE_QWEN2, false},
    {"qwen35", PRETOKENIZE_QWEN35, false},
};

bool pretokenize_find(const char *name, enum pretokenize_pattern *pattern, bool *whole_words)
{
    for (size_t i = 0; i < sizeof known / sizeof *known; i++) {
        if (strcmp(name, known[i].name) != 0) continue;
        *pattern = known[i].pattern;
        *whole_words = known[i].whole_words;
        return true;
    }
    return false;
}

const char *pretokenize_names(void)
{
    return "gpt-2, phi-2, smollm, starcoder, refact, command-r, llama-bpe, llama-v3, llama3, dbrx, smaug-bpe, qwen2, "
           "deepseek-r1-qwen, qwen35";
}

/* Expressions as published files write them. Qwen's and Llama 3's are also found with their contractions spelt in
 * classes of two letters, where folding cannot reach U+017F: those go to the regular-expression engine. */
static const struct {
    const char *text;
    enum pretokenize_pattern pattern;
} expressions[] = {
    {"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}| "
     "?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|"
     "\\s+(?!\\S)|\\s+",
     PRETOKENIZE_LLAMA3},
    {"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|"
     "\\s+(?!\\S)|\\s+",
     PRETOKENIZE_QWEN2},
    {"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?[\\p{L}\\p{M}]+|\\p{N}| ?[^\\s\\p{L}\\p{M}\\p{N}]+[\\r\\n]*|"
     "\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+",
     PRETOKENIZE_QWEN35},
};

bool pretokenize_find_expression(const char *text, size_t length, enum pretokenize_pattern *pattern)
{
    for (size_t i = 0; i < sizeof expressions / sizeof *expressions; i++) {
        if (strlen(expressions[i].text) != length || memcmp(expressions[i].text, text, length) != 0) continue;
        *pattern = expressions[i].pattern;
        return true;
    }
    return false;
}

bool pretokenize_recognise(const struct vocab_step *steps, uint32_t count, enum pretokenize_pattern *pattern)
{
    if (!count || count > 2) return false;
    const struct vocab_step *last = &steps[count - 1], *first = &steps[0];
    if (last->type != STEP_BYTE_LEVEL || last->add_prefix_space) return false;
    if (count == 1) {
        *pattern = PRETOKENIZE_GPT2;
        return last->use_regex;
    }
    if (first->type == STEP_DIGITS) {
        *pattern = PRETOKENIZE_DIGITS_GPT2;
        return first->individual && last->use_regex;
    }
    return first->type == STEP_SPLIT && first->regex && !first->invert && first->behavior == BEHAVIOR_ISOLATED &&
           !last->use_regex && pretokenize_find_expression(first->pattern.text, first->pattern.length, pattern);
}

/* The class bit of the character at `at`, and where the next one starts; 0 at the segment's end. */
static inline unsigned look(struct pretokenize_cursor *c, size_t at, size_t *next)
{
    *next = at;
    if (at >= c->segment_end) return 0;
    c->work++;
    unsigned char byte = (unsigned char)c->text[at];
    if (byte < 0x80) {
        *next = at + 1;
        return BIT(c->classes->ascii[byte]);
    }
    uint32_t codepoint;
    size_t n = utf8_decode(c->text + at, c->segment_end - at, &codepoint);
    *next = at + (n ? n : 1);
    return n ? BIT(unicode_class_of(c->classes, codepoint)) : BIT(UNICODE_OTHER);
}

/* The end of the run of characters of the given classes that starts at `at`. */
static size_t skip(struct pretokenize_cursor *c, size_t at, unsigned classes)
{
    size_t next;
    while (look(c, at, &next) & classes) at = next;
    return at;
}

/* Bytes of a contraction at an apostrophe, or 0: 's 't 're 've 'm 'll 'd. Without case, 's also matches U+017F, the
 * long s, whose simple case folding is s. */
static size_t contraction(const struct pretokenize_cursor *c, size_t at, bool any_case)
{
    size_t room = c->segment_end - at;
    const char *s = c->text + at;
    if (room < 2 || s[0] != '\'') return 0;
    char fold = any_case ? 0x20 : 0, a = (char)(s[1] | fold), b = room > 2 ? (char)(s[2] | fold) : 0;
    if (a == 's' || a == 't' || a == 'm' || a == 'd') return 2;
    if ((a == 'r' && b == 'e') || (a == 'v' && b == 'e') || (a == 'l' && b == 'l')) return 3;
    return any_case && room > 2 && !memcmp(s + 1, "\xc5\xbf", 2) ? 3 : 0;
}

/* \s+(?!\S)|\s+ from `at`, and before that, if asked for, \s*[\r\n]+ */
static size_t white_space(struct pretokenize_cursor *c, size_t at, bool newlines_first)
{
    size_t start = at, last = at, newline_end = 0, next;
    for (unsigned class; (class = look(c, at, &next)) & SPACES; at = next) {
        last = at;
        if (class & NEWLINES) newline_end = next;
    }
    if (newlines_first && newline_end) return newline_end;
    return at == c->segment_end || last == start ? at : last;
}

/* GPT-2: 's|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+ */
static size_t gpt2(struct pretokenize_cursor *c, size_t at)
{
    size_t n = contraction(c, at, false), next;
    if (n) return at + n;
    size_t body = c->text[at] == ' ' ? at + 1 : at;
    unsigned class = look(c, body, &next);
    if (class & LETTERS) return skip(c, next, LETTERS);
    if (class & NUMBERS) return skip(c, next, NUMBERS);
    if (class & OTHERS) return skip(c, next, OTHERS);
    return white_space(c, at, false);
}

/* Llama 3, with numbers_max 3, and Qwen 2, with 1 (\p{N} in place of \p{N}{1,3}):
 *   (?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+
 * Qwen 3.5: \p{N} too, marks belong to words: [^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+ and  ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*
 * (a mark in front may match the optional character or the word: the piece is the same). */
static size_t llama3(struct pretokenize_cursor *c, size_t at, unsigned letters, unsigned others, int numbers_max)
{
    size_t n = contraction(c, at, true), next, after;
    if (n) return at + n;
    unsigned class = look(c, at, &next);
    if (class & letters) return skip(c, next, letters);
    if (class & NUMBERS) {
        for (int i = 1; i < numbers_max && look(c, next, &after) & NUMBERS; i++) next = after;
        return next;
    }
    if (!(class & NEWLINES) && look(c, next, &after) & letters) return skip(c, after, letters);
    size_t body = c->text[at] == ' ' ? at + 1 : at;
    if (look(c, body, &next) & others) return skip(c, skip(c, next, others), NEWLINES);
    return white_space(c, at, true);
}

void pretokenize_start(struct pretokenize_cursor *cursor, const struct unicode_classes *classes,
                       enum pretokenize_pattern pattern, const char *text, size_t length)
{
    *cursor = (struct pretokenize_cursor){.classes = classes, .pattern = pattern, .text = text, .length = length};
    cursor->segment_end = pattern == PRETOKENIZE_DIGITS_GPT2 ? 0 : length;
}

/* Digits(individual_digits), then GPT-2's expression within each part: a part ends at the next number, and a number is
 * a part of its own, so that "a  5" gives "a", "  ", "5" and never " 5". */
static void next_segment(struct pretokenize_cursor *c)
{
    size_t next;
    c->segment_end = c->length;
    if (look(c, c->at, &next) & NUMBERS_ANY)
        c->segment_end = next;
    else
        c->segment_end = skip(c, next, ~(unsigned)NUMBERS_ANY);
}

size_t pretokenize_next(struct pretokenize_cursor *cursor)
{
    size_t start = cursor->at, end = start;
    if (start >= cursor->length) return 0;
    cursor->work++;
    if (start == cursor->segment_end) next_segment(cursor);
    switch (cursor->pattern) {
    case PRETOKENIZE_GPT2:
    case PRETOKENIZE_DIGITS_GPT2: end = gpt2(cursor, start); break;
    case PRETOKENIZE_LLAMA3: end = llama3(cursor, start, LETTERS, OTHERS, 3); break;
    case PRETOKENIZE_QWEN2: end = llama3(cursor, start, LETTERS, OTHERS, 1); break;
    case PRETOKENIZE_QWEN35: end = llama3(cursor, start, LETTERS_MARKS, OTHERS_NO_MARKS, 1); break;
    }
    cursor->at = end;
    return end - start;
}
