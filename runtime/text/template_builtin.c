/* Binding of arguments, and string functions that filters and methods share; see template_builtin.h. */
#include "runtime/text/template_builtin.h"

#include "runtime/text/template_print.h"

#include <string.h>
#include <utf8proc.h>

const struct tmpl_builtin *tmpl_find_in(const struct tmpl_builtin *table, const char *name, size_t length)
{
    for (; table->name; table++)
        if (*table->name == *name && strlen(table->name) == length && memcmp(table->name, name, length) == 0)
            return table;
    return NULL;
}

const struct tmpl_builtin *tmpl_find_filter(const char *name, size_t length)
{
    const struct tmpl_builtin *found = tmpl_find_in(tmpl_text_filters, name, length);
    return found ? found : tmpl_find_in(tmpl_list_filters, name, length);
}

/* ---- arguments ---- */

/* The position of a parameter in "old new count", or -1. */
static int parameter_idx(const char *parameters, const char *name)
{
    size_t length = strlen(name);
    for (int idx = 0; *parameters; idx++) {
        size_t n = strcspn(parameters, " ");
        if (n == length && memcmp(parameters, name, n) == 0) return idx;
        parameters += n + (parameters[n] == ' ');
    }
    return -1;
}

static uint32_t parameter_count(const char *parameters)
{
    uint32_t count = *parameters != '\0';
    for (; *parameters; parameters++) count += *parameters == ' ';
    return count;
}

enum status tmpl_call_builtin(struct tmpl_run *run, const struct tmpl_builtin *builtin, const struct tmpl_value *self,
                              const struct tmpl_arguments *arguments, struct tmpl_value *result)
{
    struct tmpl_call call = {.run = run, .heap = &run->heap, .self = self, .all = arguments, .result = result};
    TRY(tmpl_charge(&run->heap, 1));
    if (!builtin->parameters) return builtin->run(&call);
    uint32_t count = parameter_count(builtin->parameters);
    for (uint32_t i = 0; i < arguments->count; i++) {
        const char *name = arguments->names ? arguments->names[i] : NULL;
        int idx = name ? parameter_idx(builtin->parameters, name) : i < count ? (int)i : -1;
        if (idx < 0 || tmpl_given(&call.args[idx]))
            return tmpl_fail(&run->heap, ST_INVAL, "'%s' takes no such argument", builtin->name);
        call.args[idx] = arguments->values[i];
    }
    for (uint32_t i = 0; i < builtin->required; i++)
        if (!tmpl_given(&call.args[i])) return tmpl_fail(&run->heap, ST_INVAL, "'%s' lacks an argument", builtin->name);
    return builtin->run(&call);
}

enum status tmpl_int_argument(struct tmpl_call *call, uint32_t slot, int64_t fallback, int64_t *value)
{
    const struct tmpl_value *argument = &call->args[slot];
    *value = fallback;
    if (!tmpl_given(argument)) return ST_OK;
    if (!tmpl_is_int(argument))
        return tmpl_fail(call->heap, ST_INVAL, "an integer is expected, not %s", tmpl_type_name(argument));
    *value = tmpl_as_int(argument);
    return ST_OK;
}

enum status tmpl_text_argument(struct tmpl_call *call, uint32_t slot, struct tmpl_text *text)
{
    const struct tmpl_value *argument = &call->args[slot];
    if (argument->kind != TMPL_TEXT)
        return tmpl_fail(call->heap, ST_INVAL, "a string is expected, not %s", tmpl_type_name(argument));
    *text = argument->text;
    return ST_OK;
}

bool tmpl_flag_argument(const struct tmpl_call *call, uint32_t slot, bool fallback)
{
    return tmpl_given(&call->args[slot]) ? tmpl_truth(&call->args[slot]) : fallback;
}

/* ---- strings ---- */

static bool is_cased(uint32_t c)
{
    return utf8proc_tolower((utf8proc_int32_t)c) != (utf8proc_int32_t)c ||
           utf8proc_toupper((utf8proc_int32_t)c) != (utf8proc_int32_t)c;
}

/* Whether the title filter of jinja2 begins a word behind this character. */
static bool separates_words(uint32_t c)
{
    return c == '-' || c == '(' || c == '{' || c == '[' || c == '<' || tmpl_is_space(c);
}

static enum status append_upper(struct tmpl_heap *heap, struct tmpl_text *out, uint32_t c, bool title, bool trusted)
{
    if (c == 0xdf) return tmpl_text_append_bytes(heap, out, title ? "Ss" : "SS", 2, trusted);
    utf8proc_int32_t upper = title ? utf8proc_totitle((utf8proc_int32_t)c) : utf8proc_toupper((utf8proc_int32_t)c);
    return tmpl_text_append_char(heap, out, (uint32_t)upper, trusted);
}

enum status tmpl_change_case(struct tmpl_heap *heap, struct tmpl_text text, enum tmpl_case to, struct tmpl_text *out)
{
    bool begins = true; /* the next character begins a word */
    *out = (struct tmpl_text){0};
    TRY(tmpl_charge_bytes(heap, (size_t)text.length * 16));
    for (size_t i = 0, n; i < text.length; i += n) {
        uint32_t c = tmpl_text_decode(text, i, &n);
        bool trusted = tmpl_text_trusted_at(text, i);
        bool upper = to == TMPL_CASE_UPPER || (to != TMPL_CASE_LOWER && begins);
        if (upper)
            TRY(append_upper(heap, out, c, to != TMPL_CASE_UPPER && to != TMPL_CASE_TITLE_FILTER, trusted));
        else
            TRY(tmpl_text_append_char(heap, out, (uint32_t)utf8proc_tolower((utf8proc_int32_t)c), trusted));
        begins = to == TMPL_CASE_TITLE_METHOD ? !is_cased(c) : to == TMPL_CASE_TITLE_FILTER && separates_words(c);
    }
    return ST_OK;
}

enum status tmpl_replace(struct tmpl_heap *heap, struct tmpl_text text, struct tmpl_text old, struct tmpl_text new_text,
                         int64_t count, struct tmpl_text *out)
{
    size_t from = 0;
    *out = (struct tmpl_text){0};
    TRY(tmpl_charge_bytes(heap, text.length));
    for (size_t at = 0, n; count != 0; count--) {
        at = tmpl_text_find(text, old, at);
        if (at == SIZE_MAX) break;
        TRY(tmpl_charge(heap, 1));
        TRY(tmpl_text_append(heap, out, tmpl_text_part(text, from, at - from)));
        TRY(tmpl_text_append(heap, out, new_text));
        from = at + old.length;
        if (!old.length && at == text.length) break;
        /* An empty pattern matches before every character and at the end. */
        if (!old.length) tmpl_text_decode(text, at, &n);
        at = old.length ? from : at + n;
    }
    return tmpl_text_append(heap, out, tmpl_text_part(text, from, text.length - from));
}

/* The entity of a character, or NULL. Source: markupsafe 3.0, escape(). */
static const char *entity(char c)
{
    switch (c) {
    case '&': return "&amp;";
    case '<': return "&lt;";
    case '>': return "&gt;";
    case '\'': return "&#39;";
    case '"': return "&#34;";
    default: return NULL;
    }
}

enum status tmpl_escape(struct tmpl_heap *heap, struct tmpl_text text, struct tmpl_text *out)
{
    const char *data = tmpl_text_data(text);
    size_t plain = 0;
    *out = (struct tmpl_text){0};
    TRY(tmpl_charge_bytes(heap, text.length));
    for (size_t i = 0; i < text.length; i++) {
        const char *to = entity(data[i]);
        if (!to) continue;
        TRY(tmpl_text_append(heap, out, tmpl_text_part(text, plain, i - plain)));
        TRY(tmpl_text_append_bytes(heap, out, to, strlen(to), tmpl_text_trusted_at(text, i)));
        plain = i + 1;
    }
    return tmpl_text_append(heap, out, tmpl_text_part(text, plain, text.length - plain));
}

enum status tmpl_join(struct tmpl_heap *heap, struct tmpl_text separator, const struct tmpl_list *items, bool any_type,
                      struct tmpl_text *out)
{
    struct tmpl_text piece;
    *out = (struct tmpl_text){0};
    for (uint32_t i = 0; i < items->count; i++) {
        TRY(tmpl_charge(heap, 1));
        if (!any_type && items->items[i].kind != TMPL_TEXT)
            return tmpl_fail(heap, ST_INVAL, "join: a string is expected, not %s", tmpl_type_name(&items->items[i]));
        TRY(tmpl_str(heap, &items->items[i], &piece));
        if (i) TRY(tmpl_text_append(heap, out, separator));
        TRY(tmpl_text_append(heap, out, piece));
    }
    return ST_OK;
}
