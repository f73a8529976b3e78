/* Methods of strings, lists, dictionaries and the loop. Meaning: Python 3. What would change its object (append,
 * update, pop ...) is not here, because the oracle's sandbox refuses it too. */
#include "runtime/text/template_builtin.h"
#include "runtime/text/template_print.h"

#include <string.h>
#include <utf8proc.h>

static struct tmpl_text self_text(const struct tmpl_call *call)
{
    return call->self->text;
}

static enum status give_text(struct tmpl_call *call, struct tmpl_text text)
{
    *call->result = tmpl_from_text(text);
    return ST_OK;
}

/* ---- strings ---- */

static enum status strip(struct tmpl_call *call, enum tmpl_sides sides)
{
    struct tmpl_text chars;
    TRY(tmpl_charge_bytes(call->heap, self_text(call).length));
    if (!tmpl_given(&call->args[0]) || call->args[0].kind == TMPL_NONE)
        return give_text(call, tmpl_text_strip(self_text(call), NULL, sides));
    TRY(tmpl_text_argument(call, 0, &chars));
    return give_text(call, tmpl_text_strip(self_text(call), &chars, sides));
}

static enum status str_strip(struct tmpl_call *call)
{
    return strip(call, TMPL_SIDE_BOTH);
}
static enum status str_lstrip(struct tmpl_call *call)
{
    return strip(call, TMPL_SIDE_LEFT);
}
static enum status str_rstrip(struct tmpl_call *call)
{
    return strip(call, TMPL_SIDE_RIGHT);
}

static enum status change_case(struct tmpl_call *call, enum tmpl_case to)
{
    struct tmpl_text out;
    TRY(tmpl_change_case(call->heap, self_text(call), to, &out));
    return give_text(call, out);
}

static enum status str_upper(struct tmpl_call *call)
{
    return change_case(call, TMPL_CASE_UPPER);
}
static enum status str_lower(struct tmpl_call *call)
{
    return change_case(call, TMPL_CASE_LOWER);
}
static enum status str_title(struct tmpl_call *call)
{
    return change_case(call, TMPL_CASE_TITLE_METHOD);
}
static enum status str_capitalize(struct tmpl_call *call)
{
    return change_case(call, TMPL_CASE_CAPITAL);
}

static bool has_affix(struct tmpl_text text, struct tmpl_text affix, bool at_end)
{
    if (affix.length > text.length) return false;
    return tmpl_text_equal(tmpl_text_part(text, at_end ? text.length - affix.length : 0, affix.length), affix);
}

/* A string or a tuple of strings. */
static enum status affix(struct tmpl_call *call, bool at_end)
{
    const struct tmpl_value *argument = &call->args[0];
    bool found = false;
    struct tmpl_text text;
    if (argument->kind == TMPL_LIST && argument->list->flavor == TMPL_FLAVOR_TUPLE) {
        for (uint32_t i = 0; i < argument->list->count && !found; i++) {
            const struct tmpl_value *item = &argument->list->items[i];
            if (item->kind != TMPL_TEXT) return tmpl_fail(call->heap, ST_INVAL, "a tuple of strings is expected");
            found = has_affix(self_text(call), item->text, at_end);
        }
    } else {
        TRY(tmpl_text_argument(call, 0, &text));
        found = has_affix(self_text(call), text, at_end);
    }
    *call->result = tmpl_bool(found);
    return ST_OK;
}

static enum status str_startswith(struct tmpl_call *call)
{
    return affix(call, false);
}
static enum status str_endswith(struct tmpl_call *call)
{
    return affix(call, true);
}

static enum status remove_affix(struct tmpl_call *call, bool at_end)
{
    struct tmpl_text text = self_text(call), part;
    TRY(tmpl_text_argument(call, 0, &part));
    bool found = has_affix(text, part, at_end);
    return give_text(call, found ? tmpl_text_part(text, at_end ? 0 : part.length, text.length - part.length) : text);
}

static enum status str_removeprefix(struct tmpl_call *call)
{
    return remove_affix(call, false);
}
static enum status str_removesuffix(struct tmpl_call *call)
{
    return remove_affix(call, true);
}

static enum status add_part(struct tmpl_call *call, struct tmpl_list *list, size_t start, size_t end)
{
    TRY(tmpl_charge(call->heap, 1));
    return tmpl_list_add(call->heap, list, tmpl_from_text(tmpl_text_part(self_text(call), start, end - start)));
}

/* split() at white space: no empty parts. */
static enum status split_spaces(struct tmpl_call *call, int64_t limit, struct tmpl_list *list)
{
    struct tmpl_text text = tmpl_text_strip(self_text(call), NULL, TMPL_SIDE_LEFT);
    size_t i = text.offset - self_text(call).offset, end = self_text(call).length, n;
    text = self_text(call);
    while (i < end) {
        size_t start = i;
        if (limit >= 0 && list->count == (uint64_t)limit)
            return add_part(
                call, list, start,
                end - (text.length - start -
                       tmpl_text_strip(tmpl_text_part(text, start, end - start), NULL, TMPL_SIDE_RIGHT).length));
        while (i < end && !tmpl_is_space(tmpl_text_decode(text, i, &n))) i += n;
        TRY(add_part(call, list, start, i));
        while (i < end && tmpl_is_space(tmpl_text_decode(text, i, &n))) i += n;
    }
    return ST_OK;
}

/* rsplit() at white space, from the right; the list is turned round by the caller. */
static enum status rsplit_spaces(struct tmpl_call *call, int64_t limit, struct tmpl_list *list)
{
    struct tmpl_text text = tmpl_text_strip(self_text(call), NULL, TMPL_SIDE_RIGHT);
    while (text.length) {
        if (limit >= 0 && list->count == (uint64_t)limit)
            return tmpl_list_add(call->heap, list, tmpl_from_text(text)); /* what leads it stays, as in Python */
        size_t start = text.length;
        const char *data = tmpl_text_data(text);
        while (start) {
            size_t last = start - 1, n;
            while (last && ((unsigned char)data[last] & 0xc0) == 0x80) last--;
            if (tmpl_is_space(tmpl_text_decode(text, last, &n))) break;
            start = last;
        }
        TRY(tmpl_charge(call->heap, 1));
        TRY(tmpl_list_add(call->heap, list, tmpl_from_text(tmpl_text_part(text, start, text.length - start))));
        text = tmpl_text_strip(tmpl_text_part(text, 0, start), NULL, TMPL_SIDE_RIGHT);
    }
    return ST_OK;
}

static void turn_round(struct tmpl_list *list)
{
    for (uint32_t i = 0; i < list->count / 2; i++) {
        struct tmpl_value swap = list->items[i];
        list->items[i] = list->items[list->count - 1 - i];
        list->items[list->count - 1 - i] = swap;
    }
}

static enum status split_at(struct tmpl_call *call, struct tmpl_text separator, int64_t limit, bool from_right,
                            struct tmpl_list *list)
{
    struct tmpl_text text = self_text(call);
    if (!separator.length) return tmpl_fail(call->heap, ST_INVAL, "split: the separator is empty");
    if (!from_right) {
        size_t from = 0, at;
        while (list->count != (uint64_t)limit && (at = tmpl_text_find(text, separator, from)) != SIZE_MAX) {
            TRY(add_part(call, list, from, at));
            from = at + separator.length;
        }
        return add_part(call, list, from, text.length);
    }
    const char *data = tmpl_text_data(text), *wanted = tmpl_text_data(separator);
    size_t end = text.length;
    for (size_t at = end; at >= separator.length && list->count != (uint64_t)limit; at--) {
        if (memcmp(data + at - separator.length, wanted, separator.length) != 0) continue;
        TRY(add_part(call, list, at, end));
        end = at - separator.length;
        at = end + 1;
    }
    return add_part(call, list, 0, end);
}

static enum status split(struct tmpl_call *call, bool from_right)
{
    struct tmpl_list *list;
    struct tmpl_text separator;
    int64_t limit;
    TRY(tmpl_int_argument(call, 1, -1, &limit));
    if (limit < 0) limit = -1;
    TRY(tmpl_charge_bytes(call->heap, self_text(call).length));
    TRY(tmpl_list_new(call->heap, TMPL_FLAVOR_LIST, 0, &list));
    if (!tmpl_given(&call->args[0]) || call->args[0].kind == TMPL_NONE) {
        TRY(from_right ? rsplit_spaces(call, limit, list) : split_spaces(call, limit, list));
    } else {
        TRY(tmpl_text_argument(call, 0, &separator));
        TRY(split_at(call, separator, limit, from_right, list));
    }
    if (from_right) turn_round(list);
    *call->result = tmpl_from_list(list);
    return ST_OK;
}

static enum status str_split(struct tmpl_call *call)
{
    return split(call, false);
}
static enum status str_rsplit(struct tmpl_call *call)
{
    return split(call, true);
}

static enum status str_splitlines(struct tmpl_call *call)
{
    struct tmpl_text text = self_text(call);
    struct tmpl_list *list;
    bool keep = tmpl_flag_argument(call, 0, false);
    TRY(tmpl_charge_bytes(call->heap, text.length));
    TRY(tmpl_list_new(call->heap, TMPL_FLAVOR_LIST, 0, &list));
    for (size_t i = 0, start = 0, n; start < text.length; start = i) {
        while (i < text.length && !tmpl_is_line_end(tmpl_text_decode(text, i, &n))) i += n;
        size_t end = i;
        if (i < text.length) {
            bool pair = tmpl_text_data(text)[i] == '\r' && i + 1 < text.length && tmpl_text_data(text)[i + 1] == '\n';
            i += pair ? 2 : n;
        }
        TRY(add_part(call, list, start, keep ? i : end));
    }
    *call->result = tmpl_from_list(list);
    return ST_OK;
}

/* What a method of markup takes an argument for: escaped, unless it is markup too. */
static enum status as_markup(struct tmpl_call *call, const struct tmpl_value *value, struct tmpl_text *text)
{
    TRY(tmpl_str(call->heap, value, text));
    if (value->kind == TMPL_TEXT && value->markup) return ST_OK;
    return tmpl_escape(call->heap, *text, text);
}

static enum status str_replace(struct tmpl_call *call)
{
    struct tmpl_text old, new_text, out;
    int64_t count;
    TRY(tmpl_text_argument(call, 0, &old));
    TRY(tmpl_text_argument(call, 1, &new_text));
    TRY(tmpl_int_argument(call, 2, -1, &count));
    if (call->self->markup) TRY(as_markup(call, &call->args[1], &new_text));
    TRY(tmpl_replace(call->heap, self_text(call), old, new_text, count, &out));
    return give_text(call, out);
}

static enum status str_join(struct tmpl_call *call)
{
    const struct tmpl_list *items;
    struct tmpl_text out;
    TRY(tmpl_items(call->heap, &call->args[0], &items));
    if (call->self->markup) {
        struct tmpl_list *escaped;
        TRY(tmpl_list_new(call->heap, TMPL_FLAVOR_LIST, items->count, &escaped));
        for (uint32_t i = 0; i < items->count; i++) {
            TRY(as_markup(call, &items->items[i], &out));
            TRY(tmpl_list_add(call->heap, escaped, tmpl_from_text(out)));
        }
        items = escaped;
    }
    TRY(tmpl_join(call->heap, self_text(call), items, false, &out));
    return give_text(call, out);
}

/* The window that the arguments start and end (slots 1 and 2) leave of a text, as in text[start:end]. False when start
 * lies beyond the end: there not even the empty text is found. */
static enum status window(struct tmpl_call *call, struct tmpl_text *text, bool *within)
{
    struct tmpl_value part = *call->self;
    int64_t start, length;
    TRY(tmpl_charge_bytes(call->heap, text->length));
    *within = true;
    if (!tmpl_given(&call->args[1])) return ST_OK;
    TRY(tmpl_slice(call->heap, call->self, &call->args[1], tmpl_given(&call->args[2]) ? &call->args[2] : NULL, NULL,
                   &part));
    if (call->args[1].kind != TMPL_NONE) TRY(tmpl_int_argument(call, 1, 0, &start));
    TRY(tmpl_length(call->heap, call->self, &length));
    *within = call->args[1].kind == TMPL_NONE || start <= length;
    if (part.text.length || !*within) {
        *text = part.text;
        return ST_OK;
    }
    /* An empty slice has no place of its own: the place is that of its start. */
    if (call->args[1].kind == TMPL_NONE) start = 0;
    if (start < 0) start = start < -length ? 0 : start + length;
    *text = tmpl_text_part(*text, tmpl_text_byte_of(*text, (size_t)start), 0);
    return ST_OK;
}

static enum status find(struct tmpl_call *call, bool last, bool must)
{
    struct tmpl_text needle, text = self_text(call);
    bool within;
    TRY(tmpl_text_argument(call, 0, &needle));
    TRY(window(call, &text, &within));
    size_t before = text.store ? text.offset - self_text(call).offset : 0;
    size_t at = !within ? SIZE_MAX : last ? tmpl_text_find_last(text, needle) : tmpl_text_find(text, needle, 0);
    if (at == SIZE_MAX && must) return tmpl_fail(call->heap, ST_INVAL, "substring not found");
    *call->result = tmpl_int(
        at == SIZE_MAX ? -1 : (int64_t)tmpl_text_codepoints(tmpl_text_part(self_text(call), 0, before + at)), false);
    return ST_OK;
}

static enum status str_find(struct tmpl_call *call)
{
    return find(call, false, false);
}
static enum status str_rfind(struct tmpl_call *call)
{
    return find(call, true, false);
}
static enum status str_index(struct tmpl_call *call)
{
    return find(call, false, true);
}
static enum status str_rindex(struct tmpl_call *call)
{
    return find(call, true, true);
}

static enum status str_count(struct tmpl_call *call)
{
    struct tmpl_text needle, text = self_text(call);
    int64_t count = 0;
    bool within;
    TRY(tmpl_text_argument(call, 0, &needle));
    TRY(window(call, &text, &within));
    if (!needle.length)
        count = within ? (int64_t)tmpl_text_codepoints(text) + 1 : 0;
    else
        for (size_t at = 0; (at = tmpl_text_find(text, needle, at)) != SIZE_MAX; at += needle.length) count++;
    *call->result = tmpl_int(count, false);
    return ST_OK;
}

/* The tuple of what is before the separator, it, and what is behind; without one, the text and two empty ones. */
static enum status partition(struct tmpl_call *call, bool from_right)
{
    struct tmpl_text separator, text = self_text(call);
    struct tmpl_list *list;
    TRY(tmpl_text_argument(call, 0, &separator));
    if (!separator.length) return tmpl_fail(call->heap, ST_INVAL, "partition: the separator is empty");
    TRY(tmpl_charge_bytes(call->heap, text.length));
    size_t at = from_right ? tmpl_text_find_last(text, separator) : tmpl_text_find(text, separator, 0);
    size_t from = at, to = at + separator.length;
    if (at == SIZE_MAX) from = to = from_right ? 0 : text.length;
    TRY(tmpl_list_new(call->heap, TMPL_FLAVOR_TUPLE, 3, &list));
    TRY(add_part(call, list, 0, from));
    TRY(tmpl_list_add(call->heap, list, tmpl_from_text(at == SIZE_MAX ? (struct tmpl_text){0} : separator)));
    TRY(add_part(call, list, to, text.length));
    *call->result = tmpl_from_list(list);
    return ST_OK;
}

static enum status str_partition(struct tmpl_call *call)
{
    return partition(call, false);
}
static enum status str_rpartition(struct tmpl_call *call)
{
    return partition(call, true);
}

static bool is_ascii_digit(uint32_t c)
{
    return c >= '0' && c <= '9';
}

/* The value of a replacement field: "" takes the next argument, "2" the third, "name" the one of that name. */
static enum status format_field(struct tmpl_call *call, struct tmpl_text field, uint32_t *next, struct tmpl_text *text)
{
    const struct tmpl_arguments *all = call->all;
    const char *data = tmpl_text_data(field);
    uint32_t idx = field.length ? 0 : (*next)++, i = 0;
    for (; i < field.length && i < 6 && is_ascii_digit((unsigned char)data[i]); i++)
        idx = idx * 10 + (uint32_t)(data[i] - '0');
    if (i < field.length) {
        for (idx = 0; idx < all->count; idx++)
            if (all->names && all->names[idx] && tmpl_text_is(field, all->names[idx])) break;
    } else if (idx < all->count && all->names && all->names[idx]) {
        idx = all->count;
    }
    if (idx >= all->count)
        return tmpl_fail(call->heap, ST_INVAL, "format: no such argument, or a form that is not supported");
    if (call->self->markup) return as_markup(call, &all->values[idx], text);
    return tmpl_str(call->heap, &all->values[idx], text);
}

/* str.format with fields {}, {2} and {name}; conversions, formats and attributes are refused. */
static enum status str_format(struct tmpl_call *call)
{
    struct tmpl_text format = self_text(call), out = {0}, piece;
    const char *data = tmpl_text_data(format);
    uint32_t next = 0;
    for (size_t i = 0, end; i < format.length; i = end) {
        TRY(tmpl_charge(call->heap, 1));
        for (end = i; end < format.length && data[end] != '{' && data[end] != '}';) end++;
        TRY(tmpl_text_append(call->heap, &out, tmpl_text_part(format, i, end - i)));
        if (end == format.length) break;
        if (end + 1 < format.length && data[end + 1] == data[end]) { /* a doubled bracket stands for itself */
            TRY(tmpl_text_append(call->heap, &out, tmpl_text_part(format, end, 1)));
            end += 2;
            continue;
        }
        const char *close = data[end] == '{' ? memchr(data + end, '}', format.length - end) : NULL;
        if (!close) return tmpl_fail(call->heap, ST_INVAL, "format: a single bracket");
        size_t stop = (size_t)(close - data);
        TRY(format_field(call, tmpl_text_part(format, end + 1, stop - end - 1), &next, &piece));
        TRY(tmpl_text_append(call->heap, &out, piece));
        end = stop + 1;
    }
    return give_text(call, out);
}

/* Whether the text is not empty and each of its characters is of a class. */
static enum status all_are(struct tmpl_call *call, bool (*is)(uint32_t codepoint))
{
    struct tmpl_text text = self_text(call);
    bool all = text.length != 0;
    TRY(tmpl_charge_bytes(call->heap, text.length));
    for (size_t i = 0, n; i < text.length && all; i += n) all = is(tmpl_text_decode(text, i, &n));
    *call->result = tmpl_bool(all);
    return ST_OK;
}

static enum status str_isdigit(struct tmpl_call *call)
{
    return all_are(call, is_ascii_digit);
}
static enum status str_isspace(struct tmpl_call *call)
{
    return all_are(call, tmpl_is_space);
}

static bool is_letter(uint32_t c)
{
    utf8proc_category_t category = utf8proc_category((utf8proc_int32_t)c);
    return category >= UTF8PROC_CATEGORY_LU && category <= UTF8PROC_CATEGORY_LO;
}
static bool is_letter_or_number(uint32_t c)
{
    utf8proc_category_t category = utf8proc_category((utf8proc_int32_t)c);
    return is_letter(c) || (category >= UTF8PROC_CATEGORY_ND && category <= UTF8PROC_CATEGORY_NO);
}
static enum status str_isalpha(struct tmpl_call *call)
{
    return all_are(call, is_letter);
}
static enum status str_isalnum(struct tmpl_call *call)
{
    return all_are(call, is_letter_or_number);
}

/* ---- lists ---- */

static enum status list_index(struct tmpl_call *call)
{
    for (uint32_t i = 0; i < call->self->list->count; i++) {
        bool equal;
        TRY(tmpl_equal(call->heap, &call->self->list->items[i], &call->args[0], &equal));
        if (!equal) continue;
        *call->result = tmpl_int(i, false);
        return ST_OK;
    }
    return tmpl_fail(call->heap, ST_INVAL, "index: the value is not in the list");
}

static enum status list_count(struct tmpl_call *call)
{
    int64_t count = 0;
    for (uint32_t i = 0; i < call->self->list->count; i++) {
        bool equal;
        TRY(tmpl_equal(call->heap, &call->self->list->items[i], &call->args[0], &equal));
        count += equal;
    }
    *call->result = tmpl_int(count, false);
    return ST_OK;
}

static enum status list_copy(struct tmpl_call *call)
{
    struct tmpl_list *list;
    TRY(tmpl_charge(call->heap, call->self->list->count));
    TRY(tmpl_list_new(call->heap, TMPL_FLAVOR_LIST, call->self->list->count, &list));
    for (uint32_t i = 0; i < call->self->list->count; i++)
        TRY(tmpl_list_add(call->heap, list, call->self->list->items[i]));
    *call->result = tmpl_from_list(list);
    return ST_OK;
}

/* ---- dictionaries ---- */

static enum status dict_view(struct tmpl_call *call, enum tmpl_flavor flavor)
{
    const struct tmpl_dict *dict = call->self->dict;
    struct tmpl_list *list;
    TRY(tmpl_charge(call->heap, dict->count));
    TRY(tmpl_list_new(call->heap, flavor, dict->count, &list));
    for (uint32_t i = 0; i < dict->count; i++) {
        struct tmpl_value item = flavor == TMPL_FLAVOR_KEYS ? dict->entries[i].key : dict->entries[i].value;
        if (flavor == TMPL_FLAVOR_ITEMS)
            TRY(tmpl_tuple2(call->heap, dict->entries[i].key, dict->entries[i].value, &item));
        TRY(tmpl_list_add(call->heap, list, item));
    }
    *call->result = tmpl_from_list(list);
    return ST_OK;
}

static enum status dict_keys(struct tmpl_call *call)
{
    return dict_view(call, TMPL_FLAVOR_KEYS);
}
static enum status dict_values(struct tmpl_call *call)
{
    return dict_view(call, TMPL_FLAVOR_VALUES);
}
static enum status dict_items(struct tmpl_call *call)
{
    return dict_view(call, TMPL_FLAVOR_ITEMS);
}

static enum status dict_get(struct tmpl_call *call)
{
    const struct tmpl_value *found;
    TRY(tmpl_dict_get(call->heap, call->self->dict, &call->args[0], &found));
    *call->result = found ? *found : tmpl_given(&call->args[1]) ? call->args[1] : tmpl_none();
    return ST_OK;
}

static enum status dict_copy(struct tmpl_call *call)
{
    const struct tmpl_dict *dict = call->self->dict;
    struct tmpl_dict *copy;
    TRY(tmpl_charge(call->heap, dict->count));
    TRY(tmpl_dict_new(call->heap, dict->count, &copy));
    if (dict->count) memcpy(copy->entries, dict->entries, dict->count * sizeof *copy->entries);
    copy->count = dict->count;
    *call->result = (struct tmpl_value){.kind = TMPL_DICT, .dict = copy};
    return ST_OK;
}

/* Methods that change their object: known, so that they hide a key of the same name as in Python, and refused. */
static enum status refused(struct tmpl_call *call)
{
    return tmpl_fail(call->heap, ST_INVAL, "values are immutable in templates: build a new one, or use a namespace");
}

/* ---- loop ---- */

static enum status loop_cycle(struct tmpl_call *call)
{
    if (!call->all->count) return tmpl_fail(call->heap, ST_INVAL, "cycle: no items given");
    *call->result = call->all->values[call->self->loop->idx % call->all->count];
    return ST_OK;
}

static enum status loop_changed(struct tmpl_call *call)
{
    struct tmpl_loop *loop = call->self->loop;
    struct tmpl_list *list;
    bool equal = false;
    TRY(tmpl_list_new(call->heap, TMPL_FLAVOR_TUPLE, call->all->count, &list));
    for (uint32_t i = 0; i < call->all->count; i++) TRY(tmpl_list_add(call->heap, list, call->all->values[i]));
    struct tmpl_value value = tmpl_from_list(list);
    if (loop->has_changed_value) TRY(tmpl_equal(call->heap, &loop->changed_value, &value, &equal));
    loop->has_changed_value = true;
    loop->changed_value = value;
    *call->result = tmpl_bool(!equal);
    return ST_OK;
}

static const struct tmpl_builtin text_methods[] = {
    {"strip", str_strip, "chars", 0},
    {"lstrip", str_lstrip, "chars", 0},
    {"rstrip", str_rstrip, "chars", 0},
    {"startswith", str_startswith, "prefix", 1},
    {"endswith", str_endswith, "suffix", 1},
    {"removeprefix", str_removeprefix, "prefix", 1},
    {"removesuffix", str_removesuffix, "suffix", 1},
    {"split", str_split, "sep maxsplit", 0},
    {"rsplit", str_rsplit, "sep maxsplit", 0},
    {"splitlines", str_splitlines, "keepends", 0},
    {"replace", str_replace, "old new count", 2},
    {"upper", str_upper, "", 0},
    {"lower", str_lower, "", 0},
    {"title", str_title, "", 0},
    {"capitalize", str_capitalize, "", 0},
    {"join", str_join, "iterable", 1},
    {"partition", str_partition, "sep", 1},
    {"rpartition", str_rpartition, "sep", 1},
    {"find", str_find, "sub start end", 1},
    {"rfind", str_rfind, "sub start end", 1},
    {"index", str_index, "sub start end", 1},
    {"rindex", str_rindex, "sub start end", 1},
    {"count", str_count, "sub start end", 1},
    {"format", str_format, NULL, 0},
    {"isdigit", str_isdigit, "", 0},
    {"isspace", str_isspace, "", 0},
    {"isalpha", str_isalpha, "", 0},
    {"isalnum", str_isalnum, "", 0},
    {NULL, NULL, NULL, 0},
};

static const struct tmpl_builtin list_methods[] = {
    {"index", list_index, "value", 1}, {"count", list_count, "value", 1}, {"copy", list_copy, "", 0},
    {"append", refused, NULL, 0},      {"extend", refused, NULL, 0},      {"insert", refused, NULL, 0},
    {"pop", refused, NULL, 0},         {"remove", refused, NULL, 0},      {"reverse", refused, NULL, 0},
    {"sort", refused, NULL, 0},        {"clear", refused, NULL, 0},       {NULL, NULL, NULL, 0},
};

static const struct tmpl_builtin dict_methods[] = {
    {"items", dict_items, "", 0},        {"keys", dict_keys, "", 0},    {"values", dict_values, "", 0},
    {"get", dict_get, "key default", 1}, {"copy", dict_copy, "", 0},    {"update", refused, NULL, 0},
    {"pop", refused, NULL, 0},           {"popitem", refused, NULL, 0}, {"setdefault", refused, NULL, 0},
    {"clear", refused, NULL, 0},         {NULL, NULL, NULL, 0},
};

static const struct tmpl_builtin loop_methods[] = {
    {"cycle", loop_cycle, NULL, 0},
    {"changed", loop_changed, NULL, 0},
    {NULL, NULL, NULL, 0},
};

const struct tmpl_builtin *tmpl_find_method(const struct tmpl_value *object, struct tmpl_text name)
{
    const struct tmpl_builtin *table = NULL;
    if (object->kind == TMPL_TEXT) table = text_methods;
    if (object->kind == TMPL_LIST && object->list->flavor <= TMPL_FLAVOR_RANGE) table = list_methods;
    if (object->kind == TMPL_DICT) table = dict_methods;
    if (object->kind == TMPL_LOOP) table = loop_methods;
    return table && name.length ? tmpl_find_in(table, tmpl_text_data(name), name.length) : NULL;
}
