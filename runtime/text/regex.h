/* Regular expressions of tokenizer.json: the only door to PCRE2. Hand-written lexers (pretokenize.h) do the expressions
 * that most models use; what is left comes here.
 *
 * Files are written for Oniguruma with Ruby's syntax. Where that and Perl's differ the expression is rewritten or
 * refused: "^" and "$" stand at lines in both; \s and \w are written out (PCRE2 counts U+180E as space, and other
 * numbers but no marks to words); "&&" in a class, which PCRE2 10.42 silently misreads, a class within a class, \b, \h,
 * \R, \X, \K, \G, the options m, s and x, an option for the rest of a group, "{,n}" and
 * what repeats an interval are refused. PCRE2 10.42 knows Unicode 14, the library 16: letters that
 * came between are not letters here. The engine sees a text in windows of 512 bytes, with 256
 * backtracking steps at a place; beyond that all matches of a text share a budget of 64 bytes or steps for each of its
 * bytes and 100,000. So an expression cannot hang on a text. Immutable after creation; any thread. */
#ifndef RUNTIME_TEXT_REGEX_H
#define RUNTIME_TEXT_REGEX_H

#include "runtime/base/status.h"

#include <stdbool.h>
#include <stddef.h>

struct regex;

/* ST_INVAL: not an expression, or one that is refused (err says which and where); ST_NOMEM. */
NODISCARD enum status regex_create(const char *pattern, size_t length, struct regex **regex, struct error *err);
void regex_destroy(struct regex *regex); /* NULL is fine */

/* Called for each match of a text, from left to right, with its bounds. */
typedef enum status (*regex_match_fn)(void *state, size_t start, size_t end);

/* Finds all matches in text[length]; bytes that are no UTF-8 are in none. After an empty match the search goes on one
 * character later. ST_LIMIT: the budget is spent; ST_NOMEM; what the callback returns. */
NODISCARD enum status regex_find_all(const struct regex *regex, const char *text, size_t length, regex_match_fn match,
                                     void *state);

#endif
