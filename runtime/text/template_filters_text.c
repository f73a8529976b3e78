/* Filters on strings, numbers and single values. Meaning: jinja2 3.1.6, filters.py; tojson as transformers replaces it.
 */
#include "runtime/text/template_builtin.h"
#include "runtime/text/template_print.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static enum status give_text(struct tmpl_call *call, struct tmpl_text text)
{
    *call->result = tmpl_from_text(text);
    return ST_OK;
}

/* Markup stays markup in the filters that call the value's own methods. */
static enum status give_like_self(struct tmpl_call *call, struct tmpl_text text)
{
    *call->result = tmpl_text_like(text, call->self);
    return ST_OK;
}

static enum status change_case(struct tmpl_call *call, enum tmpl_case to)
{
    struct tmpl_text text, out;
    TRY(tmpl_str(call->heap, call->self, &text));
    TRY(tmpl_change_case(call->heap, text, to, &out));
    return to == TMPL_CASE_TITLE_FILTER ? give_text(call, out) : give_like_self(call, out);
}

static enum status filter_upper(struct tmpl_call *call)
{
    return change_case(call, TMPL_CASE_UPPER);
}
static enum status filter_lower(struct tmpl_call *call)
{
    return change_case(call, TMPL_CASE_LOWER);
}
static enum status filter_title(struct tmpl_call *call)
{
    return change_case(call, TMPL_CASE_TITLE_FILTER);
}
static enum status filter_capitalize(struct tmpl_call *call)
{
    return change_case(call, TMPL_CASE_CAPITAL);
}

static enum status filter_string(struct tmpl_call *call)
{
    struct tmpl_text text;
    TRY(tmpl_str(call->heap, call->self, &text));
    return give_like_self(call, text);
}

static enum status filter_trim(struct tmpl_call *call)
{
    struct tmpl_text text, chars;
    TRY(tmpl_str(call->heap, call->self, &text));
    TRY(tmpl_charge_bytes(call->heap, text.length));
    if (!tmpl_given(&call->args[0]) || call->args[0].kind == TMPL_NONE)
        return give_like_self(call, tmpl_text_strip(text, NULL, TMPL_SIDE_BOTH));
    TRY(tmpl_text_argument(call, 0, &chars));
    return give_like_self(call, tmpl_text_strip(text, &chars, TMPL_SIDE_BOTH));
}

static enum status filter_replace(struct tmpl_call *call)
{
    struct tmpl_text text, old, new_text, out;
    int64_t count = -1;
    TRY(tmpl_str(call->heap, call->self, &text));
    TRY(tmpl_str(call->heap, &call->args[0], &old));
    TRY(tmpl_str(call->heap, &call->args[1], &new_text));
    if (call->args[2].kind != TMPL_NONE) TRY(tmpl_int_argument(call, 2, -1, &count));
    TRY(tmpl_replace(call->heap, text, old, new_text, count, &out));
    return give_text(call, out);
}

static enum status filter_default(struct tmpl_call *call)
{
    bool missing =
        call->self->kind == TMPL_UNDEFINED || (tmpl_flag_argument(call, 1, false) && !tmpl_truth(call->self));
    *call->result = *call->self;
    if (!missing) return ST_OK;
    if (tmpl_given(&call->args[0])) {
        *call->result = call->args[0];
        return ST_OK;
    }
    return give_text(call, (struct tmpl_text){0});
}

static enum status filter_safe(struct tmpl_call *call)
{
    TRY(filter_string(call));
    call->result->markup = true;
    return ST_OK;
}

/* ---- numbers ---- */

/* A number in a text as Python's int() and float() read one: white space around it, underscores between digits. */
static bool read_number(struct tmpl_text text, char *out, size_t capacity)
{
    size_t used = 0;
    text = tmpl_text_strip(text, NULL, TMPL_SIDE_BOTH);
    const char *data = tmpl_text_data(text);
    if (!text.length || text.length >= capacity) return false;
    for (size_t i = 0; i < text.length; i++) {
        bool between =
            i && i + 1 < text.length && strchr("0123456789", data[i - 1]) && strchr("0123456789", data[i + 1]);
        if (data[i] == '_' && between) continue;
        if (!data[i] || !strchr("0123456789+-.eEinfatyINFATY", data[i])) return false;
        out[used++] = data[i];
    }
    out[used] = '\0';
    return true;
}

static enum status float_to_int(struct tmpl_call *call, double number, bool *ok, int64_t *value)
{
    *ok = false;
    if (isnan(number)) return ST_OK; /* ValueError: the default */
    if (isinf(number))
        return call->self->kind == TMPL_FLOAT ? tmpl_fail(call->heap, ST_INVAL, "infinity has no integer") : ST_OK;
    if (number >= 9223372036854775808.0 || number < -9223372036854775808.0)
        return tmpl_fail(call->heap, ST_INVAL, "an integer does not fit 64 bits");
    *ok = true;
    *value = (int64_t)number;
    return ST_OK;
}

static enum status text_to_int(struct tmpl_call *call, int64_t base, bool *ok, int64_t *value)
{
    char text[80], *end;
    *ok = false;
    if (!read_number(call->self->text, text, sizeof text)) return ST_OK;
    errno = 0;
    *value = strtoll(text, &end, (int)base);
    if (errno == ERANGE) return tmpl_fail(call->heap, ST_INVAL, "an integer does not fit 64 bits");
    *ok = end != text && !*end;
    if (*ok) return ST_OK;
    double number = strtod(text, &end);
    return end != text && !*end ? float_to_int(call, number, ok, value) : ST_OK;
}

static enum status filter_int(struct tmpl_call *call)
{
    const struct tmpl_value *self = call->self;
    int64_t value = 0, base;
    bool ok = tmpl_is_int(self), trusted = self->kind == TMPL_TEXT ? tmpl_text_all_trusted(self->text) : self->trusted;
    TRY(tmpl_int_argument(call, 1, 10, &base));
    if (base != 10) return tmpl_fail(call->heap, ST_INVAL, "int: only base 10 is supported");
    if (self->kind == TMPL_UNDEFINED)
        return tmpl_fail(call->heap, ST_INVAL, "'%.80s' is undefined", self->name ? self->name : "value");
    if (ok) value = tmpl_as_int(self);
    if (self->kind == TMPL_FLOAT) TRY(float_to_int(call, self->number, &ok, &value));
    if (self->kind == TMPL_TEXT) TRY(text_to_int(call, base, &ok, &value));
    *call->result = ok ? tmpl_int(value, trusted) : tmpl_given(&call->args[0]) ? call->args[0] : tmpl_int(0, true);
    return ST_OK;
}

static enum status filter_float(struct tmpl_call *call)
{
    const struct tmpl_value *self = call->self;
    char text[400], *end = text;
    double value = 0;
    bool ok = tmpl_is_number(self),
         trusted = self->kind == TMPL_TEXT ? tmpl_text_all_trusted(self->text) : self->trusted;
    if (self->kind == TMPL_UNDEFINED)
        return tmpl_fail(call->heap, ST_INVAL, "'%.80s' is undefined", self->name ? self->name : "value");
    if (ok) value = tmpl_as_number(self);
    if (self->kind == TMPL_TEXT && read_number(self->text, text, sizeof text)) {
        value = strtod(text, &end);
        ok = end != text && !*end;
    }
    *call->result = ok ? tmpl_float(value, trusted) : tmpl_given(&call->args[0]) ? call->args[0] : tmpl_float(0, true);
    return ST_OK;
}

static enum status filter_abs(struct tmpl_call *call)
{
    const struct tmpl_value *self = call->self;
    if (!tmpl_is_number(self))
        return tmpl_fail(call->heap, ST_INVAL, "abs: a number is expected, not %s", tmpl_type_name(self));
    if (self->kind == TMPL_FLOAT) {
        *call->result = tmpl_float(fabs(self->number), self->trusted);
        return ST_OK;
    }
    int64_t value = tmpl_as_int(self);
    if (value == INT64_MIN) return tmpl_fail(call->heap, ST_INVAL, "an integer does not fit 64 bits");
    *call->result = tmpl_int(value < 0 ? -value : value, self->trusted);
    return ST_OK;
}

/* Python's round(): exact decimal, halves to even; snprintf rounds the same way. */
static double round_common(double number, int64_t precision)
{
    char text[400];
    if (precision < 0) {
        double scale = pow(10, (double)-precision);
        return rint(number / scale) * scale;
    }
    snprintf(text, sizeof text, "%.*f", (int)precision, number);
    return strtod(text, NULL);
}

static enum status filter_round(struct tmpl_call *call)
{
    const struct tmpl_value *self = call->self;
    int64_t precision;
    struct tmpl_text method = {0};
    TRY(tmpl_int_argument(call, 0, 0, &precision));
    if (tmpl_given(&call->args[1])) TRY(tmpl_text_argument(call, 1, &method));
    bool common = !method.length || tmpl_text_is(method, "common"), up = tmpl_text_is(method, "ceil");
    if (!common && !up && !tmpl_text_is(method, "floor"))
        return tmpl_fail(call->heap, ST_INVAL, "round: the method is common, ceil or floor");
    if (!tmpl_is_number(self) || precision < -15 || precision > 60)
        return tmpl_fail(call->heap, ST_INVAL, "round: a number and a small precision are expected");
    double number = tmpl_as_number(self), scale = pow(10, (double)precision);
    if (common && tmpl_is_int(self) && precision >= 0)
        *call->result = tmpl_int(tmpl_as_int(self), self->trusted);
    else if (common)
        *call->result = tmpl_float(round_common(number, precision), self->trusted);
    else
        *call->result = tmpl_float((up ? ceil(number * scale) : floor(number * scale)) / scale, self->trusted);
    return ST_OK;
}

/* ---- JSON, indentation ---- */

static enum status json_separators(struct tmpl_call *call, struct tmpl_json_style *style)
{
    const struct tmpl_value *pair = &call->args[2];
    struct tmpl_value item, key;
    TRY(tmpl_literal(call->heap, style->multiline ? "," : ", ", &item));
    TRY(tmpl_literal(call->heap, ": ", &key));
    if (tmpl_given(pair) && pair->kind != TMPL_NONE) {
        bool two = pair->kind == TMPL_LIST && pair->list->flavor <= TMPL_FLAVOR_TUPLE && pair->list->count == 2;
        if (!two || pair->list->items[0].kind != TMPL_TEXT || pair->list->items[1].kind != TMPL_TEXT)
            return tmpl_fail(call->heap, ST_INVAL, "tojson: separators must be two strings");
        item = pair->list->items[0];
        key = pair->list->items[1];
    } else { /* ours, not the template's */
        item.text.store->trusted = key.text.store->trusted = false;
    }
    style->item_separator = item.text;
    style->key_separator = key.text;
    return ST_OK;
}

static enum status filter_tojson(struct tmpl_call *call)
{
    const struct tmpl_value *indent = &call->args[1];
    struct tmpl_json_style style = {.sort_keys = tmpl_flag_argument(call, 3, false),
                                    .ascii = tmpl_flag_argument(call, 0, false)};
    struct tmpl_text out = {0};
    style.multiline = tmpl_given(indent) && indent->kind != TMPL_NONE;
    if (style.multiline && indent->kind == TMPL_TEXT) {
        style.indent = indent->text;
    } else if (style.multiline) {
        int64_t width;
        TRY(tmpl_int_argument(call, 1, 0, &width));
        if (width > 1024) return tmpl_fail(call->heap, ST_LIMIT, "tojson: the indent is too wide");
        for (int64_t i = 0; i < width; i++) TRY(tmpl_text_append_bytes(call->heap, &style.indent, " ", 1, false));
    }
    TRY(json_separators(call, &style));
    TRY(tmpl_json(call->heap, call->self, &style, &out));
    return give_text(call, out);
}

static enum status indent_text(struct tmpl_call *call, struct tmpl_text *indent)
{
    int64_t width;
    *indent = (struct tmpl_text){0};
    if (call->args[0].kind == TMPL_TEXT) return tmpl_text_argument(call, 0, indent);
    TRY(tmpl_int_argument(call, 0, 4, &width));
    if (width > 1024) return tmpl_fail(call->heap, ST_LIMIT, "indent: too wide");
    for (int64_t i = 0; i < width; i++) TRY(tmpl_text_append_bytes(call->heap, indent, " ", 1, false));
    return ST_OK;
}

static enum status filter_indent(struct tmpl_call *call)
{
    struct tmpl_text indent, text, out = {0};
    bool first = tmpl_flag_argument(call, 1, false), blank = tmpl_flag_argument(call, 2, false);
    TRY(indent_text(call, &indent));
    if (call->self->kind != TMPL_TEXT)
        return tmpl_fail(call->heap, ST_INVAL, "indent: a string is expected, not %s", tmpl_type_name(call->self));
    text = call->self->text;
    TRY(tmpl_charge_bytes(call->heap, text.length));
    if (first) TRY(tmpl_text_append(call->heap, &out, indent));
    for (size_t start = 0, i = 0, n; i < text.length; i += n, start = i) {
        for (n = 0; i < text.length && !tmpl_is_line_end(tmpl_text_decode(text, i, &n)); n = 0) {
            tmpl_text_decode(text, i, &n);
            i += n;
        }
        TRY(tmpl_text_append(call->heap, &out, tmpl_text_part(text, start, i - start)));
        if (i == text.length) break;
        TRY(tmpl_text_append_bytes(call->heap, &out, "\n", 1, tmpl_text_trusted_at(text, i)));
        if (tmpl_text_data(text)[i] == '\r' && i + 1 < text.length && tmpl_text_data(text)[i + 1] == '\n') n = 2;
        size_t next;
        bool empty = i + n == text.length || tmpl_is_line_end(tmpl_text_decode(text, i + n, &next));
        if (blank || !empty) TRY(tmpl_text_append(call->heap, &out, indent));
        TRY(tmpl_charge(call->heap, 1));
    }
    return give_like_self(call, out);
}

/* Any values in order, or any by name. */
static enum status filter_format(struct tmpl_call *call)
{
    const struct tmpl_arguments *all = call->all;
    struct tmpl_value format, key, values;
    struct tmpl_list *list;
    struct tmpl_dict *dict;
    struct tmpl_text text;
    uint32_t named = 0;
    for (uint32_t i = 0; i < all->count; i++) named += all->names && all->names[i];
    if (named && named < all->count)
        return tmpl_fail(call->heap, ST_INVAL, "format: values either in order or by name");
    TRY(tmpl_list_new(call->heap, TMPL_FLAVOR_TUPLE, all->count, &list));
    TRY(tmpl_dict_new(call->heap, named, &dict));
    for (uint32_t i = 0; i < all->count; i++) {
        if (!named) {
            TRY(tmpl_list_add(call->heap, list, all->values[i]));
            continue;
        }
        if (all->keys && all->keys[i].kind == TMPL_TEXT)
            key = all->keys[i]; /* of **arguments: may be content, and "%s" prints the whole */
        else
            TRY(tmpl_literal(call->heap, all->names[i], &key));
        TRY(tmpl_dict_put(call->heap, dict, key, all->values[i]));
    }
    values = named ? (struct tmpl_value){.kind = TMPL_DICT, .dict = dict} : tmpl_from_list(list);
    TRY(tmpl_str(call->heap, call->self, &text));
    format = tmpl_text_like(text, call->self);
    return tmpl_format(call->heap, &format, &values, call->result);
}

static enum status filter_forceescape(struct tmpl_call *call)
{
    struct tmpl_text text, out;
    TRY(tmpl_str(call->heap, call->self, &text));
    TRY(tmpl_escape(call->heap, text, &out));
    TRY(give_text(call, out));
    call->result->markup = true;
    return ST_OK;
}

static enum status filter_escape(struct tmpl_call *call)
{
    if (call->self->kind != TMPL_TEXT || !call->self->markup) return filter_forceescape(call);
    *call->result = *call->self; /* it was done before */
    return ST_OK;
}

const struct tmpl_builtin tmpl_text_filters[] = {
    {"upper", filter_upper, "", 0},
    {"lower", filter_lower, "", 0},
    {"title", filter_title, "", 0},
    {"capitalize", filter_capitalize, "", 0},
    {"string", filter_string, "", 0},
    {"trim", filter_trim, "chars", 0},
    {"replace", filter_replace, "old new count", 2},
    {"default", filter_default, "default_value boolean", 0},
    {"d", filter_default, "default_value boolean", 0},
    {"safe", filter_safe, "", 0},
    {"int", filter_int, "default base", 0},
    {"float", filter_float, "default", 0},
    {"abs", filter_abs, "", 0},
    {"round", filter_round, "precision method", 0},
    {"tojson", filter_tojson, "ensure_ascii indent separators sort_keys", 0},
    {"indent", filter_indent, "width first blank", 0},
    {"format", filter_format, NULL, 0},
    {"escape", filter_escape, "", 0},
    {"e", filter_escape, "", 0},
    {"forceescape", filter_forceescape, "", 0},
    {NULL, NULL, NULL, 0},
};
