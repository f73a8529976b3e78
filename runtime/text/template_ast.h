/* The tree of a compiled template: immutable, in one arena, shared by all threads.
 *
 * Chains of one operator (a + b + c, a ~ b, a and b) and elif ladders are flat, so that the depth of a tree, which
 * bounds the recursion of whoever walks it, grows only with what is written nested. */
#ifndef RUNTIME_TEXT_TEMPLATE_AST_H
#define RUNTIME_TEXT_TEMPLATE_AST_H

#include "runtime/text/template_value.h"

enum tmpl_node_kind {
    /* expressions */
    TMPL_NODE_CONSTANT,            /* value */
    TMPL_NODE_NAME,                /* symbol */
    TMPL_NODE_LIST,                /* children */
    TMPL_NODE_TUPLE,               /* children */
    TMPL_NODE_DICT,                /* children: key, value, key, value ... */
    TMPL_NODE_ATTRIBUTE,           /* [object], value: name */
    TMPL_NODE_ITEM,                /* [object, key] */
    TMPL_NODE_SLICE,               /* [object, start, stop, step], NULL where left out */
    TMPL_NODE_CALL,                /* [callee, arguments ...], names */
    TMPL_NODE_FILTER,              /* [value, arguments ...], names, builtin; value NULL in filter and set blocks */
    TMPL_NODE_TEST,                /* the same */
    TMPL_NODE_NOT,                 /* [a] */
    TMPL_NODE_NEGATIVE,            /* [a] */
    TMPL_NODE_POSITIVE,            /* [a] */
    TMPL_NODE_AND,                 /* children */
    TMPL_NODE_OR,                  /* children */
    TMPL_NODE_CONCAT,              /* children */
    TMPL_NODE_ARITHMETIC,          /* [a, b, c ...], ops[i] between i and i + 1, from the left */
    TMPL_NODE_COMPARE,             /* the same: a < b < c */
    TMPL_NODE_CONDITION,           /* [test, then, else or NULL] */
    TMPL_NODE_NAMESPACE_ATTRIBUTE, /* a target: symbol, value: name */
    /* statements */
    TMPL_NODE_BLOCK,        /* children */
    TMPL_NODE_TEXT,         /* value */
    TMPL_NODE_OUTPUT,       /* [expression] */
    TMPL_NODE_IF,           /* [test, block, test, block ..., else block if the count is odd] */
    TMPL_NODE_FOR,          /* [target, items, filter or NULL, body, else or NULL] */
    TMPL_NODE_SET,          /* [target, expression] */
    TMPL_NODE_SET_BLOCK,    /* [target, filter or NULL, body] */
    TMPL_NODE_MACRO,        /* [body, default of each parameter or NULL ...], symbol, parameters */
    TMPL_NODE_CALL_BLOCK,   /* [call, macro] */
    TMPL_NODE_FILTER_BLOCK, /* [filter, body] */
    TMPL_NODE_WITH,         /* [body, target, expression, target, expression ...] */
    TMPL_NODE_SCOPE,        /* [body]: a generation block */
    TMPL_NODE_BREAK,
    TMPL_NODE_CONTINUE
};

enum tmpl_op {
    TMPL_OP_ADD,
    TMPL_OP_SUBTRACT,
    TMPL_OP_MULTIPLY,
    TMPL_OP_DIVIDE,
    TMPL_OP_FLOOR_DIVIDE,
    TMPL_OP_MODULO,
    TMPL_OP_POWER,
    TMPL_OP_EQUAL,
    TMPL_OP_NOT_EQUAL,
    TMPL_OP_LESS,
    TMPL_OP_LESS_EQUAL,
    TMPL_OP_GREATER,
    TMPL_OP_GREATER_EQUAL,
    TMPL_OP_IN,
    TMPL_OP_NOT_IN
};

struct tmpl_builtin;

struct tmpl_node {
    enum tmpl_node_kind kind;
    uint32_t line;
    uint32_t depth; /* 1 + the deepest child's */
    uint32_t count;
    bool takes_caller; /* macros: the body says `caller`, so that a call block may call it */
    bool spreads;      /* calls, filters, tests: an argument is *list or **dict; its name then says so */
    struct tmpl_node **children;
    union {
        const char **names;   /* calls, filters, tests: of keyword arguments, "*", "**"; NULL entries are positional */
        uint32_t *parameters; /* macros: their symbols */
        uint8_t *ops;
    };
    const struct tmpl_builtin *builtin; /* NULL: not known; fails when it is reached */
    uint32_t symbol;
    struct tmpl_value value;
};

/* Symbols number the names of a template, so that variables are found by comparing integers. */
struct tmpl_symbols {
    const char **names;
    uint32_t count, capacity;
};

struct chat_template {
    struct tmpl_heap heap; /* owns all of it; not used after compilation */
    struct tmpl_node *root;
    struct tmpl_symbols symbols;
    uint32_t loop_symbol, caller_symbol;
    bool knows_developer;
};

#endif
