/* Python's data model, as far as templates see it; see template_value.h. */
#include "runtime/text/template_value.h"

#include <math.h>
#include <string.h>

const char *tmpl_type_name(const struct tmpl_value *value)
{
    static const char *const kinds[] = {"nothing", "Undefined", "NoneType", "bool",      "int",    "float",
                                        "str",     "list",      "dict",     "Namespace", "method", "LoopContext"};
    static const char *const flavors[] = {"list",        "tuple",      "range",    "dict_keys",
                                          "dict_values", "dict_items", "generator"};
    return value->kind == TMPL_LIST ? flavors[value->list->flavor] : kinds[value->kind];
}

enum status tmpl_enter(struct tmpl_heap *heap)
{
    if (heap->depth >= heap->depth_limit)
        return tmpl_fail(heap, ST_LIMIT, "values are nested deeper than %u levels", heap->depth_limit);
    heap->depth++;
    return ST_OK;
}

enum status tmpl_literal(struct tmpl_heap *heap, const char *text, struct tmpl_value *value)
{
    *value = (struct tmpl_value){.kind = TMPL_TEXT};
    return tmpl_text_borrow(heap, text, strlen(text), true, &value->text);
}

/* ---- lists and dictionaries ---- */

enum status tmpl_list_new(struct tmpl_heap *heap, enum tmpl_flavor flavor, size_t capacity, struct tmpl_list **list)
{
    TRY(tmpl_alloc(heap, 1, sizeof **list, list));
    (*list)->flavor = flavor;
    if (capacity > UINT32_MAX / 4) return tmpl_fail(heap, ST_LIMIT, "a list is too long");
    if (capacity) TRY(tmpl_alloc(heap, capacity, sizeof *(*list)->items, &(*list)->items));
    (*list)->capacity = (uint32_t)capacity;
    return ST_OK;
}

enum status tmpl_list_add(struct tmpl_heap *heap, struct tmpl_list *list, struct tmpl_value value)
{
    if (list->count == list->capacity) {
        struct tmpl_value *items;
        uint32_t capacity = list->capacity ? list->capacity * 2 : 4;
        TRY(tmpl_alloc(heap, capacity, sizeof *items, &items));
        if (list->count) memcpy(items, list->items, list->count * sizeof *items);
        list->items = items;
        list->capacity = capacity;
    }
    list->items[list->count++] = value;
    return ST_OK;
}

enum status tmpl_tuple2(struct tmpl_heap *heap, struct tmpl_value a, struct tmpl_value b, struct tmpl_value *tuple)
{
    struct tmpl_list *list;
    TRY(tmpl_list_new(heap, TMPL_FLAVOR_TUPLE, 2, &list));
    TRY(tmpl_list_add(heap, list, a));
    TRY(tmpl_list_add(heap, list, b));
    *tuple = tmpl_from_list(list);
    return ST_OK;
}

enum status tmpl_dict_new(struct tmpl_heap *heap, size_t capacity, struct tmpl_dict **dict)
{
    TRY(tmpl_alloc(heap, 1, sizeof **dict, dict));
    if (capacity > UINT32_MAX / 4) return tmpl_fail(heap, ST_LIMIT, "a dictionary is too large");
    if (capacity) TRY(tmpl_alloc(heap, capacity, sizeof *(*dict)->entries, &(*dict)->entries));
    (*dict)->capacity = (uint32_t)capacity;
    return ST_OK;
}

bool tmpl_hashable(const struct tmpl_value *key)
{
    if (key->kind == TMPL_DICT) return false;
    if (key->kind != TMPL_LIST) return true;
    if (key->list->flavor != TMPL_FLAVOR_TUPLE) return key->list->flavor >= TMPL_FLAVOR_RANGE;
    for (uint32_t i = 0; i < key->list->count; i++) {
        const struct tmpl_value *item = &key->list->items[i]; /* one level: deeper ones are compared, not hashed */
        if (item->kind == TMPL_DICT || (item->kind == TMPL_LIST && item->list->flavor == TMPL_FLAVOR_LIST))
            return false;
    }
    return true;
}

static enum status find(struct tmpl_heap *heap, const struct tmpl_dict *dict, const struct tmpl_value *key,
                        struct tmpl_entry **found)
{
    *found = NULL;
    TRY(tmpl_charge(heap, dict->count >> 4)); /* a linear search: large dictionaries pay for it */
    for (uint32_t i = 0; i < dict->count; i++) {
        struct tmpl_entry *entry = &dict->entries[i];
        bool equal = false;
        if (key->kind == TMPL_TEXT)
            equal = entry->key.kind == TMPL_TEXT && tmpl_text_equal(entry->key.text, key->text);
        else if (entry->key.kind != TMPL_TEXT)
            TRY(tmpl_equal(heap, &entry->key, key, &equal));
        if (!equal) continue;
        *found = entry;
        return ST_OK;
    }
    return ST_OK;
}

enum status tmpl_dict_put(struct tmpl_heap *heap, struct tmpl_dict *dict, struct tmpl_value key,
                          struct tmpl_value value)
{
    struct tmpl_entry *entry;
    if (!tmpl_hashable(&key)) return tmpl_fail(heap, ST_INVAL, "unhashable type: '%s'", tmpl_type_name(&key));
    TRY(find(heap, dict, &key, &entry));
    if (entry) {
        entry->value = value;
        return ST_OK;
    }
    if (dict->count == dict->capacity) {
        struct tmpl_entry *entries;
        uint32_t capacity = dict->capacity ? dict->capacity * 2 : 4;
        TRY(tmpl_alloc(heap, capacity, sizeof *entries, &entries));
        if (dict->count) memcpy(entries, dict->entries, dict->count * sizeof *entries);
        dict->entries = entries;
        dict->capacity = capacity;
    }
    dict->entries[dict->count++] = (struct tmpl_entry){key, value};
    return ST_OK;
}

enum status tmpl_dict_get(struct tmpl_heap *heap, const struct tmpl_dict *dict, const struct tmpl_value *key,
                          const struct tmpl_value **found)
{
    struct tmpl_entry *entry;
    if (!tmpl_hashable(key)) return tmpl_fail(heap, ST_INVAL, "unhashable type: '%s'", tmpl_type_name(key));
    TRY(find(heap, dict, key, &entry));
    *found = entry ? &entry->value : NULL;
    return ST_OK;
}

enum status tmpl_dict_get_name(struct tmpl_heap *heap, const struct tmpl_dict *dict, struct tmpl_text name,
                               const struct tmpl_value **found)
{
    struct tmpl_value key = tmpl_from_text(name);
    return tmpl_dict_get(heap, dict, &key, found);
}

/* ---- JSON in ---- */

static enum status from_json_object(struct tmpl_heap *heap, const struct json *json, struct tmpl_value *value)
{
    void *iterator = NULL;
    const char *key;
    const struct json *member;
    value->kind = TMPL_DICT;
    struct tmpl_dict *dict;
    TRY(tmpl_dict_new(heap, json_length(json), &dict));
    value->dict = dict;
    while (json_iterate(json, &iterator, &key, &member)) {
        struct tmpl_entry *entry = &dict->entries[dict->count];
        entry->key.kind = TMPL_TEXT;
        TRY(tmpl_text_borrow(heap, key, strlen(key), false, &entry->key.text));
        TRY(tmpl_from_json(heap, member, &entry->value));
        dict->count++; /* keys of one object differ: json_read refuses others */
    }
    return ST_OK;
}

static enum status from_json_list(struct tmpl_heap *heap, const struct json *json, struct tmpl_value *value)
{
    size_t count = json_length(json);
    value->kind = TMPL_LIST;
    TRY(tmpl_list_new(heap, TMPL_FLAVOR_LIST, count, &value->list));
    for (size_t i = 0; i < count; i++) TRY(tmpl_from_json(heap, json_at(json, i), &value->list->items[i]));
    value->list->count = (uint32_t)count;
    return ST_OK;
}

/* Recursion is bounded by json_depth: the document was parsed under it. */
enum status tmpl_from_json(struct tmpl_heap *heap, const struct json *json, struct tmpl_value *value)
{
    size_t length;
    const char *text;
    *value = tmpl_none();
    switch (json_kind(json)) {
    case JSON_KIND_NULL: return ST_OK;
    case JSON_KIND_BOOL: *value = tmpl_bool(json_to_bool(json)); return ST_OK;
    case JSON_KIND_INT: *value = tmpl_int(json_to_int(json), false); return ST_OK;
    case JSON_KIND_FLOAT: *value = tmpl_float(json_to_number(json), false); return ST_OK;
    case JSON_KIND_TEXT:
        text = json_to_text(json, &length);
        value->kind = TMPL_TEXT;
        return tmpl_text_borrow(heap, text, length, false, &value->text);
    case JSON_KIND_LIST: return from_json_list(heap, json, value);
    case JSON_KIND_OBJECT: return from_json_object(heap, json, value);
    }
    return ST_OK;
}

/* ---- truth, equality, order ---- */

bool tmpl_truth(const struct tmpl_value *value)
{
    switch ((enum tmpl_kind)value->kind) {
    case TMPL_ABSENT:
    case TMPL_UNDEFINED:
    case TMPL_NONE: return false;
    case TMPL_BOOL: return value->boolean;
    case TMPL_INT: return value->integer != 0;
    case TMPL_FLOAT: return value->number != 0;
    case TMPL_TEXT: return value->text.length != 0;
    case TMPL_LIST: return value->list->flavor == TMPL_FLAVOR_GENERATOR || value->list->count != 0;
    case TMPL_DICT: return value->dict->count != 0;
    case TMPL_NAMESPACE:
    case TMPL_CALLABLE:
    case TMPL_LOOP: return true;
    }
    return false;
}

static enum status equal_lists(struct tmpl_heap *heap, const struct tmpl_list *a, const struct tmpl_list *b,
                               bool *equal)
{
    *equal = a == b;
    if (a == b || a->flavor != b->flavor || a->flavor >= TMPL_FLAVOR_VALUES || a->count != b->count) return ST_OK;
    for (uint32_t i = 0; i < a->count; i++) {
        TRY(tmpl_equal(heap, &a->items[i], &b->items[i], equal));
        if (!*equal) return ST_OK;
    }
    *equal = true;
    return ST_OK;
}

static enum status equal_dicts(struct tmpl_heap *heap, const struct tmpl_dict *a, const struct tmpl_dict *b,
                               bool *equal)
{
    *equal = a == b;
    if (a == b || a->count != b->count) return ST_OK;
    for (uint32_t i = 0; i < a->count; i++) {
        const struct tmpl_value *other;
        TRY(tmpl_dict_get(heap, b, &a->entries[i].key, &other));
        *equal = false;
        if (!other) return ST_OK;
        TRY(tmpl_equal(heap, &a->entries[i].value, other, equal));
        if (!*equal) return ST_OK;
    }
    *equal = true;
    return ST_OK;
}

enum status tmpl_equal(struct tmpl_heap *heap, const struct tmpl_value *a, const struct tmpl_value *b, bool *equal)
{
    TRY(tmpl_charge(heap, 1));
    *equal = false;
    if (tmpl_is_number(a) && tmpl_is_number(b)) {
        *equal = tmpl_is_int(a) && tmpl_is_int(b) ? tmpl_as_int(a) == tmpl_as_int(b)
                                                  : tmpl_as_number(a) == tmpl_as_number(b);
        return ST_OK;
    }
    if (a->kind != b->kind) return ST_OK;
    switch ((enum tmpl_kind)a->kind) {
    case TMPL_UNDEFINED:
    case TMPL_NONE: *equal = true; return ST_OK;
    case TMPL_TEXT:
        *equal = tmpl_text_equal(a->text, b->text);
        return tmpl_charge_bytes(heap, *equal ? a->text.length : 0);
    case TMPL_CALLABLE: *equal = a->callable == b->callable; return ST_OK;
    case TMPL_LOOP: *equal = a->loop == b->loop; return ST_OK;
    case TMPL_NAMESPACE: *equal = a->dict == b->dict; return ST_OK;
    default: break;
    }
    TRY(tmpl_enter(heap));
    TRY(a->kind == TMPL_LIST ? equal_lists(heap, a->list, b->list, equal) : equal_dicts(heap, a->dict, b->dict, equal));
    tmpl_leave(heap);
    return ST_OK;
}

static bool same_sequence(const struct tmpl_value *a, const struct tmpl_value *b)
{
    return a->kind == TMPL_LIST && b->kind == TMPL_LIST && a->list->flavor == b->list->flavor &&
           a->list->flavor <= TMPL_FLAVOR_TUPLE;
}

enum status tmpl_order(struct tmpl_heap *heap, const struct tmpl_value *a, const struct tmpl_value *b, int *order)
{
    TRY(tmpl_charge(heap, 1));
    if (tmpl_is_int(a) && tmpl_is_int(b)) {
        int64_t x = tmpl_as_int(a), y = tmpl_as_int(b);
        *order = (x > y) - (x < y);
        return ST_OK;
    }
    if (tmpl_is_number(a) && tmpl_is_number(b)) {
        double x = tmpl_as_number(a), y = tmpl_as_number(b);
        *order = isnan(x) || isnan(y) ? TMPL_UNORDERED : (x > y) - (x < y);
        return ST_OK;
    }
    if (a->kind == TMPL_TEXT && b->kind == TMPL_TEXT) {
        int sign = tmpl_text_compare(a->text, b->text);
        *order = (sign > 0) - (sign < 0);
        return tmpl_charge_bytes(heap, a->text.length < b->text.length ? a->text.length : b->text.length);
    }
    if (!same_sequence(a, b))
        return tmpl_fail(heap, ST_INVAL, "'%s' and '%s' have no order", tmpl_type_name(a), tmpl_type_name(b));
    TRY(tmpl_enter(heap));
    uint32_t shorter = a->list->count < b->list->count ? a->list->count : b->list->count;
    *order = (a->list->count > b->list->count) - (a->list->count < b->list->count);
    for (uint32_t i = 0; i < shorter; i++) {
        bool equal;
        TRY(tmpl_equal(heap, &a->list->items[i], &b->list->items[i], &equal));
        if (equal) continue;
        TRY(tmpl_order(heap, &a->list->items[i], &b->list->items[i], order));
        break;
    }
    tmpl_leave(heap);
    return ST_OK;
}

enum status tmpl_contains(struct tmpl_heap *heap, const struct tmpl_value *container, const struct tmpl_value *item,
                          bool *contains)
{
    const struct tmpl_list *items;
    const struct tmpl_value *found;
    *contains = false;
    if (container->kind == TMPL_TEXT) {
        if (item->kind != TMPL_TEXT)
            return tmpl_fail(heap, ST_INVAL, "'in <string>' requires string as left operand, not %s",
                             tmpl_type_name(item));
        *contains = tmpl_text_find(container->text, item->text, 0) != SIZE_MAX;
        return tmpl_charge_bytes(heap, container->text.length);
    }
    if (container->kind == TMPL_DICT) {
        TRY(tmpl_dict_get(heap, container->dict, item, &found));
        *contains = found != NULL;
        return ST_OK;
    }
    if (container->kind == TMPL_LIST && container->list->flavor == TMPL_FLAVOR_KEYS && !tmpl_hashable(item))
        return tmpl_fail(heap, ST_INVAL, "unhashable type: '%s'", tmpl_type_name(item));
    TRY(tmpl_items(heap, container, &items));
    for (uint32_t i = 0; i < items->count && !*contains; i++) TRY(tmpl_equal(heap, &items->items[i], item, contains));
    return ST_OK;
}

/* ---- length, items, slices ---- */

enum status tmpl_length(struct tmpl_heap *heap, const struct tmpl_value *value, int64_t *length)
{
    switch ((enum tmpl_kind)value->kind) {
    case TMPL_UNDEFINED: *length = 0; return ST_OK;
    case TMPL_TEXT:
        *length = (int64_t)tmpl_text_codepoints(value->text);
        return tmpl_charge_bytes(heap, value->text.length);
    case TMPL_DICT: *length = value->dict->count; return ST_OK;
    case TMPL_LOOP: *length = value->loop->items->count; return ST_OK;
    case TMPL_LIST:
        if (value->list->flavor == TMPL_FLAVOR_GENERATOR) break;
        *length = value->list->count;
        return ST_OK;
    default: break;
    }
    return tmpl_fail(heap, ST_INVAL, "object of type '%s' has no length", tmpl_type_name(value));
}

static enum status characters(struct tmpl_heap *heap, struct tmpl_text text, struct tmpl_list *list)
{
    for (size_t i = 0, n; i < text.length; i += n) {
        tmpl_text_decode(text, i, &n);
        TRY(tmpl_charge(heap, 1));
        TRY(tmpl_list_add(heap, list, tmpl_from_text(tmpl_text_part(text, i, n))));
    }
    return ST_OK;
}

enum status tmpl_items(struct tmpl_heap *heap, const struct tmpl_value *value, const struct tmpl_list **items)
{
    struct tmpl_list *list;
    if (value->kind == TMPL_LIST) {
        *items = value->list;
        if (value->list->flavor != TMPL_FLAVOR_GENERATOR) return ST_OK;
        TRY(tmpl_list_new(heap, TMPL_FLAVOR_LIST, 0, &list));
        if (value->list->count) list->items = value->list->items + value->list->taken;
        list->count = list->capacity = value->list->count - value->list->taken;
        value->list->taken = value->list->count;
        *items = list;
        return ST_OK;
    }
    if (value->kind != TMPL_TEXT && value->kind != TMPL_DICT && value->kind != TMPL_UNDEFINED)
        return tmpl_fail(heap, ST_INVAL, "'%s' object is not iterable", tmpl_type_name(value));
    TRY(tmpl_list_new(heap, TMPL_FLAVOR_LIST, value->kind == TMPL_DICT ? value->dict->count : 0, &list));
    *items = list;
    if (value->kind == TMPL_TEXT) return characters(heap, value->text, list);
    if (value->kind == TMPL_DICT)
        for (uint32_t i = 0; i < value->dict->count; i++) TRY(tmpl_list_add(heap, list, value->dict->entries[i].key));
    return ST_OK;
}

static bool indexable(const struct tmpl_value *value)
{
    return value->kind == TMPL_TEXT || (value->kind == TMPL_LIST && value->list->flavor <= TMPL_FLAVOR_RANGE);
}

enum status tmpl_item(struct tmpl_heap *heap, const struct tmpl_value *value, const struct tmpl_value *key,
                      struct tmpl_value *item)
{
    *item = tmpl_undefined(NULL);
    if (value->kind == TMPL_DICT) {
        const struct tmpl_value *found;
        if (!tmpl_hashable(key)) return ST_OK;
        TRY(tmpl_dict_get(heap, value->dict, key, &found));
        if (found) *item = *found;
        return ST_OK;
    }
    int64_t length, idx = tmpl_is_int(key) ? tmpl_as_int(key) : 0;
    if (!indexable(value) || !tmpl_is_int(key)) return ST_OK;
    TRY(tmpl_length(heap, value, &length));
    if (idx < 0) idx += length;
    if (idx < 0 || idx >= length) return ST_OK;
    if (value->kind == TMPL_LIST) {
        *item = value->list->items[idx];
        return ST_OK;
    }
    size_t start = tmpl_text_byte_of(value->text, (size_t)idx), n;
    tmpl_text_decode(value->text, start, &n);
    *item = tmpl_text_like(tmpl_text_part(value->text, start, n), value);
    return ST_OK;
}

static enum status slice_bound(struct tmpl_heap *heap, const struct tmpl_value *value, int64_t fallback, int64_t *bound)
{
    *bound = fallback;
    if (!value || value->kind == TMPL_NONE) return ST_OK;
    if (!tmpl_is_int(value)) return tmpl_fail(heap, ST_INVAL, "slice indices must be integers or None");
    *bound = tmpl_as_int(value);
    return ST_OK;
}

/* Python's PySlice_AdjustIndices. */
static int64_t clamp_bound(int64_t bound, int64_t length, int64_t low, int64_t high)
{
    if (bound < 0) bound = bound < -length ? low : bound + length;
    return bound < low ? low : bound > high ? high : bound;
}

static enum status slice_text(struct tmpl_heap *heap, struct tmpl_text text, int64_t start, int64_t stop, int64_t step,
                              struct tmpl_value *result)
{
    struct tmpl_text out = {0};
    TRY(tmpl_charge_bytes(heap, text.length));
    if (step == 1) {
        size_t from = tmpl_text_byte_of(text, (size_t)start);
        size_t to = stop <= start ? from : tmpl_text_byte_of(text, (size_t)stop);
        *result = tmpl_from_text(tmpl_text_part(text, from, to - from));
        return ST_OK;
    }
    struct tmpl_list *list;
    TRY(tmpl_list_new(heap, TMPL_FLAVOR_LIST, 0, &list));
    TRY(characters(heap, text, list));
    for (int64_t i = start; step > 0 ? i < stop : i > stop; i += step)
        TRY(tmpl_text_append(heap, &out, list->items[i].text));
    *result = tmpl_from_text(out);
    return ST_OK;
}

/* The bounds of a range's slice, for printing; false when they do not fit. */
static bool slice_range(const struct tmpl_list *range, int64_t from, int64_t to, int64_t by, struct tmpl_list *slice)
{
    int64_t start, stop;
    return !__builtin_mul_overflow(from, range->range_step, &start) &&
           !__builtin_add_overflow(start, range->range_start, &slice->range_start) &&
           !__builtin_mul_overflow(to, range->range_step, &stop) &&
           !__builtin_add_overflow(stop, range->range_start, &slice->range_stop) &&
           !__builtin_mul_overflow(range->range_step, by, &slice->range_step);
}

enum status tmpl_slice(struct tmpl_heap *heap, const struct tmpl_value *value, const struct tmpl_value *start,
                       const struct tmpl_value *stop, const struct tmpl_value *step, struct tmpl_value *result)
{
    int64_t length, by, from, to;
    if (!indexable(value)) return tmpl_fail(heap, ST_INVAL, "'%s' object has no slices", tmpl_type_name(value));
    TRY(tmpl_length(heap, value, &length));
    TRY(slice_bound(heap, step, 1, &by));
    if (!by) return tmpl_fail(heap, ST_INVAL, "slice step cannot be zero");
    if (by > INT32_MAX) by = INT32_MAX; /* beyond any length: keeps i += step from overflowing */
    if (by < -INT32_MAX) by = -INT32_MAX;
    int64_t low = by > 0 ? 0 : -1, high = by > 0 ? length : length - 1;
    TRY(slice_bound(heap, start, by > 0 ? 0 : INT64_MAX, &from));
    TRY(slice_bound(heap, stop, by > 0 ? INT64_MAX : INT64_MIN, &to));
    from = clamp_bound(from, length, low, high);
    to = clamp_bound(to, length, low, high);
    if (value->kind == TMPL_TEXT) {
        TRY(slice_text(heap, value->text, from, to, by, result));
        result->markup = value->markup;
        return ST_OK;
    }
    struct tmpl_list *list;
    enum tmpl_flavor flavor = value->list->flavor;
    TRY(tmpl_list_new(heap, flavor, 0, &list));
    for (int64_t i = from; by > 0 ? i < to : i > to; i += by) {
        TRY(tmpl_charge(heap, 1));
        TRY(tmpl_list_add(heap, list, value->list->items[i]));
    }
    if (flavor == TMPL_FLAVOR_RANGE && !slice_range(value->list, from, to, by, list))
        return tmpl_fail(heap, ST_INVAL, "an integer does not fit 64 bits");
    *result = tmpl_from_list(list);
    return ST_OK;
}
