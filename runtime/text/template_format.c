/* Python's printf-style formatting, for the filter `format` and the operator % on strings.
 *
 *   '%s is %05.1f' % ('x', 2.5)      -> directives of the format take items of a tuple, in order
 *   '%(a)s' % {'a': 1}               -> or entries of a dictionary
 *   '%d' % 7                         -> or the one value itself
 *
 * Characters of the format and of strings keep their origin, digits have that of their number, and what fills a width
 * that of its directive. Markup escapes what it takes in. Left out and refused: '*' as a width, %a, and '#' with
 * floats. Source: CPython 3.11, unicode_format.c; markupsafe 3.0, Markup.__mod__. */
#include "runtime/text/template_builtin.h"
#include "runtime/text/template_print.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

enum { WIDTH_MAX = 1024, PRECISION_MAX = 100 };

struct operand {
    const struct tmpl_value *whole, *items; /* items of a tuple, or the whole as the only one */
    uint32_t count, next;
};

struct directive {
    bool left, zero, plus, space, alternate;
    uint32_t width;
    int precision; /* -1: none */
    char type;
    bool trusted; /* the origin of its percent sign */
};

/* What a directive prints: sign and prefix, then digits or a text, to be filled up to the width. */
struct piece {
    char sign[4];
    struct tmpl_text body;
    bool number;
};

static enum status refused(struct tmpl_heap *heap, const char *why)
{
    return tmpl_fail(heap, ST_INVAL, "format: %s", why);
}

static enum status read_count(struct tmpl_heap *heap, const char *data, size_t length, size_t *at, uint32_t max,
                              uint32_t *count)
{
    for (*count = 0; *at < length && data[*at] >= '0' && data[*at] <= '9'; ++*at) {
        *count = *count * 10 + (uint32_t)(data[*at] - '0');
        if (*count > max) return tmpl_fail(heap, ST_LIMIT, "format: a width or precision above %u", max);
    }
    return ST_OK;
}

/* Flags, width, precision and type, from behind the percent sign and a name. */
static enum status read_directive(struct tmpl_heap *heap, struct tmpl_text format, size_t *at,
                                  struct directive *directive)
{
    const char *data = tmpl_text_data(format);
    size_t length = format.length;
    uint32_t count;
    for (; *at < length && data[*at] && strchr("-0+ #", data[*at]); ++*at) {
        directive->left |= data[*at] == '-';
        directive->zero |= data[*at] == '0';
        directive->plus |= data[*at] == '+';
        directive->space |= data[*at] == ' ';
        directive->alternate |= data[*at] == '#';
    }
    TRY(read_count(heap, data, length, at, WIDTH_MAX, &directive->width));
    directive->precision = -1;
    if (*at < length && data[*at] == '.') {
        ++*at;
        TRY(read_count(heap, data, length, at, PRECISION_MAX, &count));
        directive->precision = (int)count;
    }
    if (*at < length && (data[*at] == 'h' || data[*at] == 'l' || data[*at] == 'L')) ++*at;
    if (*at == length) return refused(heap, "the string ends inside a directive");
    directive->type = data[(*at)++];
    return ST_OK;
}

/* The value that the directive prints; *at behind "%" is moved behind a "(name)". */
static enum status take_value(struct tmpl_heap *heap, struct tmpl_text format, size_t *at, struct operand *operand,
                              const struct tmpl_value **value)
{
    const char *data = tmpl_text_data(format);
    *value = NULL;
    if (*at == format.length || data[*at] != '(') return ST_OK;
    const char *close = memchr(data + *at, ')', format.length - *at);
    if (!close) return refused(heap, "a name without its closing bracket");
    if (operand->whole->kind != TMPL_DICT) return refused(heap, "a name needs a mapping");
    size_t end = (size_t)(close - data);
    struct tmpl_value key = tmpl_from_text(tmpl_text_part(format, *at + 1, end - *at - 1));
    TRY(tmpl_dict_get(heap, operand->whole->dict, &key, value));
    if (!*value) return refused(heap, "the mapping has no such name");
    *at = end + 1;
    return ST_OK;
}

static enum status whole_number(struct tmpl_heap *heap, const struct tmpl_value *value, bool truncate, int64_t *number)
{
    if (tmpl_is_int(value)) {
        *number = tmpl_as_int(value);
        return ST_OK;
    }
    if (value->kind != TMPL_FLOAT || !truncate) return refused(heap, "a number is expected");
    if (!(fabs(value->number) < 9223372036854775808.0)) return refused(heap, "an integer does not fit 64 bits");
    *number = (int64_t)value->number;
    return ST_OK;
}

static void set_sign(const struct directive *directive, bool negative, struct piece *piece)
{
    snprintf(piece->sign, sizeof piece->sign, "%s",
             negative           ? "-"
             : directive->plus  ? "+"
             : directive->space ? " "
                                : "");
}

static enum status print_integer(struct tmpl_heap *heap, const struct directive *directive,
                                 const struct tmpl_value *value, struct piece *piece)
{
    int64_t number;
    char digits[PRECISION_MAX + 32];
    char type = directive->type;
    bool decimal = type == 'd' || type == 'i' || type == 'u';
    int least = directive->precision > 0 ? directive->precision : 1;
    TRY(whole_number(heap, value, decimal, &number));
    uint64_t magnitude = number < 0 ? 0 - (uint64_t)number : (uint64_t)number;
    if (type == 'x')
        snprintf(digits, sizeof digits, "%.*" PRIx64, least, magnitude);
    else if (type == 'X')
        snprintf(digits, sizeof digits, "%.*" PRIX64, least, magnitude);
    else if (type == 'o')
        snprintf(digits, sizeof digits, "%.*" PRIo64, least, magnitude);
    else
        snprintf(digits, sizeof digits, "%.*" PRIu64, least, magnitude);
    set_sign(directive, number < 0, piece);
    if (directive->alternate && !decimal) {
        size_t at = strlen(piece->sign);
        piece->sign[at] = '0';
        piece->sign[at + 1] = type;
        piece->sign[at + 2] = '\0';
    }
    piece->number = true;
    return tmpl_text_append_bytes(heap, &piece->body, digits, strlen(digits), value->trusted);
}

static enum status print_float(struct tmpl_heap *heap, const struct directive *directive,
                               const struct tmpl_value *value, struct piece *piece)
{
    char digits[512];
    int precision = directive->precision < 0 ? 6 : directive->precision;
    if (!tmpl_is_number(value)) return refused(heap, "a number is expected");
    if (directive->alternate) return refused(heap, "'#' with a float is not supported");
    double number = tmpl_as_number(value), magnitude = fabs(number);
    switch (directive->type) {
    case 'e': snprintf(digits, sizeof digits, "%.*e", precision, magnitude); break;
    case 'E': snprintf(digits, sizeof digits, "%.*E", precision, magnitude); break;
    case 'g': snprintf(digits, sizeof digits, "%.*g", precision, magnitude); break;
    case 'G': snprintf(digits, sizeof digits, "%.*G", precision, magnitude); break;
    case 'F': snprintf(digits, sizeof digits, "%.*F", precision, magnitude); break;
    default: snprintf(digits, sizeof digits, "%.*f", precision, magnitude);
    }
    set_sign(directive, signbit(number) && !isnan(number), piece);
    piece->number = true;
    return tmpl_text_append_bytes(heap, &piece->body, digits, strlen(digits), value->trusted);
}

static enum status print_char(struct tmpl_heap *heap, const struct tmpl_value *value, struct tmpl_text *body)
{
    if (value->kind == TMPL_TEXT) {
        if (tmpl_text_codepoints(value->text) != 1) return refused(heap, "%c needs one character");
        *body = value->text;
        return ST_OK;
    }
    int64_t number;
    TRY(whole_number(heap, value, false, &number));
    if (number < 0 || number > 0x10ffff || (number >= 0xd800 && number < 0xe000))
        return refused(heap, "%c needs a character");
    return tmpl_text_append_char(heap, body, (uint32_t)number, value->trusted);
}

static enum status print_text(struct tmpl_heap *heap, const struct directive *directive, const struct tmpl_value *value,
                              bool markup, struct tmpl_text *body)
{
    bool repr = directive->type == 'r';
    if (repr)
        TRY(tmpl_repr(heap, value, body));
    else
        TRY(tmpl_str(heap, value, body));
    if (markup && (repr || value->kind != TMPL_TEXT || !value->markup)) TRY(tmpl_escape(heap, *body, body));
    if (directive->precision >= 0)
        *body = tmpl_text_part(*body, 0, tmpl_text_byte_of(*body, (size_t)directive->precision));
    return ST_OK;
}

static enum status fill(struct tmpl_heap *heap, struct tmpl_text *out, const char *with, size_t count, bool trusted)
{
    for (size_t i = 0; i < count; i++) TRY(tmpl_text_append_bytes(heap, out, with, 1, trusted));
    return ST_OK;
}

static enum status append_piece(struct tmpl_heap *heap, const struct directive *directive, const struct piece *piece,
                                bool number_trusted, struct tmpl_text *out)
{
    size_t used = strlen(piece->sign) + tmpl_text_codepoints(piece->body);
    size_t missing = used < directive->width ? directive->width - used : 0;
    bool zeros = directive->zero && piece->number && !directive->left;
    if (!directive->left && !zeros) TRY(fill(heap, out, " ", missing, directive->trusted));
    TRY(tmpl_text_append_bytes(heap, out, piece->sign, strlen(piece->sign), number_trusted));
    if (zeros) TRY(fill(heap, out, "0", missing, directive->trusted));
    TRY(tmpl_text_append(heap, out, piece->body));
    return directive->left ? fill(heap, out, " ", missing, directive->trusted) : ST_OK;
}

static enum status print_directive(struct tmpl_heap *heap, const struct directive *directive,
                                   const struct tmpl_value *value, bool markup, struct tmpl_text *out)
{
    struct piece piece = {0};
    switch (directive->type) {
    case 's':
    case 'r': TRY(print_text(heap, directive, value, markup, &piece.body)); break;
    case 'c': TRY(print_char(heap, value, &piece.body)); break;
    case 'd':
    case 'i':
    case 'u':
    case 'o':
    case 'x':
    case 'X': TRY(print_integer(heap, directive, value, &piece)); break;
    case 'e':
    case 'E':
    case 'f':
    case 'F':
    case 'g':
    case 'G': TRY(print_float(heap, directive, value, &piece)); break;
    default: return refused(heap, "a directive that is not supported");
    }
    return append_piece(heap, directive, &piece, value->trusted, out);
}

/* One directive at *at, which stands on its percent sign. */
static enum status one_directive(struct tmpl_heap *heap, const struct tmpl_value *format, size_t *at,
                                 struct operand *operand, struct tmpl_text *out)
{
    struct directive directive = {.trusted = tmpl_text_trusted_at(format->text, *at)};
    const struct tmpl_value *value;
    size_t sign = (*at)++;
    if (*at < format->text.length && tmpl_text_data(format->text)[*at] == '%') {
        ++*at;
        return tmpl_text_append(heap, out, tmpl_text_part(format->text, sign, 1));
    }
    TRY(take_value(heap, format->text, at, operand, &value));
    TRY(read_directive(heap, format->text, at, &directive));
    if (format->markup && strchr("cxXo", directive.type)) return refused(heap, "markup takes no %c, %x, %X and %o");
    if (!value) {
        if (operand->next == operand->count) return refused(heap, "not enough values for the directives");
        value = &operand->items[operand->next++];
    }
    return print_directive(heap, &directive, value, format->markup, out);
}

enum status tmpl_format(struct tmpl_heap *heap, const struct tmpl_value *format, const struct tmpl_value *values,
                        struct tmpl_value *result)
{
    bool tuple = values->kind == TMPL_LIST && values->list->flavor == TMPL_FLAVOR_TUPLE;
    /* What has items by key may stay unused, as in Python. */
    bool keyed = values->kind == TMPL_DICT || (values->kind == TMPL_LIST && values->list->flavor <= TMPL_FLAVOR_RANGE);
    struct operand operand = {values, tuple ? values->list->items : values, tuple ? values->list->count : 1, 0};
    struct tmpl_text out = {0}, text = format->text;
    const char *data = tmpl_text_data(text);
    TRY(tmpl_charge_bytes(heap, text.length));
    for (size_t at = 0; at < text.length;) {
        const char *sign = memchr(data + at, '%', text.length - at);
        size_t end = sign ? (size_t)(sign - data) : text.length;
        TRY(tmpl_charge(heap, 1));
        TRY(tmpl_text_append(heap, &out, tmpl_text_part(text, at, end - at)));
        at = end;
        if (sign) TRY(one_directive(heap, format, &at, &operand, &out));
    }
    if (operand.next < operand.count && (tuple || !keyed)) return refused(heap, "more values than directives");
    *result = tmpl_text_like(out, format);
    return ST_OK;
}
