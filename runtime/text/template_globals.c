/* Functions that every template can call: range, dict, namespace, raise_exception, strftime_now. */
#include "runtime/text/template_builtin.h"
#include "runtime/text/template_print.h"

#include <stdio.h>
#include <string.h>
#include <time.h>

enum { RANGE_MAX = 100000 }; /* jinja2's sandbox: MAX_RANGE */

static enum status global_range(struct tmpl_call *call)
{
    int64_t start, stop, step;
    struct tmpl_list *list;
    TRY(tmpl_int_argument(call, 0, 0, &start));
    TRY(tmpl_int_argument(call, 1, 0, &stop));
    TRY(tmpl_int_argument(call, 2, 1, &step));
    if (!tmpl_given(&call->args[1])) {
        stop = start;
        start = 0;
    }
    if (!step) return tmpl_fail(call->heap, ST_INVAL, "range: the step is zero");
    __int128 distance = step > 0 ? (__int128)stop - start : (__int128)start - stop;
    __int128 stride = step > 0 ? (__int128)step : -(__int128)step;
    __int128 count = distance <= 0 ? 0 : (distance + stride - 1) / stride;
    if (count > RANGE_MAX) return tmpl_fail(call->heap, ST_INVAL, "range: more than %d items", RANGE_MAX);
    TRY(tmpl_charge(call->heap, (uint64_t)count));
    TRY(tmpl_list_new(call->heap, TMPL_FLAVOR_RANGE, (size_t)count, &list));
    for (int64_t i = 0; i < (int64_t)count; i++) list->items[i] = tmpl_int(start + i * step, true);
    list->count = (uint32_t)count;
    list->range_start = start;
    list->range_stop = stop;
    list->range_step = step;
    *call->result = tmpl_from_list(list);
    return ST_OK;
}

/* Entries of a dictionary given as the only positional argument, then keyword arguments. */
static enum status fill_dict(struct tmpl_call *call, struct tmpl_dict **dict)
{
    const struct tmpl_arguments *all = call->all;
    TRY(tmpl_dict_new(call->heap, all->count, dict));
    for (uint32_t i = 0; i < all->count; i++) {
        const char *name = all->names ? all->names[i] : NULL;
        const struct tmpl_value *value = &all->values[i];
        struct tmpl_value key;
        if (name) {
            if (all->keys && all->keys[i].kind == TMPL_TEXT)
                key = all->keys[i]; /* of **arguments: may be content */
            else
                TRY(tmpl_literal(call->heap, name, &key));
            TRY(tmpl_dict_put(call->heap, *dict, key, *value));
            continue;
        }
        if (i) return tmpl_fail(call->heap, ST_INVAL, "only one positional argument is expected");
        if (value->kind == TMPL_DICT) {
            for (uint32_t k = 0; k < value->dict->count; k++)
                TRY(tmpl_dict_put(call->heap, *dict, value->dict->entries[k].key, value->dict->entries[k].value));
            continue;
        }
        const struct tmpl_list *pairs, *pair;
        TRY(tmpl_items(call->heap, value, &pairs));
        for (uint32_t k = 0; k < pairs->count; k++) {
            TRY(tmpl_items(call->heap, &pairs->items[k], &pair));
            if (pair->count != 2) return tmpl_fail(call->heap, ST_INVAL, "dict: pairs are expected");
            TRY(tmpl_dict_put(call->heap, *dict, pair->items[0], pair->items[1]));
        }
    }
    return ST_OK;
}

static enum status global_dict(struct tmpl_call *call)
{
    struct tmpl_dict *dict;
    TRY(fill_dict(call, &dict));
    *call->result = (struct tmpl_value){.kind = TMPL_DICT, .dict = dict};
    return ST_OK;
}

static enum status global_namespace(struct tmpl_call *call)
{
    struct tmpl_dict *dict;
    TRY(fill_dict(call, &dict));
    for (uint32_t i = 0; i < dict->count; i++) {
        const struct tmpl_value *key = &dict->entries[i].key;
        if (key->kind == TMPL_TEXT && key->text.length && *tmpl_text_data(key->text) == '_')
            return tmpl_fail(call->heap, ST_INVAL, "attributes of a namespace cannot begin with an underscore");
    }
    *call->result = (struct tmpl_value){.kind = TMPL_NAMESPACE, .dict = dict};
    return ST_OK;
}

/* The message is the client's to read, without a line number: it is about the request. */
static enum status global_raise_exception(struct tmpl_call *call)
{
    struct tmpl_text text;
    TRY(tmpl_str(call->heap, &call->args[0], &text));
    return error_set(call->heap->err, ST_INVAL, "%.*s", (int)(text.length < 480 ? text.length : 480),
                     tmpl_text_data(text));
}

/* One directive of strftime in the C locale; false for one that is not known. */
static bool time_part(char directive, const struct tm *parts, char *out, size_t capacity)
{
    switch (directive) {
    case 'Y': return strftime(out, capacity, "%Y", parts);
    case 'y': return snprintf(out, capacity, "%02d", (parts->tm_year % 100 + 100) % 100) > 0;
    case 'm': return strftime(out, capacity, "%m", parts);
    case 'd': return strftime(out, capacity, "%d", parts);
    case 'e': return strftime(out, capacity, "%e", parts);
    case 'H': return strftime(out, capacity, "%H", parts);
    case 'I': return strftime(out, capacity, "%I", parts);
    case 'M': return strftime(out, capacity, "%M", parts);
    case 'S': return strftime(out, capacity, "%S", parts);
    case 'p': return strftime(out, capacity, "%p", parts);
    case 'j': return strftime(out, capacity, "%j", parts);
    case 'a': return strftime(out, capacity, "%a", parts);
    case 'A': return strftime(out, capacity, "%A", parts);
    case 'b': return strftime(out, capacity, "%b", parts);
    case 'B': return strftime(out, capacity, "%B", parts);
    case 'F': return strftime(out, capacity, "%F", parts);
    case 'T': return strftime(out, capacity, "%T", parts);
    case 'R': return strftime(out, capacity, "%R", parts);
    case 'u': return strftime(out, capacity, "%u", parts);
    case 'w': return strftime(out, capacity, "%w", parts);
    case 'n': return strftime(out, capacity, "%n", parts);
    case 't': return strftime(out, capacity, "%t", parts);
    case '%': return strftime(out, capacity, "%%", parts);
    default: return false;
    }
}

/* The time of the request in UTC. "%-d" leaves out leading zeros, as in the C library. */
static enum status global_strftime_now(struct tmpl_call *call)
{
    struct tmpl_text format, out = {0};
    struct tm parts;
    time_t now = (time_t)call->run->input->now_unix_s;
    char part[64];
    TRY(tmpl_text_argument(call, 0, &format));
    if (!gmtime_r(&now, &parts)) return tmpl_fail(call->heap, ST_INVAL, "strftime_now: the time is out of range");
    const char *data = tmpl_text_data(format);
    for (uint32_t i = 0; i < format.length; i++) {
        bool trusted = tmpl_text_trusted_at(format, i);
        TRY(tmpl_charge(call->heap, 1));
        if (data[i] != '%' || i + 1 == format.length) {
            TRY(tmpl_text_append_bytes(call->heap, &out, &data[i], 1, trusted));
            continue;
        }
        bool bare = data[i + 1] == '-' && i + 2 < format.length;
        i += bare ? 2 : 1;
        if (!time_part(data[i], &parts, part, sizeof part))
            return tmpl_fail(call->heap, ST_INVAL, "strftime_now: the directive is not supported");
        size_t skip = bare ? strspn(part, "0 ") : 0;
        if (skip && !part[skip]) skip--;
        TRY(tmpl_text_append_bytes(call->heap, &out, part + skip, strlen(part + skip), trusted));
    }
    *call->result = tmpl_from_text(out);
    return ST_OK;
}

static const struct tmpl_builtin globals[] = {
    {"range", global_range, "start stop step", 1},      {"dict", global_dict, NULL, 0},
    {"namespace", global_namespace, NULL, 0},           {"raise_exception", global_raise_exception, "message", 1},
    {"strftime_now", global_strftime_now, "format", 1}, {NULL, NULL, NULL, 0},
};

const struct tmpl_builtin *tmpl_find_global(const char *name)
{
    return tmpl_find_in(globals, name, strlen(name));
}
