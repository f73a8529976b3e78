/* Tests: `value is name`. Meaning: jinja2 3.1.6, tests.py. */
#include "runtime/text/template_builtin.h"
#include "runtime/text/template_print.h"

#include <string.h>

static enum status give(struct tmpl_call *call, bool holds)
{
    *call->result = tmpl_bool(holds);
    return ST_OK;
}

static bool is_kind(const struct tmpl_call *call, enum tmpl_kind kind)
{
    return call->self->kind == kind;
}

static enum status test_defined(struct tmpl_call *call)
{
    return give(call, !is_kind(call, TMPL_UNDEFINED));
}
static enum status test_undefined(struct tmpl_call *call)
{
    return give(call, is_kind(call, TMPL_UNDEFINED));
}
static enum status test_none(struct tmpl_call *call)
{
    return give(call, is_kind(call, TMPL_NONE));
}
static enum status test_string(struct tmpl_call *call)
{
    return give(call, is_kind(call, TMPL_TEXT));
}
static enum status test_number(struct tmpl_call *call)
{
    return give(call, tmpl_is_number(call->self));
}
static enum status test_integer(struct tmpl_call *call)
{
    return give(call, is_kind(call, TMPL_INT));
}
static enum status test_float(struct tmpl_call *call)
{
    return give(call, is_kind(call, TMPL_FLOAT));
}
static enum status test_boolean(struct tmpl_call *call)
{
    return give(call, is_kind(call, TMPL_BOOL));
}
static enum status test_true(struct tmpl_call *call)
{
    return give(call, is_kind(call, TMPL_BOOL) && call->self->boolean);
}
static enum status test_false(struct tmpl_call *call)
{
    return give(call, is_kind(call, TMPL_BOOL) && !call->self->boolean);
}
static enum status test_mapping(struct tmpl_call *call)
{
    return give(call, is_kind(call, TMPL_DICT));
}
/* What is undefined has a __call__ too: one that raises. */
static enum status test_callable(struct tmpl_call *call)
{
    return give(call, is_kind(call, TMPL_CALLABLE) || is_kind(call, TMPL_UNDEFINED));
}
static enum status test_escaped(struct tmpl_call *call)
{
    return give(call, is_kind(call, TMPL_TEXT) && call->self->markup);
}

/* What has a length and items by key or position; of what is undefined both questions are answered with yes. */
static enum status test_sequence(struct tmpl_call *call)
{
    const struct tmpl_value *self = call->self;
    bool list = self->kind == TMPL_LIST && self->list->flavor <= TMPL_FLAVOR_RANGE;
    return give(call, list || self->kind == TMPL_TEXT || self->kind == TMPL_DICT || self->kind == TMPL_UNDEFINED);
}

static enum status test_iterable(struct tmpl_call *call)
{
    uint8_t kind = call->self->kind;
    return give(call, kind == TMPL_LIST || kind == TMPL_TEXT || kind == TMPL_DICT || kind == TMPL_UNDEFINED ||
                          kind == TMPL_LOOP);
}

static enum status remainder_of(struct tmpl_call *call, int64_t divisor, int64_t *remainder)
{
    struct tmpl_value by = tmpl_int(divisor, true), result;
    TRY(tmpl_operate(call->run, TMPL_OP_MODULO, call->self, &by, &result));
    *remainder = result.kind == TMPL_FLOAT ? (result.number == 0 ? 0 : result.number == 1 ? 1 : 2) : result.integer;
    return ST_OK;
}

static enum status test_odd(struct tmpl_call *call)
{
    int64_t remainder;
    TRY(remainder_of(call, 2, &remainder));
    return give(call, remainder == 1);
}

static enum status test_even(struct tmpl_call *call)
{
    int64_t remainder;
    TRY(remainder_of(call, 2, &remainder));
    return give(call, remainder == 0);
}

static enum status test_divisibleby(struct tmpl_call *call)
{
    int64_t divisor, remainder;
    TRY(tmpl_int_argument(call, 0, 0, &divisor));
    TRY(remainder_of(call, divisor, &remainder));
    return give(call, remainder == 0);
}

static enum status test_equal(struct tmpl_call *call)
{
    bool equal;
    TRY(tmpl_equal(call->heap, call->self, &call->args[0], &equal));
    return give(call, equal);
}

static enum status test_not_equal(struct tmpl_call *call)
{
    bool equal;
    TRY(tmpl_equal(call->heap, call->self, &call->args[0], &equal));
    return give(call, !equal);
}

static enum status test_less(struct tmpl_call *call)
{
    int order;
    TRY(tmpl_order(call->heap, call->self, &call->args[0], &order));
    return give(call, order == -1);
}

static enum status test_less_equal(struct tmpl_call *call)
{
    int order;
    TRY(tmpl_order(call->heap, call->self, &call->args[0], &order));
    return give(call, order == -1 || order == 0);
}

static enum status test_greater(struct tmpl_call *call)
{
    int order;
    TRY(tmpl_order(call->heap, call->self, &call->args[0], &order));
    return give(call, order == 1);
}

static enum status test_greater_equal(struct tmpl_call *call)
{
    int order;
    TRY(tmpl_order(call->heap, call->self, &call->args[0], &order));
    return give(call, order == 1 || order == 0);
}

static enum status test_in(struct tmpl_call *call)
{
    bool contains;
    TRY(tmpl_contains(call->heap, &call->args[0], call->self, &contains));
    return give(call, contains);
}

/* Identity: for what a template can hold, the same kind and, where copies are one object in Python, the same value. */
static enum status test_sameas(struct tmpl_call *call)
{
    const struct tmpl_value *a = call->self, *b = &call->args[0];
    if (a->kind != b->kind) return give(call, false);
    if (a->kind == TMPL_LIST) return give(call, a->list == b->list);
    if (a->kind == TMPL_DICT) return give(call, a->dict == b->dict);
    return test_equal(call);
}

static enum status has_case(struct tmpl_call *call, enum tmpl_case wanted)
{
    struct tmpl_text text, same, other;
    TRY(tmpl_str(call->heap, call->self, &text));
    TRY(tmpl_change_case(call->heap, text, wanted, &same));
    TRY(tmpl_change_case(call->heap, text, wanted == TMPL_CASE_UPPER ? TMPL_CASE_LOWER : TMPL_CASE_UPPER, &other));
    return give(call, tmpl_text_equal(same, text) && !tmpl_text_equal(same, other));
}

static enum status test_upper(struct tmpl_call *call)
{
    return has_case(call, TMPL_CASE_UPPER);
}
static enum status test_lower(struct tmpl_call *call)
{
    return has_case(call, TMPL_CASE_LOWER);
}

static enum status test_filter(struct tmpl_call *call)
{
    const struct tmpl_text name = call->self->text;
    return give(call, is_kind(call, TMPL_TEXT) && tmpl_find_filter(tmpl_text_data(name), name.length));
}

static enum status test_test(struct tmpl_call *call)
{
    const struct tmpl_text name = call->self->text;
    return give(call, is_kind(call, TMPL_TEXT) && tmpl_find_test(tmpl_text_data(name), name.length));
}

static const struct tmpl_builtin tests[] = {
    {"defined", test_defined, "", 0},
    {"undefined", test_undefined, "", 0},
    {"none", test_none, "", 0},
    {"string", test_string, "", 0},
    {"number", test_number, "", 0},
    {"integer", test_integer, "", 0},
    {"float", test_float, "", 0},
    {"boolean", test_boolean, "", 0},
    {"true", test_true, "", 0},
    {"false", test_false, "", 0},
    {"mapping", test_mapping, "", 0},
    {"sequence", test_sequence, "", 0},
    {"iterable", test_iterable, "", 0},
    {"callable", test_callable, "", 0},
    {"escaped", test_escaped, "", 0},
    {"odd", test_odd, "", 0},
    {"even", test_even, "", 0},
    {"divisibleby", test_divisibleby, "num", 1},
    {"eq", test_equal, "other", 1},
    {"equalto", test_equal, "other", 1},
    {"==", test_equal, "other", 1},
    {"ne", test_not_equal, "other", 1},
    {"!=", test_not_equal, "other", 1},
    {"lt", test_less, "other", 1},
    {"lessthan", test_less, "other", 1},
    {"<", test_less, "other", 1},
    {"le", test_less_equal, "other", 1},
    {"<=", test_less_equal, "other", 1},
    {"gt", test_greater, "other", 1},
    {"greaterthan", test_greater, "other", 1},
    {">", test_greater, "other", 1},
    {"ge", test_greater_equal, "other", 1},
    {">=", test_greater_equal, "other", 1},
    {"in", test_in, "seq", 1},
    {"sameas", test_sameas, "other", 1},
    {"upper", test_upper, "", 0},
    {"lower", test_lower, "", 0},
    {"filter", test_filter, "", 0},
    {"test", test_test, "", 0},
    {NULL, NULL, NULL, 0},
};

const struct tmpl_builtin *tmpl_find_test(const char *name, size_t length)
{
    return tmpl_find_in(tests, name, length);
}
