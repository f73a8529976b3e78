/* JSON documents from outside: the only door to the JSON library.
 *
 * Depth, number of values, length of numbers, UTF-8 and duplicate keys are checked by an own, non-recursive pass before
 * the library sees a byte (jansson recurses); NaN, Infinity, 1e400 and integers beyond int64 are refused. A document is
 * immutable after parsing and may be read by one thread at a time. Values are borrowed: valid until json_release of the
 * root. Every query takes NULL and a value of another type and then returns its "nothing" value. */
#ifndef RUNTIME_BASE_JSON_H
#define RUNTIME_BASE_JSON_H

#include "runtime/base/buf.h"
#include "runtime/base/status.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct json; /* one value */

enum json_kind {
    JSON_KIND_NULL, /* also: absent */
    JSON_KIND_BOOL,
    JSON_KIND_INT,
    JSON_KIND_FLOAT,
    JSON_KIND_TEXT,
    JSON_KIND_LIST,
    JSON_KIND_OBJECT
};

/* Parses text. ST_INVAL: not JSON (err says where); ST_LIMIT: past a json_* limit; ST_NOMEM. */
NODISCARD enum status json_read(const char *text, size_t length, struct json **root, struct error *err);
void json_release(struct json *root); /* NULL is fine */

enum json_kind json_kind(const struct json *value); /* JSON_KIND_NULL for NULL */
const char *json_kind_name(enum json_kind kind);    /* "null", "boolean", "integer", "number", "string", "array", ... */

bool json_to_bool(const struct json *value);     /* true only for the JSON value true */
bool json_has_number(const struct json *value);  /* integer or float */
int64_t json_to_int(const struct json *value);   /* an integer's value, else 0 */
double json_to_number(const struct json *value); /* an integer's or float's value, else 0 */
/* A string's bytes (NUL-terminated; it holds no NUL inside), else NULL. length may be NULL. */
const char *json_to_text(const struct json *value, size_t *length);

size_t json_length(const struct json *value);                    /* items of an array, members of an object, else 0 */
const struct json *json_at(const struct json *list, size_t idx); /* NULL: outside, or not an array */
const struct json *json_member(const struct json *object, const char *key); /* NULL: absent, or not an object */

/* Members of an object in the order of the text. Start with *iterator = NULL; false at the end. */
bool json_iterate(const struct json *object, void **iterator, const char **key, const struct json **value);

/* The value as compact JSON text: keys in the order of the text, non-ASCII unescaped. */
void json_print(const struct json *value, struct buf *out);

#endif
