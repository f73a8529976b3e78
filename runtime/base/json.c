/* A bounding scan, then jansson; see json.h.
 *
 * The scan walks the text once with a bit stack for nesting: it counts values and depth and measures numbers, so that
 * the recursive library never meets a document deeper than the limit. It judges nothing else; grammar stays the
 * library's. */
#include "runtime/base/json.h"

#include "runtime/base/limits.h"
#include "runtime/base/utf8.h"

#include <inttypes.h>
#include <jansson.h>
#include <string.h>

static enum status scan(const char *text, size_t length, struct error *err)
{
    uint64_t depth = 0, values = 1;
    for (size_t i = 0; i < length; i++) {
        char c = text[i];
        if (c == '"') {
            for (i++; i < length && text[i] != '"'; i++)
                if (text[i] == '\\') i++;
        } else if (c == '{' || c == '[') {
            if (++depth > limits.json_depth)
                return error_set(err, ST_LIMIT, "JSON is nested deeper than %" PRIu64 " levels at byte %zu",
                                 limits.json_depth, i);
            values++;
        } else if (c == '}' || c == ']') {
            if (depth) depth--;
        } else if (c == ',') {
            values++;
        } else if ((c >= '0' && c <= '9') || c == '-') {
            size_t start = i;
            while (i + 1 < length && text[i + 1] && strchr("0123456789+-.eE", text[i + 1])) i++;
            if (i - start + 1 > limits.json_number_chars)
                return error_set(err, ST_LIMIT, "JSON number at byte %zu is longer than %" PRIu64 " characters", start,
                                 limits.json_number_chars);
        }
        if (values > limits.json_values)
            return error_set(err, ST_LIMIT, "JSON has more than %" PRIu64 " values", limits.json_values);
    }
    return ST_OK;
}

enum status json_read(const char *text, size_t length, struct json **root, struct error *err)
{
    size_t bad;
    TRY(scan(text, length, err));
    if (!utf8_valid(text, length, &bad)) return error_set(err, ST_INVAL, "invalid UTF-8 at byte %zu", bad);
    json_error_t library_error;
    json_t *value = json_loadb(text, length, JSON_REJECT_DUPLICATES | JSON_DECODE_ANY, &library_error);
    if (!value) {
        if (json_error_code(&library_error) == json_error_out_of_memory)
            return error_set(err, ST_NOMEM, "out of memory while parsing JSON");
        return error_set(err, ST_INVAL, "invalid JSON at line %d, column %d: %.160s", library_error.line,
                         library_error.column, library_error.text);
    }
    *root = (struct json *)value;
    return ST_OK;
}

/* Our opaque values are the library's, whose queries take non-const pointers. */
static json_t *native(const struct json *value)
{
    return (json_t *)(uintptr_t)value;
}

void json_release(struct json *root)
{
    json_decref(native(root));
}

enum json_kind json_kind(const struct json *value)
{
    if (!value) return JSON_KIND_NULL;
    switch (json_typeof(native(value))) {
    case JSON_OBJECT: return JSON_KIND_OBJECT;
    case JSON_ARRAY: return JSON_KIND_LIST;
    case JSON_STRING: return JSON_KIND_TEXT;
    case JSON_INTEGER: return JSON_KIND_INT;
    case JSON_REAL: return JSON_KIND_FLOAT;
    case JSON_TRUE:
    case JSON_FALSE: return JSON_KIND_BOOL;
    case JSON_NULL: break;
    }
    return JSON_KIND_NULL;
}

const char *json_kind_name(enum json_kind kind)
{
    static const char *const names[] = {"null", "boolean", "integer", "number", "string", "array", "object"};
    return names[kind];
}

bool json_to_bool(const struct json *value)
{
    return value && json_is_true(native(value));
}

bool json_has_number(const struct json *value)
{
    enum json_kind kind = json_kind(value);
    return kind == JSON_KIND_INT || kind == JSON_KIND_FLOAT;
}

int64_t json_to_int(const struct json *value)
{
    return value ? json_integer_value(native(value)) : 0;
}
double json_to_number(const struct json *value)
{
    return value ? json_number_value(native(value)) : 0;
}

const char *json_to_text(const struct json *value, size_t *length)
{
    if (json_kind(value) != JSON_KIND_TEXT) return NULL;
    if (length) *length = json_string_length(native(value));
    return json_string_value(native(value));
}

size_t json_length(const struct json *value)
{
    enum json_kind kind = json_kind(value);
    if (kind == JSON_KIND_LIST) return json_array_size(native(value));
    if (kind == JSON_KIND_OBJECT) return json_object_size(native(value));
    return 0;
}

const struct json *json_at(const struct json *list, size_t idx)
{
    return list ? (const struct json *)json_array_get(native(list), idx) : NULL;
}

const struct json *json_member(const struct json *object, const char *key)
{
    return object ? (const struct json *)json_object_get(native(object), key) : NULL;
}

bool json_iterate(const struct json *object, void **iterator, const char **key, const struct json **value)
{
    if (json_kind(object) != JSON_KIND_OBJECT) return false;
    json_t *v = native(object);
    *iterator = *iterator ? json_object_iter_next(v, *iterator) : json_object_iter(v);
    if (!*iterator) return false;
    *key = json_object_iter_key(*iterator);
    *value = (const struct json *)json_object_iter_value(*iterator);
    return true;
}

static int append_piece(const char *piece, size_t length, void *state)
{
    buf_append(state, piece, length);
    return 0;
}

void json_print(const struct json *value, struct buf *out)
{
    if (!value) {
        buf_append_text(out, "null");
        return;
    }
    if (json_dump_callback(native(value), append_piece, out, JSON_COMPACT | JSON_ENCODE_ANY) != 0) out->failed = true;
}
