/* Tokens to a tree: jinja2's grammar by recursive descent, its depth bounded by template_depth.
 *
 * Left out on purpose and refused by name: include, import, from, extends, block (they read other templates),
 * autoescape, recursive loops. Source of the grammar: jinja2 3.1.6, parser.py. */
#ifndef RUNTIME_TEXT_TEMPLATE_PARSE_H
#define RUNTIME_TEXT_TEMPLATE_PARSE_H

#include "runtime/text/template_ast.h"
#include "runtime/text/template_lex.h"

struct tmpl_parser {
    struct tmpl_heap *heap;
    struct chat_template *tmpl;
    const struct tmpl_token *token; /* the one to be read next */
    uint32_t depth, conditional, loops;
    uint32_t callers; /* how often `caller` was read so far */
};

/* Fills tmpl->root and symbols. ST_INVAL: err names line and construct; ST_LIMIT: nested too deep, or too large. */
NODISCARD enum status tmpl_parse(struct chat_template *tmpl, const struct tmpl_tokens *tokens);

/* Shared by the two files of the parser. */
enum status tmpl_parse_fail(struct tmpl_parser *parser, const char *format, ...) PRINTF_LIKE(2, 3);
bool tmpl_at_operator(const struct tmpl_parser *parser, const char *op);
bool tmpl_at_name(const struct tmpl_parser *parser, const char *name);
bool tmpl_take_operator(struct tmpl_parser *parser, const char *op);
bool tmpl_take_name(struct tmpl_parser *parser, const char *name);
NODISCARD enum status tmpl_expect_operator(struct tmpl_parser *parser, const char *op);
NODISCARD enum status tmpl_nest(struct tmpl_parser *parser);
static inline void tmpl_unnest(struct tmpl_parser *parser)
{
    parser->depth--;
}

struct tmpl_node_list {
    struct tmpl_node **nodes;
    const char **names; /* parallel, where arguments are collected */
    uint32_t count, capacity;
};
NODISCARD enum status tmpl_node_add(struct tmpl_parser *parser, struct tmpl_node_list *list, struct tmpl_node *node,
                                    const char *name);
/* A node of the list's children. ST_LIMIT: deeper than template_depth. */
NODISCARD enum status tmpl_node_new(struct tmpl_parser *parser, enum tmpl_node_kind kind, uint32_t line,
                                    const struct tmpl_node_list *children, struct tmpl_node **node);
/* The same from an array of count children. */
NODISCARD enum status tmpl_node_of(struct tmpl_parser *parser, enum tmpl_node_kind kind, uint32_t line, uint32_t count,
                                   struct tmpl_node *const *children, struct tmpl_node **node);
NODISCARD enum status tmpl_symbol(struct tmpl_parser *parser, const char *name, size_t length, uint32_t *symbol);

NODISCARD enum status tmpl_parse_expression(struct tmpl_parser *parser, bool with_condition, struct tmpl_node **node);
/* One expression, or a tuple without brackets; until_name ends it too ("in", "recursive"), or NULL. */
NODISCARD enum status tmpl_parse_tuple(struct tmpl_parser *parser, bool with_condition, const char *until_name,
                                       struct tmpl_node **node);
/* A name, ns.attribute or a tuple of them. */
NODISCARD enum status tmpl_parse_target(struct tmpl_parser *parser, bool with_namespace, struct tmpl_node **node);
/* |a(..)|b: filters around value, which is NULL in blocks. first: the bar of the first one was not written. */
NODISCARD enum status tmpl_parse_filters(struct tmpl_parser *parser, struct tmpl_node *value, bool first,
                                         struct tmpl_node **node);

#endif
