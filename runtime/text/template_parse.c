/* Expressions of the grammar, and what both files of the parser share; see template_parse.h. */
#include "runtime/text/template_parse.h"

#include "runtime/text/template_builtin.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

/* ---- shared ---- */

enum status tmpl_parse_fail(struct tmpl_parser *parser, const char *format, ...)
{
    char message[256];
    va_list args;
    va_start(args, format);
    vsnprintf(message, sizeof message, format, args);
    va_end(args);
    parser->heap->line = parser->token->line;
    return tmpl_fail(parser->heap, ST_INVAL, "%s", message);
}

static bool at(const struct tmpl_parser *parser, enum tmpl_token_kind kind, const char *text)
{
    const struct tmpl_token *token = parser->token;
    return token->kind == kind && strlen(text) == token->length && memcmp(token->text, text, token->length) == 0;
}

bool tmpl_at_operator(const struct tmpl_parser *parser, const char *op)
{
    return at(parser, TMPL_TOKEN_OPERATOR, op);
}
bool tmpl_at_name(const struct tmpl_parser *parser, const char *name)
{
    return at(parser, TMPL_TOKEN_NAME, name);
}

bool tmpl_take_operator(struct tmpl_parser *parser, const char *op)
{
    bool found = tmpl_at_operator(parser, op);
    if (found) parser->token++;
    return found;
}

bool tmpl_take_name(struct tmpl_parser *parser, const char *name)
{
    bool found = tmpl_at_name(parser, name);
    if (found) parser->token++;
    return found;
}

static enum status unexpected(struct tmpl_parser *parser, const char *wanted)
{
    const struct tmpl_token *token = parser->token;
    int length = token->length < 40 ? (int)token->length : 40;
    const char *text = token->text;
    if (token->kind == TMPL_TOKEN_BLOCK_END) text = "%}", length = 2;
    if (token->kind == TMPL_TOKEN_VARIABLE_END) text = "}}", length = 2;
    return tmpl_parse_fail(parser, "expected %s, found '%.*s'", wanted, length, text);
}

enum status tmpl_expect_operator(struct tmpl_parser *parser, const char *op)
{
    char wanted[8];
    if (tmpl_take_operator(parser, op)) return ST_OK;
    snprintf(wanted, sizeof wanted, "'%s'", op);
    return unexpected(parser, wanted);
}

static enum status too_deep(struct tmpl_parser *parser, uint32_t line)
{
    parser->heap->line = line;
    return tmpl_fail(parser->heap, ST_LIMIT, "nested deeper than %u levels", parser->heap->depth_limit);
}

enum status tmpl_nest(struct tmpl_parser *parser)
{
    if (parser->depth >= parser->heap->depth_limit) return too_deep(parser, parser->token->line);
    parser->depth++;
    return ST_OK;
}

enum status tmpl_node_add(struct tmpl_parser *parser, struct tmpl_node_list *list, struct tmpl_node *node,
                          const char *name)
{
    if (list->count == list->capacity) {
        struct tmpl_node **nodes;
        const char **names;
        uint32_t capacity = list->capacity ? list->capacity * 2 : 4;
        TRY(tmpl_alloc(parser->heap, capacity, sizeof *nodes, &nodes));
        TRY(tmpl_alloc(parser->heap, capacity, sizeof *names, &names));
        if (list->count) memcpy(nodes, list->nodes, list->count * sizeof *nodes);
        if (list->count) memcpy(names, list->names, list->count * sizeof *names);
        list->nodes = nodes;
        list->names = names;
        list->capacity = capacity;
    }
    list->names[list->count] = name;
    list->nodes[list->count++] = node;
    return ST_OK;
}

enum status tmpl_node_new(struct tmpl_parser *parser, enum tmpl_node_kind kind, uint32_t line,
                          const struct tmpl_node_list *children, struct tmpl_node **result)
{
    struct tmpl_node *node;
    TRY(tmpl_alloc(parser->heap, 1, sizeof *node, &node));
    node->kind = kind;
    node->line = line;
    node->depth = 1;
    if (children) {
        node->children = children->nodes;
        node->names = children->names;
        node->count = children->count;
        for (uint32_t i = 0; i < children->count; i++)
            if (children->nodes[i] && children->nodes[i]->depth >= node->depth)
                node->depth = children->nodes[i]->depth + 1;
    }
    if (node->depth > parser->heap->depth_limit) return too_deep(parser, line);
    *result = node;
    return ST_OK;
}

enum status tmpl_node_of(struct tmpl_parser *parser, enum tmpl_node_kind kind, uint32_t line, uint32_t count,
                         struct tmpl_node *const *children, struct tmpl_node **node)
{
    struct tmpl_node_list list = {0};
    for (uint32_t i = 0; i < count; i++) TRY(tmpl_node_add(parser, &list, children[i], NULL));
    return tmpl_node_new(parser, kind, line, &list, node);
}

static enum status constant(struct tmpl_parser *parser, struct tmpl_value value, struct tmpl_node **node)
{
    TRY(tmpl_node_new(parser, TMPL_NODE_CONSTANT, parser->token->line, NULL, node));
    (*node)->value = value;
    return ST_OK;
}

enum status tmpl_symbol(struct tmpl_parser *parser, const char *name, size_t length, uint32_t *symbol)
{
    struct tmpl_symbols *symbols = &parser->tmpl->symbols;
    for (uint32_t i = 0; i < symbols->count; i++) {
        if (strlen(symbols->names[i]) != length || memcmp(symbols->names[i], name, length) != 0) continue;
        *symbol = i;
        return ST_OK;
    }
    if (symbols->count == symbols->capacity) {
        const char **names;
        uint32_t capacity = symbols->capacity ? symbols->capacity * 2 : 32;
        TRY(tmpl_alloc(parser->heap, capacity, sizeof *names, &names));
        if (symbols->count) memcpy(names, symbols->names, symbols->count * sizeof *names);
        symbols->names = names;
        symbols->capacity = capacity;
    }
    char *copy;
    TRY(tmpl_alloc(parser->heap, length + 1, 1, &copy));
    memcpy(copy, name, length);
    symbols->names[symbols->count] = copy;
    *symbol = symbols->count++;
    return ST_OK;
}

/* ---- primaries ---- */

static bool is_tuple_end(const struct tmpl_parser *parser, const char *until_name)
{
    enum tmpl_token_kind kind = parser->token->kind;
    return kind == TMPL_TOKEN_VARIABLE_END || kind == TMPL_TOKEN_BLOCK_END || tmpl_at_operator(parser, ")") ||
           (until_name && tmpl_at_name(parser, until_name));
}

static enum status parse_brackets(struct tmpl_parser *parser, struct tmpl_node **node)
{
    uint32_t line = parser->token->line;
    struct tmpl_node_list items = {0};
    bool tuple = false;
    parser->token++;
    while (!is_tuple_end(parser, NULL)) {
        struct tmpl_node *item;
        TRY(tmpl_parse_expression(parser, true, &item));
        TRY(tmpl_node_add(parser, &items, item, NULL));
        if (!tmpl_take_operator(parser, ",")) break;
        tuple = true;
    }
    TRY(tmpl_expect_operator(parser, ")"));
    if (items.count == 1 && !tuple) {
        *node = items.nodes[0];
        return ST_OK;
    }
    return tmpl_node_new(parser, TMPL_NODE_TUPLE, line, &items, node);
}

/* [a, b] and {a: b}. */
static enum status parse_list_or_dict(struct tmpl_parser *parser, struct tmpl_node **node)
{
    bool dict = tmpl_at_operator(parser, "{");
    const char *close = dict ? "}" : "]";
    uint32_t line = parser->token->line;
    struct tmpl_node_list items = {0};
    parser->token++;
    while (!tmpl_at_operator(parser, close)) {
        struct tmpl_node *item;
        if (items.count) TRY(tmpl_expect_operator(parser, ","));
        if (tmpl_at_operator(parser, close)) break;
        TRY(tmpl_parse_expression(parser, true, &item));
        TRY(tmpl_node_add(parser, &items, item, NULL));
        if (!dict) continue;
        TRY(tmpl_expect_operator(parser, ":"));
        TRY(tmpl_parse_expression(parser, true, &item));
        TRY(tmpl_node_add(parser, &items, item, NULL));
    }
    parser->token++;
    return tmpl_node_new(parser, dict ? TMPL_NODE_DICT : TMPL_NODE_LIST, line, &items, node);
}

static enum status parse_string(struct tmpl_parser *parser, struct tmpl_node **node)
{
    struct tmpl_text text = {0}, piece;
    TRY(constant(parser, tmpl_none(), node));
    do {
        TRY(tmpl_text_borrow(parser->heap, parser->token->text, parser->token->length, true, &piece));
        TRY(tmpl_text_append(parser->heap, &text, piece));
        parser->token++;
    } while (parser->token->kind == TMPL_TOKEN_STRING);
    if (text.store) text.store->capacity = 0; /* a render must not append to it in place */
    (*node)->value = tmpl_from_text(text);
    return ST_OK;
}

static enum status parse_name(struct tmpl_parser *parser, struct tmpl_node **node)
{
    bool yes = tmpl_at_name(parser, "true") || tmpl_at_name(parser, "True");
    bool no = tmpl_at_name(parser, "false") || tmpl_at_name(parser, "False");
    bool none = tmpl_at_name(parser, "none") || tmpl_at_name(parser, "None");
    struct tmpl_value value = none ? tmpl_none() : tmpl_bool(yes);
    value.trusted = true;
    TRY(constant(parser, value, node));
    if (!yes && !no && !none) {
        (*node)->kind = TMPL_NODE_NAME;
        TRY(tmpl_symbol(parser, parser->token->text, parser->token->length, &(*node)->symbol));
        parser->callers += (*node)->symbol == parser->tmpl->caller_symbol;
    }
    parser->token++;
    return ST_OK;
}

static enum status parse_primary(struct tmpl_parser *parser, struct tmpl_node **node)
{
    const struct tmpl_token *token = parser->token;
    enum status status;
    switch (token->kind) {
    case TMPL_TOKEN_NAME: return parse_name(parser, node);
    case TMPL_TOKEN_STRING: return parse_string(parser, node);
    case TMPL_TOKEN_INT: status = constant(parser, tmpl_int(token->integer, true), node); break;
    case TMPL_TOKEN_FLOAT: status = constant(parser, tmpl_float(token->number, true), node); break;
    default:
        if (tmpl_at_operator(parser, "(")) return parse_brackets(parser, node);
        if (tmpl_at_operator(parser, "[") || tmpl_at_operator(parser, "{")) return parse_list_or_dict(parser, node);
        return unexpected(parser, "an expression");
    }
    parser->token++;
    return status;
}

/* ---- postfix: subscripts, calls, filters, tests ---- */

static bool at_argument_name(const struct tmpl_parser *parser)
{
    const struct tmpl_token *token = parser->token;
    return token->kind == TMPL_TOKEN_NAME && token[1].kind == TMPL_TOKEN_OPERATOR && token[1].length == 1 &&
           *token[1].text == '=';
}

/* (a, b=c, *d, **e) into list, behind what it holds. *spreads: 1 if there is a *list, 2 if there is a **dict. */
static enum status parse_arguments(struct tmpl_parser *parser, struct tmpl_node_list *list, unsigned *spreads)
{
    bool named = false, first = true;
    *spreads = 0;
    TRY(tmpl_expect_operator(parser, "("));
    while (!tmpl_at_operator(parser, ")")) {
        struct tmpl_node *value;
        const char *name = NULL;
        uint32_t symbol;
        if (!first) TRY(tmpl_expect_operator(parser, ","));
        if (tmpl_at_operator(parser, ")")) break;
        first = false;
        if (tmpl_at_operator(parser, "*") || tmpl_at_operator(parser, "**")) {
            name = parser->token->length == 1 ? "*" : "**";
            if (*spreads & (parser->token->length == 1 ? 3 : 2))
                return tmpl_parse_fail(parser, "'%s' stands twice, or behind '**', in a call", name);
            *spreads |= parser->token->length == 1 ? 1 : 2;
            parser->token++;
        } else if (at_argument_name(parser)) {
            if (*spreads & 2) return tmpl_parse_fail(parser, "a named argument behind '**'");
            TRY(tmpl_symbol(parser, parser->token->text, parser->token->length, &symbol));
            name = parser->tmpl->symbols.names[symbol];
            parser->token += 2;
            named = true;
        } else if (named || *spreads) {
            return tmpl_parse_fail(parser, "a positional argument behind a named one");
        }
        TRY(tmpl_parse_expression(parser, true, &value));
        TRY(tmpl_node_add(parser, list, value, name));
    }
    parser->token++;
    return ST_OK;
}

static enum status parse_attribute(struct tmpl_parser *parser, struct tmpl_node **node)
{
    const struct tmpl_token *token = ++parser->token;
    if (token->kind == TMPL_TOKEN_INT) {
        struct tmpl_node *children[2] = {*node, NULL};
        TRY(constant(parser, tmpl_int(token->integer, true), &children[1]));
        parser->token++;
        return tmpl_node_of(parser, TMPL_NODE_ITEM, token->line, 2, children, node);
    }
    if (token->kind != TMPL_TOKEN_NAME) return unexpected(parser, "a name or number");
    parser->token++;
    TRY(tmpl_node_of(parser, TMPL_NODE_ATTRIBUTE, token->line, 1, node, node));
    (*node)->value.kind = TMPL_TEXT;
    return tmpl_text_borrow(parser->heap, token->text, token->length, true, &(*node)->value.text);
}

static bool at_slice_end(const struct tmpl_parser *parser)
{
    return tmpl_at_operator(parser, "]") || tmpl_at_operator(parser, ",") || tmpl_at_operator(parser, ":");
}

/* [key], [a, b] (a tuple) or [start:stop:step] around *node. */
static enum status parse_subscript(struct tmpl_parser *parser, struct tmpl_node **node)
{
    uint32_t line = parser->token->line;
    struct tmpl_node *parts[4] = {*node, NULL, NULL, NULL};
    struct tmpl_node_list keys = {0};
    uint32_t part = 1;
    parser->token++;
    if (tmpl_take_operator(parser, "]")) { /* jinja2 reads x[] as x[()] */
        TRY(tmpl_node_new(parser, TMPL_NODE_TUPLE, line, &keys, &parts[1]));
        return tmpl_node_of(parser, TMPL_NODE_ITEM, line, 2, parts, node);
    }
    if (!tmpl_at_operator(parser, ":")) TRY(tmpl_parse_expression(parser, true, &parts[1]));
    while (part < 3 && tmpl_take_operator(parser, ":")) {
        part++;
        if (!at_slice_end(parser)) TRY(tmpl_parse_expression(parser, true, &parts[part]));
    }
    if (part > 1) {
        TRY(tmpl_expect_operator(parser, "]"));
        return tmpl_node_of(parser, TMPL_NODE_SLICE, line, 4, parts, node);
    }
    if (tmpl_at_operator(parser, ",")) {
        TRY(tmpl_node_add(parser, &keys, parts[1], NULL));
        while (tmpl_take_operator(parser, ",")) {
            TRY(tmpl_parse_expression(parser, true, &parts[1]));
            TRY(tmpl_node_add(parser, &keys, parts[1], NULL));
        }
        TRY(tmpl_node_new(parser, TMPL_NODE_TUPLE, line, &keys, &parts[1]));
    }
    TRY(tmpl_expect_operator(parser, "]"));
    return tmpl_node_of(parser, TMPL_NODE_ITEM, line, 2, parts, node);
}

static enum status parse_call(struct tmpl_parser *parser, struct tmpl_node **node)
{
    uint32_t line = parser->token->line;
    struct tmpl_node_list list = {0};
    TRY(tmpl_node_add(parser, &list, *node, NULL));
    unsigned spreads;
    TRY(parse_arguments(parser, &list, &spreads));
    TRY(tmpl_node_new(parser, TMPL_NODE_CALL, line, &list, node));
    (*node)->spreads = spreads != 0;
    return ST_OK;
}

static enum status parse_postfix(struct tmpl_parser *parser, struct tmpl_node **node)
{
    for (;;) {
        if (tmpl_at_operator(parser, "."))
            TRY(parse_attribute(parser, node));
        else if (tmpl_at_operator(parser, "["))
            TRY(parse_subscript(parser, node));
        else if (tmpl_at_operator(parser, "("))
            TRY(parse_call(parser, node));
        else
            return ST_OK;
    }
}

/* A name that no table has is an error at once, except under a condition: there, as in jinja2, only when it is reached.
 */
static enum status unknown(struct tmpl_parser *parser, const char *what, const struct tmpl_token *token)
{
    if (parser->conditional) return ST_OK;
    return tmpl_parse_fail(parser, "there is no %s named '%.*s'", what, (int)(token->length < 60 ? token->length : 60),
                           token->text);
}

static enum status name_value(struct tmpl_parser *parser, const struct tmpl_token *token, struct tmpl_value *value)
{
    value->kind = TMPL_TEXT;
    return tmpl_text_borrow(parser->heap, token->text, token->length, true, &value->text);
}

enum status tmpl_parse_filters(struct tmpl_parser *parser, struct tmpl_node *value, bool first, struct tmpl_node **node)
{
    while (first || tmpl_take_operator(parser, "|")) {
        const struct tmpl_token *token = parser->token;
        struct tmpl_node_list list = {0};
        first = false;
        if (token->kind != TMPL_TOKEN_NAME) return unexpected(parser, "the name of a filter");
        const struct tmpl_builtin *builtin = tmpl_find_filter(token->text, token->length);
        parser->token++;
        while (tmpl_take_operator(parser, ".")) { /* a dotted name: part of the grammar, but no filter has one */
            if (parser->token++->kind != TMPL_TOKEN_NAME) return unexpected(parser, "the name of a filter");
            builtin = NULL;
        }
        if (!builtin) TRY(unknown(parser, "filter", token));
        TRY(tmpl_node_add(parser, &list, value, NULL));
        unsigned spreads = 0;
        if (tmpl_at_operator(parser, "(")) TRY(parse_arguments(parser, &list, &spreads));
        TRY(tmpl_node_new(parser, TMPL_NODE_FILTER, token->line, &list, &value));
        value->builtin = builtin;
        value->spreads = spreads != 0;
        TRY(name_value(parser, token, &value->value));
    }
    *node = value;
    return ST_OK;
}

static bool at_test_argument(const struct tmpl_parser *parser)
{
    enum tmpl_token_kind kind = parser->token->kind;
    if (kind == TMPL_TOKEN_NAME)
        return !tmpl_at_name(parser, "else") && !tmpl_at_name(parser, "or") && !tmpl_at_name(parser, "and");
    return kind == TMPL_TOKEN_STRING || kind == TMPL_TOKEN_INT || kind == TMPL_TOKEN_FLOAT ||
           tmpl_at_operator(parser, "[") || tmpl_at_operator(parser, "{");
}

static enum status parse_test(struct tmpl_parser *parser, struct tmpl_node **node)
{
    struct tmpl_node_list list = {0};
    unsigned spreads = 0;
    parser->token++;
    bool negated = tmpl_take_name(parser, "not");
    const struct tmpl_token *token = parser->token;
    if (token->kind != TMPL_TOKEN_NAME) return unexpected(parser, "the name of a test");
    const struct tmpl_builtin *builtin = tmpl_find_test(token->text, token->length);
    if (!builtin) TRY(unknown(parser, "test", token));
    parser->token++;
    TRY(tmpl_node_add(parser, &list, *node, NULL));
    if (tmpl_at_operator(parser, "(")) {
        TRY(parse_arguments(parser, &list, &spreads));
    } else if (at_test_argument(parser)) {
        struct tmpl_node *argument;
        if (tmpl_at_name(parser, "is")) return tmpl_parse_fail(parser, "tests cannot be chained with 'is'");
        TRY(parse_primary(parser, &argument));
        TRY(parse_postfix(parser, &argument));
        TRY(tmpl_node_add(parser, &list, argument, NULL));
    }
    TRY(tmpl_node_new(parser, TMPL_NODE_TEST, token->line, &list, node));
    (*node)->builtin = builtin;
    (*node)->spreads = spreads != 0;
    TRY(name_value(parser, token, &(*node)->value));
    return negated ? tmpl_node_of(parser, TMPL_NODE_NOT, token->line, 1, node, node) : ST_OK;
}

static enum status parse_unary(struct tmpl_parser *parser, bool with_filters, struct tmpl_node **node)
{
    uint32_t line = parser->token->line;
    TRY(tmpl_nest(parser));
    bool negative = tmpl_take_operator(parser, "-");
    if (negative || tmpl_take_operator(parser, "+")) {
        TRY(parse_unary(parser, false, node));
        TRY(tmpl_node_of(parser, negative ? TMPL_NODE_NEGATIVE : TMPL_NODE_POSITIVE, line, 1, node, node));
    } else {
        TRY(parse_primary(parser, node));
    }
    tmpl_unnest(parser);
    TRY(parse_postfix(parser, node));
    while (with_filters) {
        if (tmpl_at_operator(parser, "|"))
            TRY(tmpl_parse_filters(parser, *node, false, node));
        else if (tmpl_at_name(parser, "is"))
            TRY(parse_test(parser, node));
        else if (tmpl_at_operator(parser, "("))
            TRY(parse_call(parser, node));
        else
            break;
    }
    return ST_OK;
}

/* ---- binary operators, from the tightest ---- */

typedef enum status (*operand_fn)(struct tmpl_parser *parser, struct tmpl_node **node);

struct operators {
    const char *text;
    enum tmpl_op op;
};

static bool take_one_of(struct tmpl_parser *parser, const struct operators *set, enum tmpl_op *op)
{
    for (; set->text; set++) {
        if (!tmpl_take_operator(parser, set->text)) continue;
        *op = set->op;
        return true;
    }
    return false;
}

/* operand (op operand)*, from the left, as one flat node. */
static enum status parse_arithmetic(struct tmpl_parser *parser, const struct operators *set, operand_fn operand,
                                    struct tmpl_node **node)
{
    uint8_t ops_first[16], *ops = ops_first;
    uint32_t line = parser->token->line, capacity = sizeof ops_first;
    struct tmpl_node_list list = {0};
    enum tmpl_op op;
    TRY(operand(parser, node));
    while (take_one_of(parser, set, &op)) {
        if (!list.count) TRY(tmpl_node_add(parser, &list, *node, NULL));
        if (list.count > capacity) {
            uint8_t *more;
            TRY(tmpl_alloc(parser->heap, capacity * 2, 1, &more));
            memcpy(more, ops, capacity);
            ops = more;
            capacity *= 2;
        }
        ops[list.count - 1] = (uint8_t)op;
        TRY(operand(parser, node));
        TRY(tmpl_node_add(parser, &list, *node, NULL));
    }
    if (!list.count) return ST_OK;
    TRY(tmpl_node_new(parser, TMPL_NODE_ARITHMETIC, line, &list, node));
    TRY(tmpl_alloc(parser->heap, list.count, 1, &(*node)->ops));
    memcpy((*node)->ops, ops, list.count - 1);
    return ST_OK;
}

static enum status parse_operand(struct tmpl_parser *parser, struct tmpl_node **node)
{
    return parse_unary(parser, true, node);
}

static enum status parse_power(struct tmpl_parser *parser, struct tmpl_node **node)
{
    static const struct operators set[] = {{"**", TMPL_OP_POWER}, {NULL, 0}};
    return parse_arithmetic(parser, set, parse_operand, node);
}

static enum status parse_product(struct tmpl_parser *parser, struct tmpl_node **node)
{
    static const struct operators set[] = {
        {"*", TMPL_OP_MULTIPLY}, {"/", TMPL_OP_DIVIDE}, {"//", TMPL_OP_FLOOR_DIVIDE}, {"%", TMPL_OP_MODULO}, {NULL, 0}};
    return parse_arithmetic(parser, set, parse_power, node);
}

static enum status parse_concat(struct tmpl_parser *parser, struct tmpl_node **node)
{
    uint32_t line = parser->token->line;
    struct tmpl_node_list list = {0};
    TRY(parse_product(parser, node));
    if (!tmpl_at_operator(parser, "~")) return ST_OK;
    TRY(tmpl_node_add(parser, &list, *node, NULL));
    while (tmpl_take_operator(parser, "~")) {
        TRY(parse_product(parser, node));
        TRY(tmpl_node_add(parser, &list, *node, NULL));
    }
    return tmpl_node_new(parser, TMPL_NODE_CONCAT, line, &list, node);
}

static enum status parse_sum(struct tmpl_parser *parser, struct tmpl_node **node)
{
    static const struct operators set[] = {{"+", TMPL_OP_ADD}, {"-", TMPL_OP_SUBTRACT}, {NULL, 0}};
    return parse_arithmetic(parser, set, parse_concat, node);
}

static bool take_comparison(struct tmpl_parser *parser, enum tmpl_op *op)
{
    static const struct operators set[] = {{"==", TMPL_OP_EQUAL},
                                           {"!=", TMPL_OP_NOT_EQUAL},
                                           {"<", TMPL_OP_LESS},
                                           {"<=", TMPL_OP_LESS_EQUAL},
                                           {">", TMPL_OP_GREATER},
                                           {">=", TMPL_OP_GREATER_EQUAL},
                                           {NULL, 0}};
    if (take_one_of(parser, set, op)) return true;
    *op = TMPL_OP_IN;
    if (tmpl_take_name(parser, "in")) return true;
    const struct tmpl_token *next = parser->token + 1;
    if (!tmpl_at_name(parser, "not") || next->kind != TMPL_TOKEN_NAME || next->length != 2 ||
        memcmp(next->text, "in", 2) != 0)
        return false;
    parser->token += 2;
    *op = TMPL_OP_NOT_IN;
    return true;
}

static enum status parse_comparison(struct tmpl_parser *parser, struct tmpl_node **node)
{
    uint8_t ops[32];
    uint32_t line = parser->token->line;
    struct tmpl_node_list list = {0};
    enum tmpl_op op;
    TRY(parse_sum(parser, node));
    while (take_comparison(parser, &op)) {
        if (!list.count) TRY(tmpl_node_add(parser, &list, *node, NULL));
        if (list.count > sizeof ops) return tmpl_parse_fail(parser, "more than %zu comparisons in a chain", sizeof ops);
        ops[list.count - 1] = (uint8_t)op;
        TRY(parse_sum(parser, node));
        TRY(tmpl_node_add(parser, &list, *node, NULL));
    }
    if (!list.count) return ST_OK;
    TRY(tmpl_node_new(parser, TMPL_NODE_COMPARE, line, &list, node));
    TRY(tmpl_alloc(parser->heap, list.count, 1, &(*node)->ops));
    memcpy((*node)->ops, ops, list.count - 1);
    return ST_OK;
}

static enum status parse_not(struct tmpl_parser *parser, struct tmpl_node **node)
{
    uint32_t line = parser->token->line;
    if (!tmpl_take_name(parser, "not")) return parse_comparison(parser, node);
    TRY(tmpl_nest(parser));
    TRY(parse_not(parser, node));
    tmpl_unnest(parser);
    return tmpl_node_of(parser, TMPL_NODE_NOT, line, 1, node, node);
}

static enum status parse_logic(struct tmpl_parser *parser, const char *word, enum tmpl_node_kind kind,
                               operand_fn operand, struct tmpl_node **node)
{
    uint32_t line = parser->token->line;
    struct tmpl_node_list list = {0};
    TRY(operand(parser, node));
    if (!tmpl_at_name(parser, word)) return ST_OK;
    TRY(tmpl_node_add(parser, &list, *node, NULL));
    while (tmpl_take_name(parser, word)) {
        TRY(operand(parser, node));
        TRY(tmpl_node_add(parser, &list, *node, NULL));
    }
    return tmpl_node_new(parser, kind, line, &list, node);
}

static enum status parse_and(struct tmpl_parser *parser, struct tmpl_node **node)
{
    return parse_logic(parser, "and", TMPL_NODE_AND, parse_not, node);
}

static enum status parse_or(struct tmpl_parser *parser, struct tmpl_node **node)
{
    return parse_logic(parser, "or", TMPL_NODE_OR, parse_and, node);
}

enum status tmpl_parse_expression(struct tmpl_parser *parser, bool with_condition, struct tmpl_node **node)
{
    TRY(tmpl_nest(parser));
    uint32_t line = parser->token->line;
    TRY(parse_or(parser, node));
    while (with_condition && tmpl_take_name(parser, "if")) {
        struct tmpl_node *children[3] = {NULL, *node, NULL};
        TRY(parse_or(parser, &children[0]));
        if (tmpl_take_name(parser, "else")) TRY(tmpl_parse_expression(parser, true, &children[2]));
        TRY(tmpl_node_of(parser, TMPL_NODE_CONDITION, line, 3, children, node));
    }
    tmpl_unnest(parser);
    return ST_OK;
}

enum status tmpl_parse_tuple(struct tmpl_parser *parser, bool with_condition, const char *until_name,
                             struct tmpl_node **node)
{
    uint32_t line = parser->token->line;
    struct tmpl_node_list list = {0};
    bool tuple = false;
    while (!is_tuple_end(parser, until_name)) {
        TRY(tmpl_parse_expression(parser, with_condition, node));
        TRY(tmpl_node_add(parser, &list, *node, NULL));
        if (!tmpl_take_operator(parser, ",")) break;
        tuple = true;
    }
    if (tuple) return tmpl_node_new(parser, TMPL_NODE_TUPLE, line, &list, node);
    return list.count ? ST_OK : unexpected(parser, "an expression");
}
