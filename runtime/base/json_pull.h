/* A cursor over a JSON text that builds no tree: for files with millions of values (tokenizer.json), of which a reader
 * wants each once. What is small is better read with json.h, which keeps values at hand.
 *
 * The text is the reader's own and is written to: a string is unescaped where it stands (it never grows), and what the
 * cursor hands out points there. So a value is read once. Failure is sticky: after one, every call does nothing and
 * says "nothing", and the reader asks json_pull_ok once. Grammar is RFC 8259's; the text must be UTF-8 (the caller has
 * checked that); a lone surrogate, nesting past the limits json_depth or JSON_PULL_DEPTH, and a number longer than
 * json_number_chars are refused. Duplicate names are the reader's to judge. One thread.
 *
 *     json_pull_init(&p, text, length, err);
 *     for (json_pull_object(&p); json_pull_member(&p, &name);)
 *         if (name is wanted) json_pull_text(&p, &value); else json_pull_skip(&p, NULL);
 *     json_pull_end(&p);
 */
#ifndef RUNTIME_BASE_JSON_PULL_H
#define RUNTIME_BASE_JSON_PULL_H

#include "runtime/base/json.h"
#include "runtime/base/status.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { JSON_PULL_DEPTH = 64 };

struct json_slice {
    char *text; /* not NUL-terminated, may hold NUL */
    size_t length;
};

struct json_pull {
    char *text;
    size_t length, at;
    uint32_t depth;
    bool fresh; /* just entered: the next member or item has no comma before it */
    enum status status;
    struct error *err;
};

void json_pull_init(struct json_pull *pull, char *text, size_t length, struct error *err);
static inline bool json_pull_ok(const struct json_pull *pull)
{
    return pull->status == ST_OK;
}

/* The kind of the value at the cursor: any number is JSON_KIND_FLOAT. JSON_KIND_NULL too where no value begins. */
enum json_kind json_pull_kind(struct json_pull *pull);

/* Enters an object or array; anything else is a failure. */
void json_pull_object(struct json_pull *pull);
void json_pull_list(struct json_pull *pull);
/* Moves to the next member's value, or to the next item. False: the end, which is left behind, or a failure. */
bool json_pull_member(struct json_pull *pull, struct json_slice *name);
bool json_pull_item(struct json_pull *pull);

bool json_pull_text(struct json_pull *pull, struct json_slice *text);
bool json_pull_uint(struct json_pull *pull, uint64_t *value); /* digits only: no sign, fraction or exponent */
bool json_pull_number(struct json_pull *pull, double *value); /* finite */
/* Passes over a value, whose text is given (if wanted): it is left as it was, so another cursor may read it. */
void json_pull_skip(struct json_pull *pull, struct json_slice *text);
void json_pull_end(struct json_pull *pull); /* only white space may follow */

/* Makes a failure of the reader's own, "... at byte N". */
void json_pull_fail(struct json_pull *pull, enum status status, const char *message);

#endif
