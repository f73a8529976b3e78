/* Values of a running template, with Python's meaning: truth, equality, order, iteration, items.
 *
 * Lists, tuples, ranges, generators and dictionary views are one structure with a flavour. All but namespaces are
 * immutable after they were built (the oracle's sandbox refuses append and update too), so the only cycles go through a
 * namespace; whatever walks into values counts its depth and its steps. `trusted` is the origin of what has no bytes of
 * its own: the integer 3 of a tool's schema prints as content. One render, one thread; memory of the render's heap. */
#ifndef RUNTIME_TEXT_TEMPLATE_VALUE_H
#define RUNTIME_TEXT_TEMPLATE_VALUE_H

#include "runtime/base/json.h"
#include "runtime/text/template_text.h"

enum tmpl_kind {
    TMPL_ABSENT, /* an argument that was not given; never seen by a template */
    TMPL_UNDEFINED,
    TMPL_NONE,
    TMPL_BOOL,
    TMPL_INT,
    TMPL_FLOAT,
    TMPL_TEXT,
    TMPL_LIST, /* and its flavours */
    TMPL_DICT,
    TMPL_NAMESPACE, /* a dict that may be written to */
    TMPL_CALLABLE,
    TMPL_LOOP
};

enum tmpl_flavor {
    TMPL_FLAVOR_LIST,
    TMPL_FLAVOR_TUPLE,
    TMPL_FLAVOR_RANGE,
    TMPL_FLAVOR_KEYS, /* views of a dictionary: no items by position */
    TMPL_FLAVOR_VALUES,
    TMPL_FLAVOR_ITEMS,
    TMPL_FLAVOR_GENERATOR /* can be walked once */
};

struct tmpl_list;
struct tmpl_dict;
struct tmpl_callable;
struct tmpl_loop;

struct tmpl_value {
    uint8_t kind;
    bool trusted; /* for kinds without text */
    bool markup;  /* text: made by `safe` or `escape`, so that what is added to it is escaped (Python's Markup) */
    union {
        bool boolean;
        int64_t integer;
        double number;
        struct tmpl_text text;
        struct tmpl_list *list;
        struct tmpl_dict *dict; /* also of a namespace */
        struct tmpl_callable *callable;
        struct tmpl_loop *loop;
        const char *name; /* of what is undefined, for messages; may be NULL */
    };
};

struct tmpl_list {
    enum tmpl_flavor flavor;
    uint32_t count, capacity;
    uint32_t taken; /* generator: items already walked over */
    struct tmpl_value *items;
    int64_t range_start, range_stop, range_step; /* for printing a range */
};

struct tmpl_entry {
    struct tmpl_value key, value;
};

struct tmpl_dict {
    uint32_t count, capacity;
    struct tmpl_entry *entries; /* in order of insertion */
};

/* What `loop` is inside a for. */
struct tmpl_loop {
    const struct tmpl_list *items;
    uint32_t idx, depth;
    bool has_changed_value;
    struct tmpl_value changed_value;
};

static inline struct tmpl_value tmpl_undefined(const char *name)
{
    return (struct tmpl_value){.kind = TMPL_UNDEFINED, .name = name};
}
static inline struct tmpl_value tmpl_none(void)
{
    return (struct tmpl_value){.kind = TMPL_NONE};
}
static inline struct tmpl_value tmpl_bool(bool b)
{
    return (struct tmpl_value){.kind = TMPL_BOOL, .boolean = b};
}
static inline struct tmpl_value tmpl_int(int64_t i, bool trusted)
{
    return (struct tmpl_value){.kind = TMPL_INT, .trusted = trusted, .integer = i};
}
static inline struct tmpl_value tmpl_float(double d, bool trusted)
{
    return (struct tmpl_value){.kind = TMPL_FLOAT, .trusted = trusted, .number = d};
}
static inline struct tmpl_value tmpl_from_text(struct tmpl_text text)
{
    return (struct tmpl_value){.kind = TMPL_TEXT, .text = text};
}
/* The same, as markup where `like` is. */
static inline struct tmpl_value tmpl_text_like(struct tmpl_text text, const struct tmpl_value *like)
{
    return (struct tmpl_value){.kind = TMPL_TEXT, .markup = like->kind == TMPL_TEXT && like->markup, .text = text};
}
static inline struct tmpl_value tmpl_from_list(struct tmpl_list *list)
{
    return (struct tmpl_value){.kind = TMPL_LIST, .list = list};
}
static inline bool tmpl_is_number(const struct tmpl_value *v)
{
    return v->kind >= TMPL_BOOL && v->kind <= TMPL_FLOAT;
}
static inline bool tmpl_is_int(const struct tmpl_value *v)
{
    return v->kind == TMPL_BOOL || v->kind == TMPL_INT;
}
static inline int64_t tmpl_as_int(const struct tmpl_value *v)
{
    return v->kind == TMPL_BOOL ? v->boolean : v->integer;
}
static inline double tmpl_as_number(const struct tmpl_value *v)
{
    return v->kind == TMPL_FLOAT ? v->number : (double)tmpl_as_int(v);
}

/* "str", "dict", "dict_items" ...: Python's names, for messages. */
const char *tmpl_type_name(const struct tmpl_value *value);

/* A trusted text of a static string. */
NODISCARD enum status tmpl_literal(struct tmpl_heap *heap, const char *text, struct tmpl_value *value);

/* A JSON value as a template value; every string, key and number in it is content. Strings are borrowed. */
NODISCARD enum status tmpl_from_json(struct tmpl_heap *heap, const struct json *json, struct tmpl_value *value);

NODISCARD enum status tmpl_list_new(struct tmpl_heap *heap, enum tmpl_flavor flavor, size_t capacity,
                                    struct tmpl_list **list);
NODISCARD enum status tmpl_list_add(struct tmpl_heap *heap, struct tmpl_list *list, struct tmpl_value value);
NODISCARD enum status tmpl_tuple2(struct tmpl_heap *heap, struct tmpl_value a, struct tmpl_value b,
                                  struct tmpl_value *tuple);

/* Whether Python accepts it as a key. */
bool tmpl_hashable(const struct tmpl_value *key);
NODISCARD enum status tmpl_dict_new(struct tmpl_heap *heap, size_t capacity, struct tmpl_dict **dict);
/* Sets or replaces. ST_INVAL: a key that Python cannot hash. */
NODISCARD enum status tmpl_dict_put(struct tmpl_heap *heap, struct tmpl_dict *dict, struct tmpl_value key,
                                    struct tmpl_value value);
/* *found NULL: no such key. */
NODISCARD enum status tmpl_dict_get(struct tmpl_heap *heap, const struct tmpl_dict *dict, const struct tmpl_value *key,
                                    const struct tmpl_value **found);
/* The same by name, free of charge for small dictionaries. */
NODISCARD enum status tmpl_dict_get_name(struct tmpl_heap *heap, const struct tmpl_dict *dict, struct tmpl_text name,
                                         const struct tmpl_value **found);

enum { TMPL_UNORDERED = 2 };

bool tmpl_truth(const struct tmpl_value *value);
NODISCARD enum status tmpl_equal(struct tmpl_heap *heap, const struct tmpl_value *a, const struct tmpl_value *b,
                                 bool *equal);
/* -1, 0, 1 or TMPL_UNORDERED (a NaN) into *order. ST_INVAL: Python has no order for these two. */
NODISCARD enum status tmpl_order(struct tmpl_heap *heap, const struct tmpl_value *a, const struct tmpl_value *b,
                                 int *order);
NODISCARD enum status tmpl_contains(struct tmpl_heap *heap, const struct tmpl_value *container,
                                    const struct tmpl_value *item, bool *contains);

/* len(value). ST_INVAL: it has none. */
NODISCARD enum status tmpl_length(struct tmpl_heap *heap, const struct tmpl_value *value, int64_t *length);
/* The items that walking over value gives: keys of a dictionary, characters of a text, none of what is undefined. A
 * generator is used up. The list is not to be written to. ST_INVAL: not iterable. */
NODISCARD enum status tmpl_items(struct tmpl_heap *heap, const struct tmpl_value *value,
                                 const struct tmpl_list **items);
/* value[key] where key is an index or a dictionary's key; *item undefined when there is none. */
NODISCARD enum status tmpl_item(struct tmpl_heap *heap, const struct tmpl_value *value, const struct tmpl_value *key,
                                struct tmpl_value *item);
/* value[start:stop:step]; NULL is left out. */
NODISCARD enum status tmpl_slice(struct tmpl_heap *heap, const struct tmpl_value *value, const struct tmpl_value *start,
                                 const struct tmpl_value *stop, const struct tmpl_value *step,
                                 struct tmpl_value *result);

/* Enters and leaves one level of a walk into values. ST_LIMIT: deeper than template_depth. */
NODISCARD enum status tmpl_enter(struct tmpl_heap *heap);
static inline void tmpl_leave(struct tmpl_heap *heap)
{
    heap->depth--;
}

#endif
