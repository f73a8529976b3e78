/* Statements of the grammar; see template_parse.h. */
#include "runtime/text/template_parse.h"

#include "runtime/text/template_builtin.h"

#include <string.h>

static enum status parse_block(struct tmpl_parser *parser, const char *const *ends, struct tmpl_node **node);

static enum status expect_block_end(struct tmpl_parser *parser)
{
    if (parser->token->kind != TMPL_TOKEN_BLOCK_END) return tmpl_parse_fail(parser, "expected '%%}'");
    parser->token++;
    return ST_OK;
}

/* "%}", statements, "{%" and one of the ends, which stays the next token. */
static enum status parse_body(struct tmpl_parser *parser, const char *const *ends, struct tmpl_node **node)
{
    (void)tmpl_take_operator(parser, ":");
    TRY(expect_block_end(parser));
    return parse_block(parser, ends, node);
}

/* The same with a single end, which is taken. */
static enum status parse_whole_body(struct tmpl_parser *parser, const char *end, struct tmpl_node **node)
{
    const char *const ends[] = {end, NULL};
    TRY(parse_body(parser, ends, node));
    parser->token++;
    return ST_OK;
}

static enum status target_name(struct tmpl_parser *parser, bool with_namespace, struct tmpl_node **node)
{
    const struct tmpl_token *token = parser->token;
    static const char *const constants[] = {"true", "false", "True", "False", "none", "None"};
    if (token->kind != TMPL_TOKEN_NAME) return tmpl_parse_fail(parser, "expected a name to assign to");
    for (size_t i = 0; i < sizeof constants / sizeof *constants; i++)
        if (tmpl_at_name(parser, constants[i])) return tmpl_parse_fail(parser, "cannot assign to '%s'", constants[i]);
    TRY(tmpl_node_new(parser, TMPL_NODE_NAME, token->line, NULL, node));
    TRY(tmpl_symbol(parser, token->text, token->length, &(*node)->symbol));
    parser->token++;
    if (!with_namespace || !tmpl_take_operator(parser, ".")) return ST_OK;
    token = parser->token;
    if (token->kind != TMPL_TOKEN_NAME) return tmpl_parse_fail(parser, "expected the name of an attribute");
    parser->token++;
    (*node)->kind = TMPL_NODE_NAMESPACE_ATTRIBUTE;
    (*node)->value.kind = TMPL_TEXT;
    return tmpl_text_borrow(parser->heap, token->text, token->length, true, &(*node)->value.text);
}

enum status tmpl_parse_target(struct tmpl_parser *parser, bool with_namespace, struct tmpl_node **node)
{
    struct tmpl_node_list list = {0};
    uint32_t line = parser->token->line;
    bool tuple = false;
    bool bracket = tmpl_take_operator(parser, "(");
    do {
        if (list.count && parser->token->kind != TMPL_TOKEN_NAME) break;
        if (list.count && tmpl_at_name(parser, "in")) break;
        TRY(target_name(parser, with_namespace, node));
        TRY(tmpl_node_add(parser, &list, *node, NULL));
        if (!tmpl_at_operator(parser, ",")) break;
        tuple = true;
    } while (tmpl_take_operator(parser, ","));
    if (bracket) TRY(tmpl_expect_operator(parser, ")"));
    return tuple ? tmpl_node_new(parser, TMPL_NODE_TUPLE, line, &list, node) : ST_OK;
}

static enum status parse_for(struct tmpl_parser *parser, uint32_t line, struct tmpl_node **node)
{
    static const char *const ends[] = {"else", "endfor", NULL};
    struct tmpl_node *children[5] = {NULL, NULL, NULL, NULL, NULL};
    TRY(tmpl_parse_target(parser, false, &children[0]));
    if (children[0]->kind == TMPL_NODE_NAME && children[0]->symbol == parser->tmpl->loop_symbol)
        return tmpl_parse_fail(parser, "cannot assign to 'loop' in a for");
    if (!tmpl_take_name(parser, "in")) return tmpl_parse_fail(parser, "expected 'in'");
    TRY(tmpl_parse_tuple(parser, false, "recursive", &children[1]));
    if (tmpl_take_name(parser, "if")) TRY(tmpl_parse_expression(parser, true, &children[2]));
    if (tmpl_at_name(parser, "recursive")) return tmpl_parse_fail(parser, "recursive loops are not supported");
    parser->loops++;
    TRY(parse_body(parser, ends, &children[3]));
    parser->loops--;
    bool with_else = tmpl_at_name(parser, "else");
    parser->token++;
    if (with_else) TRY(parse_whole_body(parser, "endfor", &children[4]));
    return tmpl_node_of(parser, TMPL_NODE_FOR, line, 5, children, node);
}

static enum status parse_if(struct tmpl_parser *parser, uint32_t line, struct tmpl_node **node)
{
    static const char *const ends[] = {"elif", "else", "endif", NULL};
    struct tmpl_node_list list = {0};
    struct tmpl_node *part;
    bool more = true;
    while (more) {
        TRY(tmpl_parse_tuple(parser, false, NULL, &part));
        TRY(tmpl_node_add(parser, &list, part, NULL));
        parser->conditional++;
        TRY(parse_body(parser, ends, &part));
        parser->conditional--;
        TRY(tmpl_node_add(parser, &list, part, NULL));
        more = tmpl_take_name(parser, "elif");
    }
    bool with_else = tmpl_at_name(parser, "else");
    parser->token++;
    if (with_else) {
        parser->conditional++;
        TRY(parse_whole_body(parser, "endif", &part));
        parser->conditional--;
        TRY(tmpl_node_add(parser, &list, part, NULL));
    }
    return tmpl_node_new(parser, TMPL_NODE_IF, line, &list, node);
}

static enum status parse_set(struct tmpl_parser *parser, uint32_t line, struct tmpl_node **node)
{
    struct tmpl_node *children[3] = {NULL, NULL, NULL};
    TRY(tmpl_parse_target(parser, true, &children[0]));
    if (tmpl_take_operator(parser, "=")) {
        TRY(tmpl_parse_tuple(parser, true, NULL, &children[1]));
        return tmpl_node_of(parser, TMPL_NODE_SET, line, 2, children, node);
    }
    TRY(tmpl_parse_filters(parser, NULL, false, &children[1]));
    uint32_t loops = parser->loops;
    parser->loops = 0;
    TRY(parse_whole_body(parser, "endset", &children[2]));
    parser->loops = loops;
    return tmpl_node_of(parser, TMPL_NODE_SET_BLOCK, line, 3, children, node);
}

/* (a, b=default) and a body: the rest of a macro or a call block. */
static enum status parse_macro_rest(struct tmpl_parser *parser, uint32_t line, bool with_signature, const char *end,
                                    struct tmpl_node **node)
{
    struct tmpl_node_list list = {0};
    struct tmpl_node_list targets = {0};
    struct tmpl_node *body, *target, *value;
    TRY(tmpl_node_add(parser, &list, NULL, NULL)); /* the body's place */
    if (with_signature) TRY(tmpl_expect_operator(parser, "("));
    while (with_signature && !tmpl_at_operator(parser, ")")) {
        if (targets.count) TRY(tmpl_expect_operator(parser, ","));
        TRY(target_name(parser, false, &target));
        value = NULL;
        if (tmpl_take_operator(parser, "="))
            TRY(tmpl_parse_expression(parser, true, &value));
        else if (list.count > 1 && list.nodes[list.count - 1])
            return tmpl_parse_fail(parser, "a parameter without a default behind one with");
        TRY(tmpl_node_add(parser, &targets, target, NULL));
        TRY(tmpl_node_add(parser, &list, value, NULL));
    }
    if (with_signature) parser->token++;
    if (strcmp(end, "endcall") == 0) {
        /* The call stands between the signature and the body. */
        struct tmpl_node *call;
        TRY(tmpl_parse_expression(parser, true, &call));
        if (call->kind != TMPL_NODE_CALL) return tmpl_parse_fail(parser, "expected a call");
        *node = call;
    }
    uint32_t loops = parser->loops, callers = parser->callers;
    parser->loops = 0;
    TRY(parse_whole_body(parser, end, &body));
    parser->loops = loops;
    list.nodes[0] = body;
    struct tmpl_node *macro, *call = *node;
    TRY(tmpl_node_new(parser, TMPL_NODE_MACRO, line, &list, &macro));
    macro->takes_caller = parser->callers != callers;
    TRY(tmpl_alloc(parser->heap, targets.count, sizeof *macro->parameters, &macro->parameters));
    for (uint32_t i = 0; i < targets.count; i++) macro->parameters[i] = targets.nodes[i]->symbol;
    *node = macro;
    if (strcmp(end, "endcall") != 0) return ST_OK;
    macro->symbol = parser->tmpl->caller_symbol;
    struct tmpl_node *children[2] = {call, macro};
    return tmpl_node_of(parser, TMPL_NODE_CALL_BLOCK, line, 2, children, node);
}

static enum status parse_macro(struct tmpl_parser *parser, uint32_t line, struct tmpl_node **node)
{
    struct tmpl_node *name;
    TRY(target_name(parser, false, &name));
    *node = NULL;
    TRY(parse_macro_rest(parser, line, true, "endmacro", node));
    (*node)->symbol = name->symbol;
    return ST_OK;
}

static enum status parse_filter_block(struct tmpl_parser *parser, uint32_t line, struct tmpl_node **node)
{
    struct tmpl_node *children[2];
    TRY(tmpl_parse_filters(parser, NULL, true, &children[0]));
    TRY(parse_whole_body(parser, "endfilter", &children[1]));
    return tmpl_node_of(parser, TMPL_NODE_FILTER_BLOCK, line, 2, children, node);
}

static enum status parse_with(struct tmpl_parser *parser, uint32_t line, struct tmpl_node **node)
{
    struct tmpl_node_list list = {0};
    struct tmpl_node *part;
    TRY(tmpl_node_add(parser, &list, NULL, NULL)); /* the body's place */
    while (parser->token->kind != TMPL_TOKEN_BLOCK_END) {
        if (list.count > 1) TRY(tmpl_expect_operator(parser, ","));
        TRY(target_name(parser, false, &part));
        TRY(tmpl_node_add(parser, &list, part, NULL));
        TRY(tmpl_expect_operator(parser, "="));
        TRY(tmpl_parse_expression(parser, true, &part));
        TRY(tmpl_node_add(parser, &list, part, NULL));
    }
    TRY(parse_whole_body(parser, "endwith", &list.nodes[0]));
    return tmpl_node_new(parser, TMPL_NODE_WITH, line, &list, node);
}

static enum status parse_generation(struct tmpl_parser *parser, uint32_t line, struct tmpl_node **node)
{
    struct tmpl_node *body;
    TRY(parse_whole_body(parser, "endgeneration", &body));
    return tmpl_node_of(parser, TMPL_NODE_SCOPE, line, 1, &body, node);
}

static enum status parse_jump(struct tmpl_parser *parser, uint32_t line, enum tmpl_node_kind kind,
                              struct tmpl_node **node)
{
    if (!parser->loops) return tmpl_parse_fail(parser, "break and continue belong into a loop");
    return tmpl_node_new(parser, kind, line, NULL, node);
}

static enum status parse_call_block(struct tmpl_parser *parser, uint32_t line, struct tmpl_node **node)
{
    *node = NULL;
    return parse_macro_rest(parser, line, tmpl_at_operator(parser, "("), "endcall", node);
}

static enum status parse_print(struct tmpl_parser *parser, uint32_t line, struct tmpl_node **node)
{
    struct tmpl_node_list list = {0};
    struct tmpl_node *part;
    while (parser->token->kind != TMPL_TOKEN_BLOCK_END) {
        if (list.count) TRY(tmpl_expect_operator(parser, ","));
        TRY(tmpl_parse_expression(parser, true, &part));
        TRY(tmpl_node_of(parser, TMPL_NODE_OUTPUT, line, 1, &part, &part));
        TRY(tmpl_node_add(parser, &list, part, NULL));
    }
    return tmpl_node_new(parser, TMPL_NODE_BLOCK, line, &list, node);
}

static enum status parse_statement(struct tmpl_parser *parser, struct tmpl_node **node)
{
    const struct tmpl_token *token = parser->token;
    uint32_t line = token->line;
    if (token->kind != TMPL_TOKEN_NAME) return tmpl_parse_fail(parser, "expected the name of a tag");
    if (tmpl_take_name(parser, "for")) return parse_for(parser, line, node);
    if (tmpl_take_name(parser, "if")) return parse_if(parser, line, node);
    if (tmpl_take_name(parser, "set")) return parse_set(parser, line, node);
    if (tmpl_take_name(parser, "macro")) return parse_macro(parser, line, node);
    if (tmpl_take_name(parser, "call")) return parse_call_block(parser, line, node);
    if (tmpl_take_name(parser, "filter")) return parse_filter_block(parser, line, node);
    if (tmpl_take_name(parser, "with")) return parse_with(parser, line, node);
    if (tmpl_take_name(parser, "print")) return parse_print(parser, line, node);
    if (tmpl_take_name(parser, "generation")) return parse_generation(parser, line, node);
    if (tmpl_take_name(parser, "break")) return parse_jump(parser, line, TMPL_NODE_BREAK, node);
    if (tmpl_take_name(parser, "continue")) return parse_jump(parser, line, TMPL_NODE_CONTINUE, node);
    static const char *const refused[] = {"include", "import", "from", "extends", "block", "autoescape"};
    for (size_t i = 0; i < sizeof refused / sizeof *refused; i++)
        if (tmpl_at_name(parser, refused[i]))
            return tmpl_parse_fail(parser, "'{%% %s %%}' is not supported in chat templates", refused[i]);
    return tmpl_parse_fail(parser, "unknown tag '%.*s'", (int)(token->length < 60 ? token->length : 60), token->text);
}

static bool at_end(const struct tmpl_parser *parser, const char *const *ends)
{
    for (; ends && *ends; ends++)
        if (tmpl_at_name(parser, *ends)) return true;
    return false;
}

static enum status parse_text(struct tmpl_parser *parser, struct tmpl_node **node)
{
    const struct tmpl_token *token = parser->token++;
    TRY(tmpl_node_new(parser, TMPL_NODE_TEXT, token->line, NULL, node));
    (*node)->value.kind = TMPL_TEXT;
    return tmpl_text_borrow(parser->heap, token->text, token->length, true, &(*node)->value.text);
}

static enum status parse_output(struct tmpl_parser *parser, struct tmpl_node **node)
{
    uint32_t line = parser->token++->line;
    struct tmpl_node *expression;
    TRY(tmpl_parse_tuple(parser, true, NULL, &expression));
    if (parser->token->kind != TMPL_TOKEN_VARIABLE_END) return tmpl_parse_fail(parser, "expected '}}'");
    parser->token++;
    return tmpl_node_of(parser, TMPL_NODE_OUTPUT, line, 1, &expression, node);
}

static enum status missing_end(struct tmpl_parser *parser, const char *const *ends, uint32_t line)
{
    while (ends[1]) ends++; /* the last one always ends the whole statement */
    return tmpl_parse_fail(parser, "'{%% %s %%}' is missing for the block of line %u", *ends, line);
}

/* Text, outputs and statements up to "{%" and one of the ends (the next token then), or to the end for ends NULL. */
static enum status parse_block(struct tmpl_parser *parser, const char *const *ends, struct tmpl_node **node)
{
    struct tmpl_node_list list = {0};
    struct tmpl_node *part;
    uint32_t line = parser->token->line;
    TRY(tmpl_nest(parser));
    for (;;) {
        if (parser->token->kind == TMPL_TOKEN_DATA) {
            TRY(parse_text(parser, &part));
        } else if (parser->token->kind == TMPL_TOKEN_VARIABLE_BEGIN) {
            TRY(parse_output(parser, &part));
        } else if (parser->token->kind == TMPL_TOKEN_BLOCK_BEGIN) {
            parser->token++;
            if (at_end(parser, ends)) break;
            TRY(parse_statement(parser, &part));
            TRY(expect_block_end(parser));
        } else if (ends) {
            return missing_end(parser, ends, line);
        } else {
            break;
        }
        TRY(tmpl_node_add(parser, &list, part, NULL));
    }
    tmpl_unnest(parser);
    return tmpl_node_new(parser, TMPL_NODE_BLOCK, line, &list, node);
}

enum status tmpl_parse(struct chat_template *tmpl, const struct tmpl_tokens *tokens)
{
    struct tmpl_parser parser = {.heap = &tmpl->heap, .tmpl = tmpl, .token = tokens->tokens};
    TRY(tmpl_symbol(&parser, "loop", 4, &tmpl->loop_symbol));
    TRY(tmpl_symbol(&parser, "caller", 6, &tmpl->caller_symbol));
    TRY(parse_block(&parser, NULL, &tmpl->root));
    if (parser.token->kind != TMPL_TOKEN_END) return tmpl_parse_fail(&parser, "unexpected token");
    return ST_OK;
}
