/* Carries out a compiled template: statements (template_run.c) and expressions (template_eval.c).
 *
 * Variables live in frames: one for the template, one for each pass of a loop, each call of a macro, each with, filter
 * and set block. A name is looked up from the innermost frame outwards, then among the inputs and global functions.
 * This is what jinja2's static scoping amounts to, with `set` in a loop not visible behind it.
 *
 * Recursion: the walk over the tree is as deep as the tree (at most template_depth), once for each macro call that is
 * under way (at most template_depth), and never more than CALL_FRAMES_PER_LEVEL * template_depth in all. One thread. */
#ifndef RUNTIME_TEXT_TEMPLATE_RUN_H
#define RUNTIME_TEXT_TEMPLATE_RUN_H

#include "runtime/text/chat_template.h"
#include "runtime/text/template_ast.h"

struct tmpl_variable {
    uint32_t symbol;
    struct tmpl_value value;
};

struct tmpl_frame {
    struct tmpl_frame *parent;
    struct tmpl_variable *variables;
    uint32_t count, capacity;
};

enum tmpl_callable_kind { TMPL_CALLABLE_BUILTIN, TMPL_CALLABLE_MACRO };

struct tmpl_callable {
    enum tmpl_callable_kind kind;
    const struct tmpl_builtin *builtin;
    bool has_self;
    struct tmpl_value self; /* of a method */
    const struct tmpl_node *macro;
    struct tmpl_frame *frame; /* where the macro was defined */
};

enum tmpl_flow { TMPL_FLOW_NEXT, TMPL_FLOW_BREAK, TMPL_FLOW_CONTINUE };

struct tmpl_run {
    struct tmpl_heap heap;
    const struct chat_template *tmpl;
    const struct chat_input *input;
    struct tmpl_frame *frame;
    struct tmpl_value *globals; /* one a symbol; TMPL_ABSENT until first used */
    struct tmpl_text *capture;  /* where output goes, or NULL: to out and spans */
    struct buf *out;
    struct span_list *spans;
    uint64_t out_left; /* bytes that may still be written */
    uint32_t calls, nesting;
    enum tmpl_flow flow;
};

NODISCARD enum status tmpl_execute(struct tmpl_run *run, const struct tmpl_node *node);
NODISCARD enum status tmpl_evaluate(struct tmpl_run *run, const struct tmpl_node *node, struct tmpl_value *value);
/* The output of a block as a text, in a frame of its own. */
NODISCARD enum status tmpl_capture_block(struct tmpl_run *run, const struct tmpl_node *body, struct tmpl_text *text);
/* Applies a filter node (whose value is NULL at its heart) to a value. */
NODISCARD enum status tmpl_apply_filters(struct tmpl_run *run, const struct tmpl_node *filter,
                                         const struct tmpl_value *input, struct tmpl_value *result);

NODISCARD enum status tmpl_frame_set(struct tmpl_run *run, struct tmpl_frame *frame, uint32_t symbol,
                                     struct tmpl_value value);
NODISCARD enum status tmpl_frame_push(struct tmpl_run *run, struct tmpl_frame *parent, struct tmpl_frame **frame);
/* Assigns to a target node in the current frame; a tuple target takes its value apart. */
NODISCARD enum status tmpl_assign(struct tmpl_run *run, const struct tmpl_node *target, const struct tmpl_value *value);

/* An input or global function by name; undefined when there is none. */
NODISCARD enum status tmpl_lookup_global(struct tmpl_run *run, const char *name, struct tmpl_value *value);

/* object.name and object[key], with jinja2's fallbacks from one to the other. */
NODISCARD enum status tmpl_attribute(struct tmpl_run *run, const struct tmpl_value *object, struct tmpl_text name,
                                     struct tmpl_value *value);
NODISCARD enum status tmpl_subscript(struct tmpl_run *run, const struct tmpl_value *object,
                                     const struct tmpl_value *key, struct tmpl_value *value);

struct tmpl_arguments;
/* The arguments of a call, filter or test node, *list and **dict included. */
NODISCARD enum status tmpl_evaluate_arguments(struct tmpl_run *run, const struct tmpl_node *call,
                                              struct tmpl_arguments *arguments);
NODISCARD enum status tmpl_invoke(struct tmpl_run *run, const struct tmpl_value *callee,
                                  const struct tmpl_arguments *arguments, const struct tmpl_value *caller,
                                  struct tmpl_value *result);
NODISCARD enum status tmpl_operate(struct tmpl_run *run, enum tmpl_op op, const struct tmpl_value *a,
                                   const struct tmpl_value *b, struct tmpl_value *result);

#endif
