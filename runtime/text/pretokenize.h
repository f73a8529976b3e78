/* Pre-tokenisers: cutting text into the pieces within which byte pairs are merged. Hand-written lexers for the regular
 * expressions that models were trained with; the expressions stand at each lexer in pretokenize.c.
 *
 * A cursor walks one text from left to right. Each call looks at a character at most four times, however the text is
 * made, so the work is linear. Bytes that are no UTF-8 count as one character each, of no class. Pure; one thread a
 * cursor. */
#ifndef RUNTIME_TEXT_PRETOKENIZE_H
#define RUNTIME_TEXT_PRETOKENIZE_H

#include "runtime/text/unicode_class.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct vocab_step;

enum pretokenize_pattern {
    PRETOKENIZE_GPT2,
    PRETOKENIZE_DIGITS_GPT2, /* each number character alone, then GPT-2's */
    PRETOKENIZE_LLAMA3,
    PRETOKENIZE_QWEN2,
    PRETOKENIZE_QWEN35
};

/* Looks up GGUF's tokenizer.ggml.pre. False: not known. *whole_words: a piece that is in the vocabulary is taken as it
 * is ("ignore_merges" of tokenizer.json). */
bool pretokenize_find(const char *name, enum pretokenize_pattern *pattern, bool *whole_words);

/* Looks up tokenizer.json's pre-tokeniser: whether one of the lexers does what its steps do to text whose bytes are
 * then the pieces' characters. False: no, or steps that do not end in bytes. */
bool pretokenize_recognise(const struct vocab_step *steps, uint32_t count, enum pretokenize_pattern *pattern);

/* The lexer of a regular expression whose matches are the pieces; false: none. */
bool pretokenize_find_expression(const char *text, size_t length, enum pretokenize_pattern *pattern);

/* The known names, separated by ", ". Static. */
const char *pretokenize_names(void);

struct pretokenize_cursor {
    const struct unicode_classes *classes;
    enum pretokenize_pattern pattern;
    const char *text;
    size_t length, at;  /* at: where the next piece starts */
    size_t segment_end; /* the lexer sees no further: the next number (DIGITS_GPT2), else the text's end */
    uint64_t work;      /* characters looked at and pieces found, for tests of the bound */
};

/* text is borrowed while the cursor is used. */
void pretokenize_start(struct pretokenize_cursor *cursor, const struct unicode_classes *classes,
                       enum pretokenize_pattern pattern, const char *text, size_t length);

/* Bytes of the next piece, which ends at cursor->at afterwards; 0 at the end. */
size_t pretokenize_next(struct pretokenize_cursor *cursor);

#endif
