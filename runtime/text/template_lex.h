/* A template's source as tokens, with jinja2's rules for white space under trim_blocks and lstrip_blocks.
 *
 *   text {{ x|upper -}}  text      ->   DATA, VARIABLE_BEGIN, NAME x, |, NAME upper, VARIABLE_END, DATA
 *
 * Comments and raw blocks are resolved here. Line ends become "\n" and one at the very end is dropped, as in jinja2.
 * All tokens of a template are made at once, in memory of the compiled template. Source: jinja2 3.1.6, lexer.py. */
#ifndef RUNTIME_TEXT_TEMPLATE_LEX_H
#define RUNTIME_TEXT_TEMPLATE_LEX_H

#include "runtime/text/template_text.h"

enum tmpl_token_kind {
    TMPL_TOKEN_DATA,
    TMPL_TOKEN_VARIABLE_BEGIN,
    TMPL_TOKEN_VARIABLE_END,
    TMPL_TOKEN_BLOCK_BEGIN,
    TMPL_TOKEN_BLOCK_END,
    TMPL_TOKEN_NAME,
    TMPL_TOKEN_STRING, /* text is its value, escapes resolved */
    TMPL_TOKEN_INT,
    TMPL_TOKEN_FLOAT,
    TMPL_TOKEN_OPERATOR,
    TMPL_TOKEN_END
};

struct tmpl_token {
    enum tmpl_token_kind kind;
    uint32_t line;
    uint32_t length;
    const char *text;
    union {
        int64_t integer;
        double number;
    };
};

struct tmpl_tokens {
    struct tmpl_token *tokens; /* the last one is TMPL_TOKEN_END */
    uint32_t count, capacity;
};

/* ST_INVAL: err names line and construct. The tokens point into heap memory. */
NODISCARD enum status tmpl_lex(struct tmpl_heap *heap, const char *source, size_t length, struct tmpl_tokens *tokens);

#endif
