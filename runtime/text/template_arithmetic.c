/* Python's arithmetic on template values; integers are 64 bits and overflow is refused. See tmpl_operate. */
#include "runtime/text/template_run.h"

#include "runtime/base/limits.h"
#include "runtime/text/template_builtin.h"

#include <math.h>

static enum status wrong_types(struct tmpl_run *run, const struct tmpl_value *a, const struct tmpl_value *b)
{
    const struct tmpl_value *missing = a->kind == TMPL_UNDEFINED ? a : b;
    if (missing->kind == TMPL_UNDEFINED)
        return tmpl_fail(&run->heap, ST_INVAL, "'%.80s' is undefined", missing->name ? missing->name : "value");
    return tmpl_fail(&run->heap, ST_INVAL, "unsupported operand types: '%s' and '%s'", tmpl_type_name(a),
                     tmpl_type_name(b));
}

/* base ** exponent for exponent >= 0; false when it does not fit. */
static bool power(int64_t base, int64_t exponent, int64_t *result)
{
    *result = 1;
    while (exponent) {
        if ((exponent & 1) && __builtin_mul_overflow(*result, base, result)) return false;
        exponent >>= 1;
        if (exponent && __builtin_mul_overflow(base, base, &base)) return false;
    }
    return true;
}

static enum status operate_ints(struct tmpl_run *run, enum tmpl_op op, int64_t x, int64_t y, int64_t *z)
{
    bool fits = true;
    if ((op == TMPL_OP_FLOOR_DIVIDE || op == TMPL_OP_MODULO) && !y)
        return tmpl_fail(&run->heap, ST_INVAL, "division by zero");
    switch (op) {
    case TMPL_OP_ADD: fits = !__builtin_add_overflow(x, y, z); break;
    case TMPL_OP_SUBTRACT: fits = !__builtin_sub_overflow(x, y, z); break;
    case TMPL_OP_MULTIPLY: fits = !__builtin_mul_overflow(x, y, z); break;
    case TMPL_OP_POWER: fits = power(x, y, z); break;
    case TMPL_OP_FLOOR_DIVIDE:
        fits = !(x == INT64_MIN && y == -1);
        if (fits) *z = x / y - (x % y != 0 && (x < 0) != (y < 0));
        break;
    default: /* modulo: the sign of the divisor */
        *z = y == -1 ? 0 : x % y;
        if (*z && (*z < 0) != (y < 0)) *z += y;
    }
    return fits ? ST_OK : tmpl_fail(&run->heap, ST_INVAL, "an integer does not fit 64 bits");
}

static enum status operate_floats(struct tmpl_run *run, enum tmpl_op op, double x, double y, double *z)
{
    bool divides = op == TMPL_OP_DIVIDE || op == TMPL_OP_FLOOR_DIVIDE || op == TMPL_OP_MODULO;
    if (divides && y == 0) return tmpl_fail(&run->heap, ST_INVAL, "division by zero");
    double modulo = fmod(x, y);
    if (modulo != 0 && (modulo < 0) != (y < 0)) modulo += y;
    switch (op) {
    case TMPL_OP_ADD: *z = x + y; break;
    case TMPL_OP_SUBTRACT: *z = x - y; break;
    case TMPL_OP_MULTIPLY: *z = x * y; break;
    case TMPL_OP_DIVIDE: *z = x / y; break;
    case TMPL_OP_MODULO: *z = modulo == 0 ? copysign(0.0, y) : modulo; break;
    case TMPL_OP_FLOOR_DIVIDE: *z = floor((x - modulo) / y + 0.5); break;
    default: /* power */
        if ((x < 0 && y != floor(y)) || (x == 0 && y < 0))
            return tmpl_fail(&run->heap, ST_INVAL, "a power is not real");
        *z = pow(x, y);
        if (isinf(*z) && !isinf(x) && !isinf(y)) return tmpl_fail(&run->heap, ST_INVAL, "a power is too large");
    }
    return ST_OK;
}

static enum status operate_numbers(struct tmpl_run *run, enum tmpl_op op, const struct tmpl_value *a,
                                   const struct tmpl_value *b, struct tmpl_value *result)
{
    bool trusted = a->trusted && b->trusted, ints = tmpl_is_int(a) && tmpl_is_int(b);
    if (ints && op != TMPL_OP_DIVIDE && !(op == TMPL_OP_POWER && tmpl_as_int(b) < 0)) {
        int64_t z = 0;
        TRY(operate_ints(run, op, tmpl_as_int(a), tmpl_as_int(b), &z));
        *result = tmpl_int(z, trusted);
        return ST_OK;
    }
    double z = 0;
    TRY(operate_floats(run, op, tmpl_as_number(a), tmpl_as_number(b), &z));
    *result = tmpl_float(z, trusted);
    return ST_OK;
}

static bool is_sequence(const struct tmpl_value *v)
{
    return v->kind == TMPL_TEXT || (v->kind == TMPL_LIST && v->list->flavor <= TMPL_FLAVOR_TUPLE);
}

static enum status append_all(struct tmpl_run *run, struct tmpl_list *to, const struct tmpl_list *from)
{
    TRY(tmpl_charge(&run->heap, from->count));
    for (uint32_t i = 0; i < from->count; i++) TRY(tmpl_list_add(&run->heap, to, from->items[i]));
    return ST_OK;
}

static enum status add_sequences(struct tmpl_run *run, const struct tmpl_value *a, const struct tmpl_value *b,
                                 struct tmpl_value *result)
{
    if (a->kind == TMPL_TEXT) {
        struct tmpl_text text = a->text, tail = b->text;
        if (a->markup && !b->markup) TRY(tmpl_escape(&run->heap, b->text, &tail));
        if (b->markup && !a->markup) TRY(tmpl_escape(&run->heap, a->text, &text));
        TRY(tmpl_text_append(&run->heap, &text, tail));
        *result = tmpl_text_like(text, a->markup ? a : b);
        return ST_OK;
    }
    struct tmpl_list *list;
    TRY(tmpl_list_new(&run->heap, a->list->flavor, (size_t)a->list->count + b->list->count, &list));
    TRY(append_all(run, list, a->list));
    TRY(append_all(run, list, b->list));
    *result = tmpl_from_list(list);
    return ST_OK;
}

static enum status repeat(struct tmpl_run *run, const struct tmpl_value *sequence, int64_t times,
                          struct tmpl_value *result)
{
    struct tmpl_text text = {0};
    struct tmpl_list *list;
    if (times < 0) times = 0;
    if (sequence->kind == TMPL_TEXT) {
        uint64_t bytes;
        if (__builtin_mul_overflow((uint64_t)times, sequence->text.length, &bytes) ||
            bytes > limits.template_memory_bytes)
            return tmpl_fail(&run->heap, ST_LIMIT, "a repeated string needs too much memory");
        TRY(tmpl_charge(&run->heap, (uint64_t)times >> 6));
        for (int64_t i = 0; i < times && sequence->text.length; i++) {
            TRY(tmpl_text_append(&run->heap, &text, sequence->text));
        }
        *result = tmpl_text_like(text, sequence);
        return ST_OK;
    }
    TRY(tmpl_list_new(&run->heap, sequence->list->flavor, 0, &list));
    for (int64_t i = 0; i < times && sequence->list->count; i++) TRY(append_all(run, list, sequence->list));
    *result = tmpl_from_list(list);
    return ST_OK;
}

enum status tmpl_operate(struct tmpl_run *run, enum tmpl_op op, const struct tmpl_value *a, const struct tmpl_value *b,
                         struct tmpl_value *result)
{
    if (tmpl_is_number(a) && tmpl_is_number(b)) return operate_numbers(run, op, a, b, result);
    bool same = a->kind == b->kind && is_sequence(a) && is_sequence(b) &&
                (a->kind == TMPL_TEXT || a->list->flavor == b->list->flavor);
    if (op == TMPL_OP_ADD && same) return add_sequences(run, a, b, result);
    if (op == TMPL_OP_MULTIPLY && is_sequence(a) && tmpl_is_int(b)) return repeat(run, a, tmpl_as_int(b), result);
    if (op == TMPL_OP_MULTIPLY && is_sequence(b) && tmpl_is_int(a)) return repeat(run, b, tmpl_as_int(a), result);
    if (op == TMPL_OP_MODULO && a->kind == TMPL_TEXT) return tmpl_format(&run->heap, a, b, result);
    return wrong_types(run, a, b);
}
