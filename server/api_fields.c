/* Members of a request, one type a function; see api_fields.h. */
#include "server/api_fields.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>

enum { REFUSED = 400 };
static const char invalid[] = "invalid_request_error";

/* "a string", "an integer": how OpenAI's messages name what they got. */
static const char *with_article(enum json_kind kind)
{
    switch (kind) {
    case JSON_KIND_NULL: return "null";
    case JSON_KIND_BOOL: return "a boolean";
    case JSON_KIND_INT: return "an integer";
    case JSON_KIND_FLOAT: return "a decimal number";
    case JSON_KIND_TEXT: return "a string";
    case JSON_KIND_LIST: return "an array";
    case JSON_KIND_OBJECT: return "an object";
    }
    return "null";
}

bool refuse_type(struct api_error *error, const char *param, const char *expected, const struct json *value)
{
    api_error_set(error, REFUSED, invalid, "invalid_type", param,
                  "Invalid type for '%s': expected %s, but got %s instead.", param, expected,
                  with_article(json_kind(value)));
    return false;
}

bool refuse_missing(struct api_error *error, const char *param)
{
    api_error_set(error, REFUSED, invalid, "missing_required_parameter", param, "Missing required parameter: '%s'.",
                  param);
    return false;
}

bool refuse_too_long(struct api_error *error, const char *param, const char *kind, uint64_t max, uint64_t length)
{
    api_error_set(error, REFUSED, invalid, kind[0] == 's' ? "string_above_max_length" : "array_above_max_length", param,
                  "Invalid '%s': %s too long. Expected at most %" PRIu64 ", but got %" PRIu64 " instead.", param, kind,
                  max, length);
    return false;
}

bool refuse_unserved(struct api_error *error, const char *param, const char *why)
{
    api_error_set(error, REFUSED, invalid, "unsupported_parameter", param, "Unsupported parameter: '%s' %s.", param,
                  why);
    return false;
}

bool refuse_memory(struct api_error *error)
{
    api_error_from_status(ST_NOMEM, 1000, error);
    return false;
}

const struct json *field_get(const struct fields *fields, const char *key)
{
    const struct json *value = json_member(fields->object, key);
    return json_kind(value) == JSON_KIND_NULL ? NULL : value;
}

bool field_bool(const struct fields *fields, const char *key, bool *out)
{
    const struct json *value = field_get(fields, key);
    if (!value) return true;
    if (json_kind(value) != JSON_KIND_BOOL) return refuse_type(fields->error, key, "a boolean", value);
    *out = json_to_bool(value);
    return true;
}

bool value_int(const struct json *value, const char *param, int64_t min, int64_t max, struct api_error *error,
               int64_t *out)
{
    if (json_kind(value) != JSON_KIND_INT) return refuse_type(error, param, "an integer", value);
    int64_t got = json_to_int(value);
    if (got < min || got > max) {
        bool below = got < min;
        api_error_set(error, REFUSED, invalid, below ? "integer_below_min_value" : "integer_above_max_value", param,
                      "Invalid '%s': integer %s value. Expected a value %s %" PRId64 ", but got %" PRId64 " instead.",
                      param, below ? "below minimum" : "above maximum", below ? ">=" : "<=", below ? min : max, got);
        return false;
    }
    *out = got;
    return true;
}

bool field_int(const struct fields *fields, const char *key, int64_t min, int64_t max, int64_t *out)
{
    const struct json *value = field_get(fields, key);
    return !value || value_int(value, key, min, max, fields->error, out);
}

bool field_number(const struct fields *fields, const char *key, double min, double max, double *out)
{
    const struct json *value = field_get(fields, key);
    if (!value) return true;
    if (!json_has_number(value)) return refuse_type(fields->error, key, "a decimal", value);
    double got = json_to_number(value);
    if (!(got >= min && got <= max)) { /* also NaN, which the reader lets nobody send */
        bool below = got < min;
        api_error_set(fields->error, REFUSED, invalid, below ? "decimal_below_min_value" : "decimal_above_max_value",
                      key, "Invalid '%s': decimal %s value. Expected a value %s %g, but got %g instead.", key,
                      below ? "below minimum" : "above maximum", below ? ">=" : "<=", below ? min : max, got);
        return false;
    }
    *out = got;
    return true;
}

bool field_text(const struct fields *fields, const char *key, const char **out, size_t *length)
{
    const struct json *value = field_get(fields, key);
    if (!value) return true;
    const char *text = json_to_text(value, length);
    if (!text) return refuse_type(fields->error, key, "a string", value);
    *out = text;
    return true;
}

bool field_list(const struct fields *fields, const char *key, const struct json **out)
{
    const struct json *value = field_get(fields, key);
    if (!value) return true;
    if (json_kind(value) != JSON_KIND_LIST) return refuse_type(fields->error, key, "an array", value);
    *out = value;
    return true;
}

bool field_object(const struct fields *fields, const char *key, const struct json **out)
{
    const struct json *value = field_get(fields, key);
    if (!value) return true;
    if (json_kind(value) != JSON_KIND_OBJECT) return refuse_type(fields->error, key, "an object", value);
    *out = value;
    return true;
}

bool value_ids(const struct json *list, const char *param, uint64_t count_max, uint32_t ids_count,
               struct api_error *error, uint32_t *ids)
{
    if (json_kind(list) != JSON_KIND_LIST) return refuse_type(error, param, "an array of token ids", list);
    size_t count = json_length(list);
    if (count > count_max) return refuse_too_long(error, param, "array", count_max, count);
    for (size_t i = 0; i < count; i++) {
        const struct json *item = json_at(list, i);
        int64_t id = json_to_int(item);
        ids[i] = (uint32_t)id;
        if (json_kind(item) == JSON_KIND_INT && id >= 0 && id < (int64_t)ids_count) continue;
        char name[64]; /* only for the refusal: lists may be long */
        snprintf(name, sizeof name, "%s[%zu]", param, i);
        if (json_kind(item) != JSON_KIND_INT) return refuse_type(error, name, "an integer", item);
        api_error_set(error, REFUSED, invalid, "invalid_value", name,
                      "Invalid '%s': token id %" PRId64 " is outside the vocabulary of %" PRIu32 " tokens.", name, id,
                      ids_count);
        return false;
    }
    return true;
}
