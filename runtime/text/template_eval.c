/* Expressions; see template_run.h. Each function evaluates one kind of node. */
#include "runtime/text/template_run.h"

#include "runtime/text/template_builtin.h"
#include "runtime/text/template_print.h"

#include <string.h>

/* C frames a level of template_depth may cost: a macro that calls itself walks several nodes for each call. */
enum { CALL_FRAMES_PER_LEVEL = 8, ARGUMENTS_MAX = 64 };

static enum status eval_name(struct tmpl_run *run, const struct tmpl_node *node, struct tmpl_value *value)
{
    for (const struct tmpl_frame *frame = run->frame; frame; frame = frame->parent) {
        for (uint32_t i = 0; i < frame->count; i++) {
            if (frame->variables[i].symbol != node->symbol) continue;
            *value = frame->variables[i].value;
            return ST_OK;
        }
    }
    struct tmpl_value *global = &run->globals[node->symbol];
    if (global->kind == TMPL_ABSENT) TRY(tmpl_lookup_global(run, run->tmpl->symbols.names[node->symbol], global));
    *value = *global;
    return ST_OK;
}

static enum status eval_list(struct tmpl_run *run, const struct tmpl_node *node, struct tmpl_value *value)
{
    struct tmpl_list *list;
    struct tmpl_value item;
    TRY(tmpl_list_new(&run->heap, node->kind == TMPL_NODE_LIST ? TMPL_FLAVOR_LIST : TMPL_FLAVOR_TUPLE, node->count,
                      &list));
    for (uint32_t i = 0; i < node->count; i++) {
        TRY(tmpl_evaluate(run, node->children[i], &item));
        TRY(tmpl_list_add(&run->heap, list, item));
    }
    *value = tmpl_from_list(list);
    return ST_OK;
}

static enum status eval_dict(struct tmpl_run *run, const struct tmpl_node *node, struct tmpl_value *value)
{
    struct tmpl_dict *dict;
    struct tmpl_value key, item;
    TRY(tmpl_dict_new(&run->heap, node->count / 2, &dict));
    for (uint32_t i = 0; i < node->count; i += 2) {
        TRY(tmpl_evaluate(run, node->children[i], &key));
        TRY(tmpl_evaluate(run, node->children[i + 1], &item));
        TRY(tmpl_dict_put(&run->heap, dict, key, item));
    }
    *value = (struct tmpl_value){.kind = TMPL_DICT, .dict = dict};
    return ST_OK;
}

/* ---- attributes and items ---- */

static enum status refuse_undefined(struct tmpl_run *run, const struct tmpl_value *value)
{
    return tmpl_fail(&run->heap, ST_INVAL, "'%.80s' is undefined", value->name ? value->name : "value");
}

static enum status loop_attribute(struct tmpl_run *run, const struct tmpl_loop *loop, struct tmpl_text name,
                                  struct tmpl_value *value)
{
    int64_t idx = loop->idx, length = loop->items->count;
    *value = tmpl_undefined("loop attribute");
    if (tmpl_text_is(name, "index")) *value = tmpl_int(idx + 1, true);
    if (tmpl_text_is(name, "index0")) *value = tmpl_int(idx, true);
    if (tmpl_text_is(name, "revindex")) *value = tmpl_int(length - idx, true);
    if (tmpl_text_is(name, "revindex0")) *value = tmpl_int(length - idx - 1, true);
    if (tmpl_text_is(name, "length")) *value = tmpl_int(length, true);
    if (tmpl_text_is(name, "first")) *value = tmpl_bool(idx == 0);
    if (tmpl_text_is(name, "last")) *value = tmpl_bool(idx + 1 == length);
    if (tmpl_text_is(name, "depth")) *value = tmpl_int(1, true);
    if (tmpl_text_is(name, "depth0")) *value = tmpl_int(0, true);
    if (tmpl_text_is(name, "previtem") && idx > 0) *value = loop->items->items[idx - 1];
    if (tmpl_text_is(name, "nextitem") && idx + 1 < length) *value = loop->items->items[idx + 1];
    (void)run;
    return ST_OK;
}

/* A method bound to its object, if the object has one of that name. */
static enum status bind_method(struct tmpl_run *run, const struct tmpl_value *object, struct tmpl_text name,
                               struct tmpl_value *value, bool *found)
{
    const struct tmpl_builtin *method = tmpl_find_method(object, name);
    struct tmpl_callable *callable;
    *found = method != NULL;
    if (!method) return ST_OK;
    TRY(tmpl_alloc(&run->heap, 1, sizeof *callable, &callable));
    *callable = (struct tmpl_callable){.builtin = method, .has_self = true, .self = *object};
    *value = (struct tmpl_value){.kind = TMPL_CALLABLE, .callable = callable};
    return ST_OK;
}

static const char *name_for_messages(struct tmpl_run *run, struct tmpl_text name)
{
    const char *copy = arena_strdup(&run->heap.arena, tmpl_text_data(name), name.length < 80 ? name.length : 80);
    return copy ? copy : "value"; /* out of memory: the next allocation reports it */
}

enum status tmpl_attribute(struct tmpl_run *run, const struct tmpl_value *object, struct tmpl_text name,
                           struct tmpl_value *value)
{
    bool found;
    struct tmpl_value key = tmpl_from_text(name);
    if (object->kind == TMPL_UNDEFINED) return refuse_undefined(run, object);
    TRY(bind_method(run, object, name, value, &found));
    if (found) return ST_OK;
    if (object->kind == TMPL_LOOP) return loop_attribute(run, object->loop, name, value);
    if (object->kind == TMPL_NAMESPACE) {
        struct tmpl_value as_dict = {.kind = TMPL_DICT, .dict = object->dict};
        TRY(tmpl_item(&run->heap, &as_dict, &key, value));
    } else {
        TRY(tmpl_item(&run->heap, object, &key, value));
    }
    if (value->kind == TMPL_UNDEFINED && !value->name) value->name = name_for_messages(run, name);
    return ST_OK;
}

enum status tmpl_subscript(struct tmpl_run *run, const struct tmpl_value *object, const struct tmpl_value *key,
                           struct tmpl_value *value)
{
    bool found;
    if (object->kind == TMPL_UNDEFINED) return refuse_undefined(run, object);
    TRY(tmpl_item(&run->heap, object, key, value));
    if (value->kind != TMPL_UNDEFINED || value->name || key->kind != TMPL_TEXT) return ST_OK;
    TRY(bind_method(run, object, key->text, value, &found));
    if (found) return ST_OK;
    if (object->kind == TMPL_LOOP || object->kind == TMPL_NAMESPACE)
        return tmpl_attribute(run, object, key->text, value);
    value->name = name_for_messages(run, key->text);
    return ST_OK;
}

static enum status eval_attribute(struct tmpl_run *run, const struct tmpl_node *node, struct tmpl_value *value)
{
    struct tmpl_value object;
    TRY(tmpl_evaluate(run, node->children[0], &object));
    if (object.kind == TMPL_DICT) {
        /* The common case first: a key that no method of dictionaries hides. */
        const struct tmpl_value *found;
        TRY(tmpl_dict_get_name(&run->heap, object.dict, node->value.text, &found));
        if (found && !tmpl_find_method(&object, node->value.text)) {
            *value = *found;
            return ST_OK;
        }
    }
    return tmpl_attribute(run, &object, node->value.text, value);
}

static enum status eval_item(struct tmpl_run *run, const struct tmpl_node *node, struct tmpl_value *value)
{
    struct tmpl_value object, key;
    TRY(tmpl_evaluate(run, node->children[0], &object));
    TRY(tmpl_evaluate(run, node->children[1], &key));
    return tmpl_subscript(run, &object, &key, value);
}

static enum status eval_slice(struct tmpl_run *run, const struct tmpl_node *node, struct tmpl_value *value)
{
    struct tmpl_value parts[4];
    const struct tmpl_value *given[4] = {NULL, NULL, NULL, NULL};
    for (uint32_t i = 0; i < 4; i++) {
        if (!node->children[i]) continue;
        TRY(tmpl_evaluate(run, node->children[i], &parts[i]));
        given[i] = &parts[i];
    }
    if (parts[0].kind == TMPL_UNDEFINED) return refuse_undefined(run, &parts[0]);
    return tmpl_slice(&run->heap, given[0], given[1], given[2], given[3], value);
}

/* ---- calls, filters, tests ---- */

/* Arguments of a call that has *list or **dict, while they are put together. */
struct spread {
    struct tmpl_value *values, *keys;
    const char **names;
    uint32_t count;
};

static enum status add_spread(struct tmpl_run *run, struct spread *spread, const char *name,
                              const struct tmpl_value *key, const struct tmpl_value *value)
{
    if (spread->count == ARGUMENTS_MAX)
        return tmpl_fail(&run->heap, ST_LIMIT, "more than %d arguments in a call", ARGUMENTS_MAX);
    for (uint32_t i = 0; name && i < spread->count; i++)
        if (spread->names[i] && strcmp(spread->names[i], name) == 0)
            return tmpl_fail(&run->heap, ST_INVAL, "a call got two values for '%.60s'", name);
    spread->names[spread->count] = name;
    if (key) spread->keys[spread->count] = *key;
    spread->values[spread->count++] = *value;
    return ST_OK;
}

static enum status spread_list(struct tmpl_run *run, const struct tmpl_value *list, struct spread *spread)
{
    const struct tmpl_list *items;
    TRY(tmpl_items(&run->heap, list, &items));
    for (uint32_t i = 0; i < items->count; i++) TRY(add_spread(run, spread, NULL, NULL, &items->items[i]));
    return ST_OK;
}

static enum status spread_dict(struct tmpl_run *run, const struct tmpl_value *dict, struct spread *spread)
{
    if (dict->kind != TMPL_DICT)
        return tmpl_fail(&run->heap, ST_INVAL, "a mapping is expected behind '**', not %s", tmpl_type_name(dict));
    for (uint32_t i = 0; i < dict->dict->count; i++) {
        const struct tmpl_entry *entry = &dict->dict->entries[i];
        char *name;
        if (entry->key.kind != TMPL_TEXT || memchr(tmpl_text_data(entry->key.text), 0, entry->key.text.length))
            return tmpl_fail(&run->heap, ST_INVAL, "the keys behind '**' must be names");
        TRY(tmpl_alloc(&run->heap, (size_t)entry->key.text.length + 1, 1, &name));
        memcpy(name, tmpl_text_data(entry->key.text), entry->key.text.length);
        TRY(add_spread(run, spread, name, &entry->key, &entry->value));
    }
    return ST_OK;
}

/* Positional arguments first, then those of *list, named ones, those of **dict: Python's order. */
static enum status eval_spread(struct tmpl_run *run, const struct tmpl_node *node, struct tmpl_arguments *arguments)
{
    struct spread spread = {0};
    struct tmpl_value value;
    TRY(tmpl_alloc(&run->heap, ARGUMENTS_MAX, sizeof *spread.values, &spread.values));
    TRY(tmpl_alloc(&run->heap, ARGUMENTS_MAX, sizeof *spread.keys, &spread.keys));
    TRY(tmpl_alloc(&run->heap, ARGUMENTS_MAX, sizeof *spread.names, &spread.names));
    for (uint32_t pass = 0; pass < 2; pass++) {
        for (uint32_t i = 1; i < node->count; i++) {
            const char *name = node->names[i];
            bool list = name && strcmp(name, "*") == 0, dict = name && strcmp(name, "**") == 0;
            if ((!name || list) != (pass == 0)) continue;
            TRY(tmpl_evaluate(run, node->children[i], &value));
            TRY(list   ? spread_list(run, &value, &spread)
                : dict ? spread_dict(run, &value, &spread)
                       : add_spread(run, &spread, name, NULL, &value));
        }
    }
    *arguments = (struct tmpl_arguments){spread.values, spread.names, spread.count, spread.keys};
    return ST_OK;
}

static enum status eval_arguments(struct tmpl_run *run, const struct tmpl_node *node, struct tmpl_value *values,
                                  struct tmpl_arguments *arguments)
{
    uint32_t count = node->count - 1;
    if (node->spreads) return eval_spread(run, node, arguments);
    if (count > ARGUMENTS_MAX)
        return tmpl_fail(&run->heap, ST_LIMIT, "more than %d arguments in a call", ARGUMENTS_MAX);
    for (uint32_t i = 0; i < count; i++) TRY(tmpl_evaluate(run, node->children[i + 1], &values[i]));
    *arguments = (struct tmpl_arguments){values, node->names ? node->names + 1 : NULL, count, NULL};
    return ST_OK;
}

/* The arguments live on the heap when there are many: frames of this file stay small. */
static enum status argument_room(struct tmpl_run *run, const struct tmpl_node *node, struct tmpl_value local[4],
                                 struct tmpl_value **values)
{
    *values = local;
    return node->count <= 5 ? ST_OK : tmpl_alloc(&run->heap, node->count, sizeof **values, values);
}

enum status tmpl_evaluate_arguments(struct tmpl_run *run, const struct tmpl_node *call,
                                    struct tmpl_arguments *arguments)
{
    struct tmpl_value *values;
    TRY(tmpl_alloc(&run->heap, call->count, sizeof *values, &values));
    return eval_arguments(run, call, values, arguments);
}

static enum status macro_parameter(struct tmpl_run *run, const struct tmpl_node *macro, uint32_t idx,
                                   const struct tmpl_arguments *arguments, struct tmpl_value *value, bool *by_name)
{
    const char *name = run->tmpl->symbols.names[macro->parameters[idx]];
    bool positional = idx < arguments->count && !(arguments->names && arguments->names[idx]);
    *by_name = false;
    *value = tmpl_undefined(name);
    if (positional) *value = arguments->values[idx];
    for (uint32_t i = 0; arguments->names && i < arguments->count; i++) {
        if (!arguments->names[i] || strcmp(arguments->names[i], name) != 0) continue;
        if (positional) return tmpl_fail(&run->heap, ST_INVAL, "a macro got two values for '%.60s'", name);
        *value = arguments->values[i];
        *by_name = positional = true;
    }
    if (!positional && macro->children[idx + 1]) return tmpl_evaluate(run, macro->children[idx + 1], value);
    return ST_OK;
}

/* Calls a macro: a new frame below the one where it was defined, its output as the result. */
static enum status call_macro(struct tmpl_run *run, const struct tmpl_callable *callable,
                              const struct tmpl_arguments *arguments, const struct tmpl_value *caller,
                              struct tmpl_value *result)
{
    const struct tmpl_node *macro = callable->macro;
    struct tmpl_frame *saved_frame = run->frame, *frame;
    struct tmpl_text *saved_capture = run->capture, text = {0};
    uint32_t used = 0, positional = 0;
    if (run->calls >= run->heap.depth_limit)
        return tmpl_fail(&run->heap, ST_LIMIT, "macros call each other deeper than %u levels", run->heap.depth_limit);
    if (caller && !macro->takes_caller)
        return tmpl_fail(&run->heap, ST_INVAL, "macro '%.60s' has no use for a caller",
                         run->tmpl->symbols.names[macro->symbol]);
    run->calls++;
    TRY(tmpl_frame_push(run, callable->frame, &frame));
    run->frame = frame;
    for (uint32_t i = 0; i < arguments->count; i++) positional += !(arguments->names && arguments->names[i]);
    for (uint32_t i = 0; i + 1 < macro->count; i++) {
        struct tmpl_value value;
        bool by_name;
        TRY(macro_parameter(run, macro, i, arguments, &value, &by_name));
        used += by_name;
        TRY(tmpl_frame_set(run, frame, macro->parameters[i], value));
    }
    if (positional + 1 > macro->count || used + positional < arguments->count)
        return tmpl_fail(&run->heap, ST_INVAL, "macro '%.60s' takes no such argument",
                         run->tmpl->symbols.names[macro->symbol]);
    struct tmpl_value undefined = tmpl_undefined("caller");
    TRY(tmpl_frame_set(run, frame, run->tmpl->caller_symbol, caller ? *caller : undefined));
    run->capture = &text;
    TRY(tmpl_execute(run, macro->children[0]));
    run->capture = saved_capture;
    run->frame = saved_frame;
    run->calls--;
    *result = tmpl_from_text(text);
    return ST_OK;
}

/* Methods of markup give markup, also inside the list or tuple that they made. */
static void mark_result(struct tmpl_value *result)
{
    if (result->kind == TMPL_TEXT) result->markup = true;
    for (uint32_t i = 0; result->kind == TMPL_LIST && i < result->list->count; i++)
        result->list->items[i].markup = result->list->items[i].kind == TMPL_TEXT;
}

enum status tmpl_invoke(struct tmpl_run *run, const struct tmpl_value *callee, const struct tmpl_arguments *arguments,
                        const struct tmpl_value *caller, struct tmpl_value *result)
{
    if (callee->kind == TMPL_UNDEFINED) return refuse_undefined(run, callee);
    if (callee->kind != TMPL_CALLABLE)
        return tmpl_fail(&run->heap, ST_INVAL, "'%s' object is not callable", tmpl_type_name(callee));
    const struct tmpl_callable *callable = callee->callable;
    if (callable->kind == TMPL_CALLABLE_MACRO) return call_macro(run, callable, arguments, caller, result);
    TRY(tmpl_call_builtin(run, callable->builtin, callable->has_self ? &callable->self : NULL, arguments, result));
    if (callable->has_self && callable->self.kind == TMPL_TEXT && callable->self.markup) mark_result(result);
    return ST_OK;
}

static enum status eval_call(struct tmpl_run *run, const struct tmpl_node *node, struct tmpl_value *value)
{
    struct tmpl_value callee, local[4], *values;
    struct tmpl_arguments arguments;
    uint32_t line = node->line;
    TRY(tmpl_evaluate(run, node->children[0], &callee));
    TRY(argument_room(run, node, local, &values));
    TRY(eval_arguments(run, node, values, &arguments));
    run->heap.line = line;
    TRY(tmpl_invoke(run, &callee, &arguments, NULL, value));
    run->heap.line = line;
    return ST_OK;
}

/* A filter or test on a value that is already there. */
static enum status apply(struct tmpl_run *run, const struct tmpl_node *node, const struct tmpl_value *input,
                         struct tmpl_value *value)
{
    struct tmpl_value local[4], *values;
    struct tmpl_arguments arguments;
    if (!node->builtin)
        return tmpl_fail(&run->heap, ST_INVAL, "there is no filter or test named '%.*s'",
                         (int)(node->value.text.length < 60 ? node->value.text.length : 60),
                         tmpl_text_data(node->value.text));
    TRY(argument_room(run, node, local, &values));
    TRY(eval_arguments(run, node, values, &arguments));
    return tmpl_call_builtin(run, node->builtin, input, &arguments, value);
}

static enum status eval_builtin(struct tmpl_run *run, const struct tmpl_node *node, struct tmpl_value *value)
{
    struct tmpl_value input;
    TRY(tmpl_evaluate(run, node->children[0], &input));
    return apply(run, node, &input, value);
}

enum status tmpl_apply_filters(struct tmpl_run *run, const struct tmpl_node *filter, const struct tmpl_value *input,
                               struct tmpl_value *result)
{
    struct tmpl_value inner = *input;
    if (filter->children[0]) TRY(tmpl_apply_filters(run, filter->children[0], input, &inner));
    return apply(run, filter, &inner, result);
}

/* ---- operators ---- */

static enum status eval_logic(struct tmpl_run *run, const struct tmpl_node *node, struct tmpl_value *value)
{
    bool stop_at = node->kind == TMPL_NODE_OR;
    for (uint32_t i = 0; i < node->count; i++) {
        TRY(tmpl_evaluate(run, node->children[i], value));
        if (tmpl_truth(value) == stop_at) break;
    }
    return ST_OK;
}

static enum status eval_not(struct tmpl_run *run, const struct tmpl_node *node, struct tmpl_value *value)
{
    struct tmpl_value operand;
    TRY(tmpl_evaluate(run, node->children[0], &operand));
    *value = tmpl_bool(!tmpl_truth(&operand));
    return ST_OK;
}

static enum status eval_sign(struct tmpl_run *run, const struct tmpl_node *node, struct tmpl_value *value)
{
    struct tmpl_value operand, zero = tmpl_int(0, true);
    TRY(tmpl_evaluate(run, node->children[0], &operand));
    if (operand.kind == TMPL_FLOAT) {
        *value = tmpl_float(node->kind == TMPL_NODE_NEGATIVE ? -operand.number : operand.number, operand.trusted);
        return ST_OK;
    }
    if (!tmpl_is_int(&operand))
        return tmpl_fail(&run->heap, ST_INVAL, "bad operand type '%s'", tmpl_type_name(&operand));
    return tmpl_operate(run, node->kind == TMPL_NODE_NEGATIVE ? TMPL_OP_SUBTRACT : TMPL_OP_ADD, &zero, &operand, value);
}

static enum status eval_concat(struct tmpl_run *run, const struct tmpl_node *node, struct tmpl_value *value)
{
    struct tmpl_text text = {0}, piece;
    struct tmpl_value operand;
    for (uint32_t i = 0; i < node->count; i++) {
        TRY(tmpl_evaluate(run, node->children[i], &operand));
        TRY(tmpl_str(&run->heap, &operand, &piece));
        TRY(tmpl_text_append(&run->heap, &text, piece));
    }
    *value = tmpl_from_text(text);
    return ST_OK;
}

static enum status eval_arithmetic(struct tmpl_run *run, const struct tmpl_node *node, struct tmpl_value *value)
{
    struct tmpl_value operand, left;
    TRY(tmpl_evaluate(run, node->children[0], value));
    for (uint32_t i = 1; i < node->count; i++) {
        TRY(tmpl_evaluate(run, node->children[i], &operand));
        left = *value;
        TRY(tmpl_operate(run, (enum tmpl_op)node->ops[i - 1], &left, &operand, value));
    }
    return ST_OK;
}

static enum status compare(struct tmpl_run *run, enum tmpl_op op, const struct tmpl_value *a,
                           const struct tmpl_value *b, bool *holds)
{
    struct tmpl_heap *heap = &run->heap;
    int order;
    *holds = false;
    if (op == TMPL_OP_EQUAL || op == TMPL_OP_NOT_EQUAL) {
        TRY(tmpl_equal(heap, a, b, holds));
        *holds = *holds == (op == TMPL_OP_EQUAL);
        return ST_OK;
    }
    if (op == TMPL_OP_IN || op == TMPL_OP_NOT_IN) {
        TRY(tmpl_contains(heap, b, a, holds));
        *holds = *holds == (op == TMPL_OP_IN);
        return ST_OK;
    }
    TRY(tmpl_order(heap, a, b, &order));
    if (order == TMPL_UNORDERED) return ST_OK;
    *holds = op == TMPL_OP_LESS         ? order < 0
             : op == TMPL_OP_LESS_EQUAL ? order <= 0
             : op == TMPL_OP_GREATER    ? order > 0
                                        : order >= 0;
    return ST_OK;
}

static enum status eval_compare(struct tmpl_run *run, const struct tmpl_node *node, struct tmpl_value *value)
{
    struct tmpl_value left, right;
    bool holds = true;
    TRY(tmpl_evaluate(run, node->children[0], &left));
    for (uint32_t i = 1; i < node->count && holds; i++) {
        TRY(tmpl_evaluate(run, node->children[i], &right));
        TRY(compare(run, (enum tmpl_op)node->ops[i - 1], &left, &right, &holds));
        left = right;
    }
    *value = tmpl_bool(holds);
    return ST_OK;
}

static enum status eval_condition(struct tmpl_run *run, const struct tmpl_node *node, struct tmpl_value *value)
{
    struct tmpl_value test;
    TRY(tmpl_evaluate(run, node->children[0], &test));
    const struct tmpl_node *branch = node->children[tmpl_truth(&test) ? 1 : 2];
    *value = tmpl_undefined("the inline if without an else");
    return branch ? tmpl_evaluate(run, branch, value) : ST_OK;
}

static enum status evaluate(struct tmpl_run *run, const struct tmpl_node *node, struct tmpl_value *value)
{
    switch (node->kind) {
    case TMPL_NODE_NAME: return eval_name(run, node, value);
    case TMPL_NODE_LIST:
    case TMPL_NODE_TUPLE: return eval_list(run, node, value);
    case TMPL_NODE_DICT: return eval_dict(run, node, value);
    case TMPL_NODE_ATTRIBUTE: return eval_attribute(run, node, value);
    case TMPL_NODE_ITEM: return eval_item(run, node, value);
    case TMPL_NODE_SLICE: return eval_slice(run, node, value);
    case TMPL_NODE_CALL: return eval_call(run, node, value);
    case TMPL_NODE_FILTER:
    case TMPL_NODE_TEST: return eval_builtin(run, node, value);
    case TMPL_NODE_NOT: return eval_not(run, node, value);
    case TMPL_NODE_NEGATIVE:
    case TMPL_NODE_POSITIVE: return eval_sign(run, node, value);
    case TMPL_NODE_AND:
    case TMPL_NODE_OR: return eval_logic(run, node, value);
    case TMPL_NODE_CONCAT: return eval_concat(run, node, value);
    case TMPL_NODE_ARITHMETIC: return eval_arithmetic(run, node, value);
    case TMPL_NODE_COMPARE: return eval_compare(run, node, value);
    case TMPL_NODE_CONDITION: return eval_condition(run, node, value);
    default: break;
    }
    return tmpl_fail(&run->heap, ST_INVAL, "not an expression");
}

enum status tmpl_evaluate(struct tmpl_run *run, const struct tmpl_node *node, struct tmpl_value *value)
{
    if (node->kind == TMPL_NODE_CONSTANT) {
        *value = node->value;
        return ST_OK;
    }
    if (run->nesting >= CALL_FRAMES_PER_LEVEL * run->heap.depth_limit)
        return tmpl_fail(&run->heap, ST_LIMIT, "nested deeper than %u levels", run->heap.depth_limit);
    TRY(tmpl_charge(&run->heap, 1));
    run->nesting++;
    TRY(evaluate(run, node, value));
    run->nesting--;
    return ST_OK;
}
