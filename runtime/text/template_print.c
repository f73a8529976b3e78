/* str, repr and JSON of template values; see template_print.h.
 *
 * Walks are recursive and bounded by tmpl_enter; what is not nested returns before it. */
#include "runtime/text/template_print.h"

#include "runtime/text/template_sort.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <utf8proc.h>

static enum status put(struct tmpl_heap *heap, struct tmpl_text *out, const char *text, bool trusted)
{
    return tmpl_text_append_bytes(heap, out, text, strlen(text), trusted);
}

size_t tmpl_float_repr(double number, char *out)
{
    char digits[40];
    if (isnan(number)) return (size_t)snprintf(out, 32, "nan");
    if (isinf(number)) return (size_t)snprintf(out, 32, number < 0 ? "-inf" : "inf");
    int precision = 0;
    do snprintf(digits, sizeof digits, "%.*e", precision, number);
    while (strtod(digits, NULL) != number && ++precision < 17);
    char *e = strchr(digits, 'e');
    int exponent = (int)strtol(e + 1, NULL, 10);
    if (exponent >= -4 && exponent < 16) {
        int decimals = precision - exponent;
        return (size_t)snprintf(out, 32, "%.*f", decimals < 1 ? 1 : decimals, number);
    }
    *e = '\0';
    return (size_t)snprintf(out, 32, "%se%c%02d", digits, exponent < 0 ? '-' : '+', abs(exponent));
}

/* ---- repr ---- */

/* str.isprintable: no control, format, surrogate, private, unassigned or separator character but the space. */
static bool printable(uint32_t codepoint)
{
    if (codepoint < 0x7f) return codepoint >= 0x20;
    switch (utf8proc_category((utf8proc_int32_t)codepoint)) {
    case UTF8PROC_CATEGORY_CC:
    case UTF8PROC_CATEGORY_CF:
    case UTF8PROC_CATEGORY_CS:
    case UTF8PROC_CATEGORY_CO:
    case UTF8PROC_CATEGORY_CN:
    case UTF8PROC_CATEGORY_ZL:
    case UTF8PROC_CATEGORY_ZP:
    case UTF8PROC_CATEGORY_ZS: return false;
    default: return true;
    }
}

/* The escape of a code point in a repr with this quote; empty when it stands for itself. */
static void repr_escape(uint32_t codepoint, uint32_t quote, char out[12])
{
    out[0] = '\0';
    if (codepoint == quote || codepoint == '\\')
        snprintf(out, 12, "\\%c", (int)codepoint);
    else if (codepoint == '\n' || codepoint == '\r' || codepoint == '\t')
        snprintf(out, 12, "\\%c", codepoint == '\n' ? 'n' : codepoint == '\r' ? 'r' : 't');
    else if (!printable(codepoint))
        snprintf(out, 12, codepoint < 0x100 ? "\\x%02x" : codepoint < 0x10000 ? "\\u%04x" : "\\U%08x", codepoint);
}

static enum status repr_text(struct tmpl_heap *heap, struct tmpl_text text, struct tmpl_text *out)
{
    struct tmpl_text single = {0};
    const char *data = tmpl_text_data(text);
    bool has_single = memchr(data, '\'', text.length), has_double = memchr(data, '"', text.length);
    const char *quote = has_single && !has_double ? "\"" : "'";
    size_t plain = 0, n;
    char escape[12];
    (void)single;
    TRY(tmpl_charge_bytes(heap, text.length));
    TRY(put(heap, out, quote, false));
    for (size_t i = 0; i < text.length; i += n) {
        repr_escape(tmpl_text_decode(text, i, &n), (unsigned char)*quote, escape);
        if (!*escape) continue;
        TRY(tmpl_text_append(heap, out, tmpl_text_part(text, plain, i - plain)));
        TRY(put(heap, out, escape, tmpl_text_trusted_at(text, i)));
        plain = i + n;
    }
    TRY(tmpl_text_append(heap, out, tmpl_text_part(text, plain, text.length - plain)));
    return put(heap, out, quote, false);
}

static enum status repr_items(struct tmpl_heap *heap, const struct tmpl_list *list, const char *open, const char *close,
                              struct tmpl_text *out)
{
    TRY(put(heap, out, open, false));
    for (uint32_t i = 0; i < list->count; i++) {
        if (i) TRY(put(heap, out, ", ", false));
        TRY(tmpl_repr(heap, &list->items[i], out));
    }
    return put(heap, out, close, false);
}

static enum status repr_list(struct tmpl_heap *heap, const struct tmpl_value *value, struct tmpl_text *out)
{
    const struct tmpl_list *list = value->list;
    char text[128];
    switch (list->flavor) {
    case TMPL_FLAVOR_LIST: return repr_items(heap, list, "[", "]", out);
    case TMPL_FLAVOR_TUPLE: return repr_items(heap, list, "(", list->count == 1 ? ",)" : ")", out);
    case TMPL_FLAVOR_KEYS: return repr_items(heap, list, "dict_keys([", "])", out);
    case TMPL_FLAVOR_VALUES: return repr_items(heap, list, "dict_values([", "])", out);
    case TMPL_FLAVOR_ITEMS: return repr_items(heap, list, "dict_items([", "])", out);
    case TMPL_FLAVOR_RANGE:
        snprintf(text, sizeof text,
                 list->range_step == 1 ? "range(%" PRId64 ", %" PRId64 ")"
                                       : "range(%" PRId64 ", %" PRId64 ", %" PRId64 ")",
                 list->range_start, list->range_stop, list->range_step);
        return put(heap, out, text, false);
    case TMPL_FLAVOR_GENERATOR: break;
    }
    return tmpl_fail(heap, ST_INVAL, "a generator has no text: use the list filter");
}

static enum status repr_dict(struct tmpl_heap *heap, const struct tmpl_dict *dict, struct tmpl_text *out)
{
    TRY(put(heap, out, "{", false));
    for (uint32_t i = 0; i < dict->count; i++) {
        if (i) TRY(put(heap, out, ", ", false));
        TRY(tmpl_repr(heap, &dict->entries[i].key, out));
        TRY(put(heap, out, ": ", false));
        TRY(tmpl_repr(heap, &dict->entries[i].value, out));
    }
    return put(heap, out, "}", false);
}

static enum status repr_scalar(struct tmpl_heap *heap, const struct tmpl_value *value, struct tmpl_text *out)
{
    char text[32];
    switch ((enum tmpl_kind)value->kind) {
    case TMPL_UNDEFINED: return put(heap, out, "Undefined", value->trusted);
    case TMPL_NONE: return put(heap, out, "None", value->trusted);
    case TMPL_BOOL: return put(heap, out, value->boolean ? "True" : "False", value->trusted);
    case TMPL_INT: snprintf(text, sizeof text, "%" PRId64, value->integer); break;
    case TMPL_FLOAT: tmpl_float_repr(value->number, text); break;
    default: return tmpl_fail(heap, ST_INVAL, "a %s has no text", tmpl_type_name(value));
    }
    return put(heap, out, text, value->trusted);
}

enum status tmpl_repr(struct tmpl_heap *heap, const struct tmpl_value *value, struct tmpl_text *out)
{
    TRY(tmpl_charge(heap, 1));
    if (value->kind == TMPL_TEXT) {
        if (!value->markup) return repr_text(heap, value->text, out);
        TRY(put(heap, out, "Markup(", false));
        TRY(repr_text(heap, value->text, out));
        return put(heap, out, ")", false);
    }
    if (value->kind != TMPL_LIST && value->kind != TMPL_DICT && value->kind != TMPL_NAMESPACE)
        return repr_scalar(heap, value, out);
    TRY(tmpl_enter(heap));
    if (value->kind == TMPL_NAMESPACE) TRY(put(heap, out, "<Namespace ", false));
    TRY(value->kind == TMPL_LIST ? repr_list(heap, value, out) : repr_dict(heap, value->dict, out));
    if (value->kind == TMPL_NAMESPACE) TRY(put(heap, out, ">", false));
    tmpl_leave(heap);
    return ST_OK;
}

enum status tmpl_str(struct tmpl_heap *heap, const struct tmpl_value *value, struct tmpl_text *text)
{
    *text = (struct tmpl_text){0};
    if (value->kind == TMPL_TEXT) *text = value->text;
    if (value->kind == TMPL_TEXT || value->kind == TMPL_UNDEFINED) return ST_OK;
    return tmpl_repr(heap, value, text);
}

/* ---- JSON ---- */

/* The escape of a character; empty when it stands for itself. */
static void json_escape(uint32_t c, bool ascii, char out[16])
{
    const char *letter = c && c < 0x80 ? strchr("\"\"\\\\\nn\rr\tt\ff\bb", (int)c) : NULL;
    out[0] = '\0';
    if (letter)
        snprintf(out, 16, "\\%c", letter[1]);
    else if (c < 0x20 || (ascii && c > 0x7e && c < 0x10000))
        snprintf(out, 16, "\\u%04x", c);
    else if (ascii && c >= 0x10000)
        snprintf(out, 16, "\\u%04x\\u%04x", 0xd7c0 + (c >> 10), 0xdc00 + (c & 0x3ff));
}

static enum status json_text(struct tmpl_heap *heap, struct tmpl_text text, bool ascii, struct tmpl_text *out)
{
    size_t plain = 0, n;
    char escape[16];
    TRY(tmpl_charge_bytes(heap, text.length));
    TRY(put(heap, out, "\"", false));
    for (size_t i = 0; i < text.length; i += n) {
        unsigned char c = (unsigned char)tmpl_text_data(text)[i];
        n = 1;
        if (c > 0x22 && c != '\\' && c < 0x7f) continue;
        if (c >= 0x80 && !ascii) continue;
        json_escape(tmpl_text_decode(text, i, &n), ascii, escape);
        if (!*escape) continue;
        TRY(tmpl_text_append(heap, out, tmpl_text_part(text, plain, i - plain)));
        TRY(put(heap, out, escape, tmpl_text_trusted_at(text, i)));
        plain = i + n;
    }
    TRY(tmpl_text_append(heap, out, tmpl_text_part(text, plain, text.length - plain)));
    return put(heap, out, "\"", false);
}

static enum status json_scalar(struct tmpl_heap *heap, const struct tmpl_value *value, struct tmpl_text *out)
{
    switch ((enum tmpl_kind)value->kind) {
    case TMPL_NONE: return put(heap, out, "null", value->trusted);
    case TMPL_BOOL: return put(heap, out, value->boolean ? "true" : "false", value->trusted);
    case TMPL_INT: return tmpl_repr(heap, value, out);
    case TMPL_FLOAT:
        if (isnan(value->number)) return put(heap, out, "NaN", value->trusted);
        if (isinf(value->number)) return put(heap, out, value->number < 0 ? "-Infinity" : "Infinity", value->trusted);
        return tmpl_repr(heap, value, out);
    default: break;
    }
    return tmpl_fail(heap, ST_INVAL, "an object of type %s is not JSON serializable", tmpl_type_name(value));
}

struct json_walk {
    const struct tmpl_json_style *style;
    struct tmpl_text *out;
    uint32_t level;
};

static enum status json_value(struct tmpl_heap *heap, struct json_walk *walk, const struct tmpl_value *value);

static enum status json_break(struct tmpl_heap *heap, const struct json_walk *walk)
{
    if (!walk->style->multiline) return ST_OK;
    TRY(put(heap, walk->out, "\n", false));
    for (uint32_t i = 0; i < walk->level; i++) TRY(tmpl_text_append(heap, walk->out, walk->style->indent));
    return ST_OK;
}

static enum status json_list(struct tmpl_heap *heap, struct json_walk *walk, const struct tmpl_list *list)
{
    if (!list->count) return put(heap, walk->out, "[]", false);
    TRY(put(heap, walk->out, "[", false));
    walk->level++;
    for (uint32_t i = 0; i < list->count; i++) {
        if (i) TRY(tmpl_text_append(heap, walk->out, walk->style->item_separator));
        TRY(json_break(heap, walk));
        TRY(json_value(heap, walk, &list->items[i]));
    }
    walk->level--;
    TRY(json_break(heap, walk));
    return put(heap, walk->out, "]", false);
}

static enum status json_key(struct tmpl_heap *heap, const struct tmpl_value *key, bool ascii, struct tmpl_text *out)
{
    if (key->kind == TMPL_TEXT) return json_text(heap, key->text, ascii, out);
    if (key->kind < TMPL_NONE || key->kind > TMPL_FLOAT)
        return tmpl_fail(heap, ST_INVAL, "keys of JSON must be strings, not %s", tmpl_type_name(key));
    TRY(put(heap, out, "\"", false));
    TRY(json_scalar(heap, key, out));
    return put(heap, out, "\"", false);
}

static enum status json_dict(struct tmpl_heap *heap, struct json_walk *walk, const struct tmpl_dict *dict)
{
    if (!dict->count) return put(heap, walk->out, "{}", false);
    uint32_t *order = NULL;
    if (walk->style->sort_keys) TRY(tmpl_sort_keys(heap, dict, &order));
    TRY(put(heap, walk->out, "{", false));
    walk->level++;
    for (uint32_t i = 0; i < dict->count; i++) {
        const struct tmpl_entry *entry = &dict->entries[order ? order[i] : i];
        if (i) TRY(tmpl_text_append(heap, walk->out, walk->style->item_separator));
        TRY(json_break(heap, walk));
        TRY(json_key(heap, &entry->key, walk->style->ascii, walk->out));
        TRY(tmpl_text_append(heap, walk->out, walk->style->key_separator));
        TRY(json_value(heap, walk, &entry->value));
    }
    walk->level--;
    TRY(json_break(heap, walk));
    return put(heap, walk->out, "}", false);
}

static enum status json_value(struct tmpl_heap *heap, struct json_walk *walk, const struct tmpl_value *value)
{
    TRY(tmpl_charge(heap, 1));
    if (value->kind == TMPL_TEXT) return json_text(heap, value->text, walk->style->ascii, walk->out);
    bool list = value->kind == TMPL_LIST && value->list->flavor <= TMPL_FLAVOR_TUPLE;
    if (!list && value->kind != TMPL_DICT) return json_scalar(heap, value, walk->out);
    TRY(tmpl_enter(heap));
    TRY(list ? json_list(heap, walk, value->list) : json_dict(heap, walk, value->dict));
    tmpl_leave(heap);
    return ST_OK;
}

enum status tmpl_json(struct tmpl_heap *heap, const struct tmpl_value *value, const struct tmpl_json_style *style,
                      struct tmpl_text *out)
{
    struct json_walk walk = {style, out, 0};
    return json_value(heap, &walk, value);
}
