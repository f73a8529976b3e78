/* Compiles and renders chat templates; see chat_template.h. The work is in template_*.c:
 *
 *   template_lex -> template_parse, template_statements -> template_ast
 *   template_run (statements), template_eval (expressions), template_arithmetic
 *   template_text (strings with their origin), template_value (Python's data model), template_print, template_sort
 *   template_filters_*, template_tests, template_methods, template_globals: all that a template can call */
#include "runtime/text/chat_template.h"

#include "runtime/base/limits.h"
#include "runtime/base/mem.h"
#include "runtime/text/template_builtin.h"
#include "runtime/text/template_parse.h"

#include <string.h>

static void init_heap(struct tmpl_heap *heap, struct error *err)
{
    arena_init(&heap->arena, limits.template_memory_bytes);
    heap->steps_left = limits.template_steps;
    heap->depth_limit = (uint32_t)limits.template_depth;
    heap->err = err;
}

static bool has_string(const struct tmpl_tokens *tokens, const char *text)
{
    for (uint32_t i = 0; i < tokens->count; i++) {
        const struct tmpl_token *token = &tokens->tokens[i];
        if (token->kind == TMPL_TOKEN_STRING && token->length == strlen(text) &&
            memcmp(token->text, text, token->length) == 0)
            return true;
    }
    return false;
}

enum status chat_template_compile(const char *source, size_t length, struct chat_template **result, struct error *err)
{
    struct chat_template *tmpl = mem_alloc(1, sizeof *tmpl);
    struct tmpl_tokens tokens = {0};
    if (!tmpl) return error_set(err, ST_NOMEM, "chat template: out of memory");
    init_heap(&tmpl->heap, err);
    enum status status = tmpl_lex(&tmpl->heap, source, length, &tokens);
    if (status == ST_OK) status = tmpl_parse(tmpl, &tokens);
    if (status == ST_OK) tmpl->knows_developer = has_string(&tokens, "developer");
    tmpl->heap.err = NULL;
    if (status == ST_OK)
        *result = tmpl;
    else
        chat_template_destroy(tmpl);
    return status;
}

void chat_template_destroy(struct chat_template *tmpl)
{
    if (!tmpl) return;
    arena_free(&tmpl->heap.arena);
    mem_free(tmpl);
}

bool chat_template_knows_developer(const struct chat_template *tmpl)
{
    return tmpl->knows_developer;
}

void span_list_free(struct span_list *list)
{
    mem_free(list->spans);
    *list = (struct span_list){0};
}

static enum status json_or_undefined(struct tmpl_run *run, const struct json *json, const char *name,
                                     struct tmpl_value *value)
{
    *value = tmpl_undefined(name);
    return json ? tmpl_from_json(&run->heap, json, value) : ST_OK;
}

/* transformers hands these two to every template: "is defined" holds for them, always. */
static enum status json_or_none(struct tmpl_run *run, const struct json *json, struct tmpl_value *value)
{
    *value = tmpl_none();
    return json ? tmpl_from_json(&run->heap, json, value) : ST_OK;
}

/* jinja2's `self` holds the template's blocks, and there are none. */
static enum status empty_namespace(struct tmpl_run *run, struct tmpl_value *value)
{
    struct tmpl_dict *dict;
    TRY(tmpl_dict_new(&run->heap, 0, &dict));
    *value = (struct tmpl_value){.kind = TMPL_NAMESPACE, .dict = dict};
    return ST_OK;
}

enum status tmpl_lookup_global(struct tmpl_run *run, const char *name, struct tmpl_value *value)
{
    const struct chat_input *input = run->input;
    const struct tmpl_builtin *builtin = tmpl_find_global(name);
    if (strcmp(name, "messages") == 0) return json_or_undefined(run, input->messages, name, value);
    if (strcmp(name, "tools") == 0) return json_or_none(run, input->tools, value);
    if (strcmp(name, "documents") == 0) return json_or_none(run, input->documents, value);
    if (strcmp(name, "self") == 0) return empty_namespace(run, value);
    if (strcmp(name, "bos_token") == 0)
        return tmpl_literal(&run->heap, input->bos_token ? input->bos_token : "", value);
    if (strcmp(name, "eos_token") == 0)
        return tmpl_literal(&run->heap, input->eos_token ? input->eos_token : "", value);
    if (strcmp(name, "add_generation_prompt") == 0) {
        *value = tmpl_bool(input->add_generation_prompt);
        return ST_OK;
    }
    const struct json *argument = json_member(input->arguments, name);
    if (argument || !builtin) return json_or_undefined(run, argument, name, value);
    struct tmpl_callable *callable;
    TRY(tmpl_alloc(&run->heap, 1, sizeof *callable, &callable));
    callable->builtin = builtin;
    *value = (struct tmpl_value){.kind = TMPL_CALLABLE, .callable = callable};
    return ST_OK;
}

static enum status render(struct tmpl_run *run)
{
    TRY(tmpl_alloc(&run->heap, run->tmpl->symbols.count, sizeof *run->globals, &run->globals));
    TRY(tmpl_frame_push(run, NULL, &run->frame));
    return tmpl_execute(run, run->tmpl->root);
}

enum status chat_template_render(const struct chat_template *tmpl, const struct chat_input *input, struct buf *out,
                                 struct span_list *spans, struct error *err)
{
    struct tmpl_run run = {.tmpl = tmpl, .input = input, .out = out, .spans = spans};
    init_heap(&run.heap, err);
    run.out_left = limits.template_output_bytes;
    enum status status = render(&run);
    arena_free(&run.heap.arena);
    return status;
}
