/* Filters on sequences and dictionaries. Meaning: jinja2 3.1.6, filters.py. */
#include "runtime/text/template_builtin.h"
#include "runtime/text/template_sort.h"

#include <string.h>

static enum status give_list(struct tmpl_call *call, struct tmpl_list *list)
{
    *call->result = tmpl_from_list(list);
    return ST_OK;
}

static enum status filter_length(struct tmpl_call *call)
{
    int64_t length;
    TRY(tmpl_length(call->heap, call->self, &length));
    *call->result = tmpl_int(length, false);
    return ST_OK;
}

static enum status copy_items(struct tmpl_call *call, enum tmpl_flavor flavor, struct tmpl_list **list)
{
    const struct tmpl_list *items;
    TRY(tmpl_items(call->heap, call->self, &items));
    TRY(tmpl_charge(call->heap, items->count));
    TRY(tmpl_list_new(call->heap, flavor, items->count, list));
    for (uint32_t i = 0; i < items->count; i++) TRY(tmpl_list_add(call->heap, *list, items->items[i]));
    return ST_OK;
}

static enum status filter_list(struct tmpl_call *call)
{
    struct tmpl_list *list;
    TRY(copy_items(call, TMPL_FLAVOR_LIST, &list));
    return give_list(call, list);
}

static enum status filter_first(struct tmpl_call *call)
{
    const struct tmpl_list *items;
    if (call->self->kind == TMPL_LIST && call->self->list->flavor == TMPL_FLAVOR_GENERATOR) {
        struct tmpl_list *list = call->self->list; /* takes one, as next() does */
        *call->result = list->taken < list->count ? list->items[list->taken++] : tmpl_undefined("first item");
        return ST_OK;
    }
    TRY(tmpl_items(call->heap, call->self, &items));
    *call->result = items->count ? items->items[0] : tmpl_undefined("first item");
    return ST_OK;
}

static enum status filter_last(struct tmpl_call *call)
{
    const struct tmpl_list *items;
    if (call->self->kind == TMPL_LIST && call->self->list->flavor == TMPL_FLAVOR_GENERATOR)
        return tmpl_fail(call->heap, ST_INVAL, "a generator has no last item: use the list filter");
    TRY(tmpl_items(call->heap, call->self, &items));
    *call->result = items->count ? items->items[items->count - 1] : tmpl_undefined("last item");
    return ST_OK;
}

static enum status filter_reverse(struct tmpl_call *call)
{
    struct tmpl_list *list;
    struct tmpl_text out = {0};
    TRY(copy_items(call, TMPL_FLAVOR_GENERATOR, &list));
    for (uint32_t i = 0; i < list->count / 2; i++) {
        struct tmpl_value swap = list->items[i];
        list->items[i] = list->items[list->count - 1 - i];
        list->items[list->count - 1 - i] = swap;
    }
    if (call->self->kind != TMPL_TEXT) return give_list(call, list);
    list->flavor = TMPL_FLAVOR_LIST;
    TRY(tmpl_join(call->heap, (struct tmpl_text){0}, list, false, &out));
    *call->result = tmpl_text_like(out, call->self);
    return ST_OK;
}

static enum status filter_items(struct tmpl_call *call)
{
    struct tmpl_list *list;
    struct tmpl_value pair;
    if (call->self->kind != TMPL_DICT && call->self->kind != TMPL_UNDEFINED)
        return tmpl_fail(call->heap, ST_INVAL, "items: a mapping is expected, not %s", tmpl_type_name(call->self));
    TRY(tmpl_list_new(call->heap, TMPL_FLAVOR_GENERATOR, 0, &list));
    for (uint32_t i = 0; call->self->kind == TMPL_DICT && i < call->self->dict->count; i++) {
        const struct tmpl_entry *entry = &call->self->dict->entries[i];
        TRY(tmpl_tuple2(call->heap, entry->key, entry->value, &pair));
        TRY(tmpl_list_add(call->heap, list, pair));
    }
    return give_list(call, list);
}

/* ---- attributes of items ---- */

/* item.a.b.0 for the attribute "a.b.0"; an integer attribute is an index. */
static enum status get_attribute(struct tmpl_call *call, const struct tmpl_value *item,
                                 const struct tmpl_value *attribute, struct tmpl_value *value)
{
    *value = *item;
    if (attribute->kind != TMPL_TEXT) {
        struct tmpl_value object = *item;
        return tmpl_subscript(call->run, &object, attribute, value);
    }
    struct tmpl_text text = attribute->text;
    for (size_t start = 0; start <= text.length;) {
        const char *data = tmpl_text_data(text);
        const char *dot = memchr(data + start, '.', text.length - start);
        size_t end = dot ? (size_t)(dot - data) : text.length;
        struct tmpl_value object = *value, key = tmpl_from_text(tmpl_text_part(text, start, end - start));
        int64_t number = 0;
        size_t i = start;
        for (; i < end && data[i] >= '0' && data[i] <= '9' && i - start < 9; i++)
            number = number * 10 + (data[i] - '0');
        if (end > start && i == end) key = tmpl_int(number, true);
        TRY(tmpl_subscript(call->run, &object, &key, value));
        start = end + 1;
    }
    return ST_OK;
}

/* The key by which sort, unique, min and max compare: an attribute if one is given, lower case unless case_sensitive.
 */
static enum status comparison_key(struct tmpl_call *call, const struct tmpl_value *item,
                                  const struct tmpl_value *attribute, bool case_sensitive, struct tmpl_value *key)
{
    *key = *item;
    if (tmpl_given(attribute) && attribute->kind != TMPL_NONE) TRY(get_attribute(call, item, attribute, key));
    if (case_sensitive || key->kind != TMPL_TEXT) return ST_OK;
    struct tmpl_text lower;
    TRY(tmpl_change_case(call->heap, key->text, TMPL_CASE_LOWER, &lower));
    *key = tmpl_from_text(lower);
    return ST_OK;
}

static enum status comparison_keys(struct tmpl_call *call, const struct tmpl_list *items,
                                   const struct tmpl_value *attribute, bool case_sensitive, struct tmpl_value **keys)
{
    TRY(tmpl_charge(call->heap, items->count));
    TRY(tmpl_alloc(call->heap, items->count, sizeof **keys, keys));
    for (uint32_t i = 0; i < items->count; i++)
        TRY(comparison_key(call, &items->items[i], attribute, case_sensitive, &(*keys)[i]));
    return ST_OK;
}

static enum status filter_join(struct tmpl_call *call)
{
    const struct tmpl_list *items;
    struct tmpl_text separator = {0}, out;
    TRY(tmpl_items(call->heap, call->self, &items));
    if (tmpl_given(&call->args[0])) {
        if (call->args[0].kind != TMPL_TEXT)
            return tmpl_fail(call->heap, ST_INVAL, "join: the separator must be a string");
        separator = call->args[0].text;
    }
    if (tmpl_given(&call->args[1]) && call->args[1].kind != TMPL_NONE) {
        struct tmpl_list *parts;
        TRY(tmpl_list_new(call->heap, TMPL_FLAVOR_LIST, items->count, &parts));
        for (uint32_t i = 0; i < items->count; i++) {
            TRY(get_attribute(call, &items->items[i], &call->args[1], &parts->items[i]));
            parts->count++;
        }
        items = parts;
    }
    TRY(tmpl_join(call->heap, separator, items, true, &out));
    *call->result = tmpl_from_text(out);
    return ST_OK;
}

static enum status filter_sort(struct tmpl_call *call)
{
    const struct tmpl_list *items;
    struct tmpl_list *list;
    struct tmpl_value *keys;
    uint32_t *order;
    TRY(tmpl_items(call->heap, call->self, &items));
    TRY(comparison_keys(call, items, &call->args[2], tmpl_flag_argument(call, 1, false), &keys));
    TRY(tmpl_sort(call->heap, keys, items->count, tmpl_flag_argument(call, 0, false), &order));
    TRY(tmpl_list_new(call->heap, TMPL_FLAVOR_LIST, items->count, &list));
    for (uint32_t i = 0; i < items->count; i++) TRY(tmpl_list_add(call->heap, list, items->items[order[i]]));
    return give_list(call, list);
}

static enum status filter_unique(struct tmpl_call *call)
{
    const struct tmpl_list *items;
    struct tmpl_list *list;
    struct tmpl_value *keys;
    TRY(tmpl_items(call->heap, call->self, &items));
    TRY(comparison_keys(call, items, &call->args[1], tmpl_flag_argument(call, 0, false), &keys));
    TRY(tmpl_list_new(call->heap, TMPL_FLAVOR_GENERATOR, 0, &list));
    for (uint32_t i = 0, kept = 0; i < items->count; i++) {
        bool seen = false;
        if (!tmpl_hashable(&keys[i])) return tmpl_fail(call->heap, ST_INVAL, "unique: items cannot be hashed");
        for (uint32_t k = 0; k < kept && !seen; k++) TRY(tmpl_equal(call->heap, &keys[k], &keys[i], &seen));
        if (seen) continue;
        keys[kept++] = keys[i];
        TRY(tmpl_list_add(call->heap, list, items->items[i]));
    }
    return give_list(call, list);
}

static enum status extreme(struct tmpl_call *call, int wanted)
{
    const struct tmpl_list *items;
    struct tmpl_value *keys;
    uint32_t best = 0;
    TRY(tmpl_items(call->heap, call->self, &items));
    *call->result = tmpl_undefined("smallest or largest item");
    if (!items->count) return ST_OK;
    TRY(comparison_keys(call, items, &call->args[1], tmpl_flag_argument(call, 0, false), &keys));
    for (uint32_t i = 1; i < items->count; i++) {
        int order;
        TRY(tmpl_order(call->heap, &keys[i], &keys[best], &order));
        if (order == wanted) best = i;
    }
    *call->result = items->items[best];
    return ST_OK;
}

static enum status filter_min(struct tmpl_call *call)
{
    return extreme(call, -1);
}
static enum status filter_max(struct tmpl_call *call)
{
    return extreme(call, 1);
}

static enum status filter_sum(struct tmpl_call *call)
{
    const struct tmpl_list *items;
    struct tmpl_value sum = tmpl_given(&call->args[1]) ? call->args[1] : tmpl_int(0, true);
    if (sum.kind == TMPL_TEXT) return tmpl_fail(call->heap, ST_INVAL, "sum: strings are joined, not added");
    TRY(tmpl_items(call->heap, call->self, &items));
    for (uint32_t i = 0; i < items->count; i++) {
        struct tmpl_value item = items->items[i], next;
        TRY(tmpl_charge(call->heap, 1));
        if (tmpl_given(&call->args[0]) && call->args[0].kind != TMPL_NONE)
            TRY(get_attribute(call, &items->items[i], &call->args[0], &item));
        TRY(tmpl_operate(call->run, TMPL_OP_ADD, &sum, &item, &next));
        sum = next;
    }
    *call->result = sum;
    return ST_OK;
}

static enum status filter_dictsort(struct tmpl_call *call)
{
    struct tmpl_list *list;
    struct tmpl_value *keys, absent = {0}, pair;
    struct tmpl_text by = {0};
    uint32_t *order;
    if (call->self->kind != TMPL_DICT)
        return tmpl_fail(call->heap, ST_INVAL, "dictsort: a mapping is expected, not %s", tmpl_type_name(call->self));
    if (tmpl_given(&call->args[1])) TRY(tmpl_text_argument(call, 1, &by));
    bool by_value = tmpl_text_is(by, "value");
    if (by.length && !by_value && !tmpl_text_is(by, "key"))
        return tmpl_fail(call->heap, ST_INVAL, "dictsort: sorts by key or by value");
    const struct tmpl_dict *dict = call->self->dict;
    TRY(tmpl_charge(call->heap, dict->count));
    TRY(tmpl_alloc(call->heap, dict->count, sizeof *keys, &keys));
    for (uint32_t i = 0; i < dict->count; i++)
        TRY(comparison_key(call, by_value ? &dict->entries[i].value : &dict->entries[i].key, &absent,
                           tmpl_flag_argument(call, 0, false), &keys[i]));
    TRY(tmpl_sort(call->heap, keys, dict->count, tmpl_flag_argument(call, 2, false), &order));
    TRY(tmpl_list_new(call->heap, TMPL_FLAVOR_LIST, dict->count, &list));
    for (uint32_t i = 0; i < dict->count; i++) {
        TRY(tmpl_tuple2(call->heap, dict->entries[order[i]].key, dict->entries[order[i]].value, &pair));
        TRY(tmpl_list_add(call->heap, list, pair));
    }
    return give_list(call, list);
}

/* ---- map, select and their kind: a filter or test by name ---- */

/* What these walk over: nothing for what is false, so that None passes. */
static enum status items_if_true(struct tmpl_call *call, const struct tmpl_list **items)
{
    static const struct tmpl_list none;
    *items = &none;
    return tmpl_truth(call->self) ? tmpl_items(call->heap, call->self, items) : ST_OK;
}

/* The arguments behind the first `skip` ones. */
static struct tmpl_arguments rest(const struct tmpl_arguments *all, uint32_t skip)
{
    if (skip > all->count) skip = all->count;
    return (struct tmpl_arguments){all->values + skip, all->names ? all->names + skip : NULL, all->count - skip,
                                   all->keys ? all->keys + skip : NULL};
}

static const struct tmpl_value *named(const struct tmpl_arguments *all, const char *name)
{
    for (uint32_t i = 0; all->names && i < all->count; i++)
        if (all->names[i] && strcmp(all->names[i], name) == 0) return &all->values[i];
    return NULL;
}

static enum status map_attribute(struct tmpl_call *call, const struct tmpl_list *items, struct tmpl_list *list)
{
    const struct tmpl_value *attribute = named(call->all, "attribute"), *fallback = named(call->all, "default");
    if (!attribute || call->all->count != (fallback ? 2u : 1u))
        return tmpl_fail(call->heap, ST_INVAL, "map: expects a filter's name, or attribute= and default=");
    for (uint32_t i = 0; i < items->count; i++) {
        struct tmpl_value value;
        TRY(get_attribute(call, &items->items[i], attribute, &value));
        if (value.kind == TMPL_UNDEFINED && fallback && fallback->kind != TMPL_NONE) value = *fallback;
        TRY(tmpl_list_add(call->heap, list, value));
    }
    return ST_OK;
}

static enum status filter_map(struct tmpl_call *call)
{
    const struct tmpl_list *items;
    struct tmpl_list *list;
    const struct tmpl_arguments *all = call->all;
    TRY(items_if_true(call, &items));
    TRY(tmpl_list_new(call->heap, TMPL_FLAVOR_GENERATOR, items->count, &list));
    TRY(tmpl_charge(call->heap, items->count));
    if (!all->count || (all->names && all->names[0])) {
        TRY(map_attribute(call, items, list));
        return give_list(call, list);
    }
    if (all->values[0].kind != TMPL_TEXT) return tmpl_fail(call->heap, ST_INVAL, "map: expects a filter's name");
    const struct tmpl_text name = all->values[0].text;
    const struct tmpl_builtin *filter = tmpl_find_filter(tmpl_text_data(name), name.length);
    if (!filter || filter->run == filter_map) /* map in map would recurse as deep as its arguments say */
        return tmpl_fail(call->heap, ST_INVAL, "map: no filter named '%.*s'",
                         (int)(name.length < 60 ? name.length : 60), tmpl_text_data(name));
    struct tmpl_arguments arguments = rest(all, 1);
    for (uint32_t i = 0; i < items->count; i++) {
        struct tmpl_value value;
        TRY(tmpl_call_builtin(call->run, filter, &items->items[i], &arguments, &value));
        TRY(tmpl_list_add(call->heap, list, value));
    }
    return give_list(call, list);
}

/* select, reject, selectattr, rejectattr. */
static enum status select_items(struct tmpl_call *call, bool by_attribute, bool wanted)
{
    const struct tmpl_list *items;
    struct tmpl_list *list;
    const struct tmpl_arguments *all = call->all;
    const struct tmpl_builtin *test = NULL;
    uint32_t name_idx = by_attribute ? 1 : 0;
    TRY(items_if_true(call, &items));
    TRY(tmpl_list_new(call->heap, TMPL_FLAVOR_GENERATOR, 0, &list));
    if (by_attribute && !all->count) return tmpl_fail(call->heap, ST_INVAL, "selectattr: lacks an attribute");
    if (all->count > name_idx) {
        const struct tmpl_value *name = &all->values[name_idx];
        if (name->kind == TMPL_TEXT) test = tmpl_find_test(tmpl_text_data(name->text), name->text.length);
        if (!test) return tmpl_fail(call->heap, ST_INVAL, "select: no such test");
    }
    struct tmpl_arguments arguments = rest(all, name_idx + 1);
    for (uint32_t i = 0; i < items->count; i++) {
        struct tmpl_value value = items->items[i], holds;
        TRY(tmpl_charge(call->heap, 1));
        if (by_attribute) TRY(get_attribute(call, &items->items[i], &all->values[0], &value));
        holds = value;
        if (test) TRY(tmpl_call_builtin(call->run, test, &value, &arguments, &holds));
        if (tmpl_truth(&holds) == wanted) TRY(tmpl_list_add(call->heap, list, items->items[i]));
    }
    return give_list(call, list);
}

static enum status filter_select(struct tmpl_call *call)
{
    return select_items(call, false, true);
}
static enum status filter_reject(struct tmpl_call *call)
{
    return select_items(call, false, false);
}
static enum status filter_selectattr(struct tmpl_call *call)
{
    return select_items(call, true, true);
}
static enum status filter_rejectattr(struct tmpl_call *call)
{
    return select_items(call, true, false);
}

static enum status filter_attr(struct tmpl_call *call)
{
    struct tmpl_text name;
    TRY(tmpl_text_argument(call, 0, &name));
    if (call->self->kind == TMPL_DICT) {
        /* attributes only: keys do not count here */
        *call->result = tmpl_undefined("attribute");
        if (!tmpl_find_method(call->self, name)) return ST_OK;
    }
    return tmpl_attribute(call->run, call->self, name, call->result);
}

const struct tmpl_builtin tmpl_list_filters[] = {
    {"length", filter_length, "", 0},
    {"count", filter_length, "", 0},
    {"list", filter_list, "", 0},
    {"first", filter_first, "", 0},
    {"last", filter_last, "", 0},
    {"reverse", filter_reverse, "", 0},
    {"items", filter_items, "", 0},
    {"join", filter_join, "d attribute", 0},
    {"sort", filter_sort, "reverse case_sensitive attribute", 0},
    {"unique", filter_unique, "case_sensitive attribute", 0},
    {"min", filter_min, "case_sensitive attribute", 0},
    {"max", filter_max, "case_sensitive attribute", 0},
    {"sum", filter_sum, "attribute start", 0},
    {"dictsort", filter_dictsort, "case_sensitive by reverse", 0},
    {"map", filter_map, NULL, 0},
    {"select", filter_select, NULL, 0},
    {"reject", filter_reject, NULL, 0},
    {"selectattr", filter_selectattr, NULL, 0},
    {"rejectattr", filter_rejectattr, NULL, 0},
    {"attr", filter_attr, "name", 1},
    {NULL, NULL, NULL, 0},
};
