/* Statements, frames and output; see template_run.h. */
#include "runtime/text/template_run.h"

#include "runtime/base/limits.h"
#include "runtime/base/mem.h"
#include "runtime/text/template_builtin.h"
#include "runtime/text/template_print.h"

#include <string.h>

/* ---- frames ---- */

enum status tmpl_frame_push(struct tmpl_run *run, struct tmpl_frame *parent, struct tmpl_frame **frame)
{
    TRY(tmpl_alloc(&run->heap, 1, sizeof **frame, frame));
    (*frame)->parent = parent;
    return ST_OK;
}

enum status tmpl_frame_set(struct tmpl_run *run, struct tmpl_frame *frame, uint32_t symbol, struct tmpl_value value)
{
    for (uint32_t i = 0; i < frame->count; i++) {
        if (frame->variables[i].symbol != symbol) continue;
        frame->variables[i].value = value;
        return ST_OK;
    }
    if (frame->count == frame->capacity) {
        struct tmpl_variable *variables;
        uint32_t capacity = frame->capacity ? frame->capacity * 2 : 4;
        TRY(tmpl_alloc(&run->heap, capacity, sizeof *variables, &variables));
        if (frame->count) memcpy(variables, frame->variables, frame->count * sizeof *variables);
        frame->variables = variables;
        frame->capacity = capacity;
    }
    frame->variables[frame->count++] = (struct tmpl_variable){symbol, value};
    return ST_OK;
}

static enum status assign_attribute(struct tmpl_run *run, const struct tmpl_node *target,
                                    const struct tmpl_value *value)
{
    struct tmpl_node name = {.kind = TMPL_NODE_NAME, .symbol = target->symbol};
    struct tmpl_value object;
    TRY(tmpl_evaluate(run, &name, &object));
    if (object.kind != TMPL_NAMESPACE)
        return tmpl_fail(&run->heap, ST_INVAL, "cannot assign an attribute on a %s, only on a namespace",
                         tmpl_type_name(&object));
    if (*tmpl_text_data(target->value.text) == '_')
        return tmpl_fail(&run->heap, ST_INVAL, "attributes of a namespace cannot begin with an underscore");
    return tmpl_dict_put(&run->heap, object.dict, target->value, *value);
}

enum status tmpl_assign(struct tmpl_run *run, const struct tmpl_node *target, const struct tmpl_value *value)
{
    if (target->kind == TMPL_NODE_NAME) return tmpl_frame_set(run, run->frame, target->symbol, *value);
    if (target->kind == TMPL_NODE_NAMESPACE_ATTRIBUTE) return assign_attribute(run, target, value);
    const struct tmpl_list *items;
    TRY(tmpl_items(&run->heap, value, &items));
    if (items->count != target->count)
        return tmpl_fail(&run->heap, ST_INVAL, "%u values for %u names", items->count, target->count);
    for (uint32_t i = 0; i < items->count; i++) TRY(tmpl_assign(run, target->children[i], &items->items[i]));
    return ST_OK;
}

/* ---- output ---- */

static enum status add_span(struct tmpl_run *run, size_t end, bool trusted)
{
    struct span_list *list = run->spans;
    if (list->count && list->spans[list->count - 1].trusted == trusted) {
        list->spans[list->count - 1].end = end;
        return ST_OK;
    }
    if (list->count == list->capacity) {
        size_t capacity = list->capacity ? list->capacity * 2 : 32;
        struct text_span *spans = mem_resize(list->spans, capacity, sizeof *spans);
        if (!spans) return tmpl_fail(&run->heap, ST_NOMEM, "out of memory");
        list->spans = spans;
        list->capacity = capacity;
    }
    list->spans[list->count++] = (struct text_span){end, trusted};
    return ST_OK;
}

static enum status emit(struct tmpl_run *run, struct tmpl_text text)
{
    size_t position = 0, length;
    const char *bytes;
    bool trusted;
    if (run->capture) return tmpl_text_append(&run->heap, run->capture, text);
    if (text.length > run->out_left)
        return tmpl_fail(&run->heap, ST_LIMIT, "writes more than %llu bytes",
                         (unsigned long long)limits.template_output_bytes);
    run->out_left -= text.length;
    while (tmpl_text_segment(text, &position, &bytes, &length, &trusted)) {
        buf_append(run->out, bytes, length);
        if (!buf_ok(run->out)) return tmpl_fail(&run->heap, ST_NOMEM, "out of memory for the prompt");
        TRY(add_span(run, run->out->length, trusted));
    }
    return ST_OK;
}

enum status tmpl_capture_block(struct tmpl_run *run, const struct tmpl_node *body, struct tmpl_text *text)
{
    struct tmpl_frame *saved_frame = run->frame, *frame;
    struct tmpl_text *saved_capture = run->capture;
    *text = (struct tmpl_text){0};
    TRY(tmpl_frame_push(run, run->frame, &frame));
    run->frame = frame;
    run->capture = text;
    TRY(tmpl_execute(run, body));
    run->capture = saved_capture;
    run->frame = saved_frame;
    return ST_OK;
}

/* ---- statements ---- */

static enum status run_block(struct tmpl_run *run, const struct tmpl_node *node)
{
    for (uint32_t i = 0; i < node->count && run->flow == TMPL_FLOW_NEXT; i++) TRY(tmpl_execute(run, node->children[i]));
    return ST_OK;
}

static enum status run_output(struct tmpl_run *run, const struct tmpl_node *node)
{
    struct tmpl_value value;
    struct tmpl_text text;
    TRY(tmpl_evaluate(run, node->children[0], &value));
    TRY(tmpl_str(&run->heap, &value, &text));
    return emit(run, text);
}

static enum status run_if(struct tmpl_run *run, const struct tmpl_node *node)
{
    struct tmpl_value test;
    uint32_t i = 0;
    for (; i + 1 < node->count; i += 2) {
        run->heap.line = node->children[i]->line;
        TRY(tmpl_evaluate(run, node->children[i], &test));
        if (tmpl_truth(&test)) return tmpl_execute(run, node->children[i + 1]);
    }
    return i < node->count ? tmpl_execute(run, node->children[i]) : ST_OK;
}

/* Those items for which the loop's condition holds. */
static enum status filter_items(struct tmpl_run *run, const struct tmpl_node *node, const struct tmpl_list *all,
                                const struct tmpl_list **kept)
{
    struct tmpl_list *list;
    struct tmpl_value test;
    TRY(tmpl_list_new(&run->heap, TMPL_FLAVOR_LIST, 0, &list));
    for (uint32_t i = 0; i < all->count; i++) {
        TRY(tmpl_charge(&run->heap, 1));
        run->frame->count = 0;
        TRY(tmpl_assign(run, node->children[0], &all->items[i]));
        TRY(tmpl_evaluate(run, node->children[2], &test));
        if (tmpl_truth(&test)) TRY(tmpl_list_add(&run->heap, list, all->items[i]));
    }
    *kept = list;
    return ST_OK;
}

/* As jinja2 has it, the else runs when no pass reached its end: also when the first one broke off. */
static enum status run_passes(struct tmpl_run *run, const struct tmpl_node *node, const struct tmpl_list *items,
                              bool *finished_one)
{
    struct tmpl_loop *loop;
    struct tmpl_value loop_value = {.kind = TMPL_LOOP};
    TRY(tmpl_alloc(&run->heap, 1, sizeof *loop, &loop));
    loop->items = items;
    loop_value.loop = loop;
    for (uint32_t i = 0; i < items->count; i++) {
        TRY(tmpl_charge(&run->heap, 1));
        loop->idx = i;
        run->frame->count = 0;
        TRY(tmpl_frame_set(run, run->frame, run->tmpl->loop_symbol, loop_value));
        TRY(tmpl_assign(run, node->children[0], &items->items[i]));
        TRY(tmpl_execute(run, node->children[3]));
        enum tmpl_flow flow = run->flow;
        run->flow = TMPL_FLOW_NEXT;
        if (flow == TMPL_FLOW_NEXT) *finished_one = true;
        if (flow == TMPL_FLOW_BREAK) break;
    }
    return ST_OK;
}

static enum status run_for(struct tmpl_run *run, const struct tmpl_node *node)
{
    struct tmpl_frame *saved = run->frame, *frame;
    struct tmpl_value value;
    const struct tmpl_list *items;
    bool finished_one = false;
    TRY(tmpl_evaluate(run, node->children[1], &value));
    TRY(tmpl_items(&run->heap, &value, &items));
    TRY(tmpl_frame_push(run, saved, &frame));
    run->frame = frame;
    if (node->children[2]) TRY(filter_items(run, node, items, &items));
    TRY(run_passes(run, node, items, &finished_one));
    frame->count = 0;
    if (!finished_one && node->children[4]) TRY(tmpl_execute(run, node->children[4]));
    run->frame = saved;
    return ST_OK;
}

static enum status run_set(struct tmpl_run *run, const struct tmpl_node *node)
{
    struct tmpl_value value;
    TRY(tmpl_evaluate(run, node->children[1], &value));
    return tmpl_assign(run, node->children[0], &value);
}

static enum status run_set_block(struct tmpl_run *run, const struct tmpl_node *node)
{
    struct tmpl_text text;
    TRY(tmpl_capture_block(run, node->children[2], &text));
    struct tmpl_value value = tmpl_from_text(text), filtered = value;
    if (node->children[1]) TRY(tmpl_apply_filters(run, node->children[1], &value, &filtered));
    return tmpl_assign(run, node->children[0], &filtered);
}

static enum status make_macro(struct tmpl_run *run, const struct tmpl_node *node, struct tmpl_value *value)
{
    struct tmpl_callable *callable;
    TRY(tmpl_alloc(&run->heap, 1, sizeof *callable, &callable));
    *callable = (struct tmpl_callable){.kind = TMPL_CALLABLE_MACRO, .macro = node, .frame = run->frame};
    *value = (struct tmpl_value){.kind = TMPL_CALLABLE, .callable = callable};
    return ST_OK;
}

static enum status run_macro(struct tmpl_run *run, const struct tmpl_node *node)
{
    struct tmpl_value value;
    TRY(make_macro(run, node, &value));
    return tmpl_frame_set(run, run->frame, node->symbol, value);
}

static enum status run_call_block(struct tmpl_run *run, const struct tmpl_node *node)
{
    const struct tmpl_node *call = node->children[0];
    struct tmpl_value callee, caller, result;
    struct tmpl_arguments arguments;
    struct tmpl_text text;
    TRY(make_macro(run, node->children[1], &caller));
    TRY(tmpl_evaluate(run, call->children[0], &callee));
    TRY(tmpl_evaluate_arguments(run, call, &arguments));
    TRY(tmpl_invoke(run, &callee, &arguments, &caller, &result));
    TRY(tmpl_str(&run->heap, &result, &text));
    return emit(run, text);
}

static enum status run_filter_block(struct tmpl_run *run, const struct tmpl_node *node)
{
    struct tmpl_text text;
    TRY(tmpl_capture_block(run, node->children[1], &text));
    struct tmpl_value value = tmpl_from_text(text), filtered;
    TRY(tmpl_apply_filters(run, node->children[0], &value, &filtered));
    TRY(tmpl_str(&run->heap, &filtered, &text));
    return emit(run, text);
}

/* A body in a frame of its own: with (its values are evaluated outside) and generation. */
static enum status run_scope(struct tmpl_run *run, const struct tmpl_node *node)
{
    struct tmpl_frame *saved = run->frame, *frame;
    struct tmpl_value value;
    TRY(tmpl_frame_push(run, saved, &frame));
    for (uint32_t i = 1; i + 1 < node->count; i += 2) {
        TRY(tmpl_evaluate(run, node->children[i + 1], &value));
        TRY(tmpl_frame_set(run, frame, node->children[i]->symbol, value));
    }
    run->frame = frame;
    TRY(tmpl_execute(run, node->children[0]));
    run->frame = saved;
    return ST_OK;
}

enum status tmpl_execute(struct tmpl_run *run, const struct tmpl_node *node)
{
    run->heap.line = node->line;
    if (node->kind == TMPL_NODE_TEXT) return emit(run, node->value.text);
    if (node->kind == TMPL_NODE_BLOCK) return run_block(run, node);
    TRY(tmpl_charge(&run->heap, 1));
    switch (node->kind) {
    case TMPL_NODE_OUTPUT: return run_output(run, node);
    case TMPL_NODE_IF: return run_if(run, node);
    case TMPL_NODE_FOR: return run_for(run, node);
    case TMPL_NODE_SET: return run_set(run, node);
    case TMPL_NODE_SET_BLOCK: return run_set_block(run, node);
    case TMPL_NODE_MACRO: return run_macro(run, node);
    case TMPL_NODE_CALL_BLOCK: return run_call_block(run, node);
    case TMPL_NODE_FILTER_BLOCK: return run_filter_block(run, node);
    case TMPL_NODE_WITH:
    case TMPL_NODE_SCOPE: return run_scope(run, node);
    case TMPL_NODE_BREAK: run->flow = TMPL_FLOW_BREAK; return ST_OK;
    case TMPL_NODE_CONTINUE: run->flow = TMPL_FLOW_CONTINUE; return ST_OK;
    default: break;
    }
    return tmpl_fail(&run->heap, ST_INVAL, "not a statement");
}
