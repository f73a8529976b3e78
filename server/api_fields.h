/* Typed readers for the members of a request object. Each takes a key, leaves *out untouched when the member is absent
 * or null, and otherwise writes it or fills the error (400, with the member's name as param and OpenAI's words and
 * codes) and returns false. Booleans are no numbers, numbers are no strings, 5.0 is no integer: nothing is coerced.
 * Pure. */
#ifndef SERVER_API_FIELDS_H
#define SERVER_API_FIELDS_H

#include "runtime/base/json.h"
#include "server/api.h"

#include <stdbool.h>
#include <stdint.h>

struct fields {
    const struct json *object;
    struct api_error *error;
};

/* The member, or NULL when it is absent or null. */
const struct json *field_get(const struct fields *fields, const char *key);

NODISCARD bool field_bool(const struct fields *fields, const char *key, bool *out);
NODISCARD bool field_int(const struct fields *fields, const char *key, int64_t min, int64_t max, int64_t *out);
NODISCARD bool field_number(const struct fields *fields, const char *key, double min, double max, double *out);
/* Borrowed until the document is released; NUL-terminated. length may be NULL. */
NODISCARD bool field_text(const struct fields *fields, const char *key, const char **out, size_t *length);
NODISCARD bool field_list(const struct fields *fields, const char *key, const struct json **out);
NODISCARD bool field_object(const struct fields *fields, const char *key, const struct json **out);

/* The checks themselves, for values that are items of a list; param names them ("stop[2]"). */
NODISCARD bool value_int(const struct json *value, const char *param, int64_t min, int64_t max, struct api_error *error,
                         int64_t *out);
/* Ids of the vocabulary: a list of at most count_max integers in [0, ids_count), into ids[]. */
NODISCARD bool value_ids(const struct json *list, const char *param, uint64_t count_max, uint32_t ids_count,
                         struct api_error *error, uint32_t *ids);

/* Refusals in OpenAI's words. All return false, so that a reader can end with them. */
bool refuse_type(struct api_error *error, const char *param, const char *expected, const struct json *value);
bool refuse_missing(struct api_error *error, const char *param);
bool refuse_too_long(struct api_error *error, const char *param, const char *kind, uint64_t max, uint64_t length);
bool refuse_unserved(struct api_error *error, const char *param, const char *why);
bool refuse_memory(struct api_error *error);

#endif
